"""What is known of Consul: nothing is forgotten because it fell silent, nothing is gone until that is proved."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.annotated import Refusal, missing
from bridge.core.instances import selects
from bridge.core.model import (
    Combine,
    Destination,
    Instance,
    InstanceRules,
    Knowledge,
    Known,
    Listing,
    Query,
    Rule,
    Skipped,
    Status,
    Target,
    Unknown,
)
from bridge.core.reasons import Code
from bridge.core.state import ConsulState
from bridge.pipeline.scope import anchored

WEB = Query("dc1", "web")
HERE = Target("apps", "web")
RULES = (Rule(services=("web*", "db"), to=Destination(namespace="apps")),)


def listing(*names: str, tags: tuple[str, ...] = ()) -> Listing:
    """A datacenter with these services."""
    return Listing({name: frozenset(tags) for name in ("consul", *names)})


def known(*addresses: str) -> Known:
    """Healthy instances at these addresses."""
    return Known(
        tuple(
            Instance(node=f"n{a}", id=a, address=a, node_address=a, port=80, status=Status.PASSING) for a in addresses
        )
    )


def consul_state(*names: str, grace: float = 30.0, rules: tuple[Rule, ...] = RULES) -> ConsulState:
    """A state whose datacenter has these services, each with one instance."""
    made = ConsulState(rules, ["dc1"], grace)
    made.on_listing("dc1", listing(*names), 0.0)
    for query in made.wanted():
        made.on_view(query, known("10.0.0.1"))
    return made


def test_how_an_instance_was_before_its_tags_changed_is_known_while_it_is_there() -> None:
    """In its last two ways, health apart; an instance that has gone and comes again is another one."""
    made = consul_state("web")

    def seen(*tags: str, status: Status = Status.PASSING) -> list[tuple[str, ...]]:
        (only,) = known("10.0.0.1").instances
        made.on_view(WEB, Known((replace(only, tags=tags, status=status),)))
        (source,) = made.sources(HERE) or ()
        return [i.tags for i in source.known.former]

    assert seen("replica") == []
    assert seen("primary") == [("replica",)]
    assert seen("primary", status=Status.CRITICAL) == [("replica",)]
    assert seen() == [("replica",), ("primary",)]
    assert seen("primary") == [("replica",), ("primary",)]
    assert seen("old") == [("replica",), ("primary",)]
    assert seen("older") == [("primary",), ("old",)]
    made.on_view(WEB, Known(()))
    assert seen("primary") == []


def test_what_only_annotations_ask_for_is_distinguished() -> None:
    """A service that a rule selects as well is the operator's business."""
    made = consul_state("web")
    theirs = Query("dc1", "..")
    for name, query in (("web", WEB), ("mine", theirs)):
        made.annotate(Target("apps", name), Rule(to=Destination(namespace="apps", annotated=True)), query, 0.0)
    assert made.asked_by_annotation_alone([WEB, theirs, Query("dc1", "other")]) == {theirs}


def test_a_listed_service_that_a_rule_selects_is_wanted_and_claims_its_target() -> None:
    """Consul's own service and what no rule selects are not asked about."""
    made = ConsulState(RULES, ["dc1"], 30.0)
    changed = made.on_listing("dc1", listing("web", "cache"), 0.0)
    assert (changed, made.wanted(), made.pending_reads()) == ({HERE}, frozenset({WEB}), frozenset({WEB}))


def test_a_target_whose_service_was_never_read_has_no_sources_yet() -> None:
    """None is not the same as none."""
    made = ConsulState(RULES, ["dc1"], 30.0)
    made.on_listing("dc1", listing("web"), 0.0)
    assert (made.sources(HERE), made.sources(Target("apps", "other"))) == (None, ())


def test_nothing_is_reported_of_combined_datacenters_before_each_has_answered_or_failed() -> None:
    """Whether one answers is a change for what is made of several, and for nothing else."""
    made = ConsulState((replace(RULES[0], datacenters=("dc1", "dc2"), combine=Combine.UNION),), ["dc1", "dc2"], 30.0)
    made.on_listing("dc1", listing("web"), 0.0)
    made.on_view(WEB, known("10.0.0.1"))
    assert (made.sources(HERE), made.on_view(WEB, Unknown("no"))) == (None, {HERE})
    assert [made.on_listing("dc2", Unknown(why), 0.0) for why in ("no", "still no")] == [{HERE}, set()]
    assert [(s.query.datacenter, s.unread) for s in made.sources(HERE) or ()] == [("dc1", ""), ("dc2", "still no")]
    assert (made.on_view(WEB, known("10.0.0.1")), made.on_listing("dc2", listing(), 0.0)) == ({HERE}, {HERE})
    assert [s.query for s in made.sources(HERE) or ()] == [WEB]
    alone = consul_state("web")
    assert (alone.on_listing("dc1", Unknown("no"), 0.0), alone.on_view(WEB, Unknown("no"))) == (set(), set())


