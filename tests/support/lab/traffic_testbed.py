"""A small testbed: VMs with servers, a real Consul that checks them, a cluster with kube-proxy, and a client in a pod.

    with TrafficTestbed(3) as testbed:
        testbed.open(n, "web", 8080)               # a server on VM n, registered with Consul under an HTTP check
        with testbed.bridge("web", rule) as daemon, testbed.load(address, 80, rate=50) as load:
            testbed.maintenance("web", 1, on=True)
            load.requests()                     # what the client in the pod got, and when

All times are this machine's clock, so those of the client, of Consul's watchers and of the API server compare.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.lab import Lab, wait_until
from tests.support.lab.netns import SERVICES, SERVICES6, Rig, has_ipv6
from tests.support.lab.servers import KubeProxy, Program
from tests.support.program import Daemon, environment, put
from tests.support.raw import SLICES, RawConsul

VM = Path(__file__).with_name("vm.py")
LOAD = Path(__file__).with_name("load.py")
CHECK_INTERVAL = "1s"  # the shortest that Consul does, whatever one asks for
NAMESPACE = "default"
LOAD_IMPORT = f"import sys; sys.path.insert(0, {str(LOAD.parent)!r}); import load"
SLOW = f"""
{LOAD_IMPORT}
from concurrent.futures import ThreadPoolExecutor

address, port, count, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])

def one(_):
    try:
        return load.ask(address, port, f"/{{seconds}}", seconds + 30)
    except (OSError, ValueError) as error:
        return f"!{{error}}"

with ThreadPoolExecutor(count) as pool:
    print("\\n".join(pool.map(one, range(count))))
"""


@dataclass(frozen=True, slots=True)
class Request:
    """A request of the client. Times in seconds since the epoch; `vm` that answered, "" when none did."""

    began: float
    ended: float
    vm: str
    error: str


@dataclass(frozen=True, slots=True)
class Load:
    """The client at work. `read` gives what it has printed so far."""

    read: Callable[[], str]

    def requests(self, since: float = 0.0) -> list[Request]:
        """The requests that have ended, of those that began at `since` or later."""
        found = []
        text = self.read()
        for line in text[: text.rfind("\n") + 1].splitlines():
            began, ended, said = line.split(" ", 2)
            if float(began) >= since:
                failed = said.startswith("!")
                found.append(Request(float(began), float(ended), "" if failed else said, said[1:] if failed else ""))
        return found

    def failed(self, since: float = 0.0) -> list[Request]:
        """Those of them that no server answered."""
        return [request for request in self.requests(since) if request.error]

    def answers(self, since: float = 0.0) -> Counter[str]:
        """How many each VM answered."""
        return Counter(request.vm for request in self.requests(since) if request.vm)

    def last(self, vm: str) -> float:
        """When the last request that a VM answered began; 0 when there was none."""
        return max((r.began for r in self.requests() if r.vm == vm), default=0.0)

    def await_silence(self, vm: str, requests: int = 100, within: float = 30.0) -> float:
        """Wait until so many in a row were answered by others; when the last that this VM answered began."""
        wait_until(
            lambda: self.answers(self.last(vm)).total() > requests, within, f"{requests} requests without one for {vm}"
        )
        return self.last(vm)

    def await_calm(self, requests: int, within: float = 30.0) -> None:
        """Wait until so many in a row were answered."""

        def calm() -> bool:
            failures = [r.began for r in self.requests() if r.error]
            return self.answers(max(failures, default=0.0)).total() >= requests

        wait_until(calm, within, f"{requests} answered requests in a row")


class Knowing:
    """Waits for Consul's answers as the bridge does, and notes when an instance was first seen critical."""

    def __init__(self, lab: Lab, service: str, instance: str) -> None:
        self.at = 0.0
        self._service = service
        self._instance = instance
        self._consul = lab.raw_consul()
        self._thread = threading.Thread(target=self._run, name="knowing")

    def __enter__(self) -> Knowing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._consul.interrupt()
        self._thread.join()
        self._consul.close()

    def _run(self) -> None:
        index = 0
        while not self.at:
            try:
                index, entries = self._consul.health(self._service, index)
            except OSError:
                return
            for entry in entries:
                critical = any(check["Status"] == "critical" for check in entry["Checks"])
                if entry["Service"]["ID"] == self._instance and critical:
                    self.at = time.time()


