"""Whatever Consul answers about services: our own exceptions at most, and objects of the rule's namespace only."""

from __future__ import annotations

import contextlib
import json
import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.consul import decode, wire
from bridge.consul.client import Answer
from bridge.core import explain, select
from bridge.core.instances import host_names
from bridge.core.model import (
    ClusterNodes,
    Current,
    Destination,
    InstanceRules,
    Known,
    Output,
    Query,
    Rule,
    Skipped,
    Unknown,
)
from bridge.core.plan import plan
from bridge.core.translate import translate
from bridge.errors import TransientError
from bridge.kube import objects
from tests.unit.consul.builders import answer, read
from tests.unit.hostile.values import ADDRESSES, HUGE, JUNK, NUMBERS, TEXTS, mostly, one_of_each

META = st.dictionaries(TEXTS, mostly(TEXTS), max_size=3)
TAGGED = st.dictionaries(TEXTS, one_of_each(Address=ADDRESSES, Port=NUMBERS), max_size=2)
PORTS = st.lists(one_of_each(Name=TEXTS, Port=NUMBERS, Default=st.booleans()), max_size=3)
NODE = one_of_each(
    Node=TEXTS, Address=ADDRESSES, Meta=META, TaggedAddresses=st.dictionaries(TEXTS, mostly(ADDRESSES), max_size=2)
)
SERVICE = one_of_each(
    ID=TEXTS, Service=TEXTS, Address=ADDRESSES, Port=NUMBERS, Ports=PORTS, Tags=st.lists(mostly(TEXTS), max_size=3),
    Meta=META, TaggedAddresses=TAGGED, Kind=TEXTS,
)  # fmt: skip
CHECK = one_of_each(CheckID=TEXTS, Status=st.sampled_from(["passing", "critical", "warning", "", "\x1b"]), Output=TEXTS)
ENTRY = one_of_each(Node=NODE, Service=SERVICE, Checks=st.lists(CHECK, max_size=2))
RULES = st.builds(
    Rule,
    to=st.builds(
        Destination,
        namespace=st.just("shop"),
        name=st.sampled_from(["{service}", "x-{service}", "fixed"]),
        output=st.sampled_from(Output),
        labels_from=st.sampled_from([(), (("team", "meta:consul-bridge/owner"), ("tags", "tags"), ("rest", "tag:"))]),
        annotations_from=st.sampled_from([(), (("team", "meta:"), ("tags", "tags"))]),
        port=st.sampled_from([0, 80]),
    ),
    instances=st.builds(
        InstanceRules,
        address=st.sampled_from(["auto", "service", "node", "lan", ""]),
        deny_cidrs=st.sampled_from([(), ("fd00:ec2::254/128", "10.0.0.0/8")]),
    ),
)
SLOW = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@SLOW
@given(entries=mostly(st.lists(ENTRY, max_size=4)), name=TEXTS, rule=RULES)
def test_an_answer_becomes_objects_of_one_namespace_or_reasons(entries: Any, name: str, rule: Rule) -> None:
    """From JSON to the bodies that would be sent: nothing raises, nothing leaves the namespace or forges a mark."""
    try:
        known = decode.view_of(answer(entries))
    except TransientError:
        return
    assert isinstance(known, Known)
    assert all(len(text) <= 4096 for i in known.instances for text in (i.node, i.id, i.address, i.kind, *i.tags))
    assert all(len(text) <= 4096 for i in known.instances for pair in (*i.meta, *i.node_meta) for text in pair)
    assert all(0 <= i.port <= 65535 for i in known.instances)
    if select.excluded(name) is not None:
        return
    query = Query("dc1", name)
    target = select.target_of(rule, query)
    if isinstance(target, Skipped):
        return
    host_names(known.instances, rule)
    done = translate(target, [(rule, query, known)], None, {}, ClusterNodes({"vm"}))
    made = plan(target, done.mirror, Current(target), owner="me")
    for change in made.changes:
        body = objects.encode(change)
        sent = json.dumps(body).encode()
        assert len(sent) < 200_000
        metadata = body["metadata"]
        assert (metadata["namespace"], metadata["labels"]["consul-bridge/owner"]) == ("shop", "me")
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "consul-bridge"
        ours = {k for k in (*metadata["labels"], *metadata["annotations"]) if k.startswith("consul-bridge/")}
        assert ours <= {"consul-bridge/owner", "consul-bridge/service", "consul-bridge/datacenter"}
    for text in (*done.warnings, *(s.reason for s in done.skipped), *(s.instance for s in done.skipped)):
        assert text.isprintable()
        assert len(text) < 600
    explained = explain.explain(name, "dc1", tags=set(), rules=[rule], knowledge=known, plan=made)
    for row in explained.rows:
        assert all(
            str(v).isprintable() and len(str(v)) < 600 for v in (row.instance, row.check, row.chosen, row.reason)
        )


@SLOW
@given(data=mostly(st.dictionaries(TEXTS, mostly(st.lists(mostly(TEXTS), max_size=3)), max_size=4)), rule=RULES)
def test_a_listing_is_a_listing_or_trouble(data: Any, rule: Rule) -> None:
    """Names of any kind are selected or not, and have a target or a reason."""
    try:
        listing = decode.listing_of(answer(data, wire.LISTING))
    except TransientError:
        return
    assert not isinstance(listing, Unknown)
    for name in listing.services:
        why = select.excluded(name) or select.why_not(rule, name, "dc1")
        target = select.target_of(rule, Query("dc1", name))
        assert why is None or len(why) < 2000
        if not isinstance(target, Skipped):
            assert target.namespace == "shop"
            assert len(target.name) <= 63


