"""`make bench-sim`: the pure core and the queue with 100,000 services and 1,000,000 instances, no server at all.

Each size runs in a process of its own: every service is read, planned and taken for written once (the first pass),
then single services change, each through Consul state, queue, plan, guard and store, as in `bridge run`. Then what
looks at all of them: the supervisor's tick, and a listing with a name more than the last.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from bridge.consul.subscriptions import SubscriptionTable
from bridge.controller.workqueue import WorkQueue
from bridge.core.guard import Guard
from bridge.core.model import Change, Destination, Instance, Known, Listing, Meta, Query, Rule, Status, Target
from bridge.core.reconcile import PlanOptions
from bridge.core.state import ConsulState
from bridge.interpreter import relaxed_gc
from bridge.kube.store import Store
from bridge.pipeline.planner import Planner
from tests.support.bench.measure import OBJECTS, Figure, limit, number, percentile
from tests.support.bench.report import Collected, table
from tests.support.options import guard_settings

RULE = Rule(name="all", to=Destination())
SIZES = (1000, 10_000, 100_000)
INSTANCES = 10
CHANGES = 3000
TICKS = 50
NAMES = 15
TICK_SECONDS = 0.5
"""From one tick of the supervisor to the next, if nothing wakes it earlier."""
MOST_RATIO = 2.0
"""The dearest size beside the cheapest: larger sets miss the processor's caches, but nothing may grow with the size."""
MOST_BYTES_PER_INSTANCE = 4000
MOST_NAME_MS, MOST_NAME_RATIO = 15.0, 10.0
"""Of a new name in the largest catalog: milliseconds, and beside the smallest."""
DATACENTER = "dc1"


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one size: microseconds of a change, seconds of the first pass (all processor time), memory at most.

    `tick_microseconds`: of one when nothing is new; `name_microseconds`: from a listing with a new name to its objects
    being written; both p50.
    """

    services: int
    p50_microseconds: float
    p99_microseconds: float
    mean_microseconds: float
    first_pass_seconds: float
    memory_bytes: int
    writes: int
    tick_microseconds: float
    name_microseconds: float


class Simulation:
    """Everything of a running bridge that computes, with a Kubernetes that accepts every write."""

    def __init__(self, services: int) -> None:
        self.services = services
        self.consul_state = ConsulState((RULE,), (DATACENTER,), grace_seconds=30.0)
        self.store = Store("default")
        self.queue: WorkQueue[Target] = WorkQueue()
        self.planner = Planner(
            consul_state=self.consul_state,
            store=self.store,
            guard=Guard(guard_settings()),
            options=PlanOptions(),
            clock=time.monotonic,
        )
        self.table = SubscriptionTable(lambda *_: None, "", "")
        self.names: dict[str, frozenset[str]] = {}
        self.version = 0
        self.took = 0.0

    def first_pass(self) -> int:
        """Read and write everything; the number of writes."""
        self.names = {f"service-{n}": frozenset[str]() for n in range(self.services)}
        self.consul_state.on_listing(DATACENTER, Listing(self.names), now=0.0)
        for n in range(self.services):
            self.consul_state.on_view(query(n), Known(tuple(instances(n))))
        writes = 0
        for target in self.consul_state.targets():
            self.queue.add(target)
        while len(self.queue):
            writes += self.work()
        return writes

    def change(self, n: int, turn: int) -> int:
        """One instance of a service flips; the number of writes."""
        known = self.consul_state.known(query(n))
        if known is None:
            raise RuntimeError(f"service {n} was never read")
        first, *others = known.instances
        status = Status.PASSING if first.status is Status.CRITICAL else Status.CRITICAL
        for target in self.consul_state.on_view(query(n), Known((replace(first, status=status), *others))):
            self.queue.add(target)
        return self.work()

    def tick(self) -> None:
        """What the supervisor does twice a second: requests, grace periods and holds."""
        self.table.want(*self.consul_state.commit_subscriptions())
        self.consul_state.expire(0.0)
        self.planner.guard.due(0.0, self.store.ready_in)

    def new_name(self, n: int) -> int:
        """A listing with one name more, until its objects are written; the number of writes."""
        self.names = {**self.names, f"service-{n}": frozenset()}
        listing, view = Listing(self.names), Known(tuple(instances(n)))
        began = time.process_time()
        self.consul_state.on_listing(DATACENTER, listing, now=0.0)
        self.tick()
        for target in self.consul_state.on_view(query(n), view):
            self.queue.add(target)
        writes = self.work()
        self.took = (time.process_time() - began) * 1e6
        return writes

    def work(self) -> int:
        """What a writer does with the next target of the queue."""
        target = self.queue.take(0.0)
        if target is None:
            return 0
        plan = self.planner.plan(target)
        writes = 0
        for change in plan.writes if plan is not None else ():
            self.store.expect(change)
            self.store.confirm(change, self.written(change))
            writes += 1
        self.planner.guard.applied(target)
        self.queue.done(target)
        return writes

    def written(self, change: Change) -> Meta:
        """What the API server would answer."""
        self.version += 1
        if change.body is None:
            raise RuntimeError(f"nothing is to be deleted here: {change}")
        uid = f"{change.kind}-{change.name}" if change.existing is None else change.existing.uid
        body = change.body
        return Meta(
            kind=change.kind,
            namespace=change.target.namespace,
            name=change.name,
            uid=uid,
            resource_version=str(self.version),
            owner="default",
            labels=body.labels,
            annotations=body.annotations,
        )


def query(n: int) -> Query:
    """What is asked of a service."""
    return Query(DATACENTER, f"service-{n}")


def instances(n: int) -> Iterator[Instance]:
    """Ten of a service, on nodes that many share."""
    for i in range(INSTANCES):
        number_ = n * INSTANCES + i
        yield Instance(
            node=f"node-{number_ % 5000}",
            id=f"service-{n}-{i}",
            address=f"10.{number_ >> 16 & 255}.{number_ >> 8 & 255}.{number_ & 255}",
            node_address="192.168.0.1",
            port=8080,
            status=Status.PASSING,
        )


def simulate(services: int, changes: int = CHANGES) -> Measured:
    """Of one size, in this process. Raises RuntimeError when a change did not cost exactly two writes."""
    simulation = Simulation(services)
    began = time.process_time()
    writes = simulation.first_pass()
    first = time.process_time() - began
    if writes != services * OBJECTS:
        raise RuntimeError(f"{services} services need {services * OBJECTS} writes, {writes} were made")
    chance = random.Random(services)
    took = []
    for turn in range(changes):
        n = chance.randrange(services)
        began = time.process_time()
        made = simulation.change(n, turn)
        took.append((time.process_time() - began) * 1e6)
        if made != 2:
            raise RuntimeError(f"a change of service {n} took {made} writes")
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    simulation.tick()
    ticks = []
    for _ in range(TICKS):
        began = time.process_time()
        simulation.tick()
        ticks.append((time.process_time() - began) * 1e6)
    names = []
    for n in range(services, services + NAMES):
        made = simulation.new_name(n)
        names.append(simulation.took)
        if made != OBJECTS:
            raise RuntimeError(f"a new name took {made} writes")
    return Measured(
        services, percentile(took, 50), percentile(took, 99), sum(took) / len(took), first, used, writes,
        percentile(ticks, 50), percentile(names, 50),
    )  # fmt: skip


def measure(out: Collected) -> None:
    """Figures of all sizes beside each other."""
    found = []
    for services in SIZES:
        command = [sys.executable, "-m", "tests.support.bench.simulation", "--one", str(services)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        found.append(Measured(**json.loads(done.stdout)))
    out.figures += figures(found)


def figures(found: list[Measured]) -> list[Figure]:
    """Ratios of the largest to the smallest, and what each costs."""
    small = found[0]
    made = []
    for one in found:
        title = f"simulation, {one.services:,} services, {one.services * INSTANCES:,} instances"
        times = one.p50_microseconds / small.p50_microseconds
        made += [
            Figure(
                f"{title}: a change, p50", f"{one.p50_microseconds:.0f} us", f"{small.p50_microseconds:.0f} us",
                f"{times:.2f} x", f"<= {MOST_RATIO:g} x", times <= MOST_RATIO,
            ),
            Figure(
                f"{title}: a change, mean and p99", f"{one.mean_microseconds:.0f} us, {one.p99_microseconds:.0f} us"
            ),
            Figure(f"{title}: first pass", f"{number(one.first_pass_seconds)} s"),
            grows(
                f"{title}: a tick of the supervisor, p50 "
                f"({number(one.tick_microseconds / 1e4 / TICK_SECONDS)} % of a core)",
                one.tick_microseconds, small.tick_microseconds,
            ),
            grows(
                f"{title}: a new name, listed until written, p50", one.name_microseconds, small.name_microseconds
            ),
        ]  # fmt: skip
    large = found[-1]
    per = large.memory_bytes / (large.services * INSTANCES)
    title = f"memory of an instance at {large.services:,} services ({large.memory_bytes / 1e6:.0f} MB in all)"
    made.append(limit(title, round(per), MOST_BYTES_PER_INSTANCE, "bytes"))
    title = f"simulation, {large.services:,} services: a new name"
    cost = limit(f"{title}, listed until written", large.name_microseconds / 1000, MOST_NAME_MS, "ms", row="sim")
    times = large.name_microseconds / small.name_microseconds
    growth = limit(f"{title}, beside {small.services:,} services", times, MOST_NAME_RATIO, "x",
                   f"{number(small.name_microseconds / 1000)} ms", row="sim")  # fmt: skip
    return [*made, cost, growth]


def grows(what: str, microseconds: float, small: float) -> Figure:
    """What looks at every service costs more in a larger catalog; how much more is shown, and judged by no one."""
    times = f"{microseconds / small:.1f} x" if small else ""
    return Figure(what, f"{number(microseconds / 1000)} ms", f"{number(small / 1000)} ms", times)


def main() -> int:
    """All sizes as a table; `--one N`: a size as JSON. 1 when a limit is not kept."""
    if sys.argv[1:2] == ["--one"]:
        with relaxed_gc():  # as in every command
            print(json.dumps(asdict(simulate(int(sys.argv[2])))))
        return 0
    out = Collected()
    measure(out)
    print(table(out.figures))
    return 0 if all(figure.ok is not False for figure in out.figures) else 1


if __name__ == "__main__":
    sys.exit(main())
