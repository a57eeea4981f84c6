"""What a report changes in each object, line by line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bridge.core.model import (
    Action,
    Body,
    Change,
    Current,
    CurrentRoute,
    Endpoint,
    EndpointsBody,
    Family,
    Group,
    Kind,
    Pairs,
    Port,
    Route,
    RouteBody,
    ServiceBody,
    SliceBody,
)
from bridge.core.plan import existing_fields
from bridge.report import Report

if TYPE_CHECKING:
    pass

from bridge.render.layout import Paint, clean, painter


def diff(report: Report, colour: bool = False) -> str:
    """A unified diff per object: what Kubernetes holds and what it would (or does) hold. Empty without changes."""
    paint = painter(colour)
    pieces: list[str] = []
    for outcome in report.outcomes:
        for change in outcome.waiting if report.dry_run else outcome.applied:
            pieces.extend(_object_diff(change, outcome.before, paint))
    return "".join(f"{line}\n" for line in pieces)


def _object_diff(change: Change, before: Current | None, paint: Paint) -> list[str]:
    name = clean(f"{change.kind}/{change.target.namespace}/{change.name}")
    old = [] if change.action is Action.CREATE else _lines_before(change, before)
    new = [] if change.action is Action.DELETE or change.body is None else body_lines(change.body)
    lines = list(
        difflib.unified_diff(
            old,
            new,
            "/dev/null" if change.action is Action.CREATE else f"current/{name}",
            "/dev/null" if change.action is Action.DELETE else f"desired/{name}",
            lineterm="",
        )
    )
    if not lines:  # only ownership labels or the order of what is stored differ
        lines = [f"--- current/{name}", f"+++ desired/{name}", f"# {clean(change.reason or 'rewritten')}"]
    colours = {"+": "green", "-": "red", "@": "cyan"}
    return [paint(line, "bold" if line[:3] in ("---", "+++") else colours.get(line[:1], "")) for line in lines]


def _lines_before(change: Change, before: Current | None) -> list[str]:
    """What Kubernetes holds, in the same form as `body_lines` has it."""
    if before is None:
        return []
    if change.kind is Kind.SERVICE and before.service is not None:
        s = before.service
        if isinstance(change.body, ServiceBody):
            return body_lines(existing_fields(s, change.body))
        return body_lines(
            ServiceBody(
                s.ports,
                s.headless,
                s.families,
                s.meta.labels,
                s.meta.annotations,
                s.target_ports,
                s.type,
                family_policy=s.family_policy,
            )
        )
    if change.kind is Kind.ENDPOINTS and before.endpoints is not None:
        e = before.endpoints
        if e.meta.owner is None and not e.groups:
            at = change.target
            return [clean(f"(not read: kubectl get endpoints {at.name} --namespace {at.namespace} -o yaml)")]
        return body_lines(EndpointsBody(e.groups, e.meta.labels, e.meta.annotations))
    if change.kind is Kind.HTTP_ROUTE and isinstance(before.route, CurrentRoute) and before.route.route is not None:
        return body_lines(RouteBody(before.route.route, before.route.meta.labels, before.route.meta.annotations))
    for s_ in before.slices:
        if s_.meta.name == change.name:
            return body_lines(SliceBody(s_.service, s_.group, s_.meta.labels, s_.meta.annotations))
    return []


def body_lines(body: Body) -> list[str]:
    """An object's content, one fact a line, in Kubernetes' words. Sorted as it is stored."""
    lines = [*_pair_lines("labels", body.labels), *_pair_lines("annotations", body.annotations)]
    if isinstance(body, ServiceBody):
        lines.append("type: Headless" if body.headless else f"type: {clean(body.type)}")
        lines.append(f"ipFamilies: {', '.join(body.families)}" if body.families else "ipFamilies: (the cluster's)")
        if body.family_policy != "SingleStack":
            lines.append(f"ipFamilyPolicy: {clean(body.family_policy)}")
        targets = dict(zip(body.ports, body.target_ports, strict=False))
        return lines + _port_lines(body.ports, "", targets)
    if isinstance(body, RouteBody):
        return lines + _route_lines(body.route)
    groups = (body.group,) if isinstance(body, SliceBody) else body.groups
    if isinstance(body, SliceBody):
        lines.append(f"service: {clean(body.service)}")
    for group in groups:
        lines.extend(_group_lines(group))
    return lines


def _route_lines(route: Route) -> list[str]:
    lines = ["parents:"]
    for parent in route.parents:
        listener = [f"listener {parent.section}"] if parent.section else []
        listener += [f"port {parent.port}"] if parent.port else []
        place = f"{parent.namespace}/" if parent.namespace else ""
        lines.append(f"  - Gateway {place}{parent.name}" + (f" ({', '.join(listener)})" if listener else ""))
    lines += ["hostnames:", *(f"  - {name}" for name in route.hostnames)] if route.hostnames else []
    return [clean(line) for line in (*lines, f"path: {route.path}", f"port: {route.port}")]


def _group_lines(group: Group) -> list[str]:
    lines = [f"{'addresses' if group.family is Family.IPV4 else 'addresses (IPv6)'}:", *_port_lines(group.ports, "  ")]
    return lines + [f"  - {_endpoint_text(e)}" for e in group.endpoints]


def _endpoint_text(endpoint: Endpoint) -> str:
    words = ["ready" if endpoint.ready else "not ready"]
    if endpoint.serving is not endpoint.ready:
        words.append("serving" if endpoint.serving else "not serving")
    if endpoint.terminating:
        words.append("terminating")
    if endpoint.zone:
        words.append(f"zone {endpoint.zone}")
    if endpoint.for_zone:
        words.append(f"for zone {endpoint.for_zone}")
    if endpoint.node_name:
        words.append(f"node {endpoint.node_name}")
    if endpoint.hostname:
        words.append(f"hostname {endpoint.hostname}")
    return clean(f"{endpoint.address} ({', '.join(words)})")


def _port_lines(ports: Sequence[Port], indent: str, targets: Mapping[Port, int | str] | None = None) -> list[str]:
    lines = [f"{indent}ports:"] if ports else []
    for port in ports:
        app = f" ({port.app_protocol})" if port.app_protocol else ""
        target = (targets or {}).get(port, port.number)
        arrow = f" -> {target}" if target != port.number else ""
        lines.append(clean(f"{indent}  - {port.name or '(no name)'} {port.number}/{port.protocol}{arrow}{app}"))
    return lines


def _pair_lines(title: str, pairs: Pairs) -> list[str]:
    return [f"{title}:", *(clean(f"  {key}: {value}") for key, value in sorted(pairs))] if pairs else []
