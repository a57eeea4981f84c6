"""What happens to one instance of a Consul service: whether it becomes an endpoint, whether that is ready, and why.

Read `decide` first. It needs the rule, and of Kubernetes what matters to an instance: fields of the Service, which
endpoints are ready, the cluster's nodes. `translate` makes a Service and its endpoints of these decisions. Nothing that
Consul has can make it raise.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from bridge.core import normalize
from bridge.core import ports as portage
from bridge.core.model import (
    NO_NODES,
    NO_PORTS,
    USUAL_TRAFFIC,
    ClusterNodes,
    Current,
    CurrentService,
    Endpoint,
    Family,
    Instance,
    InstanceRules,
    Place,
    Port,
    Rule,
    Status,
    Treatment,
)
from bridge.core.normalize import truncate
from bridge.core.ownership import is_label_value
from bridge.core.pairs import Pair, pair_of, ready_pairs
from bridge.core.reasons import Code, Reason

BY_ZONE = ("PreferClose", "PreferSameZone", "PreferSameNode")
"""Values of spec.trafficDistribution for which Kubernetes' own slices have hints for zones as well."""


_ORDINARY_KINDS = ("", "typical")


_KUBERNETES_META = (("external-source", "kubernetes"), ("managed-by", "consul-k8s-endpoints-controller"))
"""What HashiCorp's catalog sync and its injector write on what they register for a cluster."""


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
    ready = ready_pairs(current.groups()) if current is not None else set()
    was_ready = {id(d) for d in decisions if not ready.isdisjoint(_pairs_of(d))}
    with_endpoints = [d for d in decisions if d.endpoints]
    minimum = rules.min_ready.of(len(with_endpoints))
    healthy = [d for d in with_endpoints if d.disposition is Disposition.READY]
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
    numbers = {"left": left, "count": len(with_endpoints), "minimum": rules.min_ready}
    shared = {pair for d in healthy for pair in _pairs_of(d)}  # ready in Kubernetes for another one's sake
    for decision in with_endpoints:
        if decision.disposition is not Disposition.READY and not ready.isdisjoint(_pairs_of(decision) - shared):
            _set_ready(decision, ready=True, reason=Reason(Code.KEPT_READY, status=decision.instance.status, **numbers))


def _set_ready(decision: InstanceDecision, *, ready: bool, reason: Reason) -> None:
    decision.endpoints = tuple(
        (family, replace(e, ready=ready, serving=ready, terminating=False)) for family, e in decision.endpoints
    )
    decision.disposition = Disposition.READY if ready else Disposition.NOT_READY
    decision.reason = reason


def _pairs_of(decision: InstanceDecision) -> set[Pair]:
    return {pair_of(address, port) for address, port in decision.addresses}


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
        elif not rules.node_addresses and (node := node_at(candidate.text, consul_node, nodes)):
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


def node_at(address: str, consul_node: str, nodes: ClusterNodes) -> str:
    """The cluster's node that an address leads to, "" for none and for what Consul has on that very node."""
    if not nodes.addresses:
        return ""
    found = nodes.at(address)
    if not found and (inner := normalize.embedded(ipaddress.ip_address(address))) is not None:
        found = nodes.at(str(inner))
    return "" if nodes.is_own(found, consul_node) else found


def zone_of(instance: Instance, rules: InstanceRules) -> str:
    """The topology zone that the node's meta names, else the rule's, if Kubernetes can have such a zone; it must be
    spelled as there.
    """
    named = next((value for key, value in instance.node_meta if key == rules.zone_meta), "") or rules.zone
    return named if is_label_value(named) else ""
