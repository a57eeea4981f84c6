"""Bytes of answers become structures, whichever of the two readers of JSON takes them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.consul import wire
from bridge.errors import TransientError
from tests.unit.hostile.test_consul_answers import CHECKS, ENTRY, NODES
from tests.unit.hostile.values import JUNK, mostly

ENTRIES = '[{"Node": {"Node": "vm", "Address": "10.0.0.1"}, "Service": {"ID": "a", "Port": %s, "Tags": [%s]}}]'
PLAIN = (ENTRIES % ("80", '"x"')).encode()


@pytest.mark.parametrize(
    ("body", "port", "tags"),
    [
        (PLAIN, 80, ["x"]),
        (b"\xef\xbb\xbf" + PLAIN, 80, ["x"]),
        (ENTRIES % ("80", r'"\ud800", "x"'), 80, ["\ud800", "x"]),
        (ENTRIES % ("NaN", '"x", "x"'), pytest.approx(float("nan"), nan_ok=True), ["x", "x"]),
        (ENTRIES % ("1e400", ""), float("inf"), []),
        (ENTRIES % ("1" * 50, ""), int("1" * 50), []),
        (ENTRIES % ('1, "Port": 2', "null"), 2, [None]),
        (ENTRIES % ('80, "Weights": {"Passing": NaN}, "\\u0054ags": ["y"], "more": "\\ud800"', ""), 80, []),
    ],
    ids=["plain", "byte order mark", "surrogate", "NaN", "infinite", "large", "twice", "unread"],
)
def test_all_that_json_reads_is_read(body: str | bytes, port: Any, tags: list[Any]) -> None:
    """Of a field that is there twice the last one counts; what is not read may be anything."""
    (entry,) = wire.HEALTH.read(body if isinstance(body, bytes) else body.encode())
    assert (entry.node.name, entry.service.id, entry.service.port, entry.service.tags) == ("vm", "a", port, tags)


@pytest.mark.parametrize(
    "body", [b"", PLAIN[:-1], PLAIN + b"x", b'["\xff"]', b"[" * 100_000, b"1" * 5000, b"\xff\xfe["]
)
def test_what_is_torn_or_no_json_is_neither_read_nor_a_traceback(body: bytes) -> None:
    """The client makes a TransientError of these two."""
    with pytest.raises((ValueError, RecursionError)):
        wire.HEALTH.read(body)


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({}, "Expected `array`, got `object`"),
        ([{"Node": {"Node": "vm"}, "Service": {"ID": 7}}], r"Expected `str`, got `int` - at `$[0].Service.ID`"),
        ([{"Node": {}, "Service": {"ID": "a"}}], r"Object missing required field `Node` - at `$[0].Node`"),
        ([{"Node": {"Node": "vm"}, "\ud800": 1}], "surrogates not allowed"),
    ],
)
def test_other_json_is_trouble_that_names_the_place(data: Any, place: str) -> None:
    with pytest.raises(TransientError) as caught:
        wire.HEALTH.read(json.dumps(data).encode())
    assert place in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(mostly(st.lists(ENTRY | CHECKS | NODES | JUNK, max_size=3)))
def test_both_readers_make_the_same(data: Any) -> None:
    """What msgspec reads itself is what it makes of what `json` read."""
    body = json.dumps(data).encode()
    for shape in (wire.HEALTH, wire.CHECKS, wire.NODES, wire.LISTING, wire.ON_NODE, wire.ANYTHING):
        try:
            fast = shape.decoder.decode(body)
        except msgspec.MsgspecError:
            continue
        assert fast == shape.otherwise(json.loads(body))
