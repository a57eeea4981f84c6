"""How writes back off when the API server as a whole fails: how many may go on, and when.

What one object waits for by itself is in `item_backoff`. The waits come from `bridge.retry` (tenacity) and end at a
shutdown. This module must not know what is being written.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import Enum, auto

from bridge.errors import ThrottledError, TransientError
from bridge.retry import RetryPolicy

THROTTLED_SECONDS = 10.0
"""A 429 is no fault by itself; when the server has answered nothing else for so long, nothing is written, and it is."""


class WriteResult(Enum):
    """What a request says about the server, unless it met a fault of the server."""

    WRITTEN = auto()
    ANSWERED = auto()
    NOTHING = auto()


class CircuitBreaker:
    """Lets up to `limit` writers through while it is closed, a single one that probes the server while it is open.

    | result | what happens |
    | --- | --- |
    | written | closed (writes go through); a reduced limit grows by one per round of successes |
    | answered: this object was refused (409, 403, 422) | closed; nothing was written, so the limit does not grow |
    | nothing: not sent, or the object is at fault | unchanged: the write says nothing about the server |
    | 429 | the limit is halved, and no write begins until the requested pause is over |
    | any other transient fault of the server | open; after the backoff ONE caller may try (half-open) |
    """

    def __init__(
        self, limit: int, policy: RetryPolicy, stop: threading.Event, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._full = limit
        self._limit = float(limit)
        self._policy = policy
        self._stop = stop
        self._clock = clock
        self._changed = threading.Condition()
        self._inside = 0
        self._failures = 0
        self._written = 0
        self._not_before = 0.0
        self._throttled_at: float | None = None
        self._reason: str | None = None

    def enter(self) -> bool:
        """Wait until a write may begin; False when the bridge is stopping. The caller must `leave` after every True."""
        with self._changed:
            while not self._stop.is_set():
                pause = self._not_before - self._clock()
                places = 1 if self._failures else max(1, int(self._limit))
                if pause <= 0 and self._inside < places:
                    self._inside += 1
                    return True
                self._changed.wait(min(pause, 1.0) if pause > 0 else 1.0)
        return False

    def leave(self, result: WriteResult | TransientError) -> None:
        """End a write and report its result; an error is a fault of the server itself."""
        with self._changed:
            self._inside -= 1
            now = self._clock()
            match result:
                case WriteResult.NOTHING:
                    pass
                case WriteResult():
                    self._failures = 0
                    self._reason = self._throttled_at = None
                    if result is WriteResult.WRITTEN:
                        self._written += 1
                        self._limit = min(self._full, self._limit + 1 / self._limit)
                case ThrottledError():
                    self._limit = max(1.0, self._limit / 2)
                    pause = result.retry_after_seconds or self._policy.wait_seconds(1)
                    self._not_before = max(self._not_before, now + pause)
                    self._reason = str(result)
                    self._throttled_at = now if self._throttled_at is None else self._throttled_at
                case _:
                    # several writers fail together when a server goes away: that is one failure, not sixteen
                    if now >= self._not_before:
                        self._failures += 1
                        self._not_before = now + self._policy.wait_seconds(self._failures, result)
                    self._reason = str(result)
            self._changed.notify_all()

    def wake(self) -> None:
        """Wake waiting callers, so that they check the stop event."""
        with self._changed:
            self._changed.notify_all()

    @property
    def trouble(self) -> str | None:
        """Why writes do not succeed; None while they do, also at a reduced rate."""
        with self._changed:
            at = self._throttled_at
            if self._failures or (at is not None and self._clock() - at >= THROTTLED_SECONDS):
                return self._reason
            return None

    @property
    def failing(self) -> bool:
        """Whether the server did not answer, or refused us, when something was last to be written; 429 is an answer."""
        with self._changed:
            return self._failures > 0

    def mended(self) -> None:
        """The server was seen to answer, although nothing was to be written."""
        with self._changed:
            self._failures = 0
            self._reason = self._throttled_at = None
            self._changed.notify_all()

    @property
    def free(self) -> bool:
        """Whether the breaker is closed and a write would begin at once."""
        with self._changed:
            well = self._reason is None and self._not_before <= self._clock()
            return well and self._inside < int(self._limit)

    @property
    def written(self) -> int:
        with self._changed:
            return self._written
