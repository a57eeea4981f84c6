"""Finding out who changed when nobody says it: index probes over services or over nodes, whichever cost less.

A registration, a port, a meta value ring the listing without a name. Every service and every node has an index
of its own that moves with exactly its changes, and asking for it costs a fraction of reading it (docs/consul.md). A
sweep asks for all of them once, in small pieces between more urgent reads; at most one runs at a time, and the rest
between two grows with how long one takes, so that a busy catalog costs a bounded share of Consul and of us.

    look     after the listing rang: services without a direct watch, or nodes; the leader answers
    vouch    after readings that nobody listened before: only those; a look as well when there has been none yet
    verify   now and then: every service, and every node: an instance that is registered under another name does not
             move the index of the service that it leaves; those with a direct watch are read, for their indexes prove
             nothing (streamed.py); what this finds was missed

When a probe gets no answer the sweep rests as the retry policy (or Consul's Retry-After) says and goes on with what is
left; a 429 lowers how many probes a second are sent, so that a sweep ends within what Consul allows at last.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from bridge.consul.board import Entry
from bridge.consul.client import ConsulClient, Mode
from bridge.consul.pace import Bucket, ProbeRate
from bridge.consul.readers import Readers, Urgency
from bridge.errors import PermanentError, ThrottledError, TransientError

PIECE = 32
"""Probes that are sent at once. Where there are several readers, one stays out of sweeps: nothing waits for them."""

SHARES = ((0.5, 3.0), (0.2, 60.0))
"""(share of the time, seconds of it that can be saved up in quiet times) that sweeps may take, all at once.

Half of the time while changes come in a burst, so that the last of them is found soon; a fifth of it, and no more,
when they never end.
"""

NODE_COST = 2.5
"""A node's probe, as probes of services: Consul filters all that is on the node, and who moved must be asked too."""

SERVICES_INSTEAD_SECONDS = 300.0
"""How long services are probed where a node's probe was refused for good: what they are refused shows in a read."""

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Piece(Generic[T]):
    """Some of what a sweep asks for. `ask(todo, count, client)` asks for the first of them, and removes those done."""

    todo: list[T]
    ask: Callable[[list[T], int, ConsulClient], None]


class Ground(Protocol):
    """What is swept, and who hears what was found."""

    def services_to_probe(self, every: bool) -> list[Entry]:
        """Services that have been read: all, or only those that no direct watch looks after."""

    def nodes_to_probe(self) -> list[str] | None:
        """All nodes of the datacenter; None when they are not known."""

    def node_moved(self, client: ConsulClient, node: str) -> None:
        """Something about a node's services changed."""

    def verify_node(self, client: ConsulClient, node: str) -> None:
        """A node's index moved since the last verification: has a view what is no longer there?"""

    def service_moved(self, entry: Entry, verifying: bool) -> None:
        """Something about a service changed."""

    def probe_failed(self, error: TransientError | PermanentError, attempt: int) -> float:
        """A probe got no answer, for the `attempt`th time in a row; returns how many seconds sweeps are to rest."""


LEAST_REST_SECONDS = 0.05


