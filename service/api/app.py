"""The HTTP app: its routes and middleware, and the service that lives as long as it does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version

import structlog
from fastapi import FastAPI, Request, Response
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from service.access.gate import Gate
from service.api import problems
from service.api.connection import CallerLeft
from service.api.early_refusal import EarlyRefusal
from service.api.middleware import BodyLimit, RequestContext
from service.api.openapi import describe
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
from service.lifecycle import Lifecycle
from service.settings import Settings
from service.telemetry import Telemetry
from service.tenants import Tenants
from service.tracing import TRACING_OFF, Tracer

CORS_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
CORS_HEADERS = (
    *("Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match"),
    *("X-Request-Id", "X-Request-Timeout", "X-Request-Priority"),
)
"""Headers that a web page of another origin may send."""
EXPOSED_HEADERS = (
    *("ETag", "Location", "Idempotent-Replayed", "Retry-After", "RateLimit", "RateLimit-Policy"),
    *("WWW-Authenticate", "X-Request-Id"),
)
"""Headers of answers that it may read."""
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
"""Routes are matched in this order: the busiest come first, and addresses below /notes before /notes/{id}."""
log = structlog.get_logger(__name__)
DESCRIPTION = (
    "Related notes, hashtags and categories from one language model. One prefill gives vector, hashtags and category; "
    "a note is durable and searchable when POST /notes answers. Errors are application/problem+json (RFC 9457)."
)


def create_app(
    settings: Settings,
    open_service: Callable[[], AbstractAsyncContextManager[Tenants]],
    gate: Gate,
    lifecycle: Lifecycle,
    telemetry: Telemetry,
    expected_failures: tuple[type[Exception], ...] = (),
    tracer: Tracer | None = None,
    scenarios: Scenarios | None = None,
) -> FastAPI:
    """Build the HTTP app of one process.

    `open_service` is entered when the app starts, beside its first requests: probes are answered meanwhile, all else
    with 503. It is left when the app ends. Where it fails, `lifecycle` has the failure; it is logged by its sentence
    where it is one of `expected_failures`, by its traceback where it is not. `tracer`: None for no tracing.
    `scenarios`: those that searches may name.
    """

    async def keep_open(app: FastAPI, ending: asyncio.Event) -> None:
        try:
            async with open_service() as app.state.tenants:
                lifecycle.started = True
                await ending.wait()
        except Exception as error:
            if lifecycle.started:
                raise
            lifecycle.failure = error
            traceback = not isinstance(error, expected_failures)
            log.error("start_failed", detail=str(error), exc_info=traceback)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        ending = asyncio.Event()
        keeping = asyncio.create_task(keep_open(app, ending), name="service")
        measuring = asyncio.create_task(telemetry.measure_loop_lag(), name="loop-lag")
        yield
        measuring.cancel()
        ending.set()
        if not lifecycle.started:
            keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
        app.state.early_refusal.close()

    app = FastAPI(
        title="NoteLLM service",
        version=version("notellm"),
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load their scripts from another host
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat the Host header, which the caller chooses
        separate_input_output_schemas=False,
        telemetry=tracer.config if tracer else TRACING_OFF,
    )
    app.state.lifecycle, app.state.telemetry = lifecycle, telemetry
    app.state.scenarios = scenarios or {}
    app.state.gate, app.state.admin_port = gate, settings.admin_port
    for router in (*ROUTERS, documentation.router):
        app.include_router(router)
    problems.install(app)
    for error in (CallerLeft, ClientDisconnect):
        app.add_exception_handler(error, _answer_nobody)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
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
        lifecycle=lifecycle,
        telemetry=telemetry,
        meter=gate.meter,
        tracer=tracer,
        log_sample=settings.log_sample,
    )
    routes = [route for router in ROUTERS for route in router.routes]
    describe(app, routes)
    app.state.early_refusal = EarlyRefusal(routes, gate, lifecycle, telemetry, lambda: app.state.tenants)
    return app


async def _answer_nobody(request: Request, error: Exception) -> Response:
    """Return an answer that nobody reads, since the caller has left; 499 is nginx's status code for that."""
    return Response(status_code=499)
