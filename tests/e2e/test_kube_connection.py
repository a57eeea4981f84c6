"""What changes between the bridge and a real API server while it runs: certificates, the user, and the way itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from tests.lab import Lab
from tests.lab.failover import Failover
from tests.program import Daemon, bridge, environment
from tests.raw import ENDPOINTS, RawKube, ready_addresses

pytestmark = pytest.mark.lab

Json = dict[str, Any]
Eventually = Callable[..., None]
ROLE = Path(__file__).resolve().parent.parent.parent / "manifests" / "base" / "role.yaml"
NAMESPACE = "team"


class User:
    """A user with a client certificate in files that the kubeconfig names by relative paths."""

    def __init__(self, lab: Lab, folder: Path, address: str) -> None:
        self._authority = trustme.CA.from_pem(
            lab.files["users-ca.pem"].read_bytes(), lab.files["users-ca.key"].read_bytes()
        )
        self.folder = folder
        (folder / "tls").mkdir()
        (folder / "tls" / "ca.crt").write_bytes(lab.ca_file.read_bytes())
        self.kubeconfig = folder / "config"
        self.kubeconfig.write_text(
            yaml.safe_dump({
                "clusters": [{
                    "name": "c", "cluster": {"server": f"https://{address}", "certificate-authority": "tls/ca.crt"},
                }],
                "users": [{"name": "u", "user": {
                    "client-certificate": "tls/me.crt", "client-key": "tls/me.key",
                    "as": f"system:serviceaccount:{NAMESPACE}:bridge",
                }}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}],
                "current-context": "x",
            })
        )  # fmt: skip

    def renew(self, seconds: float) -> float:
        """Another certificate in place of the old one; when it ends, by the clock on the wall."""
        end = datetime.now(UTC) + timedelta(seconds=seconds)
        made = self._authority.issue_cert(
            "chief@example.org", common_name="chief", organization_name="system:masters", not_after=end
        )
        (self.folder / "tls" / "me.crt").write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        (self.folder / "tls" / "me.key").write_bytes(made.private_key_pem.bytes())
        return end.timestamp()


def ready(kube: RawKube, name: str) -> list[str]:
    """Ready addresses."""
    return [address for address, _ in ready_addresses(kube.endpoints(NAMESPACE, name))]


def test_certificate_user_and_way_change_under_a_running_bridge(
    fresh_lab: Lab, tmp_path: Path, eventually: Eventually
) -> None:
    """It acts as the impersonated user only, goes on when its certificate is replaced before it ends, and writes within
    12 s, sees within 20 s, when a virtual address fails over to another API server without a word."""
    lab = fresh_lab
    with lab.raw_kube() as kube:
        kube.apply(f"/api/v1/namespaces/{NAMESPACE}", {
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE},
        })  # fmt: skip
    lab.service_account(NAMESPACE, "bridge", yaml.safe_load(ROLE.read_text())["rules"])
    host = lab.apiserver.url.removeprefix("https://")
    with Failover(host) as address, lab.raw_kube() as kube, lab.raw_consul() as consul:
        user = User(lab, tmp_path, address.address)
        ends = user.renew(25)
        env = environment(lab.consul.address, user.kubeconfig)
        arguments = ("--service", "web", "--namespace", NAMESPACE)
        consul.register("web", "vm-1", "10.9.0.1", 80)
        daemon = Daemon(lab, "bridge-connection", *arguments, env=env)
        daemon.start()
        try:
            eventually(lambda: ready(kube, "web"), ["10.9.0.1"])
            as_whom = {
                (entry["user"]["username"], entry.get("impersonatedUser", {}).get("username"))
                for entry in map(json.loads, lab.audit_log.read_text().splitlines())
                if entry["user"]["username"] == "chief"
            }
            assert as_whom == {("chief", f"system:serviceaccount:{NAMESPACE}:bridge")}

            user.renew(3600)
            assert address.fail_over() > 1
            began = time.monotonic()
            consul.register("web", "vm-2", "10.9.0.2", 80)
            eventually(lambda: ready(kube, "web"), ["10.9.0.1", "10.9.0.2"], 12)
            written = time.monotonic() - began

            address.fail_over()
            began = time.monotonic()
            path = f"{ENDPOINTS.format(namespace=NAMESPACE)}/web"
            kube.json("PATCH", path, {"subsets": []}, "application/merge-patch+json")
            eventually(lambda: ready(kube, "web"), ["10.9.0.1", "10.9.0.2"], 20)
            seen = time.monotonic() - began

            time.sleep(max(0.0, ends - time.time()) + 1)
            consul.register("web", "vm-3", "10.9.0.3", 80)
            eventually(lambda: ready(kube, "web"), ["10.9.0.1", "10.9.0.2", "10.9.0.3"], 12)
            eventually(lambda: daemon.get("/readyz")[0], 200, 20)
            assert (written < 12, seen < 20) == (True, True)
        finally:
            daemon.stop()

        result = bridge("check", "-o", "json", *arguments, env=env)
        section = {p["probe"]: p["detail"] for p in result.json["probes"] if p["section"] == "connections"}
        assert section["kubernetes address"] == f"https://{address.address}"
        assert section["kubernetes user"].startswith(f"system:serviceaccount:{NAMESPACE}:bridge (groups: ")
        assert section["kubernetes user"].endswith(f", impersonated as kubeconfig {user.kubeconfig} asks")
        assert section["kubernetes certificate"].startswith(
            f"client-certificate {tmp_path}/tls/me.crt (kubeconfig {user.kubeconfig}); ends "
        )
