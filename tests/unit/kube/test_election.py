"""Who may write which shard: any number of replicas, any pauses, lost answers, and changes of the number of shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.core.model import Target
from bridge.core.shards import shard_of
from bridge.errors import StaleError, TransientError
from bridge.kube.election import Election
from bridge.kube.lease import LeaseRecord
from bridge.kube.members import (
    INSTALLATION,
    JOINED,
    KIND,
    REMOVED_AFTER,
    SESSION,
    SHARDS,
    YIELDS,
    ElectionConfig,
    LeaseEvent,
    LeaseSnapshot,
    Member,
    Observations,
    may_serve,
)

DURATION = 15
TARGETS = [Target("default", f"s{n}") for n in range(12)]


@dataclass
class Server:
    """All Leases, in an API server's memory."""

    records: dict[str, LeaseRecord] = field(default_factory=dict)
    revision: int = 100
    trouble: str = ""
    """What happens to the next requests: "" nothing, "down" before the server sees it, "lost" after it was done."""
    watches: list[list[LeaseEvent]] = field(default_factory=list)
    """What each replica that watches has not been told yet."""
    lists: int = 0
    unlisted: bool = False
    """Lists fail, and nothing else does."""

    def put(self, name: str, fresh: LeaseRecord, *, seen: str | None) -> LeaseRecord:
        """Store when `seen` is the version held (None: there is none)."""
        self.up()
        if (self.records[name].resource_version if name in self.records else None) != seen:
            raise StaleError("another client was quicker")
        self.revision += 1
        uid = self.records[name].uid if seen is not None else f"uid-{self.revision}"
        stored = replace(fresh, resource_version=str(self.revision), renew_time=str(self.revision), uid=uid)
        self.records[name] = stored
        self.tell(LeaseEvent(name, stored, self.revision))
        self.answer()
        return stored

    def delete(self, name: str) -> None:
        """It is gone."""
        del self.records[name]
        self.revision += 1
        self.tell(LeaseEvent(name, None, self.revision))

    def tell(self, event: LeaseEvent) -> None:
        """A replica that watches learns of it some time later."""
        for waiting in self.watches:
            waiting.append(event)

    def up(self) -> None:
        """Refuse everything while down."""
        if self.trouble == "down":
            raise TransientError("no connection")

    def answer(self) -> None:
        """Lose the answer."""
        if self.trouble == "lost":
            raise TransientError("connection reset")


@dataclass
class MemoryLock:
    """A lock on one of them."""

    server: Server
    name: str
    kind: str
    identity: str
    annotations: Callable[[], Mapping[str, str]]
    seen: Observations
    duration_seconds: int = DURATION

    def read(self, *, cached: bool = False) -> LeaseRecord | None:
        """The last look's record, or a fresh one."""
        look = self.seen.last if cached else self.seen.look()
        if look.error is not None:
            raise look.error
        return look.records.get(self.name)

    def _fresh(self, held: LeaseRecord | None = None) -> LeaseRecord:
        base = held or LeaseRecord(self.identity, self.duration_seconds, "", "", 0, "")
        return replace(
            base,
            holder=self.identity,
            duration_seconds=self.duration_seconds,
            annotations=dict(self.annotations()),
            labels={KIND: self.kind},
        )

    def acquire(self, seen: LeaseRecord | None) -> LeaseRecord:
        """Take it."""
        return self.server.put(self.name, self._fresh(), seen=seen.resource_version if seen else None)

    def renew(self, held: LeaseRecord) -> LeaseRecord:
        """Renew it."""
        return self.server.put(self.name, self._fresh(held), seen=held.resource_version)

    def release(self, held: LeaseRecord) -> None:
        """Free it."""
        free = replace(self._fresh(held), holder="", duration_seconds=1)
        self.server.put(self.name, free, seen=held.resource_version)

    def remove(self, held: LeaseRecord) -> None:
        """Delete it."""
        self.server.up()
        if self.name in self.server.records:
            if self.server.records[self.name].resource_version != held.resource_version:
                raise StaleError("changed")
            self.server.delete(self.name)
        self.server.answer()


