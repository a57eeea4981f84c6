"""Consul's answers -> what they prove: instances, listings, checks, nodes. Small frozen values, their strings shared.

Answers come from foreign programs. An entry that no Consul would serve makes the whole answer trouble (wire.py): what
else is missing from it is unknown. What anyone may register and we cannot use (an address of 600 characters) is left
out alone, with its reason, so nothing in here raises. Of the outputs of checks only the beginning of the one that says
why an instance is not passing is kept, to be shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter, itemgetter
from sys import intern
from typing import Any, TypeVar

from bridge.consul.client import Answer
from bridge.consul.wire import Check, Entry, NodeRow, StateCheck
from bridge.core.model import Instance, Known, Listing, NamedPort, Pairs, Status, TaggedAddress, Unknown
from bridge.core.normalize import truncate
from bridge.core.reasons import Code, Reason
from bridge.errors import TransientError

T = TypeVar("T")

NODE_MAINTENANCE = "_node_maintenance"
SERVICE_MAINTENANCE = "_service_maintenance:"

ANONYMOUS = "anonymous under default deny: without a token Consul shows nothing, and does not say so"
FILTERED = "Consul left results out for lack of rights (X-Consul-Results-Filtered-By-ACLs) and nothing remains"
HIDDEN = "Consul left results out for lack of rights (X-Consul-Results-Filtered-By-ACLs), some of what was there before"

_SEVERITY = (Status.PASSING, Status.WARNING, Status.UNKNOWN, Status.CRITICAL, Status.MAINTENANCE)
_UNKNOWN, _MAINTENANCE = 2, 4
_SEVERITY_OF = {"passing": 0, "warning": 1, "critical": 3, "maintenance": _MAINTENANCE}
_TEXT_LIMIT = 4096
_ADDRESS_LIMIT = 512
OUTPUT_LIMIT = 300
"""Characters of a check's output that are kept: 20,000 instances that all fail are 6 MB."""


def view_of(answer: Answer) -> Known | Unknown:
    """What an answer of `health/service` proves."""
    if not answer.data and answer.default_deny_anonymous:
        return Unknown(ANONYMOUS)
    if not answer.data and answer.filtered:
        return Unknown(FILTERED)
    found, left_out = instances(answer.data)
    return Known(found, acl_filtered=answer.filtered, invalid=left_out)


def proved(
    answer: Answer, before: Known | None, *, waited: bool, view: Known | Unknown | None = None
) -> Known | Unknown | None:
    """What an answer of `health/service` proves after `before`; None: only a plain read can tell.

    `view` is what `view_of` made of it, where that is known. `waited`: the streaming backend answered (streamed.py has
    what else it does not prove).

    When a token loses rights, instances vanish from the answers exactly as if they were deregistered, and a query that
    waited (Consul's streaming backend) does not even say that it left something out: only a plain read says so.
    """
    state = view_of(answer) if view is None else view
    if isinstance(state, Unknown) or before is None:
        return state
    if waited and before.acl_filtered:
        state = replace(state, acl_filtered=True)
    if not {(i.node, i.id) for i in before.instances} - {(i.node, i.id) for i in state.instances}:
        return state
    if waited:
        return None
    return Unknown(HIDDEN) if answer.filtered else state


def listing_of(answer: Answer) -> Listing | Unknown:
    """What an answer of `catalog/services` proves."""
    if not answer.data and answer.default_deny_anonymous:
        return Unknown(ANONYMOUS)
    if not answer.data and answer.filtered:
        return Unknown(FILTERED)
    return Listing({intern(name): frozenset(_strings(tags) if tags else ()) for name, tags in answer.data.items()})


def instances(data: Iterable[Entry]) -> tuple[tuple[Instance, ...], tuple[tuple[str, Reason], ...]]:
    """The instances of `health/service`, sorted, and those that cannot be used: (instance, reason)."""
    shared = _Shared()
    found: list[Instance] = []
    left_out: set[tuple[str, Reason]] = set()
    for entry in data:
        one = _instance(entry, shared)
        if isinstance(one, Instance):
            found.append(one)
        else:
            left_out.add(one)
    found.sort(key=_by_node_and_id)
    return tuple(found), tuple(sorted(left_out))


