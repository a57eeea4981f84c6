"""One Service from several datacenters: two real Consuls that are joined over the WAN, and a real API server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Sync, syncing
from tests.e2e.test_outputs import slices
from tests.e2e.test_switching import sampling
from tests.support.lab import Lab, wait_until
from tests.support.lab.servers import Consul
from tests.support.program import Daemon, environment
from tests.support.raw import SERVICES, RawConsul, RawKube

pytestmark = [pytest.mark.lab, pytest.mark.slow]

Json = dict[str, Any]
Eventually = Callable[..., None]
RULE: Json = {"services": ["web"], "datacenters": ["ams", "fra"], "to": {"port": 80}}
FAILOVER: Json = {**RULE, "combine": "failover", "failback_after": "2s"}
AMS, FRA = frozenset({"10.71.0.1", "10.71.0.2"}), frozenset({"10.72.0.1"})


class Wan:
    """Two datacenters of one server each; the bridge asks that of fra, which forwards to ams."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.ams, self.fra = (Consul(folder / name, name=f"{name}-1") for name in ("ams", "fra"))
        for name, server in (("ams", self.ams), ("fra", self.fra)):
            server.settings = {"datacenter": name}
            server.start(wait=False)
        for server in (self.ams, self.fra):
            server.wait_ready()
        with RawConsul(self.fra.address) as fra, RawConsul(self.ams.address) as ams:
            fra.json("PUT", f"/v1/agent/join/127.0.0.1:{self.ams.ports['serf_wan']}?wan=1")
            wait_until(lambda: self.sees_ams, 30, "a way from fra to ams")
            for n, address in enumerate(sorted(AMS), 1):
                ams.register("web", f"vm-ams-{n}", address, 80)
            for address in FRA:
                fra.register("web", "vm-fra", address, 80)

    @property
    def sees_ams(self) -> bool:
        """Whether fra gets an answer from ams."""
        with RawConsul(self.fra.address, timeout_seconds=5.0) as fra:
            return fra.send("GET", "/v1/catalog/services?dc=ams")[0] == 200

    def health(self, status: str) -> None:
        """All instances of ams get this health."""
        with RawConsul(self.ams.address) as ams:
            for n in range(1, len(AMS) + 1):
                ams.flip("web", f"vm-ams-{n}", status)

    def close(self) -> None:
        for server in (self.ams, self.fra):
            server.kill()


@pytest.fixture
def wan(lab: Lab, tmp_path: Path) -> Iterator[Wan]:
    """The two, with a service of one name in each."""
    made = Wan(lab, tmp_path)
    yield made
    made.close()


@pytest.fixture
def sync(wan: Wan, namespace: str, tmp_path: Path) -> Sync:
    """Run a command with rules, which asks fra."""
    return syncing(wan.lab, namespace, tmp_path, consul=wan.fra.address)


def carried(kube: RawKube, namespace: str) -> tuple[str, str]:
    """What the Service says: which datacenter carries its traffic, and which one is to."""
    found = kube.get(f"{SERVICES.format(namespace=namespace)}/web") or {}
    said = found.get("metadata", {}).get("annotations", {})
    pending = said.get("consul-bridge/pending-datacenter", "").split(" ")[0]
    return said.get("consul-bridge/active-datacenter", ""), pending


