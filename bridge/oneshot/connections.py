"""The section "connections" of `bridge check`: address, proxy, identity and expiry dates for each side.

It states facts only; later probes report whether the two servers answer, and how to fix it when they do not. So a side
that cannot be reached has fewer lines here, never a failure.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from bridge.consul.access import warnings_of
from bridge.consul.client import ConsulClient, ConsulConfig
from bridge.consul.tls import certificate_end
from bridge.errors import BridgeError, CancelledError
from bridge.kube.client import KubeClient, KubeConfig
from bridge.oneshot import kube_connection
from bridge.oneshot.probe import OK, WARNING, Probe

SECTION = kube_connection.SECTION


def connections(consul: ConsulConfig, kube: KubeConfig) -> Iterator[Probe]:
    yield from of_consul(consul)
    yield from of_kubernetes(kube)


def of_consul(config: ConsulConfig) -> Iterator[Probe]:
    try:
        yield _fact("consul address", config.access.parts(config).server)
    except BridgeError:
        return
    if config.client_cert:
        end = certificate_end(config.client_cert)
        remedy = "consul.client_cert: a new certificate"
        yield _ending("consul client certificate", config.client_cert, end, remedy)
    yield from _consul_token(config)
    for warning in warnings_of(config):
        yield _fact("consul connection", warning, WARNING, warning.rpartition("; ")[2].rpartition(": ")[2])


def _consul_token(config: ConsulConfig) -> Iterator[Probe]:
    """The token: where it comes from, and when it expires."""
    if config.auth_method:
        source, remedy = f"by auth method {config.auth_method!r}, renewed before that", ""
    elif config.token_file:
        source, remedy = config.token_file, "consul.token_file: a new token"
    elif config.token:
        source, remedy = "from the settings", "consul.token: a new token"
    else:
        yield _fact("consul token", "none: requests are anonymous")
        return
    client = ConsulClient(config)
    try:
        end = client.token_end()
    except CancelledError:
        raise
    except BridgeError:
        yield _fact("consul token", source.removesuffix(", renewed before that"))
        return
    finally:
        client.close()
    yield _ending("consul token", source, end, remedy)


def of_kubernetes(config: KubeConfig) -> Iterator[Probe]:
    try:
        client = KubeClient(config)
    except BridgeError:
        return
    try:
        yield from kube_connection.lines(client)
    finally:
        client.close()


def _ending(name: str, what: str, end: datetime | None, remedy: str) -> Probe:
    return kube_connection.ending(name, what, end, endless="it does not end", renewed=not remedy, remedy=remedy)


def _fact(name: str, detail: str, state: str = OK, mend: str = "") -> Probe:
    return Probe(name, state, detail, mend, SECTION)
