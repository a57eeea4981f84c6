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
from bridge.errors import BridgeError, PermanentError, ThrottledError

RATE, BYTES = 2.0, 1e6

PEEK_SECONDS = 0.02
"""How often the index alone is asked for while it is too soon to list again: 0.05 ms of Consul's processor time, where
a listing of 5,000 services takes 40. In steady state there is nothing to wait for, and no such question."""

CHANGES = 2000
"""Moves of the index that are remembered, to tell which of them was a change's: at most fifty come a second."""


class ListingWatch:
    """One blocking query, and in its pauses the catalog's index.

    `on_listing` is called with what differs, `on_moved` when the index moved, `on_renamed` when
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
        self._size = 0
        self._asks = TokenBucket(RATE, RATE, link.clock)
        self._bytes = TokenBucket(BYTES, BYTES, link.clock)
        self.client = link.client(GIVE_WAY_SECONDS)
        self.changes: deque[tuple[float, int]] = deque(maxlen=CHANGES)
        """When the index moved, and whereto."""

    def watch(self) -> Watch:
        def ask(index: int, wait: float) -> Answer:
            self._pause(peeking=index > 0)
            return self.client.listing(self._link.name, index, wait)

        return self._link.watch(self.client, ask, self._take, self._failed, ())

    def _pause(self, *, peeking: bool) -> None:
        """Until the listing may be asked for again; the index shows what changes meanwhile.

        Raises TransientError as the listing does: Consul that does not answer is reported whichever question shows it.
        """
        until = self._link.clock() + max(self._asks.take(), self._bytes.take(self._size))
        self._size = 0
        while (left := until - self._link.clock()) > 0:
            if self._link.stop.wait(min(left, PEEK_SECONDS) if peeking else left):
                return
            try:
                if peeking:
                    self._told_by_index(self.client.catalog_index(self._link.name))
            except (ThrottledError, PermanentError) as error:  # it goes without; the listing says whether that does
                self._link.broke(error)
                peeking = False

    def _told_by_index(self, index: int) -> None:
        if index != self._index:  # lower where Consul is another one, or a server lags
            self._index = index
            self.changes.append((self._link.clock(), index))
            self._on_moved()

    def _take(self, answer: Answer) -> bool:
        self._size = answer.size
        self._link.last_success = self._link.clock()
        self._link.conditions.set("listing", None)
        self._link.gate.observe_listing(answer.index)
        state, before = decode.listing_of(answer), self._known
        came, gone = state.changes_since(before) if isinstance(state, Listing) else ([], [])
        if isinstance(state, Listing) and before is not None and not came and not gone:
            state = before  # the same object is quickly compared
        self._tell(state)
        self._told_by_index(answer.index)
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
