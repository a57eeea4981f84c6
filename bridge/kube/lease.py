"""Who may write: leader election on a `coordination.k8s.io/v1` Lease, fenced by the monotonic clock.

Our own, because the kubernetes package's goes on leading when the API server is lost
(docs/kubernetes.md). What it rests on:

- Only the API server decides: every change of the Lease carries the resourceVersion that was seen, so of many who try
  exactly one succeeds.
- The clock of another machine does not count. A candidate takes the Lease when IT has seen the record unchanged for the
  record's whole duration, on a monotonic clock of its own; the times in the record are for people.
- A leader counts from the moment BEFORE it sent its last successful renewal. Others can see that renewal only later,
  so they wait at least until `sent + duration`; the leader stops writing `margin` earlier (`may_write`), whether or
  not any thread of its elector gets to run. From then on it does not count itself as leader either: it campaigns again.

    sent ─────────────── fence = sent + duration - margin ──── sent + duration
     │ may_write: yes     │ no; lost: `on_stopped`               │ others may take it

A write that was begun before the fence is waited for until `sent + duration` at most. The server may still carry it out
later, when no thread waits for the answer; the preconditions then limit it to the very object that was seen.

When a user deletes a Lease that is held, another replica can create it at once: two may then write until the fence of
the first is reached. Needs create and update on leases (and get, where `election` does not list them all). This module
must not know what is written, nor import another package; `election` runs several electors side by side.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from bridge.errors import BridgeError, PermanentError, StaleError, TransientError
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
    """What an elector needs of a LeaseLock."""

    name: str
    identity: str
    duration_seconds: int

    def read(self, *, cached: bool = False) -> LeaseRecord | None: ...

    def acquire(self, seen: LeaseRecord | None) -> LeaseRecord: ...

    def renew(self, held: LeaseRecord) -> LeaseRecord: ...

    def release(self, held: LeaseRecord) -> None: ...


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
        self._labels = {objects.MANAGED_BY: objects.MANAGER, **(labels or {})}
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
            method, path, query=(("fieldManager", objects.MANAGER),), body=data, timeout=self._timeout_seconds
        )
        return _of_body(answer.body)

    def _now(self) -> str:
        return self._wall().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _of_body(body: bytes) -> LeaseRecord:
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

    `margin` is how long before the Lease can be taken a leader begins no write any more: the last one has so long.
    `renew` is the pause between renewals, `poll` that between a standby's looks (a released Lease is taken within it);
    both are jittered by a fifth.
    """

    margin: float = 5.0
    renew: float = 2.0
    poll: float = 0.6


