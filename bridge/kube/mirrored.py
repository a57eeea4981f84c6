"""What the control plane made of our Endpoints: asked for only while our own slices wait to be taken away."""

from __future__ import annotations

import json

from bridge.core.model import Group, Kind, Target
from bridge.errors import TransientError
from bridge.kube import objects
from bridge.kube.client import KubeClient

CONTROLLER = "endpointslicemirroring-controller.k8s.io"


def mirrored(client: KubeClient, target: Target) -> tuple[Group, ...]:
    """Groups of the slices that the mirroring controller keeps for the Service at `target`, () when there are none."""
    wanted = f"kubernetes.io/service-name={target.name},endpointslice.kubernetes.io/managed-by={CONTROLLER}"
    path = objects.path(Kind.ENDPOINT_SLICE, target.namespace)
    answer = client.request("GET", path, query=[("labelSelector", wanted)])
    try:
        items = json.loads(answer.body)["items"] or []
    except (ValueError, KeyError, TypeError) as error:
        raise TransientError("the list of endpointslices is no Kubernetes list") from error
    return tuple(found.group for item in items if (found := objects.decode_slice(item)) is not None)
