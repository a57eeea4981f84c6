"""Twelve gateways outside of the cluster, one native address inside: the bridge at work, shown as it happens.

The servers are those at hand: what LAB_CONSUL_ADDR and LAB_KUBECONFIG name, programs on PATH, images of Docker,
programs that were built before. Where there are none, embedded stand-ins (tests/support/embedded) take their place, so
that nothing waits for a build; the first and the last line say so. `--real` builds the real ones.

Where the machine allows it, everything runs in a network namespace of its own, so that each gateway has an address of
its own, and a relay brings the bridge's page out to this machine's loopback; elsewhere the gateways listen on loopback
and only their registered addresses differ. The run ends by itself (with --stay: at Ctrl-C) and leaves nothing behind:
every process dies with this one.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import http.client
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import textwrap
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.embedded import EmbeddedLab
from tests.support.lab import TOOLS, Lab, LabError, binaries, free_port, wait_until
from tests.support.lab.build import missing
from tests.support.lab.providers import AT_HAND, Provider, choose, from_build, programs_on_path
from tests.support.lab.servers import Program, answers, spawn
from tests.support.program import BRIDGE, Daemon, environment
from tests.support.raw import (
    ENDPOINTS,
    SERVICES,
    RawConsul,
    RawKube,
    UnexpectedAnswerError,
    not_ready_addresses,
    ready_addresses,
)

NAMESPACE = "storage"
SERVICE = "radosgw"
PORT = 8080
VM = Path(__file__).with_name("vm.py")
RELAY = Path(__file__).parent.parent / "lab" / "relay.py"
UNSHARE = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--mount-proc", "--kill-child")

EMBEDDED = (
    "Servers: embedded stand-ins for Consul and Kubernetes, as no real ones are at hand. "
    "To see the same on real ones, which are built first: make demo REAL=1"
)
STEPS = 12
"""What the story has; with --real the pods follow."""

OUT_HERE = frozenset((Provider.ENV, Provider.DOCKER))
"""Servers whose checks come from outside of any network namespace of ours."""

INDENT = "    "
WIDEST = 200
"""On wider terminals too: the eye loses longer lines."""

GONE = (OSError, http.client.HTTPException, UnexpectedAnswerError)
"""What a client sees of a server that ends."""

# Only the terminal's own basic colours: they are chosen to be read on its background, dark or light.
COLOURS = ("\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[31m", "\x1b[0m")
TERMINAL = sys.stdout.isatty()
COLOURED = TERMINAL and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
BOLD, DIM, GREEN, RED, PLAIN = COLOURS if COLOURED else ("",) * 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Choose the servers, build what is missing, enter the namespace where there can be one, show the story."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.demo", description="The main job, shown as it happens."
    )
    parser.add_argument("--stay", action="store_true", help="leave the bridge and its page running until Ctrl-C")
    parser.add_argument("--real", action="store_true", help="real servers, built first where there are none")
    parser.add_argument("--inside", metavar="DESCRIPTOR", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    try:
        if asked.inside is not None:
            _give_addresses()
            page = socket.socket(fileno=asked.inside)
            return Demo(_chosen(real=False), own_addresses=True, stay=asked.stay, page=page).run()
        servers = _chosen(real=asked.real)
        os.environ["LAB_PROVIDER"] = servers  # settled, for who starts them
        _print_paragraph(_first_line(servers))
        if servers in (Provider.PATH, Provider.BUILD):
            _build()  # here: in there is no network to fetch modules from
        return _stories(servers, real=asked.real, stay=asked.stay)
    except LabError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted", file=sys.stderr)
        return 130


def _stories(servers: Provider, *, real: bool, stay: bool) -> int:
    """The story, in namespaces where there can be some; with `real` the one in a cluster with pods after it."""
    if servers not in OUT_HERE and _can_unshare():
        status = _inside(stay=stay)
    else:
        if servers not in OUT_HERE:
            _print_paragraph(
                "(no network namespaces here: the gateways listen on loopback, their addresses are made up)"
            )
        status = Demo(servers, own_addresses=False, stay=stay).run()
    if status == 0 and real and not stay and servers not in OUT_HERE:
        from tests.support.demo import pods  # here: it imports what only a cluster needs

        pods.story(Demo(servers, own_addresses=False, steps=STEPS))
    return status


def _inside(*, stay: bool) -> int:
    """Run the story in namespaces of its own. The page's socket is made out here, where browsers are."""
    with socket.create_server(("127.0.0.1", 0)) as page:
        command = [*UNSHARE, sys.executable, "-m", "tests.support.demo", "--inside", str(page.fileno())]
        # Ctrl-C reaches everybody at this terminal. The story inside ends in order, and we wait for its end.
        before = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            # Not subprocess.run: a process that is killed takes the namespaces, and all that runs in them, with it.
            return spawn([*command, *(["--stay"] if stay else [])], pass_fds=(page.fileno(),)).wait()
        finally:
            signal.signal(signal.SIGINT, before)


