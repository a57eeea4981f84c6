"""The bridge against other versions of Kubernetes and Consul: `make compat`; results: docs/compatibility.md."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def run_tests(command: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[str, bool]:
    """Run pytest and print what it says; its last line, and whether it passed."""
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, flush=True)
    return (done.stdout.strip().splitlines() or ["nothing ran"])[-1], done.returncode == 0
