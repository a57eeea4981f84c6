"""When a poll is made, of what, and how much time polls may take, on a clock that the tests turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import pytest

from bridge.consul.client import Answer, ConsulClient, Mode
from bridge.consul.index_poller import PIECE, IndexPoller
from bridge.consul.read_pool import Job, ReadPool, Urgency
from bridge.consul.subscriptions import Subscription
from bridge.core.model import Query
from bridge.errors import PermanentError, ThrottledError, TransientError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Jobs:
    """ReadPool whose jobs are done when the test says so."""

    def __init__(self, clock: Clock) -> None:
        self.waiting: deque[Job] = deque()
        self.later: list[tuple[float, Job]] = []
        self._clock = clock

    def put(self, urgency: Urgency, job: Job, delay_seconds: float = 0.0) -> None:
        assert urgency is Urgency.POLL
        if delay_seconds:
            self.later.append((self._clock.now + delay_seconds, job))
        else:
            self.waiting.append(job)

    def put_all(self, urgency: Urgency, jobs: Iterable[Job]) -> None:
        assert urgency is Urgency.POLL
        self.waiting.extend(jobs)


class Probes:
    """A client that knows indexes and nothing else; what it does not know must be asked for one by one."""

    def __init__(self) -> None:
        self.services: dict[str, int] = {}
        self.nodes: dict[str, int] = {}
        self.asked: list[str] = []
        self.modes: set[Mode] = set()
        self.error: TransientError | None = None
        self.refused: set[str] = set()
        self.take: Callable[[], None] = lambda: None

    def probe_services(self, queries: Sequence[Query], mode: Mode) -> list[int | None]:
        self.take()
        if self.error is not None:
            raise self.error
        self.modes.add(mode)
        self.asked += [q.service for q in queries]
        return [self.services.get(q.service) for q in queries]

    def probe_service(self, query: Query, _mode: Mode) -> Answer:
        raise PermanentError(f"no such filter: {query.filter}")

    def probe_nodes(self, nodes: Sequence[str], _datacenter: str, _mode: Mode) -> list[int | None]:
        self.asked += nodes
        return [self.nodes.get(node) for node in nodes]

    def probe_node(self, node: str, _datacenter: str, _mode: Mode) -> Answer:
        if node in self.refused:
            raise PermanentError(f"{node} is not for you")
        return Answer(len(node), None)


class Field:
    """The ground that is polled, and a poller on it."""

    def __init__(self, services: int, nodes: int | None) -> None:
        self.clock, self.probes = Clock(), Probes()
        self.jobs = Jobs(self.clock)
        self.subscriptions = [Subscription(Query("dc1", f"s{n}"), index=7) for n in range(services)]
        self.probes.services = {e.query.service: 7 for e in self.subscriptions}
        self.node_names = None if nodes is None else [f"vm-{n}" for n in range(nodes)]
        self.probes.nodes = dict.fromkeys(self.node_names or (), 7)
        self.moved: list[str] = []
        self.failures: list[BaseException] = []
        self.attempts: list[int] = []
        self.poller = IndexPoller("dc1", self, cast(ReadPool, self.jobs), self.clock)

    def services_to_probe(self, every: bool) -> list[Subscription]:
        return [e for e in self.subscriptions if every or not e.watched]

    def nodes_to_probe(self) -> list[str] | None:
        return self.node_names

    def node_moved(self, client: ConsulClient, node: str) -> None:
        self.moved.append(node)

    def audit_node(self, client: ConsulClient, node: str) -> None:
        self.moved.append(f"{node}!")

    def service_moved(self, subscription: Subscription, auditing: bool) -> None:
        self.moved.append(subscription.query.service + ("!" if auditing else ""))

    def probe_failed(self, error: TransientError | PermanentError, attempt: int) -> float:
        self.failures.append(error)
        self.attempts.append(attempt)
        return (error.retry_after_seconds or 1.0) if isinstance(error, TransientError) else 5.0

    def poll(self, begin: Callable[[], None] | None = None, seconds: float = 0.0) -> list[str]:
        """Begin (a look), let the clock run, do what there is to do; returns who was asked."""
        self.probes.asked = []
        (begin or self.poller.poll_changed)()

        def take() -> None:
            self.clock.now += seconds

        self.probes.take = take
        while self.jobs.waiting:
            self.jobs.waiting.popleft()(cast(ConsulClient, self.probes))
            seconds = 0.0
        return sorted(self.probes.asked)

    def wait(self, seconds: float | None = None) -> list[str]:
        """Let the clock run (until the first of what waits is due, without `seconds`), and do what is due."""
        end = min(due for due, _ in self.jobs.later) if seconds is None else self.clock.now + seconds
        asked: list[str] = []
        while self.jobs.later and (first := min(self.jobs.later, key=lambda one: one[0]))[0] <= end:
            self.jobs.later.remove(first)
            self.clock.now = max(self.clock.now, first[0])
            self.jobs.waiting.append(first[1])
            asked += self.poll(lambda: None)
        self.clock.now = end
        return asked


def test_few_nodes_are_probed_instead_of_many_services() -> None:
    """The first poll asks for nodes and services, so that the nodes' indexes are older than what they vouch for."""
    field = Field(services=100, nodes=10)
    assert field.node_names is not None
    assert field.poll() == sorted([*field.node_names, *(e.query.service for e in field.subscriptions)])
    assert field.poll() == field.node_names
    assert field.moved == []
    field.probes.nodes["vm-3"] = 8
    field.poll()
    assert field.moved == ["vm-3"]
    field.poll()
    assert field.moved == ["vm-3"]


