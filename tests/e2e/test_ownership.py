"""What belongs to whom, and what people and other programs get wrong: reported, and never fatal for the rest."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.lab import Lab
from tests.support.program import Daemon, Result, bridge, environment, pause
from tests.support.raw import ENDPOINTS, SERVICES, SLICES, RawConsul, RawKube, ready

pytestmark = pytest.mark.lab

Json = dict[str, Any]
Eventually = Callable[..., None]
Sync = Callable[..., Result]


@pytest.fixture
def sync(lab: Lab, namespace: str, tmp_path: Path) -> Sync:
    """Run `bridge sync` (or another command) with rules; what a rule does not say goes to this test's namespace."""
    env = environment(lab.consul.address, lab.kubeconfig)

    def run(*rules: Json, arguments: tuple[str, ...] = (), command: str = "sync", **settings: Any) -> Result:
        whole = [{**rule, "to": {"namespace": namespace, **rule.get("to", {})}} for rule in rules]
        file = tmp_path / "bridge.yaml"
        file.write_text(yaml.safe_dump({"rules": whole, "kubernetes": {"watch_namespaces": [namespace]}, **settings}))
        further = ("--yes",) if command == "sync" else ()
        return bridge(command, "--config", str(file), "-o", "json", *further, *arguments, env=env)

    return run


def person(kube: RawKube, namespace: str, name: str, annotations: Json | None = None, **spec: Any) -> None:
    """A Service that a user made; with annotations also labelled to be filled."""
    metadata: Json = {"name": name}
    if annotations is not None:
        metadata |= {"labels": {"consul-bridge/mirror": "true"}, "annotations": annotations}
    body = {
        "apiVersion": "v1", "kind": "Service", "metadata": metadata,
        "spec": {"ports": [{"port": 80, "protocol": "TCP"}], **spec},
    }  # fmt: skip
    kube.json("POST", SERVICES.format(namespace=namespace), body)


# --------------------------------------------------------------------------- ownership


def test_the_aliases_of_hashicorps_catalog_sync_become_real_services(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """Made as that tool makes them, taken over only when asked, in place; a user's ExternalName is not."""
    for n, name in enumerate(("web", "db", "mine"), 1):
        consul.register(f"{prefix}{name}", f"{prefix}vm-{n}", f"10.77.1.{n}", 80)
    for name in ("web", "db"):
        body = {
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": f"{prefix}{name}", "labels": {"consul": "true"},
                "annotations": {"consul.hashicorp.com/service-sync": "false"},
            },
            "spec": {"type": "ExternalName", "externalName": f"{prefix}{name}.service.consul"},
        }  # fmt: skip
        kube.json("POST", f"{SERVICES.format(namespace=namespace)}?fieldManager=consul-k8s-control-plane", body)
    person(kube, namespace, f"{prefix}mine", type="ExternalName", externalName="db.example.org")
    rule = {"services": [f"{prefix}*"]}
    path = f"{SERVICES.format(namespace=namespace)}/{prefix}web"
    uid = (kube.get(path) or {})["metadata"]["uid"]
    refused = sync(rule)
    assert (refused.json["summary"]["create"], {c["name"] for c in refused.json["conflicts"]}) == (
        0, {f"{prefix}web", f"{prefix}db", f"{prefix}mine"},
    )  # fmt: skip
    assert "--adopt consul-k8s" in str(refused.json["conflicts"])
    adopted = sync(rule, arguments=("--adopt", "consul-k8s"))
    found = kube.get(path) or {}
    assert (adopted.status, [c["name"] for c in adopted.json["conflicts"]]) == (5, [f"{prefix}mine"])
    assert (found["metadata"]["uid"], found["spec"]["type"], found["spec"]["ports"][0]["port"]) == (
        uid, "ClusterIP", 80,
    )  # fmt: skip
    assert [ready(kube, namespace, f"{prefix}{n}") for n in ("web", "db", "mine")] == [["10.77.1.1"], ["10.77.1.2"], []]
    assert sync(rule).json["changes"] == []


