"""Python's own settings, for how this program works: for a while, and back again."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator

GARBAGE_THRESHOLDS = (20_000, 10, 10)
"""Python's own look for cycles, by default after every 700 new objects, finds next to none here: what we keep are
values without cycles, and decoding a catalog makes a million of them. That was 40 % of the processor time of both."""

SWITCH_SECONDS = 0.0005
"""How long a thread may go on while another waits for the interpreter; by default 5 ms, as long as a change takes in
all. A registration in a large catalog wakes the listing and an aggregate watch as well, and its own watch had to wait
for them to be decoded (docs/scaling.md)."""


@contextlib.contextmanager
def relaxed_gc() -> Iterator[None]:
    """The garbage collector looks for cycles less often inside the context."""
    before = gc.get_threshold()
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextlib.contextmanager
def short_switch_interval() -> Iterator[None]:
    """Meanwhile threads take turns more often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
