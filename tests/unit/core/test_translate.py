"""From instances to groups of endpoints: health, addresses, places, names; and why something is left out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bridge.core.instances import Disposition, choose_address, decide, host_names
from bridge.core.model import (
    Amount,
    Bounds,
    ClusterNodes,
    Current,
    CurrentService,
    Destination,
    Endpoint,
    Family,
    Group,
    Instance,
    InstanceRules,
    Known,
    Output,
    Port,
    Query,
    Rule,
    Skipped,
    Status,
    TaggedAddress,
    TrafficPolicy,
    Treatment,
)
from bridge.core.ownership import derived, label_value, origins, ownership_labels
from bridge.core.pairs import ready_pairs
from bridge.core.reasons import Code, Reason, codes_of
from bridge.core.translate import Translation, translate
from tests.unit.core.builders import (
    QUERY,
    TARGET,
    down,
    endpoints,
    group,
    instance,
    instances,
    mirror_of,
    named,
    picky,
    ready,
    rule,
    said,
    service,
    slice_of,
    translated,
)


@pytest.mark.parametrize(
    ("status", "rules", "endpoint"),
    [
        (Status.PASSING, {}, Endpoint("10.0.0.1", True)),
        (Status.WARNING, {}, Endpoint("10.0.0.1", True)),
        (Status.WARNING, {"warning": Treatment.NOT_READY}, Endpoint("10.0.0.1", False, False)),
        (Status.CRITICAL, {}, Endpoint("10.0.0.1", False, False)),
        (Status.UNKNOWN, {}, Endpoint("10.0.0.1", False, False)),
        (Status.MAINTENANCE, {}, Endpoint("10.0.0.1", False, True, True)),
        (Status.MAINTENANCE, {"maintenance": Treatment.READY}, Endpoint("10.0.0.1", True)),
    ],
)
def test_health_becomes_conditions(status: Status, rules: dict[str, Treatment], endpoint: Endpoint) -> None:
    """As in docs/reference.md: what is in maintenance is drained gracefully."""
    assert mirror_of([instance(status=status)], picky(**rules)).groups == (group(endpoint),)


@pytest.mark.parametrize("status", [Status.WARNING, Status.CRITICAL, Status.UNKNOWN, Status.MAINTENANCE])
def test_what_a_rule_omits_is_withheld_and_reported(status: Status) -> None:
    """It is not an endpoint, but it is not lost either."""
    omit = picky(warning=Treatment.OMIT, critical=Treatment.OMIT, maintenance=Treatment.OMIT)
    found = translated([instance(status=status, check="mem"), instance("10.0.0.2")], omit)
    assert found.mirror is not None
    assert found.mirror.groups == (group(*ready("10.0.0.2")),)
    assert [e.address for g in found.mirror.omitted_unhealthy for e in g.endpoints] == ["10.0.0.1"]
    reason = f"omitted because it is {status} (check mem)"
    assert found.skipped == (Skipped("radosgw", "vm-10.0.0.1/id-10.0.0.1-8080", said(reason)),)


@pytest.mark.parametrize(
    ("tags", "former", "expected"),
    [
        (("primary",), ("replica",), []),
        (("replica",), ("primary",), ["10.0.0.1"]),
        (("replica",), ("other",), []),
        (("replica",), (), []),
    ],
)
def test_an_instance_that_lost_its_tag_is_distinguished_from_one_that_never_had_it(
    tags: tuple[str, ...], former: tuple[str, ...], expected: list[str]
) -> None:
    """By the rule as it is now: what a changed rule leaves out, no instance has said."""
    by = replace(rule(), tags=("primary",))
    now = instance(tags=tags)
    known = Known((now, instance("10.0.0.2", tags=("primary",))), former=(replace(now, tags=former),) if former else ())
    current = Current(TARGET, service(), endpoints(group(*ready("10.0.0.1"))))
    found = translate(TARGET, [(by, QUERY, known)], current)
    assert found.mirror is not None
    assert [e.address for g in found.mirror.deselected for e in g.endpoints] == expected
    without = translate(TARGET, [(by, QUERY, known)])
    assert without.mirror is not None
    assert without.mirror.deselected == ()


def test_an_address_that_another_instance_has_ready_is_not_withheld() -> None:
    """The same address and port from two instances is one endpoint."""
    found = [instance(), instance(status=Status.CRITICAL, id="other")]
    mirror = mirror_of(found, picky(critical=Treatment.OMIT))
    assert mirror.groups == (group(*ready("10.0.0.1")),)
    assert mirror.omitted_unhealthy == ()
    assert mirror_of(found).groups == (group(*ready("10.0.0.1")),)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (instance("127.0.0.1"), "127.0.0.1 is a loopback address: it would mean each client's own machine"),
        (instance(port=0), "it has no port, and the rule gives none"),
        (instance(port=70000), "port 70000 is not between 1 and 65535"),
        (instance(port=-1), "port -1 is not between 1 and 65535"),
        (instance(ports=named(("x", 0))), "none of its ports is between 1 and 65535"),
        (instance("db.example"), "host name db.example could not be resolved"),
        (instance("", node_address=""), "it has no address of the kind auto"),
        (instance(kind="connect-proxy"), "a Connect proxy or gateway (kind connect-proxy)"),
        (
            instance(meta=(("external-source", "kubernetes"),)),
            "it came from a Kubernetes cluster (meta external-source=kubernetes)",
        ),
    ],
)
def test_what_cannot_be_an_endpoint_is_skipped_with_the_reason(found: Instance, reason: str) -> None:
    """The rest is mirrored all the same."""
    result = translated([found, instance("10.0.0.2")])
    assert result.mirror is not None
    assert result.mirror.groups == (group(*ready("10.0.0.2")),)
    assert [s.reason for s in result.skipped] == [reason]


def test_skips_and_warnings_are_sorted() -> None:
    """So that logs, plans and JSON are the same each time."""
    lame = [instance(port=70000, node=f"vm{n}", node_meta=(("zone", f"? {n}"),)) for n in range(9, 0, -1)]
    found = translated(lame, rule(headless=True))
    assert [s.instance[:3] for s in found.skipped] == [f"vm{n}" for n in range(1, 10)]
    proxies = translated([instance(kind=f"k{n}", node=f"vm{n}") for n in range(9, 0, -1)])
    assert [s.instance[:3] for s in proxies.skipped] == [f"vm{n}" for n in range(1, 10)]
    warned = replace(rule(), warnings=tuple(said(f"w{n}") for n in range(9, 0, -1)))
    assert translated([instance()], warned).warnings == tuple(said(f"w{n}") for n in range(1, 10))


def test_what_consul_lists_and_cannot_be_used_is_skipped_with_its_reason() -> None:
    known = Known((instance(),), invalid=(("vm/x", said("its address has 600 characters, more than 512")),))
    made = translate(TARGET, [(rule(), QUERY, known)])
    assert made.mirror is not None
    assert made.mirror.ready == 1
    assert made.skipped == (Skipped(QUERY.service, "vm/x", said("its address has 600 characters, more than 512")),)


def test_an_ordinary_kind_is_no_proxy() -> None:
    """Consul writes an empty kind or `typical` for it."""
    assert mirror_of([instance(kind="typical")]).ready == 1


def test_an_omitted_instance_without_an_address_is_omitted_for_its_health() -> None:
    """The first reason is the one that is reported."""
    omit = picky(critical=Treatment.OMIT)
    lame = [
        instance("", node_address="", status=Status.CRITICAL),
        instance(port=0, status=Status.CRITICAL),
        instance("::1", status=Status.CRITICAL),
    ]
    found = translated([*lame, instance("10.0.0.2")], omit)
    assert {s.reason for s in found.skipped} == {"omitted because it is critical"}


@pytest.mark.parametrize(
    ("tags", "meta", "selected"),
    [(("s3",), (("env", "prod"),), True), (("s3",), (("env", "test"),), False), ((), (("env", "prod"),), False)],
)
def test_a_rules_tags_and_meta_choose_among_instances(tags: tuple[str, ...], meta: object, selected: bool) -> None:
    """All of them must be on the instance; all others are not reported."""
    by = Rule(tags=("s3",), meta=(("env", "prod"),), to=Destination(port=80))
    beside = instance("10.0.0.9", tags=("s3",), meta=(("env", "prod"),))
    found = translated([instance(tags=tags, meta=meta), beside], by)
    assert found.mirror is not None
    assert found.mirror.ready == 1 + int(selected)
    assert found.skipped == ()


PICKY = Rule(name="rule 1", tags=("s3",), meta=(("env", "prod"),), filter="x")
ASKED = "the tag s3 and the meta env=prod and what the filter wants (x), which rule 1 asks for"


@pytest.mark.parametrize("by", [PICKY, replace(PICKY, to=Destination(port=80))])
@pytest.mark.parametrize("found", [[], [instance(tags=("s3",))], [instance(), instance("10.0.0.2")]])
def test_while_a_rule_selects_no_instance_nothing_is_made_and_existing_objects_stay(
    by: Rule, found: list[Instance]
) -> None:
    """Whichever port is known; a Service keeps its address and its ports, with empty endpoints, and it is reported."""
    why = f"{'none of the 2 instances' if len(found) > 1 else 'no instance'} of radosgw has {ASKED}"
    assert translated(found, by) == Translation(
        None, (Skipped("radosgw", "", said(f"{why}: nothing is made before one has")),)
    )
    for standing in (service(owner=None), service()):
        kept = translated(found, by, Current(TARGET, standing))
        if standing.meta.owner is None:
            assert kept.mirror is None
        else:
            assert kept.mirror is not None
            assert (kept.mirror.groups, kept.mirror.service_ports) == ((), (Port("", by.to.port or 8080),))
            assert (kept.skipped, kept.warnings) == ((), (f"{why}: it gets no endpoint",))


def test_while_instances_are_hidden_no_empty_selection_is_reported() -> None:
    """The token may not see the one that has the tag."""
    kept = translate(TARGET, [(PICKY, QUERY, Known((), acl_filtered=True))], Current(TARGET, service()))
    assert (kept.mirror is not None, kept.warnings) == (True, ())
    found = translate(TARGET, [(PICKY, QUERY, Known((), acl_filtered=True))])
    assert (found.mirror, [s.reason.code for s in found.skipped]) == (None, [Code.NONE_SELECTED])


def test_of_rules_that_share_a_service_one_may_select_no_instance() -> None:
    """It is made for the other, and what has no endpoint is reported."""
    one, two = (Rule(name=name, tags=(name,), to=Destination(port_name=name)) for name in ("http", "metrics"))
    known = Known((instance(tags=("http",)),))
    found = translate(TARGET, [(one, QUERY, known), (two, QUERY, known)])
    assert (found.mirror is not None, found.warnings) == (
        True, ("no instance of radosgw has the tag metrics, which metrics asks for: it gets no endpoint",),
    )  # fmt: skip


def test_a_user_managed_service_that_asks_for_a_tag_of_no_instance_is_reported() -> None:
    """Also where the Service is not ours, and stays whatever happens."""
    why = "no instance of radosgw has the tag Primary, which Service default/radosgw asks for: it gets no endpoint"
    by = Rule(name="Service default/radosgw", tags=("Primary",), to=Destination(annotated=True))
    found = translated([instance(tags=("replica",))], by, Current(TARGET, service(owner=None)))
    assert (found.mirror is not None, found.warnings) == (True, (why,))


LAN = (TaggedAddress("lan", "10.5.0.1", 9000), TaggedAddress("wan_ipv4", "1.2.3.4", 0))
NODE = (TaggedAddress("lan", "10.6.0.1"), TaggedAddress("wan", "1.1.1.1"))


@pytest.mark.parametrize(
    ("kind", "chosen"),
    [
        ("auto", ("10.0.0.1", 0)),
        ("service", ("10.0.0.1", 0)),
        ("node", ("10.9.9.9", 0)),
        ("lan", ("10.5.0.1", 9000)),
        ("wan", ("1.1.1.1", 0)),
        ("wan_ipv4", ("1.2.3.4", 0)),
        ("none", ("", 0)),
    ],
)
def test_the_rule_chooses_the_address(kind: str, chosen: tuple[str, int]) -> None:
    """A tagged address of the service goes before one of the node and brings its own port."""
    found = instance(tagged_addresses=LAN, node_tagged_addresses=NODE)
    assert choose_address(found, InstanceRules(address=kind)) == chosen


def test_a_service_without_an_address_is_at_its_nodes() -> None:
    """As Consul's own DNS has it."""
    assert mirror_of([instance("")]).groups == (group(*ready("10.9.9.9")),)


