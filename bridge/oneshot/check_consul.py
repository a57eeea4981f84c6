"""The probes of `bridge check` that ask Consul: its servers, what the token may see, and what the rules select.

What a pass would make of the selected services comes from the recipe (`Loaded.draft`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bridge.consul.client import Answer, ConsulClient
from bridge.consul.decode import ANONYMOUS, FILTERED
from bridge.consul.faults import FILTERS, TOKENS
from bridge.core.mirroring import why_not_mirrored
from bridge.core.model import CurrentService, Known, Output, Query, Rule, Target
from bridge.core.reasons import Code, Reason
from bridge.core.state import name_of
from bridge.errors import BridgeError
from bridge.oneshot.inputs import Loaded
from bridge.oneshot.probe import FAILED, OK, WARNING, Probe, some
from bridge.oneshot.versions import version_probe
from bridge.pipeline.scope import named_with

SERVICES_RULE = 'service_prefix "" { policy = "read" }'
NODES_RULE = 'node_prefix "" { policy = "read" }'
POLICY = f"{SERVICES_RULE} {NODES_RULE}"
"""The Consul ACL policy that suffices (docs/consul.md, What a token may see)."""

TOLD_BY_TOKEN = (ANONYMOUS, FILTERED)
"""Why a datacenter shows nothing, where the probe of its token says so."""

MISTYPED = frozenset((Code.TAG_CASE, Code.ADDRESS_KIND_ABSENT))
"""Warnings of a pass that are most likely a mistake in a rule."""


class ConsulProbes:
    """Reads Consul into `loaded`, with a probe after each step. The Services were read before.

    `own` is our own datacenter, as far as it is known; `uncarried` are namespaces with Endpoints that the control plane
    cannot mirror.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self.own = loaded.consul.datacenter
        self.uncarried: set[str] = set()

    def all(self, rules: Sequence[Rule]) -> Iterator[Probe]:
        """From the connection to what a pass would say of each service."""
        try:
            client = ConsulClient(self._loaded.consul)
        except BridgeError as error:
            yield Probe("consul", FAILED, str(error), error.remedy or "correct the consul: settings")
            return
        try:
            try:
                leader = client.leader()
            except BridgeError as error:
                yield Probe("consul reachable", FAILED, str(error), error.remedy or "consul.address")
                return
            yield Probe("consul reachable", OK, self._loaded.consul.address)
            yield self._version(client)
            if not leader:
                yield Probe("consul leader", FAILED, "no leader is elected", "consul operator raft list-peers")
                return
            yield Probe("consul leader", OK, leader)
            yield from self._datacenters(client, rules)
        finally:
            client.close()

    def _version(self, client: ConsulClient) -> Probe:
        try:
            version = client.version()
        except BridgeError:
            return Probe("consul version", OK, "not told (the token may not read the agent; that is no harm)")
        return version_probe("consul", version)

    def _datacenters(self, client: ConsulClient, rules: Sequence[Rule]) -> Iterator[Probe]:
        try:
            known = client.datacenters()
            own = self.own = self.own or client.own_datacenter()
        except BridgeError as error:
            yield Probe("consul datacenters", FAILED, str(error), error.remedy or f"a token with: {POLICY}")
            return
        wanted = named_with(own, rules, self._loaded.consul)
        missing = [dc for dc in wanted if dc not in known]
        if missing:
            detail = f"{', '.join(missing)} unknown; there are {', '.join(known)}"
            mend = "--datacenter, rules[].datacenters, or consul.datacenters"
            yield Probe("consul datacenters", FAILED, detail, mend)
        else:
            yield Probe("consul datacenters", OK, ", ".join(sorted(wanted)))
        self._loaded.begin(wanted)
        active = self._loaded.consul_state.active_datacenters()
        listed = []
        for datacenter in sorted(dc for dc in wanted if dc in known and (dc != own or dc in active)):
            try:
                services, nodes = client.listing(datacenter), client.nodes(datacenter)
            except BridgeError as error:
                yield Probe(f"services of {datacenter}", FAILED, str(error), error.remedy or f"a token with: {POLICY}")
                continue
            listed.append(datacenter)
            yield _token(datacenter, services, nodes)
        self._loaded.datacenters = tuple(listed)
        self._loaded.read_all()
        for datacenter, reason in self._loaded.consul_state.listing_trouble().items():
            if reason not in TOLD_BY_TOKEN:
                yield Probe(f"services of {datacenter}", FAILED, reason, self._remedy_of(reason))
        yield from self._selection()
        yield from self._services()

    def _remedy_of(self, reason: str) -> str:
        """How to fix what could not be read of Consul, and why not."""
        return self._loaded.remedies.get(reason) or f"a token with: {POLICY}"

    def _selection(self) -> Iterator[Probe]:
        """How many services are selected or asked for, and whether each gets its name."""
        consul_state = self._loaded.consul_state
        strange, asked = self._requests()
        texts = [
            *strange,
            *(f"{target} asks for {query.service}, which {query.datacenter} does not list"
              for target, query in asked if consul_state.is_missing(name_of(query))),
        ]  # fmt: skip
        if texts:
            mend = "kubectl describe service NAME: its consul-bridge/ annotations and its spec"
            yield Probe("annotated Services", WARNING, some(texts), mend)
        elif asked:
            count = len(asked)
            yield Probe("annotated Services", OK, f"{count} ask{'s' if count == 1 else ''} to be filled")
        selected = consul_state.selected()
        if selected:
            yield Probe("selected services", OK, str(selected))
        elif consul_state.rules:
            mend = "services that Consul lists: --service, --tag, or the rules in --config"
            yield Probe("selected services", WARNING, "none", mend)
        elif not asked:
            yield _nothing(self._loaded.namespaces)
        if remarks := self._loaded.unmatched():
            yield Probe("names in rules", WARNING, some(remarks), "the name as Consul has it, unless it comes later")
        if not selected and not asked:
            return
        losers = [loser for target in sorted(consul_state.targets()) for loser in consul_state.rejected(target)]
        if losers := [*losers, *consul_state.unmappable()]:
            texts = [f"{s.service}: {s.reason}" for s in losers]
            yield Probe(
                "names", WARNING, some(texts), "a rule with another name template, e.g. '{service}-{datacenter}'"
            )
        else:
            yield Probe("names", OK, "every service has a name of its own")

    def _requests(self) -> tuple[list[str], list[tuple[Target, Query]]]:
        """What of users' requests cannot be served, and what can."""
        consul_state = self._loaded.consul_state
        strange: list[str] = []
        asked: list[tuple[Target, Query]] = []
        for service in self._loaded.store.annotated_services():
            target = Target(service.meta.namespace, service.meta.name)
            refusal, request = consul_state.refusal(target), consul_state.annotation(target)
            if refusal is not None:
                strange.append(f"{target}: {refusal.detail}")
            elif request is None:
                continue
            elif _is_filled_otherwise(service):
                what = "has a selector: Kubernetes fills it" if service.has_selector else "is an ExternalName: an alias"
                strange.append(f"{target} {what}")
            elif request[1].datacenter not in consul_state.datacenters:
                may_be_asked = ", ".join(consul_state.datacenters)
                strange.append(
                    f"{target} asks for datacenter {request[1].datacenter}: only {may_be_asked} may be asked "
                    "(consul.datacenters)"
                )
            else:
                asked.append((target, consul_state.annotated_query(target) or request[1]))
        return strange, asked

    def _services(self) -> Iterator[Probe]:
        """What a pass would say of what the rules select: what Consul refuses, and what is too large."""
        loaded, consul_state = self._loaded, self._loaded.consul_state
        doubts = [f"{choice.query.service}: {reason}" for choice, reason in loaded.unmet(kept=False)]
        if not consul_state.targets() and not doubts:
            return
        refused: dict[str, list[Query]] = {}
        for query, reason in consul_state.trouble().items():
            refused.setdefault(reason, []).append(query)
        silent = [
            f"{query.service}: {Reason(Code.PEER_EMPTY, peer=query.peer)}"
            for query, known in loaded.views.items()
            if query.peer and isinstance(known, Known) and not known.instances
        ]
        uncarried: list[str] = []
        conflicts: list[str] = []
        for target in sorted(consul_state.targets()):
            draft = loaded.draft(target)
            if draft is None or not consul_state.winners(target):
                continue
            plan = draft.plan
            services = ", ".join(query.service for query in plan.queries)
            doubts += [f"{services}: {text}" for text in plan.warnings if text.code in MISTYPED]
            # else said above
            if not _is_filled_otherwise(draft.current.service) or consul_state.annotation(target) is None:
                conflicts += [f"{c.kind} {target} (for {services}): {c.reason}" for c in plan.conflicts]
            desired = draft.desired
            if desired is not None and desired.output is Output.ENDPOINTS and (why := why_not_mirrored(desired.groups)):
                self.uncarried.add(target.namespace)
                uncarried.append(f"{services} ({why})")
        for reason, queries in refused.items():
            at = (
                request
                for query in queries
                for request in map(consul_state.annotation, sorted(consul_state.fed_by(query)))
            )
            asking = [rule.name for rule, query in filter(None, at) if query in queries]
            filters = FILTERS if not asking else f"consul-bridge/filter of {some(asking)}"
            way = self._remedy_of(reason)
            mend = filters if way == FILTERS else way
            yield Probe(f"reading {some([q.service for q in queries])}", FAILED, reason, mend)
        if silent:
            yield Probe("peers", WARNING, some(silent), "rules[].peer, as `consul peering list` has it")
        if doubts:
            mend = "rules[].tags (--tag) and rules[].instances.address, as Consul spells them"
            yield Probe("tags and addresses", WARNING, some(sorted(set(doubts))), mend)
        if conflicts:
            mend = "bridge sync --dry-run tells how to solve each: rename by to.name, remove the object, or --adopt"
            yield Probe("conflicts", WARNING, f"left alone: {some(conflicts)}", mend)
        if uncarried:
            detail = f"EndpointSlices of ours carry what the control plane cannot mirror: {some(uncarried)}"
            yield Probe("sizes", OK, detail)
        elif not refused:
            yield Probe("sizes", OK, "no service is past what its output can carry")


