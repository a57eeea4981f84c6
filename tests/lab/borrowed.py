"""Servers that somebody else runs (LAB_CONSUL_ADDR, LAB_KUBECONFIG), behind the lab's own classes.

They are used, never stopped. The namespace `bridge-lab` is the lab's mark on such a cluster: the lab makes it and
removes it again, and refuses to start when something is in it already, which is another run or somebody's work.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import yaml

from tests.lab.build import LabError
from tests.lab.servers import ApiServer, Consul, ControllerManager, Etcd, Server
from tests.raw import RawConsul, RawKube

NAMESPACE = "bridge-lab"
_CONTENT = ("services", "endpoints", "configmaps", "pods")
_BY_ITSELF = {"kube-root-ca.crt", "kubernetes"}


class _Borrowed(Server):
    def _refuse(self) -> LabError:
        return LabError(f"{self.program} is not the lab's own (LAB_PROVIDER=env): it is neither started nor stopped here")

    def start(self, wait: bool = True) -> None:
        raise self._refuse()

    def stop(self) -> None:
        raise self._refuse()

    def kill(self) -> None:
        raise self._refuse()

    def pause(self) -> None:
        raise self._refuse()

    def resume(self) -> None:
        raise self._refuse()

    @property
    def running(self) -> bool:
        return False


class BorrowedConsul(_Borrowed, Consul):
    """Consul at LAB_CONSUL_ADDR, with LAB_CONSUL_TOKEN."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        super().__init__(folder)
        address = environ["LAB_CONSUL_ADDR"]
        self.address = address if "://" in address else f"http://{address}"
        self.token = environ.get("LAB_CONSUL_TOKEN", "")

    def restart(self, empty: bool = False) -> None:
        raise self._refuse()


class BorrowedEtcd(_Borrowed, Etcd):
    """What stands behind the cluster; out of reach."""


class BorrowedControllers(_Borrowed, ControllerManager):
    """The cluster's own controllers; out of reach."""


class BorrowedApiServer(_Borrowed, ApiServer):
    """The API server of LAB_KUBECONFIG. It has no audit log that we could read."""


def claim(kubeconfig: Path) -> None:
    """Put the lab's mark on the cluster. Raises LabError when there is one."""
    with RawKube(kubeconfig) as kube:
        base = f"/api/v1/namespaces/{NAMESPACE}"
        if kube.get(base) is not None:
            content = [
                f"{kind}/{item['metadata']['name']}"
                for kind in _CONTENT
                for item in kube.json("GET", f"{base}/{kind}")["items"]
                if item["metadata"]["name"] not in _BY_ITSELF
            ]
            if content:
                raise LabError(
                    f"the namespace {NAMESPACE} of LAB_KUBECONFIG's cluster is not empty ({', '.join(content[:5])}): "
                    f"another run uses it, or left it. When nobody does: kubectl delete namespace {NAMESPACE}"
                )
        else:
            kube.json("POST", "/api/v1/namespaces", _object("Namespace", NAMESPACE))
        mark = {**_object("ConfigMap", "in-use"), "data": {"pid": str(os.getpid())}}
        kube.json("POST", f"{base}/configmaps", mark)


def release(kubeconfig: Path) -> None:
    """Take the mark off."""
    with RawKube(kubeconfig) as kube:
        kube.delete(f"/api/v1/namespaces/{NAMESPACE}/configmaps/in-use")
        kube.delete(f"/api/v1/namespaces/{NAMESPACE}")


def reachable(consul: BorrowedConsul) -> None:
    """Raises LabError when LAB_CONSUL_ADDR does not answer as a Consul with a leader does."""
    try:
        with RawConsul(consul.address, consul.token, timeout_seconds=10) as client:
            if not client.json("GET", "/v1/status/leader"):
                raise LabError(f"Consul at {consul.address} (LAB_CONSUL_ADDR) has no leader")
    except (OSError, ValueError) as error:
        raise LabError(f"no Consul answers at {consul.address} (LAB_CONSUL_ADDR): {error}") from error


def server_of(kubeconfig: Path) -> tuple[str, str]:
    """The address and the CA certificate file or data (base64) of a kubeconfig's current cluster."""
    config = yaml.safe_load(kubeconfig.read_text())
    contexts = {c["name"]: c["context"] for c in config["contexts"]}
    clusters = {c["name"]: c["cluster"] for c in config["clusters"]}
    cluster = clusters[contexts[config["current-context"]]["cluster"]]
    return cluster["server"], cluster.get("certificate-authority-data", "")
