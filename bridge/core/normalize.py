"""One spelling for everything that is compared: addresses, endpoints, groups.

The API server stores Endpoints as they are written, neither sorted nor merged, so the spelling is ours to choose:
addresses parsed and rendered again, sorted numerically, one endpoint per address and port group.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from bridge.core.model import Endpoint, Family, Group, Port
from bridge.core.reasons import Code, Reason

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
Order = tuple[int, int]
"""An address as its version and number."""
Members = Mapping[tuple[Family, tuple[Port, ...]], Mapping[str, Endpoint]]
"""Endpoints by address, by the group that they are in."""

_CACHED = 1 << 12
"""Addresses and endpoints whose parsed form, order and value are remembered: those of the services that are planned
just now. With 65,536, those of 20,000 instances took 9 MB and more, and addresses that were long gone stayed; without
them a change of a service that was not planned for a while takes 4 us more for each instance."""

_ADDRESS_LENGTH = 64
"""No address is longer; longer texts are not cached, so that input cannot fill our memory with them."""

_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))

_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_USUAL_HOST = re.compile(
    r"(?!0\.|127\.|169\.254\.|22[4-9]\.|2[3-5][0-9]\.)" + rf"{_BYTE}\.{_BYTE}\.{_BYTE}\.{_BYTE}\Z", re.ASCII
)
"""IPv4 addresses in canonical form that `_no_host` has nothing against: nearly all there are, and ten times as fast."""

_HOST_NAME = re.compile(r"(?=.{1,253}\Z)([A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?\.)*"
                        r"(?=[A-Za-z0-9-]*[A-Za-z])[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?\.?\Z")  # fmt: skip

_WITH_MORE = re.compile(r"\s*(?:[A-Za-z][A-Za-z+]*://)?(?:\[([0-9A-Fa-f:.]+)\]|([^\s/:\[\]]+))(?::\d*)?/?\s*")


@dataclass(frozen=True, slots=True)
class Address:
    text: str
    family: Family


@dataclass(frozen=True, slots=True)
class Refused:
    """An address that traffic must not be sent to, with the reason; `is_name` when it is a host name that may be
    resolved."""

    reason: Reason
    is_name: bool = False


def parse(text: str) -> Address | Refused:
    """Parse an address and say whether it is a host's (Kubernetes' own rules for Endpoints, and a little more).

    Kubernetes takes multicast beyond 224.0.0.0/24, 240.0.0.0/4 and the broadcast address; no host has one of them.
    """
    return _parse(text) if len(text) <= _ADDRESS_LENGTH else _named(text)


@lru_cache(maxsize=_CACHED)
def _parse(text: str) -> Address | Refused:
    if _USUAL_HOST.match(text):
        return Address(text, Family.IPV4)
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return _named(text)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None:
            return Refused(Reason(Code.ADDRESS_ZONE, address=truncate(text)))
        if ip.ipv4_mapped is not None:
            return Refused(Reason(Code.ADDRESS_IPV4_MAPPED, address=ip))
    inner = embedded(ip)
    if (code := _no_host(ip)) is not None:
        return Refused(Reason(code, address=ip))
    if inner is not None and (code := _no_host(inner)) is not None:
        return Refused(Reason(Code.ADDRESS_EMBEDDED, address=ip, inner=Reason(code, address=inner)))
    return Address(str(ip), Family.IPV4 if ip.version == 4 else Family.IPV6)


def _no_host(ip: Ip) -> Code | None:
    """What an address is instead of a host's, None when it may be one."""
    for refused, code in (
        (ip.is_unspecified, Code.ADDRESS_UNSPECIFIED),
        (ip.version == 4 and ip in _THIS_NETWORK, Code.ADDRESS_THIS_NETWORK),
        (ip.is_loopback, Code.ADDRESS_LOOPBACK),
        (ip.is_link_local, Code.ADDRESS_LINK_LOCAL),
        (ip.version == 6 and ip.is_site_local, Code.ADDRESS_SITE_LOCAL),
        (ip.is_multicast, Code.ADDRESS_MULTICAST),
        (ip.version == 4 and ip.is_reserved, Code.ADDRESS_RESERVED),
    ):
        if refused:
            return code
    return None


def embedded(ip: Ip) -> ipaddress.IPv4Address | None:
    """The IPv4 host that packets to an IPv6 address may end at, None for every other address.

    A translator or tunnel on the way unpacks it: 6to4 (RFC 3056), Teredo (RFC 4380), NAT64 (RFC 6052 and 8215), ISATAP
    (RFC 5214) and the old IPv4-compatible form (RFC 4291). Whether there is one cannot be known here, so whatever
    judges an address judges the embedded one as well.
    """
    if not isinstance(ip, ipaddress.IPv6Address):
        return None
    if ip.sixtofour is not None:
        return ip.sixtofour
    if ip.teredo is not None:
        return ip.teredo[1]
    number = int(ip)
    isatap = (number >> 32) & 0xFDFFFFFF == 0x5EFE
    if isatap or ip in _COMPATIBLE or any(ip in network for network in _NAT64):
        return ipaddress.IPv4Address(number & 0xFFFFFFFF)
    return None


