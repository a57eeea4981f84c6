"""Which Consul services our objects come from, so that the end of a service is noticed later."""

from __future__ import annotations

from collections.abc import Callable

from bridge.controller.results import Results
from bridge.controller.scheduler import Scheduler
from bridge.core.model import Plan, Target
from bridge.core.reconcile import names_at
from bridge.kube.informer import Informer
from bridge.pipeline.planner import Planner
from bridge.report import Outcome
from bridge.telemetry.events import Observer


class OwnedTargets:
    """Keeps `ConsulState` informed of what we own in Kubernetes. Any thread."""

    def __init__(
        self,
        *,
        planner: Planner,
        informer: Informer,
        scheduler: Scheduler,
        results: Results,
        observer: Observer,
        clock: Callable[[], float],
    ) -> None:
        self._planner = planner
        self._informer = informer
        self._scheduler = scheduler
        self._results = results
        self._observer = observer
        self._clock = clock

    def record_all(self) -> None:
        """All that Kubernetes holds of ours."""
        changed: set[Target] = set()
        with self._planner.lock:
            for target in self._informer.targets():
                names = names_at(self._informer.current(target))
                changed |= self._planner.world.record_owned(target, names, self._clock())
        self._scheduler.schedule(changed)

    def record(self, target: Target) -> None:
        """The objects after `target` was reconciled; a target without objects and sources is forgotten."""
        names = names_at(self._informer.current(target))
        with self._planner.lock:
            if names:
                changed = self._planner.world.record_owned(target, names, self._clock())
            else:
                changed = self._planner.world.drop_owned(target, self._clock())
                self._planner.guard.forget(target)
            world = self._planner.world
            gone = not world.queries_at(target) and world.refusal(target) is None
        self._scheduler.schedule(changed)
        if gone and self._results.forget(target) is not None:
            self._observer.outcome(Outcome(Plan(target)), None)
