"""The cache under trouble: what the API server or the way to it can do, and what must still be true afterwards."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer

from bridge.core import ownership
from bridge.core.model import Action, Change, Kind, Meta, Target
from bridge.errors import CancelledError, PermanentError, StaleError, ThrottledError, TransientError
from bridge.kube import informer as cache_module
from bridge.kube import objects, wire
from bridge.kube.client import KubeClient
from bridge.kube.informer import Informer, _Reflector, _Shared
from bridge.kube.permissions import NamespaceState, can_i, namespace_states
from bridge.kube.reads import list_into, list_once, list_pages
from bridge.kube.store import Store
from bridge.kube.writer import Writer, belongs_to
from bridge.retry import RetryPolicy
from tests.support.fakes import silent_port
from tests.support.fakes.kube import PLAIN_TOKEN, FakeKube, Fault, wait_for
from tests.support.options import kube_config
from tests.unit.kube.builders import (
    bodies,
    create,
    delete,
    endpoints,
    group,
    marks,
    raw_endpoints,
    raw_service,
    ready,
    update,
)

RADOSGW = Target("default", "radosgw")
QUICK = RetryPolicy(initial_seconds=0.01, max_seconds=0.05)
CLOSE_SECONDS = 5.0
"""In which all threads have ended: whatever they wait for takes longer when it is not interrupted."""


@dataclass
class Running:
    """A cache that runs, and what it told."""

    cache: Informer
    writer: Writer
    told: list[Target] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    def write(self, change: Change) -> Meta | None:
        """Write as the engine does."""
        self.cache.expect(change)
        meta = self.writer.apply(change)
        self.cache.confirm(change, meta)
        return meta

    def status(self, key: str) -> Any:
        """One value of the status."""
        return self.cache.status()[key]


@pytest.fixture
def running(fake: FakeKube, client: KubeClient) -> Iterator[Running]:
    """A synced cache of all namespaces; closing it must leave no thread behind."""
    told: list[Target] = []
    failures: list[BaseException] = []
    cache = Informer(client, None, "default", told.append, QUICK, failed=failures.append, silence_seconds=1.0)
    cache.start()
    assert cache.wait_synced(20)
    assert wait_for(lambda: fake.count("watch") >= 3)
    yield Running(cache, Writer(client), told, failures)
    assert cache.close(20)
    assert failures == []


def ours(name: str, *addresses: str) -> dict[str, Any]:
    """An Endpoints object with our labels, as raw JSON."""
    return objects.encode(create(endpoints(group(*ready(*addresses))), "default", name))


def has(running: Running, name: str) -> bool:
    """Whether the cache holds our Endpoints of that name."""
    return running.cache.current(Target("default", name)).endpoints is not None


# --------------------------------------------------------------------------- watches that end


def test_a_cut_connection_costs_nothing_but_a_new_watch(fake: FakeKube, running: Running) -> None:
    """What happened while no server listened arrives by the next watch, without a list."""
    lists = fake.count("list")
    fake.inject(Fault(status=503), times=3, path="watch=1")
    fake.cut()
    fake.put("endpoints", ours("late", "10.0.0.1"))
    assert wait_for(lambda: has(running, "late"))
    assert wait_for(lambda: running.told == [Target("default", "late")])
    full_lists = [e for e in fake.log[lists:] if e.verb == "list" and e.query.get("limit") != "1"]
    assert running.status("lists") == 3, full_lists


def test_a_server_that_goes_away_and_comes_back_is_followed_again(fake: FakeKube, running: Running) -> None:
    """Refused connections: the last state is served, the trouble is reported; afterwards all is equal again."""
    fake.put("endpoints", ours("kept", "10.0.0.1"))
    assert wait_for(lambda: has(running, "kept"))
    fake.stop()
    assert wait_for(lambda: running.status("backing_off"))
    assert wait_for(lambda: "refuses connections" in str(running.status("reason")))
    assert has(running, "kept")
    fake.put("endpoints", ours("meanwhile", "10.0.0.2"))
    fake.remove("endpoints", "default", "kept")
    fake.start()
    assert wait_for(lambda: has(running, "meanwhile") and not has(running, "kept"))
    assert wait_for(lambda: not running.status("backing_off"))


def test_a_forgotten_version_leads_to_a_list_that_tells_the_differences(fake: FakeKube, running: Running) -> None:
    """410 as an ERROR event: changed, new and vanished objects are each told once, unchanged ones are not."""
    for name in ("same", "changed", "vanished"):
        fake.put("endpoints", ours(name, "10.0.0.1"))
    assert wait_for(lambda: all(has(running, n) for n in ("same", "changed", "vanished")))
    running.told.clear()
    fake.stop()
    fake.put("endpoints", ours("changed", "10.0.0.9"))
    fake.remove("endpoints", "default", "vanished")
    fake.put("endpoints", ours("new", "10.0.0.3"))
    fake.compact()
    fake.start()
    assert wait_for(lambda: has(running, "new") and not has(running, "vanished"))
    assert wait_for(lambda: len(running.told) >= 3)
    time.sleep(0.05)
    assert sorted(t.name for t in running.told) == ["changed", "new", "vanished"]


def test_a_restored_etcd_with_lower_versions_is_noticed(fake: FakeKube, running: Running) -> None:
    """Versions go back: objects that the backup lacks go, old content returns, later writes are followed."""
    fake.put("endpoints", ours("old", "10.0.0.1"))
    backup = fake.backup()
    fake.put("endpoints", ours("old", "10.0.0.2"))
    fake.put("endpoints", ours("young", "10.0.0.3"))
    assert wait_for(lambda: has(running, "young"))
    fake.stop()
    fake.restore(backup)
    fake.start()
    assert wait_for(lambda: not has(running, "young"))
    held = running.cache.current(Target("default", "old")).endpoints
    assert held is not None
    assert held.groups[0].endpoints == ready("10.0.0.1")
    fake.put("endpoints", ours("after", "10.0.0.4"))
    assert wait_for(lambda: has(running, "after"))


def test_a_silent_watch_is_replaced(fake: FakeKube, running: Running) -> None:
    """Neither event nor bookmark for `silence_seconds`: a new watch, no list, and no trouble said."""
    watches = fake.count("watch")
    assert wait_for(lambda: fake.count("watch") >= watches + 3)
    assert running.status("lists") == 3
    fake.put("endpoints", ours("late", "10.0.0.1"))
    assert wait_for(lambda: has(running, "late"))
    assert running.status("reason") is None


def test_a_restore_under_a_living_watch_is_found_by_its_silence(fake: FakeKube, running: Running) -> None:
    """The connection stays up, the versions went back: silence makes the cache ask, and then list."""
    backup = fake.backup()
    fake.put("endpoints", ours("young", "10.0.0.3"))
    assert wait_for(lambda: has(running, "young"))
    fake.restore(backup)
    assert wait_for(lambda: not has(running, "young"))


@pytest.mark.parametrize(
    "line",
    [
        b"garbage",
        b"[]",
        b'{"type": "MODIFIED"}',
        b'{"type": "MODIFIED", "object": 7}',
        b'{"type": "SOMETHING", "object": {}}',
        b'{"type": "ERROR", "object": {"code": 500, "message": "etcd event received with PrevKv=nil"}}',
        b'{"type": "ERROR", "object": null}',
        b'{"type": "ADDED", "object": {"metadata": {}}}',
    ],
)
def test_nonsense_on_a_watch_leads_to_a_list(fake: FakeKube, running: Running, line: bytes) -> None:
    """Whatever a watch says that cannot be understood: everything is read again, nothing is lost."""
    fake.inject(Fault(lines=(line,)), times=2, path="/endpoints.*watch=1")
    fake.put("endpoints", ours("there", "10.0.0.1"))
    fake.cut()
    assert wait_for(lambda: running.status("lists") >= 4)
    assert wait_for(lambda: has(running, "there"))


def test_a_watch_that_breaks_in_the_middle_of_an_event_is_repeated(fake: FakeKube, running: Running) -> None:
    """Half an event is no event: it comes again."""
    fake.inject(Fault(truncate=True), times=1, path="/endpoints.*watch=1")
    fake.cut()
    fake.put("endpoints", ours("late", "10.0.0.1"))
    assert wait_for(lambda: has(running, "late"))


def test_a_410_as_a_status_leads_to_a_list(fake: FakeKube, running: Running) -> None:
    """Some servers say it before the watch begins."""
    fake.inject(Fault(status=410), times=1, path="/endpoints.*watch=1")
    fake.cut()
    assert wait_for(lambda: running.status("lists") == 4)


def test_a_forbidden_watch_backs_off_for_long_and_says_what_is_missing(
    fake: FakeKube, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """403 is not retried hot: a few tries, then one in half a minute; the last state stays."""
    monkeypatch.setattr("bridge.kube.informer.PERMANENT_AFTER", 1)
    fake.put("endpoints", ours("kept", "10.0.0.1"))
    assert wait_for(lambda: has(running, "kept"))
    fake.forbid("admin", "watch", "endpoints")
    fake.cut()
    assert wait_for(lambda: "forbids us to watch endpoints in all namespaces" in str(running.status("reason")))
    assert wait_for(lambda: sum(e.status == 403 for e in fake.log) == 2)
    time.sleep(0.5)
    assert sum(e.status == 403 for e in fake.log) == 2
    assert has(running, "kept")


def test_a_server_that_forbids_only_at_its_start_is_asked_again_soon(fake: FakeKube, running: Running) -> None:
    """A new API server says 403 until it has read the roles."""
    fake.inject(Fault(status=403), times=3, path="/endpoints.*watch=1")
    fake.cut()
    assert wait_for(lambda: sum(e.status == 403 for e in fake.log) == 3)
    fake.put("endpoints", ours("after", "10.0.0.1"))
    assert wait_for(lambda: has(running, "after"))


def test_a_broken_watch_after_a_working_one_is_not_punished_for_old_failures(
    fake: FakeKube, client: KubeClient
) -> None:
    """Failures count in a row: a watch that delivered something starts the count again."""
    waits: list[int] = []

    class Counting(RetryPolicy):
        def wait_seconds(self, attempt: int, error: BaseException | None = None) -> float:
            waits.append(attempt)
            return 0.0

    reflector = lone(client, retry=Counting())
    fake.inject(Fault(status=503), times=3, path="watch=1")
    bookmark = json.dumps({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "103"}}}).encode()
    half = b'{"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "104"}}'
    fake.inject(Fault(lines=(bookmark, half)), times=1, path="watch=1")
    reflector.thread.start()
    assert wait_for(lambda: fake.count("watch") >= 5)
    reflector._shared.stop.set()
    client.close()
    reflector.thread.join(20)
    assert waits[:4] == [1, 2, 3, 1]


def test_a_watch_that_the_server_ends_is_followed_by_the_next_one(fake: FakeKube, client: KubeClient) -> None:
    """timeoutSeconds over and not a word: the server's version is asked, nothing is listed again."""
    reflector = lone(client, watch_seconds=(1, 1))
    for _ in range(2):
        assert reflector.cycle() is None
    lists = [e.query.get("limit") for e in fake.log if e.verb == "list"]
    assert lists == ["500", "1"]
    assert fake.count("watch") == 2


