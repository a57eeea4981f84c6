"""Several replicas as several processes on real servers: one writer per service at any time, whatever ends or pauses.

Every replica has a ServiceAccount of its own with the Role as shipped, so the API server's audit log tells who wrote
what and when.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from typing import Any

import pytest

from bridge.core.model import Target
from bridge.core.shards import shard_of
from tests.support.lab import AuditEntry, Lab
from tests.support.lab.manifests import MANIFESTS, kustomize
from tests.support.program import Daemon, bridge, environment, pause
from tests.support.raw import RawConsul, RawKube, ready_addresses

pytestmark = [pytest.mark.lab, pytest.mark.slow]

Json = dict[str, Any]
Eventually = Callable[..., None]
LEASE = 4
"""Seconds. The default is 15; everything in an election is a part of it."""


@cache
def role() -> tuple[Json, ...]:
    """What the shipped Roles allow."""
    found = [rule for o in kustomize(MANIFESTS / "base") if o["kind"] == "Role" for rule in o["rules"]]
    assert len(found) > 1
    return tuple(found)


@dataclass
class Replicas:
    """Bridges that belong together, in one namespace, for the services of one prefix."""

    lab: Lab
    consul: RawConsul
    kube: RawKube
    prefix: str
    namespace: str = "default"
    shards: int = 1
    running: dict[str, Daemon] = field(default_factory=dict)

    def add(self, name: str, *, shards: int | None = None, wait: bool = True) -> Daemon:
        """Start one more; ready when this returns, unless it is not to be waited for."""
        kubeconfig = self.lab.service_account(self.namespace, name, role())
        env = environment(
            self.lab.consul.address,
            kubeconfig,
            POD_NAME=name,
            BRIDGE_RUN_LEASE_DURATION=f"{LEASE}s",
            BRIDGE_REMOVAL_GRACE_PERIOD="1s",
        )
        count = str(shards or self.shards)
        daemon = Daemon(
            self.lab,
            name,
            *(*self.selection, "--leader-elect", "--shards", count),
            env=env,
        )
        self.lab.add(daemon)
        daemon.start(wait=wait)
        self.running[name] = daemon
        return daemon

    @property
    def selection(self) -> tuple[str, ...]:
        """Flags that mean these services."""
        return ("--service", f"{self.prefix}*", "--namespace", self.namespace)

    @property
    def admin(self) -> dict[str, str]:
        """The environment of a user at the keyboard."""
        return environment(self.lab.consul.address, self.lab.kubeconfig)

    def held(self) -> dict[str, list[int]]:
        """The shards of everybody who answers."""
        return {
            name: daemon.readiness().get("election", {}).get("held", [])
            for name, daemon in self.running.items()
            if daemon.running
        }

    def leader(self) -> str:
        """Who has shard 0, "" while no replica has it."""
        return next((name for name, held in self.held().items() if 0 in held), "")

    def register(self, number: int, *, status: str = "passing") -> None:
        """One service with one instance."""
        name = f"{self.prefix}{number}"
        self.consul.register(name, f"{self.prefix}vm-{number}", f"10.78.0.{number + 1}", 80, status=status)

    def register_steady(self, number: int) -> None:
        """One instance more of a service, which nothing happens to."""
        self.consul.register(f"{self.prefix}{number}", f"{self.prefix}steady-{number}", f"10.79.0.{number + 1}", 80)

    def ready(self, number: int) -> list[tuple[str, int]]:
        """Its ready addresses in Kubernetes."""
        return ready_addresses(self.kube.endpoints(self.namespace, f"{self.prefix}{number}"))

    def writes(self, since: float = 0.0) -> dict[str, list[AuditEntry]]:
        """Writes of mirrored objects by replica, as the API server saw them."""
        written: dict[str, list[AuditEntry]] = {}
        for entry in self.lab.audit(since=since):
            mine = entry.user.startswith(f"system:serviceaccount:{self.namespace}:")
            mirrored = entry.resource in ("services", "endpoints", "endpointslices")
            if mine and mirrored and entry.verb in WRITING and "dryRun=" not in entry.uri:
                written.setdefault(entry.user.rpartition(":")[2], []).append(entry)
        return written

    def terms(self) -> dict[int, list[Term]]:
        """Who held which shard from when to when, as the API server's objects say."""
        terms: dict[int, list[Term]] = {}
        for entry in self.lab.audit():
            name, _, shard = entry.name.rpartition("-shard-")
            if not name or entry.resource != "leases" or entry.verb not in ("create", "update") or entry.code >= 300:
                continue
            of_shard = terms.setdefault(int(shard), [])
            spec = entry.sent["spec"]
            assert isinstance(spec, dict)
            holder = str(spec.get("holderIdentity") or "")
            if of_shard and not of_shard[-1].ended and of_shard[-1].holder != holder:
                of_shard[-1].ended = entry.received
            if holder and (not of_shard or of_shard[-1].ended):
                of_shard.append(Term(entry.user, holder, entry.received))
        return terms


