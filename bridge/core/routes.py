"""The HTTPRoute of a Service (Gateway API): which host names lead to it, and to which of its ports.

| the rule's templates give | the HTTPRoute |
| --- | --- |
| host names | has those, sorted, each once, 16 at most (the API's limit); what a gateway would refuse is left out |
| none that a gateway takes | stays as it is, and is not made |
| none, for no instance has what they are made of | goes |
| none, for no instance is selected | stays as it is, and is not made: what is not there says nothing |
| anything, and the Service has not the port | stays as it is, and is not made |

Several instances with several values give several host names. A health check changes none of them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from bridge.core.model import CurrentRoute, Instance, Port, Query, Route, RouteRule, Target
from bridge.core.normalize import some_of, truncate
from bridge.core.ownership import values
from bridge.core.reasons import Code, Reason

HOSTNAMES_LIMIT = 16
"""Host names that an HTTPRoute may have."""

NOTES = (Code.ROUTE_WITHOUT_HOSTNAME, Code.ROUTE_WAITS)
"""Reasons that are normal where tags decide which services have an HTTPRoute: only `explain` shows them."""

OF_SERVICE = ("name", "service", "datacenter", "namespace", "partition")
OF_INSTANCES = ("meta", "node-meta", "tag")
PLACEHOLDER = re.compile(rf"\{{({'|'.join(OF_SERVICE)}|(?:{'|'.join(OF_INSTANCES)}):[^{{}}]+)\}}")
_LABEL = "[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_HOSTNAME = re.compile(rf"(?=.{{1,253}}$)(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
_ADDRESS = re.compile(r"[0-9.]+")


def is_hostname(text: str) -> bool:
    """Whether a gateway takes a host name: a DNS name in lower case, maybe with `*` as its first label, no address."""
    return _HOSTNAME.fullmatch(text) is not None and _ADDRESS.fullmatch(text) is None


def _is_taken(name: str, template: str) -> bool:
    """Whether a gateway takes a host name. A wildcard can be meant by a rule only, and by no instance."""
    return is_hostname(name) and (template.startswith("*") or not name.startswith("*"))


def route_of(
    rule: RouteRule, target: Target, query: Query, selected: Sequence[Instance], ports: Sequence[Port]
) -> tuple[Route | Reason, tuple[Reason, ...]]:
    """The HTTPRoute, or why there is none, and the warnings about one that there is."""
    port = _port(rule, ports)
    if isinstance(port, Reason):
        return port, ()
    if not selected and any(_asks_instances(template) for template in rule.hostnames):
        return Reason(Code.ROUTE_WAITS, templates=", ".join(rule.hostnames)), ()
    found = {
        name: template for template in reversed(rule.hostnames) for name in _names(template, target, query, selected)
    }
    taken = sorted(name for name, template in found.items() if _is_taken(name, template))
    strange = sorted(found.keys() - taken)
    wrong: tuple[Reason, ...] = ()
    if strange:
        others = f", nor {len(strange) - 1} others" if len(strange) > 1 else ""
        first = {"hostname": truncate(strange[0]), "template": found[strange[0]]}
        wrong = (Reason(Code.ROUTE_HOSTNAME, others=others, **first),)
    if rule.hostnames and not taken:
        if strange:
            return wrong[0], ()
        return Reason(Code.ROUTE_WITHOUT_HOSTNAME, templates=", ".join(rule.hostnames)), ()
    if len(taken) > HOSTNAMES_LIMIT:
        wrong += (Reason(Code.ROUTE_HOSTNAMES, count=len(taken), limit=HOSTNAMES_LIMIT),)
    parents = {replace(p, namespace="") if p.namespace == target.namespace else p for p in rule.parents}
    return Route(tuple(sorted(parents)), tuple(taken[:HOSTNAMES_LIMIT]), rule.path, port), wrong


def kept(
    wanted: Route | Reason | None, current: CurrentRoute | Reason | None, owner: str | None
) -> Route | Reason | None:
    """What is wanted, with the host names that stand: the guard may hold the instances that gave them.

    No `owner`: any bridge's.
    """
    if not isinstance(current, CurrentRoute) or current.route is None or owner not in (None, current.meta.owner):
        return wanted
    if isinstance(wanted, Route):
        further = [name for name in current.route.hostnames if name not in wanted.hostnames] if wanted.hostnames else []
        return replace(wanted, hostnames=tuple(sorted([*wanted.hostnames, *further][:HOSTNAMES_LIMIT])))
    return current.route if wanted is not None else None


def _asks_instances(template: str) -> bool:
    """Whether a template is made of what instances have."""
    return any(part not in OF_SERVICE for part in PLACEHOLDER.findall(template))


def _port(rule: RouteRule, ports: Sequence[Port]) -> int | Reason:
    """The Service's port: the one that is named, by its name or number, else the only one."""
    found = [p for p in ports if p.protocol == "TCP" and rule.port in ("", p.name, str(p.number))]
    if len(found) == 1:
        return found[0].number
    there = some_of([f"{p.name} {p.number}/{p.protocol}".strip() for p in ports]) if ports else "none"
    problem = f"no TCP port {rule.port}".rstrip() if not found else "it leads to one port, and the rule names none"
    return Reason(Code.ROUTE_PORT, problem=problem, ports=there)


def _names(template: str, target: Target, query: Query, selected: Sequence[Instance]) -> Iterator[str]:
    """What a template becomes, in lower case: once where it is made of the Service alone, else by each instance."""
    parts = PLACEHOLDER.split(template)  # text and placeholders by turns
    known = {
        "name": target.name,
        "service": query.service,
        "datacenter": query.datacenter,
        "namespace": query.namespace,
        "partition": query.partition,
    }
    texts: list[tuple[str, ...]] = [
        (known[part],) if n % 2 and part in known else (part,) for n, part in enumerate(parts)
    ]
    asked = [n for n, part in enumerate(parts) if n % 2 and part not in known]
    if not asked:
        yield "".join(map("".join, texts)).lower()
    for instance in selected if asked else ():
        for n in asked:
            texts[n] = tuple(values(instance, parts[n]))
        for chosen in itertools.product(*texts):
            yield "".join(chosen).lower()