def test_a_tagged_address_has_its_own_port() -> None:
    """Also before the ports of a multi-port service; it is called like the default one of those."""
    found = instance(tagged_addresses=LAN, ports=named(("http", 80)))
    assert mirror_of([found], picky(address="lan")).groups == (group(*ready("10.5.0.1"), ports=(Port("http", 9000),)),)


def test_cidrs_keep_instances_out() -> None:
    """With the reason."""
    found = translated([instance(), instance("10.1.0.1")], picky(deny_cidrs=("10.1.0.0/16",)))
    assert found.mirror is not None
    assert found.mirror.ready == 1
    assert [s.reason for s in found.skipped] == ["10.1.0.1 is in deny_cidrs (10.1.0.0/16)"]


def test_no_rule_leads_beyond_the_installations_bounds() -> None:
    """They count beside the rule's own; without any, the clouds' metadata services are out of bounds."""
    bounds = Bounds(allow_cidrs=("10.0.0.0/8",), deny_cidrs=("10.96.0.0/16",))
    found = translated(
        [instance(), instance("10.96.0.1"), instance("192.168.0.1")],
        picky(bounds=bounds, allow_cidrs=("10.0.0.0/8", "192.168.0.0/16")),
    )
    assert found.mirror is not None
    assert found.mirror.ready == 1
    assert [s.reason for s in found.skipped] == [
        "10.96.0.1 is in guard.deny_cidrs (10.96.0.0/16)", "192.168.0.1 is not in guard.allow_cidrs",
    ]  # fmt: skip
    usual = translated([instance(), instance("fd00:ec2::254"), instance("100.100.100.200"), instance("168.63.129.16")])
    assert [s.reason.split(" (")[0] for s in usual.skipped] == [
        "100.100.100.200 is in guard.deny_cidrs", "168.63.129.16 is in guard.deny_cidrs",
        "fd00:ec2::254 is in guard.deny_cidrs",
    ]  # fmt: skip


