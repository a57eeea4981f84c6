"""One datacenter: every wanted service watched, within so many connections, whatever happens to Consul.

    listing watch (1)      catalog/services: names and tags; all other changes of the catalog show here without a name
    direct watches (most)  one blocking query per service, for those that changed most recently
    aggregate watches (3)  state/critical, state/warning, nodes: they name what changed, for all other services
    read pool (up to 4)    reads what was named; polls of indexes find the changes that nothing names

How no change is missed: a view is only as good as whatever would notice its next change. So a service is covered by its
direct watch, or by aggregate watches and index polls that began BEFORE it was read; when one of these ends (an error, a
direct watch given to another service), what it covered is read again. A read that was under way at that moment counts
as one before it: the service is read once more, or a poll asks for its index (`Subscription.verified_index`). How no
answer is believed too early: see consistency.py.

What a direct watch shows is compared with what a plain read would show (streamed.py): a change that does not explain
itself is read at once, every other soon after it, and what Consul's catalog has is asked for now and then. A service of
which the two differed is watched in the catalog itself from then on (`Subscription.mismatch`).

Reads after the first go to the leader: an answer older than what is known would be a step back.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from bridge.consul import aggregate_watch, decode, streamed
from bridge.consul.client import STREAMING, Answer, ConsulClient, ConsulConfig, Mode
from bridge.consul.consistency import Conditions, ConsistencyGate
from bridge.consul.direct import DirectWatches
from bridge.consul.faults import ENOUGH_POLICY
from bridge.consul.index_poller import IndexPoller
from bridge.consul.ratelimit import AdaptiveConcurrency, TokenBucket, jittered
from bridge.consul.read_pool import ReadPool, Urgency
from bridge.consul.subscriptions import InlineExecutor, Published, Subscription, SubscriptionTable, instances_of
from bridge.consul.watch import PERMANENT_RETRY, Watch
from bridge.core.model import UNADDRESSABLE, Instance, Knowledge, Known, Listing, Query, Status, Unknown
from bridge.errors import BridgeError, CancelledError, PermanentError, ThrottledError, TransientError
from bridge.retry import RetryPolicy
from bridge.threads import guarded_thread

LEADER_PROBE_SECONDS = 5.0

KEPT_SECONDS = 5.0
"""How long the probe of the leader, which Consul answers at once in any state, waits on a connection that was kept. If
it gets no answer there, and one on a new connection, the kept ones lead nowhere: a virtual address has moved, or what
stands in front of Consul has lost them. Nothing else would tell before the queries' own deadlines (`wait` + margin)."""

RENEWED_SECONDS = 15.0
"""All connections are opened anew at most this often: queries that are cut off keep their places at Consul's side."""

PROMOTED_WAIT_SECONDS = 15.0
"""Longest wait of a direct watch while there are more services than watches: then it may go to another one."""

COMPARE_SECONDS = 10.0
"""So soon after a change that the streaming backend showed the catalog is asked whether it shows the same."""

CONFIRM_SECONDS = 1.0
"""How long after a comparison that found a difference both are asked once more: an event may have been on its way."""

INDEX_CHECK_SECONDS = 15.0
"""How often the catalog is asked for the index of services with a direct watch: a query that waits there sleeps on when
a snapshot is restored. 60 services cost 4 probes a second."""

JUDGE_SECONDS = 5.0
"""How long a change that an audit found may still be announced by another watch."""

LISTING_CHANGES = 1000
"""Moves of the listing that are remembered, to tell which of them was a change's: at most two come a second."""

AGGREGATES_LINGER_SECONDS = 60.0
"""How long the aggregate watches stay when every service has a direct watch again."""

TICK_SECONDS = 0.25

GIVE_WAY_SECONDS = 0.006
"""The listing and the nodes are long answers for those who are in no hurry, and come at the same moment as those of
direct watches: decoded at once, they would hold the interpreter while a change of 5 ms waits (docs/scaling.md)."""

LISTING_RATE, LISTING_BYTES = 2.0, 1e6
AGGREGATE_RATE, AGGREGATE_BURST, AGGREGATE_BYTES = 20.0, 20.0, 6e6
"""A quiet aggregate watch asks again at once; a busy one so that it costs at most so many wakes and bytes a second."""

SERVICE_RATE, SERVICE_BURST = 20.0, 250.0
ALL_RATE, ALL_BURST = 300.0, 5000.0
"""Reads a second, and at once after a quiet while: of one service (by its direct watch, and as much by all others), and
of all services together. First reads and probes are not among them: the read pool and index_poller.py bound those.
"""


class CatalogListener(Protocol):
    """Who is told. Called from watcher threads, one call at a time per service; must be quick."""

    def on_listing(self, datacenter: str, listing: Listing | Unknown) -> None:
        """The services of a datacenter changed, or could not be listed."""

    def on_view(self, query: Query, state: Knowledge, seen: float, lend: InlineExecutor | None = None) -> None:
        """The instances of a service changed (`seen`: clock when the answer was there), or could not be read.

        With `lend` the calling thread has time: what follows from the news may be given to it, which spares the way
        over another thread (measured: 0.24 ms of the 4.6 ms from Consul's answer to the API server's).
        """

    def on_rebuilt(self, datacenter: str) -> None:
        """Consul is another one than before, or went back in time. Called before any view of it."""

    def on_trouble(self, datacenter: str, reason: str | None) -> None:
        """A datacenter cannot be asked as it should be, or (None) can again."""

    def on_mismatch(self, query: Query, reason: str) -> None:
        """Consul's streaming backend showed this service otherwise than its catalog; once for each service."""


