"""GET /notes/export and POST /notes/import: all notes of a tenant out of the service, and back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service.access.principal import Scope
from service.api.access import needs, reauthorise, spends_tokens
from service.api.bodies import NDJSON, TimeSlices, check_media_type, lines
from service.api.connection import while_connected
from service.api.dependencies import RequestedUrgencyDep, ServiceDep
from service.api.ingest_import import read_import
from service.api.json_route import StrictJsonRoute
from service.api.ndjson import NdjsonResponse, gzipped, pieces_of, started, takes_gzip
from service.api.problems import documented, problem_line
from service.api.query import query_parameters, read_query
from service.api.schemas.collection import VectorForm
from service.api.schemas.export import (
    ExportQuery,
    ImportItem,
    ImportOut,
    change_line,
    first_line,
    last_line,
)
from service.collection.export import Export
from service.collection.importing import NoteToImport
from service.container import Service
from service.errors import FieldError, InvalidInput, NoteLLMError

EXPORT_LINES = (
    "first a line with `export` (the version) and more; then one per change: `removed` (an id), or the fields of a "
    "NoteWithVector, with `hashtags` and `category` as the author gave them and always with `space`; last a line with "
    "`end`, or with a `problem`: docs/guides/notes-out.md#all-of-it"
)
ReplaceQuery = Annotated[
    bool, Query(description="true: replace stored notes that have the same ids; by default these stay as they are")
]
router = APIRouter(tags=["collection"], route_class=StrictJsonRoute)


@router.get(
    "/notes/export",
    summary="Export all notes, or what changed",
    response_class=Response,
    responses={
        200: {"description": "One change per line", "content": lines(EXPORT_LINES)},
        **documented(410, 422, 429, 503),
    },
    openapi_extra={"parameters": query_parameters(ExportQuery)},
)
@needs(Scope.NOTES_READ)
async def export_notes(request: Request, service: ServiceDep) -> Response:
    """Export all notes, or the changes after a log position, as a stream of lines; compressed with gzip if
    `Accept-Encoding` allows it.

    The first line has the log position `begin`, the last one has `end`. In between are notes and removals in the order
    of their log positions; applied in this order, they give the notes of the store as of `end`. A stream without the
    last line was broken off: to resume it, send the log position of the last line received as `after`, and the `begin`
    of the first line.
    """
    query = read_query(ExportQuery, request)
    if query.begin and query.after is None:
        raise InvalidInput([FieldError("/query/begin", "requires `after`, the log position of the last line received")])
    export = await Export.open(
        service.store, service.index, query.after, query.begin, with_vectors=query.vectors is not None
    )
    headers = {"Vary": "Accept-Encoding"}
    stream = await started(_lines(request, service, export, query.vectors))
    if takes_gzip(request.headers):
        return NdjsonResponse(gzipped(stream), headers | {"Content-Encoding": "gzip"})
    return NdjsonResponse(stream, headers)


async def _lines(request: Request, service: Service, export: Export, form: VectorForm | None) -> AsyncGenerator[bytes]:
    """Yield the lines of an export, some at a time. A failure, or a key that was revoked, ends it with a
    problem."""
    with service.exports.slot():
        status, engine = service.index.status(), service.engine
        about = status.vectors + status.other_space
        yield first_line(export, service.tenant, form, engine.space, engine.dimension, about)
        slices = TimeSlices()
        try:
            async with aclosing(export.changes()) as batches:
                async for changes in batches:
                    if await request.is_disconnected():
                        return
                    await reauthorise(request)
                    for piece in pieces_of(change_line(change, form) for change in changes):
                        yield piece
                        await slices.check()
        except NoteLLMError as error:
            yield problem_line(error)
            return
        yield last_line(export, len(service.store.unreadable))


@router.post(
    "/notes/import",
    summary="Import exported notes",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"type": "array", "items": {"$ref": "#/components/schemas/ImportIn"}}},
                **lines("lines of an export, or one ImportIn per line"),
            },
        }
    },
    status_code=207,
    response_model=ImportOut,
    responses=documented(400, 409, 413, 415, 422, 429, 503, 504),
)
@needs(Scope.ADMIN)
@spends_tokens
async def import_notes(
    request: Request, service: ServiceDep, requested: RequestedUrgencyDep, replace: ReplaceQuery = False
) -> Response:
    """Import notes of an export, up to `max_batch_notes`. Their vectors are kept if they are those of the serving
    model.

    If a note with the same id is stored already, it stays as it is, unless you set `replace`. The body is a list of
    notes, or the unchanged lines of GET /notes/export: if a note occurs more than once, its last line counts, and a
    note that a later line removes is left out.
    """
    check_media_type(request.headers, NDJSON)
    slices, items = TimeSlices(), await read_import(request, service)
    notes = [item for item in items if isinstance(item, NoteToImport)]
    urgency = requested.for_list(service.settings)
    outcomes: Iterator[ImportItem] = map(
        ImportItem.of, await while_connected(request, urgency, service.importer.add(notes, replace, urgency))
    )
    results = list[bytes]()
    for item in items:
        result = next(outcomes) if isinstance(item, NoteToImport) else item
        results.append(result.model_dump_json().encode())
        await slices.check()
    return Response(b'{"results":[%s]}' % b",".join(results), 207, media_type="application/json")
