"""VMs, a cluster node and a pod as network namespaces of this machine, so that traffic takes its real way.

    node 10.77.0.1 -- bridge -- vm 1..N 10.77.0.11...      10.78.0.2 pod -- node
         fd77::1                        fd77::11...        fd78::2
    what runs in the node shares its loopback; VMs and the pod reach each other and the node through it

Nothing outside of these namespaces is touched: no interface, route, rule or setting of the machine itself. Each
namespace lives as long as one sleeping process of ours, so all of it ends with us, however that happens. As root they
are plain network namespaces, for anyone else inside a user namespace.

Servers out here and in the node meet on 127.0.0.1 by relays: `expose` brings a port of the node's loopback out here,
`bring_in` one of ours into the node.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.lab.build import LabError
from tests.support.lab.servers import KubeProxy, Program, Server, spawn, wait_until

if TYPE_CHECKING:
    from tests.support.lab import Lab

PROGRAMS = {"ip": "iproute2", "nsenter": "util-linux", "unshare": "util-linux", "setpriv": "util-linux"}
PROXY_PROGRAMS = {"nftables": {"nft": "nftables"}, "iptables": {"iptables": "iptables", "ip6tables": "iptables"}}
# A rule of the kind that the mode makes: programs may be there for which the kernel has nothing.
_PROXY_TRIES = {
    "nftables": (
        "nft", "add table ip try { chain nat { type nat hook output priority -100 ; numgen random mod 2 0 drop ; } ; }",
    ),
    "iptables": (
        "iptables", "-t", "nat", "-A", "OUTPUT", "-m", "comment", "--comment", "try",
        "-m", "statistic", "--mode", "random", "--probability", "0.5", "-j", "MARK", "--or-mark", "0x4000",
    ),
}  # fmt: skip
NODE, POD = "10.77.0.1", "10.78.0.2"
NODE6, POD6 = "fd77::1", "fd78::2"
PODS, PODS6 = "10.78.0.0/24", "fd78::/64"
SERVICES, SERVICES6 = "10.96.0.0/16", "fd00:96::/108"
MOST_VMS = 200
MOST_NODES = 8
COMMAND_SECONDS = 30.0

_RELAY = Path(__file__).with_name("relay.py")
# Makes the listening socket where it runs and sends it out through an inherited socket.
_LISTEN = (
    "import socket, sys; way = socket.socket(fileno=int(sys.argv[1])); "
    "made = socket.create_server(('127.0.0.1', int(sys.argv[2]))); socket.send_fds(way, [b'x'], [made.fileno()])"
)


def trouble(*, proxy: bool = False, mode: str = "nftables") -> str | None:
    """What keeps this machine from having a `Rig` (and a kube-proxy of a mode in it), None when nothing does."""
    if sys.platform != "linux":
        return f"network namespaces are Linux's, this is {sys.platform}"
    needed = {**PROGRAMS, **(PROXY_PROGRAMS[mode] if proxy else {})}
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = sorted({package for name, package in needed.items() if shutil.which(name, path=path) is None})
    if missing:
        return f"not installed: {', '.join(missing)} (apt-get install --no-install-recommends {' '.join(missing)})"
    tried = subprocess.run(
        [*_unshare(), "ip", "link", "add", "br0", "type", "bridge"],
        capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False,
    )  # fmt: skip
    if tried.returncode != 0:
        return f"no network namespace with a bridge can be made here: {_last_line(tried.stderr)}"
    if proxy:
        tried = subprocess.run(
            [*_unshare(), *_PROXY_TRIES[mode]], env={**os.environ, "PATH": path},
            capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False,
        )  # fmt: skip
        if tried.returncode != 0:
            return f"this kernel has not what kube-proxy's {mode} mode needs: {_last_line(tried.stderr)}"
    return None


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[0]


def has_ipv6() -> bool:
    """Whether this machine's kernel does IPv6; a `Rig` has it then, whatever the machine itself uses."""
    return Path("/proc/sys/net/ipv6").is_dir()


def _refuse(reason: str | None) -> None:
    if reason is not None:
        raise LabError(reason)


