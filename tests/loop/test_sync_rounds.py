"""`bridge sync` when another process writes at the same time: the second round, and the account of both."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

from bridge.core.model import Change, Destination, Kind, Meta, Output, Rule
from bridge.errors import BridgeError, CancelledError, ExitStatus, TransientError
from bridge.kube.reads import list_once
from bridge.kube.writer import Writer
from bridge.oneshot import inputs
from bridge.oneshot.sync import sync_once
from bridge.report import Report, exit_status
from bridge.retry import RetryPolicy
from tests.support.fakes.consul import FakeConsul
from tests.support.fakes.kube import FakeKube
from tests.support.options import consul_config, kube_config, sync_options

P = ParamSpec("P")
T = TypeVar("T")
ONCE = RetryPolicy(attempts=1, initial_seconds=0.01, max_seconds=0.01)
COUNTS = {"calm": 24, "contended": 16}


class Harness:
    """Two services, 24 and 16 instances, in Endpoints alone."""

    def __init__(self, consul: FakeConsul, kube: FakeKube, folder: Path) -> None:
        self.consul = consul
        self.kube = kube
        self.kubeconfig = kube.kubeconfig(folder)
        for service, count in COUNTS.items():
            for n in range(count):
                consul.register(service, f"{service}-{n}", f"10.{len(service)}.0.{n + 1}", 80)

    def lose(self, service: str, count: int) -> None:
        for n in range(count):
            self.consul.deregister(service, f"{service}-{n}")

    def sync(self) -> Report:
        return sync_once(
            consul=consul_config(address=self.consul.address),
            kube=kube_config(kubeconfig=self.kubeconfig),
            rules=(Rule(to=Destination(namespace="default", output=Output.ENDPOINTS)),),
            options=sync_options(retry=ONCE),
            stop=threading.Event(),
        )

    def meddle(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """A user writes the Endpoints of `contended` just before the pass does, once; the list says when."""
        apply, done = Writer.apply, list[str]()

        def patched(writer: Writer, change: Change) -> Meta | None:
            if (change.kind, change.name) == (Kind.ENDPOINTS, "contended") and not done:
                done.append(change.name)
                body = self.kube.get("endpoints", "default", change.name)
                assert body is not None
                body["metadata"].setdefault("labels", {})["somebody"] = "was-here"
                self.kube.put("endpoints", body)
            return apply(writer, change)

        monkeypatch.setattr(Writer, "apply", patched)
        return done

    def ready(self) -> dict[str, int]:
        return {service: len(self.kube.ready_addresses("default", service) or ()) for service in COUNTS}


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    with FakeConsul() as consul, FakeKube() as kube:
        made = Harness(consul, kube, tmp_path)
        assert made.sync().failed == ()
        assert made.ready() == COUNTS
        yield made


def status(report: Report) -> int:
    return exit_status(report, dry_run=False, exit_code=False)


def test_what_was_let_go_in_the_first_round_is_not_held_in_the_second(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 of 40 endpoints go, which is not too much; that 14 of them have gone by then makes it no more than that."""
    harness.lose("calm", 14)
    harness.lose("contended", 2)
    met = harness.meddle(monkeypatch)
    report = harness.sync()
    assert (met, status(report), report.held, report.failed) == (["contended"], ExitStatus.OK, (), ())
    assert harness.ready() == {"calm": 10, "contended": 14}


@pytest.mark.parametrize("error", [TransientError("the server is down"), CancelledError("stopped")])
def test_a_second_round_that_cannot_be_read_leaves_the_account_of_the_first(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, error: BridgeError
) -> None:
    """What was written is reported, and what another process was faster with is the failure that it is."""
    harness.lose("calm", 1)
    harness.lose("contended", 1)
    met = harness.meddle(monkeypatch)
    monkeypatch.setattr(inputs, "list_once", once(list_once, error))
    report = harness.sync()
    assert (met, status(report)) == (["contended"], ExitStatus.FAILED)
    assert [(row.name, row.action) for row in report.changes] == [("calm", "update")]
    assert [row.name for row in report.failed] == ["contended"]
    assert harness.ready() == {"calm": 23, "contended": 16}


def once(function: Callable[P, T], error: Exception) -> Callable[P, T]:
    """The function, which works once and fails from then on."""
    left = [1]

    def patched(*args: P.args, **kwargs: P.kwargs) -> T:
        left[0] -= 1
        if left[0] < 0:
            raise error
        return function(*args, **kwargs)

    return patched
