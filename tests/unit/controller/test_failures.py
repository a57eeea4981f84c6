"""Whose fault a failed write was, and when it is tried again."""

from __future__ import annotations

import threading

import pytest

from bridge.controller.circuit_breaker import CircuitBreaker, RetryPolicySelector, WriteResult
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

SOON, LATE = RetryPolicy(initial_seconds=1.0, max_seconds=1.0), RetryPolicy(initial_seconds=9.0, max_seconds=9.0)


def failures(gate: CircuitBreaker | None = None) -> RetryPolicySelector[str]:
    """With a second's backoff for a key, and nine for what is refused for good."""
    return RetryPolicySelector(gate or CircuitBreaker(4, SOON, threading.Event()), SOON, LATE)


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
    """0: the gate does the waiting. None: nobody tries again."""
    made = failures()
    came = made.told_by("web", error)
    assert came is told if isinstance(told, WriteResult) else isinstance(came, told)
    assert made.delay_seconds("web", error) == delay


def test_a_key_that_fails_again_while_others_are_written_is_to_blame_itself() -> None:
    """Until something of it is written, or there is nothing to be done for it any more."""
    gate = CircuitBreaker(4, SOON, threading.Event())
    made = failures(gate)
    found = []
    for others_written in (False, False, True, True):
        if others_written:
            assert gate.enter()
            gate.leave(WriteResult.WRITTEN)
        error = TransientError("500")
        found.append((made.told_by("poison", error) is error, made.delay_seconds("poison", error)))
    made.forget("poison")
    error = TransientError("500")
    found.append((made.told_by("poison", error) is error, made.delay_seconds("poison", error)))
    assert found == [(True, 0.0), (True, 0.0), (False, 1.0), (False, 1.0), (True, 0.0)]


def test_a_key_of_which_something_was_written_is_suspected_no_more() -> None:
    """The rest of its plan may fail for other reasons."""
    gate = CircuitBreaker(4, SOON, threading.Event())
    made = failures(gate)
    made.told_by("web", TransientError("500"))
    assert gate.enter()
    gate.leave(WriteResult.WRITTEN)
    made.written("web")
    error = TransientError("500")
    assert made.told_by("web", error) is error
