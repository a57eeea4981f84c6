"""Packing groups into EndpointSlices so that one changed instance means one changed slice.

Existing slices keep the endpoints that they have; newcomers fill what has room, fullest first; only then a new slice
is begun. A slice that would be empty is given back for deletion. (Kubernetes' own controller has the same aims.)

An address that moves from one slice to another has to be in the new one first. Where a slice would take some and give
others away at once, what it takes goes into a new slice: of two slices that exchange addresses neither can be first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from bridge.core import normalize
from bridge.core.model import CurrentSlice, Endpoint, Family, Group, Port, Target
from bridge.core.select import digest


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice as it should be; `existing` is the object that carries it already."""

    name: str
    group: Group
    existing: CurrentSlice | None


def pack(
    target: Target, groups: Iterable[Group], existing: Sequence[CurrentSlice], limit: int
) -> tuple[tuple[Slice, ...], tuple[CurrentSlice, ...]]:
    """The slices that should be, in order of their names, and the existing ones that should not.

    Slices that are being deleted are as good as gone; only their names are still taken.
    """
    wanted: list[Slice] = []
    surplus: list[CurrentSlice] = []
    taken = {s.meta.name for s in existing}
    usable: dict[tuple[Family, tuple[Port, ...]], list[CurrentSlice]] = {}
    for current in sorted(existing, key=_by_name):
        if not current.meta.deleting:
            usable.setdefault((current.group.family, current.group.ports), []).append(current)
    for group in groups:
        packed, unused = _pack_group(target, group, usable.pop((group.family, group.ports), []), limit, taken)
        wanted += packed
        surplus += unused
    surplus += [current for left in usable.values() for current in left]
    wanted, emptied = _uncrossed(target, wanted, existing, taken)
    return tuple(sorted(wanted, key=lambda s: s.name)), tuple(sorted((*surplus, *emptied), key=_by_name))


def missing(target: Target, groups: Iterable[Group], existing: Sequence[CurrentSlice], limit: int) -> tuple[Slice, ...]:
    """New slices for what was never written, where those that stand may not be changed, nor get others beside them.

    | of a group stand | so |
    | --- | --- |
    | no slices | what is carried nowhere gets new ones |
    | some, each of them full or one of their numbers lacking | one was refused: the same |
    | others | nothing: what no slice carries came later |

    What a slice has under ports that it is not wanted under any more counts as carried: it has moved since, and would
    be there twice.
    """
    groups, taken = tuple(groups), {s.meta.name for s in existing}
    standing = [s.group for s in existing if not s.meta.deleting]
    names = {s.meta.name for s in existing if not s.meta.deleting}
    wanted = {(g.family, e.address, g.ports) for g in groups for e in g.endpoints}
    held = {(g.family, e.address, g.ports) for g in standing for e in g.endpoints}
    moved = {(family, address) for family, address, _ in held - wanted}
    found: list[Slice] = []
    for group in groups:
        mine = [g for g in standing if (g.family, g.ports) == (group.family, group.ports)]
        numbers = range(len(existing) + -(-len(group.endpoints) // limit))
        stand = [_name(target, group, n) in names for n in numbers]
        is_cut = sorted(stand, reverse=True) != stand
        if is_cut or all(len(g.endpoints) >= limit for g in mine):
            left = [
                e
                for e in group.endpoints
                if (group.family, e.address, group.ports) not in held and (group.family, e.address) not in moved
            ]
            found += _pack_group(target, replace(group, endpoints=tuple(left)), (), limit, taken)[0]
    return tuple(sorted(found, key=lambda s: s.name))


def addresses_in(wanted: Iterable[Slice]) -> set[str]:
    return {e.address for piece in wanted for e in piece.group.endpoints}


def gives_away(piece: Slice, listed: set[str]) -> bool:
    """Whether an existing slice loses an address that is `listed` in another one afterwards."""
    if piece.existing is None:
        return False
    return not (_addresses(piece.existing.group) - _addresses(piece.group)).isdisjoint(listed)


def _uncrossed(
    target: Target, wanted: Sequence[Slice], existing: Sequence[CurrentSlice], taken: set[str]
) -> tuple[list[Slice], list[CurrentSlice]]:
    """`wanted` without slices that take and give away moving addresses at once; and those that are empty thereby."""
    listed, held = addresses_in(wanted), {e.address for s in existing for e in s.group.endpoints}
    found: list[Slice] = []
    emptied: list[CurrentSlice] = []
    for piece in wanted:
        if piece.existing is None or not gives_away(piece, listed):
            found.append(piece)
            continue
        moved = (_addresses(piece.group) - _addresses(piece.existing.group)) & held
        if not moved:
            found.append(piece)
            continue
        name = _new_name(target, piece.group, 0, taken)
        found.append(Slice(name, _group(piece.group, (e for e in piece.group.endpoints if e.address in moved)), None))
        staying = [e for e in piece.group.endpoints if e.address not in moved]
        if staying:
            found.append(Slice(piece.name, _group(piece.group, staying), piece.existing))
        else:
            emptied.append(piece.existing)
    return found, emptied


def _addresses(group: Group) -> set[str]:
    return {e.address for e in group.endpoints}


def _by_name(current: CurrentSlice) -> str:
    return current.meta.name


def _pack_group(
    target: Target, group: Group, existing: Sequence[CurrentSlice], limit: int, taken: set[str]
) -> tuple[list[Slice], list[CurrentSlice]]:
    unplaced = {e.address: e for e in group.endpoints}
    kept: list[tuple[CurrentSlice, list[Endpoint]]] = []
    for current in existing:
        mine: list[Endpoint] = []
        for old in current.group.endpoints:
            if len(mine) < limit and old.address in unplaced:
                mine.append(unplaced.pop(old.address))
        kept.append((current, mine))
    waiting = list(unplaced.values())
    for _, members in sorted(kept, key=lambda k: -len(k[1])):
        room = limit - len(members)
        members += waiting[:room]
        del waiting[:room]
    packed = [Slice(current.meta.name, _group(group, members), current) for current, members in kept if members]
    for number, start in enumerate(range(0, len(waiting), limit)):
        name = _new_name(target, group, number, taken)
        packed.append(Slice(name, _group(group, waiting[start : start + limit]), None))
    return packed, [current for current, members in kept if not members]


def _group(group: Group, members: Iterable[Endpoint]) -> Group:
    return Group(group.family, group.ports, normalize.sort_endpoints(members))


def _new_name(target: Target, group: Group, number: int, taken: set[str]) -> str:
    """A name that no slice here has: the Service's, and a digest of what the slice is for.

    The same state gives the same names, so a pass that is repeated after a lost answer does not make a second slice.
    """
    while True:
        name = _name(target, group, number)
        if name not in taken:
            taken.add(name)
            return name
        number += 1


def _name(target: Target, group: Group, number: int) -> str:
    return f"{target.name}-{digest(repr((group.family, group.ports, number)))}"
