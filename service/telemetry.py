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
LAG_SECONDS = 0.1
"""Time between two measurements of the event loop's lag."""


class Telemetry:
    """Metrics of one service, in a registry of their own, so that two services in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._add_request_metrics(self.registry)
        self._add_engine_metrics(self.registry)
        self._add_index_metrics(self.registry)
        self._add_store_metrics(self.registry)
        self._add_behaviour_metrics(self.registry)
        self._add_tenant_and_reader_metrics(self.registry)

    def _add_request_metrics(self, registry: CollectorRegistry) -> None:
        self.http_request = Histogram(
            "notellm_http_request_duration_seconds",
            "HTTP requests, to the last byte of the answer",
            ("method", "route", "code"),
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.degraded = Counter(
            "notellm_degraded_answers", "Searches answered from the index alone: the store was away", registry=registry
        )
        self.loop_lag = Histogram(
            "notellm_loop_lag_seconds",
            "How much too late the event loop wakes a task, ten times a second: what each request waits for others",
            buckets=LAG_BUCKETS,
            registry=registry,
        )
        self.rejected = Counter(
            "notellm_rejected",
            "Requests refused, by the name of the problem, or by the status code of one without a name",
            ("reason",),
            registry=registry,
        )
        self.inner_problems = Counter(
            "notellm_answers_with_problems",
            "Answers of 2xx with problems in a list or a stream: each answer once for each class of status codes (4xx, "
            "5xx), under the highest",
            ("method", "route", "status"),
            registry=registry,
        )
        self.refused = Counter(
            "notellm_access_refused",
            "Requests refused for who sent them: no_key, malformed_key, unknown_key, expired_key (401), scope, host, "
            "origin (403), quota (429)",
            ("reason",),
            registry=registry,
        )
        self.refused_connections = Counter(
            "notellm_connections_refused",
            "Connections refused with 503: as many as the process may have were open",
            registry=registry,
        )
        self.ended_connections = Counter(
            "notellm_connections_ended",
            "Connections that the service ended for what their caller sent or took: malformed (400), slow_head, "
            "slow_body (408), head_too_large (431), slow_answer, body_not_taken (without an answer); failed (500): for "
            "a failure of its own",
            ("reason",),
            registry=registry,
        )
        self.ended_connections.labels("failed")  # starts at 0: the alert sees no increase in a series that starts at 1
        self.uncounted = Counter(
            "notellm_quota_uncounted",
            "Requests and uses of tokens that the store did not count against a quota in time: it was away, or late",
            registry=registry,
        )
        self.ready = Gauge(
            "notellm_ready",
            "1 where the process has started and does not drain, the store answers, all indexes follow it, the engine "
            "moves, and the readers were started",
            registry=registry,
        )

    def _add_engine_metrics(self, registry: CollectorRegistry) -> None:
        self.queue_depth = Gauge("notellm_queue_depth", "Notes that wait for the engine", ("lane",), registry=registry)
        self.queue_wait = Histogram(
            "notellm_queue_wait_seconds",
            "From the request to the engine's first step with the note",
            ("lane",),
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.expected_wait = Gauge(
            "notellm_expected_wait_seconds",
            "Until a note that is admitted now begins, by the measured times of those before it",
            ("lane",),
            registry=registry,
        )
        self.dropped = Counter(
            "notellm_dropped_notes",
            "Notes that were admitted and never reached the model, since nobody waited for them any more",
            ("reason",),
            registry=registry,
        )
        self.tokenise = Histogram(
            "notellm_tokenise_seconds", "Tokenising one request's notes", buckets=LATENCY_BUCKETS, registry=registry
        )
        self.inference = Histogram(
            "notellm_inference_seconds", "One step of the engine", buckets=LATENCY_BUCKETS, registry=registry
        )
        self.batch_tokens = Histogram(
            "notellm_batch_tokens",
            "Prompt tokens that began with one step of the engine",
            buckets=(16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384),
            registry=registry,
        )
        self.prompt_tokens = Counter("notellm_prompt_tokens", "Tokens given to the model", registry=registry)
        self.generated_tokens = Counter("notellm_generated_tokens", "Tokens the model wrote", registry=registry)
        self.first_token = Histogram(
            "notellm_time_to_first_token_seconds",
            "From a note's first step to its first generated token",
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.model_info = Gauge("notellm_model_info", "1", ("model", "digest", "state"), registry=registry)

    def _add_index_metrics(self, registry: CollectorRegistry) -> None:
        self.searchable = Histogram(
            "notellm_ingest_to_searchable_seconds",
            "From the acceptance of a write to its visibility in the index",
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.index_vectors = Gauge("notellm_index_vectors", "Rows of the index", ("state",), registry=registry)
        self.index_segments = Gauge("notellm_index_segments", "Parts that a search goes through", registry=registry)
        self.recall = Gauge(
            "notellm_index_recall_sampled",
            "Share of what an exact search finds, over the last searches that were repeated; NaN: none was",
            registry=registry,
        )
        self.other_space = Gauge(
            "notellm_notes_of_another_model",
            "Stored notes whose vectors are of another model, so that they are not found",
            registry=registry,
        )
        self.quarantined = Gauge(
            "notellm_quarantined_notes",
            "Notes that are left out because what the store holds of them cannot be read, of those that were met",
            registry=registry,
        )
        self.snapshot_time = Gauge(
            "notellm_snapshot_timestamp_seconds",
            "When the index was last written to disk, since the epoch; 0: never",
            registry=registry,
        )
        self.snapshot_unsaved = Gauge(
            "notellm_snapshot_unsaved_seconds",
            "How long the oldest change of any tenant waits to be written to disk; 0: none waits, or none ever is",
            registry=registry,
        )
        self.items = Counter(
            "notellm_items",
            "Notes of answers about the nearest notes, by where they came from: memory, store",
            ("source",),
            registry=registry,
        )
        self.item_bytes = Gauge(
            "notellm_item_bytes", "Memory that notes of answers take, which are kept for the next", registry=registry
        )
        self.neighbour_lists = Counter(
            "notellm_neighbour_lists",
            "Lists of nearest notes, by where they came from: memory, index",
            ("source",),
            registry=registry,
        )
        self.neighbour_list_bytes = Gauge(
            "notellm_neighbour_list_bytes", "Memory that lists of nearest notes take, which are kept", registry=registry
        )

    def _add_store_metrics(self, registry: CollectorRegistry) -> None:
        self.store_errors = Counter(
            "notellm_store_errors", "Calls of the store that failed: away, late, or refused to write", registry=registry
        )
        self.store_restarts = Counter(
            "notellm_store_restarts", "Starts of the embedded store after it had died", registry=registry
        )
        self.store_durable = Gauge(
            "notellm_store_durable",
            "0: a crash of Redis, or its eviction, would lose acknowledged writes; NaN: it has not answered yet",
            registry=registry,
        )
        self.store_durable.set(math.nan)
        self.store_memory_filled = Gauge(
            "notellm_store_memory_filled_ratio",
            "Share of maxmemory of Redis that is in use; NaN: it has no maxmemory, or has not answered yet",
            registry=registry,
        )
        self.store_memory_filled.set(math.nan)
        self.lost_writes = Gauge(
            "notellm_store_lost_writes",
            "1: Redis has lost acknowledged writes since this process, or the snapshot that it read, knew them",
            registry=registry,
        )
        self.data_free = Gauge(
            "notellm_data_free_ratio", "Share of the disk of NOTELLM_DATA_DIR that is free", registry=registry
        )
        self.data_free.set(math.nan)
        self.purge_time = Gauge(
            "notellm_purge_timestamp_seconds",
            "When the store was last purged by NOTELLM_PURGE_SECONDS, since the epoch; 0: never",
            registry=registry,
        )
        self.purge_overdue = Gauge(
            "notellm_purge_overdue_seconds",
            "How long the purge by NOTELLM_PURGE_SECONDS is overdue; 0: it is not",
            registry=registry,
        )

    def _add_behaviour_metrics(self, registry: CollectorRegistry) -> None:
        self.events = Counter(
            "notellm_events",
            "Events that were sent: accepted, duplicate, unknown_note, invalid",
            ("outcome",),
            registry=registry,
        )
        self.event_stream_bytes = Gauge(
            "notellm_event_stream_bytes", "Memory of the store that the events take", registry=registry
        )
        self.event_stream_filled = Gauge(
            "notellm_event_stream_filled_ratio",
            "Share of NOTELLM_EVENT_BYTES that the events of a tenant take; of the tenant with most",
            registry=registry,
        )
        self.behaviour_reads = Gauge("notellm_behaviour_reads", "Reads of notes that are held", registry=registry)
        self.behaviour_readers = Gauge("notellm_behaviour_readers", "Readers of these reads", registry=registry)
        self.behaviour_notes = Gauge("notellm_behaviour_notes", "Notes of these reads", registry=registry)
        self.behaviour_bytes = Gauge(
            "notellm_behaviour_bytes",
            "About how much memory these reads and the counts of reports take",
            registry=registry,
        )

    def _add_tenant_and_reader_metrics(self, registry: CollectorRegistry) -> None:
        self.tenants = Gauge("notellm_tenants", "Tenants that are open", registry=registry)
        self.tenants_failed = Gauge(
            "notellm_tenants_failed", "Tenants that could not be opened, and are tried again", registry=registry
        )
        self._open_tenants: set[str] = set()
        self.tenant_vectors = Gauge(
            "notellm_tenant_index_vectors",
            "Rows of a tenant's index that can be found",
            ("tenant",),
            registry=registry,
        )
        self.tenant_requests = Counter(
            "notellm_tenant_requests", "Requests that came to a tenant", ("tenant",), registry=registry
        )
        self.readers = Gauge("notellm_readers", "Readers that are ready (NOTELLM_READERS)", registry=registry)
        self.reader_restarts = Counter(
            "notellm_reader_restarts", "Starts of a reader after it had died", registry=registry
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
