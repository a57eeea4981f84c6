"""The last result of each target: for /api/status, the page, and a replica that takes over."""

from __future__ import annotations

import threading

from bridge.core.model import Plan, Target
from bridge.report import Outcome


class Results:
    """The last outcome of each target that a Consul service feeds. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._results: dict[Target, Outcome] = {}

    def record(self, outcome: Outcome) -> Outcome | None:
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
        """No service feeds a target any more: drop and return its outcome, so that old names do not pile up."""
        with self._lock:
            return self._results.pop(target, None)

    def of(self, target: Target) -> Outcome | None:
        with self._lock:
            return self._results.get(target)

    def all(self) -> dict[Target, Outcome]:
        with self._lock:
            return dict(self._results)

    def unfinished(self) -> list[Target]:
        """Targets with writes that are due: what a standby planned and left to the leader."""
        return [t for t, o in self.all().items() if len(o.applied) < len(o.plan.writes)]
