"""`bridge.core.mirroring` beside the real kube-controller-manager: random Endpoints, and what it makes of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from bridge.core.mirroring import Refused, slices_of, why_not_mirrored
from bridge.core.model import Endpoint, Family, Group, Port
from bridge.core.normalize import group_endpoints
from bridge.kube.objects import subsets
from tests.support.raw import ENDPOINTS, SERVICES, SLICES, RawKube

pytestmark = pytest.mark.lab

SEEDS = (13, 14)
COUNT = 60
PORTS = (Port("", 80), Port("", 81), Port("a", 80), Port("b", 90), Port("b", 91), Port("c", 1, "UDP"),
         Port("a", 80, "TCP", "http"))  # fmt: skip
ADDRESSES = ("10.77.7.1", "10.77.7.2", "10.77.7.3", "fd00::7")
MIRRORED = "endpointslice.kubernetes.io/managed-by=endpointslicemirroring-controller.k8s.io"

Seen = frozenset[tuple[str, str, str, int, str, bool, str]]
"""Slice by its ports, address, name, number and protocol of the port, whether it is ready, and its hostname."""


def endpoints(chance: random.Random, naming: random.Random) -> tuple[Group, ...]:
    """Groups as we write them: each set of ports once, with distinct names in it; few hostnames that contradict."""
    members: dict[Any, dict[str, Endpoint]] = {}
    pool = chance.sample(ADDRESSES, chance.choice((1, 1, 2, 3)))
    for _ in range(chance.randint(2, 4)):
        chosen: dict[str, Port] = {}
        for port in chance.sample(PORTS, chance.randint(1, 2)):
            chosen.setdefault(port.name, port)
        ports = tuple(sorted(p for p in chosen.values() if p.name or len(chosen) == 1)) or (Port("", 80),)
        for address in chance.sample(pool, chance.randint(1, len(pool))):
            family = Family.IPV6 if ":" in address else Family.IPV4
            is_ready = chance.random() < 0.7
            hostname = naming.choice(("h1", "h2", "")) if naming.random() < 0.2 else "h0"
            endpoint = Endpoint(address, is_ready, serving=is_ready, hostname=hostname)
            members.setdefault((family, ports), {})[address] = endpoint
    return group_endpoints(members)


def expected(groups: tuple[Group, ...]) -> Seen | None:
    """What our rule says that the slices hold; None where it says that they are refused."""
    found = slices_of(groups)
    if isinstance(found, Refused):
        return None
    return frozenset(
        (str(sorted((p.name, p.number) for p in g.ports)), e.address, p.name, p.number, p.protocol, e.ready, e.hostname)
        for g in found
        for e in g.endpoints
        for p in g.ports
    )


def standing(items: list[Any]) -> Seen:
    """What the slices hold."""
    return frozenset(
        (
            str(sorted((q.get("name", ""), q["port"]) for q in s["ports"])),
            e["addresses"][0], p.get("name", ""), p["port"], p["protocol"], e["conditions"]["ready"],
            e.get("hostname", ""),
        )
        for s in items
        for e in s["endpoints"] or ()
        for p in s["ports"]
    )  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_our_rule_says_what_the_mirroring_controller_does(
    kube: RawKube, namespace: str, seed: int, eventually: Callable[..., None]
) -> None:
    """Slice by slice where it mirrors; where our rule says that it is refused, some of what is ready never arrives."""
    chance, naming = random.Random(seed), random.Random(-seed)
    written = {f"case-{n}": endpoints(chance, naming) for n in range(COUNT)}
    for name, groups in written.items():
        about = {"name": name, "namespace": namespace}
        service = {"apiVersion": "v1", "kind": "Service", "metadata": about, "spec": {"ports": [{"port": 80}]}}
        kube.json("POST", SERVICES.format(namespace=namespace), service)
        body = {"apiVersion": "v1", "kind": "Endpoints", "metadata": about, "subsets": subsets(groups)}
        kube.json("POST", ENDPOINTS.format(namespace=namespace), body)

    def slices() -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {name: [] for name in written}
        for item in kube.json("GET", f"{SLICES.format(namespace=namespace)}?labelSelector={MIRRORED}")["items"]:
            found[item["metadata"]["labels"]["kubernetes.io/service-name"]].append(item)
        return found

    mirrored = {name: seen for name, groups in written.items() if (seen := expected(groups)) is not None}
    refused = written.keys() - mirrored.keys()
    assert (len(mirrored) > COUNT / 3, len(refused) > 5) == (True, True)

    def wrong() -> dict[str, Seen]:
        now = {name: standing(items) for name, items in slices().items()}
        return {name: now[name] for name, seen in mirrored.items() if now[name] != seen}

    eventually(wrong, {}, 60)
    for name in refused:
        wanted = {(e.address, p.number) for g in written[name] for e in g.endpoints for p in g.ports}
        arrived = {(address, number) for _, address, _, number, *_ in standing(slices()[name])}
        assert arrived < wanted, (name, written[name])
    for name, seen in mirrored.items():
        ends = [(e, p) for g in written[name] for e in g.endpoints for p in g.ports]
        ready = {(e.address, p.name, p.number) for e, p in ends if e.ready}
        arrived_ready = {(address, port, number) for _, address, port, number, _, is_ready, _ in seen if is_ready}
        named = {(e.address, e.hostname) for e, _ in ends}
        is_whole = arrived_ready == ready and {(address, hostname) for _, address, *_, hostname in seen} == named
        assert (why_not_mirrored(written[name]) == "") is is_whole


def test_two_instances_on_one_machine_are_the_smallest_case(
    kube: RawKube, namespace: str, eventually: Callable[..., None]
) -> None:
    """Endpoints that are perfect, and no slice at all; a slice that stands is frozen in the moment in which it becomes so."""  # noqa: E501
    about = {"name": "web", "namespace": namespace}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": about, "spec": {"ports": [{"port": 80}]}}
    kube.json("POST", SERVICES.format(namespace=namespace), service)

    def put(method: str, path: str, *addresses: list[str]) -> None:
        stored = [
            {"addresses": [{"ip": a} for a in found], "ports": [{"port": 7480 + n, "protocol": "TCP"}]}
            for n, found in enumerate(addresses)
        ]
        body = {"apiVersion": "v1", "kind": "Endpoints", "metadata": about, "subsets": stored}
        kube.json(method, f"{ENDPOINTS.format(namespace=namespace)}{path}", body)

    def ready() -> set[tuple[str, int]]:
        items = kube.json("GET", f"{SLICES.format(namespace=namespace)}?labelSelector={MIRRORED}")["items"]
        return {(address, number) for _, address, _, number, _, is_ready, _ in standing(items) if is_ready}

    put("POST", "", ["10.77.7.1", "10.77.7.2"], ["10.77.7.1"])
    before = {("10.77.7.1", 7480), ("10.77.7.2", 7480), ("10.77.7.1", 7481)}
    eventually(ready, before, 30)
    put("PUT", "/web", ["10.77.7.1"], ["10.77.7.1"])  # VM 2 leaves
    found = why_not_mirrored((
        Group(Family.IPV4, (Port("", 7480),), (Endpoint("10.77.7.1", ready=True),)),
        Group(Family.IPV4, (Port("", 7481),), (Endpoint("10.77.7.1", ready=True),)),
    ))  # fmt: skip
    assert "two ports of one name" in found
    time.sleep(2)
    assert ready() == before  # VM 2 is still there, and will be
