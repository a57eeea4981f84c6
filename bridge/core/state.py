"""What is known of Consul right now, and which targets that feeds.

| in | out |
| --- | --- |
| `on_listing`, `on_view`: answers of Consul | `wanted`: what is to be asked of it |
| `record_owned`: what Kubernetes holds of ours | `targets`; for one of them `sources`, `unsubscribed`, `removable` |
| `annotate`, `refuse`: users' Services | `rejected`, `unmappable`: what gets no target, and why |

Whatever comes in returns the targets to plan again; so does `expire` as time passes. Read `_choose` first (which rules
take a service), then `_claim_all` and `_withdraw_all` (which targets that feeds) and `_is_gone` (when a service has
left).

Listings say which services there are, views say what their instances are. Tags, meta and filters select instances
and never end the life of a Service: while the name is listed and a rule names it, the objects at that rule's target
keep their source, whichever instance has the tags at the moment (`_choose`).

Neither listings nor views are ever forgotten because Consul fell silent: an Unknown leaves what was known before. A
service leaves this state only when it is certain that it went (`_is_gone`) and its grace period is over. Kubernetes is
the memory across restarts: `record_owned` tells which services its objects came from, and those are asked about before
anything is removed.

Not thread-safe: the planner holds a lock around it. The cost of one view does not grow with the catalog.

Longer than other modules: it is one class, for one answer of Consul changes several of the indexes together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from bridge.core import select
from bridge.core.annotated import Refusal
from bridge.core.assignments import TargetAssignments
from bridge.core.instances import treatment_of
from bridge.core.model import (
    Instance,
    Knowledge,
    Known,
    Listing,
    Place,
    Query,
    Rule,
    Skipped,
    Status,
    Target,
    Treatment,
    Unknown,
)
from bridge.core.reasons import Code, Reason
from bridge.core.rule_matches import RuleMatches, selection, unmatched
from bridge.core.values import dataclass

Name = tuple[str, str]
"""A service name of a datacenter: (datacenter, service)."""


FORMER_WAYS = 2
"""How many earlier versions of an instance (with other tags or meta) are remembered."""

ORPHAN_CHECK_SECONDS = (0.5, 30.0)
"""A target that no service feeds any more is checked when its grace is over, then less and less often, if it still may
not go."""


@dataclass(slots=True)
class _Orphan:
    """A target that no service feeds: since when, when it is to be checked, and how long the next wait is."""

    since: float
    check_at: float
    wait_seconds: float = ORPHAN_CHECK_SECONDS[0]


@dataclass(frozen=True, slots=True)
class Source:
    """One Consul service behind a target: under which rule, what is asked, and what is known of it.

    `waiting`: its instances that are healthy, and not yet for as long as the rule wants (`settle`); None where no
    history is known. Of several datacenters that a rule combines: `unread` says why this one was never read (nothing is
    known then), `stale` why it could not be read when it was last tried, `unreachable` that it does not answer at all.
    """

    rule: Rule
    query: Query
    known: Known
    unread: str = ""
    waiting: frozenset[Place] | None = None
    stale: str = ""
    unreachable: bool = False


class ConsulState:
    """Listings, views and claims of all datacenters.

    `partial_selection`: what the rules do not select is not ours to decide (they came from flags, and a second command
    with other flags must not undo the first); otherwise the rules are the whole truth, and what they leave out is
    removed.
    """

    # attributes: indexes of what is known and owned, without I/O; one call changes several of them together

    def __init__(
        self,
        rules: Sequence[Rule],
        datacenters: Sequence[str],
        grace_seconds: float,
        *,
        partial_selection: bool = False,
        follows: bool = False,
    ) -> None:
        """`follows`: views come as they change, so that it is known since when an instance is healthy."""
        self.rules = tuple(rules)
        self.datacenters = tuple(datacenters)
        self._grace_seconds = grace_seconds
        self._partial_selection = partial_selection
        self._listings: dict[str, Listing] = {}
        self._listing_trouble: dict[str, str] = {}
        self._unreachable: set[str] = set()
        self._views: dict[Query, Known] = {}
        self._trouble: dict[Query, str] = {}
        self._follows = follows
        self._healthy_since: dict[Query, dict[Place, float]] = {}  # of those that may have to wait still
        self._expired_at = -math.inf
        self._assignments = TargetAssignments()
        self._feeds: dict[Query, set[Target]] = {}
        self._selected: dict[Name, tuple[select.Choice, ...]] = {}
        self._annotated: dict[Target, tuple[Rule, Query]] = {}
        self._annotated_queries: dict[Target, Query] = {}  # what these ask for, as Consul spells it: names know no case
        self._annotated_by: dict[Name, set[Target]] = {}  # by the name in lower case
        self._refusals: dict[Target, Refusal] = {}
        self._unmappable: dict[tuple[int, Query], Skipped] = {}
        self._leaving: dict[Name, float] = {}
        self._known_to_have_left: set[Name] = set()  # of these: whose targets were told that they are gone
        self._owned: dict[Target, tuple[Name, ...]] = {}
        self._owned_by: dict[Name, set[Target]] = {}
        self._orphaned: dict[Target, _Orphan] = {}
        self._unsubscribed: set[Target] = set()
        self._subscribed: set[Query] = set()
        self._subscribed_in: Counter[str] = Counter()  # how many of them, by datacenter
        self._touched: set[Query] = set()  # what may be wanted, or known, otherwise than at the last commit
        self._unlisted: tuple[select.Choice, ...] = ()
        self._unlisted_by_query: dict[Query, list[select.Choice]] = {}
        self._uses: Counter[int] = Counter()  # of each rule, by its order: the listed services that it selects
        self._remarks: tuple[Reason, ...] | None = None
        self._hints: dict[str, str] = {}
        self._matches = RuleMatches(self.rules)
        self._claim_unlisted()

    # ------------------------------------------------------------------ what comes in

    def on_listing(self, datacenter: str, listing: Listing | Unknown, now: float) -> set[Target]:
        """Take a datacenter's listing; returns the targets that must be looked at."""
        if isinstance(listing, Unknown):
            news = datacenter not in self._listing_trouble or listing.unreachable != (datacenter in self._unreachable)
            self._listing_trouble[datacenter] = listing.reason
            (self._unreachable.add if listing.unreachable else self._unreachable.discard)(datacenter)
            return self._combined_from(datacenter) if news else set()
        first = datacenter not in self._listings
        changed: set[Target] = (
            self._combined_from(datacenter) if first or datacenter in self._listing_trouble else set()
        )
        self._unreachable.discard(datacenter)
        if self._listing_trouble.pop(datacenter, None) is not None:
            for target, orphan in self._orphaned.items():
                if any(dc == datacenter for dc, _ in self._owned.get(target, ())):
                    orphan.check_at = now
            changed |= self._left_over_from(datacenter)
        came, gone = listing.changes_since(self._listings.get(datacenter))
        self._listings[datacenter] = listing
        if first or came or gone:
            self._remarks = None
        for service in (*came, *gone) if self._annotated else ():
            for target in tuple(self._annotated_by.get((datacenter, service.lower()), ())):
                if self._as_listed(self._annotated[target][1]) != self._annotated_queries[target]:
                    changed |= self.annotate(target, *self._annotated[target], now)
        for service in came:
            changed |= self._choose((datacenter, service), listing.services[service], now)
        for service in gone:
            changed |= self._leave((datacenter, service), now)
        if first:
            for name in [n for n in self._owned_by if n[0] == datacenter and n[1] not in listing.services]:
                if self._is_owned_from_here(name):
                    changed |= self._leave(name, now)
        return changed

    def on_view(self, query: Query, state: Knowledge, now: float = 0.0) -> set[Target]:
        """Take what was read of one service; returns the targets that this changes."""
        if query not in self._subscribed:
            self._touched.add(query)  # it may come too late, and is forgotten with the next commit then
        if isinstance(state, Unknown):
            news = query not in self._trouble
            self._trouble[query] = state.reason
            return self._combined_of(query) if news else set()
        recovered = self._trouble.pop(query, None) is not None
        before = self._views.get(query)
        same = before == state
        if same and not recovered:
            return set()
        self._note_healthy(query, before, state, now)
        self._views[query] = state if before is None else replace(state, former=_former(before, state))
        unlisted = self._unlisted_by_query.get(query, ())
        self._note_matches((*(c for c in self.chosen(name_of(query)) if c.query == query), *unlisted))
        left = self._owned_by.get((query.datacenter, query.service), set()) & self._orphaned.keys()
        return left | (self._combined_of(query) if same else self._feeds.get(query, set()))

    def record_owned(self, target: Target, names: Iterable[Name], now: float) -> set[Target]:
        """Kubernetes holds objects of ours at `target` that came from these services.

        Returns the targets to look at: what is there already may keep a rule's claim on it.
        """
        names = tuple(sorted(set(names)))
        if self._owned.get(target) == names:
            return set()
        before = self._drop_owned(target)
        self._owned[target] = names
        for name in names:
            self._owned_by.setdefault(name, set()).add(target)
            self._touched.add(Query(*name))
            if self.is_missing(name) and not self._is_of_elsewhere(target, name):
                self._leaving.setdefault(name, now)
        changed = self._choose_again((*before, *names), now)
        if not self._assignments.winners(target):
            self._orphan(target, now)
        return changed

    def drop_owned(self, target: Target, now: float = 0.0) -> set[Target]:
        """Nothing of ours is left at `target`; returns the targets that must be looked at."""
        return self._choose_again(self._drop_owned(target), now)

    def _drop_owned(self, target: Target) -> tuple[Name, ...]:
        self._orphaned.pop(target, None)
        self._unsubscribed.discard(target)
        names = self._owned.pop(target, ())
        for name in names:
            targets = self._owned_by[name]
            targets.discard(target)
            if not targets:
                del self._owned_by[name]
                self._touched.add(Query(*name))
                self._cancel_leaving_if_unused(name)
        return names

    def annotate(self, target: Target, rule: Rule, query: Query, now: float) -> set[Target]:
        """A user-managed Service at `target` asks to be filled from `query`; returns the targets to look at."""
        self._refusals.pop(target, None)
        spelled = self._as_listed(query)
        if target in self._annotated and self._annotated_queries[target] != spelled:
            self.unannotate(target, now)
        self._annotated[target], self._annotated_queries[target] = (rule, query), spelled
        self._annotated_by.setdefault((query.datacenter, query.service.lower()), set()).add(target)
        self._claim(spelled, rule, target)
        return {target}

    def _as_listed(self, query: Query) -> Query:
        """What is asked for in the spelling of the listing: Consul reads a service by its name in any case."""
        listing = self._listings.get(query.datacenter)
        if listing is None or query.service in listing.services:
            return query
        alike = (name for name in sorted(listing.services) if name.lower() == query.service.lower())
        return replace(query, service=next(alike, query.service))

    def unannotate(self, target: Target, now: float) -> set[Target]:
        """The user's Service at `target` no longer asks, or is gone: what we filled may go at once."""
        refused = self._refusals.pop(target, None)
        asked = self._annotated.pop(target, None)
        if asked is None:
            return set() if refused is None else {target}
        self._annotated_by[asked[1].datacenter, asked[1].service.lower()].discard(target)
        self._withdraw(self._annotated_queries.pop(target), target, now, annotated=True)
        if not self._assignments.winners(target):
            self._unsubscribed.add(target)
        return {target}

    def refuse(self, target: Target, refusal: Refusal, now: float) -> set[Target]:
        """The user's Service at `target` asks for what was not granted.

        A user who asks for something else sends away at once what was filled. A grant that an operator takes back is
        like a rule that leaves the file: the grace passes, and the guard adds it up.
        """
        if self._refusals.get(target) == refusal:
            return set()
        asked = self._annotated.get(target)
        self.unannotate(target, now)
        if asked is not None and name_of(asked[1]) == name_of(refusal.query):
            self._unsubscribed.discard(target)
        self._refusals[target] = refusal
        return {target}

    def expire(self, now: float) -> set[Target]:
        """End the grace periods that are over; returns the targets that must be looked at."""
        due: set[Target] = set()
        for name, since in list(self._leaving.items()):
            if now - since < self._grace_seconds or not self._is_gone(name, partial_selection=False):
                self._known_to_have_left.discard(name)  # it is on its way back, or cannot be seen
                continue
            if name not in self._known_to_have_left:
                self._known_to_have_left.add(name)
                due |= self._owned_by.get(name, set())
            if self._partial_selection and not self._may_select(name):
                continue
            due |= self._withdraw_all(self._select(name, ()), since)
            self._cancel_leaving_if_unused(name)
        for target, orphan in self._orphaned.items():
            if now - orphan.since >= self._grace_seconds and now >= orphan.check_at:
                due.add(target)
                orphan.check_at = now + orphan.wait_seconds
                orphan.wait_seconds = min(2 * orphan.wait_seconds, ORPHAN_CHECK_SECONDS[1])
        return due | self._settled(now)

    def replace_rules(self, rules: Sequence[Rule], now: float) -> set[Target]:
        """Take new rules; returns every target that must be looked at."""
        self.rules = tuple(rules)
        self._matches.replace_rules(self.rules)
        self._hints.clear()
        self._remarks = None
        changed = self._withdraw_all(self._unlisted, now)
        changed |= self._claim_unlisted()
        for datacenter, listing in self._listings.items():
            for service, tags in listing.services.items():
                changed |= self._choose((datacenter, service), tags, now)
        return changed

    # ------------------------------------------------------------------ what can be asked

    def wanted(self) -> frozenset[Query]:
        """The services that Consul must be asked about, those included that may be leaving."""
        return frozenset(self._subscribed.difference(self._touched).union(filter(self._is_wanted, self._touched)))

    def commit_subscriptions(self) -> tuple[frozenset[Query], frozenset[Query]]:
        """What is to be asked from now on, and what no longer. What is known of others is forgotten here and nowhere
        else.

        A service that is asked for without interruption is not told again: its view must live as long as the
        subscription. Only what was touched since the last time is checked, out of thousands.
        """
        wanted = {query for query in self._touched if self._is_wanted(query)}
        for query in self._touched - wanted:
            for known in (self._views, self._trouble, self._healthy_since):
                known.pop(query, None)
        added, removed = wanted - self._subscribed, (self._touched - wanted) & self._subscribed
        self._touched = set()
        self._subscribed |= added
        self._subscribed -= removed
        self._subscribed_in.update(query.datacenter for query in added)
        self._subscribed_in.subtract(query.datacenter for query in removed)
        return frozenset(added), frozenset(removed)

    def _is_wanted(self, query: Query) -> bool:
        """Whether a rule or a user's Service asks for a service, or objects of ours came from it."""
        name = name_of(query)
        chosen = self.chosen(name)
        if query in self._feeds or query in self._unlisted_by_query or any(c.query == query for c in chosen):
            return True
        remembered = not chosen and query.datacenter in self.datacenters and query == Query(*name)
        return remembered and self._is_owned_from_here(name)

    def _is_owned_from_here(self, name: Name) -> bool:
        """Whether objects of ours came from a service that is listed or was."""
        return any(not self._is_of_elsewhere(target, name) for target in self._owned_by.get(name, ()))

    def _is_of_elsewhere(self, target: Target, name: Name) -> bool:
        """Whether what is at a target came from a service of this name in a place that is not listed.

        Objects do not say which place; the rules do. Whether the name is listed says nothing about such a service.
        """
        return any(rule.unlisted and name_of(query) == name for query, rule in self._assignments.winners(target))

    def pending_reads(self) -> frozenset[Query]:
        """Wanted services that Consul has neither answered nor failed for yet."""
        # of sets and dictionaries, whose hashes are stored: asked for each of thousands of services, they are the cost
        return self.wanted().difference(self._views).difference(self._trouble)

    def asked_by_annotation_alone(self, queries: Iterable[Query]) -> frozenset[Query]:
        """Those of the `queries` that only users' Services want: what is wrong with them is for those people."""
        annotated = set(self._annotated_queries.values()).intersection(queries)
        if not annotated:  # mostly; what rules select are thousands
            return frozenset()
        return frozenset(annotated.difference(c.query for cs in (*self._selected.values(), self._unlisted) for c in cs))

    def active_datacenters(self) -> tuple[str, ...]:
        """The datacenters that must be asked: a rule is about them (without any rule: our own), or they are wanted."""
        named = {dc for rule in self.rules for dc in rule.datacenters or self.datacenters}
        named.update(() if self.rules else self.datacenters[:1])
        named |= {datacenter for datacenter, services in self._subscribed_in.items() if services}
        named |= {query.datacenter for query in self._touched if self._is_wanted(query)}
        return tuple(dc for dc in self.datacenters if dc in named)

    def listed_datacenters(self) -> tuple[str, ...]:
        """The datacenters that were listed at least once."""
        return tuple(dc for dc in self.datacenters if dc in self._listings)

    def listings_answered(self) -> bool:
        """Whether every datacenter that must be asked has answered or failed at least once."""
        return all(dc in self._listings or dc in self._listing_trouble for dc in self.active_datacenters())

    def sources(self, target: Target) -> tuple[Source, ...] | None:
        """The services that feed `target`; () when none does; None while one of them was never read."""
        winners = self._assignments.winners(target)
        if winners and winners[0][1].combine is not None:
            return self._combined(winners)
        sources = []
        for query, rule in winners:
            known = self._views.get(query)
            if known is None:
                return None
            sources.append(Source(rule, query, known))
        return tuple(sources)

    def waiting(self, query: Query, rule: Rule, now: float) -> frozenset[Place] | None:
        """Instances that are healthy, and not yet for as long as a rule wants; None where no history is known."""
        if not self._follows:
            return None
        seconds = rule.instances.settle_seconds
        return frozenset(place for place, since in self._healthy_since.get(query, {}).items() if since + seconds > now)

    def _combined(self, winners: Sequence[tuple[Query, Rule]]) -> tuple[Source, ...] | None:
        """What the datacenters of a rule have under one name, in the rule's order.

        | the datacenter | its service |
        | --- | --- |
        | was listed without the name | is no source: nothing is there |
        | was not listed or not read yet | the target is not planned before it answers or fails |
        | cannot be listed or read, and never could | is a source of which nothing is known (`Source.unread`) |
        | anything else | what was last known of it |
        """
        (first, rule), claimed = winners[0], {query.datacenter: (query, rule) for query, rule in winners}
        sources = []
        for datacenter in rule.datacenters:
            if datacenter not in claimed and datacenter in self._listings:
                continue
            query, its_rule = claimed.get(datacenter, (select.query_of(rule, first.service, datacenter), rule))
            known = self._views.get(query)
            trouble = self._listing_trouble.get(datacenter) or self._trouble.get(query, "")
            if known is None and not trouble:
                return None
            unread, unreachable = trouble if known is None else "", datacenter in self._unreachable
            sources.append(Source(its_rule, query, known or Known(()), unread, stale=trouble, unreachable=unreachable))
        return tuple(sources) if any(not source.unread for source in sources) else None

    def unsubscribed(self, target: Target, *, opted_out: bool = False, orphaned: bool = False) -> bool:
        """Whether a user unsubscribed what we filled at `target`, which no service feeds any more.

        When we did not see it happen: a user-managed Service exists there and does not ask (`opted_out`), or none at
        all, so that no client gets to our endpoints (`orphaned`; what is of other flags is left to them). That proves
        it only while Consul lists what it was filled from: a Consul that lost its services has no part in it.
        """
        if target in self._unsubscribed:
            return True
        names = self._owned.get(target, ())
        if not names or not (opted_out or (orphaned and not self._partial_selection)):
            return False
        return all(self.is_listed(name) and name[0] not in self._listing_trouble for name in names)

    def removable(self, target: Target, now: float, *, opted_out: bool = False) -> bool:
        """Whether it is certain, for long enough, that no Consul service stands behind `target` any more.

        What is `opted_out` is ours alone, whatever the flags select.
        """
        orphan = self._orphaned.get(target)
        names = self._owned.get(target)
        if orphan is None or not names or now - orphan.since < self._grace_seconds:
            return False
        return all(self._is_gone(name, partial_selection=self._partial_selection and not opted_out) for name in names)

    def moves_to(self, target: Target) -> tuple[Target | Skipped, ...]:
        """Where rules send the listed services that objects of ours came from at a target that nothing feeds any more.

        A target that is refused, or another service's, is among it as `Skipped`.
        """
        names = () if self._assignments.winners(target) else self._owned.get(target, ())
        found: dict[Target | Skipped, None] = {}
        for choice in (choice for name in names for choice in self.chosen(name)):
            to, lost = choice.target, None
            if isinstance(to, Target):
                lost = self._assignments.why_lost(choice.query, choice.rule, to)
            found[to if lost is None else Skipped(choice.query.service, "", lost)] = None
        return tuple(found)

    def selection(self, target: Target, said: str) -> str:
        """What the Service at a target is to say about its rules (`rule_matches`); `said` is what it says.

        Rules that may be mistaken leave it as it is: so it is still known by what the endpoints there were selected.
        """
        rules = [rule for _, rule in self._assignments.winners(target) if not rule.to.annotated]
        choices = [c for query, _ in self._assignments.winners(target) for c in self._choices(query, target)]
        if choices and all(self._matches.may_leave_out(choice.order, said) for choice in choices):
            return said
        return selection(rules)

    def _choices(self, query: Query, target: Target) -> list[select.Choice]:
        """What rules choose of a listed service for this query and target."""
        return [c for c in self.chosen(name_of(query)) if (c.query, c.target) == (query, target)]

    def doubt(self, target: Target, said: str) -> Reason | None:
        """Why a mistake in a rule may be what takes away what is at a target (`rule_matches`); None when none is seen.

        `said` is what its Service says about rules. Only what Consul still lists is in doubt: for anything else
        Consul's own answer is the reason.
        """
        winners = self._assignments.winners(target)
        if not winners:
            listed = (name for name in self._owned.get(target, ()) if self.is_listed(name))
            doubts = (self._matches.misspelt(target, *name) or self._matches.unselected(*name) for name in listed)
            return next(filter(None, doubts), None)
        orders = [c.order for c in self._unlisted if (c.query, c.rule) in winners]
        if len(orders) == len(winners):
            shown = any(self._matches.has_selected(order) for order in orders)
            empty = all(self._views.get(query) == Known(()) for query, _ in winners)
            return Reason(Code.PLACE_HOLDS, rule=winners[0][1].title) if empty and not shown else None
        for query, rule in winners:
            chosen = self._choices(query, target)
            known = self._views.get(query)
            silent = not self.is_listed(name_of(query)) or known is None or not (known.instances or query.filter)
            if silent or rule.to.annotated or not chosen:
                return None
            if not all(self._matches.may_leave_out(choice.order, said) for choice in chosen):
                return None
        return Reason(Code.SELECTION_HOLDS, rule=rule.title, asks=rule.asks)

    def is_left_over(self, target: Target, now: float) -> bool:
        """Whether nothing can fill a target again with what it was filled from: each service is listed, or has gone.

        Asked of a target that a rule claims, and where a user's Service stands that does not ask any more.
        """
        names = self._owned.get(target, ())
        return bool(names) and all(
            (self.is_listed(name) and name[0] not in self._listing_trouble)
            or (
                now - self._leaving.get(name, now) >= self._grace_seconds
                and self._is_gone(name, partial_selection=False)
            )
            for name in names
        )

    def targets(self) -> set[Target]:
        """All targets that a service claims or that Kubernetes remembers."""
        return self._assignments.targets() | self._owned.keys() | self._refusals.keys()

    def concerns(self, target: Target) -> bool:
        """Whether the objects at `target` are ours to decide, not those of a command with other flags."""
        if not self._partial_selection or self._assignments.winners(target):
            return True
        return any(self._may_select(name) for name in self._owned.get(target, ()))

    def remembered_at(self, name: Name) -> frozenset[Target]:
        """The targets where Kubernetes holds objects of ours that came from a service."""
        return frozenset(self._owned_by.get(name, ()))

    def queries_at(self, target: Target) -> tuple[Query, ...]:
        """The services behind `target`, from the claims or from memory."""
        claimed = tuple(query for query, _ in self._assignments.winners(target))
        return claimed or tuple(Query(dc, service) for dc, service in self._owned.get(target, ()))

    def annotation(self, target: Target) -> tuple[Rule, Query] | None:
        """What the user's Service at `target` asks for, as far as is known."""
        return self._annotated.get(target)

    def annotated_query(self, target: Target) -> Query | None:
        """The same, with the service's name as Consul lists it."""
        return self._annotated_queries.get(target)

    def refusal(self, target: Target) -> Refusal | None:
        """Why the user's Service at `target` does not get what it asks for, as far as grants decide."""
        return self._refusals.get(target)

    def fed_by(self, query: Query) -> frozenset[Target]:
        """The targets that a service feeds, or would feed if they were not another's."""
        return frozenset(self._feeds.get(query, ()))

    def known(self, query: Query) -> Known | None:
        return self._views.get(query)

    def is_listed(self, name: Name) -> bool:
        listing = self._listings.get(name[0])
        return listing is not None and name[1] in listing.services

    def missing(self, datacenter: str, targets: Collection[Target]) -> tuple[int, int]:
        """How many of the services that Kubernetes remembers at `targets` a datacenter lacks, of how many.

        Those of places that are not listed are not among them.
        """
        names = {
            name
            for target in targets
            for name in self._owned.get(target, ())
            if name[0] == datacenter and not self._is_of_elsewhere(target, name)
        }
        return sum(self.is_missing(name) for name in names), len(names)

    def is_missing(self, name: Name) -> bool:
        return name[0] in self._listings and not self.is_listed(name)

    def tags(self, name: Name) -> frozenset[str] | None:
        """The tags of a service's instances together; None when its datacenter does not list it."""
        listing = self._listings.get(name[0])
        return listing.services.get(name[1]) if listing is not None else None

    def winners(self, target: Target) -> tuple[tuple[Query, Rule], ...]:
        """The services that feed `target`, each with the rule that sends it there."""
        return tuple(self._assignments.winners(target))

    def rejected(self, target: Target) -> tuple[Skipped, ...]:
        """Services that wanted `target` and did not get it."""
        return self._assignments.rejected(target)

    @property
    def assignments(self) -> TargetAssignments:
        """Who wants which target, to be looked at only."""
        return self._assignments

    def chosen(self, name: Name) -> tuple[select.Choice, ...]:
        """By which rules a listed service is mirrored (or kept), and where to; in the rules' order."""
        return self._selected.get(name, ())

    def unmappable(self) -> tuple[Skipped, ...]:
        """Services whose name cannot be brought into Kubernetes' form."""
        return tuple(sorted(self._unmappable.values()))

    def selected(self) -> int:
        """Number of Consul services that rules mirror, or would if their names could be used."""
        return len(self._selected) + len(self._unlisted)

    def rule_remarks(self) -> tuple[Reason, ...]:
        """What in the rules matches nothing of what is listed, with what may be meant; rules that select nothing.

        A rule of which a datacenter could not be listed (yet) is not among them.
        """
        if self._remarks is not None:  # thousands of services twice a second would cost
            return self._remarks
        listed = {dc: listing.services for dc, listing in self._listings.items()}
        found: list[Reason] = []
        for order, rule in enumerate(self.rules):
            if self._uses[order] and not self._matches.in_doubt(order):
                continue
            remarks = unmatched((rule,), self.datacenters, listed, self._hints)
            datacenters = rule.datacenters or self.datacenters
            if not remarks and not self._uses[order] and not rule.unlisted and all(dc in listed for dc in datacenters):
                remarks = (_unused(rule, sum(len(listed[dc]) for dc in datacenters)),)
            found += remarks
        self._remarks = tuple(found)
        return self._remarks

    def trouble(self) -> Mapping[Query, str]:
        """Services whose last read failed, with the reason. What was known of them before still stands."""
        return dict(self._trouble)

    def listing_trouble(self) -> Mapping[str, str]:
        return dict(self._listing_trouble)

    # ------------------------------------------------------------------ internal rules

    def _claim_unlisted(self) -> set[Target]:
        """Claim targets for the services that rules name where they are not listed; returns those targets."""
        self._unlisted = tuple(select.unlisted(self.rules))
        self._unlisted_by_query = {}
        for choice in self._unlisted:
            self._unlisted_by_query.setdefault(choice.query, []).append(choice)
        return self._claim_all(self._unlisted)

    def _choose(self, name: Name, tags: frozenset[str], now: float) -> set[Target]:
        """Let the rules decide about one service that is listed."""
        datacenter, service = name
        self._cancel_leaving(name)
        self._matches.see_name(datacenter, service)
        kept = self._owned_by.get(name, set())
        changed = set(kept)
        chosen: tuple[select.Choice, ...] = ()
        if select.excluded(service) is None:
            chosen = tuple(select.active(select.choices(self.rules, service, datacenter), tags, kept))
        before = self._select(name, chosen)
        changed |= self._withdraw_all([choice for choice in before if choice not in chosen], now)
        return changed | self._claim_all(chosen)

    def _select(self, name: Name, chosen: tuple[select.Choice, ...]) -> tuple[select.Choice, ...]:
        """Note what the rules choose of a service; returns what they chose before."""
        before = self._selected.pop(name, ())
        self._remarks = None
        if chosen:
            self._selected[name] = chosen
            self._note_matches(chosen)
        self._uses.subtract(choice.order for choice in before)
        self._uses.update(choice.order for choice in chosen)
        if bool(before) != bool(chosen):
            self._touched.add(Query(*name))
        return before

    def _note_matches(self, choices: Iterable[select.Choice]) -> None:
        """Note which rules select an instance of what is known."""
        for choice in choices:
            if not self._matches.has_selected(choice.order) and (known := self._views.get(choice.query)) is not None:
                self._matches.see_instances(choice.order, known.instances)

    def _choose_again(self, names: Iterable[Name], now: float) -> set[Target]:
        """The objects in Kubernetes have changed: let the rules decide again where that matters (`select.active`).

        Returns the targets of what was not chosen before, or is not any more.
        """
        changed: set[Target] = set()
        for name in set(names) if any(rule.tags for rule in self.rules) else ():
            if (tags := self.tags(name)) is not None:
                before = set(self.chosen(name))
                self._choose(name, tags, now)
                changed |= {c.target for c in before ^ set(self.chosen(name)) if isinstance(c.target, Target)}
        return changed

    def _claim_all(self, choices: Iterable[select.Choice]) -> set[Target]:
        """Claim the targets of what was chosen; returns them."""
        targets = set()
        for choice in choices:
            if isinstance(choice.target, Skipped):
                self._unmappable[choice.order, choice.query] = choice.target
                self._touched.add(choice.query)
            else:
                self._claim(choice.query, choice.rule, choice.target, choice.order)
                targets.add(choice.target)
        return targets

    def _withdraw_all(self, choices: Iterable[select.Choice], since: float) -> set[Target]:
        """Withdraw the claims of what was chosen and is not any more; returns their targets."""
        targets = set()
        for choice in choices:
            if isinstance(choice.target, Skipped):
                self._unmappable.pop((choice.order, choice.query), None)
                self._touched.add(choice.query)
            else:
                self._withdraw(choice.query, choice.target, since, annotated=False, order=choice.order)
                targets.add(choice.target)
        return targets

    def _leave(self, name: Name, now: float) -> set[Target]:
        """A complete listing no longer has `name`: its grace period begins."""
        self._leaving.setdefault(name, now)
        fed = {choice.target for choice in self.chosen(name) if isinstance(choice.target, Target)}
        return fed | self._owned_by.get(name, set())

    def _claim(self, query: Query, rule: Rule, target: Target, order: int = 0) -> None:
        self._assignments.claim(query, rule, target, order)
        self._feeds.setdefault(query, set()).add(target)
        self._orphaned.pop(target, None)
        self._unsubscribed.discard(target)
        self._touched.update((query, Query(*name_of(query))))

    def _withdraw(self, query: Query, target: Target, now: float, *, annotated: bool, order: int = 0) -> None:
        """Withdraw one claim; a query may hold several on one target."""
        self._assignments.withdraw(query, target, annotated=annotated, order=order)
        if not self._assignments.wants(query, target):
            targets = self._feeds.get(query, set())
            targets.discard(target)
            if not targets:
                self._feeds.pop(query, None)
        if target in self._owned and not self._assignments.winners(target):
            self._orphan(target, now)
        self._touched.update((query, Query(*name_of(query))))

    def _orphan(self, target: Target, since: float) -> None:
        self._orphaned.setdefault(target, _Orphan(since, since))

    def _cancel_leaving_if_unused(self, name: Name) -> None:
        """A service that is not needed any more is not waited for either."""
        if name not in self._selected and name not in self._owned_by:
            self._cancel_leaving(name)

    def _cancel_leaving(self, name: Name) -> None:
        self._leaving.pop(name, None)
        self._known_to_have_left.discard(name)

    def _left_over_from(self, datacenter: str) -> set[Target]:
        """Targets that hold objects of ours from this datacenter's services, while others feed them."""
        return {
            target
            for name, targets in self._owned_by.items()
            if name[0] == datacenter
            for target in targets - self._orphaned.keys()
            if all(name_of(query) != name for query, _ in self._assignments.winners(target))
        }

    def _note_healthy(self, query: Query, before: Known | None, known: Known, now: float) -> None:
        """Which instances have become healthy just now, where a rule lets them settle."""
        rules = [rule for _, rule in self._settling(query)] if self._follows else []
        since = self._healthy_since.pop(query, {})
        if not rules:
            return
        was = _healthy(before.instances, rules) if before is not None else set()
        found = {place: since.get(place) if place in was else now for place in _healthy(known.instances, rules)}
        waiting = {place: at for place, at in found.items() if at is not None}
        if waiting:
            self._healthy_since[query] = waiting

    def _settled(self, now: float) -> set[Target]:
        """Targets with an instance that has been healthy for long enough since this was last asked."""
        due: set[Target] = set()
        for query, since in list(self._healthy_since.items()):
            longest = 0.0
            for target, rule in self._settling(query):
                seconds = rule.instances.settle_seconds
                longest = max(longest, seconds)
                if any(self._expired_at < at + seconds <= now for at in since.values()):
                    due.add(target)
            self._healthy_since[query] = {place: at for place, at in since.items() if at + longest > now}
            if not self._healthy_since[query]:
                del self._healthy_since[query]
        self._expired_at = now
        return due

    def _settling(self, query: Query) -> list[tuple[Target, Rule]]:
        """The targets that a service feeds by rules that let its instances settle."""
        return [
            (target, rule)
            for target in self._feeds.get(query, ())
            for fed, rule in self._assignments.winners(target)
            if fed == query and rule.instances.settle_seconds
        ]

    def _combined_of(self, query: Query) -> set[Target]:
        """Targets that are made of several datacenters, and fed by this service."""
        fed = self._feeds.get(query, ())
        return {target for target in fed if any(r.combine is not None for _, r in self._assignments.winners(target))}

    def _combined_from(self, datacenter: str) -> set[Target]:
        """Targets that are made of several datacenters, this one among them: whether it answers may matter to them."""
        if not any(rule.combine is not None and datacenter in rule.datacenters for rule in self.rules):
            return set()  # mostly; the targets are thousands
        return {
            target
            for target in self._assignments.targets()
            for _, rule in self._assignments.winners(target)[:1]
            if rule.combine is not None and datacenter in rule.datacenters
        }

    def _may_select(self, name: Name) -> bool:
        """Whether a rule names a service, whatever tags it has."""
        datacenter, service = name
        return any(select.why_not(rule, service, datacenter) is None for rule in self.rules)

    def _is_gone(self, name: Name, *, partial_selection: bool) -> bool:
        """Whether a service that is leaving has certainly left.

        | the listing | its own view | so |
        | --- | --- | --- |
        | any, but no rule would select such a name, and the selection is partial | any | not ours to decide: it stays |
        | has the name | any | it left our selection (asked only where no claim holds) |
        | lacks the name | known, and empty (by every rule's filter) | it is gone |
        | lacks the name | unknown, or not empty | not proved (hidden by an ACL, or on its way back): it stays |
        | unknown | any | not proved: it stays |
        """
        datacenter, service = name
        if datacenter in self._listing_trouble or datacenter not in self._listings:
            return False
        if partial_selection and not self._may_select(name):
            return False
        if service in self._listings[datacenter].services:
            return not partial_selection
        queries = {choice.query for choice in self.chosen(name)} or {Query(datacenter, service)}
        return all(query not in self._trouble and self._views.get(query) == Known(()) for query in queries)


