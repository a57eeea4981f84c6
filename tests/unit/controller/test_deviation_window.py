"""How long what readers see may differ before it is reported."""

from __future__ import annotations

from dataclasses import replace

from bridge.core.model import Group, Plan, Query, Target
from bridge.core.slice_union import compare
from bridge.pipeline.deviation_window import DeviationWindow
from tests.unit.core.builders import ready
from tests.unit.core.test_slice_union import HTTP, WEB, group, mirrored

TARGET = Target("default", "web")
NONE = group()
AGREED = Plan(TARGET, queries=(Query("dc1", "web"),))


def seen(wanted: Group, mirror: Group) -> Plan:
    """A plan without writes, while the mirror of the Endpoints has this."""
    found = compare(TARGET, (wanted,), {}, mirrored(mirror), mirrored=True)
    return replace(AGREED, deviations=found.deviations, differences=found.differences)


DEVIATING = seen(WEB, NONE)
QUIET = replace(DEVIATING, deviations=(), deviations_recent=True)


class Clock:
    """Time that passes when a test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_lag_within_the_window_is_not_reported() -> None:
    """However often the mirror is late: each time it caught up."""
    clock = Clock()
    window = DeviationWindow(clock, 5.0)
    for _ in range(10):
        assert window.judge(AGREED) == AGREED
        clock.now += 1.0
        assert window.judge(DEVIATING) == QUIET
        clock.now += 4.9
        assert window.judge(DEVIATING) == QUIET


def test_a_lag_that_lasts_is_reported_and_ends_when_it_has_caught_up() -> None:
    """From its begin on, whatever was planned in between."""
    clock = Clock()
    window = DeviationWindow(clock, 5.0)
    window.judge(AGREED)
    window.judge(DEVIATING)
    clock.now += 3.0
    window.judge(DEVIATING)
    clock.now += 2.0
    assert window.judge(DEVIATING) == DEVIATING
    assert window.judge(AGREED) == AGREED
    assert window.judge(DEVIATING).deviations == ()


def busy(number: int) -> Group:
    """What is wanted after so many changes: three instances of which the oldest is replaced at each, and two of which
    one is ready in turns."""
    turns = [replace(e, ready=n == number % 2) for n, e in enumerate(ready("10.0.1.1", "10.0.1.2"))]
    return group(*ready(*(f"10.0.0.{number + n}" for n in range(3))), *turns, ports=(HTTP,))


def test_a_service_that_never_rests_is_in_sync_while_its_mirror_follows() -> None:
    """Each change is planned before its own mirror is there: no plan ever agrees, and nothing stays as it is."""
    clock = Clock()
    window = DeviationWindow(clock, 5.0)
    assert window.judge(seen(busy(0), busy(0))).deviations_recent is False
    for number in range(1, 200):
        clock.now += 0.25
        plan = seen(busy(number), busy(number - 1))
        assert plan.deviations
        assert window.judge(plan) == replace(plan, deviations=(), deviations_recent=True)


def test_a_mirror_that_stopped_is_reported_although_the_service_never_rests() -> None:
    """What is missing or superfluous changes at each look, but some of it stays."""
    clock = Clock()
    window = DeviationWindow(clock, 5.0)
    window.judge(seen(busy(0), busy(0)))
    told = []
    for number in range(1, 60):
        clock.now += 0.25
        told.append(bool(window.judge(seen(busy(number), busy(0))).deviations))
    assert (told.index(True), all(told[told.index(True) :])) == (20, True)


def test_a_slice_of_others_is_one_difference_whatever_it_has() -> None:
    """Who writes it again all the time sends traffic elsewhere all the time."""
    clock = Clock()
    window = DeviationWindow(clock, 5.0)
    for number in range(10):
        piece = replace(mirrored(group(*ready(f"10.9.9.{number}")))[0], manager="mesh.example.org")
        found = compare(TARGET, (WEB,), {"web-1": WEB}, (piece,), mirrored=False)
        plan = replace(AGREED, deviations=found.deviations, differences=found.differences)
        assert (window.judge(plan) == plan) == (number >= 5)
        clock.now += 1.0


def test_nothing_is_in_sync_before_it_was_seen_to_be() -> None:
    """A new service deviates from the start, but is not yet reported; nor is one that is made again."""
    clock = Clock()
    window = DeviationWindow(clock, 5.0)
    assert window.judge(DEVIATING) == replace(DEVIATING, deviations_recent=True)
    window.judge(AGREED)
    window.judge(replace(AGREED, queries=()))
    assert window.judge(DEVIATING) == replace(DEVIATING, deviations_recent=True)


def test_without_a_window_it_is_reported_at_once() -> None:
    """A command looks once."""
    window = DeviationWindow(Clock(), 0.0)
    window.judge(AGREED)
    assert window.judge(DEVIATING) == DEVIATING