CHECKS = one_of_each(Node=TEXTS, CheckID=TEXTS, ServiceName=TEXTS, Status=TEXTS, ModifyIndex=NUMBERS, ServiceID=TEXTS)
NODES = one_of_each(Node=TEXTS, CreateIndex=NUMBERS, ModifyIndex=NUMBERS)
ON_NODE = one_of_each(
    Node=NODES, Services=st.lists(one_of_each(Service=TEXTS, ID=TEXTS, ModifyIndex=NUMBERS), max_size=3)
)


@SLOW
@given(data=st.one_of(st.lists(CHECKS, max_size=4), st.lists(NODES, max_size=4), ON_NODE, JUNK))
def test_what_the_aggregate_watches_say_is_understood_or_trouble(data: Any) -> None:
    """Checks, nodes and what is on a node."""
    for of, shape in (
        (decode.checks_of, wire.CHECKS), (decode.nodes_of, wire.NODES), (decode.services_on, wire.ON_NODE),
    ):  # fmt: skip
        with contextlib.suppress(TransientError):
            of(answer(data, shape))


@pytest.mark.parametrize("place", ["Tags", "Meta", "Port", "Ports", "TaggedAddresses", "Kind"])
def test_nesting_as_deep_as_json_may_be_costs_one_field(place: str) -> None:
    """Just below Python's own limit, where `json` still reads it: the other instance stays."""
    good = {"Node": {"Node": "vm", "Address": "10.0.0.1"}, "Service": {"ID": "b", "Port": 80}}
    bad = {"Node": {"Node": "vm", "Address": "10.0.0.2"}, "Service": {"ID": "a", "Port": 80, place: None}}
    depth = sys.getrecursionlimit() // 3
    text = json.dumps([good, bad]).replace("null", '{"a":[' * depth + "]}" * depth)
    found, left_out = decode.instances(wire.HEALTH.read(text.encode()))
    assert ([i.id for i in found], left_out) == (["a", "b"], ())


def test_ten_thousand_instances_with_one_id_are_bounded() -> None:
    """They are folded into one endpoint, in memory that is a small multiple of their number."""
    entry = {
        "Node": {"Node": "vm", "Address": "10.0.0.1", "Meta": {HUGE: "x"}},
        "Service": {"ID": "same", "Port": 80, "Tags": [HUGE, "t"], "Meta": {"k": HUGE, HUGE: "v", "ok": "1"}},
    }
    told = Answer(1, [*read([entry]) * 10_000])
    tracemalloc.start()
    known = decode.view_of(told)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(known, Known)
    assert peak < 20 * 1024 * 1024
    assert known.instances[0].meta == (("ok", "1"),)
    query, rule = Query("dc1", "web"), Rule(to=Destination(namespace="shop"))
    target = select.target_of(rule, query)
    assert not isinstance(target, Skipped)
    mirror = translate(target, [(rule, query, known)]).mirror
    assert mirror is not None
    assert mirror.ready == 1


def _instance(number: int, **service: Any) -> dict[str, Any]:
    return {
        "Node": {"Node": f"vm-{number}", "Address": f"10.0.{number // 250}.{number % 250 + 1}"},
        "Service": {"ID": f"web-{number}", "Port": 80, **service},
        "Checks": [{"CheckID": "a", "Status": "passing"}],
    }


def _many_checks(count: int) -> list[Any]:
    checks = [{"CheckID": f"c-{n}", "Status": "critical", "Output": "x"} for n in range(count)]
    return [{**_instance(0), "Checks": checks}]


MANY: dict[str, Callable[[int], list[Any]]] = {
    "instances": lambda n: [_instance(i) for i in range(n)],
    "instances with one id": lambda n: [_instance(0)] * n,
    "instances with one address": lambda n: [_instance(i, Address="10.9.9.9") for i in range(n)],
    "instances with a port each": lambda n: [_instance(i, Port=1024 + i) for i in range(n)],
    "tags": lambda n: [_instance(0, Tags=[f"t-{i}" for i in range(n)])],
    "meta": lambda n: [_instance(0, Meta={f"k-{i}": "v" for i in range(n)})],
    "ports": lambda n: [_instance(0, Ports=[{"Name": f"p-{i}", "Port": 1024 + i} for i in range(n)])],
    "tagged addresses": lambda n: [
        _instance(0, TaggedAddresses={f"a-{i}": {"Address": "10.0.0.1", "Port": 80} for i in range(n)})
    ],
    "checks": _many_checks,
    "host names": lambda n: [_instance(i, Address=f"vm-{i}.example") for i in range(n)],
    "addresses of no host": lambda n: [_instance(i, Address="127.0.0.1") for i in range(n)],
}
"""Answers that grow in one way each."""


@pytest.mark.parametrize("way", MANY)
def test_work_grows_with_the_answer_and_not_faster(way: str) -> None:
    """In lines of Python that are executed, from the JSON to the plan: four times as much for four times as many.

    Of a second look at the same answer: what the first one leaves in the caches is there whatever ran before.
    """
    query = Query("dc1", "web")
    rule = Rule(to=Destination(namespace="shop", labels_from=(("tags", "tags"),)))
    target = select.target_of(rule, query)
    assert not isinstance(target, Skipped)

    def lines(count: int) -> int:
        told = answer(MANY[way](count))
        executed = 0

        def trace(_frame: FrameType, event: str, _argument: object) -> Any:
            nonlocal executed
            executed += event == "line"
            return trace

        def look() -> None:
            known = decode.view_of(told)
            assert isinstance(known, Known)
            host_names(known.instances, rule)
            done = translate(target, [(rule, query, known)])
            plan(target, done.mirror, Current(target), owner="me")

        look()
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            look()
        finally:
            sys.settrace(before)
        return executed

    few, many = lines(250), lines(1000)
    assert many < 4.6 * few
