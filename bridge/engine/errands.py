"""Why targets are to be worked on: since when a change in Consul waits, and whether somebody else changed what stands.

The queue only knows that a target is due. What comes of the work needs the reason: how long the change took (the lag),
and whether what was written put back what somebody else had changed (a repair). An errand that could not be done is
kept, together with what came meanwhile, until it is.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from bridge.core.model import Target


@dataclass(frozen=True, slots=True)
class Errand:
    """`seen`: since when a change in Consul waits for its first try; `owed`: since when one does whose write failed;
    `touched`: somebody else changed what stands there. Times are the bridge's clock, in seconds.
    """

    seen: float | None = None
    owed: float | None = None
    touched: bool = False

    @property
    def since(self) -> float | None:
        """Since when a change in Consul waits to be written; None when none does."""
        return min((at for at in (self.seen, self.owed) if at is not None), default=None)

    def failed(self, *, touched: bool) -> Errand:
        """What is left of it when a write failed."""
        return Errand(owed=self.since, touched=touched)


_NOTHING = Errand()


class Errands:
    """By target. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._errands: dict[Target, Errand] = {}

    def seen(self, target: Target, at: float) -> None:
        """Consul showed a change at `at`; the first of several counts."""
        self.keep(target, Errand(seen=at))

    def touched(self, target: Target) -> None:
        """Somebody else changed what stands there."""
        self.keep(target, Errand(touched=True))

    def keep(self, target: Target, errand: Errand) -> None:
        """It was not done now: for the next time."""
        with self._lock:
            known = self._errands.get(target, _NOTHING)
            seen = [at for at in (known.seen, errand.seen) if at is not None]
            merged = replace(
                known,
                seen=min(seen, default=None),
                owed=known.owed if errand.owed is None else errand.owed,
                touched=known.touched or errand.touched,
            )
            if merged != _NOTHING:
                self._errands[target] = merged

    def take(self, target: Target) -> Errand:
        """Somebody works on the target now."""
        with self._lock:
            return self._errands.pop(target, _NOTHING)
