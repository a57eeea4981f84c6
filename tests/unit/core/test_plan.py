"""What is written, in which order, and what never is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bridge.core.model import (
    Action,
    Adopt,
    Change,
    Conflict,
    Current,
    CurrentService,
    Endpoint,
    Family,
    Instance,
    Kind,
    Mirror,
    Output,
    Plan,
    Policy,
    Port,
    Query,
    Rule,
    Scope,
    ServiceBody,
    Skipped,
    SliceBody,
    Status,
    Treatment,
)
from bridge.core.ownership import SERVICE_SYNC, joined, ownership_labels
from bridge.core.plan import plan
from bridge.core.reasons import Code
from bridge.core.retain import retain
from tests.unit.core.builders import (
    OUTPUTS,
    OWNER,
    QUERY,
    TARGET,
    Cluster,
    down,
    endpoints,
    group,
    instance,
    instances,
    meta,
    mirror_of,
    named,
    pairs,
    picky,
    planned,
    ready,
    rule,
    said,
    service,
    settle,
    slice_of,
    verbs,
)

LABELS, ANNOTATIONS = ownership_labels(OWNER, (QUERY,))


def cluster_of(output: Output, count: int = 3) -> Cluster:
    """A settled target."""
    found = Cluster()
    settle(found, instances(count), rule(output=output))
    return found


def conflicts(found: Plan) -> list[str]:
    return [f"{c.kind}: {c.reason}" for c in found.conflicts]


# --------------------------------------------------------------------------- creating and keeping


@pytest.mark.parametrize(
    ("output", "writes"),
    [
        (Output.ENDPOINTS, ["create Service", "create Endpoints"]),
        (Output.ENDPOINTSLICES, ["create Service", "create EndpointSlice"]),
        (Output.BOTH, ["create Service", "create EndpointSlice", "create Endpoints"]),
    ],
)
def test_a_new_service_is_made_whole(output: Output, writes: list[str]) -> None:
    """The Service first: the control plane deletes Endpoints without one. Everything carries our labels."""
    found = planned(mirror_of([instance()], rule(output=output)), Current(TARGET))
    assert verbs(found) == writes
    for change in found.changes:
        assert change.body is not None
        assert set(LABELS) <= set(change.body.labels)
        unsynced = (SERVICE_SYNC, "false") in change.body.annotations
        assert set(ANNOTATIONS) <= set(change.body.annotations)
        assert unsynced is (change.kind is Kind.SERVICE)
    assert (found.ready, found.not_ready, found.ready_before) == (1, 0, 0)
    assert (found.removed, found.became_unready, found.queries) == (0, 0, (QUERY,))


def test_a_rule_may_have_its_services_registered_back_in_consul() -> None:
    """By default consul-k8s leaves them out: they come from there."""
    by = rule(annotations=((SERVICE_SYNC, "true"),))
    (made, _) = planned(mirror_of([instance()], by), Current(TARGET)).changes
    assert made.body is not None
    assert (SERVICE_SYNC, "true") in made.body.annotations


def test_the_keys_that_a_rule_gives_stand_on_the_object() -> None:
    """So that what it drops later is found no matter who owns it by then; without any there is nothing to say."""
    by = rule(labels=(("tier", "web"), ("env", "x")), annotations=(("note", "y"),))
    (_, made) = planned(mirror_of([instance()], by), Current(TARGET)).changes
    assert made.body is not None
    found = dict(made.body.annotations)
    assert (found["consul-bridge/rule-labels"], found["consul-bridge/rule-annotations"]) == ("env,tier", "note")
    (_, made) = planned(mirror_of([instance()]), Current(TARGET)).changes
    assert made.body is not None
    assert not {"consul-bridge/rule-labels", "consul-bridge/rule-annotations"} & dict(made.body.annotations).keys()


def test_an_object_that_we_wrote_and_that_lost_its_labels_is_named_as_such() -> None:
    """Not as a stranger's: the field manager is seen on it."""
    lost = service(None, meta_written="2026-11-23T14:00:00Z")
    found = planned(mirror_of([instance()]), Current(TARGET, lost))
    assert [c.reason.code for c in found.conflicts] == [Code.UNLABELLED]
    assert "consul-bridge/owner=default" in found.conflicts[0].reason
    assert found.writes == ()


def test_slices_and_endpoints_side_by_side_are_distinguished() -> None:
    """Slices say that we manage them and whose they are; the Endpoints beside them are not mirrored."""
    found = planned(mirror_of([instance()], rule(output=Output.BOTH)), Current(TARGET))
    by_kind = {c.kind: dict(c.body.labels) for c in found.changes if c.body is not None}
    assert by_kind[Kind.ENDPOINT_SLICE] == {
        **dict(LABELS),
        "endpointslice.kubernetes.io/managed-by": "consul-bridge",
        "kubernetes.io/service-name": "radosgw",
    }
    assert by_kind[Kind.ENDPOINTS] == {**dict(LABELS), "endpointslice.kubernetes.io/skip-mirror": "true"}
    assert by_kind[Kind.SERVICE] == dict(LABELS)


def test_marks_of_ownership_cannot_be_overwritten_by_a_rule() -> None:
    """They are set last."""
    forged = joined((("consul-bridge/owner", "me"), ("a", "b")), LABELS)
    assert dict(forged) == {"a": "b", **dict(LABELS)}


@pytest.mark.parametrize("output", list(Output))
def test_a_second_pass_writes_nothing(output: Output) -> None:
    """Everything that stands is listed as unchanged."""
    cluster = cluster_of(output)
    found = planned(mirror_of(instances(3), rule(output=output), cluster.current()), cluster.current())
    assert found.writes == ()
    assert {c.action for c in found.changes} == {Action.UNCHANGED}
    assert found.ready_before == 3


@pytest.mark.parametrize("output", [Output.ENDPOINTS, Output.ENDPOINTSLICES])
def test_a_flip_writes_one_object(output: Output) -> None:
    """And counts what it flips."""
    cluster = cluster_of(output)
    sick = [instance("10.0.0.1", status=Status.CRITICAL), *instances(3)[1:]]
    found = planned(mirror_of(sick, rule(output=output), cluster.current()), cluster.current())
    assert len(found.writes) == 1
    assert (found.writes[0].ready, found.writes[0].not_ready) == (2, 1)
    assert (found.ready, found.not_ready, found.ready_before, found.removed, found.became_unready) == (2, 1, 3, 0, 1)


def test_draining_and_zones_do_not_rewrite_endpoints() -> None:
    """An Endpoints object cannot hold them, so they never differ."""
    cluster = Cluster()
    drained = [instance(status=Status.MAINTENANCE, node_meta=(("zone", "a"),))]
    settle(cluster, drained, rule())
    assert cluster.endpoints is not None
    assert cluster.endpoints.groups == (group(*down("10.0.0.1")),)


def test_endpoints_that_are_not_canonical_are_written_again() -> None:
    """The same groups in another order or with duplicates are not what we would write."""
    cluster = cluster_of(Output.ENDPOINTS)
    assert cluster.endpoints is not None
    cluster.endpoints = replace(cluster.endpoints, normalized=False)
    assert verbs(planned(mirror_of(instances(3), None, cluster.current()), cluster.current())) == ["update Endpoints"]


@pytest.mark.parametrize(
    "change",
    [
        {"ports": (Port("", 1),)},
        {"families": (Family.IPV6,), "family_policy": "SingleStack"},
        {"meta": meta(Kind.SERVICE, labels=())},
        {"meta": meta(Kind.SERVICE, annotations=())},
    ],
)
def test_what_another_writer_changed_about_our_service_is_put_back(change: dict[str, object]) -> None:
    """Ports, families, labels and annotations that are ours."""
    desired = replace(mirror_of(instances(3)), service_ports=(Port("", 8080),), families=(Family.IPV4,))
    cluster = cluster_of(Output.ENDPOINTS)
    assert cluster.service is not None
    cluster.service = replace(cluster.service, **change)  # type: ignore[arg-type]
    assert verbs(planned(desired, cluster.current())) == ["update Service"]


