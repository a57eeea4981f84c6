"""The data of `bridge status` and `bridge explain`: both sides are read and planned, and nothing is written.

The steps are those of a pass before it writes, so the commands show what `bridge sync` would do now, holds
included: all services are judged together. Where one side cannot be read, the other is still shown, with the error.
Only the running bridge knows what it holds because of what it saw before (the last minute, a rebuilt Consul): its page
and /readyz show that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from bridge.consul.client import ConsulConfig
from bridge.consul.snapshot import read_all
from bridge.core import select
from bridge.core.explain import Explanation, explain
from bridge.core.guard import Guard
from bridge.core.lookup import Meant, meant
from bridge.core.model import NO_NODES, Current, Knowledge, Known, Listing, Plan, Query, Rule, Target, Unknown
from bridge.core.reasons import Code, Reason, codes_of
from bridge.core.reconcile import PlanOptions, names_at
from bridge.core.service_state import ServiceRow, ServiceState, service_state, state_detail
from bridge.core.state import ConsulState
from bridge.core.translate import host_names
from bridge.core.union import endpoint_counts
from bridge.errors import BridgeError, CancelledError
from bridge.kube.client import KubeClient, KubeConfig
from bridge.kube.informer import list_once, read_slices_again
from bridge.kube.mirrored import mirrored
from bridge.kube.nodes import cluster_nodes
from bridge.kube.store import Store
from bridge.oneshot.inputs import from_kubernetes
from bridge.oneshot.sync import Progress, SyncOptions
from bridge.pipeline.dns import Resolver
from bridge.pipeline.grants import with_labels
from bridge.pipeline.reconciler import Reconciler
from bridge.pipeline.scope import anchored, datacenters_of, namespaces_of
from bridge.pipeline.settling import Settling
from bridge.pipeline.slice_rights import SliceRights, slice_rights
from bridge.report import HeldRow, Origin, held_row, hold_text
from bridge.retry import call
from bridge.telemetry.logs import kube_warning

MIRROR_SECONDS = 1.0
"""How long a mirror that is behind is given; the control plane takes a tenth of that."""


@dataclass(frozen=True, slots=True)
class Status:
    """All mirrored services, sorted by target, what could not be read, and when it was read (RFC 3339 in UTC).

    `notes`: what is to be known before anything else. `held`: why, of each row that is held, and what releases it.
    """

    services: tuple[ServiceRow, ...]
    trouble: tuple[str, ...] = ()
    read_at: str = ""
    notes: tuple[str, ...] = ()
    held: tuple[HeldRow, ...] = ()

    @property
    def in_sync(self) -> bool:
        """Whether everything could be read and is in sync."""
        return not self.trouble and all(row.state == ServiceState.IN_SYNC for row in self.services)

    def to_json(self) -> dict[str, Any]:
        """As `bridge status -o json` prints it."""
        return {
            "in_sync": self.in_sync,
            "read_at": self.read_at,
            "services": [row.to_json() for row in self.services],
            "held": [row.to_json() for row in self.held],
            "trouble": list(self.trouble),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class Explained:
    """The result of `bridge explain`. `found` is False when neither side has anything of that name."""

    explanations: tuple[Explanation, ...] = ()
    trouble: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    found: bool = True

    def to_json(self) -> dict[str, Any]:
        """As `bridge explain -o json` prints it."""
        return {
            "explanations": [e.to_json() for e in self.explanations],
            "trouble": list(self.trouble),
            "notes": list(self.notes),
        }


def status_once(
    *,
    consul: ConsulConfig,
    kube: KubeConfig,
    rules: Sequence[Rule],
    options: SyncOptions,
    stop: threading.Event,
    progress: Progress | None = None,
) -> Status:
    """Read both sides once and compare them. Raises BridgeError when Kubernetes or all of Consul cannot be used."""
    look = _Inspection(consul, kube, rules, options, stop, progress)
    try:
        look.read_kubernetes()
        look.read_consul()
        look.judge_all()
        rows = sorted(row for row in map(look.row, look.world.targets()) if row is not None)
        read_at = datetime.now(UTC).isoformat(timespec="seconds")
        return Status(tuple(rows), look.troubles(), read_at, look.unselected(), look.held())
    finally:
        look.close()


def explain_once(
    service: str,
    *,
    consul: ConsulConfig,
    kube: KubeConfig,
    rules: Sequence[Rule],
    options: SyncOptions,
    stop: threading.Event,
    progress: Progress | None = None,
) -> Explained:
    """Explain one service in every datacenter that lists it, or from which Kubernetes still has something of it (or in
    the first, when there is none), and what went wrong.

    `service` may also be the name of a mirrored Service, `name` or `namespace/name`, or Consul's in another case. The
    other services are read only when this one loses something: then the guard must see all that goes together.
    """
    look = _Inspection(consul, kube, rules, options, stop, progress)
    try:
        try:
            look.read_kubernetes()
        except BridgeError as error:
            look.kubernetes_trouble = str(error)
        look.read_listings()
        names = look.meant(service)
        services = names.services or (service,)
        look.read_services(services)
        look.plan([place for one in services for place in look.places(one) if place.target is not None])
        explanations: list[Explanation] = []
        for one in services:
            places = look.places(one)
            found = [(place, look.explain(place)) for place in places]
            asked = any(place.asked for place in places)
            explanations += [e for place, e in found if place.asked or place.left or e.rule or not asked]
        near = (f"did you mean {' or '.join(names.near)}?",) if names.near else ()
        notes = (*look.unselected(services), *names.notes, *near)
        return Explained(tuple(explanations), look.troubles(), notes, bool(names.services))
    finally:
        look.close()


@dataclass(frozen=True, slots=True)
class _Place:
    """A service, what is asked of Consul about it, and where it goes (None: nowhere) by which of the rules (`chosen`).

    `asked`: a user's Service, or a rule about another namespace, asks for it by name. `left`: nothing sends it there
    any more, but Kubernetes still has something that came from it.
    """

    query: Query
    target: Target | None
    rules: tuple[Rule, ...]
    asked: bool = False
    left: bool = False
    chosen: select.Choice | None = None


class _Inspection:
    """Both sides, read once."""

    # attributes: what was read of both sides, step by step, for one command that ends with it

    def __init__(
        self,
        consul: ConsulConfig,
        kube: KubeConfig,
        rules: Sequence[Rule],
        options: SyncOptions,
        stop: threading.Event,
        progress: Progress | None,
    ) -> None:
        self._consul, self._kube, self._rules, self._options, self._stop = consul, kube, tuple(rules), options, stop
        self._say = progress or (lambda _what, _done, _total: None)
        self._client: KubeClient | None = None
        self._namespaces: tuple[str, ...] | None = ()
        self._waited = False
        self._rights: SliceRights | None = None
        self._store = Store(options.owner)
        self._annotated = options.annotated
        self._listings: dict[str, Listing | Unknown] = {}
        self._views: dict[Query, Knowledge] = {}
        self.asked: list[tuple[Target, Rule, Query]] = []
        self._resolver: Resolver[Target] = Resolver(options.resolver)
        self._nodes = NO_NODES
        self._plans: dict[Target, Plan] = {}
        self._about: frozenset[Query] | None = None
        self._everywhere: Store | str | None = None
        self.kubernetes_trouble = ""
        self._mirror_trouble = ""
        self.datacenters: tuple[str, ...] = ()
        self.world = ConsulState(rules, (), grace_seconds=0.0, partial_selection=options.partial_selection)

    def close(self) -> None:
        self._resolver.close()
        if self._client is not None:
            self._client.close()

    def read_kubernetes(self) -> None:
        self._say("reading Kubernetes", 0, 0)
        client = self._client = KubeClient(self._kube, kube_warning)
        namespaces = self._namespaces = namespaces_of(self._rules, self._kube.namespaces, client.namespace)
        self._rights = slice_rights(client, self._options.policy, everywhere=namespaces is None)
        annotated = self._options.annotated.within(namespaces)
        self._annotated = with_labels(annotated, client, self._options.retry, self._stop)
        self._store = call(
            lambda: list_once(client, namespaces, self._options.owner, partly=True), self._options.retry, self._stop
        )
        self._nodes = call(lambda: cluster_nodes(client, self._options.cluster_nodes), self._options.retry, self._stop)

    def read_consul(self) -> None:
        """Read everything that the rules select."""
        self._begin()
        self._read(self._listed)
        self.world.expire(now=0.0)

    def read_listings(self) -> None:
        """Read which services there are, and none of them."""
        self._begin()
        self._read(lambda dc, listing: self._listed(dc, listing) and frozenset())

    def read_services(self, services: Sequence[str]) -> None:
        """Read some of those and what shares their targets."""
        self._read(lambda dc, _listing: frozenset(q for one in services for q in self._needed(one, dc)))
        self._about = frozenset(self._views)
        self.world.expire(now=0.0)

    def meant(self, given: str) -> Meant:
        """The Consul services that `given` names."""
        listed = {name for dc in self.datacenters for name in self.services_of(dc)}
        listed |= {query.service for _, _, query in self.asked}
        mirrored: dict[Target, set[str]] = {}
        for store in filter(None, (self._store, self._cluster())):
            mirrored |= _origins(store)
        for target, _, query in self.asked:
            mirrored.setdefault(target, set()).add(query.service)
        return meant(given, listed, mirrored)

    def _cluster(self) -> Store | None:
        """All objects of ours in the cluster, None where they may not be listed, or rules say where they are."""
        if self._options.selects or self._client is None:
            return None
        if self._everywhere is None:
            try:
                self._everywhere = list_once(self._client, None, self._options.owner)
            except BridgeError as error:
                self._everywhere = str(error)
        return self._everywhere if isinstance(self._everywhere, Store) else None

    def unselected(self, services: Sequence[str] = ()) -> tuple[str, ...]:
        """The first lines of the output where no setting selects services, with what our owner mirrors somewhere."""
        if self._options.selects or self._client is None:
            return ()
        places = sorted({rule.to.namespace for rule in self._rules})
        meaning = (
            "no rules are given (--config FILE, or --service, --tag, --filter): judged as if every service were to be "
            f"mirrored into namespace {', '.join(places)}; a running bridge may have other rules"
        )
        owner, store = self._options.owner, self._cluster()
        if store is None:
            return (
                meaning,
                f"owner {owner}: its objects may not be listed in all namespaces; --watch-namespace NAME looks in one",
            )
        found = _origins(store)
        what, where = f"{len(found)} service{'s' if len(found) != 1 else ''}", {target.namespace for target in found}
        if services:
            what, where = ", ".join(services), {str(t) for t, names in found.items() if names & set(services)}
        into = f"{what} into {', '.join(sorted(where))}" if where else f"{what} nowhere" if services else "nothing"
        return (
            meaning,
            f"owner {owner} mirrors {into}{'' if where else ' in this cluster'}; another bridge's: --owner ID",
        )

    def _begin(self) -> None:
        datacenters = datacenters_of(self._rules, self._consul, self._options.retry, self._stop)
        self._rules = anchored(self._rules, datacenters)
        self.world, asked = from_kubernetes(
            self._rules, datacenters, self._store, self._annotated, partial_selection=self._options.partial_selection
        )
        for choice in select.unlisted(self._rules):
            if isinstance(choice.target, Target):
                self.asked.append((choice.target, choice.rule, choice.query))
        self.asked += asked
        self.datacenters = self.world.active_datacenters() or datacenters[:1]

    def _read(self, choose: Any) -> None:
        snapshot = read_all(
            self._consul,
            self.datacenters,
            choose,
            parallel=self._options.readers,
            progress=lambda done, total: self._say("reading Consul", done, total),
            retry=self._options.retry,
            stop=self._stop,
        )
        self._listings |= snapshot.listings
        for datacenter, listing in snapshot.listings.items():
            if isinstance(listing, Unknown):
                self.world.on_listing(datacenter, listing, now=0.0)
        for query, state in snapshot.views.items():
            self._views[query] = state
            self.world.on_view(query, state)

    def _listed(self, datacenter: str, listing: Listing) -> frozenset[Query]:
        self.world.on_listing(datacenter, listing, now=0.0)
        return frozenset(q for q in self.world.wanted() if q.datacenter == datacenter)

    def _needed(self, service: str, datacenter: str) -> frozenset[Query]:
        queries = {Query(datacenter, service)}
        for place in self.places(service):
            queries.add(replace(place.query, filter=""))
            queries.add(place.query)
            if place.target is not None:
                queries.update(self.world.queries_at(place.target))
        return frozenset(q for q in queries if q.datacenter == datacenter)

    def places(self, service: str) -> list[_Place]:
        """Where the service goes, and where something of it is left: by datacenter, then what is asked for by name."""
        asked = [_Place(query, at, (rule,), asked=True, chosen=select.Choice(0, rule, query, at))
                 for at, rule, query in self.asked if query.service == service]  # fmt: skip
        listing = [dc for dc in self.datacenters if service in self.services_of(dc)]
        left = {dc: self._left(service, dc) for dc in self.datacenters}
        places = []
        for datacenter in [dc for dc in self.datacenters if dc in listing or left[dc]] or self.datacenters[:1]:
            chosen = self.world.chosen((datacenter, service))
            for choice in chosen:
                goes = choice.target if isinstance(choice.target, Target) else None
                places.append(_Place(choice.query, goes, self._rules, chosen=choice))
            query = chosen[0].query if chosen else Query(datacenter, service)
            if not chosen and not left[datacenter]:
                places.append(_Place(query, None, self._rules))
            reached = {choice.target for choice in chosen}
            places += [_Place(query, at, self._rules, left=True) for at in left[datacenter] if at not in reached]
        return places + sorted(asked, key=lambda place: str(place.target))

    def _left(self, service: str, datacenter: str) -> list[Target]:
        """Targets with objects of ours that came from a service which does not go there (any more)."""
        found = self.world.remembered_at((datacenter, service))
        wanted = (self.world.queries_at(t) if self.world.winners(t) else () for t in found)
        return sorted(
            target
            for target, queries in zip(found, wanted, strict=True)
            if all((q.datacenter, q.service) != (datacenter, service) for q in queries)
        )

    def _is_seen(self, target: Target) -> bool:
        """Whether Kubernetes tells what it holds at a target."""
        return not self.kubernetes_trouble and target.namespace not in self._store.unreadable

    def services_of(self, datacenter: str) -> dict[str, frozenset[str]]:
        listing = self._listings.get(datacenter)
        return dict(listing.services) if isinstance(listing, Listing) else {}

    def troubles(self) -> tuple[str, ...]:
        texts = [f"Kubernetes: {self.kubernetes_trouble}"] if self.kubernetes_trouble else []
        if self._mirror_trouble:
            late = "the mirror of Endpoints was behind and EndpointSlices could not be read a second time"
            texts.append(f"Kubernetes: {late}: {self._mirror_trouble}")
        texts += [f"namespace {name}: {reason}" for name, reason in self._store.unreadable.items()]
        texts += [f"Consul, datacenter {dc}: {reason}" for dc, reason in sorted(self.world.listing_trouble().items())]
        texts += [
            f"Consul, service {q.service} in {q.datacenter}: {reason}"
            for q, reason in sorted(self.world.trouble().items())
            if self._about is None or q in self._about
        ]
        return tuple(texts)

    def judge_all(self) -> None:
        """Plan everything that was read, as a pass does: the guard sees all of it together."""
        targets = self.world.targets()
        self._resolve_names(targets)
        self._plan(targets)

    def plan(self, places: Sequence[_Place]) -> None:
        """Plan what is at these places: alone when nothing goes there, else with everything else."""
        targets = {place.target for place in places if place.target is not None}
        self._resolve_names(targets)
        if self.kubernetes_trouble:
            return
        self._plan(targets)
        if any(plan.held or plan.removed or plan.became_unready for plan in self._plans.values()):
            self._read(self._listed)
            self.world.expire(now=0.0)
            self.judge_all()

    def _plan(self, targets: Collection[Target]) -> None:
        """Plan these; the control plane's mirror, which is always a little late, is given a moment, once.

        Should the slices not be readable then, what was read before is shown, with the error.
        """
        client = self._client
        self._plans = {plan.target: plan for plan in self._reconciler().plan_all(targets)}
        if self._waited or client is None or not any(map(_is_late, self._plans.values())):
            return
        self._waited = True
        self._stop.wait(MIRROR_SECONDS)
        try:
            call(lambda: read_slices_again(client, self._store, self._namespaces), self._options.retry, self._stop)
        except CancelledError:
            raise
        except BridgeError as error:
            self._mirror_trouble = str(error)
            return
        self._plans = {plan.target: plan for plan in self._reconciler().plan_all(targets)}

    def _resolve_names(self, targets: Collection[Target]) -> None:
        """Have host names resolved, within bounds."""
        if self._reconciler().ask_for_names(targets):
            self._say("resolving host names", 0, 0)
            self._resolver.wait(self._options.resolver.wait_seconds, self._stop)

    def _reconciler(self) -> Reconciler:
        client = self._client
        return Reconciler(
            world=self.world,
            store=self._store,
            guard=Guard(self._options.guard),
            options=PlanOptions(
                owner=self._options.owner,
                policy=self._options.policy,
                adopt=self._options.adopt,
                installation=self._options.installation,
            ),
            clock=time.monotonic,
            resolve=self._resolver.resolve,
            mirrored=None if client is None else lambda target: mirrored(client, target),
            slices_forbidden=(lambda _: ()) if self._rights is None else self._rights.missing,
            settling=Settling(time.monotonic, 0.0),
            nodes=self._nodes,
            unreadable=self._store.unreadable,
        )

    def held(self) -> tuple[HeldRow, ...]:
        """All that the guard holds, in order of the targets."""
        return tuple(sorted(held_row(h, plan.queries) for plan in self._plans.values() for h in plan.held))

    def row(self, target: Target) -> ServiceRow | None:
        """The objects at a target and what would be done there; None when the target is not ours."""
        plan = self._plans.get(target)
        if plan is None and not self.world.concerns(target):
            return None
        current = self._store.current(target)
        ready, not_ready = endpoint_counts(current)
        consul = (0, 0)
        if plan is not None:
            consul = self._reconciler().listed(target) if plan.held else (plan.ready, plan.not_ready)
        queries = self.world.queries_at(target) if plan is None else plan.queries
        state = service_state(plan, waiting=plan is not None and bool(plan.writes))
        if target.namespace in self._store.unreadable:
            detail = f"namespace {target.namespace} could not be read; what is there stays"
        elif plan is None:
            detail = "Consul could not be asked; what is there stays"
        else:
            detail = state_detail(state, plan, plan.writes, list(map(hold_text, plan.held)))
        origin = Origin.of(queries)
        return ServiceRow(
            namespace=target.namespace,
            name=target.name,
            service=origin.service,
            datacenter=origin.datacenter,
            consul_ready=consul[0],
            consul_not_ready=consul[1],
            kubernetes_ready=ready,
            kubernetes_not_ready=not_ready,
            state=state.value,
            detail=detail,
            command=plan.release_command if plan is not None else "",
            since=_since(current),
            reasons=codes_of(plan.reasons) if plan is not None else (),
            slices_deviate=plan is not None and plan.deviates and state is ServiceState.OUT_OF_SYNC,
        )

    def _addresses_of(self, target: Target | None, known: Knowledge | None) -> dict[str, tuple[str, ...]]:
        """Addresses of the host names of what is to be explained, of a service without a target as well."""
        if target is None and isinstance(known, Known) and (names := host_names(known.instances, Rule())):
            self._resolver.resolve(Target("", ""), names)
            self._resolver.wait(self._options.resolver.wait_seconds, self._stop)
        return {name: found for name, found in self._resolver.known().items() if found is not None}

    def explain(self, place: _Place) -> Explanation:
        """What happens to a service at one place."""
        query, at = place.query, place.target
        service, datacenter = query.service, query.datacenter
        known = self._views.get(query)
        resolved = self._addresses_of(at, known)
        listing = self._listings.get(datacenter)
        explanation = explain(
            service,
            datacenter,
            tags=self.services_of(datacenter).get(service),
            rules=place.rules,
            remembered=at if place.left else None,
            knowledge=known,
            beside=[
                (rule, state)
                for other, rule in (self.world.winners(at) if at is not None else ())
                if (place.chosen is None or (other, rule) != (query, place.chosen.rule))
                and isinstance(state := self._views.get(other), Known)
            ],
            unfiltered=self._views.get(replace(query, filter="")),
            claims=self.world.assignments,
            chosen=place.chosen,
            kept=self.world.remembered_at((datacenter, service)),
            current=self._store.current(at) if at is not None and self._is_seen(at) else None,
            plan=self._plans.get(at) if at is not None and self._is_seen(at) else None,
            resolved=resolved,
            cluster_nodes=self._nodes,
        )
        if isinstance(listing, Unknown):
            explanation = replace(explanation, problem=Reason(Code.NOT_READ, what=datacenter, why=listing.reason))
        return explanation


def _origins(store: Store) -> dict[Target, set[str]]:
    """The Consul services that the objects at our targets came from; a target without any is left out."""
    found = {target: {name for _, name in names_at(store.current(target))} for target in store.targets()}
    return {target: names for target, names in found.items() if names}


def _is_late(plan: Plan) -> bool:
    """Whether it only has to be waited for: nothing is to be written, and the mirror is behind."""
    return not plan.writes and any(r.code in (Code.MIRROR_BEHIND, Code.SLICE_OUTDATED) for r in plan.deviations)


def _since(current: Current) -> str:
    """When we last wrote what carries the target's addresses, "" when nothing of ours does."""
    metas = [piece.meta for piece in current.slices]
    if current.endpoints is not None:
        metas.append(current.endpoints.meta)
    return max((meta.written for meta in metas if meta.owner is not None), default="")
