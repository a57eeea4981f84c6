"""Names of single endpoints: `vm1.kafka.storage.svc` is the endpoint of the headless Service kafka with hostname `vm1`.

| made of | becomes |
| --- | --- |
| `vm1.ams.example.com` | `vm1`: the first label, as `hostname -s` prints it |
| `VM_1` | `vm-1`: lower-case, every other character is `-` |
| `10.0.0.1`, a node that is named by its address | `10-0-0-1` |
| more than 63 characters | cut, with a hash at the end |
| a text without letters and digits | no hostname |

Clients take all endpoints of one hostname for the same machine, so within a Service a hostname has one address of each
family. What has it in Kubernetes already keeps it, else the first in order of the instances gets it, ready or not:
a name never moves to another machine while the first is registered. The other endpoints are listed without a hostname.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bridge.core.model import Current, Endpoint, Family, Instance, Port
from bridge.core.normalize import truncate
from bridge.core.reasons import Code, Reason
from bridge.core.select import dns_label

NODE = "node"
"""The source of hostnames that is the name of the Consul node; it may be `meta:KEY` or `node-meta:KEY` as well."""

_IPV4 = re.compile(r"[0-9.]+")
_Addresses = dict[Family, set[str]]


@dataclass(frozen=True, slots=True)
class Claim:
    """An instance that gets a hostname made of `value`, if it can; `name` is its own, for people and for the order.

    `is_endpoint`: it is one. What is left out for its health is none, so Kubernetes cannot tell what it had.
    """

    name: str
    source: str
    value: str
    ports: tuple[Port, ...]
    endpoints: tuple[tuple[Family, str], ...]
    is_endpoint: bool = True


def value_of(instance: Instance, source: str) -> str:
    """What an instance's hostname is to be made of, "" when it has none of this source."""
    if source == NODE:
        return instance.node
    kind, _, key = source.partition(":")
    return dict(instance.meta if kind == "meta" else instance.node_meta).get(key, "")


def label(value: str) -> str | None:
    """The hostname that a value makes; None when nothing is left of it."""
    return dns_label(value if _IPV4.fullmatch(value) else value.partition(".")[0])


def assign(claims: Sequence[Claim], current: Current | None) -> list[str | Reason]:
    """The hostname of each claim, or why it has none. `current` tells who has which already."""
    had = _had(current)
    labels = [label(claim.value) for claim in claims]

    def rank(number: int) -> tuple[bool, bool, str, tuple[tuple[Family, str], ...]]:
        claim = claims[number]
        keeping = [had.get(endpoint, {}).get(labels[number] or "", set()) for endpoint in claim.endpoints]
        exact = claim.is_endpoint and any(_numbers(claim.ports) in ports for ports in keeping)
        return not exact, not (claim.is_endpoint and any(keeping)), claim.name, claim.endpoints

    given: list[str] = [""] * len(claims)
    holders: dict[str, tuple[Claim, _Addresses]] = {}
    at: dict[tuple[str, tuple[Port, ...]], tuple[str, Claim]] = {}
    for number in sorted(range(len(claims)), key=rank):
        claim, hostname = claims[number], labels[number]
        if hostname is None or any(at.get(key, (hostname,))[0] != hostname for key in _keys(claim)):
            continue
        holder, theirs = holders.get(hostname, (claim, {}))
        mine: _Addresses = {}
        for family, address in claim.endpoints:
            mine.setdefault(family, set()).add(address)
        if all(a <= theirs[f] if f in theirs else claim.value == holder.value for f, a in mine.items()):
            given[number] = hostname
            holders[hostname] = holder, {**mine, **theirs}
            at.update(dict.fromkeys(_keys(claim), (hostname, claim)))
    return [
        name or _why_none(claim, hostname, holders, at)
        for name, claim, hostname in zip(given, claims, labels, strict=True)
    ]


def _why_none(
    claim: Claim,
    hostname: str | None,
    holders: Mapping[str, tuple[Claim, _Addresses]],
    at: Mapping[tuple[str, tuple[Port, ...]], tuple[str, Claim]],
) -> Reason:
    if not claim.value:
        return Reason(Code.HOSTNAME_ABSENT, source=truncate(claim.source))
    if hostname is None:
        return Reason(Code.HOSTNAME_UNMAPPABLE, source=truncate(claim.source), text=truncate(claim.value))
    for key in _keys(claim):
        if key in at:
            has, other = at[key]
            return Reason(Code.HOSTNAME_SHARED, holder=other.name, hostname=has)
    return Reason(Code.HOSTNAME_TAKEN, holder=holders[hostname][0].name, hostname=hostname)


def without_taken(endpoint: Endpoint, family: Family, holders: Mapping[tuple[Family, str], str]) -> Endpoint:
    """An endpoint that is kept although it should go: without its hostname where another address has that now."""
    if holders.get((family, endpoint.hostname), endpoint.address) == endpoint.address:
        return endpoint
    return Endpoint(
        endpoint.address, endpoint.ready, endpoint.serving, endpoint.terminating, endpoint.zone, endpoint.node_name,
        endpoint.for_zone,
    )  # fmt: skip


def _keys(claim: Claim) -> list[tuple[str, tuple[Port, ...]]]:
    """What becomes one endpoint when two instances have it."""
    return [(address, claim.ports) for _, address in claim.endpoints]


_Numbers = frozenset[tuple[int, str]]


def _numbers(ports: Iterable[Port]) -> _Numbers:
    """Ports without their names, which a Service may change."""
    return frozenset((p.number, p.protocol) for p in ports)


def _had(current: Current | None) -> Mapping[tuple[Family, str], Mapping[str, set[_Numbers]]]:
    """The hostnames of endpoints in a bridge's objects, by their family and address, and with which ports."""
    found: dict[tuple[Family, str], dict[str, set[_Numbers]]] = {}
    for group in current.groups() if current is not None else ():
        for endpoint in group.endpoints:
            if endpoint.hostname:
                at = found.setdefault((group.family, endpoint.address), {})
                at.setdefault(endpoint.hostname, set()).add(_numbers(group.ports))
    return found
