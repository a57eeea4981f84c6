"""`make test`: everything that this machine can run, in the order in which a mistake is cheapest to find.

The servers of the lab are built in the background while style, types and unit tests run. Every step runs even when an
earlier one failed, so that one run tells all; the last lines say which steps failed and which tests were not run, and
why (pytest's own short summary has the reasons).

The faults of tests/chaos run last, because what they assert are seconds; only what hardly computes runs beside them.
The other steps run side by side.

Where the servers' programs are not at hand, a developer is not made to wait for their build: everything that needs none
is run, and the last lines say what was not, and the command that builds and runs it. CI=true and --real do it all.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from tests.support.lab.build import NONE
from tests.support.lab.engine import NoEngineError, install
from tests.support.lab.providers import from_cache, from_path
from tests.support.lab.servers import PORT_SHARE, die_with_parent

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
BIN = Path(PYTHON).parent


PACKAGES = (
    ("nft", "nftables"), ("ip", "iproute2"), ("iptables", "iptables"), ("chromium", "chromium"), ("nginx", "nginx"),
    ("zsh", "zsh"), ("containerd", "containerd"), ("runc", "runc"), ("/usr/lib/cni/ptp", "containernetworking-plugins"),
    ("ipset", "ipset"),
)  # fmt: skip
"""Programs that tests look for, and the Debian packages that have them."""


SIDE_BY_SIDE = 3
"""So many steps run at a time: with two cores, while most of them wait for servers."""

END_SECONDS = 20.0
"""How long steps may need, once they are asked to end, to take their servers down."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the suite: commands, each run when those before it succeeded. `needs_lab`: it waits for the build.

    `alone`: nothing runs beside it, because what it asserts are times, but what is `light`: steps that mostly wait.
    """

    name: str
    group: str
    commands: tuple[tuple[str, ...], ...]
    needs_lab: bool = False
    report: Path | None = None
    alone: bool = False
    light: bool = False


@dataclass(frozen=True, slots=True)
class Counts:
    """What a report of pytest says: the names of tests that passed, failed, were skipped."""

    passed: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()
    skipped: frozenset[str] = frozenset()


def pytest(name: str, *arguments: str, group: str = "unit", junit: Path, **further: bool) -> Step:
    """A pytest step that leaves its counts in a file, so that the end can add them up."""
    report = junit / f"{name.replace(' ', '-')}.xml"
    command = (PYTHON, "-m", "pytest", "-q", f"--junitxml={report}", *arguments)
    return Step(name, group, (command,), report=report, **further)


NO_SERVERS = ("-m", "not lab")
WITHOUT_SERVERS = (
    "tests/e2e/test_package.py", "tests/e2e/test_completion.py", "tests/e2e/test_documents.py",
    "tests/e2e/test_monitoring.py", "tests/chaos/test_command.py",
)  # fmt: skip
"""Files above the loop level of which some tests need neither servers nor a container engine."""

LEFT_OUT = (
    "not run, for want of servers: contracts beside the real ones, pods, end to end, chaos; all of it: make test REAL=1"
)


CONTAINERS = ("tests/contract/test_lab_containers.py", "tests/e2e/test_compose.py", "tests/e2e/test_image.py")
"""Files that share a container engine and the images on it: they are one step, so that each image is made once."""

FAULTS = "tests/chaos/test_chaos.py"
"""What asserts seconds. Its neighbours only have to see that something goes wrong."""

SHARES = 2
LONG: Mapping[str, int] = {
    "test_manifests.py": 130, "test_package.py": 130, "test_kube_connection.py": 80, "test_leaders.py": 70,
    "test_balancing.py": 65, "test_traffic.py": 65, "test_switching.py": 50, "test_outputs.py": 50, "test_run.py": 50,
    "test_secrets.py": 50, "test_consul_way.py": 50, "test_page.py": 45, "test_ownership.py": 45,
    "test_documents.py": 45, "test_commands.py": 40, "test_demo.py": 40, "test_grants.py": 40, "test_sync.py": 35,
    "test_union.py": 35,
}  # fmt: skip
"""Seconds that files of tests/e2e take, where they are far from `USUAL_SECONDS`; they only balance the shares."""
USUAL_SECONDS = 15


def end_to_end() -> Sequence[Path]:
    """The files of the end-to-end tests that need no container engine."""
    return [f for f in sorted((ROOT / "tests/e2e").glob("test_*.py")) if str(f.relative_to(ROOT)) not in CONTAINERS]


def shares(files: Iterable[Path], count: int = SHARES) -> Sequence[Sequence[str]]:
    """Files of tests in as many shares, of about the same length: the longest first, to the shortest share."""
    parts: list[tuple[int, list[str]]] = [(0, []) for _ in range(count)]
    for file in sorted(files, key=lambda f: (-LONG.get(f.name, USUAL_SECONDS), f.name)):
        n = min(range(count), key=lambda i: parts[i][0])
        parts[n] = parts[n][0] + LONG.get(file.name, USUAL_SECONDS), [*parts[n][1], str(file.relative_to(ROOT))]
    return [sorted(part) for _, part in parts]


def steps(junit: Path, servers: bool = True) -> Sequence[Step]:
    """The suite, cheapest first, but for what can run beside the faults; without `servers` what needs none."""
    loop = pytest("loop", "tests/loop", junit=junit, light=True)
    behind: tuple[Step, ...] = (
        pytest(
            "contract", "tests/contract", *(f"--ignore={f}" for f in CONTAINERS), needs_lab=True, group="lab",
            junit=junit,
        ),
        *(
            pytest(f"end to end, share {n}", *files, needs_lab=True, group="lab", junit=junit)
            for n, files in enumerate(shares(end_to_end()), 1)
        ),
        pytest("containers", *CONTAINERS, needs_lab=True, group="lab", junit=junit),
        pytest("pods", "tests/pods", needs_lab=True, group="lab", junit=junit),
        loop,
        pytest(
            "observer of faults", "tests/chaos", f"--ignore={FAULTS}", needs_lab=True, group="lab", junit=junit,
            light=True,
        ),
        pytest("chaos", FAULTS, needs_lab=True, group="lab", junit=junit, alone=True),
    )  # fmt: skip
    if not servers:
        behind = (
            loop,
            pytest("contract of the stand-ins", "tests/contract", *NO_SERVERS, group="lab", junit=junit),
            pytest("end to end without servers", *WITHOUT_SERVERS, *NO_SERVERS, group="lab", junit=junit),
        )
    coverage = (PYTHON, "-m", "coverage")
    core = junit / "core.xml"
    measured = (*coverage, "run", "--source=bridge.core", "-m", "pytest", "-q", f"--junitxml={core}")
    return (
        Step("style", "lint", ((str(BIN / "ruff"), "check", "."),)),
        Step("format", "lint", ((str(BIN / "ruff"), "format", "--check", "."),)),
        Step("types", "lint", ((str(BIN / "mypy"),),)),
        Step("import contracts", "lint", ((str(BIN / "lint-imports"),),)),
        Step(
            "words",
            "lint",
            tuple((PYTHON, "-m", f"tests.support.docs.{check}") for check in ("words", "prose", "attributes")),
        ),
        Step(
            "core, every branch",
            "unit",
            (
                (*measured, "tests/unit/core", "tests/scenarios"),
                (*coverage, "report", "--fail-under=100", "--show-missing", "--skip-covered"),
            ),
            report=core,
        ),
        pytest("unit", "tests/unit", "--ignore=tests/unit/core", junit=junit),
        *behind,
    )


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
    if only in (None, "lab") and servers:
        _install_packages()
    if not servers:
        os.environ["LAB_PROVIDER"] = NONE
    with tempfile.TemporaryDirectory(prefix="bridge-suite-") as folder:
        chosen = [s for s in steps(Path(folder), servers) if only in (None, s.group) and _has_tests(s)]
        build = _start_build() if any(s.needs_lab for s in chosen) else None
        try:
            broken = _run(chosen, build, Path(folder))
            counts = [_counts(s.report) for s in chosen]
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
    if only is None and not servers:
        print(LEFT_OUT)
    print(f"tests: {passed} passed, {failed} failed, {skipped} skipped")
    return 1 if broken else 0


@dataclass(slots=True)
class Running:
    """A step that was started. `place`: which of those that run side by side it is; it says which ports are its own."""

    step: Step
    place: int
    began: float
    output: Path
    done: int = 0
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self._start()

    def _start(self) -> None:
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                self.step.commands[self.done],
                cwd=ROOT,
                env={**_environment(), PORT_SHARE: f"{self.place}/{SIDE_BY_SIDE}"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the terminal is for us, who pass it on once
                preexec_fn=die_with_parent,
            )

    def status(self) -> int | None:
        """Exit status of the command that failed or of the last one; None while any runs or is to run."""
        status = self.process.poll()
        if status == 0 and self.done + 1 < len(self.step.commands):
            self.done += 1
            self._start()
            return None
        return status

    def report(self, how: str) -> None:
        """Print what it printed so far, and how it ended."""
        said, took = self.output.read_text(errors="replace").strip("\n"), time.monotonic() - self.began
        print(f"\n== {self.step.name}\n{said}\n== {self.step.name} {how} after {took:.0f} s\n", flush=True)

    def signal(self, number: signal.Signals) -> None:
        """To the step and whatever it started in its process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def _run(chosen: Sequence[Step], build: subprocess.Popen[bytes] | None, folder: Path) -> list[str]:
    """Run steps side by side, begun in their order; the names of those that failed, in that order too."""
    started = time.monotonic()
    waiting, running, failed = list(chosen), dict[int, Running](), set[str]()
    try:
        while waiting or running:
            if build is not None and build.poll():
                print("-- the servers could not be built; the tests that need them will say so", flush=True)
                build = None
            for place in range(SIDE_BY_SIDE):
                if place not in running and waiting and _may_begin(waiting[0], running, build):
                    step = waiting.pop(0)
                    began = time.monotonic()
                    print(f"-- {step.name} begins ({began - started:.0f} s)", flush=True)
                    running[place] = Running(step, place, began, folder / f"{len(waiting)}.log")
            for place, one in list(running.items()):
                status = one.status()
                if status is not None:
                    del running[place]
                    failed |= {one.step.name} if status else set()
                    one.report("passed" if status == 0 else f"FAILED (exit status {status})")
            time.sleep(0.05)
    finally:
        _end(running.values())
    return [step.name for step in chosen if step.name in failed]


