"""Reports as text: a table for people, JSON and YAML for machines, a diff for those who want to see every line.

Pure functions from data to strings; who prints them, and to what, is the command's business. Names come from Consul,
where every client that may register chooses them: all output passes through `clean`, so that no control character
reaches a terminal.

The tables are laid out here and not by rich, which takes 1.5 s for 5,000 rows (this: 0.05 s). How wide a character is,
rich knows.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from bridge.core.model import (
    Action,
    Body,
    Change,
    Current,
    CurrentRoute,
    Endpoint,
    EndpointsBody,
    Family,
    Group,
    Kind,
    Pairs,
    Port,
    Route,
    RouteBody,
    ServiceBody,
    SliceBody,
)
from bridge.core.plan import existing_fields
from bridge.core.reasons import Code, Reason, code_of
from bridge.core.service_state import NO_READY_ENDPOINT, ServiceRow, ServiceState, readable
from bridge.report import ChangeRow, FailedRow, HeldRow, Origin, Report, action_of, ports_text

if TYPE_CHECKING:
    from bridge.core.explain import Explanation, Row
    from bridge.oneshot.inspection import Status
    from bridge.oneshot.probe import Probe

MIN_WIDTH, MAX_WIDTH = 60, 200
"""A table is never laid out for less (it would be unreadable) or more (the eye loses the line)."""

OTHERS = 12
"""Endpoints that no instance accounts for, listed by name; beyond that they are counted."""

# --------------------------------------------------------------------------- hostile text


def clean(text: str) -> str:
    """`text` with all that is not printable (control characters, bidirectional overrides) written as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    if text.isascii():
        return text[: width - 1] + "…" if width > 1 else "…"
    from rich.cells import set_cell_size

    return set_cell_size(text, width - 1).rstrip() + "…"


def _pad(text: str, width: int, right: bool) -> str:
    blanks = " " * max(0, width - _width(text))
    return blanks + text if right else text + blanks


# --------------------------------------------------------------------------- colours

_CODES = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "magenta": "35",
    "cyan": "36",
    "bold red": "1;31",
}
"""Only the terminal's own basic colours: they are chosen to be read on its background, dark or light."""

_COLOUR_OF = {
    "create": "green",
    "update": "yellow",
    "delete": "red",
    "held": "magenta",
    "conflict": "magenta",
    "failed": "bold red",
    "unchanged": "dim",
    "ok": "green",
    "warning": "yellow",
    "in sync": "green",
    "no ready endpoint": "yellow",
    "out of sync": "yellow",
    "unknown": "bold red",
    "ready": "green",
    "not ready": "yellow",
    "skipped": "red",
    "omitted": "dim",
}

Paint = Callable[[str, str], str]
"""Takes a text and the name of a colour."""


def painter(colour: bool) -> Paint:
    if not colour:
        return lambda text, _name: text
    return lambda text, name: f"\x1b[{_CODES[name]}m{text}\x1b[0m" if name else text


