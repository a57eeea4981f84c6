"""What the benchmark sees: writes in the audit log, connections in the kernel's table; and what parts make of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bridge.core import plan as planning
from bridge.core.model import Current, Instance, Kind, Known, Query, Rule, Status, Target
from bridge.core.translate import translate
from bridge.kube import objects
from tests.bench import __main__ as command
from tests.bench import changes, report, simulation, watching
from tests.bench.changes import KINDS, choose, once
from tests.bench.floor import chain, encoded
from tests.bench.measure import limit
from tests.bench.report import Collected
from tests.bench.simulation import Measured, simulate
from tests.bench.stage import address, node, run_threads
from tests.bench.watching import Tail, connections
from tests.lab import Lab, LabError
from tests.raw import RawConsul


def entry(verb: str, resource: str, name: str, code: int = 200, **reference: str) -> bytes:
    """A line of the audit log."""
    return (
        json.dumps(
            {
                "verb": verb,
                "objectRef": {"resource": resource, "namespace": "default", "name": name, **reference},
                "responseStatus": {"code": code},
                "stageTimestamp": "2026-01-01T00:00:01.5Z",
            }
        ).encode()
        + b"\n"
    )


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """An audit log with something in it from before."""
    path = tmp_path / "audit.log"
    path.write_bytes(entry("patch", "endpoints", "bench-old"))
    return path


def tail_of(path: Path) -> Tail:
    """A tail of a log without a lab."""
    return Tail(cast("Lab", SimpleNamespace(audit_log=path)))


def append(path: Path, *parts: bytes) -> None:
    """Let the log grow."""
    with path.open("ab") as file:
        for part in parts:
            file.write(part)


def test_a_tail_tells_successful_writes_since_the_last_look(log: Path) -> None:
    """Neither reads, failures, other namespaces and subresources, nor what was there before."""
    tail = tail_of(log)
    append(
        log,
        entry("patch", "endpoints", "bench-1"),
        entry("get", "endpoints", "bench-2"),
        entry("patch", "endpoints", "bench-3", code=409),
        entry("patch", "endpoints", "bench-4", namespace="floor"),
        entry("patch", "services", "bench-5", subresource="status"),
        entry("create", "leases", "bench-6"),
    )
    assert tail.read() == [(1767225601.5, "endpoints", "bench-1")]
    assert tail.read() == []


def test_half_a_line_waits_for_its_end(log: Path) -> None:
    """The server may be writing while we read."""
    tail, line = tail_of(log), entry("delete", "services", "bench-1")
    append(log, line[:40])
    assert tail.read() == []
    append(log, line[40:])
    assert tail.count() == 1


def test_another_log_is_not_taken_for_no_writes(log: Path) -> None:
    """The writes at the end of the old one would be missed, and 0 writes would look like a target that is met."""
    tail = tail_of(log)
    log.rename(log.with_name("audit-old.log"))
    append(log, entry("patch", "endpoints", "bench-1"))
    with pytest.raises(LabError, match="another"):
        tail.count()


def test_a_worker_that_fails_fails_the_measurement() -> None:
    """Work that was not done must not make a floor look fast, nor services look equal."""

    def fail() -> None:
        raise ConnectionResetError("gone")

    with pytest.raises(LabError, match="1 of 2 workers failed: ConnectionResetError"):
        run_threads([lambda: None, fail])


def test_what_nobody_names_leaves_the_nodes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that changes, or a new one, would name its services to the bridge, and the sweep would not be measured."""
    sent: list[dict[str, Any]] = []
    consul = RawConsul("http://127.0.0.1:1")
    monkeypatch.setattr(RawConsul, "json", lambda _self, _method, _path, body=None: sent.append(body))
    for kind in ("flip", "address change", "registration"):
        once(consul, kind, 7)()
    assert [(one["SkipNodeUpdate"], one["Node"]) for one in sent] == [
        (True, node(7, 1)), (True, node(7, 1)), (True, node(7, 0))
    ]  # fmt: skip


