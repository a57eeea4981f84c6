"""Servers of one version, built from its Go modules and kept in the lab's cache.

A version that is not the lab's has no go.mod here: it is built with its own. What that one replaces by folders of its
repository (Kubernetes' staging, Consul's api and sdk) is taken in the versions that were published with it; a package
that was published late is added from a version that has it. Modules are verified by the checksum database of the Go
settings in force, where that one knows them. A version that needs a newer Go than the lab's is built with that one,
which Go takes from the module proxy.
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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.lab.build import NO_DWARF, LabError, cache, go_program, go_version, one_build_at_a_time

_STAGED = re.compile(r"^(\s*)(k8s\.io/\S+) => \./staging/\S+$", re.MULTILINE)
_LOCAL = re.compile(r"^(?:replace|\s+)\s*(?!//)\S+ => \.\S+\n", re.MULTILINE)
_VERSION = re.compile(r"\d+\.\d+\.\d+(?:-[a-z]+\.\d+)?")


@dataclass(frozen=True, slots=True)
class Program:
    """Servers of one Go module; `packages` by the program's name.

    Some modules were published late. `late`: by module the folder that its older versions lack although the program
    imports it, and a version that has it. `instead`: a module's version that lacks more, and the one to take.
    """

    module: str
    packages: Mapping[str, str]
    late: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    instead: Mapping[str, str] = field(default_factory=dict)


KUBERNETES = Program(
    "k8s.io/kubernetes",
    {name: f"k8s.io/kubernetes/cmd/{name}" for name in ("kube-apiserver", "kube-controller-manager")},
)
CONSUL = Program(
    "github.com/hashicorp/consul",
    {"consul": "github.com/hashicorp/consul"},
    late={"github.com/hashicorp/consul/troubleshoot": ("ports", "v0.7.1")},  # of 1.16 to 1.19; a subcommand's
    instead={  # of 1.18, whose go.mod was not brought up to date with the api and the sdk of its repository
        "github.com/hashicorp/consul/api v1.26.1": (
            "github.com/hashicorp/consul/api v1.28.2\n\tgithub.com/hashicorp/consul/sdk v0.16.0"
        ),
        "github.com/hashicorp/consul/proto-public v0.5.1": "github.com/hashicorp/consul/proto-public v0.6.0",
    },
)


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
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "auto", "GOWORK": "off", "GOFLAGS": "-mod=mod"}
    environment.setdefault("GONOSUMDB", "k8s.io/*,github.com/hashicorp/*")  # the database may lack their old modules

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=made, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = done.stderr[-1500:].strip() or done.stdout[-1500:].strip()
            raise LabError(f"{program.module} {version} cannot be built with {go_version(go)}: {said}")
        return done.stdout

    def download(module: str, wanted: str) -> Mapping[str, str]:
        found: Mapping[str, str] = json.loads(run(go, "mod", "download", "-json", f"{module}@{wanted}"))
        return found

    (made / "go.mod").write_text("module compat\n\ngo 1.26.0\n")
    modules = Path(download(program.module, f"v{version}")["GoMod"]).read_text()
    modules = modules.replace(f"module {program.module}\n", "module compat\n", 1)
    modules = _STAGED.sub(rf"\1\2 => \2 v0.{version.partition('.')[2]}", modules)
    modules = _LOCAL.sub("", modules) + f"\nrequire {program.module} v{version}\n"
    for lacking, whole in program.instead.items():
        modules = modules.replace(f"{lacking}\n", f"{whole}\n")
    for module, (part, donor) in program.late.items():
        required = re.search(rf"^\s*{re.escape(module)} (v\S+)$", modules, re.MULTILINE)
        own = Path(download(module, required[1])["Dir"]) if required else None
        if own and not (own / part).exists():
            copy = made / module.rsplit("/", 1)[-1]
            _copy(own, copy)
            _copy(Path(download(module, donor)["Dir"]) / part, copy / part)
            modules += f"replace {module} => ./{copy.name}\n"
    (made / "go.mod").write_text(modules)
    for name, package in program.packages.items():
        flags = ("-buildvcs=false", "-trimpath", NO_DWARF, "-ldflags", _flags(version))
        run(go, "build", *flags, "-o", str(made / name), package)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.move(made / name, folder / f".{name}")
        (folder / f".{name}").replace(folder / name)
    print(f"compat: {program.module} {version} built in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def _copy(source: Path, target: Path) -> None:
    """Files alone: the folders of Go's module cache are read-only."""
    for file in filter(Path.is_file, source.rglob("*")):
        (target / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        (target / file.relative_to(source)).write_bytes(file.read_bytes())


def _flags(version: str) -> str:
    """Linker flags. Sources older than Go 1.23 may link to private symbols of its library."""
    major, minor, _ = version.split(".", 2)
    values = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor}
    places = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")  # /version of older ones has the latter
    stamps = (f"-X {place}.{name}={value}" for place in places for name, value in values.items())
    return " ".join(("-s -w -checklinkname=0", *stamps))
