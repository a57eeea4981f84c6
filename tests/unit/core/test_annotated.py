"""Services that a user labelled: what they ask for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bridge.core import ownership
from bridge.core.annotated import (
    REQUEST,
    Annotated,
    Changed,
    Grant,
    Refusal,
    as_before,
    changed,
    is_abandoned,
    missing,
    request_at,
    request_of,
)
from bridge.core.model import (
    Bounds,
    Current,
    CurrentEndpoints,
    CurrentService,
    CurrentSlice,
    Endpoint,
    Family,
    Group,
    Kind,
    Meta,
    Mirror,
    Output,
    Port,
    Query,
    Rule,
    Target,
)
from bridge.core.reasons import Code

ASKING = {"consul-bridge/mirror": "true"}


def service(marks: dict[str, str], owner: str | None = None, **more: Any) -> CurrentService:
    """A Service `apps/web` with these labels and annotations."""
    meta = Meta(
        kind=Kind.SERVICE, namespace="apps", name="web", uid="u", resource_version="7", owner=owner,
        ownership=tuple(sorted(marks.items())), **more,
    )  # fmt: skip
    return CurrentService(meta, "ClusterIP", False, False, (Port("", 80),))


@pytest.mark.parametrize(
    "found",
    [
        None,
        service({}),
        service({"consul-bridge/mirror": "yes"}),
        service(ASKING, owner="default"),
        service(ASKING, deleting=True),
    ],
    ids=["no Service", "no label", "another value", "one of ours", "being deleted"],
)
def test_what_does_not_ask_gets_nothing(found: CurrentService | None) -> None:
    """Only the label with the value "true", on a Service of another owner, that is there to stay."""
    assert request_of(found, "dc1") is None


def test_the_label_alone_asks_for_the_service_of_the_same_name() -> None:
    """In the bridge's own datacenter."""
    asked = request_of(service(ASKING), "dc1")
    assert isinstance(asked, tuple)
    rule, query = asked
    assert (query, rule.to.namespace, rule.to.name, rule.to.annotated) == (Query("dc1", "web"), "apps", "web", True)


def test_annotations_say_what_from_where_and_which_instances() -> None:
    """Name, datacenter, tags and filter; blanks around them do not count."""
    asked = request_of(
        service({
            **ASKING, "consul-bridge/service": " pg ", "consul-bridge/datacenter": "dc2",
            "consul-bridge/tags": "primary, ,v15", "consul-bridge/filter": " Service.Meta.env == prod ",
        }),
        "dc1",
    )  # fmt: skip
    assert isinstance(asked, tuple)
    rule, query = asked
    assert query == Query("dc2", "pg", filter="Service.Meta.env == prod")
    assert (rule.services, rule.tags, rule.filter) == (("pg",), ("primary", "v15"), "Service.Meta.env == prod")


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("endpointslices", Output.ENDPOINTSLICES),
        (" both ", Output.BOTH),
        ("endpoints", Output.ENDPOINTS),
        ("", Output.BOTH),
    ],
)
def test_an_annotation_chooses_what_carries_the_addresses(text: str, output: Output) -> None:
    """Both, unless one of them is named."""
    asked = request_of(service({**ASKING, "consul-bridge/output": text}), "dc1")
    assert isinstance(asked, tuple)
    assert (asked[0].to.output, asked[0].warnings) == (output, ())


