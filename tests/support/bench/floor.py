"""The least that can be done: one raw blocking query, a raw PATCH of the EndpointSlice, then one of the Endpoints.

Nothing is in between but the bodies.

    python -m tests.support.bench.floor CONSUL_ADDRESS KUBECONFIG SERVICE          the chain, until SIGTERM
    python -m tests.support.bench.floor CONSUL_ADDRESS KUBECONFIG --read PREFIX    what a restart has to read, then the
    end

In a process of its own, as the bridge is: one that has just done something else is a good deal faster, for what it
needs is still in the processor's caches. What it writes is as long as what the bridge writes, marks included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Self
from urllib.parse import urlencode

from tests.support.bench.measure import NAMESPACE, OBJECTS, run_threads
from tests.support.bench.watching import cpu_seconds
from tests.support.lab import Lab, LabError
from tests.support.lab.build import ROOT
from tests.support.lab.servers import Program
from tests.support.raw import ENDPOINTS, SERVICES, SLICES, Json, RawConsul, RawKube

WAIT = "45s"
APPLY = "fieldManager=floor&force=true"
APPLIED = {"Content-Type": "application/apply-patch+yaml"}
BUDGET = 64
"""Connections to Consul: the bridge's default, and as many as the floor of a restart reads with."""
PAGE = 500
OURS = "app.kubernetes.io/managed-by=consul-bridge"


MANAGER = "raw-client-01"


def marked(name: str, service: str, **labels: str) -> Json:
    """An object's metadata as long as the bridge's, and without an owner: not to be taken for the bridge's own."""
    return {
        "name": name,
        "labels": {"app.kubernetes.io/managed-by": MANAGER, "consul-floor0/owner": "default", **labels},
        "annotations": {"consul-floor0/datacenter": "dc1", "consul-floor0/service": service},
    }


def endpoints(name: str, service: str, instances: Sequence[tuple[str, bool]], port: int = 80) -> tuple[str, Json]:
    """Path and body of an Endpoints object with one subset, none without addresses. `instances`: address, ready."""
    ready, sick = ([{"ip": ip} for ip, well in instances if well is wanted] for wanted in (True, False))
    subset = {"addresses": ready, "notReadyAddresses": sick, "ports": [{"port": port, "protocol": "TCP"}]}
    return f"{ENDPOINTS}/{name}", {
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": marked(name, service, **{"endpointslice.kubernetes.io/skip-mirror": "true"}),
        "subsets": [{k: v for k, v in subset.items() if v}] if instances else [],
    }  # fmt: skip


def endpoint_slice(name: str, service: str, instances: Sequence[tuple[str, bool]], port: int = 80) -> tuple[str, Json]:
    """Path and body of the EndpointSlice that kube-proxy reads."""
    of_service = {"kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": MANAGER}
    return f"{SLICES}/{name}-01234567", {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": marked(f"{name}-01234567", service, **of_service),
        "addressType": "IPv4",
        "endpoints": [
            {"addresses": [ip], "conditions": {"ready": well, "serving": well, "terminating": False}}
            for ip, well in instances
        ],
        "ports": [{"port": port, "protocol": "TCP"}],
    }  # fmt: skip


def chain(consul: RawConsul, kube: RawKube, service: str) -> None:
    """Until the connection to Consul ends."""
    index, applied = 0, b""
    while True:
        try:
            index, entries = consul.health(service, index, WAIT)
        except OSError:
            return
        instances, port = decoded(entries)
        path, body = encoded(endpoint_slice, service, instances, port)
        if body != applied:
            kube.send("PATCH", f"{path}?{APPLY}", body, APPLIED)
            applied = body
            path, body = encoded(endpoints, service, instances, port)
            kube.send("PATCH", f"{path}?{APPLY}", body, APPLIED)
        else:  # the API server ends a connection that is idle for 90 s, and the next change would find it dead
            kube.send("GET", path)


def decoded(entries: list[dict[str, Any]]) -> tuple[list[tuple[str, bool]], int]:
    """Addresses with their readiness, and the port, of what Consul answered."""
    instances = [
        (e["Service"]["Address"] or e["Node"]["Address"], all(c["Status"] == "passing" for c in e["Checks"]))
        for e in entries
    ]
    return instances, entries[0]["Service"]["Port"] if entries else 80


def encoded(
    make: Callable[..., tuple[str, Json]], service: str, instances: Sequence[tuple[str, bool]], port: int
) -> tuple[str, bytes]:
    """Path and bytes of one of the two objects."""
    path, body = make(service, service, instances, port)
    return path.format(namespace=NAMESPACE), json.dumps(body).encode()


def read_all(consul_address: str, kubeconfig: str, prefix: str) -> Json:
    """What a restart cannot do without: our objects in pages, the names, and every service once, all decoded.

    How much was read, and the seconds and the processor time that it took: Python's start is not in it.
    """
    began, used = time.perf_counter(), time.process_time()
    objects: list[str] = []
    read: list[int] = []
    names: SimpleQueue[str] = SimpleQueue()
    with RawConsul(consul_address) as consul:
        for found in consul.services():
            if found.startswith(prefix):
                names.put(found)

    def some() -> None:
        with RawConsul(consul_address) as consul:
            while True:
                try:
                    service = names.get_nowait()
                except Empty:
                    return
                read.append(len(consul.health(service)[1]))

    def page_through(path: str) -> None:
        with RawKube(kubeconfig) as kube:
            further = ""
            while True:
                query = urlencode({"labelSelector": OURS, "limit": PAGE, "continue": further})
                page = kube.json("GET", f"{path}?{query}")
                objects.extend(item["metadata"]["name"] for item in page["items"])
                further = page["metadata"].get("continue", "")
                if not further:
                    return

    lists: list[Callable[[], None]] = [
        partial(page_through, path.format(namespace=NAMESPACE)) for path in (SERVICES, SLICES, ENDPOINTS)
    ]
    run_threads([*lists, *([some] * BUDGET)])
    took, used = time.perf_counter() - began, time.process_time() - used
    return {"services": len(read), "objects": len(objects), "seconds": took, "processor": used}


def restart(lab: Lab, prefix: str, services: int) -> tuple[float, float]:
    """Seconds and processor time in which a process of its own reads all. LabError: it did not read all."""
    command = [
        sys.executable,
        "-m",
        "tests.support.bench.floor",
        lab.consul.address,
        str(lab.kubeconfig),
        "--read",
        prefix,
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, cwd=ROOT)
    found = json.loads(done.stdout)
    if (found["services"], found["objects"]) != (services, OBJECTS * services):
        raise LabError(f"the floor of a restart read {done.stdout.strip()} where there are {services} services")
    return float(found["seconds"]), float(found["processor"])


class FloorChain:
    """The chain, running, between the servers of a lab."""

    def __init__(self, lab: Lab, service: str) -> None:
        command = [sys.executable, "-m", "tests.support.bench.floor", lab.consul.address, str(lab.kubeconfig), service]
        self._program = Program(lab.folder / "floor", command, {"PYTHONPATH": str(ROOT)})

    def cpu_seconds(self) -> float:
        """Processor time that it has used."""
        return cpu_seconds(self._program.pid)

    def __enter__(self) -> Self:
        self._program.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._program.stop()


def main() -> None:
    """Until SIGTERM, or until all is read."""
    address, kubeconfig, service = sys.argv[1:4]
    if service == "--read":
        print(json.dumps(read_all(address, kubeconfig, sys.argv[4])))
        return
    with RawConsul(address) as consul, RawKube(kubeconfig) as kube:
        chain(consul, kube, service)


if __name__ == "__main__":
    main()