def test_host_names_become_all_their_good_addresses() -> None:
    """Of both families; a bad one among them is left out, only bad ones are the reason."""
    resolved = {"db.example": ("10.0.0.5", "fd00::5", "127.0.0.1"), "local": ("127.0.0.1",), "empty": ()}
    found = translated([instance("db.example"), instance("local"), instance("empty")], resolved=resolved)
    assert found.mirror is not None
    assert found.mirror.groups == (group(*ready("10.0.0.5")), group(*ready("fd00::5"), family=Family.IPV6))
    assert found.mirror.families == (Family.IPV4, Family.IPV6)
    assert [s.reason for s in found.skipped] == [
        "host name empty has no address",
        "127.0.0.1 is a loopback address: it would mean each client's own machine",
    ]


def test_without_resolution_a_host_name_is_skipped() -> None:
    """And no name is asked for."""
    rule = picky(bounds=Bounds(host_names=False))
    found = translated([instance(), instance("db.example")], rule, resolved={"db.example": ("10.0.0.5",)})
    assert found.mirror is not None
    assert found.mirror.groups == (group(*ready("10.0.0.1")),)
    assert [s.reason for s in found.skipped] == ["db.example is a host name, and dns.resolve is off"]
    assert host_names([instance("db.example")], rule) == set()


def test_the_clusters_api_server_is_no_endpoint() -> None:
    """Whatever networks are allowed."""
    rule = picky(bounds=Bounds(allow_cidrs=("10.96.0.0/12",), api_server=("10.96.0.1",)))
    found = translated([instance("10.96.0.1"), instance("10.96.0.2")], rule)
    assert [s.reason for s in found.skipped] == ["10.96.0.1 is this cluster's API server"]


def test_only_names_that_are_needed_are_asked_for() -> None:
    """Not those of instances that the rule does not select, and nothing that is an address or no name."""
    found = [instance("a.example", tags=("s3",)), instance("b.example"), instance(tags=("s3",)), instance("::1%x")]
    assert host_names(found, Rule(tags=("s3",))) == {"a.example"}


