"""Making sure of a datacenter that is in doubt."""

from __future__ import annotations

import threading
from typing import Any, cast

from bridge.consul.client import Answer, ConsulClient, Mode
from bridge.consul.consistency import ConsistencyGate
from bridge.consul.wire import NodeRow


class Consul:
    """A client of a server whose nodes never change, and whose listing has an index."""

    def __init__(self) -> None:
        self.listed = 300
        self.asked: list[str] = []

    def nodes(self, _datacenter: str, *, mode: Mode) -> Answer:
        return self._answer("nodes", mode, 100, [NodeRow(name="vm", created=5, modified=5)])

    def listing(self, _datacenter: str, *, mode: Mode) -> Answer:
        return self._answer("listing", mode, self.listed, {})

    def _answer(self, what: str, mode: Mode, index: int, data: Any) -> Answer:
        assert mode is Mode.CONSISTENT, "only the leader's word is proof"
        self.asked.append(what)
        return Answer(data=data, index=index)


def confirmed(consul: Consul, gate: ConsistencyGate) -> int:
    """How often Consul was found to be another one so far."""
    gate.verify(cast("ConsulClient", consul))
    assert not gate.suspect
    return gate.rebuilds


def test_a_restored_snapshot_is_another_consul_although_its_nodes_are_the_same() -> None:
    """The listing is read as well when an index went backwards, and only then: it is dear."""
    consul, gate = Consul(), ConsistencyGate("dc1", lambda: None, lambda: None, lambda: None, threading.Event())
    found = [confirmed(consul, gate)]
    gate.observe_listing(300)
    gate.mark_suspect("connection reset")
    found.append(confirmed(consul, gate))
    gate.mark_suspect("Consul's index went backwards", went_back=True)
    found.append(confirmed(consul, gate))
    consul.listed = 290
    gate.mark_suspect("Consul's index went backwards", went_back=True)
    found.append(confirmed(consul, gate))
    gate.observe_listing(291)
    consul.listed = 292
    gate.mark_suspect("Consul's index went backwards", went_back=True)
    found.append(confirmed(consul, gate))
    assert found == [0, 0, 0, 1, 1]
    assert consul.asked == ["nodes", "nodes", *["nodes", "listing"] * 3]
