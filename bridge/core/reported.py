"""Remembers what was reported, so that a warning is reported once, and again when it changes.

A warning changes with its text. Warnings about EndpointSlices are an exception: their text follows what other clients
write, and a client that keeps changing a slice must not make the bridge write a log line and an Event (an object in
etcd) each time. These are reported again only when they name a slice that was not named before, once a minute for each
target. A change within that minute is not lost: the next check after the minute reports it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from bridge.core.reasons import Code, Reason

AGAIN_SECONDS = 60.0
"""How soon after a warning about other clients' slices the next one is reported."""

REMEMBERED = 4096
"""Times that are remembered before those are dropped that make no difference any more."""

OF_SLICES = frozenset({Code.FOREIGN_SLICE, Code.MIRROR_BEHIND, Code.SLICE_OUTDATED})
"""Warnings whose text is made of what others write."""


@dataclass(frozen=True, slots=True)
class _Said:
    text: str = ""
    slices: frozenset[Hashable] = frozenset()


class Reported:
    """What was reported, by key (a target and the kind of report). Not thread-safe."""

    def __init__(self) -> None:
        self._said: dict[Hashable, _Said] = {}
        self._at: dict[Hashable, float] = {}

    def is_news(self, key: Hashable, reasons: Sequence[str], now: float) -> bool:
        """Whether to report `reasons`, which are all that apply at `key` now (none: the trouble is over)."""
        if not reasons and key not in self._said:
            return False  # mostly: asked at every write
        before = self._said.pop(key, _Said())
        about = [r for r in reasons if isinstance(r, Reason) and r.code in OF_SLICES]
        text = "; ".join(r for r in reasons if r not in about)
        slices: frozenset[Hashable] = frozenset(map(_gist, about))
        due = bool(slices - before.slices) and now - self._at.get(key, -math.inf) >= AGAIN_SECONDS
        news = due or bool(text and text != before.text)
        if news and slices:
            if len(self._at) >= REMEMBERED:
                self._at = {k: at for k, at in self._at.items() if now - at < AGAIN_SECONDS}
            self._at[key] = now
        known = _Said(text, slices if news else slices & before.slices)
        if known != _Said():
            self._said[key] = known
        return news


def _gist(reason: Reason) -> Hashable:
    """What of such a warning stays as it is while others write: the slice and its manager."""
    data = dict(reason.data)
    return reason.code, data.get("name"), data.get("manager")
