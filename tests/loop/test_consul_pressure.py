"""The catalog against a fake Consul that gives it a hard time: limits, floods, growth, outages."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest

from bridge.consul import aggregates, consistency, housekeeping, link, reader, watch
from bridge.consul import datacenter as module
from bridge.consul.catalog import Catalog
from bridge.consul.client import NOBODY
from bridge.consul.ratelimit import AdaptiveConcurrency
from bridge.core.model import Known, Listing, Query, Status, Unknown
from bridge.retry import RetryPolicy
from tests.loop.test_consul_catalog import becomes, eventually, fill, filled, known, only, settled, watching
from tests.support.fakes.consul import FakeConsul, Fault, Recorder, _Catalog

Body = dict[str, object]

PATIENT = RetryPolicy(initial_seconds=0.1, max_seconds=1.0)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@contextmanager
def meanwhile(body: Callable[[int], None], seconds: float) -> Iterator[list[int]]:
    """Call `body(0)`, `body(1)`... on a thread, `seconds` apart, as long as the block lasts; [how many times]."""
    stop, times = threading.Event(), [0]

    def run() -> None:
        while not stop.wait(seconds):
            body(times[0])
            times[0] += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield times
    finally:
        stop.set()
        thread.join()


def status_of(catalog: Catalog, name: str) -> object:
    return catalog.status()["datacenters"]["dc1"][name]


def plain_reads(consul: FakeConsul, since: float) -> list[float]:
    """When services were read, without those questions that only ask for an index or wait."""
    found = tuple(r for r in consul.asked("/v1/health/service/") if r.at >= since)
    return [r.at for r in found if "index" not in r.params and r.params.get("tag") != NOBODY]


def nothing_was_taken_away(recorder: Recorder) -> bool:
    """Whether no service that has instances, and no listing, was ever told to be empty."""
    told = [event[2] for event in tuple(recorder.events) if event[0] in ("view", "listing")]
    return Known(()) not in told and Listing({}) not in told


def test_a_consul_that_takes_fewer_connections_than_the_budget_makes_it_smaller_until_it_takes_more(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AdaptiveConcurrency, "SHRINK_EVERY_SECONDS", 0.1)
    monkeypatch.setattr(AdaptiveConcurrency, "QUIET_SECONDS", 1.0)
    monkeypatch.setattr(AdaptiveConcurrency, "GROW_EVERY_SECONDS", 0.05)
    monkeypatch.setattr(module, "PROMOTED_WAIT_SECONDS", 0.3)
    monkeypatch.setattr(housekeeping, "LEADER_PROBE_SECONDS", 0.5)
    with FakeConsul(max_connections=16) as consul:
        queries = fill(consul, 60)
        with watching(consul, recorder, connections=30, wait_seconds=0.5) as catalog:
            catalog.want(queries)
            assert eventually(lambda: consul.refused_connections > 0)
            assert recorder.wait(known(recorder, queries), 30)
            assert recorder.count("trouble") > 0
            assert eventually(lambda: int(str(status_of(catalog, "budget"))) < 30)
            for n in (0, 30, 59):
                consul.flip(f"s{n:03}", f"vm-{n % 10}", "critical")
                assert becomes(recorder, Query("dc1", f"s{n:03}"), 30, status=Status.CRITICAL), n
            consul.max_connections = 200
            assert eventually(lambda: status_of(catalog, "budget") == 30, 30)
            assert eventually(lambda: recorder.troubles["dc1"] is None, 30)
            assert consul.peak_connections <= 30
            assert nothing_was_taken_away(recorder)
    said = [str(event[2]) for event in recorder.events if event[0] == "trouble"]
    assert any("too many concurrent connections" in text for text in said)


def test_a_service_with_ten_thousand_instances_is_reported_whole_and_delays_no_other(recorder: Recorder) -> None:
    with FakeConsul() as consul:
        queries = fill(consul, 30)
        big = Query("dc1", "big")

        def register(catalog: _Catalog) -> None:
            for n in range(10_000):
                service = {"ID": f"big-{n}", "Service": "big", "Port": n % 60_000 + 1, "Address": "10.9.0.1"}
                catalog.register({"Node": f"vm-{n % 10}", "SkipNodeUpdate": True, "Service": service})

        consul.change(register)
        with watching(consul, recorder, connections=12) as catalog:
            catalog.want(queries | {big})
            assert recorder.wait(known(recorder, queries | {big}), 60)
            assert len(recorder.views[big].instances) == 10_000
            check: Body = {"CheckID": "c", "Name": "c", "Status": "critical", "ServiceID": "big-77"}
            consul.change(partial(_Catalog.register, body={"Node": "vm-7", "SkipNodeUpdate": True, "Check": check}))
            consul.flip("s029", "vm-9", "critical")
            assert becomes(recorder, Query("dc1", "s029"), 30, status=Status.CRITICAL)

            def ill() -> list[str]:
                return [i.id for i in recorder.views[big].instances if i.status is Status.CRITICAL]

            assert recorder.wait(lambda: ill() == ["big-77"], 30)
            consul.change(lambda c: c.deregister({"Node": "vm-8", "ServiceID": "big-78"}))
            assert recorder.wait(lambda: len(recorder.views[big].instances) == 9_999, 30)


def paced(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], float]:
    """Slow, so that a flood shows in seconds; returns (seconds) -> the reads of one service that are allowed in it."""
    monkeypatch.setattr(reader, "SERVICE_RATE", 5.0)
    monkeypatch.setattr(reader, "SERVICE_BURST", 5.0)
    monkeypatch.setattr(aggregates, "RATE", 5.0)
    monkeypatch.setattr(aggregates, "BURST", 5.0)
    # what one of two aggregate watches names, what a direct watch sees, and a few for who has it changing between them
    return lambda seconds: 3 * (5 + 5 * seconds) + 15


@pytest.mark.parametrize("what", ["flips", "output only"])
def test_a_check_that_changes_two_hundred_times_a_second_costs_a_bounded_share_and_delays_no_other(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    allowed = paced(monkeypatch)
    with FakeConsul() as consul:
        queries = fill(consul, 60)
        consul.flip("s040", "vm-0", "critical")
        with watching(consul, recorder, connections=12) as catalog:
            catalog.want(queries)
            assert recorder.wait(known(recorder, queries))
            settled(consul)
            path = "/v1/health/service/s040"
            read, told, began = len(consul.asked(path)), recorder.count("view"), time.monotonic()

            def change(n: int) -> None:
                status = "passing" if what == "flips" and n % 2 else "critical"
                consul.flip("s040", "vm-0", status, output=str(n))

            with meanwhile(change, 0.004) as times:
                for n in (3, 21, 38, 59):
                    consul.flip(f"s{n:03}", f"vm-{n % 10}", "warning")
                    assert becomes(recorder, Query("dc1", f"s{n:03}"), 10, status=Status.WARNING), n
                assert eventually(lambda: time.monotonic() - began > 3.0 and times[0] > 100 * 3, 60)
            read_since = len(consul.asked(path)) - read
            seconds = time.monotonic() - began
            assert read_since <= allowed(seconds)
            if what == "output only":
                assert recorder.count("view") == told + 4  # nothing but the four others
            consul.flip("s040", "vm-0", "passing")
            assert becomes(recorder, Query("dc1", "s040"), 10, status=Status.PASSING)
            settled(consul)
            assert only(recorder, Query("dc1", "s040")).status is Status.PASSING


def test_a_catalog_that_doubles_while_we_start_is_known_whole(recorder: Recorder) -> None:
    with FakeConsul() as consul:
        fill(consul, 60)

        def more(n: int) -> None:
            if n < 60:
                consul.register(f"s{n + 60:03}", f"vm-{n % 10}", f"10.0.0.{n % 10 + 1}", 8000 + n)

        def listed() -> frozenset[Query]:
            listing = recorder.listings.get("dc1")
            names = listing.services if isinstance(listing, Listing) else ()
            return frozenset(Query("dc1", name) for name in names)

        with watching(consul, recorder, connections=12) as catalog, meanwhile(more, 0.01):

            def whole() -> bool:
                catalog.want(listed())
                return len(listed()) == 120 and known(recorder, listed())()

            assert eventually(whole, 30)
            for n in range(60):
                assert becomes(recorder, Query("dc1", f"s{n + 60:03}"), 10, port=8000 + n)
            assert consul.peak_connections <= 12
            assert nothing_was_taken_away(recorder)


@pytest.mark.parametrize("services", [50, 200])
def test_after_an_outage_all_watches_come_back_spread_out_and_within_the_budget(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, services: int
) -> None:
    """Away: no more than a few questions a second from each. Back: each service after a wait of its own.

    Probes, of which a poll sends many at once on one connection, are not among those who waited.
    """
    assert consistency.RETURN_SECONDS >= 0.5
    monkeypatch.setattr(consistency, "RETURN_SECONDS", 3.0)
    seeded, waits = random.Random(7), list[float]()

    def share() -> float:
        waits.append(seeded.random())
        return waits[-1]

    monkeypatch.setattr(consistency, "random", SimpleNamespace(random=share))
    patient = RetryPolicy(initial_seconds=0.5, max_seconds=4.0)
    with FakeConsul() as consul:
        queries = fill(consul, services)
        with watching(consul, recorder, retry=patient) as catalog:
            catalog.want(queries)
            assert recorder.wait(known(recorder, queries), 30)
            settled(consul)
            consul.inject(Fault(reset=True), times=1_000_000)
            consul.drop_connections()
            assert recorder.wait(lambda: isinstance(recorder.listings["dc1"], Unknown), 30)
            began = time.monotonic()
            time.sleep(4.0)
            asked = [r.at for r in tuple(consul.requests) if r.at >= began]
            per_second = Counter(int(at - began) for at in asked)
            assert max(per_second.values(), default=0) <= 2 * 64
            consul.flip("s001", "vm-1", "critical")
            waits.clear()
            back = time.monotonic()
            consul.clear_faults()
            assert recorder.wait(known(recorder, queries), 30)
            assert becomes(recorder, Query("dc1", "s001"), 30, status=Status.CRITICAL)
            assert recorder.wait(lambda: recorder.troubles["dc1"] is None, 30)
            watched, at_once = min(services, 55), 8  # who finds Consul back, readers, who asked just then
            read = [at - back for at in sorted(plain_reads(consul, back))]
            assert len(read) >= watched
            assert len(waits) >= watched - at_once
            # However busy this machine is, it only makes reads later: ten are never there before ten waits are over.
            allowed = [consistency.RETURN_SECONDS * share for share in sorted(waits)]
            early = [(at, least) for at, least in zip(read[at_once:], allowed, strict=False) if at < least]
            assert early == []
            assert max(allowed) - min(allowed) > consistency.RETURN_SECONDS / 2
            assert consul.peak_connections <= 64
            assert recorder.count("rebuilt") == 0
            assert nothing_was_taken_away(recorder)


def test_no_way_between_few_and_many_services_takes_anything_away_whatever_consul_answers_meanwhile(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Watched directly, by aggregate watches, and again; errors, missing rights and cut connections at every step."""
    slow = RetryPolicy(initial_seconds=0.1, max_seconds=0.2)
    monkeypatch.setattr(watch, "PERMANENT_RETRY", slow)
    monkeypatch.setattr(link, "PERMANENT_RETRY", slow)
    monkeypatch.setattr(aggregates, "LINGER_SECONDS", 0.0)
    monkeypatch.setattr(module, "PROMOTED_WAIT_SECONDS", 0.2)
    with FakeConsul() as consul:
        queries = fill(consul, 40)
        few = frozenset(sorted(queries)[:4])
        with watching(consul, recorder, connections=12, wait_seconds=0.5) as catalog:
            catalog.want(queries)
            assert recorder.wait(known(recorder, queries))
            troubles: list[Callable[[], None]] = [
                lambda: consul.inject(Fault(status=500, body="rpc error"), times=20),
                lambda: consul.inject(Fault(status=429, body="too many"), times=5, path="/v1/health/service"),
                lambda: consul.inject(Fault(truncate=True), times=10),
                consul.drop_connections,
                lambda: consul.hidden.update(q.service for q in queries),
                lambda: setattr(consul, "leader", False),
            ]
            for n, trouble in enumerate(troubles):
                for wanted in (few, queries):
                    trouble()
                    catalog.want(wanted, queries - wanted)
                    consul.register(f"s{n:03}", f"vm-{n}", f"10.0.0.{n + 1}", 9000 + len(wanted))
                    time.sleep(0.3)
                consul.clear_faults()
                consul.hidden.clear()
                consul.leader = True
                assert recorder.wait(known(recorder, queries), 30), n
                assert becomes(recorder, Query("dc1", f"s{n:03}"), 30, port=9040), n
            assert nothing_was_taken_away(recorder)
            assert consul.peak_connections <= 12


