"""`bridge explain`: why each instance of a service is in, not ready, or out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from bridge.cli import completion
from bridge.cli.flags import completed
from bridge.cli.loading import consul_of, load, output_of, reading, rules_of
from bridge.cli.streams import terminal, write
from bridge.errors import ExitStatus

Service = Annotated[str, typer.Argument(metavar="SERVICE", autocompletion=completed(completion.services))]


def explain(flags: Mapping[str, Any], consul_service: Service) -> int:
    """Why each instance of a Consul service is in, not ready, or out.

    SERVICE is Consul's name, or that of a mirrored Service, `name` or `namespace/name`. Exit status: 0 explained
    (whatever the answer), 1 neither side has anything of that name, or something could not be read.
    """
    settings = load(flags)
    with reading() as (progress, stop), consul_of(settings) as consul:
        from bridge.oneshot.inspection import explain_once
        from bridge.render.formats import to_json, to_yaml
        from bridge.render.inspections import explanation_text, notes_text, trouble_text

        explained = explain_once(
            consul_service,
            consul=consul,
            kube=settings.kube_config(),
            rules=rules_of(settings),
            options=settings.sync_options(),
            stop=stop,
            progress=progress,
        )
    match output_of(settings):
        case "json":
            write(to_json(explained.to_json()))
        case "yaml":
            write(to_yaml(explained.to_json()))
        case _:
            page = terminal()
            text = "\n".join(explanation_text(e, *page) for e in explained.explanations)
            write(notes_text(explained.notes, *page) + text + trouble_text(explained.trouble, *page))
    return ExitStatus.FAILED if explained.trouble or not explained.found else ExitStatus.OK
