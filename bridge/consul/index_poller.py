"""Finding changes that Consul does not name: index probes over services or over nodes, whichever cost less.

A registration, a port, a meta value move the listing's index and name nothing. Every service and every node has an
index of its own that moves with exactly its changes, and asking for it costs a fraction of reading it (docs/consul.md).
A poll asks for all of them once, in small pieces between more urgent reads; at most one runs at a time, and the rest
between two grows with how long one takes, so that a busy catalog costs a bounded share of Consul and of us.

    changed     after the listing's index moved: services without a direct watch, or nodes; the leader answers
    unverified  after reads that began before anything listened: only those services, or all when there was no poll yet;
                and every second, where there are any, services of peers and of other namespaces: what changes there
                moves neither the listing's index nor one of the aggregate watches' (docs/consul.md)
    audit       now and then: every service, and every node: an instance that is registered under another name does not
             move the index of the service that it leaves; those with a direct watch are read, for their indexes prove
             nothing (streamed.py); what this finds was missed. Audits have a budget of their own, or a change
             that came during one would wait for seconds until it was paid for

A change during the first kind of poll does not wait for its end: the poll goes on where it is, and what it had asked
for before comes round again at its end. Those that changed last are asked first.

When a probe gets no answer the poll rests as the retry policy (or Consul's Retry-After) says and goes on with what is
left; a 429 lowers how many probes a second are sent, so that a poll ends within what Consul allows at last.

Longer than other modules: it is one class, whose polls share one budget of probes.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from bridge.consul.client import ConsulClient, Mode
from bridge.consul.ratelimit import AdaptiveRateLimiter, TokenBucket
from bridge.consul.read_pool import ReadPool, Urgency
from bridge.consul.subscriptions import Subscription
from bridge.errors import PermanentError, ThrottledError, TransientError

PIECE = 32
"""Probes that are sent at once. Where there are several readers, one stays out of polls: nothing waits for them."""

LATEST = 2 * PIECE
"""Those that changed last are asked first: what is installed again on a machine is often more than one service."""

SHARES = ((0.5, 3.0), (0.2, 60.0))
"""(share of the time, seconds of it that can be saved up in quiet times) that polls may take, all at once.

Half of the time while changes come in a burst, so that the last of them is found soon; a fifth of it, and no more,
when they never end.
"""

AUDIT_SHARE = (0.1, 60.0)
"""The same for audits: more than they take every few minutes, but for a catalog that is too large for that."""

NODE_COST = 2.5
"""A node's probe, as probes of services: Consul filters all that is on the node, and who moved must be asked too."""

SERVICES_INSTEAD_SECONDS = 300.0
"""How long services are probed where a node's probe was refused for good: what they are refused shows in a read."""

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Piece(Generic[T]):
    """Some of what a poll asks for. `ask(todo, count, client)` asks for the first of them, and removes those done.

    `lap`: of the poll, when the first of them was asked.
    """

    items: Sequence[T]
    ask: Callable[[list[T], int, ConsulClient], None]
    todo: list[T] = field(default_factory=list)
    lap: int = 0

    def __post_init__(self) -> None:
        self.todo = list(self.items)


class PollTarget(Protocol):
    """What is polled, and what the findings lead to."""

    def services_to_probe(self, every: bool) -> list[Subscription]:
        """Services that have been read: all, or only those that no direct watch looks after."""

    def nodes_to_probe(self) -> list[str] | None:
        """All nodes of the datacenter; None when they are not known."""

    def node_moved(self, client: ConsulClient, node: str) -> None:
        """Something about a node's services changed."""

    def audit_node(self, client: ConsulClient, node: str) -> None:
        """A node's index moved since the last audit: has a view what is no longer there?"""

    def service_moved(self, subscription: Subscription, auditing: bool) -> None:
        """Something about a service changed."""

    def probe_failed(self, error: TransientError | PermanentError, attempt: int) -> float:
        """A probe got no answer, for the `attempt`th time in a row; returns how many seconds polls are to rest."""


LEAST_REST_SECONDS = 0.05


