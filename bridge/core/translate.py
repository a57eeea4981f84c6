"""What the instances of a Consul service are in Kubernetes' words: groups of ready and unready endpoints.

One function from (sources, rules, what exists) to a Mirror; every instance that does not become an endpoint comes back
with its reason. Nothing that stands in Consul can make it raise.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from bridge.core import hostnames, normalize, routes
from bridge.core import ports as portage
from bridge.core.annotated import FILTER, TAGS
from bridge.core.model import (
    NO_NODES,
    NO_PORTS,
    USUAL_TRAFFIC,
    ClusterNodes,
    Current,
    CurrentService,
    Endpoint,
    Family,
    Group,
    Instance,
    InstanceRules,
    Known,
    Mirror,
    Output,
    Pairs,
    Place,
    Port,
    Query,
    Route,
    Rule,
    Skipped,
    Status,
    Target,
    Treatment,
)
from bridge.core.normalize import truncate
from bridge.core.ownership import derived, is_label_value, joined
from bridge.core.reasons import Code, Reason

BY_ZONE = ("PreferClose", "PreferSameZone", "PreferSameNode")
"""Values of spec.trafficDistribution for which Kubernetes' own slices have hints for zones as well."""

_ORDINARY_KINDS = ("", "typical")
_KUBERNETES_META = (("external-source", "kubernetes"), ("managed-by", "consul-k8s-endpoints-controller"))
"""What HashiCorp's catalog sync and its injector write on what they register for a cluster."""


@dataclass(frozen=True, slots=True)
class Translation:
    """A mirror and what did not get into it. `mirror` is None when there is nothing that could be mirrored at all."""

    mirror: Mirror | None
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[Reason, ...] = ()


class Disposition(StrEnum):
    """Where an instance ended."""

    READY = "ready"
    NOT_READY = "not ready"
    OMITTED = "omitted"
    STANDBY = "standby"
    SKIPPED = "skipped"
    NOT_SELECTED = "not selected"
    EXCLUDED = "never mirrored"


@dataclass(slots=True)
class InstanceDecision:
    """What happens to one instance: where it ended and why, its ports, its endpoints (of a host name several)."""

    instance: Instance
    disposition: Disposition
    reason: Reason | None = None
    ports: tuple[Port, ...] = ()
    endpoints: tuple[tuple[Family, Endpoint], ...] = ()

    @property
    def addresses(self) -> list[tuple[str, Port]]:
        """Each address that it is reached at, with each of its ports."""
        return [(endpoint.address, port) for _, endpoint in self.endpoints for port in self.ports or NO_PORTS]


Resolved = Mapping[str, tuple[str, ...]]
"""Host name -> addresses."""


def selects(rule: Rule, instance: Instance) -> bool:
    return (not rule.tags or all(tag in instance.tags for tag in rule.tags)) and (
        not rule.meta or all(pair in instance.meta for pair in rule.meta)
    )


def host_names(instances: Iterable[Instance], rule: Rule) -> set[str]:
    """Names among the chosen addresses that would have to be resolved."""
    names: set[str] = set()
    for instance in instances if rule.instances.bounds.host_names else ():
        address, _ = choose_address(instance, rule.instances)
        parsed = normalize.parse(address)
        if isinstance(parsed, normalize.Refused) and parsed.is_name and selects(rule, instance):
            names.add(address)
    return names


# --------------------------------------------------------------------------- all instances together


