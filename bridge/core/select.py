"""Which Consul services are mirrored, and where to; `assignments` says who gets a name that several want.

Names select services; tags, meta and the filter select instances of them. A rule that selects some of a service's
instances leaves the service to the rules behind it, one that selects all of them uses it up.
"""

from __future__ import annotations

import hashlib
import re
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


def excluded(service: str) -> Reason | None:
    """Why a service is never mirrored, whatever the rules say; None when it may be.

    Only names decide here. Tags prove nothing: people tag what runs FOR a Kubernetes cluster (its etcd, its balancer)
    like what comes FROM one. What came from a cluster carries meta, and that is each instance's own: `instances`
    leaves such instances out, and Connect proxies by their kind.
    """
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
