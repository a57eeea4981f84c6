"""How much may be taken away, and how fast: sums over a sliding minute, holds, and how they end."""

from __future__ import annotations

import random
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.core.guard import (
    DOUBT_SECONDS,
    FORCED_SECONDS,
    LOOK_SECONDS,
    Guard,
    _LossSample,
    _Window,
    force_command,
)
from bridge.core.model import Held, Plan, Query, Scope, Target
from bridge.core.reasons import Code, Reason
from bridge.core.select import Only
from tests.support.options import guard_settings

DC1 = Scope(datacenters=("dc1",))
TARGETS = [Target("default", f"s{n:03}") for n in range(200)]


def taking(
    number: int,
    lost: int = 0,
    flipped: int = 0,
    before: int | None = None,
    ready: int | None = None,
    scope: Scope = DC1,
) -> Plan:
    """A plan that takes something away from target `number`."""
    before = lost + flipped if before is None else before
    return Plan(
        TARGETS[number],
        queries=(Query("dc1", f"s{number}"),),
        ready_before=before,
        ready=before - lost - flipped if ready is None else ready,
        removed=lost,
        became_unready=flipped,
        scope=scope,
    )


def held(guard: Guard, plans: Iterable[Plan], total: int, now: float = 0.0, force: bool = False) -> dict[Target, Held]:
    return dict(guard.admit(list(plans), lambda _scope: total, now, force=force).held)


def released(guard: Guard, now: float, total: int = 100) -> frozenset[Target]:
    """What the timer names."""
    return guard.due(now, lambda _scope: total)


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
    found = held(Guard(guard_settings()), [taking(0, lost)] if lost else [], total)
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
    found = held(Guard(guard_settings()), plans, total).get(TARGETS[0])
    assert (found is not None and found.removed, found is not None and found.flips) == (lost_held, flips_held)
    if found is not None:
        assert found.endpoints == lost * lost_held + flipped * flips_held


def test_a_rule_can_be_switched_off() -> None:
    """With a percentage of 0."""
    guard = Guard(guard_settings(removal_percent=0, panic_percent=0))
    assert held(guard, [taking(0, 100, 100)], 200) == {}


def test_the_sentence_says_what_is_held_why_how_many_and_how_to_release_it() -> None:
    """Of each cause."""
    guard = Guard(guard_settings(hold_release_seconds=3600))
    removal = held(guard, [taking(0, 60), taking(1, 1)], 100)
    assert removal[TARGETS[0]] == Held(
        TARGETS[0],
        Code.HELD_REMOVAL,
        60,
        "60 ready endpoints are kept: 61 of 100 ready endpoints mirrored from dc1 (61 %, the limit is 50 %) would "
        "vanish within 60 s because Consul no longer lists them or no rule selects them; released when Consul "
        "recovers, by `bridge sync --service s0 --namespace default --force` or 3600 s after the hold began",
        why="61 of 100 ready endpoints mirrored from dc1 (61 %, the limit is 50 %) would vanish within 60 s because "
        "Consul no longer lists them or no rule selects them; released when Consul recovers or 3600 s after the hold "
        "began, or by a command",
        command="bridge sync --service s0 --namespace default --force",
    )
    assert removal[TARGETS[1]].why == removal[TARGETS[0]].why
    released = replace(taking(0, 60), held=(removal[TARGETS[0]],)).release_command
    assert (released, taking(0, 60).release_command) == (removal[TARGETS[0]].command, "")
    assert removal[TARGETS[1]].reason.startswith("1 ready endpoint is kept: 61 of 100")
    panic = held(Guard(guard_settings()), [taking(0, 0, 90)], 100)[TARGETS[0]]
    assert (panic.cause, panic.removed, panic.flips) == ("panic", False, True)
    assert panic.reason == (
        "90 ready endpoints are kept: 90 of 100 ready endpoints mirrored from dc1 (90 %, the limit is 80 %) would stop "
        "being ready within 60 s, so Consul is more likely to be wrong; released when Consul recovers or by "
        "`bridge sync --service s0 --namespace default --force`"
    )
    guard = Guard(guard_settings())
    guard.rebuilt("dc1", 0.0)
    rebuilt = held(guard, [taking(0, 2)], 100, 10.0)[TARGETS[0]]
    assert rebuilt == Held(
        TARGETS[0],
        Code.HELD_REBUILT,
        2,
        "2 ready endpoints are kept: Consul in dc1 was rebuilt or restored (its index went backwards), and for another "
        "590 s nothing is removed, so that agents can register again; released when they are registered again or by "
        "`bridge sync --service s0 --namespace default --force`",
        why="Consul in dc1 was rebuilt or restored (its index went backwards), and for another 590 s nothing is "
        "removed, so that agents can register again; released when they are registered again, or by a command",
        command="bridge sync --service s0 --namespace default --force",
    )
    mine = Scope(namespace="team-a")
    annotated = held(Guard(guard_settings(command="bridge sync --owner x")), [taking(0, 60, scope=mine)], 100)[
        TARGETS[0]
    ]
    assert "60 of 100 ready endpoints of annotated Services in namespace team-a (60 %" in annotated.reason
    assert annotated.reason.endswith("`bridge sync --owner x --service s0 --namespace default --force`")


