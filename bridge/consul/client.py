"""python-consul2 as the bridge needs it: every question that is asked of Consul, and the envelope of its answers.

python-consul2's `Consul` runs here over our own transport. Where its methods lack a parameter (consistency and filter
on health.*) or hide the headers, the same request goes through `http.get` with a callback of ours. Its constructor is
not used: that one lets CONSUL_HTTP_* in the environment beat arguments, and warns about calls that we do not make.

Nothing in here waits, retries or remembers: one call, one request (and one more, consistent, when a stale answer was
too old). Errors are TransientError, PermanentError and CancelledError; see faults.py for which and why.

Longer than other modules: it is one class, with a method for each question.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import ssl
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from urllib.parse import quote

import consul.base

from bridge.consul import faults, wire
from bridge.consul.access import Access, Parts, transport_of
from bridge.consul.credentials import moment
from bridge.consul.transport import Interrupted, Params, TooLarge, Transport
from bridge.core.model import UNADDRESSABLE, Query
from bridge.errors import CancelledError, PermanentError, TransientError
from bridge.json_shape import Shape

STREAMING = "streaming"
"""The backend whose answers say nothing about the leader (docs/consul.md): blocking reads of one service's health."""

NOBODY = "consul-bridge-nobody-has-this-tag"
"""Makes an index probe: the answer is empty and cheap, its index is the service's own."""

NO_SERVICE = 'Service=="~"'
"""The same for a node. Short, because Consul parses the filter of each request: 0.13 ms of its processor time for a
probe, against 0.19 ms with the long name of that tag."""

NO_NODE = ("node-meta", f"{NOBODY}:x")
"""The same for the whole catalog: the services on nodes with such meta are none, the index is that of all."""

CATALOG = ("near", "consul-bridge-nobody-is-near-this")
"""With `near` Consul answers a blocking query from its catalog itself: its streaming view has no order to sort by. No
node has this name, so nothing is sorted."""

PIPELINING_PATIENCE = 3
"""Times in a row that probes sent together may get no answer before they are sent one by one."""

PIPELINING_REST_SECONDS = 300.0
"""How long they are then sent one by one, before it is tried again."""


