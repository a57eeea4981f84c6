"""`make test` itself: steps side by side, what they print, how they end, and what is left out without servers."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests import suite
from tests.suite import LEFT_OUT, PYTHON, ROOT, SHARES, Step, _run, servers_are_wanted, shares
from tests.support.lab.servers import PORT_SHARE, free_port
from tests.support.lab.state import Process

Eventually = Callable[..., None]


def script(name: str, *codes: str) -> Step:
    """A step whose commands are scripts."""
    return Step(name, "unit", tuple((PYTHON, "-c", code) for code in codes))


def test_steps_run_side_by_side_and_print_when_they_have_ended(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first one ends only when the second has begun; a third fails, and its second command is not run.

    Each has ports of its own.
    """
    seen = tmp_path / "seen"
    share = f"import os, pathlib, time; seen = pathlib.Path({str(seen)!r}); print(os.environ[{PORT_SHARE!r}])"
    wait = f"{share}\nuntil = time.monotonic() + 30\nwhile not seen.exists(): assert time.monotonic() < until"
    steps = [
        script("first", wait, "print('two')"),
        script("second", f"{share}\nseen.touch()"),
        script("third", "import sys; print('wrong'); sys.exit(3)", "print('never')"),
    ]
    assert _run(steps, None, tmp_path) == ["third"]
    said = capfd.readouterr().out
    assert "== first\n0/3\ntwo\n== first passed after " in said
    assert "== second\n1/3\n== second passed after " in said
    assert "== third\nwrong\n== third FAILED (exit status 3) after " in said


def test_beside_a_step_that_measures_times_runs_only_what_mostly_waits(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It begins when all others before it have ended, and those behind it begin when it has."""
    (log := tmp_path / "log").touch()
    code = f"import sys, time; log = open({str(log)!r}, 'a', buffering=1); NAME; time.sleep(0.3); print(name, file=log)"
    wait = f"import time; until = time.monotonic() + 30\nwhile 'alone' not in open({str(log)!r}).read(): "

    def noting(name: str) -> Step:
        return script(name, code.replace("NAME", f"name = {name!r}; print(name, file=log)"))

    light = replace(script("light", f"{wait}assert time.monotonic() < until"), light=True)
    steps = [noting("before"), light, replace(noting("alone"), alone=True), noting("behind")]
    assert _run(steps, None, tmp_path) == []
    capfd.readouterr()
    assert log.read_text().split() == ["before", "before", "alone", "alone", "behind", "behind"]


def test_every_step_is_run_although_one_failed_and_failures_are_named_in_the_order_of_the_steps(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """More of them than run at a time; the slow one fails last and is named first."""
    fast = [script(f"fast {n}", f"import sys; print('{n}'); sys.exit({n % 2})") for n in range(6)]
    assert _run([script("slow", "import sys, time; time.sleep(1); sys.exit(1)"), *fast], None, tmp_path) == [
        "slow", "fast 1", "fast 3", "fast 5",
    ]  # fmt: skip
    said = capfd.readouterr().out
    assert all(f"== fast {n}\n{n}\n== fast {n} " in said for n in range(6))


def test_a_step_with_servers_waits_for_their_build_and_begins_when_that_failed_as_well(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    built = tmp_path / "built"
    build = subprocess.Popen(
        [PYTHON, "-c", f"import sys, time, pathlib; time.sleep(1); pathlib.Path({str(built)!r}).touch(); sys.exit(1)"]
    )
    needy = Step("needy", "lab", ((PYTHON, "-c", f"open({str(built)!r})"),), needs_lab=True)
    assert _run([needy], build, tmp_path) == []
    assert "the servers could not be built" in capfd.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_ctrl_c_and_sigterm_end_all_steps_and_show_their_output(
    tmp_path: Path, eventually: Eventually, number: signal.Signals
) -> None:
    """A step can still clean up; one that does not listen is killed with all that it started."""
    polite = f"""
import pathlib, time
print("polite", flush=True)
try:
    time.sleep(60)
finally:
    pathlib.Path({str(tmp_path / "cleaned")!r}).touch()
"""
    deaf = f"""
import pathlib, signal, subprocess, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "61"])
pathlib.Path({str(tmp_path / "child")!r}).write_text(str(child.pid))
time.sleep(60)
"""
    program = f"""
