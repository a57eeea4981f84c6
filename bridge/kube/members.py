"""What the Leases of an owner id tell of its replicas: who is alive, since when, of which installation, what it can do.

election.py says what follows from it. Nothing here writes a Lease.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from bridge.errors import BridgeError, CancelledError
from bridge.kube import objects
from bridge.kube.lease import ElectionSettings, LeaseRecord, Lock

KIND = "consul-bridge/lease"
"""Label of a Lease: whether it is a `member`'s or a `shard`'s."""
SHARDS = "consul-bridge/shard-count"
"""Annotation of a member's Lease: into how many shards it divides the work; absent: it renews shards' Leases itself,
as replicas of before November 2026 do, so it divides the work otherwise."""
SESSION = "consul-bridge/session"
"""Annotation of a shard's Lease: the uid of the member's Lease whose end frees it."""
JOINED = "consul-bridge/joined"
"""Annotation of a member's Lease: the revision at which it joined; absent right after joining (then: its version)."""
INSTALLATION = "consul-bridge/installation"
"""Annotation of every Lease: whose replica wrote it last, as far as that is known."""
YIELDS = "consul-bridge/yields"
"""Annotation of a member's Lease: it will never write, because another installation does."""
PROCESS = "consul-bridge/process"
"""Annotation of a member's Lease: which process of which container it is (`predecessor`), where that can be told."""
CONSUL = "consul-bridge/consul"
"""Annotation of a member's Lease: whether it sees Consul."""
WRITES = "consul-bridge/writes"
"""Annotation of a member's Lease: whether its writes are answered, as far as it has any."""
REMOVED_AFTER = 10
"""After how many durations without any of its replicas an installation counts as removed."""

