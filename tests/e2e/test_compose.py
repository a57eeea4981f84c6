"""docker-compose.yml as it ships: brought up whole, walked through as README.md does, and taken down.

Where images can be pulled, this runs the real ones. Elsewhere (tests/support/lab/images.py) Consul and Kubernetes are
the lab's binaries; what only a real k3s can show there is a pod that asks the ClusterIP: a container in the network
asks instead.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.lab import free_port, manifests
from tests.support.lab.images import ROOT, Images, compose_command, compose_plugin, shared
from tests.support.lab.providers import binary
from tests.support.raw import RawConsul, RawKube, UnexpectedAnswerError, not_ready_addresses, ready_addresses

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

VMS = 12
SHIPPED = ("docker-compose.yml", "demo", "manifests/base/bridge.yaml")
VARIABLES = ("CONSUL", "K3S", "PYTHON", "BRIDGE")
PORTS = {"CONSUL": 8500, "KUBERNETES": 6443, "BRIDGE": 9480}
HEAD = (ROOT / "docker-compose.yml").read_text().partition("\nname: ")[0]
ASK = """
import sys, urllib.request
for address in sys.argv[1:]:
    with urllib.request.urlopen(f"http://{address}/", timeout=5) as answer:
        print(answer.headers["X-Served-By"])
