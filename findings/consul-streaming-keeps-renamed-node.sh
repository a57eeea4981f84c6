#!/bin/sh
# Consul 1.22.0 (and 1.22.5): a blocking query on /v1/health/service shows an instance that the catalog does not have any more.
#
# Input: one service instance is registered on node "vm2", then again on node "VM2" with another address. Consul's catalog
# compares node names without case, so this is the same node, and both requests are answered 200.
# Expected: a blocking query shows what a plain read shows, one instance with the new address.
# Seen: the plain read shows one, the blocking query (streaming backend) both, at the same X-Consul-Index. After the node is
# deregistered the plain read shows none, and the blocking query still one.
#
# Builds Consul from its public Go module in a temporary folder (Go >= 1.26, some minutes); CONSUL=/path/to/consul uses a
# program that is there. Needs curl and python3. Exit status: 0 as described, 1 when it behaves otherwise.
set -eu
folder=$(mktemp -d)
trap 'kill "${agent:-}" 2>/dev/null || true; rm -rf "$folder"' EXIT
if [ -z "${CONSUL:-}" ]; then
  cp "$(dirname "$0")"/../tests/support/lab/modules/consul/go.mod "$(dirname "$0")"/../tests/support/lab/modules/consul/go.sum "$folder"
  CONSUL=$folder/consul
  (cd "$folder" && CGO_ENABLED=0 GOFLAGS=-mod=readonly GOTOOLCHAIN=local GOWORK=off \
    go build -buildvcs=false -trimpath -ldflags '-s -w' -o consul github.com/hashicorp/consul)
fi
ports=$(python3 -c '
import socket
socks = [socket.socket() for _ in range(6)]
for s in socks: s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in socks))')
set -- $ports
"$CONSUL" agent -dev -bind 127.0.0.1 -dns-port=-1 -http-port "$1" -server-port "$2" -serf-lan-port "$3" \
  -serf-wan-port "$4" -grpc-port "$5" -grpc-tls-port "$6" > "$folder/log" 2>&1 &
agent=$!
url=http://127.0.0.1:$1/v1
for _ in $(seq 100); do
  curl -sf "$url/catalog/nodes" 2>/dev/null | grep -q '"Node"' && break
  sleep 0.2
done

register() {
  curl -sf -X PUT "$url/catalog/register" -d "{\"Node\": \"$1\", \"Address\": \"$2\",
    \"Service\": {\"Service\": \"gh\", \"ID\": \"gh\", \"Port\": 80}}" > /dev/null
}
shown() { # the addresses that an answer of health/service shows, and its index
  curl -sf -D "$folder/head" "$url/health/service/gh?$1" | python3 -c '
import json, sys
print(*sorted(e["Node"]["Node"] + "=" + e["Node"]["Address"] for e in json.load(sys.stdin)) or ["none"])'
  tr -d '\r' < "$folder/head" | grep -iE '^X-Consul-(Index|Query-Backend)' >&2
}

"$CONSUL" version | head -1
register vm2 10.20.0.2
shown 'index=1&wait=1s' > /dev/null  # the streaming view begins to follow the service
register VM2 10.20.0.22
sleep 1
plain=$(shown '') blocking=$(shown 'index=1&wait=1s')
echo "registered again:  plain read: $plain   blocking query: $blocking"
curl -sf -X PUT "$url/catalog/deregister" -d '{"Node": "VM2"}' > /dev/null
sleep 1
gone=$(shown '') ghost=$(shown 'index=1&wait=1s')
echo "deregistered:      plain read: $gone   blocking query: $ghost"
if [ "$plain/$blocking/$gone/$ghost" = "VM2=10.20.0.22/VM2=10.20.0.22 vm2=10.20.0.2/none/VM2=10.20.0.22" ]; then
  echo "as described: the blocking query shows an instance that is not there"
else
  echo "otherwise than described: this Consul may not have the fault"
  exit 1
fi
