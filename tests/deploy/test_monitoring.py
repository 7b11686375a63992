"""Tests of rules, runbooks and dashboard: they agree with each other, with the service's metrics and with promtool."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

import pytest
import yaml
from fastapi.routing import APIRoute
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.access.principal import READ_SCOPES
from service.admission import Lane
from service.api.access import SAFE_METHODS, needed_scopes
from service.api.app import ROUTERS
from service.telemetry import Telemetry
from tests.deploy.chart import ROOT, VALUES, documents, of_kind
from tests.optional import require

PROMETHEUS = ROOT / "deploy" / "prometheus"
RUNBOOKS = ROOT / "docs" / "operations" / "runbooks.md"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((PROMETHEUS / "rules.yaml").read_text())["groups"] for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDS = {rule["record"] for rule in RULES if "record" in rule}
SELECTOR = re.compile(r"\b(notellm[\w:]*|process_\w+|up)\b(?:\{([^}]*(?:\{[^}]*\}[^}]*)*)\})?")
"""Matches a metric in an expression and its label matchers; a route in a matcher may contain braces."""
MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"")
PROMTOOL = (
    ("check", "rules", "rules.yaml"),
    ("check", "config", "--syntax-only", "prometheus.yaml"),
    ("test", "rules", "rules_test.yaml"),
)
SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds."""


