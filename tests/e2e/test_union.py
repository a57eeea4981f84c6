"""All EndpointSlices of a Service together, no matter who writes them, as the bridge reports them, on real servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.conftest import Sync
from tests.e2e.test_outputs import slices
from tests.support.lab import Lab
from tests.support.program import Daemon, environment
from tests.support.raw import ENDPOINTS, SERVICES, SLICES, RawConsul, RawKube, UnexpectedAnswerError

pytestmark = [pytest.mark.lab, pytest.mark.slow]

Json = dict[str, Any]
Eventually = Callable[..., None]
MANAGER = "endpointslice.kubernetes.io/managed-by"
PODS = "endpointslice-controller.k8s.io"
MIRRORING = "endpointslicemirroring-controller.k8s.io"
MERGE = "application/merge-patch+json"
READ_ONLY = [
    {"apiGroups": [""], "resources": ["services", "endpoints"],
     "verbs": ["list", "watch", "create", "patch", "delete"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
]  # fmt: skip
"""What manifests/components/endpoints-only grants, but for Events."""


@pytest.fixture
def daemon(lab: Lab, namespace: str, prefix: str) -> Iterator[Callable[..., Daemon]]:
    """Start a bridge for this test's services."""
    started: list[Daemon] = []

    def start(*arguments: str) -> Daemon:
        env = environment(lab.consul.address, lab.kubeconfig)
        running = Daemon(
            lab, f"bridge-{namespace}", "--service", f"{prefix}*", "--namespace", namespace, *arguments, env=env
        )
        running.start()
        started.append(running)
        return running

    yield start
    for running in started:
        running.stop()


@pytest.fixture
def no_mirror(kube: RawKube, namespace: str, eventually: Eventually) -> Iterator[Callable[[], None]]:
    """Call it, and an admission policy refuses what the control plane makes of Endpoints."""
    admission, policy = "/apis/admissionregistration.k8s.io/v1", f"no-mirror-{namespace}"
    resources = {"apiGroups": ["discovery.k8s.io"], "apiVersions": ["v1"], "resources": ["endpointslices"]}
    kinds = ("ValidatingAdmissionPolicy", "validatingadmissionpolicies", {
        "matchConstraints": {
            "resourceRules": [{**resources, "operations": ["CREATE", "UPDATE"]}],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        },
        "validations": [
            {"expression": f"object.metadata.labels['{MANAGER}'] != '{MIRRORING}'", "message": "no mirror"}
        ],
    }), ("ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings", {
        "policyName": policy, "validationActions": ["Deny"],
    })  # fmt: skip
    probe = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [],
             "metadata": {"name": "probe", "labels": {MANAGER: MIRRORING}}}  # fmt: skip

    def refused() -> bool:
        try:
            kube.json("POST", f"{SLICES.format(namespace=namespace)}?dryRun=All", probe)
        except UnexpectedAnswerError as error:
            return "no mirror" in str(error)
        return False

    def begin() -> None:
        for kind, plural, spec in kinds:
            body = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": policy}}
            kube.json("POST", f"{admission}/{plural}", {**body, "spec": spec})
        eventually(refused, True)

    yield begin
    for _, plural, _ in reversed(kinds):
        kube.delete(f"{admission}/{plural}/{policy}")


def state(daemon: Daemon) -> tuple[float, float, float]:
    """Services in sync, services whose slices deviate, and slices of others."""
    text = daemon.get("/metrics")[1].decode()
    counted = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("consul_bridge_"))
    names = ('services{state="in_sync"}', "services_with_deviating_slices", "foreign_slices")
    in_sync, deviating, foreign = (float(counted[f"consul_bridge_{name}"]) for name in names)
    return in_sync, deviating, foreign


def status(sync: Sync, rule: Json, *arguments: str) -> tuple[bool, str, str, list[str]]:
    """Whether `bridge status` says in sync; state, detail and codes of the one service."""
    found = sync(rule, command=("status",), arguments=arguments).json
    (row,) = found["services"]
    return found["in_sync"], row["state"], row["detail"], row["reasons"]


