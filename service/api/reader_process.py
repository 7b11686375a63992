"""HTTP app of a reader process: a process beside the one with the model that answers reads from an index of its own.

It has the routes below. Each gives the same answer as in the process with the model, or raises; the request is then
forwarded, like a request for any other path, and the process with the model says what is wrong
(docs/decisions/0032-readers.md).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, cast

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from structlog.contextvars import bind_contextvars

from service.access.principal import Scope
from service.api.access import authorise, check_quota, count, needs
from service.api.dependencies import ConditionDep, read_timeout, remaining_read_time
from service.api.forwarding import ForwardedResponse
from service.api.query import read_query
from service.api.routes.notes import answer_note
from service.api.routes.similar import OPTIONS, answer_nearest
from service.api.schemas.common import NoteId
from service.api.schemas.notes import NoteOut
from service.api.schemas.similar import SimilarQuery
from service.api.search_options import read_options
from service.api.strict_route import StrictRoute
from service.container import ReadService
from service.errors import NoteLLMError
from service.read_time import ReadTime
from service.records import position_key
from service.tenants import Tenants


class MustForward(Exception):
    """Raised for a request that only the process with the model can answer."""


class ReaderProcessRoute(StrictRoute):
    """A StrictRoute that counts a request against the quota of its key once it is answered here. A forwarded one
    is counted by the process with the model, even if its quota is used up."""

    @staticmethod
    async def admit(request: Request, scopes: frozenset[Scope]) -> None:
        """Authenticate a caller whose quota is not used up. Raises what access.authorise raises, and QuotaExceeded."""
        await authorise(request, scopes)
        await check_quota(request)

    def get_body_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_body_handler()

        async def handle_and_count(request: Request) -> Response:
            response = await handle(request)
            await count(request)
            return response

        return handle_and_count


router = APIRouter(route_class=ReaderProcessRoute)


@router.get("/notes/{note_id}/similar", openapi_extra=OPTIONS)
@needs(Scope.SIMILAR)
async def similar(note_id: NoteId, request: Request) -> Response:
    """Related notes, if the short path finds them and the index has reached the requested log position."""
    if remaining_read_time(request):
        raise MustForward
    service = get_service(request)
    read_timeout(request)  # an invalid one is refused, as on all routes
    options = read_options(read_query(SimilarQuery, request), request, service, "/query")
    position = options.min_log_position
    if position and position_key(position) > position_key(service.index.position):
        raise MustForward
    answer = await answer_nearest(note_id, options, service, ReadTime())
    if answer is None:
        raise MustForward
    return answer


@router.get("/notes/export")
@needs(Scope.NOTES_READ)
async def export_notes(request: Request) -> Response:
    """Forward the export, which would otherwise match the route of a note with the id "export"."""
    raise MustForward


@router.get("/notes/{note_id}", response_model=NoteOut)
@needs(Scope.NOTES_READ)
async def get_note(
    note_id: NoteId, request: Request, condition: ConditionDep, response: Response
) -> NoteOut | Response:
    """A stored note."""
    return await answer_note(note_id, get_service(request).store, condition, response)


def get_service(request: Request) -> ReadService:
    """Return the service for reads of the caller's tenant. Raises MustForward if the tenant is not open here."""
    service = cast(Tenants[ReadService], request.app.state.tenants).find(request.state.principal.tenant)
    if service is None:
        raise MustForward
    bind_contextvars(tenant=service.tenant)
    return service


def forward_unanswered(app: FastAPI, socket: str) -> None:
    """Forward each request that an app does not answer to the process that listens on a Unix socket."""
    forwarded = ForwardedResponse(socket)

    async def forward(request: Request, error: Exception) -> Response:
        return forwarded

    for error in (MustForward, NoteLLMError, RequestValidationError, HTTPException):
        app.add_exception_handler(error, forward)