def translate(
    target: Target,
    sources: Sequence[tuple[Rule, Query, Known]],
    current: Current | None = None,
    resolved: Resolved | None = None,
    cluster_nodes: ClusterNodes = NO_NODES,
    waiting: Mapping[Query, Collection[Place]] | None = None,
) -> Translation:
    """The mirror of one or more Consul services at `target`; the first source's rule says what kind of Service it is.

    `resolved` has the addresses of host names (`host_names`), `cluster_nodes` the nodes of the Kubernetes cluster.
    `waiting` are instances that have not been healthy for long enough (`settle`), by their service; where it has no
    entry, no history is known.
    `current` keeps what must not change while the Service lives: its ports' numbers and names, its IP families.

    The mirror is None when nothing is there to be mirrored and nothing of ours exists there either: every instance is
    a Connect proxy or comes from Kubernetes, the rule selects none of them, or no port is known yet. Once our
    Service exists, it stays while no instance is selected, with empty endpoints.
    """
    rule = sources[0][0]
    service = current.service if current is not None else None
    decisions: list[tuple[Rule, Query, InstanceDecision]] = []
    for source_rule, query, known in sources:
        since = (waiting or {}).get(query)
        mine = decide(known.instances, source_rule, current, resolved, cluster_nodes, since)
        decisions += [(source_rule, query, decision) for decision in mine]
    skipped = {
        Skipped(query.service, instance_name(decision.instance), decision.reason)
        for _, query, decision in decisions
        if decision.reason is not None
        and decision.disposition in (Disposition.OMITTED, Disposition.SKIPPED, Disposition.EXCLUDED)
    }
    skipped |= {Skipped(query.service, *pair) for _, query, known in sources for pair in known.invalid}
    unnamed = name_endpoints([(r, decision) for r, _, decision in decisions], current)
    unselecting = [(r, query, known) for r, query, known in sources if _selects_none(r, known)]
    main = "" if rule.to.annotated else _main_name(decisions, service)
    names = {} if rule.to.annotated else _names(decisions, main, service, rule)
    groups, omitted = _groups((decision for _, _, decision in decisions), main, names)
    deselected: tuple[Group, ...] = ()
    if dropped := [f for r, _, known in sources for f in _deselected(known, r, current, resolved, cluster_nodes)]:
        deselected = tuple(group for found in _groups(dropped, main, names) for group in found)
    service_ports: tuple[Port, ...] | None = None
    warnings: tuple[Reason, ...] = ()
    if not rule.to.annotated:
        rules = [source_rule for source_rule, _, _ in sources]
        service_ports, warnings = portage.of_service(rules, main, (*groups, *omitted), service, names)
        ours = service is not None and service.meta.owner is not None
        if decisions and not ours and all(decision.disposition is Disposition.EXCLUDED for _, _, decision in decisions):
            return Translation(None, tuple(sorted(skipped)))
        if unselecting and not ours and len(unselecting) == len(sources):
            skipped |= {
                Skipped(source[1].service, "", _none_selected(Code.NONE_SELECTED, *source)) for source in unselecting
            }
            hints = {text for source_rule, _, known in unselecting for text in _tag_hints(source_rule, known)}
            return Translation(None, tuple(sorted(skipped)), tuple(sorted(hints)))
        if not service_ports and not rule.to.headless and not (ours and service is not None and service.headless):
            without = Skipped(sources[0][1].service, "", _no_service_port(decisions, sources))
            kinds = {text for source_rule, _, known in sources for text in _address_hints(source_rule, known)}
            return Translation(None, tuple(sorted({*skipped, without})), tuple(sorted(kinds)))
    labels, annotations, contradictions = _pairs(sources, decisions)
    route: Route | Reason | None = None
    remarks: tuple[Reason, ...] = ()
    if rule.to.route is not None:
        selected = _selected(decisions)
        route, remarks = routes.route_of(rule.to.route, target, sources[0][1], selected, service_ports or ())
    mirror = Mirror(
        target=target,
        queries=tuple(sorted({query for _, query, _ in sources})),
        output=rule.to.output,
        groups=groups,
        service_ports=service_ports,
        headless=rule.to.headless,
        families=_families(groups, service),
        labels=labels,
        annotations=annotations,
        max_endpoints_per_slice=rule.to.max_endpoints_per_slice,
        omitted_unhealthy=omitted,
        deselected=deselected,
        type=rule.to.type,
        route=route,
    )
    warnings = (
        *(text for source_rule, _, _ in sources for text in source_rule.warnings),
        *(_none_selected(Code.NONE_LEFT, *source) for source in unselecting),
        *(text for source_rule, _, known in sources for text in _tag_hints(source_rule, known)),
        *(text for source_rule, _, known in sources for text in _address_hints(source_rule, known)),
        *warnings,
        *contradictions,
        *remarks,
        *_warnings(mirror, service),
        *_zone_warnings(decisions),
        *_kept_warnings(decisions),
        *unnamed,
        *_node_warnings(decisions, cluster_nodes),
        *(
            text
            for source_rule, _, decision in decisions
            if decision.endpoints and (decision.instance.ports or source_rule.to.annotated)
            for text in _port_warnings(decision, source_rule, service)
        ),
    )
    return Translation(mirror, tuple(sorted(skipped)), tuple(sorted(set(warnings))))