"""
ONLY_A_REAL_K3S = (
    "only a real k3s can show: a pod, the cluster's DNS and kube-proxy behind the ClusterIP; "
    "here a container in the network asked every address of the Endpoints instead"
)


@pytest.fixture(scope="session")
def images(pytestconfig: pytest.Config) -> Images:
    """The images of this run."""
    return shared(pytestconfig)


def rendered(**environment: str) -> dict[str, Any]:
    """docker-compose.yml as compose understands it, with nothing but `environment` set."""
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "DOCKER_CONFIG")}
    done = subprocess.run(
        (*compose_command(), "--file", str(ROOT / "docker-compose.yml"), "config", "--format", "json"),
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_image_is_pinned_and_can_be_replaced() -> None:
    """A default with a version; a variable for who mirrors images or tries another version."""
    defaults = {name: service["image"] for name, service in rendered()["services"].items()}
    assert {
        name: image.rpartition(":")[2] not in ("", "latest", image) for name, image in defaults.items()
    } == dict.fromkeys(defaults, True)
    replaced = rendered(**{f"{name}_IMAGE": f"mirror/{name.lower()}:1" for name in VARIABLES})["services"]
    assert {name: service["image"] for name, service in replaced.items()} == {
        "consul": "mirror/consul:1",
        "kubernetes": "mirror/k3s:1",
        "kubeconfig": "mirror/python:1",
        "radosgw": "mirror/python:1",
        "bridge": "mirror/bridge:1",
    }
    assert replaced["bridge"]["build"]["args"] == {"BASE": "mirror/python:1"}


def test_every_variable_is_in_the_table_at_the_head() -> None:
    """With the default that the file has."""
    body = (ROOT / "docker-compose.yml").read_text().removeprefix(HEAD)
    told = dict(re.findall(r"^#   ([A-Z][A-Z0-9_]+) +(\S+)", HEAD, re.MULTILINE))
    assert told == dict(re.findall(r"\$\{([A-Z0-9_]+):-([^}]+)\}", body))


def test_ports_are_published_on_the_loopback_only_and_can_be_moved() -> None:
    """Consul without ACLs and an administrator's Kubernetes are not the bridge's business."""

    def published(**environment: str) -> set[tuple[str, str]]:
        services = rendered(**environment)["services"].values()
        return {(p.get("host_ip", ""), p["published"]) for s in services for p in s.get("ports", [])}

    assert published() == {("127.0.0.1", "8500"), ("127.0.0.1", "6443"), ("127.0.0.1", "9480")}
    assert published(CONSUL_PORT="1", KUBERNETES_PORT="2", BRIDGE_PORT="3") == {
        *(("127.0.0.1", "1"), ("127.0.0.1", "2"), ("127.0.0.1", "3")),
    }


@dataclass(frozen=True, slots=True)
class Stack:
    """A running project: `compose` runs its commands, `ports` are where its servers answer on this machine."""

    images: Images
    project: str
    folder: Path
    compose: Callable[..., str]
    consul: str
    kubernetes: RawKube
    kubeconfig: Path
    bridge: str

    def vms(self) -> dict[str, tuple[str, int]]:
        """The VMs' containers that run, with the address that each registers."""
        names = self.compose("ps", "--quiet", "radosgw").split()
        found = json.loads(self.images.engine.docker("inspect", *names)) if names else []
        return {
            c["Id"]: (network["IPAddress"], 8080)
            for c in found
            for network in c["NetworkSettings"]["Networks"].values()
        }

    def registered(self) -> int:
        """How many instances Consul has, none when it does not answer."""
        try:
            with contextlib.closing(RawConsul(self.consul, timeout_seconds=5)) as consul:
                return len(consul.health("radosgw")[1])
        except (OSError, http.client.HTTPException, UnexpectedAnswerError):
            return 0

    def mirrored(self) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """What the bridge wrote: ready and not ready addresses; none while Kubernetes does not answer."""
        try:
            with contextlib.closing(RawKube(self.kubeconfig, timeout_seconds=5)) as kube:
                found = kube.endpoints("default", "radosgw")
        except (OSError, http.client.HTTPException, UnexpectedAnswerError):
            return [], []
        return ready_addresses(found), not_ready_addresses(found)

    def get(self, path: str) -> tuple[int, str]:
        """What the bridge answers on its published port: status and body."""
        try:
            with urllib.request.urlopen(f"{self.bridge}/{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def readiness(self) -> tuple[int, dict[str, Any]]:
        """The status of /readyz and its detail."""
        status, body = self.get("readyz")
        return status, json.loads(body)


@contextlib.contextmanager
def project(images: Images, folder: Path, vms: int) -> Iterator[tuple[Callable[..., str], dict[str, int]]]:
    """A copy of the shipped files as a project of its own; its compose command, and its ports."""
    for name in SHIPPED:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("kubeconfig.yaml", "__pycache__"))
        else:
            shutil.copy2(ROOT / name, target)
    files = ["--file", "docker-compose.yml"]
    if images.kubernetes.startswith("bridge-lab/"):
        # A sandbox may not hand out privileges, and the stand-in needs none.
        (folder / "stand-in.yml").write_text("services: {kubernetes: {privileged: false}}\n")
        files += ["--file", "stand-in.yml"]
    ports = {name: free_port() for name in ("CONSUL", "KUBERNETES", "BRIDGE")}
    environment = {
        "CONSUL_IMAGE": images.consul,
        "K3S_IMAGE": images.kubernetes,
        "PYTHON_IMAGE": images.python,
        "BRIDGE_IMAGE": images.bridge,
        "RADOSGW_VMS": str(vms),
        **{f"{name}_PORT": str(port) for name, port in ports.items()},
    }
    command = (*compose_command(), "--project-name", folder.name, *files)

    def compose(*arguments: str, check: bool = True) -> str:
        return images.engine.run(*command, *arguments, cwd=folder, environment=environment, check=check)

    try:
        yield compose, ports
    finally:
        compose("down", "--volumes", "--timeout", "10", check=False)


def head_command(words: str) -> list[str]:
    """The one command at the head of docker-compose.yml that has these words, without `docker compose`."""
    (found,) = re.findall(rf"docker compose ([^`\n]*{re.escape(words)}[^`\n]*?)(?=`|  |\n)", HEAD)
    return shlex.split(found)


def names_that_answer(images: Images, network: str, addresses: Sequence[tuple[str, int]]) -> list[str]:
    """Ask every address over HTTP, from a container in the network: the names of the VMs that answered."""
    targets = [f"{ip}:{port}" for ip, port in addresses]
    said = images.engine.docker("run", "--rm", f"--network={network}", images.python, "python", "-c", ASK, *targets)
    return said.split()


