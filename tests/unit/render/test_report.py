"""What a pass says of itself: sums, rows, its JSON, and the exit status."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest

from bridge.core.model import (
    Action,
    Conflict,
    EndpointsBody,
    Held,
    Kind,
    Port,
    Query,
    ServiceBody,
    Skipped,
    Target,
)
from bridge.core.reasons import Code, Reason
from bridge.errors import PermanentError
from bridge.render.reports import failed_lines
from bridge.report import Report, action_of, build_report, exit_status, ports_text
from tests.unit.core.builders import said
from tests.unit.render.builders import QUERY, TARGET, change, created, done, group, plan, report


def test_json_has_exactly_the_keys_that_scripts_rely_on() -> None:
    """The shape of `bridge sync -o json`, with `conflicts` and `warnings` beside."""
    the_report = report(
        done(
            plan(
                change(Action.CREATE, Kind.SERVICE),
                change(Action.UNCHANGED, Kind.ENDPOINTS),
                conflicts=(Conflict(TARGET, Kind.ENDPOINTS, Reason(Code.TAKEN, said="not ours")),),
                skipped=(Skipped("radosgw", "i-1", Reason(Code.ADDRESS_LOOPBACK, address="127.0.0.1")),),
                warnings=(Reason(Code.ZONE_INVALID, zone="a b", more=""),),
                held=(Held(TARGET, Code.HELD_REMOVAL, 3, "12 of 20"),),
            )
        ),
        dry_run=False,
        unknown={Query("dc1", "db"): "500"},
    )
    assert the_report.to_json() == {
        "summary": {
            "create": 1,
            "update": 0,
            "delete": 0,
            "unchanged": 1,
            "held": 1,
            "skipped": 2,
            "failed": 1,
            "conflicts": 1,
        },
        "changes": [
            {
                "action": "create",
                "kind": "Service",
                "namespace": "storage",
                "name": "radosgw",
                "service": "radosgw",
                "datacenter": "dc1",
                "ready": 0,
                "not_ready": 0,
                "reason": "",
                "message": "",
            }
        ],
        "skipped": [
            {
                "service": "radosgw",
                "instance": "",
                "reason": "conflict",
                "message": "conflict: Endpoints storage/radosgw: not ours",
            },
            {
                "service": "radosgw",
                "instance": "i-1",
                "reason": "address_loopback",
                "message": "127.0.0.1 is a loopback address: it would mean each client's own machine",
            },
        ],
        "held": [
            {
                "namespace": "storage",
                "name": "radosgw",
                "service": "radosgw",
                "datacenter": "dc1",
                "endpoints": 3,
                "reason": "removal",
                "message": "12 of 20",
                "command": "",
            }
        ],
        "failed": [
            {
                "action": "read",
                "kind": "",
                "namespace": "",
                "name": "",
                "service": "db",
                "datacenter": "dc1",
                "reason": "read_failed",
                "message": "500",
            }
        ],
        "conflicts": [
            {
                "kind": "Endpoints",
                "namespace": "storage",
                "name": "radosgw",
                "service": "radosgw",
                "datacenter": "dc1",
                "reason": "taken",
                "message": "not ours",
            }
        ],
        "warnings": [
            {
                "namespace": "storage",
                "name": "radosgw",
                "service": "radosgw",
                "datacenter": "dc1",
                "reason": "zone_invalid",
                "message": "zone 'a b' is no label value: its endpoints have no zone",
            }
        ],
    }


def test_the_order_of_outcomes_never_matters() -> None:
    """Two passes over the same state print the same bytes."""
    outcomes = [created(n) for n in range(3)]
    texts = {
        json.dumps(build_report(order, {Query("b", "x"): "1", Query("a", "y"): "2"}, True).to_json())
        for order in itertools.permutations(outcomes)
    }
    assert len(texts) == 1


def test_a_dry_run_counts_what_is_still_to_be_done() -> None:
    """What was applied meanwhile is as it should be: /api/status does not say `create` forever."""
    the_plan = plan(change(Action.CREATE, Kind.SERVICE), change(Action.CREATE, Kind.ENDPOINTS))
    assert report(done(the_plan), dry_run=True).summary.to_json() == {
        "create": 0, "update": 0, "delete": 0, "unchanged": 2, "held": 0, "skipped": 0, "failed": 0, "conflicts": 0,
    }  # fmt: skip


def test_what_an_earlier_failure_left_untried_counts_as_failed() -> None:
    """A partial failure is a failure, and names every object."""
    service = change(Action.CREATE, Kind.SERVICE)
    endpoints = change(Action.CREATE, Kind.ENDPOINTS)
    the_plan = plan(service, endpoints)
    outcome = done(the_plan, (service, PermanentError("forbidden")))
    the_report = report(type(outcome)(the_plan, (), outcome.failures), dry_run=False)
    assert [(r.kind, r.reason) for r in the_report.failed] == [
        ("Endpoints", "not tried, because the create of Service radosgw failed"),
        ("Service", "forbidden"),
    ]
    assert the_report.changes == ()
    assert action_of(the_report.outcomes[0], dry_run=False)[0] == "failed"


@pytest.mark.parametrize(
    ("the_report", "dry_run", "exit_code", "status"),
    [
        (report(), False, False, 0),
        (report(created(1)), True, False, 0),
        (report(created(1)), True, True, 4),
        (report(created(1)), False, True, 0),
        (report(done(plan(skipped=(Skipped("a", "b", said("c")),)))), False, True, 0),
        (report(done(plan(conflicts=(Conflict(TARGET, Kind.SERVICE, said("x")),)))), False, True, 5),
        (report(done(plan(conflicts=(Conflict(TARGET, Kind.SERVICE, said("x")),))), created(1)), True, True, 5),
        (
            report(
                done(plan(conflicts=(Conflict(TARGET, Kind.SERVICE, said("x")),))),
                done(plan(held=(Held(TARGET, Code.HELD_PANIC, 1, "x"),))),
            ),
            True,
            False,
            3,
        ),
        (report(done(plan(held=(Held(TARGET, Code.HELD_PANIC, 1, "x"),)))), False, False, 3),
        (report(done(plan(held=(Held(TARGET, Code.HELD_PANIC, 1, "x"),))), created(1)), True, True, 3),
        (report(done(plan(held=(Held(TARGET, Code.HELD_PANIC, 1, "x"),))), unknown={QUERY: "500"}), False, False, 1),
        (report(unknown={QUERY: "500"}), True, True, 1),
    ],
)
def test_exit_status(the_report: Report, dry_run: bool, exit_code: bool, status: int) -> None:
    """Failed before held before in conflict before changed."""
    assert exit_status(the_report, dry_run, exit_code) == status


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([change(Action.CREATE, Kind.SERVICE), change(Action.CREATE)], "create"),
        ([change(Action.UNCHANGED, Kind.SERVICE), change(Action.CREATE)], "update"),
        ([change(Action.DELETE, Kind.SERVICE), change(Action.DELETE)], "delete"),
        ([change(Action.UNCHANGED, Kind.SERVICE), change(Action.UPDATE)], "update"),
        ([change(Action.UNCHANGED, Kind.SERVICE), change(Action.UNCHANGED)], "unchanged"),
    ],
)
def test_one_word_for_a_target(changes: list[object], expected: str) -> None:
    """It comes, it goes, it changes or it stays."""
    assert action_of(done(plan(*changes)), dry_run=False)[0] == expected  # type: ignore[arg-type]


def test_the_row_of_a_service_that_loses_everything_says_why_and_not_what_follows() -> None:
    """Its slice is not needed any more because of that."""
    emptied = (
        change(Action.UPDATE),
        replace(change(Action.DELETE, Kind.ENDPOINT_SLICE), reason=Reason(Code.NOT_NEEDED)),
    )
    lost = replace(plan(*emptied), ready_before=2, removed=2)
    flipped, warned = replace(lost, removed=0), replace(lost, warnings=(said("no instance has the tag"),))
    assert [action_of(done(p), dry_run=False) for p in (lost, flipped, warned, plan(emptied[1]))] == [
        ("update", "Consul no longer lists what was ready"),
        ("update", "nothing of it is ready any more"),
        ("update", "no instance has the tag"),
        ("delete", "not needed any more"),
    ]


def test_ports_for_users() -> None:
    """The Service's port, and the instances' where they differ."""
    service = change(Action.UPDATE, Kind.SERVICE, ServiceBody((Port("http", 80), Port("m", 9)), False, (), (), ()))
    groups = (group("10.0.0.1"), group("10.0.0.2", port=8081), group("10.0.0.1", port=9, name="m"))
    endpoints = change(Action.UPDATE, Kind.ENDPOINTS, EndpointsBody(groups, (), ()))
    assert ports_text([service, endpoints]) == "80:8080,8081 9"
    assert ports_text([endpoints]) == "8080,8081 9"
    assert ports_text([change(Action.DELETE)]) == ""
    many = replace(endpoints, body=EndpointsBody(tuple(group("10.0.0.1", port=n) for n in range(20000, 20300)), (), ()))
    assert ports_text([service, many]) == "80:20000,20001,20002,+297 9"


def test_services_that_never_became_a_target_are_skipped() -> None:
    """Names that cannot be mapped have no plan."""
    the_report = build_report([], {}, True, skipped=[Skipped("???", "", said("no letter"))])
    assert the_report.summary.skipped == 1
    assert exit_status(the_report, True, True) == 0


def test_several_services_behind_one_target_are_joined() -> None:
    """A row names all of them."""
    the_plan = plan(change())
    joined = type(the_plan)(
        Target("a", "b"), (Query("dc2", "y"), Query("dc1", "x"), Query("dc1", "y")), the_plan.changes
    )
    (row,) = report(done(joined), dry_run=False).changes
    assert (row.service, row.datacenter) == ("x,y", "dc1,dc2")


def test_targets_of_an_unreadable_namespace_are_failed_reads() -> None:
    """One row each, with the services behind it; in words they share a line, by namespace."""
    targets = [(Target("apps", f"s-{n}"), (Query("dc1", f"s-{n}"),), "forbidden") for n in range(5)]
    found = build_report([], {}, dry_run=True, unplanned=[*targets, (Target("empty", ""), (), "forbidden")])
    assert [(r.action, r.namespace, r.name, r.service, r.datacenter) for r in found.failed] == [
        *(("read", "apps", f"s-{n}", f"s-{n}", "dc1") for n in range(5)),
        ("read", "empty", "", "", ""),
    ]
    assert failed_lines(found) == [
        "reading namespace apps for s-0, s-1, s-2 and 2 more (what is there stays): forbidden",
        "reading namespace empty (what is there stays): forbidden",
    ]
