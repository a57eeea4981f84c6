"""Standard output, standard error and the terminal: what is written where, and what may be asked."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from bridge.errors import BridgeError

if TYPE_CHECKING:
    from bridge.report import Report


def say(text: str) -> None:
    """To standard error, without control characters; a closed pipe is no error."""
    from bridge.render.layout import clean

    try:
        sys.stderr.write("\n".join(map(clean, text.split("\n"))) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return


def write(text: str) -> bool:
    """To standard output; False when its reader is gone (`| head`), which ends the printing and is no error."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # the interpreter flushes once more at its end, which would complain: give it somewhere to flush to
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        return False
    except OSError as error:
        raise BridgeError(f"standard output cannot be written: {error.strerror or error}") from error
    return True


def terminal() -> tuple[int | None, bool]:
    """Width of standard output (None: no terminal, no bounds) and whether to colour it."""
    if not sys.stdout.isatty():
        return None, False
    import shutil

    colour = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return shutil.get_terminal_size((80, 24)).columns, colour


def show(report: Report, output: str, every: bool = False) -> None:
    """The report in the wanted format; `every`: the table with services that stay as they are."""
    from bridge.render.reports import render

    width, colour = terminal()
    write(render(report, output, width, colour, every=every))


def is_one_stream() -> bool:
    """Whether standard output and standard error are the same terminal, file or pipe."""
    try:
        return os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except (OSError, ValueError):
        return False


def interactive() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str) -> bool:
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:
        return False


class Progress:
    """What is being done, on one line of standard error that is rewritten; nothing unless that is a terminal."""

    def __init__(self) -> None:
        self._on = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._shown = ""
        self.what = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        self.what = what
        if not self._on or (total and done < total and done % max(1, total // 100)):
            return
        text = f"{what} {done}/{total}" if total else f"{what} ..."
        if text != self._shown:
            self._write(f"\r\x1b[K{text}")
            self._shown = text

    def clear(self) -> None:
        if self._shown:
            self._write("\r\x1b[K")
            self._shown = ""

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):
            self._on = False


def say_trouble(report: Report, output: str) -> None:
    """Failures and holds on standard error, unless the report on the same stream has just said them."""
    from bridge.render.reports import failed_lines, held_lines

    if is_one_stream() and output != "diff":
        return
    for line in failed_lines(report):
        say(f"failed: {line}")
    for why, names in held_lines(report.held):
        say(f"held: {why}")
        for name, command in names:
            say(f"held:   {name} {command}".rstrip())


def at_first_signal(progress: Progress, doing: str, nothing: str) -> Callable[[int], bool]:
    """What a command says at the first signal; whether it is to go on, because it is at `doing` already.

    `nothing`: what was not done when it is not.
    """

    def on_first(_signal: int) -> bool:
        progress.clear()
        if progress.what != doing:
            say(f"interrupted: {nothing}")
            return False
        say("interrupted: finishing the writes in flight (interrupt again to end at once)")
        return True

    return on_first
