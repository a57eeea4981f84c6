"""Where the faults play: servers of our own, a bridge between them behind proxies that can break every connection.

    VMs (changes.Fleet) ──▶ Consul ◀── toxiproxy ◀── bridge ──▶ toxiproxy ──▶ kube-apiserver ◀── etcd
                              ▲                                                   ▲
                              └───────────────────── observer ────────────────────┘

Consul has ACLs with default deny, and the bridge a token of its own; in Kubernetes it is a ServiceAccount that may do
what its manifest allows. `servers=3` is the variant with three Consul servers, for what only several can do.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from tests.support.chaos.changes import Fleet, Instance
from tests.support.chaos.observer import Observer, Sights
from tests.support.lab import Consul, Lab, LabError, consul_cluster, free_port, wait_until
from tests.support.lab.secret_scan import secret as remember
from tests.support.program import Daemon, environment
from tests.support.raw import (
    ENDPOINTS,
    SERVICES,
    SLICES,
    RawClient,
    RawConsul,
    RawKube,
    UnexpectedAnswerError,
    ask,
    ready_addresses,
)

NAMESPACE, DOOMED = "chaos", "doomed"
TENANT, NEIGHBOUR = "tenant", "neighbour"
"""Namespaces of users who ask for Consul services by annotation."""
STANDING, STANDING_SERVICE = "standing", "c-4"
"""The neighbour's Service, which is checked all the time, and the Consul service that it asks for."""
SHARED, SHARED_SIZE = "shared", 12
"""A Consul service that no rule wants, and how many instances it has. Nothing is ever done to it."""
AWAY = "not-there"
TENANTS = tuple(f"mine-{n}" for n in range(12))
"""The tenant's Services, which ask for `SHARED`: together more endpoints than a small harness has beside them."""
USER = f"system:serviceaccount:{NAMESPACE}:bridge"
TOKEN = "6b1de1a0-6a7c-4b3f-9f3e-0c1f4f5d2a10"
POLICY = 'service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }'
FOREIGN = ("c-foreign", "c-others")
"""A Service with Endpoints that a user made, and one of a bridge with another owner id. Consul has both names."""

RULES = {
    "rules": [
        {"services": ["doomed-*"], "to": {"namespace": DOOMED}},
        {"services": ["slice-*"], "to": {"namespace": NAMESPACE, "output": "endpointslices"}},
        {"services": ["c-*"], "to": {"namespace": NAMESPACE}},
    ],
    # What users have as minutes is seconds here, so that a fault and its end are both seen within seconds.
    "run": {"removal_grace_period": "1s"},
    "consul": {"wait": "10s", "timeout_margin": "2s"},
    "kubernetes": {"request_timeout": "4s", "watch_namespaces": [TENANT, NEIGHBOUR]},
    "annotated": [{"namespaces": [TENANT, NEIGHBOUR], "filter": True}],
    "guard": {"restore_hold": "6s", "window": "10s"},
    "retry": {"permanent": {"initial_interval": "1s", "max_interval": "5s"}},
}

ROLE = Path(__file__).resolve().parents[3] / "manifests/base/role.yaml"


class Toxics:
    """One proxied address; what is added to it breaks connections until `heal`."""

    def __init__(self, control: str, name: str, upstream: str) -> None:
        self._control = control
        self._name = name
        self.upstream = upstream
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._ask("POST", "/proxies", {"name": name, "listen": self.address, "upstream": upstream, "enabled": True})

    def add(self, kind: str, **attributes: int) -> None:
        """Add a toxic in both directions."""
        self.add_to(("upstream", "downstream"), kind, attributes)

    def add_to(self, streams: Sequence[str], kind: str, attributes: Mapping[str, int]) -> None:
        """Add a toxic to some directions; `upstream` is from the bridge to the server."""
        for stream in streams:
            body = {"name": f"{kind}-{stream}", "type": kind, "stream": stream, "attributes": attributes}
            self._ask("POST", f"/proxies/{self._name}/toxics", body)

    def lead_to(self, upstream: str) -> None:
        """Lead all connections to `upstream`; those that are open break, also when it is the same as before."""
        self._ask("POST", f"/proxies/{self._name}", {"listen": self.address, "enabled": False})
        self._ask("POST", f"/proxies/{self._name}", {"upstream": upstream, "listen": self.address, "enabled": True})

    def heal(self) -> None:
        """Take all toxics out, and lead to the server itself."""
        found = self._ask("GET", f"/proxies/{self._name}")
        for toxic in found["toxics"]:
            self._ask("DELETE", f"/proxies/{self._name}/toxics/{toxic['name']}")
        if found["upstream"] != self.upstream:
            self.lead_to(self.upstream)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        with RawClient(self._control, timeout_seconds=10) as client:
            return client.json(method, path, body)


