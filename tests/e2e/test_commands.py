"""What the looking commands say of real servers, and what a user's hand (or pipe) on the terminal does to a pass."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.lab import Lab
from tests.support.program import BRIDGE, Result, bridge, environment
from tests.support.raw import ENDPOINTS, SERVICES, SLICES, RawConsul, RawKube, ready_addresses

pytestmark = pytest.mark.lab

Json = dict[str, Any]
Eventually = Callable[..., None]
Run = Callable[..., Result]


@pytest.fixture
def run(lab: Lab, namespace: str, prefix: str) -> Run:
    """Run any command for this test's services and namespace."""
    env = environment(lab.consul.address, lab.kubeconfig)

    def command(name: str, *arguments: str, selecting: bool = True) -> Result:
        select = ("--service", f"{prefix}*") if selecting else ()
        return bridge(name, *arguments, *select, "--namespace", namespace, env=env)

    return command


@pytest.fixture
def configured(lab: Lab, namespace: str, tmp_path: Path) -> Run:
    """Run any command with a settings file; a rule without a namespace goes to this test's."""
    env = environment(lab.consul.address, lab.kubeconfig)

    def command(name: str, *arguments: str, rules: list[Json], **settings: Any) -> Result:
        whole = [{**rule, "to": {"namespace": namespace, **rule.get("to", {})}} for rule in rules]
        file = tmp_path / "bridge.yaml"
        file.write_text(yaml.safe_dump({"rules": whole, **settings}))
        return bridge(name, *arguments, "--config", str(file), env=env)

    return command


def probes(result: Result) -> dict[str, tuple[str, str]]:
    """State and text of each probe of `check -o json`."""
    return {p["probe"]: (p["state"], f"{p['detail']} -> {p['remedy']}") for p in result.json["probes"]}


# --------------------------------------------------------------------------- check


def test_check_says_ok_line_by_line_and_writes_nothing(
    run: Run, lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Eventually
) -> None:
    """Before the first sync mirroring cannot be told; afterwards it names the Endpoints that it judged by."""
    consul.register(f"{prefix}web", f"{prefix}vm", "10.77.1.1", 80)
    output = ("--output-kind", "endpoints")  # with slices of our own nothing depends on the mirror
    before = run("check", "-o", "json", *output)
    assert (before.status, kube.endpoints(namespace, f"{prefix}web")) == (0, None)
    run("sync", "--yes", *output)
    slices = f"{SLICES.format(namespace=namespace)}?labelSelector=kubernetes.io/service-name={prefix}web"
    eventually(lambda: len(kube.json("GET", slices)["items"]), 1)  # the control plane's part, by which check judges it
    after = run("check", "-o", "json", *output)
    found = probes(after)
    assert {state for state, _ in found.values()} == {"ok"}
    assert list(found) == [
        "settings", "consul address", "consul token", "kubernetes address", "kubernetes user", "kubernetes token",
        "consul reachable", "consul version", "consul leader", "consul datacenters", "token in dc1",
        "selected services", "names", "sizes", "kubernetes reachable", "kubernetes version",
        f"namespace {namespace}", f"rights in {namespace}", "addresses of the cluster's nodes", "mirroring", "slices",
    ]  # fmt: skip
    assert probes(before)["mirroring"][0] == "warning"
    assert f"seen at {namespace}/{prefix}web" in found["mirroring"][1]
    text = run("check", *output).stdout
    lines = [line for line in text.splitlines() if line[:1] != " "]
    assert ([line[:3] for line in lines[:-2]], lines[-2:]) == (["ok "] * 21, ["", "21 ok"])