def test_an_application_protocol_is_put_back_only_where_it_is_ours() -> None:
    """Others may set one where no rule does; what we applied and no longer want goes."""
    cluster = cluster_of(Output.ENDPOINTS)
    assert cluster.service is not None
    cluster.service = replace(cluster.service, ports=(Port("", 8080, app_protocol="http"),))
    desired = mirror_of(instances(3), None, cluster.current())
    assert verbs(planned(desired, cluster.current())) == []
    cluster.service = replace(cluster.service, applied=("appProtocol 8080/TCP",))
    assert verbs(planned(desired, cluster.current())) == ["update Service"]


@pytest.mark.parametrize(
    ("by", "standing", "applied", "wanted"),
    [
        (rule(), "LoadBalancer", (), None),
        (rule(), "LoadBalancer", ("type",), "ClusterIP"),
        (rule(), "ClusterIP", ("type",), None),
        (rule(type="NodePort"), "ClusterIP", (), "NodePort"),
        (rule(type="NodePort"), "NodePort", (), None),
        (rule(type="ClusterIP"), "LoadBalancer", (), "ClusterIP"),
    ],
)
def test_a_type_is_the_rules_or_it_is_left_to_others(
    by: Rule, standing: str, applied: tuple[str, ...], wanted: str | None
) -> None:
    """A rule that sets none says nothing about it, and gives up what it set before."""
    cluster = cluster_of(Output.ENDPOINTS)
    assert cluster.service is not None
    cluster.service = replace(cluster.service, type=standing, applied=applied)
    changes = planned(mirror_of(instances(3), by, cluster.current()), cluster.current()).writes
    assert [c.body.type for c in changes if isinstance(c.body, ServiceBody)] == ([wanted] if wanted else [])


def test_a_service_that_requires_both_families_goes_on_requiring_them() -> None:
    """No matter who asked for it, an unrelated change does not make it a preference."""
    cluster = cluster_of(Output.ENDPOINTS)
    assert cluster.service is not None
    cluster.service = replace(cluster.service, family_policy="RequireDualStack", families=tuple(Family))
    assert verbs(planned(mirror_of(instances(3), None, cluster.current()), cluster.current())) == []
    later = mirror_of(instances(3), rule(labels=(("a", "b"),)), cluster.current())
    (change,) = [c for c in planned(later, cluster.current()).writes if c.kind is Kind.SERVICE]
    assert isinstance(change.body, ServiceBody)
    assert change.body.family_policy == "RequireDualStack"


def test_a_dual_stack_service_on_a_single_stack_cluster_is_in_sync() -> None:
    """It asked for both and got what the cluster has."""
    cluster = Cluster()
    settle(cluster, [instance(), instance("fd00::1")], rule())
    assert cluster.service is not None
    cluster.service = replace(cluster.service, families=(Family.IPV4,))
    desired = mirror_of([instance(), instance("fd00::1")], None, cluster.current())
    assert desired.families == (Family.IPV4, Family.IPV6)
    assert planned(desired, cluster.current()).writes == ()


def test_skips_and_warnings_are_passed_on() -> None:
    """The plan is the one account of a target."""
    skipped = (Skipped("a", "b", said("c")),)
    found = plan(TARGET, mirror_of([instance()]), Current(TARGET), owner=OWNER, skipped=skipped, warnings=(said("w"),))
    assert found.skipped == skipped
    assert found.warnings == ("w",)


# --------------------------------------------------------------------------- conflicts


STANDING = Current(TARGET, service(), endpoints(group(*ready("10.0.0.1"))))


@pytest.mark.parametrize(
    ("service_now", "endpoints_now", "adopt", "writes", "reasons"),
    [
        (service(None), None, Adopt.NEVER, [], ["Service: it is not ours"]),
        (service(None), None, Adopt.CONSUL_K8S, [], ["Service: it is not ours"]),
        (service(None), None, Adopt.UNOWNED, ["update Service", "create Endpoints"], []),
        (
            service(None, meta_ownership=(("consul-bridge/adopt", "true"),)),
            None,
            Adopt.NEVER,
            ["update Service", "create Endpoints"],
            [],
        ),
        (
            service(None, meta_ownership=(("consul-bridge/adopt", "yes"),)),
            None,
            Adopt.NEVER,
            [],
            ["Service: it is not"],
        ),
        (
            service("other"),
            None,
            Adopt.UNOWNED,
            [],
            ["Service: it belongs to the bridge with owner id 'other'; if that bridge is meant: --owner other"],
        ),
        (service(has_selector=True), None, Adopt.UNOWNED, [], ["Service: it has a selector"]),
        (
            service(None, type="ExternalName", meta_ownership=(("consul", "true"),)),
            None,
            Adopt.CONSUL_K8S,
            ["update Service", "create Endpoints"],
            [],
        ),
        (
            service(None, type="ExternalName", meta_ownership=(("consul", "true"),)),
            None,
            Adopt.NEVER,
            [],
            ["Service: it is not ours; to hand it over, run with --adopt consul-k8s or annotate"],
        ),
        (service(None, meta_ownership=(("consul", "true"),)), None, Adopt.CONSUL_K8S, [], ["Service: it is not ours"]),
        (service(None, type="ExternalName"), None, Adopt.CONSUL_K8S, [], ["Service: it is not ours"]),
        (None, endpoints(owner=None), Adopt.NEVER, [], ["Endpoints: it is not ours"]),
        (None, endpoints(owner="other"), Adopt.UNOWNED, [], ["Endpoints: it belongs"]),
        (service(None), endpoints(owner="other"), Adopt.UNOWNED, [], ["Endpoints: it belongs"]),
        (service(), endpoints(owner=None), Adopt.NEVER, ["update Service"], ["Endpoints: it is not ours"]),
        (None, endpoints(owner=None), Adopt.UNOWNED, ["create Service", "update Endpoints"], []),
        (
            service(headless=True),
            None,
            Adopt.NEVER,
            ["update Service", "create Endpoints"],
            ["Service: it is headless"],
        ),
    ],
)
def test_what_is_not_ours_is_left_alone_unless_it_is_handed_over(
    service_now: CurrentService | None, endpoints_now: object, adopt: Adopt, writes: list[str], reasons: list[str]
) -> None:
    """Reported with the remedy. A Service is never made in front of another owner's addresses."""
    current = Current(TARGET, service_now, endpoints_now)  # type: ignore[arg-type]
    found = planned(mirror_of([instance()], rule(port=80), current), current, adopt=adopt)
    assert verbs(found) == writes
    assert len(found.conflicts) == len(reasons)
    for conflict, reason in zip(conflicts(found), reasons, strict=True):
        assert conflict.startswith(reason)


def test_what_is_taken_over_is_reported() -> None:
    """In the plan, for people. The ports of an adopted Service stay."""
    current = Current(TARGET, service(None, (Port("web", 81),)))
    found = planned(mirror_of([instance()], None, current), current, adopt=Adopt.UNOWNED)
    assert [c.reason for c in found.changes] == ["adopted", None]
    assert isinstance(found.changes[0].body, ServiceBody)
    assert found.changes[0].body.ports == (Port("web", 81),)


