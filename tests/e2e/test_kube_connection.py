"""What changes between the bridge and a real API server while it runs: certificates, the user, and the way itself.

And what does not come back: a credential plugin that hangs, a write that is not answered.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from bridge.kube.members import ElectionConfig
from bridge.kube.plugin import LIMIT_SECONDS, PAUSE_SECONDS
from tests.support.lab import Lab
from tests.support.lab.failover import Failover
from tests.support.program import Daemon, bridge, environment
from tests.support.raw import ENDPOINTS, RawKube, ready

pytestmark = pytest.mark.lab

Json = dict[str, Any]
Eventually = Callable[..., None]
BASE = Path(__file__).resolve().parent.parent.parent / "manifests" / "base"
ROLE = BASE / "role.yaml"
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


def test_certificate_user_and_way_change_under_a_running_bridge(
    fresh_lab: Lab, tmp_path: Path, eventually: Eventually
) -> None:
    """It acts as the impersonated user only, goes on when its certificate is replaced before it ends, and writes within
    12 s, sees within 20 s, when a virtual address fails over to another API server silently."""
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
            eventually(lambda: ready(kube, NAMESPACE, "web"), ["10.9.0.1"])
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
            eventually(lambda: ready(kube, NAMESPACE, "web"), ["10.9.0.1", "10.9.0.2"], 12)
            written = time.monotonic() - began

            address.fail_over()
            began = time.monotonic()
            path = f"{ENDPOINTS.format(namespace=NAMESPACE)}/web"
            kube.json("PATCH", path, {"subsets": []}, "application/merge-patch+json")
            eventually(lambda: ready(kube, NAMESPACE, "web"), ["10.9.0.1", "10.9.0.2"], 20)
            seen = time.monotonic() - began

            time.sleep(max(0.0, ends - time.time()) + 1)
            consul.register("web", "vm-3", "10.9.0.3", 80)
            eventually(lambda: ready(kube, NAMESPACE, "web"), ["10.9.0.1", "10.9.0.2", "10.9.0.3"], 12)
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


# --------------------------------------------------------------------------- a plugin that hangs

PLUGIN = """\
#!/bin/sh
cd "$(dirname "$0")"
test -e runs && later=yes
echo $$ >> runs
test -z "$later" || sleep 600
cat credential
"""
"""Gives the credential beside it at its first run; each further one hangs in a child of its own."""


def alive(group: int) -> bool:
    """Whether a process of this group runs; one that has ended and was not waited for does not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, found = stat.read_text().rpartition(")")[2].split()[:3]
            if int(found) == group and state not in "ZX":
                return True
    return False


