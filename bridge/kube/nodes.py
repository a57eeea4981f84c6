"""Names of the cluster's nodes, asked for only where `nodeName` is wanted: it takes a cluster-wide right.

A Consul node that is a node of the cluster as well (agents as a DaemonSet) gives its endpoints that node's name; the
API server refuses nothing here, but a name that is no node's would mislead whoever reads it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from bridge.errors import PermanentError, TransientError
from bridge.kube.client import METADATA_LIST_ONLY, KubeClient

PAGE = 500


def node_names(client: KubeClient, wanted: Sequence[str]) -> frozenset[str]:
    """The names in `wanted`; with `*` in it those of all nodes, from the API server.

    Raises PermanentError when the nodes may not be listed, TransientError when the server cannot be asked.
    """
    if "*" not in wanted:
        return frozenset(wanted)
    found: set[str] = set()
    following = ""
    while True:
        query = [("limit", str(PAGE)), *([("continue", following)] if following else [])]
        answer = client.request("GET", "/api/v1/nodes", query=query, accept=METADATA_LIST_ONLY, allow=frozenset({403}))
        if answer.status == 403:
            raise PermanentError(
                "the cluster's nodes may not be listed, which kubernetes.nodes: ['*'] asks for: allow it (a "
                "ClusterRole with list on nodes) or name the nodes there"
            )
        try:
            content = json.loads(answer.body)
            found.update(str(item["metadata"]["name"]) for item in content.get("items") or [])
            following = content["metadata"].get("continue") or ""
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TransientError("the list of nodes is no Kubernetes list") from error
        if not following:
            return frozenset(found)
