"""An HTTP proxy that tells lies on request: for faults that are in the HTTP itself, not in the bytes below it.

It passes everything on to the real server (streams included), except for requests that `rule` answers otherwise: with
an answer of its own, or with the right answer mangled.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to give. `promised`: the Content-Length to claim, when it is not the body's."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    promised: int | None = None


Mangle = Callable[[Answer], Answer]
Rule = Callable[[str, str], Answer | Mangle | None]
"""Method and path with query, to an answer, or a change of the right answer, or None: pass it on."""

_HOP = frozenset({"connection", "transfer-encoding", "content-length", "keep-alive", "date", "server"})


class Stub:
    """Serves from the moment it is made until `close`, at `address` (host:port)."""

    def __init__(
        self,
        upstream: str,
        rule: Rule,
        *,
        ca_file: Path | None = None,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        """`upstream`: http(s)://host:port. `certificate`: PEM files of certificate and key, to speak TLS ourselves."""
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                with stub._lock:
                    stub._open.add(self.request)
                self.upstream: http.client.HTTPConnection | None = None
                super().setup()

            def finish(self) -> None:
                with contextlib.suppress(OSError):
                    super().finish()
                if self.upstream is not None:
                    self.upstream.close()
                with stub._lock:
                    stub._open.discard(self.request)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the parent's own name
                pass

            def __getattr__(self, name: str) -> Any:
                if name.startswith("do_"):
                    return lambda: stub._serve(self)
                raise AttributeError(name)

        self._upstream = upstream
        self._upstream_context = ssl.create_default_context(cafile=str(ca_file)) if ca_file else None
        self.rule = rule
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self.lies = 0
        self._server = _Server(("127.0.0.1", 0), Handler)
        if certificate is not None:
            self._server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._server.context.load_cert_chain(*map(str, certificate))
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="chaos-stub"
        )
        self._thread.start()

    def close(self) -> None:
        """End it and every connection through it."""
        self._server.shutdown()
        self._thread.join()
        with self._lock:
            sockets = list(self._open)
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._server.server_close()

    # ------------------------------------------------------------------ one request

    def _serve(self, handler: Any) -> None:
        try:
            self._answer(handler)
        except (OSError, http.client.HTTPException, ValueError):
            handler.close_connection = True

    def _answer(self, handler: Any) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        decision = self.rule(handler.command, handler.path)
        if isinstance(decision, Answer):
            self.lies += 1
            self._send(handler, decision)
            return
        upstream = self._connected(handler)
        headers = {k: v for k, v in handler.headers.items() if k.lower() not in _HOP}
        upstream.request(handler.command, handler.path, body=body or None, headers=headers)
        answer = upstream.getresponse()
        kept = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP}
        if decision is None and answer.length is None:
            self._stream(handler, answer, kept)
            return
        right = Answer(answer.status, answer.read(), kept)
        if decision is not None:
            self.lies += 1
            right = decision(right)
        self._send(handler, right)

    def _connected(self, handler: Any) -> http.client.HTTPConnection:
        if handler.upstream is None:
            parts = urlsplit(self._upstream)
            host, port = parts.hostname or "", parts.port or 0
            handler.upstream = (
                http.client.HTTPSConnection(host, port, timeout=120, context=self._upstream_context)
                if self._upstream_context is not None
                else http.client.HTTPConnection(host, port, timeout=120)
            )
            handler.upstream.connect()
            handler.upstream.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open.add(handler.upstream.sock)
        found: http.client.HTTPConnection = handler.upstream
        return found

    @staticmethod
    def _send(handler: Any, answer: Answer) -> None:
        handler.send_response(answer.status)
        for key, value in answer.headers.items():
            handler.send_header(key, value)
        length = len(answer.body) if answer.promised is None else answer.promised
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
        handler.wfile.write(answer.body)
        handler.wfile.flush()
        if length != len(answer.body):
            handler.close_connection = True

    @staticmethod
    def _stream(handler: Any, answer: http.client.HTTPResponse, headers: Mapping[str, str]) -> None:
        handler.send_response(answer.status)
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.flush()
        while piece := answer.read1(65536):
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            handler.wfile.flush()
        handler.wfile.write(b"0\r\n\r\n")
        handler.wfile.flush()


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    context: ssl.SSLContext | None = None

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread: a slow handshake holds up no other one."""
        if self.context is not None:
            with contextlib.suppress(OSError), self.context.wrap_socket(request, server_side=True) as wrapped:
                super().finish_request(wrapped, client_address)
            return
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections break here all the time; that is what it is for."""