def test_since_when_an_instance_is_healthy_is_known_while_it_may_have_to_wait() -> None:
    """A target is named when the time of one of its instances is over, once; without a rule that wants it, and where
    views do not come as they change, nothing is."""
    patient = replace(RULES[0], instances=InstanceRules(settle_seconds=5.0))
    made = ConsulState((patient,), ["dc1"], 30.0, follows=True)
    made.on_listing("dc1", listing("web"), 0.0)

    def seen(now: float, *status: Status) -> set[str]:
        found = (replace(i, status=s) for i, s in zip(known("10.0.0.1", "10.0.0.2").instances, status, strict=True))
        made.on_view(WEB, Known(tuple(found)), now)
        return waiting(now)

    def waiting(now: float) -> set[str]:
        return {address for _, _, address, _ in made.waiting(WEB, patient, now) or ()}

    assert seen(0.0, Status.PASSING, Status.CRITICAL) == {"10.0.0.1"}
    assert seen(2.0, Status.WARNING, Status.PASSING) == {"10.0.0.1", "10.0.0.2"}
    assert (made.expire(4.9), made.expire(5.0), made.expire(6.9)) == (set(), {HERE}, set())
    assert waiting(6.9) == {"10.0.0.2"}
    assert seen(6.9, Status.PASSING, Status.CRITICAL) == set()
    assert (made.expire(100.0), seen(100.0, Status.CRITICAL, Status.PASSING)) == (set(), {"10.0.0.2"})
    assert (made.expire(105.0), waiting(105.0), made.expire(110.0)) == ({HERE}, set(), set())
    assert seen(110.0, Status.PASSING, Status.PASSING) == {"10.0.0.1"}
    made.replace_rules((replace(patient, services=("db",)),), 110.0)
    made.commit_subscriptions()
    assert (waiting(110.0), made.expire(200.0)) == (set(), set())
    once = ConsulState((patient,), ["dc1"], 30.0)
    once.on_listing("dc1", listing("web"), 0.0)
    once.on_view(WEB, known("10.0.0.1"))
    assert (once.waiting(WEB, patient, 0.0), once.expire(5.0)) == (None, set())


def test_a_view_names_the_targets_that_it_changes() -> None:
    """The same view again changes nothing."""
    made = consul_state("web")
    changes = [made.on_view(WEB, known("10.0.0.2")), made.on_view(WEB, known("10.0.0.2"))]
    assert changes == [{HERE}, set()]


def test_a_failed_read_keeps_what_was_known() -> None:
    """And says so until the next good one."""
    made = consul_state("web")
    changed = made.on_view(WEB, Unknown("timeout"))
    sources = made.sources(HERE)
    assert sources is not None
    assert (changed, sources[0].known, dict(made.trouble())) == (set(), known("10.0.0.1"), {WEB: "timeout"})
    made.on_view(WEB, known("10.0.0.1"))
    assert made.trouble() == {}


def test_a_failed_listing_keeps_every_service() -> None:
    """Even forever."""
    made = consul_state("web", grace=0.0)
    made.on_listing("dc1", Unknown("no leader"), 1.0)
    made.on_view(WEB, Known(()))
    assert (made.expire(1000.0), made.wanted(), dict(made.listing_trouble())) == (
        set(), frozenset({WEB}), {"dc1": "no leader"},
    )  # fmt: skip


def test_a_service_that_left_is_released_after_its_grace_period() -> None:
    """When the listing lacks it and its own read is empty."""
    made = consul_state("web")
    made.record_owned(HERE, [("dc1", "web")], 0.0)
    made.on_listing("dc1", listing(), 100.0)
    made.on_view(WEB, Known(()))
    before = (made.expire(129.0), made.removable(HERE, 129.0))
    after = (made.expire(130.0), made.removable(HERE, 130.0))
    assert (before, after) == ((set(), False), ({HERE}, True))


@pytest.mark.parametrize("view", [Unknown("filtered by ACLs"), known("10.0.0.1")])
def test_a_name_that_is_only_hidden_is_not_gone(view: Knowledge) -> None:
    """A token that lost its rights makes names vanish from the listing: the service's own read decides."""
    made = consul_state("web", grace=0.0)
    made.record_owned(HERE, [("dc1", "web")], 0.0)
    made.on_listing("dc1", listing(), 1.0)
    made.on_view(WEB, view)
    assert (made.expire(1000.0), made.removable(HERE, 1000.0)) == (set(), False)


def test_a_service_that_comes_back_within_its_grace_period_never_left() -> None:
    """Agents that register again are the usual case."""
    made = consul_state("web")
    made.record_owned(HERE, [("dc1", "web")], 0.0)
    made.on_listing("dc1", listing(), 100.0)
    made.on_view(WEB, Known(()))
    made.on_listing("dc1", listing("web"), 120.0)
    assert (made.expire(1000.0), made.removable(HERE, 1000.0)) == (set(), False)


def test_a_service_that_no_rule_names_any_more_leaves_after_the_grace_period() -> None:
    """It is still listed, so nothing else has to be proved."""
    made = consul_state("web")
    made.record_owned(HERE, [("dc1", "web")], 0.0)
    made.replace_rules((Rule(services=("db",), to=Destination(namespace="apps")),), 100.0)
    assert [made.removable(HERE, now) for now in (129.0, 130.0)] == [False, True]


PRIMARY = Rule(
    name="primary", services=("db",), tags=("primary",), to=Destination(namespace="apps", name="{service}-primary")
)
REPLICA = Rule(
    name="replica", services=("db",), tags=("replica",), to=Destination(namespace="apps", name="{service}-replica")
)
DB = Query("dc1", "db")
FIRST, SECOND = Target("apps", "db-primary"), Target("apps", "db-replica")


def tagged(*tags: str) -> Known:
    """An instance of each of these tags."""
    return Known(tuple(replace(i, tags=(tag,)) for tag in tags for i in known(f"10.0.0.{len(tag)}").instances))


def selected(made: ConsulState, target: Target) -> list[str] | None:
    """The tags of the instances that a target's rules select."""
    sources = made.sources(target)
    if sources is None:
        return None
    return [tag for s in sources for i in s.known.instances if selects(s.rule, i) for tag in i.tags]


