"""Connections and credentials that change under a client: what it closes, what it repeats, and that watches follow."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from bridge.core.model import Kind
from bridge.errors import (
    BridgeError,
    CancelledError,
    ConfigurationError,
    CredentialsError,
    PermanentError,
    TransientError,
)
from bridge.json_shape import Body
from bridge.kube import access as access_module
from bridge.kube import plugin as plugin_module
from bridge.kube import wire
from bridge.kube.client import KubeClient
from bridge.kube.identity import who_am_i
from bridge.kube.informer import Informer
from bridge.kube.reads import list_pages
from bridge.kube.transport import TooLargeError
from bridge.retry import RetryPolicy
from tests.support.fakes.kube import ADMIN_TOKEN, FakeKube
from tests.support.lab.failover import Failover
from tests.support.options import kube_config

Json = dict[str, Any]
QUICK = RetryPolicy(initial_seconds=0.02, max_seconds=0.2)


def wait_for(check: Callable[[], object], seconds: float = 20.0) -> bool:
    """Whether it comes true in time."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def kubeconfig(folder: Path, server: str, user: Json | None = None, cluster: Json | None = None) -> str:
    """One context."""
    path = folder / "config"
    path.write_text(json.dumps({
        "clusters": [{"name": "c", "cluster": {"server": server, **(cluster or {})}}],
        "users": [{"name": "u", "user": {"token": ADMIN_TOKEN} if user is None else user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }))  # fmt: skip
    return str(path)


@pytest.fixture(autouse=True)
def nobodys_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine has."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


# --------------------------------------------------------------------------- a server of a few lines


Answer = Callable[[socket.socket, bytes, int], bytes | None]
"""A connection, the request's head, the connection's number; to an answer, None when it has been sent already."""


class Scripted:
    """Serves what a function says; `context` for TLS. `peers` are the common names of client certificates."""

    def __init__(self, answer: Answer, context: ssl.SSLContext | None = None) -> None:
        self._answer, self._context = answer, context
        self.heads: list[tuple[int, bytes]] = []
        self.open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._listener, *self.open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        number = 0
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock, number), daemon=True)
            self._threads.append(thread)
            thread.start()
            number += 1

    def _serve(self, sock: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError):
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_side=True)
            self.open.append(sock)
            while True:
                head = b""
                while b"\r\n\r\n" not in head:
                    piece = sock.recv(65536)
                    if not piece:
                        return
                    head += piece
                self.heads.append((number, head))
                answer = self._answer(sock, head, number)
                if answer is not None:
                    sock.sendall(answer)


def said(status: int, body: bytes = b"{}", *headers: str) -> bytes:
    """An answer with its length."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


VERSION = said(200, b'{"major": "1", "minor": "37", "gitVersion": "v1"}')


# --------------------------------------------------------------------------- certificates


class Certificates:
    """Files of a client certificate that can be replaced, and a server that names whose it sees."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(str(folder / "ca.crt"))
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert("127.0.0.1").configure_cert(self.context)
        self.authority.configure_trust(self.context)
        self.context.verify_mode = ssl.CERT_REQUIRED

    def give(self, name: str) -> None:
        """Another certificate in place of the old, key last."""
        made = self.authority.issue_cert(f"{name}@example.org")
        (self.folder / "mine.crt").write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        (self.folder / "mine.key").write_bytes(made.private_key_pem.bytes())

    def client(self, port: int, **options: Any) -> KubeClient:
        """A client that reads them by relative paths."""
        path = kubeconfig(
            self.folder, f"https://127.0.0.1:{port}",
            {"client-certificate": "mine.crt", "client-key": "mine.key"}, {"certificate-authority": "ca.crt"},
        )  # fmt: skip
        return KubeClient(kube_config(kubeconfig=path, **options))


def whose(sock: socket.socket) -> str:
    """The client certificate that a connection was opened with."""
    names: Any = sock.getpeercert().get("subjectAltName")  # type: ignore[attr-defined]
    return str(names[0][1]).partition("@")[0]


