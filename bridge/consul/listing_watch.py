"""The listing of a datacenter: which services there are, and that something changed which nothing else names."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from bridge.consul import decode
from bridge.consul.aggregates import GIVE_WAY_SECONDS
from bridge.consul.client import Answer
from bridge.consul.faults import is_unreachable
from bridge.consul.link import Link
from bridge.consul.ratelimit import TokenBucket
from bridge.consul.watch import Watch
from bridge.core.model import Listing, Unknown
from bridge.errors import BridgeError

RATE, BYTES = 2.0, 1e6

CHANGES = 1000
"""Moves of the index that are remembered, to tell which of them was a change's: at most two come a second."""


class ListingWatch:
    """One blocking query. `on_listing` is called with what differs, `on_moved` when the index moved, `on_renamed` when
    a service came, went or changed its tags.
    """

    def __init__(
        self,
        link: Link,
        on_listing: Callable[[str, Listing | Unknown], None],
        on_moved: Callable[[], None],
        on_renamed: Callable[[str], None],
    ) -> None:
        self._link = link
        self._on_listing = on_listing
        self._on_moved = on_moved
        self._on_renamed = on_renamed
        self._known: Listing | None = None
        self._told: Listing | Unknown | None = None
        self._index = 0
        self.client = link.client(GIVE_WAY_SECONDS)
        self.changes: deque[tuple[float, int]] = deque(maxlen=CHANGES)
        """When the index moved, and whereto."""

    def watch(self) -> Watch:
        def ask(index: int, wait: float) -> Answer:
            return self.client.listing(self._link.name, index, wait)

        return self._link.watch(
            self.client,
            ask,
            self._take,
            self._failed,
            (TokenBucket(RATE, RATE, self._link.clock),),
            TokenBucket(BYTES, BYTES, self._link.clock),
        )

    def _take(self, answer: Answer) -> bool:
        self._link.last_success = self._link.clock()
        self._link.conditions.set("listing", None)
        moved = answer.index != self._index
        self._index = answer.index
        self._link.gate.observe_listing(answer.index)
        state, before = decode.listing_of(answer), self._known
        came, gone = state.changes_since(before) if isinstance(state, Listing) else ([], [])
        if isinstance(state, Listing) and before is not None and not came and not gone:
            state = before  # the same object is quickly compared
        self._tell(state)
        if moved:
            self.changes.append((self._link.clock(), answer.index))
            self._on_moved()
        if isinstance(state, Listing):
            self._known = state
            for service in (*came, *gone) if before is not None else ():
                self._on_renamed(service)
        return True

    def _failed(self, error: BridgeError) -> None:
        self._link.broke(error)
        self._link.conditions.set("listing", str(error))
        self._tell(Unknown(str(error), unreachable=is_unreachable(error)))

    def _tell(self, state: Listing | Unknown) -> None:
        if state != self._told:
            self._told = state
            self._on_listing(self._link.name, state)
