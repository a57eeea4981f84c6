"""The container image, built from this checkout's Dockerfile and run the way a cluster runs it.

Where no engine answers, a private one from Debian's packages is used, on a base image of Debian's Python
(tests/support/lab/engine.py): the Dockerfile is the one that ships, the versions of Python differ.
"""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import bridge
from tests.support.docs import notice
from tests.support.docs.notice import ROOT
from tests.support.lab.engine import PYTHON_IMAGE
from tests.support.lab.images import Images, shared
from tests.support.lab.servers import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# As restricted as the Deployment in manifests/base.
HARDENED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")

IMPORT_ALL = """
import importlib, pkgutil, bridge, consul, kubernetes.client, kubernetes.config, kubernetes.config.incluster_config
names = [m.name for m in pkgutil.walk_packages(bridge.__path__, "bridge.") if m.name != "bridge.__main__"]
for name in names: importlib.import_module(name)
kubernetes.client.CoreV1Api(); kubernetes.client.DiscoveryV1Api()
print(len(names))
"""

UNCOMPILED = """
import importlib.util, pathlib, re, sys, sysconfig
places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
for place in places:
    for source in pathlib.Path(place).rglob("*.py"):
        left = re.search("/kubernetes/client/(api|models)/|/pygments/(lexers|styles)/", str(source))
        if not left and not pathlib.Path(importlib.util.cache_from_source(str(source))).exists(): print(source)
import json, decimal, http.client
for module in (json, decimal, http.client):
    if not pathlib.Path(module.__cached__).exists(): print(module.__file__)
"""


@pytest.fixture(scope="session")
def images(pytestconfig: pytest.Config) -> Images:
    """The images of this run."""
    return shared(pytestconfig)


@pytest.fixture
def inspected(images: Images) -> dict[str, Any]:
    """What the engine tells of the image."""
    found: dict[str, Any] = json.loads(images.engine.docker("image", "inspect", images.bridge))[0]
    return found


def test_it_says_what_it_is_and_runs_as_a_numbered_user(inspected: dict[str, Any]) -> None:
    """Kubernetes can check runAsNonRoot only against a number; the entry point is the bridge itself, no shell."""
    config = inspected["Config"]
    assert {key: config.get(key) for key in ("User", "Entrypoint", "Cmd", "Healthcheck")} == {
        "User": "65532:65532",
        "Entrypoint": ["bridge"],
        "Cmd": ["run"],
        "Healthcheck": None,
    }
    assert list(config["ExposedPorts"]) == ["9480/tcp"]
    labels = {k.removeprefix("org.opencontainers.image."): v for k, v in config["Labels"].items()}
    assert labels.pop("description")
    assert labels == {
        "title": "consul-endpoints-bridge",
        "licenses": "Apache-2.0",
        "version": bridge.__version__,
        "revision": "under-test",
        "source": "https://example.com/bridge",
        "created": "2026-01-02T03:04:05Z",
        "base.name": "under-test",
        "base.digest": "sha256:under-test",
    }


def test_it_adds_little_to_its_base(images: Images, inspected: dict[str, Any]) -> None:
    """Below 200 MB on python:3.12-slim (about 125 MB) leaves 75 MB for us."""
    base = json.loads(images.engine.docker("image", "inspect", images.python))[0]
    ours = (inspected["Size"] - base["Size"]) / 1e6
    print(f"{inspected['Size'] / 1e6:.0f} MB, of which {ours:.0f} MB are ours")
    assert ours < 75
    if images.python == PYTHON_IMAGE:  # its stand-in where nothing can be pulled is larger
        assert inspected["Size"] / 1e6 < 200