class VmServers:
    """Servers on a rig's VMs, and what Consul knows of them. `rig` and its Consul are there once it runs."""

    rig: Rig
    _consul: RawConsul

    def __init__(self) -> None:
        self.servers: dict[tuple[int, int], Program] = {}
        """By VM and port."""

    def open(self, n: int, service: str, port: int, *, family: int = 4) -> None:
        """Start a server on VM n, which answers with the VM's name, and register it with an HTTP check."""
        vm = self.rig.vms[n - 1]
        address = vm.address if family == 4 else vm.address6
        if (n, port) not in self.servers:
            addresses = [vm.address, vm.address6] if has_ipv6() else [vm.address]
            command = [sys.executable, "-S", str(VM), vm.name, str(port), *addresses]
            self.servers[n, port] = self.rig.start(vm, command, name=f"server-{n}-{port}")
        host = f"[{address}]" if family == 6 else address
        self._consul.json("PUT", "/v1/agent/service/register", {
            "ID": f"{service}-{n}" if family == 4 else f"{service}-six-{n}",
            "Name": service, "Address": address, "Port": port,
            # A dead VM refuses at once; one on a busy machine is only slow.
            "Check": {"HTTP": f"http://{host}:{port}/", "Interval": CHECK_INTERVAL, "Timeout": "5s"},
        })  # fmt: skip

    def close_all(self, service: str) -> None:
        """Take a service out of Consul and end all servers."""
        for entry in self._consul.health(service)[1]:
            self._consul.json("PUT", f"/v1/agent/service/deregister/{entry['Service']['ID']}")
        # The agent tells the catalog some time later; until then who registers again would find the old state there.
        wait_until(lambda: not self.statuses(service), 30, f"{service} being out of Consul's catalog")
        for server in self.servers.values():
            server.kill()
        self.servers.clear()

    def maintenance(self, service: str, n: int, *, on: bool) -> None:
        """What `consul maint -service` does."""
        path = f"/v1/agent/service/maintenance/{service}-{n}?enable={str(on).lower()}&reason=restart"
        self._consul.json("PUT", path)

    def deregister(self, service: str, n: int) -> None:
        """Take an instance out of Consul; its server goes on."""
        self._consul.json("PUT", f"/v1/agent/service/deregister/{service}-{n}")

    def statuses(self, service: str) -> dict[str, str]:
        """The worst status of each instance in Consul, by its id."""
        found = {}
        for entry in self._consul.health(service)[1]:
            statuses = {check["Status"] for check in entry["Checks"]}
            worst = next((s for s in ("critical", "warning") if s in statuses), "passing")
            found[entry["Service"]["ID"]] = worst
        return found

    def await_passing(self, service: str, count: int) -> None:
        """Wait until Consul calls so many instances well, and no other unhealthy."""
        wait_until(
            lambda: list(self.statuses(service).values()) == ["passing"] * count, 30, f"{count} of {service} passing"
        )

    def await_answer(self, n: int, port: int) -> None:
        """Wait until the server on VM n answers the node."""
        vm = self.rig.vms[n - 1]
        code = f"{LOAD_IMPORT}; print(load.ask(sys.argv[1], int(sys.argv[2])))"
        command = (sys.executable, "-S", "-c", code, vm.address, str(port))
        wait_until(
            lambda: self.rig.node.run(*command, check=False).stdout.strip() == vm.name, 30, f"an answer of {vm.name}"
        )


