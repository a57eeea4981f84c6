"""Real servers on this machine: Consul, etcd, kube-apiserver, kube-controller-manager, and others on request.

    with Lab() as lab:
        lab.consul.address, lab.kubeconfig, lab.audit()

See README.md beside this file.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import ssl
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import trustme
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.lab import containers, shared_servers
from tests.support.lab.build import TOOLS, LabError
from tests.support.lab.netns import NODE
from tests.support.lab.providers import Provider, binaries, binary, chosen
from tests.support.lab.reaper import Reaper, new_folder
from tests.support.lab.secret_scan import secret
from tests.support.lab.servers import (
    ApiServer,
    Consul,
    ControllerManager,
    Etcd,
    KubeProxy,
    Server,
    Toxiproxy,
    free_port,
    wait_until,
)
from tests.support.raw import RawConsul, RawKube

__all__ = [
    "TOOLS", "ApiServer", "AuditEntry", "Consul", "KubeProxy", "Lab", "LabError", "Server", "Toxiproxy", "await_rights",
    "binaries", "binary", "consul_cluster", "free_port", "wait_until",
]  # fmt: skip

ADMIN = "lab-admin-token"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A request that the API server saw. It came at `received` and was answered `at`, seconds since the epoch.

    `sent` is its body, kept for Leases only.
    """

    user: str
    verb: str
    group: str
    resource: str
    namespace: str
    name: str
    code: int
    decision: str
    at: float
    uri: str
    received: float
    sent: Mapping[str, object]


