"""What an HTTPRoute says, at the edges; tests/scenarios/routes.yaml tells the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bridge.core import routes
from bridge.core.model import (
    Current,
    CurrentRoute,
    Destination,
    Instance,
    Kind,
    Known,
    Parent,
    Port,
    Query,
    Route,
    RouteRule,
    Rule,
    Status,
    Target,
)
from bridge.core.plan import plan
from bridge.core.reasons import Code, Reason
from bridge.core.retain import retain
from bridge.core.select import asks_for_routes
from bridge.core.translate import translate
from tests.unit.core.builders import OWNER, QUERY, TARGET, Cluster, instance, meta

PARENTS = (Parent("public"),)
HTTP = (Port("http", 80),)


def route(*hostnames: str, **tags: str) -> tuple[Route | Reason, tuple[Reason, ...]]:
    """What a rule with these templates gives for one instance with these meta."""
    rule = RouteRule(parents=PARENTS, hostnames=hostnames)
    found = instance(meta=tuple(tags.items()), node_meta=(("rack", "r1"),), tags=("a", "b", "v-1", "v-2"))
    return routes.route_of(rule, Target("apps", "my-web"), Query("DC1", "My_Web", "ns", "part"), [found], HTTP)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{name}.{datacenter}.{namespace}.{partition}.example.com", ["my-web.dc1.ns.part.example.com"]),
        ("{meta:app}-{node-meta:rack}.example.com", ["shop-r1.example.com"]),
        ("{tag:v-}.{meta:app}.example.com", ["1.shop.example.com", "2.shop.example.com"]),
        ("*.{meta:app}.example.com", ["*.shop.example.com"]),
    ],
)
def test_host_names_are_made_of_the_service_and_of_each_value(template: str, expected: list[str]) -> None:
    made, said = route(template, app="Shop")
    assert (made, said) == (Route(PARENTS, tuple(expected), "/", 80), ())


@pytest.mark.parametrize(
    "value", ["a_b", "a..b", "-a", "10.0.0.1", "*.x", "a" * 64, ".".join(["a" * 60] * 5), "a b", ""]
)
def test_what_a_gateway_refuses_is_no_host_name(value: str) -> None:
    made, _ = route("{meta:app}", app=value)
    assert isinstance(made, Reason)
    assert made.code is Code.ROUTE_HOSTNAME


def test_a_route_has_sixteen_host_names_at_most() -> None:
    made, said = route(*(f"{chr(97 + n)}.example.com" for n in range(20)))
    assert isinstance(made, Route)
    assert (len(made.hostnames), made.hostnames[-1], [r.code for r in said]) == (
        16,
        "p.example.com",
        [Code.ROUTE_HOSTNAMES],
    )


def test_what_gateways_say_is_a_warning_and_no_write() -> None:
    """And a route that is being deleted is left alone until it is gone."""
    rule = Rule(to=Destination(route=RouteRule(parents=PARENTS, hostnames=("{name}.example.com",))))
    known = Known((instance(),))
    cluster = Cluster()

    def planned() -> list[tuple[str, str]]:
        current = cluster.current()
        mirror = translate(TARGET, [(rule, QUERY, known)], current).mirror
        made = plan(TARGET, mirror, current, owner=OWNER)
        cluster.apply(made)
        seen.extend(made.warnings)
        return [(c.action, c.kind) for c in made.writes if c.kind is Kind.HTTP_ROUTE]

    seen: list[Reason] = []
    assert planned() == [("create", "HTTPRoute")]
    standing = cluster.route
    assert isinstance(standing, CurrentRoute)
    refused = Reason(Code.ROUTE_REFUSED, gateway="Gateway a/b", condition="Accepted", why="No", said="no")
    cluster.route = replace(standing, refused=(refused,))
    assert cluster.route == standing
    assert (planned(), seen) == ([], [refused])
    cluster.route = replace(standing, route=None, meta=replace(standing.meta, deleting=True))
    assert planned() == []


def test_what_is_held_is_kept_of_our_own_route_alone() -> None:
    standing = CurrentRoute(meta(Kind.HTTP_ROUTE), Route(PARENTS, ("a.example.com",), "/", 80))
    wanted = Route(PARENTS, (), "/api", 80)
    assert routes.kept(wanted, standing, "another") is wanted
    assert routes.kept(wanted, replace(standing, route=None), OWNER) is wanted
    assert routes.kept(wanted, standing, OWNER) == wanted
    assert routes.kept(None, standing, OWNER) is None


def test_what_is_held_takes_no_place_from_what_is_wanted() -> None:
    """Sixteen at most: what is wanted comes first."""
    standing = CurrentRoute(meta(Kind.HTTP_ROUTE), Route(PARENTS, tuple(f"a{n:02}.x" for n in range(16)), "/", 80))
    kept = routes.kept(Route(PARENTS, ("y.x", "z.x"), "/", 80), standing, OWNER)
    assert isinstance(kept, Route)
    assert (len(kept.hostnames), kept.hostnames[-2:]) == (16, ("y.x", "z.x"))


def test_host_names_of_instances_wait_for_an_instance() -> None:
    """Also beside a host name that is made of the Service alone: else those of the instances would go."""
    rule = RouteRule(parents=PARENTS, hostnames=("{name}.example.com", "{meta:host}"))
    made, said = routes.route_of(rule, TARGET, QUERY, (), HTTP)
    assert isinstance(made, Reason)
    assert (made.code, said) == (Code.ROUTE_WAITS, ())


@pytest.mark.parametrize("ready_now", [True, False])
def test_what_is_kept_keeps_its_host_names_whether_any_endpoint_is_ready(ready_now: bool) -> None:
    """What the guard holds, or a token hides, had them."""
    stood = translate(TARGET, [(_named("b.x"), QUERY, Known((_one(ready_now),)))], Current(TARGET)).mirror
    cluster = Cluster()
    cluster.apply(plan(TARGET, stood, cluster.current(), owner=OWNER))
    desired = translate(TARGET, [(_named("a.x"), QUERY, Known((_one(ready_now),)))], cluster.current()).mirror
    assert desired is not None
    kept = retain(desired, cluster.current(), removed=True, flips=True, owner=OWNER).route
    assert isinstance(kept, Route)
    assert kept.hostnames == ("a.x", "b.x")


def _named(hostname: str) -> Rule:
    return Rule(to=Destination(route=RouteRule(parents=PARENTS, hostnames=(hostname,))))


def _one(ready_now: bool) -> Instance:
    return instance(status=Status.PASSING if ready_now else Status.CRITICAL)


def test_rules_ask_for_routes_or_do_not() -> None:
    assert asks_for_routes([Rule(), Rule(to=Destination(route=RouteRule(parents=PARENTS)))])
    assert not asks_for_routes([Rule()])
