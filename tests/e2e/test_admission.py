"""The admission policy: what the bridge does is admitted, and nothing else is, whatever its Role and settings allow."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from tests.e2e.test_manifests import BRIDGE, Cluster, identity, running
from tests.support.lab import Lab, manifests
from tests.support.raw import ENDPOINTS, SERVICES, SLICES, RawConsul, RawKube, UnexpectedAnswerError, ready_addresses

pytestmark = pytest.mark.lab

Json = dict[str, Any]
NETWORK = "10.64.0.0/12"


@pytest.fixture
def installed(lab: Lab, kube: RawKube, namespace: str, tmp_path: Path) -> Iterator[tuple[dict[str, str], list[str]]]:
    """The manifests with the policy for one network; the environment of the bridge, and the daemon's arguments."""
    cluster = Cluster(lab, kube, namespace)
    rules = {"rules": [{"services": ["adm-*"], "to": {"output": "both"}}]}
    components = ("admission",)
    objects = manifests.overlay(tmp_path, namespace, components, rules=yaml.safe_dump(rules), consul=lab.consul.address)
    policy = manifests.of_kind(objects, "ValidatingAdmissionPolicy")
    (networks,) = (v for v in policy["spec"]["variables"] if v["name"] == "networks")
    networks["expression"] = f"['{NETWORK}', 'fd00::/8']"
    manifests.apply(kube, objects)
    yield identity(cluster, objects, tmp_path, BRIDGE_LISTEN="127.0.0.1:0"), manifests.container(objects)["args"]
    for kind in ("validatingadmissionpolicybindings", "validatingadmissionpolicies"):
        kube.delete(f"/apis/admissionregistration.k8s.io/v1/{kind}/{manifests.NAME}")


@pytest.fixture
def theirs(lab: Lab, installed: tuple[dict[str, str], list[str]]) -> Iterator[RawKube]:
    """A plain client with the bridge's own token: what a user who stole it could do."""
    with lab.raw_kube(Path(installed[0]["KUBECONFIG"])) as client:
        yield client


def marked(kind: str, namespace: str, name: str, owner: str | None = None, **more: Any) -> Json:
    """An object with the bridge's marks, as it writes them."""
    owner = owner or f"{namespace}.{manifests.NAME}"
    labels = {"app.kubernetes.io/managed-by": "consul-bridge", "consul-bridge/owner": owner}
    return {
        "apiVersion": "discovery.k8s.io/v1" if kind == "EndpointSlice" else "v1",
        "kind": kind,
        "metadata": {"name": name, "labels": labels | more.pop("labels", {})},
        **more,
    }


def refused(kube: RawKube, path: str, body: Json) -> str:
    """What the API server says to a create; "" when it is admitted."""
    try:
        kube.json("PATCH", f"{path}/{body['metadata']['name']}?fieldManager=x&force=true&dryRun=All", body,
                  "application/apply-patch+yaml")  # fmt: skip
    except UnexpectedAnswerError as error:
        return str(error)
    return ""


def admission(environment: dict[str, str]) -> str:
    """What `bridge check` says of admission; "" when it says nothing."""
    done = subprocess.run(
        (*BRIDGE, "check", "-o", "json"), env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    probes = json.loads(done.stdout)["probes"]
    return "".join(p["detail"] for p in probes if p["probe"].startswith("admission in"))


def test_the_bridge_is_admitted_and_nothing_else_is(
    installed: tuple[dict[str, str], list[str]],
    theirs: RawKube,
    kube: RawKube,
    consul: RawConsul,
    namespace: str,
    eventually: Callable[..., None],
    tmp_path: Path,
) -> None:
    """Rules and annotated Services, Endpoints and slices; then each rule of the policy, with the bridge's own token."""
    environment, arguments = installed
    service = f"adm-{uuid4().hex[:6]}"
    subset = [{"addresses": [{"ip": "10.64.0.9"}], "ports": [{"port": 80}]}]
    plain = {"ports": [{"port": 80, "protocol": "TCP"}]}
    services, endpoints, slices = (p.format(namespace=namespace) for p in (SERVICES, ENDPOINTS, SLICES))
    unmarked = {"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "x"}, "subsets": subset}
    # The API server learns of a new policy by a watch.
    eventually(lambda: "owner id" in refused(theirs, endpoints, unmarked), True, 30)

    assert admission(environment) == ""
    assert "owner id" in admission({**environment, "BRIDGE_OWNER": "another"})
    for n in (1, 2):
        consul.register(service, f"{service}-{n}", f"10.64.0.{n}", 8080)
    try:
        asking = {
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "asked", "labels": {"consul-bridge/mirror": "true"},
                         "annotations": {"consul-bridge/service": service}},
            "spec": plain,
        }  # fmt: skip
        kube.json("POST", services, asking)
        with running(arguments, environment, tmp_path / "log"):
            for name in (service, "asked"):
                eventually(lambda n=name: len(ready_addresses(kube.endpoints(namespace, n))), 2, 60)
            consul.register(service, f"{service}-3", "10.9.0.3", 8080)
            eventually(lambda: "outside of the networks" in (tmp_path / "log").read_text(), True, 60)
            consul.drop_node(f"{service}-3")
            consul.drop_node(f"{service}-2")
            for name in (service, "asked"):
                eventually(lambda n=name: len(ready_addresses(kube.endpoints(namespace, n))), 1, 90)
        kube.json(
            "POST", services, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "mine"}, "spec": plain}
        )

        assert refused(theirs, endpoints, marked("Endpoints", namespace, "x", subsets=subset)) == ""
        for path, body, message in (
            (endpoints, unmarked, "owner id"),
            (endpoints, marked("Endpoints", namespace, "x", "somebody", subsets=subset), "owner id"),
            (services, marked("Service", namespace, "mine", spec=plain), "no object of others"),
            (services, marked("Service", namespace, "x", spec={**plain, "type": "NodePort"}), "type ClusterIP"),
            (services, marked("Service", namespace, "x", spec={**plain, "selector": {"a": "b"}}), "type ClusterIP"),
            (services, marked("Service", namespace, "x", spec={**plain, "externalIPs": ["10.64.0.1"]}), "ClusterIP"),
            (
                endpoints,
                marked("Endpoints", namespace, "x", subsets=[{**subset[0], "notReadyAddresses": [{"ip": "10.9.0.1"}]}]),
                "outside of the networks",
            ),
            (
                slices,
                marked("EndpointSlice", namespace, "x", addressType="IPv4", endpoints=[{"addresses": ["10.9.0.1"]}]),
                "outside of the networks",
            ),
        ):
            assert message in refused(theirs, path, body), body
        with pytest.raises(UnexpectedAnswerError, match="owner id"):
            theirs.json("DELETE", f"{services}/mine?dryRun=All")
    finally:
        for n in (1, 2, 3):
            consul.drop_node(f"{service}-{n}")