def test_an_object_whose_owner_label_a_user_takes_away_is_left_alone_from_then_on(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """Neither changed nor deleted, and said to be a conflict."""
    consul.register(f"{prefix}web", f"{prefix}vm-1", "10.77.1.1", 80)
    rule = {"services": [f"{prefix}*"]}
    sync(rule)
    for base in (SERVICES, ENDPOINTS):
        body = {"metadata": {"labels": {"consul-bridge/owner": None}}}
        path = f"{base.format(namespace=namespace)}/{prefix}web"
        kube.json("PATCH", path, body, "application/merge-patch+json")
    for piece in kube.json("GET", SLICES.format(namespace=namespace))["items"]:
        path = f"{SLICES.format(namespace=namespace)}/{piece['metadata']['name']}"
        kube.json("PATCH", path, body, "application/merge-patch+json")
    consul.register(f"{prefix}web", f"{prefix}vm-2", "10.77.1.2", 80)
    changed = sync(rule)
    consul.drop_node(f"{prefix}vm-1")
    consul.drop_node(f"{prefix}vm-2")
    gone = sync(rule)
    assert (changed.status, changed.json["changes"], [c["kind"] for c in changed.json["conflicts"]]) == (
        5, [], ["Service"],
    )  # fmt: skip
    assert (gone.status, gone.json["changes"], ready(kube, namespace, f"{prefix}web")) == (0, [], ["10.77.1.1"])


@pytest.mark.slow
def test_two_bridges_with_different_owners_never_fight(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Eventually
) -> None:
    """The same services, the same namespace: who was first has them; the other says so and writes nothing."""
    for n in range(5):
        consul.register(f"{prefix}s-{n}", f"{prefix}vm-{n}", f"10.77.1.{n + 1}", 80)
    env = environment(lab.consul.address, lab.kubeconfig)
    arguments = ("--service", f"{prefix}*", "--namespace", namespace, "--resync", "10s")
    one, two = (Daemon(lab, f"{o}-{prefix}", *arguments, "--owner", o, env=env) for o in ("one", "two"))

    def versions() -> list[str]:
        found = [kube.get(base.format(namespace=namespace)) or {} for base in (SERVICES, ENDPOINTS)]
        return sorted(item["metadata"]["resourceVersion"] for f in found for item in f["items"])

    def owners() -> set[str]:
        found = kube.get(SERVICES.format(namespace=namespace)) or {}
        return {item["metadata"]["labels"]["consul-bridge/owner"] for item in found["items"]}

    def status() -> Json:
        return dict(json.loads(two.get("/api/status")[1]))

    try:
        one.start()
        eventually(lambda: len(versions()), 10, 60)
        two.start()
        before = versions()
        consul.flip(f"{prefix}s-0", f"{prefix}vm-0", "critical")
        eventually(lambda: ready(kube, namespace, f"{prefix}s-0"), [], 60)
        settled = versions()
        assert (len(set(settled) - set(before)), owners()) == (1, {"one"})
        eventually(lambda: len({c["name"] for c in status()["report"]["conflicts"]}), 5, 60)
        eventually(lambda: status()["seconds_since_last_full_pass"] > 8, True, 60)
        eventually(lambda: status()["seconds_since_last_full_pass"] < 5, True, 60)  # a resync has come and gone
        assert versions() == settled
    finally:
        one.stop()
        two.stop()


def test_two_bridges_with_one_owner_id_notice_each_other(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, tmp_path: Path, eventually: Eventually
) -> None:
    """Their rules differ, and each takes away what the other makes: both say so, and neither fights at full speed."""
    env = environment(lab.consul.address, lab.kubeconfig)
    for n in range(4):
        consul.register(f"{prefix}a{n}", f"{prefix}vm-a{n}", f"10.77.1.{n + 1}", 80)
    consul.register(f"{prefix}b", f"{prefix}vm-b", "10.77.1.9", 80)  # a pattern that matches nothing takes nothing away
    daemons, owner = [], f"o-{prefix.strip('-')}"
    for name in ("a", "b"):
        file = tmp_path / f"{name}.yaml"
        rule = {"services": [f"{prefix}{name}*"], "to": {"namespace": namespace}}
        file.write_text(yaml.safe_dump({"owner": owner, "rules": [rule], "guard": {"removal_minimum": 1000}}))
        daemons.append(Daemon(lab, f"{name}-{prefix}", "--config", str(file), "--removal-grace-period", "1s", env=env))
    maker, taker = daemons
    began = time.time()
    try:
        maker.start()
        eventually(lambda: [ready(kube, namespace, f"{prefix}a{n}") != [] for n in range(4)], [True] * 4, 30)
        assert "conflicting_writer" not in maker.readiness()
        pause(16)
        taker.start()
        eventually(lambda: "again and again" in maker.readiness().get("conflicting_writer", ""), True, 150)
        # it stops taking at the first sign, so it may have seen only that its own deletions are undone
        eventually(lambda: f"owner id '{owner}'" in taker.readiness().get("conflicting_writer", ""), True, 60)
        # the metric is set twice a second, /readyz when it is asked
        eventually(lambda: [d.metric("consul_bridge_conflicting_writer") for d in (maker, taker)], [1, 1], 10)
        assert all("conflicting writer detected" in daemon.log.read_text() for daemon in daemons)
        took = time.time() - began
        written = maker.metric("consul_bridge_writes_total") + taker.metric("consul_bridge_writes_total")
        assert written < 30 * took
    finally:
        for daemon in daemons:
            daemon.stop()


def test_what_another_installation_wrote_is_not_deleted_and_its_name_is_not_written(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, tmp_path: Path, eventually: Eventually
) -> None:
    """One owner id by mistake: the second one's rules want nothing of the first one's, which is in steady state."""
    env, owner = environment(lab.consul.address, lab.kubeconfig), f"o-{prefix.strip('-')}"
    for n in range(2):
        consul.register(f"{prefix}a{n}", f"{prefix}vm-a{n}", f"10.77.1.{n + 1}", 80)
    files, installations = {}, {"a": "team-a/bridge", "b": "team-b/bridge"}
    for name in installations:
        files[name] = tmp_path / f"{name}.yaml"
        rule = {"services": [f"{prefix}{name}*"], "to": {"namespace": namespace}}
        whole = {
            "owner": owner,
            "rules": [rule],
            "guard": {"removal_minimum": 1000},
            "run": {"removal_grace_period": "1s"},
        }
        files[name].write_text(yaml.safe_dump(whole))

    def with_name(name: str) -> dict[str, str]:
        return {**env, "BRIDGE_RUN_INSTANCE_NAME": installations[name]}

    def objects() -> list[tuple[str, str, str]]:
        found = [kube.json("GET", base.format(namespace=namespace))["items"] for base in (SERVICES, ENDPOINTS, SLICES)]
        metas = [item["metadata"] for items in found for item in items]
        return [(m["uid"], m["resourceVersion"], m["annotations"]["consul-bridge/installation"]) for m in metas]

    def conflicts(daemon: Daemon) -> set[str]:
        return {c["reason"] for c in json.loads(daemon.get("/api/status")[1])["report"]["conflicts"]}

    one, two = (Daemon(lab, f"{n}-{prefix}", "--config", str(files[n]), env=with_name(n)) for n in installations)
    try:
        one.start()
        eventually(lambda: [ready(kube, namespace, f"{prefix}a{n}") for n in range(2)], [["10.77.1.1"], ["10.77.1.2"]])
        pause(1)
        stands = objects()
        assert (len(stands), {name for *_, name in stands}) == (6, {"team-a/bridge"})
        two.start()
        eventually(lambda: conflicts(two), {"other_installation"})
        pause(3)
        elsewhere = bridge("sync", "--yes", "--config", str(files["a"]), "-o", "json", env=env)
        assert (elsewhere.json["changes"], objects()) == ([], stands)
        consul.register(f"{prefix}a0", f"{prefix}vm-a9", "10.77.1.9", 80)
        eventually(lambda: ready(kube, namespace, f"{prefix}a0"), ["10.77.1.1", "10.77.1.9"])
    finally:
        one.stop()
    consul.register(f"{prefix}a0", f"{prefix}vm-a8", "10.77.1.8", 80)
    try:
        written = bridge("sync", "--yes", "--config", str(files["a"]), "-o", "json", env=env)
        assert {change["action"] for change in written.json["changes"]} == {"update"}
        assert {name for *_, name in objects()} == {"team-a/bridge"}
    finally:
        two.stop()
    refused = bridge("sync", "--yes", "--config", str(files["b"]), "-o", "json", env=with_name("b"))
    assert (refused.json["changes"], {c["reason"] for c in refused.json["conflicts"]}) == ([], {"other_installation"})
    assert "installation team-a/bridge wrote it last, under our owner id" in str(refused.json["conflicts"])
    assert len(objects()) == 6
    bridge("sync", "--yes", "--force", "--config", str(files["b"]), "-o", "json", env=with_name("b"))
    assert objects() == []


# --------------------------------------------------------------------------- what we may not see


WRITING = [
    {"apiGroups": ["", "discovery.k8s.io"], "resources": ["services", "endpoints", "endpointslices"],
     "verbs": ["list", "watch", "create", "patch", "delete"]},
    {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
]  # fmt: skip
"""What manifests/base/role.yaml grants."""


@pytest.fixture
def closed(kube: RawKube, namespace: str) -> Iterator[str]:
    """A second namespace."""
    name = f"{namespace}-b"
    kube.json("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    kube.delete(f"/api/v1/namespaces/{name}")


def test_a_role_in_one_of_two_namespaces_serves_that_one(
    lab: Lab,
    consul: RawConsul,
    kube: RawKube,
    namespace: str,
    closed: str,
    prefix: str,
    tmp_path: Path,
    eventually: Eventually,
) -> None:
    """One pass and the running bridge alike; what grants the rest is named, and the second Role is enough to go on."""
    consul.register(f"{prefix}a", f"{prefix}vm-1", "10.77.1.1", 80)
    consul.register(f"{prefix}b", f"{prefix}vm-2", "10.77.1.2", 80)
    kubeconfig = lab.service_account(namespace, "half", WRITING)
    rules = [
        {"services": [f"{prefix}a"], "to": {"namespace": namespace}},
        {"services": [f"{prefix}b"], "to": {"namespace": closed}},
    ]
    file = tmp_path / "bridge.yaml"
    file.write_text(yaml.safe_dump({"rules": rules, "owner": f"o-{prefix.strip('-')}"}))
    env = environment(lab.consul.address, kubeconfig)
    result = bridge("sync", "--config", str(file), "-o", "json", "--yes", env=env)
    (row,) = result.json["failed"]
    assert (result.status, ready(kube, namespace, f"{prefix}a")) == (1, ["10.77.1.1"])
    assert (row["action"], row["namespace"], row["name"]) == ("read", closed, f"{prefix}b")
    role = "kubectl create role consul-bridge-list-services --verb=list --resource=services"
    assert f"{role} -n {closed} && kubectl create rolebinding" in row["message"]
    assert f"failed: reading namespace {closed} for {prefix}b (what is there stays)" in result.stderr
    daemon = Daemon(lab, f"run-{prefix}", "--config", str(file), env=env)
    try:
        daemon.start()
        consul.register(f"{prefix}a", f"{prefix}vm-3", "10.77.1.3", 80)
        eventually(lambda: ready(kube, namespace, f"{prefix}a"), ["10.77.1.1", "10.77.1.3"], 30)
        assert list(daemon.readiness()["forbidden_namespaces"]) == [closed]
        eventually(lambda: daemon.metric("consul_bridge_forbidden_namespaces"), 1, 10)
        group = "rbac.authorization.k8s.io"
        base = f"/apis/{group}/v1/namespaces/{closed}"
        head = {"apiVersion": f"{group}/v1", "metadata": {"name": "half"}}
        kube.json("POST", f"{base}/roles", {**head, "kind": "Role", "rules": WRITING})
        kube.json("POST", f"{base}/rolebindings", {
            **head, "kind": "RoleBinding",
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "half"},
            "subjects": [{"kind": "ServiceAccount", "name": "half", "namespace": namespace}],
        })  # fmt: skip
        eventually(lambda: ready(kube, closed, f"{prefix}b"), ["10.77.1.2"], 60)
        assert "forbidden_namespaces" not in daemon.readiness()
    finally:
        daemon.stop()


# --------------------------------------------------------------------------- what people get wrong


ALL_MAY_ASK = [{"filter": True}]
"""Two namespaces are watched where mistakes are made, so no user may ask without a grant."""


def mistakes(consul: RawConsul, kube: RawKube, namespace: str, prefix: str) -> list[Json]:
    """A catalog full of mistakes, and good services among them; answers the rules, some of them wrong as well."""
    for n, name in enumerate(("good", "lost", "refused", "one", "two"), 1):
        consul.register(f"{prefix}{name}", f"{prefix}vm-{n}", f"10.77.1.{n}", 80)
    good = {"consul-bridge/service": f"{prefix}good"}
    person(kube, namespace, "nobody", {"consul-bridge/service": f"{prefix}nix"})
    person(kube, namespace, "selecting", good, selector={"app": "x"})
    person(kube, namespace, "alias", good, type="ExternalName", externalName="a.b")
    person(kube, namespace, "elsewhere", {"consul-bridge/datacenter": "dc9"})
    person(kube, namespace, "odd-filter", {**good, "consul-bridge/filter": "((("})
    person(kube, namespace, "fine", good)
    return [
        {"services": [f"{prefix}lost"], "to": {"namespace": f"{namespace}-nix"}},
        {"services": [f"{prefix}refused"], "filter": "Nonsense =="},
        {"services": [f"{prefix}one", f"{prefix}two"], "to": {"name": "shared"}},
        {"services": [f"{prefix}good"]},
    ]


def test_each_mistake_is_reported_and_the_others_are_served(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """Names, namespaces, filters, annotations: in the report of one pass."""
    result = sync(*mistakes(consul, kube, namespace, prefix), annotated=ALL_MAY_ASK)
    report = result.json
    conflicts = {row["name"]: row["message"] for row in report["conflicts"]}
    warnings = {row["name"]: row["message"] for row in report["warnings"]}
    skipped = {row["service"]: row["message"] for row in report["skipped"]}
    failed = str(report["failed"])
    assert result.status == 1
    assert [ready(kube, namespace, n) for n in (f"{prefix}good", "fine", "shared")] == [
        ["10.77.1.1"], ["10.77.1.1"], ["10.77.1.4"],
    ]  # fmt: skip
    said = {
        "a selector": "selector" in conflicts["selecting"],
        "an alias": "ExternalName" in conflicts["alias"],
        "no such service": f"lists no service {prefix}nix" in warnings["nobody"],
        "no such datacenter": "datacenter dc9, which may not be asked: only dc1 may" in warnings["elsewhere"],
        "one name for two": "goes to" in skipped[f"{prefix}two"],
        "no such namespace": f"{namespace}-nix" in failed,
        "a filter of a rule": "Nonsense ==" in failed,
        "a filter of an annotation": "(((" in failed,
    }
    assert [mistake for mistake, is_said in said.items() if not is_said] == []


def test_each_mistake_is_an_event_on_the_object_concerned(
    lab: Lab,
    consul: RawConsul,
    kube: RawKube,
    namespace: str,
    prefix: str,
    tmp_path: Path,
    eventually: Eventually,
) -> None:
    """What `kubectl describe` tells of the same catalog; a namespace that is not there can have no Event (the log)."""
    rules = [
        {**r, "to": {"namespace": namespace, **r.get("to", {})}} for r in mistakes(consul, kube, namespace, prefix)
    ]
    rules.append({"services": [f"{prefix}zoned"], "to": {"namespace": namespace}})
    rules.append({"services": [f"{prefix}crowd"], "to": {"namespace": namespace, "output": "endpoints"}})
    consul.json("PUT", "/v1/catalog/register", {
        "Node": f"{prefix}vm-z", "Address": "10.77.2.1", "NodeMeta": {"zone": "no label"},
        "Service": {"Service": f"{prefix}zoned", "Port": 80},
    })  # fmt: skip
    for n in range(1001):
        consul.register(f"{prefix}crowd", f"{prefix}vm-c{n}", f"10.78.{n >> 8}.{n & 255}", 80)
    file = tmp_path / "bridge.yaml"
    file.write_text(yaml.safe_dump({"rules": rules, "annotated": ALL_MAY_ASK}))
    env = environment(lab.consul.address, lab.kubeconfig)
    daemon = Daemon(lab, f"run-{prefix}", "--config", str(file), env=env)
    expected = [
        ("Attention", "elsewhere", "datacenter dc9, which may not be asked: only dc1 may"),
        ("Attention", "nobody", f"lists no service {prefix}nix"),
        ("Attention", f"{prefix}crowd", "the control plane cannot mirror these Endpoints: it copies 1000"),
        ("Attention", f"{prefix}zoned", "zone 'no label' is no label value"),
        ("Conflict", "alias", "ExternalName"),
        ("Conflict", "selecting", "selector"),
        ("InstancesSkipped", "shared", f"{prefix}two: "),
        ("ReadFailed", "odd-filter", "((("),
        ("ReadFailed", f"{prefix}refused", "Nonsense =="),
    ]

    def missing() -> list[tuple[str, str, str]]:
        found = kube.json("GET", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")["items"]
        said = [(e["reason"], e["regarding"]["name"], e["note"]) for e in found]
        return [e for e in expected if not any((r, n) == e[:2] and e[2] in note for r, n, note in said)]

    try:
        daemon.start()
        eventually(missing, [], 60)
        eventually(lambda: ready(kube, namespace, "fine"), ["10.77.1.1"])
        eventually(lambda: 'warnings{reason="mirror_refused"} 1.0' in daemon.get("/metrics")[1].decode(), True)
        eventually(lambda: f"namespace {namespace}-nix" in daemon.log.read_text(), True)
    finally:
        daemon.stop()


def test_a_name_of_which_nothing_is_left_is_reported(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """A service without a letter or digit cannot have a name in Kubernetes; one with a template can."""
    consul.register("_-_", f"{prefix}vm-1", "10.77.1.1", 80)
    refused = sync({"services": ["_-_"]})
    named = sync({"services": ["_-_"], "to": {"name": "odd-{service}"}})
    assert (refused.status, [row["message"] for row in refused.json["skipped"]]) == (
        0, ["the name '_-_' has no letter or digit to make a name of"],
    )  # fmt: skip
    assert (named.json["summary"]["create"], ready(kube, namespace, "odd")) == (3, ["10.77.1.1"])


def test_an_annotated_service_is_seen_by_status_and_explain(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """Without any rule; it chooses its instances by tags and its output by annotation."""
    for n, tag in ((1, "blue"), (2, "green")):
        consul.register(f"{prefix}pg", f"{prefix}vm-{n}", f"10.77.1.{n}", 5432, Tags=[tag])
    asked = {
        "consul-bridge/service": f"{prefix}pg", "consul-bridge/tags": "green", "consul-bridge/output": "both",
    }  # fmt: skip
    person(kube, namespace, "database", asked)
    assert sync().status == 0
    (row,) = sync(command="status").json["services"]
    (explanation,) = sync(command="explain", arguments=(f"{prefix}pg",)).json["explanations"]
    labels = (kube.endpoints(namespace, "database") or {})["metadata"]["labels"]
    assert (ready(kube, namespace, "database"), labels["endpointslice.kubernetes.io/skip-mirror"]) == (
        ["10.77.1.2"], "true",
    )  # fmt: skip
    assert (row["service"], row["name"], row["state"]) == (f"{prefix}pg", "database", "in_sync")
    assert (explanation["target"], explanation["rule"], [r["disposition"] for r in explanation["rows"]]) == (
        f"{namespace}/database", f"Service {namespace}/database", ["ready", "not selected"],
    )  # fmt: skip


def test_a_running_bridge_follows_what_a_user_changes_in_the_annotations(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Eventually
) -> None:
    """Other tags, another service: within moments."""
    for n, (name, tag) in enumerate((("pg", "blue"), ("pg", "green"), ("my", "blue")), 1):
        consul.register(f"{prefix}{name}", f"{prefix}vm-{n}", f"10.77.1.{n}", 5432, Tags=[tag])
    person(kube, namespace, "database", {"consul-bridge/service": f"{prefix}pg", "consul-bridge/tags": "blue"})
    env = environment(lab.consul.address, lab.kubeconfig)
    daemon = Daemon(lab, f"run-{prefix}", "--service", f"{prefix}none", "--namespace", namespace, env=env)

    def annotate(**marks: str) -> None:
        body = {"metadata": {"annotations": {f"consul-bridge/{key}": value for key, value in marks.items()}}}
        path = f"{SERVICES.format(namespace=namespace)}/database"
        kube.json("PATCH", path, body, "application/merge-patch+json")

    try:
        daemon.start()
        eventually(lambda: ready(kube, namespace, "database"), ["10.77.1.1"], 60)
        annotate(tags="green")
        eventually(lambda: ready(kube, namespace, "database"), ["10.77.1.2"], 60)
        annotate(service=f"{prefix}my", tags="")
        eventually(lambda: ready(kube, namespace, "database"), ["10.77.1.3"], 60)
    finally:
        daemon.stop()


@pytest.mark.parametrize("key", ["namespace", "partition"])
def test_a_community_server_refuses_enterprise_places_and_that_is_reported(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, key: str
) -> None:
    """In its own words, once, and the other rules are served."""
    consul.register(f"{prefix}good", f"{prefix}vm-1", "10.77.1.1", 80)
    result = sync({"services": [f"{prefix}web"], key: "team"}, {"services": [f"{prefix}good"]})
    reasons = [row["message"] for row in result.json["failed"]]
    assert (result.status, ready(kube, namespace, f"{prefix}good")) == (1, ["10.77.1.1"])
    assert [("Consul Enterprise feature" in reason, "Invalid query parameter" in reason) for reason in reasons] == [
        (True, True)
    ]


def test_a_peer_that_is_not_there_has_no_instances_and_that_is_reported(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """Consul answers with an empty list; the other rules are served."""
    consul.register(f"{prefix}good", f"{prefix}vm-1", "10.77.1.1", 80)
    result = sync({"services": [f"{prefix}web"], "peer": "cloud"}, {"services": [f"{prefix}good"]})
    assert (result.status, ready(kube, namespace, f"{prefix}good")) == (0, ["10.77.1.1"])
    assert [(row["service"], row["reason"]) for row in result.json["skipped"]] == [(f"{prefix}web", "peer_empty")]
    assert "the peer cloud shows no instance of it" in result.json["skipped"][0]["message"]
    probes = sync({"services": [f"{prefix}web"], "peer": "cloud"}, command="check").json["probes"]
    (peers,) = [probe for probe in probes if probe["probe"] == "peers"]
    assert (peers["state"], f"{prefix}web: the peer cloud shows" in peers["detail"]) == ("warning", True)


def test_a_selection_without_instances_is_not_called_a_missing_port(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """Addresses that no one can use, a tag in another case or with a comma, `Service.Port` of several ports."""
    consul.register(f"{prefix}local", f"{prefix}vm-1", "127.0.0.1", 80)
    consul.register(f"{prefix}db", f"{prefix}vm-2", "10.77.1.2", 80, Tags=["Primary", "a,b"])
    ports = [{"Name": "http", "Port": 8080, "Default": True}, {"Name": "metrics", "Port": 9090}]
    consul.register(f"{prefix}several", f"{prefix}vm-3", "10.77.1.3", 0, Ports=ports)
    person(kube, namespace, "primary", {"consul-bridge/service": f"{prefix}db", "consul-bridge/tags": "primary"})
    person(kube, namespace, "both", {"consul-bridge/service": f"{prefix}db", "consul-bridge/tags": "a,b"})
    rules = ({"services": [f"{prefix}local"]}, {"services": [f"{prefix}several"], "filter": "Service.Port == 8080"})
    report = sync(*rules).json
    codes = {row["service"]: row["reason"] for row in report["skipped"] if not row["instance"]}
    assert codes[f"{prefix}local"] == "no_usable_addresses"
    assert codes.get(f"{prefix}several") != "no_service_port"
    warned = {(row["name"], row["reason"]) for row in report["warnings"]}
    assert {("primary", "tag_case"), ("both", "tag_comma")} <= warned
    (explained,) = sync(*rules, arguments=(f"{prefix}several",), command="explain").json["explanations"]
    (row,) = explained["rows"]
    assert (row["reason"], "no filter can match its further ports" in row["message"]) == ("filtered_port", True)


def test_what_admission_refuses_is_reported_in_its_words_and_no_role_is_offered(
    sync: Sync, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """A quota, then a namespace that is being deleted: the first in its own words, the second also by check."""
    consul.register(f"{prefix}web", f"{prefix}vm-1", "10.77.1.1", 80)
    rule = {"services": [f"{prefix}web"]}
    core = f"/api/v1/namespaces/{namespace}"
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"services": "0"}}}
    kube.json("POST", f"{core}/resourcequotas", {"apiVersion": "v1", "kind": "ResourceQuota", **quota})
    counted = {"status": {"hard": {"services": "0"}, "used": {"services": "0"}}}  # the lab has no controller for it
    merge = "application/merge-patch+json"
    kube.json("PATCH", f"{core}/resourcequotas/none/status", counted, content_type=merge)
    (refused,) = [row for row in sync(rule).json["failed"] if row["kind"] == "Service"]
    assert refused["message"].startswith(f'services "{prefix}web" is forbidden: exceeded quota: none')
    assert ("Grant" in refused["message"], refused["reason"]) == (False, "permanent")
    kube.json("DELETE", f"{core}/resourcequotas/none")
    kept = {"metadata": {"name": "kept", "finalizers": ["example.com/test"]}}
    kube.json("POST", f"{core}/configmaps", {"apiVersion": "v1", "kind": "ConfigMap", **kept})
    kube.json("DELETE", core)
    try:
        (refused,) = [row for row in sync(rule).json["failed"] if row["kind"] == "Service"]
        assert "because it is being terminated" in refused["message"]
        assert ("Grant" in refused["message"], "kubectl get namespace" in refused["message"]) == (False, True)
        probes = {probe["probe"]: probe for probe in sync(rule, command="check").json["probes"]}
        found = probes[f"namespace {namespace}"]
        assert (found["state"], "is being deleted" in found["detail"]) == ("failed", True)
    finally:
        bare = [{"op": "remove", "path": "/metadata/finalizers"}]
        kube.json("PATCH", f"{core}/configmaps/kept", bare, content_type="application/json-patch+json")
