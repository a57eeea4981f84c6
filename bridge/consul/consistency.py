"""Whether what a datacenter says may be believed just now, and what is wrong with it.

Anything that broke (a connection, a 5xx, an index that went backwards) puts the datacenter in doubt. While it is, no
answer is used. One consistent read of its nodes ends the doubt, and one of its listing when an index went backwards (or
a query returned early with nothing new, as when a snapshot is restored); when that shows another Consul, the listener
is called first. So `on_rebuilt` always comes before the first view of the
rebuilt one, whichever thread comes back first.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from bridge.consul import decode
from bridge.consul.client import ConsulClient, Mode
from bridge.consul.identity import Identity

RETURN_SECONDS = 0.5
"""When Consul is back, those who waited for it ask again within so many seconds: not all at once."""


class ConsistencyGate:
    """The doubt of one datacenter, and the waiting of its threads. Any thread."""

    def __init__(
        self,
        datacenter: str,
        on_rebuilt: Callable[[], None],
        on_went_back: Callable[[], None],
        on_confirmed: Callable[[], None],
        stop: threading.Event,
    ) -> None:
        self._datacenter = datacenter
        self._on_rebuilt = on_rebuilt
        self._on_went_back = on_went_back
        self._on_confirmed = on_confirmed
        self._stop = stop
        self._identity = Identity()
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._doubts = 1  # nothing was seen yet: the first read is a confirmation, too
        self._went_back = False
        self._settled = 0
        self._recoveries = 0
        self.confirmations = 0
        self.rebuilds = 0

    @property
    def suspect(self) -> bool:
        """Whether answers must not be used before `verify`."""
        return self._doubts != self._settled

    def mark_suspect(self, _reason: str = "", *, went_back: bool = False) -> None:
        """Something broke, or an index `went_back`: Consul may be another one."""
        with self._lock:
            self._doubts += 1
            self._went_back = self._went_back or went_back

    def verify(self, client: ConsulClient) -> None:
        """End the doubt with consistent reads; raises what they raised. One thread at a time."""
        with self._turn:
            doubts, went_back = self._doubts, self._went_back
            if doubts == self._settled:
                return
            answer = client.nodes(self._datacenter, mode=Mode.CONSISTENT)
            nodes = decode.nodes_of(answer)
            listing = client.listing(self._datacenter, mode=Mode.CONSISTENT) if went_back else None
            with self._lock:
                another = self._identity.is_another(answer.index, nodes)
                another = (listing is not None and self._identity.is_older(listing.index)) or another
                self._went_back = self._went_back and self._doubts != doubts
            if another:
                self.rebuilds += 1
                self._on_rebuilt()
            elif went_back:
                self._on_went_back()
            self._on_confirmed()
            with self._changed:
                self._settled = doubts
                self.confirmations += 1
                if self._doubts == doubts:
                    self._recoveries += 1
                    self._changed.notify_all()

    def observe(self, index: int, nodes: dict[str, tuple[int, int]]) -> None:
        """What the nodes aggregate watch saw, so that a later confirmation compares with something recent."""
        with self._lock:
            self._identity.observe(index, nodes)

    def observe_listing(self, index: int) -> None:
        """The index of a listing that was believed, for the same."""
        with self._lock:
            self._identity.observe_listing(index)

    def sleep(self, seconds: float) -> None:
        """Wait so long, or until a little after the doubt has ended, or until the end."""
        with self._changed:
            before = self._recoveries
            self._changed.wait_for(lambda: self._stop.is_set() or self._recoveries != before, seconds)
            recovered = self._recoveries != before
        if recovered:
            self._stop.wait(random.random() * RETURN_SECONDS)  # noqa: S311 - no secret depends on it

    def hurry(self) -> None:
        """What was refused may be granted now: the next attempts come soon."""
        with self._changed:
            self._recoveries += 1
            self._changed.notify_all()

    def wake(self) -> None:
        """Wake all who sleep (after `stop` was set)."""
        with self._changed:
            self._changed.notify_all()


class Conditions:
    """Several possible troubles of one datacenter, told as one: the first of them, and None when the last is gone."""

    def __init__(self, tell: Callable[[str | None], None]) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._reasons: dict[str, str] = {}
        self._told: str | None = None

    def set(self, source: str, reason: str | None) -> None:
        """`source` has a trouble, or (None) has none any more."""
        with self._lock:
            if reason is None:
                self._reasons.pop(source, None)
            else:
                self._reasons[source] = reason
            first = next(iter(self._reasons.values()), None)
            if first != self._told:
                self._told = first
                self._tell(first)

    def has(self, source: str) -> bool:
        return source in self._reasons

    @property
    def current(self) -> str | None:
        return self._told
