"""The addresses of the cluster's nodes, which bound what users' Services may lead to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bridge.errors import BridgeError
from bridge.kube.client import KubeClient
from bridge.kube.nodes import cluster_nodes
from bridge.pipeline.planner import Planner
from bridge.retry import RetryPolicy

AWAIT_SECONDS, RETRY_SECONDS = 10.0, 60.0
"""How long the first full pass waits for them, and how often they are asked for while they cannot be read."""


@dataclass(eq=False, repr=False)
class NodeAddresses:
    """Keeps the planner's nodes up to date; `names` are those of the settings. For the supervisor's thread."""

    client: KubeClient
    names: Sequence[str]
    planner: Planner
    retry: RetryPolicy
    stop: threading.Event
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        self._next = float("-inf")
        self.trouble = ""
        """Why they may be out of date; "" while they are not."""

    def await_first(self) -> None:
        """Learn them before the first pass, if that does not take too long.

        Nothing else needs them, so nothing else waits for a server that does not list its nodes.
        """
        if "*" in self.names:  # then their names were needed, and came with the addresses
            return
        deadline, attempt = self.clock() + AWAIT_SECONDS, 0
        while not self.refresh() and self.clock() < deadline and not self.stop.is_set():
            attempt += 1
            self.stop.wait(self.retry.wait_seconds(attempt))

    def refresh(self) -> bool:
        """Read the nodes; whether that succeeded. Else those that are known stay, and `/readyz` says why."""
        self._next = self.clock() + RETRY_SECONDS
        try:
            self.planner.nodes = cluster_nodes(self.client, self.names, self.planner.nodes)
        except BridgeError as error:
            self.trouble = str(error)
            return False
        self.trouble = ""
        return True

    def mended(self, now: float) -> bool:
        """Retry a failed read of the nodes if it is due; returns whether it succeeded."""
        return bool(self.trouble) and now >= self._next and self.refresh()
