"""What the page remembers: changes in words, series of a quarter of an hour, and no more memory than that."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bridge.controller.state_changes import StateChanges
from bridge.core.model import Action, Change, Conflict, Held, Kind, Meta, Plan, Query, Target
from bridge.core.reasons import Code
from bridge.errors import TransientError
from bridge.report import Failure, Outcome, Report
from bridge.telemetry.events import LeadingChanged, ServerWarning
from bridge.telemetry.history import BUCKETS, CHANGES, History
from tests.unit.core.builders import said

TARGET = Target("storage", "radosgw")
META = Meta(kind=Kind.ENDPOINTS, namespace="storage", name="radosgw", uid="u", resource_version="1", owner="default")


class Clock:
    """A wall clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """At a million seconds."""
    return Clock()


@pytest.fixture
def history(clock: Clock) -> History:
    """Nothing has happened."""
    return History(clock)


def change(action: Action = Action.UPDATE, kind: Kind = Kind.ENDPOINTS, reason: str = "") -> Change:
    """One write."""
    existing = None if action is Action.CREATE else META
    return Change(
        action=action,
        kind=kind,
        target=TARGET,
        name="radosgw",
        body=None,
        existing=existing,
        reason=said(reason) if reason else None,
    )


def outcome(*applied: Change, failed: Change | None = None, **plan: Any) -> Outcome:
    """What resulted from a plan for radosgw."""
    changes = (*applied, *((failed,) if failed is not None else ()))
    failures = (Failure(failed, TransientError("refused")),) if failed is not None else ()
    return Outcome(Plan(TARGET, (Query("dc1", "radosgw"),), changes, **plan), applied, failures)


def texts(history: History) -> list[tuple[str, str]]:
    """Tone and text of all entries, newest first."""
    return [(e.severity, e.text) for e in history.changes()]


@pytest.mark.parametrize(
    ("came", "text"),
    [
        (
            outcome(change(Action.CREATE, Kind.SERVICE), change(Action.CREATE), ready=12),
            ("plain", "created: 12 ready"),
        ),
        (
            outcome(change(), ready=11, not_ready=1, ready_before=12),
            ("plain", "11 ready, 1 not ready (was 12 ready)"),
        ),
        (outcome(change(), ready=2, ready_before=2), ("plain", "2 ready (update Endpoints)")),
        (
            outcome(change(Action.DELETE, reason="its service is gone from Consul"), ready_before=1),
            ("plain", "removed: its service is gone from Consul"),
        ),
        (outcome(failed=change()), ("bad", "update of Endpoints failed: refused")),
        (
            outcome(conflicts=(Conflict(TARGET, Kind.SERVICE, said("it has a selector")),)),
            ("bad", "conflict: Service: it has a selector"),
        ),
    ],
)
def test_an_outcome_in_words(history: History, came: Outcome, text: tuple[str, str]) -> None:
    """What was written, how many are ready, and what was before."""
    history.outcome(came, None)
    assert texts(history) == [text]
    assert (history.changes()[0].service, history.changes()[0].datacenter) == ("radosgw", "dc1")


def test_the_same_conflict_is_reported_once(history: History) -> None:
    """And again only when it has gone meanwhile."""
    conflict = outcome(conflicts=(Conflict(TARGET, Kind.SERVICE, said("it has a selector")),))
    for came in (conflict, conflict, outcome(change(), ready=1), conflict):
        history.outcome(came, None)
    assert [tone for tone, _ in texts(history)] == ["bad", "plain", "bad"]


def test_states_are_reported_when_they_change(history: History) -> None:
    """That something answers the first time is no news; that it does not, is."""
    states = StateChanges(history)
    for up in (True, True, False, False, True):
        states.consul("dc1", up, "" if up else "refused")
        states.kubernetes(up, "" if up else "refused")
    assert texts(history) == [
        ("good", "Kubernetes answers again"),
        ("good", "Consul, datacenter dc1, answers again"),
        ("bad", "Kubernetes cannot be used: refused"),
        ("bad", "Consul, datacenter dc1, cannot be asked: refused"),
    ]


