"""Packing groups into EndpointSlices so that one changed instance means one changed slice.

Existing slices keep the endpoints that they have; newcomers fill what has room, fullest first; only then a new slice
is begun. A slice that would be empty is given back for deletion. (Kubernetes' own controller has the same aims.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bridge.core import canonical
from bridge.core.model import CurrentSlice, Endpoint, Group, Target

_NAME_LIMIT = 253


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice as it should be; `existing` is the object that carries it already."""

    name: str
    group: Group
    existing: CurrentSlice | None


def pack(
    target: Target, groups: Iterable[Group], existing: Sequence[CurrentSlice], limit: int
) -> tuple[tuple[Slice, ...], tuple[CurrentSlice, ...]]:
    """The slices that should be, in order of their names, and the existing ones that should not."""
    wanted: list[Slice] = []
    spare: list[CurrentSlice] = []
    taken = {s.meta.name for s in existing}
    left = sorted(existing, key=lambda s: s.meta.name)
    for group in groups:
        same = [s for s in left if (s.group.family, s.group.ports) == (group.family, group.ports)]
        left = [s for s in left if s not in same]
        packed, unused = _pack_group(target, group, same, limit, taken)
        wanted += packed
        spare += unused
    return tuple(sorted(wanted, key=lambda s: s.name)), tuple(sorted((*spare, *left), key=lambda s: s.meta.name))


def _pack_group(
    target: Target, group: Group, existing: Sequence[CurrentSlice], limit: int, taken: set[str]
) -> tuple[list[Slice], list[CurrentSlice]]:
    homeless = {e.address: e for e in group.endpoints}
    kept: list[tuple[CurrentSlice, list[Endpoint]]] = []
    for current in existing:
        mine = [homeless.pop(e.address) for e in current.group.endpoints if e.address in homeless]
        for endpoint in mine[limit:]:
            homeless[endpoint.address] = endpoint
        kept.append((current, mine[:limit]))
    waiting = [e for e in group.endpoints if e.address in homeless]
    for _, members in sorted(kept, key=lambda k: -len(k[1])):
        if members:
            room = limit - len(members)
            members += waiting[:room]
            del waiting[:room]
    for _, members in kept:
        if not members:
            members += waiting[:limit]
            del waiting[:limit]
    packed = [
        Slice(current.meta.name, Group(group.family, group.ports, canonical.sort_endpoints(members)), current)
        for current, members in kept
        if members
    ]
    while waiting:
        members, waiting = waiting[:limit], waiting[limit:]
        packed.append(
            Slice(
                _new_name(target, group, taken),
                Group(group.family, group.ports, canonical.sort_endpoints(members)),
                None,
            )
        )
    return packed, [current for current, members in kept if not members]


def _new_name(target: Target, group: Group, taken: set[str]) -> str:
    """A name that nobody of ours has: the Service's, and a short digest of what the slice is for."""
    number = 0
    while True:
        digest = hashlib.sha256(repr((target.name, group.family, group.ports, number)).encode()).hexdigest()[:8]
        name = f"{target.name[: _NAME_LIMIT - 9]}-{digest}"
        if name not in taken:
            taken.add(name)
            return name
        number += 1