class LeaderElector:
    """Keeps trying to hold one Lease while it is `wanted`: `step` again and again, `resign` at the end.

    `on_started` and `on_stopped` are called in the thread that calls `step`. A writer must not rely on `on_stopped`
    alone: only `may_write`, called right before each write, is safe in a process that was paused. `drained` says
    whether no write is in flight: a Lease that is no longer wanted is released only then.
    """

    def __init__(
        self,
        lock: Lock,
        settings: ElectionSettings | None = None,
        *,
        on_started: Callable[[], None] = lambda: None,
        on_stopped: Callable[[], None] = lambda: None,
        wanted: Callable[[], bool] = lambda: True,
        drained: Callable[[], bool] = lambda: True,
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
        self._on_started = on_started
        self._on_stopped = on_stopped
        self._wanted = wanted
        self._drained = drained
        self._clock = clock
        self._spread = spread
        self._releasing = False
        self._held: LeaseRecord | None = None
        self._sent = float("-inf")
        self._observed: LeaseRecord | None = None
        self._observed_at = float("-inf")
        self.error: BridgeError | None = None

    # ------------------------------------------------------------------ asked by writers

    def may_write(self, now: float | None = None) -> bool:
        """Whether we hold the Lease and no replica can take it for at least `margin` from `now` on (`clock`'s)."""
        moment = self._clock() if now is None else now
        return self._held is not None and not self._releasing and moment < self._fence

    def lease_remaining(self) -> float:
        """How long a write that begins now may take: until others can have the Lease. 0 when none may begin."""
        moment = self._clock()
        until = self._sent + self._lock.duration_seconds
        return until - moment if self.may_write(moment) else 0.0

    @property
    def _fence(self) -> float:
        return self._sent + self._lock.duration_seconds - self._settings.margin

    @property
    def leading(self) -> bool:
        """Whether we hold the Lease as far as we know. For status; before a write ask `may_write`."""
        return self._held is not None

    @property
    def held(self) -> LeaseRecord | None:
        """The record that we hold, as far as we know."""
        return self._held

    @property
    def leader(self) -> str:
        """Identity of the holder last seen, "" when there is none."""
        if self._held is not None:
            return self._lock.identity
        return self._observed.holder if self._observed is not None else ""

    # ------------------------------------------------------------------ life

    def resign(self) -> bool:
        """Release the Lease, for good; call it when the last write has ended. False: the server did not answer."""
        self._releasing = True
        return self._release()

    def step(self) -> float:
        """One look at the Lease, or one renewal, or its release; seconds until the next."""
        self._expire()
        self._releasing = self._held is not None and not self._wanted()
        if self._releasing:
            if self._drained():
                self._release()
                self._releasing = False
                return self._settings.poll
            if self._clock() - self._sent < self._settings.renew:
                return DRAINING_SECONDS
        try:
            pause = self._renew() if self._held is not None else self._campaign()
        except (TransientError, PermanentError) as error:
            self.error = error
            pause = min(self._settings.renew, self._settings.poll) if self._held is not None else self._settings.renew
            pause = max(pause, getattr(error, "retry_after_seconds", None) or 0.0)
        else:
            self.error = None
        self._expire()
        return self._spread(0.8 * pause, 1.2 * pause)

    # ------------------------------------------------------------------ inside

    def _campaign(self) -> float:
        record = self._lock.read(cached=True)
        now = self._clock()
        if record is None:
            if not self._wanted():
                return self._settings.poll
            self._take(None)
            return self._settings.renew
        if self._observed is None or record != self._observed:
            self._observed, self._observed_at = record, now
        duration = record.duration_seconds or self._lock.duration_seconds
        unchanged = now - self._observed_at
        free = not record.holder or record.holder == self._lock.identity or unchanged >= duration
        if not free:
            return min(self._settings.poll, max(duration - unchanged, 0.05))
        if not self._wanted():
            return self._settings.poll
        self._take(record)
        return self._settings.renew if self._held is not None else self._settings.poll

    def _take(self, record: LeaseRecord | None) -> None:
        sent = self._clock()
        try:
            held = self._lock.acquire(record)
        except StaleError:
            self._observed = (
                None  # another replica was quicker, or the read was old: observe the new record from the start
            )
            return
        self._hold(held, sent)
        self._on_started()

    def _renew(self) -> float:
        held = self._held
        if held is None:
            return self._settings.poll
        sent = self._clock()
        try:
            fresh = self._lock.renew(held)
        except StaleError:
            found = self._lock.read()
            if found is None or found.holder != self._lock.identity:
                self._observed, self._observed_at = found, self._clock()
                self._lose()
                return self._settings.poll
            self._held = found  # ours still: a renewal whose answer was lost, or a user's annotation
            sent = self._clock()
            fresh = self._lock.renew(found)
        self._hold(fresh, sent)
        return self._settings.renew

    def _hold(self, record: LeaseRecord, sent: float) -> None:
        # `may_write` reads without a lock: the time first, so that a new record never meets an older time
        self._sent = sent
        self._held = record
        self._observed = None

    def _expire(self) -> None:
        """From here on others can have it soon: no longer ours, whatever the server would say."""
        if self._held is not None and self._clock() >= self._fence:
            self._lose()

    def _lose(self) -> None:
        self._held = None
        self._sent = float("-inf")
        self._on_stopped()

    def _release(self) -> bool:
        held = self._held
        if held is None:
            return True
        self._held = None
        self.error = None
        try:
            self._lock.release(held)
        except StaleError:
            pass  # taken or changed meanwhile: not ours to free
        except BridgeError as error:
            self.error = error  # it runs out by itself
        self._on_stopped()
        return self.error is None
