"""Why an address is missing, without reading the source."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bridge.core.assignments import TargetAssignments
from bridge.core.explain import Explanation, Row, RuleVerdict, explain
from bridge.core.model import (
    ActiveDatacenter,
    Conflict,
    Current,
    Destination,
    Held,
    Instance,
    InstanceRules,
    Kind,
    Known,
    NamedPort,
    Output,
    Plan,
    Port,
    Query,
    Rule,
    Status,
    TaggedAddress,
    Target,
    Treatment,
    Unknown,
)
from bridge.core.reasons import Code, Reason
from bridge.core.select import choices, unlisted
from tests.unit.core.builders import (
    TARGET,
    Cluster,
    down,
    endpoints,
    group,
    instance,
    instances,
    mirror_of,
    named,
    planned,
    ready,
    rule,
    said,
    service,
    slice_of,
)

RULE = replace(rule(), services=("rados*",), name="storage")


def test_a_healthy_service_is_explained_in_full() -> None:
    """The rule, the target, a row per instance, and how Kubernetes differs."""
    found = [
        instance(check="http", ports=named(("http", 80), ("x", 81)), status=Status.WARNING),
        instance("", id="b", status=Status.CRITICAL, check="disk"),
        instance("::1", id="c"),
    ]
    standing = endpoints(
        group(*ready("10.0.0.1"), *down("10.9.9.9")), group(*ready("10.0.0.1"), ports=(Port("x", 81),))
    )
    current = Current(TARGET, service(), standing)
    shown = explain(
        "radosgw",
        "dc1",
        tags=set(),
        rules=[Rule(services=("db",), name="databases"), RULE, Rule(name="never asked")],
        knowledge=Known(tuple(found)),
        claims=_claimed(("radosgw", RULE)),
        current=current,
        plan=planned(mirror_of(found, RULE, current), current),
    )
    node = "the node's address (the service has none)"
    loopback = "::1 is a loopback address: it would mean each client's own machine"
    own = "the service's address"
    assert shown == Explanation(
        service="radosgw",
        datacenter="dc1",
        rules=(RuleVerdict("databases", "the name matches none of db"), RuleVerdict("storage", "", "default/radosgw")),
        rule="storage",
        target="default/radosgw",
        consul="3 instances",
        rows=(
            Row(
                "vm-10.0.0.1/id-10.0.0.1-8080",
                "warning",
                "http",
                "10.0.0.1",
                own,
                "http:80, x:81",
                "ready",
                "",
                "ready",
                "subset 1",
            ),
            Row("vm-/b", "critical", "disk", "10.9.9.9", node, "8080", "not ready", "", "not ready", "subset 2"),
            Row("vm-::1/c", "passing", "", "::1", own, "8080", "skipped", loopback, "absent"),
        ),
        differences=("update Service radosgw", "update Endpoints radosgw"),
        unaccounted=("10.0.0.1:8080 ready",),
        reasons=("address_loopback",),
    )
    row = shown.to_json()["rows"][2]
    assert (row["reason"], row["message"]) == ("address_loopback", loopback)


def test_endpoints_in_slices_count_as_well() -> None:
    """Ready in either gets traffic."""
    sliced = Current(
        TARGET, service(), endpoints(group(*down("10.0.0.1"))), (slice_of("s", group(*ready("10.0.0.1"))),)
    )
    shown = explain("radosgw", "dc1", tags=set(), rules=[RULE], knowledge=Known((instance(),)), current=sliced)
    assert [r.kubernetes for r in shown.rows] == ["ready"]


def _claimed(*wanted: tuple[str, Rule]) -> TargetAssignments:
    claims = TargetAssignments()
    for name, by in wanted:
        claims.claim(Query("dc1", name), by, TARGET)
    return claims


@pytest.mark.parametrize(
    ("name", "tags", "rules", "problem"),
    [
        ("consul", set(), [Rule()], "never mirrored: Consul's own service"),
        ("radosgw", None, [RULE], "dc1 does not list a service of this name"),
        ("db", set(), [RULE], "no rule selects it"),
        ("db", set(), [], "no rule selects it"),
        ("!!", set(), [Rule()], "the name '!!' has no letter or digit to make a name of"),
        ("radosgw", set(), [RULE], ""),
        ("radosgw", {"s3"}, [Rule(tags=("s3",))], ""),
        ("radosgw", {"s3"}, [Rule(tags=("blue",))], "no rule selects it"),
    ],
)
def test_why_a_service_has_no_target(name: str, tags: set[str] | None, rules: list[Rule], problem: str) -> None:
    """Each way of not being mirrored has its own sentence."""
    assert explain(name, "dc1", tags=tags, rules=rules).problem == problem


def test_a_service_that_lost_its_name_learns_to_whom() -> None:
    """And one that no one has claimed yet is not accused."""
    fixed = Rule(to=Destination(name="radosgw"))
    claims = _claimed(("radosgw", fixed), ("gateway", fixed))
    shown = explain("gateway", "dc1", tags=set(), rules=[fixed], claims=claims)
    assert shown.target == "default/radosgw"
    assert shown.problem.startswith("default/radosgw goes to radosgw in dc1 (it is named exactly so)")
    assert explain("other", "dc1", tags=set(), rules=[fixed], claims=TargetAssignments()).problem == ""


@pytest.mark.parametrize(
    ("knowledge", "consul"),
    [
        (None, "not asked"),
        (Unknown("no leader"), "unknown: no leader"),
        (Known(()), "0 instances"),
    ],
)
def test_what_consul_answered(knowledge: Known | Unknown | None, consul: str) -> None:
    """Unknown is not empty."""
    assert explain("radosgw", "dc1", tags=set(), rules=[RULE], knowledge=knowledge).consul == consul


@pytest.mark.parametrize(
    ("kind", "chosen", "ended"),
    [
        ("auto", "the service's address", "omitted"),
        ("service", "the service's address", "omitted"),
        ("node", "the node's address", "omitted"),
        ("lan", "the tagged address lan", "omitted"),
        ("wan", "none", "skipped"),
    ],
)
def test_where_an_address_is_from(kind: str, chosen: str, ended: str) -> None:
    """And why an instance is left out for its health."""
    found = instance(status=Status.CRITICAL, tagged_addresses=(TaggedAddress("lan", "10.0.0.2"),))
    rule = Rule(instances=InstanceRules(address=kind, critical=Treatment.OMIT))
    (row,) = explain("radosgw", "dc1", tags=set(), rules=[rule], knowledge=Known((found,))).rows
    assert (row.chosen, row.disposition, row.reason) == (chosen, ended, "omitted because it is critical")


def test_instances_are_shown_without_a_rule_too() -> None:
    """As the defaults would have them."""
    shown = explain("radosgw", "dc1", tags=set(), rules=[], knowledge=Known((instance(),)))
    assert [(r.address, r.disposition) for r in shown.rows] == [("10.0.0.1", "ready")]


def test_an_unusable_instance_has_a_row_with_its_reason() -> None:
    left_out = Known((), invalid=(("vm/x", said("too long")),))
    shown = explain("db", "dc1", tags=set(), rules=[Rule()], knowledge=left_out)
    assert shown.rows == (Row("vm/x", "", "", "", "none", "", "skipped", "too long", "absent"),)
    assert shown.consul == "1 instance"


def test_holds_and_conflicts_are_reported() -> None:
    """With their own sentences; what needs no writing is no difference."""
    plan = Plan(
        TARGET,
        held=(Held(TARGET, Code.HELD_REMOVAL, 3, "3 are kept"),),
        conflicts=(Conflict(TARGET, Kind.SERVICE, said("not ours")),),
        warnings=(said("careful"),),
    )
    shown = explain("radosgw", "dc1", tags=set(), rules=[RULE], plan=plan)
    assert (shown.held, shown.conflicts, shown.warnings) == (
        ("3 are kept",),
        ("Service default/radosgw: not ours",),
        ("careful",),
    )
    adopted = planned(mirror_of([instance()]), Current(TARGET))
    first = replace(adopted.changes[0], reason=said("adopted"))
    shown = explain(
        "radosgw", "dc1", tags=set(), rules=[RULE], plan=replace(adopted, changes=(first, *adopted.changes[1:]))
    )
    assert shown.differences == ("create Service radosgw (adopted)", "create Endpoints radosgw")


def test_instances_of_a_datacenter_that_does_not_carry_the_traffic_are_on_standby() -> None:
    """That they are in no object is as it should be."""
    active = ActiveDatacenter(name="fra", why=Reason(Code.CARRIES, active="fra", has="2 of 2 ready"))
    found = Known((*instances(1), instance("10.0.0.2", status=Status.CRITICAL), instance("", node_address="")))
    given: dict[str, Any] = {
        "tags": set(),
        "rules": [RULE],
        "knowledge": found,
        "plan": Plan(TARGET, active_datacenter=active),
    }
    shown, other = explain("radosgw", "dc1", **given), explain("radosgw", "fra", **given)
    assert sorted((row.disposition, row.reason, row.as_it_should_be) for row in shown.rows) == [
        ("skipped", "it has no address of the kind auto", True),
        ("standby", "datacenter fra carries the traffic", True),
        ("standby", "datacenter fra carries the traffic", True),
    ]
    assert (shown.traffic, [row.disposition for row in other.rows]) == (
        "datacenter fra carries the traffic: it comes first (2 of 2 ready)", ["not ready", "ready", "skipped"],
    )  # fmt: skip


def test_what_the_filter_leaves_out_is_shown_as_left_out() -> None:
    """Consul evaluates the filter, so without the second question these instances would just be missing."""
    one, two = instance("10.0.0.1"), instance("10.0.0.2")
    rule = Rule(filter="Service.Port == 1")
    shown = explain("radosgw", "dc1", tags=set(), rules=[rule], knowledge=Known((one,)), unfiltered=Known((one, two)))
    assert shown.filter == "Service.Port == 1"
    assert [(r.address, r.disposition, r.reason) for r in shown.rows] == [
        ("10.0.0.1", "ready", ""),
        ("10.0.0.2", "not selected", "the rule's filter leaves it out"),
    ]
    several = instance("10.0.0.3", 0, ports=(NamedPort("http", 1),))
    shown = explain("radosgw", "dc1", tags=set(), rules=[rule], knowledge=Known(()), unfiltered=Known((several,)))
    assert shown.reasons == ("filtered_port",)
    without = explain("radosgw", "dc1", tags=set(), rules=[], knowledge=Known((one,)), unfiltered=Known((one, two)))
    assert len(without.rows) == 1


def test_an_existing_endpoint_without_an_instance_is_named() -> None:
    """Kept by a hold, or about to go: no one has to wonder whose it is."""
    standing = Current(TARGET, service(), endpoints(group(*ready("10.0.0.1", "10.0.0.2"), *down("10.0.0.3"))))
    shown = explain("radosgw", "dc1", tags=set(), rules=[RULE], knowledge=Known((instance(),)), current=standing)
    assert shown.unaccounted == ("10.0.0.2:8080 ready", "10.0.0.3:8080 not ready")


def test_what_a_service_that_shares_the_target_accounts_for_is_no_riddle() -> None:
    """Two services behind one name: each explanation is about its own instances."""
    standing = Current(TARGET, service(), endpoints(group(*ready("10.0.0.1", "10.0.0.2", "10.0.0.3"))))
    shown = explain(
        "radosgw", "dc1", tags=set(), rules=[RULE], knowledge=Known((instance(),)), current=standing,
        co_sources=[(RULE, Known((instance("10.0.0.2"),)))],
    )  # fmt: skip
    assert shown.unaccounted == ("10.0.0.3:8080 ready",)


def test_hostnames_are_reported_and_why_an_instance_has_none() -> None:
    """As the plan gives them: what shares the target counts as well."""
    named = replace(rule(headless=True, hostname_from="node"), services=("rados*",))
    here = (instance(node="vm1"), instance("10.0.0.2", node="vm2.b"), instance("10.0.0.3", node="vm3"))
    beside = Known((instance("10.0.0.4", node="vm2.a"),))
    shown = explain("radosgw", "dc1", tags=set(), rules=[named], knowledge=Known(here), co_sources=[(named, beside)])
    assert [(row.hostname, row.reason) for row in shown.rows] == [
        ("vm1", ""),
        ("", "it has no hostname: vm2 is that of vm2.a/id-10.0.0.4-8080, which has another address"),
        ("vm3", ""),
    ]
    assert shown.reasons == ("hostname_taken",)


def test_what_is_left_of_a_service_that_is_gone_is_explained_where_it_stands() -> None:
    """Only Kubernetes still knows the place; the rules (here: none that selects it) say nothing of it."""
    standing = Current(TARGET, service(), endpoints(group(*ready("10.0.0.1"))))
    shown = explain(
        "radosgw", "dc1", tags=None, rules=[], knowledge=Known(()), current=standing, remembered=TARGET,
        plan=planned(None, standing),
    )  # fmt: skip
    assert (shown.target, shown.problem, shown.unaccounted, shown.compared) == (
        "default/radosgw", "dc1 does not list a service of this name", ("10.0.0.1:8080 ready",), True,
    )  # fmt: skip
    assert len(shown.differences) == 2


@pytest.mark.parametrize(
    ("tags", "problem"),
    [
        (set[str](), "it goes to other/radosgw now; default/radosgw still has what came from it"),
        (None, "dc1 does not list a service of this name"),
    ],
)
def test_what_is_left_where_a_service_was_before(tags: set[str] | None, problem: str) -> None:
    """It goes elsewhere, or would if it were still there."""
    moved = Rule(to=Destination(namespace="other"))
    shown = explain("radosgw", "dc1", tags=tags, rules=[moved], claims=_claimed(), remembered=TARGET)
    assert (shown.target, shown.problem, shown.compared) == ("default/radosgw", problem, False)


def test_endpoints_at_a_name_that_another_service_has_are_not_this_ones() -> None:
    """The other's endpoints are no riddle of the one that lost the name."""
    fixed = Rule(to=Destination(name="radosgw"))
    standing = Current(TARGET, service(), endpoints(group(*ready("10.0.0.1"))))
    claims = _claimed(("radosgw", fixed), ("gateway", fixed))
    shown = explain("gateway", "dc1", tags=set(), rules=[fixed], claims=claims, knowledge=Known(()), current=standing)
    assert shown.unaccounted == ()