@pytest.mark.parametrize("first", ["the listing", "the view"])
@pytest.mark.parametrize("how", ["deregistered", "retagged"])
def test_a_tag_that_leaves_empties_its_target_at_once_whatever_is_heard_first(first: str, how: str) -> None:
    """The target has a source all the time, so that what it should be is known: empty, until the next one has it."""
    made = ConsulState((PRIMARY,), ["dc1"], 30.0)
    made.on_listing("dc1", Listing({"db": frozenset({"primary", "replica"})}), 0.0)
    made.on_view(DB, tagged("primary", "replica"))
    made.record_owned(FIRST, [("dc1", "db")], 0.0)
    left = tagged("replica") if how == "deregistered" else tagged("replica", "replica")
    listed = Listing({"db": frozenset({"replica"})})
    seen = []
    for what in (first, "the view" if first == "the listing" else "the listing"):
        changed = made.on_view(DB, left) if what == "the view" else made.on_listing("dc1", listed, 1.0)
        seen.append((changed, selected(made, FIRST)))
    assert all(changed == {FIRST} for changed, _ in seen)
    assert [chosen for _, chosen in seen] == ([["primary"], []] if first == "the listing" else [[], []])
    assert (made.expire(1000.0), made.removable(FIRST, 1000.0), made.unsubscribed(FIRST)) == (set(), False, False)
    made.on_listing("dc1", Listing({"db": frozenset({"primary"})}), 2000.0)
    made.on_view(DB, tagged("primary"))
    assert selected(made, FIRST) == ["primary"]


def test_two_rules_mirror_one_service_each_with_its_own_instances() -> None:
    """A rule behind them that takes all is not used up by either; what two rules want alike the first has."""
    rest = Rule(name="rest", to=Destination(namespace="apps"))
    same = replace(REPLICA, name="same", to=PRIMARY.to)
    made = ConsulState((PRIMARY, REPLICA, same, rest), ["dc1"], 30.0)
    made.on_listing("dc1", Listing({"db": frozenset({"primary", "replica"})}), 0.0)
    assert made.wanted() == {DB}
    assert made.on_view(DB, tagged("primary", "replica")) == {FIRST, SECOND, Target("apps", "db")}
    assert [selected(made, t) for t in (FIRST, SECOND, Target("apps", "db"))] == [
        ["primary"], ["replica"], ["primary", "replica"],
    ]  # fmt: skip
    assert [("primary" in s.reason, "same" in s.reason) for s in made.rejected(FIRST)] == [(True, True)]
    assert made.selected() == 1


def test_a_rule_does_not_get_the_instances_of_another_while_none_has_that_ones_tag() -> None:
    """Neither does what is nowhere come into being: nothing is read for it."""
    made = ConsulState((PRIMARY, REPLICA), ["dc1"], 30.0)
    made.on_listing("dc1", Listing({"db": frozenset({"replica"})}), 0.0)
    made.on_view(DB, tagged("replica"))
    assert (selected(made, FIRST), selected(made, SECOND), made.targets()) == ([], ["replica"], {SECOND})
    none = ConsulState((PRIMARY,), ["dc1"], 30.0)
    assert (none.on_listing("dc1", Listing({"db": frozenset({"x"})}), 0.0), none.wanted()) == (set(), frozenset())


@pytest.mark.parametrize("first", ["memory", "the listing"])
def test_existing_objects_keep_their_rule_across_a_restart_without_the_tag(first: str) -> None:
    """Whether Kubernetes or Consul is read first; and it goes when a user deletes it, or the name leaves Consul."""
    made = ConsulState((PRIMARY,), ["dc1"], 30.0)
    listed = Listing({"db": frozenset({"replica"})})
    if first == "the listing":
        made.on_listing("dc1", listed, 0.0)
        assert made.record_owned(FIRST, [("dc1", "db")], 0.0) == {FIRST}
    else:
        made.record_owned(FIRST, [("dc1", "db")], 0.0)
        assert made.on_listing("dc1", listed, 0.0) == {FIRST}
    assert (made.sources(FIRST), made.wanted()) == (None, frozenset({DB}))
    assert made.on_view(DB, tagged("replica")) == {FIRST}
    assert (selected(made, FIRST), made.expire(1000.0), made.removable(FIRST, 1000.0)) == ([], set(), False)
    assert made.record_owned(FIRST, [("dc1", "db")], 1.0) == set()
    made.on_listing("dc1", listing(), 1001.0)
    made.on_view(DB, Known(()))
    assert (selected(made, FIRST), made.expire(1031.0), made.removable(FIRST, 1031.0)) == ([], {FIRST}, True)


def test_what_a_user_deleted_while_no_instance_has_the_tag_is_not_made_again() -> None:
    """Until one has it."""
    made = ConsulState((PRIMARY,), ["dc1"], 30.0)
    made.on_listing("dc1", Listing({"db": frozenset({"replica"})}), 0.0)
    made.record_owned(FIRST, [("dc1", "db")], 0.0)
    assert (made.drop_owned(FIRST, 1.0), made.targets(), made.drop_owned(FIRST, 2.0)) == ({FIRST}, set(), set())
    assert made.on_listing("dc1", Listing({"db": frozenset({"primary"})}), 3.0) == {FIRST}


def test_a_rule_that_selects_nothing_is_reported_once_its_datacenters_are_listed() -> None:
    """Its names match nothing, no instance has its tags, or an earlier rule takes all; unknown is not nothing."""
    nothing = Rule(name="nothing", services=("no-*",), datacenters=("dc1",))
    abroad = Rule(name="abroad", services=("no-*",), datacenters=("dc1", "dc2"))
    elsewhere = Rule(name="elsewhere", services=("db",), datacenters=("dc1",), peer="cloud", unlisted=True)
    untagged = replace(PRIMARY, datacenters=("dc1",))
    everything, late = (
        Rule(name="all", datacenters=("dc1",)),
        Rule(name="late", services=("web",), datacenters=("dc1",)),
    )
    made = ConsulState((nothing, abroad, elsewhere, untagged, everything, late), ["dc1", "dc2"], 30.0)
    before = made.rule_remarks()
    made.on_listing("dc1", Listing({"db": frozenset({"primory"}), "web": frozenset()}), 0.0)
    made.on_listing("dc2", Unknown("no path"), 0.0)
    late_text = (
        "late: it selects none of the 2 services that Consul lists (services web; datacenters dc1); `bridge explain "
        "SERVICE` says why"
    )
    found = made.rule_remarks()
    assert (before, found, made.rule_remarks() is found) == (
        (),
        (
            "nothing: dc1 lists no service no-*",
            "primary: no service that it names has the tag primary; did you mean primory?",
            late_text,
        ),
        True,
    )
    made.on_listing("dc1", Listing({"db": frozenset({"primary"}), "web": frozenset()}), 1.0)
    assert made.rule_remarks() == ("nothing: dc1 lists no service no-*", late_text)
    made.replace_rules(RULES, 2.0)
    assert made.rule_remarks() == ()


