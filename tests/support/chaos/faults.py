"""What a fault is, and the list of all of them (a module for each side).

A fault is a row of `simple`, `toxic` or `answering`, or a small class where it has to keep something from `inject`,
which breaks something, to `heal`, which fixes it. Its signs say what a user sees; they are checked while it lasts
(invariant vi), and docs/reliability.md has them as a table.
"""

from __future__ import annotations

import random
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar

from tests.support.chaos.harness import Harness, Toxics, wait_for
from tests.support.chaos.stub import Rule, Stub
from tests.support.lab.failover import Failover

READY, NOT_READY, EITHER, ENDED = "ready", "not ready", "either", "ends"


@dataclass(frozen=True, slots=True)
class Log:
    """A line of the log since the fault began that has all these words in it."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return " … ".join(self.words)


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric that has this value ("0"), or more (">0"), or that "grows", while the fault lasts."""

    name: str
    value: str

    def __str__(self) -> str:
        return f"{self.name} {self.value}"


@dataclass(frozen=True, slots=True)
class Reason:
    """A word in the detail of /readyz."""

    word: str

    def __str__(self) -> str:
        return self.word


Sign = Log | Metric | Reason


def log(*words: str) -> Log:
    """A log line with these words."""
    return Log(words)


CONSUL_DOWN = log("consul cannot be asked; everything stays as it is")
KUBE_DOWN = log("kubernetes cannot be used; changes wait")
CONSUL_UP_0 = Metric("consul_bridge_consul_up", "0")
KUBE_UP_0 = Metric("consul_bridge_kubernetes_up", "0")


class Fault(ABC):
    """One thing that can go wrong.

    `settle_seconds`: how long after its end both sides may still differ; more than ten only where the reason stands
    in `why_slow`.
    """

    name: ClassVar[str]
    what: ClassVar[str]
    shows: ClassVar[Sequence[Sign]]
    readiness: ClassVar[str]
    hold_seconds: float = 1.5
    settle_seconds: ClassVar[float] = 10.0
    why_slow: ClassVar[str] = ""
    servers: ClassVar[int] = 1
    new_process: ClassVar[bool] = False
    """Whether the bridge is another process afterwards, so that its use of memory starts again."""

    asked: ClassVar[int] = 0
    """Services that were asked for while it lasted only: the watch of each may wait on for a while."""

    @abstractmethod
    def inject(self, harness: Harness, rng: random.Random) -> None:
        """Break it; returns when it is broken."""

    @abstractmethod
    def heal(self, harness: Harness) -> None:
        """Fix it; returns when the servers are well again (not: when the bridge is)."""

    def during(self, harness: Harness) -> Iterator[str]:
        """Further things that must be true while it lasts; yields what is not."""
        del harness
        yield from ()


Act = Callable[[Harness], object]
RuleOf = Callable[[random.Random], Rule]
TO_CONSUL, TO_KUBE = "to_consul", "to_kube"
BOTH_WAYS = ("upstream", "downstream")


def nothing(_harness: Harness) -> None:
    """There is nothing to do."""


def way(harness: Harness, proxy: str) -> Toxics:
    """The proxy on the way to Consul or to Kubernetes."""
    return {TO_CONSUL: harness.to_consul, TO_KUBE: harness.to_kube}[proxy]


def simple(
    name: str, what: str, shows: Sequence[Sign], inject: Act, heal: Act, readiness: str = NOT_READY, **further: Any
) -> type[Fault]:
    """A fault that keeps nothing. `further`: other attributes of `Fault`."""
    return type(name, (Fault,), {
        "name": name, "what": what, "shows": shows, "readiness": readiness, **further,
        "inject": lambda _fault, harness, _rng: inject(harness), "heal": lambda _fault, harness: heal(harness),
    })  # fmt: skip


def toxic(
    name: str, what: str, shows: Sequence[Sign], proxy: str, kind: str, streams: Sequence[str] = BOTH_WAYS,
    hold_seconds: float = 1.5, **attributes: int,
) -> type[Fault]:  # fmt: skip
    """A toxic on the way to a server."""
    return simple(
        name, what, shows, lambda h: way(h, proxy).add_to(streams, kind, attributes), lambda h: way(h, proxy).heal(),
        hold_seconds=hold_seconds,
    )  # fmt: skip


def trickle(name: str, whose: str, proxy: str, shows: Sequence[Sign]) -> type[Fault]:
    """A middlebox that is overwhelmed: bytes come, one by one, and each comes in time."""
    what = f"answers of {whose}, headers first, come one byte every 0.2 s"
    return toxic(name, what, shows, proxy, "slicer", BOTH_WAYS[1:], average_size=1, size_variation=0, delay=200_000)


