"""Threads that do not die in silence: one that ends because of a bug says so, and the process ends."""

from __future__ import annotations

import threading
from collections.abc import Callable

Failed = Callable[[BaseException], None]
"""Called, from the thread that dies, with what it died of."""


def guarded(body: Callable[[], object], failed: Failed | None, stop: threading.Event | None = None) -> None:
    """Run `body`; whatever it raises goes to `failed`, unless `stop` is set: clients are closed under
    their users then."""
    try:
        body()
    except BaseException as error:  # noqa: BLE001 - whatever it was, the process must not live on half alive
        if failed is not None and (stop is None or not stop.is_set()):
            failed(error)


def guarded_thread(
    name: str,
    body: Callable[[], object],
    failed: Failed | None,
    *,
    stop: threading.Event | None = None,
    daemon: bool = True,
) -> threading.Thread:
    """A thread that runs `body` as `guarded` does, not started yet."""
    return threading.Thread(target=guarded, args=(body, failed, stop), name=name, daemon=daemon)
