"""What `python -m tests.support.lab up` left running, and the care with which it is ended.

A process id alone says nothing: ids are reused. An entry is a process id together with the time at which the kernel
started it, and a signal goes through a pidfd that was checked after it was opened, so it can reach no other process.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """A process as the kernel knows it. `started`: clock ticks since boot, with the boot's own id."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The live process of that id, None when there is none (or only its exit status is left)."""
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return None
        # The name in parentheses may hold anything; what follows the last one starts with the state (field 3).
        fields = text.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else cls(pid, f"{boot}:{fields[19]}")

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return self.pid > 0 and Process.of(self.pid) == self

    def signal(self, number: signal.Signals, wait_seconds: float = 0.0) -> bool:
        """Send a signal to this process or to none, and wait for its end; whether it is gone."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            return True
        try:
            if not self.alive:
                return True
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
            ended = bool(select.select([descriptor], [], [], wait_seconds)[0])
            return ended or not self.alive
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class State:
    """A lab that runs in the background. `servers`: by name, in the order of their start."""

    supervisor: Process
    folder: str
    kubeconfig: str
    consul_address: str
    consul_token: str = ""
    provider: str = ""
    consul_for_pods: str = ""
    servers: dict[str, Process] = field(default_factory=dict)

    @property
    def alive(self) -> bool:
        """Whether the process that holds the servers runs."""
        return self.supervisor.alive

    def write(self, path: Path) -> None:
        """Write it, whole or not at all, readable by its owner alone."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.{os.getpid()}")
        new.touch(mode=0o600)
        new.write_text(json.dumps(asdict(self), indent=2) + "\n")
        new.replace(path)

    @classmethod
    def read(cls, path: Path) -> State | None:
        """What is in the file; None when there is none, or none that we wrote."""
        try:
            raw = json.loads(path.read_text())
            raw["supervisor"] = Process(**raw["supervisor"])
            raw["servers"] = {name: Process(**entry) for name, entry in raw["servers"].items()}
            return cls(**raw)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
