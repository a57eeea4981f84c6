"""What depends on the size of the catalog: first sync, restart, rest, memory, and a storm."""

from __future__ import annotations

import time
from functools import partial

from tests.bench.changes import Lags
from tests.bench.measure import Figure, Point, limit, median, percentile
from tests.bench.report import Collected
from tests.bench.stage import Stage, check, name, node, raw_writes, transact
from tests.bench.watching import Tail, cpu_seconds, cpu_share
from tests.lab import LabError

REST_SECONDS = 20.0
SETTLE_SECONDS = 10.0
LARGE = 5000


def _first(stage: Stage, *, headless: bool = False) -> tuple[float, int, float]:
    """A first sync: seconds, writes, and the raw writer's writes a second, half of them before and half after."""
    half = stage.services // 2
    before = raw_writes(stage.lab, "floor-a", half, stage.instances, headless=headless)
    took, writes, _ = stage.command(headless)
    after = raw_writes(stage.lab, "floor-b", half, stage.instances, headless=headless)
    return took, writes, half * 4 / (before + after)


def initial(stage: Stage, out: Collected) -> None:
    """First sync beside a raw writer with as many connections that makes as many objects, half before, half after."""
    took, writes, floor = _first(stage)
    rate = writes / took
    what = f"first sync, whole command, {stage.label}"
    out.figures.append(Figure(
        f"{what}, {writes:,} writes", f"{rate:.0f} writes/s", f"{floor:.0f} writes/s", f"{rate / floor * 100:.0f} %",
        ">= 85 %", rate / floor >= 0.85, "sync",
    ))  # fmt: skip
    if stage.services >= LARGE:
        out.figures.append(limit(what, took, 25, "s", f"{writes / floor:.1f} s", "sync"))
    else:
        out.figures.append(Figure(what, f"{took:.1f} s", f"{writes / floor:.1f} s", row="sync"))
    again, writes, _ = stage.command()
    out.figures.append(limit(f"writes of a second sync ({again:.1f} s), {stage.label}", writes, 0, "", row="sync"))


def headless(out: Collected, services: int = LARGE) -> None:
    """First sync of as many Services without addresses: what is left when the server has none to give."""
    with Stage(services, 4) as stage:
        took, writes, floor = _first(stage, headless=True)
        rate = writes / took
        out.figures.append(Figure(
            f"the same with Headless Services, {stage.label}, {writes:,} writes in {took:.1f} s",
            f"{rate:.0f} writes/s", f"{floor:.0f} writes/s", f"{rate / floor * 100:.0f} %", row="sync",
        ))  # fmt: skip


def restart(stage: Stage, out: Collected, times: int = 3) -> None:
    """Stopped and started with nothing changed."""
    daemon = stage.bridge()
    time.sleep(SETTLE_SECONDS)
    seconds, used, tail = [], [], stage.tail()
    with stage.sampler() as sampler:
        for _ in range(times):
            daemon.stop()
            began = time.perf_counter()
            daemon.start()
            seconds.append(time.perf_counter() - began)
            used.append(daemon.cpu_seconds())
            time.sleep(3)
    out.figures += [
        limit(f"restart until ready, median of {times}, {stage.label}", median(seconds), 8, "s", row="restart"),
        Figure(f"processor time of it, {stage.label}", f"{median(used):.1f} s", row="restart"),
        limit(f"writes of {times} restarts, {stage.label}", tail.count(), 0, "", row="restart"),
        Figure(f"threads at most, restarting, {stage.label}", str(sampler.threads)),
    ]
    stage.connections(sampler, "restarting", out)


def rest(stage: Stage, out: Collected) -> None:
    """Nothing happens: what it costs, here and in Consul."""
    stage.bridge().stop()
    time.sleep(5)
    alone = cpu_share(stage.lab.consul.pid, REST_SECONDS)
    daemon = stage.bridge()
    time.sleep(SETTLE_SECONDS)
    tail = stage.tail()
    with stage.sampler() as sampler:
        before, consul, began = daemon.cpu_seconds(), cpu_seconds(stage.lab.consul.pid), time.monotonic()
        time.sleep(REST_SECONDS)
        passed = (time.monotonic() - began) / 100
        share = (daemon.cpu_seconds() - before) / passed
        more = (cpu_seconds(stage.lab.consul.pid) - consul) / passed - alone
    out.figures += [
        limit(f"processor at rest, {stage.label}", share, 2, "% of a core", row="rest"),
        limit(f"Consul's own extra processor at rest, {stage.label}", more, 3, "% of a core",
              f"{alone:.2f} % without the bridge", "rest"),
        limit(f"writes at rest, {REST_SECONDS:.0f} s, {stage.label}", tail.count(), 0, "", row="rest"),
        Figure(f"threads at rest, {stage.label}", str(sampler.threads)),
    ]  # fmt: skip
    stage.connections(sampler, "at rest", out)


