#!/bin/sh
# Python package kubernetes 37.0.2 (and 36.0.3): Watch.stream(..., deserialize=False) does not resume, and an expired watch is a KeyError.
#
# Input: what an API server answers to a watch. The first answer has an ADDED event and ends, as servers end each watch after a while; the
# second one has the ERROR event with code 410 that tells that the version has expired.
# Expected: what the docstring of Watch.stream says, and what it does with deserialize=True. Each event has the keys type, object and
# raw_object. The stream resumes from the last version that it saw. If that has expired as well, ApiException with status 410 is raised.
# Seen: no event has raw_object. The stream ends without an error after the first answer, for no version is noted. Of a stream that was
# given a resource_version the expiry is raised as KeyError: 'raw_object', which no handler of ApiException catches.
#
# Installs the package in a temporary folder. Needs python3 >= 3.10, which plays the API. Exit status: 0 as described, 1 otherwise.
set -eu
folder=$(mktemp -d)
trap 'trap "" INT TERM; rm -rf "$folder"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check kubernetes==37.0.2
"$folder/venv/bin/python" - <<'PYTHON'
import json, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from kubernetes import __version__, client, watch

ADDED = {"type": "ADDED", "object": {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "resourceVersion": "5"}}}
EXPIRED = {"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 410,
                                       "reason": "Expired", "message": "too old resource version: 5 (90)"}}
asked = []

class Api(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        asked.append(self.path.partition("?")[2])
        line = json.dumps(ADDED if len(asked) == 1 else EXPIRED).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(line)))
        self.end_headers()
        self.wfile.write(line)

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
threading.Thread(target=server.serve_forever, daemon=True).start()
settings = client.Configuration()
settings.host = f"http://127.0.0.1:{server.server_port}"
services = client.CoreV1Api(client.ApiClient(settings)).list_namespaced_service

def outcome(**options):
    """The keys of the first event, how the stream ended, and how often the API was asked."""
    asked.clear()
    keys = ""
    try:
        for event in watch.Watch().stream(services, "default", **options):
            keys = keys or " ".join(sorted(event))
        end = "ends without an error"
    except Exception as error:
        end = f"{type(error).__name__} {getattr(error, 'status', error)}"
    found = f"{keys}; {end}; {len(asked)} requests"
    print(f"{options or 'deserialize=True'}: {found}")
    return found

print("kubernetes", __version__)
seen = outcome(), outcome(deserialize=False), outcome(deserialize=False, resource_version="1")
if seen != ("object raw_object type; ApiException 410; 3 requests", "object type; ends without an error; 1 requests",
            "object type; KeyError 'raw_object'; 2 requests"):
    sys.exit("otherwise than described: this version may not have the fault")
print("as described: without deserialising, the watch neither resumes nor says that it has expired")
PYTHON
