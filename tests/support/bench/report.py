"""The report: parts measured at different times are merged; its tables and plot go into docs/scaling.md and README.md.

Kept apart from the measuring, so that a part can be run again alone and the rest of the table stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.support.bench import carries, plot, readme
from tests.support.bench.measure import OUT, Figure, Point, find

DOCS = Path(__file__).resolve().parents[3] / "docs"
DOCUMENT = DOCS / "scaling.md"
IMAGE = DOCS / "images" / "scaling.svg"
README = DOCS.parent / "README.md"
BEGIN, END = "<!-- {name}: begin -->", "<!-- {name}: end -->"

ROWS: Mapping[str, str] = {
    "flip": "flip, 12 instances: p50 <= 1.12 x, p99 <= 1.25 x the floor chain",
    "changes": "registration, address change, deregistration, removal of 12: p50 <= 1.2 x, p99 <= 1.5 x",
    "direct": "the same and flips with a direct watch in 5,000 services: p50 <= 1.25 x, p99 <= 1.5 x",
    "unwatched": "registration, address change, deregistration, removal without a direct watch in 5,000 services: "
    "p50 <= 0.1 s, p99 <= 0.25 s, inside the connection budget and 3 % of a core of Consul",
    "flip-many": "flip in 5,000 services, no direct watch, quiet: p50 <= 2 x, p99 <= 3 x the floor chain",
    "busy": "any of these at 50 changes/s elsewhere: p99 <= 1 s for flips, <= 3 s for the rest",
    "storm": "5,000 flips at once: <= 1.25 x the raw writer, <= 0.9 ms of processor time a write",
    "cost": "processor time of a flip: <= 3 x the floor's",
    "restart": "restart, nothing changed, 5,000 services: 0 writes, ready in <= 2 x the raw reads",
    "headless": "first sync, Headless, 5,000 services: >= 95 % of the writes/s of the raw writer",
    "sync": "first sync with cluster addresses: >= 85 % of the writes/s of the raw writer; 5,000 services under 25 s",
    "death": "VM known dead -> last failed request, through kube-proxy: p50 <= 1.25 x the raw chain",
    "sim": "100,000 services (simulation): a new name, listed until written, in <= 15 ms, <= 10 x that of 1,000",
    "memory": "memory: <= 120 MB at 5,000 x 4, <= 150 MB at 1,000 x 100; <= 250 MB at its peak and after a storm",
    "hour": "an hour of changes, 1,000 services: memory growth <= 2 MB, 0 missed",
    "rest": "steady state, 5,000 services: < 2 % of one core; 0 Kubernetes writes; Consul's own extra < 3 %",
    "connections": "connections to Consul <= the budget, always, also while restarting",
}
"""The targets, in the order of the report."""

LARGE = "5,000 services x 4"
WIDE_LABEL = "1,000 services x 100"
SOME_LABEL = "1,000 services x 4"
OTHERS = ("registration", "address change", "deregistration", "removal")


def _each(kinds: Sequence[str], where: str, *percents: str) -> tuple[tuple[str, ...], ...]:
    return tuple((f"{kind} -> slice, {where}", percent) for kind in kinds for percent in percents)


NEEDS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "flip": _each(["flip"], "12 instances", "p50", "p99"),
    "changes": _each(OTHERS, "12 instances", "p50", "p99"),
    "direct": _each(["flip", *OTHERS], f"direct watch, quiet, {LARGE}", "p50", "p99"),
    "unwatched": (*_each(OTHERS, f"no direct watch, quiet, {LARGE}", "p50", "p99"),
                  ("connections to Consul ", "while changes go on, ", LARGE), ("Consul's own extra processor ", LARGE)),
    "flip-many": _each(["flip"], f"no direct watch, quiet, {LARGE}", "p50", "p99"),
    "busy": tuple(
        need for watch in ("no direct watch", "changed just before")
        for need in _each(["flip", *OTHERS], f"{watch}, 50 changes/s elsewhere, {LARGE}", "p99")
    ),
    "storm": tuple((f"5,000 flips at once{what}",) for what in (
        ", until every slice is stored", ": processor time of a write", ": writes made", ": services that differ",
    )),
    "cost": tuple(("processor time of a flip, ", size) for size in (SOME_LABEL, WIDE_LABEL, LARGE)),
    "restart": (("restart until ready, ", LARGE), ("writes of ", "restarts", LARGE)),
    "headless": (("first sync, Headless", LARGE, "writes"),),
    "sync": (*(("first sync, cluster addresses, ", size, "writes") for size in (SOME_LABEL, LARGE)),
             ("first sync, cluster addresses, ", f"{LARGE}, until its end")),
    "death": (("Consul knows a VM is dead -> last failed request", "p50"),),
    "sim": (("simulation, 100,000 services: a new name, listed until written",),
            ("simulation, 100,000 services: a new name, beside 1,000 services",)),
    "memory": tuple((what, size) for what in ("memory, ", "memory at its peak, ") for size in (LARGE, WIDE_LABEL)),
    "hour": (("memory growth in 60 minutes", SOME_LABEL), ("changes a second in 60 minutes",),
             ("services that differ from Consul after 60 minutes",),
             ("missed changes that a verification found in 60 minutes",)),
    "rest": (("processor in steady state, ", LARGE), ("Consul's own extra processor in steady state, ", LARGE),
             ("writes in steady state, ", LARGE), ("verifications and resyncs ", LARGE)),
    "connections": (*(("connections to Consul ", when, LARGE)
                      for when in ("in steady state, ", "restarting, ", "while changes go on, ", "in a storm, ")),
                    ("connections that Consul held", "restarting, ", LARGE)),
}  # fmt: skip
"""What must have been judged before a row may be called met: one figure for each, that begins with the first of the
words and has the rest of them in it. A part that failed, was left out or ran with fewer services proves no target."""

NOTES: Mapping[str, str] = {
    "connections": "the bridge's own sockets keep the budget; what Consul holds, slots of a process that is gone "
    "included, is judged by the 200 that it allows one address",
}
"""What a verdict is about, where the words of the target leave that open."""

OPTIONAL: Mapping[str, tuple[str, str]] = {
    "hour": ("hour", "memory growth in an hour of changes"),
    "shards": ("", "flips of all at once with one and with two replicas"),
}
"""Parts that run only when they are named: the row that each belongs to, and what it would show."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one part of the benchmark gave, and when. `seconds`: how long it took."""

    at: str
    seconds: float
    figures: tuple[Figure, ...] = ()
    points: tuple[Point, ...] = ()
    trouble: str = ""


