#!/bin/sh
# kustomize 5.8.1: namePrefix detaches a hand-written EndpointSlice from its Service.
#
# Input: a Service without selector; its addresses as an EndpointSlice (the label kubernetes.io/service-name names the Service, as the API
# wants it) and, for older readers, as an Endpoints object; an Ingress of the Service. The kustomization has a namePrefix.
# Expected: by its documentation kustomize puts the prefix before the names of all resources and before references to them. So the
# Ingress and the label name the Service by its new name.
# Seen: the Service, the Endpoints, the slice and the Ingress's reference get the prefix, the label keeps the old name. The Service has no
# endpoint then; and where another Service of the namespace has the old name, its clients are sent to these addresses. kustomize says nothing.
#
# Builds kustomize from its public Go module in a temporary folder (Go >= 1.26, a minute); KUSTOMIZE=/path/to/kustomize uses a program
# that is there. Exit status: 0 as described, 1 when it behaves otherwise.
set -eu
folder=$(mktemp -d)
trap 'trap "" INT TERM; rm -rf "$folder"' EXIT
trap 'exit 1' INT TERM
if [ -z "${KUSTOMIZE:-}" ]; then
  cp "$(dirname "$0")"/../tests/support/lab/modules/kustomize/go.mod "$(dirname "$0")"/../tests/support/lab/modules/kustomize/go.sum "$folder"
  KUSTOMIZE=$folder/kustomize
  (cd "$folder" && CGO_ENABLED=0 GOFLAGS=-mod=readonly GOTOOLCHAIN=local GOWORK=off go build -buildvcs=false -trimpath \
    -gcflags=all=-dwarf=false -ldflags '-s -w' -o kustomize sigs.k8s.io/kustomize/kustomize/v5)
fi
mkdir "$folder/base"
cat > "$folder/base/kustomization.yaml" <<'YAML'
namePrefix: blue-
resources: [web.yaml]
YAML
cat > "$folder/base/web.yaml" <<'YAML'
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.77.1.1], conditions: {ready: true}}]
---
apiVersion: v1
kind: Endpoints
metadata: {name: web, labels: {endpointslice.kubernetes.io/skip-mirror: "true"}}
subsets: [{addresses: [{ip: 10.77.1.1}], ports: [{name: http, port: 8080}]}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec: {defaultBackend: {service: {name: web, port: {name: http}}}}
YAML
"$KUSTOMIZE" version
"$KUSTOMIZE" build "$folder/base" > "$folder/built"
grep -E '^kind:|name: .*web|service-name:' "$folder/built" | tee "$folder/names"
if [ "$(grep -c ' name: blue-web$' "$folder/names")" = 5 ] && grep -q 'kubernetes.io/service-name: web$' "$folder/names"; then
  echo "as described: the slice has the new name, and belongs to a Service of the old one"
else
  echo "otherwise than described: this kustomize may not have the fault"
  exit 1
fi
