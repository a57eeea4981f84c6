"""Takes out of the image's file system what a running bridge never needs, and sets every time stamp.

    python image/slim.py ROOT INTERPRETER

ROOT is the file system to work on (`/` in the Dockerfile); INTERPRETER is the Python that stays. A shell, a package
manager and pip help only an intruder in a container: the bridge is one Python program. What goes:

- every program in the usual `bin` and `sbin` folders that is not the interpreter (and the links that lead to it);
- pip, setuptools and wheel of the base image, `ensurepip`, the package managers' own folders, caches and logs.

Libraries, certificates, the package database (scanners read it) and the texts of licences stay. Time stamps become
SOURCE_DATE_EPOCH (0 when it is not set), so that the same sources give the same layer.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin")
INTERPRETERS = re.compile(r"python3?(\.\d+)?")
FOLDERS = (
    *("var/cache", "var/log", "var/lib/apt", "usr/lib/apt", "usr/lib/dpkg", "usr/libexec", "usr/share/man"),
    *("usr/share/perl5", "usr/share/bash-completion", "usr/share/zoneinfo/right", "root", "wheelhouse", "src"),
)
INSTALLERS = re.compile(r"(pip|setuptools|wheel|pkg_resources|_distutils_hack|ensurepip)([-_.].*)?")
LIBRARIES = ("usr/lib/python3*", "usr/local/lib/python3*")
KERNEL = frozenset({"proc", "sys", "dev"})
"""Mounted while the build runs, and empty in what it leaves."""


def main(root: Path, interpreter: Path, epoch: int) -> None:
    """Slim the file system below `root`; every time stamp becomes `epoch` (seconds)."""
    kept = interpreter.resolve()
    for folder in PROGRAMS:
        for program in _children(root / folder):
            if not (INTERPRETERS.fullmatch(program.name) and program.resolve() == kept):
                _remove(program)
    for folder in FOLDERS:
        for entry in _children(root / folder):
            _remove(entry)
    for pattern in LIBRARIES:
        for library in root.glob(pattern):
            for place in (library, library / "site-packages", library / "dist-packages"):
                for entry in _children(place):
                    if INSTALLERS.fullmatch(entry.name):
                        _remove(entry)
    for path in _everything(root):
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _everything(root: Path) -> Iterator[Path]:
    """Every entry below `root`, contents before their folder, without what the kernel mounts there."""
    for entry in _children(root):
        if entry.name in KERNEL:
            continue
        if entry.is_dir() and not entry.is_symlink():
            for folder, folders, files in os.walk(entry, topdown=False):
                yield from (Path(folder, name) for name in (*files, *folders))
        yield entry


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(os.environ.get("SOURCE_DATE_EPOCH") or 0))
