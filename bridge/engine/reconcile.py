"""One pass, for one target or for all of them; `bridge run` and `bridge sync` are two shells around it.

1. views = what Consul is KNOWN to hold (an error keeps the last known view, or leaves the service out of scope)
2. desired = select + translate (pure)
3. current = the objects that carry our labels and owner (listed once, then watched)
4. plan = diff(current, desired, owner, policy) (pure)
5. guard(plan) (pure): what would take too much away is held, and said
6. apply: create and update first, delete last; every object attempted; failures collected, retried per object
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from bridge.core import plan as planning
from bridge.core import translate
from bridge.core.annotated import Changed, Refusal, as_before, changed, is_abandoned, missing
from bridge.core.canonical import shorten
from bridge.core.guard import Guard
from bridge.core.model import (
    Action,
    Adopt,
    Change,
    Conflict,
    Current,
    CurrentSlice,
    Group,
    Held,
    Kind,
    Meta,
    Mirror,
    Output,
    Plan,
    Policy,
    Query,
    Scope,
    ServiceBody,
    Skipped,
    SliceBody,
    Target,
)
from bridge.core.reasons import Code, Reason
from bridge.core.state import Name, Source, World
from bridge.errors import AlteredError, BridgeError, ConflictError
from bridge.report import Failure, Outcome


class Store(Protocol):
    """What Kubernetes holds, as far as it concerns us: the watched cache, or a list made once."""

    def current(self, target: Target) -> Current: ...

    def targets(self) -> Collection[Target]: ...

    def ready_in(self, scope: Scope) -> int: ...

    def ready_targets(self) -> Mapping[Target, Scope]: ...

    def note(self, change: Change, meta: Meta | None) -> None: ...


class Writer(Protocol):
    """Applies one change to the API server; raises the bridge's own errors."""

    def apply(self, change: Change) -> Meta | None: ...


Resolve = Callable[[Target, Collection[str]], Mapping[str, tuple[str, ...]]]
"""Gives at once the known addresses of all the host names that a target needs; those without an answer are missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What the bridge may do, and under whose name."""

    owner: str = "default"
    policy: Policy = Policy.SYNC
    adopt: Adopt = Adopt.NEVER
    force: bool = False


