"""The API server's address and our credentials: configuration, tokens, certificates and TLS, and how they change.

| what changed | noticed | then |
| --- | --- | --- |
| content of certificate, key or CA file | `AUTH_SECONDS`, without requests `CHECK_SECONDS` | a new generation |
| a token file | the same | the next request sends the new token |
| what a plugin gives | it runs before the expiry, and after a 401 | the next request; a certificate: a new generation |
| the kubeconfig itself | after a 401 only | as above, within the same context and server |

`kubectl config use-context` must not move a running bridge: that is why the kubeconfig is not followed.
Clients close their connections when the generation changes: a connection keeps the certificate it was opened with. What
changed and cannot be used (half written, say) leaves the old as it is and is reported as `trouble`.

The `kubernetes` package turns the chosen context into a Configuration (inline data into files, OIDC tokens and their
renewal); plugins, token files, proxies and the merging of files are ours: see kubeconfig.py for why.

Longer than other modules: it is one class, and most of it says which credential of which file was refused, and why.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from bridge.errors import ConfigurationError, TransientError
from bridge.kube import faults, kubeconfig
from bridge.kube.plugin import Credential, Plugin, Renewals
from bridge.proxies import Proxy, checked, proxy_for
from bridge.retry import RetryPolicy

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
AGAIN = RetryPolicy(initial_seconds=1.0, max_seconds=30.0)
"""How soon a certificate that could not be used is tried again."""

AUTH_SECONDS = 1.0
"""How often the bridge checks whether files have changed or a token is due, at most."""
RELOAD_SECONDS = 10.0
"""How often the configuration is read again because of a 401, at most."""
CHECK_SECONDS = 5.0
"""How often files are checked while watches are open and no request is sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    """The configuration as it was read. `files`: what a connection is made with; `plain`: nothing is encrypted."""

    configuration: Any = field(repr=False)
    server: str
    namespace: str
    where: str
    context: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    proxy: Proxy | None = None
    token_file: str = ""
    user_certificate: str = ""
    user_key: str = ""
    ca: str = ""
    names: Mapping[str, str] = field(default_factory=dict)


