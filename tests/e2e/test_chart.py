"""manifests/chart says the same as manifests/base with its components, and a real API server takes it from helm.

What the base promises (rights, restricted pods, probes) is proved in test_manifests.py; equality carries it over.
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

import bridge
from bridge import settings
from tests.support.lab import Lab, manifests
from tests.support.lab.build import binary
from tests.support.raw import RawKube

pytestmark = pytest.mark.lab

Json = dict[str, Any]

CHART = manifests.MANIFESTS / "chart"
COPIED = ("alerts.yaml", "dashboard.json")

VALUES: dict[str, Json] = {
    "cronjob": {"cronJob": {"enabled": True}},
    "all-namespaces": {"allNamespaces": True},
    "endpoints-only": {"output": "endpoints"},
    "endpointslices-only": {"output": "endpointslices"},
    "nodes": {"nodes": True},
    "node-addresses": {"nodeAddresses": True},
    "namespace-labels": {"namespaceLabels": True},
    "consul-acl": {"consul": {"tokenSecret": {"name": f"{manifests.NAME}-acl"}}},
    "consul-login": {"consul": {"login": {"authMethod": manifests.NAME}}},
    "consul-tls": {"consul": {"tls": {"secret": f"{manifests.NAME}-tls"}}},
    "shards": {"shards": 6, "replicas": 3},
    "monitoring": {"monitoring": True},
    "admission": {"admission": {"enabled": True}},
}
"""The values that say what a component says. `namespace` has none: `helm install --create-namespace` makes it."""

CHOICES = [
    (),
    *((name,) for name in VALUES),
    ("all-namespaces", "nodes", "consul-acl", "consul-tls", "shards", "monitoring", "admission"),
    ("all-namespaces", "endpointslices-only", "consul-acl"),
    ("cronjob", "all-namespaces", "endpoints-only", "nodes", "namespace-labels", "consul-acl", "consul-tls"),
    ("cronjob", "endpointslices-only"),
    ("cronjob", "consul-login", "consul-tls"),
]


def helm(folder: Path, *arguments: str, kubeconfig: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run it, with everything that it keeps in `folder`; no cluster unless one is named."""
    homes = {f"HELM_{kind}_HOME": str(folder / "helm") for kind in ("CACHE", "CONFIG", "DATA")}
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), **homes, "KUBECONFIG": str(kubeconfig or folder / "none")}
    return subprocess.run(
        [str(binary("helm")), *arguments], env=env, capture_output=True, text=True, timeout=120, check=False
    )


def values_file(folder: Path, values: Json) -> Path:
    """As a user's own values.yaml."""
    file = folder / f"values-{uuid4().hex[:6]}.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def rendered(folder: Path, values: Json, namespace: str = "elsewhere") -> list[Json]:
    """What the chart renders to."""
    file = values_file(folder, values)
    done = helm(folder, "template", "bridge", str(CHART), "--namespace", namespace, "--values", str(file))
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def chosen(components: Sequence[str], **further: Any) -> Json:
    """The values for these components together."""
    whole: Json = copy.deepcopy(further)
    for name in components:
        for key, value in VALUES[name].items():
            whole[key] = {**whole.get(key, {}), **value} if isinstance(value, dict) else value
    return whole


def plain(objects: Sequence[Json]) -> dict[tuple[str, str], Json]:
    """By kind and name, without what the two tools add of their own, and without an order where none is meant."""
    text = json.dumps(objects)
    for found in objects:
        name = found["metadata"]["name"]
        if found["kind"] == "ConfigMap" and (short := re.sub(r"-[a-z0-9]{10}$", "", name)) != name:
            text = text.replace(json.dumps(name), json.dumps(short))  # kustomize's hash, with what refers to it
    result = {}
    for found in json.loads(text):
        metadata = found["metadata"]
        if found["kind"].startswith("ValidatingAdmissionPolicy"):
            metadata.pop("namespace", None)  # kustomize does not know that they have none, and kubectl ignores it
        keep = {k: v for k, v in metadata.pop("labels", {}).items() if "/" not in k}
        metadata |= {"labels": keep} if keep else {}
        if found["kind"] == "ConfigMap":
            found["data"] = {k: yaml.safe_load(v) for k, v in found["data"].items()}
        if found["kind"] in ("Deployment", "CronJob"):
            template = manifests.pod_template([found])
            (container,) = template["spec"]["containers"]
            for part in (container["env"], container["volumeMounts"], template["spec"]["volumes"]):
                part.sort(key=lambda entry: str(entry["name"]))
        assert (found["kind"], metadata["name"]) not in result
        result[found["kind"], metadata["name"]] = found
    return result


