"""Consul's answers, read straight from their bytes into slotted structures: what no one reads is never built.

A structure names the fields that are read; msgspec passes over all others, which are most of an answer (definitions,
weights, proxies). A field that may be odd without making the rest doubtful is `Any` here and judged in decode.py. What
must be a text in every answer of Consul's is a text here, so that anything else makes the whole answer trouble.

What msgspec refuses and `json` reads (`json_shape`) is put into the same structures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct, field

from bridge.errors import TransientError
from bridge.json_shape import Shape


class MisshapenError(TransientError):
    """JSON that Consul would not give; the text says where in it."""


class Check(Struct, gc=False):
    """A check of an instance or of its node."""

    id: Any = field(name="CheckID", default=None)
    status: Any = field(name="Status", default=None)
    output: Any = field(name="Output", default=None)
    notes: Any = field(name="Notes", default=None)
    modified: Any = field(name="ModifyIndex", default=None)


class Node(Struct, gc=False):
    """The node of an instance."""

    name: str = field(name="Node")
    address: str | None = field(name="Address", default=None)
    meta: Any = field(name="Meta", default=None)
    tagged_addresses: Any = field(name="TaggedAddresses", default=None)
    modified: Any = field(name="ModifyIndex", default=None)


class Service(Struct, gc=False):
    """An instance without its node."""

    id: str = field(name="ID")
    address: str | None = field(name="Address", default=None)
    port: Any = field(name="Port", default=None)
    ports: Any = field(name="Ports", default=None)
    tags: Any = field(name="Tags", default=None)
    meta: Any = field(name="Meta", default=None)
    tagged_addresses: Any = field(name="TaggedAddresses", default=None)
    kind: Any = field(name="Kind", default=None)
    modified: Any = field(name="ModifyIndex", default=None)


class Entry(Struct, gc=False):
    """One instance in `health/service`."""

    node: Node = field(name="Node")
    service: Service = field(name="Service")
    checks: list[Check] | None = field(name="Checks", default=None)


class StateCheck(Struct, gc=False):
    """One check in `health/state`. A node's own check has no service."""

    node: Any = field(name="Node", default=None)
    id: Any = field(name="CheckID", default=None)
    service: Any = field(name="ServiceName", default=None)
    service_id: Any = field(name="ServiceID", default=None)
    status: Any = field(name="Status", default=None)
    modified: Any = field(name="ModifyIndex", default=None)


class NodeRow(Struct, gc=False):
    """One node in `catalog/nodes`, and in `catalog/node-services`."""

    name: Any = field(name="Node", default=None)
    datacenter: Any = field(name="Datacenter", default=None)
    created: Any = field(name="CreateIndex", default=None)
    modified: Any = field(name="ModifyIndex", default=None)


class ServiceOnNode(Struct, gc=False):
    """One instance in `catalog/node-services`."""

    id: Any = field(name="ID", default=None)
    name: Any = field(name="Service", default=None)
    modified: Any = field(name="ModifyIndex", default=None)


class NodeServices(Struct, gc=False):
    """`catalog/node-services`."""

    node: NodeRow | None = field(name="Node", default=None)
    services: list[ServiceOnNode] | None = field(name="Services", default=None)


def _shape(into: Any, mend: Callable[[Any], Any] = lambda data: data) -> Shape[Any]:
    """Reads into `into`; `mend` is for JSON that does not fit, and may make it fit. Else MisshapenError is raised."""

    def convert(data: Any) -> Any:
        try:
            return msgspec.convert(mend(data), into)
        except (msgspec.ValidationError, UnicodeError) as error:  # the latter: half a surrogate pair names a field
            raise MisshapenError(str(error)) from None

    return Shape(into, convert)


def _with_checks(data: Any) -> Any:
    """Instances whose checks are no checks: of such a check nothing is known, its status least of all."""
    for entry in data if isinstance(data, list) else ():
        if isinstance(entry, dict) and entry.get("Checks") is not None:
            listed = entry["Checks"] if isinstance(entry["Checks"], list) else [None]
            entry["Checks"] = [check if isinstance(check, dict) else {} for check in listed]
    return data


def _with_services(data: Any) -> Any:
    """A node without what is no service on it."""
    if not isinstance(data, dict):
        return None
    services = data.get("Services")
    listed = [s for s in services if isinstance(s, dict)] if isinstance(services, list) else None
    node = data.get("Node")
    return {"Node": node if isinstance(node, dict) else None, "Services": listed}


HEALTH: Shape[list[Entry]] = _shape(list[Entry], _with_checks)
LISTING: Shape[dict[str, list[Any] | None]] = _shape(dict[str, list[Any] | None])
CHECKS: Shape[list[StateCheck]] = _shape(list[StateCheck])
NODES: Shape[list[NodeRow]] = _shape(list[NodeRow])
ON_NODE: Shape[NodeServices | None] = _shape(NodeServices | None, _with_services)
ANYTHING: Shape[Any] = _shape(Any)
