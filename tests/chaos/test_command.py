"""`make chaos`: mistakes are named, and a seed means the same faults and the same changes again."""

from __future__ import annotations

import itertools
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.chaos import __main__ as command
from tests.support.chaos import run
from tests.support.chaos.changes import LATE_SECONDS, PORTS, Fleet
from tests.support.chaos.faults import catalogue, table
from tests.support.chaos.run import Campaign, percentiles, sequence
from tests.support.lab import LabError, wait_until
from tests.support.raw import RawConsul, UnexpectedAnswerError

DOCUMENT = Path(__file__).resolve().parent.parent.parent / "docs/reliability.md"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--fault", "consul-kil"], "there is no fault 'consul-kil'; --list shows all"),
        (["--seed", "seven"], "--seed 'seven' is not a whole number"),
        (["--minutes", "soon"], "--minutes 'soon' is not a number"),
        (["--minutes", "0"], "must be more than 0"),
        (["--fault", "kube-kill", "--fault", "consul-quorum-loss"], "cannot be mixed"),
        (["--soak", "--minutes", "soon"], "--minutes 'soon' is not a number"),
        (["--services", "1"], "--services must be at least 3"),
    ],
)
def test_a_mistake_is_named(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error, with exit status 2, before anything is started."""
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert (ended.value.code, says in capsys.readouterr().err) == (2, True)


def test_servers_that_cannot_start_are_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 3, and the lab's own words."""

    def broken(*_arguments: object) -> int:
        raise LabError("consul ended at its start: no space left")

    monkeypatch.setattr(command, "play", broken)
    status = command.main(["--seed", "7"])
    assert (status, "consul ended at its start" in capsys.readouterr().err) == (3, True)


def test_the_same_seed_means_the_same_faults() -> None:
    """And every fault comes once before one comes again."""
    names = list(catalogue())
    one, two, other = (sequence(names, seed) for seed in (7, 7, 8))
    first = [one() for _ in range(2 * len(names))]
    assert [two() for _ in range(2 * len(names))] == first
    assert [other() for _ in range(2 * len(names))] != first
    assert sorted(first[: len(names)]) == sorted(names)


def nobody() -> RawConsul:
    """The generator needs no Consul."""
    raise AssertionError("nothing is asked")


def test_the_same_seed_means_the_same_changes() -> None:
    """Whatever Consul has taken of them."""

    def changes(seed: int) -> list[str]:
        fleet = Fleet(nobody, seed=seed)
        return [str(fleet.step()) for _ in range(300)]

    assert (changes(7) == changes(7), changes(7) == changes(8)) == (True, False)


def test_a_vm_whose_node_comes_back_in_another_case_is_the_same_one_at_another_address() -> None:
    """As in Consul's catalog, which does not tell them apart; its streaming backend does."""
    fleet, before, after = Fleet(nobody, seed=3), None, None
    while after is None:
        before = fleet.expected()
        if (change := fleet.step()).kind == "case":
            after = fleet.expected()
    service = change.key.partition("/")[0]
    assert before is not None
    then, now = (state.ready | state.not_ready for state in (before[service], after[service]))
    moved = {address for address, _ in then - now}
    assert (len(then), len(moved), change.key) == (len(now), 1, change.key.lower())


def test_a_vm_gets_a_second_instance_of_a_service_at_the_same_address_on_another_port() -> None:
    """What happens to the VM happens to both of them."""
    fleet = Fleet(nobody, seed=3)

    def listed() -> set[tuple[str, int]]:
        return {pair for state in fleet.expected().values() for pair in state.ready | state.not_ready}

    pairs, kinds = 0, Counter[str]()
    for _ in range(1000):
        before = listed()
        change = fleet.step()
        came, went = listed() - before, before - listed()
        if change.key.endswith("/twin") and change.kind in ("register", "twin"):
            kinds[change.kind] += 1
            ((address, port),) = came or went
            pairs += (address, sum(PORTS) - port) in listed()
        elif change.kind in ("move", "leave", "case"):
            kinds[change.kind] += len(went) == 2
            assert {address for address, _ in went}.isdisjoint(address for address, _ in listed())
    assert pairs > 0
    assert set(kinds) == {"register", "twin", "move", "leave", "case"}
    assert min(kinds.values()) > 0


def test_what_is_touched_is_never_owed_and_anchors_always_are() -> None:
    """The ledger forgets an endpoint before the change can reach Consul."""
    fleet = Fleet(nobody, seed=3)
    fleet.arm()
    before = fleet.all_owed()
    for _ in range(300):
        fleet.step()
    anchors = sum(len(owed) for owed in fleet.all_owed().values())
    assert (sum(map(len, before.values())), anchors) == (8 * 12, 8 * 8)
    fleet.arm()
    expected = {name: state.ready for name, state in fleet.expected().items() if state.ready}
    assert fleet.all_owed() == expected


@pytest.mark.parametrize(
    ("error", "late"), [(TimeoutError("timed out"), True), (UnexpectedAnswerError(500, "No cluster leader"), False)]
)
def test_what_was_given_up_may_be_taken_late_and_what_was_refused_may_not(error: Exception, late: bool) -> None:
    """A server without a leader keeps a request although nothing waits for its answer any more."""

    class Silent:
        """Consul as it is during a fault."""

        def json(self, *_arguments: object) -> None:
            raise error

        def close(self) -> None:
            """Nothing is open."""

    fleet = Fleet(lambda: cast("RawConsul", Silent()), seed=3)
    fleet.start(1.0)
    try:
        wait_until(lambda: bool(fleet.trouble), 10, "the first request", 0.01)
        wait_until(lambda: (0 < fleet.late_seconds() <= LATE_SECONDS) is late, 10, "what results", 0.01)
    finally:
        fleet.close()


@pytest.mark.parametrize(
    ("shown", "late", "expected"),
    [
        ([True, True], [8.0, 7.0, 0.0, 0.0], ["flush", "compare", "7 s", "flush", "compare"]),
        ([False, True], [8.0, 0.0, 0.0], ["flush", "flush", "compare"]),
    ],
    ids=["they agreed before it came", "it came before they agreed"],
)
def test_both_sides_must_agree_once_more_when_nothing_can_come_late(
    monkeypatch: pytest.MonkeyPatch, shown: list[bool], late: list[float], expected: list[str]
) -> None:
    """What Consul takes late is a change, which the agents undo, and what the bridge then writes is no violation."""
    asked: list[str] = []
    waits, sights = iter(late), iter(shown)

    class Harness:
        """Everybody agrees whenever they are asked; one request may still be taken."""

        def __getattr__(self, _name: str) -> Harness:
            return self

        def flush(self, _seconds: float) -> bool:
            asked.append("flush")
            return True

        def late_seconds(self) -> float:
            return next(waits)

        def mirrored(self) -> dict[str, object]:
            return {}

        def shows(self, _expected: object) -> bool:
            return next(sights)

        def compare_sides(self) -> list[tuple[str, str]]:
            asked.append("compare")
            return []

        def ready(self) -> bool:
            return True

        violations: tuple[object, ...] = ()

    def at_once(condition: Callable[[], bool], seconds: float, _step: float = 0.0) -> bool:
        asked.append(f"{seconds:.0f} s")
        return condition()

    monkeypatch.setattr(run, "wait_for", at_once)
    campaign = Campaign(cast("Any", Harness()))
    assert campaign._settle(time.monotonic(), 10.0) is not None
    assert [what for what in asked if what in ("flush", "compare", "7 s")] == expected


def test_percentiles_of_nothing() -> None:
    """A campaign that was interrupted at once has a summary as well."""
    assert percentiles([]) == "nothing was measured"


def test_the_document_has_the_table_of_all_faults() -> None:
    """`python -m tests.support.chaos --table` is what the document has between its markers."""
    found = re.search(r"<!-- faults -->\n(.*?)\n<!-- /faults -->", DOCUMENT.read_text(), re.DOTALL)
    assert found is not None
    assert found.group(1).strip() == table()


def test_every_fault_has_a_name_of_its_own_and_a_description() -> None:
    """Names are how people choose them."""
    modules = itertools.chain.from_iterable(
        __import__(f"tests.support.chaos.faults_{room}", fromlist=["FAULTS"]).FAULTS
        for room in ("consul", "kube", "bridge", "tenant")
    )
    assert len(list(modules)) == len(catalogue())
    assert all(fault.what and fault.settle_seconds >= 10 for fault in catalogue().values())
    assert [f.name for f in catalogue().values() if f.settle_seconds > 10 and not f.why_slow] == []
