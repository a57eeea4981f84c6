"""What looks like a credential is hidden, the rest stays readable."""

from __future__ import annotations

import pytest

from bridge.core.redact import redacted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("HTTP GET http://vm:8080/: 503 Service Unavailable", "HTTP GET http://vm:8080/: 503 Service Unavailable"),
        ("Authorization: Bearer abc.def-123", "Authorization: <hidden> <hidden>"),
        ('{"password": "hunter2", "user": "x"}', '{"password": "<hidden>", "user": "x"}'),
        ("http://user:pw@vm/", "http://<hidden>@vm/"),
        ("got eyJhbGciOiJI.eyJzdWIi.x today", "got <hidden> today"),
        ("-----BEGIN RSA PRIVATE KEY----- MIIE", "<hidden>"),
    ],
)
def test_credentials_are_hidden(text: str, shown: str) -> None:
    """Whatever a check or a server prints."""
    assert redacted(text) == shown
