"""The difference between what a target should be and what Kubernetes holds there, as data.

In: the desired `Mirror` (None: nothing is to be there), the `Current` objects, and what may be done (owner, policy,
adoption, missing rights). Out: a `Plan`, whose changes are in the order in which they must be applied. Read `plan`
first, then `_upsert` (the Service; `_endpoint_objects`: Endpoints and slices; the HTTPRoute) and `_remove` (a target
that goes); `_taken` counts what the guard has to judge.

| what is there | the Service | Endpoints and slices |
| --- | --- | --- |
| nothing | created | created |
| ours (label and owner id) | updated when it differs | updated when they differ; slices that are not needed deleted |
| unowned, adoption asked for | taken over | taken over |
| unowned, or another owner's | conflict: nothing at this target is written | conflict: that object is left alone |
| ... and no Service | | conflict: no Service is made, it would lead to their addresses |
| a Service with a selector, even ours | conflict, always | nothing is written (but our slices go with the target) |
| a Service that a user made and annotated | never written | as above |
| being deleted | nothing at this target is written | left alone until it is gone |

The HTTPRoute, where a rule asks for one (`routes`), is one more object of the target: it comes last and goes first, and
a conflict about it blocks no other object.

Order: the Service first (the control plane deletes Endpoints without one), then what brings endpoints, then what takes
them away. When the output changes, ready endpoints are there twice for a moment (kube-proxy folds equal addresses)
rather than not at all:

| from | to | how |
| --- | --- | --- |
| endpoints | endpointslices | our slices, then the Endpoints are deleted, and with them their mirror |
| endpoints | both | our slices, then skip-mirror on the Endpoints |
| endpointslices | both | Endpoints with skip-mirror: readers see no difference |
| both | endpointslices | the Endpoints are deleted: readers see no difference |
| both, endpointslices | endpoints | Endpoints without skip-mirror; our slices follow every change until the control \
plane's mirror is seen to have everything (`Plan.unmirrored`), and go then |
| endpoints that the control plane cannot mirror | | as `both` (`mirroring`) |
| any | any, without the right to make EndpointSlices | as `endpoints`; meanwhile our slices give up what has gone, \
as far as the rights that are there allow |

A slice may be refused for other reasons than rights (a quota, admission), which shows in the writing only. What would
take away endpoints that it was to carry has a `Change.meanwhile` for that case: Endpoints that are mirrored, slices
that lose only what is not wanted any more.

When a target goes, its Endpoints and slices go before its Service: the Service's address is the one thing that cannot
be brought back, so it goes last, and a pass that ends half-way finds the rest by the Service's labels. No order helps
against the control plane's own deletion of Endpoints after their Service (docs/kubernetes.md): what a new
Service of the same name loses to it is put back by the watch.

Longer than other modules: what is written of one object depends on what happens to the target's others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from bridge.core import installation as installations
from bridge.core import normalize, release, routes, slice_union
from bridge.core import ports as portage
from bridge.core import slices as packing
from bridge.core.mirroring import MARGIN, MIRROR_COSTS, may_refuse, why_not_mirrored
from bridge.core.model import (
    Action,
    Adopt,
    Body,
    Change,
    Conflict,
    Current,
    CurrentEndpoints,
    CurrentRoute,
    CurrentService,
    CurrentSlice,
    Endpoint,
    EndpointsBody,
    Family,
    Group,
    Kind,
    Meta,
    Mirror,
    Output,
    Pairs,
    Plan,
    Policy,
    Port,
    Route,
    RouteBody,
    Scope,
    ServiceBody,
    Skipped,
    SliceBody,
    Target,
)
from bridge.core.ownership import (
    ADOPT,
    CATALOG_SYNC_LABEL,
    DATACENTER,
    MANAGED_BY,
    MANAGER,
    OWNER,
    SERVICE_SYNC,
    SIGNATURES,
    SKIP_MIRROR,
    SLICE_MANAGED_BY,
    SLICE_SERVICE,
    joined,
    ownership_labels,
    rule_keys,
)
from bridge.core.pairs import Pair, pairs_at, pairs_in, ready_endpoints, ready_pairs
from bridge.core.ports import CLUSTER_IP, EXTERNAL_NAME
from bridge.core.reasons import Code, Reason

SLICE_LIMIT = 1000
"""Endpoints that Kubernetes takes in one slice."""


def plan(
    target: Target,
    desired: Mirror | None,
    current: Current,
    *,
    owner: str,
    policy: Policy = Policy.SYNC,
    adopt: Adopt = Adopt.NEVER,
    skipped: tuple[Skipped, ...] = (),
    warnings: tuple[Reason, ...] = (),
    unsubscribed: bool = False,
    slices_forbidden: Sequence[str] = (),
    released: str = "",
    installation: str = "",
    force: bool = False,
) -> Plan:
    """What has to be done at `target` so that it becomes `desired` (None: nothing of ours).

    `unsubscribed`: a user no longer wants what we filled for them, or wants something else: the guard does not count it
    as a loss. `slices_forbidden`: the verbs on EndpointSlices that we lack there. Without `create` or `patch` the
    Endpoints carry everything; without `delete` slices that are not needed are emptied. `released`: when a forced pass
    let go what this target loses (`release`). `installation` is our own, where it is known: a target that another one
    wrote does not go as a whole, unless by `force` (`core.installation`).
    """
    draft = _PlanBuilder(target, owner, policy, adopt, warnings=list(warnings), missing=tuple(slices_forbidden))
    strangers = () if force or unsubscribed else tuple(installations.others(current, owner, installation))
    if desired is not None:
        _upsert(draft, desired, current)
    elif strangers:
        for kind, name in strangers:
            draft.conflict(kind, Reason(Code.OTHER_INSTALLATION, installation=normalize.truncate(name)))
    else:
        _remove(draft, current)
    seen = _seen(draft, desired, current)
    before = ready_endpoints(current.groups(owner))
    taken = _taken(before, desired, current, draft) if before and not unsubscribed else (0, 0, 0)
    removed, became_unready, deselected = taken
    if released and any(taken):
        draft.changes = [release.marked(change, released) for change in draft.changes]
    _sign(draft, installation, force, stays=desired is not None)
    return Plan(
        target=target,
        queries=desired.queries if desired is not None else (),
        changes=tuple(draft.changes),
        conflicts=tuple(draft.conflicts),
        skipped=skipped,
        warnings=(*draft.warnings, *seen.foreign),
        notes=(*draft.notes, *seen.kept),
        ready=desired.ready if desired is not None else 0,
        not_ready=desired.not_ready if desired is not None else 0,
        ready_before=len(before),
        removed=removed,
        became_unready=became_unready,
        deselected=deselected,
        unmirrored=draft.unmirrored,
        unsubscribed=unsubscribed,
        scope=scope_of(current, owner, desired),
        released=released,
        deviations=seen.deviations,
        differences=seen.differences,
        foreign=len(seen.foreign),
    )


def _seen(draft: _PlanBuilder, desired: Mirror | None, current: Current) -> slice_union.Seen:
    """What readers of EndpointSlices see once the changes are made; nothing where a conflict says enough.

    The policy `create-only` leaves existing objects as they are: there, what our objects say is what is wanted.
    """
    if desired is None or current.others is None or draft.output is None:
        return slice_union.Seen()
    if draft.policy is Policy.CREATE_ONLY:
        return slice_union.compare_existing(current, draft.owner) or slice_union.Seen()
    changed = {
        c.name: c.body for c in draft.changes if c.kind is Kind.ENDPOINT_SLICE and c.action is not Action.UNCHANGED
    }
    own = {s.meta.name: s.group for s in current.slices if draft.ours(s.meta) and s.meta.name not in changed}
    own |= {name: body.group for name, body in changed.items() if isinstance(body, SliceBody)}
    others = (*current.others, *(s for s in current.slices if not draft.ours(s.meta)))
    return slice_union.compare(draft.target, desired.groups, own, others, mirrored=draft.output is Output.ENDPOINTS)


def _sign(draft: _PlanBuilder, installation: str, force: bool, *, stays: bool) -> None:
    """Put the installation on what is written, and say where that was another one's.

    `stays`: the target does. What else goes there has been judged as a whole.
    """
    writes_over = (Action.UPDATE, Action.DELETE) if stays else (Action.UPDATE,)
    changes = []
    for change in draft.changes:
        before = "" if change.existing is None else installations.named(change.existing)
        if change.action in writes_over and installation and before not in ("", installation):
            draft.warn(Reason(Code.INSTALLATION_CHANGED, installation=normalize.truncate(before)))
        writes = draft.policy is not Policy.CREATE_ONLY
        writes = writes and not (change.kind is Kind.ENDPOINT_SLICE and "patch" in draft.missing)
        changes.append(installations.signed(change, installation, writes=writes, takes=force))
    draft.changes = changes


def missing_rights(verbs: Sequence[str], namespace: str) -> str:
    """Verbs on EndpointSlices, in words."""
    return f"{', '.join(verbs)} endpointslices in namespace {namespace}"


def are_frozen(lacking: Sequence[str], policy: Policy) -> bool:
    """Whether our slices stay as they are, because we may neither change nor delete them (any more)."""
    return "patch" in lacking and ("delete" in lacking or policy is not Policy.SYNC)


def scope_of(current: Current, owner: str, desired: Mirror | None = None) -> Scope:
    """With whom the guard adds up what exists at a target, or (nothing exists there yet) what is to be made there.

    A Service of ours was made by a rule, and its objects say from which datacenters. Where the Service is a user's, or
    was deleted by one, the namespace answers for its endpoints.
    """
    service = current.service
    if service is not None and service.meta.owner == owner:
        objects = (service, current.endpoints, *current.slices)
        found = {dict(o.meta.ownership).get(DATACENTER, "") for o in objects if o is not None and o.meta.owner == owner}
    elif service is None and desired is not None and desired.service_ports is not None:
        found = {dict(ownership_labels(owner, desired.queries)[1])[DATACENTER]}
    else:
        return Scope(namespace=current.target.namespace)
    return Scope(datacenters=tuple(sorted({name for text in found for name in text.split(",") if name})))


# --------------------------------------------------------------------------- one plan in the making


@dataclass(slots=True)
class _PlanBuilder:
    """What the parts of one plan share."""

    target: Target
    owner: str
    policy: Policy
    adopt: Adopt
    warnings: list[Reason]
    missing: tuple[str, ...] = ()
    changes: list[Change] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    notes: list[Reason] = field(default_factory=list)
    unmirrored: bool = False
    output: Output | None = None

    def ours(self, meta: Meta) -> bool:
        """Whether an object carries our owner id."""
        return meta.owner == self.owner

    def may_write(self, kind: Kind, meta: Meta, service_type: str = "") -> bool:
        """Whether an existing object may be written; a conflict is noted when not."""
        if self.ours(meta):
            return True
        if meta.owner is not None:
            self.conflict(kind, Reason(Code.OTHER_OWNER, owner=normalize.truncate(meta.owner)))
            return False
        marked = dict(meta.ownership)
        if self.adopt is Adopt.UNOWNED or marked.get(ADOPT) == "true":
            return True
        from_catalog_sync = marked.get(CATALOG_SYNC_LABEL) == "true" and service_type == EXTERNAL_NAME
        if self.adopt is Adopt.CONSUL_K8S and from_catalog_sync:
            return True
        if meta.written and not from_catalog_sync:
            labels = f"{MANAGED_BY}={MANAGER} and {OWNER}={self.owner}"
            self.conflict(kind, Reason(Code.UNLABELLED, labels=labels, annotation=ADOPT))
            return False
        flag = "--adopt consul-k8s" if from_catalog_sync else "--adopt unowned"
        self.conflict(kind, Reason(Code.NOT_OWNED, flag=flag, annotation=ADOPT))
        return False

    def warn(self, reason: Reason) -> None:
        """Say something, once."""
        if reason not in self.warnings:
            self.warnings.append(reason)

    @property
    def makes_slices(self) -> bool:
        """Whether we may write new slices."""
        return not {"create", "patch"} & set(self.missing)

    @property
    def rights(self) -> str:
        """The rights on slices that we lack, in words."""
        return missing_rights(self.missing, self.target.namespace)

    def conflict(self, kind: Kind, reason: Reason) -> None:
        """Note an object that is in the way."""
        self.conflicts.append(Conflict(self.target, kind, reason))

    def change(
        self,
        kind: Kind,
        name: str,
        body: Body,
        existing: Meta | None,
        *,
        same: bool,
        reason: Reason | None = None,
        meanwhile: Change | None = None,
    ) -> Change:
        """The change that makes an object what it should be."""
        groups = _groups_in(body)
        action = Action.CREATE if existing is None else Action.UNCHANGED if same else Action.UPDATE
        if existing is not None and existing.owner is None:
            reason = reason or Reason(Code.ADOPTED)
        return Change(
            action=action,
            kind=kind,
            target=self.target,
            name=name,
            body=body,
            existing=existing,
            ready=sum(e.ready for g in groups for e in g.endpoints),
            not_ready=sum(not e.ready for g in groups for e in g.endpoints),
            reason=reason,
            meanwhile=meanwhile,
        )

    def remove(
        self, kind: Kind, meta: Meta, reason: Reason, *, adopted: bool = False, meanwhile: Change | None = None
    ) -> None:
        """Add a deletion of what is ours or `adopted`; what is being deleted already needs none."""
        if (adopted or self.ours(meta)) and not meta.deleting:
            self.add(
                Change(
                    action=Action.DELETE,
                    kind=kind,
                    target=self.target,
                    name=meta.name,
                    body=None,
                    existing=meta,
                    reason=reason,
                    meanwhile=meanwhile,
                )
            )

    def add(self, change: Change) -> None:
        """Add a change; what the policy forbids becomes "unchanged", with the policy as the reason."""
        if change.action in _FORBIDDEN[self.policy]:
            reason = Reason(Code.POLICY, policy=self.policy, action=change.action)
            change = replace(change, action=Action.UNCHANGED, reason=reason)
        self.changes.append(change)


_FORBIDDEN = {
    Policy.SYNC: frozenset[Action](),
    Policy.UPSERT_ONLY: frozenset({Action.DELETE}),
    Policy.CREATE_ONLY: frozenset({Action.DELETE, Action.UPDATE}),
}


def _remove(draft: _PlanBuilder, current: Current) -> None:
    reason = Reason(Code.GONE)
    theirs = current.service is not None and current.service.has_selector
    if isinstance(current.route, CurrentRoute):
        draft.remove(Kind.HTTP_ROUTE, current.route.meta, reason)
    if current.endpoints is not None and not theirs:
        _drop_endpoints(draft, current.endpoints, reason)
    for piece in sorted(current.slices, key=lambda s: s.meta.name):
        if draft.ours(piece.meta):
            _drop_slice(draft, piece, reason)
    if current.service is not None and not theirs:
        draft.remove(Kind.SERVICE, current.service.meta, reason)
    elif current.service is not None and draft.ours(current.service.meta):
        draft.conflict(Kind.SERVICE, Reason(Code.SELECTOR_KEPT, why=reason))


def _upsert(draft: _PlanBuilder, desired: Mirror, current: Current) -> None:
    labels, annotations = ownership_labels(draft.owner, desired.queries)
    annotations = joined(rule_keys(desired.labels, desired.annotations), annotations)
    annotations = joined(desired.annotations, joined(annotations, desired.marks))
    labels = joined(desired.labels, labels)
    mine = sorted((s for s in current.slices if draft.ours(s.meta)), key=lambda s: s.meta.name)
    endpoints = current.endpoints
    on_service = joined(((SERVICE_SYNC, "false"), *desired.service_marks), annotations)
    if not _service(draft, desired, current, labels, on_service):
        return
    blocked = endpoints is not None and not draft.may_write(Kind.ENDPOINTS, endpoints.meta)
    if blocked and any(c.existing is None or not draft.ours(c.existing) for c in draft.changes):
        draft.changes.clear()  # a Service that we would make or take over would lead to another owner's addresses
        return
    _endpoint_objects(draft, desired, current, mine, labels, annotations, blocked=blocked)
    _route(draft, desired, current, labels, annotations)


def _endpoint_objects(
    draft: _PlanBuilder,
    desired: Mirror,
    current: Current,
    mine: Sequence[CurrentSlice],
    labels: Pairs,
    annotations: Pairs,
    *,
    blocked: bool,
) -> None:
    """The objects that carry the addresses. `blocked`: the Endpoints belong to another owner."""
    endpoints = current.endpoints
    output = draft.output = _effective_output(draft, desired, mine)
    wants_endpoints = output is not Output.ENDPOINTSLICES
    wants_slices = output is not Output.ENDPOINTS
    if draft.policy is Policy.CREATE_ONLY and (mine or (endpoints is not None and draft.ours(endpoints.meta))):
        _complete(draft, desired, endpoints, mine, output, labels, annotations)
        return
    if are_frozen(draft.missing, draft.policy):
        mine = []  # they stay as they are, whatever that is
    own, alone, content = _bodies(draft, desired, output, labels, annotations)
    stays = _still_needed(mine, desired, current) if not wants_slices else False
    if stays and (draft.makes_slices or not why_not_mirrored(desired.groups)):
        draft.unmirrored = True
        draft.warnings.append(Reason(Code.SLICES_KEPT))
    surplus: Sequence[CurrentSlice] = mine
    if wants_slices or (stays and draft.makes_slices):
        packed, surplus = packing.pack(draft.target, desired.groups, mine, desired.max_endpoints_per_slice)
        _slices(draft, desired, packed, own, annotations)
    elif stays:
        surplus = ()
        if "patch" not in draft.missing:
            for piece in (s for s in mine if not s.meta.deleting):
                draft.add(_reduced(draft, piece, desired, own, annotations))
    if endpoints is not None and endpoints.meta.deleting:
        draft.warnings.append(Reason(Code.ENDPOINTS_BEING_DELETED))
    elif wants_endpoints and not blocked:
        _endpoints(draft, content, endpoints, alone)
    for piece in surplus:
        reduced = _reduced(draft, piece, desired, own, annotations, Reason(Code.SLICES_REFUSED))
        _drop_slice(draft, piece, Reason(Code.NOT_NEEDED), (own, annotations), reduced)
    if not wants_endpoints and endpoints is not None and not blocked:
        if draft.policy is Policy.UPSERT_ONLY and draft.ours(endpoints.meta) and not endpoints.meta.deleting:
            _endpoints(draft, content, endpoints, alone)
        else:
            meanwhile = _mirrored_meanwhile(draft, endpoints, alone) if draft.ours(endpoints.meta) else None
            reason = Reason(Code.OUTPUT_CHANGED)
            draft.remove(Kind.ENDPOINTS, endpoints.meta, reason, adopted=True, meanwhile=meanwhile)


def _route(draft: _PlanBuilder, desired: Mirror, current: Current, labels: Pairs, annotations: Pairs) -> None:
    """The HTTPRoute's change. What cannot be told, now or at all, leaves it as it is."""
    wanted, found = desired.route, current.route
    if isinstance(found, Reason):
        if wanted is not None:
            draft.warn(found)
        return
    if isinstance(wanted, Reason):
        (draft.notes.append if wanted.code in routes.NOTES else draft.warn)(wanted)
    if not isinstance(wanted, Route):
        if found is not None and (wanted is None or wanted.code is Code.ROUTE_WITHOUT_HOSTNAME):
            draft.remove(Kind.HTTP_ROUTE, found.meta, Reason(Code.NOT_NEEDED))
        return
    if found is not None:
        for reason in found.refused:
            draft.warn(reason)
        if found.meta.deleting or not draft.may_write(Kind.HTTP_ROUTE, found.meta):
            return
    body = RouteBody(wanted, labels, annotations)
    meta = None if found is None else found.meta
    same = found is not None and (found.route, found.meta.labels, release.unmarked(found.meta.annotations)) == (
        wanted,
        labels,
        annotations,
    )
    draft.add(draft.change(Kind.HTTP_ROUTE, draft.target.name, body, meta, same=same))


