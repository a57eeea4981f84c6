"""`make test`: everything that this machine can run, in the order in which a mistake is cheapest to find.

The servers of the lab are built in the background while style, types and unit tests run. Every step runs even when an
earlier one failed, so that one run tells all; the last lines say which steps failed and which tests were not run, and
why (pytest's own short summary has the reasons).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.lab.engine import NoEngineError, install

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
BIN = Path(PYTHON).parent


PACKAGES = (
    ("nft", "nftables"), ("ip", "iproute2"), ("iptables", "iptables"), ("chromium", "chromium"), ("nginx", "nginx"),
    ("zsh", "zsh"),
)  # fmt: skip
"""Programs that tests look for, and the Debian packages that have them."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command of the suite. `needs_lab`: it waits for the servers' build."""

    name: str
    group: str
    command: tuple[str, ...]
    needs_lab: bool = False


def pytest(name: str, *arguments: str, needs_lab: bool = False, group: str = "unit", junit: Path) -> Step:
    """A pytest step that leaves its counts in a file, so that the end can add them up."""
    report = f"--junitxml={junit / (name.replace(' ', '-') + '.xml')}"
    return Step(name, group, (PYTHON, "-m", "pytest", "-q", report, *arguments), needs_lab)


def steps(junit: Path) -> Sequence[Step]:
    """The suite, cheapest first."""
    coverage = (PYTHON, "-m", "coverage")
    return (
        Step("style", "lint", (str(BIN / "ruff"), "check", ".")),
        Step("format", "lint", (str(BIN / "ruff"), "format", "--check", ".")),
        Step("types", "lint", (str(BIN / "mypy"),)),
        Step("import contracts", "lint", (str(BIN / "lint-imports"),)),
        Step(
            "core, every branch",
            "unit",
            (
                *coverage, "run", "--source=bridge.core", "-m", "pytest", "-q",
                f"--junitxml={junit / 'core.xml'}", "tests/unit/core", "tests/scenarios",
            ),
        ),
        Step("core coverage", "unit", (*coverage, "report", "--fail-under=100", "--show-missing", "--skip-covered")),
        pytest("unit", "tests/unit", "--ignore=tests/unit/core", junit=junit),
        pytest("loop", "tests/loop", junit=junit),
        pytest("contract", "tests/contract", needs_lab=True, group="lab", junit=junit),
        pytest("end to end", "tests/e2e", needs_lab=True, group="lab", junit=junit),
        pytest("chaos", "tests/chaos", needs_lab=True, group="lab", junit=junit),
    )  # fmt: skip


def main() -> int:
    """Run the steps; the exit status is 1 when any failed."""
    parser = argparse.ArgumentParser(prog="make test", description=__doc__)
    parser.add_argument("--only", choices=["lint", "unit", "lab"], help="run one group of steps")
    only = parser.parse_args().only
    started = time.monotonic()
    failed: list[str] = []
    if only in (None, "lab"):
        _install_packages()
    with tempfile.TemporaryDirectory(prefix="bridge-suite-") as folder:
        junit = Path(folder)
        chosen = [s for s in steps(junit) if only in (None, s.group) and _has_tests(s)]
        build = _start_build() if any(s.needs_lab for s in chosen) else None
        try:
            for step in chosen:
                if step.needs_lab and build is not None:
                    _wait_for_build(build)
                    build = None
                print(f"\n== {step.name} ({time.monotonic() - started:.0f} s)", flush=True)
                status = subprocess.run(step.command, cwd=ROOT, env=_environment(), check=False).returncode
                if status != 0:
                    failed.append(step.name)
                    print(f"== {step.name} FAILED (exit status {status})", flush=True)
        finally:
            if build is not None:
                build.terminate()
                build.wait()
        passed, broken, skipped = _counts(junit)
    print(f"\n{len(chosen) - len(failed)} of {len(chosen)} steps passed in {time.monotonic() - started:.0f} s")
    if failed:
        print(f"failed: {', '.join(failed)}")
    if skipped:
        print("what was skipped, and why, stands in the summaries above (SKIPPED ...)")
    print(f"tests: {passed} passed, {broken} failed, {skipped} skipped")
    return 1 if failed else 0


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
    folders = [a for a in step.command if a.startswith("tests/")]
    return not folders or any(list((ROOT / f).rglob("test_*.py")) for f in folders)


def _environment() -> dict[str, str]:
    """The user's environment without what would point the bridge at the user's own servers."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CONSUL_", "BRIDGE_")) and k != "KUBECONFIG"}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def _start_build() -> subprocess.Popen[bytes]:
    nice = ("nice",) if shutil.which("nice") else ()
    return subprocess.Popen((*nice, PYTHON, "-m", "tests.lab", "build"), cwd=ROOT, env=_environment())


def _wait_for_build(build: subprocess.Popen[bytes]) -> None:
    if build.poll() is None:
        print("\n== waiting for the servers' build", flush=True)
    if build.wait() != 0:
        print("== the servers could not be built; the tests that need them will say so", flush=True)


def _counts(folder: Path) -> tuple[int, int, int]:
    """Passed, failed and skipped tests of all the reports in `folder`."""
    total = broken = skipped = 0
    for report in folder.glob("*.xml"):
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):
            total += int(suite.get("tests", "0"))
            broken += int(suite.get("failures", "0")) + int(suite.get("errors", "0"))
            skipped += int(suite.get("skipped", "0"))
    return total - broken - skipped, broken, skipped


if __name__ == "__main__":
    sys.exit(main())
