"""Which datacenters may be asked, which are meant, and which are really asked."""

from __future__ import annotations

import threading

import pytest

from bridge.core.model import Query, Rule, Target
from bridge.core.state import ConsulState
from bridge.pipeline.scope import anchored, datacenters_of, named_with, never_used
from bridge.retry import RetryPolicy
from tests.support.options import consul_config

FAR, NEAR = Rule(services=("x",), datacenters=("dc2",)), Rule(services=("y",))


@pytest.mark.parametrize(
    ("rules", "further", "expected"),
    [
        ((), (), ("dc5",)),
        ((NEAR,), (), ("dc5",)),
        ((FAR,), (), ("dc5", "dc2")),
        ((FAR, NEAR), ("dc3", "dc2", "dc5"), ("dc5", "dc2", "dc3")),
    ],
)
def test_our_own_datacenter_is_the_first_whatever_the_rules_name(
    rules: tuple[Rule, ...], further: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    """Consul is not asked for it where it is configured."""
    consul = consul_config(address="http://127.0.0.1:9", datacenter="dc5", datacenters=further)
    assert datacenters_of(rules, consul, RetryPolicy(attempts=1), threading.Event()) == expected
    assert named_with("dc5", rules, consul) == expected


@pytest.mark.parametrize(
    ("rules", "asking", "expected"),
    [
        ((), "", ("dc1",)),
        ((), "dc3", ("dc1", "dc3")),
        ((FAR,), "", ("dc2",)),
        ((FAR,), "dc1", ("dc1", "dc2")),
        ((NEAR, FAR), "", ("dc1", "dc2")),
        ((NEAR, FAR), "dc9", ("dc1", "dc2")),
    ],
)
def test_a_datacenter_is_asked_when_a_rule_or_a_service_wants_something_of_it(
    rules: tuple[Rule, ...], asking: str, expected: tuple[str, ...]
) -> None:
    """And our own when there is no rule at all; one that may not be asked never is."""
    datacenters = ("dc1", "dc2", "dc3")
    consul_state = ConsulState(anchored(rules, datacenters), datacenters, grace_seconds=0.0)
    if asking:
        consul_state.annotate(Target("default", "web"), Rule(services=("web",)), Query(asking, "web"), now=0.0)
    assert consul_state.active_datacenters() == expected


def test_a_rule_without_datacenters_shadows_only_what_is_about_our_own() -> None:
    """Its name need not be known: then what might be about it is not reported."""
    every, far, near = Rule(name="a"), Rule(name="b", datacenters=("dc2",)), Rule(name="c", services=("x",))
    own = Rule(name="d", datacenters=("dc1",))
    assert never_used((every, far)) == []
    assert never_used((far, near)) == []
    assert never_used((every, near)) == [("c", "a")]
    assert (never_used((every, own)), never_used((every, own), "dc1")) == ([], [("d", "a")])
