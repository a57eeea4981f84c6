"""`bridge check`: can we do our work? One probe after the other, each with what mends it.

A probe that fails does not stop the others, unless they need what it could not reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.consul.client import ConsulClient, ConsulConfig
from bridge.core import select
from bridge.core.model import Output, Rule, Skipped, Target
from bridge.engine.scope import namespaces_of
from bridge.errors import BridgeError
from bridge.kube.cache import can_i, namespaces_exist
from bridge.kube.client import KubeClient, KubeConfig

OK, WARNING, FAILED = "ok", "warning", "failed"

POLICY = 'service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }'
"""The Consul ACL policy that suffices (FACTS C)."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One line: what was looked at, how it is, and (unless ok) what mends it."""

    name: str
    state: str
    detail: str
    mend: str = ""

    def to_json(self) -> dict[str, Any]:
        """As an entry of `bridge check -o json`."""
        return {"probe": self.name, "state": self.state, "detail": self.detail, "mend": self.mend}


def check(
    consul: ConsulConfig,
    kube: KubeConfig,
    rules: Callable[[], Sequence[Rule]],
    fallback: Sequence[Rule] = (),
    done: Callable[[Probe], None] | None = None,
) -> list[Probe]:
    """Run every probe, in order; `done` hears of each as it comes. Never raises a BridgeError.

    `rules` may fail, because the target namespace may be the kubeconfig context's; then the `fallback` rules are
    checked against Consul, and the failure is one of the probes.
    """
    probes: list[Probe] = []
    for probe in _all(consul, kube, rules, fallback):
        probes.append(probe)
        if done is not None:
            done(probe)
    return probes


def _all(
    consul: ConsulConfig, kube: KubeConfig, make_rules: Callable[[], Sequence[Rule]], fallback: Sequence[Rule]
) -> Iterator[Probe]:
    try:
        rules = make_rules()
        yield Probe("settings", OK, f"{len(rules)} rule{'s' if len(rules) != 1 else ''}")
    except BridgeError:  # told by the Kubernetes probes
        rules = fallback
    yield from _consul(consul, rules)
    yield from _kubernetes(kube, rules)


# --------------------------------------------------------------------------- Consul


def _consul(config: ConsulConfig, rules: Sequence[Rule]) -> Iterator[Probe]:
    try:
        client = ConsulClient(config)
    except BridgeError as error:
        yield Probe("consul", FAILED, str(error), "mend the consul: settings")
        return
    try:
        try:
            leader = client.leader()
        except BridgeError as error:
            yield Probe("consul reachable", FAILED, str(error), "--consul-address, or start the agent")
            return
        yield Probe("consul reachable", OK, config.address)
        if not leader:
            yield Probe("consul leader", FAILED, "no leader is elected", "consul operator raft list-peers")
            return
        yield Probe("consul leader", OK, leader)
        yield from _datacenters(client, config, rules)
    finally:
        client.close()


