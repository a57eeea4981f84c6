"""Tests against other versions of the servers: `make compat`.

    python -m tests.support.compat [--kubernetes VERSION]... [--consul VERSION]... [--tests PATH...]

Each Kubernetes version is run with the lab's Consul, each Consul version with the lab's Kubernetes, and the oldest of
both together. What is not in the cache is built first (5 to 25 minutes a version on two cores). The last lines are a
table: what passed, failed and was skipped; the names of what failed are above it. Exit status 1 when any failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from tests.support.compat import run_tests
from tests.support.compat.servers import CONSUL, KUBERNETES, built
from tests.support.lab import LabError
from tests.support.lab.build import TOOLS, binaries

KUBERNETES_VERSIONS = ("1.27.16", "1.29.15", "1.31.13", "1.33.13", "1.35.4")
CONSUL_VERSIONS = ("1.15.6", "1.16.6", "1.18.2", "1.20.6", "1.21.0", "1.22.5")
"""What can be built; docs/compatibility.md says of each other version why it cannot."""
FAULTS = ("consul-kill", "consul-restored", "etcd-kill", "kube-410")
TESTS = (
    "tests/contract", "tests/e2e/test_sync.py", "tests/e2e/test_run.py", "tests/e2e/test_outputs.py",
    "tests/e2e/test_ownership.py", "tests/e2e/test_union.py", "tests/e2e/test_service_ports.py",
    "tests/e2e/test_leaders.py", "tests/e2e/test_commands.py", "tests/e2e/test_manifests.py",
    *(f"tests/chaos/test_chaos.py::test_nothing_is_taken_away_and_all_agrees_again[{fault}]" for fault in FAULTS),
)  # fmt: skip
"""What depends on what the servers do. `--tests` names others."""
NEWER = Path(__file__).with_name("newer.yaml")
Pair = tuple[str, str]
"""A version of Kubernetes and one of Consul; "" is the lab's own."""


def pairs(kubernetes: Sequence[str], consul: Sequence[str]) -> list[Pair]:
    """Each version of one side beside the lab's own other side, and the oldest of both; of one each only that pair."""
    alone = [(k, "") for k in kubernetes] + [("", c) for c in consul]
    both = [(kubernetes[0], consul[0])] if kubernetes and consul else []
    return both if len(kubernetes) == len(consul) == 1 else alone + both


def left_out(pair: Pair) -> Mapping[str, str]:
    """Tests of what one of the servers is too old for, and what that one does instead."""
    found: dict[str, str] = {}
    for (side, newer), version in zip(yaml.safe_load(NEWER.read_text()).items(), pair, strict=True):
        for since, tests in newer.items():
            if version and int(version.split(".")[1]) < since:
                found |= {test: f"{side} {version} {why}" for test, why in tests.items()}
    return found


def programs(pair: Pair, folder: Path) -> Mapping[str, str]:
    """The environment in which the lab takes this pair from PATH: links to its programs in `folder`."""
    kubernetes, consul = pair
    found = dict(binaries([name for name, tool in TOOLS.items() if tool.core]))
    for program, version in ((KUBERNETES, kubernetes), (CONSUL, consul)):
        if version:
            found |= {name: built(program, version) / name for name in program.packages}
    for name, program_path in found.items():
        (folder / name).symlink_to(program_path)
    wanted = {"LAB_KUBERNETES_VERSION": kubernetes, "LAB_CONSUL_VERSION": consul}
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **{k: v for k, v in wanted.items() if v}, "PATH": path, "LAB_PROVIDER": "path", "CI": "true"}


def main() -> int:
    """Run them all; the table."""
    parser = argparse.ArgumentParser(
        prog="make compat", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kubernetes", action="append", metavar="VERSION", help="default: all that are known")
    parser.add_argument("--consul", action="append", metavar="VERSION")
    parser.add_argument("--tests", nargs="+", default=TESTS, metavar="PATH")
    asked = parser.parse_args()
    chosen = asked.kubernetes or asked.consul
    kubernetes = asked.kubernetes or (() if chosen else KUBERNETES_VERSIONS)
    consul = asked.consul or (() if chosen else CONSUL_VERSIONS)
    table: list[str] = []
    failed = False
    for pair in pairs(kubernetes, consul):
        name = f"Kubernetes {pair[0] or 'as in the lab'}, Consul {pair[1] or 'as in the lab'}"
        print(f"\n== {name}", flush=True)
        with tempfile.TemporaryDirectory(prefix="compat-") as folder:
            try:
                environment = programs(pair, Path(folder))
            except LabError as error:
                print(error)
                table.append(f"{name}: not built")
                failed = True
                continue
            unfit = left_out(pair)
            print("\n".join(f"left out: {test}: {why}" for test, why in unfit.items()), flush=True)
            chosen_tests = (*asked.tests, *(f"--deselect={test}" for test in unfit))
            command = (sys.executable, "-m", "pytest", "-q", "-m", "lab", "-rf", *chosen_tests)
            line, passed = run_tests(command, environment)
        table.append(f"{name}: {line}")
        failed = failed or not passed
    print("\n".join(("", *table)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
