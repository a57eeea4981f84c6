"""Runs the scenarios in *.yaml: the rules as a user would tell them, from Consul's instances to what is written.

What a scenario does not list under `expect` (skipped, conflicts, held, warnings) must not happen. What follows under
`then` happens `after seconds` later, everything else being as it was, maybe `restarted: true`: seen by a bridge
that was started again. With `dies after writes: 1` another process makes the pass, and dies after one write at each
target; with `beside a running bridge: true` a command does that sees a running bridge. How lines are read:

- `vm1 10.0.0.1:8080 passing`: an instance; `vm1..vm12 10.0.0.1..12:8080 passing`: twelve of them. Behind its health:
  `kind:connect-proxy`, `tag:s3`, `meta:env=prod`, `zone:a` (of its node), `lan:192.168.0.1` (a tagged address),
  `http=8080` (a named port)
- `Service default/web of another owner, with a selector`: an object that exists already; further manners are
  `an alias`, `ports http 80 and dns 53/UDP -> 5353`, `filled from radosgw` (the annotation of who asks for it),
  `with hostnames from node`, `headless`, `without ports`, `publishing what is not ready`, `distributing PreferSameZone`
- `EndpointSlice default/web-x7k2p of endpointslice-controller.k8s.io, with 10.9.0.1:8080 ready`: a slice of the
  Service `web` that no bridge writes, `kept` where a user wants it. Then `out_of_sync` says in what all slices together
  differ from what is wanted, `notes` what `explain` tells besides
- `10.0.0.1:8080 ready`: an endpoint, `not ready` ones that are drained say `, still serving, terminating`; those that
  are published all the same `ready, not serving`; a hint says `, for zone a`, a datacenter as zone `, in zone fra`, a
  name in DNS `, hostname vm1`
- `HTTPRoute default/web of another owner`: one that exists already; `HTTPRoutes cannot be listed: why` is what is
  known while there is no such kind, or no right. Then `routes` says what each of ours is, in one line
- `default/radosgw` under `held`: that it is held, for whatever reason
- `web@fra` under `consul`: the service `web` of the datacenter fra, which is listed where a rule names it. Those that
  are `unreachable` answer nothing; `index went backwards` may name one. `active` says which one's instances a target
  has, and which one's it is to have: `fra, then ams`
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.core import annotated
from bridge.core.guard import Guard
from bridge.core.model import (
    Adopt,
    Amount,
    Change,
    Combine,
    Current,
    CurrentEndpoints,
    CurrentRoute,
    CurrentService,
    CurrentSlice,
    Destination,
    Endpoint,
    Failover,
    Family,
    Group,
    Instance,
    InstanceRules,
    Kind,
    Known,
    Listing,
    Meta,
    NamedPort,
    Output,
    Pairs,
    Parent,
    Plan,
    Policy,
    Port,
    RouteRule,
    Rule,
    Scope,
    Skipped,
    Status,
    TaggedAddress,
    Target,
    TrafficPolicy,
    Treatment,
    Unknown,
)
from bridge.core.ownership import ACTIVE, KEEP, PENDING
from bridge.core.plan import scope_of
from bridge.core.reasons import Code, Reason
from bridge.core.reconcile import PlanOptions, names_at
from bridge.core.state import ConsulState
from bridge.pipeline.deviation_window import DeviationWindow
from bridge.pipeline.planner import Planner, apply_plan
from tests.support.options import guard_settings
from tests.unit.core.builders import OWNER, Cluster

DC, OTHERS = "dc1", ("ams", "fra")

SCENARIOS: Mapping[str, Mapping[str, Any]] = {
    f"{path.stem}: {scenario['name']}": scenario
    for path in sorted(Path(__file__).parent.glob("*.yaml"))
    for scenario in yaml.safe_load(path.read_text())
}


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_scenario(scenario: Mapping[str, Any]) -> None:
    """What is given leads to what is expected, and a second pass has nothing left to do."""
    play(scenario)


def play(scenario: Mapping[str, Any]) -> None:
    """Run one scenario; raises AssertionError where something else happens than it tells."""
    assert set(scenario) <= {"name", "given", "expect", "then"}
    given = scenario["given"]
    assert set(given) <= {
        "rules", "consul", "consul before", "objects", "adopt", "policy", "force", "index went backwards",
        "hold release", "unreachable", "beside a running bridge",
    }  # fmt: skip
    stage = Stage(Adopt(given.get("adopt", "never")), given.get("hold release"))
    if "consul before" in given:
        stage.change({"rules": given.get("rules", [{}])})
        stage.make_a_pass(given["consul before"], Policy.SYNC, force=True)
        stage.now += 3600.0
    _check(stage, {"rules": [{}], **given}, scenario["expect"], Policy(given.get("policy", "sync")))
    catalog = given["consul"]
    for step in scenario.get("then", ()):
        assert set(step) <= {
            "after seconds", "restarted", "rules", "consul", "objects", "force", "index went backwards", "expect",
            "dies after writes", "unreachable", "beside a running bridge",
        }  # fmt: skip
        stage.now += step.get("after seconds", 0)
        if step.get("restarted"):
            stage.restart()
        catalog = step.get("consul", catalog)
        _check(stage, {**step, "consul": catalog}, step["expect"], Policy(given.get("policy", "sync")))


def _check(stage: Stage, given: Mapping[str, Any], expect: Mapping[str, Any], policy: Policy) -> None:
    stage.change(given)
    force = given.get("force", False)
    writes, running = given.get("dies after writes"), "one" if given.get("beside a running bridge") else ""
    plans = stage.make_a_pass(given["consul"], policy, force=force, writes=writes, running=running)
    held = [f"{h.target}: {h.reason}" for p in plans for h in p.held]
    seen: dict[str, Any] = {
        "changes": [_change(c.action, c.kind, p.target, c.reason) for p in plans for c in p.writes],
        "skipped": sorted(_skipped(s) for s in {s for p in plans for s in p.skipped} | stage.unmappable),
        "conflicts": [f"{c.kind} {c.target}: {c.reason}" for p in plans for c in p.conflicts],
        "held": held if any(": " in text for text in expect.get("held", ())) else [h.split(": ")[0] for h in held],
        "warnings": [w for p in plans for w in p.warnings],
        "out_of_sync": [d for p in plans for d in p.deviations],
    }
    if "notes" in expect:
        seen["notes"] = [n for p in plans for n in p.notes]
    if "endpoints" in expect:
        seen["endpoints"] = {str(t): stage.endpoints(t) for t in sorted(stage.store.clusters) if stage.stands(t)}
    if "active" in expect:
        seen["active"] = {t: stage.active(t) for t in expect["active"]}
    if "routes" in expect:
        seen["routes"] = stage.routes()
    if "service ports" in expect:
        seen["service ports"] = {t: stage.service_ports(t) for t in expect["service ports"]}
    wanted = {"skipped": [], "conflicts": [], "held": [], "warnings": [], "out_of_sync": [], **expect}
    if "endpoints" in wanted:
        wanted["endpoints"] = {
            t: [e for text in texts for e in _several(text)] for t, texts in wanted["endpoints"].items()
        }
    assert seen == wanted
    if writes is None and not any(p.unmirrored for p in plans):
        again = stage.make_a_pass(given["consul"], policy, force=force, running=running)
        assert [c for p in again for c in p.writes] == []


class Stage:
    """Consul's catalog on one side, Kubernetes as a value on the other, and between them what every command runs.

    Nothing of the way from a listing to a change is repeated here: the Consul state, the planner and the guard are the
    bridge's own, and what a test sets up is what they read.
    """

    def __init__(self, adopt: Adopt, hold_release_seconds: float | None) -> None:
        self.adopt = adopt
        self.settings = guard_settings(hold_release_seconds=hold_release_seconds)
        self.guard = Guard(self.settings)
        self.consul_state = ConsulState((), (DC, *OTHERS), grace_seconds=0.0, follows=True)
        self.store = Objects()
        self.now = 0.0
        self.unreachable: Sequence[str] = ()

    @property
    def unmappable(self) -> set[Skipped]:
        """Services whose name cannot be brought into Kubernetes' form."""
        return set(self.consul_state.unmappable())

    def restart(self) -> None:
        """Another process takes over: what is known of Consul and what was held is gone, Kubernetes is the memory."""
        self.consul_state = ConsulState(
            self.consul_state.rules, self.consul_state.datacenters, grace_seconds=0.0, follows=True
        )
        self.guard = Guard(self.settings)

    def change(self, given: Mapping[str, Any]) -> None:
        """What happened before the next pass: other rules, objects of other people, a rebuilt Consul."""
        if "rules" in given:
            self.consul_state.replace_rules([_rule(r) for r in given["rules"]], self.now)
        for text in given.get("objects", ()):
            self.place(text)
        if datacenter := given.get("index went backwards"):
            self.guard.rebuilt(DC if datacenter is True else datacenter, self.now)
        self.unreachable = given.get("unreachable", ())

    def make_a_pass(
        self,
        catalog: Mapping[str, list[str]],
        policy: Policy,
        *,
        force: bool,
        writes: int | None = None,
        running: str = "",
    ) -> list[Plan]:
        """Read both sides, plan all targets together, write what may be written.

        With `writes` another process makes it, and dies after so many of them at each target; one that sees a `running`
        bridge makes it as well.
        """
        self._read_kubernetes()
        self._read_consul(
            {
                s: [_instance(t, s.partition("@")[0]) for line in lines for t in _several(line)]
                for s, lines in catalog.items()
            }
        )
        self.guard.due(self.now, self.store.ready_in)
        planner = Planner(
            consul_state=self.consul_state,
            store=self.store,
            guard=self.guard if writes is None and not running else Guard(self.settings, running),
            options=PlanOptions(owner=OWNER, policy=policy, adopt=self.adopt, force=force),
            clock=lambda: self.now,
            resolve=lambda _target, names: dict.fromkeys(names, ()),
            mirrored=lambda target: self.store.cluster(target).mirrored,
            time_of_day=lambda: 1.7e9 + self.now,
            window=DeviationWindow(lambda: self.now, 0.0),
        )
        plans = [replace(p, changes=p.writes[:writes]) for p in planner.plan_all(self.consul_state.targets())]
        for plan in plans:
            cluster = self.store.cluster(plan.target)
            outcome = apply_plan(plan, cluster.write)
            assert outcome.failures == ()
            cluster.mirror()
            self.guard.applied(plan.target)
            self._recall(plan.target)
        return plans

    def _read_kubernetes(self) -> None:
        for target in tuple(self.store.clusters):
            self._recall(target)
            current = self.store.current(target)
            request = annotated.request_at(current, DC, annotated.USUAL, names_at(current))
            if request is None:
                self.consul_state.unannotate(target, self.now)
            elif isinstance(request, annotated.Refusal):
                self.consul_state.refuse(target, request, self.now)
            elif self.consul_state.annotation(target) != request:
                self.consul_state.annotate(target, *request, self.now)

    def _recall(self, target: Target) -> None:
        """Where the objects at a target came from."""
        if names := names_at(self.store.current(target)):
            self.consul_state.record_owned(target, names, self.now)
        else:
            self.consul_state.drop_owned(target, self.now)
            self.guard.forget(target)

    def _read_consul(self, catalog: Mapping[str, Sequence[Instance]]) -> None:
        named = {dc for rule in self.consul_state.rules for dc in rule.datacenters}
        for datacenter in (DC, *(dc for dc in OTHERS if dc in named)):
            at = "" if datacenter == DC else f"@{datacenter}"
            listing = {
                service.removesuffix(at): frozenset(tag for i in found for tag in i.tags)
                for service, found in catalog.items()
                if service.partition("@")[1:] == (at[:1], at[1:])
            }
            lost = datacenter in self.unreachable
            self.consul_state.on_listing(
                datacenter, Unknown("no answer", unreachable=True) if lost else Listing(listing), self.now
            )
        for query in self.consul_state.wanted():
            name = query.service if query.datacenter == DC else f"{query.service}@{query.datacenter}"
            if query.datacenter not in self.unreachable:
                self.consul_state.on_view(query, Known(tuple(catalog.get(name, ()))), self.now)
        self.consul_state.expire(self.now)

    def _place_slice(self, first: str, manners: Sequence[str]) -> None:
        """A slice of another owner's; its name begins with the Service's. `gone` takes it away again."""
        found = re.fullmatch(r"EndpointSlice (\S+)/((\S+)-\w+) of (.+?)", first)
        assert found, first
        namespace, name, service, manager = found.groups()
        cluster = self.store.cluster(Target(namespace, service))
        cluster.others = tuple(s for s in cluster.others if s.meta.name != name)
        if manners == ["gone"]:
            return
        endpoints, ports = [], set()
        for text in (m for m in manners if m != "kept"):
            at = re.fullmatch(r"with (\S+):(\d+) (ready|not ready)", text)
            assert at, text
            ready = at[3] == "ready"
            endpoints.append(Endpoint(at[1], ready, serving=ready))
            ports.add(Port("", int(at[2])))
        meta = Meta(kind=Kind.ENDPOINT_SLICE, namespace=namespace, name=name, uid="u", resource_version="1", owner=None)
        if "kept" in manners:
            meta = replace(meta, ownership=((KEEP, "true"),))
        group = Group(Family.IPV4, tuple(sorted(ports)), tuple(endpoints))
        piece = CurrentSlice(meta, service, group, manager="" if manager == "no owner" else manager)
        cluster.others = (*cluster.others, piece)

    def place(self, text: str) -> None:
        """Put an object into Kubernetes."""
        first, *manners = text.split(", ")
        if first.startswith("EndpointSlice "):
            self._place_slice(first, manners)
            return
        if first.startswith("HTTPRoutes cannot be listed: "):
            why = Reason(Code.ROUTES_UNREAD, why=first.partition(": ")[2])
            for cluster in self.store.clusters.values():
                cluster.route = why
            return
        found = re.fullmatch(r"(Service|Endpoints|HTTPRoute) (\S+)/(\S+) of (.+?)", first)
        assert found, text
        kind, namespace, name, whose = found.groups()
        owner = whose.removeprefix("the bridge ") if whose.startswith("the bridge ") else None
        marks: Pairs = (("consul", "true"),) if whose == "consul-k8s" else ()
        ports: tuple[Port, ...] = () if "an alias" in manners else (Port("", 8080),)
        targets: tuple[int | str, ...] = tuple(p.number for p in ports)
        traffic = TrafficPolicy()
        for manner in manners:
            if manner.startswith("filled from "):
                marks = ((annotated.MIRROR, "true"), (annotated.SERVICE, manner.removeprefix("filled from ")))
            elif manner.startswith("with hostnames from "):
                marks = (*marks, (annotated.HOSTNAME_FROM, manner.removeprefix("with hostnames from ")))
            elif manner.startswith("ports "):
                said = [_service_port(text) for text in manner.removeprefix("ports ").split(" and ")]
                ports, targets = tuple(p for p, _ in said), tuple(t for _, t in said)
            elif manner.startswith("distributing "):
                traffic = replace(traffic, distribution=manner.removeprefix("distributing "))
            elif manner == "publishing what is not ready":
                traffic = replace(traffic, publish_not_ready=True)
            elif manner == "without ports":
                ports, targets = (), ()
            else:
                assert manner in ("an alias", "with a selector", "headless"), manner
        meta = Meta(
            kind=Kind(kind),
            namespace=namespace,
            name=name,
            uid="theirs",
            resource_version="1",
            owner=owner,
            ownership=marks,
        )
        cluster = self.store.cluster(Target(namespace, name))
        if kind == "Endpoints":
            cluster.endpoints = CurrentEndpoints(meta, ())
        elif kind == "HTTPRoute":
            cluster.route = CurrentRoute(meta, None)
        else:
            cluster.service = CurrentService(
                meta=meta,
                type="ExternalName" if "an alias" in manners else "ClusterIP",
                headless="headless" in manners,
                traffic=traffic,
                has_selector="with a selector" in manners,
                ports=ports,
                target_ports=targets,
            )

    def stands(self, target: Target) -> bool:
        """Whether anything holds endpoints there."""
        cluster = self.store.cluster(target)
        return cluster.endpoints is not None or bool(cluster.slices)

    def endpoints(self, target: Target) -> list[str]:
        """What exists: slices when there are some, they tell more."""
        cluster = self.store.cluster(target)
        groups: Iterable[Group] = sorted((s.group for s in cluster.slices.values()), key=lambda g: (g.family, g.ports))
        if not cluster.slices and cluster.endpoints is not None:
            groups = cluster.endpoints.groups
        return [
            f"{e.address}{_numbers(g.ports)} {'ready' if e.ready else 'not ready'}"
            + (", still serving" if e.serving and not e.ready else "")
            + (", not serving" if e.ready and not e.serving else "")
            + (", terminating" if e.terminating else "")
            + (f", in zone {e.zone}" if e.zone in OTHERS else "")
            + (f", for zone {e.for_zone}" if e.for_zone else "")
            + (f", hostname {e.hostname}" if e.hostname else "")
            for g in groups
            for e in g.endpoints
        ]

    def active(self, target: str) -> str:
        """The datacenter that carries the traffic, and the one that is to."""
        service = self.store.cluster(Target(*target.split("/"))).service
        said = {} if service is None else dict(service.meta.ownership)
        pending = said.get(PENDING, "").split()[:1]
        return ", then ".join([said.get(ACTIVE, "none"), *pending])

    def routes(self) -> dict[str, str]:
        """`public https, infra/inner 8080: a.example.com b.example.com /api -> 80` for each HTTPRoute of ours."""
        found = {}
        for target, cluster in sorted(self.store.clusters.items()):
            if isinstance(cluster.route, CurrentRoute) and cluster.route.route and cluster.route.meta.owner == OWNER:
                route = cluster.route.route
                parents = ", ".join(
                    " ".join(
                        filter(None, ("/".join(filter(None, (p.namespace, p.name))), p.section, str(p.port or "")))
                    )
                    for p in route.parents
                )
                found[str(target)] = f"{parents}: {' '.join((*route.hostnames, route.path))} -> {route.port}"
        return found

    def service_ports(self, target: str) -> str:
        """The Service's ports in one line."""
        service = self.store.cluster(Target(*target.split("/"))).service
        assert service is not None
        found = zip(service.ports, service.target_ports, strict=True)
        return ", ".join(
            f"{p.name} {p.number}".strip()
            + (f"/{p.protocol}" if p.protocol != "TCP" else "")
            + (f" -> {target}" if target != p.number else "")
            for p, target in found
        )