def checked(sync: Sync, rule: Json, *arguments: str, status: int = 0) -> dict[str, str]:
    """The probes about slices, and their states."""
    probes = sync(rule, command=("check",), arguments=arguments, status=status).json["probes"]
    return {p["probe"]: p["state"] for p in probes if p["probe"].startswith("slices")}


def pod_behind(kube: RawKube, namespace: str, name: str, address: str) -> None:
    """A node and a pod that is ready on it, as a kubelet would say."""
    kube.json("POST", "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    spec = {"nodeName": name, "containers": [{"name": "web", "image": "web"}]}
    metadata = {"name": name, "labels": {"app": name}}
    path = f"/api/v1/namespaces/{namespace}/pods"
    kube.json("POST", path, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    ready = {"podIP": address, "podIPs": [{"ip": address}], "conditions": [{"type": "Ready", "status": "True"}]}
    kube.json("PATCH", f"{path}/{name}/status", {"status": {"phase": "Running", **ready}}, MERGE)


def test_from_pods_to_vms_the_slices_of_the_pods_stay_behind(
    sync: Sync,
    daemon: Callable[..., Daemon],
    consul: RawConsul,
    kube: RawKube,
    namespace: str,
    prefix: str,
    eventually: Eventually,
) -> None:
    """The control plane never removes them: it is reported everywhere, until the how-to's command has."""
    name = f"{prefix}web"
    service = f"{SERVICES.format(namespace=namespace)}/{name}"
    consul.register(name, f"{prefix}vm-1", "10.77.1.1", 8080)
    pod_behind(kube, namespace, f"{prefix}pod", "10.244.0.7")
    spec = {"selector": {"app": f"{prefix}pod"}, "ports": [{"port": 80, "targetPort": 8080}]}
    labels = {"consul-bridge/mirror": "true"}
    body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels}, "spec": spec}
    kube.json("POST", SERVICES.format(namespace=namespace), body)
    mine = f"{MANAGER}={PODS}"
    try:
        eventually(lambda: [len(s["endpoints"]) for s in slices(kube, namespace, name, mine)], [1])
        running = daemon()
        endpoints = f"{ENDPOINTS.format(namespace=namespace)}/{name}"
        kube.json("PATCH", endpoints, {"metadata": {"annotations": {"consul-bridge/adopt": "true"}}}, MERGE)
        kube.json("PATCH", service, {"spec": {"selector": None}}, MERGE)
        eventually(lambda: state(running), (0, 1, 1), 60)
        (left,) = slices(kube, namespace, name, mine)
        said = (
            f"EndpointSlice {left['metadata']['name']} (managed by {PODS}) is neither the bridge's nor the mirror of "
            "its Endpoints: it has 10.244.0.7:8080, which Consul does not show."
        )
        rule: Json = {"services": [f"{prefix}*"]}
        in_sync, found, detail, reasons = status(sync, rule)
        assert (in_sync, found, detail.startswith(said), reasons) == (False, "out_of_sync", True, ["foreign_slice"])
        result = sync(rule)
        assert ([row["reason"] for row in result.json["warnings"]], result.json["changes"]) == (["foreign_slice"], [])
        explanations = sync(rule, command=("explain", name)).json["explanations"]
        (explained,) = [e for e in explanations if e["unaccounted"]]  # the rule would like to have the name as well
        assert (explained["unaccounted"], explained["warnings"]) == (["10.244.0.7:8080 ready"], [detail])
        assert checked(sync, rule) == {"slices of others": "warning"}
        events = kube.json("GET", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")["items"]
        assert any(e["note"].startswith(said) for e in events if e["reason"] == "Attention")

        selector = f"kubernetes.io/service-name={name},{mine}"
        kube.json("DELETE", f"{SLICES.format(namespace=namespace)}?labelSelector={selector}")
        eventually(lambda: state(running), (1, 0, 0), 60)
        assert (status(sync, rule)[:2], checked(sync, rule)) == ((True, "in_sync"), {"slices": "ok"})
    finally:
        kube.delete(f"/api/v1/nodes/{prefix}pod")


def test_a_slice_made_by_hand_and_a_mirror_that_is_gone_are_reported(
    sync: Sync,
    daemon: Callable[..., Daemon],
    consul: RawConsul,
    kube: RawKube,
    namespace: str,
    prefix: str,
    no_mirror: Callable[[], None],
    eventually: Eventually,
) -> None:
    """With `output: endpoints` the mirror has to have everything; what it cannot carry is not in sync either."""
    name = f"{prefix}web"
    rule: Json = {"services": [f"{prefix}*"], "to": {"output": "endpoints"}}
    consul.register(name, f"{prefix}vm-1", "10.77.1.1", 8080)
    running = daemon("--output-kind", "endpoints")
    eventually(lambda: state(running), (1, 0, 0), 60)
    path = SLICES.format(namespace=namespace)
    metadata = {"name": f"{name}-by-hand", "labels": {"kubernetes.io/service-name": name}}
    kube.json("POST", path, {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata, "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.77.9.9"]}], "ports": [{"name": "", "port": 8080}],
    })  # fmt: skip
    eventually(lambda: state(running), (0, 1, 1), 60)
    in_sync, found, detail, _ = status(sync, rule)
    assert (in_sync, found) == (False, "out_of_sync")
    assert f"{name}-by-hand (without a manager)" in detail
    kept = {"metadata": {"annotations": {"consul-bridge/keep": "true"}}}
    kube.json("PATCH", f"{path}/{name}-by-hand", kept, MERGE)  # its user wants it there
    eventually(lambda: state(running), (1, 0, 0), 60)
    assert status(sync, rule)[:2] == (True, "in_sync")
    explained = running.get(f"/service/{namespace}/{name}")[1].decode()
    assert f"{name}-by-hand, which no bridge writes, has 10.77.9.9:8080" in explained
    kube.delete(f"{path}/{name}-by-hand")
    eventually(lambda: f"{name}-by-hand" in running.get(f"/service/{namespace}/{name}")[1].decode(), False, 60)

    no_mirror()
    consul.register(name, f"{prefix}vm-2", "10.77.1.2", 8080)
    consul.deregister(name, f"{prefix}vm-1")
    eventually(lambda: state(running), (0, 1, 0), 60)
    in_sync, found, detail, reasons = status(sync, rule)
    assert (in_sync, found, reasons) == (False, "out_of_sync", ["mirror_behind"])
    assert "lacks 10.77.1.2:8080 and has 10.77.1.1:8080, which Consul does not show;" in detail
    assert checked(sync, rule, status=1) == {"slices": "failed"}
    assert sync(rule).json["changes"] == []


