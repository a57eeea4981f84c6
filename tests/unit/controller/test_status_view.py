"""What the page's rows say of a service."""

from __future__ import annotations

from dataclasses import replace

from bridge.controller.status_view import StatusView
from bridge.core.model import Rule, Status
from bridge.report import Outcome
from tests.unit.controller.test_forced import ALL, Harness
from tests.unit.core.builders import TARGET


def test_a_held_row_counts_what_is_kept_for_a_host_name_as_a_row_without_a_hold_does() -> None:
    """`bridge status` and the page show what would be mirrored: an address that may be that name's is among it."""
    harness = Harness(Rule())
    named = replace(ALL[0], address="db.example.com")
    harness.bridge.read((named, *(replace(i, status=Status.CRITICAL) for i in ALL[1:])))
    plan = harness.bridge.plan()
    assert plan is not None
    assert plan.held
    view = StatusView(harness.bridge.planner, harness.bridge.seen.current, dict)
    (row,) = view.rows({TARGET: Outcome(plan)})
    assert (row.state, row.consul_ready, row.consul_not_ready) == ("held", 1, 29)