class Objects:
    """What Kubernetes holds at each target, as a planner reads it."""

    def __init__(self) -> None:
        self.clusters: dict[Target, Cluster] = {}

    def cluster(self, target: Target) -> Cluster:
        """The objects at a target, to write to."""
        return self.clusters.setdefault(target, Cluster(target))

    def current(self, target: Target) -> Current:
        """The same to read; what the control plane mirrored is asked for apart."""
        return self.cluster(target).current(mirrored=False)

    def targets(self) -> set[Target]:
        """Where at least one object is ours."""
        return {target for target in self.clusters if self._owned(target)}

    def ready_in(self, scope: Scope) -> int:
        """Ready endpoints of ours that the guard adds up together."""
        return sum(self._ready(target) for target, found in self.ready_targets().items() if found == scope)

    def ready_targets(self) -> dict[Target, Scope]:
        """Where ready endpoints of ours are, and with which others the guard adds them up."""
        return {target: scope_of(self.current(target), OWNER) for target in self.targets() if self._ready(target)}

    def confirm(self, change: Change, meta: Meta | None) -> None:
        """A write was answered: `Cluster` has stored it already."""

    def _owned(self, target: Target) -> list[CurrentService | CurrentEndpoints | CurrentSlice | CurrentRoute]:
        return [o for o in self.current(target).objects if o.meta.owner == OWNER]

    def _ready(self, target: Target) -> int:
        owned = self._owned(target)
        whole = [g for o in owned if isinstance(o, CurrentEndpoints) for g in o.groups]
        sliced = [o.group for o in owned if isinstance(o, CurrentSlice)]
        return max(sum(e.ready for g in groups for e in g.endpoints) for groups in (whole, sliced))


