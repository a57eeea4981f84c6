"""Programs of others that read what we write: CoreDNS and Prometheus find exactly the ready instances."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dns.message
import dns.query
import dns.rcode
import pytest
import yaml

from tests.support.lab import Lab
from tests.support.lab.build import binary
from tests.support.lab.servers import CoreDns
from tests.support.program import Daemon, bridge, environment
from tests.support.raw import SERVICES, RawConsul, RawKube

pytestmark = [pytest.mark.lab, pytest.mark.slow]

Eventually = Callable[..., None]
OUTPUTS = ("endpoints", "endpointslices", "both")
NAME = "radosgw"
DISCOVERY_SECONDS = 4


@contextmanager
def mirrored(lab: Lab, consul: RawConsul, namespace: str, prefix: str, **to: Any) -> Iterator[str]:
    """A Consul service, mirrored as `radosgw`: two well on two ports, one critical, one in maintenance; its name."""
    service = f"{prefix}{NAME}"
    for n, port, status in ((1, 8080, "passing"), (2, 8081, "passing"), (3, 8080, "critical"), (4, 8080, "passing")):
        consul.register(service, f"{prefix}vm-{n}", f"10.77.1.{n}", port, status=status, Meta={"team": "storage"})
    consul.json(
        "PUT",
        "/v1/catalog/register",
        {
            "Node": f"{prefix}vm-4", "Address": "", "SkipNodeUpdate": True,
            "Check": {"CheckID": "_node_maintenance", "Name": "Node Maintenance Mode", "Status": "critical"},
        },
    )  # fmt: skip
    target = {
        "namespace": namespace,
        "name": NAME,
        "port": 80,
        "port_name": "http",
        "labels_from": {"team": "meta:team"},
    }
    with running(lab, namespace, {"services": [service], "to": {**target, **to}}):
        yield service


@contextmanager
def running(lab: Lab, namespace: str, *rules: dict[str, Any]) -> Iterator[None]:
    """`bridge run` with these rules."""
    config = lab.folder / f"clients-{namespace}.yaml"
    config.write_text(yaml.safe_dump({"rules": list(rules)}))
    env = environment(lab.consul.address, lab.kubeconfig)
    daemon = Daemon(lab, f"clients-{namespace}", "--config", str(config), "--owner", namespace, env=env)
    daemon.start()
    try:
        yield
    finally:
        daemon.stop()


# --------------------------------------------------------------------------- CoreDNS


@pytest.fixture(scope="module")
def names(lab: Lab) -> Iterator[CoreDns]:
    """CoreDNS on the shared cluster."""
    server = CoreDns(lab.folder / "coredns", lab.kubeconfig)
    server.start()
    yield server
    server.kill()


def ask(server: CoreDns, name: str, kind: str) -> dns.message.Message:
    """One question by TCP; the whole answer."""
    return dns.query.tcp(dns.message.make_query(name, kind), "127.0.0.1", timeout=10, port=server.port)


def addresses(server: CoreDns, name: str) -> list[str]:
    """The IPv4 addresses of a name."""
    return sorted(str(item) for rrset in ask(server, name, "A").answer for item in rrset)


def places(server: CoreDns, name: str) -> list[tuple[str, int]]:
    """The addresses and ports behind a name's SRV records, each target asked for its address."""
    records = [item for rrset in ask(server, name, "SRV").answer for item in rrset]
    return sorted((address, int(r.port)) for r in records for address in addresses(server, str(r.target)))


@pytest.mark.parametrize("output", OUTPUTS)
def test_coredns_answers_a_headless_name_with_the_ready_addresses(
    lab: Lab, names: CoreDns, consul: RawConsul, namespace: str, prefix: str, output: str, eventually: Eventually
) -> None:
    """Exactly these, SRV with each instance's own port; it follows flips."""
    name = f"{NAME}.{namespace}.svc.cluster.local"
    with mirrored(lab, consul, namespace, prefix, output=output, type="Headless") as service:
        eventually(lambda: addresses(names, name), ["10.77.1.1", "10.77.1.2"], 30)
        eventually(lambda: places(names, f"_http._tcp.{name}"), [("10.77.1.1", 8080), ("10.77.1.2", 8081)], 30)
        consul.flip(service, f"{prefix}vm-1", "critical")
        consul.flip(service, f"{prefix}vm-3", "passing")
        eventually(lambda: addresses(names, name), ["10.77.1.2", "10.77.1.3"], 30)
        eventually(lambda: places(names, f"_http._tcp.{name}"), [("10.77.1.2", 8081), ("10.77.1.3", 8080)], 30)