SPREAD = (
    instance("10.0.0.1", 80), instance("10.0.0.2", 80), instance("fd00::1", 80), instance("10.0.0.4", 81),
    instance("127.0.0.1", 80),
)  # fmt: skip


@pytest.mark.parametrize("planned_only", [True, False], ids=["only planned", "as it stands"])
def test_each_endpoint_shows_its_subset_and_its_slice(planned_only: bool) -> None:
    """A subset has both families, a slice has one; a slice has one endpoint here."""
    by = rule(output=Output.BOTH, max_endpoints_per_slice=1)
    cluster = Cluster()
    plan = planned(mirror_of(SPREAD, by), cluster.current())
    cluster.apply(plan)
    standing = cluster.current()
    shown = explain(
        "radosgw", "dc1", tags=set(), rules=[by], knowledge=Known(SPREAD),
        current=Current(TARGET) if planned_only else standing, plan=plan if planned_only else None,
    )  # fmt: skip
    group_of = {row.address: row.group.split(", ") for row in shown.rows}
    groups = [group_of[i.address] for i in SPREAD]
    assert [group[0] for group in groups] == ["subset 1", "subset 1", "subset 1", "subset 2", ""]
    by_slice = {e.address: name for name, piece in cluster.slices.items() for e in piece.group.endpoints}
    assert [group[1:] for group in groups] == [[by_slice[i.address]] for i in SPREAD[:4]] + [[]]


