"""Helpers that render the Helm chart with Helm's own engine."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from service.store.embedded_redis import STOP_SECONDS
from tests.deploy import helm

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "notellm"
SPANS_SECONDS = 10
"""Seconds that the exporter takes at most to send the last spans."""
EXAMPLES = sorted((ROOT / "deploy" / "helm" / "values").glob("*.yaml"))
CLEANUP_SECONDS = STOP_SECONDS + SPANS_SECONDS
"""Seconds that a process may take to end after it has answered all requests and emptied the queue: the embedded server
stops, and the last spans are sent."""
RELEASE, NAMESPACE = "shop", "prod"
PASSWORD = "correct-horse-battery-staple"

EVERYTHING: dict[str, Any] = {
    "image": {"digest": "sha256:" + "0" * 64, "pullSecrets": [{"name": "registry"}]},
    "settings": {"categories": ["Food", "Travel"], "max_body_bytes": 64 * 2**20, "snapshot_seconds": 1.5},
    "secretSettings": {"blocked_hashtags": {"name": "blocked", "key": "list"}},
    "checkpoint": {"existingClaim": "model", "accessMode": "ReadOnlyMany"},
    "extraEnv": [{"name": "OTEL_EXPORTER_OTLP_HEADERS", "value": "team=notes"}],
    "extraVolumes": [{"name": "scenarios", "configMap": {"name": "scenarios"}}],
    "extraVolumeMounts": [{"name": "scenarios", "mountPath": "/scenarios", "readOnly": True}],
    "valkey": {
        "enabled": True,
        "password": PASSWORD,
        "persistence": {"storageClass": "fast"},
        "image": {"pullSecrets": [{"name": "registry"}]},
    },
    "persistence": {"accessMode": "ReadWriteMany", "storageClass": "shared"},
    "adminPort": 9000,
    "podAnnotations": {"team": "notes"},
    "affinity": {"podAntiAffinity": {}},
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "annotations": {"auth": "proxy"},
        "hosts": ["notes.example"],
        "tls": [{"secretName": "notes-tls", "hosts": ["notes.example"]}],
    },
    "networkPolicy": {
        "from": [
            {"podSelector": {}},
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}},
        ],
        "extraEgress": [{"ports": [{"port": 443}]}],
    },
    "keda": {"enabled": True, "prometheus": "http://prometheus.monitoring:9090"},
    "tracing": {"endpoint": "http://collector.monitoring:4318", "sampleRatio": 0.01},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True},
    "dashboard": {"enabled": True},
}
VALUES: dict[str, dict[str, Any]] = {
    "defaults": {},
    **{path.stem: yaml.safe_load(path.read_text()) for path in EXAMPLES},
    "redis-url": {"redis": {"url": f"rediss://:{PASSWORD}@redis.example:6380/0"}},
    "everything": EVERYTHING,
}
"""Valid sets of values: the defaults, the examples, and options that these do not cover."""


def render(values: dict[str, Any], release: str = RELEASE) -> dict[str, str]:
    """Return the text of each template by its name. Raises HelmError."""
    return helm.render(CHART, values, release=release, namespace=NAMESPACE)


def documents(values: dict[str, Any], release: str = RELEASE) -> list[dict[str, Any]]:
    """Return all Kubernetes objects of the rendered chart."""
    return copy.deepcopy(_documents(json.dumps(values), release))


@cache
def _documents(values: str, release: str) -> list[dict[str, Any]]:
    manifests = [text for name, text in render(json.loads(values), release).items() if not name.endswith("NOTES.txt")]
    return [document for text in manifests for document in yaml.load_all(text, yaml.CSafeLoader) if document]


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in objects if document["kind"] == kind]


def pods(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the pods, and the pod templates of controllers: objects with `metadata` and `spec`."""
    for document in objects:
        if document["kind"] == "Pod":
            yield document
        elif document["kind"] in ("Deployment", "StatefulSet"):
            yield document["spec"]["template"]


def api(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the specification of the service's pod."""
    (deployment,) = of_kind(objects, "Deployment")
    specification: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return specification


def environment(pod: dict[str, Any]) -> dict[str, Any]:
    """Return the environment variables of a pod's only container, each as a value or a reference."""
    (container,) = pod["containers"]
    return {variable["name"]: variable.get("value", variable.get("valueFrom")) for variable in container["env"]}
