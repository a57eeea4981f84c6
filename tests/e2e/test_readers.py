"""Ingress controllers and publishers of DNS that read what we write: `make readers` builds and runs them.

Contour and Traefik read EndpointSlices for an Ingress, external-dns for names in DNS:
docs/readers.md.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.e2e.test_clients import NAME, mirrored
from tests.support.lab import Lab, free_port
from tests.support.lab.build import binary
from tests.support.lab.servers import Program
from tests.support.raw import SERVICES, SLICES, RawConsul, RawKube

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.environ.get("READERS") != "1", reason="built for this alone: make readers"),
]

Json = dict[str, Any]
Eventually = Callable[..., None]
OUTPUTS = ("endpoints", "endpointslices", "both")
CONTOURS_KINDS = (
    ("HTTPProxy", "v1"), ("TLSCertificateDelegation", "v1"), ("ExtensionService", "v1alpha1"),
    ("ContourConfiguration", "v1alpha1"), ("ContourDeployment", "v1alpha1"),
)  # fmt: skip
HOST = "radosgw.example.com"
INGRESSES = "/apis/networking.k8s.io/v1/namespaces/{namespace}/ingresses"


@contextmanager
def reader(lab: Lab, name: str, *arguments: str, ready: Callable[[], bool] = lambda: True) -> Iterator[Program]:
    """A reader at work on the cluster."""
    program = Program(
        lab.folder / f"{name}-{free_port()}", [str(binary(name)), *arguments],
        {"KUBECONFIG": str(lab.kubeconfig), "PATH": os.environ["PATH"]}, ready,
    )  # fmt: skip
    program.start()
    try:
        yield program
    finally:
        program.kill()


def listens(port: int) -> bool:
    """Whether something does at this port."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def last(program: Program) -> Any:
    """The last line of JSON that a reader printed; None when there is none yet."""
    lines = [line for line in program.log.read_text().splitlines(keepends=True) if line.startswith(("{", "[", "null"))]
    whole = [line for line in lines if line.endswith("\n")]
    return json.loads(whole[-1]) if whole else None


def documents(program: Program) -> list[Json]:
    """The answers that Contour's client printed: JSON over several lines, between lines of its log."""
    lines = [line for line in program.log.read_text().splitlines() if not line.startswith("time=")]
    text, decoder, found = "\n".join(lines).lstrip(), json.JSONDecoder(), list[Json]()
    while text:
        try:
            document, end = decoder.raw_decode(text)
        except ValueError:
            break  # the last one is not whole yet
        found += [document] if "version_info" in document and "type_url" in document and "node" not in document else []
        text = text[end:].lstrip()
    return found


def ingress(kube: RawKube, namespace: str, *, port: Json) -> None:
    """One host that leads to the mirrored Service."""
    backend = {"service": {"name": NAME, "port": port}}
    paths = [{"path": "/", "pathType": "Prefix", "backend": backend}]
    kube.json("POST", INGRESSES.format(namespace=namespace), {
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": NAME},
        "spec": {"rules": [{"host": HOST, "http": {"paths": paths}}]},
    })  # fmt: skip


# --------------------------------------------------------------------------- Traefik


def servers(program: Program, *, fenced: bool = False) -> list[str]:
    """The servers that Traefik's router gets for the one service: those of new requests, or those that only drain."""
    found = (last(program) or {}).get("services", {}).values()
    balancers = [service["loadBalancer"] for service in found if "loadBalancer" in service]
    return sorted(s["url"] for b in balancers for s in b.get("servers", []) if s.get("fenced", False) is fenced)


@pytest.mark.parametrize("output", ["endpointslices", "both"])
def test_traefik_routes_to_the_ready_instances_and_drains_what_is_in_maintenance(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, output: str, eventually: Eventually
) -> None:
    """Each on its own port, the critical one left out, and after flips of health again."""
    with (
        reader(lab, "traefik", namespace) as traefik,
        mirrored(lab, consul, namespace, prefix, output=output) as service,
    ):
        ingress(kube, namespace, port={"name": "http"})
        eventually(lambda: servers(traefik), ["http://10.77.1.1:8080", "http://10.77.1.2:8081"])
        assert servers(traefik, fenced=True) == ["http://10.77.1.4:8080"]
        consul.flip(service, f"{prefix}vm-1", "critical")
        consul.flip(service, f"{prefix}vm-3", "passing")
        eventually(lambda: servers(traefik), ["http://10.77.1.2:8081", "http://10.77.1.3:8080"])


def test_traefik_sends_requests_to_what_is_critical_when_only_endpoints_are_written(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Eventually
) -> None:
    """The mirrored slices have no `serving`, which Traefik goes by: the reason why `both` is the default."""
    with mirrored(lab, consul, namespace, prefix, output="endpoints"), reader(lab, "traefik", namespace) as traefik:
        ingress(kube, namespace, port={"name": "http"})
        every = [f"http://10.77.1.{n}:{port}" for n, port in ((1, 8080), (2, 8081), (3, 8080), (4, 8080))]
        eventually(lambda: servers(traefik), every)