def _complete(
    draft: _PlanBuilder,
    desired: Mirror,
    endpoints: CurrentEndpoints | None,
    mine: Sequence[CurrentSlice],
    output: Output,
    labels: Pairs,
    annotations: Pairs,
) -> None:
    """What `create-only` makes beside objects of ours that stand: those that are missing, and nothing else changes.

    Endpoints that the control plane mirrors carry everything, so that no slice is missing beside them.
    """
    own, alone, content = _bodies(draft, desired, output, labels, annotations)
    skips_mirror = endpoints is not None and (SKIP_MIRROR, "true") in endpoints.meta.labels
    is_mirrored = endpoints is not None and draft.ours(endpoints.meta) and not skips_mirror
    if output is not Output.ENDPOINTS and not is_mirrored:
        packed = packing.missing(draft.target, desired.groups, mine, desired.max_endpoints_per_slice)
        _slices(draft, desired, packed, own, annotations)
    if output is not Output.ENDPOINTSLICES and endpoints is None:
        _endpoints(draft, content, None, alone)


def _bodies(
    draft: _PlanBuilder, desired: Mirror, output: Output, labels: Pairs, annotations: Pairs
) -> tuple[Pairs, EndpointsBody, EndpointsBody]:
    """The labels of slices; the Endpoints if they alone carry the addresses; and the Endpoints to write.

    Beside slices of ours they are not mirrored.
    """
    alone = EndpointsBody(normalize.without_conditions(desired.groups), labels, annotations)
    content = EndpointsBody(
        alone.groups if output is not Output.ENDPOINTSLICES else (),
        labels if output is Output.ENDPOINTS else joined(labels, ((SKIP_MIRROR, "true"),)),
        annotations,
    )
    return joined(labels, _slice_marks(draft.target)), alone, content


