"""What one bridge carries, derived from what was measured by formulas that stand beside each figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tests.support.bench.measure import Point

MEMORY = "memory"
FLIP_COST = "processor time of a flip"
WIDE = "memory of services with 100 instances"
RESTART = "restart until ready"
STORM = "storm, changes a second"
STORM_COST = "storm, processor time of a change"
RAW_UPDATES = "raw updates a second"
RAW_CREATES = "raw first writes a second"
SHARDS = "storm by so many replicas, writes a second"

MEMORY_LIMIT = 250.0
RESTART_LIMIT = 8.0
NONE = "not measured"


def rough(value: float) -> str:
    """Two digits that count, rounded down: what is derived is no more exact."""
    if value <= 0:
        return "0"
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.floor(value / unit + 1e-9) * unit:,.10g}"


def table(points: Sequence[Point]) -> str:
    """One line for each bound, also for those that lack a measurement."""
    lines = ["| what | how it is derived | here |", "| --- | --- | --- |"]
    for what, formula, derive in BOUNDS:
        found = derive(points)
        lines.append(f"| {what} | {formula} | {NONE if found is None else found} |")
    return "\n".join(lines)


def largest(points: Sequence[Point], what: str) -> Point | None:
    """The measurement of the largest size."""
    return max((point for point in points if point.what == what), key=lambda point: point.size, default=None)


def line_of_memory(points: Sequence[Point]) -> tuple[float, float] | None:
    """MB without services, and MB of a service with 4 instances, by the smallest and the largest size."""
    sizes = sorted((point.size, point.value) for point in points if point.what == MEMORY)
    if len(sizes) < 2 or sizes[0][0] == sizes[-1][0]:
        return None
    (few, low), (many, high) = sizes[0], sizes[-1]
    each = (high - low) / (many - few)
    return low - each * few, each


def services_in_memory(points: Sequence[Point]) -> str | None:
    """How many services of 4 instances fit."""
    line = line_of_memory(points)
    if line is None or line[1] <= 0:
        return None
    base, each = line
    return f"{rough((MEMORY_LIMIT - base) / each)} ({base:.0f} MB + {each * 1000:.0f} kB a service)"


def instances_in_memory(points: Sequence[Point]) -> str | None:
    """How many instances fit when a service has a hundred."""
    line, wide = line_of_memory(points), largest(points, WIDE)
    if line is None or wide is None or wide.value <= line[0]:
        return None
    each = (wide.value - line[0]) / wide.size
    return f"{rough((MEMORY_LIMIT - line[0]) / each)} ({each * 1000:.1f} kB an instance)"


def services_in_a_restart(points: Sequence[Point]) -> str | None:
    """How many services are ready within the limit."""
    found = largest(points, RESTART)
    return None if found is None else f"{rough(RESTART_LIMIT / found.value * found.size)} ({found.value:g} s)"


def by_cost(what: str) -> Callable[[Sequence[Point]], str | None]:
    """Changes a second of one core, from the milliseconds that one of them takes."""

    def derive(points: Sequence[Point]) -> str | None:
        found = largest(points, what)
        return None if found is None or found.value <= 0 else f"{rough(1000 / found.value)} /s ({found.value:g} ms)"

    return derive


def as_measured(what: str) -> Callable[[Sequence[Point]], str | None]:
    """A rate as it is."""

    def derive(points: Sequence[Point]) -> str | None:
        found = largest(points, what)
        return None if found is None else f"{rough(found.value)} /s"

    return derive


def shards(points: Sequence[Point]) -> str | None:
    """Two replicas beside one."""
    by_replicas = {point.size: point.value for point in points if point.what == SHARDS}
    if not {1, 2} <= by_replicas.keys():
        return None
    one, two = by_replicas[1], by_replicas[2]
    return f"{rough(two)} /s beside {rough(one)} /s of one replica: {two / one:.2f} x"


BOUNDS: Sequence[tuple[str, str, Callable[[Sequence[Point]], str | None]]] = (
    ("services of 4 instances in 250 MB",
     "(250 MB - base) / memory of a service; both by the smallest and the largest size", services_in_memory),
    ("instances in 250 MB, 100 in a service",
     "(250 MB - base) / memory of an instance at 1,000 x 100", instances_in_memory),
    ("services that are ready 8 s after a restart", "8 s / measured seconds x services", services_in_a_restart),
    ("changes a second that come one by one, by the processor",
     "1 s / processor time of a flip in the largest catalog", by_cost(FLIP_COST)),
    ("changes a second in a storm, by the processor", "1 s / processor time of a flip in the storm",
     by_cost(STORM_COST)),
    ("changes a second in a storm, as measured, all servers on the same cores", "flips / seconds until the last slice",
     as_measured(STORM)),
    ("what the API server takes of plain clients: writes of slices and Endpoints that exist", "the floor of the storm",
     as_measured(RAW_UPDATES)),
    ("what the API server takes of plain clients: first writes of Services, slices and Endpoints",
     "the floor of the first sync", as_measured(RAW_CREATES)),
    ("changes a second in a storm with two replicas, a shard each (`make bench PARTS=shards`)",
     "writes / seconds, both on the same cores", shards),
)  # fmt: skip
