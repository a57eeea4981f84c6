"""Existing servers (LAB_CONSUL_ADDR, LAB_KUBECONFIG), behind the lab's own face.

They are used, never stopped. The namespace `bridge-lab` is the lab's mark on such a cluster: the lab makes it and
removes it again, and refuses to start when something is in it already, which is another run or a user's work.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.support.lab.build import LabError
from tests.support.raw import RawConsul, RawKube, UnexpectedAnswerError

if TYPE_CHECKING:
    from tests.support.lab import Lab

NAMESPACE = "bridge-lab"
ANSWER_SECONDS = 10.0
_CONTENT = ("configmaps", "services", "endpoints", "pods")
_BY_ITSELF = frozenset({"kube-root-ca.crt"})


def borrow(lab: Lab, environ: Mapping[str, str] = os.environ) -> None:
    """Point the lab at the servers that the environment names, and put the mark on. Raises LabError."""
    kubeconfig = Path(environ["LAB_KUBECONFIG"]).resolve()
    address = environ["LAB_CONSUL_ADDR"]
    lab.consul.address = address if "://" in address else f"http://{address}"
    lab.consul.token = environ.get("LAB_CONSUL_TOKEN", "")
    lab.consul.https_address = ""
    _reach_consul(lab)
    try:
        claim(kubeconfig)
    except (OSError, UnexpectedAnswerError) as error:
        raise LabError(f"the cluster of LAB_KUBECONFIG cannot be used: {error}") from error
    lab.kubeconfig = kubeconfig
    cluster = _cluster(kubeconfig)
    lab.apiserver.url = cluster["server"]
    if "certificate-authority" in cluster:
        lab.ca_file = Path(cluster["certificate-authority"])
    elif "certificate-authority-data" in cluster:
        lab.ca_file = _written(lab.folder / "files" / "cluster-ca.pem", cluster["certificate-authority-data"])
    for server in (lab.consul, lab.etcd, lab.apiserver, lab.controllers):
        server.borrowed = True


def give_back(lab: Lab) -> None:
    """Take the mark off."""
    release(lab.kubeconfig)


def claim(kubeconfig: Path) -> None:
    """Put the lab's mark on a cluster. Raises LabError when the lab's namespace has something in it."""
    with RawKube(kubeconfig, timeout_seconds=ANSWER_SECONDS) as kube:
        base = f"/api/v1/namespaces/{NAMESPACE}"
        if kube.get(base) is None:
            kube.json("POST", "/api/v1/namespaces", _object("Namespace", NAMESPACE))
        content = [
            f"{kind}/{item['metadata']['name']}"
            for kind in _CONTENT
            for item in kube.json("GET", f"{base}/{kind}")["items"]
            if item["metadata"]["name"] not in _BY_ITSELF
        ]
        if content:
            raise LabError(
                f"the namespace {NAMESPACE} of LAB_KUBECONFIG's cluster is not empty ({', '.join(content[:5])}): "
                f"another run uses it, or left it. When no one does: kubectl delete namespace {NAMESPACE}"
            )
        kube.json("POST", f"{base}/configmaps", {**_object("ConfigMap", "in-use"), "data": {"pid": str(os.getpid())}})


def release(kubeconfig: Path) -> None:
    """Take the mark off again."""
    with RawKube(kubeconfig, timeout_seconds=ANSWER_SECONDS) as kube:
        kube.delete(f"/api/v1/namespaces/{NAMESPACE}/configmaps/in-use")
        kube.delete(f"/api/v1/namespaces/{NAMESPACE}")


def _reach_consul(lab: Lab) -> None:
    try:
        with RawConsul(lab.consul.address, lab.consul.token, timeout_seconds=ANSWER_SECONDS) as client:
            if not client.json("GET", "/v1/status/leader"):
                raise LabError(f"Consul at {lab.consul.address} (LAB_CONSUL_ADDR) has no leader")
            client.services()
    except (OSError, ValueError, UnexpectedAnswerError) as error:
        raise LabError(f"Consul at {lab.consul.address} (LAB_CONSUL_ADDR) cannot be used: {error}") from error


def _object(kind: str, name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}}


def _cluster(kubeconfig: Path) -> dict[str, Any]:
    config = yaml.safe_load(kubeconfig.read_text())
    contexts = {c["name"]: c["context"] for c in config["contexts"]}
    clusters: dict[str, dict[str, Any]] = {c["name"]: c["cluster"] for c in config["clusters"]}
    return clusters[contexts[config["current-context"]]["cluster"]]


def _written(path: Path, encoded: str) -> Path:
    path.write_bytes(base64.b64decode(encoded))
    return path