def memory(stage: Stage, out: Collected, flips: int = 120) -> None:
    """Memory, and processor time and lag of a change, at this size.

    An even number of rounds leaves all healthy, as they were: a part that flips them later would wait in vain.
    """
    daemon = stage.bridge()
    time.sleep(SETTLE_SECONDS)
    idle = cpu_share(daemon.pid, 5) / 100
    tail, lags = stage.tail(), Lags()
    used, began = daemon.cpu_seconds(), time.monotonic()
    with stage.lab.raw_consul() as consul:
        for turn in range(flips):
            n = turn % 20 * (stage.services // 20)
            status = "passing" if turn // 20 % 2 else "critical"
            change = tail.lag(name(n), partial(consul.flip, name(n), node(n, 1), status))
            lags.setdefault("flip", []).append(change)
            time.sleep(0.05)
    cost = (daemon.cpu_seconds() - used - idle * (time.monotonic() - began)) / flips * 1000
    size, lag = daemon.memory_bytes() / 1e6, percentile(lags["flip"], 50)
    judged = stage.services * stage.instances >= 4 * LARGE
    out.figures += [
        limit(f"memory, {stage.label}", size, 250, "MB", row="memory") if judged
        else Figure(f"memory, {stage.label}", f"{size:.0f} MB", row="memory"),
        Figure(f"processor time of a flip, {stage.label}", f"{cost:.1f} ms"),
        Figure(f"flip -> written, p50, {stage.label}", f"{lag:.1f} ms"),
        Figure(f"threads, {stage.label}", str(daemon.threads())),
    ]  # fmt: skip
    if stage.instances == 4:
        out.points += [
            Point(stage.services, "memory", round(size, 1), "MB"),
            Point(stage.services, "processor time of a flip", round(max(cost, 0), 2), "ms"),
            Point(stage.services, "flip -> written, p50", round(lag, 2), "ms"),
        ]


def storm(stage: Stage, out: Collected) -> None:
    """An instance of every service becomes critical at once."""
    daemon = stage.bridge()
    time.sleep(SETTLE_SECONDS)
    floor = stage.services / (1000 / _raw_updates(stage))
    tail = stage.tail()
    used = daemon.cpu_seconds()
    began = time.time()
    with stage.sampler() as sampler:
        transact(stage.lab, (
            {"Check": {"Verb": "set", "Check": check(n, 0, "critical")}} for n in range(stage.services)
        ))  # fmt: skip
        flipped = time.time() - began
        done, writes, last = _await_writes(stage, tail, began)
        time.sleep(3)
        writes += tail.count()
        differing = stage.differing()
    what = f"{stage.services:,} flips at once"
    out.figures += [
        Figure(f"{what}, until all are written ({flipped:.1f} s of it making them)", f"{last - began:.1f} s",
               f"{floor:.1f} s", f"{(last - began) / floor:.2f} x"),
        limit(f"{what}: writes made ({done:,} needed)", writes, done, "", f"{done}"),
        limit(f"{what}: services that differ from Consul afterwards", len(differing), 0, ""),
        Figure(f"{what}: processor time", f"{daemon.cpu_seconds() - used:.1f} s"),
    ]  # fmt: skip
    stage.connections(sampler, "in a storm", out)
    out.figures.append(Figure(f"memory after a storm, {stage.label}", f"{daemon.memory_bytes() / 1e6:.0f} MB",
                              row="memory"))  # fmt: skip


def _raw_updates(stage: Stage) -> float:
    """Seconds in which plain clients write 1,000 Endpoints that exist."""
    raw_writes(stage.lab, "floor-storm", 1000, stage.instances)
    return raw_writes(stage.lab, "floor-storm", 1000, stage.instances, create=False)


def _await_writes(stage: Stage, tail: Tail, began: float, seconds: float = 300.0) -> tuple[int, int, float]:
    """(services that had to be written, writes, when the last of them was answered)."""
    missing = {name(n) for n in range(stage.services)}
    writes, last = 0, began
    deadline = time.monotonic() + seconds
    while missing:
        for at, kind, found in tail.read():
            if not found.startswith("bench-") or kind == "endpointslices":
                continue
            writes += 1
            if kind == "endpoints" and found in missing:
                missing.discard(found)
                last = at
        if time.monotonic() > deadline:
            raise LabError(f"{len(missing)} of {stage.services} services were not written within {seconds:.0f} s")
        time.sleep(0.05)
    return stage.services, writes, last
