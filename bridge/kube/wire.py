"""Kubernetes' lists and watch events, read straight from their bytes: what no one reads is never built.

The result is what `json` would give without the rest (most of managedFields, above all), so that objects.py reads
lists, events and answers to writes by the same functions. Whatever has another shape than the API server gives is read
by `json`, and judged there.
"""

from __future__ import annotations

import json
from typing import Any, TypedDict

import msgspec

from bridge.json_shape import Shape

_Fields = TypedDict("_Fields", {"f:metadata": Any, "f:spec": Any}, total=False)


class _Managed(TypedDict, total=False):
    manager: Any
    operation: Any
    subresource: Any
    time: Any
    fieldsV1: _Fields


class _Metadata(TypedDict, total=False):
    name: Any
    namespace: Any
    uid: Any
    resourceVersion: Any
    labels: Any
    annotations: Any
    deletionTimestamp: Any
    managedFields: list[_Managed]


class _Object(TypedDict, total=False):
    """Of all four kinds; `code` and `message` are an ERROR event's."""

    metadata: _Metadata
    spec: Any
    status: Any
    subsets: Any
    addressType: Any
    endpoints: Any
    ports: Any
    code: Any
    message: Any


class _Page(TypedDict, total=False):
    metadata: Any
    items: list[_Object]


class _RawPage(TypedDict, total=False):
    metadata: Any
    items: list[msgspec.Raw]


class _Identity(msgspec.Struct):
    name: str = ""
    namespace: str = ""


class _Identified(msgspec.Struct):
    metadata: _Identity


class _Event(TypedDict, total=False):
    type: Any
    object: _Object


page = Shape[Any](_Page).read
"""A page of a list. Raises ValueError or RecursionError when it is no JSON."""
raw_page = Shape[Any](_RawPage).read
"""The same with its items not read yet: `identify` and `item` do that."""
event = Shape[Any](_Event).read
"""An event of a watch. Raises the same."""
answer = Shape[Any](_Object).read
"""The object that a write is answered with. Raises the same."""

_IDENTIFIED = msgspec.json.Decoder(_Identified)


def identify(raw: Any) -> tuple[tuple[str, str], int]:
    """Namespace and name of an item of a `raw_page`, and a digest of it; 0 when it has an odd shape."""
    try:
        found = _IDENTIFIED.decode(raw).metadata
    except (msgspec.MsgspecError, RecursionError, TypeError):  # the last: `json` has read the page
        return ("", ""), 0
    return (found.namespace, found.name), hash(bytes(raw))


def item(raw: Any) -> Any:
    """An item of a `raw_page`, read as `page` reads it; `json` has read it already where it has read the page."""
    return answer(raw) if isinstance(raw, msgspec.Raw) else raw


def body(content: dict[str, Any]) -> bytes:
    """What is sent for `content`. Half of a surrogate pair, which JSON can only escape, is left to `json`."""
    try:
        return msgspec.json.encode(content)
    except UnicodeEncodeError:
        return json.dumps(content, separators=(",", ":")).encode()
