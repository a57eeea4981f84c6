"""All services of all datacenters within a budget of connections, as a stream of listings and views.

Every datacenter has its own threads, state and backoff: a dead one never touches the others.

| services wanted | how they are watched |
| --- | --- |
| no more than connections left | one blocking query each: milliseconds |
| more | the most recently changed ones so; the others are read in turn by a few readers, fairly and without end |

A service that moves from one way to the other is read plainly in between, so that no change is lost. What cannot be
read is Unknown; nothing is ever forgotten here because of that.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from bridge.consul.client import Answer, ConsulClient, ConsulConfig, TokenSource
from bridge.consul.watch import TokenBucket, Watch
from bridge.core.model import Knowledge, Known, Listing, Query, Unknown
from bridge.errors import BridgeError, CancelledError, PermanentError, TransientError
from bridge.retry import RetryPolicy, call

OVERHEAD = 2
"""Connections of a datacenter that are not for services: the listing's and the leader probe's."""
READERS = 8
"""Readers of a datacenter that has more services than connections."""
READS_PER_SECOND = 200.0
"""Pace of those readers together."""
LISTING_PER_SECOND = 2.0
"""`catalog/services` costs Consul 40 ms at 20,000 instances: it is asked no oftener than this."""
WATCH_RATE, WATCH_BURST = 20.0, 20.0
"""Tokens of one service's blocking query."""
LEADER_SECONDS = 5.0
"""Pace of the leader probe: waiting service queries do not notice the loss of leader or quorum."""


class CatalogListener(Protocol):
    """Who wants to know. Called from watching threads; must be quick."""

    def on_listing(self, datacenter: str, listing: Listing | Unknown) -> None: ...

    def on_view(self, query: Query, state: Knowledge, seen: float) -> None: ...

    def on_rebuilt(self, datacenter: str) -> None: ...

    def on_trouble(self, datacenter: str, reason: str | None) -> None: ...


def view_of(answer: Answer) -> Known | Unknown:
    """What an answer about one service proves."""
    return Unknown(answer.hidden) if answer.hidden else Known(answer.data)


def listing_of(answer: Answer) -> Listing | Unknown:
    """What an answer about all services proves: a filtered listing shows what a narrow token is meant to see."""
    found: Listing = answer.data
    return Unknown(answer.hidden) if answer.hidden and not found.services else found


