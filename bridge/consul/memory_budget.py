"""How many bytes of answers are held at once, by all connections of the process together.

An answer is held as bytes, then as text, then as the values that are made of it, which take about five times as much.
Thousands of small ones come and go; large ones must not come on all connections at the same time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable

FREE_BYTES = 256 << 10
"""Answers up to this size are not counted: 64 connections hold at most 16 MiB of them."""


class MemoryBudget:
    """A budget of bytes. Any thread.

    A reader that needs more waits until other readers have given back enough. The one that has held some for longest
    does not wait, so that two that need more never wait for each other: at most the budget and one answer are held.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._held: dict[Hashable, int] = {}
        self._changed = threading.Condition()

    def take(self, who: Hashable, size: int, deadline: float) -> None:
        """Hold `size` bytes in all. Raises TimeoutError at the `deadline` (time.monotonic)."""
        with self._changed:
            while not self._may(who, size):
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    raise TimeoutError("other large answers took all the time")
            self._held[who] = size

    def give_back(self, who: Hashable) -> None:
        if who in self._held:
            with self._changed:
                self._held.pop(who, None)
                self._changed.notify_all()

    def _may(self, who: Hashable, size: int) -> bool:
        if who is next(iter(self._held), who):
            return True
        return sum(held for holder, held in self._held.items() if holder is not who) + size <= self._total

    @property
    def held(self) -> int:
        return sum(tuple(self._held.values()))