def test_credentials_and_warnings_of_kubernetes_are_reported_once(history: History) -> None:
    """When they cannot be renewed and when they are again; a warning as it comes."""
    states = StateChanges(history)
    history.changed(ServerWarning("old field"))
    for trouble in ("", "the plugin hangs", "the plugin hangs", ""):
        states.credentials(trouble)
    assert texts(history) == [
        ("good", "Kubernetes credentials are renewed again"),
        ("bad", "Kubernetes credentials cannot be renewed: the plugin hangs"),
        ("plain", "Kubernetes warns: old field"),
    ]


def test_a_conflicting_writer_is_an_entry_when_it_is_detected_and_when_it_has_gone(history: History) -> None:
    """Its words change while it goes on: that is no news."""
    states = StateChanges(history)
    for reason in ("", "another process writes at a/b", "another process writes at a/c", "", ""):
        states.conflicting_writer(reason)
    assert texts(history) == [
        ("good", "conflicting writer gone"),
        ("bad", "conflicting writer detected: another process writes at a/b"),
    ]


def test_holds_are_reported_when_they_begin_and_end(history: History) -> None:
    """Not again and again."""
    states = StateChanges(history)
    held = Held(TARGET, Code.HELD_REMOVAL, 12, "12 would vanish")
    for now in ((held,), (held,), ()):
        states.held(now)
    assert texts(history) == [
        ("good", "the hold has ended"),
        ("bad", "held: 12 ready endpoints kept: too many would vanish at once"),
    ]


def test_a_change_of_the_leader_is_reported(history: History) -> None:
    """All, some, none."""
    for shards, of in ((frozenset[int](), 1), (frozenset({0}), 1), (frozenset({0, 2}), 4)):
        history.changed(LeadingChanged(shards, of))
    assert [text for _, text in reversed(texts(history))] == [
        "this replica stands by: others write", "this replica leads: it writes", "this replica leads 2 of 4 shards",
    ]  # fmt: skip


def test_series_cover_a_quarter_of_an_hour(history: History, clock: Clock) -> None:
    """Ten seconds each: writes are added up, of lags the longest counts; what is older is forgotten."""
    history.outcome(outcome(change(), change(), ready=1), 0.010)
    history.outcome(outcome(change(), ready=1), 0.030)
    history.outcome(outcome(change(), ready=1), None)
    clock.now += 20
    history.outcome(outcome(change(), ready=1), 0.005)
    series = history.series()
    assert (series.writes[-3:], series.lag_seconds[-3:]) == ((4, 0, 1), (0.030, None, 0.005))
    assert (series.last_lag_seconds, series.last_lag_at) == (0.005, clock.now)
    assert (len(series.writes), len(series.lag_seconds)) == (BUCKETS, BUCKETS)
    clock.now += 1000
    assert (sum(history.series().writes), history.series().last_lag_seconds) == (0, 0.005)


def test_a_failed_write_has_no_lag(history: History) -> None:
    """It has not arrived."""
    history.outcome(outcome(change(), failed=change(), ready=1), 0.010)
    assert history.series().last_lag_seconds is None


def test_memory_does_not_grow(history: History) -> None:
    """Two hundred changes, ninety buckets, reasons of bounded length."""
    states = StateChanges(history)
    for _ in range(CHANGES + 50):
        states.kubernetes(False, "x" * 100_000)
        states.kubernetes(True, "")
    assert len(history.changes()) == CHANGES
    assert max(len(text) for _, text in texts(history)) <= 500
    assert [e.number for e in history.changes(2)] == [500, 499]


def test_what_is_remembered_goes_into_json(history: History) -> None:
    """Whatever is in the text."""
    states = StateChanges(history)
    states.kubernetes(False, "line\n\ndata: forged\u2028")
    history.pass_done(1.0, Report())
    (only,) = history.changes()
    assert json.loads(json.dumps(only.to_json()))["text"] == "Kubernetes cannot be used: line\n\ndata: forged\u2028"
    assert json.dumps(history.series().to_json())