def test_traefik_takes_one_port_of_an_address_that_has_two(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Eventually
) -> None:
    """It tells instances apart by address alone: of two on one VM the second is never asked. Contour asks both."""
    name = f"{prefix}{NAME}"
    with mirrored(lab, consul, namespace, prefix), reader(lab, "traefik", namespace) as traefik:
        ingress(kube, namespace, port={"number": 80})
        consul.register(name, f"{prefix}vm-1", "10.77.1.1", 9090, service_id=f"{prefix}second")
        eventually(lambda: "10.77.1.1:9090" in addresses(kube, namespace), True)
        consul.register(name, f"{prefix}vm-5", "10.77.1.5", 9090)
        eventually(lambda: "http://10.77.1.5:9090" in servers(traefik), True)
        assert len([url for url in servers(traefik) if url.startswith("http://10.77.1.1:")]) == 1


def addresses(kube: RawKube, namespace: str) -> set[str]:
    """What the EndpointSlices of a namespace have as ready."""
    items = kube.json("GET", SLICES.format(namespace=namespace))["items"]
    return {
        f"{endpoint['addresses'][0]}:{port['port']}"
        for item in items for endpoint in item["endpoints"] for port in item["ports"] if endpoint["conditions"]["ready"]
    }  # fmt: skip


# --------------------------------------------------------------------------- Contour


@contextmanager
def contour(lab: Lab, namespace: str) -> Iterator[Callable[[], list[str]]]:
    """Contour at work; a function that asks for the endpoints which it gives to Envoy for this namespace."""
    xds, health, metrics, debug = (free_port() for _ in range(4))
    ports = (
        "--xds-address=127.0.0.1", f"--xds-port={xds}", "--health-address=127.0.0.1", f"--health-port={health}",
        "--http-address=127.0.0.1", f"--http-port={metrics}", "--debug-http-address=127.0.0.1",
        f"--debug-http-port={debug}",
    )  # fmt: skip
    serve = (
        "serve", "--insecure", f"--kubeconfig={lab.kubeconfig}", "--disable-leader-election",
        f"--watch-namespaces={namespace}", *ports,
    )  # fmt: skip

    def endpoints() -> list[str]:
        places = [
            one["endpoint"]["address"]["socket_address"]
            for answer in documents(client)[-1:] for cluster in answer.get("resources", [])
            for locality in cluster.get("endpoints", []) for one in locality["lb_endpoints"]
        ]  # fmt: skip
        return sorted(f"{place['address']}:{place['port_value']}" for place in places)

    with (
        reader(lab, "contour", *serve, ready=lambda: listens(xds)),
        reader(lab, "contour", "cli", "eds", f"--contour=127.0.0.1:{xds}") as client,
    ):
        yield endpoints


@pytest.fixture(scope="module")
def kinds(lab: Lab) -> Iterator[None]:
    """The kinds of Contour's own, without which it does not start; their schemas do not matter here."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    made = [kind.lower() + "s" if kind != "HTTPProxy" else "httpproxies" for kind, _ in CONTOURS_KINDS]
    with lab.raw_kube() as kube:
        for (kind, version), plural in zip(CONTOURS_KINDS, made, strict=True):
            kube.json("POST", path, {
                "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                "metadata": {"name": f"{plural}.projectcontour.io"},
                "spec": {
                    "group": "projectcontour.io", "scope": "Namespaced",
                    "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
                    "versions": [{
                        "name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema},
                        "subresources": {"status": {}},
                    }],
                },
            })  # fmt: skip
        yield
        for plural in made:
            kube.delete(f"{path}/{plural}.projectcontour.io")


@pytest.mark.parametrize("output", OUTPUTS)
def test_contour_gives_envoy_the_ready_instances(
    lab: Lab, kinds: None, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, output: str,
    eventually: Eventually,
) -> None:  # fmt: skip
    """Each on its own port, two on one VM as well; after flips of health again."""
    with contour(lab, namespace) as given, mirrored(lab, consul, namespace, prefix, output=output) as service:
        ingress(kube, namespace, port={"name": "http"})
        eventually(given, ["10.77.1.1:8080", "10.77.1.2:8081"])
        consul.flip(service, f"{prefix}vm-1", "critical")
        consul.flip(service, f"{prefix}vm-3", "passing")
        eventually(given, ["10.77.1.2:8081", "10.77.1.3:8080"])
        consul.register(service, f"{prefix}vm-3", "", 9090, service_id=f"{prefix}second")
        eventually(given, ["10.77.1.2:8081", "10.77.1.3:8080", "10.77.1.3:9090"])


# --------------------------------------------------------------------------- external-dns


def records(program: Program) -> dict[str, list[str]]:
    """The names that external-dns would publish, with their targets."""
    return {record["dnsName"]: sorted(record["targets"]) for record in last(program) or []}


def test_external_dns_publishes_cluster_addresses_and_nothing_of_a_headless_service(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Eventually
) -> None:
    """It takes endpoints of headless Services for pods, and passes over those without a `targetRef`, with an error."""
    named = {"external-dns.kubernetes.io/hostname": HOST}
    path = f"{SERVICES.format(namespace=namespace)}/{NAME}"
    with reader(lab, "external-dns", namespace) as publisher:
        with mirrored(lab, consul, namespace, prefix, annotations=named):
            eventually(lambda: kube.get(path) is not None, True)
            cluster = (kube.get(path) or {})["spec"]["clusterIP"]
            eventually(lambda: records(publisher), {HOST: [cluster]})
        kube.delete(path)
        eventually(lambda: records(publisher), {})
        with mirrored(lab, consul, namespace, prefix, annotations=named, type="Headless"):
            eventually(lambda: "nil TargetRef" in publisher.log.read_text(), True)
            assert records(publisher) == {}
