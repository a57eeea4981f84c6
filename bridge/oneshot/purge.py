"""`bridge purge`: remove what one owner id owns, and nothing else."""

from __future__ import annotations

from dataclasses import replace

from bridge.core import plan as planning
from bridge.core.model import Plan, Query, Target
from bridge.core.reasons import Code, Reason
from bridge.core.reconcile import names_at
from bridge.kube.client import KubeClient, KubeConfig
from bridge.kube.informer import list_once
from bridge.kube.store import Store
from bridge.kube.writer import Writer
from bridge.pipeline.planner import apply_plan
from bridge.report import Outcome, Report, build_report
from bridge.telemetry.logs import kube_warning


def purge(kube: KubeConfig, owner: str, namespaces: tuple[str, ...] | None, dry_run: bool) -> Report:
    """Delete every object with our label and this owner id in `namespaces` (None: all); the account of it.

    A Service goes last at its target. Raises TransientError or PermanentError when Kubernetes cannot be read.
    """
    client = KubeClient(kube, kube_warning)
    try:
        store = list_once(client, namespaces, owner, routes=False)
        plans = [_plan(store, target, owner) for target in sorted(store.targets())]
        if dry_run:
            return build_report([Outcome(plan) for plan in plans], {}, dry_run=True)
        writer = Writer(client)
        outcomes = [apply_plan(plan, writer.apply) for plan in plans]
        return build_report(outcomes, {}, dry_run=False)
    finally:
        client.close()


def _plan(store: Store, target: Target, owner: str) -> Plan:
    current = store.current(target)
    plan = planning.plan(target, None, current, owner=owner)
    return replace(
        plan,
        queries=tuple(Query(datacenter, service) for datacenter, service in names_at(current)),
        changes=tuple(replace(change, reason=Reason(Code.PURGED)) for change in plan.changes),
    )
