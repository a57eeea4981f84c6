"""The web server: what it serves, what it refuses, and that no client can make it stop serving probes."""

from __future__ import annotations

import contextlib
import gc
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from bridge.controller.state_changes import StateChanges
from bridge.errors import ConfigurationError
from bridge.telemetry import web
from bridge.telemetry.history import History
from bridge.telemetry.metrics import Metrics
from bridge.telemetry.routes import STATIC, Routes
from bridge.telemetry.web import WebServer
from tests.unit.telemetry.builders import HOSTILE, PageSources

PATHS = ("/", "/healthz", "/readyz", "/metrics", "/api/status", "/changes", "/service/a/b", "/page.js")


@pytest.fixture
def sources() -> PageSources:
    """Sources in which all is well."""
    return PageSources()


@pytest.fixture
def server(sources: PageSources) -> Iterator[WebServer]:
    """A server on a free port."""
    with start(sources) as the_server:
        yield the_server


def start(sources: PageSources, listen: str = "127.0.0.1:0", **options: Any) -> WebServer:
    """A server that shows the sources; to be entered."""
    return WebServer(listen, Routes(sources, Metrics("1").text, History()).pages, **options)


def connect(server: WebServer) -> socket.socket:
    """A raw connection."""
    host, port = server.address.removeprefix("http://").rsplit(":", 1)
    return socket.create_connection((host.strip("[]"), int(port)), timeout=10)


def ask(server: WebServer, path: str = "/healthz", method: str = "GET", **options: Any) -> http.client.HTTPResponse:
    """One request; the body is read."""
    connection = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=10)
    connection.request(method, path, **options)
    response = connection.getresponse()
    response.body = response.read()  # type: ignore[attr-defined]
    connection.close()
    return response


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:9480", 200),
        ("127.0.0.1:9480", 200),
        ("[::1]:9480", 200),
        ("LOCALHOST", 200),
        ("10.0.0.7", 200),
        ("evil.example:9480", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("[evil.example]", 421),
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/status", "/api/changes", "/metrics"])
def test_on_loopback_a_foreign_host_name_is_refused(server: WebServer, path: str, host: str, status: int) -> None:
    """A web routes may make its own name mean 127.0.0.1, so that browsers read from us for it (DNS rebinding)."""
    with connect(server) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert sock.recv(4096).startswith(f"HTTP/1.1 {status} ".encode())


def test_elsewhere_every_name_is_answered(sources: PageSources) -> None:
    """Probes, Prometheus and people come by the names of pods and Services."""
    with (
        start(sources, "0.0.0.0:0") as server,
        socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2])), timeout=10) as sock,
    ):
        sock.sendall(b"GET /api/status HTTP/1.1\r\nHost: bridge.storage.svc\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")


def body(response: http.client.HTTPResponse) -> bytes:
    """The body that `ask` read."""
    read: bytes = response.body  # type: ignore[attr-defined]
    return read


def raw(server: WebServer, request: bytes) -> bytes:
    """Everything that comes back for these bytes."""
    with connect(server) as sock:
        sock.sendall(request)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := sock.recv(65536):
                answer += piece
        return answer


def test_health(server: WebServer, sources: PageSources) -> None:
    """200 while the loops live, 503 with the reason when not."""
    assert (ask(server).status, body(ask(server))) == (200, b"ok\n")
    sources.health_answer = (False, f"a thread died {HOSTILE}")
    assert ask(server).status == 503
    assert b"\x1b" not in body(ask(server))


def test_readiness_has_its_detail_as_json(server: WebServer, sources: PageSources) -> None:
    """Probes look at the status, people at the detail."""
    assert json.loads(body(ask(server, "/readyz"))) == {"ready": True, "consul": "ok"}
    sources.ready_answer = (False, {"consul": {"dc1": "refused"}})
    response = ask(server, "/readyz")
    assert response.status == 503
    assert json.loads(body(response)) == {"ready": False, "consul": {"dc1": "refused"}}


def test_metrics_and_status(server: WebServer, sources: PageSources) -> None:
    """As Prometheus and scripts read them."""
    response = ask(server, "/metrics")
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b"consul_bridge_build_info" in body(response)
    response = ask(server, "/api/status")
    assert response.headers["Content-Type"] == "application/json"
    assert json.loads(body(response)) == sources.status_answer


