"""The catalog against the fake Consul: what is reported, in which order, at what cost, and what every trouble does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from bridge.consul import aggregates, housekeeping, link, missed_changes, reader
from bridge.consul import datacenter as module
from bridge.consul.catalog import Catalog
from bridge.core.model import Known, Listing, Query, Status, Unknown
from bridge.errors import ConfigurationError
from bridge.retry import RetryPolicy
from tests.support.fakes.consul import FakeConsul, Fault, Recorder, Request, _Catalog
from tests.support.options import consul_config

QUICK = RetryPolicy(initial_seconds=0.01, max_seconds=0.1)


@contextmanager
def watching(
    consul: FakeConsul,
    recorder: Recorder,
    datacenters: tuple[str, ...] = ("dc1",),
    retry: RetryPolicy = QUICK,
    **settings: Any,
) -> Iterator[Catalog]:
    config = replace(consul_config(address=consul.address, wait_seconds=5.0), **settings)
    catalog = Catalog(config, datacenters, recorder, retry, recorder.failed)
    catalog.start()
    try:
        yield catalog
    finally:
        began = time.monotonic()
        catalog.close()
        took = time.monotonic() - began
        names = [t.name for t in threading.enumerate() if t.name.startswith("consul-")]
        assert names == []
        assert took < 4.0  # less than any question waits that has just been asked
        assert recorder.failures == []


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def fill(consul: FakeConsul, services: int, nodes: int = 10) -> frozenset[Query]:
    for n in range(services):
        consul.register(f"s{n:03}", f"vm-{n % nodes}", f"10.0.0.{n % nodes + 1}", 8000)
    return frozenset(Query("dc1", f"s{n:03}") for n in range(services))


def known(recorder: Recorder, queries: frozenset[Query]) -> Callable[[], bool]:
    return lambda: all(isinstance(recorder.views.get(q), Known) for q in queries)


@contextmanager
def filled(recorder: Recorder, services: int, **options: Any) -> Iterator[tuple[FakeConsul, Catalog, frozenset[Query]]]:
    """So many services, each with one instance, all of which are wanted and known. `options`: those of `watching`."""
    with FakeConsul() as consul:
        queries = fill(consul, services)
        with watching(consul, recorder, **options) as catalog:
            catalog.want(queries)
            assert recorder.wait(known(recorder, queries))
            yield consul, catalog, queries


def only(recorder: Recorder, query: Query) -> Any:
    view = recorder.views[query]
    assert isinstance(view, Known)
    (instance,) = view.instances
    return instance


def becomes(recorder: Recorder, query: Query, seconds: float = 15.0, **fields: Any) -> bool:
    def so() -> bool:
        view = recorder.views.get(query)
        if not isinstance(view, Known) or len(view.instances) != 1:
            return False
        return all(getattr(view.instances[0], name) == value for name, value in fields.items())

    return recorder.wait(so, seconds)


def statuses(recorder: Recorder, query: Query) -> list[Status]:
    """All that were ever told, of a service with one instance: who waits for one may miss it before the next."""
    views = [event[2] for event in tuple(recorder.events) if event[:2] == ("view", query)]
    return [instance.status for view in views if isinstance(view, Known) for instance in view.instances]


def eventually(condition: Callable[[], bool], seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def settled(consul: FakeConsul, seconds: float = 0.8) -> int:
    """Requests once nothing is asked any more for a while."""
    while True:
        before = len(consul.requests)
        time.sleep(seconds)
        if len(consul.requests) == before:
            return before


def test_changes_that_nothing_names_do_not_wait_for_the_next_listing(recorder: Recorder) -> None:
    """It is dear, so it is asked for twice a second; in between its index alone says that something changed."""
    with filled(recorder, 120) as (consul, _, _queries):
        settled(consul)
        before, began = len(consul.requests), time.monotonic()
        for n in range(110, 118):
            consul.register(f"s{n}", f"vm-{n % 10}", f"10.0.0.{n % 10 + 1}", 9000)
            assert becomes(recorder, Query("dc1", f"s{n}"), port=9000)
        took = time.monotonic() - began
        asked = [r for r in consul.requests[before:] if r.path == "/v1/catalog/services"]
        listings = [r for r in asked if "node-meta" not in r.params]
        assert took < 2.0, "eight listings, two of them at once and two a second, take three"
        assert len(listings) <= 2 * took + 3


# --------------------------------------------------------------------------- few services: a watch each


def test_listings_and_views_are_reported_as_they_change(recorder: Recorder) -> None:
    with FakeConsul() as consul:
        queries = fill(consul, 3)
        with watching(consul, recorder) as catalog:
            assert recorder.wait(lambda: "dc1" in recorder.listings)
            assert set(recorder.listings["dc1"].services) == {"s000", "s001", "s002"}
            catalog.want(queries)
            assert recorder.wait(known(recorder, queries))
            consul.flip("s001", "vm-1", "critical")
            assert becomes(recorder, Query("dc1", "s001"), status=Status.CRITICAL)
            consul.register("s001", "vm-1", "10.0.0.2", 9000)
            assert becomes(recorder, Query("dc1", "s001"), port=9000)
            consul.deregister("s001", "vm-1")
            assert recorder.wait(lambda: recorder.views[Query("dc1", "s001")] == Known(()))
            assert recorder.wait(lambda: "s001" not in recorder.listings["dc1"].services)
            status = catalog.status()["datacenters"]["dc1"]
            assert (status["direct_watches"], status["aggregate_watches"]) == (3, False)


def test_what_does_not_change_is_not_reported(recorder: Recorder) -> None:
    with filled(recorder, 3, wait_seconds=0.2) as (consul, _, _):
        assert recorder.wait(lambda: "dc1" in recorder.listings)
        for n in range(5):
            consul.flip("s000", "vm-0", "passing", output=f"took {n} ms")
            time.sleep(0.1)
        asked = len(consul.asked("/v1/health/service/s000"))
        assert eventually(lambda: len(consul.asked("/v1/health/service/s000")) > max(asked + 1, 5))  # and answered
        assert recorder.count("view") == 3
        assert recorder.count("listing") == 1


def test_a_check_whose_output_flaps_costs_a_bounded_number_of_reads(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "SERVICE_RATE", 10.0)
    monkeypatch.setattr(reader, "SERVICE_BURST", 10.0)
    with filled(recorder, 1) as (consul, _, _):
        began = time.monotonic()
        n = 0
        while time.monotonic() < began + 2.0 or n <= 100:
            consul.flip("s000", "vm-0", "passing", output=str(n))
            n += 1
            time.sleep(0.005)
        asked = len(consul.asked("/v1/health/service/s000"))
        assert asked <= 10 + 10 * (time.monotonic() - began) + 3
        assert recorder.count("view") == 1
        consul.flip("s000", "vm-0", "critical")
        assert becomes(recorder, Query("dc1", "s000"), status=Status.CRITICAL)


def test_new_wishes_are_read_and_old_ones_forgotten(recorder: Recorder) -> None:
    with FakeConsul() as consul:
        fill(consul, 4)
        a, b = Query("dc1", "s000"), Query("dc1", "s001")
        with watching(consul, recorder) as catalog:
            catalog.want(frozenset({a}))
            assert recorder.wait(lambda: a in recorder.views)
            catalog.want({b}, {a})
            assert recorder.wait(lambda: b in recorder.views)
            consul.flip("s000", "vm-0", "critical")
            consul.flip("s001", "vm-1", "critical")
            assert becomes(recorder, b, status=Status.CRITICAL)
            assert only(recorder, a).status is Status.PASSING
            catalog.want(frozenset({a, b}))
            assert becomes(recorder, a, status=Status.CRITICAL)


def test_a_service_that_is_not_there_is_known_to_have_no_instances_and_watched(recorder: Recorder) -> None:
    with FakeConsul() as consul:
        query = Query("dc1", "later")
        with watching(consul, recorder, wait_seconds=0.1) as catalog:
            catalog.want(frozenset({query}))
            assert recorder.wait(lambda: recorder.views.get(query) == Known(()))
            time.sleep(0.5)  # several waits end; the streaming backend's lower numbers are no step back
            assert recorder.count("rebuilt") == 0
            assert catalog.status()["datacenters"]["dc1"]["confirmations"] == 1
            consul.register("later", "vm", "10.0.0.1", 80)
            assert becomes(recorder, query, port=80)


def test_filters_are_consuls_business(recorder: Recorder) -> None:
    with FakeConsul() as consul:
        consul.register("web", "vm-1", "10.0.0.1", 80, Meta={"env": "prod"})
        consul.register("web", "vm-2", "10.0.0.2", 80, Meta={"env": "test"})
        query = Query("dc1", "web", filter='Service.Meta.env == "prod"')
        with watching(consul, recorder) as catalog:
            catalog.want(frozenset({query}))
            assert becomes(recorder, query, node="vm-1")
            consul.register("web", "vm-1", "10.0.0.1", 81, Meta={"env": "prod"})
            assert becomes(recorder, query, port=81)


def test_a_bad_filter_is_one_services_trouble_and_not_asked_hot(recorder: Recorder) -> None:
    with FakeConsul() as consul:
        queries = fill(consul, 2)
        bad = Query("dc1", "s000", filter="nonsense (")
        with watching(consul, recorder) as catalog:
            catalog.want(queries | {bad})
            assert recorder.wait(known(recorder, queries))
            assert recorder.wait(lambda: isinstance(recorder.views.get(bad), Unknown))
            assert "'nonsense ('" in recorder.views[bad].reason
            time.sleep(1.0)
            assert sum(r.params.get("filter") == "nonsense (" for r in consul.requests) <= 2
            assert recorder.troubles == {}


def test_an_unknown_datacenter_is_reported_for_the_query(recorder: Recorder) -> None:
    with FakeConsul() as consul, watching(consul, recorder) as catalog:
        query = Query("dc9", "web")
        catalog.want(frozenset({query}))
        assert recorder.views[query] == Unknown("datacenter 'dc9' may not be asked, only dc1 may")
        assert recorder.count("view") == 1


# --------------------------------------------------------------------------- beyond the budget


def budgeted(consul: FakeConsul, recorder: Recorder, **settings: Any) -> Any:
    return watching(consul, recorder, **{"connections": 12} | settings)


def test_beyond_the_budget_every_kind_of_change_is_seen(recorder: Recorder) -> None:
    with filled(recorder, 60, connections=12) as (consul, catalog, _):
        for name, node, n in (("s003", "vm-3", 4), ("s041", "vm-1", 2), ("s059", "vm-9", 10)):
            query, address = Query("dc1", name), f"10.0.0.{n}"
            for status in ("critical", "warning", "passing"):
                consul.flip(name, node, status)
                assert becomes(recorder, query, status=Status(status)), (name, status)
            consul.register(name, node, address, 9000)
            assert becomes(recorder, query, port=9000), name
            consul.register(name, node, address, 9000, Meta={"v": "2"})
            assert becomes(recorder, query, meta=(("v", "2"),)), name
            consul.register(name, node, address, 9000, Tags=["blue"])
            assert becomes(recorder, query, tags=("blue",)), name
            consul.register("other", node, f"10.9.9.{n}", 1)  # moves the node
            assert becomes(recorder, query, node_address=f"10.9.9.{n}"), name
            consul.register(name, f"new-{n}", "10.0.1.1", 9000)
            assert recorder.wait(lambda q=query: len(recorder.views[q].instances) == 2), name  # type: ignore[misc]
            consul.deregister(name, node)
            assert becomes(recorder, query, node=f"new-{n}"), name
        assert consul.peak_connections <= 12
        assert catalog.status()["datacenters"]["dc1"]["missed_changes"] == 0


def test_a_node_check_flips_every_service_on_the_node(recorder: Recorder) -> None:
    with filled(recorder, 60, connections=12) as (consul, _, _):
        for status in ("critical", "passing"):
            check = {"CheckID": "alive", "Name": "alive", "Status": status}
            body = {"Node": "vm-3", "SkipNodeUpdate": True, "Check": check}
            consul.change(partial(_Catalog.register, body=body))
            for n in range(3, 60, 10):
                assert becomes(recorder, Query("dc1", f"s{n:03}"), status=Status(status)), n


def test_a_flap_that_a_read_saw_in_the_middle_ends_right(recorder: Recorder) -> None:
    """The list is the same before and after; only the ModifyIndex tells that the view is of the moment in between."""
    query = Query("dc1", "s050")
    with filled(recorder, 60, connections=12) as (consul, _, _):
        for _ in range(30):
            consul.flip("s050", "vm-0", "critical")
            consul.flip("s050", "vm-0", "passing")
            consul.flip("s050", "vm-0", "critical")
        assert becomes(recorder, query, status=Status.CRITICAL)
        settled(consul)
        assert only(recorder, query).status is Status.CRITICAL


def test_the_services_that_change_get_the_direct_watches(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROMOTED_WAIT_SECONDS", 0.2)
    with filled(recorder, 60, connections=12) as (consul, catalog, _):
        busy = [f"s{n:03}" for n in (55, 56, 57)]
        for status in ("critical", "passing"):
            for name in busy:
                consul.flip(name, f"vm-{int(name[1:]) % 10}", status)
                assert becomes(recorder, Query("dc1", name), status=Status(status))
        watch = catalog._watches["dc1"]
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            direct = {e.query.service for e in watch._table.all() if e.watched}
            if set(busy) <= direct:
                break
            time.sleep(0.02)
        assert set(busy) <= direct
        assert len(direct) == 6
        # and those that lost theirs are still seen
        for n in range(6):
            consul.flip(f"s{n:03}", f"vm-{n}", "critical")
            assert becomes(recorder, Query("dc1", f"s{n:03}"), status=Status.CRITICAL)


def test_growing_past_the_budget_and_back_misses_nothing(recorder: Recorder) -> None:
    with FakeConsul() as consul:
        queries = fill(consul, 40)
        few = frozenset(q for q in queries if q.service < "s005")
        with budgeted(consul, recorder) as catalog:
            stop = threading.Event()
            churn = threading.Thread(target=_flip_all, args=(consul, 40, stop))
            churn.start()
            for wanted in (few, queries, few, queries, few, queries):
                catalog.want(wanted, queries - wanted)
                time.sleep(0.15)
            stop.set()
            churn.join()
            assert recorder.wait(known(recorder, queries))
            for n in range(40):
                truth = consul._catalogs["dc1"].checks[f"vm-{n % 10}", f"check:s{n:03}-vm-{n % 10}"]["Status"]
                assert becomes(recorder, Query("dc1", f"s{n:03}"), status=Status(truth)), n
            assert consul.peak_connections <= 12


def test_a_first_read_that_aggregate_watches_overtake_is_not_the_last_word(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found critical, well again, and only then do the aggregate watches begin; only then is the answer there."""
    monkeypatch.setattr(aggregates, "LINGER_SECONDS", 0.0)
    query = Query("dc1", "s039")
    with filled(recorder, 40, connections=12) as (consul, catalog, queries):
        settled(consul)
        few = frozenset(sorted(queries)[:5])
        catalog.want((), queries - few)
        watch = catalog._watches["dc1"]
        assert eventually(lambda: not watch.status()["aggregate_watches"])
        assert eventually(lambda: not any(client.connected for client in watch._aggregates.clients), 10)
        consul.flip("s039", "vm-9", "critical")
        path = "/v1/health/service/s039"
        consul.inject(Fault(late=1.5), path=path)
        consul.inject(Fault(delay=0.7), times=2, path="/v1/health/state/")
        consul.inject(Fault(delay=0.7), path="/v1/catalog/nodes")
        found, answer = threading.Event(), consul.answer

        def noted(request: Request) -> tuple[int, dict[str, str], bytes]:
            made = answer(request)
            if request.path == path:
                found.set()
            return made

        consul.answer = noted  # type: ignore[method-assign]
        catalog.want(few | {q for q in queries if q.service > "s025"})
        assert found.wait(15)  # and is on its way
        consul.flip("s039", "vm-9", "passing")
        expected = [Status.PASSING, Status.CRITICAL, Status.PASSING]
        assert recorder.wait(lambda: statuses(recorder, query) == expected)


