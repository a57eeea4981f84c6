"""`bridge purge`: asks, refuses where no terminal can answer, and deletes only after that."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import Result

from bridge.core.model import Action, Kind
from bridge.errors import PermanentError
from bridge.report import Outcome, Report, build_report
from tests.unit.cli.test_streams import on_a_terminal
from tests.unit.render.builders import change, done, plan, report

Run = Callable[..., Result]


class Purge:
    """Stands in for `oneshot.purge.purge`."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, bool]] = []
        self.plan = plan(change(Action.DELETE), change(Action.DELETE, Kind.SERVICE))
        self.failing = False

    def __call__(self, namespaces: Any, dry_run: bool, *, options: Any, **_: Any) -> Report:
        self.calls.append((options.owner, namespaces, dry_run))
        if not self.plan.changes:
            return report(dry_run=dry_run)
        if dry_run:
            return build_report([Outcome(self.plan)], {}, True)
        failure = [(self.plan.changes[0], PermanentError("403"))] if self.failing else []
        return build_report([done(self.plan, *failure)], {}, False)


@pytest.fixture
def purge(monkeypatch: pytest.MonkeyPatch) -> Purge:
    """`bridge purge` without a server."""
    import bridge.oneshot.purge

    stand_in = Purge()
    monkeypatch.setattr(bridge.oneshot.purge, "purge", stand_in)
    return stand_in


def test_without_a_terminal_it_needs_yes(run: Run, purge: Purge) -> None:
    """And has only looked."""
    result = run("purge", "--owner", "team-a")
    assert result.exit_code == 2
    assert "would delete 2 objects of owner 'team-a' in namespace from-context" in result.stderr
    assert "--yes is needed" in result.stderr
    assert purge.calls == [("team-a", ("from-context",), True)]


def test_yes_deletes(run: Run, purge: Purge) -> None:
    """Looks first, then deletes, then tells."""
    result = run("purge", "--yes", "-o", "json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["summary"]["delete"] == 2
    assert purge.calls == [("default", ("from-context",), True), ("default", ("from-context",), False)]


def test_a_dry_run_deletes_nothing(run: Run, purge: Purge) -> None:
    """Whatever else is reported."""
    result = run("purge", "--dry-run", "--yes", "--exit-code")
    assert result.exit_code == 4
    assert "2 objects to delete in namespace storage: 1 Endpoints, 1 Service" in result.stdout
    assert purge.calls == [("default", ("from-context",), True)]


def test_one_namespace_beside_a_file_with_rules(run: Run, purge: Purge, tmp_path: Any) -> None:
    """Here --namespace says where to purge; it is no rule."""
    file = tmp_path / "b.yaml"
    file.write_text("rules:\n- to: {namespace: elsewhere}\n")
    assert run("purge", "--dry-run", "--config", str(file), "--namespace", "old").exit_code == 0
    assert purge.calls == [("default", ("old",), True)]


def test_a_namespace_that_cannot_be_is_refused(run: Run, purge: Purge) -> None:
    """Checked like everything else."""
    result = run("purge", "--namespace", "A_b", "--yes")
    assert result.exit_code == 2
    assert purge.calls == []


def test_the_namespaces_of_the_rules_and_the_watched_ones(run: Run, purge: Purge, tmp_path: Any) -> None:
    """Where objects of ours may be."""
    file = tmp_path / "b.yaml"
    file.write_text("kubernetes: {watch_namespaces: [old]}\nrules:\n- to: {namespace: b}\n- to: {namespace: a}\n")
    run("purge", "--dry-run", "--config", str(file))
    assert purge.calls == [("default", ("a", "b", "old"), True)]


def test_nothing_to_purge_is_reported_and_fine(run: Run, purge: Purge) -> None:
    """With the owner and the place, so that a wrong one is seen."""
    purge.plan = plan()
    result = run("purge")
    assert result.exit_code == 0
    assert "nothing there belongs to owner 'default' in namespace from-context" in result.stderr


def test_a_deletion_that_fails_is_a_failure(run: Run, purge: Purge) -> None:
    """Status 1, and what was left."""
    purge.failing = True
    result = run("purge", "--yes")
    assert result.exit_code == 1
    assert "failed: delete Endpoints storage/radosgw: 403" in result.stderr


PRELUDE = """
    import bridge.oneshot.purge as p
    from tests.unit.cli.test_purge import Purge
    p.purge = Purge()
"""


@pytest.mark.parametrize(
    ("answer", "status", "expected"),
    [(b"y\n", 0, "2 objects deleted"), (b"n\n", 3, "nothing was deleted"), (b"\n", 3, "nothing")],
)
def test_on_a_terminal_it_shows_the_plan_and_asks(answer: bytes, status: int, expected: str) -> None:
    """No is the default."""
    got, text = on_a_terminal("purge", prelude=PRELUDE, answer=answer)
    assert got == status
    assert "2 objects to delete in namespace storage: 1 Endpoints, 1 Service" in text
    assert "Delete 2 objects of owner 'default' in namespace from-context?" in text
    assert expected in text
