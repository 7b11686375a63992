"""HTTP apps of the process with the model and of a reader process: routes, middleware and lifespan."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import structlog
from fastapi import APIRouter, FastAPI, Request, Response
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from service.access.gate import Gate
from service.api import problems, reader_process
from service.api.connection import CallerLeft
from service.api.early_refusal import EarlyRefusal
from service.api.middleware import AnswerFailures, BodyLimit, HeadAsGet, RequestContext
from service.api.openapi import describe
from service.api.request_log import RequestLog
from service.api.routes import (
    collection,
    documentation,
    embeddings,
    events,
    export,
    generate,
    keys,
    notes,
    operations,
    similar,
    tenants,
)
from service.api.scenarios import Scenarios
from service.api.short_path import ShortPath, ShortPathFirst
from service.container import ReadService, Service
from service.lifecycle import Lifecycle
from service.reader_processes import ReaderProcesses
from service.settings import Settings
from service.telemetry import Telemetry
from service.tenants import Tenants
from service.tracing import TRACING_OFF, Tracer

CORS_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
CORS_HEADERS = (
    *("Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match"),
    *("X-Request-Id", "X-Request-Timeout", "X-Request-Priority", "traceparent", "tracestate"),
)
"""Headers that a web page of another origin may send."""
EXPOSED_HEADERS = (
    *("ETag", "Location", "Idempotent-Replayed", "Retry-After", "RateLimit", "RateLimit-Policy"),
    *("WWW-Authenticate", "X-Request-Id"),
)
"""Response headers that a web page of another origin may read."""
ROUTERS = (
    similar.router,
    collection.router,
    export.router,
    notes.router,
    events.router,
    generate.router,
    embeddings.router,
    operations.router,
    tenants.router,
    keys.router,
)
"""Routes are matched in this order: the busiest come first, and paths below /notes before /notes/{id}."""
log = structlog.get_logger(__name__)
DESCRIPTION = (
    "Related notes, hashtags and categories from one language model. One prefill gives vector, hashtags and category; "
    "a note is durable and searchable when POST /notes answers. Errors are application/problem+json (RFC 9457)."
)


@dataclass(frozen=True, slots=True)
class ServiceLifespan:
    """Lifespan of the app of the process with the model.

    `open_service` is entered in the background when the app starts: until it is open, probes are answered and other
    requests get 503. It is exited when the app ends. If opening it fails, the error is kept as `lifecycle.failure` and
    logged: one of `expected_failures` by its message, any other with its traceback.
    """

    open_service: Callable[[], AbstractAsyncContextManager[Tenants[Service]]]
    lifecycle: Lifecycle
    telemetry: Telemetry
    expected_failures: tuple[type[Exception], ...]

    @contextlib.asynccontextmanager
    async def run(self, app: FastAPI) -> AsyncIterator[None]:
        """Keep the service open as `app.state.tenants` while the app runs; at the end, log the refusals that
        `app.state.early_refusal` has not logged yet."""
        ending = asyncio.Event()
        keeping = asyncio.create_task(self._keep_open(app, ending), name="service")
        async with self.telemetry.measuring_loop_lag():
            yield
        ending.set()
        if not self.lifecycle.started:
            keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
        app.state.early_refusal.close()

    async def _keep_open(self, app: FastAPI, ending: asyncio.Event) -> None:
        try:
            async with self.open_service() as app.state.tenants:
                self.lifecycle.started = True
                await ending.wait()
        except Exception as error:
            if self.lifecycle.started:
                raise
            self.lifecycle.failure = error
            traceback = not isinstance(error, self.expected_failures)
            log.error("start_failed", detail=str(error), exc_info=traceback)


def create_app(
    settings: Settings,
    open_service: Callable[[], AbstractAsyncContextManager[Tenants[Service]]],
    gate: Gate,
    lifecycle: Lifecycle,
    telemetry: Telemetry,
    expected_failures: tuple[type[Exception], ...] = (),
    tracer: Tracer | None = None,
    scenarios: Scenarios | None = None,
    readers: ReaderProcesses | None = None,
) -> FastAPI:
    """Build the HTTP app of the process with the model.

    `open_service`, `expected_failures`: see ServiceLifespan. `tracer`: None for no tracing. `scenarios`: those that
    searches may name. `readers`: the processes that answer reads beside this one.
    """
    lifespan = ServiceLifespan(open_service, lifecycle, telemetry, expected_failures)
    app = _new_app(lifespan.run, settings, gate, lifecycle, telemetry, tracer, scenarios)
    app.state.admin_port = settings.admin_port
    app.state.readers = readers or ReaderProcesses(0)
    app.state.openapi_json = None
    for router in (*ROUTERS, documentation.router):
        app.include_router(router)
    routes = [route for router in ROUTERS for route in router.routes]
    app.state.early_refusal = EarlyRefusal(routes, gate, lifecycle, telemetry, lambda: app.state.tenants)
    problems.install(app, [*routes, *documentation.router.routes])
    short_path = _add_short_path(app, similar.router, similar.similar, settings, tracer)
    app.add_middleware(
        BodyLimit, limit=settings.max_body_bytes, total=settings.body_memory, max_line=settings.note_bytes
    )
    _add_outer_middleware(app, settings, tracer)
    describe(app, routes)
    app.state.early = (*short_path, app.state.early_refusal)
    return app


def create_reader_process_app(
    settings: Settings,
    open_reader_process: Callable[[], AbstractAsyncContextManager[Tenants[ReadService]]],
    gate: Gate,
    lifecycle: Lifecycle,
    telemetry: Telemetry,
    socket: str,
    tracer: Tracer | None = None,
    scenarios: Scenarios | None = None,
) -> FastAPI:
    """Build the HTTP app of a reader process (reader_process.py), which counts as started once `open_reader_process` is
    entered. `socket`: path of the Unix socket of the process with the model. For the other arguments see create_app."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with telemetry.measuring_loop_lag(), open_reader_process() as app.state.tenants:
            lifecycle.started = True
            yield

    app = _new_app(lifespan, settings, gate, lifecycle, telemetry, tracer, scenarios)
    app.state.admin_port = None  # only admin routes use it, and a reader process has none
    app.include_router(reader_process.router)
    reader_process.forward_unanswered(app, socket)
    app.state.early = _add_short_path(app, reader_process.router, reader_process.similar, settings, tracer)
    _add_outer_middleware(app, settings, tracer)
    return app