SHIPPED = """
import importlib.metadata, json, os, pathlib, sys
folder = pathlib.Path("/opt/bridge/share/doc/consul-endpoints-bridge")
programs = [p for d in os.environ["PATH"].split(":") + ["/bin", "/sbin", "/usr/sbin"] for p in pathlib.Path(d).glob("*")]
site = [p for p in sys.path if p.endswith("-packages")]
print(json.dumps({
    "programs": sorted({p.name for p in programs if p.is_file()}),
    "elsewhere": sorted(str(p) for p in pathlib.Path("/usr").rglob("*") if p.name in ("sh", "bash", "dash", "busybox") and p.is_file() and os.access(p, os.X_OK)),
    "installers": sorted(str(p) for p in pathlib.Path("/").glob("usr/**/pip")) + sorted(d for d in site if pathlib.Path(d, "pip").exists()),
    "setuid": sorted(str(p) for p in pathlib.Path("/usr").rglob("*") if not p.is_symlink() and p.stat().st_mode & 0o6000 and p.is_file()),
    "installed": {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions(path=site)},
    "sbom": json.loads((folder / "sbom.cdx.json").read_text()),
    "notice": (folder / "NOTICE").read_text(),
    "licence": (folder / "LICENSE").read_text(),
}))
"""  # noqa: E501


@pytest.fixture(scope="module")
def contents(images: Images) -> dict[str, Any]:
    """What the image tells of its own contents."""
    said = images.engine.docker(
        *("run", "--rm", "--network=none", *HARDENED, "--entrypoint=python", images.bridge, "-c", SHIPPED)
    )
    found: dict[str, Any] = json.loads(said)
    return found


def test_there_is_no_shell_no_pip_and_no_other_program(contents: dict[str, Any]) -> None:
    """An intruder finds Python and nothing to call; nothing is setuid."""
    pythons = [name for name in contents["programs"] if re.fullmatch(r"python3?(\.\d+)?", name)]
    assert pythons
    ours = {name for name in contents["programs"] if name not in pythons}
    assert "bridge" in ours
    assert ours & {"sh", "bash", "dash", "pip", "pip3", "apt-get", "dpkg", "perl", "curl", "wget", "busybox"} == set()
    assert (contents["elsewhere"], contents["installers"], contents["setuid"]) == ([], [], [])


def test_the_bill_of_materials_lists_what_is_installed(contents: dict[str, Any]) -> None:
    """Name, version and licence of each package; the lock file, the metadata and NOTICE say the same."""
    components = {c["name"].lower(): c for c in contents["sbom"]["components"]}
    installed = dict(contents["installed"])
    assert installed.pop("consul-endpoints-bridge") == bridge.__version__
    assert {name: c["version"] for name, c in components.items()} == {
        **installed,
        "consul-endpoints-bridge": bridge.__version__,
    }
    assert {name.replace("_", "-"): version for name, version in installed.items()} == notice.pins()
    assert [name for name, c in components.items() if not c.get("licenses")] == []
    assert contents["notice"] == notice.NOTICE.read_text()
    assert contents["licence"] == (ROOT / "LICENSE").read_text()


def test_the_same_sources_give_the_same_digest(images: Images, inspected: dict[str, Any]) -> None:
    """Built a second time without any cache: the same layers, image id and manifest."""
    again = json.loads(images.engine.docker("image", "inspect", images.bridge_again))[0]
    assert again["RootFS"]["Layers"] == inspected["RootFS"]["Layers"]
    assert (again["Id"], again["Created"]) == (inspected["Id"], "2026-01-02T03:04:05Z")
    assert len(images.manifests) == 2
    assert len(set(images.manifests.values())) == 1


def test_it_runs_without_writing_without_rights_and_as_any_user(images: Images) -> None:
    """Also under a user id that a cluster chose (OpenShift)."""
    for user in ((), ("--user=1234567:0",)):
        said = images.engine.docker("run", "--rm", "--network=none", *HARDENED, *user, images.bridge, "--version")
        assert bridge.__version__ in said


