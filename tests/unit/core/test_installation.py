"""Two installations with one owner id: what one wrote the other does not delete; neither writes for the name alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bridge.core.model import SERVICE_KINDS, Action, Adopt, Current, Kind, Meta, Output, Plan, Policy
from bridge.core.ownership import INSTALLATION
from bridge.core.plan import plan
from bridge.core.reasons import Code, codes_of
from tests.unit.core.builders import OWNER, TARGET, Cluster, instance, mirror_of, rule, verbs

A, B = "team-a/bridge", "team-b/bridge"
BOTH = rule(output=Output.BOTH)


def planned(cluster: Cluster, installation: str, *addresses: str, policy: Policy = Policy.SYNC, **more: object) -> Plan:
    """A pass of an installation that wants these addresses (none: nothing at the target)."""
    desired = mirror_of([instance(a) for a in addresses], BOTH, cluster.current()) if addresses else None
    return plan(
        TARGET,
        desired,
        cluster.current(),
        owner=OWNER,
        policy=policy,
        installation=installation,
        **more,  # type: ignore[arg-type]
    )


def written(by: str, *addresses: str) -> Cluster:
    """What exists after a pass."""
    cluster = Cluster()
    cluster.apply(planned(cluster, by, *addresses or ("10.0.0.1",)))
    return cluster


def names(cluster: Cluster) -> set[str | None]:
    """The installations that the objects name."""
    current = cluster.current()
    metas = [o.meta for o in (current.service, current.endpoints, *current.slices) if o is not None]
    assert len(metas) == 3
    return {dict(meta.ownership).get(INSTALLATION) for meta in metas}


def test_what_is_written_names_the_installation() -> None:
    """On every object; without a name of ours nothing is named."""
    assert names(written(A)) == {A}
    assert names(written("")) == {None}


@pytest.mark.parametrize("by", [A, B, ""])
def test_nothing_is_written_for_the_name_of_another_one(by: str) -> None:
    """Two that want the same leave it, and so does a command from elsewhere."""
    assert planned(written(A), by, "10.0.0.1").writes == ()


def test_objects_without_an_installation_are_signed_once() -> None:
    """After an upgrade, and after a command from elsewhere; not where objects may only be created."""
    cluster = written("")
    assert planned(cluster, "", "10.0.0.1").writes == ()
    assert planned(cluster, A, "10.0.0.1", policy=Policy.CREATE_ONLY).writes == ()
    signing = planned(cluster, A, "10.0.0.1")
    assert {change.action for change in signing.writes} == {Action.UPDATE}
    assert signing.warnings == ()
    cluster.apply(signing)
    assert names(cluster) == {A}
    assert planned(cluster, A, "10.0.0.1").writes == ()


def test_slices_that_may_not_be_changed_are_not_signed() -> None:
    """The write would be refused."""
    lacking = planned(written(""), A, "10.0.0.1", slices_forbidden=("patch",))
    assert Kind.ENDPOINT_SLICE not in {c.kind for c in lacking.writes if c.action is Action.UPDATE}


def test_the_writer_of_the_content_is_named_and_the_owner_before_it() -> None:
    """A command from elsewhere leaves the name as it is."""
    cluster = written(A)
    cluster.apply(planned(cluster, "", "10.0.0.1", "10.0.0.2"))
    assert names(cluster) == {A}
    taking = planned(cluster, B, "10.0.0.3")
    assert codes_of(taking.warnings) == ("installation_changed",)
    assert A in taking.warnings[0]
    cluster.apply(taking)
    assert names(cluster) == {A, B}  # the Service is as it should be
    assert planned(cluster, B, "10.0.0.3").writes == ()


@pytest.mark.parametrize(
    ("wanted", "addresses", "goes"),
    [
        (Output.ENDPOINTSLICES, ("10.0.0.1",), "delete Endpoints"),
        (Output.BOTH, (), "delete EndpointSlice"),
    ],
    ids=["another output", "a spare slice"],
)
@pytest.mark.parametrize(("by", "said"), [(A, ()), (B, ("installation_changed",)), ("", ())])
def test_an_object_that_is_not_needed_any_more_goes_and_its_installation_is_reported(
    wanted: Output, addresses: tuple[str, ...], goes: str, by: str, said: tuple[str, ...]
) -> None:
    """It would lead to addresses that are gone. A deletion alone is reported, too: nothing else is written here."""
    cluster = written(A)
    desired = mirror_of([instance(a) for a in addresses], rule(output=wanted), cluster.current())
    if not addresses:  # the Endpoints are emptied already
        assert cluster.endpoints is not None
        cluster.endpoints = replace(cluster.endpoints, groups=())
    found = plan(TARGET, desired, cluster.current(), owner=OWNER, installation=by)
    assert (verbs(found), found.conflicts, codes_of(found.warnings)) == ([goes], (), said)


def test_what_another_installation_wrote_does_not_go() -> None:
    """It is a conflict for each of its objects, and nothing at the target goes."""
    cluster = written(A)
    kept = planned(cluster, B)
    assert (kept.changes, kept.removed, kept.ready_before) == ((), 0, 1)
    assert {c.reason.code for c in kept.conflicts} == {Code.OTHER_INSTALLATION}
    assert {c.kind for c in kept.conflicts} == set(SERVICE_KINDS)
    assert A in kept.conflicts[0].reason


@pytest.mark.parametrize(
    ("by", "more"),
    [(A, {}), ("", {}), (B, {"force": True}), (B, {"unsubscribed": True})],
    ids=["its own", "not known", "forced", "sent away by a user"],
)
def test_it_goes_where_an_operator_decided_that(by: str, more: dict[str, Any]) -> None:
    """As everything of ours does."""
    found = planned(written(A), by, **more)
    assert (set(verbs(found)), found.conflicts) == ({"delete Endpoints", "delete EndpointSlice", "delete Service"}, ())


def test_a_forced_pass_takes_over_what_another_installation_left() -> None:
    """After an installation was renamed: then its objects may go with their services again."""
    cluster = written(A)
    cluster.apply(planned(cluster, B, "10.0.0.1", force=True))
    assert names(cluster) == {B}
    assert planned(cluster, B).conflicts == ()


def test_objects_of_others_are_not_looked_at() -> None:
    """Their annotation is no business of ours."""
    cluster = written(A)
    current = cluster.current()
    assert current.service is not None
    theirs: Meta = replace(current.service.meta, owner=None)
    alone = Current(TARGET, replace(current.service, meta=theirs), None, ())
    assert plan(TARGET, None, alone, owner=OWNER, adopt=Adopt.NEVER, installation=B).conflicts == ()
