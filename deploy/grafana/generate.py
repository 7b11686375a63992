"""Generates the Grafana board notellm.json from the panels listed below: `python deploy/grafana/generate.py`.

tests/deploy/test_monitoring.py fails if the board is out of date, or queries a metric that the service does not have.
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
        Panel("Requests a second", "reqps", (http_rate("route"),)),
        Panel(
            "Answers other than 2xx",
            "reqps",
            (http_rate("code", ', code!~"2.."'),),
            "499: the caller left. 408: the caller was too slow. 429: a quota, a full queue, or as much at a time as "
            "may run; Requests refused says which. 503: Redis or the engine; the log says which.",
        ),
        Panel(
            "Answers of 2xx with problems within",
            "reqps",
            (total("notellm_answers_with_problems_total", "status"),),
            "Lists and streams whose items, or last line, are problems of this status.",
        ),
        Panel(
            "Seconds to the last byte, p99",
            "s",
            ((P99_BY_ROUTE, "{{route}}"),),
        ),
        Panel(
            "Error budget burnt: factor of what 30 days allow",
            "short",
            (
                ('notellm:http_errors:ratio_rate1h{job="$job"} / 0.001', "errors, 1 h"),
                ('notellm:http_errors:ratio_rate6h{job="$job"} / 0.001', "errors, 6 h"),
                ('notellm:write_errors:ratio_rate1h{job="$job"} / 0.001', "errors of writes, 1 h"),
                ('notellm:similar_slow:ratio_rate1h{job="$job"} / 0.01', "slow searches, 1 h"),
                ('notellm:similar_slow:ratio_rate6h{job="$job"} / 0.01', "slow searches, 6 h"),
            ),
            "A page at 14.4 over an hour or 6 over six hours.",
        ),
        Panel("Requests refused, by the problem's name", "reqps", (total("notellm_rejected_total", "reason"),)),
        Panel("Callers refused", "reqps", (total("notellm_access_refused_total", "reason"),)),
        Panel("Connections that the service ended", "cps", (total("notellm_connections_ended_total", "reason"),)),
        Panel("A write until it is found", "s", quantiles("notellm_ingest_to_searchable_seconds")),
    ),
    "Model": (
        Panel(
            "Notes that wait",
            "short",
            (('sum by (instance, lane) (notellm_queue_depth{job="$job"})', "{{instance}} {{lane}}"),),
        ),
        Panel(
            "Wait for the model",
            "s",
            quantiles("notellm_queue_wait_seconds", "lane"),
        ),
        Panel(
            "Expected wait of a note that comes now",
            "s",
            (('max by (instance, lane) (notellm_expected_wait_seconds{job="$job"})', "{{instance}} {{lane}}"),),
            "The autoscaler looks at the interactive lane. At NOTELLM_QUEUE_SECONDS notes are refused.",
        ),
        Panel("Notes that nobody waited for any more", "short", (total("notellm_dropped_notes_total", "reason"),)),
        Panel(
            "One step of the engine",
            "s",
            (*quantiles("notellm_inference_seconds"), *quantiles("notellm_tokenise_seconds")),
        ),
        Panel(
            "Tokens a second",
            "short",
            (
                (total("notellm_prompt_tokens_total")[0], "read"),
                (total("notellm_generated_tokens_total")[0], "written"),
            ),
        ),
        Panel("Prompt tokens of one step", "short", quantiles("notellm_batch_tokens")),
        Panel("To the first generated token", "s", quantiles("notellm_time_to_first_token_seconds")),
    ),
    "Index": (
        Panel(
            "Notes in the index",
            "short",
            (('notellm_index_vectors{job="$job"}', "{{instance}} {{state}}"),),
            "Replicas that follow the log have the same number of live rows.",
        ),
        Panel("Segments that a search goes through", "short", (each_replica('notellm_index_segments{job="$job"}'),)),
        Panel(
            "Share of an exact search that is found",
            "percentunit",
            (each_replica('notellm_index_recall_sampled{job="$job"}'),),
            "Below 0.95 something is wrong with the index.",
        ),
        Panel(
            "Age of the snapshot",
            "s",
            (each_replica('time() - (notellm_snapshot_timestamp_seconds{job="$job"} > 0)'),),
            "An index that does not change is not written again.",
        ),
        Panel("Notes of answers, by where they came from", "short", (total("notellm_items_total", "source"),)),
        Panel("Memory of notes of answers", "bytes", (each_replica('notellm_item_bytes{job="$job"}'),)),
        Panel(
            "Lists of nearest notes, by where they came from",
            "short",
            (total("notellm_neighbour_lists_total", "source"),),
        ),
        Panel("Memory of lists of nearest notes", "bytes", (each_replica('notellm_neighbour_list_bytes{job="$job"}'),)),
        Panel("Notes that cannot be read", "short", (each_replica('notellm_quarantined_notes{job="$job"}'),)),
        Panel(
            "Models that serve",
            "short",
            (('count by (model, digest) (notellm_model_info{job="$job"})', "{{model}} {{digest}}"),),
        ),
    ),
    "Store": (
        Panel(
            "Lost writes, durable",
            "short",
            (
                ('max(notellm_store_lost_writes{job="$job"})', "lost writes"),
                ('min(notellm_store_durable{job="$job"})', "durable"),
            ),
            "0 and 1 are well. Durable: as Redis last said, at a /readyz or by itself after five seconds.",
        ),
        Panel(
            "Share of the memory of Redis that is in use",
            "percentunit",
            (('max(notellm_store_memory_filled_ratio{job="$job"})', "of maxmemory"),),
            "At 1 writes are refused. Nothing is shown without a maxmemory.",
        ),
        Panel(
            "Free share of the data folder's disk",
            "percentunit",
            (each_replica('notellm_data_free_ratio{job="$job"}'),),
        ),
        Panel(
            "Calls that failed",
            "short",
            (total("notellm_store_errors_total"),),
            "Away, late, or out of room.",
        ),
        Panel(
            "What the store's absence cost",
            "short",
            (
                (total("notellm_degraded_answers_total")[0], "searches answered from the index alone"),
                (total("notellm_quota_uncounted_total")[0], "uses that no quota counted"),
            ),
        ),
        Panel(
            "Starts of the embedded store after it had died",
            "short",
            (total("notellm_store_restarts_total", "instance"),),
        ),
        Panel(
            "Readers that serve, and starts of those that had died",
            "short",
            (
                ('sum by (instance) (notellm_readers{job="$job"})', "{{instance}} serve"),
                (total("notellm_reader_restarts_total", "instance")[0], "{{instance}} starts a second"),
            ),
        ),
        Panel(
            "Purge: overdue, and since the last one",
            "s",
            (
                ('min(notellm_purge_overdue_seconds{job="$job"})', "overdue"),
                ('time() - (max(notellm_purge_timestamp_seconds{job="$job"}) > 0)', "since the last one"),
            ),
            "NOTELLM_PURGE_SECONDS is how often it should be.",
        ),
        Panel(
            "Notes of another model, which are not found",
            "short",
            (each_replica('notellm_notes_of_another_model{job="$job"}'),),
        ),
    ),
    "Tenants and behaviour": (
        Panel(
            "Tenants that are open, and that could not be opened",
            "short",
            (
                each_replica('notellm_tenants{job="$job"}'),
                ('sum by (instance) (notellm_tenants_failed{job="$job"})', "{{instance}} failed"),
            ),
        ),
        Panel("Requests a second by tenant", "reqps", (total("notellm_tenant_requests_total", "tenant"),)),
        Panel(
            "Notes by tenant",
            "short",
            (('max by (tenant) (notellm_tenant_index_vectors{job="$job"})', "{{tenant}}"),),
        ),
        Panel("Events a second", "short", (total("notellm_events_total", "outcome"),)),
        Panel(
            "Reads that relate notes",
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
                ('max(notellm_behaviour_bytes{job="$job"})', "in each replica, about"),
            ),
        ),
        Panel(
            "Share of NOTELLM_EVENT_BYTES that is in use",
            "percentunit",
            (('max(notellm_event_stream_filled_ratio{job="$job"})', "the tenant with most events"),),
            "Near 1 the oldest events are dropped before their time.",
        ),
    ),
    "Process": (
        Panel("Ready", "short", (each_replica('notellm_ready{job="$job"}'),)),
        Panel("The event loop is late by", "s", quantiles("notellm_loop_lag_seconds")),
        Panel("Resident memory", "bytes", (each_replica('process_resident_memory_bytes{job="$job"}'),)),
        Panel(
            "Cores in use", "short", (each_replica('rate(process_cpu_seconds_total{job="$job"}[$__rate_interval])'),)
        ),
        Panel(
            "File descriptors open",
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
    """Return the board as Grafana imports it."""
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
