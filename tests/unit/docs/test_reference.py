"""The reference is what the code says, and lists everything."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bridge import cli, settings
from bridge.engine import announce
from tests.docs import reference

ROOT = Path(__file__).resolve().parents[3]


def test_the_reference_is_not_stale() -> None:
    """`python -m tests.docs.reference` writes it."""
    assert reference.PATH.read_text(encoding="utf-8") == reference.text(), "run: python -m tests.docs.reference"


def test_every_flag_setting_and_event_is_in_it() -> None:
    """With a description that says something."""
    text = reference.text()
    for name in (*cli.FLAGS, *announce.REASONS):
        assert f"| `{name}`" in text
    for setting in settings.catalogue():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{setting.key}` "))
        assert len(row.rsplit("|", 2)[1]) > 10, row


@pytest.mark.parametrize(
    "document", ["README.md", "manifests/README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_documents_name_only_what_there_is(document: str) -> None:
    """Every `--flag`, BRIDGE_ variable and consul_bridge_ metric in a document exists; every link leads somewhere."""
    text = (ROOT / document).read_text(encoding="utf-8")
    known = reference.text()
    variables = {name for s in settings.catalogue() for name in (s.env, *s.also)}
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
