"""Services that a person labelled: what they ask for."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.core.annotated import Annotated, Grant, Refusal, is_abandoned, missing, request_of
from bridge.core.model import Bounds, Current, CurrentService, Kind, Meta, Output, Port, Query, Target

ASKING = {"consul-bridge/mirror": "true"}


def service(marks: dict[str, str], owner: str | None = None, **more: Any) -> CurrentService:
    """A Service `apps/web` with these labels and annotations."""
    meta = Meta(
        kind=Kind.SERVICE, namespace="apps", name="web", uid="u", resource_version="7", owner=owner,
        marks=tuple(sorted(marks.items())), **more,
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
    """Only the label with the value "true", on a Service of somebody else, that is there to stay."""
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
        ("", Output.ENDPOINTS),
    ],
)
def test_an_annotation_chooses_what_carries_the_addresses(text: str, output: Output) -> None:
    """Endpoints, unless one of the other two is named."""
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
                "both: endpoints carries the addresses",
            ),
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
    ids=["output", "tags", "blank", "all that there are", "unknown ones", "many unknown ones"],
)  # fmt: skip
def test_what_is_not_understood_is_said(marks: dict[str, str], warnings: tuple[str, ...]) -> None:
    """It is filled all the same, as if that had not been set."""
    asked = request_of(service({**ASKING, **{f"consul-bridge/{k}": v for k, v in marks.items()}}), "dc1")
    assert isinstance(asked, tuple)
    assert (asked[0].warnings, asked[0].to.output) == (warnings, Output.ENDPOINTS)


def test_what_others_set_is_none_of_our_business() -> None:
    """A mark of HashiCorp's catalog sync, say."""
    asked = request_of(service({**ASKING, "consul": "true"}), "dc1")
    assert isinstance(asked, tuple)
    assert asked[0].warnings == ()


def test_what_a_person_asks_for_stays_within_the_installations_bounds() -> None:
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
    """The user is told the same; only the operator is told which grant is missing."""
    asked = request_of(service(PG), "dc1", Annotated(grants=()))
    assert isinstance(asked, Refusal)
    assert asked.query == Query("dc1", "pg-main")
    assert (
        asked.reason == missing(asked.query, "apps") == "dc1 lists no service pg-main that namespace apps may ask for"
    )
    assert asked.detail == "no grant in `annotated` lets namespace apps ask for pg-main in dc1"


def test_a_filter_that_was_not_granted_is_said_whatever_exists() -> None:
    """It depends on the grants alone, so it tells nothing of Consul."""
    asked = request_of(service(FILTERED), "dc1", Annotated(grants=(Grant(),)))
    assert isinstance(asked, Refusal)
    assert asked.reason == asked.detail
    assert "consul-bridge/filter" in asked.reason


def test_namespaces_that_may_not_be_written_get_nothing() -> None:
    """Whatever was granted; the operator is told which setting it is."""
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
    ids=["no Service", "a person's", "annotations are left", "another value", "it asks", "being deleted", "ours",
         "ours once, written", "ours once, a label", "ours once, an annotation"],
)  # fmt: skip
def test_a_service_that_a_person_made_and_that_does_not_ask_is_abandoned(
    found: CurrentService | None, abandoned: bool
) -> None:
    """One of our own making is not, although somebody took the label of its owner off."""
    assert is_abandoned(Current(Target("apps", "web"), found)) is abandoned
