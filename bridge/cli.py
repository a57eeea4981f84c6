"""The command line, and the only place where the rooms are put together.

Each command reads the settings, builds what it needs, hands over plain values and turns what comes back into text on
standard output and an exit status. Nothing is decided here that is not about flags, streams, signals or statuses.

Flags are a table (`FLAGS`): every one has an environment variable and a key in the YAML file, and `settings` merges
the three, so typer only collects what was given. Everything heavy (pydantic, the clients, rich) is imported inside
the commands: `bridge --help` must answer in under 0.2 s.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from bridge import __version__
from bridge.errors import BridgeError, CancelledError, ConfigurationError, ExitStatus, PermanentError, TransientError
from bridge.interpreter import relaxed_gc

if TYPE_CHECKING:
    import threading

    from bridge.config import Settings
    from bridge.consul.client import ConsulConfig
    from bridge.core.model import Rule
    from bridge.daemon import Daemon
    from bridge.oneshot.inspection import Status
    from bridge.report import Report
    from bridge.telemetry.logs import Secrets

# --------------------------------------------------------------------------- flags


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag as the command line shows it. `kind` is str, bool or list (may be given several times)."""

    name: str
    metavar: str
    help: str
    panel: str
    kind: type = str
    short: str = ""
    env: str = ""
    words: tuple[str, ...] = ()
    """All that may stand there, for completion by Tab."""

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return self.env or "BRIDGE_" + self.name.removeprefix("--").replace("-", "_").upper()

    @property
    def parameter(self) -> inspect.Parameter:
        """As a parameter for typer. None means: not given."""
        names = [f"{self.name}/--no-{self.name.removeprefix('--')}"] if self.kind is bool else [self.name]
        names += [self.short] if self.short else []
        option = typer.Option(
            *names,
            metavar=self.metavar or None,
            help=f"{self.help} [{self.variable}]",
            rich_help_panel=self.panel,
            show_default=False,
            autocompletion=self._completed if self.words else None,
        )
        kind: Any = {str: str | None, bool: bool | None, list: list[str] | None}[self.kind]
        name = self.name.removeprefix("--").replace("-", "_")
        annotation = Annotated[kind, option]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

    def _completed(self, ctx: typer.Context, incomplete: str) -> list[str]:
        without = () if ctx.info_name in ("sync", "purge") else ("diff",)
        return [word for word in self.words if word.startswith(incomplete) and word not in without]


_SOURCE, _WHAT, _WHERE, _HOW, _LOG = "Consul", "What is mirrored (one rule)", "Kubernetes", "How", "Log"