@pytest.mark.parametrize("components", CHOICES, ids=lambda c: "+".join(c) or "base")
def test_the_chart_and_kustomize_say_the_same(components: Sequence[str], tmp_path: Path) -> None:
    """For the default values, for each component, and for many together."""
    output = next((VALUES[c]["output"] for c in components if "output" in VALUES[c]), "both")
    config = {"rules": [{"services": ["web"], "to": {"output": output, "labels": {"a": "b"}}}]} if components else None
    rules = json.dumps(config) if config else None
    ours = plain(rendered(tmp_path, chosen(components, **({"config": config} if config else {}))))
    theirs = plain(manifests.overlay(tmp_path / "overlay", "elsewhere", components, rules=rules))
    assert sorted(ours) == sorted(theirs)
    assert ours == theirs


@pytest.mark.parametrize("name", COPIED)
def test_the_charts_copies_are_copies(name: str) -> None:
    """A chart cannot read files beside itself. (Mend it with `cp`.)"""
    original = manifests.MANIFESTS / "components/monitoring" / name
    assert (CHART / "files" / name).read_text() == original.read_text()


def test_its_versions_are_the_bridges() -> None:
    """Of the chart, and of the image that it runs."""
    found = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (found["version"], found["appVersion"]) == (bridge.__version__, bridge.__version__)


@pytest.mark.parametrize("components", CHOICES, ids=lambda c: "+".join(c) or "base")
def test_helm_finds_no_fault_with_it(components: Sequence[str], tmp_path: Path) -> None:
    """Warnings count as faults."""
    output = next((VALUES[c]["output"] for c in components if "output" in VALUES[c]), "both")
    file = values_file(
        tmp_path, chosen(components, config={"rules": [{"services": ["web"], "to": {"output": output}}]})
    )
    done = helm(tmp_path, "lint", str(CHART), "--strict", "--values", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"replica": 2}, "'replica' not allowed"),
        ({"replicas": "two"}, "'/replicas': got string, want integer"),
        ({"shards": 0}, "'/shards'"),
        ({"output": "slices"}, "'/output'"),
        ({"consul": {"adress": "x"}}, "'/consul': additional properties 'adress' not allowed"),
        ({"consul": {"address": "http://user:password@consul:8500"}}, "'/consul/address'"),
        ({"consul": {"address": "unix://relative"}}, "'/consul/address'"),
        ({"env": {"bridge owner": "x"}}, "bridge owner"),
        ({"env": {"BRIDGE_OWNER": {"name": "x"}}}, "'/env/BRIDGE_OWNER'"),
        ({"config": {"rules": {"services": ["web"]}}}, "'/config/rules': got object, want array"),
        ({"fullnameOverride": "Not A Name"}, "'/fullnameOverride'"),
        (
            {"monitoring": True, "cronJob": {"enabled": True}},
            "monitoring finds nothing to scrape where cronJob.enabled is true",
        ),
        (
            {
                "output": "endpoints",
                "config": {
                    "rules": [
                        {"services": ["web"], "to": {"output": "endpoints"}},
                        {"services": ["x"]},
                    ]
                },
            },
            "rule 2 has output both, for which the value output: endpoints grants no rights: set output to both",
        ),
    ],
    ids=lambda v: "" if isinstance(v, str) else next(iter(v)),
)
def test_a_wrong_value_gets_a_clear_error(values: Json, words: str, tmp_path: Path) -> None:
    """Before anything reaches a cluster."""
    done = helm(tmp_path, "template", "bridge", str(CHART), "--values", str(values_file(tmp_path, values)))
    assert (done.returncode, words in done.stderr) == (1, True), done.stderr


