"""The benchmark's own arithmetic: what it calls met is met, and measuring a part again loses no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.bench import carries, plot, profile, readme, report
from tests.support.bench.measure import Figure, Point, beside, find, limit, number, percentile, ratio, slope
from tests.support.bench.report import ROWS, Part


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1), (1, 1), (50, 50), (90, 90), (99, 99), (99.1, 100), (100, 100)]
)
def test_a_percentile_is_one_of_the_values(percent: float, expected: float) -> None:
    """By the nearest rank: so many percent of the values are not above it, in whatever order they come."""
    assert percentile(list(range(100, 0, -1)), percent) == expected


def test_the_percentiles_of_one_value_are_that_value() -> None:
    """However few there are, there is an answer."""
    assert [percentile([7.0], percent) for percent in (1, 50, 99)] == [7.0, 7.0, 7.0]


@pytest.mark.parametrize(("value", "ok"), [(12.5, True), (12.6, False)])
def test_a_ratio_is_met_up_to_its_limit(value: float, ok: bool) -> None:
    """The limit itself is allowed."""
    found = ratio("x", value, 10.0, 1.25, row="flip")
    assert (found.ok, found.ratio, found.row) == (ok, f"{value / 10:.2f} x", "flip")


def test_a_figure_beside_its_floor_is_not_judged() -> None:
    """However much more it is."""
    found = beside("x", 30.0, 10.0)
    assert (found.ok, found.target, found.ratio) == (None, "", "3.00 x")
    assert beside("x", 10.0, -0.6).ratio == ""  # the slice was stored before the observer of Consul knew


def test_a_slope_is_that_of_the_line_that_fits_best() -> None:
    """Noise around it does not matter; one point has none."""
    assert slope([(0, 1.0), (1, 2.5), (2, 4.5), (3, 6.0)]) == pytest.approx(1.7)
    with pytest.raises(ValueError, match="two points"):
        slope([(1, 1.0), (1, 2.0)])


def test_a_floor_of_nothing_is_missed() -> None:
    """A floor that was not measured proves nothing."""
    assert ratio("x", 1.0, 0.0, 2.0).ok is False


@pytest.mark.parametrize(("value", "ok"), [(0, True), (1, False)])
def test_nothing_allowed_means_nothing(value: float, ok: bool) -> None:
    """0 writes are 0 writes."""
    assert limit("writes", value, 0, "writes").ok is ok


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (3.0, "3"), (1.23456, "1.23"), (12345.6, "12346")])
def test_numbers_are_short(value: float, text: str) -> None:
    """Three digits that count."""
    assert number(value) == text


def part(what: str, row: str = "", ok: bool | None = None) -> Part:
    """A part with one figure."""
    return Part("2026-01-01 00:00", 1.0, (Figure(what, "1", ok=ok, row=row),), (Point(50, "memory", 3.0, "MB"),))


def test_a_part_that_is_measured_again_replaces_only_itself() -> None:
    """The order is the benchmark's, a part that there is no longer goes."""
    before = {"b": part("old b"), "a": part("old a"), "gone": part("gone")}
    merged = report.merge(before, {"b": part("new b")}, ("a", "b", "c"))
    assert [(name, p.figures[0].what) for name, p in merged.items()] == [("a", "old a"), ("b", "new b")]


def test_a_report_is_read_as_it_was_saved(tmp_path: Path) -> None:
    """Also its points; and no file is an empty report."""
    saved = {"a": part("one", "flip", ok=True)}
    assert report.load(tmp_path / "report.json") == {}
    report.save(saved, tmp_path)
    assert report.load(tmp_path / "report.json") == saved


def test_a_file_that_is_no_report_is_refused(tmp_path: Path) -> None:
    """With what to do."""
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(ValueError, match="remove it"):
        report.load(tmp_path / "report.json")


def test_the_table_has_every_target_also_those_not_measured() -> None:
    """No one can overlook a row that has not been run."""
    text = report.targets({"a": part("one", "flip", ok=True)})
    assert all(row in text for row in ROWS.values())
    assert text.count("| not measured |") == len(ROWS) - 1
    assert text.count("| incomplete: ") == 1


@pytest.mark.parametrize(
    ("oks", "expected"),
    [
        ((), "not measured"),
        ((None,), "not measured"),
        ((True, None), "**met**"),
        ((True, False), "**missed** (1 of 2)"),
    ],
)
def test_a_row_is_met_when_all_of_it_is(oks: tuple[bool | None, ...], expected: str) -> None:
    """One figure that misses is a row that misses."""
    assert report.verdict([Figure("x", "1", ok=ok) for ok in oks]) == expected


