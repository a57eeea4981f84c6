"""How much may be taken away, and how fast: sums over a sliding minute, holds, and how they end."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.core.guard import Guard, GuardSettings, _Taking, _Window
from bridge.core.model import Held, Plan, Query, Target
from bridge.core.reasons import Code

TARGETS = [Target("default", f"s{n:03}") for n in range(200)]


def taking(number: int, lost: int = 0, flipped: int = 0, before: int | None = None, ready: int | None = None) -> Plan:
    """A plan that takes something away from target `number`."""
    before = lost + flipped if before is None else before
    return Plan(
        TARGETS[number],
        queries=(Query("dc1", f"s{number}"),),
        ready_before=before,
        ready=before - lost - flipped if ready is None else ready,
        lost=lost,
        flipped=flipped,
    )


def held(guard: Guard, plans: Iterable[Plan], total: int, now: float = 0.0, force: bool = False) -> dict[Target, Held]:
    return dict(guard.admit(list(plans), total, now, force=force).held)


@pytest.mark.parametrize(
    ("lost", "total", "is_held"),
    [
        (50, 100, False),
        (51, 100, True),
        (9, 9, False),
        (10, 10, True),
        (10, 20, False),
        (11, 20, True),
        (0, 0, False),
    ],
)
def test_more_than_half_and_at_least_ten_are_held(lost: int, total: int, is_held: bool) -> None:
    """Half itself passes; a small service may go whole."""
    found = held(Guard(GuardSettings()), [taking(0, lost)] if lost else [], total)
    assert bool(found) is is_held


@pytest.mark.parametrize(
    ("lost", "flipped", "total", "lost_held", "flips_held"),
    [
        (0, 80, 100, False, False),
        (0, 81, 100, False, True),
        (0, 9, 9, False, False),
        (50, 40, 100, False, True),
        (51, 20, 100, True, False),
        (60, 40, 100, True, True),
    ],
)
def test_most_of_all_turning_not_ready_is_consuls_fault(
    lost: int, flipped: int, total: int, lost_held: bool, flips_held: bool
) -> None:
    """What vanishes counts as well, but each kind is held by itself."""
    plans = [taking(0, lost, flipped)]
    found = held(Guard(GuardSettings()), plans, total).get(TARGETS[0])
    assert (found is not None and found.lost, found is not None and found.flips) == (lost_held, flips_held)
    if found is not None:
        assert found.endpoints == lost * lost_held + flipped * flips_held


def test_a_rule_can_be_switched_off() -> None:
    """With a percentage of 0."""
    guard = Guard(GuardSettings(removal_percent=0, panic_percent=0))
    assert held(guard, [taking(0, 100, 100)], 200) == {}


def test_the_sentence_says_what_is_held_why_how_many_and_how_to_release_it() -> None:
    """Of each cause."""
    guard = Guard(GuardSettings(hold_release_seconds=3600))
    removal = held(guard, [taking(0, 60), taking(1, 1)], 100)
    assert removal[TARGETS[0]] == Held(
        TARGETS[0],
        Code.HELD_REMOVAL,
        60,
        "60 ready endpoints are kept: 61 of 100 ready endpoints (61 %, the limit is 50 %) would vanish within 60 s "
        "because Consul no longer lists them or no rule selects them; released when Consul recovers, by "
        "`bridge sync --force` with this bridge's settings or 3600 s after the hold began",
    )
    assert removal[TARGETS[1]].reason.startswith("1 ready endpoint is kept: 61 of 100")
    panic = held(Guard(GuardSettings()), [taking(0, 0, 90)], 100)[TARGETS[0]]
    assert (panic.cause, panic.lost, panic.flips) == ("panic", False, True)
    assert panic.reason == (
        "90 ready endpoints are kept: 90 of 100 ready endpoints (90 %, the limit is 80 %) would stop being ready "
        "within 60 s, so Consul is the likelier patient; released when Consul recovers or by "
        "`bridge sync --force` with this bridge's settings"
    )
    guard = Guard(GuardSettings())
    guard.rebuilt("dc1", 0.0)
    rebuilt = held(guard, [taking(0, 2)], 100, 10.0)[TARGETS[0]]
    assert rebuilt == Held(
        TARGETS[0],
        Code.HELD_REBUILT,
        2,
        "2 ready endpoints are kept: Consul in dc1 was rebuilt or restored (its index went backwards), and for another "
        "590 s nothing is removed, so that agents can register again; released when they are registered again or by "
        "`bridge sync --force` with this bridge's settings",
    )


def test_a_sum_without_a_whole_is_all_of_it() -> None:
    """A store that lost count must not divide by zero."""
    assert "(100 %" in held(Guard(GuardSettings()), [taking(0, 60)], 0)[TARGETS[0]].reason


# --------------------------------------------------------------------------- over time


def test_losses_add_up_over_a_sliding_minute() -> None:
    """One service after the other: what is over half is held, what is written stays in the sum for a minute."""
    guard = Guard(GuardSettings())
    total, let_go = 100, 0
    for number in range(10):
        if not held(guard, [taking(number, 10)], total, now=float(number)):
            guard.applied(TARGETS[number])
            total -= 10
            let_go += 10
    assert let_go == 50
    assert [h.target for h in guard.active()] == TARGETS[5:10]


def test_a_slow_bleed_passes_and_is_forgotten() -> None:
    """Six in a minute of a hundred are ordinary life, for ever."""
    guard, total = Guard(GuardSettings()), 100
    for number in range(15):
        assert held(guard, [taking(number, 6)], total, now=number * 61.0) == {}
        guard.applied(TARGETS[number])
        total -= 6


def test_a_hold_does_not_end_because_a_minute_has_passed() -> None:
    """Else the guard would be a rate limit, and an empty Consul would win in the end."""
    guard = Guard(GuardSettings())
    for number in range(5):
        assert held(guard, [taking(number, 10)], 100 - 10 * number) == {}
        guard.applied(TARGETS[number])
    first = held(guard, [taking(5, 10)], 50, 1.0)[TARGETS[5]]
    later = held(guard, [taking(5, 11)], 50, 1000.0)[TARGETS[5]]
    assert (later.cause, later.endpoints) == ("removal", 11)
    assert later.reason.split(": ")[1] == first.reason.split(": ")[1]
    assert guard.released(1000.0) == frozenset()


def test_flips_that_are_held_stay_held() -> None:
    """The same for self-preservation; a removal beside it may pass."""
    guard = Guard(GuardSettings())
    first = held(guard, [taking(0, 0, 80), taking(1, 0, 10)], 100)[TARGETS[0]]
    found = held(guard, [taking(0, 2, 70)], 1000, 1000.0)[TARGETS[0]]
    assert first.flips
    assert found.reason.split(": ")[1] == first.reason.split(": ")[1]
    assert (found.cause, found.lost, found.flips, found.endpoints) == ("panic", False, True, 70)


def test_what_comes_back_counts_against_what_went() -> None:
    """A rolling restart takes each of twelve instances away and brings it back: never more than one at a time."""
    guard = Guard(GuardSettings())
    for number in range(12):
        assert held(guard, [taking(0, 1, 0, before=12)], 12, float(number)) == {}
        guard.applied(TARGETS[0])
        assert held(guard, [taking(0, before=11, ready=12)], 11, number + 0.5) == {}
        guard.applied(TARGETS[0])
    for number in range(12):
        assert held(guard, [taking(0, 0, 1, before=12)], 12, 20.0 + number) == {}
        guard.applied(TARGETS[0])
        assert held(guard, [taking(0, before=11, ready=12)], 11, 20.5 + number) == {}
        guard.applied(TARGETS[0])


def test_what_comes_back_elsewhere_does_not_count() -> None:
    """New endpoints of one service are no comfort to another."""
    guard = Guard(GuardSettings())
    for number in range(5):
        assert held(guard, [taking(number, 10)], 100 - number * 10) == {}
        guard.applied(TARGETS[number])
    held(guard, [taking(9, before=0, ready=50)], 50)
    guard.applied(TARGETS[9])
    assert held(guard, [taking(5, 25)], 100) == {}
    assert TARGETS[5] in held(guard, [taking(5, 26)], 100)


def test_what_was_admitted_and_never_written_is_forgotten() -> None:
    """Planned again it replaces itself; a minute later it is gone. Nothing can be applied that was not admitted."""
    guard = Guard(GuardSettings())
    for _ in range(10):
        assert held(guard, [taking(0, 10)], 100) == {}
    assert held(guard, [taking(1, 40)], 100) == {}
    assert TARGETS[2] in held(guard, [taking(2, 1)], 100)
    guard.applied(TARGETS[9])
    guard = Guard(GuardSettings())
    held(guard, [taking(0, 50)], 100, 0.0)
    assert held(guard, [taking(1, 50)], 100, 60.0) == {}


def test_what_turned_not_ready_was_ready_a_minute_ago() -> None:
    """It belongs to the whole that the percentage is of, and leaves it when the minute is over."""
    guard = Guard(GuardSettings())
    held(guard, [taking(0, 0, 60)], 100, 0.0)
    guard.applied(TARGETS[0])
    assert held(guard, [taking(1, 0, 20)], 40, 1.0) == {}
    assert TARGETS[1] in held(guard, [taking(1, 0, 21)], 40, 1.0)
    guard = Guard(GuardSettings())
    held(guard, [taking(0, 50)], 100, 0.0)
    guard.applied(TARGETS[0])
    assert TARGETS[1] in held(guard, [taking(1, 25)], 50, 59.0)
    guard = Guard(GuardSettings())
    held(guard, [taking(0, 50)], 100, 0.0)
    guard.applied(TARGETS[0])
    assert held(guard, [taking(1, 25)], 50, 60.0) == {}


def test_flips_that_are_held_count_for_others() -> None:
    """While Consul is suspected, nothing more turns not ready."""
    guard = Guard(GuardSettings())
    assert held(guard, [taking(0, 0, 81)], 100)
    assert held(guard, [taking(1, 0, 1)], 100)[TARGETS[1]].cause == "panic"


def test_what_vanishes_helps_to_hold_flips_and_passes_itself() -> None:
    """A target that loses a little is not held for the others' flips."""
    found = held(Guard(GuardSettings()), [taking(0, 45), taking(1, 0, 40)], 100)
    assert list(found) == [TARGETS[1]]