def test_a_group_that_the_plan_deletes_or_fills_is_reported_as_it_will_be() -> None:
    """From slices to Endpoints and back; what the plan does not mention stays."""
    slices, whole = rule(output=Output.ENDPOINTSLICES), rule()

    def groups(cluster: Cluster, by: Rule) -> list[str]:
        current = cluster.current()
        plan = planned(mirror_of(instances(2), by, current), current)
        shown = explain(
            "radosgw", "dc1", tags=set(), rules=[by], knowledge=Known(instances(2)), current=current, plan=plan
        )
        cluster.apply(plan)
        cluster.mirror()
        return [row.group for row in shown.rows]

    cluster = Cluster()
    assert groups(cluster, whole) == ["subset 1"] * 2
    assert groups(cluster, slices) == [*cluster.slices] * 2
    (name,) = cluster.slices
    assert groups(cluster, whole) == [f"subset 1, {name}"] * 2
    assert groups(cluster, whole) == ["subset 1"] * 2


def test_endpoints_without_ports_are_explained_by_their_addresses() -> None:
    """There for DNS alone: what an instance accounts for has a row, and any other is named without a port."""
    by = Rule(services=("radosgw",), name="r", to=Destination(headless=True, output=Output.ENDPOINTSLICES))
    piece = slice_of("s", group(*ready("10.0.0.1", "10.9.9.9"), ports=()))
    standing = Current(TARGET, service(ports=(), headless=True), None, (piece,))
    found = explain("radosgw", "dc1", tags=(), rules=[by], knowledge=Known((instance(port=0),)), current=standing)
    rows = [(row.address, row.ports, row.kubernetes, row.group) for row in found.rows]
    assert rows == [("10.0.0.1", "", "ready", "s")]
    assert found.unaccounted == ("10.9.9.9 ready",)


