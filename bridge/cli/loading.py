"""What commands make of their flags: settings, rules, how Consul is reached, and the signals of what only reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bridge.cli.streams import Progress, say
from bridge.errors import ConfigurationError

if TYPE_CHECKING:
    import threading

    from bridge.config import Settings
    from bridge.consul.client import ConsulConfig
    from bridge.core.model import Rule
    from bridge.report import Report
    from bridge.telemetry.logs import Secrets


def load(flags: Mapping[str, Any], secrets: Secrets | None = None) -> Settings:
    """The settings, with the log set up as they say. `secrets` is where what must never be printed is registered."""
    from bridge import config
    from bridge.telemetry import logs

    settings = config.load(flags)
    secrets = logs.configure(settings.log.format, settings.log.level, secrets)
    register_secrets(settings, secrets)
    for note in settings.notes:
        logs.logger().warning(note)
    return settings


def register_secrets(settings: Settings, secrets: Secrets) -> None:
    """Register what must never be printed; that a token file cannot be read is `consul/`'s to say."""
    for secret in settings.secrets():
        secrets.add(secret)
    if settings.consul.token_file:
        try:
            with open(settings.consul.token_file, encoding="utf-8") as file:  # noqa: PTH123 - pathlib costs an import
                secrets.add(file.read(65536).strip())
        except (OSError, UnicodeDecodeError):
            return


@contextmanager
def consul_of(settings: Settings) -> Iterator[ConsulConfig]:
    """How a command that runs once reaches Consul; logs what is not safe about it, and ends a login afterwards."""
    from bridge.consul.access import warnings_of
    from bridge.telemetry import logs

    config = settings.consul_config()
    try:
        for warning in warnings_of(config):
            logs.logger().warning("insecure or limited connection", reason=warning)
        yield config
    finally:
        config.access.close()


def rules_of(settings: Settings) -> tuple[Rule, ...]:
    """The rules, those without a namespace going to the kubeconfig context's or the pod's."""
    return (
        settings.core_rules(default_namespace(settings)) if settings.needs_default_namespace else settings.core_rules()
    )


def default_namespace(settings: Settings) -> str:
    """The namespace of the kubeconfig's context, in a pod its own."""
    from bridge.kube.access import namespace_of

    return namespace_of(settings.kube_config())


def status_of(report: Report, settings: Settings) -> int:
    from bridge.report import exit_status

    return exit_status(report, settings.sync.dry_run, settings.sync.exit_code)


UNSELECTED = (
    "rules: there are none, and no --service, --tag or --filter: every service in Consul would be mirrored; if that is "
    "meant, add --service '*'; else select some with --service 'GLOB', or write rules into a file for --config FILE"
)


def must_select(settings: Settings) -> None:
    """Nothing is written unasked. Raises ConfigurationError when no setting selects services."""
    if not settings.selects:
        raise ConfigurationError(UNSELECTED)


@contextmanager
def reading() -> Iterator[tuple[Progress, threading.Event]]:
    """Around what only reads: a signal ends it at once."""
    from bridge.signals import Signals

    progress = Progress()

    def on_first(_signal: int) -> bool:
        progress.clear()
        say("interrupted")
        return False

    with Signals(on_first) as signals:
        try:
            yield progress, signals.stop
        finally:
            progress.clear()


def output_of(settings: Settings) -> str:
    """The format for what is no report: a diff there would be nothing."""
    if settings.sync.output == "diff":
        raise ConfigurationError(
            f"{settings.source('sync.output')}: diff is for sync and purge; here: table, json, yaml"
        )
    return settings.sync.output
