"""The ACL token that requests carry: a fixed one, a file's, or one that an auth method gave for a Kubernetes JWT.

A token is asked for before every request and refused ones are reported, so that a file that was replaced and a login
that has lapsed are followed at once, whichever thread notices.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from bridge.errors import BridgeError, CancelledError, ConfigurationError, PermanentError, TransientError

RENEW_AFTER = 0.6
"""The share of a token's life after which another one is logged in for. Consul's shortest life is one minute."""

AGAIN_SECONDS = 5.0
"""After a login that failed: how long the current token is used before the next try."""

SAME_FAILURE_SECONDS = 1.0
"""For so long after a failed login all who need a token get the same answer: Consul is not asked once a thread."""


class Credentials(Protocol):
    """Any thread."""

    def token(self) -> str:
        """The token to send, "" for none. Raises BridgeError."""

    def refused(self, token: str) -> bool:
        """Consul does not know `token`: whether there is another one to try."""

    def secrets(self) -> tuple[str, ...]:
        """Texts that must never be printed."""

    def generation(self) -> object:
        """Is another one when the token may be another one. Quick; raises nothing."""

    def close(self) -> None:
        """No more requests: give back what was made for us."""


class FixedToken:
    def __init__(self, token: str) -> None:
        self._token = checked(token, "token")

    def token(self) -> str:
        return self._token

    def refused(self, token: str) -> bool:
        del token
        return False

    def secrets(self) -> tuple[str, ...]:
        return (self._token,)

    def generation(self) -> object:
        return None

    def close(self) -> None:
        """Nothing was made."""


class TokenFile:
    """A file's content, read again whenever the file is another one."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._token = ""

    def token(self) -> str:
        with self._lock:
            try:
                seen = self._stamp()
                if seen != self._seen:
                    self._token = self._read()
                    self._seen = seen
            except (OSError, UnicodeDecodeError) as error:
                if self._seen is None:
                    why = error.strerror if isinstance(error, OSError) else "it is not text"
                    raise self._problem(f"cannot be read: {why}") from None
            if not self._token:
                raise self._problem("is empty")
            return self._token

    def _problem(self, what: str) -> PermanentError:
        error = PermanentError(f"Consul's token file {self._path} {what}")
        error.remedy = "consul.token_file (--token-file FILE): a file with the token that the bridge may read"
        return error

    def refused(self, token: str) -> bool:
        with self._lock, contextlib.suppress(OSError, UnicodeDecodeError, ConfigurationError):
            self._token = self._read() or self._token
            return self._token != token
        return False

    def _stamp(self) -> tuple[int, int, int]:
        stat = os.stat(self._path)  # noqa: PTH116 - on every request: a Path costs more than the call
        return stat.st_mtime_ns, stat.st_ino, stat.st_size

    def generation(self) -> object:
        with contextlib.suppress(OSError):
            return self._stamp()
        return None

    def _read(self) -> str:
        return checked(Path(self._path).read_text("utf-8").strip(), f"token file {self._path}")

    def secrets(self) -> tuple[str, ...]:
        return (self._token,)

    def close(self) -> None:
        """Nothing was made."""


def checked(token: str, what: str) -> str:
    """`token`, if it can stand in a header. Raises ConfigurationError."""
    if any(not "!" <= c <= "~" for c in token):
        raise ConfigurationError(f"Consul's {what} has characters in it that no token has (blanks, line ends)")
    return token


@dataclass(frozen=True, slots=True)
class Session:
    """A token that a login gave. Times of the monotonic clock; None: it does not expire."""

    secret: str
    renew_at: float | None = None
    ends_at: float | None = None


Ask = Callable[[str, str, Mapping[str, str], bytes], Any]
"""POST: what for (in words), path, headers, body; returns the decoded answer. Raises BridgeError."""