@dataclass
class MemoryLeases:
    """What a replica sees of the server."""

    server: Server

    def snapshot(self) -> LeaseSnapshot:
        """All of them."""
        self.server.up()
        if self.server.unlisted:
            raise TransientError("lists hang")
        self.server.lists += 1
        return LeaseSnapshot(dict(self.server.records), self.server.revision)

    def watch(self, revision: int) -> AbstractContextManager[Iterator[LeaseEvent]]:
        """The tests tell what changes, when they like."""
        raise TransientError(f"no watch from {revision}")

    def restart_watch(self) -> None:
        """What was not told yet is lost, and a list follows."""

    def close_watch(self) -> None:
        """Nothing is open."""

    def lock(
        self, name: str, kind: str, identity: str, annotations: Callable[[], Mapping[str, str]], seen: Observations
    ) -> MemoryLock:
        """One of them."""
        return MemoryLock(self.server, name, kind, identity, annotations, seen)


class Simulation:
    """A server, a clock, and replicas whose clocks are hours apart."""

    def __init__(self) -> None:
        self.server = Server()
        self.now = 0.0
        self.replicas: dict[str, Election] = {}
        self.shards: dict[str, int] = {}
        self.told: dict[str, list[frozenset[int]]] = {}
        self.blind: set[str] = set()
        """Replicas that see no Consul."""
        self.ended: set[tuple[str, str]] = set()
        """Which process knows that which other one has ended."""
        self.deaf: set[str] = set()
        """Replicas whose watch tells nothing."""
        self.mute: set[str] = set()
        """Replicas whose writes the API server does not answer."""
        self.untold: dict[str, list[LeaseEvent]] = {}
        self._count = 0

    def add(
        self, shards: int = 1, installation: str = "", name: str = "", *, watching: bool = False, process: str = ""
    ) -> str:
        """One replica more; its name."""
        name = name or f"r{self._count}"
        skew = self._count * 5000.0 - 7000
        self._count += 1
        told: list[frozenset[int]] = []
        self.replicas[name] = Election(
            MemoryLeases(self.server),
            ElectionConfig(identity=name, shards=shards, installation=installation, duration_seconds=DURATION),
            on_change=told.append,
            sees_consul=lambda: name not in self.blind,
            can_write=lambda: name not in self.mute,
            process=process,
            has_ended=lambda other: (process, other) in self.ended,
            clock=lambda: self.now + skew,
            spread=lambda low, high: (low + high) / 2,
        )
        self.told[name] = told
        self.shards[name] = shards
        if watching:
            self.untold[name] = []
            self.server.watches.append(self.untold[name])
        return name

    def hear(self, name: str, count: int | None = None) -> None:
        """A replica that watches learns what happened, or the first so many events of it."""
        events = self.untold.get(name)
        if events is None or name in self.deaf:
            return
        replica = self.replicas[name]
        replica._watch.watching = replica._observed.last.revision > 0
        for event in events[:count]:
            replica._observed.feed(event)
        del events[:count]

    def turn(self, *names: str, rounds: int = 1, seconds: float = 0.6) -> None:
        """Every named replica (default: all) has its turn, again and again."""
        for _ in range(rounds):
            for name in names or tuple(self.replicas):
                self.hear(name)
                self.replicas[name].tick()
            self.now += seconds

    def held(self) -> dict[str, list[int]]:
        """What everybody may write."""
        return {name: sorted(election.held) for name, election in self.replicas.items()}

    def writers(self, target: Target) -> list[str]:
        """Who may write a target."""
        return [n for n, e in self.replicas.items() if e.may_write(shard_of(target, self.shards[n]))]


@pytest.fixture
def sim() -> Simulation:
    """An empty one."""
    return Simulation()


def test_the_first_has_everything_at_its_second_look(sim: Simulation) -> None:
    """It joins, looks again (another replica may have been there before), and takes all shards."""
    one = sim.add(3)
    sim.turn()
    assert sim.held() == {one: []}
    sim.turn(rounds=2)
    assert sim.held() == {one: [0, 1, 2]}
    assert sim.told[one][-1] == {0, 1, 2}


