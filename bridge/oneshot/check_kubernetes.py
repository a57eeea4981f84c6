"""The probes of `bridge check` that ask the API server: versions, rights, admission, mirroring, HTTPRoutes."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bridge.core import select
from bridge.core.annotated import request_of
from bridge.core.mirroring import MIRROR_COSTS, MIRRORING_LIMIT
from bridge.core.model import (
    NO_PORTS,
    SERVICE_KINDS,
    CurrentRoute,
    CurrentService,
    Group,
    Kind,
    Output,
    Policy,
    Rule,
    Target,
)
from bridge.core.reasons import Code, Reason
from bridge.core.slice_union import Seen, compare_existing
from bridge.errors import BridgeError, ForbiddenError
from bridge.kube.admission import refusals
from bridge.kube.client import KubeClient
from bridge.kube.faults import remedy
from bridge.kube.gateway import ROLE as ROUTES_ROLE
from bridge.kube.identity import who_am_i
from bridge.kube.mirrored import mirrored, some_endpoints
from bridge.kube.namespaces import ROLE, read_labels
from bridge.kube.nodes import cluster_nodes
from bridge.kube.objects import GATEWAY_API
from bridge.kube.permissions import NamespaceState, can_i, namespace_states
from bridge.kube.rbac import grant
from bridge.kube.reads import list_routes
from bridge.oneshot.check_consul import ConsulProbes
from bridge.oneshot.inputs import MIRROR_SECONDS, Loaded
from bridge.oneshot.probe import FAILED, OK, SHOWN, WARNING, Probe, some
from bridge.oneshot.rights import how_to_grant, missing_verbs
from bridge.oneshot.versions import version_probe
from bridge.pipeline.scope import namespaces_of

LEAST_KUBERNETES = (1, 22)
"""discovery.k8s.io/v1 came with 1.21, server-side apply with 1.22."""


class KubernetesProbes:
    """Asks for what the work needs: the rules', and what `consul` found that users ask for."""

    def __init__(self, loaded: Loaded, consul: ConsulProbes) -> None:
        self._loaded, self._consul = loaded, consul

    def all(self, rules: Sequence[Rule]) -> Iterator[Probe]:
        """From the connection to whether traffic goes where our objects say."""
        try:
            client = KubeClient(self._loaded.kube)
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
        namespaces = namespaces_of(rules, self._loaded.kube.namespaces, client.namespace)
        needs = {name: self._needs(rules, name) for name in (namespaces if namespaces is not None else ("",))}
        try:
            found = who_am_i(client)
            user = found.name if found is not None else ""
            states = namespace_states(client, namespaces or ())
            yield from _namespaces(states)
            refusing = {NamespaceState.ABSENT, NamespaceState.BEING_DELETED}
            allowed = []
            for namespace, need in needs.items():
                probe = _rights_in(client, namespace, need, user, daemon=self._loaded.options.leases)
                mirrored_here = Output.ENDPOINTS in need.outputs or "Endpoints alone" in probe.detail
                allowed += [namespace] if probe.state != FAILED and mirrored_here else []
                yield probe
                if probe.state != FAILED and namespace and states[namespace] not in refusing:
                    yield from self._admission(client, namespace, need)
            if self._loaded.options.leases:
                yield _leases(client, user)
            else:
                yield from _running_bridge(client, user)
            if "*" in self._loaded.options.cluster_nodes:
                yield _nodes(client, user)
            if self._loaded.annotated.grants != ():
                yield from self._node_addresses(client)
            if self._loaded.annotated.asks_for_labels:
                yield _namespace_labels(client, user, daemon=self._loaded.options.leases)
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
        elif self._loaded.serves_several and not self._loaded.annotated.bounds.allow_cidrs:
            detail = "not known (list nodes is not allowed): annotated Services may lead to them"
            mend = "guard.allow_cidrs without the nodes' network, or apply manifests/components/node-addresses (chart: "
            yield Probe(name, WARNING, detail, f"{mend}nodeAddresses)")

    def _admission(self, client: KubeClient, namespace: str, need: _Needs) -> Iterator[Probe]:
        """What may refuse a write despite the rights: policies, webhooks, quotas. Reported only when one does."""
        kinds = {Kind.SERVICE} if "create" in need.services else set()
        if "create" in need.writing:
            kinds |= {Kind.ENDPOINTS} if need.outputs != {Output.ENDPOINTSLICES} else set()
            kinds |= {Kind.ENDPOINT_SLICE} if need.outputs & {Output.ENDPOINTSLICES, Output.BOTH} else set()
        if found := refusals(client, namespace, self._loaded.options.owner, kinds):
            mend = "the admission policy, webhook or quota that the message names has to let the bridge's objects in"
            yield Probe(f"admission in {namespace}", FAILED, some(found), mend)

    def _needs(self, rules: Sequence[Rule], namespace: str) -> _Needs:
        """What is done in a namespace ("" for all): by rules whose targets may be there, and for users' Services."""
        making = [r for r in rules if not namespace or "{" in r.to.namespace or r.to.namespace == namespace]
        asking = (s for s in self._asking() if namespace in ("", s.meta.namespace))
        requests = (request_of(service, self._consul.own, self._loaded.annotated) for service in asking)
        filling = [request[0] for request in requests if isinstance(request, tuple)]
        ours = any(namespace in ("", target.namespace) for target in self._loaded.store.targets())
        outputs = frozenset(rule.to.output for rule in (*making, *filling)) or frozenset({Output.BOTH})
        if namespace in self._consul.uncarried or (self._consul.uncarried and not namespace):
            outputs |= {Output.BOTH}
        verbs = ("create", "patch") if self._loaded.options.policy is not Policy.SYNC else ("create", "patch", "delete")
        return _Needs(outputs, verbs if making else tuple(v for v in verbs if ours and v == "delete"), verbs)

    def _slices(self) -> Iterator[Probe]:
        """Whether readers of EndpointSlices see, in all slices of our Services together, what our objects say."""
        try:
            self._loaded.list_again(SERVICE_KINDS)
        except ForbiddenError as error:
            yield Probe("slices", WARNING, f"cannot tell whether traffic goes where it should: {error}")
            return
        seen = self._seen()
        if any(reason.code is not Code.FOREIGN_SLICE for _, reason in _deviations(seen)):
            self._loaded.read_slices_later()
            seen = self._seen()
        behind = [f"{t}: {reason}" for t, reason in _deviations(seen) if reason.code is not Code.FOREIGN_SLICE]
        foreign = [f"{target}: {reason}" for target, found in seen for reason in found.foreign]
        if behind:
            mend = "kube-controller-manager with endpointslice-mirroring-controller, or --output-kind both"
            yield Probe("slices", FAILED, some(behind), mend)
        if foreign:
            mend = "docs/how-to.md, From pods to VMs"
            yield Probe("slices of others", WARNING, some(foreign), mend)
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
                enough = lacking == ["watch httproutes"] and not self._loaded.options.leases
                detail = f"enough for bridge sync; bridge run also needs: {', '.join(lacking)}"
                detail = detail if enough else f"not allowed: {', '.join(lacking)}"
                yield Probe(name, WARNING if enough else FAILED, detail, ROUTES_ROLE)
            else:
                yield Probe(name, OK, "all that is needed")
        store = self._loaded.store
        list_routes(client, store, self._loaded.namespaces)
        unread = sorted({reason for reason in store.routes_unread.values() if "may not list" not in reason})
        if unread:
            detail, _, mend = unread[0].partition("; ")
            yield Probe("HTTPRoutes", FAILED, detail, mend)
        ours = [route for route in store.routes() if route.meta.owner == self._loaded.options.owner]
        refused = [f"{r.meta.namespace}/{r.meta.name}: {reason}" for r in ours for reason in r.refused]
        if refused:
            mend = "allowedRoutes of the Gateway's listener, and its hostname, have to let the HTTPRoute in"
            yield Probe("gateways", WARNING, some(refused), mend)
        if shared := _shared(store.routes(), self._loaded.options.owner):
            mend = "the oldest of them takes these requests: give the newer ones another host name or path"
            yield Probe("host names", WARNING, some(shared), mend)
        if ours and not refused and not shared:
            yield Probe("gateways", OK, f"say nothing against any of {len(ours)} HTTPRoutes")

    def _seen(self) -> list[tuple[Target, Seen]]:
        """What kube-proxy sees at each target of ours."""
        store = self._loaded.store
        found = (
            (target, compare_existing(store.current(target), self._loaded.options.owner))
            for target in sorted(store.targets())
        )
        return [(target, seen) for target, seen in found if seen is not None]

    def _mirroring(self, client: KubeClient, namespaces: Sequence[str]) -> Probe:
        """Whether the control plane copies Endpoints into slices, as a few of our existing ones show."""
        looked: list[Target] = []
        for namespace in namespaces:
            for target, groups in some_endpoints(client, namespace or None, self._loaded.options.owner, SHOWN):
                wanted = _ready(groups)
                if wanted and _mirrored(client, target, wanted, self._loaded.stop):
                    detail = f"seen at {target}: its {len(wanted)} ready endpoints are in the control plane's slices"
                    return Probe("mirroring", OK, detail)
                if wanted:
                    looked.append(target)
        if not looked:
            detail = "cannot be determined yet: these namespaces have no Endpoints of ours with ready addresses"
            return Probe("mirroring", WARNING, detail, "bridge check, once more after the first sync")
        detail = (
            f"the control plane has not copied {some([str(t) for t in looked])} into EndpointSlices: kube-proxy "
            "sends nothing there"
        )
        return Probe(
            "mirroring", FAILED, detail,
            "start kube-controller-manager with endpointslice-mirroring-controller, or --output-kind both",
        )  # fmt: skip

    def _asking(self) -> list[CurrentService]:
        """Users' Services that ask to be filled."""
        return [
            s for s in self._loaded.store.annotated_services() if request_of(s, "", self._loaded.annotated) is not None
        ]


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
