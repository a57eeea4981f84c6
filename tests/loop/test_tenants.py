"""Several teams, one bridge: what a user of one namespace does, or Consul does to them, leaves other teams alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bridge.controller.controller import Controller
from bridge.core.annotated import USUAL, Annotated, Grant
from bridge.core.guard import Guard
from bridge.core.model import Destination, Known, Listing, Query, Rule, Target
from bridge.core.reconcile import PlanOptions, names_at
from bridge.core.select import Only
from bridge.core.state import ConsulState
from bridge.kube.client import KubeClient
from bridge.kube.reads import list_once
from bridge.oneshot.sync import sync_once
from bridge.pipeline.planner import Planner
from bridge.report import Report
from bridge.retry import RetryPolicy
from tests.support.fakes.consul import FakeConsul
from tests.support.fakes.kube import FakeKube
from tests.support.options import consul_config, guard_settings, kube_config, sync_options
from tests.support.running import OPTIONS, running

Eventually = Callable[..., None]
TEAMS = ("team-a", "team-b", "rules")


class Cluster:
    """Both sides: `team-a/store` is filled from radosgw (30), `team-b/db` from db (6); rules mirror `shared` (12)."""

    def __init__(self, consul: FakeConsul, kube: FakeKube, folder: Path) -> None:
        self.consul = consul
        self.kube = kube
        self.kubeconfig = kube.kubeconfig(folder)
        for team in TEAMS:
            kube.add_namespace(team)
        for service, count in (("radosgw", 30), ("db", 6), ("shared", 12)):
            for n in range(count):
                consul.register(service, f"{service}-{n}", f"10.{len(service)}.0.{n + 1}", 80)
        self.asks("team-a", "store", "radosgw")
        self.asks("team-b", "db", "db")
        self.rules = (Rule(services=("shared",), to=Destination(namespace="rules")),)

    def asks(self, namespace: str, name: str, service: str, **more: str) -> None:
        """A user's Service asks for a Consul service."""
        self.kube.ask(name, namespace, service=service, **more)

    def ready(self, namespace: str, name: str) -> int | None:
        """How many endpoints are ready; None without Endpoints."""
        found = self.kube.ready_addresses(namespace, name)
        return None if found is None else len(found)

    def sides(self) -> dict[str, Any]:
        return {
            "consul": consul_config(address=self.consul.address),
            "kube": kube_config(kubeconfig=self.kubeconfig, namespaces=TEAMS),
            "rules": self.rules,
        }

    def sync(self, **options: Any) -> Report:
        """One pass."""
        retry = RetryPolicy(initial_seconds=0.01, max_seconds=0.05, attempts=2)
        return sync_once(**self.sides(), options=sync_options(retry=retry, **options), stop=threading.Event())

    def running(self, annotated: Annotated = USUAL, **guard: Any) -> AbstractContextManager[Controller]:
        """A bridge that has made its first pass."""
        options = replace(OPTIONS, guard=guard_settings(**guard), annotated=annotated)
        return running(Controller(**self.sides(), options=options), ready_seconds=30)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Two teams and what the rules mirror, not mirrored yet."""
    with FakeConsul() as consul, FakeKube() as kube:
        yield Cluster(consul, kube, tmp_path)


def filled(cluster: Cluster) -> tuple[int | None, ...]:
    return cluster.ready("team-a", "store"), cluster.ready("team-b", "db"), cluster.ready("rules", "shared")


def held(bridge: Controller) -> list[str]:
    return [text.partition(":")[0] for text in bridge.ready()[1]["held"]]


def test_a_user_who_asks_for_a_missing_service_causes_no_hold(cluster: Cluster, eventually: Eventually) -> None:
    """Thirty of thirty-six, switched away and then deleted: nothing of it is held, and one of six goes elsewhere."""
    with cluster.running() as bridge:
        eventually(lambda: filled(cluster), (30, 6, 12))
        cluster.asks("team-a", "store", "not-there")
        eventually(lambda: cluster.ready("team-a", "store"), 0)
        cluster.consul.deregister("db", "db-0")
        eventually(lambda: cluster.ready("team-b", "db"), 5)
        cluster.kube.remove("services", "team-a", "store")
        eventually(lambda: cluster.ready("team-a", "store"), None)
        cluster.consul.flip("db", "db-1", "critical")
        eventually(lambda: cluster.ready("team-b", "db"), 4)
        assert held(bridge) == []


def test_a_user_who_narrows_by_tags_or_a_filter_causes_no_hold(cluster: Cluster, eventually: Eventually) -> None:
    """What the request does not select any more goes at once, also what the bridge did not see happen."""
    with cluster.running() as bridge:
        eventually(lambda: filled(cluster), (30, 6, 12))
        cluster.asks("team-a", "store", "radosgw", tags="none-has-it")
        eventually(lambda: cluster.ready("team-a", "store"), 0)
        cluster.asks("team-a", "store", "radosgw")
        eventually(lambda: cluster.ready("team-a", "store"), 30)
        assert held(bridge) == []
    cluster.asks("team-a", "store", "radosgw", tags="none-has-it")
    report = cluster.sync()
    assert (report.held, filled(cluster)) == ((), (0, 6, 12))


def test_what_consul_loses_of_one_namespace_is_held_there_alone(cluster: Cluster, eventually: Eventually) -> None:
    """The other namespace and what rules mirror go on, and the command that the hold names releases only it."""
    with cluster.running() as bridge:
        eventually(lambda: filled(cluster), (30, 6, 12))
        for n in range(30):
            cluster.consul.flip("radosgw", f"radosgw-{n}", "critical")
        eventually(lambda: held(bridge), ["team-a/store"])
        for n in range(6):
            cluster.consul.deregister("shared", f"shared-{n}")
        cluster.consul.flip("db", "db-1", "critical")
        eventually(lambda: filled(cluster)[1:], (5, 6))
        assert held(bridge) == ["team-a/store"]
        assert "--service radosgw --namespace team-a --force`" in bridge.ready()[1]["held"][0]
        assert cluster.ready("team-a", "store")
    for n in range(6, 12):
        cluster.consul.deregister("shared", f"shared-{n}")
    cluster.consul.register("shared", "last", "10.6.0.99", 80)
    only = Only(("radosgw",), "team-a")
    report = cluster.sync(force=True, only=only)
    assert ({outcome.plan.target.namespace for outcome in report.outcomes}, report.held) == ({"team-a"}, ())
    assert filled(cluster) == (0, 5, 6)


def test_a_forced_pass_that_is_narrowed_leaves_the_rest_alone(cluster: Cluster) -> None:
    """Also what is not mirrored yet: what is held exists already, and nothing else is meant."""
    assert cluster.sync(force=True, only=Only(("shared",))).outcomes == ()
    assert filled(cluster) == (None, None, None)
    cluster.sync()
    for service, count in (("radosgw", 30), ("shared", 12)):
        for n in range(count):
            cluster.consul.flip(service, f"{service}-{n}", "critical")
    assert {row.namespace for row in cluster.sync().held} == {"team-a", "rules"}
    assert cluster.sync(force=True, only=Only(namespace="rules")).held == ()
    assert filled(cluster) == (30, 6, 0)
    assert cluster.sync(force=True, only=Only(("rados*",))).held == ()
    assert filled(cluster) == (0, 6, 0)


def test_a_hold_ends_when_its_sums_end_although_consul_has_no_news(cluster: Cluster, eventually: Eventually) -> None:
    """Seven of twelve are too much for one window; when it is over, one of six is not."""
    with cluster.running(window_seconds=2.0, removal_minimum=5) as bridge:
        eventually(lambda: filled(cluster), (30, 6, 12))
        for n in range(6):
            cluster.consul.deregister("shared", f"shared-{n}")
        eventually(lambda: cluster.ready("rules", "shared"), 6)
        cluster.consul.deregister("shared", "shared-6")
        eventually(lambda: held(bridge), ["rules/shared"])
        eventually(lambda: (cluster.ready("rules", "shared"), held(bridge)), (5, []), 10)


def test_what_was_retired_while_no_bridge_ran_delays_no_other_team(cluster: Cluster, eventually: Eventually) -> None:
    """Most of one team's services are gone at the start: it may be a rebuilt Consul, but only for that team."""
    for n in range(4):
        cluster.consul.register(f"old-{n}", f"old-{n}", f"10.9.0.{n + 1}", 80)
        cluster.asks("team-a", f"old-{n}", f"old-{n}")
    cluster.consul.register("gone", "gone-0", "10.9.1.1", 80)
    cluster.asks("team-b", "gone", "gone")
    cluster.sync()
    assert [cluster.ready("team-a", f"old-{n}") for n in range(4)] == [1] * 4
    for n in range(4):
        cluster.consul.deregister(f"old-{n}", f"old-{n}")
    cluster.consul.deregister("gone", "gone-0")
    with cluster.running() as bridge:
        eventually(lambda: cluster.ready("team-b", "gone"), 0, 10)
        assert held(bridge) == [f"team-a/old-{n}" for n in range(4)]
        assert "at our start it lists 1 of the 5 services" in bridge.ready()[1]["held"][0]


