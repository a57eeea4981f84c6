"""The way to Consul: deadlines that hold byte by byte, proxies, what is in front, replaced certificates, memory."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from bridge.consul.access import warnings_of
from bridge.consul.client import Answer, ConsulClient, ConsulConfig
from bridge.consul.memory_budget import FREE_BYTES, MemoryBudget
from bridge.consul.ratelimit import WaitLimit
from bridge.consul.tls import Tls
from bridge.core.model import Query
from bridge.errors import BridgeError, ConfigurationError, PermanentError, TransientError
from tests.support.fakes.consul import FakeConsul, Fault
from tests.support.options import consul_config
from tests.unit.consul.test_transport import OK, raw_server


def ask(config: ConsulConfig) -> Answer:
    """One question on a connection of its own."""
    client = ConsulClient(config)
    try:
        return client.nodes()
    finally:
        client.close()


# --------------------------------------------------------------------------- deadlines


@contextmanager
def trickling(answer: bytes, seconds: float) -> Iterator[str]:
    """A server that sends `answer` byte by byte, one every so many seconds."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                try:
                    sock.recv(65536)
                    for byte in answer:
                        if stop.wait(seconds):
                            return
                        sock.sendall(bytes([byte]))
                    sock.recv(1)
                except OSError:
                    continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stop.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_headers_that_trickle_do_not_outlive_the_deadline() -> None:
    """Each byte comes well within a socket's timeout; together they would take 15 s."""
    with trickling(b"HTTP/1.1 200 OK\r\n" + b"X-Padding: 1\r\n" * 20 + b"\r\n", 0.05) as address:
        client = ConsulClient(consul_config(address=address, timeout_margin_seconds=1.0))
        began = time.monotonic()
        with pytest.raises(TransientError, match="did not answer in time"):
            client.nodes()
        assert time.monotonic() - began < 3.0


def test_an_answer_that_has_begun_must_end_soon_though_the_query_may_wait() -> None:
    """A blocking query may wait a minute for its answer, but its headers may not take that minute."""
    with trickling(b"HTTP/1.1 200 OK\r\n" + b"X-Padding: 1\r\n" * 20 + b"\r\n", 0.05) as address:
        client = ConsulClient(consul_config(address=address, timeout_margin_seconds=1.0))
        began = time.monotonic()
        with pytest.raises(TransientError, match="did not answer in time"):
            client.listing(index=5, wait=60.0)
        assert time.monotonic() - began < 3.0


def test_probes_that_are_sent_together_keep_their_deadline_as_well() -> None:
    """The pipelined reader has loops of its own."""
    with trickling(OK * 20, 0.05) as address:
        client = ConsulClient(consul_config(address=address, timeout_margin_seconds=1.0))
        began = time.monotonic()
        client.probe_services([Query("dc1", f"s{n}") for n in range(20)])
        client.close()
        assert time.monotonic() - began < 3.0


def test_a_kept_connection_notices_a_peer_that_has_gone() -> None:
    """Keepalive and the user timeout are set, so that a query that waits does not wait for a dead host."""
    with FakeConsul() as consul:
        client = ConsulClient(consul_config(address=consul.address))
        client.nodes()
        sock = client._transport._sock
        assert sock is not None
        options = [
            sock.getsockopt(socket.IPPROTO_TCP, name)
            for name in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
        ]
        assert (sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), options) == (1, [5, 3, 3, 14_000])
        client.close()


# --------------------------------------------------------------------------- proxies


def test_a_proxy_that_cannot_be_used_is_refused_by_name() -> None:
    """Going around it in silence could be worse."""
    config = consul_config(address="http://consul:8500", proxies=(("HTTP_PROXY", "https://us:pw@p:1"),))
    with pytest.raises(ConfigurationError) as error:
        ConsulClient(config)
    assert str(error.value) == (
        "HTTP_PROXY: https://p:1: Consul is not reached through https:// proxies; name an http:// proxy, or add consul "
        "to NO_PROXY"
    )


def test_loopback_and_unix_sockets_are_never_proxied() -> None:
    """Whatever the variables say."""
    for address in ("http://127.0.0.1:8500", "http://localhost:8500", "unix:///run/consul.sock"):
        config = consul_config(address=address, proxies=(("HTTP_PROXY", "http://proxy:1"),))
        assert config.access.parts(config).proxy is None