@pytest.mark.parametrize(
    ("marks", "warnings"),
    [
        (
            {"output": "EndpointSlices"},
            (
                "the annotation consul-bridge/output is 'EndpointSlices' and not one of endpoints, endpointslices, "
                "both: it is taken as both",
            ),
        ),
        ({"hostname-from": " node "}, ()),
        (
            {"hostname-from": "meta:secret"},
            ("the annotation consul-bridge/hostname-from is 'meta:secret' and not node: endpoints get no hostnames",),
        ),
        (
            {"tags": " , "},
            ("the annotation consul-bridge/tags is ' , ' and names no tag: instances with any tags are taken",),
        ),
        ({"tags": " ", "filter": " ", "output": " ", "service": ""}, ()),
        ({"adopt": "true", "owner": "default", "service": "x", "datacenter": "dc2", "filter": "x", "tags": "a"}, ()),
        (
            {"tag": "a", "Output": "both"},
            ("unknown to the bridge, so without effect: consul-bridge/Output, consul-bridge/tag",),
        ),
        (
            dict.fromkeys("abcde", "x"),
            ("unknown to the bridge, so without effect: consul-bridge/a, consul-bridge/b, consul-bridge/c and 2 more",),
        ),
    ],
    ids=["output", "hostnames", "hostnames of meta", "tags", "blank", "all that there are",
         "unknown ones", "many unknown ones"],
)  # fmt: skip
def test_what_is_not_understood_is_reported(marks: dict[str, str], warnings: tuple[str, ...]) -> None:
    """It is filled all the same, as if that had not been set."""
    asked = request_of(service({**ASKING, **{f"consul-bridge/{k}": v for k, v in marks.items()}}), "dc1")
    assert isinstance(asked, tuple)
    assert (asked[0].warnings, asked[0].to.output) == (warnings, Output.BOTH)


def test_what_others_set_is_none_of_our_business() -> None:
    """A mark of HashiCorp's catalog sync, say."""
    asked = request_of(service({**ASKING, "consul": "true"}), "dc1")
    assert isinstance(asked, tuple)
    assert asked[0].warnings == ()


def test_what_a_user_asks_for_stays_within_the_installations_bounds() -> None:
    """An annotation has no networks of its own: those of the settings bound it."""
    bounds = Bounds(allow_cidrs=("10.64.0.0/10",))
    asked = request_of(service(ASKING), "dc1", Annotated(bounds))
    assert isinstance(asked, tuple)
    assert asked[0].instances.bounds == bounds


PG = {**ASKING, "consul-bridge/service": "pg-main"}
FILTERED = {**PG, "consul-bridge/filter": 'Service.Meta.env == "prod"'}


@pytest.mark.parametrize(
    ("grants", "asks", "granted"),
    [
        ((), PG, False),
        ((Grant(),), PG, True),
        ((Grant(namespaces=("apps",)),), PG, True),
        ((Grant(namespaces=("app*", "x")),), PG, True),
        ((Grant(namespaces=("shop",)),), PG, False),
        ((Grant(services=("PG-*",)),), PG, True),
        ((Grant(services=("redis", "pg")),), PG, False),
        ((Grant(datacenters=("dc2",)),), PG, False),
        ((Grant(datacenters=("dc2",)),), {**PG, "consul-bridge/datacenter": "dc2"}, True),
        ((Grant(),), FILTERED, False),
        ((Grant(), Grant(services=("pg-*",), filter=True)), FILTERED, True),
        ((Grant(services=("redis",), filter=True), Grant()), FILTERED, False),
    ],
)
def test_a_grant_says_who_may_ask_for_what(grants: tuple[Grant, ...], asks: dict[str, str], granted: bool) -> None:
    """By namespace, service and datacenter, all globs; a filter needs a grant that lets it be used."""
    asked = request_of(service(asks), "dc1", Annotated(grants=grants))
    assert isinstance(asked, tuple) is granted
    assert isinstance(asked, Refusal) is not granted


def test_the_first_grant_that_covers_a_request_bounds_its_addresses() -> None:
    """Beside the bounds of the installation."""
    grants = (Grant(services=("redis",)), Grant(allow_cidrs=("10.8.0.0/16",)), Grant(allow_cidrs=("10.9.0.0/16",)))
    asked = request_of(service(PG), "dc1", Annotated(grants=grants))
    assert isinstance(asked, tuple)
    assert asked[0].instances.allow_cidrs == ("10.8.0.0/16",)


def test_what_was_not_granted_looks_as_if_it_did_not_exist() -> None:
    """The user learns the same; only the operator learns which grant is missing."""
    asked = request_of(service(PG), "dc1", Annotated(grants=()))
    assert isinstance(asked, Refusal)
    assert asked.query == Query("dc1", "pg-main")
    assert (
        asked.reason == missing(asked.query, "apps") == "dc1 lists no service pg-main that namespace apps may ask for"
    )
    assert asked.detail == "no grant in `annotated` lets namespace apps ask for pg-main in dc1"