@pytest.mark.parametrize(
    ("value", "zone", "warnings"),
    [
        ("eu-west-1a", "eu-west-1a", ()),
        ("Zone_1.b", "Zone_1.b", ()),
        ("1a", "1a", ()),
        ("", "", ()),
        ("no zone", "", ("zone 'no zone' is no label value: its endpoints have no zone",)),
    ],
)
def test_zones_come_from_the_nodes_meta_as_they_are(value: str, zone: str, warnings: tuple[str, ...]) -> None:
    """They must equal the zones of the cluster's nodes, so nothing is changed about them."""
    found = translated([instance(node_meta=(("rack", "7"), ("zone", value)))])
    assert found.mirror is not None
    assert [e.zone for g in found.mirror.groups for e in g.endpoints] == [zone]
    assert found.warnings == warnings


def test_many_zones_that_are_none_are_one_warning() -> None:
    """A service of a thousand instances does not fill the report."""
    found = translated([instance(f"10.0.0.{n}", node_meta=(("zone", f"z {n}"),)) for n in range(1, 5)])
    assert found.warnings == ("zone 'z 1' is no label value (as 3 more): its endpoints have no zone",)


def test_the_name_of_a_node_is_given_where_it_is_one_of_the_clusters() -> None:
    """And invented nowhere."""
    nodes = ClusterNodes({"k8s-1"})
    found = translated([instance(node="k8s-1"), instance("10.0.0.2", node="vm2")], cluster_nodes=nodes)
    assert found.mirror is not None
    assert [e.node_name for g in found.mirror.groups for e in g.endpoints] == ["k8s-1", ""]


# --------------------------------------------------------------------------- the last ready one


STANDING = Current(TARGET, service(), endpoints(group(*ready("10.0.0.1"), *down("10.0.0.2"))))


@pytest.mark.parametrize("critical", [Treatment.NOT_READY, Treatment.OMIT])
def test_the_last_ready_endpoint_stays_where_the_rule_asks_for_that(critical: Treatment) -> None:
    """What is ready now and still registered stays ready when nothing else would be."""
    by = picky(min_ready=Amount(1), critical=critical)
    sick = [instance(status=Status.CRITICAL), instance("10.0.0.2", status=Status.CRITICAL)]
    mirror = mirror_of(sick, by, STANDING)
    assert [e for g in mirror.groups for e in g.endpoints if e.ready] == [*ready("10.0.0.1")]
    assert mirror_of(sick, picky(critical=critical), STANDING).ready == 0
    assert mirror_of([*sick, instance("10.0.0.3")], by, STANDING).ready == 1
    assert mirror_of(sick, by, Current(TARGET)) == mirror_of(sick, picky(critical=critical), Current(TARGET))


@pytest.mark.parametrize("critical", [Treatment.NOT_READY, Treatment.OMIT])
def test_what_is_ready_for_another_ones_sake_is_not_kept(critical: Treatment) -> None:
    """Two instances at one address, of which the unhealthy one is UDP's: what is ready there is the other's."""
    by = picky(min_ready=Amount(3), critical=critical)
    udp = instance(status=Status.CRITICAL, node="vm5", meta=(("protocol", "udp"),))
    found = [udp, instance(node="vm3"), instance("10.0.0.2")]
    first = mirror_of(found, by, Current(TARGET, service()))
    assert mirror_of(found, by, Current(TARGET, service(), endpoints(*first.groups))) == first


@pytest.mark.parametrize(
    ("amount", "numbers"),
    [(Amount(2), [2, 2, 2]), (Amount(50, percent=True), [0, 1, 2]), (Amount(34, percent=True), [0, 1, 2])],
)
def test_an_amount_is_a_number_or_no_less_than_its_percentage(amount: Amount, numbers: list[int]) -> None:
    """Of none, one and three."""
    assert [amount.of(total) for total in (0, 1, 3)] == numbers


def test_one_pass_lets_no_instance_wait_and_says_that_a_running_bridge_does() -> None:
    """It has no history; nothing is reported of what is ready already, nor while nothing else is ready."""
    by = picky(settle_seconds=5.0)
    found = decide([instance(), instance("10.0.0.2")], by, STANDING)
    assert [(d.disposition, d.reason) for d in found] == [
        (Disposition.READY, None),
        (
            Disposition.READY,
            "it is passing; `bridge run` waits until it has been so for 5 s (settle), one pass does not",
        ),
    ]
    assert [d.reason for d in decide([instance("10.0.0.2"), instance("10.0.0.3")], by)] == [None, None]


def test_what_waits_is_reported() -> None:
    """By its status and the time."""
    new = instance("10.0.0.2", status=Status.WARNING)
    found = decide([instance(), new], picky(settle_seconds=5.0), STANDING, waiting={instance().place, new.place})
    assert [(d.disposition, d.reason) for d in found] == [
        (Disposition.READY, None),
        (Disposition.NOT_READY, "it is warning, and is ready when it has been so for 5 s (settle)"),
    ]


def test_what_is_ready_now_is_what_our_objects_say() -> None:
    """Endpoints and slices together; another owner's do not count."""
    piece = slice_of("s", group(*ready("10.0.0.3")))
    assert ready_pairs(Current(TARGET, service(), STANDING.endpoints, (piece,)).groups()) == {
        ("10.0.0.1", 8080, "TCP"),
        ("10.0.0.3", 8080, "TCP"),
    }
    assert ready_pairs(Current(TARGET, None, endpoints(group(*ready("10.0.0.1")), owner=None)).groups()) == set()


# --------------------------------------------------------------------------- the whole


