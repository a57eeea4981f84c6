"""Values of the core: frozen for mypy, compared and hashed by what they hold."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

import pytest

from bridge.core import model
from bridge.core.model import Target


def test_equal_values_are_one_key() -> None:
    """Thousands of dictionaries are keyed by them."""
    web = Target("apps", "web")
    assert {web: 1}[Target("apps", "web")] == 1
    assert replace(web, name="db") == Target("apps", "db") != web


@pytest.mark.parametrize(
    "kind", [k for k in vars(model).values() if isinstance(k, type) and is_dataclass(k) and hasattr(k, "__slots__")]
)
def test_no_value_has_fields_of_its_own_or_a_slow_constructor(kind: type) -> None:
    """A frozen dataclass sets each field through `object.__setattr__`, which makes it three times as slow to make."""
    assert "__setattr__" not in vars(kind)
    assert kind.__hash__ is not None
    assert {f.name for f in fields(kind)} >= set(kind.__slots__), "no __dict__ either"  # type: ignore[attr-defined]