def load_generator() -> ModuleType:
    """Import deploy/grafana/generate.py, which is not part of a package."""
    spec = importlib.util.spec_from_file_location("grafana_generate", ROOT / "deploy" / "grafana" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


grafana = load_generator()


@cache
def exported() -> dict[str, set[str]]:
    """Label names of every series that /metrics may export."""
    telemetry = Telemetry()
    for metric in vars(telemetry).values():
        if labels := getattr(metric, "_labelnames", ()):
            metric.labels(*labels)  # a metric with labels has no series before its first value
    series: dict[str, set[str]] = {"up": set()}
    for family in text_string_to_metric_families(generate_latest(telemetry.registry).decode()):
        for sample in family.samples:
            series.setdefault(sample.name, set()).update(sample.labels)
    return series


def queries() -> Iterator[tuple[str, str]]:
    """Yield the alert, record or panel and the expression of each query in the rules and the dashboard."""
    for rule in RULES:
        yield rule.get("alert") or rule["record"], rule["expr"]
    for panels in grafana.ROWS.values():
        for panel in panels:
            for expression, _ in panel.queries:
                yield panel.title, expression


def metric_of(series: str) -> str:
    """Name of the metric that a series belongs to."""
    return re.sub("_(total|bucket|count|sum)$", "", series)


@pytest.mark.parametrize(("place", "expression"), list(queries()))
def test_query_asks_for_metrics_of_a_service(place: str, expression: str):
    known = exported() | {record: {"lane"} for record in RECORDS}
    asked = SELECTOR.findall(re.sub(r'"/[^"]*"', '""', expression))
    assert asked
    for name, matchers in asked:
        assert name in known
        assert set(MATCHER.findall(matchers)) <= known[name] | SCRAPED | {"reader"}


def test_every_metric_of_the_service_is_asked_for_and_explained():
    asked = {metric_of(name) for _, expression in queries() for name, _ in SELECTOR.findall(expression)}
    series = {name for name in exported() if name.startswith("notellm_") and not name.endswith("_created")}
    assert {metric_of(name) for name in series} - asked == set()
    metrics = {re.sub("_(bucket|count|sum)$", "", name) for name in series}
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    assert {name for name in metrics if not re.search(rf"{name}\b", page)} == set()


def test_buckets_that_rules_name_exist():
    buckets = {
        sample.labels["le"] for m in Telemetry().registry.collect() for sample in m.samples if "le" in sample.labels
    }
    named = {le for rule in RULES for le in re.findall(r'le="([^"]+)"', rule["expr"])}
    assert named
    # A histogram with labels has no series yet; all of them share these bounds.
    assert named <= buckets


def test_rules_about_writes_select_exactly_the_routes_that_change_something():
    expressions = [rule["expr"] for rule in RULES if rule.get("record", "").startswith("notellm:write_errors")]
    selectors = {match for one in expressions for match in re.findall(r'method=~"([^"]+)", route!~"([^"]+)"', one)}
    ((methods, others),) = selectors
    routes = [
        (method, route.path, needed_scopes(route.endpoint).isdisjoint(READ_SCOPES))
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    ]
    changing = {(method, path) for method, path, changes in routes if changes and method not in SAFE_METHODS}
    selected = {
        (method, path)
        for method, path, _ in routes
        if re.fullmatch(methods, method) and not re.fullmatch(others.replace("{", r"\{").replace("}", r"\}"), path)
    }
    assert ("POST", "/notes") in selected
    assert selected == changing - {("POST", "/events")}  # events are so many that they would hide failing notes


@pytest.mark.parametrize("name", ALERTS)
def test_alert_says_what_to_do(name: str):
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert "{{" in alert["annotations"]["summary"] or name == "NotellmDown"
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert ROOT / page == RUNBOOKS
    headings = re.findall(r"^### (\w+)$", RUNBOOKS.read_text("utf-8"), re.MULTILINE)
    assert [heading for heading in headings if heading.lower() == anchor] == [name]


def test_every_runbook_has_its_alert():
    assert set(re.findall(r"^### (\w+)$", RUNBOOKS.read_text("utf-8"), re.MULTILINE)) == set(ALERTS)


def test_every_alert_is_seen_firing_in_a_case():
    cases = (PROMETHEUS / "rules_test.yaml").read_text()
    assert [name for name in ALERTS if f'alertname="{name}"' not in cases and f"alertname: {name}" not in cases] == []


@pytest.mark.parametrize("command", PROMTOOL, ids=" ".join)
def test_promtool_agrees(command: tuple[str, ...]):
    require(shutil.which("promtool") is not None, "promtool is not installed (Debian: promtool)")
    result = subprocess.run(["promtool", *command], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_board_is_current():
    assert json.loads(grafana.BOARD.read_text("utf-8")) == grafana.board(), "run python deploy/grafana/generate.py"


def test_panels_lie_side_by_side():
    places = {(p["gridPos"]["x"], p["gridPos"]["y"]) for p in grafana.board()["panels"]}
    assert len(places) == len(grafana.board()["panels"])


def test_chart_installs_rules_and_board():
    objects = documents(
        {**VALUES["external"], "prometheusRule": {"enabled": True, "runbooks": "https://wiki.invalid/r"}}
    )
    (rule,), (board,) = (
        of_kind(objects, "PrometheusRule"),
        [c for c in of_kind(objects, "ConfigMap") if "notellm.json" in c["data"]],
    )
    installed = [rule for group in rule["spec"]["groups"] for rule in group["rules"]]
    any_release, this_release = 'absent(up{job=~".*notellm.*"})', 'absent(up{namespace="prod", service="shop-notellm"})'
    assert [r["expr"] for r in installed] == [r["expr"].replace(any_release, this_release) for r in RULES]
    links = [rule["annotations"]["runbook_url"] for rule in installed if "alert" in rule]
    assert links == [f"https://wiki.invalid/r#{name.lower()}" for name in ALERTS]
    assert json.loads(board["data"]["notellm.json"]) == grafana.board()


def test_autoscaler_asks_for_the_metric_that_the_adapter_makes():
    (rule,) = yaml.safe_load((PROMETHEUS / "adapter.yaml").read_text())["rules"]["custom"]
    (scaler,) = of_kind(documents(VALUES["external"]), "HorizontalPodAutoscaler")
    (metric,) = scaler["spec"]["metrics"]
    name, labels = metric["pods"]["metric"]["name"], metric["pods"]["metric"]["selector"]["matchLabels"]
    assert rule["seriesQuery"].startswith(f"{name}{{")
    assert f"{name}{{<<.LabelMatchers>>}}" in rule["metricsQuery"]
    assert labels == {"lane": Lane.INTERACTIVE}
    assert set(labels) <= exported()[name]


@pytest.mark.parametrize("admin_port", [0, 9000])
def test_keda_asks_for_a_metric_of_the_service_that_is_scraped(admin_port: int):
    objects = documents({**VALUES["everything"], "adminPort": admin_port})
    (scaler,) = of_kind(objects, "ScaledObject")
    (monitor,) = of_kind(objects, "ServiceMonitor")
    labels = monitor["spec"]["selector"]["matchLabels"]
    scraped = [
        service["metadata"]["name"]
        for service in of_kind(objects, "Service")
        if labels.items() <= service["metadata"]["labels"].items()
    ]
    query = scaler["spec"]["triggers"][0]["metadata"]["query"]
    ((name, matchers),) = SELECTOR.findall(query)
    assert set(MATCHER.findall(matchers)) <= exported()[name] | {"namespace", "service"}
    assert re.findall('service="([^"]+)"', query) == scraped
