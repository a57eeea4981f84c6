"""Random changes of a real Consul, and a `Catalog` with far too few connections that must see every one of them.

No verification polls while changes are made: what is equal in the end was reported, and not found by chance. Seeded;
the seed of a failure is in its message. PROPERTY_SEED=7 replays, PROPERTY_SECONDS=600 goes on for longer.
"""

from __future__ import annotations

import http.client
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from bridge.consul import aggregates, datacenter, link, watch
from bridge.consul.catalog import Catalog
from bridge.core.model import Known, Query
from bridge.retry import RetryPolicy
from tests.contract.sides import own_consul
from tests.support.fakes.consul import Recorder
from tests.support.lab import wait_until
from tests.support.lab.servers import Consul
from tests.support.options import consul_config
from tests.support.raw import RawConsul, UnexpectedAnswerError

BUDGET = 8
SERVICES, NODES, CHANGES = 20, 6, 40
SECONDS = float(os.environ.get("PROPERTY_SECONDS", "20"))
SEED = int(os.environ.get("PROPERTY_SEED") or (1 if os.environ.get("CI") == "true" else random.randrange(10**6)))
QUICK = RetryPolicy(initial_seconds=0.05, max_seconds=0.5)

EVERYTHING = 'service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }'
MUTATORS, MUTATORS_HEX = "127.0.0.2", "0200007F"
"""Where the mutator's own connections come from, also as in /proc/net/tcp: never taken for ours."""

ALL = frozenset(Query("dc1", f"s{n}") for n in range(SERVICES)) | {
    Query("dc1", f"s{n}", filter='Service.Meta.v == "1"') for n in range(3)
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Consul]:
    """A Consul with ACLs, to be killed."""
    with own_consul(tmp_path, acl=True) as consul:
        yield consul


