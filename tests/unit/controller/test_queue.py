"""The work queue: coalescing, one worker per key, priorities, delays."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from bridge.controller.workqueue import WorkQueue


class Clock:
    """A clock that moves only when a test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def drain(queue: WorkQueue[str]) -> list[str]:
    """Everything that is due, in the order in which it is handed out."""
    taken = []
    while (key := queue.take(timeout_seconds=0)) is not None:
        taken.append(key)
        queue.done(key)
    return taken


def test_a_key_added_many_times_is_worked_on_once() -> None:
    """Ten changes of a service that waits are one pass."""
    queue: WorkQueue[str] = WorkQueue()
    for _ in range(10):
        queue.add("a")
    assert drain(queue) == ["a"]


def test_keys_come_out_in_the_order_in_which_they_came() -> None:
    """Keys of one priority are first in, first out; adding one again does not move it."""
    queue: WorkQueue[str] = WorkQueue()
    for key in ("a", "b", "a", "c"):
        queue.add(key)
    assert drain(queue) == ["a", "b", "c"]


def test_the_lower_priority_number_goes_first() -> None:
    """What is urgent overtakes what is not."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add("later", priority=2)
    queue.add("soon", priority=1)
    queue.add("now", priority=0)
    assert drain(queue) == ["now", "soon", "later"]


def test_what_comes_later_and_is_more_urgent_still_goes_first() -> None:
    """Updates go before the creations of a first sync, however many of these have waited for a while."""
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    for n in range(100):
        queue.add(f"create-{n}", priority=1)
    clock.now += 60.0
    queue.add("update")
    assert queue.take(0) == "update"
    assert queue.take(0) == "create-0"


def flapping(queue: WorkQueue[str], clock: Clock, seconds: float) -> list[tuple[float, str]]:
    """A hundred keys come again as soon as they are done, a hundred a second; who else was handed out, and when."""
    began, found = clock.now, []
    for n in range(100):
        queue.add(f"flap-{n}")
    while clock.now - began < seconds:
        key = queue.take(0)
        assert key is not None
        clock.now += 0.01
        queue.done(key)
        if key.startswith("flap"):
            queue.add(key)
        else:
            found.append((round(clock.now - began, 2), key))
    return found


def test_keys_that_come_without_end_starve_no_other() -> None:
    """A creation has its turn after a second, the loss of a last endpoint after two; until then updates go first."""
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    queue.add("lost", priority=2)
    queue.add("create", priority=1)
    (created, first), (lost, second) = flapping(queue, clock, 10.0)
    assert (first, second) == ("create", "lost")
    assert 1.0 < created < 1.1
    assert 2.0 < lost < 2.1


def test_of_what_is_overdue_a_quarter_of_the_turns_is_made() -> None:
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    for n in range(1000):
        queue.add(f"create-{n}", priority=1)
    found = flapping(queue, clock, 9.0)
    assert [key for _, key in found] == [f"create-{n}" for n in range(len(found))]
    assert 199 <= len(found) <= 201


def test_what_became_urgent_is_handed_out_once() -> None:
    """The place that it had before is not reused, and nothing is due because of it."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a", priority=1)
    queue.add("a", priority=0)
    assert drain(queue) == ["a"]
    assert (queue.busy, queue.claim("b", 4)) == (False, True)


def test_a_more_urgent_wish_replaces_a_less_urgent_one() -> None:
    """A key that waits at a low priority moves up, and is still handed out once."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a", priority=2)
    queue.add("b", priority=1)
    queue.add("a", priority=0)
    assert drain(queue) == ["a", "b"]


def test_a_less_urgent_wish_changes_nothing() -> None:
    """A key never moves back."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a", priority=0)
    queue.add("b", priority=1)
    queue.add("a", priority=2, delay_seconds=5)
    assert drain(queue) == ["a", "b"]


def test_a_key_that_a_worker_holds_is_not_handed_out_twice() -> None:
    """What changes while it is worked on is worked on afterwards."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert queue.take(0) == "a"
    queue.add("a")
    assert queue.take(0) is None
    queue.done("a")
    assert drain(queue) == ["a"]


def test_a_delayed_key_comes_when_its_time_has_come() -> None:
    """Delays are measured by the clock that was passed in."""
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    queue.add("a", delay_seconds=5)
    assert drain(queue) == []
    clock.now += 5
    assert drain(queue) == ["a"]


def test_an_immediate_wish_beats_a_delay() -> None:
    """A change does not wait for the backoff of an earlier failure."""
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    queue.add("a", delay_seconds=60)
    queue.add("a")
    assert drain(queue) == ["a"]
    clock.now += 60
    assert drain(queue) == []


def test_a_delay_asked_for_while_working_counts_from_then() -> None:
    """A failure's backoff is asked for by the worker that holds the key."""
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    queue.add("a")
    assert queue.take(0) == "a"
    queue.add("a", delay_seconds=3)
    clock.now += 2
    queue.done("a")
    assert drain(queue) == []
    clock.now += 1
    assert drain(queue) == ["a"]