def test_what_turns_not_ready_while_others_come_is_no_gain_lost() -> None:
    """Five go and ten come: ten count against what went before."""
    guard = Guard(GuardSettings())
    held(guard, [taking(0, 40, before=100)], 100)
    guard.applied(TARGETS[0])
    assert held(guard, [taking(0, 0, 5, before=60, ready=65)], 60) == {}
    guard.applied(TARGETS[0])
    assert held(guard, [taking(1, 20)], 65) == {}
    assert TARGETS[1] in held(guard, [taking(1, 21)], 65)


def test_holds_are_listed_in_order() -> None:
    """Of the targets, not of their coming."""
    guard = Guard(GuardSettings())
    held(guard, [taking(2, 30), taking(0, 30), taking(1, 30)], 100)
    assert [h.target for h in guard.active()] == TARGETS[:3]


def test_part_of_what_went_comes_back() -> None:
    """The rest stays in the sum."""
    guard = Guard(GuardSettings())
    held(guard, [taking(0, 30, 10, before=100)], 100)
    guard.applied(TARGETS[0])
    held(guard, [taking(0, before=60, ready=75)], 60)
    guard.applied(TARGETS[0])
    assert held(guard, [taking(1, 25)], 75) == {}
    assert TARGETS[1] in held(guard, [taking(1, 26)], 75)


