"""The log: what is reported, how often, and that neither secrets nor control characters get into it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture

from bridge.controller.state_changes import StateChanges
from bridge.core.model import Action, Conflict, Held, Kind, Query, Skipped
from bridge.core.reasons import Code, Reason
from bridge.errors import AlteredError, PermanentError
from bridge.telemetry import logs
from bridge.telemetry.events import ServerWarning
from bridge.telemetry.logs import LogObserver, Secrets
from tests.unit.core.builders import said as why
from tests.unit.render.builders import TARGET, change, created, done, plan, report


@pytest.fixture(autouse=True)
def _leave_logging_as_it_was() -> Iterator[None]:
    """Logging is global; a test must not leave its handler behind."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def written(log_format: str, *say: tuple[str, dict[str, Any]], level: str = "info") -> str:
    """What these events look like."""
    stream = io.StringIO()
    logs.configure(log_format, level, None, stream)
    for text, extra in say:
        logs.logger().info(text, **extra)
    return stream.getvalue()


def thrown(text: str) -> ValueError:
    """An exception with a traceback."""
    error = ValueError(text)
    with contextlib.suppress(ValueError):
        raise error
    return error


def test_json_is_one_object_a_line() -> None:
    """With the time in UTC, the level and the event's own keys."""
    (line,) = written("json", ("written", {"service": "a", "ready": 3})).splitlines()
    event = json.loads(line)
    assert event.pop("timestamp").endswith("Z")
    assert event == {"event": "written", "level": "info", "service": "a", "ready": 3}


def test_console_is_key_value() -> None:
    """For people: time, level, event, then key=value."""
    text = written("console", ("written", {"service": "radosgw", "ready": 3}))
    assert "written" in text
    assert "service=radosgw" in text
    assert "ready=3" in text
    assert "\x1b" not in text


def test_colour_only_when_wanted() -> None:
    """A stream that is no terminal gets none; asked for, it is there."""
    stream = io.StringIO()
    logs.configure("console", "info", None, stream, colour=True)
    logs.logger().info("written")
    assert "\x1b[" in stream.getvalue()


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_control_characters_are_escaped_everywhere(log_format: str) -> None:
    """Names come from users who may register in Consul: keys, values, nested values, and the event itself."""
    evil = "x\x1b[2J\r\n\u202ey"
    text = written(log_format, (evil, {"a": evil, "b": [evil], "c": {"d": evil}, "e": ValueError(evil)}))
    assert len(text.splitlines()) == 1
    assert all(c.isprintable() for c in text.rstrip("\n"))


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_secrets_are_masked_wherever_they_stand(log_format: str) -> None:
    """In texts, in errors, in what other libraries log; also one that is learnt later."""
    secrets = Secrets(["s3cr3t-token"])
    stream = io.StringIO()
    logs.configure(log_format, "debug", secrets, stream)
    secrets.add("later-token")
    logs.logger().warning(
        "X-Consul-Token: s3cr3t-token", extra={"t": ["later-token"]}, error=ValueError("s3cr3t-token")
    )
    logging.getLogger("some.library").warning("header %s", "s3cr3t-token")
    logs.logger().error("failed", exc_info=thrown("s3cr3t-token in a traceback"))
    text = stream.getvalue()
    assert "s3cr3t-token" not in text
    assert "later-token" not in text
    assert text.count("***") >= 4


def test_short_texts_are_no_secrets() -> None:
    """Masking `a` everywhere would make the log unreadable."""
    assert Secrets(["a", ""]).mask("banana") == "banana"


def test_a_traceback_is_for_debug_only() -> None:
    """Otherwise the error is one value on the line."""

    def said(level: str) -> str:
        stream = io.StringIO()
        logs.configure("console", level, None, stream)
        logs.logger().error("failed", exc_info=thrown("oh"))
        return stream.getvalue()

    assert "Traceback" in said("debug")
    assert "Traceback" not in said("info")
    assert "ValueError: oh" in said("info")