def test_nothing_is_made_while_no_port_is_known() -> None:
    """A Service needs one; it is reported. A rule that gives one is enough, and so is a headless Service."""
    assert translated([]).mirror is None
    assert mirror_of([], rule(port=80)).service_ports == (Port("", 80),)
    assert mirror_of([], rule(headless=True)).service_ports == ()


@pytest.mark.parametrize(
    ("instances", "more", "code"),
    [
        ([instance(port=0)], Rule(), Code.NO_SERVICE_PORT),
        ([instance(port=0), instance("127.0.0.1")], Rule(), Code.NO_SERVICE_PORT),
        ([instance("127.0.0.1"), instance("::1")], Rule(), Code.NO_USABLE_ADDRESSES),
        ([instance("db.example")], Rule(), Code.NO_USABLE_ADDRESSES),
        ([], Rule(), Code.NO_INSTANCES),
        ([instance()], Rule(meta=(("tier", "x"),)), Code.NONE_SELECTED),
        ([], Rule(filter="Service.Port == 1"), Code.NONE_SELECTED),
        ([], Rule(peer="cloud"), Code.PEER_EMPTY),
    ],
)
def test_why_there_is_no_service_is_reported_as_it_is(instances: list[Instance], more: Rule, code: Code) -> None:
    """Only where a port is what is missing does it say so."""
    query = replace(QUERY, peer=more.peer, filter=more.filter)
    found = translate(TARGET, [(more, query, Known(tuple(instances)))])
    assert found.mirror is None
    assert [s.reason.code for s in found.skipped if not s.instance] == [code]


def test_instances_that_cannot_be_read_are_no_missing_port() -> None:
    """They are there, and each has its reason."""
    known = Known((), invalid=(("vm/x", said("too long")),))
    found = translate(TARGET, [(Rule(), QUERY, known)])
    assert [s.reason.code for s in found.skipped if not s.instance] == [Code.NO_USABLE_ADDRESSES]


def test_a_kind_of_address_that_no_instance_has_is_reported_with_those_that_there_are() -> None:
    """Whether the Service stands already or not; one instance that has it is enough."""
    rule = Rule(instances=InstanceRules(address="lann"), to=Destination(port=80))
    lan = replace(instance(), tagged_addresses=(TaggedAddress("lan", "10.1.0.1", 80),))
    wan = replace(instance(), node_tagged_addresses=(TaggedAddress("wan", "10.2.0.1", 0),))
    for current in (None, Current(TARGET, service(None))):
        (hint,) = translate(TARGET, [(rule, QUERY, Known((lan, wan)))], current).warnings
        assert hint.code is Code.ADDRESS_KIND_ABSENT
        assert hint.endswith("; there are lan, node, service, wan")
    found = replace(rule, instances=InstanceRules(address="lan"))
    assert translate(TARGET, [(found, QUERY, Known((lan, wan)))]).warnings == ()
    assert translate(TARGET, [(rule, QUERY, Known(()))], Current(TARGET, service(None))).warnings == ()
    bare = replace(instance(), address="", node_address="")
    assert translate(TARGET, [(Rule(), QUERY, Known((bare,)))]).warnings[0].endswith("there are none")


def test_tags_that_select_no_instance_are_compared_with_those_that_exist() -> None:
    """Another case, or a comma that ends a tag in the annotation: most likely it was meant otherwise."""
    tagged = [instance(tags=("Primary", "a,b"))]
    wrong = Rule(tags=("a", "b", "primary", "x"), to=Destination(annotated=True))
    found = translate(TARGET, [(wrong, QUERY, Known(tuple(tagged)))], Current(TARGET, service(None)))
    assert [w.code for w in found.warnings] == [Code.TAG_COMMA, Code.TAG_CASE, Code.NONE_LEFT]
    assert found.warnings[0] == (
        "an instance has the tag 'a,b': in the annotation consul-bridge/tags a comma ends a tag; ask for it with "
        "consul-bridge/filter: '\"a,b\" in Service.Tags'"
    )
    by_rule = translate(TARGET, [(Rule(tags=("PRIMARY",), to=Destination(port=80)), QUERY, Known(tuple(tagged)))])
    assert [w.code for w in by_rule.warnings] == [Code.TAG_CASE]
    right = translate(TARGET, [(Rule(tags=("Primary",)), QUERY, Known(tuple(tagged)))])
    assert right.warnings == ()


def test_a_headless_service_of_ours_is_never_taken_away_for_want_of_a_port() -> None:
    """It was made without one; another owner's is not made to stay."""
    headless = service(ports=(), headless=True)
    assert translated([], rule(), Current(TARGET, headless)).mirror is not None
    assert translated([], rule(), Current(TARGET, service(None, (), headless=True))).mirror is None
    assert translated([], rule(), Current(TARGET, service(ports=()))).mirror is None


def test_proxies_alone_make_no_service_but_do_not_take_one_away() -> None:
    """A Service of ours that stands is emptied, so that its address survives until the instances are back."""
    proxies = [instance(kind="mesh-gateway")]
    assert translated(proxies, rule(port=80)).mirror is None
    assert mirror_of(proxies, None, STANDING).groups == ()
    assert translated(proxies, rule(port=80), Current(TARGET, service(owner=None))).mirror is None


