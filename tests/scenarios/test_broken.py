"""The scenarios run what every command runs: break a step of it, and the scenarios that tell of the step fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bridge.core import guard, reconcile, translate
from bridge.core.annotated import Changed
from bridge.core.guard import Verdict
from bridge.core.state import ConsulState
from bridge.core.translate import Translation
from tests.scenarios.test_scenarios import SCENARIOS, play

Patch = pytest.MonkeyPatch


def _nothing_is_held(patch: Patch) -> None:
    patch.setattr(guard.Guard, "admit", lambda *_args, **_more: Verdict({}))


def _what_is_held_goes_all_the_same(patch: Patch) -> None:
    patch.setattr(reconcile, "_kept", lambda desired, *_args, **_more: desired)


def _losers_are_silent(patch: Patch) -> None:
    patch.setattr(ConsulState, "rejected", lambda *_args: ())


def _what_users_change_is_charged(patch: Patch) -> None:
    patch.setattr(reconcile, "changed", lambda *_args: Changed.NOTHING)
    patch.setattr(ConsulState, "unsubscribed", lambda *_args, **_more: False)


def _what_is_gone_stays(patch: Patch) -> None:
    patch.setattr(ConsulState, "removable", lambda *_args, **_more: False)


def _translation_says_nothing(patch: Patch) -> None:
    real = translate.translate

    def silent(*args: Any) -> Translation:
        return Translation(real(*args).mirror, (), ())

    patch.setattr(translate, "translate", silent)


@pytest.mark.parametrize(
    ("broken", "tells"),
    [
        (
            _nothing_is_held,
            "protection: Most of a catalog vanishes at once, so it is held, and a new instance is still added",
        ),
        (
            _what_is_held_goes_all_the_same,
            "protection: Everything turns critical at once, so Consul is more likely to be wrong",
        ),
        (_losers_are_silent, "names_and_owners: Of two services that end on one name the one called exactly so has it"),
        (
            _what_users_change_is_charged,
            "protection: A user who asks for another service has nothing held, and neither have other users",
        ),
        (_what_is_gone_stays, "names_and_owners: A service that is gone from Consul goes, its Service last"),
        (
            _translation_says_nothing,
            "addresses_and_ports: Addresses that no pod can reach are skipped, each with its reason",
        ),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_broken_step_turns_scenarios_red(broken: Callable[[Patch], None], tells: str, monkeypatch: Patch) -> None:
    """`tells` is the scenario that a reader would look into first."""
    broken(monkeypatch)
    assert tells in _red()


def _red() -> list[str]:
    red: list[str] = []
    for name, scenario in SCENARIOS.items():
        try:
            play(scenario)
        except AssertionError:
            red.append(name)
    return red
