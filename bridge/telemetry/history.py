"""What happened lately, for the page: the last changes, and how lag and writes went over the last quarter of an hour.

An observer of results like the metrics, with memory that does not grow: a ring of changes and a ring of ten-second
buckets. Everything comes out as values that go into JSON as they are. Times are seconds since the epoch (UTC).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bridge.core.model import Action
from bridge.core.reported import Reported
from bridge.report import Origin, hold_text
from bridge.telemetry.events import (
    ConflictingWriter,
    ConsulReachable,
    CredentialsChanged,
    HoldsChanged,
    KubernetesReachable,
    LeadingChanged,
    ServerWarning,
)

if TYPE_CHECKING:
    from bridge.core.model import Target
    from bridge.report import Outcome, Report
    from bridge.telemetry.events import StateEvent

CHANGES = 200
"""How many changes are remembered."""

BUCKET_SECONDS = 10
BUCKETS = 90
"""A quarter of an hour: longer is what Prometheus is for."""

TEXT = 500
"""Characters of a reason that are kept: some are made of what a server said."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One event. `severity` is good, bad or plain; `namespace` and `name` are empty where no service is meant."""

    number: int
    at: float
    severity: str
    text: str
    namespace: str = ""
    name: str = ""
    service: str = ""
    datacenter: str = ""
    lag_seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Series:
    """Values of the last quarter of an hour, oldest first, one per ten seconds; None where nothing was measured.

    `lag_seconds` is the longest lag in the bucket. `last_lag_seconds` was measured at `last_lag_at`.
    """

    lag_seconds: tuple[float | None, ...]
    writes: tuple[int, ...]
    last_lag_seconds: float | None = None
    last_lag_at: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "bucket_seconds": BUCKET_SECONDS}


@dataclass(slots=True)
class _Bucket:
    slot: int
    lag_seconds: float | None = None
    writes: int = 0


