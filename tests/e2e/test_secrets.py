"""Tokens, keys and kubeconfigs are nowhere in what the bridge says: in success, and in every failure easy to make.

Each way of running it is asked for everything that it writes (both streams at debug level, pages, metrics, Events, its
command line); none of the secrets that it was given may be in there. What all other tests on real servers make the
bridge say is checked by tests.support.lab.secret_scan.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.lab import ADMIN, Lab
from tests.support.program import Daemon, Result, bridge, environment
from tests.support.raw import RawConsul

pytestmark = pytest.mark.lab

WRONG = "5ec7e700-0000-4000-8000-00000000dead"
"""A token that no one knows; it must not be shown either: it may be the right one of another Consul."""

ODD = "5ec7e7-odd"
COMMANDS = (("sync", "--yes"), ("status",), ("explain", "web"), ("check",))
PAGES = ("/", "/changes", "/service/storage/web", "/api/status", "/metrics", "/healthz", "/readyz")


@pytest.fixture(scope="module")
def guarded() -> Iterator[Lab]:
    """A Consul with ACLs under default deny whose HTTPS port asks for a client's certificate."""
    with Lab(acl=True, mtls=True) as lab:
        with lab.raw_kube() as kube, lab.raw_consul() as consul:
            kube.json("POST", "/api/v1/namespaces", {"metadata": {"name": "storage"}})
            consul.register("web", "vm-1", "10.77.1.1", 80)
            consul.register("web", "vm-2", "127.0.0.1", 80)
        yield lab


@pytest.fixture
def secrets(guarded: Lab) -> list[str]:
    """All that must not be seen, also in the forms in which it travels."""
    key = (guarded.ca_file.parent / "client.key").read_text().splitlines()
    plain = [guarded.consul.token, ADMIN, WRONG, ODD, *(line for line in key if "PRIVATE KEY" not in line)]
    return [*plain, *(base64.b64encode(s.encode()).decode().rstrip("=") for s in plain[:4])]


def settings(lab: Lab, **further: str) -> dict[str, str]:
    """Everything secret by environment; the certificate's key by file."""
    files = lab.ca_file.parent
    return environment(
        lab.consul.https_address, lab.kubeconfig,
        CONSUL_CACERT=str(lab.ca_file), CONSUL_CLIENT_CERT=str(files / "client.pem"),
        CONSUL_CLIENT_KEY=str(files / "client.key"), CONSUL_HTTP_TOKEN=lab.consul.token,
        BRIDGE_LOG_LEVEL="debug", BRIDGE_NAMESPACE="storage", BRIDGE_SERVICE="*", **further,
    )  # fmt: skip


def leaks(text: str, secrets: list[str]) -> list[str]:
    """Lines that have a secret in them."""
    return [line for line in text.splitlines() for secret in secrets if secret in line]


def said(*results: Result) -> str:
    """Everything that commands wrote."""
    return "\n".join(part for r in results for part in (r.stdout, r.stderr))


class _Echo(BaseHTTPRequestHandler):
    """Answers every request with its own headers, as a proxy's debug page does."""

    status = 500

    def do_GET(self) -> None:
        body = "\n".join(f"{name}: {value}" for name, value in self.headers.items()).encode()
        self.send_response(
            self.status, f"no: {self.headers.get('Authorization') or self.headers.get('X-Consul-Token')}"
        )
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PATCH = do_PUT = do_GET  # noqa: N815 - http.server's names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Nothing."""


