"""The ACL policy of docs/operations.md is enough, and all of it is needed, on a real Consul under default deny."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.lab import Lab
from tests.support.program import Daemon, Result, bridge, environment
from tests.support.raw import SLICES, RawConsul, RawKube, ready_addresses

pytestmark = pytest.mark.lab

Eventually = Callable[..., None]

PAGE = Path(__file__).resolve().parents[2] / "docs/operations.md"
RULES = tuple(re.findall(r"<<'HCL'\n(.*?)HCL\n", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0].strip().splitlines())
SERVICES, NODES = RULES
GOOD = [("10.77.1.1", 80), ("10.77.1.2", 80)]
ALL = [*GOOD, ("10.77.1.3", 5432)]


@pytest.fixture(scope="module")
def strict() -> Iterator[Lab]:
    """Default deny, with two services on three nodes."""
    with Lab(acl=True) as lab:
        with lab.raw_consul() as consul:
            for n in (1, 2):
                consul.register("web", f"vm-{n}", f"10.77.1.{n}", 80)
            consul.register("db", "vm-3", "10.77.1.3", 5432)
        yield lab


@pytest.fixture
def mirrored(strict: Lab) -> Iterator[str]:
    """A namespace in which the services are mirrored already, by a token that sees everything."""
    name = f"n-{uuid4().hex[:8]}"
    with strict.raw_kube() as kube:
        kube.json("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        run = bridge("sync", "--yes", "--namespace", name, env=with_rules(strict, RULES))
        assert run.status == 0, run.stderr
        yield name
        kube.delete(f"/api/v1/namespaces/{name}")


def with_rules(lab: Lab, rules: tuple[str, ...]) -> dict[str, str]:
    """An environment whose token has a policy of these rules."""
    name = f"p-{uuid4().hex[:8]}"
    with lab.raw_consul() as consul:
        consul.json("PUT", "/v1/acl/policy", {"Name": name, "Rules": "\n".join(rules)})
        made = consul.json("PUT", "/v1/acl/token", {"Policies": [{"Name": name}]})
    token = made["SecretID"]
    return environment(lab.consul.address, lab.kubeconfig, CONSUL_HTTP_TOKEN=token, BRIDGE_SERVICE="*")


def probe(result: Result) -> tuple[str, str]:
    """State and remedy of what check says of the token."""
    (found,) = (p for p in result.json["probes"] if p["probe"] == "token in dc1")
    return found["state"], found["remedy"]


def ready(kube: RawKube, namespace: str) -> list[tuple[str, int]]:
    """What Kubernetes has for web."""
    return ready_addresses(kube.endpoints(namespace, "web"))


def stands(kube: RawKube, namespace: str) -> list[tuple[str, int]]:
    """What Kubernetes has for web and db."""
    return [*ready(kube, namespace), *ready_addresses(kube.endpoints(namespace, "db"))]


class Narrowed(Daemon):
    """Whose readiness goes on to name what is hidden: it has started when the first pass is done."""

    def ready(self) -> bool:
        return self.readiness().get("first_pass_done") is True


def passes(daemon: Daemon) -> int:
    """Full passes that a daemon has made."""
    return sum(event["event"] == "full pass planned" for event in daemon.events())


def test_the_policy_has_two_rules() -> None:
    """Those that the tests below know."""
    assert [rule.split()[0] for rule in RULES] == ["service_prefix", "node_prefix"]


@pytest.mark.slow
def test_the_documents_policy_is_enough(strict: Lab, mirrored: str, eventually: Eventually) -> None:
    """For check, for a pass, and for following what happens."""
    env = with_rules(strict, RULES)
    with strict.raw_kube() as kube:  # the control plane's own part, by which check judges it
        eventually(lambda: len(kube.json("GET", SLICES.format(namespace=mirrored))["items"]), 2)
    check = bridge("check", "-o", "json", "--namespace", mirrored, env=env)
    bad = [p for p in check.json["probes"] if p["state"] != "ok"]
    assert (check.status, bad) == (0, [])
    daemon = Daemon(strict, f"run-{mirrored}", "--namespace", mirrored, env=env)
    with strict.raw_kube() as kube, strict.raw_consul() as consul:
        try:
            daemon.start()
            consul.flip("web", "vm-2", "critical")
            eventually(lambda: ready(kube, mirrored), GOOD[:1], 20)
            consul.flip("web", "vm-2", "passing")
            eventually(lambda: ready(kube, mirrored), GOOD, 20)
        finally:
            daemon.stop()
    said = [event for event in daemon.events() if event["level"] in ("warning", "error")]
    assert said == []


@pytest.mark.parametrize(("kept", "missing"), [((NODES,), SERVICES), ((SERVICES,), NODES)], ids=["services", "nodes"])
def test_a_rule_that_is_missing_is_named_and_takes_nothing_away(
    strict: Lab, mirrored: str, kept: tuple[str, ...], missing: str
) -> None:
    """By check, with status 1; a pass with such a token leaves everything, and says that it could not read."""
    env = with_rules(strict, kept)
    check = bridge("check", "-o", "json", "--namespace", mirrored, env=env)
    assert (check.status, probe(check)) == (1, ("failed", f"its policy lacks: {missing}"))
    sync = bridge("sync", "--yes", "--namespace", mirrored, env=env)
    with strict.raw_kube() as kube:
        assert ready(kube, mirrored) == GOOD, sync.stderr
    assert sync.status == 1, sync.stdout


@pytest.mark.parametrize(
    ("rule", "state", "words"),
    [
        ('service_prefix "web" { policy = "read" }', "warning", f"if others are wanted, its policy lacks: {SERVICES}"),
        ('node_prefix "vm-1" { policy = "read" }', "warning", f"its policy lacks: {NODES}"),
    ],
    ids=["services", "nodes"],
)
def test_a_narrower_rule_is_reported_and_takes_nothing_away(
    strict: Lab, mirrored: str, rule: str, state: str, words: str
) -> None:
    """It may be meant."""
    other = NODES if rule.startswith("service") else SERVICES
    env = with_rules(strict, (rule, other))
    check = bridge("check", "-o", "json", "--namespace", mirrored, env=env)
    assert probe(check) == (state, words)
    sync = bridge("sync", "--yes", "-o", "json", "--namespace", mirrored, env=env)
    said = [row["message"] for row in sync.json["warnings"]]
    assert [NODES in reason for reason in said] == ([True] if other == SERVICES else [])
    with strict.raw_kube() as kube:
        assert stands(kube, mirrored) == ALL


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule",
    ['service_prefix "web" { policy = "read" }', 'node_prefix "vm-1" { policy = "read" }'],
    ids=["services", "nodes"],
)
def test_a_narrower_rule_takes_nothing_away_from_the_daemon_either(
    strict: Lab, mirrored: str, rule: str, eventually: Eventually
) -> None:
    """Started with it, and following what it still sees: what is hidden stays through passes and changes."""
    env = with_rules(strict, (rule, NODES if rule.startswith("service") else SERVICES))
    often = ("--resync", "10s", "--removal-grace-period", "1s", "--log-level", "debug")
    daemon = Narrowed(strict, f"narrow-{mirrored}", "--namespace", mirrored, *often, env=env)
    with strict.raw_kube() as kube, strict.raw_consul() as consul:
        try:
            daemon.start()
            consul.flip("web", "vm-1", "critical")
            eventually(lambda: GOOD[0] in ready(kube, mirrored), False, 20)
            consul.flip("web", "vm-1", "passing")
            eventually(lambda: stands(kube, mirrored), ALL, 20)
            before = passes(daemon)
            eventually(lambda: passes(daemon) > before, True, 60)
        finally:
            daemon.stop()
        assert stands(kube, mirrored) == ALL


def test_the_documents_commands_make_that_token(strict: Lab, tmp_path: Path) -> None:
    """As far as their words go: the file and the two commands of the page."""
    text = PAGE.read_text(encoding="utf-8")
    assert "consul acl policy create -name bridge -rules @bridge.hcl" in text
    with RawConsul(strict.consul.address, strict.consul.token) as consul:
        made = consul.json("PUT", "/v1/acl/policy", {"Name": "bridge", "Rules": "\n".join(RULES)})
    assert made["Rules"] == "\n".join(RULES)
