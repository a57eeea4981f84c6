"""What the one-shot commands begin from: both sides, read once, and the planner that plans what was read.

The same way as `bridge run`'s, without watching. `load` is all that `bridge sync` and `bridge status` need; `bridge
explain` reads few services first (`Loaded.read`), `bridge check` takes the steps one by one, with a probe after each,
and `bridge purge` only the first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict, Unpack

from bridge.consul.client import ConsulConfig
from bridge.consul.snapshot import read_all
from bridge.core import select
from bridge.core.annotated import Refusal, request_at
from bridge.core.guard import Guard
from bridge.core.model import (
    NO_NODES,
    SERVICE_KINDS,
    Action,
    Kind,
    Knowledge,
    Listing,
    Plan,
    Query,
    Rule,
    Target,
    Unknown,
)
from bridge.core.reasons import Code, Reason
from bridge.core.reconcile import Draft, Surroundings, names_at, observe, reconcile
from bridge.core.rule_matches import unmatched
from bridge.core.select import Choice, Only
from bridge.core.state import ConsulState
from bridge.errors import BridgeError, CancelledError
from bridge.kube.client import KubeClient, KubeConfig
from bridge.kube.lease_api import holder
from bridge.kube.mirrored import mirrored
from bridge.kube.nodes import cluster_nodes
from bridge.kube.permissions import NamespaceState, namespace_states
from bridge.kube.reads import list_once, read_slices_again
from bridge.kube.store import Store
from bridge.pipeline.deviation_window import DeviationWindow
from bridge.pipeline.dns import Resolver
from bridge.pipeline.grants import with_labels
from bridge.pipeline.options import PassOptions
from bridge.pipeline.planner import Planner
from bridge.pipeline.scope import anchored, datacenters_of, namespaces_of
from bridge.pipeline.slice_rights import slice_rights
from bridge.retry import RetryPolicy, call
from bridge.telemetry.logs import kube_warning

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""

MIRROR_SECONDS = 1.0
"""How long a mirror of Endpoints that is behind is given; the control plane takes a tenth of that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncOptions(PassOptions):
    """How one pass is made. `retry.attempts` bounds the tries per object.

    `only` narrows a forced pass: what it does not take, and what is not mirrored yet, is left alone. `selects`:
    the settings say which services are meant; else one rule takes every service, and commands that only look say so.
    `leases`: a leader is to be elected (what `bridge check` asks about), with Leases in `lease_namespace`.
    """

    selects: bool
    dry_run: bool
    force: bool
    leases: bool
    lease_namespace: str
    only: Only
    readers: int
    retry: RetryPolicy


class Sides(TypedDict):
    """What every one-shot command is given: how both sides are reached, and what is wanted of them."""

    consul: ConsulConfig
    kube: KubeConfig
    rules: Sequence[Rule]
    options: SyncOptions
    stop: threading.Event
    progress: NotRequired[Progress | None]


