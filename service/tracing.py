"""Stages of a request: how long each took, for the request's log line, and their spans if tracing is on.

The components of the service call `stage` or `add_stage`; outside a request these do nothing. FastAPI makes the span of
the request itself. Only `Tracer` imports OpenTelemetry's SDK, and so only if an endpoint is configured.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.metadata import version
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import structlog
from fastapi.telemetry import TelemetryConfig

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""OpenTelemetry's own variables: either of them switches tracing on."""
TRACING_OFF: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI's telemetry without a tracer. Its metrics would repeat ours; its logs contain messages of exceptions, and so
what callers sent."""
PERSONAL = re.compile("((?:^|&)(?:user|author|attribute)=)[^&]*")
"""Values of a query string that may name a person."""
log = structlog.get_logger(__name__)

Stage = Literal["queue", "engine", "index", "store"]


class Tracer:
    """Creates spans and passes them to `processor`, by default OpenTelemetry's exporter, configured by its variables
    OTEL_*. Raises ImportError if the extra `otel` is not installed."""

    def __init__(self, processor: SpanProcessor | None = None) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider

        if processor is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            processor = BatchSpanProcessor(OTLPSpanExporter())
        name = os.environ.get("OTEL_SERVICE_NAME", "notellm")
        resource = Resource.create({SERVICE_NAME: name, SERVICE_VERSION: version("notellm")})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("notellm")
        self._current_span, self._error = trace.get_current_span, trace.StatusCode.ERROR

    @property
    def config(self) -> TelemetryConfig:
        """FastAPI's telemetry: the request's span, a child of the caller's `traceparent`."""
        return {**TRACING_OFF, "tracing": True, "tracer_provider": self._provider, "operation_spans": False}

    def current(self) -> tuple[str, str]:
        """Return the trace's id and the `traceparent` of the current span."""
        context = self._current_span().get_span_context()
        trace_id = f"{context.trace_id:032x}"
        return trace_id, f"00-{trace_id}-{context.span_id:016x}-{context.trace_flags:02x}"

    def hide_user(self, path: str) -> None:
        """Set the path of the request's span, and leave users, authors and attributes out of its query string."""
        span = self._current_span()
        span.set_attribute("url.path", path)
        if query := (getattr(span, "attributes", None) or {}).get("url.query"):
            span.set_attribute("url.query", PERSONAL.sub(r"\1...", str(query)))

    def add(self, name: str, began: float, ended: float, failed: bool, attributes: Mapping[str, int]) -> None:
        """Add a span below the current one. `began` and `ended`: times of time.monotonic()."""
        epoch = time.time() - time.monotonic()
        span = self._tracer.start_span(name, start_time=int((epoch + began) * 1e9), attributes=dict(attributes))
        if failed:
            span.set_status(self._error)
        span.end(int((epoch + ended) * 1e9))

    def close(self) -> None:
        """Export the spans that are still waiting. Blocks until they are exported or the exporter gives up."""
        self._provider.shutdown()


def open_tracer() -> Tracer | None:
    """Return a tracer; None if no endpoint is configured, or if the extra `otel` is missing, which is logged."""
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if disabled or not any(os.environ.get(name) for name in ENDPOINTS):
        return None
    try:
        return Tracer()
    except ImportError as error:
        log.warning("no_tracing", detail=f"an OTLP endpoint is configured, but {error}: pip install 'notellm[otel]'")
        return None


@dataclass(slots=True)
class RequestStages:
    """Time, tokens and problems of one request. `seconds`: time of each stage, summed over stages that run
    concurrently. `prompt_tokens` and `generated_tokens`: those of the model. `taken_tokens`: those that `take_tokens`
    has returned. `refused_for`: name of the problem with which the request was answered. `inner_problems`: status codes
    of the problems within an answer."""

    tracer: Tracer | None
    seconds: dict[Stage, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    generated_tokens: int = 0
    taken_tokens: int = 0
    refused_for: str | None = None
    inner_problems: frozenset[int] = frozenset()

    def add_tokens(self, prompt: int, generated: int) -> None:
        """Add tokens that the model read and wrote for the request."""
        self.prompt_tokens += prompt
        self.generated_tokens += generated

    def take_tokens(self) -> int:
        """Return the tokens that were used since the last call."""
        used = self.prompt_tokens + self.generated_tokens
        new, self.taken_tokens = used - self.taken_tokens, used
        return new


_request: ContextVar[RequestStages | None] = ContextVar("request_stages", default=None)


def begin_request(tracer: Tracer | None) -> RequestStages:
    """Start measuring the stages of the current task and of the tasks that it creates."""
    stages = RequestStages(tracer)
    _request.set(stages)
    return stages


def add_stage(
    stage: Stage, operation: str, began: float, ended: float, failed: bool = False, **attributes: int
) -> None:
    """Add the time of a stage to the current request. `began` and `ended`: times of time.monotonic()."""
    if request := _request.get():
        request.seconds[stage] = request.seconds.get(stage, 0.0) + ended - began
        if request.tracer:
            request.tracer.add(f"{stage} {operation}", began, ended, failed, attributes)


def current_request() -> RequestStages | None:
    """Return the measurements of the current request; None outside of one."""
    return _request.get()


def take_tokens() -> int:
    """Return the tokens of the current request that were used since the last call."""
    request = _request.get()
    return request.take_tokens() if request else 0


class stage:
    """Context manager that measures its block as a stage of the current request."""

    __slots__ = ("_attributes", "_began", "_operation", "_stage")

    def __init__(self, stage: Stage, operation: str, **attributes: int) -> None:
        self._stage, self._operation, self._attributes = stage, operation, attributes

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        add_stage(self._stage, self._operation, self._began, time.monotonic(), kind is not None, **self._attributes)
