"""Removes a lab's folder when the process that made it is killed.

The servers need none: the kernel ends them with their parent. Their folder would stay (and a container, where servers
are containers); so a shell waits at the end of a pipe that closes when its owner ends, however that happens. Where even
the shell was killed, as in a process namespace that ended, the next lab finds a folder that no process holds any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

PREFIX = "bridge-lab-"
_HELD = ".held"
"""A file in the folder that its owner has locked. One without it is kept for a user to read."""

# The servers are dying at the same moment: a second look takes what they still wrote.
_WAIT = 'read -r word || { eval "$2"; rm -rf -- "$1"; sleep 0.5; rm -rf -- "$1"; }'


def new_folder() -> Path:
    """A folder for a lab; those that were left by killed ones are removed on the way."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{_HELD}"):
        with contextlib.suppress(OSError), left.open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left.parent, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=PREFIX))


class Reaper:
    """Waits beside one folder; `dismiss` it when the folder was dealt with. `command`: what else it is to do."""

    def __init__(self, folder: Path, command: str = "") -> None:
        self._held = folder / _HELD
        new = self._held.with_suffix(".new")  # never seen without its lock
        self._descriptor = os.open(new, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        new.rename(self._held)
        self._shell: subprocess.Popen[bytes] | None = subprocess.Popen(
            ["sh", "-c", _WAIT, "lab-reaper", str(folder), command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # a Ctrl-C at the terminal is not for it
        )

    def dismiss(self) -> None:
        """Send it away; the folder stays as it is. Once is enough, twice does no harm."""
        shell, self._shell = self._shell, None
        if shell is None or shell.stdin is None:
            return
        with contextlib.suppress(BrokenPipeError):
            shell.stdin.write(b"done\n")
            shell.stdin.close()
        shell.wait(10)
        self._held.unlink(missing_ok=True)
        os.close(self._descriptor)