def test_a_server_that_sheds_a_watch_is_asked_again_from_the_same_place(fake: FakeKube, client: KubeClient) -> None:
    """An ERROR event with 429: slower, but no list."""
    reflector = lone(client, watch_seconds=(1, 1))
    line = b'{"type": "ERROR", "object": {"kind": "Status", "code": 429, "message": "shed"}}'
    fake.inject(Fault(lines=(line,)), times=1, path="watch=1")
    assert isinstance(reflector.cycle(), ThrottledError)
    assert reflector.cycle() is None
    assert [e.query.get("limit") for e in fake.log if e.verb == "list"] == ["500", "1"]


def test_a_watch_that_ends_cleanly_inside_an_event_is_trouble(fake: FakeKube, client: KubeClient) -> None:
    """A proxy that closes politely in the middle of a line."""
    reflector = lone(client)
    path = objects.path(Kind.ENDPOINTS, None)
    with HTTPServer(host="127.0.0.1") as server:
        server.expect_request(path).respond_with_data(b'{"type": "MODI')
        other = KubeClient(kube_config(kubeconfig=str(write_kubeconfig(client, f"http://127.0.0.1:{server.port}"))))
        reflector._shared, reflector._position = replace(reflector._shared, client=other), "5"
        error = reflector.cycle()
        other.close()
    assert isinstance(error, TransientError)
    assert "in the middle of an event" in str(error)


