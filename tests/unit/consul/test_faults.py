"""What Consul or the way to it answers instead of yes becomes one of two kinds of error, its text fit for the user."""

from __future__ import annotations

import http.client
import socket
import ssl
from dataclasses import replace

import pytest

from bridge.consul import faults
from bridge.consul.client import ConsulClient
from bridge.consul.faults import RequestInfo
from bridge.core.model import Query
from bridge.errors import BridgeError, PermanentError, ThrottledError, TransientError, UnreachableError
from tests.support.fakes.consul import FakeConsul, Fault
from tests.support.options import consul_config

SECRET = "b1gs3cr3t-9c0d-4e5f-8a7b-6c5d4e3f2a1b"
ASKED = RequestInfo("list services", "http://consul:8500", "dc7", 'Service.Meta.x === "1"', secrets=(SECRET,))


@pytest.mark.parametrize(
    ("code", "body", "kind", "said"),
    [
        (500, "Failed to create boolean expression evaluator: 1:3: no match", PermanentError, 'Service.Meta.x === "1"'),
        (500, "No path to datacenter", UnreachableError, "'dc7'"),
        (500, "No cluster leader", TransientError, "No cluster leader"),
        (500, "rpc error getting client: failed to get conn: dial tcp", TransientError, "rpc error"),
        (503, "", TransientError, "503"),
        (429, "Your IP is issuing too many concurrent connections", ThrottledError, "too many concurrent connections"),
        (429, "rate limit exceeded, try again later", ThrottledError, "rate limit exceeded"),
        (403, "ACL not found", PermanentError, "does not know our token"),
        (403, "Permission denied: token lacks 'node:read'", PermanentError, faults.ENOUGH_POLICY),
        (401, "ACL support disabled", PermanentError, "ACL support disabled"),
        (404, "page not found", PermanentError, "is that the address of Consul's HTTP API"),
        (
            400,
            'Invalid query parameter: "ns" - Namespaces are a Consul Enterprise feature',
            PermanentError,
            "Enterprise",
        ),
        (400, "Client sent an HTTP request to an HTTPS server.", PermanentError, "write https://"),
        (302, "moved", PermanentError, "302"),
    ],
)
def test_each_answer_has_its_meaning(code: int, body: str, kind: type[BridgeError], said: str) -> None:
    error = faults.of_answer(ASKED, code, {}, body.encode())
    assert type(error) is kind
    assert said in str(error)


def test_a_remedy_fits_its_cause() -> None:
    """An address that ends in /v1, a request without token, a CA that no one named: each says what to write."""
    inside = replace(ASKED, server="http://consul:8500/v1")
    assert faults.of_answer(inside, 404, {}, b"").remedy == "consul.address without the /v1 at its end"
    assert "/v1" not in faults.of_answer(ASKED, 404, {}, b"").remedy
    nobody = faults.of_answer(replace(ASKED, anonymous=True), 403, {}, b"Permission denied")
    assert nobody.remedy == f"--token-file FILE or CONSUL_HTTP_TOKEN: a token with: {faults.ENOUGH_POLICY}"
    assert faults.of_answer(ASKED, 403, {}, b"Permission denied").remedy == f"a token with: {faults.ENOUGH_POLICY}"
    unknown = ssl.SSLCertVerificationError(1, "x")
    unknown.verify_code, unknown.verify_message = 20, "unable to get local issuer certificate"
    assert "consul.ca_file (CONSUL_CACERT=FILE)" in str(faults.of_exception(ASKED, unknown))
    below = replace(ASKED, ca_path=True)
    assert "consul.ca_path (CONSUL_CAPATH=DIRECTORY)" in str(faults.of_exception(below, unknown))


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ConnectionRefusedError(111, "x"), TransientError, "refuses connections"),
        (ConnectionResetError(104, "x"), TransientError, "broke"),
        (http.client.RemoteDisconnected("x"), TransientError, "broke"),
        (http.client.IncompleteRead(b""), TransientError, "torn off"),
        (http.client.BadStatusLine("SSH-2.0"), TransientError, "does not answer in HTTP"),
        (TimeoutError("x"), TransientError, "did not answer in time"),
        (socket.gaierror(-2, "Name or service not known"), TransientError, "cannot be resolved"),
        (PermissionError(13, "Permission denied"), PermanentError, "may not use the socket"),
        (ssl.SSLEOFError(8, "x"), TransientError, "broke"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong"), PermanentError, "does not speak TLS"),
        (ssl.SSLError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED]"), PermanentError, "refuses our client certificate"),
        (OSError(113, "No route to host"), TransientError, "No route to host"),
    ],
)
def test_each_broken_way_has_its_meaning(error: Exception, kind: type[BridgeError], said: str) -> None:
    found = faults.of_exception(ASKED, error)
    assert type(found) is kind
    assert said in str(found)
    assert "http://consul:8500" in str(found)


def test_texts_are_one_line_and_bounded() -> None:
    text = str(faults.of_answer(ASKED, 500, {}, b"line\n\x00\x1b[31m line " * 10_000))
    assert len(text) < 500
    assert text.isprintable()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
def test_the_token_appears_in_no_error(status: int) -> None:
    with FakeConsul() as consul:
        consul.inject(Fault(status=status, body=f"what is {SECRET}? token={SECRET}"))
        client = ConsulClient(consul_config(address=consul.address, token=SECRET))
        with pytest.raises(BridgeError) as caught:
            client.health_service(Query("dc1", "web"))
        client.close()
    link: BaseException | None = caught.value
    while link is not None:
        assert SECRET not in str(link)
        assert SECRET not in repr(link)
        link = link.__cause__ or link.__context__
    assert SECRET not in repr(client.config)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("99999", 300.0), ("Wed, 21 Oct", None), ("nan", None), (None, None)],
)
def test_retry_after_is_honoured_within_reason(header: str | None, seconds: float | None) -> None:
    headers = {} if header is None else {"Retry-After": header}
    error = faults.of_answer(ASKED, 429, headers, b"slow down")
    assert isinstance(error, TransientError)
    assert error.retry_after_seconds == seconds
