"""What readers of EndpointSlices see beside what is wanted: the union of all slices, no matter who writes them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bridge.core.model import (
    Current,
    CurrentSlice,
    Endpoint,
    Family,
    Group,
    Mirror,
    Output,
    Policy,
    Port,
)
from bridge.core.plan import plan
from bridge.core.reasons import Code
from bridge.core.slice_union import (
    MIRRORING_CONTROLLER,
    POD_CONTROLLER,
    Seen,
    compare,
    compare_existing,
    endpoint_counts,
)
from tests.unit.core.builders import (
    OWNER,
    TARGET,
    Cluster,
    endpoints,
    instance,
    mirror_of,
    planned,
    ready,
    rule,
    service,
    slice_of,
)

HTTP = Port("", 8080)
WEB = Group(Family.IPV4, (HTTP,), ready("10.0.0.1", "10.0.0.2"))


def group(*found: Endpoint, ports: tuple[Port, ...] = (HTTP,), family: Family = Family.IPV4) -> Group:
    return Group(family, ports, found)


def foreign(content: Group, name: str = "old", manager: str = POD_CONTROLLER) -> CurrentSlice:
    """A slice that no bridge writes."""
    return replace(slice_of(name, content, owner=None), manager=manager)


def mirrored(*contents: Group) -> tuple[CurrentSlice, ...]:
    """What the control plane made of Endpoints."""
    return tuple(foreign(content, f"m{n}", MIRRORING_CONTROLLER) for n, content in enumerate(contents))


def compared(*others: CurrentSlice, mirror: bool = False, wanted: Group = WEB) -> Seen:
    own = {} if mirror else {"web-1": wanted}
    return compare(TARGET, (wanted,), own, others, mirrored=mirror)


def said(seen: Seen) -> list[tuple[str, str]]:
    """What deviates: the code, and in what."""
    return [(reason.code.value, dict(reason.data)["what"]) for reason in seen.deviations]


# --------------------------------------------------------------------------- slices of others


def test_slices_of_pods_that_are_left_send_traffic_to_pods() -> None:
    """The warning names the slice, its manager, the addresses, and the command that removes it."""
    pods = group(*ready("10.244.0.1", "10.244.0.2", "10.244.0.3", "10.244.0.4", "10.244.0.5"))
    seen = compared(foreign(pods, "web-x7k2p"))
    (warning,) = seen.foreign
    assert seen.deviations == (warning,)
    assert warning == (
        "EndpointSlice web-x7k2p (managed by endpointslice-controller.k8s.io) is neither the bridge's nor the mirror "
        "of its Endpoints: it has 10.244.0.1:8080, 10.244.0.2:8080, 10.244.0.3:8080 and 2 more, which Consul does not "
        "show. If nothing else needs it: kubectl delete endpointslice web-x7k2p --namespace default"
    )


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (WEB, "repeats endpoints that Consul shows, and no controller updates it"),
        (
            replace(WEB, ports=(replace(HTTP, app_protocol="http"),)),
            "repeats endpoints that Consul shows, and no controller updates it",
        ),
    ],
)  # fmt: skip
def test_a_slice_that_repeats_what_is_wanted_is_a_warning_alone(content: Group, what: str) -> None:
    """Readers merge equal endpoints; but nothing updates it, so that it will send traffic elsewhere one day."""
    seen = compared(foreign(content, manager=""))
    assert (seen.deviations, [dict(r.data)["what"] for r in seen.foreign]) == ((), [what])
    assert "EndpointSlice old (without a manager) is neither" in seen.foreign[0]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (group(Endpoint("10.0.0.1", ready=False, serving=False)),
         "has 10.0.0.1:8080 with other conditions (ready, serving) than Consul"),
        (group(Endpoint("10.0.0.1", ready=True, serving=False)),
         "has 10.0.0.1:8080 with other conditions (ready, serving) than Consul"),
        (group(*ready("10.0.0.1"), ports=(Port("", 8081),)), "has 10.0.0.1:8081, which Consul does not show"),
        (group(*ready("10.0.0.1"), ports=(Port("", 8080, "UDP"),)),
         "has 10.0.0.1:8080/UDP, which Consul does not show"),
        (group(*ready("10.0.0.1"), ports=(Port("http", 8080),)), "has 10.0.0.1:8080, which Consul does not show"),
        (group(*ready("10.0.0.1"), ports=()), "has 10.0.0.1, which Consul does not show"),
        (group(*ready("fd00::1"), family=Family.IPV6), "has [fd00::1]:8080, which Consul does not show"),
        (group(Endpoint("10.0.0.9", ready=False, serving=False)), "has 10.0.0.9:8080, which Consul does not show"),
    ],
)  # fmt: skip
def test_an_endpoint_is_an_address_a_port_and_its_conditions(content: Group, what: str) -> None:
    """Which of two that contradict each other is taken, readers do not agree on: so they may not."""
    assert said(compared(foreign(content))) == [("foreign_slice", what)]


def test_an_empty_slice_carries_no_traffic() -> None:
    """The control plane keeps one for a Service whose pods are gone."""
    assert compared(foreign(group())) == Seen()


def test_a_slice_of_another_bridge_is_a_slice_of_others() -> None:
    """Two bridges with different owner ids fill one Service."""
    cluster = Cluster(service=service(), slices={"x": slice_of("x", group(*ready("10.9.9.9")), owner="other")})
    current = replace(cluster.current(), others=())
    (warning,) = planned(mirror_of([instance()]), current).warnings
    assert (warning.code, "managed by consul-bridge" in warning) == (Code.FOREIGN_SLICE, True)


# --------------------------------------------------------------------------- the control plane's mirror


def test_the_mirror_has_to_have_everything() -> None:
    """In both directions; conditions count, but it has no `serving`."""
    drained = group(*ready("10.0.0.1"), Endpoint("10.0.0.2", ready=False, serving=True, terminating=True))
    as_mirrored = group(*ready("10.0.0.1"), Endpoint("10.0.0.2", ready=False, serving=False))
    assert compared(*mirrored(as_mirrored), mirror=True, wanted=drained) == Seen()
    emptied = group(ports=(Port("", 8081),))  # the control plane keeps one rather than delete it
    assert compared(*mirrored(WEB, emptied), mirror=True) == Seen()
    assert said(compared(mirror=True)) == [("mirror_behind", "lacks 10.0.0.1:8080, 10.0.0.2:8080")]
    stale = group(Endpoint("10.0.0.2", ready=False, serving=False), *ready("10.0.0.3"))
    assert said(compared(*mirrored(stale), mirror=True)) == [
        (
            "mirror_behind",
            "lacks 10.0.0.1:8080 and has 10.0.0.3:8080, which Consul does not show and has 10.0.0.2:8080 with other "
            "conditions (ready, serving) than Consul",
        )
    ]


def test_what_our_own_slices_have_is_not_missing_in_the_mirror() -> None:
    """They stay until it has been made."""
    seen = compare(TARGET, (WEB,), {"web-1": WEB}, (), mirrored=True)
    assert seen == Seen()


def test_a_slice_of_ours_that_cannot_be_changed_is_reported() -> None:
    """The rights are missing: it sends traffic where it did."""
    seen = compare(TARGET, (WEB,), {"web-1": group(*ready("10.9.9.9"))}, mirrored(WEB), mirrored=True)
    assert said(seen) == [("slice_outdated", "has 10.9.9.9:8080, which Consul does not show")]


def test_the_mirror_goes_when_our_slices_carry_the_addresses() -> None:
    """It is deleted by the control plane; where that does not run, what stays is harmless while it is the same."""
    assert compared(*mirrored(WEB)) == Seen()
    seen = compared(*mirrored(group(*ready("10.0.0.7"))))
    assert (said(seen), seen.foreign) == (
        [("slice_outdated", "has 10.0.0.7:8080, which Consul does not show")],
        (),
    )
    assert str(seen.deviations[0]).startswith("EndpointSlice m0 (managed by endpointslicemirroring-controller.k8s.io)")


# --------------------------------------------------------------------------- in a plan


def wanted(output: Output = Output.BOTH, *addresses: str) -> Mirror:
    return mirror_of([instance(address=a) for a in addresses or ("10.0.0.1",)], rule(output=output))


def applied(desired: Mirror, *others: CurrentSlice) -> Current:
    """What exists when a pass has been made, and slices of others beside it."""
    cluster = Cluster()
    cluster.apply(planned(desired, cluster.current()))
    return replace(cluster.current(), others=others)


def test_a_plan_compares_what_there_is_after_its_changes() -> None:
    """What it is about to make right is no deviation."""
    old, new = wanted(Output.BOTH, "10.0.0.1"), wanted(Output.BOTH, "10.0.0.2")
    leftover = foreign(group(*ready("10.0.0.2")))
    found = planned(new, applied(old, leftover))
    assert ([str(w.code) for w in found.warnings], bool(found.writes)) == (["foreign_slice"], True)
    assert (found.deviations, found.foreign) == ((), 1)
    found = planned(old, applied(old, leftover))
    assert (found.deviations, found.writes) == (found.warnings, ())


@pytest.mark.parametrize("others", [None, ()])
def test_nothing_deviates_where_our_slices_are_all_there_is(others: tuple[CurrentSlice, ...] | None) -> None:
    """None: they were not read."""
    desired = wanted()
    found = planned(desired, replace(applied(desired), others=others))
    assert (found.deviations, found.foreign, found.writes) == ((), 0, ())


def test_endpoints_alone_deviate_until_they_are_mirrored() -> None:
    """Also while something is still to be written: a caller that goes on from there has to look again."""
    desired = wanted(Output.ENDPOINTS)
    current = applied(desired)
    behind = planned(desired, current)
    assert ([r.code for r in behind.deviations], behind.warnings) == ([Code.MIRROR_BEHIND], ())
    assert (behind.reasons, behind.remarks) == (behind.deviations, behind.deviations)
    assert replace(behind, deviations_recent=True).remarks == ()
    assert planned(desired, replace(current, others=mirrored(*desired.groups))).deviations == ()


def test_endpoints_that_cannot_be_mirrored_deviate_without_the_right_to_write_slices() -> None:
    """Two ports of one name on one machine: Endpoints perfect, no EndpointSlice at all."""
    found = [instance(id="a", port=7480), instance(id="b", port=7481)]
    desired = mirror_of(found, rule(output=Output.ENDPOINTS))
    current = replace(Current(TARGET, service=service()), others=())
    made = plan(TARGET, desired, current, owner=OWNER, slices_forbidden=("create", "patch", "delete"))
    assert [r.code for r in made.deviations] == [Code.MIRROR_BEHIND]
    assert Code.UNMIRRORED in [w.code for w in made.warnings]


@pytest.mark.parametrize("how", ["conflict", "gone"])
def test_nothing_is_compared_where_nothing_is_written(how: str) -> None:
    """A conflict says enough."""
    current = applied(wanted(), foreign(group(*ready("10.9.9.9"))))
    if how == "conflict":
        current = replace(current, service=service(has_selector=True))
    found = planned(None if how == "gone" else wanted(), current)
    assert (found.deviations, found.foreign) == ((), 0)


def test_create_only_leaves_existing_objects_and_still_tells_of_others() -> None:
    """What has changed in Consul since is no deviation, on purpose; a slice that pods left is."""
    current = applied(wanted(Output.BOTH, "10.0.0.1"), foreign(group(*ready("10.9.9.9"))))
    found = planned(wanted(Output.BOTH, "10.0.0.2"), current, Policy.CREATE_ONLY)
    assert ([dict(r.data)["what"] for r in found.deviations], found.foreign, found.writes) == (
        ["has 10.9.9.9:8080, which Consul does not show"], 1, (),
    )  # fmt: skip
    nothing = Current(TARGET, service=service(), others=())
    assert planned(wanted(), nothing, Policy.CREATE_ONLY).deviations == ()


# --------------------------------------------------------------------------- without Consul


def test_existing_slices_are_compared_with_what_our_objects_say() -> None:
    """As `bridge check` does."""
    both, alone = wanted(), wanted(Output.ENDPOINTS)
    leftover = foreign(group(*ready("10.9.9.9")))
    assert compare_existing(applied(both), OWNER) == Seen()
    seen = compare_existing(applied(both, leftover), OWNER)
    assert seen is not None
    assert said(seen) == [("foreign_slice", "has 10.9.9.9:8080, which Consul does not show")]
    behind = compare_existing(applied(alone), OWNER)
    assert behind is not None
    assert said(behind) == [("mirror_behind", "lacks 10.0.0.1:8080")]
    assert compare_existing(applied(alone, *mirrored(*alone.groups)), OWNER) == Seen()


@pytest.mark.parametrize(
    "current",
    [
        Current(TARGET, others=()),
        Current(TARGET, service=service(), others=()),
        Current(TARGET, service=service(has_selector=True), endpoints=endpoints(WEB), others=()),
        Current(TARGET, service=service(), endpoints=endpoints(WEB)),
        Current(TARGET, service=service(), endpoints=endpoints(WEB, owner=None), others=()),
    ],
)
def test_without_objects_of_ours_there_is_nothing_to_compare(current: Current) -> None:
    """Nor for a Service that Kubernetes fills, nor where slices were not read."""
    assert compare_existing(current, OWNER) is None


def test_an_endpoint_of_ours_counts_once_and_is_ready_where_one_object_has_it_ready() -> None:
    """Endpoints and a slice hold the same two; a slice of others counts for nothing."""
    both = Group(Family.IPV4, (HTTP,), (*ready("10.0.0.1"), Endpoint("10.0.0.2", ready=False)))
    current = Current(
        TARGET, service=service(), endpoints=endpoints(both), slices=(slice_of("web-1", WEB), foreign(WEB))
    )
    assert endpoint_counts(current) == (2, 0)
    assert endpoint_counts(replace(current, slices=())) == (1, 1)
    assert endpoint_counts(Current(TARGET, slices=(foreign(WEB),))) == (0, 0)
