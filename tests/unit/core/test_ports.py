"""Ports of endpoints and of the Service in front of them, and the names that join the two."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bridge.core.model import (
    Current,
    Destination,
    Instance,
    InstanceRules,
    Kind,
    Known,
    Port,
    Query,
    Rule,
    ServiceBody,
    TaggedAddress,
)
from bridge.core.ports import in_order, legal
from bridge.core.reasons import Code, codes_of
from bridge.core.translate import translate
from tests.unit.core.builders import (
    OWNER,
    TARGET,
    Cluster,
    instance,
    instances,
    mirror_of,
    named,
    planned,
    rule,
    service,
    settle,
    translated,
)

MULTI = named(("http", 8080), ("grpc", 9090), default="http")


def ports_of(*found: Instance, by: Rule | None = None, current: Current | None = None) -> list[tuple[Port, ...]]:
    """Ports of the groups."""
    return [g.ports for g in mirror_of(found, by, current).groups]


@pytest.mark.parametrize(
    ("found", "by", "ports"),
    [
        (instance(), rule(), (Port("", 8080),)),
        (instance(), rule(port=80, port_name="http", app_protocol="h2c"), (Port("http", 8080, "TCP", "h2c"),)),
        (instance(port=0), rule(port=80), (Port("", 80),)),
        (instance(meta=(("protocol", "udp"),)), rule(), (Port("", 8080, "UDP"),)),
        (instance(meta=(("protocol", "http"),)), rule(), (Port("", 8080),)),
        (instance(meta=(("protocol", "udp"),)), rule(protocol="SCTP"), (Port("", 8080, "SCTP"),)),
        (instance(ports=MULTI), rule(), (Port("grpc", 9090), Port("http", 8080))),
        (instance(ports=MULTI), rule(port_name="grpc"), (Port("grpc", 9090),)),
        (instance(ports=MULTI, port=8080), rule(port_name="web"), (Port("web", 8080),)),
        (instance(ports=named(("a.b", 1), ("a_b", 2), default="a_b")), rule(), (Port("a-b", 2),)),
        (instance(ports=named(("!", 1), ("x", 70000))), rule(), (Port("port-1", 1),)),
    ],
)
def test_ports_of_endpoints(found: Instance, by: Rule, ports: tuple[Port, ...]) -> None:
    """As the table in `ports` says."""
    assert ports_of(found, by=by) == [ports]


@pytest.mark.parametrize(
    ("found", "by", "warnings"),
    [
        (instance(ports=MULTI), Rule(), ()),
        (instance(ports=MULTI), rule(port_name="grpc"), ()),
        (
            instance(ports=named(("a.b", 1), ("a_b", 2), ("c", 3), default="a_b")),
            Rule(),
            ("the ports a_b and a.b become one name, 'a-b': a.b is not mirrored",),
        ),
        (
            instance(ports=named(("a.b", 1), ("a_b", 2), default="a_b")),
            rule(annotated=True),
            ("the ports a_b and a.b become one name, 'a-b': a.b is not mirrored",),
        ),
        (instance(ports=named(("a.b", 1), ("a_b", 2), default="a_b")), rule(port_name="a-b"), ()),
        (
            instance(ports=MULTI, port=8080),
            rule(port_name="web"),
            ("no port is called 'web' (`port_name`) but http, grpc: the default one has that name now",),
        ),
        (
            instance(ports=named(("!", 1), ("x", 70000))),
            Rule(),
            ("no number between 1 and 65535, so not mirrored: the port x",),
        ),
        (
            instance(ports=MULTI, tagged_addresses=(TaggedAddress("lan", "10.0.0.9", 8080),)),
            Rule(instances=InstanceRules(address="lan")),
            ("the address lan has a port of its own, so these are not mirrored: grpc",),
        ),
        (
            instance(ports=MULTI, tagged_addresses=(TaggedAddress("lan", "10.0.0.9", 8080),)),
            Rule(to=Destination(port_name="web"), instances=InstanceRules(address="lan")),
            (),
        ),
        (
            instance(ports=named(("http", 80)), tagged_addresses=(TaggedAddress("lan", "10.0.0.9", 80),)),
            Rule(instances=InstanceRules(address="lan")),
            (),
        ),
        (instance("127.0.0.1", ports=named(("a.b", 1), ("a_b", 2))), Rule(), ()),
    ],
)
def test_a_named_port_that_is_dropped_or_replaced_is_reported(
    found: Instance, by: Rule, warnings: tuple[str, ...]
) -> None:
    """Once, however many instances there are; nothing is reported of what is skipped anyway."""
    many = [replace(found, node=f"n{n}") for n in range(3)]
    assert translated(many, by, Current(TARGET, service(None if by.to.annotated else OWNER))).warnings == warnings


def test_the_service_names_the_protocols_too() -> None:
    """Transport and application, with instances and without."""
    by = rule(port=53, port_name="dns", protocol="UDP", app_protocol="example.com/dns")
    assert mirror_of([instance()], by).service_ports == (Port("dns", 53, "UDP", "example.com/dns"),)
    assert mirror_of([], by).service_ports == (Port("dns", 53, "UDP", "example.com/dns"),)
    standing = Current(TARGET, service(ports=(Port("dns", 53, "UDP"),)))
    assert mirror_of([], by, standing).service_ports == (Port("dns", 53, "UDP", "example.com/dns"),)
    without = rule(app_protocol="http")
    assert mirror_of([instance()], without).service_ports == (Port("", 8080, "TCP", "http"),)


@pytest.mark.parametrize(("number", "usable"), [(0, False), (1, True), (65535, True), (65536, False), (-1, False)])
def test_what_is_a_port(number: int, usable: bool) -> None:
    """TCP has 65,535 of them."""
    assert legal(number) is usable


def test_the_default_port_comes_first_then_the_lowest() -> None:
    """Where order matters."""
    found = in_order(named(("c", 3), ("b", 1), ("a", 2), ("off", 0), default="a"))
    assert [p.name for p in found] == ["a", "b", "c"]


def test_instances_on_different_ports_form_groups_of_one_name() -> None:
    """Each address is reached on its own port behind one Service port: the commonest, of equals the lowest."""
    mirror = mirror_of([instance("10.0.0.1", 8081), instance("10.0.0.2", 8080)])
    assert [(g.ports[0], g.endpoints[0].address) for g in mirror.groups] == [
        (Port("", 8080), "10.0.0.2"),
        (Port("", 8081), "10.0.0.1"),
    ]
    assert mirror.service_ports == (Port("", 8080),)
    assert mirror_of([instance("10.0.0.1", 8081), *instances(3)[1:]]).service_ports == (Port("", 8080),)


def test_a_single_port_beside_named_ones_gets_the_default_ports_name() -> None:
    """An unnamed port beside named ones is refused by Kubernetes, and would not be reachable."""
    mirror = mirror_of([instance(ports=MULTI), instance("10.0.0.2", 8000)], rule(port=80))
    assert {p.name for g in mirror.groups for p in g.ports} == {"http", "grpc"}
    assert mirror.service_ports == (Port("grpc", 9090), Port("http", 80))


def test_the_commonest_default_port_gives_the_name() -> None:
    """Of equals the first in order."""
    api, http = named(("api", 1), default="api"), named(("http", 2), default="http")
    found = [instance("10.0.0.1", ports=api), instance("10.0.0.2", ports=http), instance("10.0.0.3", 3)]
    assert {g.ports[0].name for g in mirror_of(found).groups if g.ports[0].number == 3} == {"api"}
    found.append(instance("10.0.0.4", ports=http))
    assert {g.ports[0].name for g in mirror_of(found).groups if g.ports[0].number == 3} == {"http"}


@pytest.mark.parametrize(
    ("standing", "by", "ports"),
    [
        ((Port("", 7000),), rule(), (Port("", 7000),)),
        ((Port("web", 7000),), rule(), (Port("web", 7000),)),
        ((Port("web", 7000),), rule(port_name="http"), (Port("http", 7000),)),
        ((Port("", 7000),), rule(port_name="http"), (Port("http", 7000),)),
        ((Port("web", 7000),), rule(port=80), (Port("web", 80),)),
        ((Port("a", 1), Port("b", 2)), rule(), (Port("", 8080),)),
    ],
)
def test_the_services_port_stays_while_it_lives(standing: tuple[Port, ...], by: Rule, ports: tuple[Port, ...]) -> None:
    """Clients have it in their settings; only the rule changes it. The endpoints follow its name."""
    mirror = mirror_of([instance()], by, Current(TARGET, service(ports=standing)))
    assert mirror.service_ports == ports
    assert [g.ports for g in mirror.groups] == [(Port(ports[0].name, 8080),)]


@pytest.mark.parametrize(
    ("standing", "by", "ports"),
    [
        ((Port("", 7000),), rule(), (Port("", 7000),)),
        ((Port("a", 1), Port("b", 2)), rule(), (Port("a", 1), Port("b", 2))),
        ((Port("a", 1), Port("b", 2)), rule(port=80), (Port("a", 1), Port("b", 2))),
        ((Port("a", 1), Port("b", 2)), rule(port=80, port_name="a"), (Port("a", 80), Port("b", 2))),
        ((Port("", 7000),), rule(port_name="http"), (Port("http", 7000),)),
        ((Port("", 7000),), rule(port_name="http", port=80), (Port("http", 80),)),
    ],
)
def test_the_services_ports_survive_a_time_without_instances(
    standing: tuple[Port, ...], by: Rule, ports: tuple[Port, ...]
) -> None:
    """Nothing is forgotten when the last instance is gone for a while."""
    assert mirror_of([], by, Current(TARGET, service(ports=standing))).service_ports == ports


def test_a_service_that_becomes_multi_port_keeps_its_number_for_the_default_port() -> None:
    """Who knows the Service by that number goes on reaching the same thing."""
    mirror = mirror_of([instance(ports=MULTI)], None, Current(TARGET, service(ports=(Port("", 80),))))
    assert mirror.service_ports == (Port("grpc", 9090), Port("http", 80))


def test_ports_of_an_alias_or_of_a_service_with_a_selector_are_not_used() -> None:
    """They are not kept when the Service is taken over, or never will be."""
    alias = Current(TARGET, service(ports=(Port("x", 1),), type="ExternalName"))
    assert mirror_of([instance()], None, alias).service_ports == (Port("", 8080),)
    assert mirror_of(
        [instance()], None, Current(TARGET, service(ports=(Port("x", 1),), has_selector=True))
    ).service_ports == (Port("", 8080),)


def test_two_ports_on_one_number_cannot_both_be_had() -> None:
    """What the rule says goes first, then what is there, then what most have; the other is reported."""
    sources = [
        (rule(port_name="http"), Query("dc1", "a"), Known(instances(2))),
        (rule(port_name="admin"), Query("dc1", "b"), Known(instances(1))),
    ]
    found = translate(TARGET, sources)
    assert found.mirror is not None
    assert found.mirror.service_ports == (Port("http", 8080),)
    assert found.warnings == (
        "port 'admin' cannot be reached: the Service's TCP port 8080 is 'http'; "
        "give one of them another number (`port`)",
    )
    standing = Current(TARGET, service(ports=(Port("admin", 8080),)))
    kept = translate(TARGET, sources, standing).mirror
    assert kept is not None
    assert kept.service_ports == (Port("admin", 8080),)
    forced = translate(TARGET, [(rule(port_name="http", port=8080), *sources[0][1:]), sources[1]], standing).mirror
    assert forced is not None
    assert forced.service_ports == (Port("http", 8080),)


def test_a_rules_port_without_instances_waits_beside_others() -> None:
    """A named port that no instance has yet is shown as soon as a number is known, from the rule or from before."""
    http = (rule(port_name="http"), Query("dc1", "a"), Known(instances(1)))
    metrics = (rule(port_name="metrics"), Query("dc1", "b"), Known(()))
    found = translate(TARGET, [http, metrics]).mirror
    assert found is not None
    assert found.service_ports == (Port("http", 8080),)
    standing = Current(TARGET, service(ports=(Port("http", 8080), Port("metrics", 9000))))
    found = translate(TARGET, [http, metrics], standing).mirror
    assert found is not None
    assert found.service_ports == (Port("http", 8080), Port("metrics", 9000))


def test_an_unnamed_source_beside_a_named_one_gets_a_name() -> None:
    """Claims never lets this happen; Kubernetes would refuse it."""
    found = translate(
        TARGET,
        [
            (rule(), Query("dc1", "a"), Known(instances(1))),
            (rule(port_name="metrics"), Query("dc1", "b"), Known(instances(1, 9000))),
        ],
    ).mirror
    assert found is not None
    assert found.service_ports == (Port("default", 8080), Port("metrics", 9000))


@pytest.mark.parametrize(
    ("found", "by", "standing", "service_ports"),
    [
        ("tcp udp", rule(), (), (Port("tcp", 8080), Port("udp", 8080, "UDP"))),
        ("udp", rule(), (), (Port("", 8080, "UDP"),)),
        ("tcp udp", rule(), (Port("", 53, "UDP"),), (Port("tcp", 8080), Port("udp", 53, "UDP"))),
        ("tcp udp", rule(), (Port("web", 53),), (Port("web", 53), Port("web-udp", 8080, "UDP"))),
        ("tcp udp", rule(), (Port("udp", 53, "UDP"),), (Port("tcp", 8080), Port("udp", 53, "UDP"))),
        ("udp", rule(), (Port("tcp", 80), Port("udp", 53, "UDP")), (Port("udp", 53, "UDP"),)),
        ("tcp", rule(), (Port("tcp", 80), Port("udp", 53, "UDP")), (Port("tcp", 80),)),
        ("tcp", rule(), (Port("tcp", 80), Port("udp", 53)), (Port("tcp", 80),)),
        ("tcp", rule(), (Port("a", 80), Port("b", 53)), (Port("", 8080),)),
        ("tcp udp", rule(port=53), (), (Port("tcp", 53), Port("udp", 53, "UDP"))),
        ("tcp udp", rule(port=53, port_name="dns"), (), (Port("dns", 53), Port("dns-udp", 53, "UDP"))),
        (
            "tcp udp",
            rule(port=53, port_name="dns", protocol="UDP"),
            (),
            (Port("dns", 53, "UDP"), Port("dns-tcp", 53)),
        ),
        ("tcp udp", rule(port_name="dns"), (Port("dns", 53, "UDP"),), (Port("dns", 53, "UDP"), Port("dns-tcp", 8080))),
        (
            "tcp udp",
            rule(port_name="d" * 63),
            (),
            (Port("d" * 58 + "-udp", 8080, "UDP"), Port("d" * 63, 8080)),
        ),
    ],
)  # fmt: skip
def test_of_one_name_in_several_protocols_each_has_a_port(
    found: str, by: Rule, standing: tuple[Port, ...], service_ports: tuple[Port, ...]
) -> None:
    """One keeps the name, all others add their protocol; numbers stay with the protocol that had them."""
    by = replace(
        by, to=replace(by.to, protocol_from=(("meta:over=udp", "UDP"), ("tag:tcp", "TCP"), ("tag:udp", "UDP")))
    )
    known = [
        instance(f"10.0.0.{n}", **({"tags": (word,)} if n % 2 else {"meta": (("over", word),)}))
        for n, word in enumerate(found.split(), 1)
    ]
    current = Current(TARGET, service(ports=standing)) if standing else None
    mirror = mirror_of(known, by, current)
    assert mirror.service_ports == service_ports
    assert {(p.name, p.protocol) for g in mirror.groups for p in g.ports} == {
        (p.name, p.protocol) for p in service_ports
    }


def test_a_name_that_a_protocol_would_give_may_be_taken() -> None:
    """Each name is on the Service once, whatever it costs."""
    by = rule(protocol_from=(("tag:udp", "UDP"),))
    offered = named(("dns", 53), ("dns-udp", 54), default="dns")
    mirror = mirror_of([instance(ports=offered), instance("10.0.0.2", ports=named(("dns", 53)), tags=("udp",))], by)
    assert mirror.service_ports == (Port("dns", 53), Port("dns-udp", 54), Port("dns-udp-udp", 53, "UDP"))


# --------------------------------------------------------------------------- what the Service shows


def targets_of(*found: Instance, by: Rule | None = None, current: Current | None = None) -> tuple[int | str, ...]:
    """The targetPorts of the Service that is to be written."""
    standing = current or Current(TARGET)
    (change,) = [c for c in planned(mirror_of(found, by, standing), standing).changes if c.kind is Kind.SERVICE]
    assert isinstance(change.body, ServiceBody)
    return change.body.target_ports


@pytest.mark.parametrize(
    ("numbers", "standing", "target"),
    [
        ((8080, 8080, 8081), None, 8080),
        ((8081, 8080), None, 8080),
        ((8081, 8080), 8081, 8081),
        ((8081, 8080), "http", 8080),
        ((8081, 8080, 8080), 8081, 8080),
        ((), 8081, 8081),
        ((), "http", 80),
    ],
)
def test_a_target_port_is_the_commonest_of_the_instances(
    numbers: tuple[int, ...], standing: int | str | None, target: int
) -> None:
    """Of equals the one that exists, else the lowest; without instances nothing changes."""
    found = [instance(f"10.0.0.{n}", number) for n, number in enumerate(numbers, 1)]
    now = service(ports=(Port("", 80),), target_ports=(standing,)) if standing else None
    assert targets_of(*found, by=rule(port=80), current=Current(TARGET, now)) == (target,)


def test_target_ports_of_an_alias_are_not_kept() -> None:
    """It has no ports that anyone knows."""
    alias = service(ports=(Port("", 80),), target_ports=(8081,), type="ExternalName")
    assert targets_of(instance(), instance("10.0.0.2", 8081), by=rule(port=80), current=Current(TARGET, alias)) == (
        8080,
    )


# --------------------------------------------------------------------------- a user's Service


@pytest.mark.parametrize(
    ("ports", "target_ports", "found", "expected"),
    [
        ((Port("", 80),), (80,), instance(), (Port("", 8080),)),
        ((Port("http", 80),), (80,), instance(), (Port("http", 8080),)),
        ((Port("http", 80),), (9000,), instance(), (Port("http", 9000),)),
        ((Port("http", 80),), (), instance(port=0), (Port("http", 80),)),
        ((Port("a", 80), Port("b", 81)), (80, "b"), instance(port=0), (Port("a", 80), Port("b", 81))),
        ((Port("a", 80), Port("b", 81)), (80, 81), instance(), (Port("a", 8080),)),
        ((Port("a", 80), Port("b", 8080)), (80, 8080), instance(), (Port("b", 8080),)),
        ((Port("a", 80), Port("b", 8080)), ("b", "nobody"), instance(), (Port("b", 8080),)),
        ((Port("web", 80),), ("grpc",), instance(ports=MULTI), (Port("web", 9090),)),
        ((Port("grpc", 80),), ("http",), instance(ports=MULTI), (Port("grpc", 8080),)),
        ((Port("web", 80),), (80,), instance(ports=MULTI), (Port("web", 8080),)),
        ((Port("a", 1), Port("b", 1, "UDP")), (1, 1), instance(), (Port("a", 8080), Port("b", 8080, "UDP"))),
        ((Port("a", 1), Port("b", 9090)), (1, 9090), instance(ports=MULTI), (Port("a", 8080), Port("b", 9090))),
        ((Port("a", 80), Port("b", 81)), (80, 9000), instance(), (Port("a", 8080), Port("b", 9000))),
        ((Port("grpc", 1), Port("http", 2)), (1, 2), instance(ports=MULTI), (Port("grpc", 9090), Port("http", 8080))),
        ((Port("grpc", 1), Port("web", 2)), (1, 2), instance(ports=MULTI), (Port("grpc", 9090), Port("web", 8080))),
        ((Port("dns", 53, "UDP", "dns"),), (53,), instance(), (Port("dns", 8080, "UDP", "dns"),)),
    ],
)
def test_a_user_managed_service_says_which_ports(
    ports: tuple[Port, ...], target_ports: tuple[int, ...], found: Instance, expected: tuple[Port, ...]
) -> None:
    """As the table in `match` says. The Service itself is not part of the mirror."""
    current = Current(TARGET, service(None, ports, target_ports=target_ports))
    mirror = mirror_of([found], rule(annotated=True), current)
    assert mirror.service_ports is None
    assert [g.ports for g in mirror.groups] == [expected]


def test_a_tagged_addresss_port_goes_before_named_ones_there_too() -> None:
    """It is the one that belongs to the address."""
    by = Rule(to=Destination(annotated=True), instances=InstanceRules(address="lan"))
    found = instance(ports=MULTI, tagged_addresses=(TaggedAddress("lan", "10.0.0.5", 9000),))
    current = Current(TARGET, service(None, (Port("grpc", 80),)))
    assert ports_of(found, by=by, current=current) == [(Port("grpc", 9000),)]


@pytest.mark.parametrize("number", [-1, 70000])
def test_a_tagged_addresss_port_that_is_none_skips_the_instance(number: int) -> None:
    """Consul takes any number; the instance's other ports are not those of that address."""
    by = Rule(to=Destination(annotated=True), instances=InstanceRules(address="lan"))
    found = instance(ports=MULTI, tagged_addresses=(TaggedAddress("lan", "10.0.0.5", number),))
    done = translated([found], by, Current(TARGET, service(None)))
    assert [s.reason for s in done.skipped] == [f"port {number} is not between 1 and 65535"]


