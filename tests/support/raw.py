"""Plain clients over `http.client`: the floor that the bridge is measured against, and eyes that share no code with it.

One connection each, kept alive, used by one thread. They raise on anything unexpected; nothing is retried.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlencode, urlsplit

import yaml

Json = dict[str, Any]

ENDPOINTS = "/api/v1/namespaces/{namespace}/endpoints"
SERVICES = "/api/v1/namespaces/{namespace}/services"
ROUTES = "/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/httproutes"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"


class UnexpectedAnswerError(Exception):
    """The server said something else than what the test counts on."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text[:300]}")
        self.status = status


class RawClient:
    """One kept-alive HTTP/1.1 connection to `http(s)://host:port`, from an address of ours where `source` names one."""

    def __init__(
        self,
        address: str,
        headers: Mapping[str, str] | None = None,
        context: ssl.SSLContext | None = None,
        timeout_seconds: float = 120.0,
        source: str = "",
    ) -> None:
        parts = urlsplit(address)
        host, port = parts.hostname or "127.0.0.1", parts.port or (443 if parts.scheme == "https" else 80)
        self._connection: http.client.HTTPConnection
        bound_to = (source, 0) if source else None
        if parts.scheme == "https":
            self._connection = http.client.HTTPSConnection(
                host, port, timeout=timeout_seconds, source_address=bound_to, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(host, port, timeout=timeout_seconds, source_address=bound_to)
        self._headers = dict(headers or {})
        self._interrupted = False

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Send one request; its status, headers and body."""
        fresh = getattr(self._connection, "sock", None) is None
        if fresh:
            self._connection.connect()
            self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._connection.request(method, path, body=body, headers={**self._headers, **(headers or {})})
            answer = self._connection.getresponse()
        except http.client.RemoteDisconnected:
            self._connection.close()
            if fresh or self._interrupted:
                raise
            return self.send(method, path, body, headers)  # the server does not keep idle connections forever
        return answer.status, answer.headers, answer.read()

    def json(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        """The same with JSON both ways; raises UnexpectedAnswerError on a status of 400 and above."""
        data = None if body is None else json.dumps(body).encode()
        status, _, text = self.send(method, path, data, {"Content-Type": content_type} if data else {})
        if status >= 400:
            raise UnexpectedAnswerError(status, text.decode(errors="replace"))
        return json.loads(text) if text.strip() else None

    def interrupt(self) -> None:
        """End a request that another thread waits for; it raises OSError there. The last thing before `close`."""
        self._interrupted = True  # not to be sent again on another connection
        sock = getattr(self._connection, "sock", None)
        if sock is not None:
            sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RawConsul(RawClient):
    """Consul's catalog as a test writes and reads it."""

    def __init__(
        self, address: str, token: str = "", ca_file: str = "", timeout_seconds: float = 120.0, source: str = ""
    ) -> None:
        context = ssl.create_default_context(cafile=ca_file) if ca_file else None
        super().__init__(address, {"X-Consul-Token": token} if token else {}, context, timeout_seconds, source)

    def register(
        self,
        service: str,
        node: str,
        address: str,
        port: int,
        *,
        status: str | None = "passing",
        service_id: str = "",
        **fields: Any,
    ) -> None:
        """Put one instance (and, unless `status` is None, one check) into the catalog. `fields` go into Service.

        `address`: of the node; "" for a node that is there already and is to stay as it is.
        """
        identity = service_id or f"{service}-{node}"
        entry: Json = {
            "Node": node,
            "Address": address,
            "SkipNodeUpdate": not address,
            "Service": {"ID": identity, "Service": service, "Port": port, **fields},
        }
        if status is not None:
            entry["Check"] = {
                "CheckID": f"check:{identity}", "Name": "test", "Status": status, "ServiceID": identity,
            }  # fmt: skip
        self.json("PUT", "/v1/catalog/register", entry)

    def flip(self, service: str, node: str, status: str, service_id: str = "", output: str = "") -> None:
        """Change the status of an instance's check, nothing else."""
        identity = service_id or f"{service}-{node}"
        check = {
            "Node": node, "CheckID": f"check:{identity}", "Name": "test", "Status": status,
            "ServiceID": identity, "Output": output,
        }  # fmt: skip
        self.json("PUT", "/v1/catalog/register", {"Node": node, "Address": "", "SkipNodeUpdate": True, "Check": check})

    def deregister(self, service: str, node: str, service_id: str = "") -> None:
        """Take one instance out of the catalog."""
        identity = service_id or f"{service}-{node}"
        self.json("PUT", "/v1/catalog/deregister", {"Node": node, "ServiceID": identity})

    def drop_node(self, node: str) -> None:
        """Take a node and everything on it out of the catalog."""
        self.json("PUT", "/v1/catalog/deregister", {"Node": node})

    def services(self) -> dict[str, list[str]]:
        """`catalog/services`."""
        found: dict[str, list[str]] = self.json("GET", "/v1/catalog/services")
        return found

    def health(self, service: str, index: int = 0, wait: str = "60s") -> tuple[int, list[Json]]:
        """`health/service/<name>`, blocking when `index` is given; the index to continue with and the entries."""
        query = urlencode({"index": index, "wait": wait}) if index else ""
        status, headers, text = self.send("GET", f"/v1/health/service/{quote(service, safe='')}?{query}")
        if status >= 400:
            raise UnexpectedAnswerError(status, text.decode(errors="replace"))
        return int(headers["X-Consul-Index"]), json.loads(text)


class RawKube(RawClient):
    """The Kubernetes API as a test reads and writes it."""

    def __init__(self, kubeconfig: str | Path, timeout_seconds: float = 120.0) -> None:
        config = yaml.safe_load(Path(kubeconfig).read_text())
        named = {kind: {c["name"]: c[kind[:-1]] for c in config[kind]} for kind in ("clusters", "contexts", "users")}
        chosen = named["contexts"][config["current-context"]]
        cluster, user = named["clusters"][chosen["cluster"]], named["users"][chosen["user"]]
        context = ssl.create_default_context(cafile=cluster.get("certificate-authority"))
        if "certificate-authority-data" in cluster:
            context.load_verify_locations(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        if "client-certificate-data" in user:
            with tempfile.TemporaryDirectory() as folder:
                pem = Path(folder) / "client.pem"
                pem.touch(mode=0o600)
                pem.write_bytes(
                    base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"])
                )
                context.load_cert_chain(pem)
        headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
        super().__init__(cluster["server"], headers, context, timeout_seconds)

    def apply(self, path: str, body: Json, manager: str = "raw", force: bool = True) -> Json:
        """Server-side apply; returns the object."""
        query = urlencode({"fieldManager": manager, "force": str(force).lower()})
        found: Json = self.json("PATCH", f"{path}?{query}", body, "application/apply-patch+yaml")
        return found

    def get(self, path: str) -> Json | None:
        """The object at `path`, None when there is none."""
        try:
            found: Json = self.json("GET", path)
        except UnexpectedAnswerError as error:
            if error.status == 404:
                return None
            raise
        return found

    def delete(self, path: str) -> None:
        """Delete the object at `path`, if it is there."""
        try:
            self.json("DELETE", path)
        except UnexpectedAnswerError as error:
            if error.status != 404:
                raise

    def endpoints(self, namespace: str, name: str) -> Json | None:
        """An Endpoints object."""
        return self.get(f"{ENDPOINTS.format(namespace=namespace)}/{name}")

    def watch(self, path: str, resource_version: str = "", timeout_seconds: int = 300) -> Iterator[Json]:
        """Events of a collection as they come; occupies the connection until it ends."""
        query = urlencode({"watch": 1, "resourceVersion": resource_version, "timeoutSeconds": timeout_seconds})
        self._connection.request("GET", f"{path}?{query}", headers=self._headers)
        answer = self._connection.getresponse()
        if answer.status >= 400:
            raise UnexpectedAnswerError(answer.status, answer.read().decode(errors="replace"))
        while line := answer.readline():
            yield json.loads(line)


def ask(
    kube: RawKube, namespace: str, name: str, service: str, *, create: bool = False, label: str = "true", **marks: str
) -> None:
    """Create or replace a user's Service that asks to be filled from a Consul service."""
    path = SERVICES.format(namespace=namespace)
    metadata = {
        "name": name, "labels": {"consul-bridge/mirror": label},
        "annotations": {"consul-bridge/service": service, **{f"consul-bridge/{k}": v for k, v in marks.items()}},
    }  # fmt: skip
    if create:
        body = {"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 80}]}, "metadata": metadata}
        kube.json("POST", path, body)
        return
    found = kube.json("GET", f"{path}/{name}")
    found["metadata"].update(metadata)
    kube.json("PUT", f"{path}/{name}", found)


def ready_addresses(endpoints: Json | None) -> list[tuple[str, int]]:
    """(address, port) pairs of the ready addresses of an Endpoints object, sorted."""
    return _addresses(endpoints, "addresses")


def ready(kube: RawKube, namespace: str, name: str) -> list[str]:
    """Addresses alone of the ready ones of a Service's Endpoints, sorted."""
    return [address for address, _ in ready_addresses(kube.endpoints(namespace, name))]


def not_ready_addresses(endpoints: Json | None) -> list[tuple[str, int]]:
    """The same of those that are not ready."""
    return _addresses(endpoints, "notReadyAddresses")


def _addresses(endpoints: Json | None, field: str) -> list[tuple[str, int]]:
    return sorted(
        (address["ip"], port["port"])
        for subset in (endpoints or {}).get("subsets") or []
        for address in subset.get(field) or []
        for port in subset.get("ports") or []
    )