PRIMARY = Rule(name="primary", tags=("primary",), to=Destination(name="{service}-primary"), place="bridge.yaml:2:5")
REPLICA = Rule(name="replica", tags=("replica",), to=Destination(name="{service}-replica"))
REST = Rule(name="rest", services=("web",))


def test_a_service_that_several_rules_mirror_is_explained_by_each_and_names_the_others() -> None:
    """With their targets; a rule whose tags no instance has says so, until something of it stands."""
    about = {"tags": {"replica"}, "rules": [PRIMARY, REPLICA, REST], "knowledge": Known(tuple(instances(2)))}
    shown = explain("db", "dc1", **about)  # type: ignore[arg-type]
    assert (shown.rule, shown.target) == ("replica", "default/db-replica")
    assert shown.rules == (
        RuleVerdict("primary (bridge.yaml:2:5)", "no instance has the tag primary"),
        RuleVerdict("replica", "", "default/db-replica"),
        RuleVerdict("rest", "the name matches none of web"),
    )
    first, second = choices([PRIMARY, REPLICA], "db", "dc1")
    kept = {Target("default", "db-primary")}
    both = [explain("db", "dc1", **about, chosen=c, kept=kept) for c in (first, second)]  # type: ignore[arg-type]
    assert [e.target for e in both] == ["default/db-primary", "default/db-replica"]
    assert [e.rules[0].target for e in both] == ["default/db-primary"] * 2
    assert [row.disposition for row in both[0].rows] == ["not selected"] * 2


