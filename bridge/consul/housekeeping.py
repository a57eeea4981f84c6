"""What is due by the clock in the watch of a datacenter: polls, audits, comparisons, and the probe of its leader."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

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

UNNOTICED_SECONDS = 1.0
"""How often services are polled that neither a direct watch nor an aggregate watch looks after."""

LEADER_PROBE_SECONDS = 5.0

KEPT_SECONDS = 5.0
"""How long the probe of the leader, which Consul answers at once in any state, waits on a kept-alive connection. If it
gets no answer there, and one on a new connection, the kept-alive ones are dead: a virtual address has moved, or a load
balancer has dropped them. Nothing else would show that before the queries' own deadlines (`wait` + margin)."""

RENEWED_SECONDS = 15.0
"""All connections are reopened at most this often: queries that are cut off keep their places at Consul's side."""


@dataclass(eq=False, repr=False)
class LeaderProbe:
    """Asks now and then whether the datacenter has a leader. `wake` ends what waits on connections older than that."""

    link: Link
    pool: ReadPool
    wake: Callable[[float], None]

    def __post_init__(self) -> None:
        self._next = float("-inf")
        self._asked = False
        self._renewed_at = float("-inf")

    def tick(self, now: float) -> None:
        if now >= self._next and not self._asked:
            self._asked = True
            self._next = now + LEADER_PROBE_SECONDS
            self.pool.put(Urgency.NOW, self._ask)

    def _ask(self, client: ConsulClient) -> None:
        self._asked = False
        name, asked_at = self.link.name, time.monotonic()
        kept = client.opened < asked_at
        patience = min(KEPT_SECONDS, self.link.config.timeout_margin_seconds)
        try:
            leader = client.leader(name, patience if kept else None)
        except TransientError as error:
            if not kept or time.monotonic() - asked_at < patience:
                self._failed(error)
                return
            self.link.conditions.set("leader", str(error))
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
            self.link.last_success = self.link.clock()
            self.link.conditions.set("leader", None)
        else:
            reason = f"the servers of {name} have no leader: what is known stays as it is"
            self.link.conditions.set("leader", reason)

    def _failed(self, error: TransientError | PermanentError) -> None:
        self.link.read_failed(error)
        self.link.conditions.set("leader", str(error))

    def _renew_connections(self, opened_before: float) -> None:
        """A new connection is answered, a kept one was not: whatever waits on old ones asks again on new ones."""
        now = self.link.clock()
        if now - self._renewed_at < RENEWED_SECONDS:
            return
        self._renewed_at = now
        self.link.gate.mark_suspect("kept connections lead nowhere: another server may answer now")
        self.wake(opened_before)


@dataclass(eq=False, repr=False)
class Housekeeping:
    """Begins what is due. One thread."""

    link: Link
    _: KW_ONLY
    table: SubscriptionTable
    pool: ReadPool
    services: ServiceReader
    direct: DirectWatches
    aggregates: AggregateWatches
    poller: IndexPoller
    listing: ListingWatch
    comparison: StreamComparison
    missed: MissedChanges
    leader: LeaderProbe

    def __post_init__(self) -> None:
        self._generation = self.link.config.access.parts(self.link.config).generation()
        self._next_full_audit = self.link.clock() + self.link.config.verify_seconds
        self._next_unnoticed = self.link.clock()

    def run(self) -> None:
        while not self.link.stop.wait(TICK_SECONDS):
            self.tick(self.link.clock())

    def tick(self, now: float) -> None:
        config = self.link.config
        self.aggregates.tick(now)
        generation = config.access.parts(config).generation()
        if generation != self._generation:  # certificates or tokens are other ones
            self._generation = generation
            self.link.gate.hurry()
            self.pool.hurry()
        self.leader.tick(now)
        self.comparison.tick(now)
        if now >= self._next_full_audit:
            self._next_full_audit = now + config.verify_seconds
            self.poller.audit()
        if self.table.unwatched and not self.aggregates.watches:
            self.poller.poll_changed()  # without aggregate watches polls are all there is
        elif self.table.unwatched and self.services.unverified and not len(self.pool):
            self.services.unverified = False
            self.poller.poll_unverified()
        elif self.table.unnoticed and now >= self._next_unnoticed:
            self._next_unnoticed = now + UNNOTICED_SECONDS
            self.poller.poll_unverified()
        self.poller.tick()
        self.missed.judge(self.listing.changes)
        if self.link.concurrency.tick():
            self.direct.grown()
        since = self.link.concurrency.seconds_since
        if since is not None and since > 2 * LEADER_PROBE_SECONDS:
            self.link.conditions.set("throttled", None)