@pytest.mark.parametrize(
    ("names", "flags"),
    [
        (("radosgw",), "--service radosgw "),
        (("b", "a"), "--service a --service b "),
        (("; rm -rf $HOME",), "--service '; rm -rf $HOME' "),
        (("web*", "a[b]?"), "--service 'a[[]b][?]' --service 'web[*]' "),
        (("it's",), """--service 'it'"'"'s' """),
        (("two\nlines", "web"), ""),
        ((), ""),
    ],
)
def test_the_command_that_releases_a_hold_names_that_alone_and_can_be_pasted(
    names: tuple[str, ...], flags: str
) -> None:
    """Names in Consul may be anything; what no line can carry is left out, and the namespace is forced."""
    plan = replace(taking(0), queries=tuple(Query("dc1", name) for name in names))
    command = force_command("bridge sync --config my.yaml", plan)
    assert command == f"bridge sync --config my.yaml {flags}--namespace default --force"
    services = tuple(shlex.split(flags)[1::2])
    assert all(Only(services).takes(TARGETS[0], [Query("dc2", name)]) for name in names if services)
    assert not Only(("web[*]",)).takes(TARGETS[0], [Query("dc1", "website")])
    assert Only(namespace="default").takes(TARGETS[0], ())
    assert not Only(namespace="other").takes(TARGETS[0], ())


def test_beside_a_running_bridge_everything_that_would_be_lost_is_left_to_it() -> None:
    """However little it is, of whatever kind; a force takes it away, and the hold promises no other end."""
    guard = Guard(guard_settings(hold_release_seconds=60), "bridge-7c9f")
    found = held(guard, [taking(0, 1), taking(1, 0, 1), taking(2, ready=3)], 100)
    assert {t: (h.cause, h.endpoints) for t, h in found.items()} == {
        TARGETS[0]: (Code.HELD_RUNNING, 1), TARGETS[1]: (Code.HELD_RUNNING, 1),
    }  # fmt: skip
    assert "(bridge-7c9f)" in found[TARGETS[0]].why
    assert found[TARGETS[0]].why.endswith("released by that bridge as soon as its own guard allows it, or by a command")
    assert held(guard, [taking(0, 1)], 100, force=True) == {}


def test_a_sum_without_a_whole_is_all_of_it() -> None:
    """A store that lost count must not divide by zero."""
    assert "(100 %" in held(Guard(guard_settings()), [taking(0, 60)], 0)[TARGETS[0]].reason


# --------------------------------------------------------------------------- over time


def test_losses_add_up_over_a_sliding_minute() -> None:
    """One service after the other: what is over half is held, what is written stays in the sum for a minute."""
    guard = Guard(guard_settings())
    total, let_go = 100, 0
    for number in range(10):
        if not held(guard, [taking(number, 10)], total, now=float(number)):
            guard.applied(TARGETS[number])
            total -= 10
            let_go += 10
    assert let_go == 50
    assert [h.target for h in guard.active()] == TARGETS[5:10]


def test_a_slow_bleed_passes_and_is_forgotten() -> None:
    """Six in a minute of a hundred are ordinary life, forever."""
    guard, total = Guard(guard_settings()), 100
    for number in range(15):
        assert held(guard, [taking(number, 6)], total, now=number * 61.0) == {}
        guard.applied(TARGETS[number])
        total -= 6


def test_a_hold_does_not_end_because_a_minute_has_passed() -> None:
    """Else the guard would be a rate limit, and an empty Consul would win in the end."""
    guard = Guard(guard_settings())
    for number in range(5):
        assert held(guard, [taking(number, 10)], 100 - 10 * number) == {}
        guard.applied(TARGETS[number])
    assert len(held(guard, [taking(n, 10) for n in range(5, 8)], 50, 1.0)) == 3
    for now in range(2, 1000):
        assert released(guard, now, 50) == frozenset()
    assert held(guard, [taking(5, 11)], 50, 1000.0)[TARGETS[5]].endpoints == 11


def test_a_hold_of_what_the_window_alone_makes_too_much_ends_with_the_window() -> None:
    """Ten of fifty would have passed by themselves: the sixty of a hundred ended when the first fifty were over."""
    guard = Guard(guard_settings())
    for number in range(5):
        assert held(guard, [taking(number, 10)], 100 - 10 * number) == {}
        guard.applied(TARGETS[number])
    assert TARGETS[5] in held(guard, [taking(5, 10)], 50, 1.0)
    assert TARGETS[5] in held(guard, [taking(5, 10)], 50, 59.0)
    assert released(guard, 59.5, 50) == frozenset()
    assert released(guard, 60.0, 50) == {TARGETS[5]}
    assert held(guard, [taking(5, 10)], 50, 60.0) == {}
    assert guard.active() == ()


def test_what_is_held_stays_so_until_it_was_little_for_a_whole_window() -> None:
    """Agents register again one by one: what is left must not go the moment that it is less than half of all."""
    guard = Guard(guard_settings())
    assert len(held(guard, [taking(n, 10) for n in range(6)], 100)) == 6
    held(guard, [taking(0, before=10)], 100, 300.0)
    assert TARGETS[1] in held(guard, [taking(1, 10)], 100, 301.0)
    assert released(guard, 359.0) == frozenset()
    held(guard, [taking(0, 10)], 100, 359.5)  # it has gone again: the window begins again
    held(guard, [taking(0, before=10)], 100, 400.0)
    assert released(guard, 459.0) == frozenset()
    assert released(guard, 460.0) == frozenset(TARGETS[1:6])
    assert held(guard, [taking(n, 10) for n in range(1, 6)], 100, 460.0) == {}