def test_a_lag_is_to_the_write_of_just_that_object(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In milliseconds after the change had been answered."""
    monkeypatch.setattr(time, "time", lambda: 1767225601.25)

    def change() -> None:
        append(log, entry("patch", "endpoints", "bench-2"), entry("patch", "endpoints", "bench-1"))

    assert tail_of(log).lag("bench-1", change) == pytest.approx(250.0)


def test_only_open_connections_of_the_process_to_the_port_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither another's, nor those to another port, nor those that are closed."""
    monkeypatch.setattr(watching, "sockets", lambda _pid: {"1", "2", "3", "4"})

    def row(port: int, state: str, inode: str) -> str:
        return f"0: 0100007F:1000 0100007F:{port:04X} {state} 0:0 0:0 0 0 0 {inode} 1"

    rows = [
        row(8500, "01", "1"),
        row(8500, "08", "2"),
        row(8500, "06", "3"),
        row(9000, "01", "4"),
        row(8500, "01", "9"),
    ]
    assert connections(1, 8500, "\n".join(["head", *rows])) == 2


def test_addresses_are_unique_at_every_size() -> None:
    """Also with a hundred instances in each of a thousand services."""
    for services, instances in ((5000, 4), (1000, 100)):
        found = {address(n, i) for n in range(services) for i in range(instances)}
        assert len(found) == services * instances


def test_what_is_measured_never_changed_before() -> None:
    """No service is in two groups, nor among those that change elsewhere; what is removed has a node of its own."""
    sets, direct, others = choose(1000, 40)
    chosen = [n for groups in sets for found in groups.values() for n in found] + direct
    assert len(chosen) == len(set(chosen)) == 2 * 40 * len(KINDS) + len(direct)
    assert not set(chosen) & set(others)
    assert min(chosen + others) >= 100
    assert all(node(n, 3) == f"lone-{n}" for groups in sets for n in groups["removal"])


def test_a_simulated_change_costs_one_write() -> None:
    """`simulate` raises otherwise; the first pass costs two of each service."""
    assert simulate(30, changes=60).writes == 60


@pytest.mark.parametrize(("microseconds", "ok"), [(190.0, True), (210.0, False)])
def test_a_cost_that_grows_with_the_catalog_is_missed(microseconds: float, ok: bool) -> None:
    """Beside the smallest size."""
    small, large = (Measured(n, t, t, t, 1.0, 10**6, 2 * n) for n, t in ((1000, 100.0), (100_000, microseconds)))
    found = {f.what: f for f in simulation.figures([small, large])}
    title = "simulation, 100,000 services, 1,000,000 instances: a change, p50"
    assert found[title].ok is ok


def measured_by(works: dict[str, Callable[[Collected], None]], monkeypatch: pytest.MonkeyPatch, out: Path) -> Any:
    """What `run` makes of these parts, and what it saves."""
    monkeypatch.setattr(command, "OUT", out)
    monkeypatch.setattr(command, "jobs", lambda _services: [command.Job(part, work) for part, work in works.items()])
    saved: list[Any] = []
    monkeypatch.setattr(report, "save", saved.append)
    return command.run(list(works), 5000), saved


def test_a_part_that_fails_is_told_and_the_next_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report is saved after each."""

    def fail(_out: Collected) -> None:
        raise OSError("no server")

    def work(out: Collected) -> None:
        out.figures.append(limit("x", 1, 2, "s"))

    new, saved = measured_by({"propagation": fail, "sync": work}, monkeypatch, tmp_path)
    assert new["propagation"].trouble == "no server"
    assert [f.what for f in new["sync"].figures] == ["x"]
    assert [list(one) for one in saved] == [["propagation"], ["propagation", "sync"]]


class Quick:
    """A stage on which every change takes 5 ms, without servers."""

    label = report.LARGE
    services = 5000
    threads = 1
    made = 50
    seconds = 1.0

    def __init__(self, *_: object) -> None:
        self.lab = cast("Any", SimpleNamespace(raw_consul=Quick))

    def __getattr__(self, name: str) -> Any:
        """Bridge, tail and sampler are the same thing."""
        numbers = {"lag": 5.0, "memory_bytes": 0, "metric": 0}
        return lambda *_: numbers.get(name, self)

    def connections(self, _sampler: object, when: str, out: Collected) -> None:
        """As a stage does it."""
        out.figures.append(limit(f"connections to Consul at most, {when}, {self.label}", 1, 64, "", row="connections"))

    def differing(self) -> list[str]:
        """Nothing."""
        return []

    def __enter__(self) -> Quick:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_a_large_catalog_gives_all_figures_that_its_rows_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a row would stay incomplete however often it is measured."""
    monkeypatch.setattr(changes, "Elsewhere", Quick)
    monkeypatch.setattr(changes, "FloorChain", Quick)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    out = Collected()
    changes.scale(cast("Any", Quick()), out)
    for row in ("flip-many", "others", "busy"):
        mine = [figure for figure in out.figures if figure.row == row]
        assert report.verdict(mine, report.NEEDS[row]) == "**met**"


def test_the_floor_chain_keeps_its_connection_when_nothing_changes() -> None:
    """The API server ends one that is idle for 90 s: the floor would have died in the middle of a long part."""
    entry_ = {"Service": {"Address": "10.0.0.1", "Port": 80}, "Node": {"Address": ""}, "Checks": []}
    answers = iter([(1, [entry_]), (1, [entry_])])
    sent: list[str] = []

    class Servers:
        """Consul, which answers twice, and a Kubernetes."""

        def health(self, *_: object) -> tuple[int, list[Any]]:
            if (answer := next(answers, None)) is None:
                raise OSError("interrupted")
            return answer

        def send(self, method: str, *_: object) -> None:
            sent.append(method)

    servers = cast("Any", Servers())
    chain(servers, servers, "floor-web")
    assert sent == ["PATCH", "GET"]


def test_the_floor_writes_bodies_as_long_as_the_bridges() -> None:
    """The API server takes longer for labels and annotations: a floor without them would be no floor."""
    instance = Instance(node="vm1", id="web-vm1", address="10.0.0.1", node_address="", port=80, status=Status.PASSING)
    source = (Rule(name="all"), Query("dc1", "web"), Known((instance,)))
    target = Target("default", "web")
    planned = planning.plan(target, translate(target, [source]).mirror, Current(target), owner="default")
    ours = json.dumps(objects.encode(next(c for c in planned.changes if c.kind is Kind.ENDPOINTS)))
    entry_ = {"Service": {"Address": "10.0.0.1", "Port": 80}, "Node": {"Address": ""}, "Checks": []}
    bare = len(', "namespace": "default"')  # which the path says as well
    assert len(encoded("web", [entry_])) == len(ours) - bare
