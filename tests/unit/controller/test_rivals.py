"""A conflicting writer is reported once it goes on, and no longer than it does."""

from __future__ import annotations

import pytest

from bridge.controller.conflicting_writers import (
    ENOUGH,
    NO_DELETION_SECONDS,
    TAKEOVER_SECONDS,
    WINDOW_SECONDS,
    ConflictingWriters,
)
from bridge.core.model import Target

WEB = Target("apps", "web")


class Clock:
    """Time that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_another_writer_is_reported_at_the_third_write_and_forgotten_after_the_window() -> None:
    """With the owner id, an object, and the remedy."""
    clock = Clock()
    rivals = ConflictingWriters("me", clock)
    clock.now += TAKEOVER_SECONDS + 1
    said = []
    for _ in range(ENOUGH):
        rivals.wrote(WEB)
        said.append(rivals.reason())
    assert said[:-1] == [""] * (ENOUGH - 1)
    assert all(word in said[-1] for word in ("'me'", "apps/web", "--owner", "--leader-elect"))
    clock.now += WINDOW_SECONDS + 1
    assert rivals.reason() == ""


def test_what_the_replica_before_us_wrote_is_no_rival() -> None:
    """It is still on its way when a shard has just become ours."""
    clock = Clock()
    rivals = ConflictingWriters("me", clock)
    clock.now += 1000.0
    rivals.gained()
    for _ in range(10):
        rivals.wrote(WEB)
    assert rivals.reason() == ""


@pytest.mark.parametrize("removal", [False, True])
def test_a_client_that_reverts_us_is_reported(removal: bool) -> None:
    """Until it has been quiet for the window."""
    clock = Clock()
    rivals = ConflictingWriters("me", clock)
    rivals.undid(WEB, removal=removal)
    assert "apps/web again and again" in rivals.reason()
    clock.now += WINDOW_SECONDS + 1
    assert rivals.reason() == ""


def test_what_comes_back_again_and_again_is_left_for_a_while() -> None:
    """The state is wanted by someone; another sign begins the wait again, and what is beside it is not meant."""
    clock = Clock()
    rivals, beside = ConflictingWriters("me", clock), Target("apps", "db")
    assert rivals.may_delete(WEB)
    rivals.undid(WEB, removal=True)
    assert (rivals.may_delete(WEB), rivals.may_delete(beside)) == (False, True)
    clock.now += WINDOW_SECONDS + 1
    assert (rivals.reason(), rivals.may_delete(WEB)) == ("", False)
    rivals.undid(WEB, removal=True)
    clock.now += NO_DELETION_SECONDS
    assert not rivals.may_delete(WEB)
    clock.now += 1
    assert rivals.may_delete(WEB)


def test_an_edit_of_our_objects_keeps_nothing_that_left_consul() -> None:
    """A controller that fights over a label wants none of what we take away."""
    rivals = ConflictingWriters("me", Clock())
    for _ in range(10):
        rivals.undid(WEB, removal=False)
    assert rivals.may_delete(WEB)


def test_another_bridge_stops_deletions_in_its_namespace_alone() -> None:
    """What seems superfluous there may be what the other one wants. A user there can give such signs at will."""
    clock = Clock()
    rivals, theirs = ConflictingWriters("me", clock), Target("other", "web")
    clock.now += TAKEOVER_SECONDS + 1
    for number in range(ENOUGH):
        rivals.wrote(WEB)
        assert rivals.may_delete(WEB) is (number < ENOUGH - 1)
    assert (rivals.may_delete(Target("apps", "db")), rivals.may_delete(theirs)) == (False, True)
    for _ in range(ENOUGH):
        clock.now += WINDOW_SECONDS
        rivals.wrote(theirs)
    assert rivals.may_delete(theirs)
