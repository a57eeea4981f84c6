"""Whatever is in the way of `docker compose up` is reported in a sentence that tells what to do."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.lab import free_port

ROOT = Path(__file__).resolve().parents[3]
SERVICES = ("consul", "kubernetes", "bridge")

NO_RIGHTS = (
    "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock: "
    'Get "http://%2Fvar%2Frun%2Fdocker.sock/v1.24/version": dial unix /var/run/docker.sock: connect: permission denied'
)
NOT_RUNNING = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?\n"

Ask = Callable[..., tuple[int, str]]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """Runs the look on a PATH that has nothing but what the test put there; its status and what it said."""

    def run(*arguments: str, **environment: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, str(ROOT / "demo/preflight.py"), *arguments],
            env={"PATH": str(tmp_path), **environment}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.stdout == ""
        return done.returncode, done.stderr

    return run


def program(folder: Path, name: str, text: str) -> None:
    """A shell script on PATH."""
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def docker(folder: Path, compose: str = "2.40.3", ports: dict[str, int] | None = None, running: str = "") -> None:
    """A docker with an engine that answers; `running`: the service that runs already."""
    config = {"services": {name: {"ports": [{"published": str(n)}]} for name, n in (ports or free()).items()}}
    (folder / "config.json").write_text(json.dumps(config))
    program(
        folder, "docker",
        f"""case "$*" in
          "version --format "*) echo 28.2.2;;
          "compose version --short") {f"echo {compose}" if compose else "echo unknown command >&2; exit 1"};;
          "compose config --format json") read -r line < {folder}/config.json || :; echo "$line";;
          "compose ps --quiet {running or 'nobody'}") echo 0a1b2c;;
          "compose ps --quiet "*) ;;
          *) echo "not expected: $*" >&2; exit 9;;
        esac""",
    )  # fmt: skip


def free() -> dict[str, int]:
    """Three ports that no one has."""
    return {name: free_port() for name in SERVICES}


def test_a_clear_way_is_not_talked_about(ask: Ask, tmp_path: Path) -> None:
    """An engine, a new compose, free ports."""
    docker(tmp_path)
    assert ask() == (0, "")


def test_no_docker(ask: Ask) -> None:
    """What to install, and the way that needs none."""
    assert ask() == (
        1,
        "- There is no docker command on PATH. Install Docker Engine with its compose plugin, or Docker Desktop. "
        "`make demo` shows the same without Docker.\n",
    )


def test_no_rights_on_the_socket(ask: Ask, tmp_path: Path) -> None:
    """The group, and what it means to be in it."""
    program(tmp_path, "docker", f"echo '{NO_RIGHTS}' >&2; exit 1")
    assert ask() == (
        1,
        "- This user may not use Docker's socket (permission denied). Join its group with `sudo usermod -aG docker "
        '"$USER"` and log in again, or use sudo. Its members are as good as root.\n',
    )


def test_an_engine_that_does_not_run(ask: Ask, tmp_path: Path) -> None:
    """How to start it; where another one is named, which."""
    program(tmp_path, "docker", f"printf '{NOT_RUNNING}' >&2; exit 1")
    assert ask() == (
        1,
        "- No Docker engine answers (Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker "
        "daemon running?). Start it with `sudo systemctl start docker`, or start Docker Desktop.\n",
    )
    assert "at DOCKER_HOST=tcp://nowhere.example:2375" in ask(DOCKER_HOST="tcp://nowhere.example:2375")[1]


@pytest.mark.parametrize(
    ("compose", "said"),
    [
        ("2.19.1", "`docker compose` is 2.19.1, which is too old."),
        ("v2.3.3", "`docker compose` is v2.3.3, which is too old."),
        ("", "There is no `docker compose` here."),
    ],
)
def test_an_old_compose_or_none(ask: Ask, tmp_path: Path, compose: str, said: str) -> None:
    """Which version is needed, and what its package is called."""
    docker(tmp_path, compose=compose)
    way = "Install Docker's compose plugin 2.20 or newer (package docker-compose-plugin or docker-compose-v2)."
    assert ask() == (1, f"- {said} {way}\n")


def test_the_old_docker_compose_is_not_the_new_one(ask: Ask, tmp_path: Path) -> None:
    """The one with the hyphen is what many still have."""
    docker(tmp_path, compose="")
    program(tmp_path, "docker-compose", "echo 1.29.2")
    assert "The `docker-compose` that is here is version 1, which is too old." in ask()[1]


@pytest.mark.parametrize("version", ["2.20.0", "v2.40.3", "5.0.1", "2.40.3+ds1-0ubuntu1"])
def test_a_new_compose_will_do(ask: Ask, tmp_path: Path, version: str) -> None:
    """However it writes its version."""
    docker(tmp_path, compose=version)
    assert ask() == (0, "")


@pytest.mark.parametrize(
    ("service", "variable"), [("consul", "CONSUL_PORT"), ("kubernetes", "KUBERNETES_PORT"), ("bridge", "BRIDGE_PORT")]
)
def test_a_port_that_is_taken(ask: Ask, tmp_path: Path, service: str, variable: str) -> None:
    """The variable that moves it, and a port that is free."""
    ports = free()
    docker(tmp_path, ports=ports)
    with socket.create_server(("127.0.0.1", ports[service])):
        status, said = ask()
    assert status == 1
    assert said.startswith(f"- Port {ports[service]} of 127.0.0.1 is taken, and ")
    offered = int(said.partition(f"`export {variable}=")[2].partition("`")[0])
    with socket.create_server(("127.0.0.1", offered)):
        assert offered > ports[service]


def test_what_we_have_ourselves_is_not_in_the_way(ask: Ask, tmp_path: Path) -> None:
    """A second `make demo-docker` takes over what the first one started."""
    ports = free()
    docker(tmp_path, ports=ports, running="consul")
    with socket.create_server(("127.0.0.1", ports["consul"])):
        assert ask() == (0, "")


def test_every_port_that_is_taken_is_named(ask: Ask, tmp_path: Path) -> None:
    """One run tells all."""
    ports = free()
    docker(tmp_path, ports=ports)
    with socket.create_server(("127.0.0.1", ports["consul"])), socket.create_server(("127.0.0.1", ports["bridge"])):
        said = ask()[1]
    assert [line.split()[2] for line in said.splitlines()] == [str(ports["consul"]), str(ports["bridge"])]


def test_ports_of_an_engine_elsewhere_are_not_looked_for_here(ask: Ask, tmp_path: Path) -> None:
    """It has loopback addresses of its own."""
    ports = free()
    docker(tmp_path, ports=ports)
    with socket.create_server(("127.0.0.1", ports["consul"])):
        assert ask(DOCKER_HOST="tcp://engine.example:2375") == (0, "")


def test_a_variable_that_compose_cannot_read(ask: Ask, tmp_path: Path) -> None:
    """In compose's own words."""
    docker(tmp_path)
    script = (tmp_path / "docker").read_text()
    (tmp_path / "docker").write_text(
        script.replace(
            '"compose config --format json")', '"compose config "*) echo invalid hostPort: abc >&2; exit 1;;\n x)'
        )
    )
    assert ask() == (1, "- docker-compose.yml does not go with your variables or your .env: invalid hostPort: abc.\n")


@pytest.mark.parametrize("target", ["image", "demo-docker"])
def test_make_says_what_is_missing(tmp_path: Path, target: str) -> None:
    """Instead of `docker: command not found`."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("there is no make on this machine")
    done = subprocess.run(
        [make, "--silent", target, f"PYTHON={sys.executable}"],
        cwd=ROOT, env={"PATH": str(tmp_path), "HOME": os.environ.get("HOME", "/")}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "There is no docker command on PATH. Install Docker Engine" in done.stderr
