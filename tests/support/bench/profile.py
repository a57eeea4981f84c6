"""Where the processor time of a bridge goes: py-spy's samples of who holds the interpreter's lock, summed by function.

    py-spy record --gil --function --rate 500 --format raw --duration 20 --output storm.txt --pid PID     while it works
    python -m tests.support.bench.profile storm.txt                                                       as a table

A function's share has all that it calls in it, so shares do not add up to 100 %.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

FRAME = re.compile(
    r"(?P<function>\S+) \((?:.*?/)??(?P<file>(?:bridge|json|http|msgspec|urllib3)/\S+?\.py|\w+\.py)(?::\d+)?\)"
)
SHOWN = 16


def shares(lines: Iterable[str]) -> tuple[Counter[str], int]:
    """Samples that each function of ours was in, and all samples."""
    found: Counter[str] = Counter()
    total = 0
    for line in lines:
        stack, _, count = line.strip().rpartition(" ")
        if not stack:
            continue
        total += int(count)
        names = {f"{m['file']} {m['function']}" for frame in stack.split(";") if (m := FRAME.fullmatch(frame.strip()))}
        found.update(dict.fromkeys(names, int(count)))
    return found, total


def table(lines: Iterable[str], most: int = SHOWN) -> str:
    """The largest shares."""
    found, total = shares(lines)
    rows = [f"| `{name}` | {count / total * 100:.0f} % |" for name, count in found.most_common(most)]
    return "\n".join([f"| function, of {total:,} samples | share |", "| --- | --- |", *rows])


if __name__ == "__main__":
    print(table(Path(sys.argv[1]).read_text().splitlines()))
