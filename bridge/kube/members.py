"""What the Leases of an owner id tell of its replicas: who is alive, since when, of which installation, what it can do.

election.py says what follows from it. Nothing here writes a Lease.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from bridge.errors import BridgeError, CancelledError
from bridge.kube import objects
from bridge.kube.lease import LeaseRecord, Lock

KIND = "consul-bridge/lease"
"""Label of a Lease: whether it is a `member`'s or a `shard`'s."""
SHARDS = "consul-bridge/shards"
"""Annotation of a member's Lease: into how many shards it divides the work."""
JOINED = "consul-bridge/joined"
"""Annotation of a member's Lease: the revision at which it joined; absent right after joining (then: its version)."""
INSTALLATION = "consul-bridge/installation"
"""Annotation of every Lease: whose replica wrote it last, as far as that is known."""
YIELDS = "consul-bridge/yields"
"""Annotation of a member's Lease: it will never write, because another installation does."""
CONSUL = "consul-bridge/consul"
"""Annotation of a member's Lease: whether it sees Consul."""
WRITES = "consul-bridge/writes"
"""Annotation of a member's Lease: whether its writes are answered, as far as it has any."""
BURIED_AFTER = 10
"""After how many durations without a renewal a member's Lease is deleted, and an installation counts as removed."""

Annotations = Callable[[], Mapping[str, str]]
"""What a Lease is to say beside its record, asked at each write."""


class Leases(Protocol):
    """The Leases of one owner id."""

    def snapshot(self) -> Mapping[str, LeaseRecord]:
        """All of them by name, as they are now (not from a cache that may lag)."""

    def lock(
        self,
        name: str,
        kind: str,
        identity: str,
        annotations: Annotations,
        seen: Callable[[], LeaseSnapshot],
    ) -> RemovableLock:
        """A lock on one of them, whose cached reads are answered by the last look."""


class RemovableLock(Lock, Protocol):
    """A lock whose Lease can be deleted."""

    def remove(self, held: LeaseRecord) -> None: ...


@dataclass(frozen=True, slots=True)
class LeaseSnapshot:
    """What the last look showed, or why there was none."""

    records: Mapping[str, LeaseRecord]
    error: BridgeError | None = None


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
    """What one look after another showed. A record's age counts from the end of the look that first saw it like this.

    `shard_names` are the names of the shards' Leases, in order.
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
        self.at = float("-inf")
        """When the last look that was answered began."""
        self.count = 0
        self.last = LeaseSnapshot({})

    def look(self) -> None:
        """List all Leases; what failed is in `last`."""
        began = self._clock()
        try:
            records = self._leases.snapshot()
        except CancelledError:
            raise
        except BridgeError as error:
            self.last = LeaseSnapshot(self.last.records, error)
            return
        now = self._clock()
        before = self._seen
        self._seen = {
            name: seen
            if (seen := before.get(name)) is not None and seen.record == record
            else _Observation(record, now, seen is not None)
            for name, record in records.items()
        }
        self.last = LeaseSnapshot(records)
        self.count += 1
        self.at = began
        if self._first_at is None:
            self._first_at = began

    @property
    def seconds(self) -> float:
        """How long we have been looking."""
        return self.at - (self._first_at or 0.0)

    def renewed(self) -> set[str]:
        """Whose Leases were seen to change."""
        return {seen.record.holder for seen in self._seen.values() if seen.changed}

    def holders(self) -> dict[int, str]:
        """Who holds each shard's Lease."""
        records = self.last.records
        return {n: records[name].holder for n, name in enumerate(self._shard_names) if name in records}

    def last_writer(self) -> str:
        """The installation that had shard 0 last, "" where that is not known."""
        last = self.last.records.get(self._shard_names[0])
        return last.annotations.get(INSTALLATION, "") if last is not None else ""

    def others(self, identity: str) -> list[Member]:
        """Members but this one whose Lease was renewed within its duration."""
        members = []
        for seen in self._seen.values():
            record = seen.record
            if record.labels.get(KIND) != "member" or not record.holder or record.holder == identity:
                continue
            duration = max(record.duration_seconds, self._duration_seconds)
            if self.at - seen.since < duration:
                said = record.annotations
                joined = objects.version(said.get(JOINED) or record.resource_version)
                theirs = (said.get(INSTALLATION, ""), YIELDS in said, said.get(CONSUL, ""), said.get(WRITES, ""))
                members.append(Member(record.holder, _number(said.get(SHARDS)), joined, *theirs))
        return members

    def expired(self) -> Iterator[tuple[str, LeaseRecord]]:
        """Leases of members that are long dead, by name; each not again soon."""
        now = self._clock()
        for name, seen in self._seen.items():
            age = now - seen.since
            if seen.record.labels.get(KIND) == "member" and age >= BURIED_AFTER * self._duration_seconds:
                seen.since = now
                yield name, seen.record


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
        if foreign and seen.seconds < BURIED_AFTER * self._duration_seconds:
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