@pytest.mark.parametrize(
    ("addresses", "standing", "families"),
    [
        ((), None, ()),
        (("10.0.0.1",), None, (Family.IPV4,)),
        (("fd00::1",), None, (Family.IPV6,)),
        (("fd00::1", "10.0.0.1"), None, (Family.IPV4, Family.IPV6)),
        ((), service(families=(Family.IPV6,)), (Family.IPV6,)),
        (("10.0.0.1",), service(families=(Family.IPV6,)), (Family.IPV6, Family.IPV4)),
        (
            ("10.0.0.1",),
            service(families=(Family.IPV4, Family.IPV6), family_policy="PreferDualStack"),
            (Family.IPV4, Family.IPV6),
        ),
        (("10.0.0.1",), service(families=(Family.IPV6,), family_policy="PreferDualStack"), (Family.IPV6, Family.IPV4)),
        (("fd00::1",), service(type="ExternalName", families=()), (Family.IPV6,)),
    ],
)
def test_a_service_keeps_the_families_that_it_has(
    addresses: tuple[str, ...], standing: object, families: tuple[Family, ...]
) -> None:
    """Kubernetes never changes the first; further ones are added and never taken away."""
    current = Current(TARGET, standing)  # type: ignore[arg-type]
    found = mirror_of([instance(a) for a in addresses], rule(port=80), current)
    assert found.families == families


def test_an_annotated_service_without_a_family_is_reported() -> None:
    """Its endpoints would be there and never be used."""
    current = Current(TARGET, service(None, (Port("http", 80),)))
    found = translated([instance("fd00::1"), instance()], rule(annotated=True), current)
    assert found.warnings == ("IPv6 endpoints cannot be reached: the Service has no IPv6 (spec.ipFamilies)",)


@pytest.mark.parametrize(
    ("standing", "warned"),
    [
        (None, False),
        (service(), False),
        (service(family_policy="PreferDualStack"), True),
        (service(family_policy="PreferDualStack", families=()), False),
        (service(family_policy="PreferDualStack", families=(Family.IPV4, Family.IPV6)), False),
        (service(None, family_policy="PreferDualStack"), False),
    ],
    ids=["not made yet", "not asked for yet", "asked for in vain", "not known yet", "given", "another owner's"],
)
def test_a_family_that_the_cluster_does_not_have_is_reported(standing: CurrentService | None, warned: bool) -> None:
    """As soon as it is known: our Service asks for both families, and Kubernetes answers with those that it has."""
    found = translated([instance("fd00::1"), instance()], None, Current(TARGET, standing))
    text = (
        "IPv6 endpoints cannot be reached: the Service asks for both families, and the cluster gives it IPv4 only "
        "(spec.ipFamilies)"
    )
    assert found.warnings == ((text,) if warned else ())
    assert translated([instance()], None, Current(TARGET, standing)).warnings == ()


def test_several_services_behind_one() -> None:
    """Each brings its own port and its own ready instances; labels of the first rule win."""
    http = Rule(to=Destination(port_name="http", port=80, labels=(("a", "1"),)))
    metrics = Rule(to=Destination(port_name="metrics", labels=(("a", "2"), ("b", "2"))))
    found = translate(
        TARGET,
        [
            (http, Query("dc1", "web-http"), Known((instance(port=8000),))),
            (metrics, Query("dc1", "web-metrics"), Known((instance(port=9000), instance("10.0.0.2", 9000)))),
        ],
    )
    assert found.mirror is not None
    assert found.mirror.service_ports == (Port("http", 80), Port("metrics", 9000))
    assert found.mirror.groups == (
        group(*ready("10.0.0.1"), ports=(Port("http", 8000),)),
        group(*ready("10.0.0.1", "10.0.0.2"), ports=(Port("metrics", 9000),)),
    )
    assert found.mirror.labels == (("a", "1"), ("b", "2"))
    assert found.mirror.queries == (Query("dc1", "web-http"), Query("dc1", "web-metrics"))


def test_rules_that_share_a_service_and_contradict_each_other_are_reported() -> None:
    """Once for each thing, however many they are; what only one of them says is no contradiction."""

    def says(port_name: str, owner: str, **more: object) -> Rule:
        labels = (("owner", owner), (port_name, "own"))
        return rule(port_name=port_name, labels=labels, labels_from=(("team", "meta:team"),), **more)

    def known(port: int, team: str) -> Known:
        return Known((instance(port=port, meta=(("team", team),)),))

    found = translate(
        TARGET,
        [
            (says("http", "a"), Query("dc1", "web-http"), known(80, "x")),
            (
                says(
                    "metrics", "a", headless=True, output=Output.BOTH, annotations=(("n", "2"),),
                    max_endpoints_per_slice=500,
                ),
                Query("dc1", "web-metrics"),
                known(90, "x"),
            ),
            (
                says("admin", "b", output=Output.ENDPOINTSLICES, annotations=(("n", "3"),)),
                Query("dc1", "web-admin"),
                known(91, "x"),
            ),
        ],
    )  # fmt: skip
    assert found.mirror is not None
    assert (found.mirror.output, found.mirror.headless, dict(found.mirror.labels)["owner"]) == (
        Output.ENDPOINTS, False, "a",
    )  # fmt: skip
    begin = "the rules that share this Service differ in "
    assert [w.removeprefix(begin) for w in found.warnings if w.startswith(begin)] == [
        "max_endpoints_per_slice: '100' (for web-http) is taken, not '500' (for web-metrics)",
        "output: 'endpoints' (for web-http) is taken, not 'both' (for web-metrics)",
        "the annotation n: '2' (for web-metrics) is taken, not '3' (for web-admin)",
        "the label owner: 'a' (for web-http) is taken, not 'b' (for web-admin)",
        "type: 'ClusterIP' (for web-http) is taken, not 'Headless' (for web-metrics)",
    ]


def test_what_was_not_understood_of_a_rule_is_reported_of_what_it_makes() -> None:
    """Each sentence once, however many instances there are."""
    by = Rule(to=Destination(annotated=True), warnings=(said("a word means nothing"),))
    found = translated(instances(3), by, Current(TARGET, service(None)))
    assert found.warnings == ("a word means nothing",)


