"""The recipe: from what is known of Consul and Kubernetes to the changes to write at a target.

A target is a namespace and a name in Kubernetes. `bridge run`, `bridge sync`, `bridge status`, `bridge explain` and the
scenarios of the tests all follow the same three steps:

1. `observe` collects the inputs: what Consul holds for the target, and the objects that exist there, as of one moment.
   After an error of Consul these are the last known values; a target with a service that was never read is skipped.
2. `reconcile` makes a draft: the desired endpoints (`translate`), plus what must stay because too little is known
   (`retain`), compared with the existing objects (`plan`). What a user no longer asks for is `unsubscribed`: it is
   removed without waiting for proof from Consul, and the guard does not count it as a loss.
3. `judge` shows all drafts to the guard; where the guard holds removals, the target is planned again with the endpoints
   in question kept.

Nothing is read or written here. `Surroundings` has functions for the few questions that a plan raises on the way.

Longer than other modules: it has the order of the steps, and what each of them means for the next.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from bridge.core import failover, instances, ownership, release, translate
from bridge.core import plan as planning
from bridge.core.annotated import Changed, Refusal, as_before, changed, is_abandoned, missing
from bridge.core.guard import Verdict
from bridge.core.instances import Disposition, InstanceDecision
from bridge.core.model import (
    NO_NODES,
    Action,
    ActiveDatacenter,
    Adopt,
    ClusterNodes,
    Combine,
    Current,
    CurrentRoute,
    Group,
    Held,
    Kind,
    Known,
    Mirror,
    Output,
    Pairs,
    Plan,
    Policy,
    Query,
    Scope,
    Skipped,
    Target,
)
from bridge.core.normalize import some_of, truncate
from bridge.core.reasons import Code, Reason
from bridge.core.retain import retain, with_existing_endpoints
from bridge.core.select import query_of
from bridge.core.state import ConsulState, Name, Source, name_of
from bridge.core.values import dataclass

Resolve = Callable[[Target, Collection[str]], Mapping[str, tuple[str, ...]]]
"""Gives at once the known addresses of all the host names that a target needs; those without an answer are missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What the bridge may do, and under whose name."""

    owner: str = "default"
    policy: Policy = Policy.SYNC
    adopt: Adopt = Adopt.NEVER
    force: bool = False
    installation: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Answers of the outside, each asked for only when a plan needs it.

    `mirrored` gives what the control plane made of a target's Endpoints, None when that cannot be seen now. While not
    `may_delete` objects stay, whatever the policy says. `slices_forbidden` gives the verbs on EndpointSlices that are
    missing in a namespace. `nodes` are the cluster's own. `time_of_day` in seconds since 1970: it shows which
    releases by other processes are recent (`release`). `doubted`: whether Consul in a datacenter was rebuilt or
    restored so lately that what it shows is no proof. `not_serving`: why a target does not serve what it is to serve
    (`why_not_serving`), "" when it does.
    """

    resolve: Resolve = lambda _target, _names: {}
    mirrored: Callable[[Target], tuple[Group, ...] | None] = lambda _target: None
    may_delete: Callable[[Target], bool] = lambda _target: True
    slices_forbidden: Callable[[str], Sequence[str]] = lambda _namespace: ()
    nodes: ClusterNodes = NO_NODES
    time_of_day: Callable[[], float] = lambda: 0.0
    doubted: Callable[[str, Scope], bool] = lambda _datacenter, _scope: False
    not_serving: Callable[[Target], str] = lambda _target: ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What is known about one target at one moment.

    - `sources`: the services that feed it, with their instances; None: one of them was never read; (): there is none
    - `rejected`: services that a rule sends there and that lost the target to another one
    - `refusal`: why a user's Service there may not be filled, if so
    - `queries`: the questions to Consul that it depends on; `listed`: Consul lists one of them
    - `unsubscribed`: a user no longer asks for what was filled there; `left_over`: that, or the service that it was
      filled from is certainly gone
    - `removable`: no service has fed it, with certainty, for the whole grace period
    - `missing`: services of `sources` that Consul does not list; `proved`: it lists the first of them, so a change
      there is no loss of data
    - `doubt`: why a mistake in a rule may be what takes away what is there; `selection`: what the Service is to say
      about its rules, so that this is known later
    - `moves_to`: where rules send what came from here, and nothing feeds this target any more
    - `not_asked`: why the bridge does not read the datacenter that a user's Service names
    """

    current: Current
    sources: tuple[Source, ...] | None
    rejected: tuple[Skipped, ...] = ()
    refusal: Refusal | None = None
    queries: tuple[Query, ...] = ()
    unsubscribed: bool = False
    left_over: bool = False
    removable: bool = False
    listed: bool = False
    missing: frozenset[Name] = frozenset()
    proved: bool = False
    not_asked: Reason | None = None
    doubt: Reason | None = None
    selection: str = ""
    moves_to: tuple[Target | Skipped, ...] = ()

    @property
    def target(self) -> Target:
        return self.current.target


@dataclass(frozen=True, slots=True)
class Draft:
    """A plan before the guard has seen it, with what is needed to plan again. `desired` None: nothing should exist.

    `leaving`: the services have left Consul and only their grace period keeps the objects, so none is created.
    `repeats`: the same inputs give the same plan again, for it does nothing and nothing was asked but the inputs, the
    cluster's nodes and the right to write slices.
    """

    plan: Plan
    desired: Mirror | None
    current: Current
    leaving: bool = False
    repeats: bool = False


# --------------------------------------------------------------------------- 1. what is known


def observe(state: ConsulState, current: Current, now: float) -> Inputs:
    """Everything that decides about a target, out of what is known of Consul and the objects there."""
    target = current.target
    sources, refusal = state.sources(target), state.refusal(target)
    if sources and any(source.rule.instances.settle_seconds for source in sources):
        sources = tuple(replace(s, waiting=state.waiting(s.query, s.rule, now)) for s in sources)
    opted_out = is_abandoned(current)
    if refusal is not None:  # who asks for something else now has sent away what was filled
        opted_out = opted_out or not refusal.is_of(names_at(current))
    orphaned = sources == () and current.service is None
    unsubscribed = state.unsubscribed(target, opted_out=opted_out, orphaned=orphaned)
    removable = not sources and (
        unsubscribed or state.removable(target, now, opted_out=opted_out or refusal is not None)
    )
    queries = state.queries_at(target) or (() if refusal is None else (refusal.query,))
    names = [name_of(source.query) for source in sources or ()]
    marks = {} if current.service is None else dict(current.service.meta.ownership)
    said = marks.get(ownership.SELECTION, "")
    return Inputs(
        current=current,
        sources=sources,
        rejected=state.rejected(target),
        refusal=refusal,
        queries=queries,
        unsubscribed=unsubscribed,
        left_over=unsubscribed or (opted_out and state.is_left_over(target, now)),
        removable=removable,
        listed=any(state.is_listed(name_of(query)) for query in queries),
        missing=frozenset(name for name in names if state.is_missing(name)),
        proved=bool(names) and names[0][0] not in state.listing_trouble() and state.is_listed(names[0]),
        not_asked=_not_asked(state, target),
        doubt=None if unsubscribed or refusal is not None else state.doubt(target, said),
        selection=state.selection(target, said),
        moves_to=() if unsubscribed else state.moves_to(target),
    )


def names_at(current: Current) -> tuple[Name, ...]:
    """The Consul services that our objects at a target came from, as their annotations say."""
    names: set[Name] = set()
    for existing in current.objects:
        if existing.meta.owner is not None:
            marks = dict(existing.meta.ownership)
            names.update(ownership.origins(marks.get(ownership.SERVICE, ""), marks.get(ownership.DATACENTER, "")))
    return tuple(sorted(names))


def host_names(sources: Iterable[Source]) -> set[str]:
    """Names that stand where an address should, of all the services behind a target."""
    return {name for s in sources for name in instances.host_names(s.known.instances, s.rule)}


def _not_asked(state: ConsulState, target: Target) -> Reason | None:
    """The warning at a user's Service that names a datacenter of which nothing is read."""
    asked = state.annotation(target)
    if asked is None or asked[1].datacenter in state.datacenters:
        return None
    known = ", ".join(state.datacenters)
    return Reason(Code.DATACENTER_NOT_ASKED, datacenter=truncate(asked[1].datacenter), known=known)


