"""Which shards this replica may write: one Lease per shard and one per replica, in the bridge's own namespace.

Every replica keeps a Lease of its own alive (it is a member) and looks at all Leases of its owner id every 0.6 s:
who is there, who holds which shard. From that each computes by itself how the shards are to be shared
(`core.shards.share`), campaigns for those that it is to have, and gives up those that it is not to have any more, after
its last write to them has ended. Where two see things differently for a moment, the shard's Lease decides.

    turn ──▶ look (one list) ──▶ renew the membership ──▶ share ──▶ per shard: campaign, renew, or drain and release

With another number of shards a target belongs to another shard, so replicas of two numbers must never write at the
same time: a member may write only while no living member that joined earlier has another number (`_may_serve`). Joined
is counted by the API server's revisions, not by clocks. In a rolling change of `--shards` the new replicas therefore
stand by until the last old one has gone.

Replicas of two installations must not share an owner id: each would remove what only the other's rules ask for. Where
the installation is known (members publish it), only one of them serves: the one that had shard 0 last (its Lease keeps
the name), or, while no replica has ever had it, the one whose member joined first. A member of the other installation
yields: it never writes again, reports that, and publishes it when its last write has ended; from then on it blocks no
other member. A new installation takes over once no replica of the one that had shard 0 last has been alive for a while.

A replica that sees no Consul has nothing to write. Members publish whether they see one, and while one does, those that
do not get no shard. While none does everything stays where it is, and so it does when all see it again:

| `consul` | means | has shards, while another member is `up` |
| --- | --- | --- |
| `up` | sees it | its share |
| `away` | sees it no longer, but that has not lasted | its share |
| `down` | has not seen it for `lasting_seconds` | none |
| `back` | sees it again, but that has not lasted | its share if it has one already |

So it is with a replica whose writes the API server has not answered for so long (`writes`, the same four words),
although its Lease is renewed: another connection, another route or other credentials may work.

With one shard this is plain leader election. Needs list, create, update and delete on leases. It must not know
what is written.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import socket
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any, Protocol

from bridge.core.shards import share
from bridge.errors import BridgeError, CancelledError, PermanentError, StaleError, TransientError
from bridge.kube import objects
from bridge.kube.client import KubeClient
from bridge.kube.lease import ElectionSettings, LeaderElector, LeaseLock, LeaseRecord, Lock, boot_clock, record_of
from bridge.threads import guarded_thread

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ElectionConfig:
    """Who takes part in what. `namespace` "": the client's; `duration_seconds` is that of every Lease.

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
        """Margins and pauses that fit the duration: at 15 s a margin of 5 s, renewals every 2 s, looks every 0.6 s."""
        part = self.duration_seconds / 15
        return ElectionSettings(margin=5.0 * part, renew=2.0 * part, poll=min(0.6, 0.6 * part))


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


