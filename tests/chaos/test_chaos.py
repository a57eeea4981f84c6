"""Every fault once, on real servers, with a fixed seed: after each the observer must have seen no violation.

Another seed than the usual one: CHAOS_SEED=7.

One harness serves all faults of one kind of Consul: starting it takes longer than most faults. For longer and
for other sequences there is `make chaos`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from tests.support.chaos.faults import Fault, catalogue
from tests.support.chaos.harness import Harness
from tests.support.chaos.run import Campaign, summary
from tests.support.lab import LabError

pytestmark = [pytest.mark.lab, pytest.mark.slow]

SEED = int(os.environ.get("CHAOS_SEED", "20"))
ALONE = [fault for fault in catalogue().values() if fault.servers == 1]
CLUSTER = [fault for fault in catalogue().values() if fault.servers > 1]


def staged(servers: int) -> Iterator[Campaign]:
    """A campaign that has begun; where there can be no servers the test is skipped, except in CI."""
    try:
        with Harness(seed=SEED, servers=servers) as harness:
            campaign = Campaign(harness, print)
            campaign.begin()
            yield campaign
            print("\n".join(summary(campaign).lines()))
    except LabError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no servers: {error}")


@pytest.fixture(scope="module")
def campaign() -> Iterator[Campaign]:
    """With one Consul server."""
    yield from staged(1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Campaign]:
    """With three."""
    yield from staged(3)


@pytest.mark.parametrize("fault", ALONE, ids=lambda fault: fault.name)
def test_nothing_is_taken_away_and_all_agrees_again(fault: type[Fault], campaign: Campaign) -> None:
    """Invariants (i) to (vii), with changes all the time."""
    assert list(map(str, campaign.play(fault(), random.Random(SEED)).violations)) == []


@pytest.mark.parametrize("fault", CLUSTER, ids=lambda fault: fault.name)
def test_nothing_is_taken_away_when_servers_of_a_cluster_die(fault: type[Fault], cluster: Campaign) -> None:
    """The same with three Consul servers."""
    assert list(map(str, cluster.play(fault(), random.Random(SEED)).violations)) == []
