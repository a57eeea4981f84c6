"""One cluster with pods for the whole folder: the bridge as README has it, and a client pod that never stops asking."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.support.lab.build import NONE
from tests.support.lab.pods import Cluster, trouble
from tests.support.lab.pods.installation import Installation
from tests.support.lab.traffic_testbed import Load

VMS = 12
RATE = 20.0
SLOW = "PODS_SLOW"
"""Set to 1 by `make pods`: what is slow and rare runs as well."""

_FIGURES = pytest.StashKey[list[tuple[str, str]]]()


@dataclass(frozen=True, slots=True)
class Storage:
    """What most tests are about: the bridge in the namespace `storage`, twelve gateways, and a client of theirs."""

    cluster: Cluster
    bridge: Installation
    client: Load


def no_cluster() -> None:
    """Where no cluster can run: a failure in continuous integration, elsewhere a skip; with the reason in any case."""
    if os.environ.get("LAB_PROVIDER") == NONE:
        pytest.skip("no servers: LAB_PROVIDER=none")
    if reason := trouble():
        if os.environ.get("CI") == "true":
            pytest.fail(f"no cluster with pods can run here: {reason}")
        pytest.skip(f"no cluster with pods can run here: {reason}")


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two nodes and twelve VMs. Its logs are kept when a test failed."""
    no_cluster()
    with Cluster(nodes=2, vms=VMS) as running:
        yield running
        running.keep = request.session.testsfailed > 0


@pytest.fixture(scope="session")
def installed(cluster: Cluster) -> Storage:
    """The bridge, installed; every gateway answers the client."""
    bridge = Installation(cluster, "storage")
    bridge.make_namespace()
    bridge.install(rules=RULES)
    bridge.await_addresses("radosgw", VMS)
    client = bridge.client("radosgw", 8080, RATE)
    client.await_calm(40)
    return Storage(cluster, bridge, client)


RULES = """rules:
  - services: ["radosgw*"]
    to:
      name: "{service}"
      port: 8080
      port_name: http
"""


@pytest.fixture
def storage(installed: Storage) -> Storage:
    """The same, in steady state: two replicas ready, twelve gateways, and no request that fails."""
    installed.bridge.await_rollout()
    installed.bridge.await_ready_pods(2)
    installed.bridge.await_addresses("radosgw", VMS)
    installed.client.await_calm(20)
    return installed


Figure = Callable[[str, str], None]


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """Note what was measured: `figure("leader pod deleted", "another leads after 0.9 s")`."""
    return lambda what, measured: request.config.stash.setdefault(_FIGURES, []).append((what, measured))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the figures, as docs/reliability.md has them."""
    if figures := config.stash.get(_FIGURES, []):
        terminalreporter.section("pods: what was measured")
        for what, measured in figures:
            terminalreporter.write_line(f"| {what} | {measured} |")


@pytest.fixture
def began(storage: Storage) -> float:
    """The time at which the test began, in steady state."""
    return time.time()


__all__ = ["Figure", "Storage"]
