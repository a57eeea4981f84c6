"""Where the configuration comes from, what is sent with a request, and what a user reads when it cannot work."""

from __future__ import annotations

import base64
import json
import logging
import ssl
import stat
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from pytest_httpserver import HTTPServer

from bridge.errors import BridgeError, ConfigurationError, PermanentError, TransientError
from bridge.kube import access as access_module
from bridge.kube import transport as transport_module
from bridge.kube.client import UNVERIFIED, KubeClient, KubeConfig
from bridge.kube.transport import Response
from bridge.retry import RetryPolicy
from tests.support.fakes import silent_port
from tests.support.fakes.kube import ADMIN_TOKEN, FakeKube, Fault
from tests.support.options import kube_config

SECRET = "s3cr3t-t0ken-of-the-user"


@pytest.fixture(autouse=True)
def nobodys_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No kubeconfig, cluster or proxy of the machine that runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def fake() -> Iterator[FakeKube]:
    """A server."""
    with FakeKube() as kube:
        yield kube


def kubeconfig(
    folder: Path,
    server: str,
    user: dict[str, Any] | None = None,
    name: str = "config",
    context: str = "here",
    cluster: dict[str, Any] | None = None,
    namespace: str = "",
) -> str:
    """Write a kubeconfig with one context."""
    path = folder / name
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": context, "cluster": {"server": server, **(cluster or {})}}],
                "users": [{"name": context, "user": {"token": ADMIN_TOKEN} if user is None else user}],
                "contexts": [
                    {
                        "name": context,
                        "context": {
                            "cluster": context,
                            "user": context,
                            **({"namespace": namespace} if namespace else {}),
                        },
                    }
                ],
                "current-context": context,
            }
        )
    )
    return str(path)


def version(config: KubeConfig) -> str:
    """Ask the version with a client made for it."""
    client = KubeClient(config)
    try:
        return client.version().git
    finally:
        client.close()


def refusal(config: KubeConfig) -> str:
    """Text of the ConfigurationError that making a client raises."""
    with pytest.raises(ConfigurationError) as caught:
        KubeClient(config)
    return str(caught.value)


# --------------------------------------------------------------------------- where the configuration comes from