def test_a_replica_that_joins_gets_its_share_and_one_that_leaves_gives_it_back(sim: Simulation) -> None:
    """4, then 2 + 2, then 4 again."""
    one = sim.add(4)
    sim.turn(rounds=3)
    two = sim.add(4)
    sim.turn(rounds=6)
    assert sim.held() == {one: [0, 1], two: [2, 3]}
    sim.replicas.pop(one).resign()
    sim.turn(rounds=3)
    assert sim.held() == {two: [0, 1, 2, 3]}
    assert sorted(r.holder for r in sim.server.records.values()) == [two] * 5


def test_a_shard_is_given_up_only_after_its_last_write(sim: Simulation) -> None:
    """`enter` says no from then on, and the other one waits for `leave`."""
    one = sim.add(2)
    sim.turn(rounds=3)
    election = sim.replicas[one]
    assert election.begin_write(1)
    two = sim.add(2)
    sim.turn(rounds=6)
    assert sim.held() == {one: [0], two: []}
    assert not election.begin_write(1)
    election.end_write(1)
    sim.turn(rounds=2)
    assert sim.held() == {one: [0], two: [1]}
    assert sim.replicas[two].begin_write(1)


@pytest.mark.parametrize("watching", [False, True])
def test_a_dead_replica_is_followed_when_its_session_has_ended(sim: Simulation, watching: bool) -> None:
    """kill -9: no replica takes its shard before its own Lease was unchanged for the duration; then that Lease goes."""
    one, two = sim.add(watching=watching), sim.add(watching=watching)
    sim.turn(rounds=4)
    assert sim.held() == {one: [0], two: []}
    before = sim.now
    dead = sim.replicas.pop(one)
    while not sim.replicas[two].held:
        sim.turn()
        assert not (dead.held and sim.replicas[two].held)
    assert DURATION - 6 <= sim.now - before <= DURATION + 1
    assert sorted(r.holder for r in sim.server.records.values()) == [two, two]


def test_in_the_steady_state_each_replica_renews_one_lease_and_lists_none(sim: Simulation) -> None:
    """However many shards there are: two replicas, an update each every five seconds."""
    one, two = sim.add(3, watching=True), sim.add(3, watching=True)
    sim.turn(rounds=10)
    assert sorted(map(len, sim.held().values())) == [1, 2]
    lists, revision, began = sim.server.lists, sim.server.revision, sim.now
    sim.turn(rounds=500)
    assert (sim.server.lists - lists, sorted(map(len, sim.held().values()))) == (0, [1, 2])
    assert (sim.server.revision - revision) / (sim.now - began) <= 0.5
    sim.replicas.pop(one).resign()
    sim.turn()
    assert sim.held() == {two: [0, 1, 2]}


def test_a_replica_that_missed_a_renewal_ends_no_session(sim: Simulation) -> None:
    """Its watch hangs for a minute: it looks, since its own renewals do not come back, and the other one goes on."""
    one, two = sim.add(watching=True), sim.add(watching=True)
    sim.turn(rounds=4)
    lists = sim.server.lists
    sim.deaf = {two}
    for _ in range(100):
        sim.turn()
        assert sim.held() == {one: [0], two: []}
    assert 60 / 5 / 1.3 <= sim.server.lists - lists <= 60 / 5 * 1.3
    sim.deaf = {one}
    sim.replicas.pop(two)
    sim.turn(rounds=100)
    assert sim.held() == {one: [0]}


def test_a_paused_replica_ends_no_session_that_was_renewed_meanwhile(sim: Simulation) -> None:
    """What it knows is old, and says that the other one is silent: the API server knows better."""
    one, two = sim.add(watching=True), sim.add(watching=True)
    sim.turn(rounds=4)
    sim.turn(rounds=4)
    for pause in (4.0, 4.0, 4.0, 4.0):  # so slow that it has no time to look what the other one does
        sim.now += pause
        sim.replicas[one]._session.step()
    before = {name: record for name, record in sim.server.records.items() if record.holder == one}
    sim.replicas[two].tick()
    assert {name: record for name, record in sim.server.records.items() if record.holder == one} == before
    sim.turn(rounds=4)
    assert sim.held() == {one: [0], two: []}


