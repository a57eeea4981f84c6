"""What goes to standard output, what to standard error, and with which status the command ends."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import Result

from bridge.core.model import Action, Conflict, Held, Kind, Query, Skipped
from bridge.core.reasons import Code
from bridge.errors import CancelledError, ConfigurationError, PermanentError, TransientError
from bridge.report import Report
from tests.unit.cli.conftest import ROOT, Engine, command_line, environment, process
from tests.unit.core.builders import said
from tests.unit.render.builders import TARGET, change, created, done, plan, report

Run = Callable[..., Result]

HELD = done(plan(held=(Held(TARGET, Code.HELD_REMOVAL, 12, "too many at once"),)))


@pytest.mark.parametrize(
    ("the_report", "flags", "status"),
    [
        (report(created(1), dry_run=True), ["--dry-run"], 0),
        (report(created(1), dry_run=True), ["--dry-run", "--exit-code"], 4),
        (report(dry_run=True), ["--dry-run", "--exit-code"], 0),
        (report(created(1), dry_run=False), [], 0),
        (report(created(1), dry_run=False), ["--exit-code"], 0),
        (report(HELD, dry_run=False), [], 3),
        (report(unknown={Query("dc1", "a"): "x"}), [], 1),
        (report(done(plan(conflicts=(Conflict(TARGET, Kind.SERVICE, said("x")),))), dry_run=False), [], 5),
        (report(done(plan(skipped=(Skipped("a", "b", said("c")),))), dry_run=False), [], 0),
    ],
)
def test_the_status_follows_the_report(
    the_report: Report, flags: list[str], status: int, run: Run, engine: Engine
) -> None:
    """As in docs/reference.md."""
    engine.report = the_report
    assert run("sync", *flags).exit_code == status


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigurationError("no such context"), 2),
        (PermanentError("unknown datacenter"), 1),
        (TransientError("connection refused"), 1),
        (CancelledError("stopped"), 130),
        (OSError(28, "No space left on device"), 1),
        (RuntimeError("a bug"), 1),
    ],
)
def test_an_error_is_one_paragraph_without_a_traceback(error: Exception, status: int, run: Run, engine: Engine) -> None:
    """`error: ...` on standard error; standard output stays empty."""
    engine.error = error
    result = run("sync")
    assert result.exit_code == status
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert str(error) in result.stderr


@pytest.mark.parametrize("how", [{"flags": ["--log-level", "debug"]}, {"env": {"BRIDGE_LOG_LEVEL": "debug"}}])
def test_debug_shows_where_an_error_came_from(how: dict[str, object], run: Run, engine: Engine) -> None:
    """For those who look into it."""
    engine.error = RuntimeError("a bug")
    result = run("sync", *how.get("flags", ()), env=how.get("env"))  # type: ignore[misc]
    assert "Traceback" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["sync", "--dryrun"], "error: No such option: --dryrun (Possible options: --dry-run"),
        (["snyc"], "error: No such command 'snyc'"),
        (["sync", "--owner"], "error: Option '--owner' requires an argument"),
        (["sync", "--removal-grace-period", "3s"], "error: No such option: --removal-grace-period"),
        (["run", "--grace", "3s"], "error: No such option: --grace; it is called --removal-grace-period now"),
        (["explain"], "error: Missing argument 'SERVICE'"),
        (["sync", "--owner", "a b"], "error: --owner: 'a b' must be a label value"),
        (["sync", "--config", "/nix.yaml"], "error: /nix.yaml: cannot be read: No such file or directory"),
        (["sync", "--output", "xml"], "error: --output: 'xml' must be one of table, json, yaml, diff"),
        (["sync", "--context", "nix"], "error: "),
    ],
)
def test_usage_errors_end_with_2_and_a_sentence(arguments: list[str], expected: str) -> None:
    """As a process, as users see it."""
    done_ = process(*arguments)
    assert done_.returncode == 2
    assert done_.stdout == ""
    assert done_.stderr.startswith(expected)
    assert "Traceback" not in done_.stderr


def test_several_mistakes_are_a_list(run: Run) -> None:
    """Each on its own line."""
    result = run("sync", "--owner", "a b", "--policy", "x")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0] == "error:"
    assert len(result.stderr.splitlines()) == 3


@pytest.mark.parametrize(("output", "parse"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_machine_output_stands_alone_on_standard_output(
    output: str, parse: Callable[[str], object], run: Run, engine: Engine
) -> None:
    """Failures and holds are on standard error as well, so that a pipeline's log shows them."""
    engine.report = report(created(1), HELD, unknown={Query("dc1", "db"): "500"}, dry_run=False)
    result = run("sync", "-o", output, env={"BRIDGE_CONECTIONS": "1"})
    assert parse(result.stdout) == engine.report.to_json()
    assert "failed: reading db in dc1 (what is there stays): 500" in result.stderr
    assert result.stderr.splitlines().count("held: too many at once") == 1
    assert any(line.startswith("held:   storage/radosgw (") for line in result.stderr.splitlines())
    assert "BRIDGE_CONECTIONS: no such setting" in result.stderr


