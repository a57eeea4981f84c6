"""What rules have matched so far, and what in them matches nothing. The scenarios of `mistakes` have the rest."""

from __future__ import annotations

from dataclasses import replace

from bridge.core.model import Known, Listing, Query, Rule, Target, Unknown
from bridge.core.rule_matches import selection, unmatched
from bridge.core.state import ConsulState
from tests.unit.core.builders import instance

LISTED = {"dc1": {"orders": {"live", "euro"}, "orders-db": set[str]()}, "dc2": {"mail": {"live"}}}
AT = Target("default", "orders")


def test_what_matches_nothing_is_named_with_what_looks_like_it() -> None:
    """A name, a glob, a tag; each rule in its own datacenters, once all of them are listed."""
    rules = (
        Rule(name="typed", services=("ordres", "orders-db", "x-*"), datacenters=("dc1",)),
        Rule(name="unseen", services=("nix",), datacenters=("dc1", "dc3")),
        Rule(name="peer", services=("nix",), datacenters=("dc1",), unlisted=True),
        Rule(name="tags", services=("orders*",), tags=("live", "uero")),
        Rule(name="apart", services=("mail", "orders-db"), tags=("live", "uero")),
        Rule(name="right", tags=("live",)),
        Rule(name="names nothing", services=("nix",), tags=("live",), datacenters=("dc2",)),
    )
    found = unmatched(rules, ("dc1", "dc2"), LISTED)
    assert found == (
        "typed: dc1 lists no service ordres; did you mean orders or orders-db?",
        "typed: dc1 lists no service x-*",
        "tags: no service that it names has the tag uero; did you mean euro?",
        "apart: no service that it names has the tag uero",
        "names nothing: dc2 lists no service nix",
    )
    both = Rule(name="both", services=("orders", "mail"), tags=("eu", "mail"))
    assert unmatched((both,), ("dc1", "dc2"), {"dc1": {"orders": ["eu"]}, "dc2": {"mail": ["mail"]}}) == (
        "both: no service that it names has the tag eu, mail",
    )
    remembered = {"ordres": "; did you mean that?"}
    assert unmatched(rules[:1], (), LISTED, remembered)[0] == "typed: dc1 lists no service ordres; did you mean that?"
    about = unmatched(rules, ("dc1", "dc2"), LISTED, about=("orders",))
    assert about == (found[0], found[2])


def _state(rule: Rule, **listed: frozenset[str]) -> ConsulState:
    state = ConsulState((rule,), ["dc1"], 0.0)
    state.record_owned(AT, [("dc1", "orders")], 0.0)
    state.on_listing("dc1", Listing(listed), 0.0)
    return state


def test_only_what_consul_lists_and_shows_is_in_doubt() -> None:
    """A service that has gone, or has no instance, is Consul's word; what was never read is no word at all."""
    tagged, seen = Rule(name="meta", meta=(("env", "prod"),)), Known((instance(),))
    doubts = []
    for rule, name, view in (
        (tagged, "orders", seen),
        (tagged, "orders", Known(())),
        (tagged, "orders", None),
        (tagged, "orders", Unknown("away")),
        (tagged, "others", seen),
        (Rule(name="typed", services=("ordres",)), "orders", None),
        (Rule(name="typed", services=("ordres",)), "others", None),
        (Rule(name="typed", services=("ordres",), unlisted=True, datacenters=("dc1",)), "orders", None),
    ):
        state = _state(replace(rule, meta=()), **{name: frozenset()})
        state.replace_rules((rule,), 1.0)
        if view is not None:
            state.on_view(Query("dc1", "orders", filter=rule.filter), view)
        doubts.append(str(state.doubt(AT, "") or "").split(":")[0])
    assert doubts == ["meta", "", "", "", "", "typed", "", ""]


def test_a_filter_is_in_doubt_when_it_was_changed_and_has_shown_nothing() -> None:
    """The one that the Service was made for is not: what it leaves out and what has gone look alike."""
    rule = Rule(name="web", services=("orders",), filter="tier == web")
    state, doubts = _state(rule, orders=frozenset()), []
    state.on_view(Query("dc1", "orders", filter=rule.filter), Known(()))
    doubts.append(state.doubt(AT, selection((rule,))))
    for changed, view in (
        (replace(rule, filter="tier == wbe"), ()),
        (replace(rule, filter="tier == app"), (instance(),)),
    ):
        state.replace_rules((changed,), 1.0)
        state.on_view(Query("dc1", "orders", filter=changed.filter), Known(view))
        doubts.append(state.doubt(AT, ""))
        state.replace_rules((changed, Rule(name="further")), 2.0)
        doubts.append(state.doubt(AT, ""))
    held = "web: it wants what the filter wants (tier == wbe), which no instance in Consul has"
    assert doubts == [None, held, held, None, None]


def test_a_rule_keeps_what_it_has_matched_when_others_change() -> None:
    """A reload of the same file proves nothing new; a rule that is changed begins from scratch."""
    rule = Rule(name="live", services=("orders",), tags=("live",))
    state, query = _state(rule, orders=frozenset({"live"})), Query("dc1", "orders")
    state.on_view(query, Known((instance(tags=("live",)),)))
    state.on_view(query, Known((instance(),)))
    assert state.doubt(AT, "") is None
    state.replace_rules((Rule(name="new", services=("nix",)), rule), 1.0)
    assert state.doubt(AT, "") is None
    state.replace_rules((Rule(name="live", services=("orders",), tags=("lvie",)),), 2.0)
    assert state.doubt(AT, "") == "live: it wants the tag lvie, which no instance in Consul has"
