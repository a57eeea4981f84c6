"""What a client notices of a dead VM: from Consul's knowing to the last request that failed, beside the floor chain."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from tests.support.bench.floor import FloorChain
from tests.support.bench.measure import Figure, beside, make_service, percentile, ratio
from tests.support.lab import LabError, netns, wait_until
from tests.support.lab.traffic_testbed import Knowing, TrafficTestbed

RATE = 400.0
VMS = 2
PORTS = {"bench-web": 8080, "floor-web": 8081}
QUIET_SECONDS = 1.5


@dataclass(frozen=True, slots=True)
class Death:
    """A VM's end, in milliseconds. `known`: until Consul knew; `written` and `last`: from there on."""

    known: float
    written: float
    last: float


def traffic(rounds: int = 12) -> list[Figure]:
    """E: two VMs, one dies, again and again; the bridge's Service and the floor chain's in turn."""
    if reason := netns.trouble(proxy=True):
        raise LabError(reason)
    deaths: dict[str, list[Death]] = {name: [] for name in PORTS}
    rule = {"services": ["bench-web"], "to": {"port": 80, "port_name": "http"}}
    with TrafficTestbed(VMS) as testbed:
        for name, port in PORTS.items():
            for n in range(1, VMS + 1):
                testbed.open(n, name, port)
            testbed.await_passing(name, VMS)
        make_service(testbed.lab, "floor-web")
        with FloorChain(testbed.lab, "floor-web"), testbed.bridge("bench-web", rule):
            for turn in range(rounds):
                for name, seen in deaths.items():
                    seen.append(_one_death(testbed, name, 1 + turn % VMS))
                print(f"{turn + 1} of {rounds}", file=sys.stderr, flush=True)
    ours, floor = deaths["bench-web"], deaths["floor-web"]
    what = f"Consul knows a VM is dead -> last failed request, {rounds} deaths"
    known = percentile([death.known for death in (*ours, *floor)], 50)
    return [
        # without a target for p90: kube-proxy's own tail is in both, and so few deaths do not average it out
        ratio(
            f"{what}, p50",
            percentile([d.last for d in ours], 50),
            percentile([d.last for d in floor], 50),
            1.25,
            row="death",
        ),
        beside(
            f"{what}, p90", percentile([d.last for d in ours], 90), percentile([d.last for d in floor], 90), row="death"
        ),
        *(
            beside(
                f"of that until the slice was stored, p{percent}",
                percentile([d.written for d in ours], percent),
                percentile([d.written for d in floor], percent),
                row="death",
            )
            for percent in (50, 90)
        ),
        Figure("VM dead -> Consul knows (a check every second), p50", f"{known:.0f} ms", row="death"),
    ]


def _one_death(testbed: TrafficTestbed, name: str, n: int) -> Death:
    """Let the server of one VM die under load and come back."""
    server = testbed.servers[n, PORTS[name]]
    with testbed.load(testbed.addresses(name)[0], 80, RATE) as load:
        testbed.await_spread(load, range(1, VMS + 1))
        # kube-proxy takes changes together that come within a second: each death is to stand alone.
        time.sleep(QUIET_SECONDS)
        with Knowing(testbed.lab, name, f"{name}-{n}") as knowing:
            killed = time.time()
            server.kill()
            wait_until(lambda: knowing.at > 0, 30, "Consul's knowing")
            load.await_calm(int(RATE / 2))
            failed = load.failed(killed)
        server.start()
        testbed.await_passing(name, VMS)
    if not failed:
        raise LabError(f"{name}: no one asked the dead VM")
    last = max(request.began for request in failed)
    at = knowing.at
    return Death((at - killed) * 1000, (testbed.written(name, killed) - at) * 1000, (last - at) * 1000)
