"""`bridge run` in a thread of the test's own process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bridge.controller.controller import Controller
from bridge.controller.options import RunOptions
from bridge.retry import RetryPolicy
from tests.support.options import run_options

QUICK = RetryPolicy(initial_seconds=0.05, max_seconds=0.5)


def quick_options(retry: RetryPolicy = QUICK, **others: Any) -> RunOptions:
    """Options with which every wait is short."""
    kinds = ("consul_retry", "kube_retry", "object_retry", "permanent_retry")
    return run_options(**{**dict.fromkeys(kinds, retry), "removal_grace_seconds": 0.2, "writers": 4, **others})


OPTIONS = quick_options()


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
