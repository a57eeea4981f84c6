"""Which writes put back what another writer had undone."""

from __future__ import annotations

from dataclasses import replace

from bridge.controller.workers import _restores
from bridge.core.model import Port, Status
from bridge.report import Outcome
from tests.unit.core.builders import Cluster, instance, mirror_of, planned, rule


def test_what_is_wanted_as_before_is_put_back_and_what_a_user_set_is_followed() -> None:
    """A port that another writer adds needs other flags of the same write; publishNotReadyAddresses is honoured."""
    cluster = Cluster()
    first = planned(mirror_of([instance()], rule(), cluster.current()), cluster.current())
    cluster.apply(first)
    before = Outcome(first, first.changes)
    assert cluster.service is not None
    stood = cluster.service
    cluster.service = replace(stood, ports=(*stood.ports, Port("more", 9)))
    again = planned(mirror_of([instance()], rule(), cluster.current()), cluster.current())
    assert again.writes
    assert _restores(Outcome(again, again.writes), before)
    cluster.service = replace(stood, traffic=replace(stood.traffic, publish_not_ready=True))
    found = [instance(), instance("10.0.0.2", status=Status.CRITICAL)]
    followed = planned(mirror_of(found, rule(), cluster.current()), cluster.current())
    assert followed.writes
    assert not _restores(Outcome(followed, followed.writes), before)