# --------------------------------------------------------------------------- columns


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. `least` is how far it may be cut when the terminal is narrow (0: never)."""

    title: str
    right: bool = False
    least: int = 0


def columns(
    heads: Sequence[Column],
    rows: Sequence[Sequence[str]],
    width: int | None,
    paint: Paint,
    colour_column: int | None = None,
    *,
    below: bool = False,
) -> list[str]:
    """Lines of a table, the titles first. The last column takes what is left, and none is wider than its content.

    `width` None: as wide as it gets (a file, a pipe). `colour_column` is the column whose word decides the colour of
    its cell (and, when `unchanged`, of the row). `below`: where the last column would be cut, its texts stand whole
    under their rows instead.
    """
    cells = [[clean(cell) for cell in row] for row in rows]
    if below and width is not None:
        whole = max([0, *(_width(cell) for row in cells for cell in row[-1:])])
        others = sum(max([_width(h.title), *(_width(row[n]) for row in cells)]) + 2 for n, h in enumerate(heads[:-1]))
        if whole and others + whole > _bounded(width):
            lines = columns(heads[:-1], [row[:-1] for row in rows], width, paint, colour_column)
            told = [[line] + (_wrapped(row[-1], width, indent="    ") if row[-1] else [])
                    for line, row in zip(lines[1:], cells, strict=True)]  # fmt: skip
            return [lines[0], *(line for lines_of_row in told for line in lines_of_row)]
    wanted = [max([_width(h.title), *(_width(row[n]) for row in cells)]) for n, h in enumerate(heads)]
    shown = [n for n in range(len(heads)) if heads[n].least != 1 or any(row[n] for row in cells)]
    sizes = [wanted[n] for n in shown]
    if width is not None:
        sizes = _fit(sizes, [heads[n].least for n in shown], _bounded(width) - 2 * (len(shown) - 1))
    lines = [_line([heads[n].title for n in shown], sizes, [heads[n].right for n in shown])]
    lines[0] = paint(lines[0], "bold")
    rights = [heads[n].right for n in shown]
    for row in cells:
        texts = [_pad(_cut(row[n], size), size, right) for n, size, right in zip(shown, sizes, rights, strict=True)]
        while len(texts) > 1 and not texts[-1].strip():
            texts.pop()
        texts[-1] = texts[-1].rstrip()
        word = row[colour_column] if colour_column is not None else ""
        colour = _COLOUR_OF.get(word, "")
        if colour == "dim":
            lines.append(paint("  ".join(texts), "dim"))
            continue
        if colour and colour_column in shown:
            at = shown.index(colour_column)
            texts[at] = paint(texts[at], colour)
        lines.append("  ".join(texts))
    return lines


def _bounded(width: int) -> int:
    return max(MIN_WIDTH, min(width, MAX_WIDTH))


def _line(texts: Sequence[str], sizes: Sequence[int], rights: Sequence[bool]) -> str:
    return "  ".join(
        _pad(_cut(t, size), size, right) for t, size, right in zip(texts, sizes, rights, strict=True)
    ).rstrip()


def _fit(wanted: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Widths that add up to `room` at most: the widest column that may be cut is cut first."""
    sizes = list(wanted)
    while sum(sizes) > room:
        able = [n for n, size in enumerate(sizes) if least[n] and size > max(least[n], 4)]
        if not able:
            break
        sizes[max(able, key=lambda n: sizes[n])] -= 1
    return sizes


# --------------------------------------------------------------------------- a report as a table


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
    if width is None or _width(plain) <= _bounded(width):
        return [painted]
    lines: list[str] = []
    for part, coloured in zip(plain.split("; "), painted.split("; "), strict=True):
        taken, indent = 0, "  " if lines else ""
        for text, shown in zip(part.split(", "), coloured.split(", "), strict=True):
            if taken and taken + len(text) + 3 <= _bounded(width):
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
            told.append(paint(f"{number} {words[0 if dry_run else 1]}", _COLOUR_OF.get(action, "")))
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
    lines = [paint(line, "red" if changes else "") for line in _wrapped(head, width, indent="")]
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
        lines.extend(paint(line, colour) for line in _wrapped(title, width, indent=""))
        for entry in entries:
            lines.extend(_wrapped(entry, width))
        if way_out:
            lines.extend(_wrapped(way_out, width, indent="  -> "))

    if report.failed:
        section(
            f"Failed ({len(report.failed)})",
            "bold red",
            failed_lines(report),
        )
    if report.held:
        lines += ["", *_held_section(report.held, width, paint)]
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


def _held_section(held: Sequence[HeldRow], width: int | None, paint: Paint) -> list[str]:
    title = f"Held ({len(held)}): ready endpoints that stay although Consul says otherwise"
    lines = [paint(line, "magenta") for line in _wrapped(title, width, indent="")]
    for why, names in held_lines(held):
        lines += _wrapped(why, width)
        for name, command in names:
            line = f"    {clean(name)} {clean(command)}".rstrip()
            if width is None or _width(line) <= _bounded(width):
                lines.append(line)
            else:  # a command is never cut: half of one does something else
                lines += [*_wrapped(name, width, indent="    "), *([f"      {clean(command)}"] if command else [])]
    return [*lines, *_wrapped("when Consul is right: the command of each (look with --dry-run first)", width, "  -> ")]


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
        wanted = f", which {_first(targets)} would go to," if targets else ""
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


