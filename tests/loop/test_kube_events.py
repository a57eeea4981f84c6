"""Recording events never waits, never fails, and ends at once."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from bridge.core.model import Kind, Target
from bridge.errors import NotLeadingError
from bridge.kube.client import KubeClient
from bridge.kube.election import Election
from bridge.kube.events import About, Event, EventRecorder
from bridge.kube.lease_api import KubeLeases
from bridge.kube.members import ElectionConfig
from bridge.kube.writer import Writer
from tests.support.fakes.kube import PLAIN_TOKEN, FakeKube, Fault, wait_for
from tests.support.options import kube_config
from tests.unit.kube.builders import create, endpoints


def event(number: int = 0, namespace: str = "default") -> Event:
    """One of many different events."""
    about = About(Kind.SERVICE, namespace, f"s{number}")
    return Event(about, "Normal", "Mirrored", "Mirror", "as wanted")


def test_recording_does_not_wait_for_a_slow_server(fake: FakeKube, client: KubeClient) -> None:
    """A thousand calls in no time; what does not fit is dropped and counted, the newest stay."""
    fake.inject(Fault(delay=3.0), times=1, path="events")
    recorder = EventRecorder(client, queue_size=50)
    recorder.start()
    recorder.record(event(9999))
    assert wait_for(lambda: fake.count() == 0 and recorder._busy)
    began = time.monotonic()
    for number in range(1000):
        recorder.record(event(number))
    assert time.monotonic() - began < 2.5
    assert recorder.flush(30)
    assert (recorder.dropped, recorder.sent) == (950, 51)
    names = {e.body["regarding"]["name"] for e in fake.objects["events.k8s.io", "events"].values()}
    assert "s999" in names
    assert recorder.close(20)


def test_a_server_that_fails_costs_nothing_but_the_event(fake: FakeKube, client: KubeClient) -> None:
    """503 and resets: counted, no retry, the next one goes out."""
    fake.inject(Fault(status=503), times=1)
    fake.inject(Fault(reset=True), times=1)
    recorder = EventRecorder(client)
    recorder.start()
    for number in range(3):
        recorder.record(event(number))
    assert recorder.flush(20)
    assert (recorder.failed, recorder.sent) == (2, 1)
    assert recorder.close(20)


def test_a_forbidden_recorder_rests(fake: FakeKube, tmp_path: Path) -> None:
    """No permission: one request, then silence for ten minutes."""
    fake.forbid("plain", "create", "events")
    plain = KubeClient(kube_config(kubeconfig=fake.kubeconfig(tmp_path, PLAIN_TOKEN)))
    now = [0.0]
    recorder = EventRecorder(plain, clock=lambda: now[0])
    for number in range(5):
        recorder.send(event(number))
    assert fake.count("create", "events") == 1
    assert (recorder.failed, recorder.dropped) == (1, 4)
    now[0] = 601.0
    recorder.send(event(9))
    assert fake.count("create", "events") == 2
    recorder.close()
    plain.close()


def test_what_is_remembered_is_bounded(fake: FakeKube, client: KubeClient) -> None:
    """Thousands of different events do not grow the recorder."""
    recorder = EventRecorder(client, known_size=10)
    for number in range(30):
        recorder.send(event(number))
    assert len(recorder._known["default"]) == 10
    recorder.close()


def test_closing_interrupts_a_request_and_drops_the_rest(fake: FakeKube, client: KubeClient) -> None:
    """At once, whatever the server does; recording afterwards is harmless."""
    fake.inject(Fault(delay=60.0), times=99, path="events")
    recorder = EventRecorder(client)
    recorder.start()
    recorder.record(event())
    assert wait_for(lambda: recorder._busy)
    assert recorder.close(5)  # the request would take ten seconds
    recorder.record(event(1))
    assert not [t for t in threading.enumerate() if t.name == "kube-events"]


# --------------------------------------------------------------------------- electors under trouble


def test_a_leader_cut_off_from_the_server_stops_before_its_successor_starts(fake: FakeKube, client: KubeClient) -> None:
    """One of two is cut off for good: the moments in which each may write never overlap."""
    configs = [ElectionConfig(namespace="default", identity=name, duration_seconds=2) for name in ("first", "second")]
    leases = [KubeLeases(client, config) for config in configs]
    first, second = (Election(*pair) for pair in zip(leases, configs, strict=True))
    overlaps: list[float] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.001):
            if second.held and first.held:  # in this order: what the first has lost does not come back
                overlaps.append(time.monotonic())

    watcher = threading.Thread(target=watch)
    watcher.start()
    first.start()
    assert wait_for(lambda: bool(first.held))
    second.start()
    leases[0].close()  # the first one's connections are gone for good
    assert wait_for(lambda: bool(second.held), 12)
    assert not first.held
    stop.set()
    watcher.join()
    assert first.stop()
    assert second.stop()
    leases[1].close()
    assert overlaps == []


def test_a_writer_that_may_not_write_sends_nothing(fake: FakeKube, client: KubeClient) -> None:
    """RequestInfo before every request, with the target."""
    asked: list[Target] = []

    def seconds_left(target: Target) -> float:
        asked.append(target)
        return 0.0

    change = create(endpoints())
    with pytest.raises(NotLeadingError, match="another replica"):
        Writer(client, lease_remaining=seconds_left).apply(change)
    assert asked == [change.target]
    assert fake.log == []


def test_a_flood_in_one_namespace_hides_nothing_of_another(fake: FakeKube, client: KubeClient) -> None:
    """What overflows is the flood's, and the other's events come in between, not behind it."""
    fake.add_namespace("noisy")
    fake.inject(Fault(delay=1.0), times=1, path="events")
    recorder = EventRecorder(client, queue_size=100, known_size=20)
    recorder.start()
    recorder.record(event(9999))
    assert wait_for(lambda: recorder._busy)
    recorder.record(event(1))
    for number in range(500):
        recorder.record(event(number, "noisy"))
    recorder.record(event(2))
    assert recorder.flush(30)
    sent = [e.body for e in fake.objects["events.k8s.io", "events"].values()]
    order = sorted((body["eventTime"], body["regarding"]["namespace"], body["regarding"]["name"]) for body in sent)
    assert [name for _, namespace, name in order[:5] if namespace == "default"] == ["s9999", "s1", "s2"]
    assert (recorder.dropped, recorder.sent) == (402, 101)
    assert {e.about.name for e in recorder._known["default"]} == {"s9999", "s1", "s2"}
    assert sum(map(len, recorder._known.values())) == 20
    assert recorder.close(20)


def test_a_namespace_that_may_not_be_written_to_silences_no_other(fake: FakeKube, tmp_path: Path) -> None:
    """A Role that is missing there, or a namespace that is being deleted."""
    fake.add_namespace("closed")
    fake.forbid("plain", "create", "events", "closed")
    found = KubeClient(kube_config(kubeconfig=fake.kubeconfig(tmp_path, PLAIN_TOKEN, "plain.kubeconfig")))
    recorder = EventRecorder(found)
    recorder.start()
    for number in range(3):
        recorder.record(event(number, "closed"))
        recorder.record(event(number))
    assert recorder.flush(30)
    assert (recorder.sent, recorder.failed, recorder.dropped) == (3, 1, 2)
    assert recorder.close(20)
    found.close()
