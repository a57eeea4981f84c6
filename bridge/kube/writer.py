"""Writes one change: never over a state that it did not see, never at the same time as another writer.

Server-side apply with preconditions in the body (measured on kube-apiserver 1.37: docs/kubernetes.md; why:
decision 4 in docs/decisions.md):

| action | request | the server's protection |
| --- | --- | --- |
| create | apply with resourceVersion "1", a version that no object ever has | exists: 409; absent: 201 |
| update | apply, force, with uid and resourceVersion of what was seen | changed, gone or recreated: 409 or 422 |
| delete | DELETE with uid and resourceVersion as preconditions | changed or recreated: 409 |

`force` only ever takes fields back on objects that are ours. What was stored is compared with what was sent: admission
may change it on the way, and only the comparison shows that (AlteredError).

An apply merges the ports of a Service by (number, protocol): it cannot take out what others put there, and would be
refused while a port without a name stands beside others. So where a plan says so (`replaces_ports`) the whole list is
replaced first, in one request; the apply that follows then only says whose it is.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

from bridge.core import ownership
from bridge.core.model import Action, Change, Meta, ServiceBody, Target
from bridge.errors import (
    AlteredError,
    ConflictError,
    NotLeadingError,
    PermanentError,
    StaleError,
    ThrottledError,
    TransientError,
)
from bridge.json_shape import Body
from bridge.kube import faults, objects, wire
from bridge.kube.client import (
    APPLY,
    FIELD_MANAGER,
    JSON,
    MERGE,
    METADATA_LIST_ONLY,
    METADATA_ONLY,
    KubeClient,
    Response,
)

NEVER_VERSION = "1"
"""etcd's revision before anything is written: no object carries it, so asking for it means "must not exist"."""

ALTERATIONS_SHOWN = 3
"""Fields that a message names; the rest is counted."""

NODE_PORT_TYPES = ("NodePort", "LoadBalancer")
"""Types of Services whose ports have a number on every node as well."""

_MANAGER = ("fieldManager", FIELD_MANAGER)
_FORCE = ("force", "true")
_CREATE_ALLOWS = frozenset({409})
_UPDATE_ALLOWS = frozenset({409, 422})
_DELETE_ALLOWS = frozenset({404, 409})


