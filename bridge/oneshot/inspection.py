"""The data of `bridge status` and `bridge explain`: both sides are read and planned, and nothing is written.

The steps are those of a pass before it writes, so the commands show what `bridge sync` would do now, holds
included: all services are judged together. Where one side cannot be read, the other is still shown, with the error.
Only the running bridge knows what it holds because of what it saw before (the last minute, a rebuilt Consul): its page
and /readyz show that.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Unpack

from bridge.core import select
from bridge.core.explain import Explanation, explain
from bridge.core.guard import Guard
from bridge.core.instances import host_names
from bridge.core.lookup import Meant, meant
from bridge.core.model import Current, Known, Plan, Query, Rule, Target, Unknown
from bridge.core.reasons import Code, Reason
from bridge.core.reconcile import names_at
from bridge.core.service_state import ServiceRow, ServiceState, service_state, state_detail
from bridge.errors import BridgeError, CancelledError
from bridge.kube.store import Store
from bridge.oneshot.inputs import Loaded, Sides, load
from bridge.pipeline.deviation_window import DeviationWindow
from bridge.pipeline.rows import service_row
from bridge.report import HeldRow, held_row, hold_text


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
        return not self.trouble and all(row.state == ServiceState.IN_SYNC for row in self.services)

    def to_json(self) -> dict[str, Any]:
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
        return {
            "explanations": [e.to_json() for e in self.explanations],
            "trouble": list(self.trouble),
            "notes": list(self.notes),
        }


def status_once(**sides: Unpack[Sides]) -> Status:
    """Read both sides once and compare them. Raises BridgeError when Kubernetes or all of Consul cannot be used."""
    with closing(load(**sides)) as loaded:
        look = _Inspection(loaded)
        look.judge_all()
        rows = sorted(row for row in map(look.row, loaded.consul_state.targets()) if row is not None)
        read_at = datetime.now(UTC).isoformat(timespec="seconds")
        notes = (*look.unselected(), *loaded.consul_state.rule_remarks())
        return Status(tuple(rows), look.troubles(), read_at, notes, look.held())


def explain_once(service: str, **sides: Unpack[Sides]) -> Explained:
    """Explain one service in every datacenter that lists it, or from which Kubernetes still has something of it (or in
    the first, when there is none), and what went wrong.

    `service` may also be the name of a mirrored Service, `name` or `namespace/name`, or Consul's in another case. The
    other services are read only when this one loses something: then the guard must see all that goes together.
    """
    with closing(load(**sides, everything=False, without_kubernetes=True)) as loaded:
        look = _Inspection(loaded)
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
        notes = (*look.unselected(services), *names.notes, *near, *loaded.unmatched(about=services))
        return Explained(tuple(explanations), look.troubles(), notes, bool(names.services))


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
    """What is known of both sides, as they were loaded."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self._waited = False
        self._plans: dict[Target, Plan] = {}
        self._absent: Mapping[str, Reason] = {}
        self._planner = loaded.planner(Guard(loaded.options.guard))
        self._about: frozenset[Query] | None = None
        self._mirror_trouble = ""

    def read_services(self, services: Sequence[str]) -> None:
        """Read some of those and what shares their targets."""
        self.loaded.read(lambda dc, _listing: frozenset(q for one in services for q in self._needed(one, dc)))
        self._about = frozenset(self.loaded.views)
        self.loaded.consul_state.expire(now=0.0)

    def meant(self, given: str) -> Meant:
        listed = {name for dc in self.loaded.datacenters for name in self.loaded.tags_in(dc)}
        listed |= {query.service for _, _, query in self.loaded.asked}
        mirrored: dict[Target, set[str]] = {}
        for store in filter(None, (self.loaded.store, self._cluster)):
            mirrored |= _origins(store)
        for target, _, query in self.loaded.asked:
            mirrored.setdefault(target, set()).add(query.service)
        return meant(given, listed, mirrored)

    @cached_property
    def _cluster(self) -> Store | None:
        """All objects of ours in the cluster, None where they cannot be listed, or rules say where they are."""
        looks = not self.loaded.options.selects and not self.loaded.kubernetes_trouble
        return self.loaded.whole_cluster() if looks else None

    def unselected(self, services: Sequence[str] = ()) -> tuple[str, ...]:
        """The first lines of the output where no setting selects services, with what our owner mirrors somewhere."""
        if self.loaded.options.selects or self.loaded.kubernetes_trouble:
            return ()
        places = sorted({rule.to.namespace for rule in self.loaded.rules})
        meaning = (
            "no rules are given (--config FILE, or --service, --tag, --filter): judged as if every service were to be "
            f"mirrored into namespace {', '.join(places)}; a running bridge may have other rules"
        )
        owner, store = self.loaded.options.owner, self._cluster
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

    def _needed(self, service: str, datacenter: str) -> frozenset[Query]:
        queries = {Query(datacenter, service)}
        for place in self.places(service):
            queries.add(replace(place.query, filter=""))
            queries.add(place.query)
            if place.target is not None:
                queries.update(self.loaded.consul_state.queries_at(place.target))
        return frozenset(q for q in queries if q.datacenter == datacenter)

    def places(self, service: str) -> list[_Place]:
        """Where the service goes, and where something of it is left: by datacenter, then what is asked for by name."""
        asked = [_Place(query, at, (rule,), asked=True, chosen=select.Choice(0, rule, query, at))
                 for at, rule, query in self.loaded.asked if query.service == service]  # fmt: skip
        listing = [dc for dc in self.loaded.datacenters if service in self.loaded.tags_in(dc)]
        left = {dc: self._left(service, dc) for dc in self.loaded.datacenters}
        places = []
        for datacenter in [
            dc for dc in self.loaded.datacenters if dc in listing or left[dc]
        ] or self.loaded.datacenters[:1]:
            chosen = self.loaded.consul_state.chosen((datacenter, service))
            for choice in chosen:
                goes = choice.target if isinstance(choice.target, Target) else None
                places.append(_Place(choice.query, goes, self.loaded.rules, chosen=choice))
            query = chosen[0].query if chosen else Query(datacenter, service)
            if not chosen and not left[datacenter]:
                places.append(_Place(query, None, self.loaded.rules))
            reached = {choice.target for choice in chosen}
            places += [_Place(query, at, self.loaded.rules, left=True) for at in left[datacenter] if at not in reached]
        return places + sorted(asked, key=lambda place: str(place.target))

    def _left(self, service: str, datacenter: str) -> list[Target]:
        """Targets with objects of ours that came from a service which does not go there (any more)."""
        found = self.loaded.consul_state.remembered_at((datacenter, service))
        wanted = (self.loaded.consul_state.queries_at(t) if self.loaded.consul_state.winners(t) else () for t in found)
        return sorted(
            target
            for target, queries in zip(found, wanted, strict=True)
            if all((q.datacenter, q.service) != (datacenter, service) for q in queries)
        )

    def _is_seen(self, target: Target) -> bool:
        """Whether Kubernetes tells what it holds at a target."""
        return not self.loaded.kubernetes_trouble and target.namespace not in self.loaded.store.unreadable

    def troubles(self) -> tuple[str, ...]:
        texts = [f"Kubernetes: {self.loaded.kubernetes_trouble}"] if self.loaded.kubernetes_trouble else []
        if self._mirror_trouble:
            late = "the mirror of Endpoints was behind and EndpointSlices could not be read a second time"
            texts.append(f"Kubernetes: {late}: {self._mirror_trouble}")
        texts += [f"namespace {name}: {reason}" for name, reason in self.loaded.store.unreadable.items()]
        texts += [
            f"Consul, datacenter {dc}: {reason}"
            for dc, reason in sorted(self.loaded.consul_state.listing_trouble().items())
        ]
        texts += [
            f"Consul, service {q.service} in {q.datacenter}: {reason}"
            for q, reason in sorted(self.loaded.consul_state.trouble().items())
            if self._about is None or q in self._about
        ]
        return tuple(texts)

    def judge_all(self) -> None:
        """Plan everything that was read, as a pass does: the guard sees all of it together."""
        targets = self.loaded.consul_state.targets()
        self.loaded.resolve_names(targets)
        self._plan(targets)

    def plan(self, places: Sequence[_Place]) -> None:
        """Plan what is at these places: alone when nothing goes there, else with everything else."""
        targets = {place.target for place in places if place.target is not None}
        self.loaded.resolve_names(targets)
        if self.loaded.kubernetes_trouble:
            return
        self._plan(targets)
        if any(plan.held or plan.removed or plan.became_unready for plan in self._plans.values()):
            self.loaded.read_all()
            self.judge_all()

    def _plan(self, targets: Collection[Target]) -> None:
        """Plan these; the control plane's mirror, which is always a little late, is given a moment, once.

        Should the slices not be readable then, what was read before is shown, with the error.
        """
        self._plan_again(targets)
        if self._waited or not any(map(_is_late, self._plans.values())):
            return
        self._waited = True
        try:
            self.loaded.read_slices_later()
        except CancelledError:
            raise
        except BridgeError as error:
            self._mirror_trouble = str(error)
            return
        self._plan_again(targets)

    def _plan_again(self, targets: Collection[Target]) -> None:
        self._planner, plans = self.loaded.plan_all(targets, window=DeviationWindow(time.monotonic, 0.0))
        self._plans = {plan.target: plan for plan in plans}
        self._absent = self.loaded.absent_namespaces(plans)

    def held(self) -> tuple[HeldRow, ...]:
        """All that the guard holds, in order of the targets."""
        return tuple(sorted(held_row(h, plan.queries) for plan in self._plans.values() for h in plan.held))

    def row(self, target: Target) -> ServiceRow | None:
        """The objects at a target and what would be done there; None when the target is not ours."""
        plan = self._plans.get(target)
        if plan is None and not self.loaded.consul_state.concerns(target):
            return None
        current = self.loaded.store.current(target)
        queries = self.loaded.consul_state.queries_at(target) if plan is None else plan.queries
        state = service_state(plan, waiting=plan is not None and bool(plan.writes))
        if target.namespace in self.loaded.store.unreadable:
            detail = f"namespace {target.namespace} could not be read; what is there stays"
        elif plan is None:
            trouble = self.loaded.consul_state.trouble()
            why = "; ".join(dict.fromkeys(trouble[query] for query in queries if query in trouble))
            detail = f"{why or 'Consul could not be asked'}; what is there stays"
        elif target.namespace in self._absent:
            detail = self._absent[target.namespace]
        else:
            detail = state_detail(state, plan, plan.writes, list(map(hold_text, plan.held)))
        return service_row(self._planner, target, queries, plan, current, state, detail, _since(current))

    def explain(self, place: _Place) -> Explanation:
        """What happens to a service at one place."""
        query, at = place.query, place.target
        service, datacenter = query.service, query.datacenter
        known = self.loaded.views.get(query)
        names = host_names(known.instances, Rule()) if at is None and isinstance(known, Known) else ()
        listing = self.loaded.listings.get(datacenter)
        explanation = explain(
            service,
            datacenter,
            tags=self.loaded.tags_in(datacenter).get(service),
            rules=place.rules,
            remembered=at if place.left else None,
            knowledge=known,
            co_sources=[
                (rule, state)
                for other, rule in (self.loaded.consul_state.winners(at) if at is not None else ())
                if (place.chosen is None or (other, rule) != (query, place.chosen.rule))
                and isinstance(state := self.loaded.views.get(other), Known)
            ],
            unfiltered=self.loaded.views.get(replace(query, filter="")),
            claims=self.loaded.consul_state.assignments,
            chosen=place.chosen,
            kept=self.loaded.consul_state.remembered_at((datacenter, service)),
            current=self.loaded.store.current(at) if at is not None and self._is_seen(at) else None,
            plan=self._plans.get(at) if at is not None and self._is_seen(at) else None,
            resolved=self.loaded.addresses_of(names),
            cluster_nodes=self.loaded.nodes,
        )
        if isinstance(listing, Unknown):
            explanation = replace(explanation, problem=Reason(Code.NOT_READ, what=datacenter, why=listing.reason))
        if at is not None and not self._is_seen(at):
            explanation = replace(explanation, rows=tuple(replace(r, kubernetes="unknown") for r in explanation.rows))
        if at is not None and at.namespace in self._absent:
            explanation = replace(explanation, warnings=(self._absent[at.namespace], *explanation.warnings))
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
