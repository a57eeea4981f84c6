"""A small working Consul in this process, on loopback: for speed, and for faults that no real one has on demand.

It does what the bridge relies on, the way Consul 1.22 does it (docs/consul.md): blocking queries, an index per service
and per node, aggregate watches that answer for their own members, two backends that number differently where nothing
exists, filters, ACL envelopes, loss of the leader. The same contract tests run against it and against the real one
(tests/contract/test_consul_contract.py). It is written to with the requests of a real one, so RawConsul works on it.

    with FakeConsul() as consul:
        consul.register("web", "vm-1", "10.0.0.1", 80)
        consul.inject(Fault(status=500, body="rpc error"), times=2, path="/v1/catalog/services")
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

Json = dict[str, Any]
Params = dict[str, str]

WAIT = re.compile(r"([0-9.]+)(ms|s|m)")

FILTER = re.compile(r'^\s*(Service|ServiceName|Service\.Meta\.(?P<meta>\w+))\s*(?P<how>==|!=)\s*"(?P<value>[^"]*)"\s*$')


@dataclass(frozen=True)
class Fault:
    """What one answer is instead of the right one. Seconds: `delay` before it is found, `late` before it is sent.

    Both end with the server, so that they may be as long as a test needs to prove that nothing waits for them.
    """

    status: int = 0
    body: str = "injected"
    headers: tuple[tuple[str, str | None], ...] = ()
    """Headers to set, or (None) to leave out, in an answer that is otherwise the right one."""
    delay: float = 0.0
    late: float = 0.0
    reset: bool = False
    truncate: bool = False
    garbage: bytes = b""


@dataclass(frozen=True)
class Request:
    """A request as it came."""

    method: str
    path: str
    params: Params
    headers: Json
    at: float = field(default_factory=time.monotonic)


@dataclass
class _Injection:
    fault: Fault
    times: int
    path: str
    datacenter: str


@dataclass
class _Catalog:
    """One datacenter. All under the server's lock."""

    index: int = 10
    nodes: dict[str, Json] = field(default_factory=dict)
    services: dict[tuple[str, str], Json] = field(default_factory=dict)
    checks: dict[tuple[str, str], Json] = field(default_factory=dict)
    tables: dict[str, int] = field(default_factory=lambda: {"nodes": 10, "catalog": 10})
    of_service: dict[str, int] = field(default_factory=dict)
    of_stream: dict[str, int] = field(default_factory=dict)
    """Events of the streaming backend that move no index of the catalog's own."""
    of_node: dict[str, int] = field(default_factory=dict)
    of_status: dict[str, int] = field(default_factory=dict)

    # ------------------------------------------------------------------ what changes

    def register(self, body: Json) -> None:
        name = body["Node"]
        self._node(name, body)
        if service := body.get("Service"):
            self._service(name, service)
        for check in [*([body["Check"]] if body.get("Check") else []), *(body.get("Checks") or [])]:
            self._check(name, check)

    def deregister(self, body: Json) -> None:
        name, service, check = body["Node"], body.get("ServiceID"), body.get("CheckID")
        if service:
            self._drop_service(name, service)
        elif check:
            self._drop_check((name, check))
        elif name in self.nodes:
            for _, identity in [key for key in self.services if key[0] == name]:
                self._drop_service(name, identity)
            for key in [key for key in self.checks if key[0] == name]:
                self._drop_check(key)
            del self.nodes[name]
            index = self._next()
            self.tables |= {"nodes": index, "catalog": index}
            self.of_node.pop(name, None)

    def _next(self) -> int:
        self.index += 1
        return self.index

    def _node(self, name: str, body: Json) -> None:
        old = self.nodes.get(name)
        if old is not None and body.get("SkipNodeUpdate"):
            return
        new = {
            "ID": "", "Node": name, "Address": body.get("Address", ""), "Datacenter": "dc1",
            "TaggedAddresses": body.get("TaggedAddresses"), "Meta": body.get("NodeMeta") or {},
        }  # fmt: skip
        if old is not None and all(old[k] == v for k, v in new.items()):
            return
        index = self._next()
        created = old["CreateIndex"] if old else index
        self.nodes[name] = {**new, "CreateIndex": created, "ModifyIndex": index}
        self.tables |= {"nodes": index, "catalog": index}
        self.of_node[name] = index
        for node, identity in self.services:
            if node == name:
                self.of_service[self.services[node, identity]["Service"]] = index

    def _service(self, node: str, body: Json) -> None:
        identity = body.get("ID") or body["Service"]
        key = (node, identity)
        old = self.services.get(key)
        new = {
            "ID": identity, "Service": body["Service"], "Tags": body.get("Tags") or [],
            "Address": body.get("Address", ""), "Meta": body.get("Meta") or {}, "Port": body.get("Port", 0),
            "TaggedAddresses": body.get("TaggedAddresses") or {}, "Kind": body.get("Kind", ""),
        }  # fmt: skip
        if ports := body.get("Ports"):
            new |= {"Ports": ports, "Port": next(p["Port"] for p in ports if p.get("Default"))}
        if old is not None and all(old.get(k) == v for k, v in new.items()):
            return
        index = self._next()
        created = old["CreateIndex"] if old else index
        self.services[key] = {**new, "CreateIndex": created, "ModifyIndex": index}
        self.tables["catalog"] = index
        self.of_node[node] = index
        self.of_service[new["Service"]] = index
        if old is not None and old["Service"] != new["Service"]:
            self.of_stream[old["Service"]] = index  # its index in the catalog stays, no matter who left it

    def _check(self, node: str, body: Json) -> None:
        identity = body.get("CheckID") or body["Name"]
        key = (node, identity)
        service = self.services.get((node, body.get("ServiceID") or ""), {}).get("Service", "")
        new = {
            "Node": node, "CheckID": identity, "Name": body.get("Name", ""), "Output": body.get("Output", ""),
            "Status": body.get("Status") or "critical", "ServiceID": body.get("ServiceID") or "",
            "ServiceName": service,
        }  # fmt: skip
        old = self.checks.get(key)
        if old is not None and all(old[k] == v for k, v in new.items()):
            return
        index = self._next()
        created = old["CreateIndex"] if old else index
        self.checks[key] = {**new, "CreateIndex": created, "ModifyIndex": index}
        self._rang(index, {new["Status"], old["Status"] if old else new["Status"]}, node, service)

    def _rang(self, index: int, statuses: set[str], node: str, service: str) -> None:
        for status in ("passing", "warning", "critical"):
            if status in statuses or not any(c["Status"] == status for c in self.checks.values()):
                self.of_status[status] = index  # an empty list wakes for every check
        on_node = {s["Service"] for (n, _), s in self.services.items() if n == node}
        for name in [service] if service else on_node:
            self.of_service[name] = index

    def _drop_service(self, node: str, identity: str) -> None:
        if (node, identity) not in self.services:
            return
        for key in [k for k, c in self.checks.items() if k[0] == node and c["ServiceID"] == identity]:
            self._drop_check(key)
        name = self.services.pop((node, identity))["Service"]
        index = self._next()
        self.tables["catalog"] = self.of_node[node] = self.of_service[name] = index

    def _drop_check(self, key: tuple[str, str]) -> None:
        check = self.checks.pop(key, None)
        if check is not None:
            self._rang(self._next(), {check["Status"]}, key[0], check["ServiceName"])

    # ------------------------------------------------------------------ what is asked

    def listing(self) -> tuple[int, Json]:
        found: dict[str, set[str]] = {}
        for service in self.services.values():
            found.setdefault(service["Service"], set()).update(service["Tags"])
        return self.tables["catalog"], {name: list(tags) for name, tags in found.items()}

    def health(self, name: str, streaming: bool) -> tuple[int, list[Json]]:
        entries = []
        on_node: dict[str, list[Json]] = {}
        for (node, _), check in self.checks.items():
            on_node.setdefault(node, []).append(check)
        for (node, identity), service in self.services.items():
            if _same(service, name):
                checks = [c for c in on_node.get(node, ()) if c["ServiceID"] in ("", identity)]
                entries.append({"Node": self.nodes[node], "Service": service, "Checks": checks})
        if entries:
            own = max(self.of_service[s["Service"]] for s in self.services.values() if _same(s, name))
            return max(own, self.of_stream.get(name, 0)) if streaming else own, entries
        own = max(self.of_service.get(name, 1), self.of_stream.get(name, 0))
        return (own if streaming else self.tables["catalog"]), []

    def state(self, status: str) -> tuple[int, list[Json]]:
        return max(self.of_status.get(status, 1), 1), [c for c in self.checks.values() if c["Status"] == status]

    def node_services(self, node: str) -> tuple[int, Json]:
        if node not in self.nodes:
            return 1, {"Node": None, "Services": None}
        own = [s for (n, _), s in self.services.items() if n == node]
        return self.of_node[node], {"Node": self.nodes[node], "Services": own}


