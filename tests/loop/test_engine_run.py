"""The running bridge between a fake Consul and a fake Kubernetes: what it does when either side misbehaves."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trustme

from bridge.controller import circuit_breaker, node_addresses, parts
from bridge.controller.controller import OWN_DATACENTER, Controller
from bridge.controller.options import RunOptions
from bridge.controller.parts import Parts
from bridge.controller.workers import Workers
from bridge.core.model import (
    Change,
    Destination,
    Group,
    InstanceRules,
    Known,
    Meta,
    Output,
    Query,
    Rule,
    Status,
    Target,
)
from bridge.kube.client import UNVERIFIED, KubeClient
from bridge.kube.mirrored import mirrored
from bridge.kube.writer import Writer
from bridge.retry import RetryPolicy
from bridge.telemetry.events import ConsulReachable, CredentialsChanged, ServerWarning, StateEvent
from bridge.telemetry.fan_out import FanOutObserver
from tests.support.chaos.stub import Stub
from tests.support.fakes.consul import FakeConsul
from tests.support.fakes.consul import Fault as ConsulFault
from tests.support.fakes.kube import ADMIN_TOKEN, FakeKube
from tests.support.fakes.kube import Fault as KubeFault
from tests.support.options import consul_config, guard_settings, kube_config
from tests.support.running import OPTIONS

Eventually = Callable[..., None]
EVERYTHING = Rule(to=Destination(namespace="default"))


def parts_of(bridge: Controller) -> Parts:
    """What a bridge that runs is made of."""
    assert bridge.parts is not None
    return bridge.parts


def is_idle(bridge: Controller) -> bool:
    """Whether nothing is due and no worker has a target: a further one would begin at once, alone."""
    queue, other = parts_of(bridge).queue, Target("any", "other")
    claimed = queue.claim(other, at_most=1)
    if claimed:
        queue.done(other)
    return claimed


class Running:
    """A bridge in a thread, and both of its fakes."""

    def __init__(
        self,
        consul: FakeConsul,
        kube: FakeKube,
        folder: Path,
        options: RunOptions = OPTIONS,
        rule: Rule = EVERYTHING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.consul = consul
        self.kube = kube
        self.folder = folder
        self.error: BaseException | None = None
        self.kubeconfig = kube.kubeconfig(folder)
        self.bridge = Controller(
            consul=consul_config(address=consul.address),
            kube=kube_config(kubeconfig=self.kubeconfig),
            rules=(rule,),
            options=options,
            clock=clock,
        )
        self.thread = threading.Thread(target=self._run, name="bridge")

    def _run(self) -> None:
        try:
            self.bridge.run()
        except Exception as error:  # noqa: BLE001 - kept, so that the test can look at it
            self.error = error

    def start(self, seconds: float = 30.0) -> None:
        """Run it; ready when this returns, within so many seconds."""
        self.thread.start()
        deadline = time.monotonic() + seconds
        while not self.bridge.ready()[0]:
            assert time.monotonic() < deadline, self.bridge.ready()
            time.sleep(0.01)

    def stop(self) -> None:
        """End it."""
        self.bridge.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()

    def ready(self, service: str) -> list[str] | None:
        """Ready addresses of a service in Kubernetes, None without Endpoints."""
        return self.kube.ready_addresses("default", service)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """A bridge, not started yet, that is stopped at the end."""
    with FakeConsul() as consul, FakeKube() as kube:
        made = Running(consul, kube, tmp_path)
        yield made
        kube.clear_faults()
        consul.clear_faults()
        if made.thread.ident is not None:
            made.stop()


def test_an_instance_is_ready_when_it_has_settled_and_consul_need_not_say_anything_again(
    running: Running, tmp_path: Path, eventually: Eventually
) -> None:
    """It waits for as long as it has to, which the page says, and is not ready at once when it is not healthy."""
    later = [0.0]
    patient = Running(
        running.consul,
        running.kube,
        tmp_path,
        rule=replace(EVERYTHING, instances=InstanceRules(settle_seconds=1000.0)),
        clock=lambda: time.monotonic() + later[0],
    )
    for n in (1, 2):
        running.consul.register("web", f"vm-{n}", f"10.0.0.{n}", 80)
    patient.start()
    try:
        eventually(lambda: patient.ready("web"), ["10.0.0.1", "10.0.0.2"], 10)
        running.consul.flip("web", "vm-2", "critical")
        eventually(lambda: patient.ready("web"), ["10.0.0.1"], 10)
        running.consul.flip("web", "vm-2", "passing")
        eventually(lambda: [e.reasons for e in patient.bridge.explain("default", "web") or ()], [("settling",)], 10)
        later[0] = 900.0
        eventually(lambda: patient.bridge.ready()[0], True, 10)
        assert patient.ready("web") == ["10.0.0.1"]
        later[0] = 1000.0
        eventually(lambda: patient.ready("web"), ["10.0.0.1", "10.0.0.2"], 10)
    finally:
        patient.stop()


def test_a_hostname_stays_with_its_machine_when_the_bridge_starts_again(
    running: Running, tmp_path: Path, eventually: Eventually
) -> None:
    """Also when another node of the same name, and before it in order, came while no bridge ran."""
    named = replace(EVERYTHING, to=replace(EVERYTHING.to, headless=True, hostname_from="node"))

    def hostnames() -> dict[str, str | None]:
        found = running.kube.get("endpoints", "default", "kafka") or {}
        return {a["ip"]: a.get("hostname") for subset in found.get("subsets") or [] for a in subset["addresses"]}

    running.consul.register("kafka", "vm-1.fra", "10.0.0.2", 9092)
    for there in ({"10.0.0.2": "vm-1"}, {"10.0.0.1": None, "10.0.0.2": "vm-1"}):
        bridge = Running(running.consul, running.kube, tmp_path, rule=named)
        bridge.start()
        try:
            eventually(hostnames, there, 10)
        finally:
            bridge.stop()
        running.consul.register("kafka", "vm-1.ams", "10.0.0.1", 9092)


def test_an_object_that_the_server_fails_for_again_and_again_delays_no_other(
    running: Running, eventually: Eventually
) -> None:
    """An admission webhook may answer 500 for just one name: the server is not down for that."""
    running.start()
    running.kube.inject(KubeFault(status=500), times=10_000, method="PATCH", path="/services/poison")
    running.consul.register("poison", "vm-p", "10.0.0.1", 80)
    time.sleep(0.5)
    began = time.monotonic()
    for n in range(20):
        running.consul.register(f"good-{n}", f"vm-{n}", "10.0.1.1", 80)
    eventually(lambda: [running.ready(f"good-{n}") for n in range(20)], [["10.0.1.1"]] * 20, 5)
    assert time.monotonic() - began < 5
    running.kube.clear_faults()
    eventually(lambda: running.ready("poison"), ["10.0.0.1"], 5)


@pytest.mark.slow
def test_while_kubernetes_is_away_one_prober_asks_and_afterwards_all_is_made_up_for(
    running: Running, eventually: Eventually
) -> None:
    """Six hundred services changed; a handful of requests during the outage; each written once after it."""
    count, changed = 1000, 600  # more than four fifths of all that turn at once would be held
    addresses = {f"s-{n}": f"10.1.{n // 250}.{n % 250 + 1}" for n in range(count)}
    for name, address in addresses.items():
        running.consul.register(name, f"vm-{name}", address, 80)
    running.start(120)

    def written(since: int = 0) -> int:  # an entry comes with the answer, after the change itself
        return sum(entry.method == "PATCH" and entry.status < 300 for entry in running.kube.log[since:])

    eventually(written, 3 * count, 120)
    running.kube.inject(KubeFault(status=503), times=100_000, method="PATCH")
    before, began = len(running.kube.log), time.monotonic()
    for name in list(addresses)[:changed]:
        running.consul.flip(name, f"vm-{name}", "critical")
    eventually(lambda: running.bridge.status()["queue"] > changed - 20, True, 60)  # some are in the writers' hands
    asked, queued = len(running.kube.log), time.monotonic()
    time.sleep(3)
    during = sum(entry.method == "PATCH" for entry in running.kube.log[asked:])
    ended = time.monotonic()
    at_first = sum(entry.method == "PATCH" for entry in running.kube.log[before:asked])
    running.kube.clear_faults()
    eventually(lambda: all(running.ready(name) == [] for name in list(addresses)[:changed]), True, 60)
    eventually(lambda: written(before), 2 * changed)
    assert 0 < during < 8 * (ended - queued)  # one asks 3.6 times a second, four would ask 14.5 times
    assert at_first < 40 + 8 * (queued - began)
    time.sleep(0.3)
    assert written(before) == 2 * changed


def test_an_object_that_fails_for_itself_does_not_hide_that_kubernetes_is_away(
    running: Running, eventually: Eventually
) -> None:
    """Its failures tell nothing of the server: one prober goes on asking, readiness says no, and nothing waits long."""
    names = [f"s-{n}" for n in range(12)]
    for n, name in enumerate(names):
        running.consul.register(name, f"vm-{n}", f"10.0.0.{n + 1}", 80)
    running.start()
    eventually(lambda: all(running.ready(name) for name in names), True, 30)
    running.kube.inject(KubeFault(status=500), times=10_000, method="PATCH", path="/services/poison")
    running.consul.register("poison", "vm-p", "10.0.9.1", 80)
    for status in ("warning", "critical", "passing"):
        running.consul.flip("s-0", "vm-0", status)
        eventually(lambda wanted=status: bool(running.ready("s-0")) == (wanted != "critical"), True, 15)
        time.sleep(0.2)
    running.kube.inject(KubeFault(status=503), times=100_000, method="PATCH")
    before = len(running.kube.log)
    for n, name in enumerate(names[:8]):
        running.consul.flip(name, f"vm-{n}", "critical")
    eventually(lambda: running.bridge.ready()[0], False, 15)
    said = []
    for _ in range(100):
        said.append(running.bridge.ready()[0])
        time.sleep(0.02)
    during = sum(entry.method == "PATCH" for entry in running.kube.log[before:])
    running.kube.clear_faults()
    eventually(lambda: [running.ready(name) for name in names[:8]], [[]] * 8, 10)
    assert (any(said), during < 40) == (False, True)


def test_a_start_that_fails_says_why_until_it_works(running: Running, eventually: Eventually) -> None:
    """A Consul that is away before its datacenter's name is known; then an API server that cannot be listed."""
    heard = Heard()
    running.bridge = Controller(
        consul=consul_config(address=running.consul.address),
        kube=kube_config(kubeconfig=running.kubeconfig),
        rules=(Rule(to=Destination(namespace="default")),),
        options=OPTIONS,
        observer=heard,
    )
    running.consul.register("web", "vm-1", "10.0.0.1", 80)
    running.consul.inject(ConsulFault(status=500), times=100_000)
    running.kube.inject(KubeFault(status=503), times=100_000)
    running.thread.start()
    eventually(lambda: "500" in str(running.bridge.state()["consul"]), True, 10)
    assert running.bridge.state()["kubernetes"] == "not started"
    assert [(dc, up) for dc, up in heard.consuls] == [(OWN_DATACENTER, False)]
    running.consul.clear_faults()
    eventually(lambda: "503" in str(running.bridge.state()["kubernetes"]), True, 10)
    assert running.bridge.state()["consul"] == "ok"
    assert heard.consuls[-1] == (OWN_DATACENTER, True)
    running.kube.clear_faults()
    eventually(lambda: running.ready("web"), ["10.0.0.1"], 10)
    eventually(lambda: running.bridge.ready()[0], True)


