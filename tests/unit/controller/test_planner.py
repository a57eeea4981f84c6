"""When a target is planned again although nothing happens, and when it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bridge.core.guard import Guard
from bridge.core.model import (
    ClusterNodes,
    Combine,
    Destination,
    Instance,
    Kind,
    Known,
    Listing,
    Query,
    Rule,
    Status,
    Target,
)
from bridge.core.reasons import Code, Reason
from bridge.core.reconcile import PlanOptions, reconcile
from bridge.core.state import ConsulState
from bridge.kube.store import Store
from bridge.pipeline import planner as planner_module
from bridge.pipeline.planner import Planner
from tests.support.bench.simulation import Simulation, instances, query
from tests.support.options import guard_settings

FAILOVER = Rule(
    services=("web",),
    datacenters=("dc1", "dc2"),
    combine=Combine.FAILOVER,
    to=Destination(namespace="apps", name="web"),
)
WEB = Target("apps", "web")


def test_a_target_without_a_choice_is_planned_again_when_the_preferred_datacenter_is_believed() -> None:
    """Its Consul was just rebuilt: which datacenter carries the traffic is decided when that is over, not by luck."""
    now = [0.0]
    state = ConsulState((FAILOVER,), ("dc1", "dc2"), grace_seconds=0.0)
    guard = Guard(guard_settings(restore_hold_seconds=60.0))
    planner = Planner(
        consul_state=state, store=Store("default"), guard=guard, options=PlanOptions(), clock=lambda: now[0],
    )  # fmt: skip
    for number, datacenter in enumerate(FAILOVER.datacenters):
        address = f"10.0.0.{number}"
        instance = Instance(node="vm", id="web", address=address, node_address=address, port=80, status=Status.PASSING)
        state.on_listing(datacenter, Listing({"web": frozenset()}), now=0.0)
        state.on_view(Query(datacenter, "web"), Known((instance,)))
    guard.rebuilt("dc1", 0.0)
    undecided, early = planner.plan(WEB), planner.expired(59.0)
    now[0] = 60.0
    assert (undecided, early, planner.expired(60.0), planner.expired(61.0)) == (None, set(), {WEB}, set())
    decided = planner.plan(WEB)
    assert decided is not None
    assert decided.active_datacenter is not None
    assert decided.active_datacenter.name == "dc1"


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the targets that were planned, in order."""
    names: list[str] = []

    def note(inputs: Any, *more: Any) -> Any:
        names.append(inputs.target.name)
        return reconcile(inputs, *more)

    monkeypatch.setattr(planner_module, "reconcile", note)
    return names


def full_pass(mirrored: Simulation) -> Callable[[], int]:
    """A full pass over all targets, which returns how many writes it plans."""
    targets = mirrored.consul_state.targets()
    return lambda: sum(len(plan.writes) for plan in mirrored.planner.plan_full_pass(targets))


def test_a_full_pass_plans_only_what_may_have_changed(planned: list[str]) -> None:
    """Whatever side it changed on; a target with writes is planned until nothing is left to write."""
    mirrored = Simulation(3)
    mirrored.store.routes_unread[""] = Reason(Code.ROUTES_UNREAD, why="there are none")
    mirrored.first_pass()
    passes = full_pass(mirrored)
    planned.clear()
    assert (passes(), planned) == (0, ["service-0", "service-1", "service-2"])
    planned.clear()
    assert (passes(), planned) == (0, [])
    first, *others = instances(1)
    mirrored.consul_state.on_view(query(1), Known((replace(first, status=Status.CRITICAL), *others)))
    assert (passes(), passes(), planned) == (2, 2, ["service-1", "service-1"])
    planned.clear()
    stored = mirrored.store.current(Target("default", "service-2")).endpoints
    assert stored is not None
    edited = replace(stored, groups=(), meta=replace(stored.meta, resource_version="99999"))
    mirrored.store.event(Kind.ENDPOINTS, None, "MODIFIED", edited.meta, edited)
    assert (passes(), planned) == (3, ["service-1", "service-2"])


def test_a_full_pass_plans_everything_again_when_nodes_or_rights_change(planned: list[str]) -> None:
    """Neither of them is among a target's inputs."""
    mirrored = Simulation(2)
    mirrored.first_pass()
    lacking: list[str] = []
    planner = Planner(
        consul_state=mirrored.consul_state, store=mirrored.store, guard=Guard(guard_settings()), options=PlanOptions(),
        clock=lambda: 0.0, slices_forbidden=lambda _namespace: lacking,
    )  # fmt: skip
    targets = mirrored.consul_state.targets()
    planned.clear()
    for _ in range(2):
        planner.plan_full_pass(targets)
    for _ in range(2):  # they are read again for every full pass, and mostly the same
        planner.nodes = ClusterNodes(frozenset({"node-99"}))
        planner.plan_full_pass(targets)
    assert planned == ["service-0", "service-1"] * 2
    lacking.append("create")
    planner.plan_full_pass(targets)
    assert planned == ["service-0", "service-1"] * 3
