"""The store converges on what the server holds, however the news arrive."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.core.model import Action, Change, Current, CurrentSlice, Endpoint, Kind, Meta, Scope, Target
from bridge.core.slice_union import POD_CONTROLLER
from bridge.kube import objects
from bridge.kube import store as store_module
from bridge.kube.objects import Decoded
from bridge.kube.store import Store
from tests.unit.kube.builders import (
    bodies,
    create,
    delete,
    down,
    endpoints,
    group,
    raw_service,
    ready,
    service,
    slice_of,
    update,
)

TARGET = Target("default", "radosgw")


def meta(
    version: int, kind: Kind = Kind.ENDPOINTS, name: str = "radosgw", uid: str = "u1", owner: str = "default"
) -> Meta:
    """Meta of an object of ours."""
    return Meta(kind=kind, namespace="default", name=name, uid=uid, resource_version=str(version), owner=owner)


def held(version: int, *found: Endpoint, uid: str = "u1", owner: str = "default") -> Decoded:
    """An Endpoints object as a watch shows it."""
    change = create(endpoints(group(*(found or ready("10.0.0.1"))), owner=owner))
    return objects.expected(change, meta(version, uid=uid, owner=owner))


def event(store: Store, found: Decoded, kind: Any = "MODIFIED") -> set[Target]:
    """Tell a watch event."""
    return store.event(found.meta.kind, None, kind, found.meta, found)


def version_in(current: Current) -> str | None:
    """Version of the Endpoints held."""
    return current.endpoints.meta.resource_version if current.endpoints else None


# --------------------------------------------------------------------------- order


def test_older_news_change_nothing() -> None:
    """An event of version 5 after a note of version 7."""
    store = Store("default")
    store.confirm(create(endpoints()), meta(7))
    assert event(store, held(5, *ready("10.0.0.9"))) == set()
    assert version_in(store.current(TARGET)) == "7"


def test_what_was_stored_otherwise_than_written_is_what_is_held() -> None:
    """And its event is no news, whichever comes first."""
    store = Store("default")
    change = create(endpoints(group(*ready("10.0.0.1", "10.0.0.2"))))
    store.expect(change)
    stored = held(7, *ready("10.0.0.2"))
    store.note_stored(change, stored)
    assert store.current(TARGET).endpoints == stored
    assert event(store, stored) == set()
    store.note_stored(change, None)
    assert store.current(TARGET).endpoints == stored


def test_services_that_we_wrote_and_that_lost_their_labels_are_reported() -> None:
    """By the field manager that is seen on them; others' and ours are not among them."""
    store = Store("default")
    raw = {"apiVersion": "v1", "kind": "Service", "spec": {}}
    ours = [{"manager": "consul-bridge", "operation": "Apply", "time": "2026-11-23T14:00:00Z", "fieldsV1": {}}]
    labels = {"app.kubernetes.io/managed-by": "consul-bridge", "consul-bridge/owner": "default"}
    for name, about in (
        ("lost", {"managedFields": ours}),
        ("whole", {"managedFields": ours, "labels": labels}),
        ("theirs", {}),
        ("going", {"managedFields": ours, "deletionTimestamp": "2026-11-23T14:00:00Z"}),
    ):
        metadata = {"name": name, "namespace": "default", "resourceVersion": "5", **about}
        found = objects.decode(Kind.SERVICE, {**raw, "metadata": metadata})
        assert found is not None
        event(store, found, "ADDED")
    assert [m.name for m in store.unlabelled_services()] == ["lost"]


def test_an_answer_that_comes_after_newer_news_changes_nothing() -> None:
    """The watch was quicker than the writer's thread: version 9 stays when 7 is noted."""
    store = Store("default")
    event(store, held(9, *ready("10.0.0.9")))
    store.confirm(create(endpoints()), meta(7))
    assert version_in(store.current(TARGET)) == "9"