def test_flips_that_are_held_stay_so_until_they_were_few_for_a_whole_window() -> None:
    """The same for self-preservation; a removal beside it may pass."""
    guard = Guard(guard_settings())
    first = held(guard, [taking(0, 0, 80), taking(1, 0, 10)], 100)[TARGETS[0]]
    found = held(guard, [taking(0, 2, 70)], 1000, 1000.0)[TARGETS[0]]
    assert first.flips
    assert found.reason.split(": ")[1] == first.reason.split(": ")[1]
    assert (found.cause, found.removed, found.flips, found.endpoints) == ("panic", False, True, 70)
    assert released(guard, 1059.0, 1000) == frozenset()
    assert released(guard, 1060.0, 1000) == {TARGETS[0], TARGETS[1]}
    assert held(guard, [taking(0, 2, 70)], 1000, 1060.0) == {}


def test_what_is_not_planned_is_named_again_only_after_a_while() -> None:
    """Consul may not answer for it: naming it twice a second would have it planned twice a second forever."""
    guard = Guard(guard_settings())
    assert held(guard, [taking(0, 60)], 100)
    assert released(guard, 1.0, 1000) == frozenset()
    assert released(guard, 61.0, 1000) == {TARGETS[0]}
    assert released(guard, 61.0 + LOOK_SECONDS - 0.5, 1000) == frozenset()
    assert released(guard, 61.0 + LOOK_SECONDS, 1000) == {TARGETS[0]}


def test_what_comes_back_counts_against_what_went() -> None:
    """A rolling restart takes each of twelve instances away and brings it back: never more than one at a time."""
    guard = Guard(guard_settings())
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
    guard = Guard(guard_settings())
    for number in range(5):
        assert held(guard, [taking(number, 10)], 100 - number * 10) == {}
        guard.applied(TARGETS[number])
    held(guard, [taking(9, before=0, ready=50)], 50)
    guard.applied(TARGETS[9])
    assert held(guard, [taking(5, 25)], 100) == {}
    assert TARGETS[5] in held(guard, [taking(5, 26)], 100)


def test_what_was_admitted_and_never_written_is_forgotten() -> None:
    """Planned again it replaces itself; a minute later it is gone. Nothing can be applied that was not admitted."""
    guard = Guard(guard_settings())
    for _ in range(10):
        assert held(guard, [taking(0, 10)], 100) == {}
    assert held(guard, [taking(1, 40)], 100) == {}
    assert TARGETS[2] in held(guard, [taking(2, 1)], 100)
    guard.applied(TARGETS[9])
    guard = Guard(guard_settings())
    held(guard, [taking(0, 50)], 100, 0.0)
    assert held(guard, [taking(1, 50)], 100, 60.0) == {}


def test_what_turned_not_ready_was_ready_a_minute_ago() -> None:
    """It belongs to the whole that the percentage is of, and leaves it when the minute is over."""
    guard = Guard(guard_settings())
    held(guard, [taking(0, 0, 60)], 100, 0.0)
    guard.applied(TARGETS[0])
    assert held(guard, [taking(1, 0, 20)], 40, 1.0) == {}
    assert TARGETS[1] in held(guard, [taking(1, 0, 21)], 40, 1.0)
    guard = Guard(guard_settings())
    held(guard, [taking(0, 50)], 100, 0.0)
    guard.applied(TARGETS[0])
    assert TARGETS[1] in held(guard, [taking(1, 25)], 50, 59.0)
    guard = Guard(guard_settings())
    held(guard, [taking(0, 50)], 100, 0.0)
    guard.applied(TARGETS[0])
    assert held(guard, [taking(1, 25)], 50, 60.0) == {}


def test_flips_that_are_held_count_for_others() -> None:
    """While Consul is suspected, nothing more turns not ready."""
    guard = Guard(guard_settings())
    assert held(guard, [taking(0, 0, 81)], 100)
    assert held(guard, [taking(1, 0, 1)], 100)[TARGETS[1]].cause == "panic"


def test_what_vanishes_helps_to_hold_flips_and_passes_itself() -> None:
    """A target that loses a little is not held for other targets' flips."""
    found = held(Guard(guard_settings()), [taking(0, 45), taking(1, 0, 40)], 100)
    assert list(found) == [TARGETS[1]]


def test_what_turns_not_ready_while_others_come_is_no_gain_lost() -> None:
    """Five go and ten come: ten count against what went before."""
    guard = Guard(guard_settings())
    held(guard, [taking(0, 40, before=100)], 100)
    guard.applied(TARGETS[0])
    assert held(guard, [taking(0, 0, 5, before=60, ready=65)], 60) == {}
    guard.applied(TARGETS[0])
    assert held(guard, [taking(1, 20)], 65) == {}
    assert TARGETS[1] in held(guard, [taking(1, 21)], 65)


def test_holds_are_listed_in_order() -> None:
    """Of the targets, not of their coming."""
    guard = Guard(guard_settings())
    held(guard, [taking(2, 30), taking(0, 30), taking(1, 30)], 100)
    assert [h.target for h in guard.active()] == TARGETS[:3]


def test_part_of_what_went_comes_back() -> None:
    """The rest stays in the sum."""
    guard = Guard(guard_settings())
    held(guard, [taking(0, 30, 10, before=100)], 100)
    guard.applied(TARGETS[0])
    held(guard, [taking(0, before=60, ready=75)], 60)
    guard.applied(TARGETS[0])
    assert held(guard, [taking(1, 25)], 75) == {}
    assert TARGETS[1] in held(guard, [taking(1, 26)], 75)


