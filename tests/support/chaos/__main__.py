"""`make chaos SEED=… MINUTES=…`, or `python -m tests.support.chaos --seed 7 --minutes 10 [--fault NAME …]`.

Exit status: 0 when no invariant was violated, 1 when one was, 2 for a mistake in the command, 3 when there can be no
servers here. A run with the same seed has the same faults and the same changes in the same order.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.support.chaos.faults import catalogue, table
from tests.support.chaos.harness import Harness
from tests.support.chaos.observer import Usage, usage_of
from tests.support.chaos.run import Campaign, sequence, summary
from tests.support.lab import LabError


def main(arguments: Sequence[str] | None = None) -> int:
    """Play; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.chaos", description=__doc__)
    parser.add_argument("--seed", default="", help="a whole number; default: a new one, which is printed")
    parser.add_argument("--minutes", default="", help="how long to go on (the last fault is finished); default 5")
    parser.add_argument("--fault", action="append", default=[], metavar="NAME", help="only these, in this order")
    parser.add_argument("--services", type=int, default=8, help="services that exist from the start; default 8")
    parser.add_argument("--instances", type=int, default=12, help="instances of each, two thirds never touched")
    parser.add_argument("--rate", type=float, default=6.0, help="changes a second; default 6")
    parser.add_argument("--every", type=float, default=0.0, help="seconds from one fault to the next; default: at once")
    parser.add_argument(
        "--soak", action="store_true", help="30 minutes, 1,000 services, 20 changes/s, a fault a minute"
    )
    parser.add_argument("--list", action="store_true", help="print the faults and stop")
    parser.add_argument("--table", action="store_true", help="print the table of docs/reliability.md and stop")
    asked = parser.parse_args(arguments)
    if asked.list or asked.table:
        print(table() if asked.table else "\n".join(f"{f.name:24} {f.what}" for f in catalogue().values()))
        return 0
    if asked.soak:
        asked.services, asked.instances, asked.rate, asked.every = 1000, 5, 20.0, 60.0
        asked.minutes = asked.minutes or "30"
    try:
        seed = int(asked.seed) if asked.seed else random.SystemRandom().randrange(1_000_000)
    except ValueError:
        parser.error(f"--seed {asked.seed!r} is not a whole number")
    try:
        minutes = float(asked.minutes or 5)
    except ValueError:
        parser.error(f"--minutes {asked.minutes!r} is not a number")
    if not 0 < minutes <= 7 * 24 * 60:
        parser.error(f"--minutes {asked.minutes} must be more than 0, and at most a week")
    known = catalogue()
    if unknown := [name for name in asked.fault if name not in known]:
        parser.error(f"there is no fault {', '.join(map(repr, unknown))}; --list shows all {len(known)}")
    if asked.services < 3 or asked.instances < 3 or asked.rate <= 0:
        parser.error("--services must be at least 3, --instances as well, and --rate more than 0")
    servers = {known[name].servers for name in asked.fault} or {1}
    if len(servers) > 1:
        parser.error("faults that need three Consul servers cannot be mixed with other faults in one run")
    names = asked.fault or [name for name, fault in known.items() if fault.servers == 1]
    say(f"seed {seed}: the same faults and changes again with SEED={seed}")
    try:
        return play(Plan(names, seed, minutes, asked.services, asked.instances, asked.rate, asked.every, servers.pop()))
    except LabError as error:
        print(f"chaos: the servers do not work here: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("chaos: interrupted", file=sys.stderr)
        return 130


@dataclass(frozen=True, slots=True)
class Plan:
    """What to play. `every`: seconds from one fault to the next; `servers`: of Consul."""

    names: Sequence[str]
    seed: int
    minutes: float
    services: int
    instances: int
    rate: float
    every: float
    servers: int


def play(plan: Plan) -> int:
    """Faults until the time is over; 1 when something was violated."""
    began = time.monotonic()
    rng = random.Random(plan.seed)
    following = sequence(plan.names, plan.seed)
    with Harness(
        seed=plan.seed, services=plan.services, instances=plan.instances, anchors=plan.instances * 2 // 3,
        rate=plan.rate, servers=plan.servers, longest_pause=60.0,
    ) as harness:  # fmt: skip
        campaign = Campaign(harness, say)
        campaign.begin()
        say(f"{plan.services} services mirrored after {time.monotonic() - began:.0f} s")
        end = time.monotonic() + plan.minutes * 60
        while time.monotonic() < end:
            start = time.monotonic()
            campaign.play(catalogue()[following()](), rng)
            campaign.calm(start + plan.every - time.monotonic())
        result = summary(campaign)
        say(f"use at the start: {words(campaign.baseline)}; at the end: {words(usage_of(harness.bridge.pid))}")
    for line in result.lines():
        say(line)
    for violation in result.violations:
        say(f"VIOLATION {violation}")
    return 1 if result.violations else 0


def words(usage: Usage | None) -> str:
    """What a process has taken, for people."""
    if usage is None:
        return "nothing is known"
    return f"{usage.memory_bytes >> 20} MiB, {usage.threads} threads, {usage.descriptors} descriptors"


def say(text: str) -> None:
    """One line, at once."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