# --------------------------------------------------------------------------- the end of a hold


def holding(count: int = 10, each: int = 10) -> Guard:
    """A guard that holds all of `count` services, which are all that there is."""
    guard = Guard(GuardSettings())
    assert len(held(guard, [taking(n, each) for n in range(count)], count * each)) == count
    return guard


def test_a_hold_ends_when_consul_lists_everything_again() -> None:
    """And the others are looked at again."""
    guard = holding()
    assert held(guard, [taking(0, before=10)], 100, 5.0) == {}
    assert TARGETS[0] not in {h.target for h in guard.active()}
    assert guard.released(5.0) == frozenset(TARGETS[1:10])
    assert guard.released(5.0) == frozenset()
    assert TARGETS[1] in held(guard, [taking(1, 10)], 100, 5.0)


def test_when_half_has_come_back_the_rest_is_believed() -> None:
    """What is left is judged like anything else: a service that is gone for good is not held for ever."""
    guard = holding()
    for number in range(5):
        held(guard, [taking(number, before=10)], 100, 100.0)
    assert held(guard, [taking(n, 10) for n in range(5, 10)], 100, 100.0) == {}
    assert guard.active() == ()


def test_what_the_window_still_holds_after_a_recovery_is_looked_at_again_when_the_window_is_over() -> None:
    """Nobody else would look: Consul has no news about a service that is gone for good."""
    guard = Guard(GuardSettings())
    for number in range(5):
        assert held(guard, [taking(number, 10)], 100 - 10 * number) == {}
        guard.applied(TARGETS[number])
    rest = [taking(n, 10) for n in range(5, 10)]
    assert len(held(guard, rest, 50, 1.0)) == 5
    assert guard.released(2.0) == frozenset()
    for number in range(5, 8):
        held(guard, [taking(number, before=10)], 50, 10.0)
    assert len(held(guard, rest[3:], 50, 10.0)) == 2
    guard.released(11.0)
    assert guard.released(70.0) == {TARGETS[8], TARGETS[9]}
    assert held(guard, rest[3:], 50, 70.0) == {}


