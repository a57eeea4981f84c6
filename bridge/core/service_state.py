"""In what state a mirrored service is: the one answer that status, page and metrics give.

The first line that holds decides:

| what is so | state |
| --- | --- |
| nothing could be planned: one side is not known | unknown |
| a write failed | failed |
| an object of another owner is in the way | conflict |
| the guard holds something | held |
| something is still to be written, or what readers see has not settled yet | differs |
| all EndpointSlices together are not what Consul says, and nothing is to be written | out of sync |
| a Consul service could not be read when it was last tried | unknown |
| none of these | in sync |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from bridge.core.model import Change, Plan


class ServiceState(StrEnum):
    """The state of a mirrored service."""

    IN_SYNC = "in sync"
    DIFFERS = "differs"
    OUT_OF_SYNC = "out of sync"
    HELD = "held"
    CONFLICT = "conflict"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class ServiceRow:
    """A mirrored service on both sides, as `bridge status` and the page show it. `state` is a word of ServiceState.

    What Consul has is counted as it would be mirrored; while the guard holds something it is more (or less) than
    what Kubernetes is given. `command` releases what is held.
    """

    namespace: str
    name: str
    service: str
    datacenter: str
    consul_ready: int
    consul_not_ready: int
    kubernetes_ready: int
    kubernetes_not_ready: int
    state: str
    detail: str
    command: str = ""


def service_state(plan: Plan | None, *, waiting: bool, failed: bool = False, unread: bool = False) -> ServiceState:
    """The state of the service with this plan (None: none could be made).

    `waiting`: some of the plan's writes are still to be made. `failed`: one of them failed. `unread`: a Consul service
    of the plan could not be read when it was last tried.
    """
    if plan is None:
        return ServiceState.UNKNOWN
    if failed:
        return ServiceState.FAILED
    if plan.conflicts:
        return ServiceState.CONFLICT
    if plan.held:
        return ServiceState.HELD
    if waiting or (plan.deviations and plan.settling):
        return ServiceState.DIFFERS
    if plan.deviations:
        return ServiceState.OUT_OF_SYNC
    return ServiceState.UNKNOWN if unread else ServiceState.IN_SYNC


def state_detail(state: ServiceState, plan: Plan, waiting: Sequence[Change], holds: Sequence[str]) -> str:
    """What is behind the state, as far as the plan tells it. `holds`: the guard's reasons as they are to be shown."""
    match state:
        case ServiceState.CONFLICT:
            return "; ".join(f"{c.kind}: {c.reason}" for c in plan.conflicts)
        case ServiceState.HELD:
            return "; ".join(holds)
        case ServiceState.DIFFERS if waiting:
            return ", ".join(f"{c.action} {c.kind}" for c in waiting)
        case ServiceState.DIFFERS | ServiceState.OUT_OF_SYNC:
            return "; ".join(plan.deviations)
        case _:
            return "; ".join(plan.warnings)