def test_every_value_arrives_where_it_should(tmp_path: Path) -> None:
    """Those that no component of kustomize has."""
    values = {
        "image": {"repository": "registry.example/bridge", "tag": "9.9", "pullPolicy": "Always",
                  "pullSecrets": [{"name": "registry"}]},
        "consul": {"address": "https://consul:8501", "tokenSecret": {"name": "acl", "key": "bearer"},
                   "tls": {"secret": "tls", "clientCertificate": False, "serverName": "server.dc1.consul"}},
        "replicas": 1, "resources": {"limits": {"memory": "1Gi"}}, "env": {"BRIDGE_OWNER": "blue"},
        "podAnnotations": {"a": "b"}, "nodeSelector": {"pool": "infra"}, "tolerations": [{"operator": "Exists"}],
        "affinity": {"podAffinity": {}}, "priorityClassName": "high", "fullnameOverride": "bridge-blue",
    }  # fmt: skip
    objects = rendered(tmp_path, values)
    names = {re.sub(r"-[0-9a-f]{10}$", "", o["metadata"]["name"]) for o in objects}
    assert names == {"bridge-blue", "bridge-blue-consul", "bridge-blue-leases"}
    assert "PodDisruptionBudget" not in {o["kind"] for o in objects}  # with one replica it would block every drain
    template = manifests.pod_template(objects)
    spec, container = template["spec"], manifests.container(objects)
    assert (container["image"], container["imagePullPolicy"]) == ("registry.example/bridge:9.9", "Always")
    assert (template["metadata"]["annotations"]["a"], spec["imagePullSecrets"]) == ("b", [{"name": "registry"}])
    assert {k: spec[k] for k in ("nodeSelector", "tolerations", "affinity", "priorityClassName")} == {
        k: values[k] for k in ("nodeSelector", "tolerations", "affinity", "priorityClassName")
    }
    assert container["resources"]["limits"] == {"memory": "1Gi"}
    (acl,) = (v["secret"] for v in spec["volumes"] if v["name"] == "consul-acl")
    assert acl == {"secretName": "acl", "defaultMode": 0o440, "items": [{"key": "bearer", "path": "token"}]}
    environment = manifests.environment(objects)
    assert {k: environment[k] for k in ("CONSUL_HTTP_ADDR", "CONSUL_TLS_SERVER_NAME", "BRIDGE_OWNER")} == {
        "CONSUL_HTTP_ADDR": "https://consul:8501",
        "CONSUL_TLS_SERVER_NAME": "server.dc1.consul",
        "BRIDGE_OWNER": "blue",
    }
    assert "CONSUL_CLIENT_CERT" not in environment
    known = {name for setting in settings.catalogue() for name in (setting.env, *setting.also)}
    assert set(environment) - known - {"BRIDGE_CONFIG", *manifests.OF_THE_POD} == set()


def test_a_change_of_the_rules_rolls_the_pods_and_nothing_else_does(tmp_path: Path) -> None:
    """By the names of the ConfigMaps, which carry a hash of what is in them: what old pods read stays as it was."""

    def pods(values: Json) -> tuple[Json, set[tuple[str, str]]]:
        objects = rendered(tmp_path, values)
        needed = manifests.needed(objects)
        assert needed == {("ConfigMap", o["metadata"]["name"]) for o in objects if o["kind"] == "ConfigMap"}
        return manifests.pod_template(objects), needed

    plainly, needed = pods({})
    assert pods({"replicas": 5}) == (plainly, needed)
    for values in ({"config": {"rules": [{"services": ["web"]}]}}, {"consul": {"address": "http://other:8500"}}):
        template, others = pods(values)
        assert template != plainly
        assert len(others - needed) == 1


@pytest.mark.parametrize(("version", "there"), [("1.26.0", False), ("1.27.0", True)])
def test_an_older_api_server_gets_no_field_that_it_does_not_know(version: str, there: bool, tmp_path: Path) -> None:
    """Helm refuses unknown fields: the budget is without its policy for unhealthy pods then."""
    done = helm(tmp_path, "template", "bridge", str(CHART), "--kube-version", version)
    assert done.returncode == 0, done.stderr
    budget = manifests.of_kind([found for found in yaml.safe_load_all(done.stdout) if found], "PodDisruptionBudget")
    assert ("unhealthyPodEvictionPolicy" in budget["spec"]) == there


@pytest.fixture(scope="module")
def monitoring(lab: Lab) -> Iterator[None]:
    """The API server knows the kinds of the value `monitoring`."""
    with lab.raw_kube() as kube, manifests.monitoring_kinds(kube):
        yield


