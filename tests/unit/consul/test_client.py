"""What is asked of Consul, and what its envelope is taken to mean."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.consul.client import NOBODY, Answer, ConsulClient, Mode
from bridge.core.model import Query
from bridge.errors import ConfigurationError, PermanentError, TransientError
from tests.support.fakes.consul import FakeConsul, Fault
from tests.support.options import consul_config

WEB = Query("dc1", "web")


@pytest.fixture
def consul() -> Iterator[FakeConsul]:
    with FakeConsul() as fake:
        yield fake


@pytest.fixture
def client(consul: FakeConsul) -> Iterator[ConsulClient]:
    found = ConsulClient(consul_config(address=consul.address))
    yield found
    found.close()


def asked(consul: FakeConsul) -> dict[str, str]:
    return consul.requests[-1].params


# --------------------------------------------------------------------------- questions


def test_a_plain_read_is_stale_and_names_its_datacenter(consul: FakeConsul, client: ConsulClient) -> None:
    client.health_service(WEB)
    assert consul.requests[-1].path == "/v1/health/service/web"
    assert asked(consul) == {"dc": "dc1", "stale": ""}


def test_a_blocking_read_carries_index_and_wait_with_a_unit(consul: FakeConsul, client: ConsulClient) -> None:
    client.health_service(WEB, index=1, wait=1.25)
    assert asked(consul) == {"dc": "dc1", "stale": "", "index": "1", "wait": "1250ms"}


def test_index_zero_is_never_sent(consul: FakeConsul, client: ConsulClient) -> None:
    client.listing("dc1", index=0, wait=30.0)
    assert asked(consul) == {"dc": "dc1", "stale": ""}


def test_a_client_in_no_hurry_lets_lie_what_it_waited_for_and_nothing_else(
    consul: FakeConsul, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First reads are not made slower: a start with thousands of services makes many of them."""
    rests: list[float] = []
    monkeypatch.setattr(time, "sleep", rests.append)
    client = ConsulClient(consul_config(address=consul.address), rest_seconds=0.25)
    index = client.listing("dc1").index
    assert 0.25 not in rests  # others sleep as well, and not for so long
    client.listing("dc1", index=index, wait=0.05)
    assert rests.count(0.25) == 1
    client.close()


@pytest.mark.parametrize(
    ("mode", "sent"), [(Mode.STALE, {"stale": ""}), (Mode.LEADER, {}), (Mode.CONSISTENT, {"consistent": ""})]
)
def test_the_mode_is_a_parameter(consul: FakeConsul, client: ConsulClient, mode: Mode, sent: dict[str, str]) -> None:
    client.nodes("dc1", mode=mode)
    assert asked(consul) == {"dc": "dc1", **sent}


def test_names_with_every_kind_of_character_stay_one_path_segment(consul: FakeConsul, client: ConsulClient) -> None:
    consul.register("a/b c?x=1&#%ü", "vm", "10.0.0.1", 80)
    answer = client.health_service(Query("dc1", "a/b c?x=1&#%ü"))
    assert len(answer.data) == 1
    assert consul.requests[-1].path == "/v1/health/service/a%2Fb%20c%3Fx%3D1%26%23%25%C3%BC"


def test_enterprise_fields_peer_and_filter_travel_with_reads_and_probes(consul: FakeConsul) -> None:
    client = ConsulClient(consul_config(address=consul.address, namespace="default-ns", partition="default-part"))
    query = Query("dc1", "web", namespace="team", peer="east", filter='Service == "web"')
    client.health_service(query)
    read = asked(consul)
    assert read == {
        "dc": "dc1", "ns": "team", "partition": "default-part", "peer": "east", "filter": 'Service == "web"',
        "stale": "",
    }  # fmt: skip
    client.probe_service(query)
    assert asked(consul) == read | {"tag": NOBODY}
    client.probe_services([query])
    assert asked(consul) == read | {"tag": NOBODY}
    client.close()


def test_a_probe_has_the_index_of_the_service_and_no_data(consul: FakeConsul, client: ConsulClient) -> None:
    consul.register("web", "vm", "10.0.0.1", 80)
    consul.register("other", "vm-2", "10.0.0.2", 80)
    full, probe = client.health_service(WEB), client.probe_service(WEB)
    assert probe == Answer(index=full.index, data=[], query_backend=full.query_backend, size=2)
    assert client.probe_services([WEB, Query("dc1", "other")]) == [
        full.index,
        client.probe_service(Query("dc1", "other")).index,
    ]


