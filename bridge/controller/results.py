"""The last result of each target: for /api/status, the page, and a replica that takes over."""

from __future__ import annotations

import threading

from bridge.core.model import Plan, Target
from bridge.report import Outcome


class Results:
    """The last outcome by target, of those that a Consul service stands behind. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._results: dict[Target, Outcome] = {}

    def record(self, outcome: Outcome) -> Outcome | None:
        """Keep it; returns the one before."""
        target = outcome.plan.target
        with self._lock:
            before = self._results.pop(target, None)
            if outcome.plan.queries:
                self._results[target] = outcome
        return before

    def planned(self, plan: Plan) -> None:
        """Nothing has been written of a plan yet."""
        self.record(Outcome(plan, (), ()))

    def forget(self, target: Target) -> Outcome | None:
        """Nothing stands behind a target any more; returns what there was: names that come and go must not pile up."""
        with self._lock:
            return self._results.pop(target, None)

    def of(self, target: Target) -> Outcome | None:
        """The last one of a target."""
        with self._lock:
            return self._results.get(target)

    def all(self) -> dict[Target, Outcome]:
        """All of them, as they are now."""
        with self._lock:
            return dict(self._results)

    def unfinished(self) -> list[Target]:
        """Where something is still to be written: what a standby saw and left to the one who led."""
        return [t for t, o in self.all().items() if len(o.applied) < len(o.plan.writes)]