@contextmanager
def echo(status: int) -> Iterator[str]:
    """A server that sends back what it was sent."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Echo", (_Echo,), {"status": status}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("output", ["table", "json"])
def test_commands_that_work_say_nothing_secret(guarded: Lab, secrets: list[str], output: str) -> None:
    """Each of them, at debug level."""
    results = [bridge(*command, "-o", output, env=settings(guarded)) for command in COMMANDS]
    assert [r.status for r in results] == [0, 0, 0, 0], said(*results)
    assert leaks(said(*results), secrets) == []


def a_wrong_token(lab: Lab, _folder: Path) -> dict[str, str]:
    return settings(lab) | {"CONSUL_HTTP_TOKEN": WRONG}


def a_token_that_no_header_can_have(lab: Lab, _folder: Path) -> dict[str, str]:
    return settings(lab) | {"CONSUL_HTTP_TOKEN": f"{ODD}\n\x7f{ODD}"}


def a_consul_that_is_not_there(lab: Lab, _folder: Path) -> dict[str, str]:
    return settings(lab) | {"CONSUL_HTTP_ADDR": "https://127.0.0.1:1"}


def a_password_in_the_address(lab: Lab, _folder: Path) -> dict[str, str]:
    return settings(lab) | {"CONSUL_HTTP_ADDR": f"https://admin:{ODD}@127.0.0.1:1"}


def no_certificate(lab: Lab, _folder: Path) -> dict[str, str]:
    return {k: v for k, v in settings(lab).items() if not k.startswith("CONSUL_CLIENT")}


def a_key_as_certificate(lab: Lab, _folder: Path) -> dict[str, str]:
    return settings(lab) | {"CONSUL_CLIENT_CERT": str(lab.ca_file.parent / "client.key")}


def a_mistake_on_the_tokens_line(lab: Lab, folder: Path) -> dict[str, str]:
    file = folder / "bridge.yaml"
    file.write_text(f"consul:\n  token: {lab.consul.token}: {{\n")
    return settings(lab) | {"BRIDGE_CONFIG": str(file)}


def a_token_that_is_a_list(lab: Lab, folder: Path) -> dict[str, str]:
    file = folder / "bridge.yaml"
    file.write_text(f"consul:\n  token: [{lab.consul.token}]\n  tokn: {lab.consul.token}\n")
    return settings(lab) | {"BRIDGE_CONFIG": str(file)}


def a_token_file_that_is_none(lab: Lab, folder: Path) -> dict[str, str]:
    file = folder / "token"
    file.write_text(f"{ODD}\n{ODD}\n\n{ODD}")
    return settings(lab) | {"CONSUL_HTTP_TOKEN_FILE": str(file)}


def a_broken_kubeconfig(lab: Lab, folder: Path) -> dict[str, str]:
    file = folder / "kubeconfig"
    file.write_text(lab.kubeconfig.read_text().replace(ADMIN, f"{ADMIN}: [{{"))
    return settings(lab) | {"KUBECONFIG": str(file)}


def a_kubeconfig_with_a_wrong_token(lab: Lab, _folder: Path) -> dict[str, str]:
    return settings(lab) | {"KUBECONFIG": str(lab.write_kubeconfig(f"wrong-{uuid4().hex[:6]}", WRONG))}


@pytest.mark.parametrize(
    "mistake",
    [
        a_wrong_token, a_token_that_no_header_can_have, a_consul_that_is_not_there, a_password_in_the_address,
        no_certificate, a_key_as_certificate, a_mistake_on_the_tokens_line, a_token_that_is_a_list,
        a_token_file_that_is_none, a_broken_kubeconfig, a_kubeconfig_with_a_wrong_token,
    ],
    ids=lambda mistake: mistake.__name__,
)  # fmt: skip
def test_failures_say_nothing_secret(
    guarded: Lab, secrets: list[str], tmp_path: Path, mistake: Callable[[Lab, Path], dict[str, str]]
) -> None:
    """They say what is wrong, and where."""
    env = mistake(guarded, tmp_path) | {"BRIDGE_RETRY_ATTEMPTS": "1"}
    results = [bridge(*command, env=env) for command in COMMANDS]
    assert [r.status for r in results if r.status not in (1, 2)] == [], said(*results)
    assert all(r.stderr.strip() or r.stdout.strip() for r in results)
    assert leaks(said(*results), secrets) == []


@pytest.mark.parametrize("status", [400, 401, 403, 500])
@pytest.mark.parametrize("side", ["consul", "kubernetes"])
def test_a_server_that_echoes_our_headers_is_not_quoted(
    guarded: Lab, secrets: list[str], side: str, status: int
) -> None:
    """In the body of an error and in its reason phrase: what came from us stays out of what we say."""
    with echo(status) as address:
        env = settings(guarded) | {"BRIDGE_RETRY_ATTEMPTS": "1"}
        if side == "consul":
            env["CONSUL_HTTP_ADDR"] = address
        else:
            env["KUBECONFIG"] = str(guarded.write_kubeconfig(f"echo-{uuid4().hex[:6]}", ADMIN, server=address))
        results = [bridge(*command, env=env) for command in COMMANDS]
    assert [r.status for r in results if r.status != 1] == [], said(*results)
    assert leaks(said(*results), secrets) == []


@pytest.mark.parametrize("command", ["", "run", "sync", "check", "status", "explain", "purge"])
def test_help_shows_no_value_of_the_environment(guarded: Lab, secrets: list[str], command: str) -> None:
    """The names of the variables, not what is in them."""
    env = settings(guarded, BRIDGE_TOKEN=guarded.consul.token, BRIDGE_CONSUL_TOKEN=ODD)
    result = bridge(*([command] if command else []), "--help", env=env)
    assert result.status == 0
    assert leaks(said(result), secrets) == []


def test_every_command_that_the_suite_runs_is_looked_at(guarded: Lab) -> None:
    """A user who types a token where a name belongs reads it again; a test would not get away with it."""
    with pytest.raises(AssertionError, match=r"has a secret in it: .*<SECRET>"):
        bridge("explain", guarded.consul.token, env=settings(guarded))


@pytest.mark.slow
def test_a_running_bridge_shows_nothing_secret(
    guarded: Lab, secrets: list[str], tmp_path: Path, eventually: Callable[..., None]
) -> None:
    """Its log, pages, metrics, Events and command line: in peace, with a token that ends, with a Consul that goes."""
    token = tmp_path / "token"
    token.write_text(guarded.consul.token)
    env = {k: v for k, v in settings(guarded).items() if k != "CONSUL_HTTP_TOKEN"}
    daemon = Daemon(guarded, f"run-{uuid4().hex[:6]}", "--token-file", str(token), env=env)
    seen: list[str] = []

    def look() -> None:
        seen.extend(daemon.get(page)[1].decode() for page in PAGES)

    try:
        daemon.start()
        look()
        token.write_text(WRONG)
        with RawConsul(guarded.consul.address, guarded.consul.token) as consul:
            consul.register("web", "vm-3", "10.77.1.3", 80)
        eventually(lambda: daemon.readiness().get("ready"), False, 60)
        look()
        token.write_text(guarded.consul.token)
        eventually(lambda: daemon.readiness().get("ready"), True, 120)
        seen.append(Path(f"/proc/{daemon.pid}/cmdline").read_text().replace("\0", " "))
    finally:
        daemon.stop()
    with guarded.raw_kube() as kube:
        events = kube.json("GET", "/apis/events.k8s.io/v1/events")["items"]
    log = daemon.log.read_text()
    assert "instances skipped" in log
    assert events
    assert leaks("\n".join([*seen, log, str(events)]), secrets) == []
