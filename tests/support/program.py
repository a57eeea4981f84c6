"""The bridge as its users run it: the installed command in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.lab import Lab, free_port
from tests.support.lab.secret_scan import learn, untold
from tests.support.lab.servers import Program

BRIDGE = str(Path(sys.executable).parent / "bridge")


@dataclass(frozen=True, slots=True)
class Result:
    """What one command said and how it ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.stdout)


def environment(consul_address: str, kubeconfig: Path | str, **further: str) -> dict[str, str]:
    """A clean environment that points at the given servers."""
    kept = {k: os.environ[k] for k in ("PATH", "HOME", "LANG", "TMPDIR") if k in os.environ}
    return {**kept, "CONSUL_HTTP_ADDR": consul_address, "KUBECONFIG": str(kubeconfig), **further}


def bridge(*arguments: str, env: Mapping[str, str], stdin: str = "", timeout: float = 60.0) -> Result:
    """Run one command to its end; AssertionError when it says a secret."""
    learn(env)
    done = subprocess.run(
        [BRIDGE, *arguments], env=dict(env), input=stdin, capture_output=True, text=True, timeout=timeout, check=False
    )
    for stream in (done.stdout, done.stderr):
        untold(stream, f"bridge {' '.join(arguments)}")
    return Result(done.returncode, done.stdout, done.stderr)


def put(file: Path, text: str) -> None:
    """Write a file that a running bridge may read at any moment: whole or not at all."""
    new = file.with_name(f"{file.name}.new")
    new.write_text(text)
    new.replace(file)


class Daemon(Program):
    """`bridge run`, with its HTTP address."""

    def __init__(self, lab: Lab, name: str, *arguments: str, env: Mapping[str, str], program: str = BRIDGE) -> None:
        learn(env)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        super().__init__(
            lab.folder / name,
            [program, "run", "--listen", f"127.0.0.1:{self.port}", "--log-format", "json", *arguments],
            env,
            self.ready,
        )

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a GET; (0, b"") when no server answers. AssertionError when a secret is on the page."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read()
        except OSError:
            return 0, b""
        untold(body.decode(errors="replace"), f"GET {path}")
        return status, body

    def _end(self, how: signal.Signals) -> None:
        """As every server; its log is complete now: AssertionError, in a teardown as well, when a secret is in it."""
        super()._end(how)
        if self.log.exists():
            untold(self.log.read_text(errors="replace"), str(self.log))

    def ready(self) -> bool:
        """Whether /readyz says so."""
        return self.get("/readyz")[0] == 200

    def readiness(self) -> dict[str, Any]:
        """The detail of /readyz, {} when no server answers."""
        body = self.get("/readyz")[1]
        return dict(json.loads(body)) if body else {}

    def events(self) -> list[dict[str, Any]]:
        """The log's lines as JSON, without one that is being written."""
        text = self.log.read_text()
        lines = text[: text.rfind("\n") + 1].splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def metric(self, name: str) -> float:
        """The sum of a metric's samples; 0 when there is none."""
        text = self.get("/metrics")[1].decode()
        rows = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(row.rpartition(" ")[2]) for row in rows)

    def memory_bytes(self) -> int:
        """Resident memory now."""
        fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self) -> float:
        """Processor time used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def threads(self) -> int:
        """Threads of the process."""
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))


def pause(seconds: float) -> None:
    """Let real time pass, where a test is about just that."""
    time.sleep(seconds)
