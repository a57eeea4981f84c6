"""Makes plans from what is watched or read, and applies them.

`bridge run` and the one-shot commands both use it; the recipe itself is `core.reconcile`, which does no I/O.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from bridge.core.guard import Guard, Verdict
from bridge.core.model import (
    NO_NODES,
    Action,
    Change,
    ClusterNodes,
    Combine,
    Conflict,
    Current,
    CurrentSlice,
    Group,
    Kind,
    Meta,
    Output,
    Place,
    Plan,
    Query,
    Rule,
    Scope,
    ServiceBody,
    SliceBody,
    Target,
)
from bridge.core.plan import scope_of
from bridge.core.reasons import Code, Reason
from bridge.core.reconcile import (
    Draft,
    Inputs,
    PlanOptions,
    Resolve,
    Surroundings,
    host_names,
    judge,
    observe,
    reconcile,
    why_not_serving,
)
from bridge.core.state import ConsulState
from bridge.errors import AlteredError, BridgeError, ConflictError
from bridge.pipeline.deviation_window import DeviationWindow
from bridge.report import Failure, Outcome


class Store(Protocol):
    """What Kubernetes holds, as far as it concerns us: the watched cache, or a list made once."""

    def current(self, target: Target) -> Current: ...

    def targets(self) -> Collection[Target]: ...

    def ready_in(self, scope: Scope) -> int: ...

    def ready_targets(self) -> Mapping[Target, Scope]: ...

    def confirm(self, change: Change, meta: Meta | None) -> None: ...


class Writer(Protocol):
    """Applies one change to the API server; raises the bridge's own errors."""

    def apply(self, change: Change) -> Meta | None: ...


