"""Somebody who works against us is said once it goes on, and no longer than it does."""

from __future__ import annotations

from bridge.core.model import Target
from bridge.engine.rivals import ENOUGH, NO_DELETION_SECONDS, SETTLING_SECONDS, WINDOW_SECONDS, Rivals

WEB = Target("apps", "web")


class Clock:
    """Time that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_another_writer_is_said_at_the_third_write_and_forgotten_after_the_window() -> None:
    """With the owner id, an object, and the way out."""
    clock = Clock()
    rivals = Rivals("me", clock)
    clock.now += SETTLING_SECONDS + 1
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
    rivals = Rivals("me", clock)
    clock.now += 1000.0
    rivals.gained()
    for _ in range(10):
        rivals.wrote(WEB)
    assert rivals.reason() == ""


def test_who_undoes_us_is_said() -> None:
    """Until it has been quiet for the window."""
    clock = Clock()
    rivals = Rivals("me", clock)
    rivals.undid(WEB)
    assert "apps/web again and again" in rivals.reason()
    clock.now += WINDOW_SECONDS + 1
    assert rivals.reason() == ""


def test_nothing_is_deleted_for_a_while_after_a_conflicting_writer() -> None:
    """What seems superfluous here may be what the other one wants; another sign begins the wait anew."""
    clock = Clock()
    rivals = Rivals("me", clock)
    assert rivals.may_delete(WEB)
    rivals.undid(WEB)
    assert not rivals.may_delete(WEB)
    clock.now += WINDOW_SECONDS + 1
    assert (rivals.reason(), rivals.may_delete(WEB)) == ("", False)
    clock.now += NO_DELETION_SECONDS
    assert rivals.may_delete(WEB)


def test_signs_in_one_namespace_stop_no_deletion_in_another() -> None:
    """A user who may edit there can give them as often as they like."""
    clock = Clock()
    rivals, theirs = Rivals("me", clock), Target("other", "web")
    clock.now += SETTLING_SECONDS + 1
    for number in range(ENOUGH):
        rivals.wrote(WEB)
        assert rivals.may_delete(WEB) is (number < ENOUGH - 1)
    rivals.undid(WEB)
    assert (rivals.may_delete(WEB), rivals.may_delete(theirs)) == (False, True)
    for _ in range(ENOUGH):
        clock.now += WINDOW_SECONDS
        rivals.wrote(theirs)
    assert rivals.may_delete(theirs)
