"""Which shards this replica may write: one Lease per shard and one per replica, in the bridge's own namespace.

Every replica renews a Lease of its own (it is a member) and lists all Leases of its owner id every 0.6 s: the members,
and the holder of each shard. From that each replica computes how to share the shards (`core.shards.share`), campaigns
for its own, and releases those that it should no longer have, after its last write to them has ended. Where two
replicas disagree for a moment, the shard's Lease decides.

    turn ──▶ look (one list) ──▶ renew the membership ──▶ share ──▶ per shard: campaign, renew, or drain and release

With another number of shards a target belongs to another shard, so replicas of two numbers must never write at the
same time: a member may write only while no living member that joined earlier has another number (`members.may_serve`).
Joined is counted by the API server's revisions, not by clocks. In a rolling change of `--shards` the new replicas
therefore stand by until the last old one has gone.

Replicas of two installations must not share an owner id: each would remove what only the other's rules ask for. Where
the installation is known (members publish it), only one of them serves: the one that had shard 0 last (its Lease keeps
the name), or, while no replica has ever had it, the one whose member joined first. A member of the other installation
yields: it never writes again, reports that, and publishes it when its last write has ended; from then on it blocks no
other member. A new installation takes over once no replica of the one that had shard 0 last has been alive for a while.

A replica that cannot reach Consul has nothing to write. Members publish whether they reach it; while one does, those
that do not get no shard. While none does, all shards stay where they are, and so they do when all reach it again:

| `consul` | means | has shards, while another member is `up` |
| --- | --- | --- |
| `up` | reaches it | its share |
| `away` | no longer reaches it, but not for long | its share |
| `down` | has not reached it for `lasting_seconds` | none |
| `back` | reaches it again, but not for long | its share if it has one already |

The same applies to a replica whose writes the API server does not answer (`writes`, the same four values), although its
Lease is renewed: another replica's connection, route or credentials may work.

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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from hashlib import blake2b
from typing import Any

from bridge.core.shards import share
from bridge.errors import BridgeError, CancelledError, PermanentError, StaleError, TransientError
from bridge.kube import objects
from bridge.kube.client import KubeClient
from bridge.kube.lease import ElectionSettings, LeaderElector, LeaseLock, LeaseRecord, Lock, boot_clock, record_of
from bridge.kube.members import (
    CONSUL,
    INSTALLATION,
    JOINED,
    KIND,
    SHARDS,
    WRITES,
    YIELDS,
    Abilities,
    Annotations,
    Installations,
    Leases,
    LeaseSnapshot,
    Member,
    Observations,
    RemovableLock,
    may_have,
    may_serve,
    together,
)
from bridge.threads import guarded_thread

ALIVE_DURATIONS = 4
"""For how many durations without a renewal a shard's holder counts as running for a command that looks once."""


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
        """Margins and pauses that fit the duration: at 15 s a margin of 5 s, renewals every 2 s, looks every 0.6 s."""
        part = self.duration_seconds / 15
        return ElectionSettings(margin=5.0 * part, renew=2.0 * part, poll=min(0.6, 0.6 * part))


@dataclass(frozen=True, slots=True)
class _Share:
    """What a look came to: whether we may serve at all, our shards, who is alive, what we wait for ("": nothing)."""

    serving: bool = False
    wanted: frozenset[int] = frozenset()
    members: tuple[Member, ...] = ()
    waiting: str = ""


class _Turns:
    """An elector, and when its next step is due."""

    def __init__(self, elector: LeaderElector, clock: Callable[[], float]) -> None:
        self.elector = elector
        self._clock = clock
        self._at = float("-inf")

    @property
    def seconds(self) -> float:
        """Until the next step."""
        return self._at - self._clock()

    def step(self) -> None:
        """Do it now."""
        self._at = self.elector.step() + self._clock()


