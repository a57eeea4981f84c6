"""`make test`: everything that this machine can run, in the order in which a mistake is cheapest to find.

The servers of the lab are built in the background while style, types and unit tests run. Every step runs even when an
earlier one failed, so that one run tells all; the last lines say which steps failed and which tests were not run, and
why (pytest's own short summary has the reasons).

These machines have two busy cores, and thousands of tests wait for real servers: when at most three tests of a step
failed, they are run once more, alone. One that passes then does not fail the suite, and is never silent either: its
first failure stands in the output, and the last lines name it as unsteady. What the faults of tests/chaos bring to
light is only sometimes there by nature; they get no second try, nor do the tests of the core, which wait for nothing.

Where the servers' programs are not at hand, a developer is not made to wait for their build: everything that needs none
is run, and the last lines say what was not, and the command that builds and runs it. CI=true and --real do it all.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.support.lab.build import NONE
from tests.support.lab.engine import NoEngineError, install
from tests.support.lab.providers import from_cache, from_path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
BIN = Path(PYTHON).parent


PACKAGES = (
    ("nft", "nftables"), ("ip", "iproute2"), ("iptables", "iptables"), ("chromium", "chromium"), ("nginx", "nginx"),
    ("zsh", "zsh"),
)  # fmt: skip
"""Programs that tests look for, and the Debian packages that have them."""


TESTS_FAILED = 1
"""pytest's exit status when all tests were run and some failed."""

SECOND_TRIES = 3
"""So many tests of a step may be run again; more than that are no accident."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command of the suite. `needs_lab`: it waits for the servers' build; `second_try`: for few failures."""

    name: str
    group: str
    command: tuple[str, ...]
    needs_lab: bool = False
    report: Path | None = None
    second_try: bool = False


@dataclass(frozen=True, slots=True)
class Counts:
    """What a report of pytest says: the names of tests that passed, failed, were skipped."""

    passed: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()
    skipped: frozenset[str] = frozenset()


def pytest(
    name: str, *arguments: str, needs_lab: bool = False, group: str = "unit", junit: Path, second_try: bool = True
) -> Step:
    """A pytest step that leaves its counts in a file, so that the end can add them up."""
    report = junit / f"{name.replace(' ', '-')}.xml"
    command = (PYTHON, "-m", "pytest", "-q", f"--junitxml={report}", *arguments)
    return Step(name, group, command, needs_lab, report, second_try)


NO_SERVERS = ("-m", "not lab")
WITHOUT_SERVERS = (
    "tests/e2e/test_package.py", "tests/e2e/test_completion.py", "tests/e2e/test_documents.py",
    "tests/e2e/test_monitoring.py", "tests/chaos/test_command.py",
)  # fmt: skip
"""Files above the loop level of which some tests need neither servers nor a container engine."""

LEFT_OUT = (
    "not run, for want of servers: contracts beside the real ones, end to end, chaos; all of it: make test REAL=1"
)


def steps(junit: Path, servers: bool = True) -> Sequence[Step]:
    """The suite, cheapest first; without `servers` what needs none."""
    behind: tuple[Step, ...] = (
        pytest("contract", "tests/contract", needs_lab=True, group="lab", junit=junit),
        pytest("end to end", "tests/e2e", needs_lab=True, group="lab", junit=junit),
        pytest("chaos", "tests/chaos", needs_lab=True, group="lab", junit=junit, second_try=False),
    )
    if not servers:
        behind = (
            pytest("contract of the stand-ins", "tests/contract", *NO_SERVERS, group="lab", junit=junit),
            pytest("end to end without servers", *WITHOUT_SERVERS, *NO_SERVERS, group="lab", junit=junit),
        )
    coverage = (PYTHON, "-m", "coverage")
    return (
        Step("style", "lint", (str(BIN / "ruff"), "check", ".")),
        Step("format", "lint", (str(BIN / "ruff"), "format", "--check", ".")),
        Step("types", "lint", (str(BIN / "mypy"),)),
        Step("import contracts", "lint", (str(BIN / "lint-imports"),)),
        Step("words", "lint", (PYTHON, "-m", "tests.support.docs.words")),
        Step(
            "core, every branch",
            "unit",
            (
                *coverage, "run", "--source=bridge.core", "-m", "pytest", "-q",
                f"--junitxml={junit / 'core.xml'}", "tests/unit/core", "tests/scenarios",
            ),
            report=junit / "core.xml",
        ),
        Step("core coverage", "unit", (*coverage, "report", "--fail-under=100", "--show-missing", "--skip-covered")),
        pytest("unit", "tests/unit", "--ignore=tests/unit/core", junit=junit),
        pytest("loop", "tests/loop", junit=junit),
        *behind,
    )  # fmt: skip


def servers_are_wanted(environ: Mapping[str, str]) -> bool:
    """Whether tests on real servers run: in continuous integration, when a way to them is named or open at once.

    Images alone are no such way: tests that stop servers need the programs.
    """
    if environ.get("CI") == "true" or environ.get("LAB_PROVIDER") or environ.get("LAB_CONSUL_ADDR"):
        return environ.get("LAB_PROVIDER") != NONE
    return from_path(environ) is None or from_cache(environ) is None