def _may_begin(step: Step, running: Mapping[int, Running], build: subprocess.Popen[bytes] | None) -> bool:
    """Whether what it needs is there, and what it must be alone with."""
    others = [one.step for one in running.values() if not one.step.light and not step.light]
    quiet = not others if step.alone else not any(other.alone for other in others)
    return quiet and not (step.needs_lab and _is_building(build))


def _end(running: Iterable[Running]) -> None:
    """End steps as Ctrl-C does, so that they take their servers down; what does not end is killed."""
    left = list(running)
    for one in left:
        with contextlib.suppress(ProcessLookupError):
            one.process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + END_SECONDS
    for one in left:
        with contextlib.suppress(subprocess.TimeoutExpired):
            one.process.wait(max(0.0, deadline - time.monotonic()))
        one.signal(signal.SIGKILL)
        one.process.wait()
        one.report("was interrupted")


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
    places = [ROOT / a for command in step.commands for a in command if a.startswith("tests/")]
    return not places or any(place.is_file() or list(place.rglob("test_*.py")) for place in places)


def _environment() -> dict[str, str]:
    """The user's environment without what would point the bridge at the user's own servers."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CONSUL_", "BRIDGE_")) and k != "KUBECONFIG"}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def _start_build() -> subprocess.Popen[bytes]:
    nice = ("nice",) if shutil.which("nice") else ()
    return subprocess.Popen((*nice, PYTHON, "-m", "tests.support.lab", "build"), cwd=ROOT, env=_environment())


def _is_building(build: subprocess.Popen[bytes] | None) -> bool:
    return build is not None and build.poll() is None


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


def catch_signals() -> None:
    """Ctrl-C and SIGTERM end the steps and then us, with the status that shells give to what a signal ended."""

    def end(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)


if __name__ == "__main__":
    catch_signals()
    sys.exit(main())