def test_a_service_with_several_filters_is_gone_when_each_of_them_shows_no_instance() -> None:
    """One that still shows an instance proves that the listing is not the truth."""
    rules = (replace(PRIMARY, tags=(), filter="a"), replace(REPLICA, tags=(), filter="b"))
    made = ConsulState(rules, ["dc1"], 0.0)
    made.on_listing("dc1", listing("db"), 0.0)
    for target in (FIRST, SECOND):
        made.record_owned(target, [("dc1", "db")], 0.0)
    made.on_listing("dc1", listing(), 1.0)
    made.on_view(replace(DB, filter="a"), Known(()))
    made.on_view(replace(DB, filter="b"), known("10.0.0.1"))
    before = made.expire(2.0)
    made.on_view(replace(DB, filter="b"), Known(()))
    assert (before, made.expire(3.0)) == (set(), {FIRST, SECOND})


def test_a_service_feeds_a_target_that_it_wants_by_two_rules_until_both_have_let_it_go() -> None:
    """Also where another one has the target meanwhile."""
    one, two = (Rule(name=n, services=("db",), continues=True, to=Destination(namespace="apps", name="db"))
                for n in ("one", "two"))  # fmt: skip
    made = ConsulState((one, two), ["dc1"], 30.0)
    made.on_listing("dc1", listing("db"), 0.0)
    made.replace_rules((two,), 1.0)
    assert made.on_view(DB, known("10.0.0.1")) == {Target("apps", "db")}


def test_what_is_read_of_a_service_that_is_no_longer_wanted_is_forgotten() -> None:
    """Also when it comes after the last change of what is wanted."""
    made = consul_state("web")
    other = Query("dc1", "other")
    made.commit_subscriptions()
    made.on_view(other, known("10.0.0.9"))
    made.on_view(Query("dc1", "third"), Unknown("timeout"))
    before = made.known(other)
    made.commit_subscriptions()
    assert (before, made.known(other), made.known(WEB), made.trouble()) == (
        known("10.0.0.9"), None, known("10.0.0.1"), {},
    )  # fmt: skip


def test_what_may_not_go_is_looked_at_less_and_less_often() -> None:
    """A guard may hold it forever: that must cost next to nothing, however many there are."""
    made = consul_state("web")
    made.record_owned(HERE, [("dc1", "web")], 0.0)
    made.on_listing("dc1", listing(), 100.0)
    made.on_view(WEB, Known(()))
    ticks = [100 + n / 2 for n in range(2400)]
    looks = [now for now in ticks if made.expire(now)]
    assert (looks[0], len(looks) < 60) == (130.0, True)
    assert looks[-1] - looks[-2] == 30.0


@pytest.mark.parametrize("how", ["its view is proved", "the listing can be had again"])
def test_what_may_go_at_last_is_looked_at_at_once(how: str) -> None:
    """News about what is left of a service need not wait for the next look."""
    made = consul_state("web")
    made.record_owned(HERE, [("dc1", "web")], 0.0)
    made.on_listing("dc1", listing(), 0.0)
    made.on_view(WEB, Known(()))
    made.expire(40.0)
    if how == "its view is proved":
        made.on_view(WEB, Unknown("timeout"))
    else:
        made.on_listing("dc1", Unknown("no leader"), 50.0)
    while made.expire(1000.0):
        pass
    assert (made.removable(HERE, 1000.0), made.expire(1000.1)) == (False, set())
    changed = made.on_view(WEB, Known(())) if how == "its view is proved" else set()
    if how != "its view is proved":
        made.on_listing("dc1", listing(), 1000.2)
        changed = made.expire(1000.2)
    assert (changed, made.removable(HERE, 1000.2)) == ({HERE}, True)


def test_services_that_kubernetes_remembers_and_consul_lacks_are_counted() -> None:
    """Once the datacenter was listed, and among the targets that are asked about."""
    made = ConsulState(RULES, ["dc1", "dc2"], 0.0)
    targets = [Target("apps", name) for name in ("web", "old", "older")]
    for n, target in enumerate(targets):
        made.record_owned(target, [("dc2" if n == 2 else "dc1", target.name)], 0.0)
    before = made.missing("dc1", targets)
    made.on_listing("dc1", listing("web"), 0.0)
    assert (before, made.missing("dc1", targets), made.missing("dc2", targets)) == ((0, 2), (1, 2), (0, 1))
    assert made.missing("dc1", targets[:1]) == (0, 1)


def test_what_kubernetes_remembers_is_asked_about_before_it_is_removed() -> None:
    """After a restart, objects of ours are the only memory of services that may be gone."""
    made = ConsulState(RULES, ["dc1"], 0.0)
    old = Target("apps", "old")
    made.record_owned(old, [("dc1", "old")], 0.0)
    made.on_listing("dc1", listing("web"), 0.0)
    asked = Query("dc1", "old") in made.wanted()
    unproved = made.removable(old, 1.0)
    made.on_view(Query("dc1", "old"), Known(()))
    assert (asked, unproved, made.removable(old, 1.0)) == (True, False, True)