def _rule(raw: Mapping[str, Any]) -> Rule:
    to, instances = dict(raw.get("to", {})), dict(raw.get("instances", {}))
    if "output" in to:
        to["output"] = Output(to["output"])
    for key in ("warning", "critical", "maintenance"):
        if key in instances:
            instances[key] = Treatment(instances[key])
    if "route" in to:
        route: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in to["route"].items()}
        route["parents"] = tuple(Parent(**parent) for parent in route["parents"])
        to["route"] = RouteRule(**route)
    for key in ("protocol_from", "labels", "annotations"):
        to[key] = tuple(sorted(dict(to.get(key, {})).items()))
    if "min_ready" in instances:
        number = str(instances["min_ready"])
        instances["min_ready"] = Amount(int(number.rstrip("%")), percent=number.endswith("%"))
    for key in ("allow_cidrs", "deny_cidrs"):
        instances[key] = tuple(instances.get(key, ()))
    return Rule(
        name=raw.get("name", ""),
        continues=raw.get("continue"),
        services=tuple(raw.get("services", ())),
        tags=tuple(raw.get("tags", ())),
        meta=tuple(sorted(raw.get("meta", {}).items())),
        datacenters=tuple(raw.get("datacenters", ())),
        combine=Combine(raw["combine"]) if "combine" in raw else None,
        failover=Failover(**raw.get("failover", {})),
        to=Destination(**to),
        instances=InstanceRules(**instances),
    )