def lone(client: KubeClient, watch_seconds: tuple[int, int] = (5, 5), retry: RetryPolicy = QUICK) -> _Reflector:
    """A reflector without its thread."""
    shared = _Shared(
        client=client, store=Store("default"), on_change=lambda _: None, on_foreign_slices=lambda _: None, retry=retry,
        stop=threading.Event(), clock=time.monotonic, silence_seconds=30.0, watch_seconds=watch_seconds,
    )  # fmt: skip
    return _Reflector(shared, Kind.ENDPOINTS, None, None, lambda: None, lambda: False)


def write_kubeconfig(client: KubeClient, server: str) -> Path:
    """A kubeconfig for another server beside the client's."""
    path = Path(client.config.kubeconfig).with_name("other.kubeconfig")
    path.write_text(Path(client.config.kubeconfig).read_text().replace(client.server, server))
    return path


# --------------------------------------------------------------------------- lists


BROKEN_ITEM = b'{"metadata": {"resourceVersion": "5"}, "items": [{"metadata": {"name": "\xff"}}]}'


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"metadata": 5}', b'{"items": []}', BROKEN_ITEM])
def test_a_list_that_is_none_is_trouble_not_emptiness(fake: FakeKube, client: KubeClient, body: bytes) -> None:
    """200 from something that is no API server must never read as "there is nothing"."""
    fake.inject(Fault(status=200, body=body), times=1, path="endpointslices")
    with pytest.raises(TransientError, match="no Kubernetes list"):
        list_once(client, None, "default")


