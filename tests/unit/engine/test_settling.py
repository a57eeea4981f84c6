"""How long what readers see may differ before it is told of."""

from __future__ import annotations

from dataclasses import replace

from bridge.core.model import Plan, Query, Target
from bridge.core.reasons import Code, Reason
from bridge.engine.settling import Settling

BEHIND = (Reason(Code.MIRROR_BEHIND, what="lacks 10.0.0.1:80"),)
AGREED = Plan(Target("default", "web"), queries=(Query("dc1", "web"),))
DEVIATING = replace(AGREED, deviations=BEHIND)


class Clock:
    """Time that passes when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_lag_within_the_window_is_nobodys_business() -> None:
    """However often the mirror is late: each time it caught up."""
    clock = Clock()
    settling = Settling(clock, 5.0)
    for _ in range(10):
        assert settling.judge(AGREED) == AGREED
        clock.now += 1.0
        assert settling.judge(DEVIATING) == replace(AGREED, settling=True)
        clock.now += 4.9
        assert settling.judge(DEVIATING) == replace(AGREED, settling=True)


def test_a_lag_that_lasts_is_told_and_ends_when_it_has_caught_up() -> None:
    """From its begin on, whatever was planned in between."""
    clock = Clock()
    settling = Settling(clock, 5.0)
    settling.judge(AGREED)
    settling.judge(DEVIATING)
    clock.now += 3.0
    settling.judge(DEVIATING)
    clock.now += 2.0
    assert settling.judge(DEVIATING) == DEVIATING
    assert settling.judge(AGREED) == AGREED
    assert settling.judge(DEVIATING).deviations == ()


def test_nothing_is_in_sync_before_it_was_seen_to_be() -> None:
    """A new service deviates from the start, but is not yet told of; nor is one that is made again."""
    clock = Clock()
    settling = Settling(clock, 5.0)
    assert settling.judge(DEVIATING) == replace(DEVIATING, settling=True)
    settling.judge(AGREED)
    settling.judge(replace(AGREED, queries=()))
    assert settling.judge(DEVIATING) == replace(DEVIATING, settling=True)


def test_without_a_window_it_is_told_at_once() -> None:
    """A command looks once."""
    settling = Settling(Clock(), 0.0)
    settling.judge(AGREED)
    assert settling.judge(DEVIATING) == DEVIATING
