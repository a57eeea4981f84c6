"""Looks, before `docker compose up`, at what could be in its way, and says for each thing what to do about it.

    python3 demo/preflight.py            # Docker, rights, compose's version, the three ports (`make demo-docker`)
    python3 demo/preflight.py --engine   # Docker and rights alone (`make image`)

Exit status 0 when the way is clear, else 1. It changes nothing, and needs nothing but Python.
"""

# ruff: noqa: T201, S603 - what it prints is what it is for, and the commands that it asks are its own
from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPOSE_MINIMUM = (2, 20)
SECONDS = 20.0
PORTS = {
    "consul": ("CONSUL_PORT", "Consul and its UI"),
    "kubernetes": ("KUBERNETES_PORT", "Kubernetes' API"),
    "bridge": ("BRIDGE_PORT", "the bridge's page"),
}
"""Services that publish a port: the variable that moves it, and what answers there."""


def main(arguments: Sequence[str]) -> int:
    """Say everything that is in the way."""
    troubles = list(engine())
    if not troubles and "--engine" not in arguments:
        troubles = list(compose()) or list(ports())
    for trouble in troubles:
        print(f"- {trouble}", file=sys.stderr)
    return 1 if troubles else 0


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """A command in the checkout, to its end; one that takes too long has failed."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {SECONDS:.0f} s")


def engine() -> Iterator[str]:
    """What keeps us from Docker's engine."""
    if shutil.which("docker") is None:
        yield (
            "There is no docker command on PATH. Install Docker Engine with its compose plugin, or Docker Desktop. "
            "`make demo` shows the same without Docker."
        )
        return
    done = run("docker", "version", "--format", "{{.Server.Version}}")
    if done.returncode == 0:
        return
    said = last_line(done.stderr)
    if "permission denied" in done.stderr.lower():
        yield (
            "This user may not use Docker's socket (permission denied). Join its group with `sudo usermod -aG docker "
            '"$USER"` and log in again, or use sudo. Its members are as good as root.'
        )
    elif os.environ.get("DOCKER_HOST"):
        yield (
            f"No Docker engine answers at DOCKER_HOST={os.environ['DOCKER_HOST']} ({said}). "
            "Start that engine, or `unset DOCKER_HOST` for the one of this machine."
        )
    else:
        yield (
            f"No Docker engine answers ({said}). Start it with `sudo systemctl start docker`, or start Docker Desktop."
        )


def compose() -> Iterator[str]:
    """What is wrong with compose."""
    wanted = ".".join(map(str, COMPOSE_MINIMUM))
    way = f"Install Docker's compose plugin {wanted} or newer (package docker-compose-plugin or docker-compose-v2)."
    done = run("docker", "compose", "version", "--short")
    if done.returncode != 0:
        old = (
            " The `docker-compose` that is here is version 1, which is too old."
            if shutil.which("docker-compose")
            else ""
        )
        yield f"There is no `docker compose` here.{old} {way}"
        return
    found = re.match(r"v?(\d+)\.(\d+)", done.stdout.strip())
    if found and (int(found[1]), int(found[2])) < COMPOSE_MINIMUM:
        yield f"`docker compose` is {done.stdout.strip()}, which is too old. {way}"


def ports() -> Iterator[str]:
    """Which published ports another program has. An engine on another machine has its own; those are not checked."""
    if not os.environ.get("DOCKER_HOST", "unix:").startswith("unix:"):
        return
    done = run("docker", "compose", "config", "--format", "json")
    if done.returncode != 0:
        yield f"docker-compose.yml does not go with your variables or your .env: {last_line(done.stderr)}."
        return
    services = json.loads(done.stdout)["services"]
    for name, (variable, what) in PORTS.items():
        for published in services[name].get("ports", ()):
            port = int(published["published"])
            if taken(port) and not run("docker", "compose", "ps", "--quiet", name).stdout.strip():
                free = next((n for n in range(port + 1, 65536) if not taken(n)), 0)
                yield (
                    f"Port {port} of 127.0.0.1 is taken, and {what} is to answer there. "
                    f"Take another one (`export {variable}={free}`), or end what has it (`ss -ltnp` tells)."
                )


def taken(port: int) -> bool:
    """Whether a program listens there. That we may not listen ourselves (a port below 1024) says nothing."""
    try:
        with socket.create_server(("127.0.0.1", port)):
            return False
    except OSError as error:
        return error.errno == errno.EADDRINUSE


def last_line(text: str) -> str:
    """The last line that is not empty: where docker says why."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "it does not say why"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
