"""A forced pass beside a bridge that holds: whatever comes first, and wherever the pass ends, what it let go goes.

Everything is real but the servers: two planners plan against one cluster, and the bridge's cache learns each
object's changes in their order, of slices and Endpoints in any order, as by two watches.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest

from bridge.core.guard import FORCED_SECONDS, Guard
from bridge.core.model import (
    SERVICE_KINDS,
    Action,
    Change,
    Current,
    Destination,
    Instance,
    Kind,
    Known,
    Listing,
    Meta,
    Output,
    Plan,
    Rule,
    Scope,
    Status,
    Target,
)
from bridge.core.plan import scope_of
from bridge.core.reconcile import PlanOptions
from bridge.core.state import ConsulState
from bridge.pipeline.planner import Planner
from tests.support.options import guard_settings
from tests.unit.core.builders import OWNER, QUERY, TARGET, Cluster, instance, instances, pairs

ALL = instances(30)
SCHEDULES = 40
SYNC_ROUNDS = 5


@dataclass
class Seen:
    """What a process knows of the cluster."""

    now: Current = field(default_factory=lambda: Current(TARGET))

    def current(self, target: Target) -> Current:
        assert target == TARGET
        return self.now

    def targets(self) -> Collection[Target]:
        found = (self.now.service, self.now.endpoints, *self.now.slices)
        return [TARGET] if any(o is not None for o in found) else []

    def ready_in(self, scope: Scope) -> int:
        groups = [g for s in self.now.slices for g in (s.group,)]
        groups += self.now.endpoints.groups if self.now.endpoints is not None else ()
        return len(pairs(groups)) if scope_of(self.now, OWNER) == scope else 0

    def ready_targets(self) -> Mapping[Target, Scope]:
        return {TARGET: scope_of(self.now, OWNER)}

    def confirm(self, change: Change, meta: Meta | None) -> None:
        """Told by `Harness` instead."""


class Process:
    """A bridge, or (`force`) one forced pass."""

    def __init__(self, harness: Harness, *, force: bool = False) -> None:
        self.harness = harness
        self.seen = Seen(harness.cluster.current())
        self.consul_state = ConsulState(
            (harness.rule,), ("dc1",), grace_seconds=0.0 if force else harness.grace_seconds
        )
        self.guard = Guard(guard_settings())
        self.planner = Planner(
            consul_state=self.consul_state,
            store=self.seen,
            guard=self.guard,
            options=PlanOptions(owner=OWNER, force=force),
            clock=lambda: harness.now,
            time_of_day=lambda: 1.7e9 + harness.now,
            mirrored=lambda _target: harness.cluster.mirrored,
        )
        self.read(harness.listed)

    def read(self, listed: Sequence[Instance] | None) -> None:
        """Consul's answer; None: the service is not there."""
        self.consul_state.on_listing("dc1", Listing({QUERY.service: frozenset()} if listed is not None else {}), 0.0)
        self.consul_state.on_view(QUERY, Known(tuple(listed or ())))
        self.remember()
        self.consul_state.expire(self.harness.now)

    def remember(self) -> None:
        """What is in the cluster is known to come from the service."""
        if self.seen.targets():
            self.consul_state.record_owned(TARGET, [("dc1", QUERY.service)], self.harness.now)
        else:
            self.consul_state.drop_owned(TARGET)
            self.guard.forget(TARGET)

    def plan(self) -> Plan | None:
        self.remember()
        return self.planner.plan(TARGET)