def _effective_output(draft: _PlanBuilder, desired: Mirror, mine: Sequence[CurrentSlice]) -> Output:
    """What carries the addresses: what the rule says, unless that cannot be done or would not reach kube-proxy.

    Slices that are there because the Endpoints could not be mirrored stay while that may fail again: otherwise each
    instance that comes and goes would change the kind of objects.
    """
    chosen = desired.output is not Output.ENDPOINTS
    refused = why_not_mirrored(desired.groups) if not draft.makes_slices or not chosen else ""
    stays = not chosen and not refused and mine and may_refuse(desired.groups)
    if not (chosen or refused or stays):
        return Output.ENDPOINTS
    if not draft.makes_slices:
        draft.warnings.append(
            Reason(Code.UNMIRRORED, rights=draft.rights, why=refused)
            if refused
            else Reason(Code.SLICES_FORBIDDEN, rights=draft.rights, costs=MIRROR_COSTS)
        )
        return Output.ENDPOINTS
    if refused:
        draft.warnings.append(Reason(Code.MIRROR_REFUSED, why=refused))
    elif stays:
        draft.warnings.append(Reason(Code.MIRROR_DOUBTFUL, margin=MARGIN))
    return desired.output if chosen else Output.BOTH


def _endpoints(
    draft: _PlanBuilder, body: EndpointsBody, existing: CurrentEndpoints | None, alone: EndpointsBody
) -> None:
    """`alone`: the body for when nothing but the Endpoints carries the addresses."""
    meanwhile = _mirrored_meanwhile(draft, existing, alone) if (SKIP_MIRROR, "true") in body.labels else None
    meta = None if existing is None else existing.meta
    draft.add(
        draft.change(Kind.ENDPOINTS, draft.target.name, body, meta, same=_is_same(existing, body), meanwhile=meanwhile)
    )


