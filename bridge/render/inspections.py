"""What `bridge status`, `bridge explain` and `bridge check` print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from bridge.core.service_state import NO_READY_ENDPOINT, ServiceRow, ServiceState, readable

if TYPE_CHECKING:
    from bridge.core.explain import Explanation, Row
    from bridge.oneshot.inspection import Status
    from bridge.oneshot.probe import Probe

from bridge.render.layout import COLOUR_OF, Column, Paint, bounded, clean, columns, painter, width_of, wrapped
from bridge.render.reports import held_section

OTHERS = 12
"""Endpoints that no instance accounts for, listed by name; beyond that they are counted."""


def status_table(status: Status, width: int | None = 80, colour: bool = False) -> str:
    """The sums, a row per mirrored service with both sides, what is held and what could not be read.

    The sums come first, and once more below rows that push them off the screen.
    """
    paint = painter(colour)
    rows = _status_rows(status, width, paint, _worst_first(status), below=True)
    held = ["", *held_section(status.held, width, paint)] if status.held else []
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
    head = wrapped(f"{_status_sums(status)}   {note}".rstrip(), width, indent="")[:2]
    head += [paint(line, "yellow") for text in status.notes[:1] for line in wrapped(text, width, indent="")[:2]]
    trouble = _trouble(status.trouble, width, paint)
    if status.held:
        trouble = ["", *held_section(status.held, width, paint), *trouble]
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
        first, *rest = wrapped(f"{name + ':':10}{text}", width, indent="")
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
        lines += wrapped(f"Kubernetes also has, of no instance above{why}: {some}{more}", width, indent="")
    if explanation.differences:
        lines.append("Kubernetes differs; the next pass would:")
        lines += [line for text in explanation.differences for line in wrapped(text, width)]
    elif explanation.conflicts:
        lines.append("Nothing is written there while the conflict lasts.")
    elif explanation.held:
        lines.append("Nothing is taken away while it is held.")
    elif explanation.problem and explanation.target:
        lines.append("Nothing is to be written.")
    elif explanation.deviations:
        told = [text for text in explanation.deviations if text not in explanation.warnings]
        lines.append("All EndpointSlices together are not this" + (":" if told else "; the warnings say why."))
        lines += [line for text in told for line in wrapped(text, width)]
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
    lines = wrapped(f"In all {len(rows)} rows: {'; '.join(shared)}", width, indent="") if shared else []
    shown = [n for n in range(len(heads)) if n not in same and any(row[n] for row in rows)]
    if len({row[group] for row in rows} - {""}) < 2:
        shown = [n for n in shown if n != group]
    sizes = [max(len(h.title), *(width_of(row[n]) for row in rows)) for n, h in enumerate(heads)]
    below: list[int] = []
    for least in (group, why, 4, 3, 2, 1, 6):  # what goes first where there is no room for all
        if width is not None and sum(sizes[n] + 2 for n in shown) - 2 > bounded(width) and least in shown:
            shown.remove(least)
            below += [least] if least != group else []
    at = shown.index(5) if 5 in shown else None
    titles, *cells = columns([heads[n] for n in shown], [[row[n] for n in shown] for row in rows], None, paint, at)
    lines += ["", titles] if lines else [titles]
    for row, line, word in zip(rows, cells, decided, strict=True):
        lines.append(paint(line, "dim") if at is None and word in ("omitted", "not selected") else line)
        told = [row[n] if n == why else f"{heads[n].title.lower()} {row[n]}" for n in sorted(below) if row[n]]
        lines += wrapped("; ".join(told), width, indent="    ") if told else []
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
    lines = [paint(line, "yellow") for text in notes for line in wrapped(text, width, indent="")]
    return "".join(f"{line}\n" for line in [*lines, ""]) if lines else ""


def trouble_text(trouble: Sequence[str], width: int | None = 80, colour: bool = False) -> str:
    return "".join(f"{line}\n" for line in _trouble(trouble, width, painter(colour)))


def _trouble(trouble: Sequence[str], width: int | None, paint: Paint) -> list[str]:
    if not trouble:
        return []
    title = paint(f"Not read ({len(trouble)}): what is there stays", "bold red")
    return ["", title, *(line for text in trouble for line in wrapped(text, width))]


def probe_text(probe: Probe, width: int | None = 80, colour: bool = False) -> str:
    """One line per probe; a second one says how to fix it."""
    paint = painter(colour)
    state = paint(f"{probe.state:8}", COLOUR_OF.get(probe.state, ""))
    name = f"{probe.section}: {probe.name}" if probe.section else probe.name
    first, *rest = wrapped(f"{name}: {probe.detail}", None if width is None else width - 8, indent="")
    lines = [f"{state}{first}", *(f"{'':8}{line}" for line in rest)]
    if probe.remedy and probe.state != "ok":
        lines += [f"{'':8}{line}" for line in wrapped(probe.remedy, None if width is None else width - 8, indent="-> ")]
    return "\n".join(lines) + "\n"


def probe_sums(probes: Sequence[Probe], colour: bool = False) -> str:
    """The last line, after probes that may have pushed a failure off the screen: `1 failed, 2 warnings, 20 ok`."""
    paint, sums = painter(colour), Counter(probe.state for probe in probes)
    words = {"failed": "failed", "warning": "warning" if sums["warning"] == 1 else "warnings", "ok": "ok"}
    told = [paint(f"{sums[state]} {word}", COLOUR_OF[state]) for state, word in words.items() if sums[state]]
    return f"\n{', '.join(told)}\n"
