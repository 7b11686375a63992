"""POST /events, GET /events/reads, GET and DELETE /users/{user}/events and /sessions/{session}/events, GET
/reports/recommendations."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from service.access.principal import Scope
from service.api.access import needs
from service.api.bodies import NDJSON, TimeSlices, check_media_type, is_list, lines, media_type, one_list_or_stream
from service.api.dependencies import ServiceDep
from service.api.ingest_events import (
    add_event,
    add_event_lines,
    add_event_list,
    check_event_lines,
    lines_of_reader,
    lines_of_reads,
)
from service.api.json_route import StrictJsonRoute
from service.api.ndjson import NdjsonResponse, started
from service.api.problems import documented
from service.api.schemas.common import ReaderId, Time
from service.api.schemas.events import ForgottenOut, ReportOut, session_name, user_name
from service.behaviour.report import DIMENSIONS, Dimension
from service.container import Service
from service.errors import FieldError, InvalidInput

router = APIRouter(tags=["events"], route_class=StrictJsonRoute)
EVENT_LINES = lines(
    "one event per line: `type`, `note_id`, `at`, and the details that were sent; or a last line with a `problem`"
)
READ_LINES = lines("one read per line: `user`, `note`, `time`, `rating`; or a last line with a `problem`")
REPORT_SECONDS = 604_800.0
"""Seconds that a report covers by default: a week."""
POST_BODY = one_list_or_stream("EventIn", "event")


@router.post(
    "/events",
    summary="Record what readers did with notes",
    response_model=None,
    openapi_extra={"requestBody": POST_BODY},
    responses={
        200: {
            "description": "Accepted, now or before; for NDJSON, results, one per line",
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/EventOut"}},
                **lines(
                    "one EventOut per line; or a last line with only a `problem`, if they end before all events have "
                    "results"
                ),
            },
        },
        207: {
            "description": "For a list: result of each event",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/EventsOut"}}},
        },
        **documented(400, 404, 409, 413, 415, 422, 429, 503),
    },
)
@needs(Scope.EVENTS)
async def post_events(request: Request, service: ServiceDep) -> Response:
    """Record what readers did with notes: one event, a list, or NDJSON. An event is durable when its result is sent,
    and counts once, by its event_id. In a list or in NDJSON, an invalid event does not fail the others."""
    check_media_type(request.headers, NDJSON)
    body = await request.body()
    if media_type(request.headers) == NDJSON:
        check_event_lines(body)
        return NdjsonResponse(await started(add_event_lines(request, body, service)))
    if is_list(body):
        return Response(await add_event_list(body, service), 207, media_type="application/json")
    answer = await add_event(body, service)
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")


@router.get(
    "/events/reads",
    summary="Export the reads that count",
    response_class=Response,
    responses={200: {"content": READ_LINES}, **documented(429, 503)},
)
@needs(Scope.EVENTS)
async def export_reads(request: Request, service: ServiceDep) -> Response:
    """Export the reads that count at present, one per line, in the form that `notellm pairs` and training take: user (a
    pseudonym), note, time in seconds since the epoch, rating (the weight). A last line with a `problem` says that reads
    are missing, for example because the key was revoked meanwhile."""
    return NdjsonResponse(await started(lines_of_reads(request, service, TimeSlices())))


@router.get(
    "/users/{user}/events",
    summary="Export the events of a user",
    response_class=Response,
    responses={200: {"content": EVENT_LINES}, **documented(422, 429, 503)},
)
@needs(Scope.EVENTS)
async def read_user_events(user: Annotated[ReaderId, Path()], request: Request, service: ServiceDep) -> Response:
    """Export the stored events of a user, one per line, in the order in which they were stored: requests in the order
    of their arrival; the events of a list, and of every thousand lines of NDJSON, by `at`. A line has type, note_id,
    at, and the details that were sent. Use it to answer a person who asks which data is stored about them. A last line
    with a `problem` says that events are missing."""
    return NdjsonResponse(await started(lines_of_reader(request, service, user_name(user))))


@router.get(
    "/sessions/{session}/events",
    summary="Export the events of a session",
    response_class=Response,
    responses={200: {"content": EVENT_LINES}, **documented(422, 429, 503)},
)
@needs(Scope.EVENTS)
async def read_session_events(session: Annotated[ReaderId, Path()], request: Request, service: ServiceDep) -> Response:
    """Export the stored events of a session, in the same form as those of a user."""
    return NdjsonResponse(await started(lines_of_reader(request, service, session_name(session))))


@router.delete("/users/{user}/events", summary="Remove the events of a user", responses=documented(409, 422, 429, 503))
@needs(Scope.EVENTS)
async def forget_user(user: Annotated[ReaderId, Path()], service: ServiceDep) -> ForgottenOut:
    """Remove all events of a user so far, durably, including their effect on related notes. Safe to repeat. The
    removal continues if the client disconnects. One runs at a time (429 beyond `max_erasures` of GET /limits)."""
    return await forget(user_name(user), service)


@router.delete(
    "/sessions/{session}/events", summary="Remove the events of a session", responses=documented(409, 422, 429, 503)
)
@needs(Scope.EVENTS)
async def forget_session(session: Annotated[ReaderId, Path()], service: ServiceDep) -> ForgottenOut:
    """Remove all events of a session so far, as for a user."""
    return await forget(session_name(session), service)


async def forget(reader: str, service: Service) -> ForgottenOut:
    """Forget all events of a reader so far. Raises TooManyWaiting, StoreUnavailable, TenantRemoved."""
    with service.erasures.slot():
        return ForgottenOut(events=await service.behaviour.forget(reader))


@router.get("/reports/recommendations", summary="Report click rates of recommendations", responses=documented(422, 503))
@needs(Scope.EVENTS)
async def report_recommendations(
    service: ServiceDep,
    by: Annotated[
        str, Query(description=f"fields to group by, separated by commas: some of {', '.join(DIMENSIONS)}")
    ] = "scenario,variant",
    since: Annotated[Time | None, Query(description="first day of the report; default: a week ago")] = None,
) -> ReportOut:
    """Report which share of the recommended notes that were shown was clicked."""
    names = list(dict.fromkeys(part.strip() for part in by.split(",") if part.strip()))
    if unknown := sorted(set(names) - set(DIMENSIONS)):
        raise InvalidInput([FieldError("/query/by", f"must be some of {', '.join(DIMENSIONS)}, not {unknown}")])
    dimensions: list[Dimension] = [name for name in DIMENSIONS if name in names]
    begin = since.timestamp() if since else service.clock() - REPORT_SECONDS
    behaviour = service.behaviour
    rates, left_out = await behaviour.rates(dimensions, begin)
    return ReportOut.make(dimensions, begin, behaviour.status().ready, behaviour.unmatched(begin), rates, left_out)
