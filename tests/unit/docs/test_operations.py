"""Every alert leads to a section of the operations guide that begins with a command."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for document in [yaml.safe_load((ROOT / "manifests/components/monitoring/alerts.yaml").read_text(encoding="utf-8"))]
    for group in document["spec"]["groups"]
    for rule in group["rules"]
}
PAGE = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (\S+)\n(.*?)(?=^#{2,3} |\Z)", PAGE, re.MULTILINE | re.DOTALL))
"""Heading: text, of the third level."""

COMMAND = re.compile(r"`(?:kubectl|bridge|helm) [^`]+`")


def test_the_page_and_the_alerts_are_about_each_other() -> None:
    """No alert without a section, no section of an alert that is gone."""
    assert set(ALERTS) == set(SECTIONS)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_leads_to_its_section_and_that_to_a_command(name: str) -> None:
    """By a path in the repository, which the chart can replace with an address."""
    path, _, anchor = ALERTS[name]["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    assert anchor in {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert anchor == name.lower()
    assert COMMAND.match(SECTIONS[name]), "the first line of a section is what to type"


def test_the_page_begins_with_commands() -> None:
    """For every symptom one, and the three that run in a pod of the bridge."""
    first = PAGE.split("\n## ")[1]
    rows = re.findall(r"^\| (?!---|question|symptom)(.*?) \| (.*?) \|", first, re.MULTILINE)
    assert len(rows) > 10
    assert [symptom for symptom, command in rows if not COMMAND.search(command)] == []
    for command in ("status", "explain", "check"):
        assert f"`kubectl exec deployment/consul-endpoints-bridge -- bridge {command}" in first


def test_every_section_has_a_command() -> None:
    """In a block or in the text."""
    sections = re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert len(sections) > 10
    typed = re.compile(r"^```sh|`(?:kubectl|bridge|helm|consul) [^`]+`", re.MULTILINE)
    assert [heading for heading, text in sections if not typed.search(text)] == []
