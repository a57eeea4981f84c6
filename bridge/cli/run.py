"""`bridge run`: mirror continuously."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bridge import __version__
from bridge.cli.loading import load, must_select, register_secrets, rules_of
from bridge.errors import ExitStatus

if TYPE_CHECKING:
    from bridge.config import Settings
    from bridge.daemon import Daemon


def run(flags: Mapping[str, Any]) -> int:
    """Mirror continuously until SIGTERM or Ctrl-C.

    Nothing is removed at the end.

    Serves /healthz, /readyz, /metrics, /api/status and a page on --listen. A changed settings file, or SIGHUP, has the
    settings read again. Exit status: 130 after SIGINT, 143 after SIGTERM, 1 when it cannot go on, 2
    usage.
    """
    from bridge.signals import Signals
    from bridge.telemetry import logs

    secrets = logs.Secrets()
    settings = load(flags, secrets)
    must_select(settings)
    daemons: list[Daemon] = []

    def reread() -> Settings:
        fresh = config.load(flags)
        register_secrets(fresh, secrets)
        return fresh

    def on_first(_signal: int) -> bool:
        logs.logger().info("stopping: finishing the writes in flight")
        for daemon in daemons:
            daemon.stop()
        return True

    def on_hangup() -> None:
        for daemon in daemons:
            daemon.reload()

    with Signals(on_first, on_hangup) as signals:
        from bridge import config
        from bridge.daemon import Daemon
        from bridge.telemetry.fan_out import FanOutObserver
        from bridge.telemetry.history import History
        from bridge.telemetry.metrics import Metrics
        from bridge.telemetry.routes import Routes
        from bridge.telemetry.web import WebServer

        log = logs.logger()
        metrics, history = Metrics(__version__), History()
        daemon = Daemon(
            settings,
            load=reread,
            rules_of=rules_of,
            observer=FanOutObserver(logs.LogObserver(log), metrics, history),
            log=log,
        )
        daemons.append(daemon)
        metrics.watch(daemon.status)
        routes, where = Routes(daemon, metrics.text, history), settings.run.page
        web = WebServer(settings.run.listen, routes.pages if where == "on" else routes.probes)
        page = WebServer(where, routes.pages) if where not in ("on", "off") else None
        with web, page or contextlib.nullcontext():
            everything = settings.effective()
            log.debug("all settings", **{k: v for k, v in everything.items() if v})
            log.info("effective settings", **{k: everything[k] for k in settings.changed()})
            places = {"listening": web.address, **({"page": page.address} if page is not None else {})}
            log.info("bridge starts", version=__version__, **places)
            if signals.received is None:
                daemon.run()
        log.info("bridge has stopped")
        return signals.status if signals.received is not None else ExitStatus.FAILED
