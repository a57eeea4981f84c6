"""Ports of Services that users made or edited: names and numbers agree wherever traffic looks, on real servers.

What traffic sees is the union of all EndpointSlices of a Service, no matter who wrote them (`union`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.conftest import Sync
from tests.support.lab import Lab
from tests.support.program import Daemon, environment
from tests.support.raw import SERVICES, SLICES, RawConsul, RawKube, UnexpectedAnswerError, ready_addresses

pytestmark = pytest.mark.lab

Json = dict[str, Any]
Eventually = Callable[..., None]


def union(kube: RawKube, namespace: str, service: str) -> list[tuple[str, str, str, int, bool]]:
    """Address, name, protocol and number of the port, and whether it is ready, of all slices of a Service."""
    found = kube.get(f"{SLICES.format(namespace=namespace)}?labelSelector=kubernetes.io/service-name={service}") or {}
    return sorted(
        (address, port.get("name", ""), port.get("protocol", ""), port.get("port", 0), endpoint["conditions"]["ready"])
        for piece in found["items"]
        for endpoint in piece["endpoints"]
        for address in endpoint["addresses"]
        for port in piece["ports"] or [{}]
    )


def service_of(kube: RawKube, namespace: str, name: str) -> Json:
    """The spec of a Service."""
    spec: Json = (kube.get(f"{SERVICES.format(namespace=namespace)}/{name}") or {})["spec"]
    return spec


def asking(kube: RawKube, namespace: str, name: str, service: str, *ports: Json, **spec: Any) -> None:
    """A user's Service that asks to be filled, by slices of ours and Endpoints."""
    metadata = {
        "name": name,
        "labels": {"consul-bridge/mirror": "true"},
        "annotations": {"consul-bridge/service": service, "consul-bridge/output": "both"},
    }
    body = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": list(ports), **spec}}
    kube.json("POST", SERVICES.format(namespace=namespace), body)


def warned(result: Any, name: str) -> list[str]:
    """The warnings about a target."""
    return [row["message"] for row in result.json["warnings"] if row["name"] == name]


def edit(kube: RawKube, namespace: str, name: str, spec: Json) -> None:
    """`kubectl patch service NAME --type merge`."""
    path = f"{SERVICES.format(namespace=namespace)}/{name}?fieldManager=kubectl-patch"
    kube.json("PATCH", path, {"spec": spec}, "application/merge-patch+json")


# --------------------------------------------------------------------------- Services that users made


