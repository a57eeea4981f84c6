"""Why each instance of one Consul service is where it is: the answer of `bridge explain`, as data.

Asks the same functions that decide, so that an explanation cannot differ from what is done. Nobody should have to read
the source to learn why an address is missing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bridge.core import select
from bridge.core.canonical import shorten
from bridge.core.model import Action, Current, Instance, Knowledge, Known, Plan, Rule, Skipped, Target, Unknown
from bridge.core.translate import Fate, Resolved, choose_address, fates_of, instance_name


@dataclass(frozen=True, slots=True)
class RuleVerdict:
    """What one rule says to the service; `why_not` is empty for the one that selects it."""

    rule: str
    why_not: str


@dataclass(frozen=True, slots=True)
class Row:
    """One instance. `kubernetes` is what stands there now: ready, not ready, or absent."""

    instance: str
    status: str
    check: str
    address: str
    chosen: str
    ports: str
    ended: str
    reason: str
    kubernetes: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that there is to say about one service. `problem` says why it has no target, or not the one it wants."""

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

    def to_json(self) -> dict[str, Any]:
        """As `bridge explain -o json` prints it."""
        return asdict(self)


def explain(
    service: str,
    datacenter: str,
    *,
    tags: Collection[str] | None,
    rules: Sequence[Rule],
    knowledge: Knowledge | None = None,
    claims: select.Claims | None = None,
    current: Current | None = None,
    plan: Plan | None = None,
    resolved: Resolved | None = None,
    cluster_nodes: Collection[str] = (),
) -> Explanation:
    """Explain one service. `tags` are those of the catalog, None when the catalog does not list the service."""
    verdicts, rule = _verdicts(service, datacenter, tags or (), rules)
    target: Target | Skipped | None = None
    problem = select.excluded(service, tags or ()) or ""
    if problem:
        problem, rule = f"never mirrored: {problem}", None
    elif tags is None:
        problem = f"{shorten(datacenter)} does not list a service of this name"
    elif rule is None:
        problem = "no rule selects it"
    if rule is not None:
        query = select.query_of(rule, service, datacenter)
        target = select.target_of(rule, query)
        if isinstance(target, Skipped):
            problem = target.reason
        elif claims is not None and query not in {q for q, _ in claims.owners(target)}:
            problem = next((s.reason for s in claims.losers(target) if s.service == service), problem)
    consul, rows = _rows(rule, knowledge, current, resolved, cluster_nodes)
    return Explanation(
        service=service,
        datacenter=datacenter,
        rules=verdicts,
        rule=rule.name if rule is not None else "",
        target=str(target) if isinstance(target, Target) else "",
        problem=problem,
        consul=consul,
        rows=rows,
        differences=_differences(plan),
        held=tuple(h.reason for h in plan.held) if plan is not None else (),
        conflicts=tuple(f"{c.kind} {c.target}: {c.reason}" for c in plan.conflicts) if plan is not None else (),
        warnings=plan.warnings if plan is not None else (),
    )


def _verdicts(
    service: str, datacenter: str, tags: Collection[str], rules: Sequence[Rule]
) -> tuple[tuple[RuleVerdict, ...], Rule | None]:
    """What the rules say, in order, up to the first that selects the service."""
    verdicts: list[RuleVerdict] = []
    for rule in rules:
        why_not = select.why_not(rule, service, datacenter, tags)
        verdicts.append(RuleVerdict(rule.name, why_not or ""))
        if why_not is None:
            return tuple(verdicts), rule
    return tuple(verdicts), None


def _rows(
    rule: Rule | None,
    knowledge: Knowledge | None,
    current: Current | None,
    resolved: Resolved | None,
    cluster_nodes: Collection[str],
) -> tuple[str, tuple[Row, ...]]:
    match knowledge:
        case None:
            return "not asked", ()
        case Unknown(reason):
            return f"unknown: {reason}", ()
        case Known(instances):
            stands = _stands(current)
            fates = fates_of(instances, rule or Rule(), current, resolved, cluster_nodes)
            rows = tuple(_row(fate, rule or Rule(), stands) for fate in fates)
            return f"{len(rows)} instances", rows
        case _:
            return "gone", ()


def _row(fate: Fate, rule: Rule, stands: dict[tuple[str, int], bool]) -> Row:
    instance = fate.instance
    address, _ = choose_address(instance, rule.instances)
    found = [stands.get((e.address, p.number)) for _, e in fate.endpoints for p in fate.ports]
    return Row(
        instance=instance_name(instance),
        status=instance.status.value,
        check=shorten(instance.check),
        address=", ".join(e.address for _, e in fate.endpoints) or shorten(address),
        chosen=_chosen(instance, rule.instances.address, address),
        ports=", ".join(f"{p.name}:{p.number}" if p.name else str(p.number) for p in fate.ports),
        ended=fate.ended.value,
        reason=fate.reason,
        kubernetes="ready" if True in found else "not ready" if False in found else "absent",
    )


def _chosen(instance: Instance, wanted: str, address: str) -> str:
    """Where the address is from."""
    if not address:
        return "none"
    if wanted == "auto":
        return "the service's address" if instance.address else "the node's address (the service has none)"
    if wanted in ("service", "node"):
        return f"the {wanted}'s address"
    return f"the tagged address {shorten(wanted)}"


def _stands(current: Current | None) -> dict[tuple[str, int], bool]:
    """(address, port) pairs that Kubernetes has at the target now, and whether they are ready in any object."""
    stands: dict[tuple[str, int], bool] = {}
    if current is not None:
        groups = [s.group for s in current.slices] + list(current.endpoints.groups if current.endpoints else ())
        for group in groups:
            for endpoint in group.endpoints:
                for port in group.ports:
                    pair = endpoint.address, port.number
                    stands[pair] = endpoint.ready or stands.get(pair, False)
    return stands


def _differences(plan: Plan | None) -> tuple[str, ...]:
    """What would still have to be written."""
    return tuple(
        f"{c.action} {c.kind} {c.name}" + (f" ({c.reason})" if c.reason else "")
        for c in (plan.changes if plan is not None else ())
        if c.action is not Action.UNCHANGED
    )
