"""The small web server of `bridge run`: sockets, threads and bounds. What is served is `pages`' and the caller's.

The standard library's http.server reads requests and writes headers (`answers`); the sockets are looked after here,
because none of what the dependencies bring can be bounded the way a probe needs it: prometheus-client's server is
wsgiref with a thread per connection without end and without timeouts; aiohttp (which the kubernetes package drags in)
would be an event loop and 19 MiB beside our threads, without a bound on how long headers may take. So:

- one thread moves bytes for all connections and never waits for any of them; `WORKERS` threads only make pages.
  Who drips a request or never reads the answer holds a file descriptor until its deadline, nothing else
- at most `CONNECTIONS` at once: the oldest unfinished one goes when another comes, so probes always get through
- requests are bounded in size, bodies are not read, and there is one request per connection
- GET and HEAD only; strict headers; loopback by default, and then for local names alone; no authentication

It must not know what the bridge does: it takes functions and shows what they return.
"""

from __future__ import annotations

import contextlib
import ipaddress
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType

from bridge.errors import ConfigurationError
from bridge.telemetry.http import REQUEST_BYTES, Answer, Page, Request, respond, text_answer

WORKERS = 4
CONNECTIONS = 128
REQUEST_SECONDS = 5.0
"""How long a connection may take to say what it wants."""

ANSWER_SECONDS = 30.0
"""How long a connection may take to read the answer (/api/status of 5,000 services is a few MiB)."""

DRAIN_SECONDS = 1.0
"""How long we wait for the peer's end after our own, so that what it still sends does not destroy the answer."""


@dataclass(slots=True, eq=False)
class _Connection:
    """One peer: what it sent, what is still to be sent to it, and until when."""

    socket: socket.socket
    deadline: float
    said: bytearray = field(default_factory=bytearray)
    answer: memoryview | None = None
    draining: bool = False


class WebServer:
    """Serves until `close`. `address` is `http://host:port` with the port that was really taken.

    `pages` are by path; one whose path is `/service/` gets everything below it. They are called from several threads.
    """

    def __init__(
        self,
        listen: str,
        pages: Mapping[str, Page],
        *,
        request_seconds: float = REQUEST_SECONDS,
        connections: int = CONNECTIONS,
    ) -> None:
        self._host, self._port = _split(listen)
        self._listen = listen
        self._pages = dict(pages)
        self._request_seconds = request_seconds
        self._limit = connections
        self._server: socket.socket | None = None
        self._loopback = False
        self._jobs: queue.SimpleQueue[_Connection | None] = queue.SimpleQueue()
        self._made: queue.SimpleQueue[tuple[_Connection, bytes]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closing = False

    @property
    def address(self) -> str:
        if self._server is None:
            return ""
        host, port = self._server.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def start(self) -> WebServer:
        """Take the port and begin to serve. Raises ConfigurationError when the port cannot be had."""
        self._server = self._bind()
        self._loopback = ipaddress.ip_address(self._server.getsockname()[0].partition("%")[0]).is_loopback
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
            everywhere = "::" if socket.has_dualstack_ipv6() else None
            family, kind, proto, _, where = socket.getaddrinfo(
                self._host or everywhere, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        except OSError as error:
            raise ConfigurationError(
                f"--listen {self._listen}: {self._host} is no address here: {error.strerror}"
            ) from error
        server = socket.socket(family, kind, proto)
        try:
            if family == socket.AF_INET6 and not self._host:  # `:9480` is both families, as in other tools
                server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
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
                wait = min((now + 60.0, *(c.deadline for c in open_))) - now
                for key, mask in selector.select(max(0.0, wait)):
                    if key.fileobj is server:
                        self._accept(server, selector, open_, end)
                    elif key.fileobj is self._waking:
                        self._take_answers(selector, open_)
                    elif key.data in open_ and self._step(key.data, mask, selector):
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
                connection, reply = self._made.get_nowait()
            except queue.Empty:
                return
            if connection not in open_:
                continue
            connection.answer = memoryview(reply)
            connection.deadline = time.monotonic() + ANSWER_SECONDS
            selector.register(connection.socket, selectors.EVENT_WRITE, connection)

    def _step(self, connection: _Connection, mask: int, selector: selectors.BaseSelector) -> bool:
        """Move some bytes; True when the connection is done."""
        try:
            if mask & selectors.EVENT_READ and self._read(connection, selector):
                return True
            if not connection.answer or not mask & selectors.EVENT_WRITE:
                return False
            sent = connection.socket.send(connection.answer)
            connection.answer = connection.answer[sent:]
            if connection.answer:
                return False
            connection.socket.shutdown(socket.SHUT_WR)
            connection.draining = True
            connection.deadline = time.monotonic() + DRAIN_SECONDS
            selector.modify(connection.socket, selectors.EVENT_READ, connection)  # all that is left is its leaving
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

    # ------------------------------------------------------------------ pages

    def _work(self) -> None:
        while (connection := self._jobs.get()) is not None:
            self._made.put((connection, respond(bytes(connection.said), self._route, loopback=self._loopback)))
            with contextlib.suppress(OSError):  # closed meanwhile
                self._wake.send(b"x")

    def _route(self, path: str) -> Page:
        """The page of a path: its own, that of the folder it is in, or the one that says which there are."""
        first, slash, _ = path[1:].partition("/")
        return self._pages.get(path) or (self._pages.get(f"/{first}/") if slash else None) or self._missing

    def _missing(self, _request: Request) -> Answer:
        return text_answer(404, f"there are {' '.join(sorted(p for p in self._pages if '.' not in p))}")


def _split(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)
