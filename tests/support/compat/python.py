"""Tests that need no servers, under other interpreters: `make compat PYTHONS="python3.12 python3.14"`.

    python -m tests.support.compat.python [--lowest] [--tests PATH...] PYTHON...

Each gets a virtual environment of its own, with what requirements/dev.txt pins; `--lowest` then takes every library of
pyproject.toml in the lowest version that it allows. Exit status 1 when any test failed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from tests.support.compat import ROOT, run_tests

TESTS = ("tests/unit", "tests/scenarios", "tests/loop")
_BOUND = re.compile(r"^([\w-]+)(?:>=|==)([\d.]+)")


def lowest() -> Sequence[str]:
    """The libraries of pyproject.toml, each in its lowest version. Raises ValueError for one without a bound."""
    found = []
    for dependency in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        if (bound := _BOUND.match(dependency)) is None:
            raise ValueError(f"pyproject.toml: {dependency}: has no lower bound; write {dependency}>=VERSION")
        found.append(f"{bound[1]}=={bound[2]}")
    return found


def installed(python: str, folder: Path, oldest: bool) -> str:
    """A virtual environment with all that the tests need; its interpreter. Raises CalledProcessError."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    program = str(folder / "bin" / "python")
    install = (program, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check")
    subprocess.run([*install, "--require-hashes", "-r", ROOT / "requirements" / "dev.txt"], check=True)
    if oldest:
        subprocess.run([*install, *lowest()], check=True)
    subprocess.run([*install, "--no-deps", "--no-build-isolation", "--editable", ROOT], check=True)
    return program


def main() -> int:
    """Run them all; the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lowest", action="store_true", help="the lowest versions that pyproject.toml allows")
    parser.add_argument("--tests", nargs="+", default=TESTS, metavar="PATH")
    parser.add_argument("python", nargs="+", metavar="PYTHON", help="such as python3.12, or the path of one")
    asked = parser.parse_args()
    table = []
    failed = False
    for python in asked.python:
        name = f"{python}{', lowest versions' if asked.lowest else ''}"
        print(f"\n== {name}", flush=True)
        with tempfile.TemporaryDirectory(prefix="compat-") as folder:
            try:
                program = installed(python, Path(folder), asked.lowest)
            except (OSError, subprocess.CalledProcessError) as error:
                table.append(f"{name}: not installed: {error}")
                failed = True
                continue
            command = (program, "-m", "pytest", "-q", "-m", "not lab", "-p", "no:cacheprovider", "-rf", *asked.tests)
            line, passed = run_tests(command)
        table.append(f"{name}: {line}")
        failed = failed or not passed
    print("\n".join(("", *table)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
