"""A class that keeps more than 15 things says why, and what counts as one."""

from __future__ import annotations

import pytest

from tests.support.docs.attributes import MOST, found_in

MANY = "\n".join(f"        self._n{n} = {n}" for n in range(MOST + 1))
CLASS = f"class Large:\n    def __init__(self) -> None:\n{MANY}\n"
FIELDS = "\n".join(f"    n{n}: int = {n}" for n in range(MOST + 1))


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        (CLASS, [16]),
        (CLASS.replace("        self._n15 = 15", "\n    def later(self) -> None:\n        self._n15 = 15"), [16]),
        (CLASS.replace("self._n15", "self._n14"), []),
        (CLASS.replace("self._n15", "other._n15"), []),
        (f"@dataclass(slots=True)\nclass Large:\n{FIELDS}\n", [16]),
        (f"@dataclass(frozen=True, slots=True)\nclass Large:\n{FIELDS}\n", []),
        (f"class Settings(BaseModel):\n{FIELDS}\n", []),
        (CLASS.replace(":\n", ":\n    # attributes: they change together, under one lock\n", 1), []),
        (CLASS.replace(":\n", ":\n    # attributes: many\n", 1), [16]),
        (f"{CLASS}\nclass Other:\n    # attributes: they change together, under one lock\n    pass\n", [16]),
    ],
    ids=["assigned", "later", "15", "of another", "dataclass", "value", "model", "reason", "no reason", "elsewhere"],
)
def test_a_class_with_more_than_15_attributes_needs_a_reason(text: str, counts: list[int]) -> None:
    """Those of its own that may change; the reason stands within the class and says something."""
    assert [int(said.split(" has ")[1].split()[0]) for _, said in found_in(text)] == counts
