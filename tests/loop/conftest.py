"""A server and a client that several files of these tests have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.kube.client import KubeClient
from tests.support.fakes.kube import FakeKube
from tests.support.options import kube_config


@pytest.fixture
def fake() -> Iterator[FakeKube]:
    """A server."""
    with FakeKube() as kube:
        yield kube


@pytest.fixture
def client(fake: FakeKube, tmp_path: Path) -> Iterator[KubeClient]:
    """A client."""
    found = KubeClient(kube_config(kubeconfig=fake.kubeconfig(tmp_path)))
    yield found
    found.close()