class Planner:
    """Makes the plans of targets. Thread-safe: `lock` protects `consul_state` and the guard."""

    def __init__(
        self,
        *,
        consul_state: ConsulState,
        store: Store,
        guard: Guard,
        options: PlanOptions,
        clock: Callable[[], float],
        resolve: Resolve = lambda _target, _names: {},
        mirrored: Callable[[Target], tuple[Group, ...]] | None = None,
        nodes: ClusterNodes = NO_NODES,
        unreadable: Mapping[str, str] | None = None,
        may_delete: Callable[[Target], bool] = lambda _target: True,
        slices_forbidden: Callable[[str], Sequence[str]] = lambda _namespace: (),
        time_of_day: Callable[[], float] = time.time,
        window: DeviationWindow | None = None,
        in_turn: bool = True,
    ) -> None:
        """`mirrored` tells what the control plane made of a target's Endpoints; `nodes` are the cluster's.

        `unreadable` are namespaces of which nothing is known, and why: nothing is planned there. While not `may_delete`
        objects stay, whatever the policy says. `slices_forbidden` gives the verbs on EndpointSlices that are missing in
        a namespace. `window` decides which deviations are reported; without it none are (a command that only writes).
        `in_turn`: a target that another one replaces is written after that one, so its removal waits only where that
        one is in conflict or `failed`; otherwise it waits until the other one serves.
        """
        self.lock = threading.RLock()
        self.consul_state = consul_state
        self.guard = guard
        self._store = store
        self._options = options
        self._clock = clock
        self._mirrored = mirrored
        self._around = Surroundings(
            resolve=resolve,
            mirrored=self._mirrored_at,
            may_delete=may_delete,
            slices_forbidden=slices_forbidden,
            nodes=nodes,
            time_of_day=time_of_day,
            doubted=self._doubted,
            not_serving=self._not_serving,
        )
        self._around_without_mirror = replace(self._around, mirrored=_not_seen)
        self._in_turn = in_turn
        self.failed: set[Target] = set()
        """Targets whose writes failed in this pass."""
        self._recheck_at: dict[Target, float] = {}
        self._last_pass: dict[Target, tuple[Inputs, Draft]] = {}
        self.unreadable: Mapping[str, str] = unreadable or {}
        self._window = window

    @property
    def nodes(self) -> ClusterNodes:
        return self._around.nodes

    @nodes.setter
    def nodes(self, nodes: ClusterNodes) -> None:
        if nodes == self.nodes:
            return
        self._around = replace(self._around, nodes=nodes)
        self._around_without_mirror = replace(self._around, mirrored=_not_seen)
        self._last_pass = {}

    def plan(self, target: Target) -> Plan | None:
        """What is to be done at one target; None while too little is known to say anything about it."""
        draft = self._draft(target)
        return None if draft is None else self._judge([draft])[0]

    def plan_all(self, targets: Collection[Target], *, ask_mirror: bool = True) -> list[Plan]:
        """The same for many targets, judged together; sorted, without those of which too little is known.

        Not `ask_mirror`: what the control plane has mirrored is not asked for, a request each; the plan is `unmirrored`
        then.
        """
        drafts = (self._draft(target, ask_mirror=ask_mirror) for target in sorted(targets))
        return self._judge([draft for draft in drafts if draft is not None])

    def plan_full_pass(self, targets: Collection[Target]) -> list[Plan]:
        """As `plan_all` without asking, for all targets there are; for one thread.

        A target is planned from all that is known of it, unless that is what it was at the last full pass and its plan
        would be the same again (`Draft.repeats`).
        """
        last, self._last_pass = self._last_pass, {}
        drafts = [self._draft(target, ask_mirror=False, last=last) for target in sorted(targets)]
        return self._judge([draft for draft in drafts if draft is not None])

    def counts_unheld(self, target: Target) -> tuple[int, int]:
        """Ready and not ready endpoints that a pass would mirror if the guard held nothing; nothing is asked for it.

        What is kept because a host name is not resolved, or because the token may not see all, counts among them.
        """
        draft = self._draft(target, ask_mirror=False)
        desired = draft.desired if draft is not None else None
        return (desired.ready, desired.not_ready) if desired is not None else (0, 0)

    def unplanned(self) -> list[tuple[Target, tuple[Query, ...], str]]:
        """What wants to go to namespaces that cannot be read, and why not; a namespace itself where nothing does."""
        found = []
        with self.lock:
            for namespace, reason in sorted(self.unreadable.items()):
                targets = [t for t in sorted(self.consul_state.targets()) if t.namespace == namespace]
                found += [(t, self.consul_state.queries_at(t), reason) for t in targets or [Target(namespace, "")]]
        return found

    def read_errors(self) -> dict[Query, str]:
        """Services that could not be read when it was last tried, and why."""
        with self.lock:
            return dict(self.consul_state.trouble())

    def expired(self, now: float) -> set[Target]:
        """What is to be planned again without any event: a grace period or a hold of it may be over."""
        with self.lock:
            due = {target for target, at in self._recheck_at.items() if now >= at}
            for target in due:
                del self._recheck_at[target]
            return due | self.consul_state.expire(now) | self.guard.due(now, self._store.ready_in)

    def waiting(self, query: Query, rule: Rule) -> frozenset[Place] | None:
        """Instances that are healthy, and not yet for as long as the rule wants."""
        with self.lock:
            return self.consul_state.waiting(query, rule, self._clock())

    def ask_for_names(self, targets: Collection[Target]) -> bool:
        """Have the host names of many targets resolved, before any of them is planned; whether there are any."""
        found = False
        for target in targets:
            with self.lock:
                sources = self.consul_state.sources(target)
            if names := host_names(sources or ()):
                self._around.resolve(target, names)
                found = True
        return found

    def _draft(
        self, target: Target, *, ask_mirror: bool = True, last: Mapping[Target, tuple[Inputs, Draft]] | None = None
    ) -> Draft | None:
        """`last`: what the last full pass found; this one is part of the next."""
        if target.namespace in self.unreadable:
            return None
        now = self._clock()
        with self.lock:
            inputs = observe(self.consul_state, self._store.current(target), now)
        around = self._around if ask_mirror else self._around_without_mirror
        before = None if last is None else last.get(target)
        if before is not None and before[0] == inputs and self._has_slice_rights(before[1]):
            draft: Draft | None = before[1]
        else:
            before, draft = None, reconcile(inputs, self._options, around)
        if last is not None and draft is not None and draft.repeats and self._has_slice_rights(draft):
            self._last_pass[target] = before or (inputs, draft)
        self._note_recheck(inputs, draft, now)
        return draft

    def _has_slice_rights(self, draft: Draft) -> bool:
        """Whether no right on slices is missing that a target's plan depends on."""
        slices = draft.current.slices or (draft.desired is not None and draft.desired.output is not Output.ENDPOINTS)
        return not slices or not self._around.slices_forbidden(draft.current.target.namespace)

    def _note_recheck(self, inputs: Inputs, draft: Draft | None, now: float) -> None:
        """When a target is to be planned again without any event: another datacenter may take over then, or, where none
        could be chosen, the one that is preferred.
        """
        target, plan = inputs.target, None if draft is None else draft.plan
        if plan is not None and plan.active_datacenter is None and target not in self._recheck_at:
            return  # mostly: the lock is in demand
        with self.lock:
            self._recheck_at.pop(target, None)
            if plan is None:
                queries = tuple(s.query for s in inputs.sources or () if s.rule.combine is Combine.FAILOVER)
                scope, seconds = scope_of(inputs.current, self._options.owner), None
            elif plan.active_datacenter is not None:
                queries, scope, seconds = plan.queries, plan.scope, plan.active_datacenter.recheck_seconds
            else:
                return
            ends = (self.guard.doubted_until(query.datacenter, scope, now) for query in queries)
            waits = [end - now for end in ends if end]
            waits += () if seconds is None else (seconds,)
            if waits:
                self._recheck_at[target] = now + min(waits)

    def _doubted(self, datacenter: str, scope: Scope) -> bool:
        with self.lock:
            return bool(self.guard.doubted_until(datacenter, scope, self._clock()))

    def _not_serving(self, target: Target) -> str:
        if target in self.failed:
            return "it could not be written"
        if target.namespace in self.unreadable:
            return self.unreadable[target.namespace]
        return why_not_serving(self._draft(target, ask_mirror=False), in_turn=self._in_turn)

    def _judge(self, drafts: Sequence[Draft]) -> list[Plan]:
        plans = judge(drafts, self._admit, self._options, self._around)
        if self._window is not None:
            return [self._window.judge(plan) for plan in plans]
        return [replace(plan, deviations=()) if plan.deviations else plan for plan in plans]

    def _admit(self, plans: Sequence[Plan]) -> Verdict:
        with self.lock:
            return self.guard.admit(plans, self._store.ready_in, self._clock(), force=self._options.force)

    def _mirrored_at(self, target: Target) -> tuple[Group, ...] | None:
        if self._mirrored is None:
            return None
        try:
            return self._mirrored(target)
        except BridgeError:  # not seen: our slices stay, and it is asked again
            return None


