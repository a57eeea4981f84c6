"""The flags of every command, as a table.

Each has an environment variable and a key in the YAML file, and `config` merges the three: typer only collects what
was given.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from bridge.cli import completion


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag as the command line shows it. `kind` is str, bool or list (may be given several times)."""

    name: str
    metavar: str
    help: str
    panel: str
    kind: type = str
    short: str = ""
    env: str = ""
    words: tuple[str, ...] = ()
    """All valid values, for completion by Tab."""
    ask: Callable[[Mapping[str, Any], str], list[str]] | None = None
    """Asks the servers for valid values, for completion by Tab."""

    @property
    def variable(self) -> str:
        return self.env or "BRIDGE_" + self.name.removeprefix("--").replace("-", "_").upper()

    @property
    def parameter(self) -> inspect.Parameter:
        """As a parameter for typer. None means: not given."""
        names = [f"{self.name}/--no-{self.name.removeprefix('--')}"] if self.kind is bool else [self.name]
        names += [self.short] if self.short else []
        option = typer.Option(
            *names,
            metavar=self.metavar or None,
            help=f"{self.help} [{self.variable}]",
            rich_help_panel=self.panel,
            show_default=False,
            autocompletion=self._completed if self.words else completed(self.ask) if self.ask else None,
        )
        kind: Any = {str: str | None, bool: bool | None, list: list[str] | None}[self.kind]
        name = self.name.removeprefix("--").replace("-", "_")
        annotation = Annotated[kind, option]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

    def _completed(self, ctx: typer.Context, incomplete: str) -> list[str]:
        without = () if ctx.info_name in ("sync", "purge") else ("diff",)
        return [word for word in self.words if word.startswith(incomplete) and word not in without]


