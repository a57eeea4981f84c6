"""What is reported as Events: once, again when it changes, and only by who writes the target."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bridge.controller.kubernetes_events import KubernetesEventObserver
from bridge.controller.state_changes import StateChanges
from bridge.core.model import (
    Action,
    ActiveDatacenter,
    Conflict,
    Current,
    CurrentService,
    Held,
    Kind,
    Known,
    Query,
    Skipped,
    Unknown,
)
from bridge.core.reasons import Code, Reason
from bridge.errors import PermanentError, TransientError
from bridge.kube.events import Event
from bridge.report import Failure, Outcome
from tests.unit.core.builders import said
from tests.unit.render.builders import QUERY, TARGET, change, meta, plan, report


class Heard:
    """A recorder, and an announcer in front of it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.leads = True
        service = CurrentService(
            meta=replace(meta(Kind.SERVICE), uid="uid-of-the-service"), type="ClusterIP", ports=(), headless=False,
            families=(), has_selector=False,
        )  # fmt: skip
        self.announcer = KubernetesEventObserver(
            self, current=lambda _: Current(TARGET, service=service), leads=lambda _: self.leads
        )

    def record(self, event: Event) -> None:
        """Keep it."""
        self.events.append(event)

    def take(self) -> list[tuple[str, str, str]]:
        """Reason, kind and note of what was reported since the last look."""
        said = [(e.reason, e.about.kind.value, e.note) for e in self.events]
        self.events.clear()
        return said


@pytest.fixture
def heard() -> Heard:
    """One that leads."""
    return Heard()


def test_creations_and_removals_are_reported_with_their_source(heard: Heard) -> None:
    """Updates are not: a busy service would fill the namespace with Events."""
    made = plan(change(Action.CREATE, Kind.SERVICE), change(Action.CREATE, Kind.ENDPOINTS))
    heard.announcer.outcome(Outcome(made, made.changes), 0.01)
    assert heard.take() == [
        ("Mirrored", "Service", "created Service from Consul service radosgw (dc1)"),
        ("Mirrored", "Endpoints", "created Endpoints from Consul service radosgw (dc1)"),
    ]
    updated = plan(change(Action.UPDATE, Kind.ENDPOINTS))
    heard.announcer.outcome(Outcome(updated, updated.changes), 0.01)
    assert heard.take() == []
    gone = plan(change(Action.DELETE, Kind.ENDPOINTS, reason="its service is gone from Consul"))
    heard.announcer.outcome(Outcome(gone, gone.changes), None)
    assert heard.take() == [("Mirrored", "Service", "removed Endpoints: its service is gone from Consul")]


def test_each_switch_of_datacenters_is_reported_when_the_service_says_it(heard: Heard) -> None:
    """A plan whose Service could not be written is none."""
    why = Reason(Code.FAILED_OVER, active="fra", preferred="ams", why="it has no instance")
    over = ActiveDatacenter(name="fra", why=why, preferred=False, before="ams")
    back = ActiveDatacenter(name="ams", why=Reason(Code.CARRIES, active="ams", has="2 of 2 ready"), before="fra")
    for active in (over, back, replace(back, before="")):
        made = replace(plan(change(Action.UPDATE, Kind.SERVICE), change(Action.UPDATE)), active_datacenter=active)
        heard.announcer.outcome(Outcome(made, made.changes[1:]), 0.01)
        heard.announcer.outcome(Outcome(made, made.changes), 0.01)
    assert heard.take() == [
        ("FailedOver", "Service", "ams -> fra: datacenter fra carries the traffic, not ams: it has no instance"),
        ("FailedBack", "Service", "fra -> ams: datacenter ams carries the traffic: it comes first (2 of 2 ready)"),
    ]


def test_an_event_is_about_the_object_that_is_there(heard: Heard) -> None:
    """With its uid, so that kubectl describe shows it."""
    heard.announcer.outcome(Outcome(plan(warnings=(said("1,200 addresses"),))), None)
    (event,) = heard.events
    assert (event.about.uid, event.type, event.action) == ("uid-of-the-service", "Warning", "Mirror")


def test_trouble_is_reported_once_and_again_when_it_changes(heard: Heard) -> None:
    """Conflicts, skips, warnings: not at every pass."""
    conflict = Conflict(TARGET, Kind.SERVICE, said("it has a selector"))
    first = Outcome(plan(conflicts=(conflict,), skipped=(Skipped("radosgw", "vm-1", said("port 0")),)))
    for _ in range(3):
        heard.announcer.pass_done(0.1, report(first))
        heard.announcer.outcome(first, None)
    assert heard.take() == [
        ("Conflict", "Service", "left alone: it has a selector"),
        ("InstancesSkipped", "Service", "vm-1: port 0"),
    ]
    heard.announcer.outcome(Outcome(plan()), None)
    assert heard.take() == []
    heard.announcer.outcome(first, None)
    assert len(heard.take()) == 2


