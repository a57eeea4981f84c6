"""The settings declare every default; the help of a flag repeats some."""

from __future__ import annotations

import re

from bridge.cli.flags import FLAGS
from bridge.config.tree import catalogue


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
