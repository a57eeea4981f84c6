"""What Consul or the way to it can answer instead of yes, and what that means for the caller: one table.

| what came back | becomes | because |
| --- | --- | --- |
| 500 "Failed to create boolean expression evaluator" | PermanentError | names the filter: a 5xx that stays one |
| 500 "No path to datacenter" | UnreachableError | names the datacenter (it may come back: ask again, slowly) |
| 401 with WWW-Authenticate | PermanentError | a proxy or balancer in front of Consul wants a user and password |
| 401, 403 "ACL not found" | PermanentError | the token is unknown or was deleted |
| other 403 | PermanentError | says which policy suffices |
| 400 "HTTP request to an HTTPS server" | PermanentError | the address must say https:// |
| other 400, 404, 3xx, 4xx | PermanentError | Consul's own words, trimmed: the address or the request is wrong |
| 407 | PermanentError | the proxy wants a user and password |
| 429 | ThrottledError | the body says which of the three causes it is; Retry-After |
| 502, 503, 504 | TransientError | not Consul's own statuses: a proxy in front of it answers so |
| other 5xx | TransientError | no leader, no servers, RPC errors; Retry-After when there is one |
| no connection, reset, timeout, torn or oversized body | TransientError | Consul may come back |
| body that is not JSON, index that is no number | TransientError | something else answered, or the answer is torn |
| certificate refused, no TLS there | PermanentError | the address or the CA must be fixed |
| the proxy is not there or refuses | TransientError | it may come back; its variable is named |

Texts are written for the user, trimmed to one line, and free of the token. Each error's `remedy` fits its cause.
"""

from __future__ import annotations

import http.client
import math
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from bridge.consul.transport import ProxyError, TooLarge
from bridge.errors import BridgeError, PermanentError, ThrottledError, TransientError, UnreachableError

E = TypeVar("E", bound=BridgeError)

NAME_MISMATCH, EXPIRED = frozenset({62, 64}), 10
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH and _CERT_HAS_EXPIRED."""

FILTERS = "rules[].filter (or --filter)"
GATEWAY = "the proxy or balancer in front of Consul, and its log"

TEXT_LIMIT = 300
"""Characters of Consul's message that are shown."""

ENOUGH_POLICY = 'service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }'
"""The ACL policy that suffices for the bridge (docs/consul.md, What a token may see)."""

TOKENS = "--token-file FILE or CONSUL_HTTP_TOKEN"
"""How the bridge is given a token."""


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """A request as far as error texts need it."""

    what: str
    server: str
    datacenter: str = ""
    filter: str = ""
    anonymous: bool = False
    authorized: bool = False
    ca_path: bool = False
    """Whether `consul.ca_path` says whom to trust, not `consul.ca_file`."""
    secrets: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.what} in {self.datacenter}" if self.datacenter else self.what


def redact(text: str, secrets: tuple[str, ...]) -> str:
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


