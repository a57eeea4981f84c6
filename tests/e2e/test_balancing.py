"""Load-balancing seen for real: a pod asks a cluster address, kube-proxy chooses, VMs answer on ports of their own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.lab import netns, wait_until
from tests.support.lab.traffic_testbed import TrafficTestbed

pytestmark = [pytest.mark.lab, pytest.mark.netns, pytest.mark.slow]

OUTPUTS = ("endpoints", "endpointslices", "both")
PORTS = {1: 8080, 2: 8081, 3: 8080}
RATE = 100.0


OURS, MIRRORED = "consul-bridge", "endpointslicemirroring-controller.k8s.io"
MANAGERS = {"endpoints": {MIRRORED}, "endpointslices": {OURS}, "both": {OURS}}


@contextmanager
def opened(request: pytest.FixtureRequest, vms: int, mode: str = "nftables") -> Iterator[TrafficTestbed]:
    """A testbed, whose logs are kept when a test fails. In continuous integration what Debian has must be installed."""
    if reason := netns.trouble(proxy=True, mode=mode):
        if os.environ.get("CI") == "true" and reason.startswith("not installed"):
            pytest.fail(reason)
        pytest.skip(reason)
    failed = request.session.testsfailed
    with TrafficTestbed(vms, mode) as made:
        yield made
        made.keep = request.session.testsfailed > failed


@pytest.fixture(scope="module", params=["nftables", "iptables"])
def testbed(request: pytest.FixtureRequest) -> Iterator[TrafficTestbed]:
    """Three VMs, and kube-proxy in either mode."""
    with opened(request, 3, request.param) as made:
        yield made


@pytest.fixture
def web(testbed: TrafficTestbed) -> Iterator[str]:
    """One Consul service on three VMs and two port numbers, all well."""
    for n, port in PORTS.items():
        testbed.open(n, "web", port)
    testbed.await_passing("web", 3)
    yield "web"
    testbed.close_all("web")


@pytest.fixture
def alike(testbed: TrafficTestbed) -> Iterator[str]:
    """The same on one port: of several ports the mirror could stop carrying some, and slices of ours would stay."""
    for n in PORTS:
        testbed.open(n, "alike", 8080)
    testbed.await_passing("alike", 3)
    yield "alike"
    testbed.close_all("alike")


@pytest.mark.parametrize("output", OUTPUTS)
def test_pods_reach_every_ready_vm_and_a_drained_one_gets_nothing_new(
    testbed: TrafficTestbed, web: str, output: str
) -> None:
    """Each on its own port through one Service port; maintenance takes one out, and back, without a failed request."""
    name = f"web-{output}"
    rule = {"services": [web], "to": {"output": output, "port": 80, "port_name": "http"}}
    with testbed.bridge(name, rule), testbed.load(testbed.addresses(name)[0], 80, RATE) as load:
        all_well = testbed.await_spread(load, [1, 2, 3])
        testbed.maintenance(web, 2, on=True)
        load.await_silence("vm-2")
        drained = time.time()
        wait_until(lambda: load.answers(drained).total() >= RATE, 30, "a second of requests")
        rest = load.answers(drained)
        testbed.maintenance(web, 2, on=False)
        testbed.await_spread(load, [1, 2, 3])
        assert load.failed(all_well) == []
    assert set(rest) == {"vm-1", "vm-3"}
    assert min(rest.values()) > 0.2 * rest.total()


def test_a_service_whose_vms_are_all_drained_goes_on_with_what_it_has(testbed: TrafficTestbed, web: str) -> None:
    """With EndpointSlices only: where no endpoint is ready, kube-proxy takes who terminates and still serves."""
    name = "web-drained"
    rule = {"services": [web], "to": {"output": "endpointslices", "port": 80, "port_name": "http"}}
    with testbed.bridge(name, rule), testbed.load(testbed.addresses(name)[0], 80, RATE) as load:
        began = testbed.await_spread(load, [1, 2, 3])
        for n in PORTS:
            testbed.maintenance(web, n, on=True)
        drained = {"ready": False, "serving": True, "terminating": True}
        wait_until(lambda: testbed.conditions(name) == [drained] * 3, 30, "all three being drained")
        since = time.time()
        wait_until(lambda: len(load.requests(since)) > 2 * RATE, 30, "two seconds of requests")
        assert load.failed(began) == []
        assert set(load.answers(since)) == {"vm-1", "vm-2", "vm-3"}
        for n in PORTS:
            testbed.maintenance(web, n, on=False)


@pytest.mark.parametrize("output", OUTPUTS)
def test_each_cluster_address_reaches_the_instances_of_its_family(testbed: TrafficTestbed, output: str) -> None:
    """Three VMs, the second with an instance in either: vm-1 is never reached by IPv6, vm-3 never by IPv4."""
    if not netns.has_ipv6():
        pytest.skip("this machine's kernel has no IPv6")
    name = f"dual-{output}"
    for n, family in ((1, 4), (2, 4), (2, 6), (3, 6)):
        testbed.open(n, "dual", 8080, family=family)
    testbed.await_passing("dual", 4)
    rule = {"services": ["dual"], "to": {"output": output, "port": 80, "port_name": "http"}}
    try:
        with testbed.bridge(name, rule):
            wait_until(lambda: len(testbed.addresses(name)) == 2, 30, "addresses of both families")
            fourth, sixth = testbed.addresses(name)
            assert [":" in fourth, ":" in sixth] == [False, True]
            for address, vms in ((fourth, [1, 2]), (sixth, [2, 3])):
                with testbed.load(address, 80, RATE) as load:
                    testbed.await_spread(load, vms)
    finally:
        testbed.close_all("dual")


def test_no_request_fails_while_the_output_changes(testbed: TrafficTestbed, alike: str) -> None:
    """Every change between the three, on a running service under constant load."""
    name = "alike-switching"
    rule = {"services": [alike], "to": {"port": 80, "port_name": "http"}}
    order = ("endpoints", "endpointslices", "both", "endpoints", "both", "endpointslices", "endpoints")

    def switch(output: str) -> None:
        testbed.configure(name, {**rule, "to": {**rule["to"], "output": output}})  # type: ignore[dict-item]

    with testbed.bridge(name, rule), testbed.load(testbed.addresses(name)[0], 80, RATE) as load:
        began = testbed.await_spread(load, [1, 2, 3])
        for output in order:
            switched = time.time()
            switch(output)
            wait_until(lambda output=output: testbed.managers(name) == MANAGERS[output], 30, output)  # type: ignore[misc]
            wait_until(lambda since=switched: len(load.requests(since)) > RATE, 30, "a second of requests")  # type: ignore[misc]
        testbed.await_spread(load, [1, 2, 3])
        assert load.failed(began) == []
        assert set(load.answers(began)) == {"vm-1", "vm-2", "vm-3"}
