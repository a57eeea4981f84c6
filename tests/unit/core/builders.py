"""Instances, rules and objects for tests of the rules, and a Kubernetes that is a value.

`Cluster` does with a plan what the API server and its mirroring controller would do, in the worst order that they may:
a mirror goes at once, and comes only later. So a test can look at what traffic sees after every single write.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bridge.core import normalize
from bridge.core.mirroring import Refused, slices_of
from bridge.core.model import (
    USUAL_TRAFFIC,
    Action,
    Adopt,
    Change,
    Current,
    CurrentEndpoints,
    CurrentRoute,
    CurrentService,
    CurrentSlice,
    Destination,
    Endpoint,
    EndpointsBody,
    Family,
    Group,
    Instance,
    InstanceRules,
    Kind,
    Known,
    Meta,
    Mirror,
    NamedPort,
    Output,
    Pairs,
    Plan,
    Policy,
    Port,
    Query,
    RouteBody,
    Rule,
    ServiceBody,
    SliceBody,
    Status,
    Target,
)
from bridge.core.ownership import SERVICE_SYNC, SKIP_MIRROR, joined, ownership_labels
from bridge.core.plan import plan
from bridge.core.reasons import Code, Reason
from bridge.core.slice_union import MIRRORING_CONTROLLER
from bridge.core.translate import Translation, translate

OWNER = "default"
TARGET = Target("default", "radosgw")
QUERY = Query("dc1", "radosgw")
Seen = tuple[str, str, int, str]
"""What kube-proxy sends traffic to: address, and name, number and protocol of the port."""


def said(text: str) -> Reason:
    """A reason that says this, where a test is not about its code: reasons that say the same are equal."""
    return Reason(Code.OTHER, said=text)


def instance(address: str = "10.0.0.1", port: int = 8080, status: Status = Status.PASSING, **more: object) -> Instance:
    """An instance on a node of its own."""
    given: dict[str, object] = {
        "node": f"vm-{address}",
        "id": f"id-{address}-{port}",
        "node_address": "10.9.9.9",
        **more,
    }
    return Instance(address=address, port=port, status=status, **given)  # type: ignore[arg-type]


def instances(count: int, port: int = 8080, status: Status = Status.PASSING) -> tuple[Instance, ...]:
    """`count` instances, 10.0.0.1 and following."""
    return tuple(instance(f"10.0.{n >> 8}.{n & 255}", port, status) for n in range(1, count + 1))


def named(*ports: tuple[str, int], default: str = "") -> tuple[NamedPort, ...]:
    """Ports of a multi-port service."""
    return tuple(sorted(NamedPort(name, number, name == default) for name, number in ports))


def rule(**to: object) -> Rule:
    """A rule that differs in its destination from one into Endpoints alone, which leaves fewer objects to tell of."""
    return Rule(to=Destination(**{"output": Output.ENDPOINTS, **to}))  # type: ignore[arg-type]


def picky(**rules: object) -> Rule:
    """A rule that differs from that in what it makes of instances."""
    return Rule(to=Destination(output=Output.ENDPOINTS), instances=InstanceRules(**rules))  # type: ignore[arg-type]


def ready(*addresses: str) -> tuple[Endpoint, ...]:
    """Ready endpoints."""
    return tuple(Endpoint(a, ready=True) for a in addresses)


def down(*addresses: str) -> tuple[Endpoint, ...]:
    """Endpoints that are neither ready nor serving."""
    return tuple(Endpoint(a, ready=False, serving=False) for a in addresses)


def group(*endpoints: Endpoint, ports: tuple[Port, ...] = (Port("", 8080),), family: Family = Family.IPV4) -> Group:
    """A group."""
    return Group(family, ports, endpoints)


def our_marks(*pairs: Pairs) -> Pairs:
    """What the decoder takes for marks among an object's labels and annotations."""
    return tuple(sorted((key, value) for some in pairs for key, value in some if key.startswith("consul-bridge/")))


def meta(kind: Kind, name: str = "radosgw", owner: str | None = OWNER, **more: object) -> Meta:
    """An object's meta, with the marks that we would put on it."""
    labels, annotations = ownership_labels(owner, (QUERY,)) if owner is not None else ((), ())
    if kind is Kind.SERVICE and owner is not None:
        annotations = joined(((SERVICE_SYNC, "false"),), annotations)
    given: dict[str, object] = {
        "namespace": "default",
        "uid": f"{kind}-{name}",
        "resource_version": "7",
        "labels": labels,
        "annotations": annotations,
        "ownership": our_marks(labels, annotations),
        **more,
    }
    return Meta(kind=kind, name=name, owner=owner, **given)  # type: ignore[arg-type]


