"""In what state a service is: each state, which one goes before which, and what is behind it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bridge.core.model import Action, ActiveDatacenter, Change, Conflict, Held, Kind, Plan, Skipped
from bridge.core.reasons import Code, Reason
from bridge.core.service_state import (
    ServiceRow,
    ServiceState,
    active_datacenter,
    readable,
    service_state,
    state_detail,
    without_ready_endpoint,
)
from tests.unit.core.builders import QUERY, TARGET, said

CALM = Plan(TARGET, (QUERY,), warnings=(said("a warning"),))
CONFLICT = Conflict(TARGET, Kind.SERVICE, said("of another owner"))
HELD = Held(TARGET, Code.HELD_REMOVAL, 12, "12 ready endpoints would go")
DEVIATION = said("the mirror lacks 10.0.0.1:80")
WRITE = Change(action=Action.UPDATE, target=TARGET, kind=Kind.ENDPOINTS, name="radosgw", body=None, existing=None)
UNREAD = Reason(Code.DATACENTER_UNREAD, datacenter="ams", why="no answer")
ACTIVE = ActiveDatacenter(name="fra", why=Reason(Code.CARRIES, active="fra", has="1 of 1 ready"))

CAUSES: tuple[tuple[ServiceState, dict[str, Any], dict[str, Any]], ...] = (
    (ServiceState.FAILED, {}, {"failed": True}),
    (ServiceState.CONFLICT, {"conflicts": (CONFLICT,)}, {}),
    (ServiceState.HELD, {"held": (HELD,)}, {}),
    (ServiceState.OUT_OF_SYNC, {}, {"waiting": True}),
    (ServiceState.OUT_OF_SYNC, {"deviations": (DEVIATION,)}, {}),
    (ServiceState.UNKNOWN, {}, {"unread": True}),
    (ServiceState.UNKNOWN, {"warnings": (UNREAD,)}, {}),
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
    """Whatever else is reported."""
    assert service_state(None, **{"waiting": False, **given}) is ServiceState.UNKNOWN


def test_the_active_datacenter_is_that_of_the_plan() -> None:
    """None without a plan, and where no rule chooses one of several."""
    plans = (None, CALM, replace(CALM, active_datacenter=ACTIVE))
    assert [active_datacenter(plan) for plan in plans] == ["", "", "fra"]


def test_slices_deviate_once_they_have_had_their_time() -> None:
    """The control plane's mirror is always a little late; the service is out of sync before and after that."""
    young = replace(CALM, deviations=(DEVIATION,), deviations_recent=True)
    old = replace(young, deviations_recent=False)
    assert [service_state(plan, waiting=False) for plan in (young, old)] == [ServiceState.OUT_OF_SYNC] * 2
    assert [plan.deviates for plan in (CALM, young, old)] == [False, False, True]
    assert state_detail(ServiceState.OUT_OF_SYNC, young, (), ()) == "the mirror lacks 10.0.0.1:80"


@pytest.mark.parametrize("state", ServiceState)
def test_only_what_is_in_sync_is_marked_for_want_of_a_ready_endpoint(state: ServiceState) -> None:
    """In any other state that is what has to be looked at first."""
    in_sync = state is ServiceState.IN_SYNC
    assert [without_ready_endpoint(state, ready) for ready in (0, 1)] == [in_sync, False]
    marks = [_row(state, ready).mark for ready in (0, 1)]
    assert [readable(mark) for mark in marks] == ["no ready endpoint" if in_sync else readable(state), readable(state)]


def _row(state: ServiceState, ready: int) -> ServiceRow:
    return ServiceRow(
        namespace="storage", name="radosgw", service="radosgw", datacenter="dc1", consul_ready=ready,
        consul_not_ready=1, kubernetes_ready=ready, kubernetes_not_ready=1, state=state, detail="",
    )  # fmt: skip


def test_a_row_in_json_says_the_state_in_the_words_of_the_metrics() -> None:
    """`since` is null where nothing of ours was written."""
    assert replace(_row(ServiceState.OUT_OF_SYNC, 0), slices_deviate=True).to_json() == {
        "service": "radosgw", "datacenter": "dc1", "namespace": "storage", "name": "radosgw",
        "consul": {"ready": 0, "not_ready": 1}, "kubernetes": {"ready": 0, "not_ready": 1},
        "state": "out_of_sync", "no_ready_endpoint": False, "slices_deviate": True, "active_datacenter": None,
        "since": None, "reasons": [], "detail": "",
    }  # fmt: skip


def test_the_detail_of_a_service_without_ready_endpoint_is_what_is_skipped() -> None:
    """The first instance, with its reason; where there is none, why no Service is made. Not where traffic flows."""
    loopback = Reason(Code.ADDRESS_LOOPBACK, address="127.0.0.1")
    instances = tuple(Skipped("web", f"vm-{n}/web", loopback) for n in (1, 2))
    whole = Skipped("web", "", Reason(Code.NO_INSTANCES))
    silent = replace(CALM, warnings=())

    def detail(ready: int, *skipped: Skipped) -> str:
        return state_detail(ServiceState.IN_SYNC, replace(silent, ready=ready, skipped=skipped), (), ())

    assert detail(0, whole, *instances) == f"skipped: vm-1/web: {loopback} (and 1 more)"
    assert detail(0, whole) == whole.reason
    assert (detail(0), detail(1, *instances)) == ("", "")


@pytest.mark.parametrize(
    ("state", "detail"),
    [
        (ServiceState.CONFLICT, "Service: of another owner"),
        (ServiceState.HELD, "12 kept"),
        (ServiceState.OUT_OF_SYNC, "update Endpoints"),
        (ServiceState.IN_SYNC, "a warning"),
    ],
)
def test_the_detail_is_what_made_the_state(state: ServiceState, detail: str) -> None:
    """And no other cause beside it."""
    plan = replace(CALM, conflicts=(CONFLICT,), held=(HELD,), deviations=(DEVIATION,))
    assert state_detail(state, plan, (WRITE,), ("12 kept",)) == detail