import itertools
import signal
from pathlib import Path
from tests import suite
suite.END_SECONDS = 1.0
steps = [suite.Step(n, "unit", ((suite.PYTHON, "-c", c),)) for n, c in {{"one": {polite!r}, "two": {deaf!r}}}.items()]
suite.catch_signals()
suite._run(steps, None, Path({str(tmp_path)!r}))
"""
    running = subprocess.Popen([PYTHON, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        logs = [tmp_path / "0.log", tmp_path / "1.log"]
        eventually(lambda: any(f.exists() and "polite" in f.read_text() for f in logs), True)
        eventually(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text().isdigit(), True)
        child = int((tmp_path / "child").read_text())
        running.send_signal(number)
        said = running.communicate(timeout=30)[0]
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 128 + number
    assert "== one\npolite\n" in said
    assert ("== two was interrupted after " in said, (tmp_path / "cleaned").exists()) == (True, True)
    eventually(lambda: Process.of(child), None)


def test_each_file_of_tests_is_in_one_step(tmp_path: Path) -> None:
    """And the shares of the end-to-end tests take about the same time, as long as the measured seconds are right."""
    files = dict.fromkeys((str(path.relative_to(ROOT)) for path in ROOT.glob("tests/**/test_*.py")), 0)
    for command in (command for step in suite.steps(tmp_path) for command in step.commands):
        wanted = tuple(a for a in command if a.startswith("tests/"))
        ignored = tuple(a.removeprefix("--ignore=") for a in command if a.startswith("--ignore="))
        for file in files:
            files[file] += file.startswith(wanted) and not file.startswith(ignored)
    assert {file: n for file, n in files.items() if n != 1} == {}
    seconds = [
        sum(suite.LONG.get(Path(f).name, suite.USUAL_SECONDS) for f in share) for share in shares(suite.end_to_end())
    ]
    assert (len(seconds), max(seconds) - min(seconds) <= suite.USUAL_SECONDS) == (SHARES, True)


def test_steps_side_by_side_take_ports_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that one keeps for a server that is down must not be another's meanwhile."""
    ranges = []
    for share in ("0/3", "1/3", "2/3"):
        monkeypatch.setenv(PORT_SHARE, share)
        given = [free_port() for _ in range(30)]
        ranges.append((min(given), max(given)))
    assert ranges == sorted(ranges)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ranges))


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a machine on which nothing was built and nothing is on PATH."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    for name in ("CI", "LAB_PROVIDER", "LAB_CONSUL_ADDR", "LAB_KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)
    return {"PATH": str(tmp_path / "nothing")}


@pytest.mark.parametrize(
    ("further", "wanted"),
    [
        ({}, False), ({"CI": "true"}, True), ({"LAB_PROVIDER": "build"}, True), ({"LAB_PROVIDER": "none"}, False),
        ({"LAB_CONSUL_ADDR": "http://consul.example:8500"}, True), ({"CI": "true", "LAB_PROVIDER": "none"}, False),
    ],
)  # fmt: skip
def test_servers_are_built_when_a_step_needs_them(bare: dict[str, str], further: dict[str, str], wanted: bool) -> None:
    assert servers_are_wanted({**bare, **further}) is wanted


@pytest.mark.parametrize("arguments", [(), ("--real",)], ids=["make test", "make test REAL=1"])
def test_without_servers_what_needs_none_is_run_and_the_rest_is_named(
    bare: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
) -> None:
    """Status 0, nothing is built, and one line says how to run it all."""
    ran: list[Step] = []
    built: list[bool] = []

    def run(steps: list[Step], *_others: object) -> list[str]:
        ran.extend(steps)
        return []

    monkeypatch.setattr(suite, "_run", run)
    monkeypatch.setattr(suite, "_start_build", lambda: built.append(True))
    monkeypatch.setattr(sys, "argv", ["suite", *arguments])
    monkeypatch.setenv("LAB_PROVIDER", "")
    assert suite.main() == 0
    real = bool(arguments)
    assert bool(built) is real
    shared = [f"end to end, share {n}" for n in range(1, SHARES + 1)]
    lab = {"contract", "pods", "chaos", "observer of faults", "containers", *shared}
    assert {s.name for s in ran if s.needs_lab} == (lab if real else set())
    assert all("not lab" in s.commands[0] for s in ran if s.group == "lab") is not real
    assert {"style", "types", "core, every branch", "unit", "loop"} <= {s.name for s in ran}
    assert (LEFT_OUT in capsys.readouterr().out) is not real
