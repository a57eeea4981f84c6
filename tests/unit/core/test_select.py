"""Which services are mirrored, and under which name."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from bridge.core import select
from bridge.core.assignments import TargetAssignments
from bridge.core.model import Bounds, Destination, InstanceRules, Query, Rule, Skipped, Target
from bridge.core.reasons import Code
from tests.unit.core.builders import said


@pytest.mark.parametrize(
    ("rule", "service", "why_not"),
    [
        (Rule(), "radosgw", None),
        (Rule(services=("rados*", "db")), "radosgw", None),
        (Rule(services=("RADOS*",)), "RadosGW", None),
        (Rule(services=("web",)), "radosgw", "the name matches none of web"),
        (Rule(tags=("blue",), meta=(("env", "prod"),), filter="false"), "radosgw", None),
        (Rule(datacenters=("dc2",)), "radosgw", "datacenter dc1 is not one of dc2"),
        (Rule(datacenters=("dc2", "dc1"), services=("r?d*[wv]",)), "radosgw", None),
    ],
)
def test_a_rule_selects_services_by_name_and_datacenter_alone(rule: Rule, service: str, why_not: str | None) -> None:
    """And says why it does not; tags, meta and the filter select instances. Consul's names know no case."""
    assert select.why_not(rule, service, "dc1") == why_not


@pytest.mark.parametrize(
    ("first", "names"),
    [
        (Rule(services=("web*",)), ["first"]),
        (Rule(services=("web*",), tags=("a",)), ["first", "second"]),
        (Rule(services=("web*",), meta=(("a", "b"),)), ["first", "second"]),
        (Rule(services=("web*",), filter="x"), ["first", "second"]),
        (Rule(services=("web*",), continues=True), ["first", "second"]),
        (Rule(services=("web*",), tags=("a",), continues=False), ["first"]),
        (Rule(services=("db",)), ["second"]),
    ],
)
def test_a_rule_that_takes_all_instances_uses_a_service_up(first: Rule, names: list[str]) -> None:
    """One that takes some of them leaves it to the rules behind; `continue` overrides both."""
    named = select.choices([replace(first, name="first"), Rule(name="second")], "web-1", "dc1")
    assert [choice.rule.name for choice in named] == names
    assert [choice.target for choice in named] == [Target("default", "web-1")] * len(names)


PRIMARY = Rule(tags=("primary",), to=Destination(name="{service}-primary"))
REPLICA = Rule(tags=("replica",), to=Destination(name="{service}-replica"))
SAME = Rule(tags=("replica",), to=Destination(name="{service}-primary"))


@pytest.mark.parametrize(
    ("rules", "tags", "kept", "orders"),
    [
        ([PRIMARY, REPLICA], {"primary", "replica"}, (), [0, 1]),
        ([PRIMARY, REPLICA], {"replica"}, (), [1]),
        ([PRIMARY, REPLICA], {"replica"}, ("db-primary",), [0, 1]),
        ([PRIMARY, REPLICA], (), ("db",), []),
        ([PRIMARY, SAME], {"replica"}, (), [0, 1]),
        ([PRIMARY, SAME], (), (), []),
        ([Rule(meta=(("a", "b"),)), Rule(filter="x")], (), (), [0, 1]),
        ([Rule(tags=("primary",), to=Destination(name="---"))], (), ("db",), []),
    ],
)
def test_tags_decide_what_is_made_and_never_what_stays(
    rules: list[Rule], tags: set[str], kept: tuple[str, ...], orders: list[int]
) -> None:
    """What exists keeps its rule whichever instances have the tags; two rules for one target come and go together."""
    named = select.choices(rules, "db", "dc1")
    found = select.active(named, tags, {Target("default", name) for name in kept})
    assert [choice.order for choice in found] == orders