def test_a_filter_that_was_not_granted_is_reported_whatever_exists() -> None:
    """It depends on the grants alone, so it tells nothing of Consul."""
    asked = request_of(service(FILTERED), "dc1", Annotated(grants=(Grant(),)))
    assert isinstance(asked, Refusal)
    assert asked.reason == asked.detail
    assert "consul-bridge/filter" in asked.reason


def test_namespaces_that_may_not_be_written_get_nothing() -> None:
    """Whatever was granted; the operator learns which setting it is."""
    asked = request_of(service(PG), "dc1", Annotated(Bounds(deny_namespaces=("app*",))))
    assert isinstance(asked, Refusal)
    assert asked.detail == "namespace apps is in guard.deny_namespaces (app*)"
    assert asked.reason == missing(asked.query, "apps")


@pytest.mark.parametrize(
    ("namespaces", "grants"), [(("apps",), (Grant(filter=True),)), (("apps", "shop"), ()), (None, ())]
)
def test_without_grants_only_a_single_namespace_may_ask(
    namespaces: tuple[str, ...] | None, grants: tuple[Grant, ...]
) -> None:
    """Several namespaces would share one Consul token; None is all of them."""
    assert Annotated(grants=None).within(namespaces).grants == grants


def test_grants_that_were_given_hold_whatever_is_watched() -> None:
    """Also none at all, which switches annotated Services off."""
    assert Annotated(grants=()).within(("apps",)).grants == ()


@pytest.mark.parametrize(
    ("annotated", "filled_from", "granted"),
    [
        (Annotated(grants=None).within(None), {("dc1", "pg-main")}, True),
        (Annotated(grants=None).within(None), {("dc1", "other"), ("dc2", "pg-main")}, False),
        (Annotated(grants=None).within(None), set(), False),
        (Annotated(grants=()), {("dc1", "pg-main")}, False),
        (Annotated(grants=None).within(("apps",)), set(), True),
        (Annotated(Bounds(deny_namespaces=("apps",)), (), unsaid=True), {("dc1", "pg-main")}, False),
    ],
)
def test_where_no_grants_are_configured_what_is_filled_stays_filled(
    annotated: Annotated, filled_from: set[tuple[str, str]], granted: bool
) -> None:
    """From the service that it was filled from, and from no other; what an operator refuses is refused."""
    current = Current(Target("apps", "web"), service(PG), None, ())
    found = request_at(current, "dc1", annotated, filled_from)
    assert isinstance(found, tuple) is granted
    assert isinstance(found, Refusal) is not granted


TEAM = Grant(namespace_selector="team=a", services=("pg-*",))
KNOWN = {"apps": {"team": "a"}, "shop": {"team": "b"}}
ELSE = {"apps": {"team": "b"}}


@pytest.mark.parametrize(
    ("grants", "labels", "code"),
    [
        ((TEAM,), KNOWN, None),
        ((TEAM,), ELSE, Code.NOT_GRANTED),
        ((TEAM,), {"shop": {"team": "a"}}, Code.LABELS_UNKNOWN),
        ((TEAM,), None, Code.LABELS_UNKNOWN),
        ((replace(TEAM, namespaces=("shop",)),), KNOWN, Code.NOT_GRANTED),
        ((replace(TEAM, namespaces=("app*",)),), KNOWN, None),
        ((replace(TEAM, namespaces=("app*",)),), ELSE, Code.NOT_GRANTED),
        ((replace(TEAM, services=("redis",)),), None, Code.NOT_GRANTED),
        ((replace(TEAM, services=("redis",)), Grant()), None, None),
        ((TEAM, Grant()), ELSE, None),
        ((TEAM, Grant()), None, Code.LABELS_UNKNOWN),
        ((Grant(), TEAM), None, None),
    ],
)
def test_a_selector_takes_namespaces_by_their_labels(
    grants: tuple[Grant, ...], labels: dict[str, dict[str, str]] | None, code: Code | None
) -> None:
    """Beside globs both have to match; while it is not known whether a grant covers a request, none behind it does."""
    annotated = Annotated(grants=grants, labels=labels)
    asked = request_of(service(PG), "dc1", annotated)
    assert annotated.asks_for_labels
    assert (asked.detail.code if isinstance(asked, Refusal) else None) == code
    if isinstance(asked, Refusal):
        assert asked.reason == missing(asked.query, "apps")


