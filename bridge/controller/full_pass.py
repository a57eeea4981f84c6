"""Full passes: all targets are planned, and the guard judges the plans together. Targets that need work are queued.

The first pass begins the work. Later ones, at every resync, find changes that no event reported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bridge.controller.leadership import Leadership
from bridge.controller.node_addresses import NodeAddresses
from bridge.controller.owned_targets import OwnedTargets
from bridge.controller.results import Results
from bridge.controller.scheduler import Scheduler
from bridge.kube.informer import Informer
from bridge.pipeline.planner import Planner
from bridge.report import Outcome, build_report
from bridge.telemetry.events import Observer


@dataclass(eq=False, kw_only=True, repr=False)
class FullPasses:
    """Makes full passes, and knows when the next one is due. For the supervisor's thread, except `last`."""

    planner: Planner
    informer: Informer
    owned: OwnedTargets
    nodes: NodeAddresses
    scheduler: Scheduler
    leadership: Leadership
    results: Results
    observer: Observer
    clock: Callable[[], float]
    resync_seconds: float

    def __post_init__(self) -> None:
        self._next = 0.0
        self.last: float | None = None
        """When the last one was done, by the self.clock."""

    def run(self) -> None:
        """Plan all targets, and queue those that need work."""
        began = self.clock()
        if self.scheduler.first_pass_done:
            self.informer.refresh()
            self.owned.record_all()
            self.nodes.refresh()
        with self.planner.lock:
            targets = self.planner.consul_state.targets() | set(self.informer.targets())
        plans = self.planner.plan_full_pass(targets)
        for plan in plans:
            self.results.planned(plan)
            if (plan.writes or plan.unmirrored) and self.leadership.leads(plan.target):
                self.scheduler.add(plan.target)
            self.scheduler.revisit(plan)
        self.last = self.clock()
        report = build_report(
            [Outcome(p, (), ()) for p in plans],
            self.planner.read_errors(),
            dry_run=True,
            unplanned=self.planner.unplanned(),
        )
        self.observer.pass_done(self.last - began, report)

    def run_if_due(self) -> None:
        """At every resync, when it was asked for, and as soon as the nodes' addresses can be read again."""
        now = self.clock()
        if self.nodes.mended(now):
            self._next = now  # users' Services are looked at with the addresses that are known now
        if now >= self._next:
            self.run()
            self.postpone()

    def postpone(self) -> None:
        """The next one is due after a whole interval."""
        self._next = self.clock() + self.resync_seconds

    def ask(self, delay_seconds: float) -> None:
        """The next one is due in so many seconds at the latest."""
        self._next = min(self._next, self.clock() + delay_seconds)
