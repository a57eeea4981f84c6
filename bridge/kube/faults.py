"""The failed answers of the API server, or of the path to it, and the error that each becomes: one table.

| what came back | becomes | because |
| --- | --- | --- |
| 401 | CredentialsError | credentials are missing, wrong or expired: backoff does not fix them |
| 403 "cannot VERB resource", or to a read | ForbiddenError | names verb, resource and namespace, and the command \
that grants them |
| other 403 to a write | PermanentError | a namespace that is being deleted, a quota, an admission policy: no Role \
helps; the server's words first |
| 404 of a namespace | PermanentError | a user must create the namespace |
| other 404, 400, 405, 415, 422 | PermanentError | the request itself is wrong: the server's own words, trimmed |
| 409 | StaleError | the object changed, came or went since it was read |
| 410 | StaleError | a list or watch position that the server has forgotten: list again |
| 429 | ThrottledError | with Retry-After |
| 500 "failed to create typed patch object" | PermanentError | a 5xx that stays one (docs/kubernetes.md) |
| other 5xx | TransientError | with Retry-After when there is one |
| no connection, reset, timeout | TransientError | the server may come back |
| TLS certificate refused, no TLS there | PermanentError | the address or the CA must be fixed |

Texts are written for the user, trimmed, and `redact`ed: neither tokens nor passwords get out of here.
"""

from __future__ import annotations

import contextlib
import json
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bridge.core.redact import HIDDEN, redacted
from bridge.errors import (
    BridgeError,
    CredentialsError,
    ForbiddenError,
    PermanentError,
    StaleError,
    ThrottledError,
    TransientError,
)
from bridge.json_shape import Body
from bridge.kube.rbac import ANONYMOUS, grant

TEXT_LIMIT = 400
"""Characters of a server's message that are shown: an Endpoints object with 1,000 bad addresses has 1,000 causes."""

_RESOURCE = re.compile(
    r"^/(?:api/v1|apis/(?P<group>[^/]+)/[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[a-z]+)(?:/(?P<name>[^/?]+))?$"
)
_MISSING_NAMESPACE = re.compile(r'^namespaces "([^"]+)" not found')
_USER = re.compile(r'User "([^"]+)" cannot ')
_MISSING_VERB = re.compile(r'cannot (\w+) resource "([^"]+)" in API group "([^"]*)"(?: in the namespace "([^"]*)")?')
_NO_REASON = "is forbidden:"
"""What Kubernetes 1.27 says, and nothing after it, when an apply may not create an absent object. Of a missing `patch`
it says the whole sentence, and so do newer ones of both (docs/compatibility.md)."""


class NoApiServerError(PermanentError):
    """Something answers, but not an API server: the address or its path is wrong."""


_TUNNEL = re.compile(r"(?<=Tunnel connection failed: )(\d{3})[^\n'\")]*")

_VERBS = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """A request as far as error texts need it."""

    method: str
    path: str
    server: str
    watching: bool = False
    proxy: str = ""
    """The proxy on the way and what names it, "" for none."""

    @property
    def verb(self) -> str:
        if self.method == "GET":
            if self.watching:
                return "watch"
            return "get" if self.part("name") else "list"
        return _VERBS.get(self.method, self.method.lower())

    def part(self, name: str) -> str:
        """`group`, `namespace`, `resource` or `name` of the path, "" when it has none."""
        found = _RESOURCE.match(self.path)
        return (found.group(name) or "") if found else ""

    def __str__(self) -> str:
        resource, name, namespace = self.part("resource"), self.part("name"), self.part("namespace")
        if not resource:
            return f"{self.method} {self.path}"
        what = f"{self.verb} {resource}" + (f" {name}" if name else "")
        return f"{what} in namespace {namespace}" if namespace else what


def redact(text: str, secrets: tuple[str, ...] = ()) -> str:
    """`text` without credentials: the given ones and whatever looks like one."""
    for secret in secrets:
        if len(secret) >= 4:
            text = text.replace(secret, HIDDEN)
    return redacted(text)


def trim(text: str, limit: int = TEXT_LIMIT) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def status_of(body: Body) -> dict[str, Any]:
    """The Status object of an answer, {} when the body is something else (a proxy's page, plain text)."""
    with contextlib.suppress(ValueError):
        found = json.loads(body)
        if isinstance(found, dict) and found.get("kind") == "Status":
            return found
    return {}


