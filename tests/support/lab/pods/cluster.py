"""The cluster: a control plane with all controllers and a scheduler, nodes, DNS; VMs and a Consul that checks them.

Every server runs in the rig's network namespaces; each node has its processes, mounts and cgroups for itself as well.
Nothing needs a registry, and nothing of the machine is changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import trustme

from tests.support.lab import Lab, netns
from tests.support.lab.build import TOOLS, LabError
from tests.support.lab.netns import NODE, Rig
from tests.support.lab.pods import cgroups, image_store
from tests.support.lab.pods.node import DNS, PLUGINS, Node, plugins
from tests.support.lab.providers import binaries, binary
from tests.support.lab.secret_scan import secret
from tests.support.lab.servers import KubeProxy, Program, Scheduler, wait_until
from tests.support.lab.traffic_testbed import VmServers
from tests.support.raw import RawKube

PODS = "10.79.0.0/16"
PROGRAMS = {
    "containerd": "containerd", "containerd-shim-runc-v2": "containerd", "ctr": "containerd", "runc": "runc",
    "hostname": "hostname", "mount": "mount",
}  # fmt: skip
TOOLS_NEEDED = ("kubelet", "kube-scheduler", "kube-proxy", "coredns", "pause", "kubectl")
NODE_SECONDS = 120.0
SERVICE, PORT = "radosgw", 8080
"""What the VMs serve, and where."""
_NAMESPACES = ("--mount", "--propagation", "private", "--pid", "--fork", "--uts", "--ipc", "--cgroup", "--kill-child")


def trouble() -> str | None:
    """What keeps this machine from having a cluster with pods, and what would help; None when nothing does."""
    if sys.platform != "linux":
        return f"pods are Linux's, this is {sys.platform}"
    if os.geteuid() != 0:
        return "nodes are made by root alone (mounts, cgroups, containers): run it as root"
    missing = {package for program, package in PROGRAMS.items() if shutil.which(program) is None}
    if plugins() is None:
        missing.add("containernetworking-plugins")
    if missing:
        packages = " ".join(sorted(missing))
        places = " or ".join(PLUGINS)
        return f"not installed: apt-get install --no-install-recommends {packages} (CNI plugins: in {places})"
    if reason := netns.trouble(proxy=True):
        return reason
    if reason := cgroups.trouble(cgroups.ours()):
        return reason
    tried = subprocess.run(
        ["unshare", *_NAMESPACES, "sh", "-c", "mount -t proc proc /proc && mount -t tmpfs tmpfs /run"],
        capture_output=True, text=True, timeout=netns.COMMAND_SECONDS, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if tried.returncode != 0:
        return f"no namespaces with mounts can be made here: {tried.stderr.strip() or 'no reason given'}"
    return None


def prepare() -> None:
    """Build what is missing, programs and images, so that a start only starts. Raises LabError with the reason."""
    if reason := trouble():
        raise LabError(f"no cluster with pods can run here: {reason}")
    binaries([name for name, tool in TOOLS.items() if tool.core] + list(TOOLS_NEEDED))
    image_store.provide()


class Cluster(VmServers):
    """A context manager. `lab` (its API server, Consul, ...), `rig` and `nodes` are there in the block.

    Consul answers pods at `consul_address`. `kubectl` is an administrator's.
    """

    def __init__(self, nodes: int = 2, vms: int = 12, *, acl: bool = False, service: str = SERVICE) -> None:
        """`service`: what every VM serves from the start, registered in Consul with a check; "" for nothing."""
        super().__init__()
        self._nodes_count, self._vms_count, self._acl, self._service = nodes, vms, acl, service
        self._stack = ExitStack()
        self.keep = False
        """Whether the logs are kept, and where they are is reported, at the end."""
        self.nodes: list[Node] = []

    # ------------------------------------------------------------------ life

    def __enter__(self) -> Cluster:
        prepare()
        cgroups.reap()
        with ExitStack() as stack:
            self.lab = Lab(own=True, acl=self._acl, clean_up=cgroups.clean_up_command)
            stack.callback(lambda: self.lab.close(keep=self.keep))
            self._configure()
            self.rig = stack.enter_context(Rig(self._vms_count, self.lab.folder / "rig", nodes=self._nodes_count))
            for server, ports in (
                (self.lab.consul, [self.lab.consul.ports["http"]]),
                (self.lab.etcd, [int(self.lab.etcd.url.rpartition(":")[2])]),
                (self.lab.apiserver, [self.lab.apiserver.port]),
                (self.lab.controllers, [self.lab.controllers.port]),
            ):
                self.rig.house(server, *ports)
            self.lab.start()
            stack.callback(self._close_nodes)
            self._consul = stack.enter_context(self.lab.raw_consul())
            self._start_nodes()
            if self._service:
                for n in range(1, self._vms_count + 1):
                    self.open(n, self._service, PORT)
            self._addons()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.keep = self.keep or kind not in (None, KeyboardInterrupt)
        self._stack.close()

    @property
    def consul_address(self) -> str:
        """Consul, as pods reach it."""
        return f"http://{NODE}:{self.lab.consul.ports['http']}"

    def _configure(self) -> None:
        """The control plane for nodes: on an address that they reach, with a certificate that kubelets know."""
        files = self.lab.files
        users = trustme.CA.from_pem(files["users-ca.pem"].read_bytes(), files["users-ca.key"].read_bytes())
        client = users.issue_cert(
            "apiserver.example", common_name="kube-apiserver-kubelet-client", organization_name="system:masters"
        )
        pem, key = (self.lab.folder / "files" / f"kubelet-client.{end}" for end in ("pem", "key"))
        for path, blob in ((pem, client.cert_chain_pems[0].bytes()), (key, client.private_key_pem.bytes())):
            path.touch(mode=0o600)
            path.write_bytes(blob)
        self.lab.apiserver.flags = {
            "--bind-address": "0.0.0.0", "--authorization-mode": "Node,RBAC",
            "--advertise-address": NODE, "--endpoint-reconciler-type": "lease",
            "--enable-admission-plugins": "NodeRestriction",
            "--kubelet-client-certificate": str(pem), "--kubelet-client-key": str(key),
            "--kubelet-preferred-address-types": "InternalIP",
        }  # fmt: skip
        self.lab.controllers.flags = {
            "--controllers": "*", "--service-account-private-key-file": str(files["sa.key"]),
        }  # fmt: skip
        self.lab.consul.settings = {"client_addr": f"127.0.0.1 {NODE}"}
        names = [f"node-{n}" for n in range(1, self._nodes_count + 1)]
        users_of_tokens = [("system:kube-scheduler", ""), ("system:kube-proxy", "")]
        users_of_tokens += [(f"system:node:{name}", "system:nodes") for name in names]
        with files["tokens.csv"].open("a") as file:
            file.writelines(f'{_token(user)},{user},{user},"{group}"\n' for user, group in users_of_tokens)

    def _kubeconfig(self, user: str) -> Path:
        server = f"https://{NODE}:{self.lab.apiserver.port}"
        return self.lab.write_kubeconfig(user.replace(":", "-"), _token(user), server=server)

    def _start_nodes(self) -> None:
        scheduler = Scheduler(self.lab.folder / "kube-scheduler", self._kubeconfig("system:kube-scheduler"))
        scheduler.prefix = self.rig.node.prefix
        self.rig.adopt(scheduler).start(wait=False)
        for number, host in enumerate(self.rig.nodes, 1):
            node = Node(self.rig, host, number, self.lab.folder)
            self.nodes.append(node)
            node.prepare(self._kubeconfig(f"system:node:{node.name}"), self.lab.files)
            node.start()
        if self.nodes:  # the way of the control plane to Services: by any node's kube-proxy
            self.rig.node.run("ip", "route", "replace", netns.SERVICES, "via", self.nodes[-1].host.address)
        with self.lab.raw_kube() as kube:
            for node in self.nodes:
                wait_until(partial(_exists, kube, f"/api/v1/nodes/{node.name}"), NODE_SECONDS, f"{node.name} joining")
                self.start_proxy(node)
            for node in self.nodes:
                self.await_node(node)

    def start_proxy(self, node: Node) -> KubeProxy:
        """kube-proxy for a node."""
        folder = self.lab.folder / f"{node.name}-proxy"
        proxy = KubeProxy(folder, self._kubeconfig("system:kube-proxy"), node=node.name, pods=PODS)
        proxy.prefix = node.host.prefix
        self.rig.adopt(proxy)
        proxy.start(wait=False)
        return proxy

    def await_node(self, node: Node, *, ready: bool = True, within: float = NODE_SECONDS) -> float:
        """Wait until the API server calls a node ready, or not ready; the seconds it took."""
        began = time.monotonic()
        with self.lab.raw_kube() as kube:
            wait_until(
                lambda: _is_true(kube.get(f"/api/v1/nodes/{node.name}"), "Ready") is ready,
                within, f"{node.name} being {'' if ready else 'not '}ready", 0.1,
            )  # fmt: skip
        return time.monotonic() - began

    def _close_nodes(self) -> None:
        for node in self.nodes:
            with suppress(ProcessLookupError):
                node.kill()
        for node in self.nodes:
            node.close()

    # ------------------------------------------------------------------ the cluster

    def _addons(self) -> None:
        text = (Path(__file__).with_name("dns.yaml")).read_text().replace("LAST_NODE", self.nodes[-1].name)
        self.apply(text)
        self.kubectl("--namespace", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s")

    def kubectl(self, *arguments: str, stdin: str = "", check: bool = True, seconds: float = 180.0) -> str:
        """Run kubectl; what it printed, both streams together. Raises LabError with it when it fails."""
        done = subprocess.run(
            [str(binary("kubectl")), *arguments], input=stdin, text=True, timeout=seconds, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "KUBECONFIG": str(self.lab.kubeconfig)},
        )  # fmt: skip
        if check and done.returncode != 0:
            raise LabError(f"kubectl {' '.join(arguments)}: exit status {done.returncode}\n{done.stdout[-3000:]}")
        return done.stdout

    def apply(self, text: str, *arguments: str) -> None:
        """`kubectl apply --server-side` of objects in YAML."""
        self.kubectl("apply", "--server-side", *arguments, "--filename=-", stdin=text)

    def node_of(self, name: str) -> Node:
        """The node of that name."""
        return next(node for node in self.nodes if node.name == name)

    def log_of(self, namespace: str, pod: str) -> str:
        """What the containers of a pod have printed, also those that have ended; read where their node writes it."""
        lines = []
        for node in self.nodes:
            for file in sorted(node.logs.glob(f"{namespace}_{pod}_*/*/*.log")):
                for line in file.read_text(errors="replace").splitlines():
                    at, _, rest = line.partition(" ")  # TIME STREAM TAG TEXT
                    lines.append((at, rest.split(" ", 2)[2] if rest.count(" ") >= 2 else ""))
        return "".join(f"{text}\n" for _, text in sorted(lines, key=lambda entry: entry[0]))

    def program_on(self, node: Node, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Program:
        """A program in a node's network, beside its pods."""
        return self.rig.start(node.host, command, environment, name=name)


def _token(user: str) -> str:
    """A bearer token of the lab; each cluster is alone with its own API server."""
    return secret(f"lab-token-of-{user.replace(':', '-')}")


def _exists(kube: RawKube, path: str) -> bool:
    return kube.get(path) is not None


def _is_true(found: Any, kind: str) -> bool:
    conditions = (found or {}).get("status", {}).get("conditions", [])
    return any(c["type"] == kind and c["status"] == "True" for c in conditions)


__all__ = ["DNS", "Cluster", "prepare", "trouble"]