def test_an_instance_that_takes_another_name_leaves_the_old_one(recorder: Recorder) -> None:
    """Both names stay in the listing and the instance stays on its node: only its name there tells."""
    with FakeConsul() as consul:
        queries = fill(consul, 40)
        for n in range(40):
            consul.register(f"s{n:03}", f"vm-{(n + 1) % 10}", "10.0.0.99", 8000)
        with budgeted(consul, recorder, wait_seconds=120.0) as catalog:
            catalog.want(queries)
            assert recorder.wait(known(recorder, queries))
            settled(consul)
            for n in range(20, 30):
                old, new = Query("dc1", f"s{n:03}"), Query("dc1", f"s{n + 10:03}")
                node = f"vm-{n % 10}"
                renamed = {"ID": f"s{n:03}-{node}", "Service": new.service, "Port": 1}
                consul.register("other", node, "10.0.9.9", n)  # the node itself is newer than every view
                assert recorder.wait(partial(on_address, recorder, old, "10.0.9.9"))
                consul.change(
                    partial(_Catalog.register, body={"Node": node, "SkipNodeUpdate": True, "Service": renamed})
                )
                assert recorder.wait(partial(has, recorder, new, 3)), n
                assert recorder.wait(partial(has, recorder, old, 1)), n


def has(recorder: Recorder, query: Query, instances: int) -> bool:
    return len(recorder.views[query].instances) == instances


