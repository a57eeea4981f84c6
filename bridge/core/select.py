"""Which Consul services are mirrored, where to, and who gets a name that several want.

Names select services; tags, meta and the filter select instances of them. A rule that selects some of a service's
instances leaves the service to the rules behind it, one that selects all of them uses it up.
"""

from __future__ import annotations

import hashlib
import re
from bisect import insort
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import translate as glob_to_regex
from functools import lru_cache

from bridge.core.model import UNADDRESSABLE, Bounds, Combine, Query, Rule, Skipped, Target
from bridge.core.normalize import truncate
from bridge.core.reasons import Code, Reason

LABEL_LIMIT = 63
"""Longest Service name (RFC 1123 label)."""
NAME_LIMIT = 1024
"""Longest Consul name that is taken: it stands in full in an annotation."""

_HASH_LENGTH = 8
_ILLEGAL = re.compile(r"[^a-z0-9-]")
_PLACEHOLDER = re.compile(r"\{(service|datacenter|namespace|partition)\}")


def excluded(service: str, tags: Collection[str]) -> Reason | None:
    """Why a service is never mirrored, whatever the rules say; None when it may be.

    Only names decide here. Tags prove nothing: people tag what runs FOR a Kubernetes cluster (its etcd, its balancer)
    like what comes FROM one. What came from a cluster carries meta, and that is each instance's own: `instances`
    leaves such instances out, and Connect proxies by their kind.
    """
    del tags
    if service == "consul":
        return Reason(Code.CONSUL_ITSELF)
    if not service or len(service) > NAME_LIMIT:
        return Reason(Code.NAME_TOO_LONG, length=len(service))
    if not service.isprintable():
        return Reason(Code.NAME_UNPRINTABLE)
    if service in UNADDRESSABLE:
        return Reason(Code.NAME_UNADDRESSABLE)
    return None


@lru_cache(maxsize=4096)
def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(glob_to_regex(pattern.lower()))


def is_glob(pattern: str) -> bool:
    """Whether a pattern may match several names; else it names one in full."""
    return any(mark in pattern for mark in "*?[")


def is_named(patterns: Collection[str], name: str) -> bool:
    """Whether a name matches one of some globs, whatever its case; every name does when there is none."""
    return not patterns or any(_glob(pattern).match(name.lower()) for pattern in patterns)


def names_any(pattern: str, names: Collection[str]) -> bool:
    """Whether a glob matches one of thousands of names, which are in lower case."""
    return any(map(_glob(pattern).match, names)) if is_glob(pattern) else pattern.lower() in names


@dataclass(frozen=True, slots=True)
class Choice:
    """A rule that names a service, what Consul is asked, and where it goes (or why nowhere). `order`: the rule's."""

    order: int
    rule: Rule
    query: Query
    target: Target | Skipped


def why_not(rule: Rule, service: str, datacenter: str) -> str | None:
    """Why a rule does not name a service; None when it does.

    Judged by its name (Consul's names know no case, so the globs do not either) and its datacenter alone. Tags, meta
    and the filter select instances: were they to decide here, a service would come and go with each of them.
    """
    if rule.unlisted:
        return "it is about another namespace, partition or peer"
    if rule.datacenters and datacenter not in rule.datacenters:
        return f"datacenter {truncate(datacenter)} is not one of {', '.join(rule.datacenters)}"
    if not is_named(rule.services, service):
        return f"the name matches none of {', '.join(rule.services)}"
    return None


def choices(rules: Iterable[Rule], service: str, datacenter: str) -> list[Choice]:
    """The rules that name a service, in order, up to the first that uses it up."""
    found = []
    for order, rule in enumerate(rules):
        if why_not(rule, service, datacenter) is None:
            query = query_of(rule, service, datacenter)
            found.append(Choice(order, _within(rule, datacenter), query, target_of(rule, query)))
            if rule.uses_up:
                break
    return found


def _within(rule: Rule, datacenter: str) -> Rule:
    """The rule for one of the datacenters that it unites: where a node names no zone, its datacenter is one."""
    if rule.combine is not Combine.UNION:
        return rule
    return replace(rule, instances=replace(rule.instances, zone=datacenter))


