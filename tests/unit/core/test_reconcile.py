"""The recipe where the scenarios do not lead: what is not known yet, what is doubted, what was not granted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bridge.core.annotated import Refusal, missing, request_of
from bridge.core.guard import Verdict
from bridge.core.model import (
    Action,
    Conflict,
    Current,
    Destination,
    Held,
    Kind,
    Known,
    Listing,
    Output,
    Plan,
    Query,
    Rule,
    Status,
    Target,
)
from bridge.core.ownership import joined, ownership_labels
from bridge.core.reasons import Code, Reason, codes_of
from bridge.core.reconcile import (
    Draft,
    PlanOptions,
    Surroundings,
    judge,
    names_at,
    observe,
    reconcile,
    why_not_serving,
)
from bridge.core.state import ConsulState
from tests.unit.core.builders import (
    OWNER,
    TARGET,
    endpoints,
    group,
    instance,
    instances,
    our_marks,
    ready,
    rule,
    service,
    slice_of,
)

WEB = Query("dc1", "radosgw")
OPTIONS = PlanOptions(owner=OWNER)


def state(*found: Any, rules: tuple[Rule, ...] = (rule(),), hidden: bool = False) -> ConsulState:
    """Consul lists radosgw, with these instances."""
    made = ConsulState(rules, ("dc1",), 0.0)
    made.on_listing("dc1", Listing({"radosgw": frozenset()}), 0.0)
    made.on_view(WEB, Known(tuple(found), acl_filtered=hidden))
    return made


def standing(*addresses: str, **about: Any) -> Current:
    """What we wrote: a Service, and Endpoints with these addresses."""
    return Current(TARGET, service(**about), endpoints(group(*ready(*addresses))))


def asking(owner: str | None = None) -> Current:
    """A user's Service that we filled."""
    return Current(TARGET, service(owner=owner), endpoints(group(*ready("10.0.0.1"))))


def made(consul_state: ConsulState, current: Current, **around: Any) -> Draft | None:
    """The draft of a target at which this stands."""
    return reconcile(observe(consul_state, current, 0.0), OPTIONS, Surroundings(**around))


def plan_of(consul_state: ConsulState, current: Current, **around: Any) -> Plan:
    """Its plan, which there must be."""
    draft = made(consul_state, current, **around)
    assert draft is not None
    return draft.plan


def test_nothing_is_reported_of_a_service_that_was_never_read() -> None:
    """What exists may be all of it, or nothing."""
    consul_state = ConsulState((rule(),), ("dc1",), 0.0)
    consul_state.on_listing("dc1", Listing({"radosgw": frozenset()}), 0.0)
    assert made(consul_state, standing("10.0.0.1")) is None


def test_nothing_is_reported_of_what_may_not_go_yet() -> None:
    """No service feeds it, and that none ever will is not certain."""
    consul_state = ConsulState((), ("dc1",), 30.0)
    current = standing("10.0.0.1")
    consul_state.record_owned(TARGET, names_at(current), 0.0)
    assert made(consul_state, current) is None


def test_a_datacenter_that_is_not_read_is_reported_on_the_service_that_asks_for_it() -> None:
    """The operator names datacenters; what exists stays."""
    consul_state = state(instance())
    consul_state.annotate(TARGET, Rule(to=Destination(annotated=True)), Query("dc9", "radosgw"), 0.0)
    plan = plan_of(consul_state, asking())
    assert (codes_of(plan.warnings), plan.changes) == ((Code.DATACENTER_NOT_ASKED,), ())


def test_host_names_without_an_answer_keep_existing_endpoints() -> None:
    """Some of it may be their addresses; a name that has no address is an answer."""
    found = [instance(f"vm{n}.example") for n in range(4)]
    consul_state, current = state(instance("10.0.0.1"), *found), standing("10.0.0.1", "10.0.0.9")
    plan = plan_of(consul_state, current)
    assert (plan.ready, plan.removed) == (2, 0)
    assert "vm0.example, vm1.example, vm2.example and 1 more" in plan.warnings[-1]
    answered = plan_of(consul_state, current, resolve=lambda _target, names: dict.fromkeys(names, ()))
    assert (answered.ready, answered.removed, answered.warnings) == (1, 1, ())