def test_a_replaced_client_certificate_is_used_at_once_and_watches_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kept connection is closed, the open watch ends, and both go on with the new certificate."""
    monkeypatch.setattr(access_module, "AUTH_SECONDS", 0.0)
    monkeypatch.setattr(access_module, "CHECK_SECONDS", 0.1)
    files = Certificates(tmp_path)
    files.give("old")
    seen: list[tuple[str, str]] = []

    def answer(sock: socket.socket, head: bytes, _number: int) -> bytes | None:
        path = head.split()[1].decode()
        seen.append((whose(sock), path))
        if path == "/watch":
            sock.sendall(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n")
            return None
        return VERSION

    with Scripted(answer, files.context) as server:
        client = files.client(server.port)
        ended: list[str] = []
        opened = threading.Event()

        def watch() -> None:
            with client.stream("/watch", silence=60) as lines:
                for line in lines:
                    ended.append(line.decode())
                    opened.set()
            ended.append("end")

        thread = threading.Thread(target=watch)
        thread.start()
        assert opened.wait(20)
        client.version()
        before = len(client._sockets)
        files.give("new")
        thread.join(20)
        assert ended == ["{}", "end"]
        client.version()
        assert len(client._sockets) < before + 1
        client.close()
    assert [name for name, path in seen if path == "/watch"] == ["old"]
    assert [name for name, path in seen if path == "/version"][-1] == "new"


def test_half_a_pair_leaves_the_old_certificate_in_use_and_reports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Certificate and key are two files: between the two writes they do not belong together."""
    monkeypatch.setattr(access_module, "AUTH_SECONDS", 0.0)
    files = Certificates(tmp_path)
    files.give("old")

    def answer(sock: socket.socket, _head: bytes, _number: int) -> bytes:
        return said(200, json.dumps({"gitVersion": whose(sock), "major": "1", "minor": "1"}).encode())

    with Scripted(answer, files.context) as server:
        client = files.client(server.port)
        assert client.version().git == "old"
        key = (tmp_path / "mine.key").read_bytes()
        files.give("new")
        new = (tmp_path / "mine.key").read_bytes()
        (tmp_path / "mine.key").write_bytes(key)
        assert client.version().git == "old"
        assert client.trouble.startswith(f"client-certificate {tmp_path}/mine.crt (kubeconfig {tmp_path}/config)")
        assert "the old one stays in use" in client.trouble
        (tmp_path / "mine.key").write_bytes(new)
        assert client.version().git == "new"
        assert client.trouble == ""
        client.close()


def test_a_401_on_a_kept_connection_is_repeated_once_on_a_new_one(tmp_path: Path) -> None:
    """The server counts a certificate as over; whatever the files say, a new connection is worth one try."""
    files = Certificates(tmp_path)
    files.give("old")

    def answer(_sock: socket.socket, head: bytes, number: int) -> bytes:
        return said(401) if number == 0 and b"/second" in head else VERSION

    with Scripted(answer, files.context) as server:
        client = files.client(server.port)
        client._access._loaded_at = -1000.0
        client.version()
        assert client.request("GET", "/second").status == 200
        assert [(n, h.split()[1]) for n, h in server.heads] == [(0, b"/version"), (0, b"/second"), (1, b"/second")]
        client.close()