def _is_same(existing: CurrentEndpoints | None, body: EndpointsBody) -> bool:
    return existing is not None and (
        existing.normalized
        and existing.groups == body.groups
        and existing.meta.labels == body.labels
        and release.unmarked(existing.meta.annotations) == body.annotations
    )


def _mirrored_meanwhile(draft: _PlanBuilder, existing: CurrentEndpoints | None, alone: EndpointsBody) -> Change | None:
    """What happens to Endpoints while our slices are refused: the control plane mirrors them, if it does already."""
    if existing is not None and (SKIP_MIRROR, "true") in existing.meta.labels:
        return None
    meta, same = None if existing is None else existing.meta, _is_same(existing, alone)
    return draft.change(Kind.ENDPOINTS, draft.target.name, alone, meta, same=same, reason=Reason(Code.SLICES_REFUSED))


def _slices(
    draft: _PlanBuilder, desired: Mirror, packed: Iterable[packing.Slice], own: Pairs, annotations: Pairs
) -> None:
    """New slices first, then those that other slices take nothing from, then those that give addresses away."""
    packed = tuple(packed)
    packed_addresses = packing.addresses_in(packed)
    for piece in sorted(
        packed, key=lambda piece: (piece.existing is not None, packing.gives_away(piece, packed_addresses))
    ):
        now = piece.existing
        body = SliceBody(draft.target.name, piece.group, own, annotations)
        found = None
        if now is not None and now.normalized:
            found = now.group, now.meta.labels, release.unmarked(now.meta.annotations)
        same = found == (piece.group, own, annotations)
        meta = None if now is None else now.meta
        meanwhile = None if now is None else _kept_meanwhile(draft, now, body, desired)
        draft.add(draft.change(Kind.ENDPOINT_SLICE, piece.name, body, meta, same=same, meanwhile=meanwhile))


