"""Raw JSON becomes what it proves, and nothing that a user registers can make it raise."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.consul import decode, wire
from bridge.consul.client import Answer
from bridge.core.model import Instance, Known, Listing, NamedPort, Status, TaggedAddress, Unknown
from bridge.errors import TransientError
from bridge.json_shape import Shape
from tests.unit.consul.builders import answer, read
from tests.unit.core.builders import said

PASSING, WARNING, CRITICAL = "passing", "warning", "critical"
SHAPES: dict[Callable[[Answer], Any], Shape[Any]] = {
    decode.view_of: wire.HEALTH,
    decode.listing_of: wire.LISTING,
    decode.checks_of: wire.CHECKS,
    decode.nodes_of: wire.NODES,
    decode.services_on: wire.ON_NODE,
}


def entry(**changes: Any) -> dict[str, Any]:
    service = {
        "ID": "web-1", "Service": "web", "Address": "10.0.0.9", "Port": 8080, "Tags": ["b", "a", "a"],
        "Meta": {"version": "1"}, "TaggedAddresses": {"lan": {"Address": "10.0.0.9", "Port": 8080}},
    }  # fmt: skip
    node = {
        "Node": "vm-1", "Address": "10.0.0.1", "Meta": {"zone": "a"}, "TaggedAddresses": {"lan": "10.0.0.1"},
    }  # fmt: skip
    return {
        "Node": node | changes.get("node", {}),
        "Service": service | changes.get("service", {}),
        "Checks": changes.get("checks", [check("web", PASSING)]),
    }


def check(identity: str, status: Any) -> dict[str, Any]:
    return {"CheckID": identity, "Status": status, "Output": "secret output"}


def instances(data: list[Any]) -> tuple[Instance, ...]:
    """Those of an answer of which nothing is left out."""
    found, left_out = decode.instances(read(data))
    assert left_out == ()
    return found


def test_an_instance_carries_everything_that_the_rules_need() -> None:
    assert instances([entry()]) == (
        Instance(
            node="vm-1",
            id="web-1",
            address="10.0.0.9",
            node_address="10.0.0.1",
            port=8080,
            status=Status.PASSING,
            tags=("a", "b"),
            meta=(("version", "1"),),
            node_meta=(("zone", "a"),),
            tagged_addresses=(TaggedAddress("lan", "10.0.0.9", 8080),),
            node_tagged_addresses=(TaggedAddress("lan", "10.0.0.1"),),
        ),
    )


def test_several_ports_keep_their_names_and_the_default() -> None:
    ports = [{"Name": "web", "Port": 8080, "Default": True}, {"Name": "admin", "Port": 9000}]
    (instance,) = instances([entry(service={"Ports": ports})])
    assert instance.ports == (NamedPort("admin", 9000), NamedPort("web", 8080, default=True))


def test_instances_are_sorted_whatever_the_order_of_the_answer() -> None:
    entries = [entry(node={"Node": n}, service={"ID": i}) for n in "cab" for i in "21"]
    assert [(i.node, i.id) for i in instances(entries)] == [(n, i) for n in "abc" for i in "12"]


@pytest.mark.parametrize(
    ("checks", "status", "decided"),
    [
        ([], Status.PASSING, ""),
        (None, Status.PASSING, ""),
        ([check("a", PASSING), check("b", PASSING)], Status.PASSING, ""),
        ([check("a", PASSING), check("b", WARNING)], Status.WARNING, "b"),
        ([check("a", "foo"), check("b", WARNING)], Status.UNKNOWN, "a"),
        ([check("a", "foo"), check("b", CRITICAL)], Status.CRITICAL, "b"),
        ([check("_node_maintenance", CRITICAL), check("b", CRITICAL)], Status.MAINTENANCE, "_node_maintenance"),
        (
            [check("b", CRITICAL), check("_service_maintenance:x", CRITICAL)],
            Status.MAINTENANCE,
            "_service_maintenance:x",
        ),
        ([check("x:overall-check", "maintenance")], Status.MAINTENANCE, "x:overall-check"),  # of a peer
        ([check("b", CRITICAL), check("a", CRITICAL)], Status.CRITICAL, "a"),
        ([check("a", None)], Status.UNKNOWN, "a"),
        ([check("a", ["passing"])], Status.UNKNOWN, "a"),
        (["not a check"], Status.UNKNOWN, ""),
        ("not a list", Status.UNKNOWN, ""),
    ],
)
def test_the_worst_check_decides(checks: Any, status: Status, decided: str) -> None:
    (found,) = read([entry(checks=checks)])
    assert decode.worst(found.checks or ()) == (status, decided)


@pytest.mark.parametrize(
    ("checks", "output"),
    [
        ([check("a", PASSING)], ""),
        (
            [{**check("a", PASSING), "Output": "200 OK"}, {**check("b", CRITICAL), "Output": "503\n\t down "}],
            "503 down",
        ),
        ([{**check("a", CRITICAL), "Output": "x" * 5000}], "x" * decode.OUTPUT_LIMIT),
        ([{**check("_node_maintenance", CRITICAL), "Output": "", "Notes": "disk swap"}], "disk swap"),
        ([{**check("a", CRITICAL), "Output": ["no text"]}], ""),
        ("no list", ""),
        ([17, {**check("", "strange"), "Output": "never reached"}], ""),
    ],
)
def test_the_output_of_the_check_that_decided_is_kept_cut_and_is_no_part_of_what_changes(
    checks: Any, output: str
) -> None:
    (found,) = instances([entry(checks=checks)])
    assert found.output == output
    assert output not in repr(found) or not output
    assert found == replace(found, output="something else")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"service": {"Address": None}}, ("", "10.0.0.1", 8080)),
        ({"service": {"Port": "8080"}}, ("10.0.0.9", "10.0.0.1", 0)),
        ({"service": {"Port": 70000}}, ("10.0.0.9", "10.0.0.1", 70000)),
        ({"service": {"Port": True}}, ("10.0.0.9", "10.0.0.1", 0)),
        ({"service": {"Port": -1}}, ("10.0.0.9", "10.0.0.1", -1)),
        ({"node": {"Address": None}}, ("10.0.0.9", "", 8080)),
    ],
)
def test_odd_values_become_absent_ones(change: dict[str, Any], expected: tuple[str, str, int]) -> None:
    (instance,) = instances([entry(**change)])
    assert (instance.address, instance.node_address, instance.port) == expected


@pytest.mark.parametrize(
    "broken",
    [None, 7, "x", [], {}, {"error": "x"}, {"Node": None}, {"Node": {}, "Service": {}}, entry(service={"ID": None}),
     entry(node={"Node": 5}), entry(service={"Address": 5}), entry(service={"Address": []}),
     entry(node={"Address": ["10.0.0.1"]})],
)  # fmt: skip
@pytest.mark.parametrize("others", [[], [entry()]], ids=["alone", "with another"])
def test_an_entry_that_no_consul_serves_makes_the_answer_trouble(broken: Any, others: list[Any]) -> None:
    """No one can register such a thing: another client answered, and what else it left out is unknown."""
    with pytest.raises(TransientError, match=r"at `\$\[0\]"):  # the place in the answer
        decode.view_of(answer([broken, *others]))


@pytest.mark.parametrize(
    ("odd", "name", "reason"),
    [
        ({"service": {"ID": ""}}, "vm-1/", "its id has 0 characters, not 1 to 4096"),
        ({"service": {"ID": "i" * 5000}}, f"vm-1/{'i' * 79}…", "its id has 5000 characters, not 1 to 4096"),
        ({"node": {"Node": "n" * 5000}}, f"{'n' * 79}…/odd", "its node's name has 5000 characters, not 1 to 4096"),
        ({"service": {"ID": "odd", "Address": "x" * 600}}, "vm-1/odd", "its address has 600 characters, more than 512"),
        ({"node": {"Address": "x" * 600}}, "vm-1/odd", "its address has 600 characters, more than 512"),
    ],
    ids=["no id", "id", "node", "address", "node's address"],
)
def test_instances_that_cannot_be_used_are_left_out_with_their_reason(
    odd: dict[str, Any], name: str, reason: str
) -> None:
    """It neither hides nor freezes the other instances."""
    parts = {"service": {"ID": "odd"}} | odd
    view = decode.view_of(answer([entry(**parts), entry()]))
    assert view == Known(instances([entry()]), invalid=((name, said(reason)),))


@pytest.mark.parametrize(
    ("of", "data"),
    [
        (decode.listing_of, {"error": "try again"}),
        (decode.listing_of, {"web": ["a"], "db": 7}),
        (decode.checks_of, [{"CheckID": "a"}, None]),
        (decode.nodes_of, [{"Node": "vm"}, {"error": "x"}]),
        (decode.nodes_of, [7]),
    ],
)
def test_other_answers_with_parts_that_are_none_are_trouble_too(of: Any, data: Any) -> None:
    """Half a list of nodes would look like a Consul that lost the other half."""
    with pytest.raises(TransientError):
        of(answer(data, SHAPES[of]))


def test_equal_parts_are_one_object() -> None:
    found = instances([entry(node={"Node": f"vm-{n}"}) for n in range(3)])
    first, *others = found
    for other in others:
        assert other.tags is first.tags
        assert other.meta is first.meta
        assert other.node_tagged_addresses is first.node_tagged_addresses
        assert other.id is first.id


# --------------------------------------------------------------------------- what answers prove


def test_an_empty_answer_is_knowledge() -> None:
    assert decode.view_of(answer([])) == Known(())
    assert decode.listing_of(answer({}, wire.LISTING)) == Listing({})


@pytest.mark.parametrize("envelope", [{"filtered": True}, {"default_deny_anonymous": True}])
def test_an_empty_answer_that_acls_emptied_proves_nothing(envelope: dict[str, bool]) -> None:
    assert isinstance(decode.view_of(answer([], wire.HEALTH, **envelope)), Unknown)
    assert isinstance(decode.listing_of(answer({}, wire.LISTING, **envelope)), Unknown)


@pytest.mark.parametrize("envelope", [{"filtered": True}, {"default_deny_anonymous": True}])
def test_what_acls_left_over_is_knowledge(envelope: dict[str, bool]) -> None:
    assert isinstance(decode.view_of(answer([entry()], wire.HEALTH, **envelope)), Known)
    assert isinstance(decode.listing_of(answer({"web": []}, wire.LISTING, **envelope)), Listing)


def test_tags_are_compared_as_sets() -> None:
    assert decode.listing_of(answer({"web": ["a", "b"]}, wire.LISTING)) == decode.listing_of(
        answer({"web": ["b", "a"]}, wire.LISTING)
    )


@pytest.mark.parametrize("data", [None, 5, "x", {"web": []}])
def test_a_view_that_is_no_list_is_trouble(data: Any) -> None:
    with pytest.raises(TransientError):
        decode.view_of(answer(data))


@pytest.mark.parametrize("data", [None, 5, "x", ["web"]])
def test_a_listing_that_is_no_mapping_is_trouble(data: Any) -> None:
    with pytest.raises(TransientError):
        decode.listing_of(answer(data, wire.LISTING))


def test_what_is_on_a_node() -> None:
    services = [{"ID": "w", "Service": "web", "ModifyIndex": 7}, {"ID": "x", "Service": None}, {"Service": "db"}, 3]
    found = answer({"Node": {"ModifyIndex": 5}, "Services": services}, wire.ON_NODE)
    assert decode.services_on(found) == (5, {"w": ("web", 7)})
    assert [decode.services_on(answer(gone, wire.ON_NODE)) for gone in (None, {"Node": None, "Services": None})] == [
        (0, {}),
        (0, {}),
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
FIELDS = st.sampled_from(
    ["Node", "Service", "Checks", "ID", "Address", "Port", "Ports", "Tags", "Meta", "TaggedAddresses", "Kind", "Status",
     "CheckID", "Name", "Default", "Services", "ServiceName", "CreateIndex", "ModifyIndex"]
)  # fmt: skip
SHAPED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELDS, inner, max_size=8),
    max_leaves=40,
)


ODD = st.builds(
    lambda identity, port, address: entry(service={"ID": identity, "Port": port, "Address": address}),
    st.sampled_from(["", "a", "b", "i" * 5000]),
    st.integers(),
    st.sampled_from(["", "10.0.0.7", "x" * 600]),
)


@settings(max_examples=400, deadline=None)
@given(JSON | SHAPED)
def test_no_answer_raises_anything_but_trouble(data: Any) -> None:
    for of, shape in SHAPES.items():
        with contextlib.suppress(TransientError):
            of(answer(data, shape))


@settings(max_examples=200, deadline=None)
@given(st.lists(SHAPED, max_size=1), st.lists(ODD, max_size=4, unique_by=lambda e: e["Service"]["ID"]), st.randoms())
def test_the_order_of_an_answer_never_matters(shaped: list[Any], odd: list[Any], random: Any) -> None:
    entries = [*shaped, *odd, entry(), entry(node={"Node": "vm-2"})]
    shuffled = list(entries)
    random.shuffle(shuffled)
    try:
        expected = decode.instances(read(entries))
    except TransientError:
        with pytest.raises(TransientError):
            read(shuffled)
    else:
        assert decode.instances(read(shuffled)) == expected


def test_instances_that_vanish_are_believed_only_of_a_plain_read_without_filtering() -> None:
    """What waited cannot say that a token lost rights; additions and flips need no second look."""
    before = Known(instances([entry(), entry(service={"ID": "web-2"})]))
    fewer, other = [entry()], [entry(checks=[check("web", CRITICAL)]), entry(service={"ID": "web-2"})]
    assert [
        decode.proved(answer(fewer), before, waited=True),
        decode.proved(answer(fewer), before, waited=False),
        decode.proved(answer(fewer, filtered=True), before, waited=False),
        decode.proved(answer(fewer, filtered=True), None, waited=True),
        decode.proved(answer(other), before, waited=True),
        decode.proved(answer(other), replace(before, acl_filtered=True), waited=True),
        decode.proved(answer(other), replace(before, acl_filtered=True), waited=False),
    ] == [
        None,
        Known(instances(fewer)),
        Unknown(decode.HIDDEN),
        Known(instances(fewer), acl_filtered=True),
        Known(instances(other)),
        Known(instances(other), acl_filtered=True),
        Known(instances(other)),
    ]
