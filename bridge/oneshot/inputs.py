"""What the one-shot commands begin from, before they ask Consul."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.core.annotated import Annotated, Refusal, request_at
from bridge.core.model import Query, Rule, Target
from bridge.core.reconcile import names_at
from bridge.core.state import ConsulState
from bridge.kube.store import Store

Asked = tuple[Target, Rule, Query]
"""A user-managed Service, the rule that its annotations are, and the Consul service that it asks for."""


def from_kubernetes(
    rules: Sequence[Rule],
    datacenters: Sequence[str],
    store: Store,
    annotated: Annotated,
    *,
    partial_selection: bool,
) -> tuple[ConsulState, list[Asked]]:
    """The state with all that Kubernetes tells, and what annotated Services ask for, as far as it is granted.

    `rules` are anchored, the first of `datacenters` is our own.
    """
    world = ConsulState(rules, datacenters, grace_seconds=0.0, partial_selection=partial_selection)
    for target in store.targets():
        world.record_owned(target, names_at(store.current(target)), now=0.0)
    asked: list[Asked] = []
    for service in store.annotated_services():
        target = Target(service.meta.namespace, service.meta.name)
        current = store.current(target)
        request = request_at(current, datacenters[0], annotated, names_at(current))
        if isinstance(request, Refusal):
            world.refuse(target, request, 0.0)
        elif request is not None:
            asked.append((target, *request))
            world.annotate(target, *request, 0.0)
    return world, asked
