"""A real Consul whose blocking answers and plain reads differ, and the catalog of the bridge, which says what is so."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from bridge.consul.catalog import Catalog
from bridge.core.model import Known, Query, Status
from bridge.retry import RetryPolicy
from tests.contract.sides import own_consul
from tests.support.consul_random.run import Settings, run
from tests.support.fakes.consul import Recorder
from tests.support.lab.servers import Consul
from tests.support.options import consul_config
from tests.support.raw import RawConsul

pytestmark = pytest.mark.lab

GH = Query("dc1", "gh")
SECONDS = float(os.environ.get("RANDOM_SECONDS", "20"))
SEED = int(os.environ.get("RANDOM_SEED") or (1 if os.environ.get("CI") == "true" else random.randrange(10**6)))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Consul]:
    """A Consul of the test's own: its streaming views keep what they show forever."""
    with own_consul(tmp_path) as consul:
        yield consul


class Agent(Consul):
    """A client agent of a server, as a VM has one: under a node name of its own, on its own address of loopback."""

    def __init__(self, folder: Path, server: Consul, name: str, address: str) -> None:
        super().__init__(folder, name=name)
        off = dict.fromkeys(("dns", "grpc", "grpc_tls", "serf_wan"), -1)
        self.settings = {
            "server": False, "bind_addr": address, "retry_join": [f"127.0.0.1:{server.ports['serf_lan']}"],
            "ports": {**off, "http": self.ports["http"], "serf_lan": self.ports["serf_lan"],
                      "server": server.ports["server"]},
        }  # fmt: skip

    def arguments(self) -> Sequence[str]:
        found = super().arguments()
        file = self.folder / "consul.json"
        settings = json.loads(file.read_text())
        del settings["bootstrap_expect"]
        file.write_text(json.dumps(settings))
        return found


@contextmanager
def watching(server: Consul, wait_seconds: float) -> Iterator[Recorder]:
    recorder = Recorder()
    config = consul_config(address=server.address, wait_seconds=wait_seconds)
    catalog = Catalog(config, ["dc1"], recorder, RetryPolicy(), recorder.failed)
    catalog.start()
    try:
        catalog.want(frozenset({GH}))
        yield recorder
    finally:
        catalog.close()
    assert recorder.failures == []


def register(consul: RawConsul, node: str, address: str) -> None:
    body = {"Node": node, "Address": address, "Service": {"Service": "gh", "ID": "gh", "Port": 80}}
    consul.json("PUT", "/v1/catalog/register", body)


def addresses(recorder: Recorder) -> tuple[str, ...] | None:
    return shape(recorder.views.get(GH))


def shape(view: object) -> tuple[str, ...] | None:
    return tuple(i.node_address for i in view.instances) if isinstance(view, Known) else None


def ever(recorder: Recorder) -> set[tuple[str, ...] | None]:
    return {shape(event[2]) for event in tuple(recorder.events) if event[0] == "view"}


def mismatches(recorder: Recorder) -> int:
    return recorder.count("mismatch")


def test_a_node_that_comes_back_in_another_case_is_there_once_and_goes_for_good(server: Consul) -> None:
    """Consul shows both to a waiting query: at once, after the wait, to a new bridge, and after the deregistration."""
    with RawConsul(server.address) as consul:
        register(consul, "vm2", "10.20.0.2")
        with watching(server, wait_seconds=1.0) as recorder:
            assert recorder.wait(lambda: addresses(recorder) == ("10.20.0.2",))
            time.sleep(0.3)
            register(consul, "VM2", "10.20.0.22")
            assert recorder.wait(lambda: addresses(recorder) == ("10.20.0.22",))
            time.sleep(2.5)
            assert ever(recorder) == {("10.20.0.2",), ("10.20.0.22",)}
            assert mismatches(recorder) == 1
        _, shown = consul.health("gh", index=1, wait="1s")
        assert len(shown) == 2, "this Consul does not have the fault: docs/consul.md"
        with watching(server, wait_seconds=1.0) as recorder:
            assert recorder.wait(lambda: mismatches(recorder) == 1)
            time.sleep(2.0)
            assert ever(recorder) == {("10.20.0.22",)}
            consul.drop_node("VM2")
            assert recorder.wait(lambda: addresses(recorder) == ())
            time.sleep(2.5)
            assert ever(recorder) == {("10.20.0.22",), ()}