class Mode(StrEnum):
    """Which server may answer: any, the leader, the leader after it has asked its followers."""

    STALE = "stale"
    LEADER = "default"
    CONSISTENT = "consistent"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsulConfig:
    """How to reach Consul. Seconds everywhere; empty strings mean: not used, or the agent's own.

    `datacenter` is our own, `datacenters` are others that may be asked although no rule names them.

    `connections` is the budget of the whole process: Consul takes 200 from one address, and those of a process that
    was killed stay taken until their `wait_seconds` are over.

    `auth_method` logs in with the JWT in `auth_token_file`, in place of `token` and `token_file`. `http_auth` is
    USER:PASSWORD for a proxy in front of Consul. `proxies` are the environment variables about proxies. `access` is
    what all clients of this config share.
    """

    address: str
    token: str = field(repr=False)
    token_file: str
    auth_method: str
    auth_token_file: str
    http_auth: str = field(repr=False)
    proxies: tuple[tuple[str, str], ...] = field(repr=False)
    ca_file: str
    ca_path: str
    client_cert: str
    client_key: str
    tls_server_name: str
    verify: bool
    datacenter: str
    datacenters: tuple[str, ...]
    namespace: str
    partition: str
    wait_seconds: float
    connect_timeout_seconds: float
    timeout_margin_seconds: float
    max_stale_seconds: float
    connections: int
    verify_seconds: float = 300.0
    max_answer_bytes: int
    access: Access = field(default_factory=Access, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What Consul said, in the structures of wire.py, with what its headers say about how far it can be trusted.

    `index` is 0 when the endpoint has none. Indexes may only be compared within one `query_backend` (Consul's query
    backend): the streaming backend and the plain one count differently.
    """

    index: int
    data: Any
    query_backend: str = ""
    filtered: bool = False
    default_deny_anonymous: bool = False
    last_contact_seconds: float = 0.0
    known_leader: bool = True
    size: int = 0


class _Consul(consul.base.Consul):  # type: ignore[misc]
    """python-consul2's client over our transport, without its constructor (see the module's docstring)."""

    def __init__(self, http: Transport) -> None:
        self.http = http
        self.token = None
        self.dc = None
        self.consistency = "default"
        self.scheme = http.scheme
        self.agent = consul.base.Consul.Agent(self)
        self.catalog = consul.base.Consul.Catalog(self)
        self.health = consul.base.Consul.Health(self)
        self.status = consul.base.Consul.Status(self)


class ConsulClient:
    """One connection to one agent, for one thread at a time; `close` from any thread ends a waiting request.

    `wait` 0 makes a plain read whatever the index; else the call returns when the answer is newer than `index` or when
    about `wait` seconds are over. `on_reconnect` is called, before the answer, when an idle connection turned out to be
    dead and was reopened: Consul may have been restarted in between. An answer that was waited for lies for
    `rest_seconds` before it is decoded. Raises ConfigurationError when the config cannot be used at all.
    """

    def __init__(
        self,
        config: ConsulConfig,
        on_reconnect: Callable[[], None] | None = None,
        rest_seconds: float = 0.0,
    ) -> None:
        self.config = config
        self._rest_seconds = rest_seconds
        self._parts: Parts = config.access.parts(config)
        self.endpoint = self._parts.endpoint
        self._transport = transport_of(config, self._parts, on_reconnect=on_reconnect)
        self._consul = _Consul(self._transport)
        self._pipelining_failures = 0
        self._pipelining_again = 0.0

    # ------------------------------------------------------------------ questions

    def listing(self, datacenter: str = "", index: int = 0, wait: float = 0.0, mode: Mode = Mode.STALE) -> Answer:
        """`catalog/services`: {service name: [tags]}. Tags come in random order."""
        return self._fresh("/v1/catalog/services", "list services", datacenter, index, wait, mode, wire.LISTING)

    def catalog_index(self, datacenter: str = "") -> int:
        """The index of all services and nodes, for a thousandth of the cost of listing them."""
        return self._ask(
            "/v1/catalog/services", "probe the catalog", datacenter, 0, 0.0, Mode.LEADER, wire.LISTING, (NO_NODE,)
        ).index

    def health_service(
        self, query: Query, index: int = 0, wait: float = 0.0, mode: Mode = Mode.STALE, *, streaming: bool = True
    ) -> Answer:
        """`health/service/<name>`: a list of {Node, Service, Checks}.

        A query that waits is answered by Consul's streaming backend, unless `streaming` is False.
        """
        path = f"/v1/health/service/{_segment(query.service, 'service')}"
        what = f"read service {query.service!r}"
        extra = _extra(query) if streaming or not index else (*_extra(query), CATALOG)
        return self._fresh(path, what, query.datacenter, index, wait, mode, wire.HEALTH, extra, query.filter)

    def probe_service(self, query: Query, mode: Mode = Mode.STALE) -> Answer:
        """The index of a service, for a fraction of the cost of reading it; the data is empty."""
        path, params = self._service_probe(query, mode)
        return self._send(path, f"probe service {query.service!r}", query.datacenter, params, query.filter)

    def probe_services(self, queries: Sequence[Query], mode: Mode = Mode.STALE) -> list[int | None]:
        """`probe_service` for many at once; None for those that must be asked for one by one."""
        return self._probe_many([self._service_probe(query, mode) for query in queries])

    def probe_nodes(self, nodes: Sequence[str], datacenter: str = "", mode: Mode = Mode.STALE) -> list[int | None]:
        """`probe_node` for many at once; None for those that must be asked for one by one."""
        params = self._params(datacenter, mode, (), NO_SERVICE)
        return self._probe_many([(_node_path(node), params) for node in nodes])

    def node_services(self, node: str, datacenter: str = "", mode: Mode = Mode.LEADER) -> Answer:
        """`catalog/node-services/<node>`: {Node, Services: [...]}; data None for a node that is not there."""
        return self._ask(_node_path(node), f"read node {node!r}", datacenter, 0, 0.0, mode, wire.ON_NODE)

    def probe_node(self, node: str, datacenter: str = "", mode: Mode = Mode.STALE) -> Answer:
        """The index of a node and its services, for a fraction of the cost of reading them."""
        params = self._params(datacenter, mode, (), NO_SERVICE)
        return self._send(_node_path(node), f"probe node {node!r}", datacenter, params)

    def state(
        self, status: str, datacenter: str = "", index: int = 0, wait: float = 0.0, mode: Mode = Mode.STALE
    ) -> Answer:
        """`health/state/<status>`: the list of checks in that status."""
        return self._fresh(
            f"/v1/health/state/{status}", f"list {status} checks", datacenter, index, wait, mode, wire.CHECKS
        )

    def nodes(self, datacenter: str = "", index: int = 0, wait: float = 0.0, mode: Mode = Mode.STALE) -> Answer:
        """`catalog/nodes`: the list of nodes with address, meta and indexes."""
        return self._fresh("/v1/catalog/nodes", "list nodes", datacenter, index, wait, mode, wire.NODES)

    def leader(self, datacenter: str = "", timeout_seconds: float | None = None) -> str:
        """Address of the Raft leader, "" when there is none. Consul answers this at once, whatever its state."""
        params = self._params(datacenter)
        answer = self._send(
            "/v1/status/leader", "ask for the leader", datacenter, params, indexed=False, timeout=timeout_seconds
        )
        if not isinstance(answer.data, str):
            raise TransientError(f"{self.endpoint} does not name its leader: is that Consul?")
        return answer.data

    def datacenters(self) -> tuple[str, ...]:
        """Names of all known datacenters, the agent's own first."""
        answer = self._ask("/v1/catalog/datacenters", "list datacenters", "", 0, 0.0, Mode.LEADER, indexed=False)
        if not isinstance(answer.data, list) or not all(isinstance(d, str) for d in answer.data):
            raise TransientError(f"{self.endpoint} does not list its datacenters: is that Consul?")
        return tuple(answer.data)

    def version(self) -> str:
        """Version of the agent. Raises PermanentError without agent:read."""
        answer = self._ask("/v1/agent/self", "read the agent's settings", "", 0, 0.0, Mode.LEADER, indexed=False)
        settings = answer.data.get("Config") if isinstance(answer.data, dict) else None
        version = settings.get("Version") if isinstance(settings, dict) else None
        if not isinstance(version, str):
            raise TransientError(f"{self.endpoint} does not tell its version: is that Consul?")
        return version

    def token_end(self) -> datetime | None:
        """When our token ends (of an auth method, or one that was made to expire); None when it does not."""
        answer = self._ask("/v1/acl/token/self", "read our own token", "", 0, 0.0, Mode.LEADER, indexed=False)
        return moment(answer.data.get("ExpirationTime")) if isinstance(answer.data, dict) else None

    def own_datacenter(self) -> str:
        """Name of the agent's datacenter.

        From the agent itself; a token without agent:read has to do with the catalog: the only datacenter there is, or
        the one in which nodes are listed when none is asked for.
        """
        try:
            answer = self._ask("/v1/agent/self", "read the agent's settings", "", 0, 0.0, Mode.LEADER, indexed=False)
        except PermanentError as forbidden:
            every = self.datacenters()
            if len(every) == 1:
                return every[0]
            nodes: list[wire.NodeRow] = self.nodes().data
            if nodes and nodes[0].datacenter:
                return str(nodes[0].datacenter)
            raise PermanentError(
                f"the name of the agent's datacenter cannot be found out ({forbidden}). Name it: --datacenter, one of "
                f"{', '.join(every)}"
            ) from forbidden
        settings = answer.data.get("Config") if isinstance(answer.data, dict) else None
        name = settings.get("Datacenter") if isinstance(settings, dict) else None
        if not isinstance(name, str) or not name:
            raise TransientError(f"{self.endpoint} does not name its datacenter: is that Consul?")
        return name

    # ------------------------------------------------------------------ the connection

    def close(self) -> None:
        """Close the connection; a request that waits ends with CancelledError. Any thread, any number of times."""
        self._transport.interrupt()

    def wake(self, opened_before: float = math.inf) -> None:
        """End the request that waits, if one does, with CancelledError; the client goes on to be usable. Any thread.

        `opened_before` (time.monotonic): leave connections that were opened later alone, and close older idle ones.
        """
        self._transport.wake(opened_before)

    def connect(self) -> None:
        """Open the connection before it is needed; that it cannot be opened, the first question will say."""
        with contextlib.suppress(OSError, Interrupted):
            self._transport.timeout = self.config.connect_timeout_seconds
            self._transport.connect()

    def disconnect(self) -> None:
        """Give the connection back for now; the next question opens a new one. Only between two questions."""
        self._transport.disconnect()

    @property
    def connected(self) -> bool:
        return self._transport.connected

    @property
    def opened(self) -> float:
        """When the connection was opened (time.monotonic); infinite without one."""
        return self._transport.opened

    # ------------------------------------------------------------------ how a question is asked

    def _fresh(
        self,
        path: str,
        what: str,
        datacenter: str,
        index: int,
        wait: float,
        mode: Mode,
        shape: Shape[Any],
        extra: Params = (),
        expression: str = "",
    ) -> Answer:
        """Ask; a stale answer that is too old, or of a server that knows no leader, is asked for again, consistent.

        The streaming backend is left alone: its headers always say "no leader, no delay".
        """
        answer = self._ask(path, what, datacenter, index, wait, mode, shape, extra, expression)
        if mode is not Mode.STALE or answer.query_backend == STREAMING:
            return answer
        if answer.known_leader and answer.last_contact_seconds <= self.config.max_stale_seconds:
            return answer
        return self._ask(path, what, datacenter, 0, 0.0, Mode.CONSISTENT, shape, extra, expression)

    def _ask(
        self,
        path: str,
        what: str,
        datacenter: str,
        index: int,
        wait: float,
        mode: Mode,
        shape: Shape[Any] = wire.ANYTHING,
        extra: Params = (),
        expression: str = "",
        *,
        indexed: bool = True,
    ) -> Answer:
        params = self._params(datacenter, mode, extra, expression) if indexed else self._params(datacenter)
        blocking = index > 0 and wait > 0
        if blocking:
            wait = self._parts.wait_limit.of(wait)
            params += [("index", str(index)), ("wait", f"{max(int(wait * 1000), 1)}ms")]
        # the server adds up to a sixteenth to the wait; the margin covers an election (docs/consul.md)
        waits = wait + wait / 16 if blocking else 0.0
        return self._send(path, what, datacenter, params, expression, waits, indexed, shape=shape)

    def _params(
        self, datacenter: str, mode: Mode | None = None, extra: Params = (), expression: str = ""
    ) -> list[tuple[str, str]]:
        """Parameters of a question; without a mode it is one of those that know neither namespaces nor consistency."""
        config = self.config
        params = [("dc", datacenter or config.datacenter)]
        if mode is not None:
            named = {name for name, _ in extra}
            params += [(n, v) for n, v in (("ns", config.namespace), ("partition", config.partition)) if n not in named]
            params += [*extra, ("filter", expression)]
        params = [(name, value) for name, value in params if value]
        if mode in (Mode.STALE, Mode.CONSISTENT):
            params.append((str(mode), ""))
        return params

    def _service_probe(self, query: Query, mode: Mode) -> tuple[str, list[tuple[str, str]]]:
        extra = (*_extra(query), ("tag", NOBODY))
        path = f"/v1/health/service/{_segment(query.service, 'service')}"
        return path, self._params(query.datacenter, mode, extra, query.filter)

    def _probe_many(self, probes: list[tuple[str, list[tuple[str, str]]]]) -> list[int | None]:
        if self._pipelining_failures >= PIPELINING_PATIENCE and time.monotonic() < self._pipelining_again:
            return [None] * len(probes)
        token = self._parts.credentials.token()
        self._transport.timeout = self.config.timeout_margin_seconds
        try:
            found, status = self._transport.get_many(probes, _headers(token), "X-Consul-Index")
        except Interrupted:
            raise CancelledError("the connection to Consul was closed by us") from None
        if found:
            self._pipelining_failures = 0
        elif status not in (401, 403, 429) and status < 500:  # not Consul's own trouble: that says nothing of the way
            self._pipelining_failures += 1
            self._pipelining_again = time.monotonic() + PIPELINING_REST_SECONDS
        return [*(_index(text) for text in found), *([None] * (len(probes) - len(found)))]

    def _send(
        self,
        path: str,
        what: str,
        datacenter: str,
        params: Params,
        expression: str = "",
        wait: float = 0.0,
        indexed: bool = True,
        timeout: float | None = None,
        shape: Shape[Any] = wire.ANYTHING,
    ) -> Answer:
        """Ask; once more where the token was refused and there is another one by now."""
        token = self._parts.credentials.token()
        asked = self._asked(what, datacenter, expression, token)
        response = self._request(asked, path, params, token, wait, timeout)
        unknown = response.code in (401, 403) and b"ACL not found" in response.content
        if unknown and token and self._parts.credentials.refused(token):
            token = self._parts.credentials.token()
            asked = self._asked(what, datacenter, expression, token)
            response = self._request(asked, path, params, token, wait, timeout)
        if wait and self._rest_seconds:
            time.sleep(self._rest_seconds)
        try:
            return self._envelope(asked, response, indexed, shape)
        finally:
            self._transport.give_back()

    def _asked(self, what: str, datacenter: str, expression: str, token: str) -> faults.RequestInfo:
        return faults.RequestInfo(
            what=what,
            server=self._parts.server,
            datacenter=datacenter or self.config.datacenter,
            filter=expression,
            anonymous=not token,
            authorized=bool(self._parts.authorization),
            ca_path=self._parts.ca_path,
            secrets=self._parts.secrets(token, self.config.http_auth.partition(":")[2]),
        )

    def _request(
        self, asked: faults.RequestInfo, path: str, params: Params, token: str, wait: float, timeout: float | None
    ) -> Any:
        """One request, and what its end says about how long queries may wait here."""
        self._transport.timeout = wait + (timeout or self.config.timeout_margin_seconds)
        began = time.monotonic()
        try:
            response = self._consul.http.get(_as_it_is, path, params, _headers(token))
        except Interrupted:
            raise CancelledError("the connection to Consul was closed by us") from None
        except (OSError, TooLarge, http.client.HTTPException, zlib.error) as error:
            self._transport.give_back()
            if wait and isinstance(error, (http.client.RemoteDisconnected, ConnectionError, ssl.SSLEOFError)):
                self._parts.wait_limit.cut_off(time.monotonic() - began, wait, gateway=False)
            raise faults.of_exception(asked, error) from error
        if wait and response.code == 504:
            self._parts.wait_limit.cut_off(time.monotonic() - began, wait, gateway=True)
        elif wait and response.code == 200:
            self._parts.wait_limit.answered(time.monotonic() - began)
        return response

    def _envelope(self, asked: faults.RequestInfo, response: Any, indexed: bool, shape: Shape[Any]) -> Answer:
        headers = response.headers
        if response.code != 200:
            raise faults.of_answer(asked, response.code, headers, response.content)
        index = _index(headers.get("X-Consul-Index")) if indexed else 0
        if index is None:
            raise TransientError(f"{asked.server} answers {asked} without a usable index: is that Consul?")
        size = len(response.content)
        try:
            data = shape.read(response.content)
        except wire.MisshapenError as error:
            raise TransientError(
                f"the answer of {asked.server} to {asked} is none that Consul gives: {error}"
            ) from None
        except (ValueError, RecursionError):
            raise TransientError(f"the answer of {asked.server} to {asked} is not JSON, or is torn off") from None
        return Answer(
            index=index,
            data=data,
            query_backend=headers.get("X-Consul-Query-Backend", ""),
            filtered=headers.get("X-Consul-Results-Filtered-By-ACLs", "").lower() == "true",
            default_deny_anonymous=asked.anonymous and headers.get("X-Consul-Default-Acl-Policy", "") == "deny",
            last_contact_seconds=_milliseconds(headers.get("X-Consul-LastContact")),
            known_leader=headers.get("X-Consul-KnownLeader", "true").lower() == "true",
            size=size,
        )


