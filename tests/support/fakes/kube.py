"""A small working Kubernetes API server in this process, on loopback: for speed, and for faults that no real one has.

It does what the bridge relies on, the way kube-apiserver 1.37 does it (docs/kubernetes.md): server-side apply with
ownership per field manager, preconditions, lists in pages, watches with bookmarks and 410, Leases, validation. The same
contract tests run against it and against the real server (tests/contract/test_kube_*.py). No controllers live in it,
but for a plain mirror of Endpoints where a test switches it on (`mirroring`).

    with FakeKube() as kube:
        kubeconfig = kube.kubeconfig(tmp_path)
        kube.inject(Fault(status=503), times=2, method="PATCH")
"""

from __future__ import annotations

import base64
import contextlib
import copy
import ipaddress
import json
import re
import select
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Json = dict[str, Any]
Path_ = tuple[Any, ...]
Manager = tuple[str, str]
Key = tuple[str, str]

ADMIN_TOKEN = "admin-token-of-the-fake"
PLAIN_TOKEN = "plain-token-of-the-fake"

KINDS = {
    ("", "services"): "Service",
    ("", "endpoints"): "Endpoints",
    ("", "namespaces"): "Namespace",
    ("", "nodes"): "Node",
    ("discovery.k8s.io", "endpointslices"): "EndpointSlice",
    ("coordination.k8s.io", "leases"): "Lease",
    ("events.k8s.io", "events"): "Event",
}
SKIP_MIRROR = "endpointslice.kubernetes.io/skip-mirror"
SERVICE_NAME = "kubernetes.io/service-name"
SLICE_MANAGER = "endpointslice.kubernetes.io/managed-by"
MIRRORING = "endpointslicemirroring-controller.k8s.io"
LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
MICRO_TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")
DEPRECATED = '299 - "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"'

SCHEMA: dict[str, dict[str, Any]] = {
    "Service": {
        "spec": {
            "type", "ports", "clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "selector", "externalName",
            "sessionAffinity", "internalTrafficPolicy", "publishNotReadyAddresses", "externalIPs", "loadBalancerClass",
        },
        "status": {"loadBalancer"},
    },
    "Endpoints": {"subsets": None},
    "EndpointSlice": {"addressType": None, "endpoints": None, "ports": None},
    "Namespace": {"spec": {"finalizers"}, "status": {"phase"}},
    "Lease": {"spec": {
        "holderIdentity", "leaseDurationSeconds", "acquireTime", "renewTime", "leaseTransitions", "strategy",
        "preferredHolder",
    }},
    "Event": dict.fromkeys((
        "eventTime", "reportingController", "reportingInstance", "action", "reason", "regarding", "related", "note",
        "type", "series", "deprecatedSource", "deprecatedFirstTimestamp", "deprecatedLastTimestamp", "deprecatedCount",
    )),
}  # fmt: skip
"""Top-level fields per kind; a set lists the fields inside (each owned apart), None means owned as a whole."""
METADATA = {
    "name", "namespace", "labels", "annotations", "uid", "resourceVersion", "managedFields", "ownerReferences",
    "creationTimestamp", "generateName", "finalizers", "generation", "deletionTimestamp",
}  # fmt: skip


@dataclass
class Fault:
    """What happens to a request instead of, or before, its answer.

    `status` answers with that status (and `body`, `headers`); `delay` waits first; `reset` cuts the connection before
    the server does anything, `reset_after` once it was done, `truncate` in the middle of the answer's body. A delay
    ends when the server stops, so it may be as long as a test needs to prove that nothing waits for it.
    """

    status: int = 0
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    reset: bool = False
    reset_after: bool = False
    truncate: bool = False
    lines: tuple[bytes, ...] = ()
    """For a watch: these lines are sent first, then it ends."""


@dataclass(frozen=True)
class Logged:
    """A request as the server saw it; `verb` as in RBAC and the audit log."""

    method: str
    path: str
    query: dict[str, str]
    verb: str
    resource: str
    namespace: str
    name: str
    user: str
    status: int
    body: bytes
    headers: dict[str, str]


@dataclass
class Stored:
    """An object and who owns what of it."""

    body: Json
    managers: dict[Manager, set[Path_]]
    times: dict[Manager, str] = field(default_factory=dict)


class Refused(Exception):  # noqa: N818 - an answer, not an error of the fake
    """A Status to be sent."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.details = code, reason, message, details


@dataclass
class _Rule:
    fault: Fault
    times: int
    method: str
    path: str


LONG_BODY = 2048
"""Bytes from which on the real server, as Go's does, sends chunks and does not say the length."""