# --------------------------------------------------------------------------- the end of a hold


def holding(count: int = 10, each: int = 10) -> Guard:
    """A guard that holds all of `count` services, which are all that there is."""
    guard = Guard(guard_settings())
    assert len(held(guard, [taking(n, each) for n in range(count)], count * each)) == count
    return guard


def test_a_hold_ends_when_consul_lists_everything_again() -> None:
    """The rest is not counted for that: ninety of a hundred are too much as well."""
    guard = holding()
    assert held(guard, [taking(0, before=10)], 100, 5.0) == {}
    assert TARGETS[0] not in {h.target for h in guard.active()}
    assert released(guard, 5.0) == frozenset()
    assert TARGETS[1] in held(guard, [taking(1, 10)], 100, 5.0)


def test_when_half_has_come_back_the_rest_is_believed() -> None:
    """What is left is judged like anything else: a service that is gone for good is not held forever."""
    guard = holding()
    for number in range(5):
        held(guard, [taking(number, before=10)], 100, 100.0)
    assert held(guard, [taking(n, 10) for n in range(5, 10)], 100, 100.0) == {}
    assert guard.active() == ()


def test_what_the_window_still_holds_after_a_recovery_is_looked_at_again_when_the_window_is_over() -> None:
    """No other client would look: Consul has no news about a service that is gone for good."""
    guard = Guard(guard_settings())
    for number in range(5):
        assert held(guard, [taking(number, 10)], 100 - 10 * number) == {}
        guard.applied(TARGETS[number])
    rest = [taking(n, 10) for n in range(5, 10)]
    assert len(held(guard, rest, 50, 1.0)) == 5
    assert released(guard, 2.0) == frozenset()
    for number in range(5, 8):
        held(guard, [taking(number, before=10)], 50, 10.0)
    assert len(held(guard, rest[3:], 50, 10.0)) == 2
    released(guard, 11.0)
    assert released(guard, 70.0) == {TARGETS[8], TARGETS[9]}
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


def test_what_another_process_forces_is_left_to_it_for_a_moment_and_let_go_then() -> None:
    """As the objects say; the timer names it. What is held beside it stays held until then, and is judged again."""
    guard = Guard(guard_settings())
    plans = [taking(0, 40), taking(1, 20)]
    assert len(held(guard, plans, 100)) == 2
    forced = replace(plans[0], released="now")
    assert held(guard, [forced], 100, 1.0)[TARGETS[0]].releasing
    assert released(guard, 1.0 + FORCED_SECONDS - 0.1) == frozenset()
    assert held(guard, [forced], 100, 2.0)[TARGETS[0]].releasing
    assert released(guard, 1.0 + FORCED_SECONDS) == {TARGETS[0]}
    assert held(guard, [forced], 100, 1.0 + FORCED_SECONDS) == {}
    assert held(guard, plans[1:], 60, 3.5) == {}


def test_what_another_process_has_taken_away_is_no_recovery_of_consul() -> None:
    """Half of what was held is not there any more, and the rest stays held for what it is."""
    guard = Guard(guard_settings())
    assert len(held(guard, [taking(0, 40), taking(1, 30)], 100)) == 2
    gone = replace(taking(0), released="now")
    assert held(guard, [gone], 60, 1.0) == {}
    assert list(held(guard, [taking(1, 31)], 60, 2.0)) == [TARGETS[1]]


def test_a_release_counts_once() -> None:
    """And is no part of the sums; another one counts again, and so does one at a target that was recreated."""
    guard = Guard(guard_settings())
    lost = replace(taking(0, 30), released="now")
    assert held(guard, [lost], 60, 0.0) == {}  # half passes by itself, and is not charged
    guard.applied(TARGETS[0])
    assert held(guard, [replace(taking(0), released="now")], 30, 0.5) == {}
    assert not held(guard, [replace(taking(0, 20), released="now")], 30, 1.0)[TARGETS[0]].releasing
    assert held(guard, [replace(taking(0, 20), released="later")], 30, 2.0)[TARGETS[0]].releasing
    assert held(guard, [replace(taking(0), released="later")], 10, 2.0) == {}
    guard.forget(TARGETS[0])
    assert held(guard, [replace(taking(0, 20), released="later")], 30, 3.0)[TARGETS[0]].releasing
    assert not held(guard, [taking(0, 20)], 30, 4.0)[TARGETS[0]].releasing


def dropping(number: int, deselected: int, before: int, lost: int = 0) -> Plan:
    """A plan of a target of which so many endpoints are no longer selected, although Consul lists them."""
    left = before - lost - deselected
    return replace(taking(number, lost, before=before, ready=left), deselected=deselected)


def test_tags_that_move_are_held_by_nothing_and_charged_to_nothing() -> None:
    """However many services fail over at once; what is lost beside them is judged as ever."""
    guard = Guard(guard_settings())
    assert held(guard, [dropping(n, 1, 1) for n in range(20)], 20) == {}
    for n in range(20):
        guard.applied(TARGETS[n])
    assert held(guard, [taking(n, 1) for n in range(20, 30)], 20, 1.0) == {}
    both = held(Guard(guard_settings()), [dropping(0, 5, 40, lost=30)], 40)[TARGETS[0]]
    assert (both.endpoints, both.removed, both.deselected) == (30, True, False)


