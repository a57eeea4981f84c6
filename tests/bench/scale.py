"""A large catalog: thousands of services, most of them without a blocking query of their own."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence

from tests.bench.measure import (
    NAMESPACE,
    Figure,
    FloorChain,
    await_state,
    limit,
    make_service,
    percentile,
    ratio,
    register,
    write_times,
)
from tests.lab import Lab, LabError
from tests.program import Daemon, environment
from tests.raw import ENDPOINTS, RawConsul

NODES = 1000
BUDGET = 64


def address(service: int, instance: int) -> str:
    """A unique address of an instance."""
    number = service * 4 + instance
    return f"10.{number // 62500 + 10}.{number // 250 % 250}.{number % 250 + 1}"


def node(service: int, instance: int) -> str:
    """The node that an instance is on: twenty instances share one."""
    return f"node-{(service * 4 + instance) % NODES}"


def populate(lab: Lab, services: int, instances: int = 4, connections: int = 8) -> None:
    """Fill Consul's catalog."""

    def work(mine: Sequence[int]) -> None:
        with lab.raw_consul() as consul:
            for n in mine:
                for i in range(instances):
                    consul.register(f"bench-{n}", node(n, i), f"192.168.{(n * 4 + i) % NODES // 250}.1", 80,
                                    Address=address(n, i))  # fmt: skip

    threads = [threading.Thread(target=work, args=(range(k, services, connections),)) for k in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def scale(services: int = 5000) -> list[Figure]:
    """E: start, rest, single changes and restart with `services` services of four instances."""
    label = f"{services} services x 4"
    figures: list[Figure] = []
    with Lab(own=True) as lab, lab.raw_consul() as consul:
        began = time.perf_counter()
        populate(lab, services)
        print(f"populated in {time.perf_counter() - began:.0f} s", flush=True)
        register(consul, "floor-web", 12, "10.2.0")
        make_service(lab, "floor-web")
        select = ("--service", "bench-*", "--namespace", NAMESPACE, "--panic-threshold", "0")
        daemon = Daemon(lab, "bridge", *select, env=environment(lab.consul.address, lab.kubeconfig))
        daemon.ready_seconds = 300
        lab.add(daemon)
        began = time.perf_counter()
        daemon.start()
        _await_endpoints(lab, services, 600)
        first = time.perf_counter() - began
        figures.append(Figure(f"first mirroring, {label}", f"{first:.1f} s ({services * 2 / first:.0f} writes/s)",
                              "", "", "", None))  # fmt: skip

        daemon.stop()
        since, began = time.time(), time.perf_counter()
        daemon.start()
        figures.append(limit(f"restart until ready, {label}", time.perf_counter() - began, 8, "s"))
        figures.append(limit(f"writes of a restart, {label}", _writes(lab, since), 0, "writes"))

        time.sleep(15)
        since, used, began = time.time(), daemon.cpu_seconds(), time.monotonic()
        time.sleep(20)
        share = (daemon.cpu_seconds() - used) / (time.monotonic() - began) * 100
        figures += [
            limit(f"processor at rest, {label}", share, 2, "% of a core"),
            limit(f"writes at rest, {label}", _writes(lab, since), 0, "writes"),
            limit(f"memory, {label}", daemon.memory_bytes() / 1e6, 250, "MB"),
            limit(f"connections to Consul, {label}", daemon.metric("consul_bridge_consul_connections"), BUDGET, ""),
        ]
        chosen = random.Random(1).sample(range(services), 200)
        figures += _flips(lab, consul, chosen[:100], label)
        figures += _others(lab, consul, chosen[100:], label)
        figures.append(limit(f"missed changes, {label}", daemon.metric("consul_bridge_missed_changes"), 0, ""))
        daemon.stop()
    return figures


def _flips(lab: Lab, consul: RawConsul, chosen: Sequence[int], label: str) -> list[Figure]:
    """Flips of services that have no blocking query of their own, in turn with the floor chain's."""
    ours: list[float] = []
    floor: list[float] = []
    since = time.time()
    with FloorChain(lab, "floor-web"):
        await_state(lab, "floor-web", "10.2.0.3", ready=True)
        floor_since = time.time()
        for turn, n in enumerate(chosen):
            status = "passing" if turn % 2 else "critical"
            consul.flip("floor-web", "floor-web-vm3", status)
            floor.append(time.time())
            await_state(lab, "floor-web", "10.2.0.3", ready=status == "passing")
            consul.flip(f"bench-{n}", node(n, 1), "critical")
            ours.append(time.time())
            await_state(lab, f"bench-{n}", address(n, 1), ready=False)
    floor_lags = _lags(floor, write_times(lab, "floor-web", floor_since))
    lags = [
        lag for n, at in zip(chosen, ours, strict=True) for lag in _lags([at], write_times(lab, f"bench-{n}", since))
    ]
    what = f"flip -> written, no direct watch, {label}"
    return [
        ratio(f"{what}, p50", percentile(lags, 50), percentile(floor_lags, 50), 2),
        ratio(f"{what}, p99", percentile(lags, 99), percentile(floor_lags, 99), 3),
    ]


def _others(lab: Lab, consul: RawConsul, chosen: Sequence[int], label: str) -> list[Figure]:
    """Registrations, address changes and deregistrations of instances, that no doorbell names."""
    kinds: dict[str, Callable[[int], tuple[str, bool]]] = {
        "registration": lambda n: _register(consul, n),
        "address change": lambda n: _move(consul, n),
        "deregistration": lambda n: _deregister(consul, n),
    }
    figures = []
    for position, (kind, change) in enumerate(kinds.items()):
        mine = chosen[position * 30 : position * 30 + 30]
        lags = []
        for n in mine:
            since = time.time()
            change(n)
            at = time.time()
            deadline = time.monotonic() + 30
            while not (ends := write_times(lab, f"bench-{n}", since)):
                if time.monotonic() > deadline:
                    raise LabError(f"{kind} of bench-{n} was not mirrored within 30 s")
                time.sleep(0.05)
            lags.append(ends[0] - at)
            time.sleep(random.Random(n).uniform(0.2, 1.0))
        what = f"{kind} -> written, no direct watch, {label}"
        figures.append(limit(f"{what}, p50", percentile(lags, 50), 0.5, "s"))
        figures.append(limit(f"{what}, p99", percentile(lags, 99), 2, "s"))
    return figures


def _register(consul: RawConsul, n: int) -> tuple[str, bool]:
    consul.register(f"bench-{n}", f"node-{n % NODES}", "192.168.1.1", 80, service_id=f"extra-{n}",
                    Address=f"10.9.{n // 250}.{n % 250 + 1}")  # fmt: skip
    return f"bench-{n}", True


def _move(consul: RawConsul, n: int) -> tuple[str, bool]:
    consul.register(f"bench-{n}", node(n, 0), f"192.168.{n * 4 % NODES // 250}.1", 80,
                    Address=f"10.8.{n // 250}.{n % 250 + 1}")  # fmt: skip
    return f"bench-{n}", True


def _deregister(consul: RawConsul, n: int) -> tuple[str, bool]:
    consul.deregister(f"bench-{n}", node(n, 2))
    return f"bench-{n}", False


def _lags(starts: Sequence[float], ends: Sequence[float]) -> list[float]:
    if len(starts) != len(ends):
        raise LabError(f"{len(starts)} flips, {len(ends)} writes")
    return [(end - start) * 1000 for start, end in zip(starts, ends, strict=True)]


def _writes(lab: Lab, since: float) -> int:
    return sum(
        e.resource in ("services", "endpoints") and e.verb in ("patch", "create", "update", "delete")
        and e.name.startswith("bench-") for e in lab.audit(since=since)
    )  # fmt: skip


def _await_endpoints(lab: Lab, services: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    path = f"{ENDPOINTS.format(namespace=NAMESPACE)}?labelSelector=app.kubernetes.io/managed-by=consul-bridge&limit=1"
    with lab.raw_kube() as kube:
        while True:
            found = kube.get(path.replace("&limit=1", "")) or {}
            if len(found["items"]) >= services:
                return
            if time.monotonic() > deadline:
                raise LabError(f"only {len(found['items'])} of {services} Endpoints after {seconds:.0f} s")
            time.sleep(0.5)