def on_address(recorder: Recorder, query: Query, address: str) -> bool:
    return any(i.node_address == address for i in recorder.views[query].instances)


def test_the_checks_of_an_instance_that_took_another_name_ring_for_it(recorder: Recorder) -> None:
    """They keep the old name: neither the aggregate's entry nor the new service's index says whom they concern."""
    query = Query("dc1", "s039")
    with filled(recorder, 40, connections=12) as (consul, _, _):
        renamed = {"ID": "s030-vm-0", "Service": "s039", "Port": 1}
        consul.change(partial(_Catalog.register, body={"Node": "vm-0", "SkipNodeUpdate": True, "Service": renamed}))
        assert recorder.wait(lambda: len(recorder.views[query].instances) == 2)
        assert recorder.wait(lambda: recorder.views[Query("dc1", "s030")] == Known(()))
        settled(consul)
        for status in ("critical", "passing"):
            check = {"CheckID": "check:s030-vm-0", "Name": "t", "Status": status, "ServiceID": "s030-vm-0"}
            body = {"Node": "vm-0", "SkipNodeUpdate": True, "Check": check}
            with consul._changed:
                consul._catalogs["dc1"].register(body)
                consul._catalogs["dc1"].checks["vm-0", "check:s030-vm-0"]["ServiceName"] = "s030"
                consul._changed.notify_all()
            want = {Status(status), Status.PASSING}
            assert recorder.wait(lambda want=want: {i.status for i in recorder.views[query].instances} == want)  # type: ignore[misc]