def test_most_of_one_service_not_selected_together_counts_as_lost() -> None:
    """Then it is held by the sums of its scope, and for as long as those who lost more."""
    guard = Guard(guard_settings())
    assert held(guard, [dropping(0, 20, 30)], 100) == {}
    guard = Guard(guard_settings())
    found = held(guard, [dropping(0, 20, 30)], 30)[TARGETS[0]]
    assert (found.endpoints, found.removed, found.deselected) == (20, True, True)
    assert held(guard, [dropping(0, 11, 30)], 30, 1.0)[TARGETS[0]].deselected
    assert held(guard, [dropping(0, 9, 30)], 30, 62.0) == {}
    assert held(Guard(guard_settings()), [dropping(0, 9, 9)], 9) == {}
    assert held(Guard(guard_settings(removal_percent=0)), [dropping(0, 20, 30)], 30) == {}


def test_nothing_that_is_not_selected_goes_after_a_rebuild() -> None:
    """A restored Consul has tags of the past."""
    guard = Guard(guard_settings())
    guard.rebuilt("dc1", 0.0)
    found = held(guard, [dropping(0, 1, 1)], 100, 10.0)[TARGETS[0]]
    assert (found.cause, found.endpoints, found.deselected) == (Code.HELD_REBUILT, 1, True)
    assert held(guard, [dropping(0, 1, 1)], 100, 601.0) == {}
    assert guard.active() == ()


def test_a_hold_can_be_let_go_after_a_time() -> None:
    """Counted from its beginning; what was let go stays free until it is in order again."""
    guard = Guard(guard_settings(hold_release_seconds=100))
    plans = [taking(0, 60)]
    held(guard, plans, 100, 0.0)
    held(guard, plans, 100, 50.0)
    assert released(guard, 99.0) == frozenset()
    assert released(guard, 100.0) == {TARGETS[0]}
    assert held(guard, plans, 100, 100.0) == {}
    assert held(guard, plans, 100, 101.0) == {}
    assert held(guard, [taking(0, before=60)], 100, 102.0) == {}
    assert TARGETS[0] in held(guard, plans, 100, 200.0)


@pytest.mark.parametrize("force", [False, True])
def test_what_is_removed_on_purpose_is_counted_nowhere(force: bool) -> None:
    """Neither in the same breath nor afterwards: an ordinary removal elsewhere would be held until an operator acts."""
    guard = Guard(guard_settings(hold_release_seconds=None if force else 100))
    held(guard, [taking(0, 60, before=60), taking(1, 0, before=40)], 100, 0.0)
    together = [taking(0, 60), taking(1, 2, before=40)]
    assert held(guard, together, 100, 100.0, force=force) == {}
    guard.applied(TARGETS[0])
    guard.applied(TARGETS[1])
    assert held(guard, [taking(1, 1, before=38)], 38, 101.0) == {}
    assert TARGETS[1] in held(guard, [taking(1, 21, before=38)], 38, 101.0)


def test_what_a_user_no_longer_asks_for_is_neither_held_nor_counted() -> None:
    """Not even while Consul is being rebuilt; and the next loss is judged as if it had not been."""
    guard = Guard(guard_settings())
    guard.rebuilt("dc1", 0.0)
    away = replace(taking(0, before=50, ready=0), unsubscribed=True)
    assert held(guard, [away], 100) == {}
    guard.applied(TARGETS[0])
    assert held(guard, [taking(1, 20)], 50, 700.0) == {}


def test_a_hold_that_a_user_ends_by_sending_it_away_is_no_recovery() -> None:
    """What is held elsewhere stays held while it is too much by itself: Consul has not come back."""
    guard = holding(2)
    away = replace(taking(0, before=10, ready=0), unsubscribed=True)
    assert held(guard, [away], 20, 5.0) == {}
    assert [h.target for h in guard.active()] == [TARGETS[1]]
    assert released(guard, 5.0, 10) == frozenset()
    assert TARGETS[1] in held(guard, [taking(1, 10)], 10, 5.0)


def test_what_was_held_because_of_what_a_user_sends_away_is_released_at_once() -> None:
    """Thirty of thirty-six were held, and so one more: with the thirty sent away, one of six is ordinary life."""
    guard = Guard(guard_settings())
    assert held(guard, [taking(0, 30)], 36)
    assert "31 of 36" in held(guard, [taking(1, 1, before=6)], 36, 1.0)[TARGETS[1]].reason
    away = replace(taking(0, before=30, ready=0), unsubscribed=True)
    assert held(guard, [away], 36, 2.0) == {}
    guard.applied(TARGETS[0])
    assert released(guard, 2.5, 6) == {TARGETS[1]}
    assert held(guard, [taking(1, 1, before=6)], 6, 2.5) == {}


def test_what_a_user_changes_may_come_and_go_at_once_and_counts_for_nothing() -> None:
    """Neither what goes is charged, nor does what comes make up for what Consul lost there before."""
    guard = Guard(guard_settings())
    assert held(guard, [taking(0, 40, before=60)], 100) == {}
    guard.applied(TARGETS[0])
    changed = replace(taking(0, before=20, ready=50), unsubscribed=True)
    assert held(guard, [changed], 60, 1.0) == {}
    guard.applied(TARGETS[0])
    assert TARGETS[1] in held(guard, [taking(1, 31)], 90, 2.0)


