"""The servers of the lab as objects: started on ports of their own, stopped, killed, paused, started again.

Every process gets SIGKILL from the kernel when the process that started it dies, however that happens, so nothing is
left behind. A server keeps its ports and its data for as long as its object lives.
"""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.support.lab.build import LabError
from tests.support.lab.providers import binary
from tests.support.lab.secret_scan import secret

_PR_SET_PDEATHSIG = 1
CONTROLLERS = (
    "endpointslicemirroring", "endpointslice", "endpoint", "namespace", "garbagecollector", "serviceaccount",
    "root-ca-cert-publisher",
)  # fmt: skip
"""By the names from before 1.28, which later versions know as well."""


PORT_SHARE = "LAB_PORT_SHARE"
"""A variable of the environment: `1/3` says that three runs go on side by side, and that this is the second of them.

Each takes ports of its own. A port that one run keeps for a server that is down now would look free to another."""
_LOWEST_PORT = 10_000
AUDIT_MEGABYTES = 4096
"""The API server begins another audit log at 100 MB by default; tests and benchmarks read one."""
_given: set[int] = set()


def free_port() -> int:
    """A TCP port of loopback that no process uses now, never given twice by this process.

    Below the range from which the kernel takes ports for outgoing connections: while a server is down, one of the many
    clients that try to reach it again would otherwise get its port some day, and the server could not come back.
    """
    try:
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        low = 32_768
    share, _, of = os.environ.get(PORT_SHARE, "0/1").partition("/")
    wide = (low - _LOWEST_PORT) // int(of)
    first = _LOWEST_PORT + int(share) * wide
    for _ in range(1000):
        port = random.randrange(first, first + wide) if low > _LOWEST_PORT + 5000 else 0
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            port = int(sock.getsockname()[1])
        if port not in _given:
            _given.add(port)
            return port
    raise LabError("no free port on 127.0.0.1")


def die_with_parent() -> None:
    """Runs in the child before it becomes the server."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def wait_until(condition: Callable[[], bool], seconds: float, what: str, step: float = 0.02) -> None:
    """Wait until `condition` holds. Raises LabError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            raise LabError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(step)


_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lab-spawner")