def test_a_client_of_the_slices_is_moved_to_the_other_datacenter_and_back(
    wan: Wan, kube: RawKube, namespace: str, tmp_path: Path, eventually: Eventually
) -> None:
    """By health at once, by a dead WAN link when it has lasted, back when it has been well again; never to nothing."""
    rule = {**FAILOVER, "failover_when": "unreachable", "unreachable_after": "3s", "to": {"namespace": namespace}}
    file = tmp_path / "bridge.json"
    soon = {"initial_interval": "100ms", "max_interval": "1s"}
    file.write_text(json.dumps({"rules": [rule], "retry": {"consul": soon, "permanent": soon}}))
    env = environment(wan.fra.address, wan.lab.kubeconfig)
    bridge = Daemon(wan.lab, f"bridge-{namespace}", "--config", str(file), env=env)
    bridge.start()
    try:
        eventually(lambda: carried(kube, namespace), ("ams", ""))
        with sampling(wan.lab, namespace, "web") as samples:
            eventually(lambda: samples[-1:], [AMS])
            first = len(samples)
            wan.health("critical")
            eventually(lambda: samples[-1], FRA, 10)
            wan.health("passing")
            began = time.monotonic()
            eventually(lambda: samples[-1], AMS, 30)
            assert time.monotonic() - began >= 1.0  # of the two seconds, which begin at a whole one
            wan.ams.kill()
            eventually(lambda: carried(kube, namespace), ("ams", "fra"), 60)
            began = time.monotonic()
            eventually(lambda: samples[-1], FRA, 30)
            assert time.monotonic() - began >= 1.0
            why = b"datacenter fra carries the traffic, not ams: it cannot be reached"
            eventually(lambda: why in bridge.get(f"/service/{namespace}/web")[1], True)
            wan.ams.start()
            eventually(lambda: samples[-1], AMS, 90)
            assert {sample for sample in samples[first:] if not sample} == set()
        events = f"/api/v1/namespaces/{namespace}/events"
        eventually(
            lambda: {e["reason"] for e in kube.json("GET", events)["items"]} & {"FailedOver", "FailedBack"},
            {"FailedOver", "FailedBack"},
        )
        switches = 'consul_bridge_datacenter_switches_total{active="fra",before="ams"} 2.0'
        eventually(lambda: switches in bridge.get("/metrics")[1].decode(), True)
    finally:
        bridge.stop()
    moved = [e for e in bridge.events() if e["event"] == "another datacenter carries the traffic"]
    assert [(e["before"], e["active"]) for e in moved] == [("ams", "fra"), ("fra", "ams")] * 2


def zones(kube: RawKube, namespace: str) -> dict[str, str]:
    """Ready addresses in our slices, and their zones."""
    found = [e for piece in slices(kube, namespace, "web") for e in piece["endpoints"] if e["conditions"]["ready"]]
    return {e["addresses"][0]: e.get("zone", "") for e in found}


def test_one_shot_passes_unite_fail_over_and_go_back_by_what_the_service_says(
    wan: Wan, sync: Sync, kube: RawKube, namespace: str
) -> None:
    """And say who carries the traffic; a dead WAN link moves nothing unless the rule says so."""
    sync({**RULE, "combine": "union"})
    assert zones(kube, namespace) == {**dict.fromkeys(AMS, "ams"), **dict.fromkeys(FRA, "fra")}
    sync(FAILOVER)
    assert (frozenset(zones(kube, namespace)), carried(kube, namespace)) == (AMS, ("ams", ""))
    wan.health("critical")
    changes = sync(FAILOVER).json["changes"]
    assert [change["reason"] for change in changes if change["kind"] == "Service"] == ["failed_over"]
    assert (frozenset(zones(kube, namespace)), carried(kube, namespace)) == (FRA, ("fra", ""))
    found = {e["datacenter"]: e for e in sync(FAILOVER, command=("explain", "web")).json["explanations"]}
    ams, fra = found["ams"], found["fra"]
    why = "datacenter fra carries the traffic, not ams: it has 0 of 2 ready, and failover_below is 1"
    assert (ams["traffic"], fra["traffic"], fra["warnings"]) == (why, why, [why])
    assert [[row["disposition"] for row in e["rows"]] for e in (ams, fra)] == [["standby"] * 2, ["ready"]]
    (row,) = sync(FAILOVER, command=("status",)).json["services"]
    assert (row["active_datacenter"], row["state"], row["reasons"]) == ("fra", "in_sync", ["failed_over"])
    wan.health("passing")
    sync(FAILOVER)
    assert carried(kube, namespace) == ("fra", "ams")
    time.sleep(2.1)
    sync(FAILOVER)
    assert (frozenset(zones(kube, namespace)), carried(kube, namespace)) == (AMS, ("ams", ""))
    wan.ams.kill()
    sync(FAILOVER, status=1)
    assert (frozenset(zones(kube, namespace)), carried(kube, namespace)) == (AMS, ("ams", ""))
    sync({**FAILOVER, "failover_when": "unreachable", "unreachable_after": "0s"}, status=1)
    assert (frozenset(zones(kube, namespace)), carried(kube, namespace)) == (FRA, ("fra", ""))
    wrong = {**FAILOVER, "datacenters": ["fra", "atlantis"]}
    probes = sync(wrong, command=("check",), status=1).json["probes"]
    assert ["atlantis" in p["detail"] for p in probes if p["probe"] == "consul datacenters"] == [True]