FLAGS: Mapping[str, Flag] = {
    flag.name: flag
    for flag in (
        Flag("--config", "FILE", "Settings and rules as YAML.", _HOW),
        Flag("--consul-address", "URL", "Consul's HTTP API (also CONSUL_HTTP_ADDR).", _SOURCE),
        Flag("--datacenter", "NAME", "Datacenter that is meant where no rule says; default: the agent's.", _SOURCE),
        Flag("--token-file", "FILE", "File with the ACL token (also CONSUL_HTTP_TOKEN_FILE).", _SOURCE),
        Flag("--connections", "N", "Connections to Consul at once; default 64.", _SOURCE),
        Flag("--service", "GLOB", "Services by name, e.g. 'radosgw*'; may be repeated.", _WHAT, list),
        Flag("--tag", "TAG", "Only instances with this tag; may be repeated (all must be there).", _WHAT, list),
        Flag("--filter", "EXPRESSION", "Only instances for which Consul's filter expression is true.", _WHAT),
        Flag("--namespace", "NAME", "Target namespace or template; default: the context's, in a pod its own.", _WHAT),
        Flag("--name", "TEMPLATE", "Name of the Service; default '{service}'.", _WHAT),
        Flag("--output-kind", "KIND", "What carries addresses: both (default), endpoints, endpointslices.", _WHAT,
             words=("both", "endpoints", "endpointslices")),
        Flag("--kubeconfig", "FILE", "Kubeconfig (also KUBECONFIG).", _WHERE),
        Flag("--context", "NAME", "Context in the kubeconfig.", _WHERE),
        Flag("--watch-namespace", "NAME", "Look for objects of ours here as well ('*': everywhere).", _WHERE, list),
        Flag("--writers", "N", "Objects written at once; default 16.", _WHERE),
        Flag("--owner", "ID", "Owner id: what carries it is ours. Default 'default', in a pod NAMESPACE.NAME.", _HOW),
        Flag("--policy", "POLICY", "sync (default), upsert-only (delete no object), create-only.", _HOW,
             words=("sync", "upsert-only", "create-only")),
        Flag("--adopt", "WHAT", "Take over objects that are not ours: never (default), unowned, consul-k8s.", _HOW,
             words=("never", "unowned", "consul-k8s")),
        Flag("--panic-threshold", "PERCENT", "Hold when more would turn not ready at once; default 80, 0: off.", _HOW),
        Flag("--rebuild-grace", "DURATION", "Hold removals for so long after Consul was rebuilt; default 10m.", _HOW),
        Flag("--hold-release", "DURATION", "A hold ends by itself after this; default never.", _HOW),
        Flag("--listen", "HOST:PORT", "Where health, metrics and the page are served; default 127.0.0.1:9480.", _HOW),
        Flag("--leader-elect", "", "Only the elected one of several replicas writes.", _HOW, bool),
        Flag("--shards", "N", "Spread services over so many leases; default 1.", _HOW),
        Flag("--resync", "DURATION", "How often everything is compared; default 5m.", _HOW),
        Flag("--grace", "DURATION", "A service must be gone for so long before its objects go; default 30s.", _HOW),
        Flag("--dry-run", "", "Print the plan and stop.", _HOW, bool),
        Flag("--exit-code", "", "With --dry-run: exit status 4 when there are changes.", _HOW, bool),
        Flag("--output", "FORMAT", "table (default), json, yaml; sync and purge also: diff.", _HOW, short="-o",
             words=("table", "json", "yaml", "diff")),
        Flag("--yes", "", "Ask nothing.", _HOW, bool, short="-y"),
        Flag("--force", "", "Apply what the guard would hold; --service and --namespace narrow it.", _HOW, bool),
        Flag("--watch", "", "Show it again and again until Ctrl-C.", _HOW, bool, short="-w"),
        Flag("--interval", "DURATION", "How long --watch waits between two readings; default 2s.", _HOW),
        Flag("--offline", "", "Check the settings and rules alone, without any server.", _HOW, bool),
        Flag("--log-format", "FORMAT", "console (default) or json.", _LOG, words=("console", "json")),
        Flag("--log-level", "LEVEL", "debug, info (default), warning, error.", _LOG,
             words=("debug", "info", "warning", "error")),
    )
}  # fmt: skip
"""Every flag there is. `config.catalogue()` and `config.RULE_FLAGS` know the same names (a test compares)."""

_CONSUL = ("--consul-address", "--datacenter", "--token-file", "--connections")
_RULE = ("--service", "--tag", "--filter", "--namespace", "--name", "--output-kind")
_KUBERNETES = ("--kubeconfig", "--context", "--watch-namespace")
_LOGS = ("--log-format", "--log-level")
_OWNERSHIP = ("--owner", "--policy", "--adopt")
EVERYWHERE = ("--config", *_CONSUL, *_RULE, *_KUBERNETES, *_OWNERSHIP, *_LOGS)

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "sync": (*EVERYWHERE, "--writers", "--panic-threshold", "--dry-run", "--exit-code", "--output", "--yes", "--force"),
    "run": (
        *EVERYWHERE, "--writers", "--panic-threshold", "--rebuild-grace", "--hold-release", "--listen",
        "--leader-elect", "--shards", "--resync", "--grace",
    ),
    "status": (*EVERYWHERE, "--watch", "--interval", "--output"),
    "explain": (*EVERYWHERE, "--output"),
    "check": (*EVERYWHERE, "--offline", "--output"),
    "purge": (*EVERYWHERE, "--writers", "--dry-run", "--exit-code", "--output", "--yes"),
}  # fmt: skip
"""The flags of each command."""