def _chosen(*, real: bool) -> Provider:
    """Whose servers: what is at hand, unless LAB_PROVIDER names a way or real ones are wanted."""
    questions = AT_HAND
    if real:
        questions = {p: question for p, question in AT_HAND.items() if p is not Provider.EMBEDDED}
    if real or os.environ.get("LAB_PROVIDER"):
        questions = {**questions, Provider.BUILD: from_build}
    return choose(os.environ, questions).provider


def _first_line(servers: Provider) -> str:
    """Which servers these are."""
    return {
        Provider.ENV: "Servers: yours, of LAB_CONSUL_ADDR and LAB_KUBECONFIG.",
        Provider.PATH: "Servers: a real Consul and a real Kubernetes control plane, from PATH.",
        Provider.DOCKER: "Servers: a real Consul and a real Kubernetes control plane, from Docker's images.",
        Provider.BUILD: "Servers: a real Consul and a real Kubernetes control plane, built from source.",
        Provider.EMBEDDED: EMBEDDED,
    }[servers]


def _print_paragraph(text: str) -> None:
    print("\n".join(textwrap.wrap(text, width() + len(INDENT), break_on_hyphens=False)), flush=True)


def _build() -> None:
    """The servers, where they are not there yet; first a line says how long that takes."""
    core = [name for name, tool in TOOLS.items() if tool.core]
    if not programs_on_path() and (lacking := missing(core)):
        said = (
            f"The first time, the servers are built from source ({', '.join(lacking)}). On two cores that takes 10 to "
            "15 minutes for all four, later it is a matter of seconds."
        )
        _print_paragraph(said)
    binaries(core)


def _must_be_free(consul: RawConsul, kube: RawKube) -> None:
    """On existing servers nothing of theirs is mixed with ours. Raises LabError."""
    if SERVICE in consul.services():
        raise LabError(f"Consul has a service {SERVICE} already: the demonstration would take it for its own")
    if kube.get(f"/api/v1/namespaces/{NAMESPACE}") is not None:
        raise LabError(f"the cluster has a namespace {NAMESPACE} already: the demonstration would remove it at its end")


def _listen(servers: Provider, lab: Lab) -> str:
    """The address of this machine at which Consul's checks reach the gateways."""
    if servers is Provider.DOCKER:
        template = "{{(index .IPAM.Config 0).Gateway}}"
        asked = ["docker", "network", "inspect", "bridge", "--format", template]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    if servers is Provider.ENV:
        consul = urlsplit(lab.consul.address)
        with socket.create_connection((consul.hostname or "", consul.port or 80), timeout=10) as connection:
            return str(connection.getsockname()[0])
    return "127.0.0.1"


def _named(listen: str) -> str:
    return "loopback" if listen == "127.0.0.1" else listen


def _can_unshare() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    tried = subprocess.run([*UNSHARE, "ip", "link", "set", "lo", "up"], capture_output=True, check=False)
    return tried.returncode == 0


def _give_addresses() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for n in range(1, 14):
        subprocess.run(["ip", "address", "add", f"{address(n)}/32", "dev", "lo"], check=True)


def address(n: int) -> str:
    """The address of gateway number `n`."""
    return f"10.77.0.{10 + n}"


class Gateway:
    """One VM: its process and its registration with Consul, with a real HTTP check every second."""

    def __init__(self, lab: Lab, n: int, listen: str) -> None:
        """`listen`: the address at which checks reach it; "" for its own."""
        self.name = f"{SERVICE}-{n:02}"
        self.address = address(n)
        host, port = (listen, free_port()) if listen else (self.address, PORT)
        self.url = f"http://{host}:{port}/"
        self._lab = lab
        command = [sys.executable, "-S", str(VM), self.name, host, str(port)]
        self.process = Program(lab.folder / self.name, command, dict(os.environ), lambda: answers(self.url))
        lab.add(self.process)

    def register(self, consul: RawConsul) -> None:
        """Tell Consul's agent about it."""
        consul.json("PUT", "/v1/agent/service/register", {
            "Name": SERVICE, "ID": self.name, "Address": self.address, "Port": PORT, "Tags": ["s3"],
            "Check": {
                "CheckID": f"http:{self.name}", "HTTP": self.url, "Interval": "1s", "Timeout": "5s",
                "Status": "passing",
            },
        })  # fmt: skip

    def deregister(self, consul: RawConsul) -> None:
        """Take it out again, where Consul stays."""
        consul.json("PUT", f"/v1/agent/service/deregister/{self.name}")


