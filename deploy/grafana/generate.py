"""Generates the Grafana dashboard notellm.json from the panels listed below: `python deploy/grafana/generate.py`.

tests/deploy/test_monitoring.py fails if the dashboard is out of date, or queries an unknown metric.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BOARD = Path(__file__).with_name("notellm.json")
WIDTH, HEIGHT, COLUMNS = 8, 8, 3
"""Width and height of a panel in Grafana's grid of 24 columns, and panels in a row."""
HTTP = "notellm_http_request_duration_seconds"
CALLS = 'job="$job", route!~"/livez|/readyz|/startupz|/metrics"'
"""Label matchers for requests of callers, without those of probes."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A graph. `queries`: PromQL and the legend of its lines. `unit` is one of Grafana's."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    description: str = ""


def quantiles(metric: str, by: str = "") -> tuple[tuple[str, str], ...]:
    """Return the queries of a histogram's median and 99th percentile, for each value of the label `by`."""
    labels = ", ".join(filter(None, ["le", by]))
    legend = f"{{{{{by}}}}} " if by else ""
    return tuple(
        (f'histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket{{job="$job"}}[$__rate_interval])))',
         f"{legend}p{100 * q:g}")
        for q in (0.5, 0.99)
    )  # fmt: skip


def total(metric: str, by: str = "") -> tuple[str, str]:
    """Return the query of a counter's rate over all replicas, for each value of the label `by`."""
    return (
        f'sum by ({by}) (rate({metric}{{job="$job"}}[$__rate_interval]))',
        f"{{{{{by}}}}}" if by else "all replicas",
    )


def http_rate(by: str, matchers: str = "") -> tuple[str, str]:
    """Return the query of the rate of callers' requests, for each value of the label `by`."""
    return (f"sum by ({by}) (rate({HTTP}_count{{{CALLS}{matchers}}}[$__rate_interval]))", f"{{{{{by}}}}}")


def each_replica(expression: str) -> tuple[str, str]:
    return (expression, "{{instance}} {{reader}}")


