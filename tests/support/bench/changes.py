"""Single changes of every kind, and how long each takes until its slice is stored; quiet, or with others going on."""

from __future__ import annotations

import itertools
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Self

from tests.support.bench.floor import FloorChain
from tests.support.bench.harness import Stage, address, extra, name, node
from tests.support.bench.measure import Figure, beside, limit, number, percentile, ratio
from tests.support.bench.report import Collected
from tests.support.bench.watching import Tail
from tests.support.lab import Lab, LabError
from tests.support.raw import RawConsul

KINDS = ("flip", "address change", "registration", "deregistration", "removal")
"""Removal: the VM's node leaves the catalog, and its instance with it."""
Lags = dict[str, list[float]]
Steps = list[tuple[bool, Callable[[], object]]]
"""Changes that follow one another, each with whether it counts."""
SAME_NODE = ""
"""The node stays as it is: if it changed, or were new, `catalog/nodes` would name the service to the bridge."""
BUSY_PER_SECOND = 50.0
SETTLE_SECONDS = 0.03
FLOOR_TIMES = 16
"""Of each kind without a name: what it is compared with is not near it, so fewer are enough."""
DIRECT = 8
"""Services that are made to have a direct watch."""
DIRECT_TIMES = 13
"""So that even the rarest kinds are measured a hundred times: fewer have no p99 that is not their worst."""
BUSY_TIMES = 2
QUIET, BUSY = 64, 24
"""Of each kind, without a direct watch. A limit of seconds is far from the noise: for it the worst is good enough."""
PROMOTION_SECONDS = 20.0
"""A direct watch is given to another service within 15 s."""


def cycle(consul: RawConsul, service: str, place: str, home: str) -> list[tuple[str, Callable[[], object]]]:
    """Changes of a service that end where they began; `place` is the node of the instance at the address `home`."""
    come, go, drop = extra(consul, service)

    def move(to: str) -> None:
        consul.register(service, place, SAME_NODE, 80, Address=to)

    return [
        ("flip", lambda: consul.flip(service, place, "critical")),
        ("flip", lambda: consul.flip(service, place, "passing")),
        ("address change", lambda: move("10.251.0.1")),
        ("address change", lambda: move(home)),
        ("registration", come),
        ("deregistration", go),
        ("registration", come),
        ("removal", drop),
    ]


def rounds(
    tail: Tail, plans: Mapping[str, Sequence[tuple[str, Callable[[], object]]]], into: Mapping[str, Lags]
) -> None:
    """Make the changes of several services in turn, one change of each at a time."""
    for steps in zip(*plans.values(), strict=True):
        for service, (kind, change) in zip(plans, steps, strict=True):
            into[service].setdefault(kind, []).append(tail.lag(service, change))
            time.sleep(SETTLE_SECONDS)


Limits = Mapping[str, tuple[str, float, float]]
"""Of each kind of change: the row that it belongs to, and the most that its p50 and p99 may be times the floor's."""


def against_floor(out: Collected, what: str, ours: Lags, floor: Lags, limits: Limits) -> None:
    """Figures whose targets are multiples of the floor."""
    for kind, (row, p50, p99) in limits.items():
        mine, least = ours[kind], floor[kind]
        title = f"{kind} -> slice, {what}, {len(mine)} times"
        out.figures += [
            ratio(f"{title}, p50", percentile(mine, 50), percentile(least, 50), p50, row=row),
            beside(f"{title}, p90", percentile(mine, 90), percentile(least, 90), row=row),
            ratio(f"{title}, p99", percentile(mine, 99), percentile(least, 99), p99, row=row),
        ]


def within(
    out: Collected,
    title: str,
    lags: Sequence[float],
    floor: Sequence[float],
    row: str,
    p50: float | None,
    p99: float,
) -> None:  # fmt: skip
    """Figures of absolute limits, in seconds; their floor, the chain that watches, stands beside them."""
    title = f"{title}, {len(lags)} times"
    for percent, most in ((50, p50), (90, None), (99, p99)):
        what, value, least = f"{title}, p{percent}", percentile(lags, percent), percentile(floor, percent)
        shown, times = f"{number(least / 1000)} s", f"{value / least:.1f} x" if least else ""
        out.figures.append(
            Figure(what, f"{number(value / 1000)} s", shown, times, row=row)
            if most is None
            else limit(what, value / 1000, most, "s", shown, row, ratio=times)
        )


