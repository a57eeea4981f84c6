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

`lease_watch.LeaseWatch` knows all Leases, `membership.Membership` renews ours, `lease.Hold` has one shard each.

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

With one shard this is plain leader election. It must not know what is written.
"""

from __future__ import annotations

import os
import random
import re
import socket
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from bridge.core.shards import share
from bridge.errors import CancelledError
from bridge.kube import objects
from bridge.kube.lease import DRAINING_SECONDS, Hold, Lock, boot_clock
from bridge.kube.lease_watch import LeaseWatch
from bridge.kube.members import (
    Abilities,
    Annotations,
    ElectionConfig,
    Installations,
    Leases,
    Member,
    may_have,
    may_serve,
    together,
)
from bridge.kube.membership import ExpiredSessions, Membership, short_digest
from bridge.threads import guarded_thread


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
        self._stop = threading.Event()
        prefix = f"consul-bridge-{_label(config.owner)}"
        names = [f"{prefix}-shard-{n}" for n in range(config.shards)]
        self._watch = LeaseWatch(leases, config, names, failed=failed, clock=clock, spread=spread)
        self._observed = observed = self._watch.observed
        self._installations = Installations(config.owner, config.installation, config.duration_seconds)
        self._writes = _OpenWrites(self.may_write)
        self._share = _Share()

        def lock_of(name: str, kind: str, annotations: Annotations) -> Lock:
            return leases.lock(name, kind, config.identity, annotations, observed)

        self._membership = Membership(
            config,
            prefix,
            lock_of,
            Abilities(sees_consul, can_write, config.lasting_seconds),
            self._installations,
            process=process,
            at_rest=lambda: not self._share.serving and self._writes.none(),
            on_ended=self._leave,
            clock=clock,
            spread=spread,
        )
        self._session = self._membership.session
        of_shard = self._membership.of_shard
        self._holds = tuple(Hold(lock_of(name, "shard", of_shard), config.times, clock) for name in names)
        self._expired = ExpiredSessions(config, self._watch, lock_of, has_ended, clock)
        self._thread = guarded_thread("kube-election", self._run, failed)

    # ------------------------------------------------------------------ asked by writers

    def may_write(self, shard: int) -> bool:
        """Whether no other replica can write this shard's targets now, nor soon."""
        now = self._clock()
        return self._share.serving and self._session.may_write(now) and self._holds[shard].may_write(now)

    def lease_remaining(self, shard: int) -> float:
        """How long a write that begins now may take: until others could begin one. 0 when none may begin."""
        left = min(self._session.until, self._holds[shard].until) - self._clock()
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
            self._observed.last.error, self._session.error, self._expired.error, *(hold.error for hold in self._holds)
        )  # fmt: skip
        return next((str(error) for error in errors if error is not None), None)

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Begin to take part; returns at once."""
        self._thread.start()
        self._watch.start()

    def stop(self, timeout: float = 5.0) -> bool:
        """Give everything up and end the threads; call it when the last write has ended. False at the timeout."""
        self._stop.set()
        self._watch.news.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        self._watch.stop()
        return self._watch.join(timeout) and not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._watch.news.clear()
                self._watch.news.wait(self.tick())
            self.resign()
        except CancelledError:
            return  # the client was closed under us; the Leases run out by themselves

    def tick(self) -> float:
        """Act on what is known of the Leases; returns the seconds until the next turn."""
        self._membership.abilities.look(self._clock())
        self._watch.update(self._session)
        self._confirm()
        self._membership.renew(self._observed)
        self._confirm()  # the renewal may have had the Leases listed
        self._expired.end()
        if self._observed.last.error is None:  # nothing new without a look
            self._share = self._judge()
        holders = self._observed.holders()
        for shard, hold in enumerate(self._holds):
            self._step(shard, hold, free=not holders.get(shard))
        self._tell()
        return self._pause()

    def resign(self) -> None:
        """Give up the shards, then the membership; what the server does not answer runs out by itself."""
        self._stop_serving()
        self._tell()
        for hold in self._holds:
            if hold.held is not None and not hold.release():
                return
        self._session.remove()

    # ------------------------------------------------------------------ inside

    def _confirm(self) -> None:
        """What the Leases tell of those that we hold, and up to when they tell it."""
        seen, held = self._observed.last, self._session.held
        if held is not None and seen.revision >= objects.version(held.resource_version):
            self._observed.known(self._session.sent)
        for hold in self._holds:
            hold.confirm(seen.records.get(hold.name), seen.revision, self._observed.at)

    def _step(self, shard: int, hold: Hold, *, free: bool) -> None:
        """Take a shard that is to be ours, as soon as it is free, and release what is no longer to be ours."""
        seen = self._observed.last.records.get(hold.name)
        ours = seen is not None and seen.holder == self._config.identity and seen.resource_version != hold.released
        if shard in self._share.wanted:
            hold.releasing = False
            if hold.held is None and (free or ours) and hold.due and not hold.take(seen):
                self._watch.doubt()
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
        due += self._expired.seconds_left()
        lacking = any(self._holds[n].held is None for n in self._share.wanted)
        due += self._watch.next_list_seconds(waiting=lacking or self.error is not None)
        if any(hold.releasing for hold in self._holds):
            due.append(DRAINING_SECONDS)
        return max(0.01, min(due))

    def _leave(self) -> None:
        """Our session is over: whatever we held in it is others' to take."""
        self._share = replace(self._share, serving=False, wanted=frozenset())
        for hold in self._holds:
            hold.drop()

    def _stop_serving(self) -> None:
        self._share = replace(self._share, serving=False)

    def _judge(self) -> _Share:
        """Who is alive, whether we may serve at all, and which shards are to be ours."""
        config, identity = self._config, self._config.identity
        members = self._membership.living(self._observed)
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
    return owner if re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?", owner) else f"x{short_digest(owner)}"
