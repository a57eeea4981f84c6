"""Namespaces, partitions and cluster peers: what is asked of a server that has them (a stub; the community's has not).

The stub knows three places by their query parameters, and fails the test on any question that it does not expect.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from bridge.config import load
from bridge.oneshot.sync import sync_once
from bridge.report import Report
from tests.support.fakes.kube import FakeKube

ADDRESSES = {
    ("", "", ""): "10.0.0.1",
    ("team", "", ""): "10.0.0.2",
    ("", "west", ""): "10.0.0.3",
    ("", "", "cloud"): "10.0.0.4",
    ("home", "default", ""): "10.0.0.5",
}
"""Of the service `web`, by (namespace, partition, peer) of the question."""


class Enterprise(ThreadingHTTPServer):
    """Answers for one datacenter; `asked` are the questions about the catalog: path and place."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: set[tuple[str, tuple[str, str, str]]] = set()
        self.unexpected: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Enterprise

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        place = (query.get("ns", ""), query.get("partition", ""), query.get("peer", ""))
        match parts.path.removeprefix("/v1/"):
            case "agent/self":
                self._answer({"Config": {"Datacenter": "dc1"}})
            case "catalog/services":
                self.server.asked.add(("list", place))
                self._answer({"web": [], "consul": []})
            case "health/service/web" if place in ADDRESSES:
                self.server.asked.add(("web", place))
                node = {"Node": "vm", "Address": ADDRESSES[place]}
                self._answer([{"Node": node, "Service": {"ID": "web", "Service": "web", "Port": 80}, "Checks": []}])
            case _:
                self.server.unexpected.append(self.path)
                self.send_error(400)

    def _answer(self, data: object) -> None:
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("X-Consul-Index", "7")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def enterprise() -> Iterator[Enterprise]:
    """The stub, serving."""
    with Enterprise() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()
        assert made.unexpected == []


def sync(enterprise: Enterprise, kube: FakeKube, folder: Path, text: str) -> Report:
    """One pass with these settings."""
    file = folder / "bridge.yaml"
    file.write_text(text)
    settings = load(
        {"--config": str(file)},
        {"CONSUL_HTTP_ADDR": f"127.0.0.1:{enterprise.server_port}", "KUBECONFIG": str(kube.kubeconfig(folder))},
    )
    return sync_once(
        consul=settings.consul_config(),
        kube=settings.kube_config(),
        rules=settings.core_rules("default"),
        options=settings.sync_options(),
        stop=threading.Event(),
    )


def addresses(kube: FakeKube, name: str) -> list[str]:
    """Ready addresses in the namespace default."""
    return kube.ready_addresses("default", name) or []


def test_rules_reach_into_namespaces_partitions_and_peers(enterprise: Enterprise, tmp_path: Path) -> None:
    """The same name in four places is four services; only the home place is listed."""
    with FakeKube() as kube:
        report = sync(
            enterprise, kube, tmp_path,
            """
rules:
- {services: [web], namespace: team, to: {name: '{service}-{namespace}'}}
- {services: [web], partition: west, to: {name: '{service}-{partition}'}}
- {services: [web], peer: cloud, to: {name: web-cloud}}
- {services: ['*']}
""",
        )  # fmt: skip
        found = {name: addresses(kube, name) for name in ("web", "web-team", "web-west", "web-cloud")}
    assert found == {"web": ["10.0.0.1"], "web-team": ["10.0.0.2"], "web-west": ["10.0.0.3"], "web-cloud": ["10.0.0.4"]}
    assert report.failed == ()
    places = {("web", place) for place in ADDRESSES if place[0] != "home"}
    assert enterprise.asked == {("list", ("", "", "")), *places}


def test_the_configured_namespace_and_partition_are_listed_and_read(enterprise: Enterprise, tmp_path: Path) -> None:
    """consul.namespace and consul.partition are meant where a rule says nothing."""
    with FakeKube() as kube:
        sync(enterprise, kube, tmp_path, "consul: {namespace: home, partition: default}\n")
        found = addresses(kube, "web")
    home = ("home", "default", "")
    assert (found, enterprise.asked) == (["10.0.0.5"], {("list", home), ("web", home)})
