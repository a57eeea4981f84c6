"""The supervisor's thread: it makes the full passes, ends holds and grace periods, and takes part in the election.

A change in Consul never waits for it: watches and workers handle changes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from bridge.controller.consul_side import ConsulSide, Subscriptions
from bridge.controller.full_pass import FullPasses
from bridge.controller.health import Health
from bridge.controller.kubernetes_side import KubernetesSide
from bridge.controller.leadership import Leadership
from bridge.controller.node_addresses import NodeAddresses
from bridge.controller.results import Results
from bridge.controller.scheduler import Scheduler
from bridge.controller.shards import HeldShards
from bridge.controller.state_changes import StateChanges
from bridge.errors import CancelledError
from bridge.kube.informer import Informer
from bridge.kube.namespaces import NamespaceLabels
from bridge.pipeline.planner import Planner

TURN_SECONDS = 0.5
"""How often the supervisor checks for ended holds and grace periods, unless something wakes it earlier."""

FIRST_LOOK_SECONDS = 0.02
"""How often the bridge checks whether everything was read for the first time."""

FIRST_READ_SECONDS = 60.0
"""How long the first full pass waits for Consul's first answers before it goes on with those that came."""

GAINED_SECONDS = 5.0
"""How soon after a shard became ours everything is compared, beside what is known to be unfinished."""


@dataclass(eq=False, kw_only=True, repr=False)
class FirstRead:
    """Nothing is planned before Kubernetes was listed and every wanted service was answered, well or badly."""

    informer: Informer
    labels: NamespaceLabels | None
    nodes: NodeAddresses
    consul: ConsulSide
    kubernetes: KubernetesSide
    subscriptions: Subscriptions
    planner: Planner
    health: Health
    states: StateChanges
    stop: threading.Event
    clock: Callable[[], float]

    def wait(self) -> None:
        """Raises CancelledError when the bridge is stopped meanwhile.

        A namespace that we may not list is not waited for once that has proved to last.
        """
        while not self.informer.wait_synced(0.5):
            self.states.kubernetes(False, self.health.kubernetes() or "not listed yet")
            self._go_on()
        self.nodes.await_first()
        while self.labels is not None and not self.labels.asked.wait(FIRST_LOOK_SECONDS):
            self._go_on()
        self.states.kubernetes(True, "")
        self.planner.unreadable = self.informer.unreadable()
        self.kubernetes.read_store()
        deadline = self.clock() + FIRST_READ_SECONDS
        while True:
            self._go_on()
            self.kubernetes.take_newly_readable(self.consul.compare_newly_readable)
            self.subscriptions.commit()
            if self.subscriptions.answered() or self.clock() >= deadline:
                return
            self.stop.wait(FIRST_LOOK_SECONDS)  # not for each view: looking at all of them for each is what costs

    def _go_on(self) -> None:
        if self.stop.is_set():
            raise CancelledError("stopped before the first pass")


@dataclass(eq=False, kw_only=True, repr=False)
class Supervisor:
    """Runs until `stop` is set; `wake` ends its pauses. `probe` looks whether the API server would answer a write."""

    first_read: FirstRead
    planner: Planner
    scheduler: Scheduler
    consul: ConsulSide
    kubernetes: KubernetesSide
    subscriptions: Subscriptions
    full_passes: FullPasses
    leadership: Leadership
    shards: HeldShards
    probe: Callable[[], None]
    results: Results
    tell: Callable[[], None]
    stop: threading.Event
    wake: threading.Event
    clock: Callable[[], float]

    def run(self) -> None:
        """Wait for the first read, make the first pass, take part in the election, then turn after turn."""
        self.first_read.wait()
        self.consul.compare_listed()
        self.scheduler.begin_first_pass()
        self.full_passes.run()
        early = self.scheduler.end_first_pass()
        for target in early:  # what changed while the pass was being made
            self.kubernetes.follow_annotation(target)
        self.scheduler.schedule(early)
        self.leadership.start()
        self.full_passes.postpone()
        while not self.stop.is_set():
            self.wake.wait(TURN_SECONDS)
            self.wake.clear()
            self._turn()

    def _turn(self) -> None:
        self.kubernetes.take_newly_readable(self.consul.compare_newly_readable)
        self.subscriptions.commit()
        self.scheduler.schedule(self.planner.expired(self.clock()))
        self.kubernetes.take_granted()
        if self.shards.take_gained():
            self.scheduler.schedule({t for t in self.results.unfinished() if self.leadership.leads(t)})
            self.full_passes.ask(GAINED_SECONDS)
        self.probe()
        self.tell()
        self.full_passes.run_if_due()