class FakeKube:
    """The server. Every public method may be called from any thread while it runs."""

    def __init__(self, namespaces: Iterable[str] = ("default",)) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.objects: dict[tuple[str, str], dict[Key, Stored]] = {k: {} for k in KINDS}
        self.revision = 100
        self.history: list[tuple[int, tuple[str, str], Json | None, Json | None]] = []
        self.compacted = 0
        self.closing = False
        self.log: list[Logged] = []
        self.users = {ADMIN_TOKEN: "admin", PLAIN_TOKEN: "plain"}
        self.mutate: Callable[[str, Json], None] | None = None
        """What admission does to a written object (its plural, and itself) after it was applied."""
        self.version = "1.37.2"
        self.mirroring = False
        """Whether EndpointSlices are made of Endpoints, at once, one for each subset and family."""
        self.forbidden: set[tuple[str, str, str, str]] = set()
        self.bookmark_seconds = 60.0
        self.watch_hold = threading.Event()
        self.watch_hold.set()
        self._rules: list[_Rule] = []
        self._snapshots: dict[str, tuple[int, list[Json]]] = {}
        self._sockets: set[socket.socket] = set()
        self._addresses = iter(range(10, 65000))
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self.port = 0
        for name in namespaces:
            self.add_namespace(name)

    # ------------------------------------------------------------------ life

    def __enter__(self) -> FakeKube:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen (on the same port again after a `stop`)."""
        self.closing = False
        self._server = _Server(("127.0.0.1", self.port), self)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="fake-kube", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop listening and cut every connection; the objects stay."""
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self.cut()
            self._server.server_close()
            self._thread.join()
            self._server = self._thread = None

    @property
    def url(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self.port}"

    def kubeconfig(self, folder: Path, token: str = ADMIN_TOKEN, name: str = "fake.kubeconfig") -> str:
        """Write a kubeconfig; its path."""
        path = folder / name
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
                    "users": [{"name": "user", "user": {"token": token}}],
                    "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "user"}}],
                    "current-context": "fake",
                }
            )
        )
        return str(path)

    # ------------------------------------------------------------------ faults

    def inject(self, fault: Fault, times: int = 1, method: str = "", path: str = "") -> None:
        """The next `times` requests that fit (method, regular expression on path with query) meet `fault`."""
        with self.changed:
            self._rules.append(_Rule(fault, times, method, path))

    def clear_faults(self) -> None:
        """All well again."""
        with self.changed:
            self._rules.clear()

    def take_fault(self, method: str, path: str) -> Fault | None:
        """The fault that a request meets, if any."""
        with self.changed:
            for rule in self._rules:
                fits = rule.method in ("", method) and re.search(rule.path, path)
                if fits and rule.times > 0:
                    rule.times -= 1
                    return rule.fault
        return None

    def cut(self) -> None:
        """Reset every open connection."""
        with self.changed:
            sockets = list(self._sockets)
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.shutdown(socket.SHUT_RDWR)

    def compact(self) -> None:
        """Forget the history: watches from older versions get 410."""
        with self.changed:
            self.compacted = self.revision
            self.history.clear()
            self.changed.notify_all()

    def restore(self, state: Json) -> None:
        """Go back to an earlier `backup`, versions included, as an etcd restored from a snapshot does."""
        with self.changed:
            self.objects = copy.deepcopy(state["objects"])
            self.revision = state["revision"]
            self.history.clear()
            self.compacted = 0

    def backup(self) -> Json:
        """Everything, for `restore`."""
        with self.changed:
            return {"objects": copy.deepcopy(self.objects), "revision": self.revision}

    def forbid(self, user: str, verb: str, resource: str, namespace: str = "*") -> None:
        """Take a permission away."""
        with self.changed:
            self.forbidden.add((user, verb, resource, namespace))

    def allow(self) -> None:
        """Give every permission back."""
        with self.changed:
            self.forbidden.clear()

    # ------------------------------------------------------------------ looking

    def add_namespace(self, name: str) -> None:
        """Create a namespace."""
        with self.changed:
            self.write(("", "namespaces"), "", name, {"metadata": {"name": name}})

    def get(self, resource: str, namespace: str, name: str) -> Json | None:
        """An object as it is stored."""
        with self.changed:
            found = self.objects[_group_of(resource), resource].get((namespace, name))
            return _rendered(found) if found is not None else None

    def ready_addresses(self, namespace: str, name: str) -> list[str] | None:
        """Addresses that are ready in an Endpoints object, in order; None without the object."""
        found = self.get("endpoints", namespace, name)
        if found is None:
            return None
        return sorted(a["ip"] for subset in found.get("subsets") or [] for a in subset.get("addresses") or [])

    def ask(self, name: str, namespace: str = "default", spec: Json | None = None, /, **annotations: str) -> None:
        """Write a user's Service that asks to be filled, with the bridge's annotations (their prefix left out)."""
        marks = {f"consul-bridge/{key}": value for key, value in annotations.items()}
        labels = {"consul-bridge/mirror": "true"}
        self.put("services", {
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": namespace, "labels": labels, "annotations": marks},
            "spec": {"ports": [{"port": 80, "protocol": "TCP"}], **(spec or {})},
        })  # fmt: skip

    def put(self, resource: str, body: Json, manager: str = "somebody") -> Json:
        """Write an object as `manager` would by an update; for preparing a test."""
        metadata = body["metadata"]
        kind = (_group_of(resource), resource)
        with self.changed:
            return self.write(kind, metadata.get("namespace", ""), metadata["name"], body, manager)

    def remove(self, resource: str, namespace: str, name: str) -> None:
        """Delete an object."""
        with self.changed:
            self.drop((_group_of(resource), resource), (namespace, name))

    def count(self, verb: str = "", resource: str = "") -> int:
        """Requests in the log."""
        with self.changed:
            return sum(verb in ("", entry.verb) and resource in ("", entry.resource) for entry in self.log)

    def writes(self) -> list[Logged]:
        """Requests that changed something or tried to."""
        with self.changed:
            return [e for e in self.log if e.verb in ("create", "patch", "update", "delete") and "review" not in e.path]

    # ------------------------------------------------------------------ storing (lock held)

    def write(self, kind: tuple[str, str], namespace: str, name: str, body: Json, manager: str = "fake") -> Json:
        """Create or replace as an Update by `manager`; the stored object."""
        held = self.objects[kind].get((namespace, name))
        fresh = copy.deepcopy(body)
        fresh.setdefault("apiVersion", f"{kind[0]}/v1" if kind[0] else "v1")
        fresh.setdefault("kind", KINDS[kind])
        metadata = fresh.setdefault("metadata", {})
        metadata.setdefault("name", name)
        if namespace:
            metadata["namespace"] = namespace
        fields = metadata.pop("managedFields", None)
        self._complete(kind, fresh, held.body if held else None)
        _validate(kind, fresh, held.body if held else None)
        managers = copy.deepcopy(held.managers) if held else {}
        times = dict(held.times) if held else {}
        before, after = _flat(held.body if held else {}), _flat(fresh)
        changed = {p for p, value in after.items() if p not in before or before[p] != value}
        gone = set(before) - set(after)
        me = (manager, "Update")
        for other in list(managers):
            managers[other] -= gone | (changed if other != me else set())
        if changed:
            managers.setdefault(me, set()).update(changed)
        managers = {k: v for k, v in managers.items() if v}
        if fields is not None and fields in ([], [{}]):
            managers = {}
        return self._save(kind, (namespace, name), Stored(fresh, managers, times), held)

    def apply(
        self, kind: tuple[str, str], namespace: str, name: str, body: Json, manager: str, force: bool
    ) -> tuple[Json, bool]:
        """Server-side apply; the stored object and whether it was created."""
        held = self.objects[kind].get((namespace, name))
        _check_schema(kind, body, namespace, name)
        metadata = body.get("metadata", {})
        version, uid = metadata.get("resourceVersion", ""), metadata.get("uid", "")
        plural = f"{kind[1]}.{kind[0]}" if kind[0] else kind[1]
        if held is None:
            if uid:
                raise Refused(
                    409, "Conflict",
                    f'Operation cannot be fulfilled on {plural} "{name}": uid mismatch: the provided object specified '
                    f"uid {uid}, and no existing object was found", name=name, kind=kind[1],
                )  # fmt: skip
        elif version not in ("", "0") and version != held.body["metadata"]["resourceVersion"]:
            raise _modified(plural, name)
        me = (manager, "Apply")
        config = _flat(body)
        live = _flat(held.body) if held else {}
        managers = copy.deepcopy(held.managers) if held else {}
        if held is not None and not managers:
            managers = {("before-first-apply", "Update"): set(live)}
        conflicts = [
            (other, path)
            for path, value in config.items()
            for other, owned in managers.items()
            if other != me and path in owned and path in live and live[path] != value
        ]
        if conflicts and not force:
            raise _conflict(plural, name, conflicts)
        for other, path in conflicts:
            managers[other].discard(path)
        mine = managers.get(me, set())
        orphaned = {
            path
            for path in mine - set(config)
            if not any(path in owned for other, owned in managers.items() if other != me)
        }
        fresh = copy.deepcopy(held.body) if held else {"apiVersion": body["apiVersion"], "kind": body["kind"]}
        fresh.setdefault("metadata", {}).update({"name": name, "namespace": namespace})
        if uid and held is not None and uid != held.body["metadata"]["uid"]:
            raise Refused(
                422, "Invalid", f'{KINDS[kind]} "{name}" is invalid: metadata.uid: Invalid value: "{uid}": '
                "field is immutable", name=name, kind=KINDS[kind],
                causes=[{"reason": "FieldValueInvalid", "message": "field is immutable", "field": "metadata.uid"}],
            )  # fmt: skip
        _rebuild(fresh, {p: v for p, v in live.items() if p not in orphaned} | config, body)
        managers[me] = set(config)
        managers = {k: v for k, v in managers.items() if v}
        if self.mutate is not None:
            self.mutate(kind[1], fresh)
        self._complete(kind, fresh, held.body if held else None)
        _validate(kind, fresh, held.body if held else None)
        times = dict(held.times) if held else {}
        return self._save(kind, (namespace, name), Stored(fresh, managers, times), held), held is None

    def drop(self, kind: tuple[str, str], key: Key) -> Json:
        """Delete an object; its last state."""
        held = self.objects[kind].pop(key)
        self.revision += 1
        last = _rendered(held)
        gone = copy.deepcopy(last)
        gone["metadata"]["resourceVersion"] = str(self.revision)
        self.history.append((self.revision, kind, last, None))
        self.changed.notify_all()
        if kind[1] == "endpoints":
            self._mirror(key)
        return gone

    def _mirror(self, key: Key) -> None:
        """Do what endpointslice-mirroring-controller does, without its ways of merging subsets."""
        if not self.mirroring:
            return
        slices = ("discovery.k8s.io", "endpointslices")
        stored = self.objects["", "endpoints"].get(key)
        metadata = stored.body["metadata"] if stored is not None else {}
        labels = metadata.get("labels") or {}
        subsets = (stored.body.get("subsets") or []) if stored is not None and SKIP_MIRROR not in labels else []
        wanted: dict[str, Json] = {}
        for number, subset in enumerate(subsets):
            for family in ("IPv4", "IPv6"):
                entries = [
                    {"addresses": [a["ip"]], "conditions": {"ready": ready}}
                    | ({"hostname": a["hostname"]} if a.get("hostname") else {})
                    for field_, ready in (("addresses", True), ("notReadyAddresses", False))
                    for a in subset.get(field_) or []
                    if (":" in a["ip"]) is (family == "IPv6")
                ]
                name = f"{key[1]}-mirror-{number}-{family.lower()}"
                made = {**labels, SERVICE_NAME: key[1], SLICE_MANAGER: MIRRORING}
                body = {"metadata": {"name": name, "namespace": key[0], "labels": made}, "addressType": family}
                if entries:
                    wanted[name] = {**body, "endpoints": entries, "ports": subset.get("ports")}
        for (namespace, name), found in list(self.objects[slices].items()):
            about = found.body["metadata"].get("labels") or {}
            mine = namespace == key[0] and (about.get(SLICE_MANAGER), about.get(SERVICE_NAME)) == (MIRRORING, key[1])
            if mine and name not in wanted:
                self.drop(slices, (namespace, name))
        for name, body in wanted.items():
            self.write(slices, key[0], name, body, "kube-controller-manager")

    def _save(self, kind: tuple[str, str], key: Key, fresh: Stored, held: Stored | None) -> Json:
        metadata = fresh.body["metadata"]
        if held is not None:
            for name in ("uid", "creationTimestamp"):
                metadata[name] = held.body["metadata"][name]
            metadata["resourceVersion"] = held.body["metadata"]["resourceVersion"]
            if _flat(held.body) == _flat(fresh.body) and held.managers == fresh.managers:
                return _rendered(held)
        else:
            metadata["uid"] = str(uuid.uuid4())
            metadata["creationTimestamp"] = _now()
        self.revision += 1
        metadata["resourceVersion"] = str(self.revision)
        before = held.managers if held is not None else {}
        for manager, owned in fresh.managers.items():
            if before.get(manager) != owned or manager not in fresh.times:
                fresh.times[manager] = _now()
        self.objects[kind][key] = fresh
        rendered = _rendered(fresh)
        self.history.append((self.revision, kind, _rendered(held) if held else None, rendered))
        self.changed.notify_all()
        if kind[1] == "endpoints":
            self._mirror(key)
        return rendered

    def _complete(self, kind: tuple[str, str], body: Json, held: Json | None) -> None:
        """Defaults, as far as anyone looks at them."""
        if KINDS[kind] == "Service":
            spec = body.setdefault("spec", {})
            spec.setdefault("type", "ClusterIP")
            for port in spec.get("ports") or []:
                port.setdefault("protocol", "TCP")
                port.setdefault("targetPort", port.get("port"))
            spec.setdefault("sessionAffinity", "None")
            if spec["type"] != "ExternalName":
                old = (held or {}).get("spec", {})
                spec.setdefault("clusterIP", old.get("clusterIP") or f"10.96.{_pair(next(self._addresses))}")
                spec["clusterIPs"] = [spec["clusterIP"]]
                spec.setdefault("ipFamilyPolicy", "SingleStack")
                both = spec["ipFamilyPolicy"] != "SingleStack" and spec["clusterIP"] == "None"
                spec.setdefault("ipFamilies", ["IPv4", "IPv6"] if both else ["IPv4"])
                spec.setdefault("internalTrafficPolicy", "Cluster")
            body.setdefault("status", {"loadBalancer": {}})
        for holder in body.get("subsets") or [] if KINDS[kind] == "Endpoints" else [body]:
            if isinstance(holder, dict) and KINDS[kind] in ("Endpoints", "EndpointSlice"):
                for port in holder.get("ports") or []:
                    port.setdefault("protocol", "TCP")
                    if KINDS[kind] == "EndpointSlice":
                        port.setdefault("name", "")
        if KINDS[kind] == "Endpoints" and not body.get("subsets"):
            body.pop("subsets", None)

    # ------------------------------------------------------------------ lists and watches

    def listing(self, kind: tuple[str, str], namespace: str, query: dict[str, str]) -> Json:
        """Items and metadata of a list."""
        with self.changed:
            asked = query.get("resourceVersion", "")
            if asked.isdigit() and int(asked) > self.revision:
                raise Refused(
                    504,
                    "Timeout",
                    f"Too large resource version: {asked}, current: {self.revision}",
                    retryAfterSeconds=1,
                )
            token = query.get("continue", "")
            if token:
                start, key = json.loads(base64.b64decode(token))
                if key not in self._snapshots:
                    raise Refused(
                        410, "Expired", "The provided continue parameter is too old to display a consistent list"
                    )
                version, found = self._snapshots[key]
            else:
                start, version = 0, self.revision
                key = uuid.uuid4().hex
                found = [
                    _rendered(stored)
                    for (ns, _), stored in sorted(self.objects[kind].items())
                    if namespace in ("", ns) and _selected(stored.body, query)
                ]
            limit = int(query.get("limit") or 0) or len(found) or 1
            metadata: Json = {"resourceVersion": str(version)}
            if start + limit < len(found):
                self._snapshots[key] = (version, found)
                metadata["continue"] = base64.b64encode(json.dumps([start + limit, key]).encode()).decode()
                metadata["remainingItemCount"] = len(found) - start - limit
            items = found[start : start + limit]
        for item in items:
            item.pop("kind", None)
            item.pop("apiVersion", None)
        return {"metadata": metadata, "items": items}

    def watch(
        self, kind: tuple[str, str], namespace: str, query: dict[str, str], alive: Callable[[], bool]
    ) -> Iterator[Json]:
        """Events from `resourceVersion` on, until timeoutSeconds are over, the server stops or the client has gone.

        Without a version what is there comes first, as if it had just been added.
        """
        version = query.get("resourceVersion", "")
        with self.changed:
            position = int(version) if version else self.revision
            there = [] if version else [_rendered(stored) for _, stored in sorted(self.objects[kind].items())]
        for body in there:
            if event := _event(None, body, position, namespace, query):
                yield event
        end = time.monotonic() + float(query.get("timeoutSeconds") or 300)
        next_bookmark = time.monotonic() + self.bookmark_seconds
        while True:
            events: list[Json] = []
            with self.changed:
                if position < self.compacted:
                    message = f"too old resource version: {position} ({self.compacted})"
                    events.append({"type": "ERROR", "object": _status(410, "Expired", message)})
                for revision, event_kind, before, after in self.history:
                    if revision <= position or event_kind != kind:
                        continue
                    if event := _event(before, after, revision, namespace, query):
                        events.append(event)
                    position = revision
                if position <= self.revision:
                    position = self.revision
                now = time.monotonic()
                bookmarks = query.get("allowWatchBookmarks") == "true" and position <= self.revision
                if not events and bookmarks and now >= next_bookmark:
                    next_bookmark = now + self.bookmark_seconds
                    events.append(self._bookmark(kind, position))
                if not events:
                    if self.closing or now >= end or not alive():
                        return
                    self.changed.wait(min(0.05, max(0.001, min(end, next_bookmark if bookmarks else end) - now)))
            for event in events:
                self.watch_hold.wait()
                yield event
                if event["type"] == "ERROR":
                    return

    def _bookmark(self, kind: tuple[str, str], revision: int) -> Json:
        version = f"{kind[0]}/v1" if kind[0] else "v1"
        body = {"kind": KINDS[kind], "apiVersion": version, "metadata": {"resourceVersion": str(revision)}}
        return {"type": "BOOKMARK", "object": body}

    # ------------------------------------------------------------------ connections

    def opened(self, sock: socket.socket) -> None:
        """A client connected."""
        with self.changed:
            self._sockets.add(sock)

    def closed(self, sock: socket.socket) -> None:
        """A connection ended."""
        with self.changed:
            self._sockets.discard(sock)

    @property
    def connections(self) -> int:
        """Open client connections."""
        with self.changed:
            return len(self._sockets)


