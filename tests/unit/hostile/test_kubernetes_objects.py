"""Whatever is in Kubernetes: it is read as something or as nothing, and what is not ours stays as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.core import annotated
from bridge.core.model import (
    Action,
    Current,
    CurrentEndpoints,
    CurrentService,
    CurrentSlice,
    Kind,
    Known,
    Output,
    Target,
)
from bridge.core.plan import plan
from bridge.core.translate import translate
from bridge.kube import objects
from tests.unit.core.builders import instances
from tests.unit.hostile.values import ADDRESSES, JUNK, NUMBERS, TEXTS, mostly, one_of_each

SLOW = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
MARKS = st.dictionaries(
    st.one_of(
        st.sampled_from([
            "app.kubernetes.io/managed-by", "consul-bridge/owner", "consul-bridge/mirror", "consul-bridge/service",
            "consul-bridge/datacenter", "consul-bridge/tags", "consul-bridge/filter", "consul-bridge/output",
            "consul-bridge/adopt", "consul-bridge/hostname-from", "kubernetes.io/service-name",
            "endpointslice.kubernetes.io/managed-by", "consul",
        ]),
        TEXTS,
    ),
    mostly(st.one_of(st.sampled_from(["consul-bridge", "me", "true", "both", "unowned"]), TEXTS)),
    max_size=6,
)  # fmt: skip
METADATA = one_of_each(
    name=st.one_of(st.just("web"), TEXTS), namespace=st.one_of(st.just("shop"), TEXTS), uid=TEXTS,
    resourceVersion=TEXTS, labels=MARKS, annotations=MARKS, deletionTimestamp=TEXTS,
    managedFields=st.lists(one_of_each(manager=st.just("consul-bridge"), operation=st.just("Apply"), time=TEXTS,
                                       fieldsV1=st.just({"f:metadata": {"f:labels": {"f:x": {}}}})), max_size=2),
)  # fmt: skip
PORTS = st.lists(
    one_of_each(name=TEXTS, port=NUMBERS, protocol=TEXTS, appProtocol=TEXTS, targetPort=NUMBERS), max_size=3
)
FAMILIES = st.lists(st.sampled_from(["IPv4", "IPv6"]))
SPEC = one_of_each(
    type=TEXTS, clusterIP=ADDRESSES, selector=MARKS, ports=PORTS, ipFamilies=FAMILIES, ipFamilyPolicy=TEXTS
)
SERVICE = one_of_each(metadata=METADATA, spec=SPEC)
SUBSET = one_of_each(
    addresses=st.lists(one_of_each(ip=ADDRESSES), max_size=3),
    notReadyAddresses=st.lists(one_of_each(ip=ADDRESSES), max_size=3),
    ports=PORTS,
)
ENDPOINTS = one_of_each(metadata=METADATA, subsets=st.lists(SUBSET, max_size=3))
SLICE = one_of_each(
    metadata=METADATA,
    addressType=st.sampled_from(["IPv4", "IPv6", "FQDN"]),
    endpoints=st.lists(
        one_of_each(addresses=st.lists(mostly(ADDRESSES), max_size=2), zone=TEXTS, nodeName=TEXTS,
                    conditions=one_of_each(ready=st.booleans(), serving=st.booleans(), terminating=st.booleans())),
        max_size=3,
    ),
    ports=PORTS,
)  # fmt: skip


@SLOW
@given(kind=st.sampled_from(Kind), raw=st.one_of(SERVICE, ENDPOINTS, SLICE, JUNK))
def test_every_object_is_something_or_nothing(kind: Kind, raw: Any) -> None:
    """Reading never raises, and what was read can be read again the same."""
    assert objects.decode(kind, raw) == objects.decode(kind, raw)
    meta = objects.decode_meta(kind, raw)
    assert meta is None or meta.owner is None or dict(meta.ownership).get("consul-bridge/owner") == meta.owner


@SLOW
@given(service=SERVICE, endpoints=ENDPOINTS, pieces=st.lists(SLICE, max_size=2), output=st.sampled_from(Output))
def test_a_plan_over_odd_objects_writes_over_our_own_alone(
    service: Any, endpoints: Any, pieces: list[Any], output: Output
) -> None:
    """Whatever other programs made of the objects, those without our labels are not touched."""
    target = Target("shop", "web")
    found = [objects.decode(Kind.ENDPOINT_SLICE, raw) for raw in pieces]
    read = (objects.decode(Kind.SERVICE, service), objects.decode(Kind.ENDPOINTS, endpoints))
    current = Current(
        target,
        read[0] if isinstance(read[0], CurrentService) else None,
        read[1] if isinstance(read[1], CurrentEndpoints) else None,
        tuple(s for s in found if isinstance(s, CurrentSlice)),
    )
    asked = annotated.request_of(current.service, "dc1")
    if not isinstance(asked, tuple):
        return
    rule, query = asked
    assert rule.to.namespace == (current.service.meta.namespace if current.service else "")
    rule = replace(rule, to=replace(rule.to, output=output))
    done = translate(target, [(rule, query, Known(instances(3)))], current)
    for change in plan(target, done.mirror, current, owner="me").changes:
        if change.action in (Action.UPDATE, Action.DELETE):
            assert change.existing is not None
            assert change.existing.owner == "me"
        if change.body is not None:
            objects.encode(change)


@SLOW
@given(marks=MARKS, datacenter=TEXTS)
def test_annotations_that_ask_for_anything_stay_in_their_namespace(marks: Any, datacenter: str) -> None:
    """A Service may ask for any Consul service; where it is written is decided by where it stands."""
    raw = {"metadata": {"name": "web", "namespace": "shop", "labels": {"consul-bridge/mirror": "true"},
                        "annotations": marks}}  # fmt: skip
    service = objects.decode_service(raw)
    assert service is not None
    asked = annotated.request_of(service, datacenter)
    if not isinstance(asked, tuple):  # an annotation `consul-bridge/mirror` that says something else
        return
    rule, query = asked
    assert (rule.to.namespace, rule.to.name, rule.to.annotated) == ("shop", "web", True)
    assert query.service
