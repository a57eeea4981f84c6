#!/bin/sh
# Consul 1.22.0: a blocking query of the catalog sleeps through the end of a service whose instance gets another service name.
#
# Input: an agent has a service "web" with the id "a1". Its definition is registered again, with the same id and the name "shop".
# Expected: a blocking query of /v1/catalog/service/web returns when that has no instance any more, as it does when the instance is
# deregistered. By the documentation of blocking queries X-Consul-Index identifies the state of what is asked for: another state has
# another index.
# Seen: the query sleeps for all of its wait, and web without an instance has the index that it had with one. The registration moves the
# index of "shop" only. With near=_agent, /v1/health/service/web even answers with the instance when the wait is over.
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

register() {
  curl -sf -X PUT "$url/agent/service/register" -d "{\"ID\": \"$1\", \"Name\": \"$2\", \"Port\": 80}"
}
read_() { # PATH: "COUNT INDEX" of an answer, count of instances and X-Consul-Index
  curl -sf -D "$folder/${2:-plain}" "$url/$1" | python3 -c 'import json, sys; print(len(json.load(sys.stdin)), end=" ")'
  tr -d '\r' < "$folder/${2:-plain}" | sed -n 's/^X-Consul-Index: //Ip'
}
waits() { # PATH CHANGE...: makes the change while a query waits for it, and says how both went
  path=$1
  shift
  before=$(read_ "$path")
  began=$(date +%s%N)
  { read_ "$path&index=${before#* }&wait=10s" waiting > "$folder/answer"; date +%s%N > "$folder/ended"; } &
  query=$!
  sleep 1
  "$@"
  wait "$query"
  took=$((($(cat "$folder/ended") - began) / 1000000000))
  after=$(read_ "$path")
  answer=$(cat "$folder/answer")
  [ "$took" -ge 9 ] && how=slept || how=woken
  [ "${before#* }" = "${after#* }" ] && index="the same index" || index="another index"
  echo "${path%\?*}: $how after $took s; ${before% *} instance before, ${answer% *} in the answer, ${after% *} by a plain read at $index"
}
deregister() {
  curl -sf -X PUT "$url/agent/service/deregister/$1"
}

"$CONSUL" version | head -1
register a1 web
sleep 1
waits 'catalog/service/web?' register a1 shop | tee "$folder/renamed"
register a2 web
sleep 1
waits 'health/service/web?near=_agent' register a2 shop | tee -a "$folder/renamed"
register a3 web
sleep 1
waits 'catalog/service/web?' deregister a3 | tee "$folder/deregistered"
if [ "$(grep -c 'slept .* 1 instance before, . in the answer, 0 by a plain read at the same index' "$folder/renamed")" = 2 ] \
  && grep -q 'health.* 1 in the answer' "$folder/renamed" && grep -q woken "$folder/deregistered"; then
  echo "as described: the query is woken by a deregistration, and not by another service name"
else
  echo "otherwise than described: this Consul may not have the fault"
  exit 1
fi
