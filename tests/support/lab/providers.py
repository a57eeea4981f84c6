"""Where the servers come from: the first way that works, or the one that LAB_PROVIDER names.

    env     LAB_CONSUL_ADDR and LAB_KUBECONFIG (LAB_CONSUL_TOKEN): servers that exist already, used as they are
    path    programs on PATH, when all that every lab needs are there in a fitting version
    docker  containers of LAB_CONSUL_IMAGE and LAB_K3S_IMAGE, when an engine answers and has or can pull them
    build   built with Go from modules/ (build.py)

What was chosen, and why not the ones before it, is reported once on stderr. A lab that must be its own (Lab(own=True))
runs programs in any case, from PATH or built: for it no engine is asked and no image is pulled.

`LAB_PROVIDER=none`: there are none, and nothing is built; tests that need any are skipped.

Where no one wants to wait for a build (`make demo`, `make test` on a developer's machine) only what is AT HAND counts:
images that the engine has, programs that were built before. Where nothing is, embedded stand-ins
(tests/support/embedded) or fewer tests are the answer.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tests.support.lab import build
from tests.support.lab.build import TOOLS, LabError, Tool

CONSUL_IMAGE = "hashicorp/consul:1.22.0"
K3S_IMAGE = "rancher/k3s:v1.36.4-k3s1"
DOCKER_SECONDS = 10.0
_ANOTHER = {"kubernetes": "LAB_KUBERNETES_VERSION", "consul": "LAB_CONSUL_VERSION"}
"""Variables that name another version than the lab's as the one that programs on PATH must have, by module."""
PULL_SECONDS = 300.0


class Provider(StrEnum):
    """The ways, in the order in which they are tried."""

    ENV = "env"
    PATH = "path"
    DOCKER = "docker"
    BUILD = "build"
    EMBEDDED = "embedded"
    """No real servers: only where it is asked for by name, or offered (`AT_HAND`)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The way taken, and what spoke against the ones before it."""

    provider: Provider
    rejected: Mapping[Provider, str]

    def __str__(self) -> str:
        why = "; ".join(f"{provider}: {reason}" for provider, reason in self.rejected.items())
        return f"servers from {self.provider}" + (f" ({why})" if why else "")


Question = Callable[[Mapping[str, str]], str | None]
"""Asks whether a way is open: None, or what is in its way."""


def choose(environ: Mapping[str, str], questions: Mapping[Provider, Question] | None = None) -> Choice:
    """The first way that is open. Raises LabError when the one that LAB_PROVIDER names is not, or is unknown."""
    questions = QUESTIONS if questions is None else questions
    forced = environ.get("LAB_PROVIDER", "")
    if forced == build.NONE:
        raise LabError("LAB_PROVIDER=none: no servers are wanted here")
    if forced:
        if forced not in questions:
            raise LabError(f"LAB_PROVIDER={forced} is none of {', '.join(questions)}")
        if trouble := questions[Provider(forced)](environ):
            raise LabError(f"LAB_PROVIDER={forced} cannot be used: {trouble}")
        return Choice(Provider(forced), dict.fromkeys((), ""))
    rejected: dict[Provider, str] = {}
    for provider, question in questions.items():
        trouble = question(environ)
        if trouble is None:
            return Choice(provider, rejected)
        rejected[provider] = trouble
    raise LabError("; ".join(f"{provider}: {reason}" for provider, reason in rejected.items()))


@functools.cache
def chosen() -> Choice:
    """The choice for this process, said once."""
    choice = choose(os.environ)
    print(f"lab: {choice}", file=sys.stderr, flush=True)
    return choice


def binary(name: str) -> Path:
    """The program; built first when it has to be."""
    return binaries([name])[name]


@functools.cache
def programs_on_path() -> bool:
    """Whether programs are taken from PATH: where that is the way, which is settled before Docker's turn comes."""
    forced = os.environ.get("LAB_PROVIDER", "")
    if forced and forced != Provider.PATH:
        return False
    return choose(os.environ, {**QUESTIONS, Provider.DOCKER: _not_asked}).provider is Provider.PATH


def _not_asked(_environ: Mapping[str, str]) -> str | None:
    return "not asked: programs are needed"


def binaries(names: Iterable[str]) -> dict[str, Path]:
    """The same for several. From PATH only where that is the way chosen, and what is not there is built."""
    names = list(names)
    found: dict[str, Path] = {}
    if programs_on_path():
        for name in names:
            if not on_path(name, TOOLS[name], os.environ) and (path := shutil.which(name)):
                found[name] = Path(path)
    rest = [name for name in names if name not in found]
    return {**found, **(build.binaries(rest) if rest else {})}


