"""The Leases of one owner id on the API server: listed, watched, taken and given up.

election.py decides what is done with them. Needs list, watch, create, update and delete on leases.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from bridge.core import ownership
from bridge.errors import PermanentError, StaleError, TransientError
from bridge.json_shape import Body
from bridge.kube import faults, objects
from bridge.kube.client import KubeClient
from bridge.kube.lease import LeaseLock, LeaseRecord, Lock, record_of
from bridge.kube.members import KIND, Annotations, ElectionConfig, LeaseEvent, LeaseSnapshot, Observations
from bridge.kube.reads import watch_query

ALIVE_DURATIONS = 4
"""For how many durations without a renewal a shard's holder counts as running for a command that looks once."""


def holder(client: KubeClient, owner: str, namespaces: Iterable[str]) -> str:
    """A replica that writes with this owner id now, as the Leases in one of `namespaces` say ("": any of them).

    "" where there is none, or no Lease may be listed. It holds a shard, and has renewed its own Lease lately. One look
    cannot see a Lease renewed, so its time is compared with the API server's, generously: a replica that was killed
    counts for `ALIVE_DURATIONS` of its Lease, if no other ends its session. One that ended cleanly has given it up.
    """
    selector = f"{ownership.MANAGED_BY}={ownership.MANAGER},{ownership.OWNER}={owner},{KIND}"
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


def _records(body: Body) -> tuple[list[tuple[str, LeaseRecord]], int]:
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
        self._labels = {ownership.OWNER: config.owner}
        selector = f"{ownership.MANAGED_BY}={ownership.MANAGER},{ownership.OWNER}={config.owner},{KIND}"
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
