"""GET /notes/{id}/similar and POST /similar: item-to-item retrieval."""

from __future__ import annotations

from fastapi import APIRouter, Request

from service.access.principal import Scope
from service.api.access import needs
from service.api.bounds import check_filter, check_search_options
from service.api.connection import while_connected
from service.api.dependencies import ServiceDep, UrgencyDep, get_service, read_timeout
from service.api.json_route import StrictJsonRoute
from service.api.problems import documented
from service.api.query import query_parameters, read_query
from service.api.schemas.common import NoteId
from service.api.schemas.similar import SimilarIn, SimilarOut, SimilarQuery
from service.container import Service
from service.errors import FieldError, InvalidInput
from service.read_time import ReadTime
from service.records import position_key

WAIT_HEADER = {
    "name": "x-request-timeout",
    "in": "header",
    "required": False,
    "schema": {"type": "number", "exclusiveMinimum": 0},
    "description": "seconds to wait for min_log_position; 1 by default",
}
router = APIRouter(tags=["similar"], route_class=StrictJsonRoute)


@router.get(
    "/notes/{note_id}/similar",
    responses=documented(404, 409, 422, 503),
    openapi_extra={"parameters": [*query_parameters(SimilarQuery), WAIT_HEADER]},
)
@needs(Scope.SIMILAR)
async def similar(note_id: NoteId, request: Request) -> SimilarOut:
    """Notes related to a stored one, from its stored vector: no model call."""
    # Not FastAPI dependencies: each of them costs a tenth of a millisecond (docs/log/reads.md).
    service, query = await get_service(request), read_query(SimilarQuery, request)
    check_search_options(query, "/query", service.settings)
    time_left, timeout = ReadTime(), read_timeout(request)
    if query.min_log_position:
        seconds = min(timeout or time_left.seconds, service.settings.request_seconds)
        await wait_for_position(query.min_log_position, service, time_left, seconds)
    related = await service.recommender.similar(note_id, query.k, query.as_filter(), query.min_score, time_left)
    return SimilarOut.of(related, note_id, service.recommender.engine.name)


async def wait_for_position(position: str, service: Service, time_left: ReadTime, seconds: float) -> None:
    """Wait until the index has reached a log position, for at most `seconds`. Raises InvalidInput for one that the
    store itself has not reached: waiting would not help; and IndexBehind, StoreUnavailable."""
    if position_key(position) <= position_key(service.index.position):
        return
    if position_key(position) > position_key((await time_left.wait(service.store.log_bounds())).last):
        raise InvalidInput([FieldError("/query/min_log_position", "no write has had this log position yet")])
    await service.index.wait_for(position, seconds)


@router.post("/similar", responses=documented(400, 413, 415, 422, 429, 503, 504))
@needs(Scope.SIMILAR)
async def similar_to_text(body: SimilarIn, request: Request, service: ServiceDep, urgency: UrgencyDep) -> SimilarOut:
    """Notes related to a text that is not stored and leaves no trace."""
    check_search_options(body, "", service.settings)
    if body.filter is not None:
        check_filter(body.filter, service.settings)
    recommender = service.recommender
    work = recommender.similar_to_text(body.as_note(), body.k, body.as_filter(), body.min_score, urgency)
    related = await while_connected(request, urgency, work)
    return SimilarOut.of(related, None, recommender.engine.name)
