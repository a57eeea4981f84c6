"""Direct watches: one blocking query per service, on so many connections, for the services that changed most recently.

A watch is given to another service only when its query has returned: a query that is cut off keeps its place among
Consul's 200 connections until its wait is over. A service that loses its watch is read once more, so that nothing
falls between the watch and the doorbells.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from bridge.consul.board import Board, Entry
from bridge.consul.client import ConsulClient
from bridge.consul.pace import Throttle
from bridge.consul.watch import Watch

RECENT = 4
"""Services remembered as recently changed, per slot."""

IDLE_SECONDS = 5.0
"""A slot without a service keeps its thread and connection for so long."""


@dataclass(slots=True, eq=False)
class Slot:
    """One connection and its thread."""

    number: int
    client: ConsulClient
    entry: Entry | None = None
    thread: threading.Thread | None = None


class DirectWatches:
    """The slots, and who has them. Any thread."""

    def __init__(
        self,
        name: str,
        board: Board,
        throttle: Throttle,
        make_client: Callable[[], ConsulClient],
        make_watch: Callable[[ConsulClient, Entry], Watch],
        released: Callable[[Entry], None],
        failed: Callable[[BaseException], None],
        stop: threading.Event,
    ) -> None:
        self._name = name
        self._board = board
        self._throttle = throttle
        self._make_client = make_client
        self._make_watch = make_watch
        self._released = released
        self._failed = failed
        self._stop = stop
        self._changed = threading.Condition()
        self._slots: list[Slot] = []
        self._free: set[Slot] = set()
        self._waiting: OrderedDict[Entry, None] = OrderedDict()
        self._recent: OrderedDict[Entry, None] = OrderedDict()

    # ------------------------------------------------------------------ who is to have one

    def add(self, entries: list[Entry]) -> list[Entry]:
        """New services: as many as there are free slots get one at once. Returns the others."""
        rest = []
        with self._changed:
            for entry in sorted(entries, key=lambda e: e.covered):  # those without doorbells first
                slot = self._free_slot()
                if slot is None:
                    self._waiting[entry] = None
                    rest.append(entry)
                else:
                    self._give(slot, entry)
        return rest

    def remove(self, entries: list[Entry]) -> None:
        """These are no longer wanted. Their slots are free when their queries have returned."""
        with self._changed:
            for entry in entries:
                self._waiting.pop(entry, None)
                self._recent.pop(entry, None)

    def changed(self, entry: Entry) -> None:
        """A service changed: it is the next to get a slot, and keeps the one that it has."""
        with self._changed:
            self._recent.pop(entry, None)
            if entry.removed:
                return
            self._recent[entry] = None
            while len(self._recent) > RECENT * max(self._throttle.total, 1):
                self._recent.popitem(last=False)

    def grown(self) -> None:
        """The throttle allows more slots again."""
        with self._changed:
            self._fill()
            self._changed.notify_all()

    def _fill(self) -> None:
        """Those who wait get what slots are free: the thread of a free one may have ended."""
        while (entry := self._next()) is not None and (slot := self._free_slot()) is not None:
            self._give(slot, entry)

    def _free_slot(self) -> Slot | None:
        allowed = [slot for slot in self._free if slot.number < self._throttle.limit]
        if allowed:
            return min(allowed, key=lambda s: s.number)
        if len(self._slots) < min(self._throttle.limit, self._throttle.total):
            slot = Slot(len(self._slots), self._make_client())
            self._slots.append(slot)
            return slot
        return None

    def _give(self, slot: Slot, entry: Entry) -> None:
        slot.entry = entry
        self._board.assign(entry, True)
        self._waiting.pop(entry, None)
        self._free.discard(slot)
        if slot.thread is None and not self._stop.is_set():
            name = f"{self._name}-{slot.number}"
            slot.thread = threading.Thread(target=self._run, args=(slot,), name=name, daemon=True)
            slot.thread.start()
        self._changed.notify_all()

    def _next(self) -> Entry | None:
        """Who has waited for a slot with the best right to it."""
        for entry in reversed(self._recent):
            if not entry.assigned and not entry.removed:
                return entry
        return next(iter(self._waiting), None)

    # ------------------------------------------------------------------ a slot's thread

    def _run(self, slot: Slot) -> None:
        try:
            while (entry := self._await_entry(slot)) is not None:
                watch = self._make_watch(slot.client, entry)
                while not self._stop.is_set() and self._keeps(slot, entry):
                    watch.step()
                self._release(slot, entry)
        except BaseException as error:  # noqa: BLE001 - a thread that dies ends the process
            self._failed(error)

    def _await_entry(self, slot: Slot) -> Entry | None:
        with self._changed:
            while not self._stop.is_set():
                if slot.entry is not None:
                    return slot.entry
                if slot.number < self._throttle.limit:
                    entry = self._next()
                    if entry is not None:
                        self._give(slot, entry)
                        continue
                else:
                    slot.client.disconnect()
                self._free.add(slot)
                if not self._changed.wait(IDLE_SECONDS) and slot.entry is None:
                    slot.client.disconnect()
                    slot.thread = None
                    break
            return None

    def _keeps(self, slot: Slot, entry: Entry) -> bool:
        """Whether the slot goes on with this service, now that its query has returned."""
        if entry.removed or slot.number >= self._throttle.limit:
            return False
        with self._changed:
            if not self._waiting:
                return True
            for other in reversed(self._recent):
                if other is entry:
                    return True  # nobody without a slot changed later
                if not other.assigned and not other.removed:
                    return False
            return True

    def _release(self, slot: Slot, entry: Entry) -> None:
        with self._changed:
            slot.entry = None
            self._free.add(slot)
            self._board.assign(entry, False)
            if not entry.removed:
                self._waiting[entry] = None
            self._fill()
        if not entry.removed and not self._stop.is_set():
            self._released(entry)

    # ------------------------------------------------------------------ the end, and figures

    def wake(self, entry: Entry | None = None, opened_before: float = math.inf) -> None:
        """End the queries that wait (or that of one service): what they wait for means nothing any more.

        They are asked again. `opened_before`: only those on connections that are older.
        """
        for slot in tuple(self._slots):
            if entry is None or slot.entry is entry:
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
        """Slots that have a service."""
        return sum(slot.entry is not None for slot in tuple(self._slots))

    @property
    def connected(self) -> int:
        """Slots whose connection is open."""
        return sum(slot.client.connected for slot in tuple(self._slots))
