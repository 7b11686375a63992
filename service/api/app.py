"""The HTTP process: middleware, routes, and the service that lives as long as the app."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version
from uuid import uuid4

import structlog
from fastapi import FastAPI, Request, Response
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import problems
from service.api.dependencies import CallerLeft
from service.api.problems import error_response, plain_problem, problem_response
from service.api.routes import documentation, generate, notes, operations, similar
from service.api.schemas import BatchOut, NoteIn, Problem
from service.container import Service
from service.errors import LimitExceeded
from service.settings import Settings

log = structlog.get_logger(__name__)
REQUEST_ID = re.compile(r"^[\x21-\x7e]{1,128}$")
DESCRIPTION = (
    "Related notes, hashtags and categories from one language model. One prefill gives vector, hashtags and category; "
    "a note is durable and searchable when POST /notes answers. Errors are application/problem+json (RFC 9457)."
)


def create_app(settings: Settings, open_service: Callable[[], AbstractAsyncContextManager[Service]]) -> FastAPI:
    """The HTTP app of one process. `open_service` is entered when the app starts and left when it ends."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_service() as app.state.service:
            yield

    app = FastAPI(
        title="NoteLLM service",
        version=version("notellm"),
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load their scripts from another host
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    # The most asked is found first.
    for router in (similar.router, notes.router, generate.router, operations.router, documentation.router):
        app.include_router(router)
    problems.install(app)
    for left in (CallerLeft, ClientDisconnect):
        app.add_exception_handler(left, _nobody_reads)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    app.add_middleware(RequestContext, service=lambda: app.state.service)
    _document_problems(app)
    return app


async def _nobody_reads(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


def _document_problems(app: FastAPI) -> None:
    """OpenAPI with our Problem wherever FastAPI would describe its own validation error."""
    made = app.openapi

    def openapi() -> dict[str, object]:
        if app.openapi_schema is None:
            schema = made()
            components = schema["components"]["schemas"]
            for unused in ("HTTPValidationError", "ValidationError"):
                components.pop(unused, None)
            for model in (Problem, NoteIn, BatchOut):
                described = model.model_json_schema(ref_template="#/components/schemas/{model}")
                components.update(described.pop("$defs", {}))
                components[model.__name__] = described
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI documents this way to change the description


class RequestContext:
    """Gives each request an id, one log line, one observation, and a problem where the code failed. A caller who leaves
    before the answer is complete is observed as 499, whatever was sent until then."""

    def __init__(self, app: ASGIApp, service: Callable[[], Service]) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if REQUEST_ID.match(given) else uuid4().hex
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started = time.perf_counter()
        status = 0
        complete = left = False

        async def send_with_id(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        async def watched_receive() -> Message:
            nonlocal left
            message = await receive()
            left = left or (message["type"] == "http.disconnect" and not complete)
            return message

        try:
            await self._app(scope, watched_receive, send_with_id)
        except Exception:
            log.exception("request_failed", path=scope["path"])
            if status:
                raise
            detail = "The service failed on this request; this is our fault. Tell us the instance."
            await problem_response(plain_problem(500, detail))(scope, receive, send_with_id)
        finally:
            self._observe(scope, 499 if left else status, time.perf_counter() - started)

    def _observe(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        telemetry = self._service().telemetry
        telemetry.http_request.labels(route, status).observe(seconds)
        if status in (413, 415, 422, 429, 503, 504):
            telemetry.rejected.labels(str(status)).inc()
        log.info("request", method=scope["method"], path=scope["path"], status=status, ms=round(1000 * seconds, 2))


class BodyLimit:
    """Refuses a body over `limit` bytes: by its announced length at once, else when it gets there. A stream of notes is
    exempt: it is read line by line, and each line has its own bound."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or notes.is_stream(scope["method"], scope["path"], Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdigit() and int(announced) > self._limit:
            await error_response(LimitExceeded("max_body_bytes", self._limit))(scope, receive, send)
            return
        received = 0

        async def bounded_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise LimitExceeded("max_body_bytes", self._limit)
            return message

        await self._app(scope, bounded_receive, send)
