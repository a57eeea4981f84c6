"""Consul, and then the API server, are away: traffic goes on as it was."""

from __future__ import annotations

import time

import pytest

from tests.pods.conftest import VMS, Figure, Storage
from tests.support.lab.pods.installation import SELECTOR
from tests.support.program import pause

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

AWAY_SECONDS = 15.0


def test_consul_is_silent(storage: Storage, figure: Figure) -> None:
    """Endpoints stay; replicas say that they are not ready, and a drain lets them go all the same."""
    since = time.time()
    storage.cluster.lab.consul.pause()
    try:
        until = storage.bridge.await_ready_pods(0, 120)
        node = storage.bridge.pod(storage.bridge.leader())["spec"]["nodeName"]
        storage.cluster.kubectl("drain", node, f"--pod-selector={SELECTOR}", "--timeout=60s")
        assert len(storage.bridge.addresses("radosgw")) == VMS
    finally:
        storage.cluster.lab.consul.resume()
        storage.cluster.kubectl("uncordon", *(node.name for node in storage.cluster.nodes))
    back = storage.bridge.await_ready_pods(2, 120)
    assert len(storage.bridge.addresses("radosgw")) == VMS
    assert storage.client.failed(since) == []
    figure("Consul stopped (SIGSTOP)", f"all endpoints stay, 0 failed; not ready after {until:.0f} s, "
           f"a drain is let through; ready {back:.1f} s after it goes on")  # fmt: skip


def test_the_api_server_is_away(storage: Storage, figure: Figure) -> None:
    """Nodes keep their rules; what changed in Consul meanwhile is carried out when it is back."""
    since = time.time()
    storage.cluster.lab.apiserver.kill()
    storage.cluster.maintenance("radosgw", 7, on=True)
    pause(AWAY_SECONDS)
    storage.cluster.lab.apiserver.start()
    after = storage.bridge.await_addresses("radosgw", VMS - 1)
    storage.cluster.maintenance("radosgw", 7, on=False)
    storage.bridge.await_addresses("radosgw", VMS)
    assert storage.client.failed(since) == []
    figure(f"API server killed, back after {AWAY_SECONDS:.0f} s",
           f"0 failed; what had changed is there {after:.1f} s later")  # fmt: skip
