"""Bridges side by side between one fake Consul and one fake Kubernetes, with what they tell Prometheus."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bridge.controller.controller import Controller
from bridge.core.model import Destination, Rule
from bridge.kube.client import KubeClient
from bridge.kube.members import ElectionConfig
from bridge.pipeline.dns import Resolver
from bridge.telemetry.metrics import Metrics
from tests.support.fakes.consul import FakeConsul
from tests.support.fakes.consul import Fault as ConsulFault
from tests.support.fakes.kube import ADMIN_TOKEN, FakeKube, Fault
from tests.support.options import consul_config, kube_config, resolver_settings
from tests.support.running import OPTIONS

Eventually = Callable[..., None]
LEASE = 3
EVERYTHING = (Rule(to=Destination(namespace="default")),)


def only(service: str) -> tuple[Rule, ...]:
    """Rules that ask for one service."""
    return (Rule(services=(service,), to=Destination(namespace="default")),)


class Replica:
    """A bridge in a thread, and its metrics."""

    def __init__(self, harness: Harness, rules: Sequence[Rule], token: str = ADMIN_TOKEN, **options: Any) -> None:
        self.metrics = Metrics("1")
        self.bridge = Controller(
            consul=consul_config(address=harness.consul.address),
            kube=kube_config(kubeconfig=harness.kube.kubeconfig(harness.folder, token, f"{token}.kubeconfig")),
            rules=rules,
            options=replace(OPTIONS, **options),
            observer=self.metrics,
        )
        self.metrics.watch(self.bridge.state)
        self.thread = threading.Thread(target=self.bridge.run, name="bridge")
        self.thread.start()
        deadline = time.monotonic() + 30
        while not self.bridge.ready()[0]:
            assert time.monotonic() < deadline, self.bridge.ready()
            time.sleep(0.01)

    def stop(self) -> None:
        """End it."""
        self.bridge.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()

    @property
    def detail(self) -> dict[str, object]:
        """What /readyz says."""
        return self.bridge.ready()[1]

    @property
    def leads(self) -> bool:
        """Whether it writes."""
        return bool(self.detail["election"]["held"])  # type: ignore[index]

    def metric(self, name: str, **labels: str) -> float:
        """A sample of now."""
        return self.metrics.registry.get_sample_value(f"consul_bridge_{name}", labels) or 0.0

    def gauges(self) -> tuple[dict[str, float], dict[str, float]]:
        """Services and endpoints by state, without the zeros."""
        services = {
            s: self.metric("services", state=s) for s in ("in_sync", "out_of_sync", "held", "conflict", "failed")
        }
        endpoints = {s: self.metric("endpoints", state=s) for s in ("ready", "not_ready")}
        return {s: n for s, n in services.items() if n}, {s: n for s, n in endpoints.items() if n}


class Harness:
    """The fakes, and the bridges that were started."""

    def __init__(self, consul: FakeConsul, kube: FakeKube, folder: Path) -> None:
        self.consul = consul
        self.kube = kube
        self.folder = folder
        self.replicas: list[Replica] = []

    def add(self, rules: Sequence[Rule] = EVERYTHING, token: str = ADMIN_TOKEN, **election: Any) -> Replica:
        """One more of those that elect a leader; ready when this returns."""
        config = ElectionConfig(duration_seconds=LEASE, **election)
        self.replicas.append(Replica(self, rules, token, election=config))
        return self.replicas[-1]

    def alone(self, **options: Any) -> Replica:
        """The only one; ready when this returns."""
        self.replicas.append(Replica(self, EVERYTHING, **options))
        return self.replicas[-1]

    def stop(self, replica: Replica) -> None:
        """End one."""
        self.replicas.remove(replica)
        replica.stop()

    def ready(self, service: str) -> list[str] | None:
        """Ready addresses of a service in Kubernetes, None without Endpoints."""
        return self.kube.ready_addresses("default", service)


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    """Both sides, and no bridge between them yet."""
    with FakeConsul() as consul, FakeKube() as kube:
        made = Harness(consul, kube, tmp_path)
        yield made
        kube.clear_faults()
        consul.clear_faults()
        for replica in made.replicas:
            replica.bridge.stop()
        for replica in made.replicas:
            replica.stop()


def test_a_second_installation_with_our_owner_id_is_reported_and_never_takes_over(
    harness: Harness, eventually: Eventually
) -> None:
    """It has other rules: were it to write, it would remove what the first one mirrors."""
    harness.consul.register("web", "vm-1", "10.0.0.1", 80)
    harness.consul.register("db", "vm-2", "10.0.0.2", 81)
    first = harness.add(only("web"), installation="apps/first")
    eventually(lambda: (first.leads, harness.ready("web")), (True, ["10.0.0.1"]))
    second = harness.add(only("db"), installation="apps/second")
    eventually(
        lambda: ["owner id 'default'" in str(r.detail.get("conflicting_writer")) for r in (first, second)],
        [True, True],
        15,
    )
    eventually(lambda: [r.metric("conflicting_writer") for r in (first, second)], [1, 1])
    assert second.bridge.ready()[0] is True
    harness.stop(first)
    end = time.monotonic() + 2 * LEASE
    while time.monotonic() < end:
        assert (harness.ready("web"), harness.ready("db"), second.leads) == (["10.0.0.1"], None, False)
        time.sleep(0.05)
    again = harness.add(only("web"), installation="apps/first")
    eventually(lambda: again.leads, True, 15)


def test_a_standby_tells_what_is_and_not_what_was(harness: Harness, eventually: Eventually) -> None:
    """Its gauges follow what the leader writes, and what left has left its gauges too."""
    for n in range(4):
        harness.consul.register("web", f"vm-{n}", f"10.0.0.{n + 1}", 80)
    leader = harness.add()
    eventually(lambda: leader.leads and len(harness.ready("web") or []), 4)
    standby = harness.add()
    for n in range(3):
        harness.consul.flip("web", f"vm-{n}", "critical")
    eventually(lambda: harness.ready("web"), ["10.0.0.4"])
    expected = ({"in_sync": 1.0}, {"ready": 1.0, "not_ready": 3.0})
    eventually(lambda: [r.gauges() for r in (leader, standby)], [expected, expected])
    harness.consul.register("db", "vm-9", "10.0.0.9", 81)
    expected = ({"in_sync": 2.0}, {"ready": 2.0, "not_ready": 3.0})
    eventually(lambda: [r.gauges() for r in (leader, standby)], [expected, expected])
    for n in range(4):
        harness.consul.deregister("web", f"vm-{n}")
    eventually(lambda: harness.ready("web"), None)
    expected = ({"in_sync": 1.0}, {"ready": 1.0})
    eventually(lambda: [r.gauges() for r in (leader, standby)], [expected, expected])
    assert [leader.leads, standby.leads] == [True, False]


def test_a_change_whose_writes_failed_first_is_measured_and_counts_as_no_conflict(
    harness: Harness, eventually: Eventually
) -> None:
    """Four flips, each written at the third try: four observations, all of them slow, and no conflicting writer."""
    harness.consul.register("web", "vm-1", "10.0.0.1", 80)
    harness.consul.register("web", "vm-2", "10.0.0.2", 80)
    bridge = harness.alone()
    eventually(lambda: harness.ready("web"), ["10.0.0.1", "10.0.0.2"])
    eventually(lambda: bridge.gauges()[0], {"in_sync": 1.0})

    def lags() -> tuple[float, float]:
        return bridge.metric("sync_lag_seconds_count"), bridge.metric("sync_lag_seconds_bucket", le="0.02")

    time.sleep(0.2)
    before = lags()
    for turn in range(4):
        harness.kube.inject(Fault(status=503), times=2, method="PATCH")
        harness.consul.flip("web", "vm-1", "passing" if turn % 2 else "critical")
        eventually(lambda: harness.ready("web"), ["10.0.0.1", "10.0.0.2"] if turn % 2 else ["10.0.0.2"])
        eventually(lambda: lags()[0], before[0] + turn + 1)
    assert lags()[1] == before[1]
    assert "conflicting_writer" not in bridge.detail


def test_a_write_that_only_seemed_to_fail_is_measured(harness: Harness, eventually: Eventually) -> None:
    """The connection broke after the server had done it: nothing is left to write, and it took its time."""
    harness.consul.register("web", "vm-1", "10.0.0.1", 80)
    bridge = harness.alone()
    eventually(lambda: harness.ready("web"), ["10.0.0.1"])
    eventually(lambda: bridge.gauges()[0], {"in_sync": 1.0})
    before = bridge.metric("sync_lag_seconds_count")
    harness.kube.inject(Fault(reset_after=True), method="PATCH", path="/endpoints/web")
    harness.consul.flip("web", "vm-1", "critical")
    eventually(lambda: (harness.ready("web"), bridge.metric("errors_total", kind="transient")), ([], 1.0))
    eventually(lambda: bridge.metric("sync_lag_seconds_count"), before + 1)


def test_a_host_name_with_changing_addresses_is_no_conflicting_writer(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """Each answer is written, however often it differs: no other writer undid the one before."""
    answers = [f"10.0.5.{n}" for n in range(1, 8)]

    def look_up(_self: object, _name: str) -> tuple[tuple[str, ...], bool]:
        return (answers[0] if len(answers) == 1 else answers.pop(0),), False

    monkeypatch.setattr(Resolver, "_look_up", look_up)
    harness.consul.register("web", "vm-1", "files.example", 80)
    bridge = harness.alone(resolver=resolver_settings(ttl_seconds=0.1))
    eventually(lambda: harness.ready("web"), ["10.0.5.7"], 15)
    assert "conflicting_writer" not in bridge.detail


def test_a_client_that_reverts_us_is_a_conflicting_writer_although_writes_fail(
    harness: Harness, eventually: Eventually
) -> None:
    """A repair that is tried again is still a repair. What left Consul goes all the same: it is not what they want."""
    harness.consul.register("web", "vm-1", "10.0.0.1", 80)
    harness.consul.register("leaving", "vm-2", "10.0.0.2", 80)
    bridge = harness.alone()
    eventually(lambda: harness.ready("leaving"), ["10.0.0.2"], 15)
    for _ in range(3):
        eventually(lambda: harness.ready("web"), ["10.0.0.1"], 15)
        harness.kube.inject(Fault(status=503), times=1, method="PATCH")
        theirs = harness.kube.get("endpoints", "default", "web")
        assert theirs is not None
        harness.kube.put("endpoints", {**theirs, "subsets": []}, manager="somebody")
    eventually(lambda: "again and again" in str(bridge.detail.get("conflicting_writer")), True, 15)
    harness.consul.deregister("leaving", "vm-2")
    eventually(lambda: harness.ready("leaving"), None, 15)


def test_one_edit_after_altered_writes_is_no_conflicting_writer(harness: Harness, eventually: Eventually) -> None:
    """What the API server stores otherwise was not undone by another writer."""
    harness.consul.register("web", "vm-1", "10.0.0.1", 80)

    def alter(kind: str, body: dict[str, Any]) -> None:
        if kind == "endpoints":
            body["metadata"]["annotations"]["consul-bridge/service"] = "altered"

    harness.kube.mutate = alter
    bridge = harness.alone()
    for number in (2, 3, 4):
        harness.consul.register("web", f"vm-{number}", f"10.0.0.{number}", 80)
        expected = [f"10.0.0.{n}" for n in range(1, number + 1)]
        eventually(lambda: harness.ready("web"), expected, 15)
    harness.kube.mutate = None
    harness.consul.deregister("web", "vm-4")
    expected = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    eventually(lambda: (harness.ready("web"), bridge.gauges()[0]), (expected, {"in_sync": 1.0}), 15)
    theirs = harness.kube.get("endpoints", "default", "web")
    assert theirs is not None
    harness.kube.put("endpoints", {**theirs, "subsets": []}, manager="somebody")
    eventually(lambda: harness.ready("web"), expected, 15)
    time.sleep(0.2)  # the outcome is reported after the write
    assert "conflicting_writer" not in bridge.detail


def test_a_leader_that_is_cut_off_from_consul_leaves_the_writing_to_a_standby_that_is_not(
    harness: Harness, eventually: Eventually
) -> None:
    """What changes meanwhile is written, and the one that was cut off says why it writes nothing."""
    harness.consul.register("web", "vm-1", "10.0.0.1", 80)
    with FakeConsul() as other:  # the same services by another way
        other.register("web", "vm-1", "10.0.0.1", 80)
        leader = harness.add(lasting_seconds=1.0)
        eventually(lambda: (leader.leads, harness.ready("web")), (True, ["10.0.0.1"]))
        near, harness.consul = harness.consul, other
        standby = harness.add(lasting_seconds=1.0)
        near.inject(ConsulFault(status=500), times=100_000)
        near.drop_connections()
        other.register("web", "vm-2", "10.0.0.2", 80)
        eventually(lambda: harness.ready("web"), ["10.0.0.1", "10.0.0.2"], 20)
        assert [leader.leads, standby.leads] == [False, True]
        assert "another replica can" in str(leader.detail["election"])
        near.clear_faults()
        eventually(lambda: leader.bridge.ready()[0], True, 15)
        for replica in list(harness.replicas):
            harness.stop(replica)


def test_a_leader_waits_for_no_write_longer_than_its_lease(
    harness: Harness, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API server sits on one for longer; what it does with it at last changes nothing that was written since."""
    waits: list[float] = []
    request = KubeClient.request

    def recorded(client: KubeClient, method: str, path: str, **options: Any) -> Any:
        if method == "PATCH" and path.endswith("/endpoints/web"):
            waits.append(options["within"])
        return request(client, method, path, **options)

    monkeypatch.setattr(KubeClient, "request", recorded)
    harness.consul.register("web", "vm-1", "10.0.0.1", 80)
    leader = harness.add()
    eventually(lambda: (leader.leads, harness.ready("web")), (True, ["10.0.0.1"]))
    harness.kube.inject(Fault(delay=3 * LEASE), method="PATCH", path="/endpoints/web")
    harness.consul.flip("web", "vm-1", "critical")
    began = time.monotonic()
    eventually(lambda: leader.metric("errors_total", kind="transient"), 1.0, 3 * LEASE - 1)
    harness.consul.flip("web", "vm-1", "passing")
    harness.consul.register("web", "vm-2", "10.0.0.2", 80)
    while time.monotonic() < began + 3 * LEASE + 0.5:
        time.sleep(0.05)
    assert harness.ready("web") == ["10.0.0.1", "10.0.0.2"]
    assert 0 < max(waits) <= LEASE