def _no_service_port(
    decisions: Sequence[tuple[Rule, Query, InstanceDecision]], sources: Sequence[tuple[Rule, Query, Known]]
) -> Reason:
    """Why there is no port for the Service: no instance is there, is selected, can be reached, or has one."""
    meant = [
        decision.reason
        for _, _, decision in decisions
        if decision.disposition not in (Disposition.NOT_SELECTED, Disposition.EXCLUDED)
    ]
    if any(reason is None or reason.code in _WITHOUT_PORT for reason in meant):
        return Reason(Code.NO_SERVICE_PORT)
    if meant or any(known.invalid for _, _, known in sources):
        return Reason(Code.NO_USABLE_ADDRESSES)
    if (narrowing := next((source for source in sources if source[0].narrows), None)) is not None:
        return _none_selected(Code.NONE_SELECTED, *narrowing)
    peer = next((query.peer for _, query, _ in sources if query.peer), "")
    return Reason(Code.PEER_EMPTY, peer=truncate(peer)) if peer else Reason(Code.NO_INSTANCES)


_WITHOUT_PORT = (Code.NO_PORT, Code.PORT_INVALID, Code.PORTS_INVALID, Code.OMITTED)
"""Reasons of instances that leave open which port a Service for them would have."""


def _tag_hints(rule: Rule, known: Known) -> Iterator[Reason]:
    """Where a rule's tags select no instance: what was most likely meant."""
    if not rule.tags or any(selects(rule, instance) for instance in known.instances):
        return
    there = sorted({tag for instance in known.instances for tag in instance.tags})
    folded = {tag.lower(): tag for tag in reversed(there)}
    for tag in rule.tags:
        if tag not in there and tag.lower() in folded:
            yield Reason(Code.TAG_CASE, wanted=truncate(tag), found=truncate(folded[tag.lower()]))
    if rule.to.annotated:
        for tag in there:
            if "," in tag and any(part.strip() in rule.tags for part in tag.split(",")):
                yield Reason(Code.TAG_COMMA, found=truncate(tag), annotation=TAGS, filter=FILTER)


def _address_hints(rule: Rule, known: Known) -> Iterator[Reason]:
    """Where no instance has the address that a rule asks for: which there are."""
    meant = [instance for instance in known.instances if selects(rule, instance)]
    if not meant or any(choose_address(instance, rule.instances)[0] for instance in meant):
        return
    found = {tagged.name for i in meant for tagged in (*i.tagged_addresses, *i.node_tagged_addresses)}
    found |= {"service" for i in meant if i.address} | {"node" for i in meant if i.node_address}
    there = ", ".join(map(truncate, sorted(found))) or "none"
    yield Reason(Code.ADDRESS_KIND_ABSENT, kind=truncate(rule.instances.address), found=truncate(there))


def instance_name(instance: Instance) -> str:
    return f"{truncate(instance.node)}/{truncate(instance.id)}"


def decide(
    instances: Iterable[Instance],
    rule: Rule,
    current: Current | None = None,
    resolved: Resolved | None = None,
    cluster_nodes: ClusterNodes = NO_NODES,
    waiting: Collection[Place] | None = None,
) -> list[InstanceDecision]:
    """What happens to each instance of one service under its rule, and why. `waiting` None: no history is known."""
    service = current.service if current is not None else None
    decisions = [_decide_one(instance, rule, service, resolved or {}, cluster_nodes) for instance in instances]
    if rule.instances.settle_seconds or rule.instances.min_ready.value:
        _apply_settle_and_min_ready(decisions, rule.instances, current, waiting)
    return decisions