def up(compose: Callable[..., str]) -> None:
    """Bring everything up; a failure shows the logs."""
    said = compose("up", "--detach", "--wait", "--wait-timeout", "300", "--no-build", check=False)
    states = [json.loads(line) for line in compose("ps", "--all", "--format", "json").splitlines()]
    sick = {
        s["Name"]: f"{s['State']} {s['Health']}"
        for s in states
        if s["State"] != "running" or s["Health"] not in ("", "healthy")
    }
    assert (len(states) >= 5, sick) == (True, {}), f"{said}\n{compose('logs', '--tail', '30')}"


def eventually(check: Callable[[], Any], expected: Any, seconds: float = 60.0) -> None:
    """Wait until `check` gives `expected`; the last difference is the failure. `seconds` only guard against hanging."""
    deadline = time.monotonic() + seconds
    while (found := check()) != expected and time.monotonic() < deadline:
        time.sleep(0.1)
    assert found == expected


@pytest.fixture(scope="module")
def stack(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole file, brought up once for the tests of this module."""
    folder = tmp_path_factory.mktemp("compose-up")
    with project(images, folder, VMS) as (compose, ports), contextlib.ExitStack() as stack:
        up(compose)
        port = {name: stack.enter_context(images.engine.published(number)) for name, number in ports.items()}
        kubeconfig = folder / "demo/kube/kubeconfig.yaml"
        text = kubeconfig.read_text()
        assert f"server: https://127.0.0.1:{ports['KUBERNETES']}\n" in text
        outside = folder / "outside.yaml"
        outside.write_text(text.replace(str(ports["KUBERNETES"]), str(port["KUBERNETES"])))
        yield Stack(
            images=images,
            project=folder.name,
            folder=folder,
            compose=compose,
            consul=f"http://127.0.0.1:{port['CONSUL']}",
            kubernetes=stack.enter_context(contextlib.closing(RawKube(outside))),
            kubeconfig=outside,
            bridge=f"http://127.0.0.1:{port['BRIDGE']}",
        )


def test_every_vm_is_in_the_endpoints(stack: Stack) -> None:
    """Twelve VMs registered themselves, and the user's kubeconfig sees all twelve under one Service."""
    expected = sorted(stack.vms().values())
    assert len(expected) == VMS
    eventually(stack.mirrored, (expected, []))
    service = stack.kubernetes.get("/api/v1/namespaces/default/services/radosgw")
    assert service is not None
    assert [(p["name"], p["port"]) for p in service["spec"]["ports"]] == [("http", 8080)]
    assert "selector" not in service["spec"]


def test_every_vm_answers_at_its_address_in_the_endpoints(stack: Stack) -> None:
    """Asked over HTTP from inside the network: twelve addresses, twelve VMs."""
    eventually(lambda: len(stack.mirrored()[0]), VMS)
    names = names_that_answer(stack.images, f"{stack.project}_default", stack.mirrored()[0])
    assert sorted(names) == sorted(container[:12] for container in stack.vms())


def test_seven_leave_in_order_and_are_there_again(stack: Stack) -> None:
    """With the commands at the head of docker-compose.yml; those that stay are never taken out."""
    eventually(lambda: len(stack.mirrored()[0]), VMS)
    stack.compose(*head_command("--scale"))
    rest = sorted(stack.vms().values())
    assert len(rest) == 5
    eventually(stack.mirrored, (rest, []))
    stack.compose(*head_command("up --detach"))
    eventually(stack.mirrored, (sorted(stack.vms().values()), []))
    assert len(stack.mirrored()[0]) == VMS


def test_a_vm_that_is_stopped_leaves_and_comes_back(stack: Stack) -> None:
    """It deregisters before it goes, so its address is never listed as an unhealthy one."""
    before = stack.vms()
    chosen, address = min(before.items())
    eventually(stack.mirrored, (sorted(before.values()), []))
    stack.images.engine.docker("stop", chosen)
    rest = sorted(set(before.values()) - {address})
    eventually(stack.mirrored, (rest, []))
    stack.images.engine.docker("start", chosen)
    eventually(stack.mirrored, (sorted(stack.vms().values()), []))
    assert len(stack.mirrored()[0]) == VMS


def test_a_vm_that_is_killed_is_not_ready_until_it_is_back(stack: Stack) -> None:
    """Consul's own check finds out; the address stays, without traffic."""
    before = stack.vms()
    chosen, address = max(before.items())
    eventually(stack.mirrored, (sorted(before.values()), []))
    stack.images.engine.docker("kill", chosen)
    eventually(stack.mirrored, (sorted(set(before.values()) - {address}), [address]))
    stack.images.engine.docker("start", chosen)
    eventually(stack.mirrored, (sorted(stack.vms().values()), []))


def test_a_one_shot_pass_beside_the_daemon_finds_nothing_to_do(stack: Stack) -> None:
    """`docker compose run --rm bridge sync --dry-run`, as README.md has it."""
    eventually(lambda: len(stack.mirrored()[0]), VMS)
    said = stack.compose("run", "--rm", "--no-TTY", "bridge", "sync", "--dry-run", "--exit-code", "-o", "json")
    report, _ = json.JSONDecoder().raw_decode(said[said.index("{\n") :])
    assert {k: report["summary"][k] for k in ("create", "update", "delete", "failed")} == {
        "create": 0,
        "update": 0,
        "delete": 0,
        "failed": 0,
    }


def test_the_bridge_serves_its_pages(stack: Stack) -> None:
    """On the published port."""
    for path, expected in (("healthz", ""), ("readyz", ""), ("metrics", "# HELP "), ("api/status", '"ready": true')):
        with urllib.request.urlopen(f"{stack.bridge}/{path}", timeout=10) as answer:
            assert answer.status == 200
            assert expected in answer.read().decode()


def test_the_image_runs_in_a_cluster_as_the_manifests_say(stack: Stack, tmp_path: Path) -> None:
    """With the Deployment's own environment, arguments and restrictions, and a mounted service account only."""
    namespace = "in-cluster"
    kube = stack.kubernetes
    kube.json("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    objects = manifests.overlay(tmp_path / "overlay", namespace, consul="http://consul:8500")
    manifests.apply(kube, objects)
    account, config = tmp_path / "account", tmp_path / "config"
    files = {
        account / "token": manifests.token(kube, namespace).encode(),
        account / "ca.crt": manifests.cluster_of(stack.kubeconfig)[1],
        account / "namespace": namespace.encode(),
        config / "bridge.yaml": manifests.configuration(objects).encode(),
    }
    for path, content in files.items():
        path.parent.mkdir(mode=0o755, exist_ok=True)
        path.write_bytes(content)
    spec = manifests.container(objects)
    environment = {
        **manifests.environment(objects),
        "KUBERNETES_SERVICE_HOST": "kubernetes",
        "KUBERNETES_SERVICE_PORT": "6443",
    }
    docker = stack.images.engine.docker
    container = docker(
        *("run", "--detach", f"--network={stack.project}_default", "--read-only", "--cap-drop=ALL"),
        *("--security-opt=no-new-privileges", f"--volume={config}:/etc/consul-endpoints-bridge:ro"),
        f"--volume={account}:/var/run/secrets/kubernetes.io/serviceaccount:ro",
        *(f"--env={name}={value}" for name, value in environment.items()),
        *(stack.images.bridge, *spec["args"]),
    ).strip()
    try:
        expected = sorted(stack.vms().values())
        eventually(lambda: ready_addresses(kube.endpoints(namespace, "radosgw")), expected)
        docker("stop", "--time=30", container)
        state = json.loads(docker("inspect", container))[0]["State"]
        assert state["ExitCode"] == 128 + signal.SIGTERM
        assert ready_addresses(kube.endpoints(namespace, "radosgw")) == expected  # nothing is removed at shutdown
    except AssertionError as error:
        raise AssertionError(f"{error}\n{docker('logs', '--tail', '40', container)}") from error
    finally:
        docker("rm", "--force", container)
        kube.delete(f"/api/v1/namespaces/{namespace}")


def test_all_vms_stopped_at_once_is_a_hold(stack: Stack) -> None:
    """The last ones are kept, and the page says so, until a user says that it is meant; who returns is taken."""
    eventually(lambda: len(stack.mirrored()[0]), VMS)
    stack.compose(*head_command("stop radosgw"))
    eventually(stack.registered, 0)
    eventually(lambda: len(stack.readiness()[1]["held"]), 1)
    status, detail = stack.readiness()
    assert status == 200  # it does its work: a restart would not help
    assert re.match(r"default/radosgw: \d+ ready endpoints are kept: ", detail["held"][0])
    page = stack.get("")[1]
    assert ("Removals held" in page, "default/radosgw</a>" in page) == (True, True)
    assert len(stack.mirrored()[0]) >= 1
    stack.compose(*head_command("sync --force"))
    eventually(stack.mirrored, ([], []))
    stack.compose(*head_command("start radosgw"))
    eventually(stack.mirrored, (sorted(stack.vms().values()), []), seconds=60)
    eventually(lambda: stack.readiness()[1]["held"], [])


def test_kubernetes_that_goes_away_is_waited_for(stack: Stack) -> None:
    """The bridge says so, follows Consul meanwhile, and writes what it missed when Kubernetes is back."""
    eventually(lambda: len(stack.mirrored()[0]), VMS)
    before = stack.vms()
    chosen, address = min(before.items())

    def said(words: str) -> tuple[int, bool, Any]:
        status, detail = stack.readiness()
        return status, words in detail["kubernetes"], detail["consul"]

    stack.compose("stop", "kubernetes")
    try:
        eventually(lambda: said("https://kubernetes:6443"), (503, True, "ok"), seconds=60)
        page = stack.get("")[1]
        assert "Cannot write" in page
        assert "Existing objects stay; Consul is still followed." in page
        stack.images.engine.docker("stop", chosen)
    finally:
        stack.compose("start", "kubernetes")
    eventually(stack.mirrored, (sorted(set(before.values()) - {address}), []), seconds=90)
    eventually(lambda: [stack.readiness()[1][side] for side in ("kubernetes", "consul")], ["ok", "ok"])
    assert stack.readiness()[0] == 200
    assert "Cannot write" not in stack.get("")[1].partition("Recent changes")[0]
    stack.images.engine.docker("start", chosen)
    eventually(stack.mirrored, (sorted(stack.vms().values()), []))


def test_consul_that_goes_away_takes_nothing_with_it(stack: Stack) -> None:
    """The Endpoints stay, the bridge says so, and all is well again when Consul is back, empty though it comes back."""
    eventually(lambda: len(stack.mirrored()[0]), VMS)
    before = stack.mirrored()

    def said() -> tuple[int, bool, Any]:
        status, detail = stack.readiness()
        trouble = detail["consul"] if isinstance(detail["consul"], dict) else {}
        return status, "http://consul:8500" in trouble.get("dc1", ""), detail["kubernetes"]

    stack.compose("stop", "consul")
    try:
        eventually(said, (503, True, "ok"), seconds=60)
        page = stack.get("")[1]
        assert "Consul does not answer" in page
        assert "What was known last stays in place." in page
        assert stack.mirrored() == before
    finally:
        stack.compose("start", "consul")
    eventually(stack.registered, VMS, seconds=60)
    eventually(stack.mirrored, before, seconds=60)
    eventually(lambda: stack.readiness()[0], 200)


def test_down_leaves_nothing(images: Images, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No container, no network, no volume, and no kubeconfig in the user's checkout."""
    folder = tmp_path_factory.mktemp("compose-down")
    mine = f"label=com.docker.compose.project={folder.name}"
    with project(images, folder, vms=1) as (compose, _):
        up(compose)
        assert (folder / "demo/kube/kubeconfig.yaml").exists()
        compose("down", "--volumes")
        left = {
            kind: images.engine.docker(*command, "--quiet", "--filter", mine).split()
            for kind, command in {
                "containers": ("ps", "--all"),
                "networks": ("network", "ls"),
                "volumes": ("volume", "ls"),
            }.items()
        }
        assert left == {"containers": [], "networks": [], "volumes": []}
        assert [p.name for p in (folder / "demo/kube").iterdir()] == [".gitignore"]


# --------------------------------------------------------------------------- README.md's walk


@dataclass(frozen=True, slots=True)
class Walk:
    """A user who has just cloned the project, and types what README.md says."""

    images: Images
    folder: Path
    project: str
    environment: Mapping[str, str]
    ports: Mapping[str, int]

    def type(self, command: str) -> str:
        """Run a line in bash, in the clone and in the network where the ports are published; what it said."""
        for name, default in PORTS.items():
            command = command.replace(f"127.0.0.1:{default}", f"127.0.0.1:{self.ports[name]}")
        command = command.replace("consul-endpoints-bridge-radosgw-", f"{self.project}-radosgw-")
        inside = self.images.engine.namespace_pid
        way = () if inside is None else ("nsenter", f"--target={inside}", "--net", "--")
        return self.images.engine.run(
            *way, "bash", "-c", command, cwd=self.folder, environment=self.environment, seconds=600
        )

    def endpoints(self) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """Ready and not ready addresses, as the demonstration's own kubectl sees them."""
        said = self.type("docker compose exec kubernetes kubectl get endpoints radosgw -o json 2>/dev/null")
        return ready_addresses(json.loads(said)), not_ready_addresses(json.loads(said))

    def counts(self) -> tuple[int, int]:
        """How many of each."""
        ready, sick = self.endpoints()
        return len(ready), len(sick)


@pytest.fixture
def walk(images: Images, tmp_path: Path) -> Iterator[Walk]:
    """A clone. Its image is built by compose; where there is no network for builds, from wheels that lie there."""
    private = images.engine.private
    project = "consul-endpoints-bridge" if private else f"bridge-walk-{os.getpid()}"
    ports = PORTS if private else {name: free_port() for name in PORTS}
    stand_in: dict[str, Any] = {"services": {}}
    if images.kubernetes.startswith("bridge-lab/"):
        stand_in["services"]["kubernetes"] = {"privileged": False}
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COMPOSE_FILE": "docker-compose.yml:stand-in.yml",
        "CONSUL_IMAGE": images.consul,
        "K3S_IMAGE": images.kubernetes,
        "PYTHON_IMAGE": images.python,
        **compose_plugin(images.engine, tmp_path),
    }
    if not private:
        environment |= {"COMPOSE_PROJECT_NAME": project, "BRIDGE_IMAGE": f"{project}:demo"}
        environment |= {f"{name}_PORT": str(port) for name, port in ports.items()}
    with images.context() as folder:
        if private:
            images.wheels(folder / "wheelhouse")
            arguments = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheelhouse"}
            stand_in["services"]["bridge"] = {"build": {"args": arguments}}
            environment["DOCKER_BUILDKIT"] = "0"  # Debian's engine comes without buildx
        (folder / "stand-in.yml").write_text(json.dumps(stand_in))
        made = Walk(images, folder, project, environment, ports)
        try:
            yield made
        finally:
            made.type("docker compose down --volumes --timeout 10 2>&1 || true")
            images.engine.docker("image", "rm", "--force", f"{project}:demo", check=False)


def commands() -> list[str]:
    """The commands of README.md's walk, one string each, without their comments."""
    text = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"^```sh[^\n]*\n(make demo-docker.*?)^```$", text, re.MULTILINE | re.DOTALL)
    joined = re.sub(r"\\\n\s*", "", block)
    return [re.sub(r"\s{2,}#.*", "", line) for line in joined.splitlines()]


def test_a_taken_port_is_reported_before_anything_is_started(walk: Walk) -> None:
    """By `make demo-docker`, with the variable that moves the port."""
    port = walk.ports["BRIDGE"]
    program = (
        f"import os, socket; s = socket.create_server(('127.0.0.1', {port})); print(os.system('make demo-docker'))"
    )
    said = walk.type(f'python3 -c "{program}"')
    assert f"- Port {port} of 127.0.0.1 is taken, and the bridge's page is to answer there. Take another one" in said
    assert re.search(r"`export BRIDGE_PORT=\d+`", said)
    assert said.splitlines()[-1] != "0"
    assert walk.type("docker compose ps --all --quiet") == ""


def test_the_walk_of_the_readme(walk: Walk, capsys: pytest.CaptureFixture[str]) -> None:
    """Each of its commands, in its order, does what the words beside it say."""
    kubectl = "docker compose exec kubernetes kubectl"
    left = commands()

    def next_is(start: str) -> str:
        command = left.pop(0)
        assert command.startswith(start), f"README.md has {command!r} where {start!r} was"
        return command

    said = walk.type(next_is("make demo-docker"))
    assert "Healthy" in said, said
    eventually(walk.counts, (VMS, 0))
    assert f"+ {VMS - 3} more..." in walk.type(next_is(f"{kubectl} get service,endpoints radosgw"))

    pod = next_is(f"{kubectl} run ask ")
    if walk.images.kubernetes.startswith("bridge-lab/"):
        with capsys.disabled():
            print(f"\n{ONLY_A_REAL_K3S}")
    else:
        assert "<DisplayName>" in walk.type(pod)
    vms = walk.type("docker compose ps --quiet radosgw").split()
    names = names_that_answer(walk.images, f"{walk.project}_default", walk.endpoints()[0])
    assert (sorted(names), len(set(names))) == (sorted(vm[:12] for vm in vms), VMS)

    walk.type(next_is("docker stop consul-endpoints-bridge-radosgw-3"))
    eventually(walk.counts, (VMS - 1, 0))
    assert f"+ {VMS - 1 - 3} more..." in walk.type(next_is(f"{kubectl} get endpoints radosgw"))
    walk.type(next_is("docker kill consul-endpoints-bridge-radosgw-5"))
    eventually(walk.counts, (VMS - 2, 1))
    said = walk.type(next_is("docker compose run --rm bridge explain radosgw"))
    assert re.search(r"critical +[\d.]+ +not ready +not ready +check service:radosgw-\w+: ", said), said
    walk.type(next_is("docker start consul-endpoints-bridge-radosgw-3 consul-endpoints-bridge-radosgw-5"))
    eventually(walk.counts, (VMS, 0))
    assert "dry run: nothing to do" in walk.type(next_is("docker compose run --rm bridge sync --dry-run"))

    (export,) = re.findall(r'export KUBECONFIG="[^"]*"', HEAD)
    assert f"+ {VMS - 3} more..." in walk.type(f"{export} && {binary('kubectl')} get endpoints radosgw")
    pages = dict.fromkeys(
        re.findall(r"http://127\.0\.0\.1:\d+", (ROOT / "README.md").read_text().partition("## Install")[0])
    )
    shown = [walk.type(f"curl --silent --show-error --fail --location {page}") for page in pages]
    assert ["In sync" in shown[0], "Consul" in shown[1], len(shown)] == [True, True, 2]

    walk.type(next_is("docker compose down --volumes"))
    assert left == []
    mine = f"--filter=label=com.docker.compose.project={walk.project}"
    kinds = (("ps", "--all"), ("network", "ls"), ("volume", "ls"))
    assert [walk.images.engine.docker(*kind, "--quiet", mine).split() for kind in kinds] == [[], [], []]
    assert [p.name for p in (walk.folder / "demo/kube").iterdir()] == [".gitignore"]
    assert "docker image rm consul-endpoints-bridge:demo" in HEAD
    walk.images.engine.docker("image", "rm", f"{walk.project}:demo")
