"""Fixtures of the whole suite: the lab's servers, and what every test gets for itself on them."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import settings

from tests.support.lab import Lab, LabError
from tests.support.lab.build import NONE
from tests.support.raw import RawConsul, RawKube

# The same examples in every continuous integration run; new ones wherever people work. How long one takes is the
# machine's affair.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "here")


def _lab(**options: Any) -> Lab:
    """A running lab; where there can be none, the test is skipped, except in continuous integration."""
    try:
        return Lab(**options).start()
    except LabError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no servers: {error}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """With LAB_PROVIDER=none, whatever needs a server or a program of the lab is skipped, whichever way it asks."""
    return (yield from _skipped_without_servers())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """The same for those that ask in their body."""
    return (yield from _skipped_without_servers())


def _skipped_without_servers() -> Generator[None, object, object]:
    try:
        return (yield)
    except LabError as error:
        if os.environ.get("LAB_PROVIDER") != NONE:
            raise
        pytest.skip(f"no servers: {error}")


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Servers that all tests share: no test stops them. Their logs are kept when a test failed."""
    running = _lab()
    yield running
    running.close(keep=request.session.testsfailed > 0)


@pytest.fixture
def fresh_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Servers for this test alone, to be stopped and killed. Parametrised indirectly: the arguments of `Lab`."""
    running = _lab(**{"own": True, **getattr(request, "param", {})})
    failed = request.session.testsfailed
    yield running
    running.close(keep=request.session.testsfailed > failed)


@pytest.fixture
def consul(lab: Lab) -> Iterator[RawConsul]:
    """A plain client of the shared Consul."""
    with lab.raw_consul() as client:
        yield client


@pytest.fixture
def kube(lab: Lab) -> Iterator[RawKube]:
    """A plain client of the shared API server."""
    with lab.raw_kube() as client:
        yield client


@pytest.fixture
def namespace(kube: RawKube) -> Iterator[str]:
    """A namespace of this test's own."""
    with namespace_of(kube) as name:
        yield name


@pytest.fixture
def other(kube: RawKube) -> Iterator[str]:
    """A second one."""
    with namespace_of(kube) as name:
        yield name


@contextmanager
def namespace_of(kube: RawKube) -> Iterator[str]:
    """A new namespace, which goes with the block."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    kube.json("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    kube.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture
def prefix(consul: RawConsul) -> Iterator[str]:
    """A prefix for names in Consul; what carries it is taken out afterwards, nodes included."""
    name = f"t{uuid.uuid4().hex[:6]}-"
    yield name
    for node in consul.json("GET", "/v1/catalog/nodes"):
        if node["Node"].startswith(name):
            consul.drop_node(node["Node"])


Eventually = Callable[..., None]


@pytest.fixture
def eventually() -> Eventually:
    """Wait until a question has the expected answer: `eventually(ask, expected, seconds)`.

    Who says no `seconds` only guards against hanging: a busy machine may take its time.
    """

    def wait(ask: Callable[[], object], expected: object, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while (found := ask()) != expected:
            if time.monotonic() >= deadline:
                assert found == expected
            time.sleep(0.02)

    return wait


@pytest.fixture(autouse=True)
def _no_thread_is_left_behind() -> Iterator[None]:
    """A property of the whole suite: what a test starts, it ends."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 15
    while left := [t for t in threading.enumerate() if t not in before and not t.name.startswith("lab-spawner")]:
        if time.monotonic() >= deadline:
            pytest.fail(f"threads left behind: {[t.name for t in left]}")
        time.sleep(0.01)