@dataclass(slots=True, eq=False)
class _Poll:
    """`asking`: seconds that its probes took, together. `error`: what stopped it; `unfinished` goes on later.

    It saw all that was there when its last lap `began`, at whose end `done` is asked for again if another one begins.
    `paid`: seconds of its own that the budget has had so far.
    """

    # attributes: what one poll has asked, found and cost so far, all of which ends with it
    began: float
    left: int
    started: float
    auditing: bool = False
    every: bool = False
    founding: bool = False
    then: Callable[[], None] | None = None
    asking: float = 0.0
    answered: int = 0
    attempt: int = 0
    error: TransientError | PermanentError | None = None
    rest: float = 0.0
    unfinished: list[_Piece[Any]] = field(default_factory=list)
    done: list[_Piece[Any]] = field(default_factory=list)
    lap: int = 0
    paid: float = 0.0


class IndexPoller:
    """When to poll, and what. Any thread."""

    # attributes: what is wanted, what runs and when the next poll may begin decide together, under one lock

    def __init__(self, datacenter: str, ground: PollTarget, readers: ReadPool, clock: Callable[[], float]) -> None:
        self._datacenter = datacenter
        self._target = ground
        self._pool = readers
        self._clock = clock
        self._lock = threading.Lock()
        self._running: _Poll | None = None
        self._changed_wanted = False
        self._unverified_wanted = False
        self._audit_wanted = False
        self._audited_last = False
        self._budget = [TokenBucket(share, saved, clock) for share, saved in SHARES]
        self._audit_budget = [TokenBucket(*AUDIT_SHARE, clock)]
        self._rate = AdaptiveRateLimiter(PIECE, clock)
        self._not_before = float("-inf")
        self._audit_not_before = float("-inf")
        self._services_until = float("-inf")
        self._nodes: dict[str, int] | None = None
        self._audited_nodes: dict[str, int] = {}
        self.polled = 0
        self.polled_from = float("-inf")
        """When the last look that ended began: it saw all that was there by then."""
        self.audited = 0
        self.probes = 0
        self.last_seconds = 0.0

    @property
    def pending(self) -> bool:
        running = self._running
        return self._changed_wanted or self._unverified_wanted or (running is not None and not running.auditing)

    def poll_changed(self) -> None:
        """The listing's index moved and names nothing: poll as soon as it is time."""
        with self._lock:
            self._changed_wanted = not self._another_lap()
        self.tick()

    def poll_unverified(self) -> None:
        """Services were read whose index no probe has verified: ask for these as soon as it is time."""
        self._unverified_wanted = True
        self.tick()

    def audit(self) -> None:
        """Probe everything as soon as it is time."""
        self._audit_wanted = True
        self.tick()

    def forget(self) -> None:
        """Consul is another one: indexes mean nothing any more."""
        with self._lock:
            self._nodes = None
            self._audited_nodes = {}

    def tick(self) -> None:
        with self._lock:
            if self._running is not None or self._clock() < self._not_before:
                return
            look = self._changed_wanted or self._unverified_wanted
            if self._audit_due() and not (look and self._audited_last):  # in a busy catalog a look is always due
                self._audit_wanted, self._audited_last = False, True
                self._begin_audit()
            elif look:
                every, self._changed_wanted, self._unverified_wanted, self._audited_last = (
                    self._changed_wanted,
                    False,
                    False,
                    False,
                )
                self._begin_poll(every)

    # ------------------------------------------------------------------ all below under the lock

    def _audit_due(self) -> bool:
        return self._audit_wanted and self._clock() >= self._audit_not_before

    def _begin_audit(self) -> None:
        pieces = self._probes_of(self._target.services_to_probe(every=True), auditing=True)
        nodes = self._target.nodes_to_probe() if self._clock() >= self._services_until else None
        if nodes is not None:
            for gone in self._audited_nodes.keys() - set(nodes):
                del self._audited_nodes[gone]
            pieces += self._probes_of_nodes(nodes, self._audited_nodes)
        self._begin(pieces, auditing=True)

    def _begin_poll(self, every: bool) -> None:
        services = self._target.services_to_probe(every=False)
        covered = [subscription for subscription in services if subscription.covered_by_aggregate]
        nodes = self._target.nodes_to_probe() if self._clock() >= self._services_until else None
        if nodes is None or len(nodes) * NODE_COST >= len(covered):
            asked = services if every else _rest_of(services)
            self._begin(self._probes_of(asked, auditing=False), every=every)
            return
        rest = _rest_of(services)
        if self._nodes is None:
            # the indexes must be older than the views that they verify: nodes first, then every service once
            self._nodes = {}
            began = self._clock()

            def all_services() -> None:
                self._begin(self._probes_of(services, auditing=False), founding=True, every=True, began=began)

            self._begin(
                self._probes_of_nodes(nodes, self._nodes, first=True), founding=True, every=True, then=all_services
            )
            return
        for gone in self._nodes.keys() - set(nodes):
            del self._nodes[gone]
        pieces = self._probes_of_nodes(nodes, self._nodes) if every else []
        self._begin([*pieces, *self._probes_of(rest, auditing=False)], every=every)

    def _probes_of(self, subscriptions: list[Subscription], auditing: bool) -> list[_Piece[Any]]:
        def ask(todo: list[Subscription], count: int, client: ConsulClient) -> None:
            self._probe_services(todo, count, auditing, client)

        return [_Piece(piece, ask) for piece in _pieces(subscriptions, lambda subscription: subscription.index)]

    def _probes_of_nodes(self, nodes: list[str], known: dict[str, int], first: bool = False) -> list[_Piece[Any]]:
        def ask(todo: list[str], count: int, client: ConsulClient) -> None:
            self._probe_nodes(todo, count, known, first, client)

        return [_Piece(piece, ask) for piece in _pieces(nodes, lambda node: known.get(node, math.inf))]

    def _begin(
        self,
        pieces: list[_Piece[Any]],
        *,
        auditing: bool = False,
        every: bool = False,
        founding: bool = False,
        then: Callable[[], None] | None = None,
        began: float | None = None,
    ) -> None:
        now = self._clock()
        poll = _Poll(now if began is None else began, len(pieces), now, auditing, every, founding, then)
        self._running = poll
        if not pieces:
            self._end(poll)
        self._pool.put_all(Urgency.POLL, [partial(self._do, poll, piece) for piece in pieces])

    def _another_lap(self) -> bool:
        """Whether the poll that runs goes on so that it finds what changed just now, instead of another one after it.

        Not when others wait for its end, nor at the expense of the rest that it owes.
        """
        poll = self._running
        if poll is None or not poll.every or poll.founding or poll.error is not None or poll.attempt:
            return False
        if self._audit_due() or self._pay(poll) > 0:
            return False
        poll.began, poll.lap = self._clock(), poll.lap + 1
        again, poll.done = poll.done, []
        poll.left += len(again)
        self._pool.put_all(Urgency.POLL, [self._again(poll, piece) for piece in again])
        return True

    def _again(self, poll: _Poll, piece: _Piece[Any]) -> Callable[[ConsulClient], None]:
        return partial(self._do, poll, _Piece(piece.items, piece.ask))

    def _pay(self, poll: _Poll) -> float:
        """Take the poll's time from its budget; returns after how many seconds another of its kind may begin."""
        took = min(poll.asking, self._clock() - poll.started) - poll.paid
        poll.paid += took
        return max(bucket.take(took) for bucket in (self._audit_budget if poll.auditing else self._budget))

    def _round_ended(self, poll: _Poll) -> None:
        """Nothing of a poll is under way any more: it is at its end, or it goes on after a rest."""
        error, poll.error = poll.error, None
        if error is None:
            self._end(poll)
        elif isinstance(error, PermanentError):
            self._give_up(poll)
        else:
            if isinstance(error, ThrottledError):
                self._rate.slower()
            poll.attempt = 1 if poll.answered else poll.attempt + 1
            pieces, poll.unfinished, poll.answered = poll.unfinished, [], 0
            poll.left = len(pieces)
            for piece in pieces:
                self._pool.put(Urgency.POLL, partial(self._do, poll, piece), max(poll.rest, LEAST_REST_SECONDS))

    def _give_up(self, poll: _Poll) -> None:
        """A node may not be asked, and waiting will not change that soon: services are asked instead."""
        self._services_until = self._clock() + SERVICES_INSTEAD_SECONDS
        self._audit_wanted |= poll.auditing
        self._changed_wanted |= not poll.auditing
        self._nodes = None if poll.founding else self._nodes
        self._rest(poll, poll.rest)

    def _end(self, poll: _Poll) -> None:
        if poll.then is not None:
            poll.then()
            return
        if poll.auditing:
            self.audited += 1
        else:
            self.polled += 1
            self.polled_from = poll.began if poll.every else self.polled_from
        self._rest(poll, 0.0)

    def _rest(self, poll: _Poll, seconds: float) -> None:
        self._running = None
        self.last_seconds = self._clock() - poll.started
        rest, debt = seconds, self._pay(poll)
        if poll.auditing:
            self._audit_not_before = self._clock() + debt
        else:
            rest = max(seconds, debt)
        self._not_before = self._clock() + rest
        if self._changed_wanted or self._unverified_wanted or self._audit_wanted:
            self._pool.put(Urgency.POLL, lambda _client: self.tick(), max(rest, LEAST_REST_SECONDS))

    # ------------------------------------------------------------------ on the readers' threads

    def _do(self, poll: _Poll, piece: _Piece[Any], client: ConsulClient) -> None:
        """Ask for as many as may be sent at once; later, where so many were sent lately that it is too soon."""
        count, delay = self._rate.book(len(piece.todo)) if poll.error is None else (0, 0.0)
        if delay > 0:
            self._pool.put(Urgency.POLL, partial(self._ask, poll, piece, count), delay)
        else:
            self._ask(poll, piece, count, client)

    def _ask(self, poll: _Poll, piece: _Piece[Any], count: int, client: ConsulClient) -> None:
        before, began, failed = len(piece.todo), self._clock(), False
        if before == len(piece.items):
            piece.lap = poll.lap
        if poll.error is None:
            try:
                piece.ask(piece.todo, count, client)
            except (TransientError, PermanentError) as error:
                failed = True
                with self._lock:
                    first = poll.error is None
                    poll.error = poll.error or error
                if first:
                    poll.rest = self._target.probe_failed(error, poll.attempt + 1)
        with self._lock:
            poll.asking += self._clock() - began
            poll.answered += before - len(piece.todo)
            if piece.todo and poll.error is None:
                self._pool.put(Urgency.POLL, partial(self._do, poll, piece))
                return
            if piece.todo:
                poll.unfinished.insert(len(poll.unfinished) if failed else 0, piece)
            elif piece.lap != poll.lap:  # it was being asked for when another lap began
                self._pool.put(Urgency.POLL, self._again(poll, piece))
                return
            else:
                poll.done.append(piece)
            poll.left -= 1
            if poll.left == 0:
                self._round_ended(poll)

    def _probe_services(self, todo: list[Subscription], count: int, auditing: bool, client: ConsulClient) -> None:
        mode = Mode.STALE if auditing else Mode.LEADER
        if auditing:
            for subscription in (e for e in todo if e.watched):  # by the streaming backend: instances are compared
                self._target.service_moved(subscription, auditing)
            todo[:] = [subscription for subscription in todo if not subscription.watched]
        todo[:] = [subscription for subscription in todo if not subscription.removed]
        subscriptions = todo[:count]
        self.probes += len(subscriptions)
        for subscription, index in zip(
            subscriptions, client.probe_services([e.query for e in subscriptions], mode), strict=True
        ):
            if index is None:
                with contextlib.suppress(PermanentError):  # the full read says what is wrong, to whom it concerns
                    index = client.probe_service(subscription.query, mode).index
            del todo[0]
            if index != subscription.index:
                self._target.service_moved(subscription, auditing)
                continue
            subscription.verified_index = True
            if auditing and subscription.known is not None and subscription.known.acl_filtered:
                self._target.service_moved(subscription, False)  # rights that were given move no index

    def _probe_nodes(
        self, todo: list[str], count: int, known: dict[str, int], first: bool, client: ConsulClient
    ) -> None:
        if known is not self._nodes and known is not self._audited_nodes:  # forgotten since
            todo.clear()
            return
        nodes = todo[:count]
        self.probes += len(nodes)
        indexes = client.probe_nodes(nodes, self._datacenter, Mode.LEADER)
        for node, index in zip(nodes, indexes, strict=True):
            if index is None:
                index = client.probe_node(node, self._datacenter, Mode.LEADER).index
            if known.get(node) != index:
                if known is self._audited_nodes:
                    self._target.audit_node(client, node)
                elif not first:
                    self._target.node_moved(client, node)
                known[node] = index
            del todo[0]


def _rest_of(services: list[Subscription]) -> list[Subscription]:
    """Those of which no watch and no probe of a node tells anything, and those whose index nothing has verified."""
    return [e for e in services if not (e.covered_by_aggregate and e.verified_index)]


def _pieces(items: Sequence[T], index: Callable[[T], float]) -> list[list[T]]:
    """Those that changed last, then all others in no order, so that none is always the last."""
    latest = dict.fromkeys(heapq.nlargest(LATEST, items, key=index))
    others = [item for item in items if item not in latest]
    random.shuffle(others)
    ordered = [*latest, *others]
    return [ordered[i : i + PIECE] for i in range(0, len(ordered), PIECE)]
