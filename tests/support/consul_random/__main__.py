"""`make consul-random SEED=7 MINUTES=10`: does Consul show waiting queries what plain reads show?

A real Consul, operations chosen by a seed (operations.py), and after each of them the same service read in four ways
(sides.py). Where Consul's own answers differ that is counted by kind, with the operations that led there: it is no
failure, docs/consul.md has what was found. Two catalogs of the bridge run beside it, one with a direct watch for every
service and one with hardly any; both must soon say what a plain read says, whatever Consul shows to those who wait.

Exit status 1: the bridge was wrong for too long, or a waiting query with `near` differed from the catalog.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.support.consul_random.run import Settings, run
from tests.support.lab.servers import Consul


def server_in(folder: Path, program: str) -> Consul:
    """The lab's Consul, or one from a program that was built elsewhere."""
    server = Consul(folder)
    if program:
        server.prefix = ("sh", "-c", 'shift; exec "$0" "$@"', program)
    return server


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="make consul-random", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="the same seed makes the same operations")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--rate", type=float, default=4.0, help="operations a second, at most")
    parser.add_argument("--consul", default="", help="another Consul program than the lab's")
    parser.add_argument("--no-bridge", action="store_true", help="hold Consul's answers side by side, and nothing else")
    parser.add_argument("--no-restores", action="store_true", help="no snapshot is restored")
    chosen = parser.parse_args()
    seed = random.randrange(10**6) if chosen.seed is None else chosen.seed
    with tempfile.TemporaryDirectory(prefix="consul-random-") as folder:
        server = server_in(Path(folder), chosen.consul)
        server.start()
        try:
            report = run(
                server.address,
                Settings(seed, chosen.minutes * 60, chosen.rate, not chosen.no_bridge, not chosen.no_restores),
            )
        finally:
            server.kill()
    print(report)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
