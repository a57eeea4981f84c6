"""`bridge sync`: one pass over all services, then its report."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

from bridge.consul.catalog import read_all
from bridge.consul.client import ConsulConfig
from bridge.core import select
from bridge.core.annotated import USUAL, Annotated
from bridge.core.guard import Guard, GuardSettings
from bridge.core.model import Action, Adopt, Change, Listing, Plan, Policy, Query, Rule, Target
from bridge.core.reasons import Code, Reason
from bridge.core.reconcile import PlanOptions, names_at
from bridge.core.select import Only
from bridge.core.state import ConsulState
from bridge.errors import BridgeError, CancelledError, StaleError
from bridge.kube.client import KubeClient, KubeConfig
from bridge.kube.informer import NamespaceState, list_once, namespace_states
from bridge.kube.mirrored import mirrored
from bridge.kube.nodes import cluster_nodes
from bridge.kube.writer import Writer
from bridge.oneshot.inputs import from_kubernetes
from bridge.pipeline.dns import Resolver, ResolverSettings
from bridge.pipeline.grants import with_labels
from bridge.pipeline.reconciler import Reconciler, apply_plan
from bridge.pipeline.scope import anchored, datacenters_of, namespaces_of
from bridge.pipeline.slice_rights import slice_rights
from bridge.report import Outcome, Report, WarningRow, build_report
from bridge.retry import RetryPolicy, call
from bridge.telemetry.logs import kube_warning

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""

STALE_ROUNDS = 5
"""How often an object that another process (a running bridge, say) changed meanwhile is read and planned again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncOptions:
    """How one pass is made. `retry.attempts` bounds the tries per object; `writers` is the number of connections.

    `only` narrows a forced pass: what it does not take, and what is not mirrored yet, is left alone. `selects`:
    the settings say which services are meant; else one rule takes every service, and commands that only look say so.
    """

    owner: str = "default"
    installation: str = ""
    policy: Policy = Policy.SYNC
    adopt: Adopt = Adopt.NEVER
    partial_selection: bool = False
    selects: bool = True
    dry_run: bool = False
    force: bool = False
    only: Only = field(default_factory=Only)
    guard: GuardSettings = field(default_factory=GuardSettings)
    resolver: ResolverSettings = field(default_factory=ResolverSettings)
    cluster_nodes: tuple[str, ...] = ()
    annotated: Annotated = USUAL
    writers: int = 16
    readers: int = 16
    retry: RetryPolicy = field(default_factory=lambda: RetryPolicy(attempts=5, initial_seconds=0.2, max_seconds=5.0))


def sync_once(
    *,
    consul: ConsulConfig,
    kube: KubeConfig,
    rules: Sequence[Rule],
    options: SyncOptions,
    stop: threading.Event,
    progress: Progress | None = None,
    confirm: Callable[[Report], bool] | None = None,
) -> Report:
    """Make Kubernetes equal to what Consul holds now, once.

    `confirm` sees the planned report before anything is written and may refuse (the dry run's report is returned).
    A namespace that we may not list is left alone and reported as failed; the rest is served. Raises
    TransientError or PermanentError when a whole side cannot be used, CancelledError when `stop` was set
    before anything was planned. What another process changes meanwhile is read and planned again, as long as it can be
    read. Once writing has begun nothing is raised any more: a stop lets the writes in flight finish and is reported as
    failures of the rest.
    """
    say = progress or (lambda _what, _done, _total: None)
    client = KubeClient(kube, kube_warning)
    resolver: Resolver[Target] = Resolver(options.resolver)
    try:
        say("reading Kubernetes", 0, 0)
        namespaces = namespaces_of(rules, kube.namespaces, client.namespace)
        store = call(lambda: list_once(client, namespaces, options.owner, partly=True), options.retry, stop)
        annotated = with_labels(options.annotated.within(namespaces), client, options.retry, stop)
        datacenters = datacenters_of(rules, consul, options.retry, stop)
        rules = anchored(rules, datacenters)
        world, _ = from_kubernetes(rules, datacenters, store, annotated, partial_selection=options.partial_selection)
        doubts = _read_consul(world, rules, consul, options, stop, say)
        if stop.is_set():
            raise CancelledError("interrupted before anything was written")
        with_all = partial(
            Reconciler,
            world=world,
            guard=Guard(options.guard),
            options=PlanOptions(
                owner=options.owner,
                policy=options.policy,
                adopt=options.adopt,
                force=options.force,
                installation=options.installation,
            ),
            clock=time.monotonic,
            resolve=resolver.resolve,
            mirrored=lambda target: mirrored(client, target),
            nodes=call(lambda: cluster_nodes(client, options.cluster_nodes), options.retry, stop),
            slices_forbidden=slice_rights(client, options.policy, everywhere=namespaces is None).missing,
        )
        reconciler = with_all(store=store, unreadable=store.unreadable)
        targets = world.targets()
        if options.force and options.only != Only():
            ours = store.targets()
            targets = {t for t in targets if t in ours and options.only.takes(t, world.queries_at(t))}
        if reconciler.ask_for_names(targets):
            say("resolving host names", 0, 0)
            resolver.wait(options.resolver.wait_seconds, stop)
        plans = reconciler.plan_all(targets)
        before = {plan.target: store.current(plan.target) for plan in plans}
        outcomes = [Outcome(plan, before=before[plan.target]) for plan in plans]
        report = _report(outcomes, reconciler, doubts, dry_run=True)
        if options.dry_run:
            absent = _absent_namespaces(client, plans)
            report = replace(report, warnings=tuple(sorted((*report.warnings, *absent))))
        if options.dry_run or (confirm is not None and not confirm(report)):
            return report
        writer = Writer(client)
        done = {outcome.plan.target: outcome for outcome in _write(plans, writer, options, stop, say)}
        for attempt in range(1, STALE_ROUNDS + 1):
            stale = {target for target, outcome in done.items() if _is_stale(outcome)}
            if not stale or stop.wait(options.retry.wait_seconds(attempt)):
                break
            for target, outcome in done.items():
                if not outcome.failures:
                    reconciler.guard.applied(target)  # what has gone stays a part of what there was
            try:
                store = call(lambda: list_once(client, namespaces, options.owner, partly=True), options.retry, stop)
            except BridgeError:  # or stopped: what was written is reported, and what is stale with it
                break
            reconciler = with_all(store=store, unreadable=store.unreadable)
            for target in stale:
                world.drop_owned(target)
                if names := names_at(store.current(target)):
                    world.record_owned(target, names, now=0.0)
            world.expire(now=0.0)
            again = {o.plan.target: o for o in _write(reconciler.plan_all(stale), writer, options, stop, say)}
            done.update({target: _together(done[target], again.get(target)) for target in stale})
        outcomes = [replace(outcome, before=before[target]) for target, outcome in done.items()]
        return _report(outcomes, reconciler, doubts, dry_run=False)
    finally:
        resolver.close()
        client.close()


