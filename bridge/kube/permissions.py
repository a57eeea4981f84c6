"""Asks the API server what we may do, and whether a namespace is there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import Any

from bridge.core.model import Kind
from bridge.errors import TransientError
from bridge.json_shape import Body
from bridge.kube import objects
from bridge.kube.client import KubeClient


def may_list_routes(client: KubeClient, namespace: str | None) -> bool:
    """Whether we may list HTTPRoutes in a namespace (None: in all)."""
    return can_i(client, "list", objects.GATEWAY_API, objects.PLURAL[Kind.HTTP_ROUTE], namespace or "")


def can_i(
    client: KubeClient, verb: str, group: str, resource: str, namespace: str = "", *, timeout: float | None = None
) -> bool:
    """Ask the API server whether we may (SelfSubjectAccessReview; everyone may ask)."""
    attributes = {"verb": verb, "group": group, "resource": resource, "namespace": namespace}
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {k: v for k, v in attributes.items() if v}},
    }
    answer = client.request(
        "POST",
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        body=json.dumps(body).encode(),
        timeout=timeout,
    )
    try:
        return bool(json.loads(answer.body)["status"]["allowed"])
    except (ValueError, KeyError, TypeError) as error:
        raise TransientError("the answer to an access review is no access review") from error


class NamespaceState(Enum):
    """What is known of a namespace."""

    EXISTS = auto()
    ABSENT = auto()
    BEING_DELETED = auto()
    NOT_TOLD = auto()


def namespace_states(client: KubeClient, namespaces: Sequence[str]) -> dict[str, NamespaceState]:
    """What the namespaces are like, as far as we may look."""
    states: dict[str, NamespaceState] = {}
    for namespace in dict.fromkeys(namespaces):
        answer = client.request("GET", f"/api/v1/namespaces/{namespace}", allow=frozenset({403, 404}))
        match answer.status:
            case 403:
                states[namespace] = NamespaceState.NOT_TOLD
            case 404:
                states[namespace] = NamespaceState.ABSENT
            case _:
                deleting = _metadata_of(answer.body).get("deletionTimestamp")
                states[namespace] = NamespaceState.BEING_DELETED if deleting else NamespaceState.EXISTS
    return states


def _metadata_of(body: Body) -> Mapping[str, Any]:
    try:
        return objects.mapping(objects.mapping(json.loads(body)).get("metadata"))
    except ValueError:
        return {}