# --------------------------------------------------------------------------- fields and their owners


def _group_of(resource: str) -> str:
    return next(group for group, plural in KINDS if plural == resource)


def _flat(body: Json) -> dict[Path_, Any]:
    """The fields that can be owned, with their values."""
    kind = body.get("kind", "")
    metadata = body.get("metadata", {})
    found: dict[Path_, Any] = {}
    for name in ("labels", "annotations"):
        for key, value in (metadata.get(name) or {}).items():
            found["metadata", name, key] = value
    for top, inner in SCHEMA.get(kind, {}).items():
        if top not in body or top == "status":
            continue
        if inner is None:
            if body[top] is not None:
                found[top,] = body[top]
            continue
        for name, value in (body[top] or {}).items():
            if kind == "Service" and name == "ports":
                for port in value or []:
                    key = (port.get("port"), port.get("protocol", "TCP"))
                    for attribute, attribute_value in port.items():
                        found[top, name, key, attribute] = attribute_value
            elif value is not None:
                found[top, name] = value
    return found


def _rebuild(body: Json, fields: dict[Path_, Any], applied: Json) -> None:
    """Set exactly `fields` in `body`; Service ports in the order of `applied`, others after them."""
    for name in ("labels", "annotations"):
        body["metadata"].pop(name, None)
    for top, inner in SCHEMA[body["kind"]].items():
        if top != "status":
            body.pop(top, None)
            if inner is not None and any(p[0] == top for p in fields):
                body[top] = {}
    found_ports: dict[Any, Json] = {}
    applied_ports = (applied.get("spec") or {}).get("ports") or []
    for port in applied_ports if body["kind"] == "Service" else []:
        found_ports[port.get("port"), port.get("protocol", "TCP")] = {}
    for path, value in fields.items():
        match path:
            case ("metadata", name, key):
                body["metadata"].setdefault(name, {})[key] = copy.deepcopy(value)
            case (top, "ports", key, attribute):
                found_ports.setdefault(key, {})[attribute] = copy.deepcopy(value)
            case (top, name):
                body.setdefault(top, {})[name] = copy.deepcopy(value)
            case (top,):
                body[top] = copy.deepcopy(value)
    if found_ports:
        body.setdefault("spec", {})["ports"] = [p for p in found_ports.values() if p]


