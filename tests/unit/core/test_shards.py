"""Targets spread evenly and stay where they are; replicas share the shards evenly and keep what they have."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from bridge.core.model import Target
from bridge.core.shards import shard_of, share

TARGETS = [Target("default", f"service-{n}") for n in range(3000)]
PINNED = [0, 15, 9]


def test_one_shard_has_everything() -> None:
    """No hash is needed."""
    assert {shard_of(target, 1) for target in TARGETS} == {0}


def test_targets_spread_evenly() -> None:
    """3,000 targets on 6 shards: none is a fifth off its share."""
    counts = Counter(shard_of(target, 6) for target in TARGETS)
    assert sorted(counts) == list(range(6))
    assert all(400 <= count <= 600 for count in counts.values())


def test_one_shard_more_moves_only_what_goes_there() -> None:
    """Every target stays, or goes to the new shard."""
    moved = [t for t in TARGETS if shard_of(t, 6) != shard_of(t, 7)]
    assert {shard_of(t, 7) for t in moved} == {6}
    assert 300 <= len(moved) <= 560


def test_the_hash_never_changes() -> None:
    """Two versions of the bridge must agree on who writes what."""
    assert [shard_of(Target("storage", name), 16) for name in ("radosgw", "postgres", "ldap")] == PINNED


def test_without_candidates_no_shard_is_assigned() -> None:
    """No member, no share."""
    assert share(4, (), {0: "a"}) == {}


def test_a_holder_keeps_its_shards_within_its_share() -> None:
    """Of four shards of one replica, two go to the one that joins."""
    assert share(4, ("a", "b"), dict.fromkeys(range(4), "a")) == {0: "a", 1: "a", 2: "b", 3: "b"}


def test_one_shard_stays_with_its_leader() -> None:
    """A replica that joins takes nothing away."""
    assert share(1, ("a", "b", "c"), {0: "b"}) == {0: "b"}


def test_a_free_shard_goes_to_the_replica_that_joined_first() -> None:
    """Whatever the names are: a leader that was started again joined last, and would have to wait for its own Lease."""
    assert share(1, ("a", "c"), {0: "b"}) == {0: "a"}
    assert share(1, ("c", "a"), {0: "b"}) == {0: "c"}
    assert share(3, ("c", "a"), {}) == {0: "c", 1: "a", 2: "c"}


members = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8, unique=True)


@given(shards=st.integers(1, 20), names=members, data=st.data())
def test_shares_are_even_and_stable(shards: int, names: list[str], data: st.DataObject) -> None:
    """Every shard is given, no replica has two more than another, and a second look changes nothing."""
    holders = data.draw(st.dictionaries(st.integers(0, 25), st.sampled_from("abcdefghxyz"), max_size=20))
    given_ = share(shards, names, holders)
    assert sorted(given_) == list(range(shards))
    loads = [list(given_.values()).count(name) for name in names]
    assert max(loads) - min(loads) <= 1
    assert share(shards, names, given_) == given_