@pytest.mark.parametrize(
    ("current", "port", "reason"),
    [
        (Current(TARGET), 8080, "the Service has no ports"),
        (Current(TARGET, service(None, ())), 8080, "the Service has no ports"),
        (Current(TARGET, service(None)), 70000, "port 70000 is not between 1 and 65535"),
    ],
)
def test_instances_that_fit_no_port_of_a_user_managed_service_are_skipped(
    current: Current, port: int, reason: str
) -> None:
    """With the reason."""
    found = translated([instance(port=port)], rule(annotated=True), current)
    assert found.mirror is not None
    assert found.mirror.groups == ()
    assert [s.reason for s in found.skipped] == [reason]


@pytest.mark.parametrize(
    ("ports", "found", "codes"),
    [
        ((Port("", 80),), instance(), ()),
        ((Port("web", 80),), instance(), ()),
        ((Port("web", 80),), instance(ports=MULTI), ("port_guessed",)),
        ((Port("http", 80), Port("grpc", 90)), instance(ports=MULTI), ()),
        ((Port("http", 80), Port("web", 90)), instance(ports=MULTI), ("port_guessed",)),
        ((Port("http", 80), Port("grpc", 90), Port("x", 1)), instance(ports=MULTI), ("port_unserved",)),
        ((Port("a", 80), Port("b", 90)), instance(), ("port_guessed", "port_unserved")),
        ((Port("x", 1), Port("y", 2)), instance(ports=MULTI), ()),
    ],
)
def test_guesses_and_ports_without_endpoints_are_reported(
    ports: tuple[Port, ...], found: Instance, codes: tuple[str, ...]
) -> None:
    """One port on either side is no guess."""
    current = Current(TARGET, service(None, ports))
    assert codes_of(translated([found], rule(annotated=True), current).warnings) == codes


