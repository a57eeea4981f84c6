"""Leases and Events, asked of the fake and of the real API server by the same functions."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bridge.core.model import Kind
from bridge.core.ownership import OWNER
from bridge.errors import StaleError
from bridge.kube.client import KubeClient
from bridge.kube.election import Election
from bridge.kube.events import About, Event, EventRecorder
from bridge.kube.lease import LeaseLock
from bridge.kube.lease_api import ALIVE_DURATIONS, KubeLeases, holder
from bridge.kube.members import KIND, ElectionConfig
from tests.contract.sides import BOTH, kube_side
from tests.support.fakes.kube import wait_for
from tests.support.raw import RawKube


@dataclass
class Side:
    """One of the two servers, with a fresh namespace."""

    namespace: str
    raw: RawKube
    client: KubeClient

    def lock(self, identity: str, duration_seconds: int = 15) -> LeaseLock:
        """A candidate's lock."""
        return LeaseLock(self.client, self.namespace, "bridge", identity, duration_seconds=duration_seconds)

    def events(self) -> list[dict[str, object]]:
        """The Events of the namespace."""
        found = self.raw.json("GET", f"/apis/events.k8s.io/v1/namespaces/{self.namespace}/events")
        return list(found["items"])


@pytest.fixture(params=BOTH)
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Side]:
    """The fake, or the lab's API server with a namespace that is deleted afterwards."""
    with kube_side(request, tmp_path, "lease") as made:
        yield Side(made.namespace, made.raw, made.client)


# --------------------------------------------------------------------------- the lock


def test_one_look_tells_whether_a_replica_writes(side: Side) -> None:
    """It holds a shard of this owner, and renewed its own Lease lately; a client that may list none sees none."""
    late = timedelta(seconds=(ALIVE_DURATIONS + 1) * 15)

    def shard(name: str, owner: str, since: timedelta = timedelta()) -> LeaseLock:
        locks = [
            LeaseLock(
                side.client, side.namespace, f"{name}-{kind}", f"replica-{name}", labels={OWNER: owner, KIND: kind},
                wall=lambda: datetime.now(UTC) - since,
            )
            for kind in ("member", "shard")
        ]  # fmt: skip
        locks[0].acquire(None)
        return locks[1]

    def seen(*namespaces: str) -> str:
        return holder(side.client, "one", namespaces or (side.namespace,))

    shard("standby", "one")
    for lock in (shard("killed", "one", since=late), shard("others", "two")):
        lock.acquire(None)
    assert seen() == ""
    lock = shard("running", "one")
    held = lock.acquire(None)
    assert (seen(), seen("default"), seen("default", side.namespace)) == ("replica-running", "", "replica-running")
    lock.release(held)
    assert seen() == ""


def test_a_lease_is_created_renewed_and_released(side: Side) -> None:
    """The record says who, since when and for how long; a release leaves it free for the next at once."""
    lock = side.lock("one")
    assert lock.read() is None
    held = lock.acquire(None)
    assert (held.holder, held.duration_seconds, held.transitions) == ("one", 15, 0)
    renewed = lock.renew(held)
    assert renewed.acquire_time == held.acquire_time
    assert renewed.renew_time > held.renew_time
    assert lock.read() == renewed
    lock.release(renewed)
    free = lock.read()
    assert free is not None
    assert (free.holder, free.transitions) == ("", 0)
    taken = side.lock("two").acquire(free)
    assert (taken.holder, taken.transitions) == ("two", 1)
    assert side.lock("two").read(cached=True) is not None


def test_only_the_record_that_was_seen_is_replaced(side: Side) -> None:
    """Creating twice, renewing, releasing or deleting an older record, taking what was renewed: each is stale."""
    one, two = side.lock("one"), side.lock("two")
    first = one.acquire(None)
    with pytest.raises(StaleError):
        two.acquire(None)
    second = one.renew(first)
    attempts = (
        lambda: one.renew(first), lambda: one.release(first), lambda: two.acquire(first), lambda: two.remove(first)
    )  # fmt: skip
    for attempt in attempts:
        with pytest.raises(StaleError):
            attempt()
    assert one.read() == second
    side.raw.delete(f"/apis/coordination.k8s.io/v1/namespaces/{side.namespace}/leases/bridge")
    with pytest.raises(StaleError):
        one.renew(second)
    assert one.read() is None


