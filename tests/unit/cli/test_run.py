"""`bridge run` as a process: what it builds, what it serves, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from bridge.cli import COMMANDS
from bridge.daemon import WATCH_SECONDS, _FileWatch
from tests.support.lab import free_port
from tests.unit.cli.conftest import ROOT, command_line, environment, process

BRIDGE = """
    import json, sys, threading
    import bridge.controller.controller as r
    class Controller:
        def __init__(self, *, consul, kube, rules, options, observer=None, left=()):
            self.stopped, self.options, self.consul, self.rules = threading.Event(), options, consul, rules
        def run(self):
            o, c = self.options, self.consul
            print(json.dumps({
                "owner": o.owner, "policy": o.policy, "adopt": o.adopt, "grace": o.removal_grace_seconds,
                "resync": o.resync_seconds, "writers": o.writers, "panic": o.guard.panic_percent,
                "rebuild": o.guard.restore_hold_seconds, "release": o.guard.hold_release_seconds,
                "connections": c.connections, "namespace": self.rules[0].to.namespace,
            }), flush=True)
            RUN
        def stop(self): self.stopped.set()
        def healthy(self): return True, "ok"
        def ready(self): return True, {"consul": "ok"}
        def status(self): return {"ready": True, "queue": 0}
        def state(self): return {"ready": True, "first_pass_done": True, "queue": 0}
        def services(self): return []
        def unmirrored(self): return ()
        def left_behind(self, rules, further): return ()
        def replace_rules(self, rules):
            print(json.dumps([r.to.namespace for r in rules]), flush=True)
            return len({r.to.namespace for r in rules}) == 1
    r.Controller = Controller
"""
WAITS = BRIDGE.replace("RUN", "self.stopped.wait()")


class Running:
    """A `bridge run` that has begun."""

    def __init__(self, *flags: str, env: dict[str, str] | None = None, prelude: str = WAITS) -> None:
        self.process = subprocess.Popen(
            command_line("run", *flags, prelude=prelude, env=env), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, cwd=ROOT, env=environment({"BRIDGE_LOG_FORMAT": "json", **(env or {})}),
        )  # fmt: skip
        assert self.process.stdout is not None
        self.options: dict[str, Any] = json.loads(self.process.stdout.readline())

    def end(self, number: int = signal.SIGTERM) -> tuple[int, list[dict[str, Any]]]:
        """Status and log events."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, [json.loads(line) for line in errors.splitlines()]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_it_cleanly_with_its_status(number: int, status: int) -> None:
    """As in docs/reference.md: 143 for SIGTERM, 130 for Ctrl-C; the log says what happens."""
    got, log = Running("--listen", "127.0.0.1:0").end(number)
    assert got == status
    assert [e["event"] for e in log] == [
        "effective settings",
        "bridge starts",
        "stopping: finishing the writes in flight",
        "bridge has stopped",
    ]


def test_what_is_served_while_it_runs() -> None:
    """Port 0 is any free port, and the log says which."""
    running = Running("--listen", "127.0.0.1:0")
    assert running.process.stderr is not None
    address = next(e["listening"] for line in running.process.stderr if "listening" in (e := json.loads(line)))
    for path in ("/healthz", "/readyz", "/metrics", "/api/status", "/"):
        with urllib.request.urlopen(address + path, timeout=10) as answer:
            assert answer.status == 200
    running.process.send_signal(signal.SIGTERM)
    running.process.communicate(timeout=30)


FLAGS: list[tuple[list[str], str, Any]] = [
    (["--owner", "team-a"], "owner", "team-a"),
    (["--policy", "upsert-only"], "policy", "upsert-only"),
    (["--adopt", "unowned"], "adopt", "unowned"),
    (["--removal-grace-period", "90s"], "grace", 90.0),
    (["--resync", "10m"], "resync", 600.0),
    (["--writers", "3"], "writers", 3),
    (["--panic-threshold", "70%"], "panic", 70),
    (["--restore-hold", "1m"], "rebuild", 60.0),
    (["--hold-release", "1h"], "release", 3600.0),
    (["--connections", "10"], "connections", 10),
    (["--namespace", "storage"], "namespace", "storage"),
]