class Heard(FanOutObserver):
    """What the bridge says of Consul."""

    def __init__(self) -> None:
        super().__init__()
        self.consuls: list[tuple[str, bool]] = []

    def changed(self, event: StateEvent) -> None:
        """Remembered."""
        if isinstance(event, ConsulReachable):
            self.consuls.append((event.datacenter, event.up))


def test_while_our_credentials_are_refused_one_prober_asks_and_afterwards_all_is_made_up_for(
    running: Running, eventually: Eventually
) -> None:
    """401 is true of every object: it is reported, readiness is false, and no object waits long by itself."""
    for n in range(30):
        running.consul.register(f"s-{n}", f"vm-{n}", f"10.0.0.{n + 1}", 80)
    running.start()
    running.kube.inject(KubeFault(status=401), times=100_000, method="PATCH")
    before = len(running.kube.log)
    for n in range(30):
        running.consul.flip(f"s-{n}", f"vm-{n}", "critical")
    eventually(lambda: "refuses our credentials" in str(running.bridge.ready()[1]["kubernetes"]), True, 10)
    assert running.bridge.ready()[0] is False
    time.sleep(1.5)
    assert sum(entry.method == "PATCH" for entry in running.kube.log[before:]) < 40
    running.kube.clear_faults()
    eventually(lambda: [running.ready(f"s-{n}") for n in range(30)], [[]] * 30, 10)
    eventually(lambda: running.bridge.ready()[0], True, 10)


