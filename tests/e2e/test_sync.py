"""`bridge sync` from a real Consul to a real Kubernetes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.lab import AuditEntry, Lab
from tests.support.program import Result, bridge, environment
from tests.support.raw import ENDPOINTS, SERVICES, SLICES, RawConsul, RawKube, not_ready_addresses, ready_addresses

pytestmark = pytest.mark.lab


@pytest.fixture
def sync(lab: Lab, namespace: str, prefix: str) -> Callable[..., Result]:
    """Run `bridge sync` for this test's services into its namespace, with JSON output."""
    env = environment(lab.consul.address, lab.kubeconfig)

    def run(*arguments: str, output: str = "json") -> Result:
        select = ("--service", f"{prefix}*", "--namespace", namespace)
        return bridge("sync", *select, "--yes", "-o", output, *arguments, env=env)

    return run


Sync = Callable[..., Result]
EVERYTHING = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]


@dataclass(frozen=True, slots=True)
class Apart:
    """A user of the bridge's own, so that its writes differ from the control plane's, which come when they like."""

    lab: Lab
    namespace: str
    kubeconfig: Path

    def writes(self, since: float) -> list[AuditEntry]:
        """What it has written to its namespace."""
        entries = self.lab.audit(user=f"system:serviceaccount:{self.namespace}:apart", since=since)
        return [e for e in entries if e.namespace == self.namespace and e.verb not in ("get", "list", "watch")]


@pytest.fixture
def apart(lab: Lab, namespace: str) -> Apart:
    """One that may do everything in the namespace."""
    return Apart(lab, namespace, lab.service_account(namespace, "apart", EVERYTHING))


def twelve(consul: RawConsul, prefix: str) -> str:
    """Twelve healthy gateways; the service's name."""
    name = f"{prefix}radosgw"
    for n in range(1, 13):
        consul.register(name, f"{prefix}vm-{n:02}", f"10.77.0.{n}", 8080)
    return name