def test_a_hold_whose_time_is_over_does_not_count_before_it_is_planned() -> None:
    """It is planned after another target, and is let go all the same."""
    guard = Guard(guard_settings(hold_release_seconds=100))
    held(guard, [taking(0, 60), taking(1, 30)], 100, 0.0)
    assert held(guard, [taking(0, 60)], 100, 100.0) == {}
    assert [h.target for h in guard.active()] == [TARGETS[1]]
    assert released(guard, 100.0) == {TARGETS[1]}
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
    guard = Guard(guard_settings())
    guard.rebuilt("dc1", 0.0)
    other = Plan(TARGETS[1], queries=(Query("dc2", "x"),), ready_before=1, removed=1)
    found = held(guard, [taking(0, 1, 1), other], 1000, 599.0)
    assert (found[TARGETS[0]].removed, found[TARGETS[0]].flips) == (True, False)
    assert TARGETS[1] not in found
    assert released(guard, 599.0) == frozenset()
    assert released(guard, 600.0) == {TARGETS[0]}
    assert held(guard, [taking(0, 1)], 1000, 600.0) == {}


def test_a_rebuilt_consul_that_stays_empty_stays_held() -> None:
    """The removal guard takes over."""
    guard = Guard(guard_settings())
    guard.rebuilt("dc1", 0.0)
    plans = [taking(n, 10) for n in range(10)]
    assert {h.cause for h in held(guard, plans, 100, 1.0).values()} == {"rebuilt"}
    assert {h.cause for h in held(guard, plans, 100, 601.0).values()} == {"removal"}


def test_a_rebuild_does_not_end_what_self_preservation_holds() -> None:
    """Flips that were held before it stay held during it and after it, whatever else has grown meanwhile."""
    guard = Guard(guard_settings())
    panic = held(guard, [taking(0, 0, 80)], 90, 0.0)[TARGETS[0]]
    guard.rebuilt("dc1", 1.0)
    during = held(guard, [taking(0, 1, 80)], 90, 2.0)[TARGETS[0]]
    assert (during.cause, during.removed, during.flips, during.endpoints) == ("rebuilt", True, True, 81)
    after = held(guard, [taking(0, 1, 80)], 1000, 601.0)[TARGETS[0]]
    assert (after.cause, after.removed, after.flips, after.endpoints) == ("panic", False, True, 80)
    assert "81 of 90" in after.reason
    assert "80 of 90" in panic.reason


def test_a_rebuild_may_be_of_one_scope() -> None:
    """Where only what it has is missing; other services of the datacenter lose what they lose."""
    guard = Guard(guard_settings())
    mine = Scope(namespace="team-a")
    guard.rebuilt("dc1", 0.0, "it lists 1 of 9", mine)
    found = held(guard, [taking(0, 1, scope=mine), taking(1, 1)], 100, 1.0)
    assert list(found) == [TARGETS[0]]
    assert "(it lists 1 of 9)" in found[TARGETS[0]].reason
    guard.rebuilt("dc1", 300.0)
    assert "(its index went backwards)" in held(guard, [taking(0, 1, scope=mine)], 100, 301.0)[TARGETS[0]].reason
    assert list(held(guard, [taking(1, 1)], 100, 301.0)) == [TARGETS[1]]


# --------------------------------------------------------------------------- scopes


def test_what_happens_in_one_scope_holds_nothing_in_another() -> None:
    """Thirty of thirty-six in a namespace, and one of six in the next; not even when they are judged together."""
    guard = Guard(guard_settings())
    a, b = Scope(namespace="team-a"), Scope(namespace="team-b")
    assert str(a) == "namespace team-a"
    assert str(Scope(datacenters=("dc1", "dc2"))) == "dc1, dc2"
    ready = {a: 36, b: 6, DC1: 100}
    plans = [taking(0, 30, scope=a), taking(1, 1, before=6, scope=b), taking(2, 40)]
    assert list(guard.admit(plans, lambda scope: ready[scope], 0.0).held) == [TARGETS[0]]
    guard.applied(TARGETS[1])
    guard.applied(TARGETS[2])
    assert TARGETS[2] in held(guard, [taking(2, 11)], 60, 1.0)
    assert [h.target for h in guard.active()] == [TARGETS[0], TARGETS[2]]


def test_a_target_that_changes_its_scope_leaves_its_hold_behind() -> None:
    """A user's Service in place of a rule's, say: what is left of the old scope is not held for it any more."""
    guard = Guard(guard_settings())
    mine = Scope(namespace="default")
    assert len(held(guard, [taking(0, 30), taking(1, 1, before=6)], 36)) == 2
    assert held(guard, [taking(0, 5, before=30, scope=mine)], 36, 1.0) == {}
    assert released(guard, 1.5, 6) == {TARGETS[1]}
    guard.forget(TARGETS[0])
    guard.applied(TARGETS[0])


def test_a_scope_in_which_nothing_is_left_costs_nothing() -> None:
    """Namespaces come and go."""
    guard = Guard(guard_settings())
    for number in range(100):
        held(guard, [taking(number, 1, scope=Scope(namespace=f"n{number}"))], 100)
    released(guard, 30.0)
    assert len(guard._ledgers) == 100
    released(guard, 60.0)
    assert guard._ledgers == {}


