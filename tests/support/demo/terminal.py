"""A terminal for the tests of the demonstration, and what must be true of every run in one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.cells import cell_len

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 150.0
ESCAPE = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])")
BASIC = {"0", "1", "2", "31", "32", "33", "35", "36", "1;31"}
"""Bold, dim and the terminal's own basic colours, which are chosen to be read on its background, dark or light."""

STEPS = (
    "Twelve gateways outside of the cluster start and register with Consul",
    "What would the bridge do?",
    "Do it",
    "Again: nothing is left to do, and nothing is written",
    "From now on continuously: bridge run",
    "radosgw-03 dies (kill -9)",
    "radosgw-03 comes back",
    "A thirteenth gateway is added",
    "Every address in the Endpoints answers",
    "The bridge is stopped: what is there stays",
    "Done: every server, gateway and the bridge have ended, nothing is left",
)
"""The headings behind the first, which names the servers: the same on every kind of them."""


def headings(text: str) -> tuple[str, ...]:
    """The steps of a story, without the first."""
    found = re.findall(r"^ ?(\d+)\. (.+)$", ESCAPE.sub("", text), re.MULTILINE)
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    return tuple(heading for _, heading in found[1:])


@dataclass
class Terminal:
    """A command in a terminal of its own: what it wrote, and its keyboard."""

    process: subprocess.Popen[bytes]
    screen: int
    written: bytes = field(default=b"")

    def read(self, until: str = "") -> str:
        """All that was written, up to now as soon as the pattern `until` is in it, without one to the end."""
        deadline = time.monotonic() + SECONDS
        while not until or not re.search(until, self.text):
            assert time.monotonic() < deadline, self.text
            if not select.select([self.screen], [], [], 1.0)[0]:
                continue
            try:
                more = os.read(self.screen, 65536)
            except OSError:  # the other end is closed
                more = b""
            if not more:
                assert not until, f"it ended without {until!r}: {self.text}"
                break
            self.written += more
        return self.text

    @property
    def text(self) -> str:
        """What was written up to now, escapes and all."""
        return self.written.decode(errors="replace").replace("\r\n", "\n")


@contextlib.contextmanager
def terminal(columns: int, tmp_path: Path, *arguments: str, **environment: str) -> Iterator[Terminal]:
    """`python -m tests.support.demo` in a terminal, with a folder of its own for temporary files and a `docker` that
    tells.

    On servers that are built, unless the environment's LAB_PROVIDER says otherwise ("": what is at hand).
    """
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    (tmp_path / "tmp").mkdir()
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "docker").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/docker-was-called; exit 1\n')
    (programs / "docker").chmod(0o755)
    kept = {k: os.environ[k] for k in ("HOME", "LANG", "XDG_CACHE_HOME") if k in os.environ}
    process = subprocess.Popen(
        [sys.executable, "-B", "-m", "tests.support.demo", *arguments],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT,
        # A session of its own, whose terminal this is: Ctrl-C reaches all that runs there.
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        env={
            **kept, "PATH": f"{programs}:{os.environ['PATH']}", "TMPDIR": str(tmp_path / "tmp"),
            "TERM": "xterm-256color", "PYTHONDONTWRITEBYTECODE": "1", "LAB_PROVIDER": "build", **environment,
        },
    )  # fmt: skip
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)
        os.close(ours)


def left(tmp_path: Path) -> tuple[list[str], list[str]]:
    """Processes that have this test's folder in their environment, and what is in it."""
    running = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"TMPDIR={tmp_path}/tmp\0".encode() in (folder / "environ").read_bytes():
                running.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return running, [str(p.relative_to(tmp_path)) for p in (tmp_path / "tmp").rglob("*")]


def assert_nothing_is_left(tmp_path: Path) -> None:
    """Neither processes nor files; those whose parent has ended are given the time that the kernel takes for them."""
    deadline = time.monotonic() + 10
    while (found := left(tmp_path)) != ([], []):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def checkout() -> set[Path]:
    """The files of the checkout, without what Python and its tools keep there."""
    return {
        path
        for top in ROOT.iterdir()
        if not top.name.startswith(".")
        for path in (top, *top.rglob("*"))
        if "__pycache__" not in path.parts
    }


def assert_fits(text: str, columns: int) -> None:
    """No line is wider than the terminal."""
    wide = {line for line in ESCAPE.sub("", text).splitlines() if cell_len(line) > columns}
    assert wide == set()