P99_BY_ROUTE = f"histogram_quantile(0.99, sum by (route, le) (rate({HTTP}_bucket{{{CALLS}}}[$__rate_interval])))"
ROWS: dict[str, tuple[Panel, ...]] = {
    "Requests": (
        Panel("Requests per second", "reqps", (http_rate("route"),)),
        Panel(
            "Responses other than 2xx",
            "reqps",
            (http_rate("code", ', code!~"2.."'),),
            "499: the caller disconnected. 408: the caller was too slow. 429: a quota, a full queue or another limit; "
            "see Requests refused, by problem. 503: Redis or the engine; see the log.",
        ),
        Panel(
            "2xx responses that report problems",
            "reqps",
            (total("notellm_answers_with_problems_total", "status"),),
            "Responses with a list or stream in which an item or line is a problem with this status code.",
        ),
        Panel(
            "Response time until the last byte, p99",
            "s",
            ((P99_BY_ROUTE, "{{route}}"),),
        ),
        Panel(
            "Error budget burn rate, relative to the 30-day budget",
            "short",
            (
                ('notellm:http_errors:ratio_rate1h{job="$job"} / 0.001', "errors, 1 h"),
                ('notellm:http_errors:ratio_rate6h{job="$job"} / 0.001', "errors, 6 h"),
                ('notellm:write_errors:ratio_rate1h{job="$job"} / 0.001', "errors of writes, POST /events aside, 1 h"),
                ('notellm:similar_slow:ratio_rate1h{job="$job"} / 0.01', "slow searches, 1 h"),
                ('notellm:similar_slow:ratio_rate6h{job="$job"} / 0.01', "slow searches, 6 h"),
            ),
            "Alerts page at 14.4 over one hour or 6 over six hours.",
        ),
        Panel("Requests refused, by problem", "reqps", (total("notellm_rejected_total", "reason"),)),
        Panel("Requests refused because of their caller", "reqps", (total("notellm_access_refused_total", "reason"),)),
        Panel("Connections closed by the service", "cps", (total("notellm_connections_ended_total", "reason"),)),
        Panel("Time until a write is searchable", "s", quantiles("notellm_ingest_to_searchable_seconds")),
    ),
    "Model": (
        Panel(
            "Notes waiting for the model",
            "short",
            (('sum by (instance, lane) (notellm_queue_depth{job="$job"})', "{{instance}} {{lane}}"),),
        ),
        Panel(
            "Waiting time for the model",
            "s",
            quantiles("notellm_queue_wait_seconds", "lane"),
        ),
        Panel(
            "Expected wait of a new note",
            "s",
            (('max by (instance, lane) (notellm_expected_wait_seconds{job="$job"})', "{{instance}} {{lane}}"),),
            "The autoscaler uses the interactive lane, which refuses requests above NOTELLM_QUEUE_SECONDS.",
        ),
        Panel(
            "Notes dropped before they reached the model", "short", (total("notellm_dropped_notes_total", "reason"),)
        ),
        Panel(
            "Duration of an engine step, and of tokenising",
            "s",
            (*quantiles("notellm_inference_seconds"), *quantiles("notellm_tokenise_seconds")),
        ),
        Panel(
            "Tokens per second",
            "short",
            (
                (total("notellm_prompt_tokens_total")[0], "read"),
                (total("notellm_generated_tokens_total")[0], "written"),
            ),
        ),
        Panel("Prompt tokens per engine step", "short", quantiles("notellm_batch_tokens")),
        Panel("Time to the first generated token", "s", quantiles("notellm_time_to_first_token_seconds")),
    ),
    "Index": (
        Panel(
            "Notes in the index",
            "short",
            (('notellm_index_vectors{job="$job"}', "{{instance}} {{state}}"),),
            "Replicas that have applied the whole log have the same number of live rows.",
        ),
        Panel("Index segments read by a search", "short", (each_replica('notellm_index_segments{job="$job"}'),)),
        Panel(
            "Recall, compared with an exact search",
            "percentunit",
            (each_replica('notellm_index_recall_sampled{job="$job"}'),),
            "Mean of the last 100 samples. Below 0.95 something is wrong with the index.",
        ),
        Panel(
            "Age of the snapshot",
            "s",
            (each_replica('time() - (notellm_snapshot_timestamp_seconds{job="$job"} > 0)'),),
            "An unchanged index is not saved again.",
        ),
        Panel("Notes in search results, by source", "short", (total("notellm_items_total", "source"),)),
        Panel("Memory of the note cache", "bytes", (each_replica('notellm_item_bytes{job="$job"}'),)),
        Panel(
            "Lists of nearest notes, by source",
            "short",
            (total("notellm_neighbour_lists_total", "source"),),
        ),
        Panel(
            "Memory of the cache of nearest notes", "bytes", (each_replica('notellm_neighbour_list_bytes{job="$job"}'),)
        ),
        Panel("Unreadable stored notes", "short", (each_replica('notellm_quarantined_notes{job="$job"}'),)),
        Panel(
            "Replicas by model",
            "short",
            (('count by (model, digest) (notellm_model_info{job="$job"})', "{{model}} {{digest}}"),),
        ),
    ),
    "Store": (
        Panel(
            "Lost writes and durability",
            "short",
            (
                ('max(notellm_store_lost_writes{job="$job"})', "lost writes"),
                ('min(notellm_store_durable{job="$job"})', "durable"),
            ),
            "Expected: lost writes 0, durable 1. Redis is checked every five seconds and at each /readyz.",
        ),
        Panel(
            "Redis memory in use",
            "percentunit",
            (('max(notellm_store_memory_filled_ratio{job="$job"})', "of maxmemory"),),
            "Share of maxmemory. At 1, writes are refused. Empty if Redis has no maxmemory.",
        ),
        Panel(
            "Free share of the disk with the data folder",
            "percentunit",
            (each_replica('notellm_data_free_ratio{job="$job"}'),),
        ),
        Panel(
            "Failed store calls",
            "short",
            (total("notellm_store_errors_total"),),
            "Store unavailable, too slow, or out of memory.",
        ),
        Panel(
            "Effects of an unavailable store",
            "short",
            (
                (total("notellm_degraded_answers_total")[0], "searches answered from the index only"),
                (total("notellm_quota_uncounted_total")[0], "uses not counted against a quota"),
            ),
        ),
        Panel(
            "Restarts of the embedded server",
            "short",
            (total("notellm_store_restarts_total", "instance"),),
        ),
        Panel(
            "Ready reader processes, and their restarts",
            "short",
            (
                ('sum by (instance) (notellm_readers{job="$job"})', "{{instance}} ready"),
                (total("notellm_reader_restarts_total", "instance")[0], "{{instance}} restarts per second"),
            ),
        ),
        Panel(
            "Purge: time overdue, and time since the last purge",
            "s",
            (
                ('min(notellm_purge_overdue_seconds{job="$job"})', "overdue"),
                ('time() - (max(notellm_purge_timestamp_seconds{job="$job"}) > 0)', "since the last purge"),
            ),
            "NOTELLM_PURGE_SECONDS sets the interval.",
        ),
        Panel(
            "Notes of another model (not found by searches)",
            "short",
            (each_replica('notellm_notes_of_another_model{job="$job"}'),),
        ),
    ),
    "Tenants and behaviour": (
        Panel(
            "Open tenants, and tenants that could not be opened",
            "short",
            (
                each_replica('notellm_tenants{job="$job"}'),
                ('sum by (instance) (notellm_tenants_failed{job="$job"})', "{{instance}} failed"),
            ),
        ),
        Panel("Requests per second by tenant", "reqps", (total("notellm_tenant_requests_total", "tenant"),)),
        Panel(
            "Notes by tenant",
            "short",
            (('max by (tenant) (notellm_tenant_index_vectors{job="$job"})', "{{tenant}}"),),
        ),
        Panel("Events per second", "short", (total("notellm_events_total", "outcome"),)),
        Panel(
            "Reads held in memory to relate notes",
            "short",
            (
                ('max(notellm_behaviour_reads{job="$job"})', "reads"),
                ('max(notellm_behaviour_readers{job="$job"})', "readers"),
                ('max(notellm_behaviour_notes{job="$job"})', "notes"),
            ),
        ),
        Panel(
            "Memory of events",
            "bytes",
            (
                ('max(notellm_event_stream_bytes{job="$job"})', "in the store"),
                ('max(notellm_behaviour_bytes{job="$job"})', "in each replica (approximate)"),
            ),
        ),
        Panel(
            "Share of NOTELLM_EVENT_BYTES in use",
            "percentunit",
            (('max(notellm_event_stream_filled_ratio{job="$job"})', "tenant with the most events"),),
            "Near 1, the oldest events are dropped before NOTELLM_EVENT_SECONDS.",
        ),
    ),
    "Process": (
        Panel("Ready", "short", (each_replica('notellm_ready{job="$job"}'),)),
        Panel("Event loop delay", "s", quantiles("notellm_loop_lag_seconds")),
        Panel("Resident memory", "bytes", (each_replica('process_resident_memory_bytes{job="$job"}'),)),
        Panel(
            "CPU cores in use",
            "short",
            (each_replica('rate(process_cpu_seconds_total{job="$job"}[$__rate_interval])'),),
        ),
        Panel(
            "Open file descriptors",
            "percentunit",
            (each_replica('process_open_fds{job="$job"} / process_max_fds{job="$job"}'),),
        ),
    ),
}

