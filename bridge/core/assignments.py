"""Which service gets a target that several want."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

from bridge.core.model import Query, Rule, Skipped, Target
from bridge.core.normalize import truncate
from bridge.core.reasons import Code, Reason

_Rank = tuple[bool, int, bool, Query]


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
