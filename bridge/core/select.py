"""Which Consul services are mirrored, where to, and who gets a name that several want."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from fnmatch import translate as glob_to_regex
from functools import lru_cache

from bridge.core.canonical import shorten
from bridge.core.model import Query, Rule, Skipped, Target

LABEL_LIMIT = 63
"""Longest Service name (RFC 1123 label)."""

_HASH_LENGTH = 8
_ILLEGAL = re.compile(r"[^a-z0-9-]")


def excluded(service: str, tags: Collection[str]) -> str | None:
    """Why a service is never mirrored, whatever the rules say; None when it may be.

    What cannot be seen from a listing (proxies' `Kind`, the external source of an instance) is left to `translate`.
    """
    del tags
    return "Consul's own service" if service == "consul" else None


@lru_cache(maxsize=4096)
def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(glob_to_regex(pattern))


def matches(rule: Rule, service: str, datacenter: str, tags: Collection[str]) -> bool:
    """Whether a rule selects a service by its name, its datacenter and the tags of all its instances together."""
    if rule.datacenters and datacenter not in rule.datacenters:
        return False
    if rule.services and not any(_glob(p).match(service) for p in rule.services):
        return False
    return all(tag in tags for tag in rule.tags)


def first_rule(rules: Iterable[Rule], service: str, datacenter: str, tags: Collection[str]) -> Rule | None:
    """The first rule that matches."""
    return next((rule for rule in rules if matches(rule, service, datacenter, tags)), None)


def query_of(rule: Rule, service: str, datacenter: str) -> Query:
    """What Consul is asked for a service under a rule."""
    return Query(datacenter, service, rule.namespace, rule.partition, rule.peer, rule.filter)


def target_of(rule: Rule, query: Query) -> Target | Skipped:
    """Namespace and name that a rule's templates give for a service, or why they give none."""
    namespace, name = _fill(rule.to.namespace, query), _fill(rule.to.name, query)
    parts = []
    for what, text in (("namespace", namespace), ("name", name)):
        label = dns_label(text)
        if label is None:
            return Skipped(query.service, "", f"the {what} {shorten(text)!r} has no letter or digit to make a name of")
        parts.append(label)
    return Target(*parts)


def dns_label(text: str) -> str | None:
    """`text` as a DNS label of at most 63 characters that begins with a letter; None when nothing is left of it.

    Kubernetes up to 1.35 refuses Service names that begin with a digit, so that one is prefixed. A text that had to be
    cut ends in a hash of the whole, so that two long names stay two.
    """
    label = _ILLEGAL.sub("-", text.lower()).strip("-")
    if not label:
        return None
    if label[0].isdigit():
        label = f"s-{label}"
    if len(label) > LABEL_LIMIT:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_LENGTH]
        label = f"{label[: LABEL_LIMIT - _HASH_LENGTH - 1].rstrip('-')}-{digest}"
    return label


def _fill(template: str, query: Query) -> str:
    text = template
    for field, value in (
        ("{datacenter}", query.datacenter),
        ("{namespace}", query.namespace or "default"),
        ("{partition}", query.partition or "default"),
        ("{service}", query.service),
    ):
        text = text.replace(field, value)
    return text


class Claims:
    """Who wants which target, and who gets it. The cost of a claim does not grow with the number of services.

    | several services want one target | who gets it |
    | --- | --- |
    | one is asked for by an annotated Service of that name | that one |
    | one is named exactly as the target | that one |
    | none of this | the first in order (datacenter, service) |
    | their rules name different ports (`port_name`) | all of them: one Service with several ports |
    """

    def __init__(self) -> None:
        self._rules: dict[Target, dict[Query, Rule]] = {}

    def claim(self, query: Query, rule: Rule, target: Target) -> None:
        """`query` wants to be mirrored at `target` under `rule`; claiming again replaces the rule."""
        self._rules.setdefault(target, {})[query] = rule

    def release(self, query: Query, target: Target) -> None:
        """`query` no longer wants `target`; nothing happens when it never did."""
        rules = self._rules.get(target)
        if rules is not None:
            rules.pop(query, None)
            if not rules:
                del self._rules[target]

    def owners(self, target: Target) -> tuple[tuple[Query, Rule], ...]:
        """The services that are mirrored at `target`, the first of them being the one that has the name."""
        ranked = self._ranked(target)
        if len(ranked) <= 1:
            return tuple(ranked)
        taken = {ranked[0][1].to.port_name}
        owners = [ranked[0]]
        for query, rule in ranked[1:]:
            if "" not in taken and rule.to.port_name and rule.to.port_name not in taken and not rule.to.annotated:
                taken.add(rule.to.port_name)
                owners.append((query, rule))
        return tuple(owners)

    def losers(self, target: Target) -> tuple[Skipped, ...]:
        """The services that did not get `target`."""
        ranked = self._ranked(target)
        if len(ranked) <= 1:
            return ()
        winners = self.owners(target)
        return tuple(
            sorted(
                Skipped(query.service, "", f"{target} is taken by {winners[0][0].service} ({winners[0][0].datacenter})")
                for query, _ in ranked
                if all(query != winner for winner, _ in winners)
            )
        )

    def targets(self) -> set[Target]:
        """All targets that anybody wants."""
        return set(self._rules)

    def _ranked(self, target: Target) -> Sequence[tuple[Query, Rule]]:
        rules = self._rules.get(target)
        if not rules:
            return ()
        if len(rules) == 1:
            return tuple(rules.items())
        return sorted(rules.items(), key=lambda c: (not c[1].to.annotated, c[0].service != target.name, c[0]))
