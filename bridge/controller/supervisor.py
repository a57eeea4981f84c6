"""The supervisor's thread: it makes the full passes, ends holds and grace periods, and takes part in the election.

A change in Consul never waits for it: watches and workers handle changes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

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


class FirstRead:
    """Nothing is planned before Kubernetes was listed and every wanted service was answered, well or badly."""

    def __init__(
        self,
        *,
        informer: Informer,
        labels: NamespaceLabels | None,
        nodes: NodeAddresses,
        consul: ConsulSide,
        kubernetes: KubernetesSide,
        subscriptions: Subscriptions,
        planner: Planner,
        health: Health,
        states: StateChanges,
        stop: threading.Event,
        clock: Callable[[], float],
    ) -> None:
        self._informer = informer
        self._labels = labels
        self._nodes = nodes
        self._consul = consul
        self._kubernetes = kubernetes
        self._subscriptions = subscriptions
        self._planner = planner
        self._health = health
        self._states = states
        self._stop = stop
        self._clock = clock

    def wait(self) -> None:
        """Raises CancelledError when the bridge is stopped meanwhile.

        A namespace that we may not list is not waited for once that has proved to last.
        """
        while not self._informer.wait_synced(0.5):
            self._states.kubernetes(False, self._health.kubernetes() or "not listed yet")
            self._go_on()
        self._nodes.await_first()
        while self._labels is not None and not self._labels.asked.wait(FIRST_LOOK_SECONDS):
            self._go_on()
        self._states.kubernetes(True, "")
        self._planner.unreadable = self._informer.unreadable()
        self._kubernetes.recall()
        deadline = self._clock() + FIRST_READ_SECONDS
        while True:
            self._go_on()
            self._kubernetes.take_freed(self._consul.compare_freed)
            self._subscriptions.commit()
            if self._subscriptions.answered() or self._clock() >= deadline:
                return
            self._stop.wait(FIRST_LOOK_SECONDS)  # not for each view: looking at all of them for each is what costs

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise CancelledError("stopped before the first pass")


class Supervisor:
    """Runs until `stop` is set; `wake` ends its pauses. `probe` looks whether the API server would answer a write."""

    def __init__(
        self,
        *,
        first_read: FirstRead,
        planner: Planner,
        scheduler: Scheduler,
        consul: ConsulSide,
        kubernetes: KubernetesSide,
        subscriptions: Subscriptions,
        full_passes: FullPasses,
        leadership: Leadership,
        shards: HeldShards,
        probe: Callable[[], None],
        results: Results,
        tell: Callable[[], None],
        stop: threading.Event,
        wake: threading.Event,
        clock: Callable[[], float],
    ) -> None:
        self._first_read = first_read
        self._planner = planner
        self._scheduler = scheduler
        self._consul = consul
        self._kubernetes = kubernetes
        self._subscriptions = subscriptions
        self._full_passes = full_passes
        self._leadership = leadership
        self._shards = shards
        self._probe = probe
        self._results = results
        self._tell = tell
        self._stop = stop
        self._wake = wake
        self._clock = clock

    def run(self) -> None:
        """Wait for the first read, make the first pass, take part in the election, then turn after turn."""
        self._first_read.wait()
        self._consul.compare_listed()
        self._scheduler.begin_first_pass()
        self._full_passes.run()
        early = self._scheduler.end_first_pass()
        for target in early:  # what changed while the pass was being made
            self._kubernetes.follow_annotation(target)
        self._scheduler.schedule(early)
        self._leadership.start()
        self._full_passes.postpone()
        while not self._stop.is_set():
            self._wake.wait(TURN_SECONDS)
            self._wake.clear()
            self._turn()

    def _turn(self) -> None:
        self._kubernetes.take_freed(self._consul.compare_freed)
        self._subscriptions.commit()
        self._scheduler.schedule(self._planner.expired(self._clock()))
        self._kubernetes.take_granted()
        if self._shards.take_gained():
            self._scheduler.schedule({t for t in self._results.unfinished() if self._leadership.leads(t)})
            self._full_passes.ask(GAINED_SECONDS)
        self._probe()
        self._tell()
        self._full_passes.run_if_due()
