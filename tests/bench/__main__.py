"""`make bench`: every figure that the README quotes, each beside its floor measured in the same run.

Times from Consul's answer to the API server's come from the API server's audit log, for the bridge and for the floor
alike; both are exercised in turn, so that the machine's noise meets both.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
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
    median,
    percentile,
    ratio,
    register,
    save,
    table,
    write_times,
)
from tests.bench.scale import scale
from tests.bench.traffic import traffic
from tests.lab import Lab, LabError
from tests.program import BRIDGE, Daemon, bridge, environment
from tests.raw import ENDPOINTS, SERVICES

SELECT = ("--service", "bench-*", "--namespace", NAMESPACE)


def propagation(flips: int = 200) -> list[Figure]:
    """A: 12 instances in one service, one of them flips; the bridge and the floor chain in turn."""
    with Lab(own=True) as lab, lab.raw_consul() as consul:
        register(consul, "bench-web", 12, "10.1.0")
        register(consul, "floor-web", 12, "10.2.0")
        make_service(lab, "floor-web")
        daemon = Daemon(lab, "bridge", *SELECT, env=environment(lab.consul.address, lab.kubeconfig))
        lab.add(daemon)
        daemon.start()
        times: dict[str, list[float]] = {"bench-web": [], "floor-web": []}
        addresses = {"bench-web": "10.1.0.3", "floor-web": "10.2.0.3"}
        with FloorChain(lab, "floor-web"):
            for name, address in addresses.items():
                await_state(lab, name, address, ready=True)
            time.sleep(1)
            since = time.time()
            for n in range(flips):
                status = "passing" if n % 2 else "critical"
                for name, address in addresses.items():
                    consul.flip(name, f"{name}-vm3", status)
                    times[name].append(time.time())
                    await_state(lab, name, address, ready=status == "passing")
                    time.sleep(0.02)
        lags = {}
        for name, starts in times.items():
            ends = write_times(lab, name, since)
            if len(ends) != len(starts):
                raise LabError(f"{name}: {len(starts)} flips, {len(ends)} writes")
            lags[name] = [(end - start) * 1000 for start, end in zip(starts, ends, strict=True)]
        daemon.stop()
    ours, floor = lags["bench-web"], lags["floor-web"]
    what = f"flip -> written, 12 instances, {flips} flips"
    return [
        ratio(f"{what}, p50", percentile(ours, 50), percentile(floor, 50), 1.5),
        ratio(f"{what}, p90", percentile(ours, 90), percentile(floor, 90), 2),
        ratio(f"{what}, p99", percentile(ours, 99), percentile(floor, 99), 2),
    ]


def start_up() -> list[Figure]:
    """B: `bridge --help` beside an interpreter that does nothing."""

    def seconds(command: Sequence[str]) -> float:
        runs = []
        for _ in range(11):
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            runs.append(time.perf_counter() - began)
        return median(runs)

    floor = seconds([sys.executable, "-c", "pass"])
    return [limit("bridge --help", seconds([BRIDGE, "--help"]), 0.2, "s", f"{floor:.2f} s (python -c pass)")]


def rest(services: int = 50, seconds: float = 20.0) -> list[Figure]:
    """C: memory and processor time at rest."""
    with Lab(own=True) as lab, lab.raw_consul() as consul:
        for n in range(services):
            register(consul, f"bench-{n}", 4, f"10.{n // 250 + 1}.{n % 250}")
        daemon = Daemon(lab, "bridge", *SELECT, env=environment(lab.consul.address, lab.kubeconfig))
        lab.add(daemon)
        daemon.start()
        time.sleep(5)
        since, before, began = time.time(), daemon.cpu_seconds(), time.monotonic()
        time.sleep(seconds)
        share = (daemon.cpu_seconds() - before) / (time.monotonic() - began) * 100
        writes = [e for e in lab.audit(since=since) if e.verb in ("patch", "create", "delete", "update")
                  and e.resource in ("services", "endpoints") and e.name.startswith("bench-")]  # fmt: skip
        figures = [
            limit(f"processor at rest, {services} services", share, 1.0, "% of a core"),
            limit(f"memory, {services} services", daemon.memory_bytes() / 1e6, 120, "MB"),
            limit(f"writes at rest, {services} services, {seconds:.0f} s", len(writes), 0, "writes"),
        ]
        daemon.stop()
    return figures


def initial(services: int = 1000, connections: int = 16) -> list[Figure]:
    """D: first sync of many services, beside a raw writer with as many connections that makes the same objects."""
    with Lab(own=True) as lab, lab.raw_consul() as consul:
        for n in range(services):
            network = f"10.{n // 250 + 1}.{n % 250}"
            for i in range(1, 5):
                consul.register(f"bench-{n}", f"node-{n % 250}-{i}", f"{network}.{i}", 80)
        before = _raw_writes(lab, "floor-a", services // 2, connections)
        env = environment(lab.consul.address, lab.kubeconfig)
        began = time.perf_counter()
        first = bridge("sync", *SELECT, "--yes", "-o", "json", env=env, timeout=600)
        took = time.perf_counter() - began
        # half of the floor before, half after: the more Services there are, the dearer is the next one
        floor = services * 2 / (before + _raw_writes(lab, "floor-b", services // 2, connections))
        if first.status != 0:
            raise LabError(f"bridge sync failed:\n{first.stderr}")
        began = time.perf_counter()
        second = bridge("sync", *SELECT, "--yes", "-o", "json", env=env, timeout=600)
        again = time.perf_counter() - began
        rate = services * 2 / took
        changes = sum(second.json["summary"][k] for k in ("create", "update", "delete"))
        return [
            Figure(
                f"first sync of {services} services, whole command", f"{rate:.0f} writes/s ({took:.1f} s)",
                f"{floor:.0f} writes/s", f"{rate / floor * 100:.0f} %", ">= 85 %", rate / floor >= 0.85,
            ),
            limit(f"writes of a second sync, {services} services ({again:.1f} s)", changes, 0, "writes"),
        ]  # fmt: skip


def _raw_writes(lab: Lab, prefix: str, services: int, connections: int) -> float:
    """Seconds to make the same Services and Endpoints under other names by plain clients."""
    names = [f"{prefix}-{n}" for n in range(services)]

    def work(mine: Sequence[str]) -> None:
        with lab.raw_kube() as kube:
            for name in mine:
                kube.apply(f"{SERVICES.format(namespace=NAMESPACE)}/{name}", {
                    "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
                    "spec": {"ports": [{"port": 80, "protocol": "TCP"}]},
                })  # fmt: skip
                kube.apply(f"{ENDPOINTS.format(namespace=NAMESPACE)}/{name}", {
                    "apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": name},
                    "subsets": [{
                        "addresses": [{"ip": f"10.200.0.{i}"} for i in range(1, 5)],
                        "ports": [{"port": 80, "protocol": "TCP"}],
                    }],
                })  # fmt: skip

    threads = [threading.Thread(target=work, args=(names[n::connections],)) for n in range(connections)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


PARTS: dict[str, Callable[[], list[Figure]]] = {
    "start-up": start_up,
    "propagation": propagation,
    "rest": rest,
    "initial": initial,
    "scale": scale,
    "traffic": traffic,
}


def main() -> int:
    """Measure the chosen parts; 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    chosen = parser.parse_args().parts or list(PARTS)
    figures: list[Figure] = []
    for part in chosen:
        print(f"measuring: {part}", file=sys.stderr, flush=True)
        figures += PARTS[part]()
    save(figures)
    print(table(figures))
    return 0 if all(f.ok is not False for f in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
