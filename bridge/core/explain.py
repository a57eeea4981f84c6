"""Why each instance of one Consul service is where it is: the answer of `bridge explain`, as data.

It calls the same functions that decide, so that an explanation cannot differ from what is done. A user should not have
to read the source to learn why an address is missing.

Longer than other modules: an instance can be missing in many ways, and each has an answer of its own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bridge.core import select
from bridge.core.assignments import TargetAssignments
from bridge.core.instances import Disposition, InstanceDecision, Resolved, choose_address, decide, instance_name
from bridge.core.model import (
    NO_NODES,
    NO_PORTS,
    Action,
    ActiveDatacenter,
    ClusterNodes,
    Current,
    EndpointsBody,
    Group,
    Instance,
    Kind,
    Knowledge,
    Known,
    Place,
    Plan,
    Rule,
    Skipped,
    SliceBody,
    Status,
    Target,
    Unknown,
)
from bridge.core.normalize import truncate
from bridge.core.reasons import Code, Reason, code_of, codes_of
from bridge.core.redact import redacted
from bridge.core.slice_union import MIRRORING_CONTROLLER
from bridge.core.translate import name_endpoints

Observed = dict[tuple[str, int], bool]
"""(address, port) pairs in Kubernetes, and whether they are ready in any object."""

Containers = dict[tuple[str, int], list[str]]
"""(address, port) pairs, and the subset and slices that have them."""


@dataclass(frozen=True, slots=True)
class RuleVerdict:
    """What one rule says to the service: why it does not select it, or ("" then) at which `target` it mirrors it."""

    rule: str
    why_not: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One instance. `kubernetes` is its endpoint now: ready, not ready, or absent.

    `group` is what carries its endpoints once the plan is done: `subset 2` of the Endpoints, a slice by its name, or
    both; those that share their ports (and, in slices, their family) are together.

    `hostname` is its own name in DNS, where the rule gives one.

    `output` is what the check that decided said last, on one line, cut, and without what looks like a credential; ""
    while the instance is passing.
    """

    instance: str
    status: str
    check: str
    address: str
    chosen: str
    ports: str
    disposition: str
    reason: str
    kubernetes: str
    group: str = ""
    output: str = ""
    hostname: str = ""

    @property
    def as_it_should_be(self) -> bool:
        """Whether Kubernetes has what it should have of the instance."""
        wanted = self.disposition if self.disposition in ("ready", "not ready") else "absent"
        return self.kubernetes == wanted


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that there is to say about one service. `problem` says why it has no target, or not the one it wants.

    `target` is also where something of a service is left that goes nowhere any more. `filter` is the rule's expression
    that Consul evaluates. `unaccounted` are endpoints at the target that no instance accounts for:
    `10.0.0.1:8080 ready`. `compared`: enough is known to say what the next pass would do. `reasons` are the codes of
    all messages, each once. `deviations`: in what all EndpointSlices together are not what is wanted.
    `traffic`: which of several datacenters carries it, and why.
    """

    service: str
    datacenter: str
    rules: tuple[RuleVerdict, ...] = ()
    rule: str = ""
    target: str = ""
    problem: str = ""
    consul: str = ""
    rows: tuple[Row, ...] = ()
    differences: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    filter: str = ""
    unaccounted: tuple[str, ...] = ()
    compared: bool = True
    reasons: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()
    traffic: str = ""

    def to_json(self) -> dict[str, Any]:
        """As `bridge explain -o json` prints it."""
        rows = [{**asdict(row), "reason": code_of(row.reason), "message": row.reason} for row in self.rows]
        return {**asdict(self), "rows": rows}


def explain(
    service: str,
    datacenter: str,
    *,
    tags: Collection[str] | None,
    rules: Sequence[Rule],
    knowledge: Knowledge | None = None,
    claims: TargetAssignments | None = None,
    current: Current | None = None,
    plan: Plan | None = None,
    resolved: Resolved | None = None,
    cluster_nodes: ClusterNodes = NO_NODES,
    unfiltered: Knowledge | None = None,
    co_sources: Sequence[tuple[Rule, Known]] = (),
    remembered: Target | None = None,
    chosen: select.Choice | None = None,
    kept: Collection[Target] = (),
    waiting: Collection[Place] | None = None,
) -> Explanation:
    """Explain one service at one target: that of the rule that was `chosen`, else of the first that selects it.

    `tags` are those of the catalog, None when the catalog does not list the service.

    `unfiltered` is what Consul holds without the rule's filter, so that what the filter leaves out can be shown;
    `co_sources` are the other services that share the target. `remembered` is a target where Kubernetes still has what
    came from the service although nothing sends it there any more: that is what is explained then. `kept` are all
    targets where something of the service stands, which tags alone never end. `waiting`: instances that have not been
    healthy for long enough (`settle`), None where no history is known.
    """
    named = select.choices(rules, service, datacenter)
    selecting = select.active(named, tags or (), kept)
    if chosen is not None and tuple(rules) == (chosen.rule,):  # asked for by name: no listing decides about it
        named = selecting = [chosen]
    choice = chosen or next(iter(selecting), None)
    verdicts = _verdicts(service, datacenter, tags or (), rules, named, selecting)
    rule = choice.rule if choice is not None else None
    target: Target | Skipped | None = None
    lost_name = False
    problem = select.excluded(service)
    if problem is not None:
        problem, rule, choice = Reason(Code.NEVER_MIRRORED, why=problem), None, None
    elif tags is None and not (rule is not None and rule.unlisted):
        problem = Reason(Code.NOT_LISTED, datacenter=truncate(datacenter))
    elif rule is None:
        problem = Reason(Code.NO_RULE)
    if choice is not None and rule is not None:
        query, target = choice.query, choice.target
        if isinstance(target, Skipped):
            problem = target.reason
        elif remembered not in (None, target):
            problem = problem or Reason(Code.MOVED, target=target, before=remembered)
        elif claims is not None and (query, rule) not in claims.winners(target):
            lost_name = tags is not None and bool(claims.winners(target))
            problem = claims.why_lost(query, rule, target) or problem
    target = remembered or target
    if plan is not None and not plan.changes:
        problem = problem or next((skipped.reason for skipped in plan.skipped if not skipped.instance), None)
    observed = _observed(current)
    instances = knowledge.instances if isinstance(knowledge, Known) else ()
    own = decide(instances, rule or Rule(), current, resolved, cluster_nodes, waiting)
    co_decisions = [
        (other, decision)
        for other, known in co_sources
        for decision in decide(known.instances, other, current, resolved, cluster_nodes)
    ]
    name_endpoints([*((rule or Rule(), decision) for decision in own), *co_decisions], current)
    consul, rows, explained = _rows(rule, knowledge, own, observed, _containers(current, plan))
    if rule is not None and rule.peer and isinstance(knowledge, Known):
        consul += f" of the peer {truncate(rule.peer)}"
    active = plan.active_datacenter if plan is not None else None
    if active is not None and active.name != datacenter:
        rows = tuple(_on_standby(row, active) for row in rows)
    rows = tuple(sorted(rows + _invalid(knowledge, unfiltered, rule), key=_in_order))
    explained |= _pairs_of(decision for _, decision in co_decisions)
    others = [] if lost_name else sorted((*pair, ready) for pair, ready in observed.items() if pair not in explained)
    return Explanation(
        service=service,
        datacenter=datacenter,
        rules=verdicts,
        rule=rule.name if rule is not None else "",
        target=str(target) if isinstance(target, Target) else "",
        problem=problem or "",
        consul=consul,
        rows=rows,
        differences=_differences(plan),
        held=tuple(h.reason for h in plan.held) if plan is not None else (),
        conflicts=tuple(f"{c.kind} {c.target}: {c.reason}" for c in plan.conflicts) if plan is not None else (),
        warnings=(*plan.warnings, *plan.notes) if plan is not None else (),
        filter=rule.filter if rule is not None else "",
        unaccounted=tuple(
            f"{address}:{port} {_word(ready)}" if port else f"{address} {_word(ready)}"
            for address, port, ready in others
        ),
        compared=plan is not None or not isinstance(target, Target),
        reasons=codes_of((problem or "", *(row.reason for row in rows), *(plan.reasons if plan is not None else ()))),
        deviations=plan.deviations if plan is not None else (),
        traffic=active.why if active is not None else "",
    )


def _word(ready: bool) -> str:
    return "ready" if ready else "not ready"


def _verdicts(
    service: str,
    datacenter: str,
    tags: Collection[str],
    rules: Sequence[Rule],
    named: Sequence[select.Choice],
    selecting: Sequence[select.Choice],
) -> tuple[RuleVerdict, ...]:
    """What the rules say, in order, up to the first that uses the service up."""
    verdicts: list[RuleVerdict] = []
    of_order = {choice.order: choice for choice in named}
    for order, rule in enumerate(rules):
        choice = of_order.get(order)
        if choice is None:
            verdicts.append(RuleVerdict(rule.title, select.why_not(rule, service, datacenter) or ""))
        elif choice in selecting:
            target = choice.target
            why = target.reason if isinstance(target, Skipped) else ""
            verdicts.append(RuleVerdict(rule.title, why, "" if why else str(target)))
        else:
            missing = [tag for tag in rule.tags if tag not in tags]
            verdicts.append(RuleVerdict(rule.title, f"no instance has the tag {', '.join(map(truncate, missing))}"))
        if choice is not None and rule.uses_up:
            break
    return tuple(verdicts)


def _rows(
    rule: Rule | None,
    knowledge: Knowledge | None,
    decisions: Sequence[InstanceDecision],
    observed: Observed,
    containers: Containers,
) -> tuple[str, tuple[Row, ...], set[tuple[str, int]]]:
    """What Consul says, a row per instance, and the (address, port) pairs that these account for."""
    match knowledge:
        case None:
            return "not asked", (), set(observed)
        case Unknown(reason):
            return f"unknown: {reason}", (), set(observed)
        case _:
            rows = tuple(_row(decision, rule or Rule(), observed, containers) for decision in decisions)
            rows += tuple(_unusable(name, reason) for name, reason in knowledge.invalid)
            return f"{len(rows)} instance{'s' if len(rows) != 1 else ''}", rows, _pairs_of(decisions)


def _pairs_of(decisions: Iterable[InstanceDecision]) -> set[tuple[str, int]]:
    return {(address, port.number) for decision in decisions for address, port in decision.addresses}


def _on_standby(row: Row, active: ActiveDatacenter) -> Row:
    """An instance of a datacenter that does not carry the traffic."""
    if row.disposition not in (Disposition.READY, Disposition.NOT_READY):
        return row
    why = Reason(Code.STANDBY, active=truncate(active.name))
    return replace(row, disposition=Disposition.STANDBY.value, reason=why, group="")


OUTPUT_SHOWN = 200
"""Characters of a check's output that are shown."""


