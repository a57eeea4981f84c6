"""The other ways in which the bridge is deployed: as a CronJob, in shards, by the chart."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.pods.conftest import RULES, VMS, Figure, Storage
from tests.support.lab import manifests
from tests.support.lab.pods.installation import Installation
from tests.support.lab.providers import binary
from tests.support.lab.servers import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

SHARDED = [f"radosgw-{letter}" for letter in "abcdef"]
TWO_REPLICAS = {
    "replicas": [{"name": manifests.NAME, "count": 2}],
    "patches": [{
        "target": {"kind": "Deployment", "name": manifests.NAME},
        "patch": f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {manifests.NAME}}}
spec:
  template:
    spec:
      containers:
        - name: bridge
          env: [{{name: BRIDGE_SHARDS, value: "3"}}]
""",
    }],
}  # fmt: skip


def test_a_cronjob_makes_one_pass(storage: Storage, figure: Figure) -> None:
    """`components/cronjob`, its Job started by hand: complete, and everything is there."""
    bridge = Installation(storage.cluster, "cron")
    bridge.make_namespace()
    bridge.apply(["cronjob"], rules=RULES)
    began = time.monotonic()
    bridge.kubectl("create", "job", "now", f"--from=cronjob/{manifests.NAME}")
    bridge.kubectl("wait", "job/now", "--for=condition=complete", "--timeout=90s")
    took = time.monotonic() - began
    assert len(bridge.addresses("radosgw")) == VMS
    figure("CronJob: one pass, start of the pod included", f"{took:.0f} s")
    storage.cluster.kubectl("delete", "namespace", "cron", "--wait=false")


def test_three_shards_are_divided_among_two_replicas(storage: Storage, figure: Figure) -> None:
    """Each replica writes the services of its shards; when one goes the other has all, and all is carried out."""
    bridge = Installation(storage.cluster, "shards")
    for n, name in enumerate(SHARDED, 1):
        storage.cluster.open(n, name, 8080)
    bridge.make_namespace()
    bridge.install(["shards"], rules=RULES, further=TWO_REPLICAS)
    leaders: dict[str, str] = {}

    def divided() -> bool:
        """Whether every shard has a leader, and both replicas lead."""
        leaders.update(bridge.leaders())
        return all(leaders.values()) and len(set(leaders.values())) == 2

    wait_until(divided, 60, "both replicas having shards", 0.2)
    assert len(leaders) == 3
    for name in SHARDED:
        bridge.await_addresses(name, 1)

    gone = min(leaders.values())
    began = time.monotonic()
    bridge.kubectl("delete", "pod", gone, "--wait=false")
    wait_until(lambda: gone not in bridge.leaders().values() and all(bridge.leaders().values()), 60,
               "every shard having a writer", 0.1)  # fmt: skip
    took = time.monotonic() - began
    for n, name in enumerate(SHARDED, 1):
        storage.cluster.deregister(name, n)
    for name in SHARDED:
        bridge.await_addresses(name, 0)
    figure("three shards, one of two replicas deleted", f"every shard has a writer again after {took:.1f} s")
    storage.cluster.kubectl("delete", "namespace", "shards", "--wait=false")


def test_the_chart_installs_it_with_its_defaults(storage: Storage, figure: Figure, tmp_path: Path) -> None:
    """README's `helm install`, with the image and Consul's address: every gateway is there, and `helm test` passes."""
    bridge = Installation(storage.cluster, "chart")
    bridge.make_namespace()
    homes = {f"HELM_{kind}_HOME": str(tmp_path / "helm") for kind in ("CACHE", "CONFIG", "DATA")}
    env = {**os.environ, **homes, "KUBECONFIG": str(storage.cluster.lab.kubeconfig)}
    values = f"image.repository={manifests.NAME},consul.address={storage.cluster.consul_address}"
    chart = str(manifests.MANIFESTS / "chart")

    def helm(*arguments: str) -> None:
        command = [str(binary("helm")), *arguments, "--namespace", "chart"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    began = time.monotonic()
    helm("install", "bridge", chart, "--set", values, "--wait", "--timeout", "120s")
    bridge.await_addresses("radosgw", VMS)
    figure("`helm install --wait` with defaults", f"{time.monotonic() - began:.0f} s until all endpoints are there")
    helm("test", "bridge", "--logs", "--timeout", "120s")  # `bridge check` in a pod of its own
    helm("uninstall", "bridge")
    storage.cluster.kubectl("delete", "namespace", "chart", "--wait=false")
