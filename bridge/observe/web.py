"""The small web server of `bridge run`: probes, metrics, status, and a page for people.

The standard library's http.server reads requests and writes headers; the sockets are looked after here, because none
of what the dependencies bring can be bounded the way a probe needs it: prometheus-client's server is wsgiref with a
thread per connection without end and without timeouts; aiohttp (which the kubernetes package drags in) would be an
event loop and 19 MiB beside our threads, without a bound on how long headers may take. So:

- one thread moves bytes for all connections and never waits for any of them; `WORKERS` threads only make pages.
  Who drips a request or never reads the answer holds a file descriptor until its deadline, nothing else
- at most `CONNECTIONS` at once: the oldest unfinished one goes when another comes, so probes always get through
- requests are bounded in size, bodies are not read, and there is one request per connection
- GET and HEAD only; nothing of a request is ever echoed; strict headers; loopback by default; no authentication

It must not know what the bridge does: it takes functions and shows what they return.
"""

from __future__ import annotations

import contextlib
import html
import http.server
import io
import json
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import TracebackType
from typing import Any

from bridge import __version__
from bridge.errors import ConfigurationError
from bridge.observe import metrics as metrics_module
from bridge.observe.logs import escape, logger

WORKERS = 4
CONNECTIONS = 128
REQUEST_BYTES = 16 * 1024
REQUEST_SECONDS = 5.0
"""How long a connection may take to say what it wants."""

ANSWER_SECONDS = 30.0
"""How long a connection may take to read the answer (/api/status of 5,000 services is a few MiB)."""

DRAIN_SECONDS = 1.0
"""How long we wait for the peer's end after our own, so that what it still sends does not destroy the answer."""

_SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a page returns."""

    status: int
    content_type: str
    body: bytes


Page = Callable[[], Answer]


@dataclass(slots=True, eq=False)
class _Connection:
    """One peer: what it said, what it is yet to be told, and until when."""

    socket: socket.socket
    deadline: float
    said: bytearray = field(default_factory=bytearray)
    answer: memoryview | None = None
    draining: bool = False


class WebServer:
    """Serves until `close`. `address` is `http://host:port` with the port that was really taken.

    `health` and `ready` say (whether, detail); `status` is shown as JSON and as the page; `metrics` is Prometheus'
    text. They are called from several threads.
    """

    def __init__(
        self,
        listen: str,
        *,
        health: Callable[[], tuple[bool, str]],
        ready: Callable[[], tuple[bool, Mapping[str, Any]]],
        status: Callable[[], Mapping[str, Any]],
        metrics: Callable[[], bytes],
        request_seconds: float = REQUEST_SECONDS,
        connections: int = CONNECTIONS,
    ) -> None:
        self._host, self._port = _split(listen)
        self._listen = listen
        self._request_seconds = request_seconds
        self._limit = connections
        self._health, self._ready, self._status, self._metrics = health, ready, status, metrics
        self._pages: Mapping[str, Page] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._metricsz,
            "/api/status": self._api_status,
            "/": self._index,
            "/style.css": lambda: Answer(200, "text/css; charset=utf-8", _STYLE),
        }
        self._server: socket.socket | None = None
        self._jobs: queue.SimpleQueue[_Connection | None] = queue.SimpleQueue()
        self._made: queue.SimpleQueue[tuple[_Connection, bytes]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closing = False

    @property
    def address(self) -> str:
        """Where it listens, for people and probes."""
        if self._server is None:
            return ""
        host, port = self._server.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def start(self) -> WebServer:
        """Take the port and begin to serve. Raises ConfigurationError when the port cannot be had."""
        self._server = self._bind()
        self._waking, self._wake = socket.socketpair()
        self._waking.setblocking(False)
        self._threads = [threading.Thread(target=self._move_bytes, name="web", daemon=True)]
        self._threads += [threading.Thread(target=self._work, name=f"web-{n}", daemon=True) for n in range(WORKERS)]
        for thread in self._threads:
            thread.start()
        return self

    def close(self) -> None:
        """Stop serving; afterwards no thread and no socket is left."""
        if self._server is None:
            return
        self._closing = True
        self._wake.send(b"x")
        for _ in range(WORKERS):
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        for sock in (self._server, self._waking, self._wake):
            sock.close()
        self._threads = []
        self._server = None

    def __enter__(self) -> WebServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ connections

    def _bind(self) -> socket.socket:
        try:
            family, kind, proto, _, where = socket.getaddrinfo(
                self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        except OSError as error:
            raise ConfigurationError(
                f"--listen {self._listen}: {self._host} is no address here: {error.strerror}"
            ) from error
        server = socket.socket(family, kind, proto)
        try:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(where)
            server.listen(self._limit)
            server.setblocking(False)
        except OSError as error:
            server.close()
            raise ConfigurationError(
                f"--listen {self._listen}: cannot be had: {error.strerror}. Is another bridge running here? "
                "Choose another port, or port 0 for any free one (the log says which)"
            ) from error
        return server

    def _move_bytes(self) -> None:
        """The thread that reads and writes for all connections. Each is in `open` from its coming to its going."""
        server = self._server
        assert server is not None  # noqa: S101 - for the type checker
        open_: dict[_Connection, None] = {}
        with selectors.DefaultSelector() as selector:
            selector.register(server, selectors.EVENT_READ)
            selector.register(self._waking, selectors.EVENT_READ)

            def end(connection: _Connection) -> None:
                if open_.pop(connection, connection) is None:
                    with contextlib.suppress(KeyError, ValueError):
                        selector.unregister(connection.socket)
                    connection.socket.close()

            while not self._closing:
                now = time.monotonic()
                for connection in [c for c in open_ if c.deadline <= now]:
                    end(connection)
                wait = min((c.deadline for c in open_), default=now + 60.0) - now
                for key, _ in selector.select(max(0.0, wait)):
                    if key.fileobj is server:
                        self._accept(server, selector, open_, end)
                    elif key.fileobj is self._waking:
                        self._take_answers(selector, open_)
                    elif key.data in open_ and self._step(key.data, selector):
                        end(key.data)
            for connection in list(open_):
                end(connection)

    def _accept(
        self,
        server: socket.socket,
        selector: selectors.BaseSelector,
        open_: dict[_Connection, None],
        end: Callable[[_Connection], None],
    ) -> None:
        try:
            sock, _ = server.accept()
        except OSError:  # gone again, or no file descriptors left: the oldest makes room
            if open_:
                end(next(iter(open_)))
            else:
                time.sleep(0.01)  # not even one descriptor: do not spin
            return
        sock.setblocking(False)
        while len(open_) >= self._limit:
            end(next(iter(open_)))
        connection = _Connection(sock, time.monotonic() + self._request_seconds)
        open_[connection] = None
        selector.register(sock, selectors.EVENT_READ, connection)

    def _take_answers(self, selector: selectors.BaseSelector, open_: dict[_Connection, None]) -> None:
        """Begin to send what the workers have made."""
        with contextlib.suppress(OSError):
            self._waking.recv(4096)
        while True:
            try:
                connection, answer = self._made.get_nowait()
            except queue.Empty:
                return
            if connection in open_:
                connection.answer = memoryview(answer)
                connection.deadline = time.monotonic() + ANSWER_SECONDS
                selector.register(connection.socket, selectors.EVENT_WRITE, connection)

    def _step(self, connection: _Connection, selector: selectors.BaseSelector) -> bool:
        """Move some bytes; True when the connection is done."""
        try:
            if connection.answer is None or connection.draining:
                return self._read(connection, selector)
            sent = connection.socket.send(connection.answer)
            connection.answer = connection.answer[sent:]
            if not connection.answer:
                connection.socket.shutdown(socket.SHUT_WR)
                connection.draining = True
                connection.deadline = time.monotonic() + DRAIN_SECONDS
                selector.modify(connection.socket, selectors.EVENT_READ, connection)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True
        return False

    def _read(self, connection: _Connection, selector: selectors.BaseSelector) -> bool:
        data = connection.socket.recv(16384)
        if not data:
            return True
        if connection.draining:
            return False
        connection.said += data
        if b"\r\n\r\n" in connection.said or b"\n\n" in connection.said or len(connection.said) > REQUEST_BYTES:
            selector.unregister(connection.socket)
            connection.deadline = time.monotonic() + ANSWER_SECONDS
            self._jobs.put(connection)
        return False

    def _work(self) -> None:
        """A thread that makes pages."""
        while (connection := self._jobs.get()) is not None:
            self._made.put((connection, respond(bytes(connection.said), self._pages)))
            with contextlib.suppress(OSError):  # closed meanwhile
                self._wake.send(b"x")

    # ------------------------------------------------------------------ pages

    def _healthz(self) -> Answer:
        ok, detail = self._health()
        return Answer(200 if ok else 503, "text/plain; charset=utf-8", f"{escape(detail)}\n".encode())

    def _readyz(self) -> Answer:
        ok, detail = self._ready()
        return _json(200 if ok else 503, {"ready": ok, **detail})

    def _metricsz(self) -> Answer:
        return Answer(200, metrics_module.CONTENT_TYPE, self._metrics())

    def _api_status(self) -> Answer:
        return _json(200, self._status())

    def _index(self) -> Answer:
        return Answer(200, "text/html; charset=utf-8", index_page(self._status()).encode("utf-8", "backslashreplace"))


def respond(request: bytes, pages: Mapping[str, Page]) -> bytes:
    """The bytes that answer the bytes of a request."""
    handler = _Handler(request, pages)
    return handler.written.getvalue()


class _Handler(http.server.BaseHTTPRequestHandler):
    """One request that lies in memory, answered into memory."""

    server_version = f"consul-endpoints-bridge/{__version__}"
    sys_version = ""
    protocol_version = "HTTP/1.1"

    def __init__(self, request: bytes, pages: Mapping[str, Page]) -> None:
        self._pages = pages
        self._too_large = len(request) > REQUEST_BYTES
        self.rfile = io.BufferedReader(io.BytesIO(request))
        self.wfile = self.written = io.BytesIO()
        self.client_address = ("", 0)
        self.command, self.request_version, self.requestline = "GET", "HTTP/1.1", ""
        self.close_connection = True
        if self._too_large:
            self.send_error(431)
        else:
            self.handle_one_request()

    def handle_expect_100(self) -> bool:
        """Bodies are never read, so nobody is told to send one."""
        return True

    def parse_request(self) -> bool:
        """As usual, and only what we serve."""
        if not super().parse_request():
            return False
        if self.command not in ("GET", "HEAD"):
            self._answer(_text(405, "only GET and HEAD"), {"Allow": "GET, HEAD"})
            return False
        return True

    def do_GET(self) -> None:
        """Answer with a page."""
        page = self._pages.get(self.path.partition("?")[0])
        if page is None:
            self._answer(_text(404, "there are / /healthz /readyz /metrics /api/status"))
            return
        try:
            answer = page()
        except Exception as error:  # noqa: BLE001 - said in the log; the reader learns that it failed, and no more
            logger().error("a page failed", page=self.path.partition("?")[0], exc_info=error)
            answer = _text(500, "failed; the log says why")
        self._answer(answer)

    do_HEAD = do_GET  # noqa: N815 - http.server's name; `_answer` leaves the body out

    def _answer(self, answer: Answer, more: Mapping[str, str] | None = None) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Connection", "close")
        for name, value in {**_SECURITY, **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """http.server's own errors (a malformed request), without its HTML and without echoing anything."""
        del message, explain
        self.command = self.command or "GET"
        self.request_version = "HTTP/1.1"
        self._answer(_text(code, HTTPStatus(code).phrase))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Probes every few seconds are no news."""
        del format, args


def _text(status: int, text: str) -> Answer:
    return Answer(status, "text/plain; charset=utf-8", f"{text}\n".encode())


def _json(status: int, data: Mapping[str, Any]) -> Answer:
    body = json.dumps(data, indent=1, ensure_ascii=True, default=str) + "\n"
    return Answer(status, "application/json", body.encode("ascii"))


def _split(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


# --------------------------------------------------------------------------- the page for people

_STYLE = b"""
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #8884; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.bad { color: #c22; font-weight: 600; } .good { color: #182; font-weight: 600; }
@media (prefers-color-scheme: dark) { .bad { color: #f77; } .good { color: #7d7; } }
"""


def index_page(status: Mapping[str, Any]) -> str:
    """A page that says how things are. Everything shown is escaped; there is no script."""
    ready = bool(status.get("ready"))
    report = status.get("report") or {}
    rows = [
        ("Consul", _words(status.get("consul"))),
        ("Kubernetes", _words(status.get("kubernetes"))),
        ("Owner", _words(status.get("owner"))),
        ("Waiting", _words(status.get("queue"))),
        ("Last full pass", f"{_words(status.get('seconds_since_last_full_pass'))} s ago"),
        *((f"Objects: {_words(name)}", _words(n)) for name, n in (report.get("summary") or {}).items()),
    ]
    body = "".join(f"<tr><th scope=row>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows)
    state = "<span class=good>ready</span>" if ready else "<span class=bad>not ready</span>"
    lists = "".join(_list(title, report.get(key) or ()) for title, key in _LISTS)
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>consul-endpoints-bridge</title>"
        '<meta name=viewport content="width=device-width"><link rel=stylesheet href="/style.css"></head><body>'
        f"<h1>consul-endpoints-bridge</h1><p>The bridge is {state}.</p><table>{body}</table>{lists}"
        '<p><a href="/api/status">status as JSON</a> &middot; <a href="/metrics">metrics</a> &middot; '
        '<a href="/readyz">readiness</a></p></body></html>\n'
    )


_LISTS = (
    ("Held", "held"),
    ("Failed", "failed"),
    ("Conflicts", "conflicts"),
    ("Still to do", "changes"),
    ("Skipped", "skipped"),
    ("Warnings", "warnings"),
)

LISTED = 50
"""Rows of one list on the page; /api/status has all of them."""


def _list(title: str, entries: Any) -> str:
    if not entries:
        return ""
    items = "".join(f"<li>{html.escape(_entry(e))}</li>" for e in entries[:LISTED])
    more = f"<li>and {len(entries) - LISTED} more</li>" if len(entries) > LISTED else ""
    return f"<h2>{html.escape(title)} ({len(entries)})</h2><ul>{items}{more}</ul>"


def _entry(entry: Mapping[str, Any]) -> str:
    where = "/".join(str(entry[k]) for k in ("namespace", "name") if entry.get(k))
    words = [
        entry.get("action"),
        entry.get("kind"),
        where,
        entry.get("service"),
        entry.get("instance"),
        entry.get("reason"),
    ]
    return escape(" ".join(str(w) for w in words if w))


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return escape("; ".join(f"{k}: {v}" for k, v in value.items()))
    return escape("not yet" if value is None else str(value))
