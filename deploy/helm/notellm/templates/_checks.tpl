{{/* Values that are each well formed and cannot work together. */}}
{{- define "notellm.checks" -}}
{{- $store := include "notellm.store" . -}}
{{- $replicated := include "notellm.replicated" . -}}
{{- if and .Values.valkey.enabled (or .Values.redis.url .Values.redis.existingSecret) -}}
{{- fail "valkey.enabled and redis.url or redis.existingSecret name two stores: keep one" -}}
{{- end -}}
{{- if and .Values.redis.url .Values.redis.existingSecret -}}
{{- fail "redis.url and redis.existingSecret both hold the URL: keep one" -}}
{{- end -}}
{{- if and $replicated (eq $store "embedded") -}}
{{- fail "more than one replica needs a store that they share: set valkey.enabled, redis.url or redis.existingSecret" -}}
{{- end -}}
{{- if and (eq $store "embedded") (not .Values.persistence.enabled) -}}
{{- fail "the embedded store without persistence.enabled loses every note with its pod" -}}
{{- end -}}
{{- if and (ne $store "embedded") (or (hasKey .Values.settings "store_memory_bytes") (hasKey .Values.secretSettings "store_memory_bytes")) -}}
{{- fail "settings.store_memory_bytes bounds the embedded store, and another one is named: set valkey.maxmemory, or the maxmemory of your Redis" -}}
{{- end -}}
{{- if and $replicated .Values.persistence.enabled (not .Values.persistence.existingClaim) (ne .Values.persistence.accessMode "ReadWriteMany") -}}
{{- fail "replicas on several nodes cannot share a ReadWriteOnce volume: set persistence.accessMode=ReadWriteMany or persistence.enabled=false" -}}
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
{{- fail "keda.enabled needs keda.prometheus, the address of the Prometheus that it asks" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.enabled needs ingress.hosts" -}}
{{- end -}}
{{- $namespace := list (dict "podSelector" dict) -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.controllerInNamespace) .Values.networkPolicy.enabled (deepEqual .Values.networkPolicy.from $namespace) -}}
{{- fail "ingress.enabled: networkPolicy.from lets in the pods of this namespace alone, and no ingress controller: name its pods there too, or set ingress.controllerInNamespace where it is one of them" -}}
{{- end -}}
{{- if and (ne .Values.service.type "ClusterIP") .Values.networkPolicy.enabled (deepEqual .Values.networkPolicy.from $namespace) -}}
{{- fail (printf "service.type %s: networkPolicy.from lets in the pods of this namespace alone: name there who may call from outside" .Values.service.type) -}}
{{- end -}}
{{- range $name := list "tls_certificate" "tls_key" -}}
{{- if or (hasKey $.Values.settings $name) (hasKey $.Values.secretSettings $name) -}}
{{- fail (printf "%s cannot be set here: the probes speak HTTP, and no certificate is mounted. Leave TLS to the ingress" $name) -}}
{{- end -}}
{{- end -}}
{{- if not (or .Values.keys.insecure .Values.keys.existingSecret) -}}
{{- fail "keys.existingSecret must name a Secret with a bootstrap key, or keys.insecure=true leave it to a proxy who may call" -}}
{{- end -}}
{{- if and .Values.checkpoint.existingClaim .Values.settings.checkpoint -}}
{{- fail "checkpoint.existingClaim and settings.checkpoint name two checkpoints: keep one" -}}
{{- end -}}
{{- if and .Values.gpu.enabled (eq (toString .Values.settings.device) "cpu") -}}
{{- fail "gpu.enabled takes a GPU that settings.device=cpu would leave idle" -}}
{{- end -}}
{{- end -}}
