"""A namespace that may not be listed: nothing is done there, everything else goes on, and it is taken in later."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from bridge.config import load
from bridge.controller.controller import Controller
from bridge.controller.options import RunOptions
from bridge.core.model import Destination, Rule
from bridge.daemon import Daemon
from bridge.errors import PermanentError
from bridge.kube import informer as cache_module
from bridge.oneshot.inspection import explain_once, status_once
from bridge.oneshot.purge import purge
from bridge.oneshot.sync import sync_once
from bridge.render.reports import failed_lines
from bridge.report import Report, exit_status
from bridge.retry import RetryPolicy
from bridge.telemetry.fan_out import FanOutObserver
from bridge.telemetry.logs import LogObserver, logger
from bridge.telemetry.metrics import Metrics
from tests.loop.test_engine_run import parts_of
from tests.support.fakes.consul import FakeConsul
from tests.support.fakes.kube import FakeKube, Fault
from tests.support.options import consul_config, kube_config, sync_options
from tests.support.running import quick_options, running

Eventually = Callable[..., None]
Json = dict[str, Any]
QUICK = RetryPolicy(initial_seconds=0.02, max_seconds=0.1, attempts=2)
OPTIONS = quick_options(QUICK, removal_grace_seconds=0.1, writers=2)
GOOD, BAD = Rule(services=("a",)), Rule(services=("b*",), to=Destination(namespace="apps"))


class Both:
    """Both sides: `a` goes to a namespace of ours, `b` to one that may be closed to us."""

    def __init__(self, consul: FakeConsul, kube: FakeKube, folder: Path) -> None:
        self.consul, self.kube = consul, kube
        self.sides: Json = {
            "consul": consul_config(address=consul.address),
            "kube": kube_config(kubeconfig=kube.kubeconfig(folder)),
        }

    def sync(self, **options: Any) -> Report:
        """One pass."""
        chosen = sync_options(retry=QUICK, **options)
        return sync_once(**self.sides, rules=(GOOD, BAD), options=chosen, stop=threading.Event())

    def ready(self, namespace: str, name: str) -> list[str] | None:
        """Ready addresses, None without Endpoints."""
        return self.kube.ready_addresses(namespace, name)

    def writes_in(self, namespace: str) -> list[str]:
        """Requests that would change something there."""
        found = [e for e in self.kube.log if e.namespace == namespace and e.verb in ("create", "patch", "delete")]
        return [f"{e.verb} {e.resource} {e.name}" for e in found if e.resource != "events"]

    def running(self, observer: Any = None, options: RunOptions = OPTIONS) -> AbstractContextManager[Controller]:
        """A bridge that runs."""
        return running(Controller(**self.sides, rules=(GOOD, BAD), options=options, observer=observer))


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Both]:
    """Two services in Consul, two namespaces; what is refused for good is asked again soon."""
    monkeypatch.setattr(cache_module, "PERMANENT_SECONDS", 0.2)
    with FakeConsul() as consul, FakeKube(("default", "apps")) as kube:
        consul.register("a", "vm-1", "10.0.0.1", 80)
        consul.register("b", "vm-2", "10.0.0.2", 80)
        yield Both(consul, kube, tmp_path)
        kube.clear_faults()


# --------------------------------------------------------------------------- one pass


@pytest.mark.parametrize("resource", ["services", "endpoints", "endpointslices"])
def test_one_pass_serves_the_others_and_reports_the_namespace(both: Both, resource: str) -> None:
    """Whichever of the lists is refused: nothing is made there, and what grants it is reported, for each target."""
    both.kube.forbid("admin", "list", resource, "apps")
    report = both.sync()
    (row,) = report.failed
    assert (both.ready("default", "a"), both.writes_in("apps")) == (["10.0.0.1"], [])
    assert (row.action, row.namespace, row.name, row.service, row.datacenter) == ("read", "apps", "b", "b", "dc1")
    assert f"forbids us to list {resource} in namespace apps. Grant it with a Role" in row.reason
    assert exit_status(report, dry_run=False, exit_code=False) == 1
    (line,) = failed_lines(report)
    assert line.startswith("reading namespace apps for b (what is there stays): Kubernetes")
    both.kube.allow()
    assert (both.sync().failed, both.ready("apps", "b")) == ((), ["10.0.0.2"])


def test_objects_in_a_namespace_that_cannot_be_read_are_unknown_not_absent(both: Both) -> None:
    """Its service has left Consul, a new one of a user's Service's name has come: neither a delete nor a conflict."""
    plain = {"metadata": {"name": "b-new", "namespace": "apps"}, "spec": {"ports": [{"port": 80, "protocol": "TCP"}]}}
    both.kube.put("services", plain)
    both.sync()
    both.consul.register("b-new", "vm-3", "10.0.0.3", 80)
    both.consul.deregister("b", "vm-2")
    both.kube.forbid("admin", "list", "services", "apps")
    before = len(both.writes_in("apps"))
    report = both.sync()
    assert (both.ready("apps", "b"), report.conflicts, len(both.writes_in("apps"))) == (["10.0.0.2"], (), before)
    assert sorted(row.name for row in report.failed) == ["b", "b-new"]
    both.kube.allow()
    report = both.sync()
    assert (both.ready("apps", "b"), [row.name for row in report.conflicts]) == (None, ["b-new"])


def test_a_namespace_in_which_nothing_is_wanted_is_reported_as_such(both: Both) -> None:
    """Users' Services may ask there, and no one could see that they do."""
    both.kube.forbid("admin", "list", "services", "apps")
    both.consul.deregister("b", "vm-2")
    report = both.sync()
    (row,) = report.failed
    assert (row.namespace, row.name, row.service) == ("apps", "", "")
    assert failed_lines(report)[0].startswith("reading namespace apps (what is there stays): ")


