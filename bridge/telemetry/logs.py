"""What the bridge says of itself, one event a line, to standard error.

Every line of every library goes through the same chain (structlog's, also for the standard `logging`): secrets are
masked, control characters are escaped (every client that may register chooses service names), keys are the field's own
terms. `LogObserver` turns the controller's results into events; it logs nothing when nothing changed, and a state once,
not at every pass.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from bridge.core.mirroring import MIRROR_COSTS
from bridge.core.model import Held, Kind, Query, Target
from bridge.core.reasons import codes_of
from bridge.core.told import Told
from bridge.errors import AlteredError

if TYPE_CHECKING:
    from bridge.report import Failure, Outcome, Report

MASK = "***"


class Secrets:
    """Texts that must never be printed. More may be added at any time (a token file that is read again)."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._lock = threading.Lock()
        self._secrets: tuple[str, ...] = ()
        for secret in secrets:
            self.add(secret)

    def add(self, secret: str) -> None:
        """Never print this text again. What is too short to be a secret would only garble the log."""
        if len(secret) < 4:
            return
        with self._lock:
            self._secrets = tuple(sorted({*self._secrets, secret}, key=len, reverse=True))

    def mask(self, text: str) -> str:
        """`text` without secrets."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return text


class _Stderr:
    """Writes to whatever `sys.stderr` is at that moment, and never fails because of a closed pipe."""

    def write(self, text: str) -> int:
        try:
            return sys.stderr.write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        try:
            sys.stderr.flush()
        except (OSError, ValueError):
            return


def configure(
    log_format: str = "console",
    level: str = "info",
    secrets: Secrets | None = None,
    stream: TextIO | None = None,
    colour: bool | None = None,
) -> Secrets:
    """Set up structlog and the standard `logging` alike; returns the registry of secrets in use.

    `colour` None: on a terminal that wants it.
    """
    secrets = secrets or Secrets()
    out: Any = stream if stream is not None else _Stderr()
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if level != "debug":
        shared.append(_without_traceback)
    shared += [structlog.processors.format_exc_info, _Guard(secrets)]
    renderer: Processor
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer(ensure_ascii=True)
    else:
        if colour is None:
            import os

            colour = stream is None and sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        renderer = structlog.dev.ConsoleRenderer(colors=colour, pad_event_to=0, sort_keys=False)
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        if getattr(old, "_of_the_bridge", False):
            root.removeHandler(old)
    handler._of_the_bridge = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    root.setLevel(number)
    # libraries that say at `info` or `debug` what we say ourselves, or headers with tokens
    for noisy in ("urllib3", "kubernetes", "asyncio", "requests"):
        logging.getLogger(noisy).setLevel(max(number, logging.WARNING))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    return secrets


def logger(name: str = "bridge") -> Any:
    """A structlog logger: `logger().info("service updated", service="radosgw")`."""
    return structlog.stdlib.get_logger(name)


EXPECTED_WARNINGS = ("v1 Endpoints is deprecated",)
"""What the API server says to every request of ours of a kind, and what is known and documented."""


def kube_warning(text: str) -> None:
    """A warning of the API server, or about the way to it, in a one-shot command; the client says each once."""
    say = logger().debug if text.startswith(EXPECTED_WARNINGS) else logger().warning
    say("warning of kubernetes", text=text)


def _without_traceback(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """An exception as one line; the whole traceback is for `--log-level debug`."""
    info = event.pop("exc_info", None)
    if info:
        error = info if isinstance(info, BaseException) else (info[1] if isinstance(info, tuple) else sys.exc_info()[1])
        if error is not None:
            event["error"] = f"{type(error).__name__}: {error}"
    return event


class _Guard:
    """The last processor before the renderer: masks secrets and escapes what a terminal would execute."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {key: self._safe(value, key == "exception") for key, value in event.items()}

    def _safe(self, value: Any, lines: bool = False) -> Any:
        if isinstance(value, str):
            masked = self._secrets.mask(value)
            return "\n".join(map(escape, masked.split("\n"))) if lines else escape(masked)
        if isinstance(value, (bool, int, float)) or value is None:
            return value
        if isinstance(value, dict):
            return {str(k): self._safe(v) for k, v in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self._safe(v) for v in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
        if type(value).__module__ == "logging":  # `_record`, which structlog takes out again
            return value
        return self._safe(str(value))


def escape(text: str) -> str:
    """`text` with everything that is not printable written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class LogObserver:
    """The engine's results as log events: one per outcome, states only when they change."""

    def __init__(self, log: Any = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log if log is not None else logger()
        self._clock = clock
        self._lock = threading.Lock()
        self._consul: dict[str, tuple[bool, str]] = {}
        self._kubernetes: tuple[bool, str] | None = None
        self._held: dict[Target, str] = {}
        self._service_read_errors: tuple[Query, str] | None = None
        self._unreadable: set[str] = set()
        self._slices_forbidden: set[str] = set()
        self._warned: set[str] = set()
        self._conflicting_writer = False
        self._credentials = ""
        self._told = Told()
        self._altered: dict[Target, dict[tuple[Kind, str], str]] = {}
        self._first_pass = True

    def outcome(self, outcome: Outcome, lag_seconds: float | None) -> None:
        """One line for what was written, one for each failure, and conflicts and skips once."""
        plan = outcome.plan
        where = {
            "service": ",".join(dict.fromkeys(q.service for q in plan.queries)),
            "datacenter": ",".join(dict.fromkeys(q.datacenter for q in plan.queries)),
            "namespace": plan.target.namespace,
            "name": plan.target.name,
        }
        if outcome.applied:
            extra: dict[str, Any] = {"ready": plan.ready, "not_ready": plan.not_ready}
            if lag_seconds is not None:
                extra["lag_ms"] = round(lag_seconds * 1000, 1)
            reasons = "; ".join(dict.fromkeys(c.reason for c in outcome.applied if c.reason))
            if reasons:
                extra["reason"] = reasons
            self._log.info(
                "written", **where, changes=", ".join(f"{c.action} {c.kind}" for c in outcome.applied), **extra
            )
        for failure in outcome.failures:
            if self._is_reported(failure):
                continue
            self._log.warning(
                "write failed", **where, kind=failure.change.kind.value, action=failure.change.action.value,
                reason=str(failure.error),
            )  # fmt: skip
        self._forget_altered(outcome)
        self._details(outcome, where)

    def _is_reported(self, failure: Failure) -> bool:
        """Whether this was said already and is true as long as it lasts: what is stored otherwise than written."""
        if not isinstance(failure.error, AlteredError):
            return False
        change, text = failure.change, str(failure.error)
        with self._lock:
            reported = self._altered.setdefault(change.target, {})
            before, reported[change.kind, change.name] = reported.get((change.kind, change.name)), text
        return before == text

    def _forget_altered(self, outcome: Outcome) -> None:
        """What is stored as it was written is reported no longer."""
        altered = {(f.change.kind, f.change.name) for f in outcome.failures if isinstance(f.error, AlteredError)}
        with self._lock:
            reported = self._altered.get(outcome.plan.target)
            if reported is not None:
                for key in reported.keys() - altered:
                    del reported[key]
                if not reported:
                    del self._altered[outcome.plan.target]

    def consul(self, datacenter: str, up: bool, reason: str) -> None:
        """Consul's state, when it changes."""
        with self._lock:
            before = self._consul.get(datacenter)
            self._consul[datacenter] = (up, reason)
        if before == (up, reason) or (before is None and up):
            return
        if up:
            self._log.info("consul is back", datacenter=datacenter)
        elif before is None or before[0]:
            self._log.warning("consul cannot be asked; everything stays as it is", datacenter=datacenter, reason=reason)

    def kubernetes(self, up: bool, reason: str) -> None:
        """The API server's state, when it changes."""
        with self._lock:
            before = self._kubernetes
            self._kubernetes = (up, reason)
        if before == (up, reason) or (before is None and up):
            return
        if up:
            self._log.info("kubernetes is back")
        elif before is None or before[0]:
            self._log.warning("kubernetes cannot be used; changes wait", reason=reason)

    def held(self, held: tuple[Held, ...]) -> None:
        """Holds that came and went."""
        now = {h.target: h.reason for h in held}
        with self._lock:
            before, self._held = self._held, now
        for hold in held:
            if hold.target not in before:
                self._log.warning(
                    "removal held", namespace=hold.target.namespace, name=hold.target.name, cause=hold.cause,
                    endpoints=hold.endpoints, reason=hold.reason,
                )  # fmt: skip
        for target in sorted(before.keys() - now.keys()):
            self._log.info("hold ended", namespace=target.namespace, name=target.name)

    def conflicting_writer(self, reason: str) -> None:
        """A conflicting writer: when it is detected and when it has gone."""
        with self._lock:
            before, self._conflicting_writer = self._conflicting_writer, bool(reason)
        if reason and not before:
            self._log.warning("conflicting writer detected", reason=reason)
        elif before and not reason:
            self._log.info("conflicting writer gone")

    def server_warning(self, text: str) -> None:
        """A warning of the API server, or about the way to it; each comes once."""
        say = self._log.info if text.startswith(EXPECTED_WARNINGS) else self._log.warning
        say("warning of kubernetes", text=text)

    def credentials(self, error: str) -> None:
        """Credentials that cannot be renewed: when it begins, when it is something else, and when it is over."""
        with self._lock:
            before, self._credentials = self._credentials, error
        if error and error != before:
            self._log.warning("kubernetes credentials cannot be renewed; the old ones are in use", reason=error)
        elif before and not error:
            self._log.info("kubernetes credentials are renewed again")

    def leading(self, shards: frozenset[int], of: int) -> None:
        """What this replica writes from now on."""
        if not shards:
            self._log.info("standing by: other replicas write", shards=of)
        elif of == 1:
            self._log.info("leading: this replica writes")
        else:
            self._log.info("leading shards", held=",".join(map(str, sorted(shards))), shards=of)

    def warned(self, warnings: tuple[str, ...]) -> None:
        """Each of them once, and again when it comes back after it had gone."""
        with self._lock:
            before, self._warned = self._warned, set(warnings)
        for text in warnings:
            if text not in before:
                self._log.warning("insecure or limited connection", reason=text)

    def service_read_errors(self, errors: Mapping[Query, str], annotated: frozenset[Query] = frozenset()) -> None:
        """Services that cannot be read while their datacenter can: the first of them, when it changes, and the end.

        Those that only annotations ask for are reported to their users, by Events.
        """
        errors = {query: reason for query, reason in errors.items() if query not in annotated}
        with self._lock:
            single = [q for q in sorted(errors) if self._consul.get(q.datacenter, (True, ""))[0]]
            now = (single[0], errors[single[0]]) if single else None
            before, self._service_read_errors = (
                self._service_read_errors,
                now or (self._service_read_errors if errors else None),
            )
        if now is not None and now != before:
            self._log.warning(
                "services cannot be read; they stay as they are", services=len(single), first=now[0].service,
                datacenter=now[0].datacenter, reason=now[1],
            )  # fmt: skip
        if before is not None and not errors:
            self._log.info("all services can be read again")

    def unreadable(self, namespaces: Mapping[str, str]) -> None:
        """Namespaces that cannot be read: each when it begins and when it is over."""
        with self._lock:
            before, self._unreadable = self._unreadable, set(namespaces)
        for namespace in sorted(namespaces.keys() - before):
            self._log.warning(
                "namespace cannot be read; nothing is done there", namespace=namespace, reason=namespaces[namespace]
            )
        for namespace in sorted(before - namespaces.keys()):
            self._log.info("namespace can be read", namespace=namespace)

    def slices_forbidden(self, namespaces: Mapping[str, str]) -> None:
        """Namespaces where EndpointSlices may not be written: each when it begins and when it is over."""
        with self._lock:
            before, self._slices_forbidden = self._slices_forbidden, set(namespaces)
        for namespace in sorted(namespaces.keys() - before):
            self._log.warning(
                "EndpointSlices may not be written, Endpoints go on alone; apply manifests/base/role.yaml",
                namespace=namespace,
                lacking=namespaces[namespace],
                cost=MIRROR_COSTS,
            )
        for namespace in sorted(before - namespaces.keys()):
            self._log.info("EndpointSlices may be written", namespace=namespace)

    def streaming_mismatch(self, query: Query, reason: str) -> None:
        """A service of which Consul's two backends differed."""
        self._log.warning(
            "consul's streaming backend shows a service differently than its catalog; the catalog is watched instead",
            service=query.service, datacenter=query.datacenter, reason=reason,
        )  # fmt: skip

    def pass_done(self, duration_seconds: float, report: Report) -> None:
        """A full pass: said the first time and whenever it found something to do."""
        s = report.summary
        first, self._first_pass = self._first_pass, False
        event: dict[str, Any] = {k: v for k, v in s.to_json().items() if v}
        event["services"] = len(report.outcomes)
        event["duration_ms"] = round(duration_seconds * 1000, 1)
        if first or s.changes or s.failed:
            self._log.info("full pass planned", **event)
        else:
            self._log.debug("full pass planned", **event)
        for outcome in report.outcomes:
            plan = outcome.plan
            if plan.conflicts or plan.skipped or plan.remarks:
                where = {"service": ",".join(dict.fromkeys(q.service for q in plan.queries))}
                self._details(outcome, {**where, "namespace": plan.target.namespace, "name": plan.target.name})

    def _details(self, outcome: Outcome, where: dict[str, Any]) -> None:
        """Conflicts, skips and warnings of a target: once, and again when there is news in them."""
        plan = outcome.plan
        conflicts = "; ".join(f"{c.kind}: {c.reason}" for c in plan.conflicts)
        skipped = "; ".join(f"{s.instance or s.service}: {s.reason}" for s in plan.skipped[:5])
        more = len(plan.skipped) - 5
        skipped += f"; and {more} more" if more > 0 else ""
        found: Sequence[tuple[str, Sequence[str], Sequence[str], str]] = (
            (
                "conflict: left alone, it is not ours",
                [conflicts] if conflicts else [],
                [c.reason for c in plan.conflicts],
                "warning",
            ),
            ("instances skipped", [skipped] if skipped else [], [s.reason for s in plan.skipped], "info"),
            ("warning", plan.remarks, plan.remarks, "warning"),
        )
        for kind, texts, codes, level in found:
            with self._lock:
                news = self._told.is_news((plan.target, kind), texts, self._clock())
            if news:
                getattr(self._log, level)(kind, **where, codes=",".join(codes_of(codes)), reason="; ".join(texts))
