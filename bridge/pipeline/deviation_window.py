"""How long what readers see may differ from what is wanted before it is reported.

The control plane's mirror of Endpoints is always a little late (20 slices a second, by default). A lag that ends within
the window is not reported; one that lasts means that traffic goes elsewhere. And a target is not reported as in sync
before both sides were seen in agreement once.

A plan is made before the mirror of its own changes exists, so where instances come and go all the time no plan ever
agrees. What counts is therefore how long each single difference (an endpoint that is missing, superfluous or has other
conditions; a foreign slice) has existed. A mirror that works removes each one soon; one that has stopped does not,
however often the service changes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import replace

from bridge.core.model import Plan, Target

WINDOW_SECONDS = 5.0
"""The window: long against the mirror's tenth of a second, short against the time in which users look."""


class DeviationWindow:
    """Since when each difference exists. Thread-safe. A window of 0 seconds: a deviation is reported at once."""

    def __init__(self, clock: Callable[[], float], seconds: float = WINDOW_SECONDS) -> None:
        self._clock = clock
        self._seconds = seconds
        self._lock = threading.Lock()
        self._agreed: set[Target] = set()
        self._since: dict[Target, dict[Hashable, float]] = {}

    def judge(self, plan: Plan) -> Plan:
        """The plan with the deviations to report: those that are young are left out, or `deviations_recent`."""
        with self._lock:
            if not plan.deviations:
                self._since.pop(plan.target, None)
                if plan.queries:
                    self._agreed.add(plan.target)
                else:
                    self._agreed.discard(plan.target)
                return plan
            now, before = self._clock(), self._since.get(plan.target, {})
            since = self._since[plan.target] = {one: before.get(one, now) for one in plan.differences}
            if any(now - began >= self._seconds for began in since.values()):
                self._agreed.discard(plan.target)
                return plan
            agreed = plan.target in self._agreed
        return replace(plan, deviations=() if agreed else plan.deviations, deviations_recent=True)