def active(named: Sequence[Choice], tags: Collection[str], kept: Collection[Target] = ()) -> list[Choice]:
    """Those of a service's choices that are mirrored or kept. `tags` are those of all its instances together.

    | the rule's tags | at its target stands what came from this service (`kept`) | so |
    | --- | --- | --- |
    | all of them are there | any | mirrored |
    | one is missing | yes | kept: no instance is selected for a while, the Service stays |
    | one is missing | no | not yet: nothing is made before an instance has them, nothing is read |
    | one is missing | no, but another rule sends the service to the same target | as that one: the first has it |
    """
    wanted = {choice.target for choice in named if _tagged(choice, tags) or choice.target in kept}
    return [choice for choice in named if choice.target in wanted]


def _tagged(choice: Choice, tags: Collection[str]) -> bool:
    return all(tag in tags for tag in choice.rule.tags)


def unmet(
    service: str, named: Sequence[Choice], tags: Collection[str], kept: Collection[Target] = ()
) -> list[tuple[Choice, Reason]]:
    """Those of a service's choices that make nothing, where that looks like a mistake, and why.

    That no instance has a rule's tags is usual for a rule about many services. It is reported where a tag differs in
    its case only, and for a rule that names the service in full.
    """
    found: list[tuple[Choice, Reason]] = []
    mirrored = active(named, tags, kept)
    folded = {tag.lower(): tag for tag in sorted(tags, reverse=True)}
    there = ", ".join(map(truncate, sorted(tags))) or "no tags"
    for choice in named:
        in_full = service.lower() in (pattern.lower() for pattern in choice.rule.services)
        for tag in choice.rule.tags if choice not in mirrored else ():
            if tag not in tags and tag.lower() in folded:
                found.append((choice, Reason(Code.TAG_CASE, wanted=truncate(tag), found=truncate(folded[tag.lower()]))))
            elif tag not in tags and in_full:
                found.append((choice, Reason(Code.TAG_ABSENT, wanted=truncate(tag), found=truncate(there))))
    return found


def unlisted(rules: Iterable[Rule]) -> list[Choice]:
    """The services that rules name in full in places that are not listed, up to the first rule that uses one up."""
    found: dict[tuple[int, Query], Choice] = {}
    used: set[Query] = set()
    for order, rule in enumerate(rules):
        for service in rule.services if rule.unlisted else ():
            for datacenter in rule.datacenters:
                query = query_of(rule, service, datacenter)
                unfiltered = replace(query, filter="")
                if unfiltered not in used:
                    found[order, query] = Choice(order, _within(rule, datacenter), query, target_of(rule, query))
                    if rule.uses_up:
                        used.add(unfiltered)
    return list(found.values())


def shadowed(rules: Sequence[Rule]) -> list[tuple[Rule, Rule]]:
    """Rules that are never used, each with the earlier one that uses up every service that it names.

    What cannot be distinguished from the globs alone is not reported.
    """
    found = []
    for position, later in enumerate(rules):
        earlier = next((rule for rule in rules[:position] if _covers(rule, later)), None)
        if earlier is not None:
            found.append((later, earlier))
    return found


def _covers(earlier: Rule, later: Rule) -> bool:
    if earlier.unlisted or later.unlisted or not earlier.uses_up:
        return False
    if earlier.datacenters and not (later.datacenters and set(later.datacenters) <= set(earlier.datacenters)):
        return False
    return not earlier.services or (
        bool(later.services)
        and all(any(_glob_covers(wide, narrow) for wide in earlier.services) for narrow in later.services)
    )


def _glob_covers(wide: str, narrow: str) -> bool:
    """Whether every name that `narrow` matches is matched by `wide`; False also where that is not plain to see."""
    if wide.lower() == narrow.lower() or wide.strip("*") == "":
        return True
    if any(mark in wide + narrow for mark in "[?"):
        return False
    return _glob(wide).match(narrow.lower()) is not None  # a star in `narrow` is matched by a star in `wide` alone


def query_of(rule: Rule, service: str, datacenter: str) -> Query:
    return Query(datacenter, service, rule.namespace, rule.partition, rule.peer, rule.filter)


def asks_for_routes(rules: Iterable[Rule]) -> bool:
    return any(rule.to.route is not None for rule in rules)


def target_of(rule: Rule, query: Query) -> Target | Skipped:
    """Namespace and name that a rule's templates give for a service, or why they give none."""
    namespace, name = _fill(rule.to.namespace, query), _fill(rule.to.name, query)
    parts = []
    for what, text, label in (("namespace", namespace, dns_label(namespace)), ("name", name, service_name(name))):
        if label is None:
            return Skipped(query.service, "", Reason(Code.NAME_UNMAPPABLE, what=what, text=truncate(text)))
        parts.append(label)
    target = Target(*parts)
    refused = namespace_refused(rule.instances.bounds, target.namespace, chosen="{" in rule.to.namespace)
    return target if refused is None else Skipped(query.service, "", refused)


