"""The connection: addresses, kept-alive reuse, deadlines, bounds, TLS, and an end that comes at once."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trustme

from bridge.consul.client import PIPELINING_REST_SECONDS, ConsulClient
from bridge.consul.tls import Tls
from bridge.consul.transport import Endpoint, Interrupted, TooLarge, Transport, parse_address
from bridge.errors import CancelledError, ConfigurationError, PermanentError, TransientError
from tests.support.fakes.consul import FakeConsul, Fault, black_hole
from tests.support.options import consul_config

OK = b"HTTP/1.1 200 OK\r\nX-Consul-Index: 7\r\nContent-Length: 2\r\n\r\n[]"


@contextmanager
def raw_server(
    answers: Callable[[int, bytes], bytes | None], context: ssl.SSLContext | None = None, path: str = ""
) -> Iterator[tuple[str, list[bytes]]]:
    """A server of bytes: `answers(number of connection, request)`; None closes. Yields its address and the requests."""
    requests: list[bytes] = []
    open_: list[socket.socket] = []
    listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(path or ("127.0.0.1", 0))
    listener.listen(8)

    def serve(sock: socket.socket, number: int) -> None:
        try:
            if context is not None:
                sock = context.wrap_socket(sock, server_side=True)
                open_.append(sock)
            buffer = b""
            while True:
                while b"\r\n\r\n" in buffer:
                    request, _, buffer = buffer.partition(b"\r\n\r\n")
                    requests.append(request)
                    answer = answers(number, request)
                    if answer is None:
                        sock.close()
                        return
                    sock.sendall(answer)
                more = sock.recv(65536)
                if not more:
                    return
                buffer += more
        except OSError:
            pass
        finally:
            sock.close()

    def accept() -> None:
        threads = []
        number = 0
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                break
            open_.append(sock)
            thread = threading.Thread(target=serve, args=(sock, number))
            thread.start()
            threads.append(thread)
            number += 1
        for thread in threads:
            thread.join()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield (f"unix://{path}" if path else f"127.0.0.1:{listener.getsockname()[1]}"), requests
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for sock in open_:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        acceptor.join()


def get(transport: Transport, path: str = "/v1/x") -> bytes:
    content: bytes = transport.get(lambda response: response.content, path)
    return content


# --------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://127.0.0.1:8500", Endpoint("http", "127.0.0.1", 8500)),
        ("https://consul.example.com:8501/", Endpoint("https", "consul.example.com", 8501)),
        ("https://consul.example.com", Endpoint("https", "consul.example.com", 443)),
        ("http://consul", Endpoint("http", "consul", 80)),
        ("consul", Endpoint("http", "consul", 8500)),
        ("consul:18500", Endpoint("http", "consul", 18500)),
        ("10.0.0.1:8500", Endpoint("http", "10.0.0.1", 8500)),
        ("[::1]:8500", Endpoint("http", "::1", 8500)),
        ("::1", Endpoint("http", "::1", 8500)),
        ("http://[fd00::1]:9", Endpoint("http", "fd00::1", 9)),
        (" http://h:1/consul/ ", Endpoint("http", "h", 1, "/consul")),
        ("unix:///run/consul.sock", Endpoint("http", "localhost", 0, "", "/run/consul.sock")),
    ],
)
def test_an_address_may_be_written_in_every_usual_form(text: str, expected: Endpoint) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "   ", "ftp://h", "http://", "http://h:99999", "h:port", "http://h?x=1", "http://h#f", "unix://relative",
     "http://h:0", "http://a b:1"],
)  # fmt: skip
def test_an_address_that_cannot_be_used_is_refused_with_the_forms_that_can(text: str) -> None:
    with pytest.raises(ConfigurationError, match="write http://host:port"):
        parse_address(text)


def test_a_password_in_the_address_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_address("http://admin:hunter2@consul:8500")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "local"),
    [("127.0.0.1:1", True), ("[::1]:1", True), ("localhost:1", True), ("unix:///x", True), ("10.0.0.1:1", False),
     ("consul:1", False)],
)  # fmt: skip
def test_only_addresses_of_this_machine_count_as_local(text: str, local: bool) -> None:
    assert parse_address(text).is_local is local


# --------------------------------------------------------------------------- the connection


def test_one_connection_serves_many_requests() -> None:
    with FakeConsul() as consul:
        client = ConsulClient(consul_config(address=consul.address))
        for _ in range(5):
            client.listing()
        assert consul.peak_connections == 1
        client.close()


def test_an_idle_connection_that_the_server_closed_is_opened_again_and_reported() -> None:
    told: list[int] = []
    with raw_server(lambda *_: OK) as (address, requests):
        transport = Transport(parse_address(address), on_reconnect=lambda: told.append(1))
        get(transport)
        transport._sock.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]
        assert get(transport) == b"[]"
        assert told == [1]
        assert len(requests) == 2
        transport.close()


def test_a_fresh_connection_that_breaks_is_not_tried_again() -> None:
    with raw_server(lambda *_: None) as (address, requests):
        transport = Transport(parse_address(address))
        with pytest.raises(ConnectionError):
            get(transport)
        assert len(requests) == 1


def test_a_server_that_never_answers_is_given_up_at_the_deadline() -> None:
    with black_hole() as address:
        transport = Transport(parse_address(address))
        transport.timeout = 0.2
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            get(transport)
        assert time.monotonic() - began < 10.0  # 15 s are what it has when nothing is reported


def test_an_answer_that_trickles_is_given_up_at_the_deadline_too() -> None:
    """Each byte comes in time; the whole does not."""
    stop = threading.Event()

    def trickle(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            with suppress(OSError):
                while not stop.wait(0.05):
                    sock.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        feeder = threading.Thread(target=trickle, args=(listener,))
        feeder.start()
        transport = Transport(parse_address(f"127.0.0.1:{listener.getsockname()[1]}"))
        transport.timeout = 0.4
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            get(transport)
        took = time.monotonic() - began
        stop.set()
        feeder.join()
    assert 0.3 < took < 10.0


def test_a_body_larger_than_the_bound_is_refused() -> None:
    with raw_server(lambda *_: b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000) as (address, _):
        transport = Transport(parse_address(address), max_body_bytes=1000)
        with pytest.raises(TooLarge):
            get(transport)


def test_a_small_body_that_unpacks_to_more_than_the_bound_is_refused() -> None:
    bomb = gzip.compress(b"x" * 5_000_000)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n".encode()
    with raw_server(lambda *_: head + bomb) as (address, _):
        transport = Transport(parse_address(address), max_body_bytes=1_000_000)
        with pytest.raises(TooLarge):
            get(transport)


def test_compressed_and_chunked_answers_are_understood() -> None:
    body = gzip.compress(b'{"a": 1}')
    half = len(body) // 2
    chunks = b"".join(f"{len(c):x}\r\n".encode() + c + b"\r\n" for c in (body[:half], body[half:])) + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    with raw_server(lambda *_: head + chunks) as (address, _):
        transport = Transport(parse_address(address))
        assert get(transport) == b'{"a": 1}'
        assert get(transport) == b'{"a": 1}'  # and the connection is still in step
        transport.close()


def test_compression_is_asked_for_only_where_bytes_travel() -> None:
    near, far = Transport(parse_address("127.0.0.1:1")), Transport(parse_address("consul.example.com:1"))
    assert (near._standing["Accept-Encoding"], far._standing["Accept-Encoding"]) == ("identity", "gzip")


def test_a_torn_body_is_an_error() -> None:
    with FakeConsul() as consul:
        consul.inject(Fault(truncate=True))
        client = ConsulClient(consul_config(address=consul.address))
        with pytest.raises(TransientError, match="torn off"):
            client.listing()
        client.close()


def test_a_unix_socket_is_an_address_like_any_other(tmp_path: Path) -> None:
    with raw_server(lambda *_: OK, path=str(tmp_path / "s")) as (address, requests):
        client = ConsulClient(consul_config(address=address))
        assert client.state("critical").index == 7
        assert b"GET /v1/health/state/critical" in requests[0]
        client.close()


def test_a_unix_socket_that_is_not_there_is_trouble_and_no_bug(tmp_path: Path) -> None:
    client = ConsulClient(consul_config(address=f"unix://{tmp_path}/none"))
    with pytest.raises(TransientError, match="no agent is listening"):
        client.listing()


def test_the_bridge_cannot_write_to_consul() -> None:
    transport = Transport(parse_address("127.0.0.1:1"))
    for method in (transport.put, transport.post, transport.delete):
        with pytest.raises(NotImplementedError):
            method(lambda r: r, "/v1/kv/x")


# --------------------------------------------------------------------------- the end


@pytest.mark.parametrize("end", ["interrupt", "wake"])
def test_a_waiting_request_ends_at_once(end: str) -> None:
    with black_hole() as address:
        transport = Transport(parse_address(address))
        transport.timeout = 60.0
        ended: list[float] = []

        def wait() -> None:
            with pytest.raises(Interrupted):
                get(transport)
            ended.append(time.monotonic())

        thread = threading.Thread(target=wait)
        thread.start()
        while not transport._busy or not transport.connected:
            time.sleep(0.001)
        time.sleep(0.02)
        began = time.monotonic()
        getattr(transport, end)()
        thread.join(30)
        assert ended[0] - began < 10.0
        assert not transport.connected


def test_after_the_end_nothing_is_sent_any_more() -> None:
    with FakeConsul() as consul:
        client = ConsulClient(consul_config(address=consul.address))
        client.listing()
        client.close()
        client.close()
        with pytest.raises(CancelledError):
            client.listing()
        assert len(consul.requests) == 1


def test_after_a_wake_the_client_goes_on(eventually: Callable[..., None]) -> None:
    with FakeConsul() as consul:
        client = ConsulClient(consul_config(address=consul.address))
        index = client.listing().index

        def wake() -> None:
            eventually(lambda: len(consul.requests), 2)  # a wake is for who waits: before that it would be lost
            client.wake()

        woken = threading.Thread(target=wake)
        woken.start()
        with pytest.raises(CancelledError):
            client.listing(index=index, wait=30.0)
        woken.join()
        assert client.listing().index == index
        client.close()


def test_closing_at_any_moment_leaves_no_socket_open() -> None:
    """Two hundred races between a request and its end; ResourceWarning is an error in this suite."""
    with FakeConsul() as consul:
        for n in range(200):
            client = ConsulClient(consul_config(address=consul.address))

            def work(client: ConsulClient = client) -> None:
                try:
                    while True:
                        client.listing()
                except CancelledError:
                    pass

            thread = threading.Thread(target=work)
            thread.start()
            time.sleep((n % 20) * 0.0002)
            client.close()
            thread.join(30)
            assert not thread.is_alive()
            assert not client.connected


# --------------------------------------------------------------------------- many at once


def test_many_probes_go_out_at_once_and_come_back_in_order() -> None:
    def answers(_number: int, request: bytes) -> bytes:
        number = request.split(b"/p", 1)[1].split(b" ", 1)[0]
        return b"HTTP/1.1 200 OK\r\nx-consul-index: " + number + b"\r\nContent-Length: 3\r\n\r\n[]\n"

    with raw_server(answers) as (address, requests):
        transport = Transport(parse_address(address))
        found = transport.get_many([(f"/p{n}", ()) for n in range(40)], {"X-Consul-Token": "t"}, "X-Consul-Index")
        assert found == ([str(n) for n in range(40)], 0)
        assert all(b"X-Consul-Token: t" in r for r in requests)
        assert get(transport, "/p77") == b"[]\n"  # the connection is still in step
        transport.close()


@pytest.mark.parametrize(
    ("odd", "status"),
    [
        (b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno", 500),
        (b"HTTP/1.1 429 No\r\nContent-Length: 2\r\n\r\nno", 429),
        (b"HTTP/1.1 xxx No\r\nContent-Length: 2\r\n\r\nno", 0),
        (b"HTTP/1.1 200 OK\r\nX-Consul-Index: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n", 200),
        (b"HTTP/1.1 200 OK\r\nX-Consul-Index: 1\r\nContent-Length: x\r\n\r\n", 200),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", 200),
        (b"HTTP/1.1 200 OK\r\nX-Consul-Index: 1\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n[]", 200),
        (b"HTTP/1.1 200 OK\r\nX-Consul-Index: 1\r\nConnection: close\r\nContent-Length: 2\r\n\r\n[]", 200),
        (b"gibberish\r\n\r\n", 0),
    ],
)
def test_at_the_first_answer_that_is_not_plain_the_rest_is_left_to_single_requests(odd: bytes, status: int) -> None:
    served = 0

    def answers(_number: int, _request: bytes) -> bytes:
        nonlocal served
        served += 1
        return odd if served == 3 else OK

    with raw_server(answers) as (address, _):
        transport = Transport(parse_address(address))
        assert transport.get_many([("/p", ())] * 5, {}, "X-Consul-Index") == (["7", "7"], status)
        assert not transport.connected  # nothing that is still on its way can be taken for an answer to something else
        transport.close()


def test_something_in_between_that_cannot_take_many_at_once_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """And asked again after a while: it may have been fixed. A try is a connection: it ends at the first answer."""
    tries: set[int] = set()

    def refuse(number: int, _request: bytes) -> bytes:
        tries.add(number)
        return b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n"

    with raw_server(refuse) as (address, _):
        client = ConsulClient(consul_config(address=address))
        for _ in range(5):
            assert client.probe_nodes(["a", "b"]) == [None, None]
        assert tries == {0, 1, 2}
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + PIPELINING_REST_SECONDS + 1)
        for _ in range(3):
            client.probe_nodes(["a", "b"])
        assert tries == {0, 1, 2, 3}
        client.close()


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_what_consul_itself_refuses_is_no_reason_to_send_one_by_one(status: int) -> None:
    refusing = True

    def answers(_number: int, _request: bytes) -> bytes:
        return b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status if refusing else OK

    with raw_server(answers) as (address, _):
        client = ConsulClient(consul_config(address=address))
        for _ in range(5):
            assert client.probe_nodes(["a", "b"]) == [None, None]
        refusing = False
        assert client.probe_nodes(["a", "b"]) == [7, 7]
        client.close()


# --------------------------------------------------------------------------- TLS


@pytest.fixture
def ca(tmp_path: Path) -> trustme.CA:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return ca


def _server_context(ca: trustme.CA, name: str, client_ca: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(name).configure_cert(context)
    if client_ca:
        ca.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def test_tls_with_a_ca_file_and_a_server_name(tmp_path: Path, ca: trustme.CA) -> None:
    with raw_server(lambda *_: OK, _server_context(ca, "server.dc1.consul")) as (address, _):
        config = consul_config(
            address=f"https://{address}", ca_file=str(tmp_path / "ca.pem"), tls_server_name="server.dc1.consul"
        )
        client = ConsulClient(config)
        assert client.state("warning").index == 7
        client.close()


def test_a_certificate_for_another_name_is_refused_with_the_way_out(tmp_path: Path, ca: trustme.CA) -> None:
    with raw_server(lambda *_: OK, _server_context(ca, "server.dc1.consul")) as (address, _):
        client = ConsulClient(consul_config(address=f"https://{address}", ca_file=str(tmp_path / "ca.pem")))
        with pytest.raises(PermanentError, match=r"is not trusted.*consul.tls_server_name"):
            client.listing()


def test_a_certificate_of_an_unknown_authority_is_refused_unless_verification_is_off(ca: trustme.CA) -> None:
    with raw_server(lambda *_: OK, _server_context(ca, "127.0.0.1")) as (address, _):
        with pytest.raises(PermanentError, match="is not trusted"):
            ConsulClient(consul_config(address=f"https://{address}")).listing()
        client = ConsulClient(consul_config(address=f"https://{address}", verify=False))
        assert client.state("warning").index == 7
        client.close()


def test_a_client_certificate_is_shown(tmp_path: Path, ca: trustme.CA) -> None:
    issued = ca.issue_cert("bridge")
    issued.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "client.pem"))
    with raw_server(lambda *_: OK, _server_context(ca, "127.0.0.1", client_ca=True)) as (address, _):
        config = consul_config(address=f"https://{address}", ca_file=str(tmp_path / "ca.pem"))
        with pytest.raises((TransientError, PermanentError)):
            ConsulClient(config).listing()
        client = ConsulClient(
            consul_config(
                address=f"https://{address}",
                ca_file=str(tmp_path / "ca.pem"),
                client_cert=str(tmp_path / "client.pem"),
            )
        )
        assert client.state("warning").index == 7
        client.close()


def test_plain_http_where_tls_was_expected_is_named(tmp_path: Path, ca: trustme.CA) -> None:
    with raw_server(lambda *_: OK) as (address, _):
        client = ConsulClient(consul_config(address=f"https://{address}", verify=False, connect_timeout_seconds=1.0))
        with pytest.raises((PermanentError, TransientError)):
            client.listing()


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"ca_file": "/nowhere/ca.pem"}, "/nowhere/ca.pem"),
        ({"client_cert": "/nowhere/c.pem", "client_key": "/nowhere/k.pem"}, "/nowhere/c.pem and /nowhere/k.pem"),
        ({"client_key": "/nowhere/k.pem"}, "needs a client certificate"),
    ],
)
def test_tls_files_that_cannot_be_used_are_named_before_anything_is_sent(files: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        ConsulClient(consul_config(address="https://127.0.0.1:1", **files))


def test_a_rotated_certificate_is_taken_and_a_broken_one_ignored(tmp_path: Path, ca: trustme.CA) -> None:
    file = tmp_path / "client.pem"
    ca.issue_cert("bridge").private_key_and_cert_chain_pem.write_to_path(str(file))
    tls = Tls(str(tmp_path / "ca.pem"), str(file), "", verify=True)
    first = tls.context()
    assert tls.context() is first
    file.write_text("half written")
    assert tls.context() is first
    ca.issue_cert("bridge-2").private_key_and_cert_chain_pem.write_to_path(str(file))
    assert tls.context() is not first


def test_closing_ends_a_handshake_that_hangs() -> None:
    with black_hole() as address:
        client = ConsulClient(consul_config(address=f"https://{address}", connect_timeout_seconds=30.0))
        threading.Timer(0.1, client.close).start()
        began = time.monotonic()
        with pytest.raises(CancelledError):
            client.listing()
        assert time.monotonic() - began < 10.0