class Mutator:
    """Consul, and the hand that changes it."""

    def __init__(self, server: Consul, seed: int) -> None:
        self.server = server
        self.random = random.Random(seed)
        self.done: list[str] = []
        self.hidden = ""
        self.raw = RawConsul(server.address, server.token, source=MUTATORS)
        policy = self.raw.json("PUT", "/v1/acl/policy", {"Name": "bridge", "Rules": EVERYTHING})
        self._policy = policy["ID"]
        self.token = self.raw.json("PUT", "/v1/acl/token", {"Policies": [{"Name": "bridge"}]})["SecretID"]
        self._instances: dict[tuple[str, str], str] = {}
        self._nodes: set[str] = set()
        self._kinds: tuple[tuple[int, Callable[[], str]], ...] = (
            (8, self._register), (8, self._flip), (3, self._deregister), (2, self._node_check), (2, self._maintain),
            (2, self._move_node), (1, self._drop_node),
        )  # fmt: skip

    # ------------------------------------------------------------------ changes

    def change(self) -> None:
        """One random change."""
        (kind,) = self.random.choices([k for _, k in self._kinds], [weight for weight, _ in self._kinds])
        self.done.append(kind())

    def crash(self) -> None:
        """Consul is killed, and comes back with its data."""
        self.done.append("crash")
        self.server.kill()
        time.sleep(self.random.random())
        self.server.start(wait=False)  # the lab's own question would be a connection that cannot be told from ours
        wait_until(self._serves, 60, "its catalog")

    def _serves(self) -> bool:
        """Whether what its disk holds is there again: until then it refuses checks of services it does not know yet."""
        try:
            return self.raw.send("GET", "/v1/catalog/nodes?consistent")[0] == 200
        except (OSError, http.client.HTTPException):
            self.raw.close()
            return False

    def narrow(self) -> None:
        """The token may not see one of the services any more."""
        self.hidden = f"s{self.random.randrange(SERVICES)}"
        self._allow(f'{EVERYTHING} service "{self.hidden}" {{ policy = "deny" }}')

    def widen(self) -> None:
        """It may again."""
        self.hidden = ""
        self._allow(EVERYTHING)

    def _allow(self, rules: str) -> None:
        self.done.append(f"rights: {rules.removeprefix(EVERYTHING)}")
        self.raw.json("PUT", f"/v1/acl/policy/{self._policy}", {"Name": "bridge", "Rules": rules})

    def _write(self, node: str, **fields: Any) -> None:
        body = {"Node": node, "Address": "", "SkipNodeUpdate": True, **fields}
        self.raw.json("PUT", "/v1/catalog/register", body)

    def _register(self) -> str:
        """A new instance, or another port, address, meta, tags or service name of one that is there."""
        choose = self.random
        node, number = f"n{choose.randrange(NODES)}", choose.randrange(5)
        identity, name = f"{node}-{number}", f"s{choose.randrange(SERVICES)}"
        old = self._instances.get((node, identity), "")
        if old and choose.random() < 0.7:
            name = old
        if self.hidden in (name, old) and self.hidden:
            return "nothing"
        service = {
            "ID": identity, "Service": name, "Port": 8000 + choose.randrange(3),
            "Meta": {"v": str(choose.randrange(3))}, "Tags": choose.sample(["a", "b", "c"], 2),
            "Address": choose.choice(["", f"10.1.0.{number + 1}"]),
        }  # fmt: skip
        known = {"SkipNodeUpdate": True} if node in self._nodes else {"SkipNodeUpdate": False, "Address": "10.0.0.1"}
        check = self._check(identity, choose.choice(["passing", "passing", "warning", "critical"]))
        self._write(node, Service=service, **known, **({"Check": check} if choose.random() < 0.6 else {}))
        self._nodes.add(node)
        self._instances[node, identity] = name
        return f"register {node} {service}"

    def _check(self, identity: str, status: str) -> dict[str, str]:
        return {"CheckID": f"check:{identity}", "Name": "c", "Status": status, "ServiceID": identity}

    def _pick(self) -> tuple[str, str] | None:
        found = sorted(key for key, name in self._instances.items() if name != self.hidden)
        return self.random.choice(found) if found else None

    def _flip(self) -> str:
        if (key := self._pick()) is None:
            return "nothing"
        status = self.random.choice(["passing", "warning", "critical"])
        self._write(key[0], Check=self._check(key[1], status) | {"Output": str(self.random.random())})
        return f"flip {key} {status}"

    def _deregister(self) -> str:
        if (key := self._pick()) is None:
            return "nothing"
        self.raw.json("PUT", "/v1/catalog/deregister", {"Node": key[0], "ServiceID": key[1]})
        del self._instances[key]
        return f"deregister {key}"

    def _maintain(self) -> str:
        if (key := self._pick()) is None:
            return "nothing"
        check = f"_service_maintenance:{key[1]}"
        if self.random.random() < 0.5:
            self._write(key[0], Check={"CheckID": check, "Name": "m", "Status": "critical", "ServiceID": key[1]})
            return f"maintain {key}"
        self.raw.json("PUT", "/v1/catalog/deregister", {"Node": key[0], "CheckID": check})
        return f"end maintenance {key}"

    def _any_node(self) -> str:
        """A node that has nothing hidden on it."""
        shy = {node for (node, _), name in self._instances.items() if name == self.hidden}
        return self.random.choice(sorted(self._nodes - shy) or [""])

    def _node_check(self) -> str:
        if not (node := self._any_node()):
            return "nothing"
        status = self.random.choice(["passing", "passing", "warning", "critical"])
        self._write(node, Check={"CheckID": "alive", "Name": "alive", "Status": status})
        return f"node check {node} {status}"

    def _move_node(self) -> str:
        if not (node := self._any_node()):
            return "nothing"
        address, rack = f"10.0.0.{self.random.randrange(1, 9)}", str(self.random.randrange(3))
        self._write(node, Address=address, NodeMeta={"rack": rack}, SkipNodeUpdate=False)
        return f"move {node} {address} {rack}"

    def _drop_node(self) -> str:
        if not (node := self._any_node()):
            return "nothing"
        self.raw.drop_node(node)
        self._nodes.discard(node)
        self._instances = {key: name for key, name in self._instances.items() if key[0] != node}
        return f"drop {node}"

    # ------------------------------------------------------------------ the truth

    def truth(self, query: Query) -> set[tuple[object, ...]]:
        """What a plain read of a service shows, in code that the bridge has no part in."""
        path = f"/v1/health/service/{query.service}?consistent&filter={quote(query.filter)}"
        return {
            (
                e["Node"]["Node"], e["Node"]["Address"], tuple(sorted((e["Node"]["Meta"] or {}).items())),
                e["Service"]["ID"], e["Service"]["Address"], e["Service"]["Port"],
                tuple(sorted(e["Service"]["Tags"])),
                tuple(sorted((e["Service"]["Meta"] or {}).items())), _worst(e["Checks"]),
            )
            for e in self.raw.json("GET", path)
        }  # fmt: skip


def _worst(checks: list[dict[str, Any]]) -> str:
    if any(c["CheckID"].startswith("_service_maintenance:") for c in checks):
        return "maintenance"
    return next((s for s in ("critical", "warning") if any(c["Status"] == s for c in checks)), "passing")


def told(recorder: Recorder, query: Query) -> object:
    """The last view that was reported, in the shape of `Mutator.truth`."""
    return shape(recorder.views.get(query))


def shape(state: object) -> object:
    """A view in the shape of `Mutator.truth`."""
    if not isinstance(state, Known):
        return state
    return {
        (i.node, i.node_address, i.node_meta, i.id, i.address, i.port, i.tags, i.meta, i.status.value)
        for i in state.instances
    }