@pytest.mark.parametrize("nodes", [40, 100, 500, None])
def test_services_are_probed_unless_nodes_are_clearly_fewer(nodes: int | None) -> None:
    field = Field(services=100, nodes=nodes)
    field.probes.services["s5"] = 9
    for _ in range(2):
        assert field.poll() == sorted(e.query.service for e in field.subscriptions)
    assert field.moved == ["s5", "s5"]
    assert field.probes.modes == {Mode.LEADER}


def test_what_node_probes_do_not_cover_is_probed_beside_them() -> None:
    field = Field(services=100, nodes=10)
    field.subscriptions[0].covered_by_aggregate = field.subscriptions[1].covered_by_aggregate = False
    field.poll()
    assert field.node_names is not None
    assert field.poll() == ["s0", "s1", *field.node_names]


def test_a_node_without_an_answer_is_asked_alone() -> None:
    field = Field(services=100, nodes=10)
    field.poll()
    del field.probes.nodes["vm-2"]  # alone it answers 4, the length of its name
    field.poll()
    assert field.moved == ["vm-2"]


def test_after_another_consul_node_indexes_are_learnt_anew() -> None:
    field = Field(services=100, nodes=10)
    field.poll()
    field.poller.forget()
    field.probes.nodes = dict.fromkeys(field.probes.nodes, 3)
    assert len(field.poll()) == 110
    assert field.moved == []


def test_a_verification_asks_for_every_service_even_if_it_is_watched() -> None:
    field = Field(services=100, nodes=None)
    field.subscriptions[3].watched = True
    field.probes.services["s4"] = 8
    assert len(field.poll(field.poller.audit)) == 99
    assert sorted(field.moved) == ["s3!", "s4!"], "the streaming backend's index proves nothing: that one is read"
    assert (field.poller.audited, field.poller.polled) == (1, 0)
    assert field.probes.modes == {Mode.STALE}


def test_a_verification_asks_for_the_nodes_too_and_looks_at_those_that_moved_since_the_last_one() -> None:
    """An instance that gets another service's name does not move the index of the service that it leaves."""
    field = Field(services=100, nodes=3)
    assert len(field.poll(field.poller.audit)) == 103
    first, field.moved = sorted(field.moved), []
    field.probes.nodes["vm-1"] = 8
    field.clock.now += 60
    field.poll(field.poller.audit)
    assert (first, field.moved) == (["vm-0!", "vm-1!", "vm-2!"], ["vm-1!"])


def test_a_service_whose_probe_is_refused_counts_as_moved() -> None:
    """Reading it shows what is wrong, to whom it concerns."""
    field = Field(services=3, nodes=None)
    del field.probes.services["s1"]
    field.poll()
    assert field.moved == ["s1"]


def first_piece(field: Field) -> list[str]:
    """Ask for what is due first."""
    field.probes.asked = []
    field.jobs.waiting.popleft()(cast(ConsulClient, field.probes))
    return field.probes.asked


def test_many_wishes_before_anything_was_asked_are_one_poll() -> None:
    field = Field(services=PIECE * 3, nodes=None)
    for _ in range(10):
        field.poller.poll_changed()
    assert len(field.poll(field.poller.tick)) == PIECE * 3
    assert (field.poller.polled, field.poller.pending, field.jobs.later) == (1, False, [])


