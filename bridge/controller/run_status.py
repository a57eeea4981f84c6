"""What the web page, the metrics and the readiness ask of a bridge whose parts are built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bridge.consul.catalog import Catalog
from bridge.controller.full_pass import FullPasses
from bridge.controller.health import Health
from bridge.controller.results import Results
from bridge.controller.scheduler import Scheduler
from bridge.controller.status_view import StatusView
from bridge.controller.workqueue import WorkQueue
from bridge.core.explain import Explanation
from bridge.core.model import Skipped, Target
from bridge.core.service_state import ServiceRow
from bridge.kube.informer import Informer
from bridge.pipeline.planner import Planner
from bridge.report import build_report


@dataclass(eq=False, kw_only=True, repr=False)
class RunStatus:
    """Answers from what is known already; nothing is asked of Consul or Kubernetes. Any thread."""

    owner: str
    planner: Planner
    results: Results
    scheduler: Scheduler
    queue: WorkQueue[Target]
    full_passes: FullPasses
    health: Health
    catalog: Catalog
    informer: Informer
    view: StatusView
    clock: Callable[[], float]

    def ready(self) -> tuple[bool, dict[str, Any]]:
        return self.health.readiness(first_pass_done=self.scheduler.first_pass_done)

    def status(self) -> dict[str, Any]:
        report = build_report(
            list(self.results.all().values()),
            self.planner.read_errors(),
            dry_run=True,
            skipped=self.unmirrored(),
            unplanned=self.planner.unplanned(),
        )
        return {**self.state(), "report": report.to_json()}

    def state(self) -> dict[str, Any]:
        """The same without the report, whose making takes longer the more services there are."""
        ready, detail = self.ready()
        last = self.full_passes.last
        return {
            "ready": ready,
            **detail,
            "owner": self.owner,
            "queue": len(self.queue),
            "seconds_since_last_full_pass": None if last is None else round(self.clock() - last, 1),
            "catalog": self.catalog.status()["datacenters"],
            "cache": self.informer.status(),
        }

    def services(self) -> list[ServiceRow]:
        """All mirrored services as they are now, sorted by target."""
        return self.view.rows(self.results.all()) if self.scheduler.first_pass_done else []

    def unmirrored(self) -> tuple[Skipped, ...]:
        """Services whose name cannot be brought into Kubernetes' form."""
        with self.planner.lock:
            return self.planner.consul_state.unmappable()

    def explain(self, target: Target) -> tuple[Explanation, ...] | None:
        """Why the instances at a target are as they are; None when nothing is mirrored there."""
        if not self.scheduler.first_pass_done:
            return None
        return self.view.explain(target, self.results.of(target))
