"""Making sure of a datacenter that is in doubt."""

from __future__ import annotations

import threading
from typing import Any, cast

from bridge.consul.checkpoint import Checkpoint
from bridge.consul.client import Answer, ConsulClient, Mode


class Consul:
    """A client of a server whose nodes never change, and whose listing has an index."""

    def __init__(self) -> None:
        self.listed = 300
        self.asked: list[str] = []

    def nodes(self, _datacenter: str, *, mode: Mode) -> Answer:
        return self._answer("nodes", mode, 100, [{"Node": "vm", "CreateIndex": 5, "ModifyIndex": 5}])

    def listing(self, _datacenter: str, *, mode: Mode) -> Answer:
        return self._answer("listing", mode, self.listed, {})

    def _answer(self, what: str, mode: Mode, index: int, data: Any) -> Answer:
        assert mode is Mode.CONSISTENT, "only the leader's word is proof"
        self.asked.append(what)
        return Answer(data=data, index=index)


def confirmed(consul: Consul, checkpoint: Checkpoint) -> int:
    """How often Consul was found to be another one so far."""
    checkpoint.confirm(cast("ConsulClient", consul))
    assert not checkpoint.doubted
    return checkpoint.rebuilds


def test_a_restored_snapshot_is_another_consul_although_its_nodes_are_the_same() -> None:
    """The listing is read as well when an index went backwards, and only then: it is dear."""
    consul, checkpoint = Consul(), Checkpoint("dc1", lambda: None, lambda: None, lambda: None, threading.Event())
    found = [confirmed(consul, checkpoint)]
    checkpoint.observe_listing(300)
    checkpoint.doubt("connection reset")
    found.append(confirmed(consul, checkpoint))
    checkpoint.doubt("Consul's index went backwards", went_back=True)
    found.append(confirmed(consul, checkpoint))
    consul.listed = 290
    checkpoint.doubt("Consul's index went backwards", went_back=True)
    found.append(confirmed(consul, checkpoint))
    checkpoint.observe_listing(291)
    consul.listed = 292
    checkpoint.doubt("Consul's index went backwards", went_back=True)
    found.append(confirmed(consul, checkpoint))
    assert found == [0, 0, 0, 1, 1]
    assert consul.asked == ["nodes", "nodes", *["nodes", "listing"] * 3]
