"""Single reads: of a service that is to be read again, and of a node on which something changed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from bridge.consul import decode
from bridge.consul.client import STREAMING, Answer, ConsulClient, Mode
from bridge.consul.consistency import Conditions
from bridge.consul.faults import ENOUGH_POLICY
from bridge.consul.link import Link
from bridge.consul.ratelimit import TokenBucket
from bridge.consul.read_pool import ReadPool, Urgency
from bridge.consul.subscriptions import Published, Subscription, SubscriptionTable, instances_of
from bridge.core.model import UNADDRESSABLE, Knowledge, Known, Query, Unknown
from bridge.errors import CancelledError, PermanentError, TransientError

SERVICE_RATE, SERVICE_BURST = 20.0, 250.0
ALL_RATE, ALL_BURST = 300.0, 5000.0
"""Reads a second, and at once after a quiet while: of one service (by its direct watch, and as much by all others), and
of all services together. First reads and probes are not among them: the read pool and index_poller.py bound those.
"""


class Read(NamedTuple):
    """A read that was published: what was known `before`, when it was `seen`, whether an audit had asked for it."""

    subscription: Subscription
    before: Known | None
    published: Published
    seen: float
    auditing: bool


class HiddenServices:
    """Services that Consul hides from our token: a trouble of the datacenter until the last can be seen. Any thread."""

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self._lock = threading.Lock()
        self._hidden: dict[Query, str] = {}

    def note(self, subscription: Subscription, state: Knowledge) -> None:
        with self._lock:
            before = bool(self._hidden)
            if isinstance(state, Unknown) and not subscription.removed:
                self._hidden[subscription.query] = state.reason
            else:
                self._hidden.pop(subscription.query, None)
            first = next(iter(self._hidden.items()), None)
            if bool(first) != before:
                self._conditions.set("rights", None if first is None else f"{first[0].service}: {first[1]}. A policy "
                                     f"that suffices: {ENOUGH_POLICY}")  # fmt: skip


@dataclass(eq=False, repr=False)
class ServiceReader:
    """Has services read again, each at most so often. `on_read` is called with each published view. Any thread."""

    link: Link
    table: SubscriptionTable
    pool: ReadPool
    hidden: HiddenServices
    on_read: Callable[[Read], None]

    def __post_init__(self) -> None:
        self._in_hand: dict[Subscription, set[str]] = {}
        self.bucket = TokenBucket(ALL_RATE, ALL_BURST, self.link.clock)
        self.unverified = False
        """Whether a view was read since this was last reset whose index no probe has verified."""

    def bucket_of_one(self) -> TokenBucket:
        """How often a service may be read by a direct watch of its own."""
        return TokenBucket(SERVICE_RATE, SERVICE_BURST, self.link.clock)

    # ------------------------------------------------------------------ who is to be read

    def refresh(
        self,
        subscription: Subscription,
        urgency: Urgency = Urgency.NOW,
        delay_seconds: float = 0.0,
        *,
        even_direct: bool = False,
    ) -> None:
        """Have a service read again; many requests at once are one read, one during a read is another read after it."""
        with self.table.lock:
            if subscription.removed or (subscription.watched and not even_direct):
                return
            if subscription.reading:
                subscription.again = True
            if subscription.queued or subscription.reading:
                return
            subscription.queued = True
            # a token bucket in one number: every read moves it by what it costs
            now = self.link.clock()
            subscription.paid_until = max(subscription.paid_until, now) + 1.0 / SERVICE_RATE
            spacing = subscription.paid_until - now - SERVICE_BURST / SERVICE_RATE
        self.pool.put(urgency, partial(self._pay_and_read, subscription), max(delay_seconds, spacing))

    def notify(self, subscriptions: Iterable[Subscription], index: int) -> None:
        """Something of these changed, at `index` (0: not known): those whose views may be older are read."""
        now = self.link.clock()
        for subscription in subscriptions:
            subscription.last_notified_at = now
            if not subscription.watched and (not index or subscription.index < index):
                self.refresh(subscription)

    def on_node(self, node: str) -> tuple[Subscription, ...]:
        """Who has an instance on a node; who is being read is asked when that is known."""
        with self.table.lock:
            for suspects in self._in_hand.values():
                suspects.add(node.lower())
        return self.table.on_node(node)

    def read_again_what_is_in_hand(self) -> None:
        """An aggregate watch begins to listen: what is being read may be older than that."""
        with self.table.lock:
            for subscription in self._in_hand:
                subscription.again = True

    # ------------------------------------------------------------------ on the readers' threads

    def _pay_and_read(self, subscription: Subscription, client: ConsulClient) -> None:
        """Read a service as soon as all of them together are not read too often. First reads are free."""
        pause = self.bucket.take() if subscription.known is not None else 0.0
        if pause:
            self.pool.put(Urgency.NOW, partial(self._read, subscription), pause)
        else:
            self._read(subscription, client)

    def _read(self, subscription: Subscription, client: ConsulClient) -> None:
        with self.table.lock:
            subscription.queued = False
            if subscription.removed:
                return
            subscription.reading = True
            self._in_hand[subscription] = set()
            auditing, subscription.auditing = subscription.auditing, False
            generation = subscription.generation
        delay = None
        try:
            delay = self._read_once(subscription, client, generation, auditing)
        except CancelledError:
            delay = 0.0
            raise
        finally:
            with self.table.lock:
                subscription.reading = False
                overtaken = not self._in_hand.pop(subscription).isdisjoint(subscription.nodes)
                again, subscription.again = subscription.again or overtaken, False
            if (again or delay is not None) and not self.link.stop.is_set():
                self.refresh(subscription, delay_seconds=0.0 if again else delay or 0.0)

    def _read_once(
        self, subscription: Subscription, client: ConsulClient, generation: int, auditing: bool
    ) -> float | None:
        """One read; returns after how many seconds there must be another (None: it is done)."""
        before = subscription.known
        mode = Mode.STALE if before is None else Mode.LEADER
        try:
            answer = client.health_service(subscription.query, mode=mode)
            seen = self.link.clock()
            state = decode.proved(answer, before, waited=False) or Unknown(decode.HIDDEN)
        except (TransientError, PermanentError) as error:
            subscription.attempts += 1
            self.link.read_failed(error)
            if subscription.watched:
                return None
            if not self.link.gate.suspect or subscription.state is None:
                self.table.publish(
                    subscription, Unknown(str(error), lasting=isinstance(error, PermanentError)), self.link.clock()
                )
            return self.link.policy(error).wait_seconds(subscription.attempts, error)
        if self.link.gate.suspect:
            return 0.0
        published = self.table.publish(subscription, state, seen, generation)
        if published is Published.STALE:
            return None if subscription.watched else 0.0
        subscription.attempts = 0
        self.link.read_worked(seen)
        if not subscription.verified_index:
            self.unverified = True
        self.hidden.note(subscription, state)
        learn_index(subscription, answer)
        if isinstance(state, Unknown):
            return self.link.policy(PermanentError(state.reason)).wait_seconds(3)
        self.on_read(Read(subscription, before, published, seen, auditing))
        return None


@dataclass(eq=False, repr=False)
class NodeReader:
    """Asks what is on a node, and has the services read that changed there. Any thread."""

    link: Link
    table: SubscriptionTable
    pool: ReadPool
    services: ServiceReader

    def ask(self, node: str, *, whole: bool = False, attempt: int = 0, delay_seconds: float = 0.0) -> None:
        """Refresh what changed on a node, or (`whole`) every service that is there, whatever the views say."""
        if node in UNADDRESSABLE:
            return  # the audit of services finds what changes there
        self.pool.put(Urgency.NOW, partial(self._read, node, whole, attempt), delay_seconds)

    def _read(self, node: str, whole: bool, attempt: int, client: ConsulClient) -> None:
        try:
            self.moved(client, node, whole)
        except (TransientError, PermanentError) as error:
            self.link.read_failed(error)
            delay = self.link.policy(error).wait_seconds(attempt + 1, error)
            self.ask(node, whole=whole, attempt=attempt + 1, delay_seconds=delay)

    def moved(self, client: ConsulClient, node: str, whole: bool = False) -> None:
        """A node's index moved: refresh what changed on it.

        A view is older than a change when its index is lower than that change's; what went from a node leaves no index
        behind, but is still in the views; so is what has another name now.
        """
        modified, there = decode.services_on(client.node_services(node, self.link.name))
        for service, index in there.values():
            self.services.notify(self.table.of_service(service), 0 if whole else index)
        for subscription in self.services.on_node(node):
            self.services.notify((subscription,), 0 if whole or _gone(subscription, node, there) else modified)

    def lost(self, client: ConsulClient, node: str) -> list[Subscription]:
        """The services that have an instance on a node in their views, and have it there no more."""
        _, there = decode.services_on(client.node_services(node, self.link.name))
        return [subscription for subscription in self.table.on_node(node) if _gone(subscription, node, there)]


def learn_index(subscription: Subscription, answer: Answer) -> None:
    """A service's own index is what plain reads say."""
    if answer.query_backend != STREAMING:
        subscription.index = answer.index


def _gone(subscription: Subscription, node: str, there: Mapping[str, tuple[str, int]]) -> bool:
    """Whether a view has an instance on a node that is `there` no more, or has another name."""
    here, name = node.lower(), subscription.query.service.lower()
    return any(
        i.node.lower() == here and there.get(i.id, ("", 0))[0].lower() != name for i in instances_of(subscription)
    )
