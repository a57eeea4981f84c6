"""The lab's servers do as they are asked, keep their data, and leave nothing behind."""

from __future__ import annotations

import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.lab import AuditEntry, Lab, LabError, consul_cluster, providers, wait_until
from tests.support.lab.build import ROOT
from tests.support.lab.state import Process, State
from tests.support.raw import RawClient, RawConsul, RawKube, UnexpectedAnswerError

pytestmark = pytest.mark.lab

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"

HOLD = """
import signal, sys
from tests.support.lab import Lab
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is in the background with it ignored
with Lab() as lab:
    servers = (lab.etcd, lab.apiserver, lab.controllers, lab.consul)
    print(lab.folder, *(server.pid for server in servers), flush=True)
    {body}
"""


def config_map(name: str) -> dict[str, object]:
    """An object to find again."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {}}


def program(body: str) -> subprocess.Popen[str]:
    """A process of its own that starts a lab, says where, and goes on with `body`."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD.format(body=body)],
        cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def said(holder: subprocess.Popen[str]) -> tuple[Path, list[Process]]:
    """The folder and the processes of its lab."""
    assert holder.stdout is not None
    folder, *pids = holder.stdout.readline().split()
    processes = [Process.of(int(pid)) for pid in pids]
    return Path(folder), [process for process in processes if process is not None]


def all_gone(folder: Path, processes: list[Process]) -> Callable[[], bool]:
    """Whether no process and no file is left."""
    return lambda: not folder.exists() and not any(process.alive for process in processes)


# --------------------------------------------------------------------------- nothing is left behind


def test_a_lab_that_ends_leaves_nothing() -> None:
    """No process, no folder."""
    with program("sys.stdin.read()") as holder:
        folder, processes = said(holder)
        holder.communicate(timeout=30)
        assert holder.returncode == 0
    assert len(processes) == 4
    assert all_gone(folder, processes)()


def test_an_interrupted_lab_leaves_nothing() -> None:
    """Ctrl-C goes to the whole group of processes, as a terminal sends it."""
    with program("sys.stdin.read()") as holder:
        folder, processes = said(holder)
        holder.send_signal(signal.SIGINT)
        holder.wait(30)
    assert all_gone(folder, processes)()


def test_a_killed_lab_leaves_nothing() -> None:
    """After kill -9 the kernel ends the servers, and the reaper takes the folder."""
    with program("sys.stdin.read()") as holder:
        folder, processes = said(holder)
        holder.kill()
        holder.wait(30)
    wait_until(all_gone(folder, processes), 30, "everything being gone")


def test_a_failed_lab_keeps_its_logs_and_says_where(tmp_path: Path) -> None:
    """The folder stays, its servers do not."""
    with program("raise ValueError") as holder:
        folder, processes = said(holder)
        errors = holder.communicate(timeout=30)[1]
    assert not any(process.alive for process in processes)
    assert f"the servers' logs are in {folder}" in errors
    assert (folder / "kube-apiserver" / "log").stat().st_size > 0
    subprocess.run(["rm", "-rf", str(folder)], check=True)


# --------------------------------------------------------------------------- control, and kept data


@pytest.fixture(scope="module")
def own_lab() -> Iterator[Lab]:
    """Servers of this module's own: each test here leaves them running again."""
    with Lab(own=True) as lab:
        yield lab


def test_consul_keeps_its_catalog_through_kill_and_restart(own_lab: Lab) -> None:
    """The same address, the same instances; and with `empty` none."""
    with own_lab.raw_consul() as client:
        client.register("web", "vm-1", "192.0.2.1", 8080)
    address = own_lab.consul.address
    own_lab.consul.kill()
    assert not own_lab.consul.running
    own_lab.consul.start()
    assert own_lab.consul.address == address
    with own_lab.raw_consul() as client:
        assert set(client.services()) == {"consul", "web"}
    own_lab.consul.restart(empty=True)
    with own_lab.raw_consul() as client:
        assert set(client.services()) == {"consul"}


def test_kubernetes_keeps_its_objects_through_kill_and_restart(own_lab: Lab) -> None:
    """kube-apiserver and etcd, one after the other, at the same addresses."""
    with own_lab.raw_kube() as kube:
        kube.json("POST", CONFIG_MAPS, config_map("kept"))
    own_lab.apiserver.kill()
    own_lab.apiserver.start()
    own_lab.etcd.restart()
    own_lab.apiserver.wait_ready()
    with own_lab.raw_kube() as kube:
        assert kube.get(f"{CONFIG_MAPS}/kept") is not None


def test_a_paused_server_is_silent_and_goes_on(own_lab: Lab) -> None:
    """Connections are accepted, nothing is answered; then everything is."""
    own_lab.consul.pause()
    with RawConsul(own_lab.consul.address, timeout_seconds=0.5) as client, pytest.raises(TimeoutError):
        client.services()
    own_lab.consul.resume()
    with own_lab.raw_consul() as client:
        assert "consul" in client.services()


