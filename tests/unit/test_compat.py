"""Which versions are tried together, and that what is left out for an old server is there at all."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Mapping

import pytest
import yaml

from bridge.oneshot.versions import TRIED
from tests.support.compat import ROOT, run_tests
from tests.support.compat.__main__ import NEWER, Pair, left_out, pairs
from tests.support.compat.python import lowest
from tests.support.compat.servers import CONSUL, built
from tests.support.lab import LabError

NEWER_TESTS: Mapping[str, Mapping[int, Mapping[str, str]]] = yaml.safe_load(NEWER.read_text())


@pytest.mark.parametrize("test", [t for newer in NEWER_TESTS.values() for tests in newer.values() for t in tests])
def test_what_is_left_out_exists(test: str) -> None:
    """A test that was renamed would run, and fail, on a server that is too old for it."""
    file, _, name = test.partition("::")
    tree = ast.parse((ROOT / file).read_text())
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert not name or name.partition("[")[0] in names


@pytest.mark.parametrize(
    ("pair", "newer"),
    [
        (("1.27.16", "1.20.6"), {("kubernetes", 30), ("kubernetes", 37), ("consul", 22)}),
        (("1.33.1", ""), {("kubernetes", 37)}),
        (("1.38.0", "1.22.5"), set()),
        (("", "1.21.5"), {("consul", 22)}),
        (("1.29.15", "1.22.5"), {("kubernetes", 30), ("kubernetes", 37)}),
    ],
)
def test_only_what_is_too_old_has_tests_left_out(pair: Pair, newer: set[tuple[str, int]]) -> None:
    """By side and the version in question: the lab's own version, "", is new enough."""
    assert left_out(pair).keys() == {test for side, since in newer for test in NEWER_TESTS[side][since]}


@pytest.mark.parametrize(
    ("kubernetes", "consul", "tried"),
    [
        (("1.27.16",), ("1.20.6",), [("1.27.16", "1.20.6")]),
        (("1.27.16", "1.31.14"), (), [("1.27.16", ""), ("1.31.14", "")]),
        (
            ("1.27.16", "1.31.14"),
            ("1.20.6",),
            [("1.27.16", ""), ("1.31.14", ""), ("", "1.20.6"), ("1.27.16", "1.20.6")],
        ),
    ],
)
def test_each_version_is_tried_beside_the_labs_own_and_the_oldest_together(
    kubernetes: tuple[str, ...], consul: tuple[str, ...], tried: list[Pair]
) -> None:
    """Of one each only that pair."""
    assert pairs(kubernetes, consul) == tried


def test_check_knows_the_versions_that_the_page_has_a_run_of() -> None:
    """`bridge check` warns of others."""
    page = (ROOT / "docs/compatibility.md").read_text().partition("## What was run")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+)\.(\d+)\.\S+ \| (\d+)\.(\d+)\.\d+ \|", page, re.MULTILINE)
    numbers = [tuple(map(int, row)) for row in rows]
    assert {
        "kubernetes": tuple(sorted({(a, b) for a, b, _, _ in numbers})),
        "consul": tuple(sorted({(c, d) for _, _, c, d in numbers})),
    } == TRIED


@pytest.mark.parametrize("version", ["1.27", "v1.27.16", "latest", "../1.27.16"])
def test_what_is_no_version_is_refused_before_anything_is_built(version: str) -> None:
    """With how to write one."""
    with pytest.raises(LabError, match=r"write it whole, such as 1\.27\.16"):
        built(CONSUL, version)


def test_every_library_has_a_lowest_version_that_can_be_tried() -> None:
    """`make compat PYTHONS=python3.11 LOWEST=1` takes it from pyproject.toml."""
    assert {"kubernetes==37", "python-consul2==0.1.5"} <= set(lowest())


def test_the_last_line_of_the_tests_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    """With what they print, and whether they passed; also where nothing is printed."""
    assert run_tests([sys.executable, "-c", "print('F\\n1 failed'); raise SystemExit(1)"]) == ("1 failed", False)
    assert run_tests([sys.executable, "-c", ""]) == ("nothing ran", True)
    assert capfd.readouterr().out == "F\n1 failed\n\n\n"
