"""`make demo` on a machine with no servers at all: the embedded stand-ins, in a terminal and in a pipe."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.conftest import Eventually
from tests.support.demo.terminal import (
    ESCAPE,
    ROOT,
    SECONDS,
    STEPS,
    assert_fits,
    assert_nothing_is_left,
    checkout,
    headings,
    left,
    terminal,
)

REAL = "make demo REAL=1"


def programs(folder: Path) -> str:
    """A PATH with what every machine has and nothing else: no docker, no go, no servers."""
    folder.mkdir()
    for name in ("sh", "ip", "unshare", "rm", "sleep", "mount"):
        for place in ("/usr/bin", "/bin", "/usr/sbin", "/sbin"):
            if Path(place, name).exists():
                (folder / name).symlink_to(Path(place, name))
                break
    return str(folder)


def test_without_any_servers_it_tells_the_same_story_on_stand_ins_and_reports_it(tmp_path: Path) -> None:
    """The first and the last line name them and the way to real ones; nothing is built, nothing is left."""
    before = checkout()
    environment = {
        "PATH": programs(tmp_path / "machine"), "XDG_CACHE_HOME": str(tmp_path / "cache"), "LAB_PROVIDER": "",
    }  # fmt: skip
    with terminal(80, tmp_path, **environment) as shown:
        text = shown.read()
        assert shown.process.wait(SECONDS) == 0, text
    assert_fits(text, 80)
    plain = ESCAPE.sub("", text)
    assert headings(text) == STEPS
    first, *_, last = plain.strip().split("\n\n")
    for told in (first, last):
        assert "embedded stand-ins for Consul and Kubernetes" in " ".join(told.split())
        assert REAL in " ".join(told.split())
    assert "11, 1 not ready: 10.77.0.13\n" in plain
    assert "13 of 13: radosgw-01 ... radosgw-13\n" in plain
    assert not (tmp_path / "cache").exists()
    assert checkout() == before
    assert_nothing_is_left(tmp_path)


def test_stand_ins_need_neither_root_nor_namespaces(tmp_path: Path) -> None:
    """The gateways share loopback then, and each is asked where it listens."""
    path = programs(tmp_path / "machine")
    (tmp_path / "machine" / "unshare").unlink()
    done = subprocess.run(
        [sys.executable, "-B", "-m", "tests.support.demo"],
        cwd=ROOT, env={"PATH": path, "HOME": str(tmp_path), "TERM": "xterm-256color"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert headings(done.stdout) == STEPS
    assert "12 HTTP servers, on loopback, each checked by Consul every second\n" in done.stdout
    assert "13 of 13: radosgw-01 ... radosgw-13\n" in done.stdout
    assert "\x1b" not in done.stdout


def test_ctrl_c_leaves_no_stand_in_either(tmp_path: Path) -> None:
    """The status is that of an interrupted command."""
    with terminal(80, tmp_path, LAB_PROVIDER="embedded") as shown:
        shown.read(until="Do it")
        os.write(shown.screen, b"\x03")
        text = shown.read()
        assert shown.process.wait(SECONDS) == 130, text
    assert "Traceback" not in text
    assert_nothing_is_left(tmp_path)


def test_a_kill_from_outside_leaves_no_process_either(tmp_path: Path, eventually: Eventually) -> None:
    """`timeout`, or a CI job that ends, sends SIGTERM to one process alone; no terminal hangs up on the rest."""
    (tmp_path / "tmp").mkdir()
    running = subprocess.Popen(
        [sys.executable, "-B", "-m", "tests.support.demo", "--stay"],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path / "tmp"), "LAB_PROVIDER": "embedded"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    with running:
        assert running.stdout is not None
        assert any("the page: http" in line for line in running.stdout), "it ended early"
        assert left(tmp_path)[0]
        running.terminate()
        assert running.wait(10) == -signal.SIGTERM
        eventually(lambda: left(tmp_path)[0], [])
