"""Frozen dataclasses that cost what other dataclasses cost.

A frozen dataclass sets each field through `object.__setattr__`, so that making one takes three times as long; a pass
over thousands of services makes hundreds of thousands, and that was an eighth of its processor time. `frozen=True` is
what mypy checks; at run time nothing else keeps a field from being set. Everything else about these values is that of
frozen dataclasses: they are compared and hashed by what they hold.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(cls: type | None = None, /, *, frozen: bool = False, **options: Any) -> Any:
        """As `dataclasses.dataclass`."""
        return dataclasses.dataclass(cls, unsafe_hash=frozen, **options)
