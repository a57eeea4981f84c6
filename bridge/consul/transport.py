"""python-consul2's HTTP client, replaced by one lean kept-alive connection.

Why: its own, over requests, costs five times the CPU in sweeps, has no timeout, obeys HTTP_PROXY and netrc even for
loopback, and cannot be interrupted while it waits. This one is http.client over a socket of ours: one connection, one
request at a time, a deadline for every request, and `interrupt` from any thread, which ends a waiting request at once.

It knows HTTP, TLS and sockets, not what Consul's answers mean (see faults.py and client.py). Errors that leave here
are OSError, ssl.SSLError, http.client.HTTPException, `TooLarge` and `Interrupted`; client.py maps them.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import ipaddress
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import consul.base

from bridge.errors import ConfigurationError

T = TypeVar("T")

CHUNK, LINE = 1 << 16, 1 << 14

Params = Sequence[tuple[str, str]]


class TooLarge(Exception):  # noqa: N818 - never leaves this room
    """The body is larger than what is accepted."""


class Interrupted(Exception):  # noqa: N818 - never leaves this room
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
    closed while it was idle is opened again; `on_reconnect` is told before the request is sent a second time.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        tls: Tls | None = None,
        *,
        server_name: str = "",
        connect_timeout: float = 3.0,
        max_body_bytes: int = 256 << 20,
        on_reconnect: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(endpoint.host, endpoint.port, endpoint.scheme, timeout=15.0)
        self.endpoint = endpoint
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

    # ------------------------------------------------------------------ what python-consul2 calls

    def get(
        self,
        callback: Callable[[Any], Any],
        path: str,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Send GET and return `callback(Response(code, headers, body, content))`. The path may be percent-encoded."""
        request = self._encode(self._target(path, params), headers or {})
        return callback(self._in_turn(lambda deadline: self._exchange(request, deadline)))

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

    def wake(self) -> None:
        """End only the request that waits now, if any: it raises Interrupted. Any thread."""
        with self._lock:
            if self._sock is not None and self._busy:
                self._woken = True
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    @property
    def connected(self) -> bool:
        """Whether a socket is open (or being opened)."""
        return self._sock is not None

    def disconnect(self) -> None:
        """Give the connection back; the next request opens a new one. Only for the owner."""
        with self._lock:
            if self._sock is not None:
                self._sock.close()
                self._sock = None

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
        headers = {**headers, "Accept-Encoding": "identity"}
        request = b"".join(self._encode(self._target(path, params), headers) for path, params in targets)
        key = wanted.lower().encode()
        found: list[str] = []
        status = 0

        def exchange(deadline: float) -> None:
            nonlocal status
            found.clear()
            status = 0
            sock = self._sock or self._connect()
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
            sock.sendall(request)
            with sock.makefile("rb") as stream:
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

    def _encode(self, target: str, headers: Mapping[str, str]) -> bytes:
        lines = [f"GET {target} HTTP/1.1", *(f"{k}: {v}" for k, v in {**self._standing, **headers}.items()), "", ""]
        return "\r\n".join(lines).encode("latin-1")

    def _in_turn(self, exchange: Callable[[float], T]) -> T:
        """Do `exchange(deadline)` so that `interrupt` and `wake` reach it; once more if an idle connection was dead."""
        deadline = time.monotonic() + float(self.timeout)
        with self._lock:
            if self._ended:
                raise Interrupted
            self._busy = True
            self._woken = False
            reused = self._sock is not None
        try:
            try:
                return exchange(deadline)
            except (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected, ssl.SSLEOFError):
                if not reused or self._ended or self._woken:
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

    def _exchange(self, request: bytes, deadline: float) -> Any:
        sock = self._sock or self._connect()
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        sock.sendall(request)
        response = http.client.HTTPResponse(sock, method="GET")
        try:
            response.begin()
            content = self._read_body(response, sock, deadline)
            if response.will_close:
                self._drop()
        finally:
            response.close()
        return consul.base.Response(response.status, response.headers, content, content)

    def _read_body(self, response: http.client.HTTPResponse, sock: socket.socket, deadline: float) -> bytes:
        unpack = zlib.decompressobj(31) if response.headers.get("Content-Encoding") == "gzip" else None
        if response.length is not None and response.length > self._max_body_bytes:
            raise TooLarge(f"the answer is larger than {self._max_body_bytes} bytes")  # not a byte of it is read
        body = bytearray()  # one piece, which goes back to the system when it is large; a list of pieces does not
        while chunk := response.read1(CHUNK):
            if unpack is not None:
                chunk = unpack.decompress(chunk, self._max_body_bytes - len(body) + 1)
            body += chunk
            if len(body) > self._max_body_bytes:
                raise TooLarge(f"the answer is larger than {self._max_body_bytes} bytes")
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the answer did not end in time")
            sock.settimeout(left)
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        if unpack is not None and not unpack.eof:
            raise http.client.IncompleteRead(b"")
        return bytes(body)

    # ------------------------------------------------------------------ the connection

    def _connect(self) -> socket.socket:
        if self.endpoint.unix_path:
            sock = self._register(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            sock.settimeout(self._connect_timeout)
            sock.connect(self.endpoint.unix_path)
            return sock
        failure: OSError | None = None
        infos = socket.getaddrinfo(self.endpoint.host, self.endpoint.port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in infos:
            sock = self._register(socket.socket(family, kind, protocol))
            sock.settimeout(self._connect_timeout)
            try:
                sock.connect(address)
            except OSError as error:
                failure = error
                self._drop()
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return sock if self._tls is None else self._secure(sock, self._tls)
        raise failure or OSError(f"{self.endpoint.host} has no address")

    def _secure(self, sock: socket.socket, tls: Tls) -> socket.socket:
        with self._lock:
            if self._ended:
                raise Interrupted
            secured = tls.context().wrap_socket(sock, server_hostname=self._server_name, do_handshake_on_connect=False)
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
        return sock

    def _drop(self) -> None:
        with self._lock:
            self._close_locked()

    def _close_locked(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


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


class Tls:
    """TLS settings from files, shared by all connections, read again when a file is another one (certificates rotate).

    Raises ConfigurationError naming the file that cannot be used; once they could be used, a file that is broken or
    away for a moment leaves the last good settings in place.
    """

    def __init__(self, ca_file: str, client_cert: str, client_key: str, verify: bool) -> None:
        self._files = ca_file, client_cert, client_key
        self._verify = verify
        self._lock = threading.Lock()
        self._seen = self._stamps()
        self._context = self._load()

    def context(self) -> ssl.SSLContext:
        """What new connections use. Any thread."""
        with self._lock:
            seen = self._stamps()
            if seen != self._seen:
                self._seen = seen
                with contextlib.suppress(ConfigurationError):
                    self._context = self._load()
            return self._context

    def _stamps(self) -> tuple[tuple[int, int, int] | None, ...]:
        def stamp(path: str) -> tuple[int, int, int] | None:
            with contextlib.suppress(OSError):
                stat = Path(path).stat()
                return stat.st_mtime_ns, stat.st_ino, stat.st_size
            return None

        return tuple(stamp(path) for path in self._files if path)

    def _load(self) -> ssl.SSLContext:
        ca_file, client_cert, client_key = self._files
        try:
            context = ssl.create_default_context(cafile=ca_file or None)
        except OSError as error:
            raise ConfigurationError(f"Consul's CA file {ca_file} cannot be used: {_why(error)}") from None
        if client_cert:
            try:
                context.load_cert_chain(client_cert, client_key or None)
            except OSError as error:
                files = f"{client_cert} and {client_key}" if client_key else client_cert
                raise ConfigurationError(f"Consul's client certificate {files} cannot be used: {_why(error)}") from None
        elif client_key:
            raise ConfigurationError("a client key for Consul needs a client certificate as well")
        if not self._verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"not PEM, or the key does not fit ({error.reason or 'no certificate in it'})"
    return error.strerror or str(error)
