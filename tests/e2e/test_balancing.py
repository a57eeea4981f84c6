"""Load-balancing seen for real: a pod asks a cluster address, kube-proxy chooses, VMs answer on ports of their own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from tests.lab import netns
from tests.lab.town import Town

pytestmark = [pytest.mark.lab, pytest.mark.netns, pytest.mark.slow]

OUTPUTS = ("endpoints", "endpointslices", "both")
PORTS = {1: 8080, 2: 8081, 3: 8080}
RATE = 100.0


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    """Three VMs and kube-proxy in its nftables mode."""
    if reason := netns.trouble(proxy=True):
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with Town(3) as made:
        yield made


@pytest.fixture
def web(town: Town) -> Iterator[str]:
    """One Consul service on three VMs and two port numbers, all well."""
    for n, port in PORTS.items():
        town.open(n, "web", port)
    town.await_passing("web", list(PORTS))
    yield "web"
    town.close_all("web")


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_pod_reaches_every_ready_vm_and_a_drained_one_gets_nothing_new(town: Town, web: str, output: str) -> None:
    """Each on its own port through one Service port; maintenance takes one out, and back, without a failed request."""
    name = f"web-{output}"
    rule = {"services": [web], "to": {"output": output, "port": 80, "port_name": "http"}}
    with town.bridge(name, rule), town.load(town.addresses(name)[0], 80, RATE) as load:
        all_well = town.await_spread(load, [1, 2, 3])
        town.maintenance(web, 2, on=True)
        load.await_silence("vm-2")
        drained = time.time()
        time.sleep(1)  # a stretch of real traffic is looked at, there is nothing to wait for
        rest = load.answers(drained)
        town.maintenance(web, 2, on=False)
        town.await_spread(load, [1, 2, 3])
        assert load.failed(all_well) == []
    assert set(rest) == {"vm-1", "vm-3"}
    assert min(rest.values()) > 0.2 * rest.total()
