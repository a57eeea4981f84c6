"""What the control plane's mirroring controller makes of an Endpoints object, and when it cannot carry one.

kube-proxy reads EndpointSlices only. Of Endpoints without `skip-mirror`, kube-controller-manager makes slices; before
that it takes the subsets apart and packs them again (seen on 1.37.2; docs/kubernetes.md has the measurements):

1. Each port gets the set of (address, ready) that it has in any subset; not ready in one subset wins.
2. Ports with equal sets become one subset.
3. A subset becomes one slice per IP family, ready addresses first, cut to 1,000 addresses.

A port with an `appProtocol` is another port in each subset (the controller compares pointers). Two ports of one name
in one slice are refused by the API server, for as long as the sets stay equal; the controller says so in its own log
only, and stops there: none of the object's other slices is certain then either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bridge.core import normalize
from bridge.core.model import Endpoint, Family, Group, Port

MIRRORING_LIMIT = 1000
"""Addresses per subset that the control plane copies into EndpointSlices (Kubernetes' default)."""

MARGIN = 900
"""From so many addresses of one subset on, slices of ours that have them stay: a service near the limit must not get
and lose slices with each instance."""

MIRROR_COSTS = (
    "that is slower (20 a second by default), ends at 1,000 addresses, and has no place for two ports of one name"
)
"""What it means to depend on the control plane's mirror."""

Addresses = Mapping[str, tuple[Family, bool]]
"""Family and readiness by address."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Why the Endpoints are not mirrored."""

    reason: str


@dataclass(slots=True)
class _Set:
    """Ports that have the same addresses, and these."""

    ports: list[Port]
    addresses: Addresses


def slices_of(groups: Iterable[Group]) -> tuple[Group, ...] | Refused:
    """The mirror of Endpoints with these groups, one group per slice; equal port sets of one family are one slice."""
    groups = tuple(groups)
    hostnames = _hostnames(groups)
    slices: dict[tuple[Family, tuple[Port, ...]], dict[str, Endpoint]] = {}
    for subset in _repacked(groups):
        repeated = _repeated(subset.ports)
        if repeated:
            return Refused(_refusal(repeated, subset))
        kept = sorted(subset.addresses.items(), key=lambda item: (not item[1][1], item[0]))[:MIRRORING_LIMIT]
        for address, (family, ready) in kept:
            members = slices.setdefault((family, tuple(sorted(subset.ports))), {})
            members[address] = Endpoint(address, ready, serving=ready, hostname=hostnames[address][0])
    return normalize.group_endpoints(slices)


def why_not_mirrored(groups: Iterable[Group]) -> str:
    """Why the mirror of these Endpoints would not have every endpoint as it should be; "" when it has."""
    groups = tuple(groups)
    if len(groups) == 1 and len(groups[0].endpoints) <= MIRRORING_LIMIT:
        return ""  # almost always
    largest = max((len(subset.addresses) for subset in _repacked(groups)), default=0)
    if largest > MIRRORING_LIMIT:
        return (
            f"it copies {MIRRORING_LIMIT} addresses of one set of ports into EndpointSlices at most, and here are "
            f"{largest}"
        )
    for address, hostnames in _hostnames(groups).items():
        if len(hostnames) > 1:
            shown = " and ".join(name or "none" for name in hostnames)
            return f"it gives an address one hostname, and {address} has {shown} in different subsets"
    mirror = slices_of(groups)
    if isinstance(mirror, Refused):
        return mirror.reason
    lost = sorted(_ready(groups) - _ready(mirror))
    if lost:
        address, port = lost[0]
        return f"{address} is ready on port {port.number} in one subset and not in another, so it takes it as not ready"
    return ""


def _hostnames(groups: Iterable[Group]) -> dict[str, list[str]]:
    """The hostnames of each address, the one that the mirror takes first."""
    found: dict[str, list[str]] = {}
    for group in groups:
        for endpoint in group.endpoints:
            names = found.setdefault(endpoint.address, [])
            names += [] if endpoint.hostname in names else [endpoint.hostname]
    return found


def may_refuse(groups: Iterable[Group]) -> bool:
    """Whether the mirror of such Endpoints may stop carrying them when an instance comes, goes or falls ill.

    That is so where one port name stands for several ports, and close to the limit.
    """
    subsets = _repacked(groups)
    ports = [port for subset in subsets for port in subset.ports]
    return bool(_repeated(ports)) or any(len(subset.addresses) > MARGIN for subset in subsets)


def _repacked(groups: Iterable[Group]) -> list[_Set]:
    """Steps 1 and 2."""
    by_port: dict[tuple[Port | None, tuple[Port, ...]], dict[str, tuple[Family, bool]]] = {}
    for group in groups:
        for port in group.ports or (None,):
            addresses = by_port.setdefault((port, group.ports if port is not None and port.app_protocol else ()), {})
            for endpoint in group.endpoints:
                _, before = addresses.get(endpoint.address, (group.family, True))
                addresses[endpoint.address] = group.family, endpoint.ready and before
    packed: dict[frozenset[tuple[str, tuple[Family, bool]]], _Set] = {}
    for (port, _), addresses in by_port.items():
        packed.setdefault(frozenset(addresses.items()), _Set([], addresses)).ports += [] if port is None else [port]
    return list(packed.values())


def _repeated(ports: Iterable[Port]) -> tuple[Port, ...]:
    """Ports whose name another one has as well."""
    ports = tuple(ports)
    names = Counter(port.name for port in ports)
    return tuple(sorted(port for port in ports if names[port.name] > 1))


def _refusal(repeated: tuple[Port, ...], subset: _Set) -> str:
    name = repeated[0].name
    numbers = sorted({p.number for p in repeated if p.name == name})
    some = ", ".join(map(str, numbers[:4])) + (f" and {len(numbers) - 4} more" if len(numbers) > 4 else "")
    called = f"called {name!r}" if name else "without a name"
    count = len(subset.addresses)
    whose = f"the same address, {min(subset.addresses)}" if count == 1 else f"the same {count} addresses"
    return f"the ports {some}, all {called}, have {whose}, and one EndpointSlice cannot have two ports of one name"


def _ready(groups: Iterable[Group]) -> set[tuple[str, Port]]:
    return {(e.address, p) for g in groups for e in g.endpoints if e.ready for p in g.ports}
