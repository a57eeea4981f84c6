"""Pieces that several pages show: bars, curves, badges, lists of changes. Values in, HTML out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import quote

from bridge.core.service_state import NO_READY_ENDPOINT, ServiceRow, readable
from bridge.telemetry.history import Entry
from bridge.telemetry.markup import Html, el, join

LISTED = 50
"""Entries of one list on a page."""

SEVERITIES: Mapping[str, str] = {
    "in_sync": "good", "out_of_sync": "busy", "held": "warn", "conflict": "warn", "failed": "bad", "unknown": "warn",
    NO_READY_ENDPOINT: "warn",
}  # fmt: skip


def service_path(namespace: str, name: str) -> str:
    return f"service/{quote(namespace, safe='')}/{quote(name, safe='')}"


def counts(ready: int, not_ready: int, what: str = "") -> str:
    """`11 ready, 1 not ready`."""
    return f"{ready:,} {what}ready" + (f", {not_ready:,} not ready" if not_ready else "")


def severity_of(row: ServiceRow) -> str:
    """How bad a service's state is. What is only to be written yet is no trouble; slices that deviate are."""
    return "bad" if row.slices_deviate else SEVERITIES.get(row.mark, "bad")


def badge(row: ServiceRow) -> Html:
    severity = severity_of(row)
    return el("span", mark(severity), " ", readable(row.mark), class_=f"badge {severity}")


_MARKS = {"good": "✓", "busy": "…", "warn": "!", "bad": "✕", "plain": "•"}


def mark(severity: str) -> Html:
    """A sign beside the words, so that colour is never all that tells."""
    return el("span", _MARKS.get(severity, "•"), aria_hidden="true", class_="mark")


def bar(ready: int, not_ready: int) -> Html:
    """How many are ready, as a bar; the words beside it say the same."""
    total = ready + not_ready
    part = round(100 * ready / total) if total else 0
    return el(
        "svg",
        el("rect", width=100, height=8, rx=2, class_="n" if total else "none"),
        el("rect", width=part, height=8, rx=2, class_="r") if part else None,
        viewBox="0 0 100 8", preserveAspectRatio="none", class_="bar", aria_hidden="true",
    )  # fmt: skip


def command(text: str) -> Html:
    """A command for a shell; the script puts a button beside it that copies it."""
    return el("code", text, class_="command")


def with_command(text: str, found: str) -> Html:
    """A text in which this command stands between backticks, with the command as one."""
    before, quoted, after = text.partition(f"`{found}`") if found else (text, "", "")
    return join(before, command(found) if quoted else None, after)


def changes_title(tag: str, **attributes: str) -> Html:
    """The heading of a list of changes. The script shows times in the reader's zone and says so here."""
    return el(tag, "Recent changes", " ", el("small", "times in UTC", class_="zone"), **attributes)


def change_list(changes: Sequence[Entry], root: str, *, dates: bool = False) -> Html:
    """What happened, newest first; `root` leads to the first page. `dates`: a time says its day as well."""
    if not changes:
        return el("p", "Nothing has changed since this bridge started.")
    return el("ol", *(_change(entry, root, dates) for entry in changes), class_="changes")


def _change(entry: Entry, root: str, dates: bool) -> Html:
    at = datetime.fromtimestamp(entry.at, UTC)
    where = None
    if entry.name:
        where = join(el("a", entry.name, href=root + service_path(entry.namespace, entry.name)), " ")
    lag = f" · after {duration(entry.lag_seconds)}" if entry.lag_seconds is not None else None
    return el(
        "li",
        el(
            "time",
            f"{at:%Y-%m-%d %H:%M:%S}" if dates else f"{at:%H:%M:%S}",
            datetime=f"{at:%Y-%m-%dT%H:%M:%SZ}",
            class_="day" if dates else None,
            title=f"{at:%Y-%m-%d %H:%M:%S} UTC",
        ),
        el("div", where, el("span", entry.text), el("small", lag) if lag else None),
        class_=entry.severity,
    )


def text_list(texts: Sequence[str], most: int) -> Html:
    """A list that is cut after `most` entries."""
    more = len(texts) - most
    return el("ul", *(el("li", t) for t in texts[:most]), el("li", f"and {more:,} more") if more > 0 else None)


def sparkline(values: Sequence[float], words: str) -> Html:
    """Bars, one per bucket, the newest at the right; the words are its name for who does not see it."""
    top = max(values, default=0) or 1
    strokes = "".join(f"M{n + 0.5} 24V{24 - max(1.5, 23 * v / top):.1f}" for n, v in enumerate(values) if v)
    return el(
        "svg",
        el("title", words),
        el("path", d="M0 23.75H90", class_="axis"),
        el("path", d=strokes) if strokes else None,
        viewBox="0 0 90 24", preserveAspectRatio="none", class_="spark", role="img",
    )  # fmt: skip


def duration(seconds: float) -> str:
    """`8 ms`, `4.2 s`, `17 min`."""
    if seconds < 0.9995:  # what is rounded up to 1000 ms is a second
        return f"{1000 * seconds:.0f} ms"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min"


def fact(name: str, value: str | Html, more: str | Html | None = None) -> Html:
    """One entry of a list of figures: its name, the figure, and what else there is to say."""
    return el("div", el("dt", name), el("dd", value), el("dd", more, class_="more") if more else None)