def _wrapped(text: str, width: int | None, indent: str = "  ") -> list[str]:
    """`text` in lines of at most `width` columns, continued lines indented further."""
    import textwrap

    if width is None:
        return [indent + clean(text)]
    return textwrap.wrap(
        clean(text),
        _bounded(width),
        initial_indent=indent,
        subsequent_indent=" " * len(indent) + "  ",
        break_on_hyphens=False,
    )


# --------------------------------------------------------------------------- status, explanation, checks


def status_table(status: Status, width: int | None = 80, colour: bool = False) -> str:
    """The sums, a row per mirrored service with both sides, what is held and what could not be read.

    The sums come first, and once more below rows that push them off the screen.
    """
    paint = painter(colour)
    rows = _status_rows(status, width, paint, _worst_first(status), below=True)
    held = ["", *_held_section(status.held, width, paint)] if status.held else []
    sums = _status_sums(status) + (f"; {len(status.trouble)} not read" if status.trouble else "")
    text = "\n".join([
        sums,
        "",
        *notes_text(status.notes, width, colour).splitlines(),
        *rows,
        *(["", sums] if len(rows) > SCREEN else []),
        *held,
        *_trouble(status.trouble, width, paint),
    ])  # fmt: skip
    return text.rstrip() + "\n"


SCREEN = 20
"""Lines that every terminal shows at once."""


def _worst_first(status: Status) -> list[ServiceRow]:
    """What is not in sync before what is."""
    return sorted(status.services, key=lambda row: (row.mark == ServiceState.IN_SYNC, row.namespace, row.name))


