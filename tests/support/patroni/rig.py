"""Three VMs with a Consul agent, PostgreSQL and Patroni each, a Consul server, a cluster and a bridge.

The VMs are network namespaces (`tests.support.lab.netns`), so each has an address that Kubernetes takes and can be cut
off. PostgreSQL refuses to run as root: it and Patroni run as the user of Debian's package, from a virtual environment
that this user can enter.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml

from tests.support.lab import Lab, binary, wait_until
from tests.support.lab.netns import NODE, Host, Rig
from tests.support.lab.servers import Program, Server
from tests.support.program import Daemon, environment

HERE = Path(__file__).parent
ENVIRONMENT = Path("/var/tmp/consul-endpoints-bridge-patroni")  # a place that other users can enter
POSTGRES = Path("/usr/lib/postgresql")
USER = "postgres"
SCOPE = "db"
NAMESPACE = "default"
PORT = 5432
SETTLE_SECONDS = 90.0

RULES = {
    "by rule": {"name": "db-rule"},
    "min_ready": {"name": "db-kept"},
}
ASKED = "db-asked"


def trouble() -> str | None:
    """What keeps this machine from running it, None when nothing does."""
    if os.geteuid() != 0:
        return "root is needed: PostgreSQL runs as another user, in network namespaces"
    if not any(POSTGRES.glob("*/bin/postgres")):
        return "PostgreSQL is not installed (apt-get install --no-install-recommends postgresql)"
    return None


def install() -> Path:
    """The pinned Patroni in a virtual environment that the user postgres can enter; its folder of programs."""
    wanted = (HERE / "requirements.txt").read_text()
    stamp = ENVIRONMENT / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"patroni: installing the pinned packages into {ENVIRONMENT}", flush=True)
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", "--copies", str(ENVIRONMENT)], check=True)
        pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(HERE / "requirements.txt")], check=True)
        stamp.write_text(wanted)
    return ENVIRONMENT / "bin"


class Machine:
    """One VM. `sampler` writes what its PostgreSQL says of itself."""

    def __init__(self, n: int, host: Host, folder: Path, programs: Path) -> None:
        self.n, self.host, self.folder, self.programs = n, host, folder, programs
        self.name = f"vm-{n}"
        self.cut = False
        self.agent: Program
        self.patroni: Program
        self.sampler: Program

    def pids(self) -> list[int]:
        """The processes in its network, but for the one that keeps it open and the sampler."""
        ours = Path(f"/proc/{self.host.pid}/ns/net").readlink()
        kept = {self.host.pid, self.sampler.pid}
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) not in kept:
                try:
                    if (entry / "ns" / "net").readlink() == ours:
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found

    def postmaster(self) -> int:
        """The process id of its PostgreSQL."""
        return int((self.folder / "data" / "postmaster.pid").read_text().split()[0])

    def samples(self) -> list[tuple[float, str]]:
        """When it said what."""
        text = self.sampler.log.read_text()
        rows = [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]
        return [(float(row[0]), row[1]) for row in rows if len(row) == 2 and row[1] in ("primary", "replica", "down")]

    def says(self) -> str:
        """What it says now."""
        found = self.samples()
        return found[-1][1] if found and time.time() - found[-1][0] < 5 else "down"


class Cluster:
    """Everything, running; a context manager."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.machines: list[Machine] = []

    def __enter__(self) -> Cluster:
        programs = install()
        version = max(POSTGRES.glob("*/bin/postgres"), key=lambda path: int(path.parts[-3])).parent
        with ExitStack() as stack:
            self.lab = Lab(own=True)
            stack.callback(self.lab.close)
            self.rig = stack.enter_context(Rig(3, self.lab.folder / "rig"))
            data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bridge-patroni-")))
            data.chmod(0o755)
            serf = self.lab.consul.ports["serf_lan"]
            self.lab.consul.settings = {"bind_addr": NODE}
            self.rig.house(self.lab.consul, self.lab.consul.ports["http"])
            self.lab.start()
            for n, host in enumerate(self.rig.vms, 1):
                folder = data / f"vm-{n}"
                folder.mkdir()
                shutil.chown(folder, USER, USER)
                machine = Machine(n, host, folder, programs)
                self._configure(machine, version, serf)
                self.machines.append(machine)
                self.start_agent(machine)
                self.start_patroni(machine)
                machine.sampler = self.rig.start(
                    host, [str(programs / "python"), str(HERE / "sample.py")], {"PATH": os.environ["PATH"]},
                    name=f"sampler-{n}",
                )  # fmt: skip
                if n == 1:
                    wait_until(lambda: self.primary() is not None, SETTLE_SECONDS, "a first primary")
            wait_until(lambda: len(self.said("replica")) == 2, SETTLE_SECONDS, "two replicas")
            self._services()
            self.bridge = self._bridge()
            self.lab.add(self.bridge)
            self.bridge.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self.machines:
            self.power_off(machine)
        self._stack.close()

    # ------------------------------------------------------------------ what is there

    def said(self, what: str) -> list[Machine]:
        """The machines that say so of themselves."""
        return [machine for machine in self.machines if machine.says() == what]

    def primary(self) -> Machine | None:
        """The one that says that it is, and can be reached; None when none or several do."""
        found = [machine for machine in self.said("primary") if not machine.cut]
        return found[0] if len(found) == 1 else None

    def settled(self, replicas: int = 2) -> bool:
        """Whether there is one primary, and the rest follow it."""
        return self.primary() is not None and len(self.said("replica")) == replicas

    # ------------------------------------------------------------------ what happens

    def start_agent(self, machine: Machine) -> None:
        """Start a VM's Consul agent."""
        machine.agent = self.rig.start(
            machine.host,
            [str(binary("consul")), "agent", "-config-file", str(machine.folder / "agent.json")],
            {"PATH": os.environ["PATH"]},
            name=f"agent-{machine.n}",
        )

    def start_patroni(self, machine: Machine) -> None:
        """Start a VM's Patroni, which starts PostgreSQL."""
        drop = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "--"]
        drop += ["env", f"--chdir={machine.folder}"]  # it must be able to enter where it is
        machine.patroni = self.rig.start(
            machine.host,
            [*drop, str(machine.programs / "patroni"), str(machine.folder / "patroni.yaml")],
            {"PATH": f"{machine.programs}:{os.environ['PATH']}", "HOME": str(machine.folder), "LANG": "C.UTF-8"},
            name=f"patroni-{machine.n}",
        )

    def power_off(self, machine: Machine) -> None:
        """Everything on a VM ends at once."""
        for pid in machine.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def power_on(self, machine: Machine) -> None:
        """The VM comes back."""
        machine.agent.kill()
        machine.patroni.kill()
        self.start_agent(machine)
        self.start_patroni(machine)

    def link(self, machine: Machine, *, up: bool) -> None:
        """Take a VM off the network, or put it back."""
        self.rig.node.run("ip", "link", "set", f"v{machine.n}", "up" if up else "down")
        machine.cut = not up

    def switch_over(self, leader: Machine, candidate: Machine) -> None:
        """What `patronictl switchover` does."""
        code = (
            "import sys, urllib.request; urllib.request.urlopen(urllib.request.Request(sys.argv[1], "
            "data=sys.argv[2].encode(), headers={'Content-Type': 'application/json'}), timeout=60).read()"
        )
        body = json.dumps({"leader": leader.name, "candidate": candidate.name})
        leader.host.run(sys.executable, "-c", code, "http://127.0.0.1:8008/switchover", body, seconds=90)

    @contextmanager
    def paused(self, program: Server) -> Iterator[None]:
        """A program that is stopped silently for the block."""
        program.pause()
        try:
            yield
        finally:
            program.resume()

    # ------------------------------------------------------------------ settings

    def _configure(self, machine: Machine, binaries: Path, serf: int) -> None:
        (machine.folder / "agent.json").write_text(
            json.dumps(
                {
                    "node_name": machine.name,
                    "datacenter": "dc1",
                    "data_dir": str(machine.folder / "consul"),
                    "bind_addr": machine.host.address,
                    "client_addr": "127.0.0.1",
                    "ports": {"dns": -1, "grpc": -1, "grpc_tls": -1, "serf_lan": serf},
                    "retry_join": [f"{NODE}:{serf}"],
                    "retry_interval": "1s",
                    "disable_update_check": True,
                    "leave_on_terminate": False,
                    "log_level": "warn",
                }
            )
        )
        (machine.folder / "consul").mkdir()
        address = machine.host.address
        (machine.folder / "patroni.yaml").write_text(
            yaml.safe_dump(
                {
                    "scope": SCOPE,
                    "name": machine.name,
                    "restapi": {"listen": "0.0.0.0:8008", "connect_address": f"{address}:8008"},
                    "consul": {"host": "127.0.0.1:8500", "register_service": True, "service_check_interval": "1s"},
                    "bootstrap": {
                        "dcs": {
                            "ttl": 30,
                            "loop_wait": 10,
                            "retry_timeout": 10,
                            "failsafe_mode": True,
                            "postgresql": {"use_pg_rewind": True, "parameters": {"fsync": "off"}},
                        },
                        "initdb": [{"encoding": "UTF8"}, "data-checksums"],
                    },
                    "postgresql": {
                        "listen": f"0.0.0.0:{PORT}",
                        "connect_address": f"{address}:{PORT}",
                        "data_dir": str(machine.folder / "data"),
                        "bin_dir": str(binaries),
                        "pgpass": str(machine.folder / "pgpass"),
                        "pg_hba": [
                            "local all all trust",
                            "host all all 0.0.0.0/0 trust",
                            "host replication all 0.0.0.0/0 trust",
                        ],
                        "authentication": {
                            "superuser": {"username": "postgres"},
                            "replication": {"username": "replicator"},
                            "rewind": {"username": "postgres"},
                        },
                        "parameters": {"unix_socket_directories": str(machine.folder)},
                    },
                }
            )
        )
        for file in ("patroni.yaml", "agent.json"):
            os.chown(machine.folder / file, pwd.getpwnam(USER).pw_uid, grp.getgrnam(USER).gr_gid)

    def _services(self) -> None:
        with self.lab.raw_kube() as kube:
            kube.apply(
                f"/api/v1/namespaces/{NAMESPACE}/services/{ASKED}",
                {
                    "apiVersion": "v1",
                    "kind": "Service",
                    "metadata": {
                        "name": ASKED,
                        "labels": {"consul-bridge/mirror": "true"},
                        "annotations": {"consul-bridge/service": SCOPE, "consul-bridge/tags": "primary"},
                    },
                    "spec": {"ports": [{"port": PORT}]},
                },
            )

    def _bridge(self) -> Daemon:
        rules = [
            {
                "name": what,
                "services": [SCOPE],
                "tags": ["primary"],
                "to": {"namespace": NAMESPACE, "port": PORT, **to},
                "instances": {"min_ready": int(what == "min_ready")},
            }
            for what, to in RULES.items()
        ]
        file = self.lab.folder / "bridge.yaml"
        file.write_text(yaml.safe_dump({"rules": rules}))
        env = environment(self.lab.consul.address, self.lab.kubeconfig)
        return Daemon(self.lab, "bridge", "--config", str(file), env=env)