@pytest.mark.parametrize(
    ("service", "reason"),
    [
        ("consul", "Consul's own service"),
        ("", "a name of 0 characters"),
        ("x" * 1025, "a name of 1025 characters"),
        ("web\nweb", "control characters in its name: Consul answers no question about it"),
        ("\x1b[31m", "control characters in its name: Consul answers no question about it"),
        (".", "a name that means another path in a URL: Consul cannot be asked about it"),
        ("..", "a name that means another path in a URL: Consul cannot be asked about it"),
        ("サービス", None),
        ("etcd", None),
    ],
)
def test_some_services_are_never_mirrored(service: str, reason: str | None) -> None:
    """Tags alone never exclude: the etcd of a cluster may well be tagged k8s."""
    assert select.excluded(service) == reason


def test_a_rule_says_what_consul_is_asked() -> None:
    """Everything that Consul itself evaluates goes into the question."""
    rule = Rule(filter="Service.Port > 1", namespace="team", partition="p", peer="there")
    assert select.query_of(rule, "web", "dc1") == Query("dc1", "web", "team", "p", "there", "Service.Port > 1")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("radosgw", "radosgw"),
        ("Order_API.v2", "order-api-v2"),
        ("--x--", "x"),
        ("80", "s-80"),
        ("2048-game", "s-2048-game"),
        ("straße", "stra-e"),
        ("a" * 63, "a" * 63),
        ("a" * 64, "a" * 54 + "-ffe054fe"),
        ("9" * 62, "s-" + "9" * 52 + "-" + select.digest("9" * 62)),
        ("a" * 53 + "-" + "b" * 20, "a" * 53 + "-" + select.digest("a" * 53 + "-" + "b" * 20)),
        ("...", None),
        ("", None),
    ],
)
def test_names_become_names_of_services(text: str, name: str | None) -> None:
    """A DNS label that begins with a letter; a name that is cut ends in a hash of the whole."""
    assert select.service_name(text) == name
    assert name is None or len(name) <= 63


@pytest.mark.parametrize(
    ("namespace", "name", "query", "expected"),
    [
        ("storage", "{service}", Query("dc1", "rgw"), Target("storage", "rgw")),
        ("1team", "x", Query("dc1", "rgw"), Target("1team", "x")),
        ("{namespace}", "{service}-{datacenter}", Query("dc1", "rgw"), Target("default", "rgw-dc1")),
        ("{namespace}", "{partition}-{service}", Query("d", "w", "Team_A", "p"), Target("team-a", "p-w")),
        ("x", "{service}", Query("dc1", "{datacenter}"), Target("x", "datacenter")),
    ],
)
def test_templates_are_filled_once(namespace: str, name: str, query: Query, expected: Target) -> None:
    """A service that is called like a placeholder is not a placeholder; a namespace may begin with a digit."""
    assert select.target_of(Rule(to=Destination(namespace=namespace, name=name)), query) == expected


def test_a_name_without_letters_is_skipped_with_the_reason() -> None:
    """Nothing is made up for it."""
    found = select.target_of(Rule(), Query("dc1", "___"))
    assert found == Skipped("___", "", said("the name '___' has no letter or digit to make a name of"))


TARGET = Target("default", "web")


def claims(*wanted: tuple[str, Rule]) -> TargetAssignments:
    found = TargetAssignments()
    for name, rule in wanted:
        found.claim(Query("dc1", name), rule, TARGET)
    return found


def named(port_name: str, annotated: bool = False) -> Rule:
    return Rule(to=Destination(port_name=port_name, annotated=annotated))