def causes_of(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """`details.causes` of a Status object."""
    details = status.get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    return [c for c in causes if isinstance(c, dict)] if isinstance(causes, list) else []


def retry_after(headers: Mapping[str, str], status: Mapping[str, Any]) -> float | None:
    """Seconds that the server asks us to wait: header first, else the Status object's."""
    details = status.get("details")
    asked = headers.get("Retry-After") or (details.get("retryAfterSeconds") if isinstance(details, dict) else None)
    try:
        seconds = float(asked) if asked is not None else None
    except (TypeError, ValueError):
        return None
    return min(max(seconds, 0.0), 300.0) if seconds is not None else None


def _by_way_of_proxy(asked: RequestInfo, error: BridgeError) -> BridgeError:
    """The error, naming the proxy that the request went through: it may be the cause."""
    if asked.proxy and asked.proxy not in str(error):
        error.args = (f"{error} (by way of {asked.proxy})", *error.args[1:])
    return error


def of_answer(
    asked: RequestInfo, code: int, headers: Mapping[str, str], body: Body, secrets: tuple[str, ...] = ()
) -> BridgeError:
    """The error for an answer with status `code` >= 400."""
    return _by_way_of_proxy(asked, _of_answer(asked, code, headers, body, secrets))


def _of_answer(
    asked: RequestInfo, code: int, headers: Mapping[str, str], body: Body, secrets: tuple[str, ...]
) -> BridgeError:
    status = status_of(body)
    raw = str(status.get("message") or body[: 4 * TEXT_LIMIT].decode("utf-8", "replace"))
    said = trim(redact(raw, secrets)) or f"HTTP {code}"
    where = f"Kubernetes ({asked.server})"
    match code:
        case 401:
            return CredentialsError(
                f"{where} refuses our credentials (401) for {asked}: they are missing, wrong or expired. "
                "Renew them, or choose another --context"
            )
        case 403:
            return _forbidden(asked, said, where, status)
        case 404 if status.get("reason") == "NotFound" and (missing := _MISSING_NAMESPACE.match(raw)):
            name = missing.group(1)
            return PermanentError(f'namespace "{name}" does not exist: create it (kubectl create namespace {name})')
        case 404 if not status:
            return NoApiServerError(
                f"{asked}: {asked.server} answers 404 without a Kubernetes status: is that the API server's address?"
            )
        case 409:
            return StaleError(f"{asked}: {said}")
        case 410:
            return StaleError(f"{asked}: that position is too old: {said}")
        case 429:
            return ThrottledError(
                f"{where} asks us to be slower (429) at {asked}: {said}",
                retry_after_seconds=retry_after(headers, status),
            )
        case 500 if "failed to create typed patch object" in raw:
            return PermanentError(f"{asked} is refused, the object does not fit its schema: {said}")
        case _ if code >= 500:
            return TransientError(
                f"{where} answers {code} to {asked}: {said}", retry_after_seconds=retry_after(headers, status)
            )
        case 400 if "HTTP request to an HTTPS server" in raw:
            return PermanentError(f"{asked.server} speaks TLS: write https:// in the kubeconfig's server")
        case _:
            return PermanentError(f"{asked} is refused ({code}): {said}")


def _forbidden(asked: RequestInfo, said: str, where: str, status: Mapping[str, Any]) -> PermanentError:
    """403 names what is missing by itself: an apply that would create lacks `create`, not `patch`.

    Admission answers 403 as well, and no Role helps with that. Authorizers say `cannot VERB resource`.
    """
    verb, resource, group, namespace = asked.verb, asked.part("resource"), asked.part("group"), asked.part("namespace")
    if found := _MISSING_VERB.search(said):
        verb, resource, group, namespace = found.group(1), found.group(2), found.group(3), found.group(4) or namespace
    elif asked.method == "PATCH" and said.rstrip().endswith(_NO_REASON):
        verb = "create"
    elif any(cause.get("reason") == "NamespaceTerminating" for cause in causes_of(status)):
        return PermanentError(
            f"{said} ({asked}): nothing can be made in a namespace that is being deleted; kubectl get namespace "
            f"{namespace} -o yaml shows what it waits for"
        )
    elif asked.method != "GET":
        return PermanentError(f"{said} ({where} refuses {asked} with 403, and names no right that is missing)")
    if not resource:
        return ForbiddenError(f"{where} forbids {asked}: {said}")
    scope = f"in namespace {namespace}" if namespace else "in all namespaces"
    role = "Role" if namespace else "ClusterRole"
    full, user = f"{resource}.{group}" if group else resource, _USER.search(said)
    if user is not None and user.group(1) == ANONYMOUS:
        return ForbiddenError(
            f"{where} forbids us to {verb} {resource} {scope}, for it takes us for {ANONYMOUS}: no credential that "
            f"counts was sent. Give the context's user a token, a client certificate or an exec plugin. Server: {said}"
        )
    commands = grant(f"consul-bridge-{verb}-{resource}", verb, full, namespace, user.group(1) if user else "")
    return ForbiddenError(
        f"{where} forbids us to {verb} {resource} {scope}. Grant it with a {role} and a {role}Binding: {commands}. "
        f"Server: {said}"
    )


def of_exception(asked: RequestInfo, error: BaseException, secrets: tuple[str, ...] = ()) -> BridgeError:
    """The error for a request that got no answer; `error` is urllib3's, ssl's or the socket's."""
    return _by_way_of_proxy(asked, _of_exception(asked, error, secrets))


def _of_exception(asked: RequestInfo, error: BaseException, secrets: tuple[str, ...]) -> BridgeError:
    from urllib3 import exceptions as u3

    chain = _chain(error)
    said = trim(redact(str(error), secrets), 200)
    for link in chain:
        if isinstance(link, ssl.SSLCertVerificationError):
            why = trim((link.verify_message or str(link)).rstrip("."), 200)
            return PermanentError(
                f"the certificate of {asked.server} is not trusted: {why}. "
                "Check certificate-authority (or tls-server-name) of the cluster in the kubeconfig"
            )
    text = " ".join(str(link) for link in chain)
    if any(mark in text for mark in ("WRONG_VERSION_NUMBER", "wrong version number", "record layer failure")):
        return PermanentError(
            f"{asked.server} does not speak TLS: wrong port, or write http:// in the kubeconfig's server"
        )
    if any(mark in text for mark in ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "ALERT_BAD_CERTIFICATE", "ALERT_UNKNOWN_CA")):
        return PermanentError(f"{asked.server} refuses our client certificate: {said}")
    if any(isinstance(link, u3.LocationParseError | u3.LocationValueError | u3.URLSchemeUnknown) for link in chain):
        return PermanentError(f"{asked.server} is no address of an API server: {said}")
    if any(isinstance(link, u3.NameResolutionError) for link in chain):
        return TransientError(f"the name of {asked.server} cannot be resolved")
    if asked.proxy and (told := _of_proxy(asked, text, chain)) is not None:
        return told
    if any(isinstance(link, ConnectionRefusedError) for link in chain):
        return TransientError(f"{asked.server} refuses connections: no API server is listening there")
    if any(isinstance(link, u3.ConnectTimeoutError) for link in chain):
        return TransientError(f"{asked.server} cannot be reached: connecting took too long")
    if any(isinstance(link, u3.TimeoutError | TimeoutError) for link in chain):
        return TransientError(f"{asked.server} did not answer in time: {asked}")
    return TransientError(f"the connection to {asked.server} broke during {asked}: {said or type(error).__name__}")


