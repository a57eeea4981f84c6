"""Services whose address in Consul is a host name.

The bridge's process is given a resolver of the test's own: a `sitecustomize` that reads names from a file (a name that
is not in it hangs, as with a dead DNS server), so that the answers can change while it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.lab import Lab
from tests.support.program import Daemon, bridge, environment, put
from tests.support.raw import RawConsul, RawKube, ready_addresses

pytestmark = pytest.mark.lab

Eventually = Callable[..., None]

SITE = """
import socket, time
real = socket.getaddrinfo
def getaddrinfo(host, *args, **kwargs):
    if not isinstance(host, str) or not host.endswith(".bridge.test"):
        return real(host, *args, **kwargs)
    names = dict(line.split(" ", 1) for line in open({path!r}).read().splitlines())
    if host not in names:
        time.sleep(3600)
    if names[host] == "fail":
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 0)) for a in names[host].split(",")]
socket.getaddrinfo = getaddrinfo
"""


class Names:
    """The names that the bridge's process can resolve."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "names"
        self._names: dict[str, str] = {}
        (folder / "sitecustomize.py").write_text(SITE.format(path=str(self._file)))
        self.set()

    def set(self, **names: str) -> None:
        """`db="10.0.0.1,10.0.0.2"` is what db.bridge.test has from now on; `fail`: a temporary failure."""
        self._names |= names
        put(self._file, "".join(f"{name}.bridge.test {found}\n" for name, found in self._names.items()))


@pytest.fixture
def names(tmp_path: Path) -> Names:
    """No names yet: every one of them hangs."""
    return Names(tmp_path)


@pytest.fixture
def env(lab: Lab, names: Names) -> dict[str, str]:
    """The bridge's environment, with answers that grow old within a second."""
    return environment(
        lab.consul.address, lab.kubeconfig, PYTHONPATH=str(names.folder), BRIDGE_DNS_TTL="1s", BRIDGE_DNS_WAIT="2s"
    )


@pytest.fixture
def daemon(lab: Lab, env: dict[str, str], namespace: str, prefix: str) -> Iterator[Daemon]:
    """`bridge run` for this test's services."""
    made = Daemon(lab, f"run-{prefix}", "--service", f"{prefix}*", "--namespace", namespace, env=env)
    yield made
    made.stop()


def test_names_are_followed_and_one_that_hangs_delays_no_other(
    daemon: Daemon, names: Names, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Eventually
) -> None:
    """Addresses follow the name, stay while it cannot be resolved, and other services are written meanwhile."""

    def ready(service: str) -> list[str]:
        return [address for address, _ in ready_addresses(kube.endpoints(namespace, f"{prefix}{service}"))]

    consul.register(f"{prefix}db", f"{prefix}vm-1", "db.bridge.test", 5432)
    consul.register(f"{prefix}db", f"{prefix}vm-2", "hangs.bridge.test", 5432)
    consul.register(f"{prefix}web", f"{prefix}vm-3", "10.0.1.1", 80)
    names.set(db="10.0.0.1,10.0.0.2")
    daemon.start()
    eventually(lambda: (ready("web"), ready("db")), (["10.0.1.1"], ["10.0.0.1", "10.0.0.2"]), 30)
    consul.deregister(f"{prefix}db", f"{prefix}vm-2")
    names.set(db="10.0.0.2,10.0.0.3")
    eventually(lambda: ready("db"), ["10.0.0.2", "10.0.0.3"], 30)
    names.set(db="fail")
    consul.register(f"{prefix}db", f"{prefix}vm-4", "10.0.0.9", 5432)
    eventually(lambda: ready("db"), ["10.0.0.2", "10.0.0.3", "10.0.0.9"], 30)


def test_a_sync_that_cannot_resolve_takes_nothing_away(
    env: dict[str, str], names: Names, consul: RawConsul, kube: RawKube, namespace: str, prefix: str
) -> None:
    """It waits within bounds, says so, and leaves what another sync has written."""
    consul.register(f"{prefix}db", f"{prefix}vm-1", "db.bridge.test", 5432)
    names.set(db="10.0.0.1")
    command = ("sync", "--service", f"{prefix}*", "--namespace", namespace, "--yes", "-o", "json")
    first = bridge(*command, env=env)
    written = ready_addresses(kube.endpoints(namespace, f"{prefix}db"))
    names.set(db="fail")
    second = bridge(*command, env=env)
    kept = ready_addresses(kube.endpoints(namespace, f"{prefix}db"))
    skipped = [entry["message"] for entry in second.json["skipped"]]
    assert (first.status, written) == (0, [("10.0.0.1", 5432)])
    assert (second.status, second.json["changes"], kept) == (0, [], written)
    assert skipped == ["host name db.bridge.test could not be resolved"]


def test_explain_shows_the_addresses_of_a_name(
    env: dict[str, str], names: Names, consul: RawConsul, namespace: str, prefix: str
) -> None:
    """Not the name alone: what it stands for."""
    consul.register(f"{prefix}db", f"{prefix}vm-1", "db.bridge.test", 5432)
    names.set(db="10.0.0.1,10.0.0.2")
    result = bridge("explain", f"{prefix}db", "--namespace", namespace, "-o", "json", env=env)
    assert [row["address"] for row in result.json["explanations"][0]["rows"]] == ["10.0.0.1, 10.0.0.2"]
