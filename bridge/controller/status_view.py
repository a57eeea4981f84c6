"""What the running bridge's page shows of the services: the same words as `bridge status` and `bridge explain`.

Made from what the bridge knows already; nothing is asked of Consul or Kubernetes, and nothing is decided. A row is
made again only when its outcome or its objects have changed, so that 5,000 services cost milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from bridge.core import select
from bridge.core.explain import Explanation, explain
from bridge.core.model import Current, Query, Rule, Target
from bridge.core.service_state import ServiceRow, ServiceState, service_state, state_detail
from bridge.pipeline.planner import Planner
from bridge.pipeline.rows import service_row
from bridge.report import Outcome, hold_text


class StatusView:
    """Rows and explanations. `current` says what Kubernetes holds, `names` what host names mean. Thread-safe."""

    def __init__(
        self,
        planner: Planner,
        current: Callable[[Target], Current],
        names: Callable[[], Mapping[str, tuple[str, ...] | None]],
    ) -> None:
        self._planner = planner
        self._consul_state = planner.consul_state
        self._lock = planner.lock
        self._current = current
        self._names = names
        self._made: dict[Target, tuple[tuple[Any, ...], ServiceRow]] = {}

    def rows(self, outcomes: Mapping[Target, Outcome]) -> list[ServiceRow]:
        with self._lock:
            targets = sorted(self._consul_state.targets())
            trouble = self._consul_state.trouble()
        made: dict[Target, tuple[tuple[Any, ...], ServiceRow]] = {}
        for target in targets:
            outcome, current = outcomes.get(target), self._current(target)
            reason = self._planner.unreadable.get(target.namespace, "")
            if outcome is not None:
                reason = _reason(outcome.plan.queries, trouble)
            about = (outcome, current.service, current.endpoints, current.slices, reason)
            before = self._made.get(target)
            if before is not None and outcome is not None and _same(before[0], about):
                made[target] = before
            else:
                made[target] = about, self._row(target, outcome, current, reason)
        self._made = made
        return [row for _, row in made.values()]

    def explain(self, target: Target, outcome: Outcome | None) -> tuple[Explanation, ...] | None:
        """Every service behind `target`; None when nothing is mirrored there."""
        current = self._current(target)
        resolved = {name: found for name, found in self._names().items() if found is not None}
        plan = None
        if outcome is not None:
            plan = replace(outcome.plan, changes=outcome.waiting)
        with self._lock:
            consul_state = self._consul_state
            if target not in consul_state.targets():
                return None
            behind: list[tuple[Query, Rule | None]] = [*consul_state.winners(target)]
            known = [(query, rule, consul_state.known(query)) for query, rule in consul_state.winners(target)]
            found = [
                explain(
                    query.service,
                    query.datacenter,
                    tags=consul_state.tags((query.datacenter, query.service)),
                    rules=consul_state.rules if rule is None or not (rule.to.annotated or rule.unlisted) else (rule,),
                    knowledge=consul_state.known(query),
                    waiting=None if rule is None else self._planner.waiting(query, rule),
                    co_sources=[(other, there) for q, other, there in known if q != query and there is not None],
                    current=current,
                    plan=plan,
                    resolved=resolved,
                    cluster_nodes=self._planner.nodes,
                    remembered=target if rule is None else None,
                    chosen=None if rule is None else select.Choice(0, rule, query, target),
                    kept=consul_state.remembered_at((query.datacenter, query.service)),
                )
                for query, rule in behind or ((query, None) for query in consul_state.queries_at(target))
            ]
        nobodys = set[str]().union(*(e.unaccounted for e in found)).intersection(*(e.unaccounted for e in found))
        return tuple(replace(e, unaccounted=tuple(o for o in e.unaccounted if o in nobodys)) for e in found)

    def _row(self, target: Target, outcome: Outcome | None, current: Current, reason: str) -> ServiceRow:
        with self._lock:
            queries = self._consul_state.queries_at(target)
        state, detail = _state(outcome, reason)
        plan = outcome.plan if outcome is not None else None
        return service_row(self._planner, target, queries, plan, current, state, detail)


def _state(outcome: Outcome | None, reason: str) -> tuple[ServiceState, str]:
    """The most severe state that applies, and its words."""
    if outcome is None:
        return ServiceState.UNKNOWN, f"{reason or 'not read yet'}; what is there stays"
    plan, waiting = outcome.plan, outcome.waiting
    state = service_state(plan, waiting=bool(waiting), failed=bool(outcome.failures), unread=bool(reason))
    if state is ServiceState.FAILED:
        return state, "; ".join(dict.fromkeys(str(f.error) for f in outcome.failures))
    if state is ServiceState.UNKNOWN and reason:
        return state, f"{reason}; what is there stays"
    return state, state_detail(state, plan, waiting, list(map(hold_text, plan.held)))


def _reason(queries: tuple[Query, ...], trouble: Mapping[Query, str]) -> str:
    """Why one of the services could not be read, "" when all could."""
    return next((trouble[q] for q in queries if q in trouble), "") if trouble else ""


def _same(before: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    """Whether these are the very objects of before: comparing them by value would cost what is to be saved."""
    *objects, slices, reason = zip(before, now, strict=True)
    return (
        all(a is b for a, b in objects)
        and reason[0] == reason[1]
        and len(slices[0]) == len(slices[1])
        and all(a is b for a, b in zip(*slices, strict=True))
    )