class Election:
    """Holds this replica's share of the shards. `turn` is the finite body, a thread runs it until `stop`.

    `on_change` is called from that thread with the shards held whenever they changed; `sees_consul` and `can_write` are
    asked there.
    """

    def __init__(
        self,
        leases: Leases,
        config: ElectionConfig,
        *,
        on_change: Callable[[frozenset[int]], None] = lambda _held: None,
        failed: Callable[[BaseException], None] | None = None,
        sees_consul: Callable[[], bool] = lambda: True,
        can_write: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = boot_clock,
        spread: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._leases = leases
        self._config = config
        self._identity = config.identity or new_identity()
        self._on_change = on_change
        self._sees_consul = sees_consul
        self._can_write = can_write
        self._consul = _Debounced(config.lasting_seconds)
        self._writes = _Debounced(config.lasting_seconds)
        self._clock = clock
        self._spread = spread
        self._stop = threading.Event()
        self._look = LeaseSnapshot({})
        self._looks = 0
        self._looked_at = float("-inf")
        self._sightings: dict[str, _Observation] = {}
        self._lock = threading.Lock()
        self._inside: Counter[int] = Counter()
        self._joined = 0
        self._joined_after = 0
        self._serving = False
        self._wanted: frozenset[int] = frozenset()
        self._members: tuple[Member, ...] = ()
        self._waiting = ""
        self._conflicting_writer = ""
        self._demoted = False
        self._first_look_at: float | None = None
        self._told: frozenset[int] = frozenset()
        prefix = f"consul-bridge-{_label(config.owner)}"
        self._member_lock = self._lock_of(f"{prefix}-member-{_digest(self._identity)}", "member", self._annotations)
        self._member = self._elector(self._member_lock, on_started=self._join, on_stopped=self._leave)
        self._names = tuple(f"{prefix}-shard-{n}" for n in range(config.shards))
        self._shards = tuple(
            self._elector(
                self._lock_of(name, "shard", self._mark),
                wanted=partial(self._wants, n),
                drained=partial(self._drained, n),
            )
            for n, name in enumerate(self._names)
        )
        self._due: dict[LeaderElector, float] = {}
        self._thread = guarded_thread("kube-election", self._run, failed)

    # ------------------------------------------------------------------ asked by writers

    def may_write(self, shard: int) -> bool:
        """Whether no other replica can write this shard's targets now, nor soon."""
        return self._serving and self._member.may_write() and self._shards[shard].may_write()

    def lease_remaining(self, shard: int) -> float:
        """How long a write that begins now may take: until others could begin one. 0 when none may begin."""
        left = min(self._member.lease_remaining(), self._shards[shard].lease_remaining())
        return left if self._serving else 0.0

    def begin_write(self, shard: int) -> bool:
        """Begin a write; False when we may not. Every True must be followed by `leave`."""
        with self._lock:
            if not self.may_write(shard):
                return False
            self._inside[shard] += 1
            return True

    def end_write(self, shard: int) -> None:
        """The write has ended."""
        with self._lock:
            self._inside[shard] -= 1

    # ------------------------------------------------------------------ asked by people

    @property
    def held(self) -> frozenset[int]:
        """The shards that we may write now."""
        return frozenset(n for n in range(self._config.shards) if self.may_write(n))

    def status(self) -> dict[str, Any]:
        """For readiness, status and metrics."""
        return {
            "identity": self._identity,
            "shards": self._config.shards,
            "held": sorted(self.held),
            "holders": {str(n): holder for n, holder in sorted(self._holders().items())},
            "replicas": sorted(member.identity for member in self._members),
            "waiting": self._waiting or None,
            "error": self.error,
        }

    @property
    def conflicting_writer(self) -> str:
        """What is to be said of another installation with our owner id, "" while there is none."""
        return self._conflicting_writer

    @property
    def error(self) -> str | None:
        """What the election fails at now, None when nothing."""
        errors = (self._look.error, self._member.error, *(e.error for e in self._shards))
        return next((str(error) for error in errors if error is not None), None)

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Begin to take part; returns at once."""
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> bool:
        """Give everything up and end the thread; call it when the last write has ended. False at the timeout."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._stop.wait(self.tick())
            self.resign()
        except CancelledError:
            return  # the client was closed under us; the Leases run out by themselves

    def tick(self) -> float:
        """Look, and do what that asks for; seconds until the next turn."""
        times = self._config.times
        self._consul.see(self._sees_consul(), self._clock())
        self._writes.see(self._can_write(), self._clock())
        self._see()
        if not self._member.leading or self._is_due(self._member):
            self._step(self._member)
        self._judge()
        for n, elector in enumerate(self._shards):
            if self._is_due(elector) or (n in self._wanted) != elector.leading:
                self._step(elector)
        self._tell()
        self._delete_expired()
        pause = self._spread(0.8 * times.poll, 1.2 * times.poll)
        due = [self._due[e] - self._clock() for e in (self._member, *self._shards) if e.leading]
        return max(0.01, min([pause, *due]))

    def resign(self) -> None:
        """Give up the shards, then the membership; what the server does not answer runs out by itself."""
        self._serving = False
        self._tell()
        for elector in self._shards:
            if elector.leading and not elector.resign():
                return
        held = self._member.held
        if held is not None:
            with contextlib.suppress(BridgeError):  # it expires, and another member deletes it
                self._member_lock.remove(held)

    # ------------------------------------------------------------------ inside

    def _lock_of(self, name: str, kind: str, annotations: Annotations) -> RemovableLock:
        return self._leases.lock(name, kind, self._identity, annotations, lambda: self._look)

    def _elector(self, lock: Lock, **hooks: Any) -> LeaderElector:
        return LeaderElector(lock, self._config.times, clock=self._clock, spread=self._spread, **hooks)

    def _annotations(self) -> dict[str, str]:
        joined = {JOINED: str(self._joined)} if self._joined else {}
        yields = {YIELDS: "true"} if self._demoted and self._at_rest() else {}
        able = {CONSUL: self._consul.text, WRITES: self._writes.text}
        return {SHARDS: str(self._config.shards), **able, **joined, **self._mark(), **yields}

    def _mark(self) -> dict[str, str]:
        return {INSTALLATION: self._config.installation} if self._config.installation else {}

    def _at_rest(self) -> bool:
        """Whether no write of ours is under way, nor can begin."""
        with self._lock:
            return not self._serving and not any(self._inside.values())

    def _join(self) -> None:
        held = self._member.held
        self._joined = objects.version(held.resource_version) if held is not None else 0
        self._joined_after = self._looks

    def _leave(self) -> None:
        self._serving = False
        self._joined = 0

    def _see(self) -> None:
        """One list of all Leases; a record's age counts from the end of the look that first saw it like this."""
        began = self._clock()
        try:
            records = self._leases.snapshot()
        except CancelledError:
            raise
        except BridgeError as error:
            self._look = LeaseSnapshot(self._look.records, error)
            return
        now = self._clock()
        before = self._sightings
        self._sightings = {
            name: seen
            if (seen := before.get(name)) is not None and seen.record == record
            else _Observation(record, now, seen is not None)
            for name, record in records.items()
        }
        self._look = LeaseSnapshot(records)
        self._looks += 1
        self._looked_at = began
        if self._first_look_at is None:
            self._first_look_at = began

    def _judge(self) -> None:
        """Who is alive, whether we may serve at all, and which shards are to be ours; nothing new without a look."""
        if self._look.error is not None:
            return
        members = self._living()
        self._members = tuple(members)
        me = next((m for m in members if m.identity == self._identity), None)
        aside = self._stands_aside(members)
        # a list from before we joined may lack a member that joined before us
        may = me is not None and self._looks > self._joined_after and not aside and may_serve(me, members)
        self._serving = may and self._member.leading
        self._waiting = aside
        if not self._serving or me is None:
            self._wanted = frozenset()
            others = sorted({m.shards for m in members if me is not None and m.shards != me.shards})
            if others and not aside:
                counts = " and ".join(map(str, others))
                self._waiting = (
                    f"replicas with {counts} shard(s) are still running and joined earlier; this one divides the work "
                    f"into {self._config.shards} and stands by until they have gone"
                )
            return
        serving = [m for m in members if _together(m, me) and may_serve(m, members)]
        holders = self._holders()
        for what, waiting in _ABLE.items():
            if any(getattr(m, what) == "up" for m in serving):
                holding = holders.values()
                serving = [m for m in serving if _may_have(getattr(m, what), m.identity in holding)]
                if me not in serving:
                    self._waiting = self._waiting or waiting
        # A Lease that has not changed since we first saw it may be what a dead replica left. To a new process it looks
        # alive for a whole duration: no free shard waits for it.
        renewed = {self._identity, *self._renewed()}
        candidates = sorted((m.identity for m in serving), key=lambda identity: identity not in renewed)
        shares = share(self._config.shards, candidates, holders)
        self._wanted = frozenset(n for n, identity in shares.items() if identity == self._identity)

    def _stands_aside(self, members: list[Member]) -> str:
        """Why another installation is to write instead of ours, "" when it is not; says what there is to be said."""
        mine, owner = self._config.installation, self._config.owner
        strangers = self._other_installations(members) if mine else ()
        charge = self._in_charge(members) if mine else ""
        foreign = charge not in ("", mine)
        if strangers and foreign:
            self._demoted = True
        self._conflicting_writer = ""
        if strangers or self._demoted:
            alive = f"replicas of {' and '.join(strangers) or 'another installation'} run, or ran lately,"
            self._conflicting_writer = (
                f"{alive} with our owner id {owner!r}, and this is {mine}: give each installation an --owner of its own"
            )
        if self._demoted:
            self._conflicting_writer += (
                "; this replica writes nothing, and if the other was removed on purpose: restart this one"
            )
            return "another installation with our owner id writes"
        long_gone = self._looked_at - (self._first_look_at or 0.0) >= BURIED_AFTER * self._config.duration_seconds
        if foreign and not long_gone:
            return f"{charge} wrote with our owner id before; this is {mine}, and waits in case that it comes back"
        return ""

    def _other_installations(self, members: list[Member]) -> list[str]:
        """Other installations whose members were seen to renew: a Lease alone may be what a dead one left behind."""
        renewed = self._renewed()
        return sorted(
            {
                m.installation
                for m in members
                if m.identity in renewed and m.installation not in ("", self._config.installation)
            }
        )

    def _renewed(self) -> set[str]:
        """Whose Leases were seen to change."""
        return {seen.record.holder for seen in self._sightings.values() if seen.changed}

    def _in_charge(self, members: list[Member]) -> str:
        """The installation that had shard 0 last, or else that of the member that joined first."""
        last = self._look.records.get(self._names[0])
        first = next((m.installation for m in members if m.installation and not m.demoted), "")
        return (last.annotations.get(INSTALLATION, "") if last is not None else "") or first

    def _holders(self) -> dict[int, str]:
        records = self._look.records
        return {n: records[name].holder for n, name in enumerate(self._names) if name in records}

    def _living(self) -> list[Member]:
        """Members whose Lease was renewed within its duration, ourselves from our own books.

        No replica takes a member's Lease, so only time arbitrates between our decision and its renewal: a member
        gives up at its fence, its requests time out within the margin, and our list is younger than its age says.
        """
        members = []
        if self._member.leading and self._joined:
            config = self._config
            mine = (config.installation, self._demoted, self._consul.text, self._writes.text)
            members.append(Member(self._identity, config.shards, self._joined, *mine))
        for seen in self._sightings.values():
            record = seen.record
            if record.labels.get(KIND) != "member" or not record.holder or record.holder == self._identity:
                continue
            duration = max(record.duration_seconds, self._config.duration_seconds)
            if self._looked_at - seen.since < duration:
                joined = objects.version(record.annotations.get(JOINED) or record.resource_version)
                shards = _number(record.annotations.get(SHARDS))
                said = record.annotations
                theirs = (said.get(INSTALLATION, ""), YIELDS in said, said.get(CONSUL, ""), said.get(WRITES, ""))
                members.append(Member(record.holder, shards, joined, *theirs))
        return sorted(members, key=lambda m: (m.joined, m.identity))

    def _is_due(self, elector: LeaderElector) -> bool:
        return self._clock() >= self._due.get(elector, float("-inf"))

    def _step(self, elector: LeaderElector) -> None:
        self._due[elector] = elector.step() + self._clock()

    def _wants(self, shard: int) -> bool:
        return shard in self._wanted

    def _drained(self, shard: int) -> bool:
        with self._lock:
            return self._inside[shard] == 0

    def _tell(self) -> None:
        held = self.held
        if held != self._told:
            self._told = held
            self._on_change(held)

    def _delete_expired(self) -> None:
        """Delete the Leases of replicas that are long dead: pods never come back under their old name."""
        now = self._clock()
        for name, seen in self._sightings.items():
            age = now - seen.since
            if seen.record.labels.get(KIND) == "member" and age >= BURIED_AFTER * self._config.duration_seconds:
                seen.since = now  # not again soon, whatever comes of it
                with contextlib.suppress(StaleError, TransientError, PermanentError):
                    self._lock_of(name, "member", dict).remove(seen.record)


_ABLE = {
    "consul": "Consul could not be asked from here, and another replica can: that one writes",
    "writes": "the API server did not answer what was written from here, and another replica may do better",
}
"""What a member must be able to do to have shards while another can, and what is said of one that has none for it."""


def _may_have(state: str, holding: bool) -> bool:
    """Whether a member in this state has a share while another is up."""
    return state != "down" and (state != "back" or holding)


def may_serve(member: Member, members: list[Member]) -> bool:
    """Whether no living member that joined before `member` and may write works otherwise."""
    return not member.demoted and not any(
        m.joined < member.joined and not m.demoted and not _together(m, member) for m in members
    )


def _together(one: Member, other: Member) -> bool:
    """Whether both divide the work alike and belong to one installation, as far as that is known."""
    return one.shards == other.shards and ("" in (one.installation, other.installation)
                                           or one.installation == other.installation)  # fmt: skip


def new_identity() -> str:
    """A name for this process that no other has: the pod's or machine's name and something random."""
    return f"{os.environ.get('POD_NAME') or socket.gethostname()}_{uuid.uuid4().hex[:8]}"


def _label(owner: str) -> str:
    """An owner id as part of an object's name."""
    return owner if re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?", owner) else f"x{_digest(owner)}"


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=6).hexdigest()


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdecimal() else 0


