"""Properties of the rules over random catalogs, random objects, and hostile input."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.core import explain, normalize, ownership, select
from bridge.core.assignments import TargetAssignments
from bridge.core.instances import host_names
from bridge.core.mirroring import may_refuse, why_not_mirrored
from bridge.core.model import (
    Action,
    Adopt,
    Amount,
    Body,
    ClusterNodes,
    Combine,
    Current,
    Destination,
    EndpointsBody,
    Family,
    Instance,
    InstanceRules,
    Kind,
    Known,
    Mirror,
    NamedPort,
    Output,
    Policy,
    Port,
    Query,
    Rule,
    ServiceBody,
    Skipped,
    SliceBody,
    Status,
    TaggedAddress,
    Target,
    Treatment,
)
from bridge.core.plan import plan
from bridge.core.retain import retain
from bridge.core.translate import translate
from tests.unit.core.builders import (
    OUTPUTS,
    OWNER,
    QUERY,
    TARGET,
    Cluster,
    down,
    endpoints,
    group,
    pairs,
    planned,
    ready,
    service,
    settle,
    slice_of,
    translated,
)

# --------------------------------------------------------------------------- ordinary catalogs

addresses = st.one_of(
    st.integers(1, 30).map(lambda n: f"10.0.0.{n}"),
    st.integers(1, 9).map(lambda n: f"fd00::{n}"),
)
port_lists = st.sampled_from(
    [
        (),
        (NamedPort("grpc", 9090), NamedPort("http", 8080, True)),
        (NamedPort("http", 8081, True),),
        (NamedPort("a.b", 7000), NamedPort("a_b", 7001, True)),
    ]
)


@st.composite
def instance_of(draw: st.DrawFn) -> Instance:
    address = draw(addresses)
    return Instance(
        node=f"vm{draw(st.integers(1, 5))}",
        id=draw(st.sampled_from("abcdefgh")),
        address=address,
        node_address="10.1.0.1",
        port=draw(st.sampled_from([0, 8080, 8080, 8081])),
        status=draw(st.sampled_from([Status.PASSING, Status.PASSING, *Status])),
        ports=draw(port_lists),
        meta=draw(st.sampled_from([(), (("protocol", "udp"),), (("team", "storage"),)])),
        node_meta=draw(st.sampled_from([(), (("zone", "eu-1a"),), (("zone", "not a zone"),)])),
        kind=draw(st.sampled_from(["", "", "", "connect-proxy"])),
    )


catalogs = st.lists(instance_of(), max_size=14)
limits = st.sampled_from([1, 3, 100])


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    return Rule(
        to=Destination(
            output=draw(st.sampled_from(OUTPUTS)),
            port=draw(st.sampled_from([0, 0, 80])),
            port_name=draw(st.sampled_from(["", "", "http"])),
            max_endpoints_per_slice=draw(limits),
            labels=draw(st.sampled_from([(), (("team", "a"),)])),
            labels_from=draw(st.sampled_from([(), (("team", "meta:team"),)])),
        ),
        instances=InstanceRules(
            critical=draw(st.sampled_from([Treatment.NOT_READY, Treatment.OMIT])),
            settle_seconds=draw(st.sampled_from([0.0, 5.0])),
            min_ready=draw(st.sampled_from([Amount(), Amount(1), Amount(3), Amount(50, percent=True)])),
        ),
    )


@given(first=catalogs, second=catalogs, before=rules(), after=rules())
@settings(max_examples=150, deadline=None)
def test_every_way_from_one_state_to_another(
    first: list[Instance], second: list[Instance], before: Rule, after: Rule
) -> None:
    """Applying plans leads to what is desired, comes to rest, and never takes away what stays ready throughout."""
    cluster = Cluster()
    settle(cluster, first, before)
    standing = cluster.traffic()
    cluster.seen.clear()
    settle(cluster, second, after)
    desired = translated(second, after, cluster.current()).mirror
    if desired is None:
        assert cluster.service is None
        assert cluster.traffic() == set()
        return
    assert cluster.traffic() == pairs(desired.groups)
    throughout = standing & pairs(desired.groups)
    for seen in cluster.seen:
        assert throughout <= seen
    _holds_what_is_desired(cluster, desired)


def _holds_what_is_desired(cluster: Cluster, desired: Mirror) -> None:
    """Endpoints and slices hold just what is desired, no endpoint twice in slices."""
    inside = [(s.group.family, s.group.ports, e) for s in cluster.slices.values() for e in s.group.endpoints]
    assert len(inside) == len({(family, ports, e.address) for family, ports, e in inside})
    wanted = {(g.family, g.ports, e) for g in desired.groups for e in g.endpoints}
    refused = bool(why_not_mirrored(desired.groups))
    sliced = desired.output is not Output.ENDPOINTS or refused or (inside and may_refuse(desired.groups))
    assert set(inside) == (wanted if sliced else set())
    assert all(len(s.group.endpoints) <= desired.max_endpoints_per_slice for s in cluster.slices.values())
    if desired.output is Output.ENDPOINTSLICES:
        assert cluster.endpoints is None
    else:
        assert cluster.endpoints is not None
        assert cluster.endpoints.groups == normalize.without_conditions(desired.groups)


@given(found=catalogs, by=rules(), shuffle=st.randoms())
@settings(max_examples=100, deadline=None)
def test_the_order_of_input_never_matters(found: list[Instance], by: Rule, shuffle: Any) -> None:
    """Instances and existing objects in any order give the same translation and the same plan."""
    mixed = list(found)
    shuffle.shuffle(mixed)
    assert translated(found, by) == translated(mixed, by)
    cluster = Cluster()
    settle(cluster, found, by)
    current = cluster.current()
    slices = list(current.slices)
    shuffle.shuffle(slices)
    other = Current(current.target, current.service, current.endpoints, tuple(slices), current.mirrored)
    desired = translated(found[1:], by, current).mirror
    assert planned(desired, current) == planned(desired, other)


owners = st.sampled_from([OWNER, OWNER, "another", None])


@st.composite
def objects(draw: st.DrawFn) -> Current:
    """Anything that may stand at a target."""
    marked: Any = draw(st.sampled_from([(), (("consul-bridge/adopt", "true"),), (("consul", "true"),)]))
    content = group(*ready("10.0.0.1", "10.0.0.2"), *down("10.0.0.9"))
    found_service = service(
        draw(owners),
        type=draw(st.sampled_from(["ClusterIP", "ExternalName"])),
        has_selector=draw(st.booleans()),
        headless=draw(st.booleans()),
        meta_ownership=marked,
        meta_deleting=draw(st.booleans()),
    )
    return Current(
        TARGET,
        draw(st.sampled_from([None, found_service])),
        draw(
            st.sampled_from(
                [None, endpoints(content, owner=draw(owners), ownership=marked, deleting=draw(st.booleans()))]
            )
        ),
        tuple(
            slice_of(f"s{n}", content, draw(owners), deleting=draw(st.booleans()))
            for n in range(draw(st.integers(0, 3)))
        ),
        draw(st.sampled_from([None, (), (content,)])),
    )


@given(
    found=catalogs,
    by=rules(),
    current=objects(),
    policy=st.sampled_from(Policy),
    adopt=st.sampled_from(Adopt),
    gone=st.booleans(),
    annotated=st.booleans(),
)
@settings(max_examples=250, deadline=None)
def test_no_plan_touches_what_is_not_ours(
    found: list[Instance], by: Rule, current: Current, policy: Policy, adopt: Adopt, gone: bool, annotated: bool
) -> None:
    """Only ours, and unowned ones that were handed over; never another owner's; nothing that the policy forbids."""
    if annotated:
        by = Rule(to=Destination(output=by.to.output, annotated=True))
    desired = None if gone else translated(found, by, current).mirror
    result = planned(desired, current, policy, adopt)
    for change in result.writes:
        if change.existing is not None:
            handed_over = adopt is not Adopt.NEVER or dict(change.existing.ownership)
            assert change.existing.owner == OWNER or (change.existing.owner is None and handed_over)
            assert not change.existing.deleting
        if change.kind is Kind.SERVICE:
            assert not (annotated and not gone)
        assert change.action is not Action.DELETE or policy is Policy.SYNC
        assert change.action is not Action.UPDATE or policy is not Policy.CREATE_ONLY
    assert result.removed + result.became_unready <= result.ready_before
    if not result.writes:
        assert (result.removed, result.became_unready) == (0, 0)
    if current.service is not None and current.service.has_selector:
        assert desired is None or not result.writes
        assert not any(c.kind is Kind.SERVICE for c in result.writes)
    deletes = [c.action is Action.DELETE for c in result.changes]
    assert deletes == sorted(deletes)


