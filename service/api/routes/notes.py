"""POST /notes (one, a list, or NDJSON), and GET, PUT, PATCH, DELETE /notes/{id}."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from model.note import Note
from service.api.bodies import NDJSON, check_media_type, is_list, parse_json
from service.api.bounds import check_note_size
from service.api.connection import while_connected
from service.api.dependencies import GenerateDep, IfMatch, RecommenderDep, RequestedUrgencyDep, ServiceDep, UrgencyDep
from service.api.ingest_list import add_list, parse_note
from service.api.ingest_stream import NdjsonResponse, add_stream, is_note_stream
from service.api.json_route import StrictJsonRoute
from service.api.problems import documented, invalid_note
from service.api.schemas.common import NoteId
from service.api.schemas.notes import AddedOut, NoteIn, NoteOut, NotePatch
from service.errors import FieldError, InvalidInput

router = APIRouter(tags=["notes"], route_class=StrictJsonRoute)

POST_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "anyOf": [
                    {"$ref": "#/components/schemas/NoteIn"},
                    {
                        "type": "array",
                        "description": "notes; one that is not valid gets a problem of its own, at its place",
                        "items": {"anyOf": [{"$ref": "#/components/schemas/NoteIn"}, {}]},
                    },
                ]
            }
        },
        NDJSON: {"schema": {"type": "string", "description": "one note a line"}},
    },
}


def _content(model: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{model}"}}}


@router.post(
    "/notes",
    response_model=None,
    openapi_extra={"requestBody": POST_BODY},
    responses={
        200: {
            "description": "Updated, or nothing to change; for NDJSON a stream of results, one a line",
            "content": {**_content("AddedOut"), NDJSON: {"schema": {"type": "string"}}},
        },
        201: {"description": "Created", "content": _content("AddedOut")},
        207: {"description": "A list: each note's own result", "content": _content("BatchOut")},
        **documented(400, 413, 415, 422, 429, 503, 504),
    },
)
async def post_notes(
    request: Request, service: ServiceDep, generate: GenerateDep, requested: RequestedUrgencyDep
) -> Response:
    """Ingest one note, a list, or a stream: durable and searchable when it answers.

    `generate=hashtags,category` fills in what an author left out, from the same prefill. In a list or a stream one bad
    note does not fail the rest.
    """
    check_media_type(request.headers, NDJSON)
    if is_note_stream(request.method, "/notes", request.headers):
        return NdjsonResponse(add_stream(request, service, generate, requested.for_list(service.settings)))
    body = await request.body()
    if is_list(body):
        urgency = requested.for_list(service.settings)
        results = await while_connected(request, urgency, add_list(body, service, generate, urgency))
        return Response(results, 207, media_type="application/json")
    check_note_size(len(body), service.settings)
    note = parse_note(parse_json(body))
    urgency = requested.for_note(service.settings)
    (added,) = await while_connected(request, urgency, service.recommender.add([note], generate, urgency))
    answer = AddedOut.of(added, service.recommender.engine.name)
    return JSONResponse(
        answer.model_dump(mode="json"),
        201 if added.status == "created" else 200,
        {"ETag": f'"{answer.log_position}"', "Location": f"/notes/{answer.id}"},
    )


@router.get("/notes/{note_id}", responses=documented(404, 409, 422, 503))
async def get_note(note_id: NoteId, recommender: RecommenderDep, response: Response) -> NoteOut:
    """The note itself. ETag is its log position, for If-Match."""
    note = NoteOut.of(await recommender.get(note_id))
    response.headers["ETag"] = f'"{note.log_position}"'
    return note


@router.put(
    "/notes/{note_id}",
    responses={201: {"model": AddedOut}, **documented(400, 412, 413, 415, 422, 429, 503, 504)},
)
async def put_note(
    note_id: NoteId,
    body: NoteIn,
    request: Request,
    response: Response,
    service: ServiceDep,
    generate: GenerateDep,
    if_match: IfMatch,
    urgency: UrgencyDep,
) -> AddedOut:
    """Create or replace the whole note."""
    if body.id not in (None, note_id):
        raise InvalidInput([FieldError("/id", "must be left out or equal the id of the address")])
    work = service.recommender.put(body.as_note(note_id), generate, if_match, urgency)
    added = await while_connected(request, urgency, work)
    response.status_code = 201 if added.status == "created" else 200
    response.headers["ETag"] = f'"{added.stored.position}"'
    return AddedOut.of(added, service.recommender.engine.name)


@router.patch(
    "/notes/{note_id}",
    responses=documented(400, 404, 409, 412, 413, 415, 422, 429, 503, 504),
)
async def patch_note(
    note_id: NoteId,
    body: NotePatch,
    request: Request,
    response: Response,
    service: ServiceDep,
    if_match: IfMatch,
    urgency: UrgencyDep,
) -> AddedOut:
    """Change some fields. Only a changed title, content or hashtags costs model tokens."""

    def edit(note: Note) -> Note:
        try:
            return body.merged(note).as_note(note_id)
        except ValidationError as error:
            raise invalid_note(error) from error

    work = service.recommender.change(note_id, edit, if_match, urgency)
    added = await while_connected(request, urgency, work)
    response.headers["ETag"] = f'"{added.stored.position}"'
    return AddedOut.of(added, service.recommender.engine.name)


@router.delete("/notes/{note_id}", status_code=204, responses=documented(404, 412, 422, 503))
async def delete_note(note_id: NoteId, recommender: RecommenderDep, if_match: IfMatch) -> None:
    """Remove a note. After 204 no answer of any replica contains it."""
    await recommender.remove(note_id, if_match)
