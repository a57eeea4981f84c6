"""Whatever we send we compare, and whatever changes stands in the plan: edits by others, on both servers.

A pass here is the real one (translate, plan, write) over what the server holds, with nothing in between.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bridge.core import ownership
from bridge.core.model import (
    SERVICE_KINDS,
    Change,
    ClusterNodes,
    Current,
    CurrentEndpoints,
    CurrentService,
    CurrentSlice,
    Destination,
    Instance,
    Kind,
    Known,
    Output,
    Plan,
    Query,
    Rule,
    ServiceBody,
    Target,
)
from bridge.core.plan import plan
from bridge.core.translate import translate
from bridge.errors import PermanentError
from bridge.kube import objects
from bridge.kube.writer import Writer
from bridge.render.diff import body_lines, diff
from bridge.report import Outcome
from tests.contract.sides import BOTH, kube_side
from tests.support.raw import RawKube
from tests.unit.core.builders import instance

Json = dict[str, Any]
Path_ = tuple[str | int, ...]


@dataclass
class Side:
    """One of the two servers, with a namespace on it and a service that is mirrored there."""

    raw: RawKube
    writer: Writer
    target: Target

    def path(self, kind: Kind, name: str = "radosgw") -> str:
        return objects.path(kind, self.target.namespace, name)

    def stored(self, kind: Kind) -> list[Json]:
        """The objects of a kind at the target, as they are."""
        if kind is not Kind.ENDPOINT_SLICE:
            found = self.raw.get(self.path(kind))
            return [found] if found is not None else []
        mine = f"{ownership.SLICE_SERVICE}=radosgw,{ownership.SLICE_MANAGED_BY}=consul-bridge"
        return list((self.raw.get(f"{self.path(kind, '')}?labelSelector={mine}") or {})["items"])

    def current(self) -> Current:
        """What exists."""
        service, endpoints = (
            next((objects.decode(kind, raw) for raw in self.stored(kind)), None)
            for kind in (Kind.SERVICE, Kind.ENDPOINTS)
        )
        assert service is None or isinstance(service, CurrentService)
        assert endpoints is None or isinstance(endpoints, CurrentEndpoints)
        slices = [objects.decode_slice(raw) for raw in self.stored(Kind.ENDPOINT_SLICE)]
        return Current(self.target, service, endpoints, tuple(s for s in slices if isinstance(s, CurrentSlice)))

    def plan(self, rule: Rule, *found: Instance) -> Plan:
        """What a pass would do."""
        current = self.current()
        known = [(rule, Query("dc1", "radosgw"), Known(found or (instance(node_meta=(("zone", "a"),)),)))]
        translation = translate(self.target, known, current, cluster_nodes=ClusterNodes(["vm-10.0.0.1"]))
        return plan(self.target, translation.mirror, current, owner="default", warnings=translation.warnings)

    def make_a_pass(self, rule: Rule, *found: Instance) -> Plan:
        """Do it."""
        made = self.plan(rule, *found)
        for change in made.writes:
            self.writer.apply(change)
        return made

    def edit(self, kind: Kind, path: Path_, value: Any) -> None:
        """`kubectl edit`: a field has another value now."""
        (held,) = self.stored(kind)
        body = copy.deepcopy(held)
        body["metadata"].pop("managedFields")
        node: Any = body
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = value
        self.raw.json("PUT", f"{self.path(kind, held['metadata']['name'])}?fieldManager=kubectl-edit", body)

    def patch_service(self, spec: Json) -> None:
        """`kubectl patch service --type merge`."""
        self.raw.json(
            "PATCH",
            f"{self.path(Kind.SERVICE)}?fieldManager=kubectl-patch",
            {"spec": spec},
            "application/merge-patch+json",
        )

    def names(self) -> tuple[set[str], set[str]]:
        """The names of the ports of the Service, and of the endpoints behind it."""
        (service,), found = self.stored(Kind.SERVICE), self.stored(Kind.ENDPOINTS)
        subsets = [s for e in found for s in e.get("subsets", [])] + self.stored(Kind.ENDPOINT_SLICE)
        return (
            {p.get("name", "") for p in service["spec"]["ports"]},
            {p.get("name", "") for s in subsets for p in s.get("ports") or []},
        )


@pytest.fixture(params=BOTH)
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Side]:
    """The fake, or the lab's API server with a namespace that is deleted afterwards."""
    with kube_side(request, tmp_path, "fields") as made:
        yield Side(made.raw, Writer(made.client), Target(made.namespace, "radosgw"))


def rule(**to: Any) -> Rule:
    """A rule that differs from the default in its destination."""
    return Rule(to=Destination(**to))


# --------------------------------------------------------------------------- every field


FULL: Json = {
    "type": "NodePort",
    "port": 80,
    "port_name": "http",
    "app_protocol": "http",
    "labels": (("team", "storage"),),
    "annotations": (("note", "ours"),),
    "output": Output.BOTH,
}
"""A destination that sets everything."""

