"""Where the processor time of a bridge goes: samples of who holds the interpreter's lock, summed by function.

    python -m pip install py-spy                              no dependency of the project; it may need root
    python -m tests.support.bench.profile                     flips, a storm, a restart: three tables in out/profile.md
    python -m tests.support.bench report                      puts them into docs/scaling.md

A function's share has all that it calls in it, so shares do not add up to 100 %.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from tests.support.bench import large
from tests.support.bench.harness import Stage, name, node
from tests.support.bench.measure import OUT
from tests.support.lab import LabError

FRAME = re.compile(
    r"(?P<function>\S+) \((?:.*?/)??(?P<file>(?:bridge|json|http|msgspec|urllib3)/\S+?\.py|\w+\.py)(?::\d+)?\)"
)
SHOWN = 14
SERVICES = 1000
OURS = ("bridge/", "json/", "http/", "msgspec/", "urllib3/")
DULL = re.compile(
    r"(run|_run|main|start|_bootstrap\w*|__exit__|<module>|<lambda>|wrapper|serve_forever|guarded|command|<genexpr>|<listcomp>)"
)
"""Functions that everything runs in: they say nothing."""


def shares(lines: Iterable[str]) -> tuple[Counter[str], int]:
    """Samples that each function was in, and all samples."""
    found: Counter[str] = Counter()
    total = 0
    for line in lines:
        stack, _, count = line.strip().rpartition(" ")
        if not stack:
            continue
        total += int(count)
        frames = [m for frame in stack.split(";") if (m := FRAME.fullmatch(frame.strip()))]
        names = {f"{m['file']} {m['function']}" for m in frames if not DULL.fullmatch(m["function"].rpartition(".")[2])}
        found.update(dict.fromkeys((n for n in names if n.startswith(OURS)), int(count)))
    return found, total


def table(lines: Iterable[str], what: str = "", most: int = SHOWN) -> str:
    """The largest shares."""
    found, total = shares(lines)
    rows = [f"| `{name}` | {count / total * 100:.0f} % |" for name, count in found.most_common(most)]
    return "\n".join([f"| {what} ({total:,} samples) | share |", "| --- | --- |", *rows])


@contextmanager
def sampled(pid: int, what: str, into: list[str]) -> Iterator[None]:
    """While the block runs; its table is appended at the end."""
    raw, program = OUT / "profile.txt", shutil.which("py-spy")
    if program is None:
        raise LabError("py-spy is not on the PATH; install it with `python -m pip install py-spy`")
    command = [program, "record", "--gil", "--function", "--nonblocking", "--rate", "250", "--format", "raw",
               "--output", str(raw), "--pid", str(pid)]  # fmt: skip
    spy = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        spy.send_signal(2)
        spy.wait(60)
    into.append(table(raw.read_text().splitlines(), what))


def measure(services: int = SERVICES) -> str:
    """Single flips, a storm, and a restart, on servers of their own."""
    found: list[str] = []
    with Stage(services, 4) as stage, stage.lab.raw_consul() as consul:
        daemon = stage.bridge()
        time.sleep(large.SETTLE_SECONDS)
        tail = stage.tail()
        with sampled(daemon.pid, "a flip, 1,000 services", found):
            for turn in range(400):
                status = "passing" if turn % 2 else "critical"
                tail.lag(name(7), partial(consul.flip, name(7), node(7, 1), status))
        with sampled(daemon.pid, "1,000 flips at once", found):
            began = time.time()
            large.flip_all(stage, "critical")
            large.await_writes(stage, tail, began)
        daemon.stop()
        starting = threading.Thread(target=daemon.start)
        starting.start()
        while not daemon.is_process:
            time.sleep(0.01)
        with sampled(daemon.pid, "a restart, 1,000 services", found):
            starting.join()
    return "\n\n".join(found)


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    tables = measure()
    (OUT / "profile.md").write_text(tables)
    print(tables)
