"""What a pod notices while VMs die, fall silent, leave, and restart, with the bridge as deployed."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence

import pytest

from tests.pods.conftest import VMS, Figure, Storage
from tests.support.demo import pods
from tests.support.lab.load import TIMEOUT_SECONDS
from tests.support.lab.servers import wait_until
from tests.support.lab.traffic_testbed import Request

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

CHECK_SECONDS = 5.0 + 1.0
"""Consul's check of a gateway: its timeout and its interval, of which the first counts for who is silent."""


def span(requests: Sequence[Request], since: float) -> str:
    """What was failed, in words."""
    if not requests:
        return "0 failed"
    return f"{len(requests)} failed, the last began {max(r.began for r in requests) - since:.1f} s later"


@pytest.fixture
def mended(storage: Storage) -> Iterator[None]:
    """All gateways run, are registered, and on the network again afterwards."""
    yield
    for n in range(1, VMS + 1):
        storage.cluster.rig.cut(n, off=False)
        server = storage.cluster.servers[n, 8080]
        if not server.running:
            server.start()
        storage.cluster.open(n, "radosgw", 8080)
        storage.cluster.maintenance("radosgw", n, on=False)
    storage.bridge.await_addresses("radosgw", VMS)


def leaves(storage: Storage, n: int) -> float:
    """Wait until no node sends anything new to a VM; the time then."""
    storage.bridge.await_rules("radosgw", storage.cluster.rig.vms[n - 1].address, there=False)
    return time.time()


@pytest.mark.usefixtures("mended")
def test_a_killed_server_costs_what_consul_needs_to_see_it(storage: Storage, figure: Figure) -> None:
    """Requests fail until Consul's check did, and a moment longer; then none."""
    since = time.time()
    storage.cluster.servers[3, 8080].kill()
    gone = leaves(storage, 3)
    storage.client.await_calm(40)
    failed = storage.client.failed(since)
    assert all(request.began < gone for request in failed)
    assert gone - since < CHECK_SECONDS
    figure("a VM's server killed (check every second)", span(failed, since))


@pytest.mark.usefixtures("mended")
def test_a_silent_vm_costs_the_timeout_of_its_check(storage: Storage, figure: Figure) -> None:
    """A VM that is cut off answers no request, so its check ends with its timeout; then no request goes there."""
    since = time.time()
    storage.cluster.rig.cut(4, off=True)
    gone = leaves(storage, 4)
    time.sleep(TIMEOUT_SECONDS + 0.5)  # those that wait for an answer fail late
    storage.client.await_calm(40)
    failed = storage.client.failed(since)
    assert failed
    assert all(request.began < gone for request in failed)
    assert gone - since < CHECK_SECONDS + 5.0
    figure(f"a VM silent: cut off (timeout of the check {CHECK_SECONDS - 1:.0f} s)", span(failed, since))


@pytest.mark.usefixtures("mended")
def test_a_vm_that_is_deregistered_or_drained_costs_nothing(storage: Storage, figure: Figure) -> None:
    """Both leave the endpoints while their servers still answer."""
    since = time.time()
    storage.cluster.deregister("radosgw", 5)
    seconds = storage.bridge.await_addresses("radosgw", VMS - 1)
    storage.cluster.maintenance("radosgw", 6, on=True)
    storage.bridge.await_addresses("radosgw", VMS - 2)
    storage.client.await_silence(storage.cluster.rig.vms[4].name, 40)
    storage.client.await_silence(storage.cluster.rig.vms[5].name, 40)
    storage.cluster.servers[5, 8080].kill()
    storage.cluster.servers[6, 8080].kill()
    storage.client.await_calm(40)
    assert storage.client.failed(since) == []
    figure("a VM deregistered, one drained (`consul maint`), then stopped", f"0 failed; gone after {seconds:.1f} s")


@pytest.mark.usefixtures("mended")
def test_all_twelve_restart_in_turn_and_no_request_fails(storage: Storage, figure: Figure) -> None:
    """Each is drained, killed when no node sends anything there any more, started, and back before the next."""
    since = time.time()
    for n in range(1, VMS + 1):
        storage.cluster.maintenance("radosgw", n, on=True)
        leaves(storage, n)
        time.sleep(0.2)  # connections that began before
        storage.cluster.servers[n, 8080].restart()
        storage.cluster.await_answer(n, 8080)
        storage.cluster.maintenance("radosgw", n, on=False)
        storage.bridge.await_addresses("radosgw", VMS)
    wait_until(lambda: len(storage.client.answers(time.time() - 5)) == VMS, 30, "answers of all")
    asked = len(storage.client.requests(since))
    assert storage.client.failed(since) == []
    figure("twelve VMs restarted in turn", f"0 of {asked} failed in {time.time() - since:.0f} s")


class Shown:
    """What the demonstration tells."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.say = self.note = self.shell = self.lines.append


@pytest.mark.usefixtures("mended")
def test_the_demonstration_ends_with_a_pod_that_asks_by_name(storage: Storage) -> None:
    """`make demo REAL=1`: installed as shipped, answered by every VM, and by all others when one has died."""
    shown = Shown()
    pods.tell(shown, storage.cluster, "demonstration")
    storage.cluster.kubectl("delete", "namespace", "demonstration", "--wait=false")
    answered, since = shown.lines[-4], shown.lines[-1]
    assert re.fullmatch(rf"\d+ answers, of {VMS} VMs: vm-1, vm-2, .*, vm-{VMS}", answered)
    assert re.fullmatch(r"\d+ requests since the kill, \d+ of them failed", since)