# --------------------------------------------------------------------------- 2. what has to be written


def reconcile(inputs: Inputs, options: PlanOptions, around: Surroundings) -> Draft | None:
    """What has to be written at a target; None while too little is known to say anything about it."""
    if inputs.not_asked is not None:
        scope = planning.scope_of(inputs.current, options.owner)
        plan = Plan(inputs.target, queries=inputs.queries, warnings=(inputs.not_asked,), scope=scope)
        return Draft(plan, None, inputs.current)
    if inputs.sources is None:
        return None
    if inputs.sources:
        return _with_sources(inputs, inputs.sources, options, around)
    if inputs.removable or inputs.refusal is not None:
        return _without_sources(inputs, options, around)
    return None


def _with_sources(
    inputs: Inputs, sources: tuple[Source, ...], options: PlanOptions, around: Surroundings
) -> Draft | None:
    """Translate what Consul has, keep what it only may have lost, and compare."""
    target, current, first = inputs.target, inputs.current, sources[0]
    sources = _with_doubted(sources, current, options, around)
    queries = inputs.queries if first.rule.combine is None else tuple(sorted(s.query for s in sources))
    names = host_names(sources)
    resolved = around.resolve(target, names)
    waiting = {s.query: s.waiting for s in sources if s.waiting is not None}
    chosen = None
    active_sources: Sequence[Source] = sources
    if first.rule.combine is Combine.FAILOVER:
        chosen = _choose(sources, current, options, around, resolved)
        if chosen is None:
            return None
        active_sources = [source for source in sources if source.query.datacenter == chosen.active.name]
        names = host_names(active_sources)
    translation = translate.translate(
        target, [(s.rule, s.query, s.known) for s in active_sources], current, resolved, around.nodes, waiting
    )
    desired = translation.mirror
    if chosen is not None and desired is not None:
        desired = chosen.at(desired, queries)
        if active_sources[0].unread and current.service is not None:  # which names this datacenter
            desired = with_existing_endpoints(desired, current, current.service, options.owner)
    if desired is not None and inputs.selection:
        marks = (*desired.service_marks, (ownership.SELECTION, inputs.selection))
        desired = replace(desired, service_marks=marks)
    skipped = tuple(sorted((*translation.skipped, *inputs.rejected)))
    asked = first.rule.to.annotated
    change = _changed(current, first, options, around) if asked else Changed.NOTHING
    unsubscribed = change is Changed.SERVICE or (change is Changed.SELECTION and inputs.proved)
    warnings = translation.warnings + tuple(
        missing(s.query, target.namespace)
        for s in sources
        if s.rule.to.annotated and name_of(s.query) in inputs.missing
    )
    doubts = _doubts(active_sources, names - resolved.keys())
    if chosen is not None:
        warnings += chosen.warnings
        doubts = () if chosen.switching else doubts  # the existing endpoints are another datacenter's
    if desired is not None and doubts and change is not Changed.SERVICE:
        desired = _kept(desired, current, options, around, lost=True, flips=False)
        warnings += doubts

    def compare(found: Current) -> Plan:
        return _compare(target, desired, found, options, around, skipped, warnings, unsubscribed=unsubscribed)

    plan = compare(current)
    if plan.conflicts and not plan.changes and not asked:
        going = _end_of_filled(inputs, options, around, skipped, warnings)
        if going is not None:
            return Draft(replace(going, queries=queries, conflicts=plan.conflicts), None, current)
    if plan.unmirrored and (mirrored := around.mirrored(target)) is not None:
        current = replace(current, mirrored=mirrored)
        plan = compare(current)
    leaving = all(_is_leaving(s, inputs) for s in sources)
    if leaving:
        plan = _without_creations(plan)
    if chosen is not None:
        plan = chosen.recorded_in(plan)
    doubt = inputs.doubt if inputs.doubt and _may_be_meant(plan, active_sources, current, around, resolved) else None
    asked_more = (
        names
        or first.rule.combine is not None
        or plan.unmirrored
        or plan.released
        or isinstance(current.route, CurrentRoute)
    )
    repeats = desired is not None and not asked_more and _does_nothing(plan)
    if plan.queries != queries or doubt is not None:
        plan = replace(plan, queries=queries, doubt=doubt)
    return Draft(plan, desired, current, leaving, repeats)