def test_objects_from_a_datacenter_that_is_not_watched_stay() -> None:
    """Nothing is known there, so nothing is proved."""
    made = consul_state("web", grace=0.0)
    old = Target("apps", "old")
    made.record_owned(old, [("dc9", "old")], 0.0)
    assert made.removable(old, 1000.0) is False


def test_a_forgotten_target_is_asked_about_no_more() -> None:
    """Once nothing of ours is left there."""
    made = consul_state("web")
    old = Target("apps", "old")
    made.record_owned(old, [("dc1", "old")], 0.0)
    made.drop_owned(old)
    assert (made.wanted(), made.targets()) == (frozenset({WEB}), {HERE})


def test_a_service_that_left_while_it_was_being_written_is_known_to_be_gone() -> None:
    """Its objects appear after its end: it was wanted all the time, so Consul does not say again that it is empty."""
    made = consul_state("web")
    made.commit_subscriptions()
    made.on_listing("dc1", listing(), 1.0)
    made.on_view(WEB, Known(()))
    assert made.expire(31.0) == {HERE}
    made.record_owned(HERE, [("dc1", "web")], 31.1)
    assert made.commit_subscriptions() == (frozenset(), frozenset())
    assert made.expire(61.2) == {HERE}
    assert made.removable(HERE, 61.2)
    made.drop_owned(HERE)
    assert (made.commit_subscriptions(), made.known(WEB)) == ((frozenset(), frozenset({WEB})), None)


def test_two_services_that_end_on_one_name_are_distinguished() -> None:
    """The one whose own name it is wins; the other takes over when that one is gone."""
    made = consul_state("web", "Web")
    losers = made.rejected(HERE)
    assert ([s.query.service for s in made.sources(HERE) or ()], [s.service for s in losers]) == (["web"], ["Web"])


def test_a_name_that_cannot_be_mapped_is_reported() -> None:
    """Nothing is silently dropped."""
    made = consul_state("web-1", rules=(Rule(to=Destination(namespace="apps", name="{namespace}-x")),))
    made.replace_rules((Rule(to=Destination(namespace="apps", name="---")),), 0.0)
    assert [type(s) for s in made.unmappable()] == [Skipped]


def test_new_rules_move_a_service() -> None:
    """The old target is left, the new one claimed."""
    made = consul_state("web")
    made.record_owned(HERE, [("dc1", "web")], 0.0)
    there = Target("new", "web")
    changed = made.replace_rules((Rule(to=Destination(namespace="new")),), 10.0)
    assert ({HERE, there} <= changed, made.sources(HERE), [s.query for s in made.sources(there) or ()]) == (
        True, (), [WEB],
    )  # fmt: skip
    assert [made.removable(HERE, now) for now in (39.0, 40.0)] == [False, True]


def test_an_annotated_service_wins_its_name_and_may_be_dropped_at_once() -> None:
    """Two of them may ask for the same Consul service; without the annotation our part may go without any grace."""
    made = consul_state("web")
    one, two = Target("apps", "web"), Target("apps", "db")
    rule = Rule(to=Destination(namespace="apps", annotated=True))
    asked = Query("dc1", "pg")
    for target in (one, two):
        made.annotate(target, rule, asked, 0.0)
    made.on_view(asked, known("10.0.0.9"))
    fed = [[s.query for s in made.sources(t) or ()] for t in (one, two)]
    made.record_owned(two, [("dc1", "pg")], 0.0)
    left = made.unannotate(two, 1.0)
    assert (fed, left, made.unsubscribed(two), made.unannotate(two, 1.0)) == ([[asked], [asked]], {two}, True, set())
    assert [s.query for s in made.sources(one) or ()] == [asked]


@pytest.mark.parametrize("narrow", [False, True])
def test_what_was_filled_for_a_request_withdrawn_while_no_bridge_ran_goes_at_once(narrow: bool) -> None:
    """Whatever the flags select: a user decided it. Consul still lists the service, so it has no part in that."""
    made = ConsulState(RULES, ["dc1"], 30.0, partial_selection=narrow)
    made.record_owned(HERE, [("dc1", "pg")], 0.0)
    unread = made.unsubscribed(HERE, opted_out=True)
    made.on_listing("dc1", listing("pg"), 0.0)
    asks, left = made.unsubscribed(HERE), made.unsubscribed(HERE, opted_out=True)
    made.on_listing("dc1", Unknown("no leader"), 2.0)
    assert (unread, asks, left, made.unsubscribed(HERE, opted_out=True)) == (False, False, True, False)


@pytest.mark.parametrize("narrow", [False, True])
def test_what_left_consul_as_well_waits_for_its_proof_and_its_grace_period(narrow: bool) -> None:
    """No one can tell whether it was the user or Consul, so it is a removal like any other."""
    made = ConsulState(RULES, ["dc1"], 30.0, partial_selection=narrow)
    made.record_owned(HERE, [("dc1", "pg")], 0.0)
    made.on_listing("dc1", listing(), 0.0)
    unproved = made.removable(HERE, 30.0, opted_out=True)
    made.on_view(Query("dc1", "pg"), Known(()))
    due = [made.removable(HERE, now, opted_out=True) for now in (29.0, 30.0)]
    assert (unproved, due, made.unsubscribed(HERE, opted_out=True)) == (False, [False, True], False)
    assert made.removable(HERE, 30.0) is not narrow


