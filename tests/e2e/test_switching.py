"""Changing what carries the addresses of a living Service, seen by somebody who reads its slices all the time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.lab import Lab
from tests.program import Daemon, bridge, environment
from tests.raw import ENDPOINTS, SERVICES, SLICES, RawConsul, RawKube

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@contextmanager
def sampling(lab: Lab, namespace: str, service: str) -> Iterator[list[frozenset[str]]]:
    """Ready addresses in the union of a Service's slices, read again and again."""
    samples: list[frozenset[str]] = []
    stop = threading.Event()
    path = f"{SLICES.format(namespace=namespace)}?labelSelector=kubernetes.io/service-name={service}"

    def sample() -> None:
        with lab.raw_kube() as kube:
            while not stop.is_set():
                found = kube.get(path) or {}
                samples.append(
                    frozenset(
                        e["addresses"][0]
                        for item in found["items"]
                        for e in item.get("endpoints") or []
                        if e["conditions"].get("ready", True)
                    )
                )

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("endpoints", "endpointslices"),
        ("endpointslices", "endpoints"),
        ("endpoints", "both"),
        ("both", "endpoints"),
        ("both", "endpointslices"),
        ("endpointslices", "both"),
    ],
)
def test_no_ready_address_is_missing_while_the_output_changes(
    lab: Lab,
    consul: RawConsul,
    kube: RawKube,
    namespace: str,
    prefix: str,
    before: str,
    after: str,
    eventually: Callable[..., None],
) -> None:
    """Added before removed, and in the end exactly what was asked for, with nothing left to do."""
    service = f"{prefix}web"
    everything = frozenset(f"10.77.5.{n}" for n in range(1, 5))
    for n in range(1, 5):
        consul.register(service, f"{prefix}vm-{n}", f"10.77.5.{n}", 80)
    env = environment(lab.consul.address, lab.kubeconfig)

    def sync(output: str) -> int:
        arguments = ("--service", service, "--namespace", namespace, "--output-kind", output, "--yes", "-o", "json")
        result = bridge("sync", *arguments, env=env)
        assert result.status == 0, result.stderr
        return len(result.json["changes"])

    def managers() -> set[str]:
        path = f"{SLICES.format(namespace=namespace)}?labelSelector=kubernetes.io/service-name={service}"
        found = kube.json("GET", path)["items"]
        return {item["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] for item in found}

    ours, mirrored = "consul-bridge", "endpointslicemirroring-controller.k8s.io"
    sync(before)
    with sampling(lab, namespace, service) as samples:
        eventually(lambda: bool(samples) and samples[-1] == everything, True)
        start = len(samples)
        for _ in range(5):
            sync(after)
            time.sleep(0.5)
        # The control plane has its part in it, and takes its time.
        eventually(lambda: (sync(after), managers()), (0, {mirrored if after == "endpoints" else ours}), 60)
        assert sync(after) == 0  # for good
    assert {len(sample) for sample in samples[start:]} == {4}


def test_an_upgrade_from_endpoints_to_both_loses_no_ready_address_and_waits_for_its_rights(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Callable[..., None]
) -> None:
    """Objects and Role as the last version left them: the new one goes on with Endpoints, and writes slices of its own
    as soon as the new Role is applied. What traffic sees is whole throughout."""
    service = f"{prefix}web"
    everything = frozenset(f"10.77.6.{n}" for n in range(1, 5))
    for n in range(1, 5):
        consul.register(service, f"{prefix}vm-{n}", f"10.77.6.{n}", 80)
    metadata = {
        "name": service, "namespace": namespace,
        "labels": {"app.kubernetes.io/managed-by": "consul-bridge", "consul-bridge/owner": "default"},
        "annotations": {"consul-bridge/datacenter": "dc1", "consul-bridge/service": service},
    }  # fmt: skip
    ports = [{"port": 80, "protocol": "TCP"}]
    families = {"ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"}
    subsets = [{"addresses": [{"ip": address} for address in sorted(everything)], "ports": ports}]
    for base, kind, content in (
        (SERVICES, "Service", {"spec": {"type": "ClusterIP", "ports": ports, **families}}),
        (ENDPOINTS, "Endpoints", {"subsets": subsets}),
    ):
        body = {"apiVersion": "v1", "kind": kind, "metadata": metadata, **content}
        path = f"{base.format(namespace=namespace)}/{service}?fieldManager=consul-bridge"
        kube.json("PATCH", path, body, "application/apply-patch+yaml")
    writing = ["list", "create", "patch", "delete", "watch"]

    def role(slices: list[str]) -> list[dict[str, object]]:
        return [
            {"apiGroups": [""], "resources": ["services", "endpoints"], "verbs": writing},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": slices},
            {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
        ]

    def managers() -> set[str]:
        path = f"{SLICES.format(namespace=namespace)}?labelSelector=kubernetes.io/service-name={service}"
        found = kube.json("GET", path)["items"]
        return {item["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] for item in found}

    env = environment(lab.consul.address, lab.service_account(namespace, "bridge", role(["list", "watch"])))
    daemon = Daemon(lab, f"bridge-{namespace}", "--service", f"{prefix}*", "--namespace", namespace, env=env)
    with sampling(lab, namespace, service) as samples:
        eventually(lambda: bool(samples) and samples[-1] == everything, True)
        start = len(samples)
        daemon.start()
        try:
            consul.register(service, f"{prefix}vm-5", "10.77.6.5", 80)
            eventually(lambda: samples[-1] == everything | {"10.77.6.5"}, True, 30)
            assert managers() == {"endpointslicemirroring-controller.k8s.io"}
            assert list(json.loads(daemon.get("/readyz")[1])["endpointslices_forbidden"]) == [namespace]
            lab.service_account(namespace, "bridge", role(writing))
            eventually(managers, {"consul-bridge"}, 60)
            time.sleep(1.0)
        finally:
            daemon.stop()
    assert [sample for sample in samples[start:] if not sample >= everything] == []
    assert samples[-1] == everything | {"10.77.6.5"}
