"""Removes a lab's folder when the process that made it is killed.

The servers need none: the kernel ends them with their parent. Their folder would stay; so a shell waits at the end of
a pipe that closes when its owner ends, however that happens. It sleeps the rest of the time.
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

# The servers are dying at the same moment: a second look takes what they still wrote.
_WAIT = 'read -r word || { rm -rf -- "$1"; sleep 0.5; rm -rf -- "$1"; }'


class Janitor:
    """Waits beside one folder; `dismiss` it when the folder was dealt with."""

    def __init__(self, folder: Path) -> None:
        self._shell: subprocess.Popen[bytes] | None = subprocess.Popen(
            ["sh", "-c", _WAIT, "lab-janitor", str(folder)],
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
