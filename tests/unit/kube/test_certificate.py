"""When a certificate or a token ends, and that nothing else is taken for one."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime

import pytest
import trustme

from bridge.certificate import certificate_end, token_end


@pytest.mark.parametrize("year", [2027, 2049, 2050, 2120])
def test_the_end_of_a_certificate_is_read(year: int) -> None:
    """Two forms of time: two digits of the year until 2049, four from 2050 on."""
    end = datetime(year, 3, 4, 5, 6, 7, tzinfo=UTC)
    made = trustme.CA().issue_cert("bridge.example.org", not_after=end)
    pem = b"".join(blob.bytes() for blob in made.cert_chain_pems)
    assert certificate_end(b"text before\n" + pem) == end
    assert certificate_end(made.private_key_pem.bytes()) is None


@pytest.mark.parametrize("length", [0, 1, 5, 20, 100])
def test_half_a_certificate_has_no_end(length: int) -> None:
    """Nor has what only looks like one."""
    der = base64.b64encode(bytes([0x30, 0x82, 0x01, 0x0A, 0x30, 0x82] * 40)[:length]).decode()
    pem = f"-----BEGIN CERTIFICATE-----\n{der}\n-----END CERTIFICATE-----\n".encode()
    assert certificate_end(pem) is None
    assert certificate_end(pem[:40]) is None


def test_the_end_of_a_token_is_read_where_it_is_a_jwt() -> None:
    """Other tokens tell nothing."""

    def jwt(claims: object) -> str:
        return f"a.{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}.c"

    assert token_end(jwt({"exp": 1_800_000_000})) == datetime.fromtimestamp(1_800_000_000, UTC)
    for other in ("opaque", "a.b.c", "a.%%.c", jwt({}), jwt([]), jwt({"exp": "soon"}), jwt({"exp": 1e300}), ""):
        assert token_end(other) is None
