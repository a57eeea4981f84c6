"""Giving way to a server in trouble: as a whole, per object, and against a second writer."""

from __future__ import annotations

import threading

from bridge.controller.circuit_breaker import (
    THROTTLED_SECONDS,
    BackoffTable,
    CircuitBreaker,
    RepairRateLimiter,
    WriteResult,
)
from bridge.errors import ThrottledError, TransientError
from bridge.retry import RetryPolicy
from tests.unit.controller.test_queue import Clock

POLICY = RetryPolicy(initial_seconds=1.0, max_seconds=1.0)


def entered(gate: CircuitBreaker, within: float = 10.0) -> bool:
    """Whether a caller gets in, by the test's own clock at once; it stays inside when it does."""
    result: list[bool] = []
    thread = threading.Thread(target=lambda: result.append(gate.enter()), daemon=True)
    thread.start()
    thread.join(timeout=within)
    return bool(result and result[0])


def test_a_well_server_lets_as_many_in_as_there_are_writers() -> None:
    """The limit is the number of connections."""
    stop = threading.Event()
    gate = CircuitBreaker(2, POLICY, stop)
    assert [entered(gate), entered(gate), entered(gate, 0.2)] == [True, True, False]
    stop.set()
    gate.wake()


def test_it_is_free_while_all_is_well_and_somebody_would_be_let_in() -> None:
    """Who has better things to do than to wait asks before."""
    clock = Clock()
    gate = CircuitBreaker(2, POLICY, threading.Event(), clock)
    assert gate.enter()
    free = [gate.free]
    assert gate.enter()
    free.append(gate.free)
    gate.leave(WriteResult.WRITTEN)
    free.append(gate.free)
    gate.leave(TransientError("gone"))
    free.append(gate.free)
    assert free == [True, False, True, False]


def test_it_is_not_free_while_a_pause_goes_on_that_another_ones_success_did_not_end() -> None:
    """429 with Retry-After, and a moment later the answer to an older request."""
    clock = Clock()
    gate = CircuitBreaker(4, POLICY, threading.Event(), clock)
    assert gate.enter()
    assert gate.enter()
    gate.leave(ThrottledError("slower", retry_after_seconds=60))
    gate.leave(WriteResult.WRITTEN)
    paused = gate.free
    clock.now += 61
    assert (paused, gate.free) == (False, True)


def test_a_fault_of_the_server_closes_the_gate_until_the_backoff_is_over() -> None:
    """Then one caller, and only one, may try; its success opens the gate for all."""
    clock = Clock()
    stop = threading.Event()
    gate = CircuitBreaker(4, POLICY, stop, clock)
    assert gate.enter()
    gate.leave(TransientError("gone"))
    inside = threading.Semaphore(0)

    def call() -> None:
        if gate.enter():
            inside.release()

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    before = (gate.trouble, inside.acquire(timeout=0.2))
    clock.now += 1.0
    gate.wake()
    probing = (inside.acquire(timeout=5), inside.acquire(timeout=0.2))
    gate.leave(WriteResult.WRITTEN)
    after = (inside.acquire(timeout=5), inside.acquire(timeout=5), gate.trouble)
    for caller in callers:
        caller.join(timeout=5)
    assert (before, probing, after) == (("gone", False), (True, False), (True, True, None))


def test_writers_that_fail_together_count_as_one_failure() -> None:
    """Sixteen broken connections are one outage: the wait is that of the first failure."""
    clock = Clock()
    gate = CircuitBreaker(
        3, RetryPolicy(initial_seconds=1.0, max_seconds=1000.0, multiplier=100.0), threading.Event(), clock
    )
    for _ in range(3):
        assert gate.enter()
    for _ in range(3):
        gate.leave(TransientError("gone"))
    clock.now += 1.0
    assert entered(gate)


def test_429_halves_the_limit_and_pauses_as_long_as_the_server_asked() -> None:
    """The limit grows back with successes."""
    clock = Clock()
    stop = threading.Event()
    gate = CircuitBreaker(4, POLICY, stop, clock)
    for _ in range(4):
        assert gate.enter()
    gate.leave(ThrottledError("slower", retry_after_seconds=7.0))
    for _ in range(3):
        gate.leave(WriteResult.WRITTEN)
    clock.now += 6.9
    early = entered(gate, 0.2)
    clock.now += 0.2
    gate.wake()
    assert (early, gate.trouble) == (False, None)
    stop.set()
    gate.wake()


