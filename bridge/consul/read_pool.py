"""A few threads with a connection each, for all the short reads of a datacenter: the urgent ones first.

Knows nothing of what is read. A job gets the thread's client; what it raises is a bug, except CancelledError.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable
from enum import IntEnum
from functools import partial

from bridge.consul.client import ConsulClient
from bridge.errors import CancelledError
from bridge.threads import guarded_thread

Job = Callable[[ConsulClient], None]


class Urgency(IntEnum):
    """Order of the jobs that wait: what was announced, first reads, polls."""

    NOW = 0
    FIRST = 1
    POLL = 2


FAIR = 8
"""Every so many jobs the least urgent one goes first: a stream of announcements does not keep all others waiting."""


class ReadPool:
    """The threads and their queue. `put` and `close` may be called from any thread."""

    def __init__(
        self,
        clients: list[ConsulClient],
        name: str,
        ready: Callable[[ConsulClient], bool],
        failed: Callable[[BaseException], None],
        clock: Callable[[], float],
        begin: Callable[[ConsulClient], None] = lambda _client: None,
    ) -> None:
        """`begin` is done by each thread with its client before anything else."""
        self._begin = begin
        self._ready = ready
        self._failed = failed
        self._clock = clock
        self._waiting: tuple[deque[Job], ...] = tuple(deque() for _ in Urgency)
        self._later: list[tuple[float, int, Urgency, Job]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._taken = 0
        self.clients = clients
        self.threads = [
            guarded_thread(
                f"{name}-{n}",
                partial(self._run, client, Urgency.FIRST if n == 0 and len(clients) > 2 else Urgency.POLL),
                failed,
            )
            for n, client in enumerate(clients)
        ]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def close(self) -> None:
        """No job begins any more; the threads end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def put(self, urgency: Urgency, job: Job, delay_seconds: float = 0.0) -> None:
        """Do `job` when a thread is free, after `delay_seconds`."""
        with self._changed:
            if delay_seconds > 0:
                heapq.heappush(self._later, (self._clock() + delay_seconds, next(self._order), urgency, job))
            else:
                self._waiting[urgency].append(job)
            if delay_seconds > 0 or urgency is Urgency.POLL:
                self._changed.notify_all()
            else:
                self._changed.notify()

    def put_all(self, urgency: Urgency, jobs: Iterable[Job]) -> None:
        with self._changed:
            self._waiting[urgency].extend(jobs)
            self._changed.notify_all()

    def hurry(self) -> None:
        """What was to be done later is done as soon as a thread is free."""
        with self._changed:
            for _, _, urgency, job in sorted(self._later):
                self._waiting[urgency].append(job)
            self._later.clear()
            self._changed.notify_all()

    def __len__(self) -> int:
        return sum(len(jobs) for jobs in self._waiting)

    def _run(self, client: ConsulClient, upto: Urgency) -> None:
        self._begin(client)
        while (item := self._take(upto)) is not None:
            urgency, job = item
            try:
                if not self._ready(client):
                    self._put_back(urgency, job)
                    continue
                job(client)
            except CancelledError:
                self._put_back(urgency, job)

    def _turn(self) -> tuple[Urgency, ...]:
        """In which order the next job is looked for: first reads and polls go first in turns."""
        turn, of = divmod(self._taken + 1, FAIR)
        if of:
            return tuple(Urgency)
        return (Urgency.POLL, Urgency.FIRST, Urgency.NOW) if turn % 2 else (Urgency.FIRST, Urgency.POLL, Urgency.NOW)

    def _put_back(self, urgency: Urgency, job: Job) -> None:
        with self._changed:
            self._waiting[urgency].appendleft(job)
            self._changed.notify_all()

    def _take(self, upto: Urgency) -> tuple[Urgency, Job] | None:
        with self._changed:
            while not self._closed:
                now = self._clock()
                while self._later and self._later[0][0] <= now:
                    _, _, urgency, job = heapq.heappop(self._later)
                    self._waiting[urgency].append(job)
                for urgency in self._turn():
                    if urgency <= upto and self._waiting[urgency]:
                        self._taken += 1
                        return urgency, self._waiting[urgency].popleft()
                self._changed.wait(self._later[0][0] - now if self._later else None)
            return None