app = typer.Typer(
    name="bridge",
    help="Keeps Kubernetes EndpointSlices and Endpoints equal to what Consul knows about services on VMs.",
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)

Body = Callable[..., int]


def _command(body: Body) -> Body:
    """Register `body(flags, ...)` under its name, with the flags of the table and its own arguments."""
    name = body.__name__.strip("_")
    flags = [FLAGS[f] for f in COMMANDS[name]]
    own = [p for p in inspect.signature(body, eval_str=True).parameters.values() if p.name != "flags"]

    def command(**given: Any) -> None:
        said = {f.name: given.pop(f.parameter.name) for f in flags}
        raise typer.Exit(_guarded(lambda: body({k: v for k, v in said.items() if v not in (None, [])}, **given), said))

    parameters = [*own, *(f.parameter for f in flags)]
    command.__name__ = name
    command.__doc__ = body.__doc__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    app.command(name)(command)
    return body


# --------------------------------------------------------------------------- streams, errors, statuses


def _guarded(body: Callable[[], int], flags: Mapping[str, Any]) -> int:
    """Run a command; whatever it raises becomes a sentence on standard error and a status."""
    try:
        with relaxed_gc():
            return body()
    except ConfigurationError as error:
        return _complain(error, ExitStatus.USAGE, flags)
    except CancelledError as error:
        return _complain(error, ExitStatus.INTERRUPTED, flags)
    except BridgeError as error:
        return _complain(error, ExitStatus.FAILED, flags)
    except KeyboardInterrupt:
        _say("interrupted")
        return ExitStatus.INTERRUPTED
    except typer.Abort:
        _say("interrupted")
        return ExitStatus.INTERRUPTED
    except OSError as error:
        return _complain(error, ExitStatus.FAILED, flags)
    except (typer.Exit, typer.TyperException):
        raise
    except Exception as error:  # noqa: BLE001 - the last line of defence: no traceback for users
        bug = f"this is a bug in bridge {__version__}: {type(error).__name__}: {error}"
        return _complain(error, ExitStatus.FAILED, flags, bug)


def _complain(error: BaseException, status: int, flags: Mapping[str, Any], text: str = "") -> int:
    """Print an error as one paragraph; with `--log-level debug` also where it came from."""
    lines = (text or str(error) or type(error).__name__).splitlines()
    if len(lines) == 1:
        _say(f"error: {lines[0]}")
    else:
        _say("\n".join(["error:", *(f"  {line}" for line in lines)]))
    if (flags.get("--log-level") or os.environ.get("BRIDGE_LOG_LEVEL")) == "debug":
        import traceback

        _say("".join(traceback.format_exception(error)).rstrip())
    elif text:
        _say("(--log-level debug shows where)")
    return status