def test_the_named_file_beats_the_environment(fake: FakeKube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--kubeconfig, then $KUBECONFIG, then ~/.kube/config."""
    good = kubeconfig(tmp_path, fake.url)
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path, "http://127.0.0.1:1", name="other"))
    assert version(kube_config(kubeconfig=good)) == "v1.37.2-fake"
    monkeypatch.setenv("KUBECONFIG", good)
    assert version(kube_config()) == "v1.37.2-fake"
    monkeypatch.delenv("KUBECONFIG")
    home = tmp_path / "home" / ".kube"
    home.mkdir(parents=True)
    kubeconfig(home, fake.url)
    assert version(kube_config()) == "v1.37.2-fake"


def test_several_files_are_merged_and_the_context_is_chosen(
    fake: FakeKube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KUBECONFIG=a:b, the first current-context counts unless one is named; the namespace comes from the context."""
    first = kubeconfig(tmp_path, "http://127.0.0.1:1", name="a", context="there")
    second = kubeconfig(tmp_path, fake.url, name="b", context="here", namespace="storage")
    monkeypatch.setenv("KUBECONFIG", f"{first}:{tmp_path / 'missing'}:{second}")
    client = KubeClient(kube_config(context="here"))
    assert client.namespace == "storage"
    assert client.version().git == "v1.37.2-fake"
    client.close()
    named = KubeClient(kube_config(context="here", namespace_default="other"))
    assert named.namespace == "other"
    named.close()


def test_an_unknown_context_lists_those_that_there_are(tmp_path: Path) -> None:
    """The user sees what to choose from."""
    path = kubeconfig(tmp_path, "http://127.0.0.1:1", context="production")
    text = refusal(kube_config(kubeconfig=path, context="prod"))
    assert 'no context "prod"; there are: production' in text


def test_no_current_context_lists_those_that_there_are(tmp_path: Path) -> None:
    """A merged file often has none."""
    path = Path(kubeconfig(tmp_path, "http://127.0.0.1:1", context="production"))
    path.write_text(path.read_text().replace('"current-context": "production"', '"current-context": ""'))
    assert "no current-context: choose one with --context (production)" in refusal(kube_config(kubeconfig=str(path)))


def test_nothing_configured_says_where_it_was_looked_for() -> None:
    """No kubeconfig, no pod."""
    text = refusal(kube_config())
    assert "KUBECONFIG" in text
    assert "service account" in text


def test_a_file_that_is_not_there_is_named() -> None:
    """--kubeconfig with a typing error."""
    assert "kubeconfig /no/such/file does not exist" in refusal(kube_config(kubeconfig="/no/such/file"))


@pytest.mark.parametrize(
    "text",
    ["", "just words", "- a\n- b\n", "a: [unclosed", "contexts: 7", "contexts: [7]\ncurrent-context: x\n", "\x00"],
)
def test_a_file_that_is_no_kubeconfig_is_a_configuration_error(tmp_path: Path, text: str) -> None:
    """Never a traceback."""
    path = tmp_path / "config"
    path.write_text(text)
    assert refusal(kube_config(kubeconfig=str(path)))


def test_a_broken_reference_does_not_show_other_entries(tmp_path: Path) -> None:
    """The kubernetes package puts whole entries, tokens included, into its messages."""
    path = Path(kubeconfig(tmp_path, "http://127.0.0.1:1", {"token": SECRET}))
    config = json.loads(path.read_text())
    config["contexts"][0]["context"]["user"] = "nobody"
    path.write_text(json.dumps(config))
    assert 'context "here" names user "nobody"' in refusal(kube_config(kubeconfig=str(path)))
    config["contexts"][0]["context"]["user"] = "here"
    config["contexts"][0]["context"].pop("cluster")
    path.write_text(json.dumps(config))
    assert SECRET not in refusal(kube_config(kubeconfig=str(path)))
    config["contexts"][0]["context"]["cluster"] = "here"
    config["users"][0]["user"] |= {"client-certificate": "/no/such/cert", "client-key": "/no/such/key"}
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    path.write_text(json.dumps(config))
    text = refusal(kube_config(kubeconfig=str(path)))
    assert SECRET not in text
    assert "/no/such/cert" in text


@pytest.mark.parametrize("server", ["127.0.0.1:6443", "ftp://kube", ""])
def test_a_server_that_is_no_http_address_is_named(tmp_path: Path, server: str) -> None:
    """A missing https:// is the usual mistake."""
    assert "no http(s) address" in refusal(kube_config(kubeconfig=kubeconfig(tmp_path, server)))


# --------------------------------------------------------------------------- credentials


def plugin(folder: Path, body: str) -> str:
    """An exec plugin: a Python script that counts its runs."""
    path = folder / "plugin"
    counter = folder / "runs"
    path.write_text(f"#!{sys.executable}\nopen({str(counter)!r}, 'a').write('x')\n{body}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def exec_user(command: str) -> dict[str, Any]:
    """A user of a kubeconfig with a credential plugin."""
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": command,
            "args": [],
            "interactiveMode": "Never",
        }
    }


def credential(**status: str) -> str:
    """What a plugin prints."""
    body = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
    return f"print({json.dumps(body)!r})"


def test_an_exec_plugin_gives_the_token(fake: FakeKube, tmp_path: Path) -> None:
    """Run once, not per request."""
    command = plugin(tmp_path, credential(token=ADMIN_TOKEN))
    client = KubeClient(kube_config(kubeconfig=kubeconfig(tmp_path, fake.url, exec_user(command))))
    for _ in range(3):
        client.version()
    client.close()
    assert (tmp_path / "runs").read_text() == "x"


