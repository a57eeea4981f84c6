"""Works on targets from the queue: plan a target, write what differs, report the outcome.

`Workers.reconcile` has all the steps; `ChangeWriter` is the one that touches Kubernetes. `pipeline.planner` makes
the plan with `core.reconcile`, always from full state: the queue says that something changed, never what.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from bridge.consul.subscriptions import InlineExecutor
from bridge.controller.circuit_breaker import CircuitBreaker, WriteResult
from bridge.controller.item_backoff import RetryPolicySelector
from bridge.controller.leadership import Leadership
from bridge.controller.owned_targets import OwnedTargets
from bridge.controller.pending_changes import PendingChange, PendingChanges
from bridge.controller.repairs import Repairs
from bridge.controller.results import Results
from bridge.controller.scheduler import LATER, Scheduler
from bridge.controller.workqueue import WorkQueue
from bridge.core.model import Change, Kind, Plan, Target
from bridge.errors import (
    AlteredError,
    BridgeError,
    CancelledError,
    ForbiddenError,
    NotLeadingError,
    TransientError,
)
from bridge.kube.informer import Informer
from bridge.kube.writer import Writer
from bridge.pipeline.planner import Planner, apply_plan
from bridge.pipeline.slice_rights import SliceRights
from bridge.report import Outcome
from bridge.telemetry.events import Observer
from bridge.threads import Failed, guarded

MIRRORED_SECONDS = 1.0
"""While our own slices stay only until the control plane has mirrored the Endpoints: how often that is checked."""

MAX_INLINE_WRITES = 4
"""A watch writes itself while fewer targets than this are in progress: in a burst the queue decides the order."""


@dataclass(eq=False, kw_only=True, repr=False)
class ChangeWriter:
    """Writes one change: when the circuit breaker lets it through, while the target is ours. Any thread."""

    breaker: CircuitBreaker
    leadership: Leadership
    informer: Informer
    writer: Writer
    retry: RetryPolicySelector[Target]
    slice_rights: SliceRights

    @property
    def answered(self) -> bool:
        """Whether the API server answers, so that the rest of a plan is worth trying."""
        return self.breaker.trouble is None

    @property
    def free(self) -> bool:
        """Whether all is well and a write would begin at once."""
        return self.breaker.free

    def write(self, change: Change) -> None:
        """Raises the bridge's errors; the store has what was written when this returns."""
        if not self.breaker.enter():
            raise CancelledError("stopping")
        result: WriteResult | TransientError = WriteResult.NOTHING
        try:
            with self._leading(change.target):
                self.informer.expect(change)
                meta = self.writer.apply(change)
            result = WriteResult.WRITTEN
        except AlteredError as error:
            self.informer.note_stored(change, error.stored)
            result = WriteResult.WRITTEN
            raise
        except BridgeError as error:
            self.informer.abandon(change)
            if isinstance(error, ForbiddenError) and change.kind is Kind.ENDPOINT_SLICE:
                self.slice_rights.refused(change.target.namespace)
            result = self.retry.classify(change.target, error)
            raise
        finally:
            self.breaker.leave(result)
        self.retry.written(change.target)
        self.informer.confirm(change, meta)

    @contextlib.contextmanager
    def _leading(self, target: Target) -> Iterator[None]:
        """Around a write: the target's shard is not released before the write has ended."""
        if not self.leadership.begin_write(target):
            raise NotLeadingError(f"{target} is not written: another replica writes it now")
        try:
            yield
        finally:
            self.leadership.end_write(target)