def spawn(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that dies with this one.

    From one thread that lives as long as we do: the kernel's signal comes when the parent's THREAD ends.
    """

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, preexec_fn=die_with_parent, **options)

    return _SPAWNER.submit(start).result()


class Server:
    """A process with a folder for its data and its log."""

    program = ""
    ready_seconds = 60.0
    borrowed = False
    """It existed already: used, neither started nor stopped."""
    prefix: Sequence[str] = ()
    """Words before the program: how to get into the namespace where it runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def arguments(self) -> Sequence[str]:
        """The command line after the program."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Whether it does its work."""
        raise NotImplementedError

    def start(self, wait: bool = True) -> None:
        """Start it; `wait` until it is ready."""
        self._must_be_ours()
        if self.running:
            raise LabError(f"{self.program} runs already (process {self.pid})")
        path = binary(self.program)
        with self.log.open("ab") as log:
            command = [*self.prefix, str(path), *self.arguments()]
            self._process = spawn(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder)
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until it is ready; LabError with the end of its log when it died or takes too long."""

        def ready() -> bool:
            if not self.running:
                raise LabError(f"{self.program} ended at its start:\n{self.log_end()}")
            return self.is_ready()

        try:
            wait_until(ready, self.ready_seconds, f"{self.program} becoming ready")
        except LabError as error:
            raise LabError(f"{error}\n{self.log_end()}") from None

    def log_end(self, characters: int = 2000) -> str:
        """The last of its log."""
        return self.log.read_text(errors="replace")[-characters:] if self.log.exists() else ""

    @property
    def pid(self) -> int:
        """Process id; LabError when it does not run."""
        if self._process is None:
            raise LabError(f"{self.program} does not run")
        return self._process.pid

    @property
    def is_process(self) -> bool:
        """Whether a process out here is the server, and runs."""
        return self._process is not None and self.running

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End it with SIGTERM, after ten seconds with SIGKILL."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: alive, and silent."""
        self._must_be_ours()
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._must_be_ours()
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Start again on the same ports and data, whether or not it still runs."""
        self.kill()
        self.start()

    def _must_be_ours(self) -> None:
        if self.borrowed:
            raise LabError(f"{self.program} is not the lab's own (LAB_PROVIDER=env): the lab does not start or stop it")

    def _end(self, how: signal.Signals) -> None:
        self._must_be_ours()
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)  # one that is paused acts on SIGTERM only when it goes on
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def answers(
    url: str, context: Any = None, expect: Callable[[bytes], bool] = lambda _body: True, token: str = ""
) -> bool:
    """Whether a GET is answered with 200 and a body as expected. Never through a proxy of the environment."""
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), *([urllib.request.HTTPSHandler(context=context)] if context else [])
    )
    request = urllib.request.Request(url, headers={"X-Consul-Token": token} if token else {})
    try:
        with opener.open(request, timeout=2) as answer:
            return bool(answer.status == 200 and expect(answer.read()))
    except (OSError, http.client.HTTPException):
        return False


def with_flags(arguments: Sequence[str], flags: Mapping[str, str]) -> tuple[str, ...]:
    """A command line of flags and values with other values, and further flags, at its end."""
    changed = list(arguments)
    for flag, value in flags.items():
        if flag in changed:
            changed[changed.index(flag) + 1] = value
        else:
            changed += [flag, value]
    return tuple(changed)


class Etcd(Server):
    """One etcd that does not wait for the disk."""

    program = "etcd"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.url = f"http://127.0.0.1:{free_port()}"
        self._peer = f"http://127.0.0.1:{free_port()}"

    def arguments(self) -> Sequence[str]:
        return (
            "--data-dir", str(self.folder / "data"),
            "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
            "--listen-peer-urls", self._peer, "--initial-advertise-peer-urls", self._peer,
            "--initial-cluster", f"default={self._peer}", "--unsafe-no-fsync", "--log-level", "warn",
        )  # fmt: skip

    def is_ready(self) -> bool:
        return answers(f"{self.url}/health", expect=lambda body: b'"true"' in body)


class ApiServer(Server):
    """kube-apiserver with RBAC, an audit log, and a certificate of the lab's authority."""

    program = "kube-apiserver"

    def __init__(self, folder: Path, etcd: Etcd, files: Mapping[str, Path], context: Any) -> None:
        super().__init__(folder)
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.audit_log = folder / "audit.log"
        self.service_ranges = "10.96.0.0/16"
        self.flags: dict[str, str] = {}
        """Other values, and further flags; they count at the next start."""
        self._etcd = etcd
        self._files = files
        self._context = context
        (folder / "audit.json").write_text(
            json.dumps({
                "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
                "rules": [
                    {"level": "Request", "resources": [{"group": "coordination.k8s.io", "resources": ["leases"]}]},
                    {"level": "Metadata"},
                ],
            })
        )  # fmt: skip

    def arguments(self) -> Sequence[str]:
        files = self._files
        plain = (
            "--etcd-servers", self._etcd.url, "--secure-port", str(self.port), "--bind-address", "127.0.0.1",
            "--tls-cert-file", str(files["server.pem"]), "--tls-private-key-file", str(files["server.key"]),
            "--cert-dir", str(self.folder / "certs"), "--client-ca-file", str(files["users-ca.pem"]),
            "--service-account-key-file", str(files["sa.pub"]),
            "--service-account-signing-key-file", str(files["sa.key"]),
            "--service-account-issuer", "https://kubernetes.default.svc", "--token-auth-file", str(files["tokens.csv"]),
            "--authorization-mode", "RBAC", "--service-cluster-ip-range", self.service_ranges,
            "--endpoint-reconciler-type", "none", "--advertise-address", "10.255.255.1",
            "--audit-log-path", str(self.audit_log), "--audit-policy-file", str(self.folder / "audit.json"),
            "--audit-log-maxsize", str(AUDIT_MEGABYTES),
        )  # fmt: skip
        return with_flags(plain, self.flags)

    def is_ready(self) -> bool:
        return answers(f"{self.url}/readyz", self._context, lambda body: body.strip() == b"ok")


class ControllerManager(Server):
    """The controllers that have to do with Services, Endpoints and namespaces."""

    program = "kube-controller-manager"

    def __init__(self, folder: Path, kubeconfig: Path, files: Mapping[str, Path], context: Any) -> None:
        super().__init__(folder)
        self.port = free_port()
        self.flags: dict[str, str] = {}
        """As the API server's."""
        self._kubeconfig = kubeconfig
        self._files = files
        self._context = context

    def arguments(self) -> Sequence[str]:
        plain = (
            "--kubeconfig", str(self._kubeconfig), "--controllers", ",".join(CONTROLLERS), "--leader-elect=false",
            "--kube-api-qps=500", "--kube-api-burst=1000",
            "--secure-port", str(self.port), "--bind-address", "127.0.0.1",
            "--tls-cert-file", str(self._files["server.pem"]), "--tls-private-key-file", str(self._files["server.key"]),
            "--root-ca-file", str(self._files["ca.pem"]), "--cert-dir", str(self.folder / "certs"),
            "--use-service-account-credentials=false",
        )  # fmt: skip
        return with_flags(plain, self.flags)

    def is_ready(self) -> bool:
        return answers(f"https://127.0.0.1:{self.port}/healthz", self._context, lambda body: body.strip() == b"ok")


class Consul(Server):
    """A Consul server that keeps its data; `acl` gives it default deny and a management token."""

    program = "consul"

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "server-1",
        acl: bool = False,
        expect: int = 1,
        files: Mapping[str, Path] | None = None,
        mtls: bool = False,
    ) -> None:
        """`files`: certificates, for an HTTPS port beside the plain one; `mtls`: it asks for a client's certificate."""
        super().__init__(folder)
        self.name = name
        self.token = secret("3f0ad9b5-6c41-4ac4-9b54-2d0a1e4f6c7d") if acl else ""
        self.ports = {k: free_port() for k in ("http", "server", "serf_lan", "serf_wan", "grpc", "grpc_tls")}
        self.address = f"http://127.0.0.1:{self.ports['http']}"
        self.https_address = ""
        if files is not None:
            self.ports["https"] = free_port()
            self.https_address = f"https://127.0.0.1:{self.ports['https']}"
        self.settings: dict[str, Any] = {}
        """Further settings of its configuration file, for a test that needs them; they count at the next start."""
        self._files = files
        self._mtls = mtls
        self._expect = expect
        self._peers: Sequence[Consul] = ()
        self._acl = acl

    def join(self, peers: Sequence[Consul]) -> None:
        """Servers to find at the start."""
        self._peers = [p for p in peers if p is not self]

    def arguments(self) -> Sequence[str]:
        settings: dict[str, Any] = {
            "server": True,
            "bootstrap_expect": self._expect,
            "node_name": self.name,
            "datacenter": "dc1",
            "data_dir": str(self.folder / "data"),
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "ports": {**self.ports, "dns": -1},
            "performance": {"raft_multiplier": 1},
            "retry_join": [f"127.0.0.1:{p.ports['serf_lan']}" for p in self._peers],
            "enable_script_checks": False,
            "disable_update_check": True,
            "ui_config": {"enabled": False},
            "log_level": "warn",
            "leave_on_terminate": False,
        }
        if self._acl:
            settings["acl"] = {
                "enabled": True,
                "default_policy": "deny",
                "tokens": {"initial_management": self.token, "agent": self.token},
            }
        if self._files is not None:
            settings["tls"] = {
                "defaults": {
                    "ca_file": str(self._files["ca.pem"]),
                    "cert_file": str(self._files["server.pem"]),
                    "key_file": str(self._files["server.key"]),
                },
                "https": {"verify_incoming": self._mtls},
                "grpc": {"use_auto_cert": False},
            }
        settings |= self.settings
        (self.folder / "consul.json").write_text(json.dumps(settings))
        return ("agent", "-config-file", str(self.folder / "consul.json"))

    def is_ready(self) -> bool:
        # A leader that is known is not yet one that serves: the catalog, which it keeps, has Consul itself in it. Asked
        # consistently, it answers only when all that its disk holds is in the catalog again.
        led = answers(f"{self.address}/v1/status/leader", expect=lambda body: body.strip() != b'""')
        return led and answers(
            f"{self.address}/v1/catalog/services?consistent", expect=lambda body: b'"consul"' in body, token=self.token
        )

    def restart(self, empty: bool = False) -> None:
        """Start again; `empty`: without the data it had."""
        self.kill()
        if empty:
            shutil.rmtree(self.folder / "data", ignore_errors=True)
        self.start()


