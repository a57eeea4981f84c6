"""What ends up in Kubernetes: labels, slices, families and ports, written by the real command to real servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Sync, syncing
from tests.support.lab import Lab
from tests.support.raw import ENDPOINTS, SERVICES, SLICES, RawConsul, RawKube, not_ready_addresses, ready_addresses

pytestmark = pytest.mark.lab

Json = dict[str, Any]
OURS = "endpointslice.kubernetes.io/managed-by=consul-bridge"


def meta_of(kube: RawKube, path: str) -> tuple[Json, Json]:
    """Labels and annotations of an object, ours alone (no ownership labels, none of the control plane)."""
    metadata = (kube.get(path) or {})["metadata"]
    return tuple(
        {k: v for k, v in (metadata.get(kind) or {}).items() if "/" not in k} for kind in ("labels", "annotations")
    )  # type: ignore[return-value]  # of a generator the length is not known


def slices(kube: RawKube, namespace: str, service: str, selector: str = OURS) -> list[Json]:
    """The slices of a Service that we manage, by name."""
    wanted = f"kubernetes.io/service-name={service},{selector}"
    found = kube.get(f"{SLICES.format(namespace=namespace)}?labelSelector={wanted}") or {}
    return sorted(found["items"], key=lambda item: str(item["metadata"]["name"]))


def ports_of(kube: RawKube, namespace: str, service: str) -> list[tuple[str, int, str, str]]:
    """Name, number, protocol and application protocol of a Service's ports."""
    found = kube.get(f"{SERVICES.format(namespace=namespace)}/{service}") or {}
    return [(p.get("name", ""), p["port"], p["protocol"], p.get("appProtocol", "")) for p in found["spec"]["ports"]]


# --------------------------------------------------------------------------- labels and annotations


