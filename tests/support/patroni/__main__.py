"""Fail-overs of a real Patroni, and where Kubernetes sent traffic meanwhile: `make patroni`.

    python -m tests.support.patroni [--rounds N] [SCENARIO...]

Every 50 ms each VM's PostgreSQL is asked whether it is the primary, Consul what it lists, and the API server which
addresses are ready in the EndpointSlices of three Services: one by a rule with the tag `primary`, one that a user
annotated with it, and one with `min_ready: 1`. Three kinds of seconds come of it:

    wrong     an address is ready that is not the primary, while another VM is
    none      an address is ready although no VM is the primary
    missing   the primary is not ready

`consul` is what a perfect mirror of Consul's answers would have had (passing instances with the tag), so the bridge's
own part is the difference. Two further ones are computed from the same answers, to see what an option would be worth:
`unique`, of several such instances only the one whose registration changed last; `latest`, the same of all instances
with the tag, and none while that one is not passing. The last line says what the bridge's own part was at most; the
exit status is 1 when that is more than 0.2 s.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.lab import wait_until
from tests.support.patroni.rig import ASKED, NAMESPACE, RULES, SCOPE, SETTLE_SECONDS, Cluster, Machine, trouble
from tests.support.raw import SLICES, RawConsul, RawKube

PERIOD_SECONDS = 0.05
OWN_SECONDS = 0.2
"""What the bridge may add of its own to each kind, in a scenario."""
SILENT_SECONDS = 60.0
AFTER_SECONDS = 5.0
KINDS = ("wrong", "none", "missing")
COMPUTED = ("consul", "unique", "latest")
SERVICES = {to["name"]: what for what, to in RULES.items()} | {ASKED: "annotated"}
Ready = frozenset[str]


@dataclass(slots=True)
class Series:
    """What was seen when, in order."""

    times: list[float] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def add(self, at: float, value: Any) -> None:
        """One more."""
        self.times.append(at)
        self.values.append(value)

    def at(self, when: float, default: Any) -> Any:
        """The last at that time."""
        position = bisect_right(self.times, when)
        return self.values[position - 1] if position else default


class Watcher:
    """Asks Consul and the API server again and again. What cannot be had leaves what was known."""

    def __init__(self, cluster: Cluster) -> None:
        self.mirrors = {name: Series() for name in (*COMPUTED, *SERVICES.values())}
        self._cluster = cluster
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=loop, name=loop.__name__) for loop in (self._consul, self._kube)]

    def __enter__(self) -> Watcher:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _again(self, once: Callable[[], None]) -> None:
        while not self._stop.wait(PERIOD_SECONDS):
            try:
                once()
            except OSError:
                continue

    def _consul(self) -> None:
        def once() -> None:
            with RawConsul(self._cluster.lab.consul.address, timeout_seconds=1.0) as consul:
                _, entries = consul.health(SCOPE)
            at = time.time()
            tagged = sorted(
                (
                    entry["Service"]["ModifyIndex"],
                    entry["Service"]["Address"] or entry["Node"]["Address"],
                    all(check["Status"] == "passing" for check in entry["Checks"]),
                )
                for entry in entries
                if "primary" in entry["Service"]["Tags"]
            )
            passing = [address for _, address, well in tagged if well]
            self.mirrors["consul"].add(at, frozenset(passing))
            self.mirrors["unique"].add(at, frozenset(passing[-1:]))
            self.mirrors["latest"].add(at, frozenset(address for _, address, well in tagged[-1:] if well))

        self._again(once)

    def _kube(self) -> None:
        with self._cluster.lab.raw_kube() as kube:
            self._again(lambda: self._slices(kube))

    def _slices(self, kube: RawKube) -> None:
        found = kube.json("GET", SLICES.format(namespace=NAMESPACE))["items"]
        at = time.time()
        ready: dict[str, set[str]] = {name: set() for name in SERVICES}
        for item in found:
            name = item["metadata"]["labels"].get("kubernetes.io/service-name")
            for endpoint in item["endpoints"] or () if name in ready else ():
                if endpoint["conditions"].get("ready") is not False:
                    ready[name].update(endpoint["addresses"])
        for name, what in SERVICES.items():
            self.mirrors[what].add(at, frozenset(ready[name]))


def seconds(cluster: Cluster, watcher: Watcher, cuts: Series, since: float, until: float) -> dict[str, list[float]]:
    """The three kinds for each mirror."""
    said = {}
    for machine in cluster.machines:
        said[machine.host.address] = series = Series()
        for at, what in machine.samples():
            series.add(at, what)
    found = {name: [0.0, 0.0, 0.0] for name in watcher.mirrors}
    steps = int((until - since) / PERIOD_SECONDS)
    for when in (since + n * PERIOD_SECONDS for n in range(steps)):
        cut = cuts.at(when, None)
        primaries = {address for address, series in said.items() if series.at(when, "down") == "primary"} - {cut}
        for name, mirror in watcher.mirrors.items():
            ready: Ready = mirror.at(when, frozenset())
            kinds = (
                bool(primaries) and bool(ready - primaries),
                not primaries and bool(ready),
                bool(primaries) and not ready & primaries,
            )
            for kind, is_so in enumerate(kinds):
                found[name][kind] += PERIOD_SECONDS * is_so
    return found


# --------------------------------------------------------------------------- what happens


def _others(cluster: Cluster, machine: Machine) -> list[Machine]:
    return [other for other in cluster.machines if other is not machine]


def _another(cluster: Cluster, machine: Machine, within: float = SETTLE_SECONDS) -> None:
    def taken_over() -> bool:
        now = cluster.primary()
        return now is not None and now is not machine

    wait_until(taken_over, within, "another primary")


def switchover(cluster: Cluster, primary: Machine, _cuts: Series) -> None:
    """patronictl switchover to another VM."""
    cluster.switch_over(primary, _others(cluster, primary)[0])
    _another(cluster, primary)


def postgres_dies(cluster: Cluster, primary: Machine, _cuts: Series) -> None:
    """PostgreSQL of the primary is killed; Patroni lives."""
    os.kill(primary.postmaster(), signal.SIGKILL)
    time.sleep(2)


def vm_dies(cluster: Cluster, primary: Machine, _cuts: Series) -> None:
    """The primary's VM loses power, and comes back once another has taken over."""
    cluster.power_off(primary)
    _another(cluster, primary)
    time.sleep(AFTER_SECONDS)
    cluster.power_on(primary)