def _named(text: str) -> Refused:
    """What is no address: a host name, or nothing that could be asked of a resolver (`010.0.0.1` is neither)."""
    if _HOST_NAME.match(text):
        return Refused(Reason(Code.HOST_NAME, name=truncate(text)), is_name=True)
    meant = _meant(text)
    hint = f"; register {truncate(meant)} alone" if meant else ""
    return Refused(Reason(Code.NOT_AN_ADDRESS, text=truncate(text), hint=hint))


def _meant(text: str) -> str:
    """The host in a text with a scheme, a port, brackets or blanks around it, as some register it; "" for others."""
    found = _WITH_MORE.fullmatch(text)
    host = found[1] or found[2] if found else text
    read = parse(host) if host != text else None
    return host if isinstance(read, Address) or (read is not None and read.is_name) else ""


@lru_cache(maxsize=1024)
def _ranges(cidrs: tuple[str, ...]) -> tuple[tuple[Order, Order, Network], ...]:
    """The first and last address of CIDRs (validated by the settings; a bad one is a bug and raises ValueError)."""
    networks = [ipaddress.ip_network(cidr, strict=False) for cidr in cidrs]
    return tuple(((n.version, int(n.network_address)), (n.version, int(n.broadcast_address)), n) for n in networks)


def excluded(text: str, allow: tuple[str, ...], deny: tuple[str, ...], section: str = "") -> Reason | None:
    """Why the CIDRs of a rule, or of `section`, keep this (canonical) address out, None when they do not.

    Deny wins over allow, and an IPv4 address that is `embedded` is denied like one that stands by itself.
    """
    if not (allow or deny):
        return None
    here = _order(text)
    inner = embedded(ipaddress.IPv6Address(here[1])) if here[0] == 6 else None
    unpacked = None if inner is None else (4, int(inner))
    for first, last, network in _ranges(deny):
        if first <= here <= last:
            return Reason(Code.CIDR_DENIED, address=text, section=section, network=network)
        if unpacked is not None and first <= unpacked <= last:
            return Reason(Code.CIDR_DENIED_EMBEDDED, address=text, inner=inner, section=section, network=network)
    if allow and not any(first <= here <= last for first, last, _ in _ranges(allow)):
        return Reason(Code.CIDR_NOT_ALLOWED, address=text, section=section)
    return None


@lru_cache(maxsize=_CACHED)
def _order(address: str) -> Order:
    if _USUAL_HOST.match(address):
        return 4, int.from_bytes(bytes(map(int, address.split("."))))
    ip = ipaddress.ip_address(address)
    return ip.version, int(ip)


def _by_address(endpoint: Endpoint) -> tuple[int, int]:
    return _order(endpoint.address)


def sort_endpoints(endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    """Endpoints in numerical order of their addresses. Raises ValueError for what is no address."""
    return tuple(sorted(endpoints, key=_by_address))


@lru_cache(maxsize=_CACHED)
def endpoint_of(
    address: str, ready: bool, serving: bool, terminating: bool, zone: str, node_name: str, for_zone: str, hostname: str
) -> Endpoint:
    """The endpoint of these values: an instance, its slice and its Endpoints object share one in memory."""
    return Endpoint(address, ready, serving, terminating, zone, node_name, for_zone, hostname)


def merge(one: Endpoint, other: Endpoint) -> Endpoint:
    """Two registrations of one address and port are one endpoint: ready if either is, else the better of the two.

    Folding gives the same whatever the order: zone, node and hostname are the first of those that are given.
    """
    better = max(one, other, key=lambda e: (e.ready, e.serving, not e.terminating))
    return Endpoint(
        address=better.address,
        ready=better.ready,
        serving=better.serving,
        terminating=better.terminating,
        zone=min(filter(None, (one.zone, other.zone)), default=""),
        node_name=min(filter(None, (one.node_name, other.node_name)), default=""),
        for_zone=min(filter(None, (one.for_zone, other.for_zone)), default=""),
        hostname=min(filter(None, (one.hostname, other.hostname)), default=""),
    )


def group_endpoints(members: Members) -> tuple[Group, ...]:
    """Groups in canonical order, none of them empty."""
    return tuple(
        Group(family, ports, sort_endpoints(endpoints.values()))
        for (family, ports), endpoints in sorted(members.items(), key=_by_group)
        if endpoints
    )


def _by_group(item: tuple[tuple[Family, tuple[Port, ...]], object]) -> tuple[Family, tuple[Port, ...]]:
    return item[0]


def without_conditions(groups: Iterable[Group]) -> tuple[Group, ...]:
    """What an Endpoints object can hold of groups: addresses that are ready or not, and hostnames."""
    return tuple(
        g if all(map(_is_plain, g.endpoints)) else Group(g.family, g.ports, tuple(map(_plain, g.endpoints)))
        for g in groups
    )


def _is_plain(endpoint: Endpoint) -> bool:
    more = endpoint.terminating or endpoint.zone or endpoint.node_name or endpoint.for_zone
    return endpoint.serving is endpoint.ready and not more


def _plain(endpoint: Endpoint) -> Endpoint:
    return Endpoint(endpoint.address, endpoint.ready, serving=endpoint.ready, hostname=endpoint.hostname)


def truncate(text: str, limit: int = 80) -> str:
    """A text from outside as it may stand in a message: one printable line of bounded length."""
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[: limit + 1])
    return clean if len(clean) <= limit else f"{clean[: limit - 1]}…"


def some_of(names: Sequence[str]) -> str:
    """The first three of some foreign names, shortened, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(truncate, names[:3])) + more