def _does_nothing(plan: Plan) -> bool:
    """Whether a plan writes nothing, takes nothing away and leaves nothing to report."""
    lost = plan.removed or plan.became_unready or plan.deselected
    return not (plan.writes or plan.conflicts or plan.deviations or lost)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Which of several datacenters carries the traffic. `switching`: some of our objects still have another one's."""

    active: ActiveDatacenter
    marks: Pairs
    service_marks: Pairs
    switching: bool

    @property
    def warnings(self) -> tuple[Reason, ...]:
        """What is worth a look."""
        return (*(() if self.active.preferred else (self.active.why,)), *self.active.pending)

    def at(self, desired: Mirror, queries: tuple[Query, ...]) -> Mirror:
        """What should stand, with the memory of the choice."""
        return replace(desired, queries=queries, marks=self.marks, service_marks=self.service_marks)

    def recorded_in(self, plan: Plan) -> Plan:
        """The plan with the choice recorded. Endpoints that another datacenter replaces are not counted as lost."""
        if self.switching:
            plan = replace(plan, removed=0, became_unready=0, deselected=0)
        why = self.active.why if self.active.before else None
        changes = tuple(replace(c, reason=why) if why and c.kind is Kind.SERVICE else c for c in plan.changes)
        return replace(plan, changes=changes, active_datacenter=self.active)


