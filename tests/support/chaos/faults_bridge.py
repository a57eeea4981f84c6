"""What goes wrong with the bridge itself and with the machine below it."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

from tests.support.chaos.faults import CONSUL_DOWN, EITHER, ENDED, READY, Fault, Metric, log, simple
from tests.support.chaos.harness import Bridge, Harness, processors, wait_for
from tests.support.lab.servers import spawn


class BridgeKill(Fault):
    """kill -9 in the middle of its work, several times."""

    name = "bridge-kill"
    what = "kill -9 of the bridge at random points of its work, three times, each time started again at once"
    shows = (log("bridge starts"), log("full pass planned"))
    readiness = READY
    new_process = True

    def inject(self, harness: Harness, rng: random.Random) -> None:
        for _ in range(3):
            wait_for(lambda: False, rng.uniform(0.1, 1.0))
            harness.bridge.kill()
            harness.bridge.start(wait=False)
        harness.bridge.wait_ready()

    def heal(self, harness: Harness) -> None:
        """It runs."""


class BridgeTerm(Fault):
    """A rolling update under load."""

    name = "bridge-sigterm"
    what = "SIGTERM while it writes; started again a second later"
    shows = (log("stopping"), log("bridge has stopped"))
    readiness = ENDED
    new_process = True

    def inject(self, harness: Harness, rng: random.Random) -> None:
        for n in range(3):
            harness.fleet.set_status(f"c-{n * 3}", "critical")
        os.kill(harness.bridge.pid, signal.SIGTERM)
        self._status = harness.bridge.wait(10)

    def during(self, harness: Harness) -> Iterator[str]:
        if self._status != 143:
            yield f"the exit status is {self._status}, not 143"

    def heal(self, harness: Harness) -> None:
        harness.bridge.start()


class BridgeFiles(Fault):
    """A limit of open files that is too low."""

    name = "bridge-files"
    what = "the bridge may open no further file descriptor (its own page included), and its connections are broken"
    shows = (CONSUL_DOWN,)
    readiness = EITHER

    def inject(self, harness: Harness, rng: random.Random) -> None:
        self._pid = harness.bridge.pid
        self._before = resource.prlimit(self._pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self._pid, resource.RLIMIT_NOFILE, (8, self._before[1]))
        harness.to_consul.lead_to(harness.to_consul.upstream)
        harness.to_kube.lead_to(harness.to_kube.upstream)

    def heal(self, harness: Harness) -> None:
        resource.prlimit(self._pid, resource.RLIMIT_NOFILE, self._before)


class BridgeBug(Fault):
    """A bug in one thread."""

    name = "bridge-thread-bug"
    what = (
        "a writer's thread dies of a bug: the process ends with status 1, so that whatever started it starts it again"
    )
    shows = (log("a thread died", "injected"),)
    readiness = ENDED
    new_process = True

    def inject(self, harness: Harness, rng: random.Random) -> None:
        harness.replace_bridge(("--bug-after", "3"), wait=False)
        self._status = harness.bridge.wait(60)

    def during(self, harness: Harness) -> Iterator[str]:
        if self._status != 1:
            yield f"the exit status is {self._status}, not 1"

    def heal(self, harness: Harness) -> None:
        harness.replace_bridge()


class BridgeDisk(Fault):
    """No room, and no right to write."""

    name = "bridge-disk"
    what = "the log goes to a full disk (`/dev/full`), the temporary folder is not there, the work folder is read-only"
    shows = (Metric("consul_bridge_ready", "1"),)
    readiness = READY
    new_process = True
    hold_seconds = 3.0

    def inject(self, harness: Harness, rng: random.Random) -> None:
        harness.bridge.stop()
        harness.bridge = FullDisk(harness, harness.new_bridge().folder.name)
        harness.bridge.start()

    def heal(self, harness: Harness) -> None:
        os.kill(harness.bridge.pid, signal.SIGTERM)
        self._status = harness.bridge.wait(10)
        harness.bridge.stop()
        harness.bridge = harness.new_bridge()
        harness.bridge.start()
        if self._status != 143:
            harness.observer.report("vi", f"{self.name}: the exit status is {self._status}, not 143")


class FullDisk(Bridge):
    """A bridge whose output fails with ENOSPC."""

    def start(self, wait: bool = True) -> None:
        """Start it with its output on /dev/full."""
        environment = {**self._environment, "TMPDIR": "/nonexistent", "HOME": "/nonexistent"}
        with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device, not a path to work with
            self._process = spawn(
                self._command, stdin=subprocess.DEVNULL, stdout=full, stderr=full, cwd="/proc", env=environment
            )
        if wait:
            self.wait_ready()


class BusyMachine(Fault):
    """Another job on the same machine."""

    name = "machine-cpu"
    what = "others keep every processor busy, three processes each"
    shows = (Metric("consul_bridge_ready", "1"),)
    readiness = READY
    hold_seconds = 4.0

    def inject(self, harness: Harness, rng: random.Random) -> None:
        burn = f"import time\nend = time.monotonic() + {self.hold_seconds + 30}\nwhile time.monotonic() < end: pass"
        self._others = [spawn([sys.executable, "-c", burn]) for _ in range(3 * processors())]

    def heal(self, harness: Harness) -> None:
        for process in self._others:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()


def _launched(name: str, what: str, *launcher: str) -> type[Fault]:
    """A bridge that runs in a launcher meanwhile, and is well all the time."""
    return simple(
        name, what, (Metric("consul_bridge_ready", "1"),), lambda harness: harness.replace_bridge(launcher),
        Harness.replace_bridge, READY, new_process=True, hold_seconds=3.0,
    )  # fmt: skip


FAULTS: Sequence[type[Fault]] = (
    BridgeKill, BridgeTerm, BridgeFiles, BridgeBug, BridgeDisk,
    _launched(
        "machine-clock", "the machine's clock jumps forward and back by an hour, several times a second",
        "--clock-jump", "3600",
    ),
    _launched(
        "machine-resolver", "every look-up of a name or address takes a second; all connections are new",
        "--resolver-delay", "1",
    ),
    BusyMachine,
)  # fmt: skip