def test_a_replaced_authority_is_trusted_by_new_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster's CA is rotated: the bundle changes in place, then the server's certificate."""
    monkeypatch.setattr(access_module, "AUTH_SECONDS", 0.0)
    old, new = trustme.CA(), trustme.CA()
    bundle = tmp_path / "ca.crt"
    old.cert_pem.write_to_path(str(bundle))
    contexts = []
    for authority in (old, new):
        contexts.append(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        authority.issue_cert("127.0.0.1").configure_cert(contexts[-1])
    with Scripted(lambda *_: VERSION, contexts[0]) as server:
        path = kubeconfig(tmp_path, f"https://127.0.0.1:{server.port}", cluster={"certificate-authority": "ca.crt"})
        client = KubeClient(kube_config(kubeconfig=path))
        client.version()
        server._context = contexts[1]
        bundle.write_bytes(old.cert_pem.bytes() + new.cert_pem.bytes())
        client.version()
        assert [number for number, _ in server.heads] == [0, 1]
        client.close()


# --------------------------------------------------------------------------- impersonation


def test_every_request_and_watch_impersonates(fake: FakeKube, tmp_path: Path) -> None:
    """Who may impersonate writes with the rights of the other user, never with its own."""
    user = {"token": ADMIN_TOKEN, "as": "jo", "as-groups": ["one", "two"], "as-uid": "7",
            "as-user-extra": {"why": ["test"]}}  # fmt: skip
    client = KubeClient(kube_config(kubeconfig=kubeconfig(tmp_path, fake.url, user)))
    client.request("GET", "/api/v1/services")
    with client.stream("/api/v1/services", query=[("watch", "1"), ("timeoutSeconds", "1")], silence=30) as lines:
        list(lines)
    found = who_am_i(client)
    client.close()
    assert len(fake.log) == 3
    for entry in fake.log:
        assert {key: value for key, value in entry.headers.items() if key.startswith("impersonate")} == {
            "impersonate-user": "jo",
            "impersonate-uid": "7",
            "impersonate-group": "one,two",
            "impersonate-extra-why": "test",
        }
    assert found is not None
    assert (found.name, found.groups) == ("jo", ("one", "two"))


# --------------------------------------------------------------------------- a plugin that hangs


def plugin(folder: Path, body: str) -> Json:
    """A user with a credential plugin of these lines."""
    path = folder / "login"
    path.write_text(f"#!{sys.executable}\nimport json, os, sys, time\n{body}\n")
    path.chmod(0o755)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "./login", "interactiveMode": "Never"}}


GIVE = (
    "print(json.dumps({'apiVersion': 'client.authentication.k8s.io/v1', 'kind': 'ExecCredential', 'status': "
    "{'token': TOKEN, 'expirationTimestamp': UNTIL}}))"
)


def test_a_plugin_that_hangs_delays_no_request_and_is_named(
    fake: FakeKube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old token goes on; after the limit the plugin and its children are ended, and it is named."""
    monkeypatch.setattr(access_module, "AUTH_SECONDS", 0.0)
    monkeypatch.setattr(plugin_module, "PAUSE_SECONDS", 0.0)
    body = f"""
marker = os.path.join({str(tmp_path)!r}, 'ran')
first = not os.path.exists(marker)
open(marker, 'a').write(f'{{os.getpid()}} ')
if not first:
    os.system('sleep 600')
TOKEN, UNTIL = {ADMIN_TOKEN!r}, '2020-01-01T00:00:00Z'
{GIVE}"""
    monkeypatch.setattr(plugin_module, "LIMIT_SECONDS", 1.0)
    path = kubeconfig(tmp_path, fake.url, plugin(tmp_path, body))
    client = KubeClient(kube_config(kubeconfig=path))
    slowest = 0.0
    deadline = time.monotonic() + 30
    while not client.trouble and time.monotonic() < deadline:
        began = time.monotonic()
        client.request("GET", "/api/v1/services")
        slowest = max(slowest, time.monotonic() - began)
    assert client.trouble.startswith(
        f"the credential plugin {tmp_path}/login (kubeconfig {path}) did not answer within 1 s and was ended"
    )
    assert slowest < 1.0
    fake.users = {}
    with pytest.raises(CredentialsError, match=r"they come from kubeconfig .*the credential plugin .* was ended"):
        client.request("GET", "/api/v1/services")
    client.close()


def test_a_plugin_that_hangs_ends_with_the_client(
    fake: FakeKube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not outlive a process that has given it up."""
    monkeypatch.setattr(access_module, "AUTH_SECONDS", 0.0)
    body = f"""
marker = os.path.join({str(tmp_path)!r}, 'ran')
first = not os.path.exists(marker)
open(marker, 'a').write(f'{{os.getpid()}} ')
if not first:
    time.sleep(600)
TOKEN, UNTIL = {ADMIN_TOKEN!r}, '2020-01-01T00:00:00Z'
{GIVE}"""
    client = KubeClient(kube_config(kubeconfig=kubeconfig(tmp_path, fake.url, plugin(tmp_path, body))))
    client.request("GET", "/api/v1/services")
    assert wait_for(lambda: len((tmp_path / "ran").read_text().split()) == 2)
    second = Path("/proc") / (tmp_path / "ran").read_text().split()[1]
    assert second.exists()
    client.close()
    assert wait_for(lambda: not second.exists(), 5)


def test_a_plugin_that_hangs_at_the_start_is_a_configuration_error(
    fake: FakeKube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to go on with."""
    monkeypatch.setattr(plugin_module, "LIMIT_SECONDS", 0.5)
    path = kubeconfig(tmp_path, fake.url, plugin(tmp_path, "time.sleep(600)"))
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match=r"login .* did not answer within 0.5 s"):
        KubeClient(kube_config(kubeconfig=path))
    assert time.monotonic() - began < 10
    assert fake.log == []


