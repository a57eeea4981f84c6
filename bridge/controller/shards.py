"""The shards that this replica holds, and what it does when it gets a new one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from bridge.controller.circuit_breaker import CircuitBreaker
from bridge.controller.conflicting_writers import ConflictingWriters
from bridge.errors import BridgeError
from bridge.kube.client import KubeClient
from bridge.telemetry.events import LeadingChanged, Observer

WRITING_SECONDS = 5.0
"""How often a replica without shards, whose writes were not answered, checks whether they would be answered now."""

WRITING_TIMEOUT_SECONDS = 2.0
"""How long that may take: the supervisor waits for it."""


class HeldShards:
    """The shards that are ours to write now, of `total`. Any thread."""

    def __init__(self, total: int, conflicting: ConflictingWriters, observer: Observer, wake: threading.Event) -> None:
        self._total = total
        self._conflicting = conflicting
        self._observer = observer
        self._wake = wake
        self._gained = threading.Event()
        self.held: frozenset[int] = frozenset()

    def on_change(self, shards: frozenset[int]) -> None:
        """These shards are ours to write now, and no others."""
        gained = shards - self.held
        self.held = shards
        self._observer.changed(LeadingChanged(shards, self._total))
        if gained:
            self._conflicting.gained()
            self._gained.set()
            self._wake.set()

    def take_gained(self) -> bool:
        """Whether a shard became ours since this was last asked."""
        gained = self._gained.is_set()
        if gained:
            self._gained.clear()
        return gained


class WriteProbe:
    """Checks that the API server answers writes again while this replica has no shard and so writes nothing."""

    def __init__(
        self, client: KubeClient, breaker: CircuitBreaker, shards: HeldShards, clock: Callable[[], float]
    ) -> None:
        self._client = client
        self._breaker = breaker
        self._shards = shards
        self._clock = clock
        self._next = 0.0

    def look(self) -> None:
        """Ask, if it is time to."""
        now = self._clock()
        if self._shards.held or not self._breaker.failing or now < self._next:
            return
        self._next = now + WRITING_SECONDS
        with contextlib.suppress(BridgeError):
            self._client.request("GET", "/version", timeout=WRITING_TIMEOUT_SECONDS)
            self._breaker.mended()
