"""What the benchmarks see of the processes: the audit log as it grows, threads, connections, processor, memory."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from tests.support.lab import Lab, LabError

WRITES = ("patch", "create", "update", "delete")
SLICES = "endpointslices"
KINDS = ("services", "endpoints", SLICES)
ESTABLISHED, CLOSE_WAIT = "01", "08"
STATES = {ESTABLISHED: "established", CLOSE_WAIT: "cut by the client, still held"}


class Tail:
    """The writes that the API server answers, read from its audit log as it grows. For one thread."""

    def __init__(self, lab: Lab, namespace: str = "default") -> None:
        self._path = lab.audit_log
        self._namespace = namespace
        self._inode = self._path.stat().st_ino
        self._offset = self._path.stat().st_size
        self._rest = b""

    def read(self) -> list[tuple[float, str, str]]:
        """(when, resource, service) of the writes since the last call that the API server made, oldest first.

        Raises LabError when the server began another log: what is only in the old one would count as not written.
        """
        with self._path.open("rb") as file:
            if os.fstat(file.fileno()).st_ino != self._inode:
                raise LabError(f"the API server began another {self._path} while it was being read")
            file.seek(self._offset)
            new = file.read()
        self._offset += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        return [found for line in lines if b'"verb":"get"' not in line and (found := self._write(json.loads(line)))]

    def _write(self, raw: dict[str, Any]) -> tuple[float, str, str] | None:
        ref = raw.get("objectRef") or {}
        if raw.get("verb") not in WRITES or ref.get("namespace") != self._namespace or "subresource" in ref:
            return None
        if raw.get("responseStatus", {}).get("code", 0) >= 300 or ref.get("resource") not in KINDS:
            return None
        name: str = ref.get("name", "")
        if ref["resource"] == SLICES:  # the Service's name and a digest
            name = name.rpartition("-")[0]
        return datetime.fromisoformat(raw["stageTimestamp"]).timestamp(), ref["resource"], name

    def count(self, prefix: str = "bench-") -> int:
        """Writes of ours since the last call."""
        return sum(name.startswith(prefix) for _, _, name in self.read())

    def lag(self, name: str, change: Callable[[], object], seconds: float = 30.0) -> float:
        """Milliseconds from the end of `change` to the next write of that Service's EndpointSlice. Raises LabError."""
        self.read()
        change()
        at = time.time()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for when, kind, found in self.read():
                if kind == SLICES and found == name:
                    return (when - at) * 1000
            time.sleep(0.002)
        raise LabError(f"a change of {name} was not written within {seconds:.0f} s")


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def age_seconds(pid: int) -> float:
    """How long a process has been running."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


def cpu_share(pid: int, seconds: float) -> float:
    """Per cent of one core that a process uses during the next `seconds`."""
    before, began = cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds(pid) - before) / (time.monotonic() - began) * 100


def sockets(pid: int) -> set[str]:
    """Inodes of the sockets that a process has open."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            link = str(entry.readlink())
        except OSError:
            continue
        if link.startswith("socket:["):
            found.add(link[8:-1])
    return found


def connections(pid: int, port: int, table: str) -> int:
    """Open connections of a process to a port, from the text of /proc/net/tcp."""
    mine = sockets(pid)
    rows = (line.split() for line in table.splitlines()[1:])
    return sum(
        row[3] in (ESTABLISHED, CLOSE_WAIT) and int(row[2].rpartition(":")[2], 16) == port and row[9] in mine
        for row in rows
    )


def accepted(pid: int, port: int, table: str) -> Counter[str]:
    """Connections that a server holds at its port, by state, from the text of /proc/net/tcp.

    One that its client ended stays (`CLOSE_WAIT`) until the server lets it go: Consul does so when the query is over.
    """
    mine = sockets(pid)
    rows = (line.split() for line in table.splitlines()[1:])
    return Counter(
        STATES[row[3]]
        for row in rows
        if row[3] in STATES and int(row[1].rpartition(":")[2], 16) == port and row[9] in mine
    )


def peak_memory_bytes(pid: int) -> int:
    """The most resident memory that a process ever had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


class Sampler:
    """Most threads and connections to Consul that a process ever had, looked at ten times a second.

    And the most connections that Consul itself held: also those of a process that is gone.
    """

    def __init__(
        self, port: int, pid: Callable[[], int | None], server: int, every_seconds: float = 0.1
    ) -> None:  # fmt: skip
        """`port`: Consul's; `pid`: of the process now, None while there is none; `server`: Consul's process."""
        self._port = port
        self._pid = pid
        self._server = server
        self._every_seconds = every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self.threads = 0
        self.connections = 0
        self.accepted: Counter[str] = Counter()
        self.samples = 0

    def _run(self) -> None:
        while not self._stop.wait(self._every_seconds):
            try:
                table = Path("/proc/net/tcp").read_text()
                self.accepted = max(self.accepted, accepted(self._server, self._port, table), key=Counter.total)
                pid = self._pid()
                if pid is None:
                    continue
                self.threads = max(self.threads, len(list(Path(f"/proc/{pid}/task").iterdir())))
                self.connections = max(self.connections, connections(pid, self._port, table))
                self.samples += 1
            except OSError:  # it ended meanwhile
                continue

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
