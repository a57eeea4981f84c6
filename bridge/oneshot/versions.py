"""Which versions of the servers the bridge was tried with (docs/compatibility.md), and what check says of others."""

from __future__ import annotations

import re
from collections.abc import Mapping

from bridge.oneshot.probe import OK, WARNING, Probe

Minor = tuple[int, int]
TRIED: Mapping[str, tuple[Minor, ...]] = {
    "kubernetes": ((1, 27), (1, 29), (1, 31), (1, 33), (1, 35), (1, 37)),
    "consul": ((1, 15), (1, 16), (1, 18), (1, 20), (1, 21), (1, 22)),
}
"""In ascending order; a test compares them with the page."""


def version_probe(server: str, text: str) -> Probe:
    """Whether `server` was tried in the version of `text`: one between two that were is fine, another may not be."""
    name, tried = f"{server} version", TRIED[server]
    found = re.search(r"(\d+)\.(\d+)", text)
    minor = (int(found[1]), int(found[2])) if found else tried[-1]
    if minor in tried:
        return Probe(name, OK, text)
    which, others = f"{server.capitalize()} {minor[0]}.{minor[1]}", ", ".join(f"{a}.{b}" for a, b in tried)
    if tried[0] < minor < tried[-1]:
        return Probe(name, OK, f"{text} ({which} was not tried itself; {others} were)")
    age = "older" if minor < tried[0] else "newer"
    detail = f"{text}: the bridge was never tried with {which}, which is {age} than those that were: {others}"
    return Probe(name, WARNING, detail, "try bridge sync --dry-run first; docs/compatibility.md says what differs")