def test_a_slice_that_others_write_all_the_time_is_one_event(heard: Heard) -> None:
    """A client that may write slices must not have the bridge fill etcd with Events."""
    for number in range(140):
        what = f"has 10.9.9.{number}"
        reason = Reason(Code.FOREIGN_SLICE, name="mesh", manager="mesh.example.org", namespace="default", what=what)
        heard.announcer.outcome(Outcome(plan(warnings=(reason,))), None)
    ((reason_of, _, note),) = heard.take()
    assert (reason_of, "EndpointSlice mesh (managed by mesh.example.org)" in note) == ("Attention", True)


def test_many_skipped_instances_are_counted(heard: Heard) -> None:
    """A note has 1,024 bytes."""
    skipped = tuple(Skipped("radosgw", f"vm-{n}", said("port 0")) for n in range(1, 8))
    heard.announcer.outcome(Outcome(plan(skipped=skipped)), None)
    ((_, _, note),) = heard.take()
    assert note == "vm-1: port 0; vm-2: port 0; vm-3: port 0; vm-4: port 0; vm-5: port 0; and 2 more"


def test_only_refusals_that_last_are_reported(heard: Heard) -> None:
    """A server that is away is no property of the object."""
    made = plan(change(Action.UPDATE))
    heard.announcer.outcome(Outcome(made, (), (Failure(made.changes[0], TransientError("no connection")),)), None)
    assert heard.take() == []
    heard.announcer.outcome(Outcome(made, (), (Failure(made.changes[0], PermanentError("403: quota")),)), None)
    assert heard.take() == [("WriteFailed", "Service", "update of Endpoints: 403: quota")]


def test_a_hold_is_reported_when_it_begins_and_ends(heard: Heard) -> None:
    """The engine tells it again and again."""
    states = StateChanges(heard.announcer)
    held = Held(TARGET, Code.HELD_REMOVAL, 12, "12 ready endpoints are kept", removed=True, flips=False)
    for holds in ((held,), (held,), (), ()):
        states.held(holds, lambda _target: heard.leads)
    assert heard.take() == [
        ("Held", "Service", "12 ready endpoints are kept"),
        ("HoldEnded", "Service", "nothing is held any more"),
    ]


def test_a_name_that_consul_cannot_be_asked_about_is_reported_on_the_service(heard: Heard) -> None:
    """The target's annotation names it; no other target gets the Event."""
    heard.announcer.read(Query("dc1", ".."), Unknown("cannot be asked for", lasting=True), [TARGET])
    assert heard.take() == [("ReadFailed", "Service", "Consul service ..: cannot be asked for")]


def test_a_filter_that_consul_refuses_is_reported_on_the_service(heard: Heard) -> None:
    """A timeout is not: it fixes itself. Nor is what concerns the whole Consul."""
    filtered = Query("dc1", "radosgw", filter="Service.Meta.tier != canary")
    heard.announcer.read(filtered, Unknown("timed out"), [TARGET])
    heard.announcer.read(QUERY, Unknown("403", lasting=True), [TARGET])
    assert heard.take() == []
    for _ in range(2):
        heard.announcer.read(filtered, Unknown("bad filter", lasting=True), [TARGET])
    assert heard.take() == [("ReadFailed", "Service", "Consul service radosgw: bad filter")]
    heard.announcer.read(filtered, Known(()), [TARGET])
    heard.announcer.read(filtered, Unknown("bad filter", lasting=True), [TARGET])
    assert len(heard.take()) == 1


def test_a_standby_says_nothing_until_it_leads(heard: Heard) -> None:
    """Two replicas would say everything twice; what lasts is reported by the next leader's first pass."""
    states = StateChanges(heard.announcer)
    heard.leads = False
    heard.announcer.pass_done(0.1, report(Outcome(plan(warnings=(said("w"),)))))
    states.held((Held(TARGET, Code.HELD_REMOVAL, 1, "kept", removed=True, flips=False),), lambda _target: heard.leads)
    filtered = Query("dc1", "radosgw", filter="x")
    heard.announcer.read(filtered, Unknown("bad filter", lasting=True), [TARGET])
    assert heard.take() == []
    heard.leads = True
    heard.announcer.pass_done(0.1, report(Outcome(plan(warnings=(said("w"),)))))
    assert heard.take() == [
        ("Attention", "Service", "w"),
        ("ReadFailed", "Service", "Consul service radosgw: bad filter"),
    ]