def test_everything_that_the_bridge_imports_is_in_it(images: Images) -> None:
    """The Dockerfile takes parts of the kubernetes package out: nothing of ours misses them."""
    said = images.engine.docker(
        "run",
        "--rm",
        "--network=none",
        *HARDENED,
        "--entrypoint=python",
        images.bridge,
        "-W",
        "ignore",
        "-c",
        IMPORT_ALL,
    )
    assert int(said) > 10


def test_nothing_is_compiled_at_start(images: Images) -> None:
    """The file system is read-only: what has no compiled file would be compiled again at every start."""
    said = images.engine.docker("run", "--rm", "--network=none", "--entrypoint=python", images.bridge, "-c", UNCOMPILED)
    assert said == ""


NOWHERE = """
apiVersion: v1
kind: Config
current-context: nowhere
clusters: [{name: nowhere, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: nobody, user: {token: none}}]
contexts: [{name: nowhere, context: {cluster: nowhere, user: nobody}}]
"""


SERVING = """
import os, pathlib, sys, time, urllib.error, urllib.request
while True:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:9480/{sys.argv[1]}", timeout=1)
    except OSError:
        time.sleep(0.01)
    else:
        break
at = time.time()
fields = pathlib.Path("/proc/1/stat").read_text().rpartition(")")[2].split()
print(at, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
"""


@pytest.fixture
def container(images: Images, tmp_path: Path) -> Iterator[str]:
    """`bridge run` that reaches neither Consul nor Kubernetes, just started."""
    docker = images.engine.docker
    tmp_path.chmod(0o755)
    (tmp_path / "config").write_text(NOWHERE)
    made = docker(
        *("run", "--detach", "--network=none", *HARDENED, "--tmpfs=/tmp", "--env=CONSUL_HTTP_ADDR=http://127.0.0.1:1"),
        *("--env=BRIDGE_SERVICE=*", "--env=KUBECONFIG=/kube/config"),
        *("--volume", f"{tmp_path}:/kube:ro", images.bridge),
    ).strip()
    yield made
    docker("rm", "--force", made)


def test_it_serves_soon_after_its_start(images: Images, container: str) -> None:
    """Within 3 s only the first pass is missing: of processor time, which neighbours on the machine do not change."""
    said = images.engine.docker("exec", container, "python", "-c", SERVING, "healthz").split()
    at, processor_seconds = map(float, said)
    seconds = at - began(images, container)
    print(f"serving {seconds:.2f} s after its start, {processor_seconds:.2f} s of processor time")
    assert 0 < processor_seconds < 3.0
    assert seconds < 30.0


def began(images: Images, container: str) -> float:
    """When the engine started it."""
    text = json.loads(images.engine.docker("inspect", container))[0]["State"]["StartedAt"]
    return datetime.fromisoformat(text).timestamp()


