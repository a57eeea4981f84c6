"""JSON read straight from its bytes into what is read of it: fields that no one reads are never built.

msgspec is stricter than Python's `json` in what no server sends and some proxy might (a byte order mark, NaN, half of a
surrogate pair), so what it refuses is read by `json`, and then judged by whose answer it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

T = TypeVar("T")
Body = bytes | bytearray
"""What a response brought: a bytearray where the server did not say its length, as Go does above 2 kB."""


class Shape(Generic[T]):
    """What one kind of answer is read into."""

    def __init__(self, into: Any, otherwise: Callable[[Any], T] = lambda data: data) -> None:
        """`otherwise` makes it of JSON that does not fit `into`."""
        self.decoder = msgspec.json.Decoder(into)
        self.otherwise = otherwise

    def read(self, body: Body | msgspec.Raw) -> T:
        """Raises ValueError or RecursionError when it is no JSON, and what `otherwise` raises."""
        try:
            return self.decoder.decode(body)  # type: ignore[no-any-return]
        except (msgspec.MsgspecError, RecursionError):
            return self.otherwise(json.loads(bytes(body).decode("utf-8-sig")))