@pytest.mark.slow
def test_a_credential_plugin_that_hangs_stops_nothing_and_is_named(
    fresh_lab: Lab, tmp_path: Path, eventually: Eventually
) -> None:
    """The old token goes on being used, readiness and log name the plugin, which runs again only after a pause, and
    what hangs ends with the process."""
    lab = fresh_lab
    with lab.raw_kube() as kube:
        kube.apply(f"/api/v1/namespaces/{NAMESPACE}", {
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE},
        })  # fmt: skip
    account = lab.service_account(NAMESPACE, "bridge", yaml.safe_load(ROLE.read_text())["rules"])
    config = yaml.safe_load(account.read_text())
    token = config["users"][0]["user"].pop("token")
    version = "client.authentication.k8s.io/v1"
    config["users"][0]["user"]["exec"] = {"apiVersion": version, "command": "./login", "interactiveMode": "Never"}
    kubeconfig = tmp_path / "config"
    kubeconfig.write_text(yaml.safe_dump(config))
    plugin = tmp_path / "login"
    plugin.write_text(PLUGIN)
    plugin.chmod(0o755)

    def runs() -> list[int]:
        """Their process ids."""
        return [int(line) for line in (tmp_path / "runs").read_text().splitlines()]

    with lab.raw_kube() as kube, lab.raw_consul() as consul:
        consul.register("web", "vm-1", "10.9.0.1", 80)
        env = environment(lab.consul.address, kubeconfig)
        daemon = Daemon(lab, "bridge-plugin", "--service", "web", "--namespace", NAMESPACE, env=env)
        until = datetime.now(UTC) + timedelta(seconds=6)
        (tmp_path / "credential").write_text(json.dumps({
            "apiVersion": version, "kind": "ExecCredential",
            "status": {"token": token, "expirationTimestamp": f"{until:%Y-%m-%dT%H:%M:%SZ}"},
        }))  # fmt: skip
        daemon.start()
        try:
            eventually(lambda: ready(kube, NAMESPACE, "web"), ["10.9.0.1"])
            eventually(lambda: len(runs()), 2)
            consul.register("web", "vm-2", "10.9.0.2", 80)
            eventually(lambda: ready(kube, NAMESPACE, "web"), ["10.9.0.1", "10.9.0.2"], 5)
            assert "warnings" not in daemon.readiness()  # the first of those that hang is still being waited for

            named = (
                f"the credential plugin {plugin} (kubeconfig {kubeconfig}) did not answer within 15 s and was ended; "
                "run it by hand to see why"
            )
            eventually(lambda: daemon.readiness().get("warnings"), [named], LIMIT_SECONDS + 10)
            paused, seen = time.monotonic() + PAUSE_SECONDS - 2, set[int]()
            assert daemon.ready()
            while time.monotonic() < paused:  # once a second a request finds that the token has ended
                seen.add(len(runs()))
                consul.flip("web", "vm-1", "critical")
                eventually(lambda: ready(kube, NAMESPACE, "web"), ["10.9.0.2"], 5)
                consul.flip("web", "vm-1", "passing")
                eventually(lambda: ready(kube, NAMESPACE, "web"), ["10.9.0.1", "10.9.0.2"], 5)
            assert seen == {2}
            eventually(lambda: len(runs()), 3, PAUSE_SECONDS + 10)
            told = [event for event in daemon.events() if event.get("reason") == named]
            assert [event["level"] for event in told] == ["warning"]

            assert [alive(pid) for pid in runs()] == [False, False, True]
            os.kill(daemon.pid, signal.SIGTERM)
            assert daemon.wait(5) == 128 + signal.SIGTERM
            eventually(lambda: [pid for pid in runs() if alive(pid)], [], 2)
        finally:
            daemon.stop()


# --------------------------------------------------------------------------- writes that are not answered


class SilentWebhook:
    """An https server on loopback that takes every review and never answers one."""

    def __init__(self) -> None:
        authority = trustme.CA()
        self.bundle = base64.b64encode(authority.cert_pem.bytes()).decode()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(self._context)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}/"
        self.asked: list[ssl.SSLSocket] = []
        self._thread = threading.Thread(target=self._accept, name="silent-webhook")

    def __enter__(self) -> SilentWebhook:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for connection in self.asked:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(5)
            with contextlib.suppress(OSError):
                self.asked.append(self._context.wrap_socket(connection, server_side=True))


@contextlib.contextmanager
def unanswered(kube: RawKube, webhook: SilentWebhook, user: str) -> Iterator[None]:
    """Meanwhile the API server leaves what one user writes to Services, Endpoints and EndpointSlices unanswered."""
    group = "admissionregistration.k8s.io"
    path = f"/apis/{group}/v1/validatingwebhookconfigurations/silent"
    kube.apply(path, {
        "apiVersion": f"{group}/v1", "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "silent"},
        "webhooks": [{
            "name": "silent.example.org",
            "clientConfig": {"url": webhook.url, "caBundle": webhook.bundle},
            "matchConditions": [{"name": "user", "expression": f"request.userInfo.username == '{user}'"}],
            "rules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["endpoints", "services"]},
                {"apiGroups": ["discovery.k8s.io"], "apiVersions": ["v1"], "operations": ["*"],
                 "resources": ["endpointslices"]},
            ],
            "failurePolicy": "Fail", "sideEffects": "None", "timeoutSeconds": 30, "admissionReviewVersions": ["v1"],
        }],
    })  # fmt: skip
    try:
        yield
    finally:
        kube.delete(path)


