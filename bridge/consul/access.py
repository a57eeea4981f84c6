"""What all connections of one process to one Consul share: TLS, proxy, token, memory, and how long queries may wait.

It is part of the config and made at first use, so that all users of one config share one login. `close` logs out.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bridge.consul import faults
from bridge.consul.credentials import Credentials, FixedToken, Login, TokenFile
from bridge.consul.memory_budget import MemoryBudget
from bridge.consul.ratelimit import WaitLimit
from bridge.consul.tls import Tls
from bridge.consul.transport import Endpoint, Interrupted, TooLarge, Transport, parse_address
from bridge.errors import CancelledError, ConfigurationError, TransientError
from bridge.proxies import Proxy, proxy_for

if TYPE_CHECKING:
    from bridge.consul.client import ConsulConfig

LOGIN_SECONDS, LOGOUT_SECONDS = 10.0, 3.0


@dataclass(frozen=True, slots=True)
class Parts:
    endpoint: Endpoint
    tls: Tls | None
    proxy: Proxy | None
    authorization: str
    credentials: Credentials
    room: MemoryBudget
    wait_limit: WaitLimit
    ca_path: bool = False
    """Whether the CAs of a directory are trusted, not those of a file."""

    def secrets(self, *further: str) -> tuple[str, ...]:
        """Texts that must not be quoted from answers, also where a server sends our own headers back."""
        proxy = self.proxy.authorization if self.proxy is not None else ""
        headers = (text.partition(" ")[2] for text in (self.authorization, proxy))
        return (*self.credentials.secrets(), *headers, *further)

    @property
    def server(self) -> str:
        """Consul's address for messages, with the proxy on the way to it."""
        return f"{self.endpoint} through {self.proxy}" if self.proxy is not None else str(self.endpoint)

    def generation(self) -> tuple[object, ...]:
        """Changes when certificates or tokens do: what was refused may be granted now."""
        return (self.tls.generation() if self.tls is not None else 0, self.credentials.generation())


@dataclass(slots=True)
class Access:
    """See the module. Any thread."""

    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _parts: dict[ConsulConfig, Parts] = field(default_factory=dict, repr=False)

    def parts(self, config: ConsulConfig) -> Parts:
        """The same for all clients of a config. Raises ConfigurationError for settings that cannot be used."""
        with self._lock:
            found = self._parts.get(config)
            if found is None:
                found = self._parts[config] = _made(config)
            return found

    def close(self) -> None:
        """Log out, where a login was made for us. Takes a few seconds at most; call it when all clients are closed."""
        with self._lock:
            parts = tuple(self._parts.values())
        for part in parts:
            part.credentials.close()


def warnings_of(config: ConsulConfig) -> tuple[str, ...]:
    """What the operator ought to know about the way to Consul, for log, readiness and check."""
    parts = config.access.parts(config)
    endpoint = parts.endpoint
    texts = []
    if endpoint.scheme == "https" and not config.verify:
        texts.append(
            f"the certificate of {endpoint} is not verified (consul.verify, CONSUL_HTTP_SSL_VERIFY): a host on the "
            "path can read the token and choose endpoints; set consul.ca_file instead"
        )
    secrets = [
        name
        for name, given in (
            ("the ACL token", config.token or config.token_file or config.auth_method),
            ("the password of consul.http_auth", config.http_auth),
        )
        if given
    ]
    if endpoint.scheme == "http" and secrets and not endpoint.is_local:
        texts.append(
            f"{' and '.join(secrets)} {'is' if len(secrets) == 1 else 'are'} sent to {endpoint} unencrypted: write "
            "https:// in consul.address, or use an agent on this host"
        )
    if parts.wait_limit.note:
        texts.append(parts.wait_limit.note)
    return tuple(texts)


def _made(config: ConsulConfig) -> Parts:
    endpoint = parse_address(config.address)
    tls = None
    if endpoint.scheme == "https":
        tls = Tls(config.ca_file, config.client_cert, config.client_key, config.verify, config.ca_path)
    proxy = None if endpoint.unix_path else proxy_for(str(endpoint), dict(config.proxies))
    if proxy is not None and not proxy.url.startswith("http://"):
        raise ConfigurationError(
            f"{proxy.source}: {proxy.address}: Consul is not reached through https:// proxies; name an http:// proxy, "
            f"or add {endpoint.host} to NO_PROXY"
        )
    authorization = _basic(config.http_auth) if config.http_auth else ""
    room = MemoryBudget(max(config.max_answer_bytes // 4, 1 << 20))
    credentials: Credentials
    if config.auth_method:

        def ask(what: str, path: str, headers: Mapping[str, str], body: bytes) -> Any:
            return _post(config, parts, what, path, headers, body)

        credentials = Login(config.auth_method, config.auth_token_file, ask, meta=socket.gethostname())
    elif config.token_file:
        credentials = TokenFile(config.token_file)
    else:
        credentials = FixedToken(config.token)
    limit, ca_path = WaitLimit(time.monotonic), bool(config.ca_path and not config.ca_file)
    parts = Parts(endpoint, tls, proxy, authorization, credentials, room, limit, ca_path)
    return parts


def _basic(user_and_password: str) -> str:
    """The value of an Authorization header for `USER:PASSWORD`; without a colon it is a user without a password."""
    text = user_and_password if ":" in user_and_password else f"{user_and_password}:"
    return f"Basic {base64.b64encode(text.encode()).decode()}"


def transport_of(config: ConsulConfig, parts: Parts, **more: Any) -> Transport:
    return Transport(
        parts.endpoint,
        parts.tls,
        server_name=config.tls_server_name,
        connect_timeout=config.connect_timeout_seconds,
        max_body_bytes=config.max_answer_bytes,
        finish_seconds=config.timeout_margin_seconds,
        proxy=parts.proxy,
        authorization=parts.authorization,
        room=parts.room,
        **more,
    )


def _post(config: ConsulConfig, parts: Parts, what: str, path: str, headers: Mapping[str, str], body: bytes) -> Any:
    """One POST on a connection of its own; the decoded answer, None for an empty one."""
    params: Sequence[tuple[str, str]] = [
        (name, value) for name, value in (("ns", config.namespace), ("partition", config.partition)) if value
    ]
    asked = faults.RequestInfo(
        what=what,
        server=parts.server,
        authorized=bool(parts.authorization),
        ca_path=parts.ca_path,
        secrets=parts.secrets(),
    )
    transport = transport_of(config, parts)
    transport.timeout = LOGIN_SECONDS if body else LOGOUT_SECONDS
    try:
        response = transport.send(path, params, headers, body)
    except Interrupted:
        raise CancelledError("the connection to Consul was closed by us") from None
    except (OSError, TooLarge, http.client.HTTPException, zlib.error) as error:
        raise faults.of_exception(asked, error) from error
    finally:
        transport.close()
        transport.give_back()
    if response.code != 200:
        raise faults.of_login(asked, response.code, response.headers, response.content)
    try:
        return json.loads(response.content) if response.content.strip() not in (b"", b"true") else None
    except ValueError:
        raise TransientError(f"the answer of {asked.server} to {asked} is not JSON, or is torn off") from None