def test_of_many_candidates_at_once_one_wins(side: Side) -> None:
    """Sixteen creators, then sixteen takers of one free record."""
    for round_ in range(2):
        winners = race(side, [f"c{n}-{round_}" for n in range(16)])
        held = side.lock("any").read()
        assert held is not None
        assert winners == [held.holder]
        side.lock(held.holder).release(held)


def race(side: Side, names: list[str]) -> list[str]:
    """All candidates try to take the same record at once; who succeeded."""
    seen = side.lock("any").read()
    winners: list[str] = []
    barrier = threading.Barrier(len(names))

    def work(name: str) -> None:
        barrier.wait()
        try:
            side.lock(name).acquire(seen)
            winners.append(name)
        except StaleError:
            pass

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return winners


@pytest.mark.parametrize("spec", [{}, {"holderIdentity": "somebody"}, {"leaseDurationSeconds": 5}])
def test_a_lease_of_another_client_can_be_read(side: Side, spec: dict[str, object]) -> None:
    """Missing fields are nothing worse than "no one" and "does not say"."""
    side.raw.json(
        "POST",
        f"/apis/coordination.k8s.io/v1/namespaces/{side.namespace}/leases",
        {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "bridge"}, "spec": spec},
    )
    lock = side.lock("one")
    record = lock.read()
    assert record is not None
    assert (record.holder, record.duration_seconds) == (
        spec.get("holderIdentity", ""),
        spec.get("leaseDurationSeconds", 0),
    )
    assert lock.acquire(record).holder == "one"


# --------------------------------------------------------------------------- elections, for real


class Replica:
    """One of several that share the shards, with a client of its own."""

    def __init__(self, side: Side, name: str, shards: int = 1) -> None:
        self.config = ElectionConfig(
            namespace=side.namespace, identity=name, shards=shards, duration_seconds=3, owner="contract"
        )
        self.leases = KubeLeases(side.client, self.config)
        self.election = Election(self.leases, self.config)
        self.election.start()

    @property
    def held(self) -> frozenset[int]:
        """What it may write now."""
        return self.election.held

    def stop(self) -> None:
        """End it cleanly."""
        assert self.election.stop()
        self.leases.close()

    def vanish(self) -> None:
        """End it as kill -9 would: nothing is given up."""
        self.leases.close()
        assert self.election.stop()


def leases(side: Side) -> dict[str, str]:
    """Holders of the namespace's Leases by name."""
    found = side.raw.json("GET", f"/apis/coordination.k8s.io/v1/namespaces/{side.namespace}/leases")
    return {item["metadata"]["name"]: item["spec"].get("holderIdentity") or "" for item in found["items"]}


def test_leadership_passes_on_within_a_second_of_a_clean_stop(side: Side) -> None:
    """Three replicas, one leader at any time; each that stops is followed by another and leaves nothing behind."""
    waiting = [Replica(side, f"c{n}") for n in range(3)]
    try:
        while waiting:
            assert wait_for(lambda: sum(bool(r.held) for r in waiting) == 1)
            assert wait_for(lambda: all(len(r.election.status()["replicas"]) == len(waiting) for r in waiting))
            leader = next(r for r in waiting if r.held)
            waiting.remove(leader)
            stopping = time.monotonic()
            leader.stop()
            began = time.monotonic()
            assert began - stopping < 1.5  # half of the Lease: it is given back, nothing waits until it has run out
            assert not leader.held
            if waiting:
                assert wait_for(lambda: any(r.held for r in waiting))
                assert time.monotonic() - began < 1.0
    finally:
        for replica in waiting:
            replica.stop()
    assert leases(side) == {"consul-bridge-contract-shard-0": ""}


def test_a_leader_that_is_gone_is_followed_when_its_lease_has_run_out(side: Side) -> None:
    """No release: the next one waits for the whole duration, and no longer than a little more."""
    gone, following = Replica(side, "gone"), None
    try:
        assert wait_for(lambda: bool(gone.held))
        following = Replica(side, "following")
        assert wait_for(lambda: len(following.election.status()["replicas"]) == 2)
        gone.vanish()
        began = time.monotonic()
        assert wait_for(lambda: bool(following.held), 12)
        assert 0.9 < time.monotonic() - began < 5
        assert not gone.held
    finally:
        if following is not None:
            following.stop()


def test_shards_are_shared_as_replicas_come_and_go(side: Side) -> None:
    """Six shards: one replica has all, two have three each, three two each; who goes leaves its share."""
    replicas = [Replica(side, "a", 6)]
    try:
        assert wait_for(lambda: replicas[0].held == frozenset(range(6)))
        for expected in (3, 2):
            replicas.append(Replica(side, f"r{expected}", 6))
            assert wait_for(lambda: all(len(r.held) == expected for r in replicas), 20)  # noqa: B023 - awaited here
        replicas.pop(0).stop()
        assert wait_for(lambda: all(len(r.held) == 3 for r in replicas), 20)
    finally:
        for replica in replicas:
            replica.stop()


