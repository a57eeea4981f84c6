"""Embedded stand-ins: a small Consul and a small Kubernetes API in one process, where real servers are not at hand.

They are the servers of tests/support/fakes, which pass the same contract tests as the real ones (tests/contract),
behind the lab's own face; the Consul has an agent here, whose checks ask real programs over real sockets. What they are
not: there is no disk, no cluster, no access control and no controller behind them.

    with EmbeddedLab() as lab:
        lab.consul.address, lab.kubeconfig
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.support.lab import Lab
from tests.support.lab.servers import Program, python

ROOT = Path(__file__).resolve().parents[3]


class EmbeddedLab(Lab):
    """A lab whose Consul and API server are the stand-ins, in a process of their own."""

    def __init__(self) -> None:
        super().__init__(own=True)
        self._about = self.folder / "embedded" / "about.json"
        self._servers = Program(
            self._about.parent,
            [python(), "-m", "tests.support.embedded", str(self._about.parent)],
            {**os.environ, "PYTHONPATH": str(ROOT)},
            self._about.exists,
        )

    def start(self) -> EmbeddedLab:
        """Start both; ready when it returns."""
        try:
            self.add(self._servers)
            self._servers.start()
            about = json.loads(self._about.read_text())
        except BaseException as error:
            self.close(keep=not isinstance(error, KeyboardInterrupt))
            raise
        self.consul.address = about["consul"]
        self.kubeconfig = Path(about["kubeconfig"])
        self.apiserver.url = about["kubernetes"]
        return self