@pytest.mark.parametrize(
    ("labels", "grants", "code"),
    [
        (KNOWN, (TEAM,), Code.FILTER_NOT_GRANTED),
        (KNOWN, (replace(TEAM, filter=True),), None),
        (None, (TEAM,), Code.LABELS_UNKNOWN),
        (None, (replace(TEAM, filter=True),), Code.LABELS_UNKNOWN),
        (None, (Grant(), replace(TEAM, filter=True)), Code.LABELS_UNKNOWN),
        (None, (TEAM, Grant()), Code.FILTER_NOT_GRANTED),
    ],
)
def test_a_filter_needs_a_grant_that_is_known_to_cover_it(
    labels: dict[str, dict[str, str]] | None, grants: tuple[Grant, ...], code: Code | None
) -> None:
    """As long as one may, the user learns no more than of a service that does not exist."""
    asked = request_of(service(FILTERED), "dc1", Annotated(grants=grants, labels=labels))
    assert (asked.detail.code if isinstance(asked, Refusal) else None) == code


@pytest.mark.parametrize(
    ("grants", "labels", "asks", "networks"),
    [
        ((replace(TEAM, allow_cidrs=("10.8.0.0/16",)),), None, PG, ("10.8.0.0/16",)),
        ((TEAM,), ELSE, PG, None),
        ((replace(TEAM, services=("redis",)),), None, PG, None),
        ((TEAM,), None, FILTERED, None),
        ((replace(TEAM, filter=True),), None, FILTERED, ()),
        ((replace(TEAM, namespace_selector="team=b", allow_cidrs=("10.9.0.0/16",)), TEAM), None, PG, ("10.9.0.0/16",)),
    ],
)
def test_unknown_labels_take_nothing_away(
    grants: tuple[Grant, ...],
    labels: dict[str, dict[str, str]] | None,
    asks: dict[str, str],
    networks: tuple[str, ...] | None,
) -> None:
    """What is filled stays, within the bounds of the first grant that may cover it; nothing else is filled."""
    current = Current(Target("apps", "web"), service(asks), None, ())
    annotated = Annotated(grants=grants, labels=labels)
    found = request_at(current, "dc1", annotated, {("dc1", "pg-main")})
    assert (found[0].instances.allow_cidrs if isinstance(found, tuple) else None) == networks
    assert isinstance(request_at(current, "dc1", annotated, {("dc1", "pg-other")}), Refusal)


OURS = (("consul-bridge/owner", "default"),)


@pytest.mark.parametrize(
    ("found", "abandoned"),
    [
        (None, False),
        (service({}), True),
        (service({"consul-bridge/service": "pg"}), True),
        (service({"consul-bridge/mirror": "no"}), True),
        (service(ASKING), False),
        (service(ASKING, deleting=True), True),
        (service({}, owner="default"), False),
        (service({}, written="2026-11-23T11:00:00Z"), False),
        (service({}, labels=OURS), False),
        (service({}, annotations=OURS), False),
    ],
    ids=["no Service", "a user's", "annotations are left", "another value", "it asks", "being deleted", "ours",
         "ours once, written", "ours once, a label", "ours once, an annotation"],
)  # fmt: skip
def test_a_service_that_a_user_made_and_that_does_not_ask_is_abandoned(
    found: CurrentService | None, abandoned: bool
) -> None:
    """One of our own making is not, although a user took the label of its owner off."""
    assert is_abandoned(Current(Target("apps", "web"), found)) is abandoned


# --------------------------------------------------------------------------- what a user changed


def asks(**annotations: str) -> tuple[Rule, Query]:
    """What `apps/web` asks for with these annotations."""
    found = {f"consul-bridge/{key}": value for key, value in annotations.items()}
    asked = request_of(service({**ASKING, "consul-bridge/service": "pg", **found}), "dc1")
    assert isinstance(asked, tuple)
    return asked


