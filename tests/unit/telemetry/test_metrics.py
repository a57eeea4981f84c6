"""What /metrics says."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import replace
from string import Formatter
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bridge.controller.state_changes import StateChanges
from bridge.core.assignments import TargetAssignments
from bridge.core.model import (
    Action,
    ActiveDatacenter,
    Conflict,
    Held,
    Instance,
    Kind,
    Known,
    Query,
    Rule,
    Skipped,
    Status,
    Target,
)
from bridge.core.reasons import SENTENCES, SKIPS, WARNINGS, Code, Reason
from bridge.core.translate import translate
from bridge.errors import (
    BridgeError,
    ConflictError,
    PermanentError,
    StaleError,
    ThrottledError,
    TransientError,
)
from bridge.report import Outcome
from bridge.telemetry.fan_out import FanOutObserver
from bridge.telemetry.metrics import STATES, Metrics
from tests.unit.core.builders import said
from tests.unit.render.builders import QUERY, TARGET, change, created, done, plan, report


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """One sample."""
    return metrics.registry.get_sample_value(name, labels)


def test_the_page_is_what_prometheus_reads_and_names_follow_its_conventions() -> None:
    """Prefix, unit, `_total` for counters, help for everything."""
    metrics = Metrics("1.2.3")
    metrics.watch(
        lambda: {
            "ready": True,
            "queue": 1,
            "catalog": {"dc1": CATALOG},
            "cache": {"backing_off": False},
        }
    )
    families = list(text_string_to_metric_families(metrics.text().decode()))
    ours = [f for f in families if not f.name.startswith("process_")]
    assert len(ours) > 15
    for family in ours:
        assert re.fullmatch(r"consul_bridge_[a-z_]+", family.name)
        assert family.documentation.endswith("."), family.name
        assert not re.search(r"_(ms|milliseconds|minutes)$", family.name)
    assert value(metrics, "consul_bridge_build_info", version="1.2.3") == 1


def test_two_instances_do_not_share_anything() -> None:
    """No global registry."""
    one, other = Metrics("1"), Metrics("1")
    one.outcome(created_and_done(), 0.01)
    assert value(other, "consul_bridge_writes_total", kind="Service", action="create", result="ok") == 0


def created_and_done() -> Any:
    """A Service and its Endpoints, created."""
    return done(plan(change(Action.CREATE, Kind.SERVICE), change(Action.CREATE), ready=3, not_ready=2))


def test_writes_and_lag_are_counted() -> None:
    """By kind, action and result."""
    metrics = Metrics("1")
    metrics.outcome(created_and_done(), 0.015)
    assert value(metrics, "consul_bridge_writes_total", kind="Service", action="create", result="ok") == 1
    assert value(metrics, "consul_bridge_writes_total", kind="Endpoints", action="create", result="ok") == 1
    assert value(metrics, "consul_bridge_sync_lag_seconds_count") == 1
    assert value(metrics, "consul_bridge_sync_lag_seconds_bucket", le="0.02") == 1
    assert value(metrics, "consul_bridge_sync_lag_seconds_bucket", le="0.01") == 0


def test_a_write_without_a_change_in_consul_has_no_lag() -> None:
    """Putting back what a user deleted says nothing about the way from Consul."""
    metrics = Metrics("1")
    metrics.outcome(created_and_done(), None)
    assert value(metrics, "consul_bridge_sync_lag_seconds_count") == 0


@pytest.mark.parametrize(
    ("error", "label"),
    [
        (ThrottledError("429"), "throttled"),
        (StaleError("changed"), "stale"),
        (TransientError("503"), "transient"),
        (ConflictError("not ours"), "taken"),
        (PermanentError("403"), "permanent"),
        (BridgeError("?"), "other"),
    ],
)
def test_errors_are_counted_by_what_can_be_done(error: BridgeError, label: str) -> None:
    """Their texts never become labels."""
    metrics = Metrics("1")
    failing = change(Action.UPDATE)
    metrics.outcome(done(plan(failing), (failing, error)), 0.1)
    assert value(metrics, "consul_bridge_errors_total", kind=label) == 1
    assert value(metrics, "consul_bridge_writes_total", kind="Endpoints", action="update", result="error") == 1
    assert value(metrics, "consul_bridge_sync_lag_seconds_count") == 0


def states(metrics: Metrics) -> Mapping[str, float | None]:
    """Services by state, without the zeros."""
    found = {s: value(metrics, "consul_bridge_services", state=s) for s in STATES}
    return {s: n for s, n in found.items() if n}


def test_services_without_any_ready_endpoint_are_counted() -> None:
    """As the page marks them: what is not in sync has a state that has to be looked at first."""
    metrics = Metrics("1")
    target = Target("a", "c")
    conflict = done(plan(target=target, conflicts=(Conflict(target, Kind.SERVICE, said("x")),)))
    ready = done(plan(change(Action.UNCHANGED), target=Target("a", "r"), ready=1, not_ready=2))
    empty = done(plan(change(Action.UNCHANGED), target=Target("a", "e"), not_ready=3))
    waiting = done(plan(change(Action.UPDATE), target=Target("a", "w"), not_ready=3), (change(), TransientError("503")))
    metrics.pass_done(0.5, report(conflict, ready, empty, waiting))
    assert value(metrics, "consul_bridge_services_without_ready_endpoints") == 1
    metrics.outcome(done(plan(change(Action.UPDATE), target=Target("a", "e"), ready=3)), None)
    assert value(metrics, "consul_bridge_services_without_ready_endpoints") == 0


def test_slices_that_deviate_are_counted_when_they_have_had_their_time() -> None:
    """A service that is out of sync for a moment, because something is still to be written, is not one of them."""
    metrics = Metrics("1")
    young = replace(plan(change(Action.UNCHANGED)), deviations=(said("lacks one"),), deviations_recent=True)
    for outcome, counted in ((created(1), 0), (done(young), 0), (done(replace(young, deviations_recent=False)), 1)):
        metrics.pass_done(0.5, report(outcome))
        assert states(metrics) == {"out_of_sync": 1}
        assert value(metrics, "consul_bridge_services_with_deviating_slices") == counted


def test_services_by_state_follow_passes_and_outcomes() -> None:
    """A pass says how everything is; outcomes move single services."""
    metrics = Metrics("1")
    waiting = created(1)
    conflict = done(plan(target=Target("a", "c"), conflicts=(Conflict(Target("a", "c"), Kind.SERVICE, said("x")),)))
    hold = done(plan(target=Target("a", "h"), held=(Held(Target("a", "h"), Code.HELD_PANIC, 3, "x"),), ready=3))
    still = done(plan(change(Action.UNCHANGED), ready=4, not_ready=1))
    metrics.pass_done(0.5, report(waiting, conflict, hold, still))
    assert states(metrics) == {"out_of_sync": 1, "conflict": 1, "held": 1, "in_sync": 1}
    assert value(metrics, "consul_bridge_endpoints", state="ready") == 8
    assert value(metrics, "consul_bridge_endpoints", state="not_ready") == 1
    assert value(metrics, "consul_bridge_conflicts") == 1
    metrics.outcome(done(waiting.plan), 0.1)
    assert states(metrics) == {"conflict": 1, "held": 1, "in_sync": 2}
    metrics.outcome(done(plan(change(Action.DELETE))), 0.1)
    assert states(metrics) == {"conflict": 1, "held": 1, "in_sync": 1}
    metrics.outcome(done(plan(target=Target("a", "h"))), None)  # another replica has removed it: nothing is left
    assert states(metrics) == {"conflict": 1, "in_sync": 1}
    metrics.pass_done(0.5, report(still))
    assert states(metrics) == {"in_sync": 1}
    assert value(metrics, "consul_bridge_full_passes_total") == 2


def test_a_service_that_could_not_be_read_is_unknown_as_on_the_page() -> None:
    """Also one of which there is no plan yet; a state that has to be looked at first stays."""
    metrics, other, never = Metrics("1"), Query("dc1", "other"), Query("dc1", "never")
    held = done(plan(target=Target("a", "h"), query=other, held=(Held(Target("a", "h"), Code.HELD_PANIC, 3, "x"),)))
    metrics.pass_done(0.5, report(done(plan(change(Action.UNCHANGED))), held))
    StateChanges(metrics).service_read_errors({QUERY: "500", other: "500", never: "403"})
    assert states(metrics) == {"unknown": 2, "held": 1}
    StateChanges(metrics).service_read_errors({other: "500"})
    assert states(metrics) == {"in_sync": 1, "held": 1}


def test_switches_of_datacenters_are_counted() -> None:
    """Where the Service was written: it is what says who carries the traffic."""
    metrics = Metrics("1")
    why = Reason(Code.FAILED_OVER, active="fra", preferred="ams", why="it has no instance")
    active = ActiveDatacenter(name="fra", why=why, preferred=False, before="ams")
    made = replace(plan(change(Action.UPDATE, Kind.SERVICE), warnings=(why,)), active_datacenter=active)
    metrics.outcome(Outcome(made), None)
    assert value(metrics, "consul_bridge_datacenter_switches_total", before="ams", active="fra") is None
    metrics.outcome(done(made), None)
    assert value(metrics, "consul_bridge_datacenter_switches_total", before="ams", active="fra") == 1
    assert value(metrics, "consul_bridge_warnings", reason="failed_over") == 1


def test_the_last_successful_pass_needs_everything_to_be_read() -> None:
    """An alert on its age must not be silenced by passes that saw nothing."""
    now = 1000.0
    metrics = Metrics("1", wall_clock=lambda: now)
    metrics.pass_done(0.1, report(unknown={Query("dc1", "a"): "500"}))
    assert value(metrics, "consul_bridge_last_successful_pass_timestamp_seconds") == 0
    metrics.pass_done(0.1, report())
    assert value(metrics, "consul_bridge_last_successful_pass_timestamp_seconds") == 1000


def test_sides_and_holds() -> None:
    """Up or down, and what is held by cause; a cause that went away is zero, not missing."""
    metrics = Metrics("1")
    states = StateChanges(metrics)
    states.consul("dc1", False, "x")
    states.kubernetes(True, "")
    states.held((Held(TARGET, Code.HELD_REMOVAL, 12, "x"), Held(Target("a", "b"), Code.HELD_PANIC, 3, "x")))
    assert value(metrics, "consul_bridge_consul_up", datacenter="dc1") == 0
    assert value(metrics, "consul_bridge_kubernetes_up") == 1
    assert value(metrics, "consul_bridge_holds", cause="removal") == 1
    assert value(metrics, "consul_bridge_held_endpoints") == 15
    web, theirs = Query("dc1", "web"), Query("dc1", "..")
    states.service_read_errors({web: "torn off"})
    assert value(metrics, "consul_bridge_service_read_errors", cause="rule") == 1
    states.service_read_errors({theirs: "no such path"}, frozenset({web, theirs}))
    assert value(metrics, "consul_bridge_service_read_errors", cause="rule") == 0
    assert value(metrics, "consul_bridge_service_read_errors", cause="annotation") == 1
    states.held(())
    assert value(metrics, "consul_bridge_holds", cause="removal") == 0
    assert value(metrics, "consul_bridge_held_endpoints") == 0


@pytest.mark.parametrize("code", [*SKIPS, Code.OTHER])
def test_skips_are_counted_by_their_code(code: Code) -> None:
    """And a code that nothing carries is 0, not missing."""
    metrics = Metrics("1")
    metrics.outcome(done(plan(skipped=(Skipped("a", "i", coded(code)), Skipped("b", "i", coded(code))))), None)
    assert value(metrics, "consul_bridge_skipped", reason=code.value) == 2
    metrics.outcome(done(plan()), None)
    assert value(metrics, "consul_bridge_skipped", reason=code.value) == 0


@pytest.mark.parametrize("code", [*WARNINGS, Code.OTHER])
def test_warnings_are_counted_by_service(code: Code) -> None:
    """Two sentences of one kind about one service are one service to look at."""
    metrics = Metrics("1")
    metrics.outcome(done(plan(warnings=(coded(code, 1), coded(code, 2)))), None)
    assert value(metrics, "consul_bridge_warnings", reason=code.value) == 1
    metrics.outcome(done(plan()), None)
    assert value(metrics, "consul_bridge_warnings", reason=code.value) == 0


def coded(code: Code, number: int = 1) -> Reason:
    """A reason with any data that its sentence may want."""
    sentence = SENTENCES[code]
    if not isinstance(sentence, str):
        return Reason(code, **dict.fromkeys(inspect.signature(sentence).parameters, str(number)))
    return Reason(code, **{name: number for _, name, _, _ in Formatter().parse(sentence) if name})


def test_a_service_that_did_not_get_its_name_is_counted_as_such() -> None:
    """It is reported by the code; its sentence has names in it that anyone may choose."""
    claims, target = TargetAssignments(), Target("default", "web")
    for datacenter in ("dc1", "dc2"):
        claims.claim(Query(datacenter, "web"), Rule(), target)
    metrics = Metrics("1")
    metrics.outcome(done(plan(skipped=claims.rejected(target))), None)
    assert value(metrics, "consul_bridge_skipped", reason="name_taken") == 1


@pytest.mark.parametrize(
    "name", ["a proxy or gateway", "is in deny_cidrs", "omitted", "no letter or digit", "ports", "Kubernetes cluster"]
)
def test_what_is_registered_in_consul_cannot_choose_its_label(name: str) -> None:
    """Whatever words stand in an address: it is no address, and no more."""
    instance = Instance(node="vm", id=name, address=name, node_address="", port=80, status=Status.PASSING)
    query = Query("dc1", name)
    skipped = translate(TARGET, [(Rule(), query, Known((instance,)))]).skipped
    metrics = Metrics("1")
    metrics.outcome(done(plan(skipped=skipped)), None)
    wanted = {Code.HOST_NAME_UNRESOLVED.value if name in ("omitted", "ports") else Code.NOT_AN_ADDRESS.value: 1.0}
    found = {code.value: value(metrics, "consul_bridge_skipped", reason=code.value) for code in Code}
    assert {code: n for code, n in found.items() if n and code != Code.NO_USABLE_ADDRESSES.value} == wanted


def test_hostile_names_never_become_labels() -> None:
    """The number of series does not grow with the catalog."""
    metrics = Metrics("1")
    metrics.pass_done(0.1, report(*[created(n) for n in range(50)]))
    before = len(metrics.text().splitlines())
    skips = tuple(Skipped(f"s{n}", f"i{n}", said(f"unheard-of {n}")) for n in range(500))
    metrics.pass_done(0.1, report(*[created(n) for n in range(500)], done(plan(skipped=skips))))
    assert len(metrics.text().splitlines()) == before


CATALOG = {
    "connected": False, "trouble": "refused", "seconds_since_last_success": 1.5, "budget": 60, "connections": 40,
    "services": 99, "direct_watches": 36, "reads_waiting": 3, "missed_changes": 0,
    "confirmations": 2, "streaming_mismatches": ["db", "web"],
}  # fmt: skip


def test_other_rooms_are_asked_at_the_scrape() -> None:
    """Connections against the budget, backoff, the queue."""
    metrics = Metrics("1")
    metrics.watch(
        lambda: {
            "ready": False,
            "queue": 7,
            "catalog": {"dc1": CATALOG},
            "cache": {"backing_off": True},
        }
    )
    assert value(metrics, "consul_bridge_ready") == 0
    assert value(metrics, "consul_bridge_queue_length") == 7
    assert value(metrics, "consul_bridge_blocking_queries", datacenter="dc1") == 36
    assert value(metrics, "consul_bridge_consul_services", datacenter="dc1") == 99
    assert value(metrics, "consul_bridge_consul_reads_waiting", datacenter="dc1") == 3
    assert value(metrics, "consul_bridge_missed_changes_total", datacenter="dc1") == 0
    assert value(metrics, "consul_bridge_consul_confirmations_total", datacenter="dc1") == 2
    assert value(metrics, "consul_bridge_streaming_mismatch_services", datacenter="dc1") == 2
    assert value(metrics, "consul_bridge_consul_connections", datacenter="dc1") == 40
    assert value(metrics, "consul_bridge_consul_connections_budget", datacenter="dc1") == 60
    assert value(metrics, "consul_bridge_consul_last_success_age_seconds", datacenter="dc1") == 1.5
    assert value(metrics, "consul_bridge_backing_off", side="consul", datacenter="dc1") == 1
    assert value(metrics, "consul_bridge_backing_off", side="kubernetes", datacenter="") == 1


def test_before_the_start_there_is_still_a_page() -> None:
    """The probe and Prometheus come early."""
    metrics = Metrics("1")
    metrics.watch(lambda: {"ready": False, "catalog": {}, "cache": {}})
    assert b"consul_bridge_ready 0.0" in metrics.text()


def test_a_datacenter_has_one_series_also_when_its_name_was_not_known_at_first() -> None:
    """Trouble before the agent has said its name is seen, and does not stay beside the datacenter afterwards."""
    metrics = Metrics("1")
    states = StateChanges(metrics)
    catalog: dict[str, Any] = {}
    metrics.watch(lambda: {"catalog": catalog})
    states.consul("the agent's own", False, "refused")
    assert value(metrics, "consul_bridge_consul_up", datacenter="the agent's own") == 0
    states.consul("the agent's own", True, "")
    catalog["dc1"] = {"connected": True}
    assert value(metrics, "consul_bridge_consul_up", datacenter="the agent's own") is None
    assert value(metrics, "consul_bridge_consul_up", datacenter="dc1") == 1


def test_observers_together_hear_everything_even_when_one_fails() -> None:
    """Telling must never stop the work that it reports."""

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    metrics = Metrics("1")
    together = FanOutObserver(Broken(), metrics)
    states = StateChanges(together)
    together.outcome(created_and_done(), 0.1)
    states.consul("dc1", True, "")
    states.kubernetes(True, "")
    states.held((Held(TARGET, Code.HELD_PANIC, 1, "x"),))
    together.pass_done(0.1, report())
    assert value(metrics, "consul_bridge_sync_lag_seconds_count") == 1
    assert value(metrics, "consul_bridge_consul_up", datacenter="dc1") == 1
    assert value(metrics, "consul_bridge_kubernetes_up") == 1
    assert value(metrics, "consul_bridge_holds", cause="panic") == 1
    assert value(metrics, "consul_bridge_full_passes_total") == 1
