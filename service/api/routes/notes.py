"""POST /notes (one, a list, or NDJSON), and GET, PUT, PATCH, DELETE /notes/{id}."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from model.note import Note
from service.api.bodies import NDJSON, Turns, check_media_type, is_list, list_items, media_type, parse_json
from service.api.dependencies import (
    GenerateDep,
    IfMatch,
    RecommenderDep,
    ServiceDep,
    StrictJsonRoute,
    check_note_size,
    while_connected,
)
from service.api.problems import documented, invalid_note, problem_of
from service.api.schemas import AddedOut, BatchItem, NoteId, NoteIn, NoteOut, NotePatch
from service.batcher import Lane
from service.container import Service
from service.errors import (
    MAX_ERRORS,
    FieldError,
    InvalidInput,
    LimitExceeded,
    MalformedBody,
    NoteLLMError,
    QueueFull,
)
from service.recommender import Added, Generate
from service.settings import Settings

router = APIRouter(tags=["notes"], route_class=StrictJsonRoute)
STREAM_NOTES = 64
"""Most notes of a stream that are added at once; their results are sent before more is read."""

NOTE_BYTES = 2048
"""What a note counts as at least in a slice: it is validated, and its result written, whatever its length."""
MAX_ANSWER_ERRORS = 1000
"""Bound on the field errors of a list's answer; beyond it each rejected note has one."""
MAX_ID = 128
"""Bound on the characters of an id that is repeated of a rejected note: that of an id."""

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
async def post_notes(request: Request, service: ServiceDep, generate: GenerateDep) -> Response:
    """Ingest one note, a list, or a stream: durable and searchable when it answers.

    `generate=hashtags,category` fills in what an author left out, from the same prefill. In a list or a stream one bad
    note does not fail the rest.
    """
    check_media_type(request.headers, NDJSON)
    if is_stream(request.method, "/notes", request.headers):
        return NdjsonResponse(_add_stream(request, service, generate))
    body = await request.body()
    if is_list(body):
        answer = await while_connected(request, service, _add_list(body, service, generate))
        return Response(answer, 207, media_type="application/json")
    check_note_size(len(body), service)
    note = parse_note(parse_json(body))
    (added,) = await while_connected(request, service, service.recommender.add([note], generate, Lane.INTERACTIVE))
    one = AddedOut.of(added, service.recommender.engine.name)
    return JSONResponse(
        one.model_dump(mode="json"),
        201 if added.status == "created" else 200,
        {"ETag": f'"{one.log_position}"', "Location": f"/notes/{one.id}"},
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
    responses=documented(400, 404, 409, 412, 413, 415, 422, 429, 503, 504),
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


def is_stream(method: str, path: str, headers: Headers) -> bool:
    """Whether a request is a stream of notes, whose body has no bound."""
    return (method, path) == ("POST", "/notes") and media_type(headers) == NDJSON


@dataclass(slots=True)
class Batch:
    """Notes of one request by their places in it, and the results of those that are rejected."""

    good: dict[int, Note] = field(default_factory=dict)
    rejected: dict[int, BatchItem] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.good) + len(self.rejected)

    def append(self, outcome: Note | BatchItem) -> None:
        """Add what came of the next note of the request."""
        if isinstance(outcome, Note):
            self.good[len(self)] = outcome
        else:
            self.rejected[len(self)] = outcome

    def results(self, added: Sequence[Added]) -> Iterator[BatchItem]:
        """The result of each note, in the order of the request. `added`: the good notes, in their order."""
        outcomes = iter(added)
        for i in range(len(self)):
            yield self.rejected[i] if i in self.rejected else BatchItem.of(next(outcomes))