def status_screen(status: Status, width: int = 80, height: int = 24, colour: bool = False, note: str = "") -> str:
    """The same within a terminal's height: what is not in sync first, and how many rows found no room.

    `note` is shown at the top, beside the sums: when it was read, or why it could not be.
    """
    paint = painter(colour)
    head = _wrapped(f"{_status_sums(status)}   {note}".rstrip(), width, indent="")[:2]
    head += [paint(line, "yellow") for text in status.notes[:1] for line in _wrapped(text, width, indent="")[:2]]
    trouble = _trouble(status.trouble, width, paint)
    if status.held:
        trouble = ["", *_held_section(status.held, width, paint), *trouble]
    if len(trouble) > max(3, height // 3):
        trouble = [*trouble[: max(3, height // 3) - 1], "..."]
    chosen = _worst_first(status)
    room = max(2, height - len(head) - len(trouble) - 3)  # a blank, the titles, the cursor's line
    room -= len(chosen) > room  # a line for what found no room
    lines = [*head, "", *_status_rows(status, width, paint, chosen[:room])]
    if len(chosen) > room:
        lines.append(f"... and {_sums_of_states(chosen[room:])}")
    return "\n".join([*lines, *trouble]) + "\n"


_MARKS = ("in_sync", NO_READY_ENDPOINT, "out_of_sync", "held", "conflict", "unknown")


def _sums_of_states(rows: Sequence[ServiceRow]) -> str:
    sums = Counter(row.mark for row in rows)
    return ", ".join(f"{sums[mark]} {readable(mark)}" for mark in _MARKS if sums[mark])


def _status_sums(status: Status) -> str:
    return _sums_of_states(status.services) or "nothing is mirrored"


def _status_rows(
    status: Status, width: int | None, paint: Paint, shown: Sequence[ServiceRow], *, below: bool = False
) -> list[str]:
    if not shown:
        return []
    several = len({row.datacenter for row in status.services}) > 1 or any(r.active_datacenter for r in status.services)
    heads = [
        Column("SERVICE", least=6),
        Column("TARGET", least=10),
        Column("CONSUL", right=True),
        Column("KUBERNETES", right=True),
        Column("STATE"),
        Column("SINCE", right=True),
        Column("DETAIL", least=1),
    ]
    rows = [
        (
            f"{row.service}@{row.active_datacenter or row.datacenter}" if several else row.service,
            f"{row.namespace}/{row.name}",
            f"{row.consul_ready}/{row.consul_ready + row.consul_not_ready}"
            if row.state != ServiceState.UNKNOWN
            else "?",
            f"{row.kubernetes_ready}/{row.kubernetes_ready + row.kubernetes_not_ready}",
            readable(row.mark),
            age(row.since, status.read_at),
            row.detail,
        )
        for row in shown
    ]
    return columns(heads, rows, width, paint, colour_column=4, below=below)


def age(since: str, now: str) -> str:
    """How long ago, in its largest unit: `12s`, `5m`, `3h`, `20d`; "" when either time is not known."""
    try:
        seconds = int((datetime.fromisoformat(now) - datetime.fromisoformat(since)).total_seconds())
    except (ValueError, TypeError):
        return ""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size or (seconds >= size and unit != "m"):
            return f"{seconds // size}{unit}"
    return f"{max(0, seconds)}s"


def explanation_text(explanation: Explanation, width: int | None = 80, colour: bool = False) -> str:
    """One service: its rule, its target, a row per instance, and how Kubernetes differs."""
    paint = painter(colour)
    facts = [("Service", f"{explanation.service} in {explanation.datacenter}")]
    if explanation.rule:
        facts.append(("Rule", explanation.rule))
    else:
        facts += [
            ("Rule", f"not {verdict.rule}: {verdict.why_not}") for verdict in explanation.rules if verdict.why_not
        ]
    facts += [
        ("Also", f"at {verdict.target}, by {verdict.rule}")
        for verdict in explanation.rules
        if verdict.target not in ("", explanation.target)
    ]
    if explanation.filter:
        facts.append(("Filter", explanation.filter))
    if explanation.target:
        facts.append(("Target", explanation.target))
    if explanation.problem:
        facts.append(("Problem", explanation.problem))
    facts.append(("Consul", explanation.consul))
    if explanation.traffic:
        facts.append(("Traffic", explanation.traffic))
    facts += [("Held", text) for text in explanation.held]
    facts += [("Conflict", text) for text in explanation.conflicts]
    facts += [("Warning", text) for text in explanation.warnings if text != explanation.traffic]
    lines: list[str] = []
    for name, text in facts:
        first, *rest = _wrapped(f"{name + ':':10}{text}", width, indent="")
        colour_name = {"Problem": "bold red", "Held": "magenta", "Conflict": "magenta", "Warning": "yellow"}.get(
            name, ""
        )
        lines += [paint(line, colour_name) for line in (first, *rest)]
    if explanation.rows:
        lines += ["", *_instance_rows(explanation, width, paint)]
    lines.append("")
    if explanation.unaccounted:
        some = ", ".join(explanation.unaccounted[:OTHERS])
        more = f" and {len(explanation.unaccounted) - OTHERS} more" if len(explanation.unaccounted) > OTHERS else ""
        why = " (the hold keeps what is ready)" if explanation.held else ""
        lines += _wrapped(f"Kubernetes also has, of no instance above{why}: {some}{more}", width, indent="")
    if explanation.differences:
        lines.append("Kubernetes differs; the next pass would:")
        lines += [line for text in explanation.differences for line in _wrapped(text, width)]
    elif explanation.conflicts:
        lines.append("Nothing is written there while the conflict lasts.")
    elif explanation.held:
        lines.append("Nothing is taken away while it is held.")
    elif explanation.problem and explanation.target:
        lines.append("Nothing is to be written.")
    elif explanation.deviations:
        told = [text for text in explanation.deviations if text not in explanation.warnings]
        lines.append("All EndpointSlices together are not this" + (":" if told else "; the warnings say why."))
        lines += [line for text in told for line in _wrapped(text, width)]
    elif explanation.target and explanation.compared:
        lines.append("Kubernetes holds exactly this.")
    elif explanation.target:
        lines.append("Too little is known to say how Kubernetes differs; what is there stays.")
    return "\n".join(lines).rstrip() + "\n"


def _instance_rows(explanation: Explanation, width: int | None, paint: Paint) -> list[str]:
    """The instances in the columns of the page. What is the same for all of them is shown once, above.

    Neither an instance nor its address is ever cut. Where the columns do not fit, the reason goes below its row, then
    the ports, the hostname, the address and the rest.
    """
    heads = [
        Column("INSTANCE"),
        Column("STATUS"),
        Column("ADDRESS"),
        Column("HOSTNAME"),
        Column("PORTS"),
        Column("WOULD BE" if explanation.problem else "SHOULD BE"),
        Column("IS"),
        Column("GROUP"),
        Column("WHY"),
    ]
    chosen = {_address_chosen(r) for r in explanation.rows}
    everywhere = chosen.pop() if len(chosen) == 1 and len(explanation.rows) > 1 else ""
    rows = [
        [clean(t) for t in (*_cells(r), "; ".join(filter(None, (_why(r), "" if everywhere else _address_chosen(r)))))]
        for r in explanation.rows
    ]
    decided = [row[5] for row in rows]
    group, why = 7, 8
    same = [n for n in range(1, len(heads)) if n != group and len(rows) > 1 and len({row[n] for row in rows}) == 1]
    shared = [*(f"{heads[n].title} {rows[0][n]}" for n in same if rows[0][n]), *filter(None, (clean(everywhere),))]
    lines = _wrapped(f"In all {len(rows)} rows: {'; '.join(shared)}", width, indent="") if shared else []
    shown = [n for n in range(len(heads)) if n not in same and any(row[n] for row in rows)]
    if len({row[group] for row in rows} - {""}) < 2:
        shown = [n for n in shown if n != group]
    sizes = [max(len(h.title), *(_width(row[n]) for row in rows)) for n, h in enumerate(heads)]
    below: list[int] = []
    for least in (group, why, 4, 3, 2, 1, 6):  # what goes first where there is no room for all
        if width is not None and sum(sizes[n] + 2 for n in shown) - 2 > _bounded(width) and least in shown:
            shown.remove(least)
            below += [least] if least != group else []
    at = shown.index(5) if 5 in shown else None
    titles, *cells = columns([heads[n] for n in shown], [[row[n] for n in shown] for row in rows], None, paint, at)
    lines += ["", titles] if lines else [titles]
    for row, line, word in zip(rows, cells, decided, strict=True):
        lines.append(paint(line, "dim") if at is None and word in ("omitted", "not selected") else line)
        told = [row[n] if n == why else f"{heads[n].title.lower()} {row[n]}" for n in sorted(below) if row[n]]
        lines += _wrapped("; ".join(told), width, indent="    ") if told else []
    return lines


def _cells(row: Row) -> tuple[str, ...]:
    return row.instance, row.status, row.address, row.hostname, row.ports, row.disposition, row.kubernetes, row.group


def _why(row: Row) -> str:
    """Why an instance is where it is: what decided it, else its check; then what the check says."""
    said = row.reason
    if row.check and row.check not in said and row.status != "passing":
        said = f"{said}; check {row.check}" if said else f"check {row.check}"
    if row.output:
        said = f"{said}: {row.output}" if said else row.output
    return said


def _address_chosen(row: Row) -> str:
    """Which address it is, where that is not the service's own."""
    return f"at {row.chosen}" if row.chosen not in ("", "none", "the service's address") else ""


def notes_text(notes: Sequence[str], width: int | None = 80, colour: bool = False) -> str:
    """What is to be known before all the rest, and a blank line."""
    paint = painter(colour)
    lines = [paint(line, "yellow") for text in notes for line in _wrapped(text, width, indent="")]
    return "".join(f"{line}\n" for line in [*lines, ""]) if lines else ""


def trouble_text(trouble: Sequence[str], width: int | None = 80, colour: bool = False) -> str:
    return "".join(f"{line}\n" for line in _trouble(trouble, width, painter(colour)))


def _trouble(trouble: Sequence[str], width: int | None, paint: Paint) -> list[str]:
    if not trouble:
        return []
    title = paint(f"Not read ({len(trouble)}): what is there stays", "bold red")
    return ["", title, *(line for text in trouble for line in _wrapped(text, width))]


def probe_text(probe: Probe, width: int | None = 80, colour: bool = False) -> str:
    """One line per probe; a second one says how to fix it."""
    paint = painter(colour)
    state = paint(f"{probe.state:8}", _COLOUR_OF.get(probe.state, ""))
    name = f"{probe.section}: {probe.name}" if probe.section else probe.name
    first, *rest = _wrapped(f"{name}: {probe.detail}", None if width is None else width - 8, indent="")
    lines = [f"{state}{first}", *(f"{'':8}{line}" for line in rest)]
    if probe.remedy and probe.state != "ok":
        lines += [
            f"{'':8}{line}" for line in _wrapped(probe.remedy, None if width is None else width - 8, indent="-> ")
        ]
    return "\n".join(lines) + "\n"


def probe_sums(probes: Sequence[Probe], colour: bool = False) -> str:
    """The last line, after probes that may have pushed a failure off the screen: `1 failed, 2 warnings, 20 ok`."""
    paint, sums = painter(colour), Counter(probe.state for probe in probes)
    words = {"failed": "failed", "warning": "warning" if sums["warning"] == 1 else "warnings", "ok": "ok"}
    told = [paint(f"{sums[state]} {word}", _COLOUR_OF[state]) for state, word in words.items() if sums[state]]
    return f"\n{', '.join(told)}\n"


# --------------------------------------------------------------------------- for machines


def to_json(data: Any) -> str:
    """JSON with two blanks of indentation and a line end. Only ASCII: it survives every pipe and locale."""
    return json.dumps(data, indent=2, ensure_ascii=True) + "\n"


def to_yaml(data: Any) -> str:
    """YAML of the same data, in the same order."""
    import yaml

    data = json.loads(json.dumps(data))  # a reason is more than its text, and YAML takes nothing but text
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return str(
        yaml.dump(data, Dumper=dumper, sort_keys=False, default_flow_style=False, allow_unicode=False, width=120)
    )


# --------------------------------------------------------------------------- a report as a diff


def diff(report: Report, colour: bool = False) -> str:
    """A unified diff per object: what Kubernetes holds and what it would (or does) hold. Empty without changes."""
    paint = painter(colour)
    pieces: list[str] = []
    for outcome in report.outcomes:
        for change in outcome.waiting if report.dry_run else outcome.applied:
            pieces.extend(_object_diff(change, outcome.before, paint))
    return "".join(f"{line}\n" for line in pieces)


def _object_diff(change: Change, before: Current | None, paint: Paint) -> list[str]:
    name = clean(f"{change.kind}/{change.target.namespace}/{change.name}")
    old = [] if change.action is Action.CREATE else _lines_before(change, before)
    new = [] if change.action is Action.DELETE or change.body is None else body_lines(change.body)
    lines = list(
        difflib.unified_diff(
            old,
            new,
            "/dev/null" if change.action is Action.CREATE else f"current/{name}",
            "/dev/null" if change.action is Action.DELETE else f"desired/{name}",
            lineterm="",
        )
    )
    if not lines:  # only ownership labels or the order of what is stored differ
        lines = [f"--- current/{name}", f"+++ desired/{name}", f"# {clean(change.reason or 'rewritten')}"]
    colours = {"+": "green", "-": "red", "@": "cyan"}
    return [paint(line, "bold" if line[:3] in ("---", "+++") else colours.get(line[:1], "")) for line in lines]


def _lines_before(change: Change, before: Current | None) -> list[str]:
    """What Kubernetes holds, in the same form as `body_lines` has it."""
    if before is None:
        return []
    if change.kind is Kind.SERVICE and before.service is not None:
        s = before.service
        if isinstance(change.body, ServiceBody):
            return body_lines(existing_fields(s, change.body))
        return body_lines(
            ServiceBody(
                s.ports,
                s.headless,
                s.families,
                s.meta.labels,
                s.meta.annotations,
                s.target_ports,
                s.type,
                family_policy=s.family_policy,
            )
        )
    if change.kind is Kind.ENDPOINTS and before.endpoints is not None:
        e = before.endpoints
        return body_lines(EndpointsBody(e.groups, e.meta.labels, e.meta.annotations))
    if change.kind is Kind.HTTP_ROUTE and isinstance(before.route, CurrentRoute) and before.route.route is not None:
        return body_lines(RouteBody(before.route.route, before.route.meta.labels, before.route.meta.annotations))
    for s_ in before.slices:
        if s_.meta.name == change.name:
            return body_lines(SliceBody(s_.service, s_.group, s_.meta.labels, s_.meta.annotations))
    return []


def body_lines(body: Body) -> list[str]:
    """An object's content, one fact a line, in Kubernetes' words. Sorted as it is stored."""
    lines = [*_pair_lines("labels", body.labels), *_pair_lines("annotations", body.annotations)]
    if isinstance(body, ServiceBody):
        lines.append("type: Headless" if body.headless else f"type: {clean(body.type)}")
        lines.append(f"ipFamilies: {', '.join(body.families)}" if body.families else "ipFamilies: (the cluster's)")
        if body.family_policy != "SingleStack":
            lines.append(f"ipFamilyPolicy: {clean(body.family_policy)}")
        targets = dict(zip(body.ports, body.target_ports, strict=False))
        return lines + _port_lines(body.ports, "", targets)
    if isinstance(body, RouteBody):
        return lines + _route_lines(body.route)
    groups = (body.group,) if isinstance(body, SliceBody) else body.groups
    if isinstance(body, SliceBody):
        lines.append(f"service: {clean(body.service)}")
    for group in groups:
        lines.extend(_group_lines(group))
    return lines


def _route_lines(route: Route) -> list[str]:
    lines = ["parents:"]
    for parent in route.parents:
        listener = [f"listener {parent.section}"] if parent.section else []
        listener += [f"port {parent.port}"] if parent.port else []
        place = f"{parent.namespace}/" if parent.namespace else ""
        lines.append(f"  - Gateway {place}{parent.name}" + (f" ({', '.join(listener)})" if listener else ""))
    lines += ["hostnames:", *(f"  - {name}" for name in route.hostnames)] if route.hostnames else []
    return [clean(line) for line in (*lines, f"path: {route.path}", f"port: {route.port}")]


def _group_lines(group: Group) -> list[str]:
    lines = [f"{'addresses' if group.family is Family.IPV4 else 'addresses (IPv6)'}:", *_port_lines(group.ports, "  ")]
    return lines + [f"  - {_endpoint_text(e)}" for e in group.endpoints]


def _endpoint_text(endpoint: Endpoint) -> str:
    words = ["ready" if endpoint.ready else "not ready"]
    if endpoint.serving is not endpoint.ready:
        words.append("serving" if endpoint.serving else "not serving")
    if endpoint.terminating:
        words.append("terminating")
    if endpoint.zone:
        words.append(f"zone {endpoint.zone}")
    if endpoint.for_zone:
        words.append(f"for zone {endpoint.for_zone}")
    if endpoint.node_name:
        words.append(f"node {endpoint.node_name}")
    if endpoint.hostname:
        words.append(f"hostname {endpoint.hostname}")
    return clean(f"{endpoint.address} ({', '.join(words)})")


def _port_lines(ports: Sequence[Port], indent: str, targets: Mapping[Port, int | str] | None = None) -> list[str]:
    lines = [f"{indent}ports:"] if ports else []
    for port in ports:
        app = f" ({port.app_protocol})" if port.app_protocol else ""
        target = (targets or {}).get(port, port.number)
        arrow = f" -> {target}" if target != port.number else ""
        lines.append(clean(f"{indent}  - {port.name or '(no name)'} {port.number}/{port.protocol}{arrow}{app}"))
    return lines


def _pair_lines(title: str, pairs: Pairs) -> list[str]:
    return [f"{title}:", *(clean(f"  {key}: {value}") for key, value in sorted(pairs))] if pairs else []


# --------------------------------------------------------------------------- one door


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
