"""One datacenter: every wanted service watched, within so many connections, whatever happens to Consul.

    listing watch (1)      catalog/services: names and tags; everything else of the catalog rings here without a name
    direct watches (most)  one blocking query per service, for those that changed most recently
    doorbells (3)          state/critical, state/warning, nodes: name who flipped or moved, for all other services
    readers (up to 4)      read who was named; sweeps of index probes find those whom nobody names

How nothing is missed: a view is only as good as the thing that would notice its next change, so a service is always
covered by its direct watch, or by doorbells and sweeps that were listening BEFORE the view was read; whoever stops
listening (an error, a direct watch given to another service) has what it covered read again. How nothing is believed too
early: after anything broke, the datacenter is in doubt until one consistent read of its nodes has shown that it is the
same Consul as before (`_confirm`); if not, `on_rebuilt` is called before any view of the new one.

Reads after the first go to the leader: an answer older than what is known would be a step back.
"""

from __future__ import annotations

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from bridge.consul import bells, decode
from bridge.consul.client import STREAMING, Answer, ConsulClient, ConsulConfig, Mode
from bridge.consul.identity import Identity
from bridge.consul.pace import Bucket, Throttle
from bridge.consul.readers import Readers, Urgency
from bridge.consul.sweep import Sweeper
from bridge.consul.transport import Tls
from bridge.consul.watch import PERMANENT_RETRY, Step, Watch
from bridge.core.model import Knowledge, Known, Listing, Query, Status, Unknown
from bridge.errors import BridgeError, CancelledError, PermanentError, ThrottledError, TransientError
from bridge.retry import RetryPolicy

DOORBELLS = 3
LEADER_PROBE_SECONDS = 5.0
PROMOTED_WAIT_SECONDS = 15.0
"""Longest wait of a direct watch while there are more services than watches: then it may go to another one."""
JUDGE_SECONDS = 5.0
"""How long a change that the verification found may still be explained by a doorbell that rang for it."""
TICK_SECONDS = 0.25


class CatalogListener(Protocol):
    """Who is told. Called from watcher threads, one call at a time per service; must be quick."""

    def on_listing(self, datacenter: str, listing: Listing | Unknown) -> None:
        """The services of a datacenter changed, or could not be listed."""

    def on_view(self, query: Query, state: Knowledge, seen: float) -> None:
        """The instances of a service changed (`seen`: clock when the answer was there), or could not be read."""

    def on_rebuilt(self, datacenter: str) -> None:
        """Consul is another one than before, or went back in time. Called before any view of it."""

    def on_trouble(self, datacenter: str, reason: str | None) -> None:
        """A datacenter cannot be asked as it should be, or (None) can again."""


@dataclass(slots=True, eq=False)
class Entry:
    """One wanted service. `lock` orders what is published of it; the rest belongs to the datacenter's lock.

    `index` is the service's own by plain reads and probes, never by the streaming backend; `generation` counts what was
    published, so that a slow reader does not overwrite what a faster one knows.
    """

    query: Query
    covered: bool
    lock: threading.Lock = field(default_factory=threading.Lock)
    state: Knowledge | None = None
    known: Known | None = None
    index: int = 0
    generation: int = 0
    attempts: int = 0
    changed_at: float = 0.0
    explained_at: float = 0.0
    slot: _Slot | None = None
    direct: bool = False
    queued: bool = False
    reading: bool = False
    again: bool = False
    verifying: bool = False
    removed: bool = False


@dataclass(slots=True, eq=False)
class _Slot:
    """One connection for direct watches."""

    number: int
    client: ConsulClient
    entry: Entry | None = None
    thread: threading.Thread | None = None


@dataclass(slots=True, eq=False)
class _Bell:
    """A doorbell's last body; deaf while it may have missed something."""

    name: str
    client: ConsulClient
    statuses: frozenset[Status] = frozenset()
    body: Any = None
    deaf: bool = True
    ringing: bool = False


class DatacenterWatch:
    """See the module. `start`, `stop`, `join`, `want` and `status` are for others; any thread."""

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
        tls: Tls | None = None,
    ) -> None:
        self.name = name
        self._config = config
        self._listener = listener
        self._budget = budget
        self._retry = retry
        self._failed = failed
        self._clock = clock
        self._tls = tls
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._awake = threading.Condition(self._lock)
        self._recoveries = 0

        has_bells = budget >= 2 + DOORBELLS
        readers = max(1, min(4, budget // 6))
        self._slots_total = max(budget - 1 - readers - (DOORBELLS if has_bells else 0), 0)
        self._listing_client = self._client()
        self._readers = Readers(
            [self._client() for _ in range(readers)], f"consul-reader-{name}", self._ready, failed, clock
        )
        self._bells = self._make_bells() if has_bells else []
        self._slots: list[_Slot] = []
        self._throttle = Throttle(self._slots_total, clock)
        self._service_bucket = Bucket(200.0, 1000.0, clock)

        self._entries: dict[Query, Entry] = {}
        self._by_name: dict[str, set[Entry]] = {}
        self._by_node: dict[str, set[Entry]] = {}
        self._filtered = 0
        self._unassigned: OrderedDict[Entry, None] = OrderedDict()
        self._recent: OrderedDict[Entry, None] = OrderedDict()
        self._indirect = 0

        self._listing: Listing | None = None
        self._listing_state: Listing | Unknown | None = None
        self._listing_index = 0
        self._listing_woke_at = 0.0
        self._identity = Identity()
        self._doubts = 1
        self._confirmed = 0
        self._confirm_lock = threading.Lock()
        self._troubles: dict[str, str] = {}
        self._trouble: str | None = None
        self._trouble_lock = threading.Lock()
        self._backoff: dict[str, str] = {}

        self._sweeper = Sweeper(self._sweep_keys, self._readers, clock)
        self._next_verify = 0.0
        self._suspects: list[tuple[Entry, float]] = []
        self._found = 0
        self._found_lately: list[str] = []
        self._verified = 0
        self._last_success: float | None = None
        self._counts = {"reads": 0, "unchanged": 0, "changes": 0, "probes": 0, "rings": 0}
        self._threads: list[threading.Thread] = []
