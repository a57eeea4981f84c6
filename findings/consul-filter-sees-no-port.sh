#!/bin/sh
# Consul 1.22.0: the filter Service.Port does not match the Service.Port that Consul answers, where an instance has several ports.
#
# Input: two instances of one service, one registered with Port 8080, one with Ports (8080 and 9090, 8080 is the default).
# Expected: Service.Port == 8080 selects both. Both are answered with Service.Port 8080; by the documentation a filter applies to the results
# of a query, and Service.Port is a selector of this endpoint that can be compared with == and !=.
# Seen: it selects the first one alone, and Service.Port == 0 the second, whose Port in that very answer is 8080. So do catalog/service and
# the blocking query. The port is filled in after filtering. Service.Ports is refused (500), so no filter selects by port at all.
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

register() { # NODE PORTS
  curl -sf -X PUT "$url/catalog/register" -d "{\"Node\": \"$1\", \"Address\": \"10.20.0.${1#vm}\",
    \"Service\": {\"Service\": \"web\", \"ID\": \"web\", $2}}" > /dev/null
}
shown() { # PATH QUERY FILTER: the instances of the answer, with their port
  printf '%s %s: ' "${1%/web}" "$3" >&2
  curl -sf -G "$url/$1?$2" --data-urlencode "filter=$3" | python3 -c '
import json, sys
rows = [{**e.get("Service", {}), **e} for e in json.load(sys.stdin)]
print(*("{}={}".format(r["Node"]["Node"] if "Checks" in r else r["Node"], r.get("Port", r.get("ServicePort"))) for r in rows) or ["none"])' \
    | tee "$folder/line" >&2
  cat "$folder/line"
}

"$CONSUL" version | head -1
register vm1 '"Port": 8080'
register vm2 '"Ports": [{"Name": "http", "Port": 8080, "Default": true}, {"Name": "admin", "Port": 9090}]'
seen=$(shown health/service/web '' 'Service.Service == "web"')
seen=$seen/$(shown health/service/web '' 'Service.Port == 8080')
seen=$seen/$(shown health/service/web 'index=1&wait=1s' 'Service.Port == 8080')
seen=$seen/$(shown health/service/web '' 'Service.Port == 0')
seen=$seen/$(shown catalog/service/web '' 'ServicePort == 8080')
seen=$seen/$(shown catalog/service/web '' 'ServicePort == 0')
if [ "$seen" = "vm1=8080 vm2=8080/vm1=8080/vm1=8080/vm2=8080/vm1=8080/vm2=8080" ]; then
  echo "as described: the filter sees the port 0 where the answer has 8080"
else
  echo "otherwise than described: this Consul may not have the fault"
  exit 1
fi
