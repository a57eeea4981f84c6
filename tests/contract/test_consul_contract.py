"""What `bridge.consul` counts on, asked of the fake and of the real Consul by the same functions."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bridge.consul import decode
from bridge.consul.client import STREAMING, Answer, ConsulClient, Mode
from bridge.core.model import Known, Listing, NamedPort, Query, Status, Unknown
from bridge.errors import PermanentError, ThrottledError, TransientError
from tests.support.fakes.consul import FakeConsul
from tests.support.lab import LabError, wait_until
from tests.support.lab.servers import Consul, answers
from tests.support.options import consul_config
from tests.support.raw import RawConsul

CONNECTIONS = 30
"""So many may one address have here."""

TOKEN = "3f0ad9b5-6c41-4ac4-9b54-2d0a1e4f6c7d"
"""May do everything where ACLs are on."""

QUIET_SECONDS = 0.4
"""How long a query waits that is not to be answered before its time."""


@dataclass
class Side:
    """One of the two servers, and names for one test."""

    server: Server
    raw: RawConsul
    prefix: str = field(default_factory=lambda: f"c{uuid.uuid4().hex[:6]}-")
    stack: ExitStack = field(default_factory=ExitStack)

    def client(self, **settings: Any) -> ConsulClient:
        """The bridge's client; closed when the test ends."""
        config = replace(consul_config(address=self.server.address, token=self.server.token), **settings)
        client = ConsulClient(config)
        self.stack.callback(client.close)
        return client

    def query(self, service: str = "web", **fields: str) -> Query:
        return Query("dc1", self.prefix + service, **fields)

    def register(self, service: str = "web", node: str = "vm-1", port: int = 80, **fields: Any) -> None:
        address = fields.pop("node_address", f"10.0.0.{node[-1]}")
        self.raw.register(self.prefix + service, self.prefix + node, address, port, **fields)

    def flip(self, status: str, service: str = "web", node: str = "vm-1", output: str = "") -> None:
        self.raw.flip(self.prefix + service, self.prefix + node, status, output=output)

    def check(self, node: str, identity: str, status: str, service_id: str = "") -> None:
        check = {"CheckID": identity, "Name": identity, "Status": status, "ServiceID": service_id}
        body = {"Node": self.prefix + node, "Address": "", "SkipNodeUpdate": True, "Check": check}
        self.raw.json("PUT", "/v1/catalog/register", body)

    def deregister(self, service: str = "web", node: str = "vm-1") -> None:
        self.raw.deregister(self.prefix + service, self.prefix + node)

    def clean_up(self) -> None:
        self.stack.close()
        for node in self.raw.json("GET", "/v1/catalog/nodes"):
            if node["Node"].startswith(self.prefix):
                self.raw.drop_node(node["Node"])
        self.raw.close()


@contextmanager
def real(*servers: Consul) -> Iterator[None]:
    """Servers of these tests' own; without them they are skipped, except in continuous integration."""
    try:
        for server in servers:
            server.start(wait=False)
        for server in servers:
            server.wait_ready()
        yield
    except LabError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no Consul: {error}")
    finally:
        for server in servers:
            server.kill()


@dataclass(frozen=True)
class Server:
    """One of the two, for all tests of this file."""

    name: str
    address: str
    limit: Callable[[str], str]
    token: str = ""
    forget: Callable[[], None] = lambda: None


def no_tokens(_hidden: str) -> str:
    raise AssertionError("this server has no ACLs")