def test_check_names_what_mends_each_failure(
    lab: Lab, configured: Run, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """Rights, a filter that Consul refuses, a namespace that is not there, a clash of names, a rule never used."""
    consul.register(f"{prefix}web", f"{prefix}vm", "10.77.1.1", 80)
    consul.register(f"{prefix}WEB-", f"{prefix}vm", "10.77.1.1", 81)
    consul.register(f"x{prefix}", f"{prefix}vm", "10.77.1.1", 82)
    verbs = ["list", "watch"]
    reading = [{"apiGroups": ["", "discovery.k8s.io"], "resources": ["services", "endpoints", "endpointslices"],
                "verbs": verbs}]  # fmt: skip
    limited = lab.service_account(namespace, "reader", reading)
    rules = [
        {"services": [f"{prefix}*"]},
        {"name": "narrow", "services": [f"{prefix}web"]},
        {"services": [f"x{prefix}"], "filter": "Nonsense ==", "to": {"namespace": f"{namespace}-nix"}},
    ]
    result = configured(
        "check", "-o", "json", "--kubeconfig", str(limited),
        rules=rules, kubernetes={"nodes": ["*"]}, run={"leader_elect": True},
    )  # fmt: skip
    bad = {name: words for name, words in probes(result).items() if words[0] != "ok"}
    expected = {
        "narrow": ("warning", "never used: rule 1 ", "put the narrower rule first"),
        "kubernetes token": ("warning", f"in kubeconfig {limited}; ends", "renew it there"),
        "networks": ("warning", "guard.allow_cidrs"),
        "names": ("warning", f"{prefix}WEB-: {namespace}/{prefix}web goes to {prefix}web in dc1", "name template"),
        f"reading x{prefix}": ("failed", "Consul cannot use the filter 'Nonsense =='", "rules[].filter"),
        f"rights in {namespace}": (
            "failed",
            "not allowed: create services, patch",
            "manifests/base/role.yaml in",
            f"--role=consul-endpoints-bridge --serviceaccount={namespace}:reader -n {namespace}",
        ),
        f"rights in {namespace}-nix": ("failed", "not allowed: list services", f"in namespace {namespace}-nix"),
        f"leader election in {namespace}": (
            "failed",
            "list leases, watch leases, create",
            "kubectl create role ",
            f"kubectl create rolebinding bridge-leader --role=bridge-leader --serviceaccount={namespace}:reader",
        ),
        "nodes of the cluster": ("failed", "may not be listed", "kubectl create clusterrole bridge-nodes"),
    }
    assert (result.status, sorted(bad)) == (1, sorted(expected))
    wrong = {
        n: bad[n]
        for n, (state, *words) in expected.items()
        if bad[n][0] != state or any(w not in bad[n][1] for w in words)
    }
    assert wrong == {}


def test_check_says_that_a_namespace_is_missing_and_how_it_is_made(run: Run, namespace: str) -> None:
    """With the command that makes it, once: what could not be created in it is no matter of admission."""
    found = probes(run("check", "-o", "json", "--watch-namespace", f"{namespace}-nix"))
    assert found[f"namespace {namespace}-nix"] == (
        "failed", f"does not exist -> kubectl create namespace {namespace}-nix",
    )  # fmt: skip
    assert [name for name, (state, _) in found.items() if state == "failed"] == [f"namespace {namespace}-nix"]


@pytest.mark.slow
def test_check_sees_what_the_control_plane_does_not_carry(run: Run, consul: RawConsul, prefix: str) -> None:
    """More than a thousand instances in Endpoints: slices of ours carry them, and each command says why."""
    for n in range(1001):
        consul.register(f"{prefix}web", f"{prefix}vm-{n}", f"10.78.{n >> 8}.{n & 255}", 80)
    output = ("--output-kind", "endpoints")
    found = probes(run("check", "-o", "json", *output))["sizes"]
    assert (found[0], f"cannot mirror: {prefix}web (it copies 1000 addresses" in found[1]) == ("ok", True)
    assert probes(run("check", "-o", "json"))["sizes"][1].startswith("no service is past")
    run("sync", "--yes", *output)
    for text in (
        run("status", "-o", "json", *output).json["services"][0]["detail"],
        run("explain", f"{prefix}web", *output).stdout.replace("\n", " "),
    ):
        assert "the control plane cannot mirror these Endpoints: it copies 1000 addresses" in text


@pytest.mark.slow
@pytest.mark.parametrize("fresh_lab", [{"controllers": False}], indirect=True)
def test_check_sees_a_control_plane_that_does_not_mirror(fresh_lab: Lab) -> None:
    """Endpoints exist, and no controller makes slices of them: traffic goes nowhere."""
    env = environment(fresh_lab.consul.address, fresh_lab.kubeconfig)
    with fresh_lab.raw_consul() as consul:
        consul.register("web", "vm", "10.77.1.1", 80)
    chosen = ("--service", "web", "--namespace", "default", "--output-kind", "endpoints")
    synced = bridge("sync", *chosen, "--yes", env=env)
    result = bridge("check", *chosen, "-o", "json", env=env)
    state, text = probes(result)["mirroring"]
    assert (synced.status, result.status, state) == (0, 1, "failed")
    assert "default/web" in text
    assert "endpointslice-mirroring-controller, or --output-kind both" in text


def test_check_without_servers_looks_at_the_settings_alone(tmp_path: Path) -> None:
    """Mistakes with line and column; with none, the rules that are never used."""
    file = tmp_path / "bridge.yaml"
    env = environment("http://127.0.0.1:1", tmp_path / "no-kubeconfig")
    file.write_text("rules:\n- services: ['a*']\n  to: {prot: UDP}\n- to: {port: 0}\n")
    broken = bridge("check", "--offline", "--config", str(file), env=env)
    file.write_text("rules:\n- services: ['a*']\n- services: [abc]\n- services: [b]\n")
    good = bridge("check", "--offline", "--config", str(file), env=env)
    assert broken.status == 2
    for mistake in (f"{file}:3:8: unknown key 'prot'", f"{file}:4:14: rules[1].to.port: 0"):
        assert mistake in broken.stderr
    assert (good.status, good.stdout.splitlines()) == (
        0,
        [
            "ok      settings: 3 rules",
            f"warning rule 2 ({file}:3:3): never used: rule 1 ({file}:2:3) comes first and matches every name that it "
            "matches",
            "        -> put the narrower rule first, or join the two",
            "",
            "1 warning, 1 ok",
        ],
    )


# --------------------------------------------------------------------------- status --watch


class Terminal:
    """A command on a terminal of so many columns and lines, and all that it has written there."""

    def __init__(self, *arguments: str, env: dict[str, str], width: int = 80, height: int = 24) -> None:
        self.written = b""
        self._screen, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.process = subprocess.Popen(
            [BRIDGE, *arguments],
            stdin=inside,
            stdout=inside,
            stderr=subprocess.DEVNULL,
            env=env,
            start_new_session=True,
        )
        os.close(inside)

    def read(self) -> str:
        """What is on the screen now: all that was written since it was last cleared from the top."""
        while select.select([self._screen], [], [], 0)[0]:
            try:
                self.written += os.read(self._screen, 65536)  # may end within a character
            except OSError:  # the command has ended
                break
        pages = self.written.decode(errors="replace").split("\x1b[H")
        return pages[-1] if "\x1b[J" in pages[-1] else pages[-2] if len(pages) > 2 else ""

    def interrupt(self) -> int:
        """Ctrl-C; the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)

    def close(self) -> None:
        """End the command, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._screen)