def answered(kubeconfig: Path) -> bool:
    """Whether a write of this user, which stores nothing, is answered within a second."""
    path = f"{ENDPOINTS.format(namespace=NAMESPACE)}?dryRun=All"
    body = {"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "probe"}, "subsets": []}
    with RawKube(kubeconfig, timeout_seconds=1) as kube:
        try:
            kube.json("POST", path, body)
        except TimeoutError:
            return False
    return True


@pytest.mark.slow
def test_a_leader_whose_writes_are_not_answered_leaves_them_to_a_replica_that_can_write(
    fresh_lab: Lab, eventually: Eventually
) -> None:
    """Its Lease is renewed all the time. The bound: one request until the fault shows, the time that it must last, one
    request that is under way when the shard is given up, a Lease's duration for what the two have to say, and ten
    seconds for a busy machine. Reads are answered all the time, and are no reason to trust it again."""
    lab, request, lease, lasting = fresh_lab, 2, 3, ElectionConfig().lasting_seconds
    bound = request + lasting + request + lease + 10
    rules = [
        rule
        for name in ("role.yaml", "leases.yaml")
        for document in yaml.safe_load_all((BASE / name).read_text())
        if document["kind"] == "Role"
        for rule in document["rules"]
    ]
    with lab.raw_kube() as kube:
        kube.apply(f"/api/v1/namespaces/{NAMESPACE}", {
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE},
        })  # fmt: skip
    accounts = {name: lab.service_account(NAMESPACE, name, rules) for name in ("one", "two")}
    daemons = {
        name: Daemon(
            lab, f"bridge-{name}", "--service", "web", "--namespace", NAMESPACE, "--leader-elect",
            env=environment(
                lab.consul.address, account, POD_NAME=name, BRIDGE_RUN_LEASE_DURATION=f"{lease}s",
                BRIDGE_KUBERNETES_REQUEST_TIMEOUT=f"{request}s",
            ),
        )
        for name, account in accounts.items()
    }  # fmt: skip
    one, two = daemons.values()

    def held() -> list[list[int]]:
        return [daemon.readiness().get("election", {}).get("held", []) for daemon in (one, two)]

    user = f"system:serviceaccount:{NAMESPACE}:"
    with lab.raw_kube() as kube, lab.raw_consul() as consul, SilentWebhook() as webhook:
        consul.register("web", "vm-1", "10.9.0.1", 80)
        try:
            one.start()
            eventually(lambda: (ready(kube, NAMESPACE, "web"), held()), (["10.9.0.1"], [[0], []]))
            two.start(wait=False)
            with unanswered(kube, webhook, f"{user}one"):
                eventually(lambda: [answered(account) for account in accounts.values()], [False, True])
                since, began = time.time(), time.monotonic()
                consul.register("web", "vm-2", "10.9.0.2", 80)
                eventually(lambda: ready(kube, NAMESPACE, "web"), ["10.9.0.1", "10.9.0.2"], bound)
                took = time.monotonic() - began
                eventually(held, [[], [0]], lease)
                election = one.readiness()["election"]
                assert "the API server did not answer what was written from here" in election["waiting"]
                assert len(election["replicas"]) == 2  # it was never gone
                asked = len(webhook.asked)
                eventually(lambda: len(webhook.asked) > asked + 1, True, 30)  # it tries whether it can write again
                assert one.readiness()["kubernetes"] != "ok"
                wrote = {
                    (entry.user, entry.code < 300)
                    for entry in lab.audit(since=since)
                    if entry.name.startswith("web") and entry.verb == "patch"
                }
                assert wrote >= {(f"{user}two", True)}
                assert (f"{user}one", True) not in wrote
                assert (len(webhook.asked) > 1, lasting <= took <= bound) == (True, True), took
        finally:
            one.stop()
            two.stop()
