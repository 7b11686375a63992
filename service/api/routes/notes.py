"""POST /notes (one, a list, or NDJSON), and GET, PUT, PATCH, DELETE /notes/{id}."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from model.note import Note
from service.api.dependencies import (
    GenerateDep,
    IfMatch,
    RecommenderDep,
    ServiceDep,
    StrictJsonRoute,
    bounded_note,
    check_note_size,
    parse_json,
    while_connected,
)
from service.api.problems import documented, invalid_note, problem_of
from service.api.schemas import AddedOut, BatchItem, BatchOut, NoteId, NoteIn, NoteOut, NotePatch
from service.batcher import Lane
from service.container import Service
from service.errors import FieldError, InvalidInput, LimitExceeded, MalformedBody, NoteLLMError, QueueFull
from service.recommender import Generate
from service.settings import Settings

router = APIRouter(tags=["notes"], route_class=StrictJsonRoute)
NDJSON = "application/x-ndjson"
STREAM_NOTES = 64
"""Most notes of a stream that are added at once; their results are sent before more is read."""

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
        **documented(400, 413, 422, 429, 503, 504),
    },
)
async def post_notes(request: Request, service: ServiceDep, generate: GenerateDep) -> Response:
    """Ingest one note, a list, or a stream: durable and searchable when it answers.

    `generate=hashtags,category` fills in what an author left out, from the same prefill. In a list or a stream one bad
    note does not fail the rest.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == NDJSON:
        return NdjsonResponse(_add_stream(request, service, generate))
    body = parse_json(await request.body())
    if isinstance(body, list):
        if len(body) > service.settings.max_batch_notes:
            raise LimitExceeded("max_batch_notes", service.settings.max_batch_notes)
        work = _add_list(body, service, generate)
        batch = BatchOut(results=await while_connected(request, service, work), model=service.recommender.engine.name)
        return JSONResponse(batch.model_dump(mode="json", exclude_none=True), 207)
    check_note_size(len(await request.body()), service)
    note = parse_note(body)
    (added,) = await while_connected(request, service, service.recommender.add([note], generate, Lane.INTERACTIVE))
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
    dependencies=[Depends(bounded_note)],
    responses={201: {"model": AddedOut}, **documented(400, 412, 413, 422, 429, 503, 504)},
)
async def put_note(
    note_id: NoteId,
    body: NoteIn,
    request: Request,
    response: Response,
    service: ServiceDep,
    generate: GenerateDep,
    if_match: IfMatch,
) -> AddedOut:
    """Create or replace the whole note."""
    if body.id not in (None, note_id):
        raise InvalidInput([FieldError("/id", "must be left out or equal the id of the address")])
    work = service.recommender.put(body.as_note(note_id), generate, if_match)
    added = await while_connected(request, service, work)
    response.status_code = 201 if added.status == "created" else 200
    response.headers["ETag"] = f'"{added.stored.position}"'
    return AddedOut.of(added, service.recommender.engine.name)


@router.patch(
    "/notes/{note_id}",
    dependencies=[Depends(bounded_note)],
    responses=documented(400, 404, 409, 412, 413, 422, 429, 503, 504),
)
async def patch_note(
    note_id: NoteId, body: NotePatch, request: Request, response: Response, service: ServiceDep, if_match: IfMatch
) -> AddedOut:
    """Change some fields. Only a changed title, content or hashtags costs model tokens."""

    def edit(note: Note) -> Note:
        try:
            return body.merged(note).as_note(note_id)
        except ValidationError as error:
            raise invalid_note(error) from error

    added = await while_connected(request, service, service.recommender.change(note_id, edit, if_match))
    response.headers["ETag"] = f'"{added.stored.position}"'
    return AddedOut.of(added, service.recommender.engine.name)


@router.delete("/notes/{note_id}", status_code=204, responses=documented(404, 412, 422, 503))
async def delete_note(note_id: NoteId, recommender: RecommenderDep, if_match: IfMatch) -> None:
    """Remove a note. After 204 no answer of any replica contains it."""
    await recommender.remove(note_id, if_match)


def parse_note(value: Any, prefix: str = "") -> Note:
    """Raises InvalidInput, its pointers behind `prefix`."""
    try:
        return NoteIn.model_validate(value).as_note()
    except ValidationError as error:
        raise invalid_note(error, prefix) from error


async def _add_list(values: Sequence[Any], service: Service, generate: Generate) -> list[BatchItem]:
    """A result for each value, in order; the good notes are added whatever the others are."""
    results: dict[int, BatchItem] = {}
    good: dict[int, Note] = {}
    for i, value in enumerate(values):
        try:
            check_note_size(len(orjson.dumps(value)), service)
            good[i] = parse_note(value, f"/{i}")
        except NoteLLMError as error:
            results[i] = _rejected(value, error)
    added = await service.recommender.add(list(good.values()), generate, Lane.BULK)
    results.update(zip(good, map(BatchItem.of, added), strict=True))
    return [results[i] for i in range(len(values))]


async def _add_when_admitted(values: Sequence[Any], service: Service, generate: Generate) -> list[BatchItem]:
    """A stream that meets a full queue is read no further until there is room, for as long as a request may take."""
    async with asyncio.timeout(service.settings.request_seconds) as deadline:
        while True:
            try:
                return await _add_list(values, service, generate)
            except QueueFull as error:
                if (deadline.when() or 0) < asyncio.get_running_loop().time() + error.retry_after:
                    raise
                await asyncio.sleep(error.retry_after)


def _rejected(value: Any, error: NoteLLMError) -> BatchItem:
    note_id = value.get("id") if isinstance(value, dict) else None
    return BatchItem(id=note_id if isinstance(note_id, str) else None, status="rejected", problem=problem_of(error))


async def _add_stream(request: Request, service: Service, generate: Generate) -> AsyncIterator[bytes]:
    """One result line for each note line. A failure of the whole service ends the stream with a rejected line."""
    model = service.recommender.engine.name
    async for lines in _lines(request, service.settings):
        values: list[Any] = []
        broken: dict[int, BatchItem] = {}
        for line in lines:
            try:
                values.append(parse_json(line))
            except MalformedBody as error:
                broken[len(broken) + len(values)] = _rejected(None, error)
        try:
            items = iter(await _add_when_admitted(values, service, generate))
        except NoteLLMError as error:
            yield _line(_rejected(None, error), model)
            return
        for i in range(len(lines)):
            yield _line(broken[i] if i in broken else next(items), model)


def _line(item: BatchItem, model: str) -> bytes:
    return orjson.dumps({**item.model_dump(mode="json", exclude_none=True), "model": model}) + b"\n"


async def _lines(request: Request, settings: Settings) -> AsyncIterator[list[bytes]]:
    """Non-blank lines as they arrive, few at once. A line that is over its bound is cut, and so rejected."""
    at_once = min(STREAM_NOTES, settings.queue_notes)
    max_bytes = settings.max_note_bytes
    rest = b""
    async for chunk in request.stream():
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > max_bytes:
            rest = rest[: max_bytes + 1]
        lines = [line for line in lines if line.strip()]
        for start in range(0, len(lines), at_once):
            yield lines[start : start + at_once]
    if rest.strip():
        yield [rest]


class NdjsonResponse(Response):
    """Sends each line as soon as it is there, while the request is still being read."""

    def __init__(self, lines: AsyncIterator[bytes]) -> None:
        self._body_lines = lines
        super().__init__(None, 200, media_type=NDJSON)
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for line in self._body_lines:
            await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
