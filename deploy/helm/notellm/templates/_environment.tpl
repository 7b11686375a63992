{{/* The environment of the service: what the chart decides, the bootstrap key, tracing, the store's address,
then `settings`, `secretSettings` and `extraEnv`. */}}
{{- define "notellm.environment" -}}
- {name: NOTELLM_HOST, value: {{ .Values.host | quote }}}
- {name: NOTELLM_PORT, value: "8000"}
- {name: NOTELLM_DATA_DIR, value: /data}
- {name: NOTELLM_CACHE_DIR, value: /cache}
- {name: HF_HOME, value: /cache/huggingface}
- {name: NOTELLM_DRAIN_SECONDS, value: {{ .Values.drainSeconds | quote }}}
- {name: NOTELLM_SHUTDOWN_SECONDS, value: {{ .Values.shutdownSeconds | quote }}}
{{- if .Values.adminPort }}
- {name: NOTELLM_ADMIN_PORT, value: {{ .Values.adminPort | quote }}}
{{- end }}
{{- if .Values.keys.insecure }}
- {name: NOTELLM_INSECURE, value: "1"}
- {name: NOTELLM_ALLOWED_HOSTS, value: "*"}
{{- else }}
- name: NOTELLM_BOOTSTRAP_KEY
  valueFrom: {secretKeyRef: {name: {{ .Values.keys.existingSecret }}, key: bootstrap}}
{{- end }}
{{- if .Values.checkpoint.existingClaim }}
- {name: NOTELLM_CHECKPOINT, value: /checkpoint}
{{- end }}
{{- with .Values.tracing }}
{{- if .endpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ .endpoint | quote }}}
- {name: OTEL_TRACES_SAMPLER, value: parentbased_traceidratio}
- {name: OTEL_TRACES_SAMPLER_ARG, value: {{ .sampleRatio | quote }}}
{{- end }}
{{- end }}
{{- $store := include "notellm.store" . }}
{{- if eq $store "valkey" }}
- name: VALKEY_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ .Values.valkey.existingSecret | default (printf "%s-valkey" .Release.Name) }}, key: password}
- {name: NOTELLM_REDIS_URL, value: "redis://:$(VALKEY_PASSWORD)@{{ .Release.Name }}-valkey:6379/0"}
{{- else if eq $store "external" }}
- name: NOTELLM_REDIS_URL
  valueFrom:
    secretKeyRef:
      name: {{ .Values.redis.existingSecret | default (printf "%s-redis" (include "notellm.fullname" .)) }}
      key: {{ if .Values.redis.existingSecret }}{{ .Values.redis.secretKey }}{{ else }}url{{ end }}
{{- end }}
{{- range $name, $value := .Values.settings }}
- {name: NOTELLM_{{ upper $name }}, value: {{ include "notellm.setting" $value | quote }}}
{{- end }}
{{- range $name, $reference := .Values.secretSettings }}
- name: NOTELLM_{{ upper $name }}
  valueFrom: {secretKeyRef: {name: {{ $reference.name }}, key: {{ $reference.key }}}}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}