def test_a_change_during_a_poll_does_not_wait_for_its_end() -> None:
    """What was asked for before the change comes round again, behind all that was not, and the poll saw the change."""
    field = Field(services=PIECE * 4, nodes=None)
    field.poller.poll_changed()
    before = [*first_piece(field), *first_piece(field)]
    field.clock.now += 0.1
    field.probes.services[before[0]] = field.probes.services["s127"] = 8
    changed_at = field.clock.now
    field.poll()
    after = field.probes.asked
    assert (sorted(after[: PIECE * 2]), sorted(after[PIECE * 2 :])) == (
        sorted({e.query.service for e in field.subscriptions} - set(before)),
        sorted(before),
    )
    assert sorted(field.moved) == sorted({before[0], "s127"})
    assert (field.poller.polled, field.poller.polled_from, field.poller.pending) == (1, changed_at, False)


def test_what_is_being_asked_for_when_something_changes_is_asked_once_more() -> None:
    field = Field(services=PIECE, nodes=None)

    def change() -> None:
        field.probes.take = lambda: None
        field.poller.poll_changed()

    field.poller.poll_changed()
    field.probes.take = change
    first_piece(field)
    assert (field.poller.polled, field.poller.pending) == (0, True)
    assert len(first_piece(field)) == PIECE
    assert (field.poller.polled, field.poller.pending) == (1, False)


@pytest.mark.parametrize("why", ["a verification waits", "the budget is spent"])
def test_a_poll_ends_all_the_same(why: str) -> None:
    """Then another one follows, when it is time."""
    field = Field(services=PIECE * 2, nodes=None)
    field.poller.poll_changed()
    if why == "the budget is spent":
        field.probes.take = lambda: setattr(field.clock, "now", field.clock.now + 4.0)
    first_piece(field)
    field.probes.take = lambda: None
    if why == "a verification waits":
        field.poller.audit()
    field.poller.poll_changed()
    assert len(first_piece(field)) == PIECE
    assert (field.poller.polled, field.poller.pending, len(field.jobs.waiting)) == (1, True, 0)
    assert field.jobs.later


def test_those_that_changed_last_are_asked_first() -> None:
    field = Field(services=1000, nodes=300)
    assert field.node_names is not None
    field.poll()
    for n, node in enumerate(("vm-250", "vm-99", "vm-7")):
        field.probes.nodes[node] = 100 + n
    field.poll()
    field.node_names.append("vm-new")
    field.poller.poll_changed()
    assert first_piece(field)[:4] == ["vm-new", "vm-7", "vm-99", "vm-250"]


def test_a_poll_that_failed_rests_and_goes_on() -> None:
    field = Field(services=PIECE * 2, nodes=None)
    field.probes.error = TransientError("reset", retry_after_seconds=7.0)
    assert field.poll() == []
    assert field.failures == [field.probes.error]  # once, not for every piece
    assert (field.poller.polled, field.poller.pending) == (0, True)
    assert field.wait(6.9) == []
    field.poller.poll_changed()  # not before its time either
    assert field.wait(0.2) == []
    assert field.attempts == [1, 2]
    field.probes.error = None
    assert len(field.wait(7.0)) == PIECE * 4  # the one that goes on, and the one that was asked for meanwhile
    assert field.poller.polled == 2


def test_what_a_poll_has_asked_for_is_not_asked_again_after_a_failure() -> None:
    field = Field(services=PIECE * 4, nodes=None)
    field.poller.poll_changed()
    for _ in range(2):
        field.jobs.waiting.popleft()(cast(ConsulClient, field.probes))
    before, field.probes.error = set(field.probes.asked), TransientError("reset")
    field.poll(lambda: None)
    field.probes.error = None
    after = field.wait()
    assert (len(before), len(after)) == (PIECE * 2, PIECE * 2)
    assert before | set(after) == {e.query.service for e in field.subscriptions}
    assert (field.poller.polled, field.poller.pending) == (1, False)


def test_after_a_429_few_probes_are_sent_a_second_and_the_poll_ends_all_the_same() -> None:
    field = Field(services=PIECE * 10, nodes=None)
    field.probes.error = ThrottledError("slower")
    field.poll()
    for _ in range(5):
        field.wait()  # 128 probes a second, and half as many each time: 4
    field.probes.error = None
    begin, asked = field.clock.now, []
    while not field.poller.polled:
        asked.append(len(field.wait(1.0)))
    assert max(asked[:4]) <= 10
    assert sum(asked) == PIECE * 10
    assert field.clock.now - begin < 60.0  # it becomes quicker again while Consul is content


