"""Consul's JSON -> what it proves: instances, listings, checks, nodes. Small frozen values, their strings shared.

Answers come from foreign programs: whatever their shape, nothing in here raises anything but TransientError. An
entry that no Consul would serve makes the whole answer trouble: what else is missing from it is unknown. What anyone
may register and we cannot use (an address of 600 characters) is left out alone, with its reason. Of the outputs of
checks only the beginning of the one that says why an instance is not passing is kept, to be shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from sys import intern
from typing import Any

from bridge.consul.client import Answer
from bridge.core.model import Instance, Known, Listing, NamedPort, Pairs, Status, TaggedAddress, Unknown
from bridge.core.normalize import truncate
from bridge.core.reasons import Code, Reason
from bridge.errors import TransientError

NODE_MAINTENANCE = "_node_maintenance"
SERVICE_MAINTENANCE = "_service_maintenance:"

ANONYMOUS = "anonymous under default deny: without a token Consul shows nothing, and does not say so"
FILTERED = "Consul left results out for lack of rights (X-Consul-Results-Filtered-By-ACLs) and nothing remains"
HIDDEN = "Consul left results out for lack of rights (X-Consul-Results-Filtered-By-ACLs), some of what was there before"

_SEVERITY = {Status.PASSING: 0, Status.WARNING: 1, Status.UNKNOWN: 2, Status.CRITICAL: 3, Status.MAINTENANCE: 4}
_STATUS = {"passing": Status.PASSING, "warning": Status.WARNING, "critical": Status.CRITICAL}
_TEXT_LIMIT = 4096
_ADDRESS_LIMIT = 512
OUTPUT_LIMIT = 300
"""Characters of a check's output that are kept: 20,000 instances that all fail are 6 MB."""


def view_of(answer: Answer) -> Known | Unknown:
    """What an answer of `health/service` proves. Raises TransientError when it is no such answer."""
    if not isinstance(answer.data, list):
        raise TransientError("Consul's answer about a service is not a list")
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
    """What an answer of `catalog/services` proves. Raises TransientError when it is no such answer."""
    if not isinstance(answer.data, dict):
        raise TransientError("Consul's answer about its services is not a mapping")
    if not answer.data and answer.default_deny_anonymous:
        return Unknown(ANONYMOUS)
    if not answer.data and answer.filtered:
        return Unknown(FILTERED)
    if not all(tags is None or isinstance(tags, list) for tags in answer.data.values()):
        raise TransientError("Consul's answer about its services has something else than tags in it")
    return Listing({intern(name): frozenset(_strings(tags)) for name, tags in answer.data.items()})


def instances(data: Iterable[Any]) -> tuple[tuple[Instance, ...], tuple[tuple[str, Reason], ...]]:
    """The instances of `health/service`, sorted, and those that cannot be used: (instance, reason).

    Raises TransientError when an entry is none that Consul serves.
    """
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


def _by_node_and_id(instance: Instance) -> tuple[str, str]:
    return instance.node, instance.id