def test_while_consul_says_429_next_to_nothing_is_asked(recorder: Recorder) -> None:
    """A look is due, aggregate watches have rung, and nothing of it may be repeated hot."""
    with filled(recorder, 60, retry=PATIENT, connections=12) as (consul, _, _):
        settled(consul)
        for path in ("/v1/catalog/node-services", "/v1/health/service"):
            consul.inject(Fault(status=429, body="slower"), times=1_000_000, path=path)
        for n in range(60):
            consul.flip(f"s{n:03}", f"vm-{n % 10}", "critical")
        consul.register("s050", "vm-0", "10.0.0.1", 9000, status="critical")
        time.sleep(1.0)
        before, began = len(consul.requests), time.monotonic()
        time.sleep(3.0)
        assert len(consul.requests) - before <= (time.monotonic() - began) * 60
        consul.clear_faults()
        assert becomes(recorder, Query("dc1", "s050"), 30, port=9000, status=Status.CRITICAL)
        assert nothing_was_taken_away(recorder)


def test_retry_after_is_honoured_by_sweeps(recorder: Recorder) -> None:
    with filled(recorder, 60, retry=PATIENT, connections=12) as (consul, _, _):
        settled(consul)
        path = "/v1/catalog/node-services"
        consul.inject(Fault(status=429, body="slower", headers=(("Retry-After", "4"),)), times=12, path=path)
        before = len(consul.asked(path))
        consul.register("s050", "vm-0", "10.0.0.1", 9000)
        assert eventually(lambda: len(consul.asked(path)) > before)
        began = time.monotonic()
        time.sleep(3.7)
        assert [r for r in consul.asked(path) if began + 1.0 < r.at < began + 3.7] == []
        assert becomes(recorder, Query("dc1", "s050"), 60, port=9000)


