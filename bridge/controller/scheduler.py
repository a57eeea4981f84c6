"""How targets get into the work queue.

Until the first full pass, targets are only collected, because that pass plans all of them. From then on the guard
judges targets that change at once together first, so that it sees the sum of their removals.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

from bridge.controller.workqueue import WorkQueue
from bridge.core.model import Kind, Plan, Target

LATER = 2
"""Queue priority of what leaves a service without ready endpoints: after everything else."""


class Scheduler:
    """Queues targets. `judge` shows several to the guard; `exists`: a target has Endpoints or slices. Any thread.

    `blocked` learns whether Endpoints of another owner block a target, and has it queued when they change.
    """

    def __init__(
        self,
        queue: WorkQueue[Target],
        *,
        judge: Callable[[Collection[Target]], object],
        exists: Callable[[Target], bool],
        recheck_seconds: float,
        blocked: Callable[[Target, bool], None],
    ) -> None:
        self._queue = queue
        self._judge = judge
        self._exists = exists
        self._recheck_seconds = recheck_seconds
        self._blocked = blocked
        self._lock = threading.Lock()
        self._early: set[Target] = set()
        self._passed = threading.Event()

    @property
    def first_pass_done(self) -> bool:
        """Whether targets are queued, and no longer only collected."""
        return self._passed.is_set()

    def begin_first_pass(self) -> None:
        """The first full pass begins: what changed until now is in it."""
        with self._lock:
            self._early = set()

    def end_first_pass(self) -> set[Target]:
        """Queue targets from now on; returns those that changed while the pass was being made."""
        with self._lock:
            self._passed.set()
            return self._early

    def schedule(self, targets: Collection[Target]) -> None:
        """Queue targets; several at once are judged together."""
        with self._lock:
            if not self._passed.is_set():
                self._early.update(targets)
                return
        if not targets:
            return
        if len(targets) > 1:
            self._judge(targets)
        for target in sorted(targets):
            self.add(target)

    def add(self, target: Target) -> None:
        """Queue one that has been judged already; what exists goes before what is to be created."""
        self._queue.add(target, priority=0 if self._exists(target) else 1)

    def revisit(self, plan: Plan) -> None:
        """Have a target planned once more after the window of its deviations, and when what blocks it changes."""
        self._blocked(plan.target, any(conflict.kind is Kind.ENDPOINTS for conflict in plan.conflicts))
        if plan.deviations_recent:
            self._queue.add(plan.target, priority=LATER, delay_seconds=self._recheck_seconds)
