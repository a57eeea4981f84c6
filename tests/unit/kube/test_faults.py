"""Every answer that is not a yes has one meaning, and no text gives a secret away."""

from __future__ import annotations

import json
import socket
import ssl
from typing import Any

import pytest
import urllib3
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import (
    BridgeError,
    CredentialsError,
    ForbiddenError,
    PermanentError,
    StaleError,
    ThrottledError,
    TransientError,
)
from bridge.kube import faults, rbac
from bridge.kube.faults import RequestInfo

PATCH = RequestInfo("PATCH", "/api/v1/namespaces/storage/endpoints/radosgw", "https://kube:6443")
SLICES = RequestInfo("GET", "/apis/discovery.k8s.io/v1/namespaces/storage/endpointslices", "https://kube:6443")


def status(code: int, message: str = "", reason: str = "", **details: Any) -> bytes:
    """A Status object."""
    body = {"kind": "Status", "message": message, "reason": reason, "code": code, "details": details}
    return json.dumps(body).encode()


FORBIDDEN = (
    'endpoints "radosgw" is forbidden: User "system:serviceaccount:storage:bridge" cannot create resource "endpoints" '
    'in API group "" in the namespace "storage"'
)
TYPED = "failed to create typed patch object (storage/radosgw; v1, Kind=Service): .spec.x: field not declared in schema"

QUOTA = 'services "web" is forbidden: exceeded quota: q, requested: services=1, used: services=0, limited: services=0'
POLICY = "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no"

TABLE: list[tuple[int, bytes, type[BridgeError], str]] = [
    (400, b"Client sent an HTTP request to an HTTPS server.\n", PermanentError, "speaks TLS: write https://"),
    (400, status(400, "the name of the object does not match"), PermanentError, "does not match"),
    (401, status(401, "Unauthorized"), CredentialsError, "refuses our credentials"),
    (403, status(403, FORBIDDEN), ForbiddenError, "forbids us to create endpoints in namespace storage"),
    (
        403,
        status(403, 'endpoints "radosgw" is forbidden: '),
        ForbiddenError,
        "forbids us to create endpoints in namespace s",
    ),
    (403, status(403, QUOTA), PermanentError, 'services "web" is forbidden: exceeded quota: q'),
    (403, status(403, POLICY), PermanentError, "denied request: no (Kubernetes"),
    (404, status(404, 'namespaces "storage" not found', "NotFound"), PermanentError, "create namespace storage"),
    (404, status(404, 'endpoints "radosgw" not found', "NotFound"), PermanentError, "not found"),
    (404, b"<html>nginx</html>", faults.NoApiServerError, "is that the API server's address?"),
    (409, status(409, "the object has been modified"), StaleError, "has been modified"),
    (410, status(410, "too old resource version"), StaleError, "too old"),
    (415, status(415, "unknown format"), PermanentError, "unknown format"),
    (422, status(422, "is invalid: subsets[0].addresses[0].ip"), PermanentError, "refused (422)"),
    (429, b"Too many requests, please try again later.\n", ThrottledError, "slower (429)"),
    (500, status(500, TYPED), PermanentError, "does not fit its schema"),
    (500, status(500, "etcdserver: request timed out"), TransientError, "answers 500"),
    (502, b"<html>bad gateway</html>", TransientError, "bad gateway"),
    (503, b"", TransientError, "HTTP 503"),
    (504, status(504, "Too large resource version", "Timeout"), TransientError, "answers 504"),
]


@pytest.mark.parametrize(("code", "body", "kind", "text"), TABLE, ids=[f"{c}-{t[:20]}" for c, _, _, t in TABLE])
def test_the_table_of_answers(code: int, body: bytes, kind: type[BridgeError], text: str) -> None:
    """Exactly this class, and a text that says what and where."""
    error = faults.of_answer(PATCH, code, {}, body)
    assert type(error) is kind
    assert text in str(error)


def test_only_a_missing_right_is_granted_by_a_role() -> None:
    """Admission says 403 as well: its own words first, and no Role."""
    terminating = json.dumps(
        {
            "kind": "Status",
            "code": 403,
            "reason": "Forbidden",
            "message": 'services "s1" is forbidden: unable to create new content in namespace term because it is being '
            "terminated",
            "details": {"causes": [{"reason": "NamespaceTerminating", "field": "metadata.namespace"}]},
        }
    ).encode()
    for body in (terminating, status(403, QUOTA), status(403, POLICY)):
        error = faults.of_answer(PATCH, 403, {}, body)
        assert type(error) is PermanentError
        assert "Grant" not in str(error)
        assert str(error).startswith(json.loads(body)["message"])
    assert "being deleted; kubectl get namespace storage" in str(faults.of_answer(PATCH, 403, {}, terminating))