def test_a_hold_names_the_reason_that_is_left() -> None:
    """When Consul lists the endpoints again and only calls them unhealthy, it is no removal any more."""
    guard = Guard(guard_settings())
    first = held(guard, [taking(0, 60, 30)], 100, 0.0)[TARGETS[0]]
    assert (first.cause, first.removed, first.flips, first.endpoints) == ("removal", True, True, 90)
    later = held(guard, [taking(0, 0, 80)], 1000, 100.0)[TARGETS[0]]
    assert (later.cause, later.removed, later.flips, later.endpoints) == ("panic", False, True, 80)
    assert "90 of 100 ready endpoints mirrored from dc1 (90 %, the limit is 80 %) would stop being" in later.reason


def test_a_hundred_targets_planned_again_one_by_one_stay_held() -> None:
    """As the running bridge does it after a batch: no sum is counted twice, none gets lost."""
    guard = Guard(guard_settings())
    plans = [taking(n, 3) for n in range(100)]
    assert len(held(guard, plans, 300)) == 100
    for plan in plans:
        assert plan.target in held(guard, [plan], 300, 200.0)
    assert sum(h.endpoints for h in guard.active()) == 300
    assert "300 of 300 ready endpoints mirrored from dc1 (100 %" in guard.active()[0].reason


def test_a_batch_that_was_admitted_is_admitted_again_one_by_one() -> None:
    """Half of all: judged together first, then each when it is written."""
    guard = Guard(guard_settings())
    plans = [taking(n, 5) for n in range(10)]
    assert held(guard, plans, 100) == {}
    for number, plan in enumerate(plans):
        assert held(guard, [plan], 100 - 5 * number, 1.0) == {}
        guard.applied(plan.target)
    assert TARGETS[10] in held(guard, [taking(10, 1)], 50, 1.0)


# --------------------------------------------------------------------------- in general


NOT_HELD = Held(TARGETS[0], Code.OTHER, 0, "", removed=False)
SCOPES = (DC1, Scope(namespace="team-a"), Scope(namespace="team-b"))


@dataclass(frozen=True)
class Step:
    """One thing that happens to a guard. `what` is admit, force, applied, forget, rebuilt or look."""

    what: str
    pause: float
    changes: tuple[tuple[int, int, int, bool, int], ...]
    """(target, lost, flipped, unsubscribed, deselected) of each plan; a target is always of the same scope."""
    ready: tuple[int, ...]


def scope_at(number: int) -> Scope:
    return SCOPES[number % len(SCOPES)]


steps = st.lists(
    st.builds(
        Step,
        what=st.sampled_from(["admit"] * 6 + ["force", "applied", "applied", "forget", "rebuilt", "look"]),
        pause=st.sampled_from([0.0, 0.5, 5.0, 30.0, 61.0, 700.0]),
        changes=st.lists(
            st.tuples(
                st.integers(0, 8),
                st.integers(0, 40),
                st.integers(0, 40),
                st.sampled_from([False] * 7 + [True]),
                st.sampled_from([0, 0, 1, 15, 40]),
            ),
            min_size=1,
            max_size=6,
            unique_by=lambda change: change[0],
        ).map(tuple),
        ready=st.tuples(*(st.integers(0, 120) for _ in SCOPES)),
    ),
    min_size=1,
    max_size=40,
)


def planned_by(change: tuple[int, int, int, bool, int]) -> Plan:
    number, lost, flips, away, dropped = change
    plan = taking(number, lost, flips, before=lost + flips + dropped, ready=0, scope=scope_at(number))
    return replace(plan, unsubscribed=True, removed=0, became_unready=0) if away else replace(plan, deselected=dropped)


def played(history: Sequence[Step], only: Scope, *, alone: bool) -> list[object]:
    """What a guard says about one scope, with the history of all scopes, or with its own `alone`."""
    guard, now, said = Guard(guard_settings()), 0.0, list[object]()
    for step in history:
        now += step.pause
        ready = dict(zip(SCOPES, step.ready, strict=True))
        mine = [c for c in step.changes if not alone or scope_at(c[0]) == only]
        numbers = [c[0] for c in mine]
        if step.what in ("admit", "force"):
            plans = [planned_by(change) for change in mine]
            found = guard.admit(plans, ready.__getitem__, now, force=step.what == "force").held
            said.append({t: h for t, h in found.items() if scope_at(TARGETS.index(t)) == only})
        elif step.what == "rebuilt":
            guard.rebuilt("dc1", now)
        elif step.what == "look":
            named = guard.due(now, ready.__getitem__)
            said.append(sorted(t for t in named if scope_at(TARGETS.index(t)) == only))
        else:
            for number in numbers:
                (guard.applied if step.what == "applied" else guard.forget)(TARGETS[number])
        said.append([h for h in guard.active() if scope_at(TARGETS.index(h.target)) == only])
    return said


@given(history=steps, only=st.sampled_from(SCOPES))
@settings(max_examples=150, deadline=None)
def test_no_history_of_one_scope_changes_anothers_outcome(history: list[Step], only: Scope) -> None:
    """What is held in a scope, why, and when it is released is the same as if the other scopes were not there."""
    assert played(history, only, alone=False) == played(history, only, alone=True)