@pytest.mark.parametrize(
    ("wanted", "owners", "reason"),
    [
        ([("Web", Rule()), ("web", Rule())], ["web"], "it is named exactly so"),
        ([("web.b", Rule()), ("web.a", Rule())], ["web.a"], "it comes first in order"),
        ([("web", Rule()), ("zeta", named("", annotated=True))], ["zeta"], "the Service is annotated for it"),
        ([("web-http", named("http")), ("web-metrics", named("metrics"))], ["web-http", "web-metrics"], None),
        ([("a", named("http")), ("b", named("http"))], ["a"], "it comes first in order"),
        ([("a", named("")), ("b", named("http"))], ["a"], "it comes first in order"),
        ([("a", named("http", annotated=True)), ("b", named("x"))], ["a"], "the Service is annotated for it"),
    ],
)
def test_several_services_that_want_one_name(
    wanted: list[tuple[str, Rule]], owners: list[str], reason: str | None
) -> None:
    """One, by rank; or all of them when their ports have different names. All others learn why."""
    found = claims(*wanted)
    assert [query.service for query, _ in found.winners(TARGET)] == owners
    losers = found.rejected(TARGET)
    assert {s.service for s in losers} == {name for name, _ in wanted} - set(owners)
    assert all(f"default/web goes to {owners[0]} in dc1 ({reason})" in s.reason for s in losers)


def test_a_name_goes_to_the_next_when_its_holder_goes() -> None:
    """And comes back with it; the change is reported."""
    found = claims(("web", Rule()), ("web.a", Rule()))
    assert found.withdraw(Query("dc1", "web"), TARGET) == {TARGET}
    assert [q.service for q, _ in found.winners(TARGET)] == ["web.a"]
    assert found.rejected(TARGET) == ()
    assert found.claim(Query("dc1", "web"), Rule(), TARGET) == {TARGET}
    assert [q.service for q, _ in found.winners(TARGET)] == ["web"]
    assert found.withdraw(Query("dc1", "web.a"), TARGET) == set()
    assert found.withdraw(Query("dc1", "web.a"), TARGET) == set()
    assert found.withdraw(Query("dc1", "web"), TARGET) == {TARGET}
    assert found.targets() == set()
    assert found.winners(TARGET) == ()
    assert found.rejected(TARGET) == ()


def test_an_annotated_service_and_a_rule_may_want_the_same() -> None:
    """The annotation has the name, no matter who came first; when one goes the other is still there."""
    query = Query("dc1", "web")
    found = claims(("web", named("", annotated=True)), ("web", named("http")))
    assert found.winners(TARGET) == ((query, named("", annotated=True)),)
    assert found.rejected(TARGET) == ()
    assert found.withdraw(query, TARGET) == {TARGET}
    assert found.winners(TARGET) == ((query, named("http")),)
    found.claim(query, named("", annotated=True), TARGET)
    assert found.withdraw(query, TARGET, annotated=False) == set()
    assert found.withdraw(query, TARGET, annotated=False) == set()
    assert found.withdraw(query, TARGET, annotated=True) == {TARGET}
    assert found.targets() == set()


def test_of_two_rules_for_one_target_the_first_has_it_and_the_other_learns_from_whom() -> None:
    """With the places of both; the service is the same, or another one that is even named as the target."""
    one = Rule(name="the primary", place="bridge.yaml:2:5", tags=("primary",))
    two = Rule(name="rule 2 (bridge.yaml:7:5)", place="bridge.yaml:7:5", tags=("replica",))
    db, web = Query("dc1", "db"), Query("dc1", "web")
    found = TargetAssignments()
    found.claim(web, two, TARGET, 1)
    found.claim(db, two, TARGET, 1)
    found.claim(db, one, TARGET, 0)
    why = (
        "default/web goes to db in dc1 by the primary (bridge.yaml:2:5), the first rule that sends something there; "
        "rule 2 (bridge.yaml:7:5) sends {} there as well: give one of them another `to.name`"
    )
    assert found.winners(TARGET) == ((db, one),)
    assert found.rejected(TARGET) == tuple(Skipped(name, "", said(why.format(name))) for name in ("db", "web"))
    assert found.why_lost(db, two, TARGET) == found.rejected(TARGET)[0].reason
    assert (found.why_lost(db, one, TARGET), found.why_lost(Query("dc1", "x"), one, TARGET)) == (None, None)
    assert found.withdraw(db, TARGET, order=0) == {TARGET}
    assert (found.wants(db, TARGET), found.winners(TARGET)) == (True, ((web, two),))
    assert found.why_lost(db, two, TARGET) == (
        "default/web goes to web in dc1 (it is named exactly so); give one of them another name"
    )