Report = dict[str, Part]


@dataclass(slots=True)
class Collected:
    """What jobs of one part give, while they run."""

    figures: list[Figure] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)


def load(path: Path) -> Report:
    """A report that was saved; an empty one when there is none. Raises ValueError when the file is no report."""
    if not path.exists():
        return {}
    try:
        return {name: _part(raw) for name, raw in json.loads(path.read_text())["parts"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a report of this benchmark; remove it and measure again") from error


def _part(raw: Mapping[str, Any]) -> Part:
    return Part(
        raw["at"],
        raw["seconds"],
        tuple(Figure(**figure) for figure in raw["figures"]),
        tuple(Point(**point) for point in raw["points"]),
        raw["trouble"],
    )


def merge(before: Report, new: Report, order: Sequence[str]) -> Report:
    """The parts of `new` in the place of those of `before`; in the order given, unknown ones dropped."""
    found = {**before, **new}
    return {name: found[name] for name in order if name in found}


def save(report: Report, folder: Path = OUT) -> None:
    """Write report.md and report.json."""
    folder.mkdir(exist_ok=True)
    (folder / "report.json").write_text(json.dumps({"parts": {n: asdict(p) for n, p in report.items()}}, indent=1))
    (folder / "report.md").write_text(markdown(report))


def markdown(report: Report) -> str:
    """The whole report."""
    times = ["| part | measured at | took |", "| --- | --- | --- |"]
    times += [f"| {name} | {part.at} | {part.seconds:.0f} s{_trouble(part)} |" for name, part in report.items()]
    return "\n\n".join(
        [
            "# Targets", targets(report), "# Further figures", further(report), "# What one bridge carries",
            carries.table(points(report)), "# For README.md", readme.table(figures(report)),
            "# Parts", "\n".join(times),
        ]
    ) + "\n"  # fmt: skip


def _trouble(part: Part) -> str:
    return f", **failed**: {part.trouble}" if part.trouble else ""


def figures(report: Report) -> list[Figure]:
    """All figures, in the order of the parts."""
    return [figure for part in report.values() for figure in part.figures]


def points(report: Report) -> list[Point]:
    """All points, in the same order."""
    return [point for part in report.values() for point in part.points]


def targets(report: Report) -> str:
    """The table of targets: every row is there, also the one that no one has measured yet."""
    lines = ["| target | measured | floor | ratio | limit | |", "| --- | --- | --- | --- | --- | --- |"]
    for row, text in ROWS.items():
        mine = [figure for figure in figures(report) if figure.row == row]
        lines.append(f"| **{text}** | | | | | {verdict(mine, NEEDS[row], NOTES.get(row, ''))} |")
        lines += [_line(figure) for figure in (*mine, *not_run(report, row))]
    return "\n".join(lines)


def not_run(report: Report, row: str) -> list[Figure]:
    """A line for each optional part of a row that no one has run: it must not look as if there were none."""
    return [
        Figure(what, f"not run: `make bench PARTS={part}`")
        for part, (its, what) in OPTIONAL.items()
        if its == row and (part not in report or not report[part].figures)
    ]


def verdict(mine: Sequence[Figure], needs: Sequence[tuple[str, ...]] = (), note: str = "") -> str:
    """Of one row: met when everything that it needs was measured and everything that has a limit keeps it."""
    judged = [figure for figure in mine if figure.ok is not None]
    if not judged:
        return "not measured"
    if missed := sum(figure.ok is False for figure in judged):
        return f"**missed** ({missed} of {len(judged)})"
    lacking = [words for words in needs if find(judged, words) is None]
    if lacking:
        first = " ... ".join(word.strip(" ,") for word in lacking[0])
        return f"incomplete: {len(lacking)} of {len(needs)} not measured ({first})"
    return f"**met**; {note}" if note else "**met**"


def further(report: Report) -> str:
    """The figures that belong to no row of the targets."""
    lines = ["| what | measured | floor | ratio | limit | |", "| --- | --- | --- | --- | --- | --- |"]
    mine = [figure for figure in figures(report) if not figure.row]
    return "\n".join([*lines, *map(_line, (*mine, *not_run(report, "")))])


def table(some: Iterable[Figure]) -> str:
    """Figures alone, for the screen."""
    lines = ["| what | measured | floor | ratio | limit | |", "| --- | --- | --- | --- | --- | --- |"]
    return "\n".join([*lines, *map(_line, some)])


def _line(f: Figure) -> str:
    mark = {True: "met", False: "missed", None: ""}[f.ok]
    return f"| {f.what} | {f.value} | {f.floor} | {f.ratio} | {f.target} | {mark} |"


def insert(text: str, name: str, content: str) -> str:
    """`text` with `content` between the two markers of `name`. Raises ValueError when they are not there."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"the document needs the lines {begin!r} and {end!r} once each")
    head, rest = text.split(begin)
    return f"{head}{begin}\n{content}\n{end}{rest.split(end)[1]}"


def publish(report: Report) -> None:
    """Put tables and plot into docs/, and the short table into README.md if that has its markers.

    Raises ValueError when nothing was measured yet.
    """
    if not report:
        raise ValueError("nothing was measured yet: run `make bench` first")
    text = insert(DOCUMENT.read_text(), "targets", targets(report))
    text = insert(text, "further", further(report))
    if (profile := OUT / "profile.md").exists():
        text = insert(text, "profile", profile.read_text())
    DOCUMENT.write_text(insert(text, "carries", carries.table(points(report))))
    short = README.read_text()
    if BEGIN.format(name="figures") in short:
        README.write_text(insert(short, "figures", readme.table(figures(report))))
    drawn = [point for point in points(report) if point.what in plot.DRAWN]
    if drawn:
        IMAGE.write_text(plot.svg(drawn))