class Harness:
    """The cluster, and what the bridge knows of it."""

    def __init__(self, rule: Rule, grace_seconds: float = 0.0) -> None:
        self.rule = rule
        self.grace_seconds = grace_seconds
        self.now = 0.0
        self.listed: Sequence[Instance] | None = ALL
        self.cluster = Cluster()
        self.untold: dict[Kind, list[Current]] = {kind: [] for kind in SERVICE_KINDS}
        self.bridge = Process(self)
        self.settle()

    def write(self, change: Change) -> bool:
        """One write, refused as the API server does when the object is not the one that was seen."""
        if change.action is Action.DELETE and self.cluster.find(change) is None:
            return True
        try:
            self.cluster.apply(Plan(TARGET, changes=(change,)))
        except AssertionError:
            return False
        self.untold[change.kind].append(self.cluster.current())
        return True

    def tell(self, kind: Kind) -> None:
        """The watch of one kind comes to the next change."""
        now, told = self.untold[kind].pop(0), self.bridge.seen
        match kind:
            case Kind.SERVICE:
                told.now = replace(told.now, service=now.service)
            case Kind.ENDPOINTS:
                told.now = replace(told.now, endpoints=now.endpoints)
            case Kind.ENDPOINT_SLICE:
                told.now = replace(told.now, slices=now.slices)

    def do(self, plan: Plan | None) -> bool:
        """The bridge writes, and knows at once what it wrote itself; whether there was nothing to write."""
        writes = plan.writes if plan is not None else ()
        for change in writes:
            if self.write(change) and len(self.untold[change.kind]) == 1:
                self.tell(change.kind)
        return not writes

    def settle(self, seconds: float = 0.0) -> None:
        """The bridge learns all, the control plane mirrors, seconds pass, and the bridge works until it has nothing."""
        deadline = self.now + seconds
        for _ in range(60):
            self.cluster.mirror()
            for kind in SERVICE_KINDS:
                while self.untold[kind]:
                    self.tell(kind)
            done = self.do(self.bridge.plan())
            if done and self.now >= deadline:
                return
            self.now = min(deadline, self.now + 0.5)
        raise AssertionError("it never comes to rest")

    def ready(self) -> tuple[set[str], set[str]]:
        """Ready addresses in the Endpoints and in our slices."""
        endpoints = self.cluster.endpoints.groups if self.cluster.endpoints is not None else ()
        slices = [s.group for s in self.cluster.slices.values()]
        return {a for a, *_ in pairs(endpoints)}, {a for a, *_ in pairs(slices)}


def unhealthy(count: int) -> tuple[Instance, ...]:
    return tuple(replace(i, status=Status.CRITICAL) for i in ALL[:count]) + ALL[count:]


LEFT = {
    "none is listed": (),
    "three are listed": ALL[:3],
    "three are listed and another came": (*ALL[:3], instance("10.0.9.9")),
    "all are unhealthy": unhealthy(30),
    "the service is gone": None,
}


def schedules(count: int) -> Iterator[random.Random]:
    yield from (random.Random(seed) for seed in range(count))


@pytest.mark.parametrize("per_slice", [100, 12])
@pytest.mark.parametrize("output", list(Output))
@pytest.mark.parametrize(("left", "grace_seconds"), [*((left, 0.0) for left in LEFT), ("the service is gone", 1000.0)])
def test_what_a_forced_pass_lets_go_is_gone_whatever_the_bridge_sees_first(
    left: str, grace_seconds: float, output: Output, per_slice: int
) -> None:
    """A write that is refused is planned again (`sync`), nothing comes back, and nothing is held any more."""
    for order in schedules(SCHEDULES):
        harness = Harness(Rule(to=Destination(output=output, max_endpoints_per_slice=per_slice)), grace_seconds)
        _hold(harness, LEFT[left])
        forced = list(_forced(harness))
        planned: Plan | None = None
        refused = rounds = 0
        while forced or any(harness.untold.values()):
            steps = [kind for kind in SERVICE_KINDS if harness.untold[kind]]
            step = order.choice([*steps, *(["force"] if forced else []), "plan", "write"])
            if isinstance(step, Kind):
                harness.tell(step)
            elif step == "force":
                refused += not harness.write(forced.pop(0))
                if refused and not forced:
                    forced = list(_forced(harness))
                    refused, rounds = 0, rounds + 1
            elif step == "plan":
                planned = harness.bridge.plan()
            else:
                harness.do(planned)
                planned = None
        harness.do(planned)
        harness.settle(2 * FORCED_SECONDS)
        assert (harness.ready(), harness.bridge.guard.active()) == (_wanted(output, LEFT[left]), ())
        assert rounds < SYNC_ROUNDS


