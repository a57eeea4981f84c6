"""What a client notices of a dead VM: from Consul's knowing to the last request that failed, beside the floor chain."""

from __future__ import annotations

import sys
import time

from tests.bench.measure import Figure, FloorChain, make_service, percentile, ratio
from tests.lab import LabError, netns, wait_until
from tests.lab.town import Knowing, Town

RATE = 400.0
VMS = 2
PORTS = {"bench-web": 8080, "floor-web": 8081}
QUIET_SECONDS = 1.5


def traffic(rounds: int = 15) -> list[Figure]:
    """E: two VMs, one dies, again and again; the bridge's Service and the floor chain's in turn."""
    if reason := netns.trouble(proxy=True):
        raise LabError(reason)
    lags: dict[str, list[float]] = {name: [] for name in PORTS}
    known: list[float] = []
    rule = {"services": ["bench-web"], "to": {"port": 80, "port_name": "http"}}
    with Town(VMS) as town:
        for name, port in PORTS.items():
            for n in range(1, VMS + 1):
                town.open(n, name, port)
            town.await_passing(name, VMS)
        make_service(town.lab, "floor-web")
        with FloorChain(town.lab, "floor-web"), town.bridge("bench-web", rule):
            for turn in range(rounds):
                for name in PORTS:
                    knew, lag = _one_death(town, name, 1 + turn % VMS)
                    known.append(knew * 1000)
                    lags[name].append(lag * 1000)
                print(f"{turn + 1} of {rounds}", file=sys.stderr, flush=True)
    ours, floor = lags["bench-web"], lags["floor-web"]
    what = f"Consul knows a VM is dead -> last failed request, {rounds} deaths"
    p90 = (percentile(ours, 90), percentile(floor, 90))
    return [
        ratio(f"{what}, p50", percentile(ours, 50), percentile(floor, 50), 1.5),
        Figure(f"{what}, p90", f"{p90[0]:.1f} ms", f"{p90[1]:.1f} ms", f"{p90[0] / p90[1]:.2f} x", "", None),
        Figure(
            "VM dead -> Consul knows (a check every second), p50", f"{percentile(known, 50):.0f} ms", "", "", "", None
        ),
    ]


def _one_death(town: Town, name: str, n: int) -> tuple[float, float]:
    """Seconds from a death to Consul's knowing, and from there to the beginning of the last request that failed."""
    server = town.servers[n, PORTS[name]]
    with town.load(town.addresses(name)[0], 80, RATE) as load:
        town.await_spread(load, range(1, VMS + 1))
        # kube-proxy takes changes together that come within a second: each death is to stand alone.
        time.sleep(QUIET_SECONDS)
        with Knowing(town.lab, name, f"{name}-{n}") as knowing:
            killed = time.time()
            server.kill()
            wait_until(lambda: knowing.at > 0, 30, "Consul's knowing")
            load.await_calm(int(RATE / 2))
            failed = load.failed(killed)
        server.start()
        town.await_passing(name, VMS)
    if not failed:
        raise LabError(f"{name}: nobody asked the dead VM")
    return knowing.at - killed, max(request.began for request in failed) - knowing.at
