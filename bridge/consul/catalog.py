"""Everything that is wanted of Consul, watched within one budget of connections, as a stream of views.

A `Catalog` divides the budget among its datacenters and leaves each to a `DatacenterWatch` of its own, so that a dead
one never touches the others. `read_all` is the same knowledge, read once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from bridge.consul.client import ConsulConfig, tls_of
from bridge.consul.datacenter import CatalogListener, DatacenterWatch
from bridge.consul.snapshot import Snapshot, read_all
from bridge.core.model import Query, Unknown
from bridge.errors import ConfigurationError
from bridge.retry import RetryPolicy

__all__ = ["Catalog", "CatalogListener", "Snapshot", "read_all"]

LEAST = 2
"""Connections that a datacenter cannot do without: one for its listing, one to read with."""


class Catalog:
    """Watches of all datacenters. All methods may be called from any thread.

    `failed` is called with the exception when a thread dies of a bug: the process must end then. Raises
    ConfigurationError for settings that cannot be used, before any I/O.
    """

    def __init__(
        self,
        config: ConsulConfig,
        datacenters: Sequence[str],
        listener: CatalogListener,
        retry: RetryPolicy | None = None,
        failed: Callable[[BaseException], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        names = sorted(set(datacenters))
        share = config.connections // max(len(names), 1)
        if share < LEAST:
            raise ConfigurationError(
                f"{config.connections} connections to Consul are too few for {len(names)} datacenters: at least "
                f"{LEAST * len(names)} are needed (--connections)"
            )
        tls = tls_of(config)
        self._listener = listener
        self._clock = clock
        self._budget = config.connections
        self._wanted: frozenset[Query] | None = None
        self._strange: frozenset[Query] = frozenset()
        self._lock = threading.Lock()
        self._watches = {
            name: DatacenterWatch(
                config,
                name,
                listener,
                budget=share,
                retry=retry or RetryPolicy(),
                failed=failed or _ignore,
                clock=clock,
                tls=tls,
            )
            for name in names
        }

    def start(self) -> None:
        """Begin to watch the listings; services are watched as soon as they are wanted."""
        for watch in self._watches.values():
            watch.start()

    def close(self, timeout: float = 5.0) -> None:
        """End every request and thread; returns when all have ended or after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        for watch in self._watches.values():
            watch.stop()
        for watch in self._watches.values():
            watch.join(deadline)

    def want(self, queries: frozenset[Query]) -> None:
        """Watch exactly these from now on: new ones are read and watched, the others forgotten."""
        with self._lock:
            if queries is self._wanted:  # asked again and again, of thousands of services
                return
            self._wanted = queries
            shares: dict[str, set[Query]] = {name: set() for name in self._watches}
            strange: set[Query] = set()
            for query in queries:
                shares.get(query.datacenter, strange).add(query)
            news, self._strange = strange - self._strange, frozenset(strange)
            for name, share in shares.items():
                self._watches[name].want(share)
        for query in sorted(news):
            reason = f"datacenter {query.datacenter!r} is not among those watched: {', '.join(self._watches)}"
            self._listener.on_view(query, Unknown(reason), self._clock())

    def status(self) -> dict[str, Any]:
        """Figures for readiness, metrics and people, per datacenter."""
        return {
            "budget": self._budget,
            "datacenters": {name: watch.status() for name, watch in self._watches.items()},
        }


def _ignore(_error: BaseException) -> None:
    """Nobody asked to be told."""
