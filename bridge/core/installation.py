"""Which installation wrote an object: two that share an owner id by mistake see each other before one deletes.

Two installations with one owner id and different rules each take the other's objects for their own. What is in steady
state gives no sign of another writer, so objects say who wrote their content last (`consul-bridge/installation`).

Where both want a target, each makes of it what its rules say, and takes away there what its rules do not need: a slice
or Endpoints that no writer updated any more would lead to addresses that are gone.

| the object names | this installation's own name | so |
| --- | --- | --- |
| none (an older version, a command from elsewhere) | known | it is signed, once |
| itself | known | nothing |
| another one, and it should be otherwise | known | written and signed, with a warning |
| another one, and it is as it should be | known | left: two that agree never write for the name |
| another one, and nothing of ours should stand at its target | known | a conflict: all of the target stays, \
unless it is forced or a user sent it away |
| another one, and it is not needed beside the desired objects (a spare slice, another output) | known | deleted, \
with a warning |
| any | not known (a command from elsewhere) | the name stays on it, and nothing else depends on it |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bridge.core.model import Action, Change, Current, Kind, Meta
from bridge.core.ownership import INSTALLATION, joined


def named(meta: Meta) -> str:
    """The installation that wrote an object last; "" when it names none."""
    return dict(meta.ownership).get(INSTALLATION, "")


def others(current: Current, owner: str, own: str) -> Iterator[tuple[Kind, str]]:
    """Our objects at a target that another installation wrote, each with its name; none while our own is not known."""
    for found in current.objects:
        if own and found.meta.owner == owner and named(found.meta) not in ("", own):
            yield found.meta.kind, named(found.meta)


def signed(change: Change, own: str, *, writes: bool, takes: bool) -> Change:
    """A change with the installation in what it writes.

    `writes`: an object without a name may be written for that alone. `takes`: one with another's name, too.
    """
    body, existing = change.body, change.existing
    if body is None:
        return change
    before = "" if existing is None else named(existing)
    name = own or before
    if not name:
        return change
    action, lacks = change.action, not before or (takes and before != own)
    if action is Action.UNCHANGED and change.reason is None and own and writes and lacks:
        action = Action.UPDATE
    meanwhile = None if change.meanwhile is None else signed(change.meanwhile, own, writes=False, takes=False)
    body = replace(body, annotations=joined(body.annotations, ((INSTALLATION, name),)))
    return replace(change, action=action, body=body, meanwhile=meanwhile)
