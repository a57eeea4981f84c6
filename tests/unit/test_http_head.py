"""The head of a response means what http.client takes it for."""

from __future__ import annotations

import http.client
import io
from typing import Any

import pytest

from bridge.http_head import MAX_LINE, MAX_LINES, Answer


class Sent:
    """A socket with an answer in it."""

    def __init__(self, text: bytes) -> None:
        self._text = text

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._text)


def read(kind: type[http.client.HTTPResponse], text: bytes, method: str) -> Any:
    """What is read of an answer, or which error it is."""
    answer: Any = kind(Sent(text), method=method)  # type: ignore[arg-type]  # all that it wants of a socket
    try:
        answer.begin()
        body = answer.read()
    except http.client.HTTPException as error:
        return type(error)
    names = ("content-type", "WARNING", "x-consul-index", "absent")
    values = [(answer.headers.get(n), answer.headers.get_all(n) or [], n in answer.headers) for n in names]
    return answer.status, answer.reason, answer.version, answer.will_close, answer.chunked, body, values


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "text",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}more",
        b'HTTP/1.1 200 OK\r\nWarning: 299 - "a"\r\nwarning: 299 - "b: c"\r\nContent-Length: 0\r\n\r\n',
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nContent-Length: 9\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304\r\nContent-Length: 7\r\n\r\n",
        b"HTTP/1.1 500 Oh no \r\nConnection: Close\r\nContent-Length: -1\r\n\r\nall the rest",
        b"HTTP/1.0 200 OK\nX-Consul-Index:  7\n\nall the rest",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\nContent-Type: \xe9\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5",
        b"HTTP/2 200 OK\r\n\r\n",
        b"FTP 200\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_LINE + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * (MAX_LINES + 1) + b"\r\n",
    ],
)
def test_a_response_is_read_as_http_client_reads_it(text: bytes, method: str) -> None:
    """Status, headers in any case, where the body ends, whether the connection can be kept; and errors."""
    assert read(Answer, text, method) == read(http.client.HTTPResponse, text, method)


def test_a_header_over_several_lines_is_one() -> None:
    """The first line may go on nowhere, and what has no colon is no header."""
    answer: Any = Answer(Sent(b'HTTP/1.1 200 OK\r\n x\r\nWarning: 299 - \r\n\t"a"\r\nnothing\r\n\r\n'))  # type: ignore[arg-type]
    answer.begin()
    answer.begin()
    assert (dict(answer.headers), len(answer.headers), 1 in answer.headers) == ({"warning": '299 - "a"'}, 1, False)
