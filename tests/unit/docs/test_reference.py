"""The reference is what the code says, and lists everything."""

from __future__ import annotations

import contextlib
import importlib
import re
import signal
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from bridge import cli, config
from bridge.controller import kubernetes_events
from bridge.core import ownership
from bridge.errors import ExitStatus
from bridge.kube import members
from tests.support.docs import reference

ROOT = Path(__file__).resolve().parents[3]


def test_the_reference_is_not_stale() -> None:
    """`python -m tests.support.docs.reference` writes it."""
    assert reference.PATH.read_text(encoding="utf-8") == reference.text(), "run: python -m tests.support.docs.reference"


def test_every_flag_setting_and_event_is_in_it() -> None:
    """With a description that says something."""
    text = reference.text()
    for name in (*cli.FLAGS, *kubernetes_events.REASONS):
        assert f"| `{name}`" in text
    for setting in config.catalogue():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{setting.key}` "))
        assert len(row.rsplit("|", 2)[1]) > 10, row


@pytest.mark.parametrize(
    ("module", "name", "value", "expectation"),
    [
        (ownership, "NEW", "consul-bridge/new", pytest.raises(LookupError, match=r"\{'consul-bridge/new'\}")),
        (ownership, "ADOPT", "consul-bridge/take-over", contextlib.nullcontext()),
        (members, "KIND", "consul-bridge/kind", contextlib.nullcontext()),
    ],
)
def test_a_mark_that_changes_in_the_code_makes_the_reference_stale(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, value: str, expectation: AbstractContextManager[Any]
) -> None:
    """A renamed one exists under its old name; a new one has no sentence yet."""
    monkeypatch.setattr(module, name, value, raising=False)
    try:
        with expectation:
            assert importlib.reload(reference).text() != reference.PATH.read_text(encoding="utf-8")
    finally:
        monkeypatch.undo()
        importlib.reload(reference)


@pytest.mark.parametrize(
    ("table", "left_out"), [("STATUSES", ExitStatus.CHANGES), ("PATHS", "/api/changes"), ("PATHS", "/service/")]
)
def test_every_exit_status_and_path_has_its_sentence(
    monkeypatch: pytest.MonkeyPatch, table: str, left_out: object
) -> None:
    """Those that exist, not those that were listed by hand."""
    sentences = getattr(reference, table)
    monkeypatch.setattr(reference, table, {what: said for what, said in sentences.items() if what != left_out})
    with pytest.raises(LookupError, match=re.escape(repr(left_out))):
        reference.text()


def test_statuses_of_signals_are_those_of_shells() -> None:
    """128 and the signal's number."""
    assert (ExitStatus.INTERRUPTED, ExitStatus.TERMINATED) == (128 + signal.SIGINT, 128 + signal.SIGTERM)


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "manifests/README.md",
        "manifests/chart/README.md",
        *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
    ],
)
def test_documents_name_only_what_there_is(document: str) -> None:
    """Every `--flag`, BRIDGE_ variable and consul_bridge_ metric in a document exists; every link leads somewhere."""
    text = (ROOT / document).read_text(encoding="utf-8")
    known = reference.text()
    variables = {name for s in config.catalogue() for name in (s.env, *s.also)}
    variables |= {flag.variable for flag in cli.FLAGS.values()}
    for variable in set(re.findall(r"\bBRIDGE_[A-Z_]*[A-Z]\b", text)):
        assert variable in variables, variable
    for metric in set(re.findall(r"\bconsul_bridge_[a-z_]+[a-z]\b", text)):
        base = re.sub(r"_(bucket|sum|count)$", "", metric)
        assert f"`{base}`" in known, metric
    for flag in set(re.findall(r"\bbridge (?:sync|run|status|explain|check|purge)[^\n`]*?(--[a-z-]+)", text)):
        assert flag in (*cli.FLAGS, "--help", "--version") or flag.replace("--no-", "--") in cli.FLAGS, flag
    for link in set(re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)):
        assert ((ROOT / document).parent / link).exists(), link