def _datacenters(client: ConsulClient, config: ConsulConfig, rules: Sequence[Rule]) -> Iterator[Probe]:
    try:
        known = client.datacenters()
        own = config.datacenter or client.own_datacenter()
    except BridgeError as error:
        yield Probe("consul datacenters", FAILED, str(error), f"a token with: {POLICY}")
        return
    wanted = sorted({dc for rule in rules for dc in rule.datacenters} | {own})
    missing = [dc for dc in wanted if dc not in known]
    if missing:
        detail = f"{', '.join(missing)} unknown; there are {', '.join(known)}"
        yield Probe("consul datacenters", FAILED, detail, "--datacenter, or rules[].datacenters")
    else:
        yield Probe("consul datacenters", OK, ", ".join(wanted))
    claims = select.Claims()
    unmappable: list[Skipped] = []
    selected = 0
    for datacenter in (dc for dc in wanted if dc in known):
        try:
            answer = client.listing(datacenter)
        except BridgeError as error:
            yield Probe(f"services of {datacenter}", FAILED, str(error), f"a token with: {POLICY}")
            continue
        services: dict[str, list[str]] = answer.data
        if answer.default_deny_anonymous:
            detail = "no token, and the default is deny: nothing can be seen"
            yield Probe(f"token in {datacenter}", FAILED, detail, f"--token-file with a token that has: {POLICY}")
        elif answer.filtered:
            detail = "the token may not see all services or nodes: what is hidden is left alone"
            yield Probe(f"token in {datacenter}", WARNING, detail, f"a token with: {POLICY}")
        else:
            yield Probe(f"token in {datacenter}", OK, f"sees {len(services)} services")
        for service, tags in sorted(services.items()):
            rule = select.first_rule(rules, service, datacenter, tags)
            if rule is None or select.excluded(service, tags) is not None:
                continue
            selected += 1
            query = select.query_of(rule, service, datacenter)
            target = select.target_of(rule, query)
            if isinstance(target, Target):
                claims.claim(query, rule, target)
            else:
                unmappable.append(target)
    if selected:
        yield Probe("selected services", OK, str(selected))
    else:
        yield Probe("selected services", WARNING, "none", "--service, --tag, or rules in --config")
    losers = [loser for target in sorted(claims.targets()) for loser in claims.losers(target)]
    if losers or unmappable:
        texts = [f"{s.service}: {s.reason}" for s in (*losers, *unmappable)]
        more = f"; and {len(texts) - 5} more" if len(texts) > 5 else ""
        mend = "a rule with another name template, e.g. '{service}-{datacenter}'"
        yield Probe("names", WARNING, "; ".join(texts[:5]) + more, mend)
    elif selected:
        yield Probe("names", OK, "every service has a name of its own")


# --------------------------------------------------------------------------- Kubernetes


def _kubernetes(kube: KubeConfig, rules: Sequence[Rule]) -> Iterator[Probe]:
    try:
        client = KubeClient(kube)
    except BridgeError as error:
        yield Probe("kubernetes", FAILED, str(error), "--kubeconfig, --context")
        return
    try:
        try:
            version = client.version()
        except BridgeError as error:
            yield Probe("kubernetes reachable", FAILED, str(error), "--kubeconfig, --context; kubectl version")
            return
        yield Probe(
            "kubernetes reachable", OK, f"{client.server} ({version.git or f'{version.major}.{version.minor}'})"
        )
        namespaces = namespaces_of(rules, kube.namespaces, client.namespace)
        try:
            if namespaces:
                yield from _namespaces(client, namespaces)
            outputs = {rule.to.output for rule in rules}
            for namespace in namespaces if namespaces is not None else ("",):
                yield _rights(client, namespace, outputs)
        except BridgeError as error:
            yield Probe("rights", FAILED, str(error), "kubectl auth can-i --list")
    finally:
        client.close()


def _namespaces(client: KubeClient, namespaces: Sequence[str]) -> Iterator[Probe]:
    for namespace, there in namespaces_exist(client, namespaces).items():
        if there is False:
            yield Probe(f"namespace {namespace}", FAILED, "does not exist", f"kubectl create namespace {namespace}")
        else:
            yield Probe(f"namespace {namespace}", OK, "exists" if there else "may not be looked at (that is no harm)")


def _rights(client: KubeClient, namespace: str, outputs: set[Output]) -> Probe:
    """Every verb that the chosen outputs need, in one namespace ("" for all of them)."""
    full, reading = ("list", "watch", "create", "patch", "delete"), ("list", "watch")
    slices = full if outputs & {Output.ENDPOINTSLICES, Output.BOTH} else reading
    needed = (("", "services", full), ("", "endpoints", full), ("discovery.k8s.io", "endpointslices", slices))
    lacking = [
        f"{verb} {resource}"
        for group, resource, verbs in needed
        for verb in verbs
        if not can_i(client, verb, group, resource, namespace)
    ]
    name = f"rights in {namespace}" if namespace else "rights in all namespaces"
    if lacking:
        mend = (
            f"manifests/base/role.yaml in namespace {namespace}" if namespace else "manifests/components/all-namespaces"
        )
        if any("endpointslices" in text for text in lacking):
            mend += " (with manifests/components/endpointslices)"
        return Probe(name, FAILED, f"not allowed: {', '.join(lacking)}", f"apply {mend}")
    return Probe(name, OK, "all that is needed")
