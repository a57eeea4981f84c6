"""`bridge purge`: remove what one owner id owns, and nothing else."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Unpack

from bridge.core import plan as planning
from bridge.core.guard import Guard
from bridge.core.model import Plan, Query, Target
from bridge.core.reasons import Code, Reason
from bridge.core.reconcile import names_at
from bridge.kube.store import Store
from bridge.kube.writer import Writer
from bridge.oneshot.inputs import Loaded, Sides
from bridge.oneshot.sync import write
from bridge.report import Outcome, Report, build_report


def purge(namespaces: tuple[str, ...] | None, dry_run: bool, **sides: Unpack[Sides]) -> Report:
    """Delete every object with our label and this owner id in `namespaces` (None: all); the account of it.

    Consul is not asked. A Service goes last at its target. A namespace that we may not list is left alone and reported
    as failed. Raises TransientError or PermanentError when Kubernetes cannot be read.
    """
    with closing(Loaded(**sides)) as loaded:
        loaded.connect()
        loaded.namespaces = namespaces
        loaded.list_again()
        store, owner = loaded.store, loaded.options.owner
        plans = [_plan(store, t, owner) for t in sorted(store.targets()) if t.namespace not in store.unreadable]
        outcomes = [Outcome(plan) for plan in plans] if dry_run else write(plans, Writer(loaded.client), loaded)
        unread = loaded.planner(Guard(loaded.options.guard)).unplanned()
        return build_report(outcomes, {}, dry_run=dry_run, unplanned=unread)


def _plan(store: Store, target: Target, owner: str) -> Plan:
    current = store.current(target)
    plan = planning.plan(target, None, current, owner=owner)
    return replace(
        plan,
        queries=tuple(Query(datacenter, service) for datacenter, service in names_at(current)),
        changes=tuple(replace(change, reason=Reason(Code.PURGED)) for change in plan.changes),
    )