def test_a_rule_that_does_not_get_its_target_names_the_one_that_has_it() -> None:
    """The places of both rules stand in the problem."""
    same = replace(REPLICA, to=PRIMARY.to, place="bridge.yaml:9:5")
    claims = TargetAssignments()
    named_by = choices([PRIMARY, same], "db", "dc1")
    for choice in named_by:
        assert isinstance(choice.target, Target)
        claims.claim(choice.query, choice.rule, choice.target, choice.order)
    shown = [
        explain("db", "dc1", tags={"replica"}, rules=[PRIMARY, same], claims=claims, chosen=choice).problem
        for choice in named_by
    ]
    assert shown[0] == ""
    assert "primary (bridge.yaml:2:5)" in shown[1]
    assert "replica (bridge.yaml:9:5)" in shown[1]


def test_what_is_asked_for_by_name_needs_no_listing_to_be_explained() -> None:
    """A rule about another namespace: no one lists what is there."""
    there = replace(PRIMARY, services=("db",), peer="cloud", unlisted=True, datacenters=("dc1",))
    (choice,) = unlisted([there])
    shown = explain("db", "dc1", tags=None, rules=[there], chosen=choice, knowledge=Known(()))
    assert (shown.rules, shown.target, shown.problem, shown.consul) == (
        (RuleVerdict("primary (bridge.yaml:2:5)", "", "default/db-primary"),), "default/db-primary",
        "", "0 instances of the peer cloud",
    )  # fmt: skip


