"""What an aggregate watch's answer names: whose view must be read again. Pure: bodies and views in, names out.

| aggregate watch | wakes for | names |
| --- | --- | --- |
| health/state/critical, /warning | flips, maintenance, node checks | services of the checks that differ (of a node's |
| | | own check: all on the node) |
| catalog/nodes | address and meta of nodes, new and gone nodes | all on the nodes that differ |
| catalog/services | names and tags; all else of the catalog, unnamed | services that came, went, changed their tags |

Bodies are compared with the ones before, keyed by what identifies an entry, so that a flap between two bodies still
shows (its ModifyIndex moved). After an aggregate watch was unsynced (at first, after an error) bodies alone prove
nothing: `hints_after_gap` names everything that either body or the views would contradict.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from bridge.core.model import Instance, Status

Checks = Mapping[tuple[str, str], tuple[str, str, int, str]]
"""{(node, check id): (service name or "", status, modify index, instance id or "")}."""

Nodes = Mapping[str, tuple[int, int]]
"""{node: (create index, modify index)}."""


@dataclass(slots=True)
class ChangeHints:
    """Who must be read again. Values are the index that a view must have reached to need no reading (0: none does)."""

    services: dict[str, int] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)
    instances: dict[tuple[str, str], str] = field(default_factory=dict)
    """{(node, instance id): service} of the checks. An instance that is registered under another name keeps its checks,
    and these the old name: Consul moves the old service's index then, and not the new one's.
    """

    def service(self, name: str, index: int) -> None:
        """Name a service; of two indexes the one that demands more stays."""
        self.services[name] = _stricter(self.services.get(name), index)

    def node(self, name: str, index: int) -> None:
        """Name a node, and with it every service on it."""
        self.nodes[name] = _stricter(self.nodes.get(name), index)


def _stricter(before: int | None, index: int) -> int:
    return index if before is None else 0 if 0 in (before, index) else max(before, index)


def flips(before: Checks, after: Checks, since: int = 0) -> ChangeHints:
    """Who differs between two bodies of one status list; `since`: the index of the first.

    A check that was not in it although it is older, or that became older, is of a snapshot that was restored: then no
    view's index says that it is newer.
    """
    hints = ChangeHints()
    for key, check in after.items():
        old = before.get(key)
        if old != check:
            newer = check[2] > since and (old is None or old[2] < check[2])
            _name(hints, key, check, check[2] if newer else 0)
            if old is not None and (old[0], old[3]) != (check[0], check[3]):
                _name(hints, key, old, 0)  # whom it left: that one's index does not move
    for key, check in before.items():
        if key not in after:
            _name(hints, key, check, 0)  # when it left is not said
    return hints


def hints_after_gap(before: Checks, after: Checks) -> ChangeHints:
    """Who may have changed while a status list was not watched, as far as the bodies tell (see `contradicts` too)."""
    hints = flips({}, after)
    for key, check in before.items():
        if key not in after:
            _name(hints, key, check, 0)
    return hints


def _name(hints: ChangeHints, key: tuple[str, str], check: tuple[str, str, int, str], index: int) -> None:
    if check[0]:
        hints.service(check[0], index)
        if check[3]:
            hints.instances[key[0], check[3]] = check[0]
    else:
        hints.node(key[0], index)


def contradicts(instances: Iterable[Instance], statuses: frozenset[Status], there: Collection[tuple[str, str]]) -> bool:
    """Whether a view shows an instance in one of `statuses` whose deciding check a body of that status lacks.

    `there`: (node in lower case, check id) of the body's checks. A check may spell its node otherwise than a view.
    """
    return any(i.status in statuses and (i.node.lower(), i.check) not in there for i in instances)


def moved_nodes(before: Nodes, after: Nodes) -> tuple[ChangeHints, tuple[str, ...]]:
    """Nodes that changed or went, and those that are new (what they bring is not in any view yet)."""
    hints = ChangeHints()
    for node, indexes in after.items():
        if node in before and before[node] != indexes:
            hints.node(node, indexes[1])
    for node in before.keys() - after.keys():
        hints.node(node, 0)
    return hints, tuple(sorted(after.keys() - before.keys()))
