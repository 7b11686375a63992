"""POST /notes (one, a list, or NDJSON), and GET, PUT, PATCH, DELETE /notes/{id}."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from model.note import Note
from service.access.principal import Scope
from service.adding import Added, expired_error
from service.api.access import needs, needs_engine, spends_tokens
from service.api.bodies import NDJSON, check_media_type, is_list, lines, one_list_or_stream, parse_json
from service.api.bounds import check_changed_size, check_note_size
from service.api.connection import while_connected
from service.api.dependencies import (
    ConditionDep,
    GenerateDep,
    RecommenderDep,
    RequestedUrgencyDep,
    ServiceDep,
    UrgencyDep,
)
from service.api.idempotency import IdempotencyKeyDep, replay_headers
from service.api.ingest_list import add_list, parse_note
from service.api.ingest_stream import add_stream, is_note_stream
from service.api.json_route import StrictJsonRoute
from service.api.ndjson import NdjsonResponse
from service.api.problems import documented, invalid_value
from service.api.schemas.common import NoteId
from service.api.schemas.notes import AddedOut, EarlierNoteIn, NoteIn, NoteOut, NotePatch, RemovedOut, note_fields
from service.errors import FieldError, InvalidInput, MalformedHeader, PreconditionFailed
from service.interfaces import NoteStore
from service.records import Condition
from service.stored_notes import read_note

router = APIRouter(tags=["notes"], route_class=StrictJsonRoute)

POST_BODY = one_list_or_stream("NoteIn", "note")
STREAM_LINES = (
    "one BatchItem per line, with the `model` of BatchOut; or a last line with only a `problem`, if the stream ends "
    "before all notes have results"
)


def _content(model: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{model}"}}}


@router.post(
    "/notes",
    summary="Add one note, a list or a stream of notes",
    response_model=None,
    openapi_extra={"requestBody": POST_BODY},
    responses={
        200: {
            "description": "Updated or unchanged; for NDJSON, a stream of results, one per line",
            "content": {**_content("AddedOut"), **lines(STREAM_LINES)},
        },
        201: {"description": "Created", "content": _content("AddedOut")},
        207: {"description": "For a list: result of each note", "content": _content("BatchOut")},
        **documented(400, 409, 412, 413, 415, 422, 429, 503, 504),
    },
)
@needs(Scope.NOTES_WRITE)
@needs_engine
async def post_notes(
    request: Request,
    service: ServiceDep,
    generate: GenerateDep,
    condition: ConditionDep,
    key: IdempotencyKeyDep,
    requested: RequestedUrgencyDep,
) -> Response:
    """Add one note, a list, or a stream. A note is durable and searchable when its result is sent.

    `generate=hashtags,category` generates what the author left out, from the same prefill. In a list or a stream, an
    invalid note does not fail the others. A note without an id is added as a new note each time it is sent: if you may
    have to repeat a request, send ids or an Idempotency-Key.
    """
    check_media_type(request.headers, NDJSON)
    if is_note_stream(request.method, "/notes", request.headers):
        refuse_condition(condition, "a stream")
        return NdjsonResponse(add_stream(request, service, generate, requested.for_list(service.settings), key))
    body = await request.body()
    if is_list(body):
        refuse_condition(condition, "a list")
        urgency = requested.for_list(service.settings)
        work = add_list(body, service, generate, urgency, key)
        results, replayed = await while_connected(request, urgency, work)
        return Response(results, 207, replay_headers(replayed), media_type="application/json")
    check_note_size(len(body), service.settings)
    note = parse_note(parse_json(body))
    urgency = requested.for_note(service.settings)
    attempts = key.attempts(body)
    if condition is None:
        adding = service.recommender.add([note], generate, urgency, attempts)
        (one,) = await while_connected(request, urgency, adding)
        if one is None:
            raise expired_error()
        added = one
    else:
        if not note.id:
            refuse_condition(condition, "a note without an id")
        putting = service.recommender.put(note, generate, condition, urgency, attempts)
        added = await while_connected(request, urgency, putting)
    answer = AddedOut.of(added, service.engine.name)
    return JSONResponse(
        answer.model_dump(mode="json"),
        201 if added.status == "created" else 200,
        answer_headers(added) | {"Location": f"/notes/{answer.id}"},
    )


def refuse_condition(condition: Condition | None, what: str) -> None:
    """Raise MalformedHeader if there is a condition on `what`, which is not one stored note."""
    if condition is not None:
        header = "If-None-Match" if condition.negated else "If-Match"
        raise MalformedHeader(header, f"is not supported for {what}; send one note with an id")


def answer_headers(added: Added) -> dict[str, str]:
    """Return the headers of the answer to a write of one note."""
    return {"ETag": f'"{added.stored.position}"'} | replay_headers(added.replayed)


@router.get(
    "/notes/{note_id}",
    summary="Get a note",
    response_model=NoteOut,
    responses={
        304: {"description": "Not modified: the note has an ETag of If-None-Match"},
        **documented(400, 404, 409, 412, 422, 503),
    },
)
@needs(Scope.NOTES_READ)
async def get_note(
    note_id: NoteId, service: ServiceDep, condition: ConditionDep, response: Response
) -> NoteOut | Response:
    """Get a stored note. The ETag is its log position, for If-Match and If-None-Match."""
    return await answer_note(note_id, service.store, condition, response)


async def answer_note(
    note_id: str, store: NoteStore, condition: Condition | None, response: Response
) -> NoteOut | Response:
    """Answer with a stored note, whose headers go to `response`, or with 304. Raises PreconditionFailed, and what
    read_note raises."""
    stored = await read_note(store, note_id)
    headers = {"ETag": f'"{stored.position}"'}
    if condition is not None and not condition.holds(True, stored.position):
        if condition.negated:
            return Response(status_code=304, headers=headers)
        raise PreconditionFailed(note_id, condition.failure)
    response.headers.update(headers)
    return NoteOut.of(stored)


@router.put(
    "/notes/{note_id}",
    summary="Create or replace a note",
    responses={201: {"model": AddedOut}, **documented(400, 409, 412, 413, 415, 422, 429, 503, 504)},
)
@needs(Scope.NOTES_WRITE)
@spends_tokens
async def put_note(
    note_id: NoteId,
    body: NoteIn,
    request: Request,
    response: Response,
    service: ServiceDep,
    generate: GenerateDep,
    condition: ConditionDep,
    key: IdempotencyKeyDep,
    urgency: UrgencyDep,
) -> AddedOut:
    """Create a note, or replace all of it."""
    if body.id not in (None, note_id):
        raise InvalidInput([FieldError("/id", "must be omitted or equal the id in the path")])
    work = service.recommender.put(
        body.as_note(note_id), generate, condition, urgency, key.attempts(await request.body())
    )
    added = await while_connected(request, urgency, work)
    response.status_code = 201 if added.status == "created" else 200
    response.headers.update(answer_headers(added))
    return AddedOut.of(added, service.engine.name)


@router.patch(
    "/notes/{note_id}",
    summary="Change fields of a note",
    responses=documented(400, 404, 409, 412, 413, 415, 422, 429, 503, 504),
)
@needs(Scope.NOTES_WRITE)
@spends_tokens
async def patch_note(
    note_id: NoteId,
    body: NotePatch,
    request: Request,
    response: Response,
    service: ServiceDep,
    generate: GenerateDep,
    condition: ConditionDep,
    key: IdempotencyKeyDep,
    urgency: UrgencyDep,
) -> AddedOut:
    """Change some fields of a note. Model tokens are spent only if title, content or hashtags change, if `generate`
    asks for something, or if the note was embedded by another model.

    Generated hashtags and categories belong to the text: a change of title, content or hashtags drops them. Of
    the generated values, `category: null` drops only the category and `hashtags: []` only the hashtags; both also clear
    what the author gave. `generate` generates them again.
    """

    def edit(note: Note) -> Note:
        try:
            whole = body.merged(note)
        except ValidationError as error:
            raise invalid_value(error) from error
        size = _json_bytes(whole)
        if size > service.settings.note_bytes:
            earlier = EarlierNoteIn.model_construct(**note_fields(note))  # perhaps no valid note any more
            check_changed_size(size, _json_bytes(earlier), service.settings)
        return whole.as_note(note_id)

    attempts = key.attempts(await request.body())
    generate = replace(generate, drops=body.drops)
    work = service.recommender.change(note_id, edit, condition, urgency, attempts, generate)
    added = await while_connected(request, urgency, work)
    response.headers.update(answer_headers(added))
    return AddedOut.of(added, service.engine.name)


def _json_bytes(note: EarlierNoteIn) -> int:
    return len(note.model_dump_json(exclude_defaults=True).encode())


@router.delete("/notes/{note_id}", summary="Remove a note", responses=documented(400, 404, 409, 412, 422, 503))
@needs(Scope.NOTES_WRITE)
async def delete_note(
    note_id: NoteId, recommender: RecommenderDep, condition: ConditionDep, key: IdempotencyKeyDep, response: Response
) -> RemovedOut:
    """Remove a note. After the 200, no answer of any replica contains it. The answer is a receipt; a repeated request
    with the same Idempotency-Key gets the same receipt."""
    removed = await recommender.remove(note_id, condition, key.attempts(b""))
    response.headers.update(replay_headers(removed.replayed))
    return RemovedOut.of(note_id, removed)
