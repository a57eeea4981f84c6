"""States are reported again and again, and become an event when they change."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bridge.controller.state_changes import StateChanges
from bridge.core.model import Held, Query
from bridge.core.reasons import Code
from bridge.telemetry.events import HoldsChanged, StateEvent
from bridge.telemetry.fan_out import FanOutObserver
from tests.unit.core.builders import TARGET

HELD = Held(TARGET, Code.HELD_REMOVAL, 12, "12 ready endpoints are kept")
WEB, DB = Query("dc1", "web"), Query("dc1", "db")


class Kept(FanOutObserver):
    """Keeps every event."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[StateEvent] = []

    def changed(self, event: StateEvent) -> None:
        """Kept."""
        self.events.append(event)


def changes(*tell: Callable[[StateChanges], None]) -> list[StateEvent]:
    """The events that come of these, each told twice."""
    kept = Kept()
    states = StateChanges(kept)
    for say in tell:
        say(states)
        say(states)
    return kept.events


@pytest.mark.parametrize(
    ("one", "other", "events"),
    [
        (lambda s: s.consul("dc1", True, ""), lambda s: s.consul("dc1", False, "refused"), 3),
        (lambda s: s.kubernetes(True, ""), lambda s: s.kubernetes(False, "refused"), 3),
        (lambda s: s.held(()), lambda s: s.held((HELD,)), 3),
        (lambda s: s.service_read_errors({}), lambda s: s.service_read_errors({WEB: "torn off"}), 2),
        (lambda s: s.service_read_errors({WEB: "a"}), lambda s: s.service_read_errors({WEB: "a", DB: "b"}), 3),
        (lambda s: s.unreadable({}), lambda s: s.unreadable({"apps": "forbidden"}), 2),
        (lambda s: s.slices_forbidden({}), lambda s: s.slices_forbidden({"apps": "create"}), 2),
        (lambda s: s.warned(()), lambda s: s.warned(("TLS is not verified",)), 1),
        (lambda s: s.conflicting_writer(""), lambda s: s.conflicting_writer("another process"), 2),
        (lambda s: s.credentials(""), lambda s: s.credentials("the plugin hangs"), 2),
    ],
)
def test_a_state_is_an_event_when_it_changes_and_no_other_time(
    one: Callable[[StateChanges], None], other: Callable[[StateChanges], None], events: int
) -> None:
    """There and back; what is well from the start is reported where a gauge has to know it."""
    assert len(changes(one, other, one)) == events


def test_a_hold_is_ours_from_when_we_write_its_target() -> None:
    """Only the replica that writes makes Kubernetes Events of it: the next leader tells what is held already."""
    kept = Kept()
    states = StateChanges(kept)
    for leads in (False, True, False):
        states.held((HELD,), lambda _target, leads=leads: leads)  # type: ignore[misc]
    found = [(e.began, e.ours_began, e.ours_ended) for e in kept.events if isinstance(e, HoldsChanged)]
    assert found == [((HELD,), (), ()), ((), (HELD,), ()), ((), (), ())]