def test_a_read_that_an_acl_has_shortened_takes_nothing_away() -> None:
    """What is hidden may be what exists."""
    plan = plan_of(state(instance("10.0.0.1"), hidden=True), standing("10.0.0.1", "10.0.0.9"))
    assert (plan.removed, codes_of(plan.warnings)) == (0, (Code.HIDDEN,))


def test_what_a_user_may_not_ask_for_is_emptied_when_they_asked_for_something_else() -> None:
    """They sent away what was filled; a grant that was taken back waits like a rule that left the file."""
    consul_state, current = state(instance()), asking()
    consul_state.replace_rules((), 0.0)
    consul_state.record_owned(TARGET, names_at(current), 0.0)
    other = Query("dc1", "db")
    consul_state.refuse(TARGET, Refusal(other, missing(other, "default"), missing(other, "default")), 0.0)
    gone = plan_of(consul_state, current)
    assert [(c.action, c.reason) for c in gone.writes] == [
        (Action.DELETE, "no rule or annotation asks for it any more")
    ]
    assert gone.unsubscribed


def test_a_refused_request_alone_changes_nothing() -> None:
    """Nothing was ever filled: there is only something to say."""
    consul_state = state(instance())
    consul_state.replace_rules((), 0.0)
    consul_state.refuse(TARGET, Refusal(WEB, missing(WEB, "default"), missing(WEB, "default")), 0.0)
    plan = plan_of(consul_state, Current(TARGET, service(owner=None)))
    assert (plan.changes, codes_of(plan.warnings), plan.queries) == ((), (Code.SERVICE_MISSING,), (WEB,))


def test_what_a_user_sent_away_goes_although_a_rule_wants_the_name() -> None:
    """The rule does not get the user's Service, so nothing else would ever change what exists."""
    current = Current(TARGET, service(owner=None), endpoints(group(*ready("10.0.0.1"))))
    consul_state = state(instance())
    consul_state.record_owned(TARGET, names_at(current), 0.0)
    plan = plan_of(consul_state, current)
    assert [(c.action, c.kind, c.reason) for c in plan.writes] == [
        (Action.DELETE, Kind.ENDPOINTS, "no rule or annotation asks for it any more")
    ]
    assert len(plan.conflicts) == 1


@pytest.mark.parametrize(
    ("gone", "seconds", "left"),
    [(True, 60.0, 0), (True, 5.0, 12), (False, 60.0, 12)],
)
def test_what_a_user_left_behind_goes_although_a_rule_wants_the_name_and_its_service_is_gone(
    gone: bool, seconds: float, left: int
) -> None:
    """For certain and for long enough; the guard adds it up, as it cannot see whether a user or Consul did it."""
    filled = endpoints(group(*ready(*(f"10.0.0.{n}" for n in range(1, 13)))))
    filled = replace(
        filled, meta=replace(filled.meta, ownership=our_marks(ownership_labels(OWNER, (Query("dc1", "db"),))[1]))
    )
    current = Current(TARGET, service(owner=None), filled)
    consul_state = ConsulState((rule(),), ("dc1",), 30.0)
    consul_state.record_owned(TARGET, names_at(current), 0.0)
    consul_state.on_listing("dc1", Listing({"radosgw": frozenset()}), 0.0)
    consul_state.on_view(WEB, Known((instance("10.0.1.1"),)))
    consul_state.on_view(Query("dc1", "db"), Known(() if gone else (instance(),)))
    consul_state.expire(seconds)
    draft = reconcile(observe(consul_state, current, seconds), OPTIONS, Surroundings())
    assert draft is not None
    assert (len(draft.plan.writes), draft.plan.removed, draft.plan.unsubscribed) == (
        (1, 12, False) if not left else (0, 0, False)
    )
    assert len(draft.plan.conflicts) == 1


