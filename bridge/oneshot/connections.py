"""The section "connections" of `bridge check`: which way, as whom and until when each side is spoken to.

It states facts and their dates; whether the two servers answer, and what to do when they do not, is what the probes
behind it say. So a side that cannot be asked has fewer lines here, never a failure of its own.
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
    """Both sides, Consul first."""
    yield from of_consul(consul)
    yield from of_kubernetes(kube)


def of_consul(config: ConsulConfig) -> Iterator[Probe]:
    """How Consul is spoken to."""
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
    """As whom: where the token comes from, and when it ends."""
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
    """How the API server is spoken to."""
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
