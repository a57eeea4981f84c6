"""One spelling for everything that is compared: addresses, endpoints, groups.

The API server stores Endpoints as they are written, neither sorted nor merged, so the spelling is ours to choose:
addresses parsed and rendered again, sorted numerically, one endpoint per address and port group.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from bridge.core.model import Endpoint, Family, Group, Port

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address in canonical form."""

    text: str
    family: Family


@dataclass(frozen=True, slots=True)
class Refused:
    """A text that is an address nobody may be sent to, with the reason; `is_name` when it is no address at all."""

    reason: str
    is_name: bool = False


@lru_cache(maxsize=1 << 16)
def parse(text: str) -> Address | Refused:
    """Parse an address and say whether Kubernetes takes it (its rules for Endpoints, and ranges that are no host's)."""
    if "%" in text or "/" in text:
        return Refused(f"{shorten(text)} is no plain IP address")
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return Refused(f"{shorten(text)} is no IP address", is_name=True)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return Refused(f"{ip} is an IPv4-mapped IPv6 address: register the IPv4 address itself")
    for refused, what in (
        (ip.is_unspecified, "the unspecified address"),
        (ip.is_loopback, "a loopback address: it would mean each client's own machine"),
        (ip.is_link_local, "a link-local address"),
        (ip.is_multicast, "a multicast address"),
        (ip.version == 4 and ip.is_reserved, "in the reserved range 240.0.0.0/4"),
    ):
        if refused:
            return Refused(f"{ip} is {what}")
    return Address(str(ip), Family.IPV4 if ip.version == 4 else Family.IPV6)


@lru_cache(maxsize=1024)
def networks(cidrs: tuple[str, ...]) -> tuple[Network, ...]:
    """Parse CIDRs (validated by the settings; a bad one here is a bug and raises ValueError)."""
    return tuple(ipaddress.ip_network(cidr, strict=False) for cidr in cidrs)


@lru_cache(maxsize=1 << 16)
def excluded(text: str, allow: tuple[str, ...], deny: tuple[str, ...]) -> str | None:
    """Why the rule's CIDRs keep this (canonical) address out, None when they do not."""
    ip = ipaddress.ip_address(text)
    for network in networks(deny):
        if ip.version == network.version and ip in network:
            return f"{text} is in deny_cidrs ({network})"
    if allow and not any(ip.version == n.version and ip in n for n in networks(allow)):
        return f"{text} is not in allow_cidrs"
    return None


@lru_cache(maxsize=1 << 16)
def _order(address: str) -> tuple[int, int]:
    ip = ipaddress.ip_address(address)
    return ip.version, int(ip)


def sort_endpoints(endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    """Endpoints in numerical order of their addresses."""
    return tuple(sorted(endpoints, key=lambda e: _order(e.address)))


def fold(one: Endpoint, other: Endpoint) -> Endpoint:
    """Two registrations of one address and port are one endpoint: ready if either is."""
    better, worse = sorted((one, other), key=lambda e: (e.ready, e.serving, not e.terminating, e), reverse=True)
    return Endpoint(
        address=better.address,
        ready=better.ready,
        serving=better.serving or worse.serving,
        terminating=better.terminating and worse.terminating,
        zone=better.zone or worse.zone,
        node_name=better.node_name or worse.node_name,
    )


def group_endpoints(members: Mapping[tuple[Family, tuple[Port, ...]], Mapping[str, Endpoint]]) -> tuple[Group, ...]:
    """Groups in canonical order, none of them empty."""
    return tuple(
        Group(family, ports, sort_endpoints(endpoints.values()))
        for (family, ports), endpoints in sorted(members.items())
        if endpoints
    )


def shorten(text: str, limit: int = 80) -> str:
    """A text from outside as it may stand in a message: one printable line of bounded length."""
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[: limit + 1])
    return clean if len(clean) <= limit else f"{clean[: limit - 1]}…"