def test_pages_that_expire_midway_are_read_from_the_start(
    fake: FakeKube, client: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """410 on a `continue`: the list begins again, complete and without duplicates."""
    monkeypatch.setattr(list_pages, "__defaults__", ("application/json", 3, wire.page))
    for number in range(8):
        fake.put("endpoints", ours(f"s{number}", "10.0.0.1"))
    fake.inject(Fault(status=410), times=1, path="continue=.*")
    store = list_once(client, None, "default")
    assert store.targets() == {Target("default", f"s{n}") for n in range(8)}


def test_a_list_that_never_holds_still_is_an_error(
    fake: FakeKube, client: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three expired tries are enough for a one-shot command."""
    monkeypatch.setattr(list_pages, "__defaults__", ("application/json", 3, wire.page))
    for number in range(8):
        fake.put("endpoints", ours(f"s{number}", "10.0.0.1"))
    fake.inject(Fault(status=410), times=99, path="continue=.*")
    with pytest.raises(StaleError, match="too old"):
        list_once(client, None, "default")


def test_a_server_that_is_down_at_the_start_delays_the_first_sync(fake: FakeKube, client: KubeClient) -> None:
    """wait_synced says False, the reason is in the status; once the server answers, it is True."""
    fake.inject(Fault(status=503), times=10_000)
    cache = Informer(client, ("default",), "default", lambda _: None, QUICK)
    cache.start()
    assert not cache.wait_synced(0.2)
    assert wait_for(lambda: "answers 503" in str(cache.trouble()))
    assert cache.status()["last_contact_seconds"] is None
    fake.clear_faults()
    assert cache.wait_synced(20)
    assert wait_for(lambda: cache.trouble() is None)
    assert cache.close(20)


def test_the_first_list_tells_nothing(fake: FakeKube, client: KubeClient) -> None:
    """The first full pass looks at everything anyway: no thousand calls before it."""
    fake.put("endpoints", ours("radosgw", "10.0.0.1"))
    told: list[Target] = []
    cache = Informer(client, None, "default", told.append, QUICK)
    cache.start()
    assert cache.wait_synced(20)
    assert (cache.targets(), cache.store.total_ready(), told) == ({RADOSGW}, 1, [])
    assert cache.close(20)


def test_only_the_given_namespaces_are_read(fake: FakeKube, client: KubeClient) -> None:
    """A namespaced Role suffices: no request goes beyond the namespaces given."""
    fake.add_namespace("other")
    fake.put("endpoints", ours("radosgw", "10.0.0.1"))
    elsewhere = ours("radosgw", "10.0.0.1")
    elsewhere["metadata"]["namespace"] = "other"
    fake.put("endpoints", elsewhere)
    cache = Informer(client, ("other", "third", "other"), "default", lambda _: None, QUICK)
    cache.start()
    assert cache.wait_synced(20)
    assert cache.targets() == {Target("other", "radosgw")}
    assert {e.namespace for e in fake.log if e.verb in ("list", "watch")} == {"other", "third"}
    assert cache.close(20)


def test_a_namespace_that_is_refused_while_another_is_listed_does_not_keep_the_rest_waiting(
    fake: FakeKube, client: KubeClient
) -> None:
    """The server has read its roles: three refusals prove it, not ten; what is not known is not called unreadable."""
    fake.forbid("admin", "list", "services", "apps")
    fake.add_namespace("apps")
    slow = RetryPolicy(initial_seconds=1.0, max_seconds=1.0)
    cache = Informer(client, ("apps", "default"), "default", lambda _target: None, slow)
    cache.start()
    try:
        assert cache.unreadable() == {}
        assert cache.wait_synced(30)
        assert sum(e.status == 403 for e in fake.log) < 10
        assert list(cache.unreadable()) == ["apps"]
        assert (cache.trouble(), cache.status()["backing_off"]) == (None, False)
    finally:
        cache.close()


def test_list_once_sends_one_list_per_kind(fake: FakeKube, client: KubeClient) -> None:
    """Services, our Endpoints, slices, metadata of foreign Endpoints, slices that pods left: five, and progress."""
    fake.put("endpoints", raw_endpoints("default", "theirs", "10.0.0.1"))
    fake.put("services", raw_service("default", "theirs"))
    steps: list[tuple[int, int]] = []
    store = list_once(client, None, "default", lambda done, total: steps.append((done, total)))
    assert [e.verb for e in fake.log] == ["list"] * 5
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert store.counts() == {"Service": 1, "Endpoints": 0, "EndpointSlice": 0, "HTTPRoute": 0, "ForeignEndpoints": 1}
    assert store.targets() == set()


def test_list_once_lists_the_routes_of_several_namespaces_at_once(fake: FakeKube, client: KubeClient) -> None:
    """A gateway's webhook that answers slowly delays a pass once, not once per namespace."""
    fake.inject(Fault(delay=1.0), times=10, path="httproutes")
    began = time.monotonic()
    list_once(client, ("default", "apps", "other"), "default", routes=True)
    assert time.monotonic() - began < 2.5
    assert fake.count("list", "httproutes") == 3


def test_list_once_fails_as_the_server_fails(fake: FakeKube, client: KubeClient) -> None:
    """No partial store: unknown is not empty."""
    fake.inject(Fault(status=503), times=1, path="endpointslices")
    with pytest.raises(TransientError, match="503"):
        list_once(client, None, "default")


# --------------------------------------------------------------------------- news and echoes


def test_the_echo_of_our_own_write_is_no_news_even_when_it_comes_first(fake: FakeKube, running: Running) -> None:
    """The watch beats the answer: `expect` knows what is coming."""
    fake.inject(Fault(delay=0.0, reset_after=False), times=0)
    change = create(endpoints(), "default", "radosgw")
    running.cache.expect(change)
    meta = running.writer.apply(change)
    assert wait_for(lambda: has(running, "radosgw"))  # told by the watch: note comes only now
    running.cache.confirm(change, meta)
    time.sleep(0.05)
    assert running.told == []


@pytest.mark.parametrize("fields", ["in order", "in another order"])
def test_the_echo_of_a_write_that_was_answered_is_not_decoded(
    fake: FakeKube, client: KubeClient, monkeypatch: pytest.MonkeyPatch, fields: str
) -> None:
    """It is recognized by its beginning; one with its fields in another order is decoded, and no news either."""
    reflector, change = lone(client), create(endpoints(), "default", "radosgw")
    meta = Writer(client).apply(change)
    assert meta is not None
    reflector._shared.store.confirm(change, meta)
    event = {"type": "MODIFIED", "object": fake.get("endpoints", "default", "radosgw")}
    if fields != "in order":
        event = {"object": event["object"], "type": event["type"]}
    decoded: list[Kind] = []
    decode = objects.decode

    def note(kind: Kind, raw: object) -> Any:
        decoded.append(kind)
        return decode(kind, raw)

    monkeypatch.setattr(objects, "decode", note)
    reflector._event(json.dumps(event, separators=(",", ":")).encode())
    assert (len(decoded), reflector._position) == (fields != "in order", meta.resource_version)


def test_an_edit_that_follows_our_write_at_once_is_reported(fake: FakeKube, running: Running) -> None:
    """The echo is swallowed, the edit behind it is not."""
    running.write(create(endpoints(), "default", "radosgw"))
    fake.put("endpoints", ours("radosgw", "10.66.6.6"), manager="kubectl-edit")
    assert wait_for(lambda: running.told == [RADOSGW])


def test_an_older_event_never_overwrites_our_newer_write(fake: FakeKube, running: Running) -> None:
    """The watch lags behind: what was noted stays until something newer comes."""
    fake.watch_hold.clear()
    first = running.write(create(endpoints(), "default", "radosgw"))
    assert first is not None
    second = running.write(update(endpoints(group(*ready("10.0.0.2"))), first))
    assert second is not None
    fake.watch_hold.set()
    marker = ours("marker", "10.0.0.3")
    fake.put("endpoints", marker)
    assert wait_for(lambda: has(running, "marker"))
    held = running.cache.current(RADOSGW).endpoints
    assert held is not None
    assert (held.meta.resource_version, held.groups[0].endpoints) == (second.resource_version, ready("10.0.0.2"))
    assert RADOSGW not in running.told


def test_a_deletion_of_ours_is_not_undone_by_older_events(fake: FakeKube, running: Running) -> None:
    """Created, updated, deleted while the watch lags: the object stays gone in the cache all the time."""
    fake.watch_hold.clear()
    meta = running.write(create(endpoints(), "default", "radosgw"))
    assert meta is not None
    meta = running.write(update(endpoints(group(*ready("10.0.0.2"))), meta))
    assert meta is not None
    running.write(delete(meta))
    fake.watch_hold.set()
    fake.put("endpoints", ours("marker", "10.0.0.3"))
    assert wait_for(lambda: has(running, "marker"))
    assert not has(running, "radosgw")
    assert RADOSGW not in running.told


def test_a_change_that_touches_nothing_of_interest_is_not_reported_but_updates_the_version(
    fake: FakeKube, running: Running
) -> None:
    """A user's label on our object: the next write needs the new version, no one needs a pass."""
    running.write(create(endpoints(), "default", "radosgw"))
    body = ours("radosgw", "10.0.0.1")
    body["metadata"]["labels"]["team"] = "storage"
    found = fake.put("endpoints", body, manager="kubectl-label")
    version = found["metadata"]["resourceVersion"]

    def held() -> str:
        current = running.cache.current(RADOSGW).endpoints
        return current.meta.resource_version if current else ""

    assert wait_for(lambda: held() == version)
    assert running.told == []


def test_a_refresh_finds_what_the_watches_missed(fake: FakeKube, running: Running) -> None:
    """Should a watch ever lose an event, the next full pass puts it right, tells it and counts it."""
    fake.watch_hold.clear()
    fake.put("endpoints", ours("missed", "10.0.0.1"))
    assert running.cache.refresh()
    assert has(running, "missed")
    assert running.told == [Target("default", "missed")]
    assert running.status("refresh_found") == 1
    fake.watch_hold.set()
    time.sleep(0.05)
    assert running.told == [Target("default", "missed")]


def test_a_refresh_decodes_only_what_it_did_not_see_before(
    fake: FakeKube, client: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of objects are listed at every full pass, and hardly any has changed; one that has is seen."""
    for number in range(8):
        fake.put("endpoints", ours(f"s{number}", "10.0.0.1"))
    store = Store("default")
    decoded: list[str] = []
    decode = objects.decode

    def note(kind: Kind, raw: Any) -> Any:
        decoded.append(raw["metadata"]["name"])
        return decode(kind, raw)

    def listed() -> set[Target]:
        return list_into(store, client, Kind.ENDPOINTS, None, objects.OURS)[0]

    assert len(listed()) == 8
    monkeypatch.setattr(objects, "decode", note)
    assert (listed(), decoded) == (set(), [])
    fake.put("endpoints", ours("s3", "10.0.0.2"))
    assert (listed(), decoded) == ({Target("default", "s3")}, ["s3"])
    store.confirm(update(endpoints(group(*ready("10.0.0.9"))), meta_of(store, "s3")), meta_of(store, "s3", "999"))
    assert (listed(), decoded) == ({Target("default", "s3")}, ["s3", "s3"]), "not what a write was answered with"


def meta_of(store: Store, name: str, version: str = "") -> Meta:
    """Of Endpoints that are held, with another version if one is given."""
    held = store.current(Target("default", name)).endpoints
    assert held is not None
    return replace(held.meta, resource_version=version or held.meta.resource_version)


def test_a_refresh_does_not_wait_for_a_server_that_does_not_answer(fake: FakeKube, running: Running) -> None:
    """False after the time given (else it would be True); it goes on by itself, and the state stays."""
    fake.inject(Fault(delay=1.0), times=4, path="limit")
    assert not running.cache.refresh(timeout=0.1)
    assert wait_for(lambda: running.status("refreshes") == 1)


def test_foreign_endpoints_are_known_and_forgotten(fake: FakeKube, running: Running) -> None:
    """Not watched, but read at every refresh; replaced by ours when we take one over."""
    fake.put("endpoints", raw_endpoints("default", "radosgw", "10.0.0.1"))
    assert running.cache.refresh()
    found = running.cache.current(RADOSGW).endpoints
    assert found is not None
    assert found.meta.owner is None
    running.write(update(endpoints(), found.meta))
    found = running.cache.current(RADOSGW).endpoints
    assert found is not None
    assert found.meta.owner == "default"
    fake.remove("endpoints", "default", "radosgw")
    assert wait_for(lambda: not has(running, "radosgw"))


def test_slices_follow_the_service_that_their_label_names(fake: FakeKube, running: Running) -> None:
    """A user moves a slice to another Service: both targets are reported."""
    running.write(create(bodies("radosgw")[Kind.ENDPOINT_SLICE], "default", "radosgw-abc"))
    assert [s.meta.name for s in running.cache.current(RADOSGW).slices] == ["radosgw-abc"]
    found = fake.get("endpointslices", "default", "radosgw-abc")
    assert found is not None
    found["metadata"]["labels"][ownership.SLICE_SERVICE] = "other"
    fake.put("endpointslices", found, manager="kubectl-edit")
    assert wait_for(lambda: sorted(running.told) == [Target("default", "other"), RADOSGW])
    assert running.cache.current(RADOSGW).slices == ()
    assert [s.meta.name for s in running.cache.current(Target("default", "other")).slices] == ["radosgw-abc"]


# --------------------------------------------------------------------------- ends


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_closing_interrupts_watches_at_once_and_leaves_nothing_behind(fake: FakeKube, client: KubeClient) -> None:
    """Threads joined, sockets closed, long before a watch would end by itself."""
    threads, files = threading.active_count(), _open_files()
    cache = Informer(client, None, "default", lambda _: None, QUICK)
    cache.start()
    assert cache.wait_synced(20)
    assert wait_for(lambda: fake.connections >= 4)
    assert cache.close(CLOSE_SECONDS)
    assert not [t for t in threading.enumerate() if t.name.startswith("kube-")]
    assert wait_for(lambda: fake.connections == 0)
    assert wait_for(lambda: threading.active_count() <= threads)
    assert wait_for(lambda: _open_files() <= files + 2)  # the client's own wake pair stays


@pytest.mark.parametrize("where", ["the answer", "the watch's beginning", "the backoff"])
def test_closing_interrupts_whatever_a_thread_waits_for(fake: FakeKube, client: KubeClient, where: str) -> None:
    """A list that is not answered, a watch whose headers do not come, a wait of a minute."""
    retry = QUICK
    if where == "the answer":
        fake.inject(Fault(delay=60), times=9, path="limit=")
    elif where == "the watch's beginning":
        fake.inject(Fault(delay=60), times=9, path="watch=1")
    else:
        fake.inject(Fault(status=503), times=99)
        retry = RetryPolicy(initial_seconds=60, max_seconds=60)
    cache = Informer(client, None, "default", lambda _: None, retry)
    cache.start()
    time.sleep(0.15)
    assert cache.close(CLOSE_SECONDS)


def test_closing_interrupts_connecting(tmp_path: Path) -> None:
    """An address that never answers."""
    with silent_port() as port:
        fake = FakeKube()
        fake.port = port
        config = kube_config(kubeconfig=fake.kubeconfig(tmp_path), connect_timeout_seconds=30)
        cache = Informer(KubeClient(config), None, "default", lambda _: None, QUICK)
        cache.start()
        time.sleep(0.2)
        assert cache.close(CLOSE_SECONDS)


def test_a_thread_that_dies_of_a_bug_is_reported(fake: FakeKube, client: KubeClient) -> None:
    """An exception out of `on_change` is no one's to swallow."""
    failures: list[BaseException] = []

    def broken(target: Target) -> None:
        raise RuntimeError(f"bug at {target}")

    cache = Informer(client, None, "default", broken, QUICK, failed=failures.append)
    cache.start()
    assert cache.wait_synced(20)
    fake.put("services", raw_service("default", "theirs"))
    assert wait_for(lambda: len(failures) == 1)
    assert str(failures[0]) == "bug at default/theirs"
    fake.watch_hold.clear()
    fake.put("endpoints", ours("missed", "10.0.0.1"))
    cache.refresh(timeout=1)
    assert wait_for(lambda: len(failures) == 2)
    assert str(failures[1]) == "bug at default/missed"
    fake.watch_hold.set()
    assert cache.close(20)


def test_a_closed_client_answers_nothing_more(client: KubeClient) -> None:
    """After close: CancelledError, not a new connection."""
    client.close()
    with pytest.raises(CancelledError):
        client.request("GET", "/version")


def test_a_clone_is_closed_apart_from_its_origin(client: KubeClient) -> None:
    """Closing the cache must not end the writers' requests."""
    twin = client.clone()
    twin.close()
    assert client.version().git == "v1.37.2-fake"


# --------------------------------------------------------------------------- writes


def test_a_lost_answer_to_a_create_is_found_out(fake: FakeKube, client: KubeClient) -> None:
    """The connection breaks after the server did it: transient, and the second try says what is there is ours."""
    writer = Writer(client)
    fake.inject(Fault(reset_after=True), times=1, method="PATCH")
    with pytest.raises(TransientError):
        writer.apply(create(endpoints()))
    with pytest.raises(StaleError, match="ours"):
        writer.apply(create(endpoints()))
    assert len(fake.writes()) == 2


def test_writes_cost_one_request_each(fake: FakeKube, client: KubeClient) -> None:
    """Create, update, delete of each kind: three requests, no reads."""
    writer = Writer(client)
    for body in bodies().values():
        meta = writer.apply(create(body))
        assert meta is not None
        meta = writer.apply(update(body, meta))
        assert meta is not None
        writer.apply(delete(meta))
    assert [e.verb for e in fake.log] == ["patch", "patch", "delete"] * 3


def test_a_server_that_refuses_the_strict_create_is_written_to_without_it(fake: FakeKube, client: KubeClient) -> None:
    """409 although nothing is there (docs/kubernetes.md): looked, tried again, then applied without either."""
    conflict = json.dumps({"kind": "Status", "reason": "Conflict", "message": "modified", "code": 409}).encode()
    fake.inject(Fault(status=409, body=conflict), times=2, method="PATCH")
    meta = Writer(client).apply(create(endpoints()))
    assert meta is not None
    assert meta.owner == "default"
    assert [e.verb for e in fake.log] == ["patch", "list", "patch", "list", "patch"]
    last = fake.writes()[-1]
    assert "force" not in last.query
    assert "resourceVersion" not in json.loads(last.body)["metadata"]


def test_a_create_needs_no_get_permission(fake: FakeKube, tmp_path: Path) -> None:
    """The conflict is checked by a list: the Role has patch, create, list and watch, no get."""
    fake.put("endpoints", raw_endpoints("default", "radosgw", "10.0.0.1"))
    fake.forbid("plain", "get", "endpoints")
    client = KubeClient(kube_config(kubeconfig=fake.kubeconfig(tmp_path, PLAIN_TOKEN)))
    with pytest.raises(Exception, match="belongs to another client"):
        Writer(client).apply(create(endpoints()))
    client.close()


def test_a_delete_that_meets_a_page_of_a_proxy_is_no_success(fake: FakeKube, client: KubeClient) -> None:
    """404 without a Status is not "gone already"."""
    meta = Writer(client).apply(create(endpoints()))
    assert meta is not None
    fake.inject(Fault(status=404, body=b"<html>not here</html>"), times=1, method="DELETE")
    with pytest.raises(PermanentError, match="API server's address"):
        Writer(client).apply(delete(meta))


@pytest.mark.parametrize("body", [b"<html>welcome</html>", b"[]", b'{"kind": "Status"}', b""])
def test_a_write_that_is_answered_with_something_else_is_no_success(
    fake: FakeKube, client: KubeClient, body: bytes
) -> None:
    """200 from a proxy that knows nothing of Kubernetes."""
    fake.inject(Fault(status=201, body=body), times=1, method="PATCH")
    with pytest.raises(PermanentError):
        Writer(client).apply(create(endpoints()))


def test_a_create_that_comes_and_goes_is_stale(fake: FakeKube, client: KubeClient) -> None:
    """409 three times, and each time nothing is there: no endless loop."""
    conflict = json.dumps({"kind": "Status", "reason": "Conflict", "message": "modified", "code": 409}).encode()
    fake.inject(Fault(status=409, body=conflict), times=9, method="PATCH")
    with pytest.raises(StaleError, match="comes and goes"):
        Writer(client).apply(create(endpoints()))
    assert fake.count("patch") == 3


def test_a_create_that_updated_something_is_no_success(fake: FakeKube, client: KubeClient) -> None:
    """200 instead of 201: whatever server that was, what is there must be read again."""
    body = json.dumps({"metadata": {"name": "radosgw", "uid": "u", "resourceVersion": "5"}}).encode()
    fake.inject(Fault(status=200, body=body), times=1, method="PATCH")
    with pytest.raises(StaleError, match="was there"):
        Writer(client).apply(create(endpoints()))


def test_a_service_that_changes_while_it_is_tidied_is_stale(fake: FakeKube, client: KubeClient) -> None:
    """Between taking a Service over and taking foreign ports out of it, a user wrote."""
    found = fake.put("services", raw_service("default", "radosgw", ports=[{"name": "old", "port": 81}]))
    theirs = objects.decode_meta(Kind.SERVICE, found)
    assert theirs is not None
    conflict = json.dumps({"kind": "Status", "reason": "Conflict", "message": "modified", "code": 409}).encode()
    writer = Writer(client)
    fake.inject(Fault(delay=0.0), times=1, method="PATCH")
    fake.inject(Fault(status=409, body=conflict), times=1, method="PATCH", path="fieldManager=consul-bridge$")
    with pytest.raises(StaleError, match="while it was being written"):
        writer.apply(update(bodies()[Kind.SERVICE], theirs))


def test_a_change_without_preconditions_is_refused_before_it_is_sent(fake: FakeKube, client: KubeClient) -> None:
    """A bug of the caller must not become an unconditional write."""
    meta = Meta(kind=Kind.ENDPOINTS, namespace="default", name="a", uid="", resource_version="5", owner=None)
    for change in (update(endpoints(), meta), delete(meta)):
        with pytest.raises(ValueError, match="needs the uid"):
            Writer(client).apply(change)
    unchanged = replace(update(endpoints(), meta), action=Action.UNCHANGED)
    assert Writer(client).apply(unchanged) is meta
    assert fake.log == []


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({"labels": {"app.kubernetes.io/managed-by": "Helm"}}, "Helm"),
        ({"labels": {"app.kubernetes.io/managed-by": "consul-bridge"}}, "no owner id"),
        ({"labels": {"app.kubernetes.io/managed-by": "consul-bridge", "consul-bridge/owner": "x"}}, 'owner id "x"'),
        ({"labels": {"consul": "true"}}, "consul-k8s"),
        ({"managedFields": [{"manager": "b"}, {"manager": "a"}, {"manager": "b"}]}, "written by a, b"),
        ({"managedFields": 5, "labels": []}, "another client"),
        ({}, "another client"),
    ],
)
def test_whose_an_object_is(metadata: dict[str, Any], text: str) -> None:
    """What a user reads in a conflict."""
    assert text in belongs_to({"metadata": metadata})


def test_an_odd_access_review_is_trouble(fake: FakeKube, client: KubeClient) -> None:
    """Not "no"."""
    fake.inject(Fault(status=201, body=b"{}"), times=1)
    with pytest.raises(TransientError):
        can_i(client, "list", "", "services")


def test_a_namespace_that_may_not_be_looked_at_is_unknown(fake: FakeKube, tmp_path: Path) -> None:
    """403 is neither yes nor no."""
    fake.forbid("plain", "get", "namespaces")
    plain = KubeClient(kube_config(kubeconfig=fake.kubeconfig(tmp_path, PLAIN_TOKEN)))
    assert namespace_states(plain, ["default"]) == {"default": NamespaceState.NOT_TOLD}
    plain.close()


def test_idle_connections_that_the_server_closed_are_replaced(fake: FakeKube, client: KubeClient) -> None:
    """A kept-alive connection that ended meanwhile costs no failed write."""
    writer = Writer(client)
    meta = writer.apply(create(endpoints()))
    assert meta is not None
    fake.cut()
    assert wait_for(lambda: fake.connections == 0)
    assert writer.apply(update(endpoints(labels=(("a", "b"),)), meta)) is not None


def test_sixteen_writers_share_sixteen_connections(fake: FakeKube, client: KubeClient) -> None:
    """Kept alive, none thrown away."""
    writer = Writer(client)
    names = iter(range(160))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number = next(names, None)
            if number is None:
                return
            writer.apply(create(endpoints(), "default", f"s{number}"))

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fake.connections <= 16
    assert len(fake.objects["", "endpoints"]) == 160
    assert all(dict(marks())[ownership.OWNER] == e.body["metadata"]["labels"][ownership.OWNER]
               for e in fake.objects["", "endpoints"].values())  # fmt: skip


# --------------------------------------------------------------------------- HTTPRoutes


def test_a_kind_that_is_not_there_keeps_nothing_else_waiting(fake: FakeKube, client: KubeClient) -> None:
    """The cache is synced, it is reported why, and the version that the cluster has is named."""
    versions = json.dumps({"kind": "APIGroup", "versions": [{"version": "v1beta1"}]}).encode()
    fake.inject(Fault(status=404, body=b"404 page not found"), times=99, path="httproutes")
    fake.inject(Fault(status=200, body=versions), times=99, path="/apis/gateway.networking.k8s.io")
    cache = Informer(client, None, "default", lambda _: None, QUICK, routes=True)
    cache.start()
    try:
        assert cache.wait_synced(20)
        (said,) = cache.routes_unread()
        assert "HTTPRoute (gateway.networking.k8s.io/v1) as v1beta1 only; upgrade" in said
        assert (cache.trouble(), cache.unreadable(), cache.current(RADOSGW).route) == (None, {}, said)
    finally:
        assert cache.close(20)


def test_routes_that_no_rule_asks_for_are_listed_again_once_allowed_and_only_ours(
    fake: FakeKube, client: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the right is missing no list asks for them, and nothing waits; a kind that comes later is found as well."""
    monkeypatch.setattr(cache_module, "UNWANTED_SECONDS", 0.1)
    fake.forbid("admin", "list", "httproutes")
    cache = Informer(client, None, "default", lambda _: None, QUICK, routes=False)
    cache.start()
    try:
        assert cache.wait_synced(20)
        assert (fake.count("list", "httproutes"), cache.routes_unread()) == (0, ())
        fake.allow()
        assert wait_for(lambda: fake.count("list", "httproutes") >= 3)  # the fake has no such kind: 404
        with fake.changed:
            asked = {entry.query.get("labelSelector") for entry in fake.log if entry.resource == "httproutes"}
        assert asked == {objects.OURS}
        assert (cache.routes_unread(), cache.trouble()) == ((), None)
    finally:
        assert cache.close(20)


@pytest.mark.parametrize("routes", [True, False])
def test_routes_that_the_server_fails_to_list_keep_nothing_else_waiting(
    fake: FakeKube, client: KubeClient, routes: bool
) -> None:
    """A webhook that converts them and is down, say: the rest is synced and refreshed; a report if it matters."""
    fake.inject(Fault(status=500), times=10_000, path="httproutes")
    cache = Informer(client, None, "default", lambda _: None, QUICK, routes=routes)
    try:
        cache.start()
        assert cache.wait_synced(20)
        assert cache.refresh(20)
        assert bool(cache.routes_unread()) is routes
    finally:
        cache.close()
    if not routes:
        assert list_once(client, ("default",), "default", routes=False).current(RADOSGW).route is not None


def test_routes_without_the_right_are_unknown_in_one_pass(fake: FakeKube, client: KubeClient) -> None:
    """A reason in place of an absence, in that namespace alone."""
    fake.forbid("admin", "list", "httproutes")
    store = list_once(client, ("default",), "default", routes=True)
    assert "may not list and watch httproutes in namespace default" in str(store.current(RADOSGW).route)
    assert store.current(Target("other", "x")).route is None
    assert list_once(client, ("default",), "default", routes=False).current(RADOSGW).route is None