def test_a_service_becomes_a_service_and_endpoints(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """The story: twelve gateways stand as ready addresses behind a selector-less Service."""
    name = twelve(consul, prefix)
    result = sync()
    service = kube.get(f"{SERVICES.format(namespace=namespace)}/{name}")
    assert service is not None
    assert (result.status, result.json["summary"]["create"]) == (0, 3)
    assert ready_addresses(kube.endpoints(namespace, name)) == sorted((f"10.77.0.{n}", 8080) for n in range(1, 13))
    assert (service["spec"].get("selector"), service["spec"]["ports"][0]["port"]) == (None, 8080)
    assert service["metadata"]["labels"] == {
        "app.kubernetes.io/managed-by": "consul-bridge", "consul-bridge/owner": "default",
    }  # fmt: skip


def test_the_control_plane_mirrors_the_same_addresses(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Callable[..., None]
) -> None:
    """What kube-proxy reads agrees with what we wrote."""
    name = twelve(consul, prefix)
    consul.flip(name, f"{prefix}vm-03", "critical")
    sync()

    def mirrored() -> list[tuple[str, bool]]:
        found = kube.get(f"{SLICES.format(namespace=namespace)}?labelSelector=kubernetes.io/service-name={name}")
        assert found is not None
        return sorted(
            (e["addresses"][0], e["conditions"]["ready"]) for item in found["items"] for e in item["endpoints"]
        )

    eventually(mirrored, sorted((f"10.77.0.{n}", n != 3) for n in range(1, 13)))


def test_a_second_sync_writes_nothing(
    apart: Apart, sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """Proved by the audit log and by the resourceVersions."""
    name = twelve(consul, prefix)
    sync()
    paths = [f"{base.format(namespace=namespace)}/{name}" for base in (ENDPOINTS, SERVICES)]
    before = [(kube.get(path) or {})["metadata"]["resourceVersion"] for path in paths]
    since = time.time()
    result = sync("--kubeconfig", str(apart.kubeconfig))
    after = [(kube.get(path) or {})["metadata"]["resourceVersion"] for path in paths]
    assert (result.status, result.json["changes"], result.json["summary"]["unchanged"]) == (0, [], 3)
    assert (before, apart.writes(since)) == (after, [])


def test_health_ports_and_addresses_of_instances_become_those_of_endpoints(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """Passing and warning are ready, critical and unknown are not (and stay listed); the Service has one port of all.

    An address that Kubernetes refuses is skipped with the reason, and keeps no good one out.
    """
    for n, status in enumerate(("passing", "warning", "critical", "strange"), 1):
        consul.register(f"{prefix}health", f"{prefix}vm-{n}", f"10.77.1.{n}", 80, status=status)
    for n, port in ((1, 8080), (2, 8080), (3, 9090)):
        consul.register(f"{prefix}ports", f"{prefix}vm-{n}", f"10.77.1.{n}", port)
    for n, address in enumerate(["127.0.0.1", "169.254.169.254", "no-such-host.invalid", "10.77.1.9"]):
        consul.register(f"{prefix}addresses", f"{prefix}bad-{n}", address, 80)
    result = sync()
    health, ports, addresses = (kube.endpoints(namespace, f"{prefix}{n}") for n in ("health", "ports", "addresses"))
    assert ready_addresses(health) == [("10.77.1.1", 80), ("10.77.1.2", 80)]
    assert not_ready_addresses(health) == [("10.77.1.3", 80), ("10.77.1.4", 80)]
    assert ready_addresses(ports) == [("10.77.1.1", 8080), ("10.77.1.2", 8080), ("10.77.1.3", 9090)]
    service = kube.get(f"{SERVICES.format(namespace=namespace)}/{prefix}ports") or {}
    assert [p["port"] for p in service["spec"]["ports"]] == [8080]
    assert ready_addresses(addresses) == [("10.77.1.9", 80)]
    skipped = {row["instance"].split("/")[0]: row["message"] for row in result.json["skipped"] if row["instance"]}
    assert sorted(skipped) == [f"{prefix}bad-0", f"{prefix}bad-1", f"{prefix}bad-2"]
    assert ["loopback" in skipped[f"{prefix}bad-0"], "link-local" in skipped[f"{prefix}bad-1"]] == [True, True]


def test_a_dry_run_tells_and_writes_nothing(
    apart: Apart, sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """The plan is that of the real run; --exit-code says that there is something to do."""
    name = twelve(consul, prefix)
    since = time.time()
    own = ("--kubeconfig", str(apart.kubeconfig))
    result = sync("--dry-run", "--exit-code", *own)
    writes = apart.writes(since)
    assert (result.status, result.json["summary"]["create"], writes, kube.endpoints(namespace, name)) == (
        4, 3, [], None,
    )  # fmt: skip
    sync(*own)
    assert apart.writes(since) != []  # which would have been seen
    assert sync("--dry-run", "--exit-code").status == 0


def test_what_leaves_consul_leaves_kubernetes_unless_the_policy_keeps_it(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """An instance that is deregistered is gone, not unready; a service goes with its objects, those of others stay."""
    name = twelve(consul, prefix)
    consul.register(f"{prefix}gone", f"{prefix}vm-1", "10.77.1.1", 80)
    sync()
    consul.deregister(name, f"{prefix}vm-01")
    consul.deregister(f"{prefix}gone", f"{prefix}vm-1")
    kept = sync("--policy", "upsert-only")
    endpoints = kube.endpoints(namespace, name)
    assert (kept.json["summary"]["update"], kept.json["summary"]["delete"]) == (4, 0)  # two objects of each service
    assert (len(ready_addresses(endpoints)), not_ready_addresses(endpoints)) == (11, [])
    assert ready_addresses(kube.endpoints(namespace, f"{prefix}gone") or pytest.fail("it is gone")) == []
    result = sync()
    left = [item["metadata"]["name"] for item in (kube.get(SERVICES.format(namespace=namespace)) or {})["items"]]
    assert (result.status, result.json["summary"]["delete"], left) == (0, 3, [name])


def test_another_writers_objects_are_left_alone(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """A Service with a selector, one of another owner, Endpoints of another owner: conflicts, and exit status 5."""
    for name in ("selector", "foreign", "endpoints"):
        consul.register(f"{prefix}{name}", f"{prefix}vm-{name}", "10.77.1.1", 80)
    services, endpoints = SERVICES.format(namespace=namespace), ENDPOINTS.format(namespace=namespace)
    port = [{"port": 1, "protocol": "TCP"}]
    for name, spec in (("selector", {"ports": port, "selector": {"app": "x"}}), ("foreign", {"ports": port})):
        body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": f"{prefix}{name}"}, "spec": spec}
        kube.json("POST", services, body)
    body = {"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": f"{prefix}endpoints"}}
    kube.json("POST", endpoints, body)
    before = {
        n: (kube.get(f"{services}/{prefix}{n}") or {})["metadata"]["resourceVersion"] for n in ("selector", "foreign")
    }
    result = sync()
    after = {
        n: (kube.get(f"{services}/{prefix}{n}") or {})["metadata"]["resourceVersion"] for n in ("selector", "foreign")
    }
    conflicts = sorted((row["name"], row["kind"]) for row in result.json["conflicts"])
    assert (result.status, before) == (5, after)
    assert conflicts == sorted(
        [(f"{prefix}selector", "Service"), (f"{prefix}foreign", "Service"), (f"{prefix}endpoints", "Endpoints")]
    )


def test_adoption_takes_over_on_purpose(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """--adopt unowned makes a user's Service ours; a second pass finds nothing to do."""
    consul.register(f"{prefix}web", f"{prefix}vm", "10.77.1.1", 80)
    body = {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": f"{prefix}web"},
        "spec": {"ports": [{"port": 80, "protocol": "TCP"}]},
    }  # fmt: skip
    kube.json("POST", SERVICES.format(namespace=namespace), body)
    adopted = sync("--adopt", "unowned")
    again = sync()
    assert (adopted.status, adopted.json["conflicts"], again.json["changes"], again.json["conflicts"]) == (
        0,
        [],
        [],
        [],
    )
    assert ready_addresses(kube.endpoints(namespace, f"{prefix}web")) == [("10.77.1.1", 80)]


def test_the_guard_refuses_a_mass_removal_and_force_overrides_it(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """Twelve endpoints that vanish at once stay; exit status 3; --force removes them."""
    name = twelve(consul, prefix)
    sync()
    for n in range(1, 13):
        consul.deregister(name, f"{prefix}vm-{n:02}")
    held = sync()
    kept = ready_addresses(kube.endpoints(namespace, name))
    forced = sync("--force")
    assert (held.status, held.json["summary"]["held"], len(kept)) == (3, 1, 12)
    assert (forced.status, kube.endpoints(namespace, name)) == (0, None)


def test_purge_removes_what_the_owner_owns_and_nothing_else(
    lab: Lab, sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """Two owners in one namespace; one is purged."""
    consul.register(f"{prefix}one", f"{prefix}vm-1", "10.77.1.1", 80)
    env = environment(lab.consul.address, lab.kubeconfig)
    sync("--owner", "a", "--name", "a-{service}")
    sync("--owner", "b", "--name", "b-{service}")
    refused = bridge("purge", "--owner", "a", "--namespace", namespace, env=env)
    purged = bridge("purge", "--owner", "a", "--namespace", namespace, "--yes", env=env)
    found = kube.get(SERVICES.format(namespace=namespace)) or {}
    assert (refused.status, purged.status) == (2, 0)
    assert [item["metadata"]["name"] for item in found["items"]] == [f"b-{prefix}one"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--consul-address", "http://127.0.0.1:1"), 1, ("127.0.0.1:1", "Consul")),
        (("--datacenter", "nowhere"), 1, ("nowhere",)),
        (("--filter", "Nonsense =="), 1, ("filter",)),
        (("--context", "nosuch"), 2, ("nosuch", "context")),
        (("--namespace", "no-such-namespace"), 1, ("no-such-namespace",)),
        (("--owner", "not a label!"), 2, ("owner",)),
        (("--policy", "everything"), 2, ("policy",)),
        (("--name", "{nosuch}"), 2, ("nosuch",)),
        (("--config", "no-such-file.yaml"), 2, ("no-such-file.yaml",)),
    ],
)
def test_bad_input_is_answered_with_a_sentence_and_the_right_status(
    sync: Sync, consul: RawConsul, prefix: str, arguments: tuple[str, ...], status: int, words: tuple[str, ...]
) -> None:
    """The message names the place; no traceback; standard output stays for the machine."""
    consul.register(f"{prefix}web", f"{prefix}vm", "10.77.1.1", 80)
    result = sync(*arguments)
    assert (result.status, [w for w in words if w not in result.stderr], "Traceback" in result.stderr) == (
        status,
        [],
        False,
    )


def test_kubernetes_that_is_not_there_is_reported(sync: Sync, lab: Lab, tmp_path: Path, prefix: str) -> None:
    """A kubeconfig for a closed port: one sentence, exit status 1."""
    config = lab.write_kubeconfig("nowhere", "x", server="https://127.0.0.1:1")
    result = sync("--kubeconfig", str(config))
    assert (result.status, "127.0.0.1:1" in result.stderr, "Traceback" in result.stderr) == (1, True, False)


@pytest.mark.parametrize("output", ["table", "json", "yaml", "diff"])
def test_every_output_goes_to_standard_output_alone(sync: Sync, consul: RawConsul, prefix: str, output: str) -> None:
    """And names the service."""
    consul.register(f"{prefix}web", f"{prefix}vm", "10.77.1.1", 80)
    result = sync("--dry-run", output=output)
    assert (result.status, f"{prefix}web" in result.stdout, f"{prefix}web" in result.stderr) == (0, True, False)