def _new_app(
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    settings: Settings,
    gate: Gate,
    lifecycle: Lifecycle,
    telemetry: Telemetry,
    tracer: Tracer | None,
    scenarios: Scenarios | None,
) -> FastAPI:
    """Return an app without routes, with everything in its state that handlers and middleware need."""
    app = FastAPI(
        title="NoteLLM service",
        version=version("notellm"),
        description=DESCRIPTION,
        lifespan=lifespan,
        openapi_url=None,  # routes/documentation.py serves it, rendered outside the event loop
        docs_url=None,  # FastAPI's own pages load their scripts from another host
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat the Host header, which the caller chooses
        separate_input_output_schemas=False,
        generate_unique_id_function=lambda route: route.name,  # names in generated clients do not depend on paths
        telemetry=tracer.config if tracer else TRACING_OFF,
    )
    app.state.lifecycle, app.state.telemetry, app.state.gate = lifecycle, telemetry, gate
    app.state.scenarios, app.state.settings = scenarios or {}, settings
    app.state.request_log = RequestLog(telemetry, gate.meter, settings.log_sample)
    app.add_middleware(HeadAsGet)
    for error in (CallerLeft, ClientDisconnect):
        app.add_exception_handler(error, _answer_nobody)
    return app


def _add_short_path(
    app: FastAPI, router: APIRouter, handler: Callable[..., Any], settings: Settings, tracer: Tracer | None
) -> tuple[ShortPath, ...]:
    """Answer requests of the route of `handler` in `router` by the short path where possible, and return the short
    path, which connections use too. Returns () with a tracer: FastAPI names a request's span after the route that it
    matched."""
    if tracer:
        return ()
    short_path = ShortPath(
        route=next(route for route in router.routes if isinstance(route, Route) and route.endpoint is handler),
        gate=app.state.gate,
        lifecycle=app.state.lifecycle,
        settings=settings,
        request_log=app.state.request_log,
        get_tenants=lambda: app.state.tenants,
    )
    app.add_middleware(ShortPathFirst, short_path=short_path)
    return (short_path,)


def _add_outer_middleware(app: FastAPI, settings: Settings, tracer: Tracer | None) -> None:
    """Add the outermost middleware: the answers to failures, which CORS lets pages read, and the context of each
    request."""
    app.add_middleware(AnswerFailures, lifecycle=app.state.lifecycle)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=CORS_METHODS,
            allow_headers=CORS_HEADERS,
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(
        RequestContext,
        lifecycle=app.state.lifecycle,
        request_log=app.state.request_log,
        tracer=tracer,
    )


async def _answer_nobody(request: Request, error: Exception) -> Response:
    """Return an answer that nobody reads: the caller has disconnected, for which nginx uses status 499."""
    return Response(status_code=499)