class Access:
    """Configuration and credentials, shared by a client and its clones. Thread-safe."""

    # attributes: what was loaded, what is used of it and when it is tried again change together, under one lock

    def __init__(self, config: Any) -> None:
        """Load everything and run the plugin, if there is one. Raises ConfigurationError. `config` is a KubeConfig."""
        self._config = config
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], None]] = []
        self._renewals: Renewals | None = None
        self._used = Credential()
        self._authorization = ""
        self._auth_at = self._loaded_at = time.monotonic()
        self._file_trouble = ""
        self._refused, self._try_at = 0, 0.0
        self._stamps: dict[str, tuple[int, ...]] = {}
        self._digests: dict[str, bytes] = {}
        self.generation = 0
        self._loaded = self._load(wanted=config.context)
        self._context: ssl.SSLContext | None = None
        self._renew_tls(self._loaded)
        self.authorization(fresh=True)

    # ------------------------------------------------------------------ what it is

    @property
    def server(self) -> str:
        return _shown(self._loaded.server)

    @property
    def namespace(self) -> str:
        return self._loaded.namespace

    @property
    def where(self) -> str:
        """Where the credentials come from, for messages."""
        return self._loaded.where

    @property
    def proxy(self) -> Proxy | None:
        return self._loaded.proxy

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """The headers for impersonation that every request carries."""
        return self._loaded.headers

    @property
    def unverified(self) -> bool:
        return not self._loaded.configuration.verify_ssl and self._loaded.server.startswith("https")

    @property
    def secrets(self) -> tuple[str, ...]:
        """Credentials in use, to be kept out of messages."""
        header = self._authorization
        proxy = self._loaded.proxy.authorization if self._loaded.proxy is not None else ""
        return tuple(text for text in (header, header.rpartition(" ")[2], proxy) if text)

    @property
    def certificate(self) -> tuple[str, bytes] | None:
        """The client certificate in use, where it stands and its PEM; None without one."""
        loaded = self._loaded
        if not loaded.user_certificate:
            return None
        with contextlib.suppress(OSError):
            return loaded.names.get(loaded.user_certificate, ""), Path(loaded.user_certificate).read_bytes()
        return None

    @property
    def token(self) -> tuple[str, float | None] | None:
        """The bearer token in use and when its plugin says that it ends; None without one."""
        if not self._authorization.lower().startswith("bearer "):
            return None
        expires_at = self._renewals.current().expires_at if self._renewals is not None else None
        return self._authorization.partition(" ")[2], expires_at

    @property
    def token_source(self) -> tuple[str, bool]:
        """Where the token comes from, and whether it stands in the kubeconfig, where nothing renews it."""
        if self._renewals is not None:
            return f"from {self._renewals.plugin.name}", False
        if self._loaded.token_file:
            return f"from {self._loaded.token_file} ({self.where})", False
        return f"in {self.where}", True

    @property
    def trouble(self) -> str:
        """Why changed or due credentials cannot be used, although the old ones still are; "" when all is well."""
        plugin = self._renewals.trouble if self._renewals is not None else ""
        return plugin or self._file_trouble

    def listen(self, listener: Callable[[], None]) -> None:
        with self._lock:
            self._listeners.append(listener)

    def close(self) -> None:
        """Stop the renewals; no client uses it afterwards."""
        if self._renewals is not None:
            self._renewals.close()

    # ------------------------------------------------------------------ credentials

    def authorization(self, *, fresh: bool = False) -> str:
        """The Authorization header's value ("" for client certificates); checks the files when that is due."""
        now = time.monotonic()
        if not fresh and now - self._auth_at < AUTH_SECONDS:
            return self._authorization
        if not self._lock.acquire(blocking=fresh):
            return self._authorization  # another thread reads it; this one does not wait
        try:
            changed = self._look()
            self._auth_at = time.monotonic()
        finally:
            self._lock.release()
        if changed:
            self._tell()
        return self._authorization

    def _look(self) -> bool:
        """Load what has changed; returns whether connections must be recreated."""
        again = self._refused > 0 and time.monotonic() >= self._try_at and self._take_certificate()
        loaded = self._loaded
        changed = self._tls_changed(loaded) or again
        if self._renewals is not None:
            self._used = self._renewals.current()
            token = self._used.token
            self._authorization = f"Bearer {token}" if token else ""
        elif loaded.token_file:
            self._authorization = self._token_from(loaded)
        else:
            with _logged() as said:
                try:
                    value = loaded.configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
                except Exception as error:
                    raise TransientError(f"credentials cannot be renewed: {_said(error)}") from error
            self._authorization = str(value or "").strip()
            if said and not self._authorization:
                raise TransientError(f"credentials cannot be renewed: {faults.trim(faults.redact(said[-1]), 200)}")
        return changed

    def _token_from(self, loaded: _Loaded) -> str:
        try:
            token = Path(loaded.token_file).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            self._file_trouble = f"token file {loaded.token_file} ({loaded.where}) cannot be read: {_said(error)}"
            if not self._authorization:
                raise TransientError(f"credentials cannot be renewed: {self._file_trouble}") from error
            return self._authorization
        if not token:
            self._file_trouble = f"token file {loaded.token_file} ({loaded.where}) is empty"
            return self._authorization
        if self._file_trouble.startswith("token file"):
            self._file_trouble = ""
        return f"Bearer {token}"

    def _tls_changed(self, loaded: _Loaded) -> bool:
        stamps = {path: stamp for path in loaded.names if (stamp := _stamp(path)) is not None}
        if stamps == self._stamps:
            return False
        digests = _digests(loaded.names)
        if digests == self._digests:
            self._stamps = stamps
            return False
        try:
            self._renew_tls(loaded)
        except ConfigurationError as error:
            self._file_trouble = f"{error} (the old one stays in use)"
            return False
        self._stamps = stamps
        self.generation += 1
        return True

    def _renew_tls(self, loaded: _Loaded) -> None:
        """A context from the files as they are now. Raises ConfigurationError, naming the file."""
        if not loaded.server.startswith("https"):
            return
        digests = _digests(loaded.names)
        self._context = _context(loaded)
        self._digests = digests
        self._stamps = {path: stamp for path in loaded.names if (stamp := _stamp(path)) is not None}
        if not self._file_trouble.startswith("token file"):
            self._file_trouble = ""

    def renewed_after_401(self, authorization: str, wait_seconds: float) -> bool:
        """The server refused `authorization`: whether there are other credentials now, or a reason to reconnect."""
        if authorization != self._authorization:
            return True
        if self._renewals is not None:
            renewed = self._renewals.renew(self._used, wait_seconds)
            self.authorization(fresh=True)
            return renewed
        with self._lock:
            if time.monotonic() - self._loaded_at < RELOAD_SECONDS:
                return False
            self._loaded_at = time.monotonic()
            try:
                self._reload()
            except ConfigurationError:
                return False
            certified = bool(self._loaded.user_certificate)
            self.generation += certified
        self.authorization(fresh=True)
        if certified:
            self._tell()
        return certified or self._authorization != authorization

    def _reload(self) -> None:
        """Read the configuration again and use it, all of it or nothing. Under the lock. Raises ConfigurationError.

        That also where another cluster has taken this context's name: it is not what the bridge was started for.
        """
        before, renewals = self._loaded, self._renewals
        try:
            after = self._load(wanted=before.context)
            _refuse_move(before, after)
            self._renew_tls(after)
        except BaseException:
            if self._renewals is not None and self._renewals is not renewals:
                self._renewals.close()
            self._renewals = renewals  # a plugin for another server must not answer for this one
            raise
        self._loaded = after

    def _tell(self) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def _plugin_changed(self) -> None:
        """From the plugin's thread: its certificate may be another one."""
        credential = self._renewals.current() if self._renewals is not None else Credential()
        if credential.certificate:
            with self._lock:
                taken = self._take_certificate()
            if not taken:
                return
            self._tell()
        self.authorization(fresh=True)

    def _take_certificate(self) -> bool:
        """Use the plugin's certificate; what hinders that (a kubeconfig that is half written) is tried again later."""
        try:
            self._reload()
        except ConfigurationError as error:
            self._file_trouble = f"{error} (the old certificate stays in use)"
            self._refused += 1
            self._try_at = time.monotonic() + AGAIN.wait_seconds(self._refused)
            return False
        self._refused = 0
        self.generation += 1
        return True

    # ------------------------------------------------------------------ connections

    def tls_context(self) -> ssl.SSLContext | None:
        """For new connections; None for plain HTTP."""
        return self._context

    def configuration(self) -> Any:
        """A Configuration of the kubernetes package for a pool."""
        import copy

        with self._lock:
            return copy.copy(self._loaded.configuration)

    # ------------------------------------------------------------------ reading it

    def _load(self, wanted: str) -> _Loaded:
        from kubernetes.config.config_exception import ConfigException

        files = kubeconfig.files_of(self._config.kubeconfig)
        try:
            if files or self._config.context or self._config.kubeconfig:
                return self._from_files(files, wanted)
            return _in_cluster()
        except ConfigException as error:
            raise ConfigurationError(f"Kubernetes configuration: {_said(error)}") from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigurationError(f"Kubernetes configuration cannot be read: {_said(error)}") from error

    def _from_files(self, files: list[str], wanted: str) -> _Loaded:
        from kubernetes.config import kube_config as untyped

        package: Any = untyped
        if not files:
            raise ConfigurationError("a context was named, but there is no kubeconfig (set KUBECONFIG or --kubeconfig)")
        context = kubeconfig.read(files, wanted)
        server = str(context.cluster.get("server") or "").rstrip("/")
        if not server.startswith(("http://", "https://")):
            raise ConfigurationError(
                f'kubeconfig {context.cluster_file}: context "{context.name}": server "{server}" is no http(s) address'
            )
        user = dict(context.user)
        self._refuse_plain(server, context, user)
        user |= self._from_plugin(context, user)
        token_file = str(user.pop("tokenFile", "") or "")
        cluster = {key: value for key, value in context.cluster.items() if key != "proxy-url"}
        proxy_url = str(context.cluster.get("proxy-url") or "")
        proxy = (
            checked(proxy_url, f"proxy-url of kubeconfig {context.cluster_file}")
            if proxy_url
            else proxy_for(server, os.environ)
        )
        names = _names(context)
        for path, name in names.items():
            _readable(path, name)
        if token_file and user.get("token") and not Path(token_file).exists():
            token_file = ""  # the token beside it is used, as kubectl does
        if token_file:
            _readable(token_file, f"tokenFile {token_file} (kubeconfig {context.user_file})")
        whole = {
            "current-context": context.name,
            "clusters": [{"name": "cluster", "cluster": {**cluster, "server": server}}],
            "users": [{"name": "user", "user": user}],
            "contexts": [{"name": context.name, "context": {"cluster": "cluster", "user": "user"}}],
        }
        configuration = _configuration()
        with _logged() as said:
            package.KubeConfigLoader(config_dict=whole, active_context=context.name).load_and_set(configuration)
        if "auth-provider" in user and not configuration.api_key.get("BearerToken"):
            reason = faults.trim(faults.redact(said[-1]), 200) if said else "it gave no token"
            raise ConfigurationError(f'context "{context.name}": its auth-provider failed: {reason}')
        return _Loaded(
            configuration=configuration,
            server=server,
            namespace=context.namespace,
            where=f"kubeconfig {context.user_file}",
            context=context.name,
            headers=context.impersonation,
            proxy=proxy,
            token_file=token_file,
            user_certificate=configuration.cert_file or "",
            user_key=configuration.key_file or "",
            ca=configuration.ssl_ca_cert or "",
            names=_inline(configuration, context) | names,
        )

    def _from_plugin(self, context: kubeconfig.Context, user: dict[str, Any]) -> dict[str, Any]:
        """What the plugin gives, as fields of a user; it is asked where there is no other credential."""
        settings = user.pop("exec", None)
        others = ("token", "tokenFile", "client-certificate", "client-certificate-data", "username", "password")
        if settings is None or any(user.get(key) for key in others):
            return {}
        if self._renewals is None or self._renewals.plugin.settings != settings:
            plugin = Plugin(settings, context.cluster, context.user_file)
            renewals = Renewals(plugin, self._plugin_changed)
            renewals.first()
            self._renewals = renewals
        credential = self._renewals.current()
        if not credential.certificate:
            return {}
        return {
            "client-certificate-data": base64.b64encode(credential.certificate.encode()).decode(),
            "client-key-data": base64.b64encode(credential.key.encode()).decode(),
        }

    @staticmethod
    def _refuse_plain(server: str, context: kubeconfig.Context, user: Mapping[str, Any]) -> None:
        """Credentials are never sent in the clear to another machine; kubectl leaves them out there."""
        secret = [
            key for key in ("token", "tokenFile", "username", "password", "exec", "auth-provider") if user.get(key)
        ]
        if secret and server.startswith("http://") and not _is_loopback(server):
            raise ConfigurationError(
                f'kubeconfig {context.cluster_file}: context "{context.name}": {secret[0]} would be sent unencrypted '
                f"to {faults.redact(server)}; write https:// in server, or leave the user's credentials out"
            )


