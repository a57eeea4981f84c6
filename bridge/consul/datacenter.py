"""One datacenter: every wanted service watched, within so many connections, whatever happens to Consul.

    listing_watch (1)      catalog/services: names and tags; all other changes of the catalog show here without a name
    direct (most)          one blocking query per service, for those that changed most recently
    aggregates (3)         state/critical, state/warning, nodes: they name what changed, for all other services
    read_pool (up to 4)    reader reads what was named; index_poller finds the changes that nothing names

How no change is missed: a view is only as good as whatever would notice its next change. So a service is covered by its
direct watch, or by aggregate watches and index polls that began BEFORE it was read; when one of these ends (an error, a
direct watch given to another service), what it covered is read again. A read that was under way at that moment counts
as one before it: the service is read once more, or a poll asks for its index (`Subscription.verified_index`). How no
answer is believed too early: see consistency.py.

What a direct watch shows is compared with what a plain read would show (comparison.py): a change that does not explain
itself is read at once, every other soon after it, and what Consul's catalog has is asked for now and then. A service of
which the two differed is watched in the catalog itself from then on (`Subscription.mismatch`).

Reads after the first go to the leader: an answer older than what is known would be a step back.

Longer than other modules: what one part finds is another's work, and this one connects them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from bridge.consul import decode, streamed
from bridge.consul.aggregates import AggregateWatches
from bridge.consul.client import STREAMING, Answer, ConsulClient, ConsulConfig, Mode
from bridge.consul.comparison import StreamComparison
from bridge.consul.direct import DirectWatches
from bridge.consul.housekeeping import Housekeeping, LeaderProbe
from bridge.consul.index_poller import IndexPoller
from bridge.consul.link import Link
from bridge.consul.listing_watch import ListingWatch
from bridge.consul.missed_changes import Find, MissedChanges
from bridge.consul.ratelimit import AdaptiveConcurrency, jittered
from bridge.consul.read_pool import ReadPool, Urgency
from bridge.consul.reader import HiddenServices, NodeReader, Read, ServiceReader, learn_index
from bridge.consul.subscriptions import InlineExecutor, Published, Subscription, SubscriptionTable, instances_of
from bridge.consul.watch import Watch
from bridge.core.model import Instance, Knowledge, Known, Listing, Query, Status, Unknown
from bridge.errors import BridgeError, PermanentError, TransientError
from bridge.retry import RetryPolicy
from bridge.threads import guarded_thread

PROMOTED_WAIT_SECONDS = 15.0
"""Longest wait of a direct watch while there are more services than watches: then it may go to another one."""


class CatalogListener(Protocol):
    """Receives what Consul shows. Called from watch threads, one call at a time per service; must be quick.

    In `bridge run` this is `controller.consul_side.ConsulSide`.
    """

    def on_listing(self, datacenter: str, listing: Listing | Unknown) -> None:
        """The services of a datacenter changed, or could not be listed."""

    def on_view(self, query: Query, state: Knowledge, seen: float, inline: InlineExecutor | None = None) -> None:
        """The instances of a service changed (`seen`: clock when the answer was there), or could not be read.

        With `inline` the calling thread is free: the listener may pass it the work that follows, which saves a switch
        to another thread (measured: 0.24 ms of the 4.6 ms from Consul's answer to the API server's).
        """

    def on_rebuilt(self, datacenter: str) -> None:
        """Consul is another one than before, or went back in time. Called before any view of it."""

    def on_trouble(self, datacenter: str, reason: str | None) -> None:
        """A datacenter cannot be asked as it should be, or (None) can again."""

    def on_mismatch(self, query: Query, reason: str) -> None:
        """Consul's streaming backend showed this service otherwise than its catalog; once for each service."""