def test_what_failed_is_reported_once_where_both_streams_are_one() -> None:
    """A terminal, or `2>&1`: the table has said it."""
    prelude = """
        import bridge.oneshot.sync as s
        from bridge.core.model import Query
        from tests.unit.cli.test_streams import HELD
        from tests.unit.render.builders import created, report
        s.sync_once = lambda **_: report(created(1), HELD, unknown={Query("dc1", "db"): "500"}, dry_run=False)
    """
    told, text = on_a_terminal("sync", prelude=prelude, answer=b"")
    assert (told, text.count("reading db in dc1"), text.count("too many at once")) == (1, 1, 1)
    apart = process("sync", prelude=prelude)
    assert [s.count("reading db in dc1") for s in (apart.stdout, apart.stderr)] == [1, 1]


def test_a_table_is_plain_in_a_pipe(run: Run, engine: Engine) -> None:
    """No colour, no cutting."""
    engine.report = report(created(1))
    result = run("sync", "--dry-run")
    assert "\x1b" not in result.stdout
    assert "storage/service-0001" in result.stdout


def test_a_diff_is_one_of_the_outputs(run: Run, engine: Engine) -> None:
    """`bridge sync --dry-run -o diff`."""
    engine.report = report(created(1))
    assert run("sync", "--dry-run", "-o", "diff").stdout.startswith(
        "--- /dev/null\n+++ desired/Service/storage/service"
    )


def test_no_service_selected_says_how_to_select(run: Run, engine: Engine) -> None:
    """What was asked for, and what one can ask for."""
    result = run("sync", "--service", "nix*")
    assert result.exit_code == 0
    assert "no service selected: nothing in Consul matches services nix*" in result.stderr
    assert "--service GLOB" in result.stderr
    unselected = run("sync", "--dry-run", selects=False)
    assert unselected.stderr.startswith("no service selected: nothing in Consul matches every service")


DELETING = """
    import bridge.oneshot.sync as s
    from bridge.core.model import Action
    from tests.unit.render.builders import change, done, plan, report
    the_plan = plan(change(Action.DELETE))
    def sync_once(confirm, **_):
        if not confirm(report(type(done(the_plan))(the_plan))):
            return report(type(done(the_plan))(the_plan))
        return report(done(the_plan), dry_run=False)
    s.sync_once = sync_once
"""


def on_a_terminal(*arguments: str, prelude: str, answer: bytes, selects: bool = True) -> tuple[int, str]:
    """Run with a terminal for all three streams, and type `answer`."""
    main, terminal = pty.openpty()
    child = subprocess.Popen(
        command_line(*arguments, prelude=prelude, selects=selects), stdin=terminal, stdout=terminal, stderr=terminal,
        cwd=ROOT, env=environment({"TERM": "xterm"}),
    )  # fmt: skip
    os.close(terminal)
    os.write(main, answer)
    text = b""
    while True:
        try:
            piece = os.read(main, 65536)
        except OSError:
            break
        if not piece:
            break
        text += piece
    os.close(main)
    return child.wait(60), text.decode()


@pytest.mark.parametrize(
    ("flags", "answer", "status", "expected"),
    [
        ([], b"y\n", 0, "1 object deleted"),
        ([], b"n\n", 3, "nothing was written"),
        (["--yes"], b"", 0, "1 object deleted"),
    ],
)
def test_sync_asks_before_it_deletes_on_a_terminal(flags: list[str], answer: bytes, status: int, expected: str) -> None:
    """--yes asks nothing."""
    got, text = on_a_terminal("sync", *flags, prelude=DELETING, answer=answer)
    assert got == status
    assert expected in text
    assert ("Delete 1 object?" in text) is (not flags)


def test_sync_does_not_ask_without_a_terminal() -> None:
    """In a CronJob or a pipeline."""
    done_ = process("sync", prelude=DELETING, stdin=subprocess.DEVNULL)
    assert done_.returncode == 0
    assert "1 object deleted" in done_.stdout


def test_a_terminal_gets_colour_and_no_color_is_honoured() -> None:
    """https://no-color.org"""
    prelude = DELETING
    _, text = on_a_terminal("sync", "--yes", prelude=prelude, answer=b"")
    assert "\x1b[31m" in text
    _, text = on_a_terminal("sync", "--yes", prelude="import os; os.environ['NO_COLOR'] = '1'" + prelude, answer=b"")
    assert "\x1b[31m" not in text


LARGE = """
    import bridge.oneshot.sync as s
    from bridge.core.model import Query
    from tests.unit.render.builders import created, report
    s.sync_once = lambda **_: report(*[created(n) for n in range(5000)], unknown=UNKNOWN)
"""