@pytest.mark.parametrize("per_slice", [100, 12])
@pytest.mark.parametrize("output", list(Output))
@pytest.mark.parametrize("left", [left for left, listed in LEFT.items() if listed])
def test_a_forced_pass_that_dies_half_way_is_finished_by_the_bridge(left: str, output: Output, per_slice: int) -> None:
    """Wherever it died, once one of its writes was done."""
    harness = Harness(Rule(to=Destination(output=output, max_endpoints_per_slice=per_slice)))
    _hold(harness, LEFT[left])
    for done in range(1, len(list(_forced(harness)))):
        harness = Harness(Rule(to=Destination(output=output, max_endpoints_per_slice=per_slice)))
        _hold(harness, LEFT[left])
        for change in _forced(harness)[:done]:
            assert harness.write(change)
        harness.settle(2 * FORCED_SECONDS)
        assert (harness.ready(), harness.bridge.guard.active()) == (_wanted(output, LEFT[left]), ())


def test_a_forced_pass_that_dies_half_way_is_finished_by_the_bridge_that_starts_next() -> None:
    """A few minutes later; a release that is hours old lets nothing go."""
    for minutes, held in ((5, 0), (60, 27)):
        harness = Harness(Rule(to=Destination(output=Output.BOTH)))
        _hold(harness, ALL[:3])
        assert harness.write(_forced(harness)[0])
        harness.now += minutes * 60.0
        harness.bridge = Process(harness)
        harness.settle(2 * FORCED_SECONDS)
        assert sum(h.endpoints for h in harness.bridge.guard.active()) == held


def test_a_release_counts_once() -> None:
    """What Consul loses after it is held again, although the objects still say that something was let go."""
    harness = Harness(Rule(to=Destination(output=Output.BOTH)))
    _hold(harness, ALL[:14])
    for change in _forced(harness):
        assert harness.write(change)
    harness.settle(2 * FORCED_SECONDS)
    harness.now += 120.0
    _hold(harness, ALL[:1])
    harness.settle(2 * FORCED_SECONDS)
    assert [h.endpoints for h in harness.bridge.guard.active()] == [13]


def test_a_second_forced_pass_writes_nothing() -> None:
    """The mark of the first one is no difference to be written, and the next change takes it off."""
    harness = Harness(Rule(to=Destination(output=Output.BOTH)))
    _hold(harness, ALL[:3])
    for change in _forced(harness):
        assert harness.write(change)
    assert list(_forced(harness)) == []
    assert harness.cluster.endpoints is not None
    assert "consul-bridge/released" in dict(harness.cluster.endpoints.meta.annotations)
    _read(harness, ALL)
    harness.settle()
    metas = [harness.cluster.endpoints.meta, *(s.meta for s in harness.cluster.slices.values())]
    assert [m for m in metas if "consul-bridge/released" in dict(m.annotations)] == []


def _read(harness: Harness, listed: Sequence[Instance] | None) -> None:
    harness.listed = listed
    harness.bridge.read(listed)


def _hold(harness: Harness, listed: Sequence[Instance] | None) -> None:
    """Consul loses so much at once that the bridge holds it."""
    _read(harness, listed)
    harness.settle()
    assert [h.removed or h.flips for h in harness.bridge.guard.active()] == [True]


def _forced(harness: Harness) -> tuple[Change, ...]:
    """What the forced pass writes, planned from what is there now."""
    plan = Process(harness, force=True).plan()
    assert plan is not None
    return plan.writes


def _wanted(output: Output, listed: Sequence[Instance] | None) -> tuple[set[str], set[str]]:
    found = {i.address for i in listed or () if i.status is Status.PASSING}
    return (
        found if output is not Output.ENDPOINTSLICES else set(),
        found if output is not Output.ENDPOINTS else set(),
    )