class Loaded:
    """Both sides as they were read, and what is to be known beside: nodes, rights, labels, host names.

    `rules` are anchored and `datacenters` those to ask, once Consul is being read. `asked` is what users' Services and
    rules about other namespaces ask for by name. `remedies` has how to fix what could not be read of Consul, by the
    reason. `kubernetes_trouble`: why Kubernetes could not be read, where the
    command goes on without it.
    """

    # attributes: what was read of both sides, step by step, for one command that ends with it

    def __init__(
        self,
        consul: ConsulConfig,
        kube: KubeConfig,
        rules: Sequence[Rule],
        options: SyncOptions,
        stop: threading.Event,
        progress: Progress | None = None,
    ) -> None:
        self.options, self.rules, self.stop = options, tuple(rules), stop
        self.say: Progress = progress or (lambda _what, _done, _total: None)
        self._client: KubeClient | None = None
        self.store = Store(options.owner)
        self.consul_state = ConsulState(rules, (), grace_seconds=0.0, partial_selection=options.partial_selection)
        self.datacenters: tuple[str, ...] = ()
        self.listings: dict[str, Listing | Unknown] = {}
        self.views: dict[Query, Knowledge] = {}
        self.remedies: dict[str, str] = {}
        self.asked: list[tuple[Target, Rule, Query]] = []
        self.namespaces: tuple[str, ...] | None = ()
        self.annotated = options.annotated
        self.nodes = NO_NODES
        self.kubernetes_trouble = ""
        self.consul, self.kube = consul, kube
        self._resolver: Resolver[Target] = Resolver(options.resolver)
        self._slices_forbidden: Callable[[str], Sequence[str]] = lambda _namespace: ()

    def close(self) -> None:
        self._resolver.close()
        if self._client is not None:
            self._client.close()

    # ------------------------------------------------------------------ Kubernetes

    def connect(self) -> KubeClient:
        """Get ready to read Kubernetes."""
        self.say("reading Kubernetes", 0, 0)
        self._client = KubeClient(self.kube, kube_warning)
        return self._client

    def read_kubernetes(
        self, kinds: Sequence[Kind | None] = (*SERVICE_KINDS, None), retry: RetryPolicy | None = None
    ) -> None:
        """List all that is ours or concerns us; a namespace that may not be listed is the store's `unreadable`."""
        client, retry = self.connect(), retry or self.options.retry
        self.namespaces = namespaces_of(self.rules, self.kube.namespaces, client.namespace)
        rights = slice_rights(client, self.options.policy, everywhere=self.namespaces is None)
        self._slices_forbidden = rights.missing
        self.annotated = with_labels(self.options.annotated.within(self.namespaces), client, retry, self.stop)
        self.list_again(kinds, retry)
        self.nodes = call(lambda: cluster_nodes(client, self.options.cluster_nodes), retry, self.stop)

    def list_again(
        self, kinds: Sequence[Kind | None] = (*SERVICE_KINDS, None), retry: RetryPolicy | None = None
    ) -> None:
        """Read the objects (once more): another process may have written meanwhile."""
        client, namespaces, owner = self.client, self.namespaces, self.options.owner
        routes = select.asks_for_routes(self.rules) if None in kinds else None
        self.store = call(
            lambda: list_once(client, namespaces, owner, partly=True, kinds=kinds, routes=routes),
            retry or self.options.retry,
            self.stop,
        )

    def absent_namespaces(self, plans: Iterable[Plan]) -> dict[str, Reason]:
        """Namespaces in which something would be made and that do not exist, as far as we may look."""
        wanted = sorted({p.target.namespace for p in plans if any(c.action is Action.CREATE for c in p.writes)})
        try:
            states = namespace_states(self.client, wanted)
        except BridgeError:
            return {}
        return {
            name: Reason(Code.NAMESPACE_ABSENT, namespace=name)
            for name, state in states.items()
            if state is NamespaceState.ABSENT
        }

    def whole_cluster(self) -> Store | None:
        """All objects of our owner id in the cluster, whatever namespaces are served; None when they cannot be read."""
        client, owner = self.client, self.options.owner
        try:
            return call(lambda: list_once(client, None, owner), self.options.retry, self.stop)
        except CancelledError:
            raise
        except BridgeError:
            return None

    def read_slices_later(self) -> None:
        """Read the slices once more when the control plane's mirror, which is always a little late, had a moment."""
        client = self.client
        self.stop.wait(MIRROR_SECONDS)
        call(lambda: read_slices_again(client, self.store, self.namespaces), self.options.retry, self.stop)

    @property
    def client(self) -> KubeClient:
        """The connections to Kubernetes, which is read first."""
        if self._client is None:
            raise AssertionError("Kubernetes was not read")
        return self._client

    @property
    def serves_several(self) -> bool:
        """Whether more than one namespace is served."""
        return self.namespaces is None or len(self.namespaces) > 1

    # ------------------------------------------------------------------ Consul

    def begin(self, datacenters: tuple[str, ...] = ()) -> None:
        """Put what Kubernetes tells into the state, before Consul is asked. `datacenters`: where they are known."""
        options = self.options
        datacenters = datacenters or datacenters_of(self.rules, self.consul, options.retry, self.stop)
        self.rules = anchored(self.rules, datacenters)
        consul_state = self.consul_state = ConsulState(
            self.rules, datacenters, grace_seconds=0.0, partial_selection=options.partial_selection
        )
        for target in self.store.targets():
            consul_state.record_owned(target, names_at(self.store.current(target)), now=0.0)
        for choice in select.unlisted(self.rules):
            if isinstance(choice.target, Target):
                self.asked.append((choice.target, choice.rule, choice.query))
        for service in self.store.annotated_services():
            target = Target(service.meta.namespace, service.meta.name)
            current = self.store.current(target)
            request = request_at(current, datacenters[0], self.annotated, names_at(current))
            if isinstance(request, Refusal):
                consul_state.refuse(target, request, 0.0)
            elif request is not None:
                self.asked.append((target, *request))
                consul_state.annotate(target, *request, 0.0)
        self.datacenters = consul_state.active_datacenters() or datacenters[:1]

    def read_all(self) -> None:
        """Read everything that the rules and users' Services ask for."""
        self.read(self.wanted)
        self.consul_state.expire(now=0.0)

    def read(self, choose: Callable[[str, Listing], Iterable[Query]]) -> None:
        """Read the listings, and of each what `choose` says, into the state."""
        snapshot = read_all(
            self.consul,
            self.datacenters,
            choose,
            parallel=self.options.readers,
            progress=lambda done, total: self.say("reading Consul", done, total),
            retry=self.options.retry,
            stop=self.stop,
        )
        self.listings |= snapshot.listings
        self.remedies |= snapshot.remedies
        for datacenter, listing in snapshot.listings.items():
            if isinstance(listing, Unknown):
                self.consul_state.on_listing(datacenter, listing, now=0.0)
        for query, state in snapshot.views.items():
            self.views[query] = state
            self.consul_state.on_view(query, state)

    def wanted(self, datacenter: str, listing: Listing) -> frozenset[Query]:
        """Take a listing; what is to be read of its datacenter."""
        self.consul_state.on_listing(datacenter, listing, now=0.0)
        return frozenset(q for q in self.consul_state.wanted() if q.datacenter == datacenter)

    # ------------------------------------------------------------------ what the rules make of it

    def tags_in(self, datacenter: str) -> dict[str, frozenset[str]]:
        """The services that a datacenter lists, with their tags; none where it could not be listed."""
        listing = self.listings.get(datacenter)
        return dict(listing.services) if isinstance(listing, Listing) else {}

    def unmatched(self, about: Collection[str] | None = None) -> tuple[Reason, ...]:
        """What in rules matches nothing that is listed; `about`: only what may be meant for one of these services."""
        listed = {dc: listing.services for dc, listing in self.listings.items() if isinstance(listing, Listing)}
        return unmatched(self.rules, self.datacenters, listed, about=about)

    def unmet(self, *, kept: bool = True) -> Iterator[tuple[Choice, Reason]]:
        """What rules name and take nothing of because of its tags, where that looks like a mistake.

        `kept`: not where objects of ours stay although no instance has the tags.
        """
        if not any(rule.tags for rule in self.rules):
            return
        for datacenter in self.listings:
            for service, tags in sorted(self.tags_in(datacenter).items()):
                if select.excluded(service) is None:
                    named = select.choices(self.rules, service, datacenter)
                    at = self.consul_state.remembered_at((datacenter, service)) if kept else ()
                    yield from select.unmet(service, named, tags, at)

    def draft(self, target: Target) -> Draft | None:
        """What the recipe makes of one target before the guard, of what was read, without asking for anything else."""
        inputs = observe(self.consul_state, self.store.current(target), 0.0)
        return reconcile(inputs, self.options.of_plans(), Surroundings(nodes=self.nodes))

    # ------------------------------------------------------------------ planning

    def plan_all(
        self, targets: Collection[Target], *, force: bool = False, window: DeviationWindow | None = None
    ) -> tuple[Planner, list[Plan]]:
        """The plans of all `targets` together, and what made them.

        One pass knows nothing of earlier ones: what a running bridge holds, because of what it saw before, looks to its
        guard like a loss that is small enough. So while one runs, what endpoints have to lose is left to it.
        """
        planner = self.planner(Guard(self.options.guard), force=force, window=window)
        plans = planner.plan_all(targets)
        if force or not any(plan.removed or plan.became_unready for plan in plans):
            return planner, plans
        if running := self._running():
            planner = self.planner(Guard(self.options.guard, running), window=window)
            plans = planner.plan_all(targets)
        return planner, plans

    def _running(self) -> str:
        """A replica of a running bridge with our owner id; Leases are in our own namespace, or in one of the rules."""
        if self._client is None:
            return ""
        client, options = self._client, self.options
        own = options.lease_namespace or client.namespace
        places = dict.fromkeys((own, *(self.namespaces if self.namespaces is not None else ("",))))
        return call(lambda: holder(client, options.owner, places), options.retry, self.stop)

    def planner(self, guard: Guard, *, force: bool = False, window: DeviationWindow | None = None) -> Planner:
        """What plans all of this with a guard."""
        client = self._client
        return Planner(
            consul_state=self.consul_state,
            store=self.store,
            guard=guard,
            options=self.options.of_plans(force=force),
            clock=time.monotonic,
            resolve=self._resolver.resolve,
            mirrored=None if client is None else lambda target: mirrored(client, target),
            slices_forbidden=self._slices_forbidden,
            window=window,
            nodes=self.nodes,
            unreadable=self.store.unreadable,
        )

    def resolve_names(self, targets: Collection[Target]) -> None:
        """Have host names of all that goes to `targets` resolved, within bounds."""
        if self.planner(Guard(self.options.guard)).ask_for_names(targets):
            self.say("resolving host names", 0, 0)
            self._resolver.wait(self.options.resolver.wait_seconds, self.stop)

    def addresses_of(self, names: Collection[str] = ()) -> dict[str, tuple[str, ...]]:
        """The addresses of all host names that were asked for, and of these."""
        if names:
            self._resolver.resolve(Target("", ""), names)
            self._resolver.wait(self.options.resolver.wait_seconds, self.stop)
        return {name: found for name, found in self._resolver.known().items() if found is not None}


def load(*, everything: bool = True, without_kubernetes: bool = False, **sides: Unpack[Sides]) -> Loaded:
    """Read Kubernetes, then Consul: `everything` that is wanted, or only which services there are. The caller closes.

    Raises TransientError or PermanentError when a whole side cannot be used. With `without_kubernetes` Consul alone
    suffices, and `kubernetes_trouble` says why.
    """
    loaded = Loaded(**sides)
    try:
        try:
            loaded.read_kubernetes()
        except CancelledError:
            raise
        except BridgeError as error:
            if not without_kubernetes:
                raise
            loaded.kubernetes_trouble = str(error)
        loaded.begin()
        if everything:
            loaded.read_all()
        else:
            loaded.read(lambda datacenter, listing: loaded.wanted(datacenter, listing) and ())
    except BaseException:
        loaded.close()
        raise
    return loaded