def test_the_page_and_what_it_needs(server: WebServer) -> None:
    """HTML, one stylesheet, one script, one icon: all from here."""
    assert ask(server, "/").headers["Content-Type"].startswith("text/html")
    for path, kind in (("/style.css", "text/css"), ("/page.js", "text/javascript"), ("/icon.svg", "image/svg+xml")):
        answer = ask(server, path)
        assert (answer.status, answer.headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
        assert body(answer)


@pytest.mark.parametrize(
    "path", ["/", "/healthz", "/readyz", "/metrics", "/api/status", "/changes", "/service/a/b", "/page.js", "/nix"]
)
def test_every_answer_is_strict(server: WebServer, path: str) -> None:
    """Nothing may be embedded, sniffed, cached or run."""
    headers = ask(server, path).headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Connection"] == "close"
    assert "Python" not in headers["Server"]


def test_head_has_the_headers_and_no_body(server: WebServer) -> None:
    """Some probes use it."""
    answer = raw(server, b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"Content-Length: 3\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "NIX"])
def test_other_methods_are_refused(server: WebServer, method: str) -> None:
    """The server is read-only, and says what it takes."""
    answer = raw(server, f"{method} / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc".encode())
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"Allow: GET, HEAD\r\n" in answer


def test_an_upload_is_not_waited_for(server: WebServer) -> None:
    """A body is never read; the answer still arrives."""
    answer = raw(
        server,
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n" + b"x" * 50000,
    )
    assert answer.startswith(b"HTTP/1.1 405 ")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 20000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: 1\r\n" % n for n in range(200)) + b"\r\n", 431),
        (b"GET / HTTP/9.9\r\n\r\n", 505),
        (b"GET / NONSENSE\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET /nix HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET //evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /healthz?x=<script> HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.1\nHost: localhost\n\n", 200),
        (b"GET /healthz\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 400),
    ],
)
def test_requests_of_all_kinds(server: WebServer, request_bytes: bytes, status: int) -> None:
    """Bounded, answered with a status of its own, nothing echoed."""
    answer = raw(server, request_bytes)
    assert answer.split(b"\r\n")[0].split()[1] == str(status).encode(), answer[:200]
    assert b"<script" not in answer
    assert b"evil" not in answer


def test_what_is_not_there_is_answered_with_what_is(server: WebServer, sources: PageSources) -> None:
    """Every path of the routes but the files of its pages."""
    served = [
        path for path in Routes(sources, Metrics("1").text, History()).pages if path.removeprefix("/") not in STATIC
    ]
    said = body(ask(server, "/nix")).decode()
    assert said == f"there are {' '.join(sorted(served))}\n"
    assert {"/changes", "/service/", "/api/changes"} <= set(served)


def test_a_page_that_fails_is_500_and_says_nothing_inside(server: WebServer, sources: PageSources) -> None:
    """The log has the reason."""
    sources.health_answer = None  # type: ignore[assignment]
    response = ask(server)
    assert response.status == 500
    assert b"TypeError" not in body(response)
    sources.health_answer = (True, "ok")
    assert ask(server).status == 200


def test_several_requests_on_one_connection_are_not_served(server: WebServer) -> None:
    """One each: no client can hold on."""
    answer = raw(
        server, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    assert answer.count(b"HTTP/1.1 200") == 1


def test_a_client_that_never_finishes_a_request_delays_no_other(sources: PageSources) -> None:
    """Ten times as many idlers as there are workers, and more than connections allowed; probes get through at once."""
    with start(sources, connections=20, request_seconds=60.0) as server:
        idlers = [connect(server) for _ in range(40)]
        for sock in idlers:
            with contextlib.suppress(OSError):
                sock.sendall(b"GET / HT")
        started = time.monotonic()
        for _ in range(5):
            assert ask(server).status == 200
        assert time.monotonic() - started < 20
        for sock in idlers:
            sock.close()


def test_a_client_that_drips_bytes_is_cut_off(sources: PageSources) -> None:
    """The time is for the request as a whole, not from byte to byte."""
    with start(sources, request_seconds=0.3) as server, connect(server) as sock:
        started = time.monotonic()
        with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):  # noqa: PT012 - one of the sends fails
            while time.monotonic() - started < 30:
                sock.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() - started < web.REQUEST_SECONDS - 0.5


def test_a_client_that_never_reads_the_answer_delays_no_other(sources: PageSources) -> None:
    """An answer that fills the socket waits there; the workers do not."""
    sources.status_answer = {"x": "y" * 5_000_000}
    with start(sources) as server:
        lazy = [connect(server) for _ in range(3 * web.WORKERS)]
        for sock in lazy:
            sock.sendall(b"GET /api/status HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert ask(server).status == 200
        assert len(body(ask(server, "/api/status"))) > 5_000_000
        for sock in lazy:
            sock.close()


def test_a_slow_page_does_not_keep_the_others_waiting(sources: PageSources) -> None:
    """Liveness is answered while a status takes long."""
    gate = threading.Event()

    def slow() -> dict[str, Any]:
        gate.wait(20)
        return {}

    sources.status = slow  # type: ignore[method-assign]
    with start(sources) as server, connect(server) as sock:
        sock.sendall(b"GET /api/status HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert ask(server).status == 200
        gate.set()


def test_closing_leaves_no_thread_and_no_socket(sources: PageSources) -> None:
    """Also with connections that are half open."""
    gc.collect()
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    server = start(sources).start()
    address = server.address
    idle = connect(server)
    half = connect(server)
    half.sendall(b"GET / HT")
    assert ask(server).status == 200
    server.close()
    server.close()
    idle.close()
    half.close()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])), timeout=5)