def test_when_no_namespace_may_be_listed_there_is_nothing_to_do(both: Both) -> None:
    """As with a single one: the command ends with the reason."""
    both.kube.forbid("admin", "list", "services")
    with pytest.raises(PermanentError, match="forbids us to list services in namespace apps"):
        both.sync()


def test_a_failure_that_passes_is_no_refusal(both: Both) -> None:
    """A 500 for one namespace ends the pass before anything is planned."""
    both.kube.inject(Fault(status=500), times=100, path="/namespaces/apps/services")
    with pytest.raises(Exception, match="answers 500"):
        both.sync()
    assert both.kube.writes() == []


def test_status_and_explain_show_the_others_and_say_what_cannot_be_read(both: Both) -> None:
    """The row of the target is unknown, not missing."""
    both.sync()
    both.kube.forbid("admin", "list", "services", "apps")
    asked: Json = {"rules": (GOOD, BAD), "options": sync_options(retry=QUICK), "stop": threading.Event()}
    status = status_once(**both.sides, **asked)
    assert [(row.name, row.state) for row in status.services] == [("b", "unknown"), ("a", "in_sync")]
    (trouble,) = status.trouble
    assert trouble.startswith("namespace apps: Kubernetes (")
    explained = explain_once("b", **both.sides, **asked)
    (explanation,), troubles = explained.explanations, explained.trouble
    assert (explanation.differences, troubles) == ((), status.trouble)
    assert [row.kubernetes for row in explanation.rows] == ["unknown"]  # it is there, and "absent" would be wrong


def test_purge_deletes_in_the_other_namespaces_and_reports_this_one(both: Both) -> None:
    """As a pass does; a Service that is changed meanwhile, or a server that fails once, is tried again."""
    both.sync()
    both.kube.forbid("admin", "list", "endpoints", "apps")
    both.kube.inject(Fault(status=503), times=1, path="/namespaces/default/services")
    sides: Json = {"rules": (), "options": sync_options(retry=QUICK), "stop": threading.Event()}
    report = purge(("apps", "default"), dry_run=False, **both.sides, **sides)
    assert (both.kube.get("services", "default", "a"), both.ready("apps", "b")) == (None, ["10.0.0.2"])
    assert [(row.action, row.namespace) for row in report.failed] == [("read", "apps")]
    assert {row.namespace for row in report.changes} == {"default"}


