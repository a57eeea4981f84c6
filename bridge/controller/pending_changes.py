"""Why targets are due: since when a change in Consul waits, and whether another writer changed the objects.

The queue only knows that a target is due. Its result also needs the reason: how long the change took (the lag), and
whether the write put back what another writer had changed (a repair). A change whose write failed is kept, merged with
later ones, until it is written.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from bridge.core.model import Target


@dataclass(frozen=True, slots=True)
class PendingChange:
    """`first_seen_at`: since when a change in Consul waits for its first try; `first_failed_at`: since when one waits
    whose write failed; `externally_modified`: another writer changed the objects. Times are the bridge's clock, in
    seconds.
    """

    first_seen_at: float | None = None
    first_failed_at: float | None = None
    externally_modified: bool = False

    @property
    def since(self) -> float | None:
        """Since when a change in Consul waits to be written; None when none does."""
        return min((at for at in (self.first_seen_at, self.first_failed_at) if at is not None), default=None)

    def failed(self, *, touched: bool) -> PendingChange:
        return PendingChange(first_failed_at=self.since, externally_modified=touched)


_NOTHING = PendingChange()


class PendingChanges:
    """By target. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changes: dict[Target, PendingChange] = {}

    def seen(self, target: Target, at: float) -> None:
        """Consul showed a change at `at`; the first of several counts."""
        self.keep(target, PendingChange(first_seen_at=at))

    def touched(self, target: Target) -> None:
        """Another writer changed the objects at `target`."""
        self.keep(target, PendingChange(externally_modified=True))

    def keep(self, target: Target, change: PendingChange) -> None:
        """It was not written now: keep it for the next try."""
        with self._lock:
            known = self._changes.get(target, _NOTHING)
            seen = [at for at in (known.first_seen_at, change.first_seen_at) if at is not None]
            merged = replace(
                known,
                first_seen_at=min(seen, default=None),
                first_failed_at=known.first_failed_at if change.first_failed_at is None else change.first_failed_at,
                externally_modified=known.externally_modified or change.externally_modified,
            )
            if merged != _NOTHING:
                self._changes[target] = merged

    def take(self, target: Target) -> PendingChange:
        """The reason, for the worker that now works on the target; the record is removed."""
        with self._lock:
            return self._changes.pop(target, _NOTHING)
