"""`make test` itself: what a second try may do, and what it may not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import suite
from tests.suite import LEFT_OUT, Step, _run, servers_are_wanted

ONCE = """
import pathlib
import pytest

@pytest.mark.parametrize("n", range({unsteady}))
def test_unsteady(n):
    seen = pathlib.Path(__file__).with_name(f"seen-{{n}}")
    first = not seen.exists()
    seen.touch()
    assert not first
    {then}

@pytest.mark.parametrize("n", range({broken}))
def test_broken(n):
    raise AssertionError

@pytest.mark.parametrize("n", range(5))
def test_right(n):
    pass
"""


def step(folder: Path, unsteady: int, broken: int, *, second_try: bool = True, then: str = "") -> Step:
    (folder / "test_it.py").write_text(ONCE.format(unsteady=unsteady, broken=broken, then=then))
    (folder / "pytest.ini").write_text("[pytest]\n")
    report = folder / "report.xml"
    command = (sys.executable, "-m", "pytest", "-q", str(folder), f"--rootdir={folder}", f"--junitxml={report}")
    return Step("it", "unit", command, report=report, second_try=second_try)


def test_one_that_passes_alone_does_not_fail_the_suite_and_is_named(tmp_path: Path) -> None:
    status, counts, unsteady = _run(step(tmp_path, 2, 0))
    assert (status, len(counts.passed), counts.failed) == (0, 7, frozenset())
    assert [name.rpartition("::")[2] for name in unsteady] == ["test_unsteady[0]", "test_unsteady[1]"]


def test_one_that_fails_again_fails_the_suite(tmp_path: Path) -> None:
    status, counts, unsteady = _run(step(tmp_path, 1, 1))
    assert status == 1
    assert (len(counts.passed), len(counts.failed), len(unsteady)) == (6, 1, 1)


@pytest.mark.parametrize(("unsteady", "second_try"), [(4, True), (1, False)], ids=["too many", "not allowed"])
def test_without_a_second_try_the_first_counts(tmp_path: Path, unsteady: int, second_try: bool) -> None:
    status, counts, named = _run(step(tmp_path, unsteady, 0, second_try=second_try))
    assert status == 1
    assert (len(counts.passed), len(counts.failed), named) == (5, unsteady, ())


def test_one_that_is_skipped_the_second_time_has_not_passed(tmp_path: Path) -> None:
    """No servers this time, say."""
    status, counts, unsteady = _run(step(tmp_path, 1, 0, then="pytest.skip()"))
    assert status == 1
    assert (len(counts.passed), len(counts.failed), unsteady) == (5, 1, ())


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
def test_servers_are_built_when_somebody_wants_them(
    bare: dict[str, str], further: dict[str, str], wanted: bool
) -> None:
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

    def run(step: Step) -> tuple[int, suite.Counts, tuple[str, ...]]:
        ran.append(step)
        return 0, suite.Counts(), ()

    monkeypatch.setattr(suite, "_run", run)
    monkeypatch.setattr(suite, "_start_build", lambda: built.append(True))
    monkeypatch.setattr(sys, "argv", ["suite", *arguments])
    monkeypatch.setenv("LAB_PROVIDER", "")
    assert suite.main() == 0
    real = bool(arguments)
    assert bool(built) is real
    assert [s.name for s in ran if s.needs_lab] == (["contract", "end to end", "chaos"] if real else [])
    assert all("not lab" in s.command for s in ran if s.group == "lab") is not real
    assert {"style", "types", "core, every branch", "unit", "loop"} <= {s.name for s in ran}
    assert (LEFT_OUT in capsys.readouterr().out) is not real