def _decide_one(
    instance: Instance,
    rule: Rule,
    service: CurrentService | None,
    resolved: Resolved,
    cluster_nodes: ClusterNodes,
) -> InstanceDecision:
    if instance.kind not in _ORDINARY_KINDS:
        return InstanceDecision(instance, Disposition.EXCLUDED, Reason(Code.PROXY, kind=truncate(instance.kind)))
    for pair in _KUBERNETES_META if instance.meta else ():
        if pair in instance.meta:
            return InstanceDecision(instance, Disposition.EXCLUDED, Reason(Code.KUBERNETES, key=pair[0], value=pair[1]))
    if not selects(rule, instance):
        return InstanceDecision(instance, Disposition.NOT_SELECTED, Reason(Code.NOT_SELECTED))
    disposition = treatment_of(instance.status, rule.instances)
    ended, reason = _BY_DISPOSITION[disposition], None
    if ended is Disposition.OMITTED:
        reason = Reason(Code.OMITTED, status=instance.status, check=truncate(instance.check))
    address, own_port = choose_address(instance, rule.instances)
    if not address:
        without = Reason(Code.NO_ADDRESS, kind=truncate(rule.instances.address))
        return InstanceDecision(instance, Disposition.SKIPPED, reason or without)
    ports = portage.of_instance(instance, rule, service, own_port)
    if isinstance(ports, Reason):
        return InstanceDecision(instance, Disposition.SKIPPED, reason or ports)
    found = _addresses(address, rule.instances, resolved, instance.node, cluster_nodes)
    if isinstance(found, Reason):
        return InstanceDecision(instance, Disposition.SKIPPED, reason or found, ports)
    ready, serving, terminating = _conditions(instance.status, disposition)
    traffic = service.traffic if service is not None else USUAL_TRAFFIC
    if traffic.publish_not_ready and ended is Disposition.NOT_READY:
        ready, ended = True, Disposition.READY
        reason = Reason(Code.PUBLISHED, status=instance.status, check=truncate(instance.check))
    zone = zone_of(instance, rule.instances)
    for_zone = zone if traffic.distribution in BY_ZONE else ""
    node_name = instance.node if instance.node in cluster_nodes.names else ""
    return InstanceDecision(
        instance,
        ended,
        reason,
        ports,
        tuple(
            [
                (a.family, normalize.endpoint_of(a.text, ready, serving, terminating, zone, node_name, for_zone, ""))
                for a in found
            ]
        ),
    )


def name_endpoints(decisions: Sequence[tuple[Rule, InstanceDecision]], current: Current | None) -> list[Reason]:
    """Give the endpoints of all instances of a headless Service their hostnames; returns the warnings about them.

    What is left out for its health has its name for when it is back, if no instance before it in order claims it.
    """
    asking = [(rule, decision) for rule, decision in decisions if rule.to.hostname_from and decision.endpoints]
    if not asking:
        return []
    service = current.service if current is not None else None
    headless = service.headless if service is not None and portage.lives(service) else decisions[0][0].to.headless
    if not headless:
        return [Reason(Code.HOSTNAMES_UNUSED)]
    claims = [
        hostnames.Claim(
            instance_name(decision.instance),
            rule.to.hostname_from,
            hostnames.value_of(decision.instance, rule.to.hostname_from),
            decision.ports,
            tuple((family, endpoint.address) for family, endpoint in decision.endpoints),
            is_endpoint=decision.disposition is not Disposition.OMITTED,
        )
        for rule, decision in asking
    ]
    missing: list[tuple[str, Reason]] = []
    for claim, (_, decision), found in zip(claims, asking, hostnames.assign(claims, current), strict=True):
        if isinstance(found, Reason):
            decision.reason = decision.reason or found
            missing.append((claim.name, found))
        else:
            decision.endpoints = tuple((family, replace(e, hostname=found)) for family, e in decision.endpoints)
    if not missing:
        return []
    first, why = min(missing)
    return [Reason(Code.HOSTNAMES_MISSING, count=len(missing), all=len(claims), first=first, why=why)]


def _deselected(
    known: Known, rule: Rule, current: Current | None, resolved: Resolved | None, cluster_nodes: ClusterNodes
) -> list[InstanceDecision]:
    """What would happen to instances that the rule selected once, and that their tags or meta took out of it.

    Their own change shows that it is wanted, and that Consul has not lost them; a rule that was changed does not.
    """
    if not known.former or current is None:
        return []
    selected = {(i.node, i.id) for i in known.former if selects(rule, i)}
    there = [i for i in known.instances if (i.node, i.id) in selected and not selects(rule, i)]
    if not there:
        return []
    return decide(there, replace(rule, tags=(), meta=()), current, resolved, cluster_nodes)