def test_two_rules_with_different_port_names_share_a_service_also_for_one_consul_service() -> None:
    """Instances that differ in their tags only, as Registrator makes them of a container's ports."""
    http, metrics = named("http"), named("metrics")
    query = Query("dc1", "web")
    found = TargetAssignments()
    found.claim(query, http, TARGET, 0)
    found.claim(query, metrics, TARGET, 1)
    assert found.winners(TARGET) == ((query, http), (query, metrics))
    assert found.rejected(TARGET) == ()


def test_a_claim_costs_the_same_in_a_large_catalog() -> None:
    """20,000 services, 2,000 of them on one name, are claimed and asked for within seconds, not minutes."""
    found = TargetAssignments()
    began = time.process_time()
    for number in range(20_000):
        target = TARGET if number % 10 == 0 else Target("default", f"s{number}")
        found.claim(Query("dc1", f"s{number}"), Rule(), target)
        found.winners(target)
    assert time.process_time() - began < 5
    assert len(found.rejected(TARGET)) == 1999


@pytest.mark.parametrize(
    ("earlier", "later", "covered"),
    [
        ({}, {}, True),
        ({}, {"services": ("a",)}, True),
        ({"services": ("*",)}, {}, False),
        ({"services": ("a*",)}, {"services": ("abc",)}, True),
        ({"services": ("a*",)}, {"services": ("ab*",)}, True),
        ({"services": ("a*c",)}, {"services": ("a*",)}, False),
        ({"services": ("a?",)}, {"services": ("a*",)}, False),
        ({"services": ("a?",)}, {"services": ("A?",)}, True),
        ({"services": ("a*",)}, {"services": ("abc", "x")}, False),
        ({"tags": ("t",)}, {}, False),
        ({"tags": ("t",)}, {"tags": ("t", "u")}, False),
        ({"tags": ("t",), "continues": False}, {}, True),
        ({"continues": True}, {}, False),
        ({"datacenters": ("one",)}, {}, False),
        ({"datacenters": ("one", "two")}, {"datacenters": ("two",)}, True),
        ({"filter": "x"}, {"filter": "y"}, False),
        ({}, {"filter": "y"}, True),
    ],
)
def test_a_rule_that_an_earlier_one_covers_is_never_used(
    earlier: dict[str, object], later: dict[str, object], covered: bool
) -> None:
    """One that takes some instances of a service covers nothing."""
    one, two = Rule(name="one", **earlier), Rule(name="two", **later)  # type: ignore[arg-type]  # of a table
    assert select.shadowed([one, two]) == ([(two, one)] if covered else [])


def test_a_pinned_rule_names_its_services_and_nothing_listed_is_chosen_by_it() -> None:
    """In each of its datacenters; a rule that takes all instances of a service uses it up; it shadows nothing."""
    one = Rule(services=("web", "db"), datacenters=("dc1", "dc2"), peer="cloud", unlisted=True)
    two = Rule(services=("web",), datacenters=("dc1",), peer="cloud", unlisted=True, name="two")
    some = replace(two, tags=("blue",), filter="x")
    assert select.why_not(one, "web", "dc1") == "it is about another namespace, partition or peer"
    found = select.unlisted([Rule(), some, one, two])
    assert [(c.order, c.query.datacenter, c.query.service, c.query.peer, c.query.filter) for c in found] == [
        (1, "dc1", "web", "cloud", "x"),
        (2, "dc1", "web", "cloud", ""),
        (2, "dc2", "web", "cloud", ""),
        (2, "dc1", "db", "cloud", ""),
        (2, "dc2", "db", "cloud", ""),
    ]
    assert found[0].target == Target("default", "web")
    assert select.shadowed([Rule(), one, two]) == []