# --------------------------------------------------------------------------- labels, annotations, marks


def test_labels_and_annotations_come_from_instances_where_a_rule_asks_for_them() -> None:
    """In a form that Kubernetes takes; contradictions are reported; what the rule itself gives wins."""
    by = rule(
        labels=(("fixed", "rule"),),
        labels_from=(("team", "meta:team"), ("zone", "node-meta:zone"), ("tier", "tag:tier="), ("fixed", "meta:team")),
        annotations_from=(("tags", "tags"), ("none", "meta:none")),
    )
    found = translated(
        [
            instance(meta=(("team", "a b/c"),), tags=("s3", "tier=gold"), node_meta=(("zone", "z"),)),
            instance("10.0.0.2", meta=(("team", "zz"),), tags=("s3",)),
            instance("10.0.0.3", meta=(("team", "proxy"),), kind="connect-proxy"),
        ],
        by,
    )
    assert found.mirror is not None
    assert found.mirror.labels == (("fixed", "rule"), ("team", "a_b_c"), ("tier", "gold"), ("zone", "z"))
    assert found.mirror.annotations == (("tags", "s3,tier=gold"),)
    assert found.warnings == (
        "instances have 2 values for the label fixed (meta:team): a_b_c is taken",
        "instances have 2 values for the label team (meta:team): a_b_c is taken",
    )


def test_long_annotations_are_cut_and_contradictions_named() -> None:
    """An object has 256 KiB for all of them."""
    found, warnings = derived(
        (("a", "meta:a"),), [instance(meta=(("a", "x" * 5000),)), instance(meta=(("a", "y"),))], label=False
    )
    assert len(found[0][1]) == 1024
    assert warnings[0].startswith("instances have 2 values for the annotation a (meta:a): xxx")


@pytest.mark.parametrize(
    ("text", "value"),
    [("storage", "storage"), ("a b/ü", "a_b"), ("__", ""), ("x" * 64, "x" * 54 + "-" + "7ce10097")],
)
def test_label_values_are_made_legal(text: str, value: str) -> None:
    """Letters, digits, `-`, `_` and `.`; at most 63."""
    assert label_value(text) == value


@pytest.mark.parametrize(
    ("queries", "service_value", "datacenter_value"),
    [
        ([Query("dc1", "web")], "web", "dc1"),
        ([Query("dc1", "web-b"), Query("dc1", "web-a")], "web-a,web-b", "dc1"),
        ([Query("dc2", "a"), Query("dc1", "b")], "b,a", "dc1,dc2"),
        ([Query("dc1", "web", filter="x"), Query("dc1", "web")], "web", "dc1"),
        ([Query("fra", "web"), Query("ams", "web")], "web", "ams,fra"),
        ([Query("dc1", "a,b%\n\ud800")], "a%2Cb%25%0A%ED%A0%80", "dc1"),
    ],
)
def test_marks_say_where_an_object_comes_from(queries: list[Query], service_value: str, datacenter_value: str) -> None:
    """Several services are joined by commas in order, and can be told apart again."""
    labels, annotations = ownership_labels("me", queries)
    assert labels == (("app.kubernetes.io/managed-by", "consul-bridge"), ("consul-bridge/owner", "me"))
    assert annotations == (("consul-bridge/datacenter", datacenter_value), ("consul-bridge/service", service_value))
    assert origins(service_value, datacenter_value) == tuple(sorted({(q.datacenter, q.service) for q in queries}))


def test_marks_that_a_user_wrote_are_read_as_well_as_they_can_be() -> None:
    """Nothing in them raises."""
    assert origins("a%FF", "dc1") == (("dc1", "a�"),)
    assert origins("", "") == ()


def test_the_builders_query_is_mirrored_by_default() -> None:
    """The mirror names what it is made of."""
    assert mirror_of([instance()]).queries == (QUERY,)
    assert mirror_of([instance()]).groups == (Group(Family.IPV4, (Port("", 8080),), ready("10.0.0.1")),)


# --------------------------------------------------------------------------- what a Service says of its own traffic


def asking(**traffic: object) -> Current:
    """A Service with fields that no rule sets."""
    return Current(TARGET, service(traffic=TrafficPolicy(**traffic), type="LoadBalancer"))  # type: ignore[arg-type]


def test_what_is_not_ready_is_published_where_the_service_asks_for_it() -> None:
    """Ready, and `serving` says the truth; what is omitted stays out."""
    found = [
        instance(),
        instance("10.0.0.2", status=Status.CRITICAL, check="disk"),
        instance("10.0.0.3", status=Status.MAINTENANCE),
    ]
    current = asking(publish_not_ready=True)
    (listed,) = mirror_of(found, None, current).groups
    assert [(e.ready, e.serving, e.terminating) for e in listed.endpoints] == [
        (True, True, False), (True, False, False), (True, True, True),
    ]  # fmt: skip
    decisions = decide(found, Rule(), current)
    assert [str(f.reason or "") for f in decisions][1] == (
        "it is critical (check disk), and the Service asks for such endpoints too (publishNotReadyAddresses)"
    )
    omitted = mirror_of(found, picky(critical=Treatment.OMIT, maintenance=Treatment.OMIT), current)
    assert [len(g.endpoints) for g in omitted.groups] == [1]


