"""A report of `bridge sync` or `bridge purge`, in each of the formats of `--output`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING

from bridge.core.reasons import Code, Reason, code_of
from bridge.report import ChangeRow, FailedRow, HeldRow, Origin, Report, action_of, ports_text

if TYPE_CHECKING:
    pass

from bridge.render.diff import diff
from bridge.render.formats import to_json, to_yaml
from bridge.render.layout import COLOUR_OF, Column, Paint, bounded, clean, columns, painter, width_of, wrapped


def table(report: Report, width: int | None = 80, colour: bool = False, every: bool = False) -> str:
    """The table: a row per service that changes, sums, then all that needs attention and how to fix it.

    `every`: services that stay as they are have their rows too.
    """
    paint = painter(colour)
    origins = [Origin.of(outcome.plan.queries) for outcome in report.outcomes]
    several = len({origin.datacenter for origin in origins}) > 1
    heads = [
        Column("SERVICE", least=6),
        Column("TARGET", least=10),
        Column("PORTS", least=5),
        Column("READY", right=True),
        Column("NOT READY", right=True),
        Column("ACTION"),
        Column("REASON", least=1),
    ]
    rows = [
        (
            f"{origin.service}@{origin.datacenter}" if several else origin.service,
            str(outcome.plan.target),
            ports_text(outcome.plan.changes),
            str(outcome.plan.ready),
            str(outcome.plan.not_ready),
            action,
            reason if action not in ("failed", "held", "conflict") else "see below",
        )
        for outcome, origin in zip(report.outcomes, origins, strict=True)
        for action, reason in [action_of(outcome, report.dry_run)]
        if every or action != "unchanged"
    ]
    lines = columns(heads, rows, width, paint, colour_column=5) if rows else []
    sums = _summary_lines(report, width, paint)
    lines += ["", *sums] if rows else sums
    hidden = len(report.outcomes) - len(rows)
    if hidden and rows:
        lines.append(f"({_count(hidden, 'service')} unchanged and not shown: --all shows all)")
    lines += _sections(report, width, paint)
    return "\n".join(lines) + "\n"


def _summary_lines(report: Report, width: int | None, paint: Paint) -> list[str]:
    """The sums, in several lines where one would be too wide: services, then objects, then the rest."""
    plain, painted = summary_line(report), summary_line(report, paint)
    if width is None or width_of(plain) <= bounded(width):
        return [painted]
    lines: list[str] = []
    for part, coloured in zip(plain.split("; "), painted.split("; "), strict=True):
        taken, indent = 0, "  " if lines else ""
        for text, shown in zip(part.split(", "), coloured.split(", "), strict=True):
            if taken and taken + len(text) + 3 <= bounded(width):
                lines[-1] += f", {shown}"
                taken += len(text) + 2
            else:
                lines.append(f"{indent}{shown}")
                taken, indent = len(indent) + len(text), "  "
    return lines


def summary_line(report: Report, paint: Paint | None = None) -> str:
    """What is to be (or was) done, in services, then in objects, then what could not be."""
    paint = paint or painter(False)
    services = Counter(action_of(outcome, report.dry_run)[0] for outcome in report.outcomes)
    s = report.summary
    objects = {"create": s.create, "update": s.update, "delete": s.delete, "unchanged": s.unchanged}
    objects["failed"] = sum(bool(row.kind) for row in report.failed)
    skipped = Counter(bool(e.instance) for e in report.skipped if e.reason.code is not Code.CONFLICT)
    others = (
        (skipped[True], "instance", "skipped", "yellow"),
        (skipped[False], "service", "skipped", "yellow"),
        (sum(not row.kind for row in report.failed), "read", "failed", "bold red"),
    )
    sums = [
        _sums(services, "service", report.dry_run, paint),
        _sums(objects, "object", report.dry_run, paint),
        *(paint(f"{_count(n, thing)} {word}", colour) for n, thing, word, colour in others if n),
    ]
    told = [text for text in sums if text]
    if not s.changes and not s.failed:
        told.insert(0, "nothing to do" if not (s.held or s.conflicts) else "nothing else to do")
    return ("dry run: " if report.dry_run else "") + "; ".join(told)


_WORDS = {
    "create": ("to create", "created"),
    "update": ("to update", "updated"),
    "delete": ("to delete", "deleted"),
    "unchanged": ("unchanged", "unchanged"),
    "held": ("held", "held"),
    "conflict": ("in conflict", "in conflict"),
    "failed": ("failed", "failed"),
}
"""Actions in the order of the sums, with their words before and after the write."""


def _sums(counts: Mapping[str, int], thing: str, dry_run: bool, paint: Paint) -> str:
    """`2 services to create, 1 to update, 9 unchanged`."""
    told: list[str] = []
    for action, words in _WORDS.items():
        if n := counts.get(action, 0):
            number = str(n) if told else _count(n, thing)
            told.append(paint(f"{number} {words[0 if dry_run else 1]}", COLOUR_OF.get(action, "")))
    return ", ".join(told)


def purge_text(report: Report, width: int | None = 80, colour: bool = False) -> str:
    """What a purge takes away (or took away): how much of what, and in a dry run from which names."""
    paint = painter(colour)
    changes = report.changes
    spaces = sorted({row.namespace for row in changes})
    places = f"{len(spaces)} namespaces" if len(spaces) > 3 else f"namespace {', '.join(spaces)}"
    word = "to delete" if report.dry_run else "deleted"
    head = f"{_count(len(changes), 'object')} {word} in {places}: {_kinds(changes)}" if changes else f"nothing {word}"
    head = f"dry run: {head}" if report.dry_run else head
    lines = [paint(line, "red" if changes else "") for line in wrapped(head, width, indent="")]
    if report.dry_run and changes:
        of: dict[tuple[str, str], list[ChangeRow]] = {}
        for row in changes:
            of.setdefault((row.target.namespace, row.target.name), []).append(row)
        heads = [Column("TARGET", least=10), Column("SERVICE", least=6), Column("OBJECTS", least=10)]
        rows = [(f"{space}/{name}", found[0].service, _kinds(found)) for (space, name), found in sorted(of.items())]
        shown = rows if width is None else rows[:PURGED_SHOWN]
        lines += ["", *columns(heads, shown, width, paint)]
        if len(rows) > len(shown):
            lines.append(f"... and {len(rows) - len(shown)} more (-o json lists all)")
    lines += _sections(report, width, paint)
    return "\n".join(lines) + "\n"


PURGED_SHOWN = 100
"""Names that a purge lists on a terminal before it asks."""


def _kinds(changes: Sequence[ChangeRow]) -> str:
    """`8 Endpoints, 9 EndpointSlices, 1 Service`."""
    kinds = Counter(row.kind for row in changes)
    return ", ".join(_count(n, kind) if kind != "Endpoints" else f"{n} {kind}" for kind, n in sorted(kinds.items()))


def _sections(report: Report, width: int | None, paint: Paint) -> list[str]:
    lines: list[str] = []

    def section(title: str, colour: str, entries: Iterable[str], way_out: str = "") -> None:
        lines.append("")
        lines.extend(paint(line, colour) for line in wrapped(title, width, indent=""))
        for entry in entries:
            lines.extend(wrapped(entry, width))
        if way_out:
            lines.extend(wrapped(way_out, width, indent="  -> "))

    if report.failed:
        section(
            f"Failed ({len(report.failed)})",
            "bold red",
            failed_lines(report),
        )
    if report.held:
        lines += ["", *held_section(report.held, width, paint)]
    if report.conflicts:
        section(
            f"Conflicts ({len(report.conflicts)}): objects in the way, left alone",
            "magenta",
            (f"{r.kind} {r.namespace}/{r.name} (for {r.service or '?'}): {r.reason}" for r in report.conflicts),
            _ways_out({code_of(r.reason) for r in report.conflicts}),
        )
    skipped = [s for s in report.skipped if s.reason.code is not Code.CONFLICT]
    if skipped:
        section(
            f"Skipped ({len(skipped)})",
            "yellow",
            _skipped_lines([(s.service, s.instance, s.reason) for s in skipped]),
            "bridge explain SERVICE tells all about one service",
        )
    if report.warnings:
        section(
            f"Warnings ({len(report.warnings)})",
            "yellow",
            (f"{r.namespace}/{r.name}: {r.reason}" if r.name else str(r.reason) for r in report.warnings),
        )
    return lines


def _ways_out(conflicts: Set[str]) -> str:
    """What may help with conflicts of these codes, beside what each says itself: adoption helps with few of them."""
    if conflicts <= {Code.EXTERNAL_NAME, Code.HEADLESS_FIXED, Code.SELECTOR_KEPT}:
        return ""
    ways = ["rename or delete the object", "choose another name (--name, rules[].to.name)"]
    if conflicts & {Code.NOT_OWNED, Code.TAKEN}:
        ways.append("take it over (--adopt unowned)")
    return f"{', '.join(ways[:-1])}, or {ways[-1]}"


HELD_SHOWN = 20
"""Holds of one cause that are named one by one, each with its command."""


def held_lines(held: Sequence[HeldRow]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Why endpoints are held, each text once, and what is held for that reason: how much, and what releases it."""
    together: dict[str, list[HeldRow]] = {}
    for row in held:
        together.setdefault(row.why or row.reason, []).append(row)
    told = []
    for why, rows in together.items():
        names = [
            (f"{r.namespace}/{r.name} ({_count(r.endpoints, 'ready endpoint')} kept){':' * bool(r.command)}", r.command)
            for r in rows[:HELD_SHOWN]
        ]
        if len(rows) > HELD_SHOWN:
            names.append((f"... and {len(rows) - HELD_SHOWN} more (-o json lists all)", ""))
        told.append((why, names))
    return told