def test_coredns_knows_each_endpoint_by_its_hostname(
    lab: Lab, names: CoreDns, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Eventually
) -> None:
    """With every output, and for a user's headless Service, where peers have to find each other before they are ready;
    of two nodes with one name the first keeps it."""
    first, second, third = f"{prefix}VM_1.ams", f"{prefix}vm-1.fra", f"{prefix}vm-3"
    for n, node, status in ((1, first, "passing"), (2, second, "passing"), (3, third, "critical")):
        consul.register(f"{prefix}kafka", node, f"10.77.2.{n}", 9092, status=status)
    kube.json("POST", SERVICES.format(namespace=namespace), {
        "metadata": {"name": "zookeeper", "labels": {"consul-bridge/mirror": "true"}, "annotations": {
            "consul-bridge/service": f"{prefix}kafka", "consul-bridge/hostname-from": "node",
        }},
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "ports": [{"port": 9092}]},
    })  # fmt: skip
    rules = [
        {
            "services": [f"{prefix}kafka"], "continue": True,
            "to": {"namespace": namespace, "name": output, "type": "Headless", "hostname_from": "node",
                   "port_name": "broker", "output": output},
        }
        for output in OUTPUTS
    ]  # fmt: skip
    one, three = f"{prefix}vm-1", third

    def known(service: str) -> list[list[str]]:
        return [addresses(names, f"{host}.{service}.{namespace}.svc.cluster.local") for host in (one, three)]

    def targets(service: str) -> list[str]:
        found = ask(names, f"_broker._tcp.{service}.{namespace}.svc.cluster.local", "SRV").answer
        return sorted(str(item.target).split(".")[0] for rrset in found for item in rrset)

    with running(lab, namespace, *rules):
        for service in OUTPUTS:
            eventually(lambda s=service: known(s), [["10.77.2.1"], []], 30)
            eventually(lambda s=service: targets(s), sorted([one, "10-77-2-2"]), 30)
        eventually(lambda: known("zookeeper"), [["10.77.2.1"], ["10.77.2.3"]], 30)
        consul.flip(f"{prefix}kafka", first, "critical")
        consul.flip(f"{prefix}kafka", third, "passing")
        for service in OUTPUTS:
            eventually(lambda s=service: known(s), [[], ["10.77.2.3"]], 30)
    env = environment(lab.consul.address, lab.kubeconfig)
    flags = ("--config", str(lab.folder / f"clients-{namespace}.yaml"), "--owner", namespace)
    told = bridge("explain", f"{prefix}kafka", *flags, "-o", "json", env=env)
    rows = {row["instance"]: row for found in json.loads(told.stdout)["explanations"] for row in found["rows"]}
    assert [rows[f"{node}/{prefix}kafka-{node}"]["hostname"] for node in (first, second)] == [one, ""]
    assert bridge("sync", "--dry-run", "--exit-code", *flags, env=env).status == 0


@pytest.mark.parametrize("output", OUTPUTS)
def test_coredns_answers_for_instances_without_a_port(
    lab: Lab, names: CoreDns, consul: RawConsul, namespace: str, prefix: str, output: str, eventually: Eventually
) -> None:
    """A headless name for DNS alone, as Kubernetes serves a headless Service without ports."""
    for n, status in ((1, "passing"), (2, "critical")):
        consul.register(f"{prefix}db", f"{prefix}vm-{n}", f"10.77.1.{n}", 0, status=status)
    rule = {
        "services": [f"{prefix}db"],
        "to": {"namespace": namespace, "name": "db", "type": "Headless", "output": output},
    }
    with running(lab, namespace, rule):
        eventually(lambda: addresses(names, f"db.{namespace}.svc.cluster.local"), ["10.77.1.1"], 30)
        consul.flip(f"{prefix}db", f"{prefix}vm-2", "passing")
        eventually(lambda: addresses(names, f"db.{namespace}.svc.cluster.local"), ["10.77.1.1", "10.77.1.2"], 30)


