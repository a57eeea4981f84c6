"""`make demo` as a newcomer runs it: in a terminal of 80 and of 200 columns, with colour and without, to its end.

And the VMs of the demonstration with Docker, whose other parts test_compose.py runs.
"""

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
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.conftest import Eventually
from tests.demo.__main__ import _can_unshare
from tests.lab import TOOLS, Lab, LabError, binaries, free_port
from tests.raw import RawConsul

pytestmark = [pytest.mark.lab, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 150.0
ESCAPE = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])")
BASIC = {"0", "1", "2", "31", "32", "33", "35", "36", "1;31"}
"""Bold, dim and the terminal's own basic colours, which are chosen to be read on its background, dark or light."""


@pytest.fixture(scope="module", autouse=True)
def _servers() -> None:
    """Built before, so that no test waits for it."""
    try:
        binaries([name for name, tool in TOOLS.items() if tool.core])
    except LabError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no servers: {error}")


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
            except OSError:  # nobody has the other end any more
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
    """`python -m tests.demo` in a terminal, with a folder of its own for temporary files and a `docker` that tells."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    (tmp_path / "tmp").mkdir()
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "docker").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/docker-was-called\n')
    (programs / "docker").chmod(0o755)
    kept = {k: os.environ[k] for k in ("HOME", "LANG", "XDG_CACHE_HOME") if k in os.environ}
    process = subprocess.Popen(
        [sys.executable, "-B", "-m", "tests.demo", *arguments],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT,
        # A session of its own, whose terminal this is: Ctrl-C reaches all that runs there.
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        env={
            **kept, "PATH": f"{programs}:{os.environ['PATH']}", "TMPDIR": str(tmp_path / "tmp"),
            "TERM": "xterm-256color", "PYTHONDONTWRITEBYTECODE": "1", **environment,
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


def test_it_tells_its_story_in_eighty_columns_and_ends_by_itself(tmp_path: Path) -> None:
    """In basic colours; the bridge's own output is shown as on this terminal; nothing is left, no engine was asked."""
    before = checkout()
    with terminal(80, tmp_path) as shown:
        text = shown.read()
        assert shown.process.wait(60) == 0, text
    assert_fits(text, 80)
    assert {(m[1], m[2]) for m in ESCAPE.finditer(text)} <= {(code, "m") for code in BASIC}
    assert "\x1b[32m3 created\x1b[0m" in text  # by `bridge`, which colours on terminals alone
    plain = ESCAPE.sub("", text)
    assert "11, 1 not ready: 10.77.0.13\n" in plain
    if _can_unshare():
        assert "13 of 13: radosgw-01 ... radosgw-13\n" in plain
    assert "Done: every server, gateway and the bridge have ended, nothing is left\n" in plain
    assert_nothing_is_left(tmp_path)
    assert checkout() == before
    assert not (tmp_path / "docker-was-called").exists()


def test_ctrl_c_in_the_middle_leaves_nothing_either(tmp_path: Path) -> None:
    """The status is that of an interrupted command."""
    with terminal(80, tmp_path) as shown:
        shown.read(until="Do it")
        os.write(shown.screen, b"\x03")
        text = shown.read()
        assert shown.process.wait(60) == 130, text
    assert ESCAPE.sub("", text).endswith("\ndemo: interrupted\n")
    assert "Traceback" not in text
    assert_nothing_is_left(tmp_path)