def test_an_answer_that_comes_after_the_deletion_does_not_bring_the_object_back() -> None:
    """Written, deleted by a user, and only then noted."""
    store = Store("default")
    event(store, held(7), "ADDED")
    event(store, held(8), "DELETED")
    store.confirm(create(endpoints()), meta(7))
    assert store.current(TARGET).endpoints is None


def test_a_new_object_of_the_same_name_replaces_a_deleted_one() -> None:
    """After a noted deletion, an object with another uid is a change."""
    store = Store("default")
    store.confirm(create(endpoints()), meta(7))
    store.confirm(delete(meta(7)), None)
    assert store.current(TARGET).endpoints is None
    assert event(store, held(8), "DELETED") == set()
    assert event(store, held(9, uid="u2"), "ADDED") == {TARGET}
    assert version_in(store.current(TARGET)) == "9"


def test_a_noted_deletion_of_an_earlier_object_leaves_the_new_one() -> None:
    """Delete was answered, a user created it again, the watch came first."""
    store = Store("default")
    event(store, held(9, uid="u2"), "ADDED")
    store.confirm(delete(meta(7)), None)
    assert version_in(store.current(TARGET)) == "9"


def test_a_list_does_not_undo_what_was_written_while_it_was_read() -> None:
    """Created, updated and deleted meanwhile: each stays as noted; everything else is as listed."""
    store = Store("default")
    store.confirm(create(endpoints(), "default", "gone"), meta(3, name="gone"))
    store.confirm(create(endpoints(), "default", "deleted"), meta(4, name="deleted"))
    since = store.begin_list()
    store.confirm(create(endpoints(), "default", "created"), meta(21, name="created"))
    store.confirm(update(endpoints(), meta(5)), meta(22))
    store.confirm(delete(meta(4, name="deleted")), None)
    listed = [held(5), objects.expected(create(endpoints(), "default", "deleted"), meta(4, name="deleted"))]
    store.replace(Kind.ENDPOINTS, None, listed, 20, since)
    assert store.targets() == {TARGET, Target("default", "created")}
    assert version_in(store.current(TARGET)) == "22"


def test_a_list_with_lower_versions_replaces_everything() -> None:
    """A restored etcd: what was known before the list began does not count, whatever its version."""
    store = Store("default")
    event(store, held(100, *ready("10.0.0.9")))
    since = store.begin_list()
    assert store.replace(Kind.ENDPOINTS, None, [held(50)], 60, since) == {TARGET}
    assert version_in(store.current(TARGET)) == "50"
    assert event(store, held(61, *ready("10.0.0.3"))) == {TARGET}


def test_events_from_before_a_list_are_dropped() -> None:
    """A list beside a lagging watch: what the watch tells late is in the list already, deletions included."""
    store = Store("default")
    event(store, held(5), "ADDED")
    store.replace(Kind.ENDPOINTS, None, [], 20, store.begin_list())
    assert event(store, held(15, *ready("10.0.0.9"))) == set()
    assert store.current(TARGET).endpoints is None


def test_a_list_of_one_namespace_leaves_the_others() -> None:
    """Scopes are apart."""
    store = Store("default")
    event(store, held(5), "ADDED")
    store.replace(Kind.ENDPOINTS, "other", [], 20, store.begin_list())
    assert store.targets() == {TARGET}
    store.replace(Kind.ENDPOINTS, "default", [], 21, store.begin_list())
    assert store.targets() == set()


