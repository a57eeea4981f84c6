"""Which datacenter carries the traffic: what holds for whatever is known of them, and what is rare."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.core import failover
from bridge.core.failover import Candidate, Memory, choose, remembered
from bridge.core.model import Current, CurrentService, Failover, Kind, Meta, Pairs, Port, Target
from bridge.core.ownership import ACTIVE, DATACENTER, PENDING

TARGET, NOW = Target("default", "web"), 1.7e9
NAMES = ("ams", "fra", "lon")
POLICY = Failover(when_unreachable=True)


def current(*said: tuple[str, str], owner: str = "us") -> Current:
    """A Service with these annotations."""
    meta = Meta(
        kind=Kind.SERVICE, namespace="default", name="web", uid="u", resource_version="1", owner=owner, ownership=said
    )
    return Current(TARGET, CurrentService(meta, "ClusterIP", headless=False, has_selector=False, ports=(Port("", 80),)))


@st.composite
def known(draw: st.DrawFn) -> list[Candidate]:
    """One to three datacenters in any state that there can be."""
    found = []
    for name in NAMES[: draw(st.integers(1, 3))]:
        registered = draw(st.integers(0, 4))
        unreachable = draw(st.booleans())
        found.append(
            Candidate(
                datacenter=name,
                ready=draw(st.integers(0, registered)),
                registered=registered,
                doubt=draw(st.sampled_from(["", "hidden"])),
                stale="no answer" if unreachable else draw(st.sampled_from(["", "refused"])),
                unreachable=unreachable,
            )
        )
    return found


policies = st.builds(
    Failover,
    below=st.integers(1, 100),
    percent=st.booleans(),
    when_unreachable=st.booleans(),
    unreachable_seconds=st.sampled_from([0.0, 30.0]),
    failback_seconds=st.sampled_from([0.0, 60.0]),
)
memories = st.builds(
    Memory,
    st.sampled_from(["", *NAMES, "gone"]),
    st.sampled_from(["", *NAMES]),
    st.sampled_from([NOW - 100, NOW - 40, NOW, NOW + 1000]),
)


@given(candidates=known(), policy=policies, before=memories)
@settings(max_examples=400, deadline=None)
def test_traffic_moves_only_to_what_is_known_to_be_ready_now(
    candidates: list[Candidate], policy: Failover, before: Memory
) -> None:
    """Away from what is in doubt by the rule's own word only; and what was decided is decided again the same way."""
    found = choose(candidates, policy, before, NOW)
    by_name = {c.datacenter: c for c in candidates}
    if found is None:
        assert before.active not in by_name
        return
    memory, carrier = found
    active, old = by_name[memory.active], by_name.get(before.active)
    assert carrier.name == memory.active
    if old is not None and active is not old:
        assert active.has_enough(policy)
        assert not active.stale
        back = candidates.index(active) < candidates.index(old)
        certain = not old.has_enough(policy) and not old.doubt
        assert certain or back or (old.unreachable and policy.when_unreachable)
        assert carrier.before == before.active
    if policy.failback_seconds and policy.unreachable_seconds:
        again = choose(candidates, policy, memory, NOW)
        assert again is not None
        assert (again[0], again[1].before) == (memory, "")
    if memory.pending:
        late = choose(candidates, policy, memory, memory.since + 60.0)
        assert late is not None
        assert late[0] == Memory(memory.pending)
    marked = tuple(pair for pairs in failover.marks(memory) for pair in pairs)
    assert remembered(current(*marked), "us") == memory


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ((), Memory()),
        (((DATACENTER, "ams"),), Memory("ams")),
        (((DATACENTER, "ams,fra"),), Memory()),
        (((ACTIVE, "fra"), (DATACENTER, "ams,fra")), Memory("fra")),
        (((ACTIVE, "fra"), (PENDING, "ams soon")), Memory("fra")),
        (((ACTIVE, "fra"), (PENDING, "ams 2023-11-14T22:13:20+00:00")), Memory("fra", "ams", NOW)),
    ],
)
def test_what_a_service_says_is_read_and_what_makes_no_sense_is_nothing(said: Pairs, expected: Memory) -> None:
    """Another owner's says nothing to us."""
    assert remembered(current(*said), "us") == expected
    assert remembered(current(*said), "them") == Memory()


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        # none has enough: the first that has any instance, of those of which that is certain
        ((("ams", 0, 0, ""), ("fra", 0, 2, "")), "fra"),
        ((("ams", 0, 0, ""), ("fra", 0, 0, "")), "ams"),
        ((("ams", 0, 0, "never"), ("fra", 0, 2, "")), "fra"),
        ((("ams", 0, 0, "never"), ("fra", 0, 0, "")), "fra"),
        ((("ams", 0, 0, "never"), ("fra", 0, 0, "never")), ""),
    ],
)
def test_where_none_carries_the_traffic_yet_the_unreachable_are_passed_over(
    candidates: tuple[tuple[str, int, int, str], ...], expected: str
) -> None:
    """By a rule that says so; nothing is made while nothing is certain."""
    found = [
        Candidate(datacenter=dc, ready=ready, registered=count, doubt=doubt, stale=doubt, unreachable=bool(doubt))
        for dc, ready, count, doubt in candidates
    ]
    made = choose(found, POLICY, Memory(), NOW)
    assert (made[1].name if made is not None else "") == expected
    refused = [replace(c, unreachable=False) for c in found]
    assert (choose(refused, POLICY, Memory(), NOW) is None) == any(c.doubt for c in found)


def test_why_the_first_does_not_carry_it_is_reported_while_nothing_is_known_of_it() -> None:
    """A datacenter that refuses us has not fewer instances for that."""
    ams = Candidate(datacenter="ams", ready=0, registered=0, doubt="forbidden", stale="forbidden")
    fra = Candidate(datacenter="fra", ready=1, registered=1)
    made = choose([ams, fra], POLICY, Memory("fra"), NOW)
    assert made is not None
    assert made[1].why == (
        "datacenter fra carries the traffic, not ams: what it has is not known for certain (forbidden)"
    )


def test_one_that_had_too_few_when_it_last_answered_keeps_no_traffic() -> None:
    """Without `failover_when: unreachable` as well: its last word was that too few are ready, and that is no doubt."""
    ams = Candidate(datacenter="ams", ready=0, registered=3, stale="timeout", unreachable=True)
    fra = Candidate(datacenter="fra", ready=2, registered=2)
    made = choose([ams, fra], replace(POLICY, when_unreachable=False), Memory("ams"), NOW)
    assert made is not None
    assert made[1].why == (
        "datacenter fra carries the traffic, not ams: when it last answered it had 0 of 3 ready, and failover_below "
        "is 1 (timeout)"
    )