def test_what_a_write_makes_after_all_when_its_service_has_left_goes_as_well(
    running: Running, eventually: Eventually
) -> None:
    """The API server was slow, we gave the answer up, and the service left Consul: then the object appears."""
    running.consul.register("web", "vm-1", "10.0.0.1", 80)
    running.start()
    eventually(lambda: running.ready("web"), ["10.0.0.1"])
    ours = running.kube.get("services", "default", "web")
    assert ours is not None
    running.consul.deregister("web", "vm-1")
    eventually(lambda: running.kube.get("services", "default", "web"), None)
    late = {key: ours["metadata"][key] for key in ("name", "namespace", "labels", "annotations")}
    running.kube.put("services", {**ours, "metadata": late}, manager="consul-bridge")
    eventually(lambda: running.kube.get("services", "default", "web"), None)


def test_429_makes_it_slower_and_nothing_is_lost(running: Running, eventually: Eventually) -> None:
    """Retry-After is honoured."""
    running.start()
    running.kube.inject(KubeFault(status=429, headers={"Retry-After": "1"}), times=3, method="PATCH")
    for n in range(30):
        running.consul.register(f"s-{n}", f"vm-{n}", f"10.0.0.{n + 1}", 80)
    eventually(lambda: [running.ready(f"s-{n}") for n in range(30)], [[f"10.0.0.{n + 1}"] for n in range(30)], 30)


