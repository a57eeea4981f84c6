"""Whether what a direct watch shows is what Consul's catalog has: the streaming backend is compared with it.

streamed.py says what an answer proves by itself. What it does not prove is asked for here: soon after a change, and now
and then for the indexes of all. A service of which the two differed is watched in the catalog itself from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from bridge.consul import decode, streamed
from bridge.consul.client import STREAMING, ConsulClient, Mode
from bridge.consul.link import Link
from bridge.consul.read_pool import ReadPool, Urgency
from bridge.consul.reader import ServiceReader
from bridge.consul.subscriptions import Published, Subscription, SubscriptionTable
from bridge.core.model import Known, Query
from bridge.errors import PermanentError, TransientError

COMPARE_SECONDS = 10.0
"""So soon after a change that the streaming backend showed the catalog is asked whether it shows the same."""

CONFIRM_SECONDS = 1.0
"""How long after a comparison that found a difference both are asked once more: an event may have been on its way."""

INDEX_CHECK_SECONDS = 15.0
"""How often the catalog is asked for the index of services with a direct watch: a query that waits there keeps waiting
when a snapshot is restored. 60 services cost 4 probes a second."""


@dataclass(eq=False, repr=False)
class StreamComparison:
    """`wake` ends the query of a service, which then waits on the catalog. Any thread."""

    link: Link
    table: SubscriptionTable
    pool: ReadPool
    services: ServiceReader
    on_mismatch: Callable[[Query, str], None]
    wake: Callable[[Subscription], None]

    def __post_init__(self) -> None:
        self._shown: dict[Subscription, float] = {}
        self._mismatches: set[Subscription] = set()
        self._next_index_check = self.link.clock() + INDEX_CHECK_SECONDS
        self._checking = False
        self.index_checks = 0

    @property
    def mismatches(self) -> list[str]:
        return sorted({e.query.service for e in tuple(self._mismatches)})

    def forget(self, removed: Iterable[Subscription]) -> None:
        self._mismatches.difference_update(removed)

    def read_mismatches(self) -> None:
        """The listing's index moved: have the services read that the streaming backend does not watch.

        An instance that gets another name leaves no index behind.
        """
        for subscription in tuple(self._mismatches):
            self.services.refresh(subscription, even_direct=True)

    def went_back(self) -> None:
        """A query that waits for a higher index would sleep on: all indexes are asked for."""
        self._next_index_check = self.link.clock()
        for subscription in tuple(self._shown):
            self._shown[subscription] = float("-inf")

    def tick(self, now: float) -> None:
        self._compare_soon(now)
        if now >= self._next_index_check and not self._checking:
            self._checking = True
            self._next_index_check = now + INDEX_CHECK_SECONDS
            self.pool.put(Urgency.POLL, self._check_indexes)

    # ------------------------------------------------------------------ soon after a change

    def showed(self, subscription: Subscription, seen: float) -> None:
        self._shown.setdefault(subscription, seen)

    def _compare_soon(self, now: float) -> None:
        """Have services read of which the streaming backend showed a change some time ago."""
        for subscription, at in tuple(self._shown.items()):
            if subscription.removed or not subscription.watched:
                self._shown.pop(subscription, None)
            elif now - at >= COMPARE_SECONDS:
                self._shown[subscription] = now  # again later, unless a read settles it
                self.services.refresh(subscription, Urgency.POLL, even_direct=True)

    def compared(self, subscription: Subscription, published: Published) -> None:
        """A plain read of a service: if it has a direct watch, was what the streaming backend showed right?"""
        self._shown.pop(subscription, None)
        if published is Published.CHANGED and subscription.watched and not subscription.mismatch:
            self.pool.put(Urgency.POLL, partial(self._confirm, subscription), CONFIRM_SECONDS)

    def _confirm(self, subscription: Subscription, client: ConsulClient) -> None:
        """Ask both backends; the streaming one answers at once what it has when any index is new to us."""
        try:
            streaming = client.health_service(subscription.query, index=1, wait=1.0)
            catalog = client.health_service(subscription.query, mode=Mode.LEADER)
            shown, there = decode.view_of(streaming), decode.view_of(catalog)
        except (TransientError, PermanentError) as error:
            self.link.read_failed(error)
            return
        if (
            not isinstance(shown, Known)
            or not isinstance(there, Known)
            or there.acl_filtered
            or not subscription.watched
        ):
            return
        told_apart = streaming.query_backend == STREAMING and streaming.index == catalog.index
        if told_apart and shown.instances != there.instances and not self.link.gate.suspect:
            self._differs(subscription, "at one index it shows something else")
            self.wake(subscription)

    # ------------------------------------------------------------------ an answer in doubt

    def agrees(self, subscription: Subscription, doubt: streamed.Doubt, state: Known, index: int) -> bool:
        """A plain read followed on an answer that was in doubt: does the catalog show the same?"""
        if state.instances == doubt.shown.instances:
            return True
        if not state.acl_filtered and (doubt.proof or index == doubt.index):
            self._differs(subscription, doubt.reason)
        return False

    def _differs(self, subscription: Subscription, reason: str) -> None:
        """Consul's two backends differ about a service: from now on its direct watch waits on the catalog."""
        if subscription.mismatch or subscription.removed:
            return
        subscription.mismatch = reason
        self._mismatches.add(subscription)
        self._shown.pop(subscription, None)
        self.on_mismatch(subscription.query, reason)

    # ------------------------------------------------------------------ now and then

    def _check_indexes(self, client: ConsulClient) -> None:
        """Ask for the indexes of services with a direct watch, as the last plain reads had them.

        Services that the streaming backend does not watch are read: the catalog's own index misses some changes.
        """
        watched = [e for e in self.table.all() if e.watched]
        for subscription in watched:
            if subscription.mismatch:
                self.services.refresh(subscription, Urgency.POLL, even_direct=True)
        subscriptions = [e for e in watched if not e.mismatch and e not in self._shown]
        try:
            for subscription, index in zip(
                subscriptions, client.probe_services([e.query for e in subscriptions], Mode.LEADER), strict=True
            ):
                if index is None:
                    index = client.probe_service(subscription.query, Mode.LEADER).index
                if index != subscription.index and subscription.watched and subscription not in self._shown:
                    self.services.refresh(subscription, Urgency.POLL, even_direct=True)
            self.index_checks += 1
        except (TransientError, PermanentError) as error:
            self.link.read_failed(error)
        finally:
            self._checking = False
