"""Completion by Tab in real shells, switched on by the lines that README.md has for it."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.program import BRIDGE

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 30.0
SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], ""),
    "zsh": (["zsh", "-f", "-i"], "autoload -U compinit && compinit -u -D"),
}
"""How each is started without anyone's settings, and what README.md takes for granted there."""


def line_for(shell: str) -> str:
    """The line of README.md, without its comment."""
    (found,) = re.findall(rf"^    (eval .*source_{shell} \S*)", (ROOT / "README.md").read_text(), re.MULTILINE)
    return str(found)


def typed(shell: str, text: str, expected: str) -> str:
    """What is on the terminal after `text` and Tab were typed, as soon as `expected` is there."""
    command, before = SHELLS[shell]
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={"PATH": f"{Path(BRIDGE).parent}:{os.environ['PATH']}", "TERM": "dumb", "HOME": "/nowhere"},
    )  # fmt: skip
    os.close(theirs)
    shown = ""

    def until(words: str) -> None:
        nonlocal shown
        deadline = time.monotonic() + SECONDS
        while words not in shown:
            assert time.monotonic() < deadline, shown
            if select.select([ours], [], [], 0.2)[0]:
                shown += os.read(ours, 65536).decode(errors="replace")

    try:
        # The shell repeats what is typed: only what it computed shows that it got there.
        os.write(ours, f"{before}\n{line_for(shell)}\necho $((6 * 7))-is-reached\n".encode())
        until("42-is-reached")
        os.write(ours, f"{text}\t".encode())
        until(expected)
        return shown
    finally:
        process.kill()
        process.wait(10)
        os.close(ours)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("text", "expected"), [("bridge expl", "bridge explain "), ("bridge sync --consul-addr", "--consul-address ")]
)
def test_tab_completes_commands_and_flags(shell: str, text: str, expected: str) -> None:
    """In the shell in which it was switched on."""
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} on this machine")
    typed(shell, text, expected)
