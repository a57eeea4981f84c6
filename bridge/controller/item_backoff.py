"""When one object is tried again: after a write that failed, and after one that put it back.

`circuit_breaker` is the same for the API server as a whole; `RetryPolicySelector` decides which of the two an error
concerns. Nothing here waits: it computes delays, and the work queue applies them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

from bridge.controller.circuit_breaker import CircuitBreaker, WriteResult
from bridge.errors import BridgeError, CancelledError, CredentialsError, PermanentError, ThrottledError, TransientError
from bridge.retry import RetryPolicy

K = TypeVar("K", bound=Hashable)


class BackoffTable(Generic[K]):
    """Consecutive tries of a key that failed, and what to wait for it. An entry is forgotten at success."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._lock = threading.Lock()
        self._failures: dict[K, int] = {}

    def failed(self, key: K, error: BaseException | None = None) -> float:
        """Count a failure; seconds to wait before the next try."""
        with self._lock:
            count = self._failures[key] = self._failures.get(key, 0) + 1
        return self._policy.wait_seconds(count, error)

    def forget(self, key: K) -> None:
        """The key was written, or needs no work any more."""
        with self._lock:
            self._failures.pop(key, None)

    def __len__(self) -> int:
        with self._lock:
            return len(self._failures)


class RetryPolicySelector(Generic[K]):
    """Whether the server or the object caused a failed write, and when its key is tried again.

    | the error | result for the circuit breaker | the next try |
    | --- | --- | --- |
    | not sent: we are stopping, or another replica leads | nothing | none |
    | our credentials are refused | a fault of the server: true of every object | when the circuit breaker admits it |
    | a fault of the server, 429 | that fault | the same |
    | a fault of the server for one key again, while others were written | nothing | after the key's own backoff |
    | refused for good | the server answered | after the long backoff |
    | any other | the server answered | after the key's own backoff |
    """

    def __init__(self, breaker: CircuitBreaker, soon: RetryPolicy, late: RetryPolicy) -> None:
        """`soon`: backoff of a key; `late`: backoff of what is refused for good."""
        self._breaker = breaker
        self._soon: BackoffTable[K] = BackoffTable(soon)
        self._late: BackoffTable[K] = BackoffTable(late)
        self._suspects: dict[K, int] = {}

    def classify(self, key: K, error: BridgeError) -> WriteResult | TransientError:
        """What the error of a write says about the server; sets the error's `fault_of_server` accordingly.

        A server that fails for one object again, while other objects were written since, is well (an admission webhook
        may answer 500 for just this one) and must not be declared down.
        """
        if isinstance(error, CancelledError):
            return WriteResult.NOTHING
        if isinstance(error, CredentialsError):
            return TransientError(str(error))
        if not isinstance(error, TransientError) or not error.fault_of_server:
            return WriteResult.ANSWERED
        if isinstance(error, ThrottledError):
            return error
        written = self._breaker.written
        error.fault_of_server = self._suspects.get(key, written) == written
        self._suspects[key] = written
        return error if error.fault_of_server else WriteResult.NOTHING

    def delay_seconds(self, key: K, errors: Iterable[BridgeError]) -> float | None:
        """Seconds until `key` is tried again after these errors, 0 where the circuit breaker waits; None: not at all.

        However many objects of a key fail, a try counts once.
        """
        delays: list[float] = []
        counted: dict[BackoffTable[K], BridgeError] = {}
        for error in errors:
            if isinstance(error, CancelledError):
                continue
            if isinstance(error, CredentialsError) or (isinstance(error, TransientError) and error.fault_of_server):
                delays.append(0.0)
            else:
                counted.setdefault(self._late if isinstance(error, PermanentError) else self._soon, error)
        delays += (table.failed(key, error) for table, error in counted.items())
        return min(delays, default=None)

    def written(self, key: K) -> None:
        """A write of the key succeeded: an earlier failure was no fault of the server."""
        self._suspects.pop(key, None)

    def forget(self, key: K) -> None:
        """The key was written, or needs no work any more."""
        self._suspects.pop(key, None)
        self._soon.forget(key)
        self._late.forget(key)


class RepairRateLimiter(Generic[K]):
    """Slows down a conflict between two writers: each further repair of a key waits longer.

    The first repair is free; after that the waits grow by the policy, until the key was quiet for `quiet_seconds`.
    """

    def __init__(
        self, policy: RetryPolicy, quiet_seconds: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._policy = policy
        self._quiet_seconds = quiet_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._repairs: dict[K, tuple[int, float, float]] = {}

    def repaired(self, key: K) -> int:
        """We have just put `key` back; how often that was since it was last quiet."""
        with self._lock:
            now = self._clock()
            count, last, _ = self._repairs.get(key, (0, now, now))
            count = 1 if now - last > self._quiet_seconds else count + 1
            wait = self._policy.wait_seconds(count - 1) if count > 1 else 0.0
            self._repairs[key] = (count, now, now + wait)
            if len(self._repairs) > 1000:
                self._repairs = {k: r for k, r in self._repairs.items() if now - r[1] <= self._quiet_seconds}
            return count

    def delay_seconds(self, key: K) -> float:
        """Seconds until `key` may be put back again."""
        with self._lock:
            repair = self._repairs.get(key)
            return max(0.0, repair[2] - self._clock()) if repair is not None else 0.0
