"""Which namespaces and datacenters a set of rules concerns: known before anything is read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from bridge.consul.client import ConsulClient, ConsulConfig
from bridge.core.model import Rule
from bridge.errors import TransientError
from bridge.retry import RetryPolicy, call


def namespaces_of(rules: Sequence[Rule], further: Sequence[str], default: str) -> tuple[str, ...] | None:
    """Namespaces to list and watch: those of the rules and `further` ones; None means all of them.

    All are needed when a rule's namespace depends on the service, or when `further` says `*`. Where neither names any
    (no rules at all: only annotated Services are filled), the `default` one is meant.
    """
    wanted = ({rule.to.namespace for rule in rules} | set(further)) or {default}
    if "*" in wanted or any("{" in namespace for namespace in wanted):
        return None
    return tuple(sorted(wanted))


def anchored(rules: Sequence[Rule], datacenters: Sequence[str]) -> tuple[Rule, ...]:
    """The rules with their datacenters filled in: one that names none means the first of `datacenters_of`, not all."""
    return tuple(rule if rule.datacenters else replace(rule, datacenters=tuple(datacenters[:1])) for rule in rules)


def datacenters_of(
    rules: Sequence[Rule],
    consul: ConsulConfig,
    retry: RetryPolicy,
    stop: threading.Event,
    on_retry: Callable[[TransientError, float], None] | None = None,
) -> tuple[str, ...]:
    """Datacenters that the rules name; where a rule names none, first the agent's own (or the configured one).

    `on_retry` is told why that one is not known yet, and for how long it is waited.
    """
    named = {dc for rule in rules for dc in rule.datacenters}
    if rules and all(rule.datacenters for rule in rules):
        return tuple(sorted(named))
    own = consul.datacenter
    if not own:
        client = ConsulClient(consul)
        try:
            own = call(client.own_datacenter, retry, stop, on_retry)
        finally:
            client.close()
    return (own, *sorted(named - {own}))