def _unshare() -> list[str]:
    return ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace with its addresses. `prefix`: the words before a command that make it run there."""

    name: str
    address: str
    address6: str
    pid: int
    prefix: tuple[str, ...]

    def run(
        self, *command: str, check: bool = True, seconds: float = COMMAND_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there to its end. Raises LabError with what it said when it fails."""
        done = subprocess.run(
            [*self.prefix, *command], capture_output=True, text=True, timeout=seconds, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if check and done.returncode != 0:
            raise LabError(f"on {self.name}: {' '.join(command)[:200]}: {done.stderr.strip()[-1000:]}")
        return done

    def python(self, code: str, *arguments: str) -> str:
        """Run Python there; what it printed."""
        return self.run(sys.executable, "-c", code, *arguments).stdout


class Rig:
    """The namespaces; a context manager. `node`, `vms`, `nodes` and `pod` are there inside of the block."""

    def __init__(self, vms: int = 3, folder: Path | None = None, nodes: int = 0) -> None:
        """`folder`: where the programs' logs are kept; without one they go with the rig.

        `nodes`: machines beside the VMs for a cluster with pods (pods/), whose control plane is in `node`.
        """
        if not 0 <= vms <= MOST_VMS:
            raise LabError(f"a rig has up to {MOST_VMS} VMs, not {vms}")
        if not 0 <= nodes <= MOST_NODES:
            raise LabError(f"a rig has up to {MOST_NODES} nodes, not {nodes}")
        self.vms: list[Host] = []
        self.nodes: list[Host] = []
        self._count = vms
        self._nodes_count = nodes
        self._started: list[Server] = []
        self._node_of: Lab | None = None
        self._held: list[subprocess.Popen[bytes]] = []
        self._logs_go = folder is None
        self._folder = folder or Path(tempfile.mkdtemp(prefix="bridge-rig-"))

    def __enter__(self) -> Rig:
        try:
            _refuse(trouble())
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything that runs in the namespaces; they end with the last of it."""
        if self._node_of is not None:
            with self._node_of.raw_kube() as kube:
                kube.delete("/api/v1/nodes/rig")
            self._node_of = None
        for server in reversed(self._started):
            server.kill()
        for process in reversed(self._held):
            process.kill()
        for process in self._held:
            process.wait(10)
        self._started, self._held, self.vms, self.nodes = [], [], [], []
        if self._logs_go:
            shutil.rmtree(self._folder, ignore_errors=True)

    # ------------------------------------------------------------------ what runs there

    def start(
        self, host: Host, command: Sequence[str], environment: Mapping[str, str] | None = None, name: str = ""
    ) -> Program:
        """Start a program on a host, under the lab's care: kill, pause and restart it as any server."""
        folder = self._folder / (name or f"{host.name}-{len(self._started)}")
        program = Program(folder, command, environment if environment is not None else os.environ)
        program.prefix = host.prefix
        self._started.append(program)
        program.start()
        return program

    def adopt(self, server: Server) -> Server:
        """Look after a server that runs in one of the namespaces: it ends with the rig."""
        self._started.append(server)
        return server

    def cut(self, n: int, *, off: bool) -> None:
        """Take VM n off the network, or put it back: no packet reaches it, and no FIN or reset tells of it."""
        self.node.run("ip", "link", "set", f"v{n}", "down" if off else "up")

    def house(self, server: Server, *ports: int) -> None:
        """Let a server run in the node from its next start on, its `ports` reachable out here as before."""
        server.prefix = self.node.prefix
        for port in ports:
            self.expose(port)

    def kube_proxy(self, lab: Lab, mode: str = "nftables") -> KubeProxy:
        """kube-proxy on the node, for the lab's cluster; the pod and the node then reach its Services.

        `mode`: nftables or iptables. One rig has one kube-proxy: another mode's rules would stay beside its own.
        """
        _refuse(trouble(proxy=True, mode=mode))
        self.bring_in(lab.apiserver.port)
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "rig"}}
        with lab.raw_kube() as kube:
            kube.apply("/api/v1/nodes/rig", node)
            addresses = [NODE, NODE6] if has_ipv6() else [NODE]
            # Not by apply: to that, two addresses of one type are one and the same.
            status = {"status": {"addresses": [{"type": "InternalIP", "address": a} for a in addresses]}}
            kube.json("PATCH", "/api/v1/nodes/rig/status", status, "application/merge-patch+json")
        self._node_of = lab
        pods = f"{PODS},{PODS6}" if has_ipv6() else PODS
        proxy = KubeProxy(self._folder / "kube-proxy", lab.kubeconfig, node="rig", pods=pods, mode=mode)
        proxy.prefix = self.node.prefix
        self._started.append(proxy)
        proxy.start()
        return proxy

    # ------------------------------------------------------------------ loopbacks that meet

    def expose(self, port: int) -> None:
        """127.0.0.1:port out here is 127.0.0.1:port of the node."""
        with socket.create_server(("127.0.0.1", port)) as listener:
            self._relay(listener, port, self.node.prefix)

    def bring_in(self, port: int) -> None:
        """127.0.0.1:port of the node is 127.0.0.1:port out here."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            done = subprocess.run(
                [*self.node.prefix, sys.executable, "-c", _LISTEN, str(theirs.fileno()), str(port)],
                pass_fds=(theirs.fileno(),), capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False,
            )  # fmt: skip
            if done.returncode != 0:
                raise LabError(f"port {port} of the node cannot be had: {done.stderr.strip()[-500:]}")
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        with socket.socket(fileno=descriptors[0]) as listener:
            self._relay(listener, port, ())

    def _relay(self, listener: socket.socket, port: int, prefix: Sequence[str]) -> None:
        # A socket belongs to the network in which it was made: the relay accepts there and connects where it runs.
        command = [*prefix, sys.executable, "-S", str(_RELAY), str(listener.fileno()), str(port)]
        self._held.append(spawn(command, pass_fds=(listener.fileno(),), stdin=subprocess.DEVNULL))

    # ------------------------------------------------------------------ building it

    def _build(self) -> None:
        self.node = self._host("node", NODE, NODE6, ())
        self.vms = [
            self._host(f"vm-{n}", f"10.77.0.{10 + n}", f"fd77::{10 + n}", self.node.prefix)
            for n in range(1, self._count + 1)
        ]
        self.nodes = [
            self._host(f"node-{n}", f"10.77.0.{1 + n}", f"fd77::{1 + n}", self.node.prefix)
            for n in range(1, self._nodes_count + 1)
        ]
        self.pod = self._host("pod", POD, POD6, self.node.prefix)
        commands = ["link set lo up", "link add br0 type bridge mcast_snooping 0"]
        links = [(f"v{n}", vm) for n, vm in enumerate(self.vms, 1)]
        links += [(f"n{n}", node) for n, node in enumerate(self.nodes, 1)]
        for link, host in links:
            commands += [
                f"link add {link} type veth peer name eth0 netns {host.pid}", f"link set {link} master br0 up",
            ]  # fmt: skip
        commands += [
            f"link add p0 type veth peer name eth0 netns {self.pod.pid}",
            *_addresses("br0", NODE, NODE6),
            *_addresses("p0", "10.78.0.1", "fd78::1"),
            # Any way will do for the node's own connections to Services: kube-proxy's rules turn them round.
            f"route add {SERVICES} dev br0",
            *([f"route add {SERVICES6} dev br0"] if has_ipv6() else []),
        ]
        self._ip(self.node, commands)
        for family, services in (("-4", SERVICES), *([("-6", SERVICES6)] if has_ipv6() else [])):
            # What the pod sends to a cluster address that kube-proxy does not know yet is refused before the kernel has
            # an entry of the connection. With the route above it would be sent on as it is: the entry, which leads to
            # no endpoint, would stand for two minutes, and swallow each later connection from the same port of the pod.
            self.node.run("ip", family, "rule", "add", "iif", "p0", "to", services, "unreachable")
        ways = dict.fromkeys([*self.vms, *self.nodes], (NODE, NODE6)) | {self.pod: ("10.78.0.1", "fd78::1")}
        for host, (way, way6) in ways.items():
            self._ip(host, [
                "link set lo up", *_addresses("eth0", host.address, host.address6), f"route add default via {way}",
                *([f"route add ::/0 via {way6}"] if has_ipv6() else []),
            ])  # fmt: skip
        self.node.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        if has_ipv6():
            self.node.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")

    def _host(self, name: str, address: str, address6: str, inside: Sequence[str]) -> Host:
        """A process that sleeps in a new network namespace, made from `inside`."""
        root = os.geteuid() == 0
        unshare = ["unshare", "--net"] if root or inside else _unshare()
        # Entering a user namespace changes who one is, and the kernel then forgets whose death is to be followed.
        die = ["setpriv", "--pdeathsig", "KILL", "--"]
        sleeper = spawn([*inside, *unshare, *die, "sleep", "infinity"], stdin=subprocess.DEVNULL)
        self._held.append(sleeper)

        def asleep() -> bool:  # the last of the programs in the chain: it is inside then
            if sleeper.poll() is not None:
                raise LabError(f"the namespace {name} could not be made (exit status {sleeper.returncode})")
            return Path(f"/proc/{sleeper.pid}/comm").read_text().strip() == "sleep"

        wait_until(asleep, 30, f"the namespace {name} being there")
        user = () if root else ("--user", "--preserve-credentials")
        prefix = ("nsenter", f"--target={sleeper.pid}", *user, "--net", "--", *die)
        host = Host(name, address, address6, sleeper.pid, prefix)
        if has_ipv6():  # some machines switch it off in every new namespace
            host.run("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
        return host

    @staticmethod
    def _ip(host: Host, commands: Sequence[str]) -> None:
        done = subprocess.run(
            [*host.prefix, "ip", "-batch", "-"], input="\n".join(commands) + "\n", capture_output=True, text=True,
            timeout=COMMAND_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise LabError(f"on {host.name}: ip: {done.stderr.strip()[-1000:]}")


def _addresses(link: str, address: str, address6: str) -> list[str]:
    """The arguments of `ip` for a link to be up with an address of each family that the machine has."""
    # nodad: no other host can have these addresses, and asking round would take a second or two.
    sixth = [f"address add {address6}/64 dev {link} nodad"] if has_ipv6() else []
    return [f"address add {address}/24 dev {link}", f"link set {link} up", *sixth]
