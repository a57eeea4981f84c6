"""One datacenter: every wanted service watched, within so many connections, whatever happens to Consul.

    listing watch (1)      catalog/services: names and tags; everything else of the catalog rings here without a name
    direct watches (most)  one blocking query per service, for those that changed most recently
    doorbells (3)          state/critical, state/warning, nodes: name who flipped or moved, for all other services
    readers (up to 4)      read who was named; sweeps of index probes find those whom nobody names

How nothing is missed: a view is only as good as whatever would notice its next change. So a service is covered by its
direct watch, or by doorbells and sweeps that listened BEFORE it was read, and whoever stops listening (an error, a
direct watch given to another service) has what it covered read again. What is being read at that moment counts as
read before: it is read once more, or a sweep asks for its index (`Entry.vouched`). How nothing is believed too early:
see checkpoint.py.

What a direct watch shows is compared with what a plain read would show (streamed.py): a change that does not explain
itself is read at once, every other soon after it, and what Consul's catalog has is asked for now and then. A service of
which the two differed is watched in the catalog itself from then on (`Entry.mismatch`).

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

from bridge.consul import bells, decode, streamed
from bridge.consul.board import Board, Entry, Lend, Published, instances_of
from bridge.consul.checkpoint import Checkpoint, Troubles
from bridge.consul.client import STREAMING, Answer, ConsulClient, ConsulConfig, Mode
from bridge.consul.direct import DirectWatches
from bridge.consul.faults import ENOUGH_POLICY
from bridge.consul.pace import Bucket, Throttle, jittered
from bridge.consul.readers import Readers, Urgency
from bridge.consul.sweep import Sweeper
from bridge.consul.watch import PERMANENT_RETRY, Watch
from bridge.core.model import UNADDRESSABLE, Instance, Knowledge, Known, Listing, Query, Status, Unknown
from bridge.errors import BridgeError, CancelledError, PermanentError, ThrottledError, TransientError
from bridge.retry import RetryPolicy

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

AUDIT_SECONDS = 15.0
"""How often the catalog is asked for the index of services with a direct watch: a query that waits there sleeps on when
a snapshot is restored. 60 services cost 4 probes a second."""

JUDGE_SECONDS = 5.0
"""How long a change that the verification found may still be explained by somebody who rang for it."""

RINGS = 1000
"""Rings of the listing that are remembered, to tell which of them was a change's: at most two come a second."""

BELLS_LINGER_SECONDS = 60.0
"""How long the doorbells stay when every service has a direct watch again."""

TICK_SECONDS = 0.25

GIVE_WAY_SECONDS = 0.006
"""The listing and the nodes are long answers for those who are in no hurry, and come at the same moment as those of
direct watches: decoded at once, they would hold the interpreter while a change of 5 ms waits (docs/scaling.md)."""

LISTING_RATE, LISTING_BYTES = 2.0, 1e6
BELL_RATE, BELL_BURST, BELL_BYTES = 20.0, 20.0, 6e6
"""A quiet doorbell is armed again at once; a busy one so that it costs at most so many wakes and bytes a second."""

SERVICE_RATE, SERVICE_BURST = 20.0, 250.0
ALL_RATE, ALL_BURST = 300.0, 5000.0
"""Reads a second, and at once after a quiet while: of one service (by its direct watch, and as much by all others), and
of all services together. First reads and probes are not among them: those are bounded by readers and by sweep.py.
"""


class CatalogListener(Protocol):
    """Who is told. Called from watcher threads, one call at a time per service; must be quick."""

    def on_listing(self, datacenter: str, listing: Listing | Unknown) -> None:
        """The services of a datacenter changed, or could not be listed."""

    def on_view(self, query: Query, state: Knowledge, seen: float, lend: Lend | None = None) -> None:
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
class _Bell:
    """A doorbell: its connection, and its last body. Deaf while it may have missed something."""

    name: str
    client: ConsulClient
    statuses: frozenset[Status] = frozenset()
    body: Any = None
    index: int = 0
    deaf: bool = True