def test_levels() -> None:
    """What is below is not said."""
    assert written("console", ("quiet", {}), level="warning") == ""


def test_configuring_twice_does_not_say_everything_twice() -> None:
    """The old handler goes."""
    written("console", ("one", {}))
    assert written("console", ("two", {})).count("two") == 1


def test_a_stderr_that_is_gone_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken pipe there must not end the bridge."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Gone())
    logs.configure("console")
    logs.logger().info("no one learns")


# --------------------------------------------------------------------------- the observer


@pytest.fixture
def said() -> Iterator[LogCapture]:
    """Everything that is logged, as data."""
    capture = LogCapture()
    structlog.configure(processors=[capture], wrapper_class=structlog.stdlib.BoundLogger)
    yield capture
    structlog.reset_defaults()


def observer() -> LogObserver:
    """One that logs to the capture."""
    return LogObserver(structlog.get_logger())


def test_one_line_for_what_was_written(said: LogCapture) -> None:
    """All objects of a target together, with the lag."""
    the_plan = plan(change(Action.CREATE, Kind.SERVICE), change(Action.CREATE, reason="new"), ready=2, not_ready=1)
    observer().outcome(done(the_plan), 0.0123)
    assert said.entries == [
        {
            "event": "written",
            "log_level": "info",
            "service": "radosgw",
            "datacenter": "dc1",
            "namespace": "storage",
            "name": "radosgw",
            "changes": "create Service, create Endpoints",
            "ready": 2,
            "not_ready": 1,
            "lag_ms": 12.3,
            "reason": "new",
        }
    ]


def test_nothing_is_reported_when_nothing_changed(said: LogCapture) -> None:
    """An idle bridge is silent."""
    ears = observer()
    states = StateChanges(ears)
    ears.outcome(done(plan(change(Action.UNCHANGED))), 0.1)
    ears.pass_done(0.1, report(done(plan(change(Action.UNCHANGED)))))
    said.entries.clear()
    for _ in range(3):
        states.consul("dc1", True, "")
        states.kubernetes(True, "")
        states.held(())
        ears.pass_done(0.1, report(done(plan(change(Action.UNCHANGED)))))
    assert [e for e in said.entries if e["log_level"] != "debug"] == []


def test_each_failure_is_reported(said: LogCapture) -> None:
    """With what, where and why."""
    failing = change(Action.UPDATE)
    observer().outcome(done(plan(failing), (failing, PermanentError("403: forbidden"))), None)
    (entry,) = said.entries
    assert (entry["event"], entry["log_level"], entry["kind"]) == ("write failed", "warning", "Endpoints")
    assert entry["reason"] == "403: forbidden"


def test_a_state_is_reported_when_it_changes(said: LogCapture) -> None:
    """Down once, whatever the reason becomes; then back."""
    ears = observer()
    states = StateChanges(ears)
    for up, reason in [(True, ""), (False, "refused"), (False, "refused"), (False, "timeout"), (True, ""), (True, "")]:
        states.consul("dc1", up, reason)
        states.kubernetes(up, reason)
    assert [e["event"] for e in said.entries] == [
        "consul cannot be asked; everything stays as it is",
        "kubernetes cannot be used; changes wait",
        "consul is back",
        "kubernetes is back",
    ]


def test_services_that_cannot_be_read_are_reported_once_unless_their_datacenter_is_down(said: LogCapture) -> None:
    """The first of them with its reason, and when all can be read again."""
    ears = observer()
    states = StateChanges(ears)
    broken = {Query("dc1", "web"): "torn off", Query("dc2", "db"): "no leader"}
    states.consul("dc2", False, "no leader")
    states.service_read_errors({Query("dc2", "db"): "no leader"})
    states.service_read_errors(broken)
    states.service_read_errors(broken)
    states.service_read_errors({})
    states.service_read_errors({})
    assert [e["event"] for e in said.entries] == [
        "consul cannot be asked; everything stays as it is",
        "services cannot be read; they stay as they are",
        "all services can be read again",
    ]
    assert (said.entries[1]["first"], said.entries[1]["reason"]) == ("web", "torn off")


