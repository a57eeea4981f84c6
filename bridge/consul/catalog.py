"""Everything that is wanted of Consul, watched within one budget of connections, as a stream of views.

A `Catalog` divides the connections among its datacenters and gives each a `DatacenterWatch`, so that a datacenter that
is down never affects another, and one that no rule needs is not asked. `read_all` (snapshot.py) reads the same once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from bridge.consul.access import warnings_of
from bridge.consul.client import ConsulConfig
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
        spare: Collection[str] = (),
    ) -> None:
        """`spare` are datacenters that may never be wanted: they have smaller shares, unless all are."""
        names = sorted(set(datacenters))
        if config.connections < LEAST * len(names):
            raise ConfigurationError(
                f"{config.connections} connections to Consul are too few for {len(names)} datacenters: at least "
                f"{LEAST * len(names)} are needed (--connections)"
            )
        config.access.parts(config)
        shares = shares_of(config.connections, names, spare)
        self._config = config
        self._listener = listener
        self._clock = clock
        self._budget = config.connections
        self._lock = threading.Lock()
        self._started: set[str] = set()
        self._closed = False
        self._watches = {
            name: DatacenterWatch(
                config,
                name,
                listener,
                budget=shares[name],
                retry=retry or RetryPolicy(),
                failed=failed or _ignore,
                clock=clock,
            )
            for name in names
        }

    def start(self, datacenters: Collection[str] | None = None) -> None:
        """Begin to watch these (None: all), those that are not watched yet; services as soon as they are wanted."""
        with self._lock:
            new = sorted(set(self._watches if datacenters is None else datacenters) - self._started)
            if self._closed:
                return
            for name in new:
                self._watches[name].start()
                self._started.add(name)

    def close(self, timeout: float = 5.0) -> None:
        """End every request and thread; returns when all have ended or after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._lock:
            self._closed = True
        for watch in self._watches.values():
            watch.stop()
        for watch in self._watches.values():
            watch.join(deadline)

    def want(self, added: Collection[Query], removed: Collection[Query] = ()) -> None:
        """Watch the `added` services as well from now on, and no longer the `removed` ones, which are forgotten."""
        with self._lock:
            for name in sorted({query.datacenter for query in (*added, *removed)} & self._watches.keys()):
                here = [[query for query in queries if query.datacenter == name] for queries in (added, removed)]
                self._watches[name].want(*here)
        for query in sorted(query for query in added if query.datacenter not in self._watches):
            reason = f"datacenter {query.datacenter!r} may not be asked, only {', '.join(self._watches)} may"
            self._listener.on_view(query, Unknown(reason), self._clock())

    def warnings(self) -> tuple[str, ...]:
        """What works, and the operator ought to know of: TLS that is not verified, waits that had to be shortened."""
        return warnings_of(self._config)

    def status(self) -> dict[str, Any]:
        """Figures for readiness, metrics and people, per datacenter."""
        return {
            "budget": self._budget,
            "datacenters": {name: self._watches[name].status() for name in sorted(self._started)},
        }


def shares_of(connections: int, names: Sequence[str], spare: Collection[str]) -> dict[str, int]:
    """How many connections each datacenter has: a spare one a quarter of an equal share, the rest what is left."""
    few = set(spare).intersection(names)
    if len(few) == len(names):
        few = set()
    small = max(LEAST, connections // (4 * len(names))) if few else 0
    large = (connections - small * len(few)) // max(len(names) - len(few), 1)
    return {name: small if name in few else large for name in names}


def _ignore(_error: BaseException) -> None:
    """No listener."""
