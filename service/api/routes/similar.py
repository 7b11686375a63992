"""GET /notes/{id}/similar and POST /similar: item-to-item retrieval."""

from __future__ import annotations

from fastapi import APIRouter, Request

from service.api.dependencies import (
    ServiceDep,
    StrictJsonRoute,
    check_policy,
    get_service,
    query_parameters,
    read_query,
    while_connected,
)
from service.api.problems import documented
from service.api.schemas import NoteId, SimilarIn, SimilarOut, SimilarQuery
from service.container import Service
from service.errors import FieldError, InvalidInput
from service.recommender import WAIT_SECONDS
from service.records import position_key

router = APIRouter(tags=["similar"], route_class=StrictJsonRoute)


@router.get(
    "/notes/{note_id}/similar",
    responses=documented(404, 409, 422, 503),
    openapi_extra=query_parameters(SimilarQuery),
)
async def similar(note_id: NoteId, request: Request) -> SimilarOut:
    """Notes related to a stored one, from its stored vector: no model call."""
    # Not as dependencies, of which each takes FastAPI a tenth of a millisecond (docs/experiments.md).
    service, query = await get_service(request), read_query(SimilarQuery, request)
    check_policy(query, "/query", service)
    if query.min_log_position:
        await reach(query.min_log_position, service)
    found = await service.recommender.similar(note_id, query.k, query.as_filter(), query.min_score)
    return SimilarOut.of(found, note_id, service.recommender.engine.name)


async def reach(position: str, service: Service) -> None:
    """Wait for the index; a position that the store itself has not reached is a mistake, not something to wait for."""
    if position_key(position) <= position_key(service.index.position):
        return
    if position_key(position) > position_key((await service.store.log_bounds()).last):
        raise InvalidInput([FieldError("/query/min_log_position", "no write has had this log position yet")])
    await service.index.wait_for(position, WAIT_SECONDS)


@router.post("/similar", responses=documented(400, 413, 415, 422, 429, 503, 504))
async def similar_to_text(body: SimilarIn, request: Request, service: ServiceDep) -> SimilarOut:
    """Notes related to a text that is not stored and leaves no trace."""
    check_policy(body, "", service)
    recommender = service.recommender
    work = recommender.similar_to_text(body.as_note(), body.k, body.as_filter(), body.min_score)
    found = await while_connected(request, service, work)
    return SimilarOut.of(found, None, recommender.engine.name)