def test_two_ports_of_one_name_are_not_in_sync_without_the_right_to_write_slices(
    lab: Lab, sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """Two instances on one machine: Endpoints perfect, and no EndpointSlice at all."""
    name = f"{prefix}web"
    for port in (7480, 7481):
        consul.register(name, f"{prefix}vm-1", "10.77.1.1", port, service_id=f"{name}-{port}")
    rule: Json = {"services": [f"{prefix}*"], "to": {"output": "endpoints"}}
    limited = ("--kubeconfig", str(lab.service_account(namespace, "bridge", READ_ONLY)))
    sync(rule, arguments=limited)
    again = sync(rule, arguments=limited)
    assert ([row["reason"] for row in again.json["warnings"]], again.json["changes"]) == (["unmirrored"], [])
    in_sync, found, detail, reasons = status(sync, rule, *limited)
    assert (in_sync, found, reasons) == (False, "out_of_sync", ["mirror_behind", "unmirrored"])
    assert "the control plane's mirror of them lacks 10.77.1.1:7480, 10.77.1.1:7481;" in detail
    assert checked(sync, rule, *limited, status=1) == {"slices": "failed"}
    sync(rule)
    assert (status(sync, rule)[:2], checked(sync, rule)) == ((True, "in_sync"), {"slices": "ok"})
