"""`make lint`: private words that have gone from the code and its documents stay away.

Each line of the table is a word and what the field calls the thing. A word is added when its last use has gone.
CHANGELOG.md is not read: it names what things were called.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

WORDS: Mapping[str, str] = {
    "announcer": "Kubernetes event observer",
    "bell": "aggregate watch",
    "bells": "aggregate watches",
    "brake": "rate limiter",
    "brakes": "rate limiters",
    "deaf": "unsynced",
    "doorbell": "aggregate watch",
    "doorbells": "aggregate watches",
    "drawing": "components",
    "errand": "pending change",
    "errands": "pending changes",
    "fate": "decision",
    "fates": "decisions",
    "flipped": "became unready",
    "graves": "tombstones",
    "homeless": "unplaced",
    "house": "code, package",
    "lend": "inline",
    "lent": "inline",
    "owed": "first failed at",
    "rival": "conflicting writer",
    "rivals": "conflicting writers",
    "rooms": "packages",
    "rung": "notified",
    "shorten": "truncate",
    "sighting": "observation",
    "sightings": "observations",
    "sweep": "index poll",
    "sweeper": "index poller",
    "sweeps": "index polls",
    "swept": "polled",
    "takings": "loss samples",
    "tone": "severity",
    "vouch": "verify",
    "vouched": "verified",
    "vouches": "verifies",
    "world": "Consul state",
}
"""Word: what to say instead."""

EVERYWHERE = ("bridge", "docs", "manifests", "README.md", "SECURITY.md")
"""Where the words are looked for, below the root."""

KINDS = frozenset({".py", ".md", ".yaml", ".js", ".css", ".tpl", ".txt"})


def found_in(text: str, words: Mapping[str, str] = WORDS) -> Iterator[tuple[int, str, str]]:
    """Line number, word and what to say instead, also where the word is a part of a name."""
    pattern = re.compile(rf"(?<![A-Za-z])({'|'.join(map(re.escape, words))})(?![A-Za-z])", re.IGNORECASE)
    for number, line in enumerate(text.splitlines(), 1):
        for match in pattern.finditer(line):
            yield number, match[1], words[match[1].lower()]


def files() -> Sequence[Path]:
    """Everything that is text in these places."""
    places = [ROOT / name for name in EVERYWHERE]
    below = [path for place in places for path in ([place] if place.is_file() else sorted(place.rglob("*")))]
    return [path for path in below if path.suffix in KINDS and path.is_file()]


def main() -> int:
    """Print what was found; the exit status is 1 then."""
    said = [
        f'{path.relative_to(ROOT)}:{number}: "{word}" is a private word; say "{instead}"'
        for path in files()
        for number, word, instead in found_in(path.read_text(encoding="utf-8"))
    ]
    print("\n".join(said) or f"{len(WORDS)} words are not used any more")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
