"""What users of a namespace may ask for by annotation: what was granted, and nothing that tells of the rest."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.core import labels
from tests.support.lab import Lab
from tests.support.program import Daemon, bridge, environment, put
from tests.support.raw import RawConsul, RawKube, UnexpectedAnswerError, ask, ready

pytestmark = pytest.mark.lab

Json = dict[str, Any]
Eventually = Callable[..., None]


def messages(kube: RawKube, namespace: str, name: str) -> set[str]:
    """Texts of the Events on a user's Service, without names that differ in any case."""
    events = kube.json("GET", f"/api/v1/namespaces/{namespace}/events")["items"]
    return {event["message"] for event in events if event["involvedObject"]["name"] == name}


def settings(file: Path, *namespaces: str, **further: Any) -> None:
    """A file without rules for a bridge that watches some namespaces."""
    put(file, yaml.safe_dump({"rules": [], "kubernetes": {"watch_namespaces": list(namespaces)}, **further}))


def test_with_several_namespaces_nothing_is_filled_before_it_is_granted(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, other: str, prefix: str, tmp_path: Path
) -> None:
    """A bridge of one namespace fills what is asked for there; `check` says both, and what is missing."""
    consul.register(f"{prefix}pg", f"{prefix}vm-1", "10.77.1.1", 5432)
    for place in (namespace, other):
        ask(kube, place, "database", f"{prefix}pg", create=True)
    env, file = environment(lab.consul.address, lab.kubeconfig), tmp_path / "bridge.yaml"
    settings(file, namespace, other)
    result = bridge("sync", "--yes", "--config", str(file), "-o", "json", env=env)
    assert (result.status, result.json["changes"]) == (0, [])
    probes = bridge("check", "--config", str(file), "-o", "json", env=env).json["probes"]
    found = {probe["probe"]: probe for probe in probes}
    assert "guard.allow_cidrs" in found["networks"]["remedy"]
    assert "grants nothing" in found["grants"]["detail"]
    detail = found["annotated Services"]["detail"]
    assert f"no grant in `annotated` lets namespace {other} ask for {prefix}pg in" in detail

    settings(file, namespace, other, annotated=[{"namespaces": [other], "services": [f"{prefix}*"]}])
    bridge("sync", "--yes", "--config", str(file), "-o", "json", env=env)
    assert (ready(kube, namespace, "database"), ready(kube, other, "database")) == ([], ["10.77.1.1"])

    settings(file, namespace)
    bridge("sync", "--yes", "--config", str(file), "-o", "json", env=env)
    assert ready(kube, namespace, "database") == ["10.77.1.1"]


def test_a_running_bridge_follows_grants_and_tells_users_nothing_of_what_exists(
    lab: Lab,
    consul: RawConsul,
    kube: RawKube,
    namespace: str,
    other: str,
    prefix: str,
    tmp_path: Path,
    eventually: Eventually,
) -> None:
    """What was not granted and what does not exist give the same Event; a grant that is withdrawn empties at once."""
    consul.register(f"{prefix}pg", f"{prefix}vm-1", "10.77.1.1", 5432)
    consul.register(f"{prefix}secret", f"{prefix}vm-2", "10.77.1.2", 5432)
    ask(kube, namespace, "mine", f"{prefix}pg", create=True)
    ask(kube, namespace, "theirs", f"{prefix}secret", create=True)
    ask(kube, namespace, "nothing", f"{prefix}none", create=True)
    ask(kube, namespace, "filtered", f"{prefix}pg", filter='Service.Meta.env == "prod"', create=True)
    granted = [
        {"namespaces": [namespace], "services": [f"{prefix}pg", f"{prefix}none"], "allow_cidrs": ["10.77.0.0/16"]}
    ]
    env, file = environment(lab.consul.address, lab.kubeconfig), tmp_path / "bridge.yaml"
    settings(file, namespace, other, annotated=granted)
    daemon = Daemon(lab, f"run-{prefix}", "--config", str(file), env=env)
    try:
        daemon.start()
        eventually(lambda: ready(kube, namespace, "mine"), ["10.77.1.1"], 60)
        told = f"dc1 lists no service {prefix}NAME that namespace {namespace} may ask for"
        for name, service in (("theirs", "secret"), ("nothing", "none")):
            eventually(lambda n=name: messages(kube, namespace, n), {told.replace("NAME", service)}, 30)
        (text,) = messages(kube, namespace, "filtered")
        assert "consul-bridge/filter" in text
        for name in ("theirs", "nothing", "filtered"):
            assert kube.endpoints(namespace, name) is None

        settings(file, namespace, other, annotated=[])
        eventually(lambda: ready(kube, namespace, "mine"), [], 60)
        settings(file, namespace, other, annotated=granted)
        eventually(lambda: ready(kube, namespace, "mine"), ["10.77.1.1"], 60)
    finally:
        daemon.stop()
    assert [e for e in daemon.events() if "secret" in e.get("event", "")] == []


