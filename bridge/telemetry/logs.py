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
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from bridge.core.mirroring import MIRROR_COSTS
from bridge.core.model import Kind, Target
from bridge.core.reasons import Code, codes_of
from bridge.core.reported import Reported
from bridge.errors import AlteredError
from bridge.telemetry.events import (
    ConflictingWriter,
    ConsulReachable,
    CredentialsChanged,
    HoldsChanged,
    KubernetesReachable,
    LeadingChanged,
    ReadErrorsChanged,
    ServerWarning,
    SlicesForbidden,
    StreamingMismatch,
    UnreadableNamespaces,
    Warned,
)

if TYPE_CHECKING:
    from bridge.report import Failure, Outcome, Report
    from bridge.telemetry.events import StateEvent

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


def logger() -> Any:
    """A structlog logger: `logger().info("service updated", service="radosgw")`."""
    return structlog.stdlib.get_logger("bridge")


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
    """The controller's results as lines: one per outcome, and one per change of a state."""

    def __init__(self, log: Any = None) -> None:
        self._log = log if log is not None else logger()
        self._lock = threading.Lock()
        self._reported = Reported()
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
        if (switched := outcome.switched) is not None:
            self._log.warning(
                "another datacenter carries the traffic", **where, before=switched.before, active=switched.name,
                reason=switched.why,
            )  # fmt: skip
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
        """Whether this was logged already and still lasts: an object that is stored otherwise than it was written."""
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

    def changed(self, event: StateEvent) -> None:
        log = self._log
        match event:
            case ConsulReachable(datacenter, up, reason, first):
                if not up:
                    log.warning("consul cannot be asked; everything stays as it is", datacenter=datacenter,
                                reason=reason)  # fmt: skip
                elif not first:
                    log.info("consul is back", datacenter=datacenter)
            case KubernetesReachable(up, reason, first):
                if not up:
                    log.warning("kubernetes cannot be used; changes wait", reason=reason)
                elif not first:
                    log.info("kubernetes is back")
            case HoldsChanged():
                self._holds(event)
            case ReadErrorsChanged(count=count, first=first, over=over):
                if first is not None:
                    log.warning("services cannot be read; they stay as they are", services=count,
                                first=first[0].service, datacenter=first[0].datacenter, reason=first[1])  # fmt: skip
                if over:
                    log.info("all services can be read again")
            case UnreadableNamespaces() | SlicesForbidden():
                self._namespaces(event)
            case Warned(warnings):
                for text in warnings:
                    log.warning("configuration warning", reason=text)
            case ConflictingWriter(reason):
                if reason:
                    log.warning("conflicting writer detected", reason=reason)
                else:
                    log.info("conflicting writer gone")
            case CredentialsChanged(trouble):
                if trouble:
                    log.warning("kubernetes credentials cannot be renewed; the old ones are in use", reason=trouble)
                else:
                    log.info("kubernetes credentials are renewed again")
            case LeadingChanged(shards, of):
                if not shards:
                    log.info("standing by: other replicas write", shards=of)
                elif of == 1:
                    log.info("leading: this replica writes")
                else:
                    log.info("leading shards", held=",".join(map(str, sorted(shards))), shards=of)
            case StreamingMismatch(query, reason):
                log.warning(
                    "consul's streaming backend shows a service differently than its catalog; the catalog is watched "
                    "instead", service=query.service, datacenter=query.datacenter, reason=reason,
                )  # fmt: skip
            case ServerWarning(text):
                say = log.info if text.startswith(EXPECTED_WARNINGS) else log.warning
                say("warning of kubernetes", text=text)

    def _holds(self, event: HoldsChanged) -> None:
        for hold in event.began:
            self._log.warning(
                "removal held", namespace=hold.target.namespace, name=hold.target.name, cause=hold.cause,
                endpoints=hold.endpoints, reason=hold.reason,
            )  # fmt: skip
        for target in event.ended:
            self._log.info("hold ended", namespace=target.namespace, name=target.name)

    def _namespaces(self, event: UnreadableNamespaces | SlicesForbidden) -> None:
        """Namespaces where rights are missing: each when it begins and when it is over."""
        slices = isinstance(event, SlicesForbidden)
        for name in event.began:
            if slices:
                self._log.warning(
                    "EndpointSlices may not be written, Endpoints go on alone; apply manifests/base/role.yaml",
                    namespace=name, lacking=event.now[name], cost=MIRROR_COSTS,
                )  # fmt: skip
            else:
                self._log.warning(
                    "namespace cannot be read; nothing is done there", namespace=name, reason=event.now[name]
                )
        for name in event.ended:
            self._log.info("EndpointSlices may be written" if slices else "namespace can be read", namespace=name)

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
        """Conflicts, skips and warnings of a target: once, and again when they change."""
        plan = outcome.plan
        conflicts = "; ".join(f"{c.kind}: {c.reason}" for c in plan.conflicts)
        skipped = "; ".join(f"{s.instance or s.service}: {s.reason}" for s in plan.skipped[:5])
        more = len(plan.skipped) - 5
        skipped += f"; and {more} more" if more > 0 else ""
        remarks = [r for r in plan.remarks if r.code is not Code.ROUTES_UNREAD]  # `warned` says it once for all
        found: Sequence[tuple[str, Sequence[str], Sequence[str], str]] = (
            (
                "conflict: left alone, it is not ours",
                [conflicts] if conflicts else [],
                [c.reason for c in plan.conflicts],
                "warning",
            ),
            ("instances skipped", [skipped] if skipped else [], [s.reason for s in plan.skipped], "info"),
            ("warning", remarks, remarks, "warning"),
        )
        for kind, texts, codes, level in found:
            with self._lock:
                news = self._reported.is_news((plan.target, kind), texts, time.monotonic())
            if news:
                getattr(self._log, level)(kind, **where, codes=",".join(codes_of(codes)), reason="; ".join(texts))