def test_a_server_stops_when_asked_even_while_paused(own_lab: Lab) -> None:
    """SIGTERM to a paused process waits for SIGCONT. After ten seconds it would have been SIGKILL."""
    began = time.monotonic()
    own_lab.controllers.pause()
    own_lab.controllers.stop()
    assert not own_lab.controllers.running
    assert time.monotonic() - began < 10
    own_lab.controllers.start()


def test_starting_twice_is_a_mistake_that_is_reported(lab: Lab) -> None:
    """No process is lost."""
    with pytest.raises(LabError, match="consul runs already"):
        lab.consul.start()


def test_it_is_up_in_under_five_seconds() -> None:
    """Once built; the machine's own slowness gets some room. The best of three: neighbours only make one slower."""
    found: list[float] = []
    while len(found) < 3 and min(found, default=1.0) >= 1.0:
        began = time.monotonic()
        with Lab(own=True):
            found.append((time.monotonic() - began) / (5 * _slowness()))
    assert min(found) < 1.0


def _slowness() -> float:
    """How many processes want each core just now."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


# --------------------------------------------------------------------------- variants


@pytest.mark.parametrize("fresh_lab", [{"acl": True}], indirect=True)
def test_with_acls_consul_shows_nothing_without_a_token(fresh_lab: Lab) -> None:
    """200 and empty without a token, everything for the management token, 403 for a token that is none."""
    with RawConsul(fresh_lab.consul.address) as nobody:
        assert nobody.services() == {}
    with fresh_lab.raw_consul() as manager:
        assert "consul" in manager.services()
    with (
        RawConsul(fresh_lab.consul.address, "00000000-0000-0000-0000-000000000001") as stranger,
        pytest.raises(UnexpectedAnswerError, match="403"),
    ):
        stranger.services()


def test_three_servers_elect_another_leader(tmp_path: Path) -> None:
    """The catalog outlives the leader, and the killed one comes back."""
    servers = consul_cluster(tmp_path)
    try:
        with RawConsul(servers[0].address) as client:
            client.register("web", "vm-1", "192.0.2.1", 8080)
            leader = client.json("GET", "/v1/status/leader")
        (old,) = [s for s in servers if leader.endswith(f":{s.ports['server']}")]
        others = [s for s in servers if s is not old]
        old.kill()

        def replaced() -> bool:
            with RawConsul(others[0].address) as client:
                return client.json("GET", "/v1/status/leader") not in ("", leader)

        wait_until(replaced, 30, "another leader")
        wait_until(others[0].is_ready, 30, "the other servers being ready")
        with RawConsul(others[0].address) as client:
            assert "web" in client.services()
        old.start()
        assert old.is_ready()
    finally:
        for server in servers:
            server.kill()


def test_https_is_verified(lab: Lab) -> None:
    """With the lab's authority it works, with another one it does not."""
    with RawConsul(lab.consul.https_address, lab.consul.token, str(lab.ca_file)) as client:
        assert "consul" in client.services()
    with (
        RawConsul(lab.consul.https_address, "", str(lab.files["other-ca.pem"])) as client,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        client.services()


@pytest.mark.parametrize("fresh_lab", [{"mtls": True}], indirect=True)
def test_mtls_asks_for_a_certificate(fresh_lab: Lab) -> None:
    """No certificate, no answer; the lab's client certificate is one."""
    with (
        RawConsul(fresh_lab.consul.https_address, "", str(fresh_lab.ca_file)) as stranger,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        stranger.services()
    context = ssl.create_default_context(cafile=str(fresh_lab.ca_file))
    context.load_cert_chain(fresh_lab.files["client.pem"], fresh_lab.files["client.key"])
    with RawClient(fresh_lab.consul.https_address, context=context) as client:
        assert "consul" in client.json("GET", "/v1/catalog/services")


# --------------------------------------------------------------------------- rights and the audit log


def test_the_audit_log_tells_what_a_service_account_did(lab: Lab, namespace: str) -> None:
    """What was allowed and what was not, with its status, by user."""
    user = f"system:serviceaccount:{namespace}:reader"
    rules = [{"apiGroups": [""], "resources": ["endpoints"], "verbs": ["list"]}]
    kubeconfig = lab.service_account(namespace, "reader", rules)
    base = f"/api/v1/namespaces/{namespace}"
    with RawKube(kubeconfig) as kube:
        assert kube.json("GET", f"{base}/endpoints")["items"] == []
        with pytest.raises(UnexpectedAnswerError, match="403"):
            kube.json("GET", f"{base}/services/web")

    def seen() -> list[tuple[str, str, str, int, str]]:
        entries: list[AuditEntry] = lab.audit(user=user)
        return [(e.verb, e.resource, e.name, e.code, e.decision) for e in entries]

    wait_until(lambda: len(seen()) >= 2, 30, "two lines in the audit log")
    assert seen() == [("list", "endpoints", "", 200, "allow"), ("get", "services", "web", 403, "forbid")]


# --------------------------------------------------------------------------- servers that exist already


@pytest.fixture
def named(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """The environment names the session's servers, as if an operator ran them."""
    monkeypatch.setenv("LAB_CONSUL_ADDR", lab.consul.address)
    monkeypatch.setenv("LAB_KUBECONFIG", str(lab.kubeconfig))
    monkeypatch.delenv("LAB_PROVIDER", raising=False)
    caches = (providers.chosen, providers.programs_on_path)
    for cached in caches:
        cached.cache_clear()
    yield lab
    for cached in caches:
        cached.cache_clear()


def test_servers_of_the_environment_are_used_and_not_stopped(named: Lab) -> None:
    """The lab's face is the same; a second lab is refused while the first one uses them."""
    with Lab() as borrowed:
        assert (borrowed.consul.address, borrowed.apiserver.url) == (named.consul.address, named.apiserver.url)
        with borrowed.raw_kube() as kube:
            assert kube.get("/api/v1/namespaces/bridge-lab") is not None
        with pytest.raises(LabError, match="does not start or stop it"):
            borrowed.consul.kill()
        with pytest.raises(LabError, match="bridge-lab of LAB_KUBECONFIG's cluster is not empty"), Lab():
            pass
    assert named.consul.running
    assert named.apiserver.running


# --------------------------------------------------------------------------- the command


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """`python -m tests.support.lab ...` with a state of the test's own."""
    environment = {**os.environ, "LAB_HOME": str(tmp_path / "home")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tests.support.lab", *arguments],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    yield run
    run("down")


Command = Callable[..., "subprocess.CompletedProcess[str]"]


def state_of(tmp_path: Path) -> State:
    """What `up` wrote."""
    state = State.read(tmp_path / "home" / "state.json")
    assert state is not None
    return state


def test_up_env_status_down(command: Command, tmp_path: Path) -> None:
    """One lab, however often one asks; its variables work; afterwards there is nothing."""
    up = command("up")
    assert up.returncode == 0, up.stderr
    state = state_of(tmp_path)
    assert command("up").stdout == command("env").stdout == up.stdout
    variables = dict(re.findall(r"^export (\w+)=(.*)$", up.stdout, re.MULTILINE))
    with RawConsul(variables["CONSUL_HTTP_ADDR"]) as consul, RawKube(variables["KUBECONFIG"]) as kube:
        assert "consul" in consul.services()
        assert kube.get("/api/v1/namespaces/default") is not None
    assert command("status").returncode == 0
    assert command("down").returncode == 0
    assert all_gone(Path(state.folder), [state.supervisor, *state.servers.values()])()
    assert not (tmp_path / "home").exists()
    assert (command("status").returncode, command("env").returncode, command("down").returncode) == (1, 1, 0)


def test_down_after_the_supervisor_was_killed(command: Command, tmp_path: Path) -> None:
    """Its servers died with it; the state file of a dead process is no lab."""
    command("up")
    state = state_of(tmp_path)
    state.supervisor.signal(signal.SIGKILL, 10)
    assert command("status").returncode == 1
    assert command("down").returncode == 0
    wait_until(all_gone(Path(state.folder), list(state.servers.values())), 30, "everything being gone")
    assert not (tmp_path / "home").exists()


def test_a_server_that_ended_shows_in_the_status(command: Command, tmp_path: Path) -> None:
    """With where its log is."""
    command("up")
    state = state_of(tmp_path)
    state.servers["consul"].signal(signal.SIGKILL, 10)
    status = command("status")
    assert status.returncode == 1
    assert "consul ended" in status.stderr
    assert state.folder in status.stdout


def test_a_reused_process_id_is_left_alone(command: Command, tmp_path: Path) -> None:
    """The id is that of a running process, the time of its start is not: no process gets a signal."""
    with subprocess.Popen(["sleep", "60"]) as bystander:
        try:
            real = Process.of(bystander.pid)
            assert real is not None
            stale = Process(real.pid, "another boot:1")
            folder = tmp_path / "not-a-lab"
            folder.mkdir()
            State(stale, str(folder), "kubeconfig", "http://127.0.0.1:1", servers={"consul": stale}).write(
                tmp_path / "home" / "state.json"
            )
            assert command("down").returncode == 0
            assert real.alive
            assert folder.exists()
        finally:
            bystander.kill()


def test_a_state_that_is_not_ours_is_no_lab(command: Command, tmp_path: Path) -> None:
    """Half a file, or another format."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "state.json").write_text('{"pid": 1}')
    assert command("status").returncode == 1
    assert command("down").returncode == 0