def _in_order(row: Row) -> tuple[int, list[str | int]]:
    """Where Kubernetes differs first, then what is not well, and last what no rule wants; names by their numbers."""
    well = row.disposition == Disposition.READY and row.status == Status.PASSING
    if not row.as_it_should_be:
        rank = 1 if well else 0
    elif row.disposition in (Disposition.NOT_SELECTED, Disposition.EXCLUDED):
        rank = 4
    else:
        rank = 3 if well else 2
    return rank, natural(row.instance)


def natural(name: str) -> list[str | int]:
    """Sorts the numbers in names by their value: rgw-2 before rgw-10."""
    return [int(part) if n % 2 else part for n, part in enumerate(re.split(r"([0-9]+)", name))]


def _invalid(knowledge: Knowledge | None, unfiltered: Knowledge | None, rule: Rule | None) -> tuple[Row, ...]:
    """Rows for the instances that Consul does not show under the rule's filter."""
    if not isinstance(knowledge, Known) or not isinstance(unfiltered, Known) or rule is None:
        return ()
    shown = {(i.node, i.id) for i in knowledge.instances}
    rows = []
    for instance in unfiltered.instances:
        if (instance.node, instance.id) not in shown:
            decision = InstanceDecision(instance, Disposition.NOT_SELECTED, Reason(_filtered(rule, instance)))
            rows.append(_row(decision, rule, {}, {}))
    return tuple(rows)


