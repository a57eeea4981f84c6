"""One line of `bridge check`: what was looked at, how it is, and how to fix it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

OK, WARNING, FAILED = "ok", "warning", "failed"


@dataclass(frozen=True, slots=True)
class Probe:
    """One line: what was looked at, how it is, and (unless ok) how to fix it. `section` groups lines under a title."""

    name: str
    state: str
    detail: str
    remedy: str = ""
    section: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "section": self.section,
            "probe": self.name,
            "state": self.state,
            "detail": self.detail,
            "remedy": self.remedy,
        }


SHOWN = 5
"""Names in one line; what is beyond is counted."""


def some(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return "; ".join(texts[:SHOWN]) + more