class _OpenWrites:
    """Writes that are under way, by shard. `may` says whether one may begin. Any thread."""

    def __init__(self, may: Callable[[int], bool]) -> None:
        self._may = may
        self._lock = threading.Lock()
        self._inside: Counter[int] = Counter()

    def begin(self, shard: int) -> bool:
        """Begin one, if it may."""
        with self._lock:
            if not self._may(shard):
                return False
            self._inside[shard] += 1
            return True

    def end(self, shard: int) -> None:
        """It has ended."""
        with self._lock:
            self._inside[shard] -= 1

    def none(self, shard: int | None = None) -> bool:
        """Whether none is under way, in this shard or at all."""
        with self._lock:
            return not (self._inside[shard] if shard is not None else any(self._inside.values()))


class _Membership:
    """Our own Lease: the elector that keeps it, and at which revision (`joined`) and look we joined."""

    def __init__(self, lock: RemovableLock, make: Callable[..., LeaderElector], looks: Callable[[], int]) -> None:
        self._lock = lock
        self._looks = looks
        self._joined_after = 0
        self.joined = 0
        self.elector = make(lock, on_started=self._join)

    def _join(self) -> None:
        held = self.elector.held
        self.joined = objects.version(held.resource_version) if held is not None else 0
        self._joined_after = self._looks()

    @property
    def seen(self) -> bool:
        """Whether there was a look since: an earlier one may lack a member that joined before us."""
        return self._looks() > self._joined_after

    def remove(self) -> None:
        """Delete the Lease, if we have it."""
        held = self.elector.held
        if held is not None:
            with contextlib.suppress(BridgeError):  # it expires, and another member deletes it
                self._lock.remove(held)