class History:
    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._number = 0
        self._entries: deque[Entry] = deque(maxlen=CHANGES)
        self._buckets: deque[_Bucket] = deque(maxlen=BUCKETS)
        self._last_lag: tuple[float, float] | None = None
        self._reported = Reported()

    # ------------------------------------------------------------------ what is asked

    def changes(self, limit: int = CHANGES) -> tuple[Entry, ...]:
        """The newest entries, newest first."""
        with self._lock:
            newest = list(self._entries)[-limit:]
        return tuple(reversed(newest))

    def series(self) -> Series:
        """The last quarter of an hour, up to now."""
        now = self._slot()
        with self._lock:
            found = {b.slot: b for b in self._buckets}
            last = self._last_lag
        shown = [found.get(slot) for slot in range(now - BUCKETS + 1, now + 1)]
        return Series(
            tuple(b.lag_seconds if b is not None else None for b in shown),
            tuple(b.writes if b is not None else 0 for b in shown),
            *(last or (None, None)),
        )

    # ------------------------------------------------------------------ Observer

    def outcome(self, outcome: Outcome, lag_seconds: float | None) -> None:
        """A target was worked on: an entry when something was written, failed, or is newly in the way."""
        with self._lock:
            self._count(len(outcome.applied), lag_seconds if outcome.applied and not outcome.failures else None)
            news = self._news(outcome)
        if news is not None:
            severity, text = news
            origin = Origin.of(outcome.plan.queries)
            self._add(
                severity,
                text,
                outcome.plan.target,
                origin.service,
                origin.datacenter,
                None if severity == "bad" else lag_seconds,
            )

    def changed(self, event: StateEvent) -> None:
        match event:
            case ConsulReachable(datacenter, up, reason, first) if not (up and first):
                text = f"Consul, datacenter {datacenter}, " + ("answers again" if up else f"cannot be asked: {reason}")
                self._add("good" if up else "bad", text, datacenter=datacenter)
            case KubernetesReachable(up, reason, first) if not (up and first):
                text = "Kubernetes answers again" if up else f"Kubernetes cannot be used: {reason}"
                self._add("good" if up else "bad", text)
            case HoldsChanged(began=began, ended=ended):
                for hold in sorted(began, key=lambda hold: hold.target):
                    self._add("bad", f"held: {hold_text(hold)}", hold.target)
                for target in ended:
                    self._add("good", "the hold has ended", target)
            case ConflictingWriter(reason):
                text = f"conflicting writer detected: {reason}" if reason else "conflicting writer gone"
                self._add("bad" if reason else "good", text)
            case ServerWarning(text):
                self._add("plain", f"Kubernetes warns: {text}")
            case CredentialsChanged("", _):
                self._add("good", "Kubernetes credentials are renewed again")
            case CredentialsChanged(trouble, True):
                self._add("bad", f"Kubernetes credentials cannot be renewed: {trouble}")
            case LeadingChanged(shards, of):
                text = (
                    "this replica leads: it writes" if of == 1 else f"this replica leads {len(shards)} of {of} shards"
                )
                self._add("plain", text if shards else "this replica stands by: others write")

    def pass_done(self, _duration_seconds: float, _report: Report) -> None:
        """Nothing: an outcome follows where there is something to be done."""

    # ------------------------------------------------------------------ inside

    def _news(self, outcome: Outcome) -> tuple[str, str] | None:
        """Severity and text for an outcome; None when it says nothing new. Called with the lock held."""
        plan = outcome.plan
        conflicts = "; ".join(f"{c.kind}: {c.reason}" for c in plan.conflicts)
        news = self._reported.is_news(plan.target, [conflicts] if conflicts else [], self._wall_clock())
        if outcome.failures:
            failure = outcome.failures[0]
            return "bad", f"{failure.change.action} of {failure.change.kind} failed: {failure.error}"
        if outcome.applied:
            return "plain", _what_was_done(outcome)
        return ("bad", f"conflict: {conflicts}") if news else None

    def _count(self, writes: int, lag_seconds: float | None) -> None:
        slot = self._slot()
        if not self._buckets or self._buckets[-1].slot != slot:
            self._buckets.append(_Bucket(slot))
        bucket = self._buckets[-1]
        bucket.writes += writes
        if lag_seconds is not None:
            lag_seconds = max(0.0, lag_seconds)
            bucket.lag_seconds = max(bucket.lag_seconds or 0.0, lag_seconds)
            self._last_lag = lag_seconds, self._wall_clock()

    def _slot(self) -> int:
        return int(self._wall_clock() // BUCKET_SECONDS)

    def _add(
        self,
        severity: str,
        text: str,
        target: Target | None = None,
        service: str = "",
        datacenter: str = "",
        lag_seconds: float | None = None,
    ) -> None:
        with self._lock:
            self._number += 1
            entry = Entry(
                number=self._number,
                at=self._wall_clock(),
                severity=severity,
                text=text if len(text) <= TEXT else text[: TEXT - 1] + "…",
                namespace=target.namespace if target is not None else "",
                name=target.name if target is not None else "",
                service=service,
                datacenter=datacenter,
                lag_seconds=lag_seconds,
            )
            self._entries.append(entry)


def _what_was_done(outcome: Outcome) -> str:
    """`created: 12 ready`, `11 ready, 1 not ready (was 12 ready)`, `removed: its service is gone from Consul`."""
    plan = outcome.plan
    actions = {c.action for c in outcome.applied}
    now = f"{plan.ready} ready" + (f", {plan.not_ready} not ready" if plan.not_ready else "")
    if actions == {Action.DELETE}:
        reason = next((c.reason for c in outcome.applied if c.reason), "")
        return f"removed: {reason}" if reason else "removed"
    if actions == {Action.CREATE} and not plan.ready_before:
        return f"created: {now}"
    if plan.ready != plan.ready_before:
        return f"{now} (was {plan.ready_before} ready)"
    written = ", ".join(dict.fromkeys(f"{c.action} {c.kind}" for c in outcome.applied))
    return f"{now} ({written})"
