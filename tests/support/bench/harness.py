"""A Consul with many services, a Kubernetes, and a bridge between them, shared by the parts that need that size."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from tests.support.bench.floor import BUDGET, endpoint_slice, endpoints, marked
from tests.support.bench.measure import NAMESPACE, limit, make_service, register, run_threads
from tests.support.bench.report import Collected
from tests.support.bench.watching import Sampler, Tail
from tests.support.lab import Lab, LabError, wait_until
from tests.support.program import Daemon, bridge, environment
from tests.support.raw import ENDPOINTS, SERVICES, SLICES, Json, RawConsul, not_ready_addresses, ready_addresses

NODES = 1000
CONSUL_CONNECTIONS = 200
"""Connections that Consul allows one client address (`http_max_conns_per_client`)."""
CONNECTIONS = 16
FLOOR = "floor"
"""Namespace of what the raw writers make: the bridge does not look at it."""
OPERATIONS = 120
"""Operations in one of Consul's transactions, of at most 128."""


def name(service: int) -> str:
    """Of a service."""
    return f"bench-{service:05}"


def address(service: int, instance: int) -> str:
    """A unique address of an instance."""
    number = service * 100 + instance
    return f"10.{number // 62500 + 10}.{number // 250 % 250}.{number % 250 + 1}"


def node(service: int, instance: int) -> str:
    """The node that an instance is on. Many share one, but each tenth service's last has its own, which may go."""
    if service % 10 == 9 and instance == 3:
        return f"lone-{service}"
    return f"node-{(service * 4 + instance) % NODES}"


def check(service: int, instance: int, status: str) -> Json:
    """An instance's check."""
    identity = f"{name(service)}-{node(service, instance)}"
    return {"Node": node(service, instance), "CheckID": f"check:{identity}", "Name": "test", "Status": status,
            "ServiceID": identity, "ServiceName": name(service)}  # fmt: skip


def transact(lab: Lab, operations: Iterable[Json], workers: int = 4) -> None:
    """Apply operations to Consul's catalog in transactions. Raises LabError when one was refused."""
    every = iter(operations)
    batches = iter(lambda: list(itertools.islice(every, OPERATIONS)), [])
    lock = threading.Lock()

    def work() -> None:
        with lab.raw_consul() as consul:
            while True:
                with lock:
                    batch = next(batches, None)
                if batch is None:
                    return
                consul.json("PUT", "/v1/txn", batch)

    run_threads([work] * workers)