@pytest.fixture
def servers(images: Images, tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """Consul and Kubernetes on the loopback of one container; the options with which another one shares it."""
    docker = images.engine.docker
    stands_in = images.kubernetes.startswith("bridge-lab/")
    rights = () if stands_in else ("--privileged", "--tmpfs=/run", "--tmpfs=/var/run")  # k3s runs containers of its own
    consul = docker("run", "--detach", images.consul, "agent", "-dev").strip()
    made = [consul]
    try:
        beside = f"--network=container:{consul}"
        kubernetes = docker(
            *("run", "--detach", beside, *rights, "--env=K3S_KUBECONFIG_OUTPUT=/kubeconfig.yaml"),
            *(images.kubernetes, "server"),
        ).strip()
        made.append(kubernetes)
        for container, question in (
            (consul, ("consul", "operator", "raft", "list-peers")),
            (kubernetes, ("kubectl", "get", "--raw=/readyz")),
        ):
            command = ("docker", "exec", container, *question)
            wait_until(partial(succeeds, images, command), 120, f"{question[0]} in its container")
        tmp_path.chmod(0o755)
        (tmp_path / "config").write_text(docker("exec", kubernetes, "cat", "/kubeconfig.yaml"))
        yield (
            *(beside, "--env=BRIDGE_SERVICE=*", "--env=KUBECONFIG=/kube/config"),
            *("--volume", f"{tmp_path}:/kube:ro"),
        )
    finally:
        for container in reversed(made):
            docker("rm", "--force", "--volumes", container)


def succeeds(images: Images, command: tuple[str, ...]) -> bool:
    """Whether the engine's command ends well."""
    try:
        images.engine.run(*command)
    except AssertionError:
        return False
    return True


def test_it_is_ready_soon_after_its_start(images: Images, servers: tuple[str, ...]) -> None:
    """After 3 s of processor time, which neighbours on the machine do not change, a first pass over an empty catalog
    included. What it waits for meanwhile takes less than half a minute on any machine."""
    docker = images.engine.docker
    container = docker("run", "--detach", *HARDENED, "--tmpfs=/tmp", *servers, images.bridge).strip()
    try:
        at, processor_seconds = map(float, docker("exec", container, "python", "-c", SERVING, "readyz").split())
        seconds = at - began(images, container)
    finally:
        docker("rm", "--force", container)
    print(f"ready {seconds:.2f} s after its start, {processor_seconds:.2f} s of processor time")
    assert 0 < processor_seconds < 3.0
    assert seconds < 30.0


def test_a_stop_signal_reaches_it(images: Images, container: str) -> None:
    """`bridge run` that reaches neither Consul nor Kubernetes still ends at once when it is asked to."""
    docker = images.engine.docker
    docker("exec", container, "python", "-c", SERVING, "healthz")
    started = time.monotonic()
    docker("stop", "--time=30", container)
    seconds = time.monotonic() - started
    code = json.loads(docker("inspect", container))[0]["State"]["ExitCode"]
    assert (code, seconds < 25) == (128 + signal.SIGTERM, True), docker("logs", container)  # at 30 it is killed


def test_a_private_engine_writes_where_the_machine_has_nothing(images: Images) -> None:
    """Its sockets, /opt/containerd and /etc/docker/key.json are in folders of its own, which go with it."""
    pid = images.engine.namespace_pid
    if pid is None:
        pytest.skip("the engine is the machine's")
    mounts = [line.split()[1:3] for line in Path(f"/proc/{pid}/mounts").read_text().splitlines()]
    assert all([folder, "tmpfs"] in mounts for folder in ("/run", "/opt", "/etc/docker"))
    inside, here = Path(f"/proc/{pid}/root/etc/docker"), Path("/etc/docker")
    assert inside.stat().st_dev != here.stat().st_dev


def test_only_what_the_image_needs_goes_to_the_engine(images: Images) -> None:
    """.dockerignore names what may come along, so that no secret lying in a checkout ends up in a layer."""
    with images.context() as folder:
        (folder / "token.txt").write_text("secret")
        (folder / "bridge" / "__pycache__").mkdir(exist_ok=True)
        (folder / "bridge" / "__pycache__" / "x.pyc").write_bytes(b"")
        listing = folder / "Everything.Dockerfile"
        listing.write_text(f"FROM {images.python}\nCOPY . /context/\n")
        tag = "bridge-lab/context:1"
        images.engine.docker("build", "--quiet", "--tag", tag, "--file", str(listing), str(folder))
    try:
        found = images.engine.docker("run", "--rm", tag, "find", "/context", "-maxdepth", "2", "-mindepth", "1")
    finally:
        images.engine.docker("image", "rm", "--force", tag)
    names = {line.removeprefix("/context/") for line in found.splitlines()}
    assert {n for n in names if not n.startswith("bridge/")} == {
        *("LICENSE", "NOTICE", "README.md", "pyproject.toml", "bridge", "requirements", "image", "image/slim.py"),
        *("requirements/build.txt", "requirements/image.txt", "requirements/sbom.txt"),
    }
    assert "bridge/__pycache__" not in names
