"""Reports as text: tables that fit, formats that parse, diffs that apply, and nothing hostile on the terminal."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace

import pytest
import yaml

from bridge.core.model import Action, Conflict, CurrentEndpoints, EndpointsBody, Held, Kind, Query, Skipped, Target
from bridge.core.reasons import Code, Reason
from bridge.errors import TransientError
from bridge.render.layout import Column, clean, columns, painter
from bridge.render.reports import failed_lines, purge_text, render, summary_line
from bridge.report import Failure, Outcome, Report
from tests.unit.core.builders import said
from tests.unit.render.builders import TARGET, before, change, created, done, group, meta, plan, report, service_body

HOSTILE = "evil\x1b[2J\r\n\x07\u202e[bold]x"


def rich_report(dry_run: bool = True) -> Report:
    """One of everything."""
    failing = change(Action.UPDATE, Kind.ENDPOINTS, target=Target("storage", "db"))
    held = Held(
        Target("storage", "ldap"), Code.HELD_REMOVAL, 12, "12 of 20 ready endpoints (60 %) would vanish within 60 s"
    )
    return report(
        created(1),
        Outcome(
            plan(
                change(Action.UNCHANGED, Kind.SERVICE),
                change(Action.UPDATE, reason="1 address turns not ready"),
                skipped=(Skipped("radosgw", "rgw-13", said("127.0.0.1 is a loopback address")),),
                warnings=(said("1200 addresses in one subset"),),
                ready=11,
                not_ready=1,
            )
        ),
        done(plan(failing, target=Target("storage", "db")), (failing, TransientError("503 from the API server"))),
        done(plan(target=Target("storage", "ldap"), held=(held,), ready=12)),
        done(
            plan(target=Target("x", "y"), conflicts=(Conflict(Target("x", "y"), Kind.SERVICE, said("has a selector")),))
        ),
        dry_run=dry_run,
        unknown={Query("dc2", "web"): "500: no cluster leader", Query("dc3", ""): "unreachable"},
    )


def test_a_table_says_all_that_matters() -> None:
    """Rows, sums, and every section with its remedy."""
    text = render(rich_report(), "table", 120)
    lines = text.splitlines()
    assert lines[0].split() == ["SERVICE", "TARGET", "PORTS", "READY", "NOT", "READY", "ACTION", "REASON"]
    assert re.search(r"radosgw +storage/radosgw +8080 +11 +1 +update +1 address turns not ready; 1 skipped", text)
    sums = " ".join(text.split())
    assert "dry run: 1 service to create, 1 to update, 1 held, 1 in conflict, 1 failed " in sums
    assert "2 objects to create, 2 to update, 1 unchanged, 1 failed 1 instance skipped 2 reads failed " in sums
    assert "rename or delete the object" in " ".join(text.split())
    assert "Failed (3)" in text
    assert "update Endpoints storage/db: 503 from the API server" in text
    assert "reading web in dc2 (what is there stays): 500: no cluster leader" in text
    assert "reading the services of dc3 (what is there stays): unreachable" in text
    assert "radosgw, instance rgw-13: 127.0.0.1 is a loopback address" in text
    assert "storage/radosgw: 1200 addresses in one subset" in text


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """Long columns give way; nothing wraps by accident."""
    assert max(map(len, render(rich_report(), "table", width).splitlines())) <= width


def test_a_long_name_is_cut_only_where_the_terminal_ends() -> None:
    """In a pipe every name is whole, so that it can be searched for."""
    name = "a" * 63
    outcome = done(plan(change(), target=Target("storage", name), query=Query("dc1", name)))
    assert "…" in render(report(outcome, dry_run=False), "table", 80)
    piped = render(report(outcome, dry_run=False), "table", None)
    assert f"storage/{name}" in piped
    assert "…" not in piped


def test_wide_characters_keep_the_columns_straight() -> None:
    """A Chinese name takes two columns a character."""
    from rich.cells import cell_len

    outcomes = [
        done(plan(change(), target=Target("a", f"t{n}"), query=Query("dc1", name)))
        for n, name in enumerate(("存储网关", "radosgw"))
    ]
    rows = render(report(*outcomes, dry_run=False), "table", 80).splitlines()[1:3]
    assert len({cell_len(row[: row.index("a/t")]) for row in rows}) == 1


def test_colour_is_only_added_and_never_changes_the_text() -> None:
    """Without the escape sequences both are the same."""
    coloured = render(rich_report(), "table", 100, colour=True)
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == render(rich_report(), "table", 100)
    assert "\x1b" not in render(rich_report(), "table", 100)


def test_the_datacenter_is_shown_when_there_are_several() -> None:
    """With one it would be noise."""
    one = done(plan(change(), target=Target("a", "x"), query=Query("dc1", "x")))
    two = done(plan(change(), target=Target("a", "y"), query=Query("dc2", "y")))
    assert "x@dc1" in render(report(one, two, dry_run=False), "table", 80)
    assert "x@dc1" not in render(report(one, dry_run=False), "table", 80)


def test_adoption_is_offered_where_it_helps() -> None:
    """An ExternalName that a user asks to have filled, or a selector, stays what it is under --adopt."""

    def told(why: Reason) -> str:
        conflict = Conflict(Target("x", "y"), Kind.SERVICE, why)
        return render(report(done(plan(target=Target("x", "y"), conflicts=(conflict,)))), "table", None)

    assert "take it over (--adopt unowned)" in told(Reason(Code.NOT_OWNED, flag="--adopt unowned", annotation="x"))
    assert "--adopt" not in told(Reason(Code.SELECTOR))
    assert "rename or delete" in told(Reason(Code.SELECTOR))
    assert "rename or delete" not in told(Reason(Code.EXTERNAL_NAME))


@pytest.mark.parametrize("output", ["table", "diff", "json", "yaml"])
@pytest.mark.parametrize("colour", [False, True])
def test_nothing_hostile_reaches_the_terminal(output: str, colour: bool) -> None:
    """A user who may register in Consul chooses these texts."""
    the_change = change(Action.UPDATE, reason=HOSTILE)
    outcome = Outcome(
        plan(
            the_change,
            query=Query("dc1", HOSTILE),
            skipped=(Skipped(HOSTILE, HOSTILE, said(HOSTILE)),),
            warnings=(said(HOSTILE),),
            held=(Held(TARGET, Code.HELD_REMOVAL, 1, HOSTILE),),
            conflicts=(Conflict(TARGET, Kind.SERVICE, said(HOSTILE)),),
        ),
        before=before(True, group("10.0.0.1")),
    )
    text = render(report(outcome, unknown={Query("dc1", HOSTILE): HOSTILE}), output, 100, colour)
    text = re.sub(r"\x1b\[[0-9;]*m", "", text) if colour else text
    assert all(c.isprintable() or c == "\n" for c in text)


def test_control_characters_become_visible() -> None:
    """Escaped, not dropped: two names that differ stay two."""
    assert clean("a\x1bb\u202ec\nd") == "a\\x1bb\\u202ec\\nd"
    assert clean("[red]ünïcode[/]") == "[red]ünïcode[/]"


def test_json_and_yaml_carry_the_same_data() -> None:
    """Two spellings of one thing, in ASCII."""
    the_report = rich_report()
    as_json, as_yaml = render(the_report, "json"), render(the_report, "yaml")
    assert json.loads(as_json) == yaml.safe_load(as_yaml) == the_report.to_json()
    assert list(yaml.safe_load(as_yaml)) == list(the_report.to_json())
    assert as_json.isascii()
    assert as_yaml.isascii()


def test_five_thousand_rows_are_quick() -> None:
    """rich takes 1.5 s for this; a user waits for it."""
    the_report = report(*[created(n) for n in range(5000)])
    started = time.process_time()
    text = render(the_report, "table", 120, colour=True)
    assert time.process_time() - started < 0.5
    assert len(text.splitlines()) == 5003


def test_many_skipped_instances_do_not_bury_the_rest() -> None:
    """Twenty are named, all others counted."""
    skipped = tuple(Skipped("a", f"i{n:03}", said("loopback")) for n in range(100))
    text = render(report(done(plan(skipped=skipped))), "table", 100)
    assert "... and 80 more (-o json lists all)" in text
    assert text.count("loopback") == 20


def test_one_reason_for_many_services_is_one_line() -> None:
    """A filter that Consul refuses fails for every service alike."""
    unknown = {Query("dc1", f"s{n:03}"): "bad filter" for n in range(500)}
    text = render(report(unknown=unknown), "table", 120)
    assert "  reading s000, s001, s002 and 497 more in dc1 (what is there stays): bad filter" in text.splitlines()
    assert "Failed (500)" in text


def test_very_many_failures_are_cut() -> None:
    """A namespace that does not exist fails for every service, each with its own name."""
    unknown = {Query("dc1", f"s{n:03}"): f"reason {n}" for n in range(500)}
    assert "... and 450 more (-o json lists all)" in render(report(unknown=unknown), "table", 120)


@pytest.mark.parametrize(
    ("the_report", "expected"),
    [
        (report(), "dry run: nothing to do"),
        (report(dry_run=False), "nothing to do"),
        (report(created(1), created(2)), "dry run: 2 services to create; 4 objects to create"),
        (report(done(created(1).plan), dry_run=False), "1 service created; 2 objects created"),
        (
            report(done(plan(change(Action.UNCHANGED)))),
            "dry run: nothing to do; 1 service unchanged; 1 object unchanged",
        ),
        (
            report(done(plan(held=(Held(TARGET, Code.HELD_PANIC, 1, "x"),)))),
            "dry run: nothing else to do; 1 service held",
        ),
    ],
)
def test_the_line_of_sums(the_report: Report, expected: str) -> None:
    """What will be done reads otherwise than what was done."""
    assert summary_line(the_report) == expected


def test_a_diff_shows_what_changes_and_nothing_else() -> None:
    """Like `diff -u`, one object after the other."""
    body = EndpointsBody((group("10.0.0.1", "10.0.0.2", not_ready=("10.0.0.3",)),), (), ())
    outcome = Outcome(
        plan(change(Action.UNCHANGED, Kind.SERVICE), change(Action.UPDATE, body=body)),
        before=before(True, group("10.0.0.1", "10.0.0.2", "10.0.0.3")),
    )
    assert render(report(outcome), "diff").splitlines() == [
        "--- current/Endpoints/storage/radosgw",
        "+++ desired/Endpoints/storage/radosgw",
        "@@ -3,4 +3,4 @@",
        "     - http 8080/TCP",
        "   - 10.0.0.1 (ready)",
        "   - 10.0.0.2 (ready)",
        "-  - 10.0.0.3 (ready)",
        "+  - 10.0.0.3 (not ready)",
    ]


def test_a_diff_of_a_creation_and_a_deletion() -> None:
    """From and to nothing."""
    create = Outcome(plan(change(Action.CREATE, Kind.SERVICE, service_body())))
    assert render(report(create), "diff").splitlines() == [
        "--- /dev/null",
        "+++ desired/Service/storage/radosgw",
        "@@ -0,0 +1,6 @@",
        "+labels:",
        "+  team: storage",
        "+type: ClusterIP",
        "+ipFamilies: IPv4",
        "+ports:",
        "+  - http 8080/TCP",
    ]
    delete = Outcome(plan(change(Action.DELETE)), before=before(True, group("10.0.0.1")))
    lines = render(report(delete), "diff").splitlines()
    assert lines[:2] == ["--- current/Endpoints/storage/radosgw", "+++ /dev/null"]
    assert "-  - 10.0.0.1 (ready)" in lines


def test_a_diff_of_endpoints_that_are_adopted_says_that_their_content_was_not_read() -> None:
    """Endpoints of others are known without their addresses: the diff must not look as if nothing were replaced."""
    body = EndpointsBody((group("10.0.0.1"),), (), ())
    foreign = CurrentEndpoints(replace(meta(Kind.ENDPOINTS), owner=None), ())
    outcome = Outcome(plan(change(Action.UPDATE, body=body)), before=replace(before(), endpoints=foreign))
    lines = render(report(outcome), "diff").splitlines()
    assert "-(not read: kubectl get endpoints radosgw --namespace storage -o yaml)" in lines


def test_a_diff_without_changes_is_empty() -> None:
    """So that `test -z` works."""
    assert render(report(done(plan(change(Action.UNCHANGED)))), "diff") == ""


def test_a_rewrite_of_equal_content_still_shows_the_object() -> None:
    """An object that is stored in another order is rewritten, and the diff says so."""
    body = EndpointsBody((group("10.0.0.1"),), (), ())
    the_change = change(Action.UPDATE, body=body, reason="stored in another order")
    outcome = Outcome(plan(the_change), before=before(True, group("10.0.0.1")))
    assert render(report(outcome), "diff").splitlines()[-1] == "# stored in another order"


HEADS = (Column("NAME", least=8), Column("STATE"), Column("WHY", least=1))


def test_a_reason_that_has_no_room_stands_whole_under_its_row() -> None:
    """On a terminal it is the reason that people look for: names are cut, it never is."""
    why = "10.96.0.1 is not in guard.allow_cidrs"
    rows = [("one", "skipped", why), ("a-very-long-name" * 4, "ready", "")]
    wide = columns(HEADS, rows, 140, painter(False), below=True)
    narrow = columns(HEADS, rows, 60, painter(False), below=True)
    assert wide[1].split() == ["one", "skipped", *why.split()]
    assert narrow[0].split() == ["NAME", "STATE"]
    assert " ".join(" ".join(narrow[2:-1]).split()) == why
    assert narrow[1].split() == ["one", "skipped"]
    assert "…" in narrow[-1]
    assert max(map(len, narrow)) <= 60
    assert columns(HEADS, rows[1:], 60, painter(False), below=True)[1].split()[-1] == "ready"


def test_what_stays_as_it_is_has_no_row_unless_it_is_asked_for() -> None:
    """Of 1,500 services the one that changes is seen; the sums count all others."""
    targets = [Target("storage", f"s-{n:04}") for n in range(1500)]
    same = [done(plan(change(Action.UNCHANGED, target=t), target=t, query=Query("dc1", t.name))) for t in targets]
    the_report = report(*same, created(1))
    text = render(the_report, "table", 80)
    assert len(text.splitlines()) < 8
    assert "service-0001" in text
    assert "1 service to create, 1500 unchanged 2 objects to create, 1500 unchanged" in " ".join(text.split())
    assert "--all" in text
    whole = render(the_report, "table", 80, every=True)
    assert all(t.name in whole for t in targets)
    assert "--all" not in whole


def held(name: str, command: str, why: str = "12 of 20 would vanish") -> Outcome:
    """A target where something is held."""
    target = Target("storage", name)
    kept = Held(target, Code.HELD_REMOVAL, 3, f"3 are kept: {why}; by `{command}`", why=why, command=command)
    return done(plan(target=target, query=Query("dc1", name), held=(kept,)))


def test_why_something_is_held_is_reported_once_with_each_name_and_its_command() -> None:
    """Whatever is held for another reason has its own text."""
    other = held("ldap", "bridge sync --service ldap --force", "Consul was rebuilt")
    the_report = report(
        held("a", "bridge sync --service a --force"), held("b", "bridge sync --service b --force"), other
    )
    text = " ".join(render(the_report, "table", 80).split())
    assert (text.count("12 of 20 would vanish"), text.count("Consul was rebuilt")) == (1, 1)
    for name in ("a", "b", "ldap"):
        assert f"storage/{name} (3 ready endpoints kept): bridge sync --service {name} --force" in text
    assert [row["command"] for row in the_report.to_json()["held"]] == [
        f"bridge sync --service {name} --force" for name in ("a", "b", "ldap")
    ]


def test_many_holds_are_cut() -> None:
    """A lost Consul holds everything."""
    text = render(report(*(held(f"s{n:03}", "bridge sync --force") for n in range(300))), "table", 120)
    assert text.count("12 of 20 would vanish") == 1
    assert "... and 280 more (-o json lists all)" in text


def test_a_failure_comes_before_what_was_not_tried_for_it() -> None:
    """In one line: the Service sorts behind the Endpoints that were not tried without it."""
    service = change(Action.CREATE, Kind.SERVICE)
    first = Outcome(
        plan(service, change(Action.CREATE, Kind.ENDPOINTS)), failures=(Failure(service, TransientError("503")),)
    )
    (line,) = failed_lines(report(first, dry_run=False))
    assert line.startswith("create Service storage/radosgw: 503")
    assert "not tried: Endpoints radosgw" in line


def test_what_fails_alike_is_one_line() -> None:
    """A namespace that does not exist fails for every service, with one and the same sentence."""
    outcomes = []
    for n in range(300):
        the_change = change(Action.CREATE, Kind.SERVICE, target=Target("storage", f"s{n:03}"))
        failure = Failure(the_change, TransientError("namespace storage does not exist"))
        outcomes.append(Outcome(plan(the_change, target=the_change.target), failures=(failure,)))
    (line,) = failed_lines(report(*outcomes, dry_run=False))
    assert line == "create Service storage/s000, s001, s002 and 297 more: namespace storage does not exist"


def test_a_purge_says_what_goes_and_how_much_of_it() -> None:
    """Before it: each name with its objects; after it: the sums alone."""
    targets = [Target("storage", f"s-{n:04}") for n in range(150)]
    plans = [
        plan(change(Action.DELETE, target=t), change(Action.DELETE, Kind.SERVICE, target=t), target=t,
             query=Query("dc1", f"consul-{t.name}"))
        for t in targets
    ]  # fmt: skip
    before_it = purge_text(report(*map(Outcome, plans)), 80)
    assert before_it.startswith("dry run: 300 objects to delete in namespace storage: 150 Endpoints, 150 Services\n")
    assert re.search(r"storage/s-0000 +consul-s-0000 +1 Endpoints, 1 Service\n", before_it)
    assert "... and 50 more (-o json lists all)" in before_it
    assert "storage/s-0149" in purge_text(report(*map(Outcome, plans)), None)
    after_it = purge_text(report(*map(done, plans), dry_run=False), 80)
    assert after_it == "300 objects deleted in namespace storage: 150 Endpoints, 150 Services\n"
