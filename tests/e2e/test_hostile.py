"""Whatever is registered in Consul: the bridge works on, writes where its rules say, and nothing speaks in its name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.lab import Lab
from tests.support.program import Daemon, bridge, environment
from tests.support.raw import ENDPOINTS, SLICES, RawConsul, RawKube, UnexpectedAnswerError, ready_addresses

pytestmark = [pytest.mark.lab, pytest.mark.slow]

Json = dict[str, Any]
Eventually = Callable[..., None]

SCRIPT = "<script>alert(1)</script>"
ESCAPE = "\x1b[2J\x1b[31mowned"
FORGED = 'x\n{"event": "forged", "level": "info"}'
TEXTS = (
    SCRIPT, ESCAPE, FORGED, "../../kube-system", "kube-system/kubernetes", "a" * 300, "x" * 100_000, "サービス",
    "\u202egnp.exe", "a b", "'; --", "${jndi:ldap://x}", "%2e%2e%2f", "consul-bridge/owner", "-", "A" * 63 + "-",
    "é", ".",
)  # fmt: skip
ADDRESSES = (
    "169.254.169.254", "127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "fd00:ec2::254", "fe80::1%eth0",
    "10.96.0.1", "10.96.0.53", "10.244.1.1", "010.0.0.1", "0x7f000001", "2130706433", "::ffff:127.0.0.1", "10.0.0.1:80",
    "10.0.0.1\n", " 10.0.0.1", "\uff11\uff10.0.0.1", SCRIPT, ESCAPE, "a" * 5000, "http://10.0.0.1/", "*", "-",
)  # fmt: skip
PORTS = (-1, 0, 65536, 2**31, 22)


def entries(prefix: str) -> Iterator[Json]:
    """Requests to register: every hostile value in every place that it can have."""
    for n, text in enumerate(TEXTS):
        yield service(f"{prefix}{text}", f"{prefix}a{n}")
        yield service(f"{prefix}tags", f"{prefix}b{n}", Tags=[text, f"owner={text}"])
        yield service(
            f"{prefix}meta", f"{prefix}c{n}", Meta={"team": text[:500], "consul-bridge/owner": "somebody"[:500]}
        )
        yield service(f"{prefix}id", f"{prefix}d{n}", ID=text)
        yield {**service(f"{prefix}node", f"{prefix}{text}"), "NodeMeta": {"zone": text[:500]}}
        yield service(f"{prefix}kind", f"{prefix}e{n}", Kind=text)
        yield {
            **service(f"{prefix}check", f"{prefix}f{n}"),
            "Check": {"CheckID": text, "Name": text, "Output": text, "Notes": text, "Status": "passing"},
        }
    for n, address in enumerate(ADDRESSES):
        yield service(f"{prefix}address", f"{prefix}g{n}", Address=address)
        yield {**service(f"{prefix}place", f"{prefix}h{n}", Address=""), "Address": address}
        yield service(f"{prefix}lan", f"{prefix}i{n}", TaggedAddresses={"lan": {"Address": address, "Port": 80}})
    for n, port in enumerate(PORTS):
        yield service(f"{prefix}port", f"{prefix}j{n}", Port=port)
    for n in range(3):
        yield service(f"{prefix}same", f"{prefix}k{n}", ID="same", Address="10.7.0.1")


def service(name: str, node: str, **fields: Any) -> Json:
    """One instance on a node of its own."""
    body = {"ID": node, "Service": name, "Address": "10.7.1.1", "Port": 80, **fields}
    return {"Node": node, "Address": "10.7.2.1", "Service": body}


def put_all(consul: RawConsul, requests: Iterator[Json]) -> tuple[int, int]:
    """How many Consul took, and how many it refused."""
    taken = refused = 0
    for request in requests:
        try:
            consul.json("PUT", "/v1/catalog/register", request)
            taken += 1
        except UnexpectedAnswerError:
            refused += 1
    return taken, refused


def ours(kube: RawKube) -> list[Json]:
    """Everything in the cluster that carries our owner label in a way, wherever it is."""
    found = []
    for path in ("/api/v1/services", "/api/v1/endpoints", "/apis/discovery.k8s.io/v1/endpointslices"):
        for item in kube.json("GET", path)["items"]:
            marks = (item["metadata"].get("labels") or {}) | (item["metadata"].get("annotations") or {})
            if any("consul-bridge" in key or value == "consul-bridge" for key, value in marks.items()):
                found.append(item)
    return found


def test_a_hostile_catalog(fresh_lab: Lab, tmp_path: Path, eventually: Eventually) -> None:
    """Every place and every value at once, beside a service that must stay in sync all the time."""
    lab, prefix, namespace = fresh_lab, "x", "shop"
    rule: Json = {
        "services": ["*"],
        "to": {"namespace": namespace, "labels_from": {"team": "meta:team", "owner": "tag:owner=", "tags": "tags"},
               "annotations_from": {"team": "meta:team", "tags": "tags"}},
    }  # fmt: skip
    file = tmp_path / "bridge.yaml"
    deny = ["10.96.0.0/16", "10.244.0.0/16", "fd00:ec2::254/128"]
    file.write_text(yaml.safe_dump({"rules": [rule], "guard": {"deny_cidrs": deny}}))
    env = environment(lab.consul.address, lab.kubeconfig)
    with lab.raw_kube() as kube, lab.raw_consul() as consul:
        kube.json("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
        consul.register("good", "good-vm", "10.77.1.1", 80)
        daemon = Daemon(lab, "hostile", "--config", str(file), env=env)
        lab.add(daemon)
        daemon.start()

        def good() -> list[tuple[str, int]]:
            return ready_addresses(kube.endpoints(namespace, "good"))

        eventually(good, [("10.77.1.1", 80)])
        taken, _ = put_all(consul, entries(prefix))
        assert taken > 100  # what Consul itself refuses is no danger
        consul.register("good", "good-vm", "10.77.1.2", 81)
        eventually(good, [("10.77.1.2", 81)], 20)
        eventually(lambda: ready_addresses(kube.endpoints(namespace, "xsame")), [("10.7.0.1", 80)], 30)
        assert daemon.ready()

        def to_do() -> int:
            """What the daemon, which may still be at work, has left."""
            dry = bridge("sync", "--dry-run", "-o", "json", "--config", str(file), env=env).json["summary"]
            return sum(dry[k] for k in ("create", "update", "delete"))

        eventually(to_do, 0, 60)
        again = bridge("sync", "--yes", "-o", "json", "--config", str(file), env=env)
        summary = again.json["summary"]
        assert [row["message"][:150] for row in again.json["failed"]] == []
        assert (again.status, [summary[k] for k in ("create", "update", "delete", "failed")]) == (0, [0, 0, 0, 0])

        for item in ours(kube):
            metadata = item["metadata"]
            mirrored = metadata["labels"].get("endpointslice.kubernetes.io/managed-by", "consul-bridge")
            assert metadata["namespace"] == namespace
            assert metadata["labels"]["consul-bridge/owner"] == "default"
            if mirrored == "consul-bridge":
                assert metadata["labels"]["app.kubernetes.io/managed-by"] == "consul-bridge"
            assert len(json.dumps(metadata["annotations"])) < 10_000
        addresses = {
            address["ip"]
            for item in kube.json("GET", ENDPOINTS.format(namespace=namespace))["items"]
            for subset in item.get("subsets") or []
            for address in subset.get("addresses", []) + subset.get("notReadyAddresses", [])
        }
        assert {a for a in addresses if not a.startswith(("10.7.", "10.77."))} == set()

        text = daemon.log.read_bytes()
        text = text[: text.rfind(b"\n") + 1]  # it goes on writing
        lines = [json.loads(line) for line in text.splitlines()]
        assert [line for line in lines if line["event"] == "forged"] == []
        assert re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", text) is None
        console = bridge("status", "--config", str(file), env=env)
        assert re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", console.stdout + console.stderr) is None
        pages = [
            daemon.get(path) for path in ("/", "/changes", "/api/status", "/?q=xid", f"/service/{namespace}/xtags")
        ]
        assert [status for status, _ in pages] == [200] * len(pages)
        assert [body for _, body in pages if b"\x1b" in body] == []
        assert [body for _, body in pages if body.startswith(b"<") and b"<script>alert" in body] == []


def test_ten_thousand_instances_of_one_service(fresh_lab: Lab, tmp_path: Path, eventually: Eventually) -> None:
    """Taken in bounded time, in slices; the service beside it does not wait for it."""
    lab, namespace = fresh_lab, "shop"
    file = tmp_path / "bridge.yaml"
    file.write_text(yaml.safe_dump({"rules": [{"to": {"namespace": namespace, "output": "endpointslices"}}]}))
    env = environment(lab.consul.address, lab.kubeconfig)
    with lab.raw_kube() as kube, lab.raw_consul() as consul:
        kube.json("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
        consul.register("good", "good-vm", "10.77.1.1", 80)
        daemon = Daemon(lab, "crowd", "--config", str(file), env=env)
        lab.add(daemon)
        daemon.start()
        for node in range(100):
            consul.json("PUT", "/v1/catalog/register", {"Node": f"vm-{node}", "Address": f"10.9.{node}.250"})
            for half in range(2):
                operations = [
                    {"Service": {"Verb": "set", "Node": f"vm-{node}", "Service": {
                        "ID": f"crowd-{n}", "Service": "crowd", "Address": f"10.9.{node}.{n}", "Port": 80}}}
                    for n in range(50 * half, 50 * half + 50)
                ]  # fmt: skip
                consul.json("PUT", "/v1/txn", operations)

        def counted(name: str) -> int:
            return sum(
                len(item["endpoints"] or [])
                for item in kube.json("GET", SLICES.format(namespace=namespace))["items"]
                if item["metadata"]["labels"].get("kubernetes.io/service-name") == name
            )

        consul.register("good", "good-vm-2", "10.77.1.2", 80)
        eventually(lambda: counted("good"), 2, 30)
        eventually(lambda: counted("crowd"), 10_000, 120)
        assert daemon.ready()
        again = bridge("sync", "--yes", "-o", "json", "--config", str(file), env=env, timeout=120)
        assert (again.status, again.json["summary"]["update"]) == (0, 0)
