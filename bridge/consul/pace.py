"""How often: token buckets, so that no stream of changes turns a watch into a hot loop. Pure but for the clock passed in."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable


class Bucket:
    """A token bucket: `burst` tokens at once, `rate` per second afterwards. Thread-safe.

    `take` never refuses: it books the tokens and says how many seconds to wait before going on.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = burst
        self._at = clock()
        self._lock = threading.Lock()

    def take(self, tokens: float = 1.0) -> float:
        """Book `tokens`; returns the seconds until they are there."""
        with self._lock:
            now = self._clock()
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now
            self._tokens -= tokens
            return max(-self._tokens / self._rate, 0.0)


def jittered(seconds: float, share: float = 0.1) -> float:
    """`seconds`, shortened by up to `share` of it, so that what began together does not stay together."""
    return seconds * (1.0 - share * random.random())  # noqa: S311 - no secret depends on it