def test_the_flags_of_run_reach_the_engine() -> None:
    """All of them in one call."""
    given = [word for flags, _, _ in FLAGS for word in flags]
    running = Running("--listen", "127.0.0.1:0", *given)
    running.end()
    assert running.options == {key: value for _, key, value in FLAGS}


def test_the_variables_of_run_reach_the_engine() -> None:
    """The same by environment, as a Deployment gives them."""
    env = {"BRIDGE_" + flags[0][2:].upper().replace("-", "_"): flags[1] for flags, _, _ in FLAGS}
    running = Running(env={**env, "BRIDGE_LISTEN": "127.0.0.1:0"})
    running.end()
    assert running.options == {key: value for _, key, value in FLAGS}


def test_every_flag_of_run_is_tested_here_or_everywhere() -> None:
    """A flag that is added must be added to a test."""
    from bridge.cli import EVERYWHERE

    here = {flags[0] for flags, _, _ in FLAGS} | {"--listen", "--leader-elect", "--shards"}
    assert set(COMMANDS["run"]) - set(EVERYWHERE) <= here


def test_the_effective_settings_are_logged_once_with_secrets_masked(tmp_path: Path) -> None:
    """Neither a token from the environment nor one from a file may be read in the log."""
    (tmp_path / "token").write_text("file-secret-1234\n")
    prelude = BRIDGE.replace(
        "RUN", "import logging; logging.getLogger('x').warning('header file-secret-1234'); self.stopped.wait()"
    )
    running = Running(
        "--listen", "127.0.0.1:0", env={"CONSUL_HTTP_TOKEN_FILE": str(tmp_path / "token")}, prelude=prelude
    )
    _, log = running.end()
    (effective,) = [e for e in log if e["event"] == "effective settings"]
    assert effective["consul.token_file"] == str(tmp_path / "token")
    assert "run.removal_grace_period" not in effective  # it is as by default
    assert {"consul.address", "owner", "rules"} <= effective.keys()
    assert "file-secret-1234" not in json.dumps(log)
    assert any("***" in json.dumps(e) for e in log)
    environment = {"CONSUL_HTTP_TOKEN": "environment-secret", "BRIDGE_LOG_LEVEL": "debug"}
    _, log = Running("--listen", "127.0.0.1:0", env=environment).end()
    assert next(e for e in log if e["event"] == "effective settings")["consul.token"] == "***"
    (everything,) = [e for e in log if e["event"] == "all settings"]
    assert (everything["run.removal_grace_period"], everything["consul.token"]) == ("30s", "***")
    assert "environment-secret" not in json.dumps(log)


def readiness(listen: str) -> dict[str, Any]:
    """The detail of /readyz."""
    with urllib.request.urlopen(f"http://{listen}/readyz", timeout=10) as answer:
        return dict(json.load(answer))


def await_configuration(listen: str, words: str) -> None:
    """Wait until the detail of /readyz has them under `configuration`."""
    deadline = time.monotonic() + 20
    while words not in readiness(listen)["configuration"]:
        assert time.monotonic() < deadline, readiness(listen)
        time.sleep(0.02)