def _kept_meanwhile(draft: _PlanBuilder, now: CurrentSlice, body: SliceBody, desired: Mirror) -> Change | None:
    """A slice with what moves to another one still in it; None when nothing does."""
    staying = {e.address for e in body.group.endpoints}
    if all(e.address in staying for e in now.group.endpoints):
        return None
    moving = [e for e in _remaining(now.group, desired) if e.address not in staying]
    if not moving or len(staying) + len(moving) > SLICE_LIMIT:
        return None
    group = replace(body.group, endpoints=normalize.sort_endpoints((*body.group.endpoints, *moving)))
    return _slice_now(draft, now, replace(body, group=group), Reason(Code.SLICES_REFUSED))


def _reduced(
    draft: _PlanBuilder,
    now: CurrentSlice,
    desired: Mirror,
    own: Pairs,
    annotations: Pairs,
    reason: Reason | None = None,
) -> Change:
    """A slice with nothing new in it, and without what is not wanted any more."""
    group = replace(now.group, endpoints=_remaining(now.group, desired))
    return _slice_now(draft, now, SliceBody(now.service, group, own, annotations), reason)


def _slice_now(draft: _PlanBuilder, now: CurrentSlice, body: SliceBody, reason: Reason | None) -> Change:
    found = now.group, now.meta.labels, release.unmarked(now.meta.annotations)
    same = found == (body.group, body.labels, body.annotations)
    return draft.change(Kind.ENDPOINT_SLICE, now.meta.name, body, now.meta, same=same, reason=reason)


