"""Answers of Consul's as the client gives them: read from JSON."""

from __future__ import annotations

import json
from typing import Any

from bridge.consul import wire
from bridge.consul.client import Answer
from bridge.json_shape import Shape


def read(data: Any, shape: Shape[Any] = wire.HEALTH) -> Any:
    """What the bytes of an answer are read into. Raises TransientError when no Consul gives that."""
    return shape.read(json.dumps(data).encode())


def answer(data: Any, shape: Shape[Any] = wire.HEALTH, **envelope: Any) -> Answer:
    """An answer with nothing special about it."""
    return Answer(**({"index": 1, "data": read(data, shape)} | envelope))