def completed(ask: Callable[[Mapping[str, Any], str], list[str]]) -> Callable[[typer.Context, str], list[str]]:
    """Completion by Tab that asks the servers, by the flags that stand on the line already."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        given = {
            f.name: ctx.params.get(f.parameter.name) for f in (FLAGS[name] for name in COMMANDS[str(ctx.info_name)])
        }
        return ask({name: value for name, value in given.items() if value not in (None, [], ())}, incomplete)

    return complete


_SOURCE, _WHAT, _WHERE, _HOW, _LOG = "Consul", "What is mirrored (one rule)", "Kubernetes", "How", "Log"

FLAGS: Mapping[str, Flag] = {
    flag.name: flag
    for flag in (
        Flag("--config", "FILE", "Settings and rules as YAML.", _HOW),
        Flag("--consul-address", "URL", "Consul's HTTP API (also CONSUL_HTTP_ADDR).", _SOURCE),
        Flag("--datacenter", "NAME", "Datacenter of rules that name none; default: the agent's.", _SOURCE),
        Flag("--token-file", "FILE", "File with the ACL token (also CONSUL_HTTP_TOKEN_FILE).", _SOURCE),
        Flag("--connections", "N", "Connections to Consul at once; default 64.", _SOURCE),
        Flag("--service", "GLOB", "Services by name, e.g. 'radosgw*'; may be repeated.", _WHAT, list,
             ask=completion.services),
        Flag("--tag", "TAG", "Only instances with this tag; may be repeated (all are required).", _WHAT, list),
        Flag("--filter", "EXPRESSION", "Only instances for which Consul's filter expression is true.", _WHAT),
        Flag("--namespace", "NAME", "Target namespace or template; default: the context's, in a pod its own.", _WHAT,
             ask=completion.namespaces),
        Flag("--name", "TEMPLATE", "Name of the Service; default '{service}'.", _WHAT),
        Flag("--output-kind", "KIND", "Objects that carry addresses: both (default), endpoints, endpointslices.", _WHAT,
             words=("both", "endpoints", "endpointslices")),
        Flag("--kubeconfig", "FILE", "Kubeconfig (also KUBECONFIG).", _WHERE),
        Flag("--context", "NAME", "Context in the kubeconfig.", _WHERE),
        Flag("--watch-namespace", "NAME", "Look for the bridge's objects here as well ('*': everywhere).", _WHERE, list,
             ask=completion.namespaces),
        Flag("--writers", "N", "Objects written at once; default 16.", _WHERE),
        Flag("--owner", "ID", "Owner id on the bridge's objects; default 'default', in a pod NAMESPACE.NAME.", _HOW),
        Flag("--policy", "POLICY", "sync (default), upsert-only (delete no object), create-only.", _HOW,
             words=("sync", "upsert-only", "create-only")),
        Flag("--adopt", "WHAT", "Foreign objects to take over: never (default), unowned, consul-k8s.", _HOW,
             words=("never", "unowned", "consul-k8s")),
        Flag("--panic-threshold", "PERCENT", "Hold if more would turn not ready at once; default 80, 0: off.", _HOW),
        Flag("--restore-hold", "DURATION", "Hold removals for so long after Consul was rebuilt; default 10m.", _HOW),
        Flag("--hold-release", "DURATION", "End a hold after this time; default never.", _HOW),
        Flag("--listen", "HOST:PORT", "Address for health, metrics and the page; default 127.0.0.1:9480.", _HOW),
        Flag("--leader-elect", "", "Elect a leader: only one of several replicas writes.", _HOW, bool),
        Flag("--shards", "N", "Spread services over this number of Leases; default 1.", _HOW),
        Flag("--resync", "DURATION", "How often everything is compared; default 5m.", _HOW),
        Flag("--removal-grace-period", "DURATION",
             "Delete a service's objects when it has been gone for this time; default 30s.", _HOW),
        Flag("--dry-run", "", "Print the plan and stop.", _HOW, bool),
        Flag("--exit-code", "", "With --dry-run: exit status 4 when there are changes.", _HOW, bool),
        Flag("--output", "FORMAT", "table (default), json, yaml; sync and purge also: diff.", _HOW, short="-o",
             words=("table", "json", "yaml", "diff")),
        Flag("--all", "", "Show services that stay as they are, too.", _HOW, bool),
        Flag("--yes", "", "Do not ask for confirmation.", _HOW, bool, short="-y"),
        Flag("--force", "", "Apply what the guard would hold; --service and --namespace restrict it.", _HOW, bool),
        Flag("--watch", "", "Refresh the output until Ctrl-C.", _HOW, bool, short="-w"),
        Flag("--interval", "DURATION", "How long --watch waits between two readings; default 2s.", _HOW),
        Flag("--offline", "", "Check the settings and rules alone, without any server.", _HOW, bool),
        Flag("--log-format", "FORMAT", "console (default) or json.", _LOG, words=("console", "json")),
        Flag("--log-level", "LEVEL", "debug, info (default), warning, error.", _LOG,
             words=("debug", "info", "warning", "error")),
    )
}  # fmt: skip
"""Every flag there is. `config.catalogue()` and `config.RULE_FLAGS` know the same names (a test compares)."""

_CONSUL = ("--consul-address", "--datacenter", "--token-file", "--connections")
_RULE = ("--service", "--tag", "--filter", "--namespace", "--name", "--output-kind")
_KUBERNETES = ("--kubeconfig", "--context", "--watch-namespace")
_LOGS = ("--log-format", "--log-level")
_OWNERSHIP = ("--owner", "--policy", "--adopt")
EVERYWHERE = ("--config", *_CONSUL, *_RULE, *_KUBERNETES, *_OWNERSHIP, *_LOGS)

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "sync": (
        *EVERYWHERE, "--writers", "--panic-threshold", "--dry-run", "--exit-code", "--output", "--all", "--yes",
        "--force",
    ),
    "run": (
        *EVERYWHERE, "--writers", "--panic-threshold", "--restore-hold", "--hold-release", "--listen",
        "--leader-elect", "--shards", "--resync", "--removal-grace-period",
    ),
    "status": (*EVERYWHERE, "--watch", "--interval", "--output"),
    "explain": (*EVERYWHERE, "--output"),
    "check": (*EVERYWHERE, "--offline", "--output"),
    "purge": (*EVERYWHERE, "--writers", "--dry-run", "--exit-code", "--output", "--yes"),
}  # fmt: skip
"""The flags of each command."""