def test_what_is_forbidden_to_an_anonymous_request_is_not_granted_to_everybody() -> None:
    """Without credentials that count the server sees system:anonymous: a binding for it would let any client in."""
    said = 'services is forbidden: User "system:anonymous" cannot list resource "services" in API group ""'
    error = faults.of_answer(SLICES, 403, {}, status(403, f'{said} in the namespace "storage"'))
    assert isinstance(error, ForbiddenError)
    assert "no credential that counts was sent. Give the context's user a token" in str(error)
    assert "kubectl create" not in str(error)
    assert "--user=USER" in rbac.bind("b", "r", "storage", "system:anonymous")


def test_forbidden_says_how_to_grant_what_is_missing() -> None:
    """The verb that the server misses (create), not the one that we sent (patch), for the user that it names."""
    text = str(faults.of_answer(PATCH, 403, {}, status(403, FORBIDDEN)))
    name = "consul-bridge-create-endpoints"
    assert f"kubectl create role {name} --verb=create --resource=endpoints -n storage && " in text
    assert f"&& kubectl create rolebinding {name} --role={name} --serviceaccount=storage:bridge -n storage. " in text


@pytest.mark.parametrize(
    ("namespace", "user", "command"),
    [
        (
            "storage",
            "system:serviceaccount:ops:bridge",
            "rolebinding b --role=r --serviceaccount=ops:bridge -n storage",
        ),
        ("", "jane@example.com", "clusterrolebinding b --clusterrole=r --user=jane@example.com"),
        ("", "Jane Doe", "clusterrolebinding b --clusterrole=r --user='Jane Doe'"),
        ("storage", "", "rolebinding b --role=r --user=USER -n storage"),
    ],
)
def test_a_binding_names_the_user_as_kubectl_takes_it(namespace: str, user: str, command: str) -> None:
    """A service account by its namespace and name; where Kubernetes named no one, the reader fills it in."""
    assert rbac.bind("b", "r", namespace, user) == f"kubectl create {command}"


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (SLICES, "forbids us to list endpointslices in namespace storage"),
        (
            RequestInfo("GET", SLICES.path, "s", watching=True),
            "forbids us to watch endpointslices in namespace storage",
        ),
        (
            RequestInfo("DELETE", f"{SLICES.path}/a", "s"),
            "no (Kubernetes (s) refuses delete endpointslices a in",
        ),
        (RequestInfo("GET", "/api/v1/services", "s"), "forbids us to list services in all namespaces"),
        (RequestInfo("GET", "/api/v1/services", "s"), "kubectl create clusterrole"),
        (RequestInfo("GET", "/version", "s"), "forbids GET /version"),
    ],
)
def test_forbidden_without_a_helpful_message_is_explained_by_the_request(asked: RequestInfo, text: str) -> None:
    """A webhook's "no" names nothing: verb, resource and namespace come from what we asked."""
    assert text in str(faults.of_answer(asked, 403, {}, b"no"))


@pytest.mark.parametrize(
    ("headers", "details", "seconds"),
    [
        ({"Retry-After": "7"}, {}, 7.0),
        ({}, {"retryAfterSeconds": 3}, 3.0),
        ({"Retry-After": "7"}, {"retryAfterSeconds": 3}, 7.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, {}, None),
        ({"Retry-After": "-4"}, {}, 0.0),
        ({"Retry-After": "999999"}, {}, 300.0),
        ({}, {}, None),
        ({}, {"retryAfterSeconds": [1]}, None),
    ],
)
def test_retry_after_is_read_and_bounded(
    headers: dict[str, str], details: dict[str, Any], seconds: float | None
) -> None:
    """From the header, else from the Status; nonsense is nothing."""
    for code in (429, 503):
        error = faults.of_answer(PATCH, code, headers, status(code, "busy", **details))
        assert isinstance(error, TransientError)
        assert error.retry_after_seconds == seconds


def wrapped(cause: BaseException) -> urllib3.exceptions.ProtocolError:
    """An error as urllib3 hands it out."""
    return urllib3.exceptions.ProtocolError("Connection aborted.", cause)


