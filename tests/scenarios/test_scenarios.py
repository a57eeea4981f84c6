"""Runs the scenarios in *.yaml: the rules as a person would tell them, from Consul's instances to what is written.

What a scenario does not list under `expect` (skipped, conflicts, held, warnings) must not happen. What follows under
`then` happens `after seconds` later, in a world that is otherwise as it was. How lines are read:

- `vm1 10.0.0.1:8080 passing`: an instance; `vm1..vm12 10.0.0.1..12:8080 passing`: twelve of them. Behind its health:
  `kind:connect-proxy`, `tag:s3`, `meta:env=prod`, `zone:a` (of its node), `lan:192.168.0.1` (a tagged address),
  `http=8080` (a named port)
- `Service default/web of somebody else, with a selector`: an object that stands there already; further manners are
  `an alias`, `ports http 80 and dns 53/UDP -> 5353`, `filled from radosgw` (the annotation of who asks for it),
  `headless`, `without ports`, `publishing what is not ready`, `distributing PreferSameZone`
- `10.0.0.1:8080 ready`: an endpoint, `not ready` ones that are drained say `, still serving, terminating`; those that
  are published all the same `ready, not serving`; a hint says `, for zone a`
- `default/radosgw` under `held`: that it is held, for whatever reason
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.core import annotated, select
from bridge.core.annotated import Changed
from bridge.core.guard import Guard, GuardSettings
from bridge.core.model import (
    Adopt,
    Current,
    CurrentEndpoints,
    CurrentService,
    Destination,
    Disposition,
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
    Rule,
    Scope,
    Skipped,
    Status,
    TaggedAddress,
    Target,
    TrafficPolicy,
)
from bridge.core.plan import DATACENTER, SERVICE, origins, plan, retain
from bridge.core.reasons import Reason
from bridge.core.translate import translate
from tests.unit.core.builders import OWNER, Cluster

SCENARIOS = [
    pytest.param(scenario, id=f"{path.stem}: {scenario['name']}")
    for path in sorted(Path(__file__).parent.glob("*.yaml"))
    for scenario in yaml.safe_load(path.read_text())
]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(scenario: Mapping[str, Any]) -> None:
    """What is given leads to what is expected, and a second pass has nothing left to do."""
    assert set(scenario) <= {"name", "given", "expect", "then"}
    given = scenario["given"]
    assert set(given) <= {
        "rules", "consul", "consul before", "objects", "adopt", "policy", "force", "index went backwards",
        "hold release",
    }  # fmt: skip
    world = World(Adopt(given.get("adopt", "never")), given.get("hold release"))
    if "consul before" in given:
        world.change({"rules": given.get("rules", [{}])})
        world.make_a_pass(given["consul before"], Policy.SYNC, force=True)
        world.now += 3600.0
    _check(world, {"rules": [{}], **given}, scenario["expect"], Policy(given.get("policy", "sync")))
    catalog = given["consul"]
    for step in scenario.get("then", ()):
        assert set(step) <= {"after seconds", "rules", "consul", "objects", "force", "index went backwards", "expect"}
        world.now += step.get("after seconds", 0)
        catalog = step.get("consul", catalog)
        _check(world, {**step, "consul": catalog}, step["expect"], Policy(given.get("policy", "sync")))


def _check(world: World, given: Mapping[str, Any], expect: Mapping[str, Any], policy: Policy) -> None:
    world.change(given)
    force = given.get("force", False)
    plans = world.make_a_pass(given["consul"], policy, force=force)
    held = [f"{h.target}: {h.reason}" for p in plans for h in p.held]
    seen: dict[str, Any] = {
        "changes": [_change(c.action, c.kind, p.target, c.reason) for p in plans for c in p.writes],
        "skipped": sorted(_skipped(s) for s in {s for p in plans for s in p.skipped} | world.unmappable),
        "conflicts": [f"{c.kind} {c.target}: {c.reason}" for p in plans for c in p.conflicts],
        "held": held if any(": " in text for text in expect.get("held", ())) else [h.split(": ")[0] for h in held],
        "warnings": [w for p in plans for w in p.warnings],
    }
    if "endpoints" in expect:
        seen["endpoints"] = {str(t): world.endpoints(t) for t in sorted(world.clusters) if world.stands(t)}
    if "service ports" in expect:
        seen["service ports"] = {t: world.service_ports(t) for t in expect["service ports"]}
    wanted = {"skipped": [], "conflicts": [], "held": [], "warnings": [], **expect}
    if "endpoints" in wanted:
        wanted["endpoints"] = {
            t: [e for text in texts for e in _several(text)] for t, texts in wanted["endpoints"].items()
        }
    assert seen == wanted
    if not any(p.unmirrored for p in plans):
        assert [c for p in world.make_a_pass(given["consul"], policy, force=force) for c in p.writes] == []


class World:
    """Consul's catalog on one side, Kubernetes as a value on the other, one pass between them, and a clock."""

    def __init__(self, adopt: Adopt, hold_release_seconds: float | None) -> None:
        self.rules: list[Rule] = []
        self.adopt = adopt
        self.guard = Guard(GuardSettings(hold_release_seconds=hold_release_seconds))
        self.clusters: dict[Target, Cluster] = {}
        self.unmappable: set[Skipped] = set()
        self.now = 0.0

    def change(self, given: Mapping[str, Any]) -> None:
        """What happened before the next pass: other rules, objects of other people, a rebuilt Consul."""
        if "rules" in given:
            self.rules = [_rule(r) for r in given["rules"]]
        for text in given.get("objects", ()):
            self.place(text)
        if given.get("index went backwards"):
            self.guard.rebuilt("dc1", self.now)

    def make_a_pass(self, catalog: Mapping[str, list[str]], policy: Policy, *, force: bool) -> list[Plan]:
        """Select, translate, plan, ask the guard, apply."""
        claims = select.Claims()
        views: dict[Query, Known] = {}
        for service, lines in catalog.items():
            listed = tuple(_instance(text, service) for line in lines for text in _several(line))
            views[Query("dc1", service)] = Known(listed)
            tags = {tag for i in listed for tag in i.tags}
            if select.excluded(service, tags) is not None:
                continue
            standing = {target for target in self.clusters if service in _origins(self._cluster(target).current())}
            for choice in select.active(select.choices(self.rules, service, "dc1"), tags, standing):
                if isinstance(choice.target, Skipped):
                    self.unmappable.add(choice.target)
                else:
                    claims.claim(choice.query, choice.rule, choice.target, choice.order)
        for target, cluster in self.clusters.items():
            asked = annotated.request_of(cluster.service, "dc1")
            if isinstance(asked, tuple):
                claims.claim(asked[1], asked[0], target)
        drafts = [
            (target, *self._draft(target, claims, views, policy))
            for target in sorted(claims.targets() | self.clusters.keys())
        ]

        def ready_in(scope: Scope) -> int:
            return sum(p.ready_before for _, _, p in drafts if p.scope == scope)

        self.guard.released(self.now, ready_in)
        verdict = self.guard.admit([p for _, _, p in drafts], ready_in, self.now, force=force)
        plans = []
        for target, desired, draft in drafts:
            found, held = draft, verdict.held.get(target)
            if held is not None:
                current = self._cluster(target).current()
                kept = None if desired is None else retain(desired, current, lost=held.lost, flips=held.flips)
                kept = None if kept is None else annotated.as_before(kept, current, OWNER)
                found = replace(draft, changes=()) if kept is None else self._plan(kept, target, policy, draft.skipped)
                found = replace(found, held=(held,))
            self._cluster(target).apply(found)
            self._cluster(target).mirror()
            self.guard.applied(target)
            if not self.stands(target):
                self.guard.forget(target)
            plans.append(found)
        return plans

    def _draft(
        self, target: Target, claims: select.Claims, views: Mapping[Query, Known], policy: Policy
    ) -> tuple[Mirror | None, Plan]:
        listed = {query.service for query in views}
        sources = [
            (rule, query, views.get(Query(query.datacenter, query.service), Known(())))
            for query, rule in claims.owners(target)
        ]
        if not sources:
            current = self._cluster(target).current()
            dismissed = annotated.is_abandoned(current) and _origins(current) <= listed
            found_plan = self._plan(None, target, policy, dismissed=dismissed)
            return None, replace(found_plan, queries=(Query("dc1", target.name),))
        found = translate(target, sources, self._cluster(target).current())
        skipped = (*found.skipped, *claims.losers(target))
        rule, query, _ = sources[0]
        dismissed = False
        if rule.to.annotated:
            change = annotated.changed(self._cluster(target).current(), rule, query, OWNER)
            dismissed = change is Changed.SERVICE or (change is Changed.SELECTION and query.service in listed)
        plan = self._plan(found.mirror, target, policy, skipped, found.warnings, dismissed=dismissed)
        return found.mirror, replace(plan, queries=tuple(q for _, q, _ in sources))

    def _plan(
        self,
        desired: Mirror | None,
        target: Target,
        policy: Policy,
        skipped: tuple[Skipped, ...] = (),
        warnings: tuple[Reason, ...] = (),
        *,
        dismissed: bool = False,
    ) -> Plan:
        return plan(
            target,
            desired,
            self._cluster(target).current(),
            owner=OWNER,
            policy=policy,
            adopt=self.adopt,
            skipped=skipped,
            warnings=warnings,
            dismissed=dismissed,
        )

    def _cluster(self, target: Target) -> Cluster:
        return self.clusters.setdefault(target, Cluster(target))

    def place(self, text: str) -> None:
        """Put an object into Kubernetes."""
        first, *manners = text.split(", ")
        found = re.fullmatch(r"(Service|Endpoints) (\S+)/(\S+) of (.+?)", first)
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
            marks=marks,
        )
        cluster = self._cluster(Target(namespace, name))
        if kind == "Endpoints":
            cluster.endpoints = CurrentEndpoints(meta, ())
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
        cluster = self._cluster(target)
        return cluster.endpoints is not None or bool(cluster.slices)

    def endpoints(self, target: Target) -> list[str]:
        """What stands there: slices when there are some, they tell more."""
        cluster = self._cluster(target)
        groups: Iterable[Group] = sorted((s.group for s in cluster.slices.values()), key=lambda g: (g.family, g.ports))
        if not cluster.slices and cluster.endpoints is not None:
            groups = cluster.endpoints.groups
        return [
            f"{e.address}{_numbers(g.ports)} {'ready' if e.ready else 'not ready'}"
            + (", still serving" if e.serving and not e.ready else "")
            + (", not serving" if e.ready and not e.serving else "")
            + (", terminating" if e.terminating else "")
            + (f", for zone {e.for_zone}" if e.for_zone else "")
            for g in groups
            for e in g.endpoints
        ]

    def service_ports(self, target: str) -> str:
        """The Service's ports in one line."""
        service = self._cluster(Target(*target.split("/"))).service
        assert service is not None
        found = zip(service.ports, service.target_ports, strict=True)
        return ", ".join(
            f"{p.name} {p.number}".strip()
            + (f"/{p.protocol}" if p.protocol != "TCP" else "")
            + (f" -> {target}" if target != p.number else "")
            for p, target in found
        )


def _origins(current: Current) -> set[str]:
    """The Consul services that our objects at a target came from."""
    found = [dict(o.meta.annotations) for o in (current.endpoints, *current.slices) if o is not None]
    return {name for marks in found if SERVICE in marks for _, name in origins(marks[SERVICE], marks[DATACENTER])}


def _rule(raw: Mapping[str, Any]) -> Rule:
    to, instances = dict(raw.get("to", {})), dict(raw.get("instances", {}))
    if "output" in to:
        to["output"] = Output(to["output"])
    for key in ("warning", "critical", "maintenance"):
        if key in instances:
            instances[key] = Disposition(instances[key])
    for key in ("protocol_from", "labels"):
        to[key] = tuple(sorted(dict(to.get(key, {})).items()))
    for key in ("allow_cidrs", "deny_cidrs"):
        instances[key] = tuple(instances.get(key, ()))
    return Rule(
        name=raw.get("name", ""),
        continues=raw.get("continue"),
        services=tuple(raw.get("services", ())),
        tags=tuple(raw.get("tags", ())),
        meta=tuple(sorted(raw.get("meta", {}).items())),
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
        ports=tuple(
            sorted(NamedPort(*_number(word)) for word in words if "=" in word and not word.startswith("meta:"))
        ),
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