def test_a_refused_token_runs_the_plugin_again_and_the_request_is_repeated(fake: FakeKube, tmp_path: Path) -> None:
    """A token without an expiry that was revoked."""
    fake.users = {"one": "admin"}
    body = f"""
marker = os.path.join({str(tmp_path)!r}, 'ran')
TOKEN, UNTIL = ('two' if os.path.exists(marker) else 'one'), None
open(marker, 'a').write('x')
{GIVE}"""
    client = KubeClient(kube_config(kubeconfig=kubeconfig(tmp_path, fake.url, plugin(tmp_path, body))))
    client.request("GET", "/api/v1/services")
    fake.users = {"two": "admin"}
    assert client.request("GET", "/api/v1/services").status == 200
    assert [entry.status for entry in fake.log] == [200, 401, 200]
    client.close()


def test_the_cluster_is_passed_to_a_plugin_that_wants_it(fake: FakeKube, tmp_path: Path) -> None:
    """provideClusterInfo: some plugins get a token per cluster."""
    body = f"""
spec = json.loads(os.environ['KUBERNETES_EXEC_INFO'])['spec']
TOKEN, UNTIL = ({ADMIN_TOKEN!r} if spec['cluster']['config'] == {{'audience': 'kube'}} else 'none'), None
assert spec['interactive'] is False and os.environ['HOW'] == 'so'
{GIVE}"""
    user = plugin(tmp_path, body)
    user["exec"] |= {"provideClusterInfo": True, "env": [{"name": "HOW", "value": "so"}]}
    extension = {"name": "client.authentication.k8s.io/exec", "extension": {"audience": "kube"}}
    client = KubeClient(kube_config(kubeconfig=kubeconfig(tmp_path, fake.url, user, {"extensions": [extension]})))
    assert client.request("GET", "/api/v1/services").status == 200
    client.close()


# --------------------------------------------------------------------------- proxies


def test_an_error_by_way_of_a_proxy_names_it_and_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No server listens there, it refuses, it wants a password, it answers itself."""
    answers = {"refused": said(403, b"no"), "asks": said(407, b""), "broken": said(502, b"")}
    which = "refused"
    with Scripted(lambda *_: answers[which]) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:hunter22@127.0.0.1:{proxy.port}")
        path = kubeconfig(tmp_path, "https://kube.example.org:6443")
        texts = {}
        kinds = {}
        for which in answers:
            client = KubeClient(kube_config(kubeconfig=path))
            with pytest.raises(BridgeError) as caught:
                client.version()
            texts[which], kinds[which] = str(caught.value), type(caught.value)
            client.close()
        assert b"Proxy-Authorization: Basic" in proxy.heads[0][1]
        assert proxy.heads[0][1].startswith(b"CONNECT kube.example.org:6443 ")
    named = f"the proxy http://127.0.0.1:{proxy.port} (HTTPS_PROXY)"
    assert all(named in text and "hunter22" not in text for text in texts.values())
    assert kinds == {"refused": PermanentError, "asks": CredentialsError, "broken": TransientError}
    assert "403" in texts["refused"]
    client = KubeClient(kube_config(kubeconfig=path))  # and now no server listens there
    with pytest.raises(TransientError, match="refuses connections") as caught:
        client.version()
    assert named in str(caught.value)
    assert "no API server is listening" not in str(caught.value)
    client.close()


def test_loopback_is_not_proxied_but_by_proxy_url(
    fake: FakeKube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment says how to go out; a kubeconfig that names a proxy means it, NO_PROXY or not."""
    with Scripted(lambda *_: VERSION) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        direct = KubeClient(kube_config(kubeconfig=kubeconfig(tmp_path, fake.url)))
        assert direct.version().git == "v1.37.2-fake"
        direct.close()
        monkeypatch.setenv("NO_PROXY", "*")
        cluster = {"proxy-url": f"http://127.0.0.1:{proxy.port}"}
        proxied = KubeClient(kube_config(kubeconfig=kubeconfig(tmp_path, fake.url, cluster=cluster)))
        assert proxied.version().git == "v1"
        assert proxied.access.proxy is not None
        assert proxied.access.proxy.source == f"proxy-url of kubeconfig {tmp_path}/config"
        proxied.close()
        assert proxy.heads[0][1].startswith(f"GET {fake.url}/version ".encode())


