"""Releases, settings and drains, while VMs change and a pod asks."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.pods.conftest import RULES, VMS, Figure, Storage
from tests.support.lab import manifests
from tests.support.lab.pods.installation import SELECTOR
from tests.support.lab.servers import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

FURTHER_RULE = """  - services: ["postgres"]
    to:
      name: sql
      port: 5432
"""
WRONG = RULES.replace("port: 8080", "port: 808080")


def slowest_change(storage: Storage, seconds: float = 120.0) -> float:
    """Until the Deployment has rolled out, a VM leaves and comes back; how long the slowest change took."""
    slowest, deadline = 0.0, time.monotonic() + seconds
    while not storage.bridge.rolled_out():
        assert time.monotonic() < deadline
        for on, count in ((True, VMS - 1), (False, VMS)):
            storage.cluster.maintenance("radosgw", 2, on=on)
            slowest = max(slowest, storage.bridge.await_addresses("radosgw", count))
    return slowest


@pytest.fixture
def as_before(storage: Storage) -> Iterator[None]:
    """Afterwards the plain overlay is there again, and every node takes pods."""
    yield
    storage.cluster.kubectl("uncordon", *(node.name for node in storage.cluster.nodes))
    storage.bridge.install(rules=RULES)


@pytest.mark.usefixtures("as_before")
def test_a_release_and_a_change_of_settings_roll_out_unnoticed(storage: Storage, figure: Figure) -> None:
    """Another image, then another rule: changes in Consul go on being carried out, and no request fails."""
    since, before = time.time(), {pod["metadata"]["name"] for pod in storage.bridge.pods()}
    storage.bridge.apply(rules=RULES, further={"images": [{"name": manifests.NAME, "newTag": "0.1.1"}]})
    slowest, took = slowest_change(storage), time.time() - since
    assert not before & {pod["metadata"]["name"] for pod in storage.bridge.pods()}
    assert slowest < 10
    figure("rolling update", f"{took:.0f} s, the slowest change meanwhile {slowest:.1f} s, 0 failed")

    since = time.time()
    storage.cluster.open(2, "postgres", 5432)
    storage.bridge.apply(rules=RULES + FURTHER_RULE, further={"images": [{"name": manifests.NAME, "newTag": "0.1.1"}]})
    slowest, took = slowest_change(storage), time.time() - since
    storage.bridge.await_addresses("sql", len(storage.cluster.statuses("postgres")))
    assert slowest < 10
    assert storage.client.failed() == []
    figure("settings changed (a rule more)", f"{took:.0f} s, the slowest change meanwhile {slowest:.1f} s, 0 failed")


@pytest.mark.usefixtures("as_before")
def test_settings_that_cannot_be_used_say_so_in_kubectl_describe(storage: Storage) -> None:
    """The new pod ends and shows the sentence; the old ones go on, and nothing is taken away."""
    since = time.time()
    old = set(storage.bridge.ready_pods())
    storage.bridge.apply(rules=WRONG)

    def said() -> bool:
        new = [pod for pod in storage.bridge.pods() if pod["metadata"]["name"] not in old]
        return any("808080" in storage.bridge.kubectl("describe", "pod", pod["metadata"]["name"]) for pod in new)

    wait_until(said, 60, "`kubectl describe pod` showing what is wrong", 0.5)
    (new,) = [pod["metadata"]["name"] for pod in storage.bridge.pods() if pod["metadata"]["name"] not in old]
    text = storage.bridge.kubectl("describe", "pod", new)
    assert "bridge.yaml:5" in text
    assert set(storage.bridge.ready_pods()) == old
    storage.cluster.maintenance("radosgw", 2, on=True)
    storage.bridge.await_addresses("radosgw", VMS - 1)
    storage.cluster.maintenance("radosgw", 2, on=False)
    storage.bridge.await_addresses("radosgw", VMS)
    assert storage.client.failed(since) == []


@pytest.mark.usefixtures("as_before")
def test_a_drain_takes_one_replica_at_a_time(storage: Storage, figure: Figure) -> None:
    """The leader's node is drained; then the other one as well, where the last ready replica stays."""
    since = time.time()
    leader = storage.bridge.pod(storage.bridge.leader())["spec"]["nodeName"]
    (other,) = [node.name for node in storage.cluster.nodes if node.name != leader]

    def drain(node: str, seconds: int, check: bool = True) -> str:
        arguments = ("drain", node, f"--pod-selector={SELECTOR}", f"--timeout={seconds}s")
        return storage.cluster.kubectl(*arguments, check=check)

    drain(leader, 90)
    took = time.time() - since
    storage.bridge.await_ready_pods(2)
    assert {pod["spec"]["nodeName"] for pod in storage.bridge.pods()} == {other}
    refused = drain(other, 8, check=False)
    assert "violate the pod's disruption budget" in refused
    assert len(storage.bridge.ready_pods()) >= 1
    storage.cluster.maintenance("radosgw", 2, on=True)
    storage.bridge.await_addresses("radosgw", VMS - 1)
    storage.cluster.maintenance("radosgw", 2, on=False)
    storage.bridge.await_addresses("radosgw", VMS)
    assert storage.client.failed(since) == []
    figure("leader's node drained", f"{took:.1f} s; the last ready replica stays when both are drained; 0 failed")
