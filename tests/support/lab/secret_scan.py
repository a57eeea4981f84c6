"""What the lab's servers and tests give out in confidence; no program under test may ever say any of it.

Every command, log and page that goes through tests.support.program is checked, so that each test on real servers is a
test of this as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

SHORTEST = 8
"""A shorter word stands in many a line by chance."""

_given_out: set[str] = set()


def secret(token: str) -> str:
    """Remember that no output may contain `token`; returns it."""
    _given_out.update(line for line in token.splitlines() if len(line) >= SHORTEST)
    return token


def learn(environment: Mapping[str, str]) -> None:
    """The same for what an environment hands to a program: Consul's token, or the file in which it is."""
    for name, value in environment.items():
        if name.endswith("_TOKEN"):
            secret(value)
        elif name.endswith("_TOKEN_FILE") and Path(value).is_file():
            secret(Path(value).read_text(errors="replace").strip())


def untold(text: str, where: str) -> str:
    """Returns `text`; AssertionError with the line, its secrets blotted, when one stands in it."""
    tokens = sorted(_given_out, key=len, reverse=True)
    for token in tokens:
        if token in text:
            line = next(line for line in text.splitlines() if token in line)
            told = re.sub("|".join(map(re.escape, tokens)), "<SECRET>", f"{where} has a secret in it: {line}")
            raise AssertionError(told[:600])
    return text
