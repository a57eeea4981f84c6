"""What is due by the clock in the watch of a datacenter: polls, audits, comparisons, and the probe of its leader."""

from __future__ import annotations

import time
from collections.abc import Callable

from bridge.consul.aggregates import AggregateWatches
from bridge.consul.client import ConsulClient
from bridge.consul.comparison import StreamComparison
from bridge.consul.direct import DirectWatches
from bridge.consul.index_poller import IndexPoller
from bridge.consul.link import Link
from bridge.consul.listing_watch import ListingWatch
from bridge.consul.missed_changes import MissedChanges
from bridge.consul.read_pool import ReadPool, Urgency
from bridge.consul.reader import ServiceReader
from bridge.consul.subscriptions import SubscriptionTable
from bridge.errors import PermanentError, TransientError

TICK_SECONDS = 0.25

LEADER_PROBE_SECONDS = 5.0

KEPT_SECONDS = 5.0
"""How long the probe of the leader, which Consul answers at once in any state, waits on a kept-alive connection. If it
gets no answer there, and one on a new connection, the kept-alive ones are dead: a virtual address has moved, or a load
balancer has dropped them. Nothing else would show that before the queries' own deadlines (`wait` + margin)."""

RENEWED_SECONDS = 15.0
"""All connections are reopened at most this often: queries that are cut off keep their places at Consul's side."""


class LeaderProbe:
    """Asks now and then whether the datacenter has a leader. `wake` ends what waits on connections older than that."""

    def __init__(self, link: Link, pool: ReadPool, wake: Callable[[float], None]) -> None:
        self._link = link
        self._pool = pool
        self._wake = wake
        self._next = float("-inf")
        self._asked = False
        self._renewed_at = float("-inf")

    def tick(self, now: float) -> None:
        """Ask, if it is time to."""
        if now >= self._next and not self._asked:
            self._asked = True
            self._next = now + LEADER_PROBE_SECONDS
            self._pool.put(Urgency.NOW, self._ask)

    def _ask(self, client: ConsulClient) -> None:
        self._asked = False
        name, asked_at = self._link.name, time.monotonic()
        kept = client.opened < asked_at
        patience = min(KEPT_SECONDS, self._link.config.timeout_margin_seconds)
        try:
            leader = client.leader(name, patience if kept else None)
        except TransientError as error:
            if not kept or time.monotonic() - asked_at < patience:
                self._failed(error)
                return
            self._link.conditions.set("leader", str(error))
            try:
                leader = client.leader(name)  # the old connection is closed: this opens another one
            except (TransientError, PermanentError) as again:
                self._failed(again)
                return
            self._renew_connections(asked_at)
        except PermanentError as error:
            self._failed(error)
            return
        if leader:
            self._link.last_success = self._link.clock()
            self._link.conditions.set("leader", None)
        else:
            reason = f"the servers of {name} have no leader: what is known stays as it is"
            self._link.conditions.set("leader", reason)

    def _failed(self, error: TransientError | PermanentError) -> None:
        self._link.read_failed(error)
        self._link.conditions.set("leader", str(error))

    def _renew_connections(self, opened_before: float) -> None:
        """A new connection is answered, a kept one was not: whatever waits on old ones asks again on new ones."""
        now = self._link.clock()
        if now - self._renewed_at < RENEWED_SECONDS:
            return
        self._renewed_at = now
        self._link.gate.mark_suspect("kept connections lead nowhere: another server may answer now")
        self._wake(opened_before)


class Housekeeping:
    """Begins what is due. One thread."""

    def __init__(
        self,
        link: Link,
        *,
        table: SubscriptionTable,
        pool: ReadPool,
        services: ServiceReader,
        direct: DirectWatches,
        aggregates: AggregateWatches,
        poller: IndexPoller,
        listing: ListingWatch,
        comparison: StreamComparison,
        missed: MissedChanges,
        leader: LeaderProbe,
    ) -> None:
        self._link = link
        self._table = table
        self._pool = pool
        self._services = services
        self._direct = direct
        self._aggregates = aggregates
        self._poller = poller
        self._listing = listing
        self._comparison = comparison
        self._missed = missed
        self._leader = leader
        self._generation = link.config.access.parts(link.config).generation()
        self._next_full_audit = link.clock() + link.config.verify_seconds

    def run(self) -> None:
        """Until the end."""
        while not self._link.stop.wait(TICK_SECONDS):
            self.tick(self._link.clock())

    def tick(self, now: float) -> None:
        """Begin what is due."""
        config = self._link.config
        self._aggregates.tick(now)
        generation = config.access.parts(config).generation()
        if generation != self._generation:  # certificates or tokens are other ones
            self._generation = generation
            self._link.gate.hurry()
            self._pool.hurry()
        self._leader.tick(now)
        self._comparison.tick(now)
        if now >= self._next_full_audit:
            self._next_full_audit = now + config.verify_seconds
            self._poller.audit()
        if self._table.unwatched and not self._aggregates.watches:
            self._poller.poll_changed()  # without aggregate watches polls are all there is
        elif self._table.unwatched and self._services.unverified and not len(self._pool):
            self._services.unverified = False
            self._poller.poll_unverified()
        self._poller.tick()
        self._missed.judge(self._listing.changes)
        if self._link.concurrency.tick():
            self._direct.grown()
        since = self._link.concurrency.seconds_since
        if since is not None and since > 2 * LEADER_PROBE_SECONDS:
            self._link.conditions.set("throttled", None)
