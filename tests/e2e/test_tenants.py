"""One namespace misbehaves, another must not notice: as a user whose only right is to edit Services in their own.

`bad` is that user's namespace, `good` is another team's: two annotated Services that are filled from Consul. Whatever
`bad` does, each change in Consul reaches `good`, nothing of it is held, and no version of its Endpoints or
EndpointSlices lacks an endpoint that was healthy all the time.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

import pytest
import yaml

from tests.support.lab import Lab
from tests.support.program import Daemon, environment
from tests.support.raw import (
    ENDPOINTS,
    SERVICES,
    SLICES,
    RawConsul,
    RawKube,
    UnexpectedAnswerError,
    ask,
    ready_addresses,
)

pytestmark = pytest.mark.lab

Json = dict[str, Any]
Eventually = Callable[..., None]

FOLLOWS_SECONDS = 15.0
"""How soon a change of `good` must be seen: generous for busy machines, far below what a hold or a queue would take."""
USER = [{"apiGroups": [""], "resources": ["services"], "verbs": ["get", "list", "create", "update", "delete"]}]


@dataclass
class Harness:
    """The servers, a bridge, two namespaces, and eyes on the good one."""

    lab: Lab
    daemon: Daemon
    user: RawKube
    consul: RawConsul
    kube: RawKube
    prefix: str
    bad: str
    good: str
    violations: list[str] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=lambda: {ENDPOINTS: 0, SLICES: 0})
    _turn: int = 0

    def ask(self, name: str, service: str, *, create: bool = False, label: str = "true", **marks: str) -> None:
        """The user makes or changes a Service in `bad` that asks for a service, given without its prefix."""
        ask(self.user, self.bad, name, self.prefix + service, create=create, label=label, **marks)

    def drop(self, name: str) -> None:
        """The user deletes it."""
        self.user.delete(f"{SERVICES.format(namespace=self.bad)}/{name}")

    def register(self, service: str, count: int) -> None:
        """Instances of a service, all of them on one node."""
        node = f"{self.prefix}{service}"
        self.consul.json("PUT", "/v1/catalog/register", {"Node": node, "Address": "10.80.0.1"})
        operations = [
            {"Service": {"Verb": "set", "Node": node, "Service": {
                "ID": f"{node}-{n}", "Service": node, "Port": 80, "Address": f"10.81.{n // 250}.{n % 250 + 1}",
            }}}
            for n in range(count)
        ]  # fmt: skip
        for start in range(0, count, 64):
            self.consul.json("PUT", "/v1/txn", operations[start : start + 64])

    def ready(self, name: str, namespace: str = "") -> int | None:
        """Ready endpoints; None without Endpoints."""
        found = self.kube.endpoints(namespace or self.bad, name)
        return None if found is None else len(ready_addresses(found))

    def follows(self, seconds: float = FOLLOWS_SECONDS) -> float:
        """Change something of `good` in Consul and wait until Kubernetes has it; how long that took."""
        self._turn += 1
        status = "critical" if self._turn % 2 else "passing"
        began = time.monotonic()
        self.consul.flip(f"{self.prefix}db", f"{self.prefix}db-0", status)
        wanted = 5 if self._turn % 2 else 6
        while self.ready("db", self.good) != wanted:
            assert time.monotonic() < began + seconds, f"{self.good}/db does not follow within {seconds} s"
            time.sleep(0.02)
        return time.monotonic() - began

    def is_well(self) -> None:
        """Nothing of `good` was missing, and nothing is held there."""
        assert self.violations == []
        assert [text for text in self.daemon.readiness()["held"] if text.startswith(f"{self.good}/")] == []
        assert self.daemon.running


@pytest.fixture(scope="module")
def harness(lab: Lab) -> Iterator[Harness]:
    """Both teams served; the whole module shares them."""
    name = uuid.uuid4().hex[:6]
    prefix, bad, good = f"t{name}-", f"bad-{name}", f"good-{name}"
    with contextlib.ExitStack() as stack:
        kube, consul = stack.enter_context(lab.raw_kube()), stack.enter_context(lab.raw_consul())
        for namespace in (bad, good):
            body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
            kube.json("POST", "/api/v1/namespaces", body)
            stack.callback(kube.delete, f"/api/v1/namespaces/{namespace}")
        for service in ("db", "ldap"):
            for n in range(6):
                node = f"{prefix}{service}-{n}"
                consul.register(f"{prefix}{service}", node, f"10.79.{len(service)}.{n + 1}", 5432)
            ask(kube, good, service, f"{prefix}{service}", create=True, output="both")
        stack.callback(_clean, lab, prefix)
        user = stack.enter_context(RawKube(lab.service_account(bad, "user", USER)))
        file = lab.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump({
            "rules": [], "annotated": [{"filter": True}], "run": {"removal_grace_period": "1s"},
            "kubernetes": {"watch_namespaces": [bad, good]},
        }))  # fmt: skip
        env = environment(lab.consul.address, lab.kubeconfig)
        daemon = Daemon(lab, f"tenants-{name}", "--config", str(file), env=env)
        stack.callback(daemon.stop)
        daemon.start()
        made = Harness(lab, daemon, user, consul, kube, prefix, bad, good)
        deadline = time.monotonic() + 60
        while (made.ready("db", good), made.ready("ldap", good)) != (6, 6):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        stack.enter_context(_watched(made))
        yield made


def _clean(lab: Lab, prefix: str) -> None:
    with lab.raw_consul() as consul:
        for node in consul.json("GET", "/v1/catalog/nodes"):
            if node["Node"].startswith(prefix):
                consul.drop_node(node["Node"])


@contextlib.contextmanager
def _watched(harness: Harness) -> Iterator[None]:
    """Every version of the good namespace's Endpoints and slices is checked: the anchors are in them, always."""
    stop = threading.Event()
    anchors = {"db": {f"10.79.2.{n + 1}" for n in range(1, 6)}, "ldap": {f"10.79.4.{n + 1}" for n in range(6)}}
    clients = {base: harness.lab.raw_kube() for base in (ENDPOINTS, SLICES)}

    def look(base: str) -> None:
        path, client = base.format(namespace=harness.good), clients[base]
        first = client.json("GET", path)
        objects = {item["metadata"]["name"]: item for item in first["items"]}
        try:
            for event in client.watch(path, first["metadata"]["resourceVersion"]):
                found = event["object"]
                objects[found["metadata"]["name"]] = found if event["type"] != "DELETED" else None
                service = _service_of(found)
                there = {a for o in objects.values() if o is not None and _service_of(o) == service for a in _ready(o)}
                harness.seen[base] += 1
                if missing := anchors.get(service, set()) - there:
                    harness.violations.append(
                        f"{event['type']} {found['kind']} of {service}: without {sorted(missing)}"
                    )
        except (OSError, ValueError, HTTPException, AttributeError):
            if not stop.is_set():
                raise

    threads = [threading.Thread(target=look, args=(base,), name="tenants-watch") for base in clients]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for client, thread in zip(clients.values(), threads, strict=True):
            client.interrupt()
            thread.join()
            client.close()