def test_a_new_session_has_nothing_of_the_one_before(sim: Simulation) -> None:
    """A user deletes the Lease of a replica: its shard is free, and taken again, for the new session."""
    one = sim.add()
    sim.turn(rounds=4)
    (name,) = (name for name, record in sim.server.records.items() if record.labels[KIND] == "member")
    sim.server.delete(name)
    sim.turn()
    assert sim.held() == {one: []}
    sim.turn(rounds=3)
    assert sim.held() == {one: [0]}
    (session,) = (r.uid for r in sim.server.records.values() if r.labels[KIND] == "member" and r.holder == one)
    assert sim.server.records["consul-bridge-default-shard-0"].annotations[SESSION] == session


def test_a_replica_serves_when_it_knows_all_that_joined_before(sim: Simulation) -> None:
    """Its only list is from before another one, which divides the work otherwise, joined; its watch hangs."""
    one = sim.add(3, watching=True)
    election = sim.replicas[one]
    election._observed.look()
    election._watch.watching, election._watch._doubtful = True, False
    sim.deaf = {one}
    two = sim.add(2)
    sim.turn(two, rounds=3)
    election.tick()
    election.tick()
    assert (sim.held(), election.status()["replicas"]) == ({one: [], two: [0, 1]}, [one])
    sim.turn(rounds=10)
    assert (sim.held(), election.status()["replicas"]) == ({one: [], two: [0, 1]}, [one, two])


def test_a_shard_whose_lease_was_deleted_is_written_until_that_is_heard_and_no_longer_than_its_fence(
    sim: Simulation,
) -> None:
    """A user deletes the Lease of a shard; the holder's watch hangs, and so do its lists."""
    one = sim.add(watching=True)
    sim.turn(rounds=4)
    sim.deaf = {one}
    sim.server.delete("consul-bridge-default-shard-0")
    sim.server.unlisted = True
    began = sim.now
    while sim.held() == {one: [0]}:
        sim.turn()
    assert sim.now - began <= 10.0
    sim.deaf, sim.server.unlisted = set(), False
    sim.turn(rounds=4)
    assert sim.held() == {one: [0]}


def test_replicas_of_before_that_renew_shards_leases_are_waited_for(sim: Simulation) -> None:
    """They would take what no replica renews: the new ones stand by until the last of them has gone."""
    old = LeaseRecord(
        "old", DURATION, "", "", 0, "1", uid="uid-1", labels={KIND: "member"}, annotations={"consul-bridge/shards": "1"}
    )
    sim.server.records["consul-bridge-default-member-old"] = old
    new = sim.add()
    sim.turn(rounds=4)
    waiting = str(sim.replicas[new].status()["waiting"])
    assert (sim.held(), "replicas of an earlier version are still running" in waiting) == ({new: []}, True)
    sim.server.delete("consul-bridge-default-member-old")
    sim.turn(rounds=2)
    assert sim.held() == {new: [0]}


def test_a_leader_that_was_started_again_does_not_keep_the_other_one_waiting(sim: Simulation) -> None:
    """It joined last, so the other one takes over when the dead leader's Lease has ended, whatever the names are."""
    one, two = sim.add(), sim.add()
    sim.turn(rounds=4)
    before = sim.now
    sim.replicas.pop(one)
    sim.turn(rounds=8)
    sim.add(name="a-new-process-in-the-same-pod")
    while not any(election.held for election in sim.replicas.values()):
        sim.turn()
    assert sim.replicas[two].held == {0}
    assert sim.now - before <= DURATION + 3