def test_labels_and_annotations_come_and_go_with_the_rule(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """From meta, node meta and tags, in a form that Kubernetes takes; a user's own label stays throughout."""
    consul.json(
        "PUT",
        "/v1/catalog/register",
        {
            "Node": f"{prefix}vm", "Address": "10.77.1.1", "NodeMeta": {"rack": "r-17"},
            "Service": {"Service": f"{prefix}web", "Port": 80, "Meta": {"team": "Data & Storage"}, "Tags": ["tier=1"]},
        },
    )  # fmt: skip
    path = f"{SERVICES.format(namespace=namespace)}/{prefix}web"
    paths = [path, f"{ENDPOINTS.format(namespace=namespace)}/{prefix}web"]
    rule = {"services": [f"{prefix}*"]}
    fixed = {"labels": {"env": "prod"}, "annotations": {"note": "by hand: no"}}
    derived = {
        "labels_from": {"team": "meta:team", "tier": "tag:tier="},
        "annotations_from": {"rack": "node-meta:rack", "team": "meta:team", "tags": "tags"},
    }
    sync({**rule, "to": {**fixed, **derived}})
    kube.json("PATCH", path, {"metadata": {"labels": {"person": "was-here"}}}, "application/merge-patch+json")
    assert meta_of(kube, paths[1]) == (
        {"env": "prod", "team": "Data___Storage", "tier": "1"},
        {"note": "by hand: no", "rack": "r-17", "team": "Data & Storage", "tags": "tier=1"},
    )
    assert meta_of(kube, path)[0] == {"env": "prod", "team": "Data___Storage", "tier": "1", "person": "was-here"}
    assert sync({**rule, "to": {**fixed, **derived}}).json["changes"] == []
    sync(rule)
    assert [meta_of(kube, p) for p in paths] == [({"person": "was-here"}, {}), ({}, {})]


def test_instances_that_contradict_each_other_are_reported(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """The first value in order is taken, and the plan says that there are two."""
    for n, team in ((1, "b"), (2, "a")):
        consul.register(f"{prefix}web", f"{prefix}vm-{n}", f"10.77.1.{n}", 80, Meta={"team": team})
    result = sync({"services": [f"{prefix}*"], "to": {"labels_from": {"team": "meta:team"}}})
    labels, _ = meta_of(kube, f"{SERVICES.format(namespace=namespace)}/{prefix}web")
    assert labels == {"team": "a"}
    assert [row["message"] for row in result.json["warnings"]] == [
        "instances have 2 values for the label team (meta:team): a is taken"
    ]


# --------------------------------------------------------------------------- slices


def test_slices_tell_conditions_zones_and_nodes(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """Ready, drained and unhealthy; an invalid zone is left out and reported; a Consul node that is ours is named."""
    zones = {1: "eu-1", 2: "no zone!", 3: "eu-2"}
    for n, zone in zones.items():
        consul.json(
            "PUT",
            "/v1/catalog/register",
            {
                "Node": f"{prefix}n{n}", "Address": f"10.77.1.{n}", "NodeMeta": {"where": zone},
                "Service": {"ID": "web", "Service": f"{prefix}web", "Port": 80},
                "Checks": [
                    {"CheckID": "_node_maintenance" if n == 2 else "c", "Name": "c",
                     "Status": "passing" if n == 1 else "critical"}
                ],
            },
        )  # fmt: skip
    rule = {
        "services": [f"{prefix}*"], "to": {"output": "endpointslices"}, "instances": {"zone_meta": "where"},
    }  # fmt: skip
    result = sync(rule, kubernetes={"nodes": [f"{prefix}n3"]})
    (found,) = slices(kube, namespace, f"{prefix}web")
    assert {
        e["addresses"][0]: (*e["conditions"].values(), e.get("zone"), e.get("nodeName")) for e in found["endpoints"]
    } == {
        "10.77.1.1": (True, True, False, "eu-1", None),
        "10.77.1.2": (False, True, True, None, None),
        "10.77.1.3": (False, False, False, "eu-2", f"{prefix}n3"),
    }
    assert (
        [row["message"] for row in result.json["warnings"]]
        == ["zone 'no zone!' is no label value: its endpoints have no zone"]
    )  # fmt: skip


def test_the_clusters_nodes_can_be_asked_for(
    lab: Lab, sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, tmp_path: Path
) -> None:
    """`*` lists them; a token that may not list them is reported with what to do about it."""
    node = f"{prefix}n1"
    consul.register(f"{prefix}web", node, "10.77.1.1", 80)
    consul.register(f"{prefix}web", f"{prefix}n2", "10.77.1.2", 80)
    kube.json("POST", "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})
    rule = {"services": [f"{prefix}*"], "to": {"output": "endpointslices"}}
    try:
        sync(rule, kubernetes={"nodes": ["*"]})
    finally:
        kube.delete(f"/api/v1/nodes/{node}")
    (found,) = slices(kube, namespace, f"{prefix}web")
    verbs = ["get", "list", "watch", "create", "patch", "delete"]
    allowed = [{"apiGroups": ["", "discovery.k8s.io"], "resources": ["services", "endpoints", "endpointslices"],
                "verbs": verbs}]  # fmt: skip
    limited = lab.service_account(namespace, "bridge", allowed)
    refused = sync(rule, kubernetes={"nodes": ["*"]}, arguments=("--kubeconfig", str(limited)), status=1)
    assert [(e["addresses"][0], e.get("nodeName")) for e in found["endpoints"]] == [
        ("10.77.1.1", node), ("10.77.1.2", None),
    ]  # fmt: skip
    assert "a ClusterRole with list on nodes" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("count", "limit"), [(250, 100), (1000, 100), (1000, 1000)])
def test_one_changed_instance_writes_one_slice(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, count: int, limit: int
) -> None:
    """At any size: a flip, a newcomer and a leaver each change one object, and no endpoint is in two."""
    addresses = [f"10.78.{n >> 8}.{n & 255}" for n in range(1, count + 1)]
    for n, address in enumerate(addresses):
        consul.register(f"{prefix}web", f"{prefix}vm-{n}", address, 80)
    rule = {
        "services": [f"{prefix}*"], "to": {"output": "endpointslices", "max_endpoints_per_slice": limit},
    }  # fmt: skip

    def state() -> dict[str, str]:
        found = slices(kube, namespace, f"{prefix}web")
        listed = [e["addresses"][0] for item in found for e in item["endpoints"]]
        assert (sorted(listed), max(len(item["endpoints"]) for item in found) <= limit) == (sorted(addresses), True)
        return {item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in found}

    def written(before: dict[str, str]) -> set[str]:
        assert len(sync(rule).json["changes"]) == 1
        after = state()
        return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}

    sync(rule)
    assert len(state()) == -(-count // limit)
    before = state()
    consul.flip(f"{prefix}web", f"{prefix}vm-{count // 2}", "critical")
    flipped = written(before)
    before = state()
    consul.deregister(f"{prefix}web", f"{prefix}vm-7")
    addresses.remove(addresses[7])
    left = written(before)
    before = state()
    consul.register(f"{prefix}web", f"{prefix}vm-new", "10.79.0.1", 80)
    addresses.append("10.79.0.1")
    assert [len(flipped), len(left), len(written(before))] == [1, 1, 1]


@pytest.mark.slow
def test_more_addresses_than_the_control_plane_mirrors_are_reported(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """The mirror would end at a thousand: slices of ours carry all 1,001, and the plan says why."""
    for n in range(1001):
        consul.register(f"{prefix}web", f"{prefix}vm-{n}", f"10.78.{n >> 8}.{n & 255}", 80)
    result = sync({"services": [f"{prefix}*"], "to": {"output": "endpoints", "max_endpoints_per_slice": 1000}})
    assert len(ready_addresses(kube.endpoints(namespace, f"{prefix}web"))) == 1001
    assert sum(len(s["endpoints"]) for s in slices(kube, namespace, f"{prefix}web")) == 1001
    assert [row["reason"] for row in result.json["warnings"]] == ["mirror_refused"]


# --------------------------------------------------------------------------- families


@pytest.mark.slow
@pytest.mark.parametrize("output", ["endpoints", "endpointslices", "both"])
def test_both_families_stand_behind_one_service(dual: Lab, tmp_path: Path, output: str) -> None:
    """A Service with one family gets the second when the first IPv6 instance comes; an IPv6-only one is just that."""
    run = syncing(dual, "default", tmp_path)
    rule = {"services": ["*"], "to": {"output": output, "name": f"{output}-{{service}}"}}
    with dual.raw_consul() as consul, dual.raw_kube() as kube:
        consul.register("web", "vm-1", "10.77.1.1", 80)
        consul.register("six", "vm-6", "fd00::6", 80)
        run(rule)
        consul.register("web", "vm-2", "fd00::2", 80)
        run(rule)
        assert run(rule).json["changes"] == []
        families = {
            name: (kube.get(f"{SERVICES.format(namespace='default')}/{output}-{name}") or {})["spec"]["ipFamilies"]
            for name in ("web", "six")
        }
        managed = {item["addressType"] for item in slices(kube, "default", f"{output}-web")}
        listed = ready_addresses(kube.endpoints("default", f"{output}-web"))
        run(arguments=("--force",))
        consul.drop_node("vm-2")
    both = [("10.77.1.1", 80), ("fd00::2", 80)]
    assert families == {"web": ["IPv4", "IPv6"], "six": ["IPv6"]}
    assert managed == (set() if output == "endpoints" else {"IPv4", "IPv6"})
    assert listed == ([] if output == "endpointslices" else both)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "expected"),
    [("lan_ipv4", "10.77.1.2"), ("lan_ipv6", "fd00::77"), ("wan", "10.77.1.4"), ("node", "10.77.1.1")],
)
def test_a_rule_chooses_among_tagged_addresses(dual: Lab, tmp_path: Path, address: str, expected: str) -> None:
    """Of the service and of its node."""
    run = syncing(dual, "default", tmp_path)
    with dual.raw_consul() as consul, dual.raw_kube() as kube:
        consul.json(
            "PUT",
            "/v1/catalog/register",
            {
                "Node": "tagged", "Address": "10.77.1.1", "TaggedAddresses": {"wan": "10.77.1.4"},
                "Service": {
                    "Service": "tagged", "Address": "10.77.1.9", "Port": 80,
                    "TaggedAddresses": {
                        "lan_ipv4": {"Address": "10.77.1.2", "Port": 81},
                        "lan_ipv6": {"Address": "fd00::77", "Port": 81},
                    },
                },
            },
        )  # fmt: skip
        name = address.replace("_", "-")
        run({"services": ["tagged"], "to": {"name": name}, "instances": {"address": address}})
        found = ready_addresses(kube.endpoints("default", name))
        run(arguments=("--force",))
    assert found == [(expected, 81 if "_" in address else 80)]


# --------------------------------------------------------------------------- ports


def test_a_service_with_several_ports_has_them_all(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """Under their own names, on every instance's own numbers."""
    for n, web in ((1, 8080), (2, 8081)):
        ports = [{"Name": "http", "Port": web, "Default": True}, {"Name": "metrics", "Port": 9090}]
        consul.json(
            "PUT",
            "/v1/catalog/register",
            {
                "Node": f"{prefix}vm-{n}", "Address": f"10.77.1.{n}",
                "Service": {"Service": f"{prefix}web", "Ports": ports},
            },
        )  # fmt: skip
    sync({"services": [f"{prefix}*"]})
    assert ports_of(kube, namespace, f"{prefix}web") == [("http", 8080, "TCP", ""), ("metrics", 9090, "TCP", "")]
    subsets = (kube.endpoints(namespace, f"{prefix}web") or {})["subsets"]
    assert [sorted((p["name"], p["port"]) for p in s["ports"]) for s in subsets] == [
        [("http", 8080), ("metrics", 9090)], [("http", 8081), ("metrics", 9090)],
    ]  # fmt: skip


@pytest.mark.parametrize("output", ["endpoints", "endpointslices", "both"])
def test_two_consul_services_become_two_ports_of_one_service(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, output: str
) -> None:
    """Each with its own instances; when one goes its endpoints go, the other's stay."""
    consul.register(f"{prefix}web-http", f"{prefix}vm-1", "10.77.1.1", 8080)
    consul.register(f"{prefix}web-metrics", f"{prefix}vm-2", "10.77.1.2", 9100)
    rules = [
        {
            "services": [f"{prefix}web-{kind}"],
            "to": {"name": "web", "port": port, "port_name": kind, "app_protocol": "http", "output": output},
        }
        for kind, port in (("http", 80), ("metrics", 9090))
    ]
    sync(*rules)
    assert ports_of(kube, namespace, "web") == [("http", 80, "TCP", "http"), ("metrics", 9090, "TCP", "http")]

    def listed() -> set[tuple[str, str, int]]:
        if output == "endpoints":
            subsets = (kube.endpoints(namespace, "web") or {})["subsets"]
            pairs = [(a["ip"], p) for s in subsets for a in s["addresses"] for p in s["ports"]]
        else:
            found = slices(kube, namespace, "web")
            pairs = [(e["addresses"][0], p) for s in found for e in s["endpoints"] for p in s["ports"]]
        return {(address, port["name"], port["port"]) for address, port in pairs}

    assert listed() == {("10.77.1.1", "http", 8080), ("10.77.1.2", "metrics", 9100)}
    (explanation,) = sync(*rules, command=("explain", f"{prefix}web-http")).json["explanations"]
    assert (len(explanation["rows"]), explanation["unaccounted"], explanation["differences"]) == (1, [], [])
    consul.deregister(f"{prefix}web-metrics", f"{prefix}vm-2")
    sync(*rules)
    assert listed() == {("10.77.1.1", "http", 8080)}


def test_protocols_come_from_the_rule_or_from_meta(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """UDP by the service's meta, SCTP and the application protocol by rule, and what is no protocol is TCP."""
    consul.register(f"{prefix}dns", f"{prefix}vm-1", "10.77.1.1", 53, Meta={"protocol": "udp"})
    consul.register(f"{prefix}odd", f"{prefix}vm-1", "10.77.1.1", 80, Meta={"protocol": "quic"})
    consul.register(f"{prefix}sig", f"{prefix}vm-1", "10.77.1.1", 2905)
    sync(
        {"services": [f"{prefix}sig"], "to": {"protocol": "SCTP", "app_protocol": "example.com/m3ua"}},
        {"services": [f"{prefix}*"], "to": {"app_protocol": "kubernetes.io/h2c"}},
    )
    found = {name: ports_of(kube, namespace, f"{prefix}{name}") for name in ("dns", "odd", "sig")}
    assert found == {
        "dns": [("", 53, "UDP", "kubernetes.io/h2c")],
        "odd": [("", 80, "TCP", "kubernetes.io/h2c")],
        "sig": [("", 2905, "SCTP", "example.com/m3ua")],
    }
    endpoints = (kube.endpoints(namespace, f"{prefix}dns") or {})["subsets"][0]["ports"]
    assert endpoints == [{"port": 53, "protocol": "UDP", "appProtocol": "kubernetes.io/h2c"}]


@pytest.mark.parametrize("output", ["endpoints", "endpointslices"])
def test_a_headless_service_has_no_address_of_its_own(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, output: str
) -> None:
    """By rule; the addresses stand behind it all the same, and a second pass finds nothing to do."""
    consul.register(f"{prefix}web", f"{prefix}vm-1", "10.77.1.1", 80)
    rule = {"services": [f"{prefix}*"], "to": {"type": "Headless", "output": output}}
    sync(rule)
    found = kube.get(f"{SERVICES.format(namespace=namespace)}/{prefix}web") or {}
    standing = ready_addresses(kube.endpoints(namespace, f"{prefix}web"))
    sliced = [e["addresses"] for s in slices(kube, namespace, f"{prefix}web") for e in s["endpoints"]]
    assert (found["spec"]["clusterIP"], sync(rule).json["changes"]) == ("None", [])
    assert (standing, sliced) == (
        ([("10.77.1.1", 80)], []) if output == "endpoints" else ([], [["10.77.1.1"]])
    )  # fmt: skip


def test_what_a_rule_says_of_health_and_networks_is_done(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """Warnings not ready, critical ones left out, only one network, and never the last ready one away."""
    for n, status in enumerate(("passing", "warning", "critical"), 1):
        consul.register(f"{prefix}web", f"{prefix}vm-{n}", f"10.77.1.{n}", 80, status=status)
    consul.register(f"{prefix}web", f"{prefix}vm-4", "10.78.1.1", 80)
    rule = {
        "services": [f"{prefix}*"],
        "instances": {
            "warning": "not-ready", "critical": "omit", "allow_cidrs": ["10.77.0.0/16"], "min_ready": 1,
        },
    }  # fmt: skip
    sync(rule)
    before = kube.endpoints(namespace, f"{prefix}web")
    consul.flip(f"{prefix}web", f"{prefix}vm-1", "warning")
    sync(rule)
    after = kube.endpoints(namespace, f"{prefix}web")
    one, two = [("10.77.1.1", 80)], [("10.77.1.2", 80)]
    assert [ready_addresses(before), not_ready_addresses(before)] == [one, two]
    assert [ready_addresses(after), not_ready_addresses(after)] == [one, two]
