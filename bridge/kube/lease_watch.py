"""What a replica knows of all Leases of its owner id: one list, and a watch from there.

Our own renewal comes back by the watch: what the watch told before is complete up to the moment at which the renewal
was sent. Where it does not come back, or there is no watch, all Leases are listed, every 0.6 s if need be.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence

from bridge.errors import BridgeError, CancelledError
from bridge.kube import objects
from bridge.kube.lease import Session, boot_clock
from bridge.kube.members import ElectionConfig, Leases, Observations
from bridge.retry import RetryPolicy
from bridge.threads import Failed, guarded_thread


class LeaseWatch:
    """Keeps `observed` up to date. One thread watches; the election's thread calls all but `follow`.

    `news` is set whenever there is something to act on.
    """

    def __init__(
        self,
        leases: Leases,
        config: ElectionConfig,
        shard_names: Sequence[str],
        *,
        failed: Failed | None = None,
        clock: Callable[[], float] = boot_clock,
        spread: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._leases = leases
        self._poll_seconds = config.times.poll
        self._clock = clock
        self._spread = spread
        self._stop = threading.Event()
        self._doubtful = True
        self.news = threading.Event()
        self.watching = False
        self.observed = Observations(leases, clock, config.duration_seconds, shard_names)
        self._thread = guarded_thread("kube-election-watch", self._run, failed, stop=self._stop)

    def start(self) -> None:
        """Begin to watch; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Have the watch end."""
        self._stop.set()
        self._leases.close_watch()

    def join(self, timeout: float) -> bool:
        """Whether its thread has ended, at the latest at the timeout."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        """Watch from the last list on, again and again; while there is no watch, `update` lists."""
        retry, failures = RetryPolicy(), 0
        while not self.observed.last.revision and not self._stop.wait(self._poll_seconds / 5):
            pass
        while not self._stop.is_set():
            began = self._clock()
            try:
                self.follow()
                failures = failures + 1 if self._clock() - began < 1.0 else 0
            except CancelledError:
                return
            except BridgeError as error:
                failures += 1
                self._stop.wait(retry.wait_seconds(failures, error))
            else:
                self._stop.wait(retry.wait_seconds(failures) if failures else 0.0)

    def follow(self) -> None:
        """Hand on what changes from now on, until the server ends the watch."""
        try:
            with self._leases.watch(self.observed.last.revision) as events:
                self.watching = True
                for event in events:
                    self.observed.feed(event)
                    self.news.set()
        finally:
            self.watching = False
            self.news.set()

    def update(self, session: Session) -> None:
        """Take in what the watch told, and list where it tells nothing, or what is known has proved to be old."""
        self.observed.take_events()
        if self._must_list(session):
            self._doubtful = False
            self.observed.look()

    def doubt(self) -> None:
        """What is known has proved to be old: have all Leases listed."""
        self._doubtful = True

    def next_list_seconds(self, *, waiting: bool) -> tuple[float, ...]:
        """The pause until the next list, where one is due; `waiting`: something is to change that was not told yet."""
        if self.watching and not self._doubtful and not waiting:
            return ()
        return (self._spread(0.8 * self._poll_seconds, 1.2 * self._poll_seconds),)

    def _must_list(self, session: Session) -> bool:
        now, poll, held = self._clock(), self._poll_seconds, session.held
        if now - self.observed.looked_at < 0.8 * poll:
            return False
        late = held is not None and self.observed.last.revision < objects.version(held.resource_version)
        if self.watching and late and now - session.answered >= 2 * poll:
            self._leases.restart_watch()
            return True
        return self._doubtful or not self.watching or self.observed.last.error is not None
