"""The section "connections" of `bridge check`: which way, as whom and until when each side is spoken to.

It states facts and their dates; whether the two servers answer, and what to do when they do not, is what the probes
behind it say. So a side that cannot be asked has fewer lines here, never a failure of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from bridge.consul.client import ConsulConfig
from bridge.engine.probe import OK, Probe
from bridge.errors import BridgeError, CancelledError
from bridge.kube.client import KubeClient, KubeConfig
from bridge.kube.identity import who_am_i

SECTION = "connections"


def connections(consul: ConsulConfig, kube: KubeConfig) -> Iterator[Probe]:
    """Both sides, Consul first."""
    yield from of_consul(consul)
    yield from of_kubernetes(kube)


def of_consul(config: ConsulConfig) -> Iterator[Probe]:
    """How Consul is spoken to."""
    yield _fact("consul address", config.address)


def of_kubernetes(config: KubeConfig) -> Iterator[Probe]:
    """How the API server is spoken to."""
    try:
        client = KubeClient(config)
    except BridgeError:
        return
    try:
        yield _fact("kubernetes address", client.server)
        yield from _user(client)
    finally:
        client.close()


def _user(client: KubeClient) -> Iterator[Probe]:
    try:
        user = who_am_i(client)
    except CancelledError:
        raise
    except BridgeError:
        return
    if user is None:
        yield _fact("kubernetes user", "unknown: the API server does not tell (SelfSubjectReview: Kubernetes 1.28)")
        return
    groups = f" (groups: {', '.join(user.groups)})" if user.groups else ""
    yield _fact("kubernetes user", f"{user.name or 'anonymous'}{groups}")


def _fact(name: str, detail: str, state: str = OK, mend: str = "") -> Probe:
    return Probe(name, state, detail, mend, SECTION)
