"""What the benchmark sees: writes in the audit log, connections in the kernel's table; and what parts make of it."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bridge.core import plan as planning
from bridge.core.model import Current, Instance, Kind, Known, Query, Status, Target
from bridge.core.translate import translate
from bridge.kube import objects
from tests.support.bench import __main__ as command
from tests.support.bench import changes, floor, large, report, simulation, watching
from tests.support.bench import harness as staging
from tests.support.bench.changes import KINDS, Elsewhere, choose, floor_changes, once
from tests.support.bench.floor import chain, decoded, encoded
from tests.support.bench.harness import CONSUL_CONNECTIONS, Stage, address, node
from tests.support.bench.measure import find, limit, run_threads
from tests.support.bench.report import Collected
from tests.support.bench.simulation import Measured, simulate
from tests.support.bench.watching import Sampler, Tail, accepted, connections
from tests.support.lab import Lab, LabError
from tests.support.raw import RawConsul


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


def test_a_change_that_names_no_node_leaves_the_nodes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that changes, or a new one, would name its services to the bridge, and the sweep would not be measured."""
    sent: list[dict[str, Any]] = []
    consul = RawConsul("http://127.0.0.1:1")
    monkeypatch.setattr(RawConsul, "json", lambda _self, _method, _path, body=None: sent.append(body))
    for kind in ("flip", "address change", "registration"):
        once(consul, kind, 7)()
    assert [(one["SkipNodeUpdate"], one["Node"]) for one in sent] == [
        (True, node(7, 1)), (True, node(7, 1)), (True, node(7, 0))
    ]  # fmt: skip


