"""Which targets this replica writes: all of them, or those of the shards that it holds.

Every replica reads, plans and judges everything, so that a standby is warm and the guard sees the whole; only the
writes are divided.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

from bridge.core.model import Target
from bridge.core.shards import shard_of
from bridge.kube.client import KubeClient
from bridge.kube.election import Election
from bridge.kube.lease_api import KubeLeases
from bridge.kube.members import ElectionConfig
from bridge.kube.predecessor import has_ended, own_process


class Leadership(Protocol):
    """What the controller asks before it writes."""

    def start(self) -> None:
        """Begin to take part; returns at once."""

    def stop(self) -> None:
        """Give everything up; call it when the last write has ended."""

    def leads(self, target: Target, /) -> bool:
        """Whether we write this target now."""

    def lease_remaining(self, target: Target, /) -> float:
        """How long a write that begins now may take; 0 when it is not ours."""

    def begin_write(self, target: Target, /) -> bool:
        """Begin a write; False when it is not ours. Every True must be followed by `end_write`."""

    def end_write(self, target: Target, /) -> None:
        """The write has ended."""

    def status(self) -> dict[str, Any] | None:
        """Which replica leads which shard, None without an election."""

    def conflicting_writer(self) -> str:
        """The message about another installation with our owner id, "" while none is known."""


class NoElection:
    """The only replica: everything is ours."""

    def start(self) -> None:
        """Nothing to be elected."""

    def stop(self) -> None:
        """Nothing to give up."""

    def leads(self, _target: Target, /) -> bool:
        return True

    def lease_remaining(self, _target: Target, /) -> float:
        return math.inf

    def begin_write(self, _target: Target, /) -> bool:
        return True

    def end_write(self, _target: Target, /) -> None:
        """Nothing waits for it."""

    def status(self) -> dict[str, Any] | None:
        return None

    def conflicting_writer(self) -> str:
        """Without an election no other installation is known."""
        return ""


class LeaseElection:
    """One of several replicas. `on_change` is called, from the election's thread, with the shards that are ours now.

    `sees_consul`: whether we can ask Consul; `can_write`: whether the API server answers our writes. A replica that
    cannot leaves the writing to one that can.
    """

    def __init__(
        self,
        client: KubeClient,
        config: ElectionConfig,
        *,
        on_change: Callable[[frozenset[int]], None],
        failed: Callable[[BaseException], None],
        sees_consul: Callable[[], bool],
        can_write: Callable[[], bool],
    ) -> None:
        self._shards = config.shards
        self._leases = KubeLeases(client, config)
        self._election = Election(
            self._leases,
            config,
            on_change=on_change,
            failed=failed,
            sees_consul=sees_consul,
            can_write=can_write,
            process=own_process(),
            has_ended=has_ended,
        )

    def start(self) -> None:
        self._election.start()

    def stop(self) -> None:
        self._election.stop()
        self._leases.close()

    def leads(self, target: Target, /) -> bool:
        return self._election.may_write(shard_of(target, self._shards))

    def lease_remaining(self, target: Target, /) -> float:
        return self._election.lease_remaining(shard_of(target, self._shards))

    def begin_write(self, target: Target, /) -> bool:
        return self._election.begin_write(shard_of(target, self._shards))

    def end_write(self, target: Target, /) -> None:
        self._election.end_write(shard_of(target, self._shards))

    def status(self) -> dict[str, Any] | None:
        return self._election.status()

    def conflicting_writer(self) -> str:
        """Other members of the election say who they belong to."""
        return self._election.conflicting_writer