def test_an_expired_plugin_token_is_renewed(fake: FakeKube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """expirationTimestamp in the past: the plugin runs again, and no request waits for that."""
    monkeypatch.setattr(access_module, "AUTH_SECONDS", 0.0)
    command = plugin(tmp_path, credential(token=ADMIN_TOKEN, expirationTimestamp="2020-01-01T00:00:00Z"))
    client = KubeClient(kube_config(kubeconfig=kubeconfig(tmp_path, fake.url, exec_user(command))))
    runs = tmp_path / "runs"
    assert runs.read_text() == "x"
    client.version()
    deadline = time.monotonic() + 10
    while runs.read_text() == "x" and time.monotonic() < deadline:
        time.sleep(0.01)
    client.close()
    assert runs.read_text() == "xx"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("import sys; print('login first; password=hunter22', file=sys.stderr); sys.exit(1)", "login first"),
        ("print('no json')", "plugin"),
        (credential(), "plugin"),
    ],
)
def test_a_failing_plugin_is_a_configuration_error_with_its_words(
    fake: FakeKube, tmp_path: Path, body: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The kubernetes package only logs this and goes on without credentials."""
    command = plugin(tmp_path, body)
    said = refusal(kube_config(kubeconfig=kubeconfig(tmp_path, fake.url, exec_user(command))))
    assert text in said
    assert "hunter22" not in said
    assert fake.log == []


def test_a_plugin_that_is_not_installed_is_named(tmp_path: Path) -> None:
    """The usual case on a new machine."""
    path = kubeconfig(tmp_path, "http://127.0.0.1:1", exec_user("/no/such/kubelogin"))
    assert "/no/such/kubelogin" in refusal(kube_config(kubeconfig=path))


def test_loading_leaves_logging_alone(tmp_path: Path) -> None:
    """`logging.error` in the package would configure the root logger for the whole process."""
    root = logging.getLogger()
    before = list(root.handlers)
    path = kubeconfig(tmp_path, "http://127.0.0.1:1", exec_user("/no/such/kubelogin"))
    refusal(kube_config(kubeconfig=path))
    assert root.handlers == before


def test_a_rotated_token_file_is_read_again_after_a_401(
    fake: FakeKube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package reads a tokenFile once; a refused request reads it again and is repeated, once."""
    monkeypatch.setattr(access_module, "RELOAD_SECONDS", 0.0)
    token_file = tmp_path / "token"
    token_file.write_text("old-token")
    fake.users = {"old-token": "admin"}
    client = KubeClient(kube_config(kubeconfig=kubeconfig(tmp_path, fake.url, {"tokenFile": str(token_file)})))
    client.request("GET", "/api/v1/services")
    fake.users = {"new-token": "admin"}
    with pytest.raises(PermanentError, match="refuses our credentials"):
        client.request("GET", "/api/v1/services")
    assert len(fake.log) == 2  # the same token again would be pointless
    token_file.write_text("new-token")
    client.request("GET", "/api/v1/services")
    with client.stream("/api/v1/services", query=[("watch", "1"), ("timeoutSeconds", "1")], silence=30) as lines:
        assert list(lines) == []
    client.close()
    assert [e.status for e in fake.log] == [200, 401, 401, 200, 200]


def in_cluster(folder: Path, fake_port: int, monkeypatch: pytest.MonkeyPatch, ca: trustme.CA) -> Path:
    """A pod's service account directory."""
    monkeypatch.setattr(access_module, "SERVICE_ACCOUNT", folder)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(fake_port))
    (folder / "token").write_text("first-token")
    (folder / "namespace").write_text("storage")
    ca.cert_pem.write_to_path(str(folder / "ca.crt"))
    return folder


@pytest.fixture
def ca() -> trustme.CA:
    """A certificate authority."""
    return trustme.CA()


@pytest.fixture
def tls(ca: trustme.CA) -> Iterator[HTTPServer]:
    """A server with TLS that answers like an API server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    with HTTPServer(host="127.0.0.1", ssl_context=context) as server:
        yield server


def test_a_pod_uses_its_service_account_and_follows_the_rotated_token(
    tls: HTTPServer, ca: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CA, token, namespace from the mounted files; a token that was replaced is used after a 401 at the latest."""
    monkeypatch.setattr(access_module, "RELOAD_SECONDS", 0.0)
    folder = in_cluster(tmp_path, tls.port, monkeypatch, ca)
    body = {"major": "1", "minor": "37+", "gitVersion": "v1.37.2"}
    tls.expect_request("/version", headers={"Authorization": "Bearer first-token"}).respond_with_json(body)
    client = KubeClient(kube_config())
    assert client.namespace == "storage"
    assert (client.version().major, client.version().minor) == (1, 37)
    tls.clear()
    tls.expect_request("/version", headers={"Authorization": "Bearer second-token"}).respond_with_json(body)
    tls.expect_request("/version").respond_with_data("Unauthorized", status=401)
    (folder / "token").write_text("second-token")
    assert client.version().git == "v1.37.2"
    client.close()