def test_the_catalogs_index_is_had_without_its_services(consul: FakeConsul, client: ConsulClient) -> None:
    consul.register("web", "vm", "10.0.0.1", 80)
    assert client.catalog_index("dc1") == client.listing("dc1").index
    (probe,) = [r for r in consul.requests if "node-meta" in r.params]
    assert (probe.path, "index" in probe.params, "stale" in probe.params) == ("/v1/catalog/services", False, False)


def test_a_node_probe_has_the_index_of_the_node(consul: FakeConsul, client: ConsulClient) -> None:
    consul.register("web", "vm", "10.0.0.1", 80)
    assert client.probe_nodes(["vm"], "dc1") == [client.node_services("vm", "dc1").index]
    assert client.probe_node("vm", "dc1").index == client.node_services("vm", "dc1").index


def test_the_token_goes_into_the_header_and_nowhere_else(consul: FakeConsul) -> None:
    client = ConsulClient(consul_config(address=consul.address, token="s3cret"))
    client.health_service(WEB)
    client.probe_services([WEB])
    client.leader()
    client.close()
    assert [r.headers["X-Consul-Token"] for r in consul.requests] == ["s3cret"] * 3
    assert all("s3cret" not in str(r.params) + r.path for r in consul.requests)


def test_the_leader_and_the_datacenters(consul: FakeConsul, client: ConsulClient) -> None:
    assert client.leader("dc1") == "127.0.0.1:8300"
    consul.leader = False
    assert client.leader("dc1") == ""
    assert client.datacenters() == ("dc1",)
    assert client.own_datacenter() == "dc1"


def test_without_agent_read_the_datacenter_comes_from_the_catalog() -> None:
    with FakeConsul(datacenters=("dc2", "dc1"), token="t") as consul:
        consul.inject(Fault(status=403, body="Permission denied"), path="/v1/agent/self", times=9)
        consul.register("web", "vm", "10.0.0.1", 80, dc="dc2")
        client = ConsulClient(consul_config(address=consul.address, token="t"))
        assert client.own_datacenter() == "dc1"  # what the node says
        client.close()
        nobody = ConsulClient(consul_config(address=consul.address))
        with pytest.raises(PermanentError, match=r"Name it: --datacenter, one of dc2, dc1"):
            nobody.own_datacenter()
        nobody.close()


# --------------------------------------------------------------------------- envelopes


def test_the_envelope_is_read_from_the_headers(consul: FakeConsul, client: ConsulClient) -> None:
    consul.last_contact_ms = 1500
    answer = client.listing("dc1")
    assert (answer.query_backend, answer.last_contact_seconds, answer.known_leader) == ("blocking-query", 1.5, True)
    assert (answer.filtered, answer.default_deny_anonymous) == (False, False)
    consul.register("web", "vm", "10.0.0.1", 80)
    consul.hidden.add("web")
    assert client.health_service(WEB).filtered is True


def test_anonymous_under_default_deny_is_noticed() -> None:
    with FakeConsul(token="t") as consul:
        nobody = ConsulClient(consul_config(address=consul.address))
        somebody = ConsulClient(consul_config(address=consul.address, token="t"))
        assert nobody.listing().default_deny_anonymous is True
        assert somebody.listing().default_deny_anonymous is False
        nobody.close()
        somebody.close()


@pytest.mark.parametrize("header", ["", "abc", "-1", "1.5", "9" * 30, "²", None])
def test_an_answer_without_a_usable_index_is_not_consuls(
    consul: FakeConsul, client: ConsulClient, header: str | None
) -> None:
    if header == "²":
        header = "0xB2"
    consul.inject(Fault(headers=(("X-Consul-Index", header),)))
    with pytest.raises(TransientError, match="without a usable index"):
        client.listing()


def test_index_zero_is_reported_as_it_is(consul: FakeConsul, client: ConsulClient) -> None:
    consul.inject(Fault(headers=(("X-Consul-Index", "0"),)))
    assert client.listing().index == 0


def test_an_error_answer_gives_no_index_although_it_carries_one(consul: FakeConsul, client: ConsulClient) -> None:
    consul.inject(Fault(status=500, body="No cluster leader", headers=(("X-Consul-Index", "1"),)))
    with pytest.raises(TransientError):
        client.listing()


@pytest.mark.parametrize("garbage", ["{", "", "<html>", "[" * 100_000])
def test_a_body_that_is_not_json_is_trouble_and_no_bug(consul: FakeConsul, client: ConsulClient, garbage: str) -> None:
    consul.inject(Fault(status=200, body=garbage, headers=(("X-Consul-Index", "5"),)))
    with pytest.raises(TransientError, match="not JSON"):
        client.listing()


def test_a_stale_answer_within_the_bound_is_taken(consul: FakeConsul, client: ConsulClient) -> None:
    consul.last_contact_ms = 59_000
    client.health_service(WEB)
    assert len(consul.requests) == 1