def of_answer(asked: RequestInfo, code: int, headers: Mapping[str, str], body: bytes) -> BridgeError:
    """The error for an answer whose status is not 200."""
    said = trim(redact(bytes(body[: 8 * TEXT_LIMIT]).decode("utf-8", "replace"), asked.secrets)) or "no text"
    where = f"Consul ({asked.server})"
    match code:
        case 500 if "Failed to create boolean expression evaluator" in said:
            problem = said.partition("evaluator:")[2].strip()
            return _permanent(f"Consul cannot use the filter {asked.filter!r}: {problem}", FILTERS)
        case 500 if "No path to datacenter" in said:
            pathless = UnreachableError(
                f"Consul ({asked.server}) knows no way to the datacenter {asked.datacenter!r}: is its name right, and "
                "are its servers joined? (consul members -wan)"
            )
            return _with_remedy(pathless, "--datacenter, rules[].datacenters, or consul.datacenters")
        case 401 if headers.get("WWW-Authenticate"):
            return _wants_credentials(asked, headers["WWW-Authenticate"], where)
        case 401 | 403:
            return _forbidden(asked, said, where)
        case 400 if "HTTP request to an HTTPS server" in said:
            return _permanent(
                f"{asked.server} speaks TLS: write https:// in Consul's address", "https:// in consul.address"
            )
        case 404 if asked.server.endswith("/v1"):
            return _permanent(
                f"{where} answers 404 to {asked}: the address ends in /v1, which the bridge adds by itself: "
                "leave it out",
                "consul.address without the /v1 at its end",
            )
        case 404:
            return _permanent(
                f"{where} answers 404 to {asked}: is that the address of Consul's HTTP API? ({said})",
                "consul.address: its host, its port, and its path where Consul is behind a proxy",
            )
        case 407:
            return _permanent(
                f"the proxy in front of {asked.server} asks for a user and password (407)",
                "HTTP_PROXY=http://USER:PASSWORD@HOST:PORT, or NO_PROXY",
            )
        case 429:
            return _with_remedy(
                ThrottledError(
                    f"{where} asks us to be slower (429) at {asked}: {said}", retry_after_seconds=retry_after(headers)
                ),
                "consul.connections, or Consul's limits (http_max_conns_per_client, request_limits)",
            )
        case _ if code >= 500:
            error = TransientError(
                f"{where} answers {code} to {asked}: {said}", retry_after_seconds=retry_after(headers)
            )
            return _with_remedy(error, GATEWAY if code in (502, 503, 504) else "consul members; consul monitor")
        case 301 | 302 | 307 | 308 if headers.get("Location"):
            place = trim(redact(headers["Location"], asked.secrets))
            return _permanent(f"{where} refers {asked} to {place} ({code})", "consul.address: where it refers to")
        case _:
            return _permanent(f"{where} refuses {asked} ({code}): {said}", "consul.address")


def is_unreachable(error: BridgeError) -> bool:
    """Whether a datacenter does not answer, rather than that it refuses something or wants us to be slower."""
    return isinstance(error, TransientError | UnreachableError) and not isinstance(error, ThrottledError)


def of_login(asked: RequestInfo, code: int, headers: Mapping[str, str], body: bytes) -> BridgeError:
    """The error for a login or logout whose status is not 200."""
    error = of_answer(asked, code, headers, body)
    said = trim(redact(bytes(body[: 8 * TEXT_LIMIT]).decode("utf-8", "replace"), asked.secrets)) or "no text"
    invalid = code == 500 and any(
        word in said for word in ("claim", "auditing", "validation", "bearer token")
    )  # 1.22 says so with 500
    if (code not in (400, 403, 404) and not invalid) or headers.get("WWW-Authenticate"):
        return error
    return _permanent(
        f"Consul ({asked.server}) refuses to {asked} ({code}): {said}. Check that the auth method exists, that it "
        "accepts the token's issuer and audience, and that a binding rule matches the service account",
        "consul acl auth-method read; consul acl binding-rule list",
    )


def _permanent(text: str, remedy: str) -> PermanentError:
    return _with_remedy(PermanentError(text), remedy)


def _transient(text: str, remedy: str) -> TransientError:
    return _with_remedy(TransientError(text), remedy)


def _with_remedy(error: E, remedy: str) -> E:
    error.remedy = remedy
    return error


def _wants_credentials(asked: RequestInfo, challenge: str, where: str) -> PermanentError:
    """Consul itself never asks for credentials by that header."""
    scheme, _, rest = trim(redact(challenge, asked.secrets), 100).partition(" ")
    if scheme.lower() != "basic":
        return _permanent(
            f"{where} answers 401 to {asked}: something in front of Consul wants {scheme} credentials "
            f"({rest.strip()}), which are not supported",
            "an address that leads to Consul itself, or Basic authentication in front of it (consul.http_auth)",
        )
    refused = "refuses the user and password of consul.http_auth" if asked.authorized else "wants a user and password"
    return _permanent(
        f"{where} answers 401 to {asked}: something in front of Consul {refused} ({scheme} {rest.strip()})",
        "consul.http_auth (CONSUL_HTTP_AUTH=USER:PASSWORD)",
    )