def patroni_stops(cluster: Cluster, primary: Machine, _cuts: Series) -> None:
    """The primary's Patroni is stopped in order, and started again."""
    os.kill(primary.patroni.pid, signal.SIGTERM)
    _another(cluster, primary)
    primary.patroni.kill()
    cluster.start_patroni(primary)


def patroni_dies(cluster: Cluster, primary: Machine, _cuts: Series) -> None:
    """The primary's Patroni alone is killed: its PostgreSQL goes on (a watchdog would end it)."""
    primary.patroni.kill()
    time.sleep(45)
    cluster.start_patroni(primary)


def cut_off(cluster: Cluster, primary: Machine, cuts: Series) -> None:
    """The primary's VM is off the network for a minute."""
    cluster.link(primary, up=False)
    cuts.add(time.time(), primary.host.address)
    time.sleep(SILENT_SECONDS)
    cluster.link(primary, up=True)
    cuts.add(time.time(), None)


def consul_silent(cluster: Cluster, _primary: Machine, _cuts: Series) -> None:
    """Consul's server says nothing for a minute."""
    with cluster.paused(cluster.lab.consul):
        time.sleep(SILENT_SECONDS)


def agent_dies(cluster: Cluster, primary: Machine, _cuts: Series) -> None:
    """The agent on the primary's VM is killed, and started ten seconds later."""
    primary.agent.kill()
    time.sleep(10)
    cluster.start_agent(primary)


def bridge_restarts(cluster: Cluster, primary: Machine, _cuts: Series) -> None:
    """The bridge is killed in the middle of a switchover, and started again."""
    cluster.bridge.kill()
    cluster.switch_over(primary, _others(cluster, primary)[0])
    cluster.bridge.start()
    _another(cluster, primary)


SCENARIOS: Mapping[str, Callable[[Cluster, Machine, Series], None]] = {
    name.replace("_", "-"): body
    for name, body in {
        "switchover": switchover, "postgres_dies": postgres_dies, "vm_dies": vm_dies, "patroni_stops": patroni_stops,
        "patroni_dies": patroni_dies, "cut_off": cut_off, "consul_silent": consul_silent, "agent_dies": agent_dies,
        "bridge_restarts": bridge_restarts,
    }.items()
}  # fmt: skip
NOT_OF_THE_BRIDGE = frozenset({"bridge-restarts"})
"""Where the bridge is dead, nothing is written: its seconds are counted and not judged."""


def run(cluster: Cluster, name: str) -> dict[str, list[float]]:
    """One scenario, from a settled cluster to a settled cluster."""
    wait_until(cluster.settled, SETTLE_SECONDS * 2, "a settled cluster")
    primary = cluster.primary()
    assert primary is not None
    cuts = Series()
    with Watcher(cluster) as watcher:
        wait_until(lambda: len(watcher.mirrors["annotated"].times) > 20, 30, "a look at both sides", step=0.2)
        since = time.time()
        SCENARIOS[name](cluster, primary, cuts)
        wait_until(cluster.settled, SETTLE_SECONDS * 2, f"a settled cluster after {name}", step=0.2)
        time.sleep(AFTER_SECONDS)
        until = time.time()
    return seconds(cluster, watcher, cuts, since, until)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for and print the seconds."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.patroni", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=1, help="how often each scenario is run (default 1)")
    parser.add_argument("scenarios", nargs="*", choices=[[], *SCENARIOS], metavar="SCENARIO", help=", ".join(SCENARIOS))
    options = parser.parse_args(arguments)
    if reason := trouble():
        print(f"patroni: {reason}", file=sys.stderr)
        return 2
    worst = 0.0
    with Cluster() as cluster:
        names = list(SERVICES.values())
        print(f"{'scenario':16} {'':8} " + "".join(f"{name:>16}" for name in (*COMPUTED, *names)), flush=True)
        for name in options.scenarios or SCENARIOS:
            for _ in range(options.rounds):
                found = run(cluster, name)
                for kind, what in enumerate(KINDS):
                    cells = "".join(f"{found[mirror][kind]:16.2f}" for mirror in (*COMPUTED, *names))
                    print(f"{name if not kind else '':16} {what:8} {cells}", flush=True)
                if name not in NOT_OF_THE_BRIDGE:
                    own = [
                        found[mirror][kind] - found["consul"][kind]
                        for mirror in ("by rule", "annotated")
                        for kind in (0, 1)
                    ]
                    worst = max(worst, *own)
    print(f"the bridge's own part of wrong traffic: at most {worst:.2f} s in a scenario (allowed: {OWN_SECONDS} s)")
    return int(worst > OWN_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
