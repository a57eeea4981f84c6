"""`bridge check`: can the bridge do its work?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge.cli.loading import load, output_of, reading, rules_of
from bridge.cli.streams import terminal, write
from bridge.errors import ExitStatus


def check(flags: Mapping[str, Any]) -> int:
    """Can the bridge do its work? One line each, with how to fix it.

    Consul, token, Kubernetes, rights, rules. Writes nothing; with --offline it asks no server and looks at the settings
    and rules alone. Exit status: 0 all is well (warnings included), 1 something failed, 2 the settings are wrong.
    """
    settings = load(flags)
    output = output_of(settings)
    with reading() as (progress, stop):
        from bridge.oneshot.check import check, check_rules
        from bridge.oneshot.probe import FAILED as BROKEN
        from bridge.oneshot.probe import Probe
        from bridge.render.formats import to_json, to_yaml
        from bridge.render.inspections import probe_sums, probe_text

        page = terminal()

        def done(probe: Probe) -> None:
            progress.clear()
            if output == "table":
                write(probe_text(probe, *page))

        if settings.sync.offline:
            probes = check_rules(settings.core_rules(), done, selects=settings.selects, files=settings.files())
        else:
            consul = settings.consul_config()
            try:
                probes = check(
                    consul,
                    settings.kube_config(),
                    lambda: rules_of(settings),
                    settings.core_rules(),
                    done,
                    options=settings.sync_options(),
                    stop=stop,
                    progress=progress,
                )
            finally:
                consul.access.close()
    if output in ("json", "yaml"):
        data = {"ok": all(p.state != BROKEN for p in probes), "probes": [p.to_json() for p in probes]}
        write(to_json(data) if output == "json" else to_yaml(data))
    else:
        write(probe_sums(probes, terminal()[1]))
    return ExitStatus.FAILED if any(p.state == BROKEN for p in probes) else ExitStatus.OK
