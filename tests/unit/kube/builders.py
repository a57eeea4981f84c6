"""Changes and objects for tests: what a test is not about stays in here."""

from __future__ import annotations

from typing import Any

from bridge.core.model import (
    Action,
    Body,
    Change,
    Endpoint,
    EndpointsBody,
    Family,
    Group,
    Kind,
    Meta,
    Pairs,
    Parent,
    Port,
    Route,
    RouteBody,
    ServiceBody,
    SliceBody,
    Target,
)

OWNER = "default"
HTTP = Port("http", 8080)
ROUTE = Route((Parent("public", "infra", "https", 443), Parent("public")), ("a.example.com",), "/api", 8080)


def marks(owner: str = OWNER) -> Pairs:
    """Labels of ownership."""
    return (("app.kubernetes.io/managed-by", "consul-bridge"), ("consul-bridge/owner", owner))


ORIGIN: Pairs = (("consul-bridge/datacenter", "dc1"), ("consul-bridge/service", "radosgw"))


def ready(*addresses: str) -> tuple[Endpoint, ...]:
    """Ready endpoints."""
    return tuple(Endpoint(a, ready=True) for a in addresses)


def down(*addresses: str) -> tuple[Endpoint, ...]:
    """Endpoints that are neither ready nor serving."""
    return tuple(Endpoint(a, ready=False, serving=False) for a in addresses)


def group(*endpoints: Endpoint, ports: tuple[Port, ...] = (HTTP,), family: Family = Family.IPV4) -> Group:
    """A group."""
    return Group(family, ports, endpoints)


def service(
    *ports: Port,
    headless: bool = False,
    families: tuple[Family, ...] = (Family.IPV4,),
    owner: str = OWNER,
    labels: Pairs = (),
    annotations: Pairs = ORIGIN,
) -> ServiceBody:
    """Content of a Service."""
    return ServiceBody(ports or (HTTP,), headless, families, tuple(sorted((*marks(owner), *labels))), annotations)


def endpoints(*groups: Group, owner: str = OWNER, labels: Pairs = (), annotations: Pairs = ORIGIN) -> EndpointsBody:
    """Content of an Endpoints object."""
    return EndpointsBody(groups or (group(*ready("10.0.0.1")),), tuple(sorted((*marks(owner), *labels))), annotations)


def slice_of(service_name: str, found: Group | None = None, owner: str = OWNER) -> SliceBody:
    """Content of a slice."""
    return SliceBody(service_name, found or group(*ready("10.0.0.1")), marks(owner), ORIGIN)


KIND = {
    ServiceBody: Kind.SERVICE,
    EndpointsBody: Kind.ENDPOINTS,
    SliceBody: Kind.ENDPOINT_SLICE,
    RouteBody: Kind.HTTP_ROUTE,
}


def create(body: Body, namespace: str = "default", name: str = "radosgw") -> Change:
    """A CREATE; slices are called `name` as well."""
    return _change(Action.CREATE, body, None, namespace, name)


def update(body: Body, existing: Meta) -> Change:
    """An UPDATE of what was seen."""
    return _change(Action.UPDATE, body, existing, existing.namespace, existing.name)


def delete(existing: Meta) -> Change:
    """A DELETE of what was seen."""
    return Change(
        action=Action.DELETE,
        kind=existing.kind,
        target=Target(existing.namespace, existing.name),
        name=existing.name,
        body=None,
        existing=existing,
    )


def _change(action: Action, body: Body, existing: Meta | None, namespace: str, name: str) -> Change:
    owner = body.service if isinstance(body, SliceBody) else name
    return Change(
        action=action, kind=KIND[type(body)], target=Target(namespace, owner), name=name, body=body, existing=existing
    )


def bodies(name: str = "radosgw") -> dict[Kind, Body]:
    """One body of each kind that every cluster has."""
    return {Kind.SERVICE: service(), Kind.ENDPOINTS: endpoints(), Kind.ENDPOINT_SLICE: slice_of(name)}


def route() -> RouteBody:
    """Content of an HTTPRoute."""
    return RouteBody(ROUTE, marks(), ORIGIN)


def raw_service(namespace: str, name: str, *, labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """A Service as a user would write it."""
    content = {"ports": [{"name": "http", "port": 80, "protocol": "TCP"}], **spec}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": labels or {}},
        "spec": content,
    }


def raw_endpoints(namespace: str, name: str, *addresses: str) -> dict[str, Any]:
    """An Endpoints object as another program would write it."""
    return {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": name, "namespace": namespace},
        "subsets": [{"addresses": [{"ip": a} for a in addresses], "ports": [{"name": "http", "port": 80}]}],
    }
