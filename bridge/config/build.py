"""The user's settings: one frozen tree, validated before anything is read or written.

From the strongest to the weakest:

1. flags of the command line
2. `BRIDGE_…` environment variables
3. Consul's own variables (`CONSUL_HTTP_ADDR`, …) and `KUBECONFIG`
4. the YAML file (`--config`, `BRIDGE_CONFIG`)
5. defaults

The environment as a whole beats the file, because the same file (a ConfigMap, an image) is deployed to several places
and the environment says which one this is. That has a danger: a variable that is set for other tools may silently
redirect the bridge. So wherever one of Consul's or Kubernetes' own variables replaces what the file says, a note
tells it (`Settings.notes`).

The tree knows types and rules only. `load` brings the sources together (pydantic-settings merges them) and turns what
pydantic finds into sentences that name the place. Other packages get what they need as their own plain dataclasses.
Importing this module costs 0.1 s (pydantic): the command line does it only when a command really runs.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError

from bridge.config import yaml_file
from bridge.config.errors import explained
from bridge.config.rules import RuleSettings
from bridge.config.sources import (
    Layer,
    Place,
    file_layer,
    flag_layer,
    one_of,
    others_environment,
    overridden,
    own_environment,
    rules_from_flags,
    sync_command,
    unknown_variables,
)
from bridge.config.tree import Settings, catalogue
from bridge.core import select
from bridge.errors import ConfigurationError

PROXY_VARIABLES: Final = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy")
"""Everybody's variables about proxies; how Consul is reached follows them as Go's programs do (bridge/proxies.py)."""


def load(flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read all sources, check everything, and return the tree.

    `flags` are those that were given, by their long name (`{"--owner": "one", "--dry-run": True}`). Reads the file
    that `--config` names and nothing else. Raises ConfigurationError that names every mistake and its place.
    """
    flags = dict(flags or {})
    environ = os.environ if environ is None else environ
    config_flag = flags.pop("--config", None)
    config = config_flag or environ.get("BRIDGE_CONFIG") or ""
    document = yaml_file.read(config) if config else None
    leaves = catalogue()
    notes: list[str] = []
    from_flags = flag_layer(leaves, flags)
    own_layer = own_environment(leaves, environ)
    others_layer = others_environment(leaves, environ)
    from_file = file_layer(document)
    notes += unknown_variables(leaves, environ)
    notes += overridden(from_flags, own_layer, others_layer, from_file)
    layers = (from_flags, own_layer, others_layer, from_file)
    one_of(layers, ("consul", "auth_method"), ("consul", "token_file"), ("consul", "token"))
    selected_by = rules_from_flags(layers, flags, environ, document)
    places = {
        key: Place(rank, text)
        for rank, layer in reversed(list(enumerate(layers)))
        for key, text in layer.places.items()
    }
    try:
        make: Any = Settings  # pydantic-settings hands unknown arguments to `settings_customise_sources`
        settings: Settings = make(layers=(*layers, _derived(layers)))
    except ValidationError as error:
        raise ConfigurationError(
            explained(error, {key: place.text for key, place in places.items()}, document, Settings)
        ) from None
    settings._places = places
    settings._proxies = tuple((name, environ[name]) for name in PROXY_VARIABLES if environ.get(name))
    settings._config_file = config
    settings._config_digest = document.digest if document else b""
    settings._notes = tuple(notes)
    settings._selected_by = selected_by
    settings._api_server = addresses_in(environ.get("KUBERNETES_SERVICE_HOST", ""))
    settings._only = tuple(flags.get("--service") or ()), flags.get("--namespace") or ""
    settings._command = sync_command({**flags, "--config": config_flag})
    settings._partial_selection = settings.rules is not None and not layers[-1].has(("rules",))
    _check_together(settings)
    return settings


def _derived(layers: Sequence[Layer]) -> Layer:
    """Defaults that other settings give: in a cluster each installation is an owner of its own."""
    layer = Layer("derived", {}, {})
    said = next((layer for layer in layers if layer.has(("run", "instance_name"))), None)
    installation = said.values["run"]["instance_name"] if said is not None else ""
    if isinstance(installation, str) and installation and not any(layer.has(("owner",)) for layer in layers):
        layer.set(("owner",), owner_of(installation), "run.instance_name")
    return layer


