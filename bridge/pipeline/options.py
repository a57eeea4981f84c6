"""What `bridge run` and one pass have in common of their options.

Options have no defaults: `config` declares each setting once, with its default, and makes the options of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from bridge.core.annotated import Annotated
from bridge.core.guard import GuardSettings
from bridge.core.model import Adopt, Policy
from bridge.core.reconcile import PlanOptions
from bridge.pipeline.dns import ResolverSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class PassOptions:
    """What is done at all targets, and under whose name. `writers`: objects that are written at once."""

    owner: str
    installation: str
    policy: Policy
    adopt: Adopt
    partial_selection: bool
    guard: GuardSettings
    resolver: ResolverSettings
    cluster_nodes: tuple[str, ...]
    annotated: Annotated
    writers: int

    def of_plans(self, *, force: bool = False) -> PlanOptions:
        """What of it a plan depends on."""
        return PlanOptions(
            owner=self.owner, policy=self.policy, adopt=self.adopt, force=force, installation=self.installation
        )