def test_a_tunnel_through_a_proxy_carries_requests_and_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CONNECT, then TLS with the API server itself, kept alive."""
    files = Certificates(tmp_path)
    files.give("me")

    def answer(sock: socket.socket, head: bytes, _number: int) -> bytes | None:
        return said(200, b"{}\n") if b"/watch" in head else VERSION

    with Scripted(answer, files.context) as server, Failover(f"127.0.0.1:{server.port}") as way:

        def connect(sock: socket.socket, head: bytes, _number: int) -> bytes | None:
            assert head.startswith(b"CONNECT 127.0.0.1:")
            sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            host, port = way.address.split(":")
            with socket.create_connection((host, int(port))) as other:
                back = threading.Thread(target=_copy, args=(other, sock), daemon=True)
                back.start()
                _copy(sock, other)
                back.join(10)
            raise OSError("over")

        with Scripted(connect) as proxy:
            path = kubeconfig(
                tmp_path, f"https://127.0.0.1:{server.port}",
                {"client-certificate": "mine.crt", "client-key": "mine.key"},
                {"certificate-authority": "ca.crt", "proxy-url": f"http://127.0.0.1:{proxy.port}"},
            )  # fmt: skip
            client = KubeClient(kube_config(kubeconfig=path))
            for _ in range(3):
                assert client.version().git == "v1"
            with client.stream("/watch", silence=20) as lines:
                assert list(lines) == [b"{}"]
            client.close()
            assert len(proxy.heads) == 2


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


# --------------------------------------------------------------------------- a virtual address that fails over


def test_one_timeout_closes_all_idle_connections_and_watches_begin_anew(
    fake: FakeKube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten kept connections lead nowhere: one of them costs its timeout, and none of the other nine is tried."""
    with Failover(f"127.0.0.1:{fake.port}") as address:
        config = kube_config(
            kubeconfig=kubeconfig(tmp_path, f"http://{address.address}"), request_timeout_seconds=1.5, connections=16
        )
        client = KubeClient(config)
        cache = Informer(client, None, "default", lambda _: None, QUICK)
        cache.start()
        assert cache.wait_synced(20)
        started = threading.Barrier(10)

        def ask() -> None:
            started.wait(10)
            client.request("GET", "/api/v1/services")

        threads = [threading.Thread(target=ask) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        watches = cache.status()["watches"]
        assert wait_for(lambda: cache.status()["watches"] >= 3)
        address.fail_over()
        with pytest.raises(TransientError, match="did not answer in time"):
            client.request("GET", "/api/v1/services")
        began = time.monotonic()
        client.request("GET", "/api/v1/services")
        assert time.monotonic() - began < 1.0
        assert wait_for(lambda: cache.status()["watches"] >= watches + 3, 5)
        fake.put("services", {"metadata": {"name": "new", "namespace": "default"}, "spec": {"ports": [{"port": 80}]}})
        assert wait_for(lambda: cache.store.counts()["services"] == 1 if "services" in cache.store.counts() else True)
        assert cache.close()
        client.close()


def test_watches_notice_a_dead_way_without_any_other_request(
    fake: FakeKube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written and no replica is elected: the small request of every few seconds finds out."""
    monkeypatch.setattr(access_module, "CHECK_SECONDS", 0.2)
    monkeypatch.setattr("bridge.kube.client.PROBE_SECONDS", 1.2)
    with Failover(f"127.0.0.1:{fake.port}") as address:
        client = KubeClient(kube_config(kubeconfig=kubeconfig(tmp_path, f"http://{address.address}")))
        cache = Informer(client, None, "default", lambda _: None, QUICK)
        cache.start()
        assert cache.wait_synced(20)
        assert wait_for(lambda: any(entry.path == "/version" for entry in list(fake.log)))
        for _ in range(3):  # again before it has settled, too
            enough = cache.status()["watches"] + 3
            address.fail_over()
            assert wait_for(lambda least=enough: cache.status()["watches"] >= least, 15)  # type: ignore[misc]
        time.sleep(1)
        status = cache.status()
        assert status["watches"] <= enough + 1  # and no more than that
        assert status["lists"] == 3  # they go on from where they were
        cache.close()
        client.close()


@pytest.mark.parametrize("how", ["Connection: close", "an idle limit", "a reset"])
def test_only_a_connection_that_breaks_takes_silent_watches_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A proxy may close what is answered or idle: that is no sign that the way of the watches is dead."""
    monkeypatch.setattr(access_module, "CHECK_SECONDS", 0.2)

    def answer(sock: socket.socket, head: bytes, _number: int) -> bytes | None:
        if b" /watch" in head:
            return b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n"
        if how == "Connection: close":
            return said(200, b"{}", "Connection: close")
        sock.sendall(said(200))
        if how == "a reset":
            time.sleep(0.05)  # the answer is read first
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        else:
            sock.shutdown(socket.SHUT_WR)
        return None

    with Scripted(answer) as server:
        client = KubeClient(kube_config(kubeconfig=kubeconfig(tmp_path, f"http://127.0.0.1:{server.port}")))
        ended = threading.Event()

        def watch() -> None:
            with contextlib.suppress(CancelledError), client.stream("/watch", silence=60) as lines:
                list(lines)
            ended.set()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        if how == "a reset":
            assert ended.wait(20)
        else:
            assert wait_for(lambda: sum(b"/version" in head for _, head in list(server.heads)) >= 4)
            assert not ended.is_set()
        client.close()
        thread.join(10)


def test_a_slow_answer_to_one_request_leaves_watches_alone_that_bring_something(fake: FakeKube, tmp_path: Path) -> None:
    """A watch that delivered something since the request began cannot be dead."""
    from tests.support.fakes.kube import Fault

    client = KubeClient(kube_config(kubeconfig=kubeconfig(tmp_path, fake.url), request_timeout_seconds=1.5))
    client.request("GET", "/api/v1/services")
    seen: list[bytes] = []
    stop = threading.Event()

    def watch() -> None:
        query = [("watch", "1"), ("timeoutSeconds", "30")]
        with (
            contextlib.suppress(CancelledError),
            client.stream("/api/v1/services", query=query, silence=60) as lines,
        ):
            seen.extend(lines)
        stop.set()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    assert wait_for(lambda: fake.count("watch") == 1)

    def busy() -> None:
        for number in range(200):
            if done.wait(0.05):
                return
            body = {"metadata": {"name": f"s{number}", "namespace": "default"}, "spec": {"ports": [{"port": 80}]}}
            fake.put("services", body)

    done = threading.Event()
    writer = threading.Thread(target=busy, daemon=True)
    writer.start()
    fake.inject(Fault(delay=60.0), path="/api/v1/endpoints")
    with pytest.raises(TransientError, match="in time"):
        client.request("GET", "/api/v1/endpoints")
    client.request("GET", "/api/v1/services")
    time.sleep(0.3)
    assert not stop.is_set()
    done.set()
    writer.join(5)
    client.close()
    thread.join(5)


# --------------------------------------------------------------------------- time and size


def trickle(sock: socket.socket, text: bytes, pause: float = 0.05) -> None:
    """Byte by byte."""
    for byte in text:
        sock.sendall(bytes([byte]))
        time.sleep(pause)


@pytest.mark.parametrize("where", ["status", "headers", "body", "chunks"])
def test_a_trickling_answer_has_no_more_time_than_any_other(tmp_path: Path, where: str) -> None:
    """Each byte comes in time, the whole does not."""
    slow = b"x" * 400

    def answer(sock: socket.socket, _head: bytes, _number: int) -> bytes | None:
        if where == "status":
            trickle(sock, b"HTTP/1.1 200 " + slow)
        elif where == "headers":
            trickle(sock, b"HTTP/1.1 200 OK\r\nX-Slow: " + slow)
        elif where == "body":
            trickle(sock, b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n" + slow)
        else:
            sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            trickle(sock, b"1\r\nx\r\n" * 80)
        return None

    with Scripted(answer) as server:
        path = kubeconfig(tmp_path, f"http://127.0.0.1:{server.port}")
        client = KubeClient(kube_config(kubeconfig=path, request_timeout_seconds=0.5))
        began = time.monotonic()
        with pytest.raises(TransientError, match="in time"):
            client.request("GET", "/api/v1/services")
        assert time.monotonic() - began < 5
        client.close()


@pytest.mark.parametrize("where", ["headers", "event"])
def test_a_watch_that_trickles_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Its headers have the time of a request; an event that has begun has its own."""
    monkeypatch.setattr("bridge.kube.client.EVENT_SECONDS", 0.5)
    slow = b"x" * 400

    def answer(sock: socket.socket, _head: bytes, _number: int) -> bytes | None:
        if where == "headers":
            trickle(sock, b"HTTP/1.1 200 OK\r\nX-Slow: " + slow)
        else:
            sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(100):
                sock.sendall(b"1\r\nx\r\n")
                time.sleep(0.05)
        return None

    with Scripted(answer) as server:
        path = kubeconfig(tmp_path, f"http://127.0.0.1:{server.port}")
        client = KubeClient(kube_config(kubeconfig=path, request_timeout_seconds=0.5))
        began = time.monotonic()
        with (
            pytest.raises(TransientError, match=r"in time|did not come whole within"),
            client.stream("/watch", silence=60) as lines,
        ):
            list(lines)
        assert time.monotonic() - began < 5
        client.close()


@pytest.mark.parametrize("chunked", [False, True])
def test_an_answer_larger_than_allowed_is_refused_and_names_the_setting(tmp_path: Path, chunked: bool) -> None:
    """Before it is read where its length is given, and while it comes where it is not."""
    large = b"x" * 300_000

    def answer(sock: socket.socket, _head: bytes, _number: int) -> bytes | None:
        if not chunked:
            return said(200, large)
        sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        sock.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(large), large))
        return None

    with Scripted(answer) as server:
        path = kubeconfig(tmp_path, f"http://127.0.0.1:{server.port}")
        small = KubeClient(kube_config(kubeconfig=path, max_answer_bytes=200_000))
        with pytest.raises(TooLargeError, match=r"list services.*more than.*kubernetes\.max_answer"):
            small.request("GET", "/api/v1/services")
        small.close()
        enough = KubeClient(kube_config(kubeconfig=path, max_answer_bytes=300_000))
        assert len(enough.request("GET", "/api/v1/services").body) == 300_000
        enough.close()


def test_a_page_that_is_too_large_is_read_in_smaller_ones(fake: FakeKube, tmp_path: Path) -> None:
    """Five hundred objects are small, most of the time."""
    for number in range(30):
        fake.put("services", {
            "metadata": {"name": f"s{number:02}", "namespace": "default", "annotations": {"a": "x" * 4000}},
            "spec": {"ports": [{"port": 80}]},
        })  # fmt: skip
    config = kube_config(kubeconfig=kubeconfig(tmp_path, fake.url), max_answer_bytes=60_000)
    client = KubeClient(config)
    pages = [[item["metadata"]["name"] for item in items] for items, _ in list_pages(client, Kind.SERVICE, None, "")]
    assert [name for page in pages for name in page] == [f"s{number:02}" for number in range(30)]
    assert [len(page) for page in pages] == [4] * 7 + [2]
    client.close()
    tiny = KubeClient(kube_config(kubeconfig=config.kubeconfig, max_answer_bytes=1000))
    with pytest.raises(TooLargeError, match=r"raise kubernetes\.max_answer"):
        list(list_pages(tiny, Kind.SERVICE, None, ""))
    tiny.close()


def test_a_page_is_decoded_without_a_second_copy_of_its_text(fake: FakeKube, tmp_path: Path) -> None:
    """It is decoded from the bytes that came: 8 MiB are held once, not twice."""
    import tracemalloc

    fake.put("services", {
        "metadata": {"name": "large", "namespace": "default", "annotations": {"a": "x" * (8 << 20)}},
        "spec": {"ports": [{"port": 80}]},
    })  # fmt: skip
    client = KubeClient(kube_config(kubeconfig=kubeconfig(tmp_path, fake.url), max_answer_bytes=64 << 20))
    client.version()
    held: list[int] = []

    def read(body: Body) -> Any:
        held.append(tracemalloc.get_traced_memory()[0])
        return wire.page(body)

    tracemalloc.start()
    try:
        client.page("/api/v1/services", read=read)
    finally:
        tracemalloc.stop()
        client.close()
    assert len(held) == 1
    assert held[0] < 14 << 20
