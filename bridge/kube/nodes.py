"""The cluster's nodes, as far as they may be seen: it takes a cluster-wide right.

They serve two purposes. Endpoints on a Consul node that is also a node of the cluster (agents as a DaemonSet, the
setting `kubernetes.nodes`) get that node's name; the API server accepts any name here, but one of no node would mislead
its readers. And users' Services do not lead to nodes: a user who may register in Consul could otherwise reach what
listens there (a kubelet, say) through them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bridge.core import normalize
from bridge.core.model import ClusterNodes
from bridge.errors import ForbiddenError, PermanentError
from bridge.kube.client import KubeClient
from bridge.kube.permissions import can_i
from bridge.kube.reads import pages

PAGE = 100
"""Nodes per page: each is some 15 kB."""


def cluster_nodes(client: KubeClient, wanted: Sequence[str], known: ClusterNodes | None = None) -> ClusterNodes:
    """The nodes in `wanted` by name (with `*` in it all of them), and the addresses of all nodes.

    Where nodes may not be listed, the addresses are those that were `known`. Raises PermanentError when names were to
    be asked for and may not, TransientError when the server cannot be asked.
    """
    found = _seen(client)
    if found is None and "*" in wanted:
        raise PermanentError(
            "the cluster's nodes may not be listed, which kubernetes.nodes: ['*'] asks for: allow it (a "
            "ClusterRole with list on nodes) or name the nodes there"
        )
    if found is None:
        return ClusterNodes(frozenset(wanted), {} if known is None else known.addresses)
    addresses = {address: name for name, at in found.items() for address in at}
    return ClusterNodes(frozenset(found if "*" in wanted else wanted), addresses)


def _seen(client: KubeClient) -> dict[str, list[str]] | None:
    """Addresses by node; None where they may not be listed, which is asked first: a refusal looks bad in audit logs."""
    try:
        return dict(_nodes(client)) if can_i(client, "list", "", "nodes") else None
    except ForbiddenError:
        return None


def _nodes(client: KubeClient) -> Iterator[tuple[str, list[str]]]:
    for items, _ in pages(client, "/api/v1/nodes", "nodes", page=PAGE):
        yield from filter(None, map(_node, items))


def _node(item: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    """Name and addresses. A malformed node, or address of one, is left out; the rest still counts."""
    try:
        name, said = str(item["metadata"]["name"]), (item.get("status") or {}).get("addresses") or ()
        given = [(entry.get("type"), str(entry.get("address", ""))) for entry in said]
    except (KeyError, TypeError, AttributeError):
        return None
    parsed = [normalize.parse(address) for kind, address in given if kind in ("InternalIP", "ExternalIP")]
    return name, [found.text for found in parsed if isinstance(found, normalize.Address)]
