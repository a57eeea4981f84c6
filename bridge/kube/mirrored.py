"""What the control plane made of our Endpoints: asked for while our own slices wait to go, and by `bridge check`."""

from __future__ import annotations

import json

from bridge.core import ownership
from bridge.core.model import CurrentEndpoints, Group, Kind, Target
from bridge.errors import TransientError
from bridge.kube import objects
from bridge.kube.client import KubeClient

CONTROLLER = "endpointslicemirroring-controller.k8s.io"


def mirrored(client: KubeClient, target: Target) -> tuple[Group, ...]:
    """Groups of the slices that the mirroring controller keeps for the Service at `target`, () when there are none."""
    wanted = f"{ownership.SLICE_SERVICE}={target.name},{ownership.SLICE_MANAGED_BY}={CONTROLLER}"
    path = objects.path(Kind.ENDPOINT_SLICE, target.namespace)
    answer = client.request("GET", path, query=[("labelSelector", wanted)])
    try:
        items = json.loads(answer.body)["items"] or []
    except (ValueError, KeyError, TypeError) as error:
        raise TransientError("the list of endpointslices is no Kubernetes list") from error
    return tuple(found.group for item in items if (found := objects.decode_slice(item)) is not None)


def some_endpoints(
    client: KubeClient, namespace: str | None, owner: str, limit: int
) -> list[tuple[Target, tuple[Group, ...]]]:
    """Up to `limit` Endpoints of an owner id that ask to be mirrored, in `namespace` (None: in all)."""
    wanted = f"{objects.OURS},{ownership.OWNER}={owner},!{ownership.SKIP_MIRROR}"
    query = [("labelSelector", wanted), ("limit", str(limit))]
    answer = client.request("GET", objects.path(Kind.ENDPOINTS, namespace), query=query)
    try:
        items = json.loads(answer.body)["items"] or []
    except (ValueError, KeyError, TypeError) as error:
        raise TransientError("the list of endpoints is no Kubernetes list") from error
    found = [e for item in items if isinstance(e := objects.decode(Kind.ENDPOINTS, item), CurrentEndpoints)]
    return [(Target(e.meta.namespace, e.meta.name), e.groups) for e in found]