def test_a_new_episode_begins_from_nothing() -> None:
    """What came back in the last one does not make this one end early."""
    guard = holding()
    for number in range(10):
        held(guard, [taking(number, before=10)], 100, 100.0)
    assert len(held(guard, [taking(n, 10) for n in range(6)], 100, 200.0)) == 6
    assert TARGETS[0] in held(guard, [taking(0, 10)], 100, 300.0)


def test_force_lets_everything_pass_and_is_no_recovery() -> None:
    """Those that were not forced stay held."""
    guard = holding()
    assert held(guard, [taking(n, 10) for n in range(6)], 100, force=True) == {}
    assert [h.target for h in guard.active()] == TARGETS[6:10]
    assert TARGETS[6] in held(guard, [taking(6, 10)], 40, 1000.0)
    assert held(guard, [taking(n, 10) for n in range(6, 10)], 40, 1000.0, force=True) == {}
    assert guard.active() == ()


def test_a_hold_can_be_let_go_after_a_time() -> None:
    """Counted from its beginning; what was let go stays free until it is in order again."""
    guard = Guard(GuardSettings(hold_release_seconds=100))
    plans = [taking(0, 60)]
    held(guard, plans, 100, 0.0)
    held(guard, plans, 100, 50.0)
    assert guard.released(99.0) == frozenset()
    assert guard.released(100.0) == {TARGETS[0]}
    assert held(guard, plans, 100, 100.0) == {}
    assert held(guard, plans, 100, 101.0) == {}
    assert held(guard, [taking(0, before=60)], 100, 102.0) == {}
    assert TARGETS[0] in held(guard, plans, 100, 200.0)


@pytest.mark.parametrize("force", [False, True])
def test_what_is_let_go_on_purpose_is_charged_to_nobody(force: bool) -> None:
    """Neither in the same breath nor afterwards: an ordinary removal elsewhere would be held until somebody acts."""
    guard = Guard(GuardSettings(hold_release_seconds=None if force else 100))
    held(guard, [taking(0, 60, before=60), taking(1, 0, before=40)], 100, 0.0)
    together = [taking(0, 60), taking(1, 2, before=40)]
    assert held(guard, together, 100, 100.0, force=force) == {}
    guard.applied(TARGETS[0])
    guard.applied(TARGETS[1])
    assert held(guard, [taking(1, 1, before=38)], 38, 101.0) == {}
    assert TARGETS[1] in held(guard, [taking(1, 21, before=38)], 38, 101.0)


