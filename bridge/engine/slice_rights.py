"""Whether we may write EndpointSlices in a namespace: asked when a plan wants to, and again while we may not.

Without `create` or `patch` the Endpoints carry the addresses, as they do with `output: endpoints`; without `delete`
slices that are not needed are emptied. Nothing stops.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from bridge.core.model import Policy
from bridge.core.plan import missing_rights
from bridge.errors import BridgeError
from bridge.kube.cache import can_i
from bridge.kube.client import KubeClient

RECHECK_SECONDS = 10.0
"""How often a right that was missing is asked for again: so soon after it was granted slices are written."""

UNANSWERED_SECONDS = 5.0
"""How long a namespace counts as allowed after a question without an answer: not each target asks a dead server."""

CanI = Callable[[str, str], bool]
"""Whether a verb on EndpointSlices is allowed in a namespace; raises BridgeError where nobody answers."""


class SliceRights:
    """What is known of the rights, by namespace. Thread-safe; asks while no lock is held."""

    def __init__(self, can_i: CanI, policy: Policy, clock: Callable[[], float]) -> None:
        self._can_i = can_i
        self._verbs = ("create", "patch", "delete") if policy is Policy.SYNC else ("create", "patch")
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, tuple[tuple[str, ...], float]] = {}

    def missing(self, namespace: str) -> tuple[str, ...]:
        """The verbs that are missing in a namespace; none when nobody answers."""
        with self._lock:
            lacking, until = self._known.get(namespace, ((), -math.inf))
        return lacking if self._clock() < until else self._ask(namespace)

    def refused(self, namespace: str) -> None:
        """A write of a slice was refused: what is known of the namespace is known no longer."""
        with self._lock:
            self._known.pop(namespace, None)

    def forbidden(self) -> dict[str, str]:
        """The namespaces where no slices can be written, as far as is known, and the rights that are missing there."""
        return {
            namespace: missing_rights(lacking, namespace)
            for namespace, lacking in self._lacking().items()
            if {"create", "patch"} & set(lacking)
        }

    def granted(self) -> set[str]:
        """Namespaces where a right was missing and is there now; asks no more often than is sensible."""
        return {
            namespace for namespace, lacked in self._lacking().items() if set(lacked) - set(self.missing(namespace))
        }

    def _lacking(self) -> dict[str, tuple[str, ...]]:
        with self._lock:
            return {namespace: lacking for namespace, (lacking, _) in sorted(self._known.items()) if lacking}

    def _ask(self, namespace: str) -> tuple[str, ...]:
        try:
            lacking = tuple(verb for verb in self._verbs if not self._can_i(verb, namespace))
        except BridgeError:
            with self._lock:
                lacking, _ = self._known.get(namespace, ((), 0.0))
                self._known[namespace] = lacking, self._clock() + UNANSWERED_SECONDS
            return lacking
        with self._lock:
            self._known[namespace] = lacking, self._clock() + RECHECK_SECONDS if lacking else math.inf
        return lacking


def slice_rights(client: KubeClient, policy: Policy, clock: Callable[[], float] = time.monotonic) -> SliceRights:
    """The rights that the API server tells of."""

    def allowed(verb: str, namespace: str) -> bool:
        return can_i(client, verb, "discovery.k8s.io", "endpointslices", namespace)

    return SliceRights(allowed, policy, clock)
