"""What is known of the wanted services, and who learns of it."""

from __future__ import annotations

from typing import Any

from bridge.consul.subscriptions import Published, SubscriptionTable
from bridge.core.model import Instance, Known, Query, Status, Unknown
from tests.unit.core.builders import said

WEB, DB = Query("dc1", "web"), Query("dc1", "db")


def known(*nodes: str) -> Known:
    return Known(
        tuple(
            Instance(node=n, id=f"i-{n}", address="", node_address="10.0.0.1", port=80, status=Status.PASSING)
            for n in nodes
        )
    )


class Told(list[Any]):
    def __call__(self, query: Query, state: Any, seen: float, _inline: Any) -> None:
        self.append((query, state, seen))


def table(namespace: str = "", partition: str = "") -> tuple[SubscriptionTable, Told]:
    told = Told()
    return SubscriptionTable(told, namespace, partition), told


def test_news_is_reported_once() -> None:
    one, told = table()
    ((subscription,), _) = one.want([WEB])
    assert one.publish(subscription, known("a"), 1.0) is Published.SAME  # the first view is no change
    assert one.publish(subscription, known("a"), 2.0) is Published.SAME
    assert one.publish(subscription, known("a", "b"), 3.0) is Published.CHANGED
    assert told == [(WEB, known("a"), 1.0), (WEB, known("a", "b"), 3.0)]


def test_what_a_view_says_of_hidden_and_left_out_instances_reaches_the_listener() -> None:
    """Without it, what is not shown would be taken for deregistered."""
    one, told = table()
    ((subscription,), _) = one.want([WEB])
    shown = Known(known("a").instances, acl_filtered=True, invalid=(("vm/x", said("its id has 0 characters")),))
    one.publish(subscription, shown, 1.0)
    assert ([state for _, state, _ in told], subscription.known) == ([shown], shown)


def test_a_failed_read_is_reported_and_its_end_too_even_when_nothing_changed() -> None:
    one, told = table()
    ((subscription,), _) = one.want([WEB])
    one.publish(subscription, known("a"), 1.0)
    one.publish(subscription, Unknown("down"), 2.0)
    one.publish(subscription, Unknown("down"), 3.0)
    assert one.publish(subscription, known("a"), 4.0) is Published.SAME
    assert [state for _, state, _ in told] == [known("a"), Unknown("down"), known("a")]
    assert subscription.known == known("a")


def test_a_view_that_was_overtaken_is_refused() -> None:
    one, told = table()
    ((subscription,), _) = one.want([WEB])
    before = subscription.generation
    one.publish(subscription, known("new"), 2.0)
    assert one.publish(subscription, known("old"), 1.0, before) is Published.STALE
    assert one.publish(subscription, known("newer"), 3.0, subscription.generation) is Published.CHANGED
    assert [state for _, state, _ in told] == [known("new"), known("newer")]


def test_what_is_no_longer_wanted_is_not_reported() -> None:
    one, told = table()
    ((subscription,), _) = one.want([WEB])
    one.want([], [WEB])
    assert one.publish(subscription, known("a"), 1.0) is Published.SAME
    assert told == []
    assert one.on_node("a") == ()


def test_wanting_is_a_difference() -> None:
    one, _ = table()
    (web,), gone = one.want([WEB])
    assert gone == []
    (db,), gone = one.want([WEB, DB])
    assert (db.query, gone) == (DB, [])
    assert one.want([DB], [WEB]) == ([], [web])
    assert one.want([], [WEB]) == ([], [])
    (again,), _ = one.want([WEB, DB])
    assert again is not web


def test_nodes_lead_to_the_services_on_them() -> None:
    one, _ = table()
    (db, web), _ = one.want([WEB, DB])
    one.publish(web, known("a", "b"), 1.0)
    one.publish(db, known("b"), 1.0)
    assert set(one.on_node("b")) == {web, db}
    one.publish(web, known("a"), 2.0)
    assert one.on_node("b") == (db,)
    one.publish(web, Unknown("down"), 3.0)
    assert one.on_node("a") == (web,)  # what was known stays
    one.want([], [WEB])
    assert one.on_node("a") == ()
    assert one.on_node("nowhere") == ()


def test_nodes_and_instances_are_found_in_any_case() -> None:
    """A check names its node and its instance as it was registered, a view as they are called now."""
    one, _ = table()
    ((web,), _) = one.want([WEB])
    one.publish(web, known("VM2"), 1.0)
    assert (one.on_node("vm2"), web.has("vm2", "I-vm2"), web.has("vm2", "other")) == ((web,), True, False)
    one.publish(web, known("vm3"), 2.0)
    assert (one.on_node("VM2"), one.on_node("VM3")) == ((), (web,))


def test_names_lead_to_all_their_queries_in_any_case() -> None:
    one, _ = table()
    subscriptions, _ = one.want([WEB, Query("dc1", "Web", filter="x == 1")])
    assert set(one.of_service("WEB")) == set(subscriptions)
    assert one.filtered == 1


def test_indirect_counts_those_without_a_watch_of_their_own() -> None:
    one, _ = table()
    (db, web), _ = one.want([WEB, DB])
    assert one.unwatched == 2
    one.assign(web, True)
    one.assign(web, True)
    assert one.unwatched == 1
    one.want([], [WEB])
    assert one.unwatched == 1
    one.assign(web, False)  # long gone
    assert one.unwatched == 1
    one.assign(db, True)
    assert one.unwatched == 0


def test_aggregate_watches_cover_the_configured_namespace_and_partition_only() -> None:
    one, _ = table("team", "east")
    queries = {
        Query("dc1", "a"): True,
        Query("dc1", "a", namespace="team"): True,
        Query("dc1", "a", namespace="other"): False,
        Query("dc1", "a", partition="west"): False,
        Query("dc1", "a", peer="cloud"): False,
    }
    subscriptions, _ = one.want(queries)
    assert {subscription.query: subscription.covered_by_aggregate for subscription in subscriptions} == queries


def test_instances_that_did_not_change_stay_the_same_objects() -> None:
    one, _ = table()
    ((subscription,), _) = one.want([WEB])
    one.publish(subscription, known("a", "b"), 1.0)
    first = subscription.known
    one.publish(subscription, known("a", "b", "c"), 2.0)
    assert first is not None
    assert subscription.known is not None
    assert all(new is old for new, old in zip(subscription.known.instances, first.instances, strict=False))


def test_a_reading_thread_can_write_itself() -> None:
    """The offer reaches the listener with the news, and no other thread is offered."""
    offers: list[Any] = []
    inlined: list[Any] = []

    def on_view(_query: Query, _state: Any, _seen: float, inline: Any) -> None:
        offers.append(inline)

    one = SubscriptionTable(on_view, "", "")
    ((subscription,), _) = one.want([WEB])
    one.publish(subscription, known("a"), 1.0)
    one.publish(subscription, known("b"), 2.0, inline=inlined.append)
    assert offers == [None, inlined.append]
