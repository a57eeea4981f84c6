"""manifests/ as a test uses them: rendered with kustomize, applied to an API server, taken apart again."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.support.lab.build import ROOT, gateway_api
from tests.support.lab.providers import binary
from tests.support.lab.servers import wait_until
from tests.support.raw import RawKube

Json = dict[str, Any]

MANIFESTS = ROOT / "manifests"
NAME = "consul-endpoints-bridge"
COMPONENTS = (
    "namespace", "cronjob", "all-namespaces", "endpoints-only", "endpointslices-only", "consul-acl", "consul-login",
    "consul-ca", "consul-tls", "shards", "nodes", "node-addresses", "namespace-labels", "monitoring", "admission",
    "http-routes",
)  # fmt: skip
"""In the order in which an overlay may name them: `cronjob` before what adds to its pod."""

EXCLUSIVE = (("endpoints-only", "endpointslices-only"), ("cronjob", "monitoring"), ("consul-acl", "consul-login"),
             ("consul-ca", "consul-tls"))  # fmt: skip
"""Pairs of components that make no sense together."""

OF_THE_POD = ("POD_NAME", "POD_NAMESPACE", "POD_SERVICE_ACCOUNT")
"""Variables that are no settings of the bridge: others are made of them, or its Leases' names."""

_PLURALS = {
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
    "ConfigMap": "configmaps",
    "CronJob": "cronjobs",
    "Deployment": "deployments",
    "Namespace": "namespaces",
    "NetworkPolicy": "networkpolicies",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "PodMonitor": "podmonitors",
    "PrometheusRule": "prometheusrules",
    "Role": "roles",
    "RoleBinding": "rolebindings",
    "Secret": "secrets",
    "Service": "services",
    "ServiceAccount": "serviceaccounts",
    "ServiceMonitor": "servicemonitors",
    "ValidatingAdmissionPolicy": "validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings",
}
_CLUSTER = frozenset({
    "ClusterRole", "ClusterRoleBinding", "Namespace", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
})  # fmt: skip


def kustomize(folder: Path) -> list[Json]:
    """What `folder` renders to, in kustomize's order."""
    if found := shutil.which("kustomize"):
        command = (found, "build", str(folder))
    elif shutil.which("kubectl"):
        command = ("kubectl", "kustomize", str(folder))
    else:
        command = (str(binary("kustomize")), "build", str(folder))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def overlay(
    folder: Path,
    namespace: str,
    components: Sequence[str] = (),
    *,
    rules: str | None = None,
    consul: str | None = None,
) -> list[Json]:
    """The base with `components` in `namespace`, as an overlay of a user's own would have it."""
    folder.mkdir(parents=True, exist_ok=True)
    home = os.path.relpath(MANIFESTS, folder.resolve())
    content: Json = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": namespace,
        "resources": [f"{home}/base"],
        "components": [f"{home}/components/{name}" for name in components],
        "configMapGenerator": [],
    }
    if rules is not None:
        (folder / "bridge.yaml").write_text(rules)
        content["configMapGenerator"].append({"name": NAME, "behavior": "merge", "files": ["bridge.yaml"]})
    if consul is not None:
        literals = [f"CONSUL_HTTP_ADDR={consul}"]
        content["configMapGenerator"].append({"name": f"{NAME}-consul", "behavior": "merge", "literals": literals})
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return kustomize(folder)


def of_kind(objects: Sequence[Json], *kinds: str) -> Json:
    """The one object of these kinds."""
    found = [o for o in objects if o["kind"] in kinds]
    assert len(found) == 1, [o["kind"] for o in objects]
    return found[0]


