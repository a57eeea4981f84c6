"""Rate limits for putting back what other writers changed; repeated repairs count as signs of a conflict."""

from __future__ import annotations

import time
from collections.abc import Callable

from bridge.controller.conflicting_writers import ENOUGH, ConflictingWriters
from bridge.controller.item_backoff import RepairRateLimiter
from bridge.core.model import Target
from bridge.retry import RetryPolicy


class Repairs:
    """When a target may be put back again. Any thread.

    `conflicting` counts the signs of a conflicting writer. Edits by another writer, and objects that an admission
    webhook stores otherwise than they were written, have a limit each: either alone makes the next repair wait.
    """

    def __init__(
        self, conflicting: ConflictingWriters, policy: RetryPolicy, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.conflicting = conflicting
        self._edited: RepairRateLimiter[Target] = RepairRateLimiter(policy, clock=clock)
        self._altered: RepairRateLimiter[Target] = RepairRateLimiter(policy, clock=clock)

    def delay_seconds(self, target: Target) -> float:
        """Seconds until `target` may be put back again."""
        return max(self._edited.delay_seconds(target), self._altered.delay_seconds(target))

    def put_back(self, target: Target, *, removal: bool) -> None:
        """What another writer had changed at `target` was put back; `removal`: it was removed again."""
        if self._edited.repaired(target) >= ENOUGH:
            self.conflicting.undid(target, removal=removal)

    def stored_otherwise(self, target: Target) -> None:
        """A write was altered on its way: whatever event follows, the object is not written again at once."""
        self._altered.repaired(target)