async def _add_list(body: bytes, service: Service, generate: Generate) -> bytes:
    """The answer to a list: a result for each note, in order; the good ones are added whatever the others are."""
    turns = Turns()
    batch = await _read_list(body, service, turns)
    added = await service.recommender.add(list(batch.good.values()), generate, Lane.BULK)
    results: list[bytes] = []
    for item in batch.results(added):
        results.append(item.model_dump_json(exclude_none=True).encode())
        await turns.work(max(len(results[-1]), NOTE_BYTES))
    return b'{"results":[%s],"model":%s}' % (b",".join(results), orjson.dumps(service.recommender.engine.name))


async def _read_list(body: bytes, service: Service, turns: Turns) -> Batch:
    """The notes of a JSON list. Raises MalformedBody where any of it is no JSON, and LimitExceeded."""
    most = service.settings.max_batch_notes
    batch, errors_left = Batch(), MAX_ANSWER_ERRORS
    async with aclosing(list_items(body, turns)) as items:
        async for raw in items:
            i = len(batch)
            if i == most:
                raise LimitExceeded("max_batch_notes", most)
            try:
                outcome = _read_note(raw, service, f"/{i}", max(1, errors_left))
            except MalformedBody as error:
                raise MalformedBody(f"item {i} of the list: {error.detail}") from error
            if isinstance(outcome, BatchItem) and outcome.problem:
                errors_left -= len(outcome.problem.errors or ())
            batch.append(outcome)
            await turns.work(max(len(raw), NOTE_BYTES))
    return batch


async def _read_lines(lines: Sequence[bytes], service: Service, turns: Turns) -> Batch:
    """The notes of some lines; one that is no JSON is rejected alone."""
    batch = Batch()
    for raw in lines:
        try:
            batch.append(_read_note(raw, service))
        except MalformedBody as error:
            batch.append(_rejected(None, error))
        await turns.work(max(len(raw), NOTE_BYTES))
    return batch


def _read_note(raw: bytes, service: Service, pointer: str = "", most_errors: int = MAX_ERRORS) -> Note | BatchItem:
    """A note, or else the result that says why it is none. Raises MalformedBody."""
    value = None
    try:
        check_note_size(len(raw), service)
        value = parse_json(raw, pointer)
        return parse_note(value, pointer)
    except InvalidInput as error:
        return _rejected(value, error.shortened(most_errors))
    except LimitExceeded as error:
        return _rejected(value, error)


async def _add_when_admitted(notes: Sequence[Note], service: Service, generate: Generate) -> list[Added]:
    """A stream that meets a full queue is read no further until there is room, for as long as a request may take."""
    async with asyncio.timeout(service.settings.request_seconds) as deadline:
        while True:
            try:
                return await service.recommender.add(notes, generate, Lane.BULK)
            except QueueFull as error:
                if (deadline.when() or 0) < asyncio.get_running_loop().time() + error.retry_after:
                    raise
                await asyncio.sleep(error.retry_after)


def _rejected(value: Any, error: NoteLLMError) -> BatchItem:
    note_id = value.get("id") if isinstance(value, dict) else None
    known = note_id if isinstance(note_id, str) and len(note_id) <= MAX_ID else None
    return BatchItem(id=known, status="rejected", problem=problem_of(error))


async def _add_stream(request: Request, service: Service, generate: Generate) -> AsyncIterator[bytes]:
    """One result line for each note line. A failure of the whole service ends the stream with a rejected line."""
    model, turns = service.recommender.engine.name, Turns()
    async for lines in _lines(request, service.settings):
        batch = await _read_lines(lines, service, turns)
        try:
            added = await _add_when_admitted(list(batch.good.values()), service, generate)
        except NoteLLMError as error:
            yield _line(_rejected(None, error), model)
            return
        for item in batch.results(added):
            yield _line(item, model)


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
    """Sends each line as soon as it is there, while the request is still being read. Ends with a caller who leaves."""

    def __init__(self, lines: AsyncIterator[bytes]) -> None:
        self._body_lines = lines
        super().__init__(None, 200, media_type=NDJSON)
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        with suppress(ClientDisconnect):
            async for line in self._body_lines:
                await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