def test_closing_wakes_a_waiting_worker() -> None:
    """No thread hangs on a closed queue."""
    queue: WorkQueue[str] = WorkQueue()
    got: list[str | None] = []
    worker = threading.Thread(target=lambda: got.append(queue.take()))
    worker.start()
    queue.close()
    worker.join(timeout=5)
    assert (worker.is_alive(), got) == (False, [None])


def test_nothing_is_accepted_after_closing() -> None:
    """A closed queue stays empty."""
    queue: WorkQueue[str] = WorkQueue()
    queue.close()
    queue.add("a")
    assert len(queue) == 0


def test_many_workers_never_share_a_key_and_lose_none(eventually: Callable[..., None]) -> None:
    """Under load every added key is worked on after its last addition, by one worker at a time."""
    queue: WorkQueue[int] = WorkQueue()
    lock = threading.Lock()
    holding: set[int] = set()
    wanted = dict.fromkeys(range(20), 0)
    done = dict.fromkeys(range(20), 0)
    clashes = 0

    def work() -> None:
        nonlocal clashes
        while (key := queue.take()) is not None:
            with lock:
                clashes += key in holding
                holding.add(key)
                done[key] = wanted[key]
            with lock:
                holding.discard(key)
            queue.done(key)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for turn in range(1, 200):
        for key in wanted:
            with lock:
                wanted[key] = turn
            queue.add(key)
    eventually(lambda: done, wanted, 10)
    queue.close()
    for worker in workers:
        worker.join(timeout=5)
    assert (clashes, done) == (0, wanted)


def test_the_end_of_work_wakes_no_worker_that_waits_for_some() -> None:
    """Sixteen writers wait while a watch writes by itself: to wake all of them for that cost a third of a change."""
    asked: list[str] = []

    def clock() -> float:
        asked.append(threading.current_thread().name)
        return time.monotonic()

    queue: WorkQueue[str] = WorkQueue(clock)
    workers = [threading.Thread(target=queue.take, name=f"worker-{n}") for n in range(4)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 10
    while len(asked) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    looked = sorted(name for name in asked if name.startswith("worker"))
    assert queue.claim("a", 5)
    queue.done("a")
    time.sleep(0.05)
    queue.close()
    for worker in workers:
        worker.join(timeout=5)
    assert looked == sorted(name for name in asked if name.startswith("worker")) == [w.name for w in workers]


def test_a_claimed_key_is_handed_to_no_other_worker_until_it_is_done() -> None:
    """What waits of it is done with it, a delay included; what comes meanwhile is handed out afterwards."""
    queue: WorkQueue[str] = WorkQueue(Clock())
    queue.add("a", delay_seconds=60)
    assert (queue.claim("a", 4), len(queue), drain(queue)) == (True, 0, [])
    queue.add("a")
    assert (queue.claim("a", 4), drain(queue)) == (False, [])
    queue.done("a")
    assert drain(queue) == ["a"]


def test_nothing_is_claimed_before_what_is_due() -> None:
    """A claim does not overtake others: priorities hold."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add("b")
    assert queue.claim("a", 4) is False
    assert (drain(queue), queue.claim("a", 4)) == (["b"], True)


def test_only_so_many_are_claimed() -> None:
    """In a burst the order of the queue counts, and who claims has other things to do."""
    queue: WorkQueue[str] = WorkQueue()
    assert [queue.claim(key, 2) for key in ("a", "b", "c")] == [True, True, False]
    queue.done("a")
    assert queue.claim("c", 2) is True


def test_what_became_due_goes_before_a_claim() -> None:
    """A delay that is over counts as work that is due."""
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    queue.add("b", delay_seconds=1)
    clock.now += 2
    assert (queue.claim("a", 4), drain(queue)) == (False, ["b"])


def test_a_closed_queue_gives_nothing_away_and_waits_for_what_it_gave() -> None:
    """The bridge ends when the objects in flight are finished, no matter which thread has them."""
    queue: WorkQueue[str] = WorkQueue()
    assert queue.claim("a", 4)
    queue.close()
    assert queue.claim("b", 4) is False
    waiting = threading.Thread(target=queue.wait_returned)
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    queue.done("a")
    waiting.join(5)
    assert not waiting.is_alive()


def test_lanes_take_turns_whatever_one_of_them_has() -> None:
    """A thousand keys of one namespace, and one of another: that one waits for one of the thousand."""
    queue: WorkQueue[str] = WorkQueue(lane=lambda key: key[0])
    for number in range(1000):
        queue.add(f"a{number}")
    for key in ("b0", "b1", "c0"):
        queue.add(key)
    taken = drain(queue)
    assert taken[:6] == ["a0", "b0", "c0", "a1", "b1", "a2"]
    assert taken[6:] == [f"a{number}" for number in range(3, 1000)]


def test_a_key_that_became_more_urgent_costs_its_lane_no_turn() -> None:
    """Its old place is passed over; each lane keeps the order of coming, and priorities go before lanes."""
    queue: WorkQueue[str] = WorkQueue(lane=lambda key: key[0])
    for key in ("a0", "a1", "b0"):
        queue.add(key, priority=1)
    queue.add("a0", priority=0)
    queue.add("c0", priority=2)
    assert drain(queue) == ["a0", "a1", "b0", "c0"]