def _filtered(rule: Rule, instance: Instance) -> Code:
    """Consul's filter language knows one port of an instance; one that has several has 0 there."""
    return Code.FILTERED_PORT if instance.ports and PORT_SELECTOR in rule.filter else Code.FILTERED


PORT_SELECTOR = "Service.Port"


def _row(decision: InstanceDecision, rule: Rule, observed: Observed, containers: Containers) -> Row:
    instance = decision.instance
    address, _ = choose_address(instance, rule.instances)
    pairs = [(address, port.number) for address, port in decision.addresses]
    found = [observed.get(pair) for pair in pairs]
    return Row(
        instance=instance_name(instance),
        status=instance.status.value,
        check=truncate(instance.check),
        address=", ".join(e.address for _, e in decision.endpoints) or truncate(address),
        chosen=_chosen(instance, rule.instances.address, address),
        ports=", ".join(f"{p.name}:{p.number}" if p.name else str(p.number) for p in decision.ports),
        disposition=decision.disposition.value,
        reason=decision.reason or "",
        kubernetes="ready" if True in found else "not ready" if False in found else "absent",
        group=", ".join(dict.fromkeys(name for pair in pairs for name in containers.get(pair, ()))),
        hostname=next((e.hostname for _, e in decision.endpoints), ""),
        output="" if instance.status is Status.PASSING else truncate(redacted(instance.output), OUTPUT_SHOWN),
    )