def test_a_service_that_is_not_headless_cannot_become_so() -> None:
    """Kubernetes refuses; everything else about it goes on."""
    cluster = cluster_of(Output.ENDPOINTS)
    headless = rule(headless=True)
    found = planned(mirror_of(instances(4), headless, cluster.current()), cluster.current())
    assert verbs(found) == ["update Endpoints"]
    assert conflicts(found) == [
        "Service: it is not headless, which Kubernetes cannot change in place; delete the Service to have it recreated"
    ]


def test_a_service_that_cannot_become_headless_keeps_its_ports() -> None:
    """Instances without ports need none there, but one with a cluster address must have some: Kubernetes refuses it."""
    current = Current(TARGET, service(OWNER, (Port("web", 80),)))
    found = planned(mirror_of([instance(port=0)], rule(headless=True), current), current)
    assert isinstance(found.changes[0].body, ServiceBody)
    assert (found.changes[0].body.headless, found.changes[0].body.ports) == (False, (Port("web", 80),))


def test_an_alias_becomes_headless_or_not_as_the_rule_says() -> None:
    """An ExternalName has no address yet."""
    current = Current(TARGET, service(None, type="ExternalName", headless=False))
    found = planned(mirror_of([instance()], rule(headless=True), current), current, adopt=Adopt.UNOWNED)
    assert isinstance(found.changes[0].body, ServiceBody)
    assert found.changes[0].body.headless
    assert found.conflicts == ()


@pytest.mark.parametrize(
    ("service_now", "writes", "reasons"),
    [
        (service(None), ["create Endpoints"], []),
        (service(OWNER), ["create Endpoints"], []),
        (None, [], []),
        (service(None, type="ExternalName"), [], ["Service: it is of type ExternalName and has no endpoints"]),
        (service(None, has_selector=True), [], ["Service: it has a selector"]),
    ],
)
def test_a_user_managed_service_is_filled_and_never_written(
    service_now: CurrentService | None, writes: list[str], reasons: list[str]
) -> None:
    """It is not even part of the changes."""
    current = Current(TARGET, service_now)
    found = planned(mirror_of([instance()], rule(annotated=True), current), current)
    assert verbs(found) == writes
    assert all(c.kind is not Kind.SERVICE for c in found.changes)
    assert [c[: len(r)] for c, r in zip(conflicts(found), reasons, strict=True)] == reasons


def test_a_conflict_takes_nothing_away_in_the_sums() -> None:
    """What is not written is not lost: the guard must not be alarmed."""
    current = replace(STANDING, service=service(has_selector=True))
    found = planned(mirror_of([], rule(port=1), current), current)
    assert (found.ready_before, found.removed, found.became_unready) == (1, 0, 0)


@pytest.mark.parametrize(
    ("current", "writes", "warning"),
    [
        (replace(STANDING, service=service(meta_deleting=True)), [], "the Service is being deleted; it is recreated"),
        (
            replace(STANDING, endpoints=endpoints(deleting=True)),
            [],
            "the Endpoints object is being deleted; it is recreated when it is gone",
        ),
    ],
)
def test_what_is_being_deleted_is_waited_for(current: Current, writes: list[str], warning: str) -> None:
    """Writing to it would be lost."""
    found = planned(mirror_of([instance("10.0.0.2")], None, current), current)
    assert verbs(found) == writes
    assert [w.startswith(warning) for w in found.warnings] == [True]


# --------------------------------------------------------------------------- removal


def test_a_target_that_goes_goes_with_its_service_last() -> None:
    """The Service's address is the one thing that cannot be brought back."""
    cluster = cluster_of(Output.BOTH)
    found = planned(None, cluster.current())
    assert verbs(found) == ["delete Endpoints", "delete EndpointSlice", "delete Service"]
    assert (found.ready, found.ready_before, found.removed, found.became_unready) == (0, 3, 3, 0)
    assert found.queries == ()
    assert {c.reason for c in found.changes} == {"its service is gone from Consul"}
    cluster.apply(found)
    assert cluster.current() == Current(TARGET, mirrored=())


def test_what_a_user_no_longer_asks_for_is_removed_and_not_lost() -> None:
    """It is deleted like anything else; the guard has nothing to add up."""
    standing = Current(TARGET, service(owner=None), endpoints(group(*ready("10.0.0.1", "10.0.0.2"))))
    found = plan(TARGET, None, standing, owner=OWNER, unsubscribed=True)
    assert (verbs(found), found.ready_before, found.removed, found.unsubscribed) == (["delete Endpoints"], 2, 0, True)


def test_only_what_is_ours_goes() -> None:
    """A user's Service stays, another bridge's Endpoints too, and what is being deleted needs no deletion."""
    mixed = Current(
        TARGET,
        service(None),
        endpoints(owner="other"),
        (
            slice_of("a", group(*ready("10.0.0.1"))),
            slice_of("b", group(), "other"),
            slice_of("c", group(), deleting=True),
        ),
    )
    found = planned(None, mixed)
    assert [(c.kind, c.name) for c in found.writes] == [(Kind.ENDPOINT_SLICE, "a")]


def test_a_service_that_got_a_selector_is_not_deleted_with_its_target() -> None:
    """It belongs to pods now, and so do its Endpoints; our own slices go."""
    current = Current(
        TARGET, service(has_selector=True), endpoints(group(*ready("10.0.0.1"))), (slice_of("a", group()),)
    )
    found = planned(None, current)
    assert verbs(found) == ["delete EndpointSlice"]
    assert conflicts(found) == [
        "Service: it has a selector, so Kubernetes fills its endpoints; its service is gone from Consul, but the "
        "Service now belongs to pods and stays"
    ]
    assert planned(None, replace(current, service=service(None, has_selector=True))).conflicts == ()


# --------------------------------------------------------------------------- policies


@pytest.mark.parametrize("output", Output)
def test_upsert_only_keeps_objects_and_not_dead_endpoints(output: Output) -> None:
    """The Service stays, with the policy as the reason; what instances left behind goes, and counts as lost."""
    cluster = cluster_of(output)
    found = planned(None, cluster.current(), Policy.UPSERT_ONLY)
    assert {verb.split()[0] for verb in verbs(found)} == {"update"}
    assert {(c.kind, c.reason) for c in found.changes if c.kind is Kind.SERVICE} == {
        (Kind.SERVICE, "policy upsert-only: no delete")
    }
    assert found.removed == 3
    cluster.apply(found)
    assert cluster.traffic() == set()
    assert planned(None, cluster.current(), Policy.UPSERT_ONLY).writes == ()


def test_create_only_leaves_even_dead_endpoints() -> None:
    """It changes nothing that stands: that is what it is for."""
    found = planned(None, cluster_of(Output.ENDPOINTS).current(), Policy.CREATE_ONLY)
    assert (found.writes, found.removed) == ((), 0)


def test_upsert_only_empties_slices_that_are_not_needed() -> None:
    """Their addresses are not wanted any more, whatever the policy; they are filled again when there is need."""
    cluster = Cluster()
    by = rule(output=Output.ENDPOINTSLICES, max_endpoints_per_slice=1)
    settle(cluster, instances(2), by)
    found = planned(mirror_of(instances(1), by, cluster.current()), cluster.current(), Policy.UPSERT_ONLY)
    assert verbs(found) == ["update EndpointSlice"]
    assert found.removed == 1
    cluster.apply(found)
    assert cluster.traffic() == {("10.0.0.1", "", 8080, "TCP")}
    again = planned(mirror_of(instances(1), by, cluster.current()), cluster.current(), Policy.UPSERT_ONLY)
    assert again.writes == ()
    back = planned(mirror_of(instances(2), by, cluster.current()), cluster.current(), Policy.UPSERT_ONLY)
    assert verbs(back) == ["update EndpointSlice"]