@pytest.mark.parametrize("narrow", [False, True])
def test_what_no_service_leads_to_any_more_goes_at_once_unless_it_is_of_other_flags(narrow: bool) -> None:
    """The Service was deleted while no bridge ran; Consul still lists what it was filled from."""
    made = ConsulState(RULES, ["dc1"], 30.0, partial_selection=narrow)
    made.record_owned(HERE, [("dc1", "pg")], 0.0)
    made.on_listing("dc1", listing("pg"), 0.0)
    assert made.unsubscribed(HERE, orphaned=True) is not narrow
    made.on_listing("dc1", listing(), 1.0)
    assert made.unsubscribed(HERE, orphaned=True) is False


def test_where_nothing_is_remembered_nothing_was_unsubscribed() -> None:
    """A Service of a user who never asked."""
    made = consul_state("web")
    assert made.unsubscribed(Target("apps", "other"), opted_out=True) is False


def test_with_rules_from_flags_what_they_do_not_select_is_left_alone() -> None:
    """`--service web` after `--service db` must not remove what the first command made."""
    by_flags = ConsulState(
        (Rule(services=("web",), to=Destination(namespace="apps")),), ["dc1"], 0.0, partial_selection=True
    )
    other, gone, own = (Target("apps", name) for name in ("db", "old", "web"))
    for target in (other, gone, own):
        by_flags.record_owned(target, [("dc1", target.name)], 0.0)
    by_flags.on_listing("dc1", listing("db"), 0.0)
    for query in by_flags.wanted():
        by_flags.on_view(query, Known(()))
    assert [by_flags.removable(t, 1.0) for t in (other, gone, own)] == [False, False, True]
    assert [by_flags.concerns(t) for t in (other, gone, own)] == [False, False, True]


def test_everything_of_ours_concerns_rules_that_are_the_whole_truth_and_flags_what_they_claim() -> None:
    """What nothing claims any more is to be removed by rules; flags are about what they select."""
    made = consul_state("web")
    made.record_owned(Target("apps", "old"), [("dc1", "old")], 0.0)
    by_flags = ConsulState(
        (Rule(services=("web",), to=Destination(namespace="apps")),), ["dc1"], 0.0, partial_selection=True
    )
    by_flags.on_listing("dc1", listing("web"), 0.0)
    assert (made.concerns(Target("apps", "old")), by_flags.concerns(HERE)) == (True, True)


def test_where_something_of_a_service_is_left_is_remembered() -> None:
    """At several targets, until nothing is left there."""
    made = consul_state("web")
    for name in ("one", "two"):
        made.record_owned(Target("apps", name), [("dc1", "web")], 0.0)
    made.drop_owned(Target("apps", "two"))
    assert made.remembered_at(("dc1", "web")) == {Target("apps", "one")}
    assert made.remembered_at(("dc1", "db")) == set()


def test_a_rule_and_an_annotation_may_ask_for_the_same_at_the_same_target() -> None:
    """Without the annotation the rule still stands, and the service still feeds the target."""
    made = consul_state("web")
    made.annotate(HERE, Rule(to=Destination(namespace="apps", annotated=True)), WEB, 0.0)
    made.unannotate(HERE, 1.0)
    assert (made.on_view(WEB, known("10.0.0.7")), [s.query for s in made.sources(HERE) or ()]) == ({HERE}, [WEB])
    assert made.removable(HERE, 1000.0) is False


def test_an_annotation_that_changes_its_rule_alone_replaces_it() -> None:
    """Other tags are the same question to Consul, but not the same instances."""
    made = consul_state("web", rules=())
    one, two = (Rule(tags=(tag,), to=Destination(namespace="apps", annotated=True)) for tag in ("blue", "green"))
    made.annotate(HERE, one, WEB, 0.0)
    made.on_view(WEB, known("10.0.0.1"))
    made.annotate(HERE, two, WEB, 1.0)
    assert (made.annotation(HERE), [s.rule for s in made.sources(HERE) or ()]) == ((two, WEB), [two])
    asked = replace(WEB, service=WEB.service.upper())
    made.annotate(HERE, two, asked, 2.0)
    assert (made.annotation(HERE), made.annotated_query(HERE)) == ((two, asked), WEB)


def test_only_a_datacenter_that_was_listed_can_lack_a_name() -> None:
    """Unknown is not missing."""
    made = ConsulState(RULES, ["dc1"], 30.0)
    before = made.is_missing(("dc1", "web"))
    made.on_listing("dc1", listing("db"), 0.0)
    assert (before, made.is_missing(("dc1", "web")), made.is_missing(("dc1", "db"))) == (False, True, False)


def test_a_rule_without_a_datacenter_means_the_first_one_and_not_all() -> None:
    """Another rule that names a second datacenter does not have its services mirrored by this one."""
    one, two = Rule(services=("a",)), Rule(services=("b",), datacenters=("dc2",))
    assert anchored([one, two], ["dc1", "dc2"]) == (replace(one, datacenters=("dc1",)), two)


def test_a_rule_about_another_namespace_is_asked_for_by_name_and_nothing_listed_is_its_business() -> None:
    """The same name in two namespaces is two services; new rules replace what the old ones named."""
    there = Rule(
        services=("web",), datacenters=("dc1",), namespace="team", unlisted=True, to=Destination(namespace="team")
    )
    made = ConsulState((there, *RULES), ["dc1"], 30.0)
    made.on_listing("dc1", listing("web", "db"), 0.0)
    theirs, target = Query("dc1", "web", "team"), Target("team", "web")
    assert made.wanted() == {theirs, WEB, Query("dc1", "db")}
    assert (made.on_view(theirs, known("10.1.1.1")), made.on_view(WEB, known("10.0.0.1"))) == ({target}, {HERE})
    assert [s.query for s in made.sources(target) or ()] == [theirs]
    assert (made.replace_rules(RULES, 1.0), made.sources(target)) == ({target, HERE, Target("apps", "db")}, ())


