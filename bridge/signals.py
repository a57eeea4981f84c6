"""Ctrl-C, SIGTERM and SIGHUP, without work inside a signal handler.

A handler in Python runs between two bytecodes of the main thread: it could wait for a lock that its own thread holds,
and it does not run at all while that thread waits in C (a signal that comes just before it begins to wait is handled
only when the wait is over). So nothing is done in handlers: the interpreter writes each signal's number into a socket,
at once and whatever the main thread does, and a thread reads there.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
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
        self._numbers, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        self._thread = threading.Thread(target=self._work, name="signals", daemon=True)
        self._before: dict[int, Any] = {}
        self._fd_before = -1

    @property
    def status(self) -> int:
        """Exit status of a command that a signal interrupted: 130 or 143."""
        return 128 + (self.received or signal.SIGINT)

    def __enter__(self) -> Signals:
        self._thread.start()
        if threading.current_thread() is threading.main_thread():
            self._fd_before = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
            watched = (*_WATCHED, signal.SIGHUP) if self._on_hangup is not None else _WATCHED
            self._before = {number: signal.signal(number, _heard) for number in watched}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._fd_before)
        self._wakeup.close()
        self._thread.join()
        self._numbers.close()

    def _work(self) -> None:
        while numbers := self._numbers.recv(64):
            for number in numbers:
                self._handle(number)

    def _handle(self, number: int) -> None:
        if number == signal.SIGHUP and self._on_hangup is not None:
            self._on_hangup()
        elif number in _WATCHED:
            first = self.received is None
            self.received = self.received or number
            self.stop.set()
            if not first or not self._on_first(number):
                end_now(128 + number)


def _heard(_number: int, _frame: FrameType | None) -> None:
    """What is to be done is done by the thread that reads the numbers."""


def end_now(status: int) -> None:
    """End the process whatever its threads wait for. Temporary files (a client certificate's key) are still removed."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(status)