def _read_consul(
    world: ConsulState,
    rules: Sequence[Rule],
    consul: ConsulConfig,
    options: SyncOptions,
    stop: threading.Event,
    say: Progress,
) -> list[WarningRow]:
    """Fill the world with everything that the rules ask for; what looks like a mistake in their tags."""
    doubts: list[WarningRow] = []
    by_tags = any(rule.tags for rule in rules)

    def choose(datacenter: str, listing: Listing) -> frozenset[Query]:
        world.on_listing(datacenter, listing, now=0.0)
        for service, tags in listing.services.items() if by_tags else ():
            named = select.choices(rules, service, datacenter)
            for choice, reason in select.unmet(service, named, tags, world.remembered_at((datacenter, service))):
                if isinstance(choice.target, Target):
                    at = choice.target
                    doubts.append(WarningRow(at.namespace, at.name, service, datacenter, reason))
        return frozenset(q for q in world.wanted() if q.datacenter == datacenter)

    snapshot = read_all(
        consul,
        world.active_datacenters(),
        choose,
        parallel=options.readers,
        progress=lambda done, total: say("reading Consul", done, total),
        retry=options.retry,
        stop=stop,
    )
    for datacenter, listing in snapshot.listings.items():
        if not isinstance(listing, Listing):
            world.on_listing(datacenter, listing, now=0.0)
    for query, state in snapshot.views.items():
        world.on_view(query, state)
    world.expire(now=0.0)
    return doubts


def _absent_namespaces(client: KubeClient, plans: Sequence[Plan]) -> list[WarningRow]:
    """Namespaces in which something would be made and that do not exist, as far as we may look."""
    wanted = sorted({p.target.namespace for p in plans if any(c.action is Action.CREATE for c in p.writes)})
    try:
        states = namespace_states(client, wanted)
    except BridgeError:
        return []
    return [
        WarningRow(name, "", "", "", Reason(Code.NAMESPACE_ABSENT, namespace=name))
        for name, state in states.items()
        if state is NamespaceState.ABSENT
    ]


def _write(
    plans: Sequence[Plan], writer: Writer, options: SyncOptions, stop: threading.Event, say: Progress
) -> list[Outcome]:
    """Apply the plans with `options.writers` threads: updates before creations, losses of the last endpoint last."""
    ordered = sorted(plans, key=_urgency)
    total = sum(bool(p.writes) for p in ordered)
    done = 0
    say("writing", done, total)
    lock = threading.Lock()

    def write(change: Change) -> None:
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
        outcome = apply_plan(plan, write)
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


def _report(
    outcomes: Sequence[Outcome], reconciler: Reconciler, doubts: Sequence[WarningRow], *, dry_run: bool
) -> Report:
    """The report, with everything that could not be read: services, whole datacenters, namespaces."""
    world = reconciler.world
    unknown = {**world.trouble(), **{Query(dc, ""): reason for dc, reason in world.listing_trouble().items()}}
    report = build_report(
        outcomes, unknown, dry_run=dry_run, skipped=world.unmappable(), unplanned=reconciler.unplanned()
    )
    return replace(report, warnings=tuple(sorted({*report.warnings, *doubts})))