class Writer:
    """Applies changes through a client. Any number of threads may share one.

    `lease_remaining` is asked right before every request that writes (leader election): the request may take that long.
    At 0, NotLeadingError is raised. The change that met a fault of the server last is kept for `ask_again`.
    """

    def __init__(
        self, client: KubeClient, lease_remaining: Callable[[Target], float] = lambda _target: math.inf
    ) -> None:
        self._client = client
        self._lease_remaining = lease_remaining
        self._unanswered: Change | None = None

    def apply(self, change: Change) -> Meta | None:
        """Write `change`; the object's new Meta, None after a delete (also when it was gone already).

        Raises StaleError (changed since it was read: read again, decide again), ConflictError (a create found an
        object that is not ours), AlteredError (something else was stored), TransientError, PermanentError.
        """
        try:
            return self._apply(change)
        except TransientError:
            self._unanswered = change
            raise

    def ask_again(self, timeout: float) -> None:
        """Send what was not answered last once more, as a dry run; TransientError where it is still not answered.

        A read would prove less: the API server answers reads while an admission webhook, or etcd, makes writes hang.
        """
        change = self._unanswered
        if change is None:
            self._client.request("GET", "/version", timeout=timeout)
            return
        deletes = change.action is Action.DELETE
        with contextlib.suppress(StaleError, PermanentError, ThrottledError):  # each of them is an answer
            self._client.request(
                "DELETE" if deletes else "PATCH",
                objects.path(change.kind, change.target.namespace, change.name),
                query=(("dryRun", "All"),) if deletes else (_MANAGER, _FORCE, ("dryRun", "All")),
                body=None if deletes else _bytes(objects.encode(change)),
                content_type=JSON if deletes else APPLY,
                timeout=timeout,
            )
        self._unanswered = None

    def _apply(self, change: Change) -> Meta | None:
        match change.action:
            case Action.CREATE:
                return self._create(change)
            case Action.UPDATE:
                return self._update(change)
            case Action.DELETE:
                self._delete(change)
                return None
            case Action.UNCHANGED:
                return change.existing

    def _create(self, change: Change) -> Meta:
        body = objects.encode(change)
        strict = _bytes(body, resourceVersion=NEVER_VERSION)
        for _ in range(2):
            answer = self._patch(change, strict, (_MANAGER,), _CREATE_ALLOWS)
            if answer.status < 400:
                return self._created(change, body, answer)
            found = self._find(change)
            if found is not None:
                raise self._taken(change, found)
            # 409, and yet nothing there: it went away in between, most likely, so once more
        answer = self._patch(change, _bytes(body), (_MANAGER,), _CREATE_ALLOWS)
        if answer.status < 400:
            return self._created(change, body, answer)
        found = self._find(change)
        if found is not None:
            raise self._taken(change, found)
        raise StaleError(f"{_what(change)} comes and goes: {_message(answer)}")

    def _created(self, change: Change, sent: dict[str, Any], answer: Response) -> Meta:
        if answer.status != 201:
            raise StaleError(f"{_what(change)} was there when it was to be created: read it again")
        return self._stored(change, sent, _object(answer, change))

    def _update(self, change: Change) -> Meta:
        existing = _existing(change)
        if isinstance(change.body, ServiceBody) and change.body.replaces_ports:
            existing = self._with_ports_replaced(change, change.body, existing)
        sent = objects.encode(change)
        body = _bytes(sent, uid=existing.uid, resourceVersion=existing.resource_version)
        answer = self._patch(change, body, (_MANAGER, _FORCE), _UPDATE_ALLOWS)
        if answer.status == 409 or (answer.status == 422 and _is_uid_fault(answer)):
            raise StaleError(f"{_what(change)} changed since it was read: {_message(answer)}")
        if answer.status == 422:
            raise faults.of_answer(self._asked(change, "PATCH"), 422, answer.headers, answer.body)
        found = _object(answer, change)
        if isinstance(change.body, ServiceBody):
            found = self._tidied(change, found)
        if left := objects.leftovers(existing, sent, found):
            found = self._merge(change, *_version_of(found), metadata=left)
        return self._stored(change, sent, found)

    def _stored(self, change: Change, sent: dict[str, Any], found: dict[str, Any]) -> Meta:
        """The Meta of what was stored; AlteredError where that is not what was sent."""
        if altered := objects.alterations(sent, found):
            some = "; ".join(altered[:ALTERATIONS_SHOWN])
            more = f"; and {len(altered) - ALTERATIONS_SHOWN} more" if len(altered) > ALTERATIONS_SHOWN else ""
            raise AlteredError(
                f"{_what(change)} is not stored as it was written: {some}{more}. Most likely an admission webhook or "
                "policy changes it (kubectl get mutatingwebhookconfigurations,mutatingadmissionpolicies); it is "
                "written again, at growing intervals",
                objects.decode(change.kind, found),
            )
        return self._meta(change, found)

    def _with_ports_replaced(self, change: Change, body: ServiceBody, existing: Meta) -> Meta:
        """Put exactly our ports in place of those that stand, and keep the node ports that clients may know."""
        stored = self._read(change)
        if stored is None or _version_of(stored) != (existing.uid, existing.resource_version):
            raise StaleError(f"{_what(change)} changed since it was read")
        node_ports = {
            (p.get("port"), p.get("protocol", "TCP")): p["nodePort"]
            for p in map(objects.mapping, objects.mapping(stored.get("spec")).get("ports") or [])
            if p.get("nodePort")
        }
        ports = objects.service_ports(body)
        for port in ports:
            if (port["port"], port["protocol"]) in node_ports and body.type in NODE_PORT_TYPES:
                port["nodePort"] = node_ports[port["port"], port["protocol"]]
        return self._meta(change, self._merge(change, existing.uid, existing.resource_version, {"ports": ports}))

    def _merge(
        self,
        change: Change,
        uid: str,
        version: str,
        spec: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Merge `spec` and `metadata` into the object of this uid and version; the answer, whole."""
        patch: dict[str, Any] = {"metadata": {"uid": uid, "resourceVersion": version, **(metadata or {})}}
        if spec is not None:
            patch["spec"] = spec
        answer = self._client.request(
            "PATCH",
            objects.path(change.kind, change.target.namespace, change.name),
            query=(_MANAGER,),
            body=_bytes(patch),
            content_type=MERGE,
            within=self._permitted_seconds(change),
            allow=frozenset({409}),
        )
        if answer.status == 409:
            raise StaleError(f"{_what(change)} changed while it was being written: {_message(answer)}")
        return _object(answer, change)

    def _tidied(self, change: Change, found: dict[str, Any]) -> dict[str, Any]:
        """Take out of a Service what an apply cannot: other managers' ports, an adopted ExternalName's name.

        An apply merges ports by (port, protocol), so those that another manager put there would stay.
        """
        assert isinstance(change.body, ServiceBody)  # noqa: S101 - the caller's own condition, for the type checker
        spec: dict[str, Any] = found.get("spec") or {}
        wanted = objects.ports(sorted(change.body.ports))
        keys = {(p["port"], p["protocol"]) for p in wanted}
        stored = spec.get("ports") or []
        too_many = any((p.get("port"), p.get("protocol", "TCP")) not in keys for p in stored)
        if not too_many and "externalName" not in spec:
            return found
        kept = [p for p in stored if (p.get("port"), p.get("protocol", "TCP")) in keys]
        return self._merge(change, *_version_of(found), {"ports": kept, "externalName": None})

    def _delete(self, change: Change) -> None:
        existing = _existing(change)
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": existing.uid, "resourceVersion": existing.resource_version},
        }
        answer = self._client.request(
            "DELETE",
            objects.path(change.kind, change.target.namespace, change.name),
            body=_bytes(options),
            accept=METADATA_ONLY,
            within=self._permitted_seconds(change),
            allow=_DELETE_ALLOWS,
        )
        if answer.status == 409:
            raise StaleError(f"{_what(change)} changed since it was read: {_message(answer)}")
        if answer.status == 404 and not faults.status_of(answer.body):
            raise faults.of_answer(self._asked(change, "DELETE"), 404, answer.headers, answer.body)

    # ------------------------------------------------------------------ inside

    def _patch(
        self, change: Change, body: bytes, query: tuple[tuple[str, str], ...], allow: frozenset[int]
    ) -> Response:
        return self._client.request(
            "PATCH",
            objects.path(change.kind, change.target.namespace, change.name),
            query=query,
            body=body,
            content_type=APPLY,
            within=self._permitted_seconds(change),
            allow=allow,
        )

    def _permitted_seconds(self, change: Change) -> float:
        seconds = self._lease_remaining(change.target)
        if seconds <= 0:
            raise NotLeadingError(f"{_what(change)} is not written: another replica writes it now")
        return seconds

    def _find(self, change: Change) -> dict[str, Any] | None:
        """Metadata of the object that is in the way, None when there is none."""
        return self._read(change, METADATA_LIST_ONLY)

    def _read(self, change: Change, accept: str = JSON) -> dict[str, Any] | None:
        """The object, None when there is none. A list: needs no `get` permission."""
        answer = self._client.request(
            "GET",
            objects.path(change.kind, change.target.namespace),
            query=(("fieldSelector", f"metadata.name={change.name}"),),
            accept=accept,
        )
        items = _json(answer.body, wire.page).get("items") or []
        return items[0] if items and isinstance(items[0], dict) else None

    def _taken(self, change: Change, raw: dict[str, Any]) -> StaleError | ConflictError:
        found = objects.decode_meta(change.kind, raw)
        mine = dict(change.body.labels).get(ownership.OWNER) if change.body is not None else None
        if found is not None and found.owner is not None and found.owner == mine:
            return StaleError(f"{_what(change)} is there already and ours: read it again")
        return ConflictError(f"{_what(change)} exists and belongs to {belongs_to(raw)}: left alone")

    def _meta(self, change: Change, raw: dict[str, Any]) -> Meta:
        meta = objects.decode_meta(change.kind, raw)
        if meta is None:
            raise PermanentError(f"the answer to writing {_what(change)} is no Kubernetes object")
        return meta

    def _asked(self, change: Change, method: str) -> faults.RequestInfo:
        path = objects.path(change.kind, change.target.namespace, change.name)
        return faults.RequestInfo(method, path, self._client.server)


def belongs_to(raw: object) -> str:
    """Whose an object is, for people, as far as its metadata tells."""
    metadata = objects.mapping(objects.mapping(raw).get("metadata"))
    labels = objects.mapping(metadata.get("labels"))
    manager = labels.get(ownership.MANAGED_BY)
    if manager == ownership.MANAGER:
        owner = labels.get(ownership.OWNER)
        return f'the bridge with owner id "{owner}"' if owner else "no owner id (its owner label was removed)"
    if labels.get(ownership.CATALOG_SYNC_LABEL) == "true":
        return "HashiCorp's consul-k8s catalog sync (label consul=true)"
    if manager:
        return str(manager)
    fields = metadata.get("managedFields")
    managers = {str(f.get("manager")) for f in fields if isinstance(f, dict)} if isinstance(fields, list) else set()
    if FIELD_MANAGER in managers:
        return f"this bridge or another one by its field manager, but without the label {ownership.MANAGED_BY}"
    return f"another client (written by {', '.join(sorted(managers))})" if managers else "another client"


def _bytes(body: dict[str, Any], **preconditions: str) -> bytes:
    if preconditions:
        body = {**body, "metadata": {**body["metadata"], **preconditions}}
    return wire.body(body)


def _version_of(raw: dict[str, Any]) -> tuple[str, str]:
    metadata = objects.mapping(raw.get("metadata"))
    return str(metadata.get("uid") or ""), str(metadata.get("resourceVersion") or "")


def _existing(change: Change) -> Meta:
    existing = change.existing
    if existing is None or not existing.uid or not existing.resource_version:
        raise ValueError(f"{change.action} of {_what(change)} needs the uid and resourceVersion of what was seen")
    return existing


def _what(change: Change) -> str:
    return f"{change.kind} {change.target.namespace}/{change.name}"


def _json(body: Body, read: Callable[[Body], Any] = wire.answer) -> dict[str, Any]:
    try:
        found = read(body)
    except (ValueError, RecursionError) as error:
        raise PermanentError("the server's answer is no JSON: is that the API server's address?") from error
    return found if isinstance(found, dict) else {}


def _object(answer: Response, change: Change) -> dict[str, Any]:
    found = _json(answer.body)
    if not isinstance(found.get("metadata"), dict):
        raise PermanentError(f"the answer to writing {_what(change)} is no Kubernetes object")
    return found


def _message(answer: Response) -> str:
    return faults.trim(str(faults.status_of(answer.body).get("message") or f"HTTP {answer.status}"))


def _is_uid_fault(answer: Response) -> bool:
    return any(c.get("field") == "metadata.uid" for c in faults.causes_of(faults.status_of(answer.body)))
