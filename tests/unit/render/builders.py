"""Plans, outcomes and reports with as little typing as possible; what a test is not about has a default."""

from __future__ import annotations

from bridge.core.model import (
    Action,
    Body,
    Change,
    Conflict,
    Current,
    CurrentEndpoints,
    CurrentService,
    Endpoint,
    EndpointsBody,
    Family,
    Group,
    Held,
    Kind,
    Meta,
    Plan,
    Port,
    Query,
    ServiceBody,
    Skipped,
    Target,
)
from bridge.core.reasons import Reason
from bridge.errors import BridgeError
from bridge.report import Failure, Outcome, Report, build_report
from tests.unit.core.builders import said

TARGET = Target("storage", "radosgw")
QUERY = Query("dc1", "radosgw")


def group(*ready: str, not_ready: tuple[str, ...] = (), port: int = 8080, name: str = "http") -> Group:
    """Addresses on one port."""
    endpoints = [Endpoint(a, True) for a in ready] + [Endpoint(a, False, False) for a in not_ready]
    return Group(Family.IPV4, (Port(name, port),), tuple(sorted(endpoints)))


def meta(kind: Kind, target: Target = TARGET) -> Meta:
    """Identity of an object of ours."""
    return Meta(kind=kind, namespace=target.namespace, name=target.name, uid="u", resource_version="1", owner="default")


def service_body() -> ServiceBody:
    """A Service with one port."""
    return ServiceBody((Port("http", 8080),), False, (Family.IPV4,), (("team", "storage"),), ())


def change(
    action: Action = Action.UPDATE,
    kind: Kind = Kind.ENDPOINTS,
    body: Body | None = None,
    target: Target = TARGET,
    ready: int = 0,
    not_ready: int = 0,
    reason: str = "",
) -> Change:
    """One object and what happens to it."""
    existing = None if action is Action.CREATE else meta(kind, target)
    if body is None and action is not Action.DELETE:
        body = service_body() if kind is Kind.SERVICE else EndpointsBody((group("10.0.0.1"),), (), ())
    return Change(
        action=action, kind=kind, target=target, name=target.name, body=body, existing=existing, ready=ready,
        not_ready=not_ready, reason=said(reason) if reason else None,
    )  # fmt: skip


def plan(
    *changes: Change,
    target: Target = TARGET,
    query: Query = QUERY,
    conflicts: tuple[Conflict, ...] = (),
    skipped: tuple[Skipped, ...] = (),
    warnings: tuple[Reason, ...] = (),
    held: tuple[Held, ...] = (),
    ready: int = 0,
    not_ready: int = 0,
) -> Plan:
    """What one target needs."""
    return Plan(
        target, (query,), changes, conflicts=conflicts, skipped=skipped, warnings=warnings, held=held, ready=ready,
        not_ready=not_ready,
    )  # fmt: skip


def done(the_plan: Plan, *failures: tuple[Change, BridgeError]) -> Outcome:
    """The plan with everything applied but what failed."""
    failed = tuple(Failure(c, e) for c, e in failures)
    bad = {id(f.change) for f in failed}
    return Outcome(the_plan, tuple(c for c in the_plan.writes if id(c) not in bad), failed)


def created(number: int) -> Outcome:
    """A service that is created: Service and Endpoints."""
    target = Target("storage", f"service-{number:04}")
    return Outcome(
        plan(
            change(Action.CREATE, Kind.SERVICE, target=target),
            change(Action.CREATE, Kind.ENDPOINTS, target=target, ready=1),
            target=target,
            query=Query("dc1", f"service-{number:04}"),
            ready=1,
        )
    )


def report(*outcomes: Outcome, dry_run: bool = True, unknown: dict[Query, str] | None = None) -> Report:
    """The report of these outcomes."""
    return build_report(outcomes, unknown or {}, dry_run)


def before(service: bool = True, *groups: Group) -> Current:
    """What Kubernetes holds at TARGET."""
    return Current(
        TARGET,
        CurrentService(meta(Kind.SERVICE), "ClusterIP", False, False, (Port("http", 8080),), families=(Family.IPV4,))
        if service
        else None,
        CurrentEndpoints(meta(Kind.ENDPOINTS), groups) if groups else None,
    )
