"""What readers of EndpointSlices see, all slices together, between a fake Consul and a fake Kubernetes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from bridge.consul.client import ConsulConfig
from bridge.controller import parts
from bridge.controller.controller import Controller
from bridge.core.model import Destination, Output, Rule
from bridge.errors import TransientError
from bridge.kube import informer as caching
from bridge.kube.client import KubeConfig
from bridge.oneshot import check as checking
from bridge.oneshot import inputs
from bridge.oneshot.check import check
from bridge.oneshot.inputs import SyncOptions
from bridge.oneshot.inspection import explain_once, status_once
from bridge.oneshot.sync import sync_once
from bridge.render import explanation_text
from bridge.telemetry.fan_out import FanOutObserver
from bridge.telemetry.logs import LogObserver, logger
from bridge.telemetry.metrics import Metrics
from tests.loop.test_engine_run import OPTIONS, QUICK, Running, parts_of
from tests.support.fakes.consul import FakeConsul
from tests.support.fakes.kube import FakeKube, Fault

Eventually = Callable[..., None]
Json = dict[str, Any]
PODS = "endpointslice-controller.k8s.io"
SECONDS = 20.0


class Town(Running):
    """The bridge with metrics, and the commands that look."""

    def __init__(self, consul: FakeConsul, kube: FakeKube, folder: Path) -> None:
        super().__init__(consul, kube, folder)
        self.metrics = Metrics("test")
        self.choose(Output.BOTH)

    def choose(self, output: Output) -> None:
        """Another output; before the bridge is started."""
        self.rules = (Rule(to=Destination(namespace="default", output=output)),)
        self.bridge = Controller(
            consul=ConsulConfig(address=self.consul.address),
            kube=KubeConfig(kubeconfig=self.kubeconfig),
            rules=self.rules,
            options=OPTIONS,
            observer=FanOutObserver(LogObserver(logger()), self.metrics),
        )

    def foreign(self, name: str, *addresses: str, manager: str = PODS, service: str = "web") -> None:
        """A slice that no bridge writes."""
        labels = {"kubernetes.io/service-name": service}
        if manager:
            labels["endpointslice.kubernetes.io/managed-by"] = manager
        self.kube.put("endpointslices", {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name, "namespace": "default", "labels": labels},
            "endpoints": [{"addresses": [a], "conditions": {"ready": True}} for a in addresses],
            "ports": [{"name": "", "port": 80, "protocol": "TCP"}],
        })  # fmt: skip

    def states(self) -> dict[str, str]:
        """What the page of the running bridge shows: the state, and whether slices deviate."""
        return {row.name: "slices deviate" if row.slices_deviate else row.state for row in self.bridge.services()}

    def counted(self, name: str, **labels: str) -> float:
        """A gauge."""
        return self.metrics.registry.get_sample_value(f"consul_bridge_{name}", labels) or 0.0

    @property
    def sides(self) -> Json:
        return {
            "consul": ConsulConfig(address=self.consul.address), "kube": KubeConfig(kubeconfig=self.kubeconfig),
            "rules": self.rules, "options": SyncOptions(retry=QUICK), "stop": threading.Event(),
        }  # fmt: skip

    def status(self) -> tuple[str, str]:
        """State and detail of the one service."""
        (row,) = status_once(**self.sides).services
        return row.state, row.detail

    def checked(self) -> dict[str, tuple[str, str]]:
        """State and detail of the probes about slices."""
        probes = check(self.sides["consul"], self.sides["kube"], lambda: self.rules)
        return {p.name: (p.state, p.detail) for p in probes if p.name.startswith("slices")}


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Town]:
    """A bridge, not started yet, and one service; whoever waits waits for less."""
    monkeypatch.setattr(parts, "SETTLING_SECONDS", 0.4)
    monkeypatch.setattr(caching, "LEFTOVER_SECONDS", 0.2)
    monkeypatch.setattr(inputs, "MIRROR_SECONDS", 0.05)
    monkeypatch.setattr(checking, "MIRROR_SECONDS", 0.05)
    with FakeConsul() as consul, FakeKube() as kube:
        consul.register("web", "vm-1", "10.0.0.1", 80)
        made = Town(consul, kube, tmp_path)
        yield made
        if made.thread.ident is not None:
            made.stop()


@pytest.mark.parametrize("manager", ["cluster-mesh.example.org", ""])
def test_a_slice_of_others_is_told_everywhere_and_so_is_its_end(
    town: Town, eventually: Eventually, manager: str
) -> None:
    """State, metrics, log and Event of the running bridge; status, explain, check and plan; nothing is written."""
    with capture_logs() as lines:
        town.start()
        eventually(town.states, {"web": "in_sync"}, SECONDS)
        written = len(town.kube.writes())
        town.foreign("by-hand", "10.0.0.1", "10.9.9.9", manager=manager)
        eventually(town.states, {"web": "slices deviate"}, SECONDS)
        (row,) = town.bridge.services()
        who = f"managed by {manager}" if manager else "without a manager"
        said = f"EndpointSlice by-hand ({who}) is neither the bridge's nor the mirror of its Endpoints: it has 10.9.9.9"
        assert row.detail.startswith(said)
        eventually(lambda: town.counted("services_with_deviating_slices"), 1, SECONDS)
        assert (town.counted("foreign_slices"), town.counted("warnings", reason="foreign_slice")) == (1, 1)
        (explanation,) = town.bridge.explain("default", "web") or ()
        assert explanation.unaccounted == ("10.9.9.9:80 ready",)

        state, detail = town.status()
        assert (state, detail.startswith(said)) == ("out_of_sync", True)
        (explained,) = explain_once("web", **town.sides).explanations
        text = explanation_text(explained, width=None)
        assert f"Warning:  {said}" in text
        assert "All EndpointSlices together are not this; the warnings say why." in text
        assert town.checked()["slices of others"] == ("warning", f"default/web: {row.detail}")
        report = sync_once(**town.sides)
        assert ([w.reason for w in report.warnings], report.changes) == ([row.detail], ())
        assert [e for e in town.kube.writes()[written:] if not (e.resource == "events" or "dryRun" in e.query)] == []

        town.kube.remove("endpointslices", "default", "by-hand")
        eventually(town.states, {"web": "in_sync"}, SECONDS)
        eventually(lambda: (town.counted("foreign_slices"), town.counted("services", state="in_sync")), (0, 1), SECONDS)
        assert town.status() == ("in_sync", "")
        assert town.checked() == {
            "slices": ("ok", "those of 1 Service, together, have what the bridge's objects say")
        }  # fmt: skip
    told = [line for line in lines if line.get("codes") == "foreign_slice"]
    assert len(told) == 1

    def told_by_events() -> int:
        notes = [e.body.decode() for e in list(town.kube.log) if e.resource == "events" and e.verb == "create"]
        return sum("by-hand" in note and '"Attention"' in note for note in notes)

    eventually(told_by_events, 1, SECONDS)


def pods_lists(town: Town) -> int:
    """How often it was asked for slices that pods left."""
    wanted = f"endpointslice.kubernetes.io/managed-by={PODS},"
    return sum(e.query.get("labelSelector", "").startswith(wanted) for e in list(town.kube.log))


def test_slices_that_pods_left_are_found_when_the_selector_goes(town: Town, eventually: Eventually) -> None:
    """No watch of ours tells of them: they are read when the Service is ours, and until they are gone."""
    town.consul.register("other", "vm-1", "10.0.0.1", 80)
    body = {"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "moved", "namespace": "default", "labels": {"consul-bridge/mirror": "true"}},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "protocol": "TCP"}]}}  # fmt: skip
    body["metadata"]["annotations"] = {"consul-bridge/service": "web"}  # type: ignore[index]
    town.kube.put("services", body)
    town.foreign("moved-x7k2p", "10.244.0.1", service="moved")
    town.foreign("pods-of-others", "10.244.9.9", service="elsewhere")
    town.start()
    eventually(lambda: town.states().get("moved"), "conflict", SECONDS)
    town.kube.inject(Fault(status=503), times=2, path=f"managed-by%3D{PODS}")
    town.kube.put("services", {**body, "spec": {"ports": [{"port": 80, "protocol": "TCP"}]}})
    eventually(town.states, {"moved": "slices deviate", "other": "in_sync", "web": "in_sync"}, SECONDS)
    eventually(lambda: (town.counted("foreign_slices"), town.ready("moved")), (1, ["10.0.0.1"]), SECONDS)
    streamed = [e.query["labelSelector"] for e in town.kube.log if (e.verb, e.resource) == ("watch", "endpointslices")]
    assert set(streamed) == {f"kubernetes.io/service-name,endpointslice.kubernetes.io/managed-by!={PODS}"}
    town.kube.remove("endpointslices", "default", "moved-x7k2p")
    eventually(town.states, {"moved": "in_sync", "other": "in_sync", "web": "in_sync"}, SECONDS)

    town.foreign("moved-again", "10.244.0.2", service="moved")
    parts_of(town.bridge).informer.refresh()  # a full pass does
    eventually(lambda: town.states()["moved"], "slices deviate", SECONDS)
    town.kube.put("services", body)  # Kubernetes looks after them again
    eventually(lambda: town.states()["moved"], "conflict", SECONDS)
    eventually(lambda: parts_of(town.bridge).informer.store.with_leftovers(), set(), SECONDS)
    time.sleep(0.3)
    before = pods_lists(town)
    time.sleep(0.6)
    assert pods_lists(town) == before


def test_endpoints_alone_are_in_sync_when_they_are_mirrored(town: Town, eventually: Eventually) -> None:
    """Not before; and a mirror that has stopped is told when it has had its time, in both directions."""
    town.choose(Output.ENDPOINTS)
    town.start()
    eventually(town.states, {"web": "slices deviate"}, SECONDS)
    (row,) = town.bridge.services()
    assert "the control plane's mirror of them lacks 10.0.0.1:80;" in row.detail
    eventually(lambda: town.counted("services_with_deviating_slices"), 1, SECONDS)
    state, detail = town.status()
    assert (state, "lacks 10.0.0.1:80" in detail) == ("out_of_sync", True)
    found, text = town.checked()["slices"]
    assert (found, "lacks 10.0.0.1:80" in text) == ("failed", True)

    town.kube.mirroring = True
    town.consul.register("web", "vm-2", "10.0.0.2", 80)
    eventually(town.states, {"web": "in_sync"}, SECONDS)
    assert (town.status()[0], town.checked()["slices"][0]) == ("in_sync", "ok")

    town.kube.mirroring = False
    town.consul.deregister("web", "vm-1")
    eventually(lambda: (town.ready("web"), town.states()), (["10.0.0.2"], {"web": "slices deviate"}), SECONDS)
    assert "has 10.0.0.1:80, which Consul does not show" in town.bridge.services()[0].detail
    assert sync_once(**town.sides).changes == ()


@pytest.mark.parametrize(("status", "times"), [(403, 2), (500, 99)])
def test_a_second_look_that_fails_leaves_what_the_first_one_saw(
    town: Town, monkeypatch: pytest.MonkeyPatch, status: int, times: int
) -> None:
    """The slices are read again where the mirror is behind: the rows stay, and what went wrong is said."""
    town.choose(Output.ENDPOINTS)
    sync_once(**town.sides)
    sides = {**town.sides, "options": SyncOptions(retry=replace(QUICK, attempts=2))}

    def again(*args: Any) -> None:
        town.kube.inject(Fault(status=status), times, path="endpointslices")
        caching.read_slices_again(*args)

    monkeypatch.setattr(inputs, "read_slices_again", again)
    found = status_once(**sides)
    assert [(row.name, row.state) for row in found.services] == [("web", "out_of_sync")]
    (trouble,) = found.trouble
    assert "EndpointSlices could not be read a second time" in trouble
    town.kube.clear_faults()
    explained = explain_once("web", **sides)
    assert (len(explained.explanations), len(explained.trouble)) == (1, 1)


def test_a_second_look_is_tried_again(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the first one is: by `bridge status`, and by `bridge check`."""
    town.choose(Output.ENDPOINTS)
    sync_once(**town.sides)

    def again(*args: Any) -> None:
        monkeypatch.setattr(inputs, "read_slices_again", caching.read_slices_again)
        raise TransientError("no connection")

    monkeypatch.setattr(inputs, "read_slices_again", again)
    assert status_once(**town.sides).trouble == ()
    monkeypatch.setattr(inputs, "read_slices_again", again)
    found, text = town.checked()["slices"]
    assert (found, "lacks 10.0.0.1:80" in text) == ("failed", True)


