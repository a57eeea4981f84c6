"""What depends on the size of the catalog: first sync, restart, rest, memory, and a storm."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from tests.support.bench.carries import RAW_CREATES, RAW_UPDATES, RESTART, SHARDS, STORM, STORM_COST, WIDE
from tests.support.bench.changes import Elsewhere, settle
from tests.support.bench.floor import FloorChain
from tests.support.bench.floor import restart as floor_restart
from tests.support.bench.harness import Stage, check, name, node, raw_writes, transact
from tests.support.bench.measure import OBJECTS, Figure, Point, beside, limit, median, number, percentile, ratio, slope
from tests.support.bench.report import Collected
from tests.support.bench.watching import SLICES, Tail, age_seconds, cpu_seconds, cpu_share, peak_memory_bytes
from tests.support.lab import LabError
from tests.support.program import Daemon

ROUND_SECONDS = 300.0
"""From one verification, and from one resync, to the next."""
REST_SECONDS = 120.0
"""At least: renewals of waiting queries (55 s) come round in it. A verification and a resync are waited for."""
ALONE_SECONDS = 20.0
IDLE_SECONDS = 10.0
SETTLE_SECONDS = 10.0
LARGE = 5000
RAW_WRITES = 2000
"""Writes of a storm's floor, before it and after it."""
HOUR_RATE = 20.0
MOST_GROWTH = 2.0
"""MB an hour: the allocator takes and gives pages back; less than this is no growth."""
MOST_MEMORY = {4: 120.0, 100: 150.0}
"""MB, by the instances of a service: of the catalogs with 20,000 instances and more."""
PEAK = 250.0