@pytest.mark.parametrize("standby", [False, True])
def test_what_a_process_held_is_free_when_it_is_known_to_have_ended(sim: Simulation, standby: bool) -> None:
    """Its container was started again: five seconds later, for what it had begun to write, and not at once."""
    sim.add(process="first")
    sim.turn(rounds=3)
    if standby:
        sim.add(process="elsewhere")
        sim.turn(rounds=3)
    sim.replicas.pop("r0")
    again = sim.add(process="second")
    before = sim.now
    sim.turn(rounds=4)
    sim.ended = {("second", "first")}
    while not any(election.held for election in sim.replicas.values()):
        sim.turn()
    assert 5.0 <= sim.now - before <= 5.0 + 3 * 0.6
    assert sim.held() == ({"r1": [0], again: []} if standby else {again: [0]})


def test_what_a_dead_replica_left_does_not_keep_a_new_one_from_a_shard_that_is_free(sim: Simulation) -> None:
    """All others of a rollout have gone; to a new process the Lease of one that was killed is as young as any."""
    last, killed = sim.add(), sim.add()
    sim.turn(rounds=4)
    sim.replicas.pop(killed)
    assert sim.replicas[last].held == {0}
    new = sim.add()
    sim.turn(rounds=4)
    sim.replicas.pop(last).resign()
    before = sim.now
    while not sim.replicas[new].held:
        sim.turn()
    assert sim.now - before <= 2.0


def test_another_number_of_shards_stands_by(sim: Simulation) -> None:
    """Old replicas go one by one; the new ones write nothing until the last has gone, and say why."""
    old = [sim.add(2), sim.add(2)]
    sim.turn(rounds=4)
    new = [sim.add(3), sim.add(3)]
    sim.turn(rounds=4)
    late = sim.add(2)  # an old one that comes back is younger than the new ones: it stands by as well
    sim.turn(rounds=4)
    assert {n for n, held in sim.held().items() if held} == set(old)
    waiting = sim.replicas[new[0]].status()["waiting"]
    assert waiting == (
        "replicas with 2 shard(s) are still running and joined earlier; this one divides the work into 3 and "
        "stands by until they have gone"
    )
    sim.replicas.pop(old[0]).resign()
    sim.turn(rounds=4)
    assert sim.held()[old[1]] == [0, 1]
    sim.replicas.pop(old[1]).resign()
    sim.turn(rounds=4)
    assert {n for n, held in sim.held().items() if held} == set(new)
    assert sim.replicas[new[0]].status()["waiting"] is None
    assert late not in {n for n, held in sim.held().items() if held}


def test_a_second_installation_writes_nothing_and_both_say_so(sim: Simulation) -> None:
    """It never takes over from the first, whose replicas come and go; not even when it is alone."""
    first = sim.add(installation="apps/first")
    sim.turn(rounds=3)
    second = [sim.add(installation="apps/second") for _ in range(2)]
    sim.turn(rounds=6)
    assert sim.held() == {first: [0], second[0]: [], second[1]: []}
    said = [sim.replicas[name].conflicting_writer for name in (first, *second)]
    way_out = "give each installation an --owner of its own"
    assert said[0] == (
        f"replicas of apps/second run, or ran lately, with our owner id 'default', and this is apps/first: {way_out}"
    )
    standing = (
        f"replicas of apps/first run, or ran lately, with our owner id 'default', and this is apps/second: {way_out}; "
        "this replica writes nothing, and if the other was removed on purpose: restart this one"
    )
    assert said[1:] == [standing, standing]
    assert sim.replicas[second[0]].status()["waiting"] == "another installation with our owner id writes"
    sim.replicas.pop(first).resign()
    sim.turn(rounds=400)
    assert sim.held() == {second[0]: [], second[1]: []}
    assert "apps/second" in sim.replicas[second[0]].conflicting_writer
    back = sim.add(installation="apps/first")
    sim.turn(rounds=4)
    assert sim.held()[back] == [0]


def test_an_installation_with_another_number_of_shards_is_not_held_up_by_one_that_writes_nothing(
    sim: Simulation,
) -> None:
    """Its new replicas joined later than the second installation's, and serve all the same."""
    old = sim.add(2, installation="apps/first")
    sim.turn(rounds=3)
    second = sim.add(3, installation="apps/second")
    sim.turn(rounds=6)
    new = sim.add(2, installation="apps/first")
    sim.turn(rounds=6)
    sim.replicas.pop(old).resign()
    sim.turn(rounds=4)
    assert sim.held() == {second: [], new: [0, 1]}


