"""Connections to the API server: opened by urllib3, used with http.client, bounded in time, and closed together.

urllib3 makes the connections (TLS, names, proxies). Requests go straight over them, and http.client reads the answers'
bodies: the layers above cost twice as much processor time again as the request, which counts when sixteen writers share
an interpreter. It must not know what is asked, nor credentials.

Every wait counts against the request's deadline, a single byte's as well: a server that trickles its headers does not
get more time by that. Closing a `Sockets` wakes every thread that waits on one of its connections.

Longer than other modules: deadlines, streams and the pool work on the same sockets, which may be closed meanwhile.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import math
import os
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bridge.errors import PermanentError
from bridge.http_head import Answer
from bridge.json_shape import Body
from bridge.sockets import options as socket_options

CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, undecoded. `headers` are case-insensitive."""

    status: int
    headers: Mapping[str, str]
    body: Body


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a request may take: connecting, answering, and (`until`, on the monotonic clock) all of it.

    `body` is the largest body in bytes that is read.
    """

    connect: float
    read: float
    until: float
    body: int = 0

    def left(self) -> float:
        """Seconds until the end. Raises TimeoutError when it is over."""
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("no time is left for this request")
        return left

    def connect_seconds(self) -> float:
        return min(self.connect, self.left())

    def read_seconds(self) -> float:
        return min(self.read, self.left())


class TooLargeError(PermanentError):
    """An answer is larger than it may be."""


Headers = tuple[tuple[str, str], ...]
"""Headers of a request, in order; one name may come several times, which a dict cannot say."""

_UNSENDABLE = re.compile(r"[\x00-\x20\x7f]")
"""What a path may not have in it: it would end the line, or the request."""


class Deadline:
    """Until when the next bytes of a connection must have come, on the monotonic clock."""

    __slots__ = ("until",)

    def __init__(self, until: float = math.inf) -> None:
        self.until = until


class _Clocked(io.RawIOBase):
    """A socket's reading end whose every read waits only until the deadline, however little each brings."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        super().__init__()
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._deadline = deadline

    def makefile(self, _mode: str) -> io.BufferedReader:
        """As a socket has it, for http.client."""
        return io.BufferedReader(self, CHUNK)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer did not come in time")
        self._sock.settimeout(left if left != math.inf else None)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class Stream:
    """An answer that is read bit by bit, on a connection that is used for nothing else."""

    def __init__(self, pool: Pool, connection: Any, answer: http.client.HTTPResponse) -> None:
        self._pool = pool
        self._connection = connection
        self._answer = answer
        self.opened_at = self.heard_at = time.monotonic()
        self.ended = False
        """Whether `end` was called: the connection is to be given up, and nothing is wrong with the answer."""

    @property
    def status(self) -> int:
        return self._answer.status

    @property
    def headers(self) -> Any:
        return self._answer.headers

    def rest(self, most: int) -> bytes:
        """What is there of a short body."""
        return self._answer.read(most) or b""

    def read(self, seconds: float) -> bytes:
        """The next bytes, b"" at the end. Raises TimeoutError when none come for so long."""
        self._connection.deadline.until = time.monotonic() + seconds
        data = self._answer.read1(CHUNK)
        if data:
            self.heard_at = time.monotonic()
        return data

    def end(self) -> None:
        """Wake the reader: nothing more is coming. From any thread."""
        self.ended = True
        self._connection.shut()

    def close(self) -> None:
        self._pool.forget(self)
        with contextlib.suppress(Exception):
            self._connection.close()
        with contextlib.suppress(Exception):
            self._answer.close()


