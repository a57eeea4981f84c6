"""The Lease that a process keeps for itself: when it may count on it, and what it makes of odd answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from bridge.errors import PermanentError, StaleError, ThrottledError, TransientError
from bridge.kube.client import Response
from bridge.kube.lease import ElectionSettings, Hold, LeaseLock, LeaseRecord, Session, boot_clock

DURATION = 15
SETTINGS = ElectionSettings(margin=5.0, renew=5.0, poll=0.6)


@dataclass
class MemoryLock:
    """One Lease in an API server's memory."""

    identity: str = "one"
    name: str = "bridge"
    duration_seconds: int = DURATION
    record: LeaseRecord | None = None
    version: int = 0
    trouble: Exception | None = None
    """What the next requests meet before the server sees them."""
    lost: bool = False
    """They are carried out, and the answer is lost."""

    def _put(self, fresh: LeaseRecord, seen: LeaseRecord | None) -> LeaseRecord:
        if self.trouble is not None:
            raise self.trouble
        if (self.record.resource_version if self.record else None) != (seen.resource_version if seen else None):
            raise StaleError("another was quicker")
        self.version += 1
        uid = self.record.uid if self.record is not None else f"uid-{self.version}"
        self.record = replace(fresh, resource_version=str(self.version), uid=uid)
        if self.lost:
            raise TransientError("connection reset")
        return self.record

    def read(self, *, cached: bool = False) -> LeaseRecord | None:
        """The record."""
        if self.trouble is not None and not cached:
            raise self.trouble
        return self.record

    def acquire(self, seen: LeaseRecord | None) -> LeaseRecord:
        """Take it."""
        return self._put(LeaseRecord(self.identity, self.duration_seconds, "", "", 0, ""), seen)

    def renew(self, held: LeaseRecord) -> LeaseRecord:
        """Renew it."""
        return self._put(held, held)

    def release(self, held: LeaseRecord) -> None:
        """Free it."""
        self._put(replace(held, holder="", duration_seconds=1), held)

    def remove(self, held: LeaseRecord) -> None:
        """Delete it."""
        self._put(held, held)
        self.record = None


class Process:
    """A session on it, with a clock."""

    def __init__(self, duration_seconds: int = DURATION) -> None:
        self.now = 1000.0
        self.ended = 0
        self.lock = MemoryLock(duration_seconds=duration_seconds)
        self.session = Session(
            self.lock,
            SETTINGS,
            on_ended=self._end,
            clock=lambda: self.now,
            spread=lambda low, high: (low + high) / 2,
        )

    def _end(self) -> None:
        self.ended += 1

    @property
    def may_write(self) -> bool:
        """Whether it may."""
        return self.session.may_write(self.now)

    def step(self, seconds: float = 0.0) -> None:
        """The session's next, some time later."""
        self.now += seconds
        self.session.step()


@pytest.fixture
def process() -> Process:
    """One that has its session."""
    made = Process()
    made.session.step()
    assert made.may_write
    return made


def test_a_session_is_renewed_every_third_of_its_duration(process: Process) -> None:
    """And counts from the moment before the renewal was sent."""
    assert (process.session.seconds, process.session.until - process.now) == (SETTINGS.renew, DURATION)
    process.step(5)
    assert (process.session.until - process.now, process.session.joined, process.lock.version) == (DURATION, 1, 2)


def test_a_silent_process_stops_writing_before_anyone_can_end_its_session(process: Process) -> None:
    """No step runs any more (SIGSTOP): at duration - margin it may not write; when it runs again it knows."""
    process.now += DURATION - SETTINGS.margin
    assert (process.may_write, process.session.held is not None) == (False, True)
    process.lock.trouble = TransientError("no connection")
    process.step()
    assert (process.session.held, process.session.uid, process.ended) == (None, "", 1)


def test_a_process_without_a_server_stops_by_itself(process: Process) -> None:
    """Renewals fail: at the fence the right to write ends; with the server back there is a session again."""
    process.lock.trouble = TransientError("no connection")
    for _ in range(9):
        process.step(1)
    assert (process.may_write, process.ended, round(process.session.seconds, 6)) == (True, 0, SETTINGS.poll)
    assert "no connection" in str(process.session.error)
    process.step(1)
    assert (process.may_write, process.ended) == (False, 1)
    process.lock.trouble = None
    process.step(1)
    assert (process.may_write, process.session.error, process.session.joined) == (True, None, 2)