@given(first=catalogs, second=catalogs, by=rules(), lost=st.booleans(), flips=st.booleans())
@settings(max_examples=150, deadline=None)
def test_retain_takes_nothing_away(
    first: list[Instance], second: list[Instance], by: Rule, lost: bool, flips: bool
) -> None:
    """With what the guard holds put back, no ready endpoint of that kind goes, and it comes to rest."""
    cluster = Cluster()
    settle(cluster, first, by)
    current = cluster.current()
    desired = translated(second, by, current).mirror
    if desired is None:
        return
    kept = retain(desired, current, removed=lost, flips=flips)
    result = planned(kept, current)
    assert not (lost and result.removed)
    assert not (flips and lost and result.became_unready)
    assert pairs(desired.groups) <= pairs(kept.groups)
    if lost and flips:
        assert {(a, n) for a, _, n, _ in cluster.traffic()} <= {(a, n) for a, _, n, _ in pairs(kept.groups)}
    cluster.apply(result)
    again = retain(desired, cluster.current(), removed=lost, flips=flips)
    cluster.mirror()
    if result.unmirrored:  # slices of ours that have waited for the mirror go with the next pass
        cluster.apply(planned(again, cluster.current()))
    assert not planned(again, cluster.current()).writes


# --------------------------------------------------------------------------- hostile input

