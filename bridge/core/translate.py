"""What the instances of a Consul service are in Kubernetes' words: groups of ready and unready endpoints.

One function from (sources, rules, what exists) to a Mirror. What happens to each instance is decided in `instances`;
one that does not become an endpoint comes back with its reason. Nothing that Consul has can make it raise.

Longer than other modules: a third of it is the warnings, which need what was found on the way to the mirror.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bridge.core import hostnames, normalize, routes
from bridge.core import ports as portage
from bridge.core.annotated import FILTER, TAGS
from bridge.core.instances import (
    Disposition,
    InstanceDecision,
    Resolved,
    choose_address,
    decide,
    instance_name,
    node_at,
    selects,
)
from bridge.core.model import (
    NO_NODES,
    ClusterNodes,
    Current,
    CurrentService,
    Endpoint,
    Family,
    Group,
    Instance,
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
    Target,
)
from bridge.core.normalize import truncate
from bridge.core.ownership import derived, is_label_value, joined
from bridge.core.reasons import Code, Reason


@dataclass(frozen=True, slots=True)
class Translation:
    """A mirror and what did not get into it. `mirror` is None when there is nothing that could be mirrored at all."""

    mirror: Mirror | None
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[Reason, ...] = ()


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
        *(_peer_empty(query) for _, query, known in sources if query.peer and not (known.instances or known.invalid)),
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
    imported = next((query for _, query, _ in sources if query.peer), None)
    return _peer_empty(imported) if imported is not None else Reason(Code.NO_INSTANCES)


def _peer_empty(query: Query) -> Reason:
    return Reason(Code.PEER_EMPTY, peer=truncate(query.peer))


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


def _node_warnings(decisions: Iterable[tuple[Rule, Query, InstanceDecision]], nodes: ClusterNodes) -> Iterable[Reason]:
    """What an operator's rule leads to the cluster's own nodes."""
    found = sorted({
        endpoint.address
        for rule, _, decision in (decisions if nodes.addresses else ())
        for _, endpoint in decision.endpoints
        if not rule.to.annotated and node_at(endpoint.address, decision.instance.node, nodes)
    })  # fmt: skip
    if found:
        yield Reason(Code.NODE_ADDRESSES, count=len(found), first=found[0])


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
    shown: dict[tuple[Family, tuple[Port, ...]], dict[str, Endpoint]] = {}
    omitted: dict[tuple[Family, tuple[Port, ...]], dict[str, Endpoint]] = {}
    for decision in decisions:
        members = omitted if decision.disposition is Disposition.OMITTED else shown
        ports = portage.renamed(decision.ports, main) if main else decision.ports
        ports = portage.apart(ports, names) if names else ports
        for family, endpoint in decision.endpoints:
            group = members.setdefault((family, ports), {})
            known = group.get(endpoint.address)
            group[endpoint.address] = endpoint if known is None else normalize.merge(known, endpoint)
    for key, group in omitted.items():
        for address in shown.get(key, {}).keys() & group.keys():
            del group[address]
    return normalize.group_endpoints(shown), normalize.group_endpoints(omitted)


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
    """One warning, however many zones of nodes are none."""
    odd = sorted(
        {
            value
            for rule, _, decision in decisions
            for key, value in (decision.instance.node_meta if decision.endpoints else ())
            if key == rule.instances.zone_meta and value and not is_label_value(value)
        }
    )
    if odd:
        more = f" (as {len(odd) - 1} more)" if len(odd) > 1 else ""
        yield Reason(Code.ZONE_INVALID, zone=truncate(odd[0]), more=more)
