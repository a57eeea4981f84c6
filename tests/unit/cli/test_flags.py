"""Every flag of the command line reaches what it is for, and the help is quick and complete."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from bridge.cli import COMMANDS, EVERYWHERE, FLAGS
from bridge.config import RULE_FLAGS, catalogue
from bridge.core.model import Adopt, Output, Policy
from tests.support.fakes.consul import FakeConsul
from tests.support.fakes.kube import FakeKube
from tests.unit.cli.conftest import Engine, environment, process

Run = Callable[..., Result]

EXPECTED_EVERYWHERE = [
    "--config", "--consul-address", "--datacenter", "--token-file", "--context", "--namespace", "--service", "--tag",
    "--filter", "--name", "--output-kind", "--owner", "--policy", "--adopt", "--log-format", "--log-level",
]  # fmt: skip
EXPECTED_SYNC = ["--dry-run", "--exit-code", "--output", "--yes", "--force"]
EXPECTED_RUN = [
    "--listen", "--leader-elect", "--shards", "--resync", "--removal-grace-period", "--connections", "--writers",
    "--restore-hold", "--hold-release", "--panic-threshold",
]  # fmt: skip


@pytest.mark.parametrize("flag", EXPECTED_EVERYWHERE)
def test_the_flags_of_the_design_are_everywhere(flag: str) -> None:
    """Scripts rely on these names."""
    assert flag in EVERYWHERE
    assert all(flag in flags for flags in COMMANDS.values())


def test_the_flags_of_sync_and_run() -> None:
    """Scripts rely on these names."""
    assert set(EXPECTED_SYNC) <= set(COMMANDS["sync"])
    assert set(EXPECTED_RUN) <= set(COMMANDS["run"])


def test_the_command_line_and_the_settings_know_the_same_flags() -> None:
    """Neither can have one that the other lacks, nor another variable for it."""
    of_settings = {s.flag: s.env for s in catalogue() if s.flag}
    of_settings |= {flag: "BRIDGE_" + flag[2:].upper().replace("-", "_") for flag in (*RULE_FLAGS, "--config")}
    assert {f.name: f.variable for f in FLAGS.values()} == of_settings
    kinds = {s.flag: bool if s.is_switch else list if s.is_list else str for s in catalogue() if s.flag}
    assert {n: f.kind for n, f in FLAGS.items() if n in kinds} == kinds
    assert {flag for flags in COMMANDS.values() for flag in flags} == FLAGS.keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_shows_all_its_flags_with_their_variables(command: str, run: Run) -> None:
    """What is not in the help does not exist."""
    result = run(command, "--help", env={"COLUMNS": "120"})
    assert result.exit_code == 0
    for name in COMMANDS[command]:
        assert name in result.stdout
        assert f"[{FLAGS[name].variable}]" in result.stdout


def test_the_help_imports_the_command_line_and_nothing_else() -> None:
    """Of our own modules only those that declare commands; of others none that would make it slow, by name."""
    code = (
        "import sys; sys.argv = ['bridge', '--help']\n"
        "from bridge.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'pydantic', 'yaml', 'kubernetes', 'urllib3', 'consul', 'requests', 'rich', 'structlog', 'tenacity',"
        " 'prometheus_client', 'ssl', 'http.client'}\n"
        "ours = {m for m in sys.modules if m.startswith('bridge.') and not m.startswith('bridge.cli')}\n"
        "print(sorted(heavy & sys.modules.keys()), sorted(ours), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment(), timeout=60
    )
    assert done.stderr.strip() == "[] ['bridge.errors', 'bridge.interpreter']"


def test_the_version_names_the_bridge_python_and_both_clients() -> None:
    """What a bug report needs."""
    done = process("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("bridge 0.")
    assert all(name in done.stdout for name in ("Python 3", "python-consul2 0.1.5", "kubernetes "))


def test_no_command_is_answered_with_the_help() -> None:
    """On the way to a first success."""
    done = process()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == process("--help").stdout


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (["help"], ["--help"]),
        (["help", "sync"], ["sync", "--help"]),
        (["version"], ["--version"]),
        (["-V"], ["--version"]),
    ],
    ids=" ".join,
)
def test_help_and_version_are_spelt_as_in_other_tools(words: list[str], same: list[str]) -> None:
    """`bridge help COMMAND` is `bridge COMMAND --help`."""
    done, expected = process(*words), process(*same)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected.stdout, "")


def test_what_each_command_does_fits_a_line_of_eighty_columns() -> None:
    """Nothing is cut."""
    lines = process("--help", env={"COLUMNS": "80"}).stdout.splitlines()
    told = lines[lines.index("Commands:") + 1 :]
    assert {line.split()[0] for line in told} == set(COMMANDS)
    assert [line for line in told if len(line) > 80 or "..." in line] == []


def completing(words: str) -> dict[str, str]:
    """The variables by which bash asks what may stand at the end of `words`."""
    return {"_BRIDGE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("bridge sync -o ", ["table", "json", "yaml", "diff"]), ("bridge status --output ", ["table", "json", "yaml"]),
        ("bridge sync --output-kind endpoint", ["endpoints", "endpointslices"]),
        ("bridge run --policy ", ["sync", "upsert-only", "create-only"]),
        ("bridge sync --adopt ", ["never", "unowned", "consul-k8s"]), ("bridge run --log-format j", ["json"]),
        ("bridge check --log-level ", ["debug", "info", "warning", "error"]),
    ],
)  # fmt: skip
def test_tab_completes_what_is_one_of_a_few_words(words: str, expected: list[str], run: Run) -> None:
    """As bash asks for it; each of these words is taken."""
    done = process(env=completing(words))
    assert done.stdout.split() == expected
    for flag in (flag for flag in FLAGS.values() if flag.name in words.split()):
        for word in flag.words:
            assert "must be one of" not in run("check", "--offline", flag.name, word).stderr


AT_LEISURE = "import bridge.cli.completion as c; c.WITHIN_SECONDS = 30"
"""The half second is for people who wait; the processor of a test has other things to do as well."""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("bridge explain rad", ["radosgw", "radosgw-2"]), ("bridge sync --service p", ["postgres"]),
        ("bridge run --namespace st", ["storage"]), ("bridge status --watch-namespace de", ["default"]),
        ("bridge explain --consul-address http://127.0.0.1:1 rad", []), ("bridge explain --owner '' rad", []),
    ],
)  # fmt: skip
def test_tab_completes_what_the_servers_have(words: str, expected: list[str], tmp_path: Path) -> None:
    """By the flags before it; a name that a shell would run is left out, and what goes wrong is silent."""
    with FakeConsul() as consul, FakeKube(("default", "storage")) as kube:
        for name in ("radosgw", "radosgw-2", "postgres", "rad$(reboot)", "rad;x"):
            consul.register(name, "vm", "10.0.0.1", 80)
        env = {"CONSUL_HTTP_ADDR": consul.address, "KUBECONFIG": kube.kubeconfig(tmp_path)}
        done = process(prelude=AT_LEISURE, env={**env, **completing(words)})
    assert (done.stdout.split(), done.stderr) == (expected, "")


def test_tab_starts_no_program_for_credentials(tmp_path: Path) -> None:
    """It may ask for a password at the terminal, or open a browser; the context's own namespace is offered."""
    begun, program, config = tmp_path / "begun", tmp_path / "login", tmp_path / "config"
    program.write_text(f"#!/bin/sh\ntouch {begun}\n")
    program.chmod(0o700)
    login = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(program)}
    kubeconfig = {
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"exec": {**login, "interactiveMode": "IfAvailable"}}}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "storage"}}],
    }
    config.write_text(json.dumps(kubeconfig))
    env = {"KUBECONFIG": str(config), **completing("bridge run --namespace st")}
    done = process(prelude=AT_LEISURE, env=env)
    assert (done.stdout.split(), done.stderr, begun.exists()) == (["storage"], "", False)