class Watchers:
    """Two independent eyes: when Consul knew, and when the Endpoints changed."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._changed = threading.Condition()
        self._consul: dict[str, tuple[str, float]] = {}
        self._endpoints: dict[str, tuple[str, float]] = {}
        for body in (self._watch_consul, self._watch_endpoints):
            threading.Thread(target=body, daemon=True).start()

    def _watch_consul(self) -> None:
        index = 0
        with self._lab.raw_consul() as consul:
            while True:
                try:
                    index, entries = consul.health(SERVICE, index, "10s")
                except GONE:
                    return
                now = time.monotonic()
                with self._changed:
                    for entry in entries:
                        worst = {c["Status"] for c in entry["Checks"]}
                        status = "critical" if "critical" in worst else "passing"
                        found = entry["Service"]["Address"]
                        if self._consul.get(found, ("", 0.0))[0] != status:
                            self._consul[found] = (status, now)
                    self._changed.notify_all()

    def _watch_endpoints(self) -> None:
        with self._lab.raw_kube() as kube:
            try:
                for event in kube.watch(ENDPOINTS.format(namespace=NAMESPACE)):
                    found = event["object"]
                    if found["metadata"]["name"] == SERVICE:
                        states = dict.fromkeys((a for a, _ in ready_addresses(found)), "passing")
                        states |= dict.fromkeys((a for a, _ in not_ready_addresses(found)), "critical")
                        now = time.monotonic()
                        with self._changed:
                            self._endpoints = {
                                a: self._endpoints[a] if self._endpoints.get(a, ("", 0.0))[0] == s else (s, now)
                                for a, s in states.items()
                            }
                            self._changed.notify_all()
            except GONE:
                return

    def wait(self, address: str, status: str, seconds: float = 60.0) -> tuple[float, float]:
        """When Consul knew that `address` has `status`, and when the Endpoints said the same (monotonic seconds)."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while True:
                known, when = self._consul.get(address, ("", 0.0))
                written, at = self._endpoints.get(address, ("", 0.0))
                if known == written == status:
                    return when, at
                if time.monotonic() > deadline:
                    raise LabError(f"{address} did not become {status} within {seconds:.0f} s")
                self._changed.wait(0.1)


def width() -> int:
    """Columns for what is below a heading."""
    return min(WIDEST, shutil.get_terminal_size((100, 24)).columns) - len(INDENT)


@contextlib.contextmanager
def _terminal(columns: int) -> Iterator[tuple[int, int]]:
    """Both ends of what the bridge writes to: a terminal of this width where we write to one, else a pipe."""
    if TERMINAL:
        ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    else:
        ours, theirs = os.pipe()
    try:
        yield ours, theirs
    finally:
        os.close(ours)


def _until_end(descriptor: int) -> list[str]:
    """The lines that come until the other end is closed, which a terminal says by an error."""
    received = b""
    with contextlib.suppress(OSError):
        while more := os.read(descriptor, 65536):
            received += more
    return received.decode().splitlines()