def test_it_runs_where_no_namespace_can_be_made_and_into_a_pipe(tmp_path: Path) -> None:
    """The gateways share the loopback then; without a terminal nothing is coloured."""
    (tmp_path / "unshare").write_text("#!/bin/sh\necho not permitted >&2; exit 1\n")
    (tmp_path / "unshare").chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-B", "-m", "tests.demo"],
        cwd=ROOT, env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TERM": "xterm-256color"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("(no network namespaces here: the gateways listen on loopback,\n")
    assert "    12 HTTP servers, on loopback, each checked by Consul every second\n" in done.stdout
    assert "11, 1 not ready: 10.77.0.13\n" in done.stdout
    assert "\x1b" not in done.stdout


def test_before_the_first_build_it_says_how_long_that_takes(tmp_path: Path) -> None:
    """And when the build fails, the compiler's words are the end."""
    programs = tmp_path / "programs"
    programs.mkdir()
    script = 'if [ "$1" = version ]; then echo "go version go1.26.0 linux/amd64"; exit; fi; echo no such module; exit 1'
    (programs / "go").write_text(f"#!/bin/sh\n{script}\n")
    (programs / "go").chmod(0o755)
    cache = tmp_path / "cache"
    with terminal(80, tmp_path, PATH=f"{programs}:{os.environ['PATH']}", XDG_CACHE_HOME=str(cache)) as shown:
        text = shown.read()
        assert shown.process.wait(60) == 1
    assert_fits(text, 80)
    assert " ".join(text.split()) == (
        "The first time, the servers are built from source (etcd, kube-apiserver, kube-controller-manager, consul). "
        "On two cores that takes 10 to 15 minutes for all four, later it is a matter of seconds. "
        "lab: building etcd (1 of 4) from etcd's sources demo: etcd cannot be built: no such module"
    )


def test_it_stays_for_who_wants_to_see_the_page_until_ctrl_c(tmp_path: Path) -> None:
    """In 200 columns, without colour; a browser of this machine reaches the page that is named; Ctrl-C is the end."""
    with terminal(200, tmp_path, "--stay", NO_COLOR="1") as shown:
        found = re.search(page := r"the page: (\S+)\n", shown.read(until=page))
        assert found is not None
        with urllib.request.urlopen(found[1], timeout=10) as answer:
            assert (answer.status, "radosgw" in answer.read().decode()) == (200, True)
        os.write(shown.screen, b"\x03")
        text = shown.read()
        assert shown.process.wait(60) == 0, text
    assert_fits(text, 200)
    assert ("\x1b" in text, "Traceback" in text) == (False, False)
    assert text.rstrip().splitlines()[-2].endswith("nothing is left")
    assert_nothing_is_left(tmp_path)


@contextlib.contextmanager
def vm(lab: Lab, address: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A VM of the demonstration with Docker, killed at the end."""
    environment = {
        "CONSUL_HTTP_ADDR": lab.consul.address, "SERVICE": "vm-of-the-demo", "ADDRESS": address, "PORT": str(port),
    }  # fmt: skip
    running = subprocess.Popen([sys.executable, str(ROOT / "demo/vm.py")], env=environment, stdout=subprocess.DEVNULL)
    try:
        yield running
    finally:
        running.kill()
        running.wait(10)


def test_a_vm_that_comes_back_elsewhere_says_where(lab: Lab, consul: RawConsul, eventually: Eventually) -> None:
    """Killed, it could not deregister; its new address takes the place of the old one. Stopped, it is gone."""

    def registered() -> list[tuple[str, set[str]]]:
        entries = consul.health("vm-of-the-demo")[1]
        return [(e["Service"]["Address"], {c["Status"] for c in e["Checks"]}) for e in entries]

    def asked() -> bool:
        checks = consul.json("GET", "/v1/agent/checks").values()
        return any(c["ServiceName"] == "vm-of-the-demo" and c["Output"] for c in checks)

    port = free_port()
    with vm(lab, "127.0.0.2", port):
        eventually(registered, [("127.0.0.2", {"passing"})])
        # Consul's first look at it. Of first looks that fail, Consul 1.22 forgot to tell its catalog one in four.
        eventually(asked, True)
    eventually(registered, [("127.0.0.2", {"passing", "critical"})])
    with vm(lab, "127.0.0.3", port) as running:
        eventually(registered, [("127.0.0.3", {"passing"})])
        running.terminate()
        eventually(registered, [])
