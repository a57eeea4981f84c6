"""This replica among all that run: what its own Lease says, and which Leases of others it ends."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b

from bridge.errors import BridgeError, PermanentError, StaleError, TransientError
from bridge.kube import objects
from bridge.kube.lease import LeaseRecord, Lock, Session, boot_clock
from bridge.kube.lease_watch import LeaseWatch
from bridge.kube.members import (
    CONSUL,
    INSTALLATION,
    JOINED,
    PROCESS,
    SESSION,
    SHARDS,
    WRITES,
    YIELDS,
    Abilities,
    Annotations,
    ElectionConfig,
    Installations,
    Member,
    Observations,
)

LockOf = Callable[[str, str, Annotations], Lock]
"""Makes the lock on a Lease: its name, its kind, and what it is to say."""


class Membership:
    """Our own Lease, the session: renewed in time, and earlier where others are to know something new of us.

    `at_rest`: we write nothing, and nothing that we began is under way.
    """

    def __init__(
        self,
        config: ElectionConfig,
        prefix: str,
        lock_of: LockOf,
        abilities: Abilities,
        installations: Installations,
        *,
        process: str = "",
        at_rest: Callable[[], bool],
        on_ended: Callable[[], None],
        clock: Callable[[], float] = boot_clock,
        spread: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._config = config
        self._name = f"{prefix}-member-{short_digest(config.identity)}"
        self.abilities = abilities
        self._installations = installations
        self._process = process
        self._at_rest = at_rest
        self._clock = clock
        self._published: Mapping[str, str] = {}
        own = lock_of(self._name, "member", self._publish)
        self.session = Session(own, config.times, on_ended=on_ended, clock=clock, spread=spread)

    def renew(self, observed: Observations) -> None:
        """Renew the session in time; earlier where our abilities, or what the Lease says, have changed."""
        session, renew_seconds = self.session, self._config.times.renew
        held, seen = session.held, observed.last
        changed = False
        if held is not None:
            shown = seen.records.get(self._name)
            known = seen.revision >= objects.version(held.resource_version)
            changed = known and (shown is None or shown.uid != held.uid or shown.holder != held.holder)
            news = self._annotations() != self._published
            changed |= news and self._clock() - session.sent >= min(2.0, 0.4 * renew_seconds)
        if session.seconds <= 0 or changed:
            session.step()

    def living(self, observed: Observations) -> list[Member]:
        """Members whose Lease is there, ourselves from our own books."""
        config = self._config
        members = observed.others(config.identity)
        if self.session.joined:
            mine = (config.installation, self._installations.demoted, *self.abilities.texts)
            members.append(Member(config.identity, config.shards, self.session.joined, *mine))
        return sorted(members, key=lambda m: (m.joined, m.identity))

    def of_shard(self) -> dict[str, str]:
        """What a shard's Lease says while we hold it."""
        return {SESSION: self.session.uid, **self._installation()}

    def _publish(self) -> Mapping[str, str]:
        self._published = self._annotations()
        return self._published

    def _annotations(self) -> dict[str, str]:
        joined = {JOINED: str(self.session.joined)} if self.session.joined else {}
        yields = {YIELDS: "true"} if self._installations.demoted and self._at_rest() else {}
        able = dict(zip((CONSUL, WRITES), self.abilities.texts, strict=True))
        process = {PROCESS: self._process} if self._process else {}
        return {SHARDS: str(self._config.shards), **process, **able, **joined, **self._installation(), **yields}

    def _installation(self) -> dict[str, str]:
        return {INSTALLATION: self._config.installation} if self._config.installation else {}


class ExpiredSessions:
    """Ends the sessions of others that were not renewed for their duration, which frees what they hold."""

    def __init__(
        self,
        config: ElectionConfig,
        watch: LeaseWatch,
        lock_of: LockOf,
        has_ended: Callable[[str], bool],
        clock: Callable[[], float],
    ) -> None:
        self._identity = config.identity
        self._watch = watch
        self._lock_of = lock_of
        self._has_ended = has_ended
        self._clock = clock
        self._began_to_write_until = clock() + config.times.margin
        self.error: BridgeError | None = None
        """Why one could not be ended at the last try."""

    def end(self) -> None:
        """Delete the Leases that are due, each in the version that was seen."""
        self.error = None
        observed = self._watch.observed
        if observed.last.error is not None:
            return
        for left, name, record in self._expiring():
            if left > 0:
                continue
            try:
                self._lock_of(name, "member", dict).remove(record)
                observed.drop(name)
            except StaleError:
                self._watch.doubt()  # it was renewed, and we have not learned of it
            except (TransientError, PermanentError) as error:
                self.error = error

    def seconds_left(self) -> Iterator[float]:
        """The time until each other session is over."""
        return (left for left, *_ in self._expiring() if left > 0)

    def _expiring(self) -> Iterator[tuple[float, str, LeaseRecord]]:
        """When the sessions of others are over: that of a process before us in our container, which has ended, sooner.

        What it had begun to write may still be on its way: that gets the margin, as what is begun before any fence.
        """
        for left, name, record in self._watch.observed.expiring(self._identity):
            process = record.annotations.get(PROCESS, "")
            if process and self._has_ended(process):
                left = min(left, self._began_to_write_until - self._clock())
            yield left, name, record


def short_digest(text: str) -> str:
    """A text as part of an object's name."""
    return blake2b(text.encode(), digest_size=6).hexdigest()