def test_what_was_done_and_not_answered_is_found_to_be_ours(process: Process) -> None:
    """409 at the next renewal: the record names us, so we go on. So it is with the first request of all."""
    process.lock.lost = True
    process.step(2)
    process.lock.lost = False
    process.step(2)
    assert (process.may_write, process.ended) == (True, 0)
    other = Process()
    other.lock.lost = True
    other.step()
    assert not other.may_write
    other.lock.lost = False
    other.step()
    assert other.may_write


@pytest.mark.parametrize("how", ["edited", "deleted", "made again"])
def test_a_session_that_was_ended_is_lost_at_the_next_renewal(process: Process, how: str) -> None:
    """By another replica, or by hand; a Lease of our name that another request made is another session."""
    found = process.lock.record
    assert found is not None
    changes = {"edited": replace(found, holder="a user", resource_version="7"), "deleted": None}
    process.lock.record = changes.get(how, replace(found, uid="another", resource_version="7"))
    process.step(2)
    assert (process.may_write, process.ended) == (False, 1)


def test_a_replica_that_ends_leaves_no_lease_and_waits_for_no_server(process: Process) -> None:
    """It is deleted; where that fails it runs out by itself, and no exception is raised."""
    other = Process()
    other.step()
    other.lock.trouble = TransientError("no connection")
    for ending in (process, other):
        ending.session.remove()
        assert (ending.may_write, ending.ended) == (False, 1)
    assert (process.lock.record, "no connection" in str(other.session.error)) == (None, True)


@pytest.mark.parametrize(
    ("error", "pause"),
    [
        (PermanentError("forbids us to create leases"), SETTINGS.renew),
        (ThrottledError("be slower", retry_after_seconds=3.0), 3.0),
        (TransientError("no connection"), SETTINGS.poll),
    ],
)
def test_what_cannot_be_taken_is_tried_again(error: Exception, pause: float) -> None:
    """403: slowly; where the server says when: then."""
    process = Process()
    process.lock.trouble = error
    process.step()
    assert process.session.seconds == pytest.approx(pause)
    assert process.session.error is error


def test_a_hold_counts_from_what_is_known_of_it() -> None:
    """Taken, confirmed by what the Leases show, and lost when they show something else; an older view says nothing."""
    lock, now = MemoryLock(), [0.0]
    hold = Hold(lock, SETTINGS, clock=lambda: now[0])
    assert (hold.take(None), hold.may_write(0.0), hold.until) == (True, True, 15.0)
    held = hold.held
    assert held is not None
    now[0] = 9.0
    hold.confirm(None, 0, 9.0)
    assert hold.until == 15.0
    hold.confirm(held, 1, 8.0)
    assert (hold.until, hold.may_write(17.9), hold.may_write(18.0)) == (23.0, True, False)
    hold.releasing = True
    assert not hold.may_write(9.0)
    hold.releasing = False
    hold.confirm(replace(held, holder="another", resource_version="2"), 2, 9.0)
    assert (hold.held, hold.may_write(9.0)) == (None, False)
    assert not hold.take(None)  # another was quicker
    lock.trouble = PermanentError("not the bridge's")
    assert (hold.take(None), hold.due, str(hold.error)) == (True, False, "not the bridge's")
    now[0] += SETTINGS.renew
    assert hold.due


@pytest.mark.parametrize(("identity", "duration"), [("", 15), ("one", 0)])
def test_a_lock_without_identity_or_duration_is_refused(identity: str, duration: int) -> None:
    """Two nameless processes would believe each other's Lease to be theirs."""
    nobody: Any = None
    with pytest.raises(ValueError, match="identity"):
        LeaseLock(nobody, "default", "bridge", identity, duration_seconds=duration)


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[]"])
def test_an_odd_answer_is_trouble_and_no_lease(body: bytes) -> None:
    """Neither held nor free."""

    class Odd:
        def request(self, *_: object, **__: object) -> Response:
            return Response(200, {}, body)

    client: Any = Odd()
    with pytest.raises(TransientError):
        LeaseLock(client, "default", "bridge", "one").read()


def test_times_that_leave_no_room_are_refused() -> None:
    """A margin of 5 s and renewals every 5 s need 15 s."""
    with pytest.raises(ValueError, match="leaves no room"):
        Process(duration_seconds=14)


def test_the_default_clock_counts_through_suspension() -> None:
    """CLOCK_BOOTTIME: a laptop that slept knows that its lease is over."""
    assert boot_clock() <= boot_clock()