class Stage:
    """`services` services of `instances` each. A context manager; the bridge starts with `bridge()`."""

    def __init__(self, services: int, instances: int) -> None:
        self.services = services
        self.instances = instances
        self.label = f"{services:,} services x {instances}"
        self.lab = Lab(own=True)
        self.daemon = self._daemon()
        self.synced = False

    def __enter__(self) -> Stage:
        self.lab.start()
        try:
            self._populate()
            with self.lab.raw_consul() as consul:
                register(consul, "floor-web", self.instances, "10.2.0")
            make_service(self.lab, "floor-web")
            with self.lab.raw_kube() as kube:
                kube.apply(f"/api/v1/namespaces/{FLOOR}", {
                    "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": FLOOR},
                })  # fmt: skip
        except BaseException:
            self.lab.close(keep=True)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.lab.close()

    def _daemon(self, identity: str = "bridge", *further: str) -> Daemon:
        arguments = ("--service", "bench-*", "--namespace", NAMESPACE, *further)
        env = environment(self.lab.consul.address, self.lab.kubeconfig, POD_NAME=identity)
        daemon = Daemon(self.lab, identity, *arguments, env=env)
        daemon.ready_seconds = 300
        self.lab.add(daemon)
        return daemon

    def _populate(self) -> None:
        places = [(n, i) for n in range(self.services) for i in range(self.instances)]
        nodes = dict.fromkeys(node(n, i) for n, i in places)
        transact(self.lab, (
            {"Node": {"Verb": "set", "Node": {"Node": found, "Address": f"192.168.{k // 250}.{k % 250 + 1}"}}}
            for k, found in enumerate(nodes)
        ))  # fmt: skip
        transact(self.lab, (operation for n, i in places for operation in (
            {"Service": {"Verb": "set", "Node": node(n, i), "Service": {
                "ID": f"{name(n)}-{node(n, i)}", "Service": name(n), "Port": 80, "Address": address(n, i),
            }}},
            {"Check": {"Verb": "set", "Check": check(n, i, "passing")}},
        )))  # fmt: skip

    def command(self, headless: bool = False) -> tuple[float, int, int]:
        """`bridge sync`: seconds, writes, services."""
        env = environment(self.lab.consul.address, self.lab.kubeconfig)
        what = ["--service", "bench-*", "--namespace", NAMESPACE]
        if headless:
            rules = self.lab.folder / "headless.yaml"
            rules.write_text(json.dumps({
                "rules": [{"services": ["bench-*"], "to": {"namespace": NAMESPACE, "type": "Headless"}}],
            }))  # fmt: skip
            what = ["--config", str(rules)]
        began = time.perf_counter()
        done = bridge("sync", *what, "--yes", "-o", "json", env=env, timeout=900)
        took = time.perf_counter() - began
        if done.status != 0:
            raise LabError(f"bridge sync failed:\n{done.stderr[-2000:]}")
        self.synced = True
        return took, sum(done.json["summary"][k] for k in ("create", "update", "delete")), self.services

    def bridge(self) -> Daemon:
        """The bridge, running, with everything mirrored."""
        if not self.daemon.running:
            if not self.synced:
                self.command()
            self.daemon.start()
        return self.daemon

    @contextmanager
    def replicas(self, count: int, shards: int, seconds: float = 60.0) -> Iterator[list[Daemon]]:
        """So many bridges, in the place of the one, that share the shards evenly and lead all of them."""
        self.daemon.stop()
        made = [
            self._daemon(f"replica-{count}-{k}", "--leader-elect", "--shards", str(shards)) for k in range(count)
        ]  # fmt: skip
        try:
            for daemon in made:
                daemon.start()
            wait_until(
                lambda: all(len(held(daemon)) == shards // count for daemon in made),
                seconds, f"{count} replicas sharing {shards} shards", 0.2,
            )  # fmt: skip
            yield made
        finally:
            for daemon in made:
                daemon.stop()

    def pid(self) -> int | None:
        """Of the bridge; None while it does not run."""
        return self.daemon.pid if self.daemon.is_process else None

    def sampler(self) -> Sampler:
        """Of the bridge's threads and connections, and of Consul's."""
        return Sampler(self.lab.consul.ports["http"], self.pid, self.lab.consul.pid)

    def tail(self) -> Tail:
        """Writes from now on."""
        return Tail(self.lab)

    def connections(self, sampler: Sampler, when: str, out: Collected) -> None:
        """Figures of what the sampler saw."""
        if not sampler.samples:
            raise LabError("the bridge was never looked at")
        out.figures.append(
            limit(f"connections to Consul at most, {when}, {self.label}", sampler.connections, BUDGET, "",
                  row="connections")
        )  # fmt: skip

    def accepted(self, sampler: Sampler, when: str, out: Collected) -> None:
        """Figures of what Consul held, no matter who had made it."""
        states = ", ".join(f"{count} {state}" for state, count in sorted(sampler.accepted.items()))
        out.figures.append(
            limit(f"connections that Consul held at most, {when}, {self.label} ({states})",
                  sampler.accepted.total(), CONSUL_CONNECTIONS, "", row="connections")
        )  # fmt: skip

    def differing(self) -> list[str]:
        """Services whose EndpointSlice or Endpoints are not what Consul holds."""
        with self.lab.raw_kube() as kube:
            kinds = [(kube.get(path.format(namespace=NAMESPACE)) or {})["items"] for path in (ENDPOINTS, SLICES)]
        held = {o["metadata"]["name"]: o for o in kinds[0]}
        slices: dict[str, list[Json]] = {}
        for found_slice in kinds[1]:
            service = found_slice["metadata"]["labels"]["kubernetes.io/service-name"]
            slices.setdefault(service, []).extend(found_slice.get("endpoints") or [])
        found: list[str] = []

        def work(mine: Sequence[int]) -> None:
            with self.lab.raw_consul() as consul:
                for n in mine:
                    _, entries = consul.health(name(n))
                    states = sorted(
                        (all(c["Status"] in ("passing", "warning") for c in e["Checks"]), e["Service"]["Address"])
                        for e in entries
                    )
                    endpoints = held.get(name(n))
                    seen = sorted(
                        [(True, ip) for ip, _ in ready_addresses(endpoints)]
                        + [(False, ip) for ip, _ in not_ready_addresses(endpoints)]
                    )
                    in_slice = sorted((e["conditions"]["ready"], e["addresses"][0]) for e in slices.get(name(n), []))
                    if not states == seen == in_slice:
                        found.append(name(n))

        run_threads([partial(work, range(k, self.services, 4)) for k in range(4)])
        return sorted(found)


def held(daemon: Daemon) -> list[int]:
    """The shards that a replica leads."""
    return list(daemon.readiness().get("election", {}).get("held", []))


def raw_writes(
    lab: Lab, prefix: str, services: int, instances: int, sick: int | None = None, headless: bool = False
) -> float:
    """Seconds in which plain clients make the same objects under other names.

    `sick`: an instance that turns unhealthy; then the Services are there and stay as they are.
    """
    address_of_its_own = {"clusterIP": "None"} if headless else {}

    def work(mine: Sequence[int]) -> None:
        with lab.raw_kube() as kube:
            for n in mine:
                if sick is None:
                    kube.apply(f"{SERVICES.format(namespace=FLOOR)}/{prefix}-{n}", {
                        "apiVersion": "v1", "kind": "Service", "metadata": marked(f"{prefix}-{n}", name(n)),
                        "spec": {
                            "type": "ClusterIP", "ports": [{"port": 80, "protocol": "TCP"}],
                            "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"], **address_of_its_own,
                        },
                    })  # fmt: skip
                members = [(address(n, i), i != sick) for i in range(instances)]
                for make in (endpoint_slice, endpoints):
                    path, body = make(f"{prefix}-{n}", name(n), members)
                    kube.apply(path.format(namespace=FLOOR), body)

    return run_threads([partial(work, range(k, services, CONNECTIONS)) for k in range(CONNECTIONS)])


def extra(consul: RawConsul, service: str) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
    """Register an instance on a node of its own; take the instance away; take the node away with it."""
    machine = f"extra-{service}"
    tail = sum(service.encode()) % 250 + 1
    return (
        lambda: consul.register(service, machine, "192.168.99.1", 80, Address=f"10.250.0.{tail}"),
        lambda: consul.deregister(service, machine),
        lambda: consul.drop_node(machine),
    )
