"""Counts changes that no watch announced: an audit found them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bridge.consul.subscriptions import Subscription

JUDGE_SECONDS = 5.0
"""How long a change that an audit found may still be announced by another watch."""


@dataclass(frozen=True, slots=True)
class Find:
    """A change that an audit found, and the service's index since.

    `in_listing`: such a change moves the listing's index, and no direct watch was to see it. `polled_from`: when the
    last poll that had ended by then began.
    """

    subscription: Subscription
    at: float
    index: int
    in_listing: bool
    polled_from: float


class MissedChanges:
    """What audits found, until it is judged. `judging` is added to by any thread, `judge` is called by one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.judging: list[Find] = []
        self.found = 0
        self.lately: tuple[str, ...] = ()
        """The services of the last ones."""

    def judge(self, moves: Iterable[tuple[float, int]]) -> None:
        """Count what no watch announced, before or after. `moves`: when the listing's index moved, and whereto."""
        now = self._clock()
        late = [find for find in self.judging if now - find.at >= JUDGE_SECONDS]
        self.judging = [find for find in self.judging if now - find.at < JUDGE_SECONDS]
        for find in late:
            # a change that moves the listing is excused until a poll that began after that move has ended; a check's
            # index may be higher than any of the listing, then the last move counts
            known = tuple(moves)
            moved = next((at for at, index in known if index >= find.index), known[-1][0] if known else float("-inf"))
            excused = find.in_listing and moved >= find.polled_from
            if (
                not excused
                and find.subscription.last_notified_at < find.at - JUDGE_SECONDS
                and not find.subscription.removed
            ):
                self.found += 1
                self.lately = (*self.lately, find.subscription.query.service)[-5:]
