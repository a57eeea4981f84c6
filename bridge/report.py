"""The result of a pass, as data: the controller or a command makes it, `render` prints it, `telemetry` counts it.

An `Outcome` is about one target, a `Report` about all of them. Both are pure: no clock, no I/O, no client library.
Every list in a report is sorted, so that two passes over the same state print the same bytes.

Longer than other modules: it has every row that a report can have, and what each is made of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bridge.core.model import (
    Action,
    ActiveDatacenter,
    Change,
    Current,
    EndpointsBody,
    Group,
    Held,
    Kind,
    Plan,
    Query,
    ServiceBody,
    Skipped,
    SliceBody,
    Target,
)
from bridge.core.reasons import Code, Reason, code_of
from bridge.errors import (
    AlteredError,
    BridgeError,
    ConflictError,
    ExitStatus,
    PermanentError,
    StaleError,
    ThrottledError,
    TransientError,
)


@dataclass(frozen=True, slots=True)
class Failure:
    """A change that was tried and did not succeed, and why."""

    change: Change
    error: BridgeError


@dataclass(frozen=True, slots=True)
class Outcome:
    """A plan and what became of it. Nothing applied and nothing failed: it was only planned.

    `before` is what Kubernetes held when the plan was made; only `-o diff` needs it.
    """

    plan: Plan
    applied: tuple[Change, ...] = ()
    failures: tuple[Failure, ...] = ()
    before: Current | None = None

    @property
    def waiting(self) -> tuple[Change, ...]:
        """The writes of the plan that have not been made (yet)."""
        done = set(map(id, self.applied))
        return tuple(c for c in self.plan.writes if id(c) not in done)

    @property
    def switched(self) -> ActiveDatacenter | None:
        """The datacenter that carries the traffic from now on, None when it did before."""
        active = self.plan.active_datacenter
        written = any(change.kind is Kind.SERVICE for change in self.applied)
        return active if active is not None and active.before and written else None


# --------------------------------------------------------------------------- rows of a report


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """The Consul services behind a row, joined by commas when several feed one target."""

    service: str
    datacenter: str

    @classmethod
    def of(cls, queries: Sequence[Query]) -> Origin:
        return cls(
            ",".join(dict.fromkeys(q.service for q in sorted(queries))),
            ",".join(dict.fromkeys(q.datacenter for q in sorted(queries))),
        )


IN_JSON = ("action", "kind", "namespace", "name", "service", "datacenter", "ready", "not_ready", "endpoints")
"""Fields of rows that JSON has as they are, in this order."""


class _Row:
    """An entry of a list in the report: in JSON `reason` is its code, `message` its sentence."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        row: Any = self
        found = {name: getattr(row, name) for name in IN_JSON if hasattr(row, name)}
        return {**found, "reason": code_of(row.reason), "message": row.reason}


@dataclass(frozen=True, slots=True, order=True)
class ChangeRow(_Row):
    """One object that was (or, in a dry run, would be) created, updated or deleted. Counts are after the change."""

    namespace: str
    name: str
    kind: str
    action: str
    service: str
    datacenter: str
    ready: int
    not_ready: int
    reason: str
    target: Target = field(compare=False)


@dataclass(frozen=True, slots=True, order=True)
class FailedRow(_Row):
    """A write that failed, or (action `read`, no kind) a service, datacenter or namespace that could not be read."""

    namespace: str
    name: str
    kind: str
    action: str
    service: str
    datacenter: str
    reason: str


@dataclass(frozen=True, slots=True, order=True)
class HeldRow(_Row):
    """Something that the guard refused to take away; `endpoints` ready endpoints stay.

    `why` is what all that is held together shares, `command` releases this one alone.
    """

    namespace: str
    name: str
    service: str
    datacenter: str
    cause: Code
    endpoints: int
    reason: str
    why: str = ""
    command: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**_Row.to_json(self), "reason": self.cause.value, "command": self.command}


