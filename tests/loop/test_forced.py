"""`bridge sync --force` beside a running bridge that holds, between a fake Consul and a fake Kubernetes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bridge.controller.controller import Controller
from bridge.core.model import Change, Destination, Kind, Meta, Output, Rule
from bridge.core.reasons import Code
from bridge.errors import ExitStatus, TransientError
from bridge.kube.members import ElectionConfig
from bridge.kube.writer import Writer
from bridge.oneshot.inspection import status_once
from bridge.oneshot.sync import sync_once
from bridge.report import Report, exit_status
from bridge.retry import RetryPolicy
from tests.support.fakes.consul import FakeConsul
from tests.support.fakes.kube import FakeKube, Fault
from tests.support.options import consul_config, kube_config, sync_options
from tests.support.running import OPTIONS

Eventually = Callable[..., None]
ONCE = RetryPolicy(attempts=1, initial_seconds=0.05)
NAME, COUNT, LEFT = "web", 12, 2


class Beside:
    """A bridge that runs in a thread and holds most of one service, and forced passes beside it."""

    def __init__(
        self, consul: FakeConsul, kube: FakeKube, folder: Path, output: Output, election: ElectionConfig | None = None
    ) -> None:
        self.consul = consul
        self.kube = kube
        self.kubeconfig = kube.kubeconfig(folder)
        self.rules = (Rule(to=Destination(namespace="default", output=output, max_endpoints_per_slice=5)),)
        self.bridge = Controller(
            consul=consul_config(address=consul.address),
            kube=kube_config(kubeconfig=self.kubeconfig),
            rules=self.rules,
            options=replace(OPTIONS, writers=2, election=election),
        )
        self.thread = threading.Thread(target=self.bridge.run, name="bridge")

    def hold(self, eventually: Eventually) -> None:
        for n in range(COUNT):
            self.consul.register(NAME, f"vm-{n}", address(n), 80)
        self.thread.start()
        eventually(self.addresses, {address(n) for n in range(COUNT)}, 20)
        for n in range(LEFT, COUNT):
            self.consul.deregister(NAME, f"vm-{n}")
        eventually(self.held, 1, 60)

    def held(self) -> int:
        return len(self.bridge.ready()[1].get("held", ()))

    def force(self) -> Report:
        return self.sync(force=True)

    def sync(self, **options: Any) -> Report:
        return sync_once(**self.sides(**options))

    def sides(self, **options: Any) -> dict[str, Any]:
        return {
            "consul": consul_config(address=self.consul.address),
            "kube": kube_config(kubeconfig=self.kubeconfig),
            "rules": self.rules,
            "options": sync_options(retry=ONCE, **options),
            "stop": threading.Event(),
        }

    def addresses(self) -> set[str]:
        """All that stands in objects of ours."""
        found = set(self.kube.ready_addresses("default", NAME) or ())
        slices = [body for (_, name), body in self.slices().items() if name.startswith(NAME)]
        return found | {e["addresses"][0] for body in slices for e in body["endpoints"]}

    def slices(self) -> dict[tuple[str, str], dict]:  # type: ignore[type-arg]
        listed = self.kube.listing(("discovery.k8s.io", "endpointslices"), "default", {})["items"]
        return {(i["metadata"]["namespace"], i["metadata"]["name"]): i for i in listed}


def address(number: int) -> str:
    return f"10.0.0.{number + 1}"


@pytest.fixture(params=[Output.BOTH, Output.ENDPOINTSLICES, Output.ENDPOINTS])
def beside(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Beside]:
    with FakeConsul() as consul, FakeKube() as kube:
        made = Beside(consul, kube, tmp_path, request.param)
        yield made
        made.bridge.stop()
        if made.thread.ident is not None:
            made.thread.join(20)
        assert not made.thread.is_alive()


@pytest.mark.parametrize("forbidden", [False, True])
def test_a_plain_pass_takes_nothing_away_while_a_bridge_runs_that_may_hold_it(
    tmp_path: Path, eventually: Eventually, forbidden: bool
) -> None:
    """12 of 20 endpoints go within the minute, most of them before the bridge holds the last: alone those are few.

    As the Lease says; where Leases may not be listed the pass goes by its own guard. Status judges as the pass does.
    """
    election = ElectionConfig(duration_seconds=3)
    with FakeConsul() as consul, FakeKube() as kube:
        harness = Beside(consul, kube, tmp_path, Output.BOTH, election)
        for n in range(20):
            consul.register(NAME, f"vm-{n}", address(n), 80)
        harness.thread.start()
        try:
            eventually(lambda: len(harness.addresses()), 20, 30)
            for n in range(9):
                consul.deregister(NAME, f"vm-{n}")
            eventually(lambda: len(harness.addresses()), 11, 30)
            for n in range(9, 12):
                consul.deregister(NAME, f"vm-{n}")
            eventually(harness.held, 1, 30)
            kept = harness.addresses()
            if forbidden:
                kube.inject(Fault(status=403), 99, "GET", "leases")
            report = harness.sync(dry_run=forbidden)
            assert [row.cause for row in report.held] == ([] if forbidden else [Code.HELD_RUNNING])
            assert (harness.addresses(), bool(report.changes)) == (kept, forbidden)
            assert [row.state for row in status_once(**harness.sides()).services] == [
                "out_of_sync" if forbidden else "held"
            ]
        finally:
            harness.bridge.stop()
            harness.thread.join(20)
        assert not harness.thread.is_alive()
        assert (harness.sync().held, len(harness.addresses())) == ((), 8)


def stays(check: Callable[[], object], expected: object, seconds: float) -> None:
    """Something is so all the time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert check() == expected
        time.sleep(0.02)