@pytest.mark.parametrize("others", [0, 1, 2], ids=["each slice is exchanged", "one keeps something", "both do"])
def test_instances_that_exchange_their_ports_stay_in_what_traffic_sees(others: int) -> None:
    """Of two slices that exchange addresses neither can be written first."""
    http, both = named(("http", 8080)), named(("grpc", 9090), ("http", 8080))
    by, cluster = rule(output=Output.ENDPOINTSLICES), Cluster()
    staying = [
        instance("10.0.0.8", 0, ports=http, id="c"),
        instance("10.0.0.9", 0, ports=both, id="d"),
    ][:others]
    first = [instance("10.0.0.1", 0, ports=http, id="a"), instance("10.0.0.2", 0, ports=both, id="b"), *staying]
    settle(cluster, first, by)
    before = cluster.traffic()
    cluster.seen.clear()
    second = [instance("10.0.0.1", 0, ports=both, id="a"), instance("10.0.0.2", 0, ports=http, id="b"), *staying]
    settle(cluster, second, by)
    throughout = before & cluster.traffic()
    assert {a for a, *_ in throughout} >= {"10.0.0.1", "10.0.0.2"}
    assert all(throughout <= seen for seen in cluster.seen)


def test_slices_that_upsert_only_empties_are_marked_as_they_are_now() -> None:
    """Else what they came from once would be looked for in Consul forever."""
    cluster = Cluster()
    by = rule(output=Output.ENDPOINTSLICES, max_endpoints_per_slice=1)
    settle(cluster, instances(2), by)
    desired = replace(mirror_of(instances(1), by, cluster.current()), queries=(Query("dc1", "another"),))
    cluster.apply(planned(desired, cluster.current(), Policy.UPSERT_ONLY))
    assert [dict(s.meta.annotations)["consul-bridge/service"] for s in cluster.slices.values()] == ["another"] * 2
    assert planned(desired, cluster.current(), Policy.UPSERT_ONLY).writes == ()


def test_upsert_only_empties_endpoints_when_the_output_is_slices() -> None:
    """Else every endpoint would be there twice, forever."""
    cluster = cluster_of(Output.ENDPOINTS)
    by = rule(output=Output.ENDPOINTSLICES)
    found = planned(mirror_of(instances(3), by, cluster.current()), cluster.current(), Policy.UPSERT_ONLY)
    assert verbs(found) == ["create EndpointSlice", "update Endpoints"]
    cluster.apply(found)
    assert cluster.endpoints is not None
    assert cluster.endpoints.groups == ()
    assert planned(mirror_of(instances(3), by, cluster.current()), cluster.current(), Policy.UPSERT_ONLY).writes == ()


@pytest.mark.parametrize(
    ("output", "missing"),
    [(Output.ENDPOINTS, []), (Output.BOTH, []), (Output.ENDPOINTSLICES, ["create Endpoints"])],
)
def test_create_only_creates_and_then_leaves_alone(output: Output, missing: list[str]) -> None:
    """What is missing is made; what is there is not changed, not even by further slices beside it."""
    empty = planned(mirror_of(instances(1)), Current(TARGET), Policy.CREATE_ONLY)
    assert verbs(empty) == ["create Service", "create Endpoints"]
    cluster = cluster_of(output)
    by = rule(output=Output.BOTH, port=80)
    found = planned(mirror_of(instances(500), by, cluster.current()), cluster.current(), Policy.CREATE_ONLY)
    assert verbs(found) == missing
    assert [c.reason for c in found.changes if c.reason is not None] == ["policy create-only: no update"]
    assert (found.removed, found.became_unready) == (0, 0)
    cluster.service = None
    again = planned(mirror_of(instances(3), by), cluster.current(), Policy.CREATE_ONLY)
    assert verbs(again) == ["create Service", *missing]


@pytest.mark.parametrize(
    ("output", "refused"),
    [
        (Output.BOTH, "nothing"),
        (Output.BOTH, "Endpoints"),
        (Output.BOTH, "IPv4"),
        (Output.BOTH, "port"),
        (Output.ENDPOINTSLICES, "IPv6"),
        (Output.ENDPOINTSLICES, "port"),
    ],
)
def test_create_only_finishes_what_was_written_in_part(output: Output, refused: str) -> None:
    """An object that was refused (by a quota, say) is made later; whatever exists is as it was."""
    listed = (instance("10.0.0.1"), instance("fd00::1"), instance("10.0.0.2", 9090))
    by = rule(output=output)
    cluster = Cluster()

    def work() -> Plan:
        current = cluster.current()
        return planned(mirror_of(listed, by, current), current, Policy.CREATE_ONLY)

    def is_refused(change: Change) -> bool:
        if not isinstance(change.body, SliceBody):
            return change.kind is Kind.ENDPOINTS and refused == "Endpoints"
        group = change.body.group
        port = any(p.number == 9090 for p in group.ports)
        return refused == "port" if port else refused == group.family.value

    found = work()
    for change in found.writes:
        if not is_refused(change):
            cluster.write(change)
    before = cluster.current()
    again = work()
    assert {c.action for c in again.writes} <= {Action.CREATE}
    assert len(again.writes) == sum(is_refused(change) for change in found.writes) == (refused != "nothing")
    cluster.apply(again)
    now = cluster.current()
    assert set(before.slices) <= set(now.slices)
    assert before.endpoints in (None, now.endpoints)
    carried = {e.address for s in now.slices for e in s.group.endpoints}
    assert carried == {"10.0.0.1", "fd00::1", "10.0.0.2"}
    assert (now.endpoints is not None) is (output is Output.BOTH)
    assert work().writes == ()


@pytest.mark.parametrize("refused", [{0}, {1}, {2}, {1, 2}, {0, 1, 2}, set()])
def test_create_only_finishes_a_group_of_several_slices(refused: set[int]) -> None:
    """Whichever of them were refused; what comes later is a change, and gets no slice beside a full group."""
    by = rule(output=Output.ENDPOINTSLICES)
    cluster = Cluster()

    def work(*found: Instance) -> Plan:
        current = cluster.current()
        return planned(mirror_of(found, by, current), current, Policy.CREATE_ONLY)

    listed = instances(250)
    first = work(*listed).writes
    order = [e.address for e in mirror_of(listed, by).groups[0].endpoints]
    pieces = [(c.body.group, c.name) for c in first if isinstance(c.body, SliceBody)]
    names = [name for _, name in sorted(pieces, key=lambda p: order.index(p[0].endpoints[0].address))]
    for change in first:
        if change.kind is not Kind.ENDPOINT_SLICE or names.index(change.name) not in refused:
            cluster.write(change)
    before = dict(cluster.slices)
    again = work(*listed)
    assert [(c.action, c.name) for c in again.writes] == [
        (Action.CREATE, name) for name in sorted(names[n] for n in refused)
    ]
    cluster.apply(again)
    carried = sorted(e.address for s in cluster.slices.values() for e in s.group.endpoints)
    assert carried == sorted(i.address for i in listed)
    assert before.items() <= cluster.slices.items()
    assert work(*listed).writes == work(*instances(260)).writes == ()


def test_create_only_leaves_what_moves_to_another_port() -> None:
    """It would be there twice. An address that has several ports is complete when it stands under each of them."""
    by = rule(output=Output.ENDPOINTSLICES)
    cluster = cluster_of(Output.ENDPOINTSLICES)
    moved = instances(3, port=9090)
    assert planned(mirror_of(moved, by), cluster.current(), Policy.CREATE_ONLY).writes == ()
    twice = (*instances(3), *moved)
    found = planned(mirror_of(twice, by), cluster.current(), Policy.CREATE_ONLY)
    assert verbs(found) == ["create EndpointSlice"]
    cluster.apply(found)
    assert len(cluster.traffic()) == 6
    assert planned(mirror_of(twice, by), cluster.current(), Policy.CREATE_ONLY).writes == ()