def test_settings_are_read_again_on_sighup_and_when_the_file_changes(tmp_path: Path) -> None:
    """New rules are taken at once, other settings by a bridge that follows; what is wrong is reported, not taken."""
    file = tmp_path / "bridge.yaml"
    file.write_text("rules: [{to: {namespace: one}}]\n")
    listen = f"127.0.0.1:{free_port()}"
    running = Running("--listen", listen, "--config", str(file))
    assert running.process.stdout is not None
    assert running.options["namespace"] == "one"

    file.write_text("rules: [{to: {namespace: two}}]\n")
    running.process.send_signal(signal.SIGHUP)
    assert json.loads(running.process.stdout.readline()) == ["two"]

    file.write_text("rules: [{too: {}}]\n")
    running.process.send_signal(signal.SIGHUP)
    await_configuration(listen, f"{file}:1")
    file.write_text("{rules: [{to: {namespace: three}}], run: {removal_grace_period: 7s, listen: '127.0.0.1:1'}}\n")
    options = json.loads(running.process.stdout.readline())  # by the watch of the file: no signal
    assert (options["namespace"], options["grace"]) == ("three", 7.0)
    assert readiness(listen)["configuration"] == "ok"

    file.write_text("")
    running.process.send_signal(signal.SIGHUP)
    await_configuration(listen, "there are no rules any more")

    file.write_text("{rules: [{to: {namespace: a}}, {to: {namespace: b}}], run: {removal_grace_period: 7s}}\n")
    assert json.loads(running.process.stdout.readline()) == ["a", "b"]
    assert json.loads(running.process.stdout.readline())["namespace"] == "a"  # it could not: a new one follows
    status, log = running.end()
    events = [e["event"] for e in log]
    assert status == 143
    assert events.count("rules taken") == 1
    assert events.count("restarting with the new settings") == 2
    refused = [e["reason"] for e in log if e["event"] == "the new settings cannot be used; the old ones stay"]
    assert "too" in refused[0]
    assert f"{file}:1" in refused[0]
    assert f"{file}: there are no rules any more" in refused[-1]


class Watched(_FileWatch):
    """Looks at what it is given, one after the other, the last of it forever."""

    def __init__(self, *contents: bytes) -> None:
        super().__init__(__file__, b"old", self.on_change)
        self.contents = iter(contents)
        self.last = contents[-1]
        self.looks: list[bytes] = []
        self.taken: list[list[bytes]] = []
        self.called = threading.Event()

    def _content(self) -> bytes:
        self.looks.append(next(self.contents, self.last))
        return self.looks[-1]

    def on_change(self, content: bytes) -> None:
        """It would be read now."""
        self.told(content)
        self.taken.append(list(self.looks))
        self.called.set()


@pytest.mark.parametrize(
    ("looks", "taken"),
    [
        ((b"old", b"half", b"new", b"new", b"new"), (b"old", b"half", b"new", b"new")),
        ((b"new", b"new"), (b"new", b"new")),
        ((b"old", b"", b"", b""), (b"old", b"", b"")),
    ],
    ids=["half of it for an instant", "changed between the reading and the first look", "deleted"],
)
def test_a_file_is_taken_when_it_lies_still(
    monkeypatch: pytest.MonkeyPatch, looks: tuple[bytes, ...], taken: tuple[bytes, ...]
) -> None:
    """What it is for an instant only, a valid part of itself perhaps, never becomes the settings."""
    monkeypatch.setattr("bridge.daemon.WATCH_SECONDS", 0.01)
    watch = Watched(*looks)
    watch.start()
    assert watch.called.wait(20)
    watch.stop()
    assert watch.taken == [list(taken)]


def test_what_a_signal_read_of_a_file_in_the_writing_is_read_again(tmp_path: Path) -> None:
    """The file is what it was, so nothing has changed; but the trouble that the signal met is over."""
    file = tmp_path / "bridge.yaml"
    good = "rules: [{to: {namespace: one}}]\n"
    file.write_text(good)
    listen = f"127.0.0.1:{free_port()}"
    running = Running("--listen", listen, "--config", str(file))
    file.write_text("")
    running.process.send_signal(signal.SIGHUP)
    await_configuration(listen, "there are no rules any more")
    file.write_text(good)
    await_configuration(listen, "ok")
    assert running.end()[0] == 143