def _with_doubted(
    sources: tuple[Source, ...], current: Current, options: PlanOptions, around: Surroundings
) -> tuple[Source, ...]:
    """Adds the active datacenter as an unread source when its rebuilt Consul no longer shows the service."""
    rule, scope = sources[0].rule, planning.scope_of(current, options.owner)
    active = failover.remembered(current, options.owner).active if rule.combine is Combine.FAILOVER else ""
    if active not in rule.datacenters or any(source.query.datacenter == active for source in sources):
        return sources
    if not around.doubted(active, scope):
        return sources
    unread_source = Source(rule, query_of(rule, sources[0].query.service, active), Known(()), unread=_REBUILT)
    return tuple(sorted((*sources, unread_source), key=lambda source: rule.datacenters.index(source.query.datacenter)))


_REBUILT = "Consul there was rebuilt or restored"


def _choose(
    sources: Sequence[Source],
    current: Current,
    options: PlanOptions,
    around: Surroundings,
    resolved: Mapping[str, tuple[str, ...]],
) -> _Chosen | None:
    """Which of the sources' datacenters carries the traffic from now on; None while that is unknown."""
    scope = planning.scope_of(current, options.owner)
    candidates = []
    for source in sources:
        decisions = instances.decide(
            source.known.instances, source.rule, current, resolved, around.nodes, source.waiting
        )
        datacenter, unanswered = source.query.datacenter, host_names([source]) - resolved.keys()
        rebuilt = [_REBUILT] if around.doubted(datacenter, scope) else []
        doubts = [source.unread] if source.unread else [*rebuilt, *_doubts([source], unanswered)]
        candidates.append(
            failover.Candidate(
                datacenter=datacenter,
                ready=sum(map(_is_healthy, decisions)),
                registered=sum(f.disposition in _COUNTED for f in decisions),
                doubt="; ".join(doubts),
                stale="; ".join(filter(None, (source.stale, *rebuilt))),
                unreachable=source.unreachable,
            )
        )
    before = failover.remembered(current, options.owner)
    found = failover.choose(candidates, sources[0].rule.failover, before, around.time_of_day())
    if found is None:
        return None
    memory, active = found
    seen = _written(current, options, around)
    switching = bool(active.before) or failover.is_switching(seen, options.owner, active.name)
    return _Chosen(active, *failover.marks(memory), switching)


def _is_healthy(decision: InstanceDecision) -> bool:
    """Whether an instance is ready by its health: not what is only kept ready, and what only has to settle as well.

    What settles depends on what is in Kubernetes, and so on the choice that is to be made.
    """
    code = None if decision.reason is None else decision.reason.code
    if decision.disposition is Disposition.READY:
        return code not in (Code.KEPT_READY, Code.PUBLISHED)
    return code is Code.SETTLING


_COUNTED = (Disposition.READY, Disposition.NOT_READY, Disposition.OMITTED)
"""What of a datacenter counts as there; what is skipped or not selected could never be an endpoint."""


def _without_sources(inputs: Inputs, options: PlanOptions, around: Surroundings) -> Draft:
    """Nothing feeds the target: objects of ours there go, or waits until that is certain."""
    target, current = inputs.target, inputs.current
    around.resolve(target, ())
    refused = () if inputs.refusal is None else (inputs.refusal.reason,)
    plan = _compare(target, None, current, options, around, inputs.rejected, refused, unsubscribed=inputs.unsubscribed)
    if not inputs.removable:
        plan = _left_alone(plan)
    gone = Reason(Code.GONE)
    why = Reason(Code.NOT_WANTED) if inputs.unsubscribed or inputs.listed else gone
    changes = tuple(replace(c, reason=why) if c.reason == gone else c for c in plan.changes)
    goes = any(c.action is Action.DELETE for c in changes)
    doubt = (inputs.doubt or _move_holds(inputs, around)) if goes else None
    moves_to = tuple(to for to in inputs.moves_to if goes and isinstance(to, Target))
    plan = replace(plan, queries=inputs.queries, changes=changes, doubt=doubt, moves_to=moves_to)
    return Draft(plan, None, current)