def held_section(held: Sequence[HeldRow], width: int | None, paint: Paint) -> list[str]:
    title = f"Held ({len(held)}): ready endpoints that stay although Consul says otherwise"
    lines = [paint(line, "magenta") for line in wrapped(title, width, indent="")]
    for why, names in held_lines(held):
        lines += wrapped(why, width)
        for name, command in names:
            line = f"    {clean(name)} {clean(command)}".rstrip()
            if width is None or width_of(line) <= bounded(width):
                lines.append(line)
            else:  # a command is never cut: half of one does something else
                lines += [*wrapped(name, width, indent="    "), *([f"      {clean(command)}"] if command else [])]
    every = "; without --service and --namespace it releases all" if len(held) > 1 else ""
    remedy = f"when Consul is right: the command of each{every} (look with --dry-run first)"
    return [*lines, *wrapped(remedy, width, "  -> ")]


FAILED_SHOWN = 50
"""Failures that are named one by one."""


def failed_lines(report: Report) -> list[str]:
    """A line per failure, the cause before what was not tried for it; what failed alike shares a line."""
    lines: list[str] = []
    unread: dict[tuple[str, str], list[str]] = {}
    unreadable: dict[tuple[str, str], list[str]] = {}
    untried: dict[tuple[str, str, str], list[str]] = {}
    alike: dict[tuple[str, str, str, str], list[str]] = {}
    for row in report.failed:
        if cause := _cause_of(row):
            untried.setdefault(cause, []).append(f"{row.kind} {row.name}")
    for row in report.failed:
        if _cause_of(row) is not None:
            continue
        if row.kind:
            alike.setdefault((row.action, row.kind, row.namespace, row.reason), []).append(row.name)
        elif row.namespace:
            unreadable.setdefault((row.namespace, row.reason), []).extend([row.name] if row.name else [])
        elif row.service:
            unread.setdefault((row.datacenter, row.reason), []).append(row.service)
        else:
            lines.append(f"reading the services of {row.datacenter} (what is there stays): {row.reason}")
    for (action, kind, namespace, reason), names in alike.items():
        after = [text for name in names for text in untried.get((namespace, kind, name), ())]
        then = f" (therefore not tried: {_first(after)})" if after else ""
        lines.append(f"{action} {kind} {namespace}/{_first(names)}: {reason}{then}")
    for (namespace, reason), targets in unreadable.items():
        wanted = f" for {_first(targets)}" if targets else ""
        lines.append(f"reading namespace {namespace}{wanted} (what is there stays): {reason}")
    for (datacenter, reason), services in unread.items():
        lines.append(f"reading {_first(services)} in {datacenter} (what is there stays): {reason}")
    if len(lines) > FAILED_SHOWN:
        lines = [*lines[:FAILED_SHOWN], f"... and {len(lines) - FAILED_SHOWN} more (-o json lists all)"]
    return lines


