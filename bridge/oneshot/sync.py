"""`bridge sync`: one pass over all services, then its report."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Unpack

from bridge.core.model import Action, Change, Plan, Query, Target
from bridge.core.reasons import Code, Reason
from bridge.core.reconcile import names_at
from bridge.core.select import Only
from bridge.errors import BridgeError, CancelledError, ForbiddenError, StaleError
from bridge.kube.client import KubeClient, KubeConfig
from bridge.kube.writer import Writer
from bridge.oneshot.inputs import Loaded, Sides, load
from bridge.oneshot.rights import missing_rights
from bridge.pipeline.planner import Planner, apply_plan
from bridge.report import Outcome, Report, WarningRow, build_report
from bridge.retry import call

STALE_ROUNDS = 5
"""How often an object that another process (a running bridge, say) changed meanwhile is read and planned again."""


def sync_once(*, confirm: Callable[[Report], bool] | None = None, **sides: Unpack[Sides]) -> Report:
    """Make Kubernetes equal to what Consul holds now, once.

    `confirm` sees the planned report before anything is written and may refuse (the dry run's report is returned).
    A namespace that we may not list is left alone and reported as failed; the rest is served. Raises
    TransientError or PermanentError when a whole side cannot be used, CancelledError when `stop` was set
    before anything was planned. What another process changes meanwhile is read and planned again, as long as it can be
    read. Once writing has begun nothing is raised any more: a stop lets the writes in flight finish and is reported as
    failures of the rest.
    """
    options, stop, kube, rules = sides["options"], sides["stop"], sides["kube"], sides["rules"]
    try:
        both = load(**sides)
    except ForbiddenError as error:
        with closing(KubeClient(kube)) as client:
            raise _with_all_that_lacks(error, missing_rights(client, rules, kube.namespaces, options.policy)) from error
    with closing(both) as loaded:
        doubts = _doubts(loaded)
        if stop.is_set():
            raise CancelledError("interrupted before anything was written")
        consul_state = loaded.consul_state
        targets = consul_state.targets()
        if options.force and options.only != Only():
            ours = loaded.store.targets()
            targets = {t for t in targets if t in ours and options.only.takes(t, consul_state.queries_at(t))}
        loaded.resolve_names(targets)
        planner, plans = loaded.plan_all(targets, force=options.force)
        before = {plan.target: loaded.store.current(plan.target) for plan in plans}
        outcomes = [Outcome(plan, before=before[plan.target]) for plan in plans]
        report = _report(outcomes, planner, doubts, dry_run=True)
        if options.dry_run:
            absent = {WarningRow(name, "", "", "", why) for name, why in loaded.absent_namespaces(plans).items()}
            report = replace(report, warnings=tuple(sorted({*report.warnings, *absent})))
        if options.dry_run or (confirm is not None and not confirm(report)):
            return report
        writer = Writer(loaded.client)
        done = {outcome.plan.target: outcome for outcome in _write_in_turn(planner, plans, writer, loaded)}
        for attempt in range(1, STALE_ROUNDS + 1):
            stale = {target for target, outcome in done.items() if _is_stale(outcome)}
            stale |= {target for target, outcome in done.items() if stale.intersection(outcome.plan.moves_to)}
            if not stale or stop.wait(options.retry.wait_seconds(attempt)):
                break
            for target, outcome in done.items():
                if not outcome.failures:
                    planner.guard.applied(target)  # what has gone stays a part of what there was
            try:
                loaded.list_again()
            except BridgeError:  # or stopped: what was written is reported, and what is stale with it
                break
            planner = loaded.planner(planner.guard, force=options.force)
            for target in stale:
                consul_state.drop_owned(target)
                if names := names_at(loaded.store.current(target)):
                    consul_state.record_owned(target, names, now=0.0)
            consul_state.expire(now=0.0)
            again = {o.plan.target: o for o in _write_in_turn(planner, planner.plan_all(stale), writer, loaded)}
            done.update({target: _together(done[target], again.get(target)) for target in stale})
        outcomes = [replace(outcome, before=before[target]) for target, outcome in done.items()]
        if any(isinstance(failure.error, ForbiddenError) for outcome in outcomes for failure in outcome.failures):
            doubts += _missing_rights(loaded, kube)
        return _report(outcomes, planner, doubts, dry_run=False)


def _with_all_that_lacks(error: ForbiddenError, texts: Sequence[str]) -> ForbiddenError:
    """What was refused, with what would be refused after it."""
    return ForbiddenError("; ".join((str(error), *texts)))


def _missing_rights(loaded: Loaded, kube: KubeConfig) -> list[WarningRow]:
    """All that the pass lacks: what would be refused after the first of it is granted."""
    texts = missing_rights(loaded.client, loaded.rules, kube.namespaces, loaded.options.policy)
    return [WarningRow("", "", "", "", Reason(Code.RIGHTS_MISSING, said=text)) for text in texts]


def _doubts(loaded: Loaded) -> list[WarningRow]:
    """What looks like a mistake in the tags of the rules."""
    return [
        WarningRow(at.namespace, at.name, choice.query.service, choice.query.datacenter, reason)
        for choice, reason in loaded.unmet()
        if isinstance(at := choice.target, Target)
    ]


def _write_in_turn(planner: Planner, plans: Sequence[Plan], writer: Writer, loaded: Loaded) -> list[Outcome]:
    """Apply the plans. A target that another one replaces goes last, and stays where that one could not be written."""
    moved, first = list[Plan](), list[Plan]()
    for plan in plans:
        (moved if plan.moves_to and plan.writes else first).append(plan)
    outcomes = write(first, writer, loaded)
    if moved:
        planner.failed = {o.plan.target for o in outcomes if o.failures or o.plan.conflicts}
        if planner.failed:
            moved = [again for plan in moved if (again := planner.plan(plan.target)) is not None]
        outcomes += write(moved, writer, loaded)
    return outcomes


def write(plans: Sequence[Plan], writer: Writer, loaded: Loaded) -> list[Outcome]:
    """Apply the plans with `options.writers` threads: updates before creations, losses of the last endpoint last."""
    options, stop, say = loaded.options, loaded.stop, loaded.say
    ordered = sorted(plans, key=_urgency)
    total = sum(bool(p.writes) for p in ordered)
    done = 0
    say("writing", done, total)
    lock = threading.Lock()

    def send(change: Change) -> None:
        if stop.is_set():
            raise CancelledError("interrupted before this object was written")
        stale: list[StaleError] = []

        def attempt() -> None:
            try:
                writer.apply(change)
            except StaleError as error:  # what was decided from the old state is not tried again
                stale.append(error)

        call(attempt, options.retry, stop)
        if stale:
            raise stale[0]

    def work(plan: Plan) -> Outcome:
        nonlocal done
        outcome = apply_plan(plan, send)
        with lock:
            done += 1
            say("writing", done, total)
        return outcome

    idle = [Outcome(p, (), ()) for p in ordered if not p.writes]
    with ThreadPoolExecutor(max_workers=options.writers, thread_name_prefix="writer") as pool:
        return idle + list(pool.map(work, [p for p in ordered if p.writes]))


def _is_stale(outcome: Outcome) -> bool:
    """Whether another writer changed an object between our reading and our writing it."""
    return any(isinstance(failure.error, StaleError) for failure in outcome.failures)


def _together(first: Outcome, second: Outcome | None) -> Outcome:
    """The result of a target that was planned a second time (None: there was nothing left to plan)."""
    if second is None:
        rest = tuple(f for f in first.failures if not isinstance(f.error, StaleError))
        changes = (*first.applied, *(f.change for f in rest))
        return replace(first, plan=replace(first.plan, changes=changes), failures=rest)
    done = {(c.kind, c.name) for c in first.applied}
    later = [c for c in second.plan.changes if c.action is not Action.UNCHANGED or (c.kind, c.name) not in done]
    plan = replace(second.plan, changes=(*first.applied, *later), ready_before=first.plan.ready_before)
    return Outcome(plan, (*first.applied, *second.applied), second.failures)


def _urgency(plan: Plan) -> tuple[int, str, str]:
    """Order of writing: changes of what exists, first-time creations, then what leaves a service without endpoints."""
    if plan.ready_before and not plan.ready:
        urgency = 2
    else:
        urgency = 0 if any(c.existing is not None for c in plan.changes) else 1
    return urgency, plan.target.namespace, plan.target.name


def _report(outcomes: Sequence[Outcome], planner: Planner, doubts: Sequence[WarningRow], *, dry_run: bool) -> Report:
    """The report, with everything that could not be read: services, whole datacenters, namespaces."""
    consul_state = planner.consul_state
    unknown = {
        **consul_state.trouble(),
        **{Query(dc, ""): reason for dc, reason in consul_state.listing_trouble().items()},
    }
    report = build_report(
        outcomes, unknown, dry_run=dry_run, skipped=consul_state.unmappable(), unplanned=planner.unplanned()
    )
    return replace(report, warnings=tuple(sorted({*report.warnings, *doubts})))
