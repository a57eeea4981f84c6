"""The control plane's mirror of Endpoints, as a function; tests/contract/test_kube_mirroring.py holds it to the real one."""  # noqa: E501

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.core.mirroring import Refused, may_refuse, slices_of, why_not_mirrored
from bridge.core.model import Endpoint, Family, Group, Port
from bridge.core.normalize import group_endpoints
from tests.unit.core.builders import down, group, pairs, ready

ONE, TWO = (Port("", 7480),), (Port("", 7481),)


def many(count: int, *ports: Port, family: Family = Family.IPV4) -> Group:
    """A group of ready addresses."""
    prefix = "10.0" if family is Family.IPV4 else "fd00:"
    found = [f"{prefix}.{n >> 8}.{n & 255}" if family is Family.IPV4 else f"fd00::{n + 1:x}" for n in range(count)]
    return group(*ready(*found), ports=ports or ONE, family=family)


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ([], ""),
        ([group(*ready("10.0.0.1"))], ""),
        ([group(*ready("10.0.0.1"), ports=ONE), group(*ready("10.0.0.2"), ports=TWO)], ""),
        ([group(*ready("10.0.0.1"), ports=ONE), group(*down("10.0.0.1"), ports=TWO)], ""),
        (
            [group(*ready("10.0.0.1"), ports=ONE), group(*ready("10.0.0.1"), ports=TWO)],
            "the ports 7480, 7481, all without a name, have the same address, 10.0.0.1, and one EndpointSlice cannot "
            "have two ports of one name",
        ),
        (
            [
                group(*ready("10.0.0.1"), *down("10.0.0.2"), ports=(Port("http", n),))
                for n in (80, 81, 82, 83, 84, 85)
            ],
            "the ports 80, 81, 82, 83 and 2 more, all called 'http', have the same 2 addresses, and one EndpointSlice "
            "cannot have two ports of one name",
        ),
        (
            [group(*down("10.0.0.1"), ports=ONE), group(*down("10.0.0.1"), ports=TWO), many(3, Port("", 1))],
            "the ports 7480, 7481, all without a name, have the same address, 10.0.0.1, and one EndpointSlice cannot "
            "have two ports of one name",
        ),
        ([many(1000)], ""),
        ([many(1001)], "it copies 1000 addresses of one set of ports into EndpointSlices at most, and here are 1001"),
        (
            [many(600), many(401, family=Family.IPV6)],
            "it copies 1000 addresses of one set of ports into EndpointSlices at most, and here are 1001",
        ),
        ([many(800), many(700, Port("x", 1))], ""),
        (
            [
                group(*ready("10.0.0.1"), ports=(Port("http", 80),)),
                group(*down("10.0.0.1"), ports=(Port("http", 80), Port("metrics", 90))),
            ],
            "10.0.0.1 is ready on port 80 in one subset and not in another, so it takes it as not ready",
        ),
        (
            [group(replace(ready("10.0.0.1")[0], hostname=n), ports=(Port(n or "x", 1),)) for n in ("vm1", "", "vm1")],
            "it gives an address one hostname, and 10.0.0.1 has vm1 and none in different subsets",
        ),
    ],
    ids=["nothing", "one group", "two VMs", "one of two is unhealthy", "two on one VM", "six on two VMs",
         "two dead beside live ones", "a thousand", "more", "both families", "two sets", "contradiction",
         "two hostnames"],
)  # fmt: skip
def test_what_the_mirror_cannot_carry(groups: list[Group], words: str) -> None:
    """Two ports of one name on the same addresses; more than a thousand; ready and not ready on one port."""
    assert why_not_mirrored(groups) == words


