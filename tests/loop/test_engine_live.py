"""What the running bridge says of its services to the page, between a fake Consul and a fake Kubernetes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bridge.core.service_state import ServiceRow
from tests.loop.test_engine_run import Running, parts_of
from tests.support.fakes.consul import FakeConsul
from tests.support.fakes.kube import FakeKube
from tests.support.fakes.kube import Fault as KubeFault
from tests.support.options import guard_settings
from tests.support.running import OPTIONS

Eventually = Callable[..., None]
SECONDS = 30.0


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """A bridge, not started yet, whose guard holds as soon as half of four endpoints would go."""
    guard = guard_settings(removal_minimum=2)
    with FakeConsul() as consul, FakeKube() as kube:
        made = Running(consul, kube, tmp_path, replace(OPTIONS, guard=guard))
        yield made
        kube.clear_faults()
        if made.thread.ident is not None:
            made.stop()


def rows(running: Running) -> dict[str, tuple[tuple[int, int], tuple[int, int], str]]:
    """By name: ready and not ready in Consul and in Kubernetes, and the state."""
    return {r.name: _short(r) for r in running.bridge.services()}


def _short(row: ServiceRow) -> tuple[tuple[int, int], tuple[int, int], str]:
    return (row.consul_ready, row.consul_not_ready), (row.kubernetes_ready, row.kubernetes_not_ready), row.state


def test_nothing_is_reported_before_the_first_pass(running: Running) -> None:
    """The page is served earlier than that."""
    bridge = running.bridge
    assert (bridge.services(), bridge.unmirrored(), bridge.explain("default", "web")) == ([], (), None)
    assert running.bridge.state()["first_pass_done"] is False


def test_rows_follow_both_sides(running: Running, eventually: Eventually) -> None:
    """In sync, with an unhealthy instance, and gone again with the service."""
    for n in range(3):
        running.consul.register("web", f"vm-{n}", f"10.0.0.{n + 1}", 80)
    running.start()
    eventually(lambda: rows(running), {"web": ((3, 0), (3, 0), "in_sync")}, SECONDS)
    running.consul.register("web", "vm-1", "10.0.0.2", 80, status="critical")
    eventually(lambda: rows(running), {"web": ((2, 1), (2, 1), "in_sync")}, SECONDS)
    explanation = running.bridge.explain("default", "web")
    assert explanation is not None
    assert [(r.instance.split("/")[0], r.disposition, r.kubernetes) for r in explanation[0].rows] == [
        ("vm-1", "not ready", "not ready"), ("vm-0", "ready", "ready"), ("vm-2", "ready", "ready"),
    ]  # fmt: skip
    assert running.bridge.explain("default", "nix") is None


def test_a_row_is_the_same_object_until_something_changes(running: Running, eventually: Eventually) -> None:
    """That is what makes thousands of them cheap."""
    running.consul.register("web", "vm-1", "10.0.0.1", 80)
    running.consul.register("db", "vm-1", "10.0.0.1", 5432)
    running.start()
    eventually(lambda: [s[2] for s in rows(running).values()], ["in_sync", "in_sync"], SECONDS)
    before = running.bridge.services()
    assert all(a is b for a, b in zip(before, running.bridge.services(), strict=True))
    running.consul.register("web", "vm-2", "10.0.0.2", 80)
    eventually(lambda: rows(running)["web"], ((2, 0), (2, 0), "in_sync"), SECONDS)
    after = running.bridge.services()
    assert (after[0] is before[0], after[1] is before[1]) == (True, False)


def test_a_write_that_fails_is_reported_and_forgotten(running: Running, eventually: Eventually) -> None:
    """With the server's reason; in sync again as soon as it is written."""
    running.start()
    running.kube.inject(KubeFault(status=403), times=10_000, method="PATCH", path=r"/endpoint\w+/web")
    running.consul.register("web", "vm-1", "10.0.0.1", 80)
    eventually(lambda: rows(running), {"web": ((1, 0), (0, 0), "failed")}, SECONDS)
    assert running.bridge.services()[0].detail
    running.kube.clear_faults()
    eventually(lambda: rows(running), {"web": ((1, 0), (1, 0), "in_sync")}, SECONDS)


def test_a_hold_shows_what_consul_has_and_what_is_kept(running: Running, eventually: Eventually) -> None:
    """One instance is left in Consul, four stand in Kubernetes, and the explanation names those without an instance."""
    for n in range(4):
        running.consul.register("web", f"vm-{n}", f"10.0.0.{n + 1}", 80)
    running.start()
    eventually(lambda: rows(running), {"web": ((4, 0), (4, 0), "in_sync")}, SECONDS)
    for n in range(1, 4):
        running.consul.deregister("web", f"vm-{n}")
    eventually(lambda: (rows(running)["web"][0], rows(running)["web"][2]), ((1, 0), "held"), SECONDS)
    row = running.bridge.services()[0]
    assert row.kubernetes_ready > row.consul_ready
    assert re.fullmatch(r"\d ready endpoints? kept: too many would vanish at once", row.detail)
    explanation = running.bridge.explain("default", "web")
    assert explanation is not None
    assert "Consul no longer lists" in explanation[0].held[0]
    assert len(explanation[0].unaccounted) == row.kubernetes_ready - 1
    for n in range(1, 4):
        running.consul.register("web", f"vm-{n}", f"10.0.0.{n + 1}", 80)
    eventually(lambda: rows(running), {"web": ((4, 0), (4, 0), "in_sync")}, SECONDS)


def test_a_service_that_is_gone_and_held_shows_what_is_kept(running: Running, eventually: Eventually) -> None:
    """Nothing in Consul tells where it was; the page explains it all the same."""
    for n in range(4):
        running.consul.register("web", f"vm-{n}", f"10.0.0.{n + 1}", 80)
    running.start()
    eventually(lambda: rows(running), {"web": ((4, 0), (4, 0), "in_sync")}, SECONDS)
    for n in range(4):
        running.consul.deregister("web", f"vm-{n}")

    def gone() -> bool:
        explanations = running.bridge.explain("default", "web") or ()
        return [e.problem for e in explanations] == ["dc1 does not list a service of this name"]

    eventually(gone, True, SECONDS)
    eventually(lambda: rows(running)["web"][2], "held", SECONDS)
    explanation = (running.bridge.explain("default", "web") or ())[0]
    assert (explanation.target, len(explanation.unaccounted), len(explanation.held)) == ("default/web", 4, 1)


def test_what_is_gone_is_forgotten(running: Running, eventually: Eventually) -> None:
    """Names that come and go do not pile up, in the rows or behind them."""
    running.start()
    for n in range(5):
        running.consul.register(f"web-{n}", "vm-1", "10.0.0.1", 80)
    eventually(lambda: [row[2] for row in rows(running).values()], ["in_sync"] * 5, SECONDS)
    for n in range(2):
        running.consul.deregister(f"web-{n}", "vm-1")
        eventually(lambda: min(rows(running)), f"web-{n + 1}", SECONDS)
    eventually(
        lambda: sorted(t.name for t in parts_of(running.bridge).results.all()), ["web-2", "web-3", "web-4"], SECONDS
    )
    assert running.ready("web-0") is None
