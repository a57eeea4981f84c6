"""The writes of one plan when one of them fails: what relies on it waits."""

from __future__ import annotations

import pytest

from bridge.core.model import Action, Change, Kind, Output, SliceBody
from bridge.engine.reconcile import apply_plan
from bridge.errors import AlteredError, ConflictError, ForbiddenError, TransientError
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
    """The port changed; Endpoints that nobody mirrors may be written all the same."""
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
