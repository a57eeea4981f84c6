"""The observer is not blind: with each protection taken away it sees the violation that the protection prevents."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.chaos import changes, run
from tests.support.chaos.faults import READY, Fault, catalogue
from tests.support.chaos.harness import FOREIGN, USER, Harness
from tests.support.chaos.run import Campaign
from tests.support.lab import LabError

pytestmark = [pytest.mark.lab, pytest.mark.slow]


class Nothing(Fault):
    """No fault: only changes."""

    name = "nothing"
    what = "nothing"
    shows = ()
    readiness = READY
    new_process = False

    def inject(self, harness: Harness, rng: random.Random) -> None:
        """Nothing."""

    def heal(self, harness: Harness) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    """Servers that the tests of this module share; each brings a bridge of its own."""
    try:
        with Harness(seed=11, services=6) as made:
            yield made
    except LabError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no servers: {error}")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is broken for good need not be waited for."""
    monkeypatch.setattr(run, "GIVE_UP_SECONDS", 6.0)
    monkeypatch.setattr(run, "SIGNS_SECONDS", 4.0)
    monkeypatch.setattr(run, "RETURN_SECONDS", 1.0)


@contextmanager
def unprotected(
    harness: Harness, launcher: Sequence[str] = (), settings: Mapping[str, Any] | None = None
) -> Iterator[Campaign]:
    """A campaign with a bridge that lacks something; afterwards the harness has a whole one again, and all agrees."""
    harness.configure(settings or {})
    harness.replace_bridge(launcher)
    campaign = Campaign(harness, print)
    campaign.begin()
    try:
        yield campaign
    finally:
        harness.fleet.disarm()
        harness.configure({})
        harness.replace_bridge()
        whole = campaign.agree()
        harness.observer.violations.clear()
    assert whole, "what the next test sees would be left over from this one"


def seen(campaign: Campaign, fault: Fault) -> set[str]:
    """Numbers of the invariants that the observer found violated."""
    return {v.invariant for v in campaign.play(fault, random.Random(1)).violations}


def test_missing_endpoints_are_seen_when_the_guard_is_off(harness: Harness) -> None:
    """(i): without restore hold and removal guard, a Consul that was rebuilt empty takes everything away."""
    off = {
        "guard": {"restore_hold": "0s", "removal_threshold": 0, "panic_threshold": 0},
        "run": {"removal_grace_period": "0s"},
    }
    with unprotected(harness, settings=off) as campaign:
        assert "i" in seen(campaign, catalogue()["consul-empty"]())


def test_missing_endpoints_are_seen_when_unknown_is_taken_for_empty(harness: Harness) -> None:
    """(i): without the difference between Unknown and empty, a Consul that was killed takes everything away."""
    off = {"guard": {"removal_threshold": 0, "panic_threshold": 0}}
    with unprotected(harness, ("--without", "treat_errors_as_empty"), settings=off) as campaign:
        assert "i" in seen(campaign, catalogue()["consul-500"]())


def test_foreign_writes_are_seen(harness: Harness) -> None:
    """(ii): a bridge that does not look whose an object is writes to those that others made for the same names."""
    with unprotected(harness, ("--without", "ignore_ownership")) as campaign:
        campaign.play(Nothing(), random.Random(1))
        found = [v.what for v in harness.observer.violations if v.invariant == "ii"]
        harness.bridge.stop()
        harness.put_foreign()
        harness.observer.look_again()
    assert {"audit" if "the bridge did" in what else "version" for what in found} == {"audit", "version"}, USER
    assert {name for name in FOREIGN if any(name in what for what in found)} == set(FOREIGN)


def test_disagreement_is_seen(harness: Harness) -> None:
    """(iii): a bridge that does not learn what Consul says after its first pass."""
    with unprotected(harness, ("--without", "drop_events")) as campaign:
        assert "iii" in seen(campaign, Nothing())


@pytest.mark.parametrize(("kind", "lacking"), [("twin", "pairing"), ("case", "comparing")])
def test_what_changes_on_vms_is_compared(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, kind: str, lacking: str
) -> None:
    """(iii): a second instance on a VM, with a port of its own, and a node that comes back in other case."""
    with unprotected(harness, ("--without", lacking)) as campaign, monkeypatch.context() as patch:
        patch.setattr(changes, "WEIGHTS", {kind: 1})
        assert "iii" in seen(campaign, Nothing())


def test_writes_in_the_steady_state_are_seen(harness: Harness) -> None:
    """(iv): a bridge that writes again what is right already."""
    with unprotected(harness, ("--without", "always_write")) as campaign:
        assert "iv" in seen(campaign, Nothing())


def test_growth_is_seen(harness: Harness) -> None:
    """(v): a bridge that leaves a thread and a socket behind with each plan; a few of them are within the bounds."""
    with unprotected(harness, ("--without", "leak_resources")) as campaign:
        assert any("v" in seen(campaign, catalogue()["consul-500"]()) for _ in range(4))


def test_silence_is_seen(harness: Harness) -> None:
    """(vi): a bridge that always says that it is ready, and tells no trouble."""
    with unprotected(harness, ("--without", "always_ready")) as campaign:
        assert "vi" in seen(campaign, catalogue()["consul-500"]())


def test_what_one_tenant_does_to_another_is_seen(harness: Harness) -> None:
    """(vii): a guard that adds up over all namespaces holds what really leaves another tenant's Service.

    In every round, whatever its fault is; and when a tenant does their worst.
    """
    with unprotected(harness, ("--without", "sharing")) as campaign:
        assert "vii" in seen(campaign, Nothing())
        assert "vii" in seen(campaign, catalogue()["tenant-misbehaves"]())