def _selects_none(rule: Rule, known: Known) -> bool:
    """Whether a rule that selects by tags, meta or filter selects none of what Consul shows (and hides nothing)."""
    unseen = known.acl_filtered or known.invalid
    return rule.narrows and not unseen and not any(selects(rule, instance) for instance in known.instances)


def _none_selected(code: Code, rule: Rule, query: Query, known: Known) -> Reason:
    count = len(known.instances)
    none = f"none of the {count} instances" if count > 1 else "no instance"
    return Reason(code, none=none, service=truncate(query.service), asks=rule.asks, rule=rule.title)


_BY_DISPOSITION = {
    Treatment.READY: Disposition.READY,
    Treatment.NOT_READY: Disposition.NOT_READY,
    Treatment.OMIT: Disposition.OMITTED,
}


# --------------------------------------------------------------------------- health


def treatment_of(status: Status, rules: InstanceRules) -> Treatment:
    """What a rule does with instances of a health. Unknown counts as critical."""
    match status:
        case Status.PASSING:
            return Treatment.READY
        case Status.WARNING:
            return rules.warning
        case Status.MAINTENANCE:
            return rules.maintenance
        case _:
            return rules.critical


def _conditions(status: Status, treatment: Treatment) -> tuple[bool, bool, bool]:
    """Ready, serving, terminating: what is in maintenance is drained, so it still serves what it has."""
    if treatment is Treatment.READY:
        return True, True, False
    drained = status is Status.MAINTENANCE
    return False, drained, drained


def _apply_settle_and_min_ready(
    decisions: Sequence[InstanceDecision],
    rules: InstanceRules,
    current: Current | None,
    waiting: Collection[Place] | None,
) -> None:
    """Apply `settle`, which delays becoming ready, and `min_ready`, which keeps instances ready.

    | an instance | is ready | but |
    | --- | --- | --- |
    | has become healthy | when it has been so for `settle` | at once, while none, or fewer than `min_ready`, are |
    | is ready in Kubernetes, and healthy | | at once: it has settled, in this process or in another |
    | is ready in Kubernetes, and no longer healthy | no more | as before, while fewer than `min_ready` would be left |

    One pass (`waiting` None) has no history, and no later moment to act in: it lets no instance wait.
    """
    ready = ready_now(current) if current is not None else set()
    was_ready = {id(d) for d in decisions if not ready.isdisjoint(_listed_as(d))}
    listed = [d for d in decisions if d.endpoints]
    minimum = rules.min_ready.of(len(listed))
    healthy = [d for d in listed if d.disposition is Disposition.READY]
    service = current.service if current is not None else None
    if rules.settle_seconds and not (service is not None and service.traffic.publish_not_ready):
        seconds = f"{rules.settle_seconds:g} s"
        new = [d for d in healthy if id(d) not in was_ready and (waiting is None or d.instance.place in waiting)]
        enough = len(healthy) - len(new) >= max(1, minimum)
        for decision in new if enough else ():
            if waiting is None:
                decision.reason = Reason(Code.SETTLES_LATER, status=decision.instance.status, seconds=seconds)
            else:
                _set_ready(
                    decision,
                    ready=False,
                    reason=Reason(Code.SETTLING, status=decision.instance.status, seconds=seconds),
                )
    left = len(healthy)
    if left >= minimum:
        return
    numbers = {"left": left, "count": len(listed), "minimum": rules.min_ready}
    shared = {pair for d in healthy for pair in _listed_as(d)}  # ready in Kubernetes for another one's sake
    for decision in listed:
        if decision.disposition is not Disposition.READY and not ready.isdisjoint(_listed_as(decision) - shared):
            _set_ready(decision, ready=True, reason=Reason(Code.KEPT_READY, status=decision.instance.status, **numbers))