def _of_proxy(asked: RequestInfo, text: str, chain: list[BaseException]) -> BridgeError | None:
    """What went wrong between us and the proxy, or in it; None when that cannot be determined."""
    if any(isinstance(link, ConnectionRefusedError) for link in chain):
        return TransientError(f"{asked.server} cannot be asked: {asked.proxy} refuses connections")
    if found := _TUNNEL.search(text):
        code = int(found.group(1))
        said = f"{asked.server} cannot be asked: {asked.proxy} answers {trim(found.group(0), 100)} to CONNECT"
        if code == 407:
            return CredentialsError(f"{said}; write its user and password into the proxy's URL")
        return PermanentError(f"{said}; the proxy has to allow it") if code < 500 else TransientError(said)
    return None


def remedy(error: BridgeError, where: str, proxy: str = "") -> str:
    """What helps when the API server cannot be used; `where`: the credentials' source, `proxy`: on the way, or ""."""
    from urllib3 import exceptions as u3

    chain = _chain(error)

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    if proxy and (has(ConnectionRefusedError) or _TUNNEL.search(" ".join(map(str, chain)))):
        return f"{proxy}: the proxy, or an exception from it (NO_PROXY)"
    if isinstance(error, ForbiddenError):
        return "kubectl auth can-i --list"
    if isinstance(error, CredentialsError):
        return f"renew the credentials of {where}"
    if has(ssl.SSLCertVerificationError):
        return "certificate-authority (or tls-server-name) of the cluster in the kubeconfig"
    if has(ssl.SSLError):
        return "server of the cluster in the kubeconfig (http or https, and the port), or the client certificate"
    if isinstance(error, NoApiServerError):
        return "server of the cluster in the kubeconfig: its path, or another --context"
    if has(u3.NameResolutionError):
        return "server of the cluster in the kubeconfig: its host name, or DNS"
    if isinstance(error, TransientError):
        return "is the API server up, and the way to it open? kubectl cluster-info; else another --context"
    return "--kubeconfig, --context; kubectl version"


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what caused it, urllib3's `reason` and wrapped arguments included."""
    found: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting and len(found) < 20:
        link = waiting.pop(0)
        if not isinstance(link, BaseException) or any(link is known for known in found):
            continue
        found.append(link)
        waiting += [link.__cause__, link.__context__, getattr(link, "reason", None), *link.args]
    return found
