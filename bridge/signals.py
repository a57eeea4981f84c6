"""Ctrl-C, SIGTERM and SIGHUP, without work inside a signal handler.

A handler runs between two bytecodes of the main thread: were it to set an event that the main thread is just waiting
for, it could wait for a lock that its own thread holds. So the handler only puts the number into a queue that is made
for this (SimpleQueue.put is reentrant), and a thread does the rest.
"""

from __future__ import annotations

import atexit
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_WATCHED = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """While it is entered: the first signal calls `on_first`, the next one ends the process at once.

    `on_first` returns whether to go on (the work ends by itself, soon); otherwise the process ends at once, which is
    right while nothing is half done. `stop` is set before it is called. With `on_hangup`, SIGHUP calls that and ends
    nothing.
    """

    def __init__(self, on_first: Callable[[int], bool], on_hangup: Callable[[], None] | None = None) -> None:
        self.stop = threading.Event()
        self.received: int | None = None
        self._on_first = on_first
        self._on_hangup = on_hangup
        self._queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="signals", daemon=True)
        self._before: dict[int, Any] = {}

    @property
    def status(self) -> int:
        """Exit status of a command that a signal interrupted: 130 or 143."""
        return 128 + (self.received or signal.SIGINT)

    def __enter__(self) -> Signals:
        self._thread.start()
        if threading.current_thread() is threading.main_thread():
            watched = (*_WATCHED, signal.SIGHUP) if self._on_hangup is not None else _WATCHED
            self._before = {number: signal.signal(number, self._handle) for number in watched}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._queue.put(None)
        self._thread.join()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._queue.put(number)

    def _work(self) -> None:
        while (number := self._queue.get()) is not None:
            if number == signal.SIGHUP and self._on_hangup is not None:
                self._on_hangup()
                continue
            first = self.received is None
            self.received = self.received or number
            self.stop.set()
            if not first or not self._on_first(number):
                end_now(128 + number)


def end_now(status: int) -> None:
    """End the process whatever its threads wait for. Temporary files (a client certificate's key) are still removed."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(status)
