"""Whether Consul is still the one it was. Pure.

A Consul that came back with an empty disk answers 200, says that it has a leader, and lists nothing: nothing in one
answer tells it from a catalog that was emptied on purpose. Two things tell it from the Consul before:

- the index of catalog/nodes or catalog/services, read consistently, is lower than one seen before (a restored snapshot,
  an empty disk); a lower one of a stale read proves nothing, it may be a server that lags
- not one node has the CreateIndex that it had (an empty disk whose index has already grown past the old one)
"""

from __future__ import annotations

from collections.abc import Mapping


class Identity:
    """What was seen of catalog/nodes and catalog/services. One thread at a time."""

    def __init__(self) -> None:
        self._index = 0
        self._listed = 0
        self._nodes: frozenset[tuple[str, int]] = frozenset()

    def is_another(self, index: int, nodes: Mapping[str, tuple[int, int]]) -> bool:
        """Take a CONSISTENT read of catalog/nodes: is this another Consul, or the same one gone back in time?"""
        now = _born(nodes)
        another = index < self._index or bool(self._nodes and now and self._nodes.isdisjoint(now))
        self._index = index
        self._nodes = now or self._nodes
        self._listed = 0 if another else self._listed
        return another

    def is_older(self, listed: int) -> bool:
        """Take a CONSISTENT read of catalog/services, its index: has Consul gone back in time?"""
        older = listed < self._listed
        self._listed = listed
        return older

    def observe_listing(self, listed: int) -> None:
        """Take the index of any other read of catalog/services."""
        self._listed = max(self._listed, listed)

    def observe(self, index: int, nodes: Mapping[str, tuple[int, int]]) -> None:
        """Take a read that may be stale: it only ever moves what is known forward."""
        if index >= self._index and nodes:
            self._index = index
            self._nodes = _born(nodes)


def _born(nodes: Mapping[str, tuple[int, int]]) -> frozenset[tuple[str, int]]:
    return frozenset((name, created) for name, (created, _) in nodes.items())