class Bridge(Daemon):
    """`bridge run` of the harness; `launcher` arguments run it inside of a script that breaks something in it."""

    def __init__(self, harness: Harness, name: str, launcher: Sequence[str] = ()) -> None:
        env = environment(
            f"http://{harness.to_consul.address}", harness.kubeconfig, CONSUL_HTTP_TOKEN_FILE=str(harness.token_file)
        )
        super().__init__(harness.lab, name, "--config", str(harness.config), env=env)
        if launcher:
            start = [sys.executable, "-m", "tests.support.chaos.launch", *launcher, "--"]
            self._command = [*start, *self._command[1:]]
            self._environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[3])

    def log_size(self) -> int:
        """Bytes in the log so far."""
        return self.log.stat().st_size if self.log.exists() else 0

    def log_since(self, position: int) -> str:
        """What was logged after `position`."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(position)
            return file.read().decode(errors="replace")


class Harness:
    """A context manager: everything runs when it is entered, and everything is ended when it is left."""

    def __init__(
        self,
        *,
        seed: int,
        services: int = 8,
        instances: int = 12,
        anchors: int = 8,
        rate: float = 6.0,
        servers: int = 1,
        longest_pause: float = 15.0,
    ) -> None:
        """`rate`: changes a second. `longest_pause`: seconds that a server may be stopped."""
        self.seed = seed
        self.servers = servers
        self.longest_pause = longest_pause
        self._rate = rate
        self._sizes = (services, instances, anchors)
        self._undo = contextlib.ExitStack()
        self.lab: Lab
        self.consul: Consul
        self.cluster: list[Consul] = []
        self.to_consul: Toxics
        self.to_kube: Toxics
        self.kubeconfig: Path
        self.token_file: Path
        self.config: Path
        self.fleet: Fleet
        self.observer: Observer
        self.bridge: Bridge
        self._bridges = 0

    # ------------------------------------------------------------------ life

    def __enter__(self) -> Harness:
        try:
            self._build()
        except BaseException:
            self._undo.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self._undo.__exit__(*error)

    def _build(self) -> None:
        self.lab = Lab(acl=self.servers == 1, own=True)
        self._undo.enter_context(self.lab)
        self.consul = self.lab.consul
        if self.servers > 1:
            self.cluster = consul_cluster(self.lab.folder / "cluster", self.servers)
            for server in self.cluster:
                self.lab.add(server)
            self.consul = self.cluster[0]
        control = self.lab.toxiproxy().url
        self.to_consul = Toxics(control, "consul", urlsplit(self.consul.address).netloc)
        self.to_kube = Toxics(control, "kubernetes", urlsplit(self.lab.apiserver.url).netloc)
        self.token_file = self.lab.folder / "consul-token"
        self.config = self.lab.folder / "bridge.yaml"
        self.configure({})
        self.give_consul_token(TOKEN)
        self._furnish_kubernetes()
        self.kubeconfig = self.lab.folder / "bridge.kubeconfig"
        self.give_kube_token()
        services, instances, anchors = self._sizes
        self.fleet = Fleet(
            self.connect_consul, seed=self.seed, services=services, instances=instances, anchors=anchors,
            conflicting=(*FOREIGN, SHARED), on_pushed=self._pushed,
        )  # fmt: skip
        for name in (*FOREIGN, "doomed-1"):
            self.fleet.add(name, 2)
        self.fleet.add(SHARED, SHARED_SIZE)
        sights = Sights(
            connect_consul=self.connect_consul, connect_kube=self.connect_kube, audit_log=self.lab.audit_log, user=USER,
            namespace_of=namespace_of, slices_alone=lambda service: service.startswith("slice-"),
            namespaces=(NAMESPACE, DOOMED), tenants=(TENANT, NEIGHBOUR),
            sent_away=tuple((TENANT, name) for name in TENANTS),
            asked={(NEIGHBOUR, STANDING): STANDING_SERVICE},
            foreign=[(NAMESPACE, name) for name in (*FOREIGN, SHARED, "bystander")],
        )  # fmt: skip
        self.observer = Observer(sights, self.fleet)
        self._undo.callback(self.observer.close)
        self._undo.callback(self.fleet.close)
        self.fleet.start(self._rate)
        if not self.fleet.flush(300):
            raise LabError(f"Consul did not take the services of the start: {self.fleet.trouble}")
        self.observer.start()
        self.bridge = self.new_bridge()
        self.bridge.start()

    def _pushed(self, instance: Instance) -> None:
        if hasattr(self, "observer") and instance.service not in (*FOREIGN, SHARED):
            self.observer.pushed(instance)

    # ------------------------------------------------------------------ the bridge

    def new_bridge(self, launcher: Sequence[str] = ()) -> Bridge:
        """A further bridge, not started; it ends with the harness."""
        self._bridges += 1
        bridge = Bridge(self, f"bridge-{self._bridges}", launcher)
        self._undo.callback(bridge.kill)
        return bridge

    def replace_bridge(self, launcher: Sequence[str] = (), *, wait: bool = True) -> None:
        """End the bridge with SIGTERM and start another one, `launcher` as in `Bridge`."""
        self.bridge.stop()
        self.bridge = self.new_bridge(launcher)
        self.bridge.start(wait=wait)

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Write the bridge's file: our settings, with these sections' keys instead, for the next start."""
        merged = {key: {**value, **settings.get(key, {})} if isinstance(value, dict) else value
                  for key, value in RULES.items()}  # fmt: skip
        self.config.write_text(yaml.safe_dump(merged))

    # ------------------------------------------------------------------ clients and credentials

    def connect_consul(self) -> RawConsul:
        """Consul itself (a server that lives, where there are several)."""
        server = next((s for s in self.cluster if s.running), self.consul)
        return RawConsul(server.address, self.consul.token, timeout_seconds=3.0)

    def connect_kube(self) -> RawKube:
        """The API server itself, as an administrator."""
        return RawKube(self.lab.kubeconfig)

    def give_consul_token(self, secret: str) -> None:
        """Make a token with the bridge's policy and write it where the bridge reads it."""
        if self.consul.token:
            with self.connect_consul() as consul:
                self.set_policy(POLICY)
                policy = [{"Name": "bridge"}]
                with contextlib.suppress(UnexpectedAnswerError):  # there already
                    consul.json("PUT", "/v1/acl/token", {"SecretID": secret, "Policies": policy})
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(remember(secret))

    def set_policy(self, rules: str) -> None:
        """What the bridge's token may see in Consul from now on."""
        with self.connect_consul() as consul:
            body = {"Name": "bridge", "Rules": rules}
            known = {p["Name"]: p["ID"] for p in consul.json("GET", "/v1/acl/policies")}
            path = f"/v1/acl/policy/{known['bridge']}" if "bridge" in known else "/v1/acl/policy"
            consul.json("PUT", path, body)

    def give_kube_token(self) -> None:
        """A fresh ServiceAccount token, in the kubeconfig that the bridge reads."""
        made = self.lab.service_account(NAMESPACE, "bridge")
        token = yaml.safe_load(made.read_text())["users"][0]["user"]["token"]
        new = self.lab.write_kubeconfig("bridge-new", token, f"https://{self.to_kube.address}", NAMESPACE)
        new.replace(self.kubeconfig)

    def _furnish_kubernetes(self) -> None:
        group = "rbac.authorization.k8s.io"
        with self.connect_kube() as kube:
            for namespace in (NAMESPACE, DOOMED, TENANT, NEIGHBOUR):
                create_namespace(kube, namespace)
            kube.apply(f"/apis/{group}/v1/clusterroles/bridge", {
                "apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": {"name": "bridge"},
                "rules": yaml.safe_load(ROLE.read_text())["rules"],
            })  # fmt: skip
            kube.apply(f"/apis/{group}/v1/clusterrolebindings/bridge", {
                "apiVersion": f"{group}/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "bridge"},
                "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "bridge"},
                "subjects": [{"kind": "ServiceAccount", "name": "bridge", "namespace": NAMESPACE}],
            })  # fmt: skip
        self.put_foreign()
        with self.connect_kube() as kube:
            ask(kube, NEIGHBOUR, STANDING, STANDING_SERVICE, create=True)
            for name in TENANTS:
                ask(kube, TENANT, name, AWAY, create=True)

    # ------------------------------------------------------------------ users

    def send_away(self, seconds: float) -> bool:
        """The tenant asks for what `SHARED` has and sends it away again; whether they got it, within so long."""
        self._ask_for(SHARED)
        filled = wait_for(lambda: self._tenants_endpoints() == len(TENANTS) * SHARED_SIZE, seconds)
        self._ask_for(AWAY)
        return filled

    def _ask_for(self, service: str) -> None:
        with self.connect_kube() as kube:
            for name in TENANTS:
                ask(kube, TENANT, name, service)

    def _tenants_endpoints(self) -> int:
        with self.connect_kube() as kube:
            items = kube.json("GET", ENDPOINTS.format(namespace=TENANT))["items"]
            return sum(len(ready_addresses(item)) for item in items if item["metadata"]["name"] in TENANTS)

    def put_foreign(self) -> None:
        """Make the objects that are not the bridge's, again where they are; no bridge may run meanwhile."""
        others = {"app.kubernetes.io/managed-by": "consul-bridge", "consul-bridge/owner": "others"}
        services, endpoints = SERVICES.format(namespace=NAMESPACE), ENDPOINTS.format(namespace=NAMESPACE)
        with self.connect_kube() as kube:
            for name, labels in (("c-foreign", {}), ("c-others", others), ("bystander", {})):
                paths = [f"{folder}/{name}" for folder in (services, endpoints)]
                slices = SLICES.format(namespace=NAMESPACE)
                found = kube.json("GET", f"{slices}?labelSelector=kubernetes.io/service-name={name}")["items"]
                paths += [f"{slices}/{item['metadata']['name']}" for item in found]
                for path in paths:
                    if kube.get(path) is not None:
                        kube.delete(path)
                wait_until(partial(_gone, kube, paths), 20, f"the end of {name}", 0.05)
                meta = {"name": name, "labels": labels}
                kube.json("POST", services, {
                    "apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": [{"port": 80}]},
                })  # fmt: skip
                kube.json("POST", endpoints, {
                    "apiVersion": "v1", "kind": "Endpoints", "metadata": meta,
                    "subsets": [{"addresses": [{"ip": "10.99.0.1"}], "ports": [{"port": 80}]}],
                })  # fmt: skip


def namespace_of(service: str) -> str:
    """Where the harness's rules put a Consul service."""
    return DOOMED if service.startswith("doomed-") else NAMESPACE


def _gone(kube: RawKube, paths: Sequence[str]) -> bool:
    return all(kube.get(path) is None for path in paths)


def create_namespace(kube: RawKube, name: str) -> None:
    """Create a namespace; waits while an old one of its name is still going."""

    def made() -> bool:
        try:
            kube.json("POST", "/api/v1/namespaces", {
                "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name},
            })  # fmt: skip
        except UnexpectedAnswerError as error:
            if error.status != 409:
                raise
            return False
        return True

    wait_until(made, 60, f"creating namespace {name}", 0.1)


def wait_for(condition: Callable[[], bool], seconds: float, step: float = 0.05) -> bool:
    """Whether `condition` came true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(step)
    return True


def processors() -> int:
    """Processors of this machine."""
    return os.cpu_count() or 1
