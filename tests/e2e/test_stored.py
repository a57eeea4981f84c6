"""What admission makes of our writes on the way, with a real MutatingAdmissionPolicy: what is stored is the state."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.lab import Lab
from tests.support.program import Daemon, Result, bridge, environment
from tests.support.raw import ENDPOINTS, SERVICES, RawConsul, RawKube, ready_addresses

pytestmark = [pytest.mark.lab, pytest.mark.slow]

Json = dict[str, Any]
Eventually = Callable[..., None]
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
KINDS = ("mutatingadmissionpolicies", "mutatingadmissionpolicybindings")
OWNER = "consul-bridge~1owner"


class Mutation:
    """A policy that patches what is written to Endpoints in one namespace."""

    def __init__(self, kube: RawKube, namespace: str) -> None:
        self._kube, self._namespace, self._name = kube, namespace, f"mutate-{namespace}"

    def begin(self, *operations: str) -> None:
        """Apply JSON patch operations (CEL) from now on; returns when the API server does so."""
        head = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": self._name}}
        rules = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"]}
        policy = {
            "failurePolicy": "Fail", "reinvocationPolicy": "Never",
            "matchConstraints": {"resourceRules": [{**rules, "resources": ["endpoints"]}]},
            "matchConditions": [{"name": "here", "expression": f"request.namespace == '{self._namespace}'"}],
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": f"[{', '.join(operations)}]"}}],
        }  # fmt: skip
        bodies: Sequence[tuple[str, str, Json]] = (
            (KINDS[0], "MutatingAdmissionPolicy", policy),
            (KINDS[1], "MutatingAdmissionPolicyBinding", {"policyName": self._name}),
        )
        for plural, kind, spec in bodies:
            self._kube.json("POST", f"{ADMISSION}/{plural}", {**head, "kind": kind, "spec": spec})
        probe = {"metadata": {"name": "probe", "labels": {"consul-bridge/owner": "x", "team": "x"}}}
        subsets = [{"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "ports": [{"port": 1, "protocol": "TCP"}]}]
        deadline = time.monotonic() + 30
        while True:
            asked = {"apiVersion": "v1", "kind": "Endpoints", **probe, "subsets": subsets}
            path = ENDPOINTS.format(namespace=self._namespace)
            found = self._kube.json("POST", f"{path}?dryRun=All", asked)
            if (found["metadata"].get("labels"), found.get("subsets")) != (probe["metadata"]["labels"], subsets):
                return
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def end(self) -> None:
        """No more."""
        for plural in reversed(KINDS):
            self._kube.send("DELETE", f"{ADMISSION}/{plural}/{self._name}")


@pytest.fixture
def mutation(kube: RawKube, namespace: str) -> Iterator[Mutation]:
    """Nothing is changed yet, nor afterwards."""
    made = Mutation(kube, namespace)
    yield made
    made.end()


def sync(lab: Lab, folder: Path, namespace: str, rule: Json, *arguments: str, command: str = "sync") -> Result:
    """One command with one rule."""
    file = folder / "bridge.yaml"
    file.write_text(yaml.safe_dump({"rules": [{**rule, "to": {"namespace": namespace, **rule.get("to", {})}}]}))
    further = ("--yes",) if command == "sync" else ()
    env = environment(lab.consul.address, lab.kubeconfig)
    return bridge(command, "--config", str(file), "-o", "json", *further, *arguments, env=env)


DROP = 'JSONPatch{op: "remove", path: "/subsets/0/addresses/0"}'
LABEL = 'JSONPatch{op: "add", path: "/metadata/labels/team", value: "theirs"}'
STRIP = f'JSONPatch{{op: "remove", path: "/metadata/labels/{OWNER}"}}'


def test_what_is_stored_otherwise_than_written_fails_every_sync_and_names_the_field(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, tmp_path: Path, mutation: Mutation
) -> None:
    """An address that is dropped, a label that is overridden: not green, and not in sync, however often it runs."""
    name = f"{prefix}web"
    consul.register(name, f"{prefix}vm-1", "10.77.1.1", 80)
    consul.register(name, f"{prefix}vm-2", "10.77.1.2", 80)
    rule = {"services": [name], "to": {"output": "endpoints", "labels": {"team": "ours"}}}
    mutation.begin(DROP, LABEL)
    for _ in range(2):
        result = sync(lab, tmp_path, namespace, rule)
        (failed,) = [row for row in result.json["failed"] if row["kind"] == "Endpoints"]
        assert (result.status, failed["reason"]) == (1, "altered")
        assert "subsets: 10.77.1.1 is gone" in failed["message"]
        assert "metadata.labels[team] is 'theirs', not 'ours'" in failed["message"]
        assert "mutatingadmissionpolicies" in failed["message"]
    (row,) = sync(lab, tmp_path, namespace, rule, command="status").json["services"]
    assert row["state"] != "in_sync"
    mutation.end()
    deadline = time.monotonic() + 30
    while (result := sync(lab, tmp_path, namespace, rule)).status:
        assert time.monotonic() < deadline
    assert ready_addresses(kube.endpoints(namespace, name)) == [("10.77.1.1", 80), ("10.77.1.2", 80)]


def test_an_object_whose_labels_are_taken_off_is_named_as_ours(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, tmp_path: Path, mutation: Mutation
) -> None:
    """The first pass says what is gone; the next finds an object by our field manager and says so."""
    name = f"{prefix}web"
    consul.register(name, f"{prefix}vm-1", "10.77.1.1", 80)
    rule = {"services": [name], "to": {"output": "endpoints"}}
    mutation.begin(STRIP)
    first = sync(lab, tmp_path, namespace, rule)
    assert [row["reason"] for row in first.json["failed"]] == ["altered"]
    assert "metadata.labels[consul-bridge/owner] is gone" in first.json["failed"][0]["message"]
    second = sync(lab, tmp_path, namespace, rule)
    (conflict,) = second.json["conflicts"]
    assert (conflict["kind"], conflict["reason"]) == ("Endpoints", "unlabelled")
    assert "consul-bridge/owner=default" in conflict["message"]


@pytest.mark.parametrize("between", [False, True], ids=["at once", "after a pass"])
def test_labels_that_a_rule_drops_go_from_objects_that_were_restored(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, tmp_path: Path, between: bool
) -> None:
    """A backup has no managedFields: who restored the objects owns all of it. What users add stays theirs."""
    name = f"{prefix}web"
    consul.register(name, f"{prefix}vm-1", "10.77.1.1", 80)
    said = {"labels": {"team": "ours", "tier": "web"}, "annotations": {"note": "x"}, "output": "endpoints"}
    assert sync(lab, tmp_path, namespace, {"services": [name], "to": said}).status == 0
    paths = [f"{kind.format(namespace=namespace)}" for kind in (SERVICES, ENDPOINTS)]
    saved = {path: kube.json("GET", f"{path}/{name}") for path in paths}
    for path, body in saved.items():
        kube.send("DELETE", f"{path}/{name}")
        for field in ("managedFields", "uid", "resourceVersion", "creationTimestamp"):
            body["metadata"].pop(field, None)
        body.get("spec", {}).pop("clusterIP", None)
        body.get("spec", {}).pop("clusterIPs", None)
        kube.json("POST", f"{path}?fieldManager=velero-server", body)
        mine = {"metadata": {"labels": {"mine": "yes"}}}
        kube.json("PATCH", f"{path}/{name}?fieldManager=kubectl-label", mine, "application/merge-patch+json")
    if between:
        assert sync(lab, tmp_path, namespace, {"services": [name], "to": said}).status == 0
    rule = {"services": [name], "to": {"labels": {"tier": "web"}, "output": "endpoints"}}
    assert sync(lab, tmp_path, namespace, rule).status == 0
    for path in paths:
        metadata = kube.json("GET", f"{path}/{name}")["metadata"]
        labels = {key: value for key, value in metadata["labels"].items() if key in ("team", "tier", "mine")}
        assert (labels, "note" in metadata["annotations"]) == ({"tier": "web", "mine": "yes"}, False)
    assert sync(lab, tmp_path, namespace, rule).json["summary"]["unchanged"] == 2


def test_admission_that_reverts_writes_is_reported_once_and_slows_them_down(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Eventually, mutation: Mutation
) -> None:
    """Failed, counted, one line in the log, a handful of writes; what Consul changes is still written at once."""
    name = f"{prefix}web"
    for n in (1, 2, 3):
        consul.register(name, f"{prefix}vm-{n}", f"10.77.1.{n}", 80)
    mutation.begin(DROP)
    began = time.time()
    env = environment(lab.consul.address, lab.kubeconfig)
    arguments = (
        "--service",
        f"{prefix}*",
        "--namespace",
        namespace,
        "--output-kind",
        "endpoints",
        "--log-format",
        "json",
    )
    daemon = Daemon(lab, f"bridge-{namespace}", *arguments, env=env)
    daemon.start()
    try:
        eventually(lambda: daemon.metric('consul_bridge_errors_total{kind="altered"}') >= 1, True)
        (row,) = json.loads(daemon.get("/api/status")[1])["report"]["failed"]
        assert (row["reason"], "10.77.1.1 is gone" in row["message"]) == ("altered", True)
        time.sleep(8)
        patches = [
            e for e in lab.audit(since=began) if e.verb == "patch" and e.resource == "endpoints" and e.name == name
        ]
        assert 2 <= len(patches) <= 6
        told = [line for line in daemon.log.read_text().splitlines() if "is not stored as it was written" in line]
        assert len(told) == 1
        consul.deregister(name, f"{prefix}vm-3")
        eventually(lambda: ready_addresses(kube.endpoints(namespace, name)), [("10.77.1.2", 80)], seconds=5.0)
    finally:
        daemon.stop()