def _first(stage: Stage, *, headless: bool = False) -> tuple[float, int, float]:
    """A first sync: seconds, writes, and the raw writer's writes a second, half of them before and half after.

    A write is the dearer the more Services there are: so halves of equal size meet the sync's own mean, however small.
    """
    half = max(stage.services // 5, 300)
    before = raw_writes(stage.lab, "floor-a", half, stage.instances, headless=headless)
    took, writes, _ = stage.command(headless)
    after = raw_writes(stage.lab, "floor-b", half, stage.instances, headless=headless)
    return took, writes, half * 2 * OBJECTS / (before + after)


def first_sync(stage: Stage, out: Collected, *, headless: bool = False) -> None:
    """On servers that no one wrote to before, between the halves of its floor: they share its minutes, and noise."""
    took, writes, floor = _first(stage, headless=headless)
    what = f"first sync, {'Headless' if headless else 'cluster addresses'}, whole command, {stage.label}"
    row, least, rate = "headless" if headless else "sync", 0.95 if headless else 0.85, writes / took
    out.figures.append(Figure(
        f"{what}, {writes:,} writes", f"{rate:.0f} writes/s", f"{floor:.0f} writes/s", f"{rate / floor * 100:.0f} %",
        f">= {least * 100:.0f} %", rate / floor >= least, row,
    ))  # fmt: skip
    seconds = f"{what}, until its end"
    out.figures.append(
        limit(seconds, took, 25, "s", f"{writes / floor:.1f} s", row)
        if stage.services >= LARGE and not headless
        else Figure(seconds, f"{took:.1f} s", f"{writes / floor:.1f} s", row=row)
    )
    if headless:
        return
    again, writes, _ = stage.command()
    out.figures.append(limit(f"writes of a second sync ({again:.1f} s), {stage.label}", writes, 0, "", row=row))
    out.points.append(Point(stage.services, RAW_CREATES, round(floor, 1), "writes/s"))


def headless(out: Collected, services: int = LARGE) -> None:
    """First sync of as many Services without addresses: what is left when the server has none to give."""
    with Stage(services, 4) as stage:
        first_sync(stage, out, headless=True)


def restart(stage: Stage, out: Collected, times: int = 3) -> None:
    """Stopped and started with nothing changed, and killed and started; beside a floor that reads as much."""
    daemon = stage.bridge()
    time.sleep(SETTLE_SECONDS)
    seconds, used, tail = list[float](), list[float](), stage.tail()
    with stage.sampler() as sampler:
        for turn in range(times + 1):
            killed = turn == times
            (daemon.kill if killed else daemon.stop)()
            began = time.perf_counter()
            daemon.start()
            took = time.perf_counter() - began
            if killed:
                continue
            seconds.append(took)
            used.append(daemon.cpu_seconds())
            time.sleep(3)
        time.sleep(SETTLE_SECONDS)
    # afterwards, for the floor's own connections are none of the bridge's
    floors = [floor_restart(stage.lab, "bench-", stage.services) for _ in range(times)]
    least, cheapest = (median([pair[k] for pair in floors]) for k in (0, 1))
    ready, cost = median(seconds), median(used)
    out.figures += [
        ratio(f"restart until ready, median of {times}, {stage.label}", ready, least, 2, "s", "restart"),
        beside(f"processor time of it, {stage.label}", cost, cheapest, "s", row="restart"),
        Figure(f"killed and started until ready, once, {stage.label}", f"{took:.2f} s", f"{least:.2f} s",
               f"{took / least:.2f} x", row="restart"),
        limit(f"writes of {times + 1} restarts, {stage.label}", tail.count(), 0, "", row="restart"),
        Figure(f"threads at most, restarting, {stage.label}", str(sampler.threads)),
    ]  # fmt: skip
    out.points.append(Point(stage.services, RESTART, round(ready, 2), "s"))
    stage.connections(sampler, "restarting", out)
    stage.accepted(sampler, "restarting", out)


def rest(stage: Stage, out: Collected) -> None:
    """Nothing happens: what it costs, here and in Consul, for long enough that all that comes round has come.

    The bridge has been running for a while: how long decides when it next verifies and resyncs.
    """
    daemon = stage.bridge()
    time.sleep(SETTLE_SECONDS)
    tail, passes = stage.tail(), rounds(daemon)
    with stage.sampler() as sampler:
        before, consul, began = daemon.cpu_seconds(), cpu_seconds(stage.lab.consul.pid), time.monotonic()
        time.sleep(max(REST_SECONDS, ROUND_SECONDS - age_seconds(daemon.pid) % ROUND_SECONDS + 25))
        came = _came(daemon, passes)
        for _ in range(5):  # a verification that took long comes later
            if min(came):
                break
            time.sleep(ROUND_SECONDS / 5)
            came = _came(daemon, passes)
        passed = time.monotonic() - began
        share = (daemon.cpu_seconds() - before) / passed * 100
        more = (cpu_seconds(stage.lab.consul.pid) - consul) / passed * 100
    writes, threads = tail.count(), sampler.threads
    daemon.stop()
    time.sleep(5)
    alone = cpu_share(stage.lab.consul.pid, ALONE_SECONDS)
    what = f"{passed:.0f} s, {stage.label}"
    extra = limit(f"Consul's own extra processor in steady state, {what}", more - alone, 3, "% of a core",
                  f"{alone:.2f} % without the bridge", "rest")  # fmt: skip
    out.figures += [
        limit(f"processor in steady state, {what}", share, 2, "% of a core", row="rest"),
        extra,
        replace(extra, row="unwatched"),
        limit(f"writes in steady state, {what}", writes, 0, "", row="rest"),
        Figure(f"verifications and resyncs in this rest, {stage.label}", f"{came[0]} and {came[1]}",
               target=">= 1 each", ok=min(came) >= 1, row="rest"),
        Figure(f"threads in steady state, {stage.label}", str(threads)),
    ]  # fmt: skip
    stage.connections(sampler, "in steady state", out)


def _came(daemon: Daemon, before: tuple[int, int]) -> tuple[int, int]:
    """Verifications and full passes since `before`."""
    verified, resynced = rounds(daemon)
    return verified - before[0], resynced - before[1]


def rounds(daemon: Daemon) -> tuple[int, int]:
    """Verifications of Consul that the bridge has completed, and full passes."""
    found = json.loads(daemon.get("/api/status")[1])["catalog"].values()
    return sum(one["audits"] for one in found), round(daemon.metric("consul_bridge_full_passes_total"))


def memory(stage: Stage, out: Collected, turns: int = 6) -> None:
    """Memory, connections, processor time in steady state and of a change, and its lag beside the floor's.

    An even number of turns leaves all healthy, as they were: a part that flips them later would wait in vain.
    """
    daemon = stage.bridge()
    with stage.lab.raw_consul() as consul, stage.sampler() as sampler, FloorChain(stage.lab, "floor-web") as chain:
        time.sleep(SETTLE_SECONDS)
        idle = cpu_share(daemon.pid, IDLE_SECONDS) / 100
        tail, ours, floor = stage.tail(), list[float](), list[float]()
        used = least = 0.0
        for turn in range(turns):
            status = "passing" if turn % 2 else "critical"
            before, began = daemon.cpu_seconds(), time.monotonic()
            for n in range(0, 20 * (stage.services // 20), stage.services // 20):
                ours.append(tail.lag(name(n), partial(consul.flip, name(n), node(n, 1), status)))
                time.sleep(0.05)
            used += daemon.cpu_seconds() - before - idle * (time.monotonic() - began)
            before = chain.cpu_seconds()
            for again in range(20):  # apart from ours, whose processor time its flips would be part of
                change = "passing" if again % 2 else "critical"
                floor.append(tail.lag("floor-web", partial(consul.flip, "floor-web", "floor-web-vm3", change)))
                time.sleep(0.05)
            least += chain.cpu_seconds() - before
    cost, cheapest = used / len(ours) * 1000, least / len(floor) * 1000
    size, most = daemon.memory_bytes() / 1e6, peak_memory_bytes(daemon.pid) / 1e6
    judged = stage.services * stage.instances >= 4 * LARGE
    out.figures += [
        *(
            limit(f"{what}, {stage.label}", math.ceil(value), bound, "MB", row="memory")
            if judged
            else Figure(f"{what}, {stage.label}", f"{value:.0f} MB", row="memory")
            for what, value, bound in (
                ("memory", size, MOST_MEMORY[stage.instances]), ("memory at its peak", most, PEAK)
            )
        ),
        Figure(f"processor in {IDLE_SECONDS:.0f} s of rest, {stage.label}", f"{number(idle * 100)} % of a core",
               row="rest"),
        ratio(f"processor time of a flip, {stage.label}", cost, cheapest, 3, row="cost"),
        beside(f"flip -> slice, p50, {stage.label}", percentile(ours, 50), percentile(floor, 50)),
        Figure(f"threads, {stage.label}", str(daemon.threads())),
    ]  # fmt: skip
    stage.connections(sampler, "flips, one at a time", out)
    if stage.instances == 4:
        out.points += [
            Point(stage.services, "memory", round(size, 1), "MB"),
            Point(stage.services, "processor time of a flip", round(max(cost, 0), 2), "ms"),
            Point(stage.services, "flip -> slice, p50", round(percentile(ours, 50), 2), "ms"),
        ]
    else:
        out.points.append(Point(stage.services * stage.instances, WIDE, round(size, 1), "MB"))


def hour(stage: Stage, out: Collected, minutes: float = 60.0) -> None:
    """Changes for an hour: whether memory grows, by the line that fits what it was every ten seconds."""
    daemon = stage.bridge()
    time.sleep(SETTLE_SECONDS)
    start = daemon.memory_bytes() / 1e6
    seen: list[tuple[float, float]] = []
    began = time.monotonic()
    with Elsewhere(stage.lab, range(100, stage.services), HOUR_RATE) as elsewhere:
        while (passed := time.monotonic() - began) < minutes * 60:
            seen.append((passed / 3600, daemon.memory_bytes() / 1e6))
            time.sleep(min(10.0, minutes))
    grown(stage.label, minutes, start, seen, out)
    rate, peak = elsewhere.made / elsewhere.seconds, peak_memory_bytes(daemon.pid) / 1e6
    what = f"{minutes:.0f} minutes of changes, {stage.label}"
    out.figures += [
        Figure(f"changes a second in {what}", f"{rate:.1f} /s", target=f">= {HOUR_RATE * 0.95:g} /s",
               ok=rate >= HOUR_RATE * 0.95, row="hour"),
        limit(f"memory at its peak in {what}", peak, PEAK, "MB", row="hour"),
    ]  # fmt: skip
    settle(stage, out, f"after {minutes:.0f} minutes of changes", row="hour")
    out.figures.append(limit(f"missed changes that a verification found in {what}",
                             daemon.metric("consul_bridge_missed_changes_total"), 0, "", row="hour"))  # fmt: skip


def grown(label: str, minutes: float, start: float, seen: Sequence[tuple[float, float]], out: Collected) -> None:
    """Figures of memory in MB over hours; the first tenth, in which the heap takes its shape, is not fitted."""
    what = f"{minutes:.0f} minutes of {HOUR_RATE:.0f} changes/s, {label}"
    settled = [(at, size) for at, size in seen if at >= minutes / 600]
    out.figures += [
        limit(f"memory growth in {what}, fitted", slope(settled), MOST_GROWTH, "MB an hour", row="hour"),
        Figure(f"memory before, after {minutes / 10:.0f} minutes, and after {what}",
               f"{start:.0f}, {settled[0][1]:.0f}, {settled[-1][1]:.0f} MB", row="hour"),
    ]  # fmt: skip


def shards(stage: Stage, out: Collected) -> None:
    """The same storms with one replica that leads two shards, and with two that lead one each."""
    rates: dict[int, list[float]] = {}
    stage.bridge()
    floor = RAW_WRITES / _raw_updates(stage)
    for count in (1, 2, 1, 2):
        with stage.replicas(count, 2) as daemons:
            time.sleep(SETTLE_SECONDS)
            used = [daemon.cpu_seconds() for daemon in daemons]
            for status in ("critical", "passing"):
                tail, began = stage.tail(), time.time()
                flip_all(stage, status)
                _, _, writes, last = await_writes(stage, tail, began)
                rates.setdefault(count, []).append(writes / (last - began))
            shares = [daemon.cpu_seconds() - before for daemon, before in zip(daemons, used, strict=True)]
    one, two = median(rates[1]), median(rates[2])
    what = f"flips of all at once, two shards, median of {len(rates[1])}, {stage.label}"
    out.figures += [
        Figure(f"{what}: one replica", f"{one:.0f} writes/s", f"{floor:.0f} writes/s", f"{one / floor:.2f} x"),
        Figure(f"{what}: two replicas", f"{two:.0f} writes/s", f"{floor:.0f} writes/s", f"{two / floor:.2f} x"),
        Figure(f"{what}: processor time of each of two, two storms", ", ".join(f"{share:.1f} s" for share in shares)),
    ]
    out.points += [Point(1, SHARDS, round(one, 1), "writes/s"), Point(2, SHARDS, round(two, 1), "writes/s")]
    settle(stage, out, "after the storms of shards")


def storm(stage: Stage, out: Collected) -> None:
    """An instance of every service becomes critical at once; its floor is written half before and half after."""
    daemon = stage.bridge()
    time.sleep(SETTLE_SECONDS)
    floors = [_raw_updates(stage)]
    tail = stage.tail()
    used = daemon.cpu_seconds()
    began = time.time()
    with stage.sampler() as sampler:
        flip_all(stage, "critical")
        flipped = time.time() - began
        done, stored, writes, last = await_writes(stage, tail, began)
        time.sleep(3)
        spent = daemon.cpu_seconds() - used
        writes += tail.count()
        differing = stage.differing()
    floors.append(_raw_updates(stage))
    rate = RAW_WRITES * len(floors) / sum(floors)
    floor = done / rate
    what = f"{stage.services:,} flips at once"
    out.figures += [
        ratio(f"{what}, until every slice is stored ({flipped:.1f} s of it making them)", stored - began, floor, 1.25,
              "s", "storm"),
        beside(f"{what}, until the Endpoints are stored as well", last - began, floor, "s", "storm"),
        limit(f"{what}: processor time of a write", spent / writes * 1000, 0.9, "ms", row="storm"),
        Figure(f"{what}: processor time of a flip, two writes", f"{number(spent / stage.services * 1000)} ms",
               row="storm"),
        limit(f"{what}: writes made ({done:,} needed)", writes, done, "", f"{done}", "storm"),
        limit(f"{what}: services that differ from Consul afterwards", len(differing), 0, "", row="storm"),
        limit(f"memory after a storm, {stage.label}", daemon.memory_bytes() / 1e6, PEAK, "MB", row="memory"),
        limit(f"memory at its peak, a storm included, {stage.label}", peak_memory_bytes(daemon.pid) / 1e6, PEAK, "MB",
              row="memory"),
    ]  # fmt: skip
    out.points += [
        Point(stage.services, STORM, round(stage.services / (stored - began), 1), "changes/s"),
        Point(stage.services, STORM_COST, round(spent / stage.services * 1000, 3), "ms"),
        Point(stage.services, RAW_UPDATES, round(rate, 1), "writes/s"),
    ]
    stage.connections(sampler, "in a storm", out)


def flip_all(stage: Stage, status: str) -> None:
    """The first instance of every service."""
    transact(stage.lab, ({"Check": {"Verb": "set", "Check": check(n, 0, status)}} for n in range(stage.services)))


def _raw_updates(stage: Stage) -> float:
    """Seconds in which plain clients write `RAW_WRITES` slices and Endpoints that exist."""
    services = RAW_WRITES // 2
    raw_writes(stage.lab, "floor-storm", services, stage.instances)
    return raw_writes(stage.lab, "floor-storm", services, stage.instances, sick=0)


def await_writes(stage: Stage, tail: Tail, began: float, seconds: float = 300.0) -> tuple[int, float, int, float]:
    """(writes that are needed, when the last slice was stored, writes, when the last of all was answered)."""
    missing = {(kind, name(n)) for n in range(stage.services) for kind in (SLICES, "endpoints")}
    needed, writes, last = len(missing), 0, {SLICES: began, "endpoints": began}
    deadline = time.monotonic() + seconds
    while missing:
        for at, kind, found in tail.read():
            if not found.startswith("bench-"):
                continue
            writes += 1
            if (kind, found) in missing:
                missing.discard((kind, found))
                last[kind] = at
        if time.monotonic() > deadline:
            raise LabError(f"{len(missing)} of {needed} objects were not written within {seconds:.0f} s")
        time.sleep(0.05)
    return needed, last[SLICES], writes, max(last.values())
