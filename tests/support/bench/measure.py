"""What the benchmarks share: percentiles, rows of the report, and services to measure."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support.lab import Lab, LabError
from tests.support.raw import SERVICES, RawConsul, not_ready_addresses, ready_addresses

OUT = Path(__file__).with_name("out")
NAMESPACE = "default"
OBJECTS = 3
"""Of a service, by default: the Service, its EndpointSlice and its Endpoints. The floors write the same."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value beside its floor. `ok` is None where there is no target; `row` names the target it shows."""

    what: str
    value: str
    floor: str = ""
    ratio: str = ""
    target: str = ""
    ok: bool | None = None
    row: str = ""


@dataclass(frozen=True, slots=True)
class Point:
    """A value for the plot of how cost grows with the number of services, or for what is derived from the figures."""

    size: int
    what: str
    value: float
    unit: str


def find(figures: Sequence[Figure], words: Sequence[str]) -> Figure | None:
    """The first that begins with the first of the words and has the rest of them in it."""
    head, *others = words
    return next((f for f in figures if f.what.startswith(head) and all(word in f.what for word in others)), None)


def percentile(values: Sequence[float], percent: float) -> float:
    """The least of the values that at least `percent` of them do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)]


def ratio(what: str, value: float, floor: float, most: float, unit: str = "ms", row: str = "") -> Figure:
    """A figure whose target is a multiple of its floor."""
    times, digits = value / floor if floor > 0 else float("inf"), 2 if unit == "s" else 1
    ours, least = (f"{one:.{digits}f} {unit}" for one in (value, floor))
    return Figure(what, ours, least, f"{times:.2f} x", f"<= {most:g} x", times <= most, row)


def beside(what: str, value: float, floor: float, unit: str = "ms", row: str = "") -> Figure:
    """A figure beside its floor, without a target; without a ratio where the floor was done before the clock began."""
    made = replace(ratio(what, value, floor, 1, unit, row), target="", ok=None)
    return made if floor > 0 else replace(made, ratio="")


def limit(
    what: str, value: float, most: float, unit: str, floor: str = "", row: str = "", *, ratio: str = ""
) -> Figure:  # fmt: skip
    """A figure with an absolute target."""
    shown = f"{number(value)} {unit}".strip()
    return Figure(what, shown, floor, ratio, f"<= {most:g} {unit}".strip(), value <= most, row)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line that fits (x, y) best, by least squares. Raises ValueError when all are at one x."""
    if len({x for x, _ in points}) < 2:
        raise ValueError("a line needs two points")
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope


def number(value: float) -> str:
    """Three digits that count, whole numbers as they are."""
    return f"{value:.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"


def make_service(lab: Lab, name: str, port: int = 80) -> None:
    """A selector-less Service for the floor's Endpoints: without one the control plane would delete them."""
    with lab.raw_kube() as kube:
        kube.apply(f"{SERVICES.format(namespace=NAMESPACE)}/{name}", {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"ports": [{"port": port, "protocol": "TCP"}]},
        })  # fmt: skip


def register(consul: RawConsul, service: str, instances: int, network: str, nodes: str = "") -> None:
    """A service with healthy instances at `network`.1 and on."""
    for n in range(1, instances + 1):
        consul.register(service, f"{nodes or service}-vm{n}", f"{network}.{n}", 80)


def await_state(lab: Lab, service: str, address: str, ready: bool, seconds: float = 30.0) -> None:
    """Wait until the Endpoints say so. Raises LabError."""
    deadline = time.monotonic() + seconds
    with lab.raw_kube() as kube:
        while True:
            endpoints = kube.endpoints(NAMESPACE, service)
            found = ready_addresses(endpoints) if ready else not_ready_addresses(endpoints)
            if any(ip == address for ip, _ in found):
                return
            if time.monotonic() > deadline:
                raise LabError(f"{service}: {address} did not become {'ready' if ready else 'not ready'}")
            time.sleep(0.005)


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def run_threads(jobs: Sequence[Callable[[], None]]) -> float:
    """Run them at once; seconds until the last has ended. Raises LabError when one failed: its work is not done."""
    faults: list[Exception] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:  # noqa: BLE001 - told to the caller below
            faults.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    if faults:
        raise LabError(f"{len(faults)} of {len(jobs)} workers failed: {faults[0]!r}") from faults[0]
    return took
