"""Metrics of one service, in Prometheus's base units; their names are those of docs/operations.md."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector

LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Seconds: from a search in memory to the deadline of a request."""
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
"""Seconds of the event loop's lag."""
LAG_SECONDS = 0.1
"""Time between two measurements of the event loop's lag."""


class Telemetry:
    """Metrics of one service, in a registry of their own, so that two services in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._add_request_metrics(self.registry)
        self._add_connection_metrics(self.registry)
        self._add_engine_metrics(self.registry)
        self._add_index_metrics(self.registry)
        self._add_store_metrics(self.registry)
        self._add_behaviour_metrics(self.registry)
        self._add_tenant_and_reader_metrics(self.registry)

    def _add_request_metrics(self, registry: CollectorRegistry) -> None:
        self.http_request = Histogram(
            "notellm_http_request_duration_seconds",
            "Duration of HTTP requests, until the last byte of the response",
            ("method", "route", "code"),
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.degraded = Counter(
            "notellm_degraded_answers",
            "Searches answered from the index only because the store was unavailable",
            registry=registry,
        )
        self.loop_lag = Histogram(
            "notellm_loop_lag_seconds",
            "Delay with which the event loop wakes a task, measured ten times a second; every request has this delay",
            buckets=LAG_BUCKETS,
            registry=registry,
        )
        self.rejected = Counter(
            "notellm_rejected",
            "Requests refused with 413, 415, 422, 429, 503 or 504, by problem name, or by status code if it has none",
            ("reason",),
            registry=registry,
        )
        self.inner_problems = Counter(
            "notellm_answers_with_problems",
            "2xx responses that report problems of list items or in a stream. A response counts once for each class of "
            "problem status codes (4xx, 5xx), with the highest code",
            ("method", "route", "status"),
            registry=registry,
        )
        self.refused = Counter(
            "notellm_access_refused",
            "Requests refused because of their caller: no_key, malformed_key, unknown_key, expired_key (401), scope, "
            "host, origin (403), quota (429)",
            ("reason",),
            registry=registry,
        )
        self.uncounted = Counter(
            "notellm_quota_uncounted",
            "Requests and token uses not counted against a quota because the store was unavailable or too slow",
            registry=registry,
        )
        self.ready = Gauge(
            "notellm_ready",
            "1 if the process is ready: started, not draining, the store responds, the indexes follow the log, the "
            "engine makes progress, and the reader processes were started; otherwise 0",
            registry=registry,
        )

    def _add_connection_metrics(self, registry: CollectorRegistry) -> None:
        self.refused_connections = Counter(
            "notellm_connections_refused",
            "Connections refused with 503 because the maximum number of connections was open",
            registry=registry,
        )
        self.ended_connections = Counter(
            "notellm_connections_ended",
            "Connections closed by the service because of the caller: malformed (400), slow_head, slow_body (408), "
            "head_too_large (414, 431), slow_answer, body_not_taken (no problem sent); or of an internal error: failed "
            "(500)",
            ("reason",),
            registry=registry,
        )
        self.ended_connections.labels("failed")  # starts at 0: the alert sees no increase in a series that starts at 1

    def _add_engine_metrics(self, registry: CollectorRegistry) -> None:
        self.queue_depth = Gauge("notellm_queue_depth", "Notes waiting for the engine", ("lane",), registry=registry)
        self.queue_wait = Histogram(
            "notellm_queue_wait_seconds",
            "Time from queueing a note to the engine's first step with it",
            ("lane",),
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.expected_wait = Gauge(
            "notellm_expected_wait_seconds",
            "Expected time until the engine starts a note admitted now, from measured times of the notes before it",
            ("lane",),
            registry=registry,
        )
        self.dropped = Counter(
            "notellm_dropped_notes",
            "Admitted notes dropped before they reached the model: their deadline passed or nobody waited for them",
            ("reason",),
            registry=registry,
        )
        self.tokenise = Histogram(
            "notellm_tokenise_seconds",
            "Duration of tokenising the notes of one request",
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.inference = Histogram(
            "notellm_inference_seconds", "Duration of one engine step", buckets=LATENCY_BUCKETS, registry=registry
        )
        self.batch_tokens = Histogram(
            "notellm_batch_tokens",
            "Prompt tokens of the notes that joined the batch in one engine step",
            buckets=(16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384),
            registry=registry,
        )
        self.prompt_tokens = Counter("notellm_prompt_tokens", "Prompt tokens read by the model", registry=registry)
        self.generated_tokens = Counter(
            "notellm_generated_tokens", "Tokens generated by the model, in all beams", registry=registry
        )
        self.first_token = Histogram(
            "notellm_time_to_first_token_seconds",
            "Time from the first engine step of a note to its first generated token",
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.model_info = Gauge(
            "notellm_model_info", "Model that serves; always 1", ("model", "digest", "state"), registry=registry
        )

    def _add_index_metrics(self, registry: CollectorRegistry) -> None:
        self.searchable = Histogram(
            "notellm_ingest_to_searchable_seconds",
            "Time from accepting a write until searches see it",
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.index_vectors = Gauge(
            "notellm_index_vectors", "Rows of the index, live or deleted (tombstone)", ("state",), registry=registry
        )
        self.index_segments = Gauge("notellm_index_segments", "Index segments that a search reads", registry=registry)
        self.recall = Gauge(
            "notellm_index_recall_sampled",
            "Mean recall of the last sampled searches, compared with an exact search; NaN before the first sample",
            registry=registry,
        )
        self.other_space = Gauge(
            "notellm_notes_of_another_model",
            "Stored notes with vectors of another model, which searches do not find",
            registry=registry,
        )
        self.quarantined = Gauge(
            "notellm_quarantined_notes",
            "Stored notes found to be unreadable, which are left out of responses",
            registry=registry,
        )
        self.snapshot_time = Gauge(
            "notellm_snapshot_timestamp_seconds",
            "Unix time of the last snapshot of the index; 0: none since the start",
            registry=registry,
        )
        self.snapshot_unsaved = Gauge(
            "notellm_snapshot_unsaved_seconds",
            "Age of the oldest change of any tenant that is not in a snapshot; 0: none, or snapshots are off",
            registry=registry,
        )
        self.index_behind = Gauge(
            "notellm_index_behind_seconds",
            "Age of the oldest change in the log that the index of a tenant does not have yet, of the tenant that is "
            "furthest behind; 0 if none is behind",
            registry=registry,
        )
        self.items = Counter(
            "notellm_items",
            "Notes in search results, by source: memory (cache) or store",
            ("source",),
            registry=registry,
        )
        self.item_bytes = Gauge(
            "notellm_item_bytes", "Memory used by the cache of notes for search results", registry=registry
        )
        self.neighbour_lists = Counter(
            "notellm_neighbour_lists",
            "Lists of nearest notes, by source: memory (cache) or index (a search)",
            ("source",),
            registry=registry,
        )
        self.neighbour_list_bytes = Gauge(
            "notellm_neighbour_list_bytes", "Memory used by the cache of lists of nearest notes", registry=registry
        )

    def _add_store_metrics(self, registry: CollectorRegistry) -> None:
        self.store_errors = Counter(
            "notellm_store_errors",
            "Failed store calls: store unavailable, too slow, or refusing writes",
            registry=registry,
        )
        self.store_restarts = Counter(
            "notellm_store_restarts", "Restarts of the embedded server after it died", registry=registry
        )
        self.store_durable = Gauge(
            "notellm_store_durable",
            "1 if acknowledged writes survive a crash of Redis; 0 if a crash or eviction could lose them; NaN: unknown",
            registry=registry,
        )
        self.store_durable.set(math.nan)
        self.store_memory_filled = Gauge(
            "notellm_store_memory_filled_ratio",
            "Share of the maxmemory of Redis in use; NaN: no maxmemory, or not known yet",
            registry=registry,
        )
        self.store_memory_filled.set(math.nan)
        self.lost_writes = Gauge(
            "notellm_store_lost_writes",
            "1 if Redis has lost acknowledged writes that this process, or its snapshot, had seen; otherwise 0",
            registry=registry,
        )
        self.data_free = Gauge(
            "notellm_data_free_ratio", "Free share of the disk with NOTELLM_DATA_DIR", registry=registry
        )
        self.data_free.set(math.nan)
        self.purge_time = Gauge(
            "notellm_purge_timestamp_seconds",
            "Unix time of the last purge by NOTELLM_PURGE_SECONDS; 0: no schedule, or not known yet",
            registry=registry,
        )
        self.purge_overdue = Gauge(
            "notellm_purge_overdue_seconds",
            "Time by which the purge by NOTELLM_PURGE_SECONDS is overdue; 0: not overdue; NaN: not known yet",
            registry=registry,
        )

    def _add_behaviour_metrics(self, registry: CollectorRegistry) -> None:
        self.events = Counter(
            "notellm_events",
            "Events received, by outcome: accepted, duplicate, unknown_note, invalid",
            ("outcome",),
            registry=registry,
        )
        self.event_stream_bytes = Gauge(
            "notellm_event_stream_bytes", "Memory used by events in the store", registry=registry
        )
        self.event_stream_filled = Gauge(
            "notellm_event_stream_filled_ratio",
            "Share of NOTELLM_EVENT_BYTES used by the tenant with the most events",
            registry=registry,
        )
        self.behaviour_reads = Gauge("notellm_behaviour_reads", "Reads of notes held in memory", registry=registry)
        self.behaviour_readers = Gauge(
            "notellm_behaviour_readers", "Readers with reads held in memory", registry=registry
        )
        self.behaviour_notes = Gauge("notellm_behaviour_notes", "Notes with reads held in memory", registry=registry)
        self.behaviour_bytes = Gauge(
            "notellm_behaviour_bytes",
            "Approximate memory used by reads and by the counts of reports",
            registry=registry,
        )

    def _add_tenant_and_reader_metrics(self, registry: CollectorRegistry) -> None:
        self.tenants = Gauge("notellm_tenants", "Open tenants", registry=registry)
        self.tenants_failed = Gauge(
            "notellm_tenants_failed", "Tenants that could not be opened; opening them is retried", registry=registry
        )
        self._open_tenants: set[str] = set()
        self.tenant_vectors = Gauge(
            "notellm_tenant_index_vectors",
            "Live rows of the index of a tenant",
            ("tenant",),
            registry=registry,
        )
        self.tenant_requests = Counter(
            "notellm_tenant_requests", "Requests of a tenant, including refused ones", ("tenant",), registry=registry
        )
        self.readers = Gauge("notellm_readers", "Reader processes that are ready (NOTELLM_READERS)", registry=registry)
        self.reader_restarts = Counter(
            "notellm_reader_restarts", "Restarts of reader processes after they died", registry=registry
        )

    def add_tenant(self, name: str, vectors: Callable[[], float]) -> None:
        """Start the series of a tenant. `vectors`: returns the number of rows in its index."""
        self._open_tenants.add(name)
        self.tenant_vectors.labels(name).set_function(vectors)

    def count_tenant_request(self, name: str) -> None:
        """Count a request to a tenant if the tenant is still open: a series that is created after `forget_tenant` would
        never be dropped."""
        if name in self._open_tenants:
            self.tenant_requests.labels(name).inc()

    def forget_tenant(self, name: str) -> None:
        """Drop the series of a tenant that is no longer open."""
        self._open_tenants.discard(name)
        for metric in (self.tenant_vectors, self.tenant_requests):
            with suppress(KeyError):
                metric.remove(name)

    @asynccontextmanager
    async def measuring_loop_lag(self) -> AsyncIterator[None]:
        """Measure the lag of the event loop during the block."""
        measuring = asyncio.create_task(self._measure_loop_lag(), name="loop-lag")
        try:
            yield
        finally:
            measuring.cancel()

    async def _measure_loop_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            self.loop_lag.observe(max(0.0, loop.time() - due))
