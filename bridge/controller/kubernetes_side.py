"""The informer's listener: handles changes by other writers, users' annotations, labels and regained rights."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from bridge.controller.circuit_breaker import CircuitBreaker
from bridge.controller.leadership import Leadership
from bridge.controller.owned_targets import OwnedTargets
from bridge.controller.pending_changes import PendingChanges
from bridge.controller.repairs import Repairs
from bridge.controller.results import Results
from bridge.controller.scheduler import LATER, Scheduler
from bridge.controller.workqueue import WorkQueue
from bridge.core.annotated import Annotated, Refusal, request_at
from bridge.core.model import Target
from bridge.core.reconcile import names_at
from bridge.kube.informer import Informer
from bridge.kube.namespaces import Labels
from bridge.pipeline.planner import Planner
from bridge.pipeline.slice_rights import SliceRights

FOREIGN_SLICE_SECONDS = 0.1
"""How long after a change of another writer's slice it is compared: a mirror comes in several slices."""


@dataclass(eq=False, kw_only=True, repr=False)
class KubernetesSide:
    """Schedules targets that change in Kubernetes. `annotated` says which users' Services are filled. Any thread."""

    planner: Planner
    informer: Informer
    queue: WorkQueue[Target]
    scheduler: Scheduler
    pending: PendingChanges
    results: Results
    owned: OwnedTargets
    leadership: Leadership
    repairs: Repairs
    slice_rights: SliceRights
    breaker: CircuitBreaker
    annotated: Annotated
    clock: Callable[[], float]
    wake: threading.Event

    # ------------------------------------------------------------------ what the watches say

    def on_change(self, target: Target) -> None:
        """Another writer changed something at `target`."""
        if not self.scheduler.first_pass_done:
            self.follow_annotation(target)  # full passes do not ask users' Services again
            self.scheduler.schedule({target})
            return
        unexpected = self.informer.take_unexpected_own_write(target)
        if not self.leadership.leads(target):
            with self.planner.lock:  # the one who leads did what we have only seen coming: charge it here too
                self.planner.guard.applied(target)
        elif unexpected:
            self.repairs.conflicting.wrote(target)
        asked = self.follow_annotation(target)
        if not asked:
            self.pending.touched(target)
        self.queue.add(target, delay_seconds=0.0 if asked else self.repairs.delay_seconds(target))

    def on_foreign_slices(self, target: Target) -> None:
        """Slices at `target` changed that no bridge writes: nothing is put back, but they change where traffic goes."""
        if not self.scheduler.first_pass_done:
            self.scheduler.schedule({target})
            return
        outcome = self.results.of(target)
        if outcome is not None and not outcome.failures:  # else it is tried again in any case, when that is due
            delay = max(FOREIGN_SLICE_SECONDS, self.repairs.delay_seconds(target))
            self.queue.add(target, priority=LATER, delay_seconds=delay)

    def on_labels(self, labels: Labels, changed: Collection[str]) -> None:
        """Labels of namespaces were read for the first time, or some changed: other grants may select them now."""
        with self.planner.lock:
            self.annotated = replace(self.annotated, labels=labels)
        asking = (Target(s.meta.namespace, s.meta.name) for s in self.informer.annotated_services())
        targets = {target for target in asking if target.namespace in changed and self.follow_annotation(target)}
        self.scheduler.schedule(targets)

    def follow_annotation(self, target: Target) -> bool:
        """Follow what the user's Service at `target` asks for now; returns whether that changed."""
        with self.planner.lock:
            current = self.informer.current(target)
            consul_state, now = self.planner.consul_state, self.clock()
            request = request_at(current, consul_state.datacenters[0], self.annotated, names_at(current))
            if request is None:
                changed = consul_state.unannotate(target, now)
            elif isinstance(request, Refusal):
                changed = consul_state.refuse(target, request, now)
            elif consul_state.annotation(target) == request:
                return False
            else:
                changed = consul_state.annotate(target, *request, now)
        if changed:
            self.wake.set()
        return bool(changed)

    # ------------------------------------------------------------------ what the supervisor asks for

    def read_store(self) -> None:
        """Read from the store where our objects came from, and what users ask for."""
        self.owned.record_all()
        for service in self.informer.annotated_services():
            self.follow_annotation(Target(service.meta.namespace, service.meta.name))

    def take_newly_readable(self, compare: Callable[[Collection[str]], None]) -> None:
        """Namespaces that could not be read, and now can: only after all of it is known is anything planned there.

        `compare` gets their names once what is there is known.
        """
        before, now = self.planner.unreadable, self.informer.unreadable()
        readable = before.keys() - now.keys()
        if readable:
            self.read_store()
        with self.planner.lock:
            if readable:
                compare(readable)
            self.planner.unreadable = now
            targets = self.planner.consul_state.targets() | set(self.informer.targets()) if readable else set()
        if readable:
            self.scheduler.schedule({target for target in targets if target.namespace in readable})

    def take_granted(self) -> None:
        """Namespaces where EndpointSlices could not be written, and now can."""
        granted = set() if self.breaker.failing else self.slice_rights.granted()
        if granted:
            self.scheduler.schedule({target for target in self.informer.targets() if target.namespace in granted})