class Pool:
    """Connections to one server with the credentials of one moment. Thread-safe.

    `on_dead(began)`: a kept connection turned out to be dead in a request that began then; `on_fresh(opened)`: one that
    was opened then was answered on.
    """

    def __init__(
        self,
        configuration: Any,
        context: Any,
        proxy: Any,
        connections: int,
        sockets: Sockets,
        on_dead: Callable[[float], None],
        on_fresh: Callable[[float], None],
    ) -> None:
        from kubernetes.client.rest import RESTClientObject

        configuration.connection_pool_maxsize = connections
        configuration.retries = False
        configuration.socket_options = socket_options()
        configuration.ssl_ca_cert = configuration.cert_file = configuration.key_file = None  # all in the context
        if proxy is not None:
            configuration.proxy = proxy.url
            configuration.proxy_headers = _proxy_headers(proxy)
        self._manager = RESTClientObject(configuration).pool_manager
        self._pool = self._manager.connection_from_url(configuration.host)
        if context is not None:
            self._pool.conn_kw["ssl_context"] = context
        scheme, _, rest = configuration.host.partition("://")
        base = rest.partition("/")[2].rstrip("/")
        self._prefix = f"/{base}" if base else ""
        self._tunnelled = proxy is not None and scheme == "https"
        authority = rest.partition("/")[0].rpartition("@")[2].removesuffix(":443" if scheme == "https" else ":80")
        self._standing = [f"Host: {authority}", "Accept-Encoding: identity"]
        if proxy is not None and scheme == "http":  # a plain proxy wants the whole address
            self._prefix = configuration.host.rstrip("/")
            self._standing += [f"{name}: {value}" for name, value in _proxy_headers(proxy).items()]
        tracked = type("TrackedConnection", (_Tracked, self._pool.ConnectionCls), {"sockets": sockets})
        self._pool.ConnectionCls = tracked
        self._lock = threading.Lock()
        self._idle: list[Any] = []
        self._streams: set[Stream] = set()
        self._keep = connections
        self._epoch = 0
        self._sentinel: Any = None
        self._broken = False
        """Whether the sentinel before this one broke, so that others may have broken with it."""
        self._on_dead, self._on_fresh = on_dead, on_fresh
        if not configuration.verify_ssl:
            import urllib3

            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # the client says it, once

    def exchange(
        self,
        method: str,
        target: str,
        body: bytes | None,
        headers: Headers,
        limits: Limits,
        *,
        fresh: bool = False,
    ) -> Response:
        """One request and its whole answer, over a kept connection if there is one (unless `fresh`).

        Raises what sockets and http.client raise, TooLargeError for a body over the limit.
        """
        connection, epoch = self._take(fresh)
        kept = connection.sock is not None
        began = time.monotonic()
        try:
            with contextlib.closing(self._send(connection, method, target, body, headers, limits)) as answer:
                data = _body(answer, limits.body)
        except TooLargeError:
            connection.close()
            raise
        except BaseException as error:
            connection.close()
            if kept and _is_dead(error, began):
                self._on_dead(began)
            raise
        if not kept:
            self._on_fresh(began)
        self._give_back(connection, epoch, answer.will_close)
        return Response(answer.status, answer.headers, data)  # type: ignore[arg-type]  # http_head's, see Answer.begin

    def open(self, target: str, headers: Headers, limits: Limits) -> Stream:
        """A GET whose answer is read bit by bit, on a new connection; `limits` are those of its headers."""
        connection: Any = self._pool._new_conn()
        began = time.monotonic()
        try:
            answer = self._send(connection, "GET", target, None, headers, limits)
        except BaseException:
            connection.close()
            raise
        self._on_fresh(began)
        stream = Stream(self, connection, answer)
        with self._lock:
            self._streams.add(stream)
        return stream

    def probe(self, target: str, headers: Headers, limits: Limits) -> None:
        """Ask something on a connection that is kept for this: while it is answered the way to the server is good.

        That holds for streams that were opened after it. When it broke, those that were opened before the new one, and
        have been silent since, are ended. One that the other side closed in order (after each answer, or because it
        was idle) says nothing about them. For one thread at a time. Raises what `exchange` raises; the next time it is
        another connection.
        """
        with self._lock:
            connection, self._sentinel = self._sentinel, None
        if connection is not None and not connection.is_connected:
            self._broken |= connection.broken()
            connection.close()
            connection = None
        began = time.monotonic()
        kept = connection is not None
        if connection is None:
            connection = self._pool._new_conn()
        try:
            with contextlib.closing(self._send(connection, "GET", target, None, headers, limits)) as answer:
                _body(answer, limits.body)
        except BaseException as error:
            connection.close()
            if kept and isinstance(error, http.client.RemoteDisconnected):  # in order, while it was being asked
                raise
            self._broken = True
            if kept and _is_dead(error, began):
                self._on_dead(began)
            raise
        if not kept:
            self._on_fresh(began)
            if self._broken:
                self._broken = False
                self.end_streams(began)
        with self._lock:
            if self._keep and not answer.will_close:
                self._sentinel = connection
                return
        connection.close()

    def forget(self, stream: Stream) -> None:
        with self._lock:
            self._streams.discard(stream)

    @property
    def streams(self) -> int:
        with self._lock:
            return len(self._streams)

    def drop_idle(self) -> None:
        """Close all connections that are not in use; those that are will be closed when their answer has come."""
        with self._lock:
            idle, self._idle = self._idle, []
            self._epoch += 1
        for connection in idle:
            connection.close()

    def end_streams(self, silent_since: float = math.inf) -> int:
        """End the streams that were opened before and have received nothing since; how many."""
        with self._lock:
            ended = [s for s in self._streams if max(s.opened_at, s.heard_at) < silent_since and not s.ended]
        for stream in ended:
            stream.end()
        return len(ended)

    def close(self) -> None:
        with self._lock:
            self._keep = 0
            sentinel, self._sentinel = self._sentinel, None
        self.drop_idle()
        if sentinel is not None:
            sentinel.close()
        self._pool.close()
        self._manager.clear()

    # ------------------------------------------------------------------ inside

    def _send(
        self, connection: Any, method: str, target: str, body: bytes | None, headers: Headers, limits: Limits
    ) -> http.client.HTTPResponse:
        if connection.sock is None:
            self._connect(connection, limits)
        seconds = limits.read_seconds()
        connection.deadline.until = time.monotonic() + seconds
        connection.sock.settimeout(seconds)
        connection.sock.sendall(self._encode(method, target, body, headers))
        answer: http.client.HTTPResponse = connection.response_class(connection.sock, method=method)
        try:
            answer.begin()
        except BaseException:
            answer.close()
            raise
        return answer

    def _encode(self, method: str, target: str, body: bytes | None, headers: Headers) -> bytes:
        """A request as one piece: one system call, and one TLS record. A user's name may have any letter."""
        lines = [f"{method} {self._prefix}{target} HTTP/1.1", *self._standing]
        lines += [f"{name}: {value}" for name, value in headers]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        if _UNSENDABLE.search(target) or any("\n" in line or "\r" in line for line in lines):
            raise ValueError("the request has a character that may not be sent")
        return "\r\n".join((*lines, "", "")).encode() + (body or b"")

    def _connect(self, connection: Any, limits: Limits) -> None:
        connection.timeout = limits.connect_seconds()
        connection.deadline.until = time.monotonic() + connection.timeout
        if self._tunnelled:
            self._pool._prepare_proxy(connection)
        else:
            connection.connect()

    def _take(self, fresh: bool) -> tuple[Any, int]:
        """The connection used last that is still open, or a new one (not yet connected), and the epoch."""
        while True:
            with self._lock:
                epoch = self._epoch
                connection = self._idle.pop() if self._idle and not fresh else None
            if connection is None:
                return self._pool._new_conn(), epoch
            if connection.is_connected:  # urllib3's: nothing to read, so not closed
                return connection, epoch
            connection.close()

    def _give_back(self, connection: Any, epoch: int, will_close: bool) -> None:
        with self._lock:
            if not will_close and len(self._idle) < self._keep and epoch == self._epoch:
                self._idle.append(connection)
                return
        connection.close()