def test_create_only_makes_no_slices_beside_endpoints_that_are_mirrored() -> None:
    """They carry everything; Endpoints that are another owner's carry nothing of ours."""
    cluster = cluster_of(Output.ENDPOINTS)
    by = rule(output=Output.BOTH)
    assert planned(mirror_of(instances(3), by), cluster.current(), Policy.CREATE_ONLY).writes == ()
    current = replace(cluster_of(Output.ENDPOINTSLICES).current(), endpoints=endpoints(owner=None))
    current = replace(current, slices=(), service=service())
    found = planned(mirror_of(instances(3), rule(output=Output.ENDPOINTSLICES)), current, Policy.CREATE_ONLY)
    assert verbs(found) == ["create EndpointSlice"]


# --------------------------------------------------------------------------- switching outputs


@pytest.mark.parametrize(
    ("before", "after", "passes"),
    [
        (Output.ENDPOINTS, Output.ENDPOINTSLICES, [["create EndpointSlice", "delete Endpoints"]]),
        (Output.ENDPOINTS, Output.BOTH, [["create EndpointSlice", "update Endpoints"]]),
        (Output.BOTH, Output.ENDPOINTSLICES, [["delete Endpoints"]]),
        (Output.BOTH, Output.ENDPOINTS, [["update Endpoints"], ["delete EndpointSlice"]]),
        (Output.ENDPOINTSLICES, Output.ENDPOINTS, [["create Endpoints"], ["delete EndpointSlice"]]),
        (Output.ENDPOINTSLICES, Output.BOTH, [["create Endpoints"]]),
    ],
)
def test_switching_outputs_adds_before_it_removes(before: Output, after: Output, passes: list[list[str]]) -> None:
    """At no moment is a ready endpoint missing from what kube-proxy sees."""
    cluster = cluster_of(before)
    standing = cluster.traffic()
    cluster.seen.clear()
    plans = settle(cluster, instances(3), rule(output=after))
    assert [verbs(p) for p in plans] == [*passes, []]
    assert [p.unmirrored for p in plans] == [True] * (len(passes) - 1) + [False, False]
    assert all(p.removed == p.became_unready == 0 for p in plans)
    assert all(seen == standing for seen in cluster.seen)


def test_slices_stay_while_the_mirror_was_not_looked_at() -> None:
    """And they follow every change, because what is ready in either gets traffic."""
    cluster = cluster_of(Output.ENDPOINTSLICES)
    cluster.apply(planned(mirror_of(instances(3), rule(), cluster.current()), cluster.current(mirrored=False)))
    cluster.mirror()
    sick = [instance("10.0.0.1", status=Status.CRITICAL), *instances(3)[1:]]
    found = planned(mirror_of(sick, rule(), cluster.current()), cluster.current(mirrored=False))
    assert verbs(found) == ["update EndpointSlice", "update Endpoints"]
    assert found.unmirrored
    assert found.warnings == (
        "the output is Endpoints now; our EndpointSlices stay until the control plane has mirrored them",
    )


def test_slices_without_ready_endpoints_need_no_mirror() -> None:
    """Nothing can be missing then."""
    sick = [instance(status=Status.CRITICAL)]
    cluster = Cluster()
    settle(cluster, sick, rule(output=Output.ENDPOINTSLICES))
    found = planned(mirror_of(sick, rule(), cluster.current()), cluster.current(mirrored=False))
    assert verbs(found) == ["create Endpoints", "delete EndpointSlice"]


@pytest.mark.parametrize("others", [600, 0])
def test_slices_do_not_wait_for_a_mirror_that_cannot_have_everything(others: int) -> None:
    """It ends at 1,000 addresses of one set of ports, both families together: ours stay, and nothing is asked again."""
    many = [*instances(1200 - others), *(instance(f"fd00::{n:x}") for n in range(1, others + 1))]
    cluster = Cluster()
    settle(cluster, many, rule(output=Output.ENDPOINTSLICES, max_endpoints_per_slice=1000))
    (found, rest) = settle(cluster, many, rule(max_endpoints_per_slice=1000))
    assert (verbs(found), found.unmirrored, verbs(rest), rest.unmirrored) == (["create Endpoints"], False, [], False)
    assert (
        "copies 1000 addresses of one set of ports into EndpointSlices at most, and here are 1200" in rest.warnings[0]
    )
    assert len(cluster.traffic()) == 1200


def test_an_address_with_several_ports_is_one_of_what_the_control_plane_mirrors() -> None:
    """It counts addresses, so all 600 are waited for, although 500 of them have 1,000 ports."""
    many = [instance(f"10.0.{n >> 8}.{n & 255}", ports=named(("a", 1), ("b", 2))) for n in range(1, 601)]
    cluster = Cluster()
    settle(cluster, many, rule(output=Output.ENDPOINTSLICES, max_endpoints_per_slice=1000))
    cluster.apply(planned(mirror_of(many, rule(), cluster.current()), cluster.current()))
    assert cluster.endpoints is not None
    (whole,) = cluster.endpoints.groups
    for count, unmirrored in ((599, True), (600, False)):
        cluster.mirrored = (replace(whole, endpoints=whole.endpoints[:count]),)
        assert planned(mirror_of(many, rule(), cluster.current()), cluster.current()).unmirrored is unmirrored


@pytest.mark.parametrize("state", ["gone", "being deleted", "not to be mirrored"])
def test_a_mirror_that_is_about_to_go_is_not_relied_on(state: str) -> None:
    """The control plane takes its slices away when the Endpoints go or carry skip-mirror: ours must stay."""
    cluster = cluster_of(Output.BOTH)
    assert cluster.endpoints is not None
    current = replace(cluster.current(), mirrored=cluster.endpoints.groups)
    match state:
        case "gone":
            current = replace(current, endpoints=None)
        case "being deleted":
            about = replace(cluster.endpoints.meta, deleting=True, labels=LABELS)
            current = replace(current, endpoints=replace(cluster.endpoints, meta=about))
        case _:
            assert ("endpointslice.kubernetes.io/skip-mirror", "true") in cluster.endpoints.meta.labels
    found = planned(mirror_of(instances(3), rule(), current), current)
    assert found.unmirrored
    assert all(c.action is not Action.DELETE for c in found.writes)


def test_endpoints_that_were_handed_over_go_when_the_output_is_slices() -> None:
    """Without the hand-over they stay and are reported."""
    current = Current(TARGET, service(), endpoints(owner=None))
    by = rule(output=Output.ENDPOINTSLICES)
    assert verbs(planned(mirror_of([instance()], by, current), current, adopt=Adopt.UNOWNED)) == [
        "create EndpointSlice",
        "delete Endpoints",
    ]
    left = planned(mirror_of([instance()], by, current), current)
    assert verbs(left) == ["create EndpointSlice"]
    assert [c.kind for c in left.conflicts] == [Kind.ENDPOINTS]


# --------------------------------------------------------------------------- slices


def test_new_slices_come_first_and_what_loses_endpoints_comes_last() -> None:
    """When the limit is lowered, endpoints move: they are in the new slice before they leave the old one."""
    cluster = Cluster()
    settle(cluster, instances(4), rule(output=Output.ENDPOINTSLICES, max_endpoints_per_slice=4))
    cluster.seen.clear()
    standing = cluster.traffic()
    plans = settle(cluster, instances(4), rule(output=Output.ENDPOINTSLICES, max_endpoints_per_slice=3))
    assert verbs(plans[0]) == ["create EndpointSlice", "update EndpointSlice"]
    assert all(seen == standing for seen in cluster.seen)