def main() -> int:
    """Run the steps; the exit status is 1 when any failed."""
    parser = argparse.ArgumentParser(prog="make test", description=__doc__)
    parser.add_argument("--only", choices=["lint", "unit", "lab"], help="run one group of steps")
    parser.add_argument("--real", action="store_true", help="the tests on real servers as well, which are built first")
    asked = parser.parse_args()
    only = asked.only
    servers = asked.real or only == "lab" or servers_are_wanted(os.environ)
    started = time.monotonic()
    broken: list[str] = []
    counts: list[Counts] = []
    unsteady: list[str] = []
    if only in (None, "lab") and servers:
        _install_packages()
    if not servers:
        os.environ["LAB_PROVIDER"] = NONE
    with tempfile.TemporaryDirectory(prefix="bridge-suite-") as folder:
        chosen = [s for s in steps(Path(folder), servers) if only in (None, s.group) and _has_tests(s)]
        build = _start_build() if any(s.needs_lab for s in chosen) else None
        try:
            for step in chosen:
                if step.needs_lab and build is not None:
                    _wait_for_build(build)
                    build = None
                print(f"\n== {step.name} ({time.monotonic() - started:.0f} s)", flush=True)
                status, counted, passed_alone = _run(step)
                counts.append(counted)
                unsteady.extend(passed_alone)
                if status != 0:
                    broken.append(step.name)
                    print(f"== {step.name} FAILED (exit status {status})", flush=True)
        finally:
            if build is not None:
                build.terminate()
                build.wait()
    passed = sum(len(c.passed) for c in counts)
    failed = sum(len(c.failed) for c in counts)
    skipped = sum(len(c.skipped) for c in counts)
    print(f"\n{len(chosen) - len(broken)} of {len(chosen)} steps passed in {time.monotonic() - started:.0f} s")
    if broken:
        print(f"failed: {', '.join(broken)}")
    if skipped:
        print("what was skipped, and why, stands in the summaries above (SKIPPED ...)")
    for name in unsteady:
        print(f"unsteady, to be mended: {name} failed, and passed when it was run again alone (its failure is above)")
    if only is None and not servers:
        print(LEFT_OUT)
    print(f"tests: {passed} passed, {failed} failed, {skipped} skipped")
    return 1 if broken else 0


def _run(step: Step) -> tuple[int, Counts, tuple[str, ...]]:
    """Run a step, and a few failures of it once more; exit status, counts, and what passed only then."""
    status = subprocess.run(step.command, cwd=ROOT, env=_environment(), check=False).returncode
    first = _counts(step.report)
    if status != TESTS_FAILED or not step.second_try or not 0 < len(first.failed) <= SECOND_TRIES:
        return status, first, ()
    print(f"== {step.name}: once more, alone: {', '.join(sorted(first.failed))}", flush=True)
    status = subprocess.run((*step.command, "--last-failed"), cwd=ROOT, env=_environment(), check=False).returncode
    alone = first.failed & _counts(step.report).passed
    still = first.failed - alone  # one that is skipped now has not passed
    counted = Counts(first.passed | alone, still, first.skipped)
    return (status or TESTS_FAILED) if still else status, counted, tuple(sorted(alone))


def _install_packages() -> None:
    """In continuous integration nothing may be skipped for want of a package that apt has."""
    missing = [p for program, p in PACKAGES if shutil.which(program) is None]
    if missing and os.environ.get("CI") == "true" and os.geteuid() == 0:
        print(f"== installing {', '.join(missing)}", flush=True)
        try:
            install(missing)
        except NoEngineError as error:
            print(f"== {error}", flush=True)


def _has_tests(step: Step) -> bool:
    places = [ROOT / a for a in step.command if a.startswith("tests/")]
    return not places or any(place.is_file() or list(place.rglob("test_*.py")) for place in places)


def _environment() -> dict[str, str]:
    """The user's environment without what would point the bridge at the user's own servers."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CONSUL_", "BRIDGE_")) and k != "KUBECONFIG"}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def _start_build() -> subprocess.Popen[bytes]:
    nice = ("nice",) if shutil.which("nice") else ()
    return subprocess.Popen((*nice, PYTHON, "-m", "tests.support.lab", "build"), cwd=ROOT, env=_environment())


def _wait_for_build(build: subprocess.Popen[bytes]) -> None:
    if build.poll() is None:
        print("\n== waiting for the servers' build", flush=True)
    if build.wait() != 0:
        print("== the servers could not be built; the tests that need them will say so", flush=True)


def _counts(report: Path | None) -> Counts:
    """What a step's report says; nothing when it has none (a step without tests, a run that broke off)."""
    if report is None or not report.exists():
        return Counts()
    cases = [
        (f"{c.get('classname')}::{c.get('name')}", c) for c in ElementTree.parse(report).getroot().iter("testcase")
    ]
    failed = {name for name, c in cases if c.find("failure") is not None or c.find("error") is not None}
    skipped = {name for name, c in cases if c.find("skipped") is not None} - failed
    return Counts(frozenset(name for name, _ in cases) - failed - skipped, frozenset(failed), frozenset(skipped))


if __name__ == "__main__":
    sys.exit(main())
