"""Which Consul services our objects come from, so that the end of a service is noticed later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bridge.controller.results import Results
from bridge.controller.scheduler import Scheduler
from bridge.core.model import Plan, Target
from bridge.core.reconcile import names_at
from bridge.kube.informer import Informer
from bridge.pipeline.planner import Planner
from bridge.report import Outcome
from bridge.telemetry.events import Observer


@dataclass(eq=False, kw_only=True, repr=False)
class OwnedTargets:
    """Keeps `ConsulState` informed of what we own in Kubernetes. Any thread."""

    planner: Planner
    informer: Informer
    scheduler: Scheduler
    results: Results
    observer: Observer
    clock: Callable[[], float]

    def record_all(self) -> None:
        """All that Kubernetes holds of ours."""
        changed: set[Target] = set()
        with self.planner.lock:
            for target in self.informer.targets():
                names = names_at(self.informer.current(target))
                changed |= self.planner.consul_state.record_owned(target, names, self.clock())
        self.scheduler.schedule(changed)

    def record(self, target: Target) -> None:
        """The objects after `target` was reconciled; a target without objects and sources is forgotten."""
        names = names_at(self.informer.current(target))
        with self.planner.lock:
            if names:
                changed = self.planner.consul_state.record_owned(target, names, self.clock())
            else:
                changed = self.planner.consul_state.drop_owned(target, self.clock())
                self.planner.guard.forget(target)
            consul_state = self.planner.consul_state
            gone = not consul_state.queries_at(target) and consul_state.refusal(target) is None
        self.scheduler.schedule(changed)
        if gone and self.results.forget(target) is not None:
            self.observer.outcome(Outcome(Plan(target)), None)
