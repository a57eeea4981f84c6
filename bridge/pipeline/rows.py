"""The row of a mirrored service: what `bridge status` and the page of a running bridge show of it."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.core.model import Current, Plan, Query, Target
from bridge.core.reasons import codes_of
from bridge.core.service_state import ServiceRow, ServiceState, active_datacenter
from bridge.core.slice_union import endpoint_counts
from bridge.pipeline.planner import Planner
from bridge.report import Origin


def service_row(
    planner: Planner,
    target: Target,
    queries: Sequence[Query],
    plan: Plan | None,
    current: Current,
    state: ServiceState,
    detail: str,
    since: str = "",
) -> ServiceRow:
    """`state` and `detail` are the caller's: what is waiting, and what could not be read, only that one knows."""
    consul = (0, 0)
    if plan is not None:
        consul = planner.counts_unheld(target) if plan.held else (plan.ready, plan.not_ready)
    origin, kubernetes = Origin.of(queries), endpoint_counts(current)
    return ServiceRow(
        namespace=target.namespace,
        name=target.name,
        service=origin.service,
        datacenter=origin.datacenter,
        consul_ready=consul[0],
        consul_not_ready=consul[1],
        kubernetes_ready=kubernetes[0],
        kubernetes_not_ready=kubernetes[1],
        state=state.value,
        detail=detail,
        command=plan.release_command if plan is not None else "",
        active_datacenter=active_datacenter(plan),
        since=since,
        reasons=codes_of(plan.reasons) if plan is not None else (),
        slices_deviate=plan is not None and plan.deviates and state is ServiceState.OUT_OF_SYNC,
    )