def _say(text: str) -> None:
    """To standard error, without control characters; that nobody reads it is no error."""
    from bridge.render import clean

    try:
        sys.stderr.write("\n".join(map(clean, text.split("\n"))) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return


def _print(text: str) -> bool:
    """To standard output; whether anybody reads it. A reader that has gone (`| head`) ends the printing, no more."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # the interpreter flushes once more at its end, which would complain: give it somewhere to flush to
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        return False
    except OSError as error:
        raise BridgeError(f"standard output cannot be written: {error.strerror or error}") from error
    return True


def _page() -> tuple[int | None, bool]:
    """Width of standard output (None: no terminal, no bounds) and whether to colour it."""
    if not sys.stdout.isatty():
        return None, False
    import shutil

    colour = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return shutil.get_terminal_size((80, 24)).columns, colour


def _show(report: Report, output: str) -> None:
    from bridge.render import render

    width, colour = _page()
    _print(render(report, output, width, colour))


def _interactive() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def _ask(question: str) -> bool:
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:
        return False


class _Progress:
    """What is being done, on one line of standard error that is rewritten; nothing unless that is a terminal."""

    def __init__(self) -> None:
        self._on = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._shown = ""
        self.what = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        self.what = what
        if not self._on or (total and done < total and done % max(1, total // 100)):
            return
        text = f"{what} {done}/{total}" if total else f"{what} ..."
        if text != self._shown:
            self._write(f"\r\x1b[K{text}")
            self._shown = text

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            self._write("\r\x1b[K")
            self._shown = ""

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):
            self._on = False


# --------------------------------------------------------------------------- putting together


def _load(flags: Mapping[str, Any], secrets: Secrets | None = None) -> Settings:
    """The settings, with the log set up as they say. `secrets` is where what must never be printed is registered."""
    from bridge import config
    from bridge.telemetry import logs

    settings = config.load(flags)
    secrets = logs.configure(settings.log.format, settings.log.level, secrets)
    _register(settings, secrets)
    for note in settings.notes:
        logs.logger().warning(note)
    return settings


def _register(settings: Settings, secrets: Secrets) -> None:
    """Register what must never be printed; that a token file cannot be read is `consul/`'s to say."""
    for secret in settings.secrets():
        secrets.add(secret)
    if settings.consul.token_file:
        try:
            with open(settings.consul.token_file, encoding="utf-8") as file:  # noqa: PTH123 - pathlib costs an import
                secrets.add(file.read(65536).strip())
        except (OSError, UnicodeDecodeError):
            return


@contextmanager
def _consul(settings: Settings) -> Iterator[ConsulConfig]:
    """How a command that runs once reaches Consul; what is not safe about it is said, and a login is ended with it."""
    from bridge.consul.access import warnings_of
    from bridge.telemetry import logs

    config = settings.consul_config()
    try:
        for warning in warnings_of(config):
            logs.logger().warning("insecure or limited connection", reason=warning)
        yield config
    finally:
        config.access.close()


def _rules(settings: Settings) -> tuple[Rule, ...]:
    """The rules, those without a namespace going to the kubeconfig context's or the pod's."""
    return (
        settings.core_rules(_default_namespace(settings)) if settings.needs_default_namespace else settings.core_rules()
    )


def _default_namespace(settings: Settings) -> str:
    """The namespace of the kubeconfig's context, in a pod its own."""
    from bridge.kube.access import namespace_of

    return namespace_of(settings.kube_config())


def _exit_status(report: Report, settings: Settings) -> int:
    from bridge.report import exit_status

    return exit_status(report, settings.sync.dry_run, settings.sync.exit_code)


UNSELECTED = (
    "rules: there are none, and no --service, --tag or --filter: every service in Consul would be mirrored; if that is "
    "meant, add --service '*'; else select some with --service 'GLOB', or write rules into a file for --config FILE"
)


def _must_select(settings: Settings) -> None:
    """Nothing is written unasked. Raises ConfigurationError when nobody said which services are meant."""
    if not settings.selects:
        raise ConfigurationError(UNSELECTED)


def _confirm_all(report: Report) -> bool:
    """Ask before the whole catalog is mirrored, which nobody has said in so many words."""
    if not report.changes:
        return True
    names = {(row.service, row.datacenter) for row in report.services}
    places = sorted({row.namespace for row in report.services})
    where = f"namespace{'s' if len(places) > 1 else ''} {', '.join(places[:3])}{' ...' if len(places) > 3 else ''}"
    _say("no rules, and no --service, --tag or --filter: every service in Consul is meant")
    return _ask(f"Mirror {len(names)} service{'s' if len(names) != 1 else ''} into {where}?")


# --------------------------------------------------------------------------- commands


@_command
def _sync(flags: Mapping[str, Any]) -> int:
    """One pass: read Consul, read Kubernetes, write the difference.

    Without rules and without --service, --tag or --filter it asks on a terminal, and writes nothing elsewhere.
    Exit status: 0 in sync or applied, 1 something failed, 2 usage, 3 the guard held something or somebody said no, 4
    changes (with --dry-run --exit-code), 5 an object of somebody else is in the way, 130/143 interrupted.
    """
    from bridge.signals import Signals

    settings = _load(flags)
    if not settings.sync.dry_run and (settings.sync.yes or not _interactive()):
        _must_select(settings)
    progress = _Progress()

    def on_first(_signal: int) -> bool:
        progress.clear()
        if progress.what != "writing":
            _say("interrupted: nothing was written")
            return False
        _say("interrupted: finishing the objects in hand (once more: end at once)")
        return True

    with Signals(on_first) as signals:
        from bridge.oneshot.sync import sync_once
        from bridge.pipeline.scope import never_used
        from bridge.telemetry import logs

        rules = _rules(settings)
        for later, earlier in never_used(rules, settings.consul.datacenter):
            logs.logger().warning("rule is never used: an earlier one takes all of it", rule=later, earlier=earlier)
        refused = False

        def confirm(report: Report) -> bool:
            nonlocal refused
            progress.clear()
            refused = not ((settings.selects or _confirm_all(report)) and _confirm_deletions(report, settings))
            progress.what = "planned" if refused else "writing"  # from here on a signal lets the objects in hand finish
            return not refused

        try:
            with _consul(settings) as consul:
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
            _say(str(error))
            return signals.status
        finally:
            progress.clear()
        _show(report, settings.sync.output)
        if refused:
            _say("nothing was written")
            return ExitStatus.REFUSED
        _say_outcome(report, settings)
        return signals.status if signals.received is not None else _exit_status(report, settings)


def _confirm_deletions(report: Report, settings: Settings) -> bool:
    """Ask before objects are deleted, where there is somebody to ask."""
    if settings.sync.yes or not report.summary.delete or not _interactive():
        return True
    doomed = [f"{r.kind} {r.namespace}/{r.name}" for r in report.changes if r.action == "delete"]
    for text in doomed[:10]:
        _say(f"would be deleted: {text}")
    if len(doomed) > 10:
        _say(f"... and {len(doomed) - 10} more (--dry-run shows all)")
    count = len(doomed)
    return _ask(f"Delete {count} object{'s' if count > 1 else ''}?")


def _say_failures(report: Report) -> None:
    from bridge.render import failed_lines

    for line in failed_lines(report):
        _say(f"failed: {line}")


def _say_outcome(report: Report, settings: Settings) -> None:
    """What a person must not miss, on standard error: failures, holds, and an empty selection."""
    from bridge.core.select import Only

    _say_failures(report)
    for held in report.held:
        _say(f"held: {held.namespace}/{held.name}: {held.reason}")
    if settings.sync.force and settings.only() != Only():
        if not report.services and not report.failed:
            _say("nothing to force: nothing is mirrored yet at these --service and --namespace; leave --force out")
    elif all(row.action == "delete" for row in report.services) and not report.skipped and not report.failed:
        _say(
            f"no service selected: nothing in Consul matches {settings.selection()}. Select with --service GLOB, "
            "--tag TAG, --filter EXPRESSION or rules in --config FILE; `consul catalog services` lists the names"
        )


@_command
def _run(flags: Mapping[str, Any]) -> int:
    """Mirror continuously until SIGTERM or Ctrl-C.

    Nothing is removed at the end.

    Serves /healthz, /readyz, /metrics, /api/status and a page on --listen. A changed settings file, or SIGHUP, has the
    settings read again. Exit status: 130 or 143 when told to stop
    (by which signal), 1 when it cannot go on, 2 usage.
    """
    from bridge.signals import Signals
    from bridge.telemetry import logs

    secrets = logs.Secrets()
    settings = _load(flags, secrets)
    _must_select(settings)
    daemons: list[Daemon] = []

    def reread() -> Settings:
        fresh = config.load(flags)
        _register(fresh, secrets)
        return fresh

    def on_first(_signal: int) -> bool:
        logs.logger().info("stopping: finishing the objects in hand")
        for daemon in daemons:
            daemon.stop()
        return True

    def on_hangup() -> None:
        for daemon in daemons:
            daemon.reload()

    with Signals(on_first, on_hangup) as signals:
        from bridge import config
        from bridge.daemon import Daemon
        from bridge.telemetry.fan_out import FanOutObserver
        from bridge.telemetry.history import History
        from bridge.telemetry.metrics import Metrics
        from bridge.telemetry.routes import Routes
        from bridge.telemetry.web import WebServer

        log = logs.logger()
        metrics, history = Metrics(__version__), History()
        daemon = Daemon(
            settings,
            load=reread,
            rules_of=_rules,
            observer=FanOutObserver(logs.LogObserver(log), metrics, history),
            log=log,
        )
        daemons.append(daemon)
        metrics.watch(daemon.status)
        routes, where = Routes(daemon, metrics.text, history), settings.run.page
        web = WebServer(settings.run.listen, routes.pages if where == "on" else routes.probes)
        page = WebServer(where, routes.pages) if where not in ("on", "off") else None
        with web, page or contextlib.nullcontext():
            log.info("effective settings", **{k: v for k, v in settings.effective().items() if v})
            places = {"listening": web.address, **({"page": page.address} if page is not None else {})}
            log.info("bridge starts", version=__version__, **places)
            if signals.received is None:
                daemon.run()
        log.info("bridge has stopped")
        return signals.status if signals.received is not None else ExitStatus.FAILED


@_command
def _purge(flags: Mapping[str, Any]) -> int:
    """Remove everything that the owner id (--owner) owns.

    In the rules' namespaces, or in --namespace. Asks first on a terminal; elsewhere --yes is needed.
    """
    from bridge.signals import Signals

    flags = dict(flags)
    only = flags.pop("--namespace", None)
    settings = _load({**flags, "--watch-namespace": [only]} if only else flags)
    progress = _Progress()

    def on_first(_signal: int) -> bool:
        progress.clear()
        if progress.what != "deleting":
            _say("interrupted: nothing was deleted")
            return False
        _say("interrupted: finishing the objects in hand (once more: end at once)")
        return True

    with Signals(on_first) as signals:
        from bridge.oneshot.purge import purge
        from bridge.pipeline.scope import namespaces_of

        kube = settings.kube_config()
        namespaces = (only,) if only else namespaces_of(_rules(settings), kube.namespaces, _default_namespace(settings))

        def once(dry_run: bool) -> Report:
            return purge(kube, settings.owner, namespaces, dry_run)

        plan = once(dry_run=True)
        if settings.sync.dry_run or not plan.changes:
            _show(plan, settings.sync.output)
            if not plan.changes:
                _say(f"nothing there belongs to owner {settings.owner!r}{_in_namespaces(namespaces)}")
            return _exit_status(plan, settings)
        if not settings.sync.yes:
            count = len(plan.changes)
            what = f"{count} object{'s' if count > 1 else ''} of owner {settings.owner!r}{_in_namespaces(namespaces)}"
            if not _interactive():
                raise ConfigurationError(f"purge would delete {what}; without a terminal to ask, --yes is needed")
            _show(plan, "table")
            if not _ask(f"Delete {what}?"):
                _say("nothing was deleted")
                return ExitStatus.REFUSED
        progress.what = "deleting"
        report = once(dry_run=False)
        _show(report, settings.sync.output)
        _say_failures(report)
        return signals.status if signals.received is not None else _exit_status(report, settings)


def _in_namespaces(namespaces: Sequence[str] | None) -> str:
    if namespaces is None:
        return " in any namespace"
    return f" in namespace{'s' if len(namespaces) > 1 else ''} {', '.join(namespaces)}"


@_command
def _status(flags: Mapping[str, Any]) -> int:
    """What is mirrored now, and whether both sides agree.

    Reads Consul and Kubernetes themselves and says what `bridge sync` would do now, holds included; needs no running
    bridge (what one holds because of what it saw before, its page and /readyz show). SINCE tells how long ago the
    bridge last wrote the service's Endpoints or slices. Exit status: 0 also when something differs, 1 when something
    could not be read; 130 when --watch is ended with Ctrl-C.
    """
    settings = _load(flags)
    output = _output(settings)
    with _reading() as (progress, stop), _consul(settings) as consul:
        from bridge.oneshot.inspection import status_once
        from bridge.render import status_table, to_json, to_yaml

        rules = _rules(settings)

        def once(progress: Any = None) -> Status:
            return status_once(
                consul=consul,
                kube=settings.kube_config(),
                rules=rules,
                options=settings.sync_options(),
                stop=stop,
                progress=progress,
            )

        if settings.sync.watch:
            return _watch_status(once, progress, stop, output, settings.sync.interval)
        status = once(progress)
    match output:
        case "json":
            _print(to_json(status.to_json()))
        case "yaml":
            _print(to_yaml(status.to_json()))
        case _:
            _print(status_table(status, *_page()))
    return ExitStatus.FAILED if status.trouble else ExitStatus.OK


def _watch_status(
    once: Callable[..., Status], progress: _Progress, stop: threading.Event, output: str, interval_seconds: float
) -> int:
    """Show the status again and again: in place on a terminal, one after the other elsewhere (JSON: one a line)."""
    import json
    import shutil
    import time
    from dataclasses import replace

    from bridge.render import status_screen, status_table, to_yaml

    status: Status | None = None
    while not stop.is_set():
        began = time.monotonic()
        try:
            status = once(progress if status is None else None)
            note = f"read at {time.strftime('%H:%M:%S')}"
        except (TransientError, PermanentError) as error:
            if status is None:
                raise
            status = replace(status, trouble=(str(error),))
            note = f"not read at {time.strftime('%H:%M:%S')}"
        progress.clear()
        width, colour = _page()
        if output == "json":
            text = json.dumps(status.to_json()) + "\n"
        elif output == "yaml":
            text = "---\n" + to_yaml(status.to_json())
        elif width is None or os.environ.get("TERM") == "dumb":
            text = f"{note}\n{status_table(status, width, colour)}\n"
        else:
            height = shutil.get_terminal_size((80, 24)).lines
            lines = status_screen(status, width, height, colour, note).splitlines()
            text = "\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J"
        if not _print(text):
            return ExitStatus.OK
        stop.wait(max(interval_seconds, time.monotonic() - began))
    return ExitStatus.INTERRUPTED


@_command
def _explain(flags: Mapping[str, Any], consul_service: Annotated[str, typer.Argument(metavar="SERVICE")]) -> int:
    """Why each instance of a Consul service is in, not ready, or out.

    SERVICE is Consul's name, or that of a mirrored Service, `name` or `namespace/name`. Exit status: 0 explained
    (whatever the answer), 1 neither side has anything of that name, or something could not be read.
    """
    settings = _load(flags)
    with _reading() as (progress, stop), _consul(settings) as consul:
        from bridge.oneshot.inspection import explain_once
        from bridge.render import explanation_text, notes_text, to_json, to_yaml, trouble_text

        explained = explain_once(
            consul_service,
            consul=consul,
            kube=settings.kube_config(),
            rules=_rules(settings),
            options=settings.sync_options(),
            stop=stop,
            progress=progress,
        )
    match _output(settings):
        case "json":
            _print(to_json(explained.to_json()))
        case "yaml":
            _print(to_yaml(explained.to_json()))
        case _:
            page = _page()
            text = "\n".join(explanation_text(e, *page) for e in explained.explanations)
            _print(notes_text(explained.notes, *page) + text + trouble_text(explained.trouble, *page))
    return ExitStatus.FAILED if explained.trouble or not explained.found else ExitStatus.OK


@_command
def _check(flags: Mapping[str, Any]) -> int:
    """Can the bridge do its work? One line each, with how to fix it.

    Consul, token, Kubernetes, rights, rules. Writes nothing; with --offline it asks no server and looks at the settings
    and rules alone. Exit status: 0 all is well (warnings included), 1 something failed, 2 the settings are wrong.
    """
    settings = _load(flags)
    output = _output(settings)
    with _reading() as (progress, stop):
        from bridge.oneshot.check import check, check_rules
        from bridge.oneshot.probe import FAILED as BROKEN
        from bridge.oneshot.probe import Probe
        from bridge.render import probe_text, to_json, to_yaml

        page = _page()

        def done(probe: Probe) -> None:
            progress.clear()
            if output == "table":
                _print(probe_text(probe, *page))

        if settings.sync.offline:
            probes = check_rules(settings.core_rules(), done, selects=settings.selects)
        else:
            consul = settings.consul_config()
            try:
                probes = check(
                    consul,
                    settings.kube_config(),
                    lambda: _rules(settings),
                    settings.core_rules(),
                    done,
                    options=settings.check_options(),
                    stop=stop,
                    progress=progress,
                )
            finally:
                consul.access.close()
    if output in ("json", "yaml"):
        data = {"ok": all(p.state != BROKEN for p in probes), "probes": [p.to_json() for p in probes]}
        _print(to_json(data) if output == "json" else to_yaml(data))
    return ExitStatus.FAILED if any(p.state == BROKEN for p in probes) else ExitStatus.OK


@contextmanager
def _reading() -> Iterator[tuple[_Progress, threading.Event]]:
    """Around what only reads: a signal ends it at once."""
    from bridge.signals import Signals

    progress = _Progress()

    def on_first(_signal: int) -> bool:
        progress.clear()
        _say("interrupted")
        return False

    with Signals(on_first) as signals:
        try:
            yield progress, signals.stop
        finally:
            progress.clear()


def _output(settings: Settings) -> str:
    """The format for what is no report: a diff there would be nothing."""
    if settings.sync.output == "diff":
        raise ConfigurationError(
            f"{settings.source('sync.output')}: diff is for sync and purge; here: table, json, yaml"
        )
    return settings.sync.output


def _version(wanted: bool) -> None:
    if wanted:
        import platform
        from importlib.metadata import version

        clients = ", ".join(f"{name} {version(name)}" for name in ("python-consul2", "kubernetes"))
        _print(f"bridge {__version__} (Python {platform.python_version()}, {clients})\n")
        raise typer.Exit(ExitStatus.OK)


@app.callback()
def _bridge(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_version, is_eager=True, help="Show the versions and exit."),
    ] = False,
) -> None:
    del version
    if context.invoked_subcommand is None:
        _print(f"{context.get_help()}\n")