def test_a_pipe_is_read_once_and_not_watched(tmp_path: Path) -> None:
    """`--config <(…)` has nothing more to say; that is no file without rules."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("rules: [{to: {namespace: one}}]\n",))
    writer.start()
    running = Running("--listen", "127.0.0.1:0", "--config", str(pipe))
    writer.join()
    time.sleep(3 * WATCH_SECONDS)
    status, log = running.end()
    assert status == 143
    assert [e["event"] for e in log if e["level"] == "error"] == []


def test_settings_that_are_read_again_and_are_the_same_change_nothing(tmp_path: Path) -> None:
    """A SIGHUP too many is no reason to plan anything again."""
    file = tmp_path / "bridge.yaml"
    file.write_text("rules: [{to: {namespace: one}}]\n")
    running = Running("--listen", "127.0.0.1:0", "--config", str(file))
    assert running.process.stderr is not None
    assert running.process.stdout is not None
    running.process.send_signal(signal.SIGHUP)
    said: list[str] = []
    while said[-1:] != ["settings read again: nothing has changed"]:
        said.append(json.loads(running.process.stderr.readline())["event"])
    running.process.send_signal(signal.SIGTERM)
    assert running.process.stdout.read() == ""  # where the bridge would tell of rules, or a new one of itself
    running.process.communicate(timeout=30)
    assert running.process.returncode == 143
    assert said == ["effective settings", "bridge starts", said[-1]]


def test_a_token_that_changes_in_the_file_is_taken(tmp_path: Path) -> None:
    """Though it looks like the old one in everything that may be logged."""
    file = tmp_path / "bridge.yaml"
    settings = "{rules: [{to: {namespace: one}}], consul: {token: SECRET}}\n"
    file.write_text(settings.replace("SECRET", "first-secret"))
    running = Running("--listen", "127.0.0.1:0", "--config", str(file))
    assert running.process.stdout is not None
    file.write_text(settings.replace("SECRET", "second-secret"))
    running.process.send_signal(signal.SIGHUP)
    assert json.loads(running.process.stdout.readline())["namespace"] == "one"  # a new bridge
    _, log = running.end()
    assert [e["changed"] for e in log if e["event"].startswith("restarting")] == ["consul.token"]
    assert "secret" not in json.dumps(log)


def test_a_rule_that_is_never_used_is_reported_once_for_each_set_of_rules(tmp_path: Path) -> None:
    """At the start, and again when other rules are taken."""
    file = tmp_path / "bridge.yaml"
    one = {"name": "one", "to": {"namespace": "a"}}
    file.write_text(json.dumps({"rules": [one, {"name": "two", "services": ["x"], "to": {"namespace": "a"}}]}))
    running = Running("--listen", "127.0.0.1:0", "--config", str(file))
    assert running.process.stdout is not None
    file.write_text(json.dumps({"rules": [one, {"name": "three", "services": ["y"], "to": {"namespace": "a"}}]}))
    assert json.loads(running.process.stdout.readline()) == ["a", "a"]
    _, log = running.end()
    said = [(e["rule"], e["earlier"]) for e in log if e["event"].startswith("rule is never used")]
    assert said == [("two", "one"), ("three", "one")]


def test_a_taken_port_says_what_to_do() -> None:
    """Status 2, before anything is watched."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = process("run", "--listen", f"127.0.0.1:{port}", prelude=WAITS)
    assert done.returncode == 2
    assert f"error: --listen 127.0.0.1:{port}: cannot be had: Address already in use" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("what", "status", "expected"),
    [
        ("from bridge.errors import PermanentError as E; raise E('403 forbidden')", 1, "error: 403 forbidden"),
        ("from bridge.errors import ConfigurationError as E; raise E('bad CA')", 2, "error: bad CA"),
        ("raise RuntimeError('a thread died')", 1, "error: this is a bug in bridge "),
        ("return", 1, ""),
    ],
)
def test_an_end_of_its_own_is_never_a_success(what: str, status: int, expected: str) -> None:
    """Its supervisor must start it again."""
    done = process("run", "--listen", "127.0.0.1:0", prelude=BRIDGE.replace("RUN", what))
    assert done.returncode == status
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_signal_ends_it_at_once() -> None:
    """When something hangs."""
    running = Running("--listen", "127.0.0.1:0", prelude=BRIDGE.replace("RUN", "threading.Event().wait()"))
    assert running.process.stderr is not None
    running.process.send_signal(signal.SIGTERM)
    while "stopping" not in running.process.stderr.readline():
        pass
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(20) == 143
    running.process.communicate()