# --------------------------------------------------------------------------- the running bridge


def test_a_running_bridge_serves_the_others_and_takes_the_namespace_in_when_it_may(
    both: Both, eventually: Eventually
) -> None:
    """Said once in the log, in the readiness detail, in a metric and in the report; with all that exists."""
    both.consul.register("b-left", "vm-4", "10.0.0.4", 80)
    both.sync()
    both.consul.deregister("b-left", "vm-4")
    both.kube.ask("database", "apps", service="a")
    both.kube.forbid("admin", "list", "services", "apps")
    both.kube.forbid("admin", "list", "endpoints", "apps")
    before, metrics = len(both.writes_in("apps")), Metrics("1")

    def unreadable() -> float | None:
        return metrics.registry.get_sample_value("consul_bridge_forbidden_namespaces")

    with capture_logs() as logs, both.running(FanOutObserver(LogObserver(logger()), metrics)) as bridge:
        eventually(lambda: bridge.ready()[0], True, 20)
        both.consul.register("a", "vm-5", "10.0.0.5", 80)
        both.consul.register("b", "vm-6", "10.0.0.6", 80)
        eventually(lambda: both.ready("default", "a"), ["10.0.0.1", "10.0.0.5"])
        eventually(unreadable, 1.0)
        detail, report = bridge.ready()[1], bridge.status()["report"]
        assert (detail["kubernetes"], list(detail["forbidden_namespaces"])) == ("ok", ["apps"])
        eventually(
            lambda: "The same is refused for endpoints;" in bridge.ready()[1]["forbidden_namespaces"]["apps"],
            True,
        )
        assert {(row["namespace"], row["name"]) for row in report["failed"]} == {("apps", n) for n in ("b", "b-left")}
        assert {(row.name, row.state) for row in bridge.services()} >= {("a", "in_sync"), ("b", "unknown")}
        assert len(both.writes_in("apps")) == before
        both.kube.allow()
        eventually(lambda: both.ready("apps", "b"), ["10.0.0.2", "10.0.0.6"])
        eventually(lambda: both.ready("apps", "database"), ["10.0.0.1", "10.0.0.5"])
        eventually(lambda: both.ready("apps", "b-left"), None)
        eventually(unreadable, 0.0)
        assert "forbidden_namespaces" not in bridge.ready()[1]
        assert bridge.status()["report"]["failed"] == []
    said = [(e["event"], e["namespace"]) for e in logs if e["event"].startswith("namespace ")]
    assert said == [("namespace cannot be read; nothing is done there", "apps"), ("namespace can be read", "apps")]


def test_a_namespace_that_is_taken_in_late_is_doubted_as_at_the_start(both: Both, eventually: Eventually) -> None:
    """The existing objects show what a Consul lacks that was rebuilt while no one watched."""
    for n in range(3):
        both.consul.register(f"b-{n}", f"vm-b{n}", f"10.0.1.{n + 1}", 80)
    both.sync()
    for n in range(3):
        both.consul.deregister(f"b-{n}", f"vm-b{n}")
    both.kube.forbid("admin", "list", "services", "apps")
    with both.running() as bridge:
        eventually(lambda: list(bridge.ready()[1].get("forbidden_namespaces", {})), ["apps"], 20)
        eventually(lambda: bridge.ready()[0], True, 20)
        both.kube.allow()
        eventually(lambda: len(bridge.ready()[1]["held"]), 3, 20)
        assert "when its namespaces could be read it lists 2 of the 5 services" in bridge.ready()[1]["held"][0]
        assert [both.ready("apps", f"b-{n}") for n in range(3)] == [[f"10.0.1.{n + 1}"] for n in range(3)]


def test_a_server_that_forbids_only_at_its_start_is_waited_for(both: Both, eventually: Eventually) -> None:
    """It has not read its roles yet: nothing is called unreadable, nothing is planned before."""
    both.kube.inject(Fault(status=403), times=8, path="/namespaces/.*/services")
    with capture_logs() as logs, both.running(LogObserver(logger())) as bridge:
        eventually(lambda: both.ready("apps", "b"), ["10.0.0.2"], 20)
        assert "forbidden_namespaces" not in bridge.ready()[1]
    assert [e for e in logs if e["event"].startswith("namespace ")] == []


