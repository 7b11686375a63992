"""Errors -> RFC 9457 problems. The status codes of our own errors are decided here.

Other status codes are decided elsewhere: of successes and probes (routes/), 404 of an unknown path (routes/,
access.py), of connections (protocol.py), 503 of a process that cannot be reached (forwarding.py), 500 (middleware.py)
and 499, which nobody reads (app.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any, cast

import orjson
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from service import errors
from service.api.schemas.problem import UNKNOWN_FIELD, FieldProblem, Problem, hint_at_known, json_pointer
from service.errors import FieldError, NoteLLMError
from service.tracing import current_request

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "https://notellm.invalid/problems/"
MAX_ANSWER_ERRORS = 1000
"""Bound on the field errors in the answer to a list of notes or events; beyond it each refused item has one."""
MAX_ECHOED_ID = 128
"""Bound on the characters of a refused item's id that its result echoes: that of a valid id."""
TIME_FORM = "send ISO 8601 with a time zone, such as 2026-12-03T09:30:00Z, or Unix time in seconds"
CHALLENGE = 'Bearer realm="notellm"'
"""Value of WWW-Authenticate (RFC 6750)."""
STATUS: dict[type[Exception], int] = {
    errors.NoteNotFound: 404,
    errors.ExamplesNotFound: 404,
    errors.ListExpired: 410,
    errors.InvalidInput: 422,
    errors.MalformedBody: 400,
    errors.BodyNotTaken: 400,
    errors.MalformedHeader: 400,
    errors.KeyReused: 422,
    errors.KeyInUse: 409,
    errors.UnsupportedMediaType: 415,
    errors.LimitExceeded: 413,
    errors.PreconditionFailed: 412,
    errors.NoteContended: 409,
    errors.TenantNotFound: 404,
    errors.TenantRemoved: 409,
    errors.TooManyTenants: 403,
    errors.OtherSpace: 409,
    errors.StoredNoteUnreadable: 409,
    errors.LogCut: 410,
    errors.StoreReplaced: 410,
    errors.VerifyRunning: 409,
    errors.TooManyWaiting: 429,
    errors.BodiesFull: 429,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.ApiKeyNotFound: 404,
    errors.TooManyApiKeys: 409,
    errors.QuotaExceeded: 429,
    errors.QueueFull: 429,
    errors.DeadlineExceeded: 504,
    errors.StoreUnavailable: 503,
    errors.IndexBehind: 503,
    errors.BehaviourBehind: 503,
    errors.EngineFailed: 503,
    errors.TenantOpening: 503,
    errors.Starting: 503,
    errors.Stopping: 503,
}


class ErrorBudget:
    """Field errors that the answer to a list may still have, MAX_ANSWER_ERRORS in total."""

    def __init__(self) -> None:
        self._left = MAX_ANSWER_ERRORS

    def shorten(self, error: errors.InvalidInput) -> errors.InvalidInput:
        """Return the error of a refused item with at most as many field errors as are left, but at least one."""
        shortened = error.shortened(max(1, self._left))
        self._left -= len(shortened.errors)
        return shortened


def echoed_id(value: Any, field: str = "id") -> str | None:
    """Return the id that the result of a refused item echoes; None if it has none, or one longer than a valid id.
    `value`: the item's parsed JSON. `field`: name of the field that holds the id."""
    item_id = value.get(field) if isinstance(value, dict) else None
    return item_id if isinstance(item_id, str) and len(item_id) <= MAX_ECHOED_ID else None


def problem_name(error: type[Exception]) -> str:
    """Return the end of a problem's `type`: NoteNotFound -> note-not-found."""
    return "".join(f"-{c.lower()}" if c.isupper() else c for c in error.__name__).strip("-")


def problem_of(error: NoteLLMError) -> Problem:
    """Describe one of our own errors to the caller."""
    status = STATUS[type(error)]
    with_fields = (errors.InvalidInput, errors.ExamplesNotFound, errors.OtherSpace)
    fields = error.errors if isinstance(error, with_fields) else ()
    return Problem(
        type=TYPE_PREFIX + problem_name(type(error)),
        title=HTTPStatus(status).phrase,
        status=status,
        detail=str(error),
        errors=[FieldProblem(pointer=f.pointer, detail=f.detail) for f in fields] or None,
        retry_after=error.retry_after if isinstance(error, errors.TryLater) else None,
    )


def inner_problem(error: NoteLLMError) -> Problem:
    """Describe the error of an item, or one that ends a stream, within an answer whose own status does not show it. The
    metrics count such an answer (request_log.py)."""
    problem = problem_of(error)
    if request := current_request():
        request.inner_problems |= {problem.status}
    return problem


def problem_line(error: NoteLLMError) -> bytes:
    """Return the line (NDJSON) that ends a stream before its end: it belongs to no item, and has only a `problem`."""
    return orjson.dumps({"problem": inner_problem(error).model_dump()}) + b"\n"


