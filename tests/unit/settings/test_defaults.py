"""The settings declare every default. Where another place repeats one, it says the same."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import pytest

from bridge.cli.flags import FLAGS
from bridge.config import load
from bridge.config.tree import catalogue
from bridge.consul.client import ConsulConfig
from bridge.controller.options import RunOptions
from bridge.core.guard import GuardSettings
from bridge.kube.client import KubeConfig
from bridge.oneshot.inputs import SyncOptions
from bridge.pipeline.dns import ResolverSettings

SETTINGS = load({}, {})
TAKEN_FROM_OTHERS = {"annotated", "access", "connections", "selects"}
"""Fields that no single setting decides: several do, or what is known when a command begins."""


@pytest.mark.parametrize(
    ("made", "plain"),
    [
        (SETTINGS.run_options(), RunOptions()),
        (SETTINGS.sync_options(), SyncOptions()),
        (SETTINGS.consul_config(), ConsulConfig()),
        (SETTINGS.kube_config(), KubeConfig()),
        (SETTINGS.guard_settings(), GuardSettings()),
        (SETTINGS.resolver_settings(), ResolverSettings()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_options_that_a_test_leaves_out_are_those_that_a_user_leaves_out(made: Any, plain: Any) -> None:
    """So that what is tested is what runs."""
    names = {field.name for field in fields(plain)} - TAKEN_FROM_OTHERS
    assert {name: getattr(plain, name) for name in names} == {name: getattr(made, name) for name in names}


def test_the_help_of_a_flag_says_the_default_of_its_setting() -> None:
    """Importing the settings for a help text would cost each command a tenth of a second."""
    settings = {setting.flag: setting for setting in catalogue() if setting.flag}
    said = {
        name: found[1]
        for name, flag in FLAGS.items()
        if name in settings and (found := re.search(r"default '?([\w.:]+?)'?[;,.]?(?:\s|$|\))", flag.help))
    }
    meant = {name: settings[name].text(settings[name].field.get_default()) for name in said}
    assert said == meant
    assert len(said) > 8
