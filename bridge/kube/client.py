"""Requests to the Kubernetes API server and what their answers mean; nothing about objects.

Configuration and credentials are access.py's, connections transport.py's. The `kubernetes` package's typed layer stays
out: it costs two to three times the CPU of the request itself. The package is imported at the first use, since it takes
0.3 s and 30 MiB.

A connection may be dead without an error (a virtual address that moved to another API server). So one request that gets
no answer on a kept connection closes all idle ones, of every clone; and when a new connection is answered afterwards,
watches that have been silent since are reopened. While watches are open, a small request every few seconds finds
out.

Closing a client ends every request that is in flight on it at once, whatever the request waits for. A caller that must
be interrupted separately takes a `clone`.

Longer than other modules: what ends a request (a deadline, `close`, a dead connection) is known in one place.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from urllib.parse import urlencode

from bridge.errors import BridgeError, CancelledError, CredentialsError, TransientError
from bridge.json_shape import Body
from bridge.kube import access as access_module
from bridge.kube import faults, wire
from bridge.kube.access import Access
from bridge.kube.transport import Headers, Limits, Pool, Response, Sockets, Stream, TooLargeError

JSON = "application/json"
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
METADATA_LIST_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

FIELD_MANAGER = "consul-bridge"

UNVERIFIED = (
    "the API server's certificate is not verified (insecure-skip-tls-verify in the kubeconfig): a host on the path can "
    "read and change everything; name its certificate-authority instead"
)

PROBE_SECONDS = 5.0
"""Timeout of the small request that checks the connection of watches."""
EVENT_SECONDS = 15.0
"""How long one event of a watch may take from its first byte to its last."""

__all__ = ["Response"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeConfig:
    """How to connect to the API server.

    `kubeconfig` is one path or several joined by `:` (empty: $KUBECONFIG, then ~/.kube/config, then the pod's service
    account). `namespace_default` overrides the context's namespace. `connections` is how many stay open for reuse.
    `max_answer_bytes`: the largest answer, and the largest event of a watch, that is read.
    """

    kubeconfig: str
    context: str
    namespaces: tuple[str, ...]
    namespace_default: str = ""
    request_timeout_seconds: float
    connect_timeout_seconds: float
    connections: int
    max_answer_bytes: int


@dataclass(frozen=True, slots=True)
class Version:
    major: int
    minor: int
    git: str


class SilenceError(TransientError):
    """A watch received no byte for the longest allowed time: it is dead, or nothing happened."""


class _Family:
    """A client and its clones: what one learns about connections and credentials holds for all."""

    def __init__(self, access: Access, on_warning: Callable[[str], None] | None) -> None:
        self.access = access
        self.on_warning = on_warning
        self.warned: set[str] = set()  # each reported once, whichever clone receives it
        self._lock = threading.Lock()
        self._clients: list[KubeClient] = []
        self._suspect = -math.inf
        self._watching: set[KubeClient] = set()
        self._keeper: threading.Thread | None = None
        self._stop = threading.Event()
        access.listen(self.connect_anew)

    def join(self, client: KubeClient) -> None:
        with self._lock:
            self._clients.append(client)

    def leave(self, client: KubeClient) -> None:
        """It is closed; with the last one that watches the thread ends."""
        with self._lock:
            with contextlib.suppress(ValueError):
                self._clients.remove(client)
            self._watching.discard(client)
            if not self._clients:
                self.access.close()
            if self._watching:
                return
            keeper, self._keeper = self._keeper, None
            self._stop.set()
        if keeper is not None and keeper is not threading.current_thread():
            keeper.join(PROBE_SECONDS)

    def members(self) -> list[KubeClient]:
        with self._lock:
            return list(self._clients)

    def dead(self, began: float) -> None:
        """A kept-alive connection gave no answer to a request that began then: all idle ones are closed."""
        with self._lock:
            self._suspect = max(self._suspect, began)
        for client in self.members():
            client.drop_idle()

    def fresh(self, opened: float) -> None:
        """A new connection was answered: if others died before, watches that have been silent since are dead, too."""
        with self._lock:
            suspect = self._suspect
            if opened < suspect or suspect == -math.inf:
                return
            self._suspect = -math.inf
        for client in self.members():
            client.end_streams(suspect)

    def connect_anew(self) -> None:
        """Credentials have changed: every connection has the old ones."""
        for client in self.members():
            client.drop_idle()
            client.end_streams(math.inf)

    def look_after_watches(self, client: KubeClient) -> None:
        """While watches are open, check for what no request notices: new credentials, a connection that is dead."""
        with self._lock:
            if client not in self._clients:
                return
            self._watching.add(client)
            if self._keeper is None:
                self._stop = threading.Event()
                self._keeper = threading.Thread(
                    target=self._keep, args=(self._stop,), name="kube-connections", daemon=True
                )
                self._keeper.start()

    def _keep(self, stop: threading.Event) -> None:
        while not stop.wait(access_module.CHECK_SECONDS):
            with contextlib.suppress(BridgeError):
                self.access.authorization(fresh=True)
            for client in self.members():
                if client.streams and not stop.is_set() and not client.probe():
                    client.probe()  # on a new connection: whether it is the server or the old way to it


class KubeClient:
    """A connection pool to one API server with one identity. Thread-safe."""

    def __init__(
        self,
        config: KubeConfig,
        on_warning: Callable[[str], None] | None = None,
        *,
        _twin: KubeClient | None = None,
    ) -> None:
        """Load the configuration; nothing is sent yet. Raises ConfigurationError."""
        self.config = config
        self._family: _Family = _twin._family if _twin is not None else _Family(Access(config), on_warning)
        self._access: Access = self._family.access
        self._sockets = Sockets()
        self._lock = threading.Lock()
        self._pools: tuple[int, Pool] | None = None
        self._family.join(self)
        if self._access.unverified and _twin is None:
            self._warn(UNVERIFIED)

    @property
    def server(self) -> str:
        return self._access.server

    @property
    def namespace(self) -> str:
        """The namespace that the configuration names, "default" when it names none."""
        return self.config.namespace_default or self._access.namespace

    @property
    def access(self) -> Access:
        """The user, the address and the proxy of requests; for users."""
        return self._access

    @property
    def trouble(self) -> str:
        """Why credentials cannot be renewed although the old ones are in use still; "" when all is well."""
        return self._access.trouble

    def clone(self, connections: int | None = None) -> KubeClient:
        """A client with the same configuration and credentials, and connections and a `close` of its own."""
        config = self.config
        if connections is not None:
            config = replace(config, connections=connections)
        return KubeClient(config, _twin=self)

    def close(self) -> None:
        """End every request under way (they raise CancelledError) and close all connections."""
        self._sockets.close()
        with self._lock:
            pools, self._pools = self._pools, None
        if pools is not None:
            pools[1].close()
        self._family.leave(self)

    @property
    def streams(self) -> int:
        with self._lock:
            pools = self._pools
        return pools[1].streams if pools is not None else 0

    def probe(self) -> bool:
        """Whether the connections of open watches still reach the server."""
        with contextlib.suppress(BridgeError), self._mapped(self._asked("GET", "/version")):
            headers, _ = self._headers(JSON)
            limits = Limits(self.config.connect_timeout_seconds, PROBE_SECONDS, math.inf, self.config.max_answer_bytes)
            self._pool().probe("/version", headers, limits)
            return True
        return False

    def drop_idle(self) -> None:
        with self._lock:
            pools = self._pools
        if pools is not None:
            pools[1].drop_idle()

    def end_streams(self, silent_since: float) -> None:
        """End the watches that have received nothing since then; their readers open new ones."""
        with self._lock:
            pools = self._pools
        if pools is not None:
            pools[1].end_streams(silent_since)

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: bytes | None = None,
        content_type: str = JSON,
        accept: str = JSON,
        timeout: float | None = None,
        within: float = math.inf,
        allow: frozenset[int] = frozenset(),
    ) -> Response:
        """Send one request and read its answer whole. Statuses >= 400 raise unless they are in `allow`.

        `timeout` bounds the answer in seconds, `within` everything together: credentials, connecting, sending, waiting
        and the repetition; when that is over before the request is sent, it never is. Nothing is retried, except once
        after a 401 when there are other credentials now, on a new connection.
        """
        seconds = timeout if timeout is not None else self.config.request_timeout_seconds
        limits = Limits(
            self.config.connect_timeout_seconds, seconds, time.monotonic() + within, self.config.max_answer_bytes
        )
        asked = self._asked(method, path)
        answer, used = self._once(asked, query, body, content_type, accept, limits)
        if answer.status == 401 and self._renewed(used, min(seconds, limits.until - time.monotonic())):
            answer, _ = self._once(asked, query, body, content_type, accept, limits, fresh=True)
        if answer.status >= 400 and answer.status not in allow:
            raise self._refusal(asked, answer.status, answer.headers, answer.body)
        return answer

    def page(
        self,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        accept: str = JSON,
        read: Callable[[Body], Any] = wire.page,
    ) -> Any:
        """GET a page of a list, as `read` gives it. Raises ValueError when it is no JSON."""
        return read(self.request("GET", path, query=query, accept=accept).body)

    @contextlib.contextmanager
    def stream(
        self, path: str, *, query: Sequence[tuple[str, str]] = (), accept: str = JSON, silence: float
    ) -> Iterator[Iterator[bytes]]:
        """Open a watch; the iterator yields its lines as they come and ends when the server ends it.

        It also ends when its connection is to be given up, as if the server had ended it. `silence` is how many seconds
        may pass without a byte. Trouble raises TransientError (also from the iterator), silence its SilenceError.
        """
        self._family.look_after_watches(self)
        asked = self._asked("GET", path, watching=True)
        raw, used = self._open(asked, query, accept)
        if raw.status == 401 and self._renewed(used, self.config.request_timeout_seconds):
            raw.close()
            raw, _ = self._open(asked, query, accept)
        try:
            self._hear(raw.headers)
            if raw.status >= 400:
                raise self._refusal(asked, raw.status, raw.headers, self._rest(asked, raw))
            yield self._lines(asked, raw, silence)
        finally:
            raw.close()

    def version(self) -> Version:
        import json

        answer = self.request("GET", "/version")
        try:
            found = json.loads(answer.body)
            digits = ["".join(c for c in str(found[k]) if c.isdigit()) for k in ("major", "minor")]
            return Version(int(digits[0] or 0), int(digits[1] or 0), str(found.get("gitVersion", "")))
        except (ValueError, KeyError, TypeError) as error:
            raise faults.NoApiServerError(
                f"{self.server} answers, but not as a Kubernetes API server: wrong port?"
            ) from error

    # ------------------------------------------------------------------ inside

    def _asked(self, method: str, path: str, watching: bool = False) -> faults.RequestInfo:
        proxy = self._access.proxy
        return faults.RequestInfo(
            method, path, self._access.server, watching=watching, proxy=str(proxy) if proxy is not None else ""
        )

    def _renewed(self, used: str, wait_seconds: float) -> bool:
        """Whether a refused request is worth repeating; on a connection that has the credentials of now."""
        return self._access.renewed_after_401(used, max(0.0, wait_seconds))

    def _refusal(self, asked: faults.RequestInfo, status: int, headers: Any, body: Body) -> BridgeError:
        error = faults.of_answer(asked, status, headers, body, self._access.secrets)
        if isinstance(error, CredentialsError):
            more = f"; {self._access.trouble}" if self._access.trouble else ""
            return CredentialsError(f"{error} (they come from {self._access.where}{more})")
        return error

    def _once(
        self,
        asked: faults.RequestInfo,
        query: Sequence[tuple[str, str]],
        body: bytes | None,
        content_type: str,
        accept: str,
        limits: Limits,
        fresh: bool = False,
    ) -> tuple[Response, str]:
        """One request; its answer and the Authorization header that it was sent with."""
        more = (("Content-Type", content_type),) if body is not None else ()
        with self._mapped(asked):
            headers, used = self._headers(accept, more)
            answer = self._pool().exchange(asked.method, _target(asked, query), body, headers, limits, fresh=fresh)
        self._hear(answer.headers)
        return answer, used

    def _open(self, asked: faults.RequestInfo, query: Sequence[tuple[str, str]], accept: str) -> tuple[Stream, str]:
        seconds = self.config.request_timeout_seconds
        with self._mapped(asked):
            headers, used = self._headers(accept)
            limits = Limits(self.config.connect_timeout_seconds, seconds, math.inf)
            return self._pool().open(_target(asked, query), headers, limits), used

    def _headers(self, accept: str, more: tuple[tuple[str, str], ...] = ()) -> tuple[Headers, str]:
        used = self._access.authorization()
        credentials = (("Authorization", used),) if used else ()
        agent = ("User-Agent", "consul-endpoints-bridge")
        return (("Accept", accept), agent, *credentials, *self._access.headers, *more), used

    @contextlib.contextmanager
    def _mapped(self, asked: faults.RequestInfo) -> Iterator[None]:
        """What clients and sockets raise becomes one of our errors."""
        import urllib3

        try:
            yield
        except TooLargeError as error:
            raise TooLargeError(f"{asked}: {error}; raise kubernetes.max_answer") from error
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            raise self._broken(asked, error) from error

    def _broken(self, asked: faults.RequestInfo, error: BaseException) -> BridgeError:
        if self._sockets.closed:
            return CancelledError(f"closed during {asked}")
        return faults.of_exception(asked, error, self._access.secrets)

    def _rest(self, asked: faults.RequestInfo, raw: Stream) -> bytes:
        with self._mapped(asked):
            return raw.rest(1 << 16)

    def _lines(self, asked: faults.RequestInfo, raw: Stream, silence: float) -> Iterator[bytes]:
        held: list[bytes] = []
        size, began = 0, math.inf
        while True:
            try:
                data = raw.read(min(silence, began + EVENT_SECONDS - time.monotonic()))
            except (http.client.HTTPException, OSError, ValueError) as error:
                if raw.ended and not self._sockets.closed:
                    return
                if isinstance(error, TimeoutError) and not self._sockets.closed:
                    if began == math.inf:
                        raise SilenceError(f"{asked}: silence") from error
                    raise TransientError(f"{asked}: an event did not come whole within {EVENT_SECONDS:g} s") from error
                raise self._broken(asked, error) from error
            if not data:
                break
            first, *rest = data.split(b"\n")
            held.append(first)
            for piece in rest:
                if line := b"".join(held):
                    yield line
                held, size, began = [piece], 0, math.inf
            size += len(held[-1])
            if any(held) and began == math.inf:
                began = time.monotonic()
            if size > self.config.max_answer_bytes:
                raise TooLargeError(f"{asked}: one event is larger than kubernetes.max_answer allows; raise it")
        if self._sockets.closed:
            raise CancelledError(f"closed during {asked}")
        if any(held) and not raw.ended:
            raise TransientError(f"{asked}: the watch ended in the middle of an event")

    def _hear(self, headers: Any) -> None:
        if "Warning" not in headers:
            return
        for value in headers.get_all("Warning"):
            text = _warning_text(value)
            if text not in self._family.warned:
                self._warn(text)

    def _warn(self, text: str) -> None:
        if len(self._family.warned) < 1000:
            self._family.warned.add(text)
        if self._family.on_warning is not None:
            self._family.on_warning(faults.trim(faults.redact(text, self._access.secrets)))

    def _pool(self) -> Pool:
        access = self._access
        with self._lock:
            if self._sockets.closed:
                raise CancelledError("the client is closed")
            generation = access.generation
            if self._pools is None or self._pools[0] != generation:
                old = self._pools
                fresh = Pool(
                    access.configuration(),
                    access.tls_context(),
                    access.proxy,
                    self.config.connections,
                    self._sockets,
                    self._family.dead,
                    self._family.fresh,
                )
                self._pools = (generation, fresh)
                if old is not None:
                    old[1].end_streams()
                    old[1].close()
            return self._pools[1]


def _warning_text(value: str) -> str:
    """The text of a `Warning: 299 - "text"` header (RFC 7234; the API server escapes quotes with a backslash)."""
    start, end = value.find('"'), value.rfind('"')
    return value[start + 1 : end].replace('\\"', '"') if 0 <= start < end else value


def _target(asked: faults.RequestInfo, query: Sequence[tuple[str, str]]) -> str:
    return f"{asked.path}?{_encoded(tuple(query))}" if query else asked.path


@lru_cache(maxsize=64)
def _encoded(query: tuple[tuple[str, str], ...]) -> str:
    """Every write has one of a few queries, and encoding one takes as long as sending it."""
    return urlencode(query)