def test_a_rule_whose_name_leads_nowhere_says_why() -> None:
    """Among what the rules say."""
    nowhere = Rule(name="odd", to=Destination(name="---"))
    shown = explain("db", "dc1", tags=set(), rules=[nowhere])
    assert shown.rules == (RuleVerdict("odd", "the name '---' has no letter or digit to make a name of"),)


def test_what_needs_a_look_comes_first_and_numbers_count() -> None:
    """What Kubernetes has otherwise, then what is not well, then the rest; last what no rule wants."""

    def one(number: int, **more: Any) -> Instance:
        return replace(instance(f"10.0.0.{number}"), node="vm", id=f"rgw-{number}", **more)

    found = (
        *(one(n) for n in (10, 2, 1)),
        one(3, status=Status.CRITICAL, check="http", output="503"),
        one(4, tags=("other",)),
        one(5),
    )
    rule = Rule(tags=("on",), to=RULE.to)
    tagged = tuple(i if i.tags else replace(i, tags=("on",)) for i in found)
    current = Current(
        TARGET, service(), endpoints(group(*ready(*(f"10.0.0.{n}" for n in (1, 2, 10))), *down("10.0.0.3")))
    )
    shown = explain("radosgw", "dc1", tags={"on"}, rules=[rule], knowledge=Known(tagged), current=current)
    assert [row.instance for row in shown.rows] == [f"vm/rgw-{n}" for n in (5, 3, 1, 2, 10, 4)]


def test_a_check_that_fails_shows_its_output_without_credentials() -> None:
    """Bounded, and only while the instance is not passing."""
    said = "HTTP GET http://u:pw@vm/: 503 password=hunter2 \x1b[2J" + "x" * 500
    found = (
        replace(instance(), status=Status.CRITICAL, check="http", output=said),
        replace(instance("10.0.0.2"), output="200 OK"),
    )
    shown = explain("radosgw", "dc1", tags=set(), rules=[RULE], knowledge=Known(found))
    output = {row.address: row.output for row in shown.rows}
    assert output["10.0.0.2"] == ""
    assert output["10.0.0.1"].startswith("HTTP GET http://<hidden>@vm/: 503 password=<hidden> ")
    assert len(output["10.0.0.1"]) == 200
    assert output["10.0.0.1"].isprintable()
    assert shown.to_json()["rows"][0]["output"] == output["10.0.0.1"]