class Reconciler:
    """Knows how to make the plan of a target. Thread-safe: `lock` guards the world and the guard."""

    def __init__(
        self,
        *,
        world: World,
        store: Store,
        guard: Guard,
        options: PlanOptions,
        clock: Callable[[], float],
        resolve: Resolve = lambda _target, _names: {},
        mirrored: Callable[[Target], tuple[Group, ...]] | None = None,
        nodes: Collection[str] = (),
        unreadable: Mapping[str, str] | None = None,
        may_delete: Callable[[Target], bool] = lambda _target: True,
        slices_forbidden: Callable[[str], Sequence[str]] = lambda _namespace: (),
    ) -> None:
        """`mirrored` tells what the control plane made of a target's Endpoints; `nodes` are the cluster's.

        `unreadable` are namespaces of which nothing is known, and why: nothing is planned there. While not `may_delete`
        objects stay, whatever the policy says. `slices_forbidden` tells the verbs on EndpointSlices that are missing in
        a namespace.
        """
        self.lock = threading.RLock()
        self.world = world
        self.guard = guard
        self._store = store
        self._options = options
        self._clock = clock
        self._resolve = resolve
        self._mirrored = mirrored
        self.nodes = nodes
        self.unreadable: Mapping[str, str] = unreadable or {}
        self._may_delete = may_delete
        self._slices_forbidden = slices_forbidden

    def plan(self, target: Target) -> Plan | None:
        """Steps 1 to 5 for one target; None while too little is known to say anything about it."""
        draft = self._draft(target)
        if draft is None:
            return None
        return self._guarded([draft])[0]

    def plan_all(self, targets: Collection[Target], *, ask: bool = True) -> list[Plan]:
        """The same for many targets, judged together; sorted, without those of which too little is known.

        Not `ask`: what the control plane has mirrored is not asked for, a request each; the plan is `unmirrored` then.
        """
        drafts = (self._draft(target, ask=ask) for target in sorted(targets))
        return self._guarded([draft for draft in drafts if draft is not None])

    def listed(self, target: Target) -> tuple[int, int]:
        """Ready and not ready endpoints that Consul has for `target`, whatever the guard makes of them."""
        draft = self._draft(target)
        desired = draft.desired if draft is not None else None
        return (desired.ready, desired.not_ready) if desired is not None else (0, 0)

    def unplanned(self) -> list[tuple[Target, tuple[Query, ...], str]]:
        """What wants to go to namespaces that cannot be read, and why not; a namespace itself where nothing does."""
        found = []
        with self.lock:
            for namespace, reason in sorted(self.unreadable.items()):
                targets = [t for t in sorted(self.world.targets()) if t.namespace == namespace]
                found += [(t, self.world.queries_at(t), reason) for t in targets or [Target(namespace, "")]]
        return found

    def ask_for_names(self, targets: Collection[Target]) -> bool:
        """Have the host names of many targets resolved, before any of them is planned; whether there are any."""
        found = False
        for target in targets:
            with self.lock:
                sources = self.world.sources(target)
            if names := _host_names(sources or ()):
                self._resolve(target, names)
                found = True
        return found

    def _draft(self, target: Target, *, ask: bool = True) -> _Draft | None:
        """Steps 1 to 4."""
        if target.namespace in self.unreadable:
            return None
        now = self._clock()
        with self.lock:
            sources = self.world.sources(target)
            losers = self.world.losers(target)
            refusal = self.world.refusal(target)
            dismissed = removable = False
            if sources == ():
                standing = self._store.current(target)
                abandoned, orphaned = is_abandoned(standing), standing.service is None
                if refusal is not None:  # who asks for something else now has sent away what was filled
                    asked = (refusal.query.datacenter, refusal.query.service)
                    abandoned = abandoned or asked not in names_at(standing)
                dismissed = self.world.dismissed(target, abandoned=abandoned, orphaned=orphaned)
                left = abandoned or refusal is not None
                removable = dismissed or self.world.removable(target, now, abandoned=left)
            queries = self.world.queries_at(target) or (() if refusal is None else (refusal.query,))
            listed = dismissed or any(self.world.is_listed((q.datacenter, q.service)) for q in queries)
            reason = Reason(Code.NOT_WANTED if listed else Code.GONE)
            unwatched = self._unwatched(target)
        if unwatched is not None:
            current = self._store.current(target)
            scope = planning.scope_of(current, self._options.owner)
            return _Draft(Plan(target, queries=queries, warnings=(unwatched,), scope=scope), None, current)
        if sources is None or (not sources and not removable and refusal is None):
            return None
        current = self._store.current(target)
        if not sources:
            self._resolve(target, ())
            refused = () if refusal is None else (refusal.reason,)
            plan = self._diff(target, None, current, skipped=losers, warnings=refused, dismissed=dismissed)
            if not removable:
                plan = _kept(plan)
            gone = Reason(Code.GONE)
            changes = tuple(replace(c, reason=reason) if c.reason == gone else c for c in plan.changes)
            return _Draft(replace(plan, queries=queries, changes=changes), None, current)
        names = _host_names(sources)
        resolved = self._resolve(target, names)
        translation = translate.translate(
            target, [(s.rule, s.query, s.known) for s in sources], current, resolved, self.nodes
        )
        skipped = tuple(sorted((*translation.skipped, *losers)))
        desired, warnings = translation.mirror, translation.warnings
        change = Changed.NOTHING
        if sources[0].rule.to.annotated:
            change = changed(current, sources[0].rule, sources[0].query, self._options.owner)
        dismissed = change is Changed.SERVICE or (change is Changed.SELECTION and self._is_proved(sources[0].query))
        warnings += tuple(
            missing(s.query, target.namespace) for s in sources if s.rule.to.annotated and self._is_missing(s)
        )
        kept: list[Reason] = []
        if unanswered := sorted(names - resolved.keys()):
            # unknown is not empty: some of what stands there may be these names' addresses
            kept.append(_unanswered(unanswered))
        if any(s.known.hidden for s in sources):
            kept.append(Reason(Code.HIDDEN))
        if desired is not None and kept and change is not Changed.SERVICE:
            desired = self._kept(desired, current, lost=True, flips=False)
            warnings = (*warnings, *kept)
        plan = self._diff(target, desired, current, skipped, warnings, dismissed=dismissed)
        if plan.conflicts and not plan.changes and not sources[0].rule.to.annotated:
            going = self._sent_away(current, refusal, skipped, warnings)
            if going is not None:
                return _Draft(replace(going, queries=queries, conflicts=plan.conflicts), None, current)
        if plan.unmirrored and self._mirrored is not None and ask:
            with contextlib.suppress(BridgeError):  # not seen: our slices stay, and it is asked again
                current = replace(current, mirrored=self._mirrored(target))
                plan = self._diff(target, desired, current, skipped, warnings, dismissed=dismissed)
        if all(self._is_leaving(s) for s in sources):
            plan = replace(plan, changes=tuple(c for c in plan.changes if c.action is not Action.CREATE))
        return _Draft(replace(plan, queries=queries), desired, current)

    def _sent_away(
        self, current: Current, refusal: Refusal | None, skipped: tuple[Skipped, ...], warnings: tuple[Reason, ...]
    ) -> Plan | None:
        """The end of what we filled for a user who does not ask any more, or may not, where a rule wants the name too.

        The rule does not get the user's Service, so nothing else would ever change what stands there.
        """
        target, abandoned = current.target, is_abandoned(current)
        if refusal is not None:  # who asks for something else now has sent away what was filled
            abandoned = abandoned or (refusal.query.datacenter, refusal.query.service) not in names_at(current)
        with self.lock:
            dismissed = self.world.dismissed(target, abandoned=abandoned)
        if not dismissed and refusal is None:
            return None
        warnings += () if refusal is None else (refusal.reason,)
        plan = self._diff(target, None, current, skipped, warnings, dismissed=dismissed)
        changes = tuple(replace(c, reason=Reason(Code.NOT_WANTED)) for c in plan.changes)
        return replace(plan, changes=changes) if changes else None

    def _unwatched(self, target: Target) -> Reason | None:
        """What is said of a person's Service that names a datacenter of which nothing is read."""
        asked = self.world.annotation(target)
        if asked is None or asked[1].datacenter in self.world.datacenters:
            return None
        known = ", ".join(self.world.datacenters)
        return Reason(Code.DATACENTER_NOT_ASKED, datacenter=shorten(asked[1].datacenter), known=known)

    def _is_leaving(self, source: Source) -> bool:
        """Whether a service is on its way out: what of it stands is kept for its grace, but not made any more."""
        return not source.known.instances and not source.known.hidden and self._is_missing(source)

    def _is_missing(self, source: Source) -> bool:
        with self.lock:
            return self.world.is_missing((source.query.datacenter, source.query.service))

    def _guarded(self, drafts: Sequence[_Draft]) -> list[Plan]:
        """Step 5: what the guard holds is planned again, with what it would have lost kept in place."""
        if not drafts:
            return []
        with self.lock:
            verdict = self.guard.admit(
                [d.plan for d in drafts], self._store.ready_in, self._clock(), force=self._options.force
            )
        return [
            self._held_back(d, verdict.held[d.plan.target]) if d.plan.target in verdict.held else d.plan for d in drafts
        ]

    def _held_back(self, draft: _Draft, held: Held) -> Plan:
        if draft.desired is None:
            return replace(draft.plan, changes=(), held=(held,), ready=draft.plan.ready_before)
        kept = self._kept(draft.desired, draft.current, lost=held.lost, flips=held.flips)
        plan = self._diff(
            draft.plan.target,
            kept,
            draft.current,
            skipped=draft.plan.skipped,
            warnings=draft.plan.warnings,
        )
        return replace(plan, queries=draft.plan.queries, held=(held,))

    def _kept(self, desired: Mirror, current: Current, *, lost: bool, flips: bool) -> Mirror:
        """What is to be, with what would be taken away kept in place."""
        kept = planning.retain(desired, current, lost=lost, flips=flips, owner=self._options.owner)
        return as_before(kept, current, self._options.owner)

    def _is_proved(self, query: Query) -> bool:
        """Whether Consul lists a service, so that it has not simply lost what is not there any more."""
        with self.lock:
            troubled = query.datacenter in self.world.listing_trouble()
            return not troubled and self.world.is_listed((query.datacenter, query.service))

    def _diff(
        self,
        target: Target,
        desired: Mirror | None,
        current: Current,
        skipped: tuple[Skipped, ...],
        warnings: tuple[Reason, ...] = (),
        *,
        dismissed: bool = False,
    ) -> Plan:
        kept = desired is None and not dismissed and not self._may_delete(target)

        def plan(slices_forbidden: Sequence[str] = ()) -> Plan:
            made = planning.plan(
                target,
                desired,
                current,
                owner=self._options.owner,
                policy=self._options.policy,
                adopt=self._options.adopt,
                skipped=skipped,
                warnings=warnings,
                dismissed=dismissed,
                slices_forbidden=slices_forbidden,
            )
            return _kept(made) if kept else made

        found = plan()
        chosen = desired is not None and desired.output is not Output.ENDPOINTS
        # a target without endpoints needs no slice, but whether its Endpoints are mirrored depends on the right to one
        if not any(chosen or change.kind is Kind.ENDPOINT_SLICE for change in found.writes):
            return found
        forbidden = self._slices_forbidden(target.namespace)
        return plan(forbidden) if forbidden else found


