"""Where no setting says which services are meant, nothing is written."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from tests.unit.cli.conftest import Engine, process
from tests.unit.cli.test_streams import on_a_terminal

Run = Callable[..., Result]

CREATING = """
    import bridge.oneshot.sync as s
    from tests.unit.render.builders import created, report
    def sync_once(confirm, options, **_):
        made = report(*[created(n) for n in range(3)])
        if not options.dry_run:
            print("confirmed" if confirm(made) else "not confirmed")
        return made
    s.sync_once = sync_once
"""


@pytest.fixture
def without_rules(tmp_path: Path) -> str:
    """A settings file that says nothing of services."""
    file = tmp_path / "bridge.yaml"
    file.write_text("owner: team-a\n")
    return str(file)


@pytest.mark.parametrize(
    "flags", [[], ["--yes"], ["--namespace", "storage"], ["--output-kind", "endpoints"], ["--config", "FILE"]], ids=str
)
def test_sync_refuses_without_a_terminal(flags: list[str], run: Run, engine: Engine, without_rules: str) -> None:
    """Status 2, before any server is asked, with both ways to mean it. Where to write is no answer to what."""
    given = [without_rules if flag == "FILE" else flag for flag in flags]
    result = run("sync", *given, selects=False)
    assert (result.exit_code, engine.calls) == (2, [])
    assert "--service '*'" in result.stderr
    assert "--config FILE" in result.stderr


@pytest.mark.parametrize(
    "flags", [["--service", "*"], ["--tag", "s3"], ["--filter", "true"], ["--dry-run"], ["--config", "FILE"]], ids=str
)
def test_a_command_that_selects_or_only_reads_is_allowed(
    flags: list[str], run: Run, engine: Engine, tmp_path: Path
) -> None:
    """`rules: []` says something as well: nothing but annotated Services."""
    file = tmp_path / "bridge.yaml"
    file.write_text("rules: []\n")
    result = run("sync", *[str(file) if flag == "FILE" else flag for flag in flags], selects=False)
    assert (result.exit_code, len(engine.calls)) == (0, 1), result.stderr


@pytest.mark.parametrize("variable", ["BRIDGE_SERVICE", "BRIDGE_TAG", "BRIDGE_FILTER"])
def test_a_variable_says_it_as_well(variable: str, run: Run, engine: Engine) -> None:
    """As a Deployment gives it."""
    assert run("sync", env={variable: "web"}, selects=False).exit_code == 0
    assert run("sync", env={"BRIDGE_NAMESPACE": "web"}, selects=False).exit_code == 2
    assert len(engine.calls) == 1


def test_on_a_terminal_it_says_how_many_go_where_and_asks() -> None:
    """No is status 3, and nothing is written; with --yes nothing may be asked, so that is no way around."""
    status, text = on_a_terminal("sync", prelude=CREATING, answer=b"n\n", selects=False)
    assert "Mirror 3 services into namespace storage?" in text
    assert (status, "nothing was written" in text, "not confirmed" in text) == (3, True, True)
    status, text = on_a_terminal("sync", prelude=CREATING, answer=b"y\n", selects=False)
    assert ("confirmed" in text, "not confirmed" in text) == (True, False)
    status, text = on_a_terminal("sync", "--yes", prelude=CREATING, answer=b"", selects=False)
    assert (status, "confirmed" in text) == (2, False)


def test_on_a_terminal_a_selection_is_not_asked_about() -> None:
    """Nor is what only would be done."""
    for flags in (["--service", "*"], ["--dry-run"]):
        assert "Mirror " not in on_a_terminal("sync", *flags, prelude=CREATING, answer=b"", selects=False)[1]


def test_run_refuses_to_start(without_rules: str) -> None:
    """On a terminal as well: it goes on for longer than a user sits there."""
    for flags in ((), ("--namespace", "storage"), ("--config", without_rules)):
        done = process("run", "--listen", "127.0.0.1:0", *flags, selects=False, stdin=subprocess.DEVNULL)
        assert done.returncode == 2, done.stderr
        assert "--service '*'" in done.stderr
        assert "--config FILE" in done.stderr


@pytest.mark.parametrize("flags", [[], ["--namespace", "storage"]], ids=str)
def test_check_reports_it(flags: list[str], run: Run) -> None:
    """A warning, since looking works."""
    result = run("check", "--offline", *flags)
    assert result.exit_code == 0
    assert result.stdout.startswith("warning rules: none are given")
    assert "--service '*'" in result.stdout
    assert "none are given" not in run("check", "--offline", "--service", "web").stdout


def test_check_without_servers_says_which_files_are_missing(run: Run, tmp_path: Path) -> None:
    """They may be where the bridge runs: a warning, which names the setting and the other ways to give a token."""
    missing, ca = tmp_path / "token", tmp_path / "ca.pem"
    ca.write_text("")
    result = run("check", "--offline", "--service", "*", "--token-file", str(missing), env={"CONSUL_CACERT": str(ca)})
    text = " ".join(result.stdout.split())
    assert f"warning consul.token_file: {missing} cannot be read here: No such file or directory" in text
    assert ("--token-file FILE or CONSUL_HTTP_TOKEN" in text, str(ca) in text, result.exit_code) == (True, False, 0)
