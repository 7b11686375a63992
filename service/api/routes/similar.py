"""GET and POST /notes/{id}/similar, POST /similar and POST /similar/batch: related notes."""

from __future__ import annotations

from contextlib import suppress

from fastapi import APIRouter, Request, Response

from service.access.principal import Scope
from service.api.access import needs, spends_tokens
from service.api.bodies import check_media_type
from service.api.connection import seconds_left, while_connected
from service.api.dependencies import (
    RequestedUrgency,
    RequestedUrgencyDep,
    ServiceDep,
    get_service,
    read_timeout,
    remaining_read_time,
)
from service.api.included import IncludedFields
from service.api.json_route import SearchRoute
from service.api.problems import documented
from service.api.query import query_parameters, read_query
from service.api.rendered import render_nearest
from service.api.schemas.common import NoteId
from service.api.schemas.search import SearchBody, SearchDefaults, SearchResults, SimilarIn
from service.api.schemas.similar import RankingOptions, SimilarOut, SimilarQuery
from service.api.search_list import answer_list
from service.api.search_options import read_options
from service.api.waiting import time_to_wait, wait_for_position
from service.container import ReadService, Service
from service.errors import ExamplesNotFound, InvalidInput, OtherSpace, StoreUnavailable
from service.read_time import ReadTime
from service.records import Similar
from service.search.request import Example, SearchRequest

WAIT_HEADER = {
    "name": "x-request-timeout",
    "in": "header",
    "required": False,
    "schema": {"type": "number", "exclusiveMinimum": 0},
    "description": "maximum seconds to wait for min_log_position, at most request_seconds of GET /limits; default: 1",
}
LIST_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "array",
                "description": "list of searches; an invalid search gets a problem as its result",
                "items": {"$ref": "#/components/schemas/SimilarIn"},
            }
        }
    },
}
OPTIONS = {"parameters": [*query_parameters(SimilarQuery), WAIT_HEADER]}
"""OpenAPI description of the query parameters of a search."""
router = APIRouter(tags=["similar"], route_class=SearchRoute)


@router.get(
    "/notes/{note_id}/similar",
    summary="Find notes related to a stored note",
    responses=documented(404, 409, 410, 422, 503),
    response_model=SimilarOut,
    openapi_extra=OPTIONS,
)
@needs(Scope.SIMILAR)
async def similar(note_id: NoteId, request: Request) -> Response:
    """Find notes related to a stored note, by its stored vector. The model is not called."""
    # Not FastAPI dependencies: each of those costs a tenth of a millisecond (docs/log/reads.md).
    service, query = await get_service(request), read_query(SimilarQuery, request)
    options, timeout = read_options(query, request, service, "/query"), read_timeout(request)
    tried = remaining_read_time(request)
    time_left = tried or ReadTime()
    if options.min_log_position:
        seconds = min(timeout or time_left.seconds, service.settings.request_seconds)
        await wait_for_position(options.min_log_position, "/query", service, time_left, seconds)
    if not tried and (answer := await answer_nearest(note_id, options, service, time_left)):
        return answer
    try:
        related = await service.search.related(options.as_request(*query.examples(note_id)), time_left=time_left)
    except (InvalidInput, ExamplesNotFound, OtherSpace) as error:  # about the cursor or the examples
        raise error.under("/query") from error
    return await answer_response(related, note_id, service, options, time_left)


@router.post(
    "/notes/{note_id}/similar",
    summary="Find notes related to a stored note and to further examples",
    responses=documented(400, 404, 409, 410, 413, 415, 422, 429, 503, 504),
    response_model=SimilarOut,
)
@needs(Scope.SIMILAR)
@spends_tokens
async def similar_by_body(
    note_id: NoteId, body: SearchBody, request: Request, service: ServiceDep, requested: RequestedUrgencyDep
) -> Response:
    """Find notes related to a stored note and to further examples. The model is called only if an example is a text."""
    options = read_options(body, request, service, "")
    search = options.as_request((Example(note_id), *body.positives()), body.negatives())
    time_left = ReadTime()
    related = await answer_body(search, options.min_log_position, request, service, requested, time_left)
    return await answer_response(related, note_id, service, options, time_left)


@router.post(
    "/similar",
    summary="Find notes related to a text, or to several examples",
    responses=documented(400, 404, 409, 410, 413, 415, 422, 429, 503, 504),
    response_model=SimilarOut,
)
@needs(Scope.SIMILAR)
@spends_tokens
async def similar_to_examples(
    body: SimilarIn, request: Request, service: ServiceDep, requested: RequestedUrgencyDep
) -> Response:
    """Find notes related to a text, or to several stored notes and texts. Texts are not stored and leave no trace."""
    options = read_options(body, request, service, "")
    search = options.as_request(body.positives(), body.negatives())
    time_left = ReadTime()
    related = await answer_body(search, options.min_log_position, request, service, requested, time_left)
    return await answer_response(related, None, service, options, time_left)


@router.post(
    "/similar/batch",
    summary="Answer a list of searches for related notes",
    status_code=207,
    response_model=None,
    openapi_extra={"requestBody": LIST_BODY},
    responses={
        207: {"description": "Result of each search", "model": SearchResults},
        **documented(400, 413, 415, 422, 429, 503, 504),
    },
)
@needs(Scope.SIMILAR)
@spends_tokens
async def similar_batch(request: Request, service: ServiceDep, requested: RequestedUrgencyDep) -> Response:
    """Answer up to `max_searches` searches, each as in POST /similar. The model reads the texts of all searches
    together.

    If the model cannot read them, because it fails or its queue is full, each search with texts gets this problem, with
    `retry_after`, and the others get their answers. If every valid search has texts, the whole request gets the
    problem.
    """
    urgency = requested.for_list(service.settings)
    check_media_type(request.headers)
    body = await request.body()
    answering = answer_list(body, request, service, urgency)
    content = await while_connected(request, urgency, answering)
    return Response(content, 207, media_type="application/json")


async def answer_nearest(
    note_id: str, options: RankingOptions | SearchDefaults, service: ReadService, time_left: ReadTime
) -> Response | None:
    """Answer by the short path; None if only the full search has an answer. Raises IndexBehind."""
    if options.plain:
        with suppress(StoreUnavailable):  # the full search then gives a degraded answer
            if nearest := await service.nearest.find(note_id, *options.as_plain(), time_left):
                return Response(render_nearest(nearest, note_id, service.model), media_type="application/json")
    return None


async def answer_body(
    search: SearchRequest,
    position: str | None,
    request: Request,
    service: Service,
    requested: RequestedUrgency,
    time_left: ReadTime,
) -> Similar:
    """Answer a search sent as a body, while its caller stays connected. Several texts in one search count as a list."""
    one = len(search.texts) <= 1
    urgency = requested.for_note(service.settings) if one else requested.for_list(service.settings)

    async def answering() -> Similar:
        if position:
            seconds = min(time_to_wait(seconds_left(urgency)), service.settings.request_seconds)
            await wait_for_position(position, "", service, time_left, seconds)
        return await service.search.related(search, urgency, time_left=time_left)

    return await while_connected(request, urgency, answering())


async def answer_response(
    related: Similar,
    note_id: str | None,
    service: Service,
    options: RankingOptions | SearchDefaults,
    time_left: ReadTime,
) -> Response:
    """Return the answer without fields that are not set. FastAPI would take as long to serialise it as the search
    takes."""
    answer = SimilarOut.of(related, note_id, service.engine.name, options.variant)
    await IncludedFields(service.store).add(answer, related, options.include, time_left)
    return Response(answer.model_dump_json(exclude_unset=True), media_type="application/json")