EDITS: Json = {
    "type": "LoadBalancer", "ipFamilyPolicy": "PreferDualStack", "name": "edited", "port": 81, "protocol": "UDP",
    "targetPort": 9, "appProtocol": "example.com/edited", "ip": "10.66.6.6", "addresses": "10.66.6.6", "zone": "edited",
    "nodeName": "edited", "ready": False, "serving": False, "terminating": True,
}  # fmt: skip
"""What others make of a field, by its last name."""

IMMUTABLE = {"addressType", "ipFamilies"}
"""Others cannot change them either (422; of the families only the first)."""


def leaves(node: Any, path: Path_ = ()) -> Iterator[Path_]:
    """The paths of everything in a body that has no parts."""
    if isinstance(node, dict | list):
        for key, inner in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(inner, (*path, key))
    else:
        yield path


def edits(change: Change) -> Iterator[tuple[Path_, Any]]:
    """An edit of each field that `change` sends; of the labels and annotations those that are no ownership labels."""
    body = objects.encode(change)
    pairs = body["metadata"].pop("labels"), body["metadata"].pop("annotations")
    for field, found in zip(("labels", "annotations"), pairs, strict=True):
        yield from ((("metadata", field, key), "edited") for key in found if "/" not in key)
    for path in leaves({k: v for k, v in body.items() if k not in ("apiVersion", "kind", "metadata")}):
        name = next(part for part in reversed(path) if isinstance(part, str))
        if name not in IMMUTABLE:
            yield path, EDITS[name]


def shows(before: Current, made: Plan) -> bool:
    """Whether the diff of a plan has a line for every change that it would make."""
    report = SimpleNamespace(outcomes=[Outcome(made, before=before)], dry_run=True)
    files = diff(report).split("--- ")[1:]  # type: ignore[arg-type]  # all that it reads of a report
    return len(files) == len(made.writes) and all("\n@@ " in file for file in files)


@pytest.mark.parametrize("kind", SERVICE_KINDS)
def test_an_edit_of_any_field_that_we_send_is_seen_and_put_back(side: Side, kind: Kind) -> None:
    """Each by itself: the next plan has it, with a diff that shows it, and the pass after that has nothing to do."""
    by = rule(**FULL)
    made = side.make_a_pass(by)
    (change,) = [c for c in made.writes if c.kind is kind]
    (before,) = side.stored(kind)
    seen = []
    for path, value in edits(change):
        side.edit(kind, path, value)
        if path[-1] == "ipFamilyPolicy":
            continue  # a Service that is asked to have both families keeps them: see below
        assert shows(side.current(), side.plan(by)), path
        done = side.make_a_pass(by)
        assert {c.kind for c in done.writes} == {kind}, path  # of slices a new one comes and the edited one goes
        assert side.plan(by).writes == (), path
        (after,) = side.stored(kind)
        assert [after.get(k) for k in ("subsets", "endpoints", "ports")] == [
            before.get(k) for k in ("subsets", "endpoints", "ports")
        ], path
        seen.append(path[-1])
    assert len(seen) >= {Kind.SERVICE: 8, Kind.ENDPOINTS: 7, Kind.ENDPOINT_SLICE: 12}[kind]


def test_what_others_put_into_our_endpoints_is_seen_as_well(side: Side) -> None:
    """The lists are ours as a whole: a field that we do not know would go unseen with the next change otherwise."""
    by = rule(output=Output.BOTH)
    side.make_a_pass(by)
    side.edit(Kind.ENDPOINT_SLICE, ("endpoints", 0, "hints"), {"forZones": [{"name": "b"}]})
    assert [c.kind for c in side.make_a_pass(by).writes] == [Kind.ENDPOINT_SLICE]
    side.edit(Kind.ENDPOINTS, ("subsets", 0, "addresses", 0, "hostname"), "edited")
    assert [c.kind for c in side.make_a_pass(by).writes] == [Kind.ENDPOINTS]
    assert side.plan(by).writes == ()


# --------------------------------------------------------------------------- what is left to others


LEFT: list[Json] = [
    {"type": "NodePort"},
    {"type": "LoadBalancer", "externalTrafficPolicy": "Local"},
    {"ipFamilyPolicy": "PreferDualStack"},
    {"publishNotReadyAddresses": True},
    {"internalTrafficPolicy": "Local"},
    {"trafficDistribution": "PreferClose"},
    {"sessionAffinity": "ClientIP"},
]


@pytest.mark.parametrize("spec", LEFT, ids=lambda spec: ", ".join(spec))
def test_a_field_that_no_rule_sets_stays_as_others_set_it(side: Side, spec: Json) -> None:
    """Also when something else is written later, which shows in the diff and changes nothing but that."""
    side.make_a_pass(rule())
    side.patch_service(spec)
    assert [c.kind for c in side.make_a_pass(rule()).writes if c.kind is Kind.SERVICE] == []
    later = rule(labels=(("team", "storage"),))
    (change,) = [c for c in side.make_a_pass(later).writes if c.kind is Kind.SERVICE]
    (stored,) = side.stored(Kind.SERVICE)
    assert {key: stored["spec"].get(key) for key in spec} == spec
    assert stored["metadata"]["labels"]["team"] == "storage"
    assert change.body is not None
    assert ("type: " + spec.get("type", "ClusterIP")) in body_lines(change.body)
    assert side.plan(later).writes == ()


