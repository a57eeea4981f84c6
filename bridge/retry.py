"""Retrying as data: one policy per side and one way to wait that a shutdown ends at once.

tenacity computes the waits (exponential, full jitter); this module only joins it with what the servers ask for
(`Retry-After`) and with the stop event, so that no loop in the bridge ever sleeps where it cannot be woken.
It is a leaf: `consul/`, `kube/` and `controller/` use it, it knows none of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import tenacity

from bridge.errors import CancelledError, TransientError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Exponential backoff with full jitter: at least `initial_seconds`, at most `max_seconds`.

    `attempts` 0 means without limit (the daemon); a one-shot command gives up after a number of them.
    """

    initial_seconds: float = 0.1
    max_seconds: float = 5.0
    multiplier: float = 2.0
    attempts: int = 0

    def wait_seconds(self, attempt: int, error: BaseException | None = None) -> float:
        """Seconds to wait after failed attempt number `attempt` (from 1). Never below what the server asked for."""
        jittered = tenacity.wait_random_exponential(
            multiplier=self.initial_seconds, exp_base=self.multiplier, max=self.max_seconds, min=self.initial_seconds
        )(_state(attempt))
        asked = getattr(error, "retry_after_seconds", None) or 0.0
        return max(jittered, asked)


def _state(attempt: int) -> tenacity.RetryCallState:
    state = tenacity.RetryCallState(retry_object=tenacity.Retrying(), fn=None, args=(), kwargs={})
    state.attempt_number = attempt
    return state


def call(
    function: Callable[[], T],
    policy: RetryPolicy,
    stop: threading.Event,
    on_retry: Callable[[TransientError, float], None] | None = None,
) -> T:
    """Call `function` until it returns; only TransientError is retried.

    Raises the last TransientError when the policy's attempts are used up, CancelledError when `stop` is set.
    """

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return policy.wait_seconds(state.attempt_number, error)

    def before_sleep(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if on_retry is not None and isinstance(error, TransientError):
            on_retry(error, state.upcoming_sleep)

    def sleep(seconds: float) -> None:
        if stop.wait(seconds):
            raise CancelledError("stopped while waiting to try again")

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TransientError),
        wait=wait,
        stop=tenacity.stop_after_attempt(policy.attempts) if policy.attempts else tenacity.stop_never,
        before_sleep=before_sleep,
        sleep=sleep,
        reraise=True,
    )
    return retrying(function)
