{{- define "bridge.name" -}}
{{- default "consul-endpoints-bridge" .Values.fullnameOverride | trunc 45 | trimSuffix "-" -}}
{{- end -}}

{{- define "bridge.selector" -}}
app.kubernetes.io/name: {{ include "bridge.name" . }}
{{- end -}}

{{- define "bridge.labels" -}}
{{ include "bridge.selector" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "bridge.metadata" -}}
name: {{ include "bridge.name" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "bridge.labels" . | nindent 2 }}
{{- end -}}

{{- /* A rule whose output the rights do not cover would only be refused later, by the API server. */ -}}
{{- define "bridge.checkOutput" -}}
{{- range $number, $rule := .Values.config.rules -}}
{{- $output := dig "to" "output" "both" $rule -}}
{{- if not (has $.Values.output (list $output "both")) -}}
{{- fail (printf "rule %d has output %s, for which the value output: %s grants no rights: set output to %s, or to both where rules differ" (add1 $number) $output $.Values.output $output) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* A Job has ended before anybody scrapes it, and ConsulBridgeAbsent would ring for ever. */ -}}
{{- define "bridge.checkMonitoring" -}}
{{- if and .Values.monitoring .Values.cronJob.enabled -}}
{{- fail "monitoring finds nothing to scrape where cronJob.enabled is true: set one of the two to false" -}}
{{- end -}}
{{- end -}}

{{- /* With a hash of the content, as kustomize has it: a change rolls the pods, and pods that run keep what they have. */ -}}
{{- define "bridge.configName" -}}
{{- printf "%s-%s" (include "bridge.name" .) (.Values.config | toJson | sha256sum | trunc 10) -}}
{{- end -}}

{{- define "bridge.consulName" -}}
{{- printf "%s-consul-%s" (include "bridge.name" .) (.Values.consul.address | sha256sum | trunc 10) -}}
{{- end -}}

{{- define "bridge.environment" -}}
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
- name: BRIDGE_RUN_INSTALLATION
  value: $(POD_NAMESPACE)/$(POD_SERVICE_ACCOUNT)
{{- if .Values.allNamespaces }}
- name: BRIDGE_WATCH_NAMESPACE
  value: "*"
{{- end }}
{{- if .Values.nodes }}
- name: BRIDGE_KUBERNETES_NODES
  value: "*"
{{- end }}
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
{{- if .tls.secret }}
- name: CONSUL_HTTP_SSL
  value: "true"
- name: CONSUL_CACERT
  value: /etc/consul-tls/ca.crt
{{- if .tls.clientCertificate }}
- name: CONSUL_CLIENT_CERT
  value: /etc/consul-tls/tls.crt
- name: CONSUL_CLIENT_KEY
  value: /etc/consul-tls/tls.key
{{- end }}
{{- end }}
{{- if .tls.serverName }}
- name: CONSUL_TLS_SERVER_NAME
  value: {{ .tls.serverName | quote }}
{{- end }}
{{- end }}
{{- range $name, $value := .Values.env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{- /* What the pods of Deployment and CronJob have in common, beside their container's own arguments and probes. */ -}}
{{- define "bridge.pod" -}}
serviceAccountName: {{ include "bridge.name" . }}
automountServiceAccountToken: true
# Otherwise every Service of the namespace becomes environment variables, and one named "bridge" or "consul" would look
# like settings of ours (BRIDGE_PORT=tcp://...).
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
volumes:
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
        - key: {{ .key }}
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
  {{- with .Values.consul.tls.secret }}
  - name: consul-tls
    secret:
      secretName: {{ . }}
      defaultMode: 0440
  {{- end }}
{{- end -}}

{{- define "bridge.container" -}}
name: bridge
image: {{ printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- with .Values.image.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
env:
  {{- include "bridge.environment" . | nindent 2 }}
envFrom:
  - configMapRef:
      name: {{ include "bridge.consulName" . }}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
volumeMounts:
  - name: config
    mountPath: /etc/consul-endpoints-bridge
    readOnly: true
  {{- if .Values.consul.tokenSecret.name }}
  - name: consul-acl
    mountPath: /etc/consul-acl
    readOnly: true
  {{- end }}
  {{- if .Values.consul.login.authMethod }}
  - name: consul-login
    mountPath: /etc/consul-login
    readOnly: true
  {{- end }}
  {{- if .Values.consul.tls.secret }}
  - name: consul-tls
    mountPath: /etc/consul-tls
    readOnly: true
  {{- end }}
{{- end -}}

{{- define "bridge.podMetadata" -}}
labels:
  {{- include "bridge.selector" . | nindent 2 }}
{{- with .Values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
