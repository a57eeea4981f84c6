#!/bin/sh
# Python package kubernetes 37.0.2: create_from_yaml refuses a manifest whose quantity is a number (cpu: 2) before it asks the API server.
#
# Input: manifests of a ResourceQuota and of a Pod, quantities without quotes (services: 5, cpu: 2), as kubectl and the API server take
# them: the grammar of a Quantity has plain numbers, and its decoder takes them with or without quotes.
# Expected: the manifest is sent. So does the package's version 36.0.3, and 37.0.2 itself when the same object is a patch.
# Seen: create and replace raise a ValidationError of pydantic, "Input should be a valid string", without a request.
#
# Installs both versions in a temporary folder. Needs python3 >= 3.10, which plays the API. Exit status: 0 as described, 1 otherwise.
set -eu
folder=$(mktemp -d)
trap 'trap "" INT TERM; rm -rf "$folder"' EXIT
trap 'exit 1' INT TERM
cat > "$folder/manifests.yaml" <<'YAML'
apiVersion: v1
kind: ResourceQuota
metadata: {name: few, namespace: default}
spec: {hard: {services: 5}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default}
spec:
  containers:
  - {name: web, image: web, resources: {limits: {cpu: 2}}}
YAML
cat > "$folder/ask.py" <<'PYTHON'
import sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import yaml
from kubernetes import __version__, client, utils

sent = []

class Api(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        sent.append(self.rfile.read(int(self.headers["Content-Length"])))
        answer = b'{"metadata": {"name": "web"}}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_PATCH = do_PUT = do_POST

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
threading.Thread(target=server.serve_forever, daemon=True).start()
settings = client.Configuration()
settings.host = f"http://127.0.0.1:{server.server_port}"
api = client.ApiClient(settings)
core = client.CoreV1Api(api)
quota, pod = yaml.safe_load_all(open(sys.argv[1]))
for what, request in {
    "quota, created": lambda: utils.create_from_dict(api, quota),
    "pod, created": lambda: utils.create_from_dict(api, pod),
    "quota, replaced": lambda: core.replace_namespaced_resource_quota("few", "default", quota),
    "quota, patched": lambda: core.patch_namespaced_resource_quota("few", "default", quota),
}.items():
    sent.clear()
    try:
        request()
        end = "sent"
    except Exception as error:
        end = type(error).__name__
    print(f"{__version__} {what}: {end}, {len(sent)} requests")
PYTHON
for version in 36.0.3 37.0.2; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install -q --disable-pip-version-check "kubernetes==$version"
  "$folder/$version/bin/python" "$folder/ask.py" "$folder/manifests.yaml" >> "$folder/seen"
done
cat "$folder/seen"
if [ "$(grep -c ': sent, 1 requests' "$folder/seen")" = 5 ] && [ "$(grep -c 'ed: ValidationError, 0 requests' "$folder/seen")" = 3 ]; then
  echo "as described: 37.0.2 sends such a manifest as a patch only"
else
  echo "otherwise than described: this version may not have the fault"
  exit 1
fi