def test_a_forced_pass_beside_a_bridge_that_holds_is_not_undone(
    beside: Beside, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the pass takes between two writes (the bridge sees each of them), with every output."""
    beside.hold(eventually)
    slowly(monkeypatch, seconds=0.3)
    report = beside.force()
    wanted = {address(n) for n in range(LEFT)}
    assert (exit_status(report, dry_run=False, exit_code=False), beside.addresses()) == (ExitStatus.OK, wanted)
    eventually(beside.held, 0, 60)
    stays(beside.addresses, wanted, 3.0)


def test_a_forced_pass_that_dies_after_its_first_write_is_finished(
    beside: Beside, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the bridge, a few seconds later."""
    beside.hold(eventually)
    slowly(monkeypatch, writes=1)
    beside.force()
    monkeypatch.undo()
    eventually(lambda: (beside.addresses(), beside.held()), ({address(n) for n in range(LEFT)}, 0), 60)


def test_what_another_process_changed_meanwhile_is_read_and_planned_again(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync does not fail of a write that came before its own."""
    for n in range(COUNT):
        beside.consul.register(NAME, f"vm-{n}", address(n), 80)
    beside.force()
    beside.consul.deregister(NAME, "vm-0")
    apply, left = Writer.apply, [1]

    def meddling(self: Writer, change: Change) -> Meta | None:
        if change.kind is not Kind.SERVICE and left[0]:
            left[0] -= 1
            kind = "endpoints" if change.kind is Kind.ENDPOINTS else "endpointslices"
            body = beside.kube.get(kind, "default", change.name)
            assert body is not None
            body["metadata"].setdefault("labels", {})["somebody"] = "was-here"
            beside.kube.put(kind, body)
        return apply(self, change)

    monkeypatch.setattr(Writer, "apply", meddling)
    report = beside.force()
    assert (left, exit_status(report, dry_run=False, exit_code=False), report.failed) == ([0], ExitStatus.OK, ())
    assert (address(0) in beside.addresses(), len(beside.addresses())) == (False, COUNT - 1)


def slowly(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0, writes: int = 1000) -> None:
    """The main thread's pass waits before each write, and fails after so many of them; the bridge's does not."""
    apply, left = Writer.apply, [writes]

    def patched(self: Writer, change: Change) -> Meta | None:
        if threading.current_thread().name.startswith("writer_"):  # of the pool that `sync` writes with
            time.sleep(seconds)
            left[0] -= 1
            if left[0] < 0:
                raise TransientError("the pass died")
        return apply(self, change)

    monkeypatch.setattr(Writer, "apply", patched)