def _move_holds(inputs: Inputs, around: Surroundings) -> Reason | None:
    """Why what is at a target stays until those that rules name instead serve it; None when they do."""
    for to in inputs.moves_to:
        why = str(to.reason) if isinstance(to, Skipped) else around.not_serving(to)
        if why:
            services = ", ".join(sorted({query.service for query in inputs.queries}))
            where = "" if isinstance(to, Skipped) else f"{to}: "
            return Reason(Code.MOVE_HOLDS, service=truncate(services), why=f"{where}{why}")
    return None


def why_not_serving(draft: Draft | None, *, in_turn: bool) -> str:
    """Why a target does not serve what it is to serve, "" when it does; `in_turn`: when it is about to be written."""
    if draft is None:
        return "it cannot be planned yet"
    plan = draft.plan
    conflict = next((c for c in plan.conflicts if c.kind is not Kind.HTTP_ROUTE), None)
    if conflict is not None:
        return str(conflict.reason) if conflict.kind is Kind.SERVICE else f"{conflict.kind}: {conflict.reason}"
    is_there = draft.current.service is not None and (plan.ready_before or not plan.ready)
    return "" if in_turn or is_there else "it is not written yet"


def _end_of_filled(
    inputs: Inputs,
    options: PlanOptions,
    around: Surroundings,
    skipped: tuple[Skipped, ...],
    warnings: tuple[Reason, ...],
) -> Plan | None:
    """The end of what we filled for a user who does not ask any more, or may not, where a rule wants the name too.

    The rule does not get the user's Service, so nothing else would ever change the objects there. The guard adds it up
    where a user's decision cannot be distinguished from a loss in Consul.
    """
    if not inputs.left_over and inputs.refusal is None:
        return None
    warnings += () if inputs.refusal is None else (inputs.refusal.reason,)
    plan = _compare(
        inputs.target, None, inputs.current, options, around, skipped, warnings, unsubscribed=inputs.unsubscribed
    )
    changes = tuple(replace(c, reason=Reason(Code.NOT_WANTED)) for c in plan.changes)
    return replace(plan, changes=changes) if changes else None


def _may_be_meant(
    plan: Plan, sources: Sequence[Source], current: Current, around: Surroundings, resolved: instances.Resolved
) -> bool:
    """Whether what is lost at a target may be what its rules mean: Consul still has it, as far as it shows that."""
    if not plan.removed and not plan.deselected:
        return False
    everything = [(s.known.instances, replace(s.rule, tags=(), meta=())) for s in sources]
    decisions = [
        d for found, rule in everything for d in instances.decide(found, rule, current, resolved, around.nodes)
    ]
    registered = {endpoint.address for decision in decisions for _, endpoint in decision.endpoints}
    filtered = any((s.query.filter or s.rule.unlisted) and not s.known.instances for s in sources)
    groups = (*(current.endpoints.groups if current.endpoints else ()), *(s.group for s in current.slices))
    return filtered or any(e.address in registered for group in groups for e in group.endpoints if e.ready)


def _doubts(sources: Sequence[Source], unanswered: Collection[str]) -> tuple[Reason, ...]:
    """Why what is not seen may be there all the same: unknown is not empty."""
    doubts: list[Reason] = []
    if unanswered:  # some of what exists there may be these names' addresses
        doubts.append(_unanswered(sorted(unanswered)))
    if any(source.known.acl_filtered for source in sources):
        doubts.append(Reason(Code.HIDDEN))
    doubts += (
        Reason(Code.DATACENTER_UNREAD, datacenter=truncate(source.query.datacenter), why=source.unread)
        for source in sources
        if source.unread
    )
    return tuple(doubts)


def _unanswered(names: Sequence[str]) -> Reason:
    """The warning while names are not resolved."""
    return Reason(Code.NAMES_UNRESOLVED, names=some_of(names))


def _is_leaving(source: Source, inputs: Inputs) -> bool:
    """Whether a service has left Consul: its objects are kept for the grace period, and none is created any more."""
    missing = name_of(source.query) in inputs.missing and not source.rule.unlisted
    return missing and not (source.known.instances or source.known.acl_filtered or source.unread)


