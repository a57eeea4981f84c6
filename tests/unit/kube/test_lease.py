"""Never two who may write: electors with clocks of their own, a server that loses answers, processes that pause."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import PermanentError, StaleError, TransientError
from bridge.kube.client import Response
from bridge.kube.lease import DRAINING_SECONDS, ElectionSettings, LeaderElector, LeaseLock, LeaseRecord, boot_clock

DURATION = 15
SETTINGS = ElectionSettings(margin=5.0, renew=2.0, poll=0.6)


@dataclass
class Server:
    """One Lease in an API server's memory."""

    record: LeaseRecord | None = None
    version: int = 0
    trouble: str = ""
    """What happens to the next requests: "" nothing, "down" before the server sees it, "lost" after it was done."""

    def put(self, fresh: LeaseRecord, *, seen: str | None) -> LeaseRecord:
        """Store when `seen` is the version held (None: nothing is held)."""
        if self.trouble == "down":
            raise TransientError("no connection")
        if (self.record.resource_version if self.record else None) != seen:
            raise StaleError("another client was quicker")
        self.version += 1
        self.record = replace(fresh, resource_version=str(self.version))
        if self.trouble == "lost":
            raise TransientError("connection reset")
        return self.record


@dataclass
class MemoryLock:
    """A candidate's lock on it."""

    server: Server
    identity: str
    name: str = "bridge"
    duration_seconds: int = DURATION

    def read(self, *, cached: bool = False) -> LeaseRecord | None:
        """The record."""
        if self.server.trouble:
            raise TransientError("no connection")
        return self.server.record

    def acquire(self, seen: LeaseRecord | None) -> LeaseRecord:
        """Take it."""
        count = self.server.version
        fresh = LeaseRecord(self.identity, self.duration_seconds, "", str(count), 0, "")
        return self.server.put(fresh, seen=seen.resource_version if seen else None)

    def renew(self, held: LeaseRecord) -> LeaseRecord:
        """Renew it."""
        return self.server.put(replace(held, renew_time=str(self.server.version)), seen=held.resource_version)

    def release(self, held: LeaseRecord) -> None:
        """Free it."""
        self.server.put(replace(held, holder="", duration_seconds=1), seen=held.resource_version)


@dataclass
class Candidate:
    """An elector whose clock shows something else than everybody's."""

    server: Server
    now: Callable[[], float]
    name: str
    skew: float = 0.0
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lock = MemoryLock(self.server, self.name)
        self.elector = LeaderElector(
            self.lock,
            SETTINGS,
            on_started=lambda: self.told.append("started"),
            on_stopped=lambda: self.told.append("stopped"),
            clock=lambda: self.now() + self.skew,
            spread=lambda low, high: (low + high) / 2,
        )


@pytest.fixture
def now() -> list[float]:
    """The time of the world."""
    return [1000.0]


def candidates(now: list[float], count: int = 2) -> tuple[Server, list[Candidate]]:
    """Candidates for one Lease, their clocks hours apart."""
    server = Server()
    return server, [Candidate(server, lambda: now[0], f"c{n}", skew=n * 7777.0 - 5000) for n in range(count)]


def test_the_first_takes_a_lease_that_nobody_holds(now: list[float]) -> None:
    """And may write at once; the second may not."""
    _, (one, two) = candidates(now)
    assert one.elector.step() == pytest.approx(SETTINGS.renew)
    two.elector.step()
    assert (one.elector.may_write(), two.elector.may_write()) == (True, False)
    assert (one.told, two.told) == (["started"], [])
    assert two.elector.leader == "c0"


def test_a_renewed_lease_is_never_taken(now: list[float]) -> None:
    """Renewals every 2 s for a minute: the standby looks on."""
    _, (one, two) = candidates(now)
    for _ in range(30):
        one.elector.step()
        two.elector.step()
        now[0] += 2
        assert (one.elector.may_write(), two.elector.may_write()) == (True, False)


def test_a_silent_leader_stops_writing_before_anyone_can_take_over(now: list[float]) -> None:
    """No step runs any more (SIGSTOP): at duration - margin it may not write; at duration another takes it."""
    _, (one, two) = candidates(now)
    one.elector.step()
    two.elector.step()
    began = now[0]
    while not two.elector.may_write():
        if now[0] - began >= DURATION - SETTINGS.margin:
            assert not one.elector.may_write()
        now[0] += 0.3
        two.elector.step()
    assert now[0] - began >= DURATION
    assert now[0] - began < DURATION + 2
    assert one.elector.leading  # it does not know yet
    one.elector.step()
    assert (one.elector.leading, one.told) == (False, ["started", "stopped"])
    assert one.elector.leader == "c1"


