{{- define "plaudit.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "plaudit.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- $name := include "plaudit.name" . }}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Labels that never change: selectors are immutable, so the chart's version is not among them. */}}
{{- define "plaudit.selector" -}}
app.kubernetes.io/name: {{ include "plaudit.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "plaudit.labels" -}}
{{ include "plaudit.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "plaudit.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion }}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else if eq $tag "latest" }}
{{- fail "image.tag: \"latest\" names no version; give a tag or a digest" }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository $tag }}
{{- end }}
{{- end }}

{{/* What no schema can say: values that contradict each other. */}}
{{- define "plaudit.check" -}}
{{- $v := .Values }}
{{- $embedded := eq $v.settings.log.kind "sqlite" }}
{{- if and $embedded (not $v.data.shared) }}
{{- fail "settings.log.kind sqlite needs data.shared: the processes meet in one data directory; or choose kafka" }}
{{- end }}
{{- if and $embedded (gt (int $v.join.replicas) 1) }}
{{- fail "join.replicas: the embedded log has one partition, so one replica; or choose settings.log.kind kafka" }}
{{- end }}
{{- if not $v.data.shared }}
{{- if not (and $v.secrets.existingSecret $v.secrets.keys.storeUrl) }}
{{- fail "data.shared false needs a database for all pods: give secrets.existingSecret and secrets.keys.storeUrl" }}
{{- end }}
{{- if not (and $v.secrets.keys.handleKeys $v.secrets.keys.pseudonymKey) }}
{{- fail "data.shared false needs common keys: give secrets.keys.handleKeys and secrets.keys.pseudonymKey" }}
{{- end }}
{{- if not (or $v.registry.existingClaim (dig "store" "registry" "" $v.settings)) }}
{{- fail "data.shared false needs a place for artifacts: give settings.store.registry or registry.existingClaim" }}
{{- end }}
{{- end }}
{{- if $v.settings.serve.insecure }}
{{- if $v.tls.existingSecret }}
{{- fail "tls.existingSecret is given: set settings.serve.insecure=false and settings.access.required=true" }}
{{- end }}
{{- if ne $v.service.type "ClusterIP" }}
{{- fail (printf "service.type %s opens the service beyond the cluster: give tls.existingSecret, settings.access.required=true and settings.serve.insecure=false" $v.service.type) }}
{{- end }}
{{- else if not (and $v.tls.existingSecret (dig "access" "required" false $v.settings)) }}
{{- fail "settings.serve.insecure false needs tls.existingSecret and settings.access.required=true, or serving does not start" }}
{{- end }}
{{- $need := add (int $v.serving.preStopSeconds) (int (ceil $v.settings.serve.drain_seconds)) 5 }}
{{- if gt $need (int $v.serving.terminationGracePeriodSeconds) }}
{{- fail (printf "serving.terminationGracePeriodSeconds must be at least %d: preStop, drain and 5 s for closing the log" $need) }}
{{- end }}
{{- end }}

{{- define "plaudit.account" -}}
{{- $part := index .Values .part }}
{{- $part.serviceAccount.name | default (printf "%s-%s" (include "plaudit.fullname" .) .part) }}
{{- end }}

{{/* Environment of a process: the settings' file, and what only secrets may say; keys of handles are serving's alone. */}}
{{- define "plaudit.env" -}}
- name: PLAUDIT_CONFIG
  value: /etc/plaudit/plaudit.toml
- name: PLAUDIT_DATA_DIR
  value: /var/lib/plaudit
- name: HOME
  value: /tmp
{{- $secret := .Values.secrets.existingSecret }}
{{- $names := dict "storeUrl" "PLAUDIT_STORE__URL" "kafkaBootstrap" "PLAUDIT_LOG__KAFKA__BOOTSTRAP" "kafkaUsername" "PLAUDIT_LOG__KAFKA__USERNAME" "kafkaPassword" "PLAUDIT_LOG__KAFKA__PASSWORD" }}
{{- if eq .part "serving" }}
{{- $names = merge $names (dict "handleKeys" "PLAUDIT_SERVE__HANDLE_KEYS" "pseudonymKey" "PLAUDIT_SERVE__PSEUDONYM_KEY") }}
{{- end }}
{{- if $secret }}
{{- range $value, $variable := $names }}
{{- with index $.Values.secrets.keys $value }}
- name: {{ $variable }}
  valueFrom:
    secretKeyRef:
      name: {{ $secret }}
      key: {{ . }}
{{- end }}
{{- end }}
{{- end }}
{{- range $variable, $from := .Values.secrets.extra }}
- name: {{ $variable }}
  valueFrom:
    secretKeyRef:
      name: {{ $from.name }}
      key: {{ $from.key }}
{{- end }}
{{- with (index .Values .part).env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The model and the artifacts are mounted where the process uses them; serving writes a new channel's version 0. */}}
{{- define "plaudit.mounts" -}}
- name: settings
  mountPath: /etc/plaudit
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- if and .Values.tls.existingSecret (eq .part "serving") }}
- name: tls
  mountPath: /etc/plaudit-tls
  readOnly: true
{{- end }}
- name: data
  mountPath: /var/lib/plaudit
{{- if and .Values.registry.existingClaim (not .Values.data.shared) (ne .part "join") }}
- name: registry
  mountPath: /var/lib/plaudit/registry
{{- end }}
{{- if and .Values.model.existingClaim (ne .part "join") }}
- name: model
  mountPath: /models
  {{- with .Values.model.subPath }}
  subPath: {{ . }}
  {{- end }}
  readOnly: true
{{- end }}
{{- end }}

