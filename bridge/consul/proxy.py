"""Which proxy leads to Consul: found as Go's programs find it, Consul's own tools among them.

`HTTPS_PROXY` (or `https_proxy`) for https:// addresses, `HTTP_PROXY` (or `http_proxy`) for http:// ones, unless
`NO_PROXY` (or `no_proxy`) excludes the address. Loopback and Unix sockets are never reached through a proxy.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from bridge.errors import ConfigurationError


class ProxyError(OSError):
    """The proxy could not be used; the text names it and its variable."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy, and the environment variable that names it."""

    host: str
    port: int
    variable: str
    authorization: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"http://{self.authority}"

    @property
    def authority(self) -> str:
        """host:port as it stands in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def named(self) -> str:
        """For messages."""
        return f"the proxy {self} ({self.variable})"


def proxy_of(scheme: str, host: str, port: int, environ: Mapping[str, str]) -> Proxy | None:
    """The proxy for an address, None when it is reached directly. Raises ConfigurationError for one of another kind."""
    if _is_loopback(host) or _excluded(host, port, environ.get("NO_PROXY") or environ.get("no_proxy") or ""):
        return None
    upper = f"{scheme.upper()}_PROXY"
    variable = upper if environ.get(upper) else upper.lower()
    text = environ.get(variable, "").strip()
    if not text:
        return None
    unusable = ConfigurationError(
        f"{variable}: its proxy cannot be used; write http://HOST:PORT, or add {host} to NO_PROXY"
    )
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        proxy_host, proxy_port = parts.hostname or "", parts.port
    except ValueError:
        raise unusable from None
    if parts.scheme != "http":
        raise ConfigurationError(
            f"{variable}: {parts.scheme}:// proxies are not supported; write http://HOST:PORT, or NO_PROXY={host}"
        )
    if not proxy_host or any(c.isspace() for c in proxy_host):
        raise unusable
    authorization = ""
    if parts.username is not None:
        authorization = basic(f"{unquote(parts.username)}:{unquote(parts.password or '')}")
    return Proxy(proxy_host, proxy_port or 80, variable, authorization)


def basic(user_and_password: str) -> str:
    """The value of an Authorization header for `USER:PASSWORD`; without a colon it is a user without a password."""
    text = user_and_password if ":" in user_and_password else f"{user_and_password}:"
    return f"Basic {base64.b64encode(text.encode()).decode()}"


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host.lower().rstrip(".") == "localhost" if address is None else address.is_loopback


def _excluded(host: str, port: int, no_proxy: str) -> bool:
    """Whether an entry of NO_PROXY matches: `*`, an address, a network, a domain with what is below it, `.below`."""
    address, name = _address(host), host.lower().rstrip(".")
    return any(_matches(entry.strip().lower(), address, name, port) for entry in no_proxy.split(","))


def _matches(entry: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None, name: str, port: int) -> bool:
    if entry in ("", "*"):
        return bool(entry)
    if "/" in entry:
        try:
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    text, colon, tail = entry.rpartition(":")
    if colon and tail.isdigit() and (":" not in text or text.startswith("[")):
        if int(tail) != port:
            return False
        entry = text
    entry = entry.removeprefix("[").removesuffix("]")
    if (meant := _address(entry)) is not None:
        return meant == address
    if address is not None:
        return False
    below = entry.removeprefix("*")
    if below.startswith("."):
        return name.endswith(below)
    return name == below or name.endswith(f".{below}")
