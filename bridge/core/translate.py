"""What the instances of a Consul service are in Kubernetes' words: groups of ready and unready endpoints.

One function from (sources, rules, what exists) to a Mirror; every instance that does not become an endpoint comes back
with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bridge.core import canonical
from bridge.core.model import (
    Current,
    Disposition,
    Endpoint,
    Family,
    Group,
    Instance,
    InstanceRules,
    Known,
    Mirror,
    Port,
    Query,
    Rule,
    Skipped,
    Status,
    Target,
)
from bridge.core.select import dns_label

MIRRORING_LIMIT = 1000
"""Addresses per subset that the control plane copies into EndpointSlices (Kubernetes' default)."""

_SEVERITY = (Status.PASSING, Status.WARNING, Status.UNKNOWN, Status.CRITICAL, Status.MAINTENANCE)
_PROTOCOLS = ("TCP", "UDP", "SCTP")


@dataclass(frozen=True, slots=True)
class Translation:
    """A mirror and what did not get into it. `mirror` is None when there is nothing that could be mirrored at all."""

    mirror: Mirror | None
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Placed:
    """One endpoint of one instance, before folding."""

    family: Family
    ports: tuple[Port, ...]
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one instance: its endpoints (several when a host name has several addresses), or the reason."""

    instance: Instance
    placed: tuple[Placed, ...] = ()
    reason: str = ""
    selected: bool = True
    proxy: bool = False


def worst(statuses: Iterable[Status]) -> Status:
    """The worst of several checks: maintenance, critical, unknown, warning, passing; none at all is passing."""
    return max(statuses, key=_SEVERITY.index, default=Status.PASSING)


def selects(rule: Rule, instance: Instance) -> bool:
    """Whether the rule's tags and meta select this instance."""
    return all(tag in instance.tags for tag in rule.tags) and all(pair in instance.meta for pair in rule.meta)


def host_names(instances: Iterable[Instance], rule: Rule) -> set[str]:
    """Names among the chosen addresses that would have to be resolved."""
    chosen = {choose_address(i, rule.instances)[0] for i in instances if selects(rule, i)}
    return {a for a in chosen if a and isinstance(p := canonical.parse(a), canonical.Refused) and p.is_name}


def translate(
    target: Target,
    sources: Sequence[tuple[Rule, Query, Known]],
    current: Current | None = None,
    resolved: Mapping[str, tuple[str, ...]] | None = None,
) -> Translation:
    """The mirror of one or more Consul services at `target`; the first source's rule says what kind of Service it is.

    `resolved` has the addresses of host names (`host_names`). `current` keeps what must not change while the Service
    lives: the port that was chosen, the IP family it began with.
    """
    rule = sources[0][0]
    skipped: list[Skipped] = []
    fates: list[tuple[Rule, Query, Fate]] = []
    for source_rule, query, known in sources:
        for instance in known.instances:
            fate = fate_of(instance, source_rule, current, resolved or {})
            if fate.selected:
                fates.append((source_rule, query, fate))
            if fate.reason and fate.selected:
                skipped.append(Skipped(query.service, f"{instance.node}/{instance.id}", fate.reason))
    if fates and all(fate.proxy for _, _, fate in fates):
        return Translation(None, tuple(sorted(skipped)))
    groups = _groups(fates)
    if rule.instances.keep_last_ready:
        groups = _keep_last_ready(groups, current)
    service_ports = None if rule.to.annotated else _service_ports(sources, groups, current)
    if service_ports == () and not rule.to.headless:
        reason = "no instance has a port yet and the rule gives none (`port`): a Service needs one"
        return Translation(None, tuple(sorted({*skipped, Skipped(sources[0][1].service, "", reason)})))
    mirror = Mirror(
        target=target,
        queries=tuple(query for _, query, _ in sources),
        output=rule.to.output,
        groups=groups,
        service_ports=service_ports,
        headless=rule.to.headless,
        families=_families(groups, current),
        labels=rule.to.labels,
        annotations=rule.to.annotations,
        max_endpoints_per_slice=rule.to.max_endpoints_per_slice,
    )
    return Translation(mirror, tuple(sorted(set(skipped))), tuple(_warnings(mirror)))


def fate_of(
    instance: Instance,
    rule: Rule,
    current: Current | None,
    resolved: Mapping[str, tuple[str, ...]],
) -> Fate:
    """What becomes of one instance, and why."""
    if instance.kind:
        return Fate(
            instance, reason=f"a Connect proxy or gateway (kind {canonical.shorten(instance.kind)})", proxy=True
        )
    if ("external-source", "kubernetes") in instance.meta:
        return Fate(instance, reason="it came from a Kubernetes cluster (external-source)", proxy=True)
    if not selects(rule, instance):
        return Fate(instance, selected=False, reason="the rule's tags or meta do not select it")
    disposition = disposition_of(instance.status, rule.instances)
    if disposition is Disposition.OMIT:
        return Fate(instance, reason=f"omitted: {instance.status} ({canonical.shorten(instance.check) or 'no check'})")
    address, own_port = choose_address(instance, rule.instances)
    if not address:
        return Fate(instance, reason=f"no address of the kind {rule.instances.address!r}")
    ports = endpoint_ports(instance, rule, current, own_port)
    if isinstance(ports, str):
        return Fate(instance, reason=ports)
    found = _addresses(address, rule.instances, resolved)
    if isinstance(found, str):
        return Fate(instance, reason=found)
    ready = disposition is Disposition.READY
    maintenance = instance.status is Status.MAINTENANCE
    zone = dns_label(dict(instance.node_meta).get(rule.instances.zone_meta, "")) or ""
    return Fate(
        instance,
        tuple(
            Placed(a.family, ports, Endpoint(a.text, ready, ready or maintenance, maintenance and not ready, zone))
            for a in found
        ),
    )


def disposition_of(status: Status, rules: InstanceRules) -> Disposition:
    """What a rule does with instances of a health. Unknown counts as critical."""
    match status:
        case Status.PASSING:
            return Disposition.READY
        case Status.WARNING:
            return rules.warning
        case Status.MAINTENANCE:
            return rules.maintenance
        case _:
            return rules.critical


def choose_address(instance: Instance, rules: InstanceRules) -> tuple[str, int]:
    """The address that the rule asks for, as registered ("" when there is none), and its own port (0: the instance's).

    `auto`: the service's, else the node's. Any other word but `service` and `node` names a tagged address, of the
    service first (with its port), then of the node.
    """
    match rules.address:
        case "auto":
            return instance.address or instance.node_address, 0
        case "service":
            return instance.address, 0
        case "node":
            return instance.node_address, 0
        case name:
            for tagged in (*instance.tagged_addresses, *instance.node_tagged_addresses):
                if tagged.name == name:
                    return tagged.address, tagged.port
            return "", 0


def endpoint_ports(instance: Instance, rule: Rule, current: Current | None, own_port: int) -> tuple[Port, ...] | str:
    """The ports of an instance's endpoints, or the reason why it has none."""
    if rule.to.annotated:
        return _ports_for_persons_service(instance, current, own_port)
    protocol = _protocol(instance, rule)
    if instance.ports and not rule.to.port_name:
        ports = tuple(
            Port(dns_label(p.name) or f"port-{p.number}", p.number, protocol, rule.to.app_protocol)
            for p in instance.ports
            if _legal(p.number)
        )
        return tuple(sorted(set(ports))) or "none of its ports is between 1 and 65535"
    number = own_port or instance.port or rule.to.port
    if not _legal(number):
        return f"port {number} is not between 1 and 65535" if number else "it has no port, and the rule gives none"
    return (Port(rule.to.port_name, number, protocol, rule.to.app_protocol),)


def _ports_for_persons_service(instance: Instance, current: Current | None, own_port: int) -> tuple[Port, ...] | str:
    """Ports of a person's Service, by name, else by order; a fixed targetPort wins over the instance's port."""
    service = current.service if current is not None else None
    if service is None or not service.ports:
        return "the Service has no ports"
    by_name = {p.name: p.number for p in instance.ports}
    in_order = [p.number for p in instance.ports] or [own_port or instance.port]
    ports = []
    for position, port in enumerate(service.ports):
        fixed = service.target_ports[position] if position < len(service.target_ports) else 0
        number = by_name.get(port.name) or (in_order[position] if position < len(in_order) else 0)
        if fixed and fixed != port.number:
            number = fixed
        if not number and position == 0:
            number = port.number
        if _legal(number):
            ports.append(Port(port.name, number, port.protocol, port.app_protocol))
    return tuple(sorted(ports)) or "none of the Service's ports can be matched with a port of the instance"


def _protocol(instance: Instance, rule: Rule) -> str:
    meta = dict(instance.meta).get("protocol", "").upper()
    return meta if rule.to.protocol == "TCP" and meta in _PROTOCOLS else rule.to.protocol


def _legal(port: int) -> bool:
    return 0 < port < 65536


def _addresses(
    address: str, rules: InstanceRules, resolved: Mapping[str, tuple[str, ...]]
) -> list[canonical.Address] | str:
    parsed = canonical.parse(address)
    if isinstance(parsed, canonical.Refused) and parsed.is_name:
        if address not in resolved:
            return f"host name {canonical.shorten(address)} could not be resolved"
        candidates = [canonical.parse(a) for a in resolved[address]]
    else:
        candidates = [parsed]
    found: list[canonical.Address] = []
    reason = f"host name {canonical.shorten(address)} has no address"
    for candidate in candidates:
        if isinstance(candidate, canonical.Refused):
            reason = candidate.reason
        elif (why := canonical.excluded(candidate.text, rules.allow_cidrs, rules.deny_cidrs)) is not None:
            reason = why
        else:
            found.append(candidate)
    return found or reason


def _groups(fates: Iterable[tuple[Rule, Query, Fate]]) -> tuple[Group, ...]:
    members: dict[tuple[Family, tuple[Port, ...]], dict[str, Endpoint]] = {}
    for _, _, fate in fates:
        for placed in fate.placed:
            endpoints = members.setdefault((placed.family, placed.ports), {})
            known = endpoints.get(placed.endpoint.address)
            endpoints[placed.endpoint.address] = (
                placed.endpoint if known is None else canonical.fold(known, placed.endpoint)
            )
    return canonical.group_endpoints(members)


def _keep_last_ready(groups: tuple[Group, ...], current: Current | None) -> tuple[Group, ...]:
    """When nothing would be ready any more, what is ready now and still listed stays ready."""
    if any(e.ready for g in groups for e in g.endpoints) or current is None:
        return groups
    ready = ready_now(current)
    return tuple(
        Group(
            g.family,
            g.ports,
            tuple(
                Endpoint(e.address, True, True, False, e.zone, e.node_name)
                if any((e.address, p.number) in ready for p in g.ports)
                else e
                for e in g.endpoints
            ),
        )
        for g in groups
    )


def ready_now(current: Current) -> set[tuple[str, int]]:
    """(address, port) pairs that our own objects at a target list as ready."""
    groups: list[Group] = []
    if current.endpoints is not None and current.endpoints.meta.owner is not None:
        groups += current.endpoints.groups
    groups += [s.group for s in current.slices]
    return {(e.address, p.number) for g in groups for e in g.endpoints if e.ready for p in g.ports}


def _service_ports(
    sources: Sequence[tuple[Rule, Query, Known]], groups: tuple[Group, ...], current: Current | None
) -> tuple[Port, ...]:
    """The Service's ports: what the rules give, else what the Service has already, else the commonest of the instances.

    A port that was chosen from the instances stays while the Service lives: clients have it in their settings.
    """
    existing = current.service if current is not None else None
    kept = {p.name: p for p in existing.ports} if existing is not None and existing.meta.owner is not None else {}
    votes: dict[str, Counter[Port]] = {}
    for group in groups:
        for port in group.ports:
            votes.setdefault(port.name, Counter())[port] += len(group.endpoints)
    chosen: dict[str, Port] = {}
    for rule, _, _ in sources:
        if rule.to.port:
            name = rule.to.port_name
            chosen[name] = Port(name, rule.to.port, _voted_protocol(votes.get(name), rule), rule.to.app_protocol)
    for name, counter in sorted(votes.items()):
        if name not in chosen:
            best = min(counter.items(), key=lambda item: (-item[1], item[0].number, item[0]))[0]
            number = kept[name].number if name in kept else best.number
            chosen[name] = Port(name, number, best.protocol, best.app_protocol)
    for name, port in kept.items():
        if not chosen or (not groups and name not in chosen):
            chosen[name] = port
    return _distinct(sorted(chosen.values()))


def _voted_protocol(votes: Counter[Port] | None, rule: Rule) -> str:
    return min(votes).protocol if votes else rule.to.protocol


def _distinct(ports: Iterable[Port]) -> tuple[Port, ...]:
    """Kubernetes keys Service ports by (port, protocol): of two named ports on one number the first stays."""
    found: dict[tuple[int, str], Port] = {}
    for port in ports:
        found.setdefault((port.number, port.protocol), port)
    return tuple(sorted(found.values()))


def _families(groups: tuple[Group, ...], current: Current | None) -> tuple[Family, ...]:
    """Families of the Service: those of the endpoints; the one it began with stays its first."""
    found = sorted({g.family for g in groups})
    existing = current.service.families if current is not None and current.service is not None else ()
    if not found:
        return existing or (Family.IPV4,)
    if existing and existing[0] in found:
        found.sort(key=lambda family: family != existing[0])
    return tuple(found)


def _warnings(mirror: Mirror) -> Iterable[str]:
    for group in mirror.groups:
        if mirror.output.value == "endpoints" and len(group.endpoints) > MIRRORING_LIMIT:
            yield (
                f"{len(group.endpoints)} addresses in one subset: the control plane mirrors only {MIRRORING_LIMIT} "
                "into EndpointSlices; use `output: endpointslices` (or both) for this service"
            )
    if mirror.service_ports and len({p.name for g in mirror.groups for p in g.ports}) > 1:
        names = {p.name for p in mirror.service_ports}
        for lost in sorted({p.name for g in mirror.groups for p in g.ports} - names):
            yield f"port {lost!r} has the number of another port of the Service and cannot be reached"
