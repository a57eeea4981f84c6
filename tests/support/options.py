"""Options as the settings make them for a user who sets nothing, but for what a test is about.

What no single setting decides is what tests mean: annotated Services may ask for everything, and a rule selects.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bridge.config import load
from bridge.consul.client import ConsulConfig
from bridge.controller.options import RunOptions
from bridge.core.annotated import USUAL
from bridge.core.guard import GuardSettings
from bridge.kube.client import KubeConfig
from bridge.oneshot.inputs import SyncOptions
from bridge.pipeline.dns import ResolverSettings

SETTINGS = load({}, {})


def consul_config(**changes: Any) -> ConsulConfig:
    return replace(SETTINGS.consul_config(), **changes)


def kube_config(**changes: Any) -> KubeConfig:
    return replace(SETTINGS.kube_config(), **changes)


def guard_settings(**changes: Any) -> GuardSettings:
    return replace(SETTINGS.guard_settings(), **changes)


def resolver_settings(**changes: Any) -> ResolverSettings:
    return replace(SETTINGS.resolver_settings(), **changes)


def run_options(**changes: Any) -> RunOptions:
    return replace(SETTINGS.run_options(), **{"annotated": USUAL, **changes})


def sync_options(**changes: Any) -> SyncOptions:
    return replace(SETTINGS.sync_options(), **{"annotated": USUAL, "selects": True, **changes})
