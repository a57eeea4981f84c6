"""Coverage-guided fuzzing of what reads foreign bytes: `make fuzz SECONDS=60`, by atheris (requirements/fuzz.txt).

Hypothesis (the tests beside this) knows what an answer looks like; atheris knows nothing, and finds what hypothesis was
not reported. Only our own errors may come out; anything else stops the run and leaves the input in a file.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["bridge"]):
    from bridge.config import yaml_file
    from bridge.consul import decode, wire
    from bridge.consul.client import Answer
    from bridge.core import normalize
    from bridge.core.model import Kind
    from bridge.errors import BridgeError
    from bridge.json_shape import Shape
    from bridge.kube import objects


READERS: tuple[tuple[Callable[[Answer], Any], Shape[Any]], ...] = (
    (decode.view_of, wire.HEALTH),
    (decode.listing_of, wire.LISTING),
    (decode.checks_of, wire.CHECKS),
    (decode.nodes_of, wire.NODES),
    (decode.services_on, wire.ON_NODE),
)


def once(data: bytes) -> None:
    """The first byte chooses the reader."""
    if not data:
        return
    which, rest = data[0] % 8, data[1:]
    with contextlib.suppress(BridgeError):
        if which == 0:
            yaml_file.parse(rest, "f")
        elif which == 1:
            normalize.parse(rest.decode("utf-8", "surrogateescape"))
        else:
            with contextlib.suppress(ValueError, RecursionError):
                if which < 7:
                    read, shape = READERS[which - 2]
                    read(Answer(index=1, data=shape.read(rest)))
                    return
                raw = json.loads(rest)
                for kind in Kind:
                    objects.decode(kind, raw)


SEEDS: tuple[tuple[int, Any], ...] = (
    (2, [{"Node": {"Node": "vm", "Address": "10.0.0.1", "Meta": {"zone": "a"}, "TaggedAddresses": {"lan": "10.0.0.1"}},
          "Service": {"ID": "a", "Service": "web", "Address": "10.0.0.1", "Port": 80, "Tags": ["x"], "Meta": {"k": "v"},
                      "TaggedAddresses": {"lan": {"Address": "10.0.0.1", "Port": 80}}, "Kind": "",
                      "Ports": [{"Name": "http", "Port": 80, "Default": True}]},
          "Checks": [{"CheckID": "c", "Status": "passing", "ServiceID": "a", "Name": "c", "Output": "ok"}]}]),
    (3, {"web": ["a", "b"], "consul": []}),
    (4, [{"Node": "vm", "CheckID": "c", "ServiceName": "web", "ServiceID": "a", "Status": "critical"}]),
    (5, [{"Node": "vm", "Address": "10.0.0.1", "CreateIndex": 1, "ModifyIndex": 2, "Meta": {}}]),
    (6, {"Node": {"Node": "vm", "ModifyIndex": 3}, "Services": [{"Service": "web", "ID": "a", "ModifyIndex": 4}]}),
    (7, {"metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7", "labels": {"a": "b"},
                      "managedFields": [{"manager": "consul-bridge", "operation": "Apply", "fieldsV1": {}}]},
         "spec": {"type": "ClusterIP", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}], "ipFamilies": []},
         "subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}], "addressType": "IPv4",
         "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": True}, "zone": "a"}], "ports": []}),
)  # fmt: skip
"""A good answer for each reader, to begin with."""

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as corpus:
        for number, (which, good) in enumerate(SEEDS):
            (Path(corpus) / str(number)).write_bytes(bytes([which]) + json.dumps(good).encode())
        (Path(corpus) / "yaml").write_bytes(b"\x00rules:\n- services: [a*]\n  to: {namespace: b}\n")
        atheris.Setup([*sys.argv, corpus], once)
        atheris.Fuzz()