def test_a_lag_is_to_the_slice_of_just_that_service(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is what kube-proxy reads; in milliseconds after the change had been answered."""
    monkeypatch.setattr(time, "time", lambda: 1767225601.25)

    def change() -> None:
        append(
            log,
            entry("patch", "endpointslices", "bench-2-01234567"),
            entry("patch", "endpoints", "bench-1"),
            entry("patch", "endpointslices", "bench-1-01234567"),
        )

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


def test_connections_at_a_server_are_counted_by_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a client that is gone the server may hold a connection still; one that listens is none."""
    monkeypatch.setattr(watching, "sockets", lambda _pid: {"1", "2", "3", "4"})

    def row(local: int, state: str, inode: str) -> str:
        return f"0: 0100007F:{local:04X} 0100007F:1000 {state} 0:0 0:0 0 0 0 {inode} 1"

    rows = [
        row(8500, "01", "1"), row(8500, "08", "2"), row(8500, "0A", "3"), row(9000, "01", "4"), row(8500, "01", "9")
    ]  # fmt: skip
    assert accepted(1, 8500, "\n".join(["head", *rows])) == {"established": 1, "cut by the client, still held": 1}


def test_consuls_connections_are_watched_also_while_there_is_no_bridge(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is when the slots of the one that was killed are still taken."""
    counts = iter([3, 7, 5])
    sampler = Sampler(8500, lambda: None, 1, every_seconds=0)

    def count(*_: object) -> Counter[str]:
        found = next(counts, None)
        if found is None:
            sampler._stop.set()
        return Counter({"established": found or 0})

    monkeypatch.setattr(watching, "accepted", count)
    with sampler:
        sampler._thread.join(10)
    assert (sampler.accepted.total(), sampler.samples) == (7, 0)


@pytest.mark.parametrize(("held", "ok"), [(CONSUL_CONNECTIONS, True), (CONSUL_CONNECTIONS + 1, False)])
def test_what_consul_held_is_judged_by_what_it_allows(held: int, ok: bool) -> None:
    """And says of which states it was."""
    sampler = cast("Any", SimpleNamespace(accepted=Counter({"established": held})))
    out = Collected()
    Stage.accepted(cast("Any", SimpleNamespace(label="some")), sampler, "restarting", out)
    (found,) = out.figures
    assert (found.ok, found.row) == (ok, "connections")
    assert found.what == f"connections that Consul held at most, restarting, some ({held} established)"


@pytest.mark.parametrize("instances", [4, 100])
def test_the_floor_chain_has_as_many_instances_as_the_services(instances: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With three times as many it decoded and wrote three times as much, and the bridge looked fast beside it."""
    asked: list[tuple[str, int]] = []
    quiet = SimpleNamespace(
        start=lambda: None, raw_consul=Quick, raw_kube=Quick, folder=None, consul=SimpleNamespace(address=""),
        kubeconfig="", add=lambda _daemon: None,
    )  # fmt: skip
    monkeypatch.setattr(staging, "Lab", lambda **_: quiet)
    monkeypatch.setattr(staging, "Daemon", Quick)
    monkeypatch.setattr(staging, "make_service", lambda *_: None)
    monkeypatch.setattr(staging, "register", lambda _consul, service, count, _net: asked.append((service, count)))
    monkeypatch.setattr(Stage, "_populate", lambda _self: None)
    with_many = Stage(1000, instances)
    with_many.__enter__()
    assert asked == [("floor-web", instances)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_floor_changes_as_the_services_do(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same request for what counts, and never the same twice in a row."""
    sent: list[tuple[str, dict[str, Any]]] = []
    consul = RawConsul("http://127.0.0.1:1")
    monkeypatch.setattr(RawConsul, "json", lambda _self, _method, path, body=None: sent.append((path, body)))
    once(consul, kind, 9)()
    (theirs,) = sent
    groups = floor_changes(consul, kind)
    before: dict[str, Any] = {}
    for counts, change in [step for _ in range(4) for step in next(groups)]:
        change()
        path, body = sent.pop()
        assert body != before  # a request that changes nothing leads to no write, and would be waited for in vain
        before = body
        if counts:
            assert (path, body.keys()) == (theirs[0], theirs[1].keys())
            assert body.get("SkipNodeUpdate") == theirs[1].get("SkipNodeUpdate")


def test_changes_elsewhere_that_end_early_are_no_load() -> None:
    """An hour without growth would prove nothing if nothing changed in it."""
    lab = cast("Any", SimpleNamespace(raw_consul=lambda: RawConsul("http://127.0.0.1:1")))
    with (
        pytest.raises(LabError, match="ended early, after 0: ConnectionRefusedError"),
        Elsewhere(lab, [7], 1000) as made,
    ):
        made._thread.join(10)


def test_addresses_are_unique_at_every_size() -> None:
    """Also with a hundred instances in each of a thousand services."""
    for services, instances in ((5000, 4), (1000, 100)):
        found = {address(n, i) for n in range(services) for i in range(instances)}
        assert len(found) == services * instances


def test_what_is_measured_never_changed_before() -> None:
    """No service is in two groups, nor among those that change elsewhere; what is removed has a node of its own."""
    sets, direct, others = choose(1000, 40, 20)
    chosen = [n for groups in sets for found in groups.values() for n in found] + direct
    assert len(chosen) == len(set(chosen)) == (40 + 20) * len(KINDS) + len(direct)
    assert not set(chosen) & set(others)
    assert min(chosen + others) >= 100
    assert all(node(n, 3) == f"lone-{n}" for groups in sets for n in groups["removal"])


def test_a_simulated_change_costs_two_writes() -> None:
    """`simulate` raises otherwise; the first pass costs three of each service."""
    assert simulate(30, changes=60).writes == 90


@pytest.mark.parametrize(("microseconds", "ok"), [(190.0, True), (210.0, False)])
def test_a_cost_that_grows_with_the_catalog_is_missed(microseconds: float, ok: bool) -> None:
    """Beside the smallest size."""
    small, large = (
        Measured(n, t, t, t, 1.0, 10**6, 2 * n, 1.0, 1.0) for n, t in ((1000, 100.0), (100_000, microseconds))
    )
    found = {f.what: f for f in simulation.figures([small, large])}
    title = "simulation, 100,000 services, 1,000,000 instances: a change, p50"
    assert found[title].ok is ok


def test_what_looks_at_all_services_is_measured_as_well() -> None:
    """A tick when nothing is new, and a new name, which costs its three writes; judged is that of the largest size."""
    small, large_ = simulate(30, changes=10), simulate(60, changes=10)
    assert min(small.tick_microseconds, small.name_microseconds) > 0
    shown = [f for f in simulation.figures([small, large_]) if ": a tick of the " in f.what or ": a new name" in f.what]
    assert len([f for f in shown if f.ok is None and f.ratio]) == 4
    assert [f.row for f in shown if f.ok is not None] == ["sim", "sim"]


@pytest.mark.parametrize(("small", "large_", "oks"), [
    (1.5, 15.0, [True, True]), (1.6, 15.1, [False, True]), (1.4, 14.5, [True, False]),
])  # fmt: skip
def test_a_new_name_is_judged_by_its_cost_and_by_its_growth(small: float, large_: float, oks: list[bool]) -> None:
    """Milliseconds at 100,000 services, and beside 1,000; both prove the row."""
    sizes = [Measured(n, 1, 1, 1, 1, 1, 1, 1, ms * 1000) for n, ms in ((1000, small), (100_000, large_))]
    judged = [f for f in simulation.figures(sizes) if f.row == "sim"]
    assert [f.ok for f in judged] == oks
    assert report.verdict(judged, report.NEEDS["sim"]).startswith("**met**" if all(oks) else "**missed**")


def measured_by(works: dict[str, Callable[[Collected], None]], monkeypatch: pytest.MonkeyPatch, out: Path) -> Any:
    """What `run` makes of these parts, and what it saves."""
    monkeypatch.setattr(command, "OUT", out)
    made = [command.Job(part, work) for part, work in works.items()]
    monkeypatch.setattr(command, "jobs", lambda *_: made)
    saved: list[Any] = []
    monkeypatch.setattr(report, "save", saved.append)
    return command.run(list(works), 5000), saved


def test_a_part_that_fails_is_reported_and_the_next_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    instances = 4
    threads = 1
    made = 50
    seconds = 1.0

    def __init__(self, *_: object, **__: object) -> None:
        self.lab = cast("Any", SimpleNamespace(raw_consul=Quick))

    def __getattr__(self, name: str) -> Any:
        """Bridge, tail and sampler are the same thing."""
        numbers = {"lag": 5.0, "memory_bytes": 0, "metric": 0, "threads": 1, "pid": 1, "cpu_seconds": 0.0,
                   "count": 0}  # fmt: skip
        return lambda *_: numbers.get(name, self)

    def connections(self, _sampler: object, when: str, out: Collected) -> None:
        """As a stage does it."""
        out.figures.append(limit(f"connections to Consul at most, {when}, {self.label}", 1, 64, "", row="connections"))

    def accepted(self, _sampler: object, when: str, out: Collected) -> None:
        """As a stage does it."""
        what = f"connections that Consul held at most, {when}, {self.label} ()"
        out.figures.append(limit(what, 1, 200, "", row="connections"))

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
    consul = f"Consul's own extra processor in steady state, 120 s, {report.LARGE}"  # which another part measures
    out.figures.append(limit(consul, 1, 3, "", row="unwatched"))
    for row in ("flip-many", "direct", "unwatched", "busy"):
        mine = [figure for figure in out.figures if figure.row == row]
        assert report.verdict(mine, report.NEEDS[row]) == "**met**"


def synced(
    seconds: float, rate: float, monkeypatch: pytest.MonkeyPatch, services: int = 1000, *, headless: bool = False
) -> Collected:
    """What a first sync of so many seconds, and a floor of so many writes a second, give."""
    stage: Any = SimpleNamespace(
        services=services, label=f"{services:,} services x 4", command=lambda: (1.0, 0, services)
    )
    monkeypatch.setattr(large, "_first", lambda _stage, headless: (seconds, 3 * services, rate))
    out = Collected()
    large.first_sync(stage, out, headless=headless)
    return out


@pytest.mark.parametrize(
    ("seconds", "headless", "ok"), [(6.66, False, True), (7.0, True, True), (7.0, False, True), (7.2, True, False)]
)
def test_first_syncs_are_judged_by_their_own_floor(
    seconds: float, headless: bool, ok: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """85 % of the raw writer's rate, and 95 % where the server has no address to give."""
    out = synced(seconds, 450.0, monkeypatch, headless=headless)
    assert (out.figures[0].ok, out.figures[0].row) == (ok, "headless" if headless else "sync")
    needs = report.NEEDS[out.figures[0].row]
    assert any(find([replace(out.figures[0], what=out.figures[0].what.replace("1,000", "5,000"))], n) for n in needs)


def test_the_absolute_limit_is_for_the_large_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    """25 s for 15,000 writes."""
    for services, ok in ((1000, None), (5000, False)):
        out = synced(26.0, 500.0, monkeypatch, services)
        (whole,) = [f for f in out.figures if f.what.endswith(" x 4, until its end")]
        assert (whole.value, whole.ok) == ("26.0 s" if ok is None else "26 s", ok)


@pytest.mark.parametrize(
    ("growth", "ok"), [(0.0, True), (large.MOST_GROWTH - 0.1, True), (large.MOST_GROWTH + 0.1, False)]
)
def test_memory_that_grows_is_missed(growth: float, ok: bool) -> None:
    """By the line through the last nine tenths: the first shape the heap, and may grow as they like."""
    seen = [(n / 360, (50 if n < 36 else 90) + growth * n / 360) for n in range(360)]
    out = Collected()
    large.grown("1,000 services x 4", 60.0, 80.0, seen, out)
    assert (out.figures[0].ok, out.figures[0].row) == (ok, "hour")
    assert out.figures[1].value.startswith("80, 9")


def test_an_hour_gives_the_figures_that_its_row_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a shorter run of the same part does not."""
    needs = report.NEEDS["hour"]
    clock = itertools.count(step=7)
    monkeypatch.setattr(large, "Elsewhere", Quick)
    monkeypatch.setattr(large, "peak_memory_bytes", lambda _pid: 0)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    stage = Quick()
    stage.label = "1,000 services x 4"
    for minutes, proved in ((60.0, True), (10.0, False)):
        out = Collected()
        large.hour(cast("Any", stage), out, minutes)
        judged = [figure for figure in out.figures if figure.ok is not None]
        assert [find(judged, words) is not None for words in needs] == [proved] * len(needs)


def test_each_part_gives_the_figures_that_its_row_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restart, memory, and what Consul held while the bridge was killed and started."""
    monkeypatch.setattr(large, "FloorChain", Quick)
    monkeypatch.setattr(large, "floor_restart", lambda *_: (1.0, 1.0))
    monkeypatch.setattr(large, "peak_memory_bytes", lambda _pid: 0)
    monkeypatch.setattr(large, "cpu_share", lambda *_: 0.0)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    daemon = SimpleNamespace(pid=1, threads=lambda: 1, memory_bytes=lambda: 0, cpu_seconds=lambda: 0.0)
    daemon.stop = daemon.kill = daemon.start = lambda: None
    out = Collected()
    for label, instances in ((report.LARGE, 4), (report.WIDE_LABEL, 100)):
        stage = Quick()
        stage.label, stage.services, stage.instances = label, 5000 if instances == 4 else 1000, instances
        vars(stage)["bridge"] = lambda: daemon
        large.memory(cast("Any", stage), out)
        if instances == 4:
            large.restart(cast("Any", stage), out)
    judged = {row: [f for f in out.figures if f.row == row and f.ok is not None] for row in report.ROWS}
    assert report.verdict(judged["restart"], report.NEEDS["restart"]) == "**met**"
    lacking = {row: [w for w in report.NEEDS[row] if find(judged[row], w) is None] for row in ("memory", "connections")}
    assert lacking["memory"] == []
    states = ["in steady state, ", "while changes go on, ", "in a storm, "]
    assert [words[1] for words in lacking["connections"]] == states
    assert [f.floor for f in out.figures if f.what.startswith("restart until ready")] == ["1.00 s"]


@pytest.mark.parametrize(("passes", "ok"), [((1, 1), True), ((0, 1), False), ((1, 0), False)])
def test_a_rest_in_which_nothing_came_round_is_none(
    passes: tuple[int, int], ok: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verifications and resyncs are part of what rest costs."""
    rounds = itertools.chain([(3, 4)], itertools.repeat((3 + passes[0], 4 + passes[1])))
    monkeypatch.setattr(large, "rounds", lambda _daemon: next(rounds))
    monkeypatch.setattr(large, "age_seconds", lambda _pid: 1.0)
    monkeypatch.setattr(large, "cpu_share", lambda *_: 0.0)
    monkeypatch.setattr(large, "cpu_seconds", lambda _pid: 0.0)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    stage = Quick()
    stage.lab.consul = SimpleNamespace(pid=1)
    out = Collected()
    large.rest(cast("Any", stage), out)
    verdict = report.verdict([f for f in out.figures if f.row == "rest"], report.NEEDS["rest"])
    assert verdict == ("**met**" if ok else "**missed** (1 of 4)")


def test_the_floor_of_a_restart_has_read_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that read less would be too fast."""
    lab = cast("Any", SimpleNamespace(consul=SimpleNamespace(address="http://c"), kubeconfig="k"))
    said = {"services": 10, "objects": 29, "seconds": 1.5, "processor": 0.5}
    monkeypatch.setattr("subprocess.run", lambda *_a, **_k: SimpleNamespace(stdout=json.dumps(said)))
    with pytest.raises(LabError, match="there are 10 services"):
        floor.restart(lab, "bench-", 10)
    said["objects"] = 30
    assert floor.restart(lab, "bench-", 10) == (1.5, 0.5)


@pytest.mark.parametrize(("now", "ok"), [(5.2, True), (5.3, False)])
def test_what_is_slower_than_before_is_missed(now: float, ok: bool) -> None:
    """By the p50 of all changes; kinds and tails are shown."""
    found = list(command.before_and_after({"flip": [now] * 100}, {"flip": [5.0] * 100}))
    assert [f.ok for f in found] == [ok, *[None] * 5]
    assert {f.floor for f in found} == {"5.0 ms"}


def test_optional_parts_run_only_when_they_are_named() -> None:
    """An hour is not part of `make bench`."""
    assert set(command.USUAL) == set(command.PARTS) - {"hour", "shards"}
    assert command.chosen_parts([]) == command.chosen_parts(["all", "report"]) == list(command.USUAL)
    assert command.chosen_parts(["shards", "start-up", "report"]) == ["start-up", "shards"]
    assert set(command.chosen_parts(["all", "hour"])) == {*command.USUAL, "hour"}


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

        def send(self, method: str, path: str, *_: object) -> None:
            sent.append(f"{method} {path.split('/')[-2]}")

    servers = cast("Any", Servers())
    chain(servers, servers, "floor-web")
    assert sent == ["PATCH endpointslices", "PATCH endpoints", "GET endpointslices"]


def test_the_floor_writes_bodies_as_long_as_the_bridges() -> None:
    """The API server takes longer for labels and annotations: a floor without them would be no floor."""
    instance = Instance(node="vm1", id="web-vm1", address="10.0.0.1", node_address="", port=80, status=Status.PASSING)
    source = (simulation.RULE, Query("dc1", "web"), Known((instance,)))
    target = Target("default", "web")
    planned = planning.plan(target, translate(target, [source]).mirror, Current(target), owner="default")
    bare = len(', "namespace": "default"')  # which the path says as well
    entry_ = {"Service": {"Address": "10.0.0.1", "Port": 80}, "Node": {"Address": ""}, "Checks": []}
    for kind, make in ((Kind.ENDPOINTS, floor.endpoints), (Kind.ENDPOINT_SLICE, floor.endpoint_slice)):
        ours = json.dumps(objects.encode(next(c for c in planned.changes if c.kind is kind)))
        assert len(encoded(make, "web", *decoded([entry_]))[1]) == len(ours) - bare
