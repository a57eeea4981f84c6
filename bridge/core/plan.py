"""The difference between what a target should be and what Kubernetes holds there, as data.

| what is there | the Service | Endpoints and slices |
| --- | --- | --- |
| nothing | created | created |
| ours (label and owner id) | updated when it differs | updated when they differ; slices that are not needed deleted |
| unowned, adoption asked for | taken over | taken over |
| unowned, or another owner's | conflict: nothing at this target is written | conflict: that object is left alone |
| a Service with a selector | conflict, always | nothing is written |
| a Service that a person made and annotated | never written | as above |

Order of changes: the Service first (the control plane deletes Endpoints without one), then what brings endpoints, then
what takes them away. When a target goes, its Endpoints go before its Service, so that the control plane finds nothing
left to delete behind our back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bridge.core import canonical
from bridge.core import slices as packing
from bridge.core.model import (
    Action,
    Adopt,
    Body,
    Change,
    Conflict,
    Current,
    CurrentService,
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
    Query,
    ServiceBody,
    Skipped,
    SliceBody,
    Target,
)
from bridge.core.translate import ready_now

MANAGED_BY = "app.kubernetes.io/managed-by"
OWNER = "consul-bridge/owner"
SERVICE = "consul-bridge/service"
DATACENTER = "consul-bridge/datacenter"
ADOPT = "consul-bridge/adopt"
SLICE_MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
SLICE_SERVICE = "kubernetes.io/service-name"
SKIP_MIRROR = "endpointslice.kubernetes.io/skip-mirror"
MANAGER = "consul-bridge"
CATALOG_SYNC_LABEL = "consul"


def plan(
    target: Target,
    desired: Mirror | None,
    current: Current,
    *,
    owner: str,
    policy: Policy = Policy.SYNC,
    adopt: Adopt = Adopt.NEVER,
    skipped: tuple[Skipped, ...] = (),
    warnings: tuple[str, ...] = (),
) -> Plan:
    """What has to be done at `target` so that it becomes `desired` (None: nothing of ours)."""
    draft = _Draft(target, owner, adopt)
    changes = _removal(draft, current) if desired is None else _upsert(draft, desired, current)
    changes = tuple(_under(policy, change) for change in changes)
    before = ready_now(current) if _is_ours(current, owner) else set()
    listed, ready = _pairs(desired)
    return Plan(
        target=target,
        queries=desired.queries if desired is not None else (),
        changes=changes,
        conflicts=tuple(draft.conflicts),
        skipped=skipped,
        warnings=warnings,
        ready=desired.ready if desired is not None else 0,
        not_ready=desired.not_ready if desired is not None else 0,
        ready_before=len(before),
        lost=len(before - listed),
        flipped=len((before & listed) - ready),
    )


def retain(desired: Mirror, current: Current, *, lost: bool, flips: bool) -> Mirror:
    """`desired` with what would be taken away put back: `lost` endpoints listed again, `flips` kept ready.

    Additions, address changes and everything else of `desired` stay as they are.
    """
    before = ready_now(current)
    listed, _ = _pairs(desired)
    members = {(g.family, g.ports): {e.address: e for e in g.endpoints} for g in desired.groups}
    if flips:
        for (_, ports), endpoints in members.items():
            for address, endpoint in endpoints.items():
                if not endpoint.ready and any((address, p.number) in before for p in ports):
                    endpoints[address] = replace(endpoint, ready=True, serving=True, terminating=False)
    if lost:
        for group in _groups_now(current):
            for endpoint in group.endpoints:
                if endpoint.ready and any((endpoint.address, p.number) not in listed for p in group.ports):
                    members.setdefault((group.family, group.ports), {}).setdefault(endpoint.address, endpoint)
    groups = canonical.group_endpoints(members)
    return replace(desired, groups=groups)


def marks(owner: str, queries: Sequence[Query]) -> tuple[Pairs, Pairs]:
    """Labels and annotations that say whose an object is and where it comes from."""
    labels = ((MANAGED_BY, MANAGER), (OWNER, owner))
    datacenters = [q.datacenter for q in queries]
    if len(set(datacenters)) == 1:
        datacenters = datacenters[:1]
    annotations = (
        (DATACENTER, ",".join(map(_escape, datacenters))),
        (SERVICE, ",".join(_escape(q.service) for q in queries)),
    )
    return labels, annotations


def origins(service: str, datacenter: str) -> tuple[tuple[str, str], ...]:
    """The other way round: (datacenter, service) pairs from the values of an object's two annotations."""
    services, datacenters = service.split(","), datacenter.split(",")
    pairs = {
        (_unescape(datacenters[min(position, len(datacenters) - 1)]), _unescape(name))
        for position, name in enumerate(services)
    }
    return tuple(sorted(pair for pair in pairs if all(pair)))