class Elsewhere:
    """So many changes a second of services that no one measures: half flips, the rest of all other kinds.

    `seconds`: how long they went on. Leaving raises what ended them before their time.
    """

    def __init__(self, lab: Lab, services: Sequence[int], per_second: float = BUSY_PER_SECOND) -> None:
        self._lab = lab
        self._services = services
        self._every = 1 / per_second
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="elsewhere", daemon=True)
        self._fault: Exception | None = None
        self.made = 0
        self.seconds = 0.0

    def _run(self) -> None:
        try:
            self._go_on()
        except Exception as error:  # noqa: BLE001 - told to the caller when he leaves
            self._fault = error

    def _go_on(self) -> None:
        chance = random.Random(5)
        began = due = time.monotonic()
        waiting: list[Callable[[], object]] = []
        with self._lab.raw_consul() as consul:
            while not self._stop.wait(max(due - time.monotonic(), 0)):
                due += self._every
                if len(waiting) < 200:  # changes are taken at random: the second half of a pair may come first
                    n = chance.choice(self._services)
                    waiting += [change for _, change in self._some(consul, n, chance)]
                waiting.pop(0)()
                self.made += 1
            self.seconds = time.monotonic() - began
            for change in waiting:  # bring all to their ends, so that the catalog is as it was
                change()

    @staticmethod
    def _some(consul: RawConsul, n: int, chance: random.Random) -> list[tuple[str, Callable[[], object]]]:
        all_of_them = cycle(consul, name(n), node(n, 0), address(n, 0))
        return all_of_them[:2] if chance.random() < 0.5 else all_of_them[2:]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._fault is not None:
            raise LabError(f"changes elsewhere ended early, after {self.made}: {self._fault!r}") from self._fault


def say(text: str) -> None:
    """Tell who waits."""
    print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def unwatched(tail: Tail, consul: RawConsul, groups: Mapping[str, Sequence[int]]) -> tuple[Lags, Lags]:
    """Changes of services that never changed before, so that none has a direct watch; flips in turn with the floor's.

    Registrations and address changes leave the nodes alone: no one names these services, a sweep has to find them. The
    floor's changes of those kinds come after them, for they would set off a sweep as well.
    """
    ours: Lags = {}
    floor: Lags = {}
    chance = random.Random(3)
    for kind, chosen in groups.items():
        flips = kind == "flip"
        floor_steps = floor_changes(consul, kind)
        for n in chosen:
            if flips:
                _floor_lag(tail, floor_steps, floor.setdefault(kind, []))
            ours.setdefault(kind, []).append(tail.lag(name(n), once(consul, kind, n)))
            time.sleep(chance.uniform(0.05, 0.35))
        for _ in range(len(chosen) % 2 if flips else FLOOR_TIMES):  # an even number: it is healthy again
            _floor_lag(tail, floor_steps, floor.setdefault(kind, []))
        say(f"{kind}, no direct watch: {len(chosen)} done")
    return ours, floor


def _floor_lag(tail: Tail, groups: Iterator[Steps], into: list[float]) -> None:
    """The next change of the floor's service, with those that lead to it or bring it back, which do not count."""
    for counts, change in next(groups):
        lag = tail.lag("floor-web", change)
        time.sleep(SETTLE_SECONDS)
        if counts:
            into.append(lag)


def floor_changes(consul: RawConsul, kind: str) -> Iterator[Steps]:
    """Changes of the floor's service forever, those of this kind marked; nodes stay as they are, as with `once`."""
    service, place, spare = "floor-web", "floor-web-vm3", "second-floor-web"
    join, _, drop = extra(consul, service)
    flip = partial(consul.flip, service, place)
    move = partial(consul.register, service, place, SAME_NODE, 80)
    come = partial(consul.register, service, place, SAME_NODE, 80, service_id=spare, Address="10.250.255.1")
    go = partial(consul.deregister, service, place, spare)
    groups: dict[str, list[Steps]] = {
        "flip": [[(True, partial(flip, "critical"))], [(True, partial(flip, "passing"))]],
        "address change": [[(True, partial(move, Address=to))] for to in ("10.251.255.1", "10.2.0.3")],
        "registration": [[(True, come), (False, go)]],
        "deregistration": [[(False, come), (True, go)]],
        "removal": [[(False, join), (True, drop)]],
    }
    return itertools.cycle(groups[kind])


def once(consul: RawConsul, kind: str, n: int) -> Callable[[], object]:
    """A single change of a service that nothing brings back."""
    service = name(n)
    return {
        "flip": lambda: consul.flip(service, node(n, 1), "critical"),
        "address change": lambda: consul.register(
            service, node(n, 1), SAME_NODE, 80, Address=f"10.251.{n // 250}.{n % 250 + 1}"
        ),
        "registration": lambda: consul.register(
            service,
            node(n, 0),
            SAME_NODE,
            80,
            service_id=f"second-{service}",
            Address=f"10.250.{n // 250}.{n % 250 + 1}",
        ),
        "deregistration": lambda: consul.deregister(service, node(n, 2)),
        "removal": lambda: consul.drop_node(node(n, 3)),
    }[kind]