def test_a_port_with_an_application_protocol_is_another_in_each_subset() -> None:
    """The controller compares pointers there: the port comes twice where its subsets have the same addresses."""
    plain = [Port("a", 1), Port("b", 2)]
    typed = [Port("a", 1, "TCP", "http"), Port("b", 2, "TCP", "http")]
    found = [
        slices_of([group(*ready("10.0.0.1"), ports=(a,)), group(*ready("10.0.0.1"), ports=(a, b))])
        for a, b in (plain, typed)
    ]
    assert found[0] == (group(*ready("10.0.0.1"), ports=tuple(plain)),)
    assert isinstance(found[1], Refused)


def test_hostnames_are_mirrored() -> None:
    """Each address with its own."""
    named = group(*(replace(e, hostname=f"vm{n}") for n, e in enumerate(ready("10.0.0.1", "10.0.0.2"))))
    assert slices_of([named]) == (named,)


def test_what_is_beyond_the_limit_are_the_last_addresses_and_first_those_that_are_not_ready() -> None:
    """As it cuts a subset."""
    found = slices_of([group(*down("10.0.0.0"), *many(1002).endpoints[2:], ports=ONE)])
    assert not isinstance(found, Refused)
    assert (len(found[0].endpoints), found[0].endpoints[0]) == (1000, Endpoint("10.0.0.2", ready=True))


@pytest.mark.parametrize(
    ("groups", "may"),
    [
        ([], False),
        ([many(900)], False),
        ([many(901)], True),
        ([group(*ready("10.0.0.1"), ports=ONE), group(*ready("10.0.0.2"), ports=TWO)], True),
        ([group(*ready("10.0.0.1"), ports=ONE), group(*ready("10.0.0.2"), ports=(Port("x", 1),))], False),
    ],
)
def test_what_may_be_refused_at_the_next_change(groups: list[Group], may: bool) -> None:
    """One name for several numbers, or near the limit."""
    assert may_refuse(groups) is may


# --------------------------------------------------------------------------- properties

PORTS = st.sampled_from([Port("", 80), Port("", 81), Port("a", 80), Port("b", 90), Port("b", 91), Port("c", 1, "UDP")])
PORT_SETS = st.lists(PORTS, min_size=1, max_size=3, unique_by=lambda p: p.name).map(lambda p: tuple(sorted(p)))
ADDRESSES = st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"])


@st.composite
def subsets(draw: st.DrawFn) -> tuple[Group, ...]:
    """Groups as we write them: each set of ports once, each address once in it."""
    chosen = draw(st.dictionaries(PORT_SETS, st.dictionaries(ADDRESSES, st.booleans(), min_size=1), max_size=4))
    members: dict[Any, dict[str, Endpoint]] = {}
    for ports, found in chosen.items():
        for address, is_ready in found.items():
            family = Family.IPV6 if ":" in address else Family.IPV4
            members.setdefault((family, ports), {})[address] = Endpoint(address, is_ready, serving=is_ready)
    return group_endpoints(members)


@given(groups=subsets(), shuffle=st.randoms())
@settings(max_examples=400, deadline=None)
def test_a_mirror_is_true_or_refused(groups: tuple[Group, ...], shuffle: Any) -> None:
    """Every endpoint of the Endpoints is in it once and nothing else, no slice has two ports of one name, the order of
    the subsets does not matter, and mirroring a mirror changes nothing."""
    found = slices_of(groups)
    mixed = list(groups)
    shuffle.shuffle(mixed)
    assert slices_of(mixed) == found
    if isinstance(found, Refused):
        assert why_not_mirrored(groups) == found.reason
        assert may_refuse(groups)
        return
    listed = {(e.address, p) for g in groups for e in g.endpoints for p in g.ports}
    inside = [(e.address, p) for g in found for e in g.endpoints for p in g.ports]
    assert (set(inside), len(inside)) == (listed, len(listed))
    assert all(len({p.name for p in g.ports}) == len(g.ports) for g in found)
    assert pairs(found) <= pairs(groups)
    assert (why_not_mirrored(groups) == "") is (pairs(found) == pairs(groups))
    assert slices_of(found) == found
