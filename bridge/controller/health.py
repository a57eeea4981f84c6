"""The health of the running bridge: what readiness shows, and what of it is reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bridge.consul.access import warnings_of
from bridge.consul.catalog import Catalog
from bridge.consul.client import ConsulConfig
from bridge.controller.circuit_breaker import CircuitBreaker
from bridge.controller.conflicting_writers import ConflictingWriters
from bridge.controller.consul_side import ConsulHealth
from bridge.controller.leadership import Leadership
from bridge.controller.node_addresses import NodeAddresses
from bridge.controller.state_changes import StateChanges
from bridge.kube.client import UNVERIFIED, KubeClient
from bridge.kube.informer import Informer
from bridge.kube.namespaces import NamespaceLabels
from bridge.pipeline.planner import Planner
from bridge.pipeline.slice_rights import SliceRights


@dataclass(eq=False, kw_only=True, repr=False)
class Health:
    """Asks the parts. Any thread."""

    consul: ConsulConfig
    consul_health: ConsulHealth
    catalog: Catalog
    client: KubeClient
    informer: Informer
    breaker: CircuitBreaker
    planner: Planner
    leadership: Leadership
    conflicting: ConflictingWriters
    slice_rights: SliceRights
    labels: NamespaceLabels | None
    nodes: NodeAddresses

    def kubernetes(self) -> str | None:
        """Why the API server cannot be used as it should be; None while it can."""
        return self.breaker.trouble or self.informer.trouble()

    def readiness(self, *, first_pass_done: bool) -> tuple[bool, dict[str, Any]]:
        """Whether the first full pass is done and both sides were seen lately, with the detail."""
        leadership, kubernetes = self.leadership.status(), self.kubernetes()
        detail: dict[str, Any] = starting(first_pass_done, self.consul_health, kubernetes or "ok")
        if leadership is not None:
            detail["election"] = leadership
        if forbidden := self.slice_rights.forbidden():
            detail["endpointslices_forbidden"] = forbidden
        if forbidden_namespaces := dict(self.planner.unreadable):
            detail["forbidden_namespaces"] = forbidden_namespaces
        if warnings := [*warnings_of(self.consul), *self._remarks()]:
            detail["warnings"] = warnings
        if conflicting_writer := self._conflicting_writer():
            detail["conflicting_writer"] = conflicting_writer
        if first_pass_done:
            with self.planner.lock:
                detail["held"] = [f"{h.target}: {h.reason}" for h in self.planner.guard.active()]
        elected = leadership is None or leadership["error"] is None
        return first_pass_done and not self.consul_health.unreachable and kubernetes is None and elected, detail

    def tell(self, states: StateChanges) -> None:
        reason = self.kubernetes()
        states.kubernetes(reason is None, reason or "")
        with self.planner.lock:
            held = self.planner.guard.active()
        states.held(held, self.leadership.leads)
        errors = self.planner.read_errors()
        with self.planner.lock:
            annotated = self.planner.consul_state.asked_by_annotation_alone(errors)
        states.service_read_errors(errors, annotated)
        labels = self._labels_trouble()
        routes = self.informer.routes_unread()
        states.warned((*self.catalog.warnings(), *labels, *routes, *self._rule_remarks()))
        states.unreadable(dict(self.planner.unreadable))
        states.slices_forbidden(self.slice_rights.forbidden())
        states.conflicting_writer(self._conflicting_writer())
        states.credentials(self.client.trouble)

    def _conflicting_writer(self) -> str:
        return self.leadership.conflicting_writer() or self.conflicting.reason()

    def _remarks(self) -> list[str]:
        """What does not stop the work now, and should be known by who looks at the readiness."""
        trouble = self.nodes.trouble
        nodes = f"addresses of the cluster's nodes may be out of date: {trouble}" if trouble else ""
        return [
            *remarks_of(self.client),
            *self._labels_trouble(),
            *self.informer.routes_unread(),
            *filter(None, (nodes,)),
            *self._rule_remarks(),
        ]

    def _rule_remarks(self) -> tuple[str, ...]:
        with self.planner.lock:
            return self.planner.consul_state.rule_remarks()

    def _labels_trouble(self) -> tuple[str, ...]:
        return (self.labels.trouble,) if self.labels is not None and self.labels.trouble else ()


def starting(first_pass_done: bool, consul: ConsulHealth, kubernetes: str) -> dict[str, Any]:
    """What readiness always shows."""
    return {
        "first_pass_done": first_pass_done,
        "consul": dict(consul.unreachable) or "ok",
        "kubernetes": kubernetes,
    }


def remarks_of(client: KubeClient) -> list[str]:
    """What is to be known of the connection to the API server, although it works."""
    return [*([UNVERIFIED] if client.access.unverified else []), *filter(None, (client.trouble,))]
