"""Which shards this replica may write: one Lease per shard and one per replica, in the bridge's own namespace.

Every replica renews a Lease of its own (it is a member; `lease.Session`), and knows all Leases of its owner id: by one
list, and a watch from there. From that each replica computes how to share the shards (`core.shards.share`), takes its
own (`lease.Hold`: their Leases name the session and are not renewed), and releases those that it should no longer have,
after its last write to them has ended. Where two replicas disagree for a moment, the shard's Lease decides.

    tick ──▶ apply events ──▶ renew our session ──▶ end those that ran out ──▶ share ──▶ take, or drain and release

In steady state the only requests are one renewal per replica and third of the duration. A replica that has seen
another's session unchanged for its duration deletes that Lease, in the version that was seen: the API server decides
between a renewal and the deletion, so a view that lags does no harm. A member is alive, and its shards are its, while
its Lease is there.

Our own renewal comes back by the watch: what the watch told before is complete up to the moment at which the renewal
was sent. Where it does not come back, or there is no watch, all Leases are listed, every 0.6 s if need be.

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

With one shard this is plain leader election. Needs list, watch, create, update and delete on leases. It must not know
what is written.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import re
import socket
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from hashlib import blake2b
from typing import Any

from bridge.core.shards import share
from bridge.errors import BridgeError, CancelledError, PermanentError, StaleError, TransientError
from bridge.kube import faults, objects
from bridge.kube.client import KubeClient
from bridge.kube.informer import watch_query
from bridge.kube.lease import (
    DRAINING_SECONDS,
    ElectionSettings,
    Hold,
    LeaseLock,
    LeaseRecord,
    Lock,
    Session,
    boot_clock,
    record_of,
)
from bridge.kube.members import (
    CONSUL,
    INSTALLATION,
    JOINED,
    KIND,
    PROCESS,
    SESSION,
    SHARDS,
    WRITES,
    YIELDS,
    Abilities,
    Annotations,
    Installations,
    LeaseEvent,
    Leases,
    LeaseSnapshot,
    Member,
    Observations,
    may_have,
    may_serve,
    together,
)
from bridge.retry import RetryPolicy
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
        """Margins and pauses that fit the duration: at 15 s a margin of 5 s, renewals every 5 s, tries every 0.6 s."""
        part = self.duration_seconds / 15
        return ElectionSettings(margin=5.0 * part, renew=5.0 * part, poll=min(0.6, 0.6 * part))


@dataclass(frozen=True, slots=True)
class _Share:
    """What a look came to: whether we may serve at all, our shards, who is alive, what we wait for ("": nothing)."""

    serving: bool = False
    wanted: frozenset[int] = frozenset()
    members: tuple[Member, ...] = ()
    waiting: str = ""


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


class Election:
    """Holds this replica's share of the shards. `tick` is the finite body, a thread runs it until `stop`.

    `on_change` is called from that thread with the shards held whenever they changed; `sees_consul` and `can_write` are
    asked there. `process` is how this process proves to a later one that it has ended, `has_ended` what a proof says.
    """

    # attributes: one thread's state: ten are what it was given, nine the parts that have rules of their own, the rest
    # what its last turn came to, which other threads only read
    def __init__(
        self,
        leases: Leases,
        config: ElectionConfig,
        *,
        on_change: Callable[[frozenset[int]], None] = lambda _held: None,
        failed: Callable[[BaseException], None] | None = None,
        sees_consul: Callable[[], bool] = lambda: True,
        can_write: Callable[[], bool] = lambda: True,
        process: str = "",
        has_ended: Callable[[str], bool] = lambda _process: False,
        clock: Callable[[], float] = boot_clock,
        spread: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._config = config = replace(config, identity=config.identity or new_identity())
        self._on_change = on_change
        self._told: frozenset[int] = frozenset()
        self._clock = clock
        self._spread = spread
        self._leases = leases
        self._process = process
        self._has_ended = has_ended
        self._began = clock()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._watching = False
        self._doubtful = True
        self._published: Mapping[str, str] = {}
        prefix = f"consul-bridge-{_label(config.owner)}"
        names = [f"{prefix}-shard-{n}" for n in range(config.shards)]
        self._observed = Observations(leases, clock, config.duration_seconds, names)
        self._abilities = Abilities(sees_consul, can_write, config.lasting_seconds)
        self._installations = Installations(config.owner, config.installation, config.duration_seconds)
        self._writes = _OpenWrites(self.may_write)
        self._share = _Share()

        def lock_of(name: str, kind: str, annotations: Annotations) -> Lock:
            return leases.lock(name, kind, config.identity, annotations, self._observed)

        self._lock_of = lock_of
        self._own_name = f"{prefix}-member-{_digest(config.identity)}"
        own = lock_of(self._own_name, "member", self._publish)
        self._session = Session(own, config.times, on_ended=self._leave, clock=clock, spread=spread)
        self._holds = {name: Hold(lock_of(name, "shard", self._marks), config.times, clock) for name in names}
        self._by_shard = tuple(self._holds.values())
        self._burying: BridgeError | None = None
        self._thread = guarded_thread("kube-election", self._run, failed)
        self._watcher = guarded_thread("kube-election-watch", self._follow, failed, stop=self._stop)

    # ------------------------------------------------------------------ asked by writers

    def may_write(self, shard: int) -> bool:
        """Whether no other replica can write this shard's targets now, nor soon."""
        now = self._clock()
        return self._share.serving and self._session.may_write(now) and self._by_shard[shard].may_write(now)

    def lease_remaining(self, shard: int) -> float:
        """How long a write that begins now may take: until others could begin one. 0 when none may begin."""
        left = min(self._session.until, self._by_shard[shard].until) - self._clock()
        return left if self.may_write(shard) else 0.0

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
        errors = (
            self._observed.last.error, self._session.error, self._burying, *(hold.error for hold in self._by_shard)
        )  # fmt: skip
        return next((str(error) for error in errors if error is not None), None)

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Begin to take part; returns at once."""
        self._thread.start()
        self._watcher.start()

    def stop(self, timeout: float = 5.0) -> bool:
        """Give everything up and end the threads; call it when the last write has ended. False at the timeout."""
        self._stop.set()
        self._wake.set()
        for thread in (self._thread, self._watcher):
            if thread.ident is not None:
                thread.join(timeout)
            self._leases.close_watch()
        return not (self._thread.is_alive() or self._watcher.is_alive())

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._wake.clear()
                self._wake.wait(self.tick())
            self.resign()
        except CancelledError:
            return  # the client was closed under us; the Leases run out by themselves

    def _follow(self) -> None:
        """Watch from the last list on, again and again; while there is no watch, `tick` lists."""
        retry, failures = RetryPolicy(), 0
        while not self._observed.last.revision and not self._stop.wait(self._config.times.poll / 5):
            pass
        while not self._stop.is_set():
            began = self._clock()
            try:
                self.follow()
                failures = failures + 1 if self._clock() - began < 1.0 else 0
            except CancelledError:
                return
            except BridgeError as error:
                failures += 1
                self._stop.wait(retry.wait_seconds(failures, error))
            else:
                self._stop.wait(retry.wait_seconds(failures) if failures else 0.0)

    def follow(self) -> None:
        """Hand on what changes from now on, until the server ends the watch."""
        try:
            with self._leases.watch(self._observed.last.revision) as events:
                self._watching = True
                for event in events:
                    self._observed.feed(event)
                    self._wake.set()
        finally:
            self._watching = False
            self._wake.set()

    def tick(self) -> float:
        """Act on what is known of the Leases; returns the seconds until the next turn."""
        self._abilities.look(self._clock())
        self._observed.take_events()
        if self._must_look():
            self._doubtful = False
            self._observed.look()
        self._confirm()
        self._keep_session()
        self._confirm()  # the renewal may have had the Leases listed
        self._end_expired()
        if self._observed.last.error is None:  # nothing new without a look
            self._share = self._judge()
        holders = self._observed.holders()
        for shard, hold in enumerate(self._by_shard):
            self._step(shard, hold, free=not holders.get(shard))
        self._tell()
        return self._pause()

    def resign(self) -> None:
        """Give up the shards, then the membership; what the server does not answer runs out by itself."""
        self._stop_serving()
        self._tell()
        for hold in self._by_shard:
            if hold.held is not None and not hold.release():
                return
        self._session.remove()

    # ------------------------------------------------------------------ inside

    def _must_look(self) -> bool:
        """Whether all Leases are to be listed: we learn nothing of them, or what we know has proved to be old."""
        now, poll, held = self._clock(), self._config.times.poll, self._session.held
        if now - self._observed.looked_at < 0.8 * poll:
            return False
        late = held is not None and self._observed.last.revision < objects.version(held.resource_version)
        if self._watching and late and now - self._session.answered >= 2 * poll:
            self._leases.restart_watch()
            return True
        return self._doubtful or not self._watching or self._observed.last.error is not None

    def _confirm(self) -> None:
        """What the Leases tell of those that we hold, and up to when they tell it."""
        seen, held = self._observed.last, self._session.held
        if held is not None and seen.revision >= objects.version(held.resource_version):
            self._observed.known(self._session.sent)
        for name, hold in self._holds.items():
            hold.confirm(seen.records.get(name), seen.revision, self._observed.at)

    def _keep_session(self) -> None:
        """Renew it in time; earlier where others are to know something new of us, or where the Lease has changed."""
        session, times = self._session, self._config.times
        held, seen = session.held, self._observed.last
        changed = False
        if held is not None:
            shown = seen.records.get(self._own_name)
            known = seen.revision >= objects.version(held.resource_version)
            changed = known and (shown is None or shown.uid != held.uid or shown.holder != held.holder)
            news = self._annotations() != self._published
            changed |= news and self._clock() - session.sent >= min(2.0, 0.4 * times.renew)
        if session.seconds <= 0 or changed:
            session.step()

    def _end_expired(self) -> None:
        """End the sessions that were not renewed for their duration, which frees what they hold."""
        self._burying = None
        if self._observed.last.error is not None:
            return
        for left, name, record in self._expiring():
            if left > 0:
                continue
            try:
                self._lock_of(name, "member", dict).remove(record)
                self._observed.drop(name)
            except StaleError:
                self._doubtful = True  # it was renewed, and we have not learned of it
            except (TransientError, PermanentError) as error:
                self._burying = error

    def _expiring(self) -> Iterator[tuple[float, str, LeaseRecord]]:
        """When the sessions of others are over: that of a process before us in our container, which has ended, sooner.

        What it had begun to write may still be on its way: that gets the margin, as what is begun before any fence.
        """
        for left, name, record in self._observed.expiring(self._config.identity):
            process = record.annotations.get(PROCESS, "")
            if process and self._has_ended(process):
                left = min(left, self._began + self._config.times.margin - self._clock())
            yield left, name, record

    def _step(self, shard: int, hold: Hold, *, free: bool) -> None:
        """Take a shard that is to be ours, as soon as it is free, and release what is no longer to be ours."""
        seen = self._observed.last.records.get(hold.name)
        ours = seen is not None and seen.holder == self._config.identity and seen.resource_version != hold.released
        if shard in self._share.wanted:
            hold.releasing = False
            if hold.held is None and (free or ours) and hold.due and not hold.take(seen):
                self._doubtful = True
        elif hold.held is not None:
            hold.releasing = True
            if self._writes.none(shard):
                hold.release()
        elif ours and self._session.held is not None and self._observed.last.error is None:
            hold.release(seen)

    def _pause(self) -> float:
        """Until something is due; at least every second, for what other threads ask of `sees_consul` and the like."""
        times = self._config.times
        due = [min(1.0, times.renew / 5), max(self._session.seconds, 0.0)]
        due += [left for left, *_ in self._expiring() if left > 0]
        holds = self._by_shard
        lacking = any(holds[n].held is None for n in self._share.wanted)
        if not self._watching or self._doubtful or lacking or self.error is not None:
            due.append(self._spread(0.8 * times.poll, 1.2 * times.poll))
        if any(hold.releasing for hold in holds):
            due.append(DRAINING_SECONDS)
        return max(0.01, min(due))

    def _publish(self) -> Mapping[str, str]:
        self._published = self._annotations()
        return self._published

    def _annotations(self) -> dict[str, str]:
        joined = {JOINED: str(self._session.joined)} if self._session.joined else {}
        at_rest = not self._share.serving and self._writes.none()
        yields = {YIELDS: "true"} if self._installations.demoted and at_rest else {}
        able = dict(zip((CONSUL, WRITES), self._abilities.texts, strict=True))
        process = {PROCESS: self._process} if self._process else {}
        return {SHARDS: str(self._config.shards), **process, **able, **joined, **self._mark(), **yields}

    def _marks(self) -> dict[str, str]:
        return {SESSION: self._session.uid, **self._mark()}

    def _mark(self) -> dict[str, str]:
        return {INSTALLATION: self._config.installation} if self._config.installation else {}

    def _leave(self) -> None:
        """Our session is over: whatever we held in it is others' to take."""
        self._share = replace(self._share, serving=False, wanted=frozenset())
        for hold in self._by_shard:
            hold.drop()

    def _stop_serving(self) -> None:
        self._share = replace(self._share, serving=False)

    def _judge(self) -> _Share:
        """Who is alive, whether we may serve at all, and which shards are to be ours."""
        config, identity = self._config, self._config.identity
        members = self._living()
        me = next((m for m in members if m.identity == identity), None)
        waiting = self._installations.stand_aside(members, self._observed)
        seen = self._observed.last.revision >= self._session.joined  # who joined before us is among them
        may = me is not None and seen and not waiting and may_serve(me, members)
        if me is None or not may:
            others = sorted({m.shards for m in members if me is not None and m.shards != me.shards})
            if others and not waiting:
                counts = " and ".join(map(str, others))
                which = f"with {counts} shard(s)" if others[0] else "of an earlier version"
                waiting = (
                    f"replicas {which} are still running and joined earlier; this one divides the work "
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
        """Members whose Lease is there, ourselves from our own books."""
        config = self._config
        members = self._observed.others(config.identity)
        if self._session.joined:
            mine = (config.installation, self._installations.demoted, *self._abilities.texts)
            members.append(Member(config.identity, config.shards, self._session.joined, *mine))
        return sorted(members, key=lambda m: (m.joined, m.identity))

    def _tell(self) -> None:
        held = self.held
        if held != self._told:
            self._told = held
            self._on_change(held)


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
    """A replica that writes with this owner id now, as the Leases in one of `namespaces` say ("": any of them).

    "" where there is none, or no Lease may be listed. It holds a shard, and has renewed its own Lease lately. One look
    cannot see a Lease renewed, so its time is compared with the API server's, generously: a replica that was killed
    counts for `ALIVE_DURATIONS` of its Lease, if no other ends its session. One that ended cleanly has given it up.
    """
    selector = f"{objects.MANAGED_BY}={objects.MANAGER},{objects.OWNER}={owner},{KIND}"
    for namespace in namespaces:
        scope = f"/namespaces/{namespace}" if namespace else ""
        try:
            path = f"/apis/coordination.k8s.io/v1{scope}/leases"
            answer = client.request("GET", path, query=(("labelSelector", selector),))
        except PermanentError:
            continue
        now = _date(answer.headers)
        found, _ = _records(answer.body)
        alive = {r.holder for _, r in found if r.labels.get(KIND) == "member" and _is_fresh(r, now)}
        holders = {r.holder for _, r in found if r.labels.get(KIND) == "shard"} & alive
        if holders:
            return min(holders)
    return ""


def _records(body: bytes) -> tuple[list[tuple[str, LeaseRecord]], int]:
    """The Leases of a list, with their names, and its revision."""
    try:
        answer = json.loads(body)
        revision = objects.version(answer["metadata"]["resourceVersion"])
        return [(str(item["metadata"]["name"]), record_of(item)) for item in answer["items"] or []], revision
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
        self._watching = client.clone(connections=1)
        self._namespace = config.namespace or client.namespace
        self._duration = config.duration_seconds
        self._timeout = min(3.0, 0.6 * config.times.margin)
        self._labels = {objects.OWNER: config.owner}
        selector = f"{objects.MANAGED_BY}={objects.MANAGER},{objects.OWNER}={config.owner},{KIND}"
        self._query = (("labelSelector", selector),)
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{self._namespace}/leases"

    def snapshot(self) -> LeaseSnapshot:
        """All of them by name."""
        answer = self._client.request("GET", self._path, query=self._query, timeout=self._timeout)
        records, revision = _records(answer.body)
        return LeaseSnapshot(dict(records), revision)

    @contextlib.contextmanager
    def watch(self, revision: int) -> Iterator[Iterator[LeaseEvent]]:
        """What changes after `revision`; our own renewals at least come in every third of the duration."""
        query = [*watch_query(str(revision)), *self._query]
        with self._watching.stream(self._path, query=query, silence=self._duration) as lines:
            yield map(_event, lines)

    def restart_watch(self) -> None:
        """End the watch that is open."""
        self._watching.end_streams(math.inf)

    def close_watch(self) -> None:
        """End it for good."""
        self._watching.close()

    def lock(self, name: str, kind: str, identity: str, annotations: Annotations, seen: Observations) -> Lock:
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
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._watching.close()


def _event(line: bytes) -> LeaseEvent:
    """A line of a watch. StaleError where it cannot go on from its position."""
    try:
        event = json.loads(line)
        kind, raw = event["type"], objects.mapping(event["object"])
        metadata = objects.mapping(raw.get("metadata"))
        revision = objects.version(str(metadata.get("resourceVersion")))
    except (ValueError, KeyError, TypeError) as error:
        raise StaleError("a watch of leases sent nonsense") from error
    if kind not in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK") or not revision:
        raise StaleError(f"a watch of leases ended with {faults.trim(str(raw.get('message') or kind))}")
    if kind == "BOOKMARK":
        return LeaseEvent("", None, revision)
    return LeaseEvent(str(metadata.get("name")), None if kind == "DELETED" else record_of(raw), revision)


class _SeenLock(LeaseLock):
    """A lock whose reads are looks at all Leases: the last one, or a fresh one. So no right to `get` is needed."""

    def __init__(self, *arguments: Any, seen: Observations, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._seen = seen

    def read(self, *, cached: bool = False) -> LeaseRecord | None:
        """The record of the last look, or of a fresh one."""
        look = self._seen.last if cached else self._seen.look()
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
