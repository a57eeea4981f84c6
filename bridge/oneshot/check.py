"""`bridge check`: can the bridge do its work? One probe after the other, each with how to fix what it found.

A probe that fails does not stop later ones, unless they need what it could not reach. Nothing is written, not even
for a moment: existing Endpoints show whether the control plane mirrors them.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from bridge.consul.client import Answer, ConsulClient, ConsulConfig
from bridge.consul.decode import ANONYMOUS, FILTERED
from bridge.consul.faults import FILTERS, TOKENS
from bridge.core import select
from bridge.core.annotated import request_of
from bridge.core.mirroring import MIRROR_COSTS, MIRRORING_LIMIT, why_not_carried
from bridge.core.model import (
    NO_PORTS,
    SERVICE_KINDS,
    CurrentRoute,
    CurrentService,
    Group,
    Kind,
    Known,
    Output,
    Policy,
    Query,
    Rule,
    Target,
)
from bridge.core.ownership import MANAGED_BY, MANAGER, OWNER
from bridge.core.reasons import Code, Reason
from bridge.core.slice_union import Seen, standing
from bridge.core.state import name_of
from bridge.errors import BridgeError, CancelledError, ForbiddenError
from bridge.kube.admission import refusals
from bridge.kube.client import KubeClient, KubeConfig
from bridge.kube.faults import remedy
from bridge.kube.gateway import ROLE as ROUTES_ROLE
from bridge.kube.identity import who_am_i
from bridge.kube.informer import NamespaceState, can_i, list_routes, namespace_states
from bridge.kube.mirrored import mirrored, some_endpoints
from bridge.kube.namespaces import ROLE, read_labels
from bridge.kube.nodes import cluster_nodes
from bridge.kube.objects import GATEWAY_API
from bridge.kube.rbac import grant
from bridge.oneshot.connections import connections
from bridge.oneshot.inputs import MIRROR_SECONDS, Loaded, SyncOptions
from bridge.oneshot.probe import FAILED, OK, WARNING, Probe
from bridge.oneshot.rights import how_to_grant, missing_verbs
from bridge.oneshot.versions import version_probe
from bridge.pipeline.scope import named_with, namespaces_of, never_used
from bridge.retry import RetryPolicy

SERVICES_RULE = 'service_prefix "" { policy = "read" }'
NODES_RULE = 'node_prefix "" { policy = "read" }'
POLICY = f"{SERVICES_RULE} {NODES_RULE}"
"""The Consul ACL policy that suffices (docs/consul.md, What a token may see)."""

LEAST_KUBERNETES = (1, 22)
"""discovery.k8s.io/v1 came with 1.21, server-side apply with 1.22."""

TOLD_BY_TOKEN = (ANONYMOUS, FILTERED)
"""Why a datacenter shows nothing, where the probe of its token says so."""

MISTYPED = frozenset((Code.TAG_CASE, Code.ADDRESS_KIND_ABSENT))
"""Warnings of a pass that are most likely a mistake in a rule."""

"""The name of the Role of manifests/base and the ClusterRole of manifests/components/all-namespaces."""

SHOWN = 5
"""Names in one line; what is beyond is counted."""


def check(
    consul: ConsulConfig,
    kube: KubeConfig,
    rules: Callable[[], Sequence[Rule]],
    fallback: Sequence[Rule] = (),
    done: Callable[[Probe], None] | None = None,
    *,
    options: SyncOptions,
    stop: threading.Event | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Probe]:
    """Run every probe, in order; `done` gets each as it comes. Never raises a BridgeError but CancelledError.

    `rules` may fail, because the target namespace may be the kubeconfig context's; then the `fallback` rules are
    checked against Consul, and the failure is one of the probes.
    """
    checking = _Check(consul, kube, options, stop or threading.Event(), progress)
    try:
        return _collect(checking.all(rules, fallback), done)
    finally:
        checking.loaded.close()


def check_rules(
    rules: Sequence[Rule],
    done: Callable[[Probe], None] | None = None,
    *,
    selects: bool = True,
    files: Mapping[str, str] | None = None,
) -> list[Probe]:
    """The probes that need no server; that the settings are valid is known already.

    `selects`: the settings say which services are meant (`SyncOptions`). `files`: the paths that settings name.
    """
    return _collect(chain(_rules(rules, selects), _files(files or {})), done)


def _files(files: Mapping[str, str]) -> Iterator[Probe]:
    """What settings name and cannot be read here: it may be there where the bridge runs."""
    for setting, path in files.items():
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        except OSError as error:
            detail = f"{path} cannot be read here: {error.strerror}"
            others = f" ({TOKENS})" if setting == "consul.token_file" else ""
            remedy = f"make it, or name another{others}; ignore this if the bridge runs elsewhere"
            yield Probe(setting, WARNING, detail, remedy)


def _collect(found: Iterator[Probe], done: Callable[[Probe], None] | None) -> list[Probe]:
    probes: list[Probe] = []
    for probe in found:
        probes.append(probe)
        if done is not None:
            done(probe)
    return probes


def _some(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return "; ".join(texts[:SHOWN]) + more


# --------------------------------------------------------------------------- settings


def _rules(rules: Sequence[Rule], selects: bool) -> Iterator[Probe]:
    if not selects:
        detail = "none are given; bridge run refuses to start, and bridge sync asks on a terminal and refuses elsewhere"
        yield Probe(
            "rules", WARNING, detail, "--service 'GLOB', if every service is meant --service '*', or rules in --config"
        )
    else:
        yield Probe("settings", OK, f"{len(rules)} rule{'s' if len(rules) != 1 else ''}")
    for later, earlier in never_used(rules):
        detail = f"never used: {earlier} comes first and matches every name that it matches"
        yield Probe(later, WARNING, detail, "put the narrower rule first, or join the two")


# --------------------------------------------------------------------------- both sides


class _Check:
    """The probes that need servers."""

    def __init__(
        self,
        consul: ConsulConfig,
        kube: KubeConfig,
        options: SyncOptions,
        stop: threading.Event,
        progress: Callable[[str, int, int], None] | None,
    ) -> None:
        self._config, self._kube, self._options, self._stop = consul, kube, options, stop
        self.loaded = Loaded(consul, kube, (), options, stop, progress)
        self._uncarried: set[str] = set()
        self._own = consul.datacenter

    def all(self, make_rules: Callable[[], Sequence[Rule]], fallback: Sequence[Rule]) -> Iterator[Probe]:
        try:
            rules = make_rules()
            yield from _rules(rules, self._options.selects)
        except BridgeError:  # told by the Kubernetes probes
            rules = fallback
        yield from connections(self._config, self._kube)
        self._read_services(rules)
        yield from self._tenancy()
        yield from self._unlabelled()
        yield from self._consul(rules)
        yield from self._kubernetes(rules)

    def _tenancy(self) -> Iterator[Probe]:
        """What should be bounded where more than one namespace is served, and is not."""
        if not self._several:
            return
        if not self.loaded.annotated.bounds.allow_cidrs:
            yield Probe(
                "networks",
                WARNING,
                "several namespaces are served, and an instance may have any address that is not denied",
                "guard.allow_cidrs: the networks that your VMs are in",
            )
        if self._options.annotated.grants is None:
            yield Probe(
                "grants",
                OK,
                "several namespaces are watched and `annotated` grants nothing: no further Service is filled",
            )

    def _read_services(self, rules: Sequence[Rule]) -> None:
        """All Services that can be read: some ask to be filled. What cannot be, the Kubernetes probes tell."""
        self.loaded.rules = tuple(rules)
        try:
            self.loaded.read_kubernetes(kinds=(Kind.SERVICE,), retry=RetryPolicy(attempts=1))
        except CancelledError:
            raise
        except BridgeError:
            return

    @property
    def _several(self) -> bool:
        """Whether more than one namespace is served."""
        return self.loaded.namespaces is None or len(self.loaded.namespaces) > 1

    def _unlabelled(self) -> Iterator[Probe]:
        """Objects that lost our labels: no bridge updates them, because they look like another client's."""
        lost = [f"{meta.namespace}/{meta.name}" for meta in self.loaded.store.unlabelled_services()]
        if lost:
            detail = f"written by a bridge, as the field manager shows, but without its labels: {_some(lost)}"
            mend = f"kubectl label service NAME {MANAGED_BY}={MANAGER} {OWNER}={self._options.owner}, or delete them"
            yield Probe("labels of ownership", WARNING, detail, mend)

    def _asking(self) -> list[CurrentService]:
        """Users' Services that ask to be filled."""
        return [
            s for s in self.loaded.store.annotated_services() if request_of(s, "", self.loaded.annotated) is not None
        ]

    # ------------------------------------------------------------------ Consul

    def _consul(self, rules: Sequence[Rule]) -> Iterator[Probe]:
        try:
            client = ConsulClient(self._config)
        except BridgeError as error:
            yield Probe("consul", FAILED, str(error), error.remedy or "correct the consul: settings")
            return
        try:
            try:
                leader = client.leader()
            except BridgeError as error:
                yield Probe("consul reachable", FAILED, str(error), error.remedy or "consul.address")
                return
            yield Probe("consul reachable", OK, self._config.address)
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
            own = self._own = self._own or client.own_datacenter()
        except BridgeError as error:
            yield Probe("consul datacenters", FAILED, str(error), error.remedy or f"a token with: {POLICY}")
            return
        wanted = named_with(own, rules, self._config)
        missing = [dc for dc in wanted if dc not in known]
        if missing:
            detail = f"{', '.join(missing)} unknown; there are {', '.join(known)}"
            mend = "--datacenter, rules[].datacenters, or consul.datacenters"
            yield Probe("consul datacenters", FAILED, detail, mend)
        else:
            yield Probe("consul datacenters", OK, ", ".join(sorted(wanted)))
        self.loaded.begin(wanted)
        active = self.loaded.world.active_datacenters()
        listed = []
        for datacenter in sorted(dc for dc in wanted if dc in known and (dc != own or dc in active)):
            try:
                services, nodes = client.listing(datacenter), client.nodes(datacenter)
            except BridgeError as error:
                yield Probe(f"services of {datacenter}", FAILED, str(error), error.remedy or f"a token with: {POLICY}")
                continue
            listed.append(datacenter)
            yield _token(datacenter, services, nodes)
        self.loaded.datacenters = tuple(listed)
        self.loaded.read_all()
        for datacenter, reason in self.loaded.world.listing_trouble().items():
            if reason not in TOLD_BY_TOKEN:
                yield Probe(f"services of {datacenter}", FAILED, reason, self._remedy_of(reason))
        yield from self._selection()
        yield from self._services()

    def _remedy_of(self, reason: str) -> str:
        """How to fix what could not be read of Consul, and why not."""
        return self.loaded.remedies.get(reason) or f"a token with: {POLICY}"

    def _selection(self) -> Iterator[Probe]:
        """How many services are selected or asked for, and whether each gets its name."""
        world = self.loaded.world
        strange, asked = self._requests()
        texts = [
            *strange,
            *(f"{target} asks for {query.service}, which {query.datacenter} does not list"
              for target, query in asked if world.is_missing(name_of(query))),
        ]  # fmt: skip
        if texts:
            mend = "kubectl describe service NAME: its consul-bridge/ annotations and its spec"
            yield Probe("annotated Services", WARNING, _some(texts), mend)
        elif asked:
            count = len(asked)
            yield Probe("annotated Services", OK, f"{count} ask{'s' if count == 1 else ''} to be filled")
        selected = world.selected()
        if selected:
            yield Probe("selected services", OK, str(selected))
        elif world.rules:
            mend = "services that Consul lists: --service, --tag, or the rules in --config"
            yield Probe("selected services", WARNING, "none", mend)
        elif not asked:
            yield _nothing(self.loaded.namespaces)
        if remarks := self.loaded.unmatched():
            yield Probe("names in rules", WARNING, _some(remarks), "the name as Consul has it, unless it comes later")
        if not selected and not asked:
            return
        losers = [loser for target in sorted(world.targets()) for loser in world.rejected(target)]
        if losers := [*losers, *world.unmappable()]:
            texts = [f"{s.service}: {s.reason}" for s in losers]
            yield Probe(
                "names", WARNING, _some(texts), "a rule with another name template, e.g. '{service}-{datacenter}'"
            )
        else:
            yield Probe("names", OK, "every service has a name of its own")

    def _requests(self) -> tuple[list[str], list[tuple[Target, Query]]]:
        """What of users' requests cannot be served, and what can."""
        world = self.loaded.world
        strange: list[str] = []
        asked: list[tuple[Target, Query]] = []
        for service in self.loaded.store.annotated_services():
            target = Target(service.meta.namespace, service.meta.name)
            refusal, request = world.refusal(target), world.annotation(target)
            if refusal is not None:
                strange.append(f"{target}: {refusal.detail}")
            elif request is None:
                continue
            elif _is_filled_otherwise(service):
                what = "has a selector: Kubernetes fills it" if service.has_selector else "is an ExternalName: an alias"
                strange.append(f"{target} {what}")
            elif request[1].datacenter not in world.datacenters:
                strange.append(
                    f"{target} asks for datacenter {request[1].datacenter}: only {', '.join(world.datacenters)} may be "
                    "asked (consul.datacenters)"
                )
            else:
                asked.append((target, world.meant(target) or request[1]))
        return strange, asked

    def _services(self) -> Iterator[Probe]:
        """What a pass would say of what the rules select: what Consul refuses, and what is too large."""
        loaded, world = self.loaded, self.loaded.world
        doubts = [f"{choice.query.service}: {reason}" for choice, reason in loaded.unmet(kept=False)]
        if not world.targets() and not doubts:
            return
        refused: dict[str, list[Query]] = {}
        for query, reason in world.trouble().items():
            refused.setdefault(reason, []).append(query)
        silent = [
            f"{query.service}: {Reason(Code.PEER_EMPTY, peer=query.peer)}"
            for query, known in loaded.views.items()
            if query.peer and isinstance(known, Known) and not known.instances
        ]
        uncarried: list[str] = []
        conflicts: list[str] = []
        for target in sorted(world.targets()):
            draft = loaded.draft(target)
            if draft is None or not world.winners(target):
                continue
            plan = draft.plan
            services = ", ".join(query.service for query in plan.queries)
            doubts += [f"{services}: {text}" for text in plan.warnings if text.code in MISTYPED]
            if not _is_filled_otherwise(draft.current.service) or world.annotation(target) is None:  # else told above
                conflicts += [f"{c.kind} {target} (for {services}): {c.reason}" for c in plan.conflicts]
            desired = draft.desired
            if desired is not None and desired.output is Output.ENDPOINTS and (why := why_not_carried(desired.groups)):
                self._uncarried.add(target.namespace)
                uncarried.append(f"{services} ({why})")
        for reason, queries in refused.items():
            at = (request for query in queries for request in map(world.annotation, sorted(world.fed_by(query))))
            asking = [rule.name for rule, query in filter(None, at) if query in queries]
            filters = FILTERS if not asking else f"consul-bridge/filter of {_some(asking)}"
            way = self._remedy_of(reason)
            mend = filters if way == FILTERS else way
            yield Probe(f"reading {_some([q.service for q in queries])}", FAILED, reason, mend)
        if silent:
            yield Probe("peers", WARNING, _some(silent), "rules[].peer, as `consul peering list` has it")
        if doubts:
            mend = "rules[].tags (--tag) and rules[].instances.address, as Consul spells them"
            yield Probe("tags and addresses", WARNING, _some(sorted(set(doubts))), mend)
        if conflicts:
            mend = "bridge sync --dry-run tells how to solve each: rename by to.name, remove the object, or --adopt"
            yield Probe("conflicts", WARNING, f"left alone: {_some(conflicts)}", mend)
        if uncarried:
            detail = f"EndpointSlices of ours carry what the control plane cannot mirror: {_some(uncarried)}"
            yield Probe("sizes", OK, detail)
        elif not refused:
            yield Probe("sizes", OK, "no service is past what its output can carry")

    # ------------------------------------------------------------------ Kubernetes

    def _kubernetes(self, rules: Sequence[Rule]) -> Iterator[Probe]:
        try:
            client = KubeClient(self._kube)
        except BridgeError as error:
            yield Probe("kubernetes", FAILED, str(error), "--kubeconfig, --context")
            return
        try:
            try:
                version = client.version()
            except BridgeError as error:
                proxy = client.access.proxy.source if client.access.proxy is not None else ""
                yield Probe("kubernetes reachable", FAILED, str(error), remedy(error, client.access.where, proxy))
                return
            yield Probe("kubernetes reachable", OK, client.server)
            text = version.git or f"{version.major}.{version.minor}"
            if (version.major, version.minor) < LEAST_KUBERNETES:
                detail = f"{text} has no server-side apply of every object that we write"
                yield Probe("kubernetes version", FAILED, detail, "Kubernetes 1.22 or later")
            else:
                yield version_probe("kubernetes", text)
            yield from self._rights(client, rules)
        finally:
            client.close()

    def _rights(self, client: KubeClient, rules: Sequence[Rule]) -> Iterator[Probe]:
        namespaces = namespaces_of(rules, self._kube.namespaces, client.namespace)
        needs = {name: self._needs(rules, name) for name in (namespaces if namespaces is not None else ("",))}
        try:
            found = who_am_i(client)
            user = found.name if found is not None else ""
            states = namespace_states(client, namespaces or ())
            yield from _namespaces(states)
            refusing = {NamespaceState.ABSENT, NamespaceState.BEING_DELETED}
            allowed = []
            for namespace, need in needs.items():
                probe = _rights_in(client, namespace, need, user, daemon=self._options.leases)
                mirrored_here = Output.ENDPOINTS in need.outputs or "Endpoints alone" in probe.detail
                allowed += [namespace] if probe.state != FAILED and mirrored_here else []
                yield probe
                if probe.state != FAILED and namespace and states[namespace] not in refusing:
                    yield from self._admission(client, namespace, need)
            if self._options.leases:
                yield _leases(client, user)
            else:
                yield from _running_bridge(client, user)
            if "*" in self._options.cluster_nodes:
                yield _nodes(client, user)
            if self.loaded.annotated.grants != ():
                yield from self._node_addresses(client)
            if self.loaded.annotated.asks_for_labels:
                yield _namespace_labels(client, user, daemon=self._options.leases)
            if allowed:
                yield self._mirroring(client, allowed)
            yield from self._slices()
            if select.asks_for_routes(rules):
                yield from self._routes(client, needs)
        except BridgeError as error:
            yield Probe("rights", FAILED, str(error), "kubectl auth can-i --list")

    def _node_addresses(self, client: KubeClient) -> Iterator[Probe]:
        """Whether annotated Services are kept away from the nodes: their addresses have to be known for that."""
        name, allowed = "addresses of the cluster's nodes", can_i(client, "list", "", "nodes")
        if allowed:
            count = len(set(cluster_nodes(client, ()).addresses.values()))
            yield Probe(name, OK, f"those of {count} nodes are known: annotated Services do not lead there")
        elif self._several and not self.loaded.annotated.bounds.allow_cidrs:
            detail = "not known (list nodes is not allowed): annotated Services may lead to them"
            mend = "guard.allow_cidrs without the nodes' network, or apply manifests/components/node-addresses (chart: "
            yield Probe(name, WARNING, detail, f"{mend}nodeAddresses)")

    def _admission(self, client: KubeClient, namespace: str, need: _Needs) -> Iterator[Probe]:
        """What may refuse a write despite the rights: policies, webhooks, quotas. Reported only when one does."""
        kinds = {Kind.SERVICE} if "create" in need.services else set()
        if "create" in need.writing:
            kinds |= {Kind.ENDPOINTS} if need.outputs != {Output.ENDPOINTSLICES} else set()
            kinds |= {Kind.ENDPOINT_SLICE} if need.outputs & {Output.ENDPOINTSLICES, Output.BOTH} else set()
        if found := refusals(client, namespace, self._options.owner, kinds):
            mend = "the admission policy, webhook or quota that the message names has to let the bridge's objects in"
            yield Probe(f"admission in {namespace}", FAILED, _some(found), mend)

    def _needs(self, rules: Sequence[Rule], namespace: str) -> _Needs:
        """What is done in a namespace ("" for all): by rules whose targets may be there, and for users' Services."""
        making = [r for r in rules if not namespace or "{" in r.to.namespace or r.to.namespace == namespace]
        asking = (s for s in self._asking() if namespace in ("", s.meta.namespace))
        requests = (request_of(service, self._own, self.loaded.annotated) for service in asking)
        filling = [request[0] for request in requests if isinstance(request, tuple)]
        ours = any(namespace in ("", target.namespace) for target in self.loaded.store.targets())
        outputs = frozenset(rule.to.output for rule in (*making, *filling)) or frozenset({Output.BOTH})
        if namespace in self._uncarried or (self._uncarried and not namespace):
            outputs |= {Output.BOTH}
        verbs = ("create", "patch") if self._options.policy is not Policy.SYNC else ("create", "patch", "delete")
        return _Needs(outputs, verbs if making else tuple(v for v in verbs if ours and v == "delete"), verbs)

    def _slices(self) -> Iterator[Probe]:
        """Whether readers of EndpointSlices see, in all slices of our Services together, what our objects say."""
        try:
            self.loaded.list_again(SERVICE_KINDS)
        except ForbiddenError as error:
            yield Probe("slices", WARNING, f"cannot tell whether traffic goes where it should: {error}")
            return
        seen = self._seen()
        if any(reason.code is not Code.FOREIGN_SLICE for _, reason in _deviations(seen)):
            self.loaded.read_slices_later()
            seen = self._seen()
        behind = [f"{t}: {reason}" for t, reason in _deviations(seen) if reason.code is not Code.FOREIGN_SLICE]
        foreign = [f"{target}: {reason}" for target, found in seen for reason in found.foreign]
        if behind:
            mend = "kube-controller-manager with endpointslice-mirroring-controller, or --output-kind both"
            yield Probe("slices", FAILED, _some(behind), mend)
        if foreign:
            mend = "docs/how-to.md, From pods to VMs"
            yield Probe("slices of others", WARNING, _some(foreign), mend)
        if seen and not behind and not foreign:
            count = len(seen)
            detail = (
                f"those of {count} Service{'s' if count != 1 else ''}, together, have what the bridge's objects say"
            )
            yield Probe("slices", OK, detail)

    def _routes(self, client: KubeClient, needs: Mapping[str, _Needs]) -> Iterator[Probe]:
        """Whether HTTPRoutes can be written, what gateways say against ours, and which requests two of them take."""
        for namespace, need in needs.items():
            name = f"HTTPRoutes in {namespace or 'all namespaces'}"
            if lacking := missing_verbs(client, GATEWAY_API, "httproutes", ("list", "watch", *need.writing), namespace):
                enough = lacking == ["watch httproutes"] and not self._options.leases
                detail = f"enough for bridge sync; bridge run also needs: {', '.join(lacking)}"
                detail = detail if enough else f"not allowed: {', '.join(lacking)}"
                yield Probe(name, WARNING if enough else FAILED, detail, ROUTES_ROLE)
            else:
                yield Probe(name, OK, "all that is needed")
        store = self.loaded.store
        list_routes(client, store, self.loaded.namespaces)
        unread = sorted({reason for reason in store.routes_unread.values() if "may not list" not in reason})
        if unread:
            detail, _, mend = unread[0].partition("; ")
            yield Probe("HTTPRoutes", FAILED, detail, mend)
        ours = [route for route in store.routes() if route.meta.owner == self._options.owner]
        refused = [f"{r.meta.namespace}/{r.meta.name}: {reason}" for r in ours for reason in r.refused]
        if refused:
            mend = "allowedRoutes of the Gateway's listener, and its hostname, have to let the HTTPRoute in"
            yield Probe("gateways", WARNING, _some(refused), mend)
        if shared := _shared(store.routes(), self._options.owner):
            mend = "the oldest of them takes these requests: give the newer ones another host name or path"
            yield Probe("host names", WARNING, _some(shared), mend)
        if ours and not refused and not shared:
            yield Probe("gateways", OK, f"say nothing against any of {len(ours)} HTTPRoutes")

    def _seen(self) -> list[tuple[Target, Seen]]:
        """What kube-proxy sees at each target of ours."""
        store = self.loaded.store
        found = ((target, standing(store.current(target), self._options.owner)) for target in sorted(store.targets()))
        return [(target, seen) for target, seen in found if seen is not None]

    def _mirroring(self, client: KubeClient, namespaces: Sequence[str]) -> Probe:
        """Whether the control plane copies Endpoints into slices, as a few of our existing ones show."""
        looked: list[Target] = []
        for namespace in namespaces:
            for target, groups in some_endpoints(client, namespace or None, self._options.owner, SHOWN):
                wanted = _ready(groups)
                if wanted and _mirrored(client, target, wanted, self._stop):
                    detail = f"seen at {target}: its {len(wanted)} ready endpoints are in the control plane's slices"
                    return Probe("mirroring", OK, detail)
                if wanted:
                    looked.append(target)
        if not looked:
            detail = "cannot be determined yet: these namespaces have no Endpoints of ours with ready addresses"
            return Probe("mirroring", WARNING, detail, "bridge check, once more after the first sync")
        detail = (
            f"the control plane has not copied {_some([str(t) for t in looked])} into EndpointSlices: kube-proxy "
            "sends nothing there"
        )
        return Probe(
            "mirroring", FAILED, detail,
            "start kube-controller-manager with endpointslice-mirroring-controller, or --output-kind both",
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Needs:
    """What is to be done in a namespace: the outputs, and the writing verbs on Services and on what carries those."""

    outputs: frozenset[Output]
    services: tuple[str, ...]
    writing: tuple[str, ...]


def _shared(routes: Sequence[CurrentRoute], owner: str) -> list[str]:
    """What several HTTPRoutes take at one gateway, at least one of them ours."""
    takers: dict[tuple[str, str], list[CurrentRoute]] = {}
    for found in routes:
        if (said := found.route) is None:  # not one that we would write
            continue
        for parent, hostname in itertools.product(said.parents, said.hostnames):
            gateway = f"{parent.namespace or found.meta.namespace}/{parent.name}"
            takers.setdefault((hostname + said.path, gateway), []).append(found)
    return [
        f"{what} at Gateway {gateway}: {', '.join(f'{r.meta.namespace}/{r.meta.name}' for r in taking)}"
        for (what, gateway), taking in sorted(takers.items())
        if len({(r.meta.namespace, r.meta.name) for r in taking}) > 1 and any(r.meta.owner == owner for r in taking)
    ]


def _deviations(seen: Sequence[tuple[Target, Seen]]) -> list[tuple[Target, Reason]]:
    return [(target, reason) for target, found in seen for reason in found.deviations]


def _is_filled_otherwise(service: CurrentService | None) -> bool:
    return service is not None and (service.has_selector or service.type == "ExternalName")


def _nothing(namespaces: Sequence[str] | None) -> Probe:
    """There is no rule, and no Service asks; where that was looked for, because others may ask elsewhere."""
    mend = "kubectl label service NAME consul-bridge/mirror=true, or rules in --config"
    if namespaces is None:
        where = "no Service in any namespace"
    else:
        where = f"no Service in {_some(namespaces) or 'a namespace that could be read'}"
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


def _namespaces(states: Mapping[str, NamespaceState]) -> Iterator[Probe]:
    for namespace, state in states.items():
        name = f"namespace {namespace}"
        match state:
            case NamespaceState.ABSENT:
                yield Probe(name, FAILED, "does not exist", f"kubectl create namespace {namespace}")
            case NamespaceState.BEING_DELETED:
                detail = "is being deleted: nothing can be created in it, and its objects go with it"
                yield Probe(name, FAILED, detail, f"kubectl get namespace {namespace} -o yaml shows what it waits for")
            case NamespaceState.EXISTS:
                yield Probe(name, OK, "exists")
            case NamespaceState.NOT_TOLD:
                yield Probe(name, OK, "may not be looked at (that is no harm)")


def _rights_in(client: KubeClient, namespace: str, needs: _Needs, user: str, *, daemon: bool) -> Probe:
    """Every verb that the work needs, in one namespace ("" for all of them); `user`: who we are to Kubernetes.

    `daemon`: it is known that `bridge run` is meant, which watches. Else a `bridge sync` may be, which only lists; then
    what the daemon needs beyond that is a warning. Missing rights to write Events are always a warning.
    """
    endpoints = () if needs.outputs == {Output.ENDPOINTSLICES} else needs.writing
    slices = needs.writing if needs.outputs & {Output.ENDPOINTSLICES, Output.BOTH} else ()

    def missing(resources: Sequence[tuple[str, str, Sequence[str]]]) -> list[str]:
        return [
            text for group, name, verbs in resources for text in missing_verbs(client, group, name, verbs, namespace)
        ]

    core, discovery = ("", "services"), ("discovery.k8s.io", "endpointslices")
    needed = missing(
        [(*core, ("list", *needs.services)), ("", "endpoints", ("list", *endpoints)), (*discovery, ("list",))]
    )
    sliced = missing([(*discovery, slices)])
    if Output.ENDPOINTSLICES in needs.outputs:  # there is nothing to go on with
        needed, sliced = needed + sliced, []
    watching = missing([(*core, ("watch",)), ("", "endpoints", ("watch",)), (*discovery, ("watch",))])
    events = missing([("events.k8s.io", "events", ("create", "patch"))])
    name = f"rights in {namespace}" if namespace else "rights in all namespaces"
    mend = how_to_grant(namespace, user)
    if needed or (daemon and watching):
        detail = f"not allowed: {', '.join([*needed, *sliced, *watching, *events])}"
        return Probe(name, FAILED, detail, f"apply {mend}")
    if watching:
        detail = f"enough for bridge sync; bridge run also needs: {', '.join([*sliced, *watching, *events])}"
        return Probe(name, WARNING, detail, f"for bridge run, apply {mend}")
    if sliced:
        detail = (
            f"enough for Endpoints alone, which the control plane mirrors, and {MIRROR_COSTS}; EndpointSlices of ours "
            f"also need: {', '.join([*sliced, *events])}"
        )
        return Probe(name, WARNING, detail, f"apply {mend}, or choose `output: endpoints` (--output-kind endpoints)")
    if events:
        detail = f"all that is needed, but no Events for kubectl describe: {', '.join(events)}"
        return Probe(name, WARNING, detail, f"apply {mend}")
    return Probe(name, OK, "all that is needed")


def _leases(client: KubeClient, user: str) -> Probe:
    """What a leader's election needs, in our own namespace: exactly what manifests/base/leases.yaml grants."""
    verbs = ("list", "watch", "create", "update", "delete")
    lacking = missing_verbs(client, "coordination.k8s.io", "leases", verbs, client.namespace)
    name = f"leader election in {client.namespace}"
    if lacking:
        mend = grant("bridge-leader", ",".join(verbs), "leases.coordination.k8s.io", client.namespace, user)
        return Probe(
            name, FAILED, f"not allowed: {', '.join(lacking)}", f"apply manifests/base/leases.yaml, or: {mend}"
        )
    return Probe(name, OK, "all that is needed")


def _running_bridge(client: KubeClient, user: str) -> Iterator[Probe]:
    """Whether `bridge sync` can see that a bridge of its owner id runs, to which it leaves removals."""
    if lacking := missing_verbs(client, "coordination.k8s.io", "leases", ("list",), client.namespace):
        detail = f"bridge sync cannot see whether a bridge of its owner id runs: not allowed: {', '.join(lacking)}"
        mend = grant("bridge-leases", "list", "leases.coordination.k8s.io", client.namespace, user)
        yield Probe(f"leader election in {client.namespace}", WARNING, detail, mend)


def _nodes(client: KubeClient, user: str) -> Probe:
    """Whether the cluster's nodes can be listed, where `nodeName` is asked for."""
    try:
        names = cluster_nodes(client, ("*",)).names
    except BridgeError as error:
        return Probe("nodes of the cluster", FAILED, str(error), grant("bridge-nodes", "list", "nodes", "", user))
    return Probe("nodes of the cluster", OK, f"{len(names)} known")


def _namespace_labels(client: KubeClient, user: str, *, daemon: bool) -> Probe:
    """Whether the namespaces' labels can be read and followed, where grants select by them. `daemon` as above."""
    name = "labels of namespaces"
    lacking = missing_verbs(client, "", "namespaces", ("list", "watch"), "")
    mend = (
        f"apply {ROLE} (chart: namespaceLabels), or: {grant('bridge-namespaces', 'list,watch', 'namespaces', '', user)}"
    )
    if "list namespaces" in lacking:
        detail = f"not allowed: {', '.join(lacking)}; grants with a namespace_selector cover nothing new"
        return Probe(name, FAILED, detail, mend)
    if lacking:
        detail = "enough for bridge sync; bridge run also needs: watch namespaces, else it looks every 10 s only"
        return Probe(name, FAILED if daemon else WARNING, detail, mend)
    return Probe(name, OK, f"{len(read_labels(client))} namespaces known")


def _ready(groups: Sequence[Group]) -> set[tuple[str, int]]:
    return {(e.address, p.number) for g in groups for e in g.endpoints if e.ready for p in g.ports or NO_PORTS}


def _mirrored(client: KubeClient, target: Target, wanted: set[tuple[str, int]], stop: threading.Event) -> bool:
    """Whether the control plane's slices have these endpoints, or as many as it mirrors; a moment is granted."""
    enough = min(len(wanted), MIRRORING_LIMIT)
    if len(_ready(mirrored(client, target)) & wanted) >= enough:
        return True
    stop.wait(MIRROR_SECONDS)
    return len(_ready(mirrored(client, target)) & wanted) >= enough