def label(kube: RawKube, namespace: str, **labels: str | None) -> None:
    """Set labels of a namespace, or take them off (None)."""
    body = {"metadata": {"labels": labels}}
    kube.json("PATCH", f"/api/v1/namespaces/{namespace}", body, "application/merge-patch+json")


def test_a_running_bridge_follows_the_labels_of_namespaces(
    lab: Lab,
    consul: RawConsul,
    kube: RawKube,
    namespace: str,
    other: str,
    prefix: str,
    tmp_path: Path,
    eventually: Eventually,
) -> None:
    """A label gives and takes like a grant that is written and withdrawn, while it runs; `sync` reads labels once."""
    consul.register(f"{prefix}pg", f"{prefix}vm-1", "10.77.1.1", 5432)
    label(kube, namespace, team="a", env="qa")
    for place in (namespace, other):
        ask(kube, place, "database", f"{prefix}pg", create=True)
    selector = {"matchLabels": {"team": "a"}, "matchExpressions": [{"key": "off", "operator": "DoesNotExist"}]}
    env, file = environment(lab.consul.address, lab.kubeconfig), tmp_path / "bridge.yaml"
    settings(file, namespace, other, annotated=[{"namespace_selector": selector}], run={"removal_grace_period": "1s"})

    def filled() -> tuple[list[str], list[str]]:
        return ready(kube, namespace, "database"), ready(kube, other, "database")

    bridge("sync", "--yes", "--config", str(file), env=env)
    assert filled() == (["10.77.1.1"], [])
    daemon = Daemon(lab, f"run-{prefix}", "--config", str(file), env=env)
    try:
        daemon.start()
        label(kube, other, team="a")
        eventually(filled, (["10.77.1.1"], ["10.77.1.1"]), 30)
        label(kube, namespace, off="")
        eventually(filled, ([], ["10.77.1.1"]), 30)
        label(kube, namespace, off=None)
        label(kube, other, team=None)
        eventually(filled, (["10.77.1.1"], []), 30)
        assert "warnings" not in daemon.readiness()
    finally:
        daemon.stop()