def test_what_gains_endpoints_is_written_before_what_loses_them() -> None:
    """Whatever the slices are called."""
    full = slice_of("a", group(*ready("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4")))
    roomy = slice_of("b", group(*ready("10.0.0.5")))
    current = Current(TARGET, service(), None, (full, roomy))
    desired = mirror_of(instances(5), rule(output=Output.ENDPOINTSLICES, max_endpoints_per_slice=3), current)
    assert [c.name for c in planned(desired, current).writes if c.kind is Kind.ENDPOINT_SLICE] == ["b", "a"]


def test_a_slice_with_an_endpoint_twice_is_repaired() -> None:
    """No two slices hold one endpoint."""
    content = group(*ready("10.0.0.1"))
    current = Current(TARGET, service(), None, (slice_of("a", content), slice_of("b", content)))
    found = planned(mirror_of([instance()], rule(output=Output.ENDPOINTSLICES), current), current)
    assert [(c.action, c.name) for c in found.writes if c.kind is Kind.ENDPOINT_SLICE] == [
        (Action.UPDATE, "a"),
        (Action.DELETE, "b"),
    ]


def test_a_slice_that_is_being_deleted_is_not_counted_on() -> None:
    """Its endpoints go to another, under another name."""
    cluster = cluster_of(Output.ENDPOINTSLICES)
    (name,) = cluster.slices
    cluster.slices[name] = replace(cluster.slices[name], meta=replace(cluster.slices[name].meta, deleting=True))
    found = planned(mirror_of(instances(3), rule(output=Output.ENDPOINTSLICES), cluster.current()), cluster.current())
    assert verbs(found) == ["create EndpointSlice"]
    assert found.writes[0].name != name
    assert planned(None, cluster.current()).writes[-1].kind is Kind.SERVICE


def test_the_fullest_slice_is_filled_first() -> None:
    """So that few slices are needed, and few are written."""
    three = slice_of("b", group(*ready("10.0.0.1", "10.0.0.2", "10.0.0.3")))
    one = slice_of("a", group(*ready("10.0.0.4")))
    current = Current(TARGET, service(), None, (one, three))
    desired = mirror_of(instances(5), rule(output=Output.ENDPOINTSLICES, max_endpoints_per_slice=4), current)
    bodies = {c.name: c.body for c in planned(desired, current).changes}
    assert isinstance(bodies["b"], SliceBody)
    assert [e.address for e in bodies["b"].group.endpoints] == ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.5"]


def test_a_thousand_instances_are_ten_slices_of_different_names() -> None:
    """The same state gives the same names."""
    desired = mirror_of(instances(1000), rule(output=Output.ENDPOINTSLICES))
    first, second = planned(desired, Current(TARGET)), planned(desired, Current(TARGET))
    names = [c.name for c in first.writes[1:]]
    assert len(set(names)) == 10
    assert names == [c.name for c in second.writes[1:]]


# --------------------------------------------------------------------------- what the guard keeps


def test_withheld_instances_are_flipped_and_not_lost() -> None:
    """Consul still lists them: the removal guard is not concerned, self-preservation is."""
    cluster = cluster_of(Output.ENDPOINTS)
    by = picky(critical=Treatment.OMIT)
    sick = [instance("10.0.0.1", status=Status.CRITICAL), instance("10.0.0.2")]
    desired = mirror_of(sick, by, cluster.current())
    found = planned(desired, cluster.current())
    assert (found.removed, found.became_unready) == (1, 1)
    kept = retain(desired, cluster.current(), removed=False, flips=True)
    assert pairs(kept.groups) == {("10.0.0.1", "", 8080, "TCP"), ("10.0.0.2", "", 8080, "TCP")}


def test_what_is_not_selected_any_more_is_neither_lost_nor_flipped() -> None:
    """Unless one of its ports is; and it is put back only where it is asked for."""
    cluster = cluster_of(Output.ENDPOINTS)
    desired = mirror_of(instances(1), rule(), cluster.current())
    gone = group(*ready("10.0.0.2"), ports=desired.groups[0].ports)
    desired = replace(desired, deselected=(gone,))
    found = planned(desired, cluster.current())
    assert (found.removed, found.became_unready, found.deselected) == (1, 0, 1)

    def kept(**what: bool) -> list[str]:
        given = {"removed": False, "flips": False, "deselected": False, **what}
        found = retain(desired, cluster.current(), owner=None, **given)
        return sorted(e.address for g in found.groups for e in g.endpoints)

    assert kept(removed=True) == ["10.0.0.1", "10.0.0.3"]
    assert kept(deselected=True) == ["10.0.0.1", "10.0.0.2"]
    sick = replace(desired, deselected=(), omitted_unhealthy=(gone,))
    assert planned(sick, cluster.current()).became_unready == 1


@pytest.mark.parametrize(
    ("lost", "flips", "expected"),
    [
        (False, False, ["10.0.0.2 down", "10.0.0.4 ready"]),
        (True, False, ["10.0.0.1 ready", "10.0.0.2 down", "10.0.0.3 ready", "10.0.0.4 ready"]),
        (False, True, ["10.0.0.2 ready", "10.0.0.4 ready"]),
        (True, True, ["10.0.0.1 ready", "10.0.0.2 ready", "10.0.0.3 ready", "10.0.0.4 ready"]),
    ],
)
def test_what_is_held_stays_and_additions_go_on(lost: bool, flips: bool, expected: list[str]) -> None:
    """Removals and flips are kept apart."""
    cluster = cluster_of(Output.BOTH)
    desired = mirror_of(
        [instance("10.0.0.2", status=Status.CRITICAL), instance("10.0.0.4")],
        rule(output=Output.BOTH),
        cluster.current(),
    )
    kept = retain(desired, cluster.current(), removed=lost, flips=flips, owner=OWNER)
    shown = [f"{e.address} {'ready' if e.ready else 'down'}" for g in kept.groups for e in g.endpoints]
    assert shown == expected
    assert retain(desired, Current(TARGET), removed=lost, flips=flips) == desired


def test_a_newcomer_that_is_not_ready_stays_so_while_flips_are_held() -> None:
    """Only what was ready is kept ready."""
    cluster = cluster_of(Output.ENDPOINTS, 1)
    sick = [instance(status=Status.CRITICAL), instance("10.0.0.9", status=Status.CRITICAL)]
    kept = retain(mirror_of(sick, None, cluster.current()), cluster.current(), removed=True, flips=True)
    assert kept.groups == (group(*ready("10.0.0.1"), *down("10.0.0.9")),)


def test_another_bridges_endpoints_are_neither_counted_nor_kept() -> None:
    """They stand at the same target, and are its own affair."""
    theirs = endpoints(group(*ready("10.0.0.7", "10.0.0.8")), owner="other")
    current = Current(TARGET, service(), theirs, (slice_of("a", group(*ready("10.0.0.1"))),))
    desired = mirror_of([instance("10.0.0.2")], rule(output=Output.ENDPOINTSLICES), current)
    found = planned(desired, current)
    assert (found.ready_before, found.removed) == (1, 1)
    kept = retain(desired, current, removed=True, flips=True, owner=OWNER)
    assert kept.groups == (group(*ready("10.0.0.1", "10.0.0.2")),)


def test_what_is_drained_and_kept_ready_is_ready_in_every_respect() -> None:
    """Ready, serving and not terminating."""
    cluster = cluster_of(Output.ENDPOINTSLICES, 1)
    drained = [instance(status=Status.MAINTENANCE)]
    desired = mirror_of(drained, rule(output=Output.ENDPOINTSLICES), cluster.current())
    assert desired.groups != (group(*ready("10.0.0.1")),)
    assert retain(desired, cluster.current(), removed=False, flips=True).groups == (group(*ready("10.0.0.1")),)


