"""Codes and their sentences: closed, public, and never taken apart again."""

from __future__ import annotations

import ast
import re
from copy import deepcopy
from pathlib import Path

import pytest

import bridge
from bridge.core.reasons import SENTENCES, SKIPS, WARNINGS, Code, Reason, code_of, codes_of

PACKAGE = Path(bridge.__file__).parent


def test_every_code_has_a_sentence_and_a_value_that_can_be_a_label() -> None:
    """A code that was forgotten would fail only when it is needed."""
    assert set(SENTENCES) == set(Code)
    assert len({code.value for code in Code}) == len(Code)
    assert all(re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", code.value) for code in Code)


def test_every_code_is_used() -> None:
    """What nothing says any more is taken out of the list."""
    used = set()
    for path in PACKAGE.rglob("*.py"):
        if path.name != "reasons.py":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Code":
                    used.add(node.attr)
    assert used == set(Code.__members__)


def test_no_label_is_made_of_a_sentence() -> None:
    """Metrics read codes: there is no pattern in them. Neither is there where texts are laid out."""
    for path in (
        "telemetry/metrics.py",
        "report.py",
        *(f"render/{name}.py" for name in ("diff", "inspections", "layout", "reports")),
        "controller/kubernetes_events.py",
        "telemetry/pages.py",
    ):
        assert "import re\n" not in (PACKAGE / path).read_text(), path


def test_skips_and_warnings_are_distinguished() -> None:
    """Each code has one metric."""
    assert not set(SKIPS) & set(WARNINGS)


def test_a_reason_is_its_sentence_and_carries_its_data() -> None:
    """Texts that come from outside are put in as they are: a brace in one is no field."""
    reason = Reason(Code.NAME_UNMAPPABLE, what="name", text="{x}")
    assert reason == "the name '{x}' has no letter or digit to make a name of"
    assert (reason.code, reason.data) == (Code.NAME_UNMAPPABLE, (("text", "{x}"), ("what", "name")))
    copy = deepcopy({"r": reason})["r"]
    assert (copy, copy.code) == (reason, reason.code)


@pytest.mark.parametrize(("check", "more"), [("", ""), ("GET /", " (check GET /)")])
def test_a_check_is_named_where_there_is_one(check: str, more: str) -> None:
    assert Reason(Code.OMITTED, status="critical", check=check) == f"omitted because it is critical{more}"


def test_what_has_no_code_is_other_and_what_says_nothing_has_none() -> None:
    """An error's own words, say."""
    reasons = (Reason(Code.NO_PORT), "403 forbidden", "", Reason(Code.NO_PORT))
    assert [code_of(reason) for reason in reasons] == ["no_port", "other", "", "no_port"]
    assert codes_of(reasons) == ("no_port", "other")
