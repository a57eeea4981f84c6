"""The benchmark's own arithmetic: what it calls met is met, and measuring a part again loses no other."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.bench import plot, report
from tests.bench.measure import Figure, Point, limit, number, percentile, ratio
from tests.bench.report import ROWS, Part


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


def test_a_file_that_is_no_report_is_said_to_be_none(tmp_path: Path) -> None:
    """With what to do."""
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(ValueError, match="remove it"):
        report.load(tmp_path / "report.json")


def test_the_table_has_every_target_also_those_not_measured() -> None:
    """Nobody can overlook a row that has not been run."""
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
        (("memory, 1,000 services x 100",), "incomplete: 1 of 2 not measured (memory, ... 5,000 services x 4)"),
        (("memory, 1,000 services x 100", "memory, 5,000 services x 4"), "**met**"),
    ],
)
def test_a_row_that_was_measured_in_part_is_not_met(whats: tuple[str, ...], expected: str) -> None:
    """A part that failed, or ran with fewer services, must not look like a target that is kept."""
    found = [Figure(what, "1", ok=True, row="memory") for what in whats]
    assert report.verdict(found, report.NEEDS["memory"]) == expected


def test_what_this_benchmark_cannot_show_stands_beside_the_verdict() -> None:
    """Half an hour says nothing of an hour."""
    assert report.verdict([Figure("x", "1", ok=True)], (), "an hour: make chaos") == "**met**; an hour: make chaos"


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
    for name in ("targets", "further"):
        report.insert(text, name, "")


def test_the_plot_is_well_formed_and_has_a_mark_for_every_point() -> None:
    """One chart per kind."""
    points = [Point(size, what, size / 7, "MB") for size in (50, 1000, 5000) for what in ("memory", "a < b")]
    root = ElementTree.fromstring(plot.svg(points))
    assert len(root.findall("{http://www.w3.org/2000/svg}circle")) == 6


@pytest.mark.parametrize(("value", "top"), [(0, 1), (1, 1), (1.1, 2), (7, 8), (9, 10), (130, 200), (0.03, 0.04)])
def test_an_axis_ends_at_a_round_number(value: float, top: float) -> None:
    """Not below the largest value."""
    assert plot.nice(value) == pytest.approx(top)