CLOUD = Target("apps", "cloud-db")
IMPORTED = Rule(
    services=("db",),
    datacenters=("dc1",),
    peer="cloud",
    unlisted=True,
    to=Destination(namespace="apps", name=CLOUD.name),
)


@pytest.mark.parametrize("first", ["the listing", "the objects"])
def test_what_is_listed_here_says_nothing_about_a_service_of_another_place(first: str) -> None:
    """It is neither missing, as after a rebuild of Consul, nor read under its name here."""
    made, imported = ConsulState((IMPORTED, *RULES), ["dc1"], 30.0), Query("dc1", "db", peer="cloud")
    if first == "the listing":
        made.on_listing("dc1", listing("web"), 0.0)
    made.record_owned(CLOUD, [("dc1", "db")], 0.0)
    made.record_owned(HERE, [("dc1", "web")], 0.0)
    made.on_listing("dc1", listing("web"), 0.0)
    wanted: set[Query] = set(made.wanted())
    assert (made.missing("dc1", {CLOUD, HERE}), wanted) == ((0, 1), {imported, WEB})
    made.on_view(imported, known("10.1.0.1"))
    assert made.expire(100.0) == set()
    made.record_owned(Target("apps", "db"), [("dc1", "db")], 100.0)
    assert (made.missing("dc1", made.targets()), Query("dc1", "db") in made.wanted()) == ((1, 2), True)


def test_a_place_that_has_shown_nothing_yet_may_be_misspelt() -> None:
    """Consul shows nothing of a peer that does not exist; one that has shown an instance has lost it."""
    made, imported = ConsulState((IMPORTED, *RULES), ["dc1"], 30.0), Query("dc1", "db", peer="cloud")
    made.on_listing("dc1", listing("web"), 0.0)
    made.record_owned(CLOUD, [("dc1", "db")], 0.0)
    doubts = [made.doubt(CLOUD, "")]
    for view in (Known(()), known("10.1.0.1"), Known(())):
        made.on_view(imported, view)
        doubts.append(made.doubt(CLOUD, ""))
    made.replace_rules((replace(IMPORTED, peer="clod"), *RULES), 1.0)
    made.on_view(replace(imported, peer="clod"), Known(()))
    doubts.append(made.doubt(CLOUD, ""))
    assert [reason and reason.code for reason in doubts] == [None, Code.PLACE_HOLDS, None, None, Code.PLACE_HOLDS]


def test_what_came_from_another_place_goes_with_its_rule() -> None:
    """As soon as it is certain that nothing of its name is meant here."""
    made, imported = ConsulState((IMPORTED,), ["dc1"], 30.0), Query("dc1", "db", peer="cloud")
    made.on_listing("dc1", listing(), 0.0)
    made.record_owned(CLOUD, [("dc1", "db")], 0.0)
    made.on_view(imported, known("10.1.0.1"))
    made.commit_subscriptions()
    assert made.replace_rules((), 1.0) == {CLOUD}
    added, removed = map(list, made.commit_subscriptions())
    assert (added, removed) == ([Query("dc1", "db")], [imported])
    made.on_view(Query("dc1", "db"), Known(()))
    assert (made.removable(CLOUD, 30.0), made.removable(CLOUD, 31.0)) == (False, True)


def test_what_was_not_granted_is_never_asked_for_and_lets_go_of_what_was_filled() -> None:
    """A grant that is withdrawn, and one that is given again: each is a change, once."""
    made = consul_state("web", rules=())
    rule = Rule(to=Destination(namespace="apps", annotated=True))
    refusal = Refusal(WEB, missing(WEB, "apps"), missing(WEB, "apps"))
    made.annotate(HERE, rule, WEB, 0.0)
    assert WEB in made.wanted()
    assert (made.refuse(HERE, refusal, 1.0), made.refuse(HERE, refusal, 1.0)) == ({HERE}, set())
    assert (made.refusal(HERE), made.annotation(HERE), made.unsubscribed(HERE)) == (refusal, None, False)
    assert WEB not in made.wanted()
    assert HERE in made.targets()
    assert made.annotate(HERE, rule, WEB, 2.0) == {HERE}
    assert (made.refusal(HERE), made.unsubscribed(HERE)) == (None, False)
    made.refuse(HERE, refusal, 3.0)
    assert (made.unannotate(HERE, 4.0), made.unannotate(HERE, 4.0), made.refusal(HERE)) == ({HERE}, set(), None)


def test_a_request_that_was_not_granted_removes_what_was_filled() -> None:
    """At once: nothing was lost. A grant that is taken back waits for the grace, and is the guard's affair."""
    made = consul_state("web", "db", rules=())
    rule, other = Rule(to=Destination(namespace="apps", annotated=True)), Query("dc1", "db")
    made.annotate(HERE, rule, WEB, 0.0)
    made.refuse(HERE, Refusal(other, missing(other, "apps"), missing(other, "apps")), 1.0)
    assert made.unsubscribed(HERE)


def test_only_datacenters_that_matter_are_asked() -> None:
    """Those of the rules, and those that a user's Service asks for; with no rule and no such Service, our own."""
    elsewhere = (Rule(services=("web",), datacenters=("dc2",)),)
    made = ConsulState(elsewhere, ["dc1", "dc2", "dc3"], 30.0)
    assert made.active_datacenters() == ("dc2",)
    made.annotate(HERE, Rule(to=Destination(namespace="apps", annotated=True)), Query("dc3", "web"), 0.0)
    assert made.active_datacenters() == ("dc2", "dc3")
    assert ConsulState((), ["dc1", "dc2"], 30.0).active_datacenters() == ("dc1",)
    assert ConsulState(RULES, ["dc1", "dc2"], 30.0).active_datacenters() == ("dc1", "dc2")