def problem_response(problem: Problem, headers: dict[str, str] | None = None) -> JSONResponse:
    """Response of a problem; its `instance` is the request's id."""
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    body = problem.model_copy(update={"instance": request_id}).model_dump()
    return JSONResponse(body, problem.status, headers, MEDIA_TYPE)


def error_response(error: NoteLLMError) -> JSONResponse:
    """Response to one of our own errors, with the headers that its status code requires. The metrics count it by its
    name."""
    if request := current_request():
        request.refused_for = problem_name(type(error))
    headers = {}
    if isinstance(error, errors.TryLater):
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, errors.UnsupportedMediaType):
        headers["Accept" if error.header == "Content-Type" else "Accept-Encoding"] = error.accepted
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = CHALLENGE + (', error="invalid_token"' if error.offered else "")
    if isinstance(error, errors.Forbidden) and error.scopes:
        headers["WWW-Authenticate"] = f'{CHALLENGE}, error="insufficient_scope", scope="{" ".join(error.scopes)}"'
    return problem_response(problem_of(error), headers)


def validation_response(error: RequestValidationError) -> JSONResponse:
    """Response to FastAPI's errors about a request. Their locations begin with the part of the request; pointers begin
    with it too, unless it is the body."""
    failures = error.errors()
    if any(failure["type"] == "json_invalid" for failure in failures):
        failure = failures[0]
        place = f" (char {failure['loc'][1]})" if len(failure["loc"]) > 1 else ""
        return error_response(errors.MalformedBody(failure.get("ctx", {}).get("error", failure["msg"]) + place))
    without_body = [f | {"loc": f["loc"][1:]} if f["loc"][:1] == ("body",) else f for f in failures]
    return error_response(invalid_input(without_body))


def plain_problem(status: int, detail: str, retry_after: int | None = None) -> Problem:
    """Problem without an error type of its own: its status says all. `retry_after`: seconds."""
    title = HTTPStatus(status).phrase
    return Problem(
        type="about:blank", title=title, status=status, detail=detail, instance=None, retry_after=retry_after
    )


def invalid_input(failures: Sequence[Any], prefix: str = "") -> errors.InvalidInput:
    """Convert pydantic's or FastAPI's list of errors. The input is not repeated: it may not be encodable."""
    listed = failures[: errors.MAX_ERRORS]
    fields = [FieldError(prefix + json_pointer(f["loc"]), detail_of(f)) for f in listed]
    return errors.InvalidInput(fields, len(failures) - len(listed))


def detail_of(failure: Any) -> str:
    """Return pydantic's message about a field, with a hint if the field is unknown or a time cannot be read: a query
    string may have turned its + into a space."""
    if failure["type"] == UNKNOWN_FIELD:
        return f"{failure['msg']}; {hint_at_known(failure['loc'][-1], failure['ctx']['known'])}"
    if failure["type"].startswith(("datetime", "timezone")):
        in_query = failure["loc"][0] == "query" and " " in str(failure.get("input"))
        return f"{failure['msg']}; {'write + as %2B' if in_query else TIME_FORM}"
    return str(failure["msg"])


def invalid_value(error: ValidationError, prefix: str = "") -> errors.InvalidInput:
    """Convert pydantic's error about a parsed value. `prefix`: pointer to the value in the body."""
    return invalid_input(error.errors(include_input=False, include_url=False), prefix)


def install(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Answer every error of the app, which has these routes, with a problem."""

    async def own_error(request: Request, error: Exception) -> JSONResponse:
        return error_response(cast(NoteLLMError, error))

    async def invalid_request(request: Request, error: Exception) -> JSONResponse:
        return validation_response(cast(RequestValidationError, error))

    async def framework_error(request: Request, error: Exception) -> JSONResponse:
        http_error = cast(HTTPException, error)
        headers = dict(http_error.headers or {})
        if http_error.status_code == 405:
            headers["Allow"] = allowed_methods(request.scope, routes)
        detail = {
            400: "The body could not be read as UTF-8 JSON.",
            404: "There is no endpoint at this path; see /docs for the available ones.",
            405: f"This path only supports {headers.get('Allow')}; see /docs.",
        }.get(http_error.status_code, str(http_error.detail))
        return problem_response(plain_problem(http_error.status_code, detail), headers)

    app.add_exception_handler(NoteLLMError, own_error)
    app.add_exception_handler(RequestValidationError, invalid_request)
    app.add_exception_handler(HTTPException, framework_error)


def allowed_methods(scope: Scope, routes: Iterable[BaseRoute]) -> str:
    """Return the methods of a path, as the Allow header lists them. Starlette would name those of the first matching
    route alone, but each method of a path has a route of its own."""
    matching = (route for route in routes if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE)
    return ", ".join(sorted({method for route in matching for method in route.methods or ()}))


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses=` of a route that may answer with problems of these statuses."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }
