"""How `bridge run` runs, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field

from bridge.core.annotated import USUAL, Annotated
from bridge.core.guard import GuardSettings
from bridge.core.model import Adopt, Policy
from bridge.kube.election import ElectionConfig
from bridge.pipeline.dns import ResolverSettings
from bridge.retry import RetryPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How the daemon runs. Durations in seconds. `election` None: this is the only replica; `events`: write Events."""

    owner: str = "default"
    installation: str = ""
    policy: Policy = Policy.SYNC
    adopt: Adopt = Adopt.NEVER
    partial_selection: bool = False
    guard: GuardSettings = field(default_factory=GuardSettings)
    resolver: ResolverSettings = field(default_factory=ResolverSettings)
    cluster_nodes: tuple[str, ...] = ()
    annotated: Annotated = USUAL
    removal_grace_seconds: float = 30.0
    resync_seconds: float = 300.0
    writers: int = 16
    election: ElectionConfig | None = None
    events: bool = True
    consul_retry: RetryPolicy = field(default_factory=RetryPolicy)
    kube_retry: RetryPolicy = field(default_factory=RetryPolicy)
    object_retry: RetryPolicy = field(default_factory=lambda: RetryPolicy(initial_seconds=0.05, max_seconds=60.0))
    permanent_retry: RetryPolicy = field(default_factory=lambda: RetryPolicy(initial_seconds=5.0, max_seconds=300.0))
