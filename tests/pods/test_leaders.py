"""What a pod notices while the leader goes, one way or another: nothing; and how soon another replica leads."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.pods.conftest import VMS, Figure, Storage
from tests.support.lab.servers import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

LEASE_SECONDS = 15.0
LIVENESS_SECONDS = 3 * 10.0 + 5.0 + 5.0
"""deployment.yaml: three probes in a row, a probe's timeout, and the grace after that."""


@pytest.fixture
def works(storage: Storage) -> Iterator[None]:
    """A test takes a VM out of service while no replica writes; afterwards it is back, and no request has failed."""
    since = time.time()
    yield
    storage.cluster.maintenance("radosgw", 1, on=False)
    storage.bridge.await_addresses("radosgw", VMS)
    assert storage.client.failed(since) == []


def await_writer(storage: Storage, identity: str, within: float) -> tuple[float, str]:
    """A VM leaves now, when the leader with this identity goes: until another leads, and what that took in words."""
    began = time.monotonic()
    storage.cluster.maintenance("radosgw", 1, on=True)
    seconds = storage.bridge.await_another_leader(identity, within)
    storage.bridge.await_addresses("radosgw", VMS - 1)
    written = time.monotonic() - began
    return seconds, f"another leads after {seconds:.1f} s, a change of that moment is written after {written:.1f} s"


@pytest.mark.usefixtures("works")
def test_a_deleted_leader_hands_over(storage: Storage, figure: Figure) -> None:
    """It gives its Lease back while it ends."""
    identity = storage.bridge.identity()
    storage.bridge.kubectl("delete", "pod", storage.bridge.leader(), "--wait=false")
    seconds, words = await_writer(storage, identity, 10)
    assert seconds < LEASE_SECONDS / 2
    figure("leader's pod deleted", f"{words}, 0 failed")


@pytest.mark.usefixtures("works")
def test_a_killed_leader_is_followed_by_its_successor_or_the_other_replica(storage: Storage, figure: Figure) -> None:
    """kill -9 of its process: the one that kubelet starts in its place knows that it has ended, and frees its shard."""
    identity = storage.bridge.identity()
    leader = storage.bridge.signal_leader("KILL")
    seconds, words = await_writer(storage, identity, 40)
    by = "its successor in the same pod" if storage.bridge.leader() == leader else "the other replica"
    assert seconds < 2 * LEASE_SECONDS + 10
    storage.bridge.await_ready_pods(2)
    status = storage.bridge.pod(leader)["status"]["containerStatuses"][0]
    assert status["lastState"]["terminated"]["exitCode"] == 137
    figure("leader's process killed (kill -9)", f"{words}, by {by}, 0 failed")


@pytest.mark.usefixtures("works")
def test_a_leader_that_hangs_is_followed_and_started_again(storage: Storage, figure: Figure) -> None:
    """SIGSTOP: its Lease ends first; the liveness probe then ends the container, without 30 s of grace."""
    identity, since = storage.bridge.identity(), time.monotonic()
    leader = storage.bridge.signal_leader("STOP")
    before = storage.bridge.pod(leader)["status"]["containerStatuses"][0]["restartCount"]
    seconds, words = await_writer(storage, identity, 40)
    assert seconds < 2 * LEASE_SECONDS + 10

    def restarted() -> bool:
        status = storage.bridge.pod(leader)["status"]["containerStatuses"][0]
        return bool(status["restartCount"] > before and status["ready"])

    wait_until(restarted, LIVENESS_SECONDS + 30, "the leader's container being started again", 0.5)
    figure(
        "leader stopped (SIGSTOP)",
        f"{words}, restarted and ready after {time.monotonic() - since:.0f} s, 0 failed",
    )