def _remaining(group: Group, desired: Mirror) -> tuple[Endpoint, ...]:
    """What of a slice's endpoints is wanted, in its group or under the same port name in another, as it is wanted."""
    wanted: dict[str, Endpoint] = {}
    names = {p.name for p in group.ports}
    for other in sorted(desired.groups, key=lambda g: g.ports != group.ports):
        if other.family is group.family and (other.ports == group.ports or names & {p.name for p in other.ports}):
            for endpoint in other.endpoints:
                wanted.setdefault(endpoint.address, endpoint)
    return normalize.sort_endpoints(wanted[e.address] for e in group.endpoints if e.address in wanted)


def _slice_marks(target: Target) -> Pairs:
    return (SLICE_MANAGED_BY, MANAGER), (SLICE_SERVICE, target.name)


def _drop_endpoints(draft: _PlanBuilder, existing: CurrentEndpoints, reason: Reason) -> None:
    """Endpoints that are not needed go; where nothing may be deleted, they are emptied: `upsert-only` keeps objects."""
    if draft.policy is not Policy.UPSERT_ONLY or existing.meta.deleting or not draft.ours(existing.meta):
        draft.remove(Kind.ENDPOINTS, existing.meta, reason)
        return
    body = EndpointsBody((), existing.meta.labels, release.unmarked(existing.meta.annotations))
    same = existing.normalized and not existing.groups
    draft.add(draft.change(Kind.ENDPOINTS, existing.meta.name, body, existing.meta, same=same, reason=reason))