class TrafficTestbed(VmServers):
    """A context manager. `rig`, `lab` (with Consul inside of the rig's node) and `proxy` are there in the block."""

    def __init__(self, vms: int = 3, proxy: str = "nftables") -> None:
        super().__init__()
        self._vms = vms
        self._mode = proxy
        self._stack = ExitStack()
        self.keep = False
        """Whether the logs are kept, and where they are is reported, at the end."""
        self.proxy: KubeProxy

    def __enter__(self) -> TrafficTestbed:
        with ExitStack() as stack:
            self.lab = Lab(own=True)
            stack.callback(lambda: self.lab.close(keep=self.keep))
            self.rig = stack.enter_context(
                Rig(self._vms, self.lab.folder / "rig")
            )  # ends before the lab, from which it takes its Node
            if has_ipv6():
                self.lab.apiserver.service_ranges = f"{SERVICES},{SERVICES6}"
            self.rig.house(self.lab.consul, self.lab.consul.ports["http"])
            self.lab.start()
            self.proxy = self.rig.kube_proxy(self.lab, self._mode)
            self._consul = stack.enter_context(self.lab.raw_consul())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # ------------------------------------------------------------------ the cluster

    @contextmanager
    def bridge(self, name: str, rule: Mapping[str, Any]) -> Iterator[Daemon]:
        """A bridge that makes a Service of this name by one rule; ready. The Service goes at the end."""
        config = self.lab.folder / f"{name}.yaml"
        self.configure(name, rule)
        env = environment(self.lab.consul.address, self.lab.kubeconfig)
        daemon = Daemon(self.lab, name, "--config", str(config), "--owner", name, env=env)
        self.lab.add(daemon)
        daemon.start()
        try:
            yield daemon
        finally:
            daemon.stop()
            with self.lab.raw_kube() as kube:
                kube.delete(f"/api/v1/namespaces/{NAMESPACE}/services/{name}")

    def configure(self, name: str, rule: Mapping[str, Any]) -> None:
        """Write, or change, the settings of a bridge."""
        whole = {**rule, "to": {"name": name, "namespace": NAMESPACE, **rule.get("to", {})}}
        put(self.lab.folder / f"{name}.yaml", yaml.safe_dump({"rules": [whole]}))

    def addresses(self, name: str) -> list[str]:
        """The cluster addresses of a Service, once it is there."""
        path = f"/api/v1/namespaces/{NAMESPACE}/services/{name}"
        with self.lab.raw_kube() as kube:
            wait_until(lambda: kube.get(path) is not None, 30, f"the Service {name}")
            return list((kube.get(path) or {})["spec"]["clusterIPs"])

    def managers(self, name: str) -> set[str]:
        """Who keeps the EndpointSlices of a Service."""
        return {item["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] for item in self._slices(name)}

    def conditions(self, name: str) -> list[dict[str, bool]]:
        """The conditions of all endpoints in a Service's EndpointSlices."""
        return [endpoint["conditions"] for item in self._slices(name) for endpoint in item.get("endpoints") or []]

    def _slices(self, name: str) -> list[Any]:
        path = f"{SLICES.format(namespace=NAMESPACE)}?labelSelector=kubernetes.io/service-name={name}"
        with self.lab.raw_kube() as kube:
            return list((kube.get(path) or {})["items"])

    def written(self, name: str, since: float) -> float:
        """When the first write of a Service's EndpointSlices after `since` was answered; 0 when there was none.

        By the bridge, or, with `output: endpoints`, by the control plane.
        """
        return min((e.at for e in self.lab.audit(since=since) if e.name.rpartition("-")[0] == name
                    and e.resource == "endpointslices" and e.verb in ("patch", "update", "create")
                    and e.code < 300), default=0.0)  # fmt: skip

    # ------------------------------------------------------------------ the pod

    @contextmanager
    def load(self, address: str, port: int, rate: float) -> Iterator[Load]:
        """The client in the pod, asking `rate` times a second until the end of the block."""
        command = [sys.executable, "-S", str(LOAD), address, str(port), str(rate)]
        program = self.rig.start(self.rig.pod, command, dict(os.environ), name=f"load-{time.monotonic_ns()}")
        try:
            yield Load(program.log.read_text)
        finally:
            program.kill()

    def slow_requests(self, address: str, port: int, count: int, seconds: float) -> Program:
        """That many requests at once, each answered after `seconds`; names, or `!` and what went wrong, in its log."""
        command = (sys.executable, "-S", "-c", SLOW, address, str(port), str(count), str(seconds))
        return self.rig.start(self.rig.pod, command, name=f"slow-{time.monotonic_ns()}")

    def connections(self) -> int:
        """How many TCP connections of the pod are established."""
        return len(self.rig.pod.run("ss", "-Htn", "state", "established").stdout.splitlines())

    def await_spread(self, load: Load, vms: Sequence[int], within: float = 30.0) -> float:
        """Wait until each of these VMs, and no other VM in between, has answered; the time then.

        A request that began before that time may still fail: it may have begun before kube-proxy knew the Service.
        """
        names = {self.rig.vms[n - 1].name for n in vms}
        since = time.time()

        def spread() -> bool:
            nonlocal since
            others = [r.began for r in load.requests(since) if r.error or r.vm not in names]
            since = max([since, *(began + 0.000_001 for began in others)])
            return set(load.answers(since)) == names

        wait_until(spread, within, f"answers of {sorted(names)} and no other VM")
        return time.time()
