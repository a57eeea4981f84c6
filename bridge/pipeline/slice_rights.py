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
from bridge.kube.client import KubeClient
from bridge.kube.permissions import can_i

RECHECK_SECONDS = 10.0
"""How often a right that was missing is asked for again, at most: about so soon after it was granted it is used."""

AT_ONCE = 4
"""For how many namespaces it is asked for again at a time: the supervisor waits for that, twice a second at most."""

PAUSE_SECONDS = 0.5
"""The pause in between."""

ENOUGH_SECONDS = 1.0
"""After how long of it the rest waits for the next time."""

UNANSWERED_SECONDS = 5.0
"""How long nothing is asked after a question without an answer, and counts as allowed if nothing is known of it."""

QUESTION_SECONDS = 5.0
"""How long an answer may take: users wait for some of the callers."""

EVERYWHERE = ""

CanI = Callable[[str, str], bool]
"""Whether a verb on EndpointSlices is allowed in a namespace ("": in all); raises BridgeError without an answer."""


class SliceRights:
    """What is known of the rights, by namespace. Thread-safe; asks while no lock is held.

    With `everywhere` all namespaces are watched, and one question tells of all of them where a ClusterRole grants it.
    """

    def __init__(self, can_i: CanI, policy: Policy, clock: Callable[[], float], *, everywhere: bool = False) -> None:
        self._can_i = can_i
        self._verbs = ("create", "patch", "delete") if policy is Policy.SYNC else ("create", "patch")
        self._clock = clock
        self._everywhere = everywhere
        self._lock = threading.Lock()
        self._known: dict[str, tuple[tuple[str, ...], float]] = {}
        self._refused: set[str] = set()
        self._silent_until = self._next_look = -math.inf

    def missing(self, namespace: str) -> tuple[str, ...]:
        """The verbs that are missing in a namespace; none without an answer. Only `granted` asks again."""
        if self._everywhere and namespace not in self._refused and self._asked_once(EVERYWHERE) == ():
            return ()
        return self._asked_once(namespace) or ()

    def refused(self, namespace: str) -> None:
        """A write of a slice was refused: what is known of the namespace is known no longer."""
        with self._lock:
            self._known.pop(namespace, None)
            self._refused.add(namespace)  # whatever is true of all of them: an authorizer may make exceptions

    def forbidden(self) -> dict[str, str]:
        """The namespaces where no slices can be written, as far as is known, and the rights that are missing there."""
        return {
            namespace: missing_rights(lacking, namespace)
            for namespace, lacking in self._lacking().items()
            if {"create", "patch"} & set(lacking)
        }

    def granted(self) -> set[str]:
        """Namespaces where a right was missing and is there now; asks for a few, those first that wait longest."""
        lacked, now = self._lacking(), self._clock()
        if not lacked or now < self._next_look:
            return set()
        self._next_look = now + PAUSE_SECONDS
        if self._due(EVERYWHERE, now) and self._ask(EVERYWHERE) == ():
            with self._lock:
                found = lacked.keys() - self._refused
                for namespace in found:
                    self._known.pop(namespace, None)
            return found
        found = set()
        with self._lock:
            waiting = sorted((self._known[n][1], n) for n in lacked if n in self._known)
        for until, namespace in waiting[:AT_ONCE]:
            if self._clock() - now >= ENOUGH_SECONDS:
                break
            if until <= now and (lacking := self._ask(namespace)) is not None and set(lacked[namespace]) - set(lacking):
                found.add(namespace)
        return found

    def _lacking(self) -> dict[str, tuple[str, ...]]:
        with self._lock:
            return {n: lacking for n, (lacking, _) in sorted(self._known.items()) if lacking and n != EVERYWHERE}

    def _due(self, namespace: str, now: float) -> bool:
        """Whether it is time to ask again for what was missing."""
        with self._lock:
            lacking, until = self._known.get(namespace, ((), 0.0))
        return bool(lacking) and until <= now

    def _asked_once(self, namespace: str) -> tuple[str, ...] | None:
        with self._lock:
            known = self._known.get(namespace)
        return known[0] if known is not None else self._ask(namespace)

    def _ask(self, namespace: str) -> tuple[str, ...] | None:
        """The verbs that are missing; None without an answer, and while there was none just now."""
        if self._clock() < self._silent_until:
            return None
        try:
            lacking = tuple(verb for verb in self._verbs if not self._can_i(verb, namespace))
        except BridgeError:
            self._silent_until = self._clock() + UNANSWERED_SECONDS
            return None
        with self._lock:
            self._known[namespace] = lacking, self._clock() + RECHECK_SECONDS
        return lacking


def slice_rights(
    client: KubeClient,
    policy: Policy,
    clock: Callable[[], float] = time.monotonic,
    *,
    everywhere: bool = False,
) -> SliceRights:
    """The rights that the API server tells of. `everywhere`: all namespaces are watched."""

    def allowed(verb: str, namespace: str) -> bool:
        return can_i(client, verb, "discovery.k8s.io", "endpointslices", namespace, timeout=QUESTION_SECONDS)

    return SliceRights(allowed, policy, clock, everywhere=everywhere)