class Demo:
    """The story, step by step. `page`: a listening socket through which the bridge's page is seen from outside.

    `steps`: how many were told before.
    """

    def __init__(
        self, servers: Provider, *, own_addresses: bool, stay: bool = False, page: socket.socket | None = None,
        steps: int = 0,
    ) -> None:  # fmt: skip
        self._servers = servers
        self._gateways: list[Gateway] = []
        self._own_addresses = own_addresses
        self._stay = stay
        self._page = page
        self._step = steps
        self._began = time.monotonic()

    def run(self) -> int:
        """Show it; 0 when everything happened as told."""
        self.say({
            Provider.ENV: "Reaching your Consul and your Kubernetes",
            Provider.EMBEDDED: "Starting an embedded Consul and an embedded Kubernetes API",
        }.get(self._servers, "Starting a real Consul 1.22 and a real Kubernetes control plane"))  # fmt: skip
        embedded = self._servers is Provider.EMBEDDED
        with EmbeddedLab() if embedded else Lab(own=self._servers not in OUT_HERE) as lab:
            self.note(f"up in {time.monotonic() - self._began:.1f} s")
            with lab.raw_consul() as consul, lab.raw_kube() as kube:
                _must_be_free(consul, kube)
                kube.json("POST", "/api/v1/namespaces", {
                    "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE},
                })  # fmt: skip
                try:
                    self._story(lab, consul)
                finally:
                    if self._servers is Provider.ENV:
                        self._give_back(consul, kube)
        ended = "every gateway and the bridge have ended" if self._servers is Provider.ENV else (
            "every server, gateway and the bridge have ended"
        )  # fmt: skip
        self.say(f"Done: {ended}, nothing is left")
        print(f"{DIM}the whole took {time.monotonic() - self._began:.0f} s{PLAIN}", flush=True)
        if not self._stay:
            _print_paragraph("The bridge's page, live in your browser until Ctrl-C: make demo STAY=1")
        if embedded:
            _print_paragraph(EMBEDDED)
        return 0

    def _give_back(self, consul: RawConsul, kube: RawKube) -> None:
        """What was made on servers that exist already goes."""
        for gateway in self._gateways:
            gateway.deregister(consul)
        kube.delete(f"/api/v1/namespaces/{NAMESPACE}")

    def _story(self, lab: Lab, consul: RawConsul) -> None:
        taste = {name: os.environ[name] for name in ("TERM", "NO_COLOR") if name in os.environ}
        env = environment(lab.consul.address, lab.kubeconfig, **taste)
        select = ("--service", SERVICE, "--namespace", NAMESPACE, "--tag", "s3")

        self.say("Twelve gateways outside of the cluster start and register with Consul")
        listen = "" if self._own_addresses else _listen(self._servers, lab)
        gateways = self._gateways = [Gateway(lab, n, listen) for n in range(1, 13)]
        for gateway in gateways:
            gateway.process.start(wait=False)
        for gateway in gateways:
            gateway.process.wait_ready()
            gateway.register(consul)
        # The agent, which knows it, tells the catalog a moment later.
        wait_until(lambda: len(consul.health(SERVICE)[1]) == len(gateways), 30, "twelve gateways in Consul's catalog")
        where = "each at its own address" if self._own_addresses else f"on {_named(listen)}"
        self.note(f"12 HTTP servers, {where}, each checked by Consul every second")

        self.say("What would the bridge do?")
        self.command(env, "sync", *select, "--dry-run")
        self.say("Do it")
        self.command(env, "sync", *select)
        self.say("Again: nothing is left to do, and nothing is written")
        self.command(env, "sync", *select)
        self.show(lab)

        self.say("From now on continuously: bridge run")
        daemon = Daemon(lab, "bridge", *select, "--removal-grace-period", "2s", env=env)
        lab.add(daemon)
        daemon.start()
        watchers = Watchers(lab)
        url = self._bring_out(lab, daemon)
        self.note(f"ready; it serves a page, /healthz, /readyz and /metrics at {url}/")

        victim = gateways[2]
        watchers.wait(victim.address, "passing")
        self.say(f"{victim.name} dies (kill -9)")
        began = time.monotonic()
        victim.process.kill()
        self.timing(began, *watchers.wait(victim.address, "critical"), "its check failed")
        self.show(lab)

        self.say(f"{victim.name} comes back")
        began = time.monotonic()
        victim.process.start()
        self.timing(began, *watchers.wait(victim.address, "passing"), "its check passed")

        self.say("A thirteenth gateway is added")
        extra = Gateway(lab, 13, listen)
        gateways.append(extra)
        extra.process.start()
        began = time.monotonic()
        extra.register(consul)
        self.timing(began, *watchers.wait(extra.address, "passing"), "it was registered")
        self.show(lab)
        self._ask_everybody(lab)

        if self._stay:
            self._until_told(url)
            daemon.stop()
            return
        self.say("The bridge is stopped: what is there stays")
        daemon.stop()
        self.show(lab)

    def _bring_out(self, lab: Lab, daemon: Daemon) -> str:
        """The address at which a browser of this machine finds the bridge's page."""
        if self._page is None:
            return daemon.url
        descriptor = self._page.fileno()
        relay = [sys.executable, "-S", str(RELAY), str(descriptor), str(daemon.port)]
        # A session of its own: Ctrl-C at the terminal is not for it. It ends with us.
        spawn(relay, pass_fds=(descriptor,), stdin=subprocess.DEVNULL, start_new_session=True)
        host, port = self._page.getsockname()
        return f"http://{host}:{port}"

    def _until_told(self, url: str) -> None:
        """Leave everything running until Ctrl-C, which is the end of the story and no failure."""
        self.say("It stays until Ctrl-C")
        self.note(f"the page: {url}/")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        print(flush=True)

    def _ask_everybody(self, lab: Lab) -> None:
        self.say("Every address in the Endpoints answers")
        with lab.raw_kube() as kube:
            found = ready_addresses(kube.endpoints(NAMESPACE, SERVICE))
        names = []
        for ip, port in found:
            # Where addresses are made up, each stands for the place at which its gateway listens.
            at = next(g.url for g in self._gateways if g.address == ip)
            with urllib.request.urlopen(f"http://{ip}:{port}/" if self._own_addresses else at, timeout=10) as answer:
                names.append(answer.read().decode().split("<Owner>")[1].split("<")[0])
        self.note(f"{len(names)} of {len(found)}: {names[0]} ... {names[-1]}")
        if not self._own_addresses:
            self.note("(asked where each gateway listens here: the addresses themselves are made up)")

    # ------------------------------------------------------------------ what is shown

    def say(self, text: str) -> None:
        """A heading."""
        self._step += 1
        print(f"\n{BOLD}{self._step:2}. {text}{PLAIN}", flush=True)

    def note(self, text: str) -> None:
        """A sentence below it, in as many lines as the terminal needs."""
        for line in textwrap.wrap(text, width(), break_long_words=False, break_on_hyphens=False):
            print(f"{INDENT}{line}", flush=True)

    def shell(self, command: str) -> None:
        """A command as one would type it, in as many lines as the terminal needs."""
        first, *rest = textwrap.wrap(f"$ {command}", width() - 2, subsequent_indent="    ", break_on_hyphens=False)
        for line in [first, *rest][:-1]:
            print(f"{INDENT}{DIM}{line} \\{PLAIN}")
        print(f"{INDENT}{DIM}{[first, *rest][-1]}{PLAIN}", flush=True)

    def command(self, env: dict[str, str], *arguments: str) -> None:
        """Run a bridge command and show it with its output. Raises LabError when it fails."""
        self.shell(f"bridge {' '.join(arguments)}")
        with _terminal(width()) as (ours, theirs):
            process = subprocess.Popen([BRIDGE, *arguments], env=env, stdout=theirs, stderr=subprocess.PIPE, text=True)
            os.close(theirs)
            shown = _until_end(ours)
            assert process.stderr is not None
            with process, process.stderr:
                shown += [part for line in process.stderr for part in textwrap.wrap(line, width()) or [""]]
        for line in shown:
            print(f"{INDENT}{line}".rstrip(), flush=True)
        if process.returncode != 0:
            raise LabError(f"bridge {arguments[0]} ended with status {process.returncode}")

    def show(self, lab: Lab) -> None:
        """The Service and its Endpoints as kubectl would show them."""
        with lab.raw_kube() as kube:
            service = kube.get(f"{SERVICES.format(namespace=NAMESPACE)}/{SERVICE}") or {}
            endpoints = kube.endpoints(NAMESPACE, SERVICE)
        ready, sick = ready_addresses(endpoints), not_ready_addresses(endpoints)
        ports = ",".join(f"{p['port']}/{p['protocol']}" for p in service["spec"]["ports"])
        self.shell(f"kubectl --namespace {NAMESPACE} get service,endpoints {SERVICE}")
        print(f"{INDENT}{'NAME':<10}{'TYPE':<12}{'CLUSTER-IP':<16}{'PORTS':<10}READY")
        health = f"{GREEN}{len(ready)}{PLAIN}" + (f", {RED}{len(sick)} not ready: {sick[0][0]}{PLAIN}" if sick else "")
        print(
            f"{INDENT}{SERVICE:<10}{service['spec']['type']:<12}{service['spec']['clusterIP']:<16}{ports:<10}{health}"
        )
        shown = [f"{ip}:{port}" for ip, port in ready]
        widest = max(map(len, shown), default=0) + 2
        many = max(1, min(6, (width() + 2) // widest))
        for start in range(0, len(shown), many):
            print(f"{INDENT}{DIM}{'  '.join(shown[start : start + many])}{PLAIN}", flush=True)

    def timing(self, began: float, consul: float, endpoints: float, what: str) -> None:
        """When Consul knew, and how long after that the Endpoints were right."""
        self.note(f"{what}: Consul knew {max(0.0, consul - began) * 1000:7.1f} ms later")
        # Two eyes: on a busy machine the one on Consul may be the slower one.
        late = max(0.0, endpoints - consul)
        self.note(f"the Endpoints changed {GREEN}{late * 1000:7.1f} ms{PLAIN} after Consul knew")


if __name__ == "__main__":
    sys.exit(main())