def test_an_application_protocol_of_others_stays_and_ours_goes_with_the_rule(side: Side) -> None:
    """Whose field it is decides."""
    side.make_a_pass(rule())
    side.patch_service({"ports": [{"port": 8080, "protocol": "TCP", "targetPort": 8080, "appProtocol": "http"}]})
    assert side.plan(rule()).writes == ()
    side.make_a_pass(rule(app_protocol="kubernetes.io/h2c"))
    assert side.stored(Kind.SERVICE)[0]["spec"]["ports"][0]["appProtocol"] == "kubernetes.io/h2c"
    side.make_a_pass(rule())
    assert "appProtocol" not in side.stored(Kind.SERVICE)[0]["spec"]["ports"][0]
    assert side.plan(rule()).writes == ()


def test_a_type_that_the_rule_no_longer_sets_is_given_up(side: Side) -> None:
    """It falls back to ClusterIP; one that the rule sets replaces what others set."""
    side.make_a_pass(rule(type="NodePort"))
    assert side.stored(Kind.SERVICE)[0]["spec"]["type"] == "NodePort"
    side.make_a_pass(rule())
    assert side.stored(Kind.SERVICE)[0]["spec"]["type"] == "ClusterIP"
    assert side.plan(rule()).writes == ()
    side.patch_service({"type": "LoadBalancer"})
    side.make_a_pass(rule(type="ClusterIP"))
    assert side.stored(Kind.SERVICE)[0]["spec"]["type"] == "ClusterIP"
    assert side.plan(rule(type="ClusterIP")).writes == ()


# --------------------------------------------------------------------------- ports that others add


@pytest.mark.parametrize(
    "ports",
    [
        [{"name": "web", "port": 8080}, {"name": "more", "port": 9}],
        [{"name": "web", "port": 81, "targetPort": 8080}, {"name": "more", "port": 9}],
        [{"name": "web", "port": 81}],
        [{"name": "more", "port": 8080, "protocol": "UDP"}, {"name": "web", "port": 8080}],
    ],
    ids=["the old one is named", "neither has the old number", "another number and name", "another protocol"],
)
@pytest.mark.parametrize("output", [Output.ENDPOINTS, Output.BOTH])
def test_ports_that_a_user_adds_or_renames_are_put_back_in_one_pass(
    side: Side, ports: list[Json], output: Output
) -> None:
    """Names are equal on both sides after one pass, and the second finds nothing to do."""
    by = rule(output=output)
    side.make_a_pass(by)
    side.patch_service({"ports": ports})
    side.make_a_pass(by)
    service, endpoints = side.names()
    assert (service, len(side.stored(Kind.SERVICE)[0]["spec"]["ports"])) == (endpoints, 1)
    assert side.plan(by).writes == ()


def test_node_ports_survive_when_ports_are_put_back(side: Side) -> None:
    """Load balancers outside know them by number."""
    side.make_a_pass(rule(type="NodePort"))
    (before,) = side.stored(Kind.SERVICE)[0]["spec"]["ports"]
    if "nodePort" not in before:
        pytest.skip("the fake gives no node ports")
    side.patch_service({"ports": [{**before, "name": "web"}, {"name": "more", "port": 9}]})
    side.make_a_pass(rule(type="NodePort"))
    assert side.stored(Kind.SERVICE)[0]["spec"]["ports"] == [before]


def test_a_refused_service_leaves_the_existing_one_unchanged(side: Side) -> None:
    """The ports are replaced in one request: refused, it has changed nothing."""
    side.make_a_pass(rule())
    side.patch_service({"ports": [{"name": "web", "port": 8080}, {"name": "more", "port": 9}]})
    before = side.stored(Kind.SERVICE)
    (change, *_) = side.plan(rule()).writes
    assert isinstance(change.body, ServiceBody)
    bad = replace(change, body=replace(change.body, target_ports=(70000,)))
    with pytest.raises(PermanentError, match="targetPort"):
        side.writer.apply(bad)
    assert side.stored(Kind.SERVICE) == before


def test_a_port_that_a_user_adds_to_a_headless_service_without_ports_goes_again(side: Side) -> None:
    """It is there for DNS alone; no endpoint has the port."""
    by, found = rule(headless=True, output=Output.BOTH), instance(port=0)
    side.make_a_pass(by, found)
    assert "ports" not in side.stored(Kind.SERVICE)[0]["spec"]
    side.patch_service({"ports": [{"name": "web", "port": 80}]})
    side.make_a_pass(by, found)
    assert not side.stored(Kind.SERVICE)[0]["spec"].get("ports")
    assert side.plan(by, found).writes == ()
