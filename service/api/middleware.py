"""Middleware: gives each request an id and its place in a trace, observes it at its end, answers where the code fails,
and bounds its body."""

from __future__ import annotations

import asyncio
import re
import time

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.early_response import first_values
from service.api.ingest_stream import is_note_stream
from service.api.problems import error_response, plain_problem, problem_response
from service.api.request_id import request_id_of
from service.api.request_log import RequestLog
from service.errors import BodiesFull, LimitExceeded, Stopping
from service.lifecycle import Lifecycle
from service.tracing import RequestStages, Tracer, begin_request

log = structlog.get_logger(__name__)

FREE_BODY_BYTES = 65_536
"""Bytes of a body that do not count towards the bound on all bodies: as many as each connection may hold anyway."""


USER_PATH = re.compile("^(/users/|/sessions/).+?(/events)?$", re.DOTALL)
"""Path that names a user or a session. It must not be logged: the request may be to forget that user."""


def path_without_user(path: str) -> str:
    """Return a request's path for logs and traces, without the name of a user or session."""
    return USER_PATH.sub(r"\1...\2", path)


class RequestContext:
    """Gives each request an id and its time of arrival, and has `request_log` observe it.

    With a `tracer`, log lines have the trace's id, and the answer has it with the request's span in `traceresponse`.

    A request that is forwarded to another process (forwarding.py) keeps its id; the other process adds the header, the
    log line and the observation.

    While the process drains, each answer closes its connection. A request whose caller disconnects before the answer is
    complete is observed as 499, whatever was sent until then. A request whose connection the service closes
    (protocol.py), because of its own body or because its answer is not read, is observed with the status for that: 408
    if the caller is too slow. Behind a reader process it is a 499: the process that observes it sees the reader
    process's connection end.
    """

    def __init__(
        self,
        app: ASGIApp,
        lifecycle: Lifecycle,
        request_log: RequestLog,
        tracer: Tracer | None = None,
    ) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._request_log = request_log
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = first_values(scope["headers"])
        request_id = request_id_of(headers.get(b"x-request-id"))
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        own_headers = [(b"x-request-id", request_id.encode())]
        if self._tracer:
            trace_id, traceparent = self._tracer.current()
            structlog.contextvars.bind_contextvars(trace_id=trace_id)
            own_headers.append((b"traceresponse", traceparent.encode()))
            self._tracer.hide_user(path_without_user(scope["path"]))
        stages = begin_request(self._tracer)
        started = time.monotonic()
        scope.setdefault("state", {})["arrived"] = started
        status = 0
        complete = left = False

        async def send_with_id(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"]]
                if not scope["state"].get("forwarded"):
                    headers += [*own_headers, *scope["state"].get("answer_headers", ())]
                if self._lifecycle.draining:  # the next request should go to another process
                    headers.append((b"connection", b"close"))
                message["headers"] = headers
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        async def watched_receive() -> Message:
            nonlocal left
            message = await receive()
            left = left or (message["type"] == "http.disconnect" and not complete)
            return message

        try:
            await self._app(scope, watched_receive, send_with_id)
        finally:
            left = left or scope["state"].get("left", False)
            status = scope["state"].get("ended_status") or (499 if left else status)
            self._observe(scope, status, time.monotonic() - started, stages)

    def _observe(self, scope: Scope, status: int, seconds: float, stages: RequestStages) -> None:
        state = scope["state"]
        if state.get("forwarded"):
            return
        self._request_log.observe(
            scope["method"],
            getattr(scope.get("route"), "path", "none"),
            status,
            seconds,
            principal=state.get("principal"),
            stages=stages,
        )


class HeadAsGet:
    """Answers HEAD as GET: the server sends the answer to a HEAD without its body. Metrics and log lines say HEAD."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        as_get = {**scope, "method": "GET"}
        scope["state"]["method"] = "HEAD"  # for a reader process that forwards the request, and for streams
        try:
            await self._app(as_get, receive, send)
        finally:
            scope["route"] = as_get.get("route")  # for the log line and the metrics


class AnswerFailures:
    """Answers 500 if the code fails, and 503 if the process ends before a request is answered."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self._app = app
        self._lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def watched_send(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except asyncio.CancelledError:
            if begun or not self._lifecycle.draining:
                raise
            # uvicorn has waited shutdown_seconds for this request, and would answer 500 itself.
            await error_response(Stopping())(scope, receive, send)
        except Exception:
            log.exception("request_failed", path=path_without_user(scope["path"]))
            if begun:  # the answer can only be cut off
                raise
            detail = (
                "The service failed on this request: an internal error. Report it with the `instance` of this problem."
            )
            await problem_response(plain_problem(500, detail))(scope, receive, send)


class BodyLimit:
    """Refuses a body over `limit` bytes: at once by its Content-Length, otherwise when that many have arrived. Also
    refuses a body with which the bodies of all current requests would hold more than `total` bytes. The first
    FREE_BODY_BYTES of each do not count, so that a note is accepted however many callers keep large bodies open.

    A stream of notes has no bound of its own. It counts as the bytes of its unfinished last line, up to `max_line`.
    """

    def __init__(self, app: ASGIApp, limit: int, total: int, max_line: int) -> None:
        self._app = app
        self._limit = limit
        self._total = total
        self._max_line = max_line
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        streams = is_note_stream(scope["method"], scope["path"], headers)
        announced = headers.get("content-length", "0")
        if not streams and announced.isdigit() and int(announced) > self._limit:
            await error_response(LimitExceeded("max_body_bytes", self._limit))(scope, receive, send)
            return
        held = counted = 0

        async def bounded_receive() -> Message:
            nonlocal held, counted
            message = await receive()
            body = message.get("body", b"")
            if streams:
                held = min(self._max_line, len(body) - body.rfind(b"\n") - 1 if b"\n" in body else held + len(body))
            else:
                held += len(body)
                if held > self._limit:
                    raise LimitExceeded("max_body_bytes", self._limit)
            more = max(0, held - FREE_BODY_BYTES) - counted
            if more > 0 and self._held + more > self._total:
                raise BodiesFull(FREE_BODY_BYTES)
            counted += more
            self._held += more
            return message

        try:
            await self._app(scope, bounded_receive, send)
        finally:
            self._held -= counted