WRITING = ("patch", "delete", "create", "update")


@dataclass
class Term:
    """From the request that took a Lease to the one that gave it up, or took it from its holder; 0.0: not over."""

    user: str
    holder: str
    began: float
    ended: float = 0.0

    def covers(self, moment: float) -> bool:
        """Whether it was going on."""
        return self.began <= moment and (moment < self.ended or not self.ended)


class Watchman:
    """Sees every version of the Endpoints of some services, and what was ready in one and not in the next."""

    def __init__(self, replicas: Replicas, always: Callable[[str], tuple[str, int] | None]) -> None:
        """`always`: the address that is to be ready in Endpoints of a name from the time on that it first was."""
        self._client = replicas.lab.raw_kube()
        self._path = f"/api/v1/namespaces/{replicas.namespace}/endpoints"
        self._always = always
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchman")
        self.seen = 0
        self.lost: list[Json] = []
        self.error: Exception | None = None

    def __enter__(self) -> Watchman:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._client.interrupt()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        there: set[str] = set()
        try:
            for event in self._client.watch(self._path, timeout_seconds=600):
                name = event["object"]["metadata"]["name"]
                if (address := self._always(name)) is None:
                    continue
                self.seen += 1
                if event["type"] != "DELETED" and address in ready_addresses(event["object"]):
                    there.add(name)
                elif name in there:
                    self.lost.append(event)
        except OSError as error:
            self.error = error
        if not self._ended.is_set():
            self.error = self.error or EOFError("the watch ended early")


@pytest.fixture
def replicas(fresh_lab: Lab) -> Iterator[Replicas]:
    """None running yet."""
    with fresh_lab.raw_consul() as consul, fresh_lab.raw_kube() as kube:
        yield Replicas(fresh_lab, consul, kube, "t-")


def test_a_standby_follows_a_leader_that_ends_dies_or_sleeps(replicas: Replicas, eventually: Eventually) -> None:
    """SIGTERM: before the lease has ended. kill -9: before it has ended twice. SIGSTOP past the lease: it never writes.

    After SIGTERM the time counts from the release: what the old leader had in flight it has finished by then.
    """
    for number in range(5):
        replicas.register(number)
    for name in ("one", "two"):
        replicas.add(name)
    eventually(lambda: [replicas.ready(n) for n in range(5)], [[(f"10.78.0.{n + 1}", 80)] for n in range(5)], 30)
    eventually(lambda: sorted(map(len, replicas.held().values())), [0, 1], 30)

    first = replicas.leader()
    assert set(replicas.writes()) == {first}
    replicas.running.pop(first).stop()
    eventually(lambda: replicas.leader() != "", True, 10)
    one, two = replicas.terms()[0]
    assert (one.ended > 0, two.began - one.ended < LEASE / 2) == (True, True), (one, two)

    three = replicas.add("three")
    second = replicas.leader()
    assert second not in ("", "three")
    killed = time.time()
    replicas.running.pop(second).kill()
    replicas.register(5)  # while no replica leads
    eventually(lambda: replicas.ready(5), [("10.78.0.6", 80)], 2 * LEASE + 20)
    took = min(entry.at for entry in replicas.writes(killed)["three"]) - killed
    assert took < 2 * LEASE, took
    assert replicas.leader() == "three"

    replicas.add("four")
    since = time.time()
    three.pause()
    eventually(lambda: four_leads(replicas), True, LEASE + 20)
    replicas.register(0, status="critical")
    eventually(lambda: replicas.ready(0), [], 20)
    pause(1.0)
    three.resume()
    eventually(lambda: replicas.held(), {"three": [], "four": [0]}, 20)
    replicas.register(1, status="critical")
    eventually(lambda: replicas.ready(1), [], 20)
    assert set(replicas.writes(since)) == {"four"}
    assert replicas.ready(2) == [("10.78.0.3", 80)]


