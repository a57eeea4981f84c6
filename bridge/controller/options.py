"""How `bridge run` runs, as one value."""

from __future__ import annotations

from dataclasses import dataclass

from bridge.kube.members import ElectionConfig
from bridge.pipeline.options import PassOptions
from bridge.retry import RetryPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions(PassOptions):
    """How the daemon runs. Durations in seconds. `election` None: this is the only replica; `events`: write Events."""

    removal_grace_seconds: float
    resync_seconds: float
    election: ElectionConfig | None
    events: bool
    consul_retry: RetryPolicy
    kube_retry: RetryPolicy
    object_retry: RetryPolicy
    permanent_retry: RetryPolicy