def path(item: Json) -> str:
    """Where the API server keeps an object."""
    version, kind = item["apiVersion"], item["kind"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    place = "" if kind in _CLUSTER else f"/namespaces/{item['metadata']['namespace']}"
    return f"{root}{place}/{_PLURALS[kind]}/{item['metadata']['name']}"


def apply(kube: RawKube, objects: Sequence[Json]) -> list[Json]:
    """Server-side apply, as `kubectl apply --server-side -k` does it: an unknown field is refused."""
    query = "fieldManager=kubectl&force=true&fieldValidation=Strict"
    return [kube.json("PATCH", f"{path(item)}?{query}", item, "application/apply-patch+yaml") for item in objects]


def monitoring_kinds(kube: RawKube) -> AbstractContextManager[None]:
    """The Prometheus operator's kinds on an API server for the block."""
    return kinds_for_now(kube, Path(__file__).parent / "crds/monitoring.yaml")


def gateway_kinds(kube: RawKube) -> AbstractContextManager[None]:
    """The Gateway API's HTTPRoute, as it is released, on an API server for the block."""
    return kinds_for_now(kube, gateway_api() / "gateway.networking.k8s.io_httproutes.yaml")


@contextmanager
def kinds_for_now(kube: RawKube, file: Path) -> Iterator[None]:
    """The CRDs of a file on an API server for the block; where they are already, they are left alone."""
    home = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    kinds = list(yaml.safe_load_all(file.read_text()))
    missing = [kind for kind in kinds if kube.get(f"{home}/{kind['metadata']['name']}") is None]
    try:
        for kind in missing:
            kube.json("POST", home, kind)
            served = f"/apis/{kind['spec']['group']}/v1/{kind['spec']['names']['plural']}"
            wait_until(partial(_answers, kube, served), 30, f"{served} being served")
        yield
    finally:
        for kind in missing:
            place = f"{home}/{kind['metadata']['name']}"
            kube.delete(place)
            wait_until(partial(_gone, kube, place), 30, f"{place} being gone")


def _answers(kube: RawKube, place: str) -> bool:
    """A new kind is not there (404), and then being made ready (429)."""
    return kube.send("GET", place)[0] == 200


def _gone(kube: RawKube, place: str) -> bool:
    return kube.get(place) is None


def delete(kube: RawKube, objects: Sequence[Json]) -> None:
    """Remove what `apply` made."""
    for item in reversed(objects):
        kube.delete(path(item))


def pod_template(objects: Sequence[Json]) -> Json:
    """The pod that the Deployment or CronJob starts."""
    owner = of_kind(objects, "Deployment", "CronJob")
    spec = owner["spec"] if owner["kind"] == "Deployment" else owner["spec"]["jobTemplate"]["spec"]
    template: Json = spec["template"]
    return template


def container(objects: Sequence[Json]) -> Json:
    """Its only container."""
    (found,) = pod_template(objects)["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def environment(objects: Sequence[Json]) -> dict[str, str]:
    """The container's environment as the kubelet makes it: ConfigMaps resolved, the pod's own fields put in."""
    spec = container(objects)
    data = {o["metadata"]["name"]: o["data"] for o in objects if o["kind"] == "ConfigMap"}
    found: dict[str, str] = {}
    for source in spec.get("envFrom", []):
        found.update(data[source["configMapRef"]["name"]])
    fields = {
        "metadata.name": "a-pod",
        "metadata.namespace": of_kind(objects, "Deployment", "CronJob")["metadata"]["namespace"],
        "spec.serviceAccountName": pod_template(objects)["spec"]["serviceAccountName"],
    }
    for entry in spec.get("env", []):
        value = entry["value"] if "value" in entry else fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        found[entry["name"]] = re.sub(r"\$\((\w+)\)", lambda match: found.get(match[1], match[0]), value)
    return found


def configuration(objects: Sequence[Json]) -> str:
    """bridge.yaml as the container sees it."""
    volumes = {v["name"]: v for v in pod_template(objects)["spec"]["volumes"]}
    name = volumes["config"]["configMap"]["name"]
    (text,) = (o["data"]["bridge.yaml"] for o in objects if o["kind"] == "ConfigMap" and o["metadata"]["name"] == name)
    assert isinstance(text, str)
    return text


def needed(objects: Sequence[Json]) -> set[tuple[str, str]]:
    """(kind, name) of every ConfigMap and Secret without which the kubelet starts no container of the pod."""
    spec = pod_template(objects)["spec"]
    found: set[tuple[str, str]] = set()
    for volume in spec.get("volumes", []):
        sources = volume.get("projected", {}).get("sources", [volume])
        for source in sources:
            for key, kind, name in (("configMap", "ConfigMap", "name"), ("secret", "Secret", "secretName")):
                if key in source and not source[key].get("optional"):
                    found.add((kind, source[key].get(name) or source[key]["name"]))
    for each in (*spec["containers"], *spec.get("initContainers", [])):
        sources = [*each.get("envFrom", []), *(e.get("valueFrom", {}) for e in each.get("env", []))]
        for source in sources:
            for key, kind in (("configMap", "ConfigMap"), ("secret", "Secret")):
                reference = source.get(f"{key}Ref") or source.get(f"{key}KeyRef")
                if reference and not reference.get("optional"):
                    found.add((kind, reference["name"]))
    return found


def granted(objects: Sequence[Json]) -> set[tuple[str, str, str]]:
    """(API group, resource, verb) of everything that the Roles and ClusterRoles allow."""
    return {
        (group, resource, verb)
        for role in objects
        if role["kind"] in ("Role", "ClusterRole")
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def token(kube: RawKube, namespace: str) -> str:
    """A token of the bridge's service account, by TokenRequest."""
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    answer = kube.json("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts/{NAME}/token", body)
    found: str = answer["status"]["token"]
    return found


def cluster_of(kubeconfig: Path) -> tuple[str, bytes]:
    """The API server's address and CA certificate from a kubeconfig."""
    config = yaml.safe_load(kubeconfig.read_text())
    cluster: Mapping[str, str] = config["clusters"][0]["cluster"]
    if "certificate-authority" in cluster:
        return cluster["server"], Path(cluster["certificate-authority"]).read_bytes()
    return cluster["server"], base64.b64decode(cluster["certificate-authority-data"])


def kubeconfig_with(target: Path, server: str, ca: bytes, bearer: str, namespace: str) -> Path:
    """A kubeconfig that speaks as the token's owner; `target`."""
    cluster = {"server": server, "certificate-authority-data": base64.b64encode(ca).decode()}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "bridge",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "bridge", "user": {"token": bearer}}],
        "contexts": [{"name": "bridge", "context": {"cluster": "lab", "user": "bridge", "namespace": namespace}}],
    }
    target.touch(mode=0o600)
    target.write_text(yaml.safe_dump(content))
    return target
