"""A stand-in for a VM with a Ceph RadosGW: an HTTP server that registers itself in Consul, with a real health check.

It needs nothing but Python. On SIGTERM it deregisters first and then answers for a moment longer, as a well-behaved VM
does: who still has its address is served. Killed outright it says nothing, and Consul's check finds out.

Environment: CONSUL_HTTP_ADDR (http://consul:8500), SERVICE (radosgw), PORT (8080), ADDRESS (that of its host name).
"""

# ruff: noqa: T201 - what a container prints is its log
from __future__ import annotations

import json
import os
import signal
import socket
import threading
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONSUL = os.environ.get("CONSUL_HTTP_ADDR", "http://consul:8500").rstrip("/")
SERVICE = os.environ.get("SERVICE", "radosgw")
PORT = int(os.environ.get("PORT", "8080"))
HOST = socket.gethostname()
ID = f"{SERVICE}-{HOST}"

RETRY_SECONDS = 1.0
LOOK_SECONDS = 5.0  # a Consul that was restarted empty has forgotten us
DRAIN_SECONDS = 1.0

BUCKETS = f"""<?xml version="1.0" encoding="UTF-8"?>
<ListAllMyBucketsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
  <Owner><ID>anonymous</ID><DisplayName>{HOST}</DisplayName></Owner><Buckets></Buckets>
</ListAllMyBucketsResult>
"""


class RadosGateway(BaseHTTPRequestHandler):
    """Answers as an empty object store does, and says which VM it was."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """`/swift/healthcheck` is RadosGW's own health page; everything else is an empty list of buckets."""
        body = b"" if self.path == "/swift/healthcheck" else BUCKETS.encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Served-By", HOST)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Health checks every second are no news."""


def call(method: str, path: str, body: object = None) -> bytes:
    """One request to the Consul agent; raises OSError unless it succeeds."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{CONSUL}/v1/agent/{path}", data=data, method=method)
    with urllib.request.urlopen(request, timeout=5) as answer:
        return bytes(answer.read())


def known(address: str) -> bool:
    """Whether the agent still has this instance, at this address: after an unclean end we may have got another one."""
    found = json.loads(call("GET", "services?" + urllib.parse.urlencode({"filter": f'ID == "{ID}"'})))
    return bool(found.get(ID, {}).get("Address") == address)


def register(address: str) -> None:
    """Make the agent know this instance and check it every second."""
    # "passing" to begin with: it serves already, and Consul's default is critical until the first check. Without it a
    # Consul that came back empty would take every VM out for a second.
    url = f"http://{address}:{PORT}/swift/healthcheck"
    check = {"HTTP": url, "Interval": "1s", "Timeout": "1s", "Status": "passing"}
    service = {"ID": ID, "Name": SERVICE, "Address": address, "Port": PORT, "Tags": ["s3"], "Check": check}
    call("PUT", "service/register?replace-existing-checks=true", service)
    print(f"{ID} registered at {address}:{PORT}", flush=True)


def main() -> None:
    """Serve, stay registered, and leave in order."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server = ThreadingHTTPServer(("", PORT), RadosGateway)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = os.environ.get("ADDRESS") or socket.gethostbyname(HOST)
    wait = 0.0
    while not stop.wait(wait):
        try:
            if not known(address):
                register(address)
            wait = LOOK_SECONDS
        except OSError as error:
            print(f"{ID} cannot reach Consul at {CONSUL}: {error}", flush=True)
            wait = RETRY_SECONDS
    try:
        call("PUT", f"service/deregister/{ID}")
        print(f"{ID} deregistered", flush=True)
    except OSError as error:
        print(f"{ID} could not deregister: {error}", flush=True)
    threading.Event().wait(DRAIN_SECONDS)
    server.shutdown()


if __name__ == "__main__":
    main()
