"""`bridge run` beside a Consul that shows blocking queries an instance which its catalog does not have any more."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from tests.support.lab import Lab
from tests.support.program import Daemon, environment
from tests.support.raw import SLICES, RawConsul, RawKube, ready_addresses

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def test_a_vm_that_came_back_in_another_case_gets_traffic_once_and_that_is_reported_once(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Callable[..., None]
) -> None:
    name = f"{prefix}gh"

    def register(node: str, address: str) -> None:
        service = {"Service": name, "ID": name, "Port": 80}
        consul.json("PUT", "/v1/catalog/register", {"Node": node, "Address": address, "Service": service})

    def ready() -> object:
        found = kube.json("GET", SLICES.format(namespace=namespace))["items"]
        sliced = sorted({a for s in found for e in s["endpoints"] or [] for a in e["addresses"]})
        return ready_addresses(kube.endpoints(namespace, name)), sliced

    register(f"{prefix}vm2", "10.20.0.2")
    env = environment(lab.consul.address, lab.kubeconfig)
    daemon = Daemon(lab, f"bridge-{namespace}", "--service", name, "--namespace", namespace, env=env)
    daemon.start()
    try:
        eventually(ready, ([("10.20.0.2", 80)], ["10.20.0.2"]))
        register(f"{prefix}VM2", "10.20.0.22")
        eventually(ready, ([("10.20.0.22", 80)], ["10.20.0.22"]))
        eventually(lambda: daemon.metric("consul_bridge_streaming_mismatch_services"), 1.0)
        register(f"{prefix}VM2", "10.20.0.23")
        eventually(ready, ([("10.20.0.23", 80)], ["10.20.0.23"]))
        time.sleep(1.0)
        said = [e for e in daemon.events() if "streaming backend" in e["event"]]
        assert [(e["service"], e["level"]) for e in said] == [(name, "warning")]
        status = json.loads(daemon.get("/api/status")[1])
        assert status["catalog"]["dc1"]["streaming_mismatches"] == [name]
    finally:
        daemon.stop()
        consul.drop_node(f"{prefix}VM2")
