"""Without the right to write EndpointSlices: Endpoints go on as they did, what is missing is reported, and it ends by itself."""  # noqa: E501

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bridge.controller.controller import Controller
from bridge.core.model import Destination, InstanceRules, Output, Policy, Rule, Treatment
from bridge.errors import TransientError
from bridge.oneshot.inspection import status_once
from bridge.oneshot.sync import sync_once
from bridge.pipeline import slice_rights
from bridge.pipeline.slice_rights import SliceRights
from bridge.telemetry.fan_out import FanOutObserver
from bridge.telemetry.logs import LogObserver, logger
from bridge.telemetry.metrics import Metrics
from tests.loop.test_engine_run import Running
from tests.support.fakes.consul import FakeConsul
from tests.support.fakes.kube import FakeKube
from tests.support.options import consul_config, kube_config, sync_options
from tests.support.running import OPTIONS, QUICK

Eventually = Callable[..., None]
SKIP_MIRROR = "endpointslice.kubernetes.io/skip-mirror"
SLICE_MANAGER = "endpointslice.kubernetes.io/managed-by"
RULE = Rule(to=Destination(namespace="default"))
METRIC = "consul_bridge_endpointslices_forbidden_namespaces"


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A bridge, not started yet, on a cluster where Endpoints stand that an earlier one with `endpoints` wrote."""
    monkeypatch.setattr(slice_rights, "RECHECK_SECONDS", 0.2)
    with FakeConsul() as consul, FakeKube() as kube:
        kube.mirroring = True
        consul.register("web", "vm-1", "10.0.0.1", 80)
        made = Running(consul, kube, tmp_path)
        synced(made, Rule(to=Destination(namespace="default", output=Output.ENDPOINTS)))
        for verb in ("create", "patch"):
            kube.forbid("admin", verb, "endpointslices")
        yield made
        if made.thread.ident is not None:
            made.stop()


def sides(running: Running) -> dict[str, object]:
    return {
        "consul": consul_config(address=running.consul.address),
        "kube": kube_config(kubeconfig=running.kubeconfig),
        "options": sync_options(retry=QUICK),
        "stop": threading.Event(),
    }


def synced(running: Running, rule: Rule = RULE) -> tuple[int, list[str]]:
    """Failures of one pass, and the codes of its warnings."""
    report = sync_once(**sides(running), rules=(rule,))  # type: ignore[arg-type]  # a dictionary has one type
    return report.summary.failed, [row.to_json()["reason"] for row in report.warnings]


def mirrored(running: Running, service: str = "web") -> bool:
    """Whether the control plane is to mirror the Endpoints."""
    found = running.kube.get("endpoints", "default", service)
    assert found is not None
    return SKIP_MIRROR not in found["metadata"]["labels"]


def sliced(running: Running) -> list[str]:
    """Addresses in slices of ours."""
    keys = list(running.kube.objects["discovery.k8s.io", "endpointslices"])
    found = [running.kube.get("endpointslices", *key) for key in keys]
    slices = [s for s in found if s and s["metadata"]["labels"][SLICE_MANAGER] == "consul-bridge"]
    return sorted(e["addresses"][0] for s in slices if s for e in s.get("endpoints") or [])


def test_a_pass_goes_on_with_endpoints_and_says_what_is_missing(running: Running) -> None:
    """Nothing fails, nothing is refused, and the Endpoints stay mirrored; the status says the same."""
    running.consul.register("web", "vm-2", "10.0.0.2", 80)
    before = len(running.kube.log)
    assert synced(running) == (0, ["slices_forbidden"])
    assert (running.ready("web"), mirrored(running), sliced(running)) == (["10.0.0.1", "10.0.0.2"], True, [])
    assert [e for e in running.kube.log[before:] if e.status == 403] == []
    (row,) = status_once(**sides(running), rules=(RULE,)).services  # type: ignore[arg-type]
    assert row.state == "in_sync"
    assert "the bridge may not create, patch endpointslices in namespace default" in row.detail
    running.kube.allow()
    assert synced(running) == (0, [])
    assert (mirrored(running), sliced(running)) == (False, ["10.0.0.1", "10.0.0.2"])


def test_a_running_bridge_goes_on_and_writes_slices_once_it_may(running: Running, eventually: Eventually) -> None:
    """Said in the log, in readiness (which stays yes) and in a metric; granted, no restart is needed."""
    metrics = Metrics("1")
    running.bridge = Controller(
        consul=consul_config(address=running.consul.address),
        kube=kube_config(kubeconfig=running.kubeconfig),
        rules=(RULE,),
        options=OPTIONS,
        observer=FanOutObserver(LogObserver(logger()), metrics),
    )
    with capture_logs() as logs:
        running.start()
        running.consul.register("web", "vm-2", "10.0.0.2", 80)
        eventually(lambda: running.ready("web"), ["10.0.0.1", "10.0.0.2"])
        eventually(lambda: metrics.registry.get_sample_value(METRIC), 1.0)
        ready, detail = running.bridge.ready()
        assert (ready, mirrored(running), sliced(running)) == (True, True, [])
        text = "create, patch endpointslices in namespace default"
        assert detail["endpointslices_forbidden"] == {"default": text}
        running.kube.allow()
        eventually(lambda: (sliced(running), mirrored(running)), (["10.0.0.1", "10.0.0.2"], False), 10)
        eventually(lambda: metrics.registry.get_sample_value(METRIC), 0.0)
        assert "endpointslices_forbidden" not in running.bridge.ready()[1]
    said = [(e["event"].partition(",")[0], e.get("lacking", "")) for e in logs if "EndpointSlices" in e["event"]]
    assert said == [("EndpointSlices may not be written", text), ("EndpointSlices may be written", "")]
    assert [e for e in logs if e["event"] == "write failed"] == []


def test_a_right_that_is_taken_away_while_it_runs_is_noticed_by_the_first_refusal(
    running: Running, eventually: Eventually
) -> None:
    """The Endpoints are mirrored again, so what comes from then on is reached."""
    running.kube.allow()
    running.start()
    eventually(lambda: (sliced(running), mirrored(running)), (["10.0.0.1"], False))
    running.kube.forbid("admin", "patch", "endpointslices")
    running.consul.register("web", "vm-2", "10.0.0.2", 80)
    eventually(lambda: (running.ready("web"), mirrored(running)), (["10.0.0.1", "10.0.0.2"], True), 15)


def test_a_service_without_endpoints_depends_on_the_right_as_well(running: Running) -> None:
    """Its Endpoints are mirrored and it is reported, so nothing turns over with the first instance."""
    running.consul.register("empty", "vm-1", "10.0.0.3", 80, status="critical")
    rule = replace(RULE, instances=InstanceRules(critical=Treatment.OMIT))
    assert synced(running, rule) == (0, ["slices_forbidden", "slices_forbidden"])
    assert (running.ready("empty"), mirrored(running, "empty")) == ([], True)
    before = len(running.kube.writes())
    assert synced(running, rule) == (0, ["slices_forbidden", "slices_forbidden"])
    assert running.kube.writes()[before:] == []


def test_without_the_right_to_delete_slices_they_are_written_and_emptied_until_it_is_granted(
    running: Running, eventually: Eventually
) -> None:
    """An instance that dies leaves our slice at once, and the Endpoints need not carry anything alone."""
    running.kube.allow()
    running.consul.register("web", "vm-2", "10.0.0.2", 81)
    running.kube.forbid("admin", "delete", "endpointslices")
    running.start()
    eventually(lambda: (sliced(running), mirrored(running)), (["10.0.0.1", "10.0.0.2"], False))
    running.consul.deregister("web", "vm-2")
    eventually(lambda: (sliced(running), mirrored(running)), (["10.0.0.1"], False))
    assert len(running.kube.objects["discovery.k8s.io", "endpointslices"]) == 2
    assert "endpointslices_forbidden" not in running.bridge.ready()[1]
    running.kube.allow()
    eventually(lambda: len(running.kube.objects["discovery.k8s.io", "endpointslices"]), 1, 10)


def test_a_server_that_does_not_answer_is_not_asked_by_each_target() -> None:
    """What was known stays true for a while; nothing known means allowed."""
    asked: list[str] = []
    now = 0.0
    answers: list[bool | TransientError] = [TransientError("away"), False, True, TransientError("away"), True, True]

    def can_i(verb: str, _namespace: str) -> bool:
        asked.append(verb)
        answer = answers.pop(0)
        if isinstance(answer, TransientError):
            raise answer
        return answer

    rights = SliceRights(can_i, Policy.UPSERT_ONLY, lambda: now)
    assert [rights.missing("a"), rights.missing("a"), asked] == [(), (), ["create"]]
    now = 5.0
    assert (rights.missing("a"), rights.forbidden()) == (
        ("create",), {"a": "create endpointslices in namespace a"},
    )  # fmt: skip
    now = 30.0
    assert rights.granted() == set()  # no server answers
    now = 60.0
    assert (rights.granted(), rights.forbidden(), answers) == ({"a"}, {}, [])


class Server:
    """Answers questions, and counts them."""

    def __init__(self, *allowed: str, away: bool = False) -> None:
        self.allowed, self.away, self.now = set(allowed), away, 0.0
        self.asked: list[str] = []
        self.namespaces = [f"n-{n:03}" for n in range(200)]

    def can_i(self, _verb: str, namespace: str) -> bool:
        self.asked.append(namespace)
        if self.away:
            raise TransientError("away")
        return namespace in self.allowed

    def rights(self, **options: bool) -> SliceRights:
        return SliceRights(self.can_i, Policy.SYNC, lambda: self.now, **options)

    def questions(self) -> int:
        """Since it was last counted."""
        asked, self.asked = len(self.asked), []
        return asked


def test_many_forbidden_namespaces_are_asked_for_again_a_few_at_a_time() -> None:
    """The supervisor waits for the answers; plans never ask again for what was missing."""
    server = Server()
    rights = server.rights()
    for namespace in server.namespaces:
        rights.missing(namespace)
    assert server.questions() == 600
    server.now = 100.0
    assert all(rights.missing(namespace) for namespace in server.namespaces)
    assert server.questions() == 0
    assert (rights.granted(), rights.granted()) == (set(), set())
    assert 0 < server.questions() <= 12
    server.allowed = set(server.namespaces)
    found: set[str] = set()
    while server.now < 130.0:
        server.now += 0.5
        found |= rights.granted()
    assert (found, rights.forbidden()) == (set(server.namespaces), {})


def test_a_server_that_does_not_answer_is_not_asked_for_each_namespace() -> None:
    """One question, and a pause; then the next."""
    server = Server(away=True)
    rights = server.rights()
    assert [rights.missing(namespace) for namespace in server.namespaces] == [()] * 200
    assert server.questions() == 1
    server.now, server.away = 5.0, False
    assert rights.missing("n-000") == ("create", "patch", "delete")


def test_where_all_namespaces_are_watched_a_cluster_role_is_asked_for_once() -> None:
    """Also when it comes later; a namespace that refuses all the same is asked for by itself."""
    server = Server("")
    rights = server.rights(everywhere=True)
    assert [rights.missing(namespace) for namespace in server.namespaces] == [()] * 200
    assert server.questions() == 3
    rights.refused("n-007")
    assert (rights.missing("n-007"), rights.missing("n-008")) == (("create", "patch", "delete"), ())
    late = Server()
    rights = late.rights(everywhere=True)
    for namespace in late.namespaces:
        assert rights.missing(namespace)
    late.allowed, late.now = {""}, 10.0
    late.questions()
    assert (rights.granted(), rights.forbidden()) == (set(late.namespaces), {})
    assert late.questions() == 3
    assert rights.missing("n-000") == ()