def _unusable(instance: str, reason: Reason) -> Row:
    """An instance of which nothing can be used."""
    skipped = Disposition.SKIPPED.value
    return Row(instance, "", "", "", "none", "", skipped, reason, "absent")


def _chosen(instance: Instance, wanted: str, address: str) -> str:
    """Where the address is from."""
    if not address:
        return "none"
    if wanted == "auto":
        return "the service's address" if instance.address else "the node's address (the service has none)"
    if wanted in ("service", "node"):
        return f"the {wanted}'s address"
    return f"the tagged address {truncate(wanted)}"


def _observed(current: Current | None) -> Observed:
    """What Kubernetes has at the target now."""
    observed: Observed = {}
    if current is not None:
        foreign = [s for s in current.others or () if s.manager != MIRRORING_CONTROLLER]
        groups = [s.group for s in (*current.slices, *foreign)]
        groups += current.endpoints.groups if current.endpoints else ()
        for group in groups:
            for endpoint in group.endpoints:
                for port in group.ports or NO_PORTS:
                    pair = endpoint.address, port.number
                    observed[pair] = endpoint.ready or observed.get(pair, False)
    return observed


def _containers(current: Current | None, plan: Plan | None) -> Containers:
    """What carries each endpoint when the plan is done; what the plan does not mention stays as it is."""
    by_object: dict[str, tuple[Group, ...]] = {}  # slices by name, the Endpoints under ""
    if current is not None and current.endpoints is not None:
        by_object[""] = current.endpoints.groups
    for piece in current.slices if current is not None else ():
        by_object[piece.meta.name] = (piece.group,)
    for change in plan.changes if plan is not None else ():
        match change.body:
            case EndpointsBody(groups):
                by_object[""] = groups
            case SliceBody(group=group):
                by_object[change.name] = (group,)
            case None if change.kind in (Kind.ENDPOINTS, Kind.ENDPOINT_SLICE) and change.action is Action.DELETE:
                by_object.pop("" if change.kind is Kind.ENDPOINTS else change.name, None)
    containers: Containers = {}
    for name, groups in sorted(by_object.items()):
        sets = sorted({g.ports for g in groups})  # one subset for each, whatever the family
        for group in groups:
            label = name or f"subset {sets.index(group.ports) + 1}"
            for endpoint in group.endpoints:
                for port in group.ports or NO_PORTS:
                    containers.setdefault((endpoint.address, port.number), []).append(label)
    return containers


def _differences(plan: Plan | None) -> tuple[str, ...]:
    """What would still have to be written."""
    return tuple(
        f"{c.action} {c.kind} {c.name}" + (f" ({c.reason})" if c.reason else "")
        for c in (plan.changes if plan is not None else ())
        if c.action is not Action.UNCHANGED
    )