def _same(service: Json, name: str) -> bool:
    return str(service["Service"]).lower() == name.lower()


class FakeConsul:
    """The server. Attributes may be set at any time; `changed` wakes those who wait for something."""

    def __init__(self, datacenters: tuple[str, ...] = ("dc1",), token: str = "", max_connections: int = 200) -> None:
        self.token = token
        """With a token there is default deny: another one is unknown, none sees nothing and is not told so."""
        self.hidden: set[str] = set()
        """Services that the token may not read."""
        self.hidden_nodes: set[str] = set()
        """Nodes that the token may not read: what is on them is left out of every answer."""
        self.limited: dict[str, str] = {}
        """Further tokens, each with the service that it may not read."""
        self.max_connections = max_connections
        """So many may one address have, those of queries that wait included, also when its client has gone."""
        self.max_rate = 0.0
        """So many requests a second are answered (0: any number), all others with 429."""
        self.streamed: dict[str, Callable[[list[Json]], list[Json]]] = {}
        """What the streaming backend makes of a service's entries: it keeps a view beside the catalog."""
        self.leader = True
        self.version = "1.22.0"
        self.last_contact_ms = 0
        self.requests: list[Request] = []
        self.unexpected: list[str] = []
        self.peak_connections = 0
        self.refused_connections = 0
        self._catalogs = {name: _Catalog() for name in datacenters}
        self._own = datacenters[0]
        self._injections: list[_Injection] = []
        self._allowance = (time.monotonic(), 0.0)
        self._changed = threading.Condition()
        self._sockets: set[socket.socket] = set()
        self._asking: set[socket.socket] = set()
        self._closing = False
        self._epoch = 0
        fake = self

        class Handler(_Handler):
            consul = fake

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="fake-consul")

    def __enter__(self) -> FakeConsul:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        assert not self.unexpected, f"unexpected requests: {self.unexpected}"

    def close(self) -> None:
        """End everything; nothing is left behind."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._server.shutdown()
        self.drop_connections()
        self._thread.join()
        self._server.server_close()

    # ------------------------------------------------------------------ for tests

    def register(
        self, service: str, node: str, address: str, port: int, *, status: str | None = "passing", dc: str = "dc1",
        **fields: Any,
    ) -> None:  # fmt: skip
        """Put one instance with one check into the catalog (the same shape as RawConsul.register)."""
        identity = f"{service}-{node}"
        body: Json = {
            "Node": node, "Address": address, "Service": {"ID": identity, "Service": service, "Port": port, **fields},
        }  # fmt: skip
        if status is not None:
            body["Check"] = {"CheckID": f"check:{identity}", "Name": "t", "Status": status, "ServiceID": identity}
        self.change(lambda catalog: catalog.register(body), dc)

    def flip(self, service: str, node: str, status: str, output: str = "", dc: str = "dc1") -> None:
        """Change the status of an instance's check."""
        identity = f"{service}-{node}"
        check = {
            "CheckID": f"check:{identity}", "Name": "t", "Status": status, "ServiceID": identity, "Output": output,
        }  # fmt: skip
        self.change(lambda c: c.register({"Node": node, "SkipNodeUpdate": True, "Check": check}), dc)

    def deregister(self, service: str, node: str, dc: str = "dc1") -> None:
        """Take one instance out."""
        self.change(lambda c: c.deregister({"Node": node, "ServiceID": f"{service}-{node}"}), dc)

    def change(self, how: Callable[[_Catalog], None], dc: str = "dc1") -> None:
        """Change a datacenter and wake who waits for it."""
        with self._changed:
            how(self._catalogs[dc])
            self._changed.notify_all()

    def rebuild(self, index: int = 3, dc: str = "") -> None:
        """Come back empty, as after a restart without data: connections are cut, the index begins at `index`.

        All datacenters do, or `dc` alone.
        """
        with self._changed:
            for sock in self._sockets:  # first: no client that waits on one may get an answer of the new one
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for name in [dc] if dc else list(self._catalogs):
                new = _Catalog(index=index, tables={"nodes": index, "catalog": index})
                new.register({"Node": f"server-{index}", "Address": "127.0.0.1"})
                self._catalogs[name] = new
            self._changed.notify_all()

    def save(self, dc: str = "dc1") -> _Catalog:
        """A snapshot of a datacenter."""
        with self._changed:
            return copy.deepcopy(self._catalogs[dc])

    def restore(self, snapshot: _Catalog, dc: str = "dc1") -> None:
        """Go back to a snapshot: queries of the catalog return, those of the streaming backend sleep on.

        What is written from now on has indexes above all that there ever were.
        """
        with self._changed:
            last = self._catalogs[dc].index
            self._catalogs[dc] = copy.deepcopy(snapshot)
            self._catalogs[dc].index = last
            self._epoch += 1
            self._changed.notify_all()

    def inject(self, fault: Fault, *, times: int = 1, path: str = "/", datacenter: str = "") -> None:
        """The next `times` requests whose path begins so are answered with `fault`."""
        with self._changed:
            self._injections.append(_Injection(fault, times, path, datacenter))

    def clear_faults(self) -> None:
        """No faults any more."""
        with self._changed:
            self._injections.clear()

    def drop_connections(self) -> None:
        """Cut every connection, whatever waits on it; none of them counts any more, as after a restart."""
        with self._changed:
            sockets = tuple(self._sockets)
            self._sockets.clear()
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return len(self._sockets)

    def asked(self, path: str) -> list[Request]:
        """Requests whose path begins so."""
        return [r for r in tuple(self.requests) if r.path.startswith(path)]

    def limited_token(self, hidden: str) -> str:
        """A new token that may see everything but the service `hidden`, and may not read the agent."""
        token = f"limited-{len(self.limited)}"
        self.limited[token] = hidden
        return token

    # ------------------------------------------------------------------ for the handler

    def take_fault(self, request: Request) -> Fault | None:
        with self._changed:
            for injection in self._injections:
                here = injection.datacenter in ("", request.params.get("dc", self._own))
                if injection.times > 0 and here and request.path.startswith(injection.path):
                    injection.times -= 1
                    return injection.fault
        return None

    def within_rate(self) -> bool:
        """Count a request; whether it may be answered. A tenth of a second's worth may come at once."""
        with self._changed:
            now, (at, left) = time.monotonic(), self._allowance
            left = min(left + (now - at) * self.max_rate, max(self.max_rate / 10, 1.0))
            allowed = left >= 1.0 or not self.max_rate
            self._allowance = now, left - allowed
            return allowed

    def put(self, path: str, body: Json) -> bool:
        """Do what a PUT asks for; whether there is such a request."""
        dc = body.get("Datacenter", "dc1")
        if path == "/v1/catalog/register":
            self.change(lambda catalog: catalog.register(body), dc)
        elif path == "/v1/catalog/deregister":
            self.change(lambda catalog: catalog.deregister(body), dc)
        else:
            return False
        return True

    def answer(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        """Status, headers, body."""
        if not self.within_rate():
            return 429, {}, b"Your IP is issuing too many requests, please rate limit your calls"
        params = request.params
        deny = {"X-Consul-Default-Acl-Policy": "deny" if self.token else "allow"}
        given = request.headers.get("X-Consul-Token", "")
        if self.token and given and given not in (self.token, *self.limited):
            return 403, deny, b"ACL not found"
        dc = params.get("dc", self._own)
        if dc not in self._catalogs:
            return 500, deny | {"X-Consul-Index": "1", "X-Consul-Knownleader": "false"}, b"No path to datacenter"
        if request.path == "/v1/status/leader":
            return 200, deny, json.dumps("127.0.0.1:8300" if self.leader else "").encode()
        if request.path == "/v1/catalog/datacenters":
            return 200, deny, json.dumps(list(self._catalogs)).encode()
        if request.path == "/v1/agent/self":
            if self.token and given != self.token:
                return 403, deny, b"Permission denied: anonymous token lacks permission 'agent:read'"
            return 200, deny, json.dumps({"Config": {"Datacenter": self._own, "Version": self.version}}).encode()
        if not self.leader and "stale" not in params:
            return 500, deny, b"No cluster leader"
        return self._indexed(request, dc, deny, anonymous=bool(self.token) and not given)

    def _indexed(self, request: Request, dc: str, deny: Json, anonymous: bool) -> tuple[int, dict[str, str], bytes]:
        params = request.params
        expression = params.get("filter", "")
        if expression and not FILTER.match(expression):
            return 500, deny, f"Failed to create boolean expression evaluator: cannot parse {expression!r}".encode()
        if not params.get("index", "0").isdigit():
            return 400, deny, b"Invalid index"
        if not WAIT.fullmatch(params.get("wait", "5m")):
            return 400, deny, b"Invalid wait time"
        after = int(params.get("index", "0"))
        deadline = time.monotonic() + (seconds_of(params.get("wait", "5m")) if after else 0.0)
        with self._changed:
            while True:
                epoch = self._epoch
                found = self._read(request.path, dc, streaming=after > 0 and "near" not in params)
                if found is None:
                    self.unexpected.append(f"{request.method} {request.path}")
                    return 404, deny, b"not found"
                index, data, streaming = found
                left = deadline - time.monotonic()
                if not after or index > after or left <= 0 or self._closing:
                    break
                self._changed.wait(left)
                if epoch != self._epoch and not streaming:
                    break  # the store was given up: whatever waits on it gets what it had
        filtered = False
        if anonymous:
            data = type(data)()
        else:
            own = self.limited.get(request.headers.get("X-Consul-Token", ""))
            if hidden := self.hidden | ({own} if own else set()):
                data, filtered = _hide(data, hidden)
            if self.hidden_nodes:
                data, without = _hide_nodes(data, self.hidden_nodes)
                filtered |= without
        data = _filtered(data, params)
        headers = deny | {
            "X-Consul-Index": str(index),
            "X-Consul-Knownleader": "false" if streaming or not self.leader else "true",
            "X-Consul-Lastcontact": "0" if streaming or "stale" not in params else str(self.last_contact_ms),
            "X-Consul-Query-Backend": "streaming" if streaming else "blocking-query",
        }
        if filtered and not streaming:  # streaming leaves out in silence
            headers["X-Consul-Results-Filtered-By-ACLs"] = "true"
        return 200, headers, json.dumps(data).encode()

    def _read(self, path: str, dc: str, streaming: bool) -> tuple[int, Any, bool] | None:
        catalog = self._catalogs[dc]
        prefix, _, name = path.rpartition("/")
        if path == "/v1/catalog/services":
            return *catalog.listing(), False
        if path == "/v1/catalog/nodes":
            return catalog.tables["nodes"], list(catalog.nodes.values()), False
        if prefix == "/v1/health/service":
            index, entries = catalog.health(unquote(name), streaming)
            altered = self.streamed.get(unquote(name)) if streaming else None
            return index, altered(entries) if altered else entries, streaming
        if prefix == "/v1/health/state":
            return *catalog.state(name), False
        if prefix == "/v1/catalog/node-services":
            return *catalog.node_services(unquote(name)), False
        return None

    def pause(self, seconds: float) -> None:
        """Let so many seconds pass, fewer when the server is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing, seconds)

    def opened(self, sock: socket.socket) -> bool:
        """Count a connection; False when it is one too many, which is not counted then.

        One that its client has given back is counted no more, even though its thread does not know it yet.
        """
        with self._changed:
            self._sockets -= {one for one in self._sockets - self._asking if _is_left(one)}
            if len(self._sockets) >= self.max_connections:
                self.refused_connections += 1
                return False
            self._sockets.add(sock)
            self.peak_connections = max(self.peak_connections, len(self._sockets))
            return True

    def closed(self, sock: socket.socket) -> None:
        with self._changed:
            self._sockets.discard(sock)

    @contextlib.contextmanager
    def asking(self, sock: socket.socket) -> Iterator[None]:
        """While a request is being answered its connection counts, also when its client has gone."""
        with self._changed:
            self._asking.add(sock)
        try:
            yield
        finally:
            with self._changed:
                self._asking.discard(sock)


def _is_left(sock: socket.socket) -> bool:
    """Whether the client has ended this connection."""
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def seconds_of(text: str) -> float:
    """A duration as Consul writes it, in seconds."""
    number, unit = WAIT.fullmatch(text).groups()  # type: ignore[union-attr]
    return float(number) * {"ms": 0.001, "s": 1.0, "m": 60.0}[unit]


def _hide(data: Any, hidden: set[str]) -> tuple[Any, bool]:
    if isinstance(data, dict) and "Services" not in data:
        kept: Any = {k: v for k, v in data.items() if k not in hidden}
        return kept, len(kept) != len(data)
    if isinstance(data, list):
        kept = [e for e in data if _service_of(e) not in hidden]
        return kept, len(kept) != len(data)
    own = data["Services"] or []
    kept = [s for s in own if s["Service"] not in hidden]
    return {**data, "Services": kept}, len(kept) != len(own)


def _hide_nodes(data: Any, hidden: set[str]) -> tuple[Any, bool]:
    if isinstance(data, list):
        kept = [e for e in data if _node_of(e) not in hidden]
        return kept, len(kept) != len(data)
    if isinstance(data.get("Node"), dict) and data["Node"]["Node"] in hidden:
        return {"Node": None, "Services": None}, True
    return data, False


def _node_of(entry: Json) -> object:
    return entry["Node"]["Node"] if isinstance(entry["Node"], dict) else entry["Node"]


def _service_of(entry: Json) -> object:
    return entry["Service"]["Service"] if isinstance(entry.get("Service"), dict) else entry.get("ServiceName")


def _is_health(data: list[Json]) -> bool:
    return bool(data) and isinstance(data[0].get("Service"), dict)


def _filtered(data: Any, params: Params) -> Any:
    tag, expression = params.get("tag"), params.get("filter", "")
    if "node-meta" in params:  # of the nodes, none of which has any that is asked for
        return {}
    if isinstance(data, list) and tag:
        data = [e for e in data if tag in e["Service"]["Tags"]]
    match = FILTER.match(expression)
    if match is None:
        return data
    wanted = match["how"] == "=="

    def fits(service: Json) -> bool:
        value = service["Meta"].get(match["meta"]) if match["meta"] else service["Service"]
        return (value == match["value"]) is wanted

    if isinstance(data, dict) and "Services" in data:
        return {**data, "Services": [s for s in data["Services"] or [] if fits(s)]}
    if isinstance(data, list) and _is_health(data):
        return [e for e in data if fits(e["Service"])]
    return data


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away in the middle of an answer is nothing unusual."""


class _Handler(BaseHTTPRequestHandler):
    consul: FakeConsul
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def setup(self) -> None:
        super().setup()
        self.welcome = self.consul.opened(self.request)

    def handle(self) -> None:
        if self.welcome:
            super().handle()
            return
        text = b"Your IP is issuing too many concurrent connections, please rate limit your calls"
        head = f"HTTP/1.1 429 Too Many Requests\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
        self.request.sendall(head.encode() + text)
        self.request.shutdown(socket.SHUT_WR)
        self.request.settimeout(1)
        with contextlib.suppress(OSError):  # the request is taken and thrown away, so that the answer arrives
            while self.request.recv(65536):
                pass

    def finish(self) -> None:
        self.consul.closed(self.request)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Quiet."""

    def do_GET(self) -> None:
        with self.consul.asking(self.request):
            self._get()

    def _get(self) -> None:
        parts = urlsplit(self.path)
        request = Request("GET", parts.path, dict(parse_qsl(parts.query, keep_blank_values=True)), dict(self.headers))
        self.consul.requests.append(request)
        fault = self.consul.take_fault(request)
        if fault is not None and fault.delay:
            self.consul.pause(fault.delay)
        if fault is not None and fault.reset:
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.consul.closed(self.request)  # first: a client that sees it comes back at once
            self.request.close()
            return
        if fault is not None and fault.garbage:
            self.wfile.write(fault.garbage)
            self.close_connection = True
            return
        if fault is not None and fault.status:
            self._send(fault.status, {n: v for n, v in fault.headers if v is not None}, fault.body.encode())
            return
        status, headers, body = self.consul.answer(request)
        if fault is not None and fault.late:
            self.consul.pause(fault.late)
        if fault is not None:
            replaced = {name.lower() for name, _ in fault.headers}
            headers = {k: v for k, v in headers.items() if k.lower() not in replaced}
            headers |= {k: v for k, v in fault.headers if v is not None}
        self._send(status, headers, body, truncate=fault is not None and fault.truncate)

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))) or b"{}")
        if self.consul.put(self.path, body):
            self._send(200, {}, b"true")
        else:
            self.consul.unexpected.append(f"PUT {self.path}")
            self._send(404, {}, b"not found")

    def _send(self, status: int, headers: dict[str, str], body: bytes, truncate: bool = False) -> None:
        self.send_response(status)
        if status == 200:
            self.send_header("Content-Type", "application/json")
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if truncate:
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)
        self.wfile.flush()


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """The address of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


class Recorder:
    """A CatalogListener that remembers everything, wants what a test sets, and can be waited on."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.events: list[tuple[Any, ...]] = []
        """("listing", dc, listing), ("view", query, state), ("rebuilt", dc), ("trouble", dc, reason),
        ("mismatch", query, reason), in order."""
        self.listings: dict[str, Any] = {}
        self.views: dict[Any, Any] = {}
        self.seen: dict[Any, float] = {}
        self.troubles: dict[str, str | None] = {}
        self.failures: list[BaseException] = []
        self._clock = clock
        self._changed = threading.Condition()

    def on_listing(self, datacenter: str, listing: Any) -> None:
        with self._changed:
            self.events.append(("listing", datacenter, listing))
            self.listings[datacenter] = listing
            self._changed.notify_all()

    def on_view(self, query: Any, state: Any, seen: float, _inline: Any = None) -> None:
        with self._changed:
            self.events.append(("view", query, state))
            self.views[query] = state
            self.seen[query] = seen
            self._changed.notify_all()

    def on_rebuilt(self, datacenter: str) -> None:
        with self._changed:
            self.events.append(("rebuilt", datacenter))
            self._changed.notify_all()

    def on_trouble(self, datacenter: str, reason: str | None) -> None:
        with self._changed:
            self.events.append(("trouble", datacenter, reason))
            self.troubles[datacenter] = reason
            self._changed.notify_all()

    def on_mismatch(self, query: Any, reason: str) -> None:
        with self._changed:
            self.events.append(("mismatch", query, reason))
            self._changed.notify_all()

    def failed(self, error: BaseException) -> None:
        """For a Catalog's `failed`."""
        self.failures.append(error)

    def wait(self, condition: Callable[[], bool], seconds: float = 10.0) -> bool:
        """Wait until `condition`, asked again after every event, holds."""
        with self._changed:
            return self._changed.wait_for(condition, seconds)

    def count(self, kind: str) -> int:
        """How many events of a kind there were."""
        with self._changed:
            return sum(event[0] == kind for event in self.events)
