"""HTTPRoutes that cannot be read: whether the kind is there at all, and what to do about it.

The Gateway API is not a part of Kubernetes: its kinds come with its CRDs, and may be missing or older than what we
write (`gateway.networking.k8s.io/v1`, since release 1.0). That stops nothing but the HTTPRoutes.
"""

from __future__ import annotations

import json

from bridge.core.reasons import Code, Reason
from bridge.errors import BridgeError, CancelledError, CredentialsError, ForbiddenError, PermanentError, TransientError
from bridge.kube import objects
from bridge.kube.client import KubeClient

COMPONENT = "manifests/components/http-routes"
"""What grants the rights on HTTPRoutes."""

ROLE = f"apply {COMPONENT} (chart: httpRoutes)"


def is_lasting(error: BridgeError) -> bool:
    """Whether a read failed because there are no HTTPRoutes for us, not because of the server or the credentials."""
    return isinstance(error, PermanentError) and not isinstance(error, CredentialsError)


def unread(client: KubeClient, namespace: str | None, error: BridgeError) -> Reason:
    """The warning while HTTPRoutes cannot be read for this error."""
    if isinstance(error, TransientError):
        return Reason(Code.ROUTES_UNREAD, why=str(error))
    if isinstance(error, ForbiddenError):
        where = f"in namespace {namespace}" if namespace else "in all namespaces"
        return Reason(Code.ROUTES_UNREAD, why=f"the bridge may not list and watch httproutes {where}; {ROLE}")
    return Reason(Code.ROUTES_UNREAD, why=_absent(client) or str(error))


def _absent(client: KubeClient) -> str:
    """What the cluster has of the Gateway API; "" where that cannot be told."""
    try:
        answer = client.request("GET", f"/apis/{objects.GATEWAY_API}", allow=frozenset({404}))
        found = json.loads(answer.body) if answer.status != 404 else {"versions": []}
        versions = [str(version["version"]) for version in found["versions"]]
    except CancelledError:
        raise
    except (BridgeError, ValueError, KeyError, TypeError):
        return ""
    wanted = "HTTPRoute (gateway.networking.k8s.io/v1)"
    if versions and "v1" not in versions:
        return f"the cluster has {wanted} as {', '.join(versions)} only; upgrade the Gateway API's CRDs to 1.0 or later"
    return f"the cluster has no {wanted}; install the Gateway API's CRDs"