EVERYBODY = Annotated(grants=(Grant(),))


def test_a_grant_that_is_taken_back_is_no_way_past_the_guard(cluster: Cluster) -> None:
    """It is an operator's change like a rule that leaves the file: what is too much at once is held, the rest goes."""
    cluster.sync(annotated=EVERYBODY)
    assert filled(cluster) == (30, 6, 12)
    report = cluster.sync(annotated=Annotated(grants=()))
    assert ([row.name for row in report.held], filled(cluster)) == (["store"], (30, None, 12))
    assert cluster.sync(annotated=EVERYBODY).held == ()
    assert filled(cluster) == (30, 6, 12)


def test_a_running_bridge_lets_go_after_the_grace_when_a_grant_is_taken_back(
    cluster: Cluster, eventually: Eventually
) -> None:
    """A user who changes the request to what was not granted is another matter: what was filled goes at once."""
    cluster.sync(annotated=EVERYBODY)
    grants = (Grant(services=("radosgw", "shared")),)
    with cluster.running(annotated=Annotated(grants=grants)):
        eventually(lambda: filled(cluster), (30, None, 12))
        cluster.asks("team-a", "store", "db")
        eventually(lambda: cluster.ready("team-a", "store"), None)


def test_one_more_namespace_removes_nothing_where_no_grants_are_configured(cluster: Cluster) -> None:
    """What was filled goes on being filled, from the same service; a new request is not answered."""
    cluster.sync(annotated=EVERYBODY)
    cluster.consul.deregister("db", "db-0")
    cluster.asks("team-b", "new", "radosgw")
    cluster.sync(annotated=Annotated(grants=None))
    assert (filled(cluster), cluster.ready("team-b", "new")) == ((30, 5, 12), None)
    cluster.asks("team-a", "store", "db")
    cluster.sync(annotated=Annotated(grants=None))
    assert cluster.ready("team-a", "store") is None