def test_an_endpoint_is_kept_on_the_ports_that_are_lost_only() -> None:
    """So that no address and port are there twice."""
    both = (Port("http", 8080), Port("metrics", 9090))
    current = Current(TARGET, service(ports=both), endpoints(group(*ready("10.0.0.1"), ports=both)))
    desired = replace(
        mirror_of([instance()], rule(port_name="http")),
        service_ports=both,
        groups=(group(*ready("10.0.0.1"), ports=both[:1]),),
    )
    kept = retain(desired, current, removed=True, flips=False)
    assert [g.ports for g in kept.groups] == [both[:1], both[1:]]
    assert planned(desired, current).removed == 1


def test_what_is_kept_follows_the_services_port_to_its_new_name() -> None:
    """Under the old name no one would reach it."""
    cluster = cluster_of(Output.ENDPOINTS, 1)
    desired = mirror_of([instance("10.0.0.9")], rule(port_name="http"), cluster.current())
    kept = retain(desired, cluster.current(), removed=True, flips=False)
    assert kept.groups == (group(*ready("10.0.0.1", "10.0.0.9"), ports=(Port("http", 8080),)),)
    annotated = replace(desired, service_ports=None)
    assert len(retain(annotated, cluster.current(), removed=True, flips=False).groups) == 2
    assert len(retain(desired, replace(cluster.current(), service=None), removed=True, flips=False).groups) == 2


def test_the_service_keeps_the_port_of_what_is_kept() -> None:
    """Endpoints behind a port that the Service no longer has get no traffic: that would be no hold at all."""
    found = [
        instance(ports=named(("http", 8080), ("metrics", 9090))),
        instance("10.0.0.2", ports=named(("http", 8080))),
    ]
    cluster = Cluster()
    settle(cluster, found, rule())
    standing = cluster.traffic()
    desired = mirror_of(found[1:], None, cluster.current())
    kept = retain(desired, cluster.current(), removed=True, flips=False, owner=OWNER)
    assert desired.service_ports == (Port("http", 8080),)
    assert kept.service_ports == (Port("http", 8080), Port("metrics", 9090))
    assert planned(kept, cluster.current()).writes == ()
    assert pairs(kept.groups) == standing
    not_kept = retain(desired, cluster.current(), removed=False, flips=True, owner=OWNER)
    assert not_kept.service_ports == desired.service_ports


@pytest.mark.parametrize(
    ("now", "wanted"),
    [
        ((Port("b", 81), Port("old", 80)), (Port("http", 80), Port("https", 443))),
        ((Port("", 81),), (Port("http", 80), Port("https", 443))),
        ((Port("b", 81), Port("old", 82)), (Port("", 80),)),
    ],
)
def test_a_port_that_kubernetes_would_refuse_is_not_kept(now: tuple[Port, ...], wanted: tuple[Port, ...]) -> None:
    """One whose number is another's now, one without a name beside others, and any beside one without a name."""
    standing = group(*ready("10.0.0.1"), ports=tuple(Port(p.name, 8000 + p.number) for p in now))
    current = Current(TARGET, service(ports=now), endpoints(standing))
    desired = replace(mirror_of([instance()]), groups=(), service_ports=wanted)
    kept = retain(desired, current, removed=True, flips=False)
    assert kept.service_ports is not None
    assert len({(p.number, p.protocol) for p in kept.service_ports}) == len(kept.service_ports)
    assert len(kept.service_ports) < 2 or all(p.name for p in kept.service_ports)
    assert set(wanted) <= set(kept.service_ports)


def test_what_is_kept_follows_the_only_port_even_to_another_number() -> None:
    """The Service's number is its own affair; the endpoint's is what is connected to."""
    cluster = cluster_of(Output.ENDPOINTS, 1)
    desired = mirror_of([instance("10.0.0.9")], rule(port_name="http", port=80), cluster.current())
    kept = retain(desired, cluster.current(), removed=True, flips=False)
    assert kept.service_ports == (Port("http", 80),)
    assert kept.groups == (group(*ready("10.0.0.1", "10.0.0.9"), ports=(Port("http", 8080),)),)


def test_the_sums_count_each_endpoint_once() -> None:
    """However many objects have it, and not those of another bridge."""
    content = group(Endpoint("10.0.0.1", True))
    current = Current(TARGET, service(), endpoints(content), (slice_of("a", content), slice_of("b", content, "other")))
    found = planned(None, current)
    assert (found.ready_before, found.removed) == (1, 1)


def test_a_conflict_is_a_value() -> None:
    """It names the target, the kind and the reason, each by itself."""
    found = planned(mirror_of([instance()]), Current(TARGET, service("other")))
    assert found.conflicts == (
        Conflict(
            TARGET,
            Kind.SERVICE,
            said("it belongs to the bridge with owner id 'other'; if that bridge is meant: --owner other"),
        ),
    )


# --------------------------------------------------------------------------- scopes


def test_what_a_rule_mirrors_is_added_up_with_its_datacenters_and_what_users_made_with_their_namespace() -> None:
    """Nothing of ours exists yet: what is to be made decides; a Service that was deleted is its namespace's."""
    here = Scope(namespace="default")
    made = mirror_of(instances(1), rule(), Current(TARGET))
    annotated = mirror_of(instances(1), rule(annotated=True), Current(TARGET, service=service(owner=None)))
    assert planned(made, Current(TARGET)).scope == Scope(datacenters=("dc1",))
    assert planned(annotated, Current(TARGET, service=service(owner=None))).scope == here
    stands = cluster_of(Output.BOTH).current()
    assert planned(None, stands).scope == Scope(datacenters=("dc1",))
    assert planned(made, stands).scope == Scope(datacenters=("dc1",))
    assert planned(None, replace(stands, service=None)).scope == here
    assert planned(None, replace(stands, service=service(owner="blue"))).scope == here


def test_what_comes_from_several_datacenters_is_a_scope_of_its_own() -> None:
    """No one can tell which of its endpoints come from which."""
    both = (Query("dc2", "radosgw"), Query("dc1", "radosgw"))
    made = replace(mirror_of(instances(1), rule(), Current(TARGET)), queries=both)
    assert planned(made, Current(TARGET)).scope == Scope(datacenters=("dc1", "dc2"))


# --------------------------------------------------------------------------- endpoints without ports


def test_endpoints_without_ports_are_counted_and_held_as_any_others() -> None:
    """What Consul no longer lists is lost, what is unhealthy has flipped, also for addresses that serve DNS alone."""
    by = rule(headless=True, output=Output.ENDPOINTSLICES)
    cluster = Cluster()
    settle(cluster, [instance(f"10.0.0.{n}", 0) for n in (1, 2, 3)], by)
    found = [instance("10.0.0.1", 0), instance("10.0.0.2", 0, Status.CRITICAL)]
    desired = mirror_of(found, by, cluster.current())
    draft = planned(desired, cluster.current())
    assert (draft.ready_before, draft.removed, draft.became_unready) == (3, 1, 1)
    kept = retain(desired, cluster.current(), removed=True, flips=True)
    assert kept.groups == (group(*ready("10.0.0.1", "10.0.0.2", "10.0.0.3"), ports=()),)


# --------------------------------------------------------------------------- what the control plane cannot mirror


TWO_PORTS = [instance(port=7480), instance(port=7481)]