class Election:
    """Holds this replica's share of the shards. `tick` is the finite body, a thread runs it until `stop`.

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
        self._config = config = replace(config, identity=config.identity or new_identity())
        self._on_change = on_change
        self._told: frozenset[int] = frozenset()
        self._clock = clock
        self._spread = spread
        self._stop = threading.Event()
        prefix = f"consul-bridge-{_label(config.owner)}"
        names = [f"{prefix}-shard-{n}" for n in range(config.shards)]
        self._observed = Observations(leases, clock, config.duration_seconds, names)
        self._abilities = Abilities(sees_consul, can_write, config.lasting_seconds)
        self._installations = Installations(config.owner, config.installation, config.duration_seconds)
        self._writes = _OpenWrites(self.may_write)
        self._share = _Share()

        def lock_of(name: str, kind: str, annotations: Annotations) -> RemovableLock:
            return leases.lock(name, kind, config.identity, annotations, lambda: self._observed.last)

        def elector(lock: Lock, **hooks: Any) -> LeaderElector:
            return LeaderElector(lock, config.times, clock=clock, spread=spread, **hooks)

        own = lock_of(f"{prefix}-member-{_digest(config.identity)}", "member", self._annotations)
        self._lock_of = lock_of
        self._member = _Membership(own, partial(elector, on_stopped=self._leave), lambda: self._observed.count)
        self._turns = tuple(
            _Turns(made, clock)
            for made in (
                self._member.elector,
                *(
                    elector(
                        lock_of(name, "shard", self._mark),
                        wanted=partial(self._wants, n),
                        drained=partial(self._writes.none, n),
                    )
                    for n, name in enumerate(names)
                ),
            )
        )
        self._thread = guarded_thread("kube-election", self._run, failed)

    # ------------------------------------------------------------------ asked by writers

    def may_write(self, shard: int) -> bool:
        """Whether no other replica can write this shard's targets now, nor soon."""
        return self._share.serving and self._member.elector.may_write() and self._elector_of(shard).may_write()

    def lease_remaining(self, shard: int) -> float:
        """How long a write that begins now may take: until others could begin one. 0 when none may begin."""
        left = min(self._member.elector.lease_remaining(), self._elector_of(shard).lease_remaining())
        return left if self._share.serving else 0.0

    def begin_write(self, shard: int) -> bool:
        """Begin a write; False when we may not. Every True must be followed by `end_write`."""
        return self._writes.begin(shard)

    def end_write(self, shard: int) -> None:
        """The write has ended."""
        self._writes.end(shard)

    # ------------------------------------------------------------------ asked by people

    @property
    def held(self) -> frozenset[int]:
        """The shards that we may write now."""
        return frozenset(n for n in range(self._config.shards) if self.may_write(n))

    def status(self) -> dict[str, Any]:
        """For readiness, status and metrics."""
        return {
            "identity": self._config.identity,
            "shards": self._config.shards,
            "held": sorted(self.held),
            "holders": {str(n): holder for n, holder in sorted(self._observed.holders().items())},
            "replicas": sorted(member.identity for member in self._share.members),
            "waiting": self._share.waiting or None,
            "error": self.error,
        }

    @property
    def conflicting_writer(self) -> str:
        """The message about another installation with our owner id, "" while there is none."""
        return self._installations.conflict

    @property
    def error(self) -> str | None:
        """What the election fails at now, None when nothing."""
        errors = (self._observed.last.error, *(turns.elector.error for turns in self._turns))
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
        """List the Leases and act on them; returns the seconds until the next turn."""
        times = self._config.times
        self._abilities.look(self._clock())
        self._observed.look()
        own, *shards = self._turns
        if not own.elector.leading or own.seconds <= 0:
            own.step()
        if self._observed.last.error is None:  # nothing new without a look
            self._share = self._judge()
        for n, turns in enumerate(shards):
            if turns.seconds <= 0 or self._wants(n) != turns.elector.leading:
                turns.step()
        self._tell()
        self._delete_expired()
        pause = self._spread(0.8 * times.poll, 1.2 * times.poll)
        due = [turns.seconds for turns in self._turns if turns.elector.leading]
        return max(0.01, min([pause, *due]))

    def resign(self) -> None:
        """Give up the shards, then the membership; what the server does not answer runs out by itself."""
        self._stop_serving()
        self._tell()
        for turns in self._turns[1:]:
            if turns.elector.leading and not turns.elector.resign():
                return
        self._member.remove()

    # ------------------------------------------------------------------ inside

    def _elector_of(self, shard: int) -> LeaderElector:
        return self._turns[1 + shard].elector

    def _annotations(self) -> dict[str, str]:
        joined = {JOINED: str(self._member.joined)} if self._member.joined else {}
        at_rest = not self._share.serving and self._writes.none()
        yields = {YIELDS: "true"} if self._installations.demoted and at_rest else {}
        able = dict(zip((CONSUL, WRITES), self._abilities.texts, strict=True))
        return {SHARDS: str(self._config.shards), **able, **joined, **self._mark(), **yields}

    def _mark(self) -> dict[str, str]:
        return {INSTALLATION: self._config.installation} if self._config.installation else {}

    def _leave(self) -> None:
        self._stop_serving()
        self._member.joined = 0

    def _stop_serving(self) -> None:
        self._share = replace(self._share, serving=False)

    def _wants(self, shard: int) -> bool:
        return shard in self._share.wanted

    def _judge(self) -> _Share:
        """Who is alive, whether we may serve at all, and which shards are to be ours."""
        config, identity = self._config, self._config.identity
        members = self._living()
        me = next((m for m in members if m.identity == identity), None)
        waiting = self._installations.stand_aside(members, self._observed)
        may = me is not None and self._member.seen and not waiting and may_serve(me, members)
        if me is None or not may or not self._member.elector.leading:
            others = sorted({m.shards for m in members if me is not None and m.shards != me.shards})
            if others and not waiting:
                counts = " and ".join(map(str, others))
                waiting = (
                    f"replicas with {counts} shard(s) are still running and joined earlier; this one divides the work "
                    f"into {config.shards} and stands by until they have gone"
                )
            return _Share(members=tuple(members), waiting=waiting)
        serving = [m for m in members if together(m, me) and may_serve(m, members)]
        holders = self._observed.holders()
        for what, unable in _ABLE.items():
            if any(getattr(m, what) == "up" for m in serving):
                holding = holders.values()
                serving = [m for m in serving if may_have(getattr(m, what), m.identity in holding)]
                if me not in serving:
                    waiting = waiting or unable
        # A Lease that has not changed since we first saw it may be what a dead replica left. To a new process it looks
        # alive for a whole duration: no free shard waits for it.
        renewed = {identity, *self._observed.renewed()}
        candidates = sorted((m.identity for m in serving), key=lambda identity: identity not in renewed)
        shares = share(config.shards, candidates, holders)
        wanted = frozenset(n for n, candidate in shares.items() if candidate == identity)
        return _Share(True, wanted, tuple(members), waiting)

    def _living(self) -> list[Member]:
        """Members whose Lease was renewed within its duration, ourselves from our own books.

        No replica takes a member's Lease, so only time arbitrates between our decision and its renewal: a member
        gives up at its fence, its requests time out within the margin, and our list is younger than its age says.
        """
        config = self._config
        members = self._observed.others(config.identity)
        if self._member.elector.leading and self._member.joined:
            mine = (config.installation, self._installations.demoted, *self._abilities.texts)
            members.append(Member(config.identity, config.shards, self._member.joined, *mine))
        return sorted(members, key=lambda m: (m.joined, m.identity))

    def _tell(self) -> None:
        held = self.held
        if held != self._told:
            self._told = held
            self._on_change(held)

    def _delete_expired(self) -> None:
        """Delete the Leases of replicas that are long dead: pods never come back under their old name."""
        for name, record in self._observed.expired():
            with contextlib.suppress(StaleError, TransientError, PermanentError):
                self._lock_of(name, "member", dict).remove(record)