def _escape(name: str) -> str:
    return name.replace("%", "%25").replace(",", "%2C")


def _unescape(name: str) -> str:
    return name.replace("%2C", ",").replace("%25", "%")


class _Draft:
    """What the parts of one plan share."""

    def __init__(self, target: Target, owner: str, adopt: Adopt) -> None:
        self.target = target
        self.owner = owner
        self.adopt = adopt
        self.conflicts: list[Conflict] = []

    def standing(self, kind: Kind, meta: Meta, service_type: str = "") -> bool:
        """Whether an existing object may be written; a conflict is noted when not."""
        if meta.owner == self.owner:
            return True
        if meta.owner is not None:
            self.conflict(kind, f"it belongs to the bridge with owner id {meta.owner!r}")
            return False
        marked = dict(meta.marks)
        if self.adopt is Adopt.UNOWNED or marked.get(ADOPT) == "true":
            return True
        if (
            self.adopt is Adopt.CONSUL_K8S
            and marked.get(CATALOG_SYNC_LABEL) == "true"
            and service_type == "ExternalName"
        ):
            return True
        self.conflict(
            kind,
            "it is not ours; to hand it over, run with --adopt or annotate it with consul-bridge/adopt=true",
        )
        return False

    def conflict(self, kind: Kind, reason: str) -> None:
        self.conflicts.append(Conflict(self.target, kind, f"{kind} {self.target}: {reason}"))

    def change(
        self, kind: Kind, name: str, body: Body, existing: Meta | None, same: bool, group_counts: Sequence[Group] = ()
    ) -> Change:
        action = Action.CREATE if existing is None else Action.UNCHANGED if same else Action.UPDATE
        return Change(
            action=action,
            kind=kind,
            target=self.target,
            name=name,
            body=body,
            existing=existing,
            ready=sum(e.ready for g in group_counts for e in g.endpoints),
            not_ready=sum(not e.ready for g in group_counts for e in g.endpoints),
            reason="adopted" if existing is not None and existing.owner is None else "",
        )

    def removal(self, kind: Kind, meta: Meta, reason: str) -> Change:
        return Change(
            action=Action.DELETE, kind=kind, target=self.target, name=meta.name, body=None, existing=meta, reason=reason
        )


def _upsert(draft: _Draft, desired: Mirror, current: Current) -> tuple[Change, ...]:
    labels, annotations = marks(draft.owner, desired.queries)
    labels, annotations = _joined(desired.labels, labels), _joined(desired.annotations, annotations)
    service = _service_change(draft, desired, current.service, labels, annotations)
    if service is None:
        return ()
    adding: list[Change] = []
    removing: list[Change] = []
    wants_slices = desired.output is not Output.ENDPOINTS
    wants_endpoints = desired.output is not Output.ENDPOINTSLICES
    if wants_slices:
        packed, spare = packing.pack(draft.target, desired.groups, current.slices, desired.max_endpoints_per_slice)
        for piece in packed:
            own = (*labels, (SLICE_MANAGED_BY, MANAGER), (SLICE_SERVICE, draft.target.name))
            body = SliceBody(draft.target.name, piece.group, tuple(sorted(own)), annotations)
            now = piece.existing
            same = now is not None and (now.group, now.meta.labels, now.meta.annotations) == (
                body.group, body.labels, body.annotations,
            )  # fmt: skip
            adding.append(
                draft.change(
                    Kind.ENDPOINT_SLICE, piece.name, body, now.meta if now is not None else None, same, [piece.group]
                )
            )
    else:
        spare = current.slices
    removing += [
        draft.removal(Kind.ENDPOINT_SLICE, s.meta, "not needed any more")
        for s in spare
        if s.meta.owner == draft.owner and not s.meta.deleting
    ]
    endpoints = current.endpoints
    if wants_endpoints:
        own_labels = tuple(sorted((*labels, (SKIP_MIRROR, "true")))) if wants_slices else labels
        content = EndpointsBody(desired.groups, own_labels, annotations)
        if endpoints is None:
            adding.append(draft.change(Kind.ENDPOINTS, draft.target.name, content, None, False, desired.groups))
        elif draft.standing(Kind.ENDPOINTS, endpoints.meta):
            same = endpoints.canonical and (
                endpoints.groups, endpoints.meta.labels, endpoints.meta.annotations,
            ) == (content.groups, content.labels, content.annotations)  # fmt: skip
            adding.append(
                draft.change(Kind.ENDPOINTS, draft.target.name, content, endpoints.meta, same, desired.groups)
            )
    elif endpoints is not None and endpoints.meta.owner == draft.owner:
        removing.append(draft.removal(Kind.ENDPOINTS, endpoints.meta, "the output is EndpointSlices now"))
    return (*service, *adding, *removing)


