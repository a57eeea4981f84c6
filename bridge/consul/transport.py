"""python-consul2's HTTP client, replaced by one lean kept-alive connection.

Why: its own, over requests, costs five times the CPU in index polls, has no timeout, uses HTTP_PROXY and netrc even
for loopback, and cannot be interrupted while it waits. This one is http.client over a socket of ours: one connection,
one request at a time, a deadline for every request, and `interrupt` from any thread, which ends a waiting request.

Every wait counts against the deadline: connecting, a proxy's answer, the handshake, headers that trickle, the body.

It knows HTTP, TLS and sockets, not what Consul's answers mean (see faults.py and client.py). Errors that leave here
are OSError (`ProxyError` among them), ssl.SSLError, http.client.HTTPException, `TooLarge` and `Interrupted`; client.py
maps them.

Longer than other modules: it is one class, whose connection, proxy, TLS and answer share one deadline.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import io
import ipaddress
import math
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import consul.base

from bridge import sockets
from bridge.consul.memory_budget import FREE_BYTES, MemoryBudget
from bridge.consul.tls import Tls
from bridge.errors import ConfigurationError
from bridge.http_head import Answer
from bridge.proxies import Proxy

T = TypeVar("T")

CHUNK, LINE = 1 << 16, 1 << 14

NO_LONGER_THERE = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH})
"""What the kernel says of a connection whose peer stopped acknowledging."""

Params = Sequence[tuple[str, str]]


class TooLarge(Exception):  # noqa: N818 - never leaves this module
    """The body is larger than what is accepted."""


class ProxyError(OSError):
    """The proxy could not be used; the text names it and its variable."""


class Interrupted(Exception):  # noqa: N818 - never leaves this module
    """The request was ended by `Transport.interrupt`."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where Consul's HTTP API is. With `unix_path` host and port are only for show."""

    scheme: str
    host: str
    port: int
    prefix: str = ""
    unix_path: str = ""

    def __str__(self) -> str:
        if self.unix_path:
            return f"unix://{self.unix_path}"
        return f"{self.scheme}://{self.authority}{self.prefix}"

    @property
    def authority(self) -> str:
        """host:port as it stands in a URL and in the Host header."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether the bytes stay on this machine, so that compressing them only costs."""
        if self.unix_path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(address: str) -> Endpoint:
    """Read an address in any of the forms that Consul's own tools take.

    `host`, `host:port`, `[v6]:port`, `http://...`, `https://...` (with or without a path prefix), `unix:///path`.
    Without a port: the scheme's own when there is a scheme, 8500 when there is none. Raises ConfigurationError.
    """
    text = address.strip()
    bad = ConfigurationError(
        f"Consul's address {_shown(text)!r} cannot be used: write http://host:port, https://host:port, host:port or "
        "unix:///path/to/socket"
    )
    if text.startswith("unix://"):
        path = text.removeprefix("unix://")
        if not path.startswith("/"):
            raise bad
        return Endpoint("http", "localhost", 0, "", path)
    bare = "://" not in text
    if bare and text.count(":") > 1 and not text.startswith("["):
        text = f"[{text}]"
    try:
        parts = urlsplit(f"http://{text}" if bare else text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise bad from None
    forbidden = parts.username is not None or parts.query or parts.fragment
    if parts.scheme not in ("http", "https") or not host or forbidden or any(c.isspace() for c in host) or port == 0:
        raise bad
    if port is None:
        port = 8500 if bare else {"http": 80, "https": 443}[parts.scheme]
    return Endpoint(parts.scheme, host, port, parts.path.rstrip("/"))


def _shown(address: str) -> str:
    """The address without what may be a password in it."""
    head, at, tail = address.rpartition("@")
    return f"{head.partition('://')[0]}://...@{tail}" if at and head else address


class Transport(consul.base.HTTPClient):  # type: ignore[misc]
    """One kept-alive connection to one agent, for one thread at a time; only `interrupt` and `close` are for others.

    `timeout` (seconds, for the whole request) is set by the owner before each call. A connection that the server
    closed while it was idle is opened again; `on_reconnect` is called before the request is sent a second time.
    """

    # attributes: one socket and who uses it, under one lock; half of them are settings that never change

    def __init__(
        self,
        endpoint: Endpoint,
        tls: Tls | None = None,
        *,
        server_name: str = "",
        connect_timeout: float = 3.0,
        max_body_bytes: int = 32 << 20,
        finish_seconds: float = 15.0,
        proxy: Proxy | None = None,
        authorization: str = "",
        room: MemoryBudget | None = None,
        on_reconnect: Callable[[], None] | None = None,
    ) -> None:
        """`finish_seconds`: an answer that has begun must end within so long. `authorization`: the header, if any."""
        super().__init__(endpoint.host, endpoint.port, endpoint.scheme, timeout=15.0)
        self.endpoint = endpoint
        self._proxy = proxy
        self._finish_seconds = finish_seconds
        self._room = room or MemoryBudget(max_body_bytes)
        self._generation = 0
        self._opened = math.inf
        self._on_reconnect = on_reconnect
        self._tls = tls
        self._server_name = server_name or endpoint.host
        self._connect_timeout = connect_timeout
        self._max_body_bytes = max_body_bytes
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._busy = False
        self._ended = False
        self._woken = False
        self._standing = {
            "Host": "localhost" if endpoint.unix_path else endpoint.authority,
            "Accept-Encoding": "identity" if endpoint.is_local else "gzip",
            "User-Agent": "consul-endpoints-bridge",
        }
        if authorization:
            self._standing["Authorization"] = authorization
        self._absolute = ""
        if proxy is not None and endpoint.scheme == "http":  # over TLS the proxy is asked for a tunnel instead
            self._absolute = f"http://{endpoint.authority}"
            if proxy.authorization:
                self._standing["Proxy-Authorization"] = proxy.authorization

    # ------------------------------------------------------------------ what python-consul2 calls

    def get(
        self,
        callback: Callable[[Any], Any],
        path: str,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Send GET and return `callback(Response(code, headers, body, content))`. The path may be percent-encoded."""
        request = self._encode("GET", self._target(path, params), headers or {})
        return callback(self._in_turn(lambda deadline: self._exchange(request, deadline)))

    def send(self, path: str, params: Params, headers: Mapping[str, str], body: bytes) -> Any:
        """Send POST, once: for logging in and out, on a connection that was not used before."""
        headers = {**headers, "Content-Type": "application/json", "Content-Length": str(len(body))}
        request = self._encode("POST", self._target(path, params), headers) + body
        self._drop()
        return self._in_turn(lambda deadline: self._exchange(request, deadline, method="POST"))

    def put(self, *_args: Any, **_kwargs: Any) -> Any:
        """Not there: the bridge only reads Consul."""
        raise NotImplementedError("the bridge only reads Consul")

    post = delete = put

    # ------------------------------------------------------------------ for other threads

    def interrupt(self) -> None:
        """End the request that waits, now, and every later one: they raise Interrupted. Any thread, any time."""
        with self._lock:
            self._ended = True
            if self._sock is not None:
                # not SSLSocket.shutdown: that one would pull the TLS object away under the reader
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self._sock, socket.SHUT_RDWR)
                if not self._busy:
                    self._sock.close()
                    self._sock = None

    close = interrupt

    def wake(self, opened_before: float = math.inf) -> None:
        """End only the request that waits now, if any: it raises Interrupted. Any thread.

        `opened_before` (time.monotonic): only when the connection is older than that; an idle one is closed then.
        """
        with self._lock:
            if self._opened >= opened_before:
                return
            if self._sock is not None and not self._busy and opened_before < math.inf:
                self._close_locked()
            if self._sock is not None and self._busy:
                self._woken = True
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    @property
    def connected(self) -> bool:
        return self._sock is not None

    @property
    def opened(self) -> float:
        """When the connection was opened (time.monotonic); infinite without one."""
        return self._opened if self._sock is not None else math.inf

    def connect(self) -> None:
        """Open the connection, if there is none. Only for the owner."""
        self._in_turn(lambda deadline: self._sock or self._connect(deadline))

    def disconnect(self) -> None:
        """Give the connection back; the next request opens a new one. Only for the owner."""
        with self._lock:
            self._close_locked()

    def give_back(self) -> None:
        """The last answer is decoded: its bytes are held no more. Only for the owner."""
        self._room.give_back(self)

    # ------------------------------------------------------------------ many requests

    def get_many(
        self, targets: Sequence[tuple[str, Params]], headers: Mapping[str, str], wanted: str
    ) -> tuple[list[str], int]:
        """Send GET for all `targets` at once (HTTP pipelining); returns their answers' header `wanted`, in order.

        Only for answers that are small and plain: at the first that is not (any status but 200, no Content-Length,
        compressed, no such header) the rest is left out of the result, to be asked for with `get`; what is returned
        beside it is the status of that one, 0 when there was no answer. One by one, 5,000 questions cost nine times
        the CPU: http.client cannot do this, hence the few lines of parsing in here.
        """
        request = self._encode_many(targets, {**headers, "Accept-Encoding": "identity"})
        key = wanted.lower().encode()
        found: list[str] = []
        status = 0

        def exchange(deadline: float) -> None:
            nonlocal status
            found.clear()
            status = 0
            sock = self._sock or self._connect(deadline)
            sock.settimeout(_left(deadline))
            sock.sendall(request)
            with _Stream(sock, deadline, self._finish_seconds).makefile("rb") as stream:
                while len(found) < len(targets):
                    status = _status_of_answer(stream)
                    value = _header_of_plain_answer(stream, key) if status == 200 else None
                    if not value:
                        break
                    found.append(value)
                    status = 0
            if len(found) < len(targets):
                self._drop()  # what follows on this connection belongs to no question any more

        with contextlib.suppress(OSError, ValueError):
            self._in_turn(exchange)
        return found, status

    # ------------------------------------------------------------------ one request

    def _target(self, path: str, params: Params | None) -> str:
        target = self.endpoint.prefix + quote(path, safe="/:%")
        return f"{target}?{urlencode(params)}" if params else target

    def _encode(self, method: str, target: str, headers: Mapping[str, str]) -> bytes:
        return f"{method} {self._absolute}{target}{self._rest_of_head(headers)}".encode("latin-1")

    def _encode_many(self, targets: Sequence[tuple[str, Params]], headers: Mapping[str, str]) -> bytes:
        """Parameters that are those of the target before are encoded once: they are half of what a probe costs us."""
        rest, head, known, query = self._rest_of_head(headers), f"GET {self._absolute}", None, ""
        requests = []
        for path, params in targets:
            if params != known:
                known, query = params, f"?{urlencode(params)}" if params else ""
            requests.append(f"{head}{self._target(path, None)}{query}{rest}")
        return "".join(requests).encode("latin-1")

    def _rest_of_head(self, headers: Mapping[str, str]) -> str:
        """A request's head after its target, the same for all that are sent with these headers."""
        fields = (f"{name}: {value}" for name, value in {**self._standing, **headers}.items())
        return "\r\n".join([" HTTP/1.1", *fields, "", ""])

    def _in_turn(self, exchange: Callable[[float], T]) -> T:
        """Do `exchange(deadline)` so that `interrupt` and `wake` reach it; once more if an idle connection was dead."""
        deadline = time.monotonic() + float(self.timeout)
        self._room.give_back(self)
        generation = self._tls.generation() if self._tls is not None else 0
        with self._lock:
            if self._ended:
                raise Interrupted
            if generation != self._generation:  # certificates were replaced: the kept connection has the old ones
                self._close_locked()
                self._generation = generation
            self._busy = True
            self._woken = False
            reused = self._sock is not None
        try:
            try:
                return exchange(deadline)
            except (OSError, http.client.RemoteDisconnected) as error:
                if not reused or self._ended or self._woken or not _closed_while_idle(error):
                    raise
                self._drop()  # an idle connection that the server had closed: a GET may be sent again
                if self._on_reconnect is not None:
                    self._on_reconnect()
                return exchange(deadline)
        except BaseException as error:
            self._drop()
            if (self._ended or self._woken) and isinstance(error, Exception):
                raise Interrupted from error
            raise
        finally:
            with self._lock:
                self._busy = False
                if self._ended:
                    self._close_locked()

    def _exchange(self, request: bytes, deadline: float, method: str = "GET") -> Any:
        sock = self._sock or self._connect(deadline)
        sock.settimeout(_left(deadline))
        sock.sendall(request)
        stream: Any = _Stream(sock, deadline, self._finish_seconds)
        response = Answer(stream, method=method)
        try:
            response.begin()
            content = self._read_body(response, stream)
            if response.will_close:
                self._drop()
        finally:
            response.close()
        return consul.base.Response(response.status, response.headers, content, content)

    def _read_body(self, response: http.client.HTTPResponse, stream: _Stream) -> bytearray:
        unpack = zlib.decompressobj(31) if response.headers.get("Content-Encoding") == "gzip" else None
        if response.length is not None and response.length > self._max_body_bytes:
            raise self._too_large()  # not a byte of it is read
        body = bytearray()  # one piece, which goes back to the system when it is large; a list of pieces does not
        held = FREE_BYTES
        while chunk := response.read1(CHUNK):
            if unpack is not None:
                chunk = unpack.decompress(chunk, self._max_body_bytes - len(body) + 1)
            body += chunk
            if len(body) > self._max_body_bytes:
                raise self._too_large()
            if len(body) > held:
                held = min(max(2 * len(body), response.length or 0), self._max_body_bytes)
                self._room.take(self, held, stream.deadline)
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        if unpack is not None and not unpack.eof:
            raise http.client.IncompleteRead(b"")
        return body

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the answer is larger than {self._max_body_bytes} bytes (consul.max_answer)")

    # ------------------------------------------------------------------ the connection

    def _connect(self, deadline: float) -> socket.socket:
        if self.endpoint.unix_path:
            sock = self._register(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            sock.settimeout(min(self._connect_timeout, _left(deadline)))
            sock.connect(self.endpoint.unix_path)
            return sock
        if self._proxy is None:
            sock = self._reach(self.endpoint.host, self.endpoint.port, deadline)
        else:
            try:
                sock = self._reach(*_place_of(self._proxy), deadline)
            except OSError as error:
                why = "the connection timed out" if isinstance(error, TimeoutError) else error.strerror or str(error)
                raise ProxyError(f"{self._proxy} cannot be reached: {why}") from error
            if self._tls is not None:
                self._ask_for_tunnel(sock, self._proxy, deadline)
        return sock if self._tls is None else self._secure(sock, self._tls, deadline)

    def _reach(self, host: str, port: int, deadline: float) -> socket.socket:
        failure: OSError | None = None
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            sock = self._register(socket.socket(family, kind, protocol))
            sock.settimeout(min(self._connect_timeout, _left(deadline)))
            try:
                sock.connect(address)
            except OSError as error:
                failure = error
                self._drop()
                continue
            for option in sockets.options():
                sock.setsockopt(*option)
            return sock
        raise failure or OSError(f"{host} has no address")

    def _ask_for_tunnel(self, sock: socket.socket, proxy: Proxy, deadline: float) -> None:
        authority = self.endpoint.authority
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}", "User-Agent: consul-endpoints-bridge"]
        lines += [f"Proxy-Authorization: {proxy.authorization}"] if proxy.authorization else []
        deadline = min(deadline, time.monotonic() + self._finish_seconds)
        sock.settimeout(_left(deadline))
        sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        stream: Any = _Stream(sock, deadline, self._finish_seconds)
        with http.client.HTTPResponse(stream, method="CONNECT") as response:
            try:
                response.begin()  # reads nothing beyond the headers: a server's first TLS byte answers one of ours
            except (OSError, http.client.HTTPException) as error:
                raise ProxyError(f"{proxy} gives no answer to CONNECT {authority}: {error or 'closed'}") from error
        if response.status == 407:
            raise ProxyError(
                f"{proxy} asks for a user and password (407): write {proxy.source}=http://USER:PASSWORD@HOST:PORT"
            )
        if response.status != 200:
            said = f"{response.status} {response.reason}".strip()
            raise ProxyError(
                f"{proxy} refuses to connect to {authority}: {said}. If no proxy is needed, add "
                f"{self.endpoint.host} to NO_PROXY"
            )

    def _secure(self, sock: socket.socket, tls: Tls, deadline: float) -> socket.socket:
        with self._lock:
            if self._ended:
                raise Interrupted
            secured = tls.context().wrap_socket(sock, server_hostname=self._server_name, do_handshake_on_connect=False)
            secured.settimeout(min(max(self._connect_timeout, self._finish_seconds), _left(deadline)))
            self._sock = secured
        secured.do_handshake()
        return secured

    def _register(self, sock: socket.socket) -> socket.socket:
        """From here on `interrupt` reaches this socket."""
        with self._lock:
            if self._ended:
                sock.close()
                raise Interrupted
            self._sock = sock
            self._opened = time.monotonic()
        return sock

    def _drop(self) -> None:
        with self._lock:
            self._close_locked()

    def _close_locked(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
            self._opened = math.inf


class _Stream(io.RawIOBase):
    """What a socket sends, as a file, until `deadline`; once the answer has begun, for `finish_seconds` at most."""

    def __init__(self, sock: socket.socket, deadline: float, finish_seconds: float) -> None:
        self._sock = sock
        self._finish_seconds = finish_seconds
        self._begun = False
        self.deadline = deadline

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_left(self.deadline))
        count = self._sock.recv_into(buffer)
        if not self._begun:
            self._begun = True
            self.deadline = min(self.deadline, time.monotonic() + self._finish_seconds)
        return count


def _place_of(proxy: Proxy) -> tuple[str, int]:
    parts = urlsplit(proxy.url)
    return parts.hostname or "", parts.port or 80


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the answer did not end in time")
    return left


def _closed_while_idle(error: BaseException) -> bool:
    """Whether a kept connection had ended before it was used again: then a GET may be sent once more."""
    if isinstance(error, (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected, ssl.SSLEOFError)):
        return True
    return isinstance(error, OSError) and error.errno in NO_LONGER_THERE


def _status_of_answer(stream: io.BufferedReader) -> int:
    """Read the first line of an answer; its status, 0 when that is none."""
    line = stream.readline(LINE)
    if not line:
        raise http.client.RemoteDisconnected("closed between two answers")
    code = line[9:12]
    return int(code) if line.startswith(b"HTTP/1.1 ") and code.isdigit() and line[12:13] == b" " else 0


def _header_of_plain_answer(stream: io.BufferedReader, key: bytes) -> str | None:
    """Read the rest of an answer; its header `key` if it was a plain one (see `Transport.get_many`), else None."""
    value = None
    length = None
    while (line := stream.readline(LINE)) not in (b"\r\n", b"\n"):
        name, colon, text = line.partition(b":")
        name = name.lower()
        if not colon or name in (b"transfer-encoding", b"content-encoding", b"connection"):
            return None
        if name == b"content-length":
            length = int(text)
        elif name == key:
            value = text.strip().decode("latin-1")
    if value is None or length is None or not 0 <= length <= CHUNK or len(stream.read(length)) != length:
        return None
    return value
