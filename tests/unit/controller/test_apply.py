"""Step 6 of a pass: what of a plan is still written after one of its writes failed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bridge.core.model import Change, Current, Kind, Plan, Port
from bridge.core.reasons import Code
from bridge.errors import AlteredError, PermanentError
from bridge.pipeline.planner import apply_plan
from bridge.report import reason_of
from tests.unit.core.builders import TARGET, endpoints, group, instance, mirror_of, planned, ready, rule, service

HELD = Current(
    TARGET, service(ports=(Port("web", 8080),)), endpoints(group(*ready("10.0.0.1"), ports=(Port("web", 8080),)))
)


def made(port_name: str, labels: tuple[tuple[str, str], ...] = ()) -> Plan:
    """A plan that changes the Service and its Endpoints: a label, a second instance, perhaps the port's name."""
    found = [instance(), instance("10.0.0.2")]
    by = rule(port_name=port_name, labels=labels)
    return planned(mirror_of(found, by, HELD), HELD)


@pytest.mark.parametrize(
    ("plan", "tried"),
    [
        (made("http"), [Kind.SERVICE]),
        (made("web", (("team", "a"),)), [Kind.SERVICE, Kind.ENDPOINTS]),
    ],
    ids=["a port gets another name", "a label"],
)
def test_endpoints_keep_the_names_of_a_service_that_is_refused(plan: Plan, tried: list[Kind]) -> None:
    """Under another name than the Service's no client reaches it; whatever else was refused, health goes on."""
    assert [c.kind for c in plan.writes] == [Kind.SERVICE, Kind.ENDPOINTS]
    seen = []

    def write(change: Change) -> None:
        seen.append(change.kind)
        if change.kind is Kind.SERVICE:
            raise PermanentError("refused")

    outcome = apply_plan(plan, write)
    assert seen == tried
    assert [f.change.kind for f in outcome.failures] == [Kind.SERVICE]


def test_endpoints_of_a_service_that_cannot_be_made_are_not_written() -> None:
    """The control plane would delete them."""
    plan = planned(mirror_of([instance()]), Current(TARGET))
    seen = []

    def write(change: Change) -> None:
        seen.append(change.kind)
        raise PermanentError("refused")

    apply_plan(replace(plan, target=TARGET), write)
    assert seen == [Kind.SERVICE]


def test_a_service_that_was_stored_otherwise_is_there_and_its_endpoints_are_written() -> None:
    """A webhook that overrides a label must not keep a service from traffic."""
    plan = planned(mirror_of([instance()]), Current(TARGET))
    seen = []

    def write(change: Change) -> None:
        seen.append(change.kind)
        if change.kind is Kind.SERVICE:
            raise AlteredError("a label is gone", None)

    outcome = apply_plan(plan, write)
    assert seen == [Kind.SERVICE, Kind.ENDPOINTS]
    assert [reason_of(f.error).code for f in outcome.failures] == [Code.ALTERED]
