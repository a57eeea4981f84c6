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

from bridge.controller import parts
from bridge.controller.controller import Controller
from bridge.core.model import Destination, Output, Rule
from bridge.errors import TransientError
from bridge.kube import informer
from bridge.kube.reads import read_slices_again
from bridge.oneshot import check_kubernetes as checking
from bridge.oneshot import inputs
from bridge.oneshot.check import check
from bridge.oneshot.inspection import explain_once, status_once
from bridge.oneshot.sync import sync_once
from bridge.render.inspections import explanation_text
from bridge.telemetry.fan_out import FanOutObserver
from bridge.telemetry.logs import LogObserver, logger
from bridge.telemetry.metrics import Metrics
from tests.loop.test_engine_run import Running, parts_of
from tests.support.fakes.consul import FakeConsul
from tests.support.fakes.kube import FakeKube, Fault
from tests.support.options import consul_config, kube_config, sync_options
from tests.support.running import OPTIONS, QUICK

Eventually = Callable[..., None]
Json = dict[str, Any]
PODS = "endpointslice-controller.k8s.io"
SECONDS = 20.0


class Harness(Running):
    """The bridge with metrics, and the commands that look."""

    def __init__(self, consul: FakeConsul, kube: FakeKube, folder: Path) -> None:
        super().__init__(consul, kube, folder)
        self.metrics = Metrics("test")
        self.choose(Output.BOTH)

    def choose(self, output: Output) -> None:
        """Another output; before the bridge is started."""
        self.rules = (Rule(to=Destination(namespace="default", output=output)),)
        self.bridge = Controller(
            consul=consul_config(address=self.consul.address),
            kube=kube_config(kubeconfig=self.kubeconfig),
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
            "consul": consul_config(address=self.consul.address), "kube": kube_config(kubeconfig=self.kubeconfig),
            "rules": self.rules, "options": sync_options(retry=QUICK), "stop": threading.Event(),
        }  # fmt: skip

    def status(self) -> tuple[str, str]:
        """State and detail of the one service."""
        (row,) = status_once(**self.sides).services
        return row.state, row.detail

    def checked(self) -> dict[str, tuple[str, str]]:
        """State and detail of the probes about slices."""
        probes = check(self.sides["consul"], self.sides["kube"], lambda: self.rules, options=sync_options())
        return {p.name: (p.state, p.detail) for p in probes if p.name.startswith("slices")}


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    """A bridge, not started yet, and one service; every wait is shorter."""
    monkeypatch.setattr(parts, "WINDOW_SECONDS", 0.4)
    monkeypatch.setattr(informer, "LEFTOVER_SECONDS", 0.2)
    monkeypatch.setattr(inputs, "MIRROR_SECONDS", 0.05)
    monkeypatch.setattr(checking, "MIRROR_SECONDS", 0.05)
    with FakeConsul() as consul, FakeKube() as kube:
        consul.register("web", "vm-1", "10.0.0.1", 80)
        made = Harness(consul, kube, tmp_path)
        yield made
        if made.thread.ident is not None:
            made.stop()


@pytest.mark.parametrize("manager", ["cluster-mesh.example.org", ""])
def test_a_slice_of_others_is_reported_everywhere_and_so_is_its_end(
    harness: Harness, eventually: Eventually, manager: str
) -> None:
    """State, metrics, log and Event of the running bridge; status, explain, check and plan; nothing is written."""
    with capture_logs() as lines:
        harness.start()
        eventually(harness.states, {"web": "in_sync"}, SECONDS)
        written = len(harness.kube.writes())
        harness.foreign("by-hand", "10.0.0.1", "10.9.9.9", manager=manager)
        eventually(harness.states, {"web": "slices deviate"}, SECONDS)
        (row,) = harness.bridge.services()
        who = f"managed by {manager}" if manager else "without a manager"
        said = f"EndpointSlice by-hand ({who}) is neither the bridge's nor the mirror of its Endpoints: it has 10.9.9.9"
        assert row.detail.startswith(said)
        eventually(lambda: harness.counted("services_with_deviating_slices"), 1, SECONDS)
        assert (harness.counted("foreign_slices"), harness.counted("warnings", reason="foreign_slice")) == (1, 1)
        (explanation,) = harness.bridge.explain("default", "web") or ()
        assert explanation.unaccounted == ("10.9.9.9:80 ready",)

        state, detail = harness.status()
        assert (state, detail.startswith(said)) == ("out_of_sync", True)
        (explained,) = explain_once("web", **harness.sides).explanations
        text = explanation_text(explained, width=None)
        assert f"Warning:  {said}" in text
        assert "All EndpointSlices together are not this; the warnings say why." in text
        assert harness.checked()["slices of others"] == ("warning", f"default/web: {row.detail}")
        report = sync_once(**harness.sides)
        assert ([w.reason for w in report.warnings], report.changes) == ([row.detail], ())
        assert [e for e in harness.kube.writes()[written:] if not (e.resource == "events" or "dryRun" in e.query)] == []

        harness.kube.remove("endpointslices", "default", "by-hand")
        eventually(harness.states, {"web": "in_sync"}, SECONDS)
        eventually(
            lambda: (harness.counted("foreign_slices"), harness.counted("services", state="in_sync")), (0, 1), SECONDS
        )
        assert harness.status() == ("in_sync", "")
        assert harness.checked() == {
            "slices": ("ok", "those of 1 Service, together, have what the bridge's objects say")
        }  # fmt: skip
    told = [line for line in lines if line.get("codes") == "foreign_slice"]
    assert len(told) == 1

    def told_by_events() -> int:
        notes = [e.body.decode() for e in list(harness.kube.log) if e.resource == "events" and e.verb == "create"]
        return sum("by-hand" in note and '"Attention"' in note for note in notes)

    eventually(told_by_events, 1, SECONDS)


