"""Which answers of Consul's streaming backend explain themselves, and which need a plain read."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.consul import decode, streamed
from bridge.consul.client import STREAMING, Answer
from bridge.core.model import Known
from tests.unit.consul.builders import read

ASKED = 50


def entry(
    node: str = "vm1", identity: str = "gh", *, modified: int = 40, status: str = "passing", check: str = "c",
    checked: int = 40, port: int = 80,
) -> dict[str, Any]:  # fmt: skip
    checks = [{"CheckID": check, "Status": status, "ModifyIndex": checked}] if check else []
    return {
        "Node": {"Node": node, "Address": "10.0.0.1", "ModifyIndex": 30},
        "Service": {"ID": identity, "Service": "gh", "Port": port, "ModifyIndex": modified},
        "Checks": checks,
    }


def why(before: list[dict[str, Any]], after: list[dict[str, Any]], index: int, *, certain: bool = True) -> str:
    """The reason for which `after`, answered at `index`, is not believed; "" when it is."""
    known = decode.view_of(Answer(ASKED, read(before)))
    answer = Answer(index, read(after), STREAMING)
    shown = decode.view_of(answer)
    assert isinstance(known, Known)
    assert isinstance(shown, Known)
    doubt = streamed.doubt(answer, shown, known, ASKED, certain=certain)
    return "" if doubt is None else f"{doubt.reason}{' (proof)' if doubt.proof else ''}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([entry()], [entry(status="critical", checked=51)]),
        ([entry(status="critical")], [entry(checked=51)]),
        ([entry()], [entry(), entry("vm2", modified=51)]),
        ([entry()], [entry(port=81, modified=51)]),
        ([entry()], [entry(checked=51)]),  # an output that we do not read
        ([], [entry(modified=51)]),
    ],
)
def test_an_ordinary_change_explains_itself_and_costs_no_read(
    before: list[dict[str, Any]], after: list[dict[str, Any]]
) -> None:
    assert why(before, after, 51) == ""


def test_a_wait_that_ran_out_shows_what_was_known() -> None:
    """Where nothing exists the two backends number differently: a lower index alone is nothing new."""
    assert [why([entry()], [entry()], ASKED), why([], [], 25)] == ["", ""]


def test_the_catalog_never_has_one_instance_in_two_spellings() -> None:
    """A node that came back in another case: the event of the new one does not touch the old one in the view."""
    assert why([entry("vm2")], [entry("vm2"), entry("VM2", modified=51)], 51).endswith("(proof)")
    assert why([entry()], [entry(identity="gh"), entry(identity="GH", modified=51)], 51).endswith("(proof)")


def test_an_instance_that_appears_must_be_newer_than_the_read_that_did_not_have_it() -> None:
    """A ghost comes back when the wait runs out, or with the next change of another instance."""
    ghost = entry("VM2", modified=45, checked=45)
    found = [why([entry()], [entry(), ghost], ASKED), why([entry()], [entry(status="critical", checked=51), ghost], 51)]
    assert found == ["it shows an instance that is older than the read that did not have it (proof)"] * 2


def test_with_a_filter_an_old_instance_may_appear_so_that_is_a_doubt_and_no_proof() -> None:
    """A check of it that the filter looked at is gone, and leaves no index behind."""
    reason = "it shows an instance that is older than the read that did not have it"
    assert why([], [entry()], 51, certain=False) == reason


def test_what_goes_away_is_never_explained_by_an_answer() -> None:
    assert why([entry(), entry("vm2")], [entry()], 51) == "it lacks an instance"


def test_a_query_that_returned_before_its_time_must_show_something_new() -> None:
    """Consul removed an instance whose row spells the node otherwise: the view keeps it, only the index moved."""
    assert why([entry()], [entry()], 51) == "it came before its time, and shows nothing new"


def test_an_instance_that_differs_must_be_newer_itself() -> None:
    before = [entry(status="critical"), entry("vm2")]
    after = [entry(check=""), entry("vm2", status="warning", checked=51)]
    assert why(before, after, 51) == "it shows an instance otherwise, and nothing of it is newer"


def test_an_instance_is_not_well_because_its_check_is_missing() -> None:
    """Its id came back in another case: the view does not find its checks, which still have the old one."""
    before = [entry(status="critical")]
    assert why(before, [entry(check="", modified=51)], 51) == "it lacks the check that decided about an instance"
    assert why(before, [entry(check="c2", status="warning", modified=51)], 51) != ""
    assert why(before, [entry(checked=51, modified=51)], 51) == ""
