"""The work that is waiting, one entry per key however often it changed.

The guarantee is that of client-go's workqueue: a key that is added while a worker holds it is worked on again
afterwards, never by two workers at once; a key that is added ten times while it waits is worked on once. Priorities and
delays are additions: the lowest priority number goes first, keys of one priority in the order of their arrival. A key
that has waited for longer than its priority's handicap gets every fourth turn, so that a steady stream of urgent keys
starves no other. (Arrival plus a handicap would not do: a flip would wait behind the 5,000 creations of a first sync.)
Keys of one priority have lanes, which take turns: behind ten thousand keys of one lane a key of another waits for one.
The queue must not know what a key is; its creator passes the function that gives a key's lane.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


HANDICAP_SECONDS = 1.0
"""How long a key waits for more urgent ones, for each step of its priority number, before it is overdue."""

FAIR = 4
"""Every so many keys an overdue one goes first."""


class _Lanes(Generic[K]):
    """Keys that are due, each with the time since when, in lanes that take turns."""

    def __init__(self, lane: Callable[[K], Hashable]) -> None:
        self._lane = lane
        self._keys: dict[Hashable, deque[tuple[float, K]]] = {}

    def __bool__(self) -> bool:
        return bool(self._keys)

    def append(self, since: float, key: K) -> None:
        self._keys.setdefault(self._lane(key), deque()).append((since, key))

    def first(self) -> tuple[float, K]:
        """The key whose turn it is."""
        return next(iter(self._keys.values()))[0]

    def pop(self) -> K:
        """The same, taken out; the next turn is another lane's."""
        _, key = self._drop()
        lane = self._lane(key)
        if lane in self._keys:
            self._keys[lane] = self._keys.pop(lane)
        return key

    def drop(self) -> None:
        """Take the first out without a turn for it."""
        self._drop()

    def _drop(self) -> tuple[float, K]:
        lane, keys = next(iter(self._keys.items()))
        found = keys.popleft()
        if not keys:
            del self._keys[lane]
        return found


class WorkQueue(Generic[K]):
    """A coalescing queue with priorities, lanes and delays. All methods may be called from any thread."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, lane: Callable[[K], Hashable] = lambda _key: None
    ) -> None:
        self._clock = clock
        self._lane = lane
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        self._returned = threading.Condition(lock)  # apart: no worker that waits for work is woken by work that ends
        self._order = 0
        self._ready: dict[int, _Lanes[K]] = {}
        self._turns = 0
        self._delayed: list[tuple[float, int, int, K]] = []
        self._waiting: dict[K, tuple[int, float]] = {}
        self._working: set[K] = set()
        self._again: dict[K, tuple[int, float]] = {}
        self._closed = False

    def add(self, key: K, priority: int = 0, delay_seconds: float = 0.0) -> None:
        """Ask for work on `key`. When it already waits, the more urgent of the two requests counts."""
        with self._changed:
            if self._closed:
                return
            due = self._clock() + delay_seconds if delay_seconds > 0 else 0.0
            if key in self._working:
                self._again[key] = _sooner(self._again.get(key), (priority, due))
                return
            self._enqueue(key, priority, due)

    def claim(self, key: K, at_most: int) -> bool:
        """Take this very key, the caller's until `done`.

        False when a worker holds it, other work is due, or workers hold `at_most` keys already.
        """
        with self._changed:
            self._promote(self._clock())
            if self._closed or self._due() or key in self._working or len(self._working) >= at_most:
                return False
            self._waiting.pop(key, None)
            self._working.add(key)
            return True

    def take(self, timeout_seconds: float | None = None) -> K | None:
        """The next key, which is the caller's until `done`; None at the timeout or when the queue is closed."""
        deadline = None if timeout_seconds is None else self._clock() + timeout_seconds
        with self._changed:
            while not self._closed:
                now = self._clock()
                self._promote(now)
                if due := self._due():
                    key = self._ready[self._turn(due, now)].pop()
                    del self._waiting[key]
                    self._working.add(key)
                    return key
                pause = self._delayed[0][0] - now if self._delayed else None
                if deadline is not None:
                    left = deadline - now
                    if left <= 0:
                        return None
                    pause = left if pause is None else min(pause, left)
                self._changed.wait(pause)
        return None

    def done(self, key: K) -> None:
        """Give `key` back; it is queued again when it was added meanwhile."""
        with self._changed:
            self._working.discard(key)
            again = self._again.pop(key, None)
            if again is not None and not self._closed:
                self._enqueue(key, *again)
            self._returned.notify_all()

    def close(self) -> None:
        """Wake every waiting worker; no key is given out any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._returned.notify_all()

    def wait_returned(self) -> None:
        """Wait until no worker holds a key. Only after `close`."""
        with self._changed:
            while self._working:
                self._returned.wait()

    def __len__(self) -> int:
        """Keys that wait, the delayed ones included; keys that a worker holds are not counted."""
        with self._changed:
            return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether something else is due now (used to put the least urgent work last)."""
        with self._changed:
            return bool(self._due())

    def _due(self) -> list[int]:
        """The priorities of which something is due, the most urgent first."""
        for priority, keys in self._ready.items():
            while keys and self._waiting.get(keys.first()[1]) != (priority, 0.0):
                keys.drop()  # an entry that a more urgent request replaced
        return sorted(priority for priority, keys in self._ready.items() if keys)

    def _turn(self, due: list[int], now: float) -> int:
        """The priority that is served next."""
        overdue = [(self._ready[p].first()[0] + p * HANDICAP_SECONDS, p) for p in due[1:]]
        first = min(overdue, default=(now + 1.0, 0))
        if first[0] > now:
            self._turns = 0
            return due[0]
        self._turns = (self._turns + 1) % FAIR
        return due[0] if self._turns else first[1]

    def _enqueue(self, key: K, priority: int, due: float) -> None:
        wish = _sooner(self._waiting.get(key), (priority, due))
        if wish == self._waiting.get(key):
            return
        self._waiting[key] = wish
        self._order += 1
        if wish[1] > 0.0:
            heapq.heappush(self._delayed, (wish[1], self._order, wish[0], key))
        else:
            self._lanes(wish[0]).append(self._clock(), key)
        self._changed.notify()

    def _lanes(self, priority: int) -> _Lanes[K]:
        lanes = self._ready.get(priority)
        if lanes is None:
            lanes = self._ready[priority] = _Lanes(self._lane)
        return lanes

    def _promote(self, now: float) -> None:
        while self._delayed and self._delayed[0][0] <= now:
            due, _, priority, key = heapq.heappop(self._delayed)
            if self._waiting.get(key) == (priority, due):
                self._waiting[key] = (priority, 0.0)
                self._lanes(priority).append(due, key)


def _sooner(one: tuple[int, float] | None, other: tuple[int, float]) -> tuple[int, float]:
    """The more urgent of two requests: the lower priority number, the earlier due time."""
    if one is None:
        return other
    return min(one[0], other[0]), min(one[1], other[1])