@pytest.mark.parametrize(("width", "colour"), [(80, True), (200, False)])
def test_watching_the_status_refreshes_in_place_and_ends_on_ctrl_c(
    lab: Lab, run: Run, consul: RawConsul, namespace: str, prefix: str, eventually: Eventually, width: int, colour: bool
) -> None:
    """A flip is seen at the next reading; no line is wider than the terminal; Ctrl-C is 130."""
    consul.register(f"{prefix}web", f"{prefix}vm", "10.77.1.1", 80)
    run("sync", "--yes")
    env = environment(lab.consul.address, lab.kubeconfig, TERM="xterm", **({} if colour else {"NO_COLOR": "1"}))
    arguments = ("--service", f"{prefix}*", "--namespace", namespace, "--interval", "500ms")
    terminal = Terminal("status", "--watch", *arguments, env=env, width=width)
    try:
        eventually(lambda: "1 in sync   read at " in terminal.read(), True, 60)
        consul.flip(f"{prefix}web", f"{prefix}vm", "critical")
        eventually(lambda: "1 out of sync   read at " in terminal.read(), True, 60)
        screen = terminal.read()
        status = terminal.interrupt()
    finally:
        terminal.close()
    lines = [re.sub(r"\x1b\[[0-9;]*[mKJ]", "", line).rstrip("\r") for line in screen.split("\n")]
    assert (status, max(map(len, lines)) <= width) == (130, True)
    assert ("\x1b[33m" in screen) == colour