def through(proxy: str, address: str = "http://consul.example:8500", variable: str = "HTTP_PROXY") -> ConsulConfig:
    return consul_config(address=address, proxies=((variable, f"http://us:pw@{proxy}"),))


def test_plain_requests_name_the_whole_address_to_the_proxy() -> None:
    """And the proxy's own credentials; host names are for the proxy to resolve."""
    with raw_server(lambda *_: OK) as (proxy, requests):
        ask(through(proxy))
    first, *headers = requests[0].decode().split("\r\n")
    assert first == "GET http://consul.example:8500/v1/catalog/nodes?stale= HTTP/1.1"
    assert "Host: consul.example:8500" in headers
    assert f"Proxy-Authorization: Basic {base64.b64encode(b'us:pw').decode()}" in headers


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (None, TransientError, "the connection to http://consul.example:8500 through the proxy"),
        (
            b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
            PermanentError,
            "the proxy in front of http://consul.example:8500 through the proxy",
        ),
        (b"HTTP/1.1 503 Unavailable\r\nContent-Length: 4\r\n\r\nnope", TransientError, "answers 503"),
    ],
)
def test_every_error_through_a_proxy_names_it_and_its_variable(
    answer: bytes | None, kind: type[BridgeError], said: str
) -> None:
    """Else the server would be blamed for what the proxy did."""
    with raw_server(lambda *_: answer) as (proxy, _), pytest.raises(kind, match=said) as error:
        ask(through(proxy))
    assert f"the proxy http://{proxy} (HTTP_PROXY)" in str(error.value)
    assert "pw" not in str(error.value)


def test_a_proxy_that_is_not_there_is_not_taken_for_consul() -> None:
    """Not: no Consul agent is listening there."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        proxy = f"127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(TransientError) as error:
        ask(through(proxy))
    expected = f"list nodes: the proxy http://{proxy} (HTTP_PROXY) cannot be reached: Connection refused"
    assert str(error.value) == expected
    assert error.value.remedy == "the proxy's variable, or NO_PROXY"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "refuses to connect to consul.example:8501: 403 Forbidden. If no proxy is"),
        (b"HTTP/1.1 407 x\r\n\r\n", r"asks for a user and password \(407\): write HTTPS_PROXY=http://USER:PASSWORD"),
        (None, "gives no answer to CONNECT consul.example:8501"),
        (b"SSH-2.0-OpenSSH\r\n", "gives no answer to CONNECT consul.example:8501"),
    ],
)
def test_a_tunnel_that_a_proxy_refuses_is_reported_with_its_words(
    answer: bytes | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS goes through CONNECT. The answer is closed: Python 3.13 and later write a traceback for one that is not."""
    answers: list[http.client.HTTPResponse] = []

    class Kept(http.client.HTTPResponse):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            answers.append(self)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(http.client, "HTTPResponse", Kept)
    with raw_server(lambda *_: answer) as (proxy, requests), pytest.raises(TransientError, match=said) as error:
        ask(through(proxy, "https://consul.example:8501", "HTTPS_PROXY"))
    assert f"the proxy http://{proxy} (HTTPS_PROXY)" in str(error.value)
    assert requests[0].startswith(b"CONNECT consul.example:8501 HTTP/1.1\r\nHost: consul.example:8501\r\n")
    assert [kept.closed for kept in answers] == [True]


# --------------------------------------------------------------------------- what is in front of Consul


def challenge(text: str) -> bytes:
    return f"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: {text}\r\nContent-Length: 0\r\n\r\n".encode()


def test_basic_authentication_is_sent_with_every_request() -> None:
    """Beside Consul's own token; CONSUL_HTTP_AUTH without a colon is a user without a password."""
    with raw_server(lambda *_: OK) as (address, requests):
        ask(consul_config(address=address, http_auth="user", token="t"))
    assert f"Authorization: Basic {base64.b64encode(b'user:').decode()}".encode() in requests[0]
    assert b"X-Consul-Token: t" in requests[0]


