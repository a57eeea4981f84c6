"""To come."""

from __future__ import annotations

from collections.abc import Sequence

from tests.chaos.faults import Fault

FAULTS: Sequence[type[Fault]] = ()
