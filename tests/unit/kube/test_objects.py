"""Encoding is deterministic and says nothing too much; decoding survives anything."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.core import ownership
from bridge.core.model import (
    CurrentEndpoints,
    CurrentRoute,
    CurrentSlice,
    Endpoint,
    EndpointsBody,
    Family,
    Group,
    Kind,
    Meta,
    Port,
    SliceBody,
    TrafficPolicy,
)
from bridge.core.normalize import endpoint_of
from bridge.kube import objects
from bridge.kube.client import FIELD_MANAGER
from tests.unit.kube.builders import (
    HTTP,
    ROUTE,
    bodies,
    create,
    delete,
    down,
    endpoints,
    group,
    ready,
    route,
    service,
    slice_of,
)

# --------------------------------------------------------------------------- encode


def test_a_service_is_selectorless_and_names_protocol_and_target_port() -> None:
    """The whole body, as it goes out."""
    assert objects.encode(create(service(Port("http", 8080, app_protocol="http")), "storage")) == {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "radosgw",
            "namespace": "storage",
            "labels": {"app.kubernetes.io/managed-by": "consul-bridge", "consul-bridge/owner": "default"},
            "annotations": {"consul-bridge/datacenter": "dc1", "consul-bridge/service": "radosgw"},
        },
        "spec": {
            "ports": [
                {"port": 8080, "protocol": "TCP", "name": "http", "appProtocol": "http", "targetPort": 8080},
            ],
            "ipFamilyPolicy": "SingleStack",
            "ipFamilies": ["IPv4"],
        },
    }


def test_a_headless_dual_stack_service_leaves_the_families_to_the_cluster() -> None:
    """One named family of two is refused with 422 once the server has filled in the second (measured)."""
    body = replace(service(headless=True, families=(Family.IPV4, Family.IPV6)), family_policy="PreferDualStack")
    spec = objects.encode(create(body))["spec"]
    assert (spec["clusterIP"], spec["ipFamilyPolicy"], "ipFamilies" in spec) == ("None", "PreferDualStack", False)


def test_a_type_is_sent_only_where_the_rule_sets_one() -> None:
    """What is not sent is left to others."""
    sent = objects.encode(create(replace(service(), type="NodePort", sets_type=True)))["spec"]
    left = objects.encode(create(replace(service(), type="NodePort")))["spec"]
    assert (sent["type"], "type" in left) == ("NodePort", False)


def test_without_ports_none_are_sent() -> None:
    """A headless Service may have none, nor then its slices: the control plane writes `ports: null` there."""
    nothing = replace(service(headless=True), ports=())
    assert "ports" not in objects.encode(create(nothing))["spec"]
    assert "ports" not in objects.encode(create(slice_of("radosgw", group(*ready("10.0.0.1"), ports=()))))


def test_fields_of_a_service_that_are_left_to_others_are_read() -> None:
    """They say what traffic sees, and `applied` which of the fields that a rule need not set are ours."""
    entry = {
        "manager": "consul-bridge",
        "operation": "Apply",
        "fieldsV1": {
            "f:spec": {
                "f:type": {},
                "f:ports": {
                    'k:{"port":80,"protocol":"TCP"}': {"f:appProtocol": {}},
                    'k:{"port":81,"protocol":"TCP"}': {"f:port": {}},
                },
            }
        },
    }
    labels = {"app.kubernetes.io/managed-by": "consul-bridge", "consul-bridge/owner": "default"}
    raw = {
        "metadata": {"name": "x", "labels": labels, "managedFields": [entry, {**entry, "manager": "kubectl"}]},
        "spec": {
            "ports": [{"name": "a", "port": 80, "appProtocol": "http"}, {"name": "b", "port": 81, "appProtocol": "x"}],
            "publishNotReadyAddresses": True,
            "internalTrafficPolicy": "Local",
            "externalTrafficPolicy": "Local",
            "trafficDistribution": "PreferSameZone",
            "ipFamilyPolicy": "RequireDualStack",
        },
    }
    found = objects.decode_service(raw)
    assert found is not None
    assert found.traffic == TrafficPolicy(
        publish_not_ready=True, internal_local=True, external_local=True, distribution="PreferSameZone"
    )
    assert (found.applied, found.family_policy, found.dual_stack) == (
        ("appProtocol 80/TCP", "type"), "RequireDualStack", True,
    )  # fmt: skip


def test_subsets_hold_both_families_of_one_port_set_sorted_numerically() -> None:
    """One subset per port set; ready and not ready apart; IPv4 first; 10.0.0.2 before 10.0.0.10."""
    found = objects.subsets(
        (
            group(*ready("fd00::1"), family=Family.IPV6),
            group(*ready("10.0.0.10", "10.0.0.2"), *down("10.0.0.3")),
            group(*down("10.0.0.4"), ports=(Port("http", 81),)),
            group(*ready("10.0.0.5"), ports=()),
        )
    )
    assert found == [
        {"addresses": [{"ip": "10.0.0.5"}]},
        {"notReadyAddresses": [{"ip": "10.0.0.4"}], "ports": [{"port": 81, "protocol": "TCP", "name": "http"}]},
        {
            "addresses": [{"ip": "10.0.0.2"}, {"ip": "10.0.0.10"}, {"ip": "fd00::1"}],
            "notReadyAddresses": [{"ip": "10.0.0.3"}],
            "ports": [{"port": 8080, "protocol": "TCP", "name": "http"}],
        },
    ]


def test_no_groups_no_subsets() -> None:
    """Zero instances: an empty list says so; a field that is left out stays while another manager owns it, too."""
    assert objects.encode(create(replace(endpoints(), groups=())))["subsets"] == []
    assert objects.subsets((Group(Family.IPV4, (HTTP,), ()),)) == []


def test_a_slice_says_every_condition_and_carries_its_two_labels() -> None:
    """ready, serving and terminating always; zone, nodeName and hostname only when there is one; no hints."""
    body = slice_of(
        "radosgw",
        group(
            Endpoint("10.0.0.2", ready=False, serving=True, terminating=True, zone="a", node_name="n1", hostname="h"),
            *ready("10.0.0.1"),
        ),
    )
    found = objects.encode(create(body, "storage", "radosgw-x7"))
    assert found["apiVersion"] == "discovery.k8s.io/v1"
    assert found["metadata"]["name"] == "radosgw-x7"
    assert found["metadata"]["labels"]["kubernetes.io/service-name"] == "radosgw"
    assert found["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] == "consul-bridge"
    assert (found["addressType"], found["ports"]) == ("IPv4", [{"port": 8080, "protocol": "TCP", "name": "http"}])
    assert found["endpoints"] == [
        {"addresses": ["10.0.0.1"], "conditions": {"ready": True, "serving": True, "terminating": False}},
        {
            "addresses": ["10.0.0.2"],
            "conditions": {"ready": False, "serving": True, "terminating": True},
            "zone": "a",
            "nodeName": "n1",
            "hostname": "h",
        },
    ]


def test_a_delete_has_no_body() -> None:
    """Asking for one is a bug of the caller."""
    meta = objects.decode_meta(Kind.SERVICE, {"metadata": {"name": "a", "uid": "u", "resourceVersion": "1"}})
    assert meta is not None
    with pytest.raises(ValueError, match="has no body"):
        objects.encode(delete(meta))
    with pytest.raises(ValueError, match="has no body"):
        objects.expected(delete(meta), meta)


# --------------------------------------------------------------------------- decode


def managed(labels: tuple[str, ...], manager: str = "consul-bridge", operation: str = "Apply", **more: Any) -> Any:
    """A managedFields entry that owns these labels."""
    fields: dict[str, Any] = {"f:metadata": {"f:labels": {f"f:{k}": {} for k in labels}}}
    return {"manager": manager, "operation": operation, "fieldsV1": fields, **more}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([managed(("a",))], {"a"}),
        ([managed(("a",)), managed(("b",), apiVersion="v2")], {"a", "b"}),
        ([managed(("a",), manager="kubectl")], set()),
        ([managed(("a",), operation="Update")], set()),
        ([managed(("a",), subresource="status")], set()),
        ([managed(("a", "no-longer-there"))], {"a"}),
        ([], set()),
        (None, set()),
        ([None, 7, {"manager": "consul-bridge", "operation": "Apply", "fieldsV1": []}], set()),
    ],
)
def test_labels_are_ours_when_our_apply_owns_them(entries: Any, expected: set[str]) -> None:
    """managedFields decide: manager, operation Apply, no subresource; values come from the object."""
    raw = {"metadata": {"name": "x", "labels": {"a": "1", "b": "2", "c": "3"}, "managedFields": entries}}
    meta = objects.decode_meta(Kind.SERVICE, raw)
    assert meta is not None
    assert {k for k, _ in meta.labels} == expected


OURS = ("consul-bridge/owner", "app.kubernetes.io/managed-by")
LABELS = {"consul-bridge/owner": "blue", "app.kubernetes.io/managed-by": "consul-bridge"}


def test_what_a_rule_gave_is_known_after_a_restore_without_managed_fields() -> None:
    """The object says it itself; a label of a user is not in the list."""
    annotations = {"consul-bridge/rule-labels": "team", "consul-bridge/rule-annotations": "note", "note": "x", "n": "y"}
    skip = "endpointslice.kubernetes.io/skip-mirror"
    labels = {**LABELS, "team": "a", "mine": "b", skip: "true"}
    metadata: dict[str, Any] = {"name": "x", "labels": labels, "annotations": annotations}
    meta = objects.decode_meta(Kind.ENDPOINTS, {"metadata": metadata})
    assert meta is not None
    assert dict(meta.labels) == {"team": "a", skip: "true"}
    assert dict(meta.annotations) == {k: v for k, v in annotations.items() if k != "n"}
    fields = [managed(OURS, time="2026-11-23T14:00:00Z")]
    meta = objects.decode_meta(Kind.ENDPOINTS, {"metadata": {**metadata, "managedFields": fields}})
    assert meta is not None
    assert skip not in dict(meta.labels)
    meta = objects.decode_meta(Kind.ENDPOINTS, {"metadata": {**metadata, "labels": {"team": "a"}}})
    assert meta is not None
    assert meta.labels == ()


@pytest.mark.parametrize(
    ("entries", "gone"),
    [
        ([managed((*OURS, "team"), manager="velero")], True),
        ([managed(("team",), manager="kubectl")], False),
        ([managed((*OURS, "tier"), manager="velero"), managed(("team",), manager="kubectl")], False),
    ],
    ids=["the client that restored the object", "a user", "both, and it is the user's"],
)
def test_what_a_rule_drops_goes_unless_it_is_a_users(entries: Any, gone: bool) -> None:
    """Who owns our label of ownership as well has restored the object."""
    labels = {**LABELS, "team": "a", "tier": "web"}
    stored = {"metadata": {"name": "x", "labels": labels, "managedFields": entries}}
    seen = objects.decode_meta(Kind.SERVICE, stored)
    assert seen is not None
    existing = replace(seen, labels=tuple(labels.items()))
    sent = {"metadata": {"name": "x", "labels": {**LABELS, "tier": "web"}}}
    assert objects.leftovers(existing, sent, stored) == ({"labels": {"team": None}} if gone else {})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, ""),
        ({"metadata": {"labels": {"a": "1", "b": "2"}, "annotations": {"x": "y"}}}, ""),
        ({"metadata": {"labels": {"a": "2"}}}, "metadata.labels[a] is '2', not '1'"),
        ({"metadata": {}}, "metadata.labels[a] is gone"),
        ({"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 1}]}]}, "subsets: 10.0.0.2 is gone"),
        (
            {"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "notReadyAddresses": [{"ip": "10.0.0.9"}]}]},
            "subsets: 10.0.0.2 is gone and 10.0.0.9 was added",
        ),
        (
            {"subsets": [{"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "ports": [{"port": 2}]}]},
            "subsets: conditions, ports or other fields are not as they were sent",
        ),
        ({"subsets": None}, "subsets: 10.0.0.1, 10.0.0.2 is gone"),
    ],
)
def test_where_an_object_is_stored_otherwise_than_it_was_sent(change: dict[str, Any], text: str) -> None:
    """Fields that others add beside ours are theirs; what is in an atomic list is ours."""
    subsets = [{"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "ports": [{"port": 1}]}]
    sent = {"metadata": {"labels": {"a": "1"}}, "subsets": subsets}
    assert objects.alterations(sent, {**sent, **change}) == ([text] if text else [])


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        ({"ports": [{"port": 80, "nodePort": 30000, "protocol": "TCP"}, {"port": 9}], "clusterIP": "10.96.0.1"}, []),
        ({"ports": [{"port": 81, "protocol": "TCP"}]}, ["spec.ports is not as it was sent"]),
        ({"ipFamilies": ["IPv6"]}, ["spec.ipFamilies is not as it was sent"]),
        ({"type": "LoadBalancer"}, ["spec.type is not as it was sent"]),
    ],
)
def test_a_service_is_compared_field_by_field(change: dict[str, Any], texts: list[str]) -> None:
    """Defaults and node ports that the server adds are none of it."""
    spec = {"type": "ClusterIP", "ipFamilies": ["IPv4"], "ports": [{"port": 80, "protocol": "TCP"}]}
    assert objects.alterations({"spec": spec}, {"spec": {**spec, **change}}) == texts


def test_a_slice_whose_ports_were_named_by_the_server_is_as_it_was_sent() -> None:
    """The server writes `name: ""`."""
    sent = {"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]}
    assert objects.alterations(sent, {**sent, "ports": [{"port": 80, "name": ""}]}) == []
    assert objects.alterations(sent, {**sent, "endpoints": []}) == ["endpoints: 10.0.0.1 is gone"]
    assert objects.alterations(sent, {**sent, "ports": []}) == ["ports is not as it was sent"]


@pytest.mark.parametrize(
    ("labels", "owner"),
    [
        ({"app.kubernetes.io/managed-by": "consul-bridge", "consul-bridge/owner": "blue"}, "blue"),
        ({"app.kubernetes.io/managed-by": "consul-bridge"}, None),
        ({"app.kubernetes.io/managed-by": "Helm", "consul-bridge/owner": "blue"}, None),
        ({"consul-bridge/owner": "blue"}, None),
        ({}, None),
    ],
)
def test_an_object_is_owned_only_with_both_labels(labels: dict[str, str], owner: str | None) -> None:
    """The owner label counts beside our managed-by label alone."""
    meta = objects.decode_meta(Kind.SERVICE, {"metadata": {"name": "x", "labels": labels}})
    assert meta is not None
    assert meta.owner == owner


def test_our_labels_and_annotations_are_read() -> None:
    """Labels and annotations under our prefix, and HashiCorp's label."""
    raw = {
        "metadata": {
            "name": "x",
            "labels": {"consul": "true", "consul-bridge/mirror": "true", "other": "1"},
            "annotations": {"consul-bridge/service": "web", "other": "1"},
            "deletionTimestamp": "2026-11-23T14:00:00Z",
        }
    }
    meta = objects.decode_meta(Kind.SERVICE, raw)
    assert meta is not None
    assert meta.ownership == (("consul", "true"), ("consul-bridge/mirror", "true"), ("consul-bridge/service", "web"))
    assert meta.deleting