def test_a_leader_without_a_server_stops_by_itself(now: list[float]) -> None:
    """Renewals fail: at the fence the right to write ends, and leadership; with the server back it leads again."""
    server, (one, _) = candidates(now)
    one.elector.step()
    server.trouble = "down"
    for _ in range(9):
        now[0] += 1
        one.elector.step()
    assert (one.elector.may_write(), one.elector.leading) == (True, True)
    assert "no connection" in str(one.elector.error)
    now[0] += 1
    assert not one.elector.may_write()
    one.elector.step()
    assert (one.elector.leading, one.told) == (False, ["started", "stopped"])
    server.trouble = ""
    one.elector.step()
    assert (one.elector.may_write(), one.elector.error) == (True, None)
    assert one.told == ["started", "stopped", "started"]


def test_a_renewal_whose_answer_was_lost_is_found_to_be_ours(now: list[float]) -> None:
    """409 at the next one: the record names us, so we go on."""
    server, (one, _) = candidates(now)
    one.elector.step()
    server.trouble = "lost"
    now[0] += 2
    one.elector.step()
    server.trouble = ""
    now[0] += 2
    one.elector.step()
    assert one.elector.may_write()
    assert one.told == ["started"]


def test_an_acquisition_whose_answer_was_lost_is_found_to_be_ours(now: list[float]) -> None:
    """The record names us although the answer was lost: taken at the next look, without waiting for its end."""
    server, (one, _) = candidates(now)
    server.trouble = "lost"
    one.elector.step()
    assert not one.elector.may_write()
    server.trouble = ""
    one.elector.step()
    assert one.elector.may_write()


def test_a_lease_taken_from_us_is_lost_at_once(now: list[float]) -> None:
    """A user edited the holder by hand."""
    server, (one, _) = candidates(now)
    one.elector.step()
    assert server.record is not None
    server.put(replace(server.record, holder="a user"), seen=server.record.resource_version)
    now[0] += 2
    one.elector.step()
    assert (one.elector.may_write(), one.told) == (False, ["started", "stopped"])


def test_a_deleted_lease_is_made_again_by_somebody(now: list[float]) -> None:
    """kubectl delete lease: the leader notices and campaigns again."""
    server, (one, _) = candidates(now)
    one.elector.step()
    server.record = None
    now[0] += 2
    one.elector.step()
    assert not one.elector.may_write()
    one.elector.step()
    assert one.elector.may_write()


def test_a_released_lease_is_taken_at_the_next_look(now: list[float]) -> None:
    """resign() frees it: no waiting for its end, and the one who stopped may write no more."""
    _, (one, two) = candidates(now)
    one.elector.step()
    two.elector.step()
    assert one.elector.resign()
    assert (one.elector.may_write(), one.told) == (False, ["started", "stopped"])
    pause = two.elector.step()
    assert two.elector.may_write()
    assert pause <= 1.2 * SETTINGS.renew


def test_a_standby_looks_often_enough_and_not_too_late(now: list[float]) -> None:
    """Every poll, and exactly when the record runs out."""
    _, (one, two) = candidates(now)
    one.elector.step()
    assert two.elector.step() == pytest.approx(SETTINGS.poll)
    now[0] += DURATION - 0.2
    assert two.elector.step() == pytest.approx(0.2)


def test_a_write_is_waited_for_until_others_can_have_the_lease_and_no_longer(now: list[float]) -> None:
    """The last one that may begin has the margin; after a renewal it is more again."""
    _, (one, two) = candidates(now)
    assert one.elector.lease_remaining() == 0.0
    one.elector.step()
    two.elector.step()
    assert one.elector.lease_remaining() == pytest.approx(DURATION)
    assert two.elector.lease_remaining() == 0.0
    now[0] += DURATION - SETTINGS.margin - 0.25
    assert one.elector.lease_remaining() == pytest.approx(SETTINGS.margin + 0.25)
    one.elector.step()
    assert one.elector.lease_remaining() == pytest.approx(DURATION)
    now[0] += DURATION - SETTINGS.margin
    assert one.elector.lease_remaining() == 0.0