def _is_filled_otherwise(service: CurrentService | None) -> bool:
    return service is not None and (service.has_selector or service.type == "ExternalName")


def _nothing(namespaces: Sequence[str] | None) -> Probe:
    """There is no rule, and no Service asks; where that was looked for, because others may ask elsewhere."""
    mend = "kubectl label service NAME consul-bridge/mirror=true, or rules in --config"
    if namespaces is None:
        where = "no Service in any namespace"
    else:
        where = f"no Service in {some(namespaces) or 'a namespace that could be read'}"
        mend += "; --watch-namespace NAMESPACE for Services elsewhere ('*': everywhere)"
    return Probe("selected services", WARNING, f"none: there is no rule, and {where} asks to be filled", mend)


def _token(datacenter: str, services: Answer, nodes: Answer) -> Probe:
    """What the token may see. Nodes come first: Consul hides an instance whose node the token may not see."""
    name = f"token in {datacenter}"
    if services.default_deny_anonymous:
        detail = "no token, and the default is deny: nothing can be seen"
        return Probe(name, FAILED, detail, f"{TOKENS}: a token with: {POLICY}")
    if nodes.filtered:
        some = f"only {len(nodes.data)} nodes" if nodes.data else "no node"
        detail = f"the token may see {some}, and no instance that is elsewhere"
        return Probe(name, WARNING if nodes.data else FAILED, detail, f"its policy lacks: {NODES_RULE}")
    if services.filtered and not services.data:
        return Probe(name, FAILED, "the token may see no service", f"its policy lacks: {SERVICES_RULE}")
    if services.filtered:
        detail = f"sees {len(services.data)} services; those that are hidden from it are left alone"
        return Probe(name, WARNING, detail, f"if others are wanted, its policy lacks: {SERVICES_RULE}")
    return Probe(name, OK, f"sees {len(services.data)} services")