def four_leads(replicas: Replicas) -> bool:
    """Asked of the one that is awake."""
    election = replicas.running["four"].readiness().get("election", {})
    return bool(election.get("held") == [0])


def test_a_hold_outlives_its_bridge_and_its_leader(replicas: Replicas, eventually: Eventually) -> None:
    """Nothing stores it: who comes after finds in Kubernetes what is held, and holds it for the same reason."""
    name = f"{replicas.prefix}web"
    for number in range(20):
        node = "big" if number < 15 else f"small-{number}"
        address = f"10.78.0.{number + 1}"
        replicas.consul.register(name, node, address, 80, service_id=f"web-{number}", Address=address)
    for replica in ("one", "two"):
        replicas.add(replica)

    def kept() -> int:
        return len(ready_addresses(replicas.kube.endpoints(replicas.namespace, name)))

    def told() -> dict[str, float]:
        return {name: daemon.metric("consul_bridge_held_endpoints") for name, daemon in replicas.running.items()}

    eventually(kept, 20, 30)
    eventually(lambda: sorted(map(len, replicas.held().values())), [0, 1], 30)
    replicas.consul.drop_node("big")
    leader = replicas.leader()
    eventually(lambda: told()[leader], 15.0, 30)
    since = time.time()
    replicas.running.pop(leader).kill()
    (second,) = replicas.running
    eventually(lambda: (replicas.leader(), told()), (second, {second: 15.0}), LEASE + 20)
    replicas.running.pop(second).kill()
    replicas.add("three")
    eventually(lambda: (replicas.leader(), told()), ("three", {"three": 15.0}), LEASE + 20)
    pause(2.0)
    assert (kept(), replicas.writes(since)) == (20, {})
    status = bridge("status", *replicas.selection, "-o", "json", env=replicas.admin)
    assert [row["state"] for row in status.json["services"]] == ["held"]
    forced = bridge("sync", "--yes", "--force", *replicas.selection, env=replicas.admin)
    assert (forced.status, kept()) == (0, 5)
    eventually(told, {"three": 0.0}, 30)
    assert kept() == 5


def test_a_plain_sync_leaves_to_the_running_bridge_what_that_holds(replicas: Replicas, eventually: Eventually) -> None:
    """It sees three of eleven endpoints go, and the bridge twelve of twenty; with no bridge they go."""
    name = f"{replicas.prefix}web"
    for number in range(20):
        address = f"10.78.0.{number + 1}"
        replicas.consul.register(name, f"vm-{number}", address, 80, service_id=f"web-{number}", Address=address)
    one = replicas.add("one")

    def kept() -> int:
        return len(ready_addresses(replicas.kube.endpoints(replicas.namespace, name)))

    def sync() -> tuple[int, list[str], int]:
        done = bridge("sync", "--yes", *replicas.selection, "-o", "json", env=replicas.admin)
        return done.status, [row["reason"] for row in done.json["held"]], kept()

    eventually(kept, 20, 30)
    for number in range(9):
        replicas.consul.drop_node(f"vm-{number}")
    eventually(kept, 11, 30)
    for number in range(9, 12):
        replicas.consul.drop_node(f"vm-{number}")
    eventually(lambda: one.metric("consul_bridge_held_endpoints") > 0, True, 30)
    held = kept()
    assert sync() == (3, ["running_bridge"], held)
    replicas.running.pop("one").stop()
    assert sync() == (0, [], 8)


def test_with_the_api_server_away_for_longer_than_the_lease_nothing_is_lost(
    replicas: Replicas, eventually: Eventually
) -> None:
    """No replica leads meanwhile, readiness says so; afterwards one does, and makes up for what changed."""
    for number in range(3):
        replicas.register(number)
    for name in ("one", "two"):
        replicas.add(name)
    eventually(lambda: [replicas.ready(n) for n in range(3)], [[(f"10.78.0.{n + 1}", 80)] for n in range(3)], 30)
    replicas.lab.apiserver.kill()
    replicas.register(0, status="critical")
    replicas.register(3)
    eventually(lambda: list(replicas.held().values()), [[], []], LEASE + 20)
    eventually(lambda: any(daemon.ready() for daemon in replicas.running.values()), False, 20)
    pause(LEASE)
    since = time.time()
    replicas.lab.apiserver.start()
    with replicas.lab.raw_kube() as kube:
        replicas.kube = kube
        eventually(lambda: (replicas.ready(0), replicas.ready(3)), ([], [("10.78.0.4", 80)]), 30)
        assert replicas.ready(1) == [("10.78.0.2", 80)]
    assert len(replicas.writes(since)) == 1


