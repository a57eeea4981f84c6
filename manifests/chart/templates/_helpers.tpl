{{- /* Names */ -}}

{{- define "bridge.chartName" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- /* With the release's name in it, so that two releases in one namespace stay apart. What is too long is cut and gets a
hash of the whole; 45 leaves room for what is put behind it. */ -}}
{{- define "bridge.name" -}}
{{- $chart := include "bridge.chartName" . -}}
{{- $name := .Values.fullnameOverride -}}
{{- if not $name -}}
{{- $name = ternary .Release.Name (printf "%s-%s" .Release.Name $chart) (contains $chart .Release.Name) -}}
{{- end -}}
{{- if gt (len $name) 45 -}}
{{- $name = printf "%s-%s" ($name | trunc 36 | trimSuffix "-") ($name | sha256sum | trunc 8) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- define "bridge.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end -}}

{{- /* Of objects without a namespace: the same release name in two namespaces is two installations. */ -}}
{{- define "bridge.clusterName" -}}
{{- printf "%s-%s" (include "bridge.namespace" .) (include "bridge.name" .) -}}
{{- end -}}

{{- define "bridge.accountName" -}}
{{- default (ternary (include "bridge.name" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{- /* The owner id that the bridge has, as far as the values say it; "" where it is the bridge's default. */ -}}
{{- define "bridge.saidOwner" -}}
{{- $said := get (default dict .Values.env) "BRIDGE_OWNER" -}}
{{- range .Values.extraEnv -}}
{{- if and (eq .name "BRIDGE_OWNER") .value -}}{{- $said = .value -}}{{- end -}}
{{- end -}}
{{- if not .Values.existingConfigMap -}}
{{- $said = default (dig "owner" "" .Values.config) $said -}}
{{- end -}}
{{- $said -}}
{{- end -}}

{{- define "bridge.owner" -}}
{{- $default := printf "%s.%s" (include "bridge.namespace" .) (include "bridge.accountName" .) -}}
{{- if gt (len $default) 63 -}}
{{- $installation := printf "%s/%s" (include "bridge.namespace" .) (include "bridge.accountName" .) -}}
{{- $default = printf "%s-%s" (trunc 54 $default) ($installation | sha256sum | trunc 8) -}}
{{- end -}}
{{- default $default (include "bridge.saidOwner" .) -}}
{{- end -}}

{{- /* Labels and annotations */ -}}

{{- /* What finds the pods. No value of a user's comes in here: a Deployment's selector cannot be changed. */ -}}
{{- define "bridge.selector" -}}
app.kubernetes.io/name: {{ include "bridge.chartName" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "bridge.ownLabels" -}}
{{ include "bridge.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- /* metadata of one object: (list context name namespace labels annotations); without a namespace where that is "". */ -}}
{{- define "bridge.metadataOf" -}}
{{- $ := index . 0 -}}
name: {{ index . 1 }}
{{- with index . 2 }}
namespace: {{ . }}
{{- end }}
labels:
  {{- merge (fromYaml (include "bridge.ownLabels" $)) (index . 3) (default dict $.Values.commonLabels) | toYaml | nindent 2 }}
{{- with merge dict (index . 4) (default dict $.Values.commonAnnotations) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "bridge.metadata" -}}
{{- include "bridge.metadataOf" (list . (include "bridge.name" .) (include "bridge.namespace" .) dict dict) -}}
{{- end -}}

{{- define "bridge.podMetadata" -}}
labels:
  {{- merge (fromYaml (include "bridge.selector" .)) (default dict .Values.podLabels) (default dict .Values.commonLabels) | toYaml | nindent 2 }}
{{- with .Values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* "true" where `config` is what values.yaml has. */ -}}
{{- define "bridge.configIsDefault" -}}
{{- $rule := dict "services" (list "radosgw*") "to" (dict "name" "{service}" "port" 8080 "port_name" "http") -}}
{{- if eq (toJson .Values.config) (dict "rules" (list $rule) | toJson) -}}true{{- end -}}
{{- end -}}

{{- /* What no schema can say: all that is wrong, in sentences, before anything reaches the cluster. */ -}}
{{- define "bridge.validate" -}}
{{- $v := .Values -}}
{{- $wrong := list -}}
{{- if not (regexMatch `^(unix:///\S*[^/\s]|(https?://)?(\[[0-9a-fA-F:.%]+\]|[^/\s@:\[]+)(:[0-9]+)?(/\S*)?)$` $v.consul.address) -}}
{{- $wrong = append $wrong "consul.address: must be [http[s]://]HOST[:PORT][/PATH] or unix:///SOCKET, without user and password; Basic authentication is CONSUL_HTTP_AUTH, from a Secret by extraEnv" -}}
{{- end -}}
{{- if and $v.consul.tokenSecret.name $v.consul.login.authMethod -}}
{{- $wrong = append $wrong "consul.tokenSecret.name and consul.login.authMethod: both give a token; set one of them" -}}
{{- end -}}
{{- if and $v.consul.caSecret.name $v.consul.caConfigMap.name -}}
{{- $wrong = append $wrong "consul.caSecret.name and consul.caConfigMap.name: both give a CA; set one of them" -}}
{{- end -}}
{{- if and (hasPrefix "unix:" $v.consul.address) (include "bridge.tls" .) -}}
{{- $wrong = append $wrong "consul.address: a Unix socket is spoken to without TLS; set consul.tls, consul.caSecret and consul.caConfigMap to nothing" -}}
{{- end -}}
{{- if and $v.existingConfigMap (not (include "bridge.configIsDefault" .)) -}}
{{- $wrong = append $wrong "config: is not read where existingConfigMap is set; leave one of them out" -}}
{{- end -}}
{{- if not $v.existingConfigMap -}}
{{- range $number, $rule := $v.config.rules -}}
{{- $output := dig "to" "output" "both" $rule -}}
{{- if not (has $v.output (list $output "both")) -}}
{{- $wrong = append $wrong (printf "config.rules[%d].to.output: is %s, for which the value output: %s grants no rights; set output to %s, or to both where rules differ" $number $output $v.output $output) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $v.cronJob.enabled -}}
{{- range $kind := list "podMonitor" "serviceMonitor" "prometheusRule" -}}
{{- if (index $v $kind).enabled -}}
{{- $wrong = append $wrong (printf "%s.enabled: finds nothing to scrape where cronJob.enabled is true; set one of the two to false" $kind) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $v.podMonitor.enabled $v.serviceMonitor.enabled -}}
{{- $wrong = append $wrong "podMonitor.enabled and serviceMonitor.enabled: every replica would be scraped twice; set one of them" -}}
{{- end -}}
{{- if and $v.serviceMonitor.enabled (not $v.service.enabled) -}}
{{- $wrong = append $wrong "serviceMonitor.enabled: finds no Service; set service.enabled to true, or take podMonitor" -}}
{{- end -}}
{{- if and $v.networkPolicy.egress.enabled (not $v.networkPolicy.egress.rules) -}}
{{- $wrong = append $wrong "networkPolicy.egress.rules: is empty, which would cut the bridge off from Consul and the API server; write a rule for each" -}}
{{- end -}}
{{- range $value := list "commonLabels" "podLabels" -}}
{{- range $key := keys (default dict (index $v $value)) | sortAlpha -}}
{{- if hasKey (fromYaml (include "bridge.ownLabels" $)) $key -}}
{{- $wrong = append $wrong (printf "%s: the chart sets %s itself; take it out%s" $value $key (ternary " (nameOverride changes it)" "" (eq $key "app.kubernetes.io/name"))) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $reserved := dict
  "BRIDGE_CONFIG" "config or existingConfigMap"
  "BRIDGE_LEADER_ELECT" "replicaCount: 1 for a single replica; even its rollout has two pods for a moment, and the election keeps one of them from writing"
  "POD_NAME" "another name" "POD_NAMESPACE" "another name" "POD_SERVICE_ACCOUNT" "another name" -}}
{{- $names := keys (default dict $v.env) | sortAlpha -}}
{{- range $v.extraEnv -}}{{- $names = append $names .name -}}{{- end -}}
{{- $selects := or $v.existingConfigMap (kindIs "slice" $v.config.rules) $v.extraEnvFrom $v.extraArgs (has "BRIDGE_SERVICE" $names) (has "BRIDGE_TAG" $names) (has "BRIDGE_FILTER" $names) -}}
{{- if not $selects -}}
{{- $wrong = append $wrong "config.rules: says no service, and the bridge would not start; write rules, or `rules: []` to fill annotated Services alone" -}}
{{- end -}}
{{- range $place, $name := $names -}}
{{- if not (regexMatch `^[A-Za-z_][A-Za-z0-9_]*$` $name) -}}
{{- $wrong = append $wrong (printf "env: %q is no name of a variable; write letters, digits and _ (in quotes where YAML takes them for something else)" $name) -}}
{{- end -}}
{{- with get $reserved $name -}}
{{- $wrong = append $wrong (printf "env: %s is set by the chart, which needs it so; use %s" $name .) -}}
{{- end -}}
{{- if has $name (slice $names 0 $place) -}}
{{- $wrong = append $wrong (printf "extraEnv: %s is there twice (env counts as well); leave one of them" $name) -}}
{{- end -}}
{{- end -}}
{{- range concat (list (dict "name" "env" "value" (get (default dict $v.env) "BRIDGE_LISTEN"))) (default list $v.extraEnv) -}}
{{- if and (has .name (list "env" "BRIDGE_LISTEN")) .value (not (hasSuffix ":9480" (toString .value))) -}}
{{- $wrong = append $wrong "env: BRIDGE_LISTEN must end with :9480, where probes, metrics and the Service look; service.port is what others see" -}}
{{- end -}}
{{- end -}}
{{- $taken := list "bridge" -}}
{{- if not $v.cronJob.enabled -}}
{{- range $v.extraContainers -}}
{{- if has .name $taken -}}
{{- $wrong = append $wrong (printf "extraContainers: the name %s is taken; choose another one" .name) -}}
{{- end -}}
{{- $taken = append $taken .name -}}
{{- end -}}
{{- end -}}
{{- range $v.initContainers -}}
{{- if has .name $taken -}}
{{- $wrong = append $wrong (printf "initContainers: the name %s is taken; choose another one" .name) -}}
{{- end -}}
{{- $taken = append $taken .name -}}
{{- end -}}
{{- $taken = list -}}
{{- range include "bridge.volumes" . | fromYamlArray -}}{{- $taken = append $taken .name -}}{{- end -}}
{{- range $v.extraVolumes -}}
{{- if has .name $taken -}}
{{- $wrong = append $wrong (printf "extraVolumes: the name %s is taken; choose another one" .name) -}}
{{- end -}}
{{- $taken = append $taken .name -}}
{{- end -}}
{{- $taken = list -}}
{{- range include "bridge.mounts" . | fromYamlArray -}}{{- $taken = append $taken .mountPath -}}{{- end -}}
{{- range $v.extraVolumeMounts -}}
{{- if has .mountPath $taken -}}
{{- $wrong = append $wrong (printf "extraVolumeMounts: something is mounted at %s already; choose another path" .mountPath) -}}
{{- end -}}
{{- $taken = append $taken .mountPath -}}
{{- end -}}
{{- if $wrong -}}
{{- fail (printf "\n%s" (join "\n" (uniq $wrong))) -}}
{{- end -}}
{{- end -}}

{{- /* Settings */ -}}

{{- /* With a hash of the content, as kustomize has it: a change rolls the pods, and pods that run keep what they have. */ -}}
{{- define "bridge.configName" -}}
{{- $own := printf "%s-%s" (include "bridge.name" .) (.Values.config | toJson | sha256sum | trunc 10) -}}
{{- default $own .Values.existingConfigMap -}}
{{- end -}}

{{- define "bridge.consulName" -}}
{{- printf "%s-consul-%s" (include "bridge.name" .) (.Values.consul.address | sha256sum | trunc 10) -}}
{{- end -}}

{{- /* "true" where Consul is asked by TLS whatever its address says. */ -}}
{{- define "bridge.tls" -}}
{{- with .Values.consul -}}
{{- if or .tls.secret .caSecret.name .caConfigMap.name -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{- define "bridge.ownEnvironment" -}}
- name: BRIDGE_CONFIG
  value: /etc/consul-endpoints-bridge/bridge.yaml
{{- if not .Values.cronJob.enabled }}
- name: BRIDGE_LISTEN
  value: 0.0.0.0:9480
{{- end }}
- name: BRIDGE_LOG_FORMAT
  value: json
{{- if not .Values.cronJob.enabled }}
- name: BRIDGE_LEADER_ELECT
  value: "true"
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{- if gt (int .Values.shards) 1 }}
- name: BRIDGE_SHARDS
  value: {{ .Values.shards | quote }}
{{- end }}
{{- end }}
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: POD_SERVICE_ACCOUNT
  valueFrom:
    fieldRef:
      fieldPath: spec.serviceAccountName
- name: BRIDGE_RUN_INSTANCE_NAME
  value: $(POD_NAMESPACE)/$(POD_SERVICE_ACCOUNT)
{{- if .Values.allNamespaces }}
- name: BRIDGE_WATCH_NAMESPACE
  value: "*"
{{- end }}
{{- if .Values.nodes }}
- name: BRIDGE_KUBERNETES_NODES
  value: "*"
{{- end }}
{{- $tls := include "bridge.tls" . }}
{{- with .Values.consul }}
{{- if .tokenSecret.name }}
- name: CONSUL_HTTP_TOKEN_FILE
  value: /etc/consul-acl/token
{{- end }}
{{- if .login.authMethod }}
- name: BRIDGE_CONSUL_AUTH_METHOD
  value: {{ .login.authMethod | quote }}
- name: BRIDGE_CONSUL_AUTH_TOKEN_FILE
  value: /etc/consul-login/token
{{- end }}
{{- if $tls }}
- name: CONSUL_HTTP_SSL
  value: "true"
- name: CONSUL_CACERT
  value: {{ ternary "/etc/consul-ca/ca.crt" "/etc/consul-tls/ca.crt" (or .caSecret.name .caConfigMap.name | not | not) }}
{{- end }}
{{- if and .tls.secret .tls.clientCertificate }}
- name: CONSUL_CLIENT_CERT
  value: /etc/consul-tls/tls.crt
- name: CONSUL_CLIENT_KEY
  value: /etc/consul-tls/tls.key
{{- end }}
{{- if .tls.serverName }}
- name: CONSUL_TLS_SERVER_NAME
  value: {{ .tls.serverName | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* Each variable once: server-side apply refuses a list that has one twice. What the user says takes the place of what
the chart says; the rest comes behind, extraEnv in the user's order, because $(NAME) means a variable before it. */ -}}
{{- define "bridge.environment" -}}
{{- $given := list -}}
{{- range $name, $value := .Values.env -}}
{{- $given = append $given (dict "name" $name "value" (kindIs "string" $value | ternary $value (toJson $value))) -}}
{{- end -}}
{{- $given = concat $given (default list .Values.extraEnv) -}}
{{- $result := list -}}
{{- $used := list -}}
{{- range $own := include "bridge.ownEnvironment" . | fromYamlArray -}}
{{- $entry := $own -}}
{{- range $given -}}{{- if eq .name $own.name -}}{{- $entry = . -}}{{- end -}}{{- end -}}
{{- $result = append $result $entry -}}
{{- $used = append $used $own.name -}}
{{- end -}}
{{- range $given -}}
{{- if not (has .name $used) -}}{{- $result = append $result . -}}{{- end -}}
{{- end -}}
{{- toYaml $result -}}
{{- end -}}

{{- define "bridge.volumes" -}}
- name: config
  configMap:
    name: {{ include "bridge.configName" . }}
{{- with .Values.consul.tokenSecret }}
{{- if .name }}
- name: consul-acl
  secret:
    secretName: {{ .name }}
    defaultMode: 0440
    {{- if ne .key "token" }}
    items:
      - key: {{ .key | quote }}
        path: token
    {{- end }}
{{- end }}
{{- end }}
{{- with .Values.consul.login }}
{{- if .authMethod }}
- name: consul-login
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken:
          path: token
          {{- with .audience }}
          audience: {{ . | quote }}
          {{- end }}
          expirationSeconds: 3600
{{- end }}
{{- end }}
{{- with .Values.consul.caSecret }}
{{- if .name }}
- name: consul-ca
  secret:
    secretName: {{ .name }}
    defaultMode: 0440
    items:
      - key: {{ .key | quote }}
        path: ca.crt
{{- end }}
{{- end }}
{{- with .Values.consul.caConfigMap }}
{{- if .name }}
- name: consul-ca
  configMap:
    name: {{ .name }}
    items:
      - key: {{ .key | quote }}
        path: ca.crt
{{- end }}
{{- end }}
{{- with .Values.consul.tls.secret }}
- name: consul-tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{- define "bridge.mounts" -}}
- name: config
  mountPath: /etc/consul-endpoints-bridge
  readOnly: true
{{- with .Values.consul }}
{{- if .tokenSecret.name }}
- name: consul-acl
  mountPath: /etc/consul-acl
  readOnly: true
{{- end }}
{{- if .login.authMethod }}
- name: consul-login
  mountPath: /etc/consul-login
  readOnly: true
{{- end }}
{{- if or .caSecret.name .caConfigMap.name }}
- name: consul-ca
  mountPath: /etc/consul-ca
  readOnly: true
{{- end }}
{{- if .tls.secret }}
- name: consul-tls
  mountPath: /etc/consul-tls
  readOnly: true
{{- end }}
{{- end }}
{{- end -}}

{{- /* Pods */ -}}

{{- /* OpenShift gives each namespace ids of its own and refuses others: the chart's fixed ones are left out there. */ -}}
{{- define "bridge.podSecurityContext" -}}
{{- $context := deepCopy (default dict .Values.podSecurityContext) -}}
{{- if .Capabilities.APIVersions.Has "security.openshift.io/v1" -}}
{{- range $id := list "runAsUser" "runAsGroup" "fsGroup" -}}
{{- if eq (int (get $context $id)) 65532 -}}{{- $_ := unset $context $id -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- if $context -}}{{- toYaml $context -}}{{- end -}}
{{- end -}}

{{- /* What the pods of Deployment, CronJob and test have in common, beside their container's own arguments and probes. */ -}}
{{- define "bridge.pod" -}}
serviceAccountName: {{ include "bridge.accountName" . }}
automountServiceAccountToken: true
# Otherwise every Service of the namespace becomes environment variables, and one named "bridge" or "consul" would look
# like settings of ours (BRIDGE_PORT=tcp://...).
enableServiceLinks: false
{{- with include "bridge.podSecurityContext" . }}
securityContext:
  {{- . | nindent 2 }}
{{- end }}
{{- range $field := list "imagePullSecrets" "nodeSelector" "tolerations" "affinity" "priorityClassName" "dnsPolicy" "dnsConfig" "hostAliases" "initContainers" }}
{{- with index $.Values $field }}
{{ dict $field . | toYaml }}
{{- end }}
{{- end }}
volumes:
  {{- include "bridge.volumes" . | nindent 2 }}
  {{- with .Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "bridge.image" -}}
{{- with .Values.image -}}
{{- $tag := .tag -}}
{{- if not (or .tag .digest) -}}{{- $tag = $.Chart.AppVersion -}}{{- end -}}
{{- .repository -}}{{- with $tag -}}:{{- . -}}{{- end -}}{{- with .digest -}}@{{- . -}}{{- end -}}
{{- end -}}
{{- end -}}

{{- define "bridge.container" -}}
name: bridge
image: {{ include "bridge.image" . }}
{{- with .Values.image.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
env:
  {{- include "bridge.environment" . | nindent 2 }}
envFrom:
  - configMapRef:
      name: {{ include "bridge.consulName" . }}
  {{- with .Values.extraEnvFrom }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- range $field := list "resources" "securityContext" }}
{{- with index $.Values $field }}
{{ dict $field . | toYaml }}
{{- end }}
{{- end }}
volumeMounts:
  {{- include "bridge.mounts" . | nindent 2 }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- /* The binding of a role to the bridge's ServiceAccount: (list context kind name namespace). */ -}}
{{- define "bridge.binding" -}}
{{- $ := index . 0 -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ index . 1 }}Binding
metadata:
  {{- include "bridge.metadataOf" (list $ (index . 2) (index . 3) dict dict) | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ index . 1 }}
  name: {{ index . 2 }}
subjects:
  - kind: ServiceAccount
    name: {{ include "bridge.accountName" $ }}
    namespace: {{ include "bridge.namespace" $ }}
{{- end -}}
