"""Whose fault a failed write was, when it is tried again, and when what others undid is put back."""

from __future__ import annotations

import threading

import pytest

from bridge.controller.circuit_breaker import CircuitBreaker, WriteResult
from bridge.controller.item_backoff import BackoffTable, RepairRateLimiter, RetryPolicySelector
from bridge.errors import (
    BridgeError,
    CancelledError,
    ConflictError,
    CredentialsError,
    NotLeadingError,
    PermanentError,
    StaleError,
    ThrottledError,
    TransientError,
)
from bridge.retry import RetryPolicy
from tests.unit.controller.test_queue import Clock

SOON, LATE = RetryPolicy(initial_seconds=1.0, max_seconds=1.0), RetryPolicy(initial_seconds=9.0, max_seconds=9.0)


def failures(breaker: CircuitBreaker | None = None) -> RetryPolicySelector[str]:
    """With a second's backoff for a key, and nine for what is refused for good."""
    return RetryPolicySelector(breaker or CircuitBreaker(4, SOON, threading.Event()), SOON, LATE)


@pytest.mark.parametrize(
    ("error", "told", "delay"),
    [
        (CancelledError("stopping"), WriteResult.NOTHING, None),
        (NotLeadingError("another replica"), WriteResult.NOTHING, None),
        (CredentialsError("401"), TransientError, 0.0),
        (TransientError("reset"), TransientError, 0.0),
        (ThrottledError("429"), ThrottledError, 0.0),
        (PermanentError("403"), WriteResult.ANSWERED, 9.0),
        (StaleError("409"), WriteResult.ANSWERED, 1.0),
        (ConflictError("theirs"), WriteResult.ANSWERED, 1.0),
        (TransientError("an odd answer", fault_of_server=False), WriteResult.ANSWERED, 1.0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_an_error_tells_about_the_server_and_when_its_key_is_tried_again(
    error: BridgeError, told: WriteResult | type[TransientError], delay: float | None
) -> None:
    """0: the breaker does the waiting. None: nothing is tried again."""
    made = failures()
    came = made.classify("web", error)
    assert came is told if isinstance(told, WriteResult) else isinstance(came, told)
    assert made.delay_seconds("web", [error]) == delay


class Linear(RetryPolicy):
    """Says by its waits how many failures were counted."""

    def wait_seconds(self, attempt: int, error: BaseException | None = None) -> float:
        """So many times the first wait."""
        return attempt * self.initial_seconds


def test_a_try_counts_once_however_many_objects_of_it_fail() -> None:
    """Ten slices that are refused are one failure; what is refused for good does not delay what is not."""
    breaker = CircuitBreaker(4, SOON, threading.Event())
    soon, late = Linear(initial_seconds=1.0), Linear(initial_seconds=9.0)
    made: RetryPolicySelector[str] = RetryPolicySelector(breaker, soon, late)
    refused: list[BridgeError] = [PermanentError("422")] * 10
    assert [made.delay_seconds("web", refused) for _ in range(3)] == [9.0, 18.0, 27.0]
    assert made.delay_seconds("web", [*refused, StaleError("409"), StaleError("409")]) == 1.0


def test_a_key_that_fails_again_while_others_are_written_is_to_blame_itself() -> None:
    """Until something of it is written, or there is nothing to be done for it any more."""
    breaker = CircuitBreaker(4, SOON, threading.Event())
    made = failures(breaker)
    found = []
    for others_written in (False, False, True, True):
        if others_written:
            assert breaker.enter()
            breaker.leave(WriteResult.WRITTEN)
        error = TransientError("500")
        found.append((made.classify("poison", error) is error, made.delay_seconds("poison", [error])))
    made.forget("poison")
    error = TransientError("500")
    found.append((made.classify("poison", error) is error, made.delay_seconds("poison", [error])))
    assert found == [(True, 0.0), (True, 0.0), (False, 1.0), (False, 1.0), (True, 0.0)]


def test_a_key_of_which_something_was_written_is_suspected_no_more() -> None:
    """The rest of its plan may fail for other reasons."""
    breaker = CircuitBreaker(4, SOON, threading.Event())
    made = failures(breaker)
    made.classify("web", TransientError("500"))
    assert breaker.enter()
    breaker.leave(WriteResult.WRITTEN)
    made.written("web")
    error = TransientError("500")
    assert made.classify("web", error) is error


def test_waits_grow_with_every_failure_of_a_key_and_start_again_after_a_success() -> None:
    """The bounds are those of the policy: full jitter between the first wait and the exponent."""
    table: BackoffTable[str] = BackoffTable(RetryPolicy(initial_seconds=1.0, max_seconds=100.0, multiplier=10.0))
    waits = [table.failed("a") for _ in range(3)]
    table.forget("a")
    assert [1.0 <= waits[0] <= 1.0, 1.0 <= waits[1] <= 10.0, 1.0 <= waits[2] <= 100.0, table.failed("a") <= 1.0] == [
        True
    ] * 4


def test_the_server_is_never_asked_sooner_than_retry_after() -> None:
    """Retry-After is the least wait."""
    table: BackoffTable[str] = BackoffTable(RetryPolicy(initial_seconds=0.01, max_seconds=0.02))
    assert table.failed("a", TransientError("busy", retry_after_seconds=9.0)) == 9.0


def test_the_first_repair_is_free_the_next_ones_wait() -> None:
    """A user who undoes our repairs at once is answered ever more slowly."""
    clock = Clock()
    limiter: RepairRateLimiter[str] = RepairRateLimiter(SOON, quiet_seconds=60, clock=clock)
    delays = [limiter.delay_seconds("a")]
    for _ in range(2):
        limiter.repaired("a")
        delays.append(limiter.delay_seconds("a"))
    clock.now += 61
    limiter.repaired("a")
    assert (delays, limiter.delay_seconds("a")) == ([0.0, 0.0, 1.0], 0.0)
