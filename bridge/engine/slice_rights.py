"""Whether we may write EndpointSlices in a namespace: asked when a plan wants to, and again while we may not.

Without that right the Endpoints carry the addresses, as they do with `output: endpoints`; nothing stops.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from bridge.core.model import Policy
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
        self._known: dict[str, tuple[str, float]] = {}

    def missing(self, namespace: str) -> str:
        """The rights that are missing in a namespace, in words; "" when none is, or when nobody answers."""
        with self._lock:
            text, until = self._known.get(namespace, ("", -math.inf))
        return text if self._clock() < until else self._ask(namespace)

    def refused(self, namespace: str) -> None:
        """A write of a slice was refused: what is known of the namespace is known no longer."""
        with self._lock:
            self._known.pop(namespace, None)

    def forbidden(self) -> dict[str, str]:
        """The namespaces where rights are missing, as far as is known, and which."""
        with self._lock:
            return {namespace: text for namespace, (text, _) in sorted(self._known.items()) if text}

    def granted(self) -> set[str]:
        """Namespaces where the rights were missing and are there now; asks no more often than is sensible."""
        before = self.forbidden()
        return {namespace for namespace in before if not self.missing(namespace)}

    def _ask(self, namespace: str) -> str:
        try:
            lacking = [verb for verb in self._verbs if not self._can_i(verb, namespace)]
        except BridgeError:
            with self._lock:
                text, _ = self._known.get(namespace, ("", 0.0))
                self._known[namespace] = text, self._clock() + UNANSWERED_SECONDS
            return text
        text = f"{', '.join(lacking)} endpointslices in namespace {namespace}" if lacking else ""
        with self._lock:
            self._known[namespace] = text, self._clock() + RECHECK_SECONDS if text else math.inf
        return text


def slice_rights(client: KubeClient, policy: Policy, clock: Callable[[], float] = time.monotonic) -> SliceRights:
    """The rights that the API server tells of."""

    def allowed(verb: str, namespace: str) -> bool:
        return can_i(client, verb, "discovery.k8s.io", "endpointslices", namespace)

    return SliceRights(allowed, policy, clock)