def _field_name(part: Any) -> str:
    """A part of a path as fieldsV1 writes it."""
    if isinstance(part, tuple):
        port, protocol = part
        return f'k:{{"port":{port},"protocol":"{protocol}"}}'
    return f"f:{part}"


def _rendered(stored: Stored) -> Json:
    """The object as it is sent, managedFields included."""
    body = copy.deepcopy(stored.body)
    fields = []
    for manager in sorted(stored.managers, key=lambda m: (m[1], m[0])):
        tree: Json = {}
        for path in stored.managers[manager]:
            node = tree
            for part in path:
                node = node.setdefault(_field_name(part), {})
        fields.append(
            {
                "manager": manager[0],
                "operation": manager[1],
                "apiVersion": body.get("apiVersion"),
                "time": stored.times.get(manager, _now()),
                "fieldsType": "FieldsV1",
                "fieldsV1": tree,
            }
        )
    if fields:
        body["metadata"]["managedFields"] = fields
    first = ("name", "namespace", "uid", "resourceVersion")  # the order in which the API server writes them
    body["metadata"] = {key: body["metadata"][key] for key in (*first, *body["metadata"]) if key in body["metadata"]}
    return {key: body[key] for key in ("kind", "apiVersion", "metadata", *body) if key in body}


def _check_schema(kind: tuple[str, str], body: Json, namespace: str, name: str) -> None:
    if body.get("kind") != KINDS[kind] or not body.get("apiVersion"):
        raise Refused(400, "BadRequest", "invalid object type or apiVersion in the body")
    metadata = body.get("metadata", {})
    if metadata.get("managedFields") is not None:
        raise Refused(400, "BadRequest", "metadata.managedFields must be nil")
    if metadata.get("name", name) != name or metadata.get("namespace", namespace) != namespace:
        raise Refused(400, "BadRequest", "the name of the object does not match the name on the URL")
    unknown = [k for k in body if k not in ("apiVersion", "kind", "metadata", *SCHEMA[KINDS[kind]])]
    unknown += [f"metadata.{k}" for k in metadata if k not in METADATA]
    for top, inner in SCHEMA[KINDS[kind]].items():
        if inner is not None:
            unknown += [f"{top}.{k}" for k in body.get(top) or {} if k not in inner]
    prefix = f"failed to create typed patch object ({namespace}/{name}; {body['apiVersion']}, Kind={body['kind']}): "
    if unknown:
        raise Refused(500, "", f"{prefix}.{unknown[0]}: field not declared in schema")
    keys = [(p.get("port"), p.get("protocol", "TCP")) for p in (body.get("spec") or {}).get("ports") or []]
    if KINDS[kind] == "Service" and len(keys) != len(set(keys)):
        raise Refused(500, "", f"{prefix}.spec.ports: duplicate entries for key")


