"""What every node starts with: containerd's files with all images unpacked, made once and kept by content.

The bridge's image is built from this checkout by its unchanged Dockerfile (about a minute), and unpacked (about ten
seconds); a node takes a copy by hard links, which is half a second. A layer's files are never written to: containers
write to a folder of their own. containerd's two databases are, so they are copied.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.lab.build import ROOT, LabError, cache
from tests.support.lab.engine import NoEngineError, engine
from tests.support.lab.pods import archives
from tests.support.lab.providers import binary

BRIDGE = "consul-endpoints-bridge"
BRIDGE_TAGS = (f"{BRIDGE}:0.1.0", f"{BRIDGE}:0.1.1")
"""The image as the manifests name it, and once more under another name, for a rolling update."""
COREDNS, PAUSE = "docker.io/lab/coredns:1", "docker.io/lab/pause:1"
KEPT = 3
UNPACK_SECONDS = 300.0

_SOURCES = (
    "Dockerfile", ".dockerignore", "LICENSE", "NOTICE", "README.md", "pyproject.toml", "bridge", "image",
    "requirements/build.txt", "requirements/image.txt", "requirements/sbom.txt",
)  # fmt: skip

BuildBridge = Callable[[Path], None]
"""Writes the bridge's image, under BRIDGE_TAGS, as an archive."""


def build_bridge(archive: Path) -> None:
    """By the engine that answers, else by a private one. Raises LabError."""
    from tests.support.lab.images import Images  # here: it imports pytest

    try:
        with engine() as found:
            images = Images(found, cache().parent)
            for tag in BRIDGE_TAGS:
                found.docker("tag", images.bridge, tag)
            found.docker("save", "--output", str(archive), *BRIDGE_TAGS)
            found.docker("image", "rm", *BRIDGE_TAGS)
            images.remove()
    except NoEngineError as error:
        raise LabError(f"the bridge's image cannot be built: {error}") from error


def provide(build: BuildBridge = build_bridge) -> Path:
    """The folder of this checkout's images; made first when it is not there."""
    programs = {COREDNS: binary("coredns"), PAUSE: binary("pause")}
    with _locked() as store:
        made = store / _key(programs.values())
        if not (made / "root").is_dir():
            _make(made, programs, build)
        os.utime(made)
        for old in sorted((f for f in store.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    return made / "root"


def copy(target: Path) -> None:
    """Containerd's files for one node."""
    template = provide()
    with _locked():
        linked = subprocess.run(["cp", "--archive", "--link", str(template), str(target)], check=False)
        if linked.returncode != 0:  # another file system
            shutil.rmtree(target, ignore_errors=True)
            subprocess.run(["cp", "--archive", str(template), str(target)], check=True)
            return
        for database in target.glob("*/*.db"):
            original = template / database.relative_to(target)
            subprocess.run(["cp", "--remove-destination", str(original), str(database)], check=True)


def _make(made: Path, programs: dict[str, Path], build: BuildBridge) -> None:
    print("lab: making the images of the pods (a minute or two)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="new-", dir=made.parent) as name:
        folder = Path(name)
        bridge = folder / "bridge.tar"
        build(bridge)
        found = [bridge]
        for number, (tag, program) in enumerate(programs.items()):
            found.append(folder / f"{number}.tar")
            archives.of_program(found[-1], tag, program, program.name)
        done = subprocess.run(
            [str(Path(__file__).with_name("unpack.sh")), str(folder), *map(str, found)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=UNPACK_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise LabError(f"the images of the pods cannot be imported: {done.stdout[-2000:]}")
        made.mkdir(exist_ok=True)
        (folder / "root").rename(made / "root")


@contextmanager
def _locked() -> Iterator[Path]:
    store = cache() / "pods"
    store.mkdir(parents=True, exist_ok=True)
    with (store / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield store


def _key(programs: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for program in programs:
        digest.update(str(program).encode())
    for source in _SOURCES:
        top = ROOT / source
        for file in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]