def namespace_refused(bounds: Bounds, namespace: str, *, chosen: bool = False) -> Reason | None:
    """Why nothing is written to a namespace, None when it may be. `chosen`: what Consul holds led to it, not a rule.

    What `guard.namespaces` names is allowed although it is reserved.
    """
    named = bool(bounds.namespaces) and is_named(bounds.namespaces, namespace)
    for pattern in bounds.deny_namespaces:
        if _glob(pattern).match(namespace):
            return Reason(Code.NAMESPACE_DENIED, namespace=namespace, pattern=pattern)
    if bounds.namespaces and not named:
        return Reason(Code.NAMESPACE_NOT_ALLOWED, namespace=namespace)
    if chosen and not named and any(_glob(pattern).match(namespace) for pattern in bounds.reserved_namespaces):
        return Reason(Code.NAMESPACE_RESERVED, namespace=namespace)
    return None


def dns_label(text: str) -> str | None:
    """`text` as a DNS label of at most 63 characters; None when nothing is left of it.

    Lower-case, every other character becomes `-`. A text that had to be cut ends in a hash of the whole, so that two
    long names stay two.
    """
    return _cut(_mapped(text), text)


def service_name(text: str) -> str | None:
    """`text` as the name of a Service: a DNS label that begins with a letter, as Kubernetes up to 1.35 wants it."""
    label = _mapped(text)
    return _cut(f"s-{label}" if label[:1].isdigit() else label, text)


def _mapped(text: str) -> str:
    return _ILLEGAL.sub("-", text.lower()).strip("-")


def _cut(label: str, text: str) -> str | None:
    if len(label) > LABEL_LIMIT:
        return f"{label[: LABEL_LIMIT - _HASH_LENGTH - 1].rstrip('-')}-{digest(text)}"
    return label or None


