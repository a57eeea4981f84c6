"""Kubernetes Events about what the bridge did or could not do: for `kubectl describe`, best effort.

Recording never waits and never fails: the queue is bounded, one thread writes, and the oldest event is dropped when
there are too many. Namespaces take turns, and the one with the most events loses some first, so that a flood in one
does not hide another's events. A namespace that the bridge may not write to does not stop the rest. Repeated events on
one object become one Event whose `series` counts (events.k8s.io/v1), written at most once per `series_seconds`.
Nothing else may depend on Events being delivered.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from bridge.core.model import Kind
from bridge.errors import BridgeError, CancelledError, PermanentError
from bridge.kube import objects
from bridge.kube.client import JSON, MERGE, METADATA_ONLY, KubeClient

NOTE_LIMIT = 1024
"""Bytes of `note` that the API server accepts."""
CODES = "consul-bridge/reasons"
"""The annotation on an Event that has the codes."""
FORGET_SECONDS = 3000.0
"""Stays below the server's event lifetime (1 h)."""
REFUSED_SECONDS = 600.0
"""After a refusal (403) nothing is written to that namespace for so long."""
_PATH = "/apis/events.k8s.io/v1/namespaces/{namespace}/events"


@dataclass(frozen=True, slots=True)
class About:
    """The object that an Event concerns. It need not exist (`uid` may be empty)."""

    kind: Kind
    namespace: str
    name: str
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """One Event. `reason` and `action` are CamelCase words, `note` is a sentence for users.

    `codes` are the bridge's own reason codes, for programs.
    """

    about: About
    type: Literal["Normal", "Warning"]
    reason: str
    action: str
    note: str
    codes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Series:
    """An Event that was sent: its object's name, how often it happened since, and when that was last written."""

    name: str
    count: int
    written_at: float
    pending: bool = False


class EventRecorder:
    """Sends events from a thread of its own. `record` may be called from anywhere."""

    # attributes: three are limits and three are counters; the rest is one queue and what was sent from it

    def __init__(
        self,
        client: KubeClient,
        *,
        instance: str = "",
        queue_size: int = 1000,
        known_size: int = 4096,
        series_seconds: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client.clone(connections=1)
        self._instance = instance or f"{socket.gethostname()}-{os.getpid()}"
        self._queues: dict[str, deque[Event]] = {}
        self._queued = 0
        self._queue_size = queue_size
        self._known: dict[str, OrderedDict[Event, _Series]] = {}
        self._known_size = known_size
        self._series_seconds = series_seconds
        self._silent_until: dict[str, float] = {}
        self._clock = clock
        self._changed = threading.Condition()
        self._busy = False
        self._closed = False
        self.sent = 0
        self.dropped = 0
        self.failed = 0
        self._thread = threading.Thread(target=self._run, name="kube-events", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def record(self, event: Event) -> None:
        """Queue an Event; it is dropped when there are too many."""
        with self._changed:
            if self._closed:
                return
            if self._queued >= self._queue_size:
                self._take(max(self._queues, key=lambda namespace: len(self._queues[namespace])))
                self.dropped += 1
            self._queues.setdefault(event.about.namespace, deque()).append(event)
            self._queued += 1
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Wait until everything recorded was sent or given up; False at the timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed or not (self._queued or self._busy), timeout)

    def close(self, timeout: float = 1.0) -> bool:
        """Drop queued events and end the thread; returns whether it ended in time."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._client.close()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    # ------------------------------------------------------------------ inside

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closed or self._queued > 0)
                if self._closed:
                    return
                event = self._take(next(iter(self._queues)))
                self._busy = True
            self.send(event)

    def _take(self, namespace: str) -> Event:
        """The oldest event of a namespace, taken out; the next turn is another's. Called with the lock held."""
        events = self._queues.pop(namespace)
        event = events.popleft()
        if events:
            self._queues[namespace] = events
        self._queued -= 1
        return event

    def send(self, event: Event) -> None:
        """Send one event now, or count it; never raises what the API server says."""
        now = self._clock()
        namespace = event.about.namespace
        if now < self._silent_until.get(namespace, now):
            self.dropped += 1
            return
        self._silent_until.pop(namespace, None)
        try:
            self._send(event, now)
        except CancelledError:
            return
        except PermanentError:
            self.failed += 1
            self._silent_until[namespace] = now + REFUSED_SECONDS
        except BridgeError:
            self.failed += 1

    def _send(self, event: Event, now: float) -> None:
        known: dict[Event, _Series] = self._known.get(event.about.namespace, OrderedDict())
        series = known.get(event)
        if series is not None and now - series.written_at >= FORGET_SECONDS:
            del known[event]
            series = None
        if series is None:
            self._learn(event, _Series(self._create(event), 1, now))
            return
        series.count += 1
        if now - series.written_at < self._series_seconds:
            return
        if not self._count(event, series):
            series.name, series.count = self._create(event), 1
        series.written_at = now

    def _learn(self, event: Event, series: _Series) -> None:
        """Remember what was sent; the namespace of which most is known forgets the oldest."""
        self._known.setdefault(event.about.namespace, OrderedDict())[event] = series
        if sum(map(len, self._known.values())) > self._known_size:
            most = max(self._known, key=lambda namespace: len(self._known[namespace]))
            self._known[most].popitem(last=False)
        if len(self._known) > self._known_size // 4:
            self._known = {namespace: events for namespace, events in self._known.items() if events}

    def _create(self, event: Event) -> str:
        about = event.about
        name = f"{about.name[:230]}.{uuid.uuid4().hex[:16]}"
        regarding = {
            "kind": about.kind.value,
            "apiVersion": objects.API_VERSION[about.kind],
            "namespace": about.namespace,
            "name": about.name,
        }
        if about.uid:
            regarding["uid"] = about.uid
        body: dict[str, Any] = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": about.namespace},
            "eventTime": _now(),
            "reportingController": "consul-bridge",
            "reportingInstance": self._instance[:128],
            "type": event.type,
            "reason": event.reason[:128],
            "action": event.action[:128],
            "note": _cut(event.note),
            "regarding": regarding,
        }
        if event.codes:
            body["metadata"]["annotations"] = {CODES: ",".join(event.codes)}
        self._request("POST", _PATH.format(namespace=about.namespace), body, JSON)
        self.sent += 1
        return name

    def _count(self, event: Event, series: _Series) -> bool:
        """Write how often it happened; False when the Event object has expired."""
        path = f"{_PATH.format(namespace=event.about.namespace)}/{series.name}"
        body = {"series": {"count": max(series.count, 2), "lastObservedTime": _now()}}
        status = self._request("PATCH", path, body, MERGE, allow=frozenset({404}))
        if status == 404:
            return False
        self.sent += 1
        return True

    def _request(
        self, method: str, path: str, body: dict[str, Any], content_type: str, allow: frozenset[int] = frozenset()
    ) -> int:
        data = json.dumps(body, separators=(",", ":")).encode()
        answer = self._client.request(
            method, path, body=data, content_type=content_type, accept=METADATA_ONLY, allow=allow
        )
        return answer.status


def _cut(note: str) -> str:
    """At most NOTE_LIMIT bytes, whole characters."""
    data = note.encode()
    return note if len(data) <= NOTE_LIMIT else data[: NOTE_LIMIT - 3].decode("utf-8", "ignore") + "…"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