def test_a_real_agent_that_comes_back_under_its_name_in_another_case_is_there_once(
    server: Consul, tmp_path: Path
) -> None:
    """`-node VMX` is killed and started as `-node vmx` with the data that it had, on another address."""

    def start(name: str, address: str) -> Agent:
        agent = Agent(tmp_path / "vm", server, name, address)
        agent.start()
        with RawConsul(agent.address) as own:
            own.json("PUT", "/v1/agent/service/register", {"Name": "gh", "ID": "gh", "Port": 80})
        return agent

    with RawConsul(server.address) as consul, watching(server, wait_seconds=2.0) as recorder:
        agent = start("VMX", "127.0.0.1")
        try:
            assert recorder.wait(lambda: addresses(recorder) == ("127.0.0.1",), 20.0)
            agent.kill()
            agent = start("vmx", "127.0.0.2")
            assert recorder.wait(lambda: addresses(recorder) == ("127.0.0.2",), 20.0)
            time.sleep(3.0)
            assert len(consul.health("gh", index=1, wait="1s")[1]) == 2
            assert ever(recorder) <= {(), ("127.0.0.1",), ("127.0.0.2",)}
        finally:
            agent.kill()


def test_an_instance_whose_row_spells_its_node_otherwise_goes_when_it_is_deregistered(server: Consul) -> None:
    """The event names the row's spelling, the view has the node's: it stays, alone, in every blocking answer."""
    with RawConsul(server.address) as consul:
        register(consul, "vm2", "10.20.0.2")
        consul.json("PUT", "/v1/catalog/register", {"Node": "VM2", "Address": "10.20.0.22"})
        with watching(server, wait_seconds=60.0) as recorder:
            assert recorder.wait(lambda: addresses(recorder) == ("10.20.0.22",))
            time.sleep(0.5)
            consul.json("PUT", "/v1/catalog/deregister", {"Node": "VM2", "ServiceID": "gh"})
            assert recorder.wait(lambda: addresses(recorder) == (), 5.0)


def test_a_restored_snapshot_is_seen_within_seconds(server: Consul) -> None:
    """Only a check differs: listing and nodes have the indexes that they had, and the waiting query keeps waiting."""
    with RawConsul(server.address) as consul:
        consul.register("gh", "vm1", "10.20.0.1", 80, status="critical", service_id="gh")
        with watching(server, wait_seconds=60.0) as recorder:
            assert recorder.wait(lambda: addresses(recorder) == ("10.20.0.1",))
            status, _, snapshot = consul.send("GET", "/v1/snapshot")
            assert status == 200
            consul.flip("gh", "vm1", "passing", service_id="gh")
            assert recorder.wait(lambda: recorder.views[GH].instances[0].status is Status.PASSING)
            assert consul.send("PUT", "/v1/snapshot", snapshot)[0] == 200
            began = time.monotonic()
            assert recorder.wait(lambda: recorder.views[GH].instances[0].status is Status.CRITICAL, 20.0)
            print(f"seen {time.monotonic() - began:.2f} s after the snapshot was restored")


def test_whatever_the_names_do_the_bridge_says_what_a_plain_read_shows(server: Consul) -> None:
    """Some seconds of `make consul-random`, without restored snapshots: those take their time."""
    report = run(server.address, Settings(SEED, SECONDS, rate=20.0, restores=False))
    print(report)
    assert report.wrong == [], f"to see it again: RANDOM_SEED={SEED}"
    assert report.steps.total() >= 20