@pytest.mark.parametrize(
    ("http_auth", "asks", "said"),
    [
        ("", 'Basic realm="ops"', r'something in front of Consul wants a user and password \(Basic realm="ops"\)'),
        ("u:pw-secret", "Basic", "something in front of Consul refuses the user and password of consul.http_auth"),
        ("", 'Bearer realm="x"', r"something in front of Consul wants Bearer credentials"),
    ],
)
def test_a_401_that_is_not_consuls_own_is_not_answered_with_a_policy(http_auth: str, asks: str, said: str) -> None:
    """Consul has no WWW-Authenticate: that is a proxy's."""
    with raw_server(lambda *_: challenge(asks)) as (address, _), pytest.raises(PermanentError, match=said) as error:
        ask(consul_config(address=address, http_auth=http_auth))
    assert "service_prefix" not in str(error.value)
    assert "pw-secret" not in str(error.value)
    assert "http_auth" in error.value.remedy


def test_headers_that_a_server_sends_back_are_not_quoted() -> None:
    """Neither the password nor its encoding."""
    with raw_server(lambda _number, request: _echo(request)) as (address, _):
        config = consul_config(address=address, http_auth="us:pw-secret", token="token-secret")
        with pytest.raises(TransientError) as error:
            ask(config)
    assert "Authorization: Basic <hidden>" in str(error.value)
    assert not any(text in str(error.value) for text in ("secret", base64.b64encode(b"us:pw-secret").decode()))


def _echo(request: bytes) -> bytes:
    body = request.partition(b"\r\n")[2]
    return b"HTTP/1.1 500 x\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize("name", [".", ".."])
def test_a_name_that_is_another_path_is_refused_before_the_request(name: str) -> None:
    """`health/service/..` would be `health`."""
    with FakeConsul() as consul:
        client = ConsulClient(consul_config(address=consul.address))
        said = "cannot be asked for: in a URL its name means another path"
        with pytest.raises(PermanentError, match=f"service '{name}' {said}"):
            client.health_service(Query("dc1", name))
        with pytest.raises(PermanentError, match=f"node '{name}' {said}"):
            client.node_services(name)
        assert consul.requests == []


# --------------------------------------------------------------------------- certificates


