"""Several datacenters in one process: each has its own state, and a dead one never touches the other ones' objects."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from bridge.consul.catalog import shares_of
from bridge.controller.controller import Controller
from bridge.controller.options import RunOptions
from bridge.core.model import Combine, Destination, Failover, Rule
from bridge.oneshot.inspection import status_once
from bridge.oneshot.sync import sync_once
from bridge.report import Report
from bridge.retry import RetryPolicy
from tests.support.fakes.consul import FakeConsul, Fault
from tests.support.fakes.kube import FakeKube
from tests.support.options import consul_config, kube_config, run_options, sync_options
from tests.support.running import running as run_in_thread

Eventually = Callable[..., None]
QUICK = RetryPolicy(initial_seconds=0.05, max_seconds=0.2, attempts=2)
RULES = (
    Rule(services=("web", "far-*"), datacenters=("dc2",), to=Destination(name="{service}-{datacenter}")),
    Rule(),
)


class Both:
    """The two sides."""

    def __init__(self, consul: FakeConsul, kube: FakeKube, folder: Path) -> None:
        self.consul, self.kube = consul, kube
        self.settings: dict[str, Any] = {
            "consul": consul_config(address=consul.address),
            "kube": kube_config(kubeconfig=kube.kubeconfig(folder)),
            "rules": RULES,
        }

    def sync(self) -> Report:
        """One pass."""
        return sync_once(**self.settings, options=sync_options(retry=QUICK), stop=threading.Event())

    def ready(self) -> dict[str, list[str]]:
        """Ready addresses by name."""
        names = ("web", "web-dc2", "far-db-dc2", "near", "hidden")
        found = ((name, self.kube.ready_addresses("default", name)) for name in names)
        return {name: addresses for name, addresses in found if addresses is not None}


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    """Two datacenters with a service of the same name, and one of each alone."""
    with FakeConsul(("dc1", "dc2")) as consul, FakeKube() as kube:
        for n, (name, dc) in enumerate(
            (("web", "dc1"), ("web", "dc2"), ("far-db", "dc2"), ("near", "dc1"), ("hidden", "dc2")), 1
        ):
            consul.register(name, f"vm-{n}", f"10.0.0.{n}", 80, dc=dc)
        yield Both(consul, kube, tmp_path)
        consul.clear_faults()


ALL = {"web": ["10.0.0.1"], "web-dc2": ["10.0.0.2"], "far-db-dc2": ["10.0.0.3"], "near": ["10.0.0.4"]}


def test_each_rule_means_its_datacenters_and_one_without_means_the_agents_own(both: Both) -> None:
    """`hidden` of the second datacenter has no rule, although the last one selects every name."""
    report = both.sync()
    assert (both.ready(), report.skipped) == (ALL, ())


def test_a_dead_datacenter_keeps_what_it_had_and_the_other_goes_on(both: Both) -> None:
    """In one pass: nothing of dc2 is removed, dc1 is followed, and the trouble is reported."""
    both.sync()
    both.consul.inject(Fault(status=500), times=10_000, datacenter="dc2")
    both.consul.register("near", "vm-9", "10.0.0.9", 80)
    report = both.sync()
    assert both.ready() == {**ALL, "near": ["10.0.0.4", "10.0.0.9"]}
    assert {row.datacenter for row in report.failed} == {"dc2"}


def test_a_running_bridge_follows_one_datacenter_while_the_other_is_dead(both: Both, eventually: Eventually) -> None:
    """And the second again when it is back."""
    options = run_options(consul_retry=QUICK, kube_retry=QUICK, removal_grace_seconds=0.1, writers=2)
    with running(both, options) as bridge:
        eventually(both.ready, ALL, 30)
        both.consul.inject(Fault(status=500), times=1_000_000, datacenter="dc2")
        both.consul.register("hidden", "vm-5", "10.0.0.55", 80, dc="dc2")  # ends the questions that wait there
        eventually(lambda: "dc2" in str(bridge.ready()[1]["consul"]), True, 30)
        both.consul.register("near", "vm-9", "10.0.0.9", 80)
        eventually(both.ready, {**ALL, "near": ["10.0.0.4", "10.0.0.9"]}, 30)
        both.consul.clear_faults()
        both.consul.deregister("far-db", "vm-3", dc="dc2")
        expected = {**ALL, "near": ["10.0.0.4", "10.0.0.9"]}
        del expected["far-db-dc2"]
        eventually(both.ready, expected, 30)


# --------------------------------------------------------------------------- annotated Services


FAR = (Rule(services=("far-*",), datacenters=("dc2",)),)


def ask(both: Both, name: str, **annotations: str) -> None:
    """A user's Service that asks to be filled."""
    both.kube.ask(name, **annotations)