RESERVED = ("kube-*", "default", "bridge")


@pytest.mark.parametrize(
    ("allow", "deny", "template", "datacenter", "refused"),
    [
        ((), (), "{datacenter}", "storage", ""),
        ((), (), "{datacenter}", "kube-system", "namespace kube-system is reserved"),
        ((), (), "{datacenter}", "default", "namespace default is reserved"),
        ((), (), "{datacenter}", "bridge", "namespace bridge is reserved"),
        ((), (), "default", "dc1", ""),
        (("default", "team-*"), (), "{datacenter}", "default", ""),
        (("team-*",), (), "{datacenter}", "team-a", ""),
        (("team-*",), (), "{datacenter}", "shop", "namespace shop is not in guard.namespaces"),
        (("team-*",), (), "shop", "dc1", "namespace shop is not in guard.namespaces"),
        ((), ("x*",), "shop", "dc1", ""),
        ((), ("shop", "x*"), "shop", "dc1", "namespace shop is in guard.deny_namespaces (shop)"),
        (("shop",), ("s*",), "{datacenter}", "shop", "namespace shop is in guard.deny_namespaces (s*)"),
    ],
)
def test_namespaces_that_may_be_written(
    allow: tuple[str, ...], deny: tuple[str, ...], template: str, datacenter: str, refused: str
) -> None:
    """What Consul holds leads to a reserved one only when it is named; what a rule names needs no more than that."""
    bounds = Bounds(namespaces=allow, deny_namespaces=deny, reserved_namespaces=RESERVED)
    rule = Rule(to=Destination(namespace=template), instances=InstanceRules(bounds=bounds))
    found = select.target_of(rule, Query(datacenter, "web"))
    if refused:
        assert isinstance(found, Skipped)
        assert found.reason.startswith(refused)
    else:
        assert isinstance(found, Target)


@pytest.mark.parametrize(
    ("services", "wanted", "kept", "expected"),
    [
        (("web",), ("s3",), (), []),
        (("web",), ("S3",), (), [Code.TAG_CASE]),
        (("w*",), ("S3",), (), [Code.TAG_CASE]),
        (("WEB",), ("s3", "sql"), (), [Code.TAG_ABSENT]),
        (("w*",), ("sql",), (), []),
        ((), ("sql",), (), []),
        (("web",), ("sql",), ("web",), []),
    ],
)
def test_tags_of_a_rule_that_look_like_a_mistake(
    services: tuple[str, ...], wanted: tuple[str, ...], kept: tuple[str, ...], expected: list[Code]
) -> None:
    """Another case always, one that is not there when the rule is about this service; an object says it itself."""
    named = select.choices([Rule(services=services, tags=wanted)], "web", "dc1")
    found = select.unmet("web", named, frozenset({"s3", "blue"}), {Target("default", name) for name in kept})
    assert [reason.code for _, reason in found] == expected
    assert all("blue, s3" in reason for _, reason in found if reason.code is Code.TAG_ABSENT)
    assert [reason for _, reason in select.unmet("web", named, frozenset())] == (
        [f"no instance has the tag {tag!r}; there are no tags" for tag in wanted]
        if "web" in map(str.lower, services)
        else []
    )


@pytest.mark.parametrize(
    ("pattern", "several"), [("orders-db", False), ("orders-*", True), ("db?", True), ("[ab]", True)]
)
def test_a_glob_may_match_several_names(pattern: str, several: bool) -> None:
    """Else a rule names one service in full, and may be told when Consul does not list it."""
    assert select.is_glob(pattern) is several


@pytest.mark.parametrize("pattern", ["web", "WEB", "we*", "W?b", "[vw]eb", "wob", "x*", "web.", "we"])
def test_a_glob_is_matched_against_many_names_as_against_one(pattern: str) -> None:
    """Whatever its case; the names are in lower case."""
    assert select.names_any(pattern, {"web", "db"}) == select.is_named((pattern,), "Web")
