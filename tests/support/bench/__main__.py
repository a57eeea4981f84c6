"""`make bench`: the targets of the project beside what was measured, each beside its floor of the same run.

    python -m tests.support.bench                     all parts but the optional ones (22 minutes on two quiet cores)
    python -m tests.support.bench propagation sync    these parts; all other parts stay in the report as they were
    python -m tests.support.bench hour shards         the optional ones: an hour of changes, two replicas beside one
    python -m tests.support.bench report              the report into docs/scaling.md with its plot, and into README.md
    python -m tests.support.bench all report          all parts but the optional ones, and the report into the documents
    python -m tests.support.bench propagation --beside ../before/.venv/bin/bridge
                                                      the same changes with the bridge of another checkout as well, in
                                                      turn in one run: what a change of the code made faster or slower

Times run from Consul's answer to the moment in which the API server has stored the EndpointSlice that kube-proxy reads,
by the API server's audit log, for the bridge and for the floor alike; both are exercised in turn, so that the machine's
noise meets both. A p99 of fewer than a hundred values is the worst of them, and said to be of so many times.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

from tests.support.bench import changes, large, report, simulation
from tests.support.bench.floor import FloorChain
from tests.support.bench.harness import Stage
from tests.support.bench.measure import (
    NAMESPACE,
    OUT,
    Figure,
    await_state,
    limit,
    make_service,
    median,
    percentile,
    ratio,
    register,
)
from tests.support.bench.report import Collected, Part, Report
from tests.support.bench.traffic import traffic
from tests.support.bench.watching import Tail
from tests.support.lab import Lab, LabError
from tests.support.program import BRIDGE, Daemon, environment
from tests.support.raw import UnexpectedAnswerError

Size = tuple[int, int]


LIMITS: changes.Limits = {
    "flip": ("flip", 1.12, 1.25),
    **dict.fromkeys(changes.KINDS[1:], ("changes", 1.2, 1.5)),
}
NOT_SLOWER = 1.05
"""Times the other checkout's p50; what is less apart than this cannot be told apart in one run."""


def propagation(out: Collected, times: int = 100, beside: str = "") -> None:
    """12 instances in one service; the bridge and the floor chain in turn, and with `beside` another bridge as well."""
    with Lab(own=True) as lab, lab.raw_consul() as consul:
        programs = {"bench-web": BRIDGE, **({"other-web": beside} if beside else {})}
        homes = {name: f"10.{n}.0.3" for n, name in enumerate((*programs, "floor-web"), 1)}
        for name, home in homes.items():
            register(consul, name, 12, home.removesuffix(".3"))
        make_service(lab, "floor-web")
        env = environment(lab.consul.address, lab.kubeconfig)
        daemons = {}
        for name, program in programs.items():
            daemon = Daemon(lab, name, "--service", name, "--namespace", NAMESPACE, "--owner", name, env=env,
                            program=program)  # fmt: skip
            lab.add(daemon)
            daemon.start()
            daemons[name] = daemon
        lags: dict[str, changes.Lags] = {name: {} for name in homes}
        with FloorChain(lab, "floor-web"):
            for name, home in homes.items():
                await_state(lab, name, home, ready=True)
            time.sleep(1)
            plans = {name: changes.cycle(consul, name, f"{name}-vm3", home) for name, home in homes.items()}
            tail, used = Tail(lab), {name: daemon.cpu_seconds() for name, daemon in daemons.items()}
            for turn in range(times):
                changes.rounds(tail, plans if turn % 2 else dict(reversed(plans.items())), lags)
                changes.say(f"{turn + 1} of {times}")
            spent = {name: daemon.cpu_seconds() - used[name] for name, daemon in daemons.items()}
        for daemon in daemons.values():
            daemon.stop()
    changes.against_floor(out, "12 instances", lags["bench-web"], lags["floor-web"], LIMITS)
    if beside:
        made = sum(map(len, lags["bench-web"].values()))
        out.figures += [
            *before_and_after(lags["bench-web"], lags["other-web"]),
            ratio(f"processor time of a change, 12 instances, {made} changes, beside another checkout",
                  spent["bench-web"] / made * 1000, spent["other-web"] / made * 1000, NOT_SLOWER),
            Figure("checkouts beside each other", revision(BRIDGE), revision(beside)),
        ]  # fmt: skip


def before_and_after(now: changes.Lags, before: changes.Lags) -> Iterator[Figure]:
    """In the columns of a figure and its floor. What is judged is the p50 of all changes: one kind's is too noisy."""
    every = {"all changes": ([lag for lags in now.values() for lag in lags],
                             [lag for lags in before.values() for lag in lags])}  # fmt: skip
    for kind, (mine, theirs) in {**every, **{kind: (now[kind], before[kind]) for kind in now}}.items():
        for percent in (50, 90, 99):
            figure = ratio(
                f"{kind} -> slice, beside another checkout, {len(mine)} times, p{percent}",
                percentile(mine, percent), percentile(theirs, percent), NOT_SLOWER,
            )  # fmt: skip
            judged = kind in every and percent == 50
            yield figure if judged else replace(figure, target="", ok=None)


