"""When a target is planned again although nothing happens."""

from __future__ import annotations

from bridge.core.guard import Guard
from bridge.core.model import Combine, Destination, Instance, Known, Listing, Query, Rule, Status, Target
from bridge.core.reconcile import PlanOptions
from bridge.core.state import ConsulState
from bridge.kube.store import Store
from bridge.pipeline.planner import Planner
from tests.support.options import guard_settings

RULE = Rule(
    services=("web",),
    datacenters=("dc1", "dc2"),
    combine=Combine.FAILOVER,
    to=Destination(namespace="apps", name="web"),
)
WEB = Target("apps", "web")


def test_a_target_without_a_choice_is_planned_again_when_the_preferred_datacenter_is_believed() -> None:
    """Its Consul was just rebuilt: which datacenter carries the traffic is decided when that is over, not by luck."""
    now = [0.0]
    state = ConsulState((RULE,), ("dc1", "dc2"), grace_seconds=0.0)
    guard = Guard(guard_settings(restore_hold_seconds=60.0))
    planner = Planner(
        world=state, store=Store("default"), guard=guard, options=PlanOptions(), clock=lambda: now[0],
    )  # fmt: skip
    for number, datacenter in enumerate(RULE.datacenters):
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