def test_tab_waits_for_no_server_that_does_not_answer() -> None:
    """Nothing is offered then, long before the request would be given up."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        env = {"CONSUL_HTTP_ADDR": address, "BRIDGE_CONSUL_TIMEOUT_MARGIN": "5m", **completing("bridge explain rad")}
        done = process(env=env)
    assert (done.stdout.strip(), done.stderr) == ("", "")


CASES: list[tuple[list[str], Callable[[dict[str, Any]], Any], Any]] = [
    (["--consul-address", "http://c:1"], lambda c: c["consul"].address, "http://c:1"),
    (["--datacenter", "dc9"], lambda c: c["consul"].datacenter, "dc9"),
    (["--token-file", "/nix"], lambda c: c["consul"].token_file, "/nix"),
    (["--connections", "9"], lambda c: c["consul"].connections, 9),
    (["--context", "here"], lambda c: c["kube"].context, "here"),
    (["--watch-namespace", "x", "--watch-namespace", "y"], lambda c: c["kube"].namespaces, ("x", "y")),
    (["--namespace", "n"], lambda c: c["rules"][0].to.namespace, "n"),
    (["--service", "a", "--service", "b*"], lambda c: c["rules"][0].services, ("a", "b*")),
    (["--tag", "s3"], lambda c: c["rules"][0].tags, ("s3",)),
    (["--filter", "x == y"], lambda c: c["rules"][0].filter, "x == y"),
    (["--name", "pre-{service}"], lambda c: c["rules"][0].to.name, "pre-{service}"),
    (["--output-kind", "endpointslices"], lambda c: c["rules"][0].to.output, Output.ENDPOINTSLICES),
    (["--owner", "team-a"], lambda c: c["options"].owner, "team-a"),
    (["--policy", "create-only"], lambda c: c["options"].policy, Policy.CREATE_ONLY),
    (["--adopt", "consul-k8s"], lambda c: c["options"].adopt, Adopt.CONSUL_K8S),
    (["--writers", "3"], lambda c: c["options"].writers, 3),
    (["--panic-threshold", "0"], lambda c: c["options"].guard.panic_percent, 0),
    (["--dry-run"], lambda c: c["options"].dry_run, True),
    (["--no-dry-run"], lambda c: c["options"].dry_run, False),
    (["--force"], lambda c: c["options"].force, True),
]


@pytest.mark.parametrize(("flags", "where", "expected"), CASES, ids=[" ".join(flags) for flags, _, _ in CASES])
def test_a_flag_of_sync_reaches_the_engine(
    flags: list[str], where: Callable[[dict[str, Any]], Any], expected: Any, run: Run, engine: Engine
) -> None:
    """From the command line to the value that the rooms work with."""
    result = run("sync", *flags)
    assert result.exit_code == 0, result.stderr
    assert where(engine.call) == expected


def test_a_flag_beats_the_environment_that_beats_the_file(tmp_path: Path, run: Run, engine: Engine) -> None:
    """The whole way through the command."""
    file = tmp_path / "b.yaml"
    file.write_text("owner: from-file\npolicy: create-only\nadopt: unowned\nrules: [{services: ['*']}]\n")
    env = {"BRIDGE_CONFIG": str(file), "BRIDGE_OWNER": "from-env", "BRIDGE_POLICY": "upsert-only"}
    run("sync", "--owner", "from-flag", env=env)
    options = engine.call["options"]
    assert (options.owner, options.policy, options.adopt) == ("from-flag", Policy.UPSERT_ONLY, Adopt.UNOWNED)


def test_the_namespace_of_the_context_is_the_default(run: Run, engine: Engine) -> None:
    """As kubectl does it."""
    run("sync", "--service", "a")
    assert engine.call["rules"][0].to.namespace == "from-context"


def test_a_kubeconfig_by_flag(tmp_path: Path, run: Run, engine: Engine) -> None:
    """It beats KUBECONFIG."""
    other = tmp_path / "other"
    other.write_text((tmp_path / "kubeconfig").read_text().replace("from-context", "from-other"))
    run("sync", "--kubeconfig", str(other))
    assert engine.call["rules"][0].to.namespace == "from-other"


@pytest.mark.parametrize(("second", "said"), [("x", True), ("web", False)])
def test_sync_says_once_that_a_rule_is_never_used(
    run: Run, engine: Engine, tmp_path: Path, second: str, said: bool
) -> None:
    """On standard error; the report is the same."""
    file = tmp_path / "bridge.yaml"
    file.write_text(f"rules: [{{name: one, services: ['x*']}}, {{name: two, services: [{second}]}}]")
    result = run("sync", "--config", str(file), "-o", "json", "--log-format", "json")
    events = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    found = [(e["level"], e["rule"], e["earlier"]) for e in events if e["event"].startswith("rule is never used")]
    assert found == ([("warning", "two", "one")] if said else [])
    assert len(engine.call["rules"]) == 2