def test_under_a_rate_limit_every_change_is_found_and_polls_end_at_last(recorder: Recorder) -> None:
    """They go on where they were, with fewer probes at once."""
    with FakeConsul() as consul:
        queries = fill(consul, 60, nodes=60)
        with watching(consul, recorder, retry=PATIENT, connections=12) as catalog:
            catalog.want(queries)
            assert recorder.wait(known(recorder, queries))
            settled(consul)
            looked = int(str(status_of(catalog, "index_polls")))
            consul.max_rate = 50.0
            for n in (9, 50, 59):
                consul.register(f"s{n:03}", f"vm-{n}", f"10.0.0.{n + 1}", 9000)
            for n in (9, 50, 59):
                assert becomes(recorder, Query("dc1", f"s{n:03}"), 60, port=9000), n
            assert eventually(lambda: int(str(status_of(catalog, "index_polls"))) > looked, 60)
            assert nothing_was_taken_away(recorder)


def test_all_services_together_are_read_so_often_and_no_more(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By aggregate watches, whose flood names all of them again and again; first reads are free."""
    monkeypatch.setattr(reader, "ALL_RATE", 20.0)
    monkeypatch.setattr(reader, "ALL_BURST", 20.0)
    with filled(recorder, 60, connections=12) as (consul, _, _):
        settled(consul)
        began = time.monotonic()

        def change(n: int) -> None:
            consul.flip(f"s{n % 60:03}", f"vm-{n % 10}", "passing" if n // 60 % 2 else "critical")

        with meanwhile(change, 0.004) as times:
            time.sleep(3.0)
            assert eventually(lambda: times[0] > 300, 60)
        read = len(plain_reads(consul, began))
        assert reader.ALL_BURST / 2 < read <= 20 + 20 * (time.monotonic() - began) + 5
        truth = {f"s{n % 60:03}": n // 60 % 2 == 0 for n in range(times[0])}
        for name, ill in truth.items():
            status = Status.CRITICAL if ill else Status.PASSING
            assert becomes(recorder, Query("dc1", name), 30, status=status), name


def test_direct_watches_that_began_together_do_not_return_together(recorder: Recorder) -> None:
    """Also those that wait for less than usual, because there are more services than watches."""
    with filled(recorder, 60, connections=30, wait_seconds=55.0) as (consul, _, _):
        settled(consul)

        def asked() -> list[str]:
            return [r.params["wait"] for r in consul.asked("/v1/health/service/") if "index" in r.params]

        assert eventually(lambda: len(asked()) >= 20)
        waits = asked()
        assert len(set(waits)) > len(waits) * 0.9
        most = module.PROMOTED_WAIT_SECONDS * 1000
        assert all(most * 0.8 < float(wait.removesuffix("ms")) <= most for wait in waits)