def test_closing_is_quick(sources: PageSources) -> None:
    """A shutdown does not wait for idlers."""
    server = start(sources, request_seconds=60.0).start()
    idlers = [connect(server) for _ in range(10)]
    started = time.monotonic()
    server.close()
    assert time.monotonic() - started < 20
    for sock in idlers:
        sock.close()


def test_the_port_can_be_had_again_at_once(sources: PageSources) -> None:
    """A restart must not wait for TIME_WAIT."""
    with start(sources) as server:
        ask(server)
        port = server.address.rsplit(":", 1)[1]
    with start(sources, f"127.0.0.1:{port}") as server:
        assert ask(server).status == 200


def test_a_taken_port_is_a_configuration_error(server: WebServer, sources: PageSources) -> None:
    """It says what to do."""
    listen = server.address.removeprefix("http://")
    with pytest.raises(ConfigurationError) as caught:
        start(sources, listen).start()
    assert f"--listen {listen}: cannot be had: Address already in use" in str(caught.value)
    assert "Choose another port" in str(caught.value)


def test_an_address_that_is_not_here_is_a_configuration_error(sources: PageSources) -> None:
    """Neither an unknown name nor another host's address."""
    with pytest.raises(ConfigurationError, match=r"--listen no\.such\.host\.invalid:0"):
        start(sources, "no.such.host.invalid:0").start()
    with pytest.raises(ConfigurationError, match=r"--listen 203\.0\.113\.1:0: cannot be had"):
        start(sources, "203.0.113.1:0").start()


def test_a_port_alone_is_all_addresses_of_both_families(sources: PageSources) -> None:
    """`:9480`, as in other tools."""
    with start(sources, ":0") as server:
        port = int(server.address.rsplit(":", 1)[1])
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family) as sock:
                sock.settimeout(10)
                sock.connect((host, port))


def test_ipv6(sources: PageSources) -> None:
    """Addresses in brackets."""
    try:
        with start(sources, "[::1]:0") as server:
            assert server.address.startswith("http://[::1]:")
            assert raw(server, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 200")
    except ConfigurationError:
        pytest.skip("no IPv6 on this machine")


def test_many_at_once(server: WebServer) -> None:
    """A hundred readers, each with its own answer."""
    answers: list[int] = []

    def read() -> None:
        answers.append(ask(server, "/metrics").status)

    readers = [threading.Thread(target=read) for _ in range(100)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert answers == [200] * 100


def changes(server: WebServer, query: str = "") -> dict[str, Any]:
    """What `/api/changes` says."""
    found: dict[str, Any] = json.loads(body(ask(server, f"/api/changes{query}")))
    return found


def test_a_script_learns_what_happened_since_it_last_asked(sources: PageSources) -> None:
    """Newest first, as many as it wants; a number of a process that is no more is answered with everything."""
    history = History()
    states = StateChanges(history)
    with WebServer("127.0.0.1:0", Routes(sources, Metrics("1").text, history).pages) as server:
        assert changes(server) == {"newest": 0, "changes": []}
        for up in (False, True, False):
            states.kubernetes(up, "refused\nby a firewall")
        assert [c["number"] for c in changes(server)["changes"]] == [3, 2, 1]
        assert [c["number"] for c in changes(server, "?after=1")["changes"]] == [3, 2]
        assert changes(server, "?after=3") == {"newest": 3, "changes": []}
        assert changes(server, "?limit=0") == {"newest": 3, "changes": []}
        assert [c["number"] for c in changes(server, "?after=1&limit=1")["changes"]] == [3]
        assert [c["number"] for c in changes(server, "?after=99")["changes"]] == [3, 2, 1]


@pytest.mark.parametrize("query", ["?after=x", "?limit=1.5", "?after="])
def test_a_question_about_changes_that_means_nothing_is_400(server: WebServer, query: str) -> None:
    """With an example of one that does; what was asked is not repeated."""
    answer = ask(server, f"/api/changes{query}")
    assert answer.status == (200 if query == "?after=" else 400)
    assert b"after=17" in body(answer) or answer.status == 200
