"""The way to a real Consul: failover, logins without a Secret, what is in front of it, certificates that change."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest
import trustme
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from bridge.consul.client import ConsulClient
from bridge.consul.credentials import Login
from bridge.errors import PermanentError
from tests.support.lab import Lab
from tests.support.lab.failover import Failover
from tests.support.lab.secret_scan import secret
from tests.support.options import consul_config
from tests.support.program import Daemon, bridge, environment, put
from tests.support.raw import RawConsul, RawKube, ready_addresses

pytestmark = pytest.mark.lab

Eventually = Callable[..., None]
POLICY = 'service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }'


@contextmanager
def running(lab: Lab, name: str, namespace: str, prefix: str, **env: str) -> Iterator[Daemon]:
    """`bridge run` that mirrors what begins with `prefix`."""
    variables = environment(env.pop("CONSUL_HTTP_ADDR", lab.consul.address), lab.kubeconfig, **env)
    daemon = Daemon(lab, name, "--namespace", namespace, "--service", f"{prefix}*", env=variables)
    try:
        yield daemon
    finally:
        if daemon.running:
            daemon.stop()


# --------------------------------------------------------------------------- a balancer that fails over


def test_behind_a_balancer_that_failed_over_changes_arrive_within_20_seconds(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Eventually
) -> None:
    """All settings as they are by default: queries wait for 55 s, and their connections lead nowhere."""
    consul.register(f"{prefix}web", f"{prefix}vm", "10.77.2.1", 80)
    address = urlsplit(lab.consul.address).netloc
    with (
        Failover(address) as relay,
        running(lab, "failover", namespace, prefix, CONSUL_HTTP_ADDR=f"http://{relay.address}") as daemon,
    ):
        daemon.start()
        eventually(lambda: ready_addresses(kube.endpoints(namespace, f"{prefix}web")), [("10.77.2.1", 80)], 20)
        assert relay.fail_over() > 3
        began = time.monotonic()
        consul.register(f"{prefix}web", f"{prefix}vm", "10.77.2.2", 80)
        eventually(lambda: ready_addresses(kube.endpoints(namespace, f"{prefix}web")), [("10.77.2.2", 80)], 20)
        assert time.monotonic() - began < 20
        eventually(lambda: daemon.readiness()["consul"], "ok", 10)


# --------------------------------------------------------------------------- what only a user's annotation causes


def test_a_name_that_means_another_path_is_its_users_affair(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Eventually
) -> None:
    """An Event on the user's Service; the metric of the operator's alert stays at 0, and the log has no warning."""
    consul.register(f"{prefix}web", f"{prefix}vm", "10.77.6.1", 80)
    metadata = {
        "name": "mine", "labels": {"consul-bridge/mirror": "true"}, "annotations": {"consul-bridge/service": ".."},
    }  # fmt: skip
    service = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": 80}]}}
    kube.json("POST", f"/api/v1/namespaces/{namespace}/services", service)
    with running(lab, "names", namespace, prefix) as daemon:
        daemon.start()

        def unread(cause: str) -> bool:
            page = daemon.get("/metrics")[1].decode()
            return f'consul_bridge_service_read_errors{{cause="{cause}"}} 1.0' in page

        eventually(lambda: unread("annotation"), True, 20)
        assert not unread("rule")
        events = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
        eventually(
            lambda: [e["note"] for e in kube.json("GET", events)["items"] if e["reason"] == "ReadFailed"],
            ["Consul service ..: service '..' cannot be asked for: in a URL its name means another path"],
            20,
        )
        assert not [e for e in daemon.events() if "cannot be read" in e["event"]]


# --------------------------------------------------------------------------- a login in place of a token


class Issuer:
    """Makes JWTs as Kubernetes does, with a key pair of its own."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.public = (
            self._key.public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            .decode()
        )

    def token(self, subject: str, **claims: Any) -> str:
        now = int(time.time())
        body = {"iss": "cluster", "aud": "consul", "iat": now, "exp": now + 600, "sub": subject, **claims}
        text = f"{_base64(json.dumps({'alg': 'ES256', 'typ': 'JWT'}).encode())}.{_base64(json.dumps(body).encode())}"
        r, s = decode_dss_signature(self._key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return secret(f"{text}.{_base64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}")


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def strict() -> Iterator[Lab]:
    """Default deny, and a role that suffices for the bridge."""
    with Lab(acl=True) as lab:
        with lab.raw_consul() as consul:
            consul.json("PUT", "/v1/acl/policy", {"Name": "bridge", "Rules": POLICY})
            consul.json("PUT", "/v1/acl/role", {"Name": "bridge", "Policies": [{"Name": "bridge"}]})
        yield lab


@pytest.fixture(scope="module")
def issuer(strict: Lab) -> Issuer:
    """The auth method `cluster`: a client with a token of this issuer for `sa` gets the role, for a minute."""
    made = Issuer()
    config = {
        "JWTValidationPubKeys": [made.public], "BoundIssuer": "cluster", "BoundAudiences": ["consul"],
        "ClaimMappings": {"sub": "sub"},
    }  # fmt: skip
    with strict.raw_consul() as consul:
        method = {"Name": "cluster", "Type": "jwt", "MaxTokenTTL": "1m", "Config": config}
        consul.json("PUT", "/v1/acl/auth-method", method)
        bind(consul, "cluster", 'value.sub=="sa"')
    return made


def bind(consul: RawConsul, method: str, selector: str) -> None:
    rule = {"AuthMethod": method, "BindType": "role", "BindName": "bridge", "Selector": selector}
    consul.json("PUT", "/v1/acl/binding-rule", rule)


def logins(consul: RawConsul, method: str) -> list[str]:
    """Accessors of the tokens that an auth method gave and that live."""
    return [t["AccessorID"] for t in consul.json("GET", "/v1/acl/tokens") if t.get("AuthMethod") == method]


def test_the_bridge_logs_in_survives_its_tokens_end_and_logs_out(
    strict: Lab, issuer: Issuer, tmp_path: Path, eventually: Eventually
) -> None:
    """No token is given to it; one that a user deletes (or that ends) is replaced silently."""
    jwt = tmp_path / "jwt"
    jwt.write_text(issuer.token("sa"))
    env = {"BRIDGE_CONSUL_AUTH_METHOD": "cluster", "BRIDGE_CONSUL_AUTH_TOKEN_FILE": str(jwt)}
    with (
        strict.raw_consul() as consul,
        strict.raw_kube() as kube,
        running(strict, "login", "default", "web", **env) as daemon,
    ):
        consul.register("web", "vm-1", "10.77.3.1", 80)
        daemon.start()
        eventually(lambda: ready_addresses(kube.endpoints("default", "web")), [("10.77.3.1", 80)], 20)
        (accessor,) = logins(consul, "cluster")

        check = bridge("check", "--service", "web", "-o", "json", env=environment(
            strict.consul.address, strict.kubeconfig, **env))  # fmt: skip
        found = {p["probe"]: p for p in check.json["probes"]}
        assert "ends in" in found["consul token"]["detail"], found
        assert "auth method 'cluster'" in found["consul token"]["detail"]
        assert logins(consul, "cluster") == [accessor]  # the command has logged out

        consul.json("DELETE", f"/v1/acl/token/{accessor}")
        consul.register("web", "vm-1", "10.77.3.2", 80)
        eventually(lambda: ready_addresses(kube.endpoints("default", "web")), [("10.77.3.2", 80)], 20)
        eventually(lambda: len(logins(consul, "cluster")), 1, 10)
        assert not [e for e in daemon.events() if "cannot be asked" in e["event"]]
        daemon.stop()
        assert logins(consul, "cluster") == []


def test_a_login_is_renewed_before_its_token_ends(strict: Lab, issuer: Issuer, tmp_path: Path) -> None:
    """The real Consul's token, a clock that runs faster: a new one while the old one is still good, both logged out."""
    jwt = tmp_path / "jwt"
    jwt.write_text(issuer.token("sa"))
    config = consul_config(address=strict.consul.address, auth_method="cluster", auth_token_file=str(jwt))
    login = config.access.parts(config).credentials
    assert isinstance(login, Login)
    skipped = 0.0
    login._clock = lambda: time.monotonic() + skipped
    client = ConsulClient(config)
    try:
        with strict.raw_consul() as consul:
            client.listing()
            first = logins(consul, "cluster")
            skipped = 30.0
            client.listing()
            assert logins(consul, "cluster") == first
            skipped = 40.0
            client.listing()
            assert len(logins(consul, "cluster")) == 2
            assert set(first) < set(logins(consul, "cluster"))
            config.access.close()
            assert logins(consul, "cluster") == []
    finally:
        client.close()


@pytest.mark.parametrize(
    ("subject", "claims", "said"),
    [
        (
            "other",
            {},
            "(403): Permission denied. Check that the auth method exists, that it accepts the token's issuer",
        ),
        ("sa", {"iss": "another"}, "invalid issuer claim (iss). Check that the auth method exists"),
        ("sa", {"exp": 1, "iat": 0}, "Check that the auth method exists"),
    ],
)
def test_a_login_that_is_refused_says_what_to_look_at(
    strict: Lab, issuer: Issuer, subject: str, claims: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """And never the JWT itself."""
    jwt = tmp_path / "jwt"
    jwt.write_text(issuer.token(subject, **claims))
    env = {"BRIDGE_CONSUL_AUTH_METHOD": "cluster", "BRIDGE_CONSUL_AUTH_TOKEN_FILE": str(jwt)}
    run = bridge("check", "-o", "json", env=environment(strict.consul.address, strict.kubeconfig, **env))
    (found,) = (p for p in run.json["probes"] if p["probe"] == "consul reachable")
    assert (run.status, found["state"]) == (1, "failed")
    assert said in found["detail"]
    assert found["remedy"] == "consul acl auth-method read; consul acl binding-rule list"


def projected_token(kube: RawKube, account: str, audience: str = "") -> str:
    """As the kubelet gets it for a pod's `serviceAccountToken` volume."""
    base = f"/api/v1/namespaces/default/serviceaccounts/{account}"
    kube.apply(base, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}})
    spec = {"audiences": [audience]} if audience else {}
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    return secret(kube.json("POST", f"{base}/token", request)["status"]["token"])