def _set_ready(decision: InstanceDecision, *, ready: bool, reason: Reason) -> None:
    decision.endpoints = tuple(
        (family, replace(e, ready=ready, serving=ready, terminating=False)) for family, e in decision.endpoints
    )
    decision.disposition = Disposition.READY if ready else Disposition.NOT_READY
    decision.reason = reason


def _listed_as(decision: InstanceDecision) -> set[tuple[str, int, str]]:
    return {(address, port.number, port.protocol) for address, port in decision.addresses}


def _kept_warnings(decisions: Iterable[tuple[Rule, Query, InstanceDecision]]) -> Iterable[Reason]:
    kept: dict[Query, list[InstanceDecision]] = {}
    for _, query, decision in decisions:
        if decision.reason is not None and decision.reason.code is Code.KEPT_READY:
            kept.setdefault(query, []).append(decision)
    for query, found in kept.items():
        first = min(found, key=lambda decision: instance_name(decision.instance))
        said = {key: text for key, text in (first.reason.data if first.reason else ()) if key != "status"}
        names = {"first": instance_name(first.instance), "service": truncate(query.service)}
        yield Reason(Code.MINIMUM_KEPT, kept=len(found), **names, **said)


def ready_now(current: Current) -> set[tuple[str, int, str]]:
    """(address, port, protocol) that a bridge's objects at a target list as ready."""
    return {
        (e.address, p.number, p.protocol)
        for g in current.groups()
        for e in g.endpoints
        if e.ready
        for p in g.ports or NO_PORTS
    }


# --------------------------------------------------------------------------- addresses and places


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


def _addresses(
    address: str, rules: InstanceRules, resolved: Resolved, consul_node: str, nodes: ClusterNodes
) -> Sequence[normalize.Address] | Reason:
    """The addresses that traffic may be sent to, or why there is none."""
    parsed = normalize.parse(address)
    candidates: Iterable[normalize.Address | normalize.Refused] = (parsed,)
    reason: Reason | None = None
    if isinstance(parsed, normalize.Refused) and parsed.is_name:
        if not rules.bounds.host_names:
            return Reason(Code.HOST_NAMES_OFF, name=truncate(address))
        if address not in resolved:
            return Reason(Code.HOST_NAME_UNRESOLVED, name=truncate(address))
        candidates = map(normalize.parse, resolved[address])
    found = []
    for candidate in candidates:
        if isinstance(candidate, normalize.Refused):
            reason = candidate.reason
        elif (why := _outside(candidate.text, rules)) is not None:
            reason = why
        elif not rules.node_addresses and (node := _node_at(candidate.text, consul_node, nodes)):
            reason = Reason(Code.NODE_ADDRESS, address=candidate.text, node=node)
        else:
            found.append(candidate)
    return found or reason or Reason(Code.HOST_NAME_EMPTY, name=truncate(address))


def _outside(address: str, rules: InstanceRules) -> Reason | None:
    bounds = rules.bounds
    if address in bounds.api_server:
        return Reason(Code.API_SERVER, address=address)
    return normalize.excluded(address, bounds.allow_cidrs, bounds.deny_cidrs, "guard.") or normalize.excluded(
        address, rules.allow_cidrs, rules.deny_cidrs
    )


def _node_at(address: str, consul_node: str, nodes: ClusterNodes) -> str:
    """The cluster's node that an address leads to, "" for none and for what Consul has on that very node."""
    if not nodes.addresses:
        return ""
    found = nodes.at(address)
    if not found and (inner := normalize.embedded(ipaddress.ip_address(address))) is not None:
        found = nodes.at(str(inner))
    return "" if nodes.is_own(found, consul_node) else found


def _node_warnings(decisions: Iterable[tuple[Rule, Query, InstanceDecision]], nodes: ClusterNodes) -> Iterable[Reason]:
    """What an operator's rule leads to the cluster's own nodes."""
    found = sorted({
        endpoint.address
        for rule, _, decision in (decisions if nodes.addresses else ())
        for _, endpoint in decision.endpoints
        if not rule.to.annotated and _node_at(endpoint.address, decision.instance.node, nodes)
    })  # fmt: skip
    if found:
        yield Reason(Code.NODE_ADDRESSES, count=len(found), first=found[0])