def _refuse_move(before: _Loaded, after: _Loaded) -> None:
    if after.server != before.server:
        raise ConfigurationError(
            f'{after.where}: context "{before.context}" names another server now, {faults.redact(after.server)}; '
            "restart the bridge if it is to go there"
        )


def namespace_of(config: Any) -> str:
    """The namespace that the configuration names, without any credential being read. Raises ConfigurationError."""
    if config.namespace_default:
        return str(config.namespace_default)
    files = kubeconfig.files_of(config.kubeconfig)
    if files:
        return kubeconfig.read(files, config.context).namespace
    with contextlib.suppress(OSError):
        return (SERVICE_ACCOUNT / "namespace").read_text().strip() or "default"
    return "default"


def _in_cluster() -> _Loaded:
    from kubernetes.config import incluster_config as untyped

    package: Any = untyped
    token, ca = SERVICE_ACCOUNT / "token", SERVICE_ACCOUNT / "ca.crt"
    if not token.exists() or not os.environ.get("KUBERNETES_SERVICE_HOST"):
        raise ConfigurationError(
            "no Kubernetes configuration: there is no kubeconfig (KUBECONFIG, ~/.kube/config) and this is no pod "
            "with a service account"
        )
    configuration = _configuration()
    package.InClusterConfigLoader(token_filename=str(token), cert_filename=str(ca)).load_and_set(configuration)
    namespace = "default"
    with contextlib.suppress(OSError):
        namespace = (SERVICE_ACCOUNT / "namespace").read_text().strip() or "default"
    server = str(configuration.host)
    where = "the pod's service account"
    return _Loaded(
        configuration=configuration,
        server=server,
        namespace=namespace,
        where=where,
        proxy=proxy_for(server, os.environ),
        token_file=str(token),
        ca=str(ca),
        names={str(ca): f"{ca} ({where})"},
    )