def test_a_mirror_that_follows_is_never_told_to_lag(
    town: Town, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is always a little late: state, log and alerts do not flap for that, however busy this machine is."""
    monkeypatch.setattr(parts, "SETTLING_SECONDS", 60.0)
    town.choose(Output.ENDPOINTS)
    town.kube.mirroring = True
    with capture_logs() as lines:
        town.start()
        eventually(town.states, {"web": "in_sync"}, SECONDS)
        seen = set()
        for number in range(2, 12):
            town.consul.register("web", f"vm-{number}", f"10.0.0.{number}", 80)
            eventually(lambda: len(town.ready("web") or ()), number, SECONDS)
            seen |= set(town.states().values())
        eventually(town.states, {"web": "in_sync"}, SECONDS)
    assert seen == {"in_sync"}
    assert [line for line in lines if "mirror_behind" in str(line)] == []


def test_slices_of_others_cost_no_request_when_consul_changes(town: Town, eventually: Eventually) -> None:
    """They are watched; what pods left is looked at by the clock."""
    town.foreign("by-hand", "10.9.9.9", manager="")
    town.start()
    eventually(town.states, {"web": "slices deviate"}, SECONDS)
    before = len(town.kube.log)
    town.consul.register("web", "vm-2", "10.0.0.2", 80)
    eventually(lambda: town.ready("web"), ["10.0.0.1", "10.0.0.2"], SECONDS)
    eventually(lambda: len(town.kube.log) - before >= 2, True, SECONDS)
    asked = [(e.verb, e.resource) for e in town.kube.log[before:] if e.resource != "events"]
    assert sorted(asked) == [("patch", "endpoints"), ("patch", "endpointslices")]


def test_what_others_change_in_their_slices_is_no_quarrel(town: Town, eventually: Eventually) -> None:
    """Nothing of ours was undone, so no write of ours is slowed down, and no conflicting writer is reported."""
    town.start()
    eventually(town.states, {"web": "in_sync"}, SECONDS)
    for number in range(30):
        town.foreign("mesh", f"10.9.9.{number + 1}", manager="mesh.example.org")
        town.consul.register("web", "vm-1", f"10.0.0.{number + 1}", 80)
        eventually(lambda: town.ready("web"), [f"10.0.0.{number + 1}"], SECONDS)
    assert "conflicting_writer" not in town.bridge.ready()[1]


def test_a_plan_of_nothing_has_no_slices_of_others(town: Town, eventually: Eventually) -> None:
    """The service is gone, and with it the Service: nobody is told of what is left of others."""
    town.start()
    town.foreign("mesh", "10.9.9.1", manager="mesh.example.org")
    eventually(lambda: town.counted("foreign_slices"), 1, SECONDS)
    town.consul.register("further", "vm-2", "10.0.0.2", 80)
    town.consul.deregister("web", "vm-1")
    eventually(town.states, {"further": "in_sync"}, SECONDS)
    eventually(lambda: town.counted("foreign_slices"), 0, SECONDS)
