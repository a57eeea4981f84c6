"""The pauses of the listing: what a question for the index alone shows, and where its failures go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from bridge.consul.client import Answer
from bridge.consul.link import Link
from bridge.consul.listing_watch import ListingWatch
from bridge.errors import BridgeError, PermanentError, ThrottledError, TransientError


class Stub:
    """A link and its client in one; the index cannot be asked for."""

    def __init__(self, error: BridgeError) -> None:
        self.name, self.clock, self.stop = "dc1", time.monotonic, threading.Event()
        self.listed: list[int] = []
        self.broken: list[BridgeError] = []
        self.ask: Callable[[int, float], Answer]
        self._error = error
        self.watch_listing = ListingWatch(cast(Link, self), lambda *_: None, lambda: None, lambda _: None)
        self.watch_listing.watch()

    def client(self, _give_way_seconds: float) -> Stub:
        return self

    def watch(self, _client: Any, ask: Callable[[int, float], Answer], *_further: Any) -> None:
        self.ask = ask

    def listing(self, _datacenter: str, index: int, _wait: float) -> Answer:
        self.listed.append(index)
        return Answer(index, None)

    def catalog_index(self, _datacenter: str) -> int:
        raise self._error

    def broke(self, error: BridgeError) -> None:
        self.broken.append(error)


def third_question(stub: Stub) -> None:
    """Two listings may be asked for at once; before the third one is a pause."""
    for _ in range(3):
        stub.ask(7, 1.0)


def test_consul_that_does_not_answer_in_a_pause_is_reported_as_by_a_listing() -> None:
    """The watch learns of it, reports it and backs off; kept back it would show in no log and in no metric."""
    stub = Stub(TransientError("Consul did not answer in time"))
    with pytest.raises(TransientError, match="in time"):
        third_question(stub)
    assert stub.listed == [7, 7]


@pytest.mark.parametrize("error", [ThrottledError("429"), PermanentError("no such parameter")])
def test_a_refused_question_for_the_index_does_not_keep_the_listing_from_being_read(error: BridgeError) -> None:
    stub = Stub(error)
    third_question(stub)
    assert (stub.listed, stub.broken) == ([7, 7, 7], [error])