def _service_port(text: str) -> tuple[Port, int | str]:
    """`http 80`, `dns 53/UDP`, `http 80 -> web`: a port of a Service, and its targetPort."""
    name, number, protocol, target = re.fullmatch(r"(\S+) (\d+)(?:/(\w+))?(?: -> (\S+))?", text).groups()  # type: ignore[union-attr]
    target = target or number
    return Port(name, int(number), protocol or "TCP"), int(target) if target.isdigit() else target


def _numbers(ports: Sequence[Port]) -> str:
    """`:80`, `:80+81`, `:53/UDP`, and nothing where there are no ports."""
    found = "+".join(f"{p.number}/{p.protocol}" if p.protocol != "TCP" else str(p.number) for p in ports)
    return f":{found}" if found else ""


def _several(line: str) -> list[str]:
    """`vm1..vm3 10.0.0.1..3:80 x` as three lines; any other line as itself."""
    span = re.search(r"(\d+)\.\.(\d+)(?=:)", line)
    if span is None:
        return [line]
    shifted = re.sub(r"(\D)(\d+)\.\.\D+\d+ ", r"\1# ", line, count=1) if re.match(r"\S*?\.\.\D", line) else line
    first, last = int(span[1]), int(span[2])
    pattern = re.compile(r"\d+\.\.\d+(?=:)")
    return [pattern.sub(str(n), shifted, count=1).replace("#", str(n), 1) for n in range(first, last + 1)]