@dataclass(frozen=True, slots=True)
class _Find:
    """A change that a verification found, and the service's index since.

    `rings`: the listing rings for such a change, and no direct watch was to see it. `looked_from`: when the last look
    that had ended by then began.
    """

    entry: Entry
    at: float
    index: int
    rings: bool
    looked_from: float


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

        self._checkpoint = Checkpoint(name, self._rebuilt, self._went_back, self._sure_again, self._stop)
        self._troubles = Troubles(self._tell_trouble)
        self._board = Board(listener.on_view, config.namespace, config.partition)
        self._listing_client = self._client(GIVE_WAY_SECONDS)
        readers, has_bells, slots = divide(budget)
        self._bells = self._make_bells() if has_bells else ()
        self._bells_needed = threading.Event()
        self._bells_until = float("-inf")
        self._reader_clients = [self._client() for _ in range(readers)]
        self._readers = Readers(
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
        self._in_hand: dict[Entry, set[str]] = {}
        self._hidden: dict[Query, str] = {}
        self._hidden_lock = threading.Lock()
        self._throttle = Throttle(slots, clock)
        self._all_bucket = Bucket(ALL_RATE, ALL_BURST, clock)
        self._direct = DirectWatches(
            f"consul-direct-{name}",
            self._board,
            self._throttle,
            self._client,
            self._direct_watch,
            self._released,
            failed,
            self._stop,
        )
        self._sweeper = Sweeper(name, self, self._readers, clock)

        self._listing: Listing | None = None
        self._listing_told: Listing | Unknown | None = None
        self._listing_index = 0
        self._rings: deque[tuple[float, int]] = deque(maxlen=RINGS)
        self._last_success: float | None = None
        self._unvouched = False
        self._next_leader_probe = float("-inf")
        self._leader_asked = False
        self._renewed_at = float("-inf")
        self._generation = config.access.parts(config).generation()
        self._next_verify = clock() + config.verify_seconds
        self._streamed: dict[Entry, float] = {}
        self._mismatches: set[Entry] = set()
        self._next_audit = clock() + AUDIT_SECONDS
        self._auditing = False
        self.audits = 0
        self._judging: list[_Find] = []
        self.found = 0
        self._found_lately: tuple[str, ...] = ()
        self._threads = [threading.Thread(target=self._guarded, args=(self._keep,), name=f"consul-keeper-{name}")]
        self._threads.append(
            threading.Thread(target=self._guarded, args=(self._listing_watch().run,), name=f"consul-listing-{name}")
        )
        self._threads += [
            threading.Thread(target=self._guarded, args=(partial(self._ring, bell),), name=f"consul-{bell.name}-{name}")
            for bell in self._bells
        ]
        for thread in self._threads:
            thread.daemon = True

    # ------------------------------------------------------------------ for the catalog

    def start(self) -> None:
        """Begin."""
        self._readers.start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End every request; nothing is told any more once `join` has returned."""
        self._stop.set()
        self._bells_needed.set()
        self._readers.close()
        for client in (self._listing_client, *(bell.client for bell in self._bells), *self._reader_clients):
            client.close()
        self._direct.close()
        self._checkpoint.wake()

    def join(self, deadline: float) -> bool:
        """Wait for the threads until `deadline` (time.monotonic); returns whether all have ended."""
        threads = [*self._threads, *self._readers.threads, *self._direct.close()]
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(deadline - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in threads)

    def want(self, queries: Iterable[Query]) -> None:
        """Watch exactly these from now on."""
        with self._want_lock:
            added, removed = self._board.want(queries)
            if not added and not removed:
                return
            self._direct.remove(removed)
            self._mismatches.difference_update(removed)
            for entry in removed:
                self._note_hidden(entry, Unknown("not wanted any more"))
            rest = self._direct.add(added)
        if self._board.indirect:
            self._call_bells()
        for entry in rest:
            self._refresh(entry, urgency=Urgency.FIRST)
        trouble = self._troubles.current
        if trouble is not None:
            self._tell_unread(added, trouble)

    def status(self) -> dict[str, Any]:
        """Figures for readiness, metrics and people."""
        now = self._clock()
        connected = sum(c.connected for c in (self._listing_client, *self._reader_clients)) + self._direct.connected
        return {
            "connected": self._troubles.current is None and self._last_success is not None,
            "trouble": self._troubles.current,
            "seconds_since_last_success": None if self._last_success is None else round(now - self._last_success, 1),
            "connections": connected + sum(bell.client.connected for bell in self._bells),
            "budget": self._budget - (self._throttle.total - self._throttle.limit),
            "budget_configured": self._budget,
            "services": len(self._board.entries),
            "direct_watches": self._direct.in_use,
            "doorbells": self._bells_needed.is_set() and bool(self._bells),
            "reads_waiting": len(self._readers),
            "sweeps": self._sweeper.looked,
            "sweep_seconds": round(self._sweeper.last_seconds, 3),
            "probes": self._sweeper.probes,
            "streaming_mismatches": sorted({e.query.service for e in tuple(self._mismatches)}),
            "audits": self.audits,
            "verifications": self._sweeper.verified,
            "verification_found": self.found,
            "verification_found_lately": list(self._found_lately),
            "confirmations": self._checkpoint.confirmations,
        }

    # ------------------------------------------------------------------ small parts

    def _client(self, rest_seconds: float = 0.0) -> ConsulClient:
        return ConsulClient(self._config, self._checkpoint.doubt, rest_seconds)

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - a thread that dies ends the process
            self._failed(error)

    def _watch(
        self,
        client: ConsulClient,
        ask: Callable[[int, float], Answer],
        take: Callable[[Answer], bool],
        fail: Callable[[BridgeError], None],
        buckets: tuple[Bucket, ...],
        byte_bucket: Bucket | None = None,
    ) -> Watch:
        return Watch(
            ask=ask,
            take=take,
            fail=fail,
            checkpoint=self._checkpoint,
            client=client,
            sleep=self._checkpoint.sleep,
            stop=self._stop,
            buckets=buckets,
            byte_bucket=byte_bucket,
            retry=self._retry,
            wait_seconds=self._config.wait_seconds,
        )

    def _broke(self, error: BridgeError) -> None:
        """Something failed: what does that say about the datacenter as a whole?"""
        if isinstance(error, ThrottledError):
            self._throttle.throttled()
            self._troubles.set("throttled", str(error))
        elif isinstance(error, TransientError) and error.fault_of_server:
            self._checkpoint.doubt(str(error))

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
            self._tell_unread(self._board.all(), reason)

    def _tell_unread(self, entries: Iterable[Entry], reason: str) -> None:
        """Whoever was never read is told that it cannot be read now; the others keep what is known."""
        for entry in entries:
            if entry.state is None:
                self._board.publish(entry, Unknown(reason), self._clock(), generation=0)

    def _note_hidden(self, entry: Entry, state: Knowledge) -> None:
        """Services that Consul hides from our token are a trouble of the datacenter until the last can be seen."""
        with self._hidden_lock:
            before = bool(self._hidden)
            if isinstance(state, Unknown) and not entry.removed:
                self._hidden[entry.query] = state.reason
            else:
                self._hidden.pop(entry.query, None)
            first = next(iter(self._hidden.items()), None)
            if bool(first) != before:
                self._troubles.set("rights", None if first is None else f"{first[0].service}: {first[1]}. A policy "
                                   f"that suffices: {ENOUGH_POLICY}")  # fmt: skip

    def _sure_again(self) -> None:
        """Whichever thread made sure of Consul: it can be read again."""
        self._reader_attempts = 0
        self._last_success = self._clock()
        self._troubles.set("confirm", None)

    def _rebuilt(self) -> None:
        """Consul is another one: say so, then forget every index and have everything read again."""
        self._listener.on_rebuilt(self.name)
        self._sweeper.forget()
        self._rings.clear()
        for bell in self._bells:
            bell.deaf = True
        with self._board.lock:
            for entry in self._board.entries.values():
                entry.index = 0
                entry.vouched = False
        for entry in self._board.all():
            if not entry.assigned:
                self._refresh(entry)
        self._direct.wake()
        self._listing_client.wake()
        for bell in self._bells:
            bell.client.wake()

    def _went_back(self) -> None:
        """The same Consul, with an older state (a restored snapshot) or asked through a server that lags.

        Whoever waits for a higher index would sleep on: all indexes are asked for.
        """
        self._next_audit = self._clock()
        for entry in tuple(self._streamed):
            self._streamed[entry] = float("-inf")
        self._sweeper.verify()

    # ------------------------------------------------------------------ the listing

    def _listing_watch(self) -> Watch:
        def ask(index: int, wait: float) -> Answer:
            return self._listing_client.listing(self.name, index, wait)

        return self._watch(
            self._listing_client,
            ask,
            self._take_listing,
            self._listing_failed,
            (Bucket(LISTING_RATE, LISTING_RATE, self._clock),),
            Bucket(LISTING_BYTES, LISTING_BYTES, self._clock),
        )

    def _take_listing(self, answer: Answer) -> bool:
        self._last_success = self._clock()
        self._troubles.set("listing", None)
        rang = answer.index != self._listing_index
        self._listing_index = answer.index
        self._checkpoint.observe_listing(answer.index)
        state = decode.listing_of(answer)
        before = self._listing
        if state != self._listing_told:
            self._listing_told = state
            self._listener.on_listing(self.name, state)
        if rang:
            self._rings.append((self._clock(), answer.index))
            if self._board.indirect:
                self._sweeper.look()
            for entry in tuple(self._mismatches):  # an instance that gets another name leaves no index behind
                self._refresh(entry, even_direct=True)
        if isinstance(state, Listing):
            self._listing = state
            for service in bells.renamed(before, state) if before is not None else ():
                self._ring_for(self._board.named(service), 0)
        return True

    def _listing_failed(self, error: BridgeError) -> None:
        self._broke(error)
        reason = str(error)
        self._troubles.set("listing", reason)
        if self._listing_told != Unknown(reason):
            self._listing_told = Unknown(reason)
            self._listener.on_listing(self.name, self._listing_told)

    # ------------------------------------------------------------------ direct watches

    def _direct_watch(self, client: ConsulClient, entry: Entry) -> Watch:
        generation = asked = 0
        doubt: streamed.Doubt | None = None

        def ask(index: int, wait: float) -> Answer:
            nonlocal generation, asked
            generation, asked = entry.generation, index
            mode = Mode.STALE if index or entry.known is None else Mode.LEADER
            if self._board.indirect:
                wait = min(wait, jittered(PROMOTED_WAIT_SECONDS))
            return client.health_service(entry.query, index, wait, mode, streaming=not entry.mismatch)

        def take(answer: Answer) -> bool:
            nonlocal doubt
            plain = watch.position.plain
            streaming = not plain and answer.numbering == STREAMING
            seen = self._clock()
            if not plain and answer.index != asked:
                entry.explained_at = seen  # it waited, and was woken
            view = decode.view_of(answer)
            before = entry.known
            if streaming and before is not None and isinstance(view, Known):
                certain = not entry.query.filter and not before.hidden
                doubt = streamed.doubt(answer, view, before, asked, certain=certain)
                if doubt is not None:
                    return False
            state = decode.proved(answer, before, waited=streaming, view=view)
            if state is None:
                return False
            self._note_hidden(entry, state)
            if isinstance(state, Unknown):
                raise PermanentError(state.reason)  # asked again slowly: people mend it
            work: list[Callable[[], None]] = []
            published = self._board.publish(entry, state, seen, generation if plain else None, work.append)
            if published is Published.OUTRUN:
                return False
            if plain:
                doubt, doubted = None, doubt
                if doubted is not None and self._agrees(entry, doubted, state, answer.index):
                    # its index may be the higher one: a service's own does not move when an instance gets another name
                    watch.position.index = max(watch.position.index, doubted.index)
                entry.direct = True
            self._learn_index(entry, answer)
            if streaming and published is Published.CHANGED:
                self._streamed.setdefault(entry, seen)
            entry.attempts = 0
            if published is Published.CHANGED:
                self._direct.changed(entry)
            for lent in work:
                lent()
            if published is Published.CHANGED:
                self._renamed(entry, before)
            # whether something is still hidden, only a plain read says
            return plain or entry.known is None or not entry.known.hidden

        def fail(error: BridgeError) -> None:
            self._broke(error)
            entry.direct = False
            self._board.publish(entry, Unknown(str(error), lasting=isinstance(error, PermanentError)), self._clock())

        own = Bucket(SERVICE_RATE, SERVICE_BURST, self._clock)
        watch = self._watch(client, ask, take, fail, (own, self._all_bucket))
        return watch

    def _agrees(self, entry: Entry, doubt: streamed.Doubt, state: Known, index: int) -> bool:
        """A plain read followed on an answer that was in doubt: does the catalog show the same?"""
        if state.instances == doubt.shown.instances:
            return True
        if not state.hidden and (doubt.proof or index == doubt.index):
            self._mismatched(entry, doubt.reason)
        return False

    def _mismatched(self, entry: Entry, reason: str) -> None:
        """Consul's two backends differ about a service: from now on its direct watch waits on the catalog."""
        if entry.mismatch or entry.removed:
            return
        entry.mismatch = reason
        self._mismatches.add(entry)
        self._streamed.pop(entry, None)
        self._listener.on_mismatch(entry.query, reason)

    def _renamed(self, entry: Entry, before: Known | None) -> None:
        """Who had an instance that this service gained has it no more: an id belongs to one service at a time.

        When it is registered under another name, Consul leaves the old service's index as it was.
        """
        had = {(i.node, i.id) for i in before.instances} if before is not None else set()
        name = entry.query.service.lower()
        for instance in instances_of(entry):
            if before is None or (instance.node, instance.id) in had:
                continue
            for other in self._board.on_node(instance.node):
                if other.query.service.lower() != name and other.has(instance.node, instance.id):
                    self._refresh(other, even_direct=bool(other.mismatch))

    def _compare_soon(self, now: float) -> None:
        """Have services read of which the streaming backend showed a change some time ago."""
        for entry, at in tuple(self._streamed.items()):
            if entry.removed or not entry.direct:
                self._streamed.pop(entry, None)
            elif now - at >= COMPARE_SECONDS:
                self._streamed[entry] = now  # again later, unless a read settles it
                self._refresh(entry, Urgency.SWEEP, even_direct=True)

    def _compared(self, entry: Entry, published: Published) -> None:
        """A plain read of a service with a direct watch: was what the streaming backend showed right?"""
        self._streamed.pop(entry, None)
        if published is Published.CHANGED and entry.direct and not entry.mismatch:
            self._readers.put(Urgency.SWEEP, partial(self._confirm_mismatch, entry), CONFIRM_SECONDS)

    def _confirm_mismatch(self, entry: Entry, client: ConsulClient) -> None:
        """Ask both backends; the streaming one answers at once what it has when any index is new to us."""
        try:
            streaming = client.health_service(entry.query, index=1, wait=1.0)
            catalog = client.health_service(entry.query, mode=Mode.LEADER)
            shown, there = decode.view_of(streaming), decode.view_of(catalog)
        except (TransientError, PermanentError) as error:
            self._read_failed(error)
            return
        if not isinstance(shown, Known) or not isinstance(there, Known) or there.hidden or not entry.direct:
            return
        told_apart = streaming.numbering == STREAMING and streaming.index == catalog.index
        if told_apart and shown.instances != there.instances and not self._checkpoint.doubted:
            self._mismatched(entry, "at one index it shows something else")
            self._direct.wake(entry)

    def _audit(self, client: ConsulClient) -> None:
        """Ask for the indexes of services with a direct watch, as the last plain reads had them.

        Services that the streaming backend does not watch are read: the catalog's own index misses some changes.
        """
        watched = [e for e in self._board.all() if e.direct]
        for entry in watched:
            if entry.mismatch:
                self._refresh(entry, Urgency.SWEEP, even_direct=True)
        entries = [e for e in watched if not e.mismatch and e not in self._streamed]
        try:
            for entry, index in zip(
                entries, client.probe_services([e.query for e in entries], Mode.LEADER), strict=True
            ):
                if index is None:
                    index = client.probe_service(entry.query, Mode.LEADER).index
                if index != entry.index and entry.direct and entry not in self._streamed:
                    self._refresh(entry, Urgency.SWEEP, even_direct=True)
            self.audits += 1
        except (TransientError, PermanentError) as error:
            self._read_failed(error)
        finally:
            self._auditing = False

    def _released(self, entry: Entry) -> None:
        """A service lost its direct watch: from here on doorbells and sweeps look after it."""
        self._call_bells()
        self._refresh(entry)

    # ------------------------------------------------------------------ doorbells

    def _make_bells(self) -> tuple[_Bell, ...]:
        return (
            _Bell("critical", self._client(), frozenset({Status.CRITICAL, Status.MAINTENANCE})),
            _Bell("warning", self._client(), frozenset({Status.WARNING})),
            _Bell("nodes", self._client(GIVE_WAY_SECONDS)),
        )

    def _call_bells(self) -> None:
        self._bells_until = self._clock() + BELLS_LINGER_SECONDS
        self._bells_needed.set()

    def _ring(self, bell: _Bell) -> None:
        """A doorbell's thread: idle while every service has a direct watch."""
        watch = self._bell_watch(bell)
        while not self._stop.is_set():
            if not self._bells_needed.is_set():
                bell.deaf = True
                watch.position.failed()
                bell.client.disconnect()
                self._troubles.set(bell.name, None)  # nobody asks, so nobody would hear that it is over
                self._bells_needed.wait()
                continue
            watch.step()

    def _bell_watch(self, bell: _Bell) -> Watch:
        def ask(index: int, wait: float) -> Answer:
            bell.deaf = bell.deaf or index == 0
            if bell.statuses:
                return bell.client.state(bell.name, self.name, index, wait)
            return bell.client.nodes(self.name, index, wait)

        def take(answer: Answer) -> bool:
            if bell.statuses:
                self._take_checks(bell, answer)
            else:
                self._take_nodes(bell, answer)
            bell.deaf = False
            self._troubles.set(bell.name, None)
            return True

        def fail(error: BridgeError) -> None:
            self._broke(error)
            self._troubles.set(bell.name, str(error))

        return self._watch(
            bell.client,
            ask,
            take,
            fail,
            (Bucket(BELL_RATE, BELL_BURST, self._clock),),
            Bucket(BELL_BYTES, BELL_BYTES, self._clock),
        )

    def _take_checks(self, bell: _Bell, answer: Answer) -> None:
        before, after = bell.body or {}, decode.checks_of(answer)
        since = bell.index
        bell.body, bell.index = after, answer.index
        if not bell.deaf:
            self._ring_for_named(bells.flips(before, after, since))
            return
        self._read_again_what_is_in_hand()
        self._ring_for_named(bells.rung_after_silence(before, after))
        there = {(node.lower(), check) for node, check in after}
        for entry in self._board.all():
            if not entry.direct and bells.contradicts(instances_of(entry), bell.statuses, there):
                self._ring_for((entry,), 0)

    def _take_nodes(self, bell: _Bell, answer: Answer) -> None:
        first, before, after = bell.body is None, bell.body or {}, decode.nodes_of(answer)
        bell.body = after
        if bell.deaf:
            self._read_again_what_is_in_hand()
        self._checkpoint.observe(answer.index, dict(after))
        if first:
            named = bells.Named(nodes={node: modified for node, (_, modified) in after.items()})
            for node, index in named.nodes.items():
                self._ring_for(self._on_node(node), index)
            return
        named, new = bells.moved_nodes(before, after)
        self._ring_for_named(named)
        for node in new:
            self._ask_node(node)

    def _ring_for_named(self, named: bells.Named) -> None:
        for service, index in named.services.items():
            self._ring_for(self._board.named(service), index)
        for (node, identity), service in named.instances.items():
            for entry in self._on_node(node):
                if entry.query.service.lower() != service.lower() and entry.has(node, identity):
                    self._ring_for((entry,), 0)
        for node, index in named.nodes.items():
            self._ring_for(self._on_node(node), index)
            if self._board.filtered:
                self._ask_node(node, whole=True)  # a filter may hide from the views what lives there

    def _ring_for(self, entries: Iterable[Entry], index: int) -> None:
        now = self._clock()
        for entry in entries:
            entry.explained_at = now
            if not entry.direct and (not index or entry.index < index):
                self._refresh(entry)

    def _on_node(self, node: str) -> tuple[Entry, ...]:
        """Who has an instance on a node; who is being read is asked when that is known."""
        with self._board.lock:
            for suspects in self._in_hand.values():
                suspects.add(node.lower())
        return self._board.on_node(node)

    def _read_again_what_is_in_hand(self) -> None:
        """A doorbell begins to listen: what is being read may be older than that, and nobody can tell yet."""
        with self._board.lock:
            for entry in self._in_hand:
                entry.again = True

    def _ask_node(self, node: str, *, whole: bool = False, attempt: int = 0, delay_seconds: float = 0.0) -> None:
        if node in UNADDRESSABLE:
            return  # the verification of services finds what changes there
        self._readers.put(Urgency.NOW, partial(self._read_node, node, whole, attempt), delay_seconds)

    def _read_node(self, node: str, whole: bool, attempt: int, client: ConsulClient) -> None:
        """Refresh what changed on a node, or (`whole`) every service that is there, whatever the views say."""
        try:
            self.node_moved(client, node, whole)
        except (TransientError, PermanentError) as error:
            self._read_failed(error)
            delay = self._policy(error).wait_seconds(attempt + 1, error)
            self._ask_node(node, whole=whole, attempt=attempt + 1, delay_seconds=delay)

    # ------------------------------------------------------------------ sweeps

    def services_to_probe(self, every: bool) -> list[Entry]:
        """Services that have been read: all, or only those that no direct watch looks after."""
        return [e for e in self._board.all() if e.known is not None and (every or not e.direct)]

    def nodes_to_probe(self) -> list[str] | None:
        """All nodes, from the doorbell; None when it has not answered yet."""
        bell = self._bells[-1] if self._bells else None
        return None if bell is None or bell.deaf or bell.body is None else sorted(bell.body.keys() - UNADDRESSABLE)

    def node_moved(self, client: ConsulClient, node: str, whole: bool = False) -> None:
        """A node's index moved: refresh what changed on it.

        A view is older than a change when its index is lower than that change's; what went from a node leaves no index
        behind, but is still in the views; so is what has another name now.
        """
        modified, there = decode.services_on(client.node_services(node, self.name))
        for service, index in there.values():
            self._ring_for(self._board.named(service), 0 if whole else index)
        for entry in self._on_node(node):
            self._ring_for((entry,), 0 if whole or _gone(entry, node, there) else modified)

    def verify_node(self, client: ConsulClient, node: str) -> None:
        """A node's index moved since the last verification: have the services read that lost an instance there."""
        _, there = decode.services_on(client.node_services(node, self.name))
        for entry in self._board.on_node(node):
            if _gone(entry, node, there):
                self.service_moved(entry, verifying=True)

    def service_moved(self, entry: Entry, verifying: bool) -> None:
        """A sweep saw a service's index move."""
        if not verifying:
            entry.explained_at = self._clock()
        else:
            with self._board.lock:
                entry.verifying = not (entry.queued or entry.reading)  # else somebody rang for it already
        self._refresh(entry, even_direct=verifying)

    def probe_failed(self, error: TransientError | PermanentError, attempt: int) -> float:
        """A sweep cannot go on; for how many seconds it is to rest."""
        self._read_failed(error)
        return self._policy(error).wait_seconds(attempt, error)

    def _judge(self) -> None:
        """Of what a verification found, count what nobody rang for, before or after."""
        now = self._clock()
        late = [find for find in self._judging if now - find.at >= JUDGE_SECONDS]
        self._judging = [find for find in self._judging if now - find.at < JUDGE_SECONDS]
        for find in late:
            # the listing excuses what it rings for, until a look that began after its ring has ended; a check's index
            # may be higher than any that rings, then it is the last ring that counts
            rings = tuple(self._rings)
            rang = next((at for at, index in rings if index >= find.index), rings[-1][0] if rings else float("-inf"))
            excused = find.rings and rang >= find.looked_from
            if not excused and find.entry.explained_at < find.at - JUDGE_SECONDS and not find.entry.removed:
                self.found += 1
                self._found_lately = (*self._found_lately, find.entry.query.service)[-5:]

    def _heard(self, entry: Entry) -> bool:
        """Whether somebody was to notice a change of this service by now: one that was not noticed is a miss then."""
        if entry.direct:
            return True
        if entry.covered and self._bells:
            return not any(bell.deaf for bell in self._bells)
        return not self._sweeper.pending  # sweeps are all there is

    # ------------------------------------------------------------------ single reads

    def _ready(self, client: ConsulClient) -> bool:
        """Before a reader's next job: make sure of Consul. False: it could not be done, and we waited."""
        if self._stop.is_set():
            return True
        pause = self._slow_until - self._clock()
        if pause > 0:
            self._stop.wait(pause)
            return False
        if not self._checkpoint.doubted:
            if self._troubles.has("confirm"):  # told by a thread whose own try failed while another one succeeded
                self._troubles.set("confirm", None)
            return True
        try:
            self._checkpoint.confirm(client)
        except (TransientError, PermanentError) as error:
            self._reader_attempts += 1
            self._broke(error)
            self._troubles.set("confirm", str(error))
            self._checkpoint.sleep(self._policy(error).wait_seconds(self._reader_attempts, error))
            return False
        return True

    def _refresh(
        self, entry: Entry, urgency: Urgency = Urgency.NOW, delay_seconds: float = 0.0, *, even_direct: bool = False
    ) -> None:
        """Have a service read again; many wishes at once are one read, one during a read is another read after it."""
        with self._board.lock:
            if entry.removed or (entry.direct and not even_direct):
                return
            if entry.reading:
                entry.again = True
            if entry.queued or entry.reading:
                return
            entry.queued = True
            # a token bucket in one number: every read moves it by what it costs
            now = self._clock()
            entry.paid_until = max(entry.paid_until, now) + 1.0 / SERVICE_RATE
            spacing = entry.paid_until - now - SERVICE_BURST / SERVICE_RATE
        self._readers.put(urgency, partial(self._pay_and_read, entry), max(delay_seconds, spacing))

    def _pay_and_read(self, entry: Entry, client: ConsulClient) -> None:
        """Read a service as soon as all of them together are not read too often. First reads are free."""
        pause = self._all_bucket.take() if entry.known is not None else 0.0
        if pause:
            self._readers.put(Urgency.NOW, partial(self._read, entry), pause)
        else:
            self._read(entry, client)

    def _read(self, entry: Entry, client: ConsulClient) -> None:
        with self._board.lock:
            entry.queued = False
            if entry.removed:
                return
            entry.reading = True
            self._in_hand[entry] = set()
            verifying, entry.verifying = entry.verifying, False
            generation = entry.generation
        delay = None
        try:
            delay = self._read_once(entry, client, generation, verifying)
        except CancelledError:
            delay = 0.0
            raise
        finally:
            with self._board.lock:
                entry.reading = False
                overtaken = not self._in_hand.pop(entry).isdisjoint(entry.nodes)
                again, entry.again = entry.again or overtaken, False
            if (again or delay is not None) and not self._stop.is_set():
                self._refresh(entry, delay_seconds=0.0 if again else delay or 0.0)

    def _read_once(self, entry: Entry, client: ConsulClient, generation: int, verifying: bool) -> float | None:
        """One read; returns after how many seconds there must be another (None: it is done)."""
        before = entry.known
        mode = Mode.STALE if before is None else Mode.LEADER
        try:
            answer = client.health_service(entry.query, mode=mode)
            seen = self._clock()
            state = decode.proved(answer, before, waited=False) or Unknown(decode.HIDDEN)
        except (TransientError, PermanentError) as error:
            entry.attempts += 1
            self._read_failed(error)
            if entry.direct:
                return None
            if not self._checkpoint.doubted or entry.state is None:
                self._board.publish(
                    entry, Unknown(str(error), lasting=isinstance(error, PermanentError)), self._clock()
                )
            return self._policy(error).wait_seconds(entry.attempts, error)
        if self._checkpoint.doubted:
            return 0.0
        published = self._board.publish(entry, state, seen, generation)
        if published is Published.OUTRUN:
            return None if entry.direct else 0.0
        entry.attempts = 0
        self._slowed = 0
        self._last_success = seen
        if not entry.vouched:
            self._unvouched = True
        self._note_hidden(entry, state)
        self._learn_index(entry, answer)
        if isinstance(state, Unknown):
            return PERMANENT_RETRY.wait_seconds(3)
        self._compared(entry, published)
        if published is Published.CHANGED:
            self._direct.changed(entry)
            self._renamed(entry, before)
            if verifying and self._heard(entry):
                rings = not entry.direct and _registered(before) != _registered(entry.known)
                self._judging.append(_Find(entry, seen, entry.index, rings, self._sweeper.looked_from))
        return None

    def _learn_index(self, entry: Entry, answer: Answer) -> None:
        if answer.numbering != STREAMING:
            entry.index = answer.index

    def _policy(self, error: BridgeError) -> RetryPolicy:
        return PERMANENT_RETRY if isinstance(error, PermanentError) else self._retry

    # ------------------------------------------------------------------ the keeper

    def _keep(self) -> None:
        """What is due by the clock."""
        while not self._stop.wait(TICK_SECONDS):
            self._tick(self._clock())

    def _tick(self, now: float) -> None:
        if self._board.indirect:
            self._call_bells()
        elif now >= self._bells_until and self._bells_needed.is_set() and not self._stop.is_set():
            self._bells_needed.clear()
        generation = self._config.access.parts(self._config).generation()
        if generation != self._generation:  # certificates or tokens are other ones
            self._generation = generation
            self._checkpoint.hurry()
            self._readers.hurry()
        if now >= self._next_leader_probe and not self._leader_asked:
            self._leader_asked = True
            self._next_leader_probe = now + LEADER_PROBE_SECONDS
            self._readers.put(Urgency.NOW, self._probe_leader)
        self._compare_soon(now)
        if now >= self._next_audit and not self._auditing:
            self._auditing = True
            self._next_audit = now + AUDIT_SECONDS
            self._readers.put(Urgency.SWEEP, self._audit)
        if now >= self._next_verify:
            self._next_verify = now + self._config.verify_seconds
            self._sweeper.verify()
        if self._board.indirect and not self._bells:
            self._sweeper.look()  # without doorbells sweeps are all there is
        elif self._board.indirect and self._unvouched and not len(self._readers):
            self._unvouched = False
            self._sweeper.vouch()
        self._sweeper.tick()
        self._judge()
        if self._throttle.tick():
            self._direct.grown()
        since = self._throttle.seconds_since
        if since is not None and since > 2 * LEADER_PROBE_SECONDS:
            self._troubles.set("throttled", None)

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
            self._troubles.set("leader", str(error))
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
            self._troubles.set("leader", None)
        else:
            self._troubles.set("leader", f"the servers of {self.name} have no leader: what is known stays as it is")

    def _leader_failed(self, error: TransientError | PermanentError) -> None:
        self._read_failed(error)
        self._troubles.set("leader", str(error))

    def _renew_connections(self, opened_before: float) -> None:
        """A new connection is answered, a kept one was not: whatever waits on old ones asks again on new ones."""
        now = self._clock()
        if now - self._renewed_at < RENEWED_SECONDS:
            return
        self._renewed_at = now
        self._checkpoint.doubt("kept connections lead nowhere: another server may answer now")
        for client in (self._listing_client, *(bell.client for bell in self._bells), *self._reader_clients):
            client.wake(opened_before)
        self._direct.wake(opened_before=opened_before)


def _gone(entry: Entry, node: str, there: Mapping[str, tuple[str, int]]) -> bool:
    """Whether a view has an instance on a node that is `there` no more, or has another name."""
    here, name = node.lower(), entry.query.service.lower()
    return any(i.node.lower() == here and there.get(i.id, ("", 0))[0].lower() != name for i in instances_of(entry))


def _registered(known: Known | None) -> frozenset[Instance]:
    """A view without the health of its instances: what registrations say."""
    instances = known.instances if known is not None else ()
    return frozenset(replace(i, status=Status.PASSING, check="") for i in instances)


def divide(budget: int) -> tuple[int, bool, int]:
    """How a budget is spent: (readers, whether there are doorbells, direct watches); one more is for the listing."""
    readers = max(1, min(4, budget // 6))
    has_bells = budget - 1 - readers >= 3
    return readers, has_bells, budget - 1 - readers - (3 if has_bells else 0)
