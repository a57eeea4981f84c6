"""Consul's streaming backend shows a waiting query something else than its catalog has: what is seen, at what cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bridge.consul import comparison
from bridge.core.model import Known, Query, Status
from tests.loop.test_consul_catalog import eventually, fill, known, recorder, watching
from tests.support.fakes.consul import FakeConsul, Json, Recorder, _Catalog

__all__ = ["recorder"]

GH = Query("dc1", "gh")


def register(consul: FakeConsul, node: str, address: str, status: str = "passing") -> None:
    consul.change(lambda catalog: catalog.register(body(node, address, status)))


def body(node: str, address: str, status: str = "passing") -> Json:
    return {
        "Node": node, "Address": address, "Service": {"ID": "gh", "Service": "gh", "Port": 80},
        "Check": {"CheckID": f"c-{node}", "Name": "c", "Status": status, "ServiceID": "gh"},
    }  # fmt: skip


def keeps(consul: FakeConsul, node: str) -> Callable[[list[Json]], list[Json]]:
    """The streaming view goes on to show what it has of `gh` on a node now, whatever the catalog does."""
    _, entries = consul.save().health("gh", streaming=True)
    (kept,) = [e for e in entries if e["Node"]["Node"] == node]
    return lambda now: sorted(
        [*(e for e in now if e["Node"]["Node"] != node), kept], key=lambda e: str(e["Node"]["Node"])
    )


def addresses(recorder: Recorder, query: Query = GH) -> list[str]:
    view = recorder.views.get(query)
    return [i.node_address for i in view.instances] if isinstance(view, Known) else []


def ever(recorder: Recorder, query: Query = GH) -> set[tuple[str, ...]]:
    """Every set of addresses that was reported."""
    views = [event[2] for event in tuple(recorder.events) if event[:2] == ("view", query)]
    return {tuple(i.node_address for i in view.instances) for view in views if isinstance(view, Known)}


def mismatches(recorder: Recorder) -> list[Query]:
    return [event[1] for event in tuple(recorder.events) if event[0] == "mismatch"]


def rename(consul: FakeConsul, old: str, new: str, address: str) -> None:
    """A node comes back in another case: the catalog has the new one alone, the streaming view both."""

    def change(catalog: _Catalog) -> None:
        catalog.deregister({"Node": old})
        catalog.register(body(new, address))

    consul.streamed["gh"] = keeps(consul, old)
    consul.change(change)


def plain_reads(consul: FakeConsul) -> int:
    asked = consul.asked("/v1/health/service/gh")
    return sum("index" not in r.params and "tag" not in r.params for r in asked)


@contextmanager
def watched(recorder: Recorder, *listed: str) -> Iterator[FakeConsul]:
    """A Consul with `gh` on vm1, vm2... at these addresses, and a catalog that knows them and waits for long."""
    with FakeConsul() as consul:
        for n, address in enumerate(listed, 1):
            register(consul, f"vm{n}", address)
        with watching(consul, recorder, wait_seconds=60.0) as catalog:
            catalog.want(frozenset({GH}))
            assert recorder.wait(lambda: addresses(recorder) == list(listed))
            yield consul


def test_a_node_that_comes_back_in_another_case_is_shown_once_and_its_service_is_watched_in_the_catalog(
    recorder: Recorder,
) -> None:
    with FakeConsul() as consul:
        register(consul, "vm2", "10.20.0.2")
        with watching(consul, recorder, wait_seconds=0.5) as catalog:
            catalog.want(frozenset({GH}))
            assert recorder.wait(lambda: addresses(recorder) == ["10.20.0.2"])
            rename(consul, "vm2", "VM2", "10.20.0.22")
            assert recorder.wait(lambda: addresses(recorder) == ["10.20.0.22"])
            assert recorder.wait(lambda: mismatches(recorder) == [GH])
            assert catalog.status()["datacenters"]["dc1"]["streaming_mismatches"] == ["gh"]
            time.sleep(1.2)  # waits run out, and would show the ghost
            consul.change(lambda c: c.register({"Node": "VM2", "SkipNodeUpdate": True, "Check": {
                "CheckID": "c-VM2", "Name": "c", "Status": "critical", "ServiceID": "gh"}}))  # fmt: skip
            assert recorder.wait(lambda: recorder.views[GH].instances[0].status is Status.CRITICAL)
            consul.change(lambda c: c.deregister({"Node": "VM2"}))
            assert recorder.wait(lambda: recorder.views[GH] == Known(()))
            time.sleep(0.7)
            assert mismatches(recorder) == [GH]
            assert ever(recorder) == {("10.20.0.2",), ("10.20.0.22",), ()}
            waited = [r for r in consul.asked("/v1/health/service/gh") if "index" in r.params]
            assert "near" in waited[-1].params


def test_a_ghost_does_not_come_back_when_the_wait_runs_out(recorder: Recorder) -> None:
    """The bridge starts when Consul's view has it already; a plain read does not, at the same index."""
    with FakeConsul() as consul:
        register(consul, "vm1", "10.20.0.1")
        register(consul, "vm2", "10.20.0.2")
        consul.streamed["gh"] = keeps(consul, "vm2")
        consul.change(lambda c: c.deregister({"Node": "vm2"}))
        with watching(consul, recorder, wait_seconds=0.3) as catalog:
            catalog.want(frozenset({GH}))
            assert recorder.wait(lambda: mismatches(recorder) == [GH])
            time.sleep(0.8)
            assert ever(recorder) == {("10.20.0.1",)}