def test_a_client_certificate_is_presented(ca: trustme.CA, tmp_path: Path) -> None:
    """mTLS with certificate data inside the kubeconfig."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    ca.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    mine = ca.issue_cert("bridge@example.org")
    pem = b"".join(blob.bytes() for blob in mine.cert_chain_pems)

    def data(blob: bytes) -> str:
        return base64.b64encode(blob).decode()

    with HTTPServer(host="127.0.0.1", ssl_context=context) as server:
        server.expect_request("/version").respond_with_json({"major": "1", "minor": "37", "gitVersion": "v1"})
        cluster = {"certificate-authority-data": data(ca.cert_pem.bytes())}
        user = {"client-certificate-data": data(pem), "client-key-data": data(mine.private_key_pem.bytes())}
        url = f"https://127.0.0.1:{server.port}"
        assert version(kube_config(kubeconfig=kubeconfig(tmp_path, url, user, cluster=cluster))) == "v1"
        without = kubeconfig(tmp_path, url, {"token": SECRET}, name="without", cluster=cluster)
        with pytest.raises((PermanentError, TransientError)) as caught:
            version(kube_config(kubeconfig=without))
        assert SECRET not in str(caught.value)


def test_a_plugin_that_gives_certificates_is_followed_when_it_renews_them(
    ca: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """clientCertificateData instead of a token; after a 401 a new certificate is presented on new connections."""
    monkeypatch.setattr(access_module, "RELOAD_SECONDS", 0.0)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    ca.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    def issue() -> None:
        mine = ca.issue_cert("bridge@example.org")
        pem = b"".join(blob.bytes() for blob in mine.cert_chain_pems).decode()
        key = mine.private_key_pem.bytes().decode()
        plugin(tmp_path, credential(clientCertificateData=pem, clientKeyData=key))

    issue()
    with HTTPServer(host="127.0.0.1", ssl_context=context) as server:
        body = {"major": "1", "minor": "37", "gitVersion": "v1"}
        server.expect_request("/version").respond_with_json(body)
        path = kubeconfig(
            tmp_path,
            f"https://127.0.0.1:{server.port}",
            exec_user(str(tmp_path / "plugin")),
            cluster={"certificate-authority": str(tmp_path / "ca.pem")},
        )
        client = KubeClient(kube_config(kubeconfig=path))
        assert client.version().git == "v1"
        issue()
        server.clear()
        server.expect_oneshot_request("/version").respond_with_data("Unauthorized", status=401)
        server.expect_request("/version").respond_with_json(body)
        assert client.version().git == "v1"
        assert client._access.generation == 1  # another pool, with the new certificate
        assert (tmp_path / "runs").read_text() == "xx"
        client.close()


@pytest.mark.parametrize("what", ["another server", "a CA that is gone"])
def test_a_renewed_certificate_of_a_plugin_does_not_change_the_cluster(
    ca: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The kubeconfig has changed meanwhile: all of the old configuration stays in use, and why is reported."""
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    (tmp_path / "other.pem").write_text("-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n")

    def issue() -> None:
        mine = ca.issue_cert("bridge@example.org")
        pem = b"".join(blob.bytes() for blob in mine.cert_chain_pems).decode()
        plugin(tmp_path, credential(clientCertificateData=pem, clientKeyData=mine.private_key_pem.bytes().decode()))

    def configured(server: str, authority: str) -> str:
        cluster = {"certificate-authority": str(tmp_path / authority)}
        return kubeconfig(tmp_path, server, exec_user(str(tmp_path / "plugin")), cluster=cluster)

    issue()
    access = access_module.Access(kube_config(kubeconfig=configured("https://127.0.0.1:1", "ca.pem")))
    told: list[bool] = []
    access.listen(lambda: told.append(True))
    before = access.server, access.configuration().ssl_ca_cert, access.certificate
    configured(
        *(("https://127.0.0.1:2", "ca.pem") if what == "another server" else ("https://127.0.0.1:1", "other.pem"))
    )
    issue()
    assert access.renewed_after_401(access.authorization(), 10)
    deadline = time.monotonic() + 10
    while not access.trouble and not told and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (access.server, access.configuration().ssl_ca_cert, access.certificate) == before
    assert (access.generation, told) == (0, [])
    words = "names another server now, https://127.0.0.1:2" if what == "another server" else "other.pem"
    assert words in access.trouble
    monkeypatch.setattr(access_module, "AUTH_SECONDS", 0.0)
    monkeypatch.setattr(access_module, "AGAIN", RetryPolicy(initial_seconds=0.01, max_seconds=0.01))
    configured("https://127.0.0.1:1", "ca.pem")
    access._try_at = 0.0
    access.authorization()
    assert (access.generation, told, access.trouble) == (1, [True], "")
    assert access.certificate != before[2]
    access.close()