class Paused(Fault):
    """A stalled disk, a frozen VM: `server` is stopped for a while that the seed gives."""

    readiness = NOT_READY
    server: ClassVar[str]
    """Where the harness has it."""

    def inject(self, harness: Harness, rng: random.Random) -> None:
        self.hold_seconds = rng.uniform(1.0, harness.longest_pause)
        attrgetter(self.server)(harness).pause()

    def heal(self, harness: Harness) -> None:
        attrgetter(self.server)(harness).resume()


class FailedOver(Fault):
    """A virtual address that moves, a balancer that forgets. `proxy`: on the way to which server."""

    readiness = EITHER
    proxy: ClassVar[str]

    def inject(self, harness: Harness, rng: random.Random) -> None:
        toxics = way(harness, self.proxy)
        self._relay = Failover(toxics.upstream)
        toxics.lead_to(self._relay.address)
        wait_for(harness.bridge.ready, 20)
        wait_for(lambda: False, 6.0)  # writers, watches and idle ones have their connections
        self._relay.fail_over()
        self.at = time.time()

    def during(self, harness: Harness) -> Iterator[str]:
        if not wait_for(harness.bridge.ready, self.at + 20.0 - time.time()):
            yield f"20 s after the failover /readyz says {harness.bridge.readiness()}"

    def heal(self, harness: Harness) -> None:
        way(harness, self.proxy).heal()
        self._relay.close()


class Answering(Fault):
    """A stub in front of a server that answers by `rule_of`."""

    proxy: ClassVar[str]

    def rule_of(self, rng: random.Random) -> Rule:
        """What the stub does."""
        raise NotImplementedError

    def stub(self, harness: Harness, rule: Rule) -> Stub:
        """A stub in front of the right server."""
        raise NotImplementedError

    def inject(self, harness: Harness, rng: random.Random) -> None:
        self._stub = self.stub(harness, self.rule_of(rng))
        way(harness, self.proxy).lead_to(self._stub.address)

    def heal(self, harness: Harness) -> None:
        way(harness, self.proxy).heal()
        self._stub.close()


def answering(
    kind: type[Answering], name: str, what: str, shows: Sequence[Sign], rule_of: RuleOf, readiness: str = NOT_READY
) -> type[Fault]:
    """A fault of a kind of stub, with a rule of its own."""
    return type(name, (kind,), {
        "name": name, "what": what, "shows": shows, "readiness": readiness, "rule_of": lambda _fault, rng: rule_of(rng),
    })  # fmt: skip


def catalogue() -> dict[str, type[Fault]]:
    """All faults by name, in the order of the documentation."""
    from tests.support.chaos import faults_bridge, faults_consul, faults_kube, faults_tenant

    found = (*faults_consul.FAULTS, *faults_kube.FAULTS, *faults_bridge.FAULTS, *faults_tenant.FAULTS)
    return {fault.name: fault for fault in found}


def has_line(text: str, words: Sequence[str]) -> bool:
    """Whether one line of the log has all these words."""
    return any(all(word in line for word in words) for line in text.splitlines())


def sample(page: str, name: str) -> float | None:
    """The sum of a metric's samples on a page of /metrics; None when it is not there. `name` may have a label."""
    plain, _, label = name.partition("{")
    rows = [
        line for line in page.splitlines()
        if re.match(rf"{re.escape(plain)}[{{ ]", line) and label.rstrip("}") in line
    ]  # fmt: skip
    return sum(float(row.rpartition(" ")[2]) for row in rows) if rows else None


def holds(value: str, found: float | None, before: float | None) -> bool:
    """Whether a sample is as `Metric.value` says; `before`: what it was when the fault began."""
    if found is None:
        return False
    if value == "grows":
        return found > (before or 0.0)
    return found > float(value[1:]) if value.startswith(">") else found == float(value)


def table() -> str:
    """The faults as Markdown, for docs/reliability.md."""
    rows = [
        "| fault | what happens | log | metrics | `/readyz` | agrees again |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for fault in catalogue().values():
        cells: dict[Callable[..., object], list[str]] = {Log: [], Metric: [], Reason: []}
        for sign in fault.shows:
            cells[type(sign)].append(f"`{sign}`")
        detail = f": {', '.join(cells[Reason])}" if cells[Reason] else ""
        slow = f" ({fault.why_slow})" if fault.why_slow else ""
        rows.append(
            f"| `{fault.name}` | {fault.what} | {'; '.join(cells[Log]) or '-'} | {'; '.join(cells[Metric]) or '-'} "
            f"| {fault.readiness}{detail} | within {fault.settle_seconds:.0f} s{slow} |"
        )
    return "\n".join(rows)
