{{- define "notellm.fullname" -}}
{{- if contains .Chart.Name (.Release.Name | trunc 50) -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" (.Release.Name | trunc 42 | trimSuffix "-") .Chart.Name }}
{{- end -}}
{{- end -}}

{{- define "notellm.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: api
{{- end -}}

{{- define "notellm.labels" -}}
{{ include "notellm.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "notellm.adminLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: admin
{{- end -}}

{{- define "notellm.adminService" -}}
{{ include "notellm.fullname" . }}-admin
{{- end -}}

{{/* The Service whose pods Prometheus scrapes: its series have this name as `service`. */}}
{{- define "notellm.scrapedService" -}}
{{ include (ternary "notellm.adminService" "notellm.fullname" (gt (int .Values.adminPort) 0)) . }}
{{- end -}}

{{- define "notellm.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ if .Values.gpu.enabled }}-gpu{{ end }}
{{- end -}}
{{- end -}}

{{- define "notellm.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "notellm.fullname" .) }}
{{- end -}}

{{/* "embedded", "valkey" or "external". */}}
{{- define "notellm.store" -}}
{{- if .Values.valkey.enabled -}}valkey
{{- else if or .Values.redis.url .Values.redis.existingSecret -}}external
{{- else -}}embedded
{{- end -}}
{{- end -}}

{{/* Port of the external Redis: the one that is set, else that of redis.url, where the chart knows the URL. */}}
{{- define "notellm.redisPort" -}}
{{- if .Values.redis.port -}}
{{ .Values.redis.port }}
{{- else -}}
{{ .Values.redis.url | regexFind ":[0-9]+([/?][^@]*)?$" | regexFind "[0-9]+" | default "6379" }}
{{- end -}}
{{- end -}}

{{/* Mebibytes, rounded down, of a size such as 1gb (Valkey) or 1.5Gi (Kubernetes); below a mebibyte 0. */}}
{{- define "notellm.mebibytes" -}}
{{- $factor := get (dict "m" 1.0 "g" 1024.0) (regexFind "[A-Za-z]" . | lower) | default 0.0 -}}
{{ mulf (regexFind "^[0-9.]+" . | float64) $factor | int }}
{{- end -}}

{{/* "true" where more than one replica may run. */}}
{{- define "notellm.replicated" -}}
{{- if or (gt (int .Values.replicas) 1) .Values.autoscaling.enabled .Values.keda.enabled -}}true{{- end -}}
{{- end -}}

{{/* A setting as the environment has it. Helm reads each number as a float, which would be written as 1.6e+07. */}}
{{- define "notellm.setting" -}}
{{- if kindIs "slice" . -}}{{ join "," . }}
{{- else if and (kindIs "float64" .) (eq . (float64 (int64 .))) -}}{{ int64 . }}
{{- else -}}{{ . }}
{{- end -}}
{{- end -}}

{{/* For every container of the chart; they write only where a volume is mounted. */}}
{{- define "notellm.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* For every pod of the chart: 10001 is the user of the image. */}}
{{- define "notellm.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}