def test_graves_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bridge that deletes for years does not remember every name."""
    monkeypatch.setattr(store_module, "TOMBSTONES", 10)
    store = Store("default")
    for number in range(100):
        change = create(endpoints(), "default", f"s{number}")
        store.confirm(change, meta(number + 1, name=f"s{number}"))
        store.confirm(delete(meta(number + 1, name=f"s{number}")), None)
    assert len(store._entries[Kind.ENDPOINTS]) <= 10
    assert store.counts()["Endpoints"] == 0


# --------------------------------------------------------------------------- what is reported


def test_only_differences_are_reported() -> None:
    """A new version of the same content is no news; content, marks and ownership are."""
    store = Store("default")
    assert event(store, held(1), "ADDED") == {TARGET}
    assert event(store, held(2)) == set()
    assert event(store, held(3, *down("10.0.0.1"))) == {TARGET}
    assert event(store, held(4, *down("10.0.0.1"), owner="other")) == {TARGET}


def test_an_expected_event_is_swallowed_and_an_unexpected_one_is_not() -> None:
    """The echo equals the change; anything else is reported although a write is under way."""
    labels = tuple(sorted(dict(endpoints().labels).items()))
    mine = replace(meta(5), labels=labels, annotations=endpoints().annotations)
    change = create(endpoints())
    store = Store("default")
    store.expect(change)
    assert store.event(Kind.ENDPOINTS, None, "ADDED", mine, objects.expected(change, mine)) == set()
    assert version_in(store.current(TARGET)) == "5"
    assert event(store, held(6, *ready("10.0.0.9"))) == {TARGET}
    store.confirm(change, mine)
    assert version_in(store.current(TARGET)) == "6"


def test_an_expected_event_with_foreign_labels_in_the_way_is_reported() -> None:
    """Content as we want it, but the pairs are not ours: another client wrote it."""
    change = create(endpoints())
    store = Store("default")
    store.expect(change)
    assert event(store, held(5), "ADDED") == {TARGET}


def test_a_failed_write_is_no_longer_expected() -> None:
    """After `forget` the same content from another client is a change."""
    change = create(endpoints())
    mine = replace(meta(5), labels=endpoints().labels, annotations=endpoints().annotations)
    store = Store("default")
    store.expect(change)
    store.abandon(change)
    assert store.event(Kind.ENDPOINTS, None, "ADDED", mine, objects.expected(change, mine)) == {TARGET}


def test_an_expected_deletion_is_swallowed() -> None:
    """Our DELETE's echo before its answer."""
    store = Store("default")
    event(store, held(5), "ADDED")
    change = delete(meta(5))
    store.expect(change)
    assert event(store, held(6), "DELETED") == set()
    store.confirm(change, None)
    assert store.current(TARGET).endpoints is None


# --------------------------------------------------------------------------- counting


def test_ready_endpoints_are_counted_once_per_target() -> None:
    """Endpoints and slices side by side hold the same endpoints; foreign ones do not count."""
    store = Store("default")
    store.confirm(create(endpoints(group(*ready("10.0.0.1", "10.0.0.2"), *down("10.0.0.3")))), meta(1))
    assert store.total_ready() == 2
    for number, addresses in enumerate((("10.0.0.1",), ("10.0.0.2", "10.0.0.4"))):
        name = f"radosgw-{number}"
        change = create(slice_of("radosgw", group(*ready(*addresses))), "default", name)
        store.confirm(change, meta(2 + number, Kind.ENDPOINT_SLICE, name))
    assert store.total_ready() == 3
    other = create(endpoints(owner="blue"), "default", "blue")
    store.confirm(other, meta(9, name="blue", owner="blue"))
    assert (store.total_ready(), Target("default", "blue") in store.targets()) == (3, False)
    store.confirm(delete(meta(1)), None)
    assert (store.total_ready(), store.targets()) == (3, {TARGET})


def test_ready_endpoints_are_added_up_by_scope() -> None:
    """What a rule made by its datacenter, a user's Service by its namespace; what becomes a user's moves over."""
    store, theirs = Store("default"), Target("default", "store")
    here, there = Scope(datacenters=("dc1",)), Scope(namespace="default")
    marks = (("consul-bridge/datacenter", "dc1"),)
    store.confirm(create(service()), replace(meta(1, Kind.SERVICE), ownership=marks))
    store.confirm(create(endpoints(group(*ready("10.0.0.1", "10.0.0.2")))), replace(meta(2), ownership=marks))
    store.confirm(create(endpoints(group(*ready("10.0.0.3"))), "default", "store"), meta(3, name="store"))
    assert (store.ready_in(here), store.ready_in(there), store.total_ready()) == (2, 1, 3)
    assert store.ready_targets() == {TARGET: here, theirs: there}
    store.confirm(delete(meta(1, Kind.SERVICE)), None)
    assert (store.ready_in(here), store.ready_in(there)) == (0, 3)
    store.confirm(delete(meta(2)), None)
    assert (store.ready_in(there), store.ready_targets()) == (1, {theirs: there})