{{/* "true" if each pod of serving has a volume of its own: Kafka, and no shared data directory. */}}
{{- define "plaudit.ownVolumes" -}}
{{- and (eq .Values.settings.log.kind "kafka") (not .Values.data.shared) }}
{{- end }}

{{- define "plaudit.volumes" -}}
- name: settings
  configMap:
    name: {{ include "plaudit.fullname" . }}
- name: tmp
  emptyDir: {}
{{- if and .Values.tls.existingSecret (eq .part "serving") }}
- name: tls
  secret:
    secretName: {{ .Values.tls.existingSecret }}
    defaultMode: 0440
{{- end }}
{{- if not (and (eq .part "serving") (eq (include "plaudit.ownVolumes" .) "true")) }}
- name: data
  {{- if .Values.data.shared }}
  persistentVolumeClaim:
    claimName: {{ .Values.data.existingClaim | default (printf "%s-data" (include "plaudit.fullname" .)) }}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- end }}
{{- if and .Values.registry.existingClaim (not .Values.data.shared) (ne .part "join") }}
- name: registry
  persistentVolumeClaim:
    claimName: {{ .Values.registry.existingClaim }}
{{- end }}
{{- if and .Values.model.existingClaim (ne .part "join") }}
- name: model
  persistentVolumeClaim:
    claimName: {{ .Values.model.existingClaim }}
    readOnly: true
{{- end }}
{{- end }}

{{/* A volume that one node mounts: whoever comes second goes where the first is. */}}
{{- define "plaudit.affinity" -}}
{{- $own := (index .Values .part).affinity }}
{{- if $own }}
affinity:
  {{- toYaml $own | nindent 2 }}
{{- else if .Values.data.shared }}
affinity:
  podAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- include "plaudit.selector" . | nindent 12 }}
{{- end }}
{{- end }}

{{- define "plaudit.podMeta" -}}
labels:
  {{- include "plaudit.selector" . | nindent 2 }}
  app.kubernetes.io/component: {{ .part }}
annotations:
  # Settings are read at start: a changed file is a new pod.
  checksum/settings: {{ include "plaudit.toml" . | sha256sum }}
  {{- with (index .Values .part).podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "plaudit.podSpec" -}}
{{- $part := index .Values .part -}}
serviceAccountName: {{ include "plaudit.account" . }}
automountServiceAccountToken: false
# Service links would put variables into the environment that begin like settings.
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
volumes:
  {{- include "plaudit.volumes" . | nindent 2 }}
{{- with include "plaudit.affinity" . }}
{{- . | nindent 0 }}
{{- end }}
{{- with $part.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "plaudit.container" -}}
image: {{ include "plaudit.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.containerSecurityContext | nindent 2 }}
env:
  {{- include "plaudit.env" . | nindent 2 }}
volumeMounts:
  {{- include "plaudit.mounts" . | nindent 2 }}
resources:
  {{- toYaml (index .Values .part).resources | nindent 2 }}
{{- end }}

{{- define "plaudit.toml" -}}
{{- $settings := deepCopy .Values.settings }}
{{- if .Values.tls.existingSecret }}
{{- $tls := dict "certificate" "/etc/plaudit-tls/tls.crt" "key" "/etc/plaudit-tls/tls.key" }}
{{- with .Values.tls.clientCaKey }}
{{- $_ := set $tls "client_ca" (printf "/etc/plaudit-tls/%s" .) }}
{{- end }}
{{- $_ := set $settings "access" (merge (dict "tls" $tls) ($settings.access | default dict)) }}
{{- end }}
{{ toToml $settings }}
{{- end }}

{{/* Processes without a gRPC port answer on their metrics port. */}}
{{- define "plaudit.metricsProbes" -}}
{{- if . -}}
ports:
  - name: metrics
    containerPort: {{ . }}
startupProbe:
  httpGet:
    path: /metrics
    port: metrics
  periodSeconds: 5
  failureThreshold: 60
livenessProbe:
  httpGet:
    path: /metrics
    port: metrics
  periodSeconds: 15
  # Training holds the interpreter for seconds at a time.
  timeoutSeconds: 10
  failureThreshold: 8
{{- end }}
{{- end }}
