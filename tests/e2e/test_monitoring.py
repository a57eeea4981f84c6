"""Alerts and dashboard: Prometheus takes them, they fire when they should, and name only metrics that there are."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.docs import reference
from tests.support.lab import Lab, manifests
from tests.support.lab.build import binary
from tests.support.program import Daemon, environment
from tests.support.raw import RawConsul, RawKube, ready_addresses

ROOT = Path(__file__).resolve().parents[2]
FOLDER = manifests.MANIFESTS / "components/monitoring"
NAME = re.compile(r"\b(consul_bridge_[a-z_]+|process_[a-z_]+)\b")


def alerts() -> list[dict[str, Any]]:
    """The alerts' rules."""
    (group,) = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["spec"]["groups"]
    return list(group["rules"])


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    found: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
    return found


def panels() -> Iterator[tuple[str, str]]:
    """(title, expression) of everything that the dashboard draws."""
    for panel in dashboard()["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])


def expressions() -> Iterator[str]:
    """Every expression of the alerts and of the dashboard."""
    yield from (rule["expr"] for rule in alerts())
    yield from (expression for _, expression in panels())
    yield from (v["query"] for v in dashboard()["templating"]["list"] if v["type"] == "query")


def promtool(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it on files of `folder`."""
    return subprocess.run(
        [str(binary("promtool")), *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """A folder with the rules as Prometheus takes them."""
    spec = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["spec"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(spec))
    return tmp_path


@pytest.mark.lab
def test_prometheus_takes_the_rules(rules: Path) -> None:
    """Expressions, templates and durations."""
    done = promtool(rules, "check", "rules", "--lint=all", "--lint-fatal", "rules.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(alerts())} rules found" in done.stdout


@pytest.mark.lab
def test_prometheus_takes_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    """Each as a recording rule, with "all" for the variables at the dashboard's head; no other variable is used."""
    variables = {variable["name"] for variable in dashboard()["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", " ".join(expression for _, expression in panels())))
    assert used <= variables
    rules = [
        {
            "record": f"panel:number_{number}",
            "expr": re.sub(r"\$\{?\w+\}?", ".*", expression),
            "labels": {"title": title},
        }
        for number, (title, expression) in enumerate(panels())
    ]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = promtool(tmp_path, "check", "rules", "--lint=all", "--lint-fatal", "rules.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    """An input series of promtool's tests."""
    inner = ",".join(f'{key}="{value}"' for key, value in {"namespace": "storage", "pod": "one", **labels}.items())
    return {"series": f"{name}{{{inner}}}", "values": values}


BUILD = "consul_bridge_build_info"
LEADER = "consul_bridge_leader"
CASES: dict[str, tuple[list[dict[str, str]], list[dict[str, str]]]] = {
    # alert: (series with which it fires within the hour, series with which it stays silent)
    "ConsulBridgeAbsent": (
        [series(BUILD, "1x20 stale")], [series(BUILD, "1x20 stale"), series(BUILD, "1x120", pod="two")],
    ),
    "ConsulBridgeNotReady": ([series("consul_bridge_ready", "0x120")], [series("consul_bridge_ready", "1x120")]),
    "ConsulBridgeReplicaDown": (
        [series(BUILD, "1x120"), series("up", "1x120"), series("up", "0x120", pod="two")],
        [series(BUILD, "1x120"), series("up", "1x120"), series("up", "0x120", job="of-somebody-else")],
    ),
    "ConsulBridgeNoLeader": (
        [series(LEADER, "0x120", shard="0"), series(LEADER, "0x120", shard="0", pod="two")],
        [series(LEADER, "0x120", shard="0"), series(LEADER, "1x120", shard="0", pod="two")],
    ),
    "ConsulBridgeTwoLeaders": (
        [series(LEADER, "1x120", shard="0"), series(LEADER, "1x120", shard="0", pod="two")],
        [series(LEADER, "1x120", shard="0"), series(LEADER, "1x120", shard="1", pod="two")],
    ),
    "ConsulBridgeConsulDown": (
        [series("consul_bridge_consul_up", "0x120", datacenter="dc1")],
        [series("consul_bridge_consul_up", "0x120", datacenter="dc1"),
         series("consul_bridge_consul_up", "1x120", datacenter="dc1", pod="two")],
    ),
    "ConsulBridgeKubernetesDown": (
        [series("consul_bridge_kubernetes_up", "0x120")], [series("consul_bridge_kubernetes_up", "1x120")],
    ),
    "ConsulBridgeRemovalsHeld": (
        [series("consul_bridge_held_endpoints", "12x120")], [series("consul_bridge_held_endpoints", "0x120")],
    ),
    "ConsulBridgeConflicts": (
        [series("consul_bridge_conflicts", "1x120")], [series("consul_bridge_conflicts", "0x120")],
    ),
    "ConsulBridgeNoReadyEndpoints": (
        [series("consul_bridge_services_without_ready_endpoints", "1x120")],
        [series("consul_bridge_services_without_ready_endpoints", "0x120")],
    ),
    "ConsulBridgeConflictingWriter": (
        [series("consul_bridge_conflicting_writer", "1x120")], [series("consul_bridge_conflicting_writer", "0x120")],
    ),
    "ConsulBridgeUnmirrored": (
        [series("consul_bridge_warnings", "1x120", reason="unmirrored")],
        [series("consul_bridge_warnings", "0x120", reason="unmirrored"),
         series("consul_bridge_warnings", "1x120", reason="zone_invalid")],
    ),
    "ConsulBridgeOutOfSync": (
        [series("consul_bridge_services_with_deviating_slices", "1x120")],
        [series("consul_bridge_services_with_deviating_slices", "0x120"),
         series("consul_bridge_services", "5x120", state="out_of_sync")],
    ),
    "ConsulBridgeForeignSlices": (
        [series("consul_bridge_foreign_slices", "1x120")],
        [series("consul_bridge_foreign_slices", "0x120")],
    ),
    "ConsulBridgeAltered": (
        [series("consul_bridge_errors_total", "0+1x120", kind="altered")],
        [series("consul_bridge_errors_total", "0+1x120", kind="permanent")],
    ),
    "ConsulBridgeRefused": (
        [series("consul_bridge_errors_total", "0+1x120", kind="permanent")],
        [series("consul_bridge_errors_total", "0+1x120", kind="transient"),
         series("consul_bridge_errors_total", "5x120", kind="permanent")],
    ),
    "ConsulBridgeServiceReadErrors": (
        [series("consul_bridge_service_read_errors", "1x120", cause="rule")],
        [series("consul_bridge_service_read_errors", "0x120", cause="rule"),
         series("consul_bridge_service_read_errors", "1x120", cause="annotation")],
    ),
    "ConsulBridgeForbiddenNamespaces": (
        [series("consul_bridge_forbidden_namespaces", "1x120")],
        [series("consul_bridge_forbidden_namespaces", "0x120")],
    ),
    "ConsulBridgeSlow": (
        [series("consul_bridge_sync_lag_seconds_bucket", "0x120", le="5"),
         series("consul_bridge_sync_lag_seconds_bucket", "0+9x120", le="10"),
         series("consul_bridge_sync_lag_seconds_bucket", "0+9x120", le="+Inf")],
        [series("consul_bridge_sync_lag_seconds_bucket", "0+9x120", le="0.1"),
         series("consul_bridge_sync_lag_seconds_bucket", "0+9x120", le="+Inf")],
    ),
    "ConsulBridgeBacklog": (
        [series("consul_bridge_queue_length", "1500x120")], [series("consul_bridge_queue_length", "900x120")],
    ),
    "ConsulBridgeStale": (
        [series("consul_bridge_last_successful_pass_timestamp_seconds", "0x120")],
        [series("consul_bridge_last_successful_pass_timestamp_seconds", "0+60x120")],
    ),
    "ConsulBridgeMissedChanges": (
        [series("consul_bridge_missed_changes_total", "0x20 1x100", datacenter="dc1")],
        [series("consul_bridge_missed_changes_total", "1x120", datacenter="dc1")],
    ),
}  # fmt: skip


def scraped(given: list[dict[str, str]], installation: str) -> list[dict[str, str]]:
    """The series as the PodMonitor of an installation names them; all installations are in one namespace here."""
    label = f'{{job="storage/{installation}",'
    return [g if "job=" in g["series"] else {**g, "series": g["series"].replace("{", label, 1)} for g in given]


def assert_fires(folder: Path, alert: str, given: list[dict[str, str]], jobs: list[str], at: str = "1h") -> None:
    """In promtool's simulation the alert fires for these installations, once for each, and for nothing else."""
    expression = f'count by (job) (ALERTS{{alertname="{alert}",alertstate="firing"}})'
    expected = [{"labels": f'{{job="{job}"}}' if job else "{}", "value": 1} for job in jobs]
    test = {
        "interval": "1m",
        "input_series": given,
        "promql_expr_test": [{"expr": expression, "eval_time": at, "exp_samples": expected}],
    }
    content = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}
    (folder / "test.yaml").write_text(yaml.safe_dump(content))
    done = promtool(folder, "test", "rules", "test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.lab
@pytest.mark.parametrize("alert", sorted(CASES))
def test_an_alert_fires_when_it_should_and_not_otherwise(rules: Path, alert: str) -> None:
    """Two hours of one installation, asked after one."""
    firing, silent = CASES[alert]
    assert_fires(rules, alert, scraped(firing, "blue"), ["storage/blue"])
    assert_fires(rules, alert, scraped(silent, "blue"), [])


@pytest.mark.lab
@pytest.mark.parametrize("alert", sorted(CASES))
def test_two_installations_in_one_namespace_are_two(rules: Path, alert: str) -> None:
    """The one in trouble is named, the other neither hides it nor adds to it."""
    firing, silent = CASES[alert]
    assert_fires(rules, alert, scraped(firing, "blue") + scraped(silent, "green"), ["storage/blue"])
    assert_fires(rules, alert, scraped(silent, "blue") + scraped(silent, "green"), [])


@pytest.mark.lab
def test_absence_is_reported_of_what_never_was_and_forgotten_of_what_was_taken_away(rules: Path) -> None:
    """With nothing at all it rings from the start and goes on; one of several that is gone rings for six hours."""
    gone, there = scraped([series(BUILD, "1x20 stale")], "blue"), scraped([series(BUILD, "1x600")], "green")
    assert_fires(rules, "ConsulBridgeAbsent", [], [""])
    assert_fires(rules, "ConsulBridgeAbsent", gone, [""], "8h")
    assert_fires(rules, "ConsulBridgeAbsent", gone + there, ["storage/blue"], "6h")
    assert_fires(rules, "ConsulBridgeAbsent", gone + there, [], "8h")


def test_every_alert_has_a_case_and_a_section_in_the_runbook() -> None:
    """With a severity, a summary, a description, and the address of its section."""
    guide = (ROOT / "docs/operations.md").read_text()
    names = [rule["alert"] for rule in alerts()]
    assert sorted(names) == sorted(CASES)
    assert re.findall(r"^### (ConsulBridge\w+)$", guide, re.MULTILINE) == names
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert {"summary", "description", "runbook_url"} == rule["annotations"].keys()
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{rule['alert'].lower()}"


@pytest.mark.lab
def test_every_metric_that_is_named_is_served(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Callable[..., None]
) -> None:
    """By a bridge at work, with leaders elected; and the reference lists every metric that it serves."""
    consul.register(f"{prefix}web", f"{prefix}vm-1", "10.79.1.1", 80)
    env = environment(lab.consul.address, lab.kubeconfig, BRIDGE_RUN_LEASE_NAMESPACE=namespace)
    arguments = ("--service", f"{prefix}*", "--namespace", namespace, "--leader-elect", "--owner", namespace)
    daemon = Daemon(lab, f"bridge-{namespace}", *arguments, env=env)
    named = {name for expression in expressions() for name in NAME.findall(expression)}

    def served() -> set[str]:
        lines = daemon.get("/metrics")[1].decode().splitlines()
        return {line.split("{")[0].split(" ")[0] for line in lines if line and not line.startswith("#")}

    daemon.start()
    try:
        eventually(lambda: ready_addresses(kube.endpoints(namespace, f"{prefix}web")), [("10.79.1.1", 80)], 20)
        eventually(lambda: named - served(), set())  # a write is counted when it is done, and seen before
        found = served()
    finally:
        daemon.stop()
    described = reference.text()
    for name in found:
        if name.startswith("consul_bridge_") and not name.endswith("_created"):
            assert f"`{re.sub(r'_(bucket|sum|count)$', '', name)}`" in described, name


@pytest.mark.parametrize("components", [("monitoring",), ("monitoring", "shards")])
def test_the_component_renders(components: tuple[str, ...], tmp_path: Path) -> None:
    """With the namespace of the overlay, and selectors that find the pods."""
    objects = manifests.overlay(tmp_path, "elsewhere", components)
    monitor = manifests.of_kind(objects, "PodMonitor")
    labels = manifests.pod_template(objects)["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    ports = {p["name"] for p in manifests.container(objects)["ports"]}
    assert {e["port"] for e in monitor["spec"]["podMetricsEndpoints"]} <= ports
    assert {o["metadata"]["namespace"] for o in objects if o["kind"] in ("PodMonitor", "PrometheusRule")} == {
        "elsewhere"
    }
    (dashboard,) = [o for o in objects if o["kind"] == "ConfigMap" and "grafana_dashboard" in o["metadata"]["labels"]]
    assert json.loads(dashboard["data"]["consul-endpoints-bridge.json"])["panels"]
