"""The servers of contract tests: the fakes and the real ones, each with a place of its own that is gone afterwards."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bridge.kube.client import KubeClient
from tests.support.fakes.kube import FakeKube
from tests.support.lab import Consul, LabError
from tests.support.options import kube_config
from tests.support.raw import RawKube

BOTH = ["fake", pytest.param("real", marks=pytest.mark.lab)]
"""The parameters of a fixture that yields what `kube_side` yields."""


@dataclass(frozen=True, slots=True)
class KubeSide:
    """The fake API server, or the lab's (`fake` is None), with a fresh namespace."""

    kubeconfig: str
    namespace: str
    raw: RawKube
    client: KubeClient
    fake: FakeKube | None


@contextmanager
def kube_side(request: pytest.FixtureRequest, folder: Path, prefix: str) -> Iterator[KubeSide]:
    """What `request.param` (one of `BOTH`) names. The namespace's name begins with `prefix`."""
    namespace = f"{prefix}-{uuid.uuid4().hex[:8]}"
    with ExitStack() as stack:
        fake = FakeKube() if request.param == "fake" else None
        if fake is not None:
            fake.start()
            stack.callback(fake.stop)
            kubeconfig = fake.kubeconfig(folder)
        else:
            kubeconfig = str(request.getfixturevalue("lab").kubeconfig)
        raw = stack.enter_context(RawKube(kubeconfig))
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        raw.json("POST", "/api/v1/namespaces", body)
        stack.callback(raw.delete, f"/api/v1/namespaces/{namespace}")
        client = KubeClient(kube_config(kubeconfig=kubeconfig))
        stack.callback(client.close)
        yield KubeSide(kubeconfig, namespace, raw, client, fake)


@contextmanager
def own_consul(folder: Path, *, acl: bool = False) -> Iterator[Consul]:
    """A real Consul of the test's own; where there can be none the test is skipped, except in CI."""
    consul = Consul(folder / "consul", acl=acl)
    try:
        consul.start()
    except LabError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no Consul: {error}")
    try:
        yield consul
    finally:
        consul.kill()