def zone_of(instance: Instance, rules: InstanceRules) -> str:
    """The topology zone that the node's meta names, else the rule's, if Kubernetes can have such a zone; it must be
    spelled as there.
    """
    named = next((value for key, value in instance.node_meta if key == rules.zone_meta), "") or rules.zone
    return named if is_label_value(named) else ""


# --------------------------------------------------------------------------- the whole


def _main_name(decisions: Iterable[tuple[Rule, Query, InstanceDecision]], service: CurrentService | None) -> str:
    """The name for the port of those instances that have one only and whose rule gives none."""
    placed = [(rule, decision) for rule, _, decision in decisions if decision.ports]
    unnamed = [decision.instance for rule, decision in placed if not rule.to.port_name]
    protocols = {p.protocol for _, decision in placed for p in decision.ports if not p.name}
    alone = not unnamed or len(unnamed) == len(placed)
    return portage.main_name(unnamed, service, alone=alone, protocols=protocols)


def _names(
    decisions: Iterable[tuple[Rule, Query, InstanceDecision]], main: str, service: CurrentService | None, rule: Rule
) -> portage.Names:
    """Other names for the ports of one name that are there in several protocols."""
    port_sets = {decision.ports for _, _, decision in decisions if decision.endpoints}
    if len({p.protocol for ports in port_sets for p in ports}) < 2:
        return {}
    return portage.names_by_protocol((portage.renamed(ports, main) for ports in port_sets), service, rule.to.protocol)


def _groups(
    decisions: Iterable[InstanceDecision], main: str, names: portage.Names
) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """The groups of what is listed, and of what is left out for its health alone."""
    listed: dict[tuple[Family, tuple[Port, ...]], dict[str, Endpoint]] = {}
    omitted: dict[tuple[Family, tuple[Port, ...]], dict[str, Endpoint]] = {}
    for decision in decisions:
        members = omitted if decision.disposition is Disposition.OMITTED else listed
        ports = portage.renamed(decision.ports, main) if main else decision.ports
        ports = portage.apart(ports, names) if names else ports
        for family, endpoint in decision.endpoints:
            group = members.setdefault((family, ports), {})
            known = group.get(endpoint.address)
            group[endpoint.address] = endpoint if known is None else normalize.merge(known, endpoint)
    for key, group in omitted.items():
        for address in listed.get(key, {}).keys() & group.keys():
            del group[address]
    return normalize.group_endpoints(listed), normalize.group_endpoints(omitted)


def _families(groups: Sequence[Group], service: CurrentService | None) -> tuple[Family, ...]:
    """Families of the Service; none when nothing is known yet: the cluster chooses.

    What a Service has stays: Kubernetes never changes the first, and taking the second away would take its address.
    """
    found = sorted({g.family for g in groups})
    if service is None or not portage.lives(service):
        return tuple(found)
    both = sorted(Family) if service.dual_stack else []
    return tuple(dict.fromkeys((*service.families, *both, *found)))


def _pairs(
    sources: Sequence[tuple[Rule, Query, Known]], decisions: Iterable[tuple[Rule, Query, InstanceDecision]]
) -> tuple[Pairs, Pairs, tuple[Reason, ...]]:
    """Labels and annotations of all the rules together (the first wins), and what instances contradict in."""
    labels: Pairs = ()
    annotations: Pairs = ()
    said: list[tuple[str, dict[str, str]]] = []
    warnings: list[Reason] = []
    if any(rule.to.labels_from or rule.to.annotations_from for rule, _, _ in sources):
        selected = _selected(decisions)
    else:
        selected = []
    for rule, query, _ in reversed(sources):
        found, contradictions = derived(rule.to.labels_from, selected, label=True)
        own_labels = joined(found, rule.to.labels)
        labels = joined(labels, own_labels)
        warnings += contradictions
        found, contradictions = derived(rule.to.annotations_from, selected, label=False)
        own_annotations = joined(found, rule.to.annotations)
        annotations = joined(annotations, own_annotations)
        warnings += contradictions
        if len(sources) > 1:
            said.insert(0, (query.service, _said(rule, own_labels, own_annotations)))
    return labels, annotations, (*warnings, *_disagreements(said))