def test_after_429_for_a_long_time_no_thread_waits_on_its_own(
    running: Running, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate waits, for all together; the objects' own backoff, which grows to a minute, is for their own faults."""
    monkeypatch.setattr(circuit_breaker, "THROTTLED_SECONDS", 1.0)
    slow = RetryPolicy(initial_seconds=20.0, max_seconds=60.0)
    running = Running(running.consul, running.kube, running.folder, replace(OPTIONS, object_retry=slow))
    for n in range(8):
        running.consul.register(f"s-{n}", f"vm-{n}", f"10.0.0.{n + 1}", 80)
    running.start()
    try:
        eventually(lambda: all(running.ready(f"s-{n}") for n in range(8)), True, 10)
        running.kube.inject(KubeFault(status=429), times=10_000, method="PATCH")
        for n in range(8):
            running.consul.flip(f"s-{n}", f"vm-{n}", "critical")
        eventually(lambda: "slower" in str(running.bridge.ready()[1]["kubernetes"]), True, 10)
        running.kube.clear_faults()
        eventually(lambda: [running.ready(f"s-{n}") for n in range(8)], [[]] * 8, 15)
        eventually(lambda: running.bridge.ready()[0], True, 15)
    finally:
        running.stop()


def test_a_storm_of_changes_is_written_as_its_outcome(running: Running, eventually: Eventually) -> None:
    """A check that flips all the time costs few writes; the last state wins."""
    running.consul.register("web", "vm-1", "10.0.0.1", 80)
    running.consul.register("web", "vm-2", "10.0.0.2", 80)
    running.start()
    eventually(lambda: running.ready("web"), ["10.0.0.1", "10.0.0.2"])
    before = len(running.kube.writes())
    for n in range(300):
        running.consul.flip("web", "vm-1", "passing" if n % 2 else "critical")
    running.consul.flip("web", "vm-1", "critical")
    eventually(lambda: running.ready("web"), ["10.0.0.2"])
    assert len(running.kube.writes()) - before <= 301


def test_a_consul_that_comes_back_empty_takes_nothing_away(running: Running, eventually: Eventually) -> None:
    """Three endpoints are below every threshold of the guard: the index that went backwards holds them."""
    for n in range(1, 4):
        running.consul.register("web", f"vm-{n}", f"10.0.0.{n}", 80)
    running.start()
    everything = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    eventually(lambda: running.ready("web"), everything)
    running.consul.rebuild()
    eventually(lambda: running.bridge.ready()[1].get("held", []) != [], True)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        assert running.ready("web") == everything
        time.sleep(0.01)


@pytest.mark.parametrize(
    "fault",
    [
        ConsulFault(status=500),
        ConsulFault(status=429),
        ConsulFault(status=403),
        ConsulFault(truncate=True),
        ConsulFault(reset=True),
        ConsulFault(garbage=b"\x00\x01\x02"),
        ConsulFault(headers=(("X-Consul-Index", None),)),
        ConsulFault(headers=(("X-Consul-Index", "0"),)),
        ConsulFault(headers=(("X-Consul-Index", "many"),)),
        ConsulFault(headers=(("X-Consul-Results-Filtered-By-ACLs", "true"),)),
    ],
    ids=["500", "429", "403", "cut off", "reset", "garbage", "no index", "index 0", "index no number", "filtered"],
)
def test_whatever_consul_answers_in_trouble_nothing_is_taken_away(
    running: Running, fault: ConsulFault, eventually: Eventually
) -> None:
    """The endpoints stay, readiness tells, and after the trouble the bridge goes on by itself."""
    running.consul.register("web", "vm-1", "10.0.0.1", 80)
    running.start()
    eventually(lambda: running.ready("web"), ["10.0.0.1"])
    running.consul.inject(fault, times=100_000)
    running.consul.drop_connections()
    end = time.monotonic() + 0.7
    while time.monotonic() < end:
        assert running.ready("web") == ["10.0.0.1"]
        time.sleep(0.01)
    running.consul.clear_faults()
    running.consul.register("web", "vm-2", "10.0.0.2", 80)
    eventually(lambda: running.ready("web"), ["10.0.0.1", "10.0.0.2"], 30)
    eventually(lambda: running.bridge.ready()[0], True, 30)  # a trouble with 429 is reported for ten seconds


def writes_by(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(service, first word of the thread's name) of the writes from now on."""
    made: list[tuple[str, str]] = []
    real = Writer.apply

    def apply(self: Writer, change: Change) -> Meta | None:
        made.append((change.target.name, threading.current_thread().name.partition("-")[0]))
        return real(self, change)

    monkeypatch.setattr(Writer, "apply", apply)
    return made


def test_a_watch_writes_what_it_heard_itself(
    running: Running, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """No other thread has to be woken for it, and none writes it again."""
    running.consul.register("web", "vm-1", "10.0.0.1", 80)
    running.start()
    eventually(lambda: running.ready("web"), ["10.0.0.1"])
    eventually(partial(is_idle, running.bridge), True)  # it is in flight until the server's answer has come
    made = writes_by(monkeypatch)
    running.consul.flip("web", "vm-1", "critical")
    eventually(lambda: running.ready("web"), [])
    time.sleep(0.2)
    assert made == [("web", "consul")] * 2  # the slice, then the Endpoints


def test_while_kubernetes_is_in_trouble_watches_leave_the_writing_to_the_writers(
    running: Running, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """A thread that waited for the API server would miss what Consul says."""
    for n in range(3):
        running.consul.register(f"s-{n}", f"vm-{n}", f"10.0.0.{n + 1}", 80)
    running.start()
    eventually(lambda: running.ready("s-2"), ["10.0.0.3"])
    running.kube.inject(KubeFault(status=503), times=100_000, method="PATCH")
    running.consul.flip("s-0", "vm-0", "critical")
    eventually(lambda: running.bridge.ready()[0], False)
    made = writes_by(monkeypatch)
    running.consul.flip("s-1", "vm-1", "critical")
    running.consul.flip("s-2", "vm-2", "critical")

    def heard(name: str) -> bool:
        known = parts_of(running.bridge).planner.consul_state.known(Query("dc1", name))
        return isinstance(known, Known) and [i.status for i in known.instances] == [Status.CRITICAL]

    eventually(lambda: heard("s-1") and heard("s-2"), True)
    time.sleep(0.2)
    running.kube.clear_faults()
    eventually(lambda: [running.ready(f"s-{n}") for n in range(3)], [[], [], []], 15)
    assert {name for name, _ in made} == {"s-0", "s-1", "s-2"}
    assert {thread for _, thread in made} == {"writer"}


def test_a_stop_waits_for_what_a_watch_is_writing(running: Running, eventually: Eventually) -> None:
    """The object in flight is finished, no matter which thread has it."""
    running.consul.register("web", "vm-1", "10.0.0.1", 80)
    running.start()
    eventually(lambda: running.ready("web"), ["10.0.0.1"])
    running.kube.inject(KubeFault(delay=0.7), method="PATCH", path="/endpoints/web")
    before = len(running.kube.log)
    running.consul.flip("web", "vm-1", "critical")
    eventually(lambda: running.kube._rules[-1].times, 0)  # it is being written
    running.stop()
    assert running.ready("web") == []
    assert [e.status for e in running.kube.log[before:] if e.method == "PATCH"] == [200, 200]


def test_a_thread_that_dies_of_a_bug_ends_the_bridge(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never lives on half alive."""
    running.start()

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Workers, "reconcile", broken)
    running.consul.register("web", "vm-1", "10.0.0.1", 80)
    running.thread.join(20)
    assert (running.thread.is_alive(), "ZeroDivisionError" in str(running.error)) == (False, True)
    assert running.bridge.healthy()[0] is False


def test_a_stop_during_an_outage_of_both_sides_is_quick(running: Running) -> None:
    """No wait holds it up."""
    running.start()
    running.kube.inject(KubeFault(status=503), times=100_000)
    running.consul.inject(ConsulFault(status=500), times=100_000)
    running.consul.drop_connections()
    running.kube.cut()
    time.sleep(0.5)
    began = time.monotonic()
    running.stop()
    assert time.monotonic() - began < 5


def test_a_second_owner_in_the_same_namespace_is_never_touched(
    running: Running, tmp_path: Path, eventually: Eventually
) -> None:
    """The owner id that made an object keeps it; the other reports a conflict."""
    running.consul.register("web", "vm-1", "10.0.0.1", 80)
    running.start()
    eventually(lambda: running.ready("web"), ["10.0.0.1"])
    before = running.kube.get("endpoints", "default", "web")
    other = Running(running.consul, running.kube, tmp_path, replace(OPTIONS, owner="other"))
    other.start()
    eventually(lambda: len(other.bridge.status()["report"]["conflicts"]), 1)
    time.sleep(0.5)
    other.stop()
    assert running.kube.get("endpoints", "default", "web") == before


def test_a_consul_that_was_rebuilt_while_no_bridge_ran_removes_nothing(
    running: Running, tmp_path: Path, eventually: Eventually
) -> None:
    """One machine restarts with both on it: what Kubernetes has tells what Consul lacks, however little it is."""
    for n in range(3):
        running.consul.register(f"s-{n}", f"vm-{n}", f"10.0.0.{n + 1}", 80)
    running.start()
    eventually(lambda: [running.ready(f"s-{n}") for n in range(3)], [[f"10.0.0.{n + 1}"] for n in range(3)])
    running.stop()
    for n in range(1, 3):
        running.consul.deregister(f"s-{n}", f"vm-{n}")
    patient = replace(OPTIONS, guard=guard_settings(restore_hold_seconds=5.0))
    again = Running(running.consul, running.kube, tmp_path, patient)
    again.start()
    try:
        eventually(lambda: len(again.bridge.ready()[1]["held"]), 2)
        assert "at our start it lists 1 of the 3 services" in again.bridge.ready()[1]["held"][0]
        assert [again.ready(f"s-{n}") for n in range(3)] == [[f"10.0.0.{n + 1}"] for n in range(3)]
        eventually(lambda: [again.ready(f"s-{n}") for n in range(3)], [["10.0.0.1"], None, None], 30)
    finally:
        again.stop()


def test_a_consul_that_was_rebuilt_and_is_listed_late_takes_nothing_away(
    running: Running, tmp_path: Path, eventually: Eventually
) -> None:
    """No leader when the bridge starts: its first listing comes after the first pass, and is doubted all the same."""
    for n in range(3):
        running.consul.register(f"s-{n}", f"vm-{n}", f"10.0.0.{n + 1}", 80)
    running.start()
    everything = [[f"10.0.0.{n + 1}"] for n in range(3)]
    eventually(lambda: [running.ready(f"s-{n}") for n in range(3)], everything)
    running.stop()
    for n in range(3):
        running.consul.deregister(f"s-{n}", f"vm-{n}")
    running.consul.inject(ConsulFault(status=500, body="No cluster leader"), times=100_000, path="/v1/catalog/services")
    off = guard_settings(restore_hold_seconds=60.0, removal_minimum=100)
    again = Running(running.consul, running.kube, tmp_path, replace(OPTIONS, guard=off))
    again.thread.start()
    try:
        eventually(lambda: again.bridge.ready()[1]["first_pass_done"], True, 20)
        running.consul.clear_faults()
        eventually(lambda: len(again.bridge.ready()[1]["held"]), 3, 20)
        assert "at its first answer it lists 0 of the 3 services" in again.bridge.ready()[1]["held"][0]
        assert [again.ready(f"s-{n}") for n in range(3)] == everything
    finally:
        again.stop()


def test_only_writers_ask_what_the_control_plane_has_mirrored(
    running: Running, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request for each service whose output changed: the supervisor must not wait for a server that is silent."""
    asked: dict[str, set[str]] = {}

    def noted(client: KubeClient, target: Target) -> tuple[Group, ...]:
        asked.setdefault(target.name, set()).add(threading.current_thread().name.partition("-")[0])
        return mirrored(client, target)

    monkeypatch.setattr(parts, "mirrored", noted)
    running.bridge = Controller(
        consul=consul_config(address=running.consul.address),
        kube=kube_config(kubeconfig=running.kubeconfig),
        rules=(Rule(to=Destination(namespace="default", output=Output.ENDPOINTS)),),
        options=OPTIONS,
    )
    for name in ("one", "two"):
        running.consul.register(name, f"vm-{name}", "10.0.0.1", 80)
        marks = {"consul-bridge/owner": "default", "kubernetes.io/service-name": name}
        managers = dict.fromkeys(
            ("app.kubernetes.io/managed-by", "endpointslice.kubernetes.io/managed-by"), "consul-bridge"
        )
        running.kube.put("endpointslices", {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": f"{name}-abcde", "namespace": "default", "labels": {**marks, **managers}},
            "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": True}}],
            "ports": [{"port": 80, "protocol": "TCP"}],
        })  # fmt: skip
    running.start()
    eventually(lambda: [running.ready(name) for name in ("one", "two")], [["10.0.0.1"]] * 2)
    eventually(lambda: asked.keys(), {"one", "two"})
    assert {thread for threads in asked.values() for thread in threads} <= {"writer", "consul"}


def test_what_a_service_on_its_way_out_has_lost_is_not_made_again(
    running: Running, tmp_path: Path, eventually: Eventually
) -> None:
    """A user released a hold by `bridge sync --force`: the bridge beside it, in the grace period, agrees."""
    running.consul.register("web", "vm-1", "10.0.0.1", 80)
    running.consul.register("other", "vm-2", "10.0.0.2", 80)
    patient = Running(running.consul, running.kube, tmp_path, replace(OPTIONS, removal_grace_seconds=60.0))
    patient.start()
    try:
        eventually(lambda: patient.ready("web"), ["10.0.0.1"])
        running.consul.deregister("web", "vm-1")
        eventually(lambda: patient.ready("web"), [])
        # an entry of the log comes with the answer, after the change itself
        eventually(partial(is_idle, patient.bridge), True)
        before = len(running.kube.log)
        running.kube.remove("endpoints", "default", "web")
        running.kube.remove("services", "default", "web")
        running.consul.flip("other", "vm-2", "critical")
        eventually(lambda: patient.ready("other"), [])
        time.sleep(0.3)
        assert [e.path for e in running.kube.log[before:] if e.method == "PATCH" and "/web" in e.path] == []
        assert "conflicting_writer" not in patient.bridge.ready()[1]
        running.consul.register("web", "vm-1", "10.0.0.9", 80)
        eventually(lambda: patient.ready("web"), ["10.0.0.9"])
    finally:
        patient.stop()


@pytest.mark.parametrize("deleted", [False, True], ids=["the label is taken off", "the Service is deleted"])
def test_what_a_user_no_longer_asks_for_goes_at_once_however_much_it_is(
    running: Running, tmp_path: Path, eventually: Eventually, deleted: bool
) -> None:
    """Half of all that there is, so this guard would hold it if Consul had lost it."""
    for n in range(12):
        running.consul.register("web", f"vm-{n}", f"10.0.0.{n + 1}", 80)
    marks = {"labels": {"consul-bridge/mirror": "true"}, "annotations": {"consul-bridge/service": "web"}}
    body = {"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 80, "protocol": "TCP"}]}}
    plain = {"name": "store", "namespace": "default"}
    running.kube.put("services", {**body, "metadata": {**plain, **marks}})
    strict = replace(OPTIONS, guard=guard_settings(removal_percent=40))
    strictly = Running(running.consul, running.kube, tmp_path, strict)
    strictly.start()
    try:
        eventually(lambda: len(strictly.ready("store") or ()), 12)
        if deleted:
            running.kube.remove("services", "default", "store")
        else:
            running.kube.put("services", {**body, "metadata": plain})
        eventually(lambda: strictly.ready("store"), None)
        assert strictly.bridge.ready()[1]["held"] == []
    finally:
        strictly.stop()


def test_databases_that_fail_over_together_are_followed(
    running: Running, tmp_path: Path, eventually: Eventually
) -> None:
    """The tag of each moves: first no instance has it, and no old primary is kept."""
    names = [f"pg-{n}" for n in range(12)]

    def tag(first: str, second: str) -> None:
        for number, name in enumerate(names):
            for node, word in (("a", first), ("b", second)):
                running.consul.register(name, f"{name}-{node}", f"10.1.{number}.{ord(node)}", 5432, Tags=[word])

    def primaries(node: str) -> list[list[str]]:
        return [[f"10.1.{number}.{ord(node)}"] for number in range(len(names))]

    tag("primary", "replica")
    running.bridge = Controller(
        consul=consul_config(address=running.consul.address),
        kube=kube_config(kubeconfig=running.kubeconfig),
        rules=(Rule(tags=("primary",), to=Destination(namespace="default")),),
        options=OPTIONS,
    )
    running.start()
    eventually(lambda: [running.ready(name) for name in names], primaries("a"))
    tag("replica", "replica")
    eventually(lambda: [running.ready(name) for name in names], [[] for _ in names])
    tag("replica", "primary")
    eventually(lambda: [running.ready(name) for name in names], primaries("b"))
    assert running.bridge.ready()[1]["held"] == []


@pytest.mark.parametrize("events", [True, False])
def test_events_are_written_unless_the_settings_say_no(tmp_path: Path, eventually: Eventually, events: bool) -> None:
    """Of a Service and its Endpoints that were created, while those of twenty more come; or none."""
    with FakeConsul() as consul, FakeKube() as kube:
        consul.register("web", "vm-1", "10.0.0.1", 80)
        made = Running(consul, kube, tmp_path, replace(OPTIONS, events=events))
        made.start()
        try:
            assert ("kube-events" in {thread.name for thread in threading.enumerate()}) == events
            eventually(lambda: made.ready("web"), ["10.0.0.1"])
            if events:
                eventually(lambda: kube.count("create", "events") >= 2, True)
            for n in range(20):
                consul.register(f"s-{n}", f"vm-{n}", "10.0.1.1", 80)
            eventually(lambda: [made.ready(f"s-{n}") for n in range(20)], [["10.0.1.1"]] * 20)
        finally:
            made.stop()
        assert (kube.count("create", "events") > 0) == events


class Warned(FanOutObserver):
    """Keeps what is reported of warnings and credentials."""

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []
        self.troubles: list[str] = [""]

    def changed(self, event: StateEvent) -> None:
        """Kept."""
        if isinstance(event, ServerWarning):
            self.warnings.append(event.text)
        elif isinstance(event, CredentialsChanged):
            self.troubles.append(event.trouble)


def test_a_plugin_that_hangs_is_named_by_readiness_and_log_while_the_work_goes_on(
    running: Running, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old token is in use: ready, written, with a warning; and the API server's own warnings are reported once."""
    monkeypatch.setattr("bridge.kube.access.AUTH_SECONDS", 0.0)
    monkeypatch.setattr("bridge.kube.plugin.LIMIT_SECONDS", 0.5)
    hangs = running.folder / "hangs"
    login = running.folder / "login"
    login.write_text(
        f"#!/bin/sh\n[ -e {hangs} ] && sleep 600\n"
        'echo \'{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": '
        f'{{"token": "{ADMIN_TOKEN}", "expirationTimestamp": "2020-01-01T00:00:00Z"}}}}\'\n'
    )
    login.chmod(0o755)
    config = json.loads(Path(running.kubeconfig).read_text())
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": "./login", "interactiveMode": "Never"}
    config["users"][0]["user"] = {"exec": plugin}
    Path(running.kubeconfig).write_text(json.dumps(config))
    observer = Warned()
    running.bridge._observer.add(observer)
    running.consul.register("web", "vm-1", "10.0.0.1", 80)
    running.start()
    hangs.touch()
    eventually(lambda: str(running.bridge.ready()[1].get("warnings")).count(f"{login}"), 1)
    running.consul.register("web", "vm-2", "10.0.0.2", 80)
    eventually(lambda: running.ready("web"), ["10.0.0.1", "10.0.0.2"])
    ready, detail = running.bridge.ready()
    assert ready
    assert "did not answer within 0.5 s" in str(detail["warnings"])
    eventually(lambda: "did not answer within 0.5 s" in "".join(observer.troubles), True)
    hangs.unlink()
    eventually(lambda: running.bridge.ready()[1].get("warnings"), None, 30)
    assert observer.warnings == ["v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"]


def test_a_server_that_is_not_verified_is_reported_by_readiness_and_log(
    running: Running, eventually: Eventually, tmp_path: Path
) -> None:
    """It works, and the report says so plainly."""
    made = trustme.CA().issue_cert("kube.example.org")
    (tmp_path / "server.pem").write_bytes(made.cert_chain_pems[0].bytes())
    (tmp_path / "server.key").write_bytes(made.private_key_pem.bytes())
    files = (tmp_path / "server.pem", tmp_path / "server.key")
    between = Stub(running.kube.url, lambda _method, _path: None, certificate=files)
    config = json.loads(Path(running.kubeconfig).read_text())
    config["clusters"][0]["cluster"] = {"server": f"https://{between.address}", "insecure-skip-tls-verify": True}
    Path(running.kubeconfig).write_text(json.dumps(config))
    observer = Warned()
    running.bridge._observer.add(observer)
    running.consul.register("web", "vm-1", "10.0.0.1", 80)  # or the rule that matches nothing is a warning, too
    try:
        running.start()
        ready, detail = running.bridge.ready()
        assert (ready, detail["warnings"]) == (True, [UNVERIFIED])
        assert observer.warnings.count(UNVERIFIED) == 1
    finally:
        running.stop()
        running.thread = threading.Thread()
        between.close()


def test_nodes_that_cannot_be_listed_keep_nothing_waiting(
    running: Running, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They bound users' Services alone; readiness says that they are not known, until they are."""
    monkeypatch.setattr(node_addresses, "AWAIT_SECONDS", 0.2)
    monkeypatch.setattr(node_addresses, "RETRY_SECONDS", 0.2)
    running.kube.inject(KubeFault(status=500), times=100_000, path="/api/v1/nodes")
    running.consul.register("web", "vm-0", "10.0.0.1", 80)
    running.start()
    eventually(lambda: running.ready("web"), ["10.0.0.1"])
    (said,) = running.bridge.ready()[1]["warnings"]
    assert said.startswith("addresses of the cluster's nodes may be out of date: ")
    running.kube.clear_faults()
    eventually(lambda: running.bridge.ready()[1].get("warnings"), None)