def test_another_number_of_shards_waits_until_the_old_replicas_have_gone(side: Side) -> None:
    """And says so."""
    old = Replica(side, "old", 2)
    new = None
    try:
        assert wait_for(lambda: len(old.held) == 2)
        new = Replica(side, "new", 3)
        assert wait_for(lambda: "stands by until they have gone" in (new.election.status()["waiting"] or ""))
        assert (len(old.held), len(new.held)) == (2, 0)
        old.stop()
        assert wait_for(lambda: len(new.held) == 3)
        assert new.election.status()["waiting"] is None
    finally:
        if new is not None:
            new.stop()


def test_a_lease_that_is_not_the_bridges_is_left_alone_and_reported(side: Side) -> None:
    """A user made a Lease of that name: no replica leads, and the remedy is named."""
    path = f"/apis/coordination.k8s.io/v1/namespaces/{side.namespace}/leases"
    name = "consul-bridge-contract-shard-0"
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}, "spec": {}}
    side.raw.json("POST", path, lease)
    replica = Replica(side, "one")
    try:
        assert wait_for(lambda: f"kubectl delete lease {name}" in (replica.election.error or ""))
        assert not replica.held
        side.raw.delete(f"{path}/{name}")
        assert wait_for(lambda: bool(replica.held))
        assert wait_for(lambda: replica.election.error is None)
    finally:
        replica.stop()


# --------------------------------------------------------------------------- events


def event(note: str = "it is not ours", name: str = "radosgw", namespace: str = "") -> Event:
    """An event about a Service."""
    return Event(About(Kind.SERVICE, namespace, name), "Warning", "Conflict", "Mirror", note)


def test_an_event_is_there_for_kubectl_describe(side: Side) -> None:
    """One object with the fields that people look at."""
    recorder = EventRecorder(side.client, instance="pod-1")
    recorder.start()
    recorder.record(replace(event(), about=About(Kind.ENDPOINT_SLICE, side.namespace, "radosgw-1", "uid-1")))
    assert recorder.flush(30)
    assert recorder.close()
    assert (recorder.sent, recorder.failed) == (1, 0)
    (found,) = side.events()
    assert {k: found[k] for k in ("type", "reason", "action", "note", "reportingController", "reportingInstance")} == {
        "type": "Warning",
        "reason": "Conflict",
        "action": "Mirror",
        "note": "it is not ours",
        "reportingController": "consul-bridge",
        "reportingInstance": "pod-1",
    }
    assert found["regarding"] == {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "namespace": side.namespace,
        "name": "radosgw-1",
        "uid": "uid-1",
    }


def test_repeated_events_become_a_series(side: Side) -> None:
    """A hundred times the same: one object, its count written only now and then."""
    now = [0.0]
    recorder = EventRecorder(side.client, clock=lambda: now[0], series_seconds=60)
    for second in range(100):
        now[0] = float(second)
        recorder.send(event(namespace=side.namespace))
    assert recorder.sent == 2
    (found,) = side.events()
    assert json.loads(json.dumps(found))["series"]["count"] == 61
    now[0] += 4000
    recorder.send(event(namespace=side.namespace))
    assert len(side.events()) == 2
    recorder.close()


def test_a_series_whose_event_has_expired_begins_anew(side: Side) -> None:
    """The API server drops Events after an hour; ours are made again."""
    now = [0.0]
    recorder = EventRecorder(side.client, clock=lambda: now[0], series_seconds=1)
    recorder.send(event(namespace=side.namespace))
    name = json.loads(json.dumps(side.events()[0]))["metadata"]["name"]
    side.raw.delete(f"/apis/events.k8s.io/v1/namespaces/{side.namespace}/events/{name}")
    now[0] = 10.0
    recorder.send(event(namespace=side.namespace))
    assert len(side.events()) == 1
    recorder.close()


def test_long_notes_and_names_are_cut_to_what_the_server_takes(side: Side) -> None:
    """1,024 bytes of note, 253 characters of name."""
    recorder = EventRecorder(side.client)
    recorder.send(event("ä" * 5000, name="n" * 250, namespace=side.namespace))
    assert (recorder.sent, recorder.failed) == (1, 0)
    recorder.close()
