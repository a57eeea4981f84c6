"""Servers of one version, built from its Go modules and kept in the lab's cache.

A version that is not the lab's has no go.mod here: one is made from the version's own. What that one replaces by
folders of its repository (Kubernetes' staging, Consul's api and sdk) is taken in the versions that were published with
it. Its modules are verified by the checksum database of the Go settings in force, where that one knows them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.lab.build import LabError, cache, go_program, go_version, one_build_at_a_time

_STAGED = re.compile(r"^\s*(k8s\.io/\S+) => \./staging/", re.MULTILINE)
_VERSION = re.compile(r"\d+\.\d+\.\d+(?:-[a-z]+\.\d+)?")


@dataclass(frozen=True, slots=True)
class Program:
    """Servers of one Go module; `packages` by the program's name."""

    module: str
    packages: Mapping[str, str]


KUBERNETES = Program(
    "k8s.io/kubernetes",
    {name: f"k8s.io/kubernetes/cmd/{name}" for name in ("kube-apiserver", "kube-controller-manager")},
)
CONSUL = Program("github.com/hashicorp/consul", {"consul": "github.com/hashicorp/consul"})


def built(program: Program, version: str) -> Path:
    """The folder with its programs in this version, such as 1.27.16; built first when it is not in the cache.

    Raises LabError with the last lines of what Go said: the version does not exist, or its sources do not compile.
    """
    if not _VERSION.fullmatch(version):
        raise LabError(f"{version!r} is no version of {program.module}: write it whole, such as 1.27.16")
    go = go_program()
    folder = cache() / "compat" / f"{program.module.rsplit('/', 1)[-1]}-{version}"
    if not all((folder / name).exists() for name in program.packages):
        with one_build_at_a_time(), tempfile.TemporaryDirectory(prefix="compat-") as made:
            _build(program, version, go, Path(made), folder)
    return folder


def _build(program: Program, version: str, go: str, made: Path, folder: Path) -> None:
    began = time.monotonic()
    print(f"compat: building {program.module} {version}", file=sys.stderr, flush=True)
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off", "GOFLAGS": "-mod=mod"}
    environment.setdefault("GONOSUMDB", "k8s.io/*,github.com/hashicorp/*")  # the database may lack their old modules

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=made, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = done.stderr[-1500:].strip() or done.stdout[-1500:].strip()
            raise LabError(f"{program.module} {version} cannot be built with {go_version(go)}: {said}")
        return done.stdout

    (made / "go.mod").write_text("module compat\n\ngo 1.26.0\n")
    (made / "tools.go").write_text(_imports(program.packages.values()))
    origin = json.loads(run(go, "mod", "download", "-json", f"{program.module}@v{version}"))
    staged = _STAGED.findall(Path(origin["GoMod"]).read_text())
    replaced = "".join(f"replace {name} => {name} v0.{version.partition('.')[2]}\n" for name in staged)
    (made / "go.mod").write_text(f"module compat\n\ngo 1.26.0\n\nrequire {program.module} v{version}\n\n{replaced}")
    run(go, "mod", "tidy", "-e")
    folder.mkdir(parents=True, exist_ok=True)
    for name, package in program.packages.items():
        run(go, "build", "-buildvcs=false", "-trimpath", "-ldflags", _flags(version), "-o", str(made / name), package)
        shutil.move(made / name, folder / f".{name}")
        (folder / f".{name}").replace(folder / name)
    print(f"compat: {program.module} {version} built in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def _imports(packages: Iterable[str]) -> str:
    lines = "".join(f'import _ "{package}"\n' for package in packages)
    return f"//go:build tools\n\npackage tools\n\n{lines}"


def _flags(version: str) -> str:
    """Linker flags. Sources older than Go 1.23 may link to private symbols of its library."""
    major, minor, _ = version.split(".", 2)
    values = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor}
    places = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")  # /version of older ones has the latter
    stamps = (f"-X {place}.{name}={value}" for place in places for name, value in values.items())
    return " ".join(("-s -w -checklinkname=0", *stamps))