@given(history=steps, ready=st.tuples(*(st.integers(0, 120) for _ in SCOPES)))
@settings(max_examples=150, deadline=None)
def test_every_hold_whose_window_has_passed_and_whose_losses_are_below_the_thresholds_is_released(
    history: list[Step], ready: tuple[int, ...]
) -> None:
    """Whatever happened before: when nothing more happens, only what is too much by itself is held after a while."""
    guard, now, plans = Guard(guard_settings()), 0.0, dict[Target, Plan]()
    for step in history:
        now += step.pause
        for change in step.changes:
            plan = planned_by(change)
            plans[plan.target] = plan
        together = [plans[TARGETS[c[0]]] for c in step.changes]
        match step.what:
            case "applied":
                for plan in together:
                    guard.applied(plan.target)
            case "forget":
                for plan in together:
                    guard.forget(plan.target)
            case "rebuilt":
                guard.rebuilt("dc1", now)
            case _:
                numbers = dict(zip(SCOPES, step.ready, strict=True))
                guard.admit(together, numbers.__getitem__, now, force=step.what == "force")
    total = dict(zip(SCOPES, ready, strict=True))
    limits = guard_settings()
    again: Iterable[Target] = plans
    for _ in range(int(limits.restore_hold_seconds + 3 * limits.window_seconds) // 10):
        now += 10.0
        for target in sorted(again):
            found = guard.admit([plans[target]], total.__getitem__, now).held.get(target, NOT_HELD)
            guard.applied(target)  # and what was let go is not there any more
            lost, flips = plans[target].removed * found.removed, plans[target].became_unready * found.flips
            dropped = plans[target].deselected * found.deselected
            before = lost + flips + dropped
            plans[target] = replace(
                plans[target], ready_before=before, ready=0, removed=lost, became_unready=flips, deselected=dropped
            )
        again = guard.due(now, total.__getitem__)
    for scope in SCOPES:
        holds = [h for h in guard.active() if plans[h.target].scope == scope]
        lost = sum(plans[h.target].removed + plans[h.target].deselected * h.deselected for h in holds)
        taken = lost + sum(plans[h.target].became_unready for h in holds)
        for hold in holds:
            assert hold.cause in ("removal", "panic")
            assert not hold.removed or (lost >= 10 and lost * 100 > total[scope] * limits.removal_percent)
            assert not hold.flips or (taken >= 10 and taken * 100 > total[scope] * limits.panic_percent)


@given(
    losses=st.lists(st.tuples(st.integers(0, 19), st.integers(1, 30), st.floats(0, 3)), min_size=1, max_size=60),
    split=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_never_more_than_half_within_a_minute(losses: list[tuple[int, int, float]], split: bool) -> None:
    """Whatever the order, the sizes and the times: of what was ready a minute ago, half is still there."""
    guard, ready, now = Guard(guard_settings(removal_minimum=1)), dict.fromkeys(range(20), 30), 0.0
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
    window, plain = _Window(), dict[Target, list[_LossSample]]()
    targets = [Target("default", f"web-{n}") for n in range(4)]
    for now in range(1000):
        target = chance.choice(targets)
        window.forget(now - 60)
        plain = {t: left for t, found in plain.items() if (left := [x for x in found if x.at > now - 60])}
        taken = list(window.pop(target)) if chance.random() < 0.6 else []
        assert taken in ([], plain.get(target, []))
        if taken or target not in plain:
            fresh = [*taken[-2:], _LossSample(now, chance.randrange(3), chance.randrange(3))]
            chance.shuffle(fresh)
            window.put(target, fresh)
            plain[target] = fresh
        left = [x for found in plain.values() for x in found]
        assert (window.removed, window.became_unready) == (
            sum(x.removed for x in left),
            sum(x.became_unready for x in left),
        )
        assert len(window._due) <= 2 * 60 + 2
    window.forget(2000.0)
    assert (window.removed, window.became_unready, window._due, window._samples) == (0, 0, [], {})


def test_what_is_held_because_of_a_rule_counts_for_nothing_else_and_is_looked_at_again() -> None:
    """However few endpoints it is, and beside a loss that Consul shows; it ends when the rule is in doubt no more."""
    guard = Guard(guard_settings(hold_release_seconds=100.0))
    doubted = replace(taking(0, 9), doubt=Reason(Code.SELECTION_HOLDS, rule="live", asks="the tag lvie"))
    found = held(guard, [doubted, taking(1, 9, before=10)], 19)
    assert [(target, h.cause, h.endpoints) for target, h in found.items()] == [(TARGETS[0], Code.HELD_UNMATCHED, 9)]
    assert [h.target for h in guard.active()] == [TARGETS[0]]
    assert released(guard, DOUBT_SECONDS - 1) == frozenset()
    assert released(guard, DOUBT_SECONDS) == {TARGETS[0]}
    assert released(guard, DOUBT_SECONDS + LOOK_SECONDS - 1) == frozenset()
    assert list(held(guard, [doubted], 10, DOUBT_SECONDS + LOOK_SECONDS)) == [TARGETS[0]]
    assert (held(guard, [replace(doubted, unsubscribed=True)], 10, 40.0), guard.active()) == ({}, ())
    assert list(held(guard, [doubted], 10, 50.0)) == [TARGETS[0]]
    assert (held(guard, [doubted], 10, 50.0, force=True), guard.active()) == ({}, ())
    assert list(held(guard, [doubted], 10, 60.0)) == [TARGETS[0]]
    assert released(guard, 160.0) == {TARGETS[0]}
    assert (held(guard, [doubted], 10, 160.0), guard.active()) == ({}, ())
    assert held(guard, [doubted], 10, 161.0) == {}
    held(guard, [taking(0)], 10, 162.0)
    assert list(held(guard, [doubted], 10, 163.0)) == [TARGETS[0]]
    guard.forget(TARGETS[0])
    assert guard.active() == ()
