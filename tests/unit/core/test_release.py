"""What a forced pass leaves on objects, and for how long it counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bridge.core.model import Action, Current, CurrentEndpoints, CurrentSlice, Kind, Output, Plan
from bridge.core.ownership import RELEASED, SKIP_MIRROR
from bridge.core.plan import plan
from bridge.core.release import RELEASE_SECONDS, released, stamp
from tests.unit.core.builders import (
    OWNER,
    TARGET,
    Cluster,
    endpoints,
    group,
    instances,
    mirror_of,
    ready,
    rule,
    settle,
    slice_of,
)

NOON = 1.7e9
STAMP = stamp(NOON)


def saying(value: str, owner: str = OWNER) -> CurrentEndpoints:
    found = endpoints(group(*ready("10.0.0.1")), owner=owner)
    return replace(found, meta=replace(found.meta, ownership=(*found.meta.ownership, (RELEASED, value))))


def cut(value: str) -> CurrentSlice:
    found = slice_of("radosgw-a", group(*ready("10.0.0.1")))
    return replace(found, meta=replace(found.meta, ownership=(*found.meta.ownership, (RELEASED, value))))


def test_the_stamp_is_the_time_of_day_for_users() -> None:
    """To the microsecond, so that a second pass right after the first one has another."""
    assert STAMP == "2023-11-14T22:13:20.000000+00:00"


@pytest.mark.parametrize(
    ("value", "counts"),
    [
        (STAMP, True),
        (stamp(NOON - RELEASE_SECONDS), True),
        (stamp(NOON - RELEASE_SECONDS - 1), False),
        (stamp(NOON + RELEASE_SECONDS), True),
        (stamp(NOON + RELEASE_SECONDS + 1), False),
        ("", False),
        ("true", False),
        ("2023-11-14T22:13:20", False),
        ("2023-11-14T22:13:20Z", True),
    ],
)
def test_it_counts_for_ten_minutes(value: str, counts: bool) -> None:
    """By the clocks of two machines; what is no time of day with its zone counts for nothing."""
    assert (released(Current(TARGET, endpoints=saying(value)), OWNER, NOON) == value and value != "") is counts


def test_the_newest_of_our_own_objects_counts() -> None:
    """Another owner's says nothing about ours."""
    later = stamp(NOON + 1)
    assert released(Current(TARGET), OWNER, NOON) == ""
    assert released(Current(TARGET, endpoints=saying(STAMP), slices=(cut(later),)), OWNER, NOON) == later
    assert released(Current(TARGET, endpoints=saying(STAMP, "other")), OWNER, NOON) == ""


def forced(cluster: Cluster, left: int, output: Output, released: str = STAMP) -> Plan:
    current = cluster.current()
    desired = mirror_of(instances(left), rule(output=output), current)
    return plan(TARGET, desired, current, owner=OWNER, released=released)


def settled(output: Output) -> Cluster:
    cluster = Cluster()
    settle(cluster, instances(12), rule(output=output))
    return cluster


@pytest.mark.parametrize("output", list(Output))
@pytest.mark.parametrize("left", [0, 3, 12, 13])
def test_only_a_loss_of_endpoints_is_reported(left: int, output: Output) -> None:
    """Every object that is written then; a Service never does, and what only gains needs no release."""
    found = forced(settled(output), left, output)
    says = {c.kind: RELEASED in dict(c.body.annotations) for c in found.writes if c.body is not None}
    assert says == dict.fromkeys(says, left < 12)
    assert Kind.SERVICE not in says
    assert found.released == STAMP


@pytest.mark.parametrize("output", list(Output))
def test_what_it_says_is_no_difference(output: Output) -> None:
    """Neither with force nor without is it written for that alone, and the next change takes it off."""
    cluster = settled(output)
    cluster.apply(forced(cluster, 3, output))
    assert [forced(cluster, 3, output, said).writes for said in ("", STAMP, stamp(NOON + 5))] == [(), (), ()]
    more = forced(cluster, 4, output, "")
    assert more.writes
    assert [c for c in more.writes if c.body is not None and RELEASED in dict(c.body.annotations)] == []


def test_endpoints_written_in_place_of_a_refused_slice_are_reported() -> None:
    """The Endpoints that are mirrored meanwhile."""
    cluster = Cluster()
    settle(cluster, instances(12), rule(output=Output.ENDPOINTS))
    found = forced(cluster, 3, Output.BOTH)
    (change,) = [c for c in found.writes if c.kind is Kind.ENDPOINTS]
    assert change.action is Action.UPDATE
    for one in (change, change.meanwhile):
        assert one is not None
        assert one.body is not None
        assert dict(one.body.annotations)[RELEASED] == STAMP
    assert change.meanwhile is not None
    assert change.meanwhile.body is not None
    assert (SKIP_MIRROR, "true") not in change.meanwhile.body.labels