POOL: Any = None
CONNECTION: Any = None
UNTRUSTED = ssl.SSLCertVerificationError(1, "certificate verify failed")
UNTRUSTED.verify_message = "self-signed certificate"


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (urllib3.exceptions.SSLError(UNTRUSTED), PermanentError, "is not trusted: self-signed certificate"),
        (urllib3.exceptions.SSLError("[SSL: WRONG_VERSION_NUMBER]"), PermanentError, "does not speak TLS"),
        (urllib3.exceptions.SSLError("[SSL] record layer failure"), PermanentError, "does not speak TLS"),
        (wrapped(ssl.SSLError("TLSV13_ALERT_CERTIFICATE_REQUIRED")), PermanentError, "refuses our client certificate"),
        (urllib3.exceptions.LocationParseError("x"), PermanentError, "no address of an API server"),
        (wrapped(ConnectionRefusedError(111, "refused")), TransientError, "refuses connections"),
        (wrapped(ConnectionResetError(104, "reset")), TransientError, "broke during patch endpoints radosgw"),
        (urllib3.exceptions.ConnectTimeoutError(CONNECTION, "slow"), TransientError, "connecting took too long"),
        (urllib3.exceptions.ReadTimeoutError(POOL, "/", "slow"), TransientError, "did not answer in time"),
        (TimeoutError("timed out"), TransientError, "did not answer in time"),
        (
            urllib3.exceptions.NameResolutionError("kube", CONNECTION, socket.gaierror(-2, "unknown")),
            TransientError,
            "cannot be resolved",
        ),
        (OSError("out of sockets"), TransientError, "out of sockets"),
    ],
)
def test_the_table_of_broken_connections(error: BaseException, kind: type[BridgeError], text: str) -> None:
    """What urllib3, ssl and sockets raise."""
    found = faults.of_exception(PATCH, error)
    assert type(found) is kind
    assert text in str(found)
    assert "kube:6443" in str(found)


def test_long_messages_are_cut_to_one_line() -> None:
    """A 422 with a thousand causes stays readable."""
    text = str(faults.of_answer(PATCH, 422, {}, status(422, "bad\n  address, " * 1000)))
    assert len(text) < 600
    assert "\n" not in text
    assert text.endswith("…")


TOKENS = st.text(st.sampled_from("abcdefghijABCDEFGHIJ0123456789-_."), min_size=12, max_size=60)


@settings(deadline=None)
@given(token=TOKENS, code=st.sampled_from([400, 401, 403, 404, 409, 422, 429, 500, 503]))
def test_no_credential_in_use_gets_into_a_text(token: str, code: int) -> None:
    """Servers and proxies that echo the request's headers back."""
    for said in (f"Authorization: Bearer {token}", f"got header Bearer {token} of", f'{{"token":"{token}"}}', token):
        error = faults.of_answer(PATCH, code, {}, status(code, said), secrets=(f"Bearer {token}", token))
        assert token not in str(error)
        broken = faults.of_exception(PATCH, OSError(said), secrets=(f"Bearer {token}", token))
        assert token not in str(broken)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Bearer abc.def-123", "abc.def-123"),
        ("authorization=Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        ("{'name': 'admin', 'user': {'token': 'hunter22'}}", "hunter22"),
        ('{"password": "hunter22", "user": 1}', "hunter22"),
        ("--token=hunter22 --x", "hunter22"),
        ("https://user:hunter22@proxy:3128/", "hunter22"),
        ("id-token: eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrIn0.c2ln", "eyJpc3MiOiJrIn0"),
        ("jwt eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrIn0.c2ln seen", "eyJpc3MiOiJrIn0"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----", "MIIabc"),
        ("client-key-data: LS0tLS1CRUdJTg==", "LS0tLS1CRUdJTg=="),
    ],
)
def test_what_looks_like_a_credential_is_hidden(text: str, secret: str) -> None:
    """Also those that we do not know: of other users in the kubeconfig, of plugins, of proxies."""
    assert secret not in faults.redact(text)
    assert "<hidden>" in faults.redact(text)


def test_words_that_only_talk_about_credentials_stay() -> None:
    """Hiding must not make messages useless."""
    text = 'User "system:anonymous" cannot list resource "services" in API group "": token expired'
    assert faults.redact(text) == text
