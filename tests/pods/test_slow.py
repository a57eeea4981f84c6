"""What takes minutes: `make pods` runs it, continuous integration does not."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.pods.conftest import RULES, SLOW, VMS, Figure, Storage, no_cluster
from tests.support.lab.pods import Cluster
from tests.support.lab.pods.installation import Installation
from tests.support.lab.servers import wait_until

pytestmark = [
    pytest.mark.lab,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.environ.get(SLOW) != "1", reason=f"takes minutes: `make pods` runs it ({SLOW}=1)"),
]

LEASE_SECONDS = 15.0
TOKEN_SECONDS = 600
"""The shortest life of a projected token that the API server grants; kubelet renews it after four fifths."""
POLICY = (
    'service_prefix "" { policy = "read" }\nnode_prefix "" { policy = "read" }\nagent_prefix "" { policy = "read" }'
)


def test_the_leaders_node_is_lost(storage: Storage, figure: Figure) -> None:
    """A power cut of the first node, with the leader on it: the other replica leads when the Lease has ended."""
    cluster, bridge = storage.cluster, storage.bridge
    first = cluster.nodes[0]
    for _ in range(6):
        if bridge.pod(bridge.leader())["spec"]["nodeName"] == first.name:
            break
        identity = bridge.identity()
        bridge.kubectl("delete", "pod", bridge.leader())
        bridge.await_another_leader(identity)
        bridge.await_ready_pods(2)
    since, identity = time.time(), bridge.identity()
    first.kill()
    seconds = bridge.await_another_leader(identity, 60)
    assert seconds < LEASE_SECONDS + 10
    cluster.maintenance("radosgw", 9, on=True)
    bridge.await_addresses("radosgw", VMS - 1)
    cluster.maintenance("radosgw", 9, on=False)
    bridge.await_addresses("radosgw", VMS)
    lost = cluster.await_node(first, ready=False, within=180)
    assert storage.client.failed(since) == []
    figure("leader's node lost", f"another leads after {seconds:.1f} s, the node is NotReady after {lost:.0f} s more; "
           "0 failed of a pod on the other node")  # fmt: skip
    first.start()
    cluster.await_node(first)
    bridge.await_ready_pods(2, 180)


def test_the_projected_token_is_rotated(storage: Storage, figure: Figure) -> None:
    """Tokens of ten minutes: kubelet writes a new one after eight, and no request is refused for want of it."""
    patch = """[{"op": "replace", "path": "/spec/template/spec/automountServiceAccountToken", "value": false},
 {"op": "add", "path": "/spec/template/spec/volumes/-", "value": {"name": "token", "projected": {"sources": [
  {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}},
  {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
  {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]}}},
 {"op": "add", "path": "/spec/template/spec/containers/0/volumeMounts/-", "value":
  {"name": "token", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}}]"""
    further = {"patches": [{"target": {"kind": "Deployment"}, "patch": patch}]}
    bridge = storage.bridge
    bridge.install(rules=RULES, further=further)
    since = time.time()
    code = "print(open('/var/run/secrets/kubernetes.io/serviceaccount/token').read())"
    pod = bridge.leader()
    before = bridge.python(pod, code)
    wait_until(lambda: bridge.python(pod, code) != before, TOKEN_SECONDS + 60, "another token", 5)
    renewed = time.time() - since
    time.sleep(max(0.0, TOKEN_SECONDS + 30 - renewed))  # the old one has ended
    storage.cluster.maintenance("radosgw", 9, on=True)
    bridge.await_addresses("radosgw", VMS - 1)
    storage.cluster.maintenance("radosgw", 9, on=False)
    bridge.await_addresses("radosgw", VMS)
    user = f"system:serviceaccount:{bridge.namespace}:consul-endpoints-bridge"
    refused = [e for e in storage.cluster.lab.audit(user, since) if e.code in (401, 403)]
    assert refused == []
    assert [e for e in storage.cluster.lab.audit(since=since) if e.code == 401] == []
    assert storage.client.failed(since) == []
    figure("projected token of ten minutes", f"renewed after {renewed:.0f} s, no 401, 0 failed")
    bridge.install(rules=RULES)


@pytest.fixture
def guarded() -> Iterator[Cluster]:
    """A small cluster whose Consul has ACLs, default deny."""
    no_cluster()
    with Cluster(nodes=1, vms=2, acl=True) as cluster:
        yield cluster


def test_the_consul_token_is_rotated_by_the_guide(guarded: Cluster, figure: Figure) -> None:
    """docs/operations.md: a new token into the Secret, two minutes, the old one deleted; nothing is interrupted."""
    bridge = Installation(guarded, "storage")

    def token() -> Any:
        with guarded.lab.raw_consul() as consul:
            return consul.json("PUT", "/v1/acl/token", {"Policies": [{"Name": "bridge"}]})

    with guarded.lab.raw_consul() as consul:
        consul.json("PUT", "/v1/acl/policy", {"Name": "bridge", "Rules": POLICY})
    old = token()
    bridge.make_namespace()
    write_secret(bridge, old["SecretID"])
    bridge.install(["consul-acl"], rules=RULES)
    bridge.await_addresses("radosgw", 2)
    new = token()
    began = time.monotonic()
    write_secret(bridge, new["SecretID"])
    code = "import os; print(open(os.environ['CONSUL_HTTP_TOKEN_FILE']).read().strip())"
    pods = [pod["metadata"]["name"] for pod in bridge.pods()]
    wait_until(
        lambda: all(bridge.python(pod, code).strip() == new["SecretID"] for pod in pods), 120, "the new Secret", 2
    )
    delivered = time.monotonic() - began
    with guarded.lab.raw_consul() as consul:
        consul.json("DELETE", f"/v1/acl/token/{old['AccessorID']}")
    guarded.maintenance("radosgw", 1, on=True)
    seconds = bridge.await_addresses("radosgw", 1)
    guarded.maintenance("radosgw", 1, on=False)
    bridge.await_addresses("radosgw", 2)
    assert len(bridge.ready_pods()) == 2
    figure("Consul token rotated by the guide", f"in the pods after {delivered:.0f} s; the old one deleted: "
           f"the next change is there after {seconds:.1f} s, no replica unready")  # fmt: skip


def write_secret(bridge: Installation, secret: str) -> None:
    """As the guide does it."""
    text = bridge.kubectl(
        "create", "secret", "generic", "consul-endpoints-bridge-acl", f"--from-literal=token={secret}",
        "--dry-run=client", "--output=yaml",
    )  # fmt: skip
    bridge.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=text)