@pytest.mark.parametrize(("unknown", "status"), [("{}", 0), ("{Query('dc1', 'x'): 'y'}", 1)])
@pytest.mark.parametrize("output", ["table", "json"])
def test_a_reader_that_goes_away_ends_quietly_with_the_right_status(unknown: str, status: int, output: str) -> None:
    """`bridge sync --dry-run -o json | head -1`"""
    child = subprocess.Popen(
        command_line("sync", "--dry-run", "-o", output, prelude=LARGE.replace("UNKNOWN", unknown)),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=environment(),
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.read(100)
    child.stdout.close()
    errors = child.stderr.read().decode()
    child.stderr.close()
    assert child.wait(60) == status
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors


def test_a_full_disk_is_an_error() -> None:
    """A report that could not be written is not a success."""
    with Path("/dev/full").open("w") as full:
        done_ = process("sync", "--dry-run", prelude=LARGE.replace("UNKNOWN", "{}"), stdout=full,
                        stderr=subprocess.PIPE, capture_output=False)  # fmt: skip
    assert done_.returncode == 1
    assert "error: standard output cannot be written: No space left on device" in done_.stderr
    assert "Traceback" not in done_.stderr


def test_a_closed_standard_error_is_no_error() -> None:
    """`bridge sync 2>&-` and friends."""
    reader, writer = os.pipe()
    os.close(reader)
    done_ = process("sync", "--dry-run", prelude=LARGE.replace("UNKNOWN", "{Query('a', 'b'): 'c'}"), stderr=writer,
                    stdout=subprocess.PIPE, capture_output=False)  # fmt: skip
    os.close(writer)
    assert done_.returncode == 1
    assert done_.stdout


def test_a_name_that_the_encoding_lacks_is_escaped() -> None:
    """A Latin-1 terminal, a name in Chinese."""
    prelude = """
        import bridge.oneshot.sync as s
        from bridge.core.model import Query
        from tests.unit.render.builders import report
        s.sync_once = lambda **_: report(unknown={Query('dc1', '存储'): 'x'})
    """
    done_ = process("sync", prelude=prelude, env={"PYTHONIOENCODING": "latin-1"})
    assert done_.returncode == 1
    assert "\\u5b58\\u50a8" in done_.stdout


def test_no_service_selected_is_also_reported_when_the_last_ones_go(run: Run, engine: Engine) -> None:
    """A mistyped glob must not look like a success."""
    doomed = done(plan(change(Action.DELETE)))
    engine.report = report(doomed, dry_run=False)
    assert "no service selected" in run("sync", "--service", "typo*").stderr


SLOW = """
    import bridge.oneshot.sync as s
    import sys, time
    from bridge.core.model import Action
    from bridge.errors import CancelledError
    from tests.unit.render.builders import change, done, plan, report
    def sync_once(confirm, progress, stop, **_):
        progress("reading Consul", 1, 2)
        if WRITING:
            confirm(report())
        print("begun", file=sys.stderr, flush=True)
        if not WRITING or STUBBORN:
            while True: time.sleep(1)
        stop.wait()
        return report(done(plan(change(Action.UPDATE))), dry_run=False)
    s.sync_once = sync_once
"""


def interrupted(number: int, writing: bool, stubborn: bool = False) -> tuple[int, str, str]:
    """Start a sync that lasts, send the signal (twice when it is stubborn), and see."""
    prelude = SLOW.replace("WRITING", str(writing)).replace("STUBBORN", str(stubborn))
    child = subprocess.Popen(
        command_line("sync", prelude=prelude), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
        env=environment(), text=True,
    )  # fmt: skip
    assert child.stderr is not None
    begun = child.stderr.readline()
    assert begun == "begun\n"
    child.send_signal(number)
    if stubborn:
        assert "finishing" in child.stderr.readline()
        child.send_signal(number)
    out, errors = child.communicate(timeout=30)
    return child.returncode, out, errors


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_writing_lets_the_writes_in_flight_finish(number: int, status: int) -> None:
    """Then the report says what was done, and the status that it was interrupted."""
    got, out, errors = interrupted(number, writing=True)
    assert got == status
    assert "1 object updated" in out
    assert "interrupted: finishing the writes in flight" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_writing_ends_at_once(number: int, status: int) -> None:
    """Whatever hangs: nothing was written, so nothing is half done."""
    started = time.monotonic()
    got, out, errors = interrupted(number, writing=False)
    assert time.monotonic() - started < 30
    assert (got, out) == (status, "")
    assert errors == "interrupted: nothing was written\n"


def test_a_second_signal_ends_at_once() -> None:
    """For those who cannot wait."""
    got, _, errors = interrupted(signal.SIGINT, writing=True, stubborn=True)
    assert got == 130
    assert "Traceback" not in errors


def test_nothing_is_changed_by_asking_for_it_to_be_quiet(run: Run, engine: Engine) -> None:
    """Log settings never touch standard output."""
    engine.report = report(done(plan(change(Action.UPDATE))), dry_run=False)
    assert run("sync").stdout == run("sync", "--log-level", "error", "--log-format", "json").stdout