def test_where_a_nodes_probe_is_refused_services_are_asked_instead_for_a_while() -> None:
    """One node that the token may not see must not keep all changes from being found."""
    field = Field(services=100, nodes=10)
    field.poll()
    field.probes.refused.add("vm-2")
    del field.probes.nodes["vm-2"]
    field.poll()
    assert field.attempts == [1]
    assert field.wait(4.9) == []
    assert len(field.wait(0.2)) == 100
    assert (field.poller.polled, field.poller.pending) == (2, False)
    field.clock.now += 1000.0
    field.probes.nodes["vm-2"] = 7
    assert field.poll() == field.node_names


def test_a_verification_that_is_due_goes_before_the_next_look_and_looks_between_verifications() -> None:
    """In a busy catalog a look is always due."""
    field = Field(services=PIECE, nodes=None)
    field.poller.poll_changed()
    field.poller.poll_changed()
    field.poller.audit()
    kinds = []
    for _ in range(4):
        field.poll(field.poller.tick)
        kinds.append((field.poller.polled, field.poller.audited))
        field.poller.poll_changed()
        field.poller.audit()
        field.clock.now += 10.0
    assert kinds == [(1, 0), (1, 1), (2, 1), (2, 2)]


def shares(field: Field, took: float, seconds: Sequence[float]) -> list[float]:
    """Ask for polls without end, each of which takes `took` seconds; the share of each stretch of time they ran."""
    found = []
    for stretch in seconds:
        begin, ran = field.clock.now, 0.0
        while field.clock.now - begin < stretch:
            field.poller.poll_changed()
            if field.jobs.waiting:
                field.poll(field.poller.tick, seconds=took)
                ran += took
            else:
                field.clock.now += 0.01
        found.append(ran / stretch)
    return found


def test_polls_take_half_of_a_busy_minute_and_a_fifth_of_a_busy_hour() -> None:
    field = Field(services=PIECE, nodes=None)
    first, minute, hour = shares(field, took=0.3, seconds=(2.0, 60.0, 3600.0))
    assert first > 0.9  # saved up in quiet times: at once
    assert 0.45 < minute < 0.6
    assert 0.18 < hour < 0.24


def test_one_long_poll_is_paid_for_by_a_long_rest() -> None:
    field = Field(services=PIECE, nodes=None)
    field.poll(seconds=100.0)
    field.poller.poll_changed()
    assert not field.jobs.waiting
    field.clock.now += 193.0  # 100 s less 3 s saved, at half of the time: 194 s
    field.poller.tick()
    assert not field.jobs.waiting
    field.clock.now += 8.0  # 100 s less 60 s saved, at a fifth: 200 s
    field.poller.tick()
    assert field.jobs.waiting


def test_a_change_during_a_long_verification_is_looked_for_at_its_end() -> None:
    """In a busy catalog, where polls have nothing saved up; the verification is paid for by the next one."""
    field = Field(services=PIECE, nodes=None)
    shares(field, took=0.3, seconds=(600.0,))
    field.clock.now += 1.0
    field.poll(field.poller.tick)
    everything = field.poll(field.poller.audit, seconds=100.0)
    assert field.poller.audited == 1
    assert field.poll() == everything
    field.poller.audit()
    assert field.wait(399.0) == []  # 100 s less 60 s saved, at a tenth: 400 s
    field.clock.now += 2.0
    assert field.poll(field.poller.tick) == everything
    assert field.poller.audited == 2


def test_only_what_was_read_before_a_watch_began_is_verified() -> None:
    field = Field(services=100, nodes=10)
    assert len(field.poll(field.poller.poll_unverified)) == 110  # nothing yet to build on: nodes, then all services
    assert all(subscription.verified_index for subscription in field.subscriptions)
    assert field.poll(field.poller.poll_unverified) == []
    field.subscriptions[5].verified_index = field.subscriptions[6].verified_index = False
    field.probes.services["s6"] = 8
    assert field.poll(field.poller.poll_unverified) == ["s5", "s6"]
    assert field.moved == ["s6"]
    assert field.node_names is not None
    assert field.poll() == ["s6", *field.node_names]  # still not the same: a reader has it


def test_where_services_are_probed_one_request_asks_for_a_few_of_them() -> None:
    field = Field(services=100, nodes=100)
    assert len(field.poll(field.poller.poll_unverified)) == 100
    field.subscriptions[5].verified_index = False
    assert field.poll(field.poller.poll_unverified) == ["s5"]
    assert len(field.poll()) == 100