def held_row(held: Held, queries: Sequence[Query]) -> HeldRow:
    at, origin, why = held.target, Origin.of(queries), held.why or held.reason
    about = at.namespace, at.name, origin.service, origin.datacenter
    return HeldRow(*about, held.cause, held.endpoints, held.reason, why, held.command)


@dataclass(frozen=True, slots=True, order=True)
class ConflictRow(_Row):
    """An object of a needed name that is not the bridge's."""

    namespace: str
    name: str
    kind: str
    service: str
    datacenter: str
    reason: str


@dataclass(frozen=True, slots=True, order=True)
class WarningRow(_Row):
    """Something that works but that an operator should know."""

    namespace: str
    name: str
    service: str
    datacenter: str
    reason: str


@dataclass(frozen=True, slots=True)
class Summary:
    """How many objects are created, updated, deleted, left as they are; targets held; entries skipped and failed.

    `skipped` counts conflicts too, as the list of that name has them; `conflicts` are objects that are not ours.
    """

    create: int = 0
    update: int = 0
    delete: int = 0
    unchanged: int = 0
    held: int = 0
    skipped: int = 0
    failed: int = 0
    conflicts: int = 0

    @property
    def changes(self) -> int:
        """Objects that are not as they should be (dry run) or were not (otherwise)."""
        return self.create + self.update + self.delete

    def to_json(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Report:
    """What a pass did (or, with `dry_run`, would do). Every tuple is sorted.

    A conflict stands in `conflicts` and, for readers that know the first five lists only, in `skipped` as well.
    `outcomes` is what the report was made from, sorted by target.
    """

    summary: Summary = Summary()
    changes: tuple[ChangeRow, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    held: tuple[HeldRow, ...] = ()
    failed: tuple[FailedRow, ...] = ()
    conflicts: tuple[ConflictRow, ...] = ()
    warnings: tuple[WarningRow, ...] = ()
    dry_run: bool = False
    outcomes: tuple[Outcome, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "summary": self.summary.to_json(),
            "changes": [row.to_json() for row in self.changes],
            "skipped": [
                {"service": s.service, "instance": s.instance, "reason": code_of(s.reason), "message": s.reason}
                for s in self.skipped
            ],
            "held": [row.to_json() for row in self.held],
            "failed": [row.to_json() for row in self.failed],
            "conflicts": [row.to_json() for row in self.conflicts],
            "warnings": [row.to_json() for row in self.warnings],
        }


# --------------------------------------------------------------------------- building one


def build_report(
    outcomes: Iterable[Outcome],
    unknown: Mapping[Query, str],
    dry_run: bool,
    skipped: Iterable[Skipped] = (),
    unplanned: Iterable[tuple[Target, Sequence[Query], str]] = (),
) -> Report:
    """The report of a pass.

    `unknown` are services that could not be read, and why; an empty service name stands for a whole datacenter.
    `skipped` are services that never became a target, `unplanned` targets (or, without a name, whole namespaces) of
    which Kubernetes tells nothing, and why. With `dry_run`, `changes` are those still to be made; without,
    those that were made: a change that an earlier one's failure left untried counts as failed.
    """
    outcomes = tuple(sorted(outcomes, key=lambda o: o.plan.target))
    changes: list[ChangeRow] = []
    all_skipped: set[Skipped] = set(skipped)
    held: list[HeldRow] = []
    failed: list[FailedRow] = []
    conflicts: list[ConflictRow] = []
    warnings: set[WarningRow] = set()
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        plan, target = outcome.plan, outcome.plan.target
        origin = Origin.of(plan.queries)
        where = (target.namespace, target.name, origin.service, origin.datacenter)
        mine, counted_unchanged = _changes(outcome, dry_run)
        changes += [_change_row(change, origin) for change in mine]
        counts.update(change.action.value for change in mine)
        counts["unchanged"] += counted_unchanged
        failed += _failed_rows(outcome, origin, dry_run)
        held += [held_row(h, plan.queries) for h in plan.held]
        for conflict in plan.conflicts:
            at, kind = conflict.target, conflict.kind.value
            conflicts.append(
                ConflictRow(at.namespace, at.name, kind, origin.service, origin.datacenter, conflict.reason)
            )
            why = Reason(Code.CONFLICT, kind=conflict.kind, target=target, why=conflict.reason)
            all_skipped.add(Skipped(origin.service, "", why))
        all_skipped.update(plan.skipped)
        warnings.update(WarningRow(*where, text) for text in plan.remarks)
    for query, text in unknown.items():
        unread = Reason(Code.READ_FAILED, said=text)
        failed.append(FailedRow("", "", "", "read", query.service, query.datacenter, unread))
    for target, queries, text in unplanned:
        origin, unread = Origin.of(queries), Reason(Code.READ_FAILED, said=text)
        failed.append(FailedRow(target.namespace, target.name, "", "read", origin.service, origin.datacenter, unread))
    return Report(
        summary=Summary(
            create=counts["create"],
            update=counts["update"],
            delete=counts["delete"],
            unchanged=counts["unchanged"],
            held=len(held),
            skipped=len(all_skipped),
            failed=len(failed),
            conflicts=len(conflicts),
        ),
        changes=tuple(sorted(changes)),
        skipped=tuple(sorted(all_skipped)),
        held=tuple(sorted(held)),
        failed=tuple(sorted(failed)),
        conflicts=tuple(sorted(conflicts)),
        warnings=tuple(sorted(warnings)),
        dry_run=dry_run,
        outcomes=outcomes,
    )


def exit_status(report: Report, dry_run: bool, exit_code: bool) -> int:
    """The exit status (docs/reference.md): failed before held before in conflict before changed.

    | in the report | status |
    | --- | --- |
    | something failed, or could not be read | 1 |
    | the guard held something (a dry run says what the real one would) | 3 |
    | an object of the needed name is not ours (the same) | 5 |
    | changes, in a dry run with `--exit-code` | 4 |
    | anything else: skipped instances and warnings alone | 0 |
    """
    if report.failed:
        return ExitStatus.FAILED
    if report.held:
        return ExitStatus.REFUSED
    if report.conflicts:
        return ExitStatus.CONFLICT
    if dry_run and exit_code and report.changes:
        return ExitStatus.CHANGES
    return ExitStatus.OK


def _changes(outcome: Outcome, dry_run: bool) -> tuple[tuple[Change, ...], int]:
    """The writes that count as changes, and how many objects are as they should be."""
    unchanged = sum(c.action is Action.UNCHANGED for c in outcome.plan.changes)
    return (outcome.waiting, unchanged + len(outcome.applied)) if dry_run else (outcome.applied, unchanged)


def _failed_rows(outcome: Outcome, origin: Origin, dry_run: bool) -> list[FailedRow]:
    rows = [_failed_row(f.change, origin, reason_of(f.error)) for f in outcome.failures]
    if outcome.failures and not dry_run:
        tried = {id(c) for c in outcome.applied} | {id(f.change) for f in outcome.failures}
        first = outcome.failures[0].change
        rows += [
            _failed_row(c, origin, Reason(Code.NOT_TRIED, action=first.action, kind=first.kind, name=first.name))
            for c in outcome.plan.writes
            if id(c) not in tried and id(c.meanwhile) not in tried
        ]
    return rows


def reason_of(error: BaseException) -> Reason:
    """An error as a reason: its kind says what can be done about it, its text is what it says."""
    kinds: tuple[tuple[type[BridgeError], Code], ...] = (
        (ThrottledError, Code.THROTTLED),
        (StaleError, Code.STALE),
        (TransientError, Code.TRANSIENT),
        (ConflictError, Code.TAKEN),
        (AlteredError, Code.ALTERED),
        (PermanentError, Code.PERMANENT),
    )
    code = next((code for kind, code in kinds if isinstance(error, kind)), Code.OTHER)
    return Reason(code, said=error)


def _failed_row(change: Change, origin: Origin, reason: Reason) -> FailedRow:
    kind, action = change.kind.value, change.action.value
    return FailedRow(change.target.namespace, change.name, kind, action, origin.service, origin.datacenter, reason)


def _change_row(change: Change, origin: Origin) -> ChangeRow:
    at, kind, action, reason = change.target, change.kind.value, change.action.value, change.reason or ""
    counts = change.ready, change.not_ready
    return ChangeRow(at.namespace, change.name, kind, action, origin.service, origin.datacenter, *counts, reason, at)


def action_of(outcome: Outcome, dry_run: bool) -> tuple[str, str]:
    """The most notable of what happens to a target's objects, and why.

    One of: failed, conflict, held, create, update, delete, unchanged.
    """
    plan, changes = outcome.plan, _changes(outcome, dry_run)[0]
    if outcome.failures:
        action, reasons = "failed", [str(f.error) for f in outcome.failures]
    elif plan.conflicts:
        action, reasons = "conflict", [f"{c.kind}: {c.reason}" for c in plan.conflicts]
    elif plan.held:
        action, reasons = "held", [h.reason for h in plan.held]
    else:
        action, reasons = _action(plan, changes), _reasons(plan, changes)
        if plan.skipped:
            reasons.append(f"{len(plan.skipped)} skipped")
    return action, "; ".join(dict.fromkeys(filter(None, reasons)))


def _reasons(plan: Plan, changes: Sequence[Change]) -> list[str]:
    """Why the target changes. That a slice is not needed any more follows from that, and says nothing of the cause."""
    reasons = [c.reason for c in changes if c.reason is not None]
    causes: list[str] = [reason for reason in reasons if reason.code is not Code.NOT_NEEDED]
    if plan.ready_before and not plan.ready and changes and not causes:
        lost = "Consul no longer lists what was ready" if plan.removed else "nothing of it is ready any more"
        causes = [*plan.warnings] or [lost]
    return causes or list(reasons)


def _action(plan: Plan, changes: Sequence[Change]) -> str:
    """One word for a target: it comes, it goes, it changes, or it stays."""
    actions = {c.action for c in changes}
    if not actions:
        return Action.UNCHANGED.value
    whole = len(changes) == len(plan.changes)
    if whole and len(actions) == 1:
        return actions.pop().value
    return Action.UPDATE.value


def ports_text(changes: Iterable[Change]) -> str:
    """Ports of a target for people, from what its objects are to be: `8080`, `80:8080,8081`, `80:8080 443:8443`.

    Of many numbers behind one port a few are shown: `80:20000,20001,20002,+297`.
    """
    service: dict[str, int] = {}
    inside: dict[str, set[int]] = {}
    for change in changes:
        match change.body:
            case ServiceBody(ports=ports):
                service |= {port.name: port.number for port in ports}
            case EndpointsBody(groups=groups):
                _collect(groups, inside)
            case SliceBody(group=group):
                _collect((group,), inside)
    texts = []
    for name in sorted(service.keys() | inside.keys()):
        targets = _few(sorted(inside.get(name, ())))
        own = str(service.get(name, ""))
        texts.append(own if targets in ("", own) else f"{own}:{targets}" if own else targets)
    return " ".join(texts)


PORTS_SHOWN = 3
"""Numbers behind one port that are written out; a scheduler's services have hundreds."""


def _few(numbers: Sequence[int]) -> str:
    shown = list(map(str, numbers if len(numbers) <= PORTS_SHOWN + 1 else numbers[:PORTS_SHOWN]))
    more = len(numbers) - len(shown)
    return ",".join([*shown, f"+{more}"] if more else shown)


def _collect(groups: Iterable[Group], into: dict[str, set[int]]) -> None:
    for group in groups:
        for port in group.ports:
            into.setdefault(port.name, set()).add(port.number)


def hold_text(held: Held) -> str:
    """A hold in a few words, where the whole reason stands elsewhere: `12 ready endpoints kept: Consul was rebuilt`."""
    return f"{held.endpoints} ready endpoint{'s' if held.endpoints != 1 else ''} kept: {Reason(held.cause)}"
