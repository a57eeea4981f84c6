"""Reports what users should know as Kubernetes Events on the objects concerned, for `kubectl describe`.

Each of `REASONS` is reported once, and again when it changes (`core.reported`), by the replica that writes the target.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, Protocol

from bridge.core.model import UNADDRESSABLE, Action, Current, Kind, Knowledge, Query, Target, Unknown
from bridge.core.reasons import codes_of
from bridge.core.reported import Reported
from bridge.errors import PermanentError
from bridge.kube.events import About, Event
from bridge.report import Outcome, Report
from bridge.telemetry.events import HoldsChanged, StateEvent

REASONS: Mapping[str, tuple[Literal["Normal", "Warning"], str]] = {
    "Mirrored": ("Normal", "a Service or its Endpoints were created or removed"),
    "Conflict": ("Warning", "an object of the needed name is not the bridge's"),
    "InstancesSkipped": ("Warning", "instances (or whole Consul services) that are left out, and why"),
    "Attention": ("Warning", "something works but should be looked at: more than 1,000 addresses, for example"),
    "ReadFailed": ("Warning", "Consul refuses what is asked of it for this service: its filter, for example"),
    "WriteFailed": ("Warning", "the API server refuses a write, and trying again will not help"),
    "Held": ("Warning", "endpoints are kept that Consul no longer shows, or shows as unhealthy"),
    "HoldEnded": ("Normal", "they are kept no longer"),
    "FailedOver": ("Warning", "another datacenter carries the traffic, and why (`combine: failover`)"),
    "FailedBack": ("Normal", "the first datacenter carries the traffic again"),
}
"""The Events, by their reason: of which type, and when."""

SHOWN = 5
"""How many skipped instances an Event names; the rest is counted."""


class Recorder(Protocol):
    """Sends Events, some time soon."""

    def record(self, event: Event) -> None: ...


class KubernetesEventObserver:
    """An observer that records Events. `current` gives the objects at a target, `leads` whether we write it."""

    def __init__(
        self,
        recorder: Recorder,
        *,
        current: Callable[[Target], Current],
        leads: Callable[[Target], bool],
    ) -> None:
        self._recorder = recorder
        self._current = current
        self._leads = leads
        self._lock = threading.Lock()
        self._reported = Reported()
        self._refused: dict[Query, tuple[str, tuple[Target, ...]]] = {}

    def outcome(self, outcome: Outcome, _lag_seconds: float | None) -> None:
        plan, target = outcome.plan, outcome.plan.target
        source = ", ".join(dict.fromkeys(f"{q.service} ({q.datacenter})" for q in plan.queries))
        for change in outcome.applied:
            if change.action is Action.CREATE and change.kind is not Kind.ENDPOINT_SLICE:
                text = f"created {change.kind} from Consul service {source}"
                self._record(target, change.kind, "Mirrored", text)
            elif change.action is Action.DELETE and change.kind is Kind.ENDPOINTS:
                self._record(target, Kind.SERVICE, "Mirrored", f"removed {change.kind}: {change.reason}")
        if (switched := outcome.switched) is not None:
            said = "FailedBack" if switched.preferred else "FailedOver"
            text = f"{switched.before} -> {switched.name}: {switched.why}"
            self._record(target, Kind.SERVICE, said, text, codes_of((switched.why,)))
        refused = [f"{f.change.action} of {f.change.kind}: {f.error}" for f in outcome.failures
                   if isinstance(f.error, PermanentError)]  # fmt: skip
        self._say(target, Kind.SERVICE, "WriteFailed", "; ".join(refused))
        self._details(outcome)

    def read(self, query: Query, state: Knowledge, targets: Iterable[Target]) -> None:
        """A service of these targets was read, or could not be; only a lasting error is reported."""
        refused = (
            isinstance(state, Unknown) and state.lasting and (bool(query.filter) or query.service in UNADDRESSABLE)
        )
        with self._lock:
            before = self._refused.pop(query, None)
            if isinstance(state, Unknown) and refused:
                self._refused[query] = (f"Consul service {query.service}: {state.reason}", tuple(targets))
        if before is not None and not refused:
            for target in before[1]:
                self._say(target, Kind.SERVICE, "ReadFailed", "")
        self._say_refused()

    def changed(self, event: StateEvent) -> None:
        if isinstance(event, HoldsChanged):
            for hold in event.ours_began:
                self._record(hold.target, Kind.SERVICE, "Held", hold.reason, (hold.cause.value,))
            for target in event.ours_ended:
                self._record(target, Kind.SERVICE, "HoldEnded", "nothing is held any more")

    def pass_done(self, _duration_seconds: float, report: Report) -> None:
        for outcome in report.outcomes:
            self._details(outcome)
        self._say_refused()

    def _details(self, outcome: Outcome) -> None:
        plan, target = outcome.plan, outcome.plan.target
        if not self._leads(target):
            return
        for kind in Kind:
            reasons = [c.reason for c in plan.conflicts if c.kind is kind]
            text = "; ".join(reasons) and f"left alone: {'; '.join(reasons)}"
            self._say(target, kind, "Conflict", text, codes_of(reasons))
        skipped = [f"{s.instance or s.service}: {s.reason}" for s in plan.skipped]
        codes = codes_of(s.reason for s in plan.skipped)
        more = f"; and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else ""
        self._say(target, Kind.SERVICE, "InstancesSkipped", "; ".join(skipped[:SHOWN]) + more, codes)
        self._say(target, Kind.SERVICE, "Attention", "; ".join(plan.remarks), codes_of(plan.remarks), plan.remarks)

    def _say_refused(self) -> None:
        with self._lock:
            refused = list(self._refused.values())
        for text, targets in refused:
            for target in targets:
                if self._leads(target):
                    self._say(target, Kind.SERVICE, "ReadFailed", text)

    def _say(
        self,
        target: Target,
        kind: Kind,
        reason: str,
        text: str,
        codes: tuple[str, ...] = (),
        parts: Sequence[str] = (),
    ) -> None:
        """A warning, once; an empty text means that it is over. `parts`: the reasons that it is made of, if any."""
        with self._lock:
            news = self._reported.is_news((target, kind, reason), parts or ([text] if text else ()), time.monotonic())
        if news:
            self._record(target, kind, reason, text, codes)

    def _record(self, target: Target, kind: Kind, reason: str, text: str, codes: tuple[str, ...] = ()) -> None:
        current = self._current(target)
        uids = {found.meta.kind: found.meta.uid for found in current.objects if found.meta.name == target.name}
        about = About(kind, target.namespace, target.name, uids.get(kind, ""))
        self._recorder.record(Event(about, REASONS[reason][0], reason, "Mirror", text, codes))