texts = st.one_of(
    st.text(max_size=30),
    st.text(alphabet=st.characters(), max_size=200),
    st.sampled_from(
        ["", "consul", "\ud800", "{service}", "a,b%2C", "x" * 5000, "127.0.0.1", "::ffff:1.2.3.4", "fe80::1%1"]
    ),
)
numbers = st.one_of(st.integers(-(2**40), 2**40), st.sampled_from([0, -1, 65535, 65536]))
some_pairs = st.lists(st.tuples(texts, texts), max_size=3).map(lambda found: tuple(sorted(found)))
wild_addresses = st.one_of(texts, addresses, st.sampled_from(["db.example", "169.254.169.254", "255.255.255.255"]))


@st.composite
def hostile(draw: st.DrawFn) -> Instance:
    return Instance(
        node=draw(texts),
        id=draw(texts),
        address=draw(wild_addresses),
        node_address=draw(wild_addresses),
        port=draw(numbers),
        status=draw(st.sampled_from(Status)),
        check=draw(texts),
        ports=tuple(NamedPort(draw(texts), draw(numbers), draw(st.booleans())) for _ in range(draw(st.integers(0, 3)))),
        tags=tuple(draw(st.lists(texts, max_size=3))),
        meta=draw(some_pairs),
        node_meta=draw(st.one_of(some_pairs, texts.map(lambda t: (("zone", t),)))),
        tagged_addresses=(TaggedAddress("lan", draw(wild_addresses), draw(numbers)),),
        kind=draw(st.sampled_from(["", "", "connect-proxy"])),
    )


@st.composite
def any_rules(draw: st.DrawFn) -> Rule:
    return Rule(
        to=Destination(
            name=draw(st.sampled_from(["{service}", "{service}-{datacenter}", "fixed", "{namespace}{partition}"])),
            output=draw(st.sampled_from(OUTPUTS)),
            headless=draw(st.booleans()),
            annotated=draw(st.booleans()),
            labels_from=draw(st.sampled_from([(), (("team", "meta:a"), ("t", "tags"), ("p", "tag:x"))])),
            annotations_from=draw(st.sampled_from([(), (("team", "node-meta:zone"), ("t", "tags"))])),
        ),
        instances=InstanceRules(
            address=draw(st.sampled_from(["auto", "service", "node", "lan", "wan"])),
            deny_cidrs=draw(st.sampled_from([(), ("10.0.0.0/28",)])),
            settle_seconds=draw(st.sampled_from([0.0, 5.0])),
            min_ready=draw(st.sampled_from([Amount(), Amount(1), Amount(3), Amount(50, percent=True)])),
        ),
    )


_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


