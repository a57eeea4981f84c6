"""In what state a mirrored service is: the one answer that status, page and metrics give.

The first line that holds decides:

| what is so | state |
| --- | --- |
| nothing could be planned: one side is not known | unknown |
| a write failed | failed |
| an object of another owner is in the way | conflict |
| the guard holds something | held |
| something is still to be written, or all EndpointSlices together are not what Consul says | out_of_sync |
| a Consul service could not be read when it was last tried | unknown |
| none of these | in_sync |

A service that is in sync and has no ready endpoint is marked besides (`without_ready_endpoint`): Kubernetes has what
Consul says, and requests fail all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from bridge.core.model import Change, Plan
from bridge.core.reasons import Code

NO_READY_ENDPOINT = "no_ready_endpoint"
"""The mark of a service that is as Consul says and that gets no traffic all the same."""


class ServiceState(StrEnum):
    """The state of a mirrored service. The word is the same in JSON, metrics and addresses of the page."""

    IN_SYNC = "in_sync"
    OUT_OF_SYNC = "out_of_sync"
    HELD = "held"
    CONFLICT = "conflict"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class ServiceRow:
    """A mirrored service on both sides, as `bridge status` and the page show it. `state` is a word of ServiceState.

    What Consul has is counted as it would be mirrored; while the guard holds something it is more (or less) than
    what Kubernetes is given. `command` releases what is held. `slices_deviate`: an out-of-sync service whose
    EndpointSlices together have been something else than Consul says for longer than the control plane needs
    (`Plan.deviates`); writes alone may not correct that. `active_datacenter`: of several that a rule combines by
    failover, the one that carries the traffic.

    `reasons` are the codes behind `detail`: conflicts, holds, warnings, deviations. Only `bridge status` has `since`:
    when our last write to its Endpoints or slices was, as the API server notes it for each field manager
    (managedFields, RFC 3339 in UTC; "" before the first one). So long has Kubernetes held what it holds.
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
    since: str = ""
    reasons: tuple[str, ...] = ()
    slices_deviate: bool = False
    active_datacenter: str = ""

    @property
    def mark(self) -> str:
        """The state, or what is notable of a service that is in sync: `no_ready_endpoint`."""
        return NO_READY_ENDPOINT if without_ready_endpoint(self.state, self.kubernetes_ready) else self.state

    def to_json(self) -> dict[str, Any]:
        return {
            "service": self.service,
            "datacenter": self.datacenter,
            "active_datacenter": self.active_datacenter or None,
            "namespace": self.namespace,
            "name": self.name,
            "consul": {"ready": self.consul_ready, "not_ready": self.consul_not_ready},
            "kubernetes": {"ready": self.kubernetes_ready, "not_ready": self.kubernetes_not_ready},
            "state": self.state,
            "no_ready_endpoint": self.mark == NO_READY_ENDPOINT,
            "slices_deviate": self.slices_deviate,
            "since": self.since or None,
            "reasons": list(self.reasons),
            "detail": self.detail,
        }


def service_state(plan: Plan | None, *, waiting: bool, failed: bool = False, unread: bool = False) -> ServiceState:
    """The state of the service with this plan (None: none could be made).

    `waiting`: some of the plan's writes are still to be made. `failed`: one of them failed. `unread`: a Consul service
    of the plan could not be read when it was last tried; the plan says itself when one never could.
    """
    if plan is None:
        return ServiceState.UNKNOWN
    if failed:
        return ServiceState.FAILED
    if plan.conflicts:
        return ServiceState.CONFLICT
    if plan.held:
        return ServiceState.HELD
    if waiting or plan.deviations:
        return ServiceState.OUT_OF_SYNC
    unread = unread or any(warning.code is Code.DATACENTER_UNREAD for warning in plan.warnings)
    return ServiceState.UNKNOWN if unread else ServiceState.IN_SYNC


def without_ready_endpoint(state: str, ready: int) -> bool:
    """Whether a service in this state gets no traffic although nothing is wrong with its mirror.

    `ready`: its ready endpoints in Kubernetes. In any other state that is what has to be looked at first.
    """
    return state == ServiceState.IN_SYNC and not ready


def readable(mark: str) -> str:
    return mark.replace("_", " ")


def active_datacenter(plan: Plan | None) -> str:
    """The datacenter that carries the traffic, "" where none was chosen of several."""
    return plan.active_datacenter.name if plan is not None and plan.active_datacenter is not None else ""


def state_detail(state: ServiceState, plan: Plan, waiting: Sequence[Change], holds: Sequence[str]) -> str:
    """What is behind the state, as far as the plan tells it. `holds`: the guard's reasons as they are to be shown.

    Where nothing is ready, and not for its health, that is what is skipped.
    """
    match state:
        case ServiceState.CONFLICT:
            return "; ".join(f"{c.kind}: {c.reason}" for c in plan.conflicts)
        case ServiceState.HELD:
            return "; ".join(holds)
        case ServiceState.OUT_OF_SYNC if waiting:
            return ", ".join(f"{c.action} {c.kind}" for c in waiting)
        case ServiceState.OUT_OF_SYNC:
            return "; ".join(plan.deviations)
        case _:
            return "; ".join((*plan.warnings, *_skips(plan)))


def _skips(plan: Plan) -> Sequence[str]:
    """Of a service without a ready endpoint: the first instance that is skipped, else why there is no Service."""
    if plan.ready:
        return ()
    instances = [skipped for skipped in plan.skipped if skipped.instance]
    if not instances:
        return [skipped.reason for skipped in plan.skipped]
    more = f" (and {len(instances) - 1} more)" if len(instances) > 1 else ""
    return [f"skipped: {instances[0].instance}: {instances[0].reason}{more}"]
