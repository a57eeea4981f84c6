"""What image/slim.py takes out of a file system, on small trees."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import cast

from tests.support.docs.notice import ROOT

EPOCH = 1767323045


def slim(root: Path, interpreter: str) -> None:
    """Run it as the Dockerfile does."""
    main = runpy.run_path(str(ROOT / "image" / "slim.py"), run_name="slim")["main"]
    cast(Callable[[Path, Path, int], None], main)(root, root / interpreter, EPOCH)


def tree(root: Path, *files: str) -> None:
    """Empty files below `root`."""
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")


def left(root: Path) -> set[str]:
    """Files and links that are left."""
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_symlink() or p.is_file()}


def test_only_the_interpreter_and_its_links_stay(tmp_path: Path) -> None:
    """Python of /usr/local, as in the official images; a second Python that Debian brought goes with the rest."""
    tree(
        tmp_path,
        "usr/local/bin/python3.12",
        "usr/bin/python3.11",
        "usr/bin/bash",
        "usr/sbin/chroot",
        "usr/local/bin/pip",
    )
    (tmp_path / "bin").symlink_to("usr/bin")
    (tmp_path / "usr/bin/sh").symlink_to("bash")
    (tmp_path / "usr/local/bin/python").symlink_to("python3")
    (tmp_path / "usr/local/bin/python3").symlink_to("python3.12")
    slim(tmp_path, "usr/local/bin/python3.12")
    assert left(tmp_path) == {
        *("bin", "usr/local/bin/python", "usr/local/bin/python3", "usr/local/bin/python3.12"),
    }


def test_pip_and_package_managers_go_and_licences_stay(tmp_path: Path) -> None:
    """The package database stays, for scanners."""
    tree(
        tmp_path,
        *("usr/local/bin/python3.12", "usr/local/lib/python3.12/site-packages/pip/__init__.py"),
        *(
            "usr/local/lib/python3.12/site-packages/pip-25.0.dist-info/METADATA",
            "usr/lib/python3/dist-packages/wheel/x.py",
        ),
        *("usr/local/lib/python3.12/ensurepip/__init__.py", "usr/local/lib/python3.12/json/__init__.py"),
        *(
            "var/lib/apt/lists/x",
            "var/lib/dpkg/status",
            "usr/lib/apt/methods/http",
            "root/.cache/x",
            "var/log/dpkg.log",
        ),
        *("usr/share/doc/libc6/copyright", "etc/ssl/certs/ca-certificates.crt", "usr/lib/libssl.so.3"),
    )
    slim(tmp_path, "usr/local/bin/python3.12")
    assert left(tmp_path) == {
        *("usr/local/bin/python3.12", "usr/local/lib/python3.12/json/__init__.py", "var/lib/dpkg/status"),
        *("usr/share/doc/libc6/copyright", "etc/ssl/certs/ca-certificates.crt", "usr/lib/libssl.so.3"),
    }


def test_every_time_stamp_is_the_one_of_the_sources(tmp_path: Path) -> None:
    """Folders and links too; what the kernel mounts is not touched."""
    tree(tmp_path, "usr/bin/python3", "etc/passwd", "proc/cpuinfo")
    (tmp_path / "etc/link").symlink_to("nowhere")
    before = (tmp_path / "proc/cpuinfo").stat().st_mtime_ns
    slim(tmp_path, "usr/bin/python3")
    stamped = [p for p in tmp_path.rglob("*") if "proc" not in p.parts]
    assert {p.lstat().st_mtime for p in stamped} == {EPOCH}
    assert (tmp_path / "proc/cpuinfo").stat().st_mtime_ns == before