def test_where_the_port_is_ambiguous_the_instance_is_skipped() -> None:
    """Two ports on either side, and nothing in common."""
    current = Current(TARGET, service(None, (Port("x", 1), Port("y", 2))))
    (skipped,) = translated([instance(ports=MULTI)], rule(annotated=True), current).skipped
    assert codes_of([skipped.reason]) == (Code.PORTS_AMBIGUOUS,)
    assert "(http 8080, grpc 9090)" in skipped.reason


def test_a_headless_service_of_a_user_may_have_no_ports() -> None:
    """Its addresses are there for DNS."""
    current = Current(TARGET, service(None, (), headless=True))
    assert ports_of(instance(), instance("10.0.0.2", 0), by=rule(annotated=True), current=current) == [()]


def test_a_number_that_goes_to_another_port_is_replaced_in_the_same_pass() -> None:
    """The second pass finds nothing to do, although the rule's port is another one's now."""
    by = rule(port=80)
    web = instance("10.0.0.2", 0, ports=named(("grpc", 9090), ("http", 8080), default="http"))
    cluster = Cluster()
    settle(cluster, [web], by)
    before = cluster.service
    found = [web, instance("10.0.0.3", 0, ports=named(("a.b", 7000), ("a_b", 7001), default="a_b"))]
    assert before is not None
    assert [(p.name, p.number) for p in before.ports] == [("grpc", 9090), ("http", 80)]
    plans = settle(cluster, found, by)
    assert [len(p.writes) > 0 for p in plans] == [True, False]
    assert cluster.service is not None
    assert [(p.name, p.number) for p in cluster.service.ports] == [("a-b", 80), ("grpc", 9090), ("http", 8080)]


@pytest.mark.parametrize("protocols", [("tcp", "udp"), ("tcp",), ("udp",)])
def test_a_name_that_several_protocols_share_stays_when_it_comes_from_the_service(protocols: tuple[str, ...]) -> None:
    """Found by a property: one pass called the ports `http` and `http-udp`, and the next one `tcp` and `udp`."""
    cluster = Cluster()
    settle(cluster, [instance(ports=named(("http", 8080), default="http"))], rule())
    both = [instance("10.0.0.1", meta=(("protocol", "tcp"),)), instance("10.0.0.2", meta=(("protocol", "udp"),))]
    settle(cluster, both, rule())
    assert cluster.service is not None
    assert [p.name for p in cluster.service.ports] == ["http", "http-udp"]
    left = [i for i in both if dict(i.meta)["protocol"] in protocols]
    cluster.apply(planned(mirror_of(left, rule(), cluster.current()), cluster.current()))
    assert cluster.service.ports[0].name == "http"
    assert planned(mirror_of(left, rule(), cluster.current()), cluster.current()).writes == ()