def from_environment(environ: Mapping[str, str]) -> str | None:
    """Both addresses, or neither: half of a lab is a mistake that is reported at once."""
    names = ("LAB_CONSUL_ADDR", "LAB_KUBECONFIG")
    missing = [name for name in names if not environ.get(name)]
    if len(missing) == 1:
        (there,) = set(names) - set(missing)
        raise LabError(f"{there} is set and {missing[0]} is not: set both, or neither")
    if missing:
        return f"{' and '.join(missing)} are not set"
    kubeconfig = Path(environ["LAB_KUBECONFIG"])
    return None if kubeconfig.is_file() else f"LAB_KUBECONFIG: there is no file {kubeconfig}"


def from_path(environ: Mapping[str, str]) -> str | None:
    """Every program that a lab cannot do without, in a fitting version."""
    troubles = [on_path(name, tool, environ) for name, tool in TOOLS.items() if tool.core]
    return next((trouble for trouble in troubles if trouble), None)


def on_path(name: str, tool: Tool, environ: Mapping[str, str]) -> str | None:
    """None when the program is on PATH in a version that fits: the same major and minor number."""
    path = shutil.which(name, path=environ.get("PATH", ""))
    if path is None:
        return f"no {name} on PATH"
    if not tool.version:
        return None
    try:
        done = subprocess.run(
            [path, tool.version_argument], capture_output=True, text=True, timeout=DOCKER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path} does not say its version: {error}"
    is_version = _major_minor(done.stdout + done.stderr)
    wanted = _major_minor(environ.get(_ANOTHER.get(tool.module, ""), "") or tool.version)
    if is_version != wanted:
        return f"{path} is {is_version or 'of an unknown version'}, {wanted} is needed"
    return None


def _major_minor(text: str) -> str:
    found = re.search(r"(\d+\.\d+)\.\d+", text)
    return found[1] if found else ""


def from_docker(environ: Mapping[str, str]) -> str | None:
    """An engine that answers at once, with both images or a way to them."""
    return _from_engine(environ, pull=True)


def from_images(environ: Mapping[str, str]) -> str | None:
    """An engine that answers at once and has both images."""
    return _from_engine(environ, pull=False)


def _from_engine(environ: Mapping[str, str], *, pull: bool) -> str | None:
    docker = shutil.which("docker", path=environ.get("PATH", ""))
    if docker is None:
        return "no docker command on PATH"

    def run(*arguments: str, seconds: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [docker, *arguments], env=dict(environ), capture_output=True, text=True, timeout=seconds, check=False
        )

    try:
        answer = run("version", "--format", "{{.Server.Version}}", seconds=DOCKER_SECONDS)
        if answer.returncode != 0:
            return f"no engine answers ({_last_line(answer.stderr)})"
        for image in images(environ):
            if run("image", "inspect", image, seconds=DOCKER_SECONDS).returncode == 0:
                continue
            if not pull:
                return f"{image} is not there"
            print(f"lab: pulling {image}", file=sys.stderr, flush=True)
            pulled = run("pull", "--quiet", image, seconds=PULL_SECONDS)
            if pulled.returncode != 0:
                return f"{image} is not there and cannot be pulled ({_last_line(pulled.stderr)})"
    except subprocess.TimeoutExpired as error:
        return f"`docker {error.cmd[1]}` took over {error.timeout:.0f} s"
    return None


def images(environ: Mapping[str, str]) -> tuple[str, str]:
    """Consul's and Kubernetes' image."""
    return environ.get("LAB_CONSUL_IMAGE") or CONSUL_IMAGE, environ.get("LAB_K3S_IMAGE") or K3S_IMAGE


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1][:200]


def from_build(_environ: Mapping[str, str]) -> str | None:
    """Always open: a Go toolchain is installed where there is none, and what goes wrong is reported by the build."""
    return None


def from_cache(_environ: Mapping[str, str]) -> str | None:
    """Every program that a lab cannot do without was built before; nothing is installed to find out."""
    return (
        None if build.were_built(name for name, tool in TOOLS.items() if tool.core) else "not all were built here yet"
    )


def from_checkout(_environ: Mapping[str, str]) -> str | None:
    """Always open: the stand-ins are part of the checkout."""
    return None


QUESTIONS: Mapping[Provider, Question] = {
    Provider.ENV: from_environment,
    Provider.PATH: from_path,
    Provider.DOCKER: from_docker,
    Provider.BUILD: from_build,
}
"""In the order in which they are tried."""

AT_HAND: Mapping[Provider, Question] = {
    Provider.ENV: from_environment,
    Provider.PATH: from_path,
    Provider.DOCKER: from_images,
    Provider.BUILD: from_cache,
    Provider.EMBEDDED: from_checkout,
}
"""The ways that take seconds, and the stand-ins."""
