"""Tokens: fixed ones, those of a file, and those that a login gives, renews and gives back."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme

from bridge.consul.credentials import FixedToken, Login, TokenFile, moment
from bridge.consul.tls import certificate_end
from bridge.errors import CancelledError, PermanentError, TransientError


class Server:
    """Answers logins with tokens t1, t2, ... that live for `life` seconds (0: forever)."""

    def __init__(self, life: int = 100) -> None:
        self.life = life
        self.now = 1000.0
        self.said: list[tuple[str, str]] = []
        self.failure: Exception | None = None
        self.slow = 0.0
        self._lock = threading.Lock()

    def __call__(self, _what: str, path: str, headers: Mapping[str, str], body: bytes) -> Any:
        with self._lock:
            if self.slow:
                time.sleep(self.slow)
            if path == "/v1/acl/logout":
                self.said.append(("logout", headers["X-Consul-Token"]))
                return None
            self.said.append(("login", json.loads(body)["BearerToken"]))
            if self.failure is not None:
                raise self.failure
            token = {"SecretID": f"t{sum(what == 'login' for what, _ in self.said)}"}
            if self.life:
                begin, end = (
                    "2026-11-29T20:00:00.480301278Z",
                    f"2026-11-29T20:0{self.life // 60}:{self.life % 60:02}.48Z",
                )
                token |= {"CreateTime": begin, "ExpirationTime": end}
            return token

    @property
    def logins(self) -> int:
        return sum(what == "login" for what, _ in self.said)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def login(server: Server, tmp_path: Path) -> Login:
    (tmp_path / "jwt").write_text("jwt-1\n")
    return Login("pods", str(tmp_path / "jwt"), server, clock=lambda: server.now)


def test_one_login_serves_all_until_it_is_due(server: Server, login: Login) -> None:
    """And the JWT is read again for the next one: Kubernetes renews the file."""
    assert [login.token() for _ in range(3)] == ["t1", "t1", "t1"]
    server.now += 59
    assert login.token() == "t1"
    server.now += 2
    assert login.token() == "t2"
    assert server.said == [("login", "jwt-1"), ("login", "jwt-1")]
    assert set(login.secrets()) == {"jwt-1", "t1", "t2"}


def test_a_renewal_that_fails_leaves_the_current_token_until_it_ends(server: Server, login: Login) -> None:
    """It is tried again every 5 s; at the end of the token the failure is everybody's."""
    login.token()
    server.failure = TransientError("away")
    server.now += 61
    assert [login.token(), login.token()] == ["t1", "t1"]
    assert server.logins == 2
    assert login.failure == "away"
    server.now += 5.1
    assert login.token() == "t1"
    assert server.logins == 3
    server.now += 40
    with pytest.raises(TransientError, match="away"):
        login.token()
    server.failure = None
    server.now += 2
    assert login.token() == "t5"
    assert login.failure is None


def test_many_that_need_a_token_make_one_login(server: Server, login: Login) -> None:
    """And one failure is all theirs: Consul is not asked once by each thread."""
    server.slow = 0.05
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(login.token())) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, server.logins) == (["t1"] * 10, 1)
    server.failure = PermanentError("no")
    server.now += 200
    for _ in range(5):
        with pytest.raises(PermanentError, match="no"):
            login.token()
    assert server.logins == 2


def test_a_token_that_is_refused_is_replaced_once(server: Server, login: Login) -> None:
    """Those who were refused with the old one find the new one; without success there is none."""
    first = login.token()
    assert login.refused(first)
    assert login.refused(first)
    assert (login.token(), server.logins) == ("t2", 2)
    server.failure = TransientError("away")
    assert not login.refused("t2")


def test_a_clean_stop_logs_out_all_that_live(server: Server, login: Login) -> None:
    """Also the one that was renewed a moment ago; afterwards there is no token any more."""
    login.token()
    server.now += 61
    login.token()
    login.close()
    assert server.said[2:] == [("logout", "t1"), ("logout", "t2")]
    with pytest.raises(CancelledError):
        login.token()
    login.close()
    assert len(server.said) == 4


def test_a_token_without_an_end_is_never_renewed(tmp_path: Path) -> None:
    """An auth method without MaxTokenTTL."""
    server = Server(life=0)
    (tmp_path / "jwt").write_text("jwt-1")
    login = Login("pods", str(tmp_path / "jwt"), server, clock=lambda: server.now)
    login.token()
    server.now += 1e9
    assert login.token() == "t1"
    login.close()
    assert server.said[-1] == ("logout", "t1")


def test_without_the_jwt_there_is_a_sentence(server: Server, tmp_path: Path) -> None:
    """It names the file and the setting."""
    login = Login("pods", str(tmp_path / "none"), server, clock=lambda: server.now)
    with pytest.raises(PermanentError, match=r"auth method 'pods' cannot be read from .*/none: No such file") as error:
        login.token()
    assert error.value.remedy == "consul.auth_token_file: the path of the projected service account token"


@pytest.mark.parametrize("answer", [None, [], {}, {"SecretID": 1}, {"SecretID": ""}])
def test_an_answer_without_a_token_is_no_login(answer: object, tmp_path: Path) -> None:
    """Something else answered."""
    (tmp_path / "jwt").write_text("jwt-1")
    login = Login("pods", str(tmp_path / "jwt"), lambda *_: answer)
    with pytest.raises(TransientError, match="gave no token: is that Consul"):
        login.token()


def test_a_token_file_has_another_token_only_when_it_was_replaced(tmp_path: Path) -> None:
    """Also with the same size and time."""
    file = tmp_path / "token"
    file.write_text("aaaa")
    token = TokenFile(str(file))
    assert (token.token(), token.refused("aaaa")) == ("aaaa", False)
    before, stat = token.generation(), file.stat()
    file.write_text("bbbb")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert token.refused("aaaa")
    assert token.token() == "bbbb"
    file.write_text("cc")
    assert token.generation() != before
    file.unlink()
    assert (token.generation(), token.token()) == (None, "bbbb")


def test_a_fixed_token_is_the_only_one() -> None:
    """From the settings."""
    token = FixedToken("aaaa")
    assert (token.token(), token.refused("aaaa"), token.secrets(), token.generation()) == (
        "aaaa",
        False,
        ("aaaa",),
        None,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-29T20:29:25.480301278Z", "2026-11-29T20:29:25.480301+00:00"),
        ("2026-11-29T20:29:25Z", "2026-11-29T20:29:25+00:00"),
        ("2026-11-29T20:29:25.5+01:00", "2026-11-29T20:29:25.500000+01:00"),
        ("0001-01-01T00:00:00Z", None),
        ("2026-11-29T20:29:25", None),
        ("soon", None),
        (None, None),
    ],
)
def test_times_are_gos(text: object, expected: str | None) -> None:
    """Nanoseconds, and a zero time that means none."""
    found = moment(text)
    assert (found.isoformat() if found else None) == expected


def test_the_end_of_a_certificate_is_read(tmp_path: Path) -> None:
    """Of the first one in the file; what is no certificate has none."""
    made = trustme.CA().issue_cert("x.example")
    from cryptography import x509

    path = tmp_path / "c.pem"
    path.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    expected = x509.load_pem_x509_certificate(made.cert_chain_pems[0].bytes()).not_valid_after_utc
    assert certificate_end(str(path)) == expected
    path.write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    assert certificate_end(str(path)) is None
    path.write_text("nothing")
    assert (certificate_end(str(path)), certificate_end(str(tmp_path / "none"))) == (None, None)
