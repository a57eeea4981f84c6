"""Which proxy a request goes through, by the rules of Go's net/http, which kubectl and Consul's own tools follow.

    proxy-url of a kubeconfig      always, whatever the environment says, NO_PROXY and loopback included
    HTTPS_PROXY, https_proxy       for https:// addresses
    HTTP_PROXY, http_proxy         for http:// addresses
    NO_PROXY, no_proxy             hosts that are reached directly; loopback always is

It is a leaf: it knows neither Consul nor Kubernetes, and sends nothing.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from bridge.errors import ConfigurationError

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy and where it was named: a variable's name, or a file and its field."""

    url: str = field(repr=False)
    source: str

    @property
    def address(self) -> str:
        """The URL without user and password, for messages."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    @property
    def authorization(self) -> str:
        """Value of Proxy-Authorization, "" when the URL names no user."""
        parts = urlsplit(self.url)
        if parts.username is None:
            return ""
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"

    def __str__(self) -> str:
        return f"the proxy {self.address} ({self.source})"


def proxy_for(address: str, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy that the environment names for an http(s) address, None for a direct connection.

    Raises ConfigurationError when the variable's value cannot be used.
    """
    parts = urlsplit(address)
    names = {"https": ("HTTPS_PROXY", "https_proxy"), "http": ("HTTP_PROXY", "http_proxy")}.get(parts.scheme, ())
    name = next((n for n in names if environment.get(n)), "")
    if not name or not parts.hostname:
        return None
    port = parts.port or _PORTS[parts.scheme]
    exceptions = environment.get("NO_PROXY") or environment.get("no_proxy") or ""
    if not _proxied(parts.hostname.lower(), port, exceptions):
        return None
    return checked(environment[name], name)


def checked(url: str, source: str) -> Proxy:
    """A proxy that we can speak to. Raises ConfigurationError, naming where it stands."""
    whole = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(whole)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if not host:
        raise ConfigurationError(f"{source}: it is no address of a proxy; write it as http://HOST:PORT")
    if parts.scheme not in _PORTS:
        raise ConfigurationError(
            f"{source}: {parts.scheme}:// proxies are not supported; name an http:// or https:// proxy"
        )
    return Proxy(whole, source)


def _proxied(host: str, port: int, exceptions: str) -> bool:
    if host == "localhost":
        return False
    address = _address(host)
    if address is not None and address.is_loopback:
        return False
    return not any(_matches(entry.strip().lower(), host, port, address) for entry in exceptions.split(","))


def _matches(entry: str, host: str, port: int, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> bool:
    """Whether an entry of NO_PROXY covers a host: `*`, an address, a network, a domain; all but `*` with a port."""
    if not entry:
        return False
    if entry == "*":
        return True
    if "/" in entry:
        try:
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    name, only = _split(entry)
    if only is not None and only != port:
        return False
    named = _address(name)
    if named is not None or address is not None:
        return named == address
    name = name.removeprefix("*")
    return host.endswith(name) if name.startswith(".") else host == name or host.endswith(f".{name}")


def _split(entry: str) -> tuple[str, int | None]:
    """Host and port of an entry; an IPv6 address needs brackets to have a port."""
    if entry.startswith("["):
        host, _, rest = entry[1:].partition("]")
        return host, int(rest[1:]) if rest[1:].isdecimal() else None
    if entry.count(":") == 1:
        host, _, text = entry.partition(":")
        return host, int(text) if text.isdecimal() else None
    return entry, None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
