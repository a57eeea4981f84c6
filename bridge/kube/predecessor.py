"""Whether another process of our own container certainly has ended, so that no replica waits for its Lease to run out.

kubelet starts a container of a pod only when the one before it of that name has ended, however that hung or was cut
off. So a process proves that it is the successor of another by what kubelet mounted into both, the file of the
termination message, whose path names the pod's uid and the container. Two processes of one container (`kubectl exec`)
share a process namespace, where the other one can be looked up. Where either cannot be read (no kubelet, a sandbox with
a kernel of its own, no termination message), nothing is known, and the Lease runs out as any other.
"""

from __future__ import annotations

import re
from pathlib import Path

PROC = Path("/proc")

_MOUNT = re.compile(r" \S*/pods/([0-9a-f-]{32,36})/containers/([^/ ]+)/[0-9a-f]+ ")


def own_process(proc: Path = PROC) -> str:
    """POD/CONTAINER/PROCESS NAMESPACE/PID/START of this process, "" where it cannot be told."""
    try:
        found = set(_MOUNT.findall((proc / "self/mountinfo").read_text()))
        namespace = str((proc / "self/ns/pid").readlink())
        pid, started = _stat(proc / "self/stat")
    except (OSError, ValueError):
        return ""
    return "/".join((*found.pop(), namespace, pid, started)) if len(found) == 1 else ""


def has_ended(process: str, proc: Path = PROC) -> bool:
    """Whether the process that calls itself this has certainly ended."""
    theirs, ours = process.split("/"), own_process(proc).split("/")
    if len(theirs) != 5 or theirs[:2] != ours[:2]:
        return False
    return theirs[2] != ours[2] or not _runs(theirs[3], theirs[4], proc)


def _runs(pid: str, started: str, proc: Path) -> bool:
    """Whether this very process may still be there: also where we may not look."""
    try:
        return _stat(proc / pid / "stat") == (pid, started)
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True


def _stat(file: Path) -> tuple[str, str]:
    """The pid and the start of a process, in ticks since the machine's."""
    text = file.read_text()
    return text.split(" ", 1)[0], text.rpartition(")")[2].split()[19]
