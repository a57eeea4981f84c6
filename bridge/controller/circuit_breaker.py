"""How the engine gives way when Kubernetes is in trouble: as a whole (the gate) and per object (the table).

Both only hold state and answer "how long?"; the waits themselves come from `bridge.retry` (tenacity) and end at a
shutdown. They must not know what is being written.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from enum import Enum, auto
from typing import Generic, TypeVar

from bridge.errors import BridgeError, CancelledError, CredentialsError, PermanentError, ThrottledError, TransientError
from bridge.retry import RetryPolicy

K = TypeVar("K", bound=Hashable)

THROTTLED_SECONDS = 10.0
"""Being asked to be slower is no trouble; when nothing else is heard for so long, nothing is written, and that is."""


class WriteResult(Enum):
    """What a request told about the server, beside a fault of its own."""

    WRITTEN = auto()
    ANSWERED = auto()
    NOTHING = auto()


class CircuitBreaker:
    """Lets up to `limit` writers through while the server is well, a single prober while it is not.

    | what came back | what happens |
    | --- | --- |
    | written | open; a narrowed limit grows by one per round of successes |
    | answered: this object was refused (409, 403, 422) | open; nothing was written, so nothing grows |
    | nothing: not sent, or the object is to blame | as it was: who learns nothing of the server says nothing of it |
    | 429 | the limit is halved, and nobody enters until the asked-for pause is over |
    | any other transient fault of the server | closed; after the backoff ONE caller may try |
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
        """Wait for a place; False when the bridge is stopping. Every True must be followed by `leave`."""
        with self._changed:
            while not self._stop.is_set():
                pause = self._not_before - self._clock()
                room = 1 if self._failures else max(1, int(self._limit))
                if pause <= 0 and self._inside < room:
                    self._inside += 1
                    return True
                self._changed.wait(min(pause, 1.0) if pause > 0 else 1.0)
        return False

    def leave(self, came: WriteResult | TransientError) -> None:
        """Give the place back and say how it went; an error is a fault of the server itself."""
        with self._changed:
            self._inside -= 1
            now = self._clock()
            match came:
                case WriteResult.NOTHING:
                    pass
                case WriteResult():
                    self._failures = 0
                    self._reason = self._throttled_at = None
                    if came is WriteResult.WRITTEN:
                        self._written += 1
                        self._limit = min(self._full, self._limit + 1 / self._limit)
                case ThrottledError():
                    self._limit = max(1.0, self._limit / 2)
                    pause = came.retry_after_seconds or self._policy.wait_seconds(1)
                    self._not_before = max(self._not_before, now + pause)
                    self._reason = str(came)
                    self._throttled_at = now if self._throttled_at is None else self._throttled_at
                case _:
                    # several writers fail together when a server goes away: that is one failure, not sixteen
                    if now >= self._not_before:
                        self._failures += 1
                        self._not_before = now + self._policy.wait_seconds(self._failures, came)
                    self._reason = str(came)
            self._changed.notify_all()

    def wake(self) -> None:
        """Let waiting callers look at the stop event."""
        with self._changed:
            self._changed.notify_all()

    @property
    def trouble(self) -> str | None:
        """Why nothing is written, None while something is (also when it is written more slowly)."""
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
        """Whether all is well and a caller would be let in at once."""
        with self._changed:
            well = self._reason is None and self._not_before <= self._clock()
            return well and self._inside < int(self._limit)

    @property
    def written(self) -> int:
        """How often something was written."""
        with self._changed:
            return self._written


class BackoffTable(Generic[K]):
    """Consecutive failures per key, and what to wait for it. An entry is forgotten at success."""

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
        """All is well with the key, or there is nothing to be done for it any more."""
        with self._lock:
            self._failures.pop(key, None)

    def __len__(self) -> int:
        with self._lock:
            return len(self._failures)


class RetryPolicySelector(Generic[K]):
    """Whose fault a failed write was, and when its key is tried again.

    | the error | what it tells the gate | the next try |
    | --- | --- | --- |
    | not sent: we are stopping, or another replica leads | nothing | none |
    | our credentials are refused | a fault of the server: true of every object | the gate waits, for all together |
    | a fault of the server, 429 | just this | the same |
    | a fault of the server for one key again, while others were written | nothing | after the key's own backoff |
    | refused for good | the server answered | after the long backoff |
    | any other | the server answered | after the key's own backoff |
    """

    def __init__(self, gate: CircuitBreaker, soon: RetryPolicy, late: RetryPolicy) -> None:
        """`soon`: backoff of a key; `late`: backoff of what is refused for good."""
        self._gate = gate
        self._soon: BackoffTable[K] = BackoffTable(soon)
        self._late: BackoffTable[K] = BackoffTable(late)
        self._suspects: dict[K, int] = {}

    def told_by(self, key: K, error: BridgeError) -> WriteResult | TransientError:
        """What an error that a write met tells about the server; its `fault_of_server` is set to what is believed.

        A server that fails for one object again while others were written since is well (an admission webhook may
        answer 500 for just this one): it must not be declared down for it.
        """
        if isinstance(error, CancelledError):
            return WriteResult.NOTHING
        if isinstance(error, CredentialsError):
            return TransientError(str(error))
        if not isinstance(error, TransientError) or not error.fault_of_server:
            return WriteResult.ANSWERED
        if isinstance(error, ThrottledError):
            return error
        written = self._gate.written
        error.fault_of_server = self._suspects.get(key, written) == written
        self._suspects[key] = written
        return error if error.fault_of_server else WriteResult.NOTHING

    def delay_seconds(self, key: K, error: BridgeError) -> float | None:
        """Seconds until `key` is tried again, 0 where the gate does the waiting; None: not at all."""
        if isinstance(error, CancelledError):
            return None
        if isinstance(error, CredentialsError) or (isinstance(error, TransientError) and error.fault_of_server):
            return 0.0
        table = self._late if isinstance(error, PermanentError) else self._soon
        return table.failed(key, error)

    def written(self, key: K) -> None:
        """Something of the key was written: the server need not be suspected for it."""
        self._suspects.pop(key, None)

    def forget(self, key: K) -> None:
        """All is well with the key, or there is nothing to be done for it any more."""
        self._suspects.pop(key, None)
        self._soon.forget(key)
        self._late.forget(key)


class RepairRateLimiter(Generic[K]):
    """Keeps two writers from fighting at full speed: a key that is put back again and again is put back ever later.

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
