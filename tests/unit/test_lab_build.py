"""How the lab builds its servers."""

from __future__ import annotations

import re

from tests.support.lab.build import HERE

_REQUIRED = re.compile(r"^\s*(?:require )?(\S+\.\S+) (v\S+)", re.MULTILINE)


def versions(module: str) -> dict[str, str]:
    """What a module of the lab builds with."""
    return dict(_REQUIRED.findall((HERE / "modules" / module / "go.mod").read_text()))


def test_what_the_programs_of_kubernetes_share_is_compiled_once() -> None:
    """Go's cache knows a package by its version: another one in one of the modules would compile it again."""
    servers = versions("kubernetes")
    for module in ("kubelet", "kubectl"):
        shared = servers.keys() & (found := versions(module)).keys()
        assert len(shared) > 100
        assert {name: found[name] for name in shared} == {name: servers[name] for name in shared}