@dataclass(slots=True, eq=False)
class _AggregateWatch:
    """An aggregate watch: its connection, and its last body. Unsynced while it may have missed something."""

    name: str
    client: ConsulClient
    statuses: frozenset[Status] = frozenset()
    body: Any = None
    index: int = 0
    unsynced: bool = True


@dataclass(frozen=True, slots=True)
class _Find:
    """A change that an audit found, and the service's index since.

    `in_listing`: such a change moves the listing's index, and no direct watch was to see it. `polled_from`: when the
    last poll that had ended by then began.
    """

    subscription: Subscription
    at: float
    index: int
    in_listing: bool
    polled_from: float


class DatacenterWatch:
    """See the module. `start`, `stop`, `join`, `want` and `status` are for others, from any thread."""

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
        self.name = name
        self._config = config
        self._listener = listener
        self._budget = budget
        self._retry = retry
        self._failed = failed
        self._clock = clock
        self._stop = threading.Event()
        self._want_lock = threading.Lock()

        self._gate = ConsistencyGate(name, self._rebuilt, self._went_back, self._sure_again, self._stop)
        self._conditions = Conditions(self._tell_trouble)
        self._table = SubscriptionTable(listener.on_view, config.namespace, config.partition)
        self._listing_client = self._client(GIVE_WAY_SECONDS)
        readers, has_aggregates, slots = divide(budget)
        self._aggregates = self._make_aggregates() if has_aggregates else ()
        self._aggregates_needed = threading.Event()
        self._aggregates_until = float("-inf")
        self._reader_clients = [self._client() for _ in range(readers)]
        self._pool = ReadPool(
            self._reader_clients,
            f"consul-reader-{name}",
            self._ready,
            failed,
            clock,
            begin=ConsulClient.connect,  # a probe then soon tells whether what was opened at the start leads somewhere
        )
        self._reader_attempts = 0
        self._slowed = 0
        self._slow_until = float("-inf")
        self._in_hand: dict[Subscription, set[str]] = {}
        self._hidden: dict[Query, str] = {}
        self._hidden_lock = threading.Lock()
        self._concurrency = AdaptiveConcurrency(slots, clock)
        self._all_bucket = TokenBucket(ALL_RATE, ALL_BURST, clock)
        self._direct = DirectWatches(
            f"consul-direct-{name}",
            self._table,
            self._concurrency,
            self._client,
            self._direct_watch,
            self._released,
            failed,
            self._stop,
        )
        self._poller = IndexPoller(name, self, self._pool, clock)

        self._listing: Listing | None = None
        self._listing_told: Listing | Unknown | None = None
        self._listing_index = 0
        self._listing_changes: deque[tuple[float, int]] = deque(maxlen=LISTING_CHANGES)
        self._last_success: float | None = None
        self._unverified = False
        self._next_leader_probe = float("-inf")
        self._leader_asked = False
        self._renewed_at = float("-inf")
        self._generation = config.access.parts(config).generation()
        self._next_full_audit = clock() + config.verify_seconds
        self._streamed: dict[Subscription, float] = {}
        self._mismatches: set[Subscription] = set()
        self._next_index_check = clock() + INDEX_CHECK_SECONDS
        self._checking_indexes = False
        self.index_checks = 0
        self._judging: list[_Find] = []
        self.found = 0
        self._found_lately: tuple[str, ...] = ()
        self._threads = [
            guarded_thread(f"consul-housekeeping-{name}", self._housekeeping, failed),
            guarded_thread(f"consul-listing-{name}", self._listing_watch().run, failed),
            *(
                guarded_thread(f"consul-{aggregate.name}-{name}", partial(self._follow_aggregate, aggregate), failed)
                for aggregate in self._aggregates
            ),
        ]

    # ------------------------------------------------------------------ for the catalog

    def start(self) -> None:
        """Begin."""
        self._pool.start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End every request; nothing is told any more once `join` has returned."""
        self._stop.set()
        self._aggregates_needed.set()
        self._pool.close()
        for client in (
            self._listing_client,
            *(aggregate.client for aggregate in self._aggregates),
            *self._reader_clients,
        ):
            client.close()
        self._direct.close()
        self._gate.wake()

    def join(self, deadline: float) -> bool:
        """Wait for the threads until `deadline` (time.monotonic); returns whether all have ended."""
        threads = [*self._threads, *self._pool.threads, *self._direct.close()]
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(deadline - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in threads)

    def want(self, queries: Iterable[Query]) -> None:
        """Watch exactly these from now on."""
        with self._want_lock:
            added, removed = self._table.want(queries)
            if not added and not removed:
                return
            self._direct.remove(removed)
            self._mismatches.difference_update(removed)
            for subscription in removed:
                self._note_hidden(subscription, Unknown("not wanted any more"))
            rest = self._direct.add(added)
        if self._table.unwatched:
            self._start_aggregates()
        for subscription in rest:
            self._refresh(subscription, urgency=Urgency.FIRST)
        trouble = self._conditions.current
        if trouble is not None:
            self._tell_unread(added, trouble)

    def status(self) -> dict[str, Any]:
        """Figures for readiness, metrics and people."""
        now = self._clock()
        connected = sum(c.connected for c in (self._listing_client, *self._reader_clients)) + self._direct.connected
        return {
            "connected": self._conditions.current is None and self._last_success is not None,
            "trouble": self._conditions.current,
            "seconds_since_last_success": None if self._last_success is None else round(now - self._last_success, 1),
            "connections": connected + sum(aggregate.client.connected for aggregate in self._aggregates),
            "budget": self._budget - (self._concurrency.total - self._concurrency.limit),
            "budget_configured": self._budget,
            "services": len(self._table.subscriptions),
            "direct_watches": self._direct.in_use,
            "aggregate_watches": self._aggregates_needed.is_set() and bool(self._aggregates),
            "reads_waiting": len(self._pool),
            "index_polls": self._poller.polled,
            "index_poll_seconds": round(self._poller.last_seconds, 3),
            "probes": self._poller.probes,
            "streaming_mismatches": sorted({e.query.service for e in tuple(self._mismatches)}),
            "index_checks": self.index_checks,
            "audits": self._poller.audited,
            "missed_changes": self.found,
            "missed_lately": list(self._found_lately),
            "confirmations": self._gate.confirmations,
        }

    # ------------------------------------------------------------------ small parts

    def _client(self, rest_seconds: float = 0.0) -> ConsulClient:
        return ConsulClient(self._config, self._gate.mark_suspect, rest_seconds)

    def _watch(
        self,
        client: ConsulClient,
        ask: Callable[[int, float], Answer],
        take: Callable[[Answer], bool],
        fail: Callable[[BridgeError], None],
        buckets: tuple[TokenBucket, ...],
        byte_bucket: TokenBucket | None = None,
    ) -> Watch:
        return Watch(
            ask=ask,
            take=take,
            fail=fail,
            gate=self._gate,
            client=client,
            sleep=self._gate.sleep,
            stop=self._stop,
            buckets=buckets,
            byte_bucket=byte_bucket,
            retry=self._retry,
            wait_seconds=self._config.wait_seconds,
        )

    def _broke(self, error: BridgeError) -> None:
        """Something failed: what does that say about the datacenter as a whole?"""
        if isinstance(error, ThrottledError):
            self._concurrency.throttled()
            self._conditions.set("throttled", str(error))
        elif isinstance(error, TransientError) and error.fault_of_server:
            self._gate.mark_suspect(str(error))

    def _read_failed(self, error: BridgeError) -> None:
        """A reader's question failed; when Consul asks us to be slower, all readers rest together."""
        self._broke(error)
        now = self._clock()
        if isinstance(error, ThrottledError) and now >= self._slow_until:
            self._slowed += 1
            self._slow_until = now + self._retry.wait_seconds(self._slowed, error)

    def _tell_trouble(self, reason: str | None) -> None:
        self._listener.on_trouble(self.name, reason)
        if reason is not None:
            self._tell_unread(self._table.all(), reason)

    def _tell_unread(self, subscriptions: Iterable[Subscription], reason: str) -> None:
        """Services that were never read are reported as unreadable; the others keep what is known."""
        for subscription in subscriptions:
            if subscription.state is None:
                self._table.publish(subscription, Unknown(reason), self._clock(), generation=0)

    def _note_hidden(self, subscription: Subscription, state: Knowledge) -> None:
        """Services that Consul hides from our token are a trouble of the datacenter until the last can be seen."""
        with self._hidden_lock:
            before = bool(self._hidden)
            if isinstance(state, Unknown) and not subscription.removed:
                self._hidden[subscription.query] = state.reason
            else:
                self._hidden.pop(subscription.query, None)
            first = next(iter(self._hidden.items()), None)
            if bool(first) != before:
                self._conditions.set("rights", None if first is None else f"{first[0].service}: {first[1]}. A policy "
                                   f"that suffices: {ENOUGH_POLICY}")  # fmt: skip

    def _sure_again(self) -> None:
        """Whichever thread made sure of Consul: it can be read again."""
        self._reader_attempts = 0
        self._last_success = self._clock()
        self._conditions.set("confirm", None)

    def _rebuilt(self) -> None:
        """Consul is another one: say so, then forget every index and have everything read again."""
        self._listener.on_rebuilt(self.name)
        self._poller.forget()
        self._listing_changes.clear()
        for aggregate in self._aggregates:
            aggregate.unsynced = True
        with self._table.lock:
            for subscription in self._table.subscriptions.values():
                subscription.index = 0
                subscription.verified_index = False
        for subscription in self._table.all():
            if not subscription.watch_assigned:
                self._refresh(subscription)
        self._direct.wake()
        self._listing_client.wake()
        for aggregate in self._aggregates:
            aggregate.client.wake()

    def _went_back(self) -> None:
        """The same Consul, with an older state (a restored snapshot) or asked through a server that lags.

        A query that waits for a higher index would sleep on: all indexes are asked for.
        """
        self._next_index_check = self._clock()
        for subscription in tuple(self._streamed):
            self._streamed[subscription] = float("-inf")
        self._poller.audit()

    # ------------------------------------------------------------------ the listing

    def _listing_watch(self) -> Watch:
        def ask(index: int, wait: float) -> Answer:
            return self._listing_client.listing(self.name, index, wait)

        return self._watch(
            self._listing_client,
            ask,
            self._take_listing,
            self._listing_failed,
            (TokenBucket(LISTING_RATE, LISTING_RATE, self._clock),),
            TokenBucket(LISTING_BYTES, LISTING_BYTES, self._clock),
        )

    def _take_listing(self, answer: Answer) -> bool:
        self._last_success = self._clock()
        self._conditions.set("listing", None)
        moved = answer.index != self._listing_index
        self._listing_index = answer.index
        self._gate.observe_listing(answer.index)
        state = decode.listing_of(answer)
        before = self._listing
        if state != self._listing_told:
            self._listing_told = state
            self._listener.on_listing(self.name, state)
        if moved:
            self._listing_changes.append((self._clock(), answer.index))
            if self._table.unwatched:
                self._poller.poll_changed()
            for subscription in tuple(self._mismatches):  # an instance that gets another name leaves no index behind
                self._refresh(subscription, even_direct=True)
        if isinstance(state, Listing):
            self._listing = state
            for service in aggregate_watch.renamed(before, state) if before is not None else ():
                self._notify(self._table.of_service(service), 0)
        return True

    def _listing_failed(self, error: BridgeError) -> None:
        self._broke(error)
        reason = str(error)
        self._conditions.set("listing", reason)
        if self._listing_told != Unknown(reason):
            self._listing_told = Unknown(reason)
            self._listener.on_listing(self.name, self._listing_told)

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
            seen = self._clock()
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
            self._note_hidden(subscription, state)
            if isinstance(state, Unknown):
                raise PermanentError(state.reason)  # asked again slowly: people mend it
            work: list[Callable[[], None]] = []
            published = self._table.publish(subscription, state, seen, generation if plain else None, work.append)
            if published is Published.STALE:
                return False
            if plain:
                doubt, doubted = None, doubt
                if doubted is not None and self._agrees(subscription, doubted, state, answer.index):
                    # its index may be the higher one: a service's own does not move when an instance gets another name
                    watch.position.index = max(watch.position.index, doubted.index)
                subscription.watched = True
            self._learn_index(subscription, answer)
            if streaming and published is Published.CHANGED:
                self._streamed.setdefault(subscription, seen)
            subscription.attempts = 0
            if published is Published.CHANGED:
                self._direct.changed(subscription)
            for lent in work:
                lent()
            if published is Published.CHANGED:
                self._renamed(subscription, before)
            # whether something is still hidden, only a plain read says
            return plain or subscription.known is None or not subscription.known.acl_filtered

        def fail(error: BridgeError) -> None:
            self._broke(error)
            subscription.watched = False
            self._table.publish(
                subscription, Unknown(str(error), lasting=isinstance(error, PermanentError)), self._clock()
            )

        own = TokenBucket(SERVICE_RATE, SERVICE_BURST, self._clock)
        watch = self._watch(client, ask, take, fail, (own, self._all_bucket))
        return watch

    def _agrees(self, subscription: Subscription, doubt: streamed.Doubt, state: Known, index: int) -> bool:
        """A plain read followed on an answer that was in doubt: does the catalog show the same?"""
        if state.instances == doubt.shown.instances:
            return True
        if not state.acl_filtered and (doubt.proof or index == doubt.index):
            self._mismatched(subscription, doubt.reason)
        return False

    def _mismatched(self, subscription: Subscription, reason: str) -> None:
        """Consul's two backends differ about a service: from now on its direct watch waits on the catalog."""
        if subscription.mismatch or subscription.removed:
            return
        subscription.mismatch = reason
        self._mismatches.add(subscription)
        self._streamed.pop(subscription, None)
        self._listener.on_mismatch(subscription.query, reason)

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
                    self._refresh(other, even_direct=bool(other.mismatch))

    def _compare_soon(self, now: float) -> None:
        """Have services read of which the streaming backend showed a change some time ago."""
        for subscription, at in tuple(self._streamed.items()):
            if subscription.removed or not subscription.watched:
                self._streamed.pop(subscription, None)
            elif now - at >= COMPARE_SECONDS:
                self._streamed[subscription] = now  # again later, unless a read settles it
                self._refresh(subscription, Urgency.POLL, even_direct=True)

    def _compared(self, subscription: Subscription, published: Published) -> None:
        """A plain read of a service with a direct watch: was what the streaming backend showed right?"""
        self._streamed.pop(subscription, None)
        if published is Published.CHANGED and subscription.watched and not subscription.mismatch:
            self._pool.put(Urgency.POLL, partial(self._confirm_mismatch, subscription), CONFIRM_SECONDS)

    def _confirm_mismatch(self, subscription: Subscription, client: ConsulClient) -> None:
        """Ask both backends; the streaming one answers at once what it has when any index is new to us."""
        try:
            streaming = client.health_service(subscription.query, index=1, wait=1.0)
            catalog = client.health_service(subscription.query, mode=Mode.LEADER)
            shown, there = decode.view_of(streaming), decode.view_of(catalog)
        except (TransientError, PermanentError) as error:
            self._read_failed(error)
            return
        if (
            not isinstance(shown, Known)
            or not isinstance(there, Known)
            or there.acl_filtered
            or not subscription.watched
        ):
            return
        told_apart = streaming.query_backend == STREAMING and streaming.index == catalog.index
        if told_apart and shown.instances != there.instances and not self._gate.suspect:
            self._mismatched(subscription, "at one index it shows something else")
            self._direct.wake(subscription)

    def _check_indexes(self, client: ConsulClient) -> None:
        """Ask for the indexes of services with a direct watch, as the last plain reads had them.

        Services that the streaming backend does not watch are read: the catalog's own index misses some changes.
        """
        watched = [e for e in self._table.all() if e.watched]
        for subscription in watched:
            if subscription.mismatch:
                self._refresh(subscription, Urgency.POLL, even_direct=True)
        subscriptions = [e for e in watched if not e.mismatch and e not in self._streamed]
        try:
            for subscription, index in zip(
                subscriptions, client.probe_services([e.query for e in subscriptions], Mode.LEADER), strict=True
            ):
                if index is None:
                    index = client.probe_service(subscription.query, Mode.LEADER).index
                if index != subscription.index and subscription.watched and subscription not in self._streamed:
                    self._refresh(subscription, Urgency.POLL, even_direct=True)
            self.index_checks += 1
        except (TransientError, PermanentError) as error:
            self._read_failed(error)
        finally:
            self._checking_indexes = False

    def _released(self, subscription: Subscription) -> None:
        """A service lost its direct watch: from here on aggregate watches and index polls look after it."""
        self._start_aggregates()
        self._refresh(subscription)

    # ------------------------------------------------------------------ aggregate watches

    def _make_aggregates(self) -> tuple[_AggregateWatch, ...]:
        return (
            _AggregateWatch("critical", self._client(), frozenset({Status.CRITICAL, Status.MAINTENANCE})),
            _AggregateWatch("warning", self._client(), frozenset({Status.WARNING})),
            _AggregateWatch("nodes", self._client(GIVE_WAY_SECONDS)),
        )

    def _start_aggregates(self) -> None:
        self._aggregates_until = self._clock() + AGGREGATES_LINGER_SECONDS
        self._aggregates_needed.set()

    def _follow_aggregate(self, aggregate: _AggregateWatch) -> None:
        """An aggregate watch's thread: idle while every service has a direct watch."""
        watch = self._aggregate_loop(aggregate)
        while not self._stop.is_set():
            if not self._aggregates_needed.is_set():
                aggregate.unsynced = True
                watch.position.failed()
                aggregate.client.disconnect()
                self._conditions.set(aggregate.name, None)  # no query runs that would notice the recovery
                self._aggregates_needed.wait()
                continue
            watch.step()

    def _aggregate_loop(self, aggregate: _AggregateWatch) -> Watch:
        def ask(index: int, wait: float) -> Answer:
            aggregate.unsynced = aggregate.unsynced or index == 0
            if aggregate.statuses:
                return aggregate.client.state(aggregate.name, self.name, index, wait)
            return aggregate.client.nodes(self.name, index, wait)

        def take(answer: Answer) -> bool:
            if aggregate.statuses:
                self._take_checks(aggregate, answer)
            else:
                self._take_nodes(aggregate, answer)
            aggregate.unsynced = False
            self._conditions.set(aggregate.name, None)
            return True

        def fail(error: BridgeError) -> None:
            self._broke(error)
            self._conditions.set(aggregate.name, str(error))

        return self._watch(
            aggregate.client,
            ask,
            take,
            fail,
            (TokenBucket(AGGREGATE_RATE, AGGREGATE_BURST, self._clock),),
            TokenBucket(AGGREGATE_BYTES, AGGREGATE_BYTES, self._clock),
        )

    def _take_checks(self, aggregate: _AggregateWatch, answer: Answer) -> None:
        before, after = aggregate.body or {}, decode.checks_of(answer)
        since = aggregate.index
        aggregate.body, aggregate.index = after, answer.index
        if not aggregate.unsynced:
            self._notify_hinted(aggregate_watch.flips(before, after, since))
            return
        self._read_again_what_is_in_hand()
        self._notify_hinted(aggregate_watch.hints_after_gap(before, after))
        there = {(node.lower(), check) for node, check in after}
        for subscription in self._table.all():
            if not subscription.watched and aggregate_watch.contradicts(
                instances_of(subscription), aggregate.statuses, there
            ):
                self._notify((subscription,), 0)

    def _take_nodes(self, aggregate: _AggregateWatch, answer: Answer) -> None:
        first, before, after = aggregate.body is None, aggregate.body or {}, decode.nodes_of(answer)
        aggregate.body = after
        if aggregate.unsynced:
            self._read_again_what_is_in_hand()
        self._gate.observe(answer.index, dict(after))
        if first:
            hints = aggregate_watch.ChangeHints(nodes={node: modified for node, (_, modified) in after.items()})
            for node, index in hints.nodes.items():
                self._notify(self._on_node(node), index)
            return
        hints, new = aggregate_watch.moved_nodes(before, after)
        self._notify_hinted(hints)
        for node in new:
            self._ask_node(node)

    def _notify_hinted(self, hints: aggregate_watch.ChangeHints) -> None:
        for service, index in hints.services.items():
            self._notify(self._table.of_service(service), index)
        for (node, identity), service in hints.instances.items():
            for subscription in self._on_node(node):
                if subscription.query.service.lower() != service.lower() and subscription.has(node, identity):
                    self._notify((subscription,), 0)
        for node, index in hints.nodes.items():
            self._notify(self._on_node(node), index)
            if self._table.filtered:
                self._ask_node(node, whole=True)  # a filter may hide from the views what lives there

    def _notify(self, subscriptions: Iterable[Subscription], index: int) -> None:
        now = self._clock()
        for subscription in subscriptions:
            subscription.last_notified_at = now
            if not subscription.watched and (not index or subscription.index < index):
                self._refresh(subscription)

    def _on_node(self, node: str) -> tuple[Subscription, ...]:
        """Who has an instance on a node; who is being read is asked when that is known."""
        with self._table.lock:
            for suspects in self._in_hand.values():
                suspects.add(node.lower())
        return self._table.on_node(node)

    def _read_again_what_is_in_hand(self) -> None:
        """An aggregate watch begins to listen: what is being read may be older than that, which cannot be told yet."""
        with self._table.lock:
            for subscription in self._in_hand:
                subscription.again = True

    def _ask_node(self, node: str, *, whole: bool = False, attempt: int = 0, delay_seconds: float = 0.0) -> None:
        if node in UNADDRESSABLE:
            return  # the audit of services finds what changes there
        self._pool.put(Urgency.NOW, partial(self._read_node, node, whole, attempt), delay_seconds)

    def _read_node(self, node: str, whole: bool, attempt: int, client: ConsulClient) -> None:
        """Refresh what changed on a node, or (`whole`) every service that is there, whatever the views say."""
        try:
            self.node_moved(client, node, whole)
        except (TransientError, PermanentError) as error:
            self._read_failed(error)
            delay = self._policy(error).wait_seconds(attempt + 1, error)
            self._ask_node(node, whole=whole, attempt=attempt + 1, delay_seconds=delay)

    # ------------------------------------------------------------------ index polls

    def services_to_probe(self, every: bool) -> list[Subscription]:
        """Services that have been read: all, or only those that no direct watch looks after."""
        return [e for e in self._table.all() if e.known is not None and (every or not e.watched)]

    def nodes_to_probe(self) -> list[str] | None:
        """All nodes, from the aggregate watch; None when it has not answered yet."""
        aggregate = self._aggregates[-1] if self._aggregates else None
        return (
            None
            if aggregate is None or aggregate.unsynced or aggregate.body is None
            else sorted(aggregate.body.keys() - UNADDRESSABLE)
        )

    def node_moved(self, client: ConsulClient, node: str, whole: bool = False) -> None:
        """A node's index moved: refresh what changed on it.

        A view is older than a change when its index is lower than that change's; what went from a node leaves no index
        behind, but is still in the views; so is what has another name now.
        """
        modified, there = decode.services_on(client.node_services(node, self.name))
        for service, index in there.values():
            self._notify(self._table.of_service(service), 0 if whole else index)
        for subscription in self._on_node(node):
            self._notify((subscription,), 0 if whole or _gone(subscription, node, there) else modified)

    def audit_node(self, client: ConsulClient, node: str) -> None:
        """A node's index moved since the last audit: have the services read that lost an instance there."""
        _, there = decode.services_on(client.node_services(node, self.name))
        for subscription in self._table.on_node(node):
            if _gone(subscription, node, there):
                self.service_moved(subscription, auditing=True)

    def service_moved(self, subscription: Subscription, auditing: bool) -> None:
        """A poll saw a service's index move."""
        if not auditing:
            subscription.last_notified_at = self._clock()
        else:
            with self._table.lock:
                subscription.auditing = not (
                    subscription.queued or subscription.reading
                )  # else another watch announced it already
        self._refresh(subscription, even_direct=auditing)

    def probe_failed(self, error: TransientError | PermanentError, attempt: int) -> float:
        """A poll cannot go on; for how many seconds it is to rest."""
        self._read_failed(error)
        return self._policy(error).wait_seconds(attempt, error)

    def _judge(self) -> None:
        """Of what an audit found, count what no watch announced, before or after."""
        now = self._clock()
        late = [find for find in self._judging if now - find.at >= JUDGE_SECONDS]
        self._judging = [find for find in self._judging if now - find.at < JUDGE_SECONDS]
        for find in late:
            # a change that moves the listing is excused until a poll that began after that move has ended; a check's
            # index may be higher than any of the listing, then the last move counts
            moves = tuple(self._listing_changes)
            moved = next((at for at, index in moves if index >= find.index), moves[-1][0] if moves else float("-inf"))
            excused = find.in_listing and moved >= find.polled_from
            if (
                not excused
                and find.subscription.last_notified_at < find.at - JUDGE_SECONDS
                and not find.subscription.removed
            ):
                self.found += 1
                self._found_lately = (*self._found_lately, find.subscription.query.service)[-5:]

    def _heard(self, subscription: Subscription) -> bool:
        """Whether a change of this service was to be noticed by now: one that was not noticed is a miss then."""
        if subscription.watched:
            return True
        if subscription.covered_by_aggregate and self._aggregates:
            return not any(aggregate.unsynced for aggregate in self._aggregates)
        return not self._poller.pending  # polls are all there is

    # ------------------------------------------------------------------ single reads

    def _ready(self, client: ConsulClient) -> bool:
        """Before a reader's next job: make sure of Consul. False: it could not be done, and we waited."""
        if self._stop.is_set():
            return True
        pause = self._slow_until - self._clock()
        if pause > 0:
            self._stop.wait(pause)
            return False
        if not self._gate.suspect:
            if self._conditions.has("confirm"):  # told by a thread whose own try failed while another one succeeded
                self._conditions.set("confirm", None)
            return True
        try:
            self._gate.verify(client)
        except (TransientError, PermanentError) as error:
            self._reader_attempts += 1
            self._broke(error)
            self._conditions.set("confirm", str(error))
            self._gate.sleep(self._policy(error).wait_seconds(self._reader_attempts, error))
            return False
        return True

    def _refresh(
        self,
        subscription: Subscription,
        urgency: Urgency = Urgency.NOW,
        delay_seconds: float = 0.0,
        *,
        even_direct: bool = False,
    ) -> None:
        """Have a service read again; many requests at once are one read, one during a read is another read after it."""
        with self._table.lock:
            if subscription.removed or (subscription.watched and not even_direct):
                return
            if subscription.reading:
                subscription.again = True
            if subscription.queued or subscription.reading:
                return
            subscription.queued = True
            # a token bucket in one number: every read moves it by what it costs
            now = self._clock()
            subscription.paid_until = max(subscription.paid_until, now) + 1.0 / SERVICE_RATE
            spacing = subscription.paid_until - now - SERVICE_BURST / SERVICE_RATE
        self._pool.put(urgency, partial(self._pay_and_read, subscription), max(delay_seconds, spacing))

    def _pay_and_read(self, subscription: Subscription, client: ConsulClient) -> None:
        """Read a service as soon as all of them together are not read too often. First reads are free."""
        pause = self._all_bucket.take() if subscription.known is not None else 0.0
        if pause:
            self._pool.put(Urgency.NOW, partial(self._read, subscription), pause)
        else:
            self._read(subscription, client)

    def _read(self, subscription: Subscription, client: ConsulClient) -> None:
        with self._table.lock:
            subscription.queued = False
            if subscription.removed:
                return
            subscription.reading = True
            self._in_hand[subscription] = set()
            auditing, subscription.auditing = subscription.auditing, False
            generation = subscription.generation
        delay = None
        try:
            delay = self._read_once(subscription, client, generation, auditing)
        except CancelledError:
            delay = 0.0
            raise
        finally:
            with self._table.lock:
                subscription.reading = False
                overtaken = not self._in_hand.pop(subscription).isdisjoint(subscription.nodes)
                again, subscription.again = subscription.again or overtaken, False
            if (again or delay is not None) and not self._stop.is_set():
                self._refresh(subscription, delay_seconds=0.0 if again else delay or 0.0)

    def _read_once(
        self, subscription: Subscription, client: ConsulClient, generation: int, auditing: bool
    ) -> float | None:
        """One read; returns after how many seconds there must be another (None: it is done)."""
        before = subscription.known
        mode = Mode.STALE if before is None else Mode.LEADER
        try:
            answer = client.health_service(subscription.query, mode=mode)
            seen = self._clock()
            state = decode.proved(answer, before, waited=False) or Unknown(decode.HIDDEN)
        except (TransientError, PermanentError) as error:
            subscription.attempts += 1
            self._read_failed(error)
            if subscription.watched:
                return None
            if not self._gate.suspect or subscription.state is None:
                self._table.publish(
                    subscription, Unknown(str(error), lasting=isinstance(error, PermanentError)), self._clock()
                )
            return self._policy(error).wait_seconds(subscription.attempts, error)
        if self._gate.suspect:
            return 0.0
        published = self._table.publish(subscription, state, seen, generation)
        if published is Published.STALE:
            return None if subscription.watched else 0.0
        subscription.attempts = 0
        self._slowed = 0
        self._last_success = seen
        if not subscription.verified_index:
            self._unverified = True
        self._note_hidden(subscription, state)
        self._learn_index(subscription, answer)
        if isinstance(state, Unknown):
            return PERMANENT_RETRY.wait_seconds(3)
        self._compared(subscription, published)
        if published is Published.CHANGED:
            self._direct.changed(subscription)
            self._renamed(subscription, before)
            if auditing and self._heard(subscription):
                in_listing = not subscription.watched and _registered(before) != _registered(subscription.known)
                self._judging.append(
                    _Find(subscription, seen, subscription.index, in_listing, self._poller.polled_from)
                )
        return None

    def _learn_index(self, subscription: Subscription, answer: Answer) -> None:
        if answer.query_backend != STREAMING:
            subscription.index = answer.index

    def _policy(self, error: BridgeError) -> RetryPolicy:
        return PERMANENT_RETRY if isinstance(error, PermanentError) else self._retry

    # ------------------------------------------------------------------ housekeeping

    def _housekeeping(self) -> None:
        """What is due by the clock."""
        while not self._stop.wait(TICK_SECONDS):
            self._tick(self._clock())

    def _tick(self, now: float) -> None:
        if self._table.unwatched:
            self._start_aggregates()
        elif now >= self._aggregates_until and self._aggregates_needed.is_set() and not self._stop.is_set():
            self._aggregates_needed.clear()
        generation = self._config.access.parts(self._config).generation()
        if generation != self._generation:  # certificates or tokens are other ones
            self._generation = generation
            self._gate.hurry()
            self._pool.hurry()
        if now >= self._next_leader_probe and not self._leader_asked:
            self._leader_asked = True
            self._next_leader_probe = now + LEADER_PROBE_SECONDS
            self._pool.put(Urgency.NOW, self._probe_leader)
        self._compare_soon(now)
        if now >= self._next_index_check and not self._checking_indexes:
            self._checking_indexes = True
            self._next_index_check = now + INDEX_CHECK_SECONDS
            self._pool.put(Urgency.POLL, self._check_indexes)
        if now >= self._next_full_audit:
            self._next_full_audit = now + self._config.verify_seconds
            self._poller.audit()
        if self._table.unwatched and not self._aggregates:
            self._poller.poll_changed()  # without aggregate watches polls are all there is
        elif self._table.unwatched and self._unverified and not len(self._pool):
            self._unverified = False
            self._poller.poll_unverified()
        self._poller.tick()
        self._judge()
        if self._concurrency.tick():
            self._direct.grown()
        since = self._concurrency.seconds_since
        if since is not None and since > 2 * LEADER_PROBE_SECONDS:
            self._conditions.set("throttled", None)

    def _probe_leader(self, client: ConsulClient) -> None:
        self._leader_asked = False
        asked_at = time.monotonic()
        kept = client.opened < asked_at
        patience = min(KEPT_SECONDS, self._config.timeout_margin_seconds)
        try:
            leader = client.leader(self.name, patience if kept else None)
        except TransientError as error:
            if not kept or time.monotonic() - asked_at < patience:
                self._leader_failed(error)
                return
            self._conditions.set("leader", str(error))
            try:
                leader = client.leader(self.name)  # the old connection is closed: this opens another one
            except (TransientError, PermanentError) as again:
                self._leader_failed(again)
                return
            self._renew_connections(asked_at)
        except PermanentError as error:
            self._leader_failed(error)
            return
        if leader:
            self._last_success = self._clock()
            self._conditions.set("leader", None)
        else:
            self._conditions.set("leader", f"the servers of {self.name} have no leader: what is known stays as it is")

    def _leader_failed(self, error: TransientError | PermanentError) -> None:
        self._read_failed(error)
        self._conditions.set("leader", str(error))

    def _renew_connections(self, opened_before: float) -> None:
        """A new connection is answered, a kept one was not: whatever waits on old ones asks again on new ones."""
        now = self._clock()
        if now - self._renewed_at < RENEWED_SECONDS:
            return
        self._renewed_at = now
        self._gate.mark_suspect("kept connections lead nowhere: another server may answer now")
        for client in (
            self._listing_client,
            *(aggregate.client for aggregate in self._aggregates),
            *self._reader_clients,
        ):
            client.wake(opened_before)
        self._direct.wake(opened_before=opened_before)


def _gone(subscription: Subscription, node: str, there: Mapping[str, tuple[str, int]]) -> bool:
    """Whether a view has an instance on a node that is `there` no more, or has another name."""
    here, name = node.lower(), subscription.query.service.lower()
    return any(
        i.node.lower() == here and there.get(i.id, ("", 0))[0].lower() != name for i in instances_of(subscription)
    )


def _registered(known: Known | None) -> frozenset[Instance]:
    """A view without the health of its instances: what registrations say."""
    instances = known.instances if known is not None else ()
    return frozenset(replace(i, status=Status.PASSING, check="") for i in instances)


def divide(budget: int) -> tuple[int, bool, int]:
    """How a budget is spent: (readers, whether there are aggregate watches, direct watches), one for the listing."""
    readers = max(1, min(4, budget // 6))
    has_aggregates = budget - 1 - readers >= 3
    return readers, has_aggregates, budget - 1 - readers - (3 if has_aggregates else 0)