Annotations = Callable[[], Mapping[str, str]]
"""What a Lease is to say beside its record, asked at each write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ElectionConfig:
    """The settings of the election. `namespace` "": the client's; `duration_seconds` is that of every Lease.

    `installation` is equal in all replicas that belong together, before and after a rollout; "": not known.
    `lasting_seconds`: how long Consul must have been away, or back, without a break, for that to count.
    """

    owner: str = "default"
    installation: str = ""
    namespace: str = ""
    identity: str = ""
    shards: int = 1
    duration_seconds: int = 15
    lasting_seconds: float = 30.0

    @property
    def times(self) -> ElectionSettings:
        """Margins and pauses that fit the duration: at 15 s a margin of 5 s, renewals every 5 s, tries every 0.6 s."""
        part = self.duration_seconds / 15
        return ElectionSettings(margin=5.0 * part, renew=5.0 * part, poll=min(0.6, 0.6 * part))


@dataclass(frozen=True, slots=True)
class LeaseSnapshot:
    """The Leases by name as they were at a revision of the API server, or why they could not be listed."""

    records: Mapping[str, LeaseRecord]
    revision: int = 0
    error: BridgeError | None = None


@dataclass(frozen=True, slots=True)
class LeaseEvent:
    """A Lease that has changed (`record` None: it has gone), or (`name` "") only the revision that a watch got to."""

    name: str
    record: LeaseRecord | None
    revision: int


class Leases(Protocol):
    """The Leases of one owner id."""

    def snapshot(self) -> LeaseSnapshot:
        """All of them, as they are now (not from a cache that may lag)."""

    def watch(self, revision: int) -> AbstractContextManager[Iterator[LeaseEvent]]:
        """What changes after a revision, in order, until the server ends it."""

    def restart_watch(self) -> None:
        """End a watch that is open, so that another one begins."""

    def close_watch(self) -> None:
        """End it for good."""

    def lock(self, name: str, kind: str, identity: str, annotations: Annotations, seen: Observations) -> Lock:
        """A lock on one of them, which reads what was seen, or has it looked at."""


@dataclass(frozen=True, slots=True)
class Member:
    """A replica that is alive. `joined` is a revision of the API server."""

    identity: str
    shards: int
    joined: int
    installation: str = ""
    demoted: bool = False
    consul: str = ""
    writes: str = ""


@dataclass(slots=True)
class _Observation:
    """A record, since when (on our clock) it has looked like this, and whether we have seen it change."""

    record: LeaseRecord
    since: float
    changed: bool


class Observations:
    """The Leases, by a list and the events after it. A record's age counts from when we first knew it like this.

    `shard_names` are the names of the shards' Leases, in order. `feed` may be called from any thread.
    """

    def __init__(
        self, leases: Leases, clock: Callable[[], float], duration_seconds: int, shard_names: Sequence[str]
    ) -> None:
        self._leases = leases
        self._clock = clock
        self._duration_seconds = duration_seconds
        self._shard_names = tuple(shard_names)
        self._seen: dict[str, _Observation] = {}
        self._first_at: float | None = None
        self._events: queue.SimpleQueue[tuple[float, LeaseEvent]] = queue.SimpleQueue()
        self.at = float("-inf")
        """Everything that had happened until then is in `last`."""
        self.looked_at = float("-inf")
        """When all Leases were last asked for."""
        self.last = LeaseSnapshot({})

    def look(self) -> LeaseSnapshot:
        """List all Leases; what failed is in `last`."""
        began = self.looked_at = self._clock()
        try:
            found = self._leases.snapshot()
        except CancelledError:
            raise
        except BridgeError as error:
            self.last = LeaseSnapshot(self.last.records, self.last.revision, error)
            return self.last
        now = self._clock()
        before = self._seen
        self._seen = {name: _observe(before.get(name), record, now) for name, record in found.records.items()}
        self.last = found
        self.known(began)
        return found

    def known(self, at: float) -> None:
        """What `last` has is complete up to this moment."""
        self.at = max(self.at, at)
        if self._first_at is None:
            self._first_at = at

    def feed(self, event: LeaseEvent) -> None:
        """What a watch tells."""
        self._events.put((self._clock(), event))

    def take_events(self) -> None:
        """Carry out what was fed; what the last list showed already is no news."""
        records, revision = dict(self.last.records), self.last.revision
        with contextlib.suppress(queue.Empty):
            while True:
                at, event = self._events.get_nowait()
                if event.revision <= revision:
                    continue
                revision = event.revision
                if event.record is not None:
                    records[event.name] = event.record
                    self._seen[event.name] = _observe(self._seen.get(event.name), event.record, at)
                elif event.name:
                    records.pop(event.name, None)
                    self._seen.pop(event.name, None)
        if revision > self.last.revision:
            self.last = LeaseSnapshot(records, revision, self.last.error)

    def drop(self, name: str) -> None:
        """This Lease was deleted."""
        self.last = LeaseSnapshot(
            {other: record for other, record in self.last.records.items() if other != name},
            self.last.revision,
            self.last.error,
        )
        self._seen.pop(name, None)

    @property
    def seconds(self) -> float:
        """How long we have been looking."""
        return self.at - (self._first_at or 0.0)

    def renewed(self) -> set[str]:
        """Whose Leases were seen to change."""
        return {seen.record.holder for seen in self._seen.values() if seen.changed}

    def holders(self) -> dict[int, str]:
        """Who holds each shard's Lease, where its session has not ended."""
        records = self.last.records
        members = [record for record in records.values() if record.labels.get(KIND) == "member"]
        return {
            n: record.holder
            for n, name in enumerate(self._shard_names)
            if (record := records.get(name)) is not None and any(_in_session(record, member) for member in members)
        }

    def last_writer(self) -> str:
        """The installation that had shard 0 last, "" where that is not known."""
        last = self.last.records.get(self._shard_names[0])
        return last.annotations.get(INSTALLATION, "") if last is not None else ""

    def others(self, identity: str) -> list[Member]:
        """Members but this one: they are alive until a replica has ended their session."""
        members = []
        for record in self.last.records.values():
            if record.labels.get(KIND) != "member" or not record.holder or record.holder == identity:
                continue
            said = record.annotations
            joined = objects.version(said.get(JOINED) or record.resource_version)
            theirs = (said.get(INSTALLATION, ""), YIELDS in said, said.get(CONSUL, ""), said.get(WRITES, ""))
            members.append(Member(record.holder, _number(said.get(SHARDS)), joined, *theirs))
        return members

    def expiring(self, identity: str) -> list[tuple[float, str, LeaseRecord]]:
        """Sessions of others: in how many seconds each is over if it is not renewed, its name, and its record."""
        now = self._clock()
        return [
            (seen.since + max(seen.record.duration_seconds, self._duration_seconds) - now, name, seen.record)
            for name, seen in self._seen.items()
            if seen.record.labels.get(KIND) == "member" and seen.record.holder != identity
        ]


