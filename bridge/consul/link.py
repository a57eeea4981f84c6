"""How the parts of a datacenter's watch ask Consul, and what is noted of how that went.

Clients, watches and pauses come from here, so that a failure that one part sees is true for all of them: the
datacenter is in doubt, every reader rests, one trouble is reported.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from bridge.consul.client import Answer, ConsulClient, ConsulConfig
from bridge.consul.consistency import Conditions, ConsistencyGate
from bridge.consul.ratelimit import AdaptiveConcurrency, TokenBucket
from bridge.consul.watch import PERMANENT_RETRY, Watch
from bridge.errors import BridgeError, PermanentError, ThrottledError, TransientError
from bridge.retry import RetryPolicy


class Link:
    """The link to one datacenter. Any thread."""

    def __init__(
        self,
        config: ConsulConfig,
        name: str,
        *,
        concurrency: AdaptiveConcurrency,
        retry: RetryPolicy,
        clock: Callable[[], float],
        rebuilt: Callable[[], None],
        went_back: Callable[[], None],
        trouble: Callable[[str | None], None],
    ) -> None:
        """`rebuilt` and `went_back` go to the ConsistencyGate; `trouble` gets what is wrong with the datacenter."""
        self.config = config
        self.name = name
        self.concurrency = concurrency
        self.clock = clock
        self.stop = threading.Event()
        self.gate = ConsistencyGate(name, rebuilt, went_back, self._sure_again, self.stop)
        self.conditions = Conditions(trouble)
        self.last_success: float | None = None
        self._retry = retry
        self._attempts = 0
        self._slowed = 0
        self._slow_until = float("-inf")

    # ------------------------------------------------------------------ asking

    def client(self, rest_seconds: float = 0.0) -> ConsulClient:
        return ConsulClient(self.config, self.gate.mark_suspect, rest_seconds)

    def watch(
        self,
        client: ConsulClient,
        ask: Callable[[int, float], Answer],
        take: Callable[[Answer], bool],
        fail: Callable[[BridgeError], None],
        buckets: tuple[TokenBucket, ...],
        byte_bucket: TokenBucket | None = None,
    ) -> Watch:
        return Watch(
            ask=ask,
            take=take,
            fail=fail,
            gate=self.gate,
            client=client,
            sleep=self.gate.sleep,
            stop=self.stop,
            buckets=buckets,
            byte_bucket=byte_bucket,
            retry=self._retry,
            wait_seconds=self.config.wait_seconds,
        )

    def ready(self, client: ConsulClient) -> bool:
        """Before a reader's next job: make sure of Consul. False: it could not be done, and we waited."""
        if self.stop.is_set():
            return True
        pause = self._slow_until - self.clock()
        if pause > 0:
            self.stop.wait(pause)
            return False
        if not self.gate.suspect:
            if self.conditions.has("confirm"):  # told by a thread whose own try failed while another one succeeded
                self.conditions.set("confirm", None)
            return True
        try:
            self.gate.verify(client)
        except (TransientError, PermanentError) as error:
            self._attempts += 1
            self.broke(error)
            self.conditions.set("confirm", str(error))
            self.gate.sleep(self.policy(error).wait_seconds(self._attempts, error))
            return False
        return True

    def policy(self, error: BridgeError) -> RetryPolicy:
        """How soon what failed with `error` is tried again."""
        return PERMANENT_RETRY if isinstance(error, PermanentError) else self._retry

    # ------------------------------------------------------------------ how it went

    def broke(self, error: BridgeError) -> None:
        """Something failed: what does that say about the datacenter as a whole?"""
        if isinstance(error, ThrottledError):
            self.concurrency.throttled()
            self.conditions.set("throttled", str(error))
        elif isinstance(error, TransientError) and error.fault_of_server:
            self.gate.mark_suspect(str(error))

    def read_failed(self, error: BridgeError) -> None:
        """A reader's question failed; when Consul asks us to be slower, all readers rest together."""
        self.broke(error)
        now = self.clock()
        if isinstance(error, ThrottledError) and now >= self._slow_until:
            self._slowed += 1
            self._slow_until = now + self._retry.wait_seconds(self._slowed, error)

    def read_worked(self, at: float) -> None:
        self._slowed = 0
        self.last_success = at

    def _sure_again(self) -> None:
        """Whichever thread made sure of Consul: it can be read again."""
        self._attempts = 0
        self.last_success = self.clock()
        self.conditions.set("confirm", None)