def test_replicas_share_six_shards_and_no_service_has_two_writers_at_once(
    replicas: Replicas, eventually: Eventually
) -> None:
    """Three replicas come, one is killed, one ends, while services change: evenly shared, all converged."""
    replicas.shards = 6
    count = 24
    status = ["passing"] * count

    def churn(rounds: int) -> None:
        for turn in range(rounds):
            for number in range(turn % 3, count, 3):
                status[number] = "critical" if status[number] == "passing" else "passing"
                replicas.register(number, status=status[number])

    def steady(number: int) -> tuple[str, int]:
        return (f"10.79.0.{number + 1}", 80)

    def always(name: str) -> tuple[str, int] | None:
        number = name.removeprefix(replicas.prefix)
        return steady(int(number)) if number.isdecimal() else None

    def converged() -> bool:
        wanted = [[(f"10.78.0.{n + 1}", 80)] if status[n] == "passing" else [] for n in range(count)]
        return [replicas.ready(n) for n in range(count)] == [[*w, steady(n)] for n, w in enumerate(wanted)]

    for number in range(count):
        replicas.register_steady(number)
    with Watchman(replicas, always) as watchman:
        churn(1)
        replicas.add("one")
        eventually(lambda: [len(h) for h in replicas.held().values()], [6], 30)
        for name, share in (("two", 3), ("three", 2)):
            replicas.add(name)
            churn(3)
            eventually(lambda: {len(h) for h in replicas.held().values()}, {share}, 30)
        churn(3)
        eventually(converged, True, 30)
        assert set(replicas.writes()) == {"one", "two", "three"}
        replicas.running.pop("two").kill()
        churn(3)
        eventually(lambda: [len(h) for h in replicas.held().values()], [3, 3], LEASE + 30)
        replicas.running.pop("one").stop()
        churn(3)
        eventually(lambda: [len(h) for h in replicas.held().values()], [6], 30)
        eventually(converged, True, 30)
    assert (watchman.error, watchman.lost) == (None, [])
    assert watchman.seen > 100
    assert_terms(replicas)


def assert_terms(replicas: Replicas) -> None:
    """Every write came to the API server within a term of its writer, and was answered before the next one's began.

    A release ends a term: a write under the released Lease would fall between two terms, and into none.
    """
    terms = replicas.terms()
    written = 0
    for entry in replicas.lab.audit():
        mine = entry.resource in ("services", "endpoints") and entry.name.startswith(replicas.prefix)
        if not mine or entry.verb not in WRITING or entry.code >= 300:
            continue
        of_shard = terms[shard_of(Target(replicas.namespace, entry.name), replicas.shards)]
        own = next((term for term in of_shard if term.covers(entry.received)), None)
        assert own is not None, entry
        assert own.user == entry.user, (entry, own)
        later = [term.began for term in of_shard if term.began > own.began]
        assert not later or entry.at <= min(later), (entry, own)
        written += 1
    assert written > 100
    assert sum(len(of_shard) for of_shard in terms.values()) > replicas.shards


