"""The page about the code, and the package's own description: every name in them exists."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import bridge

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
WORD = re.compile(r"`([^`\s]+)`")


def is_there(name: str) -> bool:
    """Whether a dotted name leads to a module, or to something in one."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("name", sorted({w for w in WORD.findall(PAGE) if w.startswith("bridge.")}))
def test_every_name_of_the_page_exists(name: str) -> None:
    """A module, a class, a method or a function."""
    assert is_there(name)


def test_every_file_of_the_page_exists() -> None:
    """Of tests and documents, by their paths."""
    paths = {w for w in WORD.findall(PAGE) if "/" in w and not w.startswith("bridge.")}
    assert paths
    assert [path for path in sorted(paths) if not list(ROOT.glob(path))] == []


def test_every_module_of_the_packages_own_description_exists() -> None:
    """It names them without the package's name."""
    names = {w for w in WORD.findall(bridge.__doc__ or "") if re.fullmatch(r"[a-z_]+(\.[a-z_]+)?", w)}
    assert len(names) > 5
    assert [name for name in sorted(names) if not is_there(f"bridge.{name}")] == []


def test_every_package_has_a_row() -> None:
    """What is new must be placed."""
    packages = {p.parent.name for p in (ROOT / "bridge").glob("*/__init__.py")}
    assert [name for name in sorted(packages) if f"`bridge.{name}`" not in PAGE] == []


def test_a_name_that_is_not_there_is_found() -> None:
    """The look itself can say no."""
    assert is_there("bridge.core.reconcile.judge")
    assert not is_there("bridge.core.reconcile.guess")
    assert not is_there("bridge.nothing")