def _is_dead(error: BaseException, began: float) -> bool:
    """Whether an error says something about the connection, not only that this request had little time."""
    from urllib3.exceptions import HTTPError

    if isinstance(error, TimeoutError):
        return time.monotonic() - began >= 1.0
    return isinstance(error, (OSError, http.client.HTTPException, HTTPError))


def _body(answer: http.client.HTTPResponse, most: int) -> Body:
    """The whole body, joined without a second copy of it. Raises TooLargeError."""
    length = answer.length
    if length is not None and (not most or length <= most):
        return answer.read()
    if length is not None:
        raise TooLargeError(f"the answer has {_size(length)}, more than the {_size(most)} that it may have")
    data = bytearray()
    while piece := answer.read(CHUNK):
        data += piece
        if most and len(data) > most:
            raise TooLargeError(f"the answer has more than the {_size(most)} that it may have")
    return data


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def _proxy_headers(proxy: Any) -> dict[str, str]:
    return {"Proxy-Authorization": proxy.authorization} if proxy.authorization else {}


class Sockets:
    """The open sockets of one client, so that closing it ends whatever a thread waits for on one of them.

    Each is kept as a duplicate of its descriptor: shutting that down ends the connection for all its users, TLS or not,
    also while it is being set up. Connecting itself is done here so that it can be interrupted as well.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[int, socket.socket] = {}
        self._wake, self._woken = socket.socketpair()
        self.closed = False

    def __len__(self) -> int:
        with self._lock:
            return len(self._open)

    def connect(self, host: str, port: int, timeout: Any, source: Any, options: Any) -> socket.socket:
        """A connected TCP socket; tries every address of `host`. Raises OSError or TimeoutError."""
        seconds = timeout if isinstance(timeout, int | float) else None
        last: OSError | None = None
        for family, kind, protocol, _, address in socket.getaddrinfo(host.strip("[]"), port, 0, socket.SOCK_STREAM):
            sock = socket.socket(family, kind, protocol)
            try:
                for option in options or ():
                    sock.setsockopt(*option)
                if source:
                    sock.bind(source)
                self._wait_connected(sock, address, seconds)
                sock.settimeout(seconds)
            except OSError as error:
                last = error
                sock.close()
                continue
            return sock
        raise last or OSError(f"no address for {host}")

    def _wait_connected(self, sock: socket.socket, address: Any, seconds: float | None) -> None:
        sock.setblocking(False)
        code = sock.connect_ex(address)
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_WRITE)
            selector.register(self._woken, selectors.EVENT_READ)
            ready = {key.fileobj for key, _ in selector.select(seconds)}
        if self.closed or self._woken in ready:
            raise OSError("closed while connecting")
        if sock not in ready:
            raise TimeoutError("connecting timed out")
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))

    def add(self, sock: socket.socket) -> int:
        """Track a connected socket; the key is for `drop`."""
        twin = sock.dup()
        with self._lock:
            if self.closed:
                twin.close()
                sock.close()
                raise OSError("closed while connecting")
            self._open[twin.fileno()] = twin
            return twin.fileno()

    def drop(self, key: int) -> None:
        with self._lock:
            twin = self._open.pop(key, None)
        if twin is not None:
            twin.close()

    def failed(self, key: int) -> bool:
        """Whether a socket has an error waiting, which this takes away."""
        with self._lock:
            twin = self._open.get(key)
            return twin is not None and twin.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

    def shut(self, key: int) -> None:
        """Shut one socket down; its connection is still to be closed."""
        with self._lock:
            twin = self._open.get(key)
            if twin is not None:
                with contextlib.suppress(OSError):
                    twin.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._lock:
            if self.closed:
                return
            self.closed = True
            twins = list(self._open.values())
            self._open.clear()
        for twin in twins:
            with contextlib.suppress(OSError):
                twin.shutdown(socket.SHUT_RDWR)
            twin.close()
        self._wake.close()  # the other end becomes readable for everyone who is connecting

    def __del__(self) -> None:
        for sock in (self._wake, self._woken):
            with contextlib.suppress(OSError):
                sock.close()


class _Tracked:
    """Mixed into urllib3's connection class: registers each socket with `Sockets`, and reads by the clock."""

    sockets: Sockets
    _key: int | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.deadline = Deadline()

    def response_class(self, sock: socket.socket, *arguments: Any, **options: Any) -> Answer:
        """What http.client reads an answer with, a proxy's to CONNECT included."""
        return Answer(_Clocked(sock, self.deadline), *arguments, **options)  # type: ignore[arg-type]

    def broken(self) -> bool:
        """Whether it ended by a reset or by silence, and not because the other side closed it. Ask once."""
        return self._key is not None and self.sockets.failed(self._key)

    def shut(self) -> None:
        if self._key is not None:
            self.sockets.shut(self._key)

    def _new_conn(self) -> socket.socket:
        """urllib3 calls this to connect. Should it stop doing so, only the quick end while connecting is lost."""
        from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

        me: Any = self
        try:
            sock = self.sockets.connect(me._dns_host, me.port, me.timeout, me.source_address, me.socket_options)
            self._key = self.sockets.add(sock)
        except socket.gaierror as error:
            raise NameResolutionError(me.host, me, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(me, f"connecting to {me.host} took too long") from error
        except OSError as error:
            raise NewConnectionError(me, f"cannot connect: {error}") from error
        return sock

    def close(self) -> None:
        key, self._key = self._key, None
        if key is not None:
            self.sockets.drop(key)
        super().close()  # type: ignore[misc]
