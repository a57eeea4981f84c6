#!/bin/sh
# Traefik 3.7.13: of two endpoints of a Service that have one address and different ports, its Kubernetes Ingress provider keeps one.
#
# Input: a Service without selector and two EndpointSlices of it, as the API allows and kube-proxy and Contour read them: 10.77.1.1
# behind port 8080 in one, 10.77.1.1 behind port 9090 and 10.77.1.2 behind port 9090 in the other, all ready and serving.
# Expected: the load balancer has three servers, 10.77.1.1:8080, 10.77.1.1:9090 and 10.77.1.2:9090.
# Seen: it has two. One port of 10.77.1.1 gets no request; which one it is depends on the order in which the slices are listed.
# The provider remembers addresses, not addresses with ports, when it leaves out what is there twice.
#
# Builds Traefik's provider from its public Go module in a temporary folder (Go >= 1.26, some minutes); TRAEFIK=/path/to/program
# uses one that is built. Needs python3, which plays the Kubernetes API. Exit status: 0 as described, 1 when it behaves otherwise.
set -eu
folder=$(mktemp -d)
trap 'kill "${api:-}" "${reader:-}" 2>/dev/null || true; rm -rf "$folder"' EXIT
if [ -z "${TRAEFIK:-}" ]; then
  cp -r "$(dirname "$0")"/../tests/support/lab/modules/traefik "$folder/module"
  TRAEFIK=$folder/traefik
  (cd "$folder/module" && CGO_ENABLED=0 GOFLAGS=-mod=readonly GOTOOLCHAIN=local GOWORK=off \
    go build -buildvcs=false -trimpath -ldflags '-s -w' -o "$TRAEFIK" .)
fi
cat > "$folder/api.py" <<'PYTHON'
import json, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

def meta(name, **labels):
    return {"name": name, "namespace": "default", "uid": name, "resourceVersion": "1", "labels": labels}

def slice_(name, port, *addresses):
    ready = {"ready": True, "serving": True, "terminating": False}
    return {"metadata": meta(name, **{"kubernetes.io/service-name": "web"}), "addressType": "IPv4",
            "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
            "endpoints": [{"addresses": [a], "conditions": ready} for a in addresses]}

backend = {"service": {"name": "web", "port": {"name": "http"}}}
ITEMS = {
    "ingresses": [{"metadata": meta("web"), "spec": {"rules": [{"host": "web.example", "http": {"paths": [
        {"path": "/", "pathType": "Prefix", "backend": backend}]}}]}}],
    "services": [{"metadata": meta("web"), "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.10",
                  "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}}],
    "endpointslices": [slice_("web-8080", 8080, "10.77.1.1"), slice_("web-9090", 9090, "10.77.1.1", "10.77.1.2")],
}
KINDS = {"ingresses": ("networking.k8s.io/v1", "IngressList"), "services": ("v1", "ServiceList"),
         "endpointslices": ("discovery.k8s.io/v1", "EndpointSliceList"), "secrets": ("v1", "SecretList"),
         "ingressclasses": ("networking.k8s.io/v1", "IngressClassList"), "nodes": ("v1", "NodeList")}

class Api(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        parts, query = urlsplit(self.path), parse_qs(urlsplit(self.path).query)
        plural = parts.path.rpartition("/")[2]
        if "sendInitialEvents" in query:  # clients of servers that cannot do this list first
            self.answer(422, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid", "code": 422})
        elif "watch" in query:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.flush()
            time.sleep(600)
        elif plural in KINDS:
            version, kind = KINDS[plural]
            self.answer(200, {"apiVersion": version, "kind": kind, "metadata": {"resourceVersion": "1"},
                              "items": ITEMS.get(plural, [])})
        else:
            self.answer(200, {"major": "1", "minor": "37", "gitVersion": "v1.37.2"})

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
open(sys.argv[1], "w").write(f"""apiVersion: v1
kind: Config
clusters: [{{name: a, cluster: {{server: "http://127.0.0.1:{server.server_port}"}}}}]
contexts: [{{name: a, context: {{cluster: a, user: a}}}}]
users: [{{name: a, user: {{}}}}]
current-context: a
""")
server.serve_forever()
PYTHON
python3 "$folder/api.py" "$folder/kubeconfig" &
api=$!
for _ in $(seq 50); do [ -s "$folder/kubeconfig" ] && break; sleep 0.2; done
KUBECONFIG=$folder/kubeconfig "$TRAEFIK" default > "$folder/out" 2> "$folder/log" &
reader=$!
for _ in $(seq 100); do grep -q '"url"' "$folder/out" && break; sleep 0.2; done
grep -h 'traefik/v3 ' "$(dirname "$0")"/../tests/support/lab/modules/traefik/go.mod | head -1
python3 - "$folder/out" <<'PYTHON'
import json, sys
last = json.loads(open(sys.argv[1]).read().splitlines()[-1])
(service,) = [s for s in last["services"].values() if "loadBalancer" in s]
servers = sorted(server["url"] for server in service["loadBalancer"]["servers"])
print("expected: http://10.77.1.1:8080 http://10.77.1.1:9090 http://10.77.1.2:9090")
print("seen:    ", *servers)
if len(servers) == 2 and "http://10.77.1.2:9090" in servers:
    print("as described: one port of 10.77.1.1 gets no request")
else:
    sys.exit("otherwise than described: this Traefik may not have the fault")
PYTHON
