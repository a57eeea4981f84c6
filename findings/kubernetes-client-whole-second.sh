#!/bin/sh
# Python package kubernetes 37.0.2 with Kubernetes 1.37.2: a Lease or an Event whose time is a whole second cannot be created or replaced.
#
# Input: a Lease with renewTime "2026-11-30T10:00:00.000000Z", as text in a dict; the same Lease as the package's own model; the Lease that
# the API server answered, written back unchanged; an Event of events.k8s.io with such an eventTime. The API wants exactly six digits there.
# Expected: they are stored. The text is what the API server itself answers; with a microsecond more in it each of the requests passes, and
# version 36.0.3 of the package sends a dict as it is.
# Seen: 37.0.2 makes a datetime of the text, and sends that in the form of isoformat(), which leaves out microseconds that are zero:
# "2026-11-30T10:00:00+00:00". The answer is 400, cannot parse "+00:00" as ".000000". The same dict as a patch is sent as it is, and passes.
#
# Installs the package and builds etcd and kube-apiserver from their public Go modules in a temporary folder (Go >= 1.26, 15 minutes);
# ETCD and KUBE_APISERVER=/path/to/program use programs that are there. Needs curl, openssl and python3 >= 3.10.
# Exit status: 0 as described, 1 when it behaves otherwise.
set -eu
folder=$(mktemp -d)
trap 'trap "" INT TERM; kill -9 ${started:-} 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
trap 'exit 1' INT TERM
build() { # MODULE PACKAGE: the program of this package, in the versions of the lab's go.mod
  module=$(dirname "$0")/../tests/support/lab/modules/$1 program=$(mktemp -d -p "$folder")
  cp "$module/go.mod" "$module/go.sum" "$program"
  (cd "$program" && CGO_ENABLED=0 GOFLAGS=-mod=readonly GOTOOLCHAIN=local GOWORK=off go build -buildvcs=false -trimpath \
    -gcflags=all=-dwarf=false -ldflags '-s -w -X k8s.io/component-base/version.gitVersion=v1.37.2' -o program "$2")
  echo "$program/program"
}
[ -n "${ETCD:-}" ] || ETCD=$(build etcd go.etcd.io/etcd/server/v3)
[ -n "${KUBE_APISERVER:-}" ] || KUBE_APISERVER=$(build kubernetes k8s.io/kubernetes/cmd/kube-apiserver)
set -- $(python3 -c '
import socket
socks = [socket.socket() for _ in range(3)]
for s in socks: s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in socks))')
etcd=http://127.0.0.1:$1 peer=http://127.0.0.1:$2 url=https://127.0.0.1:$3
"$ETCD" --data-dir "$folder/data" --listen-client-urls "$etcd" --advertise-client-urls "$etcd" --listen-peer-urls "$peer" \
  --initial-advertise-peer-urls "$peer" --initial-cluster "default=$peer" > "$folder/etcd.log" 2>&1 &
started=$!
openssl genrsa -out "$folder/sa.key" 2048 2> /dev/null
token=$(openssl rand -hex 16)
echo "$token,admin,1,\"system:masters\"" > "$folder/tokens.csv"
"$KUBE_APISERVER" --etcd-servers "$etcd" --bind-address 127.0.0.1 --secure-port "$3" --cert-dir "$folder/certs" \
  --token-auth-file "$folder/tokens.csv" --service-account-issuer "$url" --service-account-key-file "$folder/sa.key" \
  --service-account-signing-key-file "$folder/sa.key" --service-cluster-ip-range 10.96.0.0/16 --endpoint-reconciler-type none \
  --advertise-address 10.255.255.1 --authorization-mode RBAC > "$folder/apiserver.log" 2>&1 &
started="$started $!"
for _ in $(seq 150); do
  curl -sf --cacert "$folder/certs/apiserver.crt" -H "Authorization: Bearer $token" "$url/api/v1/namespaces/default" > /dev/null && break
  sleep 0.2
done
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check kubernetes==37.0.2
"$folder/venv/bin/python" - "$url" "$token" "$folder/certs/apiserver.crt" <<'PYTHON'
import json, sys
from datetime import datetime, timezone
from kubernetes import __version__, client

settings = client.Configuration()
settings.host, settings.ssl_ca_cert = sys.argv[1], sys.argv[3]
settings.api_key = {"BearerToken": f"Bearer {sys.argv[2]}"}
api = client.ApiClient(settings)
leases, events = client.CoordinationV1Api(api), client.EventsV1Api(api)
print("kubernetes", __version__, "with", client.VersionApi(api).get_code().git_version)

def lease(name, time):
    return {"metadata": {"name": name}, "spec": {"renewTime": time}}

def event(name, time):
    return {"metadata": {"name": name}, "eventTime": time, "type": "Normal", "reason": "Test", "action": "Test", "regarding": {},
            "reportingController": "example.com/test", "reportingInstance": "test"}

def model(name, *time):
    return client.V1Lease(metadata=client.V1ObjectMeta(name=name),
                          spec=client.V1LeaseSpec(renew_time=datetime(*time, tzinfo=timezone.utc)))

def outcome(what, request, *arguments):
    try:
        request(*arguments)
        found = "stored"
    except client.ApiException as error:
        found = f"{error.status} {json.loads(error.body)['message'].rpartition(': ')[2]}"
    print(f"{what}: {found}")
    return found.split()[0]

WHOLE, MORE = "2026-11-30T10:00:00.000000Z", "2026-11-30T10:00:00.000001Z"
create, patch, replace = leases.create_namespaced_lease, leases.patch_namespaced_lease, leases.replace_namespaced_lease
seen = [
    outcome("dict, a microsecond more", create, "default", lease("dict", MORE)),
    outcome("model, a microsecond more", create, "default", model("model", 2026, 11, 30, 10, 0, 0, 1)),
    outcome("event, a microsecond more", events.create_namespaced_event, "default", event("more", MORE)),
    outcome("dict as a patch", patch, "dict", "default", lease("dict", WHOLE)),
    outcome("dict", create, "default", lease("dict2", WHOLE)),
    outcome("model", create, "default", model("model2", 2026, 11, 30, 10)),
    outcome("read and written back", replace, "dict", "default", leases.read_namespaced_lease("dict", "default")),
    outcome("event", events.create_namespaced_event, "default", event("whole", WHOLE)),
]
if seen != ["stored"] * 4 + ["400"] * 4:
    sys.exit("otherwise than described: these versions may not have the fault")
print("as described: a time of a whole second is refused")
PYTHON
