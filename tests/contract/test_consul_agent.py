"""What the demonstration counts on of an agent's HTTP checks, asked of the embedded stand-in and of the real Consul."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.conftest import Eventually
from tests.support.embedded.consul import EmbeddedConsul
from tests.support.lab import Lab, free_port
from tests.support.raw import RawConsul


class _Server(ThreadingHTTPServer):
    allow_reuse_address = True
    status = 200


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)
        self.send_response(self.server.status)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"ok\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Quiet."""


@contextmanager
def gateway(port: int = 0) -> Iterator[_Server]:
    """A program to be checked."""
    server = _Server(("127.0.0.1", port or free_port()), _Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(params=["embedded", pytest.param("real", marks=pytest.mark.lab)])
def agent(request: pytest.FixtureRequest) -> Iterator[RawConsul]:
    """A client of the stand-in, or of the lab's Consul."""
    if request.param == "embedded":
        with EmbeddedConsul() as consul, RawConsul(consul.address) as client:
            yield client
        return
    lab: Lab = request.getfixturevalue("lab")
    with lab.raw_consul() as client:
        yield client


def test_a_check_follows_what_it_asks(agent: RawConsul, eventually: Eventually) -> None:
    """2xx passing, 429 warning, another status and no answer critical; the service leaves when it is deregistered."""
    with gateway() as server:
        port = server.server_address[1]
        agent.json("PUT", "/v1/agent/service/register", {
            "Name": "checked", "ID": "checked-1", "Address": "10.77.0.1", "Port": 80, "Tags": ["s3"],
            "Meta": {"a": "b"},
            "Check": {
                "CheckID": "http:checked-1", "HTTP": f"http://127.0.0.1:{port}/", "Interval": "100ms", "Timeout": "5s",
                "Status": "passing",
            },
        })  # fmt: skip

        def status() -> list[str]:
            return [c["Status"] for e in agent.health("checked")[1] for c in e["Checks"] if c["ServiceID"]]

        eventually(status, ["passing"])
        (entry,) = agent.health("checked")[1]
        service = entry["Service"]
        assert (service["ID"], service["Address"], service["Port"], service["Tags"], service["Meta"]) == (
            "checked-1", "10.77.0.1", 80, ["s3"], {"a": "b"},
        )  # fmt: skip
        for answered, expected in ((429, "warning"), (500, "critical"), (204, "passing"), (301, "critical")):
            server.status = answered
            eventually(status, [expected])
        server.status = 200
        eventually(status, ["passing"])
    eventually(status, ["critical"])
    with gateway(port):
        eventually(status, ["passing"])
    agent.json("PUT", "/v1/agent/service/deregister/checked-1")
    eventually(lambda: "checked" in agent.services(), False)