class _Shared:
    """Equal parts of one answer become one object: 20,000 instances in 6 MiB instead of 100, as measured."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[Any, Any] = {}

    def __call__(self, value: Any) -> Any:
        return self._values.setdefault(value, value)


def _instance(entry: Any, shared: _Shared) -> Instance | tuple[str, Reason]:
    """One instance, or its name and why it cannot be used."""
    node, service = (entry.get("Node"), entry.get("Service")) if isinstance(entry, dict) else (None, None)
    if not isinstance(node, dict) or not isinstance(service, dict):
        raise TransientError("Consul's answer about a service has an entry without Node or Service")
    name, id_ = node.get("Node"), service.get("ID")
    own, theirs = ("" if x is None else x for x in (service.get("Address"), node.get("Address")))
    if not (isinstance(name, str) and isinstance(id_, str) and isinstance(own, str) and isinstance(theirs, str)):
        raise TransientError("Consul's answer about a service has an entry whose names or addresses are no texts")
    if not 0 < len(name) <= _TEXT_LIMIT:
        return _unusable(name, id_, "node's name", len(name), f"not 1 to {_TEXT_LIMIT}")
    if not 0 < len(id_) <= _TEXT_LIMIT:
        return _unusable(name, id_, "id", len(id_), f"not 1 to {_TEXT_LIMIT}")
    if max(len(own), len(theirs)) > _ADDRESS_LIMIT:
        longest = max(len(own), len(theirs))
        return _unusable(name, id_, "address", longest, f"more than {_ADDRESS_LIMIT}")
    checks = entry.get("Checks")
    status, check = worst(checks)
    return Instance(
        node=intern(name),
        id=intern(id_),
        address=own,
        node_address=intern(theirs),
        port=_port(service.get("Port")),
        status=status,
        check=intern(check),
        ports=shared(_named_ports(service.get("Ports"))),
        tags=shared(tuple(sorted(set(_strings(service.get("Tags")))))),
        meta=shared(_pairs(service.get("Meta"))),
        node_meta=shared(_pairs(node.get("Meta"))),
        tagged_addresses=shared(_service_addresses(service.get("TaggedAddresses"))),
        node_tagged_addresses=shared(_node_addresses(node.get("TaggedAddresses"))),
        kind=intern(_text(service.get("Kind"))),
        output="" if status is Status.PASSING else intern(_output(checks, check)),
    )


def _output(checks: Any, decided: str) -> str:
    """What the check that decided said, on one line and cut; a maintenance has its reason in the notes."""
    for check in checks if isinstance(checks, list) and decided else ():
        if isinstance(check, dict) and check.get("CheckID") == decided:
            said = next((t for key in ("Output", "Notes") if isinstance(t := check.get(key), str) and t.strip()), "")
            return " ".join(said[: 4 * OUTPUT_LIMIT].split())[:OUTPUT_LIMIT]
    return ""


def _unusable(node: str, identity: str, what: str, length: int, limit: str) -> tuple[str, Reason]:
    return f"{truncate(node)}/{truncate(identity)}", Reason(Code.UNUSABLE, what=what, length=length, limit=limit)


def worst(checks: Any) -> tuple[Status, str]:
    """The worst status among checks, and the id of the check that decided it ("" when all is well or there is none).

    Order: maintenance > critical > unknown > warning > passing; of equals the first by id. A status that is not one
    of Consul's three is `unknown`: never ready by accident.
    """
    status, name = Status.PASSING, ""
    if checks is not None and not isinstance(checks, list):
        return Status.UNKNOWN, ""
    for check in checks or ():
        if not isinstance(check, dict):
            check = {}
        id_ = _text(check.get("CheckID"))
        one = _status_of(id_, check.get("Status"))
        difference = _SEVERITY[one] - _SEVERITY[status]
        if difference > 0 or (difference == 0 and one is not Status.PASSING and id_ < name):
            status, name = one, id_
    return status, name


def _status_of(check: str, status: Any) -> Status:
    if check == NODE_MAINTENANCE or check.startswith(SERVICE_MAINTENANCE):
        return Status.MAINTENANCE
    return _STATUS.get(status, Status.UNKNOWN) if isinstance(status, str) else Status.UNKNOWN


# --------------------------------------------------------------------------- parts


def _text(value: Any) -> str:
    return value if isinstance(value, str) and len(value) <= _TEXT_LIMIT else ""


def _strings(values: Any) -> Iterable[str]:
    if isinstance(values, list):
        for value in values:
            if isinstance(value, str) and len(value) <= _TEXT_LIMIT:
                yield intern(value)


def _port(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 65535 else 0


def _pairs(values: Any) -> Pairs:
    if not isinstance(values, dict) or not values:
        return ()
    return tuple(
        sorted(
            (intern(key), intern(value))
            for key, value in values.items()
            if isinstance(key, str) and isinstance(value, str) and max(len(key), len(value)) <= _TEXT_LIMIT
        )
    )


def _named_ports(values: Any) -> tuple[NamedPort, ...]:
    if not isinstance(values, list) or not values:
        return ()
    found = (
        NamedPort(intern(_text(v.get("Name"))), _port(v.get("Port")), v.get("Default") is True)
        for v in values
        if isinstance(v, dict)
    )
    return tuple(sorted({p for p in found if p.name and p.number}))


def _service_addresses(values: Any) -> tuple[TaggedAddress, ...]:
    if not isinstance(values, dict) or not values:
        return ()
    found = (
        TaggedAddress(intern(name), _text(v.get("Address")), _port(v.get("Port")))
        for name, v in values.items()
        if isinstance(v, dict) and _text(name)
    )
    return tuple(sorted(a for a in found if a.address))


def _node_addresses(values: Any) -> tuple[TaggedAddress, ...]:
    if not isinstance(values, dict) or not values:
        return ()
    return tuple(
        sorted(TaggedAddress(intern(name), _text(v)) for name, v in values.items() if _text(name) and _text(v))
    )


# --------------------------------------------------------------------------- what the aggregate watches say


def checks_of(answer: Answer) -> Mapping[tuple[str, str], tuple[str, str, int, str]]:
    """`health/state/*` as {(node, check id): (service, status, modify index, instance id)}.

    A node's own check has service and instance id "".
    """
    if not isinstance(answer.data, list) or not all(isinstance(c, dict) for c in answer.data):
        raise TransientError("Consul's answer about checks is not a list of checks")
    return {
        (_text(c.get("Node")), _text(c.get("CheckID"))): (
            _text(c.get("ServiceName")),
            _text(c.get("Status")),
            _number(c.get("ModifyIndex")),
            _text(c.get("ServiceID")),
        )
        for c in answer.data
    }


def nodes_of(answer: Answer) -> Mapping[str, tuple[int, int]]:
    """`catalog/nodes` as {node: (create index, modify index)}."""
    if not isinstance(answer.data, list) or not all(isinstance(n, dict) and n.get("Node") for n in answer.data):
        raise TransientError("Consul's answer about nodes is not a list of nodes")
    return {
        intern(name): (_number(n.get("CreateIndex")), _number(n.get("ModifyIndex")))
        for n in answer.data
        if (name := _text(n.get("Node")))
    }


def services_on(answer: Answer) -> tuple[int, Mapping[str, tuple[str, int]]]:
    """`catalog/node-services`: the node's modify index, {instance id: (service, modify index)}; empty when gone."""
    data = answer.data if isinstance(answer.data, dict) else {}
    node, services = data.get("Node"), data.get("Services")
    found = {
        id_: (name, _number(s.get("ModifyIndex")))
        for s in (services if isinstance(services, list) else ())
        if isinstance(s, dict) and (name := _text(s.get("Service"))) and (id_ := _text(s.get("ID")))
    }
    return (_number(node.get("ModifyIndex")) if isinstance(node, dict) else 0), found


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