# --------------------------------------------------------------------------- on the API server


class KubeLeases:
    """The Leases of one owner id in one namespace."""

    def __init__(self, client: KubeClient, config: ElectionConfig) -> None:
        self._client = client.clone(connections=2)
        self._namespace = config.namespace or client.namespace
        self._duration = config.duration_seconds
        self._timeout = min(3.0, 0.6 * config.times.margin)
        self._labels = {objects.OWNER: config.owner}
        selector = f"{objects.MANAGED_BY}={objects.MANAGER},{objects.OWNER}={config.owner},{KIND}"
        self._query = (("labelSelector", selector),)
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{self._namespace}/leases"

    def snapshot(self) -> dict[str, LeaseRecord]:
        """All of them by name."""
        answer = self._client.request("GET", self._path, query=self._query, timeout=self._timeout)
        try:
            items = json.loads(answer.body)["items"] or []
            return {str(item["metadata"]["name"]): record_of(item) for item in items}
        except (ValueError, KeyError, TypeError) as error:
            raise TransientError("the list of leases is no Kubernetes list") from error

    def lock(
        self,
        name: str,
        kind: str,
        identity: str,
        annotations: Annotations,
        seen: Callable[[], LeaseSnapshot],
    ) -> RemovableLock:
        """A lock on one of them."""
        return _SeenLock(
            self._client,
            self._namespace,
            name,
            identity,
            duration_seconds=self._duration,
            timeout_seconds=self._timeout,
            labels={**self._labels, KIND: kind},
            annotations=annotations,
            seen=seen,
            fresh=self.snapshot,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class _SeenLock(LeaseLock):
    """A lock whose reads are looks at all Leases: the last one, or a fresh one. So no right to `get` is needed."""

    def __init__(
        self,
        *arguments: Any,
        seen: Callable[[], LeaseSnapshot],
        fresh: Callable[[], Mapping[str, LeaseRecord]],
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._seen = seen
        self._fresh = fresh

    def read(self, *, cached: bool = False) -> LeaseRecord | None:
        """The record of the last look, or of a fresh one."""
        if not cached:
            return self._fresh().get(self.name)
        look = self._seen()
        if look.error is not None:
            raise look.error
        return look.records.get(self.name)

    def acquire(self, seen: LeaseRecord | None) -> LeaseRecord:
        """Take it; PermanentError when a Lease of that name is not the bridge's."""
        try:
            return super().acquire(seen)
        except StaleError:
            if seen is None and self.read() is None:
                raise PermanentError(
                    f"the Lease {self.namespace}/{self.name} is not the bridge's: delete it "
                    f"(kubectl delete lease {self.name} --namespace {self.namespace}) or choose another --owner"
                ) from None
            raise
