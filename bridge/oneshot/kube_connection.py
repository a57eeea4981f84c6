"""The Kubernetes lines of the section "connections": see connections.py."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from bridge.certificate import certificate_end, token_end
from bridge.errors import BridgeError, CancelledError
from bridge.kube.client import UNVERIFIED, KubeClient
from bridge.kube.identity import who_am_i
from bridge.oneshot.probe import OK, WARNING, Probe

SECTION = "connections"

SOON_SECONDS = 7 * 86_400.0
"""What ends within this time, and is not renewed by itself, is a warning."""

UNTOLD = "no expiry is given"


def lines(client: KubeClient) -> Iterator[Probe]:
    """Which address, through which proxy, as which user, with which certificate and token until when."""
    access = client.access
    yield Probe("kubernetes address", OK, client.server, section=SECTION)
    if access.proxy is not None:
        yield Probe("kubernetes proxy", OK, f"{access.proxy.address}, from {access.proxy.source}", section=SECTION)
    if access.unverified:
        said, _, remedy = UNVERIFIED.partition("; ")
        yield Probe("kubernetes TLS", WARNING, said, remedy, SECTION)
    yield from _user(client)
    if (certificate := access.certificate) is not None:
        name, pem = certificate
        yield ending("kubernetes certificate", name, certificate_end(pem), endless=UNTOLD, renewed="-data " not in name)
    if (token := access.token) is not None:
        value, told = token
        end = datetime.fromtimestamp(told, UTC) if told is not None else token_end(value)
        name, inline = access.token_source
        yield ending("kubernetes token", name, end, endless=UNTOLD, renewed=not inline)
    if client.trouble:
        yield Probe("kubernetes credentials", WARNING, client.trouble, "see the plugin or file that is named", SECTION)


def _user(client: KubeClient) -> Iterator[Probe]:
    try:
        user = who_am_i(client)
    except CancelledError:
        raise
    except BridgeError:
        return
    if user is None:
        said = "unknown: the API server does not tell (SelfSubjectReview: Kubernetes 1.28)"
        yield Probe("kubernetes user", OK, said, section=SECTION)
        return
    groups = f" (groups: {', '.join(user.groups)})" if user.groups else ""
    how = f", impersonated as {client.access.where} asks" if client.access.headers else ""
    yield Probe("kubernetes user", OK, f"{user.name or 'anonymous'}{groups}{how}", section=SECTION)


def ending(
    name: str, what: str, end: datetime | None, *, endless: str, renewed: bool, remedy: str = "renew it there"
) -> Probe:
    """Something with an end; a warning when that is past, or near where nothing renews it.

    `endless`: what to say where no end is known.
    """
    if end is None:
        return Probe(name, OK, f"{what}; {endless}", section=SECTION)
    left = (end - datetime.now(UTC)).total_seconds()
    at = f"{end:%Y-%m-%d %H:%M} UTC"
    said = f"{what}; ends in {_span(left)} ({at})" if left > 0 else f"{what}; ended {at}"
    if left <= 0 or (not renewed and left < SOON_SECONDS):
        return Probe(name, WARNING, said, remedy, SECTION)
    return Probe(name, OK, said, section=SECTION)


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