def _service_change(
    draft: _Draft, desired: Mirror, existing: CurrentService | None, labels: Pairs, annotations: Pairs
) -> tuple[Change, ...] | None:
    """The Service's part: nothing for a person's Service; None when nothing at this target may be written."""
    if existing is not None and existing.has_selector:
        draft.conflict(Kind.SERVICE, "it has a selector, so Kubernetes fills its endpoints; remove the selector first")
        return None
    if desired.service_ports is None:
        if existing is None:
            return None
        if existing.type == "ExternalName":
            draft.conflict(Kind.SERVICE, "it is of type ExternalName and has no endpoints; make it ClusterIP")
            return None
        return ()
    if existing is None:
        body = ServiceBody(desired.service_ports, desired.headless, desired.families, labels, annotations)
        return (draft.change(Kind.SERVICE, draft.target.name, body, None, False),)
    if not draft.standing(Kind.SERVICE, existing.meta, existing.type):
        return None
    if existing.headless != desired.headless and existing.type != "ExternalName":
        draft.conflict(
            Kind.SERVICE,
            f"it is {'headless' if existing.headless else 'not headless'}, and Kubernetes cannot change that in place; "
            "delete the Service to have it made anew",
        )
    headless = existing.headless if existing.type != "ExternalName" else desired.headless
    body = ServiceBody(desired.service_ports, headless, desired.families, labels, annotations)
    same = (
        existing.type != "ExternalName"
        and existing.ports == body.ports
        and _families_fit(existing, body)
        and (existing.meta.labels, existing.meta.annotations) == (labels, annotations)
    )
    return (draft.change(Kind.SERVICE, draft.target.name, body, existing.meta, same),)


def _families_fit(existing: CurrentService, body: ServiceBody) -> bool:
    """A Service that asks for both families has what the cluster can give, whatever that is."""
    if len(body.families) > 1:
        return existing.dual_stack
    return not existing.families or body.families[0] in existing.families


def _removal(draft: _Draft, current: Current) -> tuple[Change, ...]:
    reason = "its service is gone from Consul"
    changes = []
    if current.endpoints is not None and current.endpoints.meta.owner == draft.owner:
        changes.append(draft.removal(Kind.ENDPOINTS, current.endpoints.meta, reason))
    changes += [
        draft.removal(Kind.ENDPOINT_SLICE, s.meta, reason) for s in current.slices if s.meta.owner == draft.owner
    ]
    if current.service is not None and current.service.meta.owner == draft.owner:
        changes.append(draft.removal(Kind.SERVICE, current.service.meta, reason))
    return tuple(c for c in changes if c.existing is None or not c.existing.deleting)


def _under(policy: Policy, change: Change) -> Change:
    """What a policy forbids becomes "unchanged", with the policy as the reason."""
    forbidden = {
        Policy.SYNC: frozenset[Action](),
        Policy.UPSERT_ONLY: frozenset({Action.DELETE}),
        Policy.CREATE_ONLY: frozenset({Action.DELETE, Action.UPDATE}),
    }[policy]
    if change.action not in forbidden:
        return change
    return replace(change, action=Action.UNCHANGED, reason=f"policy {policy}: no {change.action}")


def _joined(ours: Pairs, ownership: Pairs) -> Pairs:
    """The rule's pairs and the marks of ownership, which nobody can forge."""
    return tuple(sorted({**dict(ours), **dict(ownership)}.items()))


def _pairs(mirror: Mirror | None) -> tuple[set[tuple[str, int]], set[tuple[str, int]]]:
    """(address, port) pairs that a mirror lists, and those of them that are ready."""
    if mirror is None:
        return set(), set()
    listed = {(e.address, p.number) for g in mirror.groups for e in g.endpoints for p in g.ports}
    ready = {(e.address, p.number) for g in mirror.groups for e in g.endpoints if e.ready for p in g.ports}
    return listed, ready


def _groups_now(current: Current) -> tuple[Group, ...]:
    """What our objects hold, each endpoint once, ready in either being ready."""
    members: dict[tuple[Family, tuple[Port, ...]], dict[str, Endpoint]] = {}
    groups = [s.group for s in current.slices]
    if current.endpoints is not None and current.endpoints.meta.owner is not None:
        groups += current.endpoints.groups
    for group in groups:
        known = members.setdefault((group.family, group.ports), {})
        for endpoint in group.endpoints:
            if endpoint.address not in known or endpoint.ready:
                known[endpoint.address] = endpoint
    return canonical.group_endpoints(members)


def _is_ours(current: Current, owner: str) -> bool:
    objects = (current.endpoints, *current.slices)
    return any(o is not None and o.meta.owner == owner for o in objects)
