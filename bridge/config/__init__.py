"""The settings: flags, environment and file, merged into one frozen tree that is checked before anything is read.

| module | what is in it |
| --- | --- |
| `schema`, `rules` | every key: type, bounds, default, flag, environment names, description |
| `types` | the texts of durations, sizes, networks, templates, addresses |
| `tree` | the whole tree, and what each package is handed of it |
| `catalogue` | all settings with their names in every source, for the sources and the documents |
| `sources`, `yaml_file` | flags, environment, file; each value with its place |
| `build` | `load`: the sources together, and what no key can know alone |
| `errors` | what pydantic finds, in words |
"""

from bridge.config.build import load, owner_of
from bridge.config.catalogue import RULE_FLAGS, Setting, rule_env
from bridge.config.rules import (
    DestinationRule,
    GrantSettings,
    InstancesRule,
    ParentRule,
    RouteSettings,
    RuleSettings,
)
from bridge.config.tree import Settings, catalogue
from bridge.config.types import duration_text, parse_duration

__all__ = [
    "RULE_FLAGS",
    "DestinationRule",
    "GrantSettings",
    "InstancesRule",
    "ParentRule",
    "RouteSettings",
    "RuleSettings",
    "Setting",
    "Settings",
    "catalogue",
    "duration_text",
    "load",
    "owner_of",
    "parse_duration",
    "rule_env",
]
