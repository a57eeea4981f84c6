"""Telling another Consul from the same one."""

from __future__ import annotations

from bridge.consul.identity import Identity

OLD = {"server": (11, 17), "vm-1": (20, 40), "vm-2": (21, 21)}


def known() -> Identity:
    identity = Identity()
    assert identity.is_another(100, OLD) is False
    return identity


def test_the_first_one_is_not_another() -> None:
    assert Identity().is_another(5, OLD) is False


def test_the_same_one_later_is_not_another() -> None:
    assert known().is_another(100, OLD) is False
    assert known().is_another(150, OLD | {"vm-3": (120, 150)}) is False


def test_an_index_that_went_backwards_is_another() -> None:
    assert known().is_another(99, OLD) is True


def test_an_empty_catalog_whose_index_has_grown_past_the_old_one_is_another() -> None:
    assert known().is_another(5000, {"server": (12, 4000)}) is True


def test_one_node_that_survived_is_proof_enough() -> None:
    assert known().is_another(5000, {"server": (4000, 4000), "vm-2": (21, 21)}) is False


def test_a_node_that_was_registered_anew_did_not_survive() -> None:
    assert known().is_another(5000, {"vm-1": (3000, 3000)}) is True


def test_without_the_right_to_see_nodes_only_the_index_counts() -> None:
    assert known().is_another(150, {}) is False
    assert known().is_another(50, {}) is True
    blind = Identity()
    blind.is_another(100, {})
    assert blind.is_another(200, OLD) is False


def test_after_another_one_that_one_is_the_same() -> None:
    identity = known()
    identity.is_another(7, {"server": (3, 3)})
    assert identity.is_another(8, {"server": (3, 3)}) is False


def test_a_listing_that_is_older_than_one_that_was_believed_is_proof() -> None:
    """A snapshot from after the last look at the nodes: only the listing tells."""
    identity = known()
    identity.observe_listing(300)
    identity.observe_listing(250)  # a lagging server
    assert (identity.is_older(300), identity.is_older(299), identity.is_older(299)) == (False, True, False)


def test_another_one_begins_its_listings_anew() -> None:
    identity = known()
    identity.observe_listing(300)
    identity.is_another(7, {"server": (3, 3)})
    assert identity.is_older(8) is False


def test_what_the_aggregate_watches_saw_moves_the_comparison_forward_only() -> None:
    identity = known()
    identity.observe(200, {"server": (11, 17)})
    assert identity.is_another(150, OLD) is True
    identity = known()
    identity.observe(90, {"server": (1, 1)})  # a lagging server
    assert identity.is_another(100, OLD) is False