def _service_of(found: Json) -> str:
    """The Service that Endpoints or a slice belong to."""
    return str((found["metadata"].get("labels") or {}).get("kubernetes.io/service-name") or found["metadata"]["name"])


def _ready(found: Json) -> set[str]:
    """The ready addresses of Endpoints or of a slice."""
    entries = found.get("endpoints") or []
    listed = {address for entry in entries if entry["conditions"]["ready"] for address in entry["addresses"]}
    return listed | {address for address, _ in ready_addresses(found)}


@contextlib.contextmanager
def _meanwhile(body: Callable[[], None]) -> Iterator[None]:
    """Something that is done again and again, until the block is left; its errors are the test's."""
    stop, errors = threading.Event(), list[BaseException]()

    def work() -> None:
        try:
            while not stop.is_set():
                body()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    thread = threading.Thread(target=work, name="tenants-meanwhile")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]


def test_the_user_has_no_other_right_than_to_edit_services_in_one_namespace(harness: Harness) -> None:
    """Else these tests would prove less than they say."""
    for path in (SERVICES.format(namespace=harness.good), ENDPOINTS.format(namespace=harness.bad)):
        with pytest.raises(UnexpectedAnswerError, match="403"):
            harness.user.json("GET", path)


def test_a_user_who_switches_thirty_endpoints_away_causes_no_hold(harness: Harness, eventually: Eventually) -> None:
    """Away to what does not exist, to other tags and another filter, and deleted: real removals elsewhere go on."""
    harness.register("radosgw", 30)
    harness.ask("store", "radosgw", create=True)
    eventually(lambda: harness.ready("store"), 30)
    for tags, expression in (("none", ""), ("", "Service.Port == 81")):
        harness.ask("store", "radosgw", tags=tags, filter=expression)
        eventually(lambda: harness.ready("store"), 0)
        harness.ask("store", "radosgw", tags="", filter="")
        eventually(lambda: harness.ready("store"), 30)
    harness.ask("store", "not-there")
    eventually(lambda: harness.ready("store"), 0)
    harness.drop("store")
    harness.consul.register(f"{harness.prefix}ldap", f"{harness.prefix}ldap-6", "10.79.4.7", 5432)
    eventually(lambda: harness.ready("ldap", harness.good), 7)
    harness.consul.deregister(f"{harness.prefix}ldap", f"{harness.prefix}ldap-6")
    eventually(lambda: harness.ready("ldap", harness.good), 6, FOLLOWS_SECONDS)
    harness.follows()
    assert harness.daemon.readiness()["held"] == []
    harness.is_well()