@dataclass(slots=True, eq=False)
class _Sweep:
    """`asking`: seconds that its probes took, together. `error`: what stopped it; `unfinished` goes on later."""

    began: float
    left: int
    verifying: bool = False
    every: bool = False
    founding: bool = False
    then: Callable[[], None] | None = None
    asking: float = 0.0
    answered: int = 0
    attempt: int = 0
    error: TransientError | PermanentError | None = None
    rest: float = 0.0
    unfinished: list[_Piece[Any]] = field(default_factory=list)


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
        self._verified_last = False
        self._buckets = [Bucket(share, saved, clock) for share, saved in SHARES]
        self._rate = ProbeRate(PIECE, clock)
        self._not_before = float("-inf")
        self._services_until = float("-inf")
        self._nodes: dict[str, int] | None = None
        self._verified_nodes: dict[str, int] = {}
        self.looked = 0
        self.looked_from = float("-inf")
        """When the last look that ended began: it saw all that was there by then."""
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
            self._verified_nodes = {}

    def tick(self) -> None:
        """Begin what is due."""
        with self._lock:
            if self._running is not None or self._clock() < self._not_before:
                return
            look = self._wanted or self._vouch_wanted
            if self._verify_wanted and not (look and self._verified_last):  # in a busy catalog a look is always due
                self._verify_wanted, self._verified_last = False, True
                self._begin_verification()
            elif look:
                every, self._wanted, self._vouch_wanted, self._verified_last = self._wanted, False, False, False
                self._begin_look(every)

    # ------------------------------------------------------------------ all below under the lock

    def _begin_verification(self) -> None:
        pieces = self._probes_of(self._ground.services_to_probe(every=True), verifying=True)
        nodes = self._ground.nodes_to_probe() if self._clock() >= self._services_until else None
        if nodes is not None:
            for gone in self._verified_nodes.keys() - set(nodes):
                del self._verified_nodes[gone]
            pieces += self._probes_of_nodes(nodes, self._verified_nodes)
        self._begin(pieces, verifying=True)

    def _begin_look(self, every: bool) -> None:
        services = self._ground.services_to_probe(every=False)
        covered = [entry for entry in services if entry.covered]
        nodes = self._ground.nodes_to_probe() if self._clock() >= self._services_until else None
        if nodes is None or len(nodes) * NODE_COST >= len(covered):
            asked = [e for e in services if every or not e.vouched]
            self._begin(self._probes_of(asked, verifying=False), every=every)
            return
        rest = [entry for entry in services if not (entry.covered and entry.vouched)]
        if self._nodes is None:
            # the indexes must be older than the views that they vouch for: nodes first, then every service once
            self._nodes = {}
            began = self._clock()

            def all_services() -> None:
                self._begin(self._probes_of(services, verifying=False), founding=True, every=True, began=began)

            self._begin(
                self._probes_of_nodes(nodes, self._nodes, first=True), founding=True, every=True, then=all_services
            )
            return
        for gone in self._nodes.keys() - set(nodes):
            del self._nodes[gone]
        pieces = self._probes_of_nodes(nodes, self._nodes) if every else []
        self._begin([*pieces, *self._probes_of(rest, verifying=False)], every=every)

    def _probes_of(self, entries: list[Entry], verifying: bool) -> list[_Piece[Any]]:
        random.shuffle(entries)  # nobody is always the last

        def ask(todo: list[Entry], count: int, client: ConsulClient) -> None:
            self._probe_services(todo, count, verifying, client)

        return [_Piece(piece, ask) for piece in _pieces(entries)]

    def _probes_of_nodes(self, nodes: list[str], known: dict[str, int], first: bool = False) -> list[_Piece[Any]]:
        def ask(todo: list[str], count: int, client: ConsulClient) -> None:
            self._probe_nodes(todo, count, known, first, client)

        return [_Piece(piece, ask) for piece in _pieces(nodes)]

    def _begin(
        self,
        pieces: list[_Piece[Any]],
        *,
        verifying: bool = False,
        every: bool = False,
        founding: bool = False,
        then: Callable[[], None] | None = None,
        began: float | None = None,
    ) -> None:
        began = self._clock() if began is None else began
        sweep = _Sweep(began, len(pieces), verifying, every, founding, then)
        self._running = sweep
        if not pieces:
            self._end(sweep)
        self._readers.put_all(Urgency.SWEEP, [partial(self._do, sweep, piece) for piece in pieces])

    def _round_ended(self, sweep: _Sweep) -> None:
        """Nothing of a sweep is under way any more: it is at its end, or it goes on after a rest."""
        error, sweep.error = sweep.error, None
        if error is None:
            self._end(sweep)
        elif isinstance(error, PermanentError):
            self._give_up(sweep)
        else:
            if isinstance(error, ThrottledError):
                self._rate.slower()
            sweep.attempt = 1 if sweep.answered else sweep.attempt + 1
            pieces, sweep.unfinished, sweep.answered = sweep.unfinished, [], 0
            sweep.left = len(pieces)
            for piece in pieces:
                self._readers.put(Urgency.SWEEP, partial(self._do, sweep, piece), max(sweep.rest, LEAST_REST_SECONDS))

    def _give_up(self, sweep: _Sweep) -> None:
        """A node may not be asked, and that will not mend itself soon: services are asked instead."""
        self._services_until = self._clock() + SERVICES_INSTEAD_SECONDS
        self._verify_wanted |= sweep.verifying
        self._wanted |= not sweep.verifying
        self._nodes = None if sweep.founding else self._nodes
        self._rest(sweep, sweep.rest)

    def _end(self, sweep: _Sweep) -> None:
        if sweep.then is not None:
            sweep.then()
            return
        if sweep.verifying:
            self.verified += 1
        else:
            self.looked += 1
            self.looked_from = sweep.began if sweep.every else self.looked_from
        self._rest(sweep, 0.0)

    def _rest(self, sweep: _Sweep, seconds: float) -> None:
        self._running = None
        self.last_seconds = self._clock() - sweep.began
        took = min(sweep.asking, self.last_seconds)
        rest = max(seconds, *(bucket.take(took) for bucket in self._buckets))
        self._not_before = self._clock() + rest
        if self._wanted or self._vouch_wanted or self._verify_wanted:
            self._readers.put(Urgency.SWEEP, lambda _client: self.tick(), max(rest, LEAST_REST_SECONDS))

    # ------------------------------------------------------------------ on the readers' threads

    def _do(self, sweep: _Sweep, piece: _Piece[Any], client: ConsulClient) -> None:
        """Ask for as many as may be sent at once; later, where so many were sent lately that it is too soon."""
        count, delay = self._rate.book(len(piece.todo)) if sweep.error is None else (0, 0.0)
        if delay > 0:
            self._readers.put(Urgency.SWEEP, partial(self._ask, sweep, piece, count), delay)
        else:
            self._ask(sweep, piece, count, client)

    def _ask(self, sweep: _Sweep, piece: _Piece[Any], count: int, client: ConsulClient) -> None:
        before, began, failed = len(piece.todo), self._clock(), False
        if sweep.error is None:
            try:
                piece.ask(piece.todo, count, client)
            except (TransientError, PermanentError) as error:
                failed = True
                with self._lock:
                    first = sweep.error is None
                    sweep.error = sweep.error or error
                if first:
                    sweep.rest = self._ground.probe_failed(error, sweep.attempt + 1)
        with self._lock:
            sweep.asking += self._clock() - began
            sweep.answered += before - len(piece.todo)
            if piece.todo and sweep.error is None:
                self._readers.put(Urgency.SWEEP, partial(self._do, sweep, piece))
                return
            if piece.todo:
                sweep.unfinished.insert(len(sweep.unfinished) if failed else 0, piece)
            sweep.left -= 1
            if sweep.left == 0:
                self._round_ended(sweep)

    def _probe_services(self, todo: list[Entry], count: int, verifying: bool, client: ConsulClient) -> None:
        mode = Mode.STALE if verifying else Mode.LEADER
        if verifying:
            for entry in (e for e in todo if e.direct):  # what the streaming backend shows: instances are compared
                self._ground.service_moved(entry, verifying)
            todo[:] = [entry for entry in todo if not entry.direct]
        todo[:] = [entry for entry in todo if not entry.removed]
        entries = todo[:count]
        self.probes += len(entries)
        for entry, index in zip(entries, client.probe_services([e.query for e in entries], mode), strict=True):
            if index is None:
                with contextlib.suppress(PermanentError):  # the full read says what is wrong, to whom it concerns
                    index = client.probe_service(entry.query, mode).index
            del todo[0]
            if index != entry.index:
                self._ground.service_moved(entry, verifying)
                continue
            entry.vouched = True
            if verifying and entry.known is not None and entry.known.hidden:
                self._ground.service_moved(entry, False)  # rights that were given move no index

    def _probe_nodes(
        self, todo: list[str], count: int, known: dict[str, int], first: bool, client: ConsulClient
    ) -> None:
        if known is not self._nodes and known is not self._verified_nodes:  # forgotten since
            todo.clear()
            return
        nodes = todo[:count]
        self.probes += len(nodes)
        indexes = client.probe_nodes(nodes, self._datacenter, Mode.LEADER)
        for node, index in zip(nodes, indexes, strict=True):
            if index is None:
                index = client.probe_node(node, self._datacenter, Mode.LEADER).index
            if known.get(node) != index:
                if known is self._verified_nodes:
                    self._ground.verify_node(client, node)
                elif not first:
                    self._ground.node_moved(client, node)
                known[node] = index
            del todo[0]


def _pieces(items: Sequence[T]) -> list[list[T]]:
    return [list(items[i : i + PIECE]) for i in range(0, len(items), PIECE)]