class Lab:
    """The core servers; a context manager. Its folder is kept, and named, when the block ends with an error."""

    def __init__(
        self,
        *,
        acl: bool = False,
        mtls: bool = False,
        controllers: bool = True,
        own: bool | None = None,
        clean_up: Callable[[Path], str] | None = None,
    ) -> None:
        """`mtls`: Consul's HTTPS port asks for a client's certificate (`client.pem`, `client.key` of `files`).

        `own`: whether the servers must be this lab's, to be stopped and killed, even where the environment names
        others. By default a variant is its own and the plain lab is not.

        `clean_up`: gives the shell command that removes what is outside of the lab's folder, should we be killed.
        """
        self._own = own if own is not None else acl or mtls or not controllers
        docker = not self._own and chosen().provider is Provider.DOCKER
        self.folder = new_folder()
        further = clean_up(self.folder) if clean_up is not None else ""
        self._reaper = Reaper(self.folder, containers.clean_up_command(self.folder) if docker else further)
        self._files = _credentials(self.folder / "files")
        self.ca_file = self._files["ca.pem"]
        context = ssl.create_default_context(cafile=str(self.ca_file))
        self.etcd = Etcd(self.folder / "etcd")
        self.apiserver = ApiServer(self.folder / "kube-apiserver", self.etcd, self._files, context)
        self.kubeconfig = self.write_kubeconfig("admin", ADMIN)
        self.controllers = ControllerManager(
            self.folder / "kube-controller-manager", self.kubeconfig, self._files, context
        )
        self._with_controllers = controllers
        self.consul = Consul(self.folder / "consul", acl=acl, files=self._files, mtls=mtls)
        self._extras: list[Server] = []
        self._audited: list[AuditEntry] = []
        self._audited_bytes = 0
        self._auditing = threading.Lock()
        if docker:
            containers.house(self)

    # ------------------------------------------------------------------ life

    def start(self) -> Lab:
        """Start everything; ready when it returns."""
        try:
            if not self._own and chosen().provider is Provider.ENV:
                shared_servers.borrow(self)
                return self
            if isinstance(self.apiserver, containers.K3s):
                self.consul.start(wait=False)
                self.apiserver.start()
                self.consul.wait_ready()
                containers.settle(self)
                return self
            binaries([name for name, tool in TOOLS.items() if tool.core])
            self.consul.start(wait=False)
            self.etcd.start(wait=False)
            self.apiserver.start(wait=False)
            self.etcd.wait_ready()
            self.apiserver.wait_ready()
            if self._with_controllers:
                self.controllers.start(wait=False)
            self.consul.wait_ready()
            if self._with_controllers:
                self.controllers.wait_ready()
        except BaseException as error:
            self.close(keep=not isinstance(error, KeyboardInterrupt))
            raise
        return self

    def close(self, keep: bool = False) -> None:
        """End every server; `keep` the folder with the logs."""
        if self.consul.borrowed:
            shared_servers.give_back(self)
        servers = (*reversed(self._extras), self.controllers, self.apiserver, self.etcd, self.consul)
        for server in servers:
            if not server.borrowed:
                with contextlib.suppress(ProcessLookupError):
                    server.kill()
        containers.remove(servers)
        if keep and any(server.log.exists() for server in servers):
            print(f"lab: the servers' logs are in {self.folder}", file=sys.stderr, flush=True)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._reaper.dismiss()

    def __enter__(self) -> Lab:
        return self.start()

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(keep=kind not in (None, KeyboardInterrupt))

    def add(self, server: Server) -> Server:
        """Look after a further server: it ends with the lab."""
        self._extras.append(server)
        return server

    def toxiproxy(self) -> Toxiproxy:
        """A running Toxiproxy."""
        proxy = Toxiproxy(self.folder / f"toxiproxy-{len(self._extras)}")
        self.add(proxy)
        proxy.start()
        return proxy

    @property
    def files(self) -> Mapping[str, Path]:
        """Certificates and keys by name: ca.pem, server.pem, server.key, client.pem, client.key, other-ca.pem."""
        return self._files

    @property
    def audit_log(self) -> Path:
        """The API server's audit log, a JSON object per line."""
        return self.apiserver.audit_log

    @property
    def consul_address(self) -> str:
        """Consul's plain address."""
        return self.consul.address

    # ------------------------------------------------------------------ clients

    def raw_consul(self) -> RawConsul:
        """A plain client of Consul, with the management token where there is one."""
        return RawConsul(self.consul.address, self.consul.token)

    def raw_kube(self, kubeconfig: Path | None = None) -> RawKube:
        """A plain client of the API server, an administrator unless told otherwise."""
        return RawKube(kubeconfig or self.kubeconfig)

    def write_kubeconfig(self, name: str, token: str, server: str = "", namespace: str = "default") -> Path:
        """A kubeconfig for a bearer token; `server` when the way leads through a proxy."""
        path = self.folder / f"{name}.kubeconfig"
        ca = base64.b64encode(self.ca_file.read_bytes()).decode()
        path.write_text(
            yaml.safe_dump({
                "apiVersion": "v1", "kind": "Config", "current-context": name,
                "clusters": [{
                    "name": "lab",
                    "cluster": {"server": server or self.apiserver.url, "certificate-authority-data": ca},
                }],
                "users": [{"name": name, "user": {"token": secret(token)}}],
                "contexts": [{"name": name, "context": {"cluster": "lab", "user": name, "namespace": namespace}}],
            })
        )  # fmt: skip
        path.chmod(0o600)
        return path

    def service_account(self, namespace: str, name: str, rules: Sequence[Mapping[str, object]] = ()) -> Path:
        """A kubeconfig with a fresh token of a ServiceAccount (made when it is not there).

        `rules`: what it may do in its namespace, as in a Role; one of its name is made and bound to it.
        """
        with self.raw_kube() as kube:
            base = f"/api/v1/namespaces/{namespace}/serviceaccounts"
            kube.apply(f"{base}/{name}", {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}})
            if rules:
                self._grant(kube, namespace, name, rules)
                user = f"system:serviceaccount:{namespace}:{name}"
                await_rights(kube, user, namespace, [
                    (group, resource, verb)
                    for rule in rules for group in _words(rule, "apiGroups")
                    for resource in _words(rule, "resources") for verb in _words(rule, "verbs")
                ])  # fmt: skip
            body = {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {"expirationSeconds": 3600},
            }
            token = kube.json("POST", f"{base}/{name}/token", body)["status"]["token"]
        return self.write_kubeconfig(f"{namespace}-{name}", token, namespace=namespace)

    @staticmethod
    def _grant(kube: RawKube, namespace: str, name: str, rules: Sequence[Mapping[str, object]]) -> None:
        group = "rbac.authorization.k8s.io"
        base = f"/apis/{group}/v1/namespaces/{namespace}"
        head = {"apiVersion": f"{group}/v1", "metadata": {"name": name}}
        kube.apply(f"{base}/roles/{name}", {**head, "kind": "Role", "rules": list(rules)})
        binding = {
            **head,
            "kind": "RoleBinding",
            "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        }
        kube.apply(f"{base}/rolebindings/{name}", binding)

    def audit(self, user: str = "", since: float = 0.0) -> list[AuditEntry]:
        """What the API server was asked, oldest first; of one user, and from a time on, when these are given."""
        if not self.audit_log.exists():
            raise LabError("this API server has no audit log that could be read here: take Lab(own=True)")
        with self._auditing:
            with self.audit_log.open("rb") as log:  # of a whole session it has a hundred thousand lines: each read once
                log.seek(self._audited_bytes)
                lines, ended, _ = log.read().rpartition(b"\n")
            self._audited_bytes += len(lines) + len(ended)
            for line in lines.splitlines():
                with contextlib.suppress(ValueError):  # where a server was killed while it wrote
                    self._audited.append(_audit_entry(json.loads(line)))
            return [e for e in self._audited if user in ("", e.user) and e.at >= since]


def consul_cluster(folder: Path, size: int = 3) -> list[Consul]:
    """Several Consul servers that elect a leader; started, and ready when this returns."""
    servers = [Consul(folder / f"consul-{n}", name=f"server-{n}", expect=size) for n in range(1, size + 1)]
    for server in servers:
        server.join(servers)
        server.start(wait=False)
    for server in servers:
        server.wait_ready()
    return servers


def await_rights(kube: RawKube, user: str, namespace: str, rights: Iterable[tuple[str, str, str]]) -> None:
    """Wait until a user has (API group, resource, verb) in a namespace: the API server learns of Roles by watches."""

    def allowed(right: tuple[str, str, str]) -> bool:
        group, resource, verb = right
        asked = {"namespace": namespace, "group": group, "resource": resource, "verb": verb}
        body = {
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {"user": user, "resourceAttributes": asked},
        }  # fmt: skip
        found = kube.json("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", body)
        return bool(found["status"]["allowed"])

    for right in rights:
        wait_until(partial(allowed, right), 30, f"the right of {user} to {' '.join(right[::-1])}")


def _words(rule: Mapping[str, object], key: str) -> list[str]:
    """A list of a rule."""
    found = rule[key]
    return [str(word) for word in found] if isinstance(found, Iterable) else []


def _audit_entry(raw: Mapping[str, object]) -> AuditEntry:
    reference, status, notes, user, sent = (
        part if isinstance(part := raw.get(key), dict) else {}
        for key in ("objectRef", "responseStatus", "annotations", "user", "requestObject")
    )
    received, at = (
        datetime.fromisoformat(str(raw.get(key, "1970-01-01T00:00:00Z"))).timestamp()
        for key in ("requestReceivedTimestamp", "stageTimestamp")
    )
    return AuditEntry(
        user=user.get("username", ""),
        verb=str(raw.get("verb", "")),
        group=reference.get("apiGroup", ""),
        resource=reference.get("resource", "") + (f"/{reference['subresource']}" if "subresource" in reference else ""),
        namespace=reference.get("namespace", ""),
        name=reference.get("name", ""),
        code=int(status.get("code", 0)),
        decision=notes.get("authorization.k8s.io/decision", ""),
        at=at,
        uri=str(raw.get("requestURI", "")),
        received=received,
        sent=sent,
    )


def _credentials(folder: Path) -> dict[str, Path]:
    """The lab's authority and that of users' certificates, a serving certificate, keys of service accounts, a token."""
    folder.mkdir(parents=True)
    authority, users = trustme.CA(), trustme.CA()
    server = authority.issue_cert("127.0.0.1", "localhost", "kubernetes.default.svc", "10.96.0.1", "::1", NODE)
    client = authority.issue_cert("lab-client.example")
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    chain: Sequence[bytes] = [blob.bytes() for blob in server.cert_chain_pems]
    content = {
        "ca.pem": authority.cert_pem.bytes(),
        "server.pem": b"".join(chain),
        "server.key": server.private_key_pem.bytes(),
        "client.pem": b"".join(blob.bytes() for blob in client.cert_chain_pems),
        "client.key": client.private_key_pem.bytes(),
        "users-ca.pem": users.cert_pem.bytes(),
        "users-ca.key": users.private_key_pem.bytes(),
        "other-ca.pem": trustme.CA().cert_pem.bytes(),
        "sa.key": private,
        "sa.pub": public,
        "tokens.csv": f'{ADMIN},lab-admin,lab-admin,"system:masters"\n'.encode(),
    }
    paths = {}
    for name, blob in content.items():
        paths[name] = folder / name
        paths[name].touch(mode=0o600)
        paths[name].write_bytes(blob)
    return paths
