"""A write whose answer was lost was done, and is sent once more: each verb's repetition harms nothing.

The way to the server passes on one write of each test, and cuts the connection before the answer is whole.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.core.model import SERVICE_KINDS, Kind, Meta
from bridge.errors import StaleError, TransientError
from bridge.kube import objects
from bridge.kube.client import KubeClient
from bridge.kube.lease import LeaseLock
from bridge.kube.writer import Writer
from tests.support.chaos.stub import Answer, Mangle, Stub
from tests.support.fakes.kube import FakeKube
from tests.support.options import kube_config
from tests.support.raw import RawKube
from tests.unit.kube.builders import HTTP, bodies, create, delete, raw_service, service, update

ALL_KINDS = SERVICE_KINDS


@dataclass
class Way:
    """A client whose answers get lost on request, and a plain one beside it."""

    namespace: str
    client: KubeClient
    writer: Writer
    raw: RawKube
    lose: Callable[[str], None]
    """Lose the answer to the next request with this method."""
    lost: list[str]

    def stored(self, kind: Kind) -> dict[str, Any] | None:
        """The object."""
        return self.raw.get(objects.path(kind, self.namespace, "radosgw"))

    def version(self, kind: Kind) -> str:
        """Its version, "" when there is none."""
        found = self.stored(kind)
        return found["metadata"]["resourceVersion"] if found is not None else ""


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.lab)])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Way]:
    """To the fake, or to the lab's API server."""
    namespace = f"lost-{uuid.uuid4().hex[:8]}"
    fake = FakeKube() if request.param == "fake" else None
    waiting: list[str] = []
    lost: list[str] = []
    lock = threading.Lock()

    def cut(answer: Answer) -> Answer:
        return Answer(answer.status, answer.body[:1], answer.headers, promised=len(answer.body) + 1)

    def rule(method: str, _path: str) -> Mangle | None:
        with lock:
            if method not in waiting:
                return None
            waiting.remove(method)
            lost.append(method)
            return cut

    if fake is not None:
        fake.start()
        plain = fake.kubeconfig(tmp_path)
        stub = Stub(fake.url, rule)
        server = f"http://{stub.address}"
    else:
        lab = request.getfixturevalue("lab")
        if "server.key" not in lab.files:
            pytest.skip("the API server is not one of ours: there is no certificate for a server between")
        plain = str(lab.kubeconfig)
        certificate = (lab.files["server.pem"], lab.files["server.key"])
        stub = Stub(lab.apiserver.url, rule, ca_file=lab.ca_file, certificate=certificate)
        server = f"https://{stub.address}"
    config = yaml.safe_load(Path(plain).read_text())
    config["clusters"][0]["cluster"]["server"] = server
    path = tmp_path / "way.kubeconfig"
    path.write_text(yaml.safe_dump(config))
    raw = RawKube(plain)
    raw.json("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    client = KubeClient(kube_config(kubeconfig=str(path)))
    try:
        yield Way(namespace, client, Writer(client), raw, waiting.append, lost)
    finally:
        client.close()
        stub.close()
        if fake is None:
            raw.delete(f"/api/v1/namespaces/{namespace}")
        raw.close()
        if fake is not None:
            fake.stop()


def made(way: Way, kind: Kind) -> Meta:
    """One of ours."""
    meta = way.writer.apply(create(bodies()[kind], way.namespace))
    assert meta is not None
    return meta


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_creation_by_patch_is_not_done_twice(way: Way, kind: Kind) -> None:
    """The second finds the object, sees that it is ours, and has it read again: no conflict, no change."""
    if kind is Kind.ENDPOINTS:  # without a Service the control plane would remove them
        way.raw.json("POST", objects.path(Kind.SERVICE, way.namespace), raw_service(way.namespace, "radosgw"))
    change = create(bodies()[kind], way.namespace)
    way.lose("PATCH")
    with pytest.raises(TransientError) as caught:
        way.writer.apply(change)
    assert not isinstance(caught.value, StaleError)
    version = way.version(kind)
    assert version
    with pytest.raises(StaleError, match="there already and ours"):
        way.writer.apply(change)
    assert (way.version(kind), way.lost) == (version, ["PATCH"])


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_an_update_by_patch_never_overwrites_what_came_after_it(way: Way, kind: Kind) -> None:
    """Its version is a precondition: what another client wrote in between stays."""
    if kind is Kind.ENDPOINTS:
        way.raw.json("POST", objects.path(Kind.SERVICE, way.namespace), raw_service(way.namespace, "radosgw"))
    before = made(way, kind)
    body = bodies()[kind]
    change = update(type(body)(**{**_fields(body), "annotations": (("consul-bridge/service", "other"),)}), before)
    way.lose("PATCH")
    with pytest.raises(TransientError):
        way.writer.apply(change)
    assert way.version(kind) != before.resource_version
    path = objects.path(kind, way.namespace, "radosgw")
    way.raw.json("PATCH", path, {"metadata": {"labels": {"x": "y"}}}, "application/merge-patch+json")
    version = way.version(kind)
    with pytest.raises(StaleError, match="changed since it was read"):
        way.writer.apply(change)
    assert way.version(kind) == version


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_deletion_never_removes_what_was_made_since(way: Way, kind: Kind) -> None:
    """Uid and version are preconditions; that nothing is there any more is what was wanted."""
    if kind is Kind.ENDPOINTS:
        way.raw.json("POST", objects.path(Kind.SERVICE, way.namespace), raw_service(way.namespace, "radosgw"))
    before = made(way, kind)
    change = delete(before)
    way.lose("DELETE")
    with pytest.raises(TransientError):
        way.writer.apply(change)
    assert way.stored(kind) is None
    assert way.writer.apply(change) is None
    again = made(way, kind)
    with pytest.raises(StaleError, match="changed since it was read"):
        way.writer.apply(change)
    assert way.version(kind) == again.resource_version


def test_ports_that_are_taken_out_are_taken_out_once(way: Way) -> None:
    """Whichever of the requests that this may take is not answered, the repetition ends at our ports alone."""
    before = made(way, Kind.SERVICE)
    path = objects.path(Kind.SERVICE, way.namespace, "radosgw")
    ports = [{"name": "http", "port": 8080}, {"name": "theirs", "port": 9}]
    way.raw.json("PATCH", path, {"spec": {"ports": ports}}, "application/merge-patch+json")
    found = objects.decode_meta(Kind.SERVICE, way.stored(Kind.SERVICE))
    assert found is not None
    change = update(service(HTTP), found)
    way.lose("PATCH")
    with pytest.raises(TransientError):
        way.writer.apply(change)
    now = objects.decode_meta(Kind.SERVICE, way.stored(Kind.SERVICE))
    assert now is not None
    way.writer.apply(update(service(HTTP), now))  # as after a StaleError: read again, decided again
    stored = way.stored(Kind.SERVICE)
    assert stored is not None
    assert ([p["port"] for p in stored["spec"]["ports"]], stored["metadata"]["uid"]) == ([8080], before.uid)
    assert way.lost == ["PATCH"]


def test_a_lease_whose_creation_and_renewal_were_not_answered_is_held_by_one(way: Way) -> None:
    """POST and PUT: the second finds that another client was quicker, itself perhaps, and looks."""
    lock = LeaseLock(way.client, way.namespace, "one", "me")
    way.lose("POST")
    with pytest.raises(TransientError):
        lock.acquire(None)
    with pytest.raises(StaleError):
        lock.acquire(None)
    held = lock.read()
    assert held is not None
    assert held.holder == "me"
    way.lose("PUT")
    with pytest.raises(TransientError):
        lock.renew(held)
    with pytest.raises(StaleError):
        lock.renew(held)
    now = lock.read()
    assert now is not None
    assert (now.holder, now.transitions) == ("me", held.transitions)
    assert now.resource_version != held.resource_version
    assert way.lost == ["POST", "PUT"]


def _fields(body: Any) -> dict[str, Any]:
    return {name: getattr(body, name) for name in body.__dataclass_fields__}
