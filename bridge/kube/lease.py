"""Locks on `coordination.k8s.io/v1` Leases, fenced by the monotonic clock: a session that is renewed, and holds in it.

Our own, because the kubernetes package's goes on leading when the API server is lost
(docs/kubernetes.md). What it rests on:

- Only the API server decides: every change of a Lease carries the resourceVersion that was seen, so of many who try
  exactly one succeeds.
- A process has one Lease that it renews, its `Session`. Another process ends the session when IT has seen the record
  unchanged for the record's whole duration, on a monotonic clock of its own; the times in the record are for people,
  and no clock of another machine counts. It ends it by deleting the very version that it saw: a renewal that the API
  server had before that makes the deletion fail, and one that comes later fails itself.
- A `Hold` is a Lease that names a session by its uid and is never renewed: it is free for others once no Lease has
  that uid. So the traffic in steady state does not depend on how many are held.
- A session counts from the moment BEFORE its last successful renewal was sent. Others can see that renewal only later,
  so they wait at least until `sent + duration`; the holder stops writing `margin` earlier (`may_write`), whether or
  not any thread of ours gets to run. From then on it does not count on its session either: it takes it again.

    sent ─────────────── fence = sent + duration - margin ──── sent + duration
     │ may_write: yes     │ no; lost: `on_ended`                 │ others may end the session, and take what it held

A write that was begun before the fence is waited for until `sent + duration` at most. The server may still carry it out
later, when no thread waits for the answer; the preconditions then limit it to the very object that was seen.

When a user deletes a Lease that is held, another replica can take its place at once: two may then write until the first
sees it go (a watch tells it), or until its fence: a hold as well counts only from the last moment at which all Leases
were known. Needs create, update and delete on leases. This module
must not know what is written, nor import another package; `election` runs a session and several holds.

Longer than other modules: a `Hold` is worth as much as the `Session` that it names, so both are read together.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from bridge.core import ownership
from bridge.errors import BridgeError, PermanentError, StaleError, TransientError
from bridge.json_shape import Body
from bridge.kube import objects
from bridge.kube.client import KubeClient

DRAINING_SECONDS = 0.05
"""How often a Lease that is being released is checked for the end of its last write."""

_PATH = "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """What a Lease says. `holder` is "" when no replica holds it; `duration_seconds` is 0 when it has none."""

    holder: str
    duration_seconds: int
    acquire_time: str
    renew_time: str
    transitions: int
    resource_version: str
    uid: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


class Lock(Protocol):
    """What a session or a hold needs of a LeaseLock."""

    name: str
    identity: str
    duration_seconds: int

    def read(self, *, cached: bool = False) -> LeaseRecord | None: ...

    def acquire(self, seen: LeaseRecord | None) -> LeaseRecord: ...

    def renew(self, held: LeaseRecord) -> LeaseRecord: ...

    def release(self, held: LeaseRecord) -> None: ...

    def remove(self, held: LeaseRecord) -> None: ...


def boot_clock() -> float:
    """Monotonic seconds that also count while the machine is suspended, where the system has such a clock."""
    source = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(source) if source is not None else time.monotonic()


class LeaseLock:
    """One Lease and the four things that can be done with it, each a single request. No state, no waiting."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        name: str,
        identity: str,
        *,
        duration_seconds: int = 15,
        timeout_seconds: float = 3.0,
        labels: Mapping[str, str] | None = None,
        annotations: Callable[[], Mapping[str, str]] = dict,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`identity` must be unique per process (host name and something random): it is how a holder knows itself.

        `annotations` is asked at every request that writes, `labels` stand on the Lease besides ours.
        """
        if duration_seconds < 1 or not identity:
            raise ValueError("a lease needs an identity and a duration of at least one second")
        self._client = client
        self.namespace = namespace
        self.name = name
        self.identity = identity
        self.duration_seconds = duration_seconds
        self._timeout_seconds = timeout_seconds
        self._labels = {ownership.MANAGED_BY: ownership.MANAGER, **(labels or {})}
        self._annotations = annotations
        self._wall = wall
        self._path = _PATH.format(namespace=namespace)

    def read(self, *, cached: bool = False) -> LeaseRecord | None:
        """The record, None when there is no Lease. `cached` may be a moment old (and costs etcd nothing)."""
        query = (("resourceVersion", "0"),) if cached else ()
        answer = self._client.request(
            "GET",
            f"{self._path}/{self.name}",
            query=query,
            timeout=self._timeout_seconds,
            allow=frozenset({404}),
        )
        if answer.status == 404:
            return None
        return _of_body(answer.body)

    def acquire(self, seen: LeaseRecord | None) -> LeaseRecord:
        """Take a Lease that is absent (`seen` None), or replace exactly the record that was seen.

        Raises StaleError when another replica was quicker.
        """
        now = self._now()
        transitions = seen.transitions + (seen.holder != self.identity) if seen is not None else 0
        taken = LeaseRecord(self.identity, self.duration_seconds, now, now, transitions, "")
        if seen is None:
            return self._send("POST", self._path, taken)
        taken = replace(taken, resource_version=seen.resource_version, uid=seen.uid)
        return self._send("PUT", f"{self._path}/{self.name}", taken)

    def renew(self, held: LeaseRecord) -> LeaseRecord:
        """Renew the record that we hold. Raises StaleError when it was changed."""
        fresh = replace(held, renew_time=self._now(), duration_seconds=self.duration_seconds)
        return self._send("PUT", f"{self._path}/{self.name}", fresh)

    def release(self, held: LeaseRecord) -> None:
        """Give the Lease up, so that the next one need not wait. Raises StaleError when it is ours no longer."""
        free = replace(held, holder="", duration_seconds=1, renew_time=self._now())
        self._send("PUT", f"{self._path}/{self.name}", free)

    def remove(self, held: LeaseRecord) -> None:
        """Delete the Lease as it was seen. Raises StaleError when it was changed; that it is gone is no error."""
        preconditions = {"uid": held.uid, "resourceVersion": held.resource_version}
        body = json.dumps({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": preconditions}).encode()
        self._client.request(
            "DELETE", f"{self._path}/{self.name}", body=body, timeout=self._timeout_seconds, allow=frozenset({404})
        )

    def _send(self, method: str, path: str, record: LeaseRecord) -> LeaseRecord:
        metadata: dict[str, Any] = {
            "name": self.name,
            "namespace": self.namespace,
            "labels": self._labels,
        }
        if annotations := dict(self._annotations()):
            metadata["annotations"] = annotations
        if record.resource_version:
            metadata["resourceVersion"] = record.resource_version
            metadata["uid"] = record.uid  # else a PUT recreates a deleted Lease
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": record.holder,
                "leaseDurationSeconds": record.duration_seconds,
                "acquireTime": record.acquire_time or self._now(),
                "renewTime": record.renew_time,
                "leaseTransitions": record.transitions,
            },
        }
        data = json.dumps(body, separators=(",", ":")).encode()
        answer = self._client.request(
            method, path, query=(("fieldManager", ownership.MANAGER),), body=data, timeout=self._timeout_seconds
        )
        return _of_body(answer.body)

    def _now(self) -> str:
        return self._wall().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _of_body(body: Body) -> LeaseRecord:
    try:
        return record_of(objects.mapping(json.loads(body)))
    except ValueError as error:
        raise TransientError("a Lease was answered with no JSON") from error


def record_of(found: Mapping[str, Any]) -> LeaseRecord:
    """What a Lease object says. TransientError when it is none."""
    spec, metadata = objects.mapping(found.get("spec")), objects.mapping(found.get("metadata"))
    if not metadata.get("resourceVersion"):
        raise TransientError("a Lease was answered with something else")

    def number(key: str) -> int:
        value = spec.get(key)
        return value if isinstance(value, int) and value > 0 else 0

    return LeaseRecord(
        holder=str(spec.get("holderIdentity") or ""),
        duration_seconds=number("leaseDurationSeconds"),
        acquire_time=str(spec.get("acquireTime") or ""),
        renew_time=str(spec.get("renewTime") or ""),
        transitions=number("leaseTransitions"),
        resource_version=str(metadata["resourceVersion"]),
        uid=str(metadata.get("uid") or ""),
        annotations=_texts(metadata.get("annotations")),
        labels=_texts(metadata.get("labels")),
    )


def _texts(found: Any) -> dict[str, str]:
    return {str(key): str(value) for key, value in objects.mapping(found).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ElectionSettings:
    """Times of an election, in seconds.

    `margin` is how long before others can end a session no write begins any more: the last one has so long.
    `renew` is the pause between renewals, `poll` that between two tries of what failed, both jittered by a fifth.
    """

    margin: float = 5.0
    renew: float = 5.0
    poll: float = 0.6


def pause_after(error: BridgeError, seconds: float) -> float:
    """How long to wait until the next try: `seconds`, or as long as the server asks for."""
    return max(seconds, getattr(error, "retry_after_seconds", None) or 0.0)


class Session:
    """Keeps the Lease that only this process takes: `step` again and again, `remove` at the end.

    `on_ended` is called in the thread that calls `step`. A writer must not rely on it: only `may_write`, called right
    before each write, is safe in a process that was paused.
    """

    def __init__(
        self,
        lock: Lock,
        settings: ElectionSettings | None = None,
        *,
        on_ended: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = boot_clock,
        spread: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._lock = lock
        self._settings = settings or ElectionSettings()
        duration = lock.duration_seconds
        if self._settings.margin + 2 * self._settings.renew > duration:
            raise ValueError(
                f"a lease of {duration} s leaves no room for a margin of {self._settings.margin} s "
                f"and two renewals every {self._settings.renew} s"
            )
        self._on_ended = on_ended
        self._clock = clock
        self._spread = spread
        self._held: LeaseRecord | None = None
        self._due = float("-inf")
        self.sent = float("-inf")
        """When the last successful renewal was sent."""
        self.answered = float("-inf")
        """When the answer to it came."""
        self.joined = 0
        """The API server's revision at which the session was taken, 0 without one."""
        self.error: BridgeError | None = None

    # ------------------------------------------------------------------ asked by writers

    def may_write(self, now: float) -> bool:
        """Whether we have the session and no replica can end it for at least `margin` from `now` on (`clock`'s)."""
        return self._held is not None and now < self._fence

    @property
    def until(self) -> float:
        """When others can end it."""
        return self.sent + self._lock.duration_seconds

    @property
    def _fence(self) -> float:
        return self.until - self._settings.margin

    @property
    def held(self) -> LeaseRecord | None:
        """The record that we hold, as far as we know. Before a write ask `may_write`."""
        return self._held

    @property
    def uid(self) -> str:
        """What holds name the session by, "" without one."""
        return self._held.uid if self._held is not None else ""

    @property
    def seconds(self) -> float:
        """Until the next step is due."""
        return self._due - self._clock()

    # ------------------------------------------------------------------ life

    def step(self) -> None:
        """Take the Lease, or renew it."""
        self._expire()
        try:
            if self._held is None:
                self._take()
            else:
                self._renew(self._held)
        except (TransientError, PermanentError) as error:
            self.error = error
            patient = isinstance(error, PermanentError) and self._held is None
            pause = pause_after(error, self._settings.renew if patient else self._settings.poll)
        else:
            self.error = None
            pause = self._settings.renew if self._held is not None else self._settings.poll
        self._due = self._clock() + self._spread(0.8 * pause, 1.2 * pause)
        self._expire()

    def remove(self) -> None:
        """End the session, so that nothing that it held keeps others waiting. What fails runs out by itself."""
        held = self._held
        if held is not None:
            self._lose()
            try:
                self._lock.remove(held)
            except BridgeError as error:
                self.error = error

    # ------------------------------------------------------------------ inside

    def _take(self) -> None:
        sent = self._clock()
        try:
            held = self._lock.acquire(self._lock.read(cached=True))
        except StaleError:
            self._lock.read()  # what was read was old
            return
        self._hold(held, sent)
        self.joined = objects.version(held.resource_version)

    def _renew(self, held: LeaseRecord) -> None:
        sent = self._clock()
        try:
            fresh = self._lock.renew(held)
        except StaleError:
            found = self._lock.read()
            if found is None or found.holder != self._lock.identity or found.uid != held.uid:
                self._lose()
                return
            self._held = found  # ours still: a renewal whose answer was lost, or a user's annotation
            sent = self._clock()
            fresh = self._lock.renew(found)
        self._hold(fresh, sent)

    def _hold(self, record: LeaseRecord, sent: float) -> None:
        # `may_write` reads without a lock: the time first, so that a new record never meets an older time
        self.sent = sent
        self.answered = self._clock()
        self._held = record

    def _expire(self) -> None:
        """From here on others can end it soon: no longer ours, whatever the server would say."""
        if self._held is not None and self._clock() >= self._fence:
            self._lose()

    def _lose(self) -> None:
        self._held = None
        self.sent = float("-inf")
        self.joined = 0
        self._on_ended()