def test_what_a_person_sends_away_is_held_by_nothing_and_charged_to_nothing() -> None:
    """Not even while Consul is being rebuilt; and the next loss is judged as if it had not been."""
    guard = Guard(GuardSettings())
    guard.rebuilt("dc1", 0.0)
    away = replace(taking(0, before=50, ready=0), dismissed=True)
    assert held(guard, [away], 100) == {}
    guard.applied(TARGETS[0])
    assert held(guard, [taking(1, 20)], 50, 700.0) == {}


def test_a_hold_that_a_person_ends_by_sending_it_away_is_no_recovery() -> None:
    """What is held elsewhere stays held: Consul has not come back."""
    guard = holding(2)
    away = replace(taking(0, before=10, ready=0), dismissed=True)
    assert held(guard, [away], 20, 5.0) == {}
    assert [h.target for h in guard.active()] == [TARGETS[1]]
    assert guard.released(5.0) == frozenset()
    assert TARGETS[1] in held(guard, [taking(1, 10)], 10, 5.0)


def test_a_hold_whose_time_is_over_counts_for_nobody_before_it_is_planned() -> None:
    """It is planned after another target, and is let go all the same."""
    guard = Guard(GuardSettings(hold_release_seconds=100))
    held(guard, [taking(0, 60), taking(1, 30)], 100, 0.0)
    assert held(guard, [taking(0, 60)], 100, 100.0) == {}
    assert [h.target for h in guard.active()] == [TARGETS[1]]
    assert guard.released(100.0) == {TARGETS[1]}
    assert held(guard, [taking(1, 30)], 100, 100.0) == {}


def test_a_target_that_is_gone_is_forgotten() -> None:
    """Its hold and what was planned for it."""
    guard = holding(2)
    guard.forget(TARGETS[0])
    assert [h.target for h in guard.active()] == TARGETS[1:2]
    guard.forget(TARGETS[0])


# --------------------------------------------------------------------------- a rebuilt Consul


def test_a_rebuilt_consul_removes_nothing_for_ten_minutes() -> None:
    """Whatever the size; flips pass; the other datacenters are not concerned; then the rules decide."""
    guard = Guard(GuardSettings())
    guard.rebuilt("dc1", 0.0)
    other = Plan(TARGETS[1], queries=(Query("dc2", "x"),), ready_before=1, lost=1)
    found = held(guard, [taking(0, 1, 1), other], 1000, 599.0)
    assert (found[TARGETS[0]].lost, found[TARGETS[0]].flips) == (True, False)
    assert TARGETS[1] not in found
    assert guard.released(599.0) == frozenset()
    assert guard.released(600.0) == {TARGETS[0]}
    assert held(guard, [taking(0, 1)], 1000, 600.0) == {}


def test_a_rebuilt_consul_that_stays_empty_stays_held() -> None:
    """The removal guard takes over."""
    guard = Guard(GuardSettings())
    guard.rebuilt("dc1", 0.0)
    plans = [taking(n, 10) for n in range(10)]
    assert {h.cause for h in held(guard, plans, 100, 1.0).values()} == {"rebuilt"}
    assert {h.cause for h in held(guard, plans, 100, 601.0).values()} == {"removal"}


def test_a_rebuild_does_not_end_what_self_preservation_holds() -> None:
    """Flips that were held before it stay held during it and after it, whatever else has grown meanwhile."""
    guard = Guard(GuardSettings())
    panic = held(guard, [taking(0, 0, 80)], 90, 0.0)[TARGETS[0]]
    guard.rebuilt("dc1", 1.0)
    during = held(guard, [taking(0, 1, 80)], 1000, 2.0)[TARGETS[0]]
    assert (during.cause, during.lost, during.flips, during.endpoints) == ("rebuilt", True, True, 81)
    after = held(guard, [taking(0, 1, 80)], 1000, 601.0)[TARGETS[0]]
    assert (after.cause, after.lost, after.flips, after.endpoints) == ("panic", False, True, 80)
    assert after.reason == panic.reason