def test_ports_of_a_users_service_are_matched_by_name_and_number_before_order(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """targetPort by name, then the port's name, then its number; a port that is left without endpoints is reported."""
    offered = [{"Name": "admin", "Port": 9000, "Default": True}, {"Name": "http", "Port": 8080}]
    consul.json(
        "PUT",
        "/v1/catalog/register",
        {"Node": f"{prefix}vm", "Address": "10.77.1.1", "Service": {"Service": f"{prefix}multi", "Ports": offered}},
    )
    consul.register(f"{prefix}one", f"{prefix}vm", "10.77.1.1", 8080)
    consul.register(f"{prefix}dns", f"{prefix}vm", "10.77.1.1", 53)
    asking(kube, namespace, "named", f"{prefix}multi", {"name": "web", "port": 80, "targetPort": "http"})
    asking(
        kube, namespace, "numbered", f"{prefix}one", {"name": "metrics", "port": 9090}, {"name": "http", "port": 8080}
    )
    asking(
        kube, namespace, "dns", f"{prefix}dns",
        {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53},
    )  # fmt: skip
    asking(kube, namespace, "first", f"{prefix}one", {"name": "http", "port": 80}, {"name": "metrics", "port": 9090})
    result = sync(kubernetes={"watch_namespaces": [namespace]})
    seen = {name: union(kube, namespace, name) for name in ("named", "numbered", "dns", "first")}
    assert seen == {
        "named": [("10.77.1.1", "web", "TCP", 8080, True)],
        "numbered": [("10.77.1.1", "http", "TCP", 8080, True)],
        "dns": [("10.77.1.1", "dns", "UDP", 53, True), ("10.77.1.1", "dns-tcp", "TCP", 53, True)],
        "first": [("10.77.1.1", "http", "TCP", 8080, True)],
    }
    assert (warned(result, "named"), warned(result, "dns")) == ([], [])
    assert [text.split(" of the Service")[0] for text in warned(result, "numbered")] == ["port 'metrics' (9090/TCP)"]
    assert [text.split(" of the Service")[0] for text in warned(result, "first")] == [
        "port 'http' (80/TCP)", "port 'metrics' (9090/TCP)",
    ]  # fmt: skip
    assert sync(kubernetes={"watch_namespaces": [namespace]}).json["changes"] == []


def test_what_a_users_service_says_of_its_traffic_is_honoured_or_reported(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """publishNotReadyAddresses, a headless Service without ports, traffic policies, and hints where zones are known."""
    for n, status, zone in ((1, "passing", "a"), (2, "critical", "b")):
        consul.json(
            "PUT",
            "/v1/catalog/register",
            {
                "Node": f"{prefix}vm-{n}", "Address": f"10.77.1.{n}", "NodeMeta": {"zone": zone},
                "Service": {"ID": "db", "Service": f"{prefix}db", "Port": 5432},
                "Check": {"CheckID": "db", "ServiceID": "db", "Name": "db", "Status": status},
            },
        )  # fmt: skip
    sql = {"name": "sql", "port": 5432}
    asking(kube, namespace, "published", f"{prefix}db", sql, publishNotReadyAddresses=True)
    asking(kube, namespace, "portless", f"{prefix}db", clusterIP="None")
    asking(kube, namespace, "local", f"{prefix}db", sql, internalTrafficPolicy="Local")
    asking(kube, namespace, "zoned", f"{prefix}db", sql, trafficDistribution="PreferClose")
    result = sync(kubernetes={"watch_namespaces": [namespace]})
    found = kube.get(SLICES.format(namespace=namespace)) or {}
    slices = {item["metadata"]["labels"]["kubernetes.io/service-name"]: item for item in found["items"]}
    assert {e["addresses"][0]: tuple(e["conditions"].values()) for e in slices["published"]["endpoints"]} == {
        "10.77.1.1": (True, True, False), "10.77.1.2": (True, False, False),
    }  # fmt: skip
    assert len(ready_addresses(kube.endpoints(namespace, "published"))) == 2
    assert union(kube, namespace, "portless") == [("10.77.1.1", "", "", 0, True), ("10.77.1.2", "", "", 0, False)]
    assert slices["portless"]["ports"] is None
    assert {e["addresses"][0]: e.get("hints") for e in slices["zoned"]["endpoints"]} == {
        "10.77.1.1": {"forZones": [{"name": "a"}]}, "10.77.1.2": {"forZones": [{"name": "b"}]},
    }  # fmt: skip
    assert all("hints" not in e for e in slices["local"]["endpoints"])
    assert {name: len(warned(result, name)) for name in slices} == {
        "published": 0, "portless": 0, "local": 1, "zoned": 0,
    }  # fmt: skip
    assert "internalTrafficPolicy is Local, and 1 of 1 ready endpoints" in warned(result, "local")[0]
    assert sync(kubernetes={"watch_namespaces": [namespace]}).json["changes"] == []


# --------------------------------------------------------------------------- Services of ours


def test_a_service_of_ours_that_users_edit_goes_on_working(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Eventually
) -> None:
    """Ports are put back in one pass, with equal names on both sides; a type that no rule sets stays."""
    consul.register(f"{prefix}web", f"{prefix}vm", "10.77.1.1", 8080)
    to: Json = {"port": 80, "output": "both"}
    rule = {"services": [f"{prefix}*"], "to": to}
    name = f"{prefix}web"
    sync(rule)
    for ports in (
        [{"name": "web", "port": 80}, {"name": "more", "port": 9}],
        [{"name": "web", "port": 81}, {"name": "more", "port": 9}],
    ):
        edit(kube, namespace, name, {"ports": ports})
        assert [c["kind"] for c in sync(rule).json["changes"]] == ["Service"]
        assert [(p.get("name"), p["port"], p["targetPort"]) for p in service_of(kube, namespace, name)["ports"]] == [
            (None, 80, 8080)
        ]
        assert union(kube, namespace, name) == [("10.77.1.1", "", "TCP", 8080, True)]
        assert sync(rule).json["changes"] == []
    edit(kube, namespace, name, {"type": "LoadBalancer"})
    assert sync(rule).json["changes"] == []
    dry = sync({**rule, "to": {**to, "labels": {"a": "b"}}}, arguments=("--dry-run", "-o", "diff"))
    assert "ClusterIP" not in dry.stdout
    sync({**rule, "to": {**to, "labels": {"a": "b"}}})
    assert service_of(kube, namespace, name)["type"] == "LoadBalancer"
    sync({**rule, "to": {**to, "type": "NodePort"}})
    assert service_of(kube, namespace, name)["type"] == "NodePort"


def test_a_target_port_is_the_commonest_port_of_the_instances(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """`kubectl describe` shows where traffic goes; when most have moved, it follows."""
    for n, port in ((1, 8080), (2, 8081), (3, 8081)):
        consul.register(f"{prefix}web", f"{prefix}vm-{n}", f"10.77.1.{n}", port)
    rule = {"services": [f"{prefix}*"], "to": {"port": 80}}
    sync(rule)
    assert [p["targetPort"] for p in service_of(kube, namespace, f"{prefix}web")["ports"]] == [8081]
    consul.register(f"{prefix}web", f"{prefix}vm-2", "10.77.1.2", 8080)
    sync(rule)
    assert [p["targetPort"] for p in service_of(kube, namespace, f"{prefix}web")["ports"]] == [8080]
    assert sync(rule).json["changes"] == []


def test_what_registrator_registers_is_one_service_in_both_protocols(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """TCP without a tag and UDP with the tag `udp`, under one name and on one number."""
    for suffix, tags in (("", []), (":udp", ["udp"])):
        consul.json(
            "PUT",
            "/v1/catalog/register",
            {
                "Node": f"{prefix}vm", "Address": "10.77.1.1",
                "Service": {"ID": f"dns{suffix}", "Service": f"{prefix}dns", "Port": 53, "Tags": tags},
            },
        )  # fmt: skip
    rule = {"services": [f"{prefix}*"], "to": {"protocol_from": {"tag:udp": "UDP"}, "output": "both"}}
    sync(rule)
    ports = service_of(kube, namespace, f"{prefix}dns")["ports"]
    assert [(p["name"], p["port"], p["protocol"]) for p in ports] == [("tcp", 53, "TCP"), ("udp", 53, "UDP")]
    assert union(kube, namespace, f"{prefix}dns") == [
        ("10.77.1.1", "tcp", "TCP", 53, True), ("10.77.1.1", "udp", "UDP", 53, True),
    ]  # fmt: skip
    assert sync(rule).json["changes"] == []


def test_a_running_bridge_puts_ports_back_and_takes_its_own_writes_for_no_conflict(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Eventually
) -> None:
    """Names agree again after each edit, what others set and no rule does is honoured, and no one is accused."""
    name = f"{prefix}web"
    consul.register(name, f"{prefix}vm-1", "10.77.1.1", 8080)
    consul.register(name, f"{prefix}vm-2", "10.77.1.2", 8080, status="critical")
    arguments = ("--service", f"{prefix}*", "--namespace", namespace, "--owner", namespace, "--output-kind", "both")
    env = environment(lab.consul.address, lab.kubeconfig)
    daemon = Daemon(lab, f"ports-{namespace}", *arguments, env=env)
    daemon.start()
    listed = [("10.77.1.1", "", "TCP", 8080, True), ("10.77.1.2", "", "TCP", 8080, False)]
    try:
        eventually(lambda: union(kube, namespace, name), listed)
        for ports in (
            [{"name": "web", "port": 8080}, {"name": "more", "port": 9}],
            [{"name": "web", "port": 81}, {"name": "more", "port": 9}],
        ):
            edit(kube, namespace, name, {"ports": ports})
            eventually(
                lambda: [(p.get("name"), p["port"]) for p in service_of(kube, namespace, name)["ports"]], [(None, 8080)]
            )
            assert union(kube, namespace, name) == listed
        edit(kube, namespace, name, {"publishNotReadyAddresses": True, "type": "NodePort"})
        eventually(lambda: {ready for *_, ready in union(kube, namespace, name)}, {True})
        edit(kube, namespace, name, {"publishNotReadyAddresses": False})
        eventually(lambda: union(kube, namespace, name), listed)
        assert service_of(kube, namespace, name)["type"] == "NodePort"
        assert b"conflicting_writer" not in daemon.get("/readyz")[1]
    finally:
        daemon.stop()


def test_a_refused_change_of_a_service_leaves_its_endpoints_reachable(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Eventually
) -> None:
    """An admission policy refuses the new name of a port: the endpoints keep the old one, and the sync says so."""
    consul.register(f"{prefix}web", f"{prefix}vm", "10.77.1.1", 8080)
    to: Json = {"output": "both"}
    sync({"services": [f"{prefix}*"], "to": to})
    admission = "/apis/admissionregistration.k8s.io/v1"
    policy = f"ports-{namespace}"
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["services"]}
    kube.json(
        "POST",
        f"{admission}/validatingadmissionpolicies",
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": policy},
            "spec": {
                "matchConstraints": {
                    "resourceRules": [rule],
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                },
                "validations": [{"expression": "object.spec.ports == oldObject.spec.ports", "message": "ports stay"}],
            },
        },
    )
    kube.json(
        "POST",
        f"{admission}/validatingadmissionpolicybindings",
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": policy},
            "spec": {"policyName": policy, "validationActions": ["Deny"]},
        },
    )
    path = f"{SERVICES.format(namespace=namespace)}/{prefix}web?dryRun=All"

    def refused() -> bool:
        try:
            patch = {"spec": {"ports": [{"name": "x", "port": 8080}]}}
            kube.json("PATCH", path, patch, "application/merge-patch+json")
        except UnexpectedAnswerError as error:
            return "ports stay" in str(error)
        return False

    try:
        eventually(refused, True)
        result = sync({"services": [f"{prefix}*"], "to": {**to, "port_name": "http"}}, status=1)
        failed = {(row["kind"], row["reason"], "ports stay" in row["message"]) for row in result.json["failed"]}
        assert ("Service", "permanent", True) in failed
        assert {reason for kind, reason, _ in failed if kind != "Service"} == {"not_tried"}
        assert union(kube, namespace, f"{prefix}web") == [("10.77.1.1", "", "TCP", 8080, True)]
    finally:
        kube.delete(f"{admission}/validatingadmissionpolicybindings/{policy}")
        kube.delete(f"{admission}/validatingadmissionpolicies/{policy}")
    eventually(refused, False)
    sync({"services": [f"{prefix}*"], "to": {**to, "port_name": "http"}})
    assert union(kube, namespace, f"{prefix}web") == [("10.77.1.1", "http", "TCP", 8080, True)]
