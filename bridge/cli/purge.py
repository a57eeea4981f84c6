"""`bridge purge`: remove what an owner id owns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bridge.cli.loading import default_namespace, load, rules_of, status_of
from bridge.cli.streams import Progress, ask, at_first_signal, interactive, say, say_trouble, show, terminal, write
from bridge.errors import ConfigurationError, ExitStatus

if TYPE_CHECKING:
    from bridge.report import Report


def purge(flags: Mapping[str, Any]) -> int:
    """Remove everything that the owner id (--owner) owns.

    In the rules' namespaces, or in --namespace. Asks first on a terminal; elsewhere --yes is needed.
    """
    from bridge.signals import Signals

    flags = dict(flags)
    only = flags.pop("--namespace", None)
    settings = load({**flags, "--watch-namespace": [only]} if only else flags)
    progress = Progress()

    with Signals(at_first_signal(progress, "deleting", "nothing was deleted")) as signals:
        from bridge.oneshot.purge import purge
        from bridge.pipeline.scope import namespaces_of

        kube = settings.kube_config()
        namespaces = (
            (only,) if only else namespaces_of(rules_of(settings), kube.namespaces, default_namespace(settings))
        )

        def once(*, dry_run: bool, progress: Progress | None = None) -> Report:
            return purge(
                namespaces,
                dry_run,
                consul=settings.consul_config(),
                kube=kube,
                rules=(),
                options=settings.sync_options(),
                stop=signals.stop,
                progress=progress,
            )

        try:
            plan = once(dry_run=True, progress=progress)
        finally:
            progress.clear()
        if settings.sync.dry_run or not plan.changes:
            if plan.changes or plan.failed or settings.sync.output != "table":
                _show(plan, settings.sync.output)
            if not plan.changes and not plan.failed:
                say(f"nothing there belongs to owner {settings.owner!r}{_in_namespaces(namespaces)}")
            say_trouble(plan, settings.sync.output)
            return status_of(plan, settings)
        if not settings.sync.yes:
            count = len(plan.changes)
            what = f"{count} object{'s' if count > 1 else ''} of owner {settings.owner!r}{_in_namespaces(namespaces)}"
            if not interactive():
                raise ConfigurationError(f"purge would delete {what}; without a terminal to ask, --yes is needed")
            _show(plan, "table")
            if not ask(f"Delete {what}?"):
                say("nothing was deleted")
                return ExitStatus.REFUSED
        progress.what = "deleting"
        report = once(dry_run=False)
        _show(report, settings.sync.output)
        say_trouble(report, settings.sync.output)
        return signals.status if signals.received is not None else status_of(report, settings)


def _show(report: Report, output: str) -> None:
    """How much of what goes, or the report in another format."""
    from bridge.render.reports import purge_text

    if output == "table":
        write(purge_text(report, *terminal()))
    else:
        show(report, output)


def _in_namespaces(namespaces: Sequence[str] | None) -> str:
    if namespaces is None:
        return " in any namespace"
    return f" in namespace{'s' if len(namespaces) > 1 else ''} {', '.join(namespaces)}"