def test_a_failure_that_passes_still_keeps_the_first_pass_waiting(both: Both, eventually: Eventually) -> None:
    """However often: a server in trouble is no refusal."""
    both.kube.inject(Fault(status=500), times=100_000, path="/namespaces/apps/services")
    with both.running() as bridge:
        eventually(lambda: sum(e.status == 500 for e in both.kube.log) > 20, True, 20)
        assert (bridge.ready()[1]["first_pass_done"], both.kube.writes()) == (False, [])
        both.kube.clear_faults()
        eventually(lambda: (both.ready("default", "a"), both.ready("apps", "b")), (["10.0.0.1"], ["10.0.0.2"]), 20)


def test_a_bridge_that_may_list_nothing_waits_and_reports_it(both: Both, eventually: Eventually) -> None:
    """As it always did."""
    both.kube.forbid("admin", "list", "services")
    with both.running() as bridge:
        eventually(lambda: sum(e.status == 403 for e in both.kube.log) > 25, True, 20)
        ready, detail = bridge.ready()
        assert (ready, detail["first_pass_done"], "forbidden_namespaces" in detail) == (False, False, False)
        assert "forbids us to list services" in detail["kubernetes"]
        both.kube.allow()
        eventually(lambda: (both.ready("default", "a"), both.ready("apps", "b")), (["10.0.0.1"], ["10.0.0.2"]), 20)


def test_a_resync_does_not_wait_for_the_namespace(both: Both, eventually: Eventually) -> None:
    """What is read again is read; a refusal that is known delays nothing."""
    both.kube.forbid("admin", "list", "services", "apps")
    with both.running() as bridge:
        eventually(lambda: bridge.ready()[0], True, 20)
        eventually(lambda: parts_of(bridge).informer.refresh(0.5), True)


def test_a_reload_that_adds_such_a_namespace_does_not_stop_the_work(both: Both, eventually: Eventually) -> None:
    """The bridge that follows serves what the one before it served, and the new one as soon as it may."""
    both.kube.forbid("admin", "list", "services", "apps")
    environ = {
        "BRIDGE_CONSUL_ADDRESS": both.consul.address, "KUBECONFIG": both.sides["kube"].kubeconfig,
        "BRIDGE_RETRY_KUBERNETES_INITIAL_INTERVAL": "20ms", "BRIDGE_RETRY_KUBERNETES_MAX_INTERVAL": "100ms",
        "BRIDGE_REMOVAL_GRACE_PERIOD": "100ms",
    }  # fmt: skip
    whole = load(environ=environ)
    rules: list[tuple[Rule, ...]] = [(GOOD,)]
    daemon = Daemon(
        whole, load=lambda: whole, rules_of=lambda _settings: rules[0], observer=LogObserver(logger()), log=logger()
    )
    thread = threading.Thread(target=daemon.run, name="daemon")
    thread.start()
    try:
        eventually(lambda: both.ready("default", "a"), ["10.0.0.1"], 20)
        rules[0] = (GOOD, BAD)
        daemon.reload()
        eventually(lambda: list(daemon.ready()[1].get("forbidden_namespaces", {})), ["apps"], 20)
        both.consul.register("a", "vm-5", "10.0.0.5", 80)
        eventually(lambda: both.ready("default", "a"), ["10.0.0.1", "10.0.0.5"])
        both.kube.allow()
        eventually(lambda: both.ready("apps", "b"), ["10.0.0.2"])
        rules[0] = (GOOD,)  # the last rule of a namespace goes like any other
        daemon.reload()
        eventually(lambda: both.kube.get("services", "apps", "b"), None, 20)
        assert both.ready("default", "a") == ["10.0.0.1", "10.0.0.5"]
    finally:
        daemon.stop()
        thread.join(10)
    assert not thread.is_alive()