def pods_lists(harness: Harness) -> int:
    """How often it was asked for slices that pods left."""
    wanted = f"endpointslice.kubernetes.io/managed-by={PODS},"
    return sum(e.query.get("labelSelector", "").startswith(wanted) for e in list(harness.kube.log))


def test_slices_that_pods_left_are_found_when_the_selector_goes(harness: Harness, eventually: Eventually) -> None:
    """No watch of ours tells of them: they are read when the Service is ours, and until they are gone."""
    harness.consul.register("other", "vm-1", "10.0.0.1", 80)
    body = {"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "moved", "namespace": "default", "labels": {"consul-bridge/mirror": "true"}},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "protocol": "TCP"}]}}  # fmt: skip
    body["metadata"]["annotations"] = {"consul-bridge/service": "web"}  # type: ignore[index]
    harness.kube.put("services", body)
    harness.foreign("moved-x7k2p", "10.244.0.1", service="moved")
    harness.foreign("pods-of-others", "10.244.9.9", service="elsewhere")
    harness.start()
    eventually(lambda: harness.states().get("moved"), "conflict", SECONDS)
    harness.kube.inject(Fault(status=503), times=2, path=f"managed-by%3D{PODS}")
    harness.kube.put("services", {**body, "spec": {"ports": [{"port": 80, "protocol": "TCP"}]}})
    eventually(harness.states, {"moved": "slices deviate", "other": "in_sync", "web": "in_sync"}, SECONDS)
    eventually(lambda: (harness.counted("foreign_slices"), harness.ready("moved")), (1, ["10.0.0.1"]), SECONDS)
    streamed = [
        e.query["labelSelector"] for e in harness.kube.log if (e.verb, e.resource) == ("watch", "endpointslices")
    ]
    assert set(streamed) == {f"kubernetes.io/service-name,endpointslice.kubernetes.io/managed-by!={PODS}"}
    harness.kube.remove("endpointslices", "default", "moved-x7k2p")
    eventually(harness.states, {"moved": "in_sync", "other": "in_sync", "web": "in_sync"}, SECONDS)

    harness.foreign("moved-again", "10.244.0.2", service="moved")
    parts_of(harness.bridge).informer.refresh()  # a full pass does
    eventually(lambda: harness.states()["moved"], "slices deviate", SECONDS)
    harness.kube.put("services", body)  # Kubernetes looks after them again
    eventually(lambda: harness.states()["moved"], "conflict", SECONDS)
    eventually(lambda: parts_of(harness.bridge).informer.store.with_leftovers(), set(), SECONDS)
    time.sleep(0.3)
    before = pods_lists(harness)
    time.sleep(0.6)
    assert pods_lists(harness) == before


def test_endpoints_alone_are_in_sync_when_they_are_mirrored(harness: Harness, eventually: Eventually) -> None:
    """Not before; and a mirror that has stopped is reported when it has had its time, in both directions."""
    harness.choose(Output.ENDPOINTS)
    harness.start()
    eventually(harness.states, {"web": "slices deviate"}, SECONDS)
    (row,) = harness.bridge.services()
    assert "the control plane's mirror of them lacks 10.0.0.1:80;" in row.detail
    eventually(lambda: harness.counted("services_with_deviating_slices"), 1, SECONDS)
    state, detail = harness.status()
    assert (state, "lacks 10.0.0.1:80" in detail) == ("out_of_sync", True)
    found, text = harness.checked()["slices"]
    assert (found, "lacks 10.0.0.1:80" in text) == ("failed", True)

    harness.kube.mirroring = True
    harness.consul.register("web", "vm-2", "10.0.0.2", 80)
    eventually(harness.states, {"web": "in_sync"}, SECONDS)
    assert (harness.status()[0], harness.checked()["slices"][0]) == ("in_sync", "ok")

    harness.kube.mirroring = False
    harness.consul.deregister("web", "vm-1")
    eventually(lambda: (harness.ready("web"), harness.states()), (["10.0.0.2"], {"web": "slices deviate"}), SECONDS)
    assert "has 10.0.0.1:80, which Consul does not show" in harness.bridge.services()[0].detail
    assert sync_once(**harness.sides).changes == ()


@pytest.mark.parametrize(("status", "times"), [(403, 2), (500, 99)])
def test_a_second_look_that_fails_leaves_what_the_first_one_saw(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, status: int, times: int
) -> None:
    """The slices are read again where the mirror is behind: the rows stay, and what went wrong is reported."""
    harness.choose(Output.ENDPOINTS)
    sync_once(**harness.sides)
    sides = {**harness.sides, "options": sync_options(retry=replace(QUICK, attempts=2))}

    def again(*args: Any) -> None:
        harness.kube.inject(Fault(status=status), times, path="endpointslices")
        read_slices_again(*args)

    monkeypatch.setattr(inputs, "read_slices_again", again)
    found = status_once(**sides)
    assert [(row.name, row.state) for row in found.services] == [("web", "out_of_sync")]
    (trouble,) = found.trouble
    assert "EndpointSlices could not be read a second time" in trouble
    harness.kube.clear_faults()
    explained = explain_once("web", **sides)
    assert (len(explained.explanations), len(explained.trouble)) == (1, 1)


def test_a_second_look_is_tried_again(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the first one is: by `bridge status`, and by `bridge check`."""
    harness.choose(Output.ENDPOINTS)
    sync_once(**harness.sides)

    def again(*args: Any) -> None:
        monkeypatch.setattr(inputs, "read_slices_again", read_slices_again)
        raise TransientError("no connection")

    monkeypatch.setattr(inputs, "read_slices_again", again)
    assert status_once(**harness.sides).trouble == ()
    monkeypatch.setattr(inputs, "read_slices_again", again)
    found, text = harness.checked()["slices"]
    assert (found, "lacks 10.0.0.1:80" in text) == ("failed", True)


def test_a_mirror_that_follows_is_never_reported_as_late(
    harness: Harness, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is always a little late: state, log and alerts do not flap for that, however busy this machine is."""
    monkeypatch.setattr(parts, "WINDOW_SECONDS", 60.0)
    harness.choose(Output.ENDPOINTS)
    harness.kube.mirroring = True
    with capture_logs() as lines:
        harness.start()
        eventually(harness.states, {"web": "in_sync"}, SECONDS)
        seen = set()
        for number in range(2, 12):
            harness.consul.register("web", f"vm-{number}", f"10.0.0.{number}", 80)
            eventually(lambda: len(harness.ready("web") or ()), number, SECONDS)
            seen |= set(harness.states().values())
        eventually(harness.states, {"web": "in_sync"}, SECONDS)
    assert seen == {"in_sync"}
    assert [line for line in lines if "mirror_behind" in str(line)] == []


def test_slices_of_others_cost_no_request_when_consul_changes(harness: Harness, eventually: Eventually) -> None:
    """They are watched; what pods left is checked by the clock."""
    harness.foreign("by-hand", "10.9.9.9", manager="")
    harness.start()
    eventually(harness.states, {"web": "slices deviate"}, SECONDS)
    before = len(harness.kube.log)
    harness.consul.register("web", "vm-2", "10.0.0.2", 80)
    eventually(lambda: harness.ready("web"), ["10.0.0.1", "10.0.0.2"], SECONDS)
    eventually(lambda: len(harness.kube.log) - before >= 2, True, SECONDS)
    asked = [(e.verb, e.resource) for e in harness.kube.log[before:] if e.resource != "events"]
    assert sorted(asked) == [("patch", "endpoints"), ("patch", "endpointslices")]


def test_what_others_change_in_their_slices_is_no_quarrel(harness: Harness, eventually: Eventually) -> None:
    """Nothing of ours was undone, so no write of ours is slowed down, and no conflicting writer is reported."""
    harness.start()
    eventually(harness.states, {"web": "in_sync"}, SECONDS)
    for number in range(30):
        harness.foreign("mesh", f"10.9.9.{number + 1}", manager="mesh.example.org")
        harness.consul.register("web", "vm-1", f"10.0.0.{number + 1}", 80)
        eventually(lambda: harness.ready("web"), [f"10.0.0.{number + 1}"], SECONDS)
    assert "conflicting_writer" not in harness.bridge.ready()[1]


def test_a_plan_of_nothing_has_no_slices_of_others(harness: Harness, eventually: Eventually) -> None:
    """The service is gone, and with it the Service: no warning about the slices of others remains."""
    harness.start()
    harness.foreign("mesh", "10.9.9.1", manager="mesh.example.org")
    eventually(lambda: harness.counted("foreign_slices"), 1, SECONDS)
    harness.consul.register("further", "vm-2", "10.0.0.2", 80)
    harness.consul.deregister("web", "vm-1")
    eventually(harness.states, {"further": "in_sync"}, SECONDS)
    eventually(lambda: harness.counted("foreign_slices"), 0, SECONDS)
