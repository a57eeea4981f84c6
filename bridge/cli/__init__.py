"""The command line: one module for each command, and what they share beside them.

A command reads the settings, builds what it needs, passes plain values on and turns the result into text on standard
output and an exit status. Nothing is decided here that is not about flags, streams, signals or statuses.

Everything heavy (pydantic, the clients, rich) is imported inside the commands: `bridge --help` must answer in under
0.2 s.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn

import typer

from bridge import __version__
from bridge.cli import check, explain, purge, run, status, sync
from bridge.cli.errors import guarded
from bridge.cli.flags import COMMANDS, EVERYWHERE, FLAGS
from bridge.cli.streams import say, write
from bridge.errors import ExitStatus

__all__ = ["COMMANDS", "EVERYWHERE", "FLAGS", "app", "main"]

app = typer.Typer(
    name="bridge",
    help="Keeps Kubernetes EndpointSlices and Endpoints equal to what Consul knows about services on VMs.",
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)

Body = Callable[..., int]


def _command(body: Body) -> Body:
    """Register `body(flags, ...)` under its name, with the flags of the table and its own arguments."""
    name = body.__name__
    flags = [FLAGS[f] for f in COMMANDS[name]]
    own = [p for p in inspect.signature(body, eval_str=True).parameters.values() if p.name != "flags"]

    def command(**given: Any) -> None:
        said = {f.name: given.pop(f.parameter.name) for f in flags}
        raise typer.Exit(guarded(lambda: body({k: v for k, v in said.items() if v not in (None, [])}, **given), said))

    parameters = [*own, *(f.parameter for f in flags)]
    command.__name__ = name
    command.__doc__ = body.__doc__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    app.command(name)(command)
    return body


for _body in (sync.sync, run.run, purge.purge, status.status, explain.explain, check.check):
    _command(_body)


def _version(wanted: bool) -> None:
    if wanted:
        import platform
        from importlib.metadata import version

        clients = ", ".join(f"{name} {version(name)}" for name in ("python-consul2", "kubernetes"))
        write(f"bridge {__version__} (Python {platform.python_version()}, {clients})\n")
        raise typer.Exit(ExitStatus.OK)


@app.callback()
def _bridge(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_version, is_eager=True, help="Show the versions and exit."),
    ] = False,
) -> None:
    del version
    if context.invoked_subcommand is None:
        write(f"{context.get_help()}\n")


def _spelt(arguments: Sequence[str]) -> list[str]:
    """`help`, `help COMMAND` and `version`, as other tools have them, in our own flags."""
    match arguments:
        case ["help", *command]:
            return [*command, "--help"]
        case ["version"]:
            return ["--version"]
    return list(arguments)


def _name_now(flag: str) -> str:
    """What to say of a flag that has another name now; "" where it has none."""
    from bridge import config

    now = next((s.flag for s in config.catalogue() if flag and s.former[1] == flag), "")
    return f"No such option: {flag}; it is called {now} now" if now else ""


def main() -> NoReturn:
    """The `bridge` command."""
    if isinstance(sys.stdout, object) and hasattr(sys.stdout, "reconfigure"):
        # a name that the terminal's encoding lacks is written as an escape: never a traceback
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = app(_spelt(sys.argv[1:]), prog_name="bridge", standalone_mode=False)
    except typer.TyperException as error:
        say(f"error: {_name_now(getattr(error, 'option_name', '')) or error.format_message()}")
        say(f"(bridge {_command_in(sys.argv)}--help shows all flags)")
        status = error.exit_code
    except typer.Abort:
        status = ExitStatus.INTERRUPTED
    except KeyboardInterrupt:
        say("interrupted")
        status = ExitStatus.INTERRUPTED
    _give_up_on_a_broken_log()
    sys.exit(status or ExitStatus.OK)


def _give_up_on_a_broken_log() -> None:
    """A write error of standard error (a full disk, a closed pipe) must not turn our exit status into 120."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _command_in(arguments: Sequence[str]) -> str:
    return next((f"{a} " for a in arguments[1:] if a in COMMANDS), "")
