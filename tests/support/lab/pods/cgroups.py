"""The cgroups (v1) of the nodes: a group for each node below our own, in every hierarchy, removed when it has ended.

Inside of its cgroup namespace a node sees its group as the root, so that kubelet and containerd make theirs below it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from tests.support.lab.build import LabError
from tests.support.lab.reaper import PREFIX

NEEDED = frozenset({"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "pids"})
"""What kubelet and runc cannot do without."""
END_SECONDS = 10.0


def parents(text: str, mounted: Path = Path("/sys/fs/cgroup")) -> dict[str, Path]:
    """Our own group in each v1 hierarchy, by its controllers; `text` of /proc/self/cgroup."""
    found = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers:
            found[controllers] = mounted / controllers.removeprefix("name=") / path.lstrip("/")
    return found


def ours() -> dict[str, Path]:
    """The same for this process."""
    return parents(Path("/proc/self/cgroup").read_text())


def trouble(groups: dict[str, Path]) -> str | None:
    """What keeps us from making groups for nodes below these; None when nothing does."""
    controllers = {name for names in groups for name in names.split(",")}
    if missing := sorted(NEEDED - controllers):
        return f"cgroup v1 hierarchies are needed, and there are none here for: {', '.join(missing)}"
    for group in groups.values():
        probe = group / f"{PREFIX}try-{os.getpid()}"
        try:
            probe.mkdir()
            probe.rmdir()
        except OSError as error:
            return f"no cgroup can be made here: {probe.parent}: {error.strerror}"
    return None


def make(lab: Path, node: str) -> list[Path]:
    """The groups of one node."""
    made = []
    for parent in ours().values():
        group = parent / f"{lab.name}-{node}"
        try:
            group.mkdir()
            for setting in ("cpuset.cpus", "cpuset.mems"):
                if (group / setting).exists():
                    (group / setting).write_text((parent / setting).read_text())
        except OSError as error:
            raise LabError(f"the cgroup {group} cannot be made: {error.strerror}") from error
        made.append(group)
    return made


def remove(groups: Iterable[Path]) -> None:
    """Remove them with all that is below, once the last process in them has ended. Raises LabError."""
    deadline = time.monotonic() + END_SECONDS
    while left := [group for group in groups if group.exists()]:
        for group in left:
            _remove_empty(group)
        if time.monotonic() > deadline:
            raise LabError(f"these cgroups cannot be removed: {', '.join(map(str, left))}")
        time.sleep(0.02)


def reap() -> None:
    """Remove those of labs that were killed, folder and all, before they could."""
    for parent in ours().values():
        for group in parent.glob(f"{PREFIX}*-node-*"):
            if not (Path(tempfile.gettempdir()) / group.name.rpartition("-node-")[0]).exists():
                _remove_empty(group)


def clean_up_command(lab: Path) -> str:
    """The shell command that does `remove` for all nodes of a lab when its owner was killed."""
    groups = " ".join(f"{shlex.quote(f'{parent}/{lab.name}')}-node-*" for parent in ours().values())
    return (
        f'tries=0; while [ $tries -lt 100 ]; do tries=$((tries + 1)); left=; for group in {groups}; do '
        '[ -d "$group" ] && left=1 && find "$group" -depth -type d -exec rmdir {} \\; ; done; '
        '[ -n "$left" ] || break; sleep 0.1; done'
    )  # fmt: skip


def _remove_empty(top: Path) -> None:
    for found, _, _ in os.walk(top, topdown=False):
        with contextlib.suppress(OSError):
            Path(found).rmdir()
