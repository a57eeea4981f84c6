"""Several datacenters in one process: each has its own state, and a dead one never touches the others' objects."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.consul.client import ConsulConfig
from bridge.core.model import Destination, Rule
from bridge.engine.run import Bridge, RunOptions
from bridge.engine.sync import SyncOptions, sync_once
from bridge.kube.client import KubeConfig
from bridge.report import Report
from bridge.retry import RetryPolicy
from tests.fakes.consul import FakeConsul, Fault
from tests.fakes.kube import FakeKube

Eventually = Callable[..., None]
QUICK = RetryPolicy(floor_seconds=0.05, cap_seconds=0.2, attempts=2)
RULES = (
    Rule(services=("web", "far-*"), datacenters=("dc2",), to=Destination(name="{service}-{datacenter}")),
    Rule(),
)


class Both:
    """The two sides."""

    def __init__(self, consul: FakeConsul, kube: FakeKube, folder: Path) -> None:
        self.consul, self.kube = consul, kube
        self.settings: dict[str, Any] = {
            "consul": ConsulConfig(address=consul.address),
            "kube": KubeConfig(kubeconfig=kube.kubeconfig(folder)),
            "rules": RULES,
        }

    def sync(self) -> Report:
        """One pass."""
        return sync_once(**self.settings, options=SyncOptions(retry=QUICK), stop=threading.Event())

    def ready(self) -> dict[str, list[str]]:
        """Ready addresses by name."""
        found = {}
        for name in ("web", "web-dc2", "far-db-dc2", "near", "hidden"):
            stands = self.kube.get("endpoints", "default", name)
            if stands is not None:
                found[name] = [a["ip"] for s in stands.get("subsets") or [] for a in s.get("addresses") or []]
        return found


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
    """`hidden` of the second datacenter is nobody's, although the last rule selects every name."""
    report = both.sync()
    assert (both.ready(), report.skipped) == (ALL, ())


def test_a_dead_datacenter_keeps_what_it_had_and_the_other_goes_on(both: Both) -> None:
    """In one pass: nothing of dc2 is removed, dc1 is followed, and the trouble is said."""
    both.sync()
    both.consul.inject(Fault(status=500), times=10_000, datacenter="dc2")
    both.consul.register("near", "vm-9", "10.0.0.9", 80)
    report = both.sync()
    assert both.ready() == {**ALL, "near": ["10.0.0.4", "10.0.0.9"]}
    assert {row.datacenter for row in report.failed} == {"dc2"}


def test_a_running_bridge_follows_one_datacenter_while_the_other_is_dead(both: Both, eventually: Eventually) -> None:
    """And the second again when it is back."""
    options = RunOptions(consul_retry=QUICK, kube_retry=QUICK, grace_seconds=0.1, writers=2)
    bridge = Bridge(**both.settings, options=options)
    thread = threading.Thread(target=bridge.run, name="bridge")
    thread.start()
    try:
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
    finally:
        bridge.stop()
        thread.join(10)
    assert not thread.is_alive()
