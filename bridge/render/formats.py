"""Data as JSON and YAML."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


def to_json(data: Any) -> str:
    """JSON with two blanks of indentation and a line end. Only ASCII: it survives every pipe and locale."""
    return json.dumps(data, indent=2, ensure_ascii=True) + "\n"


def to_yaml(data: Any) -> str:
    """YAML of the same data, in the same order."""
    import yaml

    data = json.loads(json.dumps(data))  # a reason is more than its text, and YAML takes nothing but text
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return str(
        yaml.dump(data, Dumper=dumper, sort_keys=False, default_flow_style=False, allow_unicode=False, width=120)
    )
