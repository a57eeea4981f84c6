"""The shards that this replica holds, and what it does when it gets a new one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass

from bridge.controller.circuit_breaker import CircuitBreaker
from bridge.controller.conflicting_writers import ConflictingWriters
from bridge.errors import BridgeError
from bridge.kube.writer import Writer
from bridge.telemetry.events import LeadingChanged, Observer

WRITING_SECONDS = 5.0
"""How often a replica without shards, whose writes were not answered, checks whether they would be answered now."""

WRITING_TIMEOUT_SECONDS = 2.0
"""How long that may take: the supervisor waits for it."""


@dataclass(eq=False, repr=False)
class HeldShards:
    """The shards that are ours to write now, of `total`. Any thread."""

    total: int
    conflicting: ConflictingWriters
    observer: Observer
    wake: threading.Event

    def __post_init__(self) -> None:
        self._gained = threading.Event()
        self.held: frozenset[int] = frozenset()

    def on_change(self, shards: frozenset[int]) -> None:
        """These shards are ours to write now, and no others."""
        gained = shards - self.held
        self.held = shards
        self.observer.changed(LeadingChanged(shards, self.total))
        if gained:
            self.conflicting.gained()
            self._gained.set()
            self.wake.set()

    def take_gained(self) -> bool:
        """Whether a shard became ours since this was last asked."""
        gained = self._gained.is_set()
        if gained:
            self._gained.clear()
        return gained


@dataclass(eq=False, repr=False)
class WriteProbe:
    """Checks that the API server answers writes again while this replica has no shard and so writes nothing.

    What was not answered is sent once more as a dry run, which goes through admission and stores nothing. That etcd
    stores what comes from here shows the replica's own Lease: without its renewal no replica gets a shard.
    """

    writer: Writer
    breaker: CircuitBreaker
    shards: HeldShards
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        self._next = 0.0

    def look(self) -> None:
        now = self.clock()
        if self.shards.held or not self.breaker.failing or now < self._next:
            return
        self._next = now + WRITING_SECONDS
        with contextlib.suppress(BridgeError):
            self.writer.ask_again(WRITING_TIMEOUT_SECONDS)
            self.breaker.mended()
