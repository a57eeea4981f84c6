"""One step of a blocking query, with a Consul that is a script and time that is a list of waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from bridge.consul.client import Answer, ConsulClient
from bridge.consul.ratelimit import TokenBucket
from bridge.consul.watch import PERMANENT_RETRY, Position, Step, Watch
from bridge.errors import BridgeError, CancelledError, PermanentError, TransientError
from bridge.retry import RetryPolicy
from tests.support.options import consul_config

PLAIN, STREAMING = "blocking-query", "streaming"


def answer(index: int, query_backend: str = PLAIN, size: int = 0) -> Answer:
    return Answer(index=index, data=index, query_backend=query_backend, size=size)


@dataclass
class Script:
    """Answers and errors in order; everything that the watch did."""

    answers: list[Any]
    asked: list[int] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    confirmed: int = 0
    suspect: bool = False
    rebuilds: int = 0
    confirm_error: BridgeError | None = None
    usable: Callable[[Answer], bool] = lambda _answer: True
    clock: float = 0.0

    def ask(self, index: int, wait: float) -> Answer:
        self.asked.append(index)
        self.waits.append(wait)
        found = self.answers.pop(0)
        if isinstance(found, Exception):
            raise found
        assert isinstance(found, Answer)
        return found

    def take(self, found: Answer) -> bool:
        self.taken.append(found.index)
        return self.usable(found)

    def mark_suspect(self, reason: str, *, went_back: bool = False) -> None:
        self.doubts.append(reason)
        self.suspect = True

    def verify(self, client: ConsulClient) -> None:
        self.confirmed += 1
        if self.confirm_error is not None:
            raise self.confirm_error
        self.suspect = False

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


class Stop(threading.Event):
    """Waits take no time, and are noted."""

    def __init__(self, script: Script) -> None:
        super().__init__()
        self._script = script

    def wait(self, timeout: float | None = None) -> bool:
        self._script.slept.append(timeout or 0.0)
        self._script.clock += timeout or 0.0
        return self.is_set()


def watch(script: Script, burst: float = 1000.0, byte_bucket: TokenBucket | None = None) -> Watch:
    return Watch(
        ask=script.ask,
        take=script.take,
        fail=lambda error: script.failed.append(str(error)),
        gate=script,
        client=ConsulClient(consul_config()),
        sleep=script.sleep,
        stop=Stop(script),
        buckets=(TokenBucket(2.0, burst, lambda: script.clock),),
        byte_bucket=byte_bucket,
        retry=RetryPolicy(initial_seconds=0.1, max_seconds=30.0),
        wait_seconds=50.0,
    )


def steps(script: Script, **options: Any) -> list[Step]:
    one = watch(script, **options)
    return [one.step() for _ in range(len(script.answers))]


def test_it_begins_with_a_plain_read_and_goes_on_from_each_answer() -> None:
    script = Script([answer(7), answer(9), answer(12)])
    assert steps(script) == [Step.TAKEN] * 3
    assert script.asked == [0, 7, 9]
    assert script.taken == [7, 9, 12]


def test_waits_are_jittered_so_that_watches_do_not_march_in_step() -> None:
    script = Script([answer(7)] * 50)
    steps(script)
    assert all(45.0 <= wait <= 50.0 for wait in script.waits)
    assert len(set(script.waits)) > 40


@pytest.mark.parametrize("error", [TransientError("down"), PermanentError("no")])
def test_after_any_error_the_next_read_is_plain(error: BridgeError) -> None:
    script = Script([answer(7), error, answer(7), answer(8)])
    assert steps(script) == [Step.TAKEN, Step.FAILED, Step.TAKEN, Step.TAKEN]
    assert script.asked == [0, 7, 0, 7]
    assert script.failed == [str(error)]


def test_after_a_wake_the_next_read_is_plain_and_does_not_wait() -> None:
    script = Script([answer(7), CancelledError("woken"), answer(7)])
    assert steps(script) == [Step.TAKEN, Step.DISCARDED, Step.TAKEN]
    assert script.asked == [0, 7, 0]
    assert (script.slept, script.failed) == ([], [])


def test_an_index_of_zero_is_not_sent_back() -> None:
    script = Script([answer(0), answer(0), answer(5), answer(6)])
    steps(script)
    assert script.asked == [0, 0, 0, 5]


def test_a_server_that_always_says_zero_is_not_asked_hot() -> None:
    script = Script([answer(0)] * 100)
    steps(script, burst=2.0)
    assert sum(script.slept) >= 45.0  # 2 per second


def test_an_index_that_went_backwards_is_not_believed() -> None:
    script = Script([answer(70), answer(30), answer(30)])
    assert steps(script) == [Step.TAKEN, Step.DISCARDED, Step.TAKEN]
    assert script.asked == [0, 70, 0]
    assert script.taken == [70, 30]
    assert (script.doubts, script.confirmed) == (["Consul's index went backwards"], 1)


def test_two_numberings_are_never_compared() -> None:
    """A service that does not exist: the plain read says 70, the streaming backend 25 (docs/consul.md)."""
    script = Script([answer(70), answer(25, STREAMING), answer(25, STREAMING), answer(71, STREAMING)])
    assert steps(script) == [Step.TAKEN] * 4
    assert script.asked == [0, 70, 25, 25]
    assert script.doubts == []


def test_backwards_within_the_streaming_numbering_counts() -> None:
    script = Script([answer(70), answer(80, STREAMING), answer(79, STREAMING)])
    assert steps(script)[-1] is Step.DISCARDED
    assert script.doubts


def test_a_rebuild_that_was_settled_while_this_thread_was_busy_is_followed_by_a_plain_read() -> None:
    """With an index of the old Consul the question would sleep through changes."""
    script = Script([answer(7), answer(3), answer(4)])
    one = watch(script)
    one.step()
    script.rebuilds += 1
    one.step()
    assert script.asked == [0, 0]


def test_an_answer_that_arrives_while_the_datacenter_is_doubted_is_not_used() -> None:
    script = Script([answer(7), answer(8), answer(9)])
    one = watch(script)
    one.step()
    ask, script.ask = script.ask, lambda index, wait: _doubting(script, ask, index, wait)  # type: ignore[method-assign]
    one._ask = script.ask
    assert one.step() is Step.DISCARDED
    assert script.taken == [7]
    one._ask = ask
    assert one.step() is Step.TAKEN
    assert (script.asked, script.confirmed) == ([0, 7, 0], 1)


def _doubting(script: Script, ask: Callable[[int, float], Answer], index: int, wait: float) -> Answer:
    found = ask(index, wait)
    script.suspect = True
    return found


def test_nothing_is_asked_while_the_doubt_cannot_be_ended() -> None:
    script = Script([], suspect=True, confirm_error=TransientError("still down"))
    one = watch(script)
    assert [one.step() for _ in range(3)] == [Step.FAILED] * 3
    assert (script.asked, script.failed) == ([], ["still down"] * 3)


def test_a_view_that_was_overtaken_is_read_again_plainly() -> None:
    script = Script([answer(7), answer(9), answer(9)])
    script.usable = lambda found: len(script.taken) != 2
    assert steps(script) == [Step.TAKEN, Step.DISCARDED, Step.TAKEN]
    assert script.asked == [0, 7, 0]


def test_errors_back_off_with_jitter_and_success_resets_it() -> None:
    script = Script([TransientError("x")] * 12 + [answer(1), TransientError("x")])
    steps(script)
    first, later, last = script.slept[0], script.slept[8:12], script.slept[12]
    assert first <= 0.2
    assert all(0.1 <= s <= 30.0 for s in script.slept)
    assert max(later) > 1.0
    assert last <= 0.2


def test_what_does_not_mend_itself_is_asked_slowly() -> None:
    script = Script([PermanentError("no")] * 5)
    steps(script)
    assert min(script.slept) >= PERMANENT_RETRY.initial_seconds


def test_what_the_server_asks_for_is_waited_for() -> None:
    script = Script([TransientError("x", retry_after_seconds=17.0)])
    steps(script)
    assert script.slept == [17.0]


def test_a_large_answer_postpones_the_next_question() -> None:
    script = Script([answer(7, size=3_000_000), answer(8)])
    steps(script, byte_bucket=TokenBucket(1e6, 1e6, lambda: script.clock))
    assert script.slept == [2.0]


def test_run_ends_when_it_is_asked_to() -> None:
    script = Script([answer(1), answer(2), answer(3)])
    one = watch(script)
    script.usable = lambda found: found.index < 2 or not one._stop.set()  # type: ignore[func-returns-value]
    one.run()
    assert script.taken == [1, 2]


def test_a_position_says_whether_the_last_answer_was_plain() -> None:
    position = Position()
    position.answered(answer(7))
    assert position.plain is True
    position.answered(answer(8))
    assert position.plain is False
    position.failed()
    position.answered(answer(8))
    assert position.plain is True


@pytest.mark.parametrize(
    ("seconds", "query_backend", "doubts"),
    [
        (1.0, PLAIN, 1),
        (52.0, PLAIN, 0),  # the wait was over
        (1.0, STREAMING, 0),  # that backend keeps waiting when a snapshot is restored
    ],
)
def test_a_query_that_returns_early_with_nothing_new_means_that_consul_gave_its_state_up(
    monkeypatch: pytest.MonkeyPatch, seconds: float, query_backend: str, doubts: int
) -> None:
    """A snapshot was restored: whatever waits on the catalog gets what it had, at once. Nothing else says so."""
    script = Script([answer(7), answer(7, query_backend), answer(8)])
    now = iter([0.0, 10.0, 10.0 + seconds, 100.0, 100.0])
    monkeypatch.setattr("bridge.consul.watch.time.monotonic", lambda: next(now))
    steps(script)
    assert (len(script.doubts), script.asked) == (doubts, [0, 7, 0 if doubts else 7])
