"""What a command raises becomes a sentence on standard error and an exit status."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import typer

from bridge import __version__
from bridge.cli.streams import say
from bridge.errors import BridgeError, CancelledError, ConfigurationError, ExitStatus
from bridge.interpreter import relaxed_gc


def guarded(body: Callable[[], int], flags: Mapping[str, Any]) -> int:
    """Run a command; whatever it raises becomes a sentence on standard error and a status."""
    try:
        with relaxed_gc():
            return body()
    except ConfigurationError as error:
        return complain(error, ExitStatus.USAGE, flags)
    except CancelledError as error:
        return complain(error, ExitStatus.INTERRUPTED, flags)
    except BridgeError as error:
        return complain(error, ExitStatus.FAILED, flags)
    except KeyboardInterrupt:
        say("interrupted")
        return ExitStatus.INTERRUPTED
    except typer.Abort:
        say("interrupted")
        return ExitStatus.INTERRUPTED
    except OSError as error:
        return complain(error, ExitStatus.FAILED, flags)
    except (typer.Exit, typer.TyperException):
        raise
    except Exception as error:  # noqa: BLE001 - the last line of defence: no traceback for users
        bug = f"this is a bug in bridge {__version__}: {type(error).__name__}: {error}"
        return complain(error, ExitStatus.FAILED, flags, bug)


def complain(error: BaseException, status: int, flags: Mapping[str, Any], text: str = "") -> int:
    """Print an error as one paragraph; with `--log-level debug` also where it came from."""
    lines = (text or str(error) or type(error).__name__).splitlines()
    if len(lines) == 1:
        say(f"error: {lines[0]}")
    else:
        say("\n".join(["error:", *(f"  {line}" for line in lines)]))
    if (flags.get("--log-level") or os.environ.get("BRIDGE_LOG_LEVEL")) == "debug":
        import traceback

        say("".join(traceback.format_exception(error)).rstrip())
    elif text:
        say("(--log-level debug shows where)")
    return status
