"""`bridge run` between a real Consul and a real Kubernetes, in quiet and in trouble."""

from __future__ import annotations

import random
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.lab import Lab, free_port
from tests.support.program import Daemon, environment, put
from tests.support.raw import ENDPOINTS, SERVICES, RawConsul, RawKube, not_ready_addresses, ready_addresses

pytestmark = [pytest.mark.lab, pytest.mark.slow]

Eventually = Callable[..., None]


def test_a_service_lives_through_all_its_states(
    daemon: Daemon, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Eventually
) -> None:
    """Registered, unhealthy, well, moved, deregistered, gone: Kubernetes follows each step."""
    name = f"{prefix}web"

    def state() -> object:
        endpoints = kube.endpoints(namespace, name)
        return None if endpoints is None else (ready_addresses(endpoints), not_ready_addresses(endpoints))

    consul.register(name, f"{prefix}vm-1", "10.77.1.1", 80)
    consul.register(name, f"{prefix}vm-2", "10.77.1.2", 80)
    eventually(state, ([("10.77.1.1", 80), ("10.77.1.2", 80)], []))
    consul.flip(name, f"{prefix}vm-1", "critical")
    eventually(state, ([("10.77.1.2", 80)], [("10.77.1.1", 80)]))
    consul.flip(name, f"{prefix}vm-1", "passing")
    eventually(state, ([("10.77.1.1", 80), ("10.77.1.2", 80)], []))
    consul.register(name, f"{prefix}vm-2", "10.77.1.22", 81)
    eventually(state, ([("10.77.1.1", 80), ("10.77.1.22", 81)], []))
    consul.deregister(name, f"{prefix}vm-2")
    eventually(state, ([("10.77.1.1", 80)], []))
    consul.deregister(name, f"{prefix}vm-1")
    eventually(state, None)
    eventually(lambda: kube.get(f"{SERVICES.format(namespace=namespace)}/{name}"), None)


def test_a_user_managed_service_that_asks_is_filled_and_never_written(
    daemon: Daemon, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Eventually
) -> None:
    """By label and annotations, on the Service's own port name; the label gone, our Endpoints go within a second."""
    consul.register(f"other-{prefix}pg", f"{prefix}vm-1", "10.77.1.1", 5433)
    path = f"{SERVICES.format(namespace=namespace)}/database"
    body = {
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "database", "labels": {"consul-bridge/mirror": "true"},
            "annotations": {"consul-bridge/service": f"other-{prefix}pg"},
        },
        "spec": {"ports": [{"name": "postgres", "port": 5432, "protocol": "TCP"}]},
    }  # fmt: skip
    kube.json("POST", SERVICES.format(namespace=namespace), body)
    eventually(lambda: ready_addresses(kube.endpoints(namespace, "database")), [("10.77.1.1", 5433)])
    endpoints = kube.endpoints(namespace, "database") or {}
    assert endpoints["subsets"][0]["ports"][0]["name"] == "postgres"
    managers = {m["manager"] for m in (kube.get(path) or {})["metadata"]["managedFields"]}
    assert "consul-bridge" not in managers
    kube.json("PATCH", path, {"metadata": {"labels": {"consul-bridge/mirror": None}}}, "application/merge-patch+json")
    eventually(lambda: kube.endpoints(namespace, "database"), None, 1.0)
    assert kube.get(path) is not None