def _forbidden(asked: RequestInfo, said: str, where: str) -> PermanentError:
    if "ACL not found" in said:
        return _permanent(
            f"{where} does not know our token (403, {said}): it was deleted, has expired, or is another cluster's",
            "consul.token_file with a token of this Consul, or consul.auth_method",
        )
    who = "a request without token" if asked.anonymous else "our token"
    how = f"{TOKENS}: " if asked.anonymous else ""
    return _permanent(
        f"{where} forbids {who} {asked}: {said}. A policy that suffices: {ENOUGH_POLICY}",
        f"{how}a token with: {ENOUGH_POLICY}",
    )


def of_exception(asked: RequestInfo, error: BaseException) -> BridgeError:
    """The error for a request that got no usable answer; `error` is http.client's, ssl's or the socket's."""
    server = asked.server
    match error:
        case ProxyError():
            text = trim(str(error), 500)
            return _transient(f"{asked}: {text}", "the proxy's variable, or NO_PROXY")
        case ssl.SSLCertVerificationError():
            return _not_trusted(asked, error)
        case ssl.SSLEOFError():
            return _transient(f"the connection to {server} broke during {asked}", GATEWAY)
        case ssl.SSLError() if any(m in str(error) for m in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")):
            return _permanent(
                f"{server} does not speak TLS: wrong port, or write http:// in Consul's address",
                "consul.address: http://, or the port of Consul's HTTPS API",
            )
        case ssl.SSLError() if any(m in str(error) for m in ("CERTIFICATE", "UNKNOWN_CA")):
            return _permanent(
                f"{server} refuses our client certificate: {trim(_reason(error))}",
                "consul.client_cert and consul.client_key, of the CA that Consul verifies clients with",
            )
        case ssl.SSLError():
            return _transient(f"the TLS connection to {server} broke: {trim(_reason(error))}", "consul.address")
        case socket.gaierror():
            return _transient(
                f"the name of {server} cannot be resolved: {error.strerror}", "the host in consul.address, or DNS"
            )
        case FileNotFoundError():
            return _transient(
                f"there is no socket at {server}: no agent is listening there", "consul.address, or start the agent"
            )
        case PermissionError():
            return _permanent(
                f"we may not use the socket at {server}: {error.strerror}", "the socket's owner and mode (unix_sockets)"
            )
        case ConnectionRefusedError():
            return _transient(
                f"{server} refuses connections: no Consul agent is listening there",
                "--consul-address, or start the agent",
            )
        case TimeoutError():
            return _transient(
                f"{server} did not answer in time: {asked}",
                "consul.address; a firewall or network policy on the way; the agent's load",
            )
        case TooLarge():
            return _transient(f"{asked}: {error} (from {server})", "consul.max_answer, with memory to match")
        case http.client.IncompleteRead():
            return _transient(f"the answer of {server} to {asked} was torn off", GATEWAY)
        case http.client.RemoteDisconnected() | ConnectionError():
            return _transient(f"the connection to {server} broke during {asked}", GATEWAY)
        case http.client.HTTPException():
            return _transient(f"{server} does not answer in HTTP to {asked}: {trim(repr(error))}", "consul.address")
        case _:
            text = trim(redact(str(error), asked.secrets)) or type(error).__name__
            return _transient(f"{asked} failed at {server}: {text}", "consul.address")


def _not_trusted(asked: RequestInfo, error: ssl.SSLCertVerificationError) -> PermanentError:
    server = asked.server
    why = trim(error.verify_message or str(error)).rstrip(".")
    if error.verify_code in NAME_MISMATCH:
        return _permanent(
            f"the certificate of {server} is not trusted: {why}. It bears another name: set consul.tls_server_name",
            "consul.tls_server_name (CONSUL_TLS_SERVER_NAME)",
        )
    if error.verify_code == EXPIRED:
        return _permanent(f"the certificate of {server} is not trusted: {why}. Renew it", "renew Consul's certificate")
    setting, variable = ("consul.ca_path", "CONSUL_CAPATH") if asked.ca_path else ("consul.ca_file", "CONSUL_CACERT")
    what = "DIRECTORY" if asked.ca_path else "FILE"
    return _permanent(
        f"the certificate of {server} is not trusted: {why}. Name the CA that signed it: {setting} ({variable}={what})",
        f"{setting} ({variable}={what}): the CA of Consul's certificate",
    )


def _reason(error: ssl.SSLError) -> str:
    return getattr(error, "reason", None) or str(error)
