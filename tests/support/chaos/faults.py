"""What a fault is, and the list of all of them (a module for each side).

A fault is a small class: `inject` breaks something here, `heal` fixes it. Its signs say what a user sees while
it lasts; they are checked while it lasts (invariant vi), and docs/reliability.md has them as a table.
"""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tests.support.chaos.harness import Harness

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
        """Mend it; returns when the servers are well again (not: when the bridge is)."""

    def during(self, harness: Harness) -> Iterator[str]:
        """Further things that must be true while it lasts; yields what is not."""
        del harness
        yield from ()


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
