#!/bin/sh
# Consul 1.22.0: a transaction that writes a service leaves out its Ports, Locality and SocketPath, and answers 200.
#
# Input: a service with Ports, Locality (region and zone) or a SocketPath, sent to /v1/txn with the verb set, each as catalog/register takes
# it; and a service of catalog/register that is read by a transaction (verb get) and written back by the next one as it was answered.
# Expected: it is stored with these fields, as by catalog/register, or refused, as a transaction refuses unknown fields of a check.
# Seen: the answer is 200 without an error; the service is stored without them, so it has no port at all. What get answers has Ports, and
# setting that takes them from the service. Port, TaggedAddresses, Tags, Meta and Weights are kept.
#
# Builds Consul from its public Go module in a temporary folder (Go >= 1.26, some minutes); CONSUL=/path/to/consul uses a
# program that is there. Needs curl and python3. Exit status: 0 as described, 1 when it behaves otherwise.
set -eu
folder=$(mktemp -d)
trap 'trap "" INT TERM; kill -9 ${agent:-} 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
trap 'exit 1' INT TERM
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

answer() { # METHOD PATH BODY
  curl -sf -X "$1" "$url/$2" ${3:+-d "$3"}
}
stored() { # what health/service shows of the three fields
  answer GET "health/service/$1" | python3 -c '
import json, sys
service = json.load(sys.stdin)[0]["Service"]
print({name: service[name] for name in ("Port", "Ports", "Locality", "SocketPath", "TaggedAddresses") if service.get(name)} or "none")'
}
set_() { # NAME FIELDS: a service is written by a transaction
  answer PUT txn "[{\"Service\": {\"Verb\": \"set\", \"Node\": \"vm1\", \"Service\": {\"ID\": \"$1\", \"Service\": \"$1\", $2}}}]" > "$folder/answer"
  grep -q '"Errors": null' "$folder/answer"
  echo "set with $2: $(stored "$1")" | tee -a "$folder/seen"
}

"$CONSUL" version | head -1
PORTS='"Ports": [{"Name": "http", "Port": 8080, "Default": true}]'
answer PUT catalog/register "{\"Node\": \"vm1\", \"Address\": \"10.20.0.1\", \"Service\": {\"ID\": \"web\", \"Service\": \"web\", $PORTS}}" > /dev/null
echo "catalog/register with $PORTS: $(stored web)" | tee "$folder/registered"
answer PUT txn '[{"Service": {"Verb": "get", "Node": "vm1", "Service": {"ID": "web"}}}]' > "$folder/got"
grep -q '"Port": 8080' "$folder/got"
python3 -c '
import json, sys
service = json.load(open(sys.argv[1]))["Results"][0]["Service"]
print(json.dumps([{"Service": {"Verb": "set", "Node": "vm1", "Service": service}}]))' "$folder/got" > "$folder/back"
answer PUT txn "@$folder/back" | grep -q '"Errors": null'
echo "got by a transaction and set again: $(stored web)" | tee "$folder/seen"
set_ one "$PORTS"
set_ two '"Locality": {"Region": "west", "Zone": "a"}'
set_ three '"SocketPath": "/run/three.sock"'
set_ four '"Port": 80, "TaggedAddresses": {"lan": {"Address": "10.20.0.4", "Port": 80}}'
if grep -q "{'Port': 8080, 'Ports'" "$folder/registered" && [ "$(grep -c ': none$' "$folder/seen")" = 4 ] \
  && grep -q "{'Port': 80, 'TaggedAddresses'" "$folder/seen"; then
  echo "as described: a transaction loses these fields"
else
  echo "otherwise than described: this Consul may not have the fault"
  exit 1
fi