def test_watching_through_a_pipe_ends_with_its_reader(lab: Lab, run: Run, namespace: str, prefix: str) -> None:
    """`bridge status --watch | head` does not go on forever; there are no control characters in it."""
    env = environment(lab.consul.address, lab.kubeconfig)
    arguments = ("--service", f"{prefix}*", "--namespace", namespace, "--interval", "500ms")
    process = subprocess.Popen([BRIDGE, "status", "-w", *arguments], env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as output:
        lines = [output.readline() for _ in range(4)]
    assert process.wait(60) == 0
    assert lines[0].startswith("read at "), lines
    note = f"rule 1 (--service, --namespace): dc1 lists no service {prefix}*\n"
    assert lines[1:] == ["nothing is mirrored\n", "\n", note]


# --------------------------------------------------------------------------- explain, status, diff


def gateways(consul: RawConsul, prefix: str) -> str:
    """Twelve healthy instances but for the third; the service's name."""
    for n in range(1, 13):
        status = "critical" if n == 3 else "passing"
        consul.register(
            f"{prefix}gw", f"{prefix}vm-{n:02}", f"10.77.0.{n}", 8080, status=status, Tags=["s3"] if n > 2 else []
        )
    return f"{prefix}gw"


def rows(text: str) -> list[list[str]]:
    """The cells of a table's rows (they are two blanks apart), the titles left out."""
    return [re.split(r" {2,}", line) for line in text.splitlines() if re.match(r"t[0-9a-f]{6}-", line)]


def test_a_healthy_service_is_explained(run: Run, consul: RawConsul, namespace: str, prefix: str) -> None:
    """Its rule, its target, a line per instance what is not well first, and that all is as it should be."""
    name = gateways(consul, prefix)
    run("sync", "--yes")
    text = run("explain", name).stdout
    assert text.startswith(
        f"Service:  {name} in dc1\nRule:     rule 1 (--service, --namespace)\nTarget:   {namespace}/{name}\n"
        "Consul:   12 instances\n"
    )
    found = rows(text)
    node = f"{prefix}vm-03"
    assert len(found) == 12
    assert "In all 12 rows: PORTS 8080; at the node's address (the service has none)\n" in text
    assert found[0] == [  # what is not well comes first
        f"{node}/{name}-{node}", "critical", "10.77.0.3", "not ready", "not ready",
        f"check check:{name}-{node}",
    ]  # fmt: skip
    (explanation,) = run("explain", name, "-o", "json").json["explanations"]
    assert all(re.fullmatch(rf"subset 1, {name}-[0-9a-f]{{8}}", row["group"]) for row in explanation["rows"])
    assert text.endswith("\nKubernetes holds exactly this.\n")
    (row,) = run("status", "-o", "json").json["services"]
    assert (row["state"], row["consul"], row["kubernetes"]) == (
        "in_sync", {"ready": 11, "not_ready": 1}, {"ready": 11, "not_ready": 1},
    )  # fmt: skip
    assert run("sync", "--dry-run", "-o", "diff").stdout == ""


def test_a_filtered_service_says_what_leaves_each_instance_out(configured: Run, consul: RawConsul, prefix: str) -> None:
    """Tags, Consul's filter, networks, addresses, ports: each its own sentence."""
    name = gateways(consul, prefix)
    consul.register(name, f"{prefix}vm-13", "127.0.0.1", 8080, Tags=["s3"])
    consul.register(name, f"{prefix}vm-14", "10.77.0.14", 0, Tags=["s3"])
    rule = {
        "name": "gateways", "services": [f"{prefix}*"], "tags": ["s3"], "filter": 'Node.Node != "' + prefix + 'vm-12"',
        "instances": {"deny_cidrs": ["10.77.0.8/31"], "critical": "omit"},
    }  # fmt: skip
    result = configured("explain", name, "-o", "json", rules=[{"services": ["x"]}, rule])
    (explanation,) = result.json["explanations"]
    reasons = {row["instance"].split("/")[0][-2:]: row["message"] for row in explanation["rows"] if row["message"]}
    assert [v["why_not"] for v in explanation["rules"]] == ["the name matches none of x", ""]
    assert (explanation["rule"], explanation["filter"]) == ("gateways", f'Node.Node != "{prefix}vm-12"')
    assert reasons == {
        "01": "the rule's tags or meta do not select it",
        "02": "the rule's tags or meta do not select it",
        "03": f"omitted because it is critical (check check:{name}-{prefix}vm-03)",
        "08": "10.77.0.8 is in deny_cidrs (10.77.0.8/31)",
        "09": "10.77.0.9 is in deny_cidrs (10.77.0.8/31)",
        "12": "the rule's filter leaves it out",
        "13": "127.0.0.1 is a loopback address: it would mean each client's own machine",
        "14": "it has no port, and the rule gives none",
    }


def test_a_colliding_service_names_the_one_that_has_its_name(
    run: Run, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """In explain, and in the plan; it is mirrored when the other goes away."""
    consul.register(f"{prefix}a.b", f"{prefix}vm-1", "10.77.1.1", 80)
    consul.register(f"{prefix}a_b", f"{prefix}vm-2", "10.77.1.2", 80)
    target = f"{namespace}/{prefix}a-b"
    why = f"{target} goes to {prefix}a.b in dc1 (it comes first in order); give one of them another name"
    synced = run("sync", "--yes", "-o", "json")
    text = run("explain", f"{prefix}a_b").stdout
    assert (synced.status, synced.json["skipped"][0]["message"]) == (0, why)
    assert f"Problem:  {why}\n" in text
    assert (rows(text)[0][-3:-1], text.endswith("\nNothing is to be written.\n")) == (["ready", "absent"], True)
    consul.deregister(f"{prefix}a.b", f"{prefix}vm-1")
    run("sync", "--yes", "--force")
    assert ready_addresses(kube.endpoints(namespace, f"{prefix}a-b")) == [("10.77.1.2", 80)]
    assert "Problem:" not in run("explain", f"{prefix}a_b").stdout


def test_a_held_service_shows_what_is_kept_and_how_it_is_let_go(
    run: Run, consul: RawConsul, namespace: str, prefix: str
) -> None:
    """In explain, status and sync, whose status is 3; --force releases it."""
    name = gateways(consul, prefix)
    run("sync", "--yes")
    for n in range(2, 13):
        consul.deregister(name, f"{prefix}vm-{n:02}")
    text = run("explain", name).stdout
    assert "Held:     10 ready endpoints are kept: 10 of 11 ready endpoints mirrored from dc1 (91 %," in text
    assert f"--service {name} --namespace {namespace} --force`" in " ".join(text.split())
    kept = ", ".join(f"10.77.0.{n}:8080 {'not ready' if n == 3 else 'ready'}" for n in [10, 11, 12, *range(2, 10)])
    assert f"Kubernetes also has, of no instance above (the hold keeps what is ready): {kept}\n" in text
    status = run("status", "-o", "json").json
    assert status["services"][0]["state"] == "held"
    assert status["services"][0]["detail"] == "10 ready endpoints kept: too many would vanish at once"
    text = run("status").stdout
    assert (text.count("10 of 11 ready endpoints"), text.count(f"{status['held'][0]['command']}\n")) == (1, 1)
    assert run("sync", "--yes").status == 3
    assert run("sync", "--yes", "--force").status == 0
    text = run("explain", name).stdout
    assert ("Held:" in text, "also has" in text, "Kubernetes holds exactly this." in text) == (False, False, True)


def test_an_object_of_another_writer_is_a_conflict_in_every_command(
    run: Run, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """Explained, in the status, and never said to be in order."""
    consul.register(f"{prefix}web", f"{prefix}vm", "10.77.1.1", 80)
    body = {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": f"{prefix}web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]},
    }  # fmt: skip
    kube.json("POST", SERVICES.format(namespace=namespace), body)
    text = run("explain", f"{prefix}web").stdout
    assert f"Conflict: Service {namespace}/{prefix}web: it has a selector, so Kubernetes fills its endpoints" in text
    assert text.endswith("\nNothing is written there while the conflict lasts.\n")
    (row,) = run("status", "-o", "json").json["services"]
    assert (row["state"], row["since"]) == ("conflict", None)


def test_a_diff_shows_each_line_that_changes(run: Run, consul: RawConsul, namespace: str, prefix: str) -> None:
    """One address more is one line more, in the slice and in the Endpoints."""
    consul.register(f"{prefix}web", f"{prefix}vm-1", "10.77.1.1", 80)
    run("sync", "--yes")
    consul.register(f"{prefix}web", f"{prefix}vm-2", "10.77.1.2", 80)
    text = run("sync", "--dry-run", "-o", "diff").stdout
    assert f"Endpoints/{namespace}/{prefix}web" in text
    assert [line for line in text.splitlines() if re.match(r"[-+](?![-+])", line)] == ["+  - 10.77.1.2 (ready)"] * 2


# --------------------------------------------------------------------------- hands and pipes


def test_two_commands_with_different_services_do_not_undo_each_other(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """What flags do not select is none of a command's business."""
    env = environment(lab.consul.address, lab.kubeconfig)
    for n, name in enumerate(("one", "two"), 1):
        consul.register(f"{prefix}{name}", f"{prefix}vm-{n}", f"10.77.1.{n}", 80)
    for name in ("one", "two", "one"):
        bridge("sync", "--service", f"{prefix}{name}", "--namespace", namespace, "--yes", env=env)
    assert [ready_addresses(kube.endpoints(namespace, f"{prefix}{name}")) for name in ("one", "two")] == [
        [("10.77.1.1", 80)], [("10.77.1.2", 80)],
    ]  # fmt: skip


@pytest.mark.parametrize("command", [("sync", "--yes"), ("status",), ("explain", "{name}"), ("check",)])
def test_a_reader_that_goes_away_does_not_disturb_the_work(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, command: tuple[str, ...]
) -> None:
    """`bridge sync | head -1`: everything is written, no traceback, the status is the work's."""
    name = gateways(consul, prefix)
    arguments = [a.format(name=name) for a in command]
    process = subprocess.Popen(
        [BRIDGE, *arguments, "--service", f"{prefix}*", "--namespace", namespace],
        env=environment(lab.consul.address, lab.kubeconfig),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in errors, "Broken pipe" in errors) == (0, False, False)
    if command[0] == "sync":
        assert len(ready_addresses(kube.endpoints(namespace, name))) == 11


@pytest.mark.slow
def test_an_interrupted_sync_finishes_the_writes_in_flight_and_the_next_one_the_rest(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Eventually
) -> None:
    """Ctrl-C in the middle of 400 services: 130, nothing half written; a second run completes it."""
    for n in range(400):
        consul.register(f"{prefix}s-{n:03}", f"{prefix}vm-{n % 20}", f"10.78.1.{n % 20 + 1}", 80)
    arguments = ["--service", f"{prefix}*", "--namespace", namespace, "--yes", "--writers", "1"]
    env = environment(lab.consul.address, lab.kubeconfig)
    process = subprocess.Popen(
        [BRIDGE, "sync", *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    def names(path: str) -> set[str]:
        found = kube.get(path.format(namespace=namespace)) or {}
        return {item["metadata"]["name"] for item in found["items"]}

    eventually(lambda: len(names(ENDPOINTS)) >= 20, True, 60)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    services, endpoints = names(SERVICES), names(ENDPOINTS)
    assert (process.returncode, 20 <= len(endpoints) < 400, "Traceback" in errors) == (130, True, False)
    assert len(services - endpoints) <= 1  # the Service in flight; its Endpoints were the next object
    again = bridge("sync", *arguments, "-o", "json", env=env, timeout=300)
    assert (again.status, len(names(ENDPOINTS)), again.json["summary"]["failed"]) == (0, 400, 0)
    assert bridge("sync", *arguments, "-o", "json", env=env).json["changes"] == []