def test_a_plugin_of_another_cluster_does_not_answer_for_this_one(fake: FakeKube, tmp_path: Path) -> None:
    """After a 401 the kubeconfig names another server, and another plugin: its token is never sent to this one."""
    path = kubeconfig(tmp_path, fake.url, {"token": "revoked"})
    access = access_module.Access(kube_config(kubeconfig=path))
    access._loaded_at = -access_module.RELOAD_SECONDS
    kubeconfig(tmp_path, "https://127.0.0.1:2", exec_user(plugin(tmp_path, credential(token="of-another-cluster"))))
    assert not access.renewed_after_401(access.authorization(), 10)
    assert access.authorization(fresh=True) == "Bearer revoked"
    access.close()


@pytest.mark.parametrize("expiry", [{}, {"expirationTimestamp": "2999-01-01T00:00:00Z"}])
def test_a_refused_token_that_the_plugin_gives_again_does_not_keep_it_running(
    fake: FakeKube, tmp_path: Path, expiry: dict[str, str]
) -> None:
    """It has the token in a cache of its own, say: there is a pause before it is asked again."""
    command = plugin(tmp_path, credential(token="revoked", **expiry))
    client = KubeClient(kube_config(kubeconfig=kubeconfig(tmp_path, fake.url, exec_user(command))))
    for _ in range(4):
        with pytest.raises(BridgeError):
            client.version()
    assert (tmp_path / "runs").read_text() == "xx"  # at the start, and after the first refusal
    client.close()