def service(owner: str | None = OWNER, ports: tuple[Port, ...] = (Port("", 8080),), **more: object) -> CurrentService:
    """A Service that exists; `meta_...` goes to its meta."""
    about: dict[str, Any] = {k.removeprefix("meta_"): v for k, v in more.items() if k.startswith("meta_")}
    rest: dict[str, object] = {
        "type": "ClusterIP",
        "headless": False,
        "has_selector": False,
        "families": (Family.IPV4,),
        "target_ports": tuple(p.number for p in ports),
        **{k: v for k, v in more.items() if not k.startswith("meta_")},
    }
    return CurrentService(meta=meta(Kind.SERVICE, owner=owner, **about), ports=ports, **rest)  # type: ignore[arg-type]


def endpoints(*groups: Group, owner: str | None = OWNER, **about: Any) -> CurrentEndpoints:
    """An Endpoints object that exists."""
    return CurrentEndpoints(meta=meta(Kind.ENDPOINTS, owner=owner, **about), groups=groups)


def slice_of(name: str, content: Group, owner: str | None = OWNER, **about: Any) -> CurrentSlice:
    """A slice that exists."""
    return CurrentSlice(meta=meta(Kind.ENDPOINT_SLICE, name, owner=owner, **about), service="radosgw", group=content)


def translated(
    found: Iterable[Instance], with_rule: Rule | None = None, current: Current | None = None, **more: object
) -> Translation:
    """The translation of one service."""
    known = Known(tuple(found))
    return translate(TARGET, [(with_rule or rule(), QUERY, known)], current, **more)  # type: ignore[arg-type]


def mirror_of(found: Iterable[Instance], with_rule: Rule | None = None, current: Current | None = None) -> Mirror:
    """The mirror of one service, which must have one."""
    mirror = translated(found, with_rule, current).mirror
    assert mirror is not None
    return mirror


def planned(desired: Mirror | None, current: Current, policy: Policy = Policy.SYNC, adopt: Adopt = Adopt.NEVER) -> Plan:
    """The plan for the target that all of these tests have."""
    return plan(current.target, desired, current, owner=OWNER, policy=policy, adopt=adopt)


def verbs(found: Plan) -> list[str]:
    """The writes of a plan, in order, for people."""
    return [f"{c.action} {c.kind}" for c in found.writes]


def pairs(groups: Iterable[Group]) -> set[Seen]:
    """What is ready, on each of its ports."""
    return {(e.address, p.name, p.number, p.protocol) for g in groups for e in g.endpoints if e.ready for p in g.ports}