def test_an_instance_that_the_view_keeps_goes_when_the_query_wakes_for_nothing(recorder: Recorder) -> None:
    with watched(recorder, "10.20.0.1", "10.20.0.2") as consul:
        consul.streamed["gh"] = keeps(consul, "vm2")
        consul.change(lambda c: c.deregister({"Node": "vm2"}))
        assert recorder.wait(lambda: addresses(recorder) == ["10.20.0.1"], 2.0)
        assert recorder.wait(lambda: mismatches(recorder) == [GH])


def test_what_hides_behind_a_change_that_explains_itself_is_found_soon_after_it(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two changes in one answer: one is believed, and so is the instance that was there before."""
    monkeypatch.setattr(comparison, "COMPARE_SECONDS", 1.0)
    with watched(recorder, "10.20.0.1", "10.20.0.2") as consul:
        consul.streamed["gh"] = keeps(consul, "vm2")

        def both(catalog: _Catalog) -> None:
            catalog.deregister({"Node": "vm2"})
            catalog.register(body("vm1", "10.20.0.1", "critical"))

        consul.change(both)
        assert recorder.wait(lambda: addresses(recorder) == ["10.20.0.1"])
        assert recorder.wait(lambda: mismatches(recorder) == [GH])


def test_ordinary_flips_and_registrations_cost_no_read_beyond_one_soon_after_them(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "COMPARE_SECONDS", 2.0)
    with watched(recorder, "10.20.0.1") as consul:
        began, before = time.monotonic(), plain_reads(consul)
        for n in range(6):
            register(consul, "vm1", "10.20.0.1", ("critical", "passing")[n % 2])
            wanted = (Status.CRITICAL, Status.PASSING)[n % 2]
            assert recorder.wait(lambda wanted=wanted: recorder.views[GH].instances[0].status is wanted)  # type: ignore[misc]
        register(consul, "vm3", "10.20.0.3")
        assert recorder.wait(lambda: len(addresses(recorder)) == 2)
        during, took = plain_reads(consul) - before, time.monotonic() - began
        assert during == 0 or took > 2.0
        assert eventually(lambda: plain_reads(consul) > before)
        time.sleep(2.5)
        assert plain_reads(consul) - before <= 2 + int(took / 2.0)  # one for each two seconds with changes
        assert mismatches(recorder) == []


@pytest.mark.parametrize("noticed", [True, False], ids=["the listing's query returns", "a write came in between"])
def test_a_restored_snapshot_is_seen_although_the_waiting_query_sleeps_on(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, noticed: bool
) -> None:
    """The listing and the nodes are what they were, so their indexes say nothing; only a check is older again."""
    monkeypatch.setattr(comparison, "INDEX_CHECK_SECONDS", 60.0 if noticed else 1.0)
    monkeypatch.setattr(comparison, "COMPARE_SECONDS", 0.5)
    with FakeConsul() as consul:
        register(consul, "vm1", "10.20.0.1", "critical")
        with watching(consul, recorder, wait_seconds=60.0) as catalog:
            catalog.want(frozenset({GH}))
            assert recorder.wait(lambda: addresses(recorder) == ["10.20.0.1"])
            snapshot = consul.save()
            register(consul, "vm1", "10.20.0.1", "passing")
            assert recorder.wait(lambda: recorder.views[GH].instances[0].status is Status.PASSING)
            if noticed:
                consul.restore(snapshot)
            else:
                snapshot.index = 1000
                snapshot.register({"Node": "other", "Address": "10.9.9.9", "Service": {"Service": "other", "ID": "o"}})
                consul.restore(snapshot)
            assert recorder.wait(lambda: recorder.views[GH].instances[0].status is Status.CRITICAL, 8.0)
            assert recorder.count("rebuilt") == 0


@pytest.mark.parametrize("connections", [64, 6], ids=["a direct watch", "aggregate_watches"])
def test_an_instance_that_gets_another_services_name_leaves_the_old_one(recorder: Recorder, connections: int) -> None:
    """Consul leaves the old service's index as it was: no probe sees it, and no waiting query of the catalog."""
    with FakeConsul() as consul:
        queries = fill(consul, 6, nodes=40)
        consul.register("s004", "vm-30", "10.0.0.31", 8000)  # else the listing would name the service that is gone
        old, new = Query("dc1", "s004"), Query("dc1", "s005")
        with watching(consul, recorder, wait_seconds=60.0, connections=connections) as catalog:
            catalog.want(queries)
            assert recorder.wait(known(recorder, queries))
            time.sleep(1.0)

            def change(catalog: _Catalog) -> None:
                service: dict[str, Any] = {"ID": "s004-vm-4", "Service": "s005", "Port": 8000}
                catalog.register({"Node": "vm-4", "SkipNodeUpdate": True, "Service": service})

            consul.change(change)
            assert recorder.wait(lambda: len(recorder.views[new].instances) == 2)
            assert recorder.wait(lambda: [i.node for i in recorder.views[old].instances] == ["vm-30"], 8.0)
            time.sleep(0.5)
            assert len(consul.asked("/v1/health/service/s004")) < 20
            assert mismatches(recorder) == []