def test_what_tells_nothing_of_the_server_leaves_the_gate_as_it_is() -> None:
    """A write that was not sent, or that failed for its object alone, does not open it; an answer does."""
    clock = Clock()
    gate = CircuitBreaker(2, POLICY, threading.Event(), clock)
    seen: list[tuple[str | None, int]] = []
    for came in (
        TransientError("gone"),
        WriteResult.NOTHING,
        WriteResult.ANSWERED,
        TransientError("gone"),
        WriteResult.WRITTEN,
    ):
        clock.now += 2.0
        assert gate.enter()
        gate.leave(came)
        seen.append((gate.trouble, gate.written))
    assert seen == [("gone", 0), ("gone", 0), (None, 0), ("gone", 0), (None, 1)]


def test_being_throttled_for_long_is_a_trouble_until_something_is_written() -> None:
    """A moment of it is none: the server is well, and says so."""
    clock = Clock()
    gate = CircuitBreaker(4, POLICY, threading.Event(), clock)
    seen = []
    for came in (ThrottledError("slower"), ThrottledError("slower"), WriteResult.WRITTEN):
        clock.now += THROTTLED_SECONDS
        assert gate.enter()
        gate.leave(came)
        seen.append(gate.trouble)
    assert seen == [None, "slower", None]


def test_a_stop_ends_the_wait() -> None:
    """A closed gate does not hold up a shutdown."""
    stop = threading.Event()
    gate = CircuitBreaker(1, RetryPolicy(initial_seconds=60, max_seconds=60), stop)
    assert gate.enter()
    gate.leave(TransientError("gone"))
    result: list[bool] = []
    thread = threading.Thread(target=lambda: result.append(gate.enter()))
    thread.start()
    stop.set()
    gate.wake()
    thread.join(timeout=5)
    assert (thread.is_alive(), result) == (False, [False])


def test_waits_grow_with_every_failure_of_a_key_and_start_again_after_a_success() -> None:
    """The bounds are those of the policy: full jitter between the floor and the exponent."""
    table: BackoffTable[str] = BackoffTable(RetryPolicy(initial_seconds=1.0, max_seconds=100.0, multiplier=10.0))
    waits = [table.failed("a") for _ in range(3)]
    table.forget("a")
    assert [1.0 <= waits[0] <= 1.0, 1.0 <= waits[1] <= 10.0, 1.0 <= waits[2] <= 100.0, table.failed("a") <= 1.0] == [
        True
    ] * 4


def test_the_server_is_never_asked_sooner_than_it_said() -> None:
    """Retry-After is a floor for the wait."""
    table: BackoffTable[str] = BackoffTable(RetryPolicy(initial_seconds=0.01, max_seconds=0.02))
    assert table.failed("a", TransientError("busy", retry_after_seconds=9.0)) == 9.0


def test_the_first_repair_is_free_the_next_ones_wait() -> None:
    """Somebody who undoes our repairs at once is answered ever more slowly."""
    clock = Clock()
    brake: RepairRateLimiter[str] = RepairRateLimiter(POLICY, quiet_seconds=60, clock=clock)
    delays = [brake.delay_seconds("a")]
    for _ in range(2):
        brake.repaired("a")
        delays.append(brake.delay_seconds("a"))
    clock.now += 61
    brake.repaired("a")
    assert (delays, brake.delay_seconds("a")) == ([0.0, 0.0, 1.0], 0.0)


def test_it_fails_while_the_server_does_not_answer_and_a_look_can_end_that() -> None:
    """429 is an answer; what was seen to answer without a write opens the gate as well."""
    clock = Clock()
    gate = CircuitBreaker(4, POLICY, threading.Event(), clock)
    assert gate.enter()
    gate.leave(ThrottledError("slower", retry_after_seconds=0.1))
    throttled = gate.failing
    clock.now += 1
    gate.leave(TransientError("gone"))
    failing, trouble = gate.failing, gate.trouble
    gate.mended()
    assert (throttled, failing, trouble, gate.failing, gate.trouble) == (False, True, "gone", False, None)