def test_holds_are_reported_when_they_come_and_go(said: LogCapture) -> None:
    """Not at every look."""
    ears = observer()
    states = StateChanges(ears)
    hold = Held(TARGET, Code.HELD_REMOVAL, 12, "too many")
    states.held((hold,))
    states.held((hold,))
    states.held(())
    assert [e["event"] for e in said.entries] == ["removal held", "hold ended"]
    assert said.entries[0]["endpoints"] == 12


def test_what_is_stored_otherwise_than_written_is_reported_once_and_again_when_it_changes(said: LogCapture) -> None:
    """It is tried again and again; the log tells it once, until it is over."""
    ears = observer()
    failing = change(Action.UPDATE)

    def tried(text: str) -> None:
        ears.outcome(done(plan(failing), *(((failing, AlteredError(text, None)),) if text else ())), None)

    for text in ("a is gone", "a is gone", "b is gone", "b is gone", "", "b is gone"):
        tried(text)
    failures = [e["reason"] for e in said.entries if e["event"] == "write failed"]
    assert failures == ["a is gone", "b is gone", "b is gone"]


def test_a_slice_that_others_write_all_the_time_is_one_line(said: LogCapture) -> None:
    """A client that may write slices must not fill the log."""
    log = observer()
    for number in range(140):
        what = f"has 10.9.9.{number}"
        reason = Reason(Code.FOREIGN_SLICE, name="mesh", manager="mesh.example.org", namespace="default", what=what)
        log.outcome(done(plan(warnings=(reason,))), None)
    assert [line["codes"] for line in said.entries] == ["foreign_slice"]


def test_conflicts_skips_and_warnings_are_reported_once_and_again_when_they_change(said: LogCapture) -> None:
    """A pass every five minutes must not repeat them."""
    ears = observer()
    conflict = Conflict(TARGET, Kind.SERVICE, why("has a selector"))
    one = done(
        plan(conflicts=(conflict,), skipped=(Skipped("radosgw", "i", why("loopback")),), warnings=(why("large"),))
    )
    ears.outcome(one, None)
    ears.pass_done(0.1, report(one))
    ears.pass_done(0.1, report(one))
    events = [e["event"] for e in said.entries if e["event"] != "full pass planned"]
    assert events == ["conflict: left alone, it is not ours", "instances skipped", "warning"]
    said.entries.clear()
    ears.outcome(done(plan(change(Action.UPDATE))), None)
    ears.outcome(one, None)
    assert [e["event"] for e in said.entries].count("conflict: left alone, it is not ours") == 1


def test_the_first_pass_is_reported_with_its_sums(said: LogCapture) -> None:
    """How many services, and what is to be done."""
    observer().pass_done(0.25, report(created(1)))
    (entry,) = said.entries
    assert entry == {
        "event": "full pass planned", "log_level": "info", "create": 2, "services": 1, "duration_ms": 250.0,
    }  # fmt: skip


def test_a_warning_of_the_api_server_is_a_line_and_the_known_one_no_alarm(said: LogCapture) -> None:
    """What it says to every request of a kind is for information only."""
    watching = observer()
    watching.changed(ServerWarning("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"))
    watching.changed(ServerWarning("unknown field"))
    assert [(e["log_level"], e["text"][:12]) for e in said.entries] == [
        ("info", "v1 Endpoints"),
        ("warning", "unknown fiel"),
    ]
    assert {e["event"] for e in said.entries} == {"warning of kubernetes"}


def test_credentials_that_cannot_be_renewed_are_reported_when_that_changes(said: LogCapture) -> None:
    """Not every half second; another reason, and the end, are news."""
    watching = observer()
    states = StateChanges(watching)
    for trouble in ("", "hangs", "hangs", "fails", "", ""):
        states.credentials(trouble)
    assert [(e["log_level"], e.get("reason")) for e in said.entries] == [
        ("warning", "hangs"),
        ("warning", "fails"),
        ("info", None),
    ]