def test_unchanged_changes_are_nothing() -> None:
    """Noting what was not written leaves the store as it is."""
    store = Store("default")
    change = Change(
        action=Action.UNCHANGED, kind=Kind.SERVICE, target=TARGET, name="radosgw", body=service(), existing=None
    )
    store.confirm(change, None)
    assert store.current(TARGET) == Current(TARGET, others=())


def test_current_shows_slices_by_name_and_foreign_endpoints_without_content() -> None:
    """Deterministic order; another owner's Endpoints are there as a conflict."""
    store = Store("default")
    for number, name in enumerate(("b", "a")):
        store.confirm(create(slice_of("radosgw"), "default", name), meta(1 + number, Kind.ENDPOINT_SLICE, name))
    foreign = replace(meta(3), owner=None)
    store.replace_foreign(None, [foreign])
    current = store.current(TARGET)
    assert [s.meta.name for s in current.slices] == ["a", "b"]
    assert current.endpoints is not None
    assert (current.endpoints.meta, current.endpoints.groups) == (foreign, ())
    store.replace_foreign("other", [])
    assert store.current(TARGET).endpoints is not None
    store.confirm(update(endpoints(), foreign), meta(4))
    store.replace_foreign("default", [])
    assert version_in(store.current(TARGET)) == "4"


# --------------------------------------------------------------------------- slices that pods left behind


def shown(store: Store, version: int, event: Any = "MODIFIED", **spec: Any) -> None:
    """Tell a watch event of a user's Service."""
    raw = raw_service("default", "radosgw", **spec)
    raw["metadata"] |= {"uid": "u1", "resourceVersion": str(version)}
    found = objects.decode(Kind.SERVICE, raw)
    assert found is not None
    store.event(Kind.SERVICE, None, event, found.meta, found)


def left_by_pods() -> CurrentSlice:
    """A slice of pods that the Service selected once."""
    change = create(slice_of("radosgw", group(*ready("10.244.0.1"))), name="radosgw-x7k2p")
    found = objects.expected(change, meta(1, Kind.ENDPOINT_SLICE, "radosgw-x7k2p"))
    assert isinstance(found, CurrentSlice)
    return replace(found, manager=POD_CONTROLLER)


@pytest.mark.parametrize(
    ("event", "spec"),
    [("DELETED", {}), ("MODIFIED", {"selector": {"app": "web"}}), ("MODIFIED", {"type": "ExternalName"})],
    ids=["deleted", "selector", "external-name"],
)
def test_what_pods_left_is_forgotten_with_their_service(event: str, spec: dict[str, Any]) -> None:
    """No rule asks about it any more, so nothing would show that it has gone: a Service of that name begins again."""
    store = Store("default")
    shown(store, 1, "ADDED")
    store.replace_leftovers([TARGET], [left_by_pods()])
    assert (store.with_leftovers(), store.current(TARGET).others) == ({TARGET}, (left_by_pods(),))
    shown(store, 2, event, **spec)
    assert (store.with_leftovers(), store.current(TARGET).others) == (set(), ())
    store.replace_leftovers([TARGET], [left_by_pods()])  # an answer that was asked for before
    assert store.with_leftovers() == set()
    shown(store, 3, "ADDED")
    assert store.current(TARGET).others == ()


def test_what_pods_left_is_forgotten_when_a_list_lacks_their_service() -> None:
    """The watch may have missed its end."""
    store = Store("default")
    shown(store, 1, "ADDED")
    store.replace_leftovers([TARGET], [left_by_pods()])
    store.replace(Kind.SERVICE, None, [], 5, store.begin_list())
    assert store.with_leftovers() == set()