def nodes_seen_by(lab: Lab, method: str, jwt: str, folder: Path) -> int:
    """How many nodes the token of a login shows; logs out."""
    file = folder / "jwt"
    file.write_text(jwt)
    config = consul_config(address=lab.consul.address, auth_method=method, auth_token_file=str(file))
    client = ConsulClient(config)
    try:
        return len(client.nodes().data)
    finally:
        client.close()
        config.access.close()


def test_a_service_accounts_token_is_checked_with_the_clusters_public_key(strict: Lab, tmp_path: Path) -> None:
    """The auth method of docs/operations.md: no Secret in the cluster, no question of Consul's to the API server."""
    with strict.raw_kube() as kube, strict.raw_consul() as consul:
        config = {
            "JWTValidationPubKeys": [strict.files["sa.pub"].read_text()],
            "BoundIssuer": "https://kubernetes.default.svc",
            "BoundAudiences": ["consul"],
            "ClaimMappings": {
                "/kubernetes.io/namespace": "namespace", "/kubernetes.io/serviceaccount/name": "service_account",
            },
        }  # fmt: skip
        method = {"Name": "pods", "Type": "jwt", "MaxTokenTTL": "1m", "Config": config}
        consul.json("PUT", "/v1/acl/auth-method", method)
        bind(consul, "pods", 'value.namespace=="default" and value.service_account=="bridge"')
        assert nodes_seen_by(strict, "pods", projected_token(kube, "bridge", "consul"), tmp_path) > 0
        for account, audience in (("other", "consul"), ("bridge", "vault")):
            with pytest.raises(PermanentError, match="refuses to log in by auth method 'pods'"):
                nodes_seen_by(strict, "pods", projected_token(kube, account, audience), tmp_path)
        assert logins(consul, "pods") == []