@pytest.mark.parametrize(("lacking", "taken"), [((), (0, 0)), (("patch",), (0, 0)), (("patch", "delete"), (11, 1))])
def test_slices_that_may_not_be_written_any_more_do_not_say_what_a_user_asked_for(
    lacking: tuple[str, ...], taken: tuple[int, int]
) -> None:
    """They keep the request that they were made for; what belongs to the one of now is what Consul loses."""
    mine = service(owner=None, meta_ownership=(("consul-bridge/mirror", "true"),))
    asked = request_of(mine, "dc1")
    assert isinstance(asked, tuple)
    now, by = asked[0].to.annotations, asked[0]
    addresses = [f"10.0.0.{n}" for n in range(1, 13)]
    old, new = (("consul-bridge/request", "old"),), now
    filled = endpoints(group(*ready(*addresses)))
    filled = replace(filled, meta=replace(filled.meta, ownership=joined(filled.meta.ownership, new)))
    cut = slice_of("radosgw-a", group(*ready("10.0.9.1")))
    cut = replace(cut, meta=replace(cut.meta, ownership=joined(cut.meta.ownership, old)))
    consul_state = state(instance("10.0.0.1", status=Status.CRITICAL), rules=())
    consul_state.annotate(TARGET, by, asked[1], 0.0)
    current = Current(TARGET, mine, filled, (cut,))
    draft = made(consul_state, current, slices_forbidden=lambda _namespace: lacking)
    assert draft is not None
    assert (draft.plan.removed, draft.plan.became_unready) == taken
    assert draft.plan.unsubscribed is (taken == (0, 0))
    lost, flipped = taken
    held = Held(TARGET, Code.HELD_REMOVAL, lost + flipped, "", removed=lost > 0, flips=flipped > 0)
    around = Surroundings(slices_forbidden=lambda _namespace: lacking)
    (kept,) = judge([draft], lambda _plans: Verdict({TARGET: held} if lost else {}), OPTIONS, around)
    written = [dict(c.body.annotations)["consul-bridge/request"] for c in kept.writes if c.body is not None]
    assert set(written) <= {new[0][1]}


def test_what_a_user_may_not_ask_for_goes_although_a_rule_wants_the_name() -> None:
    """The same, with the reason why they may not; a Service at which nothing of ours stands is left alone."""
    consul_state = state(instance())
    other = Query("dc1", "db")
    consul_state.refuse(TARGET, Refusal(other, missing(other, "default"), missing(other, "default")), 0.0)
    mine = service(owner=None, meta_ownership=(("consul-bridge/mirror", "true"),))
    plan = plan_of(consul_state, Current(TARGET, mine, endpoints(group(*ready("10.0.0.1")))))
    assert [c.action for c in plan.writes] == [Action.DELETE]
    assert (codes_of(plan.warnings), len(plan.conflicts)) == ((Code.SERVICE_MISSING,), 1)
    nothing = plan_of(consul_state, Current(TARGET, mine))
    assert (nothing.changes, len(nothing.conflicts)) == ((), 1)


def test_what_leaves_is_not_made_any_more() -> None:
    """Consul does not list it: for its grace its objects are kept as they are, but none is created."""
    consul_state = state(instance())
    consul_state.on_listing("dc1", Listing({}), 1.0)
    consul_state.on_view(WEB, Known(()))
    assert plan_of(consul_state, Current(TARGET)).changes == ()


def test_a_service_of_another_place_does_not_leave_with_its_last_instance() -> None:
    """It is in no listing, so it stays as one whose instances all went: what was deleted of it is made again."""
    imported = replace(rule(), services=("radosgw",), datacenters=("dc1",), peer="cloud", unlisted=True)
    consul_state = state(rules=(imported,))
    consul_state.on_listing("dc1", Listing({}), 1.0)
    consul_state.on_view(replace(WEB, peer="cloud"), Known(()))
    plan = plan_of(consul_state, Current(TARGET, service()))
    assert [(change.action, change.kind) for change in plan.writes] == [(Action.CREATE, Kind.ENDPOINTS)]


def test_what_a_peer_has_not_shown_yet_is_in_doubt() -> None:
    """Nothing of what is there is known as registered, and may be meant all the same."""
    imported = replace(rule(), services=("radosgw",), datacenters=("dc1",), peer="clod", unlisted=True)
    consul_state = state(rules=(imported,))
    consul_state.on_view(replace(WEB, peer="clod"), Known(()))
    plan = plan_of(consul_state, standing("10.0.0.1"))
    assert (plan.doubt and plan.doubt.code, codes_of(plan.warnings)) == (Code.PLACE_HOLDS, (Code.PEER_EMPTY,))