def _spelt(arguments: Sequence[str]) -> list[str]:
    """`help`, `help COMMAND` and `version`, as other tools have them, in our own flags."""
    match arguments:
        case ["help", *command]:
            return [*command, "--help"]
        case ["version"]:
            return ["--version"]
    return list(arguments)


def main() -> NoReturn:
    """The `bridge` command."""
    if isinstance(sys.stdout, object) and hasattr(sys.stdout, "reconfigure"):
        # a name that the terminal's encoding lacks is written as an escape: never a traceback
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = app(_spelt(sys.argv[1:]), prog_name="bridge", standalone_mode=False)
    except typer.TyperException as error:
        _say(f"error: {error.format_message()}")
        _say(f"(bridge {_command_in(sys.argv)}--help shows all flags)")
        status = error.exit_code
    except typer.Abort:
        status = ExitStatus.INTERRUPTED
    except KeyboardInterrupt:
        _say("interrupted")
        status = ExitStatus.INTERRUPTED
    _give_up_on_a_broken_log()
    sys.exit(status or ExitStatus.OK)


def _give_up_on_a_broken_log() -> None:
    """What standard error cannot take (a full disk, nobody who reads) must not turn our exit status into 120."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _command_in(arguments: Sequence[str]) -> str:
    return next((f"{a} " for a in arguments[1:] if a in COMMANDS), "")


if __name__ == "__main__":
    main()