def _configuration() -> Any:
    """An empty one, with no proxy of the package's choice in it."""
    from kubernetes.client.configuration import Configuration

    return Configuration(proxy="", no_proxy="")


def _names(context: kubeconfig.Context) -> dict[str, str]:
    """The TLS files that a context names, each with its name for messages; inline data goes before a file."""
    fields = (
        ("certificate-authority", context.cluster, context.cluster_file),
        ("client-certificate", context.user, context.user_file),
        ("client-key", context.user, context.user_file),
    )
    return {
        str(entry[key]): f"{key} {entry[key]} (kubeconfig {file})"
        for key, entry, file in fields
        if entry.get(key) and not entry.get(f"{key}-data")
    }


def _inline(configuration: Any, context: kubeconfig.Context) -> dict[str, str]:
    """The files that the package made of inline data, by path, named as the data."""
    pairs = (
        (configuration.ssl_ca_cert, "certificate-authority-data", context.cluster_file),
        (configuration.cert_file, "client-certificate-data", context.user_file),
        (configuration.key_file, "client-key-data", context.user_file),
    )
    return {path: f"{key} (kubeconfig {file})" for path, key, file in pairs if path}


def _readable(path: str, name: str) -> None:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - only whether it can be opened
            file.read(1)
    except OSError as error:
        raise ConfigurationError(f"{name}: {error.strerror or error}") from error


