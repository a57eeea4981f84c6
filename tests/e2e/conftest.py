"""Fixtures of several files of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.lab import Lab
from tests.support.program import Daemon, Result, bridge, environment

Json = dict[str, Any]
Sync = Callable[..., Result]


@pytest.fixture
def sync(lab: Lab, namespace: str, tmp_path: Path) -> Sync:
    """Run `bridge sync` with rules, as in a file; what a rule does not say goes to this test's namespace."""
    return syncing(lab, namespace, tmp_path)


def syncing(lab: Lab, namespace: str, folder: Path, consul: str = "") -> Sync:
    """The same for any lab, or for another Consul at an address."""

    def run(
        *rules: Json,
        arguments: tuple[str, ...] = (),
        status: int = 0,
        command: tuple[str, ...] = ("sync", "--yes"),
        **settings: Any,
    ) -> Result:
        whole = [{**rule, "to": {"namespace": namespace, **rule.get("to", {})}} for rule in rules]
        file = folder / "bridge.yaml"
        file.write_text(yaml.safe_dump({"rules": whole, **settings}))
        env = environment(consul or lab.consul.address, lab.kubeconfig)
        result = bridge(*command, "--config", str(file), "-o", "json", *arguments, env=env)
        assert result.status == status, result.stderr
        return result

    return run


@pytest.fixture
def daemon(lab: Lab, namespace: str, prefix: str) -> Iterator[Daemon]:
    """A bridge for this test's services, ready."""
    chosen = ("--service", f"{prefix}*", "--namespace", namespace, "--removal-grace-period", "1s")
    env = environment(lab.consul.address, lab.kubeconfig)
    running = Daemon(lab, f"bridge-{namespace}", *chosen, env=env)
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def dual() -> Iterator[Lab]:
    """Servers of this module's own whose Services can have both families."""
    made = Lab(own=True)
    made.apiserver.service_ranges = "10.96.0.0/16,fd00:96::/108"
    made.start()
    yield made
    made.close()