def _drop_slice(
    draft: _PlanBuilder,
    piece: CurrentSlice,
    reason: Reason,
    marked: tuple[Pairs, Pairs] | None = None,
    meanwhile: Change | None = None,
) -> None:
    """A slice that is not needed goes; where nothing may be deleted, it is emptied: its addresses are not wanted.

    `marked`: its labels and annotations then, where there is still something to mark it with. `meanwhile`: what is
    left of it until another slice carries its endpoints.
    """
    undeletable = draft.policy is Policy.SYNC and "delete" in draft.missing and "patch" not in draft.missing
    if piece.meta.deleting or not (undeletable or draft.policy is Policy.UPSERT_ONLY):
        draft.remove(Kind.ENDPOINT_SLICE, piece.meta, reason, meanwhile=meanwhile)
        return
    if undeletable:
        draft.warn(Reason(Code.SLICES_EMPTIED, rights=draft.rights))
    empty = replace(piece.group, endpoints=())
    now = piece.meta.labels, release.unmarked(piece.meta.annotations)
    body = SliceBody(piece.service, empty, *(marked or now))
    same = not piece.group.endpoints and marked in (None, now)
    draft.add(
        draft.change(
            Kind.ENDPOINT_SLICE, piece.meta.name, body, piece.meta, same=same, reason=reason, meanwhile=meanwhile
        )
    )


def _still_needed(mine: Sequence[CurrentSlice], desired: Mirror, current: Current) -> bool:
    """Whether our slices hold endpoints that the control plane's mirror of the Endpoints does not have yet.

    Not read: needed. The mirror of Endpoints that are not there (any more), or say that they are not to be
    mirrored, is about to go: needed.
    """
    held = ready_endpoints(s.group for s in mine if not s.meta.deleting)
    if not held or not desired.ready:
        return False
    endpoints = current.endpoints
    if current.mirrored is None or endpoints is None or endpoints.meta.deleting:
        return True
    if (SKIP_MIRROR, "true") in endpoints.meta.labels:
        return True
    return not ready_pairs(desired.groups) <= ready_pairs(current.mirrored)


# --------------------------------------------------------------------------- the Service


def _service(draft: _PlanBuilder, desired: Mirror, current: Current, labels: Pairs, annotations: Pairs) -> bool:
    """The Service's change, none for a user-managed Service. False when nothing at this target may be written."""
    existing = current.service
    if existing is None:
        if desired.service_ports is None:
            return False
        body = _service_body(desired, current, desired.headless, labels, annotations)
        draft.add(draft.change(Kind.SERVICE, draft.target.name, body, None, same=False))
        return True
    if existing.has_selector:
        draft.conflict(Kind.SERVICE, Reason(Code.SELECTOR))
        return False
    if existing.meta.deleting:
        draft.warnings.append(Reason(Code.BEING_DELETED))
        return False
    if desired.service_ports is None:
        if existing.type == EXTERNAL_NAME:
            draft.conflict(Kind.SERVICE, Reason(Code.EXTERNAL_NAME))
            return False
        return True
    if not draft.may_write(Kind.SERVICE, existing.meta, existing.type):
        return False
    alias = existing.type == EXTERNAL_NAME
    if existing.headless != desired.headless and not alias:
        now = "headless" if existing.headless else "not headless"
        draft.conflict(Kind.SERVICE, Reason(Code.HEADLESS_FIXED, now=now))
    headless = desired.headless if alias else existing.headless
    body = _service_body(desired, current, headless, labels, annotations)
    draft.add(
        draft.change(
            Kind.SERVICE,
            draft.target.name,
            body,
            existing.meta,
            same=not alias and existing_fields(existing, body) == body,
        )
    )
    return True