@dataclass(frozen=True, slots=True)
class _Draft:
    """A plan before the guard has seen it, with what is needed to plan again."""

    plan: Plan
    desired: Mirror | None
    current: Current


def _kept(plan: Plan) -> Plan:
    """The same target with everything left as it is."""
    return replace(plan, changes=(), lost=0, flipped=0, ready=plan.ready_before)


def _host_names(sources: Sequence[Source]) -> set[str]:
    """Names that stand where an address should, of all the services behind a target."""
    return {name for s in sources for name in translate.host_names(s.known.instances, s.rule)}


def _unanswered(names: Sequence[str]) -> Reason:
    """What is said while names are not resolved."""
    some = ", ".join(shorten(name) for name in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return Reason(Code.NAMES_UNRESOLVED, names=some + more)


def names_at(current: Current) -> tuple[Name, ...]:
    """The Consul services that our objects at this target came from, as their annotations say."""
    names: set[Name] = set()
    for existing in (current.service, current.endpoints, *current.slices):
        if existing is not None and existing.meta.owner is not None:
            marks = dict(existing.meta.marks)
            names.update(planning.origins(marks.get(planning.SERVICE, ""), marks.get(planning.DATACENTER, "")))
    return tuple(sorted(names))


def apply_plan(plan: Plan, write: Callable[[Change], object], go_on: Callable[[], bool] = lambda: True) -> Outcome:
    """Step 6 for one target: every change is attempted, in the plan's order, but for what relies on one that failed.

    `write` sends one change and notes it; it raises the bridge's errors. When a Service cannot be created its
    Endpoints are not tried either: the control plane would delete them (Endpoints without a Service of their name).
    Nor are they when a port of the Service cannot be renamed: under another name than the Service's nobody gets there.
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
            slices_failed |= doing.kind is Kind.ENDPOINT_SLICE and not _carries(doing, error)
        else:
            applied.append(doing)
    if conflicts:
        plan = replace(plan, conflicts=(*plan.conflicts, *conflicts))
    return Outcome(plan, tuple(applied), tuple(failures))


def _leads_nowhere(failure: Failure) -> bool:
    """Whether endpoints would not be reached through a Service that could not be written.

    One that was stored otherwise than it was written is there, as far as can be told.
    """
    failed = failure.change
    if isinstance(failure.error, AlteredError) or failed.kind is not Kind.SERVICE:
        return False
    return failed.existing is None or (isinstance(failed.body, ServiceBody) and failed.body.renames)


def _carries(change: Change, error: BridgeError) -> bool:
    """Whether a slice has its endpoints although the write failed: something else about it was altered on the way."""
    stored = error.stored if isinstance(error, AlteredError) else None
    return isinstance(stored, CurrentSlice) and isinstance(change.body, SliceBody) and stored.group == change.body.group


def _meanwhile(change: Change) -> Change | None:
    """What is done of a change while a slice of its plan cannot be written; None: nothing."""
    if change.meanwhile is not None:
        return change.meanwhile if change.meanwhile.action is not Action.UNCHANGED else None
    return change if change.body is not None else None
