"""Direct watches: one blocking query per service, on so many connections, for the services that changed most recently.

A watch is given to another service only when its query has returned: a query that is cut off keeps its place among
Consul's 200 connections until its wait is over. A service that loses its watch is read once more, so that nothing
falls between the watch and the aggregate watches.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bridge.consul.client import ConsulClient
from bridge.consul.ratelimit import AdaptiveConcurrency
from bridge.consul.subscriptions import Subscription, SubscriptionTable
from bridge.consul.watch import Watch
from bridge.threads import guarded_thread

RECENT = 4
"""Services remembered as recently changed, per slot."""

IDLE_SECONDS = 5.0
"""A slot without a service keeps its thread and connection for so long."""


@dataclass(slots=True, eq=False)
class Slot:
    number: int
    client: ConsulClient
    subscription: Subscription | None = None
    thread: threading.Thread | None = None


@dataclass(eq=False, repr=False)
class DirectWatches:
    """The slots, and who has them. Any thread."""

    name: str
    table: SubscriptionTable
    concurrency: AdaptiveConcurrency
    make_client: Callable[[], ConsulClient]
    make_watch: Callable[[ConsulClient, Subscription], Watch]
    lost_watch: Callable[[Subscription], None]
    failed: Callable[[BaseException], None]
    stop: threading.Event

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._slots: list[Slot] = []
        self._free: set[Slot] = set()
        self._waiting: OrderedDict[Subscription, None] = OrderedDict()
        self._recent: OrderedDict[Subscription, None] = OrderedDict()

    # ------------------------------------------------------------------ who is to have one

    def add(self, subscriptions: list[Subscription]) -> list[Subscription]:
        """New services: as many as there are free slots get one at once. Returns the rest."""
        rest = []
        with self._changed:
            # those without aggregate watches first
            for subscription in sorted(subscriptions, key=lambda one: one.covered_by_aggregate):
                slot = self._free_slot()
                if slot is None:
                    self._waiting[subscription] = None
                    rest.append(subscription)
                else:
                    self._give(slot, subscription)
        return rest

    def remove(self, subscriptions: list[Subscription]) -> None:
        """These are no longer wanted. Their slots are free when their queries have returned."""
        with self._changed:
            for subscription in subscriptions:
                self._waiting.pop(subscription, None)
                self._recent.pop(subscription, None)

    def changed(self, subscription: Subscription) -> None:
        """A service changed: it is the next to get a slot, and keeps the one that it has."""
        with self._changed:
            self._recent.pop(subscription, None)
            if subscription.removed:
                return
            self._recent[subscription] = None
            while len(self._recent) > RECENT * max(self.concurrency.total, 1):
                self._recent.popitem(last=False)

    def grown(self) -> None:
        with self._changed:
            self._fill()
            self._changed.notify_all()

    def _fill(self) -> None:
        """Those who wait get what slots are free: the thread of a free one may have ended."""
        while (subscription := self._next()) is not None and (slot := self._free_slot()) is not None:
            self._give(slot, subscription)

    def _free_slot(self) -> Slot | None:
        allowed = [slot for slot in self._free if slot.number < self.concurrency.limit]
        if allowed:
            return min(allowed, key=lambda s: s.number)
        if len(self._slots) < min(self.concurrency.limit, self.concurrency.total):
            slot = Slot(len(self._slots), self.make_client())
            self._slots.append(slot)
            return slot
        return None

    def _give(self, slot: Slot, subscription: Subscription) -> None:
        slot.subscription = subscription
        self.table.assign(subscription, True)
        self._waiting.pop(subscription, None)
        self._free.discard(slot)
        if slot.thread is None and not self.stop.is_set():
            slot.thread = guarded_thread(f"{self.name}-{slot.number}", partial(self._run, slot), self.failed)
            slot.thread.start()
        self._changed.notify_all()

    def _next(self) -> Subscription | None:
        """The waiting service that gets the next slot: the last that changed, else the first in the queue."""
        for subscription in reversed(self._recent):
            if not subscription.watch_assigned and not subscription.removed:
                return subscription
        return next(iter(self._waiting), None)

    # ------------------------------------------------------------------ a slot's thread

    def _run(self, slot: Slot) -> None:
        while (subscription := self._await_subscription(slot)) is not None:
            watch = self.make_watch(slot.client, subscription)
            while not self.stop.is_set() and self._keeps(slot, subscription):
                watch.step()
            self._take_back(slot, subscription)

    def _await_subscription(self, slot: Slot) -> Subscription | None:
        with self._changed:
            while not self.stop.is_set():
                if slot.subscription is not None:
                    return slot.subscription
                if slot.number < self.concurrency.limit:
                    subscription = self._next()
                    if subscription is not None:
                        self._give(slot, subscription)
                        continue
                else:
                    slot.client.disconnect()
                self._free.add(slot)
                if not self._changed.wait(IDLE_SECONDS) and slot.subscription is None:
                    slot.client.disconnect()
                    slot.thread = None
                    break
            return None

    def _keeps(self, slot: Slot, subscription: Subscription) -> bool:
        """Whether the slot goes on with this service, now that its query has returned."""
        if subscription.removed or slot.number >= self.concurrency.limit:
            return False
        with self._changed:
            if not self._waiting:
                return True
            for other in reversed(self._recent):
                if other is subscription:
                    return True  # no service without a slot changed later
                if not other.watch_assigned and not other.removed:
                    return False
            return True

    def _take_back(self, slot: Slot, subscription: Subscription) -> None:
        with self._changed:
            slot.subscription = None
            self._free.add(slot)
            self.table.assign(subscription, False)
            if not subscription.removed:
                self._waiting[subscription] = None
            self._fill()
        if not subscription.removed and not self.stop.is_set():
            self.lost_watch(subscription)

    # ------------------------------------------------------------------ the end, and figures

    def wake(self, subscription: Subscription | None = None, opened_before: float = math.inf) -> None:
        """End the queries that wait (or that of one service): what they wait for means nothing any more.

        They are asked again. `opened_before`: only those on connections that are older.
        """
        for slot in tuple(self._slots):
            if subscription is None or slot.subscription is subscription:
                slot.client.wake(opened_before)

    def close(self) -> list[threading.Thread]:
        """End all queries (`stop` is set); returns the threads to join."""
        with self._changed:
            self._changed.notify_all()
            slots = tuple(self._slots)
        for slot in slots:
            slot.client.close()
        return [slot.thread for slot in slots if slot.thread is not None]

    @property
    def in_use(self) -> int:
        return sum(slot.subscription is not None for slot in tuple(self._slots))

    @property
    def connected(self) -> int:
        return sum(slot.client.connected for slot in tuple(self._slots))