@given(
    found=st.lists(hostile(), max_size=5),
    by=any_rules(),
    name=texts,
    datacenter=texts,
    resolved=st.dictionaries(wild_addresses, st.tuples(wild_addresses, wild_addresses), max_size=2),
    with_service=st.booleans(),
)
@settings(max_examples=250, deadline=None)
def test_whatever_is_registered_gives_objects_that_kubernetes_takes(
    found: list[Instance],
    by: Rule,
    name: str,
    datacenter: str,
    resolved: dict[str, tuple[str, ...]],
    with_service: bool,
) -> None:
    """No text in any field raises, leaves the rule's namespace, forges a mark, or makes an object that is refused."""
    query = Query(datacenter, name)
    target = select.target_of(by, query)
    if isinstance(target, Skipped):
        return
    assert target.namespace == "default"
    assert _DNS_LABEL.fullmatch(target.name)
    assert target.name[0].isalpha()
    current = Current(target, service(None, (Port("web", 80), Port("x", 81))) if with_service else None)
    host_names(found, by)
    nodes = ClusterNodes({"vm1"})
    result = translate(target, [(by, query, Known(tuple(found)))], current, resolved, cluster_nodes=nodes)
    made = plan(target, result.mirror, current, owner=OWNER, adopt=Adopt.UNOWNED)
    for change in made.changes:
        assert change.target == target
        assert change.body is not None
        labels = dict(change.body.labels)
        assert labels["consul-bridge/owner"] == OWNER
        assert all(_VALUE.fullmatch(value) for value in labels.values())
        json.dumps([change.body.annotations, change.body.labels]).encode()
        for value in dict(change.body.annotations).values():
            assert not any("\ud800" <= c <= "\udfff" for c in value)
        _is_legal(change.body)
    for text in (*(s.reason for s in result.skipped), *result.warnings, *(s.instance for s in result.skipped)):
        assert text.isprintable()
        assert len(text) < 600
    assert all(s.service == name for s in result.skipped)
    explain.explain(
        name, datacenter, tags=set(), rules=[by], knowledge=Known(tuple(found)), current=current, plan=made
    ).to_json()


def _is_legal(body: Body) -> None:
    groups = body.groups if isinstance(body, EndpointsBody) else (body.group,) if isinstance(body, SliceBody) else ()
    port_sets = [body.ports] if isinstance(body, ServiceBody) else [g.ports for g in groups]
    for port_set in port_sets:
        assert all(0 < p.number < 65536 for p in port_set)
        assert all(_DNS_LABEL.fullmatch(p.name) for p in port_set if p.name or len(port_set) > 1)
        assert len({p.name for p in port_set}) == len(port_set)
        assert {p.protocol for p in port_set} <= {"TCP", "UDP", "SCTP"}
    if isinstance(body, ServiceBody):
        assert body.headless or body.ports
        assert len({(p.number, p.protocol) for p in body.ports}) == len(body.ports)
    for g in groups:
        assert g.endpoints
        seen = [e.address for e in g.endpoints]
        assert len(seen) == len(set(seen))
        for endpoint in g.endpoints:
            assert normalize.parse(endpoint.address) == normalize.Address(endpoint.address, g.family)
            assert endpoint.serving or not endpoint.ready
            assert not endpoint.zone or _VALUE.fullmatch(endpoint.zone)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
def test_marks_can_be_read_back(names: list[tuple[str, str]]) -> None:
    """Whatever services are called, their objects' annotations lead back to them."""
    queries = [Query(datacenter, name) for datacenter, name in names]
    _, annotations = ownership.ownership_labels(OWNER, queries)
    found = dict(annotations)
    expected = {(d, n) for d, n in names if d and n}
    assert set(ownership.origins(found[ownership.SERVICE], found[ownership.DATACENTER])) == expected


@given(texts, texts)
def test_annotations_that_users_wrote_raise_nothing(one: str, other: str) -> None:
    """Reading marks never fails, whatever exists."""
    ownership.origins(one, other)


@given(texts)
def test_an_address_is_taken_in_its_own_spelling_or_refused_with_a_reason(text: str) -> None:
    """Parsing is idempotent and never raises."""
    found = normalize.parse(text)
    if isinstance(found, normalize.Address):
        assert normalize.parse(found.text) == found
    else:
        assert found.reason.isprintable()


# --------------------------------------------------------------------------- claims


queries = st.builds(Query, st.sampled_from(["dc1", "dc2"]), st.sampled_from(["web", "web-a", "web-b", "zeta"]))
claim_rules = st.builds(
    lambda name, annotated, combine: Rule(
        datacenters=("dc2", "dc1"),
        combine=None if annotated else combine,
        to=Destination(port_name=name, annotated=annotated),
    ),
    st.sampled_from(["", "http", "metrics"]),
    st.sampled_from([False, False, False, True]),
    st.sampled_from([None, None, *Combine]),
)
orders = st.sampled_from([0, 0, 1, 2])
steps = st.lists(
    st.tuples(queries, st.one_of(st.none(), claim_rules), st.sampled_from(["web", "zeta"]), orders),
    min_size=1,
    max_size=25,
)


