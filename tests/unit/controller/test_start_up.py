"""What makes a start with thousands of services slow: work for all of them at every answer, a busy collector."""

from __future__ import annotations

import gc
import sys

import pytest

from bridge.core.model import Known, Listing, Query, Rule
from bridge.core.state import ConsulState
from bridge.interpreter import GARBAGE_THRESHOLDS, SWITCH_SECONDS, relaxed_gc, short_switch_interval


def test_looking_for_what_is_unread_asks_for_no_hash_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked after thousands of services many times a second; a dataclass computes its hash in Python."""
    consul_state = ConsulState((Rule(name="all"),), ("dc1",), grace_seconds=0.0)
    consul_state.on_listing("dc1", Listing({f"s{n}": frozenset() for n in range(1000)}), now=0.0)
    queries = sorted(consul_state.commit_subscriptions()[0])
    for query in queries[:600]:
        consul_state.on_view(query, Known(()))
    expected = frozenset(queries[600:])
    asked = 0
    computed = Query.__hash__

    def count(query: Query) -> int:
        nonlocal asked
        asked += 1
        return computed(query)

    monkeypatch.setattr(Query, "__hash__", count)
    assert (consul_state.pending_reads(), asked) == (expected, 0)


def test_only_what_may_be_wanted_otherwise_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that comes, or goes, costs the same beside three services as beside thousands."""
    consul_state = ConsulState((Rule(name="all"),), ("dc1",), grace_seconds=0.0)
    services = {f"s{n}": frozenset[str]() for n in range(1000)}
    consul_state.on_listing("dc1", Listing(services), now=0.0)
    first, _ = consul_state.commit_subscriptions()
    looked: list[Query] = []
    wanted = ConsulState._is_wanted

    def look(state: ConsulState, query: Query) -> bool:
        looked.append(query)
        return wanted(state, query)

    monkeypatch.setattr(ConsulState, "_is_wanted", look)
    consul_state.on_listing("dc1", Listing({**services, "db": frozenset()}), now=0.0)
    assert (len(first), consul_state.commit_subscriptions()) == (1000, (frozenset({Query("dc1", "db")}), frozenset()))
    assert (consul_state.commit_subscriptions(), set(looked)) == ((frozenset(), frozenset()), {Query("dc1", "db")})


def test_the_interpreter_is_as_before_when_the_bridge_has_ended() -> None:
    """Also when it ended of an error."""
    before = gc.get_threshold(), sys.getswitchinterval()
    found = []

    def broken() -> None:
        with relaxed_gc(), short_switch_interval():
            found.append((gc.get_threshold(), sys.getswitchinterval()))
            raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        broken()
    assert found == [(GARBAGE_THRESHOLDS, SWITCH_SECONDS)]
    assert (gc.get_threshold(), sys.getswitchinterval()) == before
