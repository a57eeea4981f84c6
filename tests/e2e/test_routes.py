"""HTTPRoutes (Gateway API) on real servers, with the CRD as it is released."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Eventually
from tests.e2e.conftest import Sync
from tests.support.lab import Lab, manifests
from tests.support.program import Daemon, bridge, environment
from tests.support.raw import ROUTES, SERVICES, RawConsul, RawKube, ready_addresses

pytestmark = pytest.mark.lab

Json = dict[str, Any]
MERGE = "application/merge-patch+json"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/httproutes.gateway.networking.k8s.io"
ROUTE = {"parents": [{"name": "public", "namespace": "infra", "section_name": "https"}], "hostnames": ["{tag:host=}"]}


@pytest.fixture
def gateway_api(kube: RawKube) -> Iterator[None]:
    """The API server knows HTTPRoutes."""
    with manifests.gateway_kinds(kube):
        yield


def route_of(kube: RawKube, namespace: str, name: str) -> Json | None:
    return kube.get(f"{ROUTES.format(namespace=namespace)}/{name}")


def hostnames(kube: RawKube, namespace: str, name: str) -> list[str] | None:
    found = route_of(kube, namespace, name)
    return None if found is None else found["spec"]["hostnames"]


def changes(result: Any) -> list[str]:
    return [f"{c['action']} {c['kind']}" for c in result.json["changes"] if c["action"] != "unchanged"]


def test_a_route_comes_follows_the_tags_is_put_back_and_goes(
    gateway_api: None,
    sync: Sync,
    lab: Lab,
    consul: RawConsul,
    kube: RawKube,
    namespace: str,
    prefix: str,
    tmp_path: Path,
) -> None:
    """A pass that has nothing to do writes nothing, whatever a gateway says in the status."""
    name, node = f"{prefix}web", f"{prefix}vm-1"
    rule = {"services": [f"{prefix}*"], "to": {"route": ROUTE}}
    path = f"{ROUTES.format(namespace=namespace)}/{name}"
    consul.register(name, node, "10.1.0.1", 8080, tags=["host=shop.example.com"])
    whole = ["create Service", "create EndpointSlice", "create Endpoints", "create HTTPRoute"]
    assert sync(rule, command=("sync", "--dry-run")).json["summary"]["create"] == len(whole)
    assert sorted(changes(sync(rule))) == sorted(whole)
    made = route_of(kube, namespace, name) or {}
    assert made["spec"] == {
        "parentRefs": [
            {
                "group": "gateway.networking.k8s.io",
                "kind": "Gateway",
                "name": "public",
                "namespace": "infra",
                "sectionName": "https",
            }
        ],
        "hostnames": ["shop.example.com"],
        "rules": [
            {
                "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                "backendRefs": [{"group": "", "kind": "Service", "name": name, "port": 8080, "weight": 1}],
            }
        ],
    }
    assert changes(sync(rule)) == []
    condition = {
        "type": "Accepted", "status": "False", "reason": "NotAllowedByListeners", "message": "namespace is not allowed",
        "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1,
    }  # fmt: skip
    parent = {
        "parentRef": made["spec"]["parentRefs"][0],
        "controllerName": "example.com/gateway",
        "conditions": [condition],
    }
    stated = kube.json("PATCH", f"{path}/status", {"status": {"parents": [parent]}}, MERGE)
    assert (changes(sync(rule)), route_of(kube, namespace, name)) == ([], stated)
    said = sync(rule, command=("explain", name)).json["explanations"][0]["warnings"]
    gateway_says = "Gateway infra/public says Accepted is False for the HTTPRoute"
    assert said == [f"{gateway_says}: NotAllowedByListeners: namespace is not allowed"]
    probes = {p["probe"]: (p["state"], p["detail"]) for p in sync(rule, command=("check",)).json["probes"]}
    assert probes["gateways"] == ("warning", f"{namespace}/{name}: {said[0]}")
    consul.register(name, node, "10.1.0.1", 8080, tags=["host=www.example.com", "host=shop.example.com"])
    assert changes(sync(rule)) == ["update HTTPRoute"]
    assert hostnames(kube, namespace, name) == ["shop.example.com", "www.example.com"]
    edited = {"spec": {"rules": [{"backendRefs": [{"name": "other", "port": 1}]}], "hostnames": ["x.example.com"]}}
    kube.json("PATCH", path, edited, MERGE)
    assert changes(sync(rule)) == ["update HTTPRoute"]
    assert (route_of(kube, namespace, name) or {})["spec"]["rules"] == made["spec"]["rules"]
    assert (changes(sync(rule)), hostnames(kube, namespace, name)) == ([], ["shop.example.com", "www.example.com"])
    assert changes(sync({"services": [f"{prefix}*"]})) == ["delete HTTPRoute"]
    assert changes(sync(rule)) == ["create HTTPRoute"]
    left = sync(rule, command=("purge", "--yes"))
    assert "delete HTTPRoute" in changes(left)
    assert (route_of(kube, namespace, name), kube.get(f"{SERVICES.format(namespace=namespace)}/{name}")) == (None, None)


def test_an_object_of_another_writer_is_left_alone(
    gateway_api: None, sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """It is a conflict, the Service is mirrored, and adopting it is a choice."""
    name = f"{prefix}web"
    rule = {"services": [f"{prefix}*"], "to": {"route": ROUTE}}
    consul.register(name, f"{prefix}vm-1", "10.1.0.1", 8080, tags=["host=shop.example.com"])
    body = {
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": name},
        "spec": {"parentRefs": [{"name": "public"}], "hostnames": ["theirs.example.com"]},
    }  # fmt: skip
    before = kube.json("POST", ROUTES.format(namespace=namespace), body)
    done = sync(rule, status=5)
    assert [(c["kind"], c["reason"]) for c in done.json["conflicts"]] == [("HTTPRoute", "not_owned")]
    assert sorted(changes(done)) == ["create EndpointSlice", "create Endpoints", "create Service"]
    assert (route_of(kube, namespace, name) or {}) == before
    assert changes(sync(rule, arguments=("--adopt", "unowned"))) == ["update HTTPRoute"]
    assert hostnames(kube, namespace, name) == ["shop.example.com"]
    assert changes(sync(rule)) == []
    consul.register(f"{prefix}api", f"{prefix}vm-1", "10.1.0.1", 8081, tags=["host=shop.example.com"])
    sync(rule)
    probes = {p["probe"]: (p["state"], p["detail"]) for p in sync(rule, command=("check",)).json["probes"]}
    both = f"{namespace}/{prefix}api, {namespace}/{name}"
    assert probes["host names"] == ("warning", f"shop.example.com/ at Gateway infra/public: {both}")
    assert probes[f"HTTPRoutes in {namespace}"] == ("ok", "all that is needed")


def test_without_the_kind_all_the_rest_is_mirrored_and_it_is_picked_up_when_it_comes(
    sync: Sync,
    lab: Lab,
    consul: RawConsul,
    kube: RawKube,
    namespace: str,
    prefix: str,
    tmp_path: Path,
    eventually: Eventually,
) -> None:
    """Said once by a running bridge, by check with what to do; then the HTTPRoute lives as long as its Service."""
    name, rule = f"{prefix}web", {"services": [f"{prefix}*"], "to": {"route": ROUTE}}
    consul.register(name, f"{prefix}vm-1", "10.1.0.1", 8080, tags=["host=shop.example.com"])
    consul.register(f"{prefix}api", f"{prefix}vm-1", "10.1.0.1", 8081, tags=["host=api.example.com"])
    if kube.get(CRD) is not None:
        pytest.skip("this cluster has HTTPRoutes")
    done = sync(rule)
    warnings = {w["message"] if "message" in w else w["reason"] for w in done.json["warnings"]}
    assert any("the cluster has no HTTPRoute (gateway.networking.k8s.io/v1)" in text for text in warnings), done.stdout
    probes = {p["probe"]: p for p in sync(rule, command=("check",), status=1).json["probes"]}
    assert (probes["HTTPRoutes"]["state"], "install the Gateway API's CRDs" in str(probes["HTTPRoutes"])) == (
        "failed",
        True,
    )
    env = environment(lab.consul.address, lab.kubeconfig)
    daemon = Daemon(
        lab, f"bridge-{namespace}", "--config", str(tmp_path / "bridge.yaml"), "--removal-grace-period", "1s", env=env
    )
    daemon.start()
    try:
        assert any("has no HTTPRoute" in text for text in daemon.readiness()["warnings"])
        consul.register(name, f"{prefix}vm-1", "10.1.0.9", 8080, tags=["host=shop.example.com"])
        eventually(lambda: ready_addresses(kube.endpoints(namespace, name)), [("10.1.0.9", 8080)])
        said = [e for e in daemon.events() if "has no HTTPRoute" in str(e.get("reason"))]
        assert len(said) == 1, said
        with manifests.gateway_kinds(kube):
            ask = partial(hostnames, kube, namespace, name)
            eventually(ask, ["shop.example.com"], 60)
            assert "warnings" not in daemon.readiness() or not any(
                "HTTPRoute" in text for text in daemon.readiness()["warnings"]
            )
            consul.register(name, f"{prefix}vm-1", "10.1.0.9", 8080, tags=["host=www.example.com"])
            eventually(ask, ["www.example.com"])
            kube.delete(f"{ROUTES.format(namespace=namespace)}/{name}")
            eventually(
                lambda: (route_of(kube, namespace, name) or {}).get("spec", {}).get("hostnames"), ["www.example.com"]
            )
            consul.deregister(name, f"{prefix}vm-1")
            eventually(ask, None)
            eventually(lambda: kube.get(f"{SERVICES.format(namespace=namespace)}/{name}"), None)
        eventually(lambda: any("HTTPRoute" in t for t in daemon.readiness().get("warnings", ())), True, 60)
    finally:
        daemon.stop()


def test_without_the_right_the_service_is_mirrored_and_the_component_is_named(
    gateway_api: None, lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, tmp_path: Path
) -> None:
    """No right to list: a warning. The right to list alone: the HTTPRoute's write fails, and nothing else does."""
    name = f"{prefix}web"
    consul.register(name, f"{prefix}vm-1", "10.1.0.1", 8080, tags=["host=shop.example.com"])
    to = {"namespace": namespace, "route": ROUTE}
    (tmp_path / "bridge.yaml").write_text(yaml.safe_dump({"rules": [{"services": [f"{prefix}*"], "to": to}]}))
    verbs = ["list", "create", "patch", "delete", "watch"]
    rules = [
        {"apiGroups": [group], "resources": [resource], "verbs": verbs}
        for group, resource in (("", "services"), ("", "endpoints"), ("discovery.k8s.io", "endpointslices"))
    ]
    reading = {"apiGroups": ["gateway.networking.k8s.io"], "resources": ["httproutes"], "verbs": ["list"]}
    found = []
    for account, granted in (("none", rules), ("reading", [*rules, reading])):
        env = environment(lab.consul.address, lab.service_account(namespace, account, granted))
        run = partial(bridge, env=env)
        done = run("sync", "--yes", "--config", str(tmp_path / "bridge.yaml"), "-o", "json")
        checked = run("check", "--config", str(tmp_path / "bridge.yaml"), "-o", "json")
        probe = next(p for p in checked.json["probes"] if p["probe"].startswith("HTTPRoutes in "))
        found.append(
            (done.status, probe["state"], json.dumps([done.json["warnings"], done.json["failed"]]), probe["detail"])
        )
    (status, state, said, lacking), (later, _, failed, missing) = found
    assert (status, state, later) == (0, "failed", 1)
    assert "manifests/components/http-routes" in said
    assert "HTTPRoute" in failed
    assert (
        lacking
        == "not allowed: list httproutes, watch httproutes, create httproutes, patch httproutes, delete httproutes"
    )
    assert missing == "not allowed: watch httproutes, create httproutes, patch httproutes, delete httproutes"
    assert ready_addresses(kube.endpoints(namespace, name)) == [("10.1.0.1", 8080)]