@given(steps=steps)
@settings(max_examples=150, deadline=None)
def test_claims_depend_on_what_is_claimed_and_not_on_how_it_came_about(
    steps: list[tuple[Query, Rule | None, str, int]],
) -> None:
    """Claims and releases in any order end like the same claims made afresh; each says rightly what it changed."""
    claims = TargetAssignments()
    held: dict[tuple[Query, Target, int], Rule] = {}  # -1: the annotated Service's, which comes before every rule
    for query, by, name, order in steps:
        target = Target("default", name)
        before = claims.winners(target)
        if by is None:
            changed = claims.withdraw(query, target, order=order)
            if held.pop((query, target, -1), None) is None:
                held.pop((query, target, order), None)
        else:
            changed = claims.claim(query, by, target, order)
            held[query, target, -1 if by.to.annotated else order] = by
        assert changed == ({target} if claims.winners(target) != before else set())
    fresh = TargetAssignments()
    for (query, target, order), by in sorted(held.items(), key=lambda item: item[0]):
        fresh.claim(query, by, target, max(order, 0))
    assert claims.targets() == fresh.targets() == {target for _, target, _ in held}
    for target in claims.targets():
        assert claims.winners(target) == fresh.winners(target)
        assert claims.rejected(target) == fresh.rejected(target)
        mirrored = {q for q, _ in claims.winners(target)}
        assert mirrored
        wanted = [(order, query) for query, t, order in held if t == target]
        assert {q for _, q in wanted} == {q for q in {q for _, q in wanted} if claims.wants(q, target)}
        assert min(order for order, _ in wanted) == min(order for order, q in wanted if q in mirrored)
        lost = {s.service for s in claims.rejected(target)}
        assert {q.service for _, q in wanted} == lost | {q.service for q in mirrored}
        won = claims.winners(target)
        if won[0][1].combine is None:
            names = [by.to.port_name for _, by in won]
            assert len(names) == len(set(names))
            assert len(won) == 1 or all(by.combine is None for _, by in won)
        else:
            assert [q.datacenter for q, _ in won] in (["dc2"], ["dc1"], ["dc2", "dc1"])
            assert len({q.service for q, _ in won}) == 1


@pytest.mark.parametrize("family", list(Family))
@given(
    numbers=st.lists(st.integers(1, 250), unique=True, max_size=30), gone=st.integers(0, 29), limit=st.integers(1, 12)
)
@settings(max_examples=60, deadline=None)
def test_one_changed_instance_is_one_changed_slice(family: Family, numbers: list[int], gone: int, limit: int) -> None:
    """A flip, a removal and a new instance each write one slice."""
    by = Rule(to=Destination(output=Output.ENDPOINTSLICES, max_endpoints_per_slice=limit))
    prefix = "10.0.0." if family is Family.IPV4 else "fd00::"
    found = [_one(f"{prefix}{n}") for n in numbers]
    cluster = Cluster()
    settle(cluster, found, by)
    if found:
        gone %= len(found)
        flipped = [*found[:gone], _one(found[gone].address, Status.CRITICAL), *found[gone + 1 :]]
        removed = [*found[:gone], *found[gone + 1 :]]
        added = [*found, _one(f"{prefix}251")]
        for changed in (flipped, removed, added):
            current = cluster.current()
            assert len(planned(translated(changed, by, current).mirror, current).writes) == 1


def _one(address: str, status: Status = Status.PASSING) -> Instance:
    return Instance(node=address, id="i", address=address, node_address="", port=8080, status=status)


def test_the_default_query_of_these_tests_is_the_one_of_the_builders() -> None:
    """Marks in the builders and in plans speak of the same service."""
    assert dict(service().meta.annotations).items() >= dict(ownership.ownership_labels(OWNER, (QUERY,))[1]).items()


@given(first=catalogs, second=catalogs, before=rules(), after=rules())
@settings(max_examples=300, deadline=None)
def test_the_second_pass_finds_the_service_as_it_should_be(
    first: list[Instance], second: list[Instance], before: Rule, after: Rule
) -> None:
    """Its ports are settled in one pass, whatever they were: clients must not see two changes for one."""
    cluster = Cluster()
    settle(cluster, first, before)
    cluster.apply(planned(translated(second, after, cluster.current()).mirror, cluster.current()))
    again = planned(translated(second, after, cluster.current()).mirror, cluster.current())
    assert [change for change in again.writes if change.kind is Kind.SERVICE] == []
