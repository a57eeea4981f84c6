"""What a user means by the name of a service: a Consul service, a Service in Kubernetes, or something misspelt.

Consul's own names come first, then the mirrored Services (`name`, `namespace/name`), then Consul's names in other
spelling. Nothing is guessed: a name that is only near is suggested, not taken.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from bridge.core.model import Target

SUGGESTED = 3


@dataclass(frozen=True, slots=True)
class Meant:
    """`services`: Consul's names, () when there is none. `notes`: how they were found; `near`: what looks alike."""

    services: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    near: tuple[str, ...] = ()


def meant(given: str, listed: Collection[str], mirrored: Mapping[Target, Collection[str]]) -> Meant:
    """Which Consul services `given` means. `listed`: Consul's names. `mirrored`: what Services of ours come from."""
    known = {*listed, *(name for names in mirrored.values() for name in names)}
    if given in known:
        return Meant((given,))
    targets = sorted(target for target in mirrored if given in (target.name, str(target)))
    if targets:
        found = {target: sorted(mirrored[target]) for target in targets}
        notes = tuple(
            f"{target} in Kubernetes comes from Consul's {', '.join(names)}" for target, names in found.items()
        )
        return Meant(tuple(sorted({name for names in found.values() for name in names})), notes)
    spelt = sorted(name for name in known if name.casefold() == given.casefold())
    if spelt:
        return Meant(tuple(spelt), (f"Consul spells it {', '.join(spelt)}",))
    return Meant(near=near(given, known | {str(target) for target in mirrored if "/" in given}))


def near(given: str, known: Collection[str]) -> tuple[str, ...]:
    """Names that look like `given`, the most alike first."""
    folded = {name.casefold(): name for name in sorted(known)}
    alike = difflib.get_close_matches(given.casefold(), list(folded), n=SUGGESTED)
    return tuple(folded[name] for name in alike)
