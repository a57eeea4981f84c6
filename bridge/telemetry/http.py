"""Requests and answers of the web server as values: no sockets, no threads, and no knowledge of what the pages show.

The standard library's http.server reads requests and writes headers, in memory. GET and HEAD only, no bodies, one
request per connection, and the same strict headers on every answer.
"""

from __future__ import annotations

import http.server
import io
import ipaddress
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote

from bridge import __version__
from bridge.telemetry.logs import logger

REQUEST_BYTES = 16 * 1024

_SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked: the path as it was sent, and the last value of each parameter after `?` (decoded)."""

    path: str
    query: Mapping[str, str] = field(default_factory=dict)

    @property
    def segments(self) -> tuple[str, ...]:
        """The decoded parts of the path: `/service/a/b%20c` is ("service", "a", "b c")."""
        return tuple(unquote(part) for part in self.path.split("/")[1:])


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    content_type: str
    body: bytes


Page = Callable[[Request], Answer]


def text_answer(status: int, text: str) -> Answer:
    return Answer(status, "text/plain; charset=utf-8", f"{text}\n".encode())


def json_answer(status: int, data: Mapping[str, Any]) -> Answer:
    """JSON, everything outside of ASCII escaped."""
    body = json.dumps(data, indent=1, ensure_ascii=True, default=str) + "\n"
    return Answer(status, "application/json", body.encode("ascii"))


def html_answer(status: int, text: str) -> Answer:
    return Answer(status, "text/html; charset=utf-8", text.encode("utf-8", "backslashreplace"))


def respond(request: bytes, route: Callable[[str], Page], *, loopback: bool = False) -> bytes:
    """The bytes that answer the bytes of a request. `route` finds the page of a path, also for one that is not there.

    `loopback`: who asks by a name other than localhost is refused. A web site whose name is made to mean 127.0.0.1
    (DNS rebinding) could else have its visitor's browser read the page.
    """
    return _Handler(request, route, loopback).written.getvalue()


def _is_local(host: str) -> bool:
    """Whether a Host header is localhost or an address; DNS cannot point those elsewhere."""
    name = host.strip().lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    if name in ("", "localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class _Handler(http.server.BaseHTTPRequestHandler):
    """One request that lies in memory, answered into memory."""

    server_version = f"consul-endpoints-bridge/{__version__}"
    sys_version = ""
    protocol_version = "HTTP/1.1"

    def __init__(self, request: bytes, route: Callable[[str], Page], loopback: bool) -> None:
        self._route = route
        self._loopback = loopback
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
        """Bodies are never read, so no client is asked to send one."""
        return True

    def parse_request(self) -> bool:
        """As usual, and only what we serve."""
        if not super().parse_request():
            return False
        hosts = self.headers.get_all("Host", []) if self.request_version != "HTTP/0.9" else []
        self.request_version = "HTTP/1.1"  # the answer has headers, whatever was asked
        if len(hosts) != 1:  # HTTP/0.9 has no headers, so the host is unknown; two headers contradict each other
            self._answer(text_answer(400, "a request needs HTTP/1.0 or newer and one Host header"))
            return False
        if self.command not in ("GET", "HEAD"):
            self._answer(text_answer(405, "only GET and HEAD"), {"Allow": "GET, HEAD"})
            return False
        if self._loopback and not _is_local(self.headers.get("Host", "")):
            self._answer(text_answer(421, "this server listens on loopback: ask for localhost or its address"))
            return False
        return True

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        page = self._route(path)
        try:
            answer = page(Request(path, dict(parse_qsl(query, max_num_fields=50))))
        except Exception as error:  # noqa: BLE001 - said in the log; the reader learns that it failed, and no more
            logger().error("a page failed", page=path, exc_info=error)
            answer = text_answer(500, "failed; the log says why")
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
        self._answer(text_answer(code, HTTPStatus(code).phrase))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Probes every few seconds are no news."""
        del format, args
