#!/bin/sh
# Kubernetes 1.37.2: the EndpointSlice mirroring controller cannot mirror Endpoints that the API server has stored.
#
# Input: a Service without selector, and Endpoints of it with one port name and two numbers. First 10.77.1.1 and 10.77.1.2 offer port
# 8080, and 10.77.1.1 port 9090 as well; then 10.77.1.2 leaves. The API server accepts both.
# Expected: the slices show what the Endpoints show. By the API reference of Endpoints all subsets count together, and by the documentation
# of EndpointSlices the control plane mirrors custom Endpoints, with a slice for each subset.
# Seen: so it is before. Afterwards both subsets have the same addresses, so the controller makes one slice with both ports of them. Of
# EndpointSlices the API demands unique port names, and refuses it; the controller tries again for ever, and says so in its log only. The
# slices keep what they had: 10.77.1.2, which has left, stays ready, and clients go on being sent there.
#
# Builds etcd, kube-apiserver and kube-controller-manager from their public Go modules in a temporary folder (Go >= 1.26, 20 minutes);
# ETCD, KUBE_APISERVER and KUBE_CONTROLLER_MANAGER=/path/to/program use programs that are there. Needs curl, openssl and python3.
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
[ -n "${KUBE_CONTROLLER_MANAGER:-}" ] || KUBE_CONTROLLER_MANAGER=$(build kubernetes k8s.io/kubernetes/cmd/kube-controller-manager)
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
cat > "$folder/kubeconfig" <<YAML
apiVersion: v1
kind: Config
clusters: [{name: a, cluster: {server: "$url", certificate-authority: $folder/certs/apiserver.crt}}]
users: [{name: a, user: {token: "$token"}}]
contexts: [{name: a, context: {cluster: a, user: a}}]
current-context: a
YAML
ask() { # METHOD PATH [BODY]
  curl -sSf --cacert "$folder/certs/apiserver.crt" -H "Authorization: Bearer $token" -H 'Content-Type: application/json' -X "$1" "$url$2" ${3:+-d "$3"}
}
for _ in $(seq 150); do ask GET /api/v1/namespaces/default 2> /dev/null | grep -q '"default"' && break; sleep 0.2; done
"$KUBE_CONTROLLER_MANAGER" --kubeconfig "$folder/kubeconfig" --leader-elect=false --secure-port=0 \
  --controllers=endpointslice-mirroring-controller > "$folder/controllers.log" 2>&1 &
started="$started $!"

endpoints() { # VERB PATH ADDRESSES: those that offer port 8080; 10.77.1.1 offers 9090 as well
  ask "$1" "/api/v1/namespaces/default/endpoints$2" "{\"metadata\": {\"name\": \"web\"}, \"subsets\": [
    {\"addresses\": [$3], \"ports\": [{\"name\": \"http\", \"port\": 8080}]},
    {\"addresses\": [{\"ip\": \"10.77.1.1\"}], \"ports\": [{\"name\": \"http\", \"port\": 9090}]}]}" > /dev/null
}
slices() { # the endpoints that the slices show as ready
  ask GET "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io/service-name=web" | python3 -c '
import json, sys
print(*sorted("{}:{}".format(e["addresses"][0], p["port"]) for s in json.load(sys.stdin)["items"]
              for e in s["endpoints"] or [] if e["conditions"]["ready"] for p in s["ports"]))'
}
echo "Kubernetes $(ask GET /version | grep gitVersion)"
ask POST /api/v1/namespaces/default/services '{"metadata": {"name": "web"}, "spec": {"ports": [{"name": "http", "port": 80}]}}' > /dev/null
all="10.77.1.1:8080 10.77.1.1:9090 10.77.1.2:8080"
endpoints POST "" '{"ip": "10.77.1.1"}, {"ip": "10.77.1.2"}'
for _ in $(seq 50); do before=$(slices); [ "$before" = "$all" ] && break; sleep 0.2; done
echo "two addresses on 8080, one on 9090: $before"
endpoints PUT /web '{"ip": "10.77.1.1"}'
sleep 5
after=$(slices)
echo "10.77.1.2 left, five seconds later: $after"
grep -o 'EndpointSlice.discovery.k8s.io .*Duplicate value.*' "$folder/controllers.log" | tail -1 || true
if [ "$before/$after" = "$all/$all" ] && grep -q 'Duplicate value' "$folder/controllers.log"; then
  echo "as described: the slices keep an address that has left, and the Endpoints are not mirrored"
else
  echo "otherwise than described: this Kubernetes may not have the fault"
  exit 1
fi
