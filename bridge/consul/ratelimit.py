"""How often: token buckets, so that no stream of changes turns a watch into a hot loop. The clock is passed in."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable


class TokenBucket:
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


def jittered(seconds: float) -> float:
    """`seconds`, shortened by up to a tenth, so that what began together does not stay together."""
    return seconds * (1.0 - 0.1 * random.random())  # noqa: S311 - no secret depends on it


class AdaptiveRateLimiter:
    """How many index probes may be sent a second: any number, until Consul says 429. Thread-safe.

    Then a few, half as many each time that it says so again, and half as many more each quiet while; without limit
    again when there is none to be felt.
    """

    FIRST, LEAST, MOST = 128.0, 1.0, 4096.0
    GROW_EVERY_SECONDS = 5.0

    def __init__(self, at_once: int, clock: Callable[[], float]) -> None:
        self._at_once = at_once
        self._clock = clock
        self._rate: float | None = None
        self._free_at = 0.0
        self._changed_at = 0.0
        self._lock = threading.Lock()

    def slower(self) -> None:
        with self._lock:
            self._rate = self.FIRST if self._rate is None else max(self._rate / 2, self.LEAST)
            self._free_at = self._changed_at = self._clock()

    def book(self, wanted: int) -> tuple[int, float]:
        """How many of `wanted` probes may be sent together, and after how many seconds; they count as sent."""
        with self._lock:
            now = self._clock()
            while self._rate is not None and now - self._changed_at >= self.GROW_EVERY_SECONDS:
                self._changed_at += self.GROW_EVERY_SECONDS
                self._rate = self._rate * 1.5 if self._rate < self.MOST else None
            if self._rate is None:
                return wanted, 0.0
            count = max(min(wanted, self._at_once, int(self._rate / 4)), 1)
            begin = max(self._free_at, now)
            self._free_at = begin + count / self._rate
            return count, begin - now


class AdaptiveConcurrency:
    """How many of `total` may be used: a quarter less each time that Consul says 429, one more each quiet while.

    Thread-safe. `limit` never falls below 0; what it counts is for the caller to enforce.
    """

    SHRINK_EVERY_SECONDS = 5.0
    GROW_EVERY_SECONDS = 15.0
    QUIET_SECONDS = 30.0

    def __init__(self, total: int, clock: Callable[[], float]) -> None:
        self.total = total
        self.limit = total
        self._clock = clock
        self._last: float | None = None
        self._shrunk_at: float | None = None
        self._grown_at = 0.0
        self._lock = threading.Lock()

    def throttled(self) -> None:
        with self._lock:
            now = self._clock()
            self._last = now
            if self._shrunk_at is None or now - self._shrunk_at >= self.SHRINK_EVERY_SECONDS:
                self._shrunk_at = now
                self.limit = max(min(self.limit - 1, self.limit * 3 // 4), 0)

    def tick(self) -> bool:
        """Grow when it was quiet for long enough; returns whether it did."""
        with self._lock:
            now = self._clock()
            if self.limit >= self.total or self._last is None or now - self._last < self.QUIET_SECONDS:
                return False
            if now - self._grown_at < self.GROW_EVERY_SECONDS:
                return False
            self._grown_at = now
            self.limit += 1
            return True

    @property
    def seconds_since(self) -> float | None:
        return None if self._last is None else self._clock() - self._last


class WaitLimit:
    """How long a query may wait on this way to Consul: as long as is asked for, until the way proves to be shorter.

    A proxy or balancer gives up on a query that waits for longer than its own timeout: with 504, or by closing. When
    that happens again and again after about the same time, queries wait for less from then on. Thread-safe.
    """

    LIKE, SLACK_SECONDS = 0.1, 0.5
    """Two times are about the same when they differ by no more than this share and so many seconds."""

    SHARE, LEAST_SECONDS = 0.85, 1.0
    """How much of that time a query waits then (Consul itself adds up to a sixteenth), and never less than this."""

    GATEWAY_ROUNDS, RESET_ROUNDS = 2, 3
    """How often it must happen: a 504 says what it is, a reset may be a restart of the agent."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._limit: float | None = None
        self._after = 0.0
        self._rounds = 0
        self._round_at = float("-inf")
        self._lock = threading.Lock()

    def of(self, wait_seconds: float) -> float:
        """How long a query that may wait so long is to wait."""
        return wait_seconds if self._limit is None else min(wait_seconds, self._limit)

    def cut_off(self, lasted: float, asked: float, *, gateway: bool) -> None:
        """A query that was to wait for `asked` seconds was cut off by an intermediary after `lasted`."""
        if not self.LEAST_SECONDS < lasted < asked:
            return
        with self._lock:
            now = self._clock()
            if abs(lasted - self._after) > self.LIKE * lasted + self.SLACK_SECONDS:
                self._after, self._rounds = lasted, 1
            elif now - self._round_at < lasted / 2:
                return  # many queries that began together are cut off together: that is once
            else:
                self._rounds += 1
            self._round_at = now
            if self._rounds >= (self.GATEWAY_ROUNDS if gateway else self.RESET_ROUNDS):
                self._limit = max(min(self._after, lasted) * self.SHARE, self.LEAST_SECONDS)
                self._rounds = 0

    def answered(self, lasted: float) -> None:
        with self._lock:
            if lasted > self._after + self.LIKE * self._after + self.SLACK_SECONDS:
                self._rounds = 0

    @property
    def note(self) -> str:
        """What to say of it; "" while queries wait for as long as they are asked to."""
        if self._limit is None:
            return ""
        return (
            f"something in front of Consul ends queries after about {self._after:.0f} s: they wait for "
            f"{self._limit:.1f} s from now on. Raise its timeout above consul.wait, or lower consul.wait"
        )
