"""What /metrics says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bridge.core.model import Action, Conflict, Held, Kind, Query, Skipped, Target
from bridge.engine.reconcile import HIDDEN_TEXT
from bridge.errors import (
    BridgeError,
    ConflictError,
    PermanentError,
    StaleError,
    ThrottledError,
    TransientError,
)
from bridge.observe.metrics import SKIP_REASONS, STATES, Metrics, error_kind, skip_reason
from bridge.observe.together import Together
from tests.unit.render.builders import TARGET, change, created, done, plan, report


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
    """Putting back what somebody deleted says nothing about the way from Consul."""
    metrics = Metrics("1")
    metrics.outcome(created_and_done(), None)
    assert value(metrics, "consul_bridge_sync_lag_seconds_count") == 0


@pytest.mark.parametrize(
    ("error", "label"),
    [
        (ThrottledError("429"), "throttled"),
        (StaleError("changed"), "stale"),
        (TransientError("503"), "transient"),
        (ConflictError("not ours"), "conflict"),
        (PermanentError("403"), "permanent"),
        (BridgeError("?"), "other"),
    ],
)
def test_errors_are_counted_by_what_can_be_done(error: BridgeError, label: str) -> None:
    """Their texts never become labels."""
    metrics = Metrics("1")
    failing = change(Action.UPDATE)
    metrics.outcome(done(plan(failing), (failing, error)), 0.1)
    assert error_kind(error) == label
    assert value(metrics, "consul_bridge_errors_total", kind=label) == 1
    assert value(metrics, "consul_bridge_writes_total", kind="Endpoints", action="update", result="error") == 1
    assert value(metrics, "consul_bridge_sync_lag_seconds_count") == 0


def states(metrics: Metrics) -> Mapping[str, float | None]:
    """Services by state, without the zeros."""
    found = {s: value(metrics, "consul_bridge_services", state=s) for s in STATES}
    return {s: n for s, n in found.items() if n}


def test_services_by_state_follow_passes_and_outcomes() -> None:
    """A pass says how everything is; outcomes move single services."""
    metrics = Metrics("1")
    waiting = created(1)
    conflict = done(plan(target=Target("a", "c"), conflicts=(Conflict(Target("a", "c"), Kind.SERVICE, "x"),)))
    hold = done(plan(target=Target("a", "h"), held=(Held(Target("a", "h"), "panic", 3, "x"),), ready=3))
    still = done(plan(change(Action.UNCHANGED), ready=4, not_ready=1))
    metrics.pass_done(0.5, report(waiting, conflict, hold, still))
    assert states(metrics) == {"pending": 1, "conflict": 1, "held": 1, "in_sync": 1}
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
    metrics.consul("dc1", False, "x")
    metrics.kubernetes(True, "")
    metrics.held((Held(TARGET, "removal", 12, "x"), Held(Target("a", "b"), "panic", 3, "x")))
    assert value(metrics, "consul_bridge_consul_up", datacenter="dc1") == 0
    assert value(metrics, "consul_bridge_kubernetes_up") == 1
    assert value(metrics, "consul_bridge_holds", cause="removal") == 1
    assert value(metrics, "consul_bridge_held_endpoints") == 15
    metrics.unread({Query("dc1", "web"): "torn off"})
    assert value(metrics, "consul_bridge_unread_services") == 1
    metrics.held(())
    assert value(metrics, "consul_bridge_holds", cause="removal") == 0
    assert value(metrics, "consul_bridge_held_endpoints") == 0


@pytest.mark.parametrize(
    ("reason", "label"),
    [
        ("conflict: Service a/b: has a selector", "conflict"),
        ("a/b is taken by web (dc1)", "name_taken"),
        ("the name '???' has no letter or digit to make a name of", "name_unmappable"),
        ("a Connect proxy or gateway (kind connect-proxy)", "proxy"),
        ("it came from a Kubernetes cluster (external-source)", "kubernetes"),
        ("the rule's tags or meta do not select it", "not_selected"),
        ("omitted: critical (service:web)", "omitted"),
        ("it has no port, and the rule gives none", "port"),
        ("port 70000 is not between 1 and 65535", "port"),
        ("10.0.0.1 is in deny_cidrs (10.0.0.0/8)", "cidr"),
        ("host name db.example could not be resolved", "host_name"),
        ("127.0.0.1 is a loopback address", "address"),
        ("::ffff:1.2.3.4 is an IPv4-mapped IPv6 address: register the IPv4 one itself", "address"),
        ("no address of the kind 'lan'", "address"),
        ("something new", "other"),
    ],
)
def test_reasons_become_few_labels(reason: str, label: str) -> None:
    """A reason has addresses and names in it; a label must not."""
    assert skip_reason(reason) == label
    metrics = Metrics("1")
    metrics.outcome(done(plan(skipped=(Skipped("a", "i", reason),))), None)
    assert value(metrics, "consul_bridge_skipped", reason=label) == 1


@pytest.mark.parametrize(
    ("warning", "label"),
    [
        ("1001 addresses in one subset: the control plane mirrors only 1000 of them into EndpointSlices", "truncated"),
        ("IPv6 endpoints cannot be reached: the Service has no IPv6 (spec.ipFamilies)", "unreachable"),
        ("instances have 2 values for the label env (meta:env): dev is taken", "contradiction"),
        (HIDDEN_TEXT, "hidden"),
        ("zone 'a b' is no label value: its endpoints have no zone", "zone"),
        ("the Service is being deleted; it is made anew when it is gone", "waiting"),
        ("something new", "other"),
    ],
)
def test_warnings_are_counted_by_service(warning: str, label: str) -> None:
    """Two sentences of one kind about one service are one service to look at."""
    metrics = Metrics("1")
    metrics.outcome(
        done(
            plan(warnings=(warning, warning + " ")),
        ),
        None,
    )
    assert value(metrics, "consul_bridge_warnings", reason=label) == 1
    metrics.outcome(done(plan()), None)
    assert value(metrics, "consul_bridge_warnings", reason=label) == 0


def test_hostile_names_never_become_labels() -> None:
    """The number of series does not grow with the catalog."""
    metrics = Metrics("1")
    metrics.pass_done(0.1, report(*[created(n) for n in range(50)]))
    before = len(metrics.text().splitlines())
    skips = tuple(Skipped(f"s{n}", f"i{n}", f"unheard-of {n}") for n in range(500))
    metrics.pass_done(0.1, report(*[created(n) for n in range(500)], done(plan(skipped=skips))))
    assert len(metrics.text().splitlines()) == before
    assert len(SKIP_REASONS) < 20


CATALOG = {
    "connected": False, "trouble": "refused", "seconds_since_last_success": 1.5, "budget": 60, "connections": 40,
    "services": 99, "direct_watches": 36, "reads_waiting": 3, "verification_found": 0,
    "confirmations": 2,
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
    assert value(metrics, "consul_bridge_missed_changes", datacenter="dc1") == 0
    assert value(metrics, "consul_bridge_consul_confirmations_total", datacenter="dc1") == 2
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
    catalog: dict[str, Any] = {}
    metrics.watch(lambda: {"catalog": catalog})
    metrics.consul("the agent's own", False, "refused")
    assert value(metrics, "consul_bridge_consul_up", datacenter="the agent's own") == 0
    metrics.consul("the agent's own", True, "")
    catalog["dc1"] = {"connected": True}
    assert value(metrics, "consul_bridge_consul_up", datacenter="the agent's own") is None
    assert value(metrics, "consul_bridge_consul_up", datacenter="dc1") == 1


def test_observers_together_hear_everything_even_when_one_fails() -> None:
    """Telling must never stop the work that is told about."""

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    metrics = Metrics("1")
    together = Together(Broken(), metrics)
    together.outcome(created_and_done(), 0.1)
    together.consul("dc1", True, "")
    together.kubernetes(True, "")
    together.held((Held(TARGET, "panic", 1, "x"),))
    together.pass_done(0.1, report())
    assert value(metrics, "consul_bridge_sync_lag_seconds_count") == 1
    assert value(metrics, "consul_bridge_consul_up", datacenter="dc1") == 1
    assert value(metrics, "consul_bridge_kubernetes_up") == 1
    assert value(metrics, "consul_bridge_holds", cause="panic") == 1
    assert value(metrics, "consul_bridge_full_passes_total") == 1
