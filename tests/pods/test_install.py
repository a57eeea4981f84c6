"""The bridge as README installs it, seen from a pod."""

from __future__ import annotations

import shutil
import time

import pytest

from tests.pods.conftest import VMS, Figure, Storage
from tests.support.lab import manifests
from tests.support.lab.pods import Cluster
from tests.support.lab.pods.installation import Installation

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

ASK = """
import urllib.request
print(urllib.request.urlopen('http://{host}', timeout=10).read().decode())
"""


def test_the_readme_installs_it_and_a_pod_asks_by_name(cluster: Cluster, figure: Figure) -> None:
    """Its two commands after the address was filled in; then a pod gets answers from every VM, by name."""
    bridge = Installation(cluster, "readme")
    checkout = bridge.folder
    shutil.copytree(manifests.MANIFESTS, checkout / "manifests")
    overlay = checkout / "manifests/overlays/demo"
    text = (overlay / "kustomization.yaml").read_text()
    text = text.replace("http://consul.example.com:8500", cluster.consul_address)
    (overlay / "kustomization.yaml").write_text(text.replace("namespace: storage", "namespace: readme"))
    bridge.make_namespace()
    cluster.open(1, "postgres", 5432)
    began = time.monotonic()
    cluster.kubectl("apply", "--server-side", "-k", str(overlay))
    bridge.await_rollout()
    bridge.await_addresses("radosgw", VMS)
    figure("install: from `kubectl apply` until both replicas are ready and twelve addresses are there",
           f"{time.monotonic() - began:.1f} s")  # fmt: skip

    bridge.kubectl("apply", "-f", str(overlay / "database.yaml"))
    annotated = bridge.await_addresses("database", 1)

    client = bridge.client("radosgw", 8080, 10)
    client.await_calm(3 * VMS)
    since = time.time()
    client.await_calm(20)
    assert client.failed(since) == []
    answered = bridge.python("client", ASK.format(host="database:5432"))
    assert answered.strip() == "vm-1"
    figure("a user's annotated Service", f"its address is there after {annotated:.1f} s; a pod is answered by its name")
    bridge.kubectl("delete", "pod", "client", "--wait=false")
    cluster.kubectl("delete", "namespace", "readme", "--wait=false")


def test_restricted_pod_security_admits_it_and_is_enforced(storage: Storage, figure: Figure) -> None:
    """The namespace refuses a pod that may become root; the bridge's pods run in it, and nothing warned of them."""
    privileged = storage.bridge.kubectl(
        "run", "privileged", "--image=lab/pause:1", "--image-pull-policy=Never", check=False
    )
    assert 'violates PodSecurity "restricted:latest"' in privileged
    assert len(storage.bridge.ready_pods()) == 2
    refused = privileged.count(" must ")
    assert refused == 4
    figure(
        "restricted Pod Security enforced",
        f"both replicas run; a pod of `kubectl run` is refused for {refused} reasons",
    )
