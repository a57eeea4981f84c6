"""Full passes: all targets are planned, and the guard judges the plans together. Targets that need work are queued.

The first pass begins the work. Later ones, at every resync, find changes that no event reported.
"""

from __future__ import annotations

from collections.abc import Callable

from bridge.controller.leadership import Leadership
from bridge.controller.node_addresses import NodeAddresses
from bridge.controller.owned_targets import OwnedTargets
from bridge.controller.results import Results
from bridge.controller.scheduler import Scheduler
from bridge.kube.informer import Informer
from bridge.pipeline.planner import Planner
from bridge.report import Outcome, build_report
from bridge.telemetry.events import Observer


class FullPasses:
    """Makes full passes, and knows when the next one is due. For the supervisor's thread, except `last`."""

    def __init__(
        self,
        *,
        planner: Planner,
        informer: Informer,
        owned: OwnedTargets,
        nodes: NodeAddresses,
        scheduler: Scheduler,
        leadership: Leadership,
        results: Results,
        observer: Observer,
        clock: Callable[[], float],
        resync_seconds: float,
    ) -> None:
        self._planner = planner
        self._informer = informer
        self._owned = owned
        self._nodes = nodes
        self._scheduler = scheduler
        self._leadership = leadership
        self._results = results
        self._observer = observer
        self._clock = clock
        self._resync_seconds = resync_seconds
        self._next = 0.0
        self.last: float | None = None
        """When the last one was done, by the clock."""

    def run(self) -> None:
        """Plan all targets, and queue those that need work."""
        began = self._clock()
        if self._scheduler.first_pass_done:
            self._informer.refresh()
            self._owned.record_all()
            self._nodes.refresh()
        with self._planner.lock:
            targets = self._planner.world.targets() | set(self._informer.targets())
        plans = self._planner.plan_all(targets, ask=False)
        for plan in plans:
            self._results.planned(plan)
            if (plan.writes or plan.unmirrored) and self._leadership.leads(plan.target):
                self._scheduler.add(plan.target)
            self._scheduler.recheck_deviations(plan)
        self.last = self._clock()
        report = build_report(
            [Outcome(p, (), ()) for p in plans],
            self._planner.read_errors(),
            dry_run=True,
            unplanned=self._planner.unplanned(),
        )
        self._observer.pass_done(self.last - began, report)

    def run_if_due(self) -> None:
        """At every resync, when it was asked for, and as soon as the nodes' addresses can be read again."""
        now = self._clock()
        if self._nodes.mended(now):
            self._next = now  # users' Services are looked at with the addresses that are known now
        if now >= self._next:
            self.run()
            self.postpone()

    def postpone(self) -> None:
        """The next one is due after a whole interval."""
        self._next = self._clock() + self._resync_seconds

    def ask(self, delay_seconds: float) -> None:
        """The next one is due in so many seconds at the latest."""
        self._next = min(self._next, self._clock() + delay_seconds)
