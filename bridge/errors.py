"""The few exceptions of the bridge, by what the caller can do about them.

The client libraries' own exceptions stop in `consul/` and `kube/`; what comes out of there is one of these, its cause
chained, its text trimmed and free of secrets.
"""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """What a command ends with. Interrupted is 128 + the signal's number, as shells have it."""

    OK = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    CHANGES = 4
    CONFLICT = 5
    INTERRUPTED = 130
    TERMINATED = 143


class BridgeError(Exception):
    """Root of everything that the bridge raises on purpose; its text is written for the user.

    What is quoted in it may come from anyone: no control character of theirs reaches a terminal or a log.
    `remedy` is how to fix it, for `bridge check`; empty where the text already says all there is to say.
    """

    remedy: str = ""

    def __str__(self) -> str:
        text = super().__str__()
        return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


class ConfigurationError(BridgeError):
    """The user's settings, rules or arguments cannot be used (exit status 2). Names the place and how to fix it."""


class TransientError(BridgeError):
    """Worth trying again with backoff: unreachable, timeout, 5xx, 429.

    `retry_after_seconds` is what the server asked for, if it did (HTTP `Retry-After`).
    `fault_of_server` is False when only the one object or request is at fault (conflict on one object, say), so
    that a whole side is not declared down for it.
    """

    def __init__(self, message: str, *, retry_after_seconds: float | None = None, fault_of_server: bool = True) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        self.fault_of_server = fault_of_server


class PermanentError(BridgeError):
    """Not worth retrying hot: forbidden, invalid, unknown datacenter, bad filter. Says what to do."""


class UnreachableError(PermanentError):
    """No way leads there (a datacenter, whose servers our Consul does not see); it may come back by itself."""


class CredentialsError(PermanentError):
    """Our credentials are not accepted (401): nothing can be done with that side until the credentials are renewed."""


class ForbiddenError(PermanentError):
    """We may not (403): a right is missing for this verb, kind and namespace; others may well be granted."""


class AlteredError(PermanentError):
    """The API server took what was written and stored something else: an admission webhook or policy changes it.

    `stored` is what exists there now (whatever the layer below decodes it to): that is the state from now on.
    """

    def __init__(self, message: str, stored: object) -> None:
        super().__init__(message)
        self.stored = stored


class StaleError(TransientError):
    """An object changed (or came, or went) since it was read: read it again, decide again."""

    def __init__(self, message: str) -> None:
        super().__init__(message, fault_of_server=False)


class CancelledError(BridgeError):
    """The wait or request was ended by a shutdown."""


class NotLeadingError(CancelledError):
    """Another replica writes this object now; nothing was sent."""


class ConflictError(BridgeError):
    """An object of that name belongs to another owner. It was not touched, and is compared again when it changes."""


class ThrottledError(TransientError):
    """The server asked us to be slower (429): fewer requests at once from now on."""
