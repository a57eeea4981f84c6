"""Changing what carries the addresses of a running service, seen by a user who reads its slices all the time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.support.lab import Lab
from tests.support.program import Daemon, bridge, environment
from tests.support.raw import ENDPOINTS, SERVICES, SLICES, RawConsul, RawKube, UnexpectedAnswerError

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
        # One pass after the other: the control plane has its part in it, and takes its time.
        eventually(lambda: (sync(after), managers()), (0, {mirrored if after == "endpoints" else ours}), 60)
        time.sleep(1)
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


@pytest.fixture
def no_slices_of_ours(kube: RawKube, namespace: str, eventually: Callable[..., None]) -> Iterator[Callable[[], None]]:
    """An admission policy that refuses our EndpointSlices and leaves the control plane's; call it to take it away."""
    admission, version = "/apis/admissionregistration.k8s.io/v1", "admissionregistration.k8s.io/v1"
    policy = f"slices-{namespace}"
    group = {"apiGroups": ["discovery.k8s.io"], "apiVersions": ["v1"]}
    ours = "object.metadata.labels['endpointslice.kubernetes.io/managed-by'] == 'consul-bridge'"
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    kinds = ("ValidatingAdmissionPolicy", "validatingadmissionpolicies", {
        "matchConstraints": {
            "resourceRules": [{**group, "operations": ["CREATE", "UPDATE"], "resources": ["endpointslices"]}],
            "namespaceSelector": selector,
        },
        "validations": [{"expression": f"!({ours})", "message": "none of yours"}],
    }), ("ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings", {
        "policyName": policy, "validationActions": ["Deny"],
    })  # fmt: skip
    for kind, plural, spec in kinds:
        body = {"apiVersion": version, "kind": kind, "metadata": {"name": policy}, "spec": spec}
        kube.json("POST", f"{admission}/{plural}", body)
    labels = {"endpointslice.kubernetes.io/managed-by": "consul-bridge"}
    probe = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [],
             "metadata": {"name": "probe", "labels": labels}}  # fmt: skip

    def refused() -> bool:
        try:
            kube.json("POST", f"{SLICES.format(namespace=namespace)}?dryRun=All", probe)
        except UnexpectedAnswerError as error:
            return "none of yours" in str(error)
        return False

    def lift() -> None:
        for _, plural, _ in reversed(kinds):
            kube.delete(f"{admission}/{plural}/{policy}")

    eventually(refused, True)
    yield lift
    lift()


def test_while_admission_refuses_our_slices_endpoints_carry_what_is_and_nothing_that_was(
    lab: Lab,
    consul: RawConsul,
    kube: RawKube,
    namespace: str,
    prefix: str,
    no_slices_of_ours: Callable[[], None],
    eventually: Callable[..., None],
) -> None:
    """A service that is new, and one that changes over from Endpoints while it loses an instance: traffic sees both."""
    old, new = f"{prefix}old", f"{prefix}new"
    for n in (1, 2):
        consul.register(old, f"{prefix}vm-{n}", f"10.77.7.{n}", 80)
    env = environment(lab.consul.address, lab.kubeconfig)

    def sync(output: str) -> tuple[int, set[str], set[str]]:
        arguments = ("--service", f"{prefix}*", "--namespace", namespace, "--output-kind", output, "--yes")
        result = bridge("sync", *arguments, "-o", "json", env=env)
        changes = {f"{row['action']} {row['kind']}" for row in result.json["changes"]}
        return result.status, changes, {row["kind"] for row in result.json["failed"]}

    def traffic() -> tuple[list[str], list[str], set[str]]:
        """Ready addresses of both services, and who manages their slices."""
        items = kube.json("GET", SLICES.format(namespace=namespace))["items"]
        seen: dict[str, list[str]] = {old: [], new: []}
        for item in items:
            seen[item["metadata"]["labels"]["kubernetes.io/service-name"]] += [
                e["addresses"][0] for e in item.get("endpoints") or []
            ]
        managers = {item["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] for item in items}
        return sorted(seen[old]), sorted(seen[new]), managers

    mirrored = {"endpointslicemirroring-controller.k8s.io"}
    sync("endpoints")
    eventually(traffic, (["10.77.7.1", "10.77.7.2"], [], mirrored), 30)
    consul.register(new, f"{prefix}vm-3", "10.77.7.3", 80)
    consul.deregister(old, f"{prefix}vm-2")
    changes = {"create Service", "create Endpoints", "update Endpoints"}
    assert sync("both") == (1, changes, {"EndpointSlice"})
    eventually(traffic, (["10.77.7.1"], ["10.77.7.3"], mirrored), 30)
    assert sync("both")[:2] == (1, set())
    no_slices_of_ours()
    eventually(lambda: sync("both")[0], 0, 30)
    eventually(traffic, (["10.77.7.1"], ["10.77.7.3"], {"consul-bridge"}), 30)