@dataclass(eq=False, kw_only=True, repr=False)
class Workers:
    """Works on targets, in as many threads as call `run`, and in watch threads that call `run_inline`."""

    queue: WorkQueue[Target]
    planner: Planner
    leadership: Leadership
    writer: ChangeWriter
    retry: RetryPolicySelector[Target]
    repairs: Repairs
    pending: PendingChanges
    results: Results
    owned: OwnedTargets
    scheduler: Scheduler
    observer: Observer
    clock: Callable[[], float]
    failed: Failed

    def __post_init__(self) -> None:
        self._deferred: set[Target] = set()

    def run(self) -> None:
        while (target := self.queue.take()) is not None:
            self._work_on(target)

    def run_inline(self, target: Target, inline: InlineExecutor) -> bool:
        """Work on `target` in the calling thread (`inline`) if no other work is due; False: it must be queued."""
        if not self.writer.free or not self.queue.claim(target, MAX_INLINE_WRITES):
            return False
        inline(partial(guarded, partial(self._work_on, target), self.failed))
        return True

    def _work_on(self, target: Target) -> None:
        """Work on a target that was taken out of the queue, and return it."""
        try:
            self.reconcile(target)
        finally:
            self.queue.done(target)

    def reconcile(self, target: Target) -> None:
        """Make the objects at `target` equal to what Consul says."""
        pending = self.pending.take(target)
        plan = self.planner.plan(target)
        if plan is None:
            self.retry.forget(target)
            # what a write that seemed to fail has made after all, or another replica removed
            self.owned.record(target)
            return
        if plan.writes and not self.leadership.leads(target):
            self._stand_by(Outcome(plan), pending)
            return
        if self._can_wait(plan):
            self.pending.keep(target, pending)
            self.queue.add(target, priority=LATER)
            return
        outcome = apply_plan(plan, self.writer.write, lambda: self.writer.answered)
        if any(isinstance(failure.error, NotLeadingError) for failure in outcome.failures):
            self._stand_by(outcome, pending)
        else:
            self._record(outcome, pending)

    def _stand_by(self, outcome: Outcome, pending: PendingChange) -> None:
        """Another replica writes this target: keep the plan, in case this replica takes the shard over."""
        target = outcome.plan.target
        waiting = Outcome(outcome.plan, outcome.applied)
        before = self.results.record(waiting)
        self.pending.keep(target, PendingChange(first_seen_at=pending.since))
        if outcome.applied or _account(before) != _account(waiting):
            self.observer.outcome(waiting, None)
        self.owned.record(target)
        self.scheduler.revisit(outcome.plan)
        if self.leadership.leads(target):  # it became ours just now, maybe before this was recorded
            self.queue.add(target)

    def _can_wait(self, plan: Plan) -> bool:
        """Whether to postpone a plan that leaves no ready endpoint, once, because other work is due."""
        if plan.target in self._deferred:
            self._deferred.discard(plan.target)
            return False
        if plan.ready_before and not plan.ready and self.queue.busy:
            self._deferred.add(plan.target)
            return True
        return False

    def _record(self, outcome: Outcome, pending: PendingChange) -> None:
        """Record the outcome and schedule what is still to be done."""
        target, since = outcome.plan.target, pending.since
        before = self.results.record(outcome)
        if not outcome.failures:
            with self.planner.lock:
                self.planner.guard.applied(target)
        else:
            self.pending.keep(target, pending.failed(touched=pending.externally_modified and not outcome.applied))
        # a write that seemed to fail may have been done after all
        written = outcome.applied or pending.first_failed_at is not None
        lag = self.clock() - since if since is not None and written and not outcome.failures else None
        if outcome.applied or outcome.failures or outcome.plan.held or _account(before) != _account(outcome):
            self.observer.outcome(outcome, lag)
        self.owned.record(target)
        if pending.externally_modified and since is None and _restores(outcome, before):
            self.repairs.put_back(target, removal=not outcome.plan.queries)
        if any(isinstance(failure.error, AlteredError) for failure in outcome.failures):
            self.repairs.stored_otherwise(target)
        delay = self.retry.delay_seconds(target, (failure.error for failure in outcome.failures))
        if delay is not None:
            self.queue.add(target, delay_seconds=delay)
        if outcome.plan.unmirrored:
            self.queue.add(target, delay_seconds=MIRRORED_SECONDS)
        self.scheduler.revisit(outcome.plan)
        if not outcome.failures:
            self.retry.forget(target)


def _restores(outcome: Outcome, before: Outcome | None) -> bool:
    """Whether something was written as it had been wanted `before`, so that another writer had undone it.

    What a user sets and the bridge honours makes it want something else; to follow that is no repair.
    """
    wanted = {(c.kind, c.name): c.body for c in before.plan.changes} if before is not None else None
    return any(wanted is None or c.body is None or wanted.get((c.kind, c.name)) == c.body for c in outcome.applied)


def _account(outcome: Outcome | None) -> tuple[object, ...]:
    """What is reported of a target although nothing was written, also when it ends."""
    if outcome is None:
        return ()
    plan = outcome.plan
    remarks = (bool(outcome.failures or plan.held), plan.conflicts, plan.skipped, plan.remarks, plan.deviations)
    return (*remarks, plan.ready, plan.not_ready, len(outcome.applied) == len(plan.writes))
