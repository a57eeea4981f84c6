"""Whether the API server would admit what the bridge writes: a server-side dry run of each kind, for `bridge check`.

Rights (RBAC) are only the first answer. Behind them stand admission policies, webhooks, quotas and a namespace that is
being deleted; they see the object. A dry run goes through all of it and stores nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from bridge.core.model import Kind
from bridge.core.ownership import MANAGED_BY, MANAGER, OWNER, SLICE_MANAGED_BY, SLICE_SERVICE
from bridge.errors import ForbiddenError, PermanentError
from bridge.kube import objects
from bridge.kube.client import APPLY, FIELD_MANAGER, METADATA_ONLY, KubeClient

NAME = "consul-bridge-check"
"""Of the objects that are never stored. They have neither ports nor endpoints: only rules about a kind mind them."""

_CONTENT: Mapping[Kind, dict[str, Any]] = {
    Kind.SERVICE: {"spec": {"type": "ClusterIP", "clusterIP": "None"}},
    Kind.ENDPOINTS: {},
    Kind.ENDPOINT_SLICE: {"addressType": "IPv4", "endpoints": [], "ports": []},
}


def refusals(client: KubeClient, namespace: str, owner: str, kinds: Collection[Kind]) -> list[str]:
    """What the API server says against creating objects of these kinds with our labels; [] when it admits all.

    Missing rights are not among them. Raises TransientError when the server cannot be asked.
    """
    found = []
    for kind in sorted(kinds):
        labels = {MANAGED_BY: MANAGER, OWNER: owner}
        if kind is Kind.ENDPOINT_SLICE:
            labels |= {SLICE_MANAGED_BY: MANAGER, SLICE_SERVICE: NAME}
        body = {
            "apiVersion": objects.API_VERSION[kind],
            "kind": kind.value,
            "metadata": {"name": NAME, "namespace": namespace, "labels": labels},
            **_CONTENT[kind],
        }
        path, query = f"{objects.path(kind, namespace)}/{NAME}", [("fieldManager", FIELD_MANAGER), ("dryRun", "All")]
        try:
            client.request(
                "PATCH", path, query=query, body=json.dumps(body).encode(), content_type=APPLY, accept=METADATA_ONLY
            )
        except ForbiddenError:
            continue
        except PermanentError as error:
            found.append(f"{kind}: {error}")
    return found
