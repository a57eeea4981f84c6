"""What rules have matched so far: a mistake in a rule must not look like a user who no longer wants a service.

Consul proves that a service went, but nothing proves that a user meant to drop one: a misspelt name and a service that
was taken out of a rule leave the same. What a rule has matched decides:

| what is so | what no rule selects any more |
| --- | --- |
| a pattern in a rule's `services` has matched no listed name yet, and that rule would send the service to the very \
target where it is now, or the pattern looks like its name | is held: the pattern may be that name, misspelt |
| every rule that names the service selects by tags, meta or a filter, and has selected no instance yet | is held: the \
rule may mean it, and send it elsewhere |
| tags, meta or a filter of a rule are others than those that the Service was made for, and have selected no instance \
yet, of any service | what Consul still lists is held: they may be misspelt |
| a rule is about a peer, namespace or partition that is not listed, which has shown none of its instances yet | is \
held: that place may be misspelt, and Consul shows nothing of one that does not exist |
| anything else (the rule has gone from the settings; the name was taken out of it; it has selected something before, \
so Consul has changed) | goes after its grace period |

A Service says by what its rule selects (`selection`, in short), so a restart and a single pass know a changed rule from
an instance that lost its tag meanwhile. What has matched is known to this process alone: one that starts begins with
names that have matched nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence

from bridge.core import select
from bridge.core.instances import selects
from bridge.core.lookup import near
from bridge.core.model import Instance, Rule, Target
from bridge.core.normalize import truncate
from bridge.core.reasons import Code, Reason


class RuleMatches:
    """Which patterns of the rules have matched a listed name, and which rules have selected an instance."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules: Sequence[Rule] = ()
        self._matched: set[Hashable] = set()
        self._unmatched: list[tuple[Rule, str]] = []
        self._selected: set[int] = set()
        self.replace_rules(rules)

    def replace_rules(self, rules: Sequence[Rule]) -> None:
        """Take new rules. What is as it was before keeps what it has matched."""
        selected = {_selection(self._rules[order]) for order in self._selected}
        self._rules = rules
        self._selected = {order for order, rule in enumerate(rules) if _selection(rule) in selected}
        self._unmatched = [
            (rule, pattern)
            for rule in rules
            for pattern in (() if rule.unlisted else rule.services)
            if _pattern(rule, pattern) not in self._matched
        ]

    def see_name(self, datacenter: str, service: str) -> None:
        """A datacenter lists a service."""
        for rule, pattern in tuple(self._unmatched):  # mostly none
            if (not rule.datacenters or datacenter in rule.datacenters) and select.is_named((pattern,), service):
                self._matched.add(_pattern(rule, pattern))
                self._unmatched.remove((rule, pattern))

    def see_instances(self, order: int, instances: Iterable[Instance]) -> None:
        """Consul shows these under the rule of that number."""
        if order not in self._selected and any(selects(self._rules[order], instance) for instance in instances):
            self._selected.add(order)

    def has_selected(self, order: int) -> bool:
        """Whether the rule of that number has selected an instance."""
        return order in self._selected

    def may_leave_out(self, order: int, said: str) -> bool:
        """Whether the rule of that number is another one than a Service says, and selects nothing: maybe a mistake."""
        return order not in self._selected and selection(self._rules[order : order + 1]) not in said.split("+")

    def in_doubt(self, order: int) -> bool:
        """Whether something in the rule of that number has matched nothing yet."""
        rule = self._rules[order]
        return (rule.narrows and order not in self._selected) or any(other is rule for other, _ in self._unmatched)

    def misspelt(self, target: Target, datacenter: str, service: str) -> Reason | None:
        """The pattern that may mean this service, which is at `target` and which no rule sends there (any more)."""
        for rule, pattern in self._unmatched:
            there = select.target_of(rule, select.query_of(rule, service, datacenter))
            if there == target or near(pattern, {service}):
                return Reason(Code.PATTERN_HOLDS, rule=rule.title, pattern=truncate(pattern), service=truncate(service))
        return None

    def unselected(self, datacenter: str, service: str) -> Reason | None:
        """What a rule asks for that names a service, when no such rule selects anything; None when one does."""
        named = select.choices(self._rules, service, datacenter)
        if not named or any(not choice.rule.narrows or choice.order in self._selected for choice in named):
            return None
        return Reason(Code.SELECTION_HOLDS, rule=named[0].rule.title, asks=named[0].rule.asks)


def selection(rules: Iterable[Rule]) -> str:
    """What a Service says about rules that select by tags, meta or a filter; "" for those that select everything."""
    asked = {(tuple(sorted(set(rule.tags))), tuple(sorted(rule.meta)), rule.filter) for rule in rules if rule.narrows}
    return "+".join(sorted(select.digest(repr(one)) for one in asked))


def _pattern(rule: Rule, pattern: str) -> Hashable:
    return pattern.lower(), rule.datacenters


def _selection(rule: Rule) -> Hashable:
    """What decides about what a rule selects."""
    place = rule.datacenters, rule.namespace, rule.partition, rule.peer
    return rule.services, rule.tags, rule.meta, rule.filter, place


def unmatched(
    rules: Iterable[Rule],
    datacenters: Sequence[str],
    listed: Mapping[str, Mapping[str, Collection[str]]],
    hints: dict[str, str] | None = None,
    about: Collection[str] | None = None,
) -> tuple[Reason, ...]:
    """What in rules matches nothing of what is listed now (the names with their tags, by datacenter), as remarks.

    A rule is left out before all of its datacenters, which are `datacenters` where it names none, are listed.
    `hints` remembers what looks like a pattern: to find it takes long where there are thousands of names.
    `about`: only what may be meant for one of these services.
    """
    hints = {} if hints is None else hints
    return tuple(
        reason
        for rule in rules
        if not rule.unlisted and all(dc in listed for dc in rule.datacenters or datacenters)
        for reason in _unmatched_of(rule, {dc: listed[dc] for dc in rule.datacenters or datacenters}, hints, about)
    )


def _unmatched_of(
    rule: Rule,
    listed: Mapping[str, Mapping[str, Collection[str]]],
    hints: dict[str, str],
    about: Collection[str] | None,
) -> Iterator[Reason]:
    lowered = frozenset(name.lower() for services in listed.values() for name in services)
    where = ", ".join(map(truncate, sorted(listed)))
    for pattern in rule.services:
        meant = about is None or pattern in about or near(pattern, about)
        if meant and not select.names_any(pattern, lowered):
            if pattern not in hints:
                hints[pattern] = _hint(near(pattern, {name for services in listed.values() for name in services}))
            hint = hints[pattern]
            yield Reason(Code.PATTERN_UNMATCHED, rule=rule.title, where=where, pattern=truncate(pattern), hint=hint)
    if not rule.tags or (about is not None and not any(select.is_named(rule.services, name) for name in about)):
        return
    named = [
        tags for services in listed.values() for name, tags in services.items() if select.is_named(rule.services, name)
    ]
    if named and not any(set(rule.tags) <= set(tags) for tags in named):
        there = {tag for tags in named for tag in tags}
        absent = [tag for tag in rule.tags if tag not in there]
        hint = _hint(tuple(dict.fromkeys(one for tag in absent for one in near(tag, there))))
        tags = ", ".join(map(truncate, absent or rule.tags))
        yield Reason(Code.TAGS_UNMATCHED, rule=rule.title, tags=tags, hint=hint)


def _hint(alike: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(map(truncate, alike))}?" if alike else ""