def _flip_all(consul: FakeConsul, services: int, stop: threading.Event) -> None:
    n = 0
    while not stop.is_set():
        consul.flip(f"s{n % services:03}", f"vm-{n % services % 10}", ("critical", "passing", "warning")[n % 3])
        n += 7
        time.sleep(0.001)


def test_with_too_few_connections_for_aggregate_watches_polls_see_everything(recorder: Recorder) -> None:
    with filled(recorder, 30, connections=2) as (consul, _, _):
        consul.flip("s020", "vm-0", "critical")
        assert becomes(recorder, Query("dc1", "s020"), status=Status.CRITICAL)
        consul.register("s021", "vm-1", "10.0.0.2", 9000)
        assert becomes(recorder, Query("dc1", "s021"), port=9000)
        assert consul.peak_connections <= 2


def test_a_budget_too_small_for_the_datacenters_is_refused_before_anything_is_sent(recorder: Recorder) -> None:
    with pytest.raises(ConfigurationError, match=r"5 connections .* too few for 3 datacenters: at least 6"):
        Catalog(consul_config(connections=5), ["a", "b", "c"], recorder)


def test_queries_that_aggregate_watches_cannot_see_are_polled(recorder: Recorder) -> None:
    """No watch sees them, nor does the listing's index move; the fake ignores `peer`, so these are flips of no list."""
    with FakeConsul() as consul:
        fill(consul, 30)
        queries = frozenset(Query("dc1", f"s{n:03}", peer="cloud") for n in range(30))
        with watching(consul, recorder, connections=8) as catalog:
            catalog.want(queries)
            assert recorder.wait(known(recorder, queries))
            for n in (29, 28, 27):  # the first may be found while the views are verified
                consul.flip(f"s{n:03}", f"vm-{n % 10}", "strange")  # a status of no list: passing left no list either
                assert becomes(recorder, Query("dc1", f"s{n:03}", peer="cloud"), status=Status.UNKNOWN)


