"""Everything once: the listings and the chosen views of all datacenters, for `bridge sync`."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from bridge.consul import decode
from bridge.consul.client import ConsulClient, ConsulConfig
from bridge.consul.faults import is_unreachable
from bridge.core.model import Knowledge, Listing, Query, Unknown
from bridge.errors import BridgeError, CancelledError, PermanentError, TransientError
from bridge.retry import RetryPolicy, call

T = TypeVar("T")

ONCE = RetryPolicy(attempts=3, initial_seconds=0.2, max_seconds=2.0)
"""How often one read is tried by default."""


GIVE_UP_AFTER = 8
"""Services in a row that could not be read before the rest of that datacenter is asked for only once each."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was read. `errors` holds the reads that no retry fixes, so that the caller can name them and fail."""

    listings: dict[str, Listing | Unknown] = field(default_factory=dict)
    views: dict[Query, Knowledge] = field(default_factory=dict)
    errors: tuple[PermanentError, ...] = ()
    remedies: dict[str, str] = field(default_factory=dict)
    """How to fix what could not be read, by the reason that stands in its Unknown."""


def read_all(
    config: ConsulConfig,
    datacenters: Sequence[str],
    choose: Callable[[str, Listing], Iterable[Query]],
    parallel: int = 16,
    progress: Callable[[int, int], None] | None = None,
    retry: RetryPolicy = ONCE,
    stop: threading.Event | None = None,
) -> Snapshot:
    """Read every datacenter's listing, then what `choose` picks from it, over at most `parallel` connections.

    One service that cannot be read is Unknown; a datacenter that cannot be listed is Unknown with all that would have
    been chosen from it. Raises CancelledError when `stop` is set, ConfigurationError for settings that cannot be used.
    `progress(done, total)` is called from the reading threads, one at a time.
    """
    return _Reading(config, choose, parallel, progress, retry, stop or threading.Event()).run(datacenters)


class _Reading:
    def __init__(
        self,
        config: ConsulConfig,
        choose: Callable[[str, Listing], Iterable[Query]],
        parallel: int,
        progress: Callable[[int, int], None] | None,
        retry: RetryPolicy,
        stop: threading.Event,
    ) -> None:
        self._config = config
        self._choose = choose
        self._parallel = max(1, min(parallel, config.connections))
        self._progress = progress
        self._retry = retry
        self._stop = stop
        config.access.parts(config)
        self._lock = threading.Lock()
        self._snapshot = Snapshot()
        self._errors: dict[str, PermanentError] = {}
        self._bug: BaseException | None = None
        self._done = 0
        self._failures: dict[str, int] = {}

    def run(self, datacenters: Sequence[str]) -> Snapshot:
        names = sorted(set(datacenters))
        self._spread(names, self._list)
        queries: list[Query] = []
        for name in names:
            listing = self._snapshot.listings[name]
            if isinstance(listing, Listing):
                queries += sorted(set(self._choose(name, listing)))
        self._done = 0
        self._spread(queries, lambda client, query: self._read(client, query, len(queries)))
        errors = tuple(self._errors[text] for text in sorted(self._errors))
        views = {query: self._snapshot.views[query] for query in queries}
        return Snapshot(self._snapshot.listings, views, errors, self._snapshot.remedies)

    def _spread(self, items: Sequence[T], work: Callable[[ConsulClient, T], None]) -> None:
        """Do `work` for every item on a few threads, each with a connection of its own."""
        todo: queue.SimpleQueue[T] = queue.SimpleQueue()
        for item in items:
            todo.put(item)

        def run(client: ConsulClient) -> None:
            try:
                while not self._stop.is_set() and self._bug is None:
                    work(client, todo.get_nowait())
            except (queue.Empty, CancelledError):
                pass
            except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
                self._bug = error
            finally:
                client.close()

        clients = [ConsulClient(self._config) for _ in range(min(self._parallel, len(items)))]
        threads = [
            threading.Thread(target=run, args=(client,), name=f"consul-read-{n}", daemon=True)
            for n, client in enumerate(clients)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)
                    if self._stop.is_set():
                        break
        finally:
            for client in clients:  # on an interrupt too: nothing is left waiting
                client.close()
            for thread in threads:
                thread.join()
        if self._bug is not None:
            raise self._bug
        if self._stop.is_set():
            raise CancelledError("stopped while reading Consul")

    def _list(self, client: ConsulClient, name: str) -> None:
        listing: Listing | Unknown
        try:
            listing = call(lambda: decode.listing_of(client.listing(name)), self._retry, self._stop)
        except (TransientError, PermanentError) as error:
            listing = Unknown(self._reason(error), unreachable=is_unreachable(error))
        self._snapshot.listings[name] = listing

    def _read(self, client: ConsulClient, query: Query, total: int) -> None:
        state: Knowledge
        failures = self._failures.get(query.datacenter, 0)
        policy = self._retry if failures < GIVE_UP_AFTER else dataclasses.replace(self._retry, attempts=1)
        try:
            state = call(lambda: decode.view_of(client.health_service(query)), policy, self._stop)
            failures = 0
        except (TransientError, PermanentError) as error:
            state = Unknown(self._reason(error))
            failures += isinstance(error, TransientError)
        with self._lock:
            self._failures[query.datacenter] = failures
            self._snapshot.views[query] = state
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, total)

    def _reason(self, error: BridgeError) -> str:
        with self._lock:
            self._snapshot.remedies[str(error)] = error.remedy
            if isinstance(error, PermanentError):
                self._errors[str(error)] = error
        return str(error)