@pytest.mark.usefixtures("monitoring")
@pytest.mark.parametrize("components", CHOICES, ids=lambda c: "+".join(c) or "base")
def test_the_api_server_accepts_it(components: Sequence[str], lab: Lab, namespace: str, tmp_path: Path) -> None:
    """By `kubectl apply --dry-run=server`, every object."""
    output = next((VALUES[c]["output"] for c in components if "output" in VALUES[c]), "both")
    config = {"rules": [{"services": ["web"], "to": {"output": output}}]}
    objects = rendered(tmp_path, chosen(components, config=config), namespace)
    done = subprocess.run(
        [str(binary("kubectl")), "--kubeconfig", str(lab.kubeconfig), "apply", "--dry-run=server", "-f", "-"],
        input=yaml.safe_dump_all(objects), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("created (server dry run)") == len(objects)


def test_helm_installs_upgrades_and_uninstalls_it(lab: Lab, kube: RawKube, namespace: str, tmp_path: Path) -> None:
    """Two releases in one namespace, by their names; nothing is left of them."""

    def run(*arguments: str) -> None:
        done = helm(tmp_path, *arguments, "--namespace", namespace, kubeconfig=lab.kubeconfig)
        assert done.returncode == 0, done.stderr

    def deployments() -> dict[str, int]:
        items = kube.json("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments")["items"]
        return {item["metadata"]["name"]: item["spec"]["replicas"] for item in items}

    second = ("--set", "fullnameOverride=bridge-blue", "--set", "env.BRIDGE_OWNER=blue")
    run("install", "bridge", str(CHART))
    run("install", "blue", str(CHART), *second)
    assert deployments() == {manifests.NAME: 2, "bridge-blue": 2}
    run("upgrade", "bridge", str(CHART), "--set", "replicas=3")
    assert deployments() == {manifests.NAME: 3, "bridge-blue": 2}
    run("uninstall", "bridge")
    run("uninstall", "blue")
    left = {
        f"{kind}/{item['metadata']['name']}"
        for root in ("/api/v1", "/apis/apps/v1", "/apis/rbac.authorization.k8s.io/v1", "/apis/policy/v1")
        for kind in ("configmaps", "services", "serviceaccounts", "deployments", "roles", "poddisruptionbudgets")
        for item in (kube.get(f"{root}/namespaces/{namespace}/{kind}") or {"items": []})["items"]
    }
    assert left - {"configmaps/kube-root-ca.crt", "serviceaccounts/default"} == set()


def test_an_upgrade_to_bad_rules_leaves_the_old_replicas_what_they_read(
    lab: Lab, kube: RawKube, namespace: str, tmp_path: Path
) -> None:
    """As long as one is wanted. The ReplicaSets are what the Deployment's controller, which is not here, would make."""
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    sets = f"/apis/apps/v1/namespaces/{namespace}/replicasets"

    def release(verb: str, services: list[str]) -> set[str]:
        """Install or upgrade; what the Deployment's pods read."""
        file = values_file(tmp_path, {"config": {"rules": [{"services": services}]}})
        done = helm(tmp_path, verb, "bridge", str(CHART), "--namespace", namespace, "--values", str(file),
                    kubeconfig=lab.kubeconfig)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return {name for _, name in manifests.needed([deployment()])}

    def deployment() -> Json:
        found = kube.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/{manifests.NAME}")
        assert found is not None
        return {**found, "kind": "Deployment"}

    def roll_out(name: str, replicas: int) -> None:
        """As it would stand after the last release: a ReplicaSet with the Deployment's pods."""
        spec = deployment()["spec"]
        labels = spec["template"]["metadata"]["labels"]
        template = {**spec["template"], "metadata": {"labels": {**labels, "pod-template-hash": name}}}
        selector = {"matchLabels": {**labels, "pod-template-hash": name}}
        body: Json = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": name, "labels": labels}}
        kube.apply(
            f"{sets}/{name}", {**body, "spec": {"replicas": replicas, "selector": selector, "template": template}}
        )

    def scale(name: str, replicas: int) -> None:
        kube.json("PATCH", f"{sets}/{name}", {"spec": {"replicas": replicas}}, "application/merge-patch+json")

    def there() -> set[str]:
        return {item["metadata"]["name"] for item in kube.json("GET", maps)["items"]} - {"kube-root-ca.crt"}

    good = release("install", ["good"])
    roll_out("good", 2)
    before = {name: (kube.get(f"{maps}/{name}") or {})["data"] for name in good}
    bad = release("upgrade", ["bad"])
    roll_out("bad", 1)
    assert there() == good | bad
    worse = release("upgrade", ["worse"])
    roll_out("worse", 1)
    scale("bad", 0)
    assert (len(good | bad | worse), there()) == (4, good | bad | worse)
    assert {name: (kube.get(f"{maps}/{name}") or {})["data"] for name in good} == before
    mended = release("upgrade", ["mended"])
    assert there() == good | worse | mended
    scale("good", 0)
    scale("worse", 0)
    mended = release("upgrade", ["mended"])
    assert there() == mended