def _not_seen(_target: Target) -> None:
    """What the control plane has mirrored, for callers that do not look at it."""


def apply_plan(plan: Plan, write: Callable[[Change], object], go_on: Callable[[], bool] = lambda: True) -> Outcome:
    """Apply a plan: attempt every change, in the plan's order, except those that rely on one that failed.

    `write` sends one change and records it; it raises the bridge's errors. When a Service cannot be created its
    Endpoints are not tried either: the control plane would delete them (Endpoints without a Service of their name).
    Nor are they when a port of the Service cannot be renamed: kube-proxy matches the ports of the two by name.
    When a slice cannot be written, `Change.meanwhile` is written of what follows, and nothing is deleted: what may
    carry its endpoints stays until it can. After a failure `go_on` says whether the rest is tried now: a server that is
    down fails for all of it.
    """
    applied: list[Change] = []
    failures: list[Failure] = []
    conflicts: list[Conflict] = []
    slices_failed = False
    for change in plan.writes:
        if failures and _leads_nowhere(failures[0]):
            break
        if failures and not go_on():
            break
        doing = _meanwhile(change) if slices_failed else change
        if doing is None:
            continue
        try:
            write(doing)
        except ConflictError as error:
            conflicts.append(Conflict(plan.target, change.kind, Reason(Code.TAKEN, said=error)))
            if change.kind is Kind.SERVICE:
                break
            slices_failed |= change.kind is Kind.ENDPOINT_SLICE
        except BridgeError as error:
            failures.append(Failure(doing, error))
            slices_failed |= doing.kind is Kind.ENDPOINT_SLICE and not _has_endpoints(doing, error)
        else:
            applied.append(doing)
    if conflicts:
        plan = replace(plan, conflicts=(*plan.conflicts, *conflicts))
    return Outcome(plan, tuple(applied), tuple(failures))


def _leads_nowhere(failure: Failure) -> bool:
    """Whether endpoints would not be reached through a Service that could not be written.

    One that was stored otherwise than it was written is there, as far as is known.
    """
    failed = failure.change
    if isinstance(failure.error, AlteredError) or failed.kind is not Kind.SERVICE:
        return False
    return failed.existing is None or (isinstance(failed.body, ServiceBody) and failed.body.renames)


def _has_endpoints(change: Change, error: BridgeError) -> bool:
    """Whether a slice has its endpoints although the write failed: something else about it was altered on the way."""
    stored = error.stored if isinstance(error, AlteredError) else None
    return isinstance(stored, CurrentSlice) and isinstance(change.body, SliceBody) and stored.group == change.body.group


def _meanwhile(change: Change) -> Change | None:
    """What is done of a change while a slice of its plan cannot be written; None: nothing."""
    if change.meanwhile is not None:
        return change.meanwhile if change.meanwhile.action is not Action.UNCHANGED else None
    return change if change.body is not None else None
