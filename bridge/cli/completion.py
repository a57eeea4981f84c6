"""What Tab offers where only the servers know: names of Consul services and of Kubernetes namespaces.

A Tab must neither hang nor print: servers that do not answer at once, settings that are wrong and rights that are
missing all mean that nothing is offered. Every client that may register in Consul chooses names there, and shells use a
completion unquoted: a name that a shell would read as more than a word is left out.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge.config import Settings

WITHIN_SECONDS = 0.5
"""How long both servers together may take; an answer that comes later is of no use."""

_WORD = re.compile(r"[A-Za-z0-9][-\w.+@/]*", re.ASCII)


def services(flags: Mapping[str, Any], begin: str) -> list[str]:
    """Names in Consul that begin with `begin`."""
    from bridge.consul.client import ConsulClient

    def ask(settings: Settings) -> Iterable[str]:
        if settings.consul.auth_method:  # a login for each Tab would leave its tokens behind
            return ()
        client = ConsulClient(settings.consul_config())
        try:
            return [name for name in client.listing(settings.consul.datacenter).data if name != "consul"]
        finally:
            client.close()

    return _asked(ask, flags, begin)


def namespaces(flags: Mapping[str, Any], begin: str) -> list[str]:
    """Namespaces in Kubernetes that begin with `begin`; where they may not be listed, the one that would be used.

    A kubeconfig whose credentials come from a program (`exec`, `auth-provider`) is not asked with: the program may
    open a browser, ask for a password at the terminal that Tab was pressed at, or lock an account.
    """
    from bridge.errors import ForbiddenError
    from bridge.kube import kubeconfig
    from bridge.kube.client import KubeClient
    from bridge.kube.namespaces import read_labels

    def ask(settings: Settings) -> Iterable[str]:
        kube = settings.kube_config()
        if files := kubeconfig.files_of(kube.kubeconfig):
            context = kubeconfig.read(files, kube.context)
            if context.user.get("exec") or context.user.get("auth-provider"):
                return [context.namespace]
        client = KubeClient(kube)
        try:
            return read_labels(client)
        except ForbiddenError:
            return [client.namespace]
        finally:
            client.close()

    return _asked(ask, flags, begin)


def _asked(ask: Callable[[Settings], Iterable[str]], flags: Mapping[str, Any], begin: str) -> list[str]:
    from bridge import config

    found: list[str] = []

    def work() -> None:
        try:
            found.extend(ask(config.load(flags)))
        except Exception:  # noqa: BLE001 - whatever it was: a Tab is no place to say so
            return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(WITHIN_SECONDS)
    return sorted(name for name in [*found] if name.startswith(begin) and _WORD.fullmatch(name))