def test_a_rollout_is_no_second_installation(sim: Simulation) -> None:
    """One name, or one that is not known: they share as ever, and nothing is reported."""
    old = sim.add(2)
    sim.turn(rounds=3)
    new = sim.add(2, installation="apps/first")
    sim.turn(rounds=6)
    assert sim.held() == {old: [0], new: [1]}
    third = sim.add(2, installation="apps/first")
    sim.replicas.pop(old).resign()
    sim.turn(rounds=6)
    assert (sorted(sim.held().values()), set(sim.held())) == ([[0], [1]], {new, third})
    assert [election.conflicting_writer for election in sim.replicas.values()] == ["", ""]


def test_a_first_replica_waits_for_the_installation_that_wrote_before_it(sim: Simulation) -> None:
    """After a power cut the one whose Lease it was goes on. One that was removed is followed after a while."""
    first = sim.add(installation="apps/first")
    sim.turn(rounds=3)
    sim.replicas.pop(first).resign()
    second = sim.add(installation="apps/second")
    sim.turn(rounds=20)
    assert sim.held() == {second: []}
    assert sim.replicas[second].status()["waiting"] == (
        "apps/first wrote with our owner id before; this is apps/second, and waits in case that it comes back"
    )
    assert sim.replicas[second].conflicting_writer == ""
    back = sim.add(installation="apps/first")
    sim.turn(rounds=15)
    assert sim.held() == {second: [], back: [0]}

    sim.replicas.clear()
    third, began = sim.add(installation="apps/third"), sim.now
    sim.turn(rounds=250 * REMOVED_AFTER // 10)
    assert (sim.held(), sim.replicas[third].conflicting_writer) == ({third: []}, "")
    sim.turn(rounds=10)
    assert sim.held() == {third: [0]}
    assert REMOVED_AFTER * DURATION <= sim.now - began < REMOVED_AFTER * DURATION + 10
    assert sim.server.records["consul-bridge-default-shard-0"].annotations[INSTALLATION] == "apps/third"


def test_a_member_yields_in_public_only_when_its_last_write_has_ended(sim: Simulation) -> None:
    """A replica that ignores it from then on may write at once."""
    one = sim.add(installation="apps/first")
    sim.turn(rounds=3)
    election = sim.replicas[one]
    assert election.begin_write(0)
    name = "consul-bridge-default-shard-0"
    two = sim.add(installation="apps/second")
    taken = replace(sim.server.records[name], holder=two, resource_version="900")  # deleted by hand, and recreated
    sim.server.records[name] = replace(taken, annotations={INSTALLATION: "apps/second"})
    sim.turn(rounds=10)
    member = next(r for r in sim.server.records.values() if r.labels[KIND] == "member" and r.holder == one)
    assert (election.held, YIELDS in member.annotations) == (frozenset(), False)
    election.end_write(0)
    sim.turn(rounds=5)
    member = next(r for r in sim.server.records.values() if r.labels[KIND] == "member" and r.holder == one)
    assert YIELDS in member.annotations


def seconds(duration: float) -> int:
    """Rounds of turns that take so long."""
    return round(duration / 0.6)


@pytest.mark.parametrize(
    ("lacking", "why"),
    [("blind", "Consul could not be asked from here"), ("mute", "did not answer what was written from here")],
)
def test_a_replica_that_lacks_something_for_long_leaves_the_writing_to_another(
    sim: Simulation, lacking: str, why: str
) -> None:
    """It sees no Consul, or its writes are not answered while its Lease is renewed over another connection.

    Half a minute, not less; back again it gets its share when that has lasted as well.
    """
    one, two = sim.add(2), sim.add(2)
    sim.turn(rounds=6)
    assert sim.held() == {one: [0], two: [1]}
    setattr(sim, lacking, {one})
    sim.turn(rounds=seconds(28))
    assert sim.held() == {one: [0], two: [1]}
    sim.turn(rounds=seconds(10))
    assert sim.held() == {one: [], two: [0, 1]}
    assert why in str(sim.replicas[one].status()["waiting"])
    setattr(sim, lacking, set())
    sim.turn(rounds=seconds(28))
    assert sim.held() == {one: [], two: [0, 1]}
    sim.turn(rounds=seconds(10))
    assert (sorted(sim.held().values()), sim.replicas[one].status()["waiting"]) == ([[0], [1]], None)


def test_while_no_replica_is_answered_the_leader_stays(sim: Simulation) -> None:
    """An etcd without room refuses everybody's writes: to change the leader would not help."""
    one, two = sim.add(), sim.add()
    sim.turn(rounds=4)
    told = len(sim.told[one])
    sim.mute = {one, two}
    sim.turn(rounds=seconds(300))
    assert (sim.held(), len(sim.told[one])) == ({one: [0], two: []}, told)


def test_reaching_consul_counts_more_than_being_able_to_write(sim: Simulation) -> None:
    """One of each: the one that has something to write keeps the shards."""
    one, two = sim.add(2), sim.add(2)
    sim.turn(rounds=6)
    sim.mute, sim.blind = {one}, {two}
    sim.turn(rounds=seconds(60))
    assert sim.held() == {one: [0, 1], two: []}


def test_while_no_replica_reaches_consul_every_shard_stays_where_it_is(sim: Simulation) -> None:
    """The leader has nothing to write, and no other replica would have."""
    one, two = sim.add(), sim.add()
    sim.turn(rounds=4)
    told = len(sim.told[one])
    sim.blind = {one, two}
    sim.turn(rounds=seconds(300))
    sim.blind = {one}
    sim.turn(rounds=seconds(10))
    sim.blind = set()
    sim.turn(rounds=seconds(60))
    assert (sim.held(), len(sim.told[one])) == ({one: [0], two: []}, told)
    sim.blind = {one, two}
    sim.turn(rounds=seconds(60))
    sim.replicas.pop(one).resign()
    sim.turn(rounds=3)
    assert sim.held() == {two: [0]}


def test_a_consul_that_comes_and_goes_moves_no_shard(sim: Simulation) -> None:
    """Away for twenty seconds, back for twenty, for ten minutes."""
    one, two = sim.add(), sim.add()
    sim.turn(rounds=4)
    told = len(sim.told[one])
    for _ in range(15):
        sim.blind = {one}
        sim.turn(rounds=seconds(20))
        sim.blind = set()
        sim.turn(rounds=seconds(20))
    assert (sim.held(), len(sim.told[one])) == ({one: [0], two: []}, told)


def test_a_replica_that_starts_without_consul_gets_no_shard_while_another_reaches_it(sim: Simulation) -> None:
    """A rollout of a wrong address: the replicas that work go on."""
    one, two = sim.add(2), sim.add(2)
    sim.blind = {two}
    sim.turn(rounds=12)
    assert sim.held() == {one: [0, 1], two: []}


def test_a_replica_that_does_not_say_whether_it_sees_consul_is_no_reason_to_give_up(sim: Simulation) -> None:
    """One of an older version, during a rolling update."""
    one = sim.add(2)
    sim.blind = {one}
    sim.server.records["consul-bridge-default-member-silent"] = LeaseRecord(
        "silent", DURATION, "", "", 0, "1", labels={KIND: "member"}, annotations={SHARDS: "2", JOINED: "1"}
    )
    sim.turn(rounds=5)
    assert sim.held() == {one: [0]}


def test_without_a_server_writing_ends_and_comes_back(sim: Simulation) -> None:
    """Fenced before anyone could take over; the reason is reported."""
    one = sim.add()
    sim.turn(rounds=4)
    sim.server.trouble = "down"
    sim.turn(rounds=20)
    assert (sim.held(), sim.replicas[one].error) == ({one: []}, "no connection")
    sim.turn(rounds=20)
    sim.server.trouble = ""
    sim.turn(rounds=6)
    assert (sim.held(), sim.replicas[one].error) == ({one: [0]}, None)


def test_a_resignation_without_a_server_ends_soon(sim: Simulation) -> None:
    """One unanswered request, not one per shard."""
    one = sim.add(8)
    sim.turn(rounds=4)
    sim.server.trouble = "down"
    sim.replicas[one].resign()
    assert (sim.held(), sim.told[one][-1]) == ({one: []}, frozenset())
    assert len(sim.server.records) == 9


def test_a_bug_ends_the_thread_loudly(eventually: Callable[..., None]) -> None:
    """`failed` is called."""

    class Broken(MemoryLeases):
        def snapshot(self) -> LeaseSnapshot:
            raise RuntimeError("bug")

    failures: list[BaseException] = []
    election = Election(Broken(Server()), ElectionConfig(identity="one"), failed=failures.append)
    election.start()
    eventually(lambda: [str(f) for f in failures], ["bug"])
    assert election.stop()


def test_only_a_member_that_joined_earlier_with_other_shards_blocks() -> None:
    """Same number, or younger: no matter."""
    me = Member("me", 2, 10)
    assert may_serve(me, [me, Member("a", 2, 5), Member("b", 3, 11)])
    assert not may_serve(me, [me, Member("a", 3, 9)])
    assert may_serve(me, [me, Member("a", 3, 9, demoted=True)])
    assert not may_serve(replace(me, installation="x"), [Member("a", 2, 9, "y")])
    assert may_serve(replace(me, installation="x"), [Member("a", 2, 9), Member("b", 2, 9, "x")])
    assert not may_serve(replace(me, demoted=True), [me])


steps = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.floats(0.0, 6.0),
        st.sampled_from(
            ["", "", "", "", "", "hear", "hear", "down", "lost", "stop", "vanish", "more", "blind", "sees"]
        ),
    ),
    min_size=20,
    max_size=150,
)