class Scheduler(Server):
    """kube-scheduler: pods find their nodes by it."""

    program = "kube-scheduler"

    def __init__(self, folder: Path, kubeconfig: Path) -> None:
        super().__init__(folder)
        self._kubeconfig = kubeconfig

    def arguments(self) -> Sequence[str]:
        return ("--kubeconfig", str(self._kubeconfig), "--leader-elect=false", "--secure-port", "0")

    def is_ready(self) -> bool:
        return self.running  # it opens no port; that it works is seen by the first pod


class KubeProxy(Server):
    """kube-proxy in the network namespace that `prefix` enters (netns.py): it writes nftables rules there."""

    program = "kube-proxy"

    def __init__(self, folder: Path, kubeconfig: Path, *, node: str, pods: str, mode: str = "nftables") -> None:
        """`node`: name of a Node object that has an InternalIP; `pods`: the subnet that counts as pods."""
        super().__init__(folder)
        self.health_port = free_port()
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": mode,
            "clientConnection": {"kubeconfig": str(kubeconfig)}, "hostnameOverride": node,
            "detectLocalMode": "ClusterCIDR", "clusterCIDR": pods,
            "healthzBindAddress": f"127.0.0.1:{self.health_port}", "metricsBindAddress": f"127.0.0.1:{free_port()}",
            # No sysctl is written: in a namespace these are not ours to write.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            mode: {"minSyncPeriod": "0s", "syncPeriod": "30s"},
        }  # fmt: skip
        (folder / "kube-proxy.json").write_text(json.dumps(config))

    def arguments(self) -> Sequence[str]:
        return ("--config", str(self.folder / "kube-proxy.json"))

    def is_ready(self) -> bool:
        # Asked from where it runs: its health port is on that namespace's own loopback.
        code = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{self.health_port}/healthz', timeout=2)"
        return (
            subprocess.run([*self.prefix, sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
        )


class Toxiproxy(Server):
    """A proxy that breaks connections on request (its HTTP API at `url`)."""

    program = "toxiproxy"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def arguments(self) -> Sequence[str]:
        return ("-host", "127.0.0.1", "-port", str(self.port))

    def is_ready(self) -> bool:
        return answers(f"{self.url}/version")


class CoreDns(Server):
    """CoreDNS that answers for a cluster's Services under cluster.local, on loopback, with nothing kept for later."""

    program = "coredns"

    def __init__(self, folder: Path, kubeconfig: Path) -> None:
        super().__init__(folder)
        self.port = free_port()
        cluster = f"kubernetes cluster.local {{\n    kubeconfig {kubeconfig}\n    ttl 0\n  }}"
        (folder / "Corefile").write_text(f".:{self.port} {{\n  bind 127.0.0.1\n  errors\n  {cluster}\n}}\n")

    def arguments(self) -> Sequence[str]:
        return ("-conf", str(self.folder / "Corefile"))

    def is_ready(self) -> bool:
        # It listens by TCP, too, and not before it has seen every Service (or five seconds have passed).
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0


class Program(Server):
    """Any other program that a test or the demonstration runs, under the same care."""

    def __init__(
        self,
        folder: Path,
        command: Sequence[str],
        environment: Mapping[str, str],
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__(folder)
        self.program = Path(command[0]).name
        self._command = command
        self._environment = dict(environment)
        self._ready = ready
        self.status: int | None = None

    def start(self, wait: bool = True) -> None:
        """Start it; `wait` until it is ready."""
        with self.log.open("ab") as log:
            self._process = spawn(
                [*self.prefix, *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self._environment,
            )
        if wait:
            self.wait_ready()

    def is_ready(self) -> bool:
        return self._ready()

    def wait(self, seconds: float) -> int:
        """Wait for its end; its exit status."""
        if self._process is None:
            raise LabError(f"{self.program} does not run")
        return self._process.wait(seconds)


def python() -> str:
    """The interpreter of this environment."""
    return sys.executable