@pytest.mark.parametrize(
    ("whats", "expected"),
    [
        (
            ("writes of 3 restarts, 5,000 services x 4",),
            "incomplete: 1 of 2 not measured (restart until ready ... 5,000 services x 4)",
        ),
        (
            ("restart until ready, 1,000 services x 4", "writes of 3 restarts, 5,000 services x 4"),
            "incomplete: 1 of 2 not measured (restart until ready ... 5,000 services x 4)",
        ),
        (("restart until ready, 5,000 services x 4", "writes of 3 restarts, 5,000 services x 4"), "**met**"),
    ],
)
def test_a_row_that_was_measured_in_part_is_not_met(whats: tuple[str, ...], expected: str) -> None:
    """A part that failed, or ran with fewer services, must not look like a target that is kept."""
    found = [Figure(what, "1", ok=True, row="restart") for what in whats]
    assert report.verdict(found, report.NEEDS["restart"]) == expected


MEMORY = [
    Figure(f"{what}, {size}", "1", ok=True, row="memory")
    for what in ("memory", "memory at its peak")
    for size in (report.LARGE, report.WIDE_LABEL)
]
HOUR = [
    Figure(what, "1", ok=True, row="hour")
    for what in (
        "memory growth in 60 minutes of 20 changes/s, 1,000 services x 4, fitted",
        "changes a second in 60 minutes of changes, 1,000 services x 4",
        "services that differ from Consul after 60 minutes of changes, 1,000 services x 4",
        "missed changes that a verification found in 60 minutes of changes, 1,000 services x 4",
    )
]


def test_an_hour_is_not_met_by_less() -> None:
    """Nor by half an hour; and its row says how to run the hour."""
    half = [replace(f, what=f.what.replace("60 minutes", "30 minutes")) for f in HOUR]
    assert report.verdict(HOUR, report.NEEDS["hour"]) == "**met**"
    assert report.verdict(HOUR[1:], report.NEEDS["hour"]).startswith("incomplete: 1 of 4")
    assert report.verdict(half, report.NEEDS["hour"]).startswith("incomplete: 4 of 4")
    lines = [
        report.targets({"memory": Part("now", 1.0, tuple(MEMORY))}),
        report.targets({"hour": part("x", "hour")}),
    ]
    assert ["not run: `make bench PARTS=hour`" in text for text in lines] == [True, False]


def test_an_hour_that_failed_was_not_run() -> None:
    """It has no figures."""
    assert report.not_run({"hour": Part("now", 1.0, trouble="no Consul")}, "hour") != []


def test_memory_at_its_peak_is_judged_as_well() -> None:
    """What is resident at the end may be half of it."""
    peak = [replace(f, ok=False) if f.what == f"memory at its peak, {report.LARGE}" else f for f in MEMORY]
    assert report.verdict(peak, report.NEEDS["memory"]) == "**missed** (1 of 4)"


def test_what_a_verdict_is_about_stands_beside_it() -> None:
    """Consul's side of the connections has a limit of its own."""
    assert report.verdict([Figure("x", "1", ok=True)], (), "our sockets") == "**met**; our sockets"


def test_a_part_that_failed_is_named_in_the_report() -> None:
    """With its reason."""
    assert "**failed**: no Consul" in report.markdown({"a": Part("now", 1.0, trouble="no Consul")})


def test_tables_are_put_between_their_markers_again_and_again() -> None:
    """The rest of the document stays."""
    text = "head\n<!-- t: begin -->\nold\n<!-- t: end -->\nend\n"
    once = report.insert(text, "t", "new")
    assert once == "head\n<!-- t: begin -->\nnew\n<!-- t: end -->\nend\n"
    assert report.insert(once, "t", "new") == once
    with pytest.raises(ValueError, match="once each"):
        report.insert("no markers", "t", "new")


def test_the_document_has_the_markers() -> None:
    """Otherwise the figures of a long run could not be published."""
    text = report.DOCUMENT.read_text()
    for name in ("targets", "further", "carries", "profile"):
        report.insert(text, name, "")


def test_no_table_of_the_document_is_torn() -> None:
    """A blank line in a table ends it: the rows behind it are shown as text."""
    lines = report.DOCUMENT.read_text().splitlines()
    torn = [
        line
        for before, line, after in zip(["", *lines], lines, [*lines[1:], ""], strict=False)
        if line.startswith("|") and not before.startswith("|") and not after.startswith("| ---")
    ]
    assert torn == []


