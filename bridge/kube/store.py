"""What Kubernetes is known to hold, as slim values by target: filled by lists and watches, read by passes.

No requests and no threads of its own, but safe to use from several. Two rules keep it true:

- Versions order the news about one object: what is older than what is held is dropped, wherever it comes from (a
  watch that lags behind our own write, a page of a list that was read before it).
- A list replaces everything in its scope, except what was noted after it began. So it also heals what versions
  cannot: an etcd that was restored from a backup counts from a lower number.

Longer than other modules: it is one class, for one object that changes is in several of its indexes.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from bridge.core import annotated, ownership
from bridge.core.model import (
    Action,
    Change,
    Current,
    CurrentEndpoints,
    CurrentRoute,
    CurrentService,
    CurrentSlice,
    Endpoint,
    Kind,
    Meta,
    Scope,
    SliceBody,
    Target,
)
from bridge.core.plan import scope_of
from bridge.core.reasons import Reason
from bridge.kube import objects
from bridge.kube.objects import Decoded

Key = tuple[str, str]
"""(namespace, name) of an object."""

TOMBSTONES = 4096
"""How many vanished objects are remembered as such."""

_NO_DIGESTS: Mapping[Key, int] = {}

LATE_SECONDS = 60.0
"""A write of ours that seemed to fail may show so much later."""


@dataclass(slots=True)
class _Entry:
    """An object (None: it is known to be gone), its version, the store's own counter when it was set, and a digest of
    the bytes in which a list had it (0: it was no list).
    """

    found: Decoded | None
    version: int
    sequence: int
    digest: int = 0


class Store:
    """Objects by kind and target. `owner` is the owner id whose objects count as ours."""

    # attributes: indexes of the same objects; one event changes several of them together, under one lock

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.unreadable: dict[str, str] = {}
        """Namespaces that `list_once` was not allowed to list, and why: what is there is unknown, not absent."""
        self.routes_unread: dict[str, Reason] = {}
        """Namespaces ("": all) of which HTTPRoutes cannot be read, and why."""
        self._lock = threading.RLock()
        self._sequence = 0
        self._entries: dict[Kind, dict[Key, _Entry]] = {kind: {} for kind in Kind}
        self._slices: dict[Target, dict[str, CurrentSlice]] = {}
        self._foreign_slices: dict[Target, dict[str, CurrentSlice]] = {}
        self._leftovers: dict[Target, tuple[CurrentSlice, ...]] = {}
        self._changed_foreign_slices: set[Target] = set()
        self._lost_selector: set[Target] = set()
        self._foreign_endpoints: dict[Target, Meta] = {}
        self._failed: dict[tuple[Kind, Key], float] = {}
        self._unexpected_own_writes: set[Target] = set()
        self._tombstones: deque[tuple[Kind, Key, int]] = deque()
        self._min_resource_versions: dict[tuple[Kind, str | None], int] = {}
        self._expected: dict[tuple[Kind, Key], Change] = {}
        self._ready: dict[Target, int] = {}
        self._owned: set[Target] = set()
        self._scopes: dict[Target, Scope] = {}
        self._ready_in: dict[Scope, int] = {}

    # ------------------------------------------------------------------ reading

    def current(self, target: Target) -> Current:
        """Everything that is held at `target`. Endpoints of others are there without content (`groups` empty)."""
        key = (target.namespace, target.name)
        with self._lock:
            service = self._found(Kind.SERVICE, key)
            endpoints = self._found(Kind.ENDPOINTS, key)
            slices = self._slices.get(target)
            foreign = self._foreign_endpoints.get(target)
            unread = self.routes_unread.get(target.namespace) or self.routes_unread.get("")
            route = unread or self._found(Kind.HTTP_ROUTE, key)
            ordered = tuple(slices[name] for name in sorted(slices)) if slices else ()
            pieces, left = self._foreign_slices.get(target), self._leftovers.get(target, ())
            others = tuple(pieces[name] for name in sorted(pieces)) if pieces else ()
        if endpoints is None and foreign is not None:
            endpoints = CurrentEndpoints(meta=foreign, groups=())
        return Current(
            target,
            service=service if isinstance(service, CurrentService) else None,
            endpoints=endpoints if isinstance(endpoints, CurrentEndpoints) else None,
            slices=ordered,
            others=(*others, *left) if left else others,
            route=route if isinstance(route, CurrentRoute | Reason) else None,
        )

    def targets(self) -> set[Target]:
        """Targets where at least one object carries our owner id."""
        with self._lock:
            return set(self._owned)

    def foreign_at(self, target: Target) -> Meta | None:
        """The Endpoints at a target that no bridge manages."""
        with self._lock:
            return self._foreign_endpoints.get(target)

    def total_ready(self) -> int:
        """Ready endpoints over all targets of ours (with Endpoints and slices side by side: the larger number)."""
        with self._lock:
            return sum(self._ready_in.values())

    def ready_in(self, scope: Scope) -> int:
        """The same over the targets that the guard adds up together."""
        with self._lock:
            return self._ready_in.get(scope, 0)

    def ready_targets(self) -> Mapping[Target, Scope]:
        """Targets of ours that have ready endpoints, each with those whom the guard adds it up with."""
        with self._lock:
            return dict(self._scopes)

    def annotated_services(self) -> tuple[CurrentService, ...]:
        """Services that ask to be filled: label (or annotation) `consul-bridge/mirror: "true"`, sorted."""
        with self._lock:
            found = [e.found for e in self._entries[Kind.SERVICE].values() if isinstance(e.found, CurrentService)]
        asking = (s for s in found if (annotated.MIRROR, "true") in s.meta.ownership)
        return tuple(sorted(asking, key=lambda s: (s.meta.namespace, s.meta.name)))

    def without_selector(self, namespace: str | None) -> set[Target]:
        """Services in `namespace` (None: all) whose endpoints Kubernetes does not make of pods."""
        with self._lock:
            return {
                Target(*key)
                for key, entry in self._entries[Kind.SERVICE].items()
                if namespace in (None, key[0]) and _takes_slices(entry.found)
            }

    def with_leftovers(self) -> set[Target]:
        """Services without a selector that still have slices of pods."""
        with self._lock:
            return set(self._leftovers)

    @property
    def has_lost_selector(self) -> bool:
        return bool(self._lost_selector)

    def take_lost_selector(self) -> set[Target]:
        """Services that lost their selector since this was last asked: their pods' slices stay behind."""
        with self._lock:
            found, self._lost_selector = self._lost_selector, set()
            return found

    def take_changed_foreign_slices(self) -> set[Target]:
        """Targets where slices that no bridge writes have changed since this was last asked."""
        with self._lock:
            found, self._changed_foreign_slices = self._changed_foreign_slices, set()
            return found

    def routes(self) -> tuple[CurrentRoute, ...]:
        """All HTTPRoutes that were read, of all owners, sorted."""
        with self._lock:
            found = [e.found for e in self._entries[Kind.HTTP_ROUTE].values() if isinstance(e.found, CurrentRoute)]
        return tuple(sorted(found, key=lambda route: (route.meta.namespace, route.meta.name)))

    def unlabelled_services(self) -> tuple[Meta, ...]:
        """Services that a bridge wrote, as its field manager shows, and that lost their labels of ownership, sorted."""
        with self._lock:
            found = [e.found.meta for e in self._entries[Kind.SERVICE].values() if e.found is not None]
        lost = (m for m in found if m.owner is None and m.written and not m.deleting)
        return tuple(sorted(lost, key=lambda m: (m.namespace, m.name)))

    def counts(self) -> dict[str, int]:
        with self._lock:
            found = {
                k.value: sum(e.found is not None for e in entries.values()) for k, entries in self._entries.items()
            }
            return found | {"ForeignEndpoints": len(self._foreign_endpoints)}

    # ------------------------------------------------------------------ our own writes

    def expect(self, change: Change) -> None:
        """`change` is about to be written: a watch event that shows just this is no news."""
        with self._lock:
            self._expected[change.kind, (change.target.namespace, change.name)] = change

    def abandon(self, change: Change) -> None:
        """The write that was expected failed, or its outcome is unknown."""
        with self._lock:
            now = time.monotonic()
            self._failed[change.kind, (change.target.namespace, change.name)] = now
            if len(self._failed) > TOMBSTONES:
                self._failed = {k: at for k, at in self._failed.items() if now - at < LATE_SECONDS}
            self._done(change)

    def confirm(self, change: Change, meta: Meta | None) -> None:
        """A write was answered: hold what it made of the object, unless something newer is held already."""
        key = (change.target.namespace, change.name)
        with self._lock:
            self._done(change)
            if change.action is Action.UNCHANGED:
                return
            if change.action is Action.DELETE or meta is None:
                existing = change.existing
                held = self._entries[change.kind].get(key)
                if existing is None or (held and held.found is not None and held.found.meta.uid != existing.uid):
                    return
                self._put(change.kind, key, None, objects.version(existing.resource_version))
                self._drop_foreign(change.kind, key, existing.uid)
                return
            version = objects.version(meta.resource_version)
            floor = max(
                self._min_resource_versions.get((change.kind, scope), 0) for scope in (None, change.target.namespace)
            )
            if version > floor:  # else a list that is newer than this write has told already what became of it
                self._put(change.kind, key, objects.expected(change, meta), version)
            self._drop_foreign(change.kind, key, meta.uid)

    def note_stored(self, change: Change, found: Decoded | None) -> None:
        """A write was answered with something else than what was sent: that is what is held."""
        with self._lock:
            self._done(change)
            if found is not None:
                key = (found.meta.namespace, found.meta.name)
                self._put(change.kind, key, found, objects.version(found.meta.resource_version))
                self._drop_foreign(change.kind, key, found.meta.uid)

    # ------------------------------------------------------------------ news from the server

    def begin_list(self) -> int:
        """Mark the beginning of a list; what is noted from now on is newer than the list."""
        with self._lock:
            return self._sequence

    def decoded(self, kind: Kind, key: Key, digest: int) -> Decoded | None:
        """What is held of an object, if it was decoded from a list that had it in bytes of this digest."""
        with self._lock:
            held = self._entries[kind].get(key)
            return held.found if held is not None and digest and held.digest == digest else None

    def replace(
        self,
        kind: Kind,
        namespace: str | None,
        items: Iterable[Decoded],
        version: int,
        since: int,
        digests: Mapping[Key, int] = _NO_DIGESTS,
    ) -> set[Target]:
        """A complete list of the kind in `namespace` (None: all). Targets where something differs from before."""
        listed = {(i.meta.namespace, i.meta.name): i for i in items}
        changed: set[Target] = set()
        with self._lock:
            entries = self._entries[kind]
            inside = [key for key in entries if namespace is None or key[0] == namespace]
            for key in inside:
                entry = entries[key]
                newer = entry.sequence > since and entry.version > version
                if key in listed or newer:
                    continue
                if entry.found is not None:
                    changed |= self._hold(kind, key, None, version)
                del entries[key]
            for key, found in listed.items():
                held = entries.get(key)
                if held is not None and held.found is found:
                    continue
                found_version = objects.version(found.meta.resource_version)
                if held is not None and held.sequence > since and held.version >= found_version:
                    continue
                changed |= self._hold(kind, key, found, found_version)
                entries[key].digest = digests.get(key, 0)
            self._min_resource_versions[kind, namespace] = version
        return changed

    def holds(self, kind: Kind, key: Key, version: int) -> bool:
        """Whether what is held of an object is as new as `version`: an event that shows it is no news."""
        with self._lock:
            held = self._entries[kind].get(key)
            return held is not None and 0 < version <= held.version

    def event(
        self,
        kind: Kind,
        namespace: str | None,
        event: Literal["ADDED", "MODIFIED", "DELETED"],
        meta: Meta,
        found: Decoded | None,
    ) -> set[Target]:
        """One watch event of the scope `namespace`; targets where it tells something new.

        `found` is None for an object that is of no use to us (a slice that lost its Service's name).
        """
        key = (meta.namespace, meta.name)
        version = objects.version(meta.resource_version)
        gone = event == "DELETED" or found is None
        with self._lock:
            if version and version <= self._min_resource_versions.get((kind, namespace), 0):
                return set()
            held = self._entries[kind].get(key)
            if held is not None and version and version <= held.version:
                return set()
            changed = self._hold(kind, key, None if gone else found, version)
            if not gone and found is not None:
                self._drop_foreign(kind, key, found.meta.uid)
            expected = self._expected.get((kind, key))
            if changed and expected is not None and _fulfils(expected, None if gone else found):
                return set()
            if (
                changed
                and not gone
                and found is not None
                and self._is_unexpected_own_write(kind, key, held, found.meta)
            ):
                self._unexpected_own_writes |= changed
            return changed

    def take_unexpected_own_write(self, target: Target) -> bool:
        """Whether another process wrote at `target` under our owner id and field manager since this was last asked."""
        with self._lock:
            found = target in self._unexpected_own_writes
            self._unexpected_own_writes.discard(target)
            return found

    def replace_leftovers(self, asked: Iterable[Target], found: Iterable[CurrentSlice]) -> None:
        """The slices of pods that are left at the Services that were `asked` about, where these are still such."""
        pieces_by_name = sorted(found, key=lambda piece: piece.meta.name)
        with self._lock:
            left: dict[Target, list[CurrentSlice]] = {t: [] for t in asked if self._is_without_selector(t)}
            for piece in pieces_by_name:
                target = objects.target_of(piece)
                if target in left:
                    left[target].append(piece)
            for target, pieces in left.items():
                before = self._leftovers.get(target, ())
                if pieces:
                    self._leftovers[target] = tuple(pieces)
                else:
                    self._leftovers.pop(target, None)
                if [(s.meta.name, s.meta.ownership, s.group) for s in before] != [
                    (s.meta.name, s.meta.ownership, s.group) for s in pieces
                ]:
                    self._changed_foreign_slices.add(target)

    def replace_foreign(self, namespace: str | None, found: Iterable[Meta]) -> None:
        """Endpoints in `namespace` (None: all) that no bridge manages, by their metadata."""
        fresh = {Target(m.namespace, m.name): m for m in found}
        with self._lock:
            kept = {
                t: m for t, m in self._foreign_endpoints.items() if namespace is not None and t.namespace != namespace
            }
            self._foreign_endpoints = kept | fresh

    # ------------------------------------------------------------------ inside (lock held)

    def _done(self, change: Change) -> None:
        key = (change.kind, (change.target.namespace, change.name))
        if self._expected.get(key) is change:
            del self._expected[key]

    def _is_unexpected_own_write(self, kind: Kind, key: Key, held: _Entry | None, meta: Meta) -> bool:
        """Whether our field manager wrote an object of ours just now, and no write of this process can have been it."""
        before = held.found.meta.written if held is not None and held.found is not None else ""
        if meta.owner != self.owner or not meta.written or meta.written == before:
            return False
        return time.monotonic() - self._failed.get((kind, key), -math.inf) > LATE_SECONDS

    def _found(self, kind: Kind, key: Key) -> Decoded | None:
        entry = self._entries[kind].get(key)
        return entry.found if entry is not None else None

    def _put(self, kind: Kind, key: Key, found: Decoded | None, version: int) -> None:
        held = self._entries[kind].get(key)
        if held is None or held.version <= version:
            self._hold(kind, key, found, version)

    def _hold(self, kind: Kind, key: Key, found: Decoded | None, version: int) -> set[Target]:
        """Set an entry; the targets at which it made a difference beyond the version."""
        entry = self._entries[kind].get(key)
        before = entry.found if entry is not None else None
        self._sequence += 1
        self._entries[kind][key] = _Entry(found, version, self._sequence)
        if found is None:
            self._add_tombstone(kind, key)
        touched = {objects.target_of(o) for o in (before, found) if o is not None}
        if isinstance(before, CurrentSlice):
            holding, old = self._holding(before), objects.target_of(before)
            members = holding.get(old, {})
            members.pop(before.meta.name, None)
            if not members:
                holding.pop(old, None)
        if isinstance(found, CurrentSlice):
            self._holding(found).setdefault(objects.target_of(found), {})[found.meta.name] = found
        if before is not None and found is not None and objects.same(before, found):
            return set()
        if kind is Kind.ENDPOINT_SLICE and not any(map(_is_a_bridges, (before, found))):
            self._changed_foreign_slices |= touched
            return set()
        if kind is Kind.SERVICE and not _takes_slices(found):
            self._leftovers.pop(Target(*key), None)  # these are not needed again: they are its pods', or go with it
        elif kind is Kind.SERVICE and isinstance(before, CurrentService) and before.has_selector:
            self._lost_selector |= touched
        for target in touched:
            self._count(target)
        return touched

    def _is_without_selector(self, target: Target) -> bool:
        return _takes_slices(self._found(Kind.SERVICE, (target.namespace, target.name)))

    def _holding(self, piece: CurrentSlice) -> dict[Target, dict[str, CurrentSlice]]:
        return self._slices if _is_a_bridges(piece) else self._foreign_slices

    def _add_tombstone(self, kind: Kind, key: Key) -> None:
        """Remember that an object is gone, so that an answer that comes late does not bring it back; for a while."""
        self._tombstones.append((kind, key, self._sequence))
        if len(self._tombstones) > TOMBSTONES:
            old_kind, old_key, sequence = self._tombstones.popleft()
            entry = self._entries[old_kind].get(old_key)
            if entry is not None and entry.found is None and entry.sequence == sequence:
                del self._entries[old_kind][old_key]

    def _drop_foreign(self, kind: Kind, key: Key, uid: str) -> None:
        if kind is Kind.ENDPOINTS:
            target = Target(*key)
            found = self._foreign_endpoints.get(target)
            if found is not None and (found.uid == uid or self._found(kind, key) is not None):
                del self._foreign_endpoints[target]

    def _count(self, target: Target) -> None:
        key = (target.namespace, target.name)
        mine = [
            found
            for found in (
                self._found(Kind.SERVICE, key),
                self._found(Kind.ENDPOINTS, key),
                self._found(Kind.HTTP_ROUTE, key),
                *self._slices.get(target, {}).values(),
            )
            if found is not None and found.meta.owner == self.owner
        ]
        whole = sum(_ready(e) for o in mine if isinstance(o, CurrentEndpoints) for g in o.groups for e in g.endpoints)
        sliced = sum(_ready(e) for o in mine if isinstance(o, CurrentSlice) for e in o.group.endpoints)
        ready = max(whole, sliced)
        before = self._scopes.pop(target, None)
        if before is not None:
            self._ready_in[before] -= self._ready.pop(target)
            if not self._ready_in[before]:
                del self._ready_in[before]
        if ready:
            scope = scope_of(self.current(target), self.owner)
            self._ready[target], self._scopes[target] = ready, scope
            self._ready_in[scope] = self._ready_in.get(scope, 0) + ready
        if mine:
            self._owned.add(target)
        else:
            self._owned.discard(target)


def _is_a_bridges(found: Decoded | None) -> bool:
    return isinstance(found, CurrentSlice) and found.manager == ownership.MANAGER


def _takes_slices(found: Decoded | None) -> bool:
    """Whether a Service's endpoints are whatever slices name it."""
    return isinstance(found, CurrentService) and not found.has_selector and found.type != "ExternalName"


def _ready(endpoint: Endpoint) -> int:
    return 1 if endpoint.ready else 0


def _fulfils(change: Change, found: Decoded | None) -> bool:
    """Whether `found` is what `change` was to make of the object."""
    if change.body is None or found is None:
        return change.body is None and found is None
    labels: Mapping[str, str] = dict(change.body.labels)
    if isinstance(change.body, SliceBody):
        labels = objects.slice_labels(change.body)
    return (
        objects.expected(change, found.meta) == found
        and dict(found.meta.labels) == labels
        and found.meta.annotations == tuple(sorted(change.body.annotations))
    )
