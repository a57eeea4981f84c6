"""Lists and events are read into what `json` would give, without what no one reads."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.core.model import Kind
from bridge.kube import objects, wire
from tests.unit.hostile.test_kubernetes_objects import ENDPOINTS, SERVICE, SLICE
from tests.unit.hostile.values import JUNK


@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from(Kind), raw=SERVICE | ENDPOINTS | SLICE | JUNK)
def test_an_object_decodes_the_same_as_from_json(kind: Kind, raw: Any) -> None:
    """Whatever its shape: what msgspec refuses is read by `json`."""
    expected = objects.decode(kind, json.loads(json.dumps(raw)))
    page = json.dumps({"metadata": {"resourceVersion": "7"}, "items": [raw]}).encode()
    (item,), (later,) = wire.page(page)["items"], wire.raw_page(page)["items"]
    event = wire.event(json.dumps({"type": "MODIFIED", "object": raw}).encode())
    found = (item, wire.item(later), event["object"])
    assert tuple(objects.decode(kind, one) for one in found) == (expected,) * 3
    key, digest = wire.identify(later)
    assert not digest or expected is None or key == (expected.meta.namespace, expected.meta.name)


def test_what_is_not_read_is_not_built() -> None:
    """Of managedFields what is below metadata and spec; a value that is no JSON has the whole read by `json`."""
    managed = {"manager": "consul-bridge", "operation": "Apply", "time": "t", "fieldsV1": {"f:spec": {"f:type": {}}}}
    full = {**managed, "apiVersion": "v1", "fieldsV1": {"f:spec": {"f:type": {}}, "f:endpoints": {}}}
    raw = {"kind": "Service", "metadata": {"name": "web", "generation": 1, "managedFields": [full]}}
    assert wire.event(json.dumps({"type": "ADDED", "object": raw}).encode()) == {
        "type": "ADDED",
        "object": {"metadata": {"name": "web", "managedFields": [managed]}},
    }
    assert wire.page(b'{"items": [{"metadata": {"name": "web", "uid": NaN}}]}')["items"][0]["metadata"]["name"] == "web"


@pytest.mark.parametrize("body", [b"", b"{", b'{"items": []} x', b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_an_error_that_the_informer_knows(body: bytes) -> None:
    for read in (wire.page, wire.raw_page, wire.event):
        with pytest.raises((ValueError, RecursionError)):
            read(body)


def test_what_json_can_only_escape_is_sent_all_the_same() -> None:
    """Half of a surrogate pair, from a name that some program registered."""
    sent = {"metadata": {"annotations": {"a": "\ud800", "b": "\u00fc"}}, "subsets": []}
    assert json.loads(wire.body(sent)) == sent
    plain = {"metadata": {"annotations": {"b": "\u00fc"}}, "subsets": [{"addresses": [{"ip": "10.0.0.1"}]}]}
    assert json.loads(wire.body(plain)) == plain