def _modified(plural: str, name: str) -> Refused:
    message = (
        f'Operation cannot be fulfilled on {plural} "{name}": the object has been modified; '
        "please apply your changes to the latest version and try again"
    )
    return Refused(409, "Conflict", message, name=name, kind=plural)


def _conflict(plural: str, name: str, conflicts: list[tuple[Manager, Path_]]) -> Refused:
    def shown(path: Path_) -> str:
        return "".join(f'[port={p[0]},protocol="{p[1]}"]' if isinstance(p, tuple) else f".{p}" for p in path)

    said = [f'conflict with "{m[0]}" using v1: {shown(p)}' for m, p in conflicts]
    head = f"Apply failed with {len(said)} conflict{'s' if len(said) > 1 else ''}: "
    causes = [{"reason": "FieldManagerConflict", "field": shown(path)} for _, path in conflicts]
    return Refused(409, "Conflict", head + ", ".join(said), name=name, kind=plural, causes=causes)


# --------------------------------------------------------------------------- validation


def _validate(kind: tuple[str, str], body: Json, held: Json | None) -> None:
    name = body["metadata"]["name"]
    faults: list[tuple[str, str]] = []
    match KINDS[kind]:
        case "Service":
            faults = list(_service_faults(body, held))
        case "Endpoints":
            faults = list(_endpoints_faults(body))
        case "EndpointSlice":
            faults = list(_slice_faults(body, held))
        case "Lease":
            for key in ("acquireTime", "renewTime"):
                value = (body.get("spec") or {}).get(key)
                if value is not None and not MICRO_TIME.match(str(value)):
                    raise Refused(400, "BadRequest", f'Lease in version "v1" cannot be handled: parsing time "{value}"')
    if faults:
        causes = [{"reason": "FieldValueInvalid", "message": m, "field": f} for f, m in faults]
        said = ", ".join(f"{f}: {m}" for f, m in faults)
        text = said if len(faults) == 1 else f"[{said}]"
        raise Refused(422, "Invalid", f'{KINDS[kind]} "{name}" is invalid: {text}', name=name, causes=causes)


