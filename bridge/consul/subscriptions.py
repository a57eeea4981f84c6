"""The wanted services of one datacenter: what is known of each, who looks after it, and where its instances live.

`publish` is the only way to the listener: it compares decoded views, keeps the order per service, and is silent when
nothing changed. No I/O in here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from bridge.core.model import Instance, Knowledge, Known, Query, Unknown


@dataclass(slots=True, eq=False)
class Subscription:
    """One wanted service. `lock` orders what is published of it; all else is under the table's lock.

    `index` is the service's own by plain reads and probes, never by the streaming backend. `generation` counts what was
    published, so that a slow reader does not overwrite what a faster one knows. `covered_by_aggregate`: aggregate
    watches and polls of nodes see it (not so for other namespaces, partitions and peers). `watch_assigned`: it has a
    direct watch; `watched`: that watch is listening, so nothing else needs to read. `last_notified_at`: when a change
    of it was last announced. `paid_until`: until when the reads that were asked for are paid. `verified_index`: a probe
    agreed with its view after that was published, so that aggregate watches and probes of nodes may go on from there;
    not so for a view whose reading began before they listened.

    `nodes` are without case: Consul's checks may spell a node otherwise than its catalog. `mismatch`: why Consul's
    streaming backend is not asked about this service any more (streamed.py); "" while it is.
    """

    # attributes: the row of one service in the table: values, which the table, the reader and the poller write

    query: Query
    covered_by_aggregate: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)
    state: Knowledge | None = None
    known: Known | None = None
    nodes: frozenset[str] = frozenset()
    index: int = 0
    mismatch: str = ""
    generation: int = 0
    attempts: int = 0
    last_notified_at: float = float("-inf")
    paid_until: float = float("-inf")
    watch_assigned: bool = False
    watched: bool = False
    verified_index: bool = False
    queued: bool = False
    reading: bool = False
    again: bool = False
    auditing: bool = False
    removed: bool = False

    def has(self, node: str, identity: str) -> bool:
        """Whether the last view has this instance. Consul does not tell apart upper and lower case."""
        node, identity = node.lower(), identity.lower()
        return self.known is not None and any(
            i.id.lower() == identity and i.node.lower() == node for i in self.known.instances
        )


class Published(Enum):
    """What became of a view: CHANGED differs from what was known before, STALE came too late and was refused."""

    CHANGED = auto()
    SAME = auto()
    STALE = auto()


InlineExecutor = Callable[[Callable[[], None]], None]
"""Takes work that the reading thread does itself, as soon as it holds no locks."""


class SubscriptionTable:
    """All subscriptions. `lock` is never held while the listener is called."""

    def __init__(
        self, on_view: Callable[[Query, Knowledge, float, InlineExecutor | None], None], namespace: str, partition: str
    ) -> None:
        self._on_view = on_view
        self._scope = (namespace, partition)
        self.lock = threading.Lock()
        self.subscriptions: dict[Query, Subscription] = {}
        self.unwatched = 0
        self.unnoticed = 0
        """How many of these no aggregate watch sees."""
        self.filtered = 0
        self._by_name: dict[str, tuple[Subscription, ...]] = {}
        self._by_node: dict[str, set[Subscription]] = {}

    # ------------------------------------------------------------------ who is wanted

    def want(self, new: Iterable[Query], old: Iterable[Query] = ()) -> tuple[list[Subscription], list[Subscription]]:
        """Add the `new` ones and remove the `old` ones; returns the subscriptions that came and those that went."""
        with self.lock:
            added = [self._add(query) for query in sorted(new) if query not in self.subscriptions]
            removed = [self._remove(query) for query in old if query in self.subscriptions]
        return added, removed

    def _add(self, query: Query) -> Subscription:
        namespace, partition = self._scope
        here = query.namespace in ("", namespace) and query.partition in ("", partition) and not query.peer
        subscription = Subscription(query, covered_by_aggregate=here)
        self.subscriptions[query] = subscription
        name = query.service.lower()
        self._by_name[name] = (*self._by_name.get(name, ()), subscription)
        self._count_unwatched(subscription, 1)
        self.filtered += bool(query.filter)
        return subscription

    def _remove(self, query: Query) -> Subscription:
        subscription = self.subscriptions.pop(query)
        subscription.removed = True
        self._count_unwatched(subscription, -(not subscription.watch_assigned))
        self.filtered -= bool(query.filter)
        name = query.service.lower()
        self._by_name[name] = tuple(one for one in self._by_name[name] if one is not subscription)
        if not self._by_name[name]:
            del self._by_name[name]
        for node in subscription.nodes:
            _discard(self._by_node, node, subscription)
        return subscription

    def assign(self, subscription: Subscription, assigned: bool) -> None:
        """Note whether a subscription has a direct watch of its own."""
        with self.lock:
            if subscription.watch_assigned != assigned and not subscription.removed:
                self._count_unwatched(subscription, -1 if assigned else 1)
            subscription.watch_assigned = assigned
            subscription.watched = subscription.verified_index = False

    def _count_unwatched(self, subscription: Subscription, change: int) -> None:
        self.unwatched += change
        self.unnoticed += 0 if subscription.covered_by_aggregate else change

    # ------------------------------------------------------------------ who is meant

    def of_service(self, service: str) -> tuple[Subscription, ...]:
        """Subscriptions of a service name (Consul does not tell apart upper and lower case)."""
        with self.lock:
            return self._by_name.get(service.lower(), ())

    def on_node(self, node: str) -> tuple[Subscription, ...]:
        """Subscriptions with an instance on a node (in upper or lower case), as far as their views show."""
        with self.lock:
            return tuple(self._by_node.get(node.lower(), ()))

    def all(self) -> tuple[Subscription, ...]:
        """Every subscription, in the order in which they came."""
        with self.lock:
            return tuple(self.subscriptions.values())

    # ------------------------------------------------------------------ what is known

    def publish(
        self,
        subscription: Subscription,
        state: Known | Unknown,
        seen: float,
        generation: int | None = None,
        inline: InlineExecutor | None = None,
    ) -> Published:
        """Take what was read for a subscription and call the listener when it differs from what was known.

        With `generation` (as it was before the reading began) a view that another reader overtook is refused. `inline`
        offers the caller's thread to the listener.
        """
        with subscription.lock:
            if subscription.removed:
                return Published.SAME
            if generation is not None and subscription.generation != generation:
                return Published.STALE
            subscription.generation += 1
            if state == subscription.state:
                return Published.SAME
            changed = False
            if isinstance(state, Known):
                changed = subscription.known is not None and state != subscription.known
                state = self._keep(subscription, state)
            subscription.state = state
            self._on_view(subscription.query, state, seen, inline)
            return Published.CHANGED if changed else Published.SAME

    def _keep(self, subscription: Subscription, state: Known) -> Known:
        """Remember a view; instances that did not change stay the same objects."""
        old = {i: i for i in subscription.known.instances} if subscription.known else {}
        state = replace(state, instances=tuple(old.get(i, i) for i in state.instances))
        subscription.known = state
        nodes = frozenset(i.node.lower() for i in state.instances)
        if nodes != subscription.nodes:
            with self.lock:
                if not subscription.removed:
                    for node in subscription.nodes - nodes:
                        _discard(self._by_node, node, subscription)
                    for node in nodes - subscription.nodes:
                        self._by_node.setdefault(node, set()).add(subscription)
                    subscription.nodes = nodes
        return state


def _discard(table: dict[str, set[Subscription]], key: str, subscription: Subscription) -> None:
    subscriptions = table.get(key)
    if subscriptions is not None:
        subscriptions.discard(subscription)
        if not subscriptions:
            del table[key]


def instances_of(subscription: Subscription) -> tuple[Instance, ...]:
    known = subscription.known
    return known.instances if known else ()