# --------------------------------------------------------------------------- convergence


@dataclass
class Simulation:
    """A server with a history, a watch that lags behind it, and a store that learns of both."""

    store: Store = field(default_factory=lambda: Store("default"))
    version: int = 0
    objects: dict[str, Decoded] = field(default_factory=dict)
    pending: list[tuple[Any, Decoded]] = field(default_factory=list)
    answers: list[tuple[Change, Meta | None]] = field(default_factory=list)
    listing: tuple[int, list[Decoded], int] | None = None

    def write(self, name: str, number: int, *, ours: bool) -> None:
        """Create or update an object."""
        self.version += 1
        before = self.objects.get(name)
        uid = before.meta.uid if before else f"uid-{self.version}"
        body = endpoints(group(*ready(f"10.0.0.{number}")))
        change = update(body, before.meta) if before else create(body, "default", name)
        fresh = meta(self.version, name=name, uid=uid)
        self.objects[name] = objects.expected(change, fresh)
        self.pending.append(("MODIFIED" if before else "ADDED", self.objects[name]))
        if ours:
            self.answers.append((change, fresh))

    def remove(self, name: str, *, ours: bool) -> None:
        """Delete an object, if there is one."""
        before = self.objects.pop(name, None)
        if before is None:
            return
        self.version += 1
        gone = replace(before, meta=replace(before.meta, resource_version=str(self.version)))
        self.pending.append(("DELETED", gone))
        if ours:
            self.answers.append((delete(before.meta), None))

    def hear(self) -> None:
        """The next event arrives."""
        if self.pending:
            kind, found = self.pending.pop(0)
            event(self.store, found, kind)

    def answer(self, index: int) -> None:
        """Some writer's thread gets to note its answer."""
        if self.answers:
            self.store.confirm(*self.answers.pop(index % len(self.answers)))

    def list(self) -> None:
        """A list begins, or the one under way arrives."""
        if self.listing is None:
            self.listing = (self.store.begin_list(), list(self.objects.values()), self.version)
        else:
            since, items, version = self.listing
            self.listing = None
            self.store.replace(Kind.ENDPOINTS, None, items, version, since)


steps = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "theirs", "remove", "remove-theirs", "hear", "hear", "answer", "list"]),
        st.sampled_from(["a", "b", "c"]),
        st.integers(1, 3),
    ),
    max_size=40,
)


@settings(max_examples=500, deadline=None)
@given(steps=steps)
def test_the_store_converges_whatever_the_order_of_the_news(steps: list[tuple[str, str, int]]) -> None:
    """Watch, answers and lists interleave at random; once all is delivered, the store equals the server."""
    sim = Simulation()
    for what, name, number in steps:
        match what:
            case "write" | "theirs":
                sim.write(name, number, ours=what == "write")
            case "remove" | "remove-theirs":
                sim.remove(name, ours=what == "remove")
            case "hear":
                sim.hear()
            case "answer":
                sim.answer(number)
            case "list":
                sim.list()
    if sim.listing is not None:
        sim.list()
    while sim.pending or sim.answers:
        sim.answer(0)
        sim.hear()
    shown = {t.name: sim.store.current(t).endpoints for t in sim.store.targets()}
    assert shown == sim.objects
    assert sim.store.total_ready() == len(sim.objects)


def test_a_slice_that_loses_its_service_is_gone() -> None:
    """Nothing to decode: the old target is reported."""
    store = Store("default")
    mine = meta(1, Kind.ENDPOINT_SLICE, "radosgw-1")
    store.confirm(create(bodies()[Kind.ENDPOINT_SLICE], "default", "radosgw-1"), mine)
    lost = replace(mine, resource_version="2")
    assert store.event(Kind.ENDPOINT_SLICE, None, "MODIFIED", lost, None) == {TARGET}
    assert store.current(TARGET).slices == ()