def digest(text: str) -> str:
    """Eight characters that stand for a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_LENGTH]


def _fill(template: str, query: Query) -> str:
    values = {
        "service": query.service,
        "datacenter": query.datacenter,
        "namespace": query.namespace or "default",
        "partition": query.partition or "default",
    }
    return _PLACEHOLDER.sub(lambda found: values[found[1]], template)


_Rank = tuple[bool, int, bool, Query]


@dataclass(frozen=True, slots=True)
class Only:
    """What `--force` is narrowed to: services by their names in Consul (globs), a namespace. Empty: any."""

    services: tuple[str, ...] = ()
    namespace: str = ""

    def takes(self, target: Target, queries: Iterable[Query]) -> bool:
        """Whether a target that these services feed is meant."""
        if self.namespace and self.namespace != target.namespace:
            return False
        names = [query.service.lower() for query in queries]
        return not self.services or any(_glob(p).match(name) for p in self.services for name in names)


class TargetAssignments:
    """Who wants which target, and who gets it. The cost of a claim does not grow with the number of services.

    | several want one target | who gets it |
    | --- | --- |
    | one is asked for by an annotated Service of that name | that one, alone |
    | different rules send something there | what the first rule sends |
    | one rule sends several services there | the one named exactly as the target |
    | none of them is | the first in order (datacenter, service) |
    | the rule combines its datacenters | what has the name in each of them, in the rule's order |
    | their rules name different ports (`port_name`) | all of them: one Service with several ports |

    A service may want one target several times: by rules, each for other instances, and by the annotated Service that
    exists there. The annotation has it, and when it goes the rules' claims are still there.
    """

    def __init__(self) -> None:
        self._rules: dict[Target, dict[_Rank, Rule]] = {}
        self._ranks: dict[Target, list[_Rank]] = {}
        self._winners: dict[Target, tuple[_Rank, ...]] = {}

    def claim(self, query: Query, rule: Rule, target: Target, order: int = 0) -> set[Target]:
        """`query` wants to be mirrored at `target` under `rule`; claiming again replaces the rule.

        `order` is the rule's among all rules. Returns the targets whose owners changed by it.
        """
        before = self.winners(target)
        rank = _rank(query, target, order, annotated=rule.to.annotated)
        rules = self._rules.setdefault(target, {})
        if rank not in rules:
            insort(self._ranks.setdefault(target, []), rank)
        rules[rank] = rule
        return self._changed(target, before)

    def withdraw(self, query: Query, target: Target, *, annotated: bool | None = None, order: int = 0) -> set[Target]:
        """`query` no longer wants `target` (nothing happens when it never did). Returns the targets that changed.

        `annotated` says which claim is meant; without it the annotated Service's if there is one, else the rule's.
        """
        before = self.winners(target)
        rules = self._rules.get(target, {})
        kinds = (True, False) if annotated is None else (annotated,)
        for rank in [r for r in (_rank(query, target, order, annotated=kind) for kind in kinds) if r in rules][:1]:
            del rules[rank]
            self._ranks[target].remove(rank)
            if not rules:
                del self._rules[target], self._ranks[target]
        return self._changed(target, before)

    def winners(self, target: Target) -> tuple[tuple[Query, Rule], ...]:
        """What is mirrored at `target`, and by which rule; the first of them is the one that has the name."""
        rules = self._rules.get(target, {})
        return tuple((rank[3], rules[rank]) for rank in self._owning(target))

    def wants(self, query: Query, target: Target) -> bool:
        """Whether a service wants a target, by whatever rule, and whether or not it gets it."""
        return any(rank[3] == query for rank in self._ranks.get(target, ()))

    def rejected(self, target: Target) -> tuple[Skipped, ...]:
        ranks, owning = self._ranks.get(target, ()), self._owning(target)
        if len(ranks) == len(owning):
            return ()
        lost = {(rank[3], why) for rank in ranks if (why := self._why(rank, target))}
        return tuple(sorted(Skipped(query.service, "", why) for query, why in lost))

    def why_lost(self, query: Query, rule: Rule, target: Target) -> Reason | None:
        """Why a rule does not get `target` for a service, None when it does (or never wanted it)."""
        rules = self._rules.get(target, {})
        mine = (rank for rank in self._ranks.get(target, ()) if rank[3] == query and rules[rank] == rule)
        return next((self._why(rank, target) for rank in mine), None)

    def targets(self) -> set[Target]:
        return set(self._rules)

    def _owning(self, target: Target) -> tuple[_Rank, ...]:
        known = self._winners.get(target)
        if known is None and target in self._ranks:
            known = self._winners[target] = self._choose(target)
        return known or ()

    def _why(self, rank: _Rank, target: Target) -> Reason | None:
        """Why what wants a target does not get it, None when it does or an annotation has it for the same service."""
        owning, rules = self._owning(target), self._rules[target]
        first, query = owning[0], rank[3]
        winner, rule = first[3], rules[first]
        if rank in owning or (rule.to.annotated and winner == query):
            return None
        holder = f"{truncate(winner.service)} in {truncate(winner.datacenter)}"
        if rule.to.annotated:
            why = "the Service is annotated for it"
        elif first[1] != rank[1]:
            other, service = rules[rank].title, truncate(query.service)
            return Reason(Code.RULES_CLASH, target=target, holder=holder, rule=rule.title, other=other, service=service)
        elif winner.service == target.name:
            why = "it is named exactly so"
        else:
            why = "it comes first in order"
        return Reason(Code.NAME_TAKEN, target=target, holder=holder, why=why)

    def _choose(self, target: Target) -> tuple[_Rank, ...]:
        rules, ranks = self._rules[target], self._ranks[target]
        first = rules[ranks[0]]
        if first.combine is not None:
            order, service = ranks[0][1], ranks[0][3].service
            named = (rank for rank in ranks if rank[1] == order and rank[3].service == service)
            same = (rank for rank in named if rules[rank].combine is not None)
            return tuple(sorted(same, key=lambda rank: first.datacenters.index(rank[3].datacenter)))
        owners = [ranks[0]]
        taken = {first.to.port_name}
        if first.to.port_name and not first.to.annotated:
            for rank in ranks[1:]:
                name = rules[rank].to.port_name
                if name and name not in taken and rules[rank].combine is None:
                    taken.add(name)
                    owners.append(rank)
        return tuple(owners)

    def _changed(self, target: Target, before: Sequence[tuple[Query, Rule]]) -> set[Target]:
        self._winners.pop(target, None)
        return set() if self.winners(target) == before else {target}


def _rank(query: Query, target: Target, order: int, *, annotated: bool) -> _Rank:
    return not annotated, 0 if annotated else order, query.service != target.name, query