def _instance(text: str, service: str) -> Instance:
    node, place, status, *words = text.split()
    address, _, port = place.rpartition(":")
    return Instance(
        node=node,
        id=service,
        address=address,
        node_address="",
        port=int(port),
        status=Status(status),
        kind="".join(_after("kind:", words)),
        tags=tuple(sorted(_after("tag:", words))),
        meta=tuple(sorted((key, value) for word in _after("meta:", words) for key, _, value in [word.partition("=")])),
        node_meta=tuple(("zone", zone) for zone in _after("zone:", words)),
        tagged_addresses=tuple(TaggedAddress("lan", lan) for lan in _after("lan:", words)),
        ports=tuple(sorted(NamedPort(*_number(word)) for word in words if "=" in word and ":" not in word)),
    )


def _after(prefix: str, words: Sequence[str]) -> list[str]:
    return [word.removeprefix(prefix) for word in words if word.startswith(prefix)]


def _number(word: str) -> tuple[str, int]:
    name, _, number = word.partition("=")
    return name, int(number)


def _change(action: str, kind: str, target: Target, reason: str | None) -> str:
    return f"{action} {kind} {target}" + (f" ({reason})" if reason else "")


def _skipped(skipped: Skipped) -> str:
    return f"{skipped.service} {skipped.instance}".strip() + f": {skipped.reason}"
