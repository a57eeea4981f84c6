"""What the benchmarks share: percentiles, rows of the report, and services to measure."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import Lab, LabError
from tests.raw import SERVICES, RawConsul, not_ready_addresses, ready_addresses

OUT = Path(__file__).with_name("out")
NAMESPACE = "default"


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
    """A value for the plot of how cost grows with the number of services."""

    size: int
    what: str
    value: float
    unit: str


def percentile(values: Sequence[float], percent: float) -> float:
    """The least of the values that at least `percent` of them do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)]


def ratio(what: str, value: float, floor: float, most: float, unit: str = "ms", row: str = "") -> Figure:
    """A figure whose target is a multiple of its floor."""
    times = value / floor if floor else float("inf")
    return Figure(
        what, f"{value:.1f} {unit}", f"{floor:.1f} {unit}", f"{times:.2f} x", f"<= {most:g} x", times <= most, row
    )


def limit(what: str, value: float, most: float, unit: str, floor: str = "", row: str = "") -> Figure:
    """A figure with an absolute target."""
    return Figure(what, f"{number(value)} {unit}".strip(), floor, "", f"<= {most:g} {unit}".strip(), value <= most, row)


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


def write_times(lab: Lab, service: str, since: float) -> list[float]:
    """When writes of this service's Endpoints were answered, by the API server's own clock, oldest first."""
    return [
        e.at for e in lab.audit(since=since)
        if e.resource == "endpoints" and e.name == service and e.verb == "patch" and e.code < 300
    ]  # fmt: skip


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(values)