@pytest.mark.parametrize(("max_stale", "asked"), [(2.0, 2), (4.9, 2), (5.0, 1), (300.0, 1)])
def test_how_old_an_answer_may_be_is_what_the_settings_say(consul: FakeConsul, max_stale: float, asked: int) -> None:
    consul.last_contact_ms = 5_000
    client = ConsulClient(consul_config(address=consul.address, max_stale_seconds=max_stale))
    try:
        client.listing("dc1")
    finally:
        client.close()
    assert len(consul.requests) == asked


@pytest.mark.parametrize("what", ["old", "leaderless"])
def test_a_stale_answer_that_is_too_old_is_asked_for_once_more_consistent(
    consul: FakeConsul, client: ConsulClient, what: str
) -> None:
    consul.inject(
        Fault(headers=(("X-Consul-LastContact", "61000") if what == "old" else ("X-Consul-KnownLeader", "false"),))
    )
    answer = client.listing("dc1")
    assert [("stale" in r.params, "consistent" in r.params) for r in consul.requests] == [(True, False), (False, True)]
    assert answer.known_leader


def test_without_a_leader_the_second_question_fails_and_nothing_is_believed(
    consul: FakeConsul, client: ConsulClient
) -> None:
    consul.leader = False
    with pytest.raises(TransientError, match="No cluster leader"):
        client.health_service(WEB)


def test_streaming_answers_are_not_doubted_for_headers_that_mean_nothing(
    consul: FakeConsul, client: ConsulClient
) -> None:
    answer = client.health_service(WEB, index=999, wait=0.05)
    assert (answer.query_backend, answer.known_leader) == ("streaming", False)
    assert len(consul.requests) == 1


# --------------------------------------------------------------------------- tokens from files


def test_a_token_file_is_read_again_when_it_is_another_one(tmp_path: Path, consul: FakeConsul) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    client = ConsulClient(consul_config(address=consul.address, token_file=str(file)))
    client.leader()
    other = tmp_path / "other"
    other.write_text("other\n")
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.replace(file)  # same length, same time, another file
    client.leader()
    file.unlink()
    client.leader()  # while it is being replaced, the last one serves
    client.close()
    assert [r.headers["X-Consul-Token"] for r in consul.requests] == ["first", "other", "other"]


@pytest.mark.parametrize(
    ("content", "said", "kind"),
    [(None, "cannot be read: No such file", PermanentError), (b"", "is empty", PermanentError),
     (b"\xff\xfe", "it is not text", PermanentError), (b"two words", "no token has", ConfigurationError)],
)  # fmt: skip
def test_a_token_file_that_cannot_be_used_is_named(
    tmp_path: Path, consul: FakeConsul, content: bytes | None, said: str, kind: type[Exception]
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    client = ConsulClient(consul_config(address=consul.address, token_file=str(file)))
    with pytest.raises(kind, match=said) as caught:
        client.leader()
    assert str(file) in str(caught.value)
    assert "words" not in str(caught.value)


def test_a_token_that_no_header_can_carry_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigurationError) as caught:
        ConsulClient(consul_config(token="bad\r\nX-Evil: 1"))
    assert "Evil" not in str(caught.value)


# --------------------------------------------------------------------------- the environment and the library


def test_the_environment_has_no_say(consul: FakeConsul, monkeypatch: pytest.MonkeyPatch) -> None:
    """python-consul2's own constructor lets these beat its arguments, or fails on them."""
    for name, value in {
        "CONSUL_HTTP_ADDR": "not:an:address:at:all",
        "CONSUL_HTTP_TOKEN": "from-the-environment",
        "CONSUL_HTTP_SSL": "true",
        "CONSUL_HTTP_SSL_VERIFY": "false",
        "HTTP_PROXY": "http://127.0.0.1:1",
        "http_proxy": "http://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(name, value)
    client = ConsulClient(consul_config(address=consul.address, token="ours"))
    assert client.leader("dc1") == "127.0.0.1:8300"
    client.close()
    assert consul.requests[-1].headers["X-Consul-Token"] == "ours"


def test_construction_warns_of_nothing(consul: FakeConsul) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ConsulClient(consul_config(address=consul.address)).close()


def test_python_consul2s_public_calls_run_over_our_connection(consul: FakeConsul, client: ConsulClient) -> None:
    library: Any = client._consul
    consul.register("web", "vm", "10.0.0.1", 80)
    assert library.catalog.datacenters() == ["dc1"]
    index, nodes = library.health.service("web")
    assert (int(index), len(nodes)) == (client.health_service(WEB).index, 1)
    assert library.status.leader() == "127.0.0.1:8300"
    assert consul.peak_connections == 1