class Login:
    """Logs in by an auth method, again before the token ends, and out at a clean stop.

    Consul cannot lengthen a token's life: a renewal is another login. The old token is not logged out then: queries
    that wait may still use it, and it ends by itself.
    """

    def __init__(
        self, method: str, jwt_file: str, ask: Ask, clock: Callable[[], float] = time.monotonic, meta: str = ""
    ) -> None:
        self._method = method
        self._jwt_file = jwt_file
        self._ask = ask
        self._clock = clock
        self._meta = meta
        self._turn = threading.Lock()
        self._now: Session | None = None
        self._before: list[Session] = []
        self._jwt = ""
        self._failure: tuple[float, BridgeError] | None = None
        self._closed = False

    def token(self) -> str:
        """See Credentials. Logs in when there is no token, or when the current one expires soon."""
        session, now = self._now, self._clock()
        if session is not None and (session.renew_at is None or now < session.renew_at):
            return session.secret
        if session is not None and session.ends_at is not None and now < session.ends_at:
            if self._turn.acquire(blocking=False):  # other threads go on with the current token
                try:
                    self._renew(session)
                finally:
                    self._turn.release()
            current = self._now
            return current.secret if current is not None else session.secret
        with self._turn:
            current = self._now
            return (self._log_in() if current is None or current is session else current).secret

    def refused(self, token: str) -> bool:
        """Whether there is another token, after a new login where `token` was the current one."""
        with self._turn:
            if self._now is not None and self._now.secret == token:
                self._now = None
                self._failure = None
            if self._now is None:
                with contextlib.suppress(BridgeError):
                    self._log_in()
            return self._now is not None

    @property
    def failure(self) -> str | None:
        return str(self._failure[1]) if self._failure is not None else None

    def secrets(self) -> tuple[str, ...]:
        sessions = [*self._before, *([self._now] if self._now is not None else [])]
        return (self._jwt, *(session.secret for session in sessions))

    def generation(self) -> object:
        session = self._now
        return None if session is None else session.secret

    def close(self) -> None:
        """Log out, as far as Consul can be reached. No token is given any more."""
        with self._turn:
            self._closed = True
            now = self._clock()
            sessions = [s for s in (*self._before, self._now) if s is not None and (s.ends_at or now + 1) > now]
            self._before, self._now = [], None
        for session in sessions:
            with contextlib.suppress(BridgeError):
                self._ask("log out", "/v1/acl/logout", {"X-Consul-Token": session.secret}, b"")

    def _renew(self, session: Session) -> None:
        """Log in again; while the current token is valid, a failure only means: try again a little later."""
        try:
            if self._now is session:
                self._log_in()
        except CancelledError:
            raise
        except BridgeError:
            self._now = Session(session.secret, self._clock() + AGAIN_SECONDS, session.ends_at)

    def _log_in(self) -> Session:
        if self._closed:
            raise CancelledError("stopping: no login any more")
        now = self._clock()
        if self._failure is not None and now - self._failure[0] < SAME_FAILURE_SECONDS:
            raise copy.copy(self._failure[1])
        try:
            answer = self._ask(
                f"log in by auth method {self._method!r}", "/v1/acl/login", {}, json.dumps(self._body()).encode()
            )
            session = self._session_of(answer, now)
        except BridgeError as error:
            self._failure = (self._clock(), error)
            raise
        self._failure = None
        if self._now is not None:
            self._before = [s for s in self._before if s.ends_at is not None and s.ends_at > now] + [self._now]
        self._now = session
        return session

    def _body(self) -> dict[str, Any]:
        try:
            self._jwt = Path(self._jwt_file).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            problem = PermanentError(
                f"the token for Consul's auth method {self._method!r} cannot be read from {self._jwt_file}: {why}"
            )
            problem.remedy = "consul.auth_token_file: the path of the projected service account token"
            raise problem from None
        return {
            "AuthMethod": self._method,
            "BearerToken": self._jwt,
            "Meta": {"client": self._meta} if self._meta else {},
        }

    def _session_of(self, answer: Any, asked_at: float) -> Session:
        secret = answer.get("SecretID") if isinstance(answer, dict) else None
        if not isinstance(secret, str) or not secret:
            raise TransientError(f"the login by auth method {self._method!r} gave no token: is that Consul?")
        checked(secret, "token of the login")
        begin, end = moment(answer.get("CreateTime")), moment(answer.get("ExpirationTime"))
        if begin is None or end is None or end <= begin:
            return Session(secret)
        life = (end - begin).total_seconds()
        return Session(secret, asked_at + life * RENEW_AFTER, asked_at + life)


def moment(text: object) -> datetime | None:
    """A time of Consul's (Go's RFC 3339, with nanoseconds); None for none. Go's zero time has the year 1."""
    if not isinstance(text, str):
        return None
    head, dot, tail = text.partition(".")
    if dot:
        digits = len(tail) - len(tail.lstrip("0123456789"))
        text = f"{head}.{tail[:digits][:6]:0<6}{tail[digits:]}"
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.year > 1 and moment.tzinfo is not None else None
