"""What is read of the cluster's nodes; everything that is asked of a server is in tests/e2e/test_grants.py."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.kube.nodes import _node


def node(*addresses: Any, name: Any = "worker") -> dict[str, Any]:
    """A node with these entries in its status."""
    return {"metadata": {"name": name}, "status": {"addresses": list(addresses)}}


def test_addresses_that_lead_to_a_node_are_read_in_one_spelling() -> None:
    """Its names are none."""
    found = node(
        {"type": "InternalIP", "address": "10.0.0.1"},
        {"type": "ExternalIP", "address": "2001:DB8::0:1"},
        {"type": "Hostname", "address": "worker"},
    )
    assert _node(found) == ("worker", ["10.0.0.1", "2001:db8::1"])


@pytest.mark.parametrize("odd", [{"address": "10.0.0.9"}, {"type": "InternalIP"}, {"type": "InternalIP", "address": 7}])
def test_an_odd_address_hides_no_other(odd: dict[str, Any]) -> None:
    """One node of a thousand must not keep all of them unknown."""
    assert _node(node(odd, {"type": "InternalIP", "address": "10.0.0.1"})) == ("worker", ["10.0.0.1"])


@pytest.mark.parametrize(
    "odd", [{}, {"metadata": {}}, node("10.0.0.1"), {"metadata": {"name": "n"}, "status": "text"}, node(7), "text"]
)
def test_a_node_that_is_none_is_left_out(odd: Any) -> None:
    """Whatever a server, or a proxy in front of it, makes of it."""
    assert _node(odd) is None


@pytest.mark.parametrize("bare", [{"metadata": {"name": "n"}}, {"metadata": {"name": "n"}, "status": None}])
def test_a_node_without_addresses_is_one(bare: Any) -> None:
    """It has just joined."""
    assert _node(bare) == ("n", [])
