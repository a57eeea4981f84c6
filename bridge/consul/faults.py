"""What Consul or the way to it can answer instead of yes, and what that means for the caller: one table.

| what came back | becomes | because |
| --- | --- | --- |
| 500 "Failed to create boolean expression evaluator" | PermanentError | names the filter: a 5xx that stays one |
| 500 "No path to datacenter" | PermanentError | names the datacenter (a remote one may come back: ask again, slowly) |
| 401, 403 "ACL not found" | PermanentError | the token is unknown or was deleted |
| other 403 | PermanentError | says which policy suffices |
| 400 "HTTP request to an HTTPS server" | PermanentError | the address must say https:// |
| other 400, 404, 3xx, 4xx | PermanentError | Consul's own words, trimmed: the address or the request is wrong |
| 429 | ThrottledError | the body says which of the three causes it is; Retry-After |
| other 5xx | TransientError | no leader, no servers, RPC errors; Retry-After when there is one |
| no connection, reset, timeout, torn or oversized body | TransientError | Consul may come back |
| body that is not JSON, index that is no number | TransientError | something else answered, or the answer is torn |
| certificate refused, no TLS there | PermanentError | the address or the CA must be mended |

Texts are written for the user, trimmed to one line, and free of the token.
"""

from __future__ import annotations

import http.client
import math
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

from bridge.consul.transport import TooLarge
from bridge.errors import BridgeError, PermanentError, ThrottledError, TransientError

TEXT_LIMIT = 300
"""Characters of Consul's message that are shown."""

ENOUGH_POLICY = 'service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }'
"""The ACL policy that suffices for the bridge (FACTS-consul A6)."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as far as error texts need it."""

    what: str
    server: str
    datacenter: str = ""
    filter: str = ""
    anonymous: bool = False
    secrets: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.what} in {self.datacenter}" if self.datacenter else self.what


def redact(text: str, secrets: tuple[str, ...]) -> str:
    """`text` without the given secrets."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "<hidden>")
    return text


def trim(text: str, limit: int = TEXT_LIMIT) -> str:
    """One line of at most `limit` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks us to wait, at most five minutes; dates are not Consul's way."""
    try:
        seconds = float(headers.get("Retry-After") or "")
    except ValueError:
        return None
    return min(max(seconds, 0.0), 300.0) if math.isfinite(seconds) else None


def of_answer(asked: Asked, code: int, headers: Mapping[str, str], body: bytes) -> BridgeError:
    """The error for an answer whose status is not 200."""
    said = trim(redact(body[: 8 * TEXT_LIMIT].decode("utf-8", "replace"), asked.secrets)) or "no text"
    where = f"Consul ({asked.server})"
    match code:
        case 500 if "Failed to create boolean expression evaluator" in said:
            problem = said.partition("evaluator:")[2].strip()
            return PermanentError(f"Consul cannot use the filter {asked.filter!r}: {problem}")
        case 500 if "No path to datacenter" in said:
            return PermanentError(
                f"Consul ({asked.server}) knows no way to the datacenter {asked.datacenter!r}: is its name right, and "
                "are its servers joined? (consul members -wan)"
            )
        case 401 | 403:
            return _forbidden(asked, said, where)
        case 400 if "HTTP request to an HTTPS server" in said:
            return PermanentError(f"{asked.server} speaks TLS: write https:// in Consul's address")
        case 404:
            return PermanentError(f"{where} answers 404 to {asked}: is that the address of Consul's HTTP API? ({said})")
        case 429:
            return ThrottledError(
                f"{where} asks us to be slower (429) at {asked}: {said}", retry_after_seconds=retry_after(headers)
            )
        case _ if code >= 500:
            return TransientError(
                f"{where} answers {code} to {asked}: {said}", retry_after_seconds=retry_after(headers)
            )
        case _:
            return PermanentError(f"{where} refuses {asked} ({code}): {said}")


def _forbidden(asked: Asked, said: str, where: str) -> PermanentError:
    if "ACL not found" in said:
        return PermanentError(f"{where} does not know our token (403, {said}): it was deleted or is another cluster's")
    who = "a request without token" if asked.anonymous else "our token"
    return PermanentError(f"{where} forbids {who} {asked}: {said}. A policy that suffices: {ENOUGH_POLICY}")


def of_exception(asked: Asked, error: BaseException) -> BridgeError:
    """The error for a request that got no usable answer; `error` is http.client's, ssl's or the socket's."""
    server = asked.server
    match error:
        case ssl.SSLCertVerificationError():
            return PermanentError(
                f"the certificate of {server} is not trusted: {trim(error.verify_message or str(error))}. "
                "Check the CA file and the TLS server name"
            )
        case ssl.SSLEOFError():
            return TransientError(f"the connection to {server} broke during {asked}")
        case ssl.SSLError() if any(m in str(error) for m in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")):
            return PermanentError(f"{server} does not speak TLS: wrong port, or write http:// in Consul's address")
        case ssl.SSLError() if "CERTIFICATE" in str(error):
            return PermanentError(f"{server} refuses our client certificate: {trim(_reason(error))}")
        case ssl.SSLError():
            return TransientError(f"the TLS connection to {server} broke: {trim(_reason(error))}")
        case socket.gaierror():
            return TransientError(f"the name of {server} cannot be resolved: {error.strerror}")
        case FileNotFoundError():
            return TransientError(f"there is no socket at {server}: no agent is listening there")
        case PermissionError():
            return PermanentError(f"we may not use the socket at {server}: {error.strerror}")
        case ConnectionRefusedError():
            return TransientError(f"{server} refuses connections: no Consul agent is listening there")
        case TimeoutError():
            return TransientError(f"{server} did not answer in time: {asked}")
        case TooLarge():
            return TransientError(f"{asked}: {error} (from {server})")
        case http.client.IncompleteRead():
            return TransientError(f"the answer of {server} to {asked} was torn off")
        case http.client.RemoteDisconnected() | ConnectionError():
            return TransientError(f"the connection to {server} broke during {asked}")
        case http.client.HTTPException():
            return TransientError(f"{server} does not answer in HTTP to {asked}: {trim(repr(error))}")
        case _:
            text = trim(redact(str(error), asked.secrets)) or type(error).__name__
            return TransientError(f"{asked} failed at {server}: {text}")


def _reason(error: ssl.SSLError) -> str:
    return getattr(error, "reason", None) or str(error)
