"""`bridge status`, `bridge explain` and `bridge check`: what they print, and their statuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import yaml
from typer.testing import Result

from bridge.core.explain import Explanation, Row, RuleVerdict
from bridge.core.reasons import Code
from bridge.core.service_state import ServiceRow
from bridge.errors import TransientError
from bridge.oneshot.inspection import Explained, Status
from bridge.oneshot.probe import Probe
from bridge.render.inspections import age, explanation_text, probe_text, status_screen, status_table
from bridge.report import HeldRow

Run = Callable[..., Result]
EVIL = "x\x1b[2J\u202e"


def row(name: str = "radosgw", state: str = "in_sync", detail: str = "", since: str = "", **counts: int) -> ServiceRow:
    """One mirrored service."""
    numbers = {"consul_ready": 11, "consul_not_ready": 1, "kubernetes_ready": 11, "kubernetes_not_ready": 1, **counts}
    return ServiceRow(
        namespace="storage",
        name=name,
        service=name,
        datacenter="dc1",
        state=state,
        detail=detail,
        since=since,
        **numbers,  # type: ignore[arg-type]
    )


STATUS = Status(
    (
        row(),
        row("db", "out_of_sync", "update Endpoints", kubernetes_ready=12, kubernetes_not_ready=0),
        row("ldap", "held", "too many"),
        row("web", "unknown", "Consul could not be asked"),
    ),
    ("Consul, service web in dc1: 500",),
)

EXPLANATION = Explanation(
    service="radosgw",
    datacenter="dc1",
    rules=(RuleVerdict("rule 1", "its name matches no glob"), RuleVerdict("rule 2", "")),
    rule="rule 2",
    target="storage/radosgw",
    consul="2 instances",
    rows=(
        Row("vm1/rgw-1", "passing", "", "10.0.0.1", "the service's address", "8080", "ready", "", "ready", "subset 1"),
        Row("vm2/rgw-2", "critical", "http", "127.0.0.1", "x", "8080", "skipped", "a loopback address", "absent"),
    ),
    differences=("update Endpoints radosgw (1 address turns ready)",),
)


def stand_in(monkeypatch: pytest.MonkeyPatch, where: str, what: Any) -> list[dict[str, Any]]:
    """Replace a function of the engine; returns the list of its calls."""
    calls: list[dict[str, Any]] = []

    def called(*args: Any, **kwargs: Any) -> Any:
        calls.append({"args": args, **kwargs})
        if isinstance(what, Exception):
            raise what
        return what

    monkeypatch.setattr(where, called)
    return calls


# --------------------------------------------------------------------------- status


def test_status_has_both_sides_and_a_line_of_sums() -> None:
    """A row per service; what could not be read stands below."""
    text = status_table(STATUS, 100)
    assert re.search(r"radosgw +storage/radosgw +11/12 +11/12 +in sync", text)
    assert re.search(r"db +storage/db +11/12 +12/12 +out of sync +update Endpoints", text)
    assert re.search(r"web +storage/web +\? +11/12 +unknown", text)
    assert "1 in sync, 1 out of sync, 1 held, 1 unknown" in text
    assert "Not read (1): what is there stays" in text
    assert status_table(Status(())) == "nothing is mirrored\n"


def test_the_first_line_of_status_says_whether_anything_is_wrong() -> None:
    """What is not in sync stands before what is; below a long table the sums are repeated, where the prompt is."""
    short, long = (Status((*(row(f"app-{n:02}") for n in range(count)), row("web", "conflict"))) for count in (3, 40))
    lines = status_table(replace(short, notes=("a rule matches nothing",)), 100).splitlines()
    assert (lines[0], lines[2]) == ("3 in sync, 1 conflict", "a rule matches nothing")
    assert [line.split()[0] for line in lines[4:]] == ["SERVICE", "web", "app-00", "app-01", "app-02"]
    lines = status_table(long, 100).splitlines()
    assert (lines[0], lines[-2:]) == ("40 in sync, 1 conflict", ["", "40 in sync, 1 conflict"])
    assert status_table(STATUS, 100).startswith("1 in sync, 1 out of sync, 1 held, 1 unknown; 1 not read\n")


def test_the_datacenter_that_carries_the_traffic_is_named_and_why() -> None:
    """Once: where it is not the first, that is a warning as well."""
    one = replace(row(), active_datacenter="fra")
    assert "radosgw@fra " in status_table(Status((one,)), 100)
    why = "datacenter fra carries the traffic, not ams: it has no instance"
    text = explanation_text(replace(EXPLANATION, traffic=why, warnings=(why, "another")), 140)
    assert (text.count(why), f"Traffic:  {why}" in text, "Warning:  another" in text) == (1, True, True)


def test_a_service_without_any_ready_endpoint_has_a_mark_of_its_own(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the table, in its sums, on top of the screen and in JSON; both sides are in sync all the same."""
    status = Status((row(), row("db", kubernetes_ready=0, kubernetes_not_ready=3)))
    text = status_table(status, 100)
    assert re.search(r"db +storage/db +11/12 +0/3 +no ready endpoint", text)
    assert "1 in sync, 1 no ready endpoint" in text
    assert status_screen(status).splitlines()[3].startswith("db ")
    stand_in(monkeypatch, "bridge.oneshot.inspection.status_once", status)
    data = json.loads(run("status", "-o", "json").stdout)
    assert (data["in_sync"], [(s["state"], s["no_ready_endpoint"]) for s in data["services"]]) == (
        True, [("in_sync", False), ("in_sync", True)],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("since", "text"),
    [
        ("2026-11-23T12:00:00Z", "0s"),
        ("2026-11-23T11:59:00Z", "60s"),
        ("2026-11-23T11:50:00Z", "10m"),
        ("2026-11-23T06:00:00Z", "6h"),
        ("2026-11-01T12:00:00Z", "22d"),
        ("2026-11-23T12:00:05Z", "0s"),
        ("", ""),
        ("soon", ""),
    ],
)
def test_an_age_is_short(since: str, text: str) -> None:
    """In its largest unit; nothing where no time is known, and never below zero (clocks differ)."""
    assert age(since, "2026-11-23T12:00:00+00:00") == text