class Catalog:
    """Watches until it is closed."""

    def __init__(
        self,
        config: ConsulConfig,
        datacenters: Sequence[str],
        listener: CatalogListener,
        retry: RetryPolicy,
        *,
        failed: Callable[[BaseException], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        share = config.connections // max(1, len(datacenters))
        token = TokenSource(config)
        self._datacenters = {
            dc: _Datacenter(dc, config, token, listener, retry, failed, clock, share) for dc in datacenters
        }

    def start(self) -> None:
        """Begin to list; services are read once they are wanted."""
        for datacenter in self._datacenters.values():
            datacenter.start()

    def want(self, queries: frozenset[Query]) -> None:
        """Watch exactly these services from now on."""
        for name, datacenter in self._datacenters.items():
            datacenter.want({q for q in queries if q.datacenter == name})

    def close(self, timeout_seconds: float = 5.0) -> bool:
        """Interrupt everything and wait for the threads; whether all of them ended in time."""
        threads = [t for dc in self._datacenters.values() for t in dc.stop()]
        deadline = time.monotonic() + timeout_seconds
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def status(self) -> dict[str, Any]:
        """Per datacenter, for readiness and metrics."""
        return {name: dc.status() for name, dc in self._datacenters.items()}


class _Datacenter:
    """One datacenter's watches."""

    def __init__(
        self,
        name: str,
        config: ConsulConfig,
        token: TokenSource,
        listener: CatalogListener,
        retry: RetryPolicy,
        failed: Callable[[BaseException], None],
        clock: Callable[[], float],
        connections: int,
    ) -> None:
        self._name = name
        self._config = config
        self._token = token
        self._listener = listener
        self._retry = retry
        self._failed = failed
        self._clock = clock
        self._budget = connections
        self._slots = max(1, connections - OVERHEAD)
        self._lock = threading.RLock()
        self._verifying = threading.Lock()
        self._verified_at = float("-inf")
        self._listing_index = 0
        self._stop = threading.Event()
        self._wanted: frozenset[Query] = frozenset()
        self._views: dict[Query, Knowledge] = {}
        self._direct: dict[Query, Watch] = {}
        self._changed_at: dict[Query, float] = {}
        self._retired: list[Watch] = []
        self._rota: deque[Query] = deque()
        self._pending = threading.Condition(self._lock)
        self._readers: list[threading.Thread] = []
        self._reader_clients: list[ConsulClient] = []
        self._pace = TokenBucket(READS_PER_SECOND, READERS, clock)
        self._troubles: dict[str, str] = {}
        self._last_success: float | None = None
        self._listing = self._watch(
            f"consul-{name}-services",
            lambda client, index: client.listing(name, index, config.wait_seconds),
            self._on_listing,
            TokenBucket(LISTING_PER_SECOND, 2.0, clock),
            self._on_listing_trouble,
        )
        self._prober = threading.Thread(target=self._probe, name=f"consul-{name}-leader")
        self._probe_client = ConsulClient(config, token)

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        self._listing.start()
        self._prober.start()

    def stop(self) -> list[threading.Thread]:
        """Tell everything to end; the threads to wait for."""
        with self._lock:
            self._stop.set()
            self._pending.notify_all()
            watches = [self._listing, *self._direct.values(), *self._retired]
            readers = list(self._readers)
            clients = [*self._reader_clients, self._probe_client]
        for watch in watches:
            watch.stop()
        for client in clients:
            client.close()
        threads = [*(w.thread for w in watches), *readers, self._prober]
        return [t for t in threads if t.ident is not None]

    def status(self) -> dict[str, Any]:
        with self._lock:
            age = None if self._last_success is None else round(self._clock() - self._last_success, 3)
            return {
                "connected": not self._troubles,
                "trouble": next(iter(self._troubles.values()), None),
                "last_success_seconds": age,
                "budget": self._budget,
                "connections": len(self._direct) + len(self._readers) + OVERHEAD + self._alive_retired(),
                "wanted": len(self._wanted),
                "direct": len(self._direct),
                "in_turn": len(self._wanted) - len(self._direct),
            }

    # ------------------------------------------------------------------ which services, and how

    def want(self, queries: Iterable[Query]) -> None:
        wanted = frozenset(queries)
        with self._lock:
            if wanted == self._wanted or self._stop.is_set():
                return
            gone, new = self._wanted - wanted, wanted - self._wanted
            self._wanted = wanted
            for query in gone:
                self._views.pop(query, None)
                self._changed_at.pop(query, None)
                if query in self._direct:
                    self._retire(query)
            crowded = len(wanted) > self._slots
            if crowded and not self._readers:
                self._make_room_for_readers()
            for query in sorted(new):
                if not crowded and self._open_slots() > 0:
                    self._promote(query)
                else:
                    self._rota.appendleft(query)
            if not crowded:
                for query in sorted(wanted - self._direct.keys()):
                    if self._open_slots() > 0:
                        self._promote(query)
            self._pending.notify_all()

    def _make_room_for_readers(self) -> None:
        """More services than connections: from now on some connections are for reading in turn."""
        count = max(1, min(READERS, self._slots // 4))
        while self._direct and self._slots - len(self._direct) < count:
            oldest = min(self._direct, key=lambda q: (self._changed_at.get(q, 0.0), q))
            self._retire(oldest)
            self._rota.append(oldest)
        for number in range(count):
            client = ConsulClient(self._config, self._token)
            thread = threading.Thread(target=self._read_in_turn, args=(client,), name=f"consul-{self._name}-r{number}")
            self._reader_clients.append(client)
            self._readers.append(thread)
            thread.start()

    def _open_slots(self) -> int:
        return self._slots - len(self._direct) - len(self._readers) - self._alive_retired()

    def _alive_retired(self) -> int:
        self._retired = [w for w in self._retired if w.thread.is_alive()]
        return len(self._retired)

    def _promote(self, query: Query) -> None:
        """Give a service a blocking query of its own; it begins with a plain read."""
        bucket = TokenBucket(WATCH_RATE, WATCH_BURST, self._clock)
        watch = self._watch(
            f"consul-{self._name}-{query.service[:40]}",
            lambda client, index: client.instances(query, index, self._config.wait_seconds),
            lambda answer: self._on_answer(query, answer),
            bucket,
            lambda error: self._on_query_trouble(query, error),
        )
        self._direct[query] = watch
        watch.start()

    def _retire(self, query: Query) -> None:
        watch = self._direct.pop(query)
        watch.stop()
        self._retired.append(watch)
        self._troubles.pop(str(query), None)

    def _watch(
        self,
        name: str,
        ask: Callable[[ConsulClient, int], Answer],
        deliver: Callable[[Answer], None],
        bucket: TokenBucket,
        trouble: Callable[[BridgeError | None], None],
    ) -> Watch:
        return Watch(
            name=name,
            config=self._config,
            token=self._token,
            retry=self._retry,
            ask=ask,
            deliver=deliver,
            trouble=trouble,
            verify=self._verify,
            failed=self._failed,
            bucket=bucket,
            clock=self._clock,
        )

    # ------------------------------------------------------------------ reading in turn

    def _read_in_turn(self, client: ConsulClient) -> None:
        doubt_since: float | None = None
        failures = 0
        try:
            while (query := self._next_in_turn()) is not None:
                try:
                    if doubt_since is not None:
                        self._verify(client, doubt_since)
                        doubt_since = None
                    self._on_answer(query, client.instances(query))
                    failures = 0
                    self._on_query_trouble(query, None)
                except CancelledError:
                    return
                except BridgeError as error:
                    doubt_since = self._clock() if doubt_since is None else doubt_since
                    self._on_query_trouble(query, error)
                    if isinstance(error, TransientError):
                        failures += 1
                        self._stop.wait(self._retry.wait_seconds(failures, error))
                finally:
                    self._put_back(query)
                self._stop.wait(self._pace.take())
        except BaseException as error:  # noqa: BLE001 - whatever it was, the process must hear of it
            self._failed(error)
        finally:
            client.disconnect()

    def _next_in_turn(self) -> Query | None:
        with self._pending:
            while not self._stop.is_set():
                while self._rota:
                    query = self._rota.popleft()
                    if query in self._wanted and query not in self._direct:
                        return query
                self._pending.wait()
        return None

    def _put_back(self, query: Query) -> None:
        with self._lock:
            if query in self._wanted and query not in self._direct:
                self._rota.append(query)
                self._pending.notify()

    def _prefer(self, query: Query) -> None:
        """A service that is read in turn has just changed: it takes the place of the quietest watched one."""
        now = self._clock()
        if query in self._direct or query not in self._wanted or self._stop.is_set():
            return
        if self._open_slots() <= 0:
            quietest = min(self._direct, key=lambda q: (self._changed_at.get(q, 0.0), q), default=None)
            if quietest is None or now - self._changed_at.get(quietest, 0.0) < 10.0:
                return
            self._retire(quietest)
            self._rota.appendleft(quietest)
            self._pending.notify()
            if self._open_slots() <= 0:
                return  # the old thread is still ending; next time
        self._promote(query)

    # ------------------------------------------------------------------ answers

    def _on_listing(self, answer: Answer) -> None:
        with self._lock:
            self._last_success = self._clock()
            self._listing_index = max(self._listing_index, answer.index)
        self._listener.on_listing(self._name, listing_of(answer))

    def _on_listing_trouble(self, error: BridgeError | None) -> None:
        if error is not None:
            self._listener.on_listing(self._name, Unknown(str(error)))
        self._set_trouble("catalog/services", error)

    def _on_answer(self, query: Query, answer: Answer) -> None:
        seen = self._clock()
        state = view_of(answer)
        with self._lock:
            self._last_success = seen
            if query not in self._wanted:
                return
            before = self._views.get(query)
            if before == state:
                return
            self._views[query] = state
            if before is not None:
                self._changed_at[query] = seen
                self._prefer(query)
        self._listener.on_view(query, state, seen)

    def _on_query_trouble(self, query: Query, error: BridgeError | None) -> None:
        if error is None:
            self._set_trouble(str(query), None)
            return
        with self._lock:
            if query not in self._wanted:
                return
            self._views[query] = Unknown(str(error))
        self._listener.on_view(query, Unknown(str(error)), self._clock())
        if not isinstance(error, PermanentError):
            self._set_trouble(str(query), error)

    def _set_trouble(self, key: str, error: BridgeError | None) -> None:
        """Keep the datacenter's troubles; its listener hears of the first and of the end of the last."""
        with self._lock:
            before = next(iter(self._troubles.values()), None)
            if error is None:
                self._troubles.pop(key, None)
            else:
                self._troubles[key] = str(error)
            after = next(iter(self._troubles.values()), None)
        if after != before:
            self._listener.on_trouble(self._name, after)

    # ------------------------------------------------------------------ is it still the same Consul?

    def _verify(self, client: ConsulClient, since: float) -> None:
        """Make sure, once for all watches, that Consul's index did not go backwards while it was away.

        Called before the first plain read after a trouble: a Consul that was rebuilt empty answers that read with an
        empty list and a straight face, and the guard must know before it is believed.
        """
        with self._verifying:
            if self._verified_at > since:
                return
            began = self._clock()
            index = client.listing(self._name, from_leader=True).index
            with self._lock:
                backwards = index < self._listing_index
                self._listing_index = index
            if backwards:
                self._listener.on_rebuilt(self._name)
            self._verified_at = began

    def _probe(self) -> None:
        try:
            while not self._stop.wait(LEADER_SECONDS):
                try:
                    leader = self._probe_client.leader(self._name)
                except CancelledError:
                    return
                except BridgeError as error:
                    self._set_trouble("status/leader", error)
                else:
                    self._set_trouble("status/leader", None if leader else TransientError("Consul has no leader"))
        except BaseException as error:  # noqa: BLE001 - whatever it was, the process must hear of it
            self._failed(error)
        finally:
            self._probe_client.disconnect()


# --------------------------------------------------------------------------- once


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that was asked for, each part known or not."""

    listings: Mapping[str, Listing | Unknown] = field(default_factory=dict)
    views: Mapping[Query, Knowledge] = field(default_factory=dict)


def read_all(
    config: ConsulConfig,
    datacenters: Sequence[str],
    choose: Callable[[str, Listing], Iterable[Query]],
    *,
    parallel: int = 16,
    progress: Callable[[int, int], None] | None = None,
    retry: RetryPolicy | None = None,
    stop: threading.Event | None = None,
) -> Snapshot:
    """List every datacenter, then read the services that `choose` picks, `parallel` at a time.

    A service or datacenter that cannot be read is Unknown; `progress` gets (services read, services to read).
    Raises CancelledError when `stop` is set.
    """
    stop = stop or threading.Event()
    policy = retry or RetryPolicy(attempts=3)
    token = TokenSource(config)
    listings: dict[str, Listing | Unknown] = {}
    queries: list[Query] = []
    clients: list[ConsulClient] = []
    local = threading.local()
    lock = threading.Lock()
    done = 0

    def client() -> ConsulClient:
        found: ConsulClient | None = getattr(local, "client", None)
        if found is None:
            found = local.client = ConsulClient(config, token)
            with lock:
                clients.append(found)
        return found

    def listed(datacenter: str) -> Listing | Unknown:
        try:
            return listing_of(call(lambda: client().listing(datacenter), policy, stop))
        except CancelledError:
            raise
        except BridgeError as error:
            return Unknown(str(error))

    def read(query: Query) -> Knowledge:
        nonlocal done
        try:
            state: Knowledge = view_of(call(lambda: client().instances(query), policy, stop))
        except CancelledError:
            raise
        except BridgeError as error:
            state = Unknown(str(error))
        with lock:
            done += 1
            if progress is not None:
                progress(done, len(queries))
        return state

    try:
        with ThreadPoolExecutor(max_workers=parallel, thread_name_prefix="consul-read") as pool:
            for datacenter, listing in zip(datacenters, pool.map(listed, datacenters), strict=True):
                listings[datacenter] = listing
                if isinstance(listing, Listing):
                    queries += sorted(choose(datacenter, listing))
            views = dict(zip(queries, pool.map(read, queries), strict=True))
    finally:
        for opened in clients:
            opened.disconnect()
    return Snapshot(listings, views)
