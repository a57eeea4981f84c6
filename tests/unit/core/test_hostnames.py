"""Which endpoint has which hostname: bridge.core.hostnames."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.hostnames import Claim, assign, label, value_of
from bridge.core.model import (
    Current,
    Destination,
    Endpoint,
    Family,
    InstanceRules,
    Known,
    Port,
    Rule,
    Status,
    Treatment,
)
from bridge.core.plan import plan
from bridge.core.reasons import Code, Reason
from bridge.core.translate import translate
from tests.unit.core.builders import OWNER, QUERY, TARGET, Cluster, endpoints, group, instance, slice_of

FOUR, SIX = Family.IPV4, Family.IPV6
HTTP, METRICS = (Port("http", 80),), (Port("metrics", 90),)


def claim(value: str, *addresses: str, ports: tuple[Port, ...] = HTTP) -> Claim:
    """An instance of a node of this name."""
    placed = tuple((SIX if ":" in address else FOUR, address) for address in addresses)
    return Claim(f"{value}/{','.join(addresses)}", "node", value, ports, placed)


def given_to(claims: Sequence[Claim], current: Current | None = None) -> list[str]:
    """The hostname of each, or the code of why it has none."""
    return [f.code.value if isinstance(f, Reason) else f for f in assign(claims, current)]


@pytest.mark.parametrize(
    ("value", "hostname"),
    [
        ("vm1", "vm1"),
        ("vm1.ams.example.com", "vm1"),
        ("VM_1", "vm-1"),
        ("-vm1-", "vm1"),
        ("10.0.0.1", "10-0-0-1"),
        ("fd00::1", "fd00--1"),
        ("1", "1"),
        ("a" * 63, "a" * 63),
        ("a" * 64, f"{'a' * 54}-ffe054fe"),
        ("vm é", "vm"),
        ("___", None),
        (".vm1", None),
        ("", None),
    ],
)
def test_what_a_text_becomes(value: str, hostname: str | None) -> None:
    """A DNS label of at most 63 characters, or nothing."""
    assert label(value) == hostname


def test_what_a_hostname_is_made_of() -> None:
    """The node's name, or one value of either meta."""
    found = instance(node="vm1", meta=(("broker", "b1"),), node_meta=(("host", "h1"),))
    sources = ("node", "meta:broker", "node-meta:host", "meta:host")
    assert [value_of(found, source) for source in sources] == ["vm1", "b1", "h1", ""]


@pytest.mark.parametrize(
    ("claims", "names"),
    [
        ([claim("vm1", "10.0.0.1"), claim("vm2", "10.0.0.2")], ["vm1", "vm2"]),
        ([claim("vm1", "10.0.0.1"), claim("vm1", "10.0.0.1", ports=METRICS)], ["vm1", "vm1"]),
        ([claim("vm1", "10.0.0.1"), claim("vm1", "fd00::1")], ["vm1", "vm1"]),
        ([claim("vm1", "10.0.0.1", "10.0.0.2", "fd00::1")], ["vm1"]),
        ([claim("vm1.b", "10.0.0.2"), claim("vm1.a", "10.0.0.1")], ["hostname_taken", "vm1"]),
        ([claim("vm1.a", "10.0.0.1"), claim("vm1.b", "fd00::2")], ["vm1", "hostname_taken"]),
        ([claim("vm1", "10.0.0.1"), claim("vm1", "10.0.0.2")], ["vm1", "hostname_taken"]),
        (
            [claim("vm1", "10.0.0.1"), claim("vm1", "fd00::1"), claim("vm1", "fd00::2")],
            ["vm1", "vm1", "hostname_taken"],
        ),
        ([claim("b1", "10.0.0.1"), claim("b2", "10.0.0.1", ports=METRICS)], ["b1", "b2"]),
        ([claim("b2", "10.0.0.1"), claim("b1", "10.0.0.1")], ["hostname_shared", "b1"]),
        ([claim("", "10.0.0.1"), claim("_", "10.0.0.2")], ["hostname_absent", "hostname_unmappable"]),
    ],
)
def test_a_hostname_has_one_address_of_each_family(claims: list[Claim], names: list[str]) -> None:
    """The first one has it, of both families only on one node; all others learn why they have none."""
    assert given_to(claims) == names


