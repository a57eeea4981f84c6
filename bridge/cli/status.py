"""`bridge status`: what is mirrored, and whether both sides agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from bridge.cli.loading import consul_of, load, output_of, reading, rules_of
from bridge.cli.streams import Progress, terminal, write
from bridge.errors import ExitStatus, PermanentError, TransientError

if TYPE_CHECKING:
    import threading

    from bridge.oneshot.inspection import Status


def status(flags: Mapping[str, Any]) -> int:
    """What is mirrored now, and whether both sides agree.

    The first line counts services by state; what is not in sync comes first below it.

    Reads Consul and Kubernetes directly and shows what `bridge sync` would do now, holds included; no running bridge is
    needed. (The page and /readyz of a running one show what it holds because of what it saw before.) SINCE is the time
    since the bridge last wrote the service's Endpoints or slices. Exit status: 0 also when something is out of sync, 1
    when something could not be read; 130 when --watch is ended with Ctrl-C.
    """
    settings = load(flags)
    output = output_of(settings)
    with reading() as (progress, stop), consul_of(settings) as consul:
        from bridge.oneshot.inspection import status_once
        from bridge.render.formats import to_json, to_yaml
        from bridge.render.inspections import status_table

        rules = rules_of(settings)

        def once(progress: Any = None) -> Status:
            return status_once(
                consul=consul,
                kube=settings.kube_config(),
                rules=rules,
                options=settings.sync_options(),
                stop=stop,
                progress=progress,
            )

        if settings.sync.watch:
            return _watch_status(once, progress, stop, output, settings.sync.interval)
        status = once(progress)
    match output:
        case "json":
            write(to_json(status.to_json()))
        case "yaml":
            write(to_yaml(status.to_json()))
        case _:
            write(status_table(status, *terminal()))
    return ExitStatus.FAILED if status.trouble else ExitStatus.OK


def _watch_status(
    once: Callable[..., Status], progress: Progress, stop: threading.Event, output: str, interval_seconds: float
) -> int:
    """Show the status again and again: in place on a terminal, one after the other elsewhere (JSON: one a line)."""
    import json
    import shutil
    import time
    from dataclasses import replace

    from bridge.render.formats import to_yaml
    from bridge.render.inspections import status_screen, status_table

    status: Status | None = None
    while not stop.is_set():
        began = time.monotonic()
        try:
            status = once(progress if status is None else None)
            note = f"read at {time.strftime('%H:%M:%S')}"
        except (TransientError, PermanentError) as error:
            if status is None:
                raise
            status = replace(status, trouble=(str(error),))
            note = f"not read at {time.strftime('%H:%M:%S')}"
        progress.clear()
        width, colour = terminal()
        if output == "json":
            text = json.dumps(status.to_json()) + "\n"
        elif output == "yaml":
            text = "---\n" + to_yaml(status.to_json())
        elif width is None or os.environ.get("TERM") == "dumb":
            text = f"{note}\n{status_table(status, width, colour)}\n"
        else:
            height = shutil.get_terminal_size((80, 24)).lines
            lines = status_screen(status, width, height, colour, note).splitlines()
            text = "\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J"
        if not write(text):
            return ExitStatus.OK
        stop.wait(max(interval_seconds, time.monotonic() - began))
    return ExitStatus.INTERRUPTED