_by_node_and_id = attrgetter("node", "id")


class _Shared:
    """Equal parts of one answer are made once: 20,000 instances in 6 MiB instead of 100, as measured."""

    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}

    def text(self, made: str) -> str:
        """For texts that are unique or those of one service: there are too many to intern (3.8 MB for 20,000 ids)."""
        found: str = self._made.setdefault(made, made)
        return found

    def one(self, made: tuple[T, ...]) -> tuple[T, ...]:
        """What was made before and is equal."""
        return self._made.setdefault(made, made) if made else ()

    def of(self, make: Callable[[Any], tuple[T, ...]], value: Any) -> tuple[T, ...]:
        """`make(value)`, looked up by the value itself: `make` may tell apart what `==` does, so nothing but texts."""
        if not value or not isinstance(value, (list, dict)):
            return ()
        key = (make, *(value if isinstance(value, list) else value.items()))
        try:
            made: tuple[T, ...] | None = self._made.get(key)
        except TypeError:  # a list or an object where a text should be
            return self.one(make(value))
        if made is None:
            made = self._made[key] = self.one(make(value))
        return made


def _instance(entry: Entry, shared: _Shared) -> Instance | tuple[str, Reason]:
    """One instance, or its name and why it cannot be used."""
    node, service = entry.node, entry.service
    name, id_, own, theirs = node.name, service.id, service.address or "", node.address or ""
    if not 0 < len(name) <= _TEXT_LIMIT:
        return _unusable(name, id_, "node's name", len(name), f"not 1 to {_TEXT_LIMIT}")
    if not 0 < len(id_) <= _TEXT_LIMIT:
        return _unusable(name, id_, "id", len(id_), f"not 1 to {_TEXT_LIMIT}")
    if max(len(own), len(theirs)) > _ADDRESS_LIMIT:
        longest = max(len(own), len(theirs))
        return _unusable(name, id_, "address", longest, f"more than {_ADDRESS_LIMIT}")
    checks = entry.checks or ()
    status, check = worst(checks)
    return Instance(
        node=intern(name),
        id=shared.text(id_),
        address=own,
        node_address=intern(theirs),
        port=service.port if type(service.port) is int else 0,
        status=status,
        check=intern(check),
        ports=shared.one(_named_ports(service.ports)) if service.ports else (),
        tags=shared.of(_tags, service.tags),
        meta=shared.of(_pairs, service.meta),
        node_meta=shared.of(_pairs, node.meta),
        tagged_addresses=_service_addresses(service.tagged_addresses) if service.tagged_addresses else (),
        node_tagged_addresses=shared.of(_node_addresses, node.tagged_addresses),
        kind=intern(_text(service.kind)) if service.kind else "",
        output="" if status is Status.PASSING else intern(_output(checks, check)),
    )


def _output(checks: Iterable[Check], decided: str) -> str:
    """What the check that decided said, on one line and cut; a maintenance has its reason in the notes."""
    for check in checks if decided else ():
        if check.id == decided:
            said = next((t for t in (check.output, check.notes) if isinstance(t, str) and t.strip()), "")
            return " ".join(said[: 4 * OUTPUT_LIMIT].split())[:OUTPUT_LIMIT]
    return ""


def _unusable(node: str, identity: str, what: str, length: int, limit: str) -> tuple[str, Reason]:
    return f"{truncate(node)}/{truncate(identity)}", Reason(Code.UNUSABLE, what=what, length=length, limit=limit)