def _context(loaded: _Loaded) -> ssl.SSLContext:
    from urllib3.util.ssl_ import create_urllib3_context

    context = create_urllib3_context()
    if not loaded.configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.check_hostname = True
        context.verify_mode = ssl.CERT_REQUIRED
        if loaded.ca:
            try:
                context.load_verify_locations(cafile=loaded.ca)
            except (OSError, ValueError) as error:
                name = loaded.names.get(loaded.ca, loaded.ca)
                raise ConfigurationError(f"{name}: it holds no certificate in PEM form ({_said(error)})") from error
        else:
            context.load_default_certs()
    if loaded.user_certificate:
        try:
            context.load_cert_chain(loaded.user_certificate, loaded.user_key, password=_no_password)
        except (OSError, ValueError) as error:
            names = [loaded.names.get(path, path) for path in (loaded.user_certificate, loaded.user_key)]
            raise ConfigurationError(
                f"{names[0]} and {names[1]}: they are no certificate and key in PEM form that belong together "
                f"({_said(error)})"
            ) from error
    return context


def _no_password() -> str:
    """A key with a passphrase is refused, instead of a question on the terminal."""
    raise ValueError("the key has a passphrase; store it without")


def _digests(paths: Mapping[str, str]) -> dict[str, bytes]:
    found = {}
    for path in paths:
        with contextlib.suppress(OSError):
            found[path] = hashlib.sha256(Path(path).read_bytes()).digest()
    return found


def _stamp(path: str) -> tuple[int, ...] | None:
    with contextlib.suppress(OSError):
        found = os.stat(path)  # noqa: PTH116 - asked every second
        return (found.st_mtime_ns, found.st_size, found.st_ino)
    return None


def _is_loopback(server: str) -> bool:
    import ipaddress
    from urllib.parse import urlsplit

    host = urlsplit(server).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _said(error: BaseException) -> str:
    return faults.trim(faults.redact(str(error) or type(error).__name__), 200)


@contextlib.contextmanager
def _logged() -> Iterator[list[str]]:
    """What the kubernetes package says by `logging.error` while it loads: some failures come out no other way.

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


@lru_cache(maxsize=8)
def _shown(server: str) -> str:
    """An address without credentials: every request has one."""
    return faults.redact(server)