def filled_for(rule: Rule, query: Query, owner: str = "default", *, old: bool = False) -> Current:
    """`apps/web` with the Endpoints that we wrote for a request (`old`: before requests were written down)."""
    found = dict(ownership.ownership_labels(owner, (query,))[1]) | ({} if old else dict(rule.to.annotations))
    meta = Meta(
        kind=Kind.ENDPOINTS, namespace="apps", name="web", uid="e", resource_version="8", owner=owner,
        ownership=tuple(sorted(found.items())),
    )  # fmt: skip
    content = Group(Family.IPV4, (Port("", 80),), (Endpoint("10.0.0.1", True),))
    return Current(Target("apps", "web"), service({**ASKING}), CurrentEndpoints(meta, (content,)))


@pytest.mark.parametrize(
    ("annotations", "what"),
    [
        ({}, Changed.NOTHING),
        ({"output": "endpointslices"}, Changed.NOTHING),
        ({"tags": "primary"}, Changed.SELECTION),
        ({"filter": "Service.Meta.env == prod"}, Changed.SELECTION),
        ({"service": "mysql"}, Changed.SERVICE),
        ({"datacenter": "dc2"}, Changed.SERVICE),
    ],
)
def test_our_objects_say_for_which_request_they_were_written(annotations: dict[str, str], what: Changed) -> None:
    """So it is known, also after a restart, that what goes was sent away by its user."""
    before, now = asks(), asks(**annotations)
    assert changed(filled_for(*before), *now, "default") is what
    assert changed(filled_for(*now), *now, "default") is Changed.NOTHING


def test_the_ports_of_a_service_are_a_part_of_its_request() -> None:
    """They choose among the instances' ports."""
    before, found = asks(), request_of(service({**ASKING, "consul-bridge/service": "pg"}), "dc1")
    other = replace(service({**ASKING, "consul-bridge/service": "pg"}), ports=(Port("", 81),))
    now = request_of(other, "dc1")
    assert found == before
    assert isinstance(now, tuple)
    assert changed(filled_for(*before), *now, "default") is Changed.SELECTION


def test_objects_of_an_older_version_or_of_others_do_not_say_that_a_request_changed() -> None:
    """The first have no word of it, the second are not ours."""
    before, now = asks(), asks(tags="primary")
    assert changed(filled_for(*before, old=True), *now, "default") is Changed.NOTHING
    assert changed(filled_for(*before, owner="blue"), *now, "default") is Changed.NOTHING
    assert changed(Current(Target("apps", "web")), *now, "default") is Changed.NOTHING


def test_objects_that_were_emptied_say_nothing_of_a_request() -> None:
    """They keep the marks of an old one for as long as they are not needed; nothing of it stands any more."""
    before, now = asks(), asks(service="mysql")
    there = filled_for(*before).endpoints
    assert there is not None
    group = replace(there.groups[0], endpoints=())
    spare = CurrentSlice(replace(there.meta, kind=Kind.ENDPOINT_SLICE, name="web-1"), "web", group)
    current = replace(filled_for(*now), slices=(spare,))
    assert changed(current, *now, "default") is Changed.NOTHING
    assert changed(replace(current, endpoints=replace(there, groups=())), *now, "default") is Changed.NOTHING
    assert changed(replace(current, endpoints=there), *now, "default") is Changed.SERVICE


def test_while_what_went_is_kept_in_place_our_objects_say_the_old_request() -> None:
    """Else what is kept would count as lost by Consul when it goes at last."""
    before, now = asks(), asks(tags="primary")
    desired = Mirror(
        Target("apps", "web"), (now[1],), Output.ENDPOINTS, (), None, annotations=now[0].to.annotations
    )  # fmt: skip
    kept = as_before(desired, filled_for(*before), "default")
    assert kept.annotations == before[0].to.annotations != desired.annotations
    assert [key for key, _ in kept.annotations] == [REQUEST]
    assert as_before(desired, filled_for(*now), "default") == desired
    assert as_before(desired, filled_for(*before, old=True), "default") == desired