class Hold:
    """A Lease that is ours while our session lasts: taken once, confirmed by what all Leases show, never renewed."""

    def __init__(self, lock: Lock, settings: ElectionSettings, clock: Callable[[], float] = boot_clock) -> None:
        self._lock = lock
        self._settings = settings
        self._clock = clock
        self._confirmed = float("-inf")
        self.name = lock.name
        self.held: LeaseRecord | None = None
        self.releasing = False
        """It is to be given up when the last write has ended; none begins any more."""
        self.released = ""
        """The version that we gave up: Leases that still show it are old."""
        self.error: BridgeError | None = None
        self._not_before = float("-inf")

    @property
    def due(self) -> bool:
        """Whether it is time to try to take it."""
        return self._clock() >= self._not_before

    def may_write(self, now: float) -> bool:
        """Whether we hold it, and knew so within the time in which no other replica can have it."""
        return self.held is not None and not self.releasing and now < self.until - self._settings.margin

    @property
    def until(self) -> float:
        """For how long what we know of it counts."""
        return self._confirmed + self._lock.duration_seconds

    def confirm(self, found: LeaseRecord | None, revision: int, at: float) -> None:
        """What the Leases showed of it, complete up to the `revision`, and to the moment `at`."""
        held = self.held
        if held is None or revision < objects.version(held.resource_version):
            return  # they do not show yet that we took it
        if found is None or found.holder != self._lock.identity or found.uid != held.uid:
            self.drop()
            return
        self._confirmed = max(self._confirmed, at)
        self.held = found

    def take(self, seen: LeaseRecord | None) -> bool:
        """Take what is absent, or exactly the record that was seen. False: another replica was quicker."""
        sent = self._clock()
        self.error = None
        try:
            held = self._lock.acquire(seen)
        except StaleError:
            return False
        except (TransientError, PermanentError) as error:
            self.error = error
            patient = isinstance(error, PermanentError)
            pause = pause_after(error, self._settings.renew if patient else self._settings.poll)
            self._not_before = self._clock() + pause
            return True
        self._confirmed = sent
        self.releasing = False
        self.held = held
        return True

    def release(self, seen: LeaseRecord | None = None) -> bool:
        """Give it up, for the next one; call it when the last write has ended. False: the server did not answer.

        `seen`: a record that names us, whose taking we never learned of.
        """
        held = self.held or seen
        self.drop()
        self.error = None
        if held is not None:
            self.released = held.resource_version
            try:
                self._lock.release(held)
            except StaleError:
                pass  # taken or changed meanwhile: not ours to free
            except BridgeError as error:
                self.error = error  # it is free when our session has ended
        return self.error is None

    def drop(self) -> None:
        """Count on it no longer."""
        self.held = None
        self.releasing = False
        self._confirmed = float("-inf")
