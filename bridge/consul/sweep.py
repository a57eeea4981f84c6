"""Finding out who changed when nobody says it: index probes over services or over nodes, whichever cost less.

A registration, a port, a meta value ring the listing without a name. Every service and every node has an index
of its own that moves with exactly its changes, and asking for it costs a fraction of reading it (FACTS-consul B3). A
sweep asks for all of them once, in small pieces between more urgent reads; at most one runs at a time, and the rest
between two grows with how long one takes, so that a busy catalog costs a bounded share of Consul and of us.

    look     after the listing rang: services without a direct watch, or nodes; the leader answers
    vouch    after readings that nobody listened before: only those; a look as well when there has been none yet
    verify   now and then: every service, whatever watches it; what this finds was missed
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from bridge.consul.board import Entry
from bridge.consul.client import ConsulClient, Mode
from bridge.consul.pace import Bucket
from bridge.consul.readers import Readers, Urgency
from bridge.errors import PermanentError, TransientError

PIECE = 32
"""Probes that are sent at once. Where there are several readers, one stays out of sweeps: nothing waits for them."""

SHARES = ((0.5, 3.0), (0.2, 60.0))
"""(share of the time, seconds of it that can be saved up in quiet times) that sweeps may take, all at once.

Half of the time while changes come in a burst, so that the last of them is found soon; a fifth of it, and no more,
when they never end.
"""

NODE_COST = 2.5
"""A node's probe, as probes of services: Consul filters all that is on the node, and who moved must be asked too."""

T = TypeVar("T")

_Piece = Callable[[ConsulClient], None]


class Ground(Protocol):
    """What is swept, and who hears what was found."""

    def services_to_probe(self, every: bool) -> list[Entry]:
        """Services that have been read: all, or only those that no direct watch looks after."""

    def nodes_to_probe(self) -> list[str] | None:
        """All nodes of the datacenter; None when they are not known."""

    def node_moved(self, client: ConsulClient, node: str) -> None:
        """Something about a node's services changed."""

    def service_moved(self, entry: Entry, verifying: bool) -> None:
        """Something about a service changed."""

    def probe_failed(self, error: TransientError | PermanentError) -> None:
        """A probe got no answer; the sweep is made again later."""


LEAST_REST_SECONDS = 0.05


