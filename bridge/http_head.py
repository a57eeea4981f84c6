"""The head of an HTTP response, read without the email package.

http.client parses headers with the email package, which takes as much processor time as all the rest of a small
request: a sixth of a storm of writes. Everything else of http.client's response (bodies, chunks, closing) stays in use.
"""

from __future__ import annotations

import http.client
from collections.abc import Iterator, Mapping
from typing import Any

MAX_LINE, MAX_LINES = 65_536, 100
"""What http.client accepts as well: bytes of one header, and headers of one response."""


class Head(Mapping[str, str]):
    """Headers by name, in any case; of one that comes several times the first, and all of them by `get_all`."""

    __slots__ = ("_values",)

    def __init__(self, lines: list[bytes]) -> None:
        self._values: dict[str, list[str]] = {}
        last: list[str] = []
        for line in lines:
            text = line.decode("latin-1")
            if text[0] in " \t":  # the header before goes on here
                if last:
                    last[-1] = f"{last[-1]} {text.strip()}"
                continue
            name, colon, value = text.partition(":")
            if colon:
                last = self._values.setdefault(name.strip().lower(), [])
                last.append(value.strip())

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()][0]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def get_all(self, name: str) -> list[str]:
        """Every value of a header."""
        return self._values.get(name.lower(), [])


class Answer(http.client.HTTPResponse):
    """A response whose head is read by `Head`; everything after it is http.client's."""

    def begin(self) -> None:
        """Read the head. Raises what http.client raises."""
        me: Any = self  # http.client has no public names for what follows from a head
        if me.headers is not None:
            return
        version, status, reason = me._read_status()
        while status == http.client.CONTINUE:
            _lines(me.fp)
            version, status, reason = me._read_status()
        head = Head(_lines(me.fp))
        if not version.startswith("HTTP/1."):
            raise http.client.UnknownProtocol(version)
        me.version = 10 if version == "HTTP/1.0" else 11
        me.code = me.status = status
        me.reason = reason.strip()
        me.headers = me.msg = head
        me.chunked = head.get("transfer-encoding", "").lower() == "chunked"
        me.chunk_left = None
        length = head.get("content-length", "")
        me.length = int(length) if length.isascii() and length.isdigit() and not me.chunked else None
        if status in (http.client.NO_CONTENT, http.client.NOT_MODIFIED) or status < 200 or me._method == "HEAD":
            me.length = 0
        me.will_close = me._check_close() or (not me.chunked and me.length is None)


def _lines(stream: Any) -> list[bytes]:
    """The headers, up to the line without any."""
    lines: list[bytes] = []
    while (line := stream.readline(MAX_LINE + 1)) not in (b"\r\n", b"\n", b""):
        if len(line) > MAX_LINE:
            raise http.client.LineTooLong("header line")
        lines.append(line)
        if len(lines) > MAX_LINES:
            raise http.client.HTTPException(f"got more than {MAX_LINES} headers")
    return lines
