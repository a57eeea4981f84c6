"""Which namespaces and datacenters a set of rules concerns: known before anything is read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from bridge.consul.client import ConsulClient, ConsulConfig
from bridge.core import select
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


def never_used(rules: Sequence[Rule], own: str = "") -> list[tuple[str, str]]:
    """Names of rules that an earlier one takes every service from, each with the earlier one's.

    A rule that names no datacenter is about our own, whose name need not be known for that.
    """
    return [(later.name, earlier.name) for later, earlier in select.shadowed(anchored(rules, (own or "\0",)))]


def datacenters_of(
    rules: Sequence[Rule],
    consul: ConsulConfig,
    retry: RetryPolicy,
    stop: threading.Event,
    on_retry: Callable[[TransientError, float], None] | None = None,
) -> tuple[str, ...]:
    """Datacenters that may be asked: first our own (the configured one, else the agent's), then those that are named.

    Named by rules, or by `consul.datacenters`, so that annotated Services may ask for them. Our own is always the
    first, whatever the rules say: it is what everything means that names none. Which of them are really asked is
    decided by who wants something of them (`ConsulState.active_datacenters`).

    `on_retry` gets the reason why our own is not known yet, and the seconds until the next try.
    """
    own = consul.datacenter
    if not own:
        client = ConsulClient(consul)
        try:
            own = call(client.own_datacenter, retry, stop, on_retry)
        finally:
            client.close()
    return named_with(own, rules, consul)


def named_with(own: str, rules: Sequence[Rule], consul: ConsulConfig) -> tuple[str, ...]:
    """`datacenters_of`, where our own is known."""
    named = {dc for rule in rules for dc in rule.datacenters} | set(consul.datacenters)
    return (own, *sorted(named - {own}))


def spare_of(rules: Sequence[Rule], datacenters: Sequence[str]) -> frozenset[str]:
    """Those of the `datacenters` that only users' Services may ask for: no (anchored) rule is about them."""
    return frozenset(datacenters) - {dc for rule in rules for dc in rule.datacenters}