@pytest.mark.parametrize("datacenter", ["", "dc1"])
def test_a_service_without_the_annotation_means_the_agents_own_datacenter_whatever_the_rules_say(
    both: Both, datacenter: str
) -> None:
    """All rules are about dc2; `web` is there as well, and is not what is meant."""
    both.settings |= {"rules": FAR, "consul": consul_config(address=both.consul.address, datacenter=datacenter)}
    ask(both, "web")
    report = both.sync()
    assert (both.ready()["web"], report.warnings, report.failed) == (["10.0.0.1"], (), ())
    status = status_once(**both.settings, options=sync_options(retry=QUICK), stop=threading.Event())
    assert [(row.name, row.datacenter, row.state) for row in status.services] == [
        ("far-db", "dc2", "in_sync"), ("web", "dc1", "in_sync"),
    ]  # fmt: skip


def test_a_datacenter_of_which_nothing_is_wanted_is_not_asked(both: Both) -> None:
    """All rules are about dc2 and no one asks for more: what our own answers is no matter."""
    both.consul.inject(Fault(status=500), times=10_000, datacenter="dc1")
    both.settings |= {"rules": FAR, "consul": consul_config(address=both.consul.address, datacenter="dc1")}
    assert both.sync().failed == ()


@pytest.mark.parametrize("rules", [(), (Rule(services=("near",)),)])
def test_an_annotation_may_ask_for_a_datacenter_that_the_settings_name(both: Both, rules: tuple[Rule, ...]) -> None:
    """No rule is about it."""
    both.settings |= {"rules": rules, "consul": consul_config(address=both.consul.address, datacenters=("dc2",))}
    ask(both, "web", datacenter="dc2")
    report = both.sync()
    assert (both.ready()["web"], report.warnings, report.failed) == (["10.0.0.2"], (), ())


def test_an_annotation_for_any_other_datacenter_says_what_to_do(both: Both) -> None:
    """Nothing is filled, and nothing fails."""
    both.settings |= {"rules": ()}
    ask(both, "web", datacenter="dc2")
    report = both.sync()
    (warning,) = report.warnings
    assert (both.ready(), report.failed) == ({}, ())
    assert warning.reason == (
        "the annotation asks for datacenter dc2, which may not be asked: only dc1 may. If it is right, name it in "
        "consul.datacenters (BRIDGE_CONSUL_DATACENTERS)"
    )


def test_a_running_bridge_asks_a_datacenter_from_when_a_service_wants_it(both: Both, eventually: Eventually) -> None:
    """Before that it may be dead without any trouble."""
    both.settings |= {
        "rules": (Rule(services=("near",)),),
        "consul": consul_config(address=both.consul.address, datacenters=("dc2",)),
    }
    both.consul.inject(Fault(status=500), times=1_000_000, datacenter="dc2")
    options = run_options(consul_retry=QUICK, kube_retry=QUICK, removal_grace_seconds=0.1, writers=2)
    with running(both, options) as bridge:
        eventually(both.ready, {"near": ["10.0.0.4"]}, 30)
        eventually(lambda: bridge.ready()[0], True)
        assert list(bridge.state()["catalog"]) == ["dc1"]
        both.consul.clear_faults()
        ask(both, "web", datacenter="dc2")
        eventually(lambda: both.ready().get("web"), ["10.0.0.2"])
        both.consul.register("web", "vm-9", "10.0.0.9", 80, dc="dc2")
        eventually(lambda: both.ready().get("web"), ["10.0.0.2", "10.0.0.9"])
        assert bridge.replace_rules((Rule(services=("near", "nix")),))
        needs_more_connections = Rule(services=("hidden",), datacenters=("dc2",))
        assert not bridge.replace_rules((needs_more_connections,))
        assert not bridge.replace_rules((Rule(datacenters=("dc3",)),))


def test_a_bridge_whose_rules_are_all_about_another_datacenter_fills_from_its_own(
    both: Both, eventually: Eventually
) -> None:
    """As one pass does."""
    both.settings |= {"rules": FAR}
    with running(both, run_options(consul_retry=QUICK, kube_retry=QUICK, writers=2)):
        eventually(lambda: both.ready(), {}, 30)
        ask(both, "web")
        eventually(lambda: both.ready().get("web"), ["10.0.0.1"], 30)


@pytest.mark.parametrize(
    ("connections", "names", "spare", "expected"),
    [
        (64, ["dc1"], [], {"dc1": 64}),
        (64, ["dc1", "dc2"], [], {"dc1": 32, "dc2": 32}),
        (64, ["dc1", "dc2"], ["dc2"], {"dc1": 56, "dc2": 8}),
        (64, ["dc1", "dc2"], ["dc1", "dc2"], {"dc1": 32, "dc2": 32}),
        (64, ["dc1", "dc2", "dc3"], ["dc2", "dc3"], {"dc1": 54, "dc2": 5, "dc3": 5}),
        (6, ["dc1", "dc2", "dc3"], ["dc2", "dc3"], {"dc1": 2, "dc2": 2, "dc3": 2}),
    ],
)
def test_the_budget_is_shared_and_never_exceeded(
    connections: int, names: list[str], spare: list[str], expected: dict[str, int]
) -> None:
    """One that only annotated Services may ask for has a quarter of an equal share."""
    shares = shares_of(connections, names, spare)
    assert (shares, sum(shares.values()) <= connections) == (expected, True)


