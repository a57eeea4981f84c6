"""What an answer of Consul's streaming backend proves by itself, and what only a plain read can tell. Pure.

A blocking query on `health/service` is answered from a view that Consul keeps beside its catalog and that follows
events. The view tells nodes, ids and the ids in checks apart by case, the catalog does not, so an event may miss what
it is about: an instance stays in the view after the catalog dropped it, or a check is missing there (Consul
1.22.0, docs/consul.md has what was seen). The indexes of both are the same, so they prove nothing.

So a change is believed only where the answer explains it: what appears or differs must carry an index above the one
that was asked with, and a query that returned before its time must show something that does. What goes away, or turns
healthy because its check is gone, is never explained by an answer. All else is read plainly first; an ordinary flip,
registration or move explains itself and costs no read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.consul.client import Answer
from bridge.consul.wire import Entry
from bridge.core.model import Instance, Known, Status

Key = tuple[str, str]
"""(node, id) as Consul shows them."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why an answer needs a plain read, and what it showed. `proof`: the catalog cannot have shown this."""

    reason: str
    shown: Known
    index: int
    proof: bool = False


def folded(key: Key) -> Key:
    """As the catalog compares: without case."""
    return key[0].lower(), key[1].lower()


def doubt(answer: Answer, shown: Known, before: Known, asked: int, *, certain: bool = True) -> Doubt | None:
    """Why `answer`, decoded as `shown`, must not be believed after `before`; None: it explains itself.

    `asked` is the index that was sent: what the answer's entries carry up to it was part of `before`. Not `certain`: an
    instance may appear although nothing of it is new, with a filter (a check of it is gone) and with new rights.
    """

    def because(reason: str, proof: bool = False) -> Doubt:
        return Doubt(reason, shown, answer.index, proof)

    now = {(i.node, i.id): i for i in shown.instances}
    if len(now) != len({folded(key) for key in now}):
        return because("it shows one instance twice, in upper and lower case", proof=True)
    then = {(i.node, i.id): i for i in before.instances}
    if not then.keys() <= now.keys():
        return because("it lacks an instance")
    changed = [(key, instance) for key, instance in now.items() if then.get(key) != instance]
    if not changed and answer.index <= asked:
        return None
    newest, checks = _indexes(answer.data)
    for key, instance in changed:
        old = then.get(key)
        if newest.get(key, 0) <= asked:
            if old is None:
                return because("it shows an instance that is older than the read that did not have it", certain)
            return because("it shows an instance otherwise, and nothing of it is newer")
        if old is not None and _improved(old, instance) and old.check not in checks[key]:
            return because("it lacks the check that decided about an instance")
    if not changed and max(newest.values(), default=0) <= asked:
        return because("it came before its time, and shows nothing new")
    return None


def _improved(old: Instance, new: Instance) -> bool:
    return old.status is not Status.PASSING and old.check != new.check


def _indexes(data: Sequence[Entry]) -> tuple[Mapping[Key, int], Mapping[Key, frozenset[str]]]:
    """Of each entry the highest index in it, and the ids of its checks."""
    newest: dict[Key, int] = {}
    checks: dict[Key, frozenset[str]] = {}
    for entry in data:
        node, service, of = entry.node, entry.service, entry.checks or ()
        key = node.name, service.id
        newest[key] = max(_index(part.modified) for part in (node, service, *of))
        checks[key] = frozenset(c.id for c in of if isinstance(c.id, str))
    return newest, checks


def _index(index: Any) -> int:
    return index if isinstance(index, int) and not isinstance(index, bool) else 0