def test_a_flood_of_events_hides_none_of_another_namespace(harness: Harness, eventually: Eventually) -> None:
    """Hundreds of Services that are asked for wrongly; what concerns the other team is reported in time."""

    def flood(start: int) -> None:
        for n in range(start, start + 150):
            harness.ask(f"noise-{n}", f"missing-{n}", create=True, nonsense=str(n))

    for start in (0, 150):
        flood(start)
    ask(harness.kube, harness.good, "ldap", f"{harness.prefix}ldap", output="both", mistake="x")
    harness.follows()
    path = f"/api/v1/namespaces/{harness.good}/events"

    def told() -> bool:
        return any(
            "consul-bridge/mistake" in event.get("message", "") for event in harness.kube.json("GET", path)["items"]
        )

    eventually(told, True, FOLLOWS_SECONDS)
    harness.is_well()


def test_flapping_delays_no_other_service(harness: Harness) -> None:
    """Services switch to and fro as fast as the API server takes it."""
    harness.register("one", 20)
    harness.register("two", 20)
    for n in range(20):
        harness.ask(f"flap-{n}", "one", create=True)
    turns = 0

    def flap() -> None:
        nonlocal turns
        turns += 1
        for n in range(20):
            with contextlib.suppress(UnexpectedAnswerError):  # 409: a user set its status meanwhile
                harness.ask(f"flap-{n}", "one" if turns % 2 else "two", label="true" if turns % 3 else "false")

    with _meanwhile(flap):
        deadline = time.monotonic() + 30
        while turns < 5 and time.monotonic() < deadline:
            harness.follows()
    assert turns >= 5
    harness.is_well()


def test_ten_thousand_instances_delay_no_other_service(harness: Harness, eventually: Eventually) -> None:
    """In Endpoints and in slices, and taken away again."""
    harness.register("huge", 10_000)
    harness.ask("huge", "huge", create=True, output="both")
    for _ in range(3):
        harness.follows()
    eventually(lambda: (harness.ready("huge") or 0) > 0, True, 60)
    harness.drop("huge")
    harness.follows()
    harness.is_well()


def test_filters_delay_no_other_service(harness: Harness) -> None:
    """A hundred, each another question to Consul; some of them are none."""
    harness.register("filtered", 5)
    for n in range(100):
        expression = f"Service.Port != {n}" if n % 4 else f"Service.Port === {n}("
        harness.ask(f"filter-{n}", "filtered", create=True, filter=expression)
    for _ in range(3):
        harness.follows()
    harness.is_well()


def test_names_and_labels_that_are_forged_have_no_effect(harness: Harness, eventually: Eventually) -> None:
    """Names of others, of paths and of nothing; Services that pretend to be ours and from hundreds of services that are
    gone: after a restart nothing waits for a Consul that was rebuilt."""
    names = ("..", ".", "a/b", "*", "x" * 300, "ü", "%2e%2e", "consul", f"{harness.prefix}db?dc=dc2")
    for n, name in enumerate(names):
        ask(harness.user, harness.bad, f"name-{n}", name, create=True)
    ask(harness.user, harness.bad, "theirs", f"{harness.prefix}ldap", create=True)
    forged = {"app.kubernetes.io/managed-by": "consul-bridge", "consul-bridge/owner": "default"}
    for n in range(50):
        harness.user.json("POST", SERVICES.format(namespace=harness.bad), {
            "apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 80}]},
            "metadata": {"name": f"forged-{n}", "labels": forged, "annotations": {
                "consul-bridge/service": f"{harness.prefix}never-{n}", "consul-bridge/datacenter": "dc1",
            }},
        })  # fmt: skip
    harness.follows()
    harness.daemon.stop()
    harness.consul.deregister(f"{harness.prefix}db", f"{harness.prefix}db-0")
    harness.daemon.start()
    eventually(lambda: harness.ready("db", harness.good), 5, FOLLOWS_SECONDS)
    harness.consul.register(f"{harness.prefix}db", f"{harness.prefix}db-0", "10.79.2.1", 5432)
    eventually(lambda: harness.ready("db", harness.good), 6, FOLLOWS_SECONDS)
    assert [text for text in harness.daemon.readiness()["held"] if "rebuilt" in text] == []
    assert min(harness.seen.values()) > 10
    harness.is_well()