def test_what_the_control_plane_mirrored_is_asked_for_once_it_is_needed() -> None:
    """Our slices go when the mirror carries the same; when it cannot be seen they stay."""
    asked: list[Target] = []
    consul_state = state(instance("10.0.0.1"))
    current = replace(standing("10.0.0.1"), slices=(slice_of("radosgw-1", group(*ready("10.0.0.1"))),))

    def unseen(target: Target) -> None:
        asked.append(target)

    assert plan_of(consul_state, current, mirrored=unseen).unmirrored
    seen = plan_of(consul_state, current, mirrored=lambda _target: (group(*ready("10.0.0.1")),))
    assert (seen.unmirrored, [c.action for c in seen.writes]) == (False, [Action.DELETE])
    assert asked == [TARGET]


def test_nothing_of_ours_goes_while_that_is_forbidden() -> None:
    """Another client writes there under our name; what a user sent away goes all the same."""
    consul_state = state(instance())
    consul_state.replace_rules((), 0.0)
    current = standing("10.0.0.1")
    consul_state.record_owned(TARGET, names_at(current), 0.0)
    assert plan_of(consul_state, current).writes
    assert plan_of(consul_state, current, may_delete=lambda _target: False).changes == ()


def test_without_the_right_to_slices_endpoints_are_written_alone() -> None:
    """The right is checked when a slice would be written, and never before."""
    asked: list[str] = []

    def forbidden(namespace: str) -> tuple[str, ...]:
        asked.append(namespace)
        return ("create",)

    plan = plan_of(state(instance()), Current(TARGET), slices_forbidden=forbidden)
    assert ([c.kind for c in plan.writes], asked) == ([Kind.SERVICE, Kind.ENDPOINTS], [])
    both = state(instance(), rules=(rule(output=Output.BOTH),))
    plan = plan_of(both, Current(TARGET), slices_forbidden=forbidden)
    assert ([c.kind for c in plan.writes], asked) == ([Kind.SERVICE, Kind.ENDPOINTS], ["default"])


def test_no_draft_needs_no_guard() -> None:
    """The guard's sums are not touched by a pass over nothing."""

    def admit(_plans: object) -> Verdict:
        raise AssertionError

    assert judge([], admit, OPTIONS, Surroundings()) == []


def test_a_pass_over_many_keeps_their_order() -> None:
    """Each plan is that of its draft."""
    drafts = [made(state(*instances(n)), Current(TARGET)) for n in (3, 1, 2)]
    found = judge([d for d in drafts if d is not None], lambda _plans: Verdict({}), OPTIONS, Surroundings())
    assert [plan.ready for plan in found] == [3, 1, 2]


@pytest.mark.parametrize(
    ("changed", "service_stands", "in_turn", "said"),
    [
        ({"ready": 1, "ready_before": 1}, True, False, ""),
        ({"ready": 0}, True, False, ""),
        ({"ready": 1}, True, False, "it is not written yet"),
        ({"ready": 0}, False, False, "it is not written yet"),
        ({"ready": 1}, False, True, ""),
        (
            {"conflicts": (Conflict(TARGET, Kind.ENDPOINTS, Reason(Code.TAKEN, said="no")),)},
            True,
            True,
            "Endpoints: no",
        ),
        ({"conflicts": (Conflict(TARGET, Kind.SERVICE, Reason(Code.TAKEN, said="no")),)}, True, True, "no"),
        ({"conflicts": (Conflict(TARGET, Kind.HTTP_ROUTE, Reason(Code.TAKEN, said="no")),)}, True, False, ""),
        (None, True, True, "it cannot be planned yet"),
    ],
)
def test_a_target_serves_once_its_service_stands_with_what_is_ready(
    changed: dict[str, Any] | None, service_stands: bool, in_turn: bool, said: str
) -> None:
    """A conflict about the HTTPRoute blocks no endpoint; `in_turn` the target is about to be written."""
    current = Current(TARGET, service=service() if service_stands else None)
    draft = None if changed is None else Draft(replace(Plan(TARGET), **changed), None, current)
    assert why_not_serving(draft, in_turn=in_turn) == said