def test_status_says_since_when(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the table as an age, for machines as a time."""
    status = Status((row(since="2026-11-23T11:00:00Z"), row("new")), (), "2026-11-23T12:00:00+00:00")
    stand_in(monkeypatch, "bridge.oneshot.inspection.status_once", status)
    assert re.search(r"radosgw +storage/radosgw +11/12 +11/12 +in sync +1h\n", run("status").stdout)
    data = json.loads(run("status", "-o", "json").stdout)
    assert [entry["since"] for entry in data["services"]] == ["2026-11-23T11:00:00Z", None]


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("count", [0, 12, 5000])
def test_the_screen_fits_the_terminal(count: int, width: int, colour: bool) -> None:
    """Never longer or wider than it; what is not in sync is on top, and what found no room is counted."""
    rows = [row(f"service-with-a-long-name-{n:04}", detail="", since="2026-11-23T11:00:00Z") for n in range(count)]
    rows += [row("zzz-held", "held", "too many at once: 12 of 12 ready endpoints would go " * 3)] if count else []
    text = status_screen(Status(tuple(rows), ("x" * 500,), "2026-11-23T12:00:00+00:00"), width, 24, colour, "read")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    assert (len(lines) < 24, max(map(len, lines)) <= width, ("\x1b" in text) == colour) == (True, True, True)
    if count:
        assert lines[0].startswith(f"{count} in sync, 1 held   read")
        assert lines[3].startswith("zzz-held ")
    else:
        assert lines[0] == "nothing is mirrored   read"
    left = sum(int(line.split()[2]) for line in lines if line.startswith("... and "))
    shown = sum(line.startswith("service-") for line in lines)
    assert shown + left == count


def test_status_says_why_something_is_held_once_and_each_command_on_one_line() -> None:
    """In the rows a few words; below, the reason, the names and the command of each, which no width breaks."""
    options = "--config /etc/consul-bridge/production/config.yaml --owner storage.consul-bridge"
    held = tuple(
        HeldRow("storage", name, name, "dc1", Code.HELD_REBUILT, 12, "the whole sentence", "dc1 was rebuilt at 12:00",
                f"bridge sync {options} --service {name} --namespace storage --force")
        for name in ("db", "ldap")
    )  # fmt: skip
    rows = tuple(row(h.name, "held", "12 ready endpoints kept: Consul was rebuilt") for h in held)
    status = Status(rows, (), "2026-11-23T12:00:00+00:00", held=held)
    for width in (80, None):
        text = status_table(status, width)
        assert (text.count("was rebuilt at 12:00"), text.count("the whole sentence")) == (1, 0)
        assert [text.count(f"{h.command}\n") for h in held] == [1, 1]
        assert "without --service and --namespace it releases all" in " ".join(text.split())
    assert "releases all" not in status_table(replace(status, held=held[:1]))
    assert [entry["command"] for entry in status.to_json()["held"]] == [h.command for h in held]
    assert len(status_screen(status, 80, 12).splitlines()) < 12


def test_watching_ends_without_a_reader_and_survives_an_absent_server(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last table stays, with the reason; elsewhere than on a terminal each reading is a line of JSON."""
    answers: Iterator[Status | TransientError] = iter([STATUS, TransientError("refused"), STATUS])
    pages: list[str] = []

    def once(**_: Any) -> Status:
        answer = next(answers)
        if isinstance(answer, Status):
            return answer
        raise answer

    def printed(text: str) -> bool:
        pages.append(text)
        return len(pages) < 3

    monkeypatch.setattr("bridge.oneshot.inspection.status_once", once)
    monkeypatch.setattr("bridge.cli.status.write", printed)
    result = run("status", "--watch", "--interval", "500ms", "-o", "json")
    assert (result.exit_code, [json.loads(p)["trouble"] for p in pages]) == (
        0, [list(STATUS.trouble), ["refused"], list(STATUS.trouble)],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("status", "code"), [(STATUS, 1), (Status((row(), row("db", "out_of_sync"))), 0), (Status(()), 0)]
)
def test_status_fails_only_when_something_could_not_be_read(
    status: Status, code: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A difference is a finding, not a failure."""
    stand_in(monkeypatch, "bridge.oneshot.inspection.status_once", status)
    assert run("status").exit_code == code


@pytest.mark.parametrize(("output", "parse"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_status_for_machines(
    output: str, parse: Callable[[str], Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same data."""
    stand_in(monkeypatch, "bridge.oneshot.inspection.status_once", STATUS)
    data = parse(run("status", "-o", output).stdout)
    assert data == STATUS.to_json()
    assert data["in_sync"] is False
    assert data["services"][0]["consul"] == {"ready": 11, "not_ready": 1}


def test_a_server_that_cannot_be_reached(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, status 1."""
    stand_in(monkeypatch, "bridge.oneshot.inspection.status_once", TransientError("connection refused"))
    result = run("status")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "error: connection refused\n")


@pytest.mark.parametrize("command", [["status"], ["explain", "x"], ["check"]])
def test_a_diff_of_what_is_no_report_is_refused(
    command: Sequence[str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what there is instead."""
    stand_in(monkeypatch, "bridge.oneshot.inspection.status_once", STATUS)
    stand_in(monkeypatch, "bridge.oneshot.inspection.explain_once", Explained())
    stand_in(monkeypatch, "bridge.oneshot.check.check", [])
    result = run(*command, "-o", "diff")
    assert result.exit_code == 2
    assert "--output: diff is for sync and purge; here: table, json, yaml" in result.stderr


# --------------------------------------------------------------------------- explain


def test_explain_tells_the_rule_the_target_and_every_instance() -> None:
    """And how Kubernetes differs."""
    text = explanation_text(EXPLANATION, 140)
    assert "Rule:     rule 2" in text
    assert "Target:   storage/radosgw" in text
    assert re.search(r"INSTANCE +STATUS +ADDRESS +SHOULD BE +IS +WHY\n", text)
    assert re.search(r"vm1/rgw-1 +passing +10\.0\.0\.1 +ready +ready\n", text)
    assert re.search(r"vm2/rgw-2 +critical +127\.0\.0\.1 +skipped +absent +a loopback address; check http", text)
    assert "Kubernetes differs; the next pass would:\n  update Endpoints radosgw (1 address turns ready)" in text


def rows_of(*addresses: str, node: str = "vm", ports: str = "8080", group: str = "subset 1") -> tuple[Row, ...]:
    """Instances that are ready and passing."""
    return tuple(
        Row(f"{node}/rgw-{n}", "passing", "", a, "the service's address", ports, "ready", "", "ready", group)
        for n, a in enumerate(addresses, 1)
    )


def test_what_is_the_same_for_all_instances_is_reported_once_above_them() -> None:
    """What is left of twelve healthy instances is their names and addresses; one alone has its row whole."""
    lines = explanation_text(replace(EXPLANATION, rows=rows_of("10.0.0.1", "10.0.0.2")), 80).splitlines()
    (above,) = (line for line in lines if line.startswith("In all 2 rows: "))
    assert set(above.removeprefix("In all 2 rows: ").split("; ")) == {
        "STATUS passing", "PORTS 8080", "SHOULD BE ready", "IS ready",
    }  # fmt: skip
    assert [line.split() for line in lines if line.startswith(("INSTANCE", "vm/"))] == [
        ["INSTANCE", "ADDRESS"], ["vm/rgw-1", "10.0.0.1"], ["vm/rgw-2", "10.0.0.2"],
    ]  # fmt: skip
    first, second = (replace(r, chosen="the node's address") for r in rows_of("10.0.0.1", "10.0.0.2"))
    text = explanation_text(replace(EXPLANATION, rows=(replace(first, reason="a reason"), second)), None)
    assert (text.count("at the node's address"), "  a reason\n" in text) == (1, True)
    alone = explanation_text(replace(EXPLANATION, rows=rows_of("10.0.0.1")), 80)
    assert "In all" not in alone
    assert re.search(r"vm/rgw-1 +passing +10\.0\.0\.1 +8080 +ready +ready\n", alone)


def test_an_instance_and_its_address_are_never_cut() -> None:
    """However long: what has no room stands below its row, the reason first, then ports, then the address."""
    node, v6 = "a-node-of-the-data-centre-with-a-long-name.example", "2001:db8:1234:5678:9abc:def0:1234:5678"
    sick = Row(f"{node}/rgw-7", "critical", "http", "10.0.0.7", "", "8080, 9090", "not ready", "", "absent", "",
               'Get "http://10.0.0.7:8080/": connection refused')  # fmt: skip
    text = explanation_text(replace(EXPLANATION, rows=(sick, *rows_of(v6, node=node))), 80)
    assert [line for line in text.splitlines() if line.startswith(f"{node}/rgw-7")]
    assert max(map(len, text.splitlines())) <= 80
    flat = " ".join(text.split())
    assert f"address {v6}; ports 8080" in flat
    assert 'check http: Get "http://10.0.0.7:8080/": connection refused' in flat
    assert "…" not in text


def test_the_groups_are_shown_where_they_differ_and_there_is_room() -> None:
    """Instances in the same subset need no column that says so."""
    apart = (*rows_of("10.0.0.1"), *rows_of("10.0.0.2", node="b", ports="9090", group="subset 2"))
    assert "GROUP" in explanation_text(replace(EXPLANATION, rows=apart), 120)
    assert "GROUP" not in explanation_text(replace(EXPLANATION, rows=rows_of("10.0.0.1", "10.0.0.2")), 120)


def test_explain_tells_why_no_rule_selects() -> None:
    """Each rule with its reason."""
    text = explanation_text(
        Explanation("x", "dc1", (RuleVerdict("rule 1", "its name matches no glob"),), problem="none")
    )
    assert "Rule:     not rule 1: its name matches no glob" in text
    assert "Problem:  none" in text


@pytest.mark.parametrize(
    ("explanation", "end"),
    [
        ({"target": "a/x"}, "Kubernetes holds exactly this.\n"),
        (
            {"target": "a/x", "compared": False},
            "Too little is known to say how Kubernetes differs; what is there stays.\n",
        ),
        ({"target": "a/x", "problem": "no one lists it"}, "Nothing is to be written.\n"),
        (
            {"target": "a/x", "problem": "no one lists it", "differences": ("delete Service x",)},
            "Kubernetes differs; the next pass would:\n  delete Service x\n",
        ),
        (
            {"target": "a/x", "problem": "no one lists it", "held": ("2 kept",)},
            "Nothing is taken away while it is held.\n",
        ),
        ({"problem": "no rule selects it"}, "Consul:   0 instances\n"),
    ],
)
def test_the_last_line_says_what_the_next_pass_would_do(explanation: dict[str, Any], end: str) -> None:
    """Never that nothing is to be written when something is, and never that both sides agree when it is not known."""
    assert explanation_text(Explanation("x", "dc1", consul="0 instances", **explanation)).endswith(end)


def test_what_is_kept_of_a_service_that_is_gone_is_named() -> None:
    """There is no instance left to show it in a row of."""
    gone = Explanation(
        "x", "dc1", target="a/x", problem="not listed", held=("1 kept",), unaccounted=("10.0.0.1:80 ready",)
    )
    assert "of no instance above (the hold keeps what is ready): 10.0.0.1:80 ready" in explanation_text(gone, None)


def test_explain_passes_the_name_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text by default, data on demand, 1 when something could not be read."""
    calls = stand_in(monkeypatch, "bridge.oneshot.inspection.explain_once", Explained((EXPLANATION,)))
    result = run("explain", "radosgw")
    assert result.exit_code == 0
    assert calls[0]["args"] == ("radosgw",)
    assert json.loads(run("explain", "radosgw", "-o", "json").stdout)["explanations"][0]["target"] == "storage/radosgw"
    stand_in(monkeypatch, "bridge.oneshot.inspection.explain_once", Explained((EXPLANATION,), ("Kubernetes: 403",)))
    result = run("explain", "radosgw")
    assert result.exit_code == 1
    assert "Kubernetes: 403" in result.stdout


def test_explain_of_what_there_is_not_fails_and_says_what_there_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The notes come before all the rest, and are data as well."""
    explained = Explained((EXPLANATION,), notes=("did you mean postgres?",), found=False)
    stand_in(monkeypatch, "bridge.oneshot.inspection.explain_once", explained)
    result = run("explain", "postgers")
    assert (result.exit_code, result.stdout.splitlines()[:2]) == (1, ["did you mean postgres?", ""])
    assert json.loads(run("explain", "postgers", "-o", "json").stdout)["notes"] == ["did you mean postgres?"]


def test_status_says_its_notes_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the table, on the screen of --watch and as data."""
    noted = replace(STATUS, notes=("no rules are given",))
    stand_in(monkeypatch, "bridge.oneshot.inspection.status_once", noted)
    assert run("status").stdout.splitlines()[1:4] == ["", "no rules are given", ""]
    assert json.loads(run("status", "-o", "json").stdout)["notes"] == ["no rules are given"]
    assert "no rules are given" in status_screen(noted, 80, 24)


def test_what_selects_nothing_reaches_what_only_looks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it can say so."""
    calls = stand_in(monkeypatch, "bridge.oneshot.inspection.explain_once", Explained((EXPLANATION,)))
    for flags, selects in (((), False), (("--service", "radosgw"), True), (("--namespace", "storage"), False)):
        run("explain", "radosgw", *flags)
        assert calls[-1]["options"].selects is selects


# --------------------------------------------------------------------------- check

PROBES = [
    Probe("consul reachable", "ok", "http://c:8500"),
    Probe("token in dc1", "warning", "filtered", "a token with more"),
    Probe("namespace x", "failed", "does not exist", "kubectl create namespace x"),
]


def test_a_probe_is_a_line_and_what_mends_it() -> None:
    """Only when it is not ok."""
    assert probe_text(PROBES[0]) == "ok      consul reachable: http://c:8500\n"
    assert probe_text(PROBES[2]) == (
        "failed  namespace x: does not exist\n        -> kubectl create namespace x\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("probes", "code", "sums"), [(PROBES, 1, "1 failed, 1 warning, 1 ok"), (PROBES[:2], 0, "1 warning, 1 ok")]
)
def test_check_fails_when_a_probe_does(
    probes: list[Probe], code: int, sums: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warnings do not. The last line counts what the lines above may have pushed off the screen."""
    stand_in(monkeypatch, "bridge.oneshot.check.check", probes)
    result = run("check")
    assert (result.exit_code, result.stdout.splitlines()[-2:]) == (code, ["", sums])
    data = json.loads(run("check", "-o", "json").stdout)
    assert data["ok"] is (code == 0)
    assert data["probes"] == [p.to_json() for p in probes]


def test_check_finds_the_servers_missing_and_goes_on(run: Run) -> None:
    """Both sides are reported in one go, each with what fixes it; port 9 is the discard port that no one serves."""
    result = run("check", "--consul-address", "http://127.0.0.1:9", "--service", "web")
    assert result.exit_code == 1
    assert "failed  consul reachable: http://127.0.0.1:9" in result.stdout
    assert "failed  kubernetes reachable: " in result.stdout
    assert result.stdout.count("-> ") == 2


def test_check_without_any_kubeconfig(run: Run, tmp_path: Any) -> None:
    """Consul is still looked at."""
    result = run("check", "--kubeconfig", str(tmp_path / "nix"), "--consul-address", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "consul reachable" in result.stdout
    assert "failed  kubernetes: " in result.stdout


@pytest.mark.parametrize(
    "text",
    [
        status_table(Status((row(EVIL, detail=EVIL),), (EVIL,)), 100),
        explanation_text(
            Explanation(
                EVIL,
                "dc1",
                problem=EVIL,
                consul=EVIL,
                rows=(Row(*[EVIL] * 11), Row(*[EVIL * 2] * 11)),
                held=(EVIL,),
                target=EVIL,
            ),
            100,
        ),
        probe_text(Probe(EVIL, "failed", EVIL, EVIL), 100),
    ],
)
def test_nothing_hostile_reaches_the_terminal(text: str) -> None:
    """Names come from Consul."""
    assert all(c.isprintable() or c == "\n" for c in text)
