"""Metrics and logs. Prometheus base units; the names are those of docs/operations.md."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector
from structlog.tracebacks import ExceptionDictTransformer

LINES_SECONDS = 0.1
MAX_WAITING_LINES = 10_000
"""That wait while they cannot be written; the oldest are lost first."""
LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Telemetry:
    """The metrics of one service; each has its own registry, so that two services in one process do not mix."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.http_request = Histogram(
            "notellm_http_request_duration_seconds",
            "HTTP requests, to the last byte of the answer",
            ("route", "code"),
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.queue_depth = Gauge("notellm_queue_depth", "Notes that wait for the engine", ("lane",), registry=registry)
        self.queue_wait = Histogram(
            "notellm_queue_wait_seconds",
            "From the request to the engine's first step with the note",
            ("lane",),
            buckets=LATENCY_BUCKETS,
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
        self.rejected = Counter("notellm_rejected", "Requests refused", ("reason",), registry=registry)
        self.model_info = Gauge("notellm_model_info", "1", ("model", "digest", "state"), registry=registry)


class Lines:
    """Where log lines go: to a file descriptor, by a thread of their own, so that no request waits for a disk. Lines
    below a warning may wait LINES_SECONDS, so that many take one write. Where they cannot be written they are lost."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, True)
        self._descriptor = descriptor
        self._waiting: deque[str] = deque(maxlen=MAX_WAITING_LINES)
        self._urgent = threading.Event()
        self._writing = threading.Lock()
        atexit.register(self.write)
        threading.Thread(target=self._write_on, name="log-lines", daemon=True).start()

    def info(self, line: str) -> None:
        self._waiting.append(line)

    def warning(self, line: str) -> None:
        self._waiting.append(line)
        self._urgent.set()

    debug = info
    critical = error = exception = warning

    def write(self) -> None:
        """All that wait, now."""
        with self._writing, suppress(OSError):
            lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
            left = memoryview("".join(f"{line}\n" for line in lines).encode())
            while left:
                left = left[os.write(self._descriptor, left) :]

    def _write_on(self) -> None:
        while True:
            self._urgent.wait(LINES_SECONDS)
            self._urgent.clear()
            self.write()


def configure_logging(log_format: Literal["auto", "json", "console"]) -> Callable[[], None]:
    """Write structured lines on stderr, one an event, each with the id of its request. A traceback shows no variables,
    which hold notes and passwords. Returns what writes the lines that wait; a process that a signal ends must call it.
    """
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if console
        else structlog.processors.JSONRenderer()
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if not console:
        shared.append(structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)))
    lines = None if console else lines_of(sys.stderr)
    structlog.configure(
        processors=[*shared, renderer],
        logger_factory=(lambda *_: lines) if lines else structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=False,
    )
    formatter = structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[
        structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer])  # fmt: skip
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    return lines.write if lines else sys.stderr.flush


def lines_of(stream: TextIO) -> Lines | None:
    """None where it is no file of the system."""
    try:
        return Lines(stream.fileno())
    except OSError:
        return None
