"""Operations, the sides, and the bridge's two catalogs, step by step; what differed, counted by kind."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from bridge.consul.catalog import Catalog
from bridge.core.model import Known, Query
from bridge.retry import RetryPolicy
from tests.support.consul_random.operations import Operations
from tests.support.consul_random.sides import NEAR, Shown, Waiter, kinds, read
from tests.support.fakes.consul import Recorder
from tests.support.options import consul_config
from tests.support.raw import RawConsul

STEPS = 60
"""Operations of one round: then all of its names are given up, so that one difference does not hide the next."""

SETTLE_SECONDS = 1.5
RESTORED_SECONDS = 14.0
"""How long answers may take to agree, after an ordinary operation and after a snapshot was restored."""

BRIDGE_SECONDS = 20.0
"""How long the bridge may be wrong at most (docs/reliability.md has the reasons)."""

LATE_SECONDS = 2.0
QUICK = RetryPolicy(initial_seconds=0.05, max_seconds=0.5)
FILTER = 'Service.Meta.v == "1"'


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run. `rate`: operations a second, at most."""

    seed: int
    seconds: float
    rate: float = 4.0
    bridge: bool = True
    restores: bool = True


@dataclass(slots=True)
class Report:
    """What was seen."""

    seed: int
    version: str = ""
    rounds: int = 0
    steps: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    differences: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], str] = field(default_factory=dict)
    after: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    late: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    slowest: dict[str, float] = field(default_factory=dict)

    def differs(self, side: str, kind: str, operation: str, example: str) -> None:
        """Count a difference between Consul's own answers."""
        key = side, kind
        self.differences[key] += 1
        self.after.setdefault(key, Counter())[operation] += 1
        self.examples.setdefault(key, example)

    def __str__(self) -> str:
        lines = [f"Consul {self.version}, seed {self.seed}: {self.rounds} rounds, {self.steps.total()} operations"]
        lines += [f"  {n:6} {name}" for name, n in self.steps.most_common()]
        lines.append(f"refused by Consul: {dict(self.refused)}")
        for key, n in sorted(self.differences.items()):
            lines.append(f"DIFFERS {key[0]}: {key[1]}: {n} times, after {dict(self.after[key].most_common(8))}")
            lines.append(f"    first: {self.examples[key]}")
        lines += [f"bridge ({name}): at most {seconds:.1f} s behind" for name, seconds in self.slowest.items()]
        lines += [f"LATE {text}" for text in self.late[:20]] + [f"WRONG {text}" for text in self.wrong[:20]]
        return "\n".join(lines)


class Bridge:
    """One catalog of the bridge, and what it told."""

    def __init__(self, name: str, address: str, connections: int) -> None:
        self.name = name
        self.recorder = Recorder()
        config = consul_config(address=address, connections=connections)
        self.catalog = Catalog(config, ["dc1"], self.recorder, QUICK, self.recorder.failed)
        self.catalog.start()
        self.wanted: frozenset[Query] = frozenset()

    def want(self, queries: frozenset[Query]) -> None:
        self.recorder.events.clear()
        self.catalog.want(queries, self.wanted - queries)
        self.wanted = queries

    def told(self, query: Query) -> object:
        """What it told last of a service, in the shape of `truth`."""
        state = self.recorder.views.get(query)
        if not isinstance(state, Known):
            return state
        return {
            (i.node, i.id, i.node_address, i.address, i.port, i.tags, i.meta, i.node_meta, i.status.value)
            for i in state.instances
        }


def truth(consul: RawConsul, query: Query) -> set[tuple[object, ...]]:
    """What a plain read of a service shows, decoded by code that the bridge has no part in."""
    suffix = "&filter=Service.Meta.v+%3D%3D+%221%22" if query.filter else ""
    found = read(consul, query.service, f"consistent{suffix}")
    return {
        (*key, address, own, port, tags, meta, node_meta, worst([(c, s) for c, s, _ in checks]))
        for key, (address, own, port, tags, meta, node_meta, checks) in found.instances
    }


def worst(checks: list[tuple[str, str]]) -> str:
    """The worst of (check id, status)."""
    if any(c == "_node_maintenance" or c.startswith("_service_maintenance:") for c, _ in checks):
        return "maintenance"
    return next((s for s in ("critical", "warning") if any(s == status for _, status in checks)), "passing")