def _unused(rule: Rule, listed: int) -> Reason:
    """The remark about a rule that selects nothing, in the rule's own words."""
    words = [f"services {', '.join(rule.services)}"] if rule.services else []
    words += [rule.asks] if rule.asks else []
    words += [f"datacenters {', '.join(rule.datacenters)}"] if rule.datacenters else []
    return Reason(Code.RULE_UNUSED, rule=rule.title, count=listed, words="; ".join(words) or "every one")


def _former(before: Known, now: Known) -> tuple[Instance, ...]:
    """How the instances that are still there were seen before their tags or meta changed, each in its last ways."""
    was = {(i.node, i.id): i for i in before.instances if i.tags or i.meta}
    if not was and not before.former:
        return ()
    kept: dict[tuple[str, str], list[Instance]] = {}
    for instance in before.former:
        kept.setdefault((instance.node, instance.id), []).append(instance)
    found: list[Instance] = []
    for instance in now.instances:
        key = instance.node, instance.id
        old, ways = was.get(key), kept.get(key, [])
        if old is not None and (old.tags, old.meta) != (instance.tags, instance.meta):
            ways = [*(w for w in ways if (w.tags, w.meta) != (old.tags, old.meta)), old]
        found += ways[-FORMER_WAYS:]
    return tuple(found)


def _healthy(instances: Iterable[Instance], rules: Sequence[Rule]) -> set[Place]:
    """Where instances are that are ready by their health, under all of the rules."""
    good = [s for s in Status if all(treatment_of(s, rule.instances) is Treatment.READY for rule in rules)]
    return {instance.place for instance in instances if instance.status in good}


def name_of(query: Query) -> Name:
    """The service that is asked for, whatever filter, namespace or peer goes with it."""
    return query.datacenter, query.service
