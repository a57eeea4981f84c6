#!/bin/sh
# Prometheus 3.9.1: its Kubernetes discovery finds no target for the endpoints of an EndpointSlice without ports.
#
# Input: a headless Service without ports, and an EndpointSlice of it with the address 10.77.1.1 and no ports, as the control plane makes
# them for such a Service; CoreDNS answers its name with the address. Beside it a slice with a port that has no number, 10.77.1.2, and one
# with port 80, 10.77.1.3.
# Expected: by the documentation the role endpointslice discovers one target for each endpoint address: 10.77.1.1, 10.77.1.2 and
# 10.77.1.3:80. An address without a port is a target for it, as 10.77.1.2 shows, and relabelling can give it one.
# Seen: there are two, 10.77.1.1 is not among them. Nothing is logged about it.
#
# Builds promtool from its public Go module in a temporary folder (Go >= 1.26, some minutes), which runs the discovery as Prometheus does;
# PROMTOOL=/path/to/promtool uses a program that is there. Needs python3, which plays the Kubernetes API. Exit status: 0 as described,
# 1 when it behaves otherwise.
set -eu
folder=$(mktemp -d)
trap 'trap "" INT TERM; kill "${api:-}" 2>/dev/null || true; rm -rf "$folder"' EXIT
trap 'exit 1' INT TERM
lab=$(dirname "$0")/../tests/support/lab/modules/prometheus
if [ -z "${PROMTOOL:-}" ]; then
  cp "$lab/go.mod" "$lab/go.sum" "$folder"
  PROMTOOL=$folder/promtool
  (cd "$folder" && CGO_ENABLED=0 GOFLAGS=-mod=readonly GOTOOLCHAIN=local GOWORK=off go build -buildvcs=false -trimpath \
    -gcflags=all=-dwarf=false -ldflags '-s -w' -o promtool github.com/prometheus/prometheus/cmd/promtool)
fi
cat > "$folder/api.py" <<'PYTHON'
import json, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

def meta(name, **labels):
    return {"name": name, "namespace": "default", "uid": name, "resourceVersion": "1", "labels": labels}

def slice_(name, address, ports):
    return {"metadata": meta(name, **{"kubernetes.io/service-name": "web"}), "addressType": "IPv4", "ports": ports,
            "endpoints": [{"addresses": [address], "conditions": {"ready": True, "serving": True, "terminating": False}}]}

service = {"metadata": meta("web"), "spec": {"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"]}}
http = {"name": "http", "protocol": "TCP"}
ANSWERS = {
    "services": ("v1", "ServiceList", [service]), "pods": ("v1", "PodList", []), "nodes": ("v1", "NodeList", []),
    "endpointslices": ("discovery.k8s.io/v1", "EndpointSliceList", [
        slice_("none", "10.77.1.1", None), slice_("any", "10.77.1.2", [http]), slice_("one", "10.77.1.3", [{**http, "port": 80}])]),
}

class Api(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        parts, query = urlsplit(self.path), parse_qs(urlsplit(self.path).query)
        if "sendInitialEvents" in query:  # clients of servers that cannot do this list first
            self.answer(422, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid", "code": 422})
        elif "watch" in query:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.flush()
            time.sleep(600)
        else:
            version, kind, items = ANSWERS[parts.path.rpartition("/")[2]]
            self.answer(200, {"apiVersion": version, "kind": kind, "metadata": {"resourceVersion": "1"}, "items": items})

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
server.daemon_threads = True
open(sys.argv[1], "w").write(f"""scrape_configs:
- job_name: web
  kubernetes_sd_configs: [{{role: endpointslice, api_server: "http://127.0.0.1:{server.server_port}"}}]
""")
server.serve_forever()
PYTHON
python3 "$folder/api.py" "$folder/prometheus.yaml" &
api=$!
for _ in $(seq 50); do [ -s "$folder/prometheus.yaml" ] && break; sleep 0.2; done
grep -h 'prometheus/prometheus v' "$lab/go.mod" | head -1
"$PROMTOOL" check service-discovery --timeout=8s "$folder/prometheus.yaml" web > "$folder/found"
python3 - "$folder/found" <<'PYTHON'
import json, sys
targets = sorted(target["discoveredLabels"]["__address__"] for target in json.load(open(sys.argv[1])))
print("expected: 10.77.1.1 10.77.1.2 10.77.1.3:80")
print("seen:    ", *targets)
if targets != ["10.77.1.2", "10.77.1.3:80"]:
    sys.exit("otherwise than described: this Prometheus may not have the fault")
print("as described: the endpoint of the slice without ports is no target")
PYTHON