# --------------------------------------------------------------------------- one Service from several datacenters


def test_a_union_follows_what_answers_and_keeps_what_it_has_of_what_does_not(
    both: Both, eventually: Eventually
) -> None:
    """A running bridge, then one that is started while dc2 is dead, then a one-shot pass: nothing is lost."""
    both.settings |= {"rules": (Rule(services=("web",), datacenters=("dc1", "dc2"), combine=Combine.UNION),)}
    options = run_options(consul_retry=QUICK, kube_retry=QUICK, removal_grace_seconds=0.1, writers=2)
    with running(both, options) as bridge:
        eventually(both.ready, {"web": ["10.0.0.1", "10.0.0.2"]}, 30)
        both.consul.inject(Fault(status=500), times=1_000_000, datacenter="dc2")
        both.consul.register("hidden", "vm-5", "10.0.0.55", 80, dc="dc2")  # ends the questions that wait there
        eventually(lambda: "dc2" in str(bridge.ready()[1]["consul"]), True, 30)
        both.consul.register("web", "vm-9", "10.0.0.9", 80)
        eventually(both.ready, {"web": ["10.0.0.1", "10.0.0.2", "10.0.0.9"]}, 30)
    with running(both, options):
        both.consul.register("web", "vm-8", "10.0.0.8", 80)
        eventually(both.ready, {"web": ["10.0.0.1", "10.0.0.2", "10.0.0.8", "10.0.0.9"]}, 30)
        both.consul.register("web", "vm-7", "10.0.0.7", 80, dc="dc2")
        both.consul.deregister("web", "vm-2", dc="dc2")
        both.consul.clear_faults()
        eventually(both.ready, {"web": ["10.0.0.1", "10.0.0.7", "10.0.0.8", "10.0.0.9"]}, 30)
    report = both.sync()
    assert (report.failed, report.changes) == ((), ())


def moving(unreachable: float = 0.0) -> tuple[Rule, ...]:
    """dc1 carries the traffic of `web`, else dc2; back after a second."""
    settings = Failover(when_unreachable=True, unreachable_seconds=unreachable, failback_seconds=1.0)
    return (Rule(services=("web",), datacenters=("dc1", "dc2"), combine=Combine.FAILOVER, failover=settings),)


def test_traffic_follows_health_and_silence_and_nothing_that_proves_less(both: Both, eventually: Eventually) -> None:
    """A datacenter that refuses us, or whose Consul came back empty, has not lost its instances."""
    both.settings |= {"rules": moving()}
    options = run_options(consul_retry=QUICK, kube_retry=QUICK, permanent_retry=QUICK, writers=2)
    first, second = {"web": ["10.0.0.1"]}, {"web": ["10.0.0.2"]}
    with running(both, options) as bridge:
        eventually(both.ready, first, 30)
        both.consul.flip("web", "vm-1", "critical")
        eventually(both.ready, second, 30)
        (row,) = bridge.services()
        assert row.active_datacenter == "dc2"
        both.consul.flip("web", "vm-1", "passing")  # and nothing else is reported: the timer finds it
        eventually(both.ready, first, 30)
        both.consul.inject(Fault(status=403, body="Permission denied"), times=1_000_000, datacenter="dc1")
        both.consul.register("near", "vm-4", "10.0.0.44", 80)  # ends the questions that wait there
        eventually(lambda: "dc1" in str(bridge.ready()[1]["consul"]), True, 30)
        both.consul.register("web", "vm-22", "10.0.0.22", 80, dc="dc2")
        eventually(lambda: standby(bridge), 2, 30)
        assert both.ready() == first
        both.consul.clear_faults()
        eventually(lambda: bridge.ready()[1]["consul"], "ok", 30)
        both.consul.inject(Fault(status=500), times=1_000_000, datacenter="dc1")
        both.consul.register("near", "vm-4", "10.0.0.4", 80)
        eventually(both.ready, {"web": ["10.0.0.2", "10.0.0.22"]}, 30)
    with running(both, options) as bridge:  # who takes over knows from the Service what is so
        both.consul.clear_faults()
        eventually(both.ready, first, 30)
        both.consul.rebuild(dc="dc1")
        eventually(lambda: "rebuilt or restored" in bridge.services()[0].detail, True, 30)
        assert both.ready() == first


def standby(bridge: Controller) -> int:
    """How many instances of dc2 are known that wait for the traffic."""
    found = bridge.explain("default", "web") or ()
    return sum(row.disposition == "standby" for e in found if e.datacenter == "dc2" for row in e.rows)


def running(both: Both, options: RunOptions) -> AbstractContextManager[Controller]:
    """`bridge run` in a thread."""
    return run_in_thread(Controller(**both.settings, options=options))
