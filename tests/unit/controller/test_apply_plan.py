"""The writes of one plan when one of them fails: what relies on it waits."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bridge.core.model import Action, Change, Instance, Kind, Output, Plan, Policy, Rule, SliceBody
from bridge.errors import AlteredError, ConflictError, ForbiddenError, PermanentError, TransientError
from bridge.pipeline.planner import apply_plan
from bridge.report import build_report
from tests.unit.core.builders import (
    Cluster,
    group,
    instance,
    instances,
    mirror_of,
    planned,
    ready,
    rule,
    settle,
    slice_of,
    translated,
)


def applied(cluster: Cluster, output: Output, *, fails: Kind, error: Exception, port: int = 8080) -> list[str]:
    """What is written of the plan for another output (and port) while one kind is refused."""
    current = cluster.current()
    desired = mirror_of([instance(port=port), *instances(3, port)[1:]], rule(output=output), current)

    def write(change: Change) -> None:
        if change.kind is fails:
            raise error

    return [f"{c.action} {c.kind}" for c in apply_plan(planned(desired, current), write).applied]


@pytest.mark.parametrize("error", [ForbiddenError("no"), TransientError("not now"), ConflictError("taken")])
@pytest.mark.parametrize("output", [Output.BOTH, Output.ENDPOINTSLICES])
def test_the_mirror_goes_on_until_our_slices_are_there(output: Output, error: Exception) -> None:
    """Neither skip-mirror nor a deletion takes away what carries the traffic while its successor is refused."""
    cluster = Cluster()
    settle(cluster, instances(3), rule())
    assert applied(cluster, output, fails=Kind.ENDPOINT_SLICE, error=error) == []


def test_a_slice_stays_until_the_one_that_has_its_endpoints_is_there() -> None:
    """The port changed; Endpoints that no one mirrors may be written all the same."""
    cluster = Cluster()
    settle(cluster, instances(3), rule(output=Output.BOTH))
    found = applied(cluster, Output.BOTH, fails=Kind.ENDPOINT_SLICE, error=TransientError("not now"), port=8081)
    assert found == ["update Service", "update Endpoints"]


@pytest.mark.parametrize("whole", [True, False])
def test_a_slice_that_was_altered_on_the_way_counts_if_its_endpoints_are_whole(whole: bool) -> None:
    """A webhook that adds a label is no reason to keep the mirror; one that takes an address away is."""
    cluster = Cluster()
    settle(cluster, instances(3), rule())
    current = cluster.current()
    plan = planned(translated(instances(3), rule(output=Output.BOTH), current).mirror, current)

    def write(change: Change) -> None:
        if isinstance(change.body, SliceBody):
            stored = change.body.group if whole else group(*ready("10.0.0.1"))
            raise AlteredError("a label", slice_of(change.name, stored))

    assert [c.kind for c in apply_plan(plan, write).applied] == ([Kind.ENDPOINTS] if whole else [])


def test_endpoints_that_fail_keep_nothing_else_back() -> None:
    """Our slices are what traffic sees."""
    cluster = Cluster()
    settle(cluster, instances(3), rule(output=Output.BOTH))
    current = cluster.current()
    plan = planned(translated(instances(2), rule(output=Output.BOTH), current).mirror, current)

    def write(change: Change) -> None:
        if change.kind is Kind.ENDPOINTS:
            raise TransientError("not now")

    outcome = apply_plan(plan, write)
    assert [(c.action, c.kind) for c in outcome.applied] == [(Action.UPDATE, Kind.ENDPOINT_SLICE)]
    assert [f.change.kind for f in outcome.failures] == [Kind.ENDPOINTS]


REFUSED = [
    ForbiddenError("exceeded quota"),
    PermanentError("denied"),
    TransientError("webhook"),
    ConflictError("taken"),
]


def through_refusals(
    cluster: Cluster, found: Sequence[Instance], with_rule: Rule, error: Exception, policy: Policy = Policy.SYNC
) -> list[str]:
    """Apply the plan to the cluster while no slice can be created; what is written."""
    current = cluster.current()
    plan = planned(translated(found, with_rule, current).mirror, current, policy)

    def write(change: Change) -> None:
        if change.kind is Kind.ENDPOINT_SLICE and change.action is Action.CREATE:
            raise error
        cluster.apply(Plan(plan.target, changes=(change,)))

    outcome = apply_plan(plan, write)
    cluster.mirror()
    return [f"{c.action} {c.kind}" for c in outcome.applied]


def addresses(cluster: Cluster) -> list[str]:
    return sorted(address for address, *_ in cluster.traffic())


@pytest.mark.parametrize("error", REFUSED)
def test_a_new_service_is_reached_by_the_mirror_while_its_slice_is_refused(error: Exception) -> None:
    """Its Endpoints say that they are not to be mirrored only when slices are there; nothing is written twice."""
    cluster = Cluster()
    both = rule(output=Output.BOTH)
    assert through_refusals(cluster, instances(2), both, error) == ["create Service", "create Endpoints"]
    assert addresses(cluster) == ["10.0.0.1", "10.0.0.2"]
    assert through_refusals(cluster, instances(2), both, error) == []
    (first, *_) = settle(cluster, instances(2), both)
    assert [f"{c.action} {c.kind}" for c in first.writes] == ["create EndpointSlice", "update Endpoints"]
    assert (addresses(cluster), cluster.mirrored) == (["10.0.0.1", "10.0.0.2"], ())


@pytest.mark.parametrize("policy", [Policy.SYNC, Policy.UPSERT_ONLY])
@pytest.mark.parametrize("output", [Output.BOTH, Output.ENDPOINTSLICES])
def test_endpoints_follow_health_while_their_slices_are_refused(output: Output, policy: Policy) -> None:
    """A dead address does not stay because the slice that comes after cannot be made."""
    cluster = Cluster()
    settle(cluster, instances(3), rule())
    with_rule = rule(output=output)
    for error in REFUSED:
        through_refusals(cluster, instances(2), with_rule, error, policy)
        assert addresses(cluster) == ["10.0.0.1", "10.0.0.2"]


@pytest.mark.parametrize("policy", [Policy.SYNC, Policy.UPSERT_ONLY])
def test_a_slice_keeps_what_another_one_cannot_take(policy: Policy) -> None:
    """A lower limit: it gives up the dead address, and not the one that is to move."""
    cluster = Cluster()
    settle(cluster, instances(3), rule(output=Output.ENDPOINTSLICES))
    lower = rule(output=Output.ENDPOINTSLICES, max_endpoints_per_slice=1)
    assert through_refusals(cluster, instances(2), lower, TransientError("no"), policy) == ["update EndpointSlice"]
    assert addresses(cluster) == ["10.0.0.1", "10.0.0.2"]
    assert through_refusals(cluster, instances(2), lower, TransientError("no"), policy) == []


@pytest.mark.parametrize("policy", [Policy.SYNC, Policy.UPSERT_ONLY])
def test_the_slice_of_an_old_port_keeps_what_lives_while_the_new_one_is_refused(policy: Policy) -> None:
    """It is neither deleted nor emptied, but gives up what has gone from Consul."""
    cluster = Cluster()
    settle(cluster, instances(3), rule(output=Output.ENDPOINTSLICES))
    with_rule = rule(output=Output.ENDPOINTSLICES)
    found = through_refusals(cluster, instances(2, 8081), with_rule, ForbiddenError("exceeded quota"), policy)
    assert found == ["update Service", "update EndpointSlice"]
    assert addresses(cluster) == ["10.0.0.1", "10.0.0.2"]


def test_what_was_done_in_place_of_a_change_is_not_reported_as_left_undone() -> None:
    """The report tells what failed and what was written, each once."""
    cluster = Cluster()
    current = cluster.current()
    plan = planned(translated(instances(2), rule(output=Output.BOTH), current).mirror, current)

    def write(change: Change) -> None:
        if change.kind is Kind.ENDPOINT_SLICE:
            raise ForbiddenError("exceeded quota")

    report = build_report([apply_plan(plan, write)], {}, dry_run=False)
    assert [row.kind for row in report.failed] == [Kind.ENDPOINT_SLICE]
    assert [row.kind for row in report.changes] == [Kind.ENDPOINTS, Kind.SERVICE]