def owner_of(installation: str) -> str:
    """The owner id of an installation that names none: `storage/consul-endpoints-bridge` -> `storage.consul-...`.

    A label value: over-long names are cut and get a short hash, so that two stay two.
    """
    text = re.sub(r"[^A-Za-z0-9_.-]", ".", installation).strip("_.-")
    if len(text) > select.LABEL_LIMIT:
        text = f"{text[: select.LABEL_LIMIT - 9]}-{select.digest(installation)}"
    return text or "default"


def addresses_in(text: str) -> tuple[str, ...]:
    """A variable's address in canonical form; () where it has none (a host name, or nothing)."""
    try:
        return (str(ipaddress.ip_address(text)),)
    except ValueError:
        return ()


def _check_together(settings: Settings) -> None:
    """What no field can know alone."""
    consul = settings.consul
    if consul.address.startswith("unix:") and consul.tls:
        raise ConfigurationError(
            f"{settings.source('consul.tls')}: consul.tls: a Unix socket (consul.address) is spoken to without TLS"
        )
    for one, other in (("client_cert", "client_key"), ("client_key", "client_cert")):
        if getattr(consul, one) and not getattr(consul, other):
            raise ConfigurationError(f"{settings.source(f'consul.{one}')}: consul.{one} needs consul.{other} as well")
    names: dict[str, int] = {}
    bounds = settings.bounds()
    for position, rule in enumerate(settings.rules or ()):
        namespace = rule.to.namespace
        if namespace and "{" not in namespace and (why := select.namespace_refused(bounds, namespace)) is not None:
            place = settings._places[("rules", position, "to", "namespace")].text
            raise ConfigurationError(f"{place}: rules[{position}].to.namespace: {why}")
        globs = [service for service in rule.services if select.is_glob(service)]
        if settings._is_pinned(rule) and (globs or not rule.services):
            key = next(k for k in ("peer", "namespace", "partition") if getattr(rule, k))
            place = settings._places[("rules", position, key)].text
            raise ConfigurationError(
                f"{place}: rules[{position}].{key}: only the services of consul.namespace and consul.partition are "
                f"listed; elsewhere `services` must be full names, not {', '.join(map(repr, globs)) or 'left out'}"
            )
        if (mistake := _mistake_in_combining(rule, settings.policy)) is not None:
            path, problem = mistake
            place = settings._places[("rules", position, *path)].text
            raise ConfigurationError(f"{place}: rules[{position}].{'.'.join(map(str, path[:2]))}: {problem}")
        if rule.name and rule.name in names:
            place = settings._places[("rules", position, "name")].text
            raise ConfigurationError(
                f"{place}: rules[{position}].name: {rule.name!r} is the name of rules[{names[rule.name]}] already"
            )
        names.setdefault(rule.name, position)


def _mistake_in_combining(rule: RuleSettings, policy: str) -> tuple[tuple[str | int, ...], str] | None:
    """What is wrong with a rule that combines datacenters, and under which of its keys."""
    for key in ("failover_below", "failover_when", "unreachable_after", "failback_after"):
        if key in rule.model_fields_set and rule.combine != "failover":
            return (key,), "it is about failing over; write `combine: failover`, or leave it out"
    if "unreachable_after" in rule.model_fields_set and rule.failover_when != "unreachable":
        return ("unreachable_after",), "an unreachable datacenter keeps the traffic unless `failover_when: unreachable`"
    if rule.combine is None:
        return None
    for position, datacenter in enumerate(rule.datacenters):
        if datacenter in rule.datacenters[:position]:
            return ("datacenters", position), f"{datacenter!r} is there twice; name each datacenter once"
    if len(rule.datacenters) < 2:
        return ("combine",), "it makes one Service of several datacenters; name two or more in `datacenters`"
    if rule.combine == "failover" and policy == "create-only":
        return ("combine",), "the policy create-only leaves what exists as it is, so that nothing would fail over"
    for key in ("name", "namespace"):
        if "{datacenter}" in (getattr(rule.to, key) or ""):
            problem = "{datacenter} gives each datacenter a Service of its own; leave it out, or `combine`"
            return ("to", key), problem
    if rule.combine == "union" and rule.instances.min_ready is not None:
        return (
            ("instances", "min_ready"),
            "it counts the instances of one datacenter; leave it out beside `combine: union`",
        )
    return None
