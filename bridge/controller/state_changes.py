"""Turns states of the bridge into events: parts report a state again and again, observers get it when it changes.

This is the one place that remembers what was last reported of a state. Reports about each target are compared by
`core.reported` instead, by each observer for its own readers: a line of the log is about a target and comes from every
replica, a Kubernetes Event is about one object and comes from the replica that writes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

from bridge.core.model import Held, Query, Target
from bridge.telemetry.events import (
    ConflictingWriter,
    ConsulReachable,
    CredentialsChanged,
    HoldsChanged,
    KubernetesReachable,
    Observer,
    ReadErrorsChanged,
    SlicesForbidden,
    UnreadableNamespaces,
    Warned,
)

N = TypeVar("N", UnreadableNamespaces, SlicesForbidden)

KUBERNETES = ""
"""What the API server is called among the datacenters."""


class StateChanges:
    """Each method says how something is now. Any thread; events come in the order of the states."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._lock = threading.Lock()
        self._up: dict[str, bool] = {}
        self._held: tuple[Held, ...] | None = None
        self._ours: frozenset[Target] = frozenset()
        self._read_errors: tuple[Mapping[Query, str], frozenset[Query]] = ({}, frozenset())
        self._first_error: tuple[Query, str] | None = None
        self._namespaces: dict[type, Mapping[str, str]] = {}
        self._warnings: frozenset[str] = frozenset()
        self._conflicting_writer = False
        self._credentials = ""

    def consul(self, datacenter: str, up: bool, reason: str) -> None:
        """A datacenter can, or (with the reason) cannot be asked."""
        with self._lock:
            before, self._up[datacenter] = self._up.get(datacenter), up
            if before != up:
                self._observer.changed(ConsulReachable(datacenter, up, reason, first=before is None))

    def kubernetes(self, up: bool, reason: str) -> None:
        """The API server can, or (with the reason) cannot be used."""
        with self._lock:
            before, self._up[KUBERNETES] = self._up.get(KUBERNETES), up
            if before != up:
                self._observer.changed(KubernetesReachable(up, reason, first=before is None))

    def held(self, held: tuple[Held, ...], leads: Callable[[Target], bool] = lambda _target: True) -> None:
        now = {hold.target: hold for hold in held}
        ours = frozenset(filter(leads, now))
        with self._lock:
            before, self._held = self._held, held
            ours_before, self._ours = self._ours, ours
            if (before, ours_before) == (held, ours):
                return
            targets = {hold.target for hold in before or ()}
            self._observer.changed(
                HoldsChanged(
                    held,
                    began=tuple(hold for hold in held if hold.target not in targets),
                    ended=tuple(sorted(targets - now.keys())),
                    ours_began=tuple(hold for hold in held if hold.target in ours - ours_before),
                    ours_ended=tuple(target for target in sorted(ours_before - ours) if leads(target)),
                )
            )

    def service_read_errors(self, errors: Mapping[Query, str], annotated: frozenset[Query] = frozenset()) -> None:
        """Every service that could not be read when it was last tried; `annotated`: only users' Services want it."""
        others = errors.keys() - annotated
        with self._lock:
            single = sorted(query for query in others if self._up.get(query.datacenter, True))
            now = (single[0], errors[single[0]]) if single else None
            before, known = self._first_error, self._read_errors
            self._first_error = now or (before if others else None)
            self._read_errors = errors, annotated
            first, over = now if now != before else None, before is not None and not others
            if first is not None or over or known != self._read_errors:
                self._observer.changed(ReadErrorsChanged(errors, annotated, len(single), first, over))

    def unreadable(self, namespaces: Mapping[str, str]) -> None:
        """Every namespace that we may not list, with the reason."""
        self._compare(UnreadableNamespaces, namespaces)

    def slices_forbidden(self, namespaces: Mapping[str, str]) -> None:
        """Every namespace where EndpointSlices may not be written, and the missing rights."""
        self._compare(SlicesForbidden, namespaces)

    def _compare(self, event: type[N], now: Mapping[str, str]) -> None:
        with self._lock:
            before, self._namespaces[event] = self._namespaces.get(event, {}), now
            began, ended = now.keys() - before.keys(), before.keys() - now.keys()
            if began or ended:
                self._observer.changed(event(now, tuple(sorted(began)), tuple(sorted(ended))))

    def warned(self, warnings: tuple[str, ...]) -> None:
        """What works, but the operator should know; reported again when it comes back."""
        with self._lock:
            before, self._warnings = self._warnings, frozenset(warnings)
            if news := tuple(text for text in warnings if text not in before):
                self._observer.changed(Warned(news))

    def conflicting_writer(self, reason: str) -> None:
        """Another process writes what is ours, and why we think so ("": none does)."""
        with self._lock:
            before, self._conflicting_writer = self._conflicting_writer, bool(reason)
            if before != bool(reason):
                self._observer.changed(ConflictingWriter(reason))

    def credentials(self, trouble: str) -> None:
        """Credentials for the API server cannot be renewed ("": all is well)."""
        with self._lock:
            before, self._credentials = self._credentials, trouble
            if before != trouble:
                self._observer.changed(CredentialsChanged(trouble, began=not before))
