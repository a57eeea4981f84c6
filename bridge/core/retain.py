"""Puts what must stay back into what is desired, before the two are compared (`plan`).

`reconcile` asks for it where too little is known to take endpoints away, and where the guard holds that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from bridge.core import hostnames, normalize, routes
from bridge.core import ports as portage
from bridge.core.model import NO_PORTS, Current, CurrentService, Endpoint, Family, Group, Mirror, Port
from bridge.core.ownership import RULE_ANNOTATIONS, RULE_LABELS
from bridge.core.pairs import pair_of, pairs_at, pairs_in, ready_endpoints, ready_pairs


def retain(
    desired: Mirror,
    current: Current,
    *,
    removed: bool,
    flips: bool,
    deselected: bool = False,
    owner: str | None = None,
) -> Mirror:
    """`desired` with what would be taken away put back: `removed` endpoints listed again, `flips` kept ready.

    `deselected`: also those that Consul lists and the rule no longer selects.

    Additions, address changes and everything else of `desired` stay as they are. An endpoint is put back with those of
    its ports only that are really lost, so that no address and port are there twice. Without `owner`, any bridge's
    objects at the target count.
    """
    before = ready_endpoints(current.groups(owner))
    if not before:
        return replace(desired, route=routes.kept(desired.route, current.route, owner))
    members = {(g.family, g.ports): {e.address: e for e in g.endpoints} for g in desired.groups}
    ready_before = {pair for _, address, ports in before for pair in pairs_at(address, ports)}
    ready_before -= ready_pairs(desired.groups)
    wanted = pairs_in(desired.groups)
    omitted = pairs_in(desired.omitted_unhealthy) - wanted
    dropped = pairs_in(desired.deselected) - wanted - omitted
    if flips:
        for (_, ports), endpoints in members.items():
            for address, endpoint in endpoints.items():
                if not endpoint.ready and any(pair in ready_before for pair in pairs_at(address, ports)):
                    endpoints[address] = replace(endpoint, ready=True, serving=True, terminating=False)
    names: Mapping[str, str] = {}
    if current.service is not None and desired.service_ports is not None:  # what keeps an old name is not reached
        names = portage.new_names(current.service.ports, desired.service_ports)
    holders = {(g.family, e.hostname): e.address for g in desired.groups for e in g.endpoints if e.hostname}
    for (family, address, ports), endpoint in before.items():
        back = []
        for port in ports or NO_PORTS:
            pair = pair_of(address, port)
            if pair not in wanted and (flips if pair in omitted else deselected if pair in dropped else removed):
                wanted.add(pair)
                back.append(replace(port, name=names.get(port.name, port.name)))
        if back:
            kept = hostnames.without_taken(endpoint, family, holders)
            members.setdefault((family, tuple(sorted(back)) if ports else ()), {}).setdefault(address, kept)
    groups = normalize.group_endpoints(members)
    route = routes.kept(desired.route, current.route, owner)
    return replace(desired, groups=groups, service_ports=_ports_with(groups, desired, current), route=route)


def with_existing_endpoints(desired: Mirror, current: Current, service: CurrentService, owner: str) -> Mirror:
    """`desired` with the endpoints, ports and what else comes from instances as they exist: none is known now.

    `service` is the target's, of this owner.
    """
    slices = [s.group for s in current.slices if s.meta.owner == owner]
    members: dict[tuple[Family, tuple[Port, ...]], dict[str, Endpoint]] = {}
    for group in slices or current.groups(owner):
        members.setdefault((group.family, group.ports), {}).update({e.address: e for e in group.endpoints})
    said = dict(service.meta.ownership)
    labels, annotations = (said.get(name, "").split(",") for name in (RULE_LABELS, RULE_ANNOTATIONS))
    return replace(
        desired,
        groups=normalize.group_endpoints(members),
        service_ports=service.ports,
        headless=service.headless,
        families=service.families,
        labels=tuple(pair for pair in service.meta.labels if pair[0] in labels),
        annotations=tuple(pair for pair in service.meta.annotations if pair[0] in annotations),
    )


def _ports_with(groups: Iterable[Group], desired: Mirror, current: Current) -> tuple[Port, ...] | None:
    """The Service's ports with those that it must keep for endpoints that are kept: without them no client reaches
    them.

    A port without a name cannot stay beside others, nor can one whose number is another's now (Kubernetes refuses).
    """
    if current.service is None or desired.service_ports is None:
        return desired.service_ports
    missing = {p.name for g in groups for p in g.ports} - {p.name for p in desired.service_ports} - {""}
    numbers = {(p.number, p.protocol) for p in desired.service_ports}
    kept = [p for p in current.service.ports if p.name in missing and (p.number, p.protocol) not in numbers]
    if not kept or any(not p.name for p in desired.service_ports):
        return desired.service_ports
    return tuple(sorted((*desired.service_ports, *kept)))