def test_a_token_file_that_is_gone_leaves_the_token_in_use(
    tls: HTTPServer, ca: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The volume is being mounted again, say: the old token goes on, and where the trouble is is reported."""
    monkeypatch.setattr(access_module, "AUTH_SECONDS", 0.0)
    folder = in_cluster(tmp_path, tls.port, monkeypatch, ca)
    body = {"major": "1", "minor": "37", "gitVersion": "v1"}
    tls.expect_request("/version", headers={"Authorization": "Bearer first-token"}).respond_with_json(body)
    client = KubeClient(kube_config())
    (folder / "token").unlink()
    assert client.version().git == "v1"
    assert client.trouble.startswith(f"token file {folder}/token (the pod's service account) cannot be read")
    (folder / "token").write_text("")
    assert client.version().git == "v1"
    assert client.trouble.endswith("is empty")
    (folder / "token").write_text("first-token")
    assert client.version().git == "v1"
    assert client.trouble == ""
    client.close()


def test_an_oidc_token_that_cannot_be_renewed_is_transient(
    fake: FakeKube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The identity provider is away while the bridge runs: try again later, with the reason."""
    monkeypatch.setattr(access_module, "AUTH_SECONDS", 0.0)
    client = KubeClient(kube_config(kubeconfig=kubeconfig(tmp_path, fake.url)))

    def broken(*_: object, **__: object) -> str:
        raise OSError("the provider is away; token=hunter22")

    monkeypatch.setattr(client._access._loaded.configuration, "get_api_key_with_prefix", broken)
    with pytest.raises(TransientError, match="cannot be renewed: the provider is away") as caught:
        client.version()
    assert "hunter22" not in str(caught.value)
    client.close()


def test_a_401_with_a_broken_configuration_stays_a_401(
    fake: FakeKube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading it again fails: the old credentials are kept, the refusal is reported."""
    monkeypatch.setattr(access_module, "RELOAD_SECONDS", 0.0)
    path = Path(kubeconfig(tmp_path, fake.url))
    client = KubeClient(kube_config(kubeconfig=str(path)))
    path.write_text("nonsense")
    fake.users = {}
    with pytest.raises(PermanentError, match="refuses our credentials"):
        client.request("GET", "/api/v1/services")
    client.close()


# --------------------------------------------------------------------------- the way to the server


@pytest.mark.parametrize("content", ["", "no PEM at all"])
def test_a_ca_file_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    """TLS files that cannot be used: where they are, and which kubeconfig names them."""
    (tmp_path / "ca.pem").write_text(content)
    cluster = {"certificate-authority": "ca.pem"}
    path = kubeconfig(tmp_path, "https://127.0.0.1:1", cluster=cluster)
    said = refusal(kube_config(kubeconfig=path))
    assert said.startswith(f"certificate-authority {tmp_path}/ca.pem (kubeconfig {path}): it holds no certificate")


def test_connecting_takes_no_longer_than_it_may(tmp_path: Path) -> None:
    """What never answers is transient after connect_timeout_seconds."""
    with silent_port() as port:
        path = kubeconfig(tmp_path, f"http://127.0.0.1:{port}")
        with pytest.raises(TransientError, match="connecting took too long"):
            version(kube_config(kubeconfig=path, connect_timeout_seconds=0.2))


def test_a_context_without_a_kubeconfig_is_refused() -> None:
    """--context in a pod."""
    assert "there is no kubeconfig" in refusal(kube_config(context="prod"))


def test_a_context_without_a_user_is_anonymous(fake: FakeKube, tmp_path: Path) -> None:
    """Allowed by kubectl: a proxy in front authenticates."""
    path = Path(kubeconfig(tmp_path, fake.url))
    config = json.loads(path.read_text())
    config["contexts"][0]["context"].pop("user")
    path.write_text(json.dumps(config))
    with pytest.raises(PermanentError, match="refuses our credentials"):
        version(kube_config(kubeconfig=str(path)))
    assert fake.log[0].user == ""


def test_an_untrusted_certificate_says_what_to_check(tls: HTTPServer, tmp_path: Path) -> None:
    """Another CA than the one in the kubeconfig."""
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    path = kubeconfig(tmp_path, f"https://127.0.0.1:{tls.port}", cluster={"certificate-authority": str(other)})
    with pytest.raises(PermanentError, match=r"not trusted.*certificate-authority"):
        version(kube_config(kubeconfig=path))


def test_a_certificate_for_another_name_is_reported(ca: trustme.CA, tmp_path: Path) -> None:
    """tls-server-name, or the wrong address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("kube.example.org").configure_cert(context)
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    cluster = {"certificate-authority": str(tmp_path / "ca.pem")}
    with HTTPServer(host="127.0.0.1", ssl_context=context) as server:
        server.expect_request("/version").respond_with_json({"major": "1", "minor": "37", "gitVersion": "v1"})
        url = f"https://127.0.0.1:{server.port}"
        with pytest.raises(PermanentError, match="not trusted"):
            version(kube_config(kubeconfig=kubeconfig(tmp_path, url, cluster=cluster)))
        named = {**cluster, "tls-server-name": "kube.example.org"}
        assert version(kube_config(kubeconfig=kubeconfig(tmp_path, url, name="named", cluster=named))) == "v1"


def test_switched_off_verification_works_and_is_reported_once(tls: HTTPServer, tmp_path: Path) -> None:
    """insecure-skip-tls-verify: a warning at the start, none per request (warnings are errors here)."""
    tls.expect_request("/version").respond_with_json({"major": "1", "minor": "37", "gitVersion": "v1"})
    path = kubeconfig(tmp_path, f"https://127.0.0.1:{tls.port}", cluster={"insecure-skip-tls-verify": True})
    said: list[str] = []
    client = KubeClient(kube_config(kubeconfig=path), said.append)
    for _ in range(2):
        client.version()
    client.clone().close()
    client.close()
    assert said == [UNVERIFIED]


def test_tls_to_a_port_without_tls_is_reported(fake: FakeKube, tmp_path: Path) -> None:
    """https:// to a plain server."""
    path = kubeconfig(tmp_path, fake.url.replace("http://", "https://"))
    with pytest.raises(PermanentError, match="does not speak TLS"):
        version(kube_config(kubeconfig=path))


def test_no_tls_to_a_port_with_tls_is_reported(tmp_path: Path) -> None:
    """http:// to Go's TLS server, which answers 400 in plain text."""
    with HTTPServer(host="127.0.0.1") as server:
        text = "Client sent an HTTP request to an HTTPS server.\n"
        server.expect_request("/version").respond_with_data(text, status=400)
        with pytest.raises(PermanentError, match="speaks TLS"):
            version(kube_config(kubeconfig=kubeconfig(tmp_path, f"http://127.0.0.1:{server.port}")))


@pytest.mark.parametrize("answer", ["<html>welcome</html>", "{}", "[]", '"x"'])
def test_another_server_on_that_port_is_no_api_server(tmp_path: Path, answer: str) -> None:
    """200 from something else."""
    with HTTPServer(host="127.0.0.1") as server:
        server.expect_request("/version").respond_with_data(answer)
        with pytest.raises(PermanentError, match="not as a Kubernetes API server"):
            version(kube_config(kubeconfig=kubeconfig(tmp_path, f"http://127.0.0.1:{server.port}")))


def test_a_port_without_a_listener_is_transient(fake: FakeKube, tmp_path: Path) -> None:
    """The API server may come back."""
    path = kubeconfig(tmp_path, fake.url)
    fake.stop()
    with pytest.raises(TransientError, match="refuses connections"):
        version(kube_config(kubeconfig=path))


def test_a_name_that_does_not_resolve_is_transient(tmp_path: Path) -> None:
    """DNS may come back."""
    with pytest.raises(TransientError, match="cannot be resolved"):
        version(kube_config(kubeconfig=kubeconfig(tmp_path, "http://no-such-host.invalid:1", {})))


def test_every_request_has_a_timeout(fake: FakeKube, tmp_path: Path) -> None:
    """A server that accepts and says nothing."""
    fake.inject(Fault(delay=60.0), times=9)
    client = KubeClient(kube_config(kubeconfig=kubeconfig(tmp_path, fake.url), request_timeout_seconds=0.1))
    with pytest.raises(TransientError, match="did not answer in time"):
        client.request("GET", "/api/v1/services")
    client.close()


def test_a_request_with_little_time_left_takes_no_longer(fake: FakeKube, tmp_path: Path) -> None:
    """Whatever the timeouts are; and one without any time left is not sent at all."""
    fake.inject(Fault(delay=60.0), times=9)
    client = KubeClient(kube_config(kubeconfig=kubeconfig(tmp_path, fake.url)))
    began = time.monotonic()
    with pytest.raises(TransientError, match="did not answer in time"):
        client.request("GET", "/api/v1/services", within=0.1)
    assert time.monotonic() - began < client.config.request_timeout_seconds - 1
    fake.clear_faults()
    with pytest.raises(TransientError, match="did not answer in time"):
        client.request("GET", "/api/v1/services", within=0.0)
    assert fake.log == []
    assert client.request("GET", "/api/v1/services", within=30.0).status == 200
    client.close()


def test_a_repetition_has_what_the_first_try_left(
    fake: FakeKube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time for everything together does not begin again after a 401."""
    monkeypatch.setattr(access_module, "RELOAD_SECONDS", 0.0)
    token_file = tmp_path / "token"
    token_file.write_text("old-token")
    fake.users = {"new-token": "admin"}
    client = KubeClient(kube_config(kubeconfig=kubeconfig(tmp_path, fake.url, {"tokenFile": str(token_file)})))
    ends: list[float] = []
    real = transport_module.Pool.exchange

    def exchange(self: Any, *arguments: Any, **options: Any) -> Any:
        ends.append(arguments[-1].until)
        token_file.write_text("new-token")
        return real(self, *arguments, **options)

    monkeypatch.setattr(transport_module.Pool, "exchange", exchange)
    assert client.request("GET", "/api/v1/services", within=30.0).status == 200
    client.close()
    assert (len(ends), len(set(ends))) == (2, 1)


def test_a_server_behind_a_path_is_asked_there(tmp_path: Path) -> None:
    """Rancher and kubectl proxy put a prefix before the API."""
    with HTTPServer(host="127.0.0.1") as server:
        server.expect_request("/k8s/clusters/c-1/version").respond_with_json(
            {"major": "1", "minor": "37", "gitVersion": "v1"}
        )
        path = kubeconfig(tmp_path, f"http://127.0.0.1:{server.port}/k8s/clusters/c-1/")
        assert version(kube_config(kubeconfig=path)) == "v1"


def test_a_proxy_is_used(fake: FakeKube, tmp_path: Path) -> None:
    """proxy-url of the cluster: a plain proxy gets the whole address."""
    with HTTPServer(host="127.0.0.1") as proxy:
        proxy.expect_request("/version").respond_with_json({"major": "1", "minor": "37", "gitVersion": "by-proxy"})
        cluster = {"proxy-url": f"http://127.0.0.1:{proxy.port}"}
        path = kubeconfig(tmp_path, "http://kube.example.invalid:8080", {}, cluster=cluster)
        assert version(kube_config(kubeconfig=path)) == "by-proxy"
    assert fake.log == []


# --------------------------------------------------------------------------- what is reported


@pytest.mark.parametrize("path", ["/version\r\nX: y", "/version HTTP/1.1", "/version\x00"])
def test_what_would_end_the_line_is_never_sent(fake: FakeKube, tmp_path: Path, path: str) -> None:
    """Whatever a path is made of, a request stays one request."""
    client = KubeClient(kube_config(kubeconfig=fake.kubeconfig(tmp_path)))
    with pytest.raises(BridgeError):
        client.request("GET", path)
    client.close()
    assert fake.log == []


def test_warnings_of_the_server_are_reported_once(fake: FakeKube, tmp_path: Path) -> None:
    """Every Endpoints call carries one: the user reads it once, from whichever clone."""
    said: list[str] = []
    client = KubeClient(kube_config(kubeconfig=kubeconfig(tmp_path, fake.url)), said.append)
    twin = client.clone()
    for _ in range(3):
        client.request("GET", "/api/v1/endpoints")
        twin.request("GET", "/api/v1/endpoints")
    with twin.stream("/api/v1/endpoints", query=[("watch", "1"), ("timeoutSeconds", "1")], silence=30) as lines:
        list(lines)
    twin.close()
    client.close()
    assert said == ["v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"]


def test_several_warnings_in_one_answer_are_all_reported(tmp_path: Path) -> None:
    """And quotes inside them survive."""
    with HTTPServer(host="127.0.0.1") as server:
        headers = {"Warning": '299 - "spec.externalName is ignored when spec.type is not \\"ExternalName\\""'}
        server.expect_request("/a").respond_with_data("{}", headers=headers)
        server.expect_request("/b").respond_with_data("{}", headers=[("Warning", '299 - "one"'), ("Warning", "two")])
        said: list[str] = []
        client = KubeClient(
            kube_config(kubeconfig=kubeconfig(tmp_path, f"http://127.0.0.1:{server.port}")), said.append
        )
        client.request("GET", "/a")
        client.request("GET", "/b")
        client.close()
    assert said == ['spec.externalName is ignored when spec.type is not "ExternalName"', "one", "two"]


def test_the_token_is_in_no_error_and_no_log(fake: FakeKube, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever goes wrong: refused, echoed by a proxy, broken, timed out."""
    caplog.set_level(logging.DEBUG)
    fake.users = {SECRET: "admin"}
    client = KubeClient(
        kube_config(kubeconfig=kubeconfig(tmp_path, fake.url, {"token": SECRET}), request_timeout_seconds=0.2)
    )
    echo = f"you sent Authorization: Bearer {SECRET} and {SECRET}".encode()
    texts = []
    for fault in (
        *(Fault(status=code, body=echo) for code in (400, 401, 403, 404, 409, 422, 429, 500, 503)),
        Fault(reset=True),
        Fault(truncate=True),
        Fault(delay=1.0, status=503, body=echo),  # it comes too late; should we be late as well, it is trouble still
    ):
        fake.inject(fault)
        with pytest.raises((PermanentError, TransientError)) as caught:
            client.request("GET", "/api/v1/services")
        error: BaseException | None = caught.value
        while error is not None:
            texts.append(str(error))
            error = error.__cause__
    client.close()
    assert len(texts) >= 12
    assert not [t for t in [*texts, caplog.text] if SECRET in t]


def test_importing_is_cheap() -> None:
    """`bridge --help` must not pay for the kubernetes package (0.3 s, 30 MiB)."""
    import subprocess

    code = (
        "import sys, bridge.kube.informer, bridge.kube.writer, bridge.kube.client\n"
        "heavy = [m for m in ('kubernetes', 'urllib3', 'yaml', 'requests') if m in sys.modules]\n"
        "sys.exit(' '.join(heavy) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_one_client_serves_many_threads(fake: FakeKube, tmp_path: Path) -> None:
    """Answers do not get mixed up."""
    for number in range(8):
        fake.add_namespace(f"n{number}")
    client = KubeClient(kube_config(kubeconfig=kubeconfig(tmp_path, fake.url)))
    wrong: list[str] = []

    def work(number: int) -> None:
        for _ in range(20):
            answer = client.request("GET", f"/api/v1/namespaces/n{number}")
            if json.loads(answer.body)["metadata"]["name"] != f"n{number}":
                wrong.append(answer.body.decode())

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.close()
    assert wrong == []


def test_a_page_is_decoded_without_its_bytes_and_its_text_held_beside_it(
    fake: FakeKube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory limit has room for an answer and what is made of it: never for bytes, text and value at once."""
    size = 8_000_000
    client = KubeClient(kube_config(kubeconfig=fake.kubeconfig(tmp_path)))

    def answer(*_arguments: object, **_more: object) -> Response:
        return Response(200, {}, b'{"items": [{"metadata": {"uid": "' + b"x" * size + b'"}}]}')

    monkeypatch.setattr(KubeClient, "request", answer)
    tracemalloc.start()
    try:
        assert len(client.page("/big")["items"][0]["metadata"]["uid"]) == size
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        client.close()
    assert peak < 2.5 * size
