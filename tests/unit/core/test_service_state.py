"""In what state a service is: each state, which one goes before which, and what stands behind it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bridge.core.model import Action, Change, Conflict, Held, Kind, Plan
from bridge.core.reasons import Code
from bridge.core.service_state import ServiceState, service_state, state_detail
from tests.unit.core.builders import QUERY, TARGET, said

CALM = Plan(TARGET, (QUERY,), warnings=(said("a warning"),))
CONFLICT = Conflict(TARGET, Kind.SERVICE, said("of another owner"))
HELD = Held(TARGET, Code.HELD_REMOVAL, 12, "12 ready endpoints would go")
DEVIATION = said("the mirror lacks 10.0.0.1:80")
WRITE = Change(action=Action.UPDATE, target=TARGET, kind=Kind.ENDPOINTS, name="radosgw", body=None, existing=None)

CAUSES: tuple[tuple[ServiceState, dict[str, Any], dict[str, Any]], ...] = (
    (ServiceState.FAILED, {}, {"failed": True}),
    (ServiceState.CONFLICT, {"conflicts": (CONFLICT,)}, {}),
    (ServiceState.HELD, {"held": (HELD,)}, {}),
    (ServiceState.DIFFERS, {}, {"waiting": True}),
    (ServiceState.OUT_OF_SYNC, {"deviations": (DEVIATION,)}, {}),
    (ServiceState.UNKNOWN, {}, {"unread": True}),
    (ServiceState.IN_SYNC, {}, {}),
)
"""What makes each state, in the order of their precedence."""


@pytest.mark.parametrize("first", range(len(CAUSES)))
def test_each_state_goes_before_all_that_stand_below_it(first: int) -> None:
    """Alone, with each single one of those, and with all of them at once."""
    state, fields, given = CAUSES[first]
    everything: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for _, more_fields, more_given in CAUSES[first:]:
        plan = replace(CALM, **(more_fields | fields))
        assert service_state(plan, **{"waiting": False, **more_given, **given}) is state
        everything[0].update(more_fields)
        everything[1].update(more_given)
    assert service_state(replace(CALM, **everything[0]), **{"waiting": False, **everything[1]}) is state


@pytest.mark.parametrize("given", [given for _, _, given in CAUSES])
def test_nothing_is_known_of_a_service_without_a_plan(given: dict[str, Any]) -> None:
    """Whatever else is said."""
    assert service_state(None, **{"waiting": False, **given}) is ServiceState.UNKNOWN


def test_what_has_not_settled_yet_only_differs() -> None:
    """The control plane's mirror is always a little late; once it has had its time the service is out of sync."""
    young = replace(CALM, deviations=(DEVIATION,), settling=True)
    assert service_state(young, waiting=False) is ServiceState.DIFFERS
    assert service_state(replace(young, settling=False), waiting=False) is ServiceState.OUT_OF_SYNC
    assert state_detail(ServiceState.DIFFERS, young, (), ()) == "the mirror lacks 10.0.0.1:80"


@pytest.mark.parametrize(
    ("state", "detail"),
    [
        (ServiceState.CONFLICT, "Service: of another owner"),
        (ServiceState.HELD, "12 kept"),
        (ServiceState.DIFFERS, "update Endpoints"),
        (ServiceState.OUT_OF_SYNC, "the mirror lacks 10.0.0.1:80"),
        (ServiceState.IN_SYNC, "a warning"),
    ],
)
def test_the_detail_is_what_made_the_state(state: ServiceState, detail: str) -> None:
    """And no other cause beside it."""
    plan = replace(CALM, conflicts=(CONFLICT,), held=(HELD,), deviations=(DEVIATION,))
    assert state_detail(state, plan, (WRITE,), ("12 kept",)) == detail
