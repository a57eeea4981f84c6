"""`python -m tests.support.lab build|up|down|env|status`: the lab by hand.

`up` leaves a supervisor behind that holds the servers: it ends on SIGTERM (`down`), and when it is killed the kernel
ends the servers with it. What runs stands in .lab/state.json of the checkout (LAB_HOME moves it).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.lab import providers
from tests.support.lab.build import HERE, ROOT, TOOLS, LabError
from tests.support.lab.providers import Provider, binaries
from tests.support.lab.reaper import PREFIX as FOLDER_PREFIX
from tests.support.lab.state import Process, State

UP_SECONDS = 60.0
DOWN_SECONDS = 20.0


def home() -> Path:
    """Where the state is kept."""
    return Path(os.environ.get("LAB_HOME") or ROOT / ".lab")


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.lab", description="Real servers on this machine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="build|up|down|env|status")
    build_parser = commands.add_parser("build", help="build what is missing, start nothing")
    build_parser.add_argument("tools", nargs="*", help=f"of {', '.join(TOOLS)} (default: all but the rare ones)")
    up_parser = commands.add_parser("up", help="start the servers and leave them running")
    up_parser.add_argument("--acl", action="store_true", help="Consul with ACLs, default deny")
    up_parser.add_argument(
        "--pods", action="store_true", help="two nodes that run pods, and twelve VMs that Consul knows as radosgw"
    )
    commands.add_parser("down", help="end them and remove their files")
    commands.add_parser("env", help="print what points clients at them, for eval")
    commands.add_parser("status", help="say what runs (exit status 1: nothing)")
    supervise_parser = commands.add_parser("supervise")  # what `up` leaves behind
    for option in ("--acl", "--pods"):
        supervise_parser.add_argument(option, action="store_true")
    chosen = parser.parse_args(arguments)
    try:
        match chosen.command:
            case "build":
                _build(chosen.tools)
            case "up":
                _up(acl=chosen.acl, pods=chosen.pods)
            case "supervise":
                _supervise(acl=chosen.acl, pods=chosen.pods)
            case "down":
                _down()
            case "env":
                _env(_live())
            case _:
                _status(_live())
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted", file=sys.stderr)
        return 130
    return 0


def _core() -> list[str]:
    return [name for name, tool in TOOLS.items() if tool.core]


def _build(tools: Sequence[str]) -> None:
    """Build what every lab needs, then what only some tests need; or just what is named."""
    unknown = [name for name in tools if name not in TOOLS]
    if unknown:
        raise LabError(f"no such tool: {', '.join(unknown)}. There are {', '.join(TOOLS)}")
    if tools:
        binaries(tools)
        return
    binaries(_core())
    binaries([name for name, tool in TOOLS.items() if not tool.core and not tool.rare])


def _up(*, acl: bool, pods: bool) -> None:
    if not pods and providers.chosen().provider is Provider.ENV:
        raise LabError("LAB_CONSUL_ADDR and LAB_KUBECONFIG name servers that run already: there is nothing to start")
    with _one_at_a_time():
        state = State.read(_state_file())
        if state is not None and state.alive:
            print("lab: it is up already", file=sys.stderr)
        else:
            if state is not None:
                _clean_up(state)
            if pods:  # here, where its progress is seen
                from tests.support.lab.pods import prepare  # here: the other commands do without what it imports

                prepare()
            else:
                binaries(_core())
            began = time.monotonic()
            state = _start(["--acl"] * acl + ["--pods"] * pods)
            print(f"lab: up after {time.monotonic() - began:.1f} s; logs in {state.folder}", file=sys.stderr)
    _env(state)


def _start(options: Sequence[str]) -> State:
    home().mkdir(parents=True, exist_ok=True)
    log = home() / "supervisor.log"
    command = [sys.executable, "-m", "tests.support.lab", "supervise", *options]
    with log.open("wb") as output:
        supervisor = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        state = _state_of(supervisor, log)
    except BaseException:
        supervisor.terminate()
        try:
            supervisor.wait(DOWN_SECONDS)
        except subprocess.TimeoutExpired:
            supervisor.kill()
            supervisor.wait()
        raise
    supervisor.returncode = 0  # it is meant to outlive this process
    return state


def _state_of(supervisor: subprocess.Popen[bytes], log: Path) -> State:
    """What the supervisor writes when its servers are ready."""
    deadline = time.monotonic() + UP_SECONDS
    while True:
        state = State.read(_state_file())
        if state is not None and state.supervisor.pid == supervisor.pid:
            return state
        if supervisor.poll() is not None:
            raise LabError(f"the servers did not start:\n{log.read_text(errors='replace')[-4000:]}")
        if time.monotonic() > deadline:
            raise LabError(f"the servers were not ready within {UP_SECONDS:.0f} s; see {log}")
        time.sleep(0.05)


def _supervise(*, acl: bool, pods: bool) -> None:
    """Start the servers, say so in the state file, hold them until SIGTERM or SIGINT."""
    from tests.support.lab import Lab  # here: the other commands do without what it imports
    from tests.support.lab.pods import Cluster

    ended = threading.Event()

    def end(*_: object) -> None:
        if ended.is_set():
            return  # asked twice: the end is on its way
        ended.set()
        if not started:
            raise KeyboardInterrupt

    started = False
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    with Cluster(acl=acl) if pods else Lab(acl=acl) as running:
        lab = running.lab if isinstance(running, Cluster) else running
        started = True
        servers = {server.program: server for server in (lab.etcd, lab.apiserver, lab.controllers, lab.consul)}
        processes = {name: Process.of(server.pid) for name, server in servers.items() if server.is_process}
        me = Process.of(os.getpid())
        assert me is not None
        state = State(
            supervisor=me,
            folder=str(lab.folder),
            kubeconfig=str(lab.kubeconfig),
            consul_address=lab.consul.address,
            consul_token=lab.consul.token,
            consul_for_pods=running.consul_address if isinstance(running, Cluster) else "",
            servers={name: process for name, process in processes.items() if process is not None},
        )
        state.write(_state_file())
        try:
            ended.wait()
        finally:
            _state_file().unlink(missing_ok=True)


def _down() -> None:
    """End the lab that `up` started, and nothing else."""
    with _one_at_a_time():
        state = State.read(_state_file())
        alive = state is not None and state.alive
        if state is not None:
            if not state.supervisor.signal(signal.SIGTERM, DOWN_SECONDS):
                state.supervisor.signal(signal.SIGKILL, DOWN_SECONDS)
            _clean_up(state)
        for name in ("state.json", "supervisor.log"):
            (home() / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            home().rmdir()
    print("lab: down" if alive else "lab: it is not up", file=sys.stderr)


def _clean_up(state: State) -> None:
    """Remove what a lab left whose supervisor was killed: its servers died with it, its folder did not."""
    for name, process in state.servers.items():
        if not process.signal(signal.SIGKILL, DOWN_SECONDS):
            raise LabError(f"{name} (process {process.pid}) does not end")
    folder = Path(state.folder)
    if folder.name.startswith(FOLDER_PREFIX) and folder.parent == Path(tempfile.gettempdir()):
        shutil.rmtree(folder, ignore_errors=True)
    _state_file().unlink(missing_ok=True)


def _env(state: State) -> None:
    """Print the variables that point Consul's and Kubernetes' own tools, and the bridge, at the lab."""
    variables = {"CONSUL_HTTP_ADDR": state.consul_address, "KUBECONFIG": state.kubeconfig}
    if state.consul_token:
        variables["CONSUL_HTTP_TOKEN"] = state.consul_token
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")
    tools = [str(path.parent) for path in (*binaries(["consul", "kubectl"]).values(), Path(sys.executable))]
    print(f"export PATH={shlex.quote(':'.join(dict.fromkeys(tools)))}:$PATH")


def _status(state: State) -> None:
    acls = " (ACLs on)" if state.consul_token else ""
    print(f"up: Consul at {state.consul_address}{acls}, KUBECONFIG={state.kubeconfig}")
    if state.consul_for_pods:
        print(f"  two nodes run pods (kubectl get nodes); Consul is {state.consul_for_pods} for pods")
    for name, process in state.servers.items():
        print(f"  {name:<24} process {process.pid}{'' if process.alive else ', ENDED'}")
    print(f"  logs in {state.folder}")
    ended = [name for name, process in state.servers.items() if not process.alive]
    if ended:
        raise LabError(f"{', '.join(ended)} ended; `python -m tests.support.lab down`, then `up`")


def _live() -> State:
    state = State.read(_state_file())
    if state is None or not state.alive:
        raise LabError("it is not up; `make lab-up` starts it")
    return state


def _state_file() -> Path:
    return home() / "state.json"


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """One `up` or `down` at a time. The lock is on this folder, so that it leaves no file behind."""
    descriptor = os.open(HERE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
