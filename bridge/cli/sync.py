"""`bridge sync`: one pass over everything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bridge.cli.loading import consul_of, load, must_select, rules_of, status_of
from bridge.cli.streams import Progress, ask, at_first_signal, interactive, say, say_trouble, show
from bridge.errors import CancelledError, ExitStatus

if TYPE_CHECKING:
    from bridge.config import Settings
    from bridge.report import Report


def sync(flags: Mapping[str, Any]) -> int:
    """One pass: read Consul, read Kubernetes, write the difference.

    Without rules and without --service, --tag or --filter it asks on a terminal, and writes nothing elsewhere.
    Exit status: 0 in sync or applied, 1 something failed, 2 usage, 3 the guard held something or you answered no, 4
    changes (with --dry-run --exit-code), 5 an object of a needed name is not the bridge's, 130/143 interrupted.
    """
    from bridge.signals import Signals

    settings = load(flags)
    if not settings.sync.dry_run and (settings.sync.yes or not interactive()):
        must_select(settings)
    progress = Progress()

    with Signals(at_first_signal(progress, "writing", "nothing was written")) as signals:
        from bridge.oneshot.sync import sync_once
        from bridge.pipeline.scope import never_used
        from bridge.telemetry import logs

        rules = rules_of(settings)
        for later, earlier in never_used(rules, settings.consul.datacenter):
            logs.logger().warning("rule is never used: an earlier one takes all of it", rule=later, earlier=earlier)
        refused = False

        def confirm(report: Report) -> bool:
            nonlocal refused
            progress.clear()
            refused = not ((settings.selects or _confirm_all(report)) and _confirm_deletions(report, settings))
            progress.what = "planned" if refused else "writing"  # from here on writes in flight are finished first
            return not refused

        try:
            with consul_of(settings) as consul:
                report = sync_once(
                    consul=consul,
                    kube=settings.kube_config(),
                    rules=rules,
                    options=settings.sync_options(),
                    stop=signals.stop,
                    progress=progress,
                    confirm=confirm,
                )
        except CancelledError as error:
            if signals.received is None:
                raise
            say(str(error))
            return signals.status
        finally:
            progress.clear()
        show(report, settings.sync.output, settings.sync.all)
        if refused:
            say("nothing was written")
            return ExitStatus.REFUSED
        _say_outcome(report, settings)
        return signals.status if signals.received is not None else status_of(report, settings)


def _confirm_deletions(report: Report, settings: Settings) -> bool:
    if settings.sync.yes or not report.summary.delete or not interactive():
        return True
    doomed = [f"{r.kind} {r.namespace}/{r.name}" for r in report.changes if r.action == "delete"]
    for text in doomed[:10]:
        say(f"would be deleted: {text}")
    if len(doomed) > 10:
        say(f"... and {len(doomed) - 10} more (--dry-run shows all)")
    count = len(doomed)
    return ask(f"Delete {count} object{'s' if count > 1 else ''}?")


def _say_outcome(report: Report, settings: Settings) -> None:
    """What the user must not miss, on standard error: failures, holds, and an empty selection."""
    from bridge.core.select import Only

    say_trouble(report, settings.sync.output)
    if settings.sync.force and settings.only() != Only():
        if not report.outcomes and not report.failed:
            say("nothing to force: nothing is mirrored yet at these --service and --namespace; leave --force out")
    elif not report.skipped and not report.failed and _only_deletes(report):
        say(
            f"no service selected: nothing in Consul matches {settings.selection()}. Select with --service GLOB, "
            "--tag TAG, --filter EXPRESSION or rules in --config FILE; `consul catalog services` lists the names"
        )


def _only_deletes(report: Report) -> bool:
    """Whether nothing is mirrored (any more)."""
    from bridge.report import action_of

    return all(action_of(outcome, report.dry_run)[0] == "delete" for outcome in report.outcomes)


def _confirm_all(report: Report) -> bool:
    """Ask before the whole catalog is mirrored, for which no rule or flag asked."""
    if not report.changes:
        return True
    names = {tuple(sorted(outcome.plan.queries)) for outcome in report.outcomes}
    places = sorted({outcome.plan.target.namespace for outcome in report.outcomes})
    where = f"namespace{'s' if len(places) > 1 else ''} {', '.join(places[:3])}{' ...' if len(places) > 3 else ''}"
    say("no rules, and no --service, --tag or --filter: every service in Consul is meant")
    return ask(f"Mirror {len(names)} service{'s' if len(names) != 1 else ''} into {where}?")