@dataclass
class Cluster:
    """One target as Kubernetes holds it. `version` counts writes; `seen` is what traffic saw after each of them."""

    target: Target = TARGET
    service: CurrentService | None = None
    endpoints: CurrentEndpoints | None = None
    slices: dict[str, CurrentSlice] = field(default_factory=dict)
    mirrored: tuple[Group, ...] = ()
    others: tuple[CurrentSlice, ...] = ()
    route: CurrentRoute | Reason | None = None
    version: int = 1
    seen: list[set[Seen]] = field(default_factory=list)

    def current(self, mirrored: bool = True) -> Current:
        """What the bridge sees; `mirrored`: it has looked at what the control plane made."""
        return Current(
            self.target,
            self.service,
            self.endpoints,
            tuple(self.slices.values()),
            self.mirrored if mirrored else None,
            (*self.others, *self._mirror()) if self.others else None,
            self.route,
        )

    def _mirror(self) -> tuple[CurrentSlice, ...]:
        """The slices that the control plane made."""
        return tuple(
            replace(slice_of(f"mirror-{n}", group, owner=None), manager=MIRRORING_CONTROLLER)
            for n, group in enumerate(self.mirrored)
        )

    def apply(self, found: Plan) -> None:
        """Do what the plan says, one write after the other, as strictly as the API server."""
        for change in found.writes:
            self.write(change)

    def write(self, change: Change) -> None:
        """Do one change, as strictly as the API server."""
        self._write(change)
        self._unmirror()
        self.seen.append(self.traffic())

    def mirror(self) -> None:
        """The control plane catches up."""
        if self.endpoints is not None and self.service is not None and not self._skips():
            found = slices_of(self.endpoints.groups)
            if not isinstance(found, Refused):  # else it stays as it is, for as long as that is so
                self.mirrored = found

    def traffic(self) -> set[Seen]:
        """What kube-proxy sends traffic to: what is ready in any slice."""
        return pairs((*self.mirrored, *(s.group for s in self.slices.values())))

    def _skips(self) -> bool:
        return self.endpoints is not None and (SKIP_MIRROR, "true") in self.endpoints.meta.labels

    def _unmirror(self) -> None:
        if self.endpoints is None or self.service is None or self._skips():
            self.mirrored = ()
        else:
            wanted = pairs(self.endpoints.groups)
            self.mirrored = tuple(
                replace(g, endpoints=tuple(e for e in g.endpoints if pairs([replace(g, endpoints=(e,))]) & wanted))
                for g in self.mirrored
            )

    def _write(self, change: Change) -> None:
        existing = self.find(change)
        self.version += 1
        if change.action is Action.CREATE:
            assert existing is None, f"{change.name} is there already"
        else:
            assert existing is not None
            assert change.existing is not None
            assert (existing.uid, existing.resource_version) == (change.existing.uid, change.existing.resource_version)
        if change.action is Action.DELETE:
            self._put(change, None)
            return
        assert change.body is not None
        about = Meta(
            kind=change.kind,
            namespace=change.target.namespace,
            name=change.name,
            uid=existing.uid if existing is not None else f"uid-{self.version}",
            resource_version=str(self.version),
            owner=dict(change.body.labels)["consul-bridge/owner"],
            labels=change.body.labels,
            annotations=change.body.annotations,
            ownership=our_marks(change.body.labels, change.body.annotations),
        )
        self._put(change, about)

    def find(self, change: Change) -> Meta | None:
        """What exists under a change's name."""
        found: CurrentService | CurrentEndpoints | CurrentSlice | CurrentRoute | Reason | None = {
            Kind.SERVICE: self.service,
            Kind.ENDPOINTS: self.endpoints,
            Kind.ENDPOINT_SLICE: self.slices.get(change.name),
            Kind.HTTP_ROUTE: self.route,
        }[change.kind]
        assert not isinstance(found, Reason), "no one can tell what is there"
        return None if found is None else found.meta

    def _put(self, change: Change, about: Meta | None) -> None:
        body = change.body
        match change.kind:
            case Kind.SERVICE:
                assert about is None or isinstance(body, ServiceBody)
                self.service = None if about is None else self._stored_service(body, about)
                if about is None:
                    self.endpoints = None
            case Kind.ENDPOINTS:
                if about is None:
                    self.endpoints = None
                else:
                    assert self.service is not None, "the control plane deletes Endpoints without a Service"
                    assert isinstance(body, EndpointsBody)
                    assert all(g.endpoints for g in body.groups), "422: an empty subset"
                    assert body.groups == normalize.without_conditions(body.groups), "Endpoints cannot hold this"
                    self.endpoints = CurrentEndpoints(about, body.groups)
            case Kind.ENDPOINT_SLICE:
                if about is None:
                    del self.slices[change.name]
                else:
                    assert isinstance(body, SliceBody)
                    assert len(body.group.endpoints) <= 1000, "422: too many endpoints"
                    self.slices[change.name] = CurrentSlice(about, body.service, body.group)
            case Kind.HTTP_ROUTE:
                assert about is None or (isinstance(body, RouteBody) and self.service is not None)
                self.route = CurrentRoute(about, body.route) if isinstance(body, RouteBody) and about else None

    def _stored_service(self, body: object, about: Meta) -> CurrentService:
        assert isinstance(body, ServiceBody)
        assert body.headless or body.ports, "422: a Service without ports"
        assert len({p.name for p in body.ports}) == len(body.ports), "422: two ports of one name"
        assert len({(p.number, p.protocol) for p in body.ports}) == len(body.ports), "500: two ports of one number"
        assert len(body.ports) < 2 or all(p.name for p in body.ports), "422: ports without names"
        before = self.service
        families = body.families[:1] if len(body.families) == 1 else tuple(Family)
        if not body.families:
            families = (Family.IPV4,)
        if before is not None and before.families:
            assert not body.families or body.families[0] == before.families[0], "422: primary family changed"
            families = (
                before.families if len(body.families) < 2 else tuple(dict.fromkeys((*before.families, *families)))
            )
        return CurrentService(
            meta=about,
            type=body.type,
            headless=body.headless,
            has_selector=False,
            ports=body.ports,
            target_ports=body.target_ports,
            families=families,
            family_policy=body.family_policy,
            traffic=before.traffic if before is not None else USUAL_TRAFFIC,
            applied=("type",) if body.sets_type else (),
        )


def settle(cluster: Cluster, found: Sequence[Instance], with_rule: Rule, passes: int = 5) -> list[Plan]:
    """Plan and apply until there is nothing to do, the control plane catching up in between."""
    plans = []
    for _ in range(passes):
        current = cluster.current()
        plans.append(planned(translated(found, with_rule, current).mirror, current))
        cluster.apply(plans[-1])
        cluster.mirror()
        if not plans[-1].writes:
            return plans
    raise AssertionError(f"no rest after {passes} passes: {verbs(plans[-1])}")


OUTPUTS = tuple(Output)