def _compare(
    target: Target,
    desired: Mirror | None,
    current: Current,
    options: PlanOptions,
    around: Surroundings,
    skipped: tuple[Skipped, ...],
    warnings: tuple[Reason, ...] = (),
    *,
    unsubscribed: bool = False,
) -> Plan:
    """What is to be written, without slices where the right to write them is missing."""
    stays = desired is None and not unsubscribed and not around.may_delete(target)
    now = around.time_of_day()
    released = release.stamp(now) if options.force else release.released(current, options.owner, now)

    def plan(slices_forbidden: Sequence[str] = ()) -> Plan:
        made = planning.plan(
            target,
            desired,
            current,
            owner=options.owner,
            policy=options.policy,
            adopt=options.adopt,
            skipped=skipped,
            warnings=warnings,
            unsubscribed=unsubscribed,
            slices_forbidden=slices_forbidden,
            released=released,
            installation=options.installation,
            force=options.force,
        )
        return _left_alone(made) if stays else made

    found = plan()
    chosen = desired is not None and desired.output is not Output.ENDPOINTS
    # a target without endpoints needs no slice, but whether its Endpoints are mirrored depends on the right to one
    if not any(chosen or change.kind is Kind.ENDPOINT_SLICE for change in found.writes):
        return found
    forbidden = around.slices_forbidden(target.namespace)
    return plan(forbidden) if forbidden else found


def _kept(
    desired: Mirror,
    current: Current,
    options: PlanOptions,
    around: Surroundings,
    *,
    lost: bool,
    flips: bool,
    deselected: bool = False,
) -> Mirror:
    """What is to be, with what would be taken away kept in place."""
    kept = retain(desired, current, removed=lost, flips=flips, deselected=deselected, owner=options.owner)
    if kept.groups != desired.groups and desired.service_ports is not None:  # it still comes from where it came from
        came_from = {Query(datacenter, service) for datacenter, service in names_at(current)}
        named = {name_of(query) for query in kept.queries}
        queries = (*kept.queries, *(query for query in came_from if name_of(query) not in named))
        kept = replace(kept, queries=tuple(sorted(queries)))
    marked = as_before(kept, current, options.owner)
    return marked if marked == kept else as_before(kept, _written(current, options, around), options.owner)


def _changed(current: Current, source: Source, options: PlanOptions, around: Surroundings) -> Changed:
    """What the user changed since their Service was filled, as what we can write says."""
    found = changed(current, source.rule, source.query, options.owner)
    if found is Changed.NOTHING:
        return found
    return changed(_written(current, options, around), source.rule, source.query, options.owner)


def _written(current: Current, options: PlanOptions, around: Surroundings) -> Current:
    """The same without slices that we may not write any more: they name the request that they were made for."""
    if not current.slices or not planning.are_frozen(around.slices_forbidden(current.target.namespace), options.policy):
        return current
    return replace(current, slices=())


def _left_alone(plan: Plan) -> Plan:
    """The same target with everything left as it is."""
    return replace(plan, changes=(), removed=0, became_unready=0, ready=plan.ready_before)


def _without_creations(plan: Plan) -> Plan:
    """The same, and nothing is created: another process may be removing what exists."""
    return replace(plan, changes=tuple(c for c in plan.changes if c.action is not Action.CREATE))


# --------------------------------------------------------------------------- 3. what of it may be done


def judge(
    drafts: Sequence[Draft],
    admit: Callable[[Sequence[Plan]], Verdict],
    options: PlanOptions,
    around: Surroundings,
) -> list[Plan]:
    """The plans in the drafts' order, with what the guard holds (`Guard.admit`) kept in place."""
    if not drafts:
        return []
    held = admit([draft.plan for draft in drafts]).held
    return [
        _held_back(draft, held[draft.plan.target], options, around) if draft.plan.target in held else draft.plan
        for draft in drafts
    ]


def _held_back(draft: Draft, held: Held, options: PlanOptions, around: Surroundings) -> Plan:
    before = draft.plan
    if draft.desired is None or held.releasing:
        return replace(before, changes=(), held=(held,), ready=before.ready_before)
    kept = _kept(
        draft.desired,
        draft.current,
        options,
        around,
        lost=held.removed,
        flips=held.flips,
        deselected=held.deselected,
    )
    warnings = tuple(w for w in before.warnings if w.code is not Code.FOREIGN_SLICE)  # these are found again
    plan = _compare(before.target, kept, draft.current, options, around, before.skipped, warnings)
    if draft.leaving:
        plan = _without_creations(plan)
    return replace(plan, queries=before.queries, held=(held,), active_datacenter=before.active_datacenter)