@pytest.mark.parametrize("may_delete", [True, False])
def test_beside_a_conflicting_writer_nothing_is_taken_away(cluster: Cluster, may_delete: bool) -> None:
    """What no rule of ours selects may be what the other one wants: it is neither deleted nor emptied."""
    cluster.sync()
    client = KubeClient(kube_config(kubeconfig=cluster.kubeconfig))
    try:
        store = list_once(client, ("rules",), "default")
    finally:
        client.close()
    here, consul_state = Target("rules", "shared"), ConsulState((), ("dc1",), 0.0)
    consul_state.record_owned(here, names_at(store.current(here)), 0.0)
    consul_state.on_listing("dc1", Listing({"shared": frozenset()}), 0.0)
    consul_state.on_view(Query("dc1", "shared"), Known(()))
    planner = Planner(
        consul_state=consul_state,
        store=store,
        guard=Guard(guard_settings(removal_percent=0)),
        options=PlanOptions(),
        clock=lambda: 1.0,
        may_delete=lambda _target: may_delete,
    )
    (plan,) = planner.plan_all([here])
    assert (bool(plan.writes), plan.ready, plan.removed) == ((True, 0, 12) if may_delete else (False, 12, 0))


TEAM = Annotated(grants=(Grant(namespace_selector="consul=yes"),))


def label(cluster: Cluster, namespace: str, value: str) -> None:
    """Set the label that the grant goes by."""
    cluster.kube.put("namespaces", {"metadata": {"name": namespace, "labels": {"consul": value}}})


def test_labels_give_and_take_while_it_runs(cluster: Cluster, eventually: Eventually) -> None:
    """What a label takes away waits for the grace and the guard, as a grant that is taken back does."""
    label(cluster, "team-b", "yes")
    with cluster.running(TEAM) as bridge:
        eventually(lambda: filled(cluster), (None, 6, 12))
        label(cluster, "team-a", "yes")
        eventually(lambda: filled(cluster), (30, 6, 12))
        label(cluster, "team-b", "no")
        eventually(lambda: cluster.ready("team-b", "db"), None)
        label(cluster, "team-a", "no")
        eventually(lambda: held(bridge), ["team-a/store"])
        assert cluster.ready("team-a", "store") == 30
        label(cluster, "team-a", "yes")
        eventually(lambda: held(bridge), [])
        assert cluster.ready("team-a", "store") == 30


def test_labels_that_cannot_be_read_any_more_take_nothing_away(cluster: Cluster, eventually: Eventually) -> None:
    """While it runs the last known ones count; after a restart what is filled stays, and nothing else is filled."""
    label(cluster, "team-a", "yes")
    with cluster.running(TEAM) as bridge:
        eventually(lambda: filled(cluster), (30, None, 12))
        cluster.kube.forbid("admin", "list", "namespaces")
        cluster.kube.forbid("admin", "watch", "namespaces")
        cluster.kube.cut()
        eventually(lambda: len(bridge.ready()[1].get("warnings", ())), 1)
        assert "the last known labels count" in bridge.ready()[1]["warnings"][0]
        cluster.asks("team-a", "second", "db")
        eventually(lambda: cluster.ready("team-a", "second"), 6)
    label(cluster, "team-b", "yes")
    with cluster.running(TEAM) as bridge:
        assert "no namespace's labels are known" in bridge.ready()[1]["warnings"][0]
        cluster.asks("team-a", "third", "db")
        time.sleep(3 * OPTIONS.removal_grace_seconds)
        assert (filled(cluster), cluster.ready("team-a", "third")) == ((30, None, 12), None)
        cluster.consul.deregister("radosgw", "radosgw-0")
        eventually(lambda: cluster.ready("team-a", "store"), 29)
        cluster.kube.allow()
        eventually(lambda: (filled(cluster), cluster.ready("team-a", "third")), ((29, 6, 12), 6), 30)