@pytest.mark.parametrize(
    ("by", "traffic", "nodes", "codes"),
    [
        (rule(), {}, (), ()),
        (rule(), {"internal_local": True}, (), ("traffic_local",)),
        (rule(), {"external_local": True}, (), ("traffic_local",)),
        (rule(), {"internal_local": True, "external_local": True}, ("vm-10.0.0.1",), ()),
        (rule(), {"distribution": "PreferSameZone"}, (), ("distribution_unhinted",)),
        (rule(output=Output.BOTH), {"distribution": "PreferSameZone"}, (), ()),
        (rule(output=Output.BOTH), {"distribution": "Odd"}, (), ("distribution_unzoned",)),
    ],
)
def test_what_virtual_machines_cannot_give_is_reported(
    by: Rule, traffic: dict[str, object], nodes: tuple[str, ...], codes: tuple[str, ...]
) -> None:
    """Local policies reach endpoints on the clients' node alone, and hints need slices and a zone for all."""
    found = [instance(node_meta=(("zone", "a"),))]
    assert codes_of(translated(found, by, asking(**traffic), cluster_nodes=ClusterNodes(nodes)).warnings) == codes


def test_a_zone_is_a_hint_where_the_service_asks_for_it() -> None:
    """Whether or not the endpoint is ready, so that a flip changes no hint; where a zone is unknown it is reported."""
    found = [instance(node_meta=(("zone", "a"),), status=Status.CRITICAL), instance("10.0.0.2")]
    translation = translated(found, rule(output=Output.BOTH), asking(distribution="PreferClose"))
    assert translation.mirror is not None
    assert [e.for_zone for e in translation.mirror.groups[0].endpoints] == ["a", ""]
    assert codes_of(translation.warnings) == ("distribution_unzoned",)
    nobody = translated(found[:1], rule(output=Output.BOTH), asking(distribution="PreferClose"))
    assert codes_of(nobody.warnings) == ()


def test_an_instance_without_a_port_is_there_for_dns_alone() -> None:
    """Behind a headless Service; a port that is none is no port all the same."""
    by = rule(headless=True)
    found = translated([instance(port=0), instance("10.0.0.2", 70000), instance("10.0.0.3", 80)], by)
    assert found.mirror is not None
    assert [g.ports for g in found.mirror.groups] == [(), (Port("", 80),)]
    assert [s.reason.code for s in found.skipped if isinstance(s.reason, Reason)] == [Code.PORT_INVALID]


def skipped(found: Translation) -> list[str]:
    """Why instances were skipped."""
    return [str(each.reason) for each in found.skipped]


NODES = ClusterNodes({"k8s-1"}, {"10.0.0.1": "k8s-1", "10.0.0.2": "k8s-2", "2001:db8::2": "k8s-2"})


@pytest.mark.parametrize(
    ("address", "consul_node", "reason"),
    [
        (
            "10.0.0.1",
            "vm1",
            "10.0.0.1 is an address of this cluster's node k8s-1: annotated Services do not lead there",
        ),
        ("2001:db8::2", "vm1", "2001:db8::2 is an address of this cluster's node k8s-2"),
        ("64:ff9b::a00:2", "vm1", "64:ff9b::a00:2 is an address of this cluster's node k8s-2"),
        ("10.0.0.1", "k8s-1", ""),
        ("10.0.0.2", "k8s-1", "10.0.0.2 is an address of this cluster's node k8s-2"),
        ("10.0.0.2", "k8s-2", "10.0.0.2 is an address of this cluster's node k8s-2"),
        ("10.0.0.9", "vm1", ""),
        ("2001:db8::9", "vm1", ""),
    ],
)
def test_a_users_service_leads_to_no_node_of_the_cluster(address: str, consul_node: str, reason: str) -> None:
    """But to what Consul has on that very node, where the two are known to be one; or where it was granted."""
    rules = InstanceRules(node_addresses=False)
    by = Rule(to=Destination(annotated=True), instances=rules)
    found = [instance(address, node=consul_node), instance("10.0.0.8", node="vm8")]
    current = Current(TARGET, service(owner=None, ports=(Port("", 8080),)))
    refused = translated(found, by, current, cluster_nodes=NODES)
    assert [text.startswith(reason) for text in skipped(refused)] == ([True] if reason else [])
    assert skipped(translated(found, by, current)) == []
    granted = replace(by, instances=replace(rules, node_addresses=True))
    assert skipped(translated(found, granted, current, cluster_nodes=NODES)) == []


def test_a_host_name_that_resolves_to_a_node_leads_there_as_little() -> None:
    """Its other addresses are taken."""
    by = Rule(to=Destination(annotated=True), instances=InstanceRules(node_addresses=False))
    names = {"db.example": ("10.0.0.2", "10.0.0.9"), "node.example": ("10.0.0.2",)}
    found = [instance("db.example", node="vm1"), instance("node.example", node="vm2")]
    result = translated(found, by, Current(TARGET, service(owner=None)), resolved=names, cluster_nodes=NODES)
    assert result.mirror is not None
    assert [e.address for group in result.mirror.groups for e in group.endpoints] == ["10.0.0.9"]
    (text,) = skipped(result)
    assert text.startswith("10.0.0.2 is an address of this cluster's node k8s-2")


def test_an_operators_rule_that_leads_to_nodes_is_warned_of() -> None:
    """Not for what Consul has on that very node."""
    found = [instance("10.0.0.1", node="k8s-1"), instance("10.0.0.2", node="vm2"), instance("10.0.0.9", node="vm9")]
    result = translated(found, cluster_nodes=NODES)
    assert skipped(result) == []
    assert [warning for warning in result.warnings if warning.code is Code.NODE_ADDRESSES] == [
        "1 addresses are those of this cluster's own nodes (10.0.0.2, for example): the Service leads to what listens "
        "there; `deny_cidrs` refuses them"
    ]
    assert codes_of(translated([*found[:1], *found[2:]], cluster_nodes=NODES).warnings) == ()