@settings(max_examples=150, deadline=None)
@given(
    steps=steps,
    numbers=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    names=st.lists(st.sampled_from(["", "", "a", "b"]), min_size=3, max_size=3),
    watching=st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_no_target_ever_has_two_writers(
    steps: list[tuple[int, float, str]], numbers: list[int], names: list[str], watching: list[bool]
) -> None:
    """Whatever happens in whatever order, with different numbers of shards, of one or two installations.

    A replica that watches learns of events late, and acts on what it knows.

    In the end a replica writes each; with two installations, unless all that are left gave way to one that has gone.
    """
    sim = Simulation()
    kinds = list(zip(numbers, names, watching, strict=True))
    alive = [sim.add(number, name, watching=watches) for number, name, watches in kinds]
    for index, pause, what in steps:
        sim.now += pause
        assert_single_writers(sim)
        name = alive[index % len(alive)]
        sim.server.trouble = what if what in ("down", "lost") else ""
        if what in ("stop", "vanish") and len(alive) > 1:
            if what == "stop":
                sim.replicas[name].resign()  # its object stays in the sim: it must never write again
            alive.remove(name)
        elif what == "more" and len(alive) < 5:
            number, name, watches = kinds[index % 3]
            alive.append(sim.add(number, name, watching=watches))
        elif what in ("blind", "sees"):
            sim.blind = sim.blind | {name} if what == "blind" else sim.blind - {name}
        else:
            if what == "hear":
                sim.hear(name, 1 + index)
            sim.replicas[name].tick()
        assert_single_writers(sim)
    sim.server.trouble = ""
    for _ in range(140 if len({*names} - {""}) < 2 else 300):
        sim.turn(*alive)
        assert_single_writers(sim)
    serving = {sim.shards[n] for n in alive if sim.replicas[n].held}
    if len({*names} - {""}) < 2 or serving:
        assert len(serving) == 1
        assert all(len(sim.writers(target)) == 1 for target in TARGETS)
        if len({*numbers}) == len({*names}) == 1 and not sim.blind.issuperset(alive):
            assert not any(sim.held()[name] for name in sim.blind)
    else:
        assert all("writes nothing" in sim.replicas[n].conflicting_writer for n in alive)


def assert_single_writers(sim: Simulation) -> None:
    """At most one writer per target, now."""
    for target in TARGETS:
        assert len(sim.writers(target)) <= 1, (target, sim.held())
