"""One look at the Leases of all namespaces: whether a bridge runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bridge.kube.client import KubeClient
from bridge.kube.lease_api import holder


def lease(namespace: str, replica: str, kind: str = "shard") -> Mapping[str, Any]:
    """The Lease of shard 0 in a namespace, or of a replica, renewed just now."""
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    spec = {"holderIdentity": replica, "leaseDurationSeconds": 15, "renewTime": now, "acquireTime": now}
    labels = {"consul-bridge/lease": kind}
    metadata = {"name": f"bridge-{kind}-0", "namespace": namespace, "resourceVersion": "1", "labels": labels}
    return {"metadata": metadata, "spec": spec}


@pytest.mark.parametrize("order", [1, -1])
def test_leases_of_one_name_in_several_namespaces_are_all_looked_at(order: int) -> None:
    """One that was given up does not hide one that is held."""
    items = [lease("prod", "replica-1"), lease("prod", "replica-1", "member"), lease("staging-old", "")][::order]
    answer = SimpleNamespace(
        body=json.dumps({"metadata": {"resourceVersion": "1"}, "items": items}).encode(), headers={}
    )
    client = cast(KubeClient, SimpleNamespace(request=lambda *_asked, **_options: answer))
    assert holder(client, "default", [""]) == "replica-1"
