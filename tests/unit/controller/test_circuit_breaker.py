"""Giving way to a server in trouble as a whole."""

from __future__ import annotations

import threading

from bridge.controller.circuit_breaker import THROTTLED_SECONDS, CircuitBreaker, WriteResult
from bridge.errors import ThrottledError, TransientError
from bridge.retry import RetryPolicy
from tests.unit.controller.test_queue import Clock

POLICY = RetryPolicy(initial_seconds=1.0, max_seconds=1.0)


def entered(breaker: CircuitBreaker, within: float = 10.0) -> bool:
    """Whether a caller gets in, by the test's own clock at once; it stays inside when it does."""
    result: list[bool] = []
    thread = threading.Thread(target=lambda: result.append(breaker.enter()), daemon=True)
    thread.start()
    thread.join(timeout=within)
    return bool(result and result[0])


def test_a_well_server_lets_as_many_in_as_there_are_writers() -> None:
    """The limit is the number of connections."""
    stop = threading.Event()
    breaker = CircuitBreaker(2, POLICY, stop)
    assert [entered(breaker), entered(breaker), entered(breaker, 0.2)] == [True, True, False]
    stop.set()
    breaker.wake()


def test_it_is_free_while_all_is_well_and_a_write_would_begin() -> None:
    """Who has better things to do than to wait asks before."""
    clock = Clock()
    breaker = CircuitBreaker(2, POLICY, threading.Event(), clock)
    assert breaker.enter()
    free = [breaker.free]
    assert breaker.enter()
    free.append(breaker.free)
    breaker.leave(WriteResult.WRITTEN)
    free.append(breaker.free)
    breaker.leave(TransientError("gone"))
    free.append(breaker.free)
    assert free == [True, False, True, False]


def test_it_is_not_free_while_a_pause_goes_on_that_another_ones_success_did_not_end() -> None:
    """429 with Retry-After, and a moment later the answer to an older request."""
    clock = Clock()
    breaker = CircuitBreaker(4, POLICY, threading.Event(), clock)
    assert breaker.enter()
    assert breaker.enter()
    breaker.leave(ThrottledError("slower", retry_after_seconds=60))
    breaker.leave(WriteResult.WRITTEN)
    paused = breaker.free
    clock.now += 61
    assert (paused, breaker.free) == (False, True)


def test_a_fault_of_the_server_opens_the_breaker_until_the_backoff_is_over() -> None:
    """Then one caller, and only one, may try; its success opens the breaker for all."""
    clock = Clock()
    stop = threading.Event()
    breaker = CircuitBreaker(4, POLICY, stop, clock)
    assert breaker.enter()
    breaker.leave(TransientError("gone"))
    inside = threading.Semaphore(0)

    def call() -> None:
        if breaker.enter():
            inside.release()

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    before = (breaker.trouble, inside.acquire(timeout=0.2))
    clock.now += 1.0
    breaker.wake()
    probing = (inside.acquire(timeout=5), inside.acquire(timeout=0.2))
    breaker.leave(WriteResult.WRITTEN)
    after = (inside.acquire(timeout=5), inside.acquire(timeout=5), breaker.trouble)
    for caller in callers:
        caller.join(timeout=5)
    assert (before, probing, after) == (("gone", False), (True, False), (True, True, None))


def test_writers_that_fail_together_count_as_one_failure() -> None:
    """Sixteen broken connections are one outage: the wait is that of the first failure."""
    clock = Clock()
    breaker = CircuitBreaker(
        3, RetryPolicy(initial_seconds=1.0, max_seconds=1000.0, multiplier=100.0), threading.Event(), clock
    )
    for _ in range(3):
        assert breaker.enter()
    for _ in range(3):
        breaker.leave(TransientError("gone"))
    clock.now += 1.0
    assert entered(breaker)


def test_429_halves_the_limit_and_pauses_as_long_as_the_server_asked() -> None:
    """The limit grows back with successes."""
    clock = Clock()
    stop = threading.Event()
    breaker = CircuitBreaker(4, POLICY, stop, clock)
    for _ in range(4):
        assert breaker.enter()
    breaker.leave(ThrottledError("slower", retry_after_seconds=7.0))
    for _ in range(3):
        breaker.leave(WriteResult.WRITTEN)
    clock.now += 6.9
    early = entered(breaker, 0.2)
    clock.now += 0.2
    breaker.wake()
    assert (early, breaker.trouble) == (False, None)
    stop.set()
    breaker.wake()


def test_what_tells_nothing_of_the_server_leaves_the_breaker_as_it_is() -> None:
    """A write that was not sent, or that failed for its object alone, does not open it; an answer does."""
    clock = Clock()
    breaker = CircuitBreaker(2, POLICY, threading.Event(), clock)
    seen: list[tuple[str | None, int]] = []
    for came in (
        TransientError("gone"),
        WriteResult.NOTHING,
        WriteResult.ANSWERED,
        TransientError("gone"),
        WriteResult.WRITTEN,
    ):
        clock.now += 2.0
        assert breaker.enter()
        breaker.leave(came)
        seen.append((breaker.trouble, breaker.written))
    assert seen == [("gone", 0), ("gone", 0), (None, 0), ("gone", 0), (None, 1)]


def test_being_throttled_for_long_is_a_trouble_until_something_is_written() -> None:
    """A moment of it is none: the server is well, and says so."""
    clock = Clock()
    breaker = CircuitBreaker(4, POLICY, threading.Event(), clock)
    seen = []
    for came in (ThrottledError("slower"), ThrottledError("slower"), WriteResult.WRITTEN):
        clock.now += THROTTLED_SECONDS
        assert breaker.enter()
        breaker.leave(came)
        seen.append(breaker.trouble)
    assert seen == [None, "slower", None]


def test_a_stop_ends_the_wait() -> None:
    """A closed breaker does not hold up a shutdown."""
    stop = threading.Event()
    breaker = CircuitBreaker(1, RetryPolicy(initial_seconds=60, max_seconds=60), stop)
    assert breaker.enter()
    breaker.leave(TransientError("gone"))
    result: list[bool] = []
    thread = threading.Thread(target=lambda: result.append(breaker.enter()))
    thread.start()
    stop.set()
    breaker.wake()
    thread.join(timeout=5)
    assert (thread.is_alive(), result) == (False, [False])


def test_it_fails_while_the_server_does_not_answer_and_a_look_can_end_that() -> None:
    """429 is an answer; what was seen to answer without a write closes the circuit breaker as well."""
    clock = Clock()
    breaker = CircuitBreaker(4, POLICY, threading.Event(), clock)
    assert breaker.enter()
    breaker.leave(ThrottledError("slower", retry_after_seconds=0.1))
    throttled = breaker.failing
    clock.now += 1
    breaker.leave(TransientError("gone"))
    failing, trouble = breaker.failing, breaker.trouble
    breaker.mended()
    assert (throttled, failing, trouble, breaker.failing, breaker.trouble) == (False, True, "gone", False, None)