def _service_faults(body: Json, held: Json | None) -> Iterator[tuple[str, str]]:
    spec, name = body["spec"], body["metadata"]["name"]
    if not LABEL.match(name) or len(name) > 63:
        yield "metadata.name", f'Invalid value: "{name}": must be a DNS label'
    if spec["type"] == "ExternalName":
        if not spec.get("externalName"):
            yield "spec.externalName", "Required value"
        return
    if not spec.get("ports") and spec.get("clusterIP") != "None":
        yield "spec.ports", "Required value"
    yield from _port_faults("spec.ports", spec.get("ports") or [], unique=True)
    for index, port in enumerate(spec.get("ports") or []):
        target = port.get("targetPort", 1)
        if isinstance(target, int) and not 0 < target < 65536:
            where = f"spec.ports[{index}].targetPort"
            yield where, f"Invalid value: {target}: must be between 1 and 65535, inclusive"
    old = ((held or {}).get("spec") or {}).get("clusterIP")
    if old and old != spec.get("clusterIP"):
        yield "spec.clusterIPs[0]", f'Invalid value: ["{spec.get("clusterIP")}"]: may not change once set'
    if spec["ipFamilies"][0] != "IPv4" and spec["clusterIP"] != "None":
        yield "spec.ipFamilies[0]", f'Invalid value: "{spec["ipFamilies"][0]}": not configured on this cluster'


def _endpoints_faults(body: Json) -> Iterator[tuple[str, str]]:
    for index, subset in enumerate(body.get("subsets") or []):
        where = f"subsets[{index}]"
        if not subset.get("addresses") and not subset.get("notReadyAddresses"):
            yield where, "Required value: must specify `addresses` or `notReadyAddresses`"
        for key in ("addresses", "notReadyAddresses"):
            for number, address in enumerate(subset.get(key) or []):
                if fault := _address_fault(str(address.get("ip", ""))):
                    yield f"{where}.{key}[{number}].ip", fault
        yield from _port_faults(f"{where}.ports", subset.get("ports") or [], unique=False)


def _slice_faults(body: Json, held: Json | None) -> Iterator[tuple[str, str]]:
    kind = body.get("addressType")
    if kind not in ("IPv4", "IPv6", "FQDN"):
        yield "addressType", "Required value"
    if held is not None and held.get("addressType") != kind:
        yield "addressType", "Invalid value: null: field is immutable"
    endpoints = body.get("endpoints") or []
    if len(endpoints) > 1000:
        yield "endpoints", f"Too many: {len(endpoints)}: must have at most 1000 items"
    for index, endpoint in enumerate(endpoints):
        for number, address in enumerate(endpoint.get("addresses") or []):
            where = f"endpoints[{index}].addresses[{number}]"
            if kind == "FQDN":
                continue
            if fault := _address_fault(address):
                yield where, fault
            elif (kind == "IPv6") != (":" in address):
                yield where, f'Invalid value: "{address}": must be an {kind} address'
            elif str(ipaddress.ip_address(address)) != address:
                yield where, f'Invalid value: "{address}": must be in canonical form'
    for index, port in enumerate(body.get("ports") or []):
        if port.get("name") and not LABEL.match(port["name"]):
            yield f"ports[{index}].name", f'Invalid value: "{port["name"]}": must be a DNS label'


def _port_faults(where: str, ports: list[Json], *, unique: bool) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for index, port in enumerate(ports):
        name, number = port.get("name", ""), port.get("port")
        if not name and len(ports) > 1:
            yield f"{where}[{index}].name", "Required value"
        if name and (not LABEL.match(name) or len(name) > 63):
            yield f"{where}[{index}].name", f'Invalid value: "{name}": must be a DNS label'
        if unique and name and name in seen:
            yield f"{where}[{index}].name", f'Duplicate value: "{name}"'
        seen.add(name)
        if not isinstance(number, int) or not 0 < number < 65536:
            yield f"{where}[{index}].port", f"Invalid value: {number}: must be between 1 and 65535, inclusive"


def _address_fault(text: str) -> str:
    head = f'Invalid value: "{text}": '
    if re.search(r"(^|\.)0\d", text) and "." in text:
        return head + "must not have leading 0s"
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return head + "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
    if "%" in text:
        return head + "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return head + "must not be an IPv4-mapped IPv6 address"
    if address.is_unspecified:
        return head + f"may not be unspecified ({text})"
    if address.is_loopback:
        return head + "may not be in the loopback range (127.0.0.0/8, ::1/128)"
    if address.is_link_local:
        return head + "may not be in the link-local range (169.254.0.0/16, fe80::/10)"
    multicast = ipaddress.ip_network("224.0.0.0/24") if address.version == 4 else ipaddress.ip_network("ff02::/16")
    if address in multicast:
        return head + "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
    return ""


# --------------------------------------------------------------------------- selectors and events


def _selected(body: Json, query: dict[str, str]) -> bool:
    labels = body["metadata"].get("labels") or {}
    for term in filter(None, re.split(r",(?![^(]*\))", query.get("labelSelector", ""))):
        if among := re.fullmatch(r"(\S+) in \((.*)\)", term):
            if labels.get(among[1]) not in among[2].split(","):
                return False
            continue
        if term.startswith("!"):
            if term[1:] in labels:
                return False
            continue
        key, operator, value = re.match(r"([^!=]+)(!=|==|=)?(.*)", term).groups()  # type: ignore[union-attr]
        if operator == "!=" and labels.get(key) == value:
            return False
        if operator in ("=", "==") and labels.get(key) != value:
            return False
        if operator is None and key not in labels:
            return False
    wanted = query.get("fieldSelector", "")
    return not wanted or wanted == f"metadata.name={body['metadata']['name']}"


def _event(
    before: Json | None, after: Json | None, revision: int, namespace: str, query: dict[str, str]
) -> Json | None:
    def inside(body: Json | None) -> bool:
        return body is not None and namespace in ("", body["metadata"].get("namespace", "")) and _selected(body, query)

    was, is_ = inside(before), inside(after)
    if is_:
        return {"type": "MODIFIED" if was else "ADDED", "object": copy.deepcopy(after)}
    if was and before is not None:
        gone = copy.deepcopy(before)
        gone["metadata"]["resourceVersion"] = str(revision)
        return {"type": "DELETED", "object": gone}
    return None


