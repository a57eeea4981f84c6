"""The figures as README.md shows them: a row for each target, what is missed in bold, what was not run said."""

from __future__ import annotations

from collections.abc import Sequence

from tests.support.bench.measure import Figure, find

MANY, WIDE = "5,000 services x 4", "1,000 services x 100"
KINDS = ("registration", "address change", "deregistration")
NAMES = "registration, address change, deregistration"
Words = tuple[str, ...]
Cell = tuple[str, str, tuple[Words, ...]]
"""What stands before, what is shown of each figure (fields of Figure), and the figures."""


def _of(kinds: Sequence[str], where: str, percent: str) -> tuple[Words, ...]:
    return tuple((f"{kind} -> written, {where}", percent) for kind in kinds)


ROWS: Sequence[tuple[str, Sequence[Cell]]] = (
    ("flip, 12 instances: p50 <= 1.25 x, p99 <= 1.5 x the floor", (
        ("", "{value} = {ratio}", (*_of(["flip"], "12 instances", "p50"), *_of(["flip"], "12 instances", "p99"))),
    )),
    (f"{NAMES}, removal of 12: the same", (
        ("p50 ", "{ratio}", _of([*KINDS, "removal"], "12 instances", "p50")),
        ("p99 ", "{ratio}", _of([*KINDS, "removal"], "12 instances", "p99")),
    )),
    ("flip in 5,000 services, no direct watch: p50 <= 2 x, p99 <= 3 x", (
        ("", "{value} = {ratio}", (*_of(["flip"], f"no direct watch, quiet, {MANY}", "p50"),
                                   *_of(["flip"], f"no direct watch, quiet, {MANY}", "p99"))),
    )),
    (f"{NAMES} there: p50 <= 0.5 s, p99 <= 2 s", tuple(
        (f"{p} ", "{value}", _of(KINDS, f"no direct watch, quiet, {MANY}", p)) for p in ("p50", "p99")
    )),
    (f"flip, {NAMES}, removal with a direct watch: p50 <= 1.25 x, p99 <= 1.5 x", tuple(
        (f"{p} ", "{ratio}", _of(["flip", *KINDS, "removal"], f"direct watch, quiet, {MANY}", p))
        for p in ("p50", "p99")
    )),
    (f"flip; {NAMES} at 50 changes/s elsewhere: p99 <= 1 s; <= 3 s", (
        ("", "{value}", _of(["flip"], "no direct watch, 50 changes/s", "p99")),
        ("", "{value}", _of(KINDS, "no direct watch, 50 changes/s", "p99")),
    )),
    ("first sync, of the raw writer's writes/s: >= 85 %", (
        ("1,000 services: ", "{ratio}", (("first sync, ", "1,000 services x 4", "writes"),)),
        ("5,000: ", "{ratio}", (("first sync, ", MANY, "writes"),)),
    )),
    ("first sync of 5,000 services (10,000 writes): <= 25 s", (
        ("", "{value} (raw writer: {floor})", (("first sync, whole command, ", f"{MANY}, median"),)),
        ("Headless: ", "{value} (raw: {floor})", (("the same with Headless Services, ", MANY),)),
    )),
    ("restart with 5,000 services, nothing changed: <= 8 s, 0 writes", (
        ("", "{value} (raw reads: {floor})", (("restart until ready, ", MANY),)),
        ("", "{value} writes", (("writes of ", "restarts", MANY),)),
    )),
    ("memory at 5,000 x 4 and at 1,000 x 100: <= 250 MB; no growth over an hour of changes", (
        ("", "{value}", (("memory, ", MANY), ("memory, ", WIDE))),
        ("at its peak ", "{value}", (("memory at its peak, ", MANY), ("memory at its peak, ", WIDE))),
        ("growth ", "{value}", (("memory growth in ",),)),
    )),
    ("at rest with 5,000 services: < 2 % of a core, Consul's own < 3 %, 0 writes", (
        ("", "{value}", (("processor at rest, ", MANY), ("Consul's own extra processor at rest, ", MANY),
                         ("writes at rest, ", MANY))),
    )),
    ("connections to Consul: <= 64, also while restarting", (
        ("", "{value}", (("connections to Consul at most, restarting, ", MANY),)),
        ("held by Consul, those of the killed process included: ", "{value}",
         (("connections that Consul held at most, restarting, ", MANY),)),
    )),
)  # fmt: skip


def table(figures: Sequence[Figure]) -> str:
    """The rows, and the sentences after them."""
    lines = ["| target | measured |", "| --- | --- |"]
    for target, cells in ROWS:
        lines.append(f"| {target} | {'; '.join(_cell(figures, cell) for cell in cells)} |")
    return "\n".join([*lines, "", *_sentences(figures)])


def _cell(figures: Sequence[Figure], cell: Cell) -> str:
    before, form, wanted = cell
    return before + ", ".join(_one(figures, form, words) for words in wanted)


def _one(figures: Sequence[Figure], form: str, words: Words) -> str:
    found = find(figures, words)
    if found is None:
        return "not run"
    text = form.format(value=found.value, ratio=found.ratio, floor=found.floor)
    return f"**{text}**" if found.ok is False else text


def _sentences(figures: Sequence[Figure]) -> list[str]:
    storm = ("5,000 flips at once, ",)
    return [
        f"5,000 flips at once: written after {_one(figures, '{value} (raw writer: {floor})', storm)}, with "
        f"{_one(figures, '{value} writes', ('5,000 flips at once: writes made',))}. From Consul's knowing that a VM is",
        "dead to the last failed request through kube-proxy: "
        f"{_one(figures, '{value} (raw chain: {floor})', ('Consul knows a VM is dead -> ', 'p50'))}. `bridge --help`: "
        f"{_one(figures, '{value}', ('bridge --help',))}.",
        "Bold is missed.",
    ]