def revision(program: str) -> str:
    """The commit of the checkout that a virtual environment is in, with a mark when something was changed."""
    command = ["git", "-C", str(Path(program).resolve().parent), "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no commit"


def start_up(out: Collected) -> None:
    """`bridge --help` beside an interpreter that does nothing."""

    def seconds(command: Sequence[str]) -> float:
        runs = []
        for _ in range(11):
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            runs.append(time.perf_counter() - began)
        return median(runs)

    floor = seconds([sys.executable, "-c", "pass"])
    out.figures.append(limit("bridge --help", seconds([BRIDGE, "--help"]), 0.2, "s", f"{floor:.2f} s (python -c pass)"))


def deaths(out: Collected) -> None:
    """What a client notices of a dead VM."""
    out.figures += traffic()


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of a part. `size`: services and instances of the catalog that it needs (None: its own matter)."""

    part: str
    work: Callable[..., Any]
    size: Size | None = None


def jobs(services: int, minutes: float = 60.0, beside: str = "") -> list[Job]:
    """All, in an order in which those of one size are side by side, the first sync of a size before all others."""
    few, some, wide, many = (50, 4), (services // 5, 4), (services // 5, 100), (services, 4)
    memory = partial(large.memory, turns=4)
    return [
        Job("start-up", start_up),
        Job("propagation", partial(propagation, beside=beside)),
        Job("sync", partial(large.headless, services=services)),
        Job("memory", memory, few),
        Job("sync", large.first_sync, some),
        Job("memory", memory, some),
        Job("shards", large.shards, some),
        Job("hour", partial(large.hour, minutes=minutes), some),
        Job("memory", memory, wide),
        Job("sync", large.first_sync, many),
        Job("restart", large.restart, many),
        Job("memory", memory, many),
        # In these minutes the bridge of the large catalog is in steady state, and its next verification comes nearer.
        Job("sim", simulation.measure),
        Job("traffic", deaths),
        Job("rest", large.rest, many),
        Job("scale", changes.scale, many),
        Job("storm", large.storm, many),
    ]


PARTS = tuple(dict.fromkeys(job.part for job in jobs(large.LARGE)))
USUAL = tuple(part for part in PARTS if part not in report.OPTIONAL)


class Stages:
    """The one stage that is open: parts that need the same size share it."""

    def __init__(self) -> None:
        self._open: tuple[Size, Stage] | None = None

    def of(self, size: Size) -> Stage:
        """The stage of a size; one of another size is closed."""
        if self._open is None or self._open[0] != size:
            self.close()
            stage = Stage(*size)
            stage.__enter__()
            self._open = size, stage
        return self._open[1]

    def close(self) -> None:
        """End the servers."""
        if self._open is not None:
            self._open[1].__exit__()
            self._open = None


@contextmanager
def stages() -> Iterator[Stages]:
    """Closed at the end."""
    made = Stages()
    try:
        yield made
    finally:
        made.close()


def run(chosen: Sequence[str], services: int, minutes: float = 60.0, beside: str = "") -> Report:
    """Measure; the report is saved after every job, so that nothing is lost when a later one fails."""
    new: Report = {}
    with stages() as open_stages:
        for job in jobs(services, minutes, beside):
            if job.part not in chosen:
                continue
            changes.say(f"measuring: {job.part}" + (f" at {job.size[0]} x {job.size[1]}" if job.size else ""))
            part = new.setdefault(job.part, Part(time.strftime("%Y-%m-%d %H:%M"), 0.0))
            out, began, trouble = Collected(), time.monotonic(), part.trouble
            try:
                if job.size is None:
                    job.work(out)
                else:
                    job.work(open_stages.of(job.size), out)
            except (LabError, UnexpectedAnswerError, HTTPException, OSError, subprocess.SubprocessError) as error:
                trouble = " ".join(str(error).split())[:200] or type(error).__name__
                changes.say(f"{job.part} failed: {error}")
                open_stages.close()
            took = part.seconds + time.monotonic() - began
            new[job.part] = Part(
                part.at, round(took, 1), (*part.figures, *out.figures), (*part.points, *out.points), trouble
            )
            report.save(report.merge(report.load(OUT / "report.json"), new, PARTS))
    return new


def chosen_parts(named: Sequence[str]) -> list[str]:
    """The parts to run: `all`, or none but `report`, are those that are not optional."""
    parts = set(named) - {"all", "report"}
    if "all" in named or not parts:
        parts |= set(USUAL)
    return [part for part in PARTS if part in parts]


def main() -> int:
    """0 when every target of the chosen parts is met, 1 when one is missed, 2 when a part failed."""
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; all: {', '.join(USUAL)} (the default); report"
    )
    parser.add_argument("--services", type=int, default=large.LARGE, help="size of the large catalog (default 5000)")
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="of the part `hour` (less than 60 proves no target)"
    )
    parser.add_argument("--beside", default="", metavar="BRIDGE", help="another checkout's command, for `propagation`")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - {*PARTS, "all", "report"}:
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}, all and report")
    if arguments.services < 1000:
        parser.error("--services must be at least 1000: the changes that are measured need services of their own")
    if not 1 <= arguments.minutes <= 24 * 60:
        parser.error("--minutes must be from 1 to 1440")
    if arguments.beside and not os.access(arguments.beside, os.X_OK):
        parser.error(f"--beside: {arguments.beside} is no command; name .venv/bin/bridge of another checkout")
    try:
        before = report.load(OUT / "report.json")
    except ValueError as error:  # before half an hour of measuring, not after it
        parser.error(str(error))
    if arguments.parts == ["report"]:
        report.publish(before)
        return 0
    chosen = chosen_parts(arguments.parts)
    new = run(chosen, arguments.services, arguments.minutes, arguments.beside)
    print(report.markdown(report.load(OUT / "report.json")))
    if "report" in arguments.parts:
        report.publish(report.load(OUT / "report.json"))
    if any(part.trouble for part in new.values()):
        return 2
    return 0 if all(figure.ok is not False for figure in report.figures(new)) else 1


if __name__ == "__main__":
    sys.exit(main())