def test_without_the_right_to_read_labels_nothing_new_is_filled_and_it_is_reported(
    lab: Lab,
    consul: RawConsul,
    kube: RawKube,
    namespace: str,
    prefix: str,
    tmp_path: Path,
    eventually: Eventually,
) -> None:
    """What is filled stays; `check` names the right, log and /readyz too, and a right that comes later is used."""
    consul.register(f"{prefix}pg", f"{prefix}vm-1", "10.77.1.1", 5432)
    label(kube, namespace, team="a")
    ask(kube, namespace, "database", f"{prefix}pg", create=True)
    file = tmp_path / "bridge.yaml"
    settings(file, namespace, annotated=[{"namespaces": [namespace], "namespace_selector": "team = a"}])
    write = ["list", "watch", "create", "patch", "delete"]
    poor = lab.service_account(namespace, f"{prefix}poor", [
        {"apiGroups": [""], "resources": ["services", "endpoints"], "verbs": write},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": write},
        {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
    ])  # fmt: skip
    env = environment(lab.consul.address, poor)
    result = bridge("sync", "--yes", "--config", str(file), "-o", "json", env=env)
    assert (result.status, result.json["changes"]) == (0, [])
    assert "list and watch namespaces in the cluster (manifests/components/namespace-labels)" in result.stderr
    probes = bridge("check", "--config", str(file), "-o", "json", env=env).json["probes"]
    found = {probe["probe"]: probe for probe in probes}
    (probe,) = (found["labels of namespaces"],)
    assert (probe["state"], "list namespaces, watch namespaces" in probe["detail"]) == ("failed", True)
    assert "namespaceLabels" in probe["remedy"]
    assert "labels, which a `namespace_selector` needs, are not known" in found["annotated Services"]["detail"]

    rich = environment(lab.consul.address, lab.kubeconfig)
    bridge("sync", "--yes", "--config", str(file), env=rich)
    ask(kube, namespace, "another", f"{prefix}pg", create=True)
    daemon = Daemon(lab, f"run-{prefix}", "--config", str(file), env=env)
    group = "rbac.authorization.k8s.io"
    role = {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": {"name": f"{prefix}labels"}}
    rules = [{"apiGroups": [""], "resources": ["namespaces"], "verbs": ["list", "watch"]}]
    path = f"/apis/{group}/v1/cluster"
    try:
        daemon.start()
        (text,) = daemon.readiness()["warnings"]
        assert "no namespace's labels are known" in text
        assert (ready(kube, namespace, "database"), kube.endpoints(namespace, "another")) == (["10.77.1.1"], None)
        kube.json("POST", f"{path}roles", {**role, "rules": rules})
        kube.json("POST", f"{path}rolebindings", {
            **role, "kind": "ClusterRoleBinding",
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": f"{prefix}labels"},
            "subjects": [{"kind": "ServiceAccount", "name": f"{prefix}poor", "namespace": namespace}],
        })  # fmt: skip
        eventually(lambda: ready(kube, namespace, "another"), ["10.77.1.1"], 60)
        assert ready(kube, namespace, "database") == ["10.77.1.1"]
        eventually(lambda: "warnings" in daemon.readiness(), False, 60)
    finally:
        daemon.stop()
        for kind in ("roles", "rolebindings"):
            kube.delete(f"{path}{kind}/{prefix}labels")


def test_selectors_mean_what_they_mean_to_the_api_server(kube: RawKube, namespace: str) -> None:
    """The same selectors, asked of a list of namespaces; and what is no selector there is none here."""
    own = {"team": f"{namespace}-x"[:60], "env": "prod", "example.com/tier": ""}
    body = {"metadata": {"labels": own}}
    kube.json("PATCH", f"/api/v1/namespaces/{namespace}", body, "application/merge-patch+json")
    for selector in (
        "env=prod", "env==prod", "env = prod , team", "env!=prod", "none!=prod", "env in (prod, qa)", "env in (qa)",
        "none in (,x)", "env notin (prod)", "none notin (prod)", "!none", "! env", "!env", "example.com/tier",
        "example.com/tier=", "example.com/tier in (,x)", "env,", "env=a b", "env in prod", "-x", "env in (a b)",
        "env=a/b", "env in ()", "!", "=x", "a.b/c/d", "env in (prod", "in in (in)", "notin", "env in(prod)",
        "env notin(prod)",
    ):  # fmt: skip
        query = urllib.parse.urlencode({"labelSelector": selector, "fieldSelector": f"metadata.name={namespace}"})
        try:
            theirs: object = len(kube.json("GET", f"/api/v1/namespaces?{query}")["items"]) == 1
        except UnexpectedAnswerError:
            theirs = "refused"
        try:
            ours: object = labels.matches(selector, own)
        except ValueError:
            ours = "refused"
        assert (selector, ours) == (selector, theirs)


@pytest.fixture
def node(kube: RawKube, prefix: str) -> Iterator[str]:
    """A node of the cluster, at two addresses."""
    name = f"{prefix}node"
    addresses = [{"type": "InternalIP", "address": text} for text in ("10.78.0.1", "2001:db8:78::1")]
    body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {"addresses": addresses}}
    kube.json("POST", "/api/v1/nodes", body)
    yield name
    kube.delete(f"/api/v1/nodes/{name}")


def test_annotated_services_do_not_lead_to_the_clusters_nodes(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, other: str, node: str, prefix: str, tmp_path: Path
) -> None:
    """Where nodes may be listed; a grant may allow it, and what Consul has on the very node is no way in. Rules may."""
    service = f"{prefix}kubelet"
    for address in ("10.78.0.1", "2001:db8:78::1", "10.78.0.9"):
        consul.register(service, f"{prefix}vm-{address[-1]}-{len(address)}", address, 10250)
    consul.register(service, node, "10.78.0.1", 8080)
    ask(kube, namespace, "asked", service, create=True)
    file, env = tmp_path / "bridge.yaml", environment(lab.consul.address, lab.kubeconfig)
    read = [{"apiGroups": [""], "resources": ["services", "endpoints"], "verbs": ["list", "create", "patch", "delete"]}]
    read += [{"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": read[0]["verbs"]}]
    poor = environment(lab.consul.address, lab.service_account(namespace, f"{prefix}poor", read))

    def addresses(env: dict[str, str], **further: Any) -> list[str]:
        settings(file, namespace, **further)
        done = bridge("sync", "--yes", "--config", str(file), env=env)
        assert done.status == 0, done.stderr
        slices = kube.json("GET", f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices")["items"]
        return sorted({a for piece in slices for endpoint in piece["endpoints"] for a in endpoint["addresses"]})

    everything = ["10.78.0.1", "10.78.0.9", "2001:db8:78::1"]
    try:
        assert addresses(poor) == everything
        assert addresses(env) == ["10.78.0.9"]
        assert addresses(env, annotated=[{"node_addresses": True}]) == everything
        assert addresses(env, kubernetes={"watch_namespaces": [namespace], "nodes": [node]}) == everything[:2]
        found = bridge("explain", service, "--config", str(file), env=env).stdout
        assert f"2001:db8:78::1 is an address of this cluster's node {node}" in " ".join(found.split())
        rules = [{"services": [service], "to": {"namespace": namespace}}]
        report = bridge("sync", "--dry-run", "-o", "json", "--config", str(_ruled(file, rules)), env=env).json
        assert "2 addresses are those of this cluster's own nodes" in str(report)
        probes = {p["probe"]: p for p in bridge("check", "--config", str(file), "-o", "json", env=env).json["probes"]}
        assert probes["addresses of the cluster's nodes"]["state"] == "ok"
        settings(file, namespace, other, annotated=[{}])
        probes = {p["probe"]: p for p in bridge("check", "--config", str(file), "-o", "json", env=poor).json["probes"]}
        assert "manifests/components/node-addresses" in probes["addresses of the cluster's nodes"]["remedy"]
    finally:
        consul.drop_node(node)


def _ruled(file: Path, rules: list[Json]) -> Path:
    """Another file, with rules."""
    other = file.with_name("rules.yaml")
    put(other, yaml.safe_dump({"rules": rules}))
    return other