def write_ca(folder: Path, authority: trustme.CA, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    authority.cert_pem.write_to_path(str(folder / name))
    return folder / name


def server_of(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def test_a_directory_of_certificates_is_trusted_as_a_whole(tmp_path: Path) -> None:
    """CONSUL_CAPATH: any file name, no hashes; the links by which Kubernetes swaps mounted files are passed over."""
    ours, other = trustme.CA(), trustme.CA()
    write_ca(tmp_path / "ca", other, "a.crt")
    write_ca(tmp_path / "ca", ours, "b.pem")
    write_ca(tmp_path / "ca" / "..2026", other, "broken").write_text("not PEM")
    with raw_server(lambda *_: OK, server_of(ours)) as (address, _):
        assert ask(consul_config(address=f"https://{address}", ca_path=str(tmp_path / "ca"))).index == 7
        (tmp_path / "ca" / "b.pem").unlink()
        with pytest.raises(PermanentError, match=r"is not trusted.*consul.ca_path") as error:
            ask(consul_config(address=f"https://{address}", ca_path=str(tmp_path / "ca")))
        assert error.value.remedy == "consul.ca_path (CONSUL_CAPATH=DIRECTORY): the CA of Consul's certificate"


@pytest.mark.parametrize(("name", "said"), [("empty", "has no file in it"), ("bad", "cannot be used: not PEM")])
def test_a_directory_that_cannot_be_used_is_refused_by_name(name: str, said: str, tmp_path: Path) -> None:
    """At the start, not at the first request."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.pem").write_text("not PEM")
    with pytest.raises(ConfigurationError, match=said):
        Tls("", "", "", True, ca_path=str(tmp_path / name))


def test_a_kept_connection_is_opened_anew_when_its_certificate_was_replaced(tmp_path: Path) -> None:
    """By content: a file that is rewritten in place with the same size and times is another one as well."""
    authority = trustme.CA()
    context = server_of(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    write_ca(tmp_path, authority, "ca.pem")

    def issue(name: str) -> None:
        made = authority.issue_cert(name)
        made.cert_chain_pems[0].write_to_path(str(tmp_path / "c.pem"))
        made.private_key_pem.write_to_path(str(tmp_path / "k.pem"))

    issue("one.example")
    connections: list[int] = []

    def answer(number: int, _request: bytes) -> bytes:
        connections.append(number)
        return OK

    with raw_server(answer, context) as (address, _):
        client = ConsulClient(
            consul_config(
                address=f"https://{address}",
                ca_file=str(tmp_path / "ca.pem"),
                client_cert=str(tmp_path / "c.pem"),
                client_key=str(tmp_path / "k.pem"),
            )
        )
        client.nodes()
        client.nodes()
        assert len(set(connections)) == 1
        issue("two.example")
        time.sleep(1.1)  # the files are looked at once a second
        client.nodes()
        assert len(set(connections)) == 2
        client.close()


# --------------------------------------------------------------------------- warnings

REMOTE = "http://consul.example:8500"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (consul_config(), []),
        (consul_config(address=REMOTE), []),
        (consul_config(token="t"), []),
        (consul_config(address="unix:///run/c.sock", token="t"), []),
        (consul_config(address="https://consul.example", token="t"), []),
        (consul_config(address=REMOTE, verify=False), []),
        (
            consul_config(address="https://127.0.0.1:1", verify=False),
            ["is not verified (consul.verify, CONSUL_HTTP_SSL_"],
        ),
        (consul_config(address=REMOTE, token="t"), ["the ACL token is sent to http://consul.example:8500 unencrypted"]),
        (consul_config(address=REMOTE, auth_method="k"), ["the ACL token is sent to"]),
        (
            consul_config(address=REMOTE, token_file="/f", http_auth="u:p"),
            ["the ACL token and the password of consul.http_auth are sent to http://consul.example:8500 unencrypted"],
        ),
    ],
)
def test_what_is_not_safe_is_reported(config: ConsulConfig, said: list[str]) -> None:
    """Verification that is off, and secrets in the clear beyond this host."""
    found = warnings_of(config)
    assert len(found) == len(said)
    assert all(text in warning for text, warning in zip(said, found, strict=True))


# --------------------------------------------------------------------------- how long queries may wait


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def cut(limit: WaitLimit, clock: Clock, *lasted: float, gateway: bool) -> None:
    for seconds in lasted:
        clock.now += seconds
        limit.cut_off(seconds, 55.0, gateway=gateway)


def test_a_gateways_timeout_shortens_the_wait_when_it_comes_again() -> None:
    """Once may be chance."""
    clock = Clock()
    limit = WaitLimit(clock)
    cut(limit, clock, 30.0, gateway=True)
    assert (limit.of(55.0), limit.note) == (55.0, "")
    cut(limit, clock, 30.2, gateway=True)
    assert (limit.of(55.0), limit.of(10.0)) == (25.5, 10.0)
    assert limit.note.startswith("something in front of Consul ends queries after about 30 s: they wait for 25.5 s")


def test_queries_that_are_reset_must_be_so_three_times() -> None:
    """An agent that restarts resets as well."""
    clock = Clock()
    limit = WaitLimit(clock)
    cut(limit, clock, 30.0, 30.0, gateway=False)
    assert limit.of(55.0) == 55.0
    cut(limit, clock, 30.0, gateway=False)
    assert limit.of(55.0) == 25.5


def test_many_queries_that_are_cut_off_together_are_one_sign() -> None:
    """A restart of the agent ends all of them at once, after the same time if they began together."""
    clock = Clock()
    limit = WaitLimit(clock)
    clock.now = 30.0
    for _ in range(60):
        limit.cut_off(30.0, 55.0, gateway=False)
        clock.now += 0.01
    assert limit.of(55.0) == 55.0


@pytest.mark.parametrize("lasted", [(30.0, 12.0, 30.0, 12.0), (0.5, 0.5, 0.5, 0.5), (60.0, 60.0, 60.0)])
def test_what_has_no_rhythm_or_comes_at_once_or_too_late_is_no_timeout(lasted: tuple[float, ...]) -> None:
    """Only what ends again and again after the same time, before the query's own end, is."""
    clock = Clock()
    limit = WaitLimit(clock)
    cut(limit, clock, *lasted, gateway=True)
    assert limit.of(55.0) == 55.0


def test_a_query_that_lived_longer_proves_the_way_to_be_long_enough() -> None:
    """Then the resets had another cause."""
    clock = Clock()
    limit = WaitLimit(clock)
    cut(limit, clock, 30.0, 30.0, gateway=False)
    limit.answered(40.0)
    cut(limit, clock, 30.0, 30.0, gateway=False)
    assert limit.of(55.0) == 55.0


# --------------------------------------------------------------------------- memory


def test_large_answers_take_turns_and_the_oldest_never_waits() -> None:
    """So two that both need more than there is do not wait for each other."""
    room = MemoryBudget(100)
    room.take("a", 60, time.monotonic() + 1)
    with pytest.raises(TimeoutError):
        room.take("b", 50, time.monotonic() + 0.05)
    room.take("b", 40, time.monotonic() + 1)
    room.take("a", 500, time.monotonic() + 1)
    done = threading.Event()

    def wait() -> None:
        room.take("b", 90, time.monotonic() + 10)
        done.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert not done.wait(0.1)
    room.give_back("a")
    assert done.wait(5)
    waiter.join()
    assert room.held == 90
    room.give_back("b")
    assert room.held == 0


def test_all_connections_together_hold_one_large_answer_and_a_quarter() -> None:
    """Twelve readers of 3 MiB each, 4 MiB allowed for one: never more than 5 MiB beside the uncounted beginnings."""
    body = b"[" + b" " * (3 << 20) + b"]"
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)  # as Consul sends large answers: no length beforehand
    answer = b"HTTP/1.1 200 OK\r\nX-Consul-Index: 7\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked
    with raw_server(lambda *_: answer) as (address, _):
        config = consul_config(address=address, max_answer_bytes=4 << 20, timeout_margin_seconds=30.0)
        room = config.access.parts(config).room
        held: list[int] = []
        find = room.take

        def take(who: Hashable, size: int, deadline: float) -> None:
            find(who, size, deadline)
            held.append(room.held)

        room.take = take  # type: ignore[method-assign]

        def read() -> None:
            client = ConsulClient(config)
            assert client.nodes().data == []
            client.close()

        threads = [threading.Thread(target=read) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(held) >= 12
    assert max(held) <= (4 << 20) + (1 << 20)
    assert room.held == 0


def test_what_is_held_is_given_back_whatever_the_answer_was() -> None:
    """A torn, a refused and a garbled answer, each larger than what is not counted."""
    padding = b" " * (2 * FREE_BYTES)
    for answer in (
        b"HTTP/1.1 200 OK\r\nX-Consul-Index: 7\r\nContent-Length: 99999999\r\n\r\n" + padding,
        b"HTTP/1.1 500 OK\r\nContent-Length: %d\r\n\r\n" % len(padding) + padding,
        b"HTTP/1.1 200 OK\r\nX-Consul-Index: 7\r\nContent-Length: %d\r\n\r\n{" % (len(padding) + 1) + padding,
    ):
        with raw_server(lambda *_, answer=answer: answer) as (address, _):
            config = consul_config(address=address, timeout_margin_seconds=1.0)
            with pytest.raises(TransientError):
                ask(config)
            assert config.access.parts(config).room.held == 0


def test_an_answer_that_is_too_large_names_the_setting() -> None:
    """With how to raise it."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n"
    said = r"larger than 1048576 bytes \(consul.max_answer\)"
    with raw_server(lambda *_: answer) as (address, _), pytest.raises(TransientError, match=said) as error:
        ask(consul_config(address=address, max_answer_bytes=1 << 20))
    assert error.value.remedy == "consul.max_answer, with memory to match"


def test_configs_that_are_equal_share_what_they_have() -> None:
    """Also when a command makes one and passes it on; another address is another way."""
    config = consul_config(address="http://one:1")
    assert config.access.parts(config) is config.access.parts(replace(config))
    assert config.access.parts(config) is not config.access.parts(replace(config, address="http://two:2"))


def test_the_leader_probe_has_a_deadline_of_its_own() -> None:
    """A kept connection that leads nowhere is found out before ordinary requests give up."""
    with FakeConsul() as consul:
        client = ConsulClient(consul_config(address=consul.address))
        consul.inject(Fault(delay=30.0), path="/v1/status/leader")
        began = time.monotonic()
        with pytest.raises(TransientError):
            client.leader(timeout_seconds=0.3)
        assert time.monotonic() - began < 3.0
        assert client.opened == float("inf")
        assert client.leader(timeout_seconds=5.0)
        assert client.opened < time.monotonic()
        client.close()