def choose(services: int, *times: int) -> tuple[list[dict[str, list[int]]], list[int], list[int]]:
    """Sets of so many services for changes of each kind, those with a direct watch, and those that change elsewhere.

    None is among the first, which get the direct watches at the start; removals need a node of their own.
    """
    chance = random.Random(1)
    lone = [n for n in range(100, services) if n % 10 == 9]
    usual = [n for n in range(100, services) if n % 10 != 9]
    chance.shuffle(lone)
    chance.shuffle(usual)
    sets: list[dict[str, list[int]]] = []
    for count in times:
        groups = {}
        for kind in KINDS:
            source = lone if kind == "removal" else usual
            groups[kind], source[:count] = source[:count], []
        sets.append(groups)
    direct, usual = usual[:DIRECT], usual[DIRECT:]
    return sets, direct, usual


def scale(stage: Stage, out: Collected, quiet_times: int = QUIET, busy_times: int = BUSY) -> None:
    """Changes in a large catalog: with and without a direct watch, quiet and busy."""
    daemon = stage.bridge()
    tail = stage.tail()
    (quiet, busy), direct, others = choose(stage.services, quiet_times, busy_times)
    before = daemon.memory_bytes()
    with stage.lab.raw_consul() as consul, stage.sampler() as sampler, FloorChain(stage.lab, "floor-web"):
        time.sleep(5)
        ours, floor = unwatched(tail, consul, quiet)
        what = f"no direct watch, quiet, {stage.label}"
        against_floor(out, what, ours, floor, {"flip": ("flip-many", 2, 3)})
        for kind in KINDS[1:]:
            within(out, f"{kind} -> slice, {what}", ours[kind], floor[kind], "unwatched", 0.1, 0.25)
        _watched(stage, tail, consul, direct, out, "quiet")
        with Elsewhere(stage.lab, others) as elsewhere:
            time.sleep(5)
            lags, least = unwatched(tail, consul, busy)
            what = f"{BUSY_PER_SECOND:.0f} changes/s elsewhere, {stage.label}"
            for kind in KINDS:
                title = f"{kind} -> slice, no direct watch, {what}"
                within(out, title, lags[kind], least[kind], "busy", None, 1 if kind == "flip" else 3)
            _watched(stage, tail, consul, direct, out, what)
    out.figures.append(Figure("changes elsewhere", f"{elsewhere.made / elsewhere.seconds:.0f} /s"))
    stage.connections(sampler, "while changes go on", out)
    out.figures.append(replace(out.figures[-1], row="unwatched"))
    out.figures.append(Figure(f"threads at most, while changes go on, {stage.label}", str(sampler.threads)))
    grown = (daemon.memory_bytes() - before) / 1e6
    out.figures.append(Figure(f"memory gained by {elsewhere.made:,} changes, {stage.label}", f"{grown:.1f} MB",
                              row="memory"))  # fmt: skip
    settle(stage, out, "after all changes")
    out.figures.append(limit(f"missed changes that a verification found, {stage.label}",
                             daemon.metric("consul_bridge_missed_changes_total"), 0, ""))  # fmt: skip


def _watched(stage: Stage, tail: Tail, consul: RawConsul, direct: Sequence[int], out: Collected, what: str) -> None:
    """Changes of a few services again and again, so that each has a direct watch when it is measured."""
    plans = [(name(n), cycle(consul, name(n), node(n, 0), address(n, 0))) for n in direct]
    for service, steps in plans:
        for _, change in steps[:2]:
            tail.lag(service, change)
    time.sleep(PROMOTION_SECONDS if what == "quiet" else 0)
    floor_steps = cycle(consul, "floor-web", "floor-web-vm3", "10.2.0.3")
    ours: Lags = {}
    floor: Lags = {}
    for _ in range(DIRECT_TIMES if what == "quiet" else BUSY_TIMES):
        for service, steps in plans:
            rounds(tail, {service: steps, "floor-web": floor_steps}, {service: ours, "floor-web": floor})
    if what == "quiet":
        against_floor(out, f"direct watch, quiet, {stage.label}", ours, floor,
                      dict.fromkeys(KINDS, ("direct", 1.25, 1.5)))  # fmt: skip
        return
    for kind in KINDS:
        title = f"{kind} -> slice, changed just before, {what}"
        within(out, title, ours[kind], floor[kind], "busy", None, 1 if kind == "flip" else 3)


def settle(stage: Stage, out: Collected, when: str, row: str = "") -> None:
    """Wait until nothing differs, and say what does after a minute."""
    deadline = time.monotonic() + 60
    while (differing := stage.differing()) and time.monotonic() < deadline:
        time.sleep(1)
    out.figures.append(limit(f"services that differ from Consul {when}, {stage.label}", len(differing), 0, "", row=row))
