"""What a forced pass leaves on the objects that it writes, so that a bridge that holds what they lose lets it go too.

Two objects carry the same endpoints (`output: both`), and a running bridge sees them change one after the other, in
any order. Between the two writes of a forced pass it would find endpoints that only one of them has lost, hold them
still, and put them back. Therefore every object that loses ready endpoints by force says when that was decided
(`consul-bridge/released`), and the first one that is seen speaks for all of its target.

The annotation counts for `RELEASE_SECONDS` and once for each bridge (`guard`). It is not compared with what should be:
the next change that the object needs takes it off, and it costs no write of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime

from bridge.core.model import Action, Change, Current, EndpointsBody, Meta, Pairs, SliceBody
from bridge.core.ownership import RELEASED, SIGNATURES, joined

RELEASE_SECONDS = 600.0
"""How long after a forced pass its annotation still counts, by the clocks of both machines."""


def stamp(wall_seconds: float) -> str:
    """The annotation's value for a release at this time (seconds since 1970)."""
    return datetime.fromtimestamp(wall_seconds, UTC).isoformat(timespec="microseconds")


def released(current: Current, owner: str, wall_seconds: float) -> str:
    """The newest release of what our objects at a target carry that still counts; empty when there is none."""
    carriers: Iterable[Meta] = (o.meta for o in (current.endpoints, *current.slices) if o is not None)
    said = (dict(meta.ownership).get(RELEASED, "") for meta in carriers if meta.owner == owner)
    return max((value for value in said if _counts(value, wall_seconds)), default="")


def marked(change: Change, value: str) -> Change:
    """A change of an object that carries endpoints, with the annotation in what is written."""
    body = change.body
    if change.action not in (Action.CREATE, Action.UPDATE) or not isinstance(body, EndpointsBody | SliceBody):
        return change
    meanwhile = None if change.meanwhile is None else marked(change.meanwhile, value)
    annotations = joined(body.annotations, ((RELEASED, value),))
    return replace(change, body=replace(body, annotations=annotations), meanwhile=meanwhile)


def unmarked(annotations: Pairs) -> Pairs:
    """An object's annotations as they are compared with what should be."""
    return tuple(pair for pair in annotations if pair[0] not in SIGNATURES)


def _counts(value: str, wall_seconds: float) -> bool:
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        return False
    return at.tzinfo is not None and abs(wall_seconds - at.timestamp()) <= RELEASE_SECONDS
