"""What differs between two answers of an aggregate watch names exactly those who must be read again."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.consul import aggregate_watch
from bridge.core.model import Instance, Status

WEB = ("web", "critical", 7, "")


def test_a_check_that_joined_names_its_service_and_the_index_to_reach() -> None:
    assert aggregate_watch.flips({}, {("vm", "c"): WEB}) == aggregate_watch.ChangeHints(services={"web": 7})


def test_a_check_that_left_names_its_service_whatever_was_read_before() -> None:
    assert aggregate_watch.flips({("vm", "c"): WEB}, {}) == aggregate_watch.ChangeHints(services={"web": 0})


def test_a_flap_between_two_answers_still_shows() -> None:
    assert aggregate_watch.flips(
        {("vm", "c"): WEB}, {("vm", "c"): ("web", "critical", 9, "")}
    ) == aggregate_watch.ChangeHints(services={"web": 9})


def test_a_nodes_own_check_names_the_node() -> None:
    assert aggregate_watch.flips({}, {("vm", "alive"): ("", "critical", 7, "")}) == aggregate_watch.ChangeHints(
        nodes={"vm": 7}
    )


def test_of_several_checks_of_a_service_the_most_demanding_counts() -> None:
    after = {("vm", "a"): ("web", "critical", 7, ""), ("vm", "b"): ("web", "critical", 9, "")}
    assert aggregate_watch.flips({}, after).services == {"web": 9}
    assert aggregate_watch.flips({("vm", "c"): WEB}, after).services == {"web": 0}


def test_a_check_that_became_older_is_of_a_restored_snapshot_and_no_view_is_new_enough() -> None:
    key = ("vm", "c")
    assert aggregate_watch.flips({key: WEB}, {key: ("web", "critical", 5, "")}, 9).services == {"web": 0}
    assert aggregate_watch.flips({}, {key: WEB}, 9).services == {"web": 0}
    assert aggregate_watch.flips({}, {key: WEB}, 6).services == {"web": 7}


def test_a_check_that_goes_over_to_another_service_names_both() -> None:
    """Consul moves the index of the one that gains it only."""
    key, before, after = ("vm", "c"), ("web", "critical", 7, "web-1"), ("db", "critical", 9, "db-1")
    assert aggregate_watch.flips({key: before}, {key: after}).services == {"db": 9, "web": 0}


def test_without_a_change_nothing_is_named() -> None:
    body = {("vm", "c"): WEB, ("vm", "alive"): ("", "critical", 3, "")}
    assert aggregate_watch.flips(body, dict(body)) == aggregate_watch.ChangeHints()


def test_after_a_gap_all_on_either_list_are_named() -> None:
    before, after = {("vm", "c"): WEB}, {("vm", "d"): ("db", "critical", 3, ""), ("n", "x"): ("", "critical", 2, "")}
    assert aggregate_watch.hints_after_gap(before, after) == aggregate_watch.ChangeHints(
        services={"web": 0, "db": 3}, nodes={"n": 2}
    )
    assert aggregate_watch.hints_after_gap(after, after).services == {"db": 3}


def instance(status: Status, check: str) -> Instance:
    return Instance(node="vm", id="web-1", address="", node_address="10.0.0.1", port=1, status=status, check=check)


def test_a_view_that_shows_a_flip_which_the_list_does_not_have_contradicts_it() -> None:
    sick, critical = instance(Status.CRITICAL, "c"), frozenset({Status.CRITICAL, Status.MAINTENANCE})
    assert aggregate_watch.contradicts([sick], critical, {}) is True
    assert aggregate_watch.contradicts([sick], critical, {("vm", "c"): WEB}) is False
    assert aggregate_watch.contradicts([sick], frozenset({Status.WARNING}), {}) is False
    assert aggregate_watch.contradicts([instance(Status.PASSING, "")], critical, {}) is False


def test_a_check_may_spell_its_node_otherwise_than_a_view() -> None:
    """Consul keeps the spelling of the check's own registration; the caller folds the body's."""
    sick = replace(instance(Status.CRITICAL, "c"), node="VM")
    assert aggregate_watch.contradicts([sick], frozenset({Status.CRITICAL}), {("vm", "c")}) is False


def test_nodes_that_moved_went_or_came() -> None:
    before = {"a": (1, 1), "b": (2, 2), "c": (3, 3)}
    after = {"a": (1, 1), "b": (2, 9), "d": (4, 4)}
    assert aggregate_watch.moved_nodes(before, after) == (aggregate_watch.ChangeHints(nodes={"b": 9, "c": 0}), ("d",))


def test_a_node_that_was_registered_anew_moved() -> None:
    assert aggregate_watch.moved_nodes({"a": (1, 5)}, {"a": (6, 6)})[0].nodes == {"a": 6}


KEYS = st.tuples(st.sampled_from("mn"), st.sampled_from("xyz"))
CHECKS = st.dictionaries(
    KEYS, st.tuples(st.sampled_from(["", "web", "db"]), st.just("critical"), st.integers(1, 5), st.just("")), max_size=6
)


@settings(max_examples=300, deadline=None)
@given(CHECKS, CHECKS)
def test_only_services_and_nodes_that_differ_are_named(
    before: aggregate_watch.Checks, after: aggregate_watch.Checks
) -> None:
    differ = {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}
    meant = {(key, body[key][0]) for key in differ for body in (before, after) if key in body}
    named = aggregate_watch.flips(before, after)
    assert named.services.keys() <= {service for _, service in meant if service}
    assert named.nodes.keys() <= {key[0] for key, service in meant if not service}
    for key in differ:
        service = (after.get(key) or before[key])[0]
        assert (service in named.services) if service else (key[0] in named.nodes)
    assert aggregate_watch.flips(after, after) == aggregate_watch.ChangeHints()


def test_a_check_names_its_instance_which_may_have_another_name_by_now() -> None:
    named = aggregate_watch.flips({}, {("vm", "c"): ("web", "critical", 7, "i-1")})
    assert named == aggregate_watch.ChangeHints(services={"web": 7}, instances={("vm", "i-1"): "web"})
    assert aggregate_watch.flips({("vm", "c"): ("web", "critical", 7, "i-1")}, {}).instances == {("vm", "i-1"): "web"}