def test_events_stand_on_the_objects_concerned(
    daemon: Daemon, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Eventually
) -> None:
    """What was made, what is another owner's, what is left out: once each, for `kubectl describe`."""
    theirs = f"{prefix}theirs"
    body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": theirs},
            "spec": {"selector": {"app": "x"}, "ports": [{"port": 80}]}}  # fmt: skip
    uid = kube.json("POST", SERVICES.format(namespace=namespace), body)["metadata"]["uid"]
    consul.register(theirs, f"{prefix}vm-1", "10.77.1.1", 80)
    consul.register(f"{prefix}ours", f"{prefix}vm-2", "10.77.1.2", 80)
    consul.register(f"{prefix}ours", f"{prefix}vm-3", "127.0.0.1", 80)

    def said() -> list[tuple[str, str, str]]:
        found = kube.json("GET", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")["items"]
        return sorted((e["reason"], e["regarding"]["kind"], e["regarding"]["name"]) for e in found)

    expected = [
        ("Conflict", "Service", theirs),
        ("InstancesSkipped", "Service", f"{prefix}ours"),
        ("Mirrored", "Endpoints", f"{prefix}ours"),
        ("Mirrored", "Service", f"{prefix}ours"),
    ]
    eventually(said, expected)
    consul.register(f"{prefix}ours", f"{prefix}vm-2", "10.77.1.4", 80)
    eventually(lambda: ready_addresses(kube.endpoints(namespace, f"{prefix}ours")), [("10.77.1.4", 80)])
    assert said() == expected
    found = kube.json("GET", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")["items"]
    conflict = next(e for e in found if e["reason"] == "Conflict")
    assert (conflict["regarding"]["uid"], conflict["type"]) == (uid, "Warning")
    assert "selector" in conflict["note"]


def test_what_is_left_out_is_reported_at_once_also_where_nothing_is_written(
    daemon: Daemon, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Eventually
) -> None:
    """Its beginning and its end: Event and metric do not wait for the next full pass."""
    name = f"{prefix}web"

    def said() -> tuple[str, bool]:
        found = kube.json("GET", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")["items"]
        notes = " ".join(e["note"] for e in found if e["reason"] == "InstancesSkipped")
        lines = daemon.get("/metrics")[1].decode().splitlines()
        series = 'consul_bridge_skipped{reason="address_loopback"}'
        return next(x for x in lines if x.startswith(series))[-3:], "vm-2" in notes

    consul.register(name, f"{prefix}vm-1", "10.77.1.1", 80)
    eventually(lambda: ready_addresses(kube.endpoints(namespace, name)), [("10.77.1.1", 80)])
    assert said() == ("0.0", False)
    consul.register(name, f"{prefix}vm-2", "127.0.0.1", 80)
    eventually(said, ("1.0", True))
    consul.deregister(name, f"{prefix}vm-2")
    eventually(said, ("0.0", True))


def test_a_right_that_is_missing_is_reported_with_what_grants_it_and_is_used_once_it_is_there(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Eventually
) -> None:
    """A Role without `create` on Endpoints: an Event on the Service, log and metric; no restart is needed after."""
    verbs = ["list", "watch", "create", "patch", "delete"]

    def role(*endpoints: str) -> list[dict[str, object]]:
        return [
            {"apiGroups": [""], "resources": ["services"], "verbs": verbs},
            {"apiGroups": [""], "resources": ["endpoints"], "verbs": list(endpoints)},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
        ]

    name, words = f"{prefix}web", f"forbids us to create endpoints in namespace {namespace}"
    kubeconfig = lab.service_account(namespace, "poor", role("list", "watch", "patch", "delete"))
    consul.register(name, f"{prefix}vm-1", "10.77.1.1", 80)
    env = environment(lab.consul.address, kubeconfig)
    daemon = Daemon(lab, f"bridge-{namespace}", "--service", f"{prefix}*", "--namespace", namespace, env=env)
    daemon.start(wait=False)

    def noted() -> bool:
        found = kube.json("GET", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")["items"]
        return any(words in e["note"] for e in found if (e["reason"], e["regarding"]["name"]) == ("WriteFailed", name))

    try:
        eventually(noted, True, 30)
        assert any(words in str(event) for event in daemon.events() if event["level"] in ("warning", "error"))
        assert daemon.metric("consul_bridge_errors_total") >= 1
        assert kube.endpoints(namespace, name) is None
        lab.service_account(namespace, "poor", role(*verbs))
        eventually(lambda: ready_addresses(kube.endpoints(namespace, name)), [("10.77.1.1", 80)], 60)
    finally:
        daemon.stop()


def test_what_others_do_to_our_objects_is_put_back(
    daemon: Daemon, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Eventually
) -> None:
    """Edited Endpoints, deleted Endpoints, a deleted Service: each is right again within seconds."""
    name = f"{prefix}web"
    consul.register(name, f"{prefix}vm-1", "10.77.1.1", 80)
    path = f"{ENDPOINTS.format(namespace=namespace)}/{name}"

    def ready() -> object:
        return ready_addresses(kube.endpoints(namespace, name))

    eventually(ready, [("10.77.1.1", 80)])
    kube.json("PATCH", path, {"subsets": []}, "application/merge-patch+json")
    eventually(ready, [("10.77.1.1", 80)])
    kube.delete(path)
    eventually(ready, [("10.77.1.1", 80)])
    kube.delete(f"{SERVICES.format(namespace=namespace)}/{name}")
    eventually(lambda: kube.get(f"{SERVICES.format(namespace=namespace)}/{name}") is not None, True)
    eventually(ready, [("10.77.1.1", 80)])


def test_a_second_writer_is_not_fought_at_full_speed(
    lab: Lab, daemon: Daemon, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Eventually
) -> None:
    """A user who undoes every repair at once gets ever slower answers: few writes a second."""
    name = f"{prefix}web"
    consul.register(name, f"{prefix}vm-1", "10.77.1.1", 80)
    path = f"{ENDPOINTS.format(namespace=namespace)}/{name}"
    eventually(lambda: ready_addresses(kube.endpoints(namespace, name)), [("10.77.1.1", 80)])
    undone = 0
    end = time.monotonic() + 4
    while time.monotonic() < end:
        if ready_addresses(kube.endpoints(namespace, name)):
            kube.json("PATCH", path, {"subsets": []}, "application/merge-patch+json")
            undone += 1
    assert undone < 40


def test_it_serves_health_readiness_metrics_and_status(daemon: Daemon) -> None:
    """And an unknown path is a 404."""
    found = {path: daemon.get(path)[0] for path in ("/healthz", "/readyz", "/metrics", "/api/status", "/", "/nothing")}
    assert found == {
        "/healthz": 200, "/readyz": 200, "/metrics": 200, "/api/status": 200, "/": 200, "/nothing": 404,
    }  # fmt: skip


def test_the_page_may_be_off_or_have_an_address_of_its_own(lab: Lab, namespace: str, prefix: str) -> None:
    """Probes and metrics answer at `listen` all the same, and nothing else does."""
    own = free_port()
    for place in ("off", f"127.0.0.1:{own}"):
        env = environment(lab.consul.address, lab.kubeconfig, BRIDGE_RUN_PAGE=place)
        daemon = Daemon(lab, f"page-{prefix}", "--service", f"{prefix}*", "--namespace", namespace, env=env)
        try:
            daemon.start()
            found = {path: daemon.get(path)[0] for path in ("/healthz", "/readyz", "/metrics", "/", "/api/status")}
            assert found == {"/healthz": 200, "/readyz": 200, "/metrics": 200, "/": 404, "/api/status": 404}
            if place != "off":
                with urllib.request.urlopen(f"http://{place}/api/status", timeout=5) as answer:
                    assert answer.status == 200
        finally:
            daemon.stop()


def test_it_ends_quickly_on_sigterm_and_removes_nothing(
    daemon: Daemon, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Eventually
) -> None:
    """A clean stop, long before anything would kill it (two seconds on an idle machine); what it made stays."""
    name = f"{prefix}web"
    consul.register(name, f"{prefix}vm-1", "10.77.1.1", 80)
    eventually(lambda: ready_addresses(kube.endpoints(namespace, name)), [("10.77.1.1", 80)])
    began = time.monotonic()
    daemon.stop()
    assert (time.monotonic() - began < 8.0, ready_addresses(kube.endpoints(namespace, name))) == (
        True, [("10.77.1.1", 80)],
    )  # fmt: skip
    assert "Traceback" not in daemon.log.read_text()


def test_in_the_steady_state_nothing_is_written(
    lab: Lab, daemon: Daemon, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Eventually
) -> None:
    """Not for a check that only changes its output, not for a restart with nothing changed."""
    name = f"{prefix}web"
    consul.register(name, f"{prefix}vm-1", "10.77.1.1", 80)
    eventually(lambda: ready_addresses(kube.endpoints(namespace, name)), [("10.77.1.1", 80)])
    time.sleep(0.5)
    since = time.time()
    for n in range(20):
        consul.flip(name, f"{prefix}vm-1", "passing", output=f"still well {n}")
        time.sleep(0.02)
    daemon.stop()
    daemon.start()
    time.sleep(0.5)
    writes = [
        e for e in lab.audit(since=since) if e.namespace == namespace and e.verb not in ("get", "list", "watch")
        and e.user == "lab-admin" and e.resource in ("services", "endpoints")
    ]  # fmt: skip
    assert writes == []


def test_rules_that_change_are_taken_by_the_running_bridge(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, tmp_path: Path, eventually: Eventually
) -> None:
    """A further rule, a label that comes and goes, a new namespace, a rule that goes, and a file that is wrong."""
    file = tmp_path / "bridge.yaml"

    def write(*rules: str) -> None:
        put(file, "run: {removal_grace_period: 1s}\nrules:\n" + "".join(f"  - {rule}\n" for rule in rules))

    def here(name: str, text: str = "") -> str:
        return f"{{services: ['{prefix}{name}'], to: {{namespace: {namespace}{text}}}}}"

    for n, name in enumerate(("web", "db"), 1):
        consul.register(f"{prefix}{name}", f"{prefix}vm-{n}", f"10.77.4.{n}", 80)
    write(here("web"))
    env = environment(lab.consul.address, lab.kubeconfig)
    daemon = Daemon(lab, f"bridge-{namespace}", "--config", str(file), env=env)
    daemon.start()
    try:
        eventually(lambda: ready_addresses(kube.endpoints(namespace, f"{prefix}web")), [("10.77.4.1", 80)])
        assert kube.endpoints(namespace, f"{prefix}db") is None
        write(here("web", ", labels: {team: storage}"), here("db"))
        eventually(lambda: ready_addresses(kube.endpoints(namespace, f"{prefix}db")), [("10.77.4.2", 80)])

        def labels() -> object:
            return ((kube.endpoints(namespace, f"{prefix}web") or {})["metadata"]["labels"]).get("team")

        eventually(labels, "storage")
        write(here("web"), here("db"))
        eventually(labels, None)

        put(file, "rules: [{service: nothing}]")
        eventually(lambda: f"{file}:1" in daemon.readiness().get("configuration", ""), True)
        consul.register(f"{prefix}web", f"{prefix}vm-3", "10.77.4.3", 80)
        both = [("10.77.4.1", 80), ("10.77.4.3", 80)]
        eventually(lambda: ready_addresses(kube.endpoints(namespace, f"{prefix}web")), both)

        write(here("web"), f"{{services: ['{prefix}db'], to: {{namespace: default}}}}")
        eventually(lambda: ready_addresses(kube.endpoints("default", f"{prefix}db")), [("10.77.4.2", 80)], 30)
        assert ready_addresses(kube.endpoints(namespace, f"{prefix}web")) == both
        write(here("web"), f"{{services: ['{prefix}bd'], to: {{namespace: default}}}}")
        eventually(
            lambda: [f"`services` has {prefix}bd" in text for text in daemon.readiness().get("held", ())], [True]
        )
        assert ready_addresses(kube.endpoints("default", f"{prefix}db")) == [("10.77.4.2", 80)]
        assert any(f"did you mean {prefix}db" in text for text in daemon.readiness()["warnings"])
        write(here("web"), f"{{services: ['{prefix}web'], to: {{namespace: default}}}}")  # db is asked for no more
        eventually(lambda: kube.endpoints("default", f"{prefix}db"), None, 30)
        assert daemon.readiness()["configuration"] == "ok"
    finally:
        daemon.stop()
        for path in (ENDPOINTS, SERVICES):
            kube.delete(f"{path.format(namespace='default')}/{prefix}db")


class Churn:
    """Random changes with a memory: what Consul should hold for one service, and so what Kubernetes should."""

    def __init__(self, consul: RawConsul, prefix: str, seed: int) -> None:
        self.name = f"{prefix}churn"
        self._consul = consul
        self._prefix = prefix
        self._random = random.Random(seed)
        self.status: dict[int, str] = {}

    def step(self) -> None:
        """One change: an instance comes, goes, or changes its health."""
        n = self._random.randrange(1, 9)
        if n not in self.status or self._random.random() < 0.3:
            status = self._random.choice(["passing", "critical"])
            self._consul.register(self.name, f"{self._prefix}vm-{n}", f"10.77.2.{n}", 80, status=status)
            self.status[n] = status
        elif self._random.random() < 0.3 and len(self.status) > 3:
            self._consul.deregister(self.name, f"{self._prefix}vm-{n}")
            del self.status[n]
        else:
            self.status[n] = "critical" if self.status[n] == "passing" else "passing"
            self._consul.flip(self.name, f"{self._prefix}vm-{n}", self.status[n])

    def expected(self) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """Ready and unready addresses."""
        by_state = {want: sorted((f"10.77.2.{n}", 80) for n, s in self.status.items() if s == want)
                    for want in ("passing", "critical")}  # fmt: skip
        return by_state["passing"], by_state["critical"]


def test_a_check_that_flaps_is_not_followed_and_a_minimum_is_kept(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, tmp_path: Path, eventually: Eventually
) -> None:
    """With `settle` a flapping instance stays not ready, and nothing is written; it is ready when it has been healthy
    for that long. With `min_ready` half of a service stays ready, whatever its checks say."""
    web, db, settle = f"{prefix}web", f"{prefix}db", 2.0
    for n, name, status in ((1, web, "passing"), (2, web, "critical"), (3, db, "passing"), (4, db, "passing")):
        consul.register(name, f"{prefix}vm-{n}", f"10.77.5.{n}", 80, status=status)
    put(
        tmp_path / "bridge.yaml",
        f"rules:\n  - {{services: ['{web}'], to: {{namespace: {namespace}}}, instances: {{settle: {settle:g}s}}}}\n"
        f"  - {{services: ['{db}'], to: {{namespace: {namespace}}}, instances: {{min_ready: 50%}}}}\n",
    )
    env = environment(lab.consul.address, lab.kubeconfig)
    daemon = Daemon(lab, f"bridge-{namespace}", "--config", str(tmp_path / "bridge.yaml"), env=env)
    daemon.start()

    def ready(name: str) -> list[tuple[str, int]]:
        return ready_addresses(kube.endpoints(namespace, name))

    def page(name: str) -> str:
        return daemon.get(f"/service/{namespace}/{name}")[1].decode()

    def version() -> str:
        return str((kube.endpoints(namespace, web) or {})["metadata"]["resourceVersion"])

    try:
        eventually(lambda: (ready(web), len(ready(db))), ([("10.77.5.1", 80)], 2))
        before = version()
        for status in ("passing", "critical", "passing", "critical"):
            consul.flip(web, f"{prefix}vm-2", status)
            time.sleep(0.3)
        began = time.monotonic()
        consul.flip(web, f"{prefix}vm-2", "passing")
        eventually(lambda: 'data-reason="settling"' in page(web), True)
        assert version() == before
        eventually(lambda: ready(web), [("10.77.5.1", 80), ("10.77.5.2", 80)])
        assert time.monotonic() - began >= settle
        for n in (3, 4):
            consul.flip(db, f"{prefix}vm-{n}", "critical")
        eventually(lambda: "min_ready is 50%" in page(db), True)
        assert [address for address, _ in ready(db)] == ["10.77.5.4"]
    finally:
        daemon.stop()


@pytest.mark.parametrize("victim", ["consul", "apiserver", "bridge"])
def test_after_a_kill_in_the_middle_of_changes_both_sides_agree_again(
    fresh_lab: Lab, victim: str, eventually: Eventually
) -> None:
    """kill -9 and restart of one of the three; nothing is lost, nothing was taken away meanwhile."""
    lab = fresh_lab
    env = environment(lab.consul.address, lab.kubeconfig)
    daemon = Daemon(lab, "bridge", "--service", "t-*", "--namespace", "default", "--panic-threshold", "0", env=env)
    lab.add(daemon)
    with lab.raw_consul() as consul:
        churn = Churn(consul, "t-", seed=7)
        for n in range(1, 7):
            consul.register("t-steady", f"t-s{n}", f"10.77.3.{n}", 80)
        for _ in range(20):
            churn.step()
        daemon.start()
        with lab.raw_kube() as kube:
            eventually(lambda: _state(kube, churn.name), churn.expected())
            eventually(lambda: len(ready_addresses(kube.endpoints("default", "t-steady"))), 6)
        if victim == "bridge":
            daemon.kill()
            for _ in range(10):
                churn.step()
            daemon.start()
        elif victim == "apiserver":
            lab.apiserver.kill()
            for _ in range(10):
                churn.step()
            lab.apiserver.start()
        else:
            lab.consul.kill()
            eventually(daemon.ready, False)
            time.sleep(1.0)  # long enough for something to be taken away
            with lab.raw_kube() as kube:
                assert _state(kube, churn.name) == churn.expected()
            lab.consul.start()
    with lab.raw_consul() as consul, lab.raw_kube() as kube:
        churn._consul = consul
        for _ in range(10):
            churn.step()
        eventually(lambda: _state(kube, churn.name), churn.expected(), 60)
        assert len(ready_addresses(kube.endpoints("default", "t-steady"))) == 6
        eventually(daemon.ready, True, 60)
    daemon.stop()


@pytest.mark.parametrize("fresh_lab", [{"acl": True}], indirect=True)
def test_a_token_that_sees_nothing_takes_nothing_away(fresh_lab: Lab, eventually: Eventually) -> None:
    """Under default deny, without a token, Consul says 200 and shows nothing: that is not "gone"."""
    lab = fresh_lab
    token = {"CONSUL_HTTP_TOKEN": lab.consul.token}
    arguments = ("--service", "t-*", "--namespace", "default", "--removal-grace-period", "0s")
    seeing = Daemon(lab, "seeing", *arguments, env=environment(lab.consul.address, lab.kubeconfig, **token))
    blind = Daemon(lab, "blind", *arguments, env=environment(lab.consul.address, lab.kubeconfig))
    lab.add(seeing)
    lab.add(blind)
    with lab.raw_consul() as consul, lab.raw_kube() as kube:
        consul.register("t-web", "t-vm-1", "10.77.1.1", 80)
        seeing.start()
        eventually(lambda: ready_addresses(kube.endpoints("default", "t-web")), [("10.77.1.1", 80)])
        seeing.stop()
        blind.start(wait=False)
        eventually(lambda: blind.get("/healthz")[0], 200)
        time.sleep(3)
        assert ready_addresses(kube.endpoints("default", "t-web")) == [("10.77.1.1", 80)]
        assert lab.consul.token not in seeing.log.read_text() + blind.log.read_text()
    blind.stop()


def _state(kube: RawKube, name: str) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    endpoints = kube.endpoints("default", name)
    return ready_addresses(endpoints), not_ready_addresses(endpoints)
