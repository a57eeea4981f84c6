"""Requests to the Kubernetes API server: authentication, connections, timeouts and errors; nothing about objects.

The `kubernetes` package reads the kubeconfig (contexts, exec plugins, tokens, client certificates, proxies) or the
pod's service account and builds the urllib3 pool. Its typed layer stays out: it costs two to three times the CPU of
the request itself (FACTS E2). It is imported at the first use, since it takes 0.3 s and 30 MiB.

Closing a client ends every request that is under way on it at once, whatever it waits for. Who needs to be
interrupted apart from the others takes a `clone`.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import math
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from bridge.errors import BridgeError, CancelledError, ConfigurationError, PermanentError, TransientError
from bridge.kube import faults

if TYPE_CHECKING:
    import urllib3

JSON = "application/json"
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
METADATA_LIST_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

FIELD_MANAGER = "consul-bridge"

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_AUTH_SECONDS = 1.0
_RELOAD_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeConfig:
    """Where the API server is and how to talk to it.

    `kubeconfig` is one path or several joined by `:` (empty: $KUBECONFIG, then ~/.kube/config, then the pod's service
    account). `namespace_default` overrides the context's namespace. `connections` is how many stay open for reuse.
    """

    kubeconfig: str = ""
    context: str = ""
    namespaces: tuple[str, ...] = ()
    namespace_default: str = ""
    request_timeout_seconds: float = 10.0
    connect_timeout_seconds: float = 3.0
    connections: int = 16


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, undecoded. `headers` are case-insensitive."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Version:
    """What `GET /version` says."""

    major: int
    minor: int
    git: str


@dataclass(frozen=True, slots=True)
class _Limits:
    """How long a request may take: connecting, each read, and (`until`, on the monotonic clock) all of it."""

    connect: float
    read: float
    until: float

    def left(self) -> float:
        """Seconds until the end. Raises TimeoutError when it is over."""
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("no time is left for this request")
        return left

    def connect_seconds(self) -> float:
        """For connecting now."""
        return min(self.connect, self.left())

    def read_seconds(self) -> float:
        """For each read from now on."""
        return min(self.read, self.left())


class SilenceError(TransientError):
    """A watch brought not a byte for as long as it may: dead, or nothing happened."""


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
        self._on_warning = on_warning
        self._access: _Access = _twin._access if _twin is not None else _Access(config)
        self._warned: set[str] = _twin._warned if _twin is not None else set()  # said once, whichever clone hears it
        self._sockets = _Sockets()
        self._lock = threading.Lock()
        self._pools: tuple[int, _Pool] | None = None
        if self._access.unverified and _twin is None:
            self._warn("the kubeconfig switches TLS verification off (insecure-skip-tls-verify)")

    @property
    def server(self) -> str:
        """Address of the API server, for messages."""
        return self._access.server

    @property
    def namespace(self) -> str:
        """The namespace that the configuration names, "default" when it names none."""
        return self.config.namespace_default or self._access.namespace

    def clone(self, connections: int | None = None) -> KubeClient:
        """A client with the same configuration and credentials, and connections and a `close` of its own."""
        config = self.config
        if connections is not None:
            config = replace(config, connections=connections)
        return KubeClient(config, self._on_warning, _twin=self)

    def close(self) -> None:
        """End every request under way (they raise CancelledError) and close all connections."""
        self._sockets.close()
        with self._lock:
            pools, self._pools = self._pools, None
        if pools is not None:
            pools[1].close()

    @property
    def open_connections(self) -> int:
        """Connections that are open now, idle ones included."""
        return len(self._sockets)

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

        `timeout` bounds each read in seconds, `within` everything together: credentials, connecting, sending, waiting
        and the repetition; when that is over before the request is sent, it never is. Nothing is retried, except once
        after a 401 when reading the configuration again brought other credentials.
        """
        limits = _Limits(
            self.config.connect_timeout_seconds,
            timeout if timeout is not None else self.config.request_timeout_seconds,
            time.monotonic() + within,
        )
        asked = self._asked(method, path)
        answer = self._once(asked, query, body, content_type, accept, limits)
        if answer.status == 401 and self._access.reload():
            answer = self._once(asked, query, body, content_type, accept, limits)
        if answer.status >= 400 and answer.status not in allow:
            raise faults.of_answer(asked, answer.status, answer.headers, answer.body, self._access.secrets)
        return answer

    @contextlib.contextmanager
    def stream(
        self, path: str, *, query: Sequence[tuple[str, str]] = (), accept: str = JSON, silence: float
    ) -> Iterator[Iterator[bytes]]:
        """Open a watch; the iterator yields its lines as they come and ends when the server ends it.

        `silence` is how many seconds may pass without a byte. Trouble raises TransientError (also from the iterator),
        silence its SilenceError.
        """
        asked = self._asked("GET", path, watching=True)
        raw = self._open(asked, query, accept, silence)
        if raw.status == 401 and self._access.reload():
            self._discard(raw)
            raw = self._open(asked, query, accept, silence)
        try:
            self._hear(raw.headers)
            if raw.status >= 400:
                raise faults.of_answer(asked, raw.status, raw.headers, self._rest(asked, raw), self._access.secrets)
            yield self._lines(asked, raw)
        finally:
            self._discard(raw)

    def version(self) -> Version:
        """Version of the API server."""
        import json

        answer = self.request("GET", "/version")
        try:
            found = json.loads(answer.body)
            digits = ["".join(c for c in str(found[k]) if c.isdigit()) for k in ("major", "minor")]
            return Version(int(digits[0] or 0), int(digits[1] or 0), str(found.get("gitVersion", "")))
        except (ValueError, KeyError, TypeError) as error:
            raise PermanentError(f"{self.server} answers, but not as a Kubernetes API server: wrong port?") from error

    # ------------------------------------------------------------------ inside

    def _asked(self, method: str, path: str, watching: bool = False) -> faults.Asked:
        return faults.Asked(method, path, self._access.server, watching=watching)

    def _once(
        self,
        asked: faults.Asked,
        query: Sequence[tuple[str, str]],
        body: bytes | None,
        content_type: str,
        accept: str,
        limits: _Limits,
    ) -> Response:
        headers = {"Accept": accept, "User-Agent": "consul-endpoints-bridge"}
        if body is not None:
            headers["Content-Type"] = content_type
        with self._mapped(asked):
            self._authorize(headers)
            answer = self._pool().exchange(asked.method, _target(asked, query), body, headers, limits)
        self._hear(answer.headers)
        return answer

    def _open(
        self, asked: faults.Asked, query: Sequence[tuple[str, str]], accept: str, read: float
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Accept": accept, "User-Agent": "consul-endpoints-bridge"}
        with self._mapped(asked):
            self._authorize(headers)
            limits = _Limits(self.config.connect_timeout_seconds, read, math.inf)
            return self._pool().open(_target(asked, query), headers, limits)

    def _authorize(self, headers: dict[str, str]) -> None:
        if authorization := self._access.authorization():
            headers["Authorization"] = authorization

    @contextlib.contextmanager
    def _mapped(self, asked: faults.Asked) -> Iterator[None]:
        """What clients and sockets raise becomes one of our errors."""
        import urllib3

        try:
            yield
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            raise self._broken(asked, error) from error

    def _broken(self, asked: faults.Asked, error: BaseException) -> BridgeError:
        if self._sockets.closed:
            return CancelledError(f"closed during {asked}")
        return faults.of_exception(asked, error, self._access.secrets)

    def _rest(self, asked: faults.Asked, raw: urllib3.BaseHTTPResponse) -> bytes:
        with self._mapped(asked):
            return raw.read(1 << 16) or b""

    def _lines(self, asked: faults.Asked, raw: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        import urllib3

        held: list[bytes] = []
        try:
            for chunk in raw.stream(1 << 16, decode_content=False):
                first, *rest = chunk.split(b"\n")
                held.append(first)
                for piece in rest:
                    if line := b"".join(held):
                        yield line
                    held = [piece]
        except urllib3.exceptions.ReadTimeoutError as error:
            if self._sockets.closed:
                raise self._broken(asked, error) from error
            raise SilenceError(f"{asked}: silence") from error
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise self._broken(asked, error) from error
        if self._sockets.closed:
            raise CancelledError(f"closed during {asked}")
        if any(held):
            raise TransientError(f"{asked}: the watch ended in the middle of an event")

    @staticmethod
    def _discard(raw: urllib3.BaseHTTPResponse) -> None:
        with contextlib.suppress(Exception):
            raw.close()

    def _hear(self, headers: Any) -> None:
        if "Warning" not in headers:
            return
        values = headers.getlist("Warning") if hasattr(headers, "getlist") else headers.get_all("Warning")
        for value in values:
            text = _warning_text(value)
            if text not in self._warned:
                self._warn(text)

    def _warn(self, text: str) -> None:
        if len(self._warned) < 1000:
            self._warned.add(text)
        if self._on_warning is not None:
            self._on_warning(faults.trim(faults.redact(text, self._access.secrets)))

    def _pool(self) -> _Pool:
        generation = self._access.generation
        with self._lock:
            if self._sockets.closed:
                raise CancelledError("the client is closed")
            if self._pools is None or self._pools[0] != generation:
                old, self._pools = self._pools, (generation, self._access.pool(self.config, self._sockets))
                if old is not None:
                    old[1].close()
            return self._pools[1]


def _warning_text(value: str) -> str:
    """The text of a `Warning: 299 - "text"` header (RFC 7234; the API server escapes quotes with a backslash)."""
    start, end = value.find('"'), value.rfind('"')
    return value[start + 1 : end].replace('\\"', '"') if 0 <= start < end else value


def _target(asked: faults.Asked, query: Sequence[tuple[str, str]]) -> str:
    return f"{asked.path}?{_encoded(tuple(query))}" if query else asked.path


@lru_cache(maxsize=64)
def _encoded(query: tuple[tuple[str, str], ...]) -> str:
    """Every write has one of a few queries, and encoding one takes as long as sending it."""
    return urlencode(query)


class _Pool:
    """urllib3's pool for the one server, built by the kubernetes package's settings, its connections tracked.

    urllib3 makes the connections (TLS, names, proxies) and reads the watches. Ordinary requests go straight over those
    connections with http.client's own methods: urllib3's layers above them cost as much CPU again as the request
    (0.2 ms of 0.4), which counts when sixteen writers share an interpreter. Through a proxy urllib3 does it all.
    """

    def __init__(self, configuration: Any, connections: int, sockets: _Sockets) -> None:
        from kubernetes.client.rest import RESTClientObject

        configuration.connection_pool_maxsize = connections
        configuration.retries = False
        configuration.keep_alive = True
        rest = RESTClientObject(configuration)
        self._manager = rest.pool_manager
        self._pool = self._manager.connection_from_url(configuration.host)
        parsed = configuration.host.split("://", 1)
        base = parsed[1].partition("/")[2].rstrip("/")
        self._prefix = f"/{base}" if base else ""
        if parsed[0] == "http" and getattr(self._manager, "proxy", None) is not None:
            self._prefix = configuration.host.rstrip("/")  # a plain proxy wants the whole address
        tracked = type("TrackedConnection", (_Tracked, self._pool.ConnectionCls), {"sockets": sockets})
        self._pool.ConnectionCls = tracked
        self._direct = getattr(self._manager, "proxy", None) is None
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._keep = connections
        if not configuration.verify_ssl:
            import urllib3

            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # the client says it, once

    def exchange(
        self, method: str, target: str, body: bytes | None, headers: dict[str, str], limits: _Limits
    ) -> Response:
        """One request and its whole answer, over a kept connection if there is one."""
        if not self._direct:
            raw = self._urlopen(method, target, body, headers, limits, preload=True)
            return Response(raw.status, raw.headers, raw.data)
        connection = self._take()
        try:
            if connection.sock is None:
                connection.timeout = limits.connect_seconds()
                connection.connect()
            connection.sock.settimeout(limits.read_seconds())
            http.client.HTTPConnection.request(connection, method, self._prefix + target, body, headers)
            answer = http.client.HTTPConnection.getresponse(connection)
            data = answer.read()
        except BaseException:
            connection.close()
            raise
        self._give_back(connection, answer.will_close)
        return Response(answer.status, answer.headers, data)  # type: ignore[arg-type]  # a message reads like a mapping

    def open(self, target: str, headers: dict[str, str], limits: _Limits) -> urllib3.BaseHTTPResponse:
        """A GET whose answer is read bit by bit, on a connection that is not used again."""
        return self._urlopen("GET", target, None, headers, limits, preload=False)

    def close(self) -> None:
        with self._lock:
            idle, self._idle, self._keep = self._idle, [], 0
        for connection in idle:
            connection.close()
        self._pool.close()
        self._manager.clear()

    def _take(self) -> http.client.HTTPConnection:
        """The connection used last that is still open, or a new one (not yet connected)."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                fresh: Any = self._pool._new_conn()
                return fresh  # type: ignore[no-any-return]
            if connection.is_connected:  # type: ignore[attr-defined]  # urllib3's: nothing to read, so not closed
                return connection
            connection.close()

    def _give_back(self, connection: http.client.HTTPConnection, will_close: bool) -> None:
        with self._lock:
            if not will_close and len(self._idle) < self._keep:
                self._idle.append(connection)
                return
        connection.close()

    def _urlopen(
        self,
        method: str,
        target: str,
        body: bytes | None,
        headers: dict[str, str],
        limits: _Limits,
        *,
        preload: bool,
    ) -> urllib3.BaseHTTPResponse:
        import urllib3

        connect, read = limits.connect_seconds(), limits.read_seconds()
        total = None if limits.until == math.inf else limits.left()

        return self._pool.urlopen(
            method,
            self._prefix + target,
            body=body,
            headers=headers,
            retries=False,
            redirect=False,
            assert_same_host=False,
            timeout=urllib3.Timeout(total=total, connect=connect, read=read),
            preload_content=preload,
        )


class _Access:
    """Configuration and credentials as the kubernetes package loads them, shared by a client and its clones."""

    def __init__(self, config: KubeConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._loaded_at = time.monotonic()
        self._auth_at = float("-inf")
        self._authorization = ""
        self.generation = 0
        self.namespace = "default"
        self._configuration = self._load()
        self.server: str = faults.redact(self._configuration.host)
        self.unverified = not self._configuration.verify_ssl and self._configuration.host.startswith("https")
        self.authorization()

    @property
    def secrets(self) -> tuple[str, ...]:
        """Credentials in use, to be kept out of messages."""
        header = self._authorization
        return (header, header.rpartition(" ")[2]) if header else ()

    def authorization(self) -> str:
        """The Authorization header's value ("" for client certificates); refreshed by the package when it expires."""
        now = time.monotonic()
        if now - self._auth_at < _AUTH_SECONDS:
            return self._authorization
        with self._lock:
            if now - self._auth_at < _AUTH_SECONDS:
                return self._authorization
            before = (self._configuration.cert_file, self._configuration.key_file)
            with _logged() as said:
                try:
                    value = self._configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
                except Exception as error:
                    raise TransientError(f"credentials cannot be renewed: {_said(error)}") from error
            self._authorization = str(value or "").strip()
            if said and not self._authorization:
                raise TransientError(f"credentials cannot be renewed: {faults.trim(faults.redact(said[-1]), 200)}")
            if before != (self._configuration.cert_file, self._configuration.key_file):
                self.generation += 1
            self._auth_at = time.monotonic()
            return self._authorization

    def reload(self) -> bool:
        """Read everything again after a 401 (rotated token file, exec plugin); whether the credentials changed."""
        with self._lock:
            if time.monotonic() - self._loaded_at < _RELOAD_SECONDS:
                return False
            self._loaded_at = time.monotonic()
            before = (self._authorization, self._configuration.cert_file, self._configuration.key_file)
            try:
                self._configuration = self._load()
            except ConfigurationError:
                return False
            self._auth_at = float("-inf")
        self.authorization()
        after = (self._authorization, self._configuration.cert_file, self._configuration.key_file)
        if after[1:] != before[1:]:
            self.generation += 1
        return after != before

    def pool(self, config: KubeConfig, sockets: _Sockets) -> _Pool:
        """A new pool with the credentials of now."""
        import copy

        with self._lock:
            configuration = copy.copy(self._configuration)
        try:
            return _Pool(configuration, config.connections, sockets)
        except (OSError, ValueError) as error:  # CA or key files that are gone, empty or no PEM
            raise PermanentError(f"TLS files of {self.server} cannot be used: {_said(error)}") from error

    def _load(self) -> Any:
        from kubernetes.client.configuration import Configuration
        from kubernetes.config.config_exception import ConfigException

        configuration = Configuration()
        files = self._files()
        try:
            if files or self._config.context or self._config.kubeconfig:
                self._load_files(configuration, files)
            else:
                self._load_in_cluster(configuration)
        except ConfigException as error:
            raise ConfigurationError(f"Kubernetes configuration: {_said(error)}") from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigurationError(f"Kubernetes configuration cannot be read: {_said(error)}") from error
        return configuration

    def _files(self) -> list[str]:
        """Existing kubeconfig files, by kubectl's rules."""
        named = self._config.kubeconfig
        listed = named or os.environ.get("KUBECONFIG", "")
        paths = [Path(p).expanduser() for p in listed.split(os.pathsep) if p]
        if not paths:
            paths = [Path("~/.kube/config").expanduser()]
        found = [str(p) for p in paths if p.is_file()]
        if named and not found:
            raise ConfigurationError(f"kubeconfig {named} does not exist")
        return found

    def _load_files(self, configuration: Any, files: list[str]) -> None:
        import yaml
        from kubernetes.config import kube_config as untyped

        kube_config: Any = untyped

        if not files:
            raise ConfigurationError("a context was named, but there is no kubeconfig (set KUBECONFIG or --kubeconfig)")
        name = os.pathsep.join(files)
        try:
            merged = kube_config.KubeConfigMerger(name).config
        except yaml.YAMLError as error:
            raise ConfigurationError(f"kubeconfig {name} is no YAML: {faults.trim(str(error), 200)}") from error
        plain = _unwrapped(merged)
        contexts = {str(c.get("name")): c for c in plain.get("contexts") or [] if isinstance(c, dict)}
        wanted = self._config.context or str(plain.get("current-context") or "")
        if not wanted:
            raise ConfigurationError(
                f"kubeconfig {name} has no current-context: choose one with --context ({_list(contexts)})"
            )
        if wanted not in contexts:
            raise ConfigurationError(f'kubeconfig {name} has no context "{wanted}"; there are: {_list(contexts)}')
        for what in ("cluster", "user"):
            entry = (contexts[wanted].get("context") or {}).get(what)
            known = {str(e.get("name")): e for e in plain[f"{what}s"] if isinstance(e, dict)}
            if entry is not None and str(entry) not in known:
                raise ConfigurationError(f'context "{wanted}" names {what} "{entry}", which kubeconfig {name} lacks')
        with _logged() as said:
            kube_config.KubeConfigLoader(config_dict=merged, active_context=wanted).load_and_set(configuration)
        user = _user(plain, contexts[wanted])
        credentials = configuration.api_key.get("BearerToken") or configuration.cert_file
        if "exec" in user and not credentials:
            command = user["exec"].get("command", "") if isinstance(user["exec"], dict) else ""
            reason = faults.trim(faults.redact(said[-1]), 200) if said else "it gave neither a token nor a certificate"
            raise ConfigurationError(f'context "{wanted}": the credential plugin {command} failed: {reason}')
        if not str(configuration.host).startswith(("http://", "https://")):
            raise ConfigurationError(f'context "{wanted}": server "{configuration.host}" is no http(s) address')
        self.namespace = str((contexts[wanted].get("context") or {}).get("namespace") or "default")

    def _load_in_cluster(self, configuration: Any) -> None:
        from kubernetes.config import incluster_config as untyped

        incluster_config: Any = untyped

        if not (_SERVICE_ACCOUNT / "token").exists() or not os.environ.get("KUBERNETES_SERVICE_HOST"):
            raise ConfigurationError(
                "no Kubernetes configuration: there is no kubeconfig (KUBECONFIG, ~/.kube/config) and this is no pod "
                "with a service account"
            )
        incluster_config.InClusterConfigLoader(
            token_filename=str(_SERVICE_ACCOUNT / "token"), cert_filename=str(_SERVICE_ACCOUNT / "ca.crt")
        ).load_and_set(configuration)
        with contextlib.suppress(OSError):
            self.namespace = (_SERVICE_ACCOUNT / "namespace").read_text().strip() or "default"


def _unwrapped(node: Any) -> dict[str, Any]:
    """A merged kubeconfig as plain data (the package wraps the file and each entry of its lists)."""
    found = dict(getattr(node, "value", None) or {})
    for key in ("contexts", "clusters", "users"):
        found[key] = [getattr(entry, "value", entry) for entry in found.get(key) or []]
    return found


def _user(plain: Mapping[str, Any], context: Mapping[str, Any]) -> Mapping[str, Any]:
    name = (context.get("context") or {}).get("user")
    for entry in plain.get("users") or []:
        if isinstance(entry, dict) and entry.get("name") == name and isinstance(entry.get("user"), dict):
            return dict(entry["user"])
    return {}


def _list(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names)) or "none"


def _said(error: BaseException) -> str:
    return faults.trim(faults.redact(str(error) or type(error).__name__), 200)


@contextlib.contextmanager
def _logged() -> Iterator[list[str]]:
    """What the kubernetes package says by `logging.error` while it loads: its plugin failures come out no other way.

    A handler on the root logger also keeps `logging.error` from configuring logging for the whole process.
    """
    said: list[str] = []
    here = threading.get_ident()

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == here:
                said.append(record.getMessage())

    handler = Keep(logging.ERROR)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield said
    finally:
        root.removeHandler(handler)


class _Sockets:
    """The open sockets of one client, so that closing it ends whatever a thread waits for on one of them.

    Each is kept as a duplicate of its descriptor: shutting that down ends the connection for everybody, TLS or not,
    also while it is being set up. Connecting itself is done here so that it can be interrupted as well.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[int, socket.socket] = {}
        self._wake, self._woken = socket.socketpair()
        self.closed = False

    def __len__(self) -> int:
        with self._lock:
            return len(self._open)

    def connect(self, host: str, port: int, timeout: Any, source: Any, options: Any) -> socket.socket:
        """A connected TCP socket; tries every address of `host`. Raises OSError or TimeoutError."""
        seconds = timeout if isinstance(timeout, int | float) else None
        last: OSError | None = None
        for family, kind, protocol, _, address in socket.getaddrinfo(host.strip("[]"), port, 0, socket.SOCK_STREAM):
            sock = socket.socket(family, kind, protocol)
            try:
                for option in options or ():
                    sock.setsockopt(*option)
                if source:
                    sock.bind(source)
                self._wait_connected(sock, address, seconds)
                sock.settimeout(seconds)
            except OSError as error:
                last = error
                sock.close()
                continue
            return sock
        raise last or OSError(f"no address for {host}")

    def _wait_connected(self, sock: socket.socket, address: Any, seconds: float | None) -> None:
        sock.setblocking(False)
        code = sock.connect_ex(address)
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_WRITE)
            selector.register(self._woken, selectors.EVENT_READ)
            ready = {key.fileobj for key, _ in selector.select(seconds)}
        if self.closed or self._woken in ready:
            raise OSError("closed while connecting")
        if sock not in ready:
            raise TimeoutError("connecting timed out")
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))

    def add(self, sock: socket.socket) -> int:
        """Track a connected socket; the key is for `drop`."""
        twin = sock.dup()
        with self._lock:
            if self.closed:
                twin.close()
                sock.close()
                raise OSError("closed while connecting")
            self._open[twin.fileno()] = twin
            return twin.fileno()

    def drop(self, key: int) -> None:
        """Forget a socket whose connection is being closed."""
        with self._lock:
            twin = self._open.pop(key, None)
        if twin is not None:
            twin.close()

    def close(self) -> None:
        """Shut every socket down, now and in future."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
            twins = list(self._open.values())
            self._open.clear()
        for twin in twins:
            with contextlib.suppress(OSError):
                twin.shutdown(socket.SHUT_RDWR)
            twin.close()
        self._wake.close()  # the other end becomes readable for everyone who is connecting

    def __del__(self) -> None:
        for sock in (self._wake, self._woken):
            with contextlib.suppress(OSError):
                sock.close()


class _Tracked:
    """Mixed into urllib3's connection class: registers each socket with `_Sockets`."""

    sockets: _Sockets
    _key: int | None = None

    def _new_conn(self) -> socket.socket:
        """urllib3 calls this to connect. Should it stop doing so, only the quick end while connecting is lost."""
        from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

        me: Any = self
        try:
            sock = self.sockets.connect(me._dns_host, me.port, me.timeout, me.source_address, me.socket_options)
            self._key = self.sockets.add(sock)
        except socket.gaierror as error:
            raise NameResolutionError(me.host, me, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(me, f"connecting to {me.host} took too long") from error
        except OSError as error:
            raise NewConnectionError(me, f"cannot connect: {error}") from error
        return sock

    def close(self) -> None:
        key, self._key = self._key, None
        if key is not None:
            self.sockets.drop(key)
        super().close()  # type: ignore[misc]