def test_another_number_of_shards_takes_over_when_the_last_replica_with_the_old_one_has_gone(
    replicas: Replicas, eventually: Eventually
) -> None:
    """A rolling change: the new ones stand by and say why, the old ones go on; nothing ready is taken away."""
    count = 12

    def all_ready(last: str) -> bool:
        ends = [last if n == 0 else "1" for n in range(count)]
        return [replicas.ready(n) for n in range(count)] == [[(f"10.78.{e}.{n + 1}", 80)] for n, e in enumerate(ends)]

    def waiting(name: str) -> str:
        return str(replicas.running[name].readiness().get("election", {}).get("waiting") or "")

    def register(number: int, part: str) -> None:
        replicas.consul.register(f"{replicas.prefix}{number}", f"vm-{number}", f"10.78.{part}.{number + 1}", 80)

    for number in range(count):
        register(number, "1")
    for name in ("old-1", "old-2"):
        replicas.add(name, shards=2)
    eventually(lambda: all_ready("1"), True, 30)
    eventually(lambda: sorted(chain(*replicas.held().values())), [0, 1], 30)
    since = time.time()
    for name in ("new-1", "new-2"):
        replicas.add(name, shards=3)
    reason = "replicas with 2 shard(s) are still running"
    eventually(lambda: [reason in waiting(name) for name in ("new-1", "new-2")], [True, True], 30)
    assert [replicas.held()[name] for name in ("new-1", "new-2")] == [[], []]

    replicas.running.pop("old-1").stop()
    eventually(lambda: replicas.held().get("old-2"), [0, 1], LEASE + 20)
    register(0, "2")
    eventually(lambda: all_ready("2"), True, 30)
    assert set(replicas.writes(since)) == {"old-2"}

    replicas.running.pop("old-2").stop()
    gone = time.time()
    eventually(lambda: sorted(chain(*replicas.held().values())), [0, 1, 2], LEASE + 20)
    eventually(lambda: [waiting(name) for name in ("new-1", "new-2")], ["", ""], 10)
    register(0, "3")
    eventually(lambda: all_ready("3"), True, 30)
    assert set(replicas.writes(gone)) <= {"new-1", "new-2"}
    assert [e for e in writes_of(replicas, since) if e.verb == "delete"] == []
    only = f"{replicas.prefix}0"
    written = writes_of(replicas, since)
    assert {(e.resource, e.name if e.resource == "endpoints" else e.name.rpartition("-")[0]) for e in written} == {
        ("endpoints", only), ("endpointslices", only)
    }  # fmt: skip


def writes_of(replicas: Replicas, since: float) -> list[AuditEntry]:
    """All of them, no matter who wrote them."""
    return [entry for entries in replicas.writes(since).values() for entry in entries]


def test_a_lease_of_another_client_is_left_alone_and_reported(replicas: Replicas, eventually: Eventually) -> None:
    """It has the shard's name and not our labels: no replica leads, readiness says what to do; done, one leads."""
    name = "consul-bridge-default-shard-0"
    path = f"/apis/coordination.k8s.io/v1/namespaces/{replicas.namespace}/leases"
    theirs = {"metadata": {"name": name}, "spec": {"holderIdentity": "somebody", "leaseDurationSeconds": 5}}
    made = replicas.kube.json("POST", path, {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", **theirs})
    replicas.register(0)
    daemon = replicas.add("one", wait=False)
    said = f"the Lease {replicas.namespace}/{name} is not the bridge's: delete it (kubectl delete lease {name}"
    eventually(lambda: said in str(daemon.readiness().get("election", {}).get("error")), True, 30)
    pause(2.0 * LEASE)  # longer than anyone waits for a holder that is silent
    assert (daemon.get("/readyz")[0], replicas.held(), replicas.writes()) == (503, {"one": []}, {})
    assert replicas.kube.get(f"{path}/{name}") == made
    replicas.kube.delete(f"{path}/{name}")
    eventually(lambda: replicas.ready(0), [("10.78.0.1", 80)], LEASE + 20)
    assert replicas.leader() == "one"


def test_a_role_without_leases_is_reported(replicas: Replicas, eventually: Eventually) -> None:
    """No replica leads, readiness names the verb that is missing, and nothing is written."""
    rules = [rule for rule in role() if rule["resources"] != ["leases"]]
    kubeconfig = replicas.lab.service_account("default", "poor", rules)
    env = environment(replicas.lab.consul.address, kubeconfig, BRIDGE_RUN_LEASE_DURATION=f"{LEASE}s")
    replicas.register(0)
    daemon = Daemon(replicas.lab, "poor", "--service", "t-*", "--namespace", "default", "--leader-elect", env=env)
    replicas.lab.add(daemon)
    daemon.start(wait=False)
    eventually(lambda: "leases" in str(daemon.readiness().get("election", {}).get("error")), True, 30)
    assert daemon.get("/readyz")[0] == 503
    assert replicas.kube.endpoints("default", "t-0") is None
