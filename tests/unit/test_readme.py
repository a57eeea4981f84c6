"""What the README shows works as shown."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from bridge import config
from tests.support.program import BRIDGE

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = [block for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if block.startswith("rules:")]


def test_the_readme_has_an_example_of_rules() -> None:
    """Otherwise the next test would prove nothing."""
    assert len(BLOCKS) == 1


@pytest.mark.parametrize("block", BLOCKS)
def test_every_example_of_rules_is_accepted(block: str, tmp_path: Path) -> None:
    """As it stands, as a file."""
    path = tmp_path / "bridge.yaml"
    path.write_text(block)
    (rule,) = config.load({"--config": str(path)}, {}).core_rules()
    assert (rule.to.namespace, rule.to.port) == ("storage", 8080)


def test_every_command_of_the_readme_exists() -> None:
    """Its table and the program's help name the same ones."""
    named = set(re.findall(r"^\| `bridge (\w+)", README, re.MULTILINE))
    told = subprocess.run([BRIDGE, "--help"], capture_output=True, text=True, check=True).stdout
    assert named == set(re.findall(r"^  (\w+)  ", told.split("Commands:")[1], re.MULTILINE))
