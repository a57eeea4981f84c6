"""What connections are made to: the address, port number and protocol of endpoints, whichever objects have them."""

from __future__ import annotations

from collections.abc import Iterable

from bridge.core.model import NO_PORTS, Endpoint, Family, Group, Port

Pair = tuple[str, int, str]
"""An address, a port number and its protocol: what a connection is made to."""


def ready_endpoints(groups: Iterable[Group]) -> dict[tuple[Family, str, tuple[Port, ...]], Endpoint]:
    """Ready endpoints, each once, however many objects have it; of slices and Endpoints the slice's, it tells more."""
    found: dict[tuple[Family, str, tuple[Port, ...]], Endpoint] = {}
    for group in groups:
        for endpoint in group.endpoints:
            if endpoint.ready:
                found.setdefault((group.family, endpoint.address, group.ports), endpoint)
    return found


def pair_of(address: str, port: Port) -> Pair:
    return address, port.number, port.protocol


def pairs_at(address: str, ports: tuple[Port, ...]) -> list[Pair]:
    """What connections to an endpoint are made to; for one without ports its address counts."""
    return [pair_of(address, p) for p in ports or NO_PORTS]


def pairs_in(groups: Iterable[Group]) -> set[Pair]:
    return {pair_of(e.address, p) for g in groups for e in g.endpoints for p in g.ports or NO_PORTS}


def ready_pairs(groups: Iterable[Group]) -> set[Pair]:
    return {pair_of(e.address, p) for g in groups for e in g.endpoints if e.ready for p in g.ports or NO_PORTS}
