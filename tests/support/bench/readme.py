"""The five figures that a user asks for, as README.md shows them: what is missed in bold, what was not run said.

docs/scaling.md has every figure with its target.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.support.bench.measure import Figure, find

MANY = "5,000 services x 4"
KINDS = ("registration", "address change", "deregistration")
Words = tuple[str, ...]
Cell = tuple[str, str, tuple[Words, ...]]
"""The text before, what is shown of each figure (fields of Figure), and the figures."""


def _of(kinds: Sequence[str], where: str, percent: str) -> tuple[Words, ...]:
    return tuple((f"{kind} -> slice, {where}", percent) for kind in kinds)


ROWS: Sequence[tuple[str, Sequence[Cell]]] = (
    ("a health check changes: until the EndpointSlice is stored", (
        ("p50 ", "{value} ({ratio} the floor)", _of(["flip"], "12 instances", "p50")),
        ("p99 ", "{value} ({ratio})", _of(["flip"], "12 instances", "p99")),
        ("with 5,000 services p50 ", "{value}", _of(["flip"], f"no direct watch, quiet, {MANY}", "p50")),
    )),
    ("an instance is registered, moved, deregistered, with 5,000 services", tuple(
        (f"{p} ", "{value}", _of(KINDS, f"no direct watch, quiet, {MANY}", p)) for p in ("p50", "p99")
    )),
    ("the first sync of 5,000 services", (
        ("", "{value} (plain writer: {floor})", (("first sync, cluster addresses, ", f"{MANY}, until its end"),)),
    )),
    ("a restart with 5,000 services, until ready", (
        ("", "{value} (plain reads: {floor})", (("restart until ready, ", MANY),)),
        ("", "{value} writes", (("writes of ", "restarts", MANY),)),
    )),
    ("memory and processor in steady state, 5,000 services", (
        ("", "{value}", (("memory, ", MANY), ("processor in steady state, ", MANY))),
    )),
)  # fmt: skip


def table(figures: Sequence[Figure]) -> str:
    """The five rows, and what bold means."""
    lines = ["| question | measured |", "| --- | --- |"]
    for question, cells in ROWS:
        lines.append(f"| {question} | {'; '.join(_cell(figures, cell) for cell in cells)} |")
    return "\n".join([*lines, "", "Bold: the target in docs/scaling.md is missed."])


def _cell(figures: Sequence[Figure], cell: Cell) -> str:
    before, form, wanted = cell
    return before + ", ".join(_one(figures, form, words) for words in wanted)


def _one(figures: Sequence[Figure], form: str, words: Words) -> str:
    found = find(figures, words)
    if found is None:
        return "not run"
    text = form.format(value=found.value, ratio=found.ratio, floor=found.floor)
    return f"**{text}**" if found.ok is False else text
