"""Tests of the Helm chart, rendered by Helm's engine: each set of values is valid and safe, or refused."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from service.settings import Settings
from service.store.embedded_redis import server_program
from service.wiring import MERGE_SECONDS
from tests.deploy import chart
from tests.deploy.chart import (
    CHART,
    EVERYTHING,
    PASSWORD,
    RELEASE,
    VALUES,
    documents,
    environment,
    of_kind,
    pods,
    render,
)
from tests.deploy.helm import HelmError, lint
from tests.service.process import wait_until

KUBERNETES = ("1.27", "1.34")
"""The oldest version that Chart.yaml allows, and a recent one."""
CUSTOM_RESOURCES = ("ServiceMonitor", "PrometheusRule", "ScaledObject")
"""Kinds that operators define; Kubernetes itself has no schemas for them."""
EXTRA = {variable["name"] for variable in EVERYTHING["extraEnv"]}
each_set = pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)


@each_set
@pytest.mark.parametrize("version", KUBERNETES)
def test_objects_fit_the_schemas_of_kubernetes(values: dict[str, Any], version: str):
    import kubernetes_validate  # takes two seconds, and each worker imports each file

    for document in documents(values):
        if document["kind"] not in CUSTOM_RESOURCES:
            kubernetes_validate.validate(document, version, strict=True)


@each_set
def test_chart_lints(values: dict[str, Any]):
    report = lint(CHART, values)
    assert [message for message in report["messages"] if message["severity"] > 1] == []
    assert report["errors"] == []


def test_every_custom_resource_is_among_the_sets():
    kinds = {document["kind"] for values in VALUES.values() for document in documents(values)}
    assert set(CUSTOM_RESOURCES) <= kinds


def test_names_are_unique_in_their_kind():
    for values in VALUES.values():
        names = [(document["kind"], document["metadata"]["name"]) for document in documents(values)]
        assert len(set(names)) == len(names)


# Security


def check_hardened(pod: dict[str, Any]) -> None:
    """Assert that the pod meets the restricted pod security standard, and has resource bounds."""
    spec = pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    for container in spec["containers"]:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
        assert container["resources"]["requests"]["cpu"]
    for volume in spec.get("volumes", ()):
        assert "hostPath" not in volume


def toggled(**choices: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={name: st.sampled_from(options) for name, options in choices.items()})


ANY_VALUES = toggled(
    replicas=[1, 3],
    redis=[{"url": f"redis://:{PASSWORD}@redis/0"}, {"existingSecret": "notes"}],
    valkey=[{"enabled": True}, {"enabled": True, "password": PASSWORD}, {"enabled": True, "existingSecret": "valkey"}],
    persistence=[
        *({"enabled": False}, {"accessMode": "ReadWriteMany"}),
        *({"existingClaim": "notes"}, {"existingClaim": "notes", "accessMode": "ReadWriteMany"}),
    ],
    gpu=[{"enabled": True}],
    checkpoint=[{"existingClaim": "model"}],
    autoscaling=[{"enabled": True}],
    keda=[{"enabled": True}, {"enabled": True, "prometheus": "http://prometheus:9090"}],
    ingress=[{"enabled": True}, {"enabled": True, "hosts": ["notes.example"]}],
    networkPolicy=[{"enabled": False}, {"from": [{"namespaceSelector": {}}]}],
    keys=[{"insecure": True}, {"existingSecret": "others"}],
    settings=[{"device": "cpu"}, {"max_body_bytes": 2**30}],
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(ANY_VALUES)
def test_any_values_are_refused_or_hardened(values: dict[str, Any]):
    try:
        objects = documents(values)
    except HelmError:
        return
    for pod in pods(objects):
        check_hardened(pod)
    check_replicas_share_their_store(objects)
    check_secrets_stay_in_secrets(objects)
    check_keys_are_needed(objects, values.get("keys", {}).get("insecure", False))


def check_keys_are_needed(objects: list[dict[str, Any]], insecure: bool) -> None:
    """Assert that the service and its clients in the chart have the bootstrap key, or that keys are switched off."""
    variables = environment(chart.api(objects))
    assert ("NOTELLM_BOOTSTRAP_KEY" in variables) is not insecure
    assert (variables.get("NOTELLM_INSECURE") == "1") is insecure
    (check,) = of_kind(objects, "Pod")
    variable = {"name": "NOTELLM_API_KEY", "valueFrom": variables.get("NOTELLM_BOOTSTRAP_KEY")}
    assert check["spec"]["containers"][0].get("env", []) == ([] if insecure else [variable])
    for monitor in of_kind(objects, "ServiceMonitor"):
        (endpoint,) = monitor["spec"]["endpoints"]
        assert ("authorization" in endpoint) is not insecure


def check_replicas_share_their_store(objects: list[dict[str, Any]]) -> None:
    """Assert that without an external Redis there is exactly one replica and no autoscaler."""
    (deployment,) = of_kind(objects, "Deployment")
    if "NOTELLM_REDIS_URL" not in environment(chart.api(objects)):
        assert deployment["spec"]["replicas"] == 1
        assert deployment["spec"]["strategy"] == {"type": "Recreate"}
        assert of_kind(objects, "HorizontalPodAutoscaler") == of_kind(objects, "ScaledObject") == []


def check_secrets_stay_in_secrets(objects: list[dict[str, Any]]) -> None:
    """Assert that only Secrets contain the password: no argument, variable, annotation or file has it."""
    for document in objects:
        if document["kind"] != "Secret":
            assert PASSWORD not in json.dumps(document)


@each_set
def test_every_caller_needs_a_key(values: dict[str, Any]):
    check_keys_are_needed(documents(values), insecure=False)


@each_set
def test_pods_are_hardened(values: dict[str, Any]):
    for pod in pods(documents(values)):
        check_hardened(pod)


@each_set
def test_secrets_are_in_secrets_alone(values: dict[str, Any]):
    check_secrets_stay_in_secrets(documents(values))


@pytest.mark.parametrize("name", ["redis-url", "everything"])
def test_given_secret_is_kept_and_referred_to(name: str):
    objects = documents(VALUES[name])
    secrets = {
        (secret["metadata"]["name"], key)
        for secret in of_kind(objects, "Secret")
        for key, value in secret["stringData"].items()
        if PASSWORD in value
    }
    text = json.dumps([pod for pod in pods(objects)])
    assert secrets
    for secret, key in secrets:
        assert json.dumps({"secretKeyRef": {"name": secret, "key": key}}) in text


def test_service_account_has_no_token():
    (account,) = of_kind(documents({}), "ServiceAccount")
    assert account["automountServiceAccountToken"] is False


@each_set
def test_network_policy_covers_pods_that_listen(values: dict[str, Any]):
    objects = documents(values)
    policies = [policy["spec"] for policy in of_kind(objects, "NetworkPolicy")]
    for pod in pods(objects):
        if pod["spec"]["containers"][0].get("ports"):
            covering = [policy for policy in policies if selects(policy["podSelector"], pod["metadata"]["labels"])]
            assert [policy["policyTypes"] for policy in covering] == [["Ingress", "Egress"]]


# Settings of the service


@each_set
def test_variables_are_settings_of_the_service(values: dict[str, Any]):
    names = {
        name.removeprefix("NOTELLM_").lower() for name in environment(chart.api(documents(values))) if "NOTELLM" in name
    }
    assert names - set(Settings.model_fields) == set()


@each_set
def test_values_of_settings_are_read_by_the_service(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    for name, value in environment(chart.api(documents(values))).items():
        if isinstance(value, str):
            monkeypatch.setenv(name, value)
    read = Settings.from_environment()
    for name, value in {"sample_notes": 0, **values.get("settings", {})}.items():
        assert getattr(read, name) == (tuple(value) if isinstance(value, list) else value)


@each_set
def test_probes_ask_routes_of_the_service(values: dict[str, Any]):
    routes = json.loads((chart.ROOT / "docs" / "openapi.json").read_text())["paths"]
    pod = chart.api(documents(values))
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports.pop("admin", 0) == int(environment(pod).get("NOTELLM_ADMIN_PORT", "0"))
    assert ports == {"http": int(environment(pod)["NOTELLM_PORT"])}
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = container[kind]["httpGet"]
        assert "get" in routes[probe["path"]]
        assert probe["port"] in ports


@each_set
def test_rollout_has_as_long_as_a_start(values: dict[str, Any]):
    (deployment,) = of_kind(documents({**values, "startSeconds": 1800}), "Deployment")
    assert deployment["spec"]["progressDeadlineSeconds"] > 1800 + MERGE_SECONDS


@each_set
def test_pod_outlives_drain_and_shutdown(values: dict[str, Any]):
    pod = chart.api(documents({**values, "drainSeconds": 40, "shutdownSeconds": 90}))
    variables = environment(pod)
    assert (variables["NOTELLM_DRAIN_SECONDS"], variables["NOTELLM_SHUTDOWN_SECONDS"]) == ("40", "90")
    # In-flight requests may take the whole shutdown time, and notes still queued for the model as long again.
    assert pod["terminationGracePeriodSeconds"] > 40 + 2 * 90 + chart.CLEANUP_SECONDS


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_pod_listens_on_the_addresses_that_the_values_name(host: str):
    assert environment(chart.api(documents({"host": host})))["NOTELLM_HOST"] == host


def test_pod_listens_on_all_ipv4_addresses_by_default():
    assert environment(chart.api(documents({})))["NOTELLM_HOST"] == "0.0.0.0"


@each_set
def test_folders_that_are_written_are_volumes(values: dict[str, Any]):
    pod = chart.api(documents(values))
    variables = environment(pod)
    writable = {
        mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"] if not mount.get("readOnly", False)
    }
    assert {variables["NOTELLM_DATA_DIR"], variables["NOTELLM_CACHE_DIR"], "/tmp"} == writable
    assert Path(variables["HF_HOME"]).parent == Path(variables["NOTELLM_CACHE_DIR"])
    names = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == names


def test_gpu_takes_its_image_and_device():
    pod = chart.api(documents(VALUES["gpu"]))
    (container,) = pod["containers"]
    assert container["image"] == "notellm:0.1.0-gpu"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["resources"]["requests"]["memory"]
    assert pod["nodeSelector"]
    assert environment(pod)["NOTELLM_INDEX_DEVICE"] == "cuda"


# References between objects


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return selector.get("matchLabels", selector).items() <= labels.items()


@each_set
def test_selectors_select_their_pods(values: dict[str, Any]):
    objects = documents(values)
    labels = [pod["metadata"]["labels"] for pod in pods(objects)]
    for document in objects:
        spec = document.get("spec", {})
        if document["kind"] == "ServiceMonitor":
            services = [service["metadata"]["labels"] for service in of_kind(objects, "Service")]
            assert sum(selects(spec["selector"], service) for service in services) == 1
        elif selector := spec.get("selector") or spec.get("podSelector"):
            assert sum(selects(selector, each) for each in labels) == 1, document["kind"]


def test_store_of_the_chart_is_where_the_service_looks():
    objects = documents(VALUES["valkey"])
    variables = environment(chart.api(objects))
    (valkey,) = of_kind(objects, "StatefulSet")
    (service,) = [s for s in of_kind(objects, "Service") if s["metadata"]["name"] == f"{RELEASE}-valkey"]
    port = service["spec"]["ports"][0]["port"]
    assert variables["NOTELLM_REDIS_URL"] == f"redis://:$(VALKEY_PASSWORD)@{service['metadata']['name']}:{port}/0"
    # Kubernetes expands $(NAME) only if that variable is defined earlier in the list.
    assert list(variables).index("VALKEY_PASSWORD") < list(variables).index("NOTELLM_REDIS_URL")
    assert variables["VALKEY_PASSWORD"] == environment(valkey["spec"]["template"]["spec"])["REDISCLI_AUTH"]


def test_every_pod_pulls_its_image_with_the_secrets_of_its_registry():
    objects = documents(VALUES["everything"])
    specs = [pod["spec"] for pod in of_kind(objects, "Pod")]
    specs += [
        one["spec"]["template"]["spec"] for kind in ("Deployment", "StatefulSet") for one in of_kind(objects, kind)
    ]
    assert len(specs) == 3
    assert all(spec["imagePullSecrets"] == [{"name": "registry"}] for spec in specs)


def test_scalers_scale_the_deployment():
    for name, kind in (("external", "HorizontalPodAutoscaler"), ("everything", "ScaledObject")):
        objects = documents(VALUES[name])
        (deployment,), (scaler,) = of_kind(objects, "Deployment"), of_kind(objects, kind)
        assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
        assert "replicas" not in deployment["spec"]  # otherwise each upgrade would reset the autoscaler's count
        assert of_kind(objects, "PodDisruptionBudget")


def test_one_replica_has_no_disruption_budget():
    assert of_kind(documents({}), "PodDisruptionBudget") == []  # a budget for one replica would block draining its node


@pytest.mark.parametrize("values", [{}, {"redis": {"existingSecret": "r"}}], ids=["embedded", "shared"])
def test_volume_that_has_or_had_the_notes_outlives_the_release(values: dict[str, Any]):
    (claim,) = of_kind(documents(values), "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


@pytest.mark.parametrize(
    ("values", "strategy"),
    [
        ({}, "Recreate"),
        ({"redis": {"existingSecret": "r"}}, "Recreate"),  # ReadWriteOnce: a new pod would wait for the volume
        ({"redis": {"existingSecret": "r"}, "persistence": {"enabled": False}}, "RollingUpdate"),
        ({"redis": {"existingSecret": "r"}, "persistence": {"accessMode": "ReadWriteMany"}}, "RollingUpdate"),
    ],
)
def test_rollout_waits_for_what_two_pods_cannot_have(values: dict[str, Any], strategy: str):
    (deployment,) = of_kind(documents(values), "Deployment")
    assert deployment["spec"]["strategy"]["type"] == strategy


@pytest.mark.parametrize(("values", "length"), [(VALUES["everything"], 45), ({"redis": {"url": "redis://r/0"}}, 53)])
@pytest.mark.parametrize("name", ["{}", "notellm-{}", "{}notellm"])
def test_names_of_a_long_release_fit_kubernetes_and_the_alerts(values: dict[str, Any], length: int, name: str):
    release = name.format("r" * (length - len(name.format(""))))
    objects = documents(values, release)
    assert all(len(one["metadata"]["name"]) <= 63 for one in objects)
    names = [one["metadata"]["name"] for one in of_kind(objects, "Service")]
    assert any("notellm" in name for name in names), "the alerts select jobs whose name contains it"


def test_pods_start_anew_with_another_password_of_the_store():
    marks = set()
    for password in (PASSWORD, PASSWORD[::-1]):
        (deployment,) = of_kind(documents({"valkey": {"enabled": True, "password": password}}), "Deployment")
        marks.add(deployment["spec"]["template"]["metadata"]["annotations"]["checksum/valkey"])
    assert len(marks) == 2


@each_set
def test_no_annotation_has_more_than_six_digits_of_a_digest_of_a_password(values: dict[str, Any]):
    for document in documents(values):
        template = document.get("spec", {}).get("template", {})
        for name, value in (template.get("metadata", {}).get("annotations") or {}).items():
            assert not name.startswith("checksum/") or re.fullmatch("[0-9a-f]{6}", value)


def test_tracing_reaches_its_collector():
    objects = documents(EVERYTHING)
    variables = environment(chart.api(objects)).items()
    assert {name: value for name, value in variables if name.startswith("OTEL") and name not in EXTRA} == {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.monitoring:4318",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.01",
    }
    (policy,) = [policy for policy in of_kind(objects, "NetworkPolicy") if "valkey" not in policy["metadata"]["name"]]
    assert {"ports": [{"port": 4318}]} in policy["spec"]["egress"]


@pytest.mark.parametrize(
    ("store", "port"),
    [
        ({"url": f"rediss://:{PASSWORD}@redis.example:6380/0"}, 6380),
        ({"url": f"rediss://:{PASSWORD}@redis.example:6380/0", "port": 6379}, 6379),
        ({"existingSecret": "redis"}, 6379),
        ({"url": "redis://redis.example:6381"}, 6381),
        ({"url": "redis://redis.example:6382?db=1"}, 6382),
        ({"url": "redis://user:6383@redis.example/0"}, 6379),
        ({"existingSecret": "redis", "port": 6384}, 6384),
    ],
)
def test_network_policy_lets_through_the_port_of_the_store(store: dict[str, Any], port: int):
    (policy,) = of_kind(documents({"redis": store}), "NetworkPolicy")
    assert policy["spec"]["egress"][1:] == [{"ports": [{"port": port}]}]


@pytest.mark.parametrize(
    ("maxmemory", "limit"), [("1536mb", "2Gi"), ("3gb", "4Gi"), ("3gb", "4096Mi"), ("900gb", "64M")]
)
def test_valkey_may_use_three_quarters_of_its_limit(maxmemory: str, limit: str):
    """A limit in another unit than mebibytes and gibibytes is not compared."""
    resources = {"limits": {"memory": limit}}
    assert documents(
        {"valkey": {"enabled": True, "password": PASSWORD, "maxmemory": maxmemory, "resources": resources}}
    )


def test_extra_environment_and_volumes_reach_the_service():
    pod = chart.api(documents(VALUES["everything"]))
    (container,) = pod["containers"]
    assert environment(pod)["OTEL_EXPORTER_OTLP_HEADERS"] == "team=notes"
    assert {"name": "scenarios", "configMap": {"name": "scenarios"}} in pod["volumes"]
    assert {"name": "scenarios", "mountPath": "/scenarios", "readOnly": True} in container["volumeMounts"]


@pytest.mark.parametrize(
    ("mode", "strategy"),
    [("ReadWriteOnce", "Recreate"), ("ReadWriteOncePod", "Recreate"), ("ReadOnlyMany", "RollingUpdate")],
)
def test_rollout_ends_the_old_pod_first_if_its_checkpoint_cannot_be_shared(mode: str, strategy: str):
    checkpoint = {"existingClaim": "model", "accessMode": mode}
    values = {"redis": {"existingSecret": "r"}, "persistence": {"enabled": False}, "checkpoint": checkpoint}
    (deployment,) = of_kind(documents(values), "Deployment")
    assert deployment["spec"]["strategy"]["type"] == strategy


@pytest.mark.parametrize(("admin_port", "service"), [(0, "shop-notellm"), (9000, "shop-notellm-admin")])
def test_targets_of_another_release_do_not_hide_that_none_are_left(admin_port: int, service: str):
    (rule,) = of_kind(documents({"prometheusRule": {"enabled": True}, "adminPort": admin_port}), "PrometheusRule")
    rules = [rule for group in rule["spec"]["groups"] for rule in group["rules"]]
    (down,) = [rule["expr"] for rule in rules if rule.get("alert") == "NotellmDown"]
    assert down.endswith(f'or absent(up{{namespace="prod", service="{service}"}})')


@each_set
def test_notes_lead_to_the_port_that_makes_keys(values: dict[str, Any]):
    notes = render(values)["notellm/templates/NOTES.txt"]
    port = values.get("adminPort")
    name = f"{RELEASE}-notellm"
    assert (f"service/{name}-admin {port}:{port}" in notes) is bool(port)
    assert f"--url http://127.0.0.1:{port or 8000}\n" in notes


def test_rendering_twice_gives_the_same():
    assert render(VALUES["everything"]) == render(VALUES["everything"])


# Refused values

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "replicas-embedded": ({"replicas": 2}, "requires a shared store"),
    "scaling-embedded": ({"autoscaling": {"enabled": True}}, "a shared store"),
    "embedded-without-volume": ({"persistence": {"enabled": False}}, "loses all notes"),
    "two-stores": ({"valkey": {"enabled": True, "password": PASSWORD}, "redis": {"url": "redis://r/0"}}, "two stores"),
    "two-urls": ({"redis": {"url": "redis://r/0", "existingSecret": "r"}}, "keep one"),
    "memory-of-another-store": (
        {"redis": {"url": "redis://r/0"}, "settings": {"store_memory_bytes": 2**30}},
        "limits the embedded server",
    ),
    "memory-of-another-store-in-a-secret": (
        {"redis": {"existingSecret": "r"}, "secretSettings": {"store_memory_bytes": {"name": "s", "key": "m"}}},
        "limits the embedded server",
    ),
    "replicas-one-volume": ({"replicas": 2, "redis": {"existingSecret": "r"}}, "ReadWriteMany"),
    "replicas-one-claim": (
        {"replicas": 2, "redis": {"existingSecret": "r"}, "persistence": {"existingClaim": "c"}},
        "ReadWriteMany if the claim is",
    ),
    "replicas-one-checkpoint": (
        {
            "replicas": 2,
            "redis": {"existingSecret": "r"},
            "persistence": {"enabled": False},
            "checkpoint": {"existingClaim": "m"},
        },
        "checkpoint.accessMode",
    ),
    "valkey-beyond-its-limit": (
        {"valkey": {"enabled": True, "password": PASSWORD, "maxmemory": "1600mb"}},
        "three quarters of valkey.resources.limits.memory 2Gi",
    ),
    "setting-beside-the-settings": ({"extraEnv": [{"name": "NOTELLM_DTYPE", "value": "int8"}]}, "extraEnv"),
    "valkey-without-password": ({"valkey": {"enabled": True}}, "valkey.password"),
    "two-scalers": (
        {
            "redis": {"existingSecret": "r"},
            "persistence": {"enabled": False},
            "autoscaling": {"enabled": True},
            "keda": {"enabled": True, "prometheus": "http://p"},
        },
        "keda.enabled would both",
    ),
    "keda-asks-nobody": (
        {"redis": {"existingSecret": "r"}, "persistence": {"enabled": False}, "keda": {"enabled": True}},
        "keda.prometheus",
    ),
    "max-below-min": (
        {
            "redis": {"existingSecret": "r"},
            "persistence": {"enabled": False},
            "autoscaling": {"enabled": True, "minReplicas": 9},
        },
        "below minReplicas",
    ),
    "ingress-shut-out": ({"ingress": {"enabled": True, "hosts": ["notes.example"]}}, "no ingress controller"),
    "load-balancer-shut-out": ({"service": {"type": "LoadBalancer"}}, "callers from outside"),
    "tls-without-mount": ({"settings": {"tls_key": "/tls.key"}}, "tls_key cannot be set here"),
    "tls-in-a-secret": ({"secretSettings": {"tls_certificate": {"name": "t", "key": "c"}}}, "TLS at the ingress"),
    "ingress-without-host": ({"ingress": {"enabled": True}}, "ingress.hosts"),
    "two-checkpoints": ({"checkpoint": {"existingClaim": "m"}, "settings": {"checkpoint": "/m"}}, "two checkpoints"),
    "idle-gpu": ({"gpu": {"enabled": True}, "settings": {"device": "cpu"}}, "idle"),
    "no-keys": ({"keys": {"existingSecret": ""}}, "bootstrap key"),
    "admin-port-taken": ({"adminPort": 8000}, "adminPort"),
    "unknown-value": ({"replicaCount": 2}, "replicaCount"),
    "unknown-setting": ({"settings": {"batch_token": 1}}, "batch_token"),
    "setting-out-of-bounds": ({"settings": {"batch_tokens": 0}}, "batch_tokens"),
    "setting-of-the-chart": ({"settings": {"port": 80}}, "port"),
    "bad-digest": ({"image": {"digest": "sha256:1"}}, "digest"),
    "password-not-for-urls": ({"valkey": {"enabled": True, "password": "p@ss:w/ord-of-length"}}, "password"),
}  # fmt: skip


def test_release_whose_valkey_would_have_too_long_a_name_is_refused():
    values = {"valkey": {"enabled": True, "password": PASSWORD}}
    render(copy.deepcopy(values), "r" * 45)
    with pytest.raises(HelmError, match="may have at most 45 characters"):
        render(values, "r" * 46)


@pytest.mark.parametrize(("values", "reason"), REFUSED.values(), ids=REFUSED)
def test_values_that_cannot_work_are_refused(values: dict[str, Any], reason: str):
    with pytest.raises(HelmError, match=reason):
        render(copy.deepcopy(values))


# Running the chart's commands


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """A folder with a path short enough for a unix socket; that of tmp_path may be too long."""
    with tempfile.TemporaryDirectory(prefix="nl-", dir="/tmp") as folder:
        yield Path(folder)


def test_valkey_starts_by_the_command_of_the_chart(tmp_path: Path, socket_folder: Path):
    (valkey,) = of_kind(documents(VALUES["everything"]), "StatefulSet")
    (container,) = valkey["spec"]["template"]["spec"]["containers"]
    shell, option, script = container["command"]
    socket = socket_folder / "valkey.sock"
    script = script.replace("dir /data", f"dir {tmp_path}\nport 0\nunixsocket {socket}")
    (tmp_path / "valkey-server").symlink_to(server_program())
    process = subprocess.Popen(
        [shell, option, script],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "REDISCLI_AUTH": PASSWORD},
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until(socket.exists)
        assert PASSWORD not in Path(f"/proc/{process.pid}/cmdline").read_text()
        with redis.Redis(unix_socket_path=str(socket), password=PASSWORD, decode_responses=True) as client:
            options = client.config_get("appendonly", "appendfsync", "maxmemory-policy", "maxmemory")
        with redis.Redis(unix_socket_path=str(socket)) as client, pytest.raises(redis.AuthenticationError):
            client.ping()
    finally:
        process.terminate()
        process.wait()
    assert options == {
        "appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "maxmemory": str(2**30),
    }  # fmt: skip