@pytest.mark.parametrize("output", OUTPUTS)
def test_coredns_answers_a_name_with_its_cluster_address(
    lab: Lab,
    names: CoreDns,
    consul: RawConsul,
    kube: RawKube,
    namespace: str,
    prefix: str,
    output: str,
    eventually: Eventually,
) -> None:
    """The same one, whatever is ready, and by SRV the Service's port; a name of no Service is not there."""
    name = f"{NAME}.{namespace}.svc.cluster.local"
    with mirrored(lab, consul, namespace, prefix, output=output) as service:
        path = f"{SERVICES.format(namespace=namespace)}/{NAME}"
        eventually(lambda: kube.get(path) is not None, True, 30)
        cluster = (kube.get(path) or {})["spec"]["clusterIP"]
        eventually(lambda: addresses(names, name), [cluster], 30)
        eventually(lambda: places(names, f"_http._tcp.{name}"), [(cluster, 80)], 30)
        consul.flip(service, f"{prefix}vm-1", "critical")
        assert addresses(names, name) == [cluster]
    assert ask(names, f"nobody.{namespace}.svc.cluster.local", "A").rcode() == dns.rcode.NXDOMAIN


# --------------------------------------------------------------------------- Prometheus

READY = {
    "endpoints": "__meta_kubernetes_endpoint_ready",
    "endpointslice": "__meta_kubernetes_endpointslice_endpoint_conditions_ready",
}
PORT_NAME = {
    "endpoints": "__meta_kubernetes_endpoint_port_name",
    "endpointslice": "__meta_kubernetes_endpointslice_port_name",
}


def discovered(lab: Lab, folder: Path, namespace: str, role: str) -> list[tuple[str, ...]]:
    """What Prometheus' own service discovery finds: address, Service, port name, ready, and the team from Consul."""
    config = folder / f"{role}.yaml"
    discovery = {"role": role, "kubeconfig_file": str(lab.kubeconfig), "namespaces": {"names": [namespace]}}
    config.write_text(yaml.safe_dump({"scrape_configs": [{"job_name": role, "kubernetes_sd_configs": [discovery]}]}))
    command = [str(binary("promtool")), "check", "service-discovery", f"--timeout={DISCOVERY_SECONDS}s", str(config)]
    done = subprocess.run([*command, role], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    service = "__meta_kubernetes_service_name"
    wanted = ("__address__", service, PORT_NAME[role], READY[role], "__meta_kubernetes_service_label_team")
    targets = [target["discoveredLabels"] for target in json.loads(done.stdout)]
    return sorted(tuple(labels.get(key, "") for key in wanted) for labels in targets)


@pytest.mark.parametrize("output", OUTPUTS)
def test_prometheus_discovers_every_instance_once_with_its_readiness_and_labels(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, output: str, tmp_path: Path,
    eventually: Eventually,
) -> None:  # fmt: skip
    """By either role, where the output has its objects; what is not ready is marked as such, not left out."""
    roles = ["endpointslice"] if output == "endpointslices" else ["endpoints", "endpointslice"]
    expected = [
        (f"10.77.1.{n}:{port}", NAME, "http", ready, "storage")
        for n, port, ready in ((1, 8080, "true"), (2, 8081, "true"), (3, 8080, "false"), (4, 8080, "false"))
    ]
    with mirrored(lab, consul, namespace, prefix, output=output), ThreadPoolExecutor(2) as pool:
        path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        eventually(lambda: bool((kube.get(path) or {})["items"]), True, 30)
        eventually(
            lambda: list(pool.map(lambda role: discovered(lab, tmp_path, namespace, role), roles)),
            [expected] * len(roles), 60,
        )  # fmt: skip
