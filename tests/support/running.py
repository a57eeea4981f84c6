"""`bridge run` in a thread of the test's own process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bridge.controller.controller import Controller


@contextmanager
def running(bridge: Controller, ready_seconds: float = 0.0) -> Iterator[Controller]:
    """The bridge runs, and has ended afterwards; with `ready_seconds` it is ready first, or the test fails."""
    thread = threading.Thread(target=bridge.run, name="bridge")
    thread.start()
    deadline = time.monotonic() + ready_seconds
    try:
        while ready_seconds and not bridge.ready()[0]:
            assert time.monotonic() < deadline, bridge.ready()
            time.sleep(0.01)
        yield bridge
    finally:
        bridge.stop()
        thread.join(20)
    assert not thread.is_alive()
