"""Detects conflicting writers: another process with our own owner id, or one that undoes what we write.

Two bridges with one owner id and different rules remove each other's objects, and neither can see a mistake of its own.
One write by another process is allowed (an operator may run `bridge sync` beside the daemon); repeated ones are
reported. Three signs:

| seen | means | is kept for a while |
| --- | --- | --- |
| our field manager wrote objects of ours, not this process | another bridge has our owner id | all of the namespace |
| what this process removed is back for the third time | another writer wants it to exist | that target |
| this process put an object back for the third time within a minute | another writer edits or deletes it | nothing |

A writer that only edits or deletes our objects has none that we might remove: keeping what left Consul because of it
would send traffic to instances that are gone.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from bridge.core.model import Target

ENOUGH = 3
"""Signs of one kind within the window before anything is reported: a `bridge sync` by hand is one sign."""

WINDOW_SECONDS = 60.0
NO_DELETION_SECONDS = 600.0
"""After a sign of another writer, nothing is deleted in that namespace, or at that target, for so long. Any user who
may edit there can cause such signs, so they must not keep anything elsewhere.
"""

TAKEOVER_SECONDS = 15.0
"""After a shard became ours: writes of its previous replica may still arrive."""


class ConflictingWriters:
    """Counts signs in a sliding window. Thread-safe."""

    def __init__(self, owner: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._owner = owner
        self._clock = clock
        self._lock = threading.Lock()
        self._writes: deque[tuple[float, Target]] = deque(maxlen=1000)
        self._undone: deque[tuple[float, Target]] = deque(maxlen=1000)
        self._since = clock()
        self._written: dict[str, deque[float]] = {}
        self._conflicts: dict[str, float] = {}
        self._returned: dict[Target, float] = {}

    def gained(self) -> None:
        """Shards became ours."""
        with self._lock:
            self._since = self._clock()

    def wrote(self, target: Target) -> None:
        """Another process wrote at `target` with our field manager."""
        with self._lock:
            now = self._clock()
            if now - self._since > TAKEOVER_SECONDS:
                self._writes.append((now, target))
                lately = self._written.setdefault(target.namespace, deque(maxlen=ENOUGH))
                lately.append(now)
                if len(lately) == ENOUGH and lately[0] >= now - WINDOW_SECONDS:
                    self._conflicts[target.namespace] = now

    def undid(self, target: Target, *, removal: bool) -> None:
        """What we had put back at `target` had to be put back again; `removal`: it had to be taken away again."""
        with self._lock:
            now = self._clock()
            self._undone.append((now, target))
            if removal:
                self._returned = {t: at for t, at in self._returned.items() if now - at <= NO_DELETION_SECONDS}
                self._returned[target] = now

    def may_delete(self, target: Target) -> bool:
        """Whether no other writer was seen for a while that may want what seems superfluous there."""
        with self._lock:
            signs = (self._conflicts.get(target.namespace), self._returned.get(target))
            return all(seen is None or self._clock() - seen > NO_DELETION_SECONDS for seen in signs)

    def reason(self) -> str:
        """The conflict as a sentence that says how to fix it; "" when there is none."""
        with self._lock:
            oldest = self._clock() - WINDOW_SECONDS
            for signs in (self._writes, self._undone):
                while signs and signs[0][0] < oldest:
                    signs.popleft()
            if len(self._writes) >= ENOUGH:
                return (
                    f"another process writes with our owner id {self._owner!r} ({self._writes[-1][1]}, for example): "
                    "give each installation an --owner of its own, or elect a leader among replicas (--leader-elect)"
                )
            if self._undone:
                return (
                    f"another writer changes or deletes what we write at {self._undone[-1][1]} again and again: a "
                    f"bridge with the owner id {self._owner!r} and other rules, or a user or controller"
                )
            return ""