@contextmanager
def counted(server: Consul) -> Iterator[list[int]]:
    """The most connections to Consul that this process had open at once, the mutator's own left out: [that]."""
    most, stop = [0], threading.Event()
    port = f":{server.ports['http']:04X}"

    def count() -> None:
        while not stop.wait(0.005):
            rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
            mine = [r for r in rows if r[2].endswith(port) and r[9] != "0" and not r[1].startswith(MUTATORS_HEX)]
            most[0] = max(most[0], len(mine))

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield most
    finally:
        stop.set()
        thread.join()


def differences(mutator: Mutator, recorder: Recorder, wanted: frozenset[Query]) -> list[str]:
    return [
        f"{query}: told {told(recorder, query)}, is {truth}"
        for query in sorted(wanted)
        if query.service != mutator.hidden and (truth := mutator.truth(query)) != told(recorder, query)
    ]


def agree(mutator: Mutator, recorder: Recorder, wanted: frozenset[Query], seconds: float = 30.0) -> list[str]:
    """Wait until what was reported is what is; returns what still differs."""
    deadline = time.monotonic() + seconds
    while (found := differences(mutator, recorder, wanted)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def last_known(recorder: Recorder, service: str) -> dict[Query, object]:
    found: dict[Query, object] = {}
    for kind, *rest in tuple(recorder.events):
        if kind == "view" and rest[0].service == service and isinstance(rest[1], Known):
            found[rest[0]] = rest[1]
    return found


def test_whatever_happens_to_consul_every_change_is_reported_within_the_budget(
    server: Consul, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = RetryPolicy(initial_seconds=0.2, max_seconds=0.5)
    monkeypatch.setattr(watch, "PERMANENT_RETRY", slow)
    monkeypatch.setattr(link, "PERMANENT_RETRY", slow)
    monkeypatch.setattr(datacenter, "PROMOTED_WAIT_SECONDS", 0.5)
    monkeypatch.setattr(aggregates, "LINGER_SECONDS", 0.5)
    print(f"PROPERTY_SEED={SEED}")
    mutator, recorder = Mutator(server, SEED), Recorder()
    config = consul_config(
        address=server.address, token=mutator.token, connections=BUDGET, wait_seconds=5.0, verify_seconds=36000.0
    )
    catalog = Catalog(config, ["dc1"], recorder, QUICK, recorder.failed)
    with counted(server) as most:
        catalog.start()
        try:
            rounds = _rounds(mutator, catalog, recorder)
            _verify(catalog, recorder)
        except (AssertionError, UnexpectedAnswerError) as error:
            last = "\n".join(mutator.done[-2 * CHANGES :])
            raise AssertionError(f"{error}\nto see it again: PROPERTY_SEED={SEED}. The last changes:\n{last}") from None
        finally:
            catalog.close()
            mutator.raw.close()
    print(f"{rounds} rounds, {len(mutator.done)} changes, at most {most[0]} connections")
    assert recorder.failures == []
    assert 0 < most[0] <= BUDGET
    assert recorder.count("rebuilt") == 0


def _rounds(mutator: Mutator, catalog: Catalog, recorder: Recorder) -> int:
    choose, deadline, number = mutator.random, time.monotonic() + SECONDS, 0
    wanted = ALL
    while number < 4 or time.monotonic() < deadline:
        if number % 2 == 0:  # by turns more and fewer services than connections
            wanted = ALL
        elif choose.random() < 0.7:
            wanted = frozenset(choose.sample(sorted(ALL), choose.choice([2, 3, 12])))
        before: dict[Query, object] = {}
        if number % 4 == 2:
            mutator.narrow()
            before = last_known(recorder, mutator.hidden)
        late = choose.randrange(CHANGES)
        crash = choose.randrange(CHANGES) if number % 4 == 1 else -1
        for step in range(CHANGES):
            if step == late:
                catalog.want(wanted)
            if step == crash:
                mutator.crash()
            mutator.change()
            if choose.random() < 0.3:
                time.sleep(choose.random() * 0.05)
        assert not (found := agree(mutator, recorder, wanted)), f"round {number}: {found}"
        if mutator.hidden:
            after = last_known(recorder, mutator.hidden)
            # what was not wanted for a while may have been emptied before it was hidden: then empty is the truth
            lost = [q for q in before if after[q] != before[q] and shape(after[q]) != mutator.truth(q)]
            assert not lost, f"round {number}: {mutator.hidden} was hidden, and changed: {after}"
            mutator.widen()
            assert not (found := agree(mutator, recorder, wanted)), f"round {number}, all rights again: {found}"
        number += 1
    return number


def _verify(catalog: Catalog, recorder: Recorder) -> None:
    """A full poll finds nothing."""
    poller = catalog._watches["dc1"]._poller
    told_before, done = recorder.count("view"), poller.audited
    poller.audit()
    deadline = time.monotonic() + 30
    while poller.audited == done:
        assert time.monotonic() < deadline, "the verification does not end"
        time.sleep(0.05)
    time.sleep(0.5)  # what it found would be read now
    assert recorder.count("view") == told_before
    assert catalog.status()["datacenters"]["dc1"]["missed_changes"] == 0
