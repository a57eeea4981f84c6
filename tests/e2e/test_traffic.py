"""What a client in a pod notices when VMs die, drain and restart, under a constant and bounded load."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.test_balancing import opened
from tests.support.lab import wait_until
from tests.support.lab.traffic_testbed import Knowing, Load, TrafficTestbed

pytestmark = [pytest.mark.lab, pytest.mark.netns, pytest.mark.slow]

VMS = 12
PORT = 8080
RATE = 50.0
SERVICE = "radosgw"
RULE = {"services": [SERVICE], "to": {"port": 80, "port_name": "http"}}
DRAIN_SECONDS = 5.0
"""What docs/how-to.md waits before it stops a VM; kube-proxy takes changes up to a second apart together."""
SLOW_REQUESTS = 150
"""So many that each of the twelve VMs has one (all but three times in a million)."""
SLOW_SECONDS = 12.0
"""Longer than draining may take."""


@pytest.fixture(scope="module")
def testbed(request: pytest.FixtureRequest) -> Iterator[TrafficTestbed]:
    """Twelve VMs with a server each, all well in Consul."""
    with opened(request, VMS) as made:
        for n in range(1, VMS + 1):
            made.open(n, SERVICE, PORT)
        made.await_passing(SERVICE, VMS)
        yield made


@contextmanager
def traffic(testbed: TrafficTestbed, name: str, rate: float = RATE) -> Iterator[Load]:
    """The load on a Service that the bridge made, with every VM answering."""
    with testbed.bridge(name, RULE), testbed.load(testbed.addresses(name)[0], 80, rate) as load:
        testbed.await_spread(load, range(1, VMS + 1))
        yield load


def test_a_vm_that_is_killed_fails_requests_only_until_consul_knows_and_a_moment_longer(
    testbed: TrafficTestbed,
) -> None:
    """They are refused until Consul's check, the write and kube-proxy have followed; then no more."""
    name, victim = "killed", 3
    with traffic(testbed, name, 200.0) as load, Knowing(testbed.lab, SERVICE, f"{SERVICE}-{victim}") as knowing:
        since = time.time()
        testbed.servers[victim, PORT].kill()
        killed = time.time()
        wait_until(lambda: knowing.at > 0, 30, "Consul's knowing")
        wait_until(lambda: testbed.written(name, since) > 0, 30, "the write of the Endpoints")
        load.await_calm(400)
        failed = [request for request in load.failed(since) if request.began >= killed - 1]
        testbed.servers[victim, PORT].start()
        testbed.await_passing(SERVICE, VMS)
        back = testbed.await_spread(load, range(1, VMS + 1))
        load.await_calm(400)
        assert load.failed(back) == []
    assert failed, "a dead VM that no one asked proves nothing"
    last = max(request.began for request in failed)
    known, written = knowing.at - killed, testbed.written(name, since) - knowing.at
    report = f"Consul knew after {known * 1000:.0f} ms, written {written * 1000:.0f} ms later, "
    report += f"last failed request began {(last - knowing.at) * 1000:.0f} ms after Consul's knowing"
    print(report)  # shown by pytest -s
    assert known < 10
    assert last - knowing.at < 5


def test_a_vm_in_maintenance_drains_without_a_failed_request(testbed: TrafficTestbed) -> None:
    """What it has begun it ends, long after it gets nothing new any more, which is until maintenance ends."""
    with traffic(testbed, "drained") as load:
        since = time.time()
        under_way = testbed.slow_requests(testbed.addresses("drained")[0], 80, SLOW_REQUESTS, SLOW_SECONDS)
        wait_until(lambda: testbed.connections() >= SLOW_REQUESTS, 30, "the slow requests being under way")
        asked = time.time()
        testbed.maintenance(SERVICE, 5, on=True)
        drained = load.await_silence("vm-5", 100)
        under_way.wait(60)
        answers = under_way.log.read_text().splitlines()
        testbed.maintenance(SERVICE, 5, on=False)
        testbed.await_spread(load, range(1, VMS + 1))
        assert load.failed(since) == []
    report = f"the last request for the VM in maintenance began after {max(0, drained - asked) * 1000:.0f} ms"
    print(report)  # shown by pytest -s
    assert drained - since < SLOW_SECONDS, "the slow requests have ended before the VM was drained"
    assert len(answers) == SLOW_REQUESTS
    assert set(answers) == {vm.name for vm in testbed.rig.vms}


def test_a_rolling_restart_of_all_vms_fails_no_request(testbed: TrafficTestbed) -> None:
    """One VM after the other: maintenance on, a wait, stop, start, it answers, maintenance off.

    The servers end without a farewell, so a request that one of them still had would be an error.
    """
    with traffic(testbed, "rolling") as load:
        since = time.time()
        for n in range(1, VMS + 1):
            testbed.maintenance(SERVICE, n, on=True)
            time.sleep(DRAIN_SECONDS)  # as a user's script does, which sees nothing of the clients
            testbed.servers[n, PORT].stop()
            testbed.servers[n, PORT].start()
            testbed.await_answer(n, PORT)
            testbed.maintenance(SERVICE, n, on=False)
        restarted = time.time()
        testbed.await_spread(load, range(1, VMS + 1))
        assert load.failed(since) == []
        assert load.answers(since).total() > RATE * 0.8 * (restarted - since)
