{{/* Refuses combinations of valid values that cannot work together. */}}
{{- define "notellm.checks" -}}
{{- $store := include "notellm.store" . -}}
{{- $replicated := include "notellm.replicated" . -}}
{{- if and .Values.valkey.enabled (or .Values.redis.url .Values.redis.existingSecret) -}}
{{- fail "valkey.enabled and redis.url or redis.existingSecret configure two stores: keep one" -}}
{{- end -}}
{{- if and .Values.redis.url .Values.redis.existingSecret -}}
{{- fail "redis.url and redis.existingSecret both set the URL: keep one" -}}
{{- end -}}
{{- if and $replicated (eq $store "embedded") -}}
{{- fail "more than one replica requires a shared store: set valkey.enabled, redis.url or redis.existingSecret" -}}
{{- end -}}
{{- if and (eq $store "embedded") (not .Values.persistence.enabled) -}}
{{- fail "the embedded server without persistence.enabled loses all notes when its pod is deleted" -}}
{{- end -}}
{{- if and (ne $store "embedded") (or (hasKey .Values.settings "store_memory_bytes") (hasKey .Values.secretSettings "store_memory_bytes")) -}}
{{- fail "settings.store_memory_bytes limits the embedded server only: set valkey.maxmemory, or maxmemory of your Redis, instead" -}}
{{- end -}}
{{- if and $replicated .Values.persistence.enabled (ne .Values.persistence.accessMode "ReadWriteMany") -}}
{{- fail "replicas on several nodes cannot share a ReadWriteOnce volume: set persistence.enabled=false, or persistence.accessMode=ReadWriteMany if the claim is" -}}
{{- end -}}
{{- if and $replicated .Values.checkpoint.existingClaim (hasPrefix "ReadWriteOnce" .Values.checkpoint.accessMode) -}}
{{- fail "replicas on several nodes cannot share a ReadWriteOnce checkpoint: set checkpoint.accessMode to ReadOnlyMany or ReadWriteMany if checkpoint.existingClaim is" -}}
{{- end -}}
{{- if .Values.valkey.enabled -}}
{{- $limit := dig "limits" "memory" "" .Values.valkey.resources | toString -}}
{{- if and (regexMatch "^[0-9.]+[MG]i$" $limit) (gt (mul 4 (include "notellm.mebibytes" .Values.valkey.maxmemory | int)) (mul 3 (include "notellm.mebibytes" $limit | int))) -}}
{{- fail (printf "valkey.maxmemory %s is more than three quarters of valkey.resources.limits.memory %s: a rewrite of the append-only file needs memory beyond it, and the pod would be killed" .Values.valkey.maxmemory $limit) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled .Values.keda.enabled -}}
{{- fail "autoscaling.enabled and keda.enabled would both set the number of replicas: keep one" -}}
{{- end -}}
{{- range list .Values.autoscaling .Values.keda -}}
{{- if and .enabled (lt (int .maxReplicas) (int .minReplicas)) -}}
{{- fail "maxReplicas is below minReplicas" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.keda.enabled (not .Values.keda.prometheus) -}}
{{- fail "keda.enabled requires keda.prometheus, the URL of the Prometheus server to query" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.enabled requires ingress.hosts" -}}
{{- end -}}
{{- $namespace := list (dict "podSelector" dict) -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.controllerInNamespace) .Values.networkPolicy.enabled (deepEqual .Values.networkPolicy.from $namespace) -}}
{{- fail "ingress.enabled: networkPolicy.from allows only pods of this namespace, and no ingress controller: add its pods there, or set ingress.controllerInNamespace if it runs in this namespace" -}}
{{- end -}}
{{- if and (ne .Values.service.type "ClusterIP") .Values.networkPolicy.enabled (deepEqual .Values.networkPolicy.from $namespace) -}}
{{- fail (printf "service.type %s: networkPolicy.from allows only pods of this namespace: add the callers from outside there" .Values.service.type) -}}
{{- end -}}
{{- range $name := list "tls_certificate" "tls_key" -}}
{{- if or (hasKey $.Values.settings $name) (hasKey $.Values.secretSettings $name) -}}
{{- fail (printf "%s cannot be set here: the probes use HTTP, and no certificate is mounted. Terminate TLS at the ingress" $name) -}}
{{- end -}}
{{- end -}}
{{- if not (or .Values.keys.insecure .Values.keys.existingSecret) -}}
{{- fail "set keys.existingSecret to a Secret with a bootstrap key, or keys.insecure=true if a proxy authenticates callers" -}}
{{- end -}}
{{- if and .Values.checkpoint.existingClaim .Values.settings.checkpoint -}}
{{- fail "checkpoint.existingClaim and settings.checkpoint configure two checkpoints: keep one" -}}
{{- end -}}
{{- if and .Values.gpu.enabled (eq (toString .Values.settings.device) "cpu") -}}
{{- fail "gpu.enabled reserves a GPU that settings.device=cpu would leave idle" -}}
{{- end -}}
{{- end -}}