def test_a_service_accounts_token_is_reviewed_by_the_real_cluster(strict: Lab, tmp_path: Path) -> None:
    """An auth method of type `kubernetes`: Consul asks the API server who it is, which knows its own audience only."""
    group = "rbac.authorization.k8s.io"
    with strict.raw_kube() as kube, strict.raw_consul() as consul:
        reviewer = projected_token(kube, "consul-reviewer")
        accounts = {"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["get"]}
        kube.apply(f"/apis/{group}/v1/clusterroles/consul-accounts", {
            "apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": {"name": "consul-accounts"},
            "rules": [accounts],
        })  # fmt: skip
        for role in ("system:auth-delegator", "consul-accounts"):
            name = f"consul-reviewer-{role.replace(':', '-')}"
            kube.apply(f"/apis/{group}/v1/clusterrolebindings/{name}", {
                "apiVersion": f"{group}/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
                "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "ServiceAccount", "name": "consul-reviewer", "namespace": "default"}],
            })  # fmt: skip
        ca, url = strict.ca_file.read_text(), strict.apiserver.url
        config = {"Host": url, "CACert": ca, "ServiceAccountJWT": reviewer}
        method = {"Name": "kube", "Type": "kubernetes", "MaxTokenTTL": "1m", "Config": config}
        consul.json("PUT", "/v1/acl/auth-method", method)
        bind(consul, "kube", 'serviceaccount.name=="bridge" and serviceaccount.namespace=="default"')
        assert nodes_seen_by(strict, "kube", projected_token(kube, "bridge"), tmp_path) > 0
        with pytest.raises(PermanentError, match=r"refuses to log in.*audiences"):
            nodes_seen_by(strict, "kube", projected_token(kube, "bridge", "consul"), tmp_path)
        assert logins(consul, "kube") == []


# --------------------------------------------------------------------------- what is in front


class Local:
    """An HTTP server of the test's own on loopback, as long as the block lasts; it is reached at `address`."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Front(Local):
    """A reverse proxy below /consul with Basic authentication and a timeout; also a forward proxy. Plain HTTP."""

    def __init__(self, upstream: str, *, seconds: float = 60.0, user: str = "") -> None:
        front = self
        wanted = f"Basic {base64.b64encode(user.encode()).decode()}" if user else ""
        self.paths: list[str] = []
        self.gave_up = 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the parent's own name
                pass

            def do_GET(self) -> None:
                front.paths.append(self.path)
                if wanted and self.headers.get("Authorization") != wanted:
                    self.answer(401, b"", {"WWW-Authenticate": 'Basic realm="ops"'})
                    return
                path = self.path
                if path.startswith("http://"):
                    parts = urlsplit(path)
                    path = f"{parts.path}?{parts.query}"
                elif path.startswith("/consul/"):
                    path = path.removeprefix("/consul")
                else:
                    self.answer(404, b"no such site", {})
                    return
                connection = http.client.HTTPConnection(upstream, timeout=seconds)
                try:
                    connection.request("GET", path, headers={"X-Consul-Token": self.headers.get("X-Consul-Token", "")})
                    answer = connection.getresponse()
                    headers = {k: v for k, v in answer.getheaders() if k.startswith("X-Consul")}
                    self.answer(answer.status, answer.read(), headers)
                except TimeoutError:
                    front.gave_up += 1
                    self.answer(504, b"upstream request timeout", {})
                finally:
                    connection.close()

            def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        super().__init__(Handler)


def test_behind_a_proxy_with_a_path_a_password_and_a_short_timeout_the_bridge_works(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, eventually: Eventually
) -> None:
    """CONSUL_HTTP_AUTH opens it; its 504s after 3 s are reported once, and stop."""
    consul.register(f"{prefix}web", f"{prefix}vm", "10.77.4.1", 80)
    with (
        Front(urlsplit(lab.consul.address).netloc, seconds=3.0, user="us:geheim-front") as front,
        running(
            lab, "front", namespace, prefix, CONSUL_HTTP_ADDR=f"http://{front.address}/consul",
            CONSUL_HTTP_AUTH=secret("us:geheim-front"),
        ) as daemon,
    ):  # fmt: skip
        daemon.start()
        eventually(lambda: ready_addresses(kube.endpoints(namespace, f"{prefix}web")), [("10.77.4.1", 80)], 20)
        eventually(lambda: len(daemon.readiness().get("warnings", [])), 1, 30)
        (warning,) = daemon.readiness()["warnings"]
        assert warning.startswith("something in front of Consul ends queries after about 3 s: they wait for ")
        time.sleep(4)
        gave_up = front.gave_up
        time.sleep(6)
        assert front.gave_up == gave_up
        assert len([e for e in daemon.events() if e.get("reason") == warning]) == 1
        consul.register(f"{prefix}web", f"{prefix}vm", "10.77.4.2", 80)
        eventually(lambda: ready_addresses(kube.endpoints(namespace, f"{prefix}web")), [("10.77.4.2", 80)], 10)


def reachable(lab: Lab, address: str, **env: str) -> tuple[str, str, str]:
    """What check says of Consul: state, detail and remedy."""
    run = bridge("check", "-o", "json", env=environment(address, lab.kubeconfig, **env))
    (found,) = (p for p in run.json["probes"] if p["probe"] == "consul reachable")
    return found["state"], found["detail"], found["remedy"]


def test_check_names_the_remedy_that_fits_the_cause(lab: Lab, tmp_path: Path) -> None:
    """Credentials, path, proxy, trust and scheme are distinguished; only where nothing listens is an agent missing."""
    upstream = urlsplit(lab.consul.address).netloc
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    with Front(upstream, user="us:pw") as front:
        state, detail, remedy = reachable(lab, f"http://{front.address}/consul")
        assert (state, remedy) == ("failed", "consul.http_auth (CONSUL_HTTP_AUTH=USER:PASSWORD)")
        assert 'something in front of Consul wants a user and password (Basic realm="ops")' in detail
        state, detail, remedy = reachable(lab, f"http://{front.address}", CONSUL_HTTP_AUTH="us:pw")
        assert (state, remedy) == (
            "failed",
            "consul.address: its host, its port, and its path where Consul is behind a proxy",
        )
    dead = f"http://{front.address}"
    state, detail, remedy = reachable(lab, "http://consul.example:8500", HTTP_PROXY=dead)
    assert (state, remedy) == ("failed", "the proxy's variable, or NO_PROXY")
    assert f"the proxy {dead} (HTTP_PROXY) cannot be reached: Connection refused" in detail
    state, detail, remedy = reachable(lab, lab.consul.https_address, CONSUL_CACERT=str(tmp_path / "other.pem"))
    assert (state, remedy) == ("failed", "consul.ca_file (CONSUL_CACERT=FILE): the CA of Consul's certificate")
    state, detail, remedy = reachable(lab, lab.consul.https_address.replace("https", "http"))
    assert (state, remedy) == ("failed", "https:// in consul.address")
    state, detail, remedy = reachable(lab, lab.consul.address.replace("http", "https"))
    assert (state, remedy) == ("failed", "consul.address: http://, or the port of Consul's HTTPS API")
    state, detail, remedy = reachable(lab, f"{lab.consul.address}/v1")
    assert (state, remedy) == ("failed", "consul.address without the /v1 at its end")
    state, detail, remedy = reachable(lab, lab.consul.address, CONSUL_HTTP_TOKEN_FILE=str(tmp_path / "none"))
    assert (state, remedy.startswith("consul.token_file (--token-file FILE)")) == ("failed", True)
    state, detail, remedy = reachable(lab, dead)
    assert (state, remedy) == ("failed", "--consul-address, or start the agent")
    state, detail, remedy = reachable(lab, lab.consul.address, HTTP_PROXY=dead)
    assert state == "ok", "loopback is never proxied"


def test_a_forward_proxy_leads_to_consul(lab: Lab) -> None:
    """HTTP_PROXY: the proxy resolves the name."""
    upstream = urlsplit(lab.consul.address).netloc
    with Front(upstream) as front:
        env = environment("http://consul.example:8500", lab.kubeconfig, HTTP_PROXY=f"http://{front.address}")
        run = bridge("check", "-o", "json", env=env)
        assert next(p for p in run.json["probes"] if p["probe"] == "consul reachable")["state"] == "ok"
        assert "http://consul.example:8500/v1/status/leader" in front.paths


class Tunnels(Local):
    """A forward proxy for CONNECT on loopback: it alone knows where the `places` (host:port) are."""

    def __init__(self, places: dict[str, str], *, user: str = "") -> None:
        tunnels = self
        wanted = f"Basic {base64.b64encode(user.encode()).decode()}" if user else ""
        self.asked: set[str] = set()
        self.refusal = 0
        """The status that it answers in place of a tunnel; 0: none."""
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            close_connection = True

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the parent's own name
                pass

            def do_CONNECT(self) -> None:
                tunnels.asked.add(self.path)
                self.close_connection = True
                granted = not wanted or self.headers.get("Proxy-Authorization") == wanted
                refusal = tunnels.refusal or (0 if granted else 407) or (0 if self.path in places else 502)
                if refusal:
                    self.send_response(refusal)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                host, _, port = places[self.path].rpartition(":")
                with socket.create_connection((host, int(port))) as upstream:
                    pair = {self.connection, upstream}
                    with tunnels._lock:
                        tunnels._open |= pair
                    self.send_response(200, "Connection established")
                    self.end_headers()
                    back = threading.Thread(target=_copy, args=(upstream, self.connection))
                    back.start()
                    _copy(self.connection, upstream)
                    back.join()
                    with tunnels._lock:
                        tunnels._open -= pair

        super().__init__(Handler)

    def cut(self) -> int:
        """End every tunnel; how many there were."""
        with self._lock:
            for sock in self._open:
                _shut(sock)
            return len(self._open) // 2

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.cut()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    _shut(source)
    _shut(target)


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def test_over_tls_a_forward_proxy_is_asked_for_tunnels_and_named_when_it_refuses(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, tmp_path: Path, eventually: Eventually
) -> None:
    """Only the proxy knows Consul's name. Queries that wait are answered through it, its refusals named as its own."""

    def ready() -> list[tuple[str, int]]:
        return ready_addresses(kube.endpoints(namespace, f"{prefix}web"))

    consul.register(f"{prefix}web", f"{prefix}vm", "10.77.7.1", 80)
    upstream, password = urlsplit(lab.consul.https_address).netloc, secret("geheim-tunnel")
    with (
        Tunnels({"consul.example:8501": upstream}, user=f"us:{password}") as proxy,
        running(
            lab, "tunnel", namespace, prefix, CONSUL_HTTP_ADDR="https://consul.example:8501",
            CONSUL_CACERT=str(lab.ca_file), CONSUL_TLS_SERVER_NAME="localhost",
            HTTPS_PROXY=f"http://us:{password}@{proxy.address}",
        ) as daemon,
    ):  # fmt: skip
        daemon.start()
        eventually(ready, [("10.77.7.1", 80)], 20)
        consul.register(f"{prefix}web", f"{prefix}vm", "10.77.7.2", 80)
        eventually(ready, [("10.77.7.2", 80)], 5)  # nothing but a waiting query tells it so soon
        assert proxy.asked == {"consul.example:8501"}  # and loopback, where Kubernetes is, directly
        named = f"the proxy http://{proxy.address} (HTTPS_PROXY)"
        for status, said in (
            (403, f"{named} refuses to connect to consul.example:8501: 403 Forbidden"),
            (407, f"{named} asks for a user and password (407): write HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT"),
        ):
            proxy.refusal = status
            proxy.cut()
            eventually(lambda said=said: said in str(daemon.readiness().get("consul")), True, 15)
        (event,) = (e for e in daemon.events() if e["event"] == "consul cannot be asked; everything stays as it is")
        assert f"{named} refuses to connect" in event["reason"]  # one line for one outage, with its first reason
        assert ready() == [("10.77.7.2", 80)]
        consul.register(f"{prefix}web", f"{prefix}vm", "10.77.7.3", 80)
        proxy.refusal = 0
        eventually(ready, [("10.77.7.3", 80)], 10)  # it is asked again after 5 s at most
        eventually(lambda: daemon.readiness()["consul"], "ok", 10)


@pytest.mark.parametrize("linked", [False, True])
def test_a_directory_of_cas_is_trusted_as_consuls_own_tools_trust_it(
    linked: bool, lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, tmp_path: Path
) -> None:
    """CONSUL_CAPATH: PEM files of any name, with the links that `openssl rehash` makes or without; nothing else is."""
    folder = tmp_path / "cas"
    folder.mkdir()
    (folder / "other.crt").write_text(lab.files["other-ca.pem"].read_text())
    env = environment(lab.consul.https_address, lab.kubeconfig, CONSUL_CAPATH=str(folder))
    select = ("--service", f"{prefix}*", "--namespace", namespace, "--yes")
    consul.register(f"{prefix}web", f"{prefix}vm", "10.77.8.1", 80)
    run = bridge("sync", *select, env=env)
    assert run.status != 0
    assert "is not trusted" in run.stderr
    assert "Name the CA that signed it: consul.ca_path (CONSUL_CAPATH=DIRECTORY)" in run.stderr
    assert kube.endpoints(namespace, f"{prefix}web") is None
    state, _, remedy = reachable(lab, lab.consul.https_address, CONSUL_CAPATH=str(folder))
    assert (state, remedy) == ("failed", "consul.ca_path (CONSUL_CAPATH=DIRECTORY): the CA of Consul's certificate")
    if linked:
        (folder / "ours").write_text(lab.ca_file.read_text())
        (folder / "5ed36f99.0").symlink_to("ours")
    else:
        (folder / "ours.pem").write_text(lab.ca_file.read_text())
    run = bridge("sync", *select, env=env)
    assert run.status == 0, run.stderr
    assert ready_addresses(kube.endpoints(namespace, f"{prefix}web")) == [("10.77.8.1", 80)]


def test_a_ca_that_is_replaced_is_followed_at_once(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, tmp_path: Path, eventually: Eventually
) -> None:
    """A bridge that trusts the wrong CA says so, and works two seconds after the right one is in place."""
    consul.register(f"{prefix}web", f"{prefix}vm", "10.77.5.1", 80)
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    with running(
        lab, "ca", namespace, prefix, CONSUL_HTTP_ADDR=lab.consul.https_address, CONSUL_CACERT=str(file),
        BRIDGE_DATACENTER="dc1",
    ) as daemon:  # fmt: skip
        daemon.start(wait=False)
        eventually(lambda: "is not trusted" in str(daemon.readiness().get("consul")), True, 20)
        time.sleep(6)  # by now it waits for longer between its tries
        put(file, lab.ca_file.read_text())
        eventually(lambda: ready_addresses(kube.endpoints(namespace, f"{prefix}web")), [("10.77.5.1", 80)], 6)


@pytest.mark.parametrize("fresh_lab", [{"mtls": True, "controllers": False}], indirect=True)
def test_a_client_certificate_that_is_replaced_is_followed(
    fresh_lab: Lab, tmp_path: Path, eventually: Eventually
) -> None:
    """Consul asks for one: a bridge that has a stranger's says so, and works with its own as soon as that is there.

    It goes on with it after Consul was started again, which ends every connection.
    """
    lab, files = fresh_lab, (tmp_path / "client.pem", tmp_path / "client.key")
    stranger = trustme.CA().issue_cert("stranger.example")
    stranger.cert_chain_pems[0].write_to_path(str(files[0]))
    stranger.private_key_pem.write_to_path(str(files[1]))
    with lab.raw_consul() as consul, lab.raw_kube() as kube, running(
        lab, "mtls", "default", "mtls-", CONSUL_HTTP_ADDR=lab.consul.https_address, CONSUL_CACERT=str(lab.ca_file),
        CONSUL_CLIENT_CERT=str(files[0]), CONSUL_CLIENT_KEY=str(files[1]), BRIDGE_DATACENTER="dc1",
    ) as daemon:  # fmt: skip

        def ready() -> list[tuple[str, int]]:
            return ready_addresses(kube.endpoints("default", "mtls-web"))

        consul.register("mtls-web", "mtls-vm", "10.77.5.1", 80)
        daemon.start(wait=False)
        eventually(lambda: daemon.readiness().get("consul") not in (None, "ok", {}), True, 20)
        for file in files[::-1]:
            put(file, lab.files[file.name].read_text())
        eventually(ready, [("10.77.5.1", 80)], 20)
        lab.consul.restart()
        with lab.raw_consul() as again:
            again.register("mtls-web", "mtls-vm", "10.77.5.2", 80)
        eventually(ready, [("10.77.5.2", 80)], 40)


def test_a_unix_socket_is_an_address(tmp_path: Path) -> None:
    """As `consul` itself has it: CONSUL_HTTP_ADDR=unix:///..."""
    from tests.support.lab import Consul

    server = Consul(tmp_path / "consul")
    socket = tmp_path / "http.sock"
    server.settings = {"addresses": {"http": f"127.0.0.1 unix://{socket}"}}
    server.start()
    try:
        config = consul_config(address=f"unix://{socket}")
        client = ConsulClient(config)
        assert client.own_datacenter() == "dc1"
        client.close()
    finally:
        server.stop()
