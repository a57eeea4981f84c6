"""A Docker engine for the tests: the one that answers, or a private one made from Debian's packages.

The private engine lives in its own network, mount and process namespaces: nothing of it is seen outside (no bridge, no
iptables rule, no mount), it has no way to any network, and it is gone with all its containers when the test process
ends, however that ends. Its published ports are inside too: `Engine.published` brings one out.

No image can be pulled there. `python_base` makes an image of Debian's own Python that stands in for python:slim, and
`static_image` one of a static binary.

Installing packages is for CI (CI=true) or for who asks (LAB_DOCKER=install); elsewhere the reason says what to install.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = ("docker.io", "iptables", "iproute2", "cgroupfs-mount", "debootstrap")
PROGRAMS = ("dockerd", "docker", "ip", "nsenter", "unshare", "setpriv")
PREFIX = "bridge-engine-"
BASE_PACKAGES = "python3,python3-pip,ca-certificates,openssl"
PYTHON_IMAGE = "python:3.12-slim"

START_SECONDS = 30.0
STOP_SECONDS = 20.0
INSTALL_SECONDS = 600.0
COMMAND_SECONDS = 300.0

# Subnets that only exist inside the engine's own namespace.
_DOCKERD = (
    "dockerd",
    "--bip=172.29.0.1/24",
    "--default-address-pool=base=172.29.128.0/17,size=24",
    "--shutdown-timeout=2",
)


_OWN_FOLDERS = ("/run", "/opt", "/etc/docker")
"""Where dockerd and its containerd write whatever they are set to: sockets, /opt/containerd, /etc/docker/key.json. The
private engine has empty ones of its own there, which go with its mount namespace."""


class NoEngineError(Exception):
    """No engine can be had here; the message says why, and what would help."""


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that answers. `namespace_pid`: a process inside the private engine, None when it is the user's."""

    environment: Mapping[str, str]
    namespace_pid: int | None = None
    _folder: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))

    @property
    def private(self) -> bool:
        """Whether the engine is ours alone."""
        return self.namespace_pid is not None

    @contextlib.contextmanager
    def published(self, port: int) -> Iterator[int]:
        """The port of this machine's loopback on which the engine's published `port` answers, for the block."""
        if self.namespace_pid is None:
            yield port
            return
        # A socket belongs to the network in which it was made: the relay accepts out here and connects in there.
        with socket.create_server(("127.0.0.1", 0)) as listener:
            descriptor = listener.fileno()
            relay = subprocess.Popen(
                (
                    *("nsenter", f"--target={self.namespace_pid}", "--net", "--"),
                    *(sys.executable, str(Path(__file__).with_name("relay.py")), str(descriptor), str(port)),
                ),
                pass_fds=(descriptor,),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                yield int(listener.getsockname()[1])
            finally:
                relay.kill()
                relay.wait()

    def docker(self, *arguments: str, check: bool = True, seconds: float = COMMAND_SECONDS) -> str:
        """Run `docker ...`; its output, both streams together. Raises AssertionError with it when it fails."""
        return self.run("docker", *arguments, check=check, seconds=seconds)

    def run(
        self,
        *command: str,
        check: bool = True,
        seconds: float = COMMAND_SECONDS,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Run a command with DOCKER_HOST pointing here; as `docker`."""
        done = subprocess.run(
            command,
            env={**self.environment, **(environment or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            text=True,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout[-4000:]}")
        return done.stdout

    def has_or_pulls(self, image: str) -> bool:
        """Whether the image is there or can be pulled. A private engine cannot pull and is not asked to."""
        if self.private:
            return False
        if subprocess.run(
            ("docker", "image", "inspect", image), env=dict(self.environment), capture_output=True, check=False
        ).returncode:
            return not subprocess.run(
                ("docker", "pull", "--quiet", image), env=dict(self.environment), capture_output=True, check=False
            ).returncode
        return True

    def static_image(self, tag: str, binary: Path) -> str:
        """An image that holds one static binary in /bin, its entry point; `tag`."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            tree = Path(folder) / "bin"
            tree.mkdir()
            _link(binary, tree / binary.name)
            tarball = Path(folder) / "tree.tar"
            with tarfile.open(tarball, "w") as archive:
                archive.add(tree, "bin")
            self.docker("import", "--change", f'ENTRYPOINT ["/bin/{binary.name}"]', str(tarball), tag)
        return tag

    def python_base(self, cache: Path) -> str:
        """The name of an image with Python and pip that the Dockerfile can build on."""
        if self.has_or_pulls(PYTHON_IMAGE):
            return PYTHON_IMAGE
        tag = "bridge-lab/python:slim"
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self.docker("import", "--change", f"ENV {path}", str(_debian_with_python(cache)), tag)
        return tag


@contextlib.contextmanager
def engine() -> Iterator[Engine]:
    """The engine that answers, or a private one for the time of the block. Raises NoEngineError."""
    environment = dict(os.environ)
    trouble = _answers(environment)
    if trouble is None:
        yield Engine(environment)
        return
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if os.geteuid() != 0:
        raise NoEngineError(f"no Docker engine answers ({trouble}), and starting a private one takes root")
    if missing:
        if os.environ.get("CI") != "true" and os.environ.get("LAB_DOCKER") != "install":
            raise NoEngineError(
                f"no Docker engine answers ({trouble}), and {', '.join(missing)} is missing for a private one: "
                f"apt-get install --no-install-recommends {' '.join(PACKAGES)}, or LAB_DOCKER=install"
            )
        install(PACKAGES)
    with _private() as ours:
        yield ours


def install(packages: Sequence[str]) -> None:
    """Install Debian packages without letting them start their services. Raises NoEngineError."""
    if shutil.which("apt-get") is None:
        raise NoEngineError(f"{', '.join(packages)} cannot be installed: there is no apt-get here")
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        for command in (
            ("apt-get", "-o", "DPkg::Lock::Timeout=120", "update", "-qq"),
            ("apt-get", "-o", "DPkg::Lock::Timeout=120", "install", "-y", "-qq", "--no-install-recommends", *packages),
        ):
            done = subprocess.run(
                command,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=INSTALL_SECONDS,
                check=False,
            )
            if done.returncode != 0:
                raise NoEngineError(f"{' '.join(command)}: {done.stdout[-1000:]}")
    finally:
        if ours:
            policy.unlink()


def _answers(environment: Mapping[str, str]) -> str | None:
    """None when an engine answers, else why not."""
    if shutil.which("docker") is None:
        return "no docker command"
    done = subprocess.run(
        ("docker", "version", "--format", "{{.Server.Version}}"),
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


@contextlib.contextmanager
def _private() -> Iterator[Engine]:
    _reap()
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    group = folder.name
    command = (
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"),
        *("sh", "-c"),
        # cgroups are mounted inside only where the machine has none; the mounts go with the namespace.
        f"for at in {' '.join(_OWN_FOLDERS)}; do mount -t tmpfs -o mode=755 tmpfs $at || exit; done; "
        'ip link set lo up; [ -n "$(ls -A /sys/fs/cgroup)" ] || cgroupfs-mount; exec "$@"',
        *("sh", *_DOCKERD, f"--host=unix://{folder}/docker.sock", f"--data-root={folder}/data"),
        *(f"--exec-root={folder}/exec", f"--pidfile={folder}/pid", f"--cgroup-parent=/{group}"),
    )
    (folder / "config").mkdir()
    made = [path for path in map(Path, _OWN_FOLDERS) if not path.exists()]
    for path in made:  # to be mounted on; it stays empty
        path.mkdir()
    environment = {**os.environ, "DOCKER_HOST": f"unix://{folder}/docker.sock", "DOCKER_CONFIG": f"{folder}/config"}
    environment.pop("DOCKER_CONTEXT", None)
    log = folder / "dockerd.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while (trouble := _answers(environment)) is not None:
            if process.poll() is not None or time.monotonic() > deadline:
                raise NoEngineError(f"dockerd did not start ({trouble}):\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield Engine(environment, _child(process.pid), folder)
    finally:
        _stop(process)
        _remove_cgroups(group)
        shutil.rmtree(folder, ignore_errors=True)
        for path in made:
            with contextlib.suppress(OSError):  # an engine of the machine may have come meanwhile
                path.rmdir()


def _child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask dockerd to stop its containers and itself, then end what is left: the whole process namespace."""
    with contextlib.suppress(OSError, IndexError):
        os.kill(_child(process.pid), signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _reap() -> None:
    """Remove the files of engines whose test process was killed; their processes died with it."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        owner = folder.name.removeprefix(PREFIX).split("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            _remove_cgroups(folder.name)
            shutil.rmtree(folder, ignore_errors=True)


def _remove_cgroups(group: str) -> None:
    for top in (*Path("/sys/fs/cgroup").glob(group), *Path("/sys/fs/cgroup").glob(f"*/{group}")):
        for found, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                Path(found).rmdir()


def _debian_with_python(cache: Path) -> Path:
    """A tar of this Debian's minimal system with Python and pip, made once (about 40 s)."""
    lines = Path("/etc/os-release").read_text().replace('"', "").splitlines()
    release = dict(line.split("=", 1) for line in lines if "=" in line)
    codename = release.get("VERSION_CODENAME", "bookworm")
    ready = cache / f"python-base-{codename}.tar"
    if ready.exists():
        return ready
    if shutil.which("debootstrap") is None:
        install(("debootstrap",))
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bridge-base-") as folder:
        root = Path(folder) / "root"
        done = subprocess.run(
            ("debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", codename, str(root)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise NoEngineError(f"debootstrap: {done.stdout[-1000:]}")
        # As python:slim is: pip may install, and the interpreter is called python.
        for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            marker.unlink()
        (root / "usr/bin/python").symlink_to("python3")
        for waste in ("var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(root / waste)
        new = cache / f".{ready.name}.{os.getpid()}"
        subprocess.run(("tar", "-C", str(root), "-cf", str(new), "."), check=True)
        new.replace(ready)
    return ready


def _link(source: Path, target: Path) -> None:
    """A hard link where that works, else a copy."""
    try:
        target.hardlink_to(source.resolve())
    except OSError:
        shutil.copy2(source, target)