def at_rest(watch: module.DatacenterWatch, service: str) -> bool:
    """Every service is covered, the next look asks nodes alone, and long ago one rang for this."""
    covered = all(entry.watched or entry.verified_index for entry in watch._table.all())
    polled = watch._poller._nodes is not None and not watch._reader.unverified and not watch._poller.pending
    rang = max(entry.last_notified_at for entry in watch._table.of_service(service))
    return covered and polled and time.monotonic() - rang > missed_changes.JUDGE_SECONDS


def test_a_change_without_a_hint_is_found_by_the_verification_and_counted(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the service gets a direct watch for it, and the listing rings for something else all the time."""
    monkeypatch.setattr(missed_changes, "JUDGE_SECONDS", 1.0)
    monkeypatch.setattr(module, "PROMOTED_WAIT_SECONDS", 0.1)
    with filled(recorder, 60, connections=12) as (consul, catalog, _):
        watch = catalog._watches["dc1"]
        consul.register("other", "vm-1", "10.0.0.2", 0)
        assert eventually(lambda: at_rest(watch, "s050"))
        consul.flip("s050", "vm-0", "strange")  # a status of no list: passing left no list either
        consul.register("other", "vm-1", "10.0.0.2", 1)
        watch._poller.audit()
        assert becomes(recorder, Query("dc1", "s050"), status=Status.UNKNOWN)
        consul.register("other", "vm-1", "10.0.0.2", 2)
        assert eventually(lambda: any(e.watched for e in watch._table.of_service("s050")))
        assert eventually(lambda: watch.status()["missed_changes"] == 1)
        assert watch.status()["missed_lately"] == ["s050"]


def test_what_looks_did_not_see_is_a_miss_though_the_listing_rang_for_it(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And goes on to ring for others: a ring excuses until a look that began after it has ended."""
    monkeypatch.setattr(missed_changes, "JUDGE_SECONDS", 0.5)
    with filled(recorder, 60, connections=12) as (consul, catalog, _):
        watch = catalog._watches["dc1"]
        consul.register("other", "vm-1", "10.0.0.2", 1)
        assert eventually(lambda: at_rest(watch, "s050"))

        def unseen(catalog: _Catalog) -> None:
            """The service's index moves, its node's does not."""
            catalog.services["vm-0", "s050-vm-0"]["Port"] = 9000
            catalog.of_service["s050"] = catalog._next()

        consul.change(unseen)
        for port in (2, 3, 4):
            looked = watch.status()["index_polls"]
            consul.register("other", "vm-1", "10.0.0.2", port)
            assert eventually(lambda looked=looked: watch.status()["index_polls"] > looked)  # type: ignore[misc]
        watch._poller.audit()
        assert becomes(recorder, Query("dc1", "s050"), port=9000)
        consul.register("other", "vm-1", "10.0.0.2", 5)
        assert eventually(lambda: watch.status()["missed_lately"] == ["s050"])


def test_what_a_verification_sees_before_a_read_that_was_due_is_no_miss(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(missed_changes, "JUDGE_SECONDS", 3.0)
    monkeypatch.setattr(module, "PROMOTED_WAIT_SECONDS", 0.3)
    with filled(recorder, 60, connections=12, verify_seconds=0.01) as (consul, catalog, _):
        watch = catalog._watches["dc1"]
        verified = watch.status()["audits"]
        for n in range(90):
            name, node, address = f"s{n % 60:03}", f"vm-{n % 10}", f"10.0.0.{n % 10 + 1}"
            if n % 3:
                consul.register(name, node, address, 9000 + n)
            else:
                consul.flip(name, node, ("critical", "warning", "passing")[n // 60])
            time.sleep(0.02)
        assert eventually(lambda: watch.status()["audits"] > verified + 3)
        assert becomes(recorder, Query("dc1", "s029"), port=9089)
        time.sleep(3.5)  # until everything is judged
        assert eventually(lambda: not watch._missed.judging)
        assert watch.status()["missed_changes"] == 0, watch.status()["missed_lately"]


def test_in_the_steady_state_next_to_nothing_is_asked(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROMOTED_WAIT_SECONDS", 120.0)
    with filled(recorder, 60, connections=12, wait_seconds=120.0) as (consul, _, _):
        settled(consul)
        before = len(consul.requests)
        time.sleep(3.0)
        assert len(consul.requests) - before <= 3  # the leader probe


# --------------------------------------------------------------------------- trouble


def test_when_consul_goes_away_everything_known_stays_and_comes_back(recorder: Recorder) -> None:
    with filled(recorder, 5) as (consul, _, queries):
        consul.inject(Fault(reset=True), times=10_000)
        consul.drop_connections()
        assert recorder.wait(lambda: isinstance(recorder.listings["dc1"], Unknown))
        assert recorder.wait(lambda: all(isinstance(recorder.views[q], Unknown) for q in queries))
        assert recorder.troubles["dc1"]
        consul.change(lambda c: c.deregister({"Node": "vm-0", "ServiceID": "s000-vm-0"}))
        consul.clear_faults()
        assert recorder.wait(lambda: recorder.views[Query("dc1", "s000")] == Known(()))
        assert recorder.wait(known(recorder, queries))
        assert recorder.wait(lambda: isinstance(recorder.listings["dc1"], Listing))
        assert recorder.wait(lambda: recorder.troubles["dc1"] is None)
        assert recorder.count("rebuilt") == 0


def test_after_a_return_no_long_backoff_is_waited_out(recorder: Recorder) -> None:
    with FakeConsul() as consul:
        queries = fill(consul, 5)
        config = consul_config(address=consul.address, wait_seconds=5.0)
        slow = RetryPolicy(initial_seconds=0.3, max_seconds=60.0, multiplier=4.0)
        catalog = Catalog(config, ["dc1"], recorder, slow, recorder.failed)
        catalog.start()
        catalog.want(queries)
        assert recorder.wait(known(recorder, queries))
        consul.inject(Fault(reset=True), times=60)
        consul.drop_connections()
        assert recorder.wait(lambda: bool(recorder.troubles.get("dc1")))
        time.sleep(3.0)
        consul.clear_faults()
        began = time.monotonic()
        assert recorder.wait(lambda: all(isinstance(recorder.views[q], Known) for q in queries), 30)
        first = time.monotonic() - began
        catalog.close()
        assert first < 30


@pytest.mark.parametrize("index", [3, 100_000])
@pytest.mark.parametrize("connections", [64, 12])
def test_a_rebuilt_consul_is_announced_before_any_view_of_it(recorder: Recorder, index: int, connections: int) -> None:
    """Even one whose index has already grown past the old one."""
    with filled(recorder, 20, connections=connections) as (consul, _, queries):
        consul.rebuild(index)
        assert recorder.wait(lambda: all(recorder.views[q] == Known(()) for q in queries))
        assert recorder.count("rebuilt") == 1
        kinds = [e[0] for e in recorder.events if e[0] == "rebuilt" or e[2:] == (Known(()),)]
        assert kinds[0] == "rebuilt"
        empty = [e for e in recorder.events if e[0] == "listing" and isinstance(e[2], Listing) and not e[2].services]
        assert all(recorder.events.index(e) > recorder.events.index(("rebuilt", "dc1")) for e in empty)
        consul.register("s007", "vm-7", "10.0.0.8", 8000)
        assert becomes(recorder, Query("dc1", "s007"), port=8000)
        consul.register("s007", "vm-7", "10.0.0.8", 8001)
        assert becomes(recorder, Query("dc1", "s007"), port=8001)


def test_a_restart_with_data_is_no_rebuild(recorder: Recorder) -> None:
    with filled(recorder, 5) as (consul, _, queries):
        for _ in range(3):
            consul.drop_connections()
            time.sleep(0.1)
        assert recorder.wait(lambda: recorder.troubles.get("dc1") is None and known(recorder, queries)())
        consul.flip("s001", "vm-1", "critical")
        assert becomes(recorder, Query("dc1", "s001"), status=Status.CRITICAL)
        assert recorder.count("rebuilt") == 0


def test_the_loss_of_the_leader_is_noticed_and_takes_nothing_away(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "LEADER_PROBE_SECONDS", 0.2)
    with filled(recorder, 5) as (consul, _, queries):
        consul.leader = False
        assert recorder.wait(lambda: "no leader" in (recorder.troubles.get("dc1") or ""))
        assert known(recorder, queries)()
        consul.leader = True
        assert recorder.wait(lambda: recorder.troubles["dc1"] is None)


def test_acls_that_hide_everything_take_nothing_away(recorder: Recorder) -> None:
    with filled(recorder, 3) as (consul, _, _):
        consul.hidden |= {"s000", "s001", "s002"}
        consul.register("s000", "vm-0", "10.0.0.1", 9000)  # wakes the watches
        assert recorder.wait(lambda: isinstance(recorder.views[Query("dc1", "s000")], Unknown))
        assert recorder.wait(lambda: isinstance(recorder.listings["dc1"], Unknown))
        assert Known(()) not in [e[2] for e in recorder.events if e[0] == "view"]


def test_threads_and_connections_of_services_that_are_gone_go_as_well(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slot that no service needs ends after a while, and begins again for the next service."""
    from bridge.consul import direct

    def slots() -> int:
        return sum("direct" in thread.name for thread in threading.enumerate())

    monkeypatch.setattr(direct, "IDLE_SECONDS", 0.1)
    with FakeConsul() as consul:
        queries = fill(consul, 8)
        few = frozenset(sorted(queries)[:2])
        with watching(consul, recorder, wait_seconds=0.3) as catalog:
            catalog.want(queries)
            assert recorder.wait(known(recorder, queries))
            assert eventually(lambda: slots() == 8)
            catalog.want((), queries - few)
            assert eventually(lambda: slots() == 2)
            recorder.views.clear()
            catalog.want(queries)
            assert recorder.wait(known(recorder, queries - few))
            assert eventually(lambda: slots() == 8)


def test_what_a_narrowed_token_no_longer_shows_stays_and_is_reported(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queries that wait get an empty answer that says nothing of ACLs: only a plain read tells."""
    from bridge.consul import watch

    monkeypatch.setattr(watch, "PERMANENT_RETRY", RetryPolicy(initial_seconds=0.2, max_seconds=0.3))
    with filled(recorder, 3, wait_seconds=0.2) as (consul, _, queries):
        consul.hidden |= {"s000"}
        assert recorder.wait(lambda: isinstance(recorder.views[Query("dc1", "s000")], Unknown))
        assert recorder.wait(lambda: "s000" in (recorder.troubles.get("dc1") or ""))
        assert Known(()) not in [e[2] for e in recorder.events if e[0] == "view"]
        consul.hidden.clear()
        assert recorder.wait(known(recorder, queries))
        assert recorder.wait(lambda: recorder.troubles["dc1"] is None)


@pytest.mark.parametrize("services", [2, 40], ids=["direct watches", "aggregate_watches"])
def test_nodes_hidden_from_the_token_are_reported_until_they_can_be_seen(recorder: Recorder, services: int) -> None:
    """With every view, or the endpoints that a better token once saw would be taken for gone."""
    with FakeConsul() as consul:
        queries = fill(consul, services)
        for query in queries:
            consul.register(query.service, "shy", "10.0.0.99", 8000)
        consul.hidden_nodes.add("shy")
        with watching(consul, recorder, connections=12, wait_seconds=0.5, verify_seconds=1.0) as catalog:
            catalog.want(queries)
            assert recorder.wait(known(recorder, queries))
            for n in range(services):
                consul.flip(f"s{n:03}", f"vm-{n % 10}", "critical")
                assert becomes(recorder, Query("dc1", f"s{n:03}"), status=Status.CRITICAL)
            views = [event[2] for event in recorder.events if event[0] == "view"]
            assert all(view.acl_filtered for view in views if isinstance(view, Known))
            consul.hidden_nodes.clear()
            assert recorder.wait(
                lambda: all(has(recorder, q, 2) and not recorder.views[q].acl_filtered for q in queries)
            )


def test_without_a_token_under_default_deny_nothing_is_known(recorder: Recorder) -> None:
    with FakeConsul(token="t") as consul:
        queries = fill(consul, 3)
        with watching(consul, recorder) as catalog:
            catalog.want(queries)
            assert recorder.wait(lambda: all(isinstance(recorder.views.get(q), Unknown) for q in queries))
            assert "anonymous under default deny" in recorder.views[Query("dc1", "s000")].reason
            assert recorder.wait(lambda: isinstance(recorder.listings.get("dc1"), Unknown))


def test_a_token_that_is_taken_away_stops_the_asking_and_one_that_works_again_is_used(
    recorder: Recorder, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bridge.consul import watch

    monkeypatch.setattr(watch, "PERMANENT_RETRY", RetryPolicy(initial_seconds=0.2, max_seconds=0.3))
    file = tmp_path / "token"
    file.write_text("good")
    with FakeConsul(token="good") as consul:
        queries = fill(consul, 3)
        with watching(consul, recorder, token_file=str(file), wait_seconds=0.2) as catalog:
            catalog.want(queries)
            assert recorder.wait(known(recorder, queries))
            consul.token = "another"
            assert recorder.wait(lambda: "does not know our token" in (recorder.troubles.get("dc1") or ""))
            assert recorder.wait(lambda: all(isinstance(recorder.views[q], Unknown) for q in queries))
            file.write_text("another")
            assert recorder.wait(known(recorder, queries))
            assert recorder.wait(lambda: recorder.troubles["dc1"] is None)


def test_429_makes_the_budget_smaller_and_reports_it(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge.consul.ratelimit import AdaptiveConcurrency

    monkeypatch.setattr(AdaptiveConcurrency, "QUIET_SECONDS", 3.0)
    monkeypatch.setattr(AdaptiveConcurrency, "GROW_EVERY_SECONDS", 0.1)
    monkeypatch.setattr(module, "PROMOTED_WAIT_SECONDS", 0.3)
    with filled(recorder, 60, connections=30, wait_seconds=0.5) as (consul, catalog, _):
        full = catalog.status()["datacenters"]["dc1"]["direct_watches"]
        limit = "Your IP is issuing too many concurrent connections, please rate limit your calls"
        consul.inject(Fault(status=429, body=limit), times=5, path="/v1/health/service")
        assert recorder.wait(lambda: "too many concurrent connections" in (recorder.troubles.get("dc1") or ""))
        status = catalog.status()["datacenters"]["dc1"]
        assert status["budget"] < status["budget_configured"] == 30
        deadline = time.monotonic() + 30
        fewest = full
        while time.monotonic() < deadline:
            status = catalog.status()["datacenters"]["dc1"]
            fewest = min(fewest, status["direct_watches"])
            if fewest < full and status["budget"] == 30 and status["direct_watches"] == full:
                break
            time.sleep(0.01)
        assert fewest < full
        assert (status["budget"], status["direct_watches"]) == (30, full)
        for n in (1, 30, 59):
            consul.flip(f"s{n:03}", f"vm-{n % 10}", "critical")
            assert becomes(recorder, Query("dc1", f"s{n:03}"), status=Status.CRITICAL), n


def test_a_dead_datacenter_never_touches_the_others(recorder: Recorder) -> None:
    with FakeConsul(datacenters=("dc1", "dc2")) as consul:
        for dc in ("dc1", "dc2"):
            consul.register("web", "vm", "10.0.0.1", 80, dc=dc)
        here, there = Query("dc1", "web"), Query("dc2", "web")
        with watching(consul, recorder, ("dc1", "dc2"), wait_seconds=30.0) as catalog:
            catalog.want(frozenset({here, there}))
            assert recorder.wait(known(recorder, frozenset({here, there})))
            consul.inject(Fault(status=500, body="No path to datacenter"), times=10_000, datacenter="dc2")
            consul.inject(Fault(delay=0.05), times=0)
            consul.flip("web", "vm", "warning", dc="dc2")
            assert recorder.wait(lambda: isinstance(recorder.views[there], Unknown))
            for status in ("critical", "passing", "warning"):
                consul.flip("web", "vm", status)
                assert becomes(recorder, here, status=Status(status))
            assert recorder.troubles.get("dc1") is None
            assert not [e for e in recorder.events if e[0] == "view" and e[1] == here and isinstance(e[2], Unknown)]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=500, body="rpc error making call: EOF"),
        Fault(truncate=True),
        Fault(garbage=b"SSH-2.0-OpenSSH_9.6\r\n"),
        Fault(headers=(("X-Consul-Index", None),)),
        Fault(headers=(("X-Consul-Index", "0"),)),
        Fault(headers=(("X-Consul-Index", "banana"),)),
        Fault(status=200, body="<html>login</html>", headers=(("X-Consul-Index", "7"),)),
        Fault(status=200, body="null", headers=(("X-Consul-Index", "7"),)),
        Fault(status=200, body='{"odd": "shape"}', headers=(("X-Consul-Index", "7"),)),
        Fault(status=200, body='[{"error": "x"}, {"Node": null}]', headers=(("X-Consul-Index", "7"),)),
        Fault(status=200, body='{"error": "try again"}', headers=(("X-Consul-Index", "7"),)),
        Fault(status=404, body="not here"),
        Fault(status=503, body="maintenance", headers=(("Retry-After", "0"),)),
        Fault(delay=0.3),
        Fault(reset=True),
    ],
    ids=lambda f: (f.garbage or f.body).__str__()[:20] + str(f.status) + str(dict(f.headers).get("X-Consul-Index", "")),
)
def test_no_fault_ever_looks_like_an_empty_catalog_and_all_of_them_pass(
    recorder: Recorder, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bridge.consul import watch

    monkeypatch.setattr(watch, "PERMANENT_RETRY", RetryPolicy(initial_seconds=0.1, max_seconds=0.2))
    monkeypatch.setattr(link, "PERMANENT_RETRY", RetryPolicy(initial_seconds=0.1, max_seconds=0.2))
    with filled(recorder, 20, connections=12, wait_seconds=0.2) as (consul, _, queries):
        consul.inject(fault, times=25)
        consul.flip("s015", "vm-5", "critical")
        consul.register("s016", "vm-6", "10.0.0.7", 9000)
        assert becomes(recorder, Query("dc1", "s015"), status=Status.CRITICAL, seconds=20)
        assert becomes(recorder, Query("dc1", "s016"), port=9000, seconds=20)
        assert recorder.wait(known(recorder, queries))
        assert Known(()) not in [e[2] for e in recorder.events if e[0] == "view"]
        assert Listing({}) not in [e[2] for e in recorder.events if e[0] == "listing"]
        assert recorder.wait(lambda: recorder.troubles.get("dc1") is None, 30)


# --------------------------------------------------------------------------- beginning and end


def test_a_consul_that_is_not_there_at_first_is_taken_when_it_comes(recorder: Recorder) -> None:
    with FakeConsul() as consul:
        queries = fill(consul, 3)
        consul.inject(Fault(reset=True), times=10_000)
        with watching(consul, recorder) as catalog:
            catalog.want(queries)
            assert recorder.wait(lambda: isinstance(recorder.listings.get("dc1"), Unknown))
            assert recorder.wait(lambda: all(isinstance(recorder.views.get(q), Unknown) for q in queries))
            consul.clear_faults()
            assert recorder.wait(known(recorder, queries))
            assert recorder.wait(lambda: recorder.troubles["dc1"] is None)


@pytest.mark.parametrize("services", [0, 3, 60])
def test_closing_is_quick_whatever_is_going_on(recorder: Recorder, services: int) -> None:
    with FakeConsul() as consul:
        queries = fill(consul, services)
        for pause in (0.0, 0.01, 0.3):
            with watching(consul, recorder, connections=12) as catalog:
                catalog.want(queries)
                time.sleep(pause)
                assert catalog.status()["datacenters"]["dc1"]["connections"] <= 12
            assert catalog.status()["datacenters"]["dc1"]["connections"] == 0


def test_closing_is_quick_while_consul_is_silent(recorder: Recorder) -> None:
    with FakeConsul() as consul:
        queries = fill(consul, 30)
        consul.inject(Fault(delay=60.0), times=40)
        with watching(consul, recorder, connections=12) as catalog:
            catalog.want(queries)
            time.sleep(0.2)


def test_after_closing_nothing_is_reported(recorder: Recorder) -> None:
    with FakeConsul() as consul:
        queries = fill(consul, 30)
        with watching(consul, recorder, connections=12) as catalog:
            catalog.want(queries)
            time.sleep(0.05)
        before = len(recorder.events)
        consul.flip("s001", "vm-1", "critical")
        time.sleep(0.1)
        assert len(recorder.events) == before


def test_a_thread_that_dies_of_a_bug_is_reported() -> None:
    class Broken(Recorder):
        def on_view(self, query: Query, state: Any, seen: float, _inline: Any = None) -> None:
            raise RuntimeError("a bug")

    broken = Broken()
    with FakeConsul() as consul:
        queries = fill(consul, 2)
        catalog = Catalog(consul_config(address=consul.address), ["dc1"], broken, QUICK, broken.failed)
        catalog.start()
        catalog.want(queries)
        deadline = time.monotonic() + 5
        while not broken.failures and time.monotonic() < deadline:
            time.sleep(0.01)
        catalog.close()
    assert [str(e) for e in broken.failures[:1]] == ["a bug"]
