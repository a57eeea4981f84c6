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
from bridge.report import NullObserver, Origin, hold_text

if TYPE_CHECKING:
    from bridge.core.model import Held, Target
    from bridge.report import Outcome

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
        """As /api/changes sends it."""
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
        """For scripts."""
        return {**asdict(self), "bucket_seconds": BUCKET_SECONDS}


@dataclass(slots=True)
class _Bucket:
    slot: int
    lag_seconds: float | None = None
    writes: int = 0


class History(NullObserver):
    """An observer that remembers."""

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._number = 0
        self._entries: deque[Entry] = deque(maxlen=CHANGES)
        self._buckets: deque[_Bucket] = deque(maxlen=BUCKETS)
        self._last_lag: tuple[float, float] | None = None
        self._up: dict[str, tuple[bool, str]] = {}
        self._held: dict[Target, str] = {}
        self._conflicts: dict[Target, str] = {}
        self._conflicting_writer = False
        self._credentials = False

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

    def consul(self, datacenter: str, up: bool, reason: str) -> None:
        """Consul's state: an entry when it changes."""
        if self._changed(f"consul {datacenter}", up, reason):
            text = f"Consul, datacenter {datacenter}, " + ("answers again" if up else f"cannot be asked: {reason}")
            self._add("good" if up else "bad", text, datacenter=datacenter)

    def kubernetes(self, up: bool, reason: str) -> None:
        """The API server's state: an entry when it changes."""
        if self._changed("kubernetes", up, reason):
            self._add(
                "good" if up else "bad",
                "Kubernetes answers again" if up else f"Kubernetes cannot be used: {reason}",
            )

    def held(self, held: tuple[Held, ...]) -> None:
        """What the guard holds: an entry for each hold that begins or ends."""
        now = {h.target: hold_text(h) for h in held}
        with self._lock:
            before, self._held = self._held, now
        for target in sorted(now.keys() - before.keys()):
            self._add("bad", f"held: {now[target]}", target)
        for target in sorted(before.keys() - now.keys()):
            self._add("good", "the hold has ended", target)

    def conflicting_writer(self, reason: str) -> None:
        """A conflicting writer: an entry when it is detected and when it has gone."""
        with self._lock:
            before, self._conflicting_writer = self._conflicting_writer, bool(reason)
        if before != bool(reason):
            text = f"conflicting writer detected: {reason}" if reason else "conflicting writer gone"
            self._add("bad" if reason else "good", text)

    def server_warning(self, text: str) -> None:
        """A warning of the API server or about the way to it."""
        self._add("plain", f"Kubernetes warns: {text}")

    def credentials(self, error: str) -> None:
        """Credentials for Kubernetes that cannot be renewed: an entry when it begins and when it is over."""
        with self._lock:
            before, self._credentials = self._credentials, bool(error)
        if before != bool(error):
            text = (
                f"Kubernetes credentials cannot be renewed: {error}"
                if error
                else "Kubernetes credentials are renewed again"
            )
            self._add("bad" if error else "good", text)

    def leading(self, shards: frozenset[int], of: int) -> None:
        """What this replica writes from now on."""
        if not shards:
            text = "this replica stands by: others write"
        elif of == 1:
            text = "this replica leads: it writes"
        else:
            text = f"this replica leads {len(shards)} of {of} shards"
        self._add("plain", text)

    # ------------------------------------------------------------------ inside

    def _news(self, outcome: Outcome) -> tuple[str, str] | None:
        """Severity and text for an outcome; None when it says nothing new. Called with the lock held."""
        plan = outcome.plan
        conflicts = "; ".join(f"{c.kind}: {c.reason}" for c in plan.conflicts)
        known = self._conflicts.get(plan.target, "")
        if conflicts:
            self._conflicts[plan.target] = conflicts
        else:
            self._conflicts.pop(plan.target, None)
        if outcome.failures:
            failure = outcome.failures[0]
            return "bad", f"{failure.change.action} of {failure.change.kind} failed: {failure.error}"
        if outcome.applied:
            return "plain", _what_was_done(outcome)
        return ("bad", f"conflict: {conflicts}") if conflicts != known and conflicts else None

    def _changed(self, what: str, up: bool, reason: str) -> bool:
        """Whether this is news; that something answers the first time is none."""
        with self._lock:
            before = self._up.get(what)
            self._up[what] = (up, reason)
        return not up if before is None else before[0] != up

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