def _selected(decisions: Iterable[tuple[Rule, Query, InstanceDecision]]) -> list[Instance]:
    """The instances that the rules select, whatever their disposition."""
    return [
        f.instance for _, _, f in decisions if f.disposition not in (Disposition.EXCLUDED, Disposition.NOT_SELECTED)
    ]


def _said(rule: Rule, labels: Pairs, annotations: Pairs) -> dict[str, str]:
    """What a rule says about the one Service that it may share with others."""
    return {
        "output": rule.to.output.value,
        "type": "Headless" if rule.to.headless else rule.to.type or portage.CLUSTER_IP,
        "max_endpoints_per_slice": str(rule.to.max_endpoints_per_slice),
        **{f"the label {key}": value for key, value in labels},
        **{f"the annotation {key}": value for key, value in annotations},
    }


def _disagreements(said: Sequence[tuple[str, Mapping[str, str]]]) -> Iterator[Reason]:
    """One sentence for each thing that the rules which share a Service say differently: the first has it."""
    for key in sorted({key for _, values in said for key in values}):
        (first, taken), *others = [(service, values[key]) for service, values in said if key in values]
        other = next(((service, value) for service, value in others if value != taken), None)
        if other is not None:
            services = {"first": truncate(first), "second": truncate(other[0])}
            yield Reason(Code.DISAGREEMENT, key=key, taken=truncate(taken), other=truncate(other[1]), **services)


def _warnings(mirror: Mirror, service: CurrentService | None) -> Iterable[Reason]:
    if service.headless if service is not None else mirror.headless:
        names = (key for key, _ in mirror.annotations if key.startswith("external-dns.") and key.endswith("/hostname"))
        yield from (Reason(Code.PUBLISHED_NOWHERE, annotation=key) for key in names)
    if service is not None:
        yield from _traffic_warnings(mirror, service)
        if mirror.service_ports is None:
            yield from portage.unserved(service.ports, mirror.groups)
    if service is None or not service.families:
        return
    absent = sorted({g.family for g in mirror.groups} - set(service.families))
    for family in absent if mirror.service_ports is None else ():
        yield Reason(Code.FAMILY_MISSING, family=family)
    if mirror.service_ports is not None and service.meta.owner is not None and service.dual_stack:
        for family in absent:
            yield Reason(Code.FAMILY_UNAVAILABLE, family=family, families=" and ".join(service.families))


def _traffic_warnings(mirror: Mirror, service: CurrentService) -> Iterable[Reason]:
    """What the Service's own fields ask for and VMs cannot give."""
    endpoints = [e for g in mirror.groups for e in g.endpoints if e.ready]
    elsewhere = sum(not e.node_name for e in endpoints)
    outside = elsewhere and service.type in ("NodePort", "LoadBalancer")
    for local, field in (
        (service.traffic.internal_local and elsewhere, "internalTrafficPolicy"),
        (service.traffic.external_local and outside, "externalTrafficPolicy"),
    ):
        if local:
            yield Reason(Code.TRAFFIC_LOCAL, field=field, count=elsewhere, ready=len(endpoints))
    distribution = service.traffic.distribution
    if not distribution or not endpoints:
        return
    without = sum(not e.for_zone for e in endpoints)
    if mirror.output is Output.ENDPOINTS:
        yield Reason(Code.DISTRIBUTION_UNHINTED, value=truncate(distribution))
    elif without:
        yield Reason(Code.DISTRIBUTION_UNZONED, value=truncate(distribution), count=without, ready=len(endpoints))


def _port_warnings(decision: InstanceDecision, rule: Rule, service: CurrentService | None) -> Iterable[Reason]:
    """What happens to an instance's ports otherwise than one would think."""
    own_port = choose_address(decision.instance, rule.instances)[1]
    yield from portage.remarks(decision.instance, rule, own_port)
    if rule.to.annotated:
        yield from portage.guesses(decision.instance, service, own_port)


def _zone_warnings(decisions: Iterable[tuple[Rule, Query, InstanceDecision]]) -> Iterable[Reason]:
    for rule, _, decision in decisions:
        for key, value in decision.instance.node_meta if decision.endpoints else ():
            if key == rule.instances.zone_meta and value and not is_label_value(value):
                yield Reason(Code.ZONE_INVALID, zone=truncate(value))