def _cause_of(row: FailedRow) -> tuple[str, str, str] | None:
    """The object whose failure left this one untried, None where it was tried."""
    if not isinstance(row.reason, Reason) or row.reason.code is not Code.NOT_TRIED:
        return None
    said = dict(row.reason.data)
    return row.namespace, said["kind"], said["name"]


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


SKIPPED_SHOWN = 20
"""Instances that a table names one by one; a catalog full of loopback addresses would bury the rest."""


def _skipped_lines(skipped: Sequence[tuple[str, str, str]]) -> list[str]:
    lines = [
        f"{service}, instance {instance}: {reason}" if instance else f"{service}: {reason}"
        for service, instance, reason in skipped[:SKIPPED_SHOWN]
    ]
    if len(skipped) > SKIPPED_SHOWN:
        lines.append(f"... and {len(skipped) - SKIPPED_SHOWN} more (-o json lists all)")
    return lines


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def render(report: Report, output: str, width: int | None = 80, colour: bool = False, *, every: bool = False) -> str:
    """A report in one of the formats of `--output`; `every`: the table with services that stay as they are."""
    match output:
        case "json":
            return to_json(report.to_json())
        case "yaml":
            return to_yaml(report.to_json())
        case "diff":
            return diff(report, colour)
        case _:
            return table(report, width, colour, every)