DATA_SOURCE = {"type": "prometheus", "uid": "${source}"}
VARIABLES: list[dict[str, Any]] = [
    {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
    {
        "name": "job",
        "type": "query",
        "datasource": DATA_SOURCE,
        "query": "label_values(notellm_model_info, job)",
        "refresh": 2,
    },
]


def board() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row, members in ROWS.items():
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": row, "collapsed": False, "panels": [],
             "gridPos": {"x": 0, "y": top, "w": 24, "h": 1}}
        )  # fmt: skip
        top += 1
        for number, panel in enumerate(members):
            x, y = number % COLUMNS * WIDTH, top + number // COLUMNS * HEIGHT
            panels.append(graph(panel, len(panels) + 1, x, y))
        top += -(-len(members) // COLUMNS) * HEIGHT
    return {
        "uid": "notellm",
        "title": "NoteLLM",
        "tags": ["notellm"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": VARIABLES},
        "annotations": {"list": []},
        "panels": panels,
    }


def graph(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    """Return the JSON of a panel at position (x, y) of the grid."""
    targets = [
        {"refId": chr(ord("A") + i), "datasource": DATA_SOURCE, "expr": expression, "legendFormat": legend}
        for i, (expression, legend) in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": DATA_SOURCE,
        "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": targets,
    }


if __name__ == "__main__":
    BOARD.write_text(json.dumps(board(), indent=1) + "\n", "utf-8")
