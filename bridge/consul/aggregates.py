"""The aggregate watches of a datacenter: three queries that name what changed, for services without a direct watch.

What an answer names is decided in aggregate_watch.py; here it is asked for, and who is named is read again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from bridge.consul import aggregate_watch, decode
from bridge.consul.client import Answer, ConsulClient
from bridge.consul.link import Link
from bridge.consul.ratelimit import TokenBucket
from bridge.consul.reader import NodeReader, ServiceReader
from bridge.consul.subscriptions import SubscriptionTable, instances_of
from bridge.consul.watch import Watch
from bridge.core.model import UNADDRESSABLE, Status
from bridge.errors import BridgeError
from bridge.threads import guarded_thread

LINGER_SECONDS = 60.0
"""How long the aggregate watches stay when every service has a direct watch again."""

GIVE_WAY_SECONDS = 0.006
"""The listing and the nodes are long answers for those who are in no hurry, and come at the same moment as those of
direct watches: decoded at once, they would hold the interpreter while a change of 5 ms waits (docs/scaling.md)."""

RATE, BURST, BYTES = 20.0, 20.0, 6e6
"""A quiet aggregate watch asks again at once; a busy one so that it costs at most so many wakes and bytes a second."""


@dataclass(slots=True, eq=False)
class _AggregateWatch:
    """An aggregate watch: its connection, and its last body. Unsynced while it may have missed something."""

    name: str
    client: ConsulClient
    statuses: frozenset[Status] = frozenset()
    body: Any = None
    index: int = 0
    unsynced: bool = True


class AggregateWatches:
    """All three, or none where the budget is too small. They run while they are needed. Any thread."""

    def __init__(
        self, link: Link, table: SubscriptionTable, services: ServiceReader, nodes: NodeReader, *, affordable: bool
    ) -> None:
        self._link = link
        self._table = table
        self._services = services
        self._node_reader = nodes
        self._needed = threading.Event()
        self._until = float("-inf")
        self.watches = (
            (
                _AggregateWatch("critical", link.client(), frozenset({Status.CRITICAL, Status.MAINTENANCE})),
                _AggregateWatch("warning", link.client(), frozenset({Status.WARNING})),
                _AggregateWatch("nodes", link.client(GIVE_WAY_SECONDS)),
            )
            if affordable
            else ()
        )

    def threads(self, failed: Callable[[BaseException], None]) -> list[threading.Thread]:
        return [
            guarded_thread(f"consul-{watch.name}-{self._link.name}", partial(self._follow, watch), failed)
            for watch in self.watches
        ]

    # ------------------------------------------------------------------ when they run

    def start(self) -> None:
        """Some service has no direct watch."""
        self._until = self._link.clock() + LINGER_SECONDS
        self._needed.set()

    def tick(self, now: float) -> None:
        """Stop when no service has needed them for a while."""
        if self._table.unwatched:
            self.start()
        elif now >= self._until and self._needed.is_set() and not self._link.stop.is_set():
            self._needed.clear()

    def end(self) -> None:
        self._needed.set()

    def forget(self) -> None:
        """Consul is another one: what the next answer lacks may have been missed."""
        for watch in self.watches:
            watch.unsynced = True

    def wake(self) -> None:
        """End the queries that wait; they are asked again."""
        for watch in self.watches:
            watch.client.wake()

    @property
    def clients(self) -> tuple[ConsulClient, ...]:
        return tuple(watch.client for watch in self.watches)

    @property
    def running(self) -> bool:
        return self._needed.is_set() and bool(self.watches)

    @property
    def unsynced(self) -> bool:
        """Whether one of them may have missed something."""
        return any(watch.unsynced for watch in self.watches)

    def nodes(self) -> list[str] | None:
        """All nodes; None when they are not known."""
        watch = self.watches[-1] if self.watches else None
        if watch is None or watch.unsynced or watch.body is None:
            return None
        return sorted(watch.body.keys() - UNADDRESSABLE)

    # ------------------------------------------------------------------ a watch's thread

    def _follow(self, aggregate: _AggregateWatch) -> None:
        """Idle while every service has a direct watch."""
        watch = self._loop(aggregate)
        while not self._link.stop.is_set():
            if not self._needed.is_set():
                aggregate.unsynced = True
                watch.position.failed()
                aggregate.client.disconnect()
                self._link.conditions.set(aggregate.name, None)  # no query runs that would notice the recovery
                self._needed.wait()
                continue
            watch.step()

    def _loop(self, aggregate: _AggregateWatch) -> Watch:
        def ask(index: int, wait: float) -> Answer:
            aggregate.unsynced = aggregate.unsynced or index == 0
            if aggregate.statuses:
                return aggregate.client.state(aggregate.name, self._link.name, index, wait)
            return aggregate.client.nodes(self._link.name, index, wait)

        def take(answer: Answer) -> bool:
            if aggregate.statuses:
                self._take_checks(aggregate, answer)
            else:
                self._take_nodes(aggregate, answer)
            aggregate.unsynced = False
            self._link.conditions.set(aggregate.name, None)
            return True

        def fail(error: BridgeError) -> None:
            self._link.broke(error)
            self._link.conditions.set(aggregate.name, str(error))

        return self._link.watch(
            aggregate.client,
            ask,
            take,
            fail,
            (TokenBucket(RATE, BURST, self._link.clock),),
            TokenBucket(BYTES, BYTES, self._link.clock),
        )

    def _take_checks(self, aggregate: _AggregateWatch, answer: Answer) -> None:
        before, after = aggregate.body or {}, decode.checks_of(answer)
        since = aggregate.index
        aggregate.body, aggregate.index = after, answer.index
        if not aggregate.unsynced:
            self._notify_hinted(aggregate_watch.flips(before, after, since))
            return
        self._services.read_again_what_is_in_hand()
        self._notify_hinted(aggregate_watch.hints_after_gap(before, after))
        there = {(node.lower(), check) for node, check in after}
        for subscription in self._table.all():
            if not subscription.watched and aggregate_watch.contradicts(
                instances_of(subscription), aggregate.statuses, there
            ):
                self._services.notify((subscription,), 0)

    def _take_nodes(self, aggregate: _AggregateWatch, answer: Answer) -> None:
        first, before, after = aggregate.body is None, aggregate.body or {}, decode.nodes_of(answer)
        aggregate.body = after
        if aggregate.unsynced:
            self._services.read_again_what_is_in_hand()
        self._link.gate.observe(answer.index, dict(after))
        if first:
            hints = aggregate_watch.ChangeHints(nodes={node: modified for node, (_, modified) in after.items()})
            for node, index in hints.nodes.items():
                self._services.notify(self._services.on_node(node), index)
            return
        hints, new = aggregate_watch.moved_nodes(before, after)
        self._notify_hinted(hints)
        for node in new:
            self._node_reader.ask(node)

    def _notify_hinted(self, hints: aggregate_watch.ChangeHints) -> None:
        for service, index in hints.services.items():
            self._services.notify(self._table.of_service(service), index)
        for (node, identity), service in hints.instances.items():
            name = service.lower()
            for subscription in self._services.on_node(node):
                if subscription.query.service.lower() != name and subscription.has(node, identity):
                    self._services.notify((subscription,), 0)
        for node, index in hints.nodes.items():
            self._services.notify(self._services.on_node(node), index)
            if self._table.filtered:
                self._node_reader.ask(node, whole=True)  # a filter may hide from the views what lives there