class DatacenterWatch:
    """See the module. `start`, `stop`, `join`, `want` and `status` may be called from any thread."""

    def __init__(
        self,
        config: ConsulConfig,
        name: str,
        listener: CatalogListener,
        *,
        budget: int,
        retry: RetryPolicy,
        failed: Callable[[BaseException], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listener = listener
        self._budget = budget
        self._want_lock = threading.Lock()
        readers, has_aggregates, slots = divide(budget)
        self._link = link = Link(
            config,
            name,
            concurrency=AdaptiveConcurrency(slots, clock),
            retry=retry,
            clock=clock,
            rebuilt=self._rebuilt,
            went_back=self._went_back,
            trouble=self._tell_trouble,
        )
        self._table = table = SubscriptionTable(listener.on_view, config.namespace, config.partition)
        self._pool = pool = ReadPool(
            [link.client() for _ in range(readers)],
            f"consul-reader-{name}",
            link.ready,
            failed,
            clock,
            begin=ConsulClient.connect,  # a probe then soon tells whether what was opened at the start leads somewhere
        )
        self._hidden = HiddenServices(link.conditions)
        self._reader = ServiceReader(link, table, pool, self._hidden, self._was_read)
        nodes = NodeReader(link, table, pool, self._reader)
        self._aggregates = AggregateWatches(link, table, self._reader, nodes, affordable=has_aggregates)
        self._direct = DirectWatches(
            f"consul-direct-{name}",
            table,
            link.concurrency,
            link.client,
            self._direct_watch,
            self._lost_watch,
            failed,
            link.stop,
        )
        self._poller = IndexPoller(name, _Polled(link, table, self._reader, nodes, self._aggregates), pool, clock)
        self._listing = ListingWatch(link, listener.on_listing, self._listing_moved, self._listing_renamed)
        self._comparison = StreamComparison(
            link, table, pool, self._reader, listener.on_mismatch, lambda subscription: self._direct.wake(subscription)
        )
        self._missed = MissedChanges(clock)
        housekeeping = Housekeeping(
            link,
            table=table,
            pool=pool,
            services=self._reader,
            direct=self._direct,
            aggregates=self._aggregates,
            poller=self._poller,
            listing=self._listing,
            comparison=self._comparison,
            missed=self._missed,
            leader=LeaderProbe(link, pool, self._wake_older),
        )
        self._threads = [
            guarded_thread(f"consul-housekeeping-{name}", housekeeping.run, failed),
            guarded_thread(f"consul-listing-{name}", self._listing.watch().run, failed),
            *self._aggregates.threads(failed),
        ]

    # ------------------------------------------------------------------ for the catalog

    def start(self) -> None:
        self._pool.start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End every request; the listener is not called any more once `join` has returned."""
        self._link.stop.set()
        self._aggregates.end()
        self._pool.close()
        for client in self._clients():
            client.close()
        self._direct.close()
        self._link.gate.wake()

    def join(self, deadline: float) -> bool:
        """Wait for the threads until `deadline` (time.monotonic); returns whether all have ended."""
        threads = [*self._threads, *self._pool.threads, *self._direct.close()]
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(deadline - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in threads)

    def want(self, new: Iterable[Query], old: Iterable[Query] = ()) -> None:
        """Watch the `new` services as well from now on, and no longer the `old` ones."""
        with self._want_lock:
            added, removed = self._table.want(new, old)
            self._direct.remove(removed)
            self._comparison.forget(removed)
            for subscription in removed:
                self._hidden.note(subscription, Unknown("not wanted any more"))
            rest = self._direct.add(added)
        if self._table.unwatched:
            self._aggregates.start()
        for subscription in rest:
            self._reader.refresh(subscription, urgency=Urgency.FIRST)
        trouble = self._link.conditions.current
        if trouble is not None:
            self._tell_unread(added, trouble)

    def status(self) -> dict[str, Any]:
        link = self._link
        since = None if link.last_success is None else round(link.clock() - link.last_success, 1)
        return {
            "connected": link.conditions.current is None and link.last_success is not None,
            "trouble": link.conditions.current,
            "seconds_since_last_success": since,
            "connections": sum(client.connected for client in self._clients()) + self._direct.connected,
            "budget": self._budget - (link.concurrency.total - link.concurrency.limit),
            "budget_configured": self._budget,
            "services": len(self._table.subscriptions),
            "direct_watches": self._direct.in_use,
            "aggregate_watches": self._aggregates.running,
            "reads_waiting": len(self._pool),
            "index_polls": self._poller.polled,
            "index_poll_seconds": round(self._poller.last_seconds, 3),
            "probes": self._poller.probes,
            "streaming_mismatches": self._comparison.mismatches,
            "index_checks": self._comparison.index_checks,
            "audits": self._poller.audited,
            "missed_changes": self._missed.found,
            "missed_lately": list(self._missed.lately),
            "confirmations": link.gate.confirmations,
        }

    # ------------------------------------------------------------------ the datacenter as a whole

    def _clients(self) -> tuple[ConsulClient, ...]:
        return (self._listing.client, *self._aggregates.clients, *self._pool.clients)

    def _wake_older(self, opened_before: float) -> None:
        for client in self._clients():
            client.wake(opened_before)
        self._direct.wake(opened_before=opened_before)

    def _tell_trouble(self, reason: str | None) -> None:
        self._listener.on_trouble(self._link.name, reason)
        if reason is not None:
            self._tell_unread(self._table.all(), reason)

    def _tell_unread(self, subscriptions: Iterable[Subscription], reason: str) -> None:
        """Services that were never read are reported as unreadable; all other services keep what is known."""
        for subscription in subscriptions:
            if subscription.state is None:
                self._table.publish(subscription, Unknown(reason), self._link.clock(), generation=0)

    def _rebuilt(self) -> None:
        """Consul is another one: say so, then forget every index and have everything read again."""
        self._listener.on_rebuilt(self._link.name)
        self._poller.forget()
        self._listing.changes.clear()
        self._aggregates.forget()
        with self._table.lock:
            for subscription in self._table.subscriptions.values():
                subscription.index = 0
                subscription.verified_index = False
        for subscription in self._table.all():
            if not subscription.watch_assigned:
                self._reader.refresh(subscription)
        self._direct.wake()
        self._listing.client.wake()
        self._aggregates.wake()

    def _went_back(self) -> None:
        """The same Consul, with an older state (a restored snapshot) or asked through a server that lags."""
        self._comparison.went_back()
        self._poller.audit()

    def _listing_moved(self) -> None:
        """Something changed that only the listing's index shows."""
        if self._table.unwatched:
            self._poller.poll_changed()
        self._comparison.read_mismatches()

    def _listing_renamed(self, service: str) -> None:
        self._reader.notify(self._table.of_service(service), 0)

    # ------------------------------------------------------------------ direct watches

    def _direct_watch(self, client: ConsulClient, subscription: Subscription) -> Watch:
        generation = asked = 0
        doubt: streamed.Doubt | None = None

        def ask(index: int, wait: float) -> Answer:
            nonlocal generation, asked
            generation, asked = subscription.generation, index
            mode = Mode.STALE if index or subscription.known is None else Mode.LEADER
            if self._table.unwatched:
                wait = min(wait, jittered(PROMOTED_WAIT_SECONDS))
            return client.health_service(subscription.query, index, wait, mode, streaming=not subscription.mismatch)

        def take(answer: Answer) -> bool:
            nonlocal doubt
            plain = watch.position.plain
            streaming = not plain and answer.query_backend == STREAMING
            seen = self._link.clock()
            if not plain and answer.index != asked:
                subscription.last_notified_at = seen  # it waited, and was woken
            view = decode.view_of(answer)
            before = subscription.known
            if streaming and before is not None and isinstance(view, Known):
                certain = not subscription.query.filter and not before.acl_filtered
                doubt = streamed.doubt(answer, view, before, asked, certain=certain)
                if doubt is not None:
                    return False
            state = decode.proved(answer, before, waited=streaming, view=view)
            if state is None:
                return False
            self._hidden.note(subscription, state)
            if isinstance(state, Unknown):
                raise PermanentError(state.reason)  # asked again slowly: a user may fix it
            work: list[Callable[[], None]] = []
            published = self._table.publish(subscription, state, seen, generation if plain else None, work.append)
            if published is Published.STALE:
                return False
            if plain:
                doubt, doubted = None, doubt
                if doubted is not None and self._comparison.agrees(subscription, doubted, state, answer.index):
                    # its index may be the higher one: a service's own does not move when an instance gets another name
                    watch.position.index = max(watch.position.index, doubted.index)
                subscription.watched = True
            learn_index(subscription, answer)
            if streaming and published is Published.CHANGED:
                self._comparison.showed(subscription, seen)
            subscription.attempts = 0
            if published is Published.CHANGED:
                self._direct.changed(subscription)
            for task in work:
                task()
            if published is Published.CHANGED:
                self._renamed(subscription, before)
            # whether something is still hidden, only a plain read says
            return plain or subscription.known is None or not subscription.known.acl_filtered

        def fail(error: BridgeError) -> None:
            self._link.broke(error)
            subscription.watched = False
            self._table.publish(
                subscription, Unknown(str(error), lasting=isinstance(error, PermanentError)), self._link.clock()
            )

        watch = self._link.watch(client, ask, take, fail, (self._reader.bucket_of_one(), self._reader.bucket))
        return watch

    def _renamed(self, subscription: Subscription, before: Known | None) -> None:
        """Who had an instance that this service gained has it no more: an id belongs to one service at a time.

        When it is registered under another name, Consul leaves the old service's index as it was.
        """
        had = {(i.node, i.id) for i in before.instances} if before is not None else set()
        name = subscription.query.service.lower()
        for instance in instances_of(subscription):
            if before is None or (instance.node, instance.id) in had:
                continue
            for other in self._table.on_node(instance.node):
                if other.query.service.lower() != name and other.has(instance.node, instance.id):
                    self._reader.refresh(other, even_direct=bool(other.mismatch))

    def _lost_watch(self, subscription: Subscription) -> None:
        """A service lost its direct watch: from here on aggregate watches and index polls look after it."""
        self._aggregates.start()
        self._reader.refresh(subscription)

    # ------------------------------------------------------------------ single reads

    def _was_read(self, read: Read) -> None:
        subscription, before = read.subscription, read.before
        self._comparison.compared(subscription, read.published)
        if read.published is Published.CHANGED:
            self._direct.changed(subscription)
            self._renamed(subscription, before)
            if read.auditing and self._heard(subscription):
                in_listing = not subscription.watched and _registered(before) != _registered(subscription.known)
                polled_from = self._poller.polled_from
                self._missed.judging.append(Find(subscription, read.seen, subscription.index, in_listing, polled_from))

    def _heard(self, subscription: Subscription) -> bool:
        """Whether a change of this service was to be noticed by now: one that was not noticed is a miss then."""
        if subscription.watched:
            return True
        if subscription.covered_by_aggregate and self._aggregates.watches:
            return not self._aggregates.unsynced
        return not self._poller.pending  # polls are all there is


@dataclass(eq=False, repr=False)
class _Polled:
    """What the index poller asks for, and what its findings lead to."""

    link: Link
    table: SubscriptionTable
    services: ServiceReader
    nodes: NodeReader
    aggregates: AggregateWatches

    def services_to_probe(self, every: bool) -> list[Subscription]:
        """Services that have been read: all, or only those that no direct watch looks after."""
        return [e for e in self.table.all() if e.known is not None and (every or not e.watched)]

    def nodes_to_probe(self) -> list[str] | None:
        """All nodes, from the aggregate watch; None when it has not answered yet."""
        return self.aggregates.nodes()

    def node_moved(self, client: ConsulClient, node: str) -> None:
        """A node's index moved: refresh what changed on it."""
        self.nodes.moved(client, node)

    def audit_node(self, client: ConsulClient, node: str) -> None:
        """A node's index moved since the last audit: have the services read that lost an instance there."""
        for subscription in self.nodes.lost(client, node):
            self.service_moved(subscription, auditing=True)

    def service_moved(self, subscription: Subscription, auditing: bool) -> None:
        if not auditing:
            subscription.last_notified_at = self.link.clock()
        else:
            with self.table.lock:
                # else another watch announced it already
                subscription.auditing = not (subscription.queued or subscription.reading)
        self.services.refresh(subscription, even_direct=auditing)

    def probe_failed(self, error: TransientError | PermanentError, attempt: int) -> float:
        """A poll cannot go on; for how many seconds it is to rest."""
        self.link.read_failed(error)
        return self.link.policy(error).wait_seconds(attempt, error)


def _registered(known: Known | None) -> frozenset[Instance]:
    """A view without the health of its instances: what registrations say."""
    instances = known.instances if known is not None else ()
    return frozenset(replace(i, status=Status.PASSING, check="") for i in instances)


def divide(budget: int) -> tuple[int, bool, int]:
    """How a budget is spent: (readers, whether there are aggregate watches, direct watches), one for the listing."""
    readers = max(1, min(4, budget // 6))
    has_aggregates = budget - 1 - readers >= 3
    return readers, has_aggregates, budget - 1 - readers - (3 if has_aggregates else 0)