def _observe(before: _Observation | None, record: LeaseRecord, now: float) -> _Observation:
    if before is not None and before.record == record:
        return before
    return _Observation(record, now, before is not None and before.record.uid == record.uid)


def _in_session(record: LeaseRecord, member: LeaseRecord) -> bool:
    """Whether a shard's Lease belongs to the session of this member; one that names none, to its holder's."""
    return (
        record.holder != "" and record.holder == member.holder and record.annotations.get(SESSION) in (None, member.uid)
    )


class _Debounced:
    """A yes or no that changes only when the other answer has lasted."""

    def __init__(self, lasting_seconds: float) -> None:
        self._lasting_seconds = lasting_seconds
        self._since: float | None = None
        self.value: bool | None = None
        self.seen = True

    @property
    def text(self) -> str:
        """What it is as a member publishes it."""
        if self.value is False:
            return "back" if self.seen else "down"
        return "up" if self.seen else "away"

    def see(self, value: bool, now: float) -> None:
        """What is the case now."""
        self.seen = value
        if self.value is None or value == self.value:
            self.value, self._since = value, None
        elif self._since is None:
            self._since = now
        elif now - self._since >= self._lasting_seconds:
            self.value, self._since = value, None


class Abilities:
    """What this replica can do, as it publishes it: whether it sees Consul, and whether its writes are answered."""

    def __init__(self, sees_consul: Callable[[], bool], can_write: Callable[[], bool], lasting_seconds: float) -> None:
        self._sees_consul = sees_consul
        self._can_write = can_write
        self._consul = _Debounced(lasting_seconds)
        self._writes = _Debounced(lasting_seconds)

    def look(self, now: float) -> None:
        """Ask for both."""
        self._consul.see(self._sees_consul(), now)
        self._writes.see(self._can_write(), now)

    @property
    def texts(self) -> tuple[str, str]:
        """In the words of the annotations `CONSUL` and `WRITES`."""
        return self._consul.text, self._writes.text


class Installations:
    """Whether another installation with our owner id `owner` is to write instead of `mine` ("": not known)."""

    def __init__(self, owner: str, mine: str, duration_seconds: int) -> None:
        self._owner = owner
        self._mine = mine
        self._duration_seconds = duration_seconds
        self.demoted = False
        """This replica never writes again: another installation does."""
        self.conflict = ""
        """The message about another installation, "" while there is none."""

    def stand_aside(self, members: Sequence[Member], seen: Observations) -> str:
        """Why this replica is not to write, "" when it may."""
        mine = self._mine
        strangers = self._others(members, seen.renewed()) if mine else ()
        first = next((m.installation for m in members if m.installation and not m.demoted), "")
        charge = (seen.last_writer() or first) if mine else ""
        foreign = charge not in ("", mine)
        if strangers and foreign:
            self.demoted = True
        self.conflict = ""
        if strangers or self.demoted:
            alive = f"replicas of {' and '.join(strangers) or 'another installation'} run, or ran lately,"
            self.conflict = (
                f"{alive} with our owner id {self._owner!r}, and this is {mine}: give each installation an --owner of "
                "its own"
            )
        if self.demoted:
            self.conflict += "; this replica writes nothing, and if the other was removed on purpose: restart this one"
            return "another installation with our owner id writes"
        if foreign and seen.seconds < REMOVED_AFTER * self._duration_seconds:
            return f"{charge} wrote with our owner id before; this is {mine}, and waits in case that it comes back"
        return ""

    def _others(self, members: Sequence[Member], renewed: set[str]) -> list[str]:
        """Other installations whose members were seen to renew: a Lease alone may be what a dead one left behind."""
        found = (m.installation for m in members if m.identity in renewed)
        return sorted(set(found) - {"", self._mine})


def may_have(state: str, holding: bool) -> bool:
    """Whether a member in this state has a share while another is up."""
    return state != "down" and (state != "back" or holding)


def may_serve(member: Member, members: list[Member]) -> bool:
    """Whether no living member that joined before `member` and may write works otherwise."""
    return not member.demoted and not any(
        m.joined < member.joined and not m.demoted and not together(m, member) for m in members
    )


def together(one: Member, other: Member) -> bool:
    """Whether both divide the work alike and belong to one installation, as far as that is known."""
    return one.shards == other.shards and ("" in (one.installation, other.installation)
                                           or one.installation == other.installation)  # fmt: skip


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdecimal() else 0