@pytest.fixture(scope="module", params=["fake", pytest.param("real", marks=pytest.mark.lab)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without ACLs."""
    if request.param == "fake":
        with FakeConsul(max_connections=CONNECTIONS) as fake:
            yield Server("fake", fake.address, no_tokens, forget=fake.unexpected.clear)
    else:
        consul = Consul(tmp_path_factory.mktemp("consul"))
        consul.settings = {"limits": {"http_max_conns_per_client": CONNECTIONS}}
        with real(consul):
            yield Server("real", consul.address, no_tokens)


@pytest.fixture(scope="module", params=["fake", pytest.param("real", marks=pytest.mark.lab)])
def guarded_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with default deny."""
    if request.param == "fake":
        with FakeConsul(token=TOKEN) as fake:
            yield Server("fake", fake.address, fake.limited_token, TOKEN)
    else:
        consul = Consul(tmp_path_factory.mktemp("consul"), acl=True)
        with real(consul):
            yield Server("real", consul.address, lambda hidden: limited(consul, hidden), consul.token)


def limited(consul: Consul, hidden: str) -> str:
    """A token of the real one's that may see everything but the service `hidden`."""
    everything = 'service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }'
    name = uuid.uuid4().hex
    with RawConsul(consul.address, consul.token) as raw:
        rules = f'{everything} service "{hidden}" {{ policy = "deny" }}'
        raw.json("PUT", "/v1/acl/policy", {"Name": name, "Rules": rules})
        return str(raw.json("PUT", "/v1/acl/token", {"Policies": [{"Name": name}]})["SecretID"])


@pytest.fixture
def side(server: Server) -> Iterator[Side]:
    found = Side(server, RawConsul(server.address))
    yield found
    found.clean_up()


@pytest.fixture
def guarded(guarded_server: Server) -> Iterator[Side]:
    found = Side(guarded_server, RawConsul(guarded_server.address, guarded_server.token))
    yield found
    found.clean_up()


class Waiting:
    """A blocking query on a thread of its own."""

    def __init__(self, ask: Callable[[int, float], Answer], index: int, wait: float = 15.0) -> None:
        self.answer: Answer | None = None
        self.seconds = 0.0
        self._thread = threading.Thread(target=self._run, args=(ask, index, wait))
        self._thread.start()
        time.sleep(0.1)  # it waits at the server, as far as one can tell from here

    def _run(self, ask: Callable[[int, float], Answer], index: int, wait: float) -> None:
        began = time.monotonic()
        self.answer = ask(index, wait)
        self.seconds = time.monotonic() - began

    def woken(self) -> Answer:
        """The answer, which came because of a change and not because the time was over."""
        found = self.ended()
        assert self.seconds < 10
        return found

    def ended(self) -> Answer:
        self._thread.join(60)
        assert self.answer is not None
        return self.answer


def health(client: ConsulClient, query: Query) -> Callable[[int, float], Answer]:
    return lambda index, wait: client.health_service(query, index, wait)


def state(client: ConsulClient, status: str) -> Callable[[int, float], Answer]:
    return lambda index, wait: client.state(status, "dc1", index, wait)


def listing(client: ConsulClient) -> Callable[[int, float], Answer]:
    return lambda index, wait: client.listing("dc1", index, wait)


def nodes(client: ConsulClient) -> Callable[[int, float], Answer]:
    return lambda index, wait: client.nodes("dc1", index, wait)


def view(answer: Answer) -> Known:
    found = decode.view_of(answer)
    assert isinstance(found, Known)
    return found


def sleeps(ask: Callable[[int, float], Answer], change: Callable[[], None]) -> None:
    """A change does not answer a query that waits."""
    before = ask(0, 0.0)
    waiting = Waiting(ask, before.index, QUIET_SECONDS)
    change()
    after = waiting.ended()
    assert waiting.seconds >= QUIET_SECONDS * 0.9
    assert after.index == before.index


def wakes(ask: Callable[[int, float], Answer], change: Callable[[], None]) -> tuple[Answer, Answer]:
    """A change answers a query that waits; the answers before and after."""
    before = ask(0, 0.0)
    waiting = Waiting(ask, before.index)
    change()
    after = waiting.woken()
    assert after.index > before.index
    return before, after


# --------------------------------------------------------------------------- one service

CHANGES: dict[str, Callable[[Side], None]] = {
    "flip": lambda s: s.flip("critical"),
    "output": lambda s: s.flip("passing", output="slow"),
    "port": lambda s: s.register(port=81),
    "address": lambda s: s.register(Address="10.1.1.1"),
    "meta": lambda s: s.register(Meta={"v": "2"}),
    "tags": lambda s: s.register(Tags=["blue"]),
    "tagged address": lambda s: s.register(TaggedAddresses={"wan": {"Address": "198.51.100.1", "Port": 81}}),
    "another instance": lambda s: s.register(node="vm-2"),
    "instance gone": lambda s: s.deregister(),
    "node gone": lambda s: s.raw.drop_node(s.prefix + "vm-1"),
    "node address": lambda s: s.register("other", node_address="10.9.9.9"),
    "node check": lambda s: s.check("vm-1", "alive", "critical"),
    "maintenance": lambda s: s.check(
        "vm-1", f"_service_maintenance:{s.prefix}web-{s.prefix}vm-1", "critical", f"{s.prefix}web-{s.prefix}vm-1"
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_service_answers_its_query_and_moves_its_index(side: Side, change: str) -> None:
    client, other, query = side.client(), side.client(), side.query()
    side.register()
    probed = other.probe_service(query, Mode.LEADER).index
    before, after = wakes(health(client, query), partial_change(side, change))
    assert probed == before.index
    if change != "output":
        assert view(after) != view(before)
    read = other.health_service(query, mode=Mode.LEADER)
    assert view(read) == view(after)
    if view(read).instances:
        assert other.probe_service(query, Mode.LEADER).index == read.index > probed


def partial_change(side: Side, change: str) -> Callable[[], None]:
    return lambda: CHANGES[change](side)


def test_changes_of_other_services_leave_a_service_alone(side: Side) -> None:
    client, query = side.client(), side.query()
    side.register()

    def change() -> None:
        side.register("other", "vm-1", 1)  # on the same node
        side.register("other", "vm-2", 1)
        side.flip("critical", "other", "vm-1")
        side.deregister("other", "vm-2")

    sleeps(health(client, query), change)
    assert client.probe_service(query).index == client.health_service(query).index


def test_registering_the_same_again_changes_nothing(side: Side) -> None:
    client, query = side.client(), side.query()
    side.register(Tags=["a"], Meta={"v": "1"})
    sleeps(health(client, query), lambda: side.register(Tags=["a"], Meta={"v": "1"}))


def test_a_service_without_instances_is_an_empty_list_and_wakes_only_for_its_own(side: Side) -> None:
    client, query = side.client(), side.query("later")
    side.register("other", "vm-2")
    answer = client.health_service(query)
    assert (answer.data, answer.filtered, answer.default_deny_anonymous) == ([], False, False)
    assert answer.index > 0
    waiting = Waiting(health(client, query), answer.index)
    side.register("other", "vm-3")
    side.register("later")
    assert len(view(waiting.woken()).instances) == 1
    side.deregister("later")
    assert client.health_service(query).data == []
    assert side.prefix + "later" not in client.listing("dc1").data


def test_an_index_beyond_consuls_own_sleeps_through_changes(side: Side) -> None:
    """This is why every error is followed by a plain read."""
    client, query = side.client(), side.query()
    side.register()
    index = client.health_service(query).index
    waiting = Waiting(health(client, query), index + 100_000, 1.0)
    side.flip("critical")
    answer = waiting.ended()
    assert waiting.seconds >= 0.9
    assert answer.index < index + 100_000


def test_queries_that_wait_for_health_are_numbered_apart(side: Side) -> None:
    client, query = side.client(), side.query()
    side.register()
    plain = client.health_service(query)
    assert (plain.query_backend, plain.known_leader) == ("blocking-query", True)
    side.flip("critical")
    waited = client.health_service(query, plain.index, 5.0)
    assert (waited.query_backend, waited.known_leader, waited.last_contact_seconds) == (STREAMING, False, 0.0)
    assert waited.index == client.health_service(query).index
    for ask in (listing(client), nodes(client), state(client, "critical")):
        first = ask(0, 0.0)
        again = ask(first.index, 0.1)
        assert (again.query_backend, again.known_leader, again.index) == ("blocking-query", True, first.index)


def test_names_are_found_in_upper_and_lower_case(side: Side) -> None:
    client = side.client()
    side.register("Web")
    assert view(client.health_service(side.query("Web"))) == view(client.health_service(side.query("wEB")))


def test_an_instance_carries_all_that_the_bridge_reads(side: Side) -> None:
    client = side.client()
    wan = {"Address": "198.51.100.7", "Port": 8080}
    side.register(Address="10.2.3.4", Meta={"zone": "a"}, Tags=["x", "y"], TaggedAddresses={"wan": wan})
    side.raw.json("PUT", "/v1/catalog/register", {
        "Node": side.prefix + "vm-1", "Address": "10.0.0.1", "NodeMeta": {"rack": "7"},
        "TaggedAddresses": {"lan": "10.0.0.1"},
    })  # fmt: skip
    (instance,) = view(client.health_service(side.query())).instances
    assert (instance.node, instance.address, instance.node_address, instance.port) == (
        side.prefix + "vm-1", "10.2.3.4", "10.0.0.1", 80,
    )  # fmt: skip
    assert (instance.meta, instance.tags, instance.node_meta) == ((("zone", "a"),), ("x", "y"), (("rack", "7"),))
    assert [(a.name, a.address, a.port) for a in instance.tagged_addresses] == [("wan", "198.51.100.7", 8080)]
    assert [(a.name, a.address) for a in instance.node_tagged_addresses] == [("lan", "10.0.0.1")]
    assert instance.status is Status.PASSING


def test_several_ports_come_beside_the_default_one(side: Side) -> None:
    client = side.client()
    ports = [{"Name": "api", "Port": 8080, "Default": True}, {"Name": "metrics", "Port": 9100}]
    body = {"ID": "i", "Service": side.prefix + "web", "Ports": ports}
    side.raw.json("PUT", "/v1/catalog/register", {"Node": side.prefix + "vm-1", "Address": "10.0.0.1", "Service": body})
    (instance,) = view(client.health_service(side.query())).instances
    assert instance.port == 8080
    assert instance.ports == (NamedPort("api", 8080, True), NamedPort("metrics", 9100, False))


@pytest.mark.parametrize(
    ("where", "status"), [("service", Status.MAINTENANCE), ("node", Status.MAINTENANCE), ("check", Status.CRITICAL)]
)
def test_maintenance_is_a_critical_check_with_a_name_of_its_own(side: Side, where: str, status: Status) -> None:
    client, query = side.client(), side.query()
    side.register()
    identity = f"{query.service}-{side.prefix}vm-1"
    check = {"service": f"_service_maintenance:{identity}", "node": "_node_maintenance", "check": "alive"}[where]
    side.check("vm-1", check, "critical", identity if where == "service" else "")
    assert view(client.health_service(query)).instances[0].status is status
    listed = decode.checks_of(client.state("critical", "dc1"))
    name, found, _, _ = listed[side.prefix + "vm-1", check]
    assert (name, found) == (query.service if where == "service" else "", "critical")


def test_a_nodes_check_is_in_the_answer_of_every_service_on_it(side: Side) -> None:
    client = side.client()
    for service in ("web", "db"):
        side.register(service)
    side.register("web", "vm-2")
    side.check("vm-1", "alive", "warning")
    web = view(client.health_service(side.query())).instances
    assert [i.status for i in web] == [Status.WARNING, Status.PASSING]
    assert view(client.health_service(side.query("db"))).instances[0].status is Status.WARNING


# --------------------------------------------------------------------------- aggregate watches


@pytest.mark.parametrize("change", ["register", "deregister", "port", "tags"])
def test_the_listing_wakes_for_the_catalog(side: Side, change: str) -> None:
    client = side.client()
    side.register()
    side.register("gone")
    changes: dict[str, Callable[[], None]] = {
        "register": lambda: side.register("new"),
        "deregister": lambda: side.deregister("gone"),
        "port": lambda: side.register(port=99),
        "tags": lambda: side.register(Tags=["b", "a"]),
    }
    _, after = wakes(listing(client), changes[change])
    found = decode.listing_of(after)
    assert isinstance(found, Listing)
    mine = {name.removeprefix(side.prefix): tags for name, tags in found.services.items() if side.prefix in name}
    assert set(mine) == {"register": {"web", "gone", "new"}, "deregister": {"web"}}.get(change, {"web", "gone"})
    assert mine["web"] == (frozenset({"a", "b"}) if change == "tags" else frozenset())


def test_the_listing_sleeps_through_health(side: Side) -> None:
    client = side.client()
    side.register()
    sleeps(listing(client), lambda: side.flip("critical"))


@pytest.mark.parametrize("status", ["critical", "warning"])
def test_a_status_list_that_is_not_empty_wakes_for_its_own_members_alone(side: Side, status: str) -> None:
    client = side.client()
    other = "warning" if status == "critical" else "critical"
    side.register("anchor", "vm-2", status=status)
    side.register()

    def change() -> None:
        side.flip("passing", output="slow")
        side.flip(other)
        side.flip("passing")
        side.register("new", "vm-3")

    sleeps(state(client, status), change)
    key = (side.prefix + "vm-1", f"check:{side.prefix}web-{side.prefix}vm-1")
    before, after = wakes(state(client, status), lambda: side.flip(status))
    assert key not in decode.checks_of(before)
    assert decode.checks_of(after)[key][:2] == (side.prefix + "web", status)
    _, slower = wakes(state(client, status), lambda: side.flip(status, output="slow"))
    assert decode.checks_of(slower)[key][2] > decode.checks_of(after)[key][2]
    _, well = wakes(state(client, status), lambda: side.flip(other))
    assert key not in decode.checks_of(well)


def test_an_instance_under_a_new_name_keeps_checks_that_have_the_old_one(side: Side) -> None:
    """When such a check goes, the old service's index moves, and not that of the service whose health it was."""
    client = side.client()
    node, identity = side.prefix + "vm-1", f"{side.prefix}web-{side.prefix}vm-1"
    side.register(status="critical")
    service = {"ID": identity, "Service": side.prefix + "renamed", "Port": 80}
    side.raw.json("PUT", "/v1/catalog/register", {"Node": node, "Address": "10.0.0.1", "Service": service})
    name, _, _, instance = decode.checks_of(client.state("critical", "dc1"))[node, f"check:{identity}"]
    assert (name, instance) == (side.prefix + "web", identity)
    before = client.health_service(side.query("renamed"))
    assert view(before).instances[0].status is Status.CRITICAL
    side.raw.json("PUT", "/v1/catalog/deregister", {"Node": node, "CheckID": f"check:{identity}"})
    after = client.health_service(side.query("renamed"))
    assert view(after).instances[0].status is Status.PASSING
    assert after.index == before.index


def test_a_flap_moves_the_modify_index_of_what_is_listed(side: Side) -> None:
    client = side.client()
    side.register(status="critical")
    key = (side.prefix + "vm-1", f"check:{side.prefix}web-{side.prefix}vm-1")
    before = decode.checks_of(client.state("critical", "dc1"))[key]
    side.flip("passing")
    side.flip("critical")
    after = decode.checks_of(client.state("critical", "dc1"))[key]
    assert (after[:2], after[2] > before[2]) == (before[:2], True)
    assert client.health_service(side.query()).index == after[2]


def test_an_empty_status_list_wakes_for_every_check(side: Side) -> None:
    client = side.client()
    side.register()
    assert client.state("warning", "dc1").data == []
    _, after = wakes(state(client, "warning"), lambda: side.flip("critical"))
    assert after.data == []
    sleeps(state(client, "warning"), lambda: side.register(port=81, status=None))


@pytest.mark.parametrize("change", ["address", "meta", "new", "gone"])
def test_the_nodes_wake_for_what_a_node_is_and_for_new_ones(side: Side, change: str) -> None:
    client = side.client()
    side.register()
    side.register("gone", "vm-2")
    name = side.prefix + "vm-1"
    body = {"Node": name, "Address": "10.0.0.1", "NodeMeta": {"rack": "7"}}
    changes: dict[str, Callable[[], None]] = {
        "address": lambda: side.register(node_address="10.9.9.9"),
        "meta": lambda: side.raw.json("PUT", "/v1/catalog/register", body),
        "new": lambda: side.register("new", "vm-3"),
        "gone": lambda: side.raw.drop_node(side.prefix + "vm-2"),
    }
    answers_ = wakes(nodes(client), changes[change])
    before, after = (decode.nodes_of(answer) for answer in answers_)
    assert after[name][0] == before[name][0]
    assert (after[name][1] > before[name][1]) is (change in ("address", "meta"))
    mine = {n.removeprefix(side.prefix) for n in after if n.startswith(side.prefix)}
    assert mine == {"new": {"vm-1", "vm-2", "vm-3"}, "gone": {"vm-1"}}.get(change, {"vm-1", "vm-2"})


def test_the_nodes_sleep_through_services_and_checks(side: Side) -> None:
    client = side.client()
    side.register()

    def change() -> None:
        side.register("db", "vm-1")
        side.flip("critical")
        side.deregister("db", "vm-1")

    sleeps(nodes(client), change)


# --------------------------------------------------------------------------- probes


def test_a_nodes_index_moves_with_its_services_and_not_with_checks(side: Side) -> None:
    client, node = side.client(), side.prefix + "vm-1"
    side.register()
    side.register("web", "vm-2")

    def index() -> int:
        found = client.probe_node(node, "dc1", Mode.LEADER).index
        assert client.node_services(node, "dc1").index == found
        assert client.probe_nodes([node], "dc1", Mode.LEADER) == [found]
        return found

    seen = [index()]
    changes: tuple[Callable[[], None], ...] = (
        lambda: side.register("db"),
        lambda: side.register("db", port=81),
        lambda: side.register("db", port=81, Meta={"a": "b"}),
        lambda: side.deregister("db"),
        lambda: side.register(node_address="10.9.9.9"),
    )
    for change in changes:
        change()
        seen.append(index())
    assert seen == sorted(set(seen))
    side.flip("critical")
    side.register("web", "vm-2", 99)
    assert index() == seen[-1]


def test_the_catalogs_index_moves_with_every_service_and_not_with_checks(side: Side) -> None:
    """It is asked for with a filter that no node fits, so nothing is listed."""
    client = side.client()
    changes: tuple[Callable[[], None], ...] = (
        lambda: side.register(),
        lambda: side.register(port=81),
        lambda: side.register("db", "vm-2"),
        lambda: side.register("db", "vm-2", Meta={"a": "b"}),
        lambda: side.deregister("db", "vm-2"),
    )
    seen = [client.catalog_index("dc1")]
    for change in changes:
        change()
        seen.append(client.catalog_index("dc1"))
        assert seen[-1] >= client.listing("dc1", mode=Mode.LEADER).index
    assert seen == sorted(set(seen))
    side.flip("critical")
    assert client.catalog_index("dc1") == seen[-1]


def test_a_nodes_services_carry_the_index_of_their_last_change(side: Side) -> None:
    client, node = side.client(), side.prefix + "vm-1"
    side.register()
    side.register("db")
    modified, there = decode.services_on(client.node_services(node, "dc1"))
    assert {name for name, _ in there.values()} == {side.prefix + "web", side.prefix + "db"}
    side.register("db", port=81)
    _, later = decode.services_on(client.node_services(node, "dc1"))
    db, web = f"{side.prefix}db-{node}", f"{side.prefix}web-{node}"
    assert later[db][1] > there[db][1] > there[web][1] == later[web][1]
    assert client.health_service(side.query("db")).index >= later[db][1]
    side.register(node_address="10.9.9.9")
    assert decode.services_on(client.node_services(node, "dc1"))[0] > modified


def test_a_node_that_is_not_there_has_no_services(side: Side) -> None:
    client = side.client()
    assert decode.services_on(client.node_services(side.prefix + "nobody", "dc1")) == (0, {})
    assert client.probe_node(side.prefix + "nobody", "dc1").index > 0


def test_probes_that_are_sent_together_say_what_they_say_alone(side: Side) -> None:
    client = side.client()
    queries = []
    for n in range(40):
        side.register(f"s{n}", f"vm-{n % 3 + 1}")
        queries.append(side.query(f"s{n}"))
    together = client.probe_services(queries, Mode.LEADER)
    assert together == [client.probe_service(q, Mode.LEADER).index for q in queries]
    assert together == [client.health_service(q).index for q in queries]


# --------------------------------------------------------------------------- filters, modes, refusals


def test_filters_choose_instances_and_never_hide_a_change(side: Side) -> None:
    client = side.client()
    side.register(Meta={"env": "prod"})
    side.register(node="vm-2", Meta={"env": "test"})
    query = side.query(filter='Service.Meta.env == "prod"')
    before, after = wakes(health(client, query), lambda: side.register(port=81, Meta={"env": "prod"}))
    assert [i.node for i in view(before).instances] == [side.prefix + "vm-1"]
    assert view(after).instances[0].port == 81
    nothing = client.health_service(side.query(filter='Service.Meta.env == "none"'))
    assert (nothing.data, nothing.index) == ([], client.health_service(query).index)
    assert client.probe_service(query).index == nothing.index


@pytest.mark.parametrize("expression", ["nonsense (", 'Service.Nonsense == "x"'])
def test_a_filter_that_cannot_be_used_is_named(side: Side, expression: str) -> None:
    client = side.client()
    side.register()
    query = side.query(filter=expression)
    with pytest.raises(PermanentError, match="Consul cannot use the filter"):
        client.health_service(query)
    with pytest.raises(PermanentError, match="Consul cannot use the filter"):
        client.probe_service(query)
    assert client.probe_services([query, side.query()])[0] is None


def test_an_unknown_datacenter_is_named(side: Side) -> None:
    client = side.client()
    for ask in (client.listing, client.nodes):
        with pytest.raises(PermanentError, match="knows no way to the datacenter 'dc9'"):
            ask("dc9")
    with pytest.raises(PermanentError, match="knows no way to the datacenter 'dc9'"):
        client.health_service(Query("dc9", "web"))


@pytest.mark.parametrize("mode", Mode)
def test_every_mode_gives_the_same_answer_when_all_is_well(side: Side, mode: Mode) -> None:
    client = side.client()
    side.register()
    plain = client.health_service(side.query())
    found = client.health_service(side.query(), mode=mode)
    assert (found.index, found.data, found.known_leader) == (plain.index, plain.data, True)
    assert found.last_contact_seconds < 5
    assert client.nodes("dc1", mode=mode).data == client.nodes("dc1").data


def test_the_leader_and_the_datacenters(side: Side) -> None:
    client = side.client()
    host, _, port = client.leader("dc1").rpartition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0
    assert client.datacenters() == ("dc1",)
    assert client.own_datacenter() == "dc1"


def test_the_envelope_of_an_answer(side: Side) -> None:
    side.register()
    status, headers, body = side.raw.send("GET", f"/v1/health/service/{side.prefix}web?stale")
    assert status == 200
    assert int(headers["X-Consul-Index"]) > 0
    assert headers["X-Consul-KnownLeader"] == "true"
    assert headers["X-Consul-LastContact"].isdigit()
    assert headers["X-Consul-Query-Backend"] == "blocking-query"
    assert headers["X-Consul-Default-Acl-Policy"] == "allow"
    assert "X-Consul-Results-Filtered-By-ACLs" not in headers
    assert headers["Content-Type"] == "application/json"
    assert set(json.loads(body)[0]) == {"Node", "Service", "Checks"}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/health/service/web?index=abc", 400),
        ("/v1/health/service/web?index=1&wait=2", 400),
        ("/v1/catalog/services?index=-1", 400),
        ("/v1/nonsense", 404),
        ("/v1/health/state/nonsense", 200),
    ],
)
def test_requests_that_make_no_sense_are_refused(side: Side, path: str, status: int) -> None:
    found, _, body = side.raw.send("GET", path)
    side.server.forget()
    assert found == status
    if status == 200:
        assert json.loads(body) == []


def test_one_connection_too_many_is_refused_with_retry_after(side: Side) -> None:
    """Those that wait at Consul keep their places when they hang up, until their wait is over."""
    query = side.query()
    side.register()
    clients = [side.client() for _ in range(CONNECTIONS - 1)]  # the test's own is one, too
    for client in clients:  # those of the test before may not quite be gone
        wait_until(partial(answered, client, query), 30, "a place for each")
    late = side.client()
    with pytest.raises(ThrottledError, match="too many concurrent connections"):
        late.health_service(query)
    clients[0].disconnect()
    wait_until(lambda: answered(late, query), 30, "a place that was given back")


def answered(client: ConsulClient, query: Query) -> bool:
    try:
        return client.health_service(query).index > 0
    except ThrottledError:
        return False


# --------------------------------------------------------------------------- rights


def test_without_a_token_default_deny_shows_nothing_and_does_not_say_so(guarded: Side) -> None:
    guarded.register()
    client = guarded.client(token="")
    for answer in (client.health_service(guarded.query()), client.listing("dc1"), client.nodes("dc1")):
        assert (len(answer.data), answer.filtered, answer.default_deny_anonymous) == (0, False, True)
    assert decode.view_of(client.health_service(guarded.query())) == Unknown(decode.ANONYMOUS)
    assert client.own_datacenter() == "dc1"  # agent/self is forbidden; there is only one


def test_an_unknown_token_is_refused(guarded: Side) -> None:
    client = guarded.client(token="11111111-2222-3333-4444-555555555555")
    with pytest.raises(PermanentError, match=r"does not know our token \(403"):
        client.listing("dc1")
    with pytest.raises(PermanentError, match=r"does not know our token \(403"):
        client.health_service(guarded.query())


def test_what_a_token_may_not_see_is_left_out_and_only_plain_answers_say_so(guarded: Side) -> None:
    guarded.register("seen")
    guarded.register("hidden")
    client = guarded.client(token=guarded.server.limit(guarded.prefix + "hidden"))
    listed = client.listing("dc1")
    assert (guarded.prefix + "seen" in listed.data, guarded.prefix + "hidden" in listed.data) == (True, False)
    assert listed.filtered
    seen, hidden = (client.health_service(guarded.query(name)) for name in ("seen", "hidden"))
    assert (len(seen.data), seen.filtered) == (1, False)
    assert (hidden.data, hidden.filtered) == ([], True)
    assert decode.view_of(hidden) == Unknown(decode.FILTERED)
    waited = client.health_service(guarded.query("hidden"), hidden.index, QUIET_SECONDS)
    assert (waited.data, waited.filtered, waited.query_backend) == ([], False, STREAMING)
    assert client.own_datacenter() == "dc1"  # without agent:read


def test_what_a_token_may_not_see_gives_no_change_hint(guarded: Side) -> None:
    guarded.register("hidden", "vm-7", status="critical")
    client = guarded.client(token=guarded.server.limit(guarded.prefix + "hidden"))
    found = client.state("critical", "dc1")
    assert (found.data, found.filtered) == ([], True)
    assert guarded.prefix + "vm-7" in decode.nodes_of(client.nodes("dc1"))
    _, there = decode.services_on(client.node_services(guarded.prefix + "vm-7", "dc1"))
    assert there == {}


# --------------------------------------------------------------------------- no leader


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.lab)])
def leaderless(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a server that has no leader."""
    if request.param == "fake":
        with FakeConsul() as fake:
            fake.leader = False
            yield fake.address
    else:
        servers = [Consul(tmp_path / f"consul-{n}", name=f"server-{n}", expect=2) for n in (1, 2)]
        for server in servers:
            server.join(servers)
            server.settings = {"performance": {"raft_multiplier": 1, "rpc_hold_timeout": "500ms"}}
        with real(*servers):
            servers[1].kill()
            one = servers[0].address
            wait_until(lambda: answers(f"{one}/v1/status/leader", expect=lambda body: body == b'""'), 30, "its loss")
            yield one


def test_without_a_leader_only_stale_questions_are_answered_and_they_say_so(leaderless: str) -> None:
    client = ConsulClient(consul_config(address=leaderless))
    try:
        assert client.leader() == ""
        for mode in (Mode.LEADER, Mode.CONSISTENT, Mode.STALE):  # stale: too uncertain, asked again, consistent
            with pytest.raises(TransientError, match="No cluster leader"):
                client.listing(mode=mode)
    finally:
        client.close()
    with RawConsul(leaderless) as raw:
        status, headers, _ = raw.send("GET", "/v1/catalog/nodes?stale")
        assert (status, headers["X-Consul-KnownLeader"]) == (200, "false")