class Round:
    """One set of names, watched until it is used up."""

    def __init__(
        self, consul: RawConsul, address: str, settings: Settings, number: int, choose: random.Random, report: Report
    ) -> None:
        self._consul = consul
        self._report = report
        self._choose = choose
        self._tag = f"round {number}"
        self.operations = Operations(consul, choose, f"r{settings.seed}x{number}-", settings.restores)
        self._services = self.operations.services
        self._filtered = self._services[-1]
        self._waiters = {
            (service, side): Waiter(address, service, extra)
            for service in self._services
            for side, extra in (("streaming", ""), ("near", NEAR))
        }
        self._seen: set[tuple[str, str, str]] = set()
        self._history: list[str] = []
        self._kind = ""

    def queries(self) -> frozenset[Query]:
        return frozenset(Query("dc1", s) for s in self._services) | {Query("dc1", self._filtered, filter=FILTER)}

    def step(self, bridges: list[Bridge]) -> None:
        """Some operations, and all sides compared."""
        for _ in range(self._choose.choice([1, 1, 1, 2, 3])):
            self._kind, what = self.operations.step()
            self._history.append(what)
            self._report.steps[self._kind] += 1
        restored = any(text == "restore the snapshot" for text in self._history[-3:])
        began = time.monotonic()
        for bridge in bridges:
            self._bridge(bridge, began)
        self._sides(time.monotonic(), RESTORED_SECONDS if restored else SETTLE_SECONDS)

    def _sides(self, began: float, patience: float) -> None:
        for service in self._services:
            for side in ("streaming", "near"):
                waiter = self._waiters[service, side]
                plain = read(self._consul, service, "consistent")
                while waiter.last is None or waiter.last.instances != plain.instances:
                    known = waiter.last is not None and all(
                        (service, side, kind) in self._seen for kind in kinds(plain, waiter.last)
                    )
                    answered = waiter.last is not None and waiter.last.index == plain.index
                    waited = time.monotonic() - began
                    if waited > patience or (waited > 0.3 and answered and patience == SETTLE_SECONDS) or known:
                        self._differs(service, side, plain, waiter.last)
                        break
                    time.sleep(0.02)
                    plain = read(self._consul, service, "consistent")
            view = read(self._consul, service, "index=1&wait=1s")
            plain = read(self._consul, service, "consistent")
            if view.instances != plain.instances:
                time.sleep(0.05)
                view = read(self._consul, service, "index=1&wait=1s")
                if view.instances != plain.instances:
                    self._differs(service, "view", plain, view)

    def _differs(self, service: str, side: str, plain: Shown, other: Shown | None) -> None:
        found: frozenset[str] = frozenset({"no answer"}) if other is None else kinds(plain, other)
        if other is not None and side != "view" and other.index < plain.index:
            found = frozenset({"not woken"})
        if other is not None and other.index > plain.index:
            found = frozenset({"asleep: the catalog's own index went back"})
        for kind in found:
            if (service, side, kind) in self._seen:
                continue
            self._seen.add((service, side, kind))
            example = (
                f"{self._tag} {service}: plain {plain.index} {plain.instances}, "
                f"{side} {other and other.index} {other and other.instances}; after {self._history[-6:]}"
            )
            self._report.differs(side, kind, self._kind, example)

    def _bridge(self, bridge: Bridge, began: float) -> None:
        for query in sorted(self.queries()):
            while (is_ := truth(self._consul, query)) != (told := bridge.told(query)):
                waited = time.monotonic() - began
                if waited > BRIDGE_SECONDS:
                    self._report.wrong.append(
                        f"{bridge.name} {self._tag} {query}: told {told}, is {is_}; after {self._history[-8:]}"
                    )
                    break
                time.sleep(0.02)
            waited = time.monotonic() - began
            if waited > LATE_SECONDS:
                self._report.late.append(f"{bridge.name} {waited:.1f} s {self._tag}: {self._history[-3:]}")
            self._report.slowest[bridge.name] = max(self._report.slowest.get(bridge.name, 0.0), waited)

    def close(self) -> None:
        for waiter in self._waiters.values():
            waiter.close()
        self.operations.end()
        self._report.refused += self.operations.refused


@contextmanager
def bridges(address: str, wanted: bool) -> Iterator[list[Bridge]]:
    """The two catalogs: a direct watch for every service, and for one of them only."""
    made = [Bridge("direct", address, 32), Bridge("aggregate_watches", address, 6)] if wanted else []
    try:
        yield made
    finally:
        for bridge in made:
            bridge.catalog.close()


def run(address: str, settings: Settings, say: Any = print) -> Report:
    """Rounds until the time is over."""
    choose, report = random.Random(settings.seed), Report(settings.seed)
    ends = time.monotonic() + settings.seconds
    with RawConsul(address) as consul, bridges(address, settings.bridge) as watching:
        report.version = consul.json("GET", "/v1/agent/self")["Config"]["Version"]
        for number in count():
            if time.monotonic() >= ends:
                break
            one = Round(consul, address, settings, number, choose, report)
            try:
                for bridge in watching:
                    bridge.want(one.queries())
                for _ in range(STEPS):
                    due = time.monotonic() + 1 / settings.rate
                    one.step(watching)
                    if time.monotonic() >= ends:
                        break
                    time.sleep(max(due - time.monotonic(), 0.0))
            finally:
                one.close()
            report.rounds += 1
            say(f"round {number}: {dict(report.differences)}, wrong {len(report.wrong)}, late {len(report.late)}")
        for bridge in watching:
            report.wrong += [f"{bridge.name}: a thread died: {error!r}" for error in bridge.recorder.failures]
    return report