def test_endpoints_that_cannot_be_mirrored_get_slices_of_ours() -> None:
    """Two instances on one VM: without slices of ours no traffic would get there, although the Endpoints are right."""
    cluster = Cluster()
    first, _ = settle(cluster, TWO_PORTS, rule())
    assert verbs(first) == ["create Service", "create EndpointSlice", "create EndpointSlice", "create Endpoints"]
    assert first.warnings == (
        "the control plane cannot mirror these Endpoints: the ports 7480, 7481, all without a name, have the same "
        "address, 10.0.0.1, and one EndpointSlice cannot have two ports of one name. EndpointSlices of ours carry the "
        "addresses, although the output is endpoints",
    )
    assert {port for _, _, port, _ in cluster.traffic()} == {7480, 7481}


def test_endpoints_that_become_such_lose_nothing_and_do_not_change_to_and_fro() -> None:
    """VM 2 leaves, and both ports have VM 1 only: VM 2 must not stay in a mirror that nothing can change any more."""
    cluster = Cluster()
    three = [*TWO_PORTS, instance("10.0.0.2", 7480)]
    settle(cluster, three, rule())
    assert cluster.slices == {}
    (first, *_) = settle(cluster, TWO_PORTS, rule())
    assert verbs(first) == ["create EndpointSlice", "create EndpointSlice", "update Endpoints"]
    assert {address for address, *_ in cluster.traffic()} == {"10.0.0.1"}
    again, rest = settle(cluster, three, rule())
    assert verbs(again) == ["update EndpointSlice", "update Endpoints"]
    assert [w.code for w in rest.warnings] == [Code.MIRROR_DOUBTFUL]
    (gone, *_) = settle(cluster, [instance(port=7480)], rule())
    assert gone.unmirrored
    assert (cluster.slices, {port for _, _, port, _ in cluster.traffic()}) == ({}, {7480})


@pytest.mark.parametrize("output", OUTPUTS)
def test_without_the_right_to_write_slices_endpoints_carry_everything(output: Output) -> None:
    """What it is and what it costs is reported; existing slices stay as they are."""
    for current in (Current(TARGET, service()), Current(TARGET, service(), None, (slice_of("s", group()),))):
        desired = mirror_of(instances(2), rule(output=output), current)
        found = plan(TARGET, desired, current, owner=OWNER, slices_forbidden=("create", "patch", "delete"))
        assert verbs(found) == ["create Endpoints"]
        assert all(
            ("endpointslice.kubernetes.io/skip-mirror", "true") not in c.body.labels for c in found.writes if c.body
        )
        assert list(found.warnings) == (
            []
            if output is Output.ENDPOINTS
            else [
                "no EndpointSlices are written here, for the bridge may not create, patch, delete endpointslices in "
                "namespace default: the addresses reach kube-proxy by the control plane's mirror of the Endpoints "
                "only, and that is slower (20 a second by default), ends at 1,000 addresses, and has no place for two "
                "ports of one name"
            ]
        )


def test_without_that_right_what_cannot_be_mirrored_is_reported_as_cut_off() -> None:
    """It is not only slower then."""
    current = Current(TARGET, service())
    found = plan(TARGET, mirror_of(TWO_PORTS, rule(), current), current, owner=OWNER, slices_forbidden=("patch",))
    assert [verb for verb in verbs(found) if "Endpoint" in verb] == ["create Endpoints"]
    assert found.warnings[0].code is Code.UNMIRRORED
    assert "may not patch endpointslices in namespace default, and the control plane cannot" in found.warnings[0]
    assert "mirror these Endpoints: the ports 7480" in found.warnings[0]


@pytest.mark.parametrize("lacking", [("create",), ("create", "delete")])
def test_where_slices_may_only_be_updated_they_give_up_what_has_gone(lacking: tuple[str, ...]) -> None:
    """Ours follow until the control plane's mirror has everything; then they go, or are emptied where they may not."""
    cluster = Cluster()
    settle(cluster, instances(3), rule(output=Output.BOTH))

    def forbidden(found: list[Instance]) -> Plan:
        current = cluster.current()
        plan_ = plan(
            TARGET, mirror_of(found, rule(output=Output.BOTH), current), current, owner=OWNER, slices_forbidden=lacking
        )
        cluster.apply(plan_)
        return plan_

    first = forbidden([*instances(2), instance("10.0.0.9")])
    assert (verbs(first), first.unmirrored) == (["update EndpointSlice", "update Endpoints"], True)
    assert {address for address, *_ in cluster.traffic()} == {"10.0.0.1", "10.0.0.2"}
    cluster.mirror()
    rest = forbidden([*instances(2), instance("10.0.0.9")])
    emptied = "delete" in lacking
    assert verbs(rest) == ["update EndpointSlice" if emptied else "delete EndpointSlice"]
    assert (Code.SLICES_EMPTIED in [w.code for w in rest.warnings]) is emptied
    assert {address for address, *_ in cluster.traffic()} == {"10.0.0.1", "10.0.0.2", "10.0.0.9"}
    assert verbs(forbidden([*instances(2), instance("10.0.0.9")])) == []


def test_slices_that_may_not_be_updated_are_deleted_once_they_are_mirrored() -> None:
    """Else what they hold would stay forever."""
    cluster = Cluster()
    settle(cluster, instances(2), rule(output=Output.BOTH))
    current = cluster.current()
    desired = mirror_of(instances(1), rule(output=Output.BOTH), current)
    first = plan(TARGET, desired, current, owner=OWNER, slices_forbidden=("create", "patch"))
    assert (verbs(first), first.unmirrored) == (["update Endpoints"], True)
    cluster.apply(first)
    cluster.mirror()
    rest = plan(TARGET, desired, cluster.current(), owner=OWNER, slices_forbidden=("create", "patch"))
    assert verbs(rest) == ["delete EndpointSlice"]


def test_slices_stay_where_neither_they_can_be_made_nor_endpoints_be_mirrored() -> None:
    """Nothing waits for the mirror then; a slice that is being deleted is left to it."""
    held = (
        slice_of("a", group(*ready("10.0.0.1", "10.0.0.2"), ports=(Port("", 7480),))),
        slice_of("b", group(*ready("10.0.0.1"), ports=(Port("", 7481),)), deleting=True),
    )
    current = Current(TARGET, service(), None, held)
    found = plan(TARGET, mirror_of(TWO_PORTS, rule(), current), current, owner=OWNER, slices_forbidden=("create",))
    assert [verb for verb in verbs(found) if "Endpoint" in verb] == ["update EndpointSlice", "create Endpoints"]
    assert (found.unmirrored, [w.code for w in found.warnings]) == (False, [Code.UNMIRRORED])


def test_without_the_right_to_delete_slices_they_are_written_and_emptied() -> None:
    """Nothing falls back; it is reported once, and when the target goes the Service goes all the same."""
    cluster = Cluster()
    settle(cluster, [instance(port=80), instance(port=81)], rule(output=Output.BOTH, port=None))
    assert len(cluster.slices) == 2

    def without(desired: Mirror | None) -> Plan:
        return plan(TARGET, desired, cluster.current(), owner=OWNER, slices_forbidden=("delete",))

    one = mirror_of([instance(port=80)], rule(output=Output.BOTH), cluster.current())
    first = without(one)
    assert verbs(first).count("update EndpointSlice") == 1 + sum("create" in v for v in verbs(first))
    assert [w.code for w in first.warnings] == [Code.SLICES_EMPTIED]
    cluster.apply(first)
    assert cluster.endpoints is not None
    assert ("endpointslice.kubernetes.io/skip-mirror", "true") in cluster.endpoints.meta.labels
    gone = without(None)
    assert [w.code for w in gone.warnings] == [Code.SLICES_EMPTIED]
    assert "delete Service" in verbs(gone)
    assert "delete EndpointSlice" not in verbs(gone)