@dataclass(slots=True, eq=False)
class _Sweep:
    began: float
    left: int
    verifying: bool = False
    founding: bool = False
    failed: bool = False
    then: Callable[[], None] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Sweeper:
    """When to sweep, and what. Any thread."""

    def __init__(self, datacenter: str, ground: Ground, readers: Readers, clock: Callable[[], float]) -> None:
        self._datacenter = datacenter
        self._ground = ground
        self._readers = readers
        self._clock = clock
        self._lock = threading.Lock()
        self._running: _Sweep | None = None
        self._wanted = False
        self._vouch_wanted = False
        self._verify_wanted = False
        self._buckets = [Bucket(share, saved, clock) for share, saved in SHARES]
        self._not_before = float("-inf")
        self._nodes: dict[str, int] | None = None
        self.looked = 0
        self.verified = 0
        self.probes = 0
        self.last_seconds = 0.0

    @property
    def pending(self) -> bool:
        """Whether a look is running or due."""
        running = self._running
        return self._wanted or self._vouch_wanted or (running is not None and not running.verifying)

    def look(self) -> None:
        """The listing rang without a name: sweep as soon as it is time."""
        self._wanted = True
        self.tick()

    def vouch(self) -> None:
        """Services were read that no probe has vouched for: ask for these as soon as it is time."""
        self._vouch_wanted = True
        self.tick()

    def verify(self) -> None:
        """Sweep everything as soon as it is time."""
        self._verify_wanted = True
        self.tick()

    def forget(self) -> None:
        """Consul is another one: indexes mean nothing any more."""
        with self._lock:
            self._nodes = None

    def tick(self) -> None:
        """Begin what is due."""
        with self._lock:
            if self._running is not None or self._clock() < self._not_before:
                return
            if self._wanted or self._vouch_wanted:
                every, self._wanted, self._vouch_wanted = self._wanted, False, False
                self._begin_look(every)
            elif self._verify_wanted:
                self._verify_wanted = False
                self._begin(self._services(every=True), verifying=True)

    # ------------------------------------------------------------------ all below under the lock

    def _begin_look(self, every: bool) -> None:
        services = self._ground.services_to_probe(every=False)
        covered = [entry for entry in services if entry.covered]
        nodes = self._ground.nodes_to_probe()
        if nodes is None or len(nodes) * NODE_COST >= len(covered):
            self._begin(self._probes_of([e for e in services if every or not e.vouched], verifying=False))
            return
        rest = [entry for entry in services if not (entry.covered and entry.vouched)]
        if self._nodes is None:
            # the indexes must be older than the views that they vouch for: nodes first, then every service once
            self._nodes = {}
            self._begin(
                [partial(self._probe_nodes, piece, True) for piece in _pieces(nodes)],
                founding=True,
                then=lambda: self._begin(self._probes_of(services, verifying=False), founding=True),
            )
            return
        for gone in self._nodes.keys() - set(nodes):
            del self._nodes[gone]
        pieces = [partial(self._probe_nodes, piece, False) for piece in _pieces(nodes)] if every else []
        self._begin([*pieces, *self._probes_of(rest, verifying=False)])

    def _services(self, every: bool) -> list[_Piece]:
        return self._probes_of(self._ground.services_to_probe(every), verifying=every)

    def _probes_of(self, entries: list[Entry], verifying: bool) -> list[_Piece]:
        random.shuffle(entries)  # nobody is always the last
        return [partial(self._probe_services, piece, verifying) for piece in _pieces(entries)]

    def _begin(
        self,
        pieces: list[_Piece],
        *,
        verifying: bool = False,
        founding: bool = False,
        then: Callable[[], None] | None = None,
    ) -> None:
        sweep = _Sweep(self._clock(), len(pieces), verifying, founding, then=then)
        self._running = sweep
        if not pieces:
            self._end(sweep)
        self._readers.put_all(Urgency.SWEEP, [partial(self._do, sweep, piece) for piece in pieces])

    def _end(self, sweep: _Sweep) -> None:
        self._running = None
        took = self._clock() - sweep.began
        if sweep.failed:
            self._verify_wanted |= sweep.verifying
            self._wanted |= not sweep.verifying
            self._nodes = None if sweep.founding else self._nodes
        elif sweep.then is not None:
            sweep.then()
            return
        elif sweep.verifying:
            self.verified += 1
        else:
            self.looked += 1
        self.last_seconds = took
        rest = max(bucket.take(took) for bucket in self._buckets)
        self._not_before = self._clock() + rest
        if self._wanted or self._vouch_wanted or self._verify_wanted:
            self._readers.put(Urgency.SWEEP, lambda _client: self.tick(), max(rest, LEAST_REST_SECONDS))

    # ------------------------------------------------------------------ on the readers' threads

    def _do(self, sweep: _Sweep, piece: _Piece, client: ConsulClient) -> None:
        if not sweep.failed:
            try:
                piece(client)
            except (TransientError, PermanentError) as error:
                sweep.failed = True
                self._ground.probe_failed(error)
        with self._lock:
            sweep.left -= 1
            if sweep.left == 0:
                self._end(sweep)

    def _probe_services(self, entries: Sequence[Entry], verifying: bool, client: ConsulClient) -> None:
        mode = Mode.STALE if verifying else Mode.LEADER
        entries = [entry for entry in entries if not entry.removed]
        self.probes += len(entries)
        for entry, index in zip(entries, client.probe_services([e.query for e in entries], mode), strict=True):
            if index is None:
                with contextlib.suppress(PermanentError):  # the full read says what is wrong, to whom it concerns
                    index = client.probe_service(entry.query, mode).index
            if index != entry.index:
                self._ground.service_moved(entry, verifying)
                continue
            entry.vouched = True
            if verifying and entry.known is not None and entry.known.hidden:
                self._ground.service_moved(entry, False)  # rights that were given move no index

    def _probe_nodes(self, nodes: Sequence[str], first: bool, client: ConsulClient) -> None:
        known = self._nodes
        if known is None:
            return
        self.probes += len(nodes)
        indexes = client.probe_nodes(nodes, self._datacenter, Mode.LEADER)
        for node, index in zip(nodes, indexes, strict=True):
            if index is None:
                index = client.probe_node(node, self._datacenter, Mode.LEADER).index
            if known.get(node) != index:
                if not first:
                    self._ground.node_moved(client, node)
                known[node] = index


def _pieces(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[i : i + PIECE] for i in range(0, len(items), PIECE)]