def test_a_hold_names_the_reason_that_is_left() -> None:
    """When Consul lists the endpoints again and only calls them sick, it is no removal any more."""
    guard = Guard(GuardSettings())
    first = held(guard, [taking(0, 60, 30)], 100, 0.0)[TARGETS[0]]
    assert (first.cause, first.lost, first.flips, first.endpoints) == ("removal", True, True, 90)
    later = held(guard, [taking(0, 0, 80)], 1000, 100.0)[TARGETS[0]]
    assert (later.cause, later.lost, later.flips, later.endpoints) == ("panic", False, True, 80)
    assert "90 of 100 ready endpoints (90 %, the limit is 80 %) would stop being ready" in later.reason


def test_a_hundred_targets_planned_again_one_by_one_stay_held() -> None:
    """As the running bridge does it after a batch: no sum is counted twice, none gets lost."""
    guard = Guard(GuardSettings())
    plans = [taking(n, 3) for n in range(100)]
    assert len(held(guard, plans, 300)) == 100
    for plan in plans:
        assert plan.target in held(guard, [plan], 300, 200.0)
    assert sum(h.endpoints for h in guard.active()) == 300
    assert "300 of 300 ready endpoints (100 %" in guard.active()[0].reason


def test_a_batch_that_was_admitted_is_admitted_again_one_by_one() -> None:
    """Half of all: judged together first, then each when it is written."""
    guard = Guard(GuardSettings())
    plans = [taking(n, 5) for n in range(10)]
    assert held(guard, plans, 100) == {}
    for number, plan in enumerate(plans):
        assert held(guard, [plan], 100 - 5 * number, 1.0) == {}
        guard.applied(plan.target)
    assert TARGETS[10] in held(guard, [taking(10, 1)], 50, 1.0)


# --------------------------------------------------------------------------- in general


@given(
    losses=st.lists(st.tuples(st.integers(0, 19), st.integers(1, 30), st.floats(0, 3)), min_size=1, max_size=60),
    split=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_never_more_than_half_within_a_minute(losses: list[tuple[int, int, float]], split: bool) -> None:
    """Whatever the order, the sizes and the times: of what was ready a minute ago, half is still there."""
    guard, ready, now = Guard(GuardSettings(removal_minimum=1)), dict.fromkeys(range(20), 30), 0.0
    written: list[tuple[float, int]] = []
    for number, wanted, pause in losses:
        now += pause
        lost = min(wanted, ready[number])
        plan = taking(number, lost, before=ready[number])
        plans = [plan] if split or not lost else [plan, taking((number + 1) % 20, before=ready[(number + 1) % 20])]
        if lost and plan.target not in held(guard, plans, sum(ready.values()), now):
            ready[number] -= lost
            guard.applied(plan.target)
            written.append((now, lost))
            recent = sum(count for at, count in written if at > now - 60.0)
            assert recent * 2 <= sum(ready.values()) + recent


def test_the_window_gives_the_sums_of_what_is_in_it_and_forgets_all_of_the_rest() -> None:
    """Whatever comes and goes, in whatever order; and nothing piles up for a target that changes all the time."""
    chance = random.Random(4)
    window, plain = _Window(), dict[Target, list[_Taking]]()
    targets = [Target("default", f"web-{n}") for n in range(4)]
    for now in range(1000):
        target = chance.choice(targets)
        window.forget(now - 60)
        plain = {t: left for t, found in plain.items() if (left := [x for x in found if x.at > now - 60])}
        taken = list(window.pop(target)) if chance.random() < 0.6 else []
        assert taken in ([], plain.get(target, []))
        if taken or target not in plain:
            fresh = [*taken[-2:], _Taking(now, chance.randrange(3), chance.randrange(3))]
            chance.shuffle(fresh)
            window.put(target, fresh)
            plain[target] = fresh
        left = [x for found in plain.values() for x in found]
        assert (window.lost, window.flipped) == (sum(x.lost for x in left), sum(x.flipped for x in left))
        assert len(window._due) <= 2 * 60 + 2
    window.forget(2000.0)
    assert (window.lost, window.flipped, window._due, window._takings) == (0, 0, [], {})
