"""The catalog's listener: stores what Consul shows in `core.state.ConsulState` and schedules the targets it changes.

In return it subscribes the catalog to exactly the services that some target needs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from bridge.consul.catalog import Catalog
from bridge.consul.subscriptions import InlineExecutor
from bridge.controller.kubernetes_events import KubernetesEventObserver
from bridge.controller.pending_changes import PendingChanges
from bridge.controller.scheduler import Scheduler
from bridge.controller.state_changes import StateChanges
from bridge.controller.workers import Workers
from bridge.core.model import Knowledge, Listing, Query, Scope, Target, Unknown
from bridge.pipeline.planner import Planner
from bridge.telemetry.events import Observer, StreamingMismatch


class ConsulHealth:
    """Which datacenters cannot be asked, and why. Any thread."""

    def __init__(self, states: StateChanges) -> None:
        self._states = states
        self.unreachable: dict[str, str] = {}

    def report(self, datacenter: str, reason: str | None) -> None:
        """A datacenter cannot be asked (`reason`), or can again (None)."""
        if reason is None:
            self.unreachable.pop(datacenter, None)
        else:
            self.unreachable[datacenter] = reason
        self._states.consul(datacenter, reason is None, reason or "")

    def answers(self, datacenters: Collection[str]) -> bool:
        return any(datacenter not in self.unreachable for datacenter in datacenters)


@dataclass(eq=False, kw_only=True, repr=False)
class ConsulSide:
    """The catalog's listener. `ready_targets` are targets of ours with ready endpoints. Any thread."""

    planner: Planner
    ready_targets: Callable[[], Mapping[Target, Scope]]
    scheduler: Scheduler
    pending: PendingChanges
    workers: Workers
    kubernetes_events: KubernetesEventObserver | None
    health: ConsulHealth
    observer: Observer
    clock: Callable[[], float]
    wake: threading.Event

    def __post_init__(self) -> None:
        self._compared: set[str] | None = None

    # ------------------------------------------------------------------ what the catalog says

    def on_listing(self, datacenter: str, listing: Listing | Unknown) -> None:
        """A datacenter's services were listed, or could not be."""
        with self.planner.lock:
            targets = self.planner.consul_state.on_listing(datacenter, listing, self.clock())
            if self._compared is not None and datacenter not in self._compared and isinstance(listing, Listing):
                self._mark_suspect((datacenter,), "at its first answer")
        self.scheduler.schedule(targets)
        self.wake.set()

    def on_view(self, query: Query, state: Knowledge, seen: float, inline: InlineExecutor | None = None) -> None:
        """A service was read, or could not be. With `inline` the caller writes the result if no other work is due."""
        with self.planner.lock:
            targets = self.planner.consul_state.on_view(query, state, self.clock())
            fed = self.planner.consul_state.fed_by(query) if self.kubernetes_events is not None else ()
        if self.kubernetes_events is not None:
            self.kubernetes_events.read(query, state, fed)
        if not self.scheduler.first_pass_done:
            self.scheduler.schedule(targets)
            self.wake.set()
            return
        for target in targets:
            self.pending.seen(target, seen)
        if inline is not None and len(targets) == 1:
            (target,) = targets
            if self.workers.run_inline(target, inline):
                return
        self.scheduler.schedule(targets)

    def on_rebuilt(self, datacenter: str) -> None:
        """Consul's index went backwards: it was rebuilt or restored, and may be missing what it had."""
        with self.planner.lock:
            self.planner.guard.rebuilt(datacenter, self.clock())

    def on_trouble(self, datacenter: str, reason: str | None) -> None:
        """A datacenter cannot be asked (`reason`), or can again (None)."""
        self.health.report(datacenter, reason)

    def on_mismatch(self, query: Query, reason: str) -> None:
        """Consul's streaming backend showed a service otherwise than its catalog."""
        self.observer.changed(StreamingMismatch(query, reason))

    # ------------------------------------------------------------------ a Consul that may have been rebuilt

    def compare_listed(self) -> None:
        """Before the first pass: check whether Consul lists most of what is mirrored; a datacenter that has not
        answered yet is checked at its first answer.
        """
        with self.planner.lock:
            self._compared = set()
            self._mark_suspect(self.planner.consul_state.listed_datacenters(), "at our start")

    def compare_newly_readable(self, namespaces: Collection[str]) -> None:
        """The same for the scopes that include these namespaces, now that they can be read."""
        with self.planner.lock:
            if self._compared is not None:
                what = "when its namespaces could be read"
                self._mark_suspect(self.planner.consul_state.listed_datacenters(), what, namespaces)

    def _mark_suspect(self, datacenters: Collection[str], when: str, readable: Collection[str] = ()) -> None:
        """A Consul that lacks most of what Kubernetes has of it may have been rebuilt while no bridge watched it.

        Decided once for each datacenter, with its first listing, however late that comes; and again for those in whose
        sums namespaces count that are `readable` now. Each scope of the guard is decided separately, by what has ready
        endpoints, so a Service that asks for something missing delays no other scope. Under the lock, so that nothing
        is planned before.
        """
        together: dict[Scope, set[Target]] = {}
        for target, scope in self.ready_targets().items():
            together.setdefault(scope, set()).add(target)
        consul_state, now = self.planner.consul_state, self.clock()
        for scope, targets in together.items():
            if readable and not any(target.namespace in readable for target in targets):
                continue
            for datacenter in datacenters:
                missing, owned = consul_state.missing(datacenter, targets)
                if missing * 2 > owned:
                    sign = f"{when} it lists {owned - missing} of the {owned} services that are mirrored"
                    self.planner.guard.rebuilt(datacenter, now, sign, scope)
        if self._compared is not None:
            self._compared.update(datacenters)


class Subscriptions:
    """Subscribes the catalog to the wanted services."""

    def __init__(self, planner: Planner, catalog: Catalog) -> None:
        self._planner = planner
        self._catalog = catalog

    def commit(self) -> None:
        """Watch exactly the services that are wanted now; a datacenter is asked from its first wanted service on."""
        with self._planner.lock:
            added, removed = self._planner.consul_state.commit_subscriptions()
            datacenters = self._planner.consul_state.active_datacenters()
        self._catalog.start(datacenters)
        if added or removed:
            self._catalog.want(added, removed)

    def answered(self) -> bool:
        """Whether every wanted service was read, or could not be."""
        with self._planner.lock:
            consul_state = self._planner.consul_state
            return bool(consul_state.listings_answered() and not consul_state.pending_reads())