def _segment(name: str, what: str) -> str:
    """A name as a part of a path. Raises PermanentError where the name would make another path of it."""
    if name in UNADDRESSABLE:
        error = PermanentError(f"{what} {name!r} cannot be asked for: in a URL its name means another path")
        error.remedy = f"another name for the {what}"
        raise error
    return quote(name, safe="")


def _node_path(node: str) -> str:
    return f"/v1/catalog/node-services/{_segment(node, 'node')}"


def _headers(token: str) -> dict[str, str]:
    return {"X-Consul-Token": token} if token else {}


def _as_it_is(response: Any) -> Any:
    return response


def _extra(query: Query) -> Sequence[tuple[str, str]]:
    named = (("ns", query.namespace), ("partition", query.partition), ("peer", query.peer))
    return [(name, value) for name, value in named if value]


def _index(header: str | None) -> int | None:
    """X-Consul-Index as a number; None when it is missing or no number. May be 0, which must not be sent back."""
    if header is None or not header.isascii() or not header.isdigit() or len(header) > 20:
        return None
    return int(header)


def _milliseconds(header: str | None) -> float:
    """X-Consul-LastContact in seconds; what is no number proves nothing and counts as endless."""
    if header is None:
        return 0.0
    return int(header) / 1000 if header.isascii() and header.isdigit() and len(header) <= 20 else math.inf
