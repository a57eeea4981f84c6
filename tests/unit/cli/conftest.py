"""Ways to run the command: in this process with the engine replaced, or as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bridge.cli import app
from bridge.report import Report
from tests.unit.render.builders import report

ROOT = Path(__file__).resolve().parents[3]

KUBECONFIG = """\
apiVersion: v1
kind: Config
current-context: here
contexts: [{name: here, context: {cluster: c, user: u, namespace: from-context}}]
clusters: [{name: c, cluster: {server: 'http://127.0.0.1:9'}}]
users: [{name: u, user: {token: t}}]
"""


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The developer's own Consul and Kubernetes must not leak in."""
    for name in list(os.environ):
        if name.startswith(("BRIDGE_", "CONSUL_", "KUBE")):
            monkeypatch.delenv(name)
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG)
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))


@dataclass
class Engine:
    """Stands in for `oneshot.sync.sync_once`: notes what it was called with and returns a report."""

    report: Report = field(default_factory=report)
    error: Exception | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, **call: Any) -> Report:
        self.calls.append(call)
        if self.error is not None:
            raise self.error
        if not call["options"].dry_run and call.get("confirm") is not None:
            call["confirm"](self.report)
        return self.report

    @property
    def call(self) -> dict[str, Any]:
        """The only call."""
        (call,) = self.calls
        return call


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """`bridge sync` without servers."""
    import bridge.oneshot.sync

    stand_in = Engine()
    monkeypatch.setattr(bridge.oneshot.sync, "sync_once", stand_in)
    return stand_in


SELECTING = ("--service", "--tag", "--filter", "--config", "--help")


def selecting(arguments: Sequence[str], env: Mapping[str, str] | None = None) -> list[str]:
    """The arguments, with every service selected for who writes: most tests are not about what is selected."""
    writes = arguments[:1] in (("sync",), ("run",))
    said = any(flag in arguments for flag in SELECTING) or any(
        name in (env or {}) for name in ("BRIDGE_SERVICE", "BRIDGE_TAG", "BRIDGE_FILTER", "BRIDGE_CONFIG")
    )
    return [arguments[0], "--service", "*", *arguments[1:]] if writes and not said else list(arguments)


@pytest.fixture
def run() -> Callable[..., Result]:
    """Run the command in this process; see `selecting`, unless `selects` is False."""

    def run(*arguments: str, env: dict[str, str] | None = None, selects: bool = True) -> Result:
        return CliRunner().invoke(app, selecting(arguments, env) if selects else list(arguments), env=env)

    return run


def process(
    *arguments: str, prelude: str = "", env: dict[str, str] | None = None, selects: bool = True, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the command as a process; `prelude` is Python that runs before it (to replace the engine)."""
    return subprocess.run(
        command_line(*arguments, prelude=prelude, env=env, selects=selects), text=True, timeout=60, check=False,
        cwd=ROOT, env=environment(env), **{"capture_output": True, **options},
    )  # fmt: skip


def command_line(
    *arguments: str, prelude: str = "", env: Mapping[str, str] | None = None, selects: bool = True
) -> Sequence[str]:
    """The command as a list for subprocess; see `selecting`, unless `selects` is False."""
    arguments = tuple(selecting(arguments, env) if selects else arguments)
    code = textwrap.dedent(prelude) + "\nfrom bridge.cli import main\nmain()\n"
    return [sys.executable, "-c", f"import sys; sys.argv[0] = 'bridge'\n{code}", *arguments]


def environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """This process's environment (cleaned by the fixture above) and some more."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **(more or {})}
