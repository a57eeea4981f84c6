"""What a user does whose only right is to edit Services in one namespace, and who may register services in Consul.

While it lasts, another team's annotated Service is checked (invariant vii): every version of its Endpoints has what
is healthy, and what really leaves Consul leaves it soon.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Sequence

from tests.support.chaos.changes import Address
from tests.support.chaos.faults import READY, Fault, log
from tests.support.chaos.harness import NEIGHBOUR, STANDING, TENANT, TENANTS, Harness, wait_for
from tests.support.lab import LabError
from tests.support.raw import ENDPOINTS, SERVICES, RawConsul, RawKube, UnexpectedAnswerError, ask, ready_addresses

USER = [{"apiGroups": [""], "resources": ["services"], "verbs": ["get", "list", "create", "update", "delete"]}]
MANY = 300
"""Endpoints of one of the tenant's Services: most of all that a small harness has."""
NOISE = 20
STAYS = (STANDING, *TENANTS)
FOLLOWS_SECONDS = 8.0
"""How soon the neighbour's real removal must be seen."""


class Tenant(Fault):
    """One namespace misbehaves, another must not notice."""

    name = "tenant-misbehaves"
    what = (
        "a user switches 300 endpoints away, flaps, floods, forges marks and deletes their Service; 300 more are lost "
        "in Consul, and held in that namespace; another's Services follow Consul as ever"
    )
    shows = (log("removal held", TENANT, "lost"),)
    readiness = READY
    asked = 2 * NOISE + 4

    def inject(self, harness: Harness, rng: random.Random) -> None:
        with harness.connect_consul() as consul, harness.connect_kube() as kube:
            for service in ("store", "lost"):
                register(consul, f"tenant-{service}", MANY)
            self._addresses = frozenset((f"10.120.0.{n + 1}", 80) for n in range(6))
            for n, (address, port) in enumerate(sorted(self._addresses)):
                consul.register("tenant-db", f"tenant-vm-{n}", address, port)
            ask(kube, NEIGHBOUR, "db", "tenant-db", create=True)
            user = harness.lab.service_account(TENANT, "user", USER)
            with RawKube(user) as tenant:
                for service in ("store", "lost"):
                    ask(tenant, TENANT, service, f"tenant-{service}", create=True)
                await_ready(kube, {(TENANT, "store"): MANY, (TENANT, "lost"): MANY, (NEIGHBOUR, "db"): 6})
                stays = frozenset(a for a in self._addresses if a != ("10.120.0.1", 80))
                harness.observer.guard((NEIGHBOUR, "db"), stays)
                misbehave(tenant, rng)
                await_ready(kube, {(TENANT, "store"): 0})  # with its 300, the loss of 300 would be half and pass
                consul.drop_node("tenant-lost")
                wait_for(lambda: f"{TENANT}/lost" in str(harness.bridge.readiness().get("held")), 10)
                self._follows(harness, consul, kube)
                tenant.delete(f"{SERVICES.format(namespace=TENANT)}/store")

    def _follows(self, harness: Harness, consul: RawConsul, kube: RawKube) -> None:
        """One of the neighbour's six is really gone: so it must be in Kubernetes."""
        consul.drop_node("tenant-vm-0")
        began = time.monotonic()
        if not wait_for(lambda: len(ready(kube, NEIGHBOUR, "db")) == 5, FOLLOWS_SECONDS):
            harness.observer.report(
                "vii", f"{NEIGHBOUR}/db: what left Consul is still there after {time.monotonic() - began:.0f} s"
            )

    def heal(self, harness: Harness) -> None:
        harness.observer.unguard((NEIGHBOUR, "db"))
        with harness.connect_consul() as consul, harness.connect_kube() as kube:
            for namespace in (TENANT, NEIGHBOUR):
                folder = SERVICES.format(namespace=namespace)
                for item in kube.json("GET", folder)["items"]:
                    if item["metadata"]["name"] not in STAYS:
                        kube.delete(f"{folder}/{item['metadata']['name']}")
            for node in ("tenant-store", "tenant-lost", *(f"tenant-vm-{n}" for n in range(6))):
                consul.drop_node(node)
            gone = wait_for(lambda: not any(left(kube, namespace) for namespace in (TENANT, NEIGHBOUR)), 30)
            if not gone:
                harness.observer.report("iii", f"{self.name}: Endpoints of Services that were deleted are still there")


def register(consul: RawConsul, service: str, count: int) -> None:
    """Instances of a service, all on one node of its name."""
    consul.json("PUT", "/v1/catalog/register", {"Node": service, "Address": "10.121.0.1"})
    third = 122 + len(service)
    for start in range(0, count, 50):
        consul.json("PUT", "/v1/txn", [
            {"Service": {"Verb": "set", "Node": service, "Service": {
                "ID": f"{service}-{n}", "Service": service, "Port": 80,
                "Address": f"10.{third}.{n // 250}.{n % 250 + 1}",
            }}}
            for n in range(start, min(count, start + 50))
        ])  # fmt: skip


def misbehave(tenant: RawKube, rng: random.Random) -> None:
    """Everything that the right to edit Services allows, in an order that the seed gives."""

    def switch() -> None:
        for tags, expression in (("none", ""), ("", "Service.Port == 81"), ("", "")):
            ask(tenant, TENANT, "store", "tenant-store", tags=tags, filter=expression)
            time.sleep(0.2)

    def flap() -> None:
        for turn in range(20):
            with contextlib.suppress(UnexpectedAnswerError):  # 409: its status was set meanwhile
                ask(tenant, TENANT, "store", "tenant-store" if turn % 2 else "not-there")

    def flood() -> None:
        for n in range(NOISE):
            ask(tenant, TENANT, f"noise-{n}", f"missing-{n}", create=True, nonsense=str(n))

    def forge() -> None:
        for n in range(NOISE):
            tenant.json("POST", SERVICES.format(namespace=TENANT), {
                "apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 80}]},
                "metadata": {
                    "name": f"forged-{n}",
                    "labels": {"app.kubernetes.io/managed-by": "consul-bridge", "consul-bridge/owner": "default"},
                    "annotations": {"consul-bridge/service": f"never-{n}", "consul-bridge/datacenter": "dc1"},
                },
            })  # fmt: skip

    deeds: list[Callable[[], None]] = [switch, flap, flood, forge]
    for deed in rng.sample(deeds, len(deeds)):
        deed()
    ask(tenant, TENANT, "store", "not-there")


def ready(kube: RawKube, namespace: str, name: str) -> list[Address]:
    """Ready endpoints."""
    return ready_addresses(kube.endpoints(namespace, name))


def left(kube: RawKube, namespace: str) -> list[str]:
    """Endpoints that are there of what is not there all the time."""
    items = kube.json("GET", ENDPOINTS.format(namespace=namespace))["items"]
    return [item["metadata"]["name"] for item in items if item["metadata"]["name"] not in STAYS]


def await_ready(kube: RawKube, counts: dict[tuple[str, str], int]) -> None:
    """Wait until Services have so many ready endpoints."""
    if not wait_for(lambda: {where: len(ready(kube, *where)) for where in counts} == counts, 30, 0.1):
        raise LabError(f"the tenants' Services are not filled: {counts}")


FAULTS: Sequence[type[Fault]] = (Tenant,)