def _service_body(desired: Mirror, current: Current, headless: bool, labels: Pairs, annotations: Pairs) -> ServiceBody:
    """What is to be applied, and what becomes thereby of the fields that are left to others."""
    existing, ports = current.service, desired.service_ports or ()
    if existing is not None and not ports and not headless:
        ports = existing.ports  # it cannot become headless, and with a cluster address it must have ports
    wanted = "" if headless else desired.type
    targets = portage.target_ports(ports, (*desired.groups, *desired.omitted_unhealthy), existing)
    body = ServiceBody(
        ports, headless, desired.families, labels, annotations, targets, wanted or CLUSTER_IP, bool(wanted)
    )
    if existing is None or existing.type == EXTERNAL_NAME:
        # an alias turns over in place, and must be told so
        policy = "PreferDualStack" if len(desired.families) > 1 else "SingleStack"
        return replace(body, family_policy=policy, sets_type=body.sets_type or (existing is not None and not headless))
    released = "type" in existing.applied  # a rule set it once and does not any more: it falls back
    policy = existing.family_policy if existing.dual_stack else "PreferDualStack"
    return replace(
        body,
        type=wanted or (CLUSTER_IP if released else existing.type),
        family_policy=policy if len(desired.families) > 1 else "SingleStack",
        traffic=existing.traffic,
        replaces_ports=_has_foreign_ports(existing, ports),
        renames=any(old != new for old, new in portage.new_names(existing.ports, desired.service_ports or ()).items()),
    )


def _has_foreign_ports(existing: CurrentService, ports: Sequence[Port]) -> bool:
    """Whether the Service has ports that an apply of `ports` would leave, or whose names it would."""
    wanted = {(p.number, p.protocol): p for p in ports}
    return any(
        (p.number, p.protocol) not in wanted or (p.name and not wanted[p.number, p.protocol].name)
        for p in existing.ports
    )


def existing_fields(existing: CurrentService, body: ServiceBody) -> ServiceBody:
    """What exists there of all that `body` says: the two are equal when there is nothing to write.

    This is what is compared and what a diff shows, so that nothing is written unseen. Fields that `body` does not set
    count as they are: others set them. A Service that asks for both families has what the cluster can give, whatever
    that is.
    """
    unset = {(p.number, p.protocol) for p in body.ports if not p.app_protocol}
    ports = tuple(
        replace(p, app_protocol="")
        if p.app_protocol and (p.number, p.protocol) in unset and portage.app_protocol_field(p) not in existing.applied
        else p
        for p in existing.ports
    )
    said = dict(body.annotations)
    annotations = tuple(p for p in existing.meta.annotations if p[0] not in SIGNATURES or p[0] in said)
    fit = existing.dual_stack if len(body.families) > 1 else set(body.families) <= set(existing.families or Family)
    return replace(
        body,
        ports=ports,
        target_ports=existing.target_ports,
        headless=existing.headless,
        families=body.families if fit else existing.families,
        family_policy=existing.family_policy,
        labels=existing.meta.labels,
        annotations=annotations,
        type=existing.type,
    )


# --------------------------------------------------------------------------- what is taken away


def _taken(
    before: Iterable[tuple[Family, str, tuple[Port, ...]]],
    desired: Mirror | None,
    current: Current,
    draft: _PlanBuilder,
) -> tuple[int, int, int]:
    """How many ready endpoints would be lost by these changes, would stop being ready, or are not selected any more."""
    written = {(c.kind, c.name): c for c in draft.changes if c.action is not Action.UNCHANGED}
    if not written:
        return 0, 0, 0
    after: set[Pair] = set()
    existing: list[CurrentEndpoints | CurrentSlice] = [s for s in current.slices if draft.ours(s.meta)]
    if current.endpoints is not None and draft.ours(current.endpoints.meta):
        existing.append(current.endpoints)
    for found in existing:
        if (found.meta.kind, found.meta.name) not in written:
            after |= ready_pairs(found.groups if isinstance(found, CurrentEndpoints) else (found.group,))
    for change in written.values():
        after |= ready_pairs(_groups_in(change.body))
    wanted = pairs_in((*desired.groups, *desired.omitted_unhealthy)) if desired is not None else set()
    dropped = pairs_in(desired.deselected) - wanted if desired is not None else set()
    removed = became_unready = deselected = 0
    for _, address, ports in before:
        pairs = pairs_at(address, ports)
        if not all(pair in after for pair in pairs):
            missing = {pair for pair in pairs if pair not in after}
            if missing <= dropped:
                deselected += 1
            elif missing <= wanted | dropped:
                became_unready += 1
            else:
                removed += 1
    return removed, became_unready, deselected


def _groups_in(body: Body | None) -> tuple[Group, ...]:
    match body:
        case EndpointsBody():
            return body.groups
        case SliceBody():
            return (body.group,)
        case _:
            return ()