_ABLE = {
    "consul": "Consul could not be asked from here, and another replica can: that one writes",
    "writes": "the API server did not answer what was written from here, and another replica may do better",
}
"""What a member must be able to do to have shards while another can, and the message of one that lacks it."""


def new_identity() -> str:
    """A name for this process that no other has: the pod's or machine's name and something random."""
    return f"{os.environ.get('POD_NAME') or socket.gethostname()}_{uuid.uuid4().hex[:8]}"


def _label(owner: str) -> str:
    """An owner id as part of an object's name."""
    return owner if re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?", owner) else f"x{_digest(owner)}"


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=6).hexdigest()


# --------------------------------------------------------------------------- on the API server


def holder(client: KubeClient, owner: str, namespaces: Iterable[str]) -> str:
    """A replica that writes with this owner id now, as a shard's Lease in one of `namespaces` says ("": any of them).

    "" where there is none, or no Lease may be listed. One look cannot see a Lease renewed, so its time is compared with
    the API server's, generously: a replica that was killed counts for `ALIVE_DURATIONS` of its Lease. One that ended
    cleanly has given it up.
    """
    selector = f"{objects.MANAGED_BY}={objects.MANAGER},{objects.OWNER}={owner},{KIND}=shard"
    for namespace in namespaces:
        scope = f"/namespaces/{namespace}" if namespace else ""
        try:
            path = f"/apis/coordination.k8s.io/v1{scope}/leases"
            answer = client.request("GET", path, query=(("labelSelector", selector),))
        except PermanentError:
            continue
        now = _date(answer.headers)
        found = [record.holder for _, record in _records(answer.body) if record.holder and _is_fresh(record, now)]
        if found:
            return min(found)
    return ""


def _records(body: bytes) -> list[tuple[str, LeaseRecord]]:
    """The Leases of a list, with their names."""
    try:
        items = json.loads(body)["items"] or []
        return [(str(item["metadata"]["name"]), record_of(item)) for item in items]
    except (ValueError, KeyError, TypeError) as error:
        raise TransientError("the list of leases is no Kubernetes list") from error


def _date(headers: Mapping[str, str]) -> datetime:
    """The API server's time, ours where it does not tell."""
    try:
        return parsedate_to_datetime(headers.get("Date") or "").astimezone(UTC)
    except ValueError:
        return datetime.now(UTC)


def _is_fresh(record: LeaseRecord, now: datetime) -> bool:
    try:
        renewed = datetime.fromisoformat(record.renew_time)
        return (now - renewed).total_seconds() <= ALIVE_DURATIONS * record.duration_seconds
    except (ValueError, TypeError):
        return False


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
        return dict(_records(answer.body))

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
