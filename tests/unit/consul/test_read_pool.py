"""The threads that make the short reads: in which order, and that nothing waits forever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import cast

from bridge.consul.client import ConsulClient
from bridge.consul.read_pool import FAIR, ReadPool, Urgency
from bridge.errors import CancelledError

CLIENT = cast(ConsulClient, object())


def readers(threads: int = 1) -> ReadPool:
    return ReadPool([CLIENT] * threads, "reader", lambda _client: True, lambda _error: None, time.monotonic)


def run(one: ReadPool, until: threading.Event) -> None:
    one.start()
    assert until.wait(10)
    one.close()
    for thread in one.threads:
        thread.join(5)
        assert not thread.is_alive()


def test_the_urgent_ones_go_first_and_now_and_then_one_of_the_others() -> None:
    one, done, ended = readers(), [""] * 0, threading.Event()

    def job(name: str) -> Callable[[ConsulClient], None]:
        return lambda _client: done.append(name)

    one.put_all(Urgency.POLL, [job("poll")] * 3)
    one.put_all(Urgency.FIRST, [job("first")] * 3)
    one.put_all(Urgency.NOW, [job("now")] * FAIR * 3)
    one.put(Urgency.POLL, lambda _client: ended.set())
    run(one, ended)
    turns = [done[n : n + FAIR] for n in range(0, FAIR * 3, FAIR)]
    assert turns == [["now"] * (FAIR - 1) + [last] for last in ("poll", "first", "poll")]
    assert done[FAIR * 3 :] == ["now"] * 3 + ["first"] * 2 + ["poll"]


def test_hints_without_end_delay_neither_first_reads_nor_polls() -> None:
    one = readers(threads=3)
    first, poll, both = threading.Event(), threading.Event(), threading.Event()

    def again(_client: ConsulClient) -> None:
        one.put(Urgency.NOW, again)
        if first.is_set() and poll.is_set():
            both.set()

    one.put_all(Urgency.NOW, [again] * 10)
    one.put(Urgency.FIRST, lambda _client: first.set())
    one.put(Urgency.POLL, lambda _client: poll.set())
    run(one, both)


def test_a_job_whose_request_was_ended_is_done_again() -> None:
    one, ended, tries = readers(), threading.Event(), [0]

    def job(_client: ConsulClient) -> None:
        tries[0] += 1
        if tries[0] == 1:
            raise CancelledError("woken")
        ended.set()

    one.put(Urgency.NOW, job)
    run(one, ended)
    assert tries == [2]