def worst(checks: Iterable[Check]) -> tuple[Status, str]:
    """The worst status among checks, and the id of the check that decided it ("" when all is well or there is none).

    Order: maintenance > critical > unknown > warning > passing; of equals the first by id. A status that is not one
    of Consul's three, nor `maintenance` (what a peer says in its one check of an instance), is `unknown`: never ready
    by accident.
    """
    worst, name = 0, ""
    for check in checks:
        id_ = _text(check.id)
        one = _severity(id_, check.status)
        if one > worst or (one == worst and one and id_ < name):
            worst, name = one, id_
    return _SEVERITY[worst], name


def _severity(check: str, status: Any) -> int:
    if check == NODE_MAINTENANCE or check.startswith(SERVICE_MAINTENANCE):
        return _MAINTENANCE
    return _SEVERITY_OF.get(status, _UNKNOWN) if isinstance(status, str) else _UNKNOWN


# --------------------------------------------------------------------------- parts


def _text(value: Any) -> str:
    return value if isinstance(value, str) and len(value) <= _TEXT_LIMIT else ""


def _strings(values: Iterable[Any]) -> Iterable[str]:
    for value in values:
        if isinstance(value, str) and len(value) <= _TEXT_LIMIT:
            yield intern(value)


def _port(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 65535 else 0


def _tags(values: Any) -> tuple[str, ...]:
    return tuple(sorted(set(_strings(values)))) if isinstance(values, list) else ()


def _pairs(values: Any) -> Pairs:
    if not isinstance(values, dict):
        return ()
    return tuple(
        sorted(
            (intern(key), intern(value))
            for key, value in values.items()
            if isinstance(value, str) and max(len(key), len(value)) <= _TEXT_LIMIT
        )
    )


def _named_ports(values: Any) -> tuple[NamedPort, ...]:
    if not isinstance(values, list):
        return ()
    found = (
        NamedPort(intern(_text(v.get("Name"))), _port(v.get("Port")), v.get("Default") is True)
        for v in values
        if isinstance(v, dict)
    )
    return tuple(sorted({p for p in found if p.name and p.number}))


def _service_addresses(values: Any) -> tuple[TaggedAddress, ...]:
    if not isinstance(values, dict):
        return ()
    return tuple(
        TaggedAddress(intern(name), address, _port(v.get("Port")))
        for name, v in sorted(values.items(), key=_first)
        if isinstance(v, dict) and _text(name) and (address := _text(v.get("Address")))
    )


def _node_addresses(values: Any) -> tuple[TaggedAddress, ...]:
    if not isinstance(values, dict):
        return ()
    return tuple(
        TaggedAddress(intern(name), v) for name, v in sorted(values.items(), key=_first) if _text(name) and _text(v)
    )


_first = itemgetter(0)


# --------------------------------------------------------------------------- what the aggregate watches say


def checks_of(answer: Answer) -> Mapping[tuple[str, str], tuple[str, str, int, str]]:
    """`health/state/*` as {(node, check id): (service, status, modify index, instance id)}.

    A node's own check has service and instance id "".
    """
    checks: Sequence[StateCheck] = answer.data
    return {
        (_text(c.node), _text(c.id)): (_text(c.service), _text(c.status), _number(c.modified), _text(c.service_id))
        for c in checks
    }


def nodes_of(answer: Answer) -> Mapping[str, tuple[int, int]]:
    """`catalog/nodes` as {node: (create index, modify index)}. Raises TransientError when a node has no name."""
    nodes: Sequence[NodeRow] = answer.data
    if not all(node.name for node in nodes):
        raise TransientError("Consul's answer about nodes has one without a name")
    return {intern(name): (_number(n.created), _number(n.modified)) for n in nodes if (name := _text(n.name))}


def services_on(answer: Answer) -> tuple[int, Mapping[str, tuple[str, int]]]:
    """`catalog/node-services`: the node's modify index, {instance id: (service, modify index)}; empty when gone."""
    if answer.data is None:
        return 0, {}
    node, services = answer.data.node, answer.data.services or ()
    found = {id_: (name, _number(s.modified)) for s in services if (name := _text(s.name)) and (id_ := _text(s.id))}
    return (_number(node.modified) if node is not None else 0), found


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