def _status(code: int, reason: str, message: str, details: Json | None = None) -> Json:
    body: Json = {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    }  # fmt: skip
    return body | ({"details": details} if details else {})


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _pair(number: int) -> str:
    return f"{number // 250}.{number % 250 + 1}"


# --------------------------------------------------------------------------- HTTP


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128
    block_on_close = True

    def __init__(self, address: tuple[str, int], kube: FakeKube) -> None:
        self.kube = kube
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Cut connections are what the fake is for; anything else is a bug of the fake."""
        import sys

        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | ValueError | OSError):
            super().handle_error(request, client_address)


class _CutError(ConnectionError):
    pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    disable_nagle_algorithm = True
    wbufsize = -1

    def setup(self) -> None:
        super().setup()
        self.kube = self.server.kube
        self.kube.opened(self.connection)

    def finish(self) -> None:
        self.kube.closed(self.connection)
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Quiet."""

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_PATCH = do_PUT = do_DELETE = do_GET  # noqa: N815 - names that the base class calls

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self._body = self.rfile.read(length) if length else b""
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ").removeprefix("bearer ")
        user = self.kube.users.get(token, "")
        self._groups = ["system:authenticated"]
        if user and (other := self.headers.get("Impersonate-User")):  # everyone may, here
            user, self._groups = other, self.headers.get_all("Impersonate-Group") or self._groups
        group, resource, namespace, name = _route(parts.path)
        watching = self.command == "GET" and query.get("watch") in ("1", "true")
        verb = _verb(self.command, name, watching)
        self._entry = (self.command, parts.path, query, verb, resource, namespace, name, user)
        self._logged = False
        self._truncate = False
        fault = self.kube.take_fault(self.command, self.path)
        if fault is not None:
            if fault.delay:
                with self.kube.changed:
                    self.kube.changed.wait_for(lambda: self.kube.closing, fault.delay)
            if fault.reset:
                self._log(0)
                self._cut()
            if fault.status:
                default = json.dumps(_status(fault.status, "", "injected")).encode()
                self._send(fault.status, default if fault.body is None else fault.body, fault.headers)
                return
            self._truncate = fault.truncate
        try:
            self._permit(user, verb, group, resource, namespace, name)
            if watching:
                self._watch((group, resource), namespace, query, fault.lines if fault else ())
                return
            code, answer = self._answer(group, resource, namespace, name, query, parts.path, user)
        except Refused as refused:
            code, answer = refused.code, _status(refused.code, refused.reason, refused.message, refused.details)
        if fault is not None and fault.reset_after:
            self._log(code)
            self._cut()
        accept = self.headers.get("Accept", "")
        if "as=PartialObjectMetadataList" in accept and "items" in answer:
            answer = {**answer, "items": [_partial(i) for i in answer["items"]], "kind": "PartialObjectMetadataList"}
        elif "as=PartialObjectMetadata;" in accept and answer.get("kind") != "Status":
            answer = _partial(answer)
        headers = {"Warning": DEPRECATED} if resource == "endpoints" else {}
        self._send(code, json.dumps(answer).encode(), headers)

    def _permit(self, user: str, verb: str, group: str, resource: str, namespace: str, name: str) -> None:
        if not user:
            raise Refused(401, "Unauthorized", "Unauthorized")
        for scope in (namespace, "*"):
            if (user, verb, resource, scope) in self.kube.forbidden:
                where = f' in the namespace "{namespace}"' if namespace else " at the cluster scope"
                full = f"{resource}.{group}" if group else resource
                what = f'{full} "{name}" is forbidden' if name else f"{full} is forbidden"
                raise Refused(
                    403, "Forbidden",
                    f'{what}: User "{user}" cannot {verb} resource "{resource}" in API group "{group}"{where}',
                )  # fmt: skip

    def _answer(
        self, group: str, resource: str, namespace: str, name: str, query: dict[str, str], path: str, user: str
    ) -> tuple[int, Json]:
        if path == "/version":
            major, minor, *_ = self.kube.version.split(".")
            return 200, {"major": major, "minor": minor, "gitVersion": f"v{self.kube.version}-fake"}
        if resource == "selfsubjectreviews":
            info = {"username": user, "uid": f"uid-of-{user}", "groups": self._groups}
            return 201, {"kind": "SelfSubjectReview", "metadata": {}, "status": {"userInfo": info}}
        if resource == "selfsubjectaccessreviews":
            asked = json.loads(self._body)["spec"]["resourceAttributes"]
            scopes = [asked.get("namespace", ""), "*"]
            denied = any((user, asked["verb"], asked["resource"], s) in self.kube.forbidden for s in scopes)
            return 201, {"kind": "SelfSubjectAccessReview", "metadata": {}, "status": {"allowed": not denied}}
        kind = (group, resource)
        if kind not in KINDS:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        if resource == "namespaces":
            namespace, name = "", name or namespace
        with self.kube.changed:
            return self._with_lock(kind, namespace, name, query, user)

    def _with_lock(
        self, kind: tuple[str, str], namespace: str, name: str, query: dict[str, str], user: str
    ) -> tuple[int, Json]:
        kube, plural = self.kube, f"{kind[1]}.{kind[0]}" if kind[0] else kind[1]
        manager = query.get("fieldManager") or "unknown"
        held = kube.objects[kind].get((namespace, name))
        if self.command == "GET" and not name:
            version = f"{kind[0]}/v1" if kind[0] else "v1"
            return 200, {"kind": f"{KINDS[kind]}List", "apiVersion": version, **kube.listing(kind, namespace, query)}
        if self.command == "GET":
            if held is None:
                raise Refused(404, "NotFound", f'{plural} "{name}" not found', name=name, kind=kind[1])
            return 200, _rendered(held)
        if self.command == "DELETE":
            return self._delete(kind, namespace, name, plural, held)
        body = self._json()
        if self.command == "POST":
            name = (
                body.get("metadata", {}).get("name")
                or body.get("metadata", {}).get("generateName", "") + uuid.uuid4().hex[:5]
            )
            if (namespace, name) in kube.objects[kind]:
                raise Refused(409, "AlreadyExists", f'{plural} "{name}" already exists', name=name, kind=kind[1])
            self._need_namespace(kind, namespace)
            return 201, kube.write(kind, namespace, name, body, manager)
        if self.command == "PUT":
            version = str(body.get("metadata", {}).get("resourceVersion") or "")
            uid = str(body.get("metadata", {}).get("uid") or "")
            if uid and (held is None or held.body["metadata"]["uid"] != uid):
                raise Refused(409, "Conflict", f'Operation cannot be fulfilled on {plural} "{name}": uid mismatch')
            if held is None:
                self._need_namespace(kind, namespace)
                return 201, kube.write(kind, namespace, name, body, manager)
            if not version and KINDS[kind] == "Lease":
                raise Refused(
                    422, "Invalid", f'{plural} "{name}" is invalid: metadata.resourceVersion: Invalid value: 0: '
                    "must be specified for an update",
                )  # fmt: skip
            if version and version != held.body["metadata"]["resourceVersion"]:
                raise _modified(plural, name)
            return 200, kube.write(kind, namespace, name, body, manager)
        content = self.headers.get("Content-Type", "")
        if content.startswith("application/apply-patch+yaml"):
            if not query.get("fieldManager"):
                raise Refused(422, "Invalid", "PatchOptions.meta.k8s.io is invalid: fieldManager: Required value")
            if held is None:
                self._permit(user, "create", kind[0], kind[1], namespace, "")
                self._need_namespace(kind, namespace)
            if query.get("dryRun") == "All":  # nothing is stored
                return (201, body) if held is None else (200, _rendered(held))
            answer, created = kube.apply(kind, namespace, name, body, manager, query.get("force") == "true")
            return (201 if created else 200), answer
        if content.startswith("application/merge-patch+json"):
            if held is None:
                raise Refused(404, "NotFound", f'{plural} "{name}" not found', name=name, kind=kind[1])
            metadata = body.get("metadata", {})
            version = metadata.get("resourceVersion")
            if version and version != held.body["metadata"]["resourceVersion"]:
                raise _modified(plural, name)
            return 200, kube.write(kind, namespace, name, _merged(copy.deepcopy(held.body), body), manager)
        raise Refused(415, "UnsupportedMediaType", f"the body of the request was in an unknown format: {content}")

    def _delete(
        self, kind: tuple[str, str], namespace: str, name: str, plural: str, held: Stored | None
    ) -> tuple[int, Json]:
        if held is None:
            raise Refused(404, "NotFound", f'{plural} "{name}" not found', name=name, kind=kind[1])
        wanted = (json.loads(self._body) if self._body else {}).get("preconditions") or {}
        for key, label in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
            found = held.body["metadata"][key]
            if wanted.get(key) and wanted[key] != found:
                raise Refused(
                    409, "Conflict", f'Operation cannot be fulfilled on {KINDS[kind]} "{name}": the {label} in the '
                    f"precondition ({wanted[key]}) does not match the {label} in record ({found}). The object might "
                    "have been deleted and then recreated", name=name, kind=kind[1],
                )  # fmt: skip
        self.kube.drop(kind, (namespace, name))
        return 200, {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "details": {"name": name},
        }

    def _need_namespace(self, kind: tuple[str, str], namespace: str) -> None:
        if kind[1] not in ("namespaces", "nodes") and ("", namespace) not in self.kube.objects["", "namespaces"]:
            raise Refused(404, "NotFound", f'namespaces "{namespace}" not found', name=namespace, kind="namespaces")

    def _json(self) -> Json:
        try:
            found: Json = json.loads(self._body)
        except ValueError:
            raise Refused(400, "BadRequest", "the object provided is unrecognized") from None
        return found

    def _watch(self, kind: tuple[str, str], namespace: str, query: dict[str, str], lines: tuple[bytes, ...]) -> None:
        version = query.get("resourceVersion", "")
        if version and not version.isdigit():
            raise Refused(500, "InternalError", f'Invalid value: "{version}": strconv.ParseUint: invalid syntax')
        self._log(200)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        if kind[1] == "endpoints":
            self.send_header("Warning", DEPRECATED)
        self.end_headers()
        self.wfile.flush()
        if lines:
            for line in lines:
                self._chunk(line + b"\n")
        else:
            for event in self.kube.watch(kind, namespace, query, self._alive):
                self._chunk(json.dumps(event, separators=(",", ":")).encode() + b"\n")
                if self._truncate:
                    self._cut()
        if self.kube.closing:
            self._cut()
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def _alive(self) -> bool:
        """Whether the client is still there (it never sends anything during a watch)."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        with contextlib.suppress(OSError):
            return not readable or bool(self.connection.recv(1, socket.MSG_PEEK))
        return False

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self._log(code)
        self.send_response(code)
        for key, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(key, value)
        long = len(body) > LONG_BODY
        self.send_header(*(("Transfer-Encoding", "chunked") if long else ("Content-Length", str(len(body)))))
        self.end_headers()
        if self._truncate:
            self.wfile.write(b"%x\r\n" % len(body) * long + body[: len(body) // 2])
            self.wfile.flush()
            self._cut()
        if long:
            self._chunk(body)
            self._chunk(b"")
        else:
            self.wfile.write(body)
            self.wfile.flush()

    def _log(self, status: int) -> None:
        if not self._logged:
            self._logged = True
            headers = {
                key.lower(): ",".join(self.headers.get_all(key) or ())
                for key in self.headers
                if key.lower() != "authorization"
            }
            with self.kube.changed:
                self.kube.log.append(Logged(*self._entry, status, self._body, headers))
                self.kube.changed.notify_all()

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RDWR)
        raise _CutError


def _route(path: str) -> tuple[str, str, str, str]:
    """(group, resource, namespace, name) of a path."""
    parts = [p for p in path.split("/") if p]
    if parts[:1] == ["api"]:
        group, rest = "", parts[2:]
    elif parts[:1] == ["apis"]:
        group, rest = (parts[1] if len(parts) > 1 else ""), parts[3:]
    else:
        return "", "", "", ""
    namespace = ""
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    return group, rest[0] if rest else "", namespace, rest[1] if len(rest) > 1 else ""


def _verb(method: str, name: str, watching: bool) -> str:
    if method == "GET":
        return "watch" if watching else "get" if name else "list"
    return {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}[method]


def _partial(body: Json) -> Json:
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": body.get("metadata", {})}


def _merged(target: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    result = target if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Poll until `condition` holds; False at the timeout. For tests that watch real threads."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.005)
    return True