POINTS = [
    Point(50, carries.MEMORY, 70.0, "MB"),
    Point(1000, carries.MEMORY, 80.0, "MB"),
    Point(5000, carries.MEMORY, 169.0, "MB"),
    Point(100_000, carries.WIDE, 229.0, "MB"),
    Point(5000, carries.RESTART, 4.0, "s"),
    Point(1000, carries.FLIP_COST, 2.0, "ms"),
    Point(5000, carries.FLIP_COST, 4.0, "ms"),
    Point(5000, carries.STORM_COST, 1.6, "ms"),
    Point(5000, carries.STORM, 297.0, "writes/s"),
    Point(5000, carries.RAW_UPDATES, 520.0, "writes/s"),
    Point(1000, carries.RAW_CREATES, 443.0, "writes/s"),
    Point(5000, carries.RAW_CREATES, 211.0, "writes/s"),
    Point(1, carries.SHARDS, 200.0, "writes/s"),
    Point(2, carries.SHARDS, 300.0, "writes/s"),
]


def derived(points: list[Point]) -> list[str]:
    """The last column."""
    return [line.split("|")[-2].strip() for line in carries.table(points).splitlines()[2:]]


def test_what_a_bridge_carries_is_derived_from_the_largest_measurements() -> None:
    """Memory by the line through the smallest and the largest catalog: 20 kB a service here."""
    assert derived(POINTS) == [
        "9,000 (69 MB + 20 kB a service)",
        "110,000 (1.6 kB an instance)",
        "10,000 (4 s)",
        "250 /s (4 ms)",
        "620 /s (1.6 ms)",
        "290 /s",
        "520 /s",
        "210 /s",
        "300 /s beside 200 /s of one replica: 1.50 x",
    ]


def test_what_was_not_measured_is_not_derived() -> None:
    """Neither from nothing, nor from one size, nor from noise that is below zero."""
    assert set(derived([])) == {carries.NONE}
    assert derived(POINTS[:1]) == [carries.NONE] * len(carries.BOUNDS)
    falling = [Point(50, carries.MEMORY, 80.0, "MB"), Point(5000, carries.MEMORY, 70.0, "MB")]
    assert derived([*falling, Point(5000, carries.FLIP_COST, 0.0, "ms")]) == [carries.NONE] * len(carries.BOUNDS)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (9.99, "9.9"), (118.6, "110"), (9050.0, "9,000"), (0.123, "0.12")]
)
def test_what_is_derived_has_two_digits_and_is_never_rounded_up(value: float, text: str) -> None:
    """More would be invented."""
    assert carries.rough(value) == text


def test_every_figure_that_the_readme_shows_has_its_row() -> None:
    """What is missed is bold, what no one measured is reported."""
    figures = [
        ratio("flip -> slice, 12 instances, 25 times, p50", 15.3, 10.0, 1.25),
        ratio("flip -> slice, no direct watch, quiet, 5,000 services x 4, 40 times, p50", 13.0, 10.0, 2),
    ]
    text = readme.table(figures)
    rows = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in text.splitlines() if line[:1] == "|"}
    flips = next(value for key, value in rows.items() if key.startswith("a health check changes"))
    assert flips == "p50 **15.3 ms (1.53 x the floor)**; p99 not run; with 5,000 services p50 13.0 ms"
    assert len(rows) == 2 + 5


def test_every_figure_of_the_readme_is_one_that_a_target_needs() -> None:
    """A word that no title has would be `not run` forever; other tests hold the needs to what the parts give."""
    needed = [Figure(" ".join(words), "1") for needs in report.NEEDS.values() for words in needs]
    words = [one for _, cells in readme.ROWS for _, _, wanted in cells for one in wanted]
    assert [one for one in words if find(needed, one) is None] == []


def test_the_plot_is_well_formed_and_has_a_mark_for_every_point() -> None:
    """One chart per kind."""
    points = [Point(size, what, size / 7, "MB") for size in (50, 1000, 5000) for what in ("memory", "a < b")]
    root = ElementTree.fromstring(plot.svg(points))
    assert len(root.findall("{http://www.w3.org/2000/svg}circle")) == 6


@pytest.mark.parametrize(("value", "top"), [(0, 1), (1, 1), (1.1, 2), (7, 8), (9, 10), (130, 200), (0.03, 0.04)])
def test_an_axis_ends_at_a_round_number(value: float, top: float) -> None:
    """Not below the largest value."""
    assert plot.nice(value) == pytest.approx(top)


def test_a_profile_counts_a_function_once_in_a_stack() -> None:
    """However often it calls itself; and what it calls is in its share."""
    lines = [
        "T.run (threading.py:9);plan (bridge/core/plan.py:1);walk (bridge/core/plan.py:7);walk (bridge/core/plan.py) 3",
        "plan (/somewhere/bridge/core/plan.py);dumps (json/__init__.py) 1",
    ]
    found, total = profile.shares(lines)
    assert (total, found["bridge/core/plan.py plan"], found["bridge/core/plan.py walk"]) == (4, 4, 3)
    assert "| `bridge/core/plan.py walk` | 75 % |" in profile.table(lines)
