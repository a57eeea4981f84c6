"""One blocking query as a loop: a finite, tested body (`Watch.step`) in an infinite shell of three lines.

The rules are those of Consul's page on blocking queries and of what was measured (docs/consul.md, Reading and waiting):

- after any error the next read is a plain one: with an index larger than Consul's own a query sleeps through changes
- an index below 1 is not sent back: it would return at once, every time
- a query of the catalog that returns before its time with the index that was sent: Consul gave its state up for
  another one (a snapshot was restored), and nothing else says so; treated like an index that went backwards
- an index that went backwards, within one query_backend, is a Consul that lost something (or a server that lags): the
  answer is not used, the datacenter is checked, the next read is plain
- never hot: every request is paid for from token buckets, errors are backed off with jitter
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from bridge.consul.client import STREAMING, Answer, ConsulClient
from bridge.consul.ratelimit import TokenBucket, jittered
from bridge.errors import BridgeError, CancelledError, PermanentError, TransientError
from bridge.retry import RetryPolicy

PERMANENT_RETRY = RetryPolicy(initial_seconds=5.0, max_seconds=60.0)
"""For what only a user can fix (no rights, bad filter): asked again, but slowly."""


@dataclass(slots=True)
class Position:
    """Where a blocking query stands: the index to send, and the last ones seen, apart by query_backend.

    `plain` says whether the last answer was one to a plain read.
    """

    index: int = 0
    plain: bool = True
    _seen: dict[str, int] = field(default_factory=dict)

    def failed(self) -> None:
        self.index = 0

    def answered(self, answer: Answer) -> bool:
        """Take an answer's index. False: it went backwards, the answer must not be used."""
        self.plain = self.index == 0
        before = self._seen.get(answer.query_backend, 0)
        self._seen[answer.query_backend] = answer.index
        if answer.index < before:
            self.index = 0
            return False
        self.index = answer.index
        return True


class ConsistencyGate(Protocol):
    """What a watch must know of its datacenter: whether what is read there may be believed just now."""

    def mark_suspect(self, reason: str, *, went_back: bool = False) -> None:
        """Something broke, or an index `went_back`: Consul may be another one."""

    def verify(self, client: ConsulClient) -> None:
        """Make sure, before anything is believed again; raises what the question raised."""

    @property
    def suspect(self) -> bool:
        """Whether answers must not be used before `verify`."""

    @property
    def rebuilds(self) -> int:
        """How often Consul was found to be another one: no index from before means anything."""


class Step(Enum):
    TAKEN = auto()
    DISCARDED = auto()
    FAILED = auto()


class Watch:
    """Ask, hand over, ask again. One thread; `stop` ends every wait, closing the client ends the request.

    `ask(index, wait)` makes the request; `take(answer)` gets every usable answer and returns whether it could use it
    (if not, a plain read follows); `fail(error)` gets every failure. `sleep` waits at most so many seconds, less when
    the wait is no longer worth it (the end, or Consul is back).
    """

    def __init__(
        self,
        *,
        ask: Callable[[int, float], Answer],
        take: Callable[[Answer], bool],
        fail: Callable[[BridgeError], None],
        gate: ConsistencyGate,
        client: ConsulClient,
        sleep: Callable[[float], None],
        stop: threading.Event,
        buckets: Sequence[TokenBucket],
        retry: RetryPolicy,
        wait_seconds: float,
        byte_bucket: TokenBucket | None = None,
    ) -> None:
        self._ask = ask
        self._take = take
        self._fail = fail
        self._gate = gate
        self._client = client
        self._sleep = sleep
        self._stop = stop
        self._buckets = tuple(buckets)
        self._bytes = byte_bucket
        self._retry = retry
        self._wait_seconds = wait_seconds
        self._attempt = 0
        self._rebuilds = gate.rebuilds
        self.position = Position()

    def run(self) -> None:
        """Step until `stop`. Nothing but a bug leaves this by an exception."""
        while not self._stop.is_set():
            self.step()

    def step(self) -> Step:
        pause = max((bucket.take() for bucket in self._buckets), default=0.0)
        if pause and self._stop.wait(pause):
            return Step.DISCARDED
        try:
            if self._gate.suspect:
                self.position.failed()
                self._gate.verify(self._client)
            if self._rebuilds != self._gate.rebuilds:  # while this thread was busy elsewhere
                self._rebuilds = self._gate.rebuilds
                self.position.failed()
            asked, wait, began = self.position.index, jittered(self._wait_seconds), time.monotonic()
            answer = self._ask(asked, wait)
            if asked and answer.index == asked and answer.query_backend != STREAMING and _early(began, wait):
                self._gate.mark_suspect("a query returned early and had nothing new", went_back=True)
            return self._answered(answer)
        except CancelledError:
            self.position.failed()
            return Step.DISCARDED
        except (TransientError, PermanentError) as error:
            self._failed(error)
            return Step.FAILED

    def _answered(self, answer: Answer) -> Step:
        if not self.position.answered(answer):
            self._gate.mark_suspect("Consul's index went backwards", went_back=True)
        if self._gate.suspect or self._rebuilds != self._gate.rebuilds:
            self.position.failed()
            return Step.DISCARDED
        self._attempt = 0
        if not self._take(answer):
            self.position.failed()
            return Step.DISCARDED
        if self._bytes is not None:
            pause = self._bytes.take(answer.size)
            if pause:
                self._stop.wait(pause)
        return Step.TAKEN

    def _failed(self, error: BridgeError) -> None:
        self.position.failed()
        self._attempt += 1
        self._fail(error)
        policy = PERMANENT_RETRY if isinstance(error, PermanentError) else self._retry
        self._sleep(policy.wait_seconds(self._attempt, error))


def _early(began: float, wait: float) -> bool:
    """Whether a query that `began` then has returned before its time."""
    return time.monotonic() - began < 0.9 * wait