def test_a_release_that_fails_lets_the_lease_run_out(now: list[float]) -> None:
    """The server is away at the end: no exception, the error is kept."""
    server, (one, _) = candidates(now)
    one.elector.step()
    server.trouble = "down"
    assert not one.elector.resign()
    assert "no connection" in str(one.elector.error)
    assert not one.elector.may_write()


def test_a_forbidden_lease_is_said_and_tried_again(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """403: standby forever, with the reason."""
    _, (one, _) = candidates(now)

    def forbidden(*, cached: bool = False) -> LeaseRecord | None:
        raise PermanentError("forbids us to get leases")

    monkeypatch.setattr(one.lock, "read", forbidden)
    assert one.elector.step() == pytest.approx(SETTINGS.renew)
    assert "forbids us to get leases" in str(one.elector.error)


def test_a_candidate_that_was_too_slow_watches_the_new_record_from_its_start(now: list[float]) -> None:
    """Two see the same free record; one takes it, the other waits the whole duration again."""
    server, (one, two) = candidates(now)
    server.record = LeaseRecord("", 1, "", "", 3, "77")
    seen = server.record
    one.elector.step()
    two.lock.read = lambda *, cached=False: seen  # type: ignore[method-assign]  # a look that is a moment old
    two.elector.step()
    assert (one.elector.may_write(), two.elector.may_write()) == (True, False)


def test_a_lease_that_is_not_wanted_is_neither_taken_nor_kept(now: list[float]) -> None:
    """Given up only when the last write under it has ended, and no write begins meanwhile."""
    server = Server()
    wanted, inside = [False], [1]
    lock = MemoryLock(server, "one")
    elector = LeaderElector(
        lock, SETTINGS, wanted=lambda: wanted[0], drained=lambda: inside[0] == 0, clock=lambda: now[0]
    )
    elector.step()
    assert server.record is None
    wanted[0] = True
    elector.step()
    assert elector.may_write()
    wanted[0] = False
    assert elector.step() == pytest.approx(DRAINING_SECONDS)
    assert (elector.may_write(), elector.leading) == (False, True)
    before = server.version
    elector.step()
    assert server.version == before  # not renewed twenty times a second
    now[0] += 2.5
    elector.step()
    assert (server.version, elector.leading) == (before + 1, True)  # not to be taken while a write is under way
    inside[0] = 0
    elector.step()
    assert (elector.leading, server.record.holder) == (False, "")  # type: ignore[attr-defined]  # it was made above
    elector.step()
    assert not elector.leading
    wanted[0] = True
    elector.step()
    assert elector.may_write()


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
    """A margin of 5 s and renewals every 2 s need more than 8 s."""
    with pytest.raises(ValueError, match="leaves no room"):
        LeaderElector(MemoryLock(Server(), "one", duration_seconds=8), SETTINGS)


def test_the_default_clock_counts_through_suspension() -> None:
    """CLOCK_BOOTTIME: a laptop that slept knows that its lease is over."""
    assert boot_clock() <= boot_clock()


steps = st.lists(
    st.tuples(st.integers(0, 2), st.floats(0.0, 6.0), st.sampled_from(["", "", "", "", "down", "lost", "stop"])),
    min_size=10,
    max_size=120,
)


@settings(max_examples=400, deadline=None)
@given(steps=steps)
def test_never_two_may_write(steps: list[tuple[int, float, str]]) -> None:
    """Any pauses, any order, lost answers, an absent server, clean stops: at every moment at most one may write.

    Nor may anyone begin while what another began may still be under way.
    """
    now = [0.0]
    server, group = candidates(now, 3)
    busy = dict.fromkeys(range(3), 0.0)

    def look() -> None:
        writers = [n for n, c in enumerate(group) if c.elector.may_write()]
        assert len(writers) <= 1
        for n in writers:
            assert all(until <= now[0] + 1e-6 for other, until in busy.items() if other != n)
            busy[n] = now[0] + group[n].elector.lease_remaining()

    for index, pause, trouble in steps:
        for _ in range(4):
            now[0] += pause / 4
            look()
        candidate = group[index]
        server.trouble = trouble if trouble != "stop" else ""
        if trouble == "stop":
            candidate.elector.resign()
            busy[index] = 0.0  # a replica that resigns has waited for its writes
            fresh = Candidate(server, lambda: now[0], f"{candidate.name}+", skew=candidate.skew + 99)
            group[index] = fresh
        else:
            candidate.elector.step()
        look()