def test_a_listing_that_failed_is_an_answer_but_no_listing() -> None:
    """The first pass waits for answers, good or bad; what is missing is reported from listings alone."""
    made = ConsulState(RULES, ["dc1", "dc2"], 30.0)
    assert not made.listings_answered()
    made.on_listing("dc1", listing("web"), 0.0)
    made.on_listing("dc2", Unknown("timed out"), 0.0)
    assert made.listings_answered()
    assert made.listed_datacenters() == ("dc1",)


def test_what_is_not_asked_any_more_is_forgotten_with_the_next_wish() -> None:
    """A service that is asked for without interruption is not told again, so its view lives as long as the wish."""
    made = consul_state("web", "db")
    made.on_view(Query("dc1", "db"), Unknown("timed out"))
    both, none = frozenset({WEB, Query("dc1", "db")}), frozenset[Query]()
    assert (made.wanted(), made.commit_subscriptions(), made.commit_subscriptions()) == (
        both,
        (both, none),
        (none, none),
    )
    made.replace_rules((Rule(services=("web",), to=Destination(namespace="apps")),), 1.0)
    assert (made.commit_subscriptions(), made.wanted()) == ((none, both - {WEB}), frozenset({WEB}))
    assert (made.known(WEB), made.known(Query("dc1", "db")), made.trouble()) == (known("10.0.0.1"), None, {})


def test_what_rules_select_is_not_asked_for_by_annotations_alone() -> None:
    """Without annotations every wish is an operator's."""
    made = consul_state("web")
    assert made.asked_by_annotation_alone([WEB]) == set()
    assert made.fed_by(WEB) == {HERE}
    assert made.winners(HERE) == ((WEB, RULES[0]),)
    assert made.assignments.targets() == {HERE}


def test_a_name_that_fits_nowhere_is_reported_until_its_service_goes() -> None:
    """A name without a letter or a digit has no form in Kubernetes."""
    made = ConsulState((Rule(to=Destination(namespace="apps")),), ["dc1"], 0.0)
    made.on_listing("dc1", listing("___"), 0.0)
    assert [s.service for s in made.unmappable()] == ["___"]
    made.replace_rules((Rule(services=("web",)),), 1.0)
    assert made.unmappable() == ()


def test_a_datacenter_that_answers_again_has_its_orphans_looked_at() -> None:
    """Those of other datacenters are waited for as before."""
    made = ConsulState((), ["dc1", "dc2"], 0.0)
    for datacenter in made.datacenters:
        made.on_listing(datacenter, listing(), 0.0)
    mine, theirs = Target("apps", "mine"), Target("apps", "theirs")
    made.record_owned(mine, [("dc1", "mine")], 0.0)
    made.record_owned(theirs, [("dc2", "theirs")], 0.0)
    assert made.expire(0.0) == {mine, theirs}
    made.on_listing("dc1", Unknown("timed out"), 0.1)
    made.on_listing("dc1", listing(), 0.2)
    assert made.expire(0.2) == {mine}


@pytest.mark.parametrize("narrow", [False, True])
def test_what_a_user_left_behind_is_looked_at_when_it_is_certain_that_its_service_is_gone(narrow: bool) -> None:
    """A rule claims the target, so no other client asks for it; once for each time, whatever the rules select."""
    old = Query("dc1", "old")
    made = ConsulState(
        (Rule(services=("web",), to=Destination(namespace="apps")),), ["dc1"], 30.0, partial_selection=narrow
    )
    made.on_listing("dc1", listing("web"), 0.0)
    made.on_view(WEB, known("10.0.0.1"))
    made.record_owned(HERE, [("dc1", "old")], 0.0)
    made.on_view(old, Known(()))
    assert (made.expire(29.0), made.is_left_over(HERE, 29.0)) == (set(), False)
    assert (made.expire(30.0), made.is_left_over(HERE, 30.0)) == ({HERE}, True)
    assert made.expire(31.0) == set()
    made.on_view(old, Unknown("timed out"))
    assert (made.expire(32.0), made.is_left_over(HERE, 32.0)) == (set(), False)
    made.on_view(old, Known(()))
    assert (made.expire(33.0), made.is_left_over(HERE, 33.0)) == ({HERE}, True)
    made.on_listing("dc1", listing("web", "old"), 40.0)
    made.on_listing("dc1", listing("web"), 50.0)
    assert (made.expire(79.0), made.expire(80.0)) == (set(), {HERE})


def test_what_a_user_left_behind_is_looked_at_when_its_datacenter_can_be_listed_again() -> None:
    """Until then no one can tell a service that is listed from one that is gone. What feeds a target is no leftover."""
    other = Target("apps", "db")
    made = ConsulState(RULES, ["dc1", "dc2"], 30.0)
    for datacenter in made.datacenters:
        made.on_listing(datacenter, listing("web", "db", "old"), 0.0)
    made.record_owned(HERE, [("dc1", "old")], 0.0)
    made.record_owned(other, [("dc1", "db")], 0.0)
    made.record_owned(Target("apps", "far"), [("dc2", "old")], 0.0)
    made.on_listing("dc1", Unknown("no leader"), 10.0)
    assert not made.is_left_over(HERE, 11.0)
    assert made.on_listing("dc1", listing("web", "db", "old"), 12.0) == {HERE}
    assert made.is_left_over(HERE, 12.0)


LISTINGS = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([frozenset[str](), frozenset({"x"})]))


@given(LISTINGS, LISTINGS)
def test_listings_differ_in_what_came_went_or_has_other_tags(
    old: dict[str, frozenset[str]], new: dict[str, frozenset[str]]
) -> None:
    """In whatever order Consul lists them."""
    came, went = Listing(new).changes_since(Listing(old))
    assert sorted(came) == sorted(name for name in new if old.get(name) != new[name])
    assert sorted(went) == sorted(old.keys() - new.keys())