def test_ports_of_a_user_managed_service_keep_their_order_and_fixed_target_ports() -> None:
    """Order can carry meaning there; a target port is a number or a name."""
    raw = {
        "metadata": {"name": "x"},
        "spec": {
            "type": "NodePort",
            "selector": {"a": "b"},
            "ipFamilies": ["IPv6", "IPv5"],
            "ports": [{"name": "z", "port": 2, "targetPort": "http"}, {"name": "a", "port": 1, "targetPort": 99}],
        },
    }
    found = objects.decode_service(raw)
    assert found is not None
    assert [p.name for p in found.ports] == ["z", "a"]
    assert found.target_ports == ("http", 99)
    assert (found.type, found.has_selector, found.headless, found.families) == ("NodePort", True, False, (Family.IPV6,))


def subset(**content: Any) -> dict[str, Any]:
    """An Endpoints object with one subset."""
    ports = [{"name": "http", "port": 8080, "protocol": "TCP"}]
    return {"metadata": {"name": "x"}, "subsets": [{"ports": ports, **content}]}


@pytest.mark.parametrize(
    ("raw", "canonical"),
    [
        (subset(addresses=[{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]), True),
        (subset(addresses=[{"ip": "10.0.0.2"}, {"ip": "10.0.0.1"}]), False),
        (subset(addresses=[{"ip": "10.0.0.1"}, {"ip": "10.0.0.1"}]), False),
        (subset(addresses=[{"ip": "10.0.0.1"}], notReadyAddresses=[{"ip": "10.0.0.1"}]), False),
        (subset(addresses=[{"ip": "10.0.0.1", "nodeName": "n"}]), False),
        (subset(addresses=[{"ip": "10.0.0.1", "hostname": "h"}]), True),
        (subset(addresses=[{"ip": "fd00::1"}, {"ip": "10.0.0.1"}]), False),
        (subset(), False),
        ({"metadata": {"name": "x"}}, True),
    ],
)
def test_endpoints_are_canonical_when_we_would_write_the_same(raw: dict[str, Any], canonical: bool) -> None:
    """Order, duplicates, an address both ready and not, foreign fields: all rewritten."""
    found = objects.decode_endpoints(raw)
    assert found is not None
    assert found.normalized is canonical


def test_an_address_ready_and_not_ready_in_one_port_set_counts_as_not_ready() -> None:
    """As the mirroring controller sees it (docs/kubernetes.md)."""
    found = objects.decode_endpoints(subset(addresses=[{"ip": "10.0.0.1"}], notReadyAddresses=[{"ip": "10.0.0.1"}]))
    assert found is not None
    assert found.groups == (group(*down("10.0.0.1")),)


def test_what_a_service_and_its_objects_have_alike_is_one_object_in_memory() -> None:
    """Each endpoint would be there three times, and the labels of a bridge thousands of times."""

    def stored(body: EndpointsBody | SliceBody, name: str) -> Any:
        sent = json.loads(json.dumps(objects.encode(create(body))))
        sent["metadata"] |= {"name": name, "uid": name, "resourceVersion": "7"}
        sent["metadata"]["managedFields"] = [{
            "manager": FIELD_MANAGER, "operation": "Apply", "fieldsV1": {
                "f:metadata": {f"f:{kind}": {f"f:{key}": {} for key in sent["metadata"][kind]} for kind in ("labels",)},
            },
        }]  # fmt: skip
        return sent

    addresses = objects.decode_endpoints(stored(endpoints(), "web"))
    in_slice = objects.decode_slice(stored(slice_of("web"), "web-x"))
    assert addresses is not None
    assert in_slice is not None
    (one,) = in_slice.group.endpoints
    assert one is addresses.groups[0].endpoints[0]
    assert one is endpoint_of(one.address, True, True, False, "", "", "", "")
    owner = [[pair for pair in pairs if pair[0] == ownership.OWNER] for pairs in (
        addresses.meta.labels, in_slice.meta.labels, addresses.meta.ownership, in_slice.meta.ownership,
    )]  # fmt: skip
    assert {id(pair) for pairs in owner for pair in pairs} == {id(owner[0][0])}


def test_a_slice_with_an_endpoint_twice_never_equals_a_wanted_one() -> None:
    """It is rewritten, for kube-proxy would not care but people do."""
    entry = {"addresses": ["10.0.0.1"], "conditions": {}}
    raw = {
        "metadata": {
            "name": "x",
            "labels": {ownership.SLICE_SERVICE: "web", ownership.SLICE_MANAGED_BY: ownership.MANAGER},
        },
        "addressType": "IPv4",
        "endpoints": [entry, entry],
        "ports": [{"name": "", "port": None, "protocol": "TCP"}],
    }
    found = objects.decode_slice(raw)
    assert found is not None
    assert found.group.endpoints == ready("10.0.0.1", "10.0.0.1")
    assert not found.normalized
    assert found.group.ports == (Port("", 0),)


def test_of_a_slice_of_others_only_its_name_and_the_wish_to_keep_it_are_read() -> None:
    """The control plane copies our labels to its mirrors, which are not ours for that."""
    marks = {"consul-bridge/keep": "true", "consul-bridge/service": "web"}
    labels = {ownership.SLICE_SERVICE: "web", ownership.MANAGED_BY: ownership.MANAGER, ownership.OWNER: "default"}
    raw = {"metadata": {"name": "x", "labels": labels, "annotations": marks}, "addressType": "IPv4"}
    found = objects.decode_slice(raw)
    assert found is not None
    assert (found.meta.owner, found.meta.ownership) == (None, (("consul-bridge/keep", "true"),))


@pytest.mark.parametrize(
    "change", [{"addressType": "FQDN"}, {"addressType": None}, {"addressType": ["IPv4"]}, {"metadata": {"name": "x"}}]
)
def test_a_slice_that_cannot_be_ours_is_none(change: dict[str, Any]) -> None:
    """No Service, or an address type that we never write."""
    raw = {"metadata": {"name": "x", "labels": {ownership.SLICE_SERVICE: "web"}}, "addressType": "IPv4"}
    assert objects.decode_slice(raw) is not None
    assert objects.decode_slice({**raw, **change}) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = [
    "metadata", "name", "namespace", "labels", "annotations", "uid", "resourceVersion", "managedFields", "manager",
    "operation", "fieldsV1", "f:metadata", "f:labels", "spec", "type", "ports", "port", "protocol", "targetPort",
    "clusterIP", "ipFamilies", "selector", "subsets", "addresses", "notReadyAddresses", "ip", "endpoints",
    "conditions", "ready", "serving", "addressType", "kubernetes.io/service-name", "deletionTimestamp",
]  # fmt: skip
odd_objects = st.recursive(
    json_values | st.sampled_from(["IPv4", "consul-bridge", "Apply", "10.0.0.1", "TCP"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=40,
)


@settings(max_examples=400, deadline=None)
@given(raw=odd_objects, kind=st.sampled_from(list(Kind)))
def test_decoding_never_raises(raw: Any, kind: Kind) -> None:
    """Whatever JSON a server, a proxy or a user makes of an object."""
    named = {**raw, "metadata": {"name": "x", **objects.mapping(raw.get("metadata"))}} if isinstance(raw, dict) else raw
    for value in (raw, named):
        found = objects.decode(kind, value)
        assert found is None or found.meta.kind is kind


# --------------------------------------------------------------------------- there and back

addresses4 = st.integers(1, 250).map(lambda n: f"10.0.{n % 5}.{n}")
addresses6 = st.integers(1, 250).map(lambda n: f"fd00::{n:x}")
port_sets = st.lists(
    st.builds(Port, st.sampled_from(["a", "b", "c"]), st.integers(1, 9), st.sampled_from(["TCP", "UDP"]), st.just("")),
    min_size=1,
    max_size=3,
    unique_by=lambda p: p.name,
).map(lambda found: tuple(sorted(found)))


@st.composite
def groups(draw: st.DrawFn) -> tuple[Group, ...]:
    """Canonical groups as an Endpoints object can hold them."""
    found: dict[Any, Group] = {}
    for _ in range(draw(st.integers(0, 4))):
        family, ports = draw(st.sampled_from(list(Family))), draw(port_sets)
        pool = addresses4 if family is Family.IPV4 else addresses6
        members = draw(st.dictionaries(pool, st.booleans(), min_size=1, max_size=6))
        found[family, ports] = Group(
            family, ports, objects.arranged(Endpoint(a, r, serving=r) for a, r in members.items())
        )
    return tuple(found[key] for key in sorted(found))


META = Meta(kind=Kind.ENDPOINTS, namespace="default", name="radosgw", uid="u", resource_version="7", owner=None)


@settings(deadline=None)
@given(found=groups(), shuffle=st.randoms())
def test_endpoints_survive_the_way_there_and_back(found: tuple[Group, ...], shuffle: Any) -> None:
    """decode(encode(x)) == x, canonical, whatever the order of the input; and the same bytes each time."""
    mixed = [replace(g, endpoints=tuple(shuffle.sample(g.endpoints, len(g.endpoints)))) for g in found]
    shuffle.shuffle(mixed)
    sent = objects.encode(create(EndpointsBody(tuple(mixed), (), ())))
    assert json.dumps(sent) == json.dumps(objects.encode(create(EndpointsBody(found, (), ()))))
    decoded = objects.decode_endpoints({**sent, "metadata": {**sent["metadata"], "uid": "u", "resourceVersion": "7"}})
    assert decoded == CurrentEndpoints(META, found)


@settings(deadline=None)
@given(found=groups().filter(bool), flags=st.lists(st.booleans(), min_size=2, max_size=2))
def test_slices_survive_the_way_there_and_back(found: tuple[Group, ...], flags: list[bool]) -> None:
    """Each condition, the zone, the node and the hostname come back."""
    members = tuple(
        replace(e, serving=e.ready or flags[0], terminating=flags[1], zone="z", node_name="n", hostname="h")
        for e in found[0].endpoints
    )
    wanted = replace(found[0], endpoints=members)
    change = create(SliceBody("radosgw", wanted, (), ()))
    sent = objects.encode(change)
    decoded = objects.decode_slice(sent)
    assert isinstance(decoded, CurrentSlice)
    assert decoded == objects.expected(change, decoded.meta)
    assert decoded.group == wanted


@pytest.mark.parametrize("kind", list(Kind))
def test_expected_differs_from_another_version_only_by_the_version(kind: Kind) -> None:
    """`same` looks past the resourceVersion, and at everything else."""
    change = create({**bodies(), Kind.HTTP_ROUTE: route()}[kind])
    meta = replace(META, kind=kind)
    one, later = (objects.expected(change, replace(meta, resource_version=v)) for v in ("1", "2"))
    assert one != later
    assert objects.same(one, later)
    assert not objects.same(one, replace(later, meta=replace(later.meta, labels=(("a", "b"),))))


@pytest.mark.parametrize(("text", "number"), [("12", 12), ("", 0), ("x", 0), ("-1", 0), ("²", 0), ("1.5", 0)])
def test_a_resource_version_is_a_number_or_nothing(text: str, number: int) -> None:
    """Odd ones order nothing."""
    assert objects.version(text) == number


# --------------------------------------------------------------------------- HTTPRoutes


def stored_route() -> dict[str, Any]:
    """An HTTPRoute of ours as the server gives it back."""
    raw = objects.encode(create(route()))
    copied: dict[str, Any] = json.loads(json.dumps(raw))
    return copied


def decoded_route(raw: dict[str, Any]) -> CurrentRoute:
    found = objects.decode(Kind.HTTP_ROUTE, raw)
    assert isinstance(found, CurrentRoute)
    return found


def test_a_route_is_read_as_it_was_written() -> None:
    """Its own namespace may be named, and other fields of the spec are left alone."""
    raw = stored_route()
    assert decoded_route(raw).route == ROUTE
    raw["spec"]["parentRefs"][1]["namespace"] = "default"
    raw["spec"]["somethingNew"] = "x"
    assert decoded_route(raw).route == ROUTE


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec["rules"].append(spec["rules"][0]),
        lambda spec: spec["rules"][0].update(filters=[{"type": "URLRewrite"}]),
        lambda spec: spec["rules"][0]["matches"][0].update(method="GET"),
        lambda spec: spec["rules"][0]["matches"][0]["path"].update(type="Exact"),
        lambda spec: spec["rules"][0]["backendRefs"][0].update(name="other"),
        lambda spec: spec["rules"][0]["backendRefs"][0].update(weight=2),
        lambda spec: spec["parentRefs"][0].update(kind="Service"),
        lambda spec: spec.update(rules=[]),
        lambda spec: spec.update(rules="x", hostnames=[1], parentRefs=["x"]),
    ],
)
def test_a_route_with_other_content_is_none_that_we_would_write(change: Any) -> None:
    raw = stored_route()
    change(raw["spec"])
    assert decoded_route(raw).route is None


def test_what_gateways_say_makes_no_other_route() -> None:
    """Only what is False is reported, whichever of the two conditions it is."""
    raw = stored_route()
    conditions = [
        {"type": "Accepted", "status": "True", "reason": "Accepted"},
        {"type": "ResolvedRefs", "status": "False", "reason": "BackendNotFound", "message": "none"},
        {"type": "Programmed", "status": "False"},
        "odd",
    ]
    raw["status"] = {"parents": [{"parentRef": {"name": "public"}, "conditions": conditions}, {"parentRef": 1}]}
    found = decoded_route(raw)
    assert found == decoded_route(stored_route())
    assert found.refused == (
        "Gateway default/public says ResolvedRefs is False for the HTTPRoute: BackendNotFound: none",
    )
