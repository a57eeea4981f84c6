"""What is between the bridge and Consul, and how it fails: failovers, timeouts on the way, replaced credentials."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from bridge.consul import housekeeping
from bridge.consul.catalog import Catalog
from bridge.core.model import Query, Status
from bridge.retry import RetryPolicy
from tests.loop.test_consul_catalog import becomes, eventually, fill, filled, known, watching
from tests.support.fakes.consul import FakeConsul, Fault, Recorder
from tests.support.lab.failover import Failover
from tests.support.options import consul_config

QUERY = Query("dc1", "s000")


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def short_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe of the leader every half a second, and one second for its answer on a kept connection."""
    monkeypatch.setattr(housekeeping, "LEADER_PROBE_SECONDS", 0.5)
    monkeypatch.setattr(housekeeping, "KEPT_SECONDS", 1.0)


@pytest.mark.usefixtures("short_probes")
def test_kept_connections_that_lead_nowhere_are_opened_anew(recorder: Recorder) -> None:
    """Behind a balancer that failed over, changes arrive long before the waiting queries' own deadlines (70 s)."""
    with FakeConsul() as consul, Failover(f"127.0.0.1:{consul.port}") as relay:
        queries = fill(consul, 3)
        with watching(consul, recorder, address=f"http://{relay.address}", wait_seconds=55.0) as catalog:
            catalog.want(queries)
            assert recorder.wait(known(recorder, queries))
            assert relay.fail_over() >= 4
            began = time.monotonic()
            consul.flip("s000", "vm-0", "critical")
            assert becomes(recorder, QUERY, 10.0, status=Status.CRITICAL)
            assert time.monotonic() - began < 8.0
            # all of them, not only the one that changed first: the rest answers at once
            began = time.monotonic()
            consul.flip("s001", "vm-1", "critical")
            assert becomes(recorder, Query("dc1", "s001"), 5.0, status=Status.CRITICAL)
            assert time.monotonic() - began < 2.0


@pytest.mark.usefixtures("short_probes")
def test_an_agent_that_answers_no_request_keeps_its_waiting_queries(recorder: Recorder) -> None:
    """Cut-off queries keep their places at Consul's side: they are given up only where a new connection is better."""
    with filled(recorder, 3, wait_seconds=30.0, timeout_margin_seconds=2.0) as (consul, _, queries):
        asked = 2 * len(queries)  # a plain read and a query that waits
        assert eventually(lambda: len(consul.asked("/v1/health/service")) == asked)
        consul.inject(Fault(delay=60.0), times=1000, path="/v1/status/leader")
        assert recorder.wait(lambda: recorder.troubles.get("dc1") is not None, 10.0)
        time.sleep(2.0)
        assert len(consul.asked("/v1/health/service")) == asked


def test_a_token_that_is_replaced_after_it_was_refused_is_used_at_once(tmp_path: Path) -> None:
    """What was refused is asked again slowly, but nothing waits for that when the file is another one."""
    slow = RetryPolicy(initial_seconds=60.0, max_seconds=60.0)
    recorder, file = Recorder(), tmp_path / "token"
    file.write_text("unknown-token")
    with FakeConsul(token="right-token") as consul:
        consul.register("s000", "vm-0", "10.0.0.1", 8000)
        config = consul_config(address=consul.address, token_file=str(file), wait_seconds=5.0)
        catalog = Catalog(config, ["dc1"], recorder, slow, recorder.failed)
        catalog.start()
        try:
            catalog.want(frozenset({QUERY}))
            assert recorder.wait(lambda: "does not know our token" in str(recorder.troubles.get("dc1")), 10.0)
            file.write_text("right-token")
            assert recorder.wait(known(recorder, frozenset({QUERY})), 4.0)
        finally:
            catalog.close()


def test_a_timeout_in_front_of_consul_shortens_the_wait(recorder: Recorder) -> None:
    """A balancer that gives up after 1.5 s (504): after the second time queries end before that, and all is quiet."""
    with Gateway() as gateway:
        queries = fill(gateway.consul, 2)
        with watching(gateway.consul, recorder, address=gateway.address, wait_seconds=30.0) as catalog:
            catalog.want(queries)
            assert eventually(lambda: bool(catalog.warnings()), 20.0)
            (note,) = catalog.warnings()
            assert "queries after about 2 s" in note or "queries after about 1 s" in note
            gave_up = gateway.gave_up
            time.sleep(4.0)
            assert gateway.gave_up - gave_up <= 6  # those that were on their way
            gave_up = gateway.gave_up
            time.sleep(3.0)
            assert gateway.gave_up == gave_up
            gateway.consul.flip("s000", "vm-0", "critical")
            assert becomes(recorder, QUERY, 10.0, status=Status.CRITICAL)


class Gateway:
    """A fake Consul behind a gateway that answers 504 to whatever takes longer than 1.5 s."""

    SECONDS = 1.5

    def __init__(self) -> None:
        self.consul = FakeConsul()
        self.gave_up = 0
        find = self.consul.answer

        def answer(request: object) -> tuple[int, dict[str, str], bytes]:
            result: list[tuple[int, dict[str, str], bytes]] = []
            thread = threading.Thread(target=lambda: result.append(find(request)), daemon=True)  # type: ignore[arg-type]
            thread.start()
            thread.join(self.SECONDS)
            if not result:
                self.gave_up += 1
                return 504, {}, b"upstream request timeout"
            return result[0]

        self.consul.answer = answer  # type: ignore[method-assign]
        self.address = self.consul.address

    def __enter__(self) -> Gateway:
        self.consul.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.consul.__exit__()


PEER_GONE = textwrap.dedent(
    """
    import subprocess, sys, threading, time
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    from bridge import sockets
    sockets.IDLE_SECONDS, sockets.INTERVAL_SECONDS, sockets.PROBES = 1, 1, 2
    from bridge.consul.client import ConsulClient
    from bridge.errors import TransientError
    from tests.support.fakes.consul import FakeConsul
    from tests.support.options import consul_config
    with FakeConsul() as consul:
        consul.register("web", "vm", "10.0.0.1", 80)
        client = ConsulClient(consul_config(address=consul.address))
        index = client.listing().index
        threading.Timer(0.5, lambda: subprocess.run(["ip", "link", "set", "lo", "down"], check=True)).start()
        began = time.monotonic()
        try:
            client.listing(index=index, wait=30.0)
            print("an answer")
        except TransientError as error:
            print(f"{time.monotonic() - began:.1f} {error}")
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        client.close()
    """
)


def test_a_peer_that_vanishes_without_a_word_ends_a_waiting_query() -> None:
    """TCP keepalive: no FIN, no reset, only packets that no one acknowledges any more (here after 3 s, not 14)."""
    command = ["unshare", "-rn", sys.executable, "-c", PEER_GONE]
    probe = subprocess.run(["unshare", "-rn", "ip", "link", "set", "lo", "up"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("no network namespaces here")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    seconds, _, text = done.stdout.partition(" ")
    assert 1.0 < float(seconds) < 15.0, done.stdout + done.stderr
    assert "did not answer in time" in text or "broke" in text
