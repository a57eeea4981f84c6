"""The least that can be done: one raw blocking query, one raw PATCH, nothing in between but the body.

    python -m tests.bench.floor CONSUL_ADDRESS KUBECONFIG SERVICE

In a process of its own, as the bridge is: one that has just done something else is a good deal faster, for what it
needs is still in the processor's caches. What it writes is as long as what the bridge writes, marks included.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Self

from tests.bench.measure import NAMESPACE
from tests.lab import Lab
from tests.lab.build import ROOT
from tests.lab.servers import Program
from tests.raw import ENDPOINTS, Json, RawConsul, RawKube

WAIT = "45s"
APPLY = "fieldManager=floor&force=true"


def marked(name: str, service: str) -> Json:
    """An object's metadata as long as the bridge's, and nobody's: it is not to be taken for the bridge's own."""
    return {
        "name": name,
        "labels": {"app.kubernetes.io/managed-by": "raw-client-01", "consul-floor0/owner": "default"},
        "annotations": {"consul-floor0/datacenter": "dc1", "consul-floor0/service": service},
    }


def endpoints(metadata: Json, ready: list[dict[str, str]], sick: list[dict[str, str]], port: int = 80) -> Json:
    """An Endpoints object with one subset, none without addresses."""
    subset = {"addresses": ready, "notReadyAddresses": sick, "ports": [{"port": port, "protocol": "TCP"}]}
    return {
        "apiVersion": "v1", "kind": "Endpoints", "metadata": metadata,
        "subsets": [{k: v for k, v in subset.items() if v}] if ready or sick else [],
    }  # fmt: skip


def chain(consul: RawConsul, kube: RawKube, service: str) -> None:
    """Until the connection to Consul ends."""
    index, applied = 0, b""
    path = f"{ENDPOINTS.format(namespace=NAMESPACE)}/{service}"
    while True:
        try:
            index, entries = consul.health(service, index, WAIT)
        except OSError:
            return
        body = encoded(service, entries)
        if body != applied:
            kube.send("PATCH", f"{path}?{APPLY}", body, {"Content-Type": "application/apply-patch+yaml"})
            applied = body
        else:  # the API server ends a connection that is idle for 90 s, and the next change would find it dead
            kube.send("GET", path)


def encoded(service: str, entries: list[dict[str, Any]]) -> bytes:
    """Endpoints of what Consul answered."""
    ready: list[dict[str, str]] = []
    sick: list[dict[str, str]] = []
    port = 80
    for entry in entries:
        passing = all(c["Status"] == "passing" for c in entry["Checks"])
        (ready if passing else sick).append({"ip": entry["Service"]["Address"] or entry["Node"]["Address"]})
        port = entry["Service"]["Port"]
    return json.dumps(endpoints(marked(service, service), ready, sick, port)).encode()


class FloorChain:
    """The chain, running, between the servers of a lab."""

    def __init__(self, lab: Lab, service: str) -> None:
        command = [sys.executable, "-m", "tests.bench.floor", lab.consul.address, str(lab.kubeconfig), service]
        self._program = Program(lab.folder / "floor", command, {"PYTHONPATH": str(ROOT)})

    def __enter__(self) -> Self:
        self._program.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._program.stop()


def main() -> None:
    """Until SIGTERM."""
    address, kubeconfig, service = sys.argv[1:]
    with RawConsul(address) as consul, RawKube(kubeconfig) as kube:
        chain(consul, kube, service)


if __name__ == "__main__":
    main()