def test_what_has_a_name_in_kubernetes_keeps_it() -> None:
    """In slices or in Endpoints of a bridge; what others wrote says nothing."""
    claims = [claim("vm1.a", "10.0.0.1"), claim("vm1.b", "10.0.0.2")]
    held = group(Endpoint("10.0.0.2", ready=False, hostname="vm1"))
    assert given_to(claims, Current(TARGET, None, endpoints(held))) == ["hostname_taken", "vm1"]
    assert given_to(claims, Current(TARGET, slices=(slice_of("x", held),))) == ["hostname_taken", "vm1"]
    foreign = Current(TARGET, None, endpoints(held, owner=None), (slice_of("x", held, owner=None),))
    assert given_to(claims, foreign) == ["vm1", "hostname_taken"]


def test_a_service_without_the_name_names_its_holder() -> None:
    """By the instance's name."""
    taken = assign([claim("vm1.a", "10.0.0.1"), claim("vm1.b", "10.0.0.2")], None)[1]
    assert taken == Reason(Code.HOSTNAME_TAKEN, holder="vm1.a/10.0.0.1", hostname="vm1")


claims = st.lists(
    st.builds(
        claim,
        st.sampled_from(["vm1", "vm1.b", "VM_1", "vm-1", "vm2", "", "_"]),
        st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"]),
        ports=st.sampled_from([HTTP, METRICS]),
    ),
    max_size=6,
)


@given(found=claims, shuffle=st.randoms(use_true_random=False))
def test_names_are_unique_whatever_the_order_and_stay(found: list[Claim], shuffle: object) -> None:
    """One address of each family has a name; the order of what Consul lists never matters; a second pass gives the
    same."""
    names = given_to(found)
    of: dict[tuple[str, Family], set[str]] = {}
    for one, name in zip(found, names, strict=True):
        for family, address in one.endpoints if "_" not in name else ():
            of.setdefault((name, family), set()).add(address)
    assert all(len(addresses) == 1 for addresses in of.values())
    mixed = list(enumerate(found))
    shuffle.shuffle(mixed)  # type: ignore[attr-defined]
    again = given_to([one for _, one in mixed])
    assert sorted(zip((n for n, _ in mixed), again, strict=True)) == list(enumerate(names))
    standing = [
        group(Endpoint(a, ready=True, hostname=name), ports=one.ports, family=f)
        for one, name in zip(found, names, strict=True)
        for f, a in one.endpoints
        if "_" not in name
    ]
    assert given_to(found, Current(TARGET, None, endpoints(*standing))) == names


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (  # what is left out has no memory in Kubernetes
            [("vm1.b", "10.0.0.2", 80, Status.PASSING)],
            [("vm1.b", "10.0.0.2", 80, Status.CRITICAL), ("vm1.a", "10.0.0.1", 80, Status.PASSING)],
        ),
        (  # two instances at one address, of which the second in order has the name
            [("vm1.b", "10.0.0.4", 81, Status.PASSING)],
            [("vm1.a", "10.0.0.4", 80, Status.PASSING), ("vm1.b", "10.0.0.4", 81, Status.PASSING)],
        ),
    ],
)
def test_the_winner_of_a_name_is_decided_in_one_pass(
    before: list[tuple[str, str, int, Status]], after: list[tuple[str, str, int, Status]]
) -> None:
    """A second one, which sees what the first has written, changes nothing."""
    rule = Rule(to=Destination(headless=True, hostname_from="node"), instances=InstanceRules(critical=Treatment.OMIT))
    cluster, writes = Cluster(), []
    for state in (before, after, after):
        found = tuple(instance(at, node=node, port=port, status=status) for node, at, port, status in state)
        mirror = translate(TARGET, [(rule, QUERY, Known(found))], cluster.current()).mirror
        made = plan(TARGET, mirror, cluster.current(), owner=OWNER)
        cluster.apply(made)
        writes.append(len(made.writes))
    assert writes[0]
    assert writes[1]
    assert writes[2] == 0
